//! Compares all records of the store with an archive: what the archive lacks becomes due, and what
//! it has is compared record by record. The key of the audit log is archived immediately.

use std::collections::HashSet;

use crate::archive::object::{self, Part, Wraps};
use crate::id::ChainName;
use crate::service::core::Core;
use crate::store::Store as _;
use crate::store::record::{self, Kek, Record as _};
use crate::store::records;

use super::archives::One;
use super::audit_key;
use super::sync::{Failed, call};

/// Records of one read of the store, and keys of one list of an archive.
const PAGE: usize = 500;
const KEYS: usize = 1_000;

/// Compares all chains, and the key of the audit log.
pub(super) async fn all(core: &Core, one: &One) -> Result<(), Failed> {
    for chain in records::chains(&*core.store).await? {
        of_chain(core, one, &chain).await?;
    }
    audit_key::sync(core, one).await?;
    one.note_compared();
    Ok(())
}

async fn of_chain(core: &Core, one: &One, chain: &ChainName) -> Result<(), Failed> {
    let before = one.keks(chain);
    let (mut listed, mut has_settings) = (HashSet::new(), false);
    let (prefix, mut after) = (object::chain_prefix(chain), None::<String>);
    loop {
        let keys = call(core, one, one.archive.list(&prefix, after.as_deref(), KEYS)).await?;
        for (_, part) in keys.iter().filter_map(|key| object::parse_key(key)) {
            match part {
                Part::Chain => has_settings = true,
                Part::Kek(id) => _ = listed.insert(id),
            }
        }
        match keys.last() {
            Some(last) if keys.len() == KEYS => after = Some(last.clone()),
            _ => break,
        }
    }
    one.note_listed(chain, &before, &listed, has_settings);
    let (prefix, mut after, mut has_keks) = (record::keks_prefix(chain), None::<String>, false);
    loop {
        let page = core.store.list(&prefix, after.as_deref(), PAGE).await?;
        for entry in &page {
            let id = entry.key.strip_prefix(&prefix).and_then(|id| id.parse().ok());
            // Whatever reads a damaged record reports it.
            let (Some(id), Ok(kek)) = (id, Kek::decode(&entry.key, &entry.value)) else { continue };
            has_keks = true;
            let item = (chain.clone(), Some(id));
            if !listed.contains(&id) {
                one.want(item, Wraps::Join, false);
            } else if !one.has(chain, id, &kek) {
                one.want_check(item);
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            _ => break,
        }
    }
    // A chain without KEKs has nothing to lose, and may be deleted.
    if has_keks && !has_settings {
        one.want((chain.clone(), None), Wraps::Join, false);
    } else if has_keks && !one.has_settings(chain) {
        one.want_check((chain.clone(), None));
    }
    Ok(())
}
