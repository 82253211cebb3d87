//! The secret of a deployment that the keys of its audit log are derived from. It is in the store,
//! wrapped by every root, like a KEK.
//!
//! It knows roots and the store, and nothing about lines.

use serde::{Deserialize, Serialize};

use crate::id::{ChainName, KekId, Suite};
use crate::root::{Context, Named};
use crate::secret::KeyBytes;
use crate::store::record::Wrap;
use crate::store::{Committed, Entry, Store, Txn};

use super::keys::Keys;

/// The key of its record.
const KEY: &str = "audit/key";
/// The name in the context of its wraps. No envelope is made under it.
const CHAIN: &str = "audit-log";
/// How often the record is read again when other processes change it.
const TRIES: usize = 4;

/// The record.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    id: KekId,
    wraps: Vec<Wrap>,
}

/// Why the keys can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not answer, or its record is damaged.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// No root wraps or unwraps the secret.
    #[error("no root can {0} the key of the audit log: {1}")]
    Roots(&'static str, String),
    /// There is no randomness, or no key can be derived.
    #[error("the key of the audit log can't be made")]
    Internal,
}

/// Reads the secret, or creates it if it is missing, lets each root wrap it that has not yet, and
/// derives the keys. A store that does not outlive the process has a new secret at each start.
///
/// # Errors
/// [`Error`].
pub async fn keys(store: &dyn Store, roots: &[Named]) -> Result<Keys, Error> {
    let chain = ChainName::new(CHAIN).map_err(|_| Error::Internal)?;
    for _ in 0..TRIES {
        let (secret, txn) = match store.get(KEY).await? {
            None => {
                let secret = KeyBytes::random(Suite::Aes256Gcm).map_err(|_| Error::Internal)?;
                let id = KekId::of_key(secret.expose());
                let mut stored = Stored { id, wraps: Vec::new() };
                wrap(&mut stored, &chain, &secret, roots).await?;
                if stored.wraps.is_empty() {
                    return Err(Error::Roots("wrap", "none answers".to_owned()));
                }
                (secret, Some(Txn::default().create(KEY.to_owned(), encode(&stored)?)))
            }
            Some(entry) => {
                let mut stored = decode(&entry)?;
                let secret = unwrap(&stored, &chain, roots).await?;
                let is_new = wrap(&mut stored, &chain, &secret, roots).await?;
                let txn = is_new.then(|| encode(&stored)).transpose()?;
                let key = KEY.to_owned();
                (secret, txn.map(|value| Txn::default().replace(key, entry.revision, value)))
            }
        };
        let is_stored = match txn {
            None => true,
            Some(txn) => matches!(store.commit(txn).await?, Committed::Applied(_)),
        };
        if is_stored {
            return Keys::derive(&secret).ok_or(Error::Internal);
        }
    }
    Err(Error::Internal)
}

/// Has each root wrap the secret that has not. Returns whether one did.
async fn wrap(
    stored: &mut Stored,
    chain: &ChainName,
    secret: &KeyBytes,
    roots: &[Named],
) -> Result<bool, Error> {
    let mut is_new = false;
    let context = Context { chain, kek_id: stored.id, suite: Suite::Aes256Gcm };
    for Named { name, root } in roots {
        if stored.wraps.iter().any(|wrap| *wrap.root == **name) {
            continue;
        }
        match root.wrap(context, secret).await {
            Ok(bytes) => {
                stored.wraps.push(Wrap { root: name.to_string(), bytes });
                is_new = true;
            }
            Err(error) => {
                tracing::warn!(root = %name, %error, "a root did not wrap the audit log's key");
            }
        }
    }
    Ok(is_new)
}

async fn unwrap(stored: &Stored, chain: &ChainName, roots: &[Named]) -> Result<KeyBytes, Error> {
    let context = Context { chain, kek_id: stored.id, suite: Suite::Aes256Gcm };
    let mut why = "none of the configured roots has wrapped it".to_owned();
    for Named { name, root } in roots {
        let Some(wrap) = stored.wraps.iter().find(|wrap| *wrap.root == **name) else { continue };
        match root.unwrap(context, &wrap.bytes).await {
            Ok(secret) if KekId::of_key(secret.expose()) == stored.id => return Ok(secret),
            Ok(_) => why = format!("{name} returned another key"),
            Err(error) => why = format!("{name}: {error}"),
        }
    }
    Err(Error::Roots("unwrap", why))
}

fn encode(stored: &Stored) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(stored).map_err(|_| Error::Internal)
}

fn decode(entry: &Entry) -> Result<Stored, Error> {
    serde_json::from_slice(&entry.value).map_err(|_| {
        let detail = "it is not the key of an audit log".to_owned();
        crate::store::Error::Corrupt { key: KEY.to_owned(), detail }.into()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::root::local;
    use crate::store::memory;

    fn root(name: &str) -> Named {
        Named { name: name.into(), root: Arc::new(local::Root::generate().unwrap()) }
    }

    fn public(keys: &Keys) -> String {
        keys.signing.public().to_string()
    }

    #[tokio::test]
    async fn the_keys_stay_while_roots_come_and_go() {
        let (store, one, two) = (memory::Store::new(), root("one"), root("two"));
        let first = public(&keys(&store, std::slice::from_ref(&one)).await.unwrap());
        let both = keys(&store, &[one.clone(), two.clone()]).await.unwrap();
        assert_eq!(public(&both), first);
        let later = keys(&store, std::slice::from_ref(&two)).await.unwrap();
        assert_eq!(public(&later), first);
        let error = keys(&store, &[root("two")]).await.err().unwrap();
        assert!(matches!(error, Error::Roots("unwrap", _)), "{error}");
        assert!(keys(&store, &[root("three")]).await.is_err());
        let other = keys(&memory::Store::new(), &[one]).await.unwrap();
        assert_ne!(public(&other), first);
    }
}
