//! The records of key chains, as `store` values: what they hold, and how they are read and written.
//!
//! JSON with a `format` number, so that an operator can read records with the tools of the store.
//! This module knows ids and bytes, and not which state may follow which.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::base64;
use crate::id::{ChainName, KekId, Suite};

use super::Error;

mod keys;
mod life;

pub use keys::{
    AUDIT_KEY, AUDIT_LOG, CHAINS, LAST_BACKUP, Part, ROOTS, claim_key, head_key, kek_key,
    keks_prefix, last_used_key, last_used_prefix, parse_key, root_check_key, root_user,
    root_user_key, root_users_prefix, used_since_key, uses_key, uses_prefix,
};

/// The format that this code writes. It reads no other.
const FORMAT: u32 = 1;

/// When a KEK is replaced, and when it must no longer be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Uses that start a rotation: 2^21 by default.
    pub rotate_after_uses: u64,
    /// The limit of uses, which is never exceeded: 2^22 by default, at most 2^32 (NIST SP 800-38D,
    /// section 8.3).
    pub max_uses: u64,
    /// Age since promotion, in seconds, that starts a rotation: 90 days by default, at least
    /// [`MIN_ROTATE_AFTER_AGE`](Self::MIN_ROTATE_AFTER_AGE).
    pub rotate_after_age: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rotate_after_uses: 1 << 21, max_uses: 1 << 22, rotate_after_age: 90 * 24 * 60 * 60 }
    }
}

impl Limits {
    /// The shortest `rotate_after_age`, in seconds: an idle chain rotates by age as well, and each
    /// KEK stays in the store permanently.
    pub const MIN_ROTATE_AFTER_AGE: u64 = 60;

    /// Checks that the limits fit together.
    ///
    /// # Errors
    /// What is wrong, for the user who set them.
    pub fn validate(&self) -> Result<(), &'static str> {
        match self {
            Self { max_uses, .. } if *max_uses > 1 << 32 => {
                Err("max_uses is at most 4294967296 (2^32)")
            }
            Self { rotate_after_uses: 0, .. } => Err("rotate_after_uses is at least 1"),
            Self { rotate_after_uses, max_uses, .. } if rotate_after_uses > max_uses => {
                Err("rotate_after_uses is at most max_uses")
            }
            Self { rotate_after_age, .. } if *rotate_after_age < Self::MIN_ROTATE_AFTER_AGE => {
                Err("rotate_after_age is at least 60 seconds")
            }
            _ => Ok(()),
        }
    }
}

/// The head of a chain: a small record that names the KEK that encrypts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The suite of new KEKs.
    pub suite: Suite,
    /// When KEKs are replaced.
    pub limits: Limits,
    /// The KEK that encrypts; `None` before the first rotation.
    pub primary: Option<KekId>,
    /// The KEK that will encrypt next, created in advance.
    pub standby: Option<KekId>,
    /// Grows with every change of the head.
    pub generation: u64,
    /// Grows when the set of roots changes.
    pub roots_generation: u64,
    /// The external name of the chain's keys; only in a chain that Kubernetes uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_root: Option<NamedRoot>,
    /// A random number of the last repair after a rollback of the store. A replica that detects the
    /// rollback later can see that the chain is already repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<u64>,
    /// Whether new envelopes embed the wrapped KEK as well. Versions that do not know the field
    /// read heads without it only, so it is written only where it is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
}

/// The root that the keys of a chain are named after, for clients that must notice when the roots
/// change. It changes with the roots, or on request by an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
#[serde(deny_unknown_fields)]
pub struct NamedRoot {
    /// The head's `roots_generation` when this name was chosen.
    pub generation: u64,
    /// A random number, so that another or a restored history of a store never makes the same name.
    pub mark: u64,
    /// The kind of the root.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The provider's name of its key; empty if it has none.
    pub key: String,
    /// The names of all roots that had wrapped the primary at that time.
    pub roots: Vec<String>,
}

/// The life of a KEK: `standby` -> `primary` -> `retired` <-> `disabled` -> `destroyed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Created, and waiting to be promoted.
    Standby,
    /// It encrypts and decrypts.
    Primary,
    /// It only decrypts.
    Retired,
    /// It is not used until it is enabled again.
    Disabled,
    /// Its wraps are gone; the record is a tombstone.
    Destroyed,
}

impl State {
    /// The word that users read.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Primary => "primary",
            Self::Retired => "retired",
            Self::Disabled => "disabled",
            Self::Destroyed => "destroyed",
        }
    }
}

/// The wrap of a KEK by one root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
#[serde(deny_unknown_fields)]
pub struct Wrap {
    /// The name of the root.
    pub root: String,
    /// The wrapped KEK.
    #[serde(with = "base64")]
    pub bytes: Vec<u8>,
}

/// A KEK, wrapped. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
#[serde(deny_unknown_fields)]
pub struct Kek {
    /// Its suite.
    pub suite: Suite,
    /// Its state.
    pub state: State,
    /// When it was created.
    pub created_at: u64,
    /// When it became primary.
    pub promoted_at: Option<u64>,
    /// When it was last disabled.
    pub disabled_at: Option<u64>,
    /// Whether a `local` root ever wrapped it.
    pub exposed: bool,
    /// Its wraps; only empty in a tombstone.
    pub wraps: Vec<Wrap>,
}

/// The uses of a KEK that were ever reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
#[serde(deny_unknown_fields)]
pub struct Uses {
    /// It only grows.
    pub reserved: u64,
    /// The process that took the last block: a random number for each process.
    pub owner: u64,
    /// The owner's number of that block.
    pub sequence: u64,
}

/// Which process creates the next KEK of a chain. It only saves calls of roots, so it contains no
/// time: other processes take it over if it has not changed for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// A random number for each process.
    pub owner: u64,
}

/// A wrap with which processes compare their roots of one name: the first one that a root with this
/// name made in a shared store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootCheck {
    /// The process that made it: a random number for each process.
    pub owner: u64,
    /// The chain of the wrapped KEK.
    pub chain: ChainName,
    /// The id of the wrapped KEK. The KEK may not be stored, if it was replaced before it was.
    pub kek_id: KekId,
    /// The suite of the wrapped KEK.
    pub suite: Suite,
    /// The wrapped KEK.
    #[serde(with = "base64")]
    pub wrap: Vec<u8>,
}

/// Reports that a process has a root of this name configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootUser {
    /// When the process last reported it, in seconds since the Unix epoch.
    pub reported_at: u64,
    /// Whether its root has another key than the one that made the [`RootCheck`].
    pub differs: bool,
}

/// The last complete backup of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastBackup {
    /// When it began, in seconds since the Unix epoch: it has every KEK that was stored then.
    pub began_at: u64,
}

/// The days in UTC on which a KEK was last used, as days since the Unix epoch. They only grow, and
/// no promise depends on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastUsed {
    /// It wrapped a DEK; `None` if that is not known.
    pub encrypt: Option<u32>,
    /// It opened a DEK; `None` if that is not known.
    pub decrypt: Option<u32>,
}

impl LastUsed {
    /// The later day of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        let encrypt = self.encrypt.max(other.encrypt);
        Self { encrypt, decrypt: self.decrypt.max(other.decrypt) }
    }
}

/// The day from which on the [`LastUsed`] of all KEKs of a chain are noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsedSince {
    /// In days since the Unix epoch.
    pub day: u32,
}

/// The secret that the keys of the audit log are derived from, wrapped. It belongs to no chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditKey {
    /// The id of the secret.
    pub id: KekId,
    /// Its wraps.
    pub wraps: Vec<Wrap>,
}

/// A type of record.
pub trait Record: Serialize + DeserializeOwned {
    /// The record as it is stored.
    ///
    /// # Errors
    /// None that these types can cause; a serializer's own is reported as a damaged record.
    fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(&Stored { format: FORMAT, record: self })
            .map_err(|error| corrupt("(not yet written)", &error))
    }

    /// Decodes the record at `key`.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    fn decode(key: &str, value: &[u8]) -> Result<Self, Error> {
        let probe: Probe = serde_json::from_slice(value).map_err(|error| corrupt(key, &error))?;
        if probe.format != FORMAT {
            let detail = format!("its format is {}, this version reads {FORMAT}", probe.format);
            return Err(Error::Corrupt { key: key.to_owned(), detail });
        }
        let stored: Stored<Self> =
            serde_json::from_slice(value).map_err(|error| corrupt(key, &error))?;
        Ok(stored.record)
    }
}

impl Record for Head {}
impl Record for Kek {}
impl Record for Uses {}
impl Record for Claim {}
impl Record for RootCheck {}
impl Record for RootUser {}
impl Record for LastBackup {}
impl Record for LastUsed {}
impl Record for UsedSince {}

/// It is stored without a `format`: another field would make it another format.
impl Record for AuditKey {
    fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| corrupt("(not yet written)", &error))
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(value).map_err(|error| corrupt(key, &error))
    }
}

#[derive(Serialize, Deserialize)]
struct Stored<R> {
    format: u32,
    record: R,
}

#[derive(Deserialize)]
struct Probe {
    format: u32,
}

fn corrupt(key: &str, error: &serde_json::Error) -> Error {
    Error::Corrupt { key: key.to_owned(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek() -> Kek {
        Kek {
            suite: Suite::Aes128Gcm,
            state: State::Primary,
            created_at: 1,
            promoted_at: Some(2),
            disabled_at: None,
            exposed: true,
            wraps: vec![Wrap { root: "main".into(), bytes: vec![1, 2, 3] }],
        }
    }

    #[test]
    fn records_read_back_as_written() {
        let stored = kek().encode().unwrap();
        assert_eq!(Kek::decode("k", &stored).unwrap(), kek());
        assert!(
            stored.starts_with(br#"{"format":1,"record":{"suite":"aes-128-gcm","state":"primary""#)
        );
    }

    #[test]
    fn damage_is_named_by_its_key() {
        let stored = String::from_utf8(kek().encode().unwrap()).unwrap();
        let newer = stored.replace("\"format\":1", "\"format\":2");
        let unknown = stored.replace("\"exposed\"", "\"opposed\"");
        for bad in [&stored[1..], &stored[..stored.len() - 1], &newer, &unknown, ""] {
            match Kek::decode("chains/a/keks/b", bad.as_bytes()) {
                Err(Error::Corrupt { key, .. }) => assert_eq!(key, "chains/a/keks/b"),
                other => panic!("{bad}: {other:?}"),
            }
        }
        let newer = Kek::decode("k", newer.as_bytes()).unwrap_err().to_string();
        assert!(newer.contains("its format is 2"), "{newer}");
    }

    #[test]
    fn limits_must_fit_together() {
        let good = Limits::default();
        assert_eq!((good.rotate_after_uses, good.max_uses), (2_097_152, 4_194_304));
        assert!(good.validate().is_ok());
        assert!(Limits { rotate_after_age: 60, ..good }.validate().is_ok());
        for bad in [
            Limits { rotate_after_uses: 0, ..good },
            Limits { rotate_after_uses: 201, max_uses: 200, ..good },
            Limits { max_uses: (1 << 32) + 1, ..good },
            Limits { rotate_after_age: 59, ..good },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
