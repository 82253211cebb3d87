//! Limits on what callers may cost: rates, look-ups, and unknown names. They know no chain.

pub(super) mod lookup_quota;
pub(super) mod rate_limiter;
pub(super) mod unknown;
