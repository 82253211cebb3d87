//! Names and ids: [`ChainName`], [`RootName`], [`KekId`], [`Suite`].
//!
//! A leaf: it knows how names are written and parsed, and nothing about what they name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hkdf::Hkdf;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;

/// The AEAD of a key chain. KEK and DEK both have the suite's key size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// AES-128-GCM (NIST SP 800-38D): 16-byte keys. The default.
    #[default]
    #[serde(rename = "aes-128-gcm")]
    Aes128Gcm,
    /// AES-256-GCM (NIST SP 800-38D): 32-byte keys.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

impl Suite {
    /// The byte that represents the suite in an envelope.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Aes128Gcm => 1,
            Self::Aes256Gcm => 2,
        }
    }

    /// The suite that `code` represents, if there is one.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Aes128Gcm),
            2 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// The size of its keys in bytes: 16 or 32.
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm => 32,
        }
    }

    /// The suite whose keys have `len` bytes.
    #[must_use]
    pub const fn from_key_len(len: usize) -> Option<Self> {
        match len {
            16 => Some(Self::Aes128Gcm),
            32 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// The name that users read and write: `aes-128-gcm` or `aes-256-gcm`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Suite {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        match s {
            "aes-128-gcm" => Ok(Self::Aes128Gcm),
            "aes-256-gcm" => Ok(Self::Aes256Gcm),
            _ => Err(InvalidName("a suite is aes-128-gcm or aes-256-gcm")),
        }
    }
}

/// A string that is not a valid name. The message describes the valid form and never repeats the
/// string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(&'static str);

/// The name of a key chain: `[a-z0-9][a-z0-9._-]{0,62}`, so 1 to 63 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainName(Arc<str>);

impl ChainName {
    /// The longest name in bytes.
    pub const MAX_LEN: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidName`] when `name` is not of the form above.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest = bytes.all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
        });
        if first && rest && name.len() <= Self::MAX_LEN {
            Ok(Self(name.into()))
        } else {
            Err(InvalidName(
                "a chain name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or digit",
            ))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ChainName {
    /// `default`.
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for ChainName {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        Self::new(s)
    }
}

impl std::borrow::Borrow<str> for ChainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The name of a root, in records, labels and logs. What can name a chain can name a root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootName(ChainName);

impl RootName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidName`] unless it is 1 to 63 of `a-z 0-9 . _ -` and starts with a letter or digit.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        const INVALID: InvalidName = InvalidName(
            "a root's name is 1 to 63 of a-z 0-9 . _ - and starts with a letter or digit",
        );
        ChainName::new(name).map(Self).map_err(|_| INVALID)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// The id of a KEK: 16 bytes derived from the key itself, written as 32 lower-case hex digits.
///
/// The id commits to the key: it is checked after every unwrap, so an envelope names one KEK and
/// no other. Anyone who can wrap KEKs under the root can find two keys with the same id in about
/// 2^64 steps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekId([u8; Self::LEN]);

impl KekId {
    /// Its size in bytes.
    pub const LEN: usize = 16;

    /// The id of the KEK with these bytes: the first 16 bytes of HKDF-SHA-256 (RFC 5869) without
    /// salt, with info `kms-proxy kek id v1`.
    #[must_use]
    pub fn of_key(kek: &[u8]) -> Self {
        let mut id = [0; Self::LEN];
        // HKDF refuses only outputs of more than 255 hashes; this one is half a hash.
        let expanded = Hkdf::<Sha256>::new(None, kek).expand(b"kms-proxy kek id v1", &mut id);
        debug_assert!(expanded.is_ok());
        Self(id)
    }

    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes, as an envelope holds them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Its 32 hex digits without an allocation.
    #[must_use]
    pub fn to_hex(self) -> KekIdHex {
        let mut digits = [0; 2 * Self::LEN];
        // The digits have room for the whole id.
        let _ = base16ct::lower::encode(&self.0, &mut digits);
        KekIdHex(digits)
    }
}

/// The hex digits of a [`KekId`].
#[derive(Clone, Copy)]
pub struct KekIdHex([u8; 2 * KekId::LEN]);

impl KekIdHex {
    /// The digits as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_hex().as_str())
    }
}

impl fmt::Debug for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KekId {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        const INVALID: InvalidName = InvalidName("a KEK id is 32 lower-case hex digits");
        let mut id = [0; Self::LEN];
        let decoded = base16ct::lower::decode(s, &mut id).map_err(|_| INVALID)?;
        if decoded.len() == Self::LEN { Ok(Self(id)) } else { Err(INVALID) }
    }
}

/// Serde by `Display` and `FromStr`.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(ChainName, KekId);

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::constant_time;

    /// The ids are public, so nothing depends on it.
    #[test]
    fn kek_ids_take_the_same_time_wherever_the_difference_is() {
        let right = KekId::of_key(&[7; 32]);
        let set = |given: &mut KekId, input: &[u8]| given.0.copy_from_slice(input);
        let accepts = |given: &mut KekId| *given == std::hint::black_box(right);
        constant_time::check("KEK id", right, &right.0, set, accepts);
    }

    fn hex(text: &str) -> Vec<u8> {
        base16ct::lower::decode_vec(text).unwrap()
    }

    fn list<T: DeserializeOwned>(text: &str) -> Vec<T> {
        serde_json::from_str(text).unwrap()
    }

    /// The vectors of Project Wycheproof, by the crate as this project calls it; without a salt
    /// where the vector has none. The repository has the vectors, and the package does not.
    #[test]
    fn every_hkdf_vector_of_wycheproof_passes() {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct File {
            number_of_tests: usize,
            test_groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            tests: Vec<Test>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Test {
            tc_id: usize,
            ikm: String,
            salt: String,
            info: String,
            size: usize,
            okm: String,
            result: String,
        }
        let path = "/tests/vectors/wycheproof/hkdf_sha256_test.json";
        let path = [env!("CARGO_MANIFEST_DIR"), path].concat();
        let file: File = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (mut valid, mut invalid, mut without_salt) = (0, 0, 0);
        for test in file.test_groups.iter().flat_map(|group| &group.tests) {
            let salt = Some(hex(&test.salt)).filter(|salt| !salt.is_empty());
            without_salt += usize::from(salt.is_none());
            let mut okm = vec![0; test.size];
            let hkdf = Hkdf::<Sha256>::new(salt.as_deref(), &hex(&test.ikm));
            let expanded = hkdf.expand(&hex(&test.info), &mut okm);
            if test.result == "valid" {
                assert!(expanded.is_ok() && okm == hex(&test.okm), "{}", test.tc_id);
                valid += 1;
            } else {
                assert!(test.result == "invalid" && expanded.is_err(), "{}", test.tc_id);
                invalid += 1;
            }
        }
        println!("{valid} valid and {invalid} invalid vectors; {without_salt} without a salt");
        assert_eq!((valid, invalid, without_salt), (83, 3, 23));
        assert_eq!(valid + invalid, file.number_of_tests);
    }

    /// `tests/vectors/make.py` computed them with HMAC alone.
    #[test]
    fn the_id_of_a_kek_is_the_known_one() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Known {
            comment: String,
            kek: String,
            kek_id: String,
        }
        let known: Vec<Known> = list(include_str!("../tests/vectors/kek-ids/kek-ids.json"));
        for one in &known {
            let id = KekId::of_key(&hex(&one.kek));
            assert_eq!(id.to_string(), one.kek_id, "{}", one.comment);
            assert_eq!(id, one.kek_id.parse().unwrap());
        }
        let ids: std::collections::BTreeSet<_> = known.iter().map(|one| &one.kek_id).collect();
        assert_eq!((known.len(), ids.len()), (22, 22), "no two keys have one id");
    }

    #[test]
    fn chain_names_are_checked() {
        let longest = "a".repeat(63);
        for good in ["default", "0", "orders-2", "a.b_c-d", &longest] {
            assert_eq!(ChainName::new(good).unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", ".a", "_a", "A", "a/b", "a b", "ü", &too_long] {
            assert!(ChainName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn kek_ids_are_lower_case_hex() {
        let text = "7841c0b3f2a94d1e8c55e02f6b9d1a37";
        assert_eq!(text.parse::<KekId>().unwrap().to_string(), text);
        for bad in [
            "",
            "7841",
            &text.to_uppercase(),
            &format!("{text}00"),
            "zz41c0b3f2a94d1e8c55e02f6b9d1a37",
        ] {
            assert!(bad.parse::<KekId>().is_err(), "{bad:?}");
        }
    }

    /// Computed with Python's `cryptography` (HKDF, SHA-256, no salt).
    #[test]
    fn kek_id_is_hkdf_of_the_key() {
        assert_eq!(KekId::of_key(&[0; 16]).to_string(), "f124f200eee346491bdc4e0f67cfdcdc");
        let key: Vec<u8> = (0..32).collect();
        assert_eq!(KekId::of_key(&key).to_string(), "95507df49e8a9a45880a6f07de5acb9a");
    }
}
