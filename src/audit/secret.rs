//! The secret of a deployment that the keys of its audit log are derived from.
//!
//! It knows roots and the store, and nothing about lines.

use crate::id::{KekId, Suite};
use crate::root::Named;
use crate::secret::KeyBytes;
use crate::store::{Committed, Store, Txn};

use super::keys::Keys;
use super::stored::{self, KEY, Stored, TRIES};

pub use super::stored::Error;

/// Reads the secret, or creates it if it is missing, lets each root wrap it that has not yet, and
/// derives the keys. A store that does not outlive the process has a new secret at each start.
///
/// # Errors
/// [`Error`].
pub async fn keys(store: &dyn Store, roots: &[Named]) -> Result<Keys, Error> {
    for _ in 0..TRIES {
        let (secret, txn) = match store.get(KEY).await? {
            None => {
                let secret = KeyBytes::random(Suite::Aes256Gcm).map_err(|_| Error::Internal)?;
                let id = KekId::of_key(secret.expose());
                let mut stored = Stored { id, wraps: Vec::new() };
                stored::wrap(&mut stored, &secret, roots).await?;
                if stored.wraps.is_empty() {
                    return Err(Error::Roots("wrap", "none answers".to_owned()));
                }
                (secret, Some(Txn::default().create(KEY.to_owned(), stored::encode(&stored)?)))
            }
            Some(entry) => {
                let mut stored = stored::decode(&entry)?;
                let secret = stored::unwrap(&stored, roots).await?;
                let is_new = stored::wrap(&mut stored, &secret, roots).await?;
                let txn = is_new.then(|| stored::encode(&stored)).transpose()?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audit::stored::Changed;
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

    #[tokio::test]
    async fn a_removed_root_loses_its_wrap_and_never_the_last_one() {
        let (store, one, two) = (memory::Store::new(), root("one"), root("two"));
        let remove =
            async |roots: &[Named], removed| stored::remove(&store, roots, removed).await.unwrap();
        let roots = std::slice::from_ref;
        assert!(matches!(remove(roots(&two), "one").await, Changed::Nothing), "no record");
        let first = public(&keys(&store, roots(&one)).await.unwrap());
        // The other root has no wrap, so it can't unwrap the secret to wrap it.
        let needed = remove(roots(&two), "one").await;
        assert!(matches!(needed, Changed::Needed(_, _)), "{needed:?}");
        keys(&store, &[one.clone(), two.clone()]).await.unwrap();
        assert!(matches!(remove(roots(&two), "one").await, Changed::Wraps));
        assert!(matches!(remove(roots(&two), "one").await, Changed::Nothing), "done");
        assert!(keys(&store, roots(&one)).await.is_err(), "the removed root opens nothing");
        assert_eq!(public(&keys(&store, roots(&two)).await.unwrap()), first);
        // Before a wrap is erased, each remaining root has one.
        let three = root("three");
        let remaining = [two.clone(), three.clone()];
        keys(&store, &[two.clone(), one.clone()]).await.unwrap();
        assert!(matches!(remove(&remaining, "one").await, Changed::Wraps));
        assert_eq!(public(&keys(&store, roots(&three)).await.unwrap()), first);
    }
}
