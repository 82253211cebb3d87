//! Access key ids of AWS: how one is made, and where its secret comes from. It knows no client.

use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::files;
use crate::random;
use crate::secret::SecretBytes;

/// The size of the key that secrets are derived from, in bytes.
const SECRET_KEY_LEN: usize = 32;

/// A new access key id: `KP` and 18 of A-Z 2-7, so 90 random bits.
///
/// # Errors
/// [`random::Unavailable`] when the operating system gives no randomness.
pub fn generate_id() -> Result<String, random::Unavailable> {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut bytes = [0; 18];
    random::fill(&mut bytes)?;
    let letter = |byte: u8| LETTERS.get(usize::from(byte & 31)).copied().unwrap_or(b'A');
    Ok(bytes.into_iter().map(letter).fold("KP".to_owned(), |mut id, letter| {
        id.push(char::from(letter));
        id
    }))
}

/// A new secret access key of 240 random bits, as 40 characters of base64.
///
/// # Errors
/// [`random::Unavailable`] when the operating system gives no randomness.
pub fn generate_secret() -> Result<Zeroizing<String>, random::Unavailable> {
    let mut bytes = Zeroizing::new([0; 30]);
    random::fill(&mut *bytes)?;
    Ok(encode(&bytes))
}

/// The secret access key that belongs to an access key id, as 40 characters of base64: 30 bytes of
/// HKDF-SHA-256 (RFC 5869) of the key without salt, with info `kms-proxy aws secret v1` and the id.
#[must_use]
pub fn derive_secret(key: &[u8; SECRET_KEY_LEN], access_key_id: &str) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 30]);
    let info = [b"kms-proxy aws secret v1", access_key_id.as_bytes()];
    // HKDF refuses only outputs of more than 255 hashes; this one is less than one.
    let expanded = Hkdf::<Sha256>::new(None, key).expand_multi_info(&info, &mut *bytes);
    debug_assert!(expanded.is_ok());
    encode(&bytes)
}

fn encode(bytes: &[u8; 30]) -> Zeroizing<String> {
    // It never grows, so no copy is left behind.
    let mut text = Zeroizing::new(String::with_capacity(40));
    base64_simd::STANDARD.encode_append(bytes, &mut *text);
    text
}

/// Reads the key that secrets are derived from: a file of exactly 32 bytes.
///
/// # Errors
/// What is wrong with the file.
pub fn read_secret_key(path: &Path) -> Result<Zeroizing<[u8; SECRET_KEY_LEN]>, String> {
    let wrong = |detail: &str| format!("{}: {detail}", path.display());
    let (bytes, _) = files::read_secret(path).map_err(|error| wrong(&error.to_string()))?;
    let key = bytes.expose().try_into().map(Zeroizing::new);
    key.map_err(|_| wrong("it must be 32 random bytes: head -c 32 /dev/urandom"))
}

/// Reads a file with a secret access key; white space at its end is dropped.
fn read_secret(path: &Path) -> Result<SecretBytes, String> {
    let wrong = |detail: &str| format!("{}: {detail}", path.display());
    let (bytes, _) = files::read_secret(path).map_err(|error| wrong(&error.to_string()))?;
    let secret = bytes.trim_end();
    // With less than 128 bits it could be guessed from one signed request.
    if secret.expose().len() < MIN_SECRET_LEN {
        return Err(wrong("it must hold a secret access key of 22 characters or more"));
    }
    Ok(secret)
}

const MIN_SECRET_LEN: usize = 22;

/// What reads the secrets of access key ids.
pub(super) trait Secrets: Send + Sync + 'static {
    /// Reads the secret of an access key id. It may block.
    ///
    /// # Errors
    /// What is wrong with the file that it is read from.
    fn read(&self, access_key_id: &str) -> Result<SecretBytes, String>;
}

/// Where the secret of an access key id comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A file that holds it.
    File(PathBuf),
    /// It is derived from the key in this file.
    Derived(PathBuf),
}

impl Secrets for Source {
    fn read(&self, access_key_id: &str) -> Result<SecretBytes, String> {
        match self {
            Self::File(path) => read_secret(path),
            Self::Derived(path) => {
                let secret = derive_secret(&*read_secret_key(path)?, access_key_id);
                Ok(SecretBytes::new(secret.as_bytes().to_vec()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_secrets_look_like_those_of_aws() {
        let (one, other) = (generate_id().unwrap(), generate_id().unwrap());
        assert!(one.len() == 20 && one.starts_with("KP") && one != other, "{one}");
        assert!(one.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()));
        let (one, other) = (generate_secret().unwrap(), generate_secret().unwrap());
        assert!(one.len() == 40 && *one != *other);
    }

    /// Computed with Python's `cryptography` (HKDF, SHA-256, no salt).
    #[test]
    fn a_secret_is_hkdf_of_the_key_and_the_id() {
        let key: [u8; 32] = std::array::from_fn(|index| index as u8);
        let secret = derive_secret(&key, "KPAAAAAAAAAAAAAAAAAA");
        assert_eq!(*secret, "IXb9ilx1vmYF380Pt5NY5tBOR+fAgr69kyLk8ryh");
        assert_ne!(*secret, *derive_secret(&key, "KPAAAAAAAAAAAAAAAAAB"));
        assert_ne!(*secret, *derive_secret(&[0; 32], "KPAAAAAAAAAAAAAAAAAA"));
    }

    #[test]
    fn a_key_file_of_another_size_and_a_short_secret_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for (len, is_key, is_secret) in
            [(0, false, false), (21, false, false), (31, false, true), (32, true, true)]
        {
            std::fs::write(&path, vec![b'x'; len]).unwrap();
            assert_eq!(read_secret_key(&path).is_ok(), is_key, "{len}");
            assert_eq!(read_secret(&path).is_ok(), is_secret, "{len}");
        }
        std::fs::write(&path, format!("{}\n", "x".repeat(21))).unwrap();
        assert!(read_secret(&path).is_err());
        assert!(Source::Derived(dir.path().join("none")).read("a").is_err());
    }
}
