//! AES-GCM in the token: nonce (12 bytes), ciphertext and tag (16) in one buffer.

use cryptoki::error::Error as Cause;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use zeroize::Zeroizing;

use crate::aead::{NONCE_LEN, TAG_LEN};
use crate::random;

use super::config::GcmIv;
use super::error::TokenError;

/// Encrypts and decrypts: a session of a token with its key, or a stand-in for tests.
pub(super) trait Gcm {
    /// The ciphertext and the tag. A token that makes the nonces writes one into `nonce`.
    fn encrypt(
        &self,
        nonce: &mut [u8; NONCE_LEN],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Cause>;

    /// The plaintext.
    fn decrypt(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<Vec<u8>, Cause>;
}

impl Gcm for (&Session, ObjectHandle) {
    fn encrypt(
        &self,
        nonce: &mut [u8; NONCE_LEN],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Cause> {
        let mechanism = Mechanism::AesGcm(GcmParams::new(nonce, aad, TAG_BITS.into())?);
        self.0.encrypt(&mechanism, self.1, plaintext)
    }

    fn decrypt(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<Vec<u8>, Cause> {
        let mut nonce = *nonce;
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, aad, TAG_BITS.into())?);
        self.0.decrypt(&mechanism, self.1, ciphertext)
    }
}

const TAG_BITS: std::ffi::c_ulong = 128;

/// Seals `plaintext`.
pub(super) fn seal(
    gcm: &impl Gcm,
    iv: GcmIv,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, TokenError> {
    let mut nonce = [0; NONCE_LEN];
    if iv == GcmIv::Caller {
        random::fill(&mut nonce).map_err(|error| TokenError::Passing(error.to_string()))?;
    }
    let given = nonce;
    let ciphertext = gcm.encrypt(&mut nonce, aad, plaintext)?;
    match iv {
        // The same nonce each time would reveal the key stream and allow forgeries.
        GcmIv::Token if nonce == [0; NONCE_LEN] => {
            return Err(TokenError::Denied(
                "gcm_iv is \"token\", but the token makes no nonce; set it to \"caller\""
                    .to_owned(),
            ));
        }
        GcmIv::Caller if nonce != given => {
            return Err(TokenError::Denied(
                "gcm_iv is \"caller\", but the token makes the nonce; set it to \"token\""
                    .to_owned(),
            ));
        }
        _ => {}
    }
    if ciphertext.len() != plaintext.len() + TAG_LEN {
        let len = ciphertext.len();
        return Err(TokenError::Denied(format!(
            "the token's AES-GCM is not the usual one: {len} bytes"
        )));
    }
    Ok([&nonce[..], &ciphertext].concat())
}

/// Opens what [`seal`] made.
pub(super) fn open(gcm: &impl Gcm, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Cause> {
    let (nonce, ciphertext) = sealed.split_first_chunk().ok_or(Cause::InvalidValue)?;
    gcm.decrypt(nonce, aad, ciphertext).map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token that treats nonces as the test sets. It does not encrypt.
    struct Token {
        nonce: Option<u8>,
        tag: usize,
    }

    impl Gcm for Token {
        fn encrypt(
            &self,
            nonce: &mut [u8; NONCE_LEN],
            _: &[u8],
            plaintext: &[u8],
        ) -> Result<Vec<u8>, Cause> {
            if let Some(byte) = self.nonce {
                *nonce = [byte; NONCE_LEN];
            }
            Ok([plaintext, &vec![0; self.tag]].concat())
        }

        fn decrypt(
            &self,
            nonce: &[u8; NONCE_LEN],
            _: &[u8],
            ciphertext: &[u8],
        ) -> Result<Vec<u8>, Cause> {
            assert_eq!(self.nonce, Some(nonce[0]));
            Ok(ciphertext[..ciphertext.len() - self.tag].to_vec())
        }
    }

    #[test]
    fn the_nonce_that_the_token_made_is_stored_and_given_back() {
        let token = Token { nonce: Some(7), tag: 16 };
        let sealed = seal(&token, GcmIv::Token, b"aad", b"key").unwrap();
        assert_eq!(sealed, [&[7; 12][..], b"key", &[0; 16]].concat());
        assert_eq!(&*open(&token, b"aad", &sealed).unwrap(), b"key");
    }

    #[test]
    fn our_own_nonces_differ_and_stay_as_they_are() {
        let token = Token { nonce: None, tag: 16 };
        let seal = || seal(&token, GcmIv::Caller, b"aad", b"key").unwrap();
        assert_ne!(seal()[..12], seal()[..12]);
    }

    #[test]
    fn no_nonce_another_nonce_and_another_tag_are_refused() {
        for (nonce, tag, iv, said) in [
            (None, 16, GcmIv::Token, "makes no nonce"),
            (Some(0), 16, GcmIv::Token, "makes no nonce"),
            (Some(7), 16, GcmIv::Caller, "makes the nonce"),
            (None, 12, GcmIv::Caller, "not the usual one"),
            (Some(7), 28, GcmIv::Token, "not the usual one"),
        ] {
            match seal(&Token { nonce, tag }, iv, b"", b"key") {
                Err(TokenError::Denied(detail)) => assert!(detail.contains(said), "{detail}"),
                other => panic!("{said}: {other:?}"),
            }
        }
    }
}
