//! Streams: envelopes of any length (versions 3 and 4), sealed and opened here, on all cores and in
//! constant memory.
//!
//! The service makes and opens their keys, and verifies chain and AAD; it does not see the data.

use std::fs::File;
use std::io::{self, Cursor, ErrorKind, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use base64_simd::STANDARD;
use kms_proxy::cobblestone::{CHUNK_LEN, MessageKey, RandomReader, parallel};
use kms_proxy::envelope;
use kms_proxy::id::ChainName;
use kms_proxy::secret::KeyBytes;
use kms_proxy::stream::{self, Start};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ciphertext::to_binary;
use super::client::Client;
use super::meter::Meter;
use super::output::Output;
use super::range::ByteRange;
use super::stdio::read_within;
use super::{Failure, Result};

/// The chain and the AAD of a stream.
pub(super) struct Context {
    pub(super) chain: ChainName,
    pub(super) aad: Vec<u8>,
}

/// What stdin has.
pub(super) enum Received {
    /// An envelope of version 1 or 2, or what is not an envelope.
    Whole(Vec<u8>),
    /// A stream: its start, and the chunks, which are not read yet.
    Stream(Start, Input),
}

/// What is read a part at a time.
pub(super) enum Input {
    /// Unbuffered.
    Stdin(File),
    /// A decoded envelope.
    Memory(Cursor<Vec<u8>>),
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<String>,
    chain: &'a str,
    aad: String,
    stream_key: bool,
}

#[derive(Deserialize)]
struct Response {
    /// The DEK.
    plaintext: String,
    /// The start of a new stream.
    ciphertext: Option<String>,
}

impl Context {
    /// The start and the key of a new stream.
    async fn make_key(&self, client: &Client) -> Result<(Vec<u8>, MessageKey)> {
        let (key, start) = self.call(client, "/v1/datakey", None).await?;
        let start = start.and_then(|start| envelope::from_text(start).ok());
        let start = start.and_then(|start| Start::read(&*start).ok()).ok_or_else(no_key)?;
        let key = self.message_key(&start, &key)?;
        Ok((start.as_slice().to_vec(), key))
    }

    /// The key of the stream that starts with `start`.
    async fn open_key(&self, client: &Client, start: &Start) -> Result<MessageKey> {
        let text = envelope::to_text(start.as_slice());
        let (key, _) = self.call(client, "/v1/decrypt", Some(text)).await?;
        self.message_key(start, &key)
    }

    async fn call(
        &self,
        client: &Client,
        path: &str,
        ciphertext: Option<String>,
    ) -> Result<(KeyBytes, Option<String>)> {
        let (chain, aad) = (self.chain.as_str(), STANDARD.encode_to_string(&self.aad));
        let body = Request { ciphertext, chain, aad, stream_key: true };
        let request = client.request(Method::POST, path).json(&body);
        let Response { plaintext, ciphertext } = client.call_json(request).await?;
        let plaintext = Zeroizing::new(plaintext);
        let key = STANDARD.decode_to_vec(plaintext.as_bytes()).map(Zeroizing::new);
        let key = key.ok().and_then(|key| KeyBytes::from_slice(&key));
        Ok((key.ok_or_else(no_key)?, ciphertext))
    }

    /// The key of the chunks. The commitment shows whether it is that of this start, chain and AAD.
    fn message_key(&self, start: &Start, dek: &KeyBytes) -> Result<MessageKey> {
        let (header, prefix) = start.parts().map_err(|_| no_key())?;
        let context = envelope::stream_context(header.suite, &self.chain, &self.aad);
        let context = context.filter(|_| header.suite == dek.suite()).ok_or_else(no_key)?;
        MessageKey::open(dek, prefix, &context).map_err(|_| no_key())
    }
}

fn no_key() -> Failure {
    Failure::refused("the response of the service has no key of this stream")
}

/// Seals stdin. `output` is complete then.
pub(super) async fn seal(client: &Client, context: Context, mut output: Output) -> Result {
    let (start, key) = context.make_key(client).await?;
    let input = Input::stdin()?;
    blocking(move || {
        output.write_all(&start).map_err(|error| output.failure(&error))?;
        let meter = Meter::new(input.remaining());
        let reader = Reading { input, meter: Some(meter) };
        let sealed = parallel::seal(&key, reader, Writing(&mut output), threads());
        sealed.map_err(|error| failure(error, &output))?;
        output.finish()
    })
    .await
}

/// Opens a stream, or a `range` of its plaintext. `output` is complete then.
pub(super) async fn open(
    client: &Client,
    context: &Context,
    (start, mut input): (Start, Input),
    range: Option<ByteRange>,
    mut output: Output,
) -> Result {
    let at = match range {
        None => None,
        Some(range) => Some((range, input.stream_position().map_err(|_| not_seekable())?)),
    };
    let key = context.open_key(client, &start).await?;
    blocking(move || {
        match at {
            None => {
                let meter = Meter::new(input.remaining());
                let reader = Reading { input, meter: Some(meter) };
                let opened = parallel::open(&key, reader, Writing(&mut output), threads());
                opened.map_err(|error| failure(error, &output))?;
            }
            Some((range, at)) => open_range(key, input, at, range, &mut output)?,
        }
        output.finish()
    })
    .await
}

/// Opens a part of the plaintext of a stream, whose first chunk is `at` this place of `input`.
fn open_range(
    key: MessageKey,
    input: Input,
    at: u64,
    range: ByteRange,
    output: &mut Output,
) -> Result {
    let reader = RandomReader::new(Reading { input, meter: None }, key, at);
    let mut reader = reader.map_err(|error| failure(error, output))?;
    let all = reader.len();
    let mut left = range.len_within(all).ok_or_else(|| behind(all))?;
    let mut meter = Meter::new(Some(left));
    let copied = reader.seek(SeekFrom::Start(range.start)).and_then(|_| {
        let mut buffer = Zeroizing::new(vec![0; CHUNK_LEN]);
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
            let read = reader.read(buffer.get_mut(..room).unwrap_or_default())?;
            if read == 0 {
                return Err(ErrorKind::InvalidData.into());
            }
            Writing(output).write_all(buffer.get(..read).unwrap_or_default())?;
            meter.add(read);
            left -= read as u64;
        }
        Ok(())
    });
    copied.map_err(|error| failure(error, output))
}

/// The failure for a range that starts behind a plaintext of `len` bytes.
pub(super) fn behind(len: u64) -> Failure {
    Failure::refused(format!("--range starts behind the plaintext, which has {len} bytes"))
}

fn not_seekable() -> Failure {
    let message = "--range needs a file as stdin: a pipe can't be read from the middle";
    Failure::Usage(message.to_owned())
}

/// Reads stdin: all of it, at most `max` bytes, or only the start of a stream.
pub(super) fn receive(max: usize) -> Result<Received> {
    let (first, mut stdin) = begin()?;
    if is_stream(&first) {
        let start = read_start(first.as_slice().chain(&mut stdin))?;
        return Ok(Received::Stream(start, stdin));
    }
    let envelope = to_binary(read_within(first.as_slice().chain(stdin), max)?)?;
    if !is_stream(&envelope) {
        return Ok(Received::Whole(envelope));
    }
    let mut envelope = Cursor::new(envelope);
    let start = read_start(&mut envelope)?;
    Ok(Received::Stream(start, Input::Memory(envelope)))
}

/// Reads stdin for a rewrap: all of it, at most `max` bytes, or the header of a stream, whose
/// payload is not read yet.
pub(super) fn receive_header(max: usize) -> Result<(Vec<u8>, Option<Input>)> {
    let (first, mut stdin) = begin()?;
    if !is_stream(&first) {
        return Ok((to_binary(read_within(first.as_slice().chain(stdin), max)?)?, None));
    }
    let header = stream::read_header(first.as_slice().chain(&mut stdin)).map_err(start_failed)?;
    Ok((header, Some(stdin)))
}

/// Copies the rest of `input` to stdout.
pub(super) fn copy(mut input: Input) -> Result {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let copied = stdout.and_then(|stdout| match &mut input {
        Input::Stdin(stdin) => io::copy(stdin, &mut File::from(stdout)),
        Input::Memory(envelope) => io::copy(envelope, &mut File::from(stdout)),
    });
    copied.map(drop).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Silent,
        _ => Failure::refused(format!("can't copy the payload: {error}")),
    })
}

/// The first byte of stdin, if it has one, and the rest.
fn begin() -> Result<(Vec<u8>, Input)> {
    let mut stdin = Input::stdin()?;
    let mut first = Vec::new();
    (&mut stdin).take(1).read_to_end(&mut first).map_err(|error| read_failed(&error))?;
    Ok((first, stdin))
}

/// Whether the version of a binary envelope is 3 or 4.
fn is_stream(envelope: &[u8]) -> bool {
    matches!(envelope.first(), Some(3 | 4))
}

fn read_start(envelope: impl Read) -> Result<Start> {
    let start = Start::read(envelope).map_err(start_failed)?;
    start.parts().map_err(|error| start_failed(error.into()))?;
    Ok(start)
}

fn start_failed(error: stream::Error) -> Failure {
    match error {
        stream::Error::Io(error) => read_failed(&error),
        _ => Failure::refused("invalid_ciphertext: the start of the envelope is malformed or cut"),
    }
}

fn read_failed(error: &io::Error) -> Failure {
    Failure::refused(format!("can't read stdin: {error}"))
}

/// The failure of a stream that was begun.
fn failure(error: io::Error, output: &Output) -> Failure {
    let is_invalid = error.kind() == ErrorKind::InvalidData;
    match error.downcast::<Side>() {
        Ok(Side::Input(error)) => read_failed(&error),
        Ok(Side::Output(error)) => output.failure(&error),
        Err(_) if is_invalid => Failure::refused(format!(
            "invalid_ciphertext: the envelope was cut or changed; {}",
            output.remains()
        )),
        Err(error) => Failure::refused(error.to_string()),
    }
}

fn threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Runs what blocks, so that signals are noticed meanwhile.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Failure::refused(error.to_string())))
}

impl Input {
    fn stdin() -> Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        Ok(Self::Stdin(stdin.map_err(|error| read_failed(&error))?.into()))
    }

    /// The bytes until its end, if that is known.
    fn remaining(&self) -> Option<u64> {
        let Self::Stdin(stdin) = self else { return None };
        let mut stdin: &File = stdin;
        let metadata = stdin.metadata().ok().filter(std::fs::Metadata::is_file)?;
        metadata.len().checked_sub(stdin.stream_position().ok()?)
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stdin(stdin) => stdin.read(buffer),
            Self::Memory(envelope) => envelope.read(buffer),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Stdin(stdin) => stdin.read_vectored(buffers),
            Self::Memory(envelope) => envelope.read_vectored(buffers),
        }
    }
}

impl Seek for Input {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::Stdin(stdin) => stdin.seek(to),
            Self::Memory(envelope) => envelope.seek(to),
        }
    }
}

/// The side of a copy that failed.
#[derive(Debug, thiserror::Error)]
enum Side {
    #[error(transparent)]
    Input(io::Error),
    #[error(transparent)]
    Output(io::Error),
}

fn on(side: fn(io::Error) -> Side) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), side(error))
}

/// Counts what is read, and marks errors.
struct Reading {
    input: Input,
    meter: Option<Meter>,
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer).map_err(on(Side::Input))?;
        Ok(self.count(read))
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let read = self.input.read_vectored(buffers).map_err(on(Side::Input))?;
        Ok(self.count(read))
    }
}

impl Reading {
    fn count(&mut self, read: usize) -> usize {
        if let Some(meter) = &mut self.meter {
            meter.add(read);
        }
        read
    }
}

impl Seek for Reading {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.input.seek(to).map_err(on(Side::Input))
    }
}

/// Marks errors.
struct Writing<'a>(&'a mut Output);

impl Write for Writing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data).map_err(on(Side::Output))
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(data).map_err(on(Side::Output))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(on(Side::Output))
    }
}
