//! What a process does when the store went back to an earlier state: the primary and the standby that
//! it names encrypt no more, since their counters are too low, and the records that this process holds
//! and the store lacks are restored. Of several processes one retires the KEKs; the others only add
//! what they hold.

use crate::id::{ChainName, KekId};
use crate::keychain::Refusal;
use crate::store::record::{self, Kek, State, Uses};
use crate::store::{Error, Store, records};

use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::ledger::Ledger;

use super::detect::Rollback;

/// Does it, or finds that others did meanwhile; then it is to be looked at again.
pub(in crate::service) async fn recover(
    core: &Core,
    chain: &Chain,
    ledger: &mut Ledger,
) -> Result<(), Error> {
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
    // Only now: the head must not name a tombstone. What is left to do is noticed again, since a
    // KEK that is refused here as destroyed lives in the store.
    for (id, refusal) in chain.snapshot().refused() {
        if refusal == Refusal::Destroyed {
            bury(core, chain, ledger, id).await?;
        }
    }
    chain.metrics.store_rollbacks.inc();
    core.rollbacks.add(retired, restored, core.clock.now());
    tracing::info!(chain = %chain.name, retired, restored, "a chain is repaired after a restore");
    Ok(())
}

type Records = Vec<(KekId, Kek, Uses)>;

/// Those of `records` that the store lacks. Read many at a time: until it is repaired, others reserve
/// uses of a KEK whose counter is too low.
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

/// The KEKs whose records this process holds. How often those were used that are retired is not
/// known; it counts as often as they may.
fn held(core: &Core, chain: &Chain, ledger: &Ledger) -> Records {
    let mut held = ledger.lost().to_vec();
    for (id, kek) in core.keyring.records(&chain.name) {
        if held.iter().all(|(known, ..)| *known != id) {
            held.push((id, Kek::clone(&kek), all_used(ledger)));
        }
    }
    // What was disabled since its record was read stays so; what was destroyed gets a tombstone.
    let snapshot = chain.snapshot();
    let destroyed = |id| snapshot.refused().any(|it| it == (id, Refusal::Destroyed));
    held.retain(|(id, ..)| !destroyed(*id));
    for (_, kek, _) in held.iter_mut().filter(|(id, ..)| snapshot.allows(*id).is_err()) {
        kek.disabled_at = kek.disabled_at.or(Some(core.clock.unix_now()));
        kek.state = State::Disabled;
    }
    held
}

/// A KEK that was destroyed stays so, also where the store never heard of it: then it must not be
/// missed again and again.
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
