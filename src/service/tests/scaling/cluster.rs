//! The simulated etcd cluster: it answers after a time and at a limited rate, and counts what it
//! does in each second. It knows nothing of replicas.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::store::record::{self, Part};
use crate::store::{Compare, Revision, Txn, memory};

/// How long the cluster is busy with a request: etcd's documentation names 30,000 in a second for a
/// cluster of three members.
const REQUEST: Duration = Duration::from_nanos(1_000_000_000 / 30_000);
/// When a watch reports a change. The changes of counters that a watch reports together are one per
/// key, so that few wake-ups stand for many.
const NEWS_AFTER: Duration = Duration::from_millis(5);
/// The prefix of the keys in etcd.
pub(super) const PREFIX: u64 = "/kms-proxy/".len() as u64;
/// What a change takes in a response of a watch beside its key and value.
const EVENT_FRAME: u64 = 80;
/// The number of sets of changes that a watch may be late.
const BACKLOG: usize = 1_000;

/// What happened in one second, or in several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Requests that read, and the entries in their responses.
    pub(super) reads: u64,
    pub(super) entries: u64,
    /// Transactions that were applied, and those that were not.
    pub(super) writes: u64,
    pub(super) conflicts: u64,
    /// Changes that watches reported, and their size: one for each watch.
    pub(super) events: u64,
    pub(super) event_bytes: u64,
    /// What the cluster sent in responses to reads and transactions.
    pub(super) answer_bytes: u64,
    /// Blocks of uses that were reserved.
    pub(super) blocks: u64,
    pub(super) wraps: u64,
    pub(super) unwraps: u64,
    pub(super) throttled: u64,
    pub(super) new_keks: u64,
}

impl std::ops::AddAssign<&Self> for Counts {
    fn add_assign(&mut self, more: &Self) {
        self.reads += more.reads;
        self.entries += more.entries;
        self.writes += more.writes;
        self.conflicts += more.conflicts;
        self.events += more.events;
        self.event_bytes += more.event_bytes;
        self.answer_bytes += more.answer_bytes;
        self.blocks += more.blocks;
        self.wraps += more.wraps;
        self.unwraps += more.unwraps;
        self.throttled += more.throttled;
        self.new_keks += more.new_keks;
    }
}

pub(super) type Changes = Arc<[(String, Revision)]>;

pub(super) struct State {
    /// When the cluster has answered all requests that it has.
    busy_until: Instant,
    longest_queue: Duration,
    seconds: Vec<Counts>,
    /// Changes that no watch has reported, and whether one of them is more than a counter.
    pending: Vec<(String, Revision)>,
    is_urgent: bool,
    /// What watches report, and the number of the first of them.
    pub(super) published: VecDeque<Changes>,
    pub(super) first: u64,
}

/// The cluster.
pub(super) struct Cluster {
    pub(super) store: memory::Store,
    began: Instant,
    /// How long changes of counters are collected.
    collected_for: Duration,
    state: Mutex<State>,
    pub(super) watches: AtomicU64,
    has_changed: Notify,
    has_urgent: Notify,
    pub(super) published: watch::Sender<u64>,
}

impl Cluster {
    /// An empty cluster. Its watches report after `collected_for` at the latest.
    pub(super) fn new(collected_for: Duration) -> Arc<Self> {
        let state = State {
            busy_until: Instant::now(),
            longest_queue: Duration::ZERO,
            seconds: Vec::new(),
            pending: Vec::new(),
            is_urgent: false,
            published: VecDeque::new(),
            first: 0,
        };
        let cluster = Arc::new(Self {
            store: memory::Store::new(),
            began: Instant::now(),
            collected_for,
            state: Mutex::new(state),
            watches: AtomicU64::new(0),
            has_changed: Notify::new(),
            has_urgent: Notify::new(),
            published: watch::Sender::new(0),
        });
        tokio::spawn(Arc::clone(&cluster).publish());
        cluster
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        let second = usize::try_from(self.began.elapsed().as_secs()).unwrap();
        let mut state = self.state();
        if state.seconds.len() <= second {
            state.seconds.resize(second + 1, Counts::default());
        }
        add(&mut state.seconds[second]);
    }

    /// The current second.
    pub(super) fn second(&self) -> usize {
        usize::try_from(self.began.elapsed().as_secs()).unwrap()
    }

    /// What happened in the seconds from `start` up to `end`.
    pub(super) fn seconds(&self, start: usize, end: usize) -> Vec<Counts> {
        let mut seconds = self.state().seconds.clone();
        seconds.resize(seconds.len().max(end), Counts::default());
        seconds[start..end].to_vec()
    }

    /// The longest time that a request waited for others, since the last call.
    pub(super) fn longest_queue(&self) -> Duration {
        std::mem::take(&mut self.state().longest_queue)
    }

    /// Waits until a request that travels for `millis` is handled.
    pub(super) async fn handle(&self, requests: u32, millis: u64) {
        let at = {
            let mut state = self.state();
            let arrives = Instant::now() + Duration::from_millis(millis);
            let begins = state.busy_until.max(arrives);
            state.longest_queue = state.longest_queue.max(begins - arrives);
            state.busy_until = begins + requests * REQUEST;
            state.busy_until
        };
        sleep_until(at).await;
    }

    /// Notes what an applied transaction changed.
    pub(super) fn written(&self, txn: &Txn, revision: Revision) {
        let watches = self.watches.load(Relaxed);
        let keys = txn.deletes.iter().map(|key| (key, 0));
        let keys = keys.chain(txn.puts.iter().map(|(key, value)| (key, value.len())));
        let (mut events, mut bytes, mut new_keks, mut blocks) = (0, 0, 0, 0);
        for (key, size) in keys {
            events += 1;
            bytes += PREFIX + key.len() as u64 + size as u64 + EVENT_FRAME;
            let part = record::parse_key(key).map(|(_, part)| part);
            let is_counter = matches!(part, Some(Part::Uses(_))) && txn.puts.len() == 1;
            let is_absent = Compare::Absent(key.clone());
            let is_new_kek =
                matches!(part, Some(Part::Kek(_))) && txn.compares.contains(&is_absent);
            new_keks += u64::from(is_new_kek);
            blocks += u64::from(is_counter);
            let mut state = self.state();
            state.pending.retain(|(pending, _)| pending != key);
            state.pending.push((key.clone(), revision));
            if !is_counter {
                state.is_urgent = true;
                self.has_urgent.notify_one();
            }
        }
        self.has_changed.notify_one();
        self.count(|counts| {
            counts.writes += 1;
            counts.events += events * watches;
            counts.event_bytes += bytes * watches;
            counts.new_keks += new_keks;
            counts.blocks += blocks;
        });
    }

    /// Reports changes to the watches.
    async fn publish(self: Arc<Self>) {
        loop {
            self.has_changed.notified().await;
            sleep(NEWS_AFTER).await;
            if !self.state().is_urgent {
                let rest = self.collected_for.saturating_sub(NEWS_AFTER);
                let _ = timeout(rest, self.has_urgent.notified()).await;
            }
            let number = {
                let mut state = self.state();
                state.is_urgent = false;
                let changes = std::mem::take(&mut state.pending);
                if changes.is_empty() {
                    continue;
                }
                state.published.push_back(changes.into());
                if state.published.len() > BACKLOG {
                    state.published.pop_front();
                    state.first += 1;
                }
                state.first + state.published.len() as u64
            };
            self.published.send_replace(number);
        }
    }
}
