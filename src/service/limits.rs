//! What callers may cost: rates, look-ups, and unknown names. No chain is known here.

pub(super) mod lookup_quota;
pub(super) mod rate_limiter;
pub(super) mod unknown;
