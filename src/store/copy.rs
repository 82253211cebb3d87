//! Copies of chains from one store to another: safe to break off, to repeat, and to run into a
//! store that a service uses.
//!
//! A chain is looked at as a whole first: where the target holds something newer, or another chain
//! of the same name, nothing of it is written. Then its KEKs are written a page at a time, and last
//! its head with the KEKs that either store's head names, in one transaction. It knows records, and
//! no roots: a KEK stays wrapped as it is.
//!
//! # Uses
//!
//! A KEK's count of uses must be one count. So a copy's primary and standby are retired: they
//! decrypt, and the service at the target makes a new KEK. Only who is certain that the source will
//! never encrypt again may keep them.

use crate::id::ChainName;

use super::record::{Kek, State};
use super::{Error, Problem, Store};

mod batch;
mod chain;
mod merge;

#[cfg(test)]
mod tests;

/// What becomes of the primary and the standby of a chain in its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primaries {
    /// They only decrypt there. The source may continue to encrypt.
    Retire,
    /// They stay what they are. The source must be stopped, for good, before the copy is begun.
    Keep,
}

/// What a copy has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Chains that the target holds now as the source does.
    pub chains: u64,
    /// Records written where there was none.
    pub added: u64,
    /// Records written over an earlier state of themselves.
    pub moved: u64,
    /// Records that the target held already.
    pub same: u64,
    /// KEKs that only decrypt at the target and do more at the source.
    pub retired: u64,
    /// What was left out or refused, and why. A refusal leaves out a chain.
    pub problems: Vec<Problem>,
}

/// Copies the chains of `from` to `to`: all of them if `only` is empty. `progress` is called
/// at intervals.
///
/// # Errors
/// [`Error::Unavailable`] when one of the stores is. What was written until then is good; a
/// repeated copy continues from it.
pub async fn copy(
    from: &dyn Store,
    to: &dyn Store,
    only: &[ChainName],
    primaries: Primaries,
    mut progress: impl FnMut(&CopyReport),
) -> Result<CopyReport, Error> {
    let mut report = CopyReport::default();
    for chain in choose(from, only, &mut report.problems).await? {
        let copy = chain::Copy { from, to, chain: &chain, primaries };
        copy.run(&mut report, &mut progress).await?;
        progress(&report);
    }
    Ok(report)
}

/// The chains of `store` that are meant. A name that is there for nothing is a problem.
pub(super) async fn choose(
    store: &dyn Store,
    only: &[ChainName],
    problems: &mut Vec<Problem>,
) -> Result<Vec<ChainName>, Error> {
    let (mut chains, strays) = super::chains(store).await?;
    if only.is_empty() {
        problems.extend(strays);
        return Ok(chains);
    }
    for name in only.iter().filter(|name| !chains.contains(name)) {
        problems.push(Problem::new(super::record::head_key(name), "there is no such chain"));
    }
    chains.retain(|name| only.contains(name));
    Ok(chains)
}

/// Whether a KEK encrypts, or is going to.
fn encrypts(kek: &Kek) -> bool {
    matches!(kek.state, State::Standby | State::Primary)
}
