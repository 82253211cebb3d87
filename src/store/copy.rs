//! Copies of chains from one store to another. It is safe to interrupt and to repeat a copy, and to
//! copy into a store that a service uses.
//!
//! A whole chain is checked first: if the target has something newer, or another chain with the
//! same name, nothing of it is written. Then its KEKs are written a page at a time, and last its
//! head with the KEKs that the head in either store names, in one transaction. Roots are not
//! involved: KEKs stay wrapped as they are. A copy of all chains includes the key of the audit log,
//! which belongs to no chain.
//!
//! # Uses
//!
//! The uses of a KEK must be counted in one place. So the primary and the standby of a copy are
//! retired: they only decrypt, and the service at the target creates a new KEK. Keep them only if
//! it is certain that the source will never encrypt again.

use crate::id::ChainName;

use super::record::{Kek, State};
use super::{Error, Problem, Store};

mod audit_key;
mod batch;
mod chain;
mod merge;

#[cfg(test)]
mod tests;

/// What a copy does with the primary and the standby of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primaries {
    /// They only decrypt in the copy. The source may continue to encrypt.
    Retire,
    /// They keep their states. The source must be stopped permanently before the copy begins.
    Keep,
}

/// The result of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Chains that are now the same in the target as in the source.
    pub chains: u64,
    /// Records that were new in the target.
    pub added: u64,
    /// Records that replaced an earlier state of themselves.
    pub moved: u64,
    /// Records that the target already had.
    pub same: u64,
    /// KEKs that were retired in the copy.
    pub retired: u64,
    /// What was left out or refused, and why. A refusal leaves out the whole chain.
    pub problems: Vec<Problem>,
}

/// Copies the chains of `from` to `to`: all of them if `only` is empty. Calls `progress` from time
/// to time.
///
/// # Errors
/// [`Error::Unavailable`] if one of the stores is unavailable. What was written until then is
/// valid, and repeating the copy continues from there.
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
    if only.is_empty() {
        audit_key::copy(from, to, &mut report).await?;
    }
    Ok(report)
}

/// The selected chains of `store`. A name in `only` without a chain is a problem.
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

/// Whether a KEK encrypts, or will encrypt.
fn encrypts(kek: &Kek) -> bool {
    matches!(kek.state, State::Standby | State::Primary)
}
