//! Compares the roots of all processes by name. The first wrap that a root of some name makes in a
//! shared store is kept there as a [`RootCheck`]; before a root wraps, its process has it open the
//! wrap that another process left. So of two processes that have different keys under one name, one
//! makes KEKs, and the other refuses and reports that its root differs ([`root_users`]).
//!
//! [`continuity`](super::continuity) checks whether a root unwraps the KEKs of a chain. A store
//! that only one process uses needs no comparison.
//!
//! [`root_users`]: super::root_users

use crate::id::{ChainName, KekId, Suite};
use crate::root;
use crate::store::record::{self, Record as _, RootCheck, Wrap};
use crate::store::{self, Committed, Compare, Store as _, Txn};

use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::service::keyring::{Allowed, RootState, Trust};
use crate::store::records;

/// How often a check is stored or compared when other processes store one at the same time.
const TRIES: usize = 4;

/// The result of comparing a root with the one that other processes have under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum Comparison {
    /// No process has wrapped by a root of this name.
    New,
    /// It unwraps what another process wrapped by the root of this name.
    Same,
    /// It does not unwrap it: it has another key.
    Other,
    /// It does not answer, or denies access.
    Silent,
}

/// Compares a root with the check that the store has under its name.
///
/// # Errors
/// When the store does not answer, or the check is damaged.
pub(in crate::service) async fn compare(
    core: &Core,
    state: &RootState,
) -> Result<Comparison, store::Error> {
    if !core.shared || state.is_agreed(core.clock.now(), core.config.cache.kek_max_age) {
        return Ok(Comparison::New);
    }
    let key = record::root_check_key(&state.named.name);
    match records::read::<RootCheck>(&*core.store, &key).await? {
        Some(check) => Ok(open(core, state, &check.record).await),
        None => Ok(Comparison::New),
    }
}

async fn open(core: &Core, state: &RootState, check: &RootCheck) -> Comparison {
    let RootCheck { owner, chain, kek_id, suite, wrap } = check;
    if *owner == core.owner {
        state.agree(core.clock.now());
        return Comparison::Same;
    }
    if state.is_wrong(chain, *kek_id, core.clock.now()) {
        return Comparison::Other;
    }
    match core.keyring.unwrap_by(state, chain, *kek_id, *suite, wrap).await {
        Ok(_) => {
            state.agree(core.clock.now());
            Comparison::Same
        }
        Err(root::Error::Wrong(_)) => Comparison::Other,
        Err(_) => Comparison::Silent,
    }
}

/// Drops the wraps of a new KEK whose roots have another key than other processes have under their
/// name. A root whose name is new to the store leaves its wrap there as the check.
///
/// # Errors
/// [`Kind::RootUnavailable`] when no wrap is left by a root that is allowed to found or continue
/// the chain, [`Kind::StoreUnavailable`].
pub(in crate::service) async fn agreed(
    core: &Core,
    chain: &ChainName,
    (id, suite): (KekId, Suite),
    wraps: Vec<Wrap>,
    (allowed, trust): (&Allowed, Trust),
) -> Result<Vec<Wrap>, Error> {
    let mut kept = Vec::with_capacity(wraps.len());
    for wrap in wraps {
        if establish(core, chain, (id, suite), &wrap, trust).await? {
            kept.push(wrap);
        }
    }
    let is_proven = |wrap: &Wrap| allowed.proven.iter().any(|name| **name == *wrap.root);
    if kept.iter().any(is_proven) {
        return Ok(kept);
    }
    let detail = "the roots have other keys than other processes have under their names";
    Err(Error::new(Kind::RootUnavailable, detail))
}

/// Whether the root that made `wrap` has the key that all processes have under its name. Where
/// there is no check yet, `wrap` becomes it.
///
/// # Errors
/// [`Kind::StoreUnavailable`], [`Kind::Conflict`].
pub(in crate::service) async fn establish(
    core: &Core,
    chain: &ChainName,
    (kek_id, suite): (KekId, Suite),
    wrap: &Wrap,
    trust: Trust,
) -> Result<bool, Error> {
    let Some(state) = core.keyring.roots.iter().find(|state| *state.named.name == *wrap.root)
    else {
        return Ok(false);
    };
    if !core.shared || state.is_agreed(core.clock.now(), core.config.cache.kek_max_age) {
        return Ok(true);
    }
    let key = record::root_check_key(&wrap.root);
    let check = RootCheck {
        owner: core.owner,
        chain: chain.clone(),
        kek_id,
        suite,
        wrap: wrap.bytes.clone(),
    };
    let failed = |error| core.store_error(chain, error);
    let value = check.encode().map_err(failed)?;
    for _ in 0..TRIES {
        let stored = core.store.get(&key).await.map_err(failed)?;
        let compare = match stored {
            None => Compare::Absent(key.clone()),
            // An operator declared what the old roots wrapped lost.
            Some(entry) if trust == Trust::Any => Compare::Unchanged(key.clone(), entry.revision),
            // It unwrapped stored KEKs, which is better evidence than the check.
            Some(_) if state.opened_any() => return Ok(true),
            Some(entry) => {
                let check = RootCheck::decode(&key, &entry.value).map_err(failed)?;
                return Ok(open(core, state, &check).await == Comparison::Same);
            }
        };
        let puts = vec![(key.clone(), value.clone())];
        let txn = Txn { compares: vec![compare], puts, deletes: Vec::new() };
        if let Committed::Applied(_) = core.store.commit(txn).await.map_err(failed)? {
            state.agree(core.clock.now());
            return Ok(true);
        }
    }
    Err(Error::new(Kind::Conflict, "modified concurrently; try again"))
}
