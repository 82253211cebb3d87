//! The keys of records: which chain, KEK or root a record in the store belongs to.

use crate::id::{ChainName, KekId};

/// The prefix of all keys of chains.
pub const CHAINS: &str = "chains/";

/// The prefix of all keys of roots.
pub const ROOTS: &str = "roots/";

/// The key of the [`LastBackup`](super::LastBackup).
pub const LAST_BACKUP: &str = "backups/last";

/// The key of the [`AuditKey`](super::AuditKey).
pub const AUDIT_KEY: &str = "audit/key";

/// The name of the chain in the context of the wraps of the [`AuditKey`](super::AuditKey). No
/// envelope is made under it.
pub const AUDIT_LOG: &str = "audit-log";

/// What a key names within its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The chain's [`Head`](super::Head).
    Head,
    /// A [`Kek`](super::Kek).
    Kek(KekId),
    /// The [`Uses`](super::Uses) of a KEK.
    Uses(KekId),
    /// The chain's [`Claim`](super::Claim).
    Claim,
}

/// The chain of a key, and the part that it names; `None` if it is not the key of a record.
#[must_use]
pub fn parse_key(key: &str) -> Option<(ChainName, Part)> {
    let (chain, rest) = key.strip_prefix(CHAINS)?.split_once('/')?;
    let part = match rest.split_once('/') {
        None if rest == "head" => Part::Head,
        None if rest == "claim" => Part::Claim,
        Some(("keks", id)) => Part::Kek(id.parse().ok()?),
        Some(("uses", id)) => Part::Uses(id.parse().ok()?),
        _ => return None,
    };
    Some((ChainName::new(chain).ok()?, part))
}

/// The key of a chain's [`Head`](super::Head).
#[must_use]
pub fn head_key(chain: &ChainName) -> String {
    format!("chains/{chain}/head")
}

/// The key of a [`Kek`](super::Kek).
#[must_use]
pub fn kek_key(chain: &ChainName, id: KekId) -> String {
    format!("chains/{chain}/keks/{id}")
}

/// The prefix of the keys of a chain's KEKs.
#[must_use]
pub fn keks_prefix(chain: &ChainName) -> String {
    format!("chains/{chain}/keks/")
}

/// The key of a KEK's [`Uses`](super::Uses).
#[must_use]
pub fn uses_key(chain: &ChainName, id: KekId) -> String {
    format!("chains/{chain}/uses/{id}")
}

/// The prefix of the keys of a chain's uses.
#[must_use]
pub fn uses_prefix(chain: &ChainName) -> String {
    format!("chains/{chain}/uses/")
}

/// The key of a chain's [`Claim`](super::Claim).
#[must_use]
pub fn claim_key(chain: &ChainName) -> String {
    format!("chains/{chain}/claim")
}

/// The prefix of the keys of the [`LastUsed`](super::LastUsed)s of a chain's KEKs. It is apart from
/// [`CHAINS`]: a store that lost a chain must not seem to have a part of it.
#[must_use]
pub fn last_used_prefix(chain: &ChainName) -> String {
    format!("last-used/{chain}/")
}

/// The key of a KEK's [`LastUsed`](super::LastUsed).
#[must_use]
pub fn last_used_key(chain: &ChainName, id: KekId) -> String {
    format!("last-used/{chain}/{id}")
}

/// The key of a chain's [`UsedSince`](super::UsedSince): after those of the KEKs.
#[must_use]
pub fn used_since_key(chain: &ChainName) -> String {
    format!("last-used/{chain}/since")
}

/// The key of a root's [`RootCheck`](super::RootCheck).
#[must_use]
pub fn root_check_key(root: &str) -> String {
    format!("roots/{root}/check")
}

/// The prefix of the keys of a root's [`RootUser`](super::RootUser)s.
#[must_use]
pub fn root_users_prefix(root: &str) -> String {
    format!("roots/{root}/users/")
}

/// The key of the [`RootUser`](super::RootUser) of the process `owner`.
#[must_use]
pub fn root_user_key(root: &str, owner: u64) -> String {
    format!("roots/{root}/users/{owner:016x}")
}

/// The root and the process of the [`RootUser`](super::RootUser) at `key`; `None` if it is the key
/// of another record.
#[must_use]
pub fn root_user(key: &str) -> Option<(&str, u64)> {
    let (root, owner) = key.strip_prefix(ROOTS)?.split_once("/users/")?;
    Some((root, u64::from_str_radix(owner, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_as_they_were_made() {
        let (chain, id) = (ChainName::new("orders").unwrap(), KekId::of_key(&[7; 16]));
        for (key, part) in [
            (head_key(&chain), Part::Head),
            (kek_key(&chain, id), Part::Kek(id)),
            (uses_key(&chain, id), Part::Uses(id)),
            (claim_key(&chain), Part::Claim),
        ] {
            assert_eq!(parse_key(&key), Some((chain.clone(), part)), "{key}");
            assert_eq!(parse_key(&format!("{key}/x")), None);
        }
        for key in [last_used_key(&chain, id), used_since_key(&chain)] {
            assert!(key.starts_with(&last_used_prefix(&chain)), "{key}");
            assert_eq!(parse_key(&key), None, "{key}");
        }
        let user = root_user_key("main", 7);
        assert!(user.starts_with(&root_users_prefix("main")));
        assert_eq!(
            (root_user(&user), root_user(&root_check_key("main"))),
            (Some(("main", 7)), None)
        );
        for none in ["", "chains/", "chains/a", "chains/A/head", "chains/a/keks/1", "x/a/head"] {
            assert_eq!(parse_key(none), None, "{none}");
        }
    }
}
