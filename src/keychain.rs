//! [`KeyChain`]: encrypt, decrypt and rewrap by KEK id. Synchronous, without I/O and without a
//! clock.
//!
//! A chain is a snapshot: what changes makes a new one, except for the uses that are spent. It
//! knows nothing of stores and roots; its caller has counted the uses that it gets.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::clock::Monotonic;
use crate::cobblestone::{MessageKey, Prefix};
use crate::envelope::{Envelope, Header};
use crate::id::{ChainName, KekId, Suite};

pub mod budget;
pub mod dek_cache;
pub mod error;
pub mod inline;
pub mod kek;
pub mod message;
mod noted;
mod permit;
pub mod rotation;
pub mod stream;

use budget::Budget;
pub use error::{DecryptError, EncryptError, Refusal};
pub use inline::{InlineKek, KekPlacement};
use kek::{Dek, Kek};
use message::{Opened, Plaintext, Sealed};
pub(crate) use noted::NotedUntil;
pub use permit::Permit;
pub(crate) use permit::Uses;
use stream::NewStream;

/// The uses that a KEK has in a chain of its own: 2^22, see [`KeyChain::generate`].
pub const UNSHARED_USES: u64 = 1 << 22;

/// A named set of KEKs, one of them primary. The primary encrypts; all of them decrypt.
///
/// It is shared between threads as it is. A clone holds the same KEKs and spends the same uses, so
/// a chain in use is rotated by rotating a clone and putting that in its place.
#[derive(Clone)]
pub struct KeyChain {
    name: ChainName,
    primary: Option<(Arc<Kek>, Arc<Budget>)>,
    /// The headers that embed the primary.
    inline: Option<Arc<InlineKek>>,
    /// Where new envelopes find their KEK.
    placement: KekPlacement,
    /// All KEKs that are held here, the primary among them.
    keks: HashMap<KekId, Arc<Kek>>,
    refused: HashMap<KekId, Refusal>,
}

impl KeyChain {
    /// The chain `default`, of AES-128, with a fresh primary. See [`generate`](Self::generate).
    ///
    /// # Errors
    /// [`EncryptError::Randomness`].
    pub fn new() -> Result<Self, EncryptError> {
        Self::generate(ChainName::default(), Suite::default())
    }

    /// A chain without a KEK.
    #[must_use]
    pub(crate) fn empty(name: ChainName) -> Self {
        Self {
            name,
            primary: None,
            inline: None,
            placement: KekPlacement::Stored,
            keks: HashMap::new(),
            refused: HashMap::new(),
        }
    }

    /// A chain of its own with a fresh primary, known to this process alone and good for
    /// [`UNSHARED_USES`].
    ///
    /// # Errors
    /// [`EncryptError::Randomness`].
    pub fn generate(name: ChainName, suite: Suite) -> Result<Self, EncryptError> {
        let mut chain = Self::empty(name);
        chain.make_primary(suite)?;
        Ok(chain)
    }

    /// Makes a fresh KEK primary, of the same suite, known to this process alone and good for
    /// [`UNSHARED_USES`]. The older ones still decrypt.
    ///
    /// # Errors
    /// [`EncryptError::Randomness`], and [`EncryptError::Exhausted`] for a chain that never had a
    /// primary.
    pub fn rotate(&mut self) -> Result<KekId, EncryptError> {
        let (primary, _) = self.primary.as_ref().ok_or(EncryptError::Exhausted)?;
        self.make_primary(primary.suite())
    }

    fn make_primary(&mut self, suite: Suite) -> Result<KekId, EncryptError> {
        let kek = Arc::new(Kek::generate(&self.name, suite)?);
        let id = kek.id();
        self.set_primary(kek, Arc::new(Budget::unshared(UNSHARED_USES)));
        Ok(id)
    }

    /// Makes `kek` primary, with the uses in `budget`. It is not inline.
    pub(crate) fn set_primary(&mut self, kek: Arc<Kek>, budget: Arc<Budget>) {
        self.hold(Arc::clone(&kek));
        self.primary = Some((kek, budget));
        self.inline = None;
    }

    /// Sets the start of headers that embed the primary: `inline` was made of it.
    pub(crate) fn set_inline(&mut self, inline: Option<Arc<InlineKek>>) {
        self.inline = inline;
    }

    /// The headers that embed the primary.
    #[must_use]
    pub(crate) fn inline(&self) -> Option<&InlineKek> {
        self.inline.as_deref()
    }

    /// Sets where new envelopes find their KEK.
    pub(crate) fn set_placement(&mut self, placement: KekPlacement) {
        self.placement = placement;
    }

    /// Where new envelopes find their KEK.
    #[must_use]
    pub(crate) fn placement(&self) -> KekPlacement {
        self.placement
    }

    /// Holds `kek` for decryption.
    pub(crate) fn hold(&mut self, kek: Arc<Kek>) {
        self.keks.insert(kek.id(), kek);
    }

    /// Holds `id` no longer, unless it is the primary.
    pub(crate) fn release(&mut self, id: KekId) {
        if self.primary_id() != Some(id) {
            self.keks.remove(&id);
        }
    }

    /// Holds `id` no longer, be it the primary: then this chain encrypts nothing until it has
    /// another one.
    pub(crate) fn forget(&mut self, id: KekId) {
        if self.primary_id() == Some(id) {
            self.primary = None;
        }
        self.keks.remove(&id);
    }

    /// Refuses `id` from now on, or with `None` no longer. What is refused encrypts no more: others
    /// made another KEK primary, and this chain does not have it yet.
    pub(crate) fn refuse(&mut self, id: KekId, refusal: Option<Refusal>) {
        match refusal {
            Some(refusal) => {
                self.refused.insert(id, refusal);
                if self.primary_id() == Some(id) {
                    self.primary = None;
                }
                self.release(id);
            }
            None => {
                self.refused.remove(&id);
            }
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ChainName {
        &self.name
    }

    /// The KEK that encrypts.
    #[must_use]
    pub fn primary_id(&self) -> Option<KekId> {
        self.primary.as_ref().map(|(kek, _)| kek.id())
    }

    /// The uses of the primary.
    #[must_use]
    pub(crate) fn budget(&self) -> Option<&Arc<Budget>> {
        self.primary.as_ref().map(|(_, budget)| budget)
    }

    /// The KEK `id`, if it is held here.
    #[must_use]
    pub(crate) fn kek(&self, id: KekId) -> Option<&Arc<Kek>> {
        self.keks.get(&id)
    }

    /// All KEKs that are held here, in no order.
    pub(crate) fn keks(&self) -> impl Iterator<Item = &Arc<Kek>> {
        self.keks.values()
    }

    /// The KEKs that it refuses, and why, in no order.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (KekId, Refusal)> {
        self.refused.iter().map(|(&id, &refusal)| (id, refusal))
    }

    /// Whether the chain lets `id` be used.
    ///
    /// # Errors
    /// [`DecryptError::Refused`].
    pub(crate) fn allows(&self, id: KekId) -> Result<(), DecryptError> {
        if self.refused.is_empty() {
            return Ok(());
        }
        self.refused.get(&id).map_or(Ok(()), |&refusal| Err(DecryptError::Refused(id, refusal)))
    }

    /// Takes one use of the primary; `None` when none is left.
    #[must_use]
    pub(crate) fn take(&self, now: Monotonic) -> Option<Permit<'_>> {
        let (_, budget) = self.primary.as_ref()?;
        self.permit(budget.take(now)?)
    }

    /// Takes `uses` of the primary together, if so many are left that others find some, too.
    #[must_use]
    pub(crate) fn take_many(self: &Arc<Self>, uses: u64, now: Monotonic) -> Option<Uses> {
        let (_, budget) = self.primary.as_ref()?;
        Some(Uses { taken: budget.take_many(uses, now)?, chain: Arc::clone(self) })
    }

    fn permit(&self, void_at: Monotonic) -> Option<Permit<'_>> {
        let (kek, _) = self.primary.as_ref()?;
        Some(Permit { kek, inline: self.inline(), placement: self.placement, void_at })
    }

    /// Encrypts `plaintext`, which only this chain with the same `aad` decrypts.
    ///
    /// # Errors
    /// [`EncryptError`].
    pub fn encrypt(&self, plaintext: &[u8], aad: &[u8]) -> Result<Vec<u8>, EncryptError> {
        Ok(self.seal(plaintext.into(), aad)?.into())
    }

    /// Like [`encrypt`](Self::encrypt), in the buffer of `plaintext`.
    ///
    /// # Errors
    /// [`EncryptError`].
    pub fn seal(&self, plaintext: Plaintext, aad: &[u8]) -> Result<Sealed, EncryptError> {
        let one = self.take(Monotonic::default()).ok_or(EncryptError::Exhausted)?;
        one.seal(plaintext, aad)
    }

    /// Starts an envelope whose plaintext arrives in pieces. [`crate::stream`] seals it to a
    /// writer.
    ///
    /// # Errors
    /// [`EncryptError`].
    pub fn start_stream(&self, aad: &[u8]) -> Result<NewStream, EncryptError> {
        self.take(Monotonic::default()).ok_or(EncryptError::Exhausted)?.start_stream(aad)
    }

    /// Decrypts a whole binary envelope, of any version.
    ///
    /// # Errors
    /// [`DecryptError`].
    pub fn decrypt(&self, envelope: &[u8], aad: &[u8]) -> Result<Opened, DecryptError> {
        self.unseal(envelope.to_vec(), aad)
    }

    /// Like [`decrypt`](Self::decrypt), in the buffer of `envelope`.
    ///
    /// # Errors
    /// [`DecryptError`].
    pub fn unseal(&self, envelope: Vec<u8>, aad: &[u8]) -> Result<Opened, DecryptError> {
        let dek = self.open_dek(&Envelope::parse(&envelope).map_err(|_| DecryptError::Invalid)?)?;
        self.open(&dek, envelope, aad)
    }

    /// Moves an envelope, or a header alone, to the primary. What is there already comes back
    /// unchanged and costs no use. A payload passed along is not verified.
    ///
    /// # Errors
    /// [`RewrapError`].
    pub fn rewrap(&self, envelope: &[u8]) -> Result<Vec<u8>, RewrapError> {
        let parsed =
            Envelope::parse_header_or_whole(envelope).map_err(|_| DecryptError::Invalid)?;
        let dek = self.open_dek(&parsed)?;
        if self.is_current(&parsed, self.placement) {
            return Ok(envelope.to_vec());
        }
        let one = self.take(Monotonic::default()).ok_or(EncryptError::Exhausted)?;
        let mut rewrapped = one.seal_dek(&dek)?;
        rewrapped.extend_from_slice(parsed.payload);
        Ok(rewrapped)
    }

    /// Whether a rewrap to `placement` would change nothing but the wrap itself: then it is not
    /// made. An inline record with other wraps than those of the primary now is replaced.
    #[must_use]
    pub(crate) fn is_current(&self, envelope: &Envelope<'_>, placement: KekPlacement) -> bool {
        self.primary_id() == Some(envelope.header.kek_id)
            && match (envelope.header.version.record(), placement) {
                (None, KekPlacement::Stored) => true,
                (Some(record), KekPlacement::Inline) => {
                    self.inline().is_some_and(|inline| inline.record() == record)
                }
                _ => false,
            }
    }

    /// Opens the DEK of an envelope whose KEK is held here.
    ///
    /// # Errors
    /// [`DecryptError`].
    pub(crate) fn open_dek(&self, envelope: &Envelope<'_>) -> Result<Dek, DecryptError> {
        let id = envelope.header.kek_id;
        self.allows(id)?;
        self.kek(id).ok_or(DecryptError::UnknownKek(id))?.open_dek(&envelope.header)
    }

    /// The key of the stream with this header, whose payload begins with `prefix`. The wrap and the
    /// commitment are verified. [`crate::stream`] opens streams from a reader.
    ///
    /// # Errors
    /// [`DecryptError`].
    pub fn open_stream(
        &self,
        header: &Header<'_>,
        prefix: &Prefix,
        aad: &[u8],
    ) -> Result<MessageKey, DecryptError> {
        let dek = self.open_dek(&Envelope { header: *header, payload: &[] })?;
        dek.open_stream(&self.name, prefix, aad)
    }

    /// Opens a whole envelope in its own buffer with its DEK.
    ///
    /// # Errors
    /// [`DecryptError::Invalid`].
    pub(crate) fn open(
        &self,
        dek: &Dek,
        envelope: Vec<u8>,
        aad: &[u8],
    ) -> Result<Opened, DecryptError> {
        let mut buffer = envelope;
        let payload_len =
            Envelope::parse(&buffer).map_err(|_| DecryptError::Invalid)?.payload.len();
        let start = buffer.len() - payload_len;
        let payload = buffer.get_mut(start..).unwrap_or_default();
        // When it fails, the buffer contains no plaintext: there is nothing to wipe.
        let range = dek.open(&self.name, payload, aad)?;
        Ok(Opened::new(buffer, start + range.start..start + range.end))
    }
}

impl fmt::Debug for KeyChain {
    /// Names alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyChain")
            .field("name", &self.name)
            .field("primary", &self.primary_id())
            .field("keks", &self.keks.len())
            .finish_non_exhaustive()
    }
}

/// A rewrap opens and seals, so it can fail in both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewrapError {
    /// The envelope does not open.
    #[error(transparent)]
    Decrypt(#[from] DecryptError),
    /// The DEK cannot be wrapped again.
    #[error(transparent)]
    Encrypt(#[from] EncryptError),
}

#[cfg(test)]
mod tests;
