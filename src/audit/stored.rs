//! The secret of an audit log: in the store as an [`AuditKey`], wrapped by every root, like a KEK.
//!
//! It knows roots and the store, and not what the secret is for.

use crate::id::{ChainName, KekId, Suite};
use crate::root::{Context, Named};
use crate::secret::KeyBytes;
use crate::store::record::{AUDIT_KEY, AUDIT_LOG, AuditKey, Record as _, Wrap};
use crate::store::{Committed, Store, Txn};

/// How often the record is read again when other processes change it.
pub(super) const TRIES: usize = 4;

/// Why the secret can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not answer, or its record is damaged.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// No root wraps or unwraps the secret.
    #[error("no root can {0} the key of the audit log: {1}")]
    Roots(&'static str, String),
    /// The store has no record, and none is to be made.
    #[error(
        "the store has no key of an audit log: a service with an [audit] section makes it when it \
         starts"
    )]
    Missing,
    /// There is no randomness, or no key can be derived.
    #[error("the key of the audit log can't be made")]
    Internal,
}

/// What became of the wraps.
#[derive(Debug)]
pub enum Changed {
    /// Nothing, as there is no record, or it is as it should be.
    Nothing,
    /// A wrap was added or erased.
    Wraps,
    /// No configured root unwraps the secret with this id now.
    Needed(KekId, String),
}

/// Has each of `roots` wrap the secret that has not, if there is one.
///
/// # Errors
/// [`Error`].
pub async fn complete(store: &dyn Store, roots: &[Named]) -> Result<Changed, Error> {
    change(store, roots, None).await
}

/// Erases the wrap by `removed`, which is not among the configured `roots`, after one of these has
/// unwrapped the secret without it.
///
/// # Errors
/// [`Error`].
pub async fn remove(store: &dyn Store, roots: &[Named], removed: &str) -> Result<Changed, Error> {
    change(store, roots, Some(removed)).await
}

async fn change(
    store: &dyn Store,
    roots: &[Named],
    removed: Option<&str>,
) -> Result<Changed, Error> {
    for _ in 0..TRIES {
        let Some(entry) = store.get(AUDIT_KEY).await? else { return Ok(Changed::Nothing) };
        let mut stored = AuditKey::decode(&entry.key, &entry.value)?;
        let before = stored.wraps.len();
        stored.wraps.retain(|wrap| Some(&*wrap.root) != removed);
        let is_done = match removed {
            Some(_) => stored.wraps.len() == before,
            None => roots.iter().all(|root| is_wrapped_by(&stored, &root.name)),
        };
        if is_done {
            return Ok(Changed::Nothing);
        }
        let secret = match unwrap(&stored, roots).await {
            Ok(secret) => secret,
            Err(Error::Roots(_, why)) => return Ok(Changed::Needed(stored.id, why)),
            Err(error) => return Err(error),
        };
        let is_new = wrap(&mut stored, &secret, roots).await?;
        if !is_new && removed.is_none() {
            return Ok(Changed::Needed(stored.id, "a root does not wrap it".to_owned()));
        }
        let txn = Txn::default().replace(entry.key, entry.revision, stored.encode()?);
        if matches!(store.commit(txn).await?, Committed::Applied(_)) {
            tracing::warn!(removed, "the wraps of the audit log's key were changed");
            return Ok(Changed::Wraps);
        }
    }
    Err(Error::Internal)
}

fn is_wrapped_by(stored: &AuditKey, root: &str) -> bool {
    stored.wraps.iter().any(|wrap| wrap.root == root)
}

/// Has each root wrap the secret that has not. Returns whether one did.
///
/// # Errors
/// [`Error::Roots`] if no root has wrapped it, now or before.
pub(super) async fn wrap(
    stored: &mut AuditKey,
    secret: &KeyBytes,
    roots: &[Named],
) -> Result<bool, Error> {
    let (mut is_new, mut failed) = (false, Vec::new());
    let chain = &ChainName::new(AUDIT_LOG).map_err(|_| Error::Internal)?;
    let context = Context { chain, kek_id: stored.id, suite: Suite::Aes256Gcm };
    for Named { name, root } in roots {
        if is_wrapped_by(stored, name) {
            continue;
        }
        match root.wrap(context, secret).await {
            Ok(bytes) => {
                stored.wraps.push(Wrap { root: name.to_string(), bytes });
                is_new = true;
            }
            Err(error) => failed.push((name, error)),
        }
    }
    if stored.wraps.is_empty() {
        let failed = failed.iter().map(|(name, error)| format!("{name}: {error}"));
        let failed = failed.collect::<Vec<_>>().join("; ");
        return Err(Error::Roots("wrap", failed));
    }
    for (root, error) in failed {
        tracing::warn!(%root, %error, "a root did not wrap the audit log's key");
    }
    Ok(is_new)
}

/// The secret, unwrapped by the first root that does.
pub(super) async fn unwrap(stored: &AuditKey, roots: &[Named]) -> Result<KeyBytes, Error> {
    let chain = &ChainName::new(AUDIT_LOG).map_err(|_| Error::Internal)?;
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
