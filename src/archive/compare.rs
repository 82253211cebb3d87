//! Compares a store with an archive. It changes nothing.

use crate::id::ChainName;
use crate::store::record::{Kek, State};
use crate::store::{self, Ids, Pair, Problem, Store, chains, head, pairs};

use super::object::{self, Chain, Merged, Wraps, merge};
use super::recover::{audit_key, keys_of, read_chain, read_keks};
use super::{Error, Named};

/// KEKs that are compared at the same time.
const PAGE: usize = 32;

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Chains of the store and of the archive.
    pub chains: u64,
    /// KEKs of the store and of the archive.
    pub keks: u64,
    /// What differs, by the key of its object in the archive.
    pub differences: Vec<Problem>,
}

/// Why a comparison ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The archive could not be listed.
    #[error(transparent)]
    Archive(#[from] Error),
}

/// Compares `store` with an archive. Calls `progress` from time to time.
///
/// # Errors
/// [`CompareError`]. An object that can't be read is a difference.
pub async fn compare(
    store: &dyn Store,
    named: &Named,
    mut progress: impl FnMut(&Report),
) -> Result<Report, CompareError> {
    let mut report = Report::default();
    let (mut archived, strays) = keys_of(named).await?;
    report.differences.extend(strays);
    let (names, _) = chains(store).await?;
    for name in names {
        archived.entry(name).or_default();
    }
    for (chain, mut ids) in archived {
        report.chains += 1;
        let mut of_store = Ids::of_keks(store, &chain);
        while let Some((page, _)) = of_store.next().await? {
            ids.extend(page);
        }
        compare_chain(store, named, &chain, &mut report).await?;
        let ids: Vec<_> = ids.into_iter().collect();
        for page in ids.chunks(PAGE) {
            let stored = pairs(store, &chain, page).await?;
            let found = read_keks(named, &chain, page).await;
            for (stored, found) in stored.iter().zip(found) {
                report.keks += 1;
                let key = object::kek_key(&chain, stored.id);
                match found.map(|found| difference(stored, found.as_ref())) {
                    Ok(None) => {}
                    Ok(Some(detail)) => report.differences.push(Problem { key, detail }),
                    Err(problem) => report.differences.push(problem),
                }
            }
            progress(&report);
        }
    }
    report.differences.extend(audit_key::difference(store, named).await?);
    Ok(report)
}

async fn compare_chain(
    store: &dyn Store,
    named: &Named,
    chain: &ChainName,
    report: &mut Report,
) -> Result<(), store::Error> {
    let stored = head(store, chain).await?;
    let archived = read_chain(named, chain).await;
    let detail = match (stored, archived) {
        (Err(problem), _) | (_, Err(problem)) => {
            report.differences.push(problem);
            return Ok(());
        }
        (Ok(None), Ok(_)) => "the chain is not in the store",
        (Ok(Some(_)), Ok(None)) => "the chain is not in the archive",
        (Ok(Some(head)), Ok(Some(archived))) => {
            let stored = Chain::of(&head.record);
            if stored == archived {
                return Ok(());
            }
            "the settings are not those of the store"
        }
    };
    let key = object::chain_key(chain);
    report.differences.push(Problem { key, detail: detail.to_owned() });
    Ok(())
}

/// How a KEK differs; `None` if it does not.
fn difference(stored: &Pair, archived: Option<&Kek>) -> Option<String> {
    let stored = match &stored.kek {
        Ok(stored) => stored.as_ref().map(|read| &read.record),
        Err(problem) => return Some(format!("in the store {}", problem.detail)),
    };
    let detail = match (stored, archived) {
        (None, None) => return None,
        (None, Some(_)) => "it is not in the store",
        (Some(_), None) => "it is not in the archive",
        (Some(stored), Some(archived)) => {
            let is_later = archived.was_withdrawn() && archived.progress() > stored.progress();
            if is_later {
                let (there, here) = (archived.state.as_str(), stored.state.as_str());
                return Some(format!("it is {there} in the archive, and {here} in the store"));
            }
            match merge(archived, stored, Wraps::Replace) {
                Merged::Keep => return None,
                Merged::Replace(merged) if merged.state == State::Destroyed => {
                    "it is destroyed in the store, and the archive still has its wraps"
                }
                Merged::Replace(merged) if merged.state != archived.state => {
                    let (there, here) = (archived.state.as_str(), stored.state.as_str());
                    return Some(format!("it is {there} in the archive, and {here} in the store"));
                }
                Merged::Replace(_) => "its wraps are not those of the store",
            }
        }
    };
    Some(detail.to_owned())
}

#[cfg(test)]
mod tests;
