//! When to make a standby KEK, when to promote it, how many uses to reserve: pure functions of
//! what is known, without a clock, a store or a root.

use std::time::Duration;

/// Why a KEK is replaced: the label `reason` of `kms_proxy_rotations_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A chain without a primary gets its first; that is no rotation.
    First,
    /// `rotate_after_uses` are reserved.
    Uses,
    /// It is `rotate_after_age` old.
    Age,
    /// Somebody asked.
    Manual,
    /// A root that should not have wrapped it was removed.
    Root,
}

impl Reason {
    /// The label; `None` for a first KEK.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::First => None,
            Self::Uses => Some("uses"),
            Self::Age => Some("age"),
            Self::Manual => Some("manual"),
            Self::Root => Some("root"),
        }
    }
}

/// When KEKs of a chain are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Uses that start a rotation.
    pub rotate_after_uses: u64,
    /// Uses that are never passed.
    pub max_uses: u64,
    /// Age since promotion that starts a rotation.
    pub rotate_after_age: Duration,
}

/// A primary KEK as far as its replacement goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    /// Uses that are reserved in the store, by all replicas.
    pub reserved: u64,
    /// Those of them that this process has not spent.
    pub unspent: u64,
    /// Time since its promotion, by the wall clock.
    pub age: Duration,
    /// How long this process has known it as primary, by the monotonic clock.
    pub known_for: Duration,
}

/// A rotation by age waits until the primary is known for this long, or for half of
/// `rotate_after_age` if that is less: all replicas together rotate by age once in this time,
/// however wrong their wall clocks are.
pub const AGE_ROTATIONS_APART: Duration = Duration::from_secs(60 * 60);

/// The next step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a KEK, have it wrapped, and store it as standby.
    MakeStandby,
    /// Have the archives hold the standby.
    ArchiveStandby,
    /// Make the standby primary.
    Promote(Reason),
}

/// The KEK that will encrypt next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standby {
    /// The chain has no standby.
    None,
    /// It is stored, and the required archives do not hold it.
    NotArchived,
    /// It may be promoted.
    Ready,
}

/// The next step for a chain, if one is due. A standby is made when the primary is past half of its
/// uses or of its age, so an idle chain costs nothing and a promotion waits for no root.
#[must_use]
pub fn plan(thresholds: &Thresholds, primary: Option<&Primary>, standby: Standby) -> Option<Step> {
    let apart = AGE_ROTATIONS_APART.min(thresholds.rotate_after_age / 2);
    let due = match primary {
        None => Some(Reason::First),
        Some(primary) if primary.reserved >= thresholds.rotate_after_uses => Some(Reason::Uses),
        Some(primary)
            if primary.age >= thresholds.rotate_after_age && primary.known_for >= apart =>
        {
            Some(Reason::Age)
        }
        Some(_) => None,
    };
    match (due, standby, primary) {
        (Some(reason), Standby::Ready, _) => Some(Step::Promote(reason)),
        // Immediately, since it may be needed soon.
        (_, Standby::NotArchived, _) => Some(Step::ArchiveStandby),
        (Some(_), Standby::None, _) => Some(Step::MakeStandby),
        (None, Standby::None, Some(primary))
            if primary.reserved.saturating_sub(primary.unspent)
                > thresholds.rotate_after_uses / 2
                || primary.age > thresholds.rotate_after_age / 2 =>
        {
            Some(Step::MakeStandby)
        }
        _ => None,
    }
}

/// How many uses to reserve: about ten seconds of traffic, at least 16 and at most 1/64 of
/// `max_uses`, at least `waiting` where that allows it, and never past `max_uses`. Zero: none are
/// left.
#[must_use]
pub fn block_size(max_uses: u64, reserved: u64, uses_per_second: f64, waiting: u64) -> u64 {
    // A float to integer cast saturates; a rate is never negative.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let ten_seconds = (uses_per_second * 10.0) as u64;
    let most = (max_uses / 64).max(MIN_BLOCK);
    ten_seconds.max(waiting).clamp(MIN_BLOCK, most).min(max_uses.saturating_sub(reserved))
}

/// The smallest block, where that many uses are left.
const MIN_BLOCK: u64 = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const LIMITS: Thresholds =
        Thresholds { rotate_after_uses: 100, max_uses: 200, rotate_after_age: DAY };

    fn next(reserved: u64, age: Duration, has_standby: bool) -> Option<Step> {
        let standby = if has_standby { Standby::Ready } else { Standby::None };
        let known_for = AGE_ROTATIONS_APART;
        plan(&LIMITS, Some(&Primary { reserved, unspent: 0, age, known_for }), standby)
    }

    #[test]
    fn a_standby_is_made_past_half_and_promoted_at_the_limit() {
        assert_eq!(next(50, DAY / 2, false), None);
        assert_eq!(next(51, Duration::ZERO, false), Some(Step::MakeStandby));
        assert_eq!(next(0, DAY / 2 + Duration::from_secs(1), false), Some(Step::MakeStandby));
        assert_eq!(next(99, DAY / 2, true), None);
        assert_eq!(next(100, Duration::ZERO, true), Some(Step::Promote(Reason::Uses)));
        assert_eq!(next(1, DAY, true), Some(Step::Promote(Reason::Age)));
        assert_eq!(next(100, Duration::ZERO, false), Some(Step::MakeStandby));
    }

    #[test]
    fn uses_that_are_only_reserved_do_not_count_towards_a_standby() {
        let zero = Duration::ZERO;
        let primary = |unspent| Primary { reserved: 60, unspent, age: zero, known_for: zero };
        assert_eq!(plan(&LIMITS, Some(&primary(10)), Standby::None), None);
        assert_eq!(plan(&LIMITS, Some(&primary(9)), Standby::None), Some(Step::MakeStandby));
    }

    #[test]
    fn a_primary_that_seems_old_is_rotated_by_age_once_an_hour() {
        let step = |known_for| {
            let primary = Primary { reserved: 0, unspent: 0, age: 91 * DAY, known_for };
            plan(&LIMITS, Some(&primary), Standby::Ready)
        };
        assert_eq!(step(Duration::ZERO), None);
        assert_eq!(step(AGE_ROTATIONS_APART - Duration::from_secs(1)), None);
        assert_eq!(step(AGE_ROTATIONS_APART), Some(Step::Promote(Reason::Age)));
        let fast = Thresholds { rotate_after_age: Duration::from_secs(60), ..LIMITS };
        let known_for = Duration::from_secs(30);
        let primary = Primary { reserved: 0, unspent: 0, age: DAY, known_for };
        assert_eq!(plan(&fast, Some(&primary), Standby::Ready), Some(Step::Promote(Reason::Age)));
    }

    #[test]
    fn a_standby_that_is_not_archived_is_never_promoted() {
        for reserved in [0, 51, 100, 200] {
            let primary = Primary { reserved, unspent: 0, age: 91 * DAY, known_for: DAY };
            for primary in [None, Some(&primary)] {
                let step = plan(&LIMITS, primary, Standby::NotArchived);
                assert_eq!(step, Some(Step::ArchiveStandby), "{primary:?}");
            }
        }
    }

    #[test]
    fn a_chain_without_a_primary_gets_one() {
        assert_eq!(plan(&LIMITS, None, Standby::None), Some(Step::MakeStandby));
        assert_eq!(plan(&LIMITS, None, Standby::Ready), Some(Step::Promote(Reason::First)));
    }

    #[test]
    fn blocks_follow_the_traffic() {
        let max = 1 << 22;
        assert_eq!(block_size(max, 0, 0.0, 0), 16);
        assert_eq!(block_size(max, 0, 100.0, 0), 1_000);
        assert_eq!(block_size(max, 0, 50_000.0, 0), max / 64);
        assert_eq!(block_size(max, 0, 0.0, 300), 300);
        assert_eq!(block_size(max, max - 5, 100.0, 0), 5);
        assert_eq!(block_size(max, max, 100.0, 1), 0);
        assert_eq!(block_size(200, 0, 1e30, 10_000), 16);
    }

    proptest! {
        #[test]
        fn reserved_never_passes_max_uses(
            max in 1_u64..1 << 33,
            reserved: u64,
            rate in 0.0..1e9,
            waiting: u64,
        ) {
            let reserved = reserved % (max + 1);
            prop_assert!(reserved + block_size(max, reserved, rate, waiting) <= max);
        }
    }
}
