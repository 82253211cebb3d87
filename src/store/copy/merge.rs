//! Which records of the target a copy may replace: pure decisions about one record each.
//!
//! A record is written if the target has none, or if the target's is an earlier state of the same
//! record. If the target's is newer, or has another history, the copy is refused.

use std::cmp::Ordering;

use crate::store::record::{Head, Kek, State, Uses};

use super::Primaries;

/// The record to write, or `None` if the target's needs no change; or the reason of a refusal.
pub(super) type Decision<R> = Result<Option<R>, String>;

/// The head of the copy. Retiring the primary and the standby counts as one change.
pub(super) fn copied_head(head: &Head, primaries: Primaries) -> Head {
    match (primaries, head.primary.or(head.standby)) {
        (Primaries::Retire, Some(_)) => Head {
            primary: None,
            standby: None,
            generation: head.generation.saturating_add(1),
            ..head.clone()
        },
        _ => head.clone(),
    }
}

/// The KEK of the copy.
pub(super) fn copied_kek(kek: &Kek, primaries: Primaries) -> Kek {
    match (primaries, kek.state) {
        (Primaries::Retire, State::Standby | State::Primary) => {
            Kek { state: State::Retired, ..kek.clone() }
        }
        _ => kek.clone(),
    }
}

/// Decides on a head.
pub(super) fn head(copied: Head, target: Option<&Head>) -> Decision<Head> {
    let Some(target) = target else { return Ok(Some(copied)) };
    if *target == copied {
        return Ok(None);
    }
    if target.suite != copied.suite {
        return Err(format!("the target's chain is another one: its suite is {}", target.suite));
    }
    let (theirs, ours) = (target.generation, copied.generation);
    match theirs.cmp(&ours) {
        Ordering::Less if target.roots_generation > copied.roots_generation => {
            Err("the target's set of roots is newer".to_owned())
        }
        Ordering::Less => Ok(Some(copied)),
        Ordering::Equal => Err(format!("the target's is another one of generation {theirs}")),
        Ordering::Greater => Err(format!(
            "the target's is newer: its generation is {theirs}, that of the copy would be {ours}"
        )),
    }
}

/// Decides on a KEK. `newer_roots`: the source's set of roots is newer than the target's.
pub(super) fn kek(copied: Kek, target: Option<&Kek>, newer_roots: bool) -> Decision<Kek> {
    let Some(target) = target else { return Ok(Some(copied)) };
    // Tombstones do not differ.
    if *target == copied || (target.state, copied.state) == (State::Destroyed, State::Destroyed) {
        return Ok(None);
    }
    if (target.suite, target.created_at) != (copied.suite, copied.created_at) {
        return Err("the target's is another KEK with the same id".to_owned());
    }
    if target.state == State::Destroyed {
        return Err("the target's was destroyed, and a tombstone is never replaced".to_owned());
    }
    if target.progress() > copied.progress() {
        let (theirs, ours) = (target.state.as_str(), copied.state.as_str());
        return Err(format!("the target's is newer: it is {theirs}, here it is {ours}"));
    }
    if target.promoted_at.is_some() && target.promoted_at != copied.promoted_at {
        return Err("the target's became primary at another time".to_owned());
    }
    if target.exposed && !copied.exposed {
        return Err("the target's is newer: a local root wrapped it".to_owned());
    }
    match target
        .wrap_missing_in(&copied)
        .filter(|_| !newer_roots && copied.state != State::Destroyed)
    {
        Some(wrap) => Err(format!("the target's wrap by root {} is not here", wrap.root)),
        None => Ok(Some(copied)),
    }
}

/// Decides on the uses of a KEK.
pub(super) fn uses(copied: Uses, target: Option<&Uses>) -> Decision<Uses> {
    let Some(target) = target else { return Ok(Some(copied)) };
    if *target == copied {
        return Ok(None);
    }
    let (theirs, ours) = (target.reserved, copied.reserved);
    match theirs.cmp(&ours) {
        Ordering::Less => Ok(Some(copied)),
        Ordering::Equal => Err(format!("the target's {theirs} uses were reserved by others")),
        Ordering::Greater => {
            Err(format!("the target's is newer: {theirs} uses are reserved there, {ours} here"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{KekId, Suite};
    use crate::store::record::Wrap;

    const GOOD: Kek = Kek {
        suite: Suite::Aes128Gcm,
        state: State::Retired,
        created_at: 1,
        promoted_at: Some(2),
        disabled_at: None,
        exposed: false,
        wraps: Vec::new(),
    };

    fn wrap(root: &str, byte: u8) -> Wrap {
        Wrap { root: root.to_owned(), bytes: vec![byte] }
    }

    #[test]
    fn a_kek_only_goes_forward_in_its_life() {
        let at = |state, promoted_at, disabled_at| Kek { state, promoted_at, disabled_at, ..GOOD };
        let life = [
            at(State::Standby, None, None),
            at(State::Primary, Some(2), None),
            at(State::Retired, Some(2), None),
            at(State::Disabled, Some(2), Some(5)),
            at(State::Retired, Some(2), Some(5)),
            at(State::Disabled, Some(2), Some(9)),
            at(State::Destroyed, Some(2), Some(9)),
        ];
        for (new, copied) in life.iter().enumerate() {
            assert_eq!(kek(copied.clone(), None, false), Ok(Some(copied.clone())));
            for (old, target) in life.iter().enumerate() {
                let decided = kek(copied.clone(), Some(target), false);
                match new.cmp(&old) {
                    Ordering::Less => assert!(decided.is_err(), "{target:?} -> {copied:?}"),
                    Ordering::Equal => assert_eq!(decided, Ok(None)),
                    Ordering::Greater => assert_eq!(decided, Ok(Some(copied.clone()))),
                }
            }
        }
    }

    #[test]
    fn another_kek_and_lost_wraps_are_refused() {
        let target = Kek { wraps: vec![wrap("a", 1), wrap("b", 2)], ..GOOD };
        let with = |wraps| Kek { wraps, ..GOOD };
        let more = with(vec![wrap("b", 2), wrap("c", 3), wrap("a", 1)]);
        assert_eq!(kek(more.clone(), Some(&target), false), Ok(Some(more)));
        for lost in [with(vec![wrap("a", 1)]), with(vec![wrap("a", 1), wrap("b", 3)])] {
            assert!(kek(lost.clone(), Some(&target), false).is_err());
            assert_eq!(kek(lost.clone(), Some(&target), true), Ok(Some(lost)));
        }
        for other in [
            Kek { suite: Suite::Aes256Gcm, ..target.clone() },
            Kek { created_at: 2, ..target.clone() },
            Kek { promoted_at: Some(3), ..target.clone() },
            Kek { promoted_at: None, ..target.clone() },
        ] {
            assert!(kek(other.clone(), Some(&target), true).is_err(), "{other:?}");
        }
        let exposed = Kek { exposed: true, ..target.clone() };
        assert!(kek(target.clone(), Some(&exposed), true).is_err());
        assert_eq!(kek(exposed.clone(), Some(&target), false), Ok(Some(exposed)));
    }

    #[test]
    fn uses_never_fall() {
        let at = |reserved, owner| Uses { reserved, owner, sequence: 1 };
        assert_eq!(uses(at(5, 1), None), Ok(Some(at(5, 1))));
        assert_eq!(uses(at(5, 1), Some(&at(4, 2))), Ok(Some(at(5, 1))));
        assert_eq!(uses(at(5, 1), Some(&at(5, 1))), Ok(None));
        assert!(uses(at(5, 1), Some(&at(5, 2))).unwrap_err().contains("by others"));
        assert!(uses(at(5, 1), Some(&at(6, 1))).unwrap_err().contains("newer"));
    }

    #[test]
    fn a_head_only_grows_and_a_retired_one_is_a_change_more() {
        let id = KekId::from_bytes([1; 16]);
        let at = |generation, primary| Head {
            suite: Suite::Aes128Gcm,
            limits: crate::store::record::Limits::default(),
            primary,
            standby: None,
            generation,
            roots_generation: 1,
            named_root: None,
            repair: None,
            inline: false,
        };
        assert_eq!(copied_head(&at(3, Some(id)), Primaries::Keep), at(3, Some(id)));
        assert_eq!(copied_head(&at(3, Some(id)), Primaries::Retire), at(4, None));
        assert_eq!(copied_head(&at(4, None), Primaries::Retire), at(4, None));
        assert_eq!(head(at(3, None), None), Ok(Some(at(3, None))));
        assert_eq!(head(at(3, None), Some(&at(2, Some(id)))), Ok(Some(at(3, None))));
        assert_eq!(head(at(3, None), Some(&at(3, None))), Ok(None));
        assert!(head(at(3, None), Some(&at(3, Some(id)))).is_err());
        assert!(head(at(3, None), Some(&at(4, None))).is_err());
        let other = Head { suite: Suite::Aes256Gcm, ..at(2, None) };
        assert!(head(at(3, None), Some(&other)).is_err());
        let roots = Head { roots_generation: 2, ..at(2, None) };
        assert!(head(at(3, None), Some(&roots)).is_err());
    }
}
