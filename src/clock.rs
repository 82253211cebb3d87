//! Time, passed in: [`Clock`], the real [`SystemClock`] and the [`ManualClock`] of tests.
//!
//! A leaf. Records contain wall time. [`Monotonic`] time bounds the life of what is in memory,
//! since a wall clock may be set back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A source of time. Calls are cheap: every request makes two.
pub trait Clock: Send + Sync + 'static {
    /// Wall time in whole seconds since the Unix epoch.
    fn unix_now(&self) -> u64;

    /// Wall time in milliseconds since the Unix epoch.
    fn unix_millis(&self) -> u64 {
        self.unix_now().saturating_mul(1_000)
    }

    /// Time since some fixed point in the past; it never goes back.
    fn now(&self) -> Monotonic;
}

/// A point in monotonic time, in nanoseconds since the clock's zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(u64);

impl Monotonic {
    /// Later than any time of a clock.
    pub const NEVER: Self = Self(u64::MAX);

    /// The point `nanos` nanoseconds after the clock's own zero.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's own zero.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Monotonic {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The machine's clocks. The monotonic time continues while the machine is suspended, so that a
/// block of uses expires in the meantime.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The clock.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

#[cfg(target_os = "linux")]
const MONOTONIC: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const MONOTONIC: ClockId = ClockId::Monotonic;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    fn unix_now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    fn unix_millis(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn now(&self) -> Monotonic {
        // The time since boot is never negative.
        let time = clock_gettime(MONOTONIC);
        let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
        Monotonic::default() + seconds + Duration::from_nanos(time.tv_nsec.unsigned_abs())
    }
}

/// A clock that only moves when a test moves it; both of its times move together.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock at 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU64::new(1_767_225_600 * NANOS))
    }

    /// A clock at this time, in seconds since the Unix epoch.
    #[cfg(test)]
    pub(crate) fn at(unix: u64) -> Self {
        Self(AtomicU64::new(unix * NANOS))
    }

    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn unix_now(&self) -> u64 {
        self.0.load(Ordering::SeqCst) / NANOS
    }

    fn now(&self) -> Monotonic {
        Monotonic(self.0.load(Ordering::SeqCst))
    }
}

const NANOS: u64 = 1_000_000_000;
