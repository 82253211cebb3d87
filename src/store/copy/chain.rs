//! The copy of one chain: first a check of all of it, then pages of KEKs, then the head.

use std::collections::BTreeSet;

use crate::id::{ChainName, KekId};
use crate::store::record::{self, Head};
use crate::store::{
    Committed, Error, Found, Ids, Pair, Problem, Read, Store, head, head_and_pairs, pairs,
};

use super::batch::Batch;
use super::merge::{self, Decision};
use super::{CopyReport, Primaries, encrypts};

/// How often the copy of a chain restarts when others write to it.
const TRIES: usize = 8;

pub(super) struct Copy<'a> {
    pub(super) from: &'a dyn Store,
    pub(super) to: &'a dyn Store,
    pub(super) chain: &'a ChainName,
    pub(super) primaries: Primaries,
}

/// The heads when the copy of the chain began, and the KEKs that one of them names. Those are
/// written together with the head, so that no head ever names a KEK in a different state.
struct Heads {
    source: Read<Head>,
    target: Option<Read<Head>>,
    named: BTreeSet<KekId>,
}

/// Why a chain is not written.
enum Stop {
    Refused(Vec<Problem>),
    Store(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Refused(vec![problem])
    }
}

impl Copy<'_> {
    /// Copies the chain, or adds the reason why not to `report`.
    pub(super) async fn run(
        &self,
        report: &mut CopyReport,
        progress: &mut impl FnMut(&CopyReport),
    ) -> Result<(), Error> {
        for _ in 0..TRIES {
            let looked = match self.look().await {
                Ok((heads, left_out)) => {
                    self.write(&heads, report, progress).await.map(|whole| (whole, left_out))
                }
                Err(stop) => Err(stop),
            };
            match looked {
                Ok((true, left_out)) => {
                    report.chains += 1;
                    report.problems.extend(left_out);
                    return Ok(());
                }
                Ok((false, _)) => {}
                Err(Stop::Refused(problems)) => {
                    report.problems.extend(problems);
                    return Ok(());
                }
                Err(Stop::Store(error)) => return Err(error),
            }
        }
        let detail =
            "other processes keep changing this chain; it is copied in part, repeat the copy";
        report.problems.push(Problem::new(record::head_key(self.chain), detail));
        Ok(())
    }

    /// Checks the whole chain on both sides. Damaged records of the source that are not needed are
    /// left out; everything else that is wrong is a refusal.
    async fn look(&self) -> Result<(Heads, Vec<Problem>), Stop> {
        let heads = self.heads().await?;
        let (mut refused, mut left_out) = (Vec::new(), Vec::new());
        let mut ids = Ids::of_keks(self.from, self.chain);
        while let Some((page, strays)) = ids.next().await? {
            left_out.extend(strays);
            for (source, target) in self.both(&page).await? {
                match self.decide(&heads, &source, &target, &mut Batch::default()) {
                    Ok(()) => {}
                    Err(problem) if self.may_lack(&heads, &source) => left_out.push(problem),
                    Err(problem) => refused.push(problem),
                }
            }
        }
        refused.extend(self.strangers().await?);
        let named: Vec<_> = heads.named.iter().copied().collect();
        for source in pairs(self.from, self.chain, &named).await? {
            let key = record::kek_key(self.chain, source.id);
            // One that the target has was already reported.
            if matches!(source.kek, Ok(None)) && refused.iter().all(|it| it.key != key) {
                let problem = Problem::new(key, "a head names it, and it is missing");
                let to = if self.may_lack(&heads, &source) { &mut left_out } else { &mut refused };
                to.push(problem);
            }
        }
        if refused.is_empty() { Ok((heads, left_out)) } else { Err(Stop::Refused(refused)) }
    }

    async fn heads(&self) -> Result<Heads, Stop> {
        let key = record::head_key(self.chain);
        let missing = || Problem::new(&key, "it is missing: the chain is not copied");
        let source = head(self.from, self.chain).await??.ok_or_else(missing)?;
        let target = head(self.to, self.chain).await?.map_err(at_target)?;
        let copied = merge::copied_head(&source.record, self.primaries);
        // On the same store, the copy would retire KEKs that a service may be using.
        if copied != source.record && target.as_ref().is_some_and(|it| it.entry == source.entry) {
            let detail = "the target has the same write: it seems to be the same store, or a \
                          copy of its files. `kms-proxy store restored` retires primaries in place";
            return Err(Problem::new(key, detail).into());
        }
        refusal(&key, merge::head(copied, target.as_ref().map(|target| &target.record)))?;
        let both = [Some(&source), target.as_ref()].into_iter().flatten();
        let named = both.flat_map(|head| [head.record.primary, head.record.standby]);
        let named = named.flatten().collect();
        Ok(Heads { source, target, named })
    }

    /// KEKs of the target that the source does not have: the chains have diverged.
    async fn strangers(&self) -> Result<Vec<Problem>, Stop> {
        let mut strangers = Vec::new();
        let mut ids = Ids::of_keks(self.to, self.chain);
        while let Some((page, _)) = ids.next().await? {
            for pair in pairs(self.from, self.chain, &page).await? {
                if matches!(pair.kek, Ok(None)) {
                    let key = record::kek_key(self.chain, pair.id);
                    strangers.push(Problem::new(
                        key,
                        "the target has this KEK and the source does not: it is another chain with \
                         the same name, or the two have diverged",
                    ));
                }
            }
        }
        Ok(strangers)
    }

    /// Writes the chain. False if others wrote to it concurrently, and it must be checked again.
    async fn write(
        &self,
        heads: &Heads,
        report: &mut CopyReport,
        progress: &mut impl FnMut(&CopyReport),
    ) -> Result<bool, Stop> {
        let mut same = 0;
        let mut ids = Ids::of_keks(self.from, self.chain);
        while let Some((mut page, _)) = ids.next().await? {
            page.retain(|id| !heads.named.contains(id));
            let mut batch = Batch::default();
            for (source, target) in self.both(&page).await? {
                // A refusal here is new: the next check reports it.
                if self.decide(heads, &source, &target, &mut batch).is_err()
                    && !self.may_lack(heads, &source)
                {
                    return Ok(false);
                }
            }
            same += batch.same;
            if !self.commit(batch, report).await? {
                return Ok(false);
            }
            progress(report);
        }
        self.write_head(heads, same, report).await
    }

    /// Writes the head and the KEKs that heads name, if the heads are still the same.
    async fn write_head(
        &self,
        heads: &Heads,
        same: u64,
        report: &mut CopyReport,
    ) -> Result<bool, Stop> {
        let named: Vec<_> = heads.named.iter().copied().collect();
        let (source_head, sources) = head_and_pairs(self.from, self.chain, &named).await?;
        let (target_head, targets) = head_and_pairs(self.to, self.chain, &named).await?;
        let (Ok(Some(source)), Ok(target)) = (source_head, target_head) else { return Ok(false) };
        let revision = |head: Option<&Read<Head>>| head.map(|head| head.entry.revision);
        if source.entry.revision != heads.source.entry.revision
            || revision(target.as_ref()) != revision(heads.target.as_ref())
        {
            return Ok(false);
        }
        let mut batch = Batch::default();
        for (source, target) in sources.iter().zip(&targets) {
            if self.decide(heads, source, target, &mut batch).is_err() {
                if self.may_lack(heads, source) {
                    continue;
                }
                return Ok(false);
            }
        }
        let copied = merge::copied_head(&source.record, self.primaries);
        let Ok(decided) = merge::head(copied, target.as_ref().map(|target| &target.record)) else {
            return Ok(false);
        };
        let key = record::head_key(self.chain);
        batch.add(key, decided, &source, target.as_ref())?;
        batch.same += same;
        let (same, whole) = (batch.same, self.commit(batch, report).await?);
        report.same += if whole { same } else { 0 };
        Ok(whole)
    }

    /// Commits a batch. False if others wrote concurrently.
    async fn commit(&self, batch: Batch, report: &mut CopyReport) -> Result<bool, Error> {
        if batch.txn.puts.is_empty() {
            return Ok(true);
        }
        let committed = self.to.commit(batch.txn).await?;
        if committed == Committed::Conflict {
            return Ok(false);
        }
        report.added += batch.added;
        report.moved += batch.moved;
        report.retired += batch.retired;
        Ok(true)
    }

    /// The records of some KEKs on both sides.
    async fn both(&self, ids: &[KekId]) -> Result<Vec<(Pair, Pair)>, Error> {
        let source = pairs(self.from, self.chain, ids).await?;
        let target = pairs(self.to, self.chain, ids).await?;
        Ok(source.into_iter().zip(target).collect())
    }

    /// Adds the records of a KEK that have to be written to `batch`.
    fn decide(
        &self,
        heads: &Heads,
        source: &Pair,
        target: &Pair,
        batch: &mut Batch,
    ) -> Result<(), Problem> {
        let kek_key = record::kek_key(self.chain, source.id);
        let uses_key = record::uses_key(self.chain, source.id);
        let kek = there(&kek_key, &source.kek)?;
        let uses = there(&uses_key, &source.uses)?;
        let target_kek = target.kek.as_ref().map_err(|problem| at_target(problem.clone()))?;
        let target_uses = target.uses.as_ref().map_err(|problem| at_target(problem.clone()))?;
        let roots = |head: &Read<Head>| head.record.roots_generation;
        let newer_roots =
            heads.target.as_ref().is_some_and(|target| roots(target) < roots(&heads.source));

        let copied = merge::copied_kek(&kek.record, self.primaries);
        let retired = copied != kek.record;
        let theirs = target_kek.as_ref().map(|read| &read.record);
        let copied = refusal(&kek_key, merge::kek(copied, theirs, newer_roots))?;
        let theirs = target_uses.as_ref().map(|read| &read.record);
        let counted = refusal(&uses_key, merge::uses(uses.record, theirs))?;
        batch.retired += u64::from(retired && copied.is_some());
        batch.add(kek_key, copied, kek, target_kek.as_ref())?;
        batch.add(uses_key, counted, uses, target_uses.as_ref())
    }

    /// Whether the chain may be copied without a KEK whose records are damaged in the source: true
    /// if it encrypts on neither side.
    fn may_lack(&self, heads: &Heads, source: &Pair) -> bool {
        let whole = matches!((&source.kek, &source.uses), (Ok(Some(_)), Ok(Some(_))));
        let named = |head: &Read<Head>| {
            [head.record.primary, head.record.standby].contains(&Some(source.id))
        };
        let kept = self.primaries == Primaries::Keep
            && (named(&heads.source)
                || matches!(&source.kek, Ok(Some(kek)) if encrypts(&kek.record)));
        !whole && !kept && !heads.target.as_ref().is_some_and(named)
    }
}

/// A record of the source that must exist.
fn there<'a, R>(key: &str, found: &'a Found<R>) -> Result<&'a Read<R>, Problem> {
    match found {
        Ok(Some(read)) => Ok(read),
        Ok(None) => Err(Problem::new(key, "it is missing")),
        Err(problem) => Err(problem.clone()),
    }
}

fn refusal<R>(key: &str, decision: Decision<R>) -> Result<Option<R>, Problem> {
    decision.map_err(|detail| Problem::new(key, detail))
}

pub(super) fn at_target(problem: Problem) -> Problem {
    Problem { detail: format!("in the target {}", problem.detail), ..problem }
}
