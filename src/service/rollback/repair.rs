//! The repair by a running process after the store went back to an earlier state. It retires the
//! primary and the standby that the store names, since their counters are too low, and restores the
//! records that this process holds and the store lacks. Of several processes, one retires the KEKs;
//! the others only restore what they hold.

use crate::id::{ChainName, KekId};
use crate::keychain::Refusal;
use crate::store::record::{self, Head, Kek, State, Uses};
use crate::store::{Error, Store, records};

use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::error::{self, Kind};
use crate::service::ledger::Ledger;

use crate::service::rotation::root_users;

use super::detect::Rollback;

/// The stored head of a chain. Whatever is the first to need the head of a chain that the store
/// has lost restores it.
///
/// # Errors
/// [`Kind::StoreUnavailable`], or [`Kind::UnknownChain`] if another process deleted the chain.
pub(in crate::service) async fn head(core: &Core, chain: &Chain) -> Result<Head, error::Error> {
    let failed = |error| core.store_error(&chain.name, error);
    if let Some(head) = records::read_head(&*core.store, &chain.name).await.map_err(failed)? {
        return Ok(head.record);
    }
    let ledger = &mut chain.reservations.lock().await.ledger;
    chain.staleness.outdate();
    let refreshed = ledger.refresh().await;
    // The reserver repairs the rest, or finds that the chain was deleted.
    chain.need_uses.notify_one();
    if ledger.is_deleted() {
        return Err(error::Error::new(Kind::UnknownChain, "the chain was deleted"));
    }
    refreshed.map_err(failed)?;
    Ok(ledger.head.record.clone())
}

/// Repairs the chain. If other processes modified it concurrently, nothing is retired, and the
/// caller must read it again.
pub(in crate::service) async fn recover(
    core: &Core,
    chain: &Chain,
    ledger: &mut Ledger,
) -> Result<(), Error> {
    root_users::note_rollback(core);
    core.used.went_back(&chain.name);
    let mut restored = 0;
    for (id, kek, uses) in missing(&*core.store, &chain.name, held(core, chain, ledger)).await? {
        restored += u32::from(ledger.restore(id, kek, uses).await?);
    }
    let mut retired = 0;
    if ledger.rollback() == Some(Rollback::Repaired) {
        ledger.end_rollback();
    } else {
        retired = u32::try_from(ledger.held().len()).unwrap_or(u32::MAX);
        if !ledger.retire_restored().await? {
            return Ok(());
        }
    }
    // After the retirement, since the head must not name a tombstone. If this fails, it is detected
    // again: a KEK that is refused here as destroyed is not destroyed in the store.
    for (id, refusal) in chain.snapshot().refused() {
        if refusal == Refusal::Destroyed {
            bury(core, chain, ledger, id).await?;
        }
    }
    core.audit_key.look_after(&*core.store).await;
    core.archives.sweep_soon();
    chain.metrics.store_rollbacks.inc();
    core.rollbacks.add(retired, restored, core.clock.now());
    tracing::info!(chain = %chain.name, retired, restored, "a chain was repaired after a rollback \
        of the store");
    Ok(())
}

type Records = Vec<(KekId, Kek, Uses)>;

/// Those of `records` that the store lacks. They are read in batches, since until the repair other
/// processes may reserve uses of a KEK whose counter is too low.
async fn missing(store: &dyn Store, chain: &ChainName, records: Records) -> Result<Records, Error> {
    let mut missing = Records::new();
    for records in records.chunks(records::MANY) {
        let keys: Vec<_> = records.iter().map(|(id, ..)| record::kek_key(chain, *id)).collect();
        let read = store.get_all(&keys).await?;
        let lacking = records.iter().zip(read).filter(|(_, entry)| entry.is_none());
        missing.extend(lacking.map(|(record, _)| record.clone()));
    }
    Ok(missing)
}

/// The KEKs whose records this process holds. The uses of retired KEKs are not known, so all of
/// them count as reserved.
fn held(core: &Core, chain: &Chain, ledger: &Ledger) -> Records {
    let mut held = ledger.lost().to_vec();
    for (id, kek) in core.keyring.records(&chain.name) {
        if held.iter().all(|(known, ..)| *known != id) {
            held.push((id, Kek::clone(&kek), all_used(ledger)));
        }
    }
    // A KEK that was disabled since its record was read stays disabled; a destroyed one gets a
    // tombstone.
    let snapshot = chain.snapshot();
    let destroyed = |id| snapshot.refused().any(|it| it == (id, Refusal::Destroyed));
    held.retain(|(id, ..)| !destroyed(*id));
    for (_, kek, _) in held.iter_mut().filter(|(id, ..)| snapshot.allows(*id).is_err()) {
        kek.disabled_at = kek.disabled_at.or(Some(core.clock.unix_now()));
        kek.state = State::Disabled;
    }
    held
}

/// Writes the tombstone of a destroyed KEK, even if the store does not have the KEK: otherwise it
/// would be found missing again and again.
async fn bury(core: &Core, chain: &Chain, ledger: &Ledger, id: KekId) -> Result<(), Error> {
    let key = record::kek_key(&chain.name, id);
    let Some(read) = records::read::<Kek>(&*core.store, &key).await? else {
        let tombstone = Kek {
            suite: ledger.head.record.suite,
            state: State::Destroyed,
            created_at: core.clock.unix_now(),
            promoted_at: None,
            disabled_at: None,
            exposed: false,
            wraps: Vec::new(),
        };
        return ledger.restore(id, tombstone, all_used(ledger)).await.map(drop);
    };
    if read.record.state != State::Destroyed {
        let tombstone = Kek { state: State::Destroyed, wraps: Vec::new(), ..read.record.clone() };
        records::put_kek(&*core.store, &chain.name, id, &read, &tombstone).await?;
    }
    Ok(())
}

fn all_used(ledger: &Ledger) -> Uses {
    Uses { reserved: ledger.head.record.limits.max_uses, ..Uses::default() }
}
