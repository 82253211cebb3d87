//! Streams: envelopes in chunks (versions 3 and 4), whose data the service does not see.
//!
//! The service verifies or makes the start of a stream, which decides about permission, limits and
//! the KEK. It gives the key of the chunks to its caller, which seals or opens them, or the DEK to
//! a client that does so. A stream that outlives a rotation keeps its key.

use std::fmt;

use zeroize::Zeroizing;

use crate::audit::{Event, record};
use crate::cobblestone::{self, MessageKey, PREFIX_LEN, Prefix};
use crate::envelope::{Envelope, Header, PayloadForm};
use crate::id::{ChainName, KekId};
use crate::keychain::dek_cache::SharedDek;
use crate::keychain::message::Sealed;
use crate::keychain::stream::NewStream;
use crate::metrics::Operation;
use crate::secret::SecretBytes;

use super::KeyService;
use super::calls::Calls;
use super::chain::Chain;
use super::deks::decrypt_error;
use super::error::{Error, Kind};
use super::types::{DataKey, Decrypted};

/// A new stream.
pub(crate) struct SealedStream {
    /// What precedes the first chunk.
    pub(crate) head: Vec<u8>,
    /// Seals the chunks.
    pub(crate) key: MessageKey,
    /// The chain that encrypts it.
    pub(crate) chain: ChainName,
    /// The KEK that wraps its DEK.
    pub(crate) kek_id: KekId,
}

/// A stream whose header, commitment and first chunk are verified.
pub(crate) struct OpenedStream {
    /// The plaintext of the first chunk.
    pub(crate) first: Zeroizing<Vec<u8>>,
    /// The length of the plaintext, if that of the envelope is known.
    pub(crate) len: Option<u64>,
    /// Opens the other chunks.
    pub(crate) key: MessageKey,
    /// The chain of the envelope.
    pub(crate) chain: ChainName,
    /// The KEK that wrapped its DEK.
    pub(crate) kek_id: KekId,
}

impl fmt::Debug for OpenedStream {
    /// No plaintext.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedStream").field("kek_id", &self.kek_id).finish_non_exhaustive()
    }
}

impl Calls<'_> {
    /// Starts an envelope whose plaintext, of `len` bytes if that is known, arrives in pieces. It
    /// costs one use.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub(crate) async fn seal_stream(
        &mut self,
        aad: &[u8],
        len: Option<u64>,
    ) -> Result<SealedStream, Error> {
        let (chain, started) = self.begin(Operation::Encrypt).await?;
        let made = self.spend_use(&chain, started, |one| one.start_stream(aad)).await;
        let made = made.map(|(NewStream { head, key, .. }, kek_id)| SealedStream {
            head,
            key,
            chain: chain.name.clone(),
            kek_id,
        });
        let event = Event {
            kek_id: made.as_ref().ok().map(|made| made.kek_id),
            aad: Some(aad),
            plaintext_bytes: len.and_then(|len| usize::try_from(len).ok()),
            ..Event::default()
        };
        self.finish(Operation::Encrypt, chain, started, event, made)
    }

    /// Starts a stream under a fresh DEK, which it returns with the start of the envelope. It is a
    /// `datakey`, and costs one use.
    ///
    /// # Errors
    /// Those of [`datakey`](Self::datakey).
    pub(crate) async fn make_stream_key(&mut self, aad: &[u8]) -> Result<DataKey, Error> {
        let (chain, started) = self.begin(Operation::Datakey).await?;
        let made = self.spend_use(&chain, started, |one| one.start_stream_with_dek(aad)).await;
        let made = made.map(|((stream, dek), kek_id)| DataKey {
            plaintext: SecretBytes::new(dek.expose().to_vec()),
            envelope: Sealed::start_of(stream.head),
            chain: chain.name.clone(),
            kek_id,
        });
        let event = Event {
            kek_id: made.as_ref().ok().map(|made| made.kek_id),
            aad: Some(aad),
            plaintext_bytes: made.as_ref().ok().map(|made| made.plaintext.expose().len()),
            ..Event::default()
        };
        self.finish(Operation::Datakey, chain, started, event, made)
    }

    /// Opens the start of an envelope: the header, the prefix of the payload, and the first chunk,
    /// whole. `len` is the length of the envelope if it is known.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt).
    pub(crate) async fn open_stream(
        &mut self,
        start: &[u8],
        aad: &[u8],
        len: Option<u64>,
    ) -> Result<OpenedStream, Error> {
        let (chain, started) = self.begin(Operation::Decrypt).await?;
        let opened = self.service.open_start(&chain, start, aad, len).await;
        let plaintext_len = opened.as_ref().ok().and_then(|opened| opened.len);
        let event = Event {
            kek_id: named_kek(start),
            aad: Some(aad),
            plaintext_bytes: plaintext_len.and_then(|len| usize::try_from(len).ok()),
            ..Event::default()
        };
        self.finish(Operation::Decrypt, chain, started, event, opened)
    }

    /// The DEK of the stream that starts with `start`: its header, salt and commitment, and nothing
    /// else. The commitment proves that chain and AAD are those of the stream. It is a `decrypt`.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt).
    pub(crate) async fn open_stream_key(
        &mut self,
        start: &[u8],
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        let (chain, started) = self.begin(Operation::Decrypt).await?;
        let opened = self.service.open_key(&chain, start, aad).await;
        let event = Event {
            kek_id: named_kek(start),
            aad: Some(aad),
            plaintext_bytes: opened.as_ref().ok().map(|it| it.plaintext.as_slice().len()),
            ..Event::default()
        };
        self.finish(Operation::Decrypt, chain, started, event, opened)
    }
}

impl KeyService {
    async fn open_start(
        &self,
        chain: &Chain,
        start: &[u8],
        aad: &[u8],
        len: Option<u64>,
    ) -> Result<OpenedStream, Error> {
        let (header, payload) =
            Header::split_from(start).map_err(|_| Error::invalid_ciphertext())?;
        if header.version.form() != PayloadForm::Chunked {
            let version = header.version.code();
            let detail = format!("an envelope of version {version} is no stream: decrypt it whole");
            return Err(Error::new(Kind::InvalidCiphertext, detail));
        }
        let header_len = (start.len() - payload.len()) as u64;
        let payload_len = len.map(|len| len.saturating_sub(header_len));
        let opened = payload_len.map(cobblestone::opened_len).transpose();
        let len = opened.map_err(|_| Error::invalid_ciphertext())?;
        let (prefix, chunk) =
            payload.split_first_chunk::<PREFIX_LEN>().ok_or_else(Error::invalid_ciphertext)?;
        let dek = self.open_header(chain, header).await?;
        let key = dek.open_stream(&chain.name, prefix, aad).map_err(decrypt_error)?;
        let mut first = Zeroizing::new(chunk.to_vec());
        let first_len = key.open_chunk(0, &mut first);
        let first_len = first_len.map_err(|_| Error::invalid_ciphertext())?.len();
        first.truncate(first_len);
        Ok(OpenedStream { first, len, key, chain: chain.name.clone(), kek_id: header.kek_id })
    }

    async fn open_key(&self, chain: &Chain, start: &[u8], aad: &[u8]) -> Result<Decrypted, Error> {
        let (header, prefix) = split(start).ok_or_else(Error::invalid_ciphertext)?;
        let dek = self.open_header(chain, header).await?;
        // A DEK of version 1 or 2 is refused: it opens a message, which the service opens itself.
        let plaintext = dek.stream_key(&chain.name, prefix, aad).map_err(decrypt_error)?;
        Ok(Decrypted { plaintext, chain: chain.name.clone(), kek_id: header.kek_id })
    }

    async fn open_header(&self, chain: &Chain, header: Header<'_>) -> Result<SharedDek, Error> {
        let now = self.core.clock.now();
        let (_, dek) = self.open_dek(chain, &Envelope { header, payload: &[] }, now).await?;
        Ok(dek)
    }
}

/// The KEK that the start of a stream names, for the audit log.
fn named_kek(start: &[u8]) -> Option<KekId> {
    let header = Header::split_from(start).ok().filter(|_| record::is_on());
    header.map(|(header, _)| header.kek_id)
}

/// The parts of the start of a stream.
fn split(start: &[u8]) -> Option<(Header<'_>, &Prefix)> {
    let (header, prefix) = Header::split_from(start).ok()?;
    let (prefix, rest) = prefix.split_first_chunk::<PREFIX_LEN>()?;
    rest.is_empty().then_some((header, prefix))
}
