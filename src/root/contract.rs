//! The contract of roots: one battery of tests, to be run on each provider.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::id::{ChainName, KekId, Suite};
use crate::secret::KeyBytes;

use super::{Context, Error, RootKey};

/// The largest number of positions of a wrap that are damaged: a provider may take milliseconds for
/// a call.
const PLACES: usize = 50;

/// The whole battery. `another` is a root of the same kind with another key.
pub(crate) async fn all(root: impl RootKey, another: impl RootKey) {
    let root: Arc<dyn RootKey> = Arc::new(root);
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        wraps_open_where_they_were_made_alone(&*root, &another, suite).await;
    }
    nonsense_does_not_open(&*root).await;
    many_calls_at_once(root).await;
}

async fn wraps_open_where_they_were_made_alone(
    root: &dyn RootKey,
    another: &dyn RootKey,
    suite: Suite,
) {
    let orders = chain("orders");
    let kek = KeyBytes::random(suite).unwrap();
    let here = context(&orders, &kek);
    let wrapped = root.wrap(here, &kek).await.unwrap();
    assert!(wrapped.len() <= 1024, "{}", wrapped.len());
    assert!(!wrapped.windows(16).any(|bytes| kek.expose().starts_with(bytes)));
    assert!(root.unwrap(here, &wrapped).await.unwrap() == kek);
    assert!(root.is_current(&wrapped));
    assert_ne!(root.wrap(here, &kek).await.unwrap(), wrapped, "a nonce is random");

    let other_kek = KeyBytes::random(suite).unwrap();
    let other_suite = [Suite::Aes256Gcm, Suite::Aes128Gcm][usize::from(suite.code() - 1)];
    for elsewhere in [
        Context { chain: &chain("order"), ..here },
        Context { kek_id: context(&orders, &other_kek).kek_id, ..here },
        Context { suite: other_suite, ..here },
    ] {
        wrong(root, elsewhere, &wrapped).await;
    }
    wrong(another, here, &wrapped).await;
    for at in (0..wrapped.len()).step_by(wrapped.len().div_ceil(PLACES)) {
        let mut bad = wrapped.clone();
        bad[at] ^= 0x10;
        wrong(root, here, &bad).await;
        wrong(root, here, &wrapped[..at]).await;
    }
    wrong(root, here, &[&wrapped[..], &[0]].concat()).await;
}

async fn nonsense_does_not_open(root: &dyn RootKey) {
    let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
    let here = context(&chain, &kek);
    for nonsense in [&b""[..], b"\0", &[0xff; 61], &[1; 200], "v\u{e9}".as_bytes()] {
        wrong(root, here, nonsense).await;
    }
    // It still works afterwards.
    let wrapped = root.wrap(here, &kek).await.unwrap();
    assert!(root.unwrap(here, &wrapped).await.unwrap() == kek);
}

async fn many_calls_at_once(root: Arc<dyn RootKey>) {
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let root = Arc::clone(&root);
        calls.spawn(async move {
            let (chain, kek) = (chain("orders"), KeyBytes::random(Suite::Aes128Gcm).unwrap());
            let wrapped = root.wrap(context(&chain, &kek), &kek).await.unwrap();
            assert!(root.unwrap(context(&chain, &kek), &wrapped).await.unwrap() == kek);
        });
    }
    calls.join_all().await;
}

pub(in crate::root) fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

pub(in crate::root) fn unhex(text: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text).unwrap()
}

/// A KEK as a server may repeat it: in hex, byte by byte.
#[cfg(any(
    feature = "aws-kms",
    feature = "azure-key-vault",
    feature = "gcp-kms",
    feature = "vault-transit"
))]
pub(in crate::root) fn repeated_in_pieces(kek: &KeyBytes) -> String {
    kek.expose().iter().map(|byte| format!("{byte:02X}:")).collect()
}

pub(in crate::root) fn context<'a>(chain: &'a ChainName, kek: &KeyBytes) -> Context<'a> {
    Context { chain, kek_id: KekId::of_key(kek.expose()), suite: kek.suite() }
}

/// Unwraps, which must fail because the wrap is wrong, and returns the detail of the error.
pub(in crate::root) async fn wrong(
    root: &dyn RootKey,
    here: Context<'_>,
    wrapped: &[u8],
) -> String {
    match root.unwrap(here, wrapped).await {
        Err(Error::Wrong(detail)) => detail,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it must not open"),
    }
}
