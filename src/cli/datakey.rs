//! `datakey`: a random key for data that is encrypted elsewhere, and its envelope.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64_simd::STANDARD;
use kms_proxy::envelope;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::client::{self, ChainArgs, Client};
use super::data::{AadArgs, write_envelope};
use super::stdio::{print, require_stdout};
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
Prints the service's response as one line of JSON: the key in base64 (plaintext), its envelope \
(ciphertext), the chain and the KEK. With --key-file, the raw key is written to a new file of mode \
0600, and only the envelope to stdout. `kms-proxy decrypt` returns the key.

Example:
  kms-proxy datakey --key-file data.key > data.key.kp")]
pub(super) struct Args {
    /// The size of the key in bytes, 16 to 64 [default: 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(16..=64))]
    bytes: Option<u8>,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    aad: AadArgs,
    /// A new file for the key; an existing file is never replaced
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// With --key-file, write the binary envelope instead of its text form
    #[arg(long, requires = "key_file")]
    raw: bool,
    #[command(flatten)]
    client: client::Args,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aad: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<&'a str>,
}

#[derive(Deserialize)]
struct Made {
    plaintext: String,
    ciphertext: String,
}

/// Generates a key and its envelope.
pub(super) async fn run(args: Args) -> Result {
    require_stdout()?;
    let client = Client::new(args.client)?;
    let body = Request {
        bytes: args.bytes,
        aad: args.aad.bytes().map(|aad| STANDARD.encode_to_string(aad)),
        chain: args.chain.chain.as_ref().map(|chain| chain.as_str()),
    };
    let request = client.request(Method::POST, "/v1/datakey").json(&body);
    let Some(path) = args.key_file else {
        let answer = Zeroizing::new(client.call(request).await?);
        print(answer.trim_ascii_end())?;
        return print(b"\n");
    };
    // The file is opened first, so that no key is generated if that fails.
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    let mut file = file.map_err(|error| wrong(&path, &error))?;
    let made = async {
        let Made { plaintext, ciphertext } = client.call_json(request).await?;
        let plaintext = Zeroizing::new(plaintext);
        let unknown = |_| Failure::refused("the response of the service has no key");
        let key = STANDARD.decode_to_vec(plaintext.as_bytes()).map_err(unknown)?;
        let key = Zeroizing::new(key);
        let envelope = envelope::from_text(&ciphertext)
            .map_err(|_| Failure::refused("the response of the service has no envelope"))?;
        let written = file.write_all(&key).and_then(|()| file.sync_all());
        written.map_err(|error| wrong(&path, &error))?;
        write_envelope(&envelope, args.raw)
    };
    made.await.inspect_err(|_| {
        // A key whose envelope was lost must not be used.
        _ = std::fs::remove_file(&path);
    })
}

fn wrong(path: &Path, error: &std::io::Error) -> Failure {
    Failure::refused(format!("--key-file, {}: {error}", path.display()))
}
