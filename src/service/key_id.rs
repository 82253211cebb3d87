//! What the keys of a chain are called where something outside must be told when the roots change:
//! the key id of Kubernetes. It is kept in the chain's head, so every replica says the same, and it
//! changes when an operator changes the roots or asks for a new one, and with nothing else.

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

/// How often a change is tried when others change the same record.
const TRIES: usize = 4;
/// The longest name of a provider's key that is kept, in bytes.
const MAX_KEY: usize = 512;

/// What every name of a key of `chain` starts with.
#[must_use]
pub fn prefix(chain: &ChainName) -> String {
    format!("kms-proxy/{chain}/")
}

/// What the keys of `chain` are called: at most 800 bytes.
pub(super) fn key_id(chain: &ChainName, root: &NamedRoot) -> String {
    let NamedRoot { generation, mark, kind, name, key, .. } = root;
    let prefix = prefix(chain);
    let id = format!("{prefix}{generation}-{mark:016x}/{kind}/{name}");
    if key.is_empty() { id } else { format!("{id}/{key}") }
}

/// Names the keys of a chain where that is wanted and was not done yet, and follows the name that is
/// stored.
pub(super) async fn keep(core: &Core, chain: &Chain, ledger: &mut Ledger) -> Result<(), Error> {
    if chain.wants_name.load(Ordering::Relaxed)
        && ledger.head.record.named_root.is_none()
        && let Some(root) = named_after(core, ledger.primary.as_ref().map(|it| &it.kek.record))?
    {
        let named = ledger.name_root(root).await;
        if !named.map_err(|error| core.store_error(&chain.name, error))? {
            // Somebody else was first; what he wrote is read in the next round.
            return Ok(());
        }
    }
    let (known, stored) = (chain.named_root.load(), &ledger.head.record.named_root);
    let Some(stored) = stored else { return Ok(()) };
    // Never back, and not before the KEK that was made with the new roots encrypts here.
    let primary = ledger.primary.as_ref().map(|held| held.id);
    let is_news = known.as_ref().is_none_or(|known| known.generation < stored.generation);
    if is_news && known.is_some() && chain.snapshot().primary_id() != primary {
        // Nobody may ask for it here, ever: kube-apiserver encrypts when the name changes.
        chain.need_kek.notify_one();
    } else if is_news {
        chain.named_root.store(Some(Arc::new(stored.clone())));
    }
    Ok(())
}

/// Notes that the set of roots changed. Keys that have a name get another one, if `changed`, or if
/// other roots stand behind them than when they were named.
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
    Err(Error::new(Kind::Conflict, "others changed the chain at the same time; try again"))
}

pub(super) fn no_name() -> Error {
    Error::new(Kind::Conflict, "this chain has no key id: no Kubernetes plugin has served it yet")
}

/// Whether nothing is kept of a chain: then a name must come out the same in every process.
fn is_inline(core: &Core) -> bool {
    core.store.kind() == "inline"
}

/// A number that stands for these roots, in their order: what each process says that has them.
fn mark_of(roots: &[[String; 3]]) -> u64 {
    let mut digest = Sha256::new();
    for part in roots.iter().flatten() {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(digest.finalize());
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The root that keys are called after whose primary is `kek`. Without one that is not known yet, but
/// where nothing is stored: there a KEK is made at its first use.
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
    fn a_mark_stands_for_the_roots_in_their_order() {
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
