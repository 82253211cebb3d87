//! The secret of a deployment that the keys of its audit log are derived from.
//!
//! It knows roots and the store, and nothing about lines.

use crate::id::{KekId, Suite};
use crate::root::Named;
use crate::secret::KeyBytes;
use crate::store::record::{AUDIT_KEY, AuditKey, Record as _};
use crate::store::{Committed, Store, Txn};

use super::keys::Keys;
use super::stored::{self, TRIES};

pub use super::stored::Error;

/// Reads the secret, or creates it if it is missing, lets each root wrap it that has not yet, and
/// derives the keys. A store that does not outlive the process has a new secret at each start.
///
/// # Errors
/// [`Error`].
pub async fn keys(store: &dyn Store, roots: &[Named]) -> Result<Keys, Error> {
    for _ in 0..TRIES {
        let (secret, txn) = match store.get(AUDIT_KEY).await? {
            None => {
                let secret = KeyBytes::random(Suite::Aes256Gcm).map_err(|_| Error::Internal)?;
                let id = KekId::of_key(secret.expose());
                let mut stored = AuditKey { id, wraps: Vec::new() };
                stored::wrap(&mut stored, &secret, roots).await?;
                tracing::info!(id = %stored.id, "a key of the audit log is made");
                (secret, Some(Txn::default().create(AUDIT_KEY.to_owned(), stored.encode()?)))
            }
            Some(entry) => {
                let mut stored = AuditKey::decode(&entry.key, &entry.value)?;
                let secret = stored::unwrap(&stored, roots).await?;
                let is_new = stored::wrap(&mut stored, &secret, roots).await?;
                let value = is_new.then(|| stored.encode()).transpose()?;
                let replace = |value| Txn::default().replace(entry.key, entry.revision, value);
                (secret, value.map(replace))
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

/// Reads the secret and derives the keys. It changes nothing.
///
/// # Errors
/// [`Error`]; [`Error::Missing`] without a stored secret.
pub async fn existing(store: &dyn Store, roots: &[Named]) -> Result<Keys, Error> {
    let entry = store.get(AUDIT_KEY).await?.ok_or(Error::Missing)?;
    let stored = AuditKey::decode(&entry.key, &entry.value)?;
    let secret = stored::unwrap(&stored, roots).await?;
    Keys::derive(&secret).ok_or(Error::Internal)
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
    async fn reading_the_keys_makes_and_changes_nothing() {
        let (store, one, two) = (memory::Store::new(), root("one"), root("two"));
        let error = existing(&store, std::slice::from_ref(&one)).await.err().unwrap();
        assert!(matches!(error, Error::Missing), "{error}");
        let first = public(&keys(&store, std::slice::from_ref(&one)).await.unwrap());
        let revision = store.revision();
        assert_eq!(public(&existing(&store, &[two, one]).await.unwrap()), first);
        assert_eq!(store.revision(), revision);
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
