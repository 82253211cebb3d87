//! The wrap as it is stored: a format byte, then the ciphertext of transit, which is the text
//! `vault:v3:` and base64. It knows nothing about servers.

use base64_simd::STANDARD;

use crate::root::Error;
use crate::root::sealed::after_format;

/// The first byte of a wrap.
const FORMAT: u8 = 1;

/// The longest wrap that a root may return, in bytes.
const MAX_LEN: usize = 1024;

/// Nonce and tag of the smallest AEAD that transit has (AES-GCM, ChaCha20-Poly1305).
const OVERHEAD: usize = 12 + 16;

/// A ciphertext of transit whose form was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrapped<'a> {
    /// The whole text.
    pub(super) text: &'a str,
    /// The version of the key that made it, from 1 on.
    pub(super) version: u32,
}

impl<'a> Wrapped<'a> {
    /// Checks the text from a server. A ciphertext has exactly one valid text: accepting others
    /// would accept a wrap that was changed.
    pub(super) fn from_text(text: &'a str) -> Option<Self> {
        let (digits, base64) = text.strip_prefix("vault:v")?.split_once(':')?;
        let version: u32 = digits.parse().ok().filter(|version| *version > 0)?;
        let bytes = STANDARD.decode_to_vec(base64).ok()?;
        let canonical =
            version.to_string() == digits && STANDARD.encode_to_string(&bytes) == base64;
        let fits = bytes.len() > OVERHEAD && text.len() < MAX_LEN;
        (canonical && fits).then_some(Self { text, version })
    }

    /// Parses what [`to_bytes`](Self::to_bytes) returned.
    ///
    /// # Errors
    /// [`Error::Wrong`].
    pub(super) fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        let text = after_format(bytes, FORMAT)?;
        str::from_utf8(text).ok().and_then(Self::from_text).ok_or_else(|| {
            Error::Wrong("it does not have the form of a ciphertext of transit".to_owned())
        })
    }

    /// The bytes to store: at most 1,024.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        [&[FORMAT], self.text.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "vault:v12:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==";

    #[test]
    fn a_wrap_is_read_as_it_was_written() {
        let wrapped = Wrapped::from_text(GOOD).unwrap();
        assert_eq!((wrapped.text, wrapped.version), (GOOD, 12));
        let bytes = wrapped.to_bytes();
        assert_eq!((bytes[0], &bytes[1..]), (1, GOOD.as_bytes()));
        assert_eq!(Wrapped::from_bytes(&bytes), Ok(wrapped));
    }

    #[test]
    fn what_no_server_would_make_is_not_sent_to_one() {
        let long = format!("vault:v1:{}", STANDARD.encode_to_string([7; 768]));
        for bad in [
            "",
            "vault:",
            "vault:v1",
            "vault:v1:",
            "vault:v0:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==",
            "vault:v01:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==",
            "vault:v+1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==",
            "vault:v-1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==",
            "vault:v4294967296:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==",
            "bao:v1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==",
            "vault:v1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg",
            // The last digit has bits that decode to nothing.
            "vault:v1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVh==",
            "vault:v1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6CZsEwdVg==\n",
            "vault:v1:zSaBL+w8tyCSAKJl1+z1mdsgsMrs3zWBe6A=",
            &long,
        ] {
            assert_eq!(Wrapped::from_text(bad), None, "{bad}");
        }
        let wrong = |bytes: &[u8]| Wrapped::from_bytes(bytes).unwrap_err().to_string();
        assert!(wrong(b"\x02vault:v1:").contains("its format is 2, and this version reads 1"));
        assert!(wrong(b"\x01\xff").contains("does not have the form"));
        assert!(wrong(b"").contains("length"));
    }
}
