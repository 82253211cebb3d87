//! The states of KEKs: changed in the store, and followed in memory. A KEK that may be disabled or
//! destroyed is refused, be its state known or not.
//!
//! The changes of a chain come one after the other, each with its read, its commit and what memory
//! makes of it. What a lost answer leaves in doubt is read again until it is certain.

use std::time::Duration;

use crate::id::KekId;
use crate::keychain::Refusal;
use crate::store;
use crate::store::record::{self, Kek, State};

use super::answer::Change;
use super::chain::Chain;
use super::core::Core;
use super::error::{Error, Kind};
use super::ledger::{self, Versioned};
use super::{MIN_DESTROY_DELAY, rfc3339};

/// How often a change is tried when others change the same record.
const TRIES: usize = 4;
/// How long a commit whose answer was lost may still be applied: longer than any store's deadline.
const LATE: Duration = Duration::from_secs(60);

/// Why a KEK in this state is refused, if it is.
pub(super) fn refusal(state: State) -> Option<Refusal> {
    match state {
        State::Disabled => Some(Refusal::Disabled),
        State::Destroyed => Some(Refusal::Destroyed),
        State::Standby | State::Primary | State::Retired => None,
    }
}

/// Disables, enables or destroys a KEK; its record comes back. To be run to its end.
pub(super) async fn change(
    core: &Core,
    chain: &Chain,
    id: KekId,
    change: Change,
) -> Result<Kek, Error> {
    let failed = |error| core.store_error(&chain.name, error);
    if change == Change::Destroy {
        let head = ledger::head(&*core.store, &chain.name).await.map_err(failed)?;
        if head.named_root.is_some() {
            return Err(Error::new(
                Kind::Conflict,
                "a Kubernetes cluster encrypts with this chain: every Secret that it wrote under \
                 this KEK would be lost for ever, and kube-apiserver may not start again. Encrypt \
                 them anew first (a storage migration, after `root rewrap`); `force` destroys it \
                 all the same",
            ));
        }
    }
    let mut doubts = chain.doubts.lock().await;
    for _ in 0..TRIES {
        let Some(read) = read(core, chain, id).await.map_err(failed)? else {
            return Err(Error::new(Kind::UnknownKek, "this chain has no such KEK"));
        };
        let next = match changed(core, &read.record, change) {
            Ok(next) => next,
            Err(conflict) => {
                follow(core, chain, id, read.record.state);
                return Err(conflict);
            }
        };
        // What takes a right away holds before it is stored, what gives one after.
        if refusal(next.state).is_some() {
            follow(core, chain, id, next.state);
        }
        doubts.insert(id, core.clock.now());
        match ledger::put_kek(&*core.store, &chain.name, id, &read, &next).await {
            Ok(true) => {
                doubts.remove(&id);
                follow(core, chain, id, next.state);
                tracing::warn!(chain = %chain.name, kek_id = %id, state = next.state.as_str(), "a KEK was changed by hand");
                return Ok(next);
            }
            Ok(false) => {}
            Err(error) => {
                if matches!(error, store::Error::Unavailable { maybe_applied: true, .. }) {
                    doubts.insert(id, core.clock.now() + LATE);
                }
                drop(doubts);
                settle(core, chain).await;
                return Err(failed(error));
            }
        }
    }
    drop(doubts);
    settle(core, chain).await;
    Err(Error::new(Kind::Conflict, "others changed it at the same time; try again"))
}

/// Reads the KEKs again whose state is in doubt, and does in memory as the store says. Those that
/// can't be read stay as they are until the next time.
pub(super) async fn settle(core: &Core, chain: &Chain) {
    let mut doubts = chain.doubts.lock().await;
    let ids: Vec<_> = doubts.iter().map(|(&id, &until)| (id, until)).collect();
    for (id, until) in ids {
        let now = core.clock.now();
        match read(core, chain, id).await {
            Err(store::Error::Unavailable { .. }) => return,
            Ok(Some(read)) => follow(core, chain, id, read.record.state),
            // Nothing says that it may be used.
            Ok(None) | Err(store::Error::Corrupt { .. }) => {}
        }
        if now >= until {
            doubts.remove(&id);
        }
    }
}

/// Reads a KEK whose state seems to differ from what memory says, and does as the store says: one
/// that is being changed must not be judged by what was read before.
pub(super) async fn learn(
    core: &Core,
    chain: &Chain,
    id: KekId,
) -> Result<Option<Kek>, store::Error> {
    let doubts = chain.doubts.lock().await;
    let Some(read) = read(core, chain, id).await? else { return Ok(None) };
    let destroyed = chain.snapshot().refused().any(|it| it == (id, Refusal::Destroyed));
    if destroyed && read.record.state != State::Destroyed && !doubts.contains_key(&id) {
        // Nothing brings a KEK back but an old copy of the store.
        drop(doubts);
        chain.reserver.lock().await.ledger.set_restored();
        chain.need_uses.notify_one();
        return Ok(Some(Kek { state: State::Destroyed, wraps: Vec::new(), ..read.record }));
    }
    follow(core, chain, id, read.record.state);
    Ok(Some(read.record))
}

async fn read(
    core: &Core,
    chain: &Chain,
    id: KekId,
) -> Result<Option<Versioned<Kek>>, store::Error> {
    ledger::read(&*core.store, &record::kek_key(&chain.name, id)).await
}

/// Does in memory what `state` says.
fn follow(core: &Core, chain: &Chain, id: KekId, state: State) {
    let refusal = refusal(state);
    chain.publish(|snapshot| snapshot.refuse(id, refusal));
    if refusal.is_some() {
        core.keyring.drop_kek(&chain.name, id);
        core.deks.forget(&chain.name, id);
    }
    if state == State::Destroyed {
        core.keyring.forget(&chain.name, id);
    }
}

/// The KEK's record after `change`.
fn changed(core: &Core, kek: &Kek, change: Change) -> Result<Kek, Error> {
    let now = core.clock.unix_now();
    let conflict = |detail: String| Err(Error::new(Kind::Conflict, detail));
    match (change, kek.state) {
        (Change::Disable, State::Retired) => {
            Ok(Kek { state: State::Disabled, disabled_at: Some(now), ..kek.clone() })
        }
        (Change::Enable, State::Disabled) => Ok(Kek { state: State::Retired, ..kek.clone() }),
        (Change::Destroy | Change::ForceDestroy, State::Disabled) => {
            let delay = core.config.destroy_delay.max(MIN_DESTROY_DELAY).as_secs();
            let from = kek.disabled_at.unwrap_or(now).saturating_add(delay);
            if now < from {
                return conflict(format!("it can be destroyed from {} on", rfc3339(from)));
            }
            Ok(Kek { state: State::Destroyed, wraps: Vec::new(), ..kek.clone() })
        }
        (Change::Disable, State::Primary) => {
            conflict("it is the primary KEK: rotate the chain first".to_owned())
        }
        (Change::Destroy | Change::ForceDestroy, State::Retired) => {
            conflict("it must be disabled before it can be destroyed".to_owned())
        }
        (_, state) => conflict(format!("the KEK is {}", state.as_str())),
    }
}
