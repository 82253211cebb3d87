//! The objects of an archive: one for each KEK, one for each chain, and one for the key of the
//! audit log, with a check of what is read.
//!
//! Pure functions. This file does not know when an object is written, or where to.
//!
//! The stored record is a string within the object, so that its bytes are exact: any program can
//! compute the digest, and no two programs need to agree on how to write JSON.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::{ChainName, KekId, Suite};
use crate::store::record::{AUDIT_LOG, AuditKey, Head, Kek, Limits, Record, State};

/// The prefix of all keys of chains.
pub const PREFIX: &str = "v1/";

/// The key of the object of the audit log's key, which belongs to no chain.
pub const AUDIT_KEY: &str = "audit/key.json";

/// The format that this code writes. It reads no other.
const FORMAT: u32 = 1;

/// The name of the object of a chain among those of its KEKs.
const CHAIN: &str = "chain.json";

/// What a key names within its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The chain's [`Chain`].
    Chain,
    /// A [`Kek`].
    Kek(KekId),
}

/// What an archive keeps about a chain: what is needed to create it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// The suite of new KEKs.
    pub suite: Suite,
    /// When KEKs are replaced.
    pub limits: Limits,
    /// Whether new envelopes embed the wrapped KEK as well.
    pub inline: bool,
}

impl Chain {
    /// What an archive keeps of `head`.
    #[must_use]
    pub const fn of(head: &Head) -> Self {
        Self { suite: head.suite, limits: head.limits, inline: head.inline }
    }
}

/// An object that is not what its key says. A retry does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object {key} is damaged: {detail}")]
pub struct Damaged {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub detail: String,
}

/// The prefix of the keys of a chain.
#[must_use]
pub fn chain_prefix(chain: &ChainName) -> String {
    format!("{PREFIX}{chain}/")
}

/// The key of the object of a chain.
#[must_use]
pub fn chain_key(chain: &ChainName) -> String {
    format!("{PREFIX}{chain}/{CHAIN}")
}

/// The key of the object of a KEK.
#[must_use]
pub fn kek_key(chain: &ChainName, id: KekId) -> String {
    format!("{PREFIX}{chain}/{id}.json")
}

/// The chain of a key, and the part that it names; `None` if it is not the key of an object.
#[must_use]
pub fn parse_key(key: &str) -> Option<(ChainName, Part)> {
    let (chain, name) = key.strip_prefix(PREFIX)?.split_once('/')?;
    let part = match name {
        CHAIN => Part::Chain,
        _ => Part::Kek(name.strip_suffix(".json")?.parse().ok()?),
    };
    Some((ChainName::new(chain).ok()?, part))
}

/// The object of a KEK.
///
/// # Errors
/// None that these types can cause; a serializer's own.
pub fn encode_kek(chain: &ChainName, id: KekId, kek: &Kek) -> Result<Vec<u8>, Damaged> {
    let key = kek_key(chain, id);
    let record = kek.encode().map_err(|error| damaged(&key, error.to_string()))?;
    encode(&key, chain, Some(id), record)
}

/// The object of a chain.
///
/// # Errors
/// None that these types can cause; a serializer's own.
pub fn encode_chain(chain: &ChainName, settings: &Chain) -> Result<Vec<u8>, Damaged> {
    let key = chain_key(chain);
    let record = serde_json::to_vec(settings).map_err(|error| damaged(&key, error.to_string()))?;
    encode(&key, chain, None, record)
}

/// The KEK in the object of `chain` and `id`. The id is that of the object, not yet that of the
/// key: the key must be unwrapped to check that.
///
/// # Errors
/// [`Damaged`].
pub fn decode_kek(chain: &ChainName, id: KekId, bytes: &[u8]) -> Result<Kek, Damaged> {
    let key = kek_key(chain, id);
    let record = decode(&key, chain, Some(id), bytes)?;
    let kek =
        Kek::decode(&key, record.as_bytes()).map_err(|error| damaged(&key, error.to_string()))?;
    if kek.wraps.is_empty() != (kek.state == State::Destroyed) {
        return Err(damaged(&key, "only a destroyed KEK has no wraps".to_owned()));
    }
    Ok(kek)
}

/// The settings in the object of `chain`.
///
/// # Errors
/// [`Damaged`].
pub fn decode_chain(chain: &ChainName, bytes: &[u8]) -> Result<Chain, Damaged> {
    let key = chain_key(chain);
    let record = decode(&key, chain, None, bytes)?;
    let settings: Chain =
        serde_json::from_str(&record).map_err(|error| damaged(&key, error.to_string()))?;
    settings.limits.validate().map_err(|detail| damaged(&key, detail.to_owned()))?;
    Ok(settings)
}

/// The object of the audit log's key.
///
/// # Errors
/// None that these types can cause; a serializer's own.
pub fn encode_audit_key(record: &AuditKey) -> Result<Vec<u8>, Damaged> {
    let encoded = record.encode().map_err(|error| damaged(AUDIT_KEY, error.to_string()))?;
    encode(AUDIT_KEY, &audit_log()?, Some(record.id), encoded)
}

/// The record in the object of the audit log's key.
///
/// # Errors
/// [`Damaged`].
pub fn decode_audit_key(bytes: &[u8]) -> Result<AuditKey, Damaged> {
    let probe: Probe =
        serde_json::from_slice(bytes).map_err(|error| damaged(AUDIT_KEY, error.to_string()))?;
    let record = decode(AUDIT_KEY, &audit_log()?, probe.kek_id, bytes)?;
    let record = AuditKey::decode(AUDIT_KEY, record.as_bytes())
        .map_err(|error| damaged(AUDIT_KEY, error.to_string()))?;
    if Some(record.id) != probe.kek_id {
        return Err(damaged(AUDIT_KEY, "its record has another id".to_owned()));
    }
    if record.wraps.is_empty() {
        return Err(damaged(AUDIT_KEY, "it has no wraps".to_owned()));
    }
    Ok(record)
}

fn audit_log() -> Result<ChainName, Damaged> {
    ChainName::new(AUDIT_LOG).map_err(|error| damaged(AUDIT_KEY, error.to_string()))
}

/// An object as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    chain: ChainName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kek_id: Option<KekId>,
    sha256: String,
    record: String,
}

#[derive(Deserialize)]
struct Probe {
    format: u32,
    kek_id: Option<KekId>,
}

fn encode(
    key: &str,
    chain: &ChainName,
    kek_id: Option<KekId>,
    record: Vec<u8>,
) -> Result<Vec<u8>, Damaged> {
    let record = String::from_utf8(record).map_err(|error| damaged(key, error.to_string()))?;
    let sha256 = digest(chain, kek_id, &record);
    let object = Written { format: FORMAT, chain: chain.clone(), kek_id, sha256, record };
    serde_json::to_vec(&object).map_err(|error| damaged(key, error.to_string()))
}

fn decode(
    key: &str,
    chain: &ChainName,
    kek_id: Option<KekId>,
    bytes: &[u8],
) -> Result<String, Damaged> {
    let probe: Probe =
        serde_json::from_slice(bytes).map_err(|error| damaged(key, error.to_string()))?;
    if probe.format != FORMAT {
        let detail = format!("its format is {}, this version reads {FORMAT}", probe.format);
        return Err(damaged(key, detail));
    }
    let object: Written =
        serde_json::from_slice(bytes).map_err(|error| damaged(key, error.to_string()))?;
    if (&object.chain, object.kek_id) != (chain, kek_id) {
        return Err(damaged(key, "it is the object of another key".to_owned()));
    }
    if digest(chain, kek_id, &object.record) != object.sha256 {
        return Err(damaged(key, "its SHA-256 does not match".to_owned()));
    }
    Ok(object.record)
}

/// SHA-256 over the chain's name, the KEK's id and the record, with a line feed after each of the
/// first two. The id of a chain's object is empty.
fn digest(chain: &ChainName, kek_id: Option<KekId>, record: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(chain.as_str());
    hash.update("\n");
    if let Some(id) = kek_id {
        hash.update(id.to_hex().as_str());
    }
    hash.update("\n");
    hash.update(record);
    base16ct::lower::encode_string(&hash.finalize())
}

fn damaged(key: &str, detail: String) -> Damaged {
    Damaged { key: key.to_owned(), detail }
}

/// Which wraps remain when two records of a KEK are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wraps {
    /// Those of both. The archived wrap of a root stays, so that a store that was restored from an
    /// old copy takes no wrap out of an archive.
    Join,
    /// Those of the new record: for an operation that removes or replaces the wraps of a root.
    Replace,
}

/// What has to be done with an archived record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It stays as it is.
    Keep,
    /// It is replaced by this one.
    Replace(Kek),
}

/// Merges the record `new` of a KEK into the archived record of the same KEK.
///
/// A tombstone wins over every other record. Of the changes that operators make, disable and
/// enable, the later one wins. Whether the KEK is standby, primary or retired makes no difference,
/// because a KEK from an archive is always restored as retired.
#[must_use]
pub fn merge(archived: &Kek, new: &Kek, wraps: Wraps) -> Merged {
    if archived.state == State::Destroyed {
        return Merged::Keep;
    }
    if new.state == State::Destroyed {
        return Merged::Replace(Kek { wraps: Vec::new(), ..new.clone() });
    }
    let is_later = new.was_withdrawn() && new.progress() > archived.progress();
    let (later, earlier) = if is_later { (new, archived) } else { (archived, new) };
    let joined = match wraps {
        Wraps::Replace if !new.wraps.is_empty() => new.wraps.clone(),
        _ => {
            let is_known = |root: &str| archived.wraps.iter().any(|wrap| wrap.root == root);
            let added = new.wraps.iter().filter(|wrap| !is_known(&wrap.root));
            archived.wraps.iter().chain(added).cloned().collect()
        }
    };
    let merged = Kek {
        promoted_at: later.promoted_at.or(earlier.promoted_at),
        exposed: archived.exposed || new.exposed,
        wraps: joined,
        ..later.clone()
    };
    // The time of a promotion alone is no reason for a write.
    let changes = (merged.state, merged.disabled_at, merged.exposed)
        != (archived.state, archived.disabled_at, archived.exposed)
        || merged.wrap_missing_in(archived).is_some()
        || archived.wrap_missing_in(&merged).is_some();
    if changes { Merged::Replace(merged) } else { Merged::Keep }
}

/// Merges the stored record of the audit log's key into the archived one, of the same secret. Wraps
/// of roots that the store does not have stay with [`Wraps::Join`].
#[must_use]
pub fn merge_audit_key(archived: &AuditKey, stored: &AuditKey, wraps: Wraps) -> AuditKey {
    let is_stored = |root: &str| stored.wraps.iter().any(|wrap| wrap.root == root);
    let lacking = archived.wraps.iter().filter(|wrap| !is_stored(&wrap.root));
    let kept = lacking.filter(|_| wraps == Wraps::Join);
    AuditKey { id: stored.id, wraps: stored.wraps.iter().chain(kept).cloned().collect() }
}

#[cfg(test)]
mod tests;
