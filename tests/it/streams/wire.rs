//! A client of HTTP/1.1 that sends what it is asked to, also what no proper client would, and
//! reports whether a response is whole.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::limits::{Stream, Target};

/// How the length of a body is announced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Framing {
    Length,
    /// Chunks of HTTP/1.1 of this size.
    Chunks(usize),
}

/// A request.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) path: &'static str,
    pub(super) kind: &'static str,
    pub(super) headers: &'a str,
    pub(super) framing: Framing,
    pub(super) body: &'a [u8],
}

impl<'a> Call<'a> {
    pub(super) fn encrypt(body: &'a [u8]) -> Self {
        Self {
            path: "/v1/stream/encrypt",
            kind: "application/octet-stream",
            headers: "kms-proxy-aad: cm93IDc=\r\n",
            framing: Framing::Length,
            body,
        }
    }

    pub(super) fn decrypt(body: &'a [u8]) -> Self {
        Self { path: "/v1/stream/decrypt", ..Self::encrypt(body) }
    }

    pub(super) fn head(&self) -> String {
        let Self { path, kind, headers, .. } = self;
        let framing = match self.framing {
            Framing::Length => format!("content-length: {}", self.body.len()),
            Framing::Chunks(_) => "transfer-encoding: chunked".to_owned(),
        };
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: {kind}\r\n{headers}{framing}\r\n\r\n"
        )
    }

    /// The body as it is on the wire.
    pub(super) fn wire(&self) -> Vec<u8> {
        match self.framing {
            Framing::Length => self.body.to_vec(),
            Framing::Chunks(size) => {
                let mut wire = Vec::new();
                for chunk in self.body.chunks(size) {
                    wire.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    wire.extend_from_slice(chunk);
                    wire.extend(b"\r\n");
                }
                wire.extend(b"0\r\n\r\n");
                wire
            }
        }
    }

    /// Sends all of it, and reads at the same time.
    pub(super) async fn send(&self, target: &Target) -> Answer {
        self.begin(target, 0).await.finish().await
    }

    /// Sends its first bytes.
    pub(super) async fn begin(&self, target: &Target, first: usize) -> Begun {
        let (reader, mut writer) = tokio::io::split(target.connect().await);
        writer.write_all(self.head().as_bytes()).await.unwrap();
        let wire = self.wire();
        writer.write_all(&wire[..first]).await.unwrap();
        writer.flush().await.unwrap();
        Begun { reader, writer, rest: wire[first..].to_vec(), came: Vec::new() }
    }

    /// Sends its first bytes, and ends the connection in this direction.
    pub(super) async fn cut(&self, target: &Target, first: usize) -> Answer {
        let mut begun = self.begin(target, first).await;
        _ = begun.writer.shutdown().await;
        begun.read().await
    }
}

/// A request that is not sent whole.
pub(super) struct Begun {
    reader: ReadHalf<Box<dyn Stream>>,
    pub(super) writer: WriteHalf<Box<dyn Stream>>,
    rest: Vec<u8>,
    came: Vec<u8>,
}

impl Begun {
    /// Waits for the head of the response; the KEK that it names.
    pub(super) async fn answer_head(&mut self) -> String {
        loop {
            if let Some(answer) = Answer::parse(&self.came) {
                assert_eq!(answer.status, 200);
                return answer.header("kms-proxy-kek-id");
            }
            assert!(self.reader.read_buf(&mut self.came).await.unwrap() > 0);
        }
    }

    /// Sends the rest, and reads at the same time. A connection that the service ends while it is
    /// sent to may lose the response: then the status is 0.
    pub(super) async fn finish(mut self) -> Answer {
        let rest = std::mem::take(&mut self.rest);
        let mut writer = self.writer;
        let sending = async {
            // A service that refuses a request need not read it.
            _ = writer.write_all(&rest).await;
            _ = writer.flush().await;
        };
        let mut came = self.came;
        let reading = read_all(&mut self.reader, &mut came);
        _ = tokio::join!(sending, reading);
        Answer::parse(&came).unwrap_or_default()
    }

    /// Sends nothing more, and reads.
    pub(super) async fn read(mut self) -> Answer {
        read_all(&mut self.reader, &mut self.came).await;
        Answer::parse(&self.came).unwrap_or_default()
    }
}

async fn read_all(reader: &mut (impl AsyncReadExt + Unpin), came: &mut Vec<u8>) {
    // A connection that is reset ends, too.
    let read: io::Result<usize> = reader.read_to_end(came).await;
    _ = read;
}

/// Reads until the head is whole; also gives what came of the body.
pub(super) async fn read_head(reader: &mut (impl AsyncReadExt + Unpin)) -> (Answer, Vec<u8>) {
    let mut came = Vec::new();
    loop {
        if let Some(mut answer) = Answer::parse(&came) {
            let first = std::mem::take(&mut answer.body);
            return (answer, first);
        }
        assert!(reader.read_buf(&mut came).await.unwrap() > 0, "no head came");
    }
}

/// A response, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    /// The length that it announces.
    pub(super) length: Option<usize>,
    pub(super) body: Vec<u8>,
    /// Whether it came to its end.
    pub(super) is_whole: bool,
}

impl Answer {
    pub(super) async fn read(stream: &mut Box<dyn Stream>) -> Self {
        let mut came = Vec::new();
        read_all(stream, &mut came).await;
        Self::parse(&came).expect("a response")
    }

    /// What came; none without a whole head.
    pub(super) fn parse(came: &[u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(start)) = head.parse(came) else { return None };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let mut answer = Self { status: head.code?, ..Self::default() };
        answer.headers =
            head.headers.iter().map(|it| (it.name.to_owned(), text(it.value))).collect();
        let rest = &came[start..];
        let length = answer.header("content-length");
        if length.is_empty() {
            answer.read_chunks(rest);
        } else {
            let length = length.parse().unwrap();
            assert!(rest.len() <= length, "more than was announced");
            answer.length = Some(length);
            answer.is_whole = rest.len() == length;
            answer.body = rest.to_vec();
        }
        Some(answer)
    }

    fn read_chunks(&mut self, mut rest: &[u8]) {
        assert_eq!(self.header("transfer-encoding"), "chunked");
        while let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(rest) {
            let size = usize::try_from(size).unwrap();
            let data = &rest[start..];
            if size == 0 {
                self.is_whole = data == b"\r\n";
                return;
            }
            self.body.extend_from_slice(&data[..size.min(data.len())]);
            match data.get(size + 2..) {
                Some(next) => rest = next,
                None => return,
            }
        }
    }

    /// A header; empty if it is not there.
    pub(super) fn header(&self, name: &str) -> String {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}
