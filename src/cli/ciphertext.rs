//! Envelopes in the forms that commands read and write, and their parts for a rewrap.

use kms_proxy::envelope::{self, Envelope, TEXT_PREFIX};
use serde::Deserialize;

use super::{Failure, Result};

/// The header of an envelope, as the service returns it.
#[derive(Deserialize)]
pub(super) struct Rewrapped {
    /// The header's text form.
    pub(super) ciphertext: String,
}

/// Splits an envelope into header and payload; the payload of a header alone is empty.
pub(super) fn split(envelope: &[u8]) -> Result<(&[u8], &[u8])> {
    match Envelope::parse_header_or_whole(envelope) {
        Ok(envelope) => Ok((envelope.header.bytes, envelope.payload)),
        Err(error) => Err(Failure::refused(format!("invalid_ciphertext: {error}"))),
    }
}

/// Joins a new header with the payload of the old envelope.
pub(super) fn join(rewrapped: &Rewrapped, payload: &[u8]) -> Result<Vec<u8>> {
    let mut envelope = envelope::from_text(&rewrapped.ciphertext)
        .map_err(|_| Failure::refused("the response of the service has no header"))?;
    envelope.extend_from_slice(payload);
    Ok(envelope)
}

/// Converts an envelope to its binary form, which starts with the version, 1 to 4.
pub(super) fn to_binary(input: Vec<u8>) -> Result<Vec<u8>> {
    let text = input.trim_ascii();
    if !text.starts_with(TEXT_PREFIX.as_bytes()) {
        return Ok(input);
    }
    str::from_utf8(text).ok().and_then(|text| envelope::from_text(text).ok()).ok_or_else(|| {
        Failure::refused(format!("invalid_ciphertext: {}", envelope::Malformed::Text))
    })
}
