//! What the records of a chain last were, for its status: the reserver publishes it, so that a
//! reader waits for no call of the store. It makes no call itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use crate::clock::Monotonic;
use crate::id::{KekId, Suite};
use crate::status::Keks;
use crate::store::Revision;
use crate::store::record::Limits;

/// How far the KEK is that will encrypt next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum StandbyState {
    /// It does not exist yet.
    None,
    /// This process has not unwrapped it yet.
    NotLoaded,
    /// The required archives do not hold it yet.
    NotArchived,
    /// It can be promoted.
    Ready,
}

impl StandbyState {
    pub(in crate::service) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NotLoaded => "not_loaded",
            Self::NotArchived => "not_archived",
            Self::Ready => "ready",
        }
    }
}

/// The records of a chain.
#[derive(Clone, Debug)]
pub(in crate::service) struct Facts {
    pub(in crate::service) mark: Mark,
    pub(in crate::service) suite: Suite,
    pub(in crate::service) limits: Limits,
    pub(in crate::service) inline: bool,
    pub(in crate::service) standby: Option<KekId>,
    pub(in crate::service) promoted_at: Option<u64>,
    pub(in crate::service) exposed: bool,
    /// The roots that wrapped the primary.
    pub(in crate::service) roots: Vec<String>,
}

/// What differs between two readings of the records that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) struct Mark {
    pub(in crate::service) head: Revision,
    pub(in crate::service) primary: Option<(KekId, Revision)>,
    /// Uses of the primary that are reserved.
    pub(in crate::service) reserved: u64,
    pub(in crate::service) standby: StandbyState,
}

/// The numbers of KEKs of a chain as the store had them.
#[derive(Clone, Copy, Debug)]
pub(in crate::service) struct Counted {
    pub(in crate::service) keks: Keks,
    pub(in crate::service) at: Monotonic,
    /// The primary and the standby at that time.
    pub(in crate::service) newest: (Option<KekId>, Option<KekId>),
}

/// The latest facts of a chain.
#[derive(Default)]
pub(in crate::service) struct Published {
    facts: ArcSwapOption<Facts>,
    counted: ArcSwapOption<Counted>,
    /// The uses that were reserved, by all replicas, since this process first saw the chain.
    uses: AtomicU64,
}

impl Published {
    /// Publishes what `facts` makes, unless the records are those of `mark` already.
    pub(in crate::service) fn note(&self, mark: Mark, facts: impl FnOnce(Mark) -> Facts) {
        let before = self.facts.load();
        let known = before.as_ref().map(|facts| facts.mark);
        if known == Some(mark) {
            return;
        }
        let id = |mark: Mark| mark.primary.map(|(id, _)| id);
        let new_uses = match known {
            // The block of a first KEK is no traffic.
            None | Some(Mark { primary: None, .. }) => 0,
            Some(known) if id(known) == id(mark) => mark.reserved.saturating_sub(known.reserved),
            Some(_) => mark.reserved,
        };
        self.uses.fetch_add(new_uses, Ordering::Relaxed);
        self.facts.store(Some(Arc::new(facts(mark))));
    }

    /// The latest facts; `None` before the records were read.
    pub(in crate::service) fn facts(&self) -> Option<Arc<Facts>> {
        self.facts.load_full()
    }

    /// Uses that were reserved since this process first saw the chain.
    pub(in crate::service) fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }

    pub(in crate::service) fn count(&self, counted: Counted) {
        self.counted.store(Some(Arc::new(counted)));
    }

    pub(in crate::service) fn counted(&self) -> Option<Counted> {
        self.counted.load().as_deref().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_grow_over_rotations_and_start_with_what_was_seen_first() {
        let published = Published::default();
        let [one, two] = [[1; 16], [2; 16]].map(|key| KekId::of_key(&key));
        let note = |primary: Option<KekId>, reserved: u64| {
            let primary = primary.map(|id| (id, Revision(1)));
            let mark = Mark { head: Revision(1), primary, reserved, standby: StandbyState::None };
            published.note(mark, |mark| Facts {
                mark,
                suite: Suite::default(),
                limits: Limits::default(),
                inline: false,
                standby: None,
                promoted_at: None,
                exposed: false,
                roots: Vec::new(),
            });
            published.uses()
        };
        assert!(published.facts().is_none());
        assert_eq!(note(None, 0), 0);
        assert_eq!(note(Some(one), 1_000), 0);
        assert_eq!(note(Some(one), 1_016), 16);
        assert_eq!(note(Some(one), 1_016), 16);
        assert_eq!(note(Some(two), 16), 32);
        // A restored store: nothing was reserved.
        assert_eq!(note(Some(two), 0), 32);
        assert_eq!(published.facts().unwrap().mark.reserved, 0);
    }
}
