//! The days on which KEKs were last used, for operators: those that are stored, and those that this
//! process has not stored yet.

use std::collections::HashMap;

use crate::id::{ChainName, KekId};
use crate::keychain::KekPlacement;
use crate::service::core::Core;
use crate::service::error::Error;
use crate::service::last_used::UsedKeks;
use crate::store::record::{self, LastUsed, Record, UsedSince};
use crate::store::{self, Entry, Store as _};
use crate::timestamp::DAY;

/// KEKs that are read by their keys. More of them are read as a range.
const FEW: usize = 32;
/// Records of one read of a range.
const PAGE: usize = 1_000;

/// The days of some KEKs of a chain.
#[derive(Default)]
pub(in crate::service) struct Usage {
    /// The day from which on they are known.
    pub(in crate::service) since: Option<u32>,
    /// `None` if the record of a KEK can't be read.
    of: HashMap<KekId, Option<LastUsed>>,
}

impl Usage {
    /// The days of a KEK, and the day from which on they are known. If its record can't be read,
    /// nothing is known: it may have later days than this process.
    pub(in crate::service) fn of(&self, id: KekId) -> (LastUsed, Option<u32>) {
        match self.of.get(&id) {
            Some(None) => (LastUsed::default(), None),
            Some(Some(days)) => (*days, self.since),
            None => (LastUsed::default(), self.since),
        }
    }
}

impl Core {
    /// The days of `ids`, which are in the order of the store.
    pub(in crate::service) async fn usage(
        &self,
        chain: &ChainName,
        ids: &[KekId],
    ) -> Result<Usage, Error> {
        let mut usage = match self.stored_usage(chain, ids).await {
            Ok(usage) => usage,
            // The KEKs are shown without what is damaged.
            Err(store::Error::Corrupt { key, detail }) => {
                tracing::warn!(key, detail, "the days on which KEKs were used can't be read");
                Usage::default()
            }
            Err(error) => return Err(self.store_error(chain, error)),
        };
        for &id in ids {
            let used = self.used.of(chain, id);
            let days = usage.of.entry(id).or_insert_with(|| Some(LastUsed::default()));
            *days = days.map(|days| days.max(used));
        }
        Ok(usage)
    }

    async fn stored_usage(&self, chain: &ChainName, ids: &[KekId]) -> Result<Usage, store::Error> {
        if self.placement == KekPlacement::Inline {
            let since = u32::try_from(self.started_at / DAY).ok();
            return Ok(Usage { since, of: HashMap::new() });
        }
        let since_key = record::used_since_key(chain);
        if ids.len() > FEW {
            let since = self.store.get(&since_key).await?;
            let since = since.and_then(|entry| self.day(&entry));
            return Ok(Usage { since, of: self.range(chain, ids).await? });
        }
        let mut keys: Vec<_> = ids.iter().map(|&id| record::last_used_key(chain, id)).collect();
        keys.push(since_key);
        let mut read = self.store.get_all(&keys).await?;
        let since = read.pop().flatten();
        let days = ids.iter().zip(read);
        let days = days.filter_map(|(&id, entry)| Some((id, self.last_used(&entry?))));
        Ok(Usage { since: since.and_then(|entry| self.day(&entry)), of: days.collect() })
    }

    /// The stored days of the KEKs from the first to the last of `ids`.
    async fn range(
        &self,
        chain: &ChainName,
        ids: &[KekId],
    ) -> Result<HashMap<KekId, Option<LastUsed>>, store::Error> {
        let mut of = HashMap::new();
        let (Some(&first), Some(&last)) = (ids.first(), ids.last()) else { return Ok(of) };
        let prefix = record::last_used_prefix(chain);
        let [mut after, last] = [first, last].map(|id| record::last_used_key(chain, id));
        // The first key without its last digit is before it.
        after.pop();
        loop {
            let entries = self.store.list(&prefix, Some(&after), PAGE).await?;
            let is_end = entries.len() < PAGE;
            for entry in entries {
                let id = entry.key.strip_prefix(&prefix).and_then(|id| id.parse().ok());
                of.extend(id.map(|id| (id, self.last_used(&entry))));
                after = entry.key;
            }
            if is_end || after >= last {
                return Ok(of);
            }
        }
    }

    fn last_used(&self, entry: &Entry) -> Option<LastUsed> {
        self.used.read(&entry.key, entry)
    }

    fn day(&self, entry: &Entry) -> Option<u32> {
        self.used.read::<UsedSince>(&entry.key, entry).map(|since| since.day)
    }
}

impl UsedKeks {
    /// The record in `entry`; `None` if it can't be read, which is logged once.
    pub(super) fn read<R: Record>(&self, key: &str, entry: &Entry) -> Option<R> {
        R::decode(key, &entry.value).map_err(|error| self.report_unreadable(key, &error)).ok()
    }
}
