//! Which processes have a root configured. Each process reports its roots in a shared store
//! ([`RootUser`]), and whether a root has another key than the [`RootCheck`] of its name. A root is
//! not removed while another process reports that it has the root configured, or that one of the
//! roots that remain has another key there: the removal could erase the only wraps that the
//! corrected configuration opens.
//!
//! A process withdraws its reports when it stops, except those of another key. A report of a
//! process that was killed counts for [a while](super::root_reports).
//!
//! [`RootCheck`]: crate::store::record::RootCheck

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::ChainName;
use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::store::record::{self, Record as _, RootUser};
use crate::store::{self, Committed, Compare, Entry, Store as _, Txn};
use crate::timestamp::rfc3339;

use super::root_check::{self, Comparison};

/// How often a process repeats its reports.
const REPORTED_EVERY: Duration = Duration::from_secs(5 * 60);
/// How often a process reads the reports of the others.
const READ_EVERY: Duration = Duration::from_secs(60);
/// The maximum number of reports that are read. If some are left out, a process may not find its
/// own, as after a rollback of the store.
const MOST: usize = 100_000;

/// Compares the roots of this process, reports them, and removes the reports of processes that
/// ended without withdrawing them. What fails is repeated by the next call.
pub(in crate::service) async fn look_after(core: &Core) {
    if !core.shared {
        return;
    }
    let differing = differing(core).await;
    let now = core.clock.now();
    let (is_report_due, is_read_due) = {
        let mut reports = core.root_reports.lock();
        let is_due = |last: Option<Monotonic>, every| last.is_none_or(|at| now.since(at) >= every);
        let has_changed = differing != reports.differing;
        reports.differing.clone_from(&differing);
        (has_changed || is_due(reports.stored, REPORTED_EVERY), is_due(reports.read, READ_EVERY))
    };
    // The store reports its own failures.
    if is_report_due {
        let stored = report(core, &differing).await.is_ok();
        core.root_reports.lock().stored = stored.then_some(now);
    }
    if is_read_due && clean(core).await.is_ok() {
        core.root_reports.lock().read = Some(now);
    }
}

/// The roots of this process that have another key than other processes. A root that unwrapped
/// stored KEKs has the right one.
async fn differing(core: &Core) -> BTreeSet<Arc<str>> {
    let mut differing = core.root_reports.lock().differing.clone();
    for state in core.keyring.roots.iter() {
        let name = &state.named.name;
        if state.opened_any() {
            differing.remove(name);
        } else if state.is_another() {
            differing.insert(Arc::clone(name));
        } else if state.is_up() && state.comparisons.take(core.clock.now()) {
            match root_check::compare(core, state).await {
                Ok(Comparison::Other) => {
                    differing.insert(Arc::clone(name));
                }
                Ok(Comparison::New | Comparison::Same) => {
                    differing.remove(name);
                }
                Ok(Comparison::Silent) | Err(_) => {}
            }
        }
    }
    differing
}

async fn report(core: &Core, differing: &BTreeSet<Arc<str>>) -> Result<(), store::Error> {
    let reported_at = core.clock.unix_now();
    let report = |name: &Arc<str>| {
        let user = RootUser { reported_at, differs: differing.contains(name) };
        Ok((record::root_user_key(name, core.owner), user.encode()?))
    };
    let puts = core.keyring.roots.iter().map(|state| report(&state.named.name));
    let puts = puts.collect::<Result<_, store::Error>>()?;
    core.store.commit(Txn { puts, ..Txn::default() }).await.map(drop)
}

/// Removes the reports that do not count any more.
async fn clean(core: &Core) -> Result<(), store::Error> {
    // Also those of roots that this process does not have: one of them may be removed here next.
    let others = own_checked(core).await?.into_iter().filter(|(_, owner, _)| *owner != core.owner);
    let others: Vec<_> = others.collect();
    let mut gone = Vec::new();
    {
        let (mut reports, now) = (core.root_reports.lock(), core.clock.now());
        reports.keep(others.iter().map(|(.., entry)| &*entry.key), now);
        gone.extend(others.into_iter().filter(|(.., entry)| !reports.counts(entry, now)));
    }
    for (.., Entry { key, revision, .. }) in gone {
        let compares = vec![Compare::Unchanged(key.clone(), revision)];
        let txn = Txn { compares, deletes: vec![key], puts: Vec::new() };
        // If another process removes them at the same time, one of both is enough.
        if core.store.commit(txn).await? == Committed::Conflict {
            break;
        }
    }
    Ok(())
}

/// All reports. If those of this process are not among them, or if the store noticed it itself, the
/// store went back to an earlier state.
async fn own_checked(core: &Core) -> Result<Vec<(String, u64, Entry)>, store::Error> {
    let was_stored = core.root_reports.lock().stored.is_some();
    let entries = list(core, record::ROOTS).await?;
    let is_own = |entry: &&(String, u64, Entry)| entry.1 == core.owner;
    let own: Vec<_> = entries.iter().filter(is_own).map(|(root, ..)| &**root).collect();
    let is_complete = core.keyring.roots.iter().all(|it| own.contains(&&*it.named.name));
    if was_stored && !is_complete {
        note_rollback(core);
    }
    core.root_reports.lock().store_went_back(core.store.restores(), core.clock.now());
    Ok(entries)
}

/// The reports under `prefix`, each with its root and its process.
async fn list(core: &Core, prefix: &str) -> Result<Vec<(String, u64, Entry)>, store::Error> {
    let entries = core.store.list(prefix, None, MOST).await?;
    let of = |entry: Entry| {
        let (root, owner) = record::root_user(&entry.key)?;
        Some((root.to_owned(), owner, entry))
    };
    Ok(entries.into_iter().filter_map(of).collect())
}

/// The reports of other processes under `prefix`.
async fn reports(core: &Core, prefix: &str) -> Result<Vec<(String, u64, Entry)>, store::Error> {
    let mut reports = list(core, prefix).await?;
    reports.retain(|(_, owner, _)| *owner != core.owner);
    Ok(reports)
}

/// Refuses to erase the wraps of `removed` while another process has it configured, or has another
/// key for one of the roots that are to open the KEKs afterwards.
///
/// # Errors
/// [`Kind::Conflict`], [`Kind::StoreUnavailable`].
pub(in crate::service) async fn may_remove(
    core: &Core,
    chain: &ChainName,
    removed: &str,
) -> Result<(), Error> {
    if !core.shared {
        return Ok(());
    }
    let failed = |error| core.store_error(chain, error);
    let mut entries = own_checked(core).await.map_err(failed)?;
    if let Some(left) = core.root_reports.lock().unsettled(core.clock.now()) {
        let detail = format!(
            "the store went back to an earlier state, and the replicas report their roots again: \
             try again in {} s",
            left.as_secs() + 1
        );
        return Err(Error::new(Kind::Conflict, detail));
    }
    // A root that remains and has another key is the mistake to correct first.
    entries.sort_by_key(|(root, ..)| root == removed);
    for (root, owner, entry) in entries {
        let is_removed = root == removed;
        if owner == core.owner
            || !(is_removed || core.keyring.roots.is_configured(&root))
            || !core.root_reports.lock().counts(&entry, core.clock.now())
        {
            continue;
        }
        let user = RootUser::decode(&entry.key, &entry.value).map_err(failed)?;
        let at = rfc3339(user.reported_at);
        let detail = match (is_removed, user.differs) {
            (false, true) => format!(
                "another replica reported at {at} that its root {root} has another key than this \
                 one's: correct that replica's configuration first"
            ),
            (true, false) => format!(
                "another replica reported at {at} that it has root {root} configured: take it out \
                 of the configuration of every replica first"
            ),
            _ => continue,
        };
        let detail = format!("{detail}. A report that is not repeated counts for 15 minutes");
        return Err(Error::new(Kind::Conflict, detail));
    }
    Ok(())
}

/// The roots that each other process has configured, without those that have another key there.
#[derive(Default)]
pub(in crate::service) struct Others(BTreeMap<u64, BTreeSet<String>>);

/// Reads the roots of the other processes. A process whose roots all have other keys than the rest
/// does not count. After a rollback of the store, which may have removed reports, those that were
/// read before count too, until their processes had the time to report again.
///
/// # Errors
/// [`Kind::StoreUnavailable`].
pub(in crate::service) async fn others(core: &Core, chain: &ChainName) -> Result<Others, Error> {
    let mut others = Others::default();
    if !core.shared {
        return Ok(others);
    }
    let read = reports(core, record::ROOTS).await.map_err(|it| core.store_error(chain, it))?;
    let read: Vec<_> = read.into_iter().map(|(.., entry)| entry).collect();
    let counting = core.root_reports.lock().counting(&read, core.clock.now());
    for (owner, root) in counting {
        others.0.entry(owner).or_default().insert(root);
    }
    Ok(others)
}

/// What a new KEK comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum After {
    /// A KEK that encrypts, or is about to.
    Current,
    /// KEKs that only decrypt. So no process can encrypt, and each waits for the new one.
    Retired,
}

impl Others {
    /// Refuses a KEK that only the roots in `names` open, if too many processes report that they
    /// have none of these: they could not encrypt any more. To replace a KEK, more than half of the
    /// processes must open the new one. If no KEK encrypts, half of them are enough, since
    /// otherwise all would be unavailable.
    ///
    /// # Errors
    /// [`Kind::RootUnavailable`].
    pub(in crate::service) fn most_open<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        after: After,
    ) -> Result<(), Error> {
        let names: BTreeSet<_> = names.into_iter().collect();
        let opens = |roots: &&BTreeSet<String>| roots.iter().any(|root| names.contains(&**root));
        let all = self.0.len() + 1;
        let open = 1 + self.0.values().filter(opens).count();
        let is_enough = match after {
            After::Current => open > all - open,
            After::Retired => open >= all - open,
        };
        match self.0.values().find(|roots| !opens(roots)) {
            Some(roots) if !is_enough => {
                let roots: Vec<_> = roots.iter().map(|root| &**root).collect();
                let advice = format!(
                    "{} of {all} replicas would not open a new KEK, such as one whose roots are \
                     {}: configure the same roots on every replica. A report of a replica that was \
                     killed counts for 15 minutes. A forced rotation ignores the reports",
                    all - open,
                    roots.join(", ")
                );
                let detail = "other replicas would not open a new KEK";
                Err(Error::new(Kind::RootUnavailable, detail).with_advice(advice))
            }
            _ => Ok(()),
        }
    }
}

/// Forgets what the store knows of a root that is removed, so that its name can be given to
/// another.
///
/// # Errors
/// When the store does not answer.
pub(in crate::service) async fn forget(core: &Core, root: &str) -> Result<(), store::Error> {
    if !core.shared {
        return Ok(());
    }
    let check = core.store.get(&record::root_check_key(root)).await?;
    let reports = reports(core, &record::root_users_prefix(root)).await?;
    let reports = reports.into_iter().map(|(.., entry)| entry);
    let deletes: Vec<_> = check.into_iter().chain(reports).map(|entry| entry.key).collect();
    if deletes.is_empty() {
        return Ok(());
    }
    core.store.commit(Txn { deletes, ..Txn::default() }).await.map(drop)
}

/// Notes that the store went back to an earlier state, which may lack the reports of processes that
/// run: they report again.
pub(in crate::service) fn note_rollback(core: &Core) {
    core.root_reports.lock().rolled_back(core.clock.now());
}

/// Withdraws the reports of a process that stops. A report of another key remains: the process will
/// probably start again with the same key.
pub(in crate::service) async fn withdraw(core: &Core) {
    if !core.shared || !core.store.is_up() {
        return;
    }
    let differing = core.root_reports.lock().differing.clone();
    let names = core.keyring.roots.iter().map(|state| &state.named.name);
    let names = names.filter(|name| !differing.contains(*name));
    let deletes: Vec<_> = names.map(|name| record::root_user_key(name, core.owner)).collect();
    if !deletes.is_empty() {
        // If it fails, the reports count a little longer.
        let _ = core.store.commit(Txn { deletes, ..Txn::default() }).await;
    }
}
