//! A key chain outside of the process: written with its KEKs wrapped under a root, and read back.
//!
//! For a chain of one's own ([`KeyChain::generate`]) that shall live on in a file, a blob or a
//! column. It knows key chains and roots, and nothing of stores and services, whose chains live in
//! records of their own.
//!
//! # Format
//!
//! JSON of at most [`MAX_LEN`] bytes. No field may be missing, and none be added:
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
//! `primary` is one of `keks`, or null in a chain that has none. `uses` is what the copy may spend
//! of it. `wrap` is the KEK, wrapped by the root for this id, suite and chain, in standard base64.
//!
//! # Uses
//!
//! A KEK must not wrap too many DEKs, so a copy gets uses of its own: [`write_with_half_the_uses`] takes half of those
//! that are left from the chain and gives them to the copy. Original and copies together never
//! spend more than the [`UNSHARED_USES`] (2^22) that the KEK began with, as long as each copy is
//! read once. To read one twice, or to go back to an old one, is to spend its uses twice. NIST's
//! bound of 2^32 is 2^10 times as much, so it holds for a KEK until a thousand such readings are
//! all spent to the end. Rotate after a reading to be free of that count.
//!
//! # Security
//!
//! Who reads a copy without the root learns the chain's name, its KEKs' ids and `uses`. Who changes
//! one can take KEKs out, choose another primary among them, or set `uses` as high as 2^22; a KEK
//! of his own he can't bring in, unless he can wrap it under the root.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{ChainName, KekId, Suite};
use crate::keychain::budget::Budget;
use crate::keychain::kek::Kek;
use crate::keychain::{KeyChain, Refusal, UNSHARED_USES};
use crate::root::{self, Context, RootKey};

/// The longest copy in bytes: 16 MiB, which is about 70,000 KEKs of a `local` root.
pub const MAX_LEN: usize = 16 << 20;

/// The format that this code writes. It reads no other.
const FORMAT: u32 = 1;

/// Writes `chain` to `out`, every KEK wrapped under `root`: one call of the root for each, one after
/// the other. The copy takes half of the uses that are left.
///
/// `out` is written last and in one go, and is not flushed or synced.
///
/// # Errors
/// [`WriteError`]. When `out` fails, the uses that the copy took are lost; otherwise nothing
/// happened.
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
        keks.push(SavedKek { id: kek.id(), suite: kek.suite(), wrap });
    }
    keks.sort_by_key(|kek| kek.id);
    let mut refused: Vec<_> =
        chain.refused().map(|(id, refusal)| SavedRefusal { id, refusal }).collect();
    refused.sort_by_key(|refused| refused.id);
    let mut saved = Saved {
        format: FORMAT,
        chain: chain.name().clone(),
        primary: chain.primary_id(),
        uses: UNSHARED_USES,
        keks,
        refused,
    };
    // With the most digits that `uses` can have, so that none is taken for a copy that is too long.
    if encode(&saved)?.len() > MAX_LEN {
        return Err(WriteError::TooLong);
    }
    saved.uses = chain.budget().map_or(0, |budget| budget.take_half());
    out.write_all(&encode(&saved)?)?;
    Ok(())
}

/// Reads a chain that [`write_with_half_the_uses`] wrote, its KEKs opened by `root`: one call of the root for each, one
/// after the other. `input` is read to its end.
///
/// # Errors
/// [`ReadError`]. There is a whole chain or none.
pub async fn read(root: &dyn RootKey, input: &mut impl Read) -> Result<KeyChain, ReadError> {
    let saved = decode(input)?;
    let mut chain = KeyChain::empty(saved.chain);
    let mut seen = HashSet::new();
    for SavedKek { id, suite, wrap } in saved.keks {
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
        if saved.primary == Some(id) {
            let uses = saved.uses.min(UNSHARED_USES);
            chain.set_primary(kek, Arc::new(Budget::unshared(uses)));
        } else {
            chain.hold(kek);
        }
    }
    if let Some(primary) = saved.primary.filter(|id| !seen.contains(id)) {
        return Err(ReadError::NoPrimary(primary));
    }
    for SavedRefusal { id, refusal } in saved.refused {
        chain.refuse(id, Some(refusal));
    }
    Ok(chain)
}

/// Why a chain was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The root did not wrap this KEK.
    #[error("the KEK {0} was not wrapped: {1}")]
    Root(KekId, #[source] root::Error),
    /// The chain has too many KEKs for [`MAX_LEN`].
    #[error("the chain makes a copy of more than {MAX_LEN} bytes")]
    TooLong,
    /// The output failed.
    #[error("the copy was not written: {0}")]
    Output(#[from] io::Error),
}

/// Why no chain was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The input failed.
    #[error("the copy was not read: {0}")]
    Input(#[from] io::Error),
    /// The input has more than [`MAX_LEN`] bytes.
    #[error("the copy has more than {MAX_LEN} bytes")]
    TooLong,
    /// It is of a format that this version does not know.
    #[error("the copy is of format {0}, this version reads {FORMAT}")]
    Format(u32),
    /// It is cut off, or no copy at all. The text says where, and holds no secret.
    #[error("the copy is damaged: {0}")]
    Damaged(String),
    /// Two KEKs have this id.
    #[error("the KEK {0} is there twice")]
    Twice(KekId),
    /// The primary is not among the KEKs.
    #[error("the primary KEK {0} is not there")]
    NoPrimary(KekId),
    /// The root did not open this KEK: it is away or another one, or the wrap was changed, or the
    /// chain's name.
    #[error("the KEK {0} was not opened: {1}")]
    Root(KekId, #[source] root::Error),
    /// The root opened it, to a key of another id or size.
    #[error("the KEK {0} opened to a key of another id")]
    OtherKey(KekId),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: u32,
    chain: ChainName,
    // Without this serde takes a missing field for null.
    #[serde(deserialize_with = "Option::deserialize")]
    primary: Option<KekId>,
    uses: u64,
    keks: Vec<SavedKek>,
    refused: Vec<SavedRefusal>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedKek {
    id: KekId,
    suite: Suite,
    #[serde(with = "base64")]
    wrap: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRefusal {
    id: KekId,
    #[serde(rename = "as")]
    refusal: Refusal,
}

#[derive(Deserialize)]
struct Probe {
    format: u32,
}

fn encode(saved: &Saved) -> Result<Vec<u8>, io::Error> {
    let mut bytes = serde_json::to_vec_pretty(saved)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn decode(input: &mut impl Read) -> Result<Saved, ReadError> {
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

mod base64 {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64_simd::STANDARD.encode_to_string(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        base64_simd::STANDARD
            .decode_to_vec(text.as_bytes())
            .map_err(|_| D::Error::custom("a wrap is not base64"))
    }
}

#[cfg(test)]
mod tests;
