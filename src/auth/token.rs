//! Bearer tokens: generates one, and compares digests. The service stores only the digest.

use std::collections::HashMap;
use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::random;

/// The prefix of generated tokens, so that secret scanners find them.
const PREFIX: &str = "kpt_";

/// A new token of 256 random bits, as text. Anyone who has it can act as the client.
///
/// # Errors
/// [`random::Unavailable`] when the operating system gives no randomness.
pub fn generate() -> Result<(Zeroizing<String>, TokenDigest), random::Unavailable> {
    let mut secret = Zeroizing::new([0; 32]);
    random::fill(&mut *secret)?;
    // It never grows, so no copy is left behind.
    let mut token = Zeroizing::new(String::with_capacity(PREFIX.len() + 43));
    token.push_str(PREFIX);
    base64_simd::URL_SAFE_NO_PAD.encode_append(secret.as_slice(), &mut *token);
    let digest = TokenDigest::of(&token);
    Ok((token, digest))
}

/// The SHA-256 of a token. It is not secret: 256 random bits can't be guessed from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// The first 8 bytes, which are the key of the index.
    fn start(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for TokenDigest {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base16ct::lower::encode_string(&self.0))
    }
}

impl serde::Serialize for TokenDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for TokenDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "it is the SHA-256 of a token, in 64 hexadecimal digits; \
                                `kms-proxy token new` makes both";
        let mut bytes = [0; 32];
        let decoded = base16ct::mixed::decode(&text, &mut bytes).map_err(|_| EXPECTED)?;
        if decoded.len() != 32 {
            return Err(EXPECTED);
        }
        Ok(Self(bytes))
    }
}

/// Values by the digests of their tokens.
///
/// The index uses 8 bytes of the digest; the whole digest is compared in constant time. The time of
/// a lookup may reveal something about the hash of a guess, from which no token can be derived.
pub(super) struct ByDigest<T>(HashMap<u64, Vec<(TokenDigest, T)>>);

impl<T> ByDigest<T> {
    pub(super) fn new(values: impl IntoIterator<Item = (TokenDigest, T)>) -> Self {
        let mut map = HashMap::<_, Vec<_>>::new();
        for (digest, value) in values {
            map.entry(digest.start()).or_default().push((digest, value));
        }
        Self(map)
    }

    pub(super) fn find(&self, digest: &TokenDigest) -> Option<&T> {
        let same = |(known, _): &&(TokenDigest, T)| bool::from(known.0.ct_eq(&digest.0));
        self.0.get(&digest.start())?.iter().find(same).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constant_time;

    #[test]
    fn a_token_is_new_each_time_and_its_digest_is_written_as_it_is_read() {
        let (one, digest) = generate().unwrap();
        let (other, _) = generate().unwrap();
        assert!(one.starts_with("kpt_") && one.len() == 47 && *one != *other);
        assert_eq!(digest, TokenDigest::of(&one));
        assert_eq!(TokenDigest::try_from(digest.to_string()), Ok(digest));
        assert_eq!(
            TokenDigest::of("abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let long = "a".repeat(63);
        for bad in ["", "abc", &*long, &format!("{long}g"), &format!("{long}+"), &"é".repeat(32)] {
            assert!(TokenDigest::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(TokenDigest::try_from("AB".repeat(32)).is_ok());
    }

    #[test]
    fn a_digest_is_found_whole_or_not_at_all() {
        let digest = TokenDigest::of("abc");
        let mut near = digest;
        near.0[31] ^= 1;
        let map = ByDigest::new([(digest, 1), (near, 2)]);
        assert_eq!((map.find(&digest), map.find(&near)), (Some(&1), Some(&2)));
        near.0[30] ^= 1;
        assert_eq!(map.find(&near), None);
        assert_eq!(map.find(&TokenDigest::of("")), None);
    }

    /// Behind the 8 bytes of the index.
    #[test]
    fn a_digest_takes_the_same_time_wherever_the_difference_is() {
        let digest = TokenDigest::of("abc");
        let map = ByDigest::new([(digest, 1)]);
        let set = |given: &mut TokenDigest, rest: &[u8]| given.0[8..].copy_from_slice(rest);
        let accepts = |given: &mut TokenDigest| map.find(given).is_some();
        constant_time::check("digest of a token", digest, &digest.0[8..], set, accepts);
    }
}
