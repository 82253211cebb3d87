//! Verifies a store: every configured root must unwrap the KEKs that it wrapped, and the records of
//! each chain must be consistent. It changes nothing.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::id::{ChainName, KekId, Suite};
use crate::root::{self, Context};
use crate::store::record::{self, AUDIT_KEY, AUDIT_LOG, Head, State, Wrap};
use crate::store::{self, Error, Ids, Pair, Store};

use super::keyring::{CONCURRENT_UNWRAPS, ROOT_DEADLINE, check};

/// The bound of NIST SP 800-38D, section 8.3, which no limits of a chain may exceed.
const MOST_USES: u64 = 1 << 32;

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Chains examined.
    pub chains: u64,
    /// KEKs examined, including tombstones.
    pub keks: u64,
    /// Wraps that unwrapped to the right KEK.
    pub opened: u64,
    /// What is wrong, in no particular order.
    pub problems: Vec<Problem>,
}

/// A problem with a stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key of the record.
    pub key: String,
    /// What is wrong with it.
    pub defect: Defect,
}

/// What can be wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The record is damaged, missing, or inconsistent with others.
    Record(String),
    /// None of the roots that wrapped the KEK is configured; their names.
    NoRoot(Vec<String>),
    /// A configured root did not unwrap the KEK.
    Root {
        /// The name of the root.
        root: String,
        /// Its error.
        error: root::Error,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.defect {
            Defect::Record(detail) => write!(f, "{key}: {detail}"),
            Defect::NoRoot(names) => {
                let names = names.join(", ");
                write!(f, "{key}: none of the roots that wrapped it is configured: {names}")
            }
            Defect::Root { root, error } => write!(f, "{key}: root {root}: {error}"),
        }
    }
}

impl Problem {
    fn new(key: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { key: key.into(), defect: Defect::Record(detail.into()) }
    }
}

impl From<store::Problem> for Problem {
    fn from(store::Problem { key, detail }: store::Problem) -> Self {
        Self::new(key, detail)
    }
}

/// Verifies all chains of `store`, and the key of the audit log if it has one, with one root call
/// for each wrap. Calls `progress` as it proceeds.
///
/// # Errors
/// [`Error::Unavailable`] if the store is unavailable. An unavailable root is a problem of each
/// KEK.
pub async fn verify(
    store: &dyn Store,
    roots: &[root::Named],
    mut progress: impl FnMut(&Report),
) -> Result<Report, Error> {
    let mut verifier = Verifier { store, roots, report: Report::default(), calls: JoinSet::new() };
    let (chains, strays) = store::chains(store).await?;
    verifier.report.problems.extend(strays.into_iter().map(Problem::from));
    for chain in chains {
        verifier.chain(&chain, &mut progress).await?;
    }
    verifier.audit_key().await?;
    while verifier.landed().await {
        progress(&verifier.report);
    }
    Ok(verifier.report)
}

struct Verifier<'a> {
    store: &'a dyn Store,
    roots: &'a [root::Named],
    report: Report,
    /// The root calls in progress.
    calls: JoinSet<Result<(), Problem>>,
}

impl Verifier<'_> {
    async fn chain(
        &mut self,
        chain: &ChainName,
        progress: &mut impl FnMut(&Report),
    ) -> Result<(), Error> {
        self.report.chains += 1;
        let mut suspects = HashSet::new();
        let head = match store::head(self.store, chain).await? {
            Ok(Some(head)) => {
                suspects.extend(head.record.primary.into_iter().chain(head.record.standby));
                Some(head.record)
            }
            Ok(None) => {
                self.wrong(record::head_key(chain), "it is missing");
                None
            }
            Err(problem) => {
                self.report.problems.push(problem.into());
                None
            }
        };
        let mut ids = Ids::of_keks(self.store, chain);
        while let Some((page, strays)) = ids.next().await? {
            self.report.problems.extend(strays.into_iter().map(Problem::from));
            for pair in store::pairs(self.store, chain, &page).await? {
                self.pair(chain, pair, &mut suspects).await;
                progress(&self.report);
            }
        }
        if head.is_some() {
            self.states(chain, suspects.into_iter().collect()).await?;
        }
        self.uses(chain).await
    }

    /// The two records of a KEK. One that encrypts goes to `suspects`: the head must name it.
    async fn pair(&mut self, chain: &ChainName, pair: Pair, suspects: &mut HashSet<KekId>) {
        self.report.keks += 1;
        let Pair { id, kek, uses } = pair;
        match uses {
            Ok(Some(uses)) if uses.record.reserved > MOST_USES => {
                self.wrong(
                    uses.entry.key,
                    format!("{} uses are more than 2^32", uses.record.reserved),
                );
            }
            Ok(Some(_)) => {}
            Ok(None) => self.wrong(record::uses_key(chain, id), "it is missing"),
            Err(problem) => self.report.problems.push(problem.into()),
        }
        let (key, kek) = match kek {
            Ok(Some(kek)) => (kek.entry.key, kek.record),
            // It was listed a moment ago.
            Ok(None) => return self.wrong(record::kek_key(chain, id), "it is missing"),
            Err(problem) => return self.report.problems.push(problem.into()),
        };
        match kek.state {
            State::Standby | State::Primary => _ = suspects.insert(id),
            State::Destroyed if !kek.wraps.is_empty() => {
                self.wrong(&key, "it is destroyed, and has wraps");
            }
            State::Retired | State::Disabled | State::Destroyed => {}
        }
        if kek.state != State::Destroyed {
            self.open(chain, (id, kek.suite), key, &kek.wraps).await;
        }
    }

    /// The key of the audit log, which is wrapped like a KEK.
    async fn audit_key(&mut self) -> Result<(), Error> {
        match (store::audit_key(self.store).await?, ChainName::new(AUDIT_LOG)) {
            (Ok(Some(key)), Ok(chain)) => {
                let (id, wraps) = (key.record.id, key.record.wraps);
                self.open(&chain, (id, Suite::Aes256Gcm), AUDIT_KEY.to_owned(), &wraps).await;
            }
            (Err(problem), _) => self.report.problems.push(problem.into()),
            (Ok(_), _) => {}
        }
        Ok(())
    }

    /// Has every configured root that wrapped a key unwrap it.
    async fn open(
        &mut self,
        chain: &ChainName,
        (id, suite): (KekId, Suite),
        key: String,
        wraps: &[Wrap],
    ) {
        if wraps.is_empty() {
            return self.wrong(key, "no root wrapped it");
        }
        let mut known = false;
        for wrap in wraps {
            let Some(named) = self.roots.iter().find(|named| *named.name == *wrap.root) else {
                continue;
            };
            known = true;
            while self.calls.len() >= CONCURRENT_UNWRAPS {
                self.landed().await;
            }
            let (root, chain) = (Arc::clone(&named.root), chain.clone());
            let (key, wrap) = (key.clone(), wrap.clone());
            self.calls.spawn(async move {
                let context = Context { chain: &chain, kek_id: id, suite };
                let opened = tokio::time::timeout(ROOT_DEADLINE, root.unwrap(context, &wrap.bytes));
                let opened = opened
                    .await
                    .unwrap_or_else(|_| Err(root::Error::Away("no answer in 15 s".to_owned())));
                let opened = opened.and_then(|opened| check(opened, &context));
                opened.map(drop).map_err(|error| Problem {
                    key,
                    defect: Defect::Root { root: wrap.root, error },
                })
            });
        }
        if !known {
            let names = wraps.iter().map(|wrap| wrap.root.clone()).collect();
            self.report.problems.push(Problem { key, defect: Defect::NoRoot(names) });
        }
    }

    /// Waits for the result of one root call; returns false if none is in progress.
    async fn landed(&mut self) -> bool {
        match self.calls.join_next().await {
            Some(Ok(Ok(()))) => self.report.opened += 1,
            Some(Ok(Err(problem))) => self.report.problems.push(problem),
            Some(Err(error)) => self.wrong("(a call of a root)", error.to_string()),
            None => return false,
        }
        true
    }

    /// Compares the head with the KEKs that it names and those whose state is primary or standby.
    /// They are read together, since a service may have promoted one meanwhile.
    async fn states(&mut self, chain: &ChainName, ids: Vec<KekId>) -> Result<(), Error> {
        let (head, pairs) = store::head_and_pairs(self.store, chain, &ids).await?;
        // Damage is reported already.
        let Ok(Some(head)) = head else { return Ok(()) };
        let key = head.entry.key;
        let Head { primary, standby, limits, .. } = head.record;
        if primary.is_some() && primary == standby {
            self.wrong(&key, "primary and standby are the same");
        }
        for pair in pairs {
            let named = [(primary, State::Primary), (standby, State::Standby)]
                .into_iter()
                .find_map(|(id, state)| (id == Some(pair.id)).then_some(state));
            let state = match &pair.kek {
                Ok(kek) => kek.as_ref().map(|kek| kek.record.state),
                Err(_) => continue,
            };
            let id = pair.id;
            match (named, state) {
                (Some(named), None) => {
                    self.wrong(&key, format!("its {} {id} is missing", named.as_str()));
                }
                (Some(named), Some(state)) if named != state => {
                    let (named, state) = (named.as_str(), state.as_str());
                    self.wrong(&key, format!("its {named} {id} is {state}"));
                }
                (None, Some(state @ (State::Standby | State::Primary))) => {
                    let detail = format!("it is {}, and the head does not name it", state.as_str());
                    self.wrong(record::kek_key(chain, id), detail);
                }
                _ => {}
            }
            let uses = pair.uses.ok().flatten().filter(|_| named.is_some());
            if let Some(uses) = uses.filter(|uses| uses.record.reserved > limits.max_uses) {
                let (reserved, most) = (uses.record.reserved, limits.max_uses);
                self.wrong(
                    uses.entry.key,
                    format!("{reserved} uses are more than max_uses, {most}"),
                );
            }
        }
        Ok(())
    }

    /// Reports counters of uses whose KEK is missing.
    async fn uses(&mut self, chain: &ChainName) -> Result<(), Error> {
        let mut ids = Ids::of_uses(self.store, chain);
        while let Some((page, strays)) = ids.next().await? {
            self.report.problems.extend(strays.into_iter().map(Problem::from));
            for pair in store::pairs(self.store, chain, &page).await? {
                if matches!(pair.kek, Ok(None)) {
                    self.wrong(
                        record::kek_key(chain, pair.id),
                        "it is missing, and its uses are there",
                    );
                }
            }
        }
        Ok(())
    }

    fn wrong(&mut self, key: impl Into<String>, detail: impl Into<String>) {
        self.report.problems.push(Problem::new(key, detail));
    }
}

#[cfg(test)]
mod tests;
