//! Keys of streams (envelope versions 3 and 4) for callers that seal and open the chunks
//! themselves.
//!
//! The service makes or opens the DEK, and verifies the start of the stream: header, salt and
//! commitment. It does not see the data.

use crate::audit::{Event, record};
use crate::cobblestone::{PREFIX_LEN, Prefix};
use crate::envelope::{Envelope, Header};
use crate::keychain::message::Sealed;
use crate::metrics::Operation;
use crate::secret::SecretBytes;

use super::KeyService;
use super::chain::Chain;
use super::data::decrypt_error;
use super::error::Error;
use super::types::{DataKey, Decrypted};

impl KeyService {
    /// Starts a stream under a fresh DEK, which it returns with the start of the envelope. It is a
    /// `datakey`, and costs one use.
    ///
    /// # Errors
    /// Those of [`datakey`](Self::datakey).
    pub(crate) async fn make_stream_key(
        &self,
        chain: Option<&str>,
        aad: &[u8],
    ) -> Result<DataKey, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Datakey, chain).await?;
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
        self.finish_with(Operation::Datakey, &chain, started, event, made)
    }

    /// The DEK of the stream that starts with `start`: its header, salt and commitment, and nothing
    /// else. The commitment proves that chain and AAD are those of the stream. It is a `decrypt`.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt).
    pub(crate) async fn open_stream_key(
        &self,
        chain: Option<&str>,
        start: &[u8],
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        let started = self.core.clock.now();
        let chain = self.find(Operation::Decrypt, chain).await?;
        let parts = split(start);
        let kek_id = parts.filter(|_| record::is_on()).map(|(header, _)| header.kek_id);
        let opened = match parts {
            Some((header, prefix)) => self.open_key(&chain, header, prefix, aad).await,
            None => Err(Error::invalid_ciphertext()),
        };
        let event = Event {
            kek_id,
            aad: Some(aad),
            plaintext_bytes: opened.as_ref().ok().map(|it| it.plaintext.as_slice().len()),
            ..Event::default()
        };
        self.finish_with(Operation::Decrypt, &chain, started, event, opened)
    }

    async fn open_key(
        &self,
        chain: &Chain,
        header: Header<'_>,
        prefix: &Prefix,
        aad: &[u8],
    ) -> Result<Decrypted, Error> {
        let now = self.core.clock.now();
        let (_, dek) = self.open_dek(chain, &Envelope { header, payload: &[] }, now).await?;
        // A DEK of version 1 or 2 is refused: it opens a message, which the service opens itself.
        let plaintext = dek.stream_key(&chain.name, prefix, aad).map_err(decrypt_error)?;
        Ok(Decrypted { plaintext, chain: chain.name.clone(), kek_id: header.kek_id })
    }
}

/// The parts of the start of a stream.
fn split(start: &[u8]) -> Option<(Header<'_>, &Prefix)> {
    let (header, prefix) = Header::split_from(start).ok()?;
    let (prefix, rest) = prefix.split_first_chunk::<PREFIX_LEN>()?;
    rest.is_empty().then_some((header, prefix))
}
