//! What an export restores, how many uses it has, and which inputs are refused.

use super::*;
use crate::clock::Monotonic;
use crate::keychain::{DecryptError, EncryptError};
use crate::root::local;
use crate::secret::KeyBytes;

const NOW: Monotonic = Monotonic::from_nanos(0);

fn root() -> local::Root {
    local::Root::generate().unwrap()
}

/// A chain with two KEKs and a refused third one, and an envelope under the first.
fn chain() -> (KeyChain, Vec<u8>) {
    let name = ChainName::new("orders").unwrap();
    let mut chain = KeyChain::generate(name, Suite::Aes128Gcm).unwrap();
    let envelope = chain.encrypt(b"hello", b"row 7").unwrap();
    let second = chain.rotate().unwrap();
    chain.rotate().unwrap();
    chain.refuse(second, Some(Refusal::Disabled));
    (chain, envelope)
}

async fn written(chain: &KeyChain, root: &dyn RootKey) -> String {
    let mut out = Vec::new();
    write_with_half_the_uses(chain, root, &mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

async fn error(root: &dyn RootKey, text: &str) -> ReadError {
    read(root, &mut text.as_bytes()).await.expect_err("it must not be read")
}

fn left(chain: &KeyChain) -> u64 {
    chain.budget().unwrap().left(NOW)
}

#[tokio::test]
async fn an_export_restores_the_whole_chain() {
    let (root, (chain, envelope)) = (root(), chain());
    let copy = read(&root, &mut written(&chain, &root).await.as_bytes()).await.unwrap();
    assert_eq!((copy.name(), copy.primary_id()), (chain.name(), chain.primary_id()));
    assert_eq!(copy.decrypt(&envelope, b"row 7").unwrap().as_slice(), b"hello");
    let sealed = copy.encrypt(b"back", b"").unwrap();
    assert_eq!(chain.decrypt(&sealed, b"").unwrap().as_slice(), b"back");
    for (id, refusal) in chain.refused() {
        assert_eq!(copy.allows(id), Err(DecryptError::Refused(id, refusal)));
    }
    assert_eq!((copy.keks().count(), copy.refused().count()), (2, 1));
}

#[tokio::test]
async fn a_chain_without_a_primary_is_exported() {
    let root = root();
    let empty = KeyChain::empty(ChainName::new("orders").unwrap());
    let copy = read(&root, &mut written(&empty, &root).await.as_bytes()).await.unwrap();
    assert_eq!((copy.primary_id(), copy.keks().count()), (None, 0));
}

#[tokio::test]
async fn a_chain_and_its_exports_together_never_exceed_the_limit() {
    let (root, (chain, _)) = (root(), chain());
    let mut copies = Vec::new();
    for _ in 0..30 {
        copies.push(read(&root, &mut written(&chain, &root).await.as_bytes()).await.unwrap());
    }
    let of_copy = read(&root, &mut written(&copies[0], &root).await.as_bytes()).await.unwrap();
    assert_eq!((left(&copies[0]), left(&of_copy)), (UNSHARED_USES / 4, UNSHARED_USES / 4));
    let all: u64 = copies.iter().chain([&chain, &of_copy]).map(left).sum();
    assert_eq!(all, UNSHARED_USES);
    assert_eq!(copies[29].encrypt(b"", b""), Err(EncryptError::Exhausted), "nothing was left");
}

/// The uses of a service are reserved for 60 s and must not outlive that in a file.
#[tokio::test]
async fn uses_that_become_void_are_not_exported() {
    let (root, (mut chain, _)) = (root(), chain());
    let kek = Arc::clone(chain.kek(chain.primary_id().unwrap()).unwrap());
    let budget = Budget::empty();
    budget.add(100, Monotonic::from_nanos(60), NOW);
    chain.set_primary(kek, Arc::new(budget));
    let copy = read(&root, &mut written(&chain, &root).await.as_bytes()).await.unwrap();
    assert_eq!((left(&copy), left(&chain)), (0, 100));
}

#[tokio::test]
async fn uses_are_clamped() {
    let (root, (chain, _)) = (root(), chain());
    let text = written(&chain, &root).await.replace("\"uses\": 2097152", "\"uses\": 9999999999");
    let copy = read(&root, &mut text.as_bytes()).await.unwrap();
    assert_eq!(left(&copy), UNSHARED_USES);
}

#[tokio::test]
async fn every_truncation_is_refused() {
    let (root, (chain, _)) = (root(), chain());
    let text = written(&chain, &root).await;
    for len in 0..text.trim_end().len() {
        let error = error(&root, &text[..len]).await;
        assert!(matches!(error, ReadError::Damaged(_)), "{len}: {error}");
    }
}

#[tokio::test]
async fn every_modified_character_of_a_wrap_is_refused() {
    let (root, (chain, _)) = (root(), chain());
    let text = written(&chain, &root).await;
    let start = text.find("\"wrap\": \"").unwrap() + 9;
    let len = text[start..].find('"').unwrap();
    for at in start..start + len {
        let mut changed = text.clone();
        let other = if &text[at..=at] == "A" { "B" } else { "A" };
        changed.replace_range(at..=at, other);
        let error = error(&root, &changed).await;
        assert!(matches!(error, ReadError::Root(..) | ReadError::Damaged(_)), "{at}: {error}");
    }
}

#[tokio::test]
async fn another_root_or_chain_name_is_refused() {
    let (ours, (chain, _)) = (root(), chain());
    let text = written(&chain, &ours).await;
    assert!(matches!(error(&root(), &text).await, ReadError::Root(_, root::Error::Wrong(_))));
    let renamed = text.replace("\"orders\"", "\"others\"");
    assert!(matches!(error(&ours, &renamed).await, ReadError::Root(_, root::Error::Wrong(_))));
    let invalid = text.replace("\"orders\"", "\"Orders\"");
    assert!(matches!(error(&ours, &invalid).await, ReadError::Damaged(_)));
}

#[tokio::test]
async fn inconsistent_exports_are_refused() {
    let (root, (chain, _)) = (root(), chain());
    let text = written(&chain, &root).await;
    let primary = chain.primary_id().unwrap();
    let unknown = KekId::from_bytes([9; 16]);
    let foreign = text.replacen(&primary.to_string(), &unknown.to_string(), 1);
    assert!(matches!(error(&root, &foreign).await, ReadError::NoPrimary(id) if id == unknown));
    let swapped = text.replace("aes-128-gcm", "aes-256-gcm");
    assert!(matches!(error(&root, &swapped).await, ReadError::Root(..)));
    let keks = text.find("\"keks\": [").unwrap() + 9;
    let end = keks + text[keks..].find('}').unwrap() + 1;
    let twice = [&text[..end], ",", &text[keks..end], &text[end..]].concat();
    assert!(matches!(error(&root, &twice).await, ReadError::Twice(_)));
    for (from, to) in [
        ("\"uses\"", "\"used\""),
        ("\"format\": 1,", "\"format\": 1, \"more\": 0,"),
        ("\"refused\"", "\"keks\""),
        ("\"disabled\"", "\"asleep\""),
    ] {
        let changed = text.replace(from, to);
        assert!(matches!(error(&root, &changed).await, ReadError::Damaged(_)), "{to}");
    }
    let without = text.replace(&format!("  \"primary\": \"{primary}\",\n"), "");
    assert!(matches!(error(&root, &without).await, ReadError::Damaged(_)));
}

#[tokio::test]
async fn a_newer_format_is_named() {
    let text = "{\"format\": 2, \"anything\": [1, 2]}";
    assert!(matches!(error(&root(), text).await, ReadError::Format(2)));
}

#[tokio::test]
async fn endless_input_is_refused() {
    let mut endless = io::repeat(b' ');
    assert!(matches!(read(&root(), &mut endless).await, Err(ReadError::TooLong)));
}

/// A root that unwraps everything to the same key.
struct Careless;

#[async_trait::async_trait]
impl RootKey for Careless {
    async fn wrap(&self, _: Context<'_>, _: &KeyBytes) -> Result<Vec<u8>, root::Error> {
        Err(root::Error::Away("always".to_owned()))
    }

    async fn unwrap(&self, _: Context<'_>, _: &[u8]) -> Result<KeyBytes, root::Error> {
        Ok(KeyBytes::from_slice(&[7; 16]).unwrap())
    }

    fn kind(&self) -> &'static str {
        "careless"
    }
}

#[tokio::test]
async fn the_id_of_each_unwrapped_kek_is_checked() {
    let (chain, _) = chain();
    let text = written(&chain, &root()).await;
    assert!(matches!(error(&Careless, &text).await, ReadError::OtherKey(_)));
}

#[tokio::test]
async fn a_failed_wrap_takes_no_use_and_writes_nothing() {
    let (chain, _) = chain();
    let mut out = Vec::new();
    let result = write_with_half_the_uses(&chain, &Careless, &mut out).await;
    assert!(matches!(result, Err(WriteError::Root(_, root::Error::Away(_)))));
    assert_eq!((left(&chain), out.len()), (UNSHARED_USES, 0));
}

#[tokio::test]
async fn a_failed_output_is_an_error_and_loses_its_uses() {
    let (chain, _) = chain();
    let mut full: &mut [u8] = &mut [0; 10];
    assert!(matches!(
        write_with_half_the_uses(&chain, &root(), &mut full).await,
        Err(WriteError::Output(_))
    ));
    assert_eq!(left(&chain), UNSHARED_USES / 2);
}
