//! Rebuilds a store from archives. It is safe to interrupt and to repeat.
//!
//! Every KEK becomes retired: how often it was used is not known, so all its uses count as
//! reserved, and the service makes new primaries. A record that the store has stays as it is,
//! except that the tombstone of an archive replaces it. The key of the audit log is restored too.
//! Roots are not involved.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::task::JoinSet;

use crate::id::{ChainName, KekId};
use crate::store::record::{self, Head, Kek, Limits, Record as _, State, Uses};
use crate::store::{self, Committed, Compare, Pair, Problem, Store, Txn, head, pairs};

use super::object::{self, Chain, Damaged, Merged, Part, Wraps};
use super::{Archive, Error, Named};

pub mod audit_key;

/// KEKs in a transaction: two records of each, and one of etcd may have 128 operations.
const PAGE: usize = 32;

/// Pages that are recovered at the same time. The file store makes their transactions durable
/// together, which takes as long as one alone.
const PAGES: usize = 4;

/// Keys in a list.
const KEYS: usize = 10_000;

/// How often a page is written again when other processes write at the same time.
const TRIES: usize = 8;

/// The result of a recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Chains whose KEKs are all in the store now.
    pub chains: u64,
    /// KEKs in the archives.
    pub keks: u64,
    /// KEKs that were written to the store.
    pub restored: u64,
    /// KEKs that the store had.
    pub same: u64,
    /// KEKs that the store had, and that an archive had as destroyed: they are destroyed now.
    pub destroyed: u64,
    /// Whether the key of the audit log was written to the store.
    pub audit_key: bool,
    /// What could not be read, and why.
    pub problems: Vec<Problem>,
}

impl Report {
    fn add(&mut self, more: Self) {
        self.chains += more.chains;
        self.keks += more.keks;
        self.restored += more.restored;
        self.same += more.same;
        self.destroyed += more.destroyed;
        self.audit_key |= more.audit_key;
        self.problems.extend(more.problems);
    }
}

/// Fills `to` from `archives`. An archive that is unavailable is a problem, as long as another one
/// is not. Calls `progress` from time to time.
///
/// # Errors
/// [`store::Error`] if the store is unavailable. What was written until then is valid, and
/// repeating the recovery continues from there.
pub async fn recover(
    archives: &[Named],
    to: &dyn Store,
    mut progress: impl FnMut(&Report),
) -> Result<Report, store::Error> {
    let mut report = Report::default();
    let (readable, chains) = keys(archives, &mut report.problems).await;
    for (chain, ids) in chains {
        let before = report.problems.len();
        let recovery = Recovery { archives: &readable, to, chain: &chain };
        recovery.run(ids, &mut report, &mut progress).await?;
        report.chains += u64::from(report.problems.len() == before);
        progress(&report);
    }
    report.audit_key = audit_key::recover(&readable, to, &mut report.problems).await?;
    Ok(report)
}

/// The ids of KEKs, by their chains.
pub(super) type Chains = BTreeMap<ChainName, BTreeSet<KekId>>;

/// The KEKs of all archives, and the archives that could be listed.
async fn keys(archives: &[Named], problems: &mut Vec<Problem>) -> (Vec<Named>, Chains) {
    let (mut readable, mut chains) = (Vec::new(), Chains::new());
    for named in archives {
        match keys_of(named).await {
            Ok((found, strays)) => {
                for (chain, ids) in found {
                    chains.entry(chain).or_default().extend(ids);
                }
                problems.extend(strays);
                readable.push(named.clone());
            }
            Err(error) => problems.push(at(named, object::PREFIX, &error.to_string())),
        }
    }
    (readable, chains)
}

/// The KEKs of an archive, and its keys that are not those of objects.
pub(super) async fn keys_of(named: &Named) -> Result<(Chains, Vec<Problem>), Error> {
    let (mut found, mut strays, mut after) = (Chains::new(), Vec::new(), None);
    loop {
        let page = named.archive.list(object::PREFIX, after.as_deref(), KEYS).await?;
        for key in &page {
            match object::parse_key(key) {
                Some((chain, Part::Chain)) => _ = found.entry(chain).or_default(),
                Some((chain, Part::Kek(id))) => _ = found.entry(chain).or_default().insert(id),
                None => strays.push(at(named, key, "this key is not that of an object")),
            }
        }
        match page.into_iter().next_back() {
            Some(last) => after = Some(last),
            None => return Ok((found, strays)),
        }
    }
}

fn at(named: &Named, key: &str, detail: &str) -> Problem {
    Problem { key: format!("archive:{}/{key}", named.name), detail: detail.to_owned() }
}

/// What one archive has of a KEK.
pub(super) type FoundKek = Result<Option<Kek>, Problem>;

/// Reads KEKs from an archive, all at the same time, in the order of `ids`.
pub(super) async fn read_keks(named: &Named, chain: &ChainName, ids: &[KekId]) -> Vec<FoundKek> {
    let mut calls = JoinSet::new();
    for (index, &id) in ids.iter().enumerate() {
        let (named, chain) = (named.clone(), chain.clone());
        calls.spawn(async move { (index, read_kek(&named, &chain, id).await) });
    }
    let lost = || Err(at(named, object::PREFIX, "a call ended without a result"));
    let mut found: Vec<FoundKek> = ids.iter().map(|_| lost()).collect();
    while let Some(read) = calls.join_next().await {
        if let Ok((index, read)) = read
            && let Some(slot) = found.get_mut(index)
        {
            *slot = read;
        }
    }
    found
}

async fn read_kek(named: &Named, chain: &ChainName, id: KekId) -> FoundKek {
    let key = object::kek_key(chain, id);
    match get(&named.archive, &key).await {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => {
            object::decode_kek(chain, id, &bytes).map(Some).map_err(|Damaged { key, detail }| {
                at(named, &key, &format!("it is damaged: {detail}"))
            })
        }
        Err(error) => Err(at(named, &key, &error.to_string())),
    }
}

/// Reads the settings of a chain from an archive.
pub(super) async fn read_chain(named: &Named, chain: &ChainName) -> Result<Option<Chain>, Problem> {
    let key = object::chain_key(chain);
    match get(&named.archive, &key).await {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => {
            object::decode_chain(chain, &bytes).map(Some).map_err(|Damaged { key, detail }| {
                at(named, &key, &format!("it is damaged: {detail}"))
            })
        }
        Err(error) => Err(at(named, &key, &error.to_string())),
    }
}

async fn get(archive: &Arc<dyn Archive>, key: &str) -> Result<Option<Vec<u8>>, Error> {
    Ok(archive.get(key).await?.map(|object| object.bytes))
}

/// Runs all of `futures` at the same time, in this task; their results in the same order.
async fn together<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        let mut is_over = true;
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(result) => *output = Some(result),
                Poll::Pending => is_over = false,
            }
        }
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

struct Recovery<'a> {
    archives: &'a [Named],
    to: &'a dyn Store,
    chain: &'a ChainName,
}

impl Recovery<'_> {
    async fn run(
        &self,
        ids: BTreeSet<KekId>,
        report: &mut Report,
        progress: &mut impl FnMut(&Report),
    ) -> Result<(), store::Error> {
        let settings = self.settings(report).await;
        let limits = settings.map_or_else(Limits::default, |settings| settings.limits);
        let ids: Vec<_> = ids.into_iter().collect();
        let mut newest = None;
        for pages in ids.chunks(PAGE * PAGES) {
            let pages = pages.chunks(PAGE).map(|page| self.page(page, limits));
            for done in together(pages).await {
                let (done, newest_of_page) = done?;
                report.add(done);
                newest = newest.max(newest_of_page);
            }
            progress(report);
        }
        let suite = newest.and_then(|(_, code)| crate::id::Suite::from_code(code));
        match settings.or_else(|| Some(Chain { suite: suite?, limits, inline: false })) {
            Some(settings) => self.write_head(settings, report).await,
            // Nothing is known of it; that is reported.
            None => Ok(()),
        }
    }

    /// Recovers some KEKs. Returns when the newest of them was created, and its suite.
    async fn page(
        &self,
        ids: &[KekId],
        limits: Limits,
    ) -> Result<(Report, Option<(u64, u8)>), store::Error> {
        let mut report = Report { keks: ids.len() as u64, ..Report::default() };
        let merged = self.merged(ids, &mut report).await;
        self.write(&merged, limits, &mut report).await?;
        Ok((report, merged.iter().map(|(_, kek)| (kek.created_at, kek.suite.code())).max()))
    }

    /// The settings of the chain; `None` if no archive has them.
    async fn settings(&self, report: &mut Report) -> Option<Chain> {
        let mut found = None;
        for named in self.archives {
            match read_chain(named, self.chain).await {
                Ok(settings) => found = found.or(settings),
                Err(problem) => report.problems.push(problem),
            }
        }
        if found.is_none() {
            let detail = "no archive has the settings of the chain: it gets the default limits";
            let key = object::chain_key(self.chain);
            report.problems.push(Problem { key, detail: detail.to_owned() });
        }
        found
    }

    /// The records of some KEKs: those of all archives, merged.
    async fn merged(&self, ids: &[KekId], report: &mut Report) -> Vec<(KekId, Kek)> {
        let mut merged: Vec<Option<Kek>> = ids.iter().map(|_| None).collect();
        for named in self.archives {
            let found = read_keks(named, self.chain, ids).await;
            for (kek, found) in merged.iter_mut().zip(found) {
                match (kek.as_ref(), found) {
                    (_, Ok(None)) => {}
                    (None, Ok(found)) => *kek = found,
                    (Some(one), Ok(Some(other))) => {
                        if let Merged::Replace(both) = object::merge(one, &other, Wraps::Join) {
                            *kek = Some(both);
                        }
                    }
                    (_, Err(problem)) => report.problems.push(problem),
                }
            }
        }
        ids.iter().zip(merged).filter_map(|(&id, kek)| Some((id, kek?))).collect()
    }

    /// Writes the records that the store lacks.
    async fn write(
        &self,
        keks: &[(KekId, Kek)],
        limits: Limits,
        report: &mut Report,
    ) -> Result<(), store::Error> {
        let ids: Vec<_> = keks.iter().map(|(id, _)| *id).collect();
        for _ in 0..TRIES {
            let mut done = Report::default();
            let mut txn = Txn::default();
            let stored = pairs(self.to, self.chain, &ids).await?;
            for ((_, kek), stored) in keks.iter().zip(&stored) {
                self.decide(kek, stored, limits, &mut txn, &mut done)?;
            }
            let written = match txn.puts.is_empty() {
                true => true,
                false => matches!(self.to.commit(txn).await?, Committed::Applied(_)),
            };
            if written {
                report.add(done);
                return Ok(());
            }
        }
        Err(self.is_modified())
    }

    fn is_modified(&self) -> store::Error {
        let detail = format!("other processes keep changing the chain {}", self.chain);
        store::Error::Unavailable { detail, maybe_applied: false }
    }

    /// Adds what has to be written for one KEK to `txn`.
    fn decide(
        &self,
        kek: &Kek,
        stored: &Pair,
        limits: Limits,
        txn: &mut Txn,
        done: &mut Report,
    ) -> Result<(), store::Error> {
        let key = record::kek_key(self.chain, stored.id);
        match &stored.kek {
            Ok(None) => {
                let state = match kek.state {
                    State::Standby | State::Primary => State::Retired,
                    state => state,
                };
                let retired = Kek { state, ..kek.clone() };
                txn.compares.push(Compare::Absent(key.clone()));
                txn.puts.push((key, retired.encode()?));
                done.restored += 1;
            }
            Ok(Some(read)) => {
                let is_idle = matches!(read.record.state, State::Retired | State::Disabled);
                if kek.state != State::Destroyed || read.record.state == State::Destroyed {
                    done.same += 1;
                } else if is_idle {
                    let tombstone = Kek { wraps: Vec::new(), ..kek.clone() };
                    txn.compares.push(Compare::Unchanged(key.clone(), read.entry.revision));
                    txn.puts.push((key, tombstone.encode()?));
                    done.destroyed += 1;
                } else {
                    let detail = "an archive has it as destroyed, and here it encrypts";
                    done.problems.push(Problem { key, detail: detail.to_owned() });
                }
            }
            Err(problem) => done.problems.push(problem.clone()),
        }
        let key = record::uses_key(self.chain, stored.id);
        match &stored.uses {
            Ok(None) => {
                let uses = Uses { reserved: limits.max_uses, ..Uses::default() };
                txn.compares.push(Compare::Absent(key.clone()));
                txn.puts.push((key, uses.encode()?));
            }
            Ok(Some(_)) => {}
            Err(problem) => done.problems.push(problem.clone()),
        }
        Ok(())
    }

    /// Creates the chain unless it exists.
    async fn write_head(&self, chain: Chain, report: &mut Report) -> Result<(), store::Error> {
        let Chain { suite, limits, inline } = chain;
        match head(self.to, self.chain).await? {
            Ok(Some(_)) => Ok(()),
            Err(problem) => {
                report.problems.push(problem);
                Ok(())
            }
            Ok(None) => {
                let head = Head {
                    suite,
                    limits,
                    primary: None,
                    standby: None,
                    generation: 1,
                    roots_generation: 1,
                    named_root: None,
                    repair: None,
                    inline,
                };
                // A conflict means that a service created it meanwhile.
                store::records::create(self.to, self.chain, &head).await.map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests;
