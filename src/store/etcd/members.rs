//! The members of a cluster: which of them is asked, how often, and what a failure means.
//!
//! One client for each, since the client's own balancer knows no health: it would send half of all
//! calls to a dead member. The one that answers is kept; one that fails is left alone for a while.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{
    Client, ConnectOptions, GetOptions, GetResponse, ResponseHeader, Txn, TxnResponse,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::Code;

/// How long a member that failed is left alone, while another one answers.
const HELD_OUT: Duration = Duration::from_secs(5);
/// How long a read is tried in all.
const PATIENCE: Duration = Duration::from_secs(5);
/// The wait between two rounds in which no member answered.
const PAUSE: Duration = Duration::from_millis(100);

/// What is said of a member that does not answer.
const SILENT: &str = "no answer in time";

/// All members.
pub(super) struct Members {
    members: Vec<Member>,
    /// The one that answered last.
    current: AtomicUsize,
    options: ConnectOptions,
    timeout: Duration,
    pub(super) history: History,
}

struct Member {
    url: String,
    client: tokio::sync::Mutex<Option<Client>>,
    /// When it failed last, if it did not answer since.
    failed: Mutex<Option<Instant>>,
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) detail: String,
    /// It may have been applied, or be applied later.
    pub(super) maybe_applied: bool,
    /// No later time will help.
    pub(super) hopeless: bool,
    /// etcd itself said no: no other member will help either.
    refused: bool,
}

/// What a member is asked for.
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
    pub(super) fn new(urls: &[String], options: ConnectOptions, timeout: Duration) -> Self {
        let member = |url: &String| Member {
            url: url.clone(),
            client: tokio::sync::Mutex::default(),
            failed: Mutex::default(),
        };
        Self {
            members: urls.iter().map(member).collect(),
            current: AtomicUsize::new(0),
            options,
            timeout,
            history: History::default(),
        }
    }

    /// Reads one key or a range, from a member that answers.
    pub(super) async fn get(
        &self,
        key: impl Into<String>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, Failure> {
        match self.ask(Request::Get(key.into(), options), |_| true).await? {
            Answer::Get(answer) => Ok(answer),
            Answer::Txn(_) => Err(Failure::certain("another answer than asked for".to_owned())),
        }
    }

    /// Runs a txn that only reads.
    pub(super) async fn read(&self, txn: Txn) -> Result<TxnResponse, Failure> {
        self.txn(txn, |_| true).await
    }

    /// Runs a txn that writes. It is sent again only when it was certainly not applied.
    pub(super) async fn write(&self, txn: Txn) -> Result<TxnResponse, Failure> {
        self.txn(txn, |failure| !failure.maybe_applied).await
    }

    async fn txn(&self, txn: Txn, again: fn(&Failure) -> bool) -> Result<TxnResponse, Failure> {
        match self.ask(Request::Txn(txn), again).await? {
            Answer::Txn(answer) => Ok(answer),
            Answer::Get(_) => Err(Failure::certain("another answer than asked for".to_owned())),
        }
    }

    async fn ask(&self, request: Request, again: fn(&Failure) -> bool) -> Result<Answer, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut last = Failure::certain("no member".to_owned());
            let mut hopeless = true;
            for index in self.order() {
                match self.ask_one(index, request.clone()).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) if failure.refused || !again(&failure) => return Err(failure),
                    // Others may have better certificates.
                    Err(failure) => {
                        hopeless &= failure.hopeless;
                        last = failure;
                    }
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            if hopeless || Instant::now() + PAUSE >= deadline {
                return Err(Failure { hopeless, ..last });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask_one(&self, index: usize, request: Request) -> Result<Answer, Failure> {
        let Some(member) = self.members.get(index) else {
            return Err(Failure::certain("no such member".to_owned()));
        };
        let seen = self.history.seen();
        let asked = async {
            let mut client = member.connect(&self.options).await.map_err(Failure::not_sent)?;
            match request {
                Request::Get(key, options) => client.get(key, options).await.map(Answer::Get),
                Request::Txn(txn) => client.txn(txn).await.map(Answer::Txn),
            }
            .map_err(Failure::of)
        };
        // The client's own deadline comes first, and bounds connecting and calling each.
        let answer = match timeout(self.timeout * 2, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::doubtful(SILENT.to_owned())),
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
                // A handshake that hangs, or a login that is void, must not outlive the failure.
                if (failure.refused || failure.detail == SILENT)
                    && let Ok(mut client) = member.client.try_lock()
                {
                    client.take();
                }
                Err(Failure { detail: format!("{}: {}", member.url, failure.detail), ..failure })
            }
        }
    }

    /// The order in which members are asked: the current one, the healthy ones, then those that
    /// failed the longest ago.
    fn order(&self) -> Vec<usize> {
        let (count, current) = (self.members.len(), self.current.load(Ordering::Relaxed));
        let mut order: Vec<_> = (0..count).map(|offset| (current + offset) % count).collect();
        order.sort_by_key(|&index| {
            let failed = self.members.get(index).and_then(Member::failed);
            failed.filter(|at| at.elapsed() < HELD_OUT)
        });
        order
    }

    /// A client of the member to be asked next, for a stream.
    pub(super) async fn client(&self) -> Result<(usize, Client), Failure> {
        let index = self.order().first().copied().unwrap_or_default();
        let Some(member) = self.members.get(index) else {
            return Err(Failure::certain("no member".to_owned()));
        };
        let client = timeout(self.timeout, member.connect(&self.options)).await;
        let client = client.map_err(|_| Failure::certain("no answer in time".to_owned()))?;
        Ok((index, client.map_err(Failure::not_sent)?))
    }

    /// The member's stream failed.
    pub(super) fn failed(&self, index: usize) {
        if let Some(member) = self.members.get(index) {
            member.note(Some(Instant::now()));
        }
    }

    /// How long one call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Member {
    /// Connecting is lazy; what takes time is to log in, where there is a user.
    async fn connect(&self, options: &ConnectOptions) -> Result<Client, etcd_client::Error> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let made = Client::connect([&self.url], Some(options.clone())).await?;
        Ok(client.insert(made).clone())
    }

    fn failed(&self) -> Option<Instant> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, failed: Option<Instant>) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }
}

impl Failure {
    fn certain(detail: String) -> Self {
        Self { detail, maybe_applied: false, hopeless: false, refused: false }
    }

    fn doubtful(detail: String) -> Self {
        Self { detail, maybe_applied: true, hopeless: false, refused: false }
    }

    /// The call itself was not made yet.
    fn not_sent(error: etcd_client::Error) -> Self {
        Self { maybe_applied: false, ..Self::of(error) }
    }

    fn of(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = &error else {
            // Before anything was sent: a wrong URL or certificate.
            return Self { hopeless: true, ..Self::certain(whole(&error)) };
        };
        let detail = whole(status);
        if detail.contains("certificate") {
            return Self { hopeless: true, ..Self::certain(detail) };
        }
        // Connecting failed: nothing was sent.
        if ["connect error", "dns error", "tls handshake"].iter().any(|part| detail.contains(part))
        {
            return Self::certain(detail);
        }
        match status.code() {
            // etcd itself says no.
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::Unimplemented => {
                Self { hopeless: true, refused: true, ..Self::certain(detail) }
            }
            _ => Self::doubtful(detail),
        }
    }
}

/// An error with all its causes, each said once.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// What was seen of the cluster's history: its revision only grows, unless somebody restores a
/// copy.
#[derive(Default)]
pub(super) struct History {
    seen: Mutex<Seen>,
    restored: watch::Sender<u64>,
}

/// What is known of the history at a moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    revision: i64,
    cluster: u64,
    /// How often an old copy was restored.
    restores: u64,
}

impl History {
    /// What was seen so far: to be asked before a call is sent.
    pub(super) fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the header of a linearizable answer to a call that was sent when `before` was known: it
    /// can't be older than that. Of calls that a restore overtook, the first one reports it.
    pub(super) fn note(&self, before: Seen, header: &ResponseHeader) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
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
            "etcd went back to an earlier state: somebody restored an old copy"
        );
        seen.revision = header.revision();
        seen.restores += 1;
        self.restored.send_replace(seen.restores);
    }

    /// Tells of each time that it happens.
    pub(super) fn restores(&self) -> watch::Receiver<u64> {
        self.restored.subscribe()
    }
}
