//! Streams: envelopes in chunks (versions 3 and 4), whose data the service does not see.
//!
//! The service verifies or makes the start of a stream, which decides about permission, limits and
//! the KEK, and gives the key of its chunks. A stream that outlives a rotation keeps that key. The
//! caller moves the data, and reports how the stream ended.

use std::fmt;

use zeroize::Zeroizing;

use crate::audit::Event;
use crate::cobblestone::{self, MessageKey, PREFIX_LEN};
use crate::envelope::{Envelope, Header, PayloadForm};
use crate::id::{ChainName, KekId};
use crate::keychain::stream::NewStream;
use crate::metrics::Operation;

use super::KeyService;
use super::chain::Chain;
use super::data::decrypt_error;
use super::error::{Error, Kind};

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

impl KeyService {
    /// Starts an envelope whose plaintext, of `len` bytes if that is known, arrives in pieces. It
    /// costs one use.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub(crate) async fn seal_stream(
        &self,
        chain: Option<&str>,
        aad: &[u8],
        len: Option<u64>,
    ) -> Result<SealedStream, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Encrypt, chain).await?;
        let result = self.spend_use(&chain, started, |one| one.start_stream(aad)).await;
        let event = Event {
            kek_id: result.as_ref().ok().map(|&(_, id)| id),
            aad: Some(aad),
            plaintext_bytes: len.and_then(|len| usize::try_from(len).ok()),
            ..Event::default()
        };
        let result = result.map(|(NewStream { head, key, .. }, kek_id)| SealedStream {
            head,
            key,
            chain: chain.name.clone(),
            kek_id,
        });
        self.finish_with(Operation::Encrypt, &chain, started, event, result)
    }

    /// Opens the start of an envelope: the header, the prefix of the payload, and the first chunk,
    /// whole. `len` is the length of the envelope if it is known.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt).
    pub(crate) async fn open_stream(
        &self,
        chain: Option<&str>,
        start: &[u8],
        aad: &[u8],
        len: Option<u64>,
    ) -> Result<OpenedStream, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Decrypt, chain).await?;
        let kek_id = Header::split_from(start).ok().map(|(header, _)| header.kek_id);
        let result = self.open_start(&chain, start, aad, len).await;
        let opened = result.as_ref().ok().and_then(|opened| opened.len);
        let event = Event {
            kek_id,
            aad: Some(aad),
            plaintext_bytes: opened.and_then(|len| usize::try_from(len).ok()),
            ..Event::default()
        };
        self.finish_with(Operation::Decrypt, &chain, started, event, result)
    }

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
        let envelope = Envelope { header, payload: &[] };
        let now = self.core.clock.now();
        let (_, dek) = self.open_dek(chain, &envelope, now).await?;
        let key = dek.open_stream(&chain.name, prefix, aad).map_err(decrypt_error)?;
        let mut first = Zeroizing::new(chunk.to_vec());
        let first_len = key.open_chunk(0, &mut first);
        let first_len = first_len.map_err(|_| Error::invalid_ciphertext())?.len();
        first.truncate(first_len);
        Ok(OpenedStream { first, len, key, chain: chain.name.clone(), kek_id: header.kek_id })
    }
}
