//! A KEK sealed under a key that this process holds: what `local` and `passphrase` share.

use zeroize::Zeroizing;

use crate::aead::{Cipher, NONCE_LEN, TAG_LEN};
use crate::random;
use crate::secret::KeyBytes;

use super::{Context, Error};

/// `head`, then a random nonce (12 bytes), the sealed KEK (16 or 32) and the tag (16).
pub(super) fn seal(
    cipher: &Cipher,
    context: Context<'_>,
    head: &[u8],
    kek: &KeyBytes,
) -> Result<Vec<u8>, Error> {
    let mut nonce = [0; NONCE_LEN];
    random::fill(&mut nonce).map_err(|error| Error::Away(error.to_string()))?;
    let mut sealed = Zeroizing::new(kek.expose().to_vec());
    let tag = cipher
        .seal(&nonce, &context.aad(), &mut sealed)
        .map_err(|error| Error::Away(error.to_string()))?;
    Ok([head, &nonce, &sealed, &tag].concat())
}

/// Opens what follows the head. `advice` is the first possible reason of a failure.
pub(super) fn open(
    cipher: &Cipher,
    context: Context<'_>,
    sealed: &[u8],
    advice: &str,
) -> Result<KeyBytes, Error> {
    check_length(context, sealed)?;
    let parts = sealed.split_first_chunk::<NONCE_LEN>().and_then(|(nonce, rest)| {
        let (kek, tag) = rest.split_last_chunk::<TAG_LEN>()?;
        Some((nonce, Zeroizing::new(kek.to_vec()), tag))
    });
    let Some((nonce, mut kek, tag)) = parts else { return Err(wrong_length()) };
    cipher.open(nonce, &context.aad(), &mut kek, tag).map_err(|_| {
        Error::Wrong(format!("{advice}, or the wrap is damaged or was made for another KEK"))
    })?;
    KeyBytes::from_slice(&kek).ok_or_else(wrong_length)
}

/// What follows the format byte of `wrapped`, which must be `format`.
pub(super) fn after_format(wrapped: &[u8], format: u8) -> Result<&[u8], Error> {
    match wrapped.split_first() {
        Some((&found, rest)) if found == format => Ok(rest),
        Some((found, _)) => {
            Err(Error::Wrong(format!("its format is {found}, and this version reads {format}")))
        }
        None => Err(wrong_length()),
    }
}

/// Whether what follows the head has the length of a sealed KEK.
pub(super) fn check_length(context: Context<'_>, sealed: &[u8]) -> Result<(), Error> {
    if sealed.len() == NONCE_LEN + context.suite.key_len() + TAG_LEN {
        Ok(())
    } else {
        Err(wrong_length())
    }
}

pub(super) fn wrong_length() -> Error {
    Error::Wrong("its length is not that of a wrap".to_owned())
}
