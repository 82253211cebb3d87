//! Roots whose calls are in the audit log.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::root::{self, Context, Error, RootKey};
use crate::secret::KeyBytes;

use super::record::OK;
use super::{Audit, System};

/// The same root, whose calls are in the audit log.
#[must_use]
pub fn audited(named: root::Named, audit: &Arc<Audit>) -> root::Named {
    let root::Named { name, root } = named;
    let root = Audited { name: Arc::clone(&name), root, audit: Arc::clone(audit) };
    root::Named { name, root: Arc::new(root) }
}

struct Audited {
    name: Arc<str>,
    root: Arc<dyn RootKey>,
    audit: Arc<Audit>,
}

impl Audited {
    /// Writes the line of a call. The root's answer counts even if there can be no line: the call
    /// that needs it has its own line, and fails without it.
    async fn note<T>(
        &self,
        operation: &'static str,
        context: Context<'_>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let kind = self.root.kind();
        let noted = System {
            operation,
            chain: Some(context.chain),
            kek_id: Some(context.kek_id),
            outcome: result.as_ref().map_or_else(Error::outcome, |_| OK),
            change: &[("root", &self.name), ("kind", &kind)],
        };
        // The line is made here: what it borrows is not held across a wait.
        let noted = self.audit.system(&noted);
        _ = noted.await;
        result
    }
}

#[async_trait]
impl RootKey for Audited {
    async fn wrap(&self, context: Context<'_>, kek: &KeyBytes) -> Result<Vec<u8>, Error> {
        let result = self.root.wrap(context, kek).await;
        self.note("root_wrap", context, result).await
    }

    async fn unwrap(&self, context: Context<'_>, wrapped: &[u8]) -> Result<KeyBytes, Error> {
        let result = self.root.unwrap(context, wrapped).await;
        self.note("root_unwrap", context, result).await
    }

    fn is_current(&self, wrapped: &[u8]) -> bool {
        self.root.is_current(wrapped)
    }

    fn derives(&self) -> bool {
        self.root.derives()
    }

    fn kind(&self) -> &'static str {
        self.root.kind()
    }

    fn key(&self) -> String {
        self.root.key()
    }

    fn token_expires_in(&self) -> Option<Duration> {
        self.root.token_expires_in()
    }
}
