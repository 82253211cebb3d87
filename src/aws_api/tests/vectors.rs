//! Known blobs and contexts, which `tests/vectors/make.py` made from docs/format.md alone; the
//! reader in Python reads them too.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::blob::Blob;
use super::context::Context;
use crate::id::{KekId, Suite};
use crate::root::{Error, RootKey};
use crate::secret::KeyBytes;
use crate::{ChainName, KeyChain, export};

/// Bytes are lower-case hex.
#[derive(Deserialize)]
struct Vector {
    comment: String,
    context: BTreeMap<String, String>,
    kek: String,
    aad: String,
    plaintext: String,
    blob: String,
    valid: bool,
}

/// A root that leaves KEKs as they are, to make chains of known keys.
struct Plain;

#[async_trait::async_trait]
impl RootKey for Plain {
    async fn wrap(&self, _: crate::root::Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        Ok(kek.expose().to_vec())
    }

    async fn unwrap(&self, _: crate::root::Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        KeyBytes::from_slice(wrapped).ok_or_else(|| Error::Wrong("not a KEK".to_owned()))
    }

    fn kind(&self) -> &'static str {
        "plain"
    }
}

fn unhex(text: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text).unwrap()
}

async fn chain(name: &ChainName, kek: &[u8]) -> KeyChain {
    let export = serde_json::json!({
        "format": 1,
        "chain": name.as_str(),
        "primary": null,
        "uses": 0,
        "keks": [{
            "id": KekId::of_key(kek).to_string(),
            "suite": Suite::from_key_len(kek.len()).unwrap().as_str(),
            "wrap": super::base64(kek),
        }],
        "refused": [],
    });
    export::read(&Plain, &mut export.to_string().as_bytes()).await.unwrap()
}

/// The plaintext of a blob with an encryption context.
async fn open(blob: &[u8], context: &Context<'_>, kek: &[u8]) -> Option<Vec<u8>> {
    let Blob::Own { chain: name, envelope } = Blob::parse(blob) else { return None };
    let opened = chain(&name, kek).await.decrypt(envelope, &context.to_aad().ok()?).ok()?;
    Some(opened.as_slice().to_vec())
}

#[tokio::test]
async fn every_vector_of_a_blob_opens_or_is_refused_as_it_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/aws/blobs.json");
    let vectors: Vec<Vector> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let valid = vectors.iter().filter(|vector| vector.valid).count();
    assert_eq!((valid, vectors.len() - valid), (36, 23));
    for vector in vectors {
        let json = serde_json::to_string(&vector.context).unwrap();
        let context: Context<'_> = serde_json::from_str(&json).unwrap();
        let opened = open(&unhex(&vector.blob), &context, &unhex(&vector.kek)).await;
        let expected = vector.valid.then(|| unhex(&vector.plaintext));
        assert_eq!(opened, expected, "{}", vector.comment);
        if vector.valid {
            assert_eq!(context.to_aad().unwrap(), unhex(&vector.aad), "{}", vector.comment);
        }
    }
}
