//! Key chains outside of a process: exported with their KEKs wrapped by a root, and read again.
//!
//! For a chain without a service ([`KeyChain::generate`]) that is to live in a file, a blob or a
//! column. The chains of a service have records in its store instead; this module knows neither.
//!
//! # Format
//!
//! JSON of at most [`MAX_LEN`] bytes. All fields are required, and others are refused:
//!
//! ```json
//! {
//!   "format": 1,
//!   "chain": "orders",
//!   "primary": "7841c0b3f2a94d1e8c55e02f6b9d1a37",
//!   "uses": 2097152,
//!   "keks": [
//!     { "id": "7841c0b3f2a94d1e8c55e02f6b9d1a37", "suite": "aes-128-gcm", "wrap": "h2Z1..." }
//!   ],
//!   "refused": [{ "id": "03fd6a9ce1b84f7796e0b5a2c8d41f60", "as": "disabled" }]
//! }
//! ```
//!
//! `primary` is the id of one of `keks`, or null for a chain without a primary. `uses` is how many
//! of its uses belong to the export. `wrap` is the KEK, wrapped by the root for this id, suite and
//! chain, in standard base64.
//!
//! # Uses
//!
//! A KEK must not wrap too many DEKs, so an export needs uses of its own: the chain gives away half
//! of those that it has left. The chain and its exports together never exceed the [`UNSHARED_USES`]
//! (2^22) that the KEK started with, as long as each export is read once. To read one twice, or to
//! go back to an older one, spends its uses again. NIST's bound of 2^32 is 2^10 times as high, so a
//! KEK stays below it until about a thousand such readings have spent all their uses. A rotation
//! after each reading avoids the question.
//!
//! # Security
//!
//! An export reveals the chain's name, the ids of its KEKs and `uses`. Anyone who can modify it can
//! remove KEKs, make another of its KEKs primary, and set `uses` as high as 2^22. To add a KEK,
//! they would have to wrap it with the root.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base64;
use crate::id::{ChainName, KekId, Suite};
use crate::keychain::budget::Budget;
use crate::keychain::kek::Kek;
use crate::keychain::{KeyChain, Refusal, UNSHARED_USES};
use crate::root::{self, Context, RootKey};

/// The longest export in bytes: 16 MiB, about 70,000 KEKs under a `local` root.
pub const MAX_LEN: usize = 16 << 20;

/// The only format that this version writes and reads.
const FORMAT: u32 = 1;

/// Exports `chain` to `out`, which takes half of the primary's remaining uses away from `chain`.
///
/// `root` wraps each KEK, one call after the other. Then `out` gets one `write_all`; it is neither
/// flushed nor synced.
///
/// # Errors
/// [`WriteError`]. If `out` fails, the uses of the export are lost; after any other error `chain`
/// is unchanged.
pub async fn write_with_half_the_uses(
    chain: &KeyChain,
    root: &dyn RootKey,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let mut keks = Vec::new();
    for kek in chain.keks() {
        let context = Context { chain: chain.name(), kek_id: kek.id(), suite: kek.suite() };
        let wrap = root.wrap(context, kek.key()).await;
        let wrap = wrap.map_err(|error| WriteError::Root(kek.id(), error))?;
        keks.push(ExportedKek { id: kek.id(), suite: kek.suite(), wrap });
    }
    keks.sort_by_key(|kek| kek.id);
    let mut refused: Vec<_> =
        chain.refused().map(|(id, refusal)| ExportedRefusal { id, refusal }).collect();
    refused.sort_by_key(|refused| refused.id);
    let mut export = Export {
        format: FORMAT,
        chain: chain.name().clone(),
        primary: chain.primary_id(),
        uses: UNSHARED_USES,
        keks,
        refused,
    };
    // `uses` has the most digits here, so an export that is too long takes none.
    if encode(&export)?.len() > MAX_LEN {
        return Err(WriteError::TooLong);
    }
    export.uses = chain.budget().map_or(0, |budget| budget.take_half());
    out.write_all(&encode(&export)?)?;
    Ok(())
}

/// Reads an export from `input`, up to its end. `root` unwraps each KEK, one call after the other.
///
/// # Errors
/// [`ReadError`]. A chain is never read in part.
pub async fn read(root: &dyn RootKey, input: &mut impl Read) -> Result<KeyChain, ReadError> {
    let export = decode(input)?;
    let mut chain = KeyChain::empty(export.chain);
    let mut seen = HashSet::new();
    for ExportedKek { id, suite, wrap } in export.keks {
        if !seen.insert(id) {
            return Err(ReadError::Twice(id));
        }
        let context = Context { chain: chain.name(), kek_id: id, suite };
        let key = root.unwrap(context, &wrap).await;
        let key = key.map_err(|error| ReadError::Root(id, error))?;
        let kek = Arc::new(Kek::new(chain.name(), key));
        if kek.id() != id || kek.suite() != suite {
            return Err(ReadError::OtherKey(id));
        }
        if export.primary == Some(id) {
            let uses = export.uses.min(UNSHARED_USES);
            chain.set_primary(kek, Arc::new(Budget::unshared(uses)));
        } else {
            chain.hold(kek);
        }
    }
    if let Some(primary) = export.primary.filter(|id| !seen.contains(id)) {
        return Err(ReadError::NoPrimary(primary));
    }
    for ExportedRefusal { id, refusal } in export.refused {
        chain.refuse(id, Some(refusal));
    }
    Ok(chain)
}

/// Why a chain was not exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The root did not wrap this KEK.
    #[error("KEK {0} was not wrapped: {1}")]
    Root(KekId, #[source] root::Error),
    /// The chain has too many KEKs for [`MAX_LEN`].
    #[error("the export would exceed {MAX_LEN} bytes")]
    TooLong,
    /// The output failed.
    #[error("failed to write the export: {0}")]
    Output(#[from] io::Error),
}

/// Why an export was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The input failed.
    #[error("failed to read the export: {0}")]
    Input(#[from] io::Error),
    /// The input is longer than [`MAX_LEN`].
    #[error("the export exceeds {MAX_LEN} bytes")]
    TooLong,
    /// The format is unknown to this version.
    #[error("the export has format {0}, and this version reads format {FORMAT}")]
    Format(u32),
    /// The input is truncated, or not an export. The text says where, and contains no secret.
    #[error("the export is damaged: {0}")]
    Damaged(String),
    /// Two KEKs have this id.
    #[error("KEK {0} is listed twice")]
    Twice(KekId),
    /// The primary is not among the KEKs.
    #[error("the primary KEK {0} is missing")]
    NoPrimary(KekId),
    /// The root did not unwrap this KEK: it is unavailable, or a different root, or the wrap or the
    /// chain's name was modified.
    #[error("KEK {0} was not unwrapped: {1}")]
    Root(KekId, #[source] root::Error),
    /// The root unwrapped it to a key with another id or size.
    #[error("KEK {0} was unwrapped to a key with another id")]
    OtherKey(KekId),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    format: u32,
    chain: ChainName,
    // Without this, serde accepts a missing field as null.
    #[serde(deserialize_with = "Option::deserialize")]
    primary: Option<KekId>,
    uses: u64,
    keks: Vec<ExportedKek>,
    refused: Vec<ExportedRefusal>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportedKek {
    id: KekId,
    suite: Suite,
    #[serde(with = "base64")]
    wrap: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportedRefusal {
    id: KekId,
    #[serde(rename = "as")]
    refusal: Refusal,
}

#[derive(Deserialize)]
struct Probe {
    format: u32,
}

fn encode(export: &Export) -> Result<Vec<u8>, io::Error> {
    let mut bytes = serde_json::to_vec_pretty(export)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn decode(input: &mut impl Read) -> Result<Export, ReadError> {
    let mut bytes = Vec::new();
    input.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_LEN {
        return Err(ReadError::TooLong);
    }
    let damaged = |error: serde_json::Error| ReadError::Damaged(error.to_string());
    let Probe { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(ReadError::Format(format));
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

#[cfg(test)]
mod tests;
