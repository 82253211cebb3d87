//! The members of a cluster: which one is called, how often, and what a failure means.
//!
//! Each has its own client, since the balancer of the client library does not track health: it
//! would send half of all calls to a dead member. A member that answers stays the current one; one
//! that fails is avoided for a while.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use etcd_client::{Client, GetOptions, GetResponse, ResponseHeader, Txn, TxnResponse};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::Config;
use super::credentials::Credentials;
use super::failure::CallError;

/// How long a failed member is avoided while another one answers.
const HELD_OUT: Duration = Duration::from_secs(5);
/// The time-out of a read with all its attempts.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after a round in which no member answered.
const PAUSE: Duration = Duration::from_millis(100);

/// The error for a member that does not answer.
const SILENT: &str = "no answer in time";

/// All members.
pub(super) struct Members {
    members: Vec<Member>,
    /// The one that answered last.
    current: AtomicUsize,
    /// The credentials of new clients.
    credentials: ArcSwap<Credentials>,
    /// Why the current files of the credentials are not usable.
    trouble: ArcSwap<Option<String>>,
    /// Notified of each failure that other credentials might fix.
    pub(super) failing: Arc<Notify>,
    timeout: Duration,
    /// The key that is read to check whether a member accepts new credentials.
    probe: String,
    ca: Option<PathBuf>,
    password_file: Option<PathBuf>,
    pub(super) history: History,
}

struct Member {
    url: String,
    held: tokio::sync::Mutex<Option<Held>>,
    /// When it last failed, unless it has answered since.
    failed: Mutex<Option<Instant>>,
}

/// A client, and its credentials.
#[derive(Clone)]
struct Held {
    client: Client,
    credentials: Arc<Credentials>,
}

/// A call of a member.
#[derive(Clone)]
enum Request {
    Get(String, Option<GetOptions>),
    Txn(Txn),
}

enum Answer {
    Get(GetResponse),
    Txn(TxnResponse),
}

impl Members {
    pub(super) fn new(config: &Config, credentials: Credentials) -> Self {
        let member = |url: &String| Member {
            url: url.clone(),
            held: tokio::sync::Mutex::default(),
            failed: Mutex::default(),
        };
        Self {
            members: config.endpoints.iter().map(member).collect(),
            current: AtomicUsize::new(0),
            credentials: ArcSwap::from_pointee(credentials),
            trouble: ArcSwap::default(),
            failing: Arc::default(),
            timeout: config.timeout,
            probe: config.prefix(),
            ca: config.tls.as_ref().and_then(|tls| tls.ca.clone()),
            password_file: config.password_file.clone(),
            history: History::default(),
        }
    }

    /// Reads one key or a range, from a member that answers.
    pub(super) async fn get(
        &self,
        key: impl Into<String>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, CallError> {
        match self.ask(Request::Get(key.into(), options), |_| true).await? {
            Answer::Get(answer) => Ok(answer),
            Answer::Txn(_) => Err(CallError::certain("an unexpected response".to_owned())),
        }
    }

    /// Runs a txn that only reads.
    pub(super) async fn read(&self, txn: Txn) -> Result<TxnResponse, CallError> {
        self.txn(txn, |_| true).await
    }

    /// Runs a txn that writes. It is sent again only when it was certainly not applied.
    pub(super) async fn write(&self, txn: Txn) -> Result<TxnResponse, CallError> {
        self.txn(txn, |failure| !failure.maybe_applied).await
    }

    async fn txn(&self, txn: Txn, again: fn(&CallError) -> bool) -> Result<TxnResponse, CallError> {
        match self.ask(Request::Txn(txn), again).await? {
            Answer::Txn(answer) => Ok(answer),
            Answer::Get(_) => Err(CallError::certain("an unexpected response".to_owned())),
        }
    }

    async fn ask(
        &self,
        request: Request,
        again: fn(&CallError) -> bool,
    ) -> Result<Answer, CallError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut last = CallError::certain("no member".to_owned());
            let mut hopeless = true;
            for index in self.order() {
                match self.ask_one(index, request.clone()).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) if failure.refused && !failure.stale || !again(&failure) => {
                        return Err(failure);
                    }
                    // Other members may have valid certificates.
                    Err(failure) => {
                        hopeless &= failure.hopeless && !failure.stale;
                        last = failure;
                    }
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            if hopeless || Instant::now() + PAUSE >= deadline {
                return Err(CallError { hopeless, ..last });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask_one(&self, index: usize, request: Request) -> Result<Answer, CallError> {
        let Some(member) = self.members.get(index) else {
            return Err(CallError::certain("no such member".to_owned()));
        };
        let seen = self.history.seen();
        let mut used = self.credentials.load_full();
        let asked = async {
            let Held { mut client, credentials } =
                member.connect(&used).await.map_err(CallError::not_sent)?;
            used = credentials;
            match request {
                Request::Get(key, options) => client.get(key, options).await.map(Answer::Get),
                Request::Txn(txn) => client.txn(txn).await.map(Answer::Txn),
            }
            .map_err(CallError::of)
        };
        // The client's own deadlines are shorter, and apply to connecting and calling separately.
        let answer = match timeout(self.timeout * 2, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::doubtful(SILENT.to_owned())),
        };
        match answer {
            Ok(answer) => {
                member.note(None);
                self.current.store(index, Ordering::Relaxed);
                let header = match &answer {
                    Answer::Get(answer) => answer.header(),
                    Answer::Txn(answer) => answer.header(),
                };
                if let Some(header) = header {
                    self.history.note(seen, header);
                }
                Ok(answer)
            }
            Err(failure) => {
                if !failure.refused {
                    member.note(Some(Instant::now()));
                }
                let stale = !Arc::ptr_eq(&used, &self.credentials.load());
                // A hanging handshake or an invalid login must not outlive the failure.
                if (failure.refused || failure.detail == SILENT || stale)
                    && let Ok(mut held) = member.held.try_lock()
                    && held.as_ref().is_some_and(|held| Arc::ptr_eq(&held.credentials, &used))
                {
                    held.take();
                }
                self.failing.notify_one();
                let detail = format!("{}: {}", member.url, self.explain(&failure, &used));
                Err(CallError { detail, stale, ..failure })
            }
        }
    }

    /// The order in which members are called: the current one, the healthy ones, then the failed
    /// ones, the oldest failure first.
    fn order(&self) -> Vec<usize> {
        let (count, current) = (self.members.len(), self.current.load(Ordering::Relaxed));
        let mut order: Vec<_> = (0..count).map(|offset| (current + offset) % count).collect();
        order.sort_by_key(|&index| {
            let failed = self.members.get(index).and_then(Member::failed);
            failed.filter(|at| at.elapsed() < HELD_OUT)
        });
        order
    }

    /// A client of the next member to call, for a stream.
    pub(super) async fn client(&self) -> Result<(usize, Client), CallError> {
        let index = self.order().first().copied().unwrap_or_default();
        let Some(member) = self.members.get(index) else {
            return Err(CallError::certain("no member".to_owned()));
        };
        let credentials = self.credentials.load_full();
        let held = timeout(self.timeout, member.connect(&credentials)).await;
        let held = held.map_err(|_| CallError::certain("no answer in time".to_owned()))?;
        Ok((index, held.map_err(CallError::not_sent)?.client))
    }

    /// Uses `credentials` from now on. If a member that answers refuses them, its connection is
    /// kept until it fails.
    ///
    /// # Errors
    /// Why a member refuses them.
    pub(super) async fn adopt(&self, credentials: Credentials) -> Result<(), String> {
        let credentials = Arc::new(credentials);
        self.credentials.store(Arc::clone(&credentials));
        self.trouble.store(Arc::default());
        let mut refused = Ok(());
        for member in &self.members {
            let is_used = member.held.lock().await.is_some() && member.failed().is_none();
            let probed = timeout(self.timeout * 2, member.probe(&credentials, &self.probe)).await;
            let probed = probed.unwrap_or_else(|_| Err(CallError::certain(SILENT.to_owned())));
            match probed {
                Ok(held) => *member.held.lock().await = Some(held),
                Err(failure) if is_used => {
                    let detail = self.explain(&failure, &credentials);
                    refused = Err(format!("{}: {detail}", member.url));
                }
                Err(_) => *member.held.lock().await = None,
            }
        }
        refused
    }

    /// The client certificate in use, and its state.
    pub(super) fn cert(&self) -> Option<String> {
        self.credentials.load().cert()
    }

    /// Keeps the credentials, since the new files are not usable.
    pub(super) fn keep(&self, trouble: String) {
        self.trouble.store(Arc::new(Some(trouble)));
    }

    /// Why a call failed, with the files that may be the cause.
    fn explain(&self, failure: &CallError, used: &Credentials) -> String {
        let CallError { detail, refused, .. } = failure;
        let mut text = detail.clone();
        let is_unreached = ["tcp connect error", "dns error"].iter().any(|at| detail.contains(at));
        let is_login = ["authentication", "auth token"].iter().any(|at| detail.contains(at));
        if detail.contains("invalid peer certificate") {
            match &self.ca {
                Some(ca) => text.push_str(&format!("; store.tls.ca is {}", ca.display())),
                None => text.push_str("; store.tls.ca is not set, so the system's are trusted"),
            }
        } else if let Some(cert) = used.cert().filter(|_| !refused && !is_unreached) {
            text.push_str(&format!("; the client certificate {cert}"));
        }
        if let Some(path) = self.password_file.as_ref().filter(|_| is_login) {
            text.push_str(&format!("; the password is that of {}", path.display()));
        }
        if let Some(trouble) = &**self.trouble.load() {
            text.push_str(&format!("; {trouble}, so the previous files are in use"));
        }
        text
    }

    /// Records that the stream of a member failed.
    pub(super) fn failed(&self, index: usize) {
        if let Some(member) = self.members.get(index) {
            member.note(Some(Instant::now()));
        }
    }

    /// The time-out of one call.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Member {
    /// Connecting is lazy; only logging in takes time, if there is a user.
    async fn connect(&self, credentials: &Arc<Credentials>) -> Result<Held, etcd_client::Error> {
        let mut held = self.held.lock().await;
        if let Some(held) = &*held {
            return Ok(held.clone());
        }
        let made = self.make(credentials).await?;
        Ok(held.insert(made).clone())
    }

    async fn make(&self, credentials: &Arc<Credentials>) -> Result<Held, etcd_client::Error> {
        let client = Client::connect([&self.url], Some(credentials.options.clone())).await?;
        Ok(Held { client, credentials: Arc::clone(credentials) })
    }

    /// Records a client whose call was answered.
    async fn probe(&self, credentials: &Arc<Credentials>, key: &str) -> Result<Held, CallError> {
        let mut held = self.make(credentials).await.map_err(CallError::not_sent)?;
        held.client.get(key, None).await.map_err(CallError::of)?;
        Ok(held)
    }

    fn failed(&self) -> Option<Instant> {
        *self.failed.lock()
    }

    fn note(&self, failed: Option<Instant>) {
        *self.failed.lock() = failed;
    }
}

/// The history of the cluster as far as it was seen: its revision only grows, unless an old copy is
/// restored.
#[derive(Default)]
pub(super) struct History {
    seen: Mutex<Seen>,
    restored: watch::Sender<u64>,
}

/// The history at a moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    revision: i64,
    cluster: u64,
    /// The number of restores that were detected.
    restores: u64,
}

impl History {
    /// What was seen so far. Callers take it before they send a call.
    pub(super) fn seen(&self) -> Seen {
        *self.seen.lock()
    }

    /// Records the header of a linearizable response to a call that was sent at `before`: it can't
    /// be older than that. Of several calls during a restore, only the first one reports it.
    pub(super) fn note(&self, before: Seen, header: &ResponseHeader) {
        let mut seen = self.seen.lock();
        if seen.restores != before.restores {
            return;
        }
        let other_cluster = seen.cluster != 0 && seen.cluster != header.cluster_id();
        seen.cluster = header.cluster_id();
        if header.revision() >= before.revision && !other_cluster {
            seen.revision = seen.revision.max(header.revision());
            return;
        }
        tracing::error!(
            revision = header.revision(),
            seen = before.revision,
            other_cluster,
            "etcd went back to an earlier state: an old copy was restored"
        );
        seen.revision = header.revision();
        seen.restores += 1;
        self.restored.send_replace(seen.restores);
    }

    /// The number of restores that were detected.
    pub(super) fn count(&self) -> u64 {
        self.seen.lock().restores
    }

    /// Receives a value for each restore.
    pub(super) fn restores(&self) -> watch::Receiver<u64> {
        self.restored.subscribe()
    }
}
