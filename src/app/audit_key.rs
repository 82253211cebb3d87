//! The key of the audit log at a start: it is restored from the archives before the log is opened,
//! since with another key its earlier lines could not be searched, and it is unwrapped by a root.
//! Both wait, so that no call is served without the log. It must not know how lines are written.

use std::time::Duration;

use crate::archive::Named;
use crate::archive::recover::audit_key::recover;
use crate::audit::secret;
use crate::backoff::Backoff;
use crate::root;
use crate::service::Starting;
use crate::store::record::{AUDIT_KEY, CHAINS};
use crate::store::{Error, Store};

/// The pause between two attempts to read the archives.
const RETRY: Duration = Duration::from_secs(1);

/// The pause after the first attempt to unwrap the key. Attempts may cost money.
const FIRST: Duration = Duration::from_millis(500);
/// The pause doubles up to 32 seconds.
const DOUBLINGS: u32 = 6;

/// The keys of the audit log. As long as no root wraps or unwraps their secret, this waits, as a
/// service without an audit log waits for the KEKs of its chains.
pub(super) async fn keys(
    store: &dyn Store,
    roots: &[root::Named],
    starting: &Starting,
) -> Result<crate::audit::keys::Keys, secret::Error> {
    let mut backoff = Backoff::new(FIRST, DOUBLINGS);
    loop {
        let detail = match secret::keys(store, roots).await {
            Err(error @ secret::Error::Roots(..)) => error.to_string(),
            done => return done,
        };
        if starting.report("audit", &detail) {
            tracing::warn!(error = detail, "the audit log needs a root; waiting for it");
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// Restores the key to a store that lacks it. If the store is empty, it was probably lost: then
/// this waits until every archive has answered, or one has the key.
pub(super) async fn restore(
    store: &dyn Store,
    archives: &[Named],
    starting: &Starting,
) -> Result<(), Error> {
    while !archives.is_empty() && store.get(AUDIT_KEY).await?.is_none() {
        let mut problems = Vec::new();
        if recover(archives, store, &mut problems).await? {
            tracing::warn!(
                "the store lacked the key of the audit log, which is restored from an archive"
            );
            return Ok(());
        }
        let Some(problem) = problems.first() else { return Ok(()) };
        let detail = format!("an archive may have the key of the audit log: {problem}");
        if !store.list(CHAINS, None, 1).await?.is_empty() {
            tracing::warn!(detail, "the audit log gets a new key if the store has none");
            return Ok(());
        }
        if starting.report("audit", &detail) {
            tracing::warn!(detail, "the store is empty; waiting for the archive");
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}
