//! Whether a root is the one that wrapped the KEKs of the store: what it opened, and what it did not.
//! It calls no root.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};

/// How long a wrap that is wrong is not tried again before a KEK is made.
const BELIEVED: Duration = Duration::from_secs(5 * 60);
/// KEKs with wrong wraps that are remembered of a root.
const MAX_WRONG: usize = 1_000;
/// Of these, those that readiness names.
const NAMED: usize = 8;

type Key = (ChainName, KekId);

/// What one root opened, and what it did not.
#[derive(Default)]
pub(super) struct Evidence {
    /// When it last opened, or wrapped, a stored KEK of a chain.
    opened: HashMap<ChainName, Monotonic>,
    /// KEKs whose wraps by it did not open: the wrap is of another key, or damaged.
    wrong: BTreeMap<Key, Wrong>,
    /// KEKs that it wrapped in this process without being proven. That it opens them proves nothing.
    own: HashSet<Key>,
    /// When it was last found to be the root that other processes have under its name.
    agreed: Option<Monotonic>,
}

/// A wrap that did not open.
struct Wrong {
    why: String,
    at: Monotonic,
}

impl Evidence {
    /// It opened a stored KEK.
    pub(super) fn opened(&mut self, chain: &ChainName, id: KekId, now: Monotonic) {
        let key = (chain.clone(), id);
        if !self.own.contains(&key) {
            self.opened.insert(chain.clone(), now);
        }
        self.wrong.remove(&key);
    }

    /// A wrap that names it did not open. Returns whether that is news.
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

    /// This process had it wrap a KEK that is stored.
    pub(super) fn wrapped(
        &mut self,
        chain: &ChainName,
        id: KekId,
        is_proven: bool,
        now: Monotonic,
    ) {
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
        self.wrong.remove(&key);
    }

    /// It is the root that other processes have under its name.
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

    pub(super) fn is_own(&self, chain: &ChainName, id: KekId) -> bool {
        self.own.contains(&(chain.clone(), id))
    }

    pub(super) fn is_wrong(&self, chain: &ChainName, id: KekId, now: Monotonic) -> bool {
        let wrong = self.wrong.get(&(chain.clone(), id));
        wrong.is_some_and(|wrong| now.since(wrong.at) < BELIEVED)
    }

    /// KEKs whose wraps by it did not open.
    pub(super) fn wrongs(&self) -> usize {
        self.wrong.len()
    }

    /// The KEKs whose wraps by it did not open: their number, and some of them by id.
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
