//! Creates and unwraps the KEKs that encrypt: the part of a rotation that waits for roots. The
//! reserver promotes them, so slow roots never block the uses of the current primary.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::id::KekId;
use crate::keychain::kek::Kek;
use crate::keychain::rotation::{Reason, Step};
use crate::store::record::{self, State};

use crate::service::archive::sync;
use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::service::keyring::{NOT_NOW, Trust};
use crate::service::rollback::repair;
use crate::service::types::Rotated;
use crate::store::records::Held;

use super::retry::RetryAt;
use super::root_users::{After, Others};
use super::{continuity, root_check, root_users};

/// Rotations by hand that a chain takes within [`BY_HAND_WINDOW`].
const BY_HAND_BURST: usize = 10;
const BY_HAND_WINDOW: Duration = Duration::from_secs(60);
/// How often a change is tried when other processes change the chain at the same time.
const TRIES: usize = 4;

/// Creates and unwraps the KEKs that are due for `chain`, unless it must wait after a failure.
pub(in crate::service) async fn drive(core: &Core, chain: &Chain) {
    let mut backoff = chain.rotator.lock().await;
    if !backoff.is_over(core.clock.now()) {
        return;
    }
    let result = work(core, chain).await;
    backoff.note(&result, core.clock.now());
    core.in_doubt.store(result.is_err(), Ordering::Relaxed);
    if let Err(error) = &result
        && error.kind() == Kind::Conflict
    {
        tracing::info!(
            chain = %chain.name,
            "other processes changed the chain while a KEK was created; trying again"
        );
    } else if let Err(error) = &result {
        chain.metrics.rotation_failures.inc();
        // A repeated failure is logged once, since there is an attempt every few seconds.
        if chain.root_failure.load().as_deref() == Some(error) {
            tracing::debug!(chain = %chain.name, %error, "a KEK still could not be created or \
                unwrapped");
        } else {
            tracing::error!(
                chain = %chain.name, %error,
                "a KEK could not be created or unwrapped; trying again"
            );
        }
    }
    chain.root_failure.store(result.err().map(Arc::new));
    chain.need_uses.notify_one();
}

async fn work(core: &Core, chain: &Chain) -> Result<(), Error> {
    let (primary, step) = {
        let mut reservations = chain.reservations.lock().await;
        reservations
            .ledger
            .refresh()
            .await
            .map_err(|error| core.store_error(&chain.name, error))?;
        (reservations.ledger.primary.clone(), reservations.plan(core, chain))
    };
    let opened = match &primary {
        Some(primary) => {
            open(core, chain, primary).await.map_err(|error| unusable(core, error, chain, primary))
        }
        None => Ok(()),
    };
    // If no root unwraps the primary, no KEK is created: the right root may be missing from the
    // configuration, and the others must not take over the chain. A standby may still be unwrapped.
    let step = step.filter(|_| opened.is_ok());
    let supplied = supply_standby(core, chain, step, Trust::Proven).await;
    opened.and(supplied)
}

/// Unwraps the standby, or creates one if that is due. A standby that can't be unwrapped is
/// replaced when its promotion is due.
pub(in crate::service) async fn supply_standby(
    core: &Core,
    chain: &Chain,
    step: Option<Step>,
    trust: Trust,
) -> Result<(), Error> {
    let (stored, standby, damage) = {
        let ledger = &chain.reservations.lock().await.ledger;
        (ledger.head.record.standby, ledger.standby.clone(), ledger.standby_damage.clone())
    };
    let Some(id) = stored else {
        let due = step == Some(Step::MakeStandby);
        return if due { make_standby(core, chain, None, trust).await } else { Ok(()) };
    };
    let opened = match (standby, damage) {
        (Some(standby), _) => open(core, chain, &standby).await,
        (None, Some(damage)) => Err(core.store_error(&chain.name, damage)),
        (None, None) => Ok(()),
    };
    match (opened, step) {
        (Err(error), Some(Step::Promote(_))) => {
            tracing::error!(
                chain = %chain.name, standby = %id, %error,
                "the standby KEK can't be unwrapped and is due for promotion: it is replaced"
            );
            make_standby(core, chain, Some(id), trust).await
        }
        (opened, _) => opened,
    }
}

/// The error of requests that need the primary while no root unwraps it.
fn unusable(core: &Core, error: Error, chain: &Chain, primary: &Held) -> Error {
    if error.kind() != Kind::RootUnavailable {
        return error;
    }
    let (why, name) = (error.detail(), &chain.name);
    // The sentence for callers says it already.
    let why = why.strip_suffix(NOT_NOW).map_or(why, |why| why.trim_end_matches([':', ' ']));
    let wraps = primary.kek.record.wraps.iter();
    let wrapped_by: Vec<_> = wraps.map(|wrap| &*wrap.root).collect();
    // In an outage nothing is lost, and a forced rotation would fail as well.
    let advice = match core.keyring.roots.may_be_lost(&wrapped_by) {
        false => format!("the primary {why}. The chain recovers when one of its roots answers"),
        true => format!(
            "the primary {why}. Give a root the key or the passphrase that wrapped it. Where that \
             is lost for good, and with it the data under it: kms-proxy rotate --force --chain \
             {name}"
        ),
    };
    Error::new(Kind::RootUnavailable, "no root opens the primary KEK now").with_advice(advice)
}

/// Holds a stored KEK in memory.
async fn open(core: &Core, chain: &Chain, held: &Held) -> Result<(), Error> {
    if chain.snapshot().kek(held.id).is_some() {
        return Ok(());
    }
    let kek = match core.keyring.cached(&chain.name, held.id) {
        Some(kek) => kek,
        None => core.keyring.open(&chain.name, held.id, &held.kek.record).await?,
    };
    chain.publish(|next| next.hold(Arc::clone(&kek)));
    Ok(())
}

/// Creates a standby, in place of `instead_of` if given, unless another process holds the claim.
pub(in crate::service) async fn make_standby(
    core: &Core,
    chain: &Chain,
    instead_of: Option<KekId>,
    trust: Trust,
) -> Result<(), Error> {
    if !core.shared {
        return make_claimed(core, chain, instead_of, trust).await;
    }
    let claim = {
        let ledger = &mut chain.reservations.lock().await.ledger;
        // Another process may have created one meanwhile.
        if ledger.head.record.standby != instead_of {
            return Ok(());
        }
        ledger.claim(core.clock.now()).await
    };
    let Some(claim) = claim.map_err(|error| core.store_error(&chain.name, error))? else {
        return Ok(());
    };
    let made = make_claimed(core, chain, instead_of, trust).await;
    if made.is_err() {
        // Another process may reach a root. If this fails, the claim expires.
        let _ = chain.reservations.lock().await.ledger.unclaim(claim).await;
    }
    made
}

/// Creates a KEK, has it wrapped, stores it, and then holds it.
async fn make_claimed(
    core: &Core,
    chain: &Chain,
    instead_of: Option<KekId>,
    trust: Trust,
) -> Result<(), Error> {
    let (suite, primary, held) = {
        let ledger = &chain.reservations.lock().await.ledger;
        (ledger.head.record.suite, ledger.head.record.primary, ledger.held())
    };
    let roots = &core.keyring.roots;
    let allowed = match trust {
        Trust::Proven => continuity::allowed(core, &chain.name, &held).await?,
        Trust::Any => roots.all_allowed(),
    };
    let kek = Kek::generate(&chain.name, suite)
        .map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
    let after = if held.is_empty() { After::Retired } else { After::Current };
    // After a rollback of the store, the chain has KEKs and none of them encrypts.
    let others = match trust == Trust::Proven && (after == After::Current || allowed.has_keks) {
        true => root_users::others(core, &chain.name).await?,
        false => Others::default(),
    };
    // Before the wraps, so that a refusal costs no root call.
    others.most_open(allowed.proven.iter().chain(&allowed.new).map(|name| &**name), after)?;
    let wraps = roots.wrap(&chain.name, &kek, &allowed).await?;
    let made = (kek.id(), suite);
    let wraps = root_check::agreed(core, &chain.name, made, wraps, (&allowed, trust)).await?;
    // A root may not have answered.
    others.most_open(wraps.iter().map(|wrap| &*wrap.root), after)?;
    let stored = record::Kek {
        suite,
        state: State::Standby,
        created_at: core.clock.unix_now(),
        promoted_at: None,
        disabled_at: None,
        exposed: core.keyring.roots.exposes(&wraps),
        wraps,
    };
    let kek = Arc::new(kek);
    // The root calls are made, so if only the limits in the head changed meanwhile, the write is
    // repeated.
    for _ in 0..TRIES {
        let mut reservations = chain.reservations.lock().await;
        let ledger = &mut reservations.ledger;
        ledger.refresh().await.map_err(|error| core.store_error(&chain.name, error))?;
        if (ledger.head.record.standby, ledger.head.record.primary) != (instead_of, primary) {
            // Another process was first. The roots were compared with KEKs that are not current.
            return Ok(());
        }
        let put = match instead_of {
            None => ledger.put_standby(kek.id(), stored.clone()).await,
            Some(_) => ledger.replace_standby(kek.id(), stored.clone()).await,
        };
        if put.map_err(|error| core.store_error(&chain.name, error))? {
            core.keyring.remember(&chain.name, kek.id(), &stored);
            roots.note_wrapped(&chain.name, kek.id(), &stored.wraps, &allowed.proven);
            chain.publish(|next| next.hold(Arc::clone(&kek)));
            core.archives.want_first(&chain.name, kek.id());
            return Ok(());
        }
    }
    Err(changed_by_others())
}

/// Rotates now: one manual rotation of a chain at a time, within the rate limit. A primary that
/// this process can't unwrap is replaced only with [`Trust::Any`], since other replicas may unwrap
/// it.
pub(in crate::service) async fn rotate_by_hand(
    core: &Arc<Core>,
    chain: &Chain,
    trust: Trust,
) -> Result<Rotated, Error> {
    let Ok(mut lately) = chain.by_hand.try_lock() else {
        return Err(Error::new(Kind::Overloaded, "a manual rotation of this chain is in progress"));
    };
    let now = core.clock.now();
    lately.retain(|&at| now.since(at) < BY_HAND_WINDOW);
    if let Some(&oldest) = lately.first().filter(|_| lately.len() >= BY_HAND_BURST) {
        let wait = BY_HAND_WINDOW.saturating_sub(now.since(oldest));
        return Err(Error::new(
            Kind::Overloaded,
            "this chain was rotated manually 10 times within a minute",
        )
        .retry_after(wait + Duration::from_secs(1)));
    }
    lately.push(now);
    let mut rotator = chain.rotator.lock().await;
    // Another replica may rotate as well. Then the current state is read again.
    for _ in 0..TRIES {
        let (primary, step) = {
            let ledger = &mut chain.reservations.lock().await.ledger;
            ledger.refresh().await.map_err(|error| core.store_error(&chain.name, error))?;
            if ledger.is_restored() {
                // The stored standby may have been primary, and used, before the rollback.
                let repaired = repair::recover(core, chain, ledger).await;
                repaired.map_err(|error| core.store_error(&chain.name, error))?;
                continue;
            }
            let step = match ledger.head.record.standby {
                Some(_) => Step::Promote(Reason::Manual),
                None => Step::MakeStandby,
            };
            (ledger.primary.clone(), step)
        };
        if let (Trust::Proven, Some(primary)) = (trust, &primary) {
            let opened = open(core, chain, primary).await;
            opened.map_err(|error| not_rotated(unusable(core, error, chain, primary)))?;
        }
        supply_standby(core, chain, Some(step), trust).await.map_err(not_rotated)?;
        let standby = chain.reservations.lock().await.ledger.head.record.standby;
        if let Some(id) = standby {
            sync::ensure(core, &chain.name, id).await.map_err(not_rotated)?;
        }
        let mut reservations = chain.reservations.lock().await;
        if !reservations.holds_standby(&chain.snapshot()) {
            continue;
        }
        // A rollback may have been detected meanwhile.
        if reservations.ledger.is_restored() {
            continue;
        }
        let previous = reservations.ledger.head.record.primary;
        if trust == Trust::Proven && previous != primary.as_ref().map(|held| held.id) {
            continue;
        }
        if trust == Trust::Any {
            tracing::warn!(
                chain = %chain.name, previous = previous.map(|id| id.to_string()),
                "a rotation is forced: the roots were not compared with the older KEKs"
            );
        }
        if reservations.promote(core, chain, Reason::Manual).await?
            && let Some(primary) = reservations.ledger.head.record.primary
        {
            // Earlier failures do not matter any more.
            *rotator = RetryAt::default();
            chain.root_failure.store(None);
            chain.set_last_error(None);
            chain.need_uses.notify_one();
            return Ok(Rotated { chain: chain.name.clone(), primary, previous });
        }
    }
    Err(changed_by_others())
}

/// Adds the advice for operators: a caller with permission to rotate may read it.
fn not_rotated(error: Error) -> Error {
    match error.kind() {
        kind @ (Kind::RootUnavailable | Kind::ArchiveUnavailable) => {
            Error::new(kind, format!("the chain is not rotated: {}", error.for_operators()))
        }
        _ => error,
    }
}

fn changed_by_others() -> Error {
    Error::new(Kind::Conflict, "the chain was modified concurrently; try again")
}
