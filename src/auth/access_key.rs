//! The access key ids of clients, and the keys that their signatures are verified with.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use crate::clock::{Clock, Monotonic};
use crate::sigv4::{Scope, SigningKey};

use super::aws::Secrets;
use super::client::Client;

/// How long a signing key is used before the file of its secret is read again.
const MAX_AGE: Duration = Duration::from_secs(30);

/// How long after a failure the file is read again.
const RETRY: Duration = Duration::from_secs(1);

/// An access key id of a client.
pub(crate) struct AccessKey {
    id: String,
    client: Arc<Client>,
    secrets: Box<dyn Secrets>,
    held: ArcSwapOption<Held>,
    /// Taken to read the file of the secret.
    reading: Mutex<()>,
}

/// What came of reading the secret.
struct Held {
    read_at: Monotonic,
    /// The signing keys of the last two days: around midnight requests have either date.
    days: Vec<Day>,
    /// Why the file could not be read the last time.
    error: Option<String>,
}

#[derive(Clone)]
struct Day {
    day: String,
    key: SigningKey,
}

impl Held {
    /// What is known of a day, unless the file must be read.
    fn answer(&self, day: &str, now: Monotonic) -> Option<Result<SigningKey, String>> {
        let age = now.since(self.read_at);
        let known = self.days.iter().find(|known| known.day == day);
        match (known, &self.error) {
            (Some(known), _) if age < MAX_AGE => Some(Ok(known.key.clone())),
            (None, Some(error)) if age < RETRY => Some(Err(error.clone())),
            _ => None,
        }
    }
}

impl AccessKey {
    pub(super) fn new(id: String, client: Arc<Client>, secrets: impl Secrets) -> Self {
        let (held, reading) = (ArcSwapOption::empty(), Mutex::default());
        Self { id, client, secrets: Box::new(secrets), held, reading }
    }

    /// The client that it belongs to.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The key of `day`, such as `20150830`, for requests of one scope. The secret's file is read
    /// again every 30 seconds; while it cannot be read, the keys that are known are still used.
    ///
    /// # Errors
    /// What is wrong with the file of the secret.
    pub(crate) async fn signing_key(
        self: &Arc<Self>,
        day: &str,
        scope: Scope<'_>,
        clock: &dyn Clock,
    ) -> Result<SigningKey, String> {
        let answer = || self.held.load().as_ref()?.answer(day, clock.now());
        if let Some(answer) = answer() {
            return answer;
        }
        // Boxed, since nearly no request comes here.
        Box::pin(self.read_again(day, scope, clock)).await
    }

    /// The same, once the secret was read.
    async fn read_again(
        self: &Arc<Self>,
        day: &str,
        scope: Scope<'_>,
        clock: &dyn Clock,
    ) -> Result<SigningKey, String> {
        let _reading = self.reading.lock().await;
        // Another request may have read it meanwhile.
        if let Some(answer) = self.held.load().as_ref().and_then(|it| it.answer(day, clock.now())) {
            return answer;
        }
        let held = self.read(day, scope, clock.now()).await;
        let key = held.days.iter().find(|known| known.day == day).map(|known| known.key.clone());
        let error = held.error.clone().unwrap_or_default();
        self.held.store(Some(Arc::new(held)));
        key.ok_or(error)
    }

    /// Reads the secret, for `day` and the latest other day.
    async fn read(self: &Arc<Self>, day: &str, scope: Scope<'_>, now: Monotonic) -> Held {
        let this = Arc::clone(self);
        // A disk may be slow. A panic is reported where it happens.
        let read = tokio::task::spawn_blocking(move || this.secrets.read(&this.id)).await;
        let known = self.held.load().as_ref().map(|held| held.days.clone()).unwrap_or_default();
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(secret) => {
                let others = known.iter().map(|known| &*known.day).filter(|other| *other != day);
                let days = [Some(day), others.max()].into_iter().flatten();
                let days = days.map(|day| Day {
                    day: day.to_owned(),
                    key: SigningKey::derive(secret.expose(), day, scope),
                });
                Held { read_at: now, days: days.collect(), error: None }
            }
            Err(error) => {
                if !known.is_empty() {
                    let access_key_id = &self.id;
                    tracing::warn!(
                        access_key_id,
                        error,
                        "the secret access key cannot be read; the one before stays in use"
                    );
                }
                Held { read_at: now, days: known, error: Some(error) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use prometheus::Registry;

    use super::*;
    use crate::auth::aws::Source;
    use crate::auth::{Auth, ClientConfig, Config, Mode};
    use crate::clock::ManualClock;
    use crate::metrics::Metrics;
    use crate::secret::SecretBytes;

    const SCOPE: Scope<'_> = Scope { region: "eu-central-1", service: "kms" };
    const SECRETS: [&str; 2] =
        ["secret-of-the-first-with-40-characters-0", "secret-of-the-next-with-40-characters-00"];

    /// A file with a secret, and how often it was read.
    struct Counted {
        file: Source,
        reads: Arc<AtomicUsize>,
    }

    impl Secrets for Counted {
        fn read(&self, access_key_id: &str) -> Result<SecretBytes, String> {
            self.reads.fetch_add(1, SeqCst);
            self.file.read(access_key_id)
        }
    }

    /// The access key of a client whose secret is in `file`, and how often the file was read.
    async fn access_key(
        file: &Path,
        clock: &Arc<ManualClock>,
    ) -> (Arc<AccessKey>, Arc<AtomicUsize>) {
        let client = format!(
            "name = 'a'\naws_access_key_id = 'KPA1'\naws_secret_access_key_file = '{}'\n\
             allow = [{{ chains = ['*'], operations = ['read'] }}]",
            file.display()
        );
        let client: ClientConfig = toml::from_str(&client).unwrap();
        let config =
            Config { mode: Mode::Required, clients: vec![client], aws_secret_key_file: None };
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let auth = Auth::start(config, Arc::clone(clock) as _, metrics).await.unwrap();
        let client = Arc::clone(auth.access_key("KPA1").unwrap().client());
        let reads = Arc::<AtomicUsize>::default();
        let file = Source::File(PathBuf::from(file));
        let counted = Counted { file, reads: Arc::clone(&reads) };
        (Arc::new(AccessKey::new("KPA1".to_owned(), client, counted)), reads)
    }

    fn key(secret: &str, day: &str) -> SigningKey {
        SigningKey::derive(secret.as_bytes(), day, SCOPE)
    }

    #[tokio::test]
    async fn at_midnight_the_keys_of_both_days_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, clock) = (dir.path().join("secret"), Arc::new(ManualClock::new()));
        std::fs::write(&file, SECRETS[0]).unwrap();
        let (access_key, reads) = access_key(&file, &clock).await;
        for _ in 0..10 {
            for day in ["20251231", "20260101"] {
                let signing = access_key.signing_key(day, SCOPE, &*clock).await.unwrap();
                assert!(signing == key(SECRETS[0], day), "{day}");
            }
        }
        assert_eq!(reads.load(SeqCst), 2);
        // A new secret counts for both after 30 seconds, and is read once.
        std::fs::write(&file, SECRETS[1]).unwrap();
        clock.advance(MAX_AGE);
        for day in ["20251231", "20260101", "20251231"] {
            let signing = access_key.signing_key(day, SCOPE, &*clock).await.unwrap();
            assert!(signing == key(SECRETS[1], day), "{day}");
        }
        assert_eq!(reads.load(SeqCst), 3);
    }

    #[tokio::test]
    async fn concurrent_requests_read_the_secret_once() {
        let dir = tempfile::tempdir().unwrap();
        let (file, clock) = (dir.path().join("secret"), Arc::new(ManualClock::new()));
        std::fs::write(&file, SECRETS[0]).unwrap();
        let (access_key, reads) = access_key(&file, &clock).await;
        let ask = || access_key.signing_key("20260101", SCOPE, &*clock);
        for expected in [1, 2] {
            let (a, b, c) = tokio::join!(ask(), ask(), ask());
            for signing in [a, b, c] {
                assert!(signing.unwrap() == key(SECRETS[0], "20260101"));
            }
            assert_eq!(reads.load(SeqCst), expected);
            clock.advance(MAX_AGE);
        }
    }

    #[tokio::test]
    async fn while_the_secret_cannot_be_read_the_keys_that_are_known_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let (file, clock) = (dir.path().join("secret"), Arc::new(ManualClock::new()));
        std::fs::write(&file, SECRETS[0]).unwrap();
        let (access_key, reads) = access_key(&file, &clock).await;
        access_key.signing_key("20260101", SCOPE, &*clock).await.unwrap();
        std::fs::remove_file(&file).unwrap();
        clock.advance(MAX_AGE);
        for _ in 0..3 {
            let signing = access_key.signing_key("20260101", SCOPE, &*clock).await.unwrap();
            assert!(signing == key(SECRETS[0], "20260101"));
        }
        assert_eq!(reads.load(SeqCst), 2, "it is tried again after 30 seconds");
        for _ in 0..3 {
            let error = access_key.signing_key("20260102", SCOPE, &*clock).await.err().unwrap();
            assert!(error.contains("secret"), "{error}");
        }
        assert_eq!(reads.load(SeqCst), 2, "callers cannot have it repeated at will");
        std::fs::write(&file, SECRETS[1]).unwrap();
        clock.advance(RETRY);
        let signing = access_key.signing_key("20260102", SCOPE, &*clock).await.unwrap();
        assert!(signing == key(SECRETS[1], "20260102"));
        assert_eq!(reads.load(SeqCst), 3);
    }
}
