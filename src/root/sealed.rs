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

/// Opens what follows the head. `advice` is what else a failure may mean.
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
            Err(Error::Wrong(format!("its format is {found}, this version reads {format}")))
        }
        None => Err(wrong_length()),
    }
}

/// Whether what follows the head has the length of a KEK's.
pub(super) fn check_length(context: Context<'_>, sealed: &[u8]) -> Result<(), Error> {
    if sealed.len() == NONCE_LEN + context.suite.key_len() + TAG_LEN {
        Ok(())
    } else {
        Err(wrong_length())
    }
}

pub(super) fn wrong_length() -> Error {
    Error::Wrong("its length is not one of a wrap".to_owned())
}

/// What every root of this kind must do; for their tests.
#[cfg(test)]
pub(super) mod tests {
    use crate::id::{ChainName, KekId, Suite};
    use crate::root::RootKey;

    use super::*;

    pub(in crate::root) fn chain(name: &str) -> ChainName {
        ChainName::new(name).unwrap()
    }

    pub(in crate::root) fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    pub(in crate::root) fn context<'a>(chain: &'a ChainName, kek: &KeyBytes) -> Context<'a> {
        Context { chain, kek_id: KekId::of_key(kek.expose()), suite: kek.suite() }
    }

    /// Wraps open, each is different, and none opens changed, cut, or in another context.
    pub(in crate::root) async fn wraps_and_unwraps(root: &dyn RootKey) {
        let orders = chain("orders");
        for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
            let kek = KeyBytes::random(suite).unwrap();
            let here = context(&orders, &kek);
            let wrapped = root.wrap(here, &kek).await.unwrap();
            assert!(root.unwrap(here, &wrapped).await.unwrap() == kek);
            assert_ne!(root.wrap(here, &kek).await.unwrap(), wrapped);

            let other_kek = KeyBytes::random(suite).unwrap();
            let other_suite = [Suite::Aes256Gcm, Suite::Aes128Gcm][usize::from(suite.code() - 1)];
            for elsewhere in [
                Context { chain: &chain("order"), ..here },
                Context { kek_id: context(&orders, &other_kek).kek_id, ..here },
                Context { suite: other_suite, ..here },
            ] {
                wrong(root, elsewhere, &wrapped).await;
            }
            for at in 0..wrapped.len() {
                let mut bad = wrapped.clone();
                bad[at] ^= 0x10;
                wrong(root, here, &bad).await;
                wrong(root, here, &wrapped[..at]).await;
            }
            wrong(root, here, &[&wrapped[..], &[0]].concat()).await;
        }
    }

    pub(in crate::root) async fn wrong(
        root: &dyn RootKey,
        here: Context<'_>,
        wrapped: &[u8],
    ) -> String {
        match root.unwrap(here, wrapped).await {
            Err(Error::Wrong(detail)) => detail,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it must not open"),
        }
    }
}
