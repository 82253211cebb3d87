//! Adding and removing roots of a live chain: KEKs get the wraps that they lack, and lose those of
//! a removed root. Data is never changed, and no KEK loses its last wrap.
//!
//! A call processes one page of KEKs, and each KEK is changed separately. After an interruption,
//! the next call continues.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::Event;
use crate::audit::stored::{self, Changed};
use crate::id::KekId;
use crate::keychain;
use crate::keychain::rotation::Reason;
use crate::metrics::Operation;
use crate::store::record::{self, Kek, Record, State};
use crate::store::{Error as StoreError, Store as _};

use crate::archive::object::Wraps;
use crate::service::archive::sync;
use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::service::keyring::Trust;
use crate::service::rotation::{continuity, root_check, root_users, rotator};
use crate::service::types::RootProgress;
use crate::service::{KeyService, key_id, tasks};
use crate::store::records::{self, Held};

/// How often a change is tried when other processes change the same record.
const TRIES: usize = 4;
/// The most KEKs of a page.
const MAX_PAGE: usize = 1000;

/// A change of the KEKs of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootChange {
    /// The root wraps each KEK that it has not wrapped.
    Rewrap,
    /// Each KEK loses its wrap by the root, if another root unwraps it.
    Remove,
}

impl KeyService {
    /// Applies `change` for `root` to the KEKs after `after`, in the order of their ids: at most
    /// `limit` (and at most 1,000), for at most half of the request's time.
    ///
    /// A removal first replaces the primary and the standby if the root wrapped them, so that the
    /// root and an old copy of the store do not decrypt what is encrypted later. KEKs that a
    /// `local` root has ever wrapped are replaced at the end. A replica that has lost the store
    /// uses an old primary for up to [`RootProgress::settles_in`].
    ///
    /// # Errors
    /// [`Kind::UnknownChain`], [`Kind::InvalidRequest`] if the root that is to wrap is not
    /// configured, [`Kind::Conflict`] if the root that is to be removed is still configured, here
    /// or by another process, or if another process has another key for a root that remains,
    /// [`Kind::RootUnavailable`] if the root does not wrap now, [`Kind::StoreUnavailable`].
    pub async fn change_root(
        &self,
        chain: &str,
        root: &str,
        change: RootChange,
        after: Option<KekId>,
        limit: usize,
    ) -> Result<RootProgress, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Manage, Some(chain)).await?;
        let (core, of_chain, of_root) =
            (std::sync::Arc::clone(&self.core), std::sync::Arc::clone(&chain), root);
        let named = of_root.to_owned();
        let work = async move {
            core.needs_store("KEKs get and lose no wraps by hand")?;
            change_page(&core, &of_chain, &named, change, after, limit.clamp(1, MAX_PAGE)).await
        };
        let result = tasks::run_to_end(work).await;
        let call = match change {
            RootChange::Rewrap => "rewrap_root",
            RootChange::Remove => "remove_root",
        };
        let changed = result.as_ref().map_or(0, |progress| progress.changed);
        let failed = result.as_ref().map_or(0, |progress| progress.failed.len());
        let event = Event {
            change: &[("call", &call), ("root", &root), ("changed", &changed), ("failed", &failed)],
            ..Event::default()
        };
        self.finish_with(Operation::Manage, &chain, started, event, result)
    }
}

async fn change_page(
    core: &Arc<Core>,
    chain: &Chain,
    root: &str,
    change: RootChange,
    after: Option<KekId>,
    limit: usize,
) -> Result<RootProgress, Error> {
    match (change, core.keyring.roots.is_configured(root)) {
        (RootChange::Rewrap, false) => {
            return Err(Error::new(Kind::InvalidRequest, "no root of this name is configured"));
        }
        (RootChange::Remove, true) => {
            return Err(Error::new(
                Kind::Conflict,
                "this root is still configured, so new KEKs are wrapped by it: take it out of the \
                 configuration of every replica first",
            ));
        }
        _ => {}
    }
    let failed = |error| core.store_error(&chain.name, error);
    match change {
        RootChange::Rewrap => {
            let held = chain.reservations.lock().await.ledger.held();
            continuity::may_add(core, &chain.name, root, &held).await?;
        }
        // Before its wraps are erased, since they show which KEKs it can unwrap.
        RootChange::Remove => {
            root_users::may_remove(core, &chain.name, root).await?;
            root_users::forget(core, root).await.map_err(failed)?;
            replace_wrapped(core, chain, root).await?;
        }
    }
    let end = core.clock.now() + core.config.wait / 2;
    let prefix = record::keks_prefix(&chain.name);
    let start = after.map(|id| record::kek_key(&chain.name, id));
    let entries = core.store.list(&prefix, start.as_deref(), limit + 1).await.map_err(failed)?;
    let more = entries.len() > limit;
    let mut progress = RootProgress {
        looked_at: 0,
        changed: 0,
        failed: Vec::new(),
        next: None,
        settles_in: Duration::ZERO,
    };
    let mut last = after;
    for entry in entries.iter().take(limit) {
        progress.looked_at += 1;
        let Some(id) = entry.key.strip_prefix(&prefix).and_then(|id| id.parse().ok()) else {
            continue;
        };
        last = Some(id);
        // For most KEKs nothing is to be done, which the listed record shows.
        let done = Kek::decode(&entry.key, &entry.value)
            .is_ok_and(|kek| is_done(core, &kek, root, change));
        if done {
            // After an interruption the archives may still have the earlier wraps.
            core.archives.want(&chain.name, Some(id), Wraps::Replace);
        } else {
            match change_one(core, chain, id, root, change).await {
                Ok(changed) => progress.changed += u64::from(changed),
                Err(Failed::All(error)) => return Err(error),
                Err(Failed::One(detail)) => progress.failed.push((id, detail)),
            }
        }
        if core.clock.now() >= end {
            break;
        }
    }
    let all = entries.len() <= limit
        && progress.looked_at == u64::try_from(entries.len()).unwrap_or(u64::MAX);
    progress.next = last.filter(|_| more || !all);
    if progress.next.is_none() {
        if change == RootChange::Remove {
            replace_wrapped(core, chain, root).await?;
            if core.shared && (progress.changed > 0 || after.is_some()) {
                let reservations = chain.reservations.lock().await;
                progress.settles_in = reservations.settles_in(core.clock.now());
            }
        }
        change_audit_key(core, chain, root, change, &mut progress).await?;
        // At the end, since a cluster that sees another key id encrypts again, under the current
        // primary. The changes of earlier pages are not known here.
        key_id::note_change(core, chain, progress.changed > 0 || after.is_some()).await?;
    }
    Ok(progress)
}

/// Applies the change to the key of the audit log, which belongs to no chain: the first chain whose
/// change ends does it.
async fn change_audit_key(
    core: &Core,
    chain: &Chain,
    root: &str,
    change: RootChange,
    progress: &mut RootProgress,
) -> Result<(), Error> {
    let roots: Vec<_> = core.keyring.roots.iter().map(|state| state.named.clone()).collect();
    let changed = match change {
        RootChange::Rewrap => stored::complete(&*core.store, &roots).await,
        RootChange::Remove => stored::remove(&*core.store, &roots, root).await,
    };
    match changed {
        Ok(Changed::Nothing) => {}
        Ok(Changed::Wraps) => {
            progress.changed += 1;
            core.audit_key.look_after(&*core.store).await;
            core.archives.sweep_soon();
        }
        Ok(Changed::Needed(id, why)) => {
            progress.failed.push((id, format!("this is the key of the audit log: {why}")));
        }
        Err(stored::Error::Store(error)) => return Err(core.store_error(&chain.name, error)),
        Err(error) => return Err(Error::internal(&error)),
    }
    Ok(())
}

/// A KEK from memory, or unwrapped by a root.
async fn kek_of(
    core: &Core,
    chain: &Chain,
    id: KekId,
    record: &Kek,
) -> Result<Arc<keychain::kek::Kek>, Error> {
    let held = chain.snapshot().kek(id).cloned();
    match held.or_else(|| core.keyring.cached(&chain.name, id)) {
        Some(kek) => Ok(kek),
        None => core.keyring.open(&chain.name, id, record).await,
    }
}

/// Whether there is nothing to do for a KEK.
fn is_done(core: &Core, kek: &Kek, root: &str, change: RootChange) -> bool {
    let wrap = kek.wraps.iter().find(|wrap| wrap.root == root);
    kek.state == State::Destroyed
        || match change {
            RootChange::Rewrap => wrap.is_some_and(|wrap| core.keyring.roots.is_current(wrap)),
            RootChange::Remove => wrap.is_none(),
        }
}

/// Why a KEK could not be changed.
enum Failed {
    /// The change of other KEKs may succeed.
    One(String),
    /// The change of other KEKs would fail in the same way.
    All(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error.kind() {
            Kind::StoreUnavailable => Self::All(error),
            _ => Self::One(error.detail().to_owned()),
        }
    }
}

async fn change_one(
    core: &Core,
    chain: &Chain,
    id: KekId,
    root: &str,
    change: RootChange,
) -> Result<bool, Failed> {
    let failed = |error: StoreError| Failed::from(core.store_error(&chain.name, error));
    let key = record::kek_key(&chain.name, id);
    let mut made = None;
    for _ in 0..TRIES {
        let read = records::read::<Kek>(&*core.store, &key).await.map_err(failed)?;
        let Some(read) = read.filter(|read| !is_done(core, &read.record, root, change)) else {
            return Ok(false);
        };
        let mut next = read.record.clone();
        next.wraps.retain(|wrap| wrap.root != root);
        match change {
            RootChange::Rewrap => {
                // After a conflict the wrap is reused.
                let wrap = match made.take() {
                    Some(wrap) => wrap,
                    None => {
                        let kek = kek_of(core, chain, id, &read.record).await?;
                        let roots = &core.keyring.roots;
                        let wrap =
                            roots.wrap_by(root, &chain.name, &kek).await.map_err(Failed::All)?;
                        let agreed = root_check::establish(
                            core,
                            &chain.name,
                            (id, kek.suite()),
                            &wrap,
                            Trust::Proven,
                        );
                        match agreed.await.map_err(Failed::All)? {
                            true => wrap,
                            false => return Err(Failed::All(not_agreed(root))),
                        }
                    }
                };
                // Even a proven root is judged only by KEKs that it did not wrap in this process.
                core.keyring.roots.note_wrapped(&chain.name, id, std::slice::from_ref(&wrap), &[]);
                next.exposed |= core.keyring.roots.exposes(std::slice::from_ref(&wrap));
                made = Some(wrap.clone());
                next.wraps.push(wrap);
            }
            RootChange::Remove => {
                if next.wraps.is_empty() {
                    return Err(Failed::One("this is its last wrap".to_owned()));
                }
                // Another root must unwrap the KEK now, since an erased wrap can't be restored.
                core.keyring.open(&chain.name, id, &next).await?;
            }
        }
        if records::put_kek(&*core.store, &chain.name, id, &read, &next).await.map_err(failed)? {
            core.keyring.remember(&chain.name, id, &next);
            chain.staleness.outdate();
            core.archives.want(&chain.name, Some(id), Wraps::Replace);
            match change {
                RootChange::Rewrap => {
                    tracing::info!(chain = %chain.name, kek_id = %id, root, "a KEK got a wrap");
                }
                RootChange::Remove => {
                    tracing::warn!(chain = %chain.name, kek_id = %id, root, "a KEK's wrap was \
                        erased");
                }
            }
            return Ok(true);
        }
    }
    Err(Failed::One("modified concurrently".to_owned()))
}

fn not_agreed(root: &str) -> Error {
    let detail = format!(
        "root {root} has another key than other replicas have under this name, or does not open \
         their wrap now"
    );
    Error::new(Kind::Conflict, detail)
}

/// Adds the wraps that the primary and the standby lack, by the roots that answer. Of several
/// processes, one does it.
pub(in crate::service) async fn complete(core: &Core, chain: &Chain) {
    // If this process creates a KEK, it holds the claim already.
    let Ok(_rotator) = chain.rotator.try_lock() else { return };
    if !core.shared {
        return complete_claimed(core, chain).await;
    }
    let claim = chain.reservations.lock().await.ledger.claim(core.clock.now()).await;
    // Another process holds the claim, or the store is unavailable, which is reported elsewhere.
    let Ok(Some(claim)) = claim else { return };
    complete_claimed(core, chain).await;
    // If this fails, the claim expires.
    let _ = chain.reservations.lock().await.ledger.unclaim(claim).await;
}

async fn complete_claimed(core: &Core, chain: &Chain) {
    let held = chain.reservations.lock().await.ledger.held();
    for root in core.keyring.roots.lacking(&chain.missing_wraps.load()) {
        if let Err(error) = continuity::may_add(core, &chain.name, &root, &held).await {
            let detail = error.detail();
            // Readiness names the root.
            tracing::debug!(chain = %chain.name, root, detail, "KEKs lack wraps, and this root \
                may not make them");
            continue;
        }
        for &(id, _) in &held {
            match change_one(core, chain, id, &root, RootChange::Rewrap).await {
                Ok(_) => {}
                Err(Failed::One(detail)) => {
                    if core.wrap_log.take(core.clock.now()) {
                        tracing::warn!(chain = %chain.name, kek_id = %id, root, detail, "a KEK \
                            lacks a wrap");
                    }
                }
                // The root or the store is unavailable, which is logged already.
                Err(Failed::All(_)) => break,
            }
        }
    }
    chain.need_uses.notify_one();
}

/// Replaces the primary and the standby if `removed`, which is not configured any more, has wrapped
/// them, or if a `local` root ever did and none is configured. A KEK without another wrap is not
/// replaced, since no remaining root unwraps it.
async fn replace_wrapped(core: &Arc<Core>, chain: &Chain, removed: &str) -> Result<(), Error> {
    let _rotator = chain.rotator.lock().await;
    let has_local = core.keyring.roots.has_local();
    for _ in 0..TRIES {
        let (primary, standby) = {
            let ledger = &mut chain.reservations.lock().await.ledger;
            ledger.refresh().await.map_err(|error| core.store_error(&chain.name, error))?;
            let is_open_to_removed = |held: &Option<Held>| {
                held.as_ref().map(|held| {
                    let kek = &held.kek.record;
                    let others = kek.wraps.iter().any(|wrap| wrap.root != removed);
                    let wrapped = kek.wraps.iter().any(|wrap| wrap.root == removed);
                    (held.id, others && (wrapped || kek.exposed && !has_local))
                })
            };
            (is_open_to_removed(&ledger.primary), is_open_to_removed(&ledger.standby))
        };
        match (primary, standby) {
            (_, Some((id, true))) => {
                rotator::make_standby(core, chain, Some(id), Trust::Proven).await?;
            }
            (Some((_, true)), None) => {
                rotator::make_standby(core, chain, None, Trust::Proven).await?;
            }
            (Some((_, true)), Some(_)) => {
                rotator::supply_standby(core, chain, None, Trust::Proven).await?;
                let standby = chain.reservations.lock().await.ledger.head.record.standby;
                if let Some(id) = standby {
                    sync::ensure(core, &chain.name, id).await?;
                }
                let mut reserver = chain.reservations.lock().await;
                reserver.promote(core, chain, Reason::Root).await?;
            }
            (None | Some((_, false)), _) => return Ok(()),
        }
    }
    Err(Error::new(
        Kind::Conflict,
        "KEKs that the root wrapped are still to be replaced; try again",
    ))
}
