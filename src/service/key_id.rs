//! The key id of a chain, by which Kubernetes detects that the roots changed. It is derived from a
//! [`NamedRoot`] in the chain's head, so it is the same on every replica. It changes only when an
//! operator changes the roots or requests a new one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use crate::id::ChainName;
use crate::store::Store as _;
use crate::store::record::{Kek, NamedRoot};

use super::chain::Chain;
use super::core::Core;
use super::error::{Error, Kind};
use super::ledger::Ledger;

/// How often a change is tried when other processes change the same record.
const TRIES: usize = 4;
/// The maximum length of the provider's name of a key, in bytes; a longer one is cut.
const MAX_KEY: usize = 512;

/// The start of every key id of `chain`.
#[must_use]
pub fn prefix(chain: &ChainName) -> String {
    format!("kms-proxy/{chain}/")
}

/// The key id of `chain`: at most 800 bytes.
pub(super) fn key_id(chain: &ChainName, root: &NamedRoot) -> String {
    let NamedRoot { generation, mark, kind, name, key, .. } = root;
    let prefix = prefix(chain);
    let id = format!("{prefix}{generation}-{mark:016x}/{kind}/{name}");
    if key.is_empty() { id } else { format!("{id}/{key}") }
}

/// Stores a key id for a chain that needs one and has none, and follows the stored one.
pub(super) async fn keep(core: &Core, chain: &Chain, ledger: &mut Ledger) -> Result<(), Error> {
    if chain.wants_name.load(Ordering::Relaxed)
        && ledger.head.record.named_root.is_none()
        && let Some(root) = named_after(core, ledger.primary.as_ref().map(|it| &it.kek.record))?
    {
        let named = ledger.name_root(root).await;
        if !named.map_err(|error| core.store_error(&chain.name, error))? {
            // Another process was first. Its record is read in the next round.
            return Ok(());
        }
    }
    let (known, stored) = (chain.named_root.load(), &ledger.head.record.named_root);
    let Some(stored) = stored else { return Ok(()) };
    // Never to an older one, and not before the KEK that the new roots wrapped encrypts here.
    let primary = ledger.primary.as_ref().map(|held| held.id);
    let is_news = known.as_ref().is_none_or(|known| known.generation < stored.generation);
    if is_news && known.is_some() && chain.snapshot().primary_id() != primary {
        // No request may ever need that KEK here, since kube-apiserver encrypts when the id changes.
        chain.need_kek.notify_one();
    } else if is_news {
        chain.named_root.store(Some(Arc::new(stored.clone())));
    }
    Ok(())
}

/// Notes that the set of roots changed. If the chain has a key id, it gets another one, provided that
/// `changed`, or that other roots wrap the primary than when the key id was made.
pub(super) async fn note_change(core: &Core, chain: &Chain, changed: bool) -> Result<(), Error> {
    if is_inline(core) {
        return Ok(());
    }
    let failed = |error| core.store_error(&chain.name, error);
    for _ in 0..TRIES {
        let ledger = &mut chain.reservations.lock().await.ledger;
        ledger.refresh().await.map_err(failed)?;
        let now = match (&ledger.head.record.named_root, &ledger.primary) {
            (Some(before), Some(primary)) => {
                let now = named_after(core, Some(&primary.kek.record))?;
                now.filter(|now| changed || !is_same(now, before))
            }
            _ => None,
        };
        if ledger.roots_changed(now).await.map_err(failed)? {
            chain.need_uses.notify_one();
            return Ok(());
        }
    }
    Err(Error::new(Kind::Conflict, "the chain was modified concurrently; try again"))
}

pub(super) fn no_name() -> Error {
    Error::new(Kind::Conflict, "this chain has no key id: no Kubernetes plugin has served it yet")
}

/// Whether chains are not stored. Then every process must derive the same key id.
fn is_inline(core: &Core) -> bool {
    core.store.kind() == "inline"
}

/// A number derived from these roots and their order, the same in every process.
fn mark_of(roots: &[[String; 3]]) -> u64 {
    let mut digest = Sha256::new();
    for part in roots.iter().flatten() {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(digest.finalize());
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The root that the key id names if `kek` is primary. If there is no primary yet, it is unknown,
/// except if nothing is stored: then the first KEK is created at its first use.
fn named_after(core: &Core, kek: Option<&Kek>) -> Result<Option<NamedRoot>, Error> {
    let all = core.keyring.roots.all();
    let (preferred, mark) = if is_inline(core) {
        let mark = mark_of(&all);
        (all.into_iter().next(), mark)
    } else {
        let mut mark = [0; 8];
        crate::random::fill(&mut mark).map_err(|error| Error::internal(&error))?;
        (kek.and_then(|kek| core.keyring.roots.preferred(kek)), u64::from_be_bytes(mark))
    };
    let Some([kind, name, mut key]) = preferred else { return Ok(None) };
    key.truncate(key.floor_char_boundary(MAX_KEY));
    let wraps = kek.iter().flat_map(|kek| &kek.wraps);
    let mut roots: Vec<_> = wraps.map(|wrap| wrap.root.clone()).collect();
    roots.sort();
    Ok(Some(NamedRoot { generation: 0, mark, kind, name, key, roots }))
}

fn is_same(a: &NamedRoot, b: &NamedRoot) -> bool {
    (&a.kind, &a.name, &a.roots) == (&b.kind, &b.name, &b.roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_depends_on_the_roots_and_their_order() {
        let root = |kind: &str, name: &str| [kind, name, ""].map(str::to_owned);
        let (a, b) = (root("aws-kms", "main"), root("local", "old"));
        let marks = [
            mark_of(&[a.clone(), b.clone()]),
            mark_of(&[b.clone(), a.clone()]),
            mark_of(std::slice::from_ref(&a)),
            mark_of(&[root("aws-km", "smain")]),
        ];
        for (index, mark) in marks.iter().enumerate() {
            assert!(!marks[..index].contains(mark), "{index}");
        }
        assert_eq!(mark_of(&[a.clone(), b.clone()]), marks[0]);
    }
}
