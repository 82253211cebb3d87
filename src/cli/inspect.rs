//! `inspect`: prints the header of an envelope as JSON, without a key.

use std::borrow::Cow;

use kms_proxy::envelope::{Envelope, InlineRecord};
use serde::Serialize;

use super::ciphertext::to_binary;
use super::stdio::{SizeArgs, print, read_all};
use super::{Failure, Result};

#[derive(clap::Args)]
#[command(after_help = "\
Reads an envelope, or only its header, as text (kp:...) or binary. Nothing is verified: that needs \
the key.

Examples:
  kms-proxy inspect < secret.kp
  kms-proxy inspect kp:AQF4...")]
pub(super) struct Args {
    /// The envelope as text [default: stdin]
    envelope: Option<String>,
    #[command(flatten)]
    size: SizeArgs,
}

/// The readable fields of an envelope.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Summary {
    version: u8,
    suite: &'static str,
    kek_id: String,
    header_bytes: usize,
    /// The ciphertext with its tags; 0 for a header alone.
    payload_bytes: usize,
    /// `None` for a header alone.
    plaintext_bytes: Option<usize>,
    /// The length of the inline record; only versions 2 and 4 have this and the following fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_bytes: Option<usize>,
    /// The roots that wrapped the inline KEK.
    #[serde(skip_serializing_if = "Option::is_none")]
    roots: Option<Vec<Wrap>>,
}

/// One wrap of an inline KEK.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Wrap {
    name: String,
    wrap_bytes: usize,
}

/// Prints the summary of an envelope.
pub(super) fn run(args: Args) -> Result {
    let input = match args.envelope {
        Some(text) => text.into_bytes(),
        None => read_all(args.size.input())?,
    };
    let report = summarise(&to_binary(input)?)?;
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Failure::refused(error.to_string()))?;
    print(format!("{json}\n").as_bytes())
}

fn summarise(envelope: &[u8]) -> Result<Summary> {
    let refused = |error| Failure::refused(format!("not an envelope: {error}"));
    let envelope = Envelope::parse_header_or_whole(envelope).map_err(refused)?;
    let Envelope { header, payload } = &envelope;
    let (mut record_bytes, mut roots) = (None, None);
    if let Some(record) = header.version.record() {
        record_bytes = Some(record.len());
        let wraps = InlineRecord::parse(record).map_err(refused)?.wraps.into_iter();
        let wrap = |(root, wrap): (Cow<'_, str>, Cow<'_, [u8]>)| Wrap {
            name: root.into_owned(),
            wrap_bytes: wrap.len(),
        };
        roots = Some(wraps.map(wrap).collect());
    }
    Ok(Summary {
        version: header.version.code(),
        suite: header.suite.as_str(),
        kek_id: header.kek_id.to_string(),
        header_bytes: header.bytes.len(),
        payload_bytes: payload.len(),
        plaintext_bytes: envelope.plaintext_len(),
        record_bytes,
        roots,
    })
}

#[cfg(test)]
mod tests {
    use kms_proxy::envelope::{Version, write_header};
    use kms_proxy::id::{KekId, Suite};

    use super::*;

    fn envelope(version: Version<'_>, suite: Suite, payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let id = KekId::from_bytes([9; 16]);
        write_header(&mut out, version, suite, &id, &[1; 12], &vec![2; suite.key_len()], &[3; 16]);
        out.resize(out.len() + payload, 4);
        out
    }

    #[test]
    fn whole_envelopes_and_headers_are_summarised() {
        let wraps = vec![("main".into(), vec![1, 2].into()), ("dr".into(), vec![3].into())];
        let record = InlineRecord { wraps }.to_bytes().unwrap();
        let stored = Summary {
            version: 1,
            suite: "aes-128-gcm",
            kek_id: "09".repeat(16),
            header_bytes: 62,
            payload_bytes: 272,
            plaintext_bytes: Some(256),
            record_bytes: None,
            roots: None,
        };
        let whole = envelope(Version::Stored, Suite::Aes128Gcm, 272);
        assert_eq!(summarise(&whole).unwrap(), stored);
        let header = Summary { payload_bytes: 0, plaintext_bytes: None, ..stored };
        assert_eq!(summarise(&whole[..62]).unwrap(), header);
        let carried = summarise(&envelope(Version::Inline(&record), Suite::Aes256Gcm, 16)).unwrap();
        assert_eq!((carried.version, carried.suite), (2, "aes-256-gcm"));
        assert_eq!(carried.header_bytes, 78 + 2 + record.len());
        assert_eq!(carried.plaintext_bytes, Some(0));
        let stream = envelope(Version::InlineStream(&record), Suite::Aes128Gcm, 72 + 256);
        let stream = summarise(&stream).unwrap();
        assert_eq!((stream.version, stream.plaintext_bytes), (4, Some(256)));
        assert_eq!(stream.record_bytes, Some(record.len()));
        assert_eq!(carried.record_bytes, Some(record.len()));
        let json = serde_json::to_value(carried.roots).unwrap();
        let expected = serde_json::json!([
            {"name": "main", "wrap_bytes": 2}, {"name": "dr", "wrap_bytes": 1},
        ]);
        assert_eq!(json, expected);
    }

    #[test]
    fn anything_but_an_envelope_is_refused() {
        let whole = envelope(Version::Stored, Suite::Aes128Gcm, 16);
        for bad in [&b""[..], b"hello", &whole[..61], &whole[..63], &whole[..77]] {
            match summarise(bad) {
                Err(Failure::Refused(message)) => {
                    assert!(message.starts_with("not an envelope: "), "{message}");
                }
                other => panic!("{bad:?}: {other:?}"),
            }
        }
    }
}
