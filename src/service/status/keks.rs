//! The numbers of KEKs by state, which only the store has. They are counted when somebody looks,
//! and kept in memory for a while.
//!
//! What this costs is bounded: in time, in the KEKs of a chain, and in the chains that are counted
//! again for one look. While the store is unavailable nothing is read.

use std::sync::Arc;
use std::time::Duration;

use crate::id::KekId;
use crate::service::chain::Chain;
use crate::service::chain::facts::Counted;
use crate::service::core::Core;
use crate::status::Keks;
use crate::store::record::{self, Kek, Record as _, State};
use crate::store::{self, Store as _};

/// How long a status waits for the store.
const PATIENCE: Duration = Duration::from_secs(1);
/// Numbers of this age are counted again.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// Chains that are counted again for one look. Those without numbers are all counted.
const AGAIN: usize = 32;
/// KEKs of a page, and pages of a chain.
const PAGE: usize = 1_000;
const PAGES: usize = 10;

/// Counts the KEKs of those of `chains` whose numbers are missing or old.
pub(super) async fn count(core: &Core, chains: &[Arc<Chain>]) {
    if !core.store.is_up() {
        return;
    }
    let counted = async {
        // One at a time: others that look meanwhile find the numbers.
        let _turn = core.counting.lock().await;
        let mut again = AGAIN;
        for chain in chains {
            let known = chain.published.counted();
            let is_good = known.is_some_and(|known| {
                known.newest == newest(chain) && core.clock.now().since(known.at) < GOOD_FOR
            });
            if is_good || known.is_some() && again == 0 {
                continue;
            }
            again -= usize::from(known.is_some());
            let (newest, at) = (newest(chain), core.clock.now());
            match count_one(core, chain).await {
                Ok(keks) => chain.published.count(Counted { keks, at, newest }),
                // The store reports its own failures.
                Err(_) => return,
            }
        }
    };
    // What is not counted in time keeps its earlier numbers.
    let _ = tokio::time::timeout(PATIENCE, counted).await;
}

/// The primary and the standby, which change with each new KEK.
fn newest(chain: &Chain) -> (Option<KekId>, Option<KekId>) {
    let facts = chain.published.facts();
    let primary = facts.as_ref().and_then(|facts| facts.mark.primary).map(|(id, _)| id);
    (primary, facts.and_then(|facts| facts.standby))
}

async fn count_one(core: &Core, chain: &Chain) -> Result<Keks, store::Error> {
    let prefix = record::keks_prefix(&chain.name);
    let (mut keks, mut after) = (Keks::default(), None::<String>);
    for _ in 0..PAGES {
        let entries = core.store.list(&prefix, after.as_deref(), PAGE).await?;
        let is_last = entries.len() < PAGE;
        after = entries.last().map(|entry| entry.key.clone());
        for entry in entries {
            // Readiness names damaged records.
            if let Ok(kek) = Kek::decode(&entry.key, &entry.value) {
                add(core, &mut keks, &kek);
            }
        }
        if is_last {
            return Ok(keks);
        }
    }
    keks.more = true;
    Ok(keks)
}

fn add(core: &Core, keks: &mut Keks, kek: &Kek) {
    *match kek.state {
        State::Standby => &mut keks.standby,
        State::Primary => &mut keks.primary,
        State::Retired => &mut keks.retired,
        State::Disabled => &mut keks.disabled,
        State::Destroyed => &mut keks.destroyed,
    } += 1;
    if kek.state != State::Destroyed && kek.wraps.len() == 1 {
        keks.one_root += 1;
        keks.local_only += u64::from(core.keyring.roots.exposes(&kek.wraps));
    }
}
