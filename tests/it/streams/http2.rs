//! Streams over HTTP/2, by frames (RFC 9113): how an upload ends, and clients that do not read.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::limits::{Stream, Target, frame};
use crate::support::{Setup, until};

use super::cut::opens;
use super::{CHUNK, ended, message};

/// More than three chunks, of which the last one is short.
const LEN: usize = 3 * CHUNK + 1_000;
/// Every wait ends then.
const PATIENCE: Duration = Duration::from_secs(180);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection of HTTP/2.
pub(super) struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
}

impl Connection {
    /// Each stream may send `window` bytes to the client; together there is no limit.
    pub(super) async fn new(target: &Target, window: u32) -> Self {
        let (reader, writer) = tokio::io::split(target.connect().await);
        let mut connection = Self { reader, writer };
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        sent.extend(frame(SETTINGS, 0, 0, &settings));
        sent.extend(frame(WINDOW_UPDATE, 0, 0, &[0x40, 0, 0, 0]));
        connection.send(&sent).await;
        // The windows of streams come by SETTINGS, that of the connection by WINDOW_UPDATE.
        let (mut has_settings, mut has_window) = (false, false);
        while !(has_settings && has_window) {
            match connection.next().await.expect("the windows") {
                (SETTINGS, 0, ..) => has_settings = true,
                (WINDOW_UPDATE, _, 0, _) => has_window = true,
                _ => {}
            }
        }
        connection.send(&frame(SETTINGS, ACK, 0, &[])).await;
        connection
    }

    /// A service that ends the connection reads no more.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        let sending = async {
            _ = self.writer.write_all(bytes).await;
            _ = self.writer.flush().await;
        };
        timeout(PATIENCE, sending).await.expect("the service reads");
    }

    async fn close(&mut self) {
        _ = timeout(PATIENCE, self.writer.shutdown()).await;
    }

    /// The next frame: its type, flags, stream and payload. Nothing at the end of the connection.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let reading = async {
            let mut head = [0; 9];
            self.reader.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.reader.read_exact(&mut payload).await.ok()?;
            Some((kind, flags, u32::from_be_bytes(stream), payload))
        };
        timeout(PATIENCE, reading).await.expect("a frame, or the end of the connection")
    }

    /// Waits until the response on a stream has begun.
    async fn begun(&mut self, stream: u32) {
        while let Some((kind, _, number, payload)) = self.next().await {
            if (kind, number) == (HEADERS, stream) {
                assert_eq!(payload[0], 0x88, "the status");
                return;
            }
        }
        panic!("no response");
    }

    /// Reads what comes on a stream until it ends, in any way.
    pub(super) async fn answer(&mut self, stream: u32) -> Answer {
        let mut answer = Answer::default();
        while let Some((kind, flags, number, payload)) = self.next().await {
            if (kind, number) == (GOAWAY, 0) {
                return answer;
            }
            if number != stream {
                continue;
            }
            match kind {
                RST_STREAM => return answer,
                // The first field is the status. That of a success is in the static table.
                HEADERS => answer.status = if payload[0] == 0x88 { 200 } else { 400 },
                DATA => answer.body.extend(payload),
                _ => continue,
            }
            if flags & END_STREAM == END_STREAM {
                answer.is_whole = true;
                return answer;
            }
        }
        answer
    }
}

/// A response, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Answer {
    status: u16,
    body: Vec<u8>,
    pub(super) is_whole: bool,
}

/// The head of a request to encrypt: literals without compression (RFC 7541).
pub(super) fn head(stream: u32, length: Option<usize>) -> Vec<u8> {
    // POST and https.
    let mut head = b"\x83\x87\x04\x12/v1/stream/encrypt\x01\x09localhost".to_vec();
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let mut header = |name: &str, value: &str| {
        head.extend([&[0][..], &text(name), &text(value)].concat());
    };
    header("content-type", "application/octet-stream");
    header("kms-proxy-aad", "cm93IDc=");
    if let Some(length) = length {
        header("content-length", &length.to_string());
    }
    frame(HEADERS, END_HEADERS, stream, &head)
}

/// `body` in DATA frames.
pub(super) fn data(stream: u32, body: &[u8]) -> Vec<u8> {
    body.chunks(FRAME).flat_map(|piece| frame(DATA, 0, stream, piece)).collect()
}

/// The bytes of such a frame.
const FRAME: usize = 10_000;

/// How a request ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The connection is closed.
    Closed,
    /// GOAWAY, and the connection is closed.
    GoAway,
    /// RST_STREAM with this code: 0 is "no error", 8 is "cancel".
    Reset(u32),
    /// RST_STREAM, and the connection stays open.
    ResetAlone(u32),
    /// END_STREAM, in an empty DATA frame.
    Whole,
    /// END_STREAM, in trailers.
    Trailers,
}

/// Sends `body` up to the byte `at` of its frames, waits for the response to begin if it `waits`,
/// ends as `end` says, and reads. The status is 200 if it waited.
async fn upload(
    target: &Target,
    body: &[u8],
    length: Option<usize>,
    at: usize,
    end: End,
    waits: bool,
) -> Answer {
    let mut connection = Connection::new(target, 0x7fff_ffff).await;
    let data = data(1, body);
    let mut sent = head(1, length);
    sent.extend(&data[..at.min(data.len())]);
    let mut answer = Answer::default();
    if waits {
        connection.send(&std::mem::take(&mut sent)).await;
        connection.begun(1).await;
        answer.status = 200;
    }
    match end {
        End::Closed => {}
        End::GoAway => sent.extend(frame(GOAWAY, 0, 0, &[0; 8])),
        End::Reset(code) | End::ResetAlone(code) => {
            sent.extend(frame(RST_STREAM, 0, 1, &code.to_be_bytes()));
        }
        End::Whole => sent.extend(frame(DATA, END_STREAM, 1, &[])),
        End::Trailers => {
            sent.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x00\x01x\x01y"));
        }
    }
    connection.send(&sent).await;
    match end {
        End::Whole | End::Trailers => {}
        // A reset has no answer: the next request has.
        End::ResetAlone(_) => {
            let whole = [head(3, None), data_of_another(), frame(DATA, END_STREAM, 3, &[])];
            connection.send(&whole.concat()).await;
            let other = connection.answer(3).await;
            assert_eq!((other.status, other.is_whole), (200, true), "another request");
            return answer;
        }
        End::Closed | End::GoAway | End::Reset(_) => connection.close().await,
    }
    let rest = connection.answer(1).await;
    Answer { status: answer.status.max(rest.status), ..rest }
}

fn data_of_another() -> Vec<u8> {
    data(3, b"hello")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_over_http_2_is_complete_when_its_end_came_and_not_before() {
    let setup = Setup::new();
    let log = setup.file("audit.jsonl");
    let setup = setup.set("AUDIT__FILE", log.display()).set("AUDIT__RULE__0__LEVEL", "full");
    let target = Target::with(setup, true, &["h2"]).await;
    let message = message(LEN);
    let all = LEN + LEN.div_ceil(FRAME) * 9;
    let sealed = 62 + 56 + LEN + 4 * 16;
    // Those of other requests are complete.
    let (mut complete, mut begun) = (0, 0);
    for length in [None, Some(LEN)] {
        for end in [End::Whole, End::Trailers] {
            let answer = upload(&target, &message, length, all, end, false).await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{length:?}, {end:?}");
            assert_eq!(answer.body.len(), sealed);
            assert!(opens(&target, &answer.body).await);
            complete += 1;
        }
        for end in [
            End::Closed,
            End::GoAway,
            End::Reset(0),
            End::Reset(8),
            End::ResetAlone(0),
            End::ResetAlone(8),
        ] {
            let frames = |number: usize| number * (FRAME + 9);
            // Any other frame follows a whole one.
            let places = match end {
                End::Closed => {
                    vec![0, 1, 8, 9, 10, 10_008, 10_009, 10_010, 20_017, 30_000, all - 1, all]
                }
                _ => vec![0, frames(1), frames(3), frames(4), all],
            };
            for at in places {
                // Without a piece of the body there is no response.
                for waits in [false, true].into_iter().filter(|waits| !waits || at >= frames(1)) {
                    let answer = upload(&target, &message, length, at, end, waits).await;
                    let what = format!("{length:?}, {end:?} after {at} of {all}, {waits}");
                    assert!(answer.status != 200 || !answer.is_whole, "{what}");
                    assert!(!opens(&target, &answer.body).await, "{what}");
                    begun += u64::from(answer.status == 200);
                    complete += u64::from(matches!(end, End::ResetAlone(_)));
                }
            }
        }
    }
    // It ends before the length that it announced, and after it.
    for length in [LEN + 1, LEN - 1] {
        let answer = upload(&target, &message, Some(length), all, End::Whole, false).await;
        assert!(answer.status != 200 || !answer.is_whole, "{length} was announced");
        assert!(!opens(&target, &answer.body).await);
        begun += u64::from(answer.status == 200);
    }
    assert!(begun >= 52, "{begun} responses began before their uploads broke off");
    until("every stream ends", async || {
        target.service.metrics().await.contains("\nkms_proxy_streams_open 0\n").then_some(())
    })
    .await;
    assert_eq!(ended(&target.service, "encrypt", "ok").await, complete);
    let aborted = ended(&target.service, "encrypt", "aborted").await;
    assert!(aborted >= begun, "{aborted} were counted, {begun} were seen");
    for outcome in ["invalid_ciphertext", "stalled", "unread", "payload_too_large"] {
        assert_eq!(ended(&target.service, "encrypt", outcome).await, 0, "{outcome}");
    }
    until("a line of the audit log for each", async || {
        let text = std::fs::read_to_string(&log).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let failed = |line: &Value| {
            line["operation"] == "encrypt" && line["outcome"] == "aborted" && line["chunk"].is_u64()
        };
        (lines.filter(failed).count() as u64 == aborted).then_some(())
    })
    .await;
}

/// The window of a stream that is not read is used up, and its upload waits. Another stream of the
/// connection continues, and the first one ends alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_stream_ends_and_others_of_its_connection_continue() {
    let setup = Setup::new().set("SERVER__STREAM_IDLE_TIMEOUT", "2s");
    let target = Target::with(setup, true, &["h2"]).await;
    let mut connection = Connection::new(&target, 1_000).await;
    connection.send(&[head(1, None), data(1, &[7; 100_000])].concat()).await;
    for stream in [3, 5] {
        let whole = [head(stream, None), data(stream, b"hello")];
        connection
            .send(&[&whole.concat()[..], &frame(DATA, END_STREAM, stream, &[])].concat())
            .await;
        let answer = connection.answer(stream).await;
        assert_eq!((answer.status, answer.is_whole), (200, true), "{stream}");
        let is_unread =
            async || (ended(&target.service, "encrypt", "unread").await == 1).then_some(());
        until("the stream that is not read ends", is_unread).await;
    }
    let said = target.service.stop().await;
    assert!(said.contains("it must read while it sends"), "{said}");
}
