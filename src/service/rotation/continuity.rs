//! Which roots may wrap a new KEK of a chain: those that unwrap a KEK of the chain.
//!
//! A wrong passphrase, a key file of another machine, two swapped roots, an alias of another key:
//! with each of these, a root would wrap KEKs that can't be unwrapped after the configuration is
//! corrected. So before a root wraps a KEK, it must unwrap one that was wrapped in its name. The
//! result is remembered for `cache.kek_max_age`, so a rotation rarely costs an additional call.
//!
//! For a chain without KEKs, the archives and the other chains of the store are examined. Only if
//! neither has a KEK, any root is accepted: that is a first start.

use std::sync::Arc;

use crate::id::{ChainName, KekId};
use crate::keychain::KekPlacement;
use crate::root;
use crate::store::record::{self, Kek, Record};
use crate::store::{self, Store};

use crate::service::archive::find;
use crate::service::chain::Chain;
use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::service::keyring::{Allowed, RootState};
use crate::store::records;

use super::root_check::{self, Comparison};

/// KEKs that a root may fail to open before it counts as another root.
const TRIES: usize = 8;
/// Records of one read, and the most that are read of a chain.
const PAGE: usize = 500;
const MOST: usize = 100_000;

/// Whether a root unwraps the KEKs that were wrapped in its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// It unwraps one of them.
    Opens,
    /// No KEK was wrapped in its name.
    Unused,
    /// It answers, but unwraps none.
    Other,
    /// It does not answer, or denies access.
    Silent,
}

/// The roots that may wrap the next KEK of `chain`, whose primary and standby are `held`.
///
/// # Errors
/// [`Kind::RootUnavailable`] when no root opens a KEK that is there, [`Kind::StoreUnavailable`].
pub(in crate::service) async fn allowed(
    core: &Core,
    chain: &ChainName,
    held: &[(KekId, Kek)],
) -> Result<Allowed, Error> {
    let roots = &core.keyring.roots;
    if core.placement == KekPlacement::Inline {
        // Every KEK that is stored here was made by this process.
        return Ok(roots.all_allowed());
    }
    let mut keks = Keks::with_archived(chain, held);
    let mut allowed = Allowed::default();
    for state in roots.iter() {
        let verdict = match judge(core, state, &mut keks).await? {
            Verdict::Unused => unused(core, chain, state).await?,
            verdict => verdict,
        };
        match verdict {
            Verdict::Opens => allowed.proven.push(Arc::clone(&state.named.name)),
            Verdict::Unused => allowed.new.push(Arc::clone(&state.named.name)),
            Verdict::Other | Verdict::Silent => {}
        }
    }
    if !allowed.proven.is_empty() {
        return Ok(Allowed { has_keks: true, ..allowed });
    }
    if !keks.is_empty(core).await? {
        return Err(refused(core, chain));
    }
    found(core, chain).await
}

/// The roots that may wrap the first KEK of `chain`.
async fn found(core: &Core, chain: &ChainName) -> Result<Allowed, Error> {
    let (mut allowed, mut is_first) = (Allowed::default(), true);
    let mut undecided: Vec<_> = Vec::new();
    for state in core.keyring.roots.iter() {
        // A root that does not unwrap all wraps in its name must not start a chain.
        if state.wrong().is_some() {
            continue;
        }
        match state.opened_any() {
            true => allowed.proven.push(Arc::clone(&state.named.name)),
            false => undecided.push((state, Verdict::Unused)),
        }
    }
    if !undecided.is_empty() {
        let others = records::chains(&*core.store).await;
        for other in others.map_err(|error| core.store_error(chain, error))? {
            let mut keks = Keks::new(&other, &[]);
            for (state, verdict) in &mut undecided {
                if matches!(verdict, Verdict::Unused | Verdict::Silent) {
                    *verdict = match judge(core, state, &mut keks).await? {
                        Verdict::Unused => verdict.clone(),
                        seen => seen,
                    };
                }
            }
            is_first &= keks.is_empty(core).await?;
            if !is_first && undecided.iter().all(|(_, verdict)| *verdict != Verdict::Unused) {
                break;
            }
        }
    }
    if is_first && !undecided.is_empty() {
        for (other, id, kek) in find::sample(core, None).await? {
            is_first = false;
            let mut keks = Keks { listed: Some(vec![(id, kek)]), ..Keks::new(&other, &[]) };
            for (state, verdict) in &mut undecided {
                if matches!(verdict, Verdict::Unused | Verdict::Silent) {
                    *verdict = match judge(core, state, &mut keks).await? {
                        Verdict::Unused => verdict.clone(),
                        seen => seen,
                    };
                }
            }
        }
    }
    let mut new = Vec::new();
    for (state, verdict) in undecided {
        let verdict = match verdict {
            Verdict::Unused => unused(core, chain, state).await?,
            verdict => verdict,
        };
        match verdict {
            Verdict::Opens => allowed.proven.push(Arc::clone(&state.named.name)),
            Verdict::Unused => new.push(Arc::clone(&state.named.name)),
            Verdict::Other | Verdict::Silent => {}
        }
    }
    let is_first = is_first && core.keyring.roots.iter().all(|state| state.wrong().is_none());
    match allowed.proven.is_empty() {
        false => Ok(Allowed { new, ..allowed }),
        true if is_first && !new.is_empty() => Ok(Allowed { proven: new, ..Allowed::default() }),
        true => Err(refused(core, chain)),
    }
}

/// Whether a KEK in `store` has a wrap by a root of this name, or by any root.
///
/// # Errors
/// When the store does not answer.
pub async fn names_root(store: &dyn Store, root: Option<&str>) -> Result<bool, store::Error> {
    for chain in records::chains(store).await? {
        let (prefix, mut after) = (record::keks_prefix(&chain), None::<String>);
        loop {
            let page = store.list(&prefix, after.as_deref(), PAGE).await?;
            let mut keks = page.iter().filter_map(|it| Kek::decode(&it.key, &it.value).ok());
            let is_named = |name: &str| root.is_none_or(|root| root == name);
            if keks.any(|kek| kek.wraps.iter().any(|wrap| is_named(&wrap.root))) {
                return Ok(true);
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
                _ => break,
            }
        }
    }
    Ok(false)
}

/// Whether `root` may wrap KEKs which the chain has: it opens one that it wrapped, or wrapped none.
///
/// # Errors
/// [`Kind::Conflict`] when its key is another one, [`Kind::RootUnavailable`] when it does not
/// answer, [`Kind::StoreUnavailable`].
pub(in crate::service) async fn may_add(
    core: &Core,
    chain: &ChainName,
    root: &str,
    held: &[(KekId, Kek)],
) -> Result<(), Error> {
    let state = core.keyring.roots.iter().find(|state| *state.named.name == *root);
    let Some(state) = state else { return Ok(()) };
    let verdict = match judge(core, state, &mut Keks::with_archived(chain, held)).await? {
        Verdict::Unused => unused(core, chain, state).await?,
        verdict => verdict,
    };
    match verdict {
        Verdict::Opens | Verdict::Unused => Ok(()),
        Verdict::Other => Err(another(state)),
        Verdict::Silent => {
            Err(Error::new(Kind::RootUnavailable, format!("root {root} does not answer")))
        }
    }
}

/// Has a root that has opened nothing yet open a KEK, so that readiness knows whether its key is
/// the right one.
pub(in crate::service) async fn sample(core: &Core, chain: &Chain, state: &RootState) -> bool {
    let held = chain.reservations.lock().await.ledger.held();
    for (id, kek) in held {
        if let Some(wrap) = kek.wraps.iter().find(|wrap| *wrap.root == *state.named.name) {
            let opened = core.keyring.open_by(state, &chain.name, id, kek.suite, &wrap.bytes).await;
            return !matches!(opened, Err(root::Error::Away(_)));
        }
    }
    false
}

/// What a root is that wrapped no KEK of `chain`.
async fn unused(core: &Core, chain: &ChainName, state: &RootState) -> Result<Verdict, Error> {
    if state.is_another() {
        return Ok(Verdict::Other);
    }
    let compared = root_check::compare(core, state).await;
    Ok(match compared.map_err(|error| core.store_error(chain, error))? {
        Comparison::New | Comparison::Same => Verdict::Unused,
        Comparison::Other => Verdict::Other,
        Comparison::Silent => Verdict::Silent,
    })
}

fn another(state: &RootState) -> Error {
    let why = state.wrong().unwrap_or_else(|| "it opens none of its wraps".to_owned());
    let name = &state.named.name;
    let detail = format!(
        "root {name} has another key than before: {why}. If this key is the right one: take the \
            root out of the configuration, run `kms-proxy root remove --root {name}`, and \
            configure it again"
    );
    Error::new(Kind::Conflict, detail)
}

/// The KEKs of a chain: those that are known, and all others where these do not tell.
struct Keks<'a> {
    chain: &'a ChainName,
    held: &'a [(KekId, Kek)],
    listed: Option<Vec<(KekId, Kek)>>,
    /// Whether archived KEKs count if the store has none, or none by a root.
    asks_archives: bool,
    archived: Option<Vec<(KekId, Kek)>>,
}

impl<'a> Keks<'a> {
    fn new(chain: &'a ChainName, held: &'a [(KekId, Kek)]) -> Self {
        Self { chain, held, listed: None, asks_archives: false, archived: None }
    }

    /// The same, and archived KEKs count.
    fn with_archived(chain: &'a ChainName, held: &'a [(KekId, Kek)]) -> Self {
        Self { asks_archives: true, ..Self::new(chain, held) }
    }

    /// The wraps by `root` among KEKs that are known, the newest first; else among all in the
    /// store; else among archived ones: the store may have been lost, and have new KEKs only.
    async fn wrapped_by(&mut self, core: &Core, root: &str) -> Result<Vec<(KekId, Kek)>, Error> {
        let of = |keks: &[(KekId, Kek)]| -> Vec<_> {
            let wrapped = |(_, kek): &&(KekId, Kek)| kek.wraps.iter().any(|it| it.root == root);
            keks.iter().filter(wrapped).cloned().collect()
        };
        let mut keks = of(self.held);
        // One that is known may be the exception.
        keks.extend(of(self.listed.as_deref().unwrap_or_default()));
        if keks.is_empty() && self.listed.is_none() {
            keks = of(self.list(core).await?);
        }
        if keks.is_empty() && self.asks_archives {
            keks = of(self.archived(core).await?);
        }
        keks.sort_by_key(|(_, kek)| std::cmp::Reverse(kek.promoted_at.unwrap_or(kek.created_at)));
        Ok(keks)
    }

    /// Whether no KEK is there that could be opened.
    async fn is_empty(&mut self, core: &Core) -> Result<bool, Error> {
        let is_alive = |(_, kek): &(KekId, Kek)| !kek.wraps.is_empty();
        Ok(!self.held.iter().any(is_alive) && !self.list(core).await?.iter().any(is_alive))
    }

    /// Reads all KEKs once. A damaged record is left out: whatever reads it reports it.
    async fn list(&mut self, core: &Core) -> Result<&[(KekId, Kek)], Error> {
        if self.listed.is_none() {
            let (prefix, mut keks, mut after) =
                (record::keks_prefix(self.chain), Vec::new(), None::<String>);
            loop {
                let page = core.store.list(&prefix, after.as_deref(), PAGE).await;
                let page = page.map_err(|error| core.store_error(self.chain, error))?;
                keks.extend(page.iter().filter_map(|entry| {
                    let id = entry.key.strip_prefix(&prefix)?.parse().ok()?;
                    Some((id, Kek::decode(&entry.key, &entry.value).ok()?))
                }));
                match page.last() {
                    Some(last) if page.len() == PAGE && keks.len() < MOST => {
                        after = Some(last.key.clone());
                    }
                    _ => break,
                }
            }
            let is_alive = |(_, kek): &(KekId, Kek)| !kek.wraps.is_empty();
            if self.asks_archives && !keks.iter().any(is_alive) {
                // The store may have been lost.
                keks.extend_from_slice(self.archived(core).await?);
            }
            self.listed = Some(keks);
        }
        Ok(self.listed.as_deref().unwrap_or_default())
    }

    /// Reads a sample of the archived KEKs once.
    async fn archived(&mut self, core: &Core) -> Result<&[(KekId, Kek)], Error> {
        if self.archived.is_none() {
            let archived = find::sample(core, Some(self.chain)).await?;
            self.archived = Some(archived.into_iter().map(|(_, id, kek)| (id, kek)).collect());
        }
        Ok(self.archived.as_deref().unwrap_or_default())
    }
}

/// What a root makes of the KEKs of a chain.
async fn judge(core: &Core, state: &RootState, keks: &mut Keks<'_>) -> Result<Verdict, Error> {
    let chain = keks.chain;
    let is_fresh = |at| core.clock.now().since(at) < core.config.cache.kek_max_age;
    if state.opened_at(chain).is_some_and(is_fresh) {
        return Ok(Verdict::Opens);
    }
    let mut wrapped = keks.wrapped_by(core, &state.named.name).await?;
    // A root that unwraps what it wrapped in this process proves nothing.
    wrapped.retain(|(id, _)| !state.is_own(chain, *id));
    let mut verdict = Verdict::Unused;
    for (id, kek) in wrapped.iter().take(TRIES) {
        if state.is_wrong(chain, *id, core.clock.now()) {
            verdict = Verdict::Other;
            continue;
        }
        let wraps = kek.wraps.iter().filter(|wrap| *wrap.root == *state.named.name);
        for wrap in wraps {
            match core.keyring.open_by(state, chain, *id, kek.suite, &wrap.bytes).await {
                Ok(_) => return Ok(Verdict::Opens),
                Err(root::Error::Wrong(_)) => verdict = Verdict::Other,
                Err(_) => return Ok(Verdict::Silent),
            }
        }
    }
    if verdict == Verdict::Other && keks.listed.is_none() {
        // The primary and the standby are not enough: one of them may be damaged.
        keks.list(core).await?;
        return Box::pin(judge(core, state, keks)).await;
    }
    Ok(verdict)
}

/// The error if no root may wrap: no KEK is created.
fn refused(core: &Core, chain: &ChainName) -> Error {
    let wrong =
        core.keyring.roots.iter().filter_map(|state| {
            state.wrong().map(|why| format!("root {}: {why}", state.named.name))
        });
    let wrong: Vec<_> = wrong.collect();
    let why = match wrong.is_empty() {
        true => "no configured root wrapped them, or none that did answers".to_owned(),
        false => wrong.join("; "),
    };
    // In an outage nothing is lost, and a forced rotation would fail as well.
    let roots: Vec<_> = core.keyring.roots.iter().map(|state| &*state.named.name).collect();
    let remedy = match core.keyring.roots.may_be_lost(&roots) {
        false => "The chain recovers when its roots answer".to_owned(),
        true => format!(
            "Where the key of the old root is lost for good: kms-proxy rotate --force --chain \
             {chain}"
        ),
    };
    Error::new(Kind::RootUnavailable, "no root opens the KEKs of this chain").with_advice(format!(
        "no new KEK is made, since nothing under it would decrypt once the roots are corrected \
            ({why}). {remedy}"
    ))
}
