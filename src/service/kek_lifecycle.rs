//! The states of KEKs: changes in the store, and their effect in memory. A KEK is refused as soon
//! as it may be disabled or destroyed.
//!
//! The changes of a chain are serialized, each with its read, its commit and its effect in memory.
//! A state that is in doubt after a lost response is read again until it is certain.

use std::sync::Arc;
use std::time::Duration;

use crate::id::KekId;
use crate::keychain::Refusal;
use crate::store;
use crate::store::record::{self, Kek, State};
use crate::store::records::{self, Versioned};
use crate::timestamp::rfc3339;

use super::MIN_DESTROY_DELAY;
use super::archive::{find, restore};
use super::chain::Chain;
use super::core::Core;
use super::error::{Error, Kind};
use super::rollback::repair;
use super::types::Change;

/// How often a change is tried when other processes change the same record.
const TRIES: usize = 4;
/// How long a commit whose response was lost may still be applied: longer than any store's
/// deadline.
const LATE: Duration = Duration::from_secs(60);

/// Why a KEK in this state is refused, if it is.
pub(super) fn refusal(state: State) -> Option<Refusal> {
    match state {
        State::Disabled => Some(Refusal::Disabled),
        State::Destroyed => Some(Refusal::Destroyed),
        State::Standby | State::Primary | State::Retired => None,
    }
}

/// Disables, enables or destroys a KEK, and returns its record. Must be run to its end.
pub(super) async fn change(
    core: &Arc<Core>,
    chain: &Chain,
    id: KekId,
    change: Change,
) -> Result<Kek, Error> {
    let failed = |error| core.store_error(&chain.name, error);
    if matches!(change, Change::Destroy | Change::Disable) {
        let head = repair::head(core, chain).await?;
        if head.named_root.is_some() {
            return Err(needed_by_kubernetes(change));
        }
    }
    bring_back(core, chain, id).await?;
    let mut doubts = chain.doubts.lock().await;
    for _ in 0..TRIES {
        let Some(read) = read(core, chain, id).await.map_err(failed)? else {
            return Err(Error::new(Kind::UnknownKek, "this chain has no such KEK"));
        };
        let next = match changed(core, chain, id, &read.record, change) {
            Ok(next) => next,
            Err(conflict) => {
                follow(core, chain, id, read.record.state);
                return Err(conflict);
            }
        };
        // A refusal takes effect before it is stored, a permission after it is stored.
        if refusal(next.state).is_some() {
            follow(core, chain, id, next.state);
        }
        doubts.insert(id, core.clock.now());
        match records::put_kek(&*core.store, &chain.name, id, &read, &next).await {
            Ok(true) => {
                doubts.remove(&id);
                follow(core, chain, id, next.state);
                if next.state == State::Disabled {
                    chain.disabled.witness(id, core.clock.now());
                }
                let state = next.state.as_str();
                tracing::warn!(
                    chain = %chain.name, kek_id = %id, state,
                    "an operator changed the state of a KEK"
                );
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
    Err(Error::new(Kind::Conflict, "modified concurrently; try again"))
}

/// Restores a KEK to the store that only the archives have, so that it can be disabled before
/// anything is decrypted under it.
async fn bring_back(core: &Arc<Core>, chain: &Chain, id: KekId) -> Result<(), Error> {
    let failed = |error| core.store_error(&chain.name, error);
    if core.archives.is_empty() || read(core, chain, id).await.map_err(failed)?.is_some() {
        return Ok(());
    }
    let Some(kek) = find::kek(core, &chain.name, id).await? else { return Ok(()) };
    if find::is_live(&kek) {
        // Its id is not verified before.
        core.keyring.open(&chain.name, id, &kek).await?;
    }
    restore::kek(core, chain, id, kek).await.map_err(failed)
}

/// Reads the KEKs again whose state is in doubt, and follows the store in memory. Those that can't
/// be read keep their state until the next time.
pub(super) async fn settle(core: &Core, chain: &Chain) {
    let mut doubts = chain.doubts.lock().await;
    let ids: Vec<_> = doubts.iter().map(|(&id, &until)| (id, until)).collect();
    for (id, until) in ids {
        let now = core.clock.now();
        match read(core, chain, id).await {
            Err(store::Error::Unavailable { .. }) => return,
            Ok(Some(read)) => follow(core, chain, id, read.record.state),
            // There is no evidence that it may be used.
            Ok(None) | Err(store::Error::Corrupt { .. }) => {}
        }
        if now >= until {
            doubts.remove(&id);
        }
    }
}

/// Reads a KEK whose state seems to differ from that in memory, and follows the store. It is read
/// again, since it may be changing concurrently.
pub(super) async fn learn(
    core: &Core,
    chain: &Chain,
    id: KekId,
) -> Result<Option<Kek>, store::Error> {
    let doubts = chain.doubts.lock().await;
    let Some(read) = read(core, chain, id).await? else { return Ok(None) };
    let destroyed = chain.snapshot().refused().any(|it| it == (id, Refusal::Destroyed));
    if destroyed && read.record.state != State::Destroyed && !doubts.contains_key(&id) {
        // Only an old copy of the store can contain a KEK that was destroyed.
        drop(doubts);
        suspect(core, chain, id).await?;
        return Ok(Some(Kek { state: State::Destroyed, wraps: Vec::new(), ..read.record }));
    }
    follow(core, chain, id, read.record.state);
    Ok(Some(read.record))
}

/// Handles a KEK whose record is missing or older than this process knows: an old copy of the store
/// may have been restored. The record is read again under the ledger's lock, since a repair by this
/// process may explain it.
pub(super) async fn suspect(core: &Core, chain: &Chain, id: KekId) -> Result<(), store::Error> {
    let ledger = &mut chain.reservations.lock().await.ledger;
    let destroyed = chain.snapshot().refused().any(|it| it == (id, Refusal::Destroyed));
    let is_old = match read(core, chain, id).await? {
        Some(read) => destroyed && read.record.state != State::Destroyed,
        None => true,
    };
    if is_old {
        ledger.set_restored();
        chain.need_uses.notify_one();
    }
    Ok(())
}

async fn read(
    core: &Core,
    chain: &Chain,
    id: KekId,
) -> Result<Option<Versioned<Kek>>, store::Error> {
    records::read(&*core.store, &record::kek_key(&chain.name, id)).await
}

/// Applies `state` in memory.
pub(super) fn follow(core: &Core, chain: &Chain, id: KekId, state: State) {
    let refusal = refusal(state);
    chain.publish(|snapshot| snapshot.refuse(id, refusal));
    if refusal.is_some() {
        core.keyring.drop_kek(&chain.name, id);
        core.deks.forget(&chain.name, id);
        core.used.hurry(&chain.name, id);
    }
    match state {
        State::Disabled => _ = chain.disabled.seen(id, core.clock.now()),
        _ => chain.disabled.remove(id),
    }
    if state == State::Destroyed {
        core.keyring.forget(&chain.name, id);
    }
}

/// The KEK's record after `change`.
fn changed(core: &Core, chain: &Chain, id: KekId, kek: &Kek, change: Change) -> Result<Kek, Error> {
    let now = core.clock.unix_now();
    let conflict = |detail: String| Err(Error::new(Kind::Conflict, detail));
    match (change, kek.state) {
        (Change::Disable | Change::ForceDisable, State::Retired) => {
            Ok(Kek { state: State::Disabled, disabled_at: Some(now), ..kek.clone() })
        }
        (Change::Enable, State::Disabled) => Ok(Kek { state: State::Retired, ..kek.clone() }),
        (Change::Destroy | Change::ForceDestroy, State::Disabled) => {
            let wait = until_destroyable(core, chain, id, kek.disabled_at);
            if !wait.is_zero() {
                let from = now.saturating_add(wait.as_secs()).saturating_add(1);
                return conflict(format!("it can be destroyed from {} on", rfc3339(from)));
            }
            Ok(Kek { state: State::Destroyed, wraps: Vec::new(), ..kek.clone() })
        }
        (Change::Disable | Change::ForceDisable, State::Primary) => {
            conflict("it is the primary KEK: rotate the chain first".to_owned())
        }
        (Change::Destroy | Change::ForceDestroy, State::Retired) => {
            conflict("it must be disabled before it can be destroyed".to_owned())
        }
        (_, state) => conflict(format!("the KEK is {}", state.as_str())),
    }
}

/// How long a disabled KEK must wait before it can be destroyed.
///
/// Other processes may encrypt under it for up to [`MIN_DESTROY_DELAY`] after it was disabled. A
/// wall clock that is ahead must not shorten that time, so this process measures it by its
/// monotonic clock. A process that disabled the KEK itself measures all of `destroy_delay` by that
/// clock. A process that started later must use the wall clock for the time before its start.
fn until_destroyable(core: &Core, chain: &Chain, id: KekId, disabled_at: Option<u64>) -> Duration {
    let (now, unix_now) = (core.clock.now(), core.clock.unix_now());
    let delay = core.config.chain.destroy_delay.max(MIN_DESTROY_DELAY);
    let seen = chain.disabled.seen(id, now);
    let disabled_at = disabled_at.unwrap_or(unix_now);
    let is_future = disabled_at > unix_now;
    if is_future {
        let at = rfc3339(disabled_at);
        tracing::warn!(chain = %chain.name, kek_id = %id, at, "a KEK was disabled in the future: \
            a clock is or was wrong, so it counts as disabled when this process first saw it");
    }
    let measured = if seen.is_witness || is_future { delay } else { MIN_DESTROY_DELAY };
    let measured = measured.saturating_sub(now.since(seen.at));
    let by_wall_clock =
        delay.saturating_sub(Duration::from_secs(unix_now - disabled_at.min(unix_now)));
    if is_future { measured } else { measured.max(by_wall_clock) }
}

fn needed_by_kubernetes(change: Change) -> Error {
    let detail = match change {
        Change::Disable => {
            "a Kubernetes cluster encrypts with this chain: it could not read the Secrets that it \
             wrote under this KEK, and kube-apiserver may not start again. Re-encrypt them first \
             (a storage migration, after `root rewrap`); `force` disables it all the same"
        }
        _ => {
            "a Kubernetes cluster encrypts with this chain: every Secret that it wrote under this \
             KEK would be lost permanently, and kube-apiserver may not start again. Re-encrypt \
             them first (a storage migration, after `root rewrap`); `force` destroys it all the \
             same"
        }
    };
    Error::new(Kind::Conflict, detail)
}
