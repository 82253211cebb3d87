//! Secret bytes: wiped on drop, never shown, without `Clone` or `Serialize`, compared in constant
//! time.
//!
//! A leaf: it does not know what its bytes are for.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::Suite;
use crate::random;

/// The bytes of a KEK or a DEK: 16 or 32 of them, wiped on drop. They stay in one place on the
/// heap: a key that is moved leaves no copy on the stack.
pub struct KeyBytes {
    bytes: Box<[u8; 32]>,
    suite: Suite,
}

impl KeyBytes {
    /// A fresh random key for `suite`.
    ///
    /// # Errors
    /// [`random::Unavailable`] when the operating system gives no randomness.
    pub fn random(suite: Suite) -> Result<Self, random::Unavailable> {
        let mut key = Self { bytes: Box::new([0; 32]), suite };
        random::fill(key.as_mut())?;
        Ok(key)
    }

    /// The key with these bytes; `None` unless there are 16 or 32 of them.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let suite = Suite::from_key_len(bytes.len())?;
        let mut key = Self { bytes: Box::new([0; 32]), suite };
        key.as_mut().copy_from_slice(bytes);
        Some(key)
    }

    /// The suite whose keys have this size.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The bytes themselves. The caller must keep them out of logs, errors and copies.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        match self.exposed() {
            Exposed::Aes128(bytes) => bytes,
            Exposed::Aes256(bytes) => bytes,
        }
    }

    /// The bytes themselves as arrays of their suite's size.
    pub(crate) fn exposed(&self) -> Exposed<'_> {
        match (self.suite, self.bytes.first_chunk()) {
            (Suite::Aes128Gcm, Some(short)) => Exposed::Aes128(short),
            _ => Exposed::Aes256(&self.bytes),
        }
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        match self.suite {
            Suite::Aes128Gcm => self.bytes.split_at_mut(16).0,
            Suite::Aes256Gcm => &mut *self.bytes,
        }
    }
}

impl Drop for KeyBytes {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl ZeroizeOnDrop for KeyBytes {}

/// Exposed key bytes, by the suite that they are for.
pub(crate) enum Exposed<'a> {
    Aes128(&'a [u8; 16]),
    Aes256(&'a [u8; 32]),
}

impl PartialEq for KeyBytes {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for KeyBytes {}

/// Secret bytes of any length, such as a passphrase or a plaintext: wiped on drop.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

/// Shows that there is a secret, and nothing of it.
impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl SecretBytes {
    /// Takes ownership of the bytes. The vector must not have been reallocated since it contains
    /// the secret.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `len` fresh random bytes.
    ///
    /// # Errors
    /// [`random::Unavailable`] when the operating system gives no randomness.
    pub fn random(len: usize) -> Result<Self, random::Unavailable> {
        let mut bytes = Zeroizing::new(vec![0; len]);
        random::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Removes white space at the end: files written with an editor or `echo` end with a newline.
    #[must_use]
    pub fn trim_end(mut self) -> Self {
        let len = self.0.trim_ascii_end().len();
        if let Some(tail) = self.0.get_mut(len..) {
            tail.zeroize();
        }
        self.0.truncate(len);
        self
    }
}

impl PartialEq for SecretBytes {
    /// In constant time for secrets of the same length.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constant_time;

    #[test]
    fn secrets_take_the_same_time_wherever_the_difference_is() {
        let right = [7; 32];
        let secret = SecretBytes::new(right.to_vec());
        let set = |given: &mut SecretBytes, input: &[u8]| given.0.copy_from_slice(input);
        let accepts = |given: &mut SecretBytes| *given == secret;
        constant_time::check("secret", SecretBytes::new(vec![0; 32]), &right, set, accepts);
        for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
            let key = KeyBytes::random(suite).unwrap();
            let set = |given: &mut KeyBytes, input: &[u8]| given.as_mut().copy_from_slice(input);
            let accepts = |given: &mut KeyBytes| *given == key;
            let given = KeyBytes::random(suite).unwrap();
            constant_time::check(&format!("key, {suite}"), given, key.expose(), set, accepts);
        }
    }

    #[test]
    fn keys_have_their_suites_size() {
        for (len, suite) in [(16, Suite::Aes128Gcm), (32, Suite::Aes256Gcm)] {
            let key = KeyBytes::from_slice(&vec![7; len]).unwrap();
            assert_eq!((key.suite(), key.expose()), (suite, &*vec![7; len]));
            assert_eq!(KeyBytes::random(suite).unwrap().expose().len(), len);
        }
        assert!(KeyBytes::from_slice(&[0; 24]).is_none());
    }

    #[test]
    fn random_keys_differ() {
        let one = KeyBytes::random(Suite::Aes256Gcm).unwrap();
        let two = KeyBytes::random(Suite::Aes256Gcm).unwrap();
        assert!(one != two);
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Some(SecretBytes::new(b"hunter2".to_vec()))), "Some((secret))");
    }

    #[test]
    fn trailing_white_space_goes() {
        assert_eq!(
            SecretBytes::new(b" pass phrase \r\n".to_vec()).trim_end().expose(),
            b" pass phrase"
        );
    }
}
