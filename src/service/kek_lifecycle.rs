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
use crate::store::records::{self, Versioned};
use crate::timestamp::rfc3339;

use super::MIN_DESTROY_DELAY;
use super::chain::Chain;
use super::core::Core;
use super::error::{Error, Kind};
use super::types::Change;

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
    if matches!(change, Change::Destroy | Change::Disable) {
        let head = records::head(&*core.store, &chain.name).await.map_err(failed)?;
        if head.named_root.is_some() {
            return Err(needed_by_kubernetes(change));
        }
    }
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
        // What takes a right away holds before it is stored, what gives one after.
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
        suspect(core, chain, id).await?;
        return Ok(Some(Kek { state: State::Destroyed, wraps: Vec::new(), ..read.record }));
    }
    follow(core, chain, id, read.record.state);
    Ok(Some(read.record))
}

/// A record that this process knows was read as an old one, or is gone: an old copy of the store was
/// restored. It is read again while this process repairs nothing, since a repair may be what was missed.
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

/// Does in memory what `state` says.
fn follow(core: &Core, chain: &Chain, id: KekId, state: State) {
    let refusal = refusal(state);
    chain.publish(|snapshot| snapshot.refuse(id, refusal));
    if refusal.is_some() {
        core.keyring.drop_kek(&chain.name, id);
        core.deks.forget(&chain.name, id);
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
/// Other processes may encrypt under it for [`MIN_DESTROY_DELAY`] at most after it was disabled. A
/// wall clock that is ahead must not shorten that, so it is measured by the monotonic clock of this
/// process. A process that disabled the KEK itself measures all of `destroy_delay` so. One that
/// started later has the wall clock for what came before it.
fn until_destroyable(core: &Core, chain: &Chain, id: KekId, disabled_at: Option<u64>) -> Duration {
    let (now, unix_now) = (core.clock.now(), core.clock.unix_now());
    let delay = core.config.chain.destroy_delay.max(MIN_DESTROY_DELAY);
    let seen = chain.disabled.seen(id, now);
    let disabled_at = disabled_at.unwrap_or(unix_now);
    let is_future = disabled_at > unix_now;
    if is_future {
        let at = rfc3339(disabled_at);
        tracing::warn!(chain = %chain.name, kek_id = %id, at, "a KEK was disabled in the future: a clock is or was wrong, so it counts as disabled when this process first saw it");
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
             KEK would be lost permanently, and kube-apiserver may not start again. Re-encrypt them \
             first (a storage migration, after `root rewrap`); `force` destroys it all the same"
        }
    };
    Error::new(Kind::Conflict, detail)
}
