//! The access key ids of clients, and the keys that their signatures are verified with.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::clock::{Clock, Monotonic};
use crate::sigv4::{Scope, SigningKey};

use super::aws::Source;
use super::client::Client;

/// How long a signing key is used before the file of its secret is read again.
const MAX_AGE: Duration = Duration::from_secs(30);

/// An access key id of a client.
pub(crate) struct AccessKey {
    id: String,
    client: Arc<Client>,
    source: Source,
    /// The signing key of the day of the last request.
    day: ArcSwapOption<Day>,
}

struct Day {
    day: String,
    read_at: Monotonic,
    key: SigningKey,
}

impl AccessKey {
    pub(super) fn new(id: String, client: Arc<Client>, source: Source) -> Self {
        Self { id, client, source, day: ArcSwapOption::empty() }
    }

    /// The client that it belongs to.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The key of `day`, such as `20150830`, for requests of one scope. The secret's file is read
    /// again every 30 seconds; while it cannot be read, the key of the same day is still used.
    ///
    /// # Errors
    /// What is wrong with the file of the secret.
    pub(crate) async fn signing_key(
        self: &Arc<Self>,
        day: &str,
        scope: Scope<'_>,
        clock: &dyn Clock,
    ) -> Result<SigningKey, String> {
        let now = clock.now();
        let held = self.day.load_full().filter(|held| held.day == day);
        if let Some(held) = held.as_ref().filter(|held| now.since(held.read_at) < MAX_AGE) {
            return Ok(held.key.clone());
        }
        let this = Arc::clone(self);
        // A disk may be slow. A panic is reported where it happens.
        let read = tokio::task::spawn_blocking(move || this.source.read(&this.id)).await;
        let key = match (read.unwrap_or_else(|error| Err(error.to_string())), held) {
            (Ok(secret), _) => SigningKey::derive(secret.expose(), day, scope),
            (Err(error), Some(held)) => {
                let access_key_id = &self.id;
                tracing::warn!(
                    access_key_id,
                    error,
                    "the secret access key cannot be read; the one before stays in use"
                );
                held.key.clone()
            }
            (Err(error), None) => return Err(error),
        };
        let held = Day { day: day.to_owned(), read_at: now, key: key.clone() };
        self.day.store(Some(Arc::new(held)));
        Ok(key)
    }
}
