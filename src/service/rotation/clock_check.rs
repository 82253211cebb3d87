//! The age of a primary by the clocks of several machines, one of which may be wrong.

use std::sync::Arc;
use std::time::Duration;

use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::timestamp;

use super::reservations::Reservations;

/// A promotion by another process is seen within this time while the store answers.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
/// The tolerated difference between the clocks of two machines.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60 * 60);

/// The time since the promotion of the primary. If that is in the future by this clock, the time
/// since this process first saw the primary.
pub(super) fn age(reservations: &Reservations, core: &Core, promoted_at: Option<u64>) -> Duration {
    let now = core.clock.unix_now();
    match promoted_at {
        Some(at) if at <= now => Duration::from_secs(now - at),
        Some(_) => reservations.known_for(core.clock.now()),
        None => Duration::ZERO,
    }
}

/// Notes when this process first saw the primary, and whether its clock agrees with that of the
/// promotion.
pub(super) fn know_primary(reservations: &mut Reservations, core: &Core, chain: &Chain) {
    let Some(held) = &reservations.ledger.primary else { return };
    let (id, promoted_at) = (held.id, held.kek.record.promoted_at);
    let before = reservations.known;
    if before.is_some_and(|(known, _)| known == id) {
        return;
    }
    let now = core.clock.now();
    reservations.known = Some((id, now));
    let Some(at) = promoted_at else { return };
    let unix_now = core.clock.unix_now();
    let is_ahead = at.saturating_sub(unix_now) > CLOCKS_DIFFER.as_secs();
    // A promotion that is seen for the first time is recent, except after a start or an outage of
    // the store.
    let is_recent = before.is_some() && core.confirmed_within(now, SEEN_WITHIN);
    let is_behind = is_recent && unix_now.saturating_sub(at) > CLOCKS_DIFFER.as_secs();
    let detail = (is_ahead || is_behind).then(|| {
        let promoted = timestamp::rfc3339(at);
        let here = timestamp::rfc3339(unix_now);
        format!(
            "its primary KEK was promoted at {promoted} by one clock, and the clock of this \
                machine says {here}: one of them is wrong"
        )
    });
    if let Some(detail) = &detail {
        tracing::error!(chain = %chain.name, primary = %id, detail, "clocks disagree");
    }
    chain.clock_fault.store(detail.map(Arc::new));
}
