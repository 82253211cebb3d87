//! Reads from the archives what the store lacks: a KEK, the settings of a chain, and some KEKs as
//! evidence for roots. It writes nothing.
//!
//! All archives are asked, because a tombstone in any of them wins.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::archive::object::{self, Merged, PREFIX, Part, Wraps};
use crate::archive::{Object, OnFailure};
use crate::id::{ChainName, KekId};
use crate::service::core::Core;
use crate::service::error::{Error, Kind};
use crate::store::record::{Kek, State};

use super::sync::call;

/// How long the other archives are waited for when one has answered.
const OTHERS_WITHIN: Duration = Duration::from_secs(2);
/// KEKs that are read as evidence, of one archive.
const SAMPLE: usize = 16;
const KEYS: usize = 1_000;

/// The record of a KEK that the store lacks; `None` if no archive has it.
///
/// # Errors
/// [`Kind::ArchiveUnavailable`] if no archive that answers has it, and one does not answer.
/// [`Kind::Overloaded`] after too many look-ups without a result.
pub(in crate::service) async fn kek(
    core: &Arc<Core>,
    chain: &ChainName,
    id: KekId,
) -> Result<Option<Kek>, Error> {
    if core.archives.is_empty() {
        return Ok(None);
    }
    let misses = core.archives.misses(chain);
    // A caller can't have forged the id of a KEK that is known to be archived.
    let is_listed = core.archives.iter().any(|one| one.lists(chain, id));
    if !is_listed && !misses.take(core.clock.now()) {
        let detail = "too many ciphertexts named KEKs that neither the store nor an archive has";
        return Err(Error::new(Kind::Overloaded, detail).retry_after(misses.every()));
    }
    let key = object::kek_key(chain, id);
    let found = get(core, &key, |object| object::decode_kek(chain, id, &object.bytes)).await;
    let failed = found.failed("KEK", &key);
    let merged = found.items.into_iter().reduce(|a, b| match object::merge(&a, &b, Wraps::Join) {
        Merged::Keep => a,
        Merged::Replace(merged) => merged,
    });
    match merged {
        Some(kek) => {
            if !is_listed {
                misses.give_back();
            }
            Ok(Some(kek))
        }
        None if found.is_complete => Ok(None),
        None => {
            if !is_listed {
                misses.give_back();
            }
            Err(failed)
        }
    }
}

/// The settings of a chain that the store lacks.
///
/// # Errors
/// [`Kind::ArchiveUnavailable`] if no archive that answers has it, and one does not answer.
pub(in crate::service) async fn chain(
    core: &Arc<Core>,
    chain: &ChainName,
) -> Result<Option<object::Chain>, Error> {
    let key = object::chain_key(chain);
    let found = get(core, &key, |object| object::decode_chain(chain, &object.bytes)).await;
    let failed = found.failed("chain", &key);
    match found.items.into_iter().next() {
        Some(settings) => Ok(Some(settings)),
        None if found.is_complete => Ok(None),
        None => Err(failed),
    }
}

/// Whether an archive has a KEK of `chain`.
///
/// # Errors
/// [`Kind::ArchiveUnavailable`].
pub(in crate::service) async fn has_keks(core: &Core, chain: &ChainName) -> Result<bool, Error> {
    for one in core.archives.iter() {
        let prefix = object::chain_prefix(chain);
        let keys =
            call(core, one, one.archive.list(&prefix, None, 2)).await.map_err(|_| no_answer())?;
        let parts = keys.iter().filter_map(|key| object::parse_key(key));
        if parts.into_iter().any(|(_, part)| part != Part::Chain) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Some archived KEKs: of `chain`, or of all chains.
///
/// # Errors
/// [`Kind::ArchiveUnavailable`] if an archive does not answer and none is found, unless the policy
/// is to continue.
pub(in crate::service) async fn sample(
    core: &Core,
    chain: Option<&ChainName>,
) -> Result<Vec<(ChainName, KekId, Kek)>, Error> {
    let prefix = chain.map_or_else(|| PREFIX.to_owned(), object::chain_prefix);
    let (mut keks, mut is_complete) = (Vec::new(), true);
    for one in core.archives.iter() {
        let Ok(keys) = call(core, one, one.archive.list(&prefix, None, KEYS)).await else {
            is_complete = false;
            continue;
        };
        let keys = keys.iter().filter_map(|key| object::parse_key(key));
        let ids: Vec<_> = keys
            .filter_map(|(chain, part)| match part {
                Part::Kek(id) => Some((chain, id)),
                Part::Chain => None,
            })
            .collect();
        let step = (ids.len() / SAMPLE).max(1);
        for (chain, id) in ids.into_iter().step_by(step).take(SAMPLE) {
            let key = object::kek_key(&chain, id);
            let Ok(object) = call(core, one, one.archive.get(&key)).await else {
                is_complete = false;
                break;
            };
            let kek = object.and_then(|it| object::decode_kek(&chain, id, &it.bytes).ok());
            keks.extend(kek.filter(|kek| !kek.wraps.is_empty()).map(|kek| (chain, id, kek)));
        }
    }
    if keks.is_empty() && !is_complete && core.archives.policy().on_failure == OnFailure::Wait {
        return Err(no_answer());
    }
    Ok(keks)
}

fn no_answer() -> Error {
    let detail = "an archive does not answer, and may have KEKs of this chain";
    Error::new(Kind::ArchiveUnavailable, detail)
}

/// What the archives have at a key.
struct Found<T> {
    items: Vec<T>,
    /// Whether all of them answered, with a whole object or with none.
    is_complete: bool,
    /// The archives whose object is damaged.
    damaged: Vec<String>,
}

impl<T> Found<T> {
    /// Nothing usable was found, and there may be something.
    fn failed(&self, what: &str, key: &str) -> Error {
        let why = match &*self.damaged {
            [] => "an archive does not answer".to_owned(),
            names => format!("the archived object {key} is damaged in {}", names.join(", ")),
        };
        let detail = format!("the store does not have the {what}, and {why}");
        Error::new(Kind::ArchiveUnavailable, detail)
    }
}

/// Reads an object from all archives concurrently.
async fn get<T>(
    core: &Arc<Core>,
    key: &str,
    decode: impl Fn(&Object) -> Result<T, object::Damaged>,
) -> Found<T> {
    let mut calls = JoinSet::new();
    for one in core.archives.iter() {
        let (core, one, key) = (Arc::clone(core), Arc::clone(one), key.to_owned());
        calls.spawn(async move {
            let read = call(&core, &one, one.archive.get(&key)).await;
            (one, read)
        });
    }
    let mut found = Found { items: Vec::new(), is_complete: true, damaged: Vec::new() };
    let mut until = None::<Instant>;
    loop {
        let next = match until {
            None => calls.join_next().await,
            Some(until) => match timeout_at(until, calls.join_next()).await {
                Ok(next) => next,
                Err(_) => {
                    found.is_complete = false;
                    break;
                }
            },
        };
        match next {
            None => break,
            Some(Ok((one, Ok(None)))) => one.note_damaged(key, false),
            Some(Ok((one, Ok(Some(object))))) => {
                let decoded = decode(&object);
                one.note_damaged(key, decoded.is_err());
                match decoded {
                    Ok(item) => {
                        found.items.push(item);
                        until = until.or(Some(Instant::now() + OTHERS_WITHIN));
                    }
                    Err(error) => {
                        let archive = &one.name;
                        tracing::error!(%archive, %error, "an archived object is skipped");
                        found.is_complete = false;
                        found.damaged.push(one.name.to_string());
                    }
                }
            }
            Some(Ok((_, Err(_))) | Err(_)) => found.is_complete = false,
        }
    }
    calls.detach_all();
    found
}

/// Whether a KEK from an archive may be used.
pub(in crate::service) fn is_live(kek: &Kek) -> bool {
    !matches!(kek.state, State::Disabled | State::Destroyed)
}
