//! Evidence whether a root has the key that wrapped the stored KEKs: which wraps it unwrapped, and
//! which it did not. It calls no root.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};

/// How long a wrong wrap is not tried again before a KEK is created.
const BELIEVED: Duration = Duration::from_secs(5 * 60);
/// The maximum number of KEKs with wrong wraps that are remembered for a root.
const MAX_WRONG: usize = 1_000;
/// The maximum number of these that readiness names.
const NAMED: usize = 8;

type Key = (ChainName, KekId);

/// The evidence for one root.
#[derive(Default)]
pub(super) struct Evidence {
    /// When it last unwrapped a stored KEK of a chain, or wrapped one when it was proven.
    opened: HashMap<ChainName, Monotonic>,
    /// Whether it unwrapped a stored KEK that it did not wrap in this process, and an inline one.
    opened_foreign: bool,
    opened_inline: bool,
    /// KEKs that it wrapped in this process, until it unwraps one that it did not.
    made: HashSet<Key>,
    /// KEKs whose wraps in its name it does not unwrap: they are by another key, or damaged.
    wrong: BTreeMap<Key, Wrong>,
    /// KEKs that it wrapped in this process before it was proven. Unwrapping them proves nothing.
    own: HashSet<Key>,
    /// When it was last found to have the same key as in other processes.
    agreed: Option<Monotonic>,
}

/// A wrap that it did not unwrap.
struct Wrong {
    why: String,
    at: Monotonic,
}

impl Evidence {
    /// It unwrapped a stored KEK.
    pub(super) fn opened(&mut self, chain: &ChainName, id: KekId, now: Monotonic) {
        let key = (chain.clone(), id);
        if !self.own.contains(&key) {
            self.opened.insert(chain.clone(), now);
        }
        if !self.made.contains(&key) {
            self.opened_foreign = true;
            self.made = HashSet::new();
        }
        self.wrong.remove(&key);
    }

    /// It did not unwrap a wrap in its name. Returns whether that is new.
    pub(super) fn not_opened(
        &mut self,
        chain: &ChainName,
        id: KekId,
        why: &str,
        now: Monotonic,
    ) -> bool {
        let key = (chain.clone(), id);
        let is_news = !self.wrong.contains_key(&key);
        if self.wrong.len() < MAX_WRONG || !is_news {
            self.wrong.insert(key, Wrong { why: why.to_owned(), at: now });
        }
        is_news
    }

    /// It unwrapped a KEK that is not stored, but part of an envelope.
    pub(super) fn opened_inline(&mut self, chain: &ChainName, id: KekId) {
        self.opened_inline |= !self.made.contains(&(chain.clone(), id));
    }

    /// It wrapped a KEK of this process that is stored.
    pub(super) fn wrapped(
        &mut self,
        chain: &ChainName,
        id: KekId,
        is_proven: bool,
        now: Monotonic,
    ) {
        if !self.opened_foreign {
            self.made.insert((chain.clone(), id));
        }
        if is_proven {
            self.opened.insert(chain.clone(), now);
        } else {
            self.own.insert((chain.clone(), id));
        }
    }

    /// The KEK was destroyed.
    pub(super) fn forget(&mut self, chain: &ChainName, id: KekId) {
        let key = (chain.clone(), id);
        self.own.remove(&key);
        self.made.remove(&key);
        self.wrong.remove(&key);
    }

    /// It has the same key as in other processes.
    pub(super) fn agree(&mut self, now: Monotonic) {
        self.agreed = Some(now);
    }

    pub(super) fn agreed_at(&self) -> Option<Monotonic> {
        self.agreed
    }

    pub(super) fn opened_at(&self, chain: &ChainName) -> Option<Monotonic> {
        self.opened.get(chain).copied()
    }

    pub(super) fn opened_any(&self) -> bool {
        !self.opened.is_empty()
    }

    /// Whether it unwrapped a KEK that it did not wrap in this process. An inline KEK is weaker
    /// evidence than a stored one: a caller can give the wrap by one root the name of another.
    pub(super) fn opened_any_foreign(&self) -> bool {
        self.opened_foreign || self.opened_inline && self.wrong.is_empty()
    }

    pub(super) fn is_own(&self, chain: &ChainName, id: KekId) -> bool {
        self.own.contains(&(chain.clone(), id))
    }

    pub(super) fn is_wrong(&self, chain: &ChainName, id: KekId, now: Monotonic) -> bool {
        let wrong = self.wrong.get(&(chain.clone(), id));
        wrong.is_some_and(|wrong| now.since(wrong.at) < BELIEVED)
    }

    /// The number of KEKs whose wraps it does not unwrap.
    pub(super) fn wrongs(&self) -> usize {
        self.wrong.len()
    }

    /// Describes the KEKs whose wraps it does not unwrap: their number, and some of their ids.
    pub(super) fn describe(&self) -> Option<String> {
        let (_, Wrong { why, .. }) = self.wrong.first_key_value()?;
        let ids = self.wrong.keys().take(NAMED).map(|(chain, id)| format!("{chain}/{id}"));
        let ids = ids.collect::<Vec<_>>().join(", ");
        let more = if self.wrong.len() > NAMED { ", ..." } else { "" };
        let keks = if self.wrong.len() == 1 { "KEK" } else { "KEKs" };
        let count = self.wrong.len();
        Some(format!("it does not open {count} {keks} that name it ({ids}{more}): {why}"))
    }
}
