//! The copy of the key of the audit log, which belongs to no chain. A key of the target with
//! another secret is never replaced: the HMACs in its log could not be searched any more.

use crate::store::record::{AUDIT_KEY, AuditKey};
use crate::store::{Committed, Error, Problem, Store, audit_key};

use super::CopyReport;
use super::batch::Batch;

/// How often the copy restarts when others write to the record.
const TRIES: usize = 8;

/// Copies the key after the chains were copied, or adds the reason why not to `report`.
pub(super) async fn copy(
    from: &dyn Store,
    to: &dyn Store,
    report: &mut CopyReport,
) -> Result<(), Error> {
    let are_chains_copied = report.problems.is_empty();
    match try_copy(from, to, are_chains_copied).await? {
        Ok(batch) => {
            report.added += batch.added;
            report.moved += batch.moved;
            report.same += batch.same;
        }
        Err(problem) => report.problems.push(problem),
    }
    Ok(())
}

async fn try_copy(
    from: &dyn Store,
    to: &dyn Store,
    are_chains_copied: bool,
) -> Result<Result<Batch, Problem>, Error> {
    for _ in 0..TRIES {
        let source = match audit_key(from).await? {
            Ok(Some(source)) => source,
            Ok(None) => return Ok(Ok(Batch::default())),
            Err(problem) => return Ok(Err(problem)),
        };
        let target = match audit_key(to).await? {
            Ok(target) => target,
            Err(problem) => return Ok(Err(super::chain::at_target(problem))),
        };
        let theirs = target.as_ref().map(|target| &target.record);
        let mut batch = Batch::default();
        let added = decide(&source.record, theirs, are_chains_copied)
            .map_err(|detail| Problem::new(AUDIT_KEY, detail))
            .and_then(|decided| batch.add(AUDIT_KEY.to_owned(), decided, &source, target.as_ref()));
        if let Err(problem) = added {
            return Ok(Err(problem));
        }
        if batch.txn.puts.is_empty()
            || to.commit(std::mem::take(&mut batch.txn)).await? != Committed::Conflict
        {
            return Ok(Ok(batch));
        }
    }
    let detail = "other processes keep changing it; repeat the copy";
    Ok(Err(Problem::new(AUDIT_KEY, detail)))
}

/// The record to write; `None` if the target's needs no change. If chains were refused, the target
/// has something newer, so its wraps may be newer too.
fn decide(
    source: &AuditKey,
    target: Option<&AuditKey>,
    are_chains_copied: bool,
) -> Result<Option<AuditKey>, &'static str> {
    match target {
        None => Ok(Some(source.clone())),
        Some(target) if target.id != source.id => {
            Err("the target has another key of the audit log, which is not replaced. AADs in the \
                 source's log can only be found with the source's key")
        }
        Some(target) => Ok((are_chains_copied && target != source).then(|| source.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Primaries, copy};
    use super::*;
    use crate::id::{ChainName, KekId};
    use crate::store::backup::{self, Check, Stream};
    use crate::store::record::{self, Record as _, Wrap};
    use crate::store::{Txn, memory};

    fn key(secret: u8, roots: &[&str]) -> AuditKey {
        let wrap = |root: &&str| Wrap { root: (*root).to_owned(), bytes: vec![secret] };
        AuditKey { id: KekId::of_key(&[secret; 32]), wraps: roots.iter().map(wrap).collect() }
    }

    fn with(key: &AuditKey) -> memory::Store {
        memory::Store::holding(Txn::default().create(AUDIT_KEY.to_owned(), key.encode().unwrap()))
    }

    async fn stored(store: &memory::Store) -> Option<AuditKey> {
        audit_key(store).await.unwrap().unwrap().map(|read| read.record)
    }

    async fn copied(from: &memory::Store, to: &memory::Store, only: &[&str]) -> CopyReport {
        let only: Vec<_> = only.iter().map(|name| ChainName::new(name).unwrap()).collect();
        copy(from, to, &only, Primaries::Retire, |_| {}).await.unwrap()
    }

    #[tokio::test]
    async fn a_copy_of_all_chains_has_the_key_and_replaces_no_other() {
        let (from, to) = (with(&key(1, &["old"])), memory::Store::new());
        copied(&from, &to, &["orders"]).await;
        assert_eq!(stored(&to).await, None, "a copy of some chains");
        assert_eq!(copied(&from, &to, &[]).await, CopyReport { added: 1, ..Default::default() });
        assert_eq!(stored(&to).await, stored(&from).await);
        assert_eq!(copied(&from, &to, &[]).await, CopyReport { same: 1, ..Default::default() });
        // The set of roots changed at the source.
        let newer = with(&key(1, &["new"]));
        assert_eq!(copied(&newer, &to, &[]).await, CopyReport { moved: 1, ..Default::default() });
        assert_eq!(stored(&to).await, stored(&newer).await);
        let other = with(&key(2, &["new"]));
        let report = copied(&from, &other, &[]).await;
        assert_eq!((report.added, report.problems.len()), (0, 1));
        assert_eq!(report.problems[0].key, AUDIT_KEY);
        assert_eq!(stored(&other).await, Some(key(2, &["new"])));
        let damaged = memory::Store::holding(Txn::default().put(AUDIT_KEY.to_owned(), vec![b'{']));
        for report in [copied(&damaged, &to, &[]).await, copied(&from, &damaged, &[]).await] {
            assert!(report.problems[0].detail.contains("it is damaged"), "{report:?}");
        }
    }

    /// The target may have lost a root that the source still has.
    #[tokio::test]
    async fn the_wraps_of_a_target_whose_chains_are_newer_stay() {
        let (from, to) = (with(&key(1, &["old"])), with(&key(1, &["new"])));
        let head = record::head_key(&ChainName::new("orders").unwrap());
        let _ = from.commit(Txn::default().put(head, b"{".to_vec())).await.unwrap();
        let report = copied(&from, &to, &[]).await;
        assert_eq!((report.same, report.problems.len()), (1, 1));
        assert_eq!(stored(&to).await, Some(key(1, &["new"])));
    }

    #[tokio::test]
    async fn a_backup_of_all_chains_has_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = with(&key(1, &["main"]));
        let mut stream = Stream::begin(&store, &[], 7).await.unwrap();
        let (mut bytes, mut check) = (Vec::new(), Check::default());
        while let Some(part) = stream.next().await.unwrap() {
            check.take(&part).unwrap();
            bytes.extend(part);
        }
        let summary = check.finish().unwrap();
        assert_eq!((summary.chains, summary.records), (0, 1));
        let path = dir.path().join("backup");
        std::fs::write(&path, bytes).unwrap();
        let read = backup::read(&path).unwrap();
        assert_eq!((read.chains, read.records), (0, 1));
        let to = memory::Store::new();
        assert_eq!(copied(&read.store, &to, &[]).await.added, 1);
        assert_eq!(stored(&to).await, stored(&store).await);
    }
}
