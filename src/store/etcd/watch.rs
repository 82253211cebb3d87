//! The watch: a task that follows a cluster and recovers by itself. A stream of etcd neither
//! resumes nor reports that it is dead, so the task requests progress reports, and restarts it when
//! in doubt.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, WatchOptions, WatchResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::store::{News, Revision};

use super::members::Members;
use super::revision;

/// After this time without a message, a progress report is requested, which must come in the same
/// time.
const SILENCE: Duration = Duration::from_secs(10);
/// The number of news that wait for the reader. While it is behind, the stream is not read.
const WAITING: usize = 256;

/// A watch of all keys under a prefix.
pub(super) struct Watch {
    news: mpsc::Receiver<News>,
    restores: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(members: Arc<Members>, prefix: Arc<str>) -> Self {
        let (sender, news) = mpsc::channel(WAITING);
        let restores = members.history.restores();
        let task = tokio::spawn(follow(members, prefix, sender));
        Self { news, restores, task }
    }
}

#[async_trait]
impl crate::store::Watch for Watch {
    async fn next(&mut self) -> News {
        tokio::select! {
            biased;
            Ok(()) = self.restores.changed() => News::Restored,
            news = self.news.recv() => news.unwrap_or(News::Missed),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(members: Arc<Members>, prefix: Arc<str>, news: mpsc::Sender<News>) {
    // 0.1 s to 3.2 s.
    let mut backoff = Backoff::new(Duration::from_millis(100), 5);
    loop {
        let ended = session(&members, &prefix, &news, &mut backoff).await;
        let Err(reason) = ended else { return };
        tracing::debug!(reason, "restarting the watch of etcd");
        if news.send(News::Missed).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// Follows one stream to its end; `Ok` when the receiver is gone.
async fn session(
    members: &Members,
    prefix: &str,
    news: &mpsc::Sender<News>,
    backoff: &mut Backoff,
) -> Result<(), String> {
    let options = GetOptions::new().with_prefix().with_count_only();
    let now = members.get(prefix, Some(options)).await.map_err(|failure| failure.detail)?;
    let since = now.header().map_or(0, |header| header.revision());
    let (index, mut client) = members.client().await.map_err(|failure| failure.detail)?;
    let ended = async {
        let options = WatchOptions::new().with_prefix().with_start_revision(since + 1);
        let stream = timeout(members.timeout(), client.watch(prefix, Some(options))).await;
        let mut stream = stream
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| error.to_string())?;
        // Changes before `since` were not reported.
        if news.send(News::Missed).await.is_err() {
            return Ok(());
        }
        backoff.succeeded();
        let mut asked = false;
        loop {
            match timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(message))) => {
                    asked = false;
                    if !pass_on(&message, prefix, news).await? {
                        return Ok(());
                    }
                }
                Ok(Ok(None)) => return Err("the stream ended".to_owned()),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) if asked => return Err("the stream is silent".to_owned()),
                Err(_) => {
                    stream.request_progress().await.map_err(|error| error.to_string())?;
                    asked = true;
                }
            }
        }
    };
    let ended: Result<(), String> = ended.await;
    if ended.is_err() {
        members.failed(index);
    }
    ended
}

/// Passes on the message's events; false when the receiver is gone.
async fn pass_on(
    message: &WatchResponse,
    prefix: &str,
    news: &mpsc::Sender<News>,
) -> Result<bool, String> {
    // Its revisions were compacted, or its permissions revoked: the stream stays open without
    // events.
    if message.canceled() {
        return Err(format!("it was cancelled: {}", message.cancel_reason()));
    }
    let change = |event: &etcd_client::Event| -> Option<(String, Revision)> {
        let kv = event.kv()?;
        let key = kv.key_str().ok()?.strip_prefix(prefix)?;
        Some((key.to_owned(), revision(kv.mod_revision())))
    };
    let changes: Vec<_> = message.events().iter().filter_map(change).collect();
    Ok(changes.is_empty() || news.send(News::Changed(changes)).await.is_ok())
}
