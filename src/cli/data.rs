//! `encrypt`, `decrypt` and `rewrap`: stdin to stdout, or to a new file.

use std::borrow::Cow;

use kms_proxy::envelope;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder};
use serde::Serialize;

use super::ciphertext::{Rewrapped, join, split, to_binary};
use super::client::{self, ChainArgs, Client};
use super::output::{CIPHERTEXT, OutputArgs, PLAINTEXT};
use super::range::{self, ByteRange};
use super::stdio::{SizeArgs, print, read_all, require_stdout};
use super::stream::{self, Context, Received};
use super::{Result, lines};

const OCTETS: &str = "application/octet-stream";

/// The AAD that a payload is bound to.
#[derive(clap::Args)]
pub(super) struct AadArgs {
    /// Additional authenticated data, as text: decryption needs the same
    #[arg(long, value_name = "TEXT", conflicts_with = "aad_base64")]
    aad: Option<String>,
    /// Additional authenticated data, in base64
    #[arg(long, value_name = "BASE64", value_parser = base64)]
    aad_base64: Option<Aad>,
}

impl AadArgs {
    /// The AAD, if one is given.
    pub(super) fn bytes(self) -> Option<Vec<u8>> {
        self.aad.map(String::into_bytes).or(self.aad_base64.map(|aad| aad.0))
    }
}

/// A dedicated type, since clap reads a `Vec` as a repeated argument.
#[derive(Clone)]
struct Aad(Vec<u8>);

#[derive(clap::Args)]
#[command(after_help = "\
Reads raw bytes and prints the envelope as one line of text (kp:...). server.max_body of the \
service limits their number, 4 MiB by default.

With --stream, data of any size is encrypted by this process, on all cores and in constant memory: \
the service makes only the key. The envelope is binary, of version 3 or 4. A client needs the \
operation `datakey`. If the command fails, what it wrote does not decrypt. A terminal shows the \
progress.

The file of --output gets its name when it is complete, and never replaces another one.

Examples:
  kms-proxy encrypt --aad 'row 7' < secret.txt > secret.kp
  kms-proxy encrypt --chain backups --raw < backup.key > backup.key.kp
  kms-proxy encrypt --stream --output big.kp < big
  tar c data | kms-proxy encrypt --stream --aad data | ssh host 'cat > data.tar.kp'")]
pub(super) struct EncryptArgs {
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    aad: AadArgs,
    /// Encrypt data of any size here, under a key from the service
    #[arg(long)]
    stream: bool,
    /// Write the binary envelope instead of its text form
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = "\
Reads an envelope, as text (kp:..., white space around it is ignored) or binary, and writes the \
plaintext.

An envelope of version 3 or 4 is decrypted by this process, on all cores and in constant memory, \
whatever its size: the service opens only its key. Each chunk is verified before it is written. If \
the envelope was cut or changed, the exit code is 1, and stdout has the part before: use the data \
only if the exit code is 0, or use --output.

--range writes the bytes from START to before END. K, M, G, T and P are powers of 1024, and \
without END the range ends with the plaintext. Of a file in version 3 or 4 only this part is read.

The file of --output gets its name when it is complete, and never replaces another one. It has \
mode 0600.

Examples:
  kms-proxy decrypt --aad 'row 7' < secret.kp
  kms-proxy decrypt --output big < big.kp
  kms-proxy decrypt --range 1G-2G < big.kp > part")]
pub(super) struct DecryptArgs {
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    aad: AadArgs,
    /// Write only this part of the plaintext, such as 1G-2G
    #[arg(long, value_name = "START-END", value_parser = range::parse)]
    range: Option<ByteRange>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
#[command(after_help = "\
Reads an envelope, or only its header, as text (kp:...) or binary. Only the header is sent; the \
payload is appended to the new header locally, and is not verified. An envelope that is already \
under the primary KEK is returned unchanged.

With --raw, an envelope of version 3 or 4 may have any size: its payload is copied.

With --lines, each line of stdin is an envelope as text. A line that fails is reported on stderr \
with its number, is copied to the output unchanged, and makes the exit code 1: the output can \
always replace the input. Empty lines and line endings are kept.

With --inline, the new header embeds the KEK, wrapped by the roots, and opens without the store. \
Without --inline, such a header is replaced by one that needs the store of the service.

Examples:
  kms-proxy rewrap < secret.kp > renewed.kp
  kms-proxy rewrap --lines --chain orders < column.txt > renewed.txt")]
pub(super) struct RewrapArgs {
    #[command(flatten)]
    chain: ChainArgs,
    /// Read one envelope per line
    #[arg(long, conflicts_with = "raw")]
    lines: bool,
    /// Embed the wrapped KEK: the new header has version 2 or 4 and needs no store
    #[arg(long)]
    inline: bool,
    /// Write the binary envelope instead of its text form
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    client: client::Args,
}

/// The body of a rewrap request.
#[derive(Serialize)]
struct RewrapRequest<'a> {
    ciphertext: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    inline: bool,
}

/// Encrypts stdin.
pub(super) async fn encrypt(args: EncryptArgs) -> Result {
    let EncryptArgs { chain, aad, stream, raw, output, size, client } = args;
    if output.is_stdout() {
        require_stdout()?;
    }
    if stream {
        output.refuse_terminal()?;
    }
    let client = Client::new(client)?.max_response(size.response());
    let (output, guard) = output.open(CIPHERTEXT)?;
    let work = async {
        if stream {
            return stream::seal(&client, context(chain, aad), output).await;
        }
        let input = stream::blocking(move || read_all(size.input())).await?;
        let request = octets(&client, "/v1/encrypt", &chain, aad, input);
        let envelope = client.call(request).await?;
        output.write_last(&encoded(&envelope, raw))
    };
    guard.run(work).await
}

/// Decrypts stdin.
pub(super) async fn decrypt(args: DecryptArgs) -> Result {
    let DecryptArgs { chain, aad, range, output, size, client } = args;
    let client = Client::new(client)?.max_response(size.response());
    let (output, guard) = output.open(PLAINTEXT)?;
    let work = async {
        match stream::blocking(move || stream::receive(size.input())).await? {
            Received::Stream(start, input) => {
                stream::open(&client, &context(chain, aad), (start, input), range, output).await
            }
            Received::Whole(envelope) => {
                let request = octets(&client, "/v1/decrypt", &chain, aad, envelope);
                output.write_last(part(&client.call(request).await?, range)?)
            }
        }
    };
    guard.run(work).await
}

/// The part of a whole plaintext that is in `range`.
fn part(plaintext: &[u8], range: Option<ByteRange>) -> Result<&[u8]> {
    let Some(range) = range else { return Ok(plaintext) };
    let all = plaintext.len() as u64;
    let len = range.len_within(all).ok_or_else(|| stream::behind(all))?;
    let (start, end) = (usize::try_from(range.start), usize::try_from(range.start + len));
    // Both are within the plaintext.
    let part = start.ok().zip(end.ok()).and_then(|(start, end)| plaintext.get(start..end));
    Ok(part.unwrap_or_default())
}

fn context(chain: ChainArgs, aad: AadArgs) -> Context {
    Context { chain: chain.chain.unwrap_or_default(), aad: aad.bytes().unwrap_or_default() }
}

/// Rewraps stdin under the primary KEK.
pub(super) async fn rewrap(args: RewrapArgs) -> Result {
    require_stdout()?;
    let client = Client::new(args.client)?;
    let chain = args.chain.chain.as_ref().map(|chain| chain.as_str());
    if args.lines {
        return lines::rewrap(&client, chain, args.inline, args.size.input()).await;
    }
    let max = args.size.input();
    // A text form needs all of an envelope.
    let (envelope, rest) = match args.raw {
        true => stream::receive_header(max)?,
        false => (to_binary(read_all(max)?)?, None),
    };
    let (header, payload) = split(&envelope)?;
    let body = RewrapRequest { ciphertext: envelope::to_text(header), chain, inline: args.inline };
    let request = client.request(Method::POST, "/v1/rewrap").json(&body);
    let rewrapped: Rewrapped = client.call_json(request).await?;
    write_envelope(&join(&rewrapped, payload)?, args.raw)?;
    rest.map_or(Ok(()), stream::copy)
}

pub(super) fn write_envelope(envelope: &[u8], raw: bool) -> Result {
    print(&encoded(envelope, raw))
}

/// The form of an envelope that is written.
fn encoded(envelope: &[u8], raw: bool) -> Cow<'_, [u8]> {
    if raw {
        envelope.into()
    } else {
        format!("{}\n", envelope::to_text(envelope)).into_bytes().into()
    }
}

/// A request with a raw body that accepts a raw response.
fn octets(
    client: &Client,
    path: &str,
    chain: &ChainArgs,
    aad: AadArgs,
    body: Vec<u8>,
) -> RequestBuilder {
    let mut request = client
        .request(Method::POST, path)
        .header(CONTENT_TYPE, OCTETS)
        // An error is always JSON.
        .header(ACCEPT, OCTETS);
    if let Some(chain) = &chain.chain {
        request = request.header("kms-proxy-chain", chain.as_str());
    }
    if let Some(aad) = aad.bytes() {
        request = request.header("kms-proxy-aad", base64_simd::STANDARD.encode_to_string(aad));
    }
    request.body(body)
}

fn base64(text: &str) -> std::result::Result<Aad, &'static str> {
    let bytes = base64_simd::STANDARD.decode_to_vec(text);
    bytes.map(Aad).map_err(|_| "must be padded base64")
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;

    #[test]
    fn both_forms_of_an_envelope_are_accepted() {
        for (input, binary) in [
            (&b"kp:AQIDBA=="[..], &[1, 2, 3, 4][..]),
            (b" \n kp:AQIDBA==\r\n", &[1, 2, 3, 4]),
            // White space at the ends of a binary envelope belongs to it.
            (b"\x01\x02 \n", b"\x01\x02 \n"),
            (b"", b""),
        ] {
            assert_eq!(to_binary(input.to_vec()).unwrap(), binary, "{input:?}");
        }
        for bad in [&b"kp:AQIDBA"[..], b"kp:\xff", b"kp:AQID BA=="] {
            assert!(matches!(to_binary(bad.to_vec()), Err(Failure::Refused(_))), "{bad:?}");
        }
    }
}
