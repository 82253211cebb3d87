//! What the keys of a chain are called where something outside must be told when the roots change:
//! the key id of Kubernetes. It is kept in the chain's head, so every replica says the same, and it
//! changes when an operator changes the roots or asks for a new one, and with nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use crate::id::ChainName;
use crate::metrics::Operation;
use crate::store::Store as _;
use crate::store::record::{Kek, NamedRoot};

use super::answer::Rotated;
use super::chain::Chain;
use super::core::{self, Core};
use super::error::{Error, Kind};
use super::ledger::Ledger;
use super::{KeyService, internal, reserver, upkeep};

/// How often a change is tried when others change the same record.
const TRIES: usize = 4;
/// The longest name of a provider's key that is kept, in bytes.
const MAX_KEY: usize = 512;

/// How the keys of a chain stand, from memory alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// What they are called; `None` until that is known.
    pub key_id: Option<String>,
    /// Why no root opens the primary KEK now, if that is known.
    pub root_outage: Option<String>,
    /// What else an operator should look at.
    pub trouble: Option<String>,
}

/// What every name of a key of `chain` starts with.
#[must_use]
pub fn prefix(chain: &ChainName) -> String {
    format!("kms-proxy/{chain}/")
}

/// What the keys of `chain` are called: at most 800 bytes.
fn key_id(chain: &ChainName, root: &NamedRoot) -> String {
    let NamedRoot { generation, mark, kind, name, key, .. } = root;
    let prefix = prefix(chain);
    let id = format!("{prefix}{generation}-{mark:016x}/{kind}/{name}");
    if key.is_empty() { id } else { format!("{id}/{key}") }
}

impl KeyService {
    /// From now on the keys of `chain` have a name, and the chain is known, in the store and for good,
    /// as one that others depend on: its KEKs are not destroyed without force.
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::StoreUnavailable`]. Where the chain has no KEK yet, the name
    /// comes with it.
    pub async fn name_keys(&self, chain: &str) -> Result<(), Error> {
        let chain = self.find(Operation::Manage, Some(chain)).await?;
        chain.wants_name.store(true, Ordering::Relaxed);
        // What fails here is told, and tried again by the chain's task.
        reserver::drive(&self.core, &chain).await;
        Ok(())
    }

    /// How the keys of `chain` stand. No store and no root is asked.
    #[must_use]
    pub fn key_state(&self, chain: &ChainName) -> KeyState {
        let Some(chain) = self.chains.load().get(chain).cloned() else {
            let trouble = Some("the chain is not there yet".to_owned());
            return KeyState { key_id: None, root_outage: None, trouble };
        };
        let keyring = &self.core.keyring;
        let primary = chain.snapshot().primary_id();
        let record = primary.and_then(|id| keyring.remembered(&chain.name, id));
        let root_outage = match &record {
            Some(record) => keyring.roots.outage(record),
            None => {
                let failure = chain.root_failure.load();
                let failure = failure.as_ref().filter(|it| it.kind() == Kind::RootUnavailable);
                failure.map(|error| error.detail().to_owned())
            }
        };
        let store = self.core.store.check();
        let away = (!self.core.store.is_up())
            .then(|| format!("store: {}", store.detail.unwrap_or_default()));
        let trouble = chain.trouble().map(|error| error.detail().to_owned()).or(away);
        let name = chain.named_root.load();
        KeyState {
            key_id: name.as_ref().map(|root| key_id(&chain.name, root)),
            root_outage,
            trouble,
        }
    }

    /// Rotates a chain whose keys have a name, and then gives them a new one: those who follow it
    /// encrypt again, under the new KEK. The new name comes with the result.
    ///
    /// # Errors
    /// Those of [`rotate`](Self::rotate). [`Kind::Conflict`] for a chain whose keys have no name,
    /// and where nothing is stored: there the name stands for the configured roots.
    pub async fn rotate_key_id(&self, chain: Option<&str>) -> Result<(Rotated, String), Error> {
        let chain = self.find(Operation::Rotate, chain).await?;
        if let Err(error) = self.check_named(&chain).await {
            self.core.metrics.failed(Operation::Rotate, chain.name.as_str(), error.kind().code());
            return Err(error);
        }
        let rotated = self.rotate(Some(chain.name.as_str())).await?;
        let core = Arc::clone(&self.core);
        let named = core::run_to_end(async move {
            note_change(&core, &chain, true).await?;
            let head = &chain.reserver.lock().await.ledger.head;
            Ok(head.record.named_root.as_ref().map(|root| key_id(&chain.name, root)))
        });
        Ok((rotated, named.await?.ok_or_else(no_name)?))
    }

    async fn check_named(&self, chain: &Chain) -> Result<(), Error> {
        self.core.needs_store("a key id can't be renewed by hand")?;
        let ledger = &mut chain.reserver.lock().await.ledger;
        ledger.refresh().await.map_err(|error| self.core.store_error(&chain.name, error))?;
        ledger.head.record.named_root.is_some().then_some(()).ok_or_else(no_name)
    }

    /// Whether the store is down, or has not answered yet what the tasks of `chain` asked.
    #[must_use]
    pub fn awaits_store(&self, chain: &ChainName) -> bool {
        // The lock is held for calls of the store alone.
        let is_asking = |chain: &Arc<Chain>| chain.reserver.try_lock().is_err();
        !self.core.store.is_up() || self.chains.load().get(chain).is_some_and(is_asking)
    }

    /// Asks each root of the primary KEK whether it opens it: one call of each. The result is in
    /// [`key_state`](Self::key_state), readiness and the metrics from then on.
    pub async fn check_primary(&self, chain: &ChainName) {
        let chain = self.chains.load().get(chain).cloned();
        let primary = chain.as_ref().and_then(|chain| chain.snapshot().primary_id());
        if let (Some(chain), Some(id)) = (chain, primary) {
            upkeep::ask(&self.core, &chain, id).await;
        }
    }
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
        let ledger = &mut chain.reserver.lock().await.ledger;
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

fn no_name() -> Error {
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
        crate::random::fill(&mut mark).map_err(|error| internal(&error))?;
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
