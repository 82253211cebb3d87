//! Makes and opens the KEKs that encrypt: the part of a rotation that waits for roots. Promotion
//! is the reserver's, so slow roots never hold up the uses of the current primary.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::id::KekId;
use crate::keychain::kek::Kek;
use crate::keychain::rotation::{Reason, Step};
use crate::store::record::{self, State};

use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::service::keyring::Trust;
use crate::service::rollback::repair;
use crate::service::types::Rotated;
use crate::store::records::Held;

use super::retry::RetryAt;
use super::{continuity, root_check};

/// Rotations by hand that a chain takes within [`BY_HAND_WINDOW`].
const BY_HAND_BURST: usize = 10;
const BY_HAND_WINDOW: Duration = Duration::from_secs(60);
/// How often a change is tried when others change the chain at the same time.
const TRIES: usize = 4;

/// Opens and makes what is due for `chain`, unless a failure is too fresh.
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
        tracing::info!(chain = %chain.name, "other processes changed the chain while a KEK was made; it will be tried again");
    } else if let Err(error) = &result {
        chain.metrics.rotation_failures.inc();
        // Each failure is logged once: it is tried every few seconds.
        if chain.root_failure.load().as_deref() == Some(error) {
            tracing::debug!(chain = %chain.name, %error, "a KEK could not be made or opened again");
        } else {
            tracing::error!(chain = %chain.name, %error, "a KEK could not be made or opened; it will be tried again");
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
        Some(primary) => open(core, chain, primary).await.map_err(|error| unusable(error, chain)),
        None => Ok(()),
    };
    // Without the primary nothing new is made: roots that were left out of the configuration must
    // not start a new history by themselves. A standby of the old one may be opened all the same.
    let step = step.filter(|_| opened.is_ok());
    let supplied = supply_standby(core, chain, step, Trust::Proven).await;
    opened.and(supplied)
}

/// Opens the standby. Makes one where it is due, and another where it is due to be primary and
/// can't be opened.
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
            tracing::error!(chain = %chain.name, standby = %id, %error, "the standby KEK can't be opened, and it is due: another one takes its place");
            make_standby(core, chain, Some(id), trust).await
        }
        (opened, _) => opened,
    }
}

/// The error of requests that need the primary while no root opens it.
fn unusable(error: Error, chain: &Chain) -> Error {
    if error.kind() != Kind::RootUnavailable {
        return error;
    }
    let advice = format!(
        "the primary {}. Give a root the key or the passphrase that wrapped it, or wait until it \
         answers. Where that is lost for good, and with it the data under it: kms-proxy rotate \
         --force --chain {}",
        error.detail(),
        chain.name
    );
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

/// Makes a KEK in the place of the standby `instead_of`, unless another process is at it.
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
        // One may have been made since it was found to be due.
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
        // Its root may be reached from elsewhere. Where this fails, the claim runs out.
        let _ = chain.reservations.lock().await.ledger.unclaim(claim).await;
    }
    made
}

/// Makes a KEK, has it wrapped, stores it, and only then holds it.
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
    let wraps = roots.wrap(&chain.name, &kek, &allowed).await?;
    let made = (kek.id(), suite);
    let wraps = root_check::agreed(core, &chain.name, made, wraps, (&allowed, trust)).await?;
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
    // What it cost is spent, so a head that others changed meanwhile, its limits say, is read again.
    for _ in 0..TRIES {
        let mut reservations = chain.reservations.lock().await;
        let ledger = &mut reservations.ledger;
        ledger.refresh().await.map_err(|error| core.store_error(&chain.name, error))?;
        if (ledger.head.record.standby, ledger.head.record.primary) != (instead_of, primary) {
            // Another process was first. What the roots were compared with is no longer in force.
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
            return Ok(());
        }
    }
    Err(changed_by_others())
}

/// Rotates now. One at a time for a chain, and not too often. A primary that this process can't
/// open is replaced only where `trust` is [`Trust::Any`]: other replicas may open it.
pub(in crate::service) async fn rotate_by_hand(
    core: &Core,
    chain: &Chain,
    trust: Trust,
) -> Result<Rotated, Error> {
    let Ok(mut lately) = chain.by_hand.try_lock() else {
        return Err(Error::new(Kind::Overloaded, "a rotation of this chain by hand is under way"));
    };
    let now = core.clock.now();
    lately.retain(|&at| now.since(at) < BY_HAND_WINDOW);
    if let Some(&oldest) = lately.first().filter(|_| lately.len() >= BY_HAND_BURST) {
        let wait = BY_HAND_WINDOW.saturating_sub(now.since(oldest));
        return Err(Error::new(
            Kind::Overloaded,
            "this chain was rotated by hand 10 times within a minute",
        )
        .retry_after(wait + Duration::from_secs(1)));
    }
    lately.push(now);
    let mut rotator = chain.rotator.lock().await;
    // Another replica may be at it as well: what it does counts, and is done again if need be.
    for _ in 0..TRIES {
        let (primary, step) = {
            let ledger = &mut chain.reservations.lock().await.ledger;
            ledger.refresh().await.map_err(|error| core.store_error(&chain.name, error))?;
            if ledger.is_restored() {
                // The standby that stands there may have been primary, and used.
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
            opened.map_err(|error| not_rotated(unusable(error, chain)))?;
        }
        supply_standby(core, chain, Some(step), trust).await.map_err(not_rotated)?;
        let mut reservations = chain.reservations.lock().await;
        if !reservations.holds_standby(&chain.snapshot()) {
            continue;
        }
        // It may have been noticed since.
        if reservations.ledger.is_restored() {
            continue;
        }
        let previous = reservations.ledger.head.record.primary;
        if trust == Trust::Proven && previous != primary.as_ref().map(|held| held.id) {
            continue;
        }
        if trust == Trust::Any {
            tracing::warn!(chain = %chain.name, previous = previous.map(|id| id.to_string()), "a rotation is forced: the roots were not compared with the older KEKs");
        }
        if reservations.promote(core, chain, Reason::Manual).await?
            && let Some(primary) = reservations.ledger.head.record.primary
        {
            // What failed before is of no account now.
            *rotator = RetryAt::default();
            chain.root_failure.store(None);
            chain.set_last_error(None);
            chain.need_uses.notify_one();
            return Ok(Rotated { chain: chain.name.clone(), primary, previous });
        }
    }
    Err(changed_by_others())
}

/// A caller that may rotate by hand may read what operators read.
fn not_rotated(error: Error) -> Error {
    match error.kind() {
        Kind::RootUnavailable => Error::new(
            Kind::RootUnavailable,
            format!("the chain is not rotated: {}", error.for_operators()),
        ),
        _ => error,
    }
}

fn changed_by_others() -> Error {
    Error::new(Kind::Conflict, "others changed the chain at the same time; try again")
}
