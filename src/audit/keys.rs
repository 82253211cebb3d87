//! The keys of an audit log, all derived from one secret of the deployment: the Ed25519 key that
//! signs checkpoints, and the HMAC-SHA-256 key for AADs.
//!
//! It does not know where the secret is kept.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64_simd::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::secret::KeyBytes;

/// The name of the key in every signature.
pub const KEY_NAME: &str = "kms-proxy/audit";

/// The signature type of Ed25519 in a C2SP signed note.
const ED25519_TYPE: u8 = 1;

/// The keys of a deployment.
pub struct Keys {
    /// Signs checkpoints.
    pub signing: SigningKey,
    /// Replaces AADs.
    pub hmac: HmacKey,
}

impl Keys {
    /// Derives the keys from the deployment's secret. `None` if the library refuses, which it does
    /// not for any secret.
    #[must_use]
    pub fn derive(secret: &KeyBytes) -> Option<Self> {
        let hkdf = Hkdf::<Sha256>::new(None, secret.expose());
        let expand = |info: &[u8]| {
            let mut out = Zeroizing::new([0; 32]);
            hkdf.expand(info, &mut *out).ok().map(|()| out)
        };
        Some(Self {
            signing: SigningKey::from_seed(&*expand(b"kms-proxy audit ed25519 v1")?)?,
            hmac: HmacKey::from_slice(&*expand(b"kms-proxy audit aad v1")?)?,
        })
    }
}

/// An Ed25519 key that signs checkpoints.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// The key with this seed (RFC 8032).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pair, public })
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs a message.
    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// The key that verifies checkpoints. Its text is the verifier key of a C2SP signed note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// A text that is not the verifier key of an audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be a key as `kms-proxy audit key` prints it: kms-proxy/audit+ID+KEY")]
pub struct InvalidKey;

impl PublicKey {
    /// The key id of a C2SP signed note.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        let digest = Sha256::new()
            .chain_update(KEY_NAME)
            .chain_update([b'\n', ED25519_TYPE])
            .chain_update(self.0)
            .finalize();
        let [a, b, c, d, ..]: [u8; 32] = digest.into();
        [a, b, c, d]
    }

    /// Whether `signature` is this key's for `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = base16ct::lower::encode_string(&self.id());
        let key = STANDARD.encode_to_string([&[ED25519_TYPE], &self.0[..]].concat());
        write!(f, "{KEY_NAME}+{id}+{key}")
    }
}

impl std::str::FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let key = text.rsplit('+').next().unwrap_or_default();
        // The text of base64 may contain '+' too.
        let key = text.splitn(3, '+').nth(2).unwrap_or(key);
        let bytes = STANDARD.decode_to_vec(key).map_err(|_| InvalidKey)?;
        let key = match bytes.split_first() {
            Some((&ED25519_TYPE, key)) => Self(key.try_into().map_err(|_| InvalidKey)?),
            _ => return Err(InvalidKey),
        };
        // This compares the name, the id and the one way to write the bytes.
        if key.to_string() == text { Ok(key) } else { Err(InvalidKey) }
    }
}

/// The key with which AADs are replaced by their HMAC, so that they can be searched for and not
/// read.
pub struct HmacKey {
    keyed: Box<Hmac<Sha256>>,
    bytes: KeyBytes,
}

impl HmacKey {
    /// The key with these bytes; `None` unless there are 32 of them.
    #[must_use]
    pub fn from_slice(key: &[u8]) -> Option<Self> {
        let bytes = KeyBytes::from_slice(key).filter(|_| key.len() == 32)?;
        Some(Self { keyed: Box::new(Hmac::new_from_slice(key).ok()?), bytes })
    }

    /// The bytes themselves, for a file. Anyone who has them can test what an AAD was.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.bytes.expose()
    }

    /// The HMAC-SHA-256 of `aad`.
    #[must_use]
    pub fn of(&self, aad: &[u8]) -> [u8; 32] {
        let mut hmac = Hmac::clone(&self.keyed);
        hmac.update(aad);
        hmac.finalize().into_bytes().into()
    }

    /// The `aad` of a line: `hmac:` and the HMAC in base64.
    #[must_use]
    pub fn field(&self, aad: &[u8]) -> String {
        let mut field = "hmac:".to_owned();
        STANDARD.encode_append(self.of(aad), &mut field);
        field
    }
}

/// The `aad` of a line that shows it: `text:` and the AAD if it is UTF-8, else `base64:` and the
/// AAD in base64.
#[must_use]
pub fn plain_field(aad: &[u8]) -> String {
    super::format::plain_aad(aad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_key_is_read_back_and_nothing_else_is() {
        let keys = Keys::derive(&KeyBytes::from_slice(&[7; 32]).unwrap()).unwrap();
        let text = keys.signing.public().to_string();
        assert_eq!(text.parse(), Ok(keys.signing.public()));
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1;
            assert!(String::from_utf8(bad).unwrap().parse::<PublicKey>().is_err(), "byte {at}");
            assert!(text[..at].parse::<PublicKey>().is_err());
        }
    }

    /// The example of C2SP signed-note, whose key has another name.
    #[test]
    fn the_published_example_verifies() {
        let decode = |text: &str| STANDARD.decode_to_vec(text).unwrap();
        let key = decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k");
        let key = PublicKey(key[1..].try_into().unwrap());
        let signature = decode(
            "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72\
             IneyaQM=",
        );
        assert!(key.verifies(b"This is an example message.\n", &signature[4..]));
        assert!(!key.verifies(b"This is an example message\n", &signature[4..]));
    }

    #[test]
    fn keys_are_the_same_for_the_same_secret_alone() {
        let keys = |byte| Keys::derive(&KeyBytes::from_slice(&[byte; 32]).unwrap()).unwrap();
        let (one, same, other) = (keys(1), keys(1), keys(2));
        assert_eq!(one.signing.public(), same.signing.public());
        assert_eq!(one.hmac.field(b"row 7"), same.hmac.field(b"row 7"));
        assert_ne!(one.signing.public(), other.signing.public());
        assert_ne!(one.hmac.of(b"row 7"), other.hmac.of(b"row 7"));
        assert_ne!(one.hmac.of(b"row 7"), one.hmac.of(b"row 8"));
    }

    #[test]
    fn an_aad_that_is_shown_says_how() {
        assert_eq!(plain_field(b"row 7"), "text:row 7");
        assert_eq!(plain_field(b"\xff"), "base64:/w==");
    }
}
