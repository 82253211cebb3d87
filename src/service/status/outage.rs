//! What of a chain still works while the store or its roots are away, and until when. It looks at
//! memory only.

use std::time::Duration;

use crate::clock::Monotonic;
use crate::service::Config;
use crate::service::chain::Chain;
use crate::service::chain::facts::{Facts, StandbyState};
use crate::service::core::Core;
use crate::status::Outage;
use crate::timestamp::rfc3339;

use super::Now;

/// The outage that `chain` suffers from; `None` without one. `facts` are what its records were.
pub(super) fn of_chain(
    core: &Core,
    chain: &Chain,
    facts: Option<&Facts>,
    now: Now,
) -> Option<Outage> {
    let is_store_away = !core.store.is_up();
    let wrapped_by = facts.map(|facts| &*facts.roots).unwrap_or_default();
    let roots = core.keyring.roots.unanswered(wrapped_by);
    // A chain without a KEK has no roots yet. A caller may not know the names of all.
    let are_all_away = wrapped_by.is_empty() && !core.keyring.roots.is_any_up();
    if !is_store_away && roots.is_empty() && !are_all_away {
        return None;
    }
    let snapshot = chain.snapshot();
    let budget = snapshot.budget();
    let left = budget.map_or(0, |budget| budget.left(now.monotonic));
    let expires = budget.and_then(|budget| budget.void_at(now.monotonic));
    let can_reserve = !is_store_away && budget.is_some() && facts.is_some_and(has_uses);
    let until_store = is_store_away.then(|| decrypts_until(core)).flatten();
    let until_roots = (!roots.is_empty()).then(|| opened_until(core, chain, facts)).flatten();
    let causes = is_store_away.then(|| "store".to_owned()).into_iter();
    let roots = roots.iter().map(|name| format!("root:{name}"));
    Some(Outage {
        causes: causes.chain(roots).chain(are_all_away.then(|| "roots".to_owned())).collect(),
        encrypts_left: (!can_reserve).then_some(left),
        encrypts_until: expires
            .filter(|at| !can_reserve && *at < Monotonic::NEVER)
            .map(|at| now.text(at)),
        decrypts_until: until_store.into_iter().chain(until_roots).min().map(|at| now.text(at)),
        holds_primary: budget.is_some(),
    })
}

/// Until when KEKs in memory decrypt while the store is away; `None` without a limit.
pub(super) fn decrypts_until(core: &Core) -> Option<Monotonic> {
    core.shared.then(|| core.confirmed_at() + core.config.cache.offline_grace)
}

/// Whether the primary has uses that are not reserved, or another KEK can take over.
fn has_uses(facts: &Facts) -> bool {
    facts.mark.reserved < facts.limits.max_uses || facts.mark.standby == StandbyState::Ready
}

/// Until when the primary stays in memory if its roots do not answer.
fn opened_until(core: &Core, chain: &Chain, facts: Option<&Facts>) -> Option<Monotonic> {
    let (id, _) = facts?.mark.primary?;
    let checked = core.keyring.checked_at(&chain.name, id)?;
    let record = core.keyring.remembered(&chain.name, id)?;
    let Config { cache, .. } = &core.config;
    // A root that denies access ends the use of a KEK at its next check.
    let is_away = core.keyring.roots.is_away(&record);
    let grace = if is_away { cache.offline_grace } else { Duration::ZERO };
    Some(checked + cache.kek_max_age + grace)
}

impl Now {
    /// A moment of monotonic time, as RFC 3339.
    pub(super) fn text(self, at: Monotonic) -> String {
        let ahead = at.since(self.monotonic).as_secs();
        let behind = self.monotonic.since(at).as_secs();
        rfc3339(self.unix.saturating_add(ahead).saturating_sub(behind))
    }
}
