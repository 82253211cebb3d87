//! Restores the key of the audit log from the archives before the log is opened: with another key
//! its earlier lines could not be searched.

use std::time::Duration;

use crate::archive::Named;
use crate::archive::recover::audit_key::recover;
use crate::service::Starting;
use crate::store::record::{AUDIT_KEY, CHAINS};
use crate::store::{Error, Store};

/// The pause between two attempts to read the archives.
const RETRY: Duration = Duration::from_secs(1);

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
