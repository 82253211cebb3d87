//! The watch of one process: late, interrupted, or with missed events.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Rng;
use super::store::Net;
use crate::store::{News, Watch};

/// A watch that is late, and sends nothing while it is interrupted.
pub(super) struct Slow {
    inner: Box<dyn Watch>,
    net: Net,
    rng: Rng,
    queue: VecDeque<(Instant, News)>,
    restores: watch::Receiver<u64>,
}

#[async_trait]
impl Watch for Slow {
    async fn next(&mut self) -> News {
        loop {
            self.net.alive().await;
            let due = self.queue.front().map(|(due, _)| *due);
            if due.is_some_and(|due| due <= Instant::now())
                && let Some((_, news)) = self.queue.pop_front()
            {
                return news;
            }
            let waiting = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Ok(()) = self.restores.changed() => return News::Restored,
                news = self.inner.next() => self.take(news),
                () = waiting => {}
            }
        }
    }
}

impl Slow {
    pub(super) fn new(inner: Box<dyn Watch>, net: Net) -> Self {
        let rng = net.rng.fork();
        let restores = net.told_restores();
        Self { inner, net, rng, queue: VecDeque::new(), restores }
    }

    fn take(&mut self, news: News) {
        let (now, calm) = (Instant::now(), self.net.hub.is_calm());
        if *self.net.silent.lock().unwrap() > now {
            return;
        }
        let late = if self.rng.one_in(3) {
            self.rng.up_to(self.net.hub.conditions.watch_delay)
        } else {
            Duration::ZERO
        };
        let last = self.queue.back().map_or(now, |(due, _)| *due);
        let missed = !calm && self.rng.per_mille(20);
        let news = if missed { News::Missed } else { news };
        self.queue.push_back((last.max(now + late), news));
    }
}
