//! The wire format seen from outside: known answers that an independent writer made from
//! docs/format.md (`tests/vectors`), opened or refused by the library.

use std::path::{Path, PathBuf};

use kms_proxy::envelope::{self, Envelope, Header, Version};
use kms_proxy::root::{Context, Error, RootKey};
use kms_proxy::secret::KeyBytes;
use kms_proxy::{ChainName, KekId, KeyChain, Suite, export};
use serde::{Deserialize, Serialize};
use serde_json::json;

mod reader;
mod rules;

/// One known answer. Bytes are lower-case hex.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    comment: String,
    suite: String,
    chain: String,
    kek: String,
    aad: String,
    /// Empty where `valid` is false.
    plaintext: String,
    envelope: String,
    /// The id under which the reader has the KEK, if it is not the KEK's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    kek_id: Option<String>,
    valid: bool,
    /// The first rule of docs/format.md that it breaks, and the reason of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Vector {
    /// A chain of this name with this KEK, if they are ones.
    async fn chain(&self) -> Option<KeyChain> {
        let kek = unhex(&self.kek);
        let own = KekId::of_key(&kek).to_string();
        let export = json!({
            "format": 1,
            "chain": self.chain,
            "primary": null,
            "uses": 0,
            "keks": [{
                "id": self.kek_id.as_ref().unwrap_or(&own),
                "suite": Suite::from_key_len(kek.len())?.as_str(),
                "wrap": base64_simd::STANDARD.encode_to_string(&kek),
            }],
            "refused": [],
        });
        export::read(&Plain, &mut export.to_string().as_bytes()).await.ok()
    }

    /// Decrypts it with its chain.
    async fn open(&self) -> Option<Vec<u8>> {
        let chain = self.chain().await?;
        let opened = chain.decrypt(&unhex(&self.envelope), &unhex(&self.aad)).ok()?;
        Some(opened.as_slice().to_vec())
    }
}

/// A root that leaves KEKs as they are: by way of an export it makes chains of known keys, and
/// reveals the keys of others.
struct Plain;

#[async_trait::async_trait]
impl RootKey for Plain {
    async fn wrap(&self, _: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        Ok(kek.expose().to_vec())
    }

    async fn unwrap(&self, _: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        KeyBytes::from_slice(wrapped).ok_or_else(|| Error::Wrong("not a KEK".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "plain"
    }
}

#[tokio::test]
async fn every_vector_opens_or_is_refused_as_it_says() {
    let vectors = vectors();
    let valid = vectors.iter().filter(|vector| vector.valid).count();
    assert!(vectors.len() >= 40 && valid >= 20 && valid * 2 <= vectors.len(), "{valid} valid");
    for vector in vectors {
        let expected = vector.valid.then(|| unhex(&vector.plaintext));
        assert_eq!(vector.open().await, expected, "{}", vector.comment);
        assert!(vector.valid || vector.plaintext.is_empty(), "{}", vector.comment);
    }
}

/// At least 40 vectors are of streams, half of them negative.
#[tokio::test]
async fn streams_have_their_own_vectors() {
    let paths = files(&root().join("tests/vectors")).into_iter();
    let names = ["stream-opens.json", "stream-tampered.json", "stream-wrong.json"];
    let vectors: Vec<_> = paths
        .filter(|path| names.iter().any(|name| path.ends_with(name)))
        .flat_map(|path| read(&path))
        .collect();
    let valid = vectors.iter().filter(|vector| vector.valid).count();
    assert!(valid >= 20 && vectors.len() >= 2 * valid, "{valid} of {}", vectors.len());
    for vector in vectors.into_iter().filter(|vector| vector.valid) {
        let version = Envelope::parse(&unhex(&vector.envelope)).unwrap().header.version.code();
        assert!([3, 4].contains(&version), "{}", vector.comment);
    }
}

#[test]
fn valid_vectors_name_the_id_and_the_suite_of_their_kek() {
    for vector in vectors().into_iter().filter(|vector| vector.valid) {
        let (bytes, kek) = (unhex(&vector.envelope), unhex(&vector.kek));
        let header = Envelope::parse(&bytes).unwrap().header;
        assert_eq!(header.kek_id, KekId::of_key(&kek), "{}", vector.comment);
        assert_eq!(header.suite.as_str(), vector.suite, "{}", vector.comment);
        assert_eq!(header.suite.key_len(), kek.len(), "{}", vector.comment);
        let text = envelope::to_text(&bytes);
        assert_eq!(envelope::from_text(&text).unwrap(), bytes, "{}", vector.comment);
    }
}

#[test]
fn the_example_in_the_document_is_what_the_library_makes() {
    let document = std::fs::read_to_string(root().join("docs/format.md")).unwrap();
    let shown = hex_of_code_blocks(&document);
    let vectors = vectors();
    for comment in [
        "the example of docs/format.md",
        "the version 2 example of docs/format.md",
        "the version 3 example of docs/format.md",
    ] {
        let vector = vectors.iter().find(|vector| vector.comment == comment).unwrap();
        assert!(shown.contains(&vector.envelope), "{comment}");
        let chain = ChainName::new(&vector.chain).unwrap();
        let bytes = unhex(&vector.envelope);
        let (header, _) = Header::split_from(&bytes).unwrap();
        assert!(document.contains(&header.kek_id.to_string()), "{comment}: kek_id");
        if header.version == Version::Stored {
            assert!(document.contains(&envelope::to_text(&bytes)), "{comment}: text");
            assert!(shown.contains(&hex(&header.dek_aad(&chain))), "{comment}: AAD of the wrap");
            let aad = data_aad(header.suite, &chain, &unhex(&vector.aad));
            assert!(shown.contains(&hex(&aad)), "{comment}: AAD of the payload");
        }
        if header.version == Version::StoredStream {
            let aad = unhex(&vector.aad);
            let context = envelope::stream_context(header.suite, &chain, &aad).unwrap();
            assert!(shown.contains(&hex(&context)), "{comment}: context");
        }
    }
}

fn data_aad(suite: Suite, chain: &ChainName, aad: &[u8]) -> Vec<u8> {
    envelope::data_aad(suite, chain, aad).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn vectors() -> Vec<Vector> {
    files(&root().join("tests/vectors")).iter().flat_map(|path| read(path)).collect()
}

fn read(path: &Path) -> Vec<Vector> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The JSON files of a directory, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension() == Some("json".as_ref())).collect();
    files.sort();
    files
}

/// The hex digits that stand at the start of the lines of the document's code blocks, in one row.
fn hex_of_code_blocks(document: &str) -> String {
    let is_hex = |word: &&str| word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let blocks = document.split("```").skip(1).step_by(2);
    blocks.flat_map(str::lines).flat_map(|line| line.split(' ').take_while(is_hex)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
