//! The store that replicas share: an etcd cluster.
//!
//! Keys have a prefix; revisions are etcd's `mod_revision`. All reads are linearizable and every
//! call has a deadline. `members` chooses the member to call. What records mean is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Compare as EtcdCompare, CompareOp, GetOptions, KeyValue, TxnOp, TxnOpResponse};

use super::{Committed, Compare, Entry, Error, Revision, Txn};

mod credentials;
mod failure;
mod members;
mod refresh;
mod setup;
mod watch;

#[cfg(test)]
mod tests;

use failure::CallError;
use members::Members;

pub use super::settings::{Etcd as Config, EtcdTls as Tls};

/// Keys of one read: by default, etcd allows 128 operations in a transaction.
const KEYS: usize = 64;
/// Entries of one read of a list: gRPC messages have at most 4 MiB, and records have about 1 KB.
const PAGE: usize = 500;

impl Config {
    /// The prefix of all keys, with a `/` at its end.
    fn prefix(&self) -> String {
        format!("{}/", self.prefix.trim_end_matches('/'))
    }
}

/// A store in an etcd cluster.
pub struct Store {
    members: Arc<Members>,
    /// Ends with `/`.
    prefix: Arc<str>,
}

impl Store {
    /// Connects, and reads once, so that wrong addresses, certificates and passwords are reported
    /// now. Waits up to half a minute for a member that answers.
    ///
    /// # Errors
    /// A message for an operator.
    pub async fn open(config: &Config) -> Result<Self, String> {
        let store = Self::connect(config)?;
        setup::first_read(&store).await?;
        Ok(store)
    }

    /// Creates the store without a call, so all members may be unavailable. Must be called in a
    /// runtime.
    ///
    /// # Errors
    /// What is wrong with the settings or the files that they name, for an operator.
    pub fn connect(config: &Config) -> Result<Self, String> {
        let (members, digest) = setup::members(config)?;
        let members = Arc::new(members);
        if config.has_files() {
            tokio::spawn(refresh::follow(config.clone(), digest, Arc::downgrade(&members)));
        }
        Ok(Self { members, prefix: config.prefix().into() })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        let key = kv.key_str().ok()?.strip_prefix(&*self.prefix)?;
        Some(Entry {
            key: key.to_owned(),
            value: kv.value().to_vec(),
            revision: revision(kv.mod_revision()),
        })
    }

    /// The entries from `start` up to `end`, at most `limit`.
    async fn range(&self, start: String, end: String, limit: usize) -> Result<Vec<Entry>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let options = GetOptions::new().with_range(end).with_limit(limit);
        let answer = self.members.get(start, Some(options)).await?;
        Ok(answer.kvs().iter().filter_map(|kv| self.entry(kv)).collect())
    }

    /// The end of the range of all keys that start with `prefix`, which ends with an ASCII byte.
    fn range_end(&self, prefix: &str) -> String {
        let mut end = self.key(prefix).into_bytes();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        String::from_utf8_lossy(&end).into_owned()
    }
}

#[async_trait]
impl super::Store for Store {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let answer = self.members.get(self.key(key), None).await?;
        Ok(answer.kvs().first().and_then(|kv| self.entry(kv)))
    }

    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        let mut entries = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS) {
            let gets: Vec<_> = keys.iter().map(|key| TxnOp::get(self.key(key), None)).collect();
            let answer = self.members.read(etcd_client::Txn::new().and_then(gets)).await?;
            entries.extend(answer.op_responses().iter().map(|one| match one {
                TxnOpResponse::Get(one) => one.kvs().first().and_then(|kv| self.entry(kv)),
                _ => None,
            }));
        }
        Ok(entries)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        let end = self.range_end(prefix);
        let mut start = match after {
            Some(after) if after >= prefix => format!("{}\0", self.key(after)),
            _ => self.key(prefix),
        };
        let mut entries = Vec::new();
        while entries.len() < limit && start < end {
            let wanted = PAGE.min(limit - entries.len());
            let page = self.range(start, end.clone(), wanted).await?;
            let Some(last) = page.last() else { break };
            start = format!("{}\0", self.key(&last.key));
            let full = page.len() == wanted;
            entries.extend(page);
            if !full {
                break;
            }
        }
        Ok(entries)
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        let (start, end) = (self.key(prefix), self.range_end(prefix));
        let options = GetOptions::new().with_range(end).with_count_only();
        let answer = self.members.get(start, Some(options)).await?;
        Ok(u64::try_from(answer.count()).unwrap_or(0))
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let compares: Vec<_> = txn
            .compares
            .iter()
            .map(|compare| match compare {
                Compare::Absent(key) => EtcdCompare::version(self.key(key), CompareOp::Equal, 0),
                Compare::Unchanged(key, Revision(revision)) => {
                    // etcd's revision of an absent key is 0. No entry has that revision, nor one
                    // that does not fit etcd's type.
                    let revision = match i64::try_from(*revision) {
                        Ok(0) | Err(_) => i64::MAX,
                        Ok(revision) => revision,
                    };
                    EtcdCompare::mod_revision(self.key(key), CompareOp::Equal, revision)
                }
            })
            .collect();
        // etcd accepts each key only once: the last write counts.
        let deletes = txn.deletes.iter().map(|key| (key, None));
        let puts = txn.puts.iter().map(|(key, value)| (key, Some(value)));
        let writes: BTreeMap<_, _> = deletes.chain(puts).collect();
        let writes: Vec<_> = writes
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => TxnOp::put(self.key(key), value.clone(), None),
                None => TxnOp::delete(self.key(key), None),
            })
            .collect();
        let txn = etcd_client::Txn::new().when(compares).and_then(writes);
        let answer = self.members.write(txn).await?;
        if !answer.succeeded() {
            return Ok(Committed::Conflict);
        }
        let at = answer.header().map_or(0, |header| header.revision());
        Ok(Committed::Applied(revision(at)))
    }

    fn restores(&self) -> u64 {
        self.members.history.count()
    }

    fn watch(&self) -> Option<Box<dyn super::Watch>> {
        let (members, prefix) = (Arc::clone(&self.members), Arc::clone(&self.prefix));
        Some(Box::new(watch::Watch::start(members, prefix)))
    }

    fn kind(&self) -> &'static str {
        "etcd"
    }
}

impl From<CallError> for Error {
    fn from(failure: CallError) -> Self {
        Self::Unavailable { detail: failure.detail, maybe_applied: failure.maybe_applied }
    }
}

/// etcd's revisions start at 1.
fn revision(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}
