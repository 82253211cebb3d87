//! Fills the structure of `/status.json` from the service: from memory, except the numbers of KEKs,
//! which the store has. It knows no HTTP, and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::clock::Monotonic;
use crate::id::ChainName;
use crate::metrics::Operation;
use crate::status::{self, Caller, Keks, Pace, Savings, Status, forecast};
use crate::timestamp::rfc3339;

use super::KeyService;
use super::chain::Chain;
use super::chain::facts::Facts;
use super::tasks;

pub(super) mod history;
mod keks;
mod outage;

use history::{Counters, History, MINUTE, MINUTES, Moment, OfChain, Series};

/// The minutes that a rate is taken over, besides the one that has not ended.
const RATE_OVER: u64 = 1;
/// The same for the forecast of the next rotation.
const FORECAST_OVER: u64 = 10;

/// Which part of a service a status shows.
pub struct StatusScope {
    chains: Vec<Arc<Chain>>,
    /// Whether there are chains after them.
    more: bool,
    is_whole: bool,
}

impl KeyService {
    /// At most `limit` chains after the one of the name `after` that are `visible`, and, if the
    /// status `is_whole`, what concerns the whole service. The store is asked for the numbers of
    /// KEKs if those in memory are old, for one second at most.
    pub async fn status_scope<V: Fn(&ChainName) -> bool + Send>(
        &self,
        visible: V,
        is_whole: bool,
        after: Option<&str>,
        limit: usize,
    ) -> StatusScope {
        let (chains, more) = {
            let all = self.chains.load_full();
            let later = |name: &str| after.is_none_or(|after| name > after);
            let mut chains: Vec<_> = all
                .values()
                .filter(|chain| later(chain.name.as_str()) && visible(&chain.name))
                .cloned()
                .collect();
            chains.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
            let more = chains.len() > limit;
            chains.truncate(limit);
            (chains, more)
        };
        keks::count(&self.core, &chains).await;
        StatusScope { chains, more, is_whole }
    }

    /// The status of the service, without its checks and findings, from memory.
    #[must_use]
    pub fn status(&self, scope: &StatusScope) -> Status {
        let StatusScope { chains, more, is_whole } = scope;
        let now = self.now();
        let next = chains.last().filter(|_| *more).map(|chain| chain.name.to_string());
        let history = self.history();
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: rfc3339(now.unix),
            started_at: rfc3339(self.core.started_at),
            uptime_seconds: now.unix.saturating_sub(self.core.started_at),
            chains: chains.iter().map(|chain| self.chain_now(chain, &history, now)).collect(),
            next,
            ..Status::default()
        };
        match is_whole {
            true => self.add_whole(status, &history, now),
            false => status,
        }
    }

    /// The status of one chain in memory, with its calls in each minute, and its time, as RFC 3339.
    #[must_use]
    pub fn chain_status(&self, name: &str) -> Option<(status::Chain, String)> {
        let chain = self.chains.load().get(name).cloned()?;
        let (history, now) = (self.history(), self.now());
        let mut status = self.chain_now(&chain, &history, now);
        let (at, counters) = (history.at(now.monotonic), self.counters(&chain));
        let unused = Series::default();
        let calls = history.chains.get(&chain.name).map_or(&unused, |of| &of.calls);
        status.calls_per_minute = calls.points(at, counters.calls);
        Some((status, rfc3339(now.unix)))
    }

    /// Starts the task that remembers the counts of each minute.
    pub(super) fn keep_history(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let (service, mut stop) = (Arc::downgrade(self), self.core.stopping.subscribe());
        tokio::spawn(async move {
            while tasks::proceed(&mut stop, tokio::time::sleep(MINUTE)).await {
                let Some(service) = service.upgrade() else { return };
                service.end_minute();
            }
        })
    }

    fn end_minute(&self) {
        let chains = self.chains.load_full();
        let counters: Vec<_> =
            chains.values().map(|chain| (chain.name.clone(), self.counters(chain))).collect();
        let callers = self.core.metrics.traffic.callers().into_iter();
        let mut history = self.history();
        let Some(mut ending) = history.end_minute(self.core.clock.now()) else { return };
        let (made, avoided) = self.core.metrics.root_calls();
        ending.roots(made, avoided);
        ending.chains(counters.into_iter());
        ending.callers(callers.map(|(name, requests, _)| (name, requests)));
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.core.history.lock()
    }

    fn now(&self) -> Now {
        Now { unix: self.core.clock.unix_now(), monotonic: self.core.clock.now() }
    }

    fn counters(&self, chain: &Chain) -> Counters {
        let ok = |operation| chain.metrics.succeeded(operation);
        let encrypts = ok(Operation::Encrypt) + ok(Operation::Datakey);
        let decrypts = ok(Operation::Decrypt);
        let (root_calls, avoided) = chain.metrics.root_calls();
        Counters {
            root_calls,
            avoided,
            encrypts,
            decrypts,
            uses: chain.published.uses(),
            calls: encrypts + decrypts + ok(Operation::Rewrap),
            failures: self.core.metrics.failures_of(&chain.name),
        }
    }

    fn chain_now(&self, chain: &Chain, history: &History, now: Now) -> status::Chain {
        let counters = self.counters(chain);
        let unused = OfChain::default();
        let of_chain = history.chains.get(&chain.name).unwrap_or(&unused);
        let at = history.at(now.monotonic);
        let counted = chain.published.counted().map(|counted| counted.keks);
        let mut shown = status::Chain {
            chain: chain.name.to_string(),
            standby_state: "none".to_owned(),
            keks: counted.as_ref().map(Keks::total),
            keks_by_state: counted,
            encrypts_per_second: of_chain.encrypts.per_second(RATE_OVER, at, counters.encrypts),
            decrypts_per_second: of_chain.decrypts.per_second(RATE_OVER, at, counters.decrypts),
            errors: errors(of_chain, at, &counters),
            operations: counters.calls,
            root_calls: counters.root_calls,
            avoided: counters.avoided,
            ..status::Chain::default()
        };
        let facts = chain.published.facts();
        shown.outage = outage::of_chain(&self.core, chain, facts.as_deref(), now);
        if let Some(facts) = facts {
            let uses_per_second = of_chain.uses.steady(FORECAST_OVER, at, counters.uses);
            add_facts(&mut shown, &facts, uses_per_second, now.unix);
        }
        shown
    }

    /// Adds what concerns the whole service.
    fn add_whole(&self, status: Status, history: &History, now: Now) -> Status {
        let core = &self.core;
        let at = history.at(now.monotonic);
        let (made, avoided) = core.metrics.root_calls();
        let savings = Savings {
            root_calls: made,
            avoided,
            root_calls_per_minute: history.made.points(at, made),
            avoided_per_minute: history.avoided.points(at, avoided),
            ..Savings::default()
        };
        let chains = self.chains.load_full();
        let missing: Vec<_> = chains.values().map(|it| it.missing_wraps.load_full()).collect();
        let missing_of = |index: usize| {
            let of_root = missing.iter().filter_map(|chain| chain.get(index).copied());
            of_root.sum::<i64>().unsigned_abs()
        };
        let roots = core.keyring.roots.iter().enumerate();
        let roots = roots.map(|(index, root)| root.status(missing_of(index), core.started_at));
        let decrypts_until = if core.store.is_up() { None } else { outage::decrypts_until(core) };
        let decrypts_until = decrypts_until.map(|at| now.text(at));
        let last_backup = Some(core.last_backup()).filter(|&at| at > 0).map(rfc3339);
        let unused = Series::default();
        let callers =
            core.metrics.traffic.callers().into_iter().map(|(name, requests, refused)| {
                let series = history.callers.get(&name).unwrap_or(&unused);
                Caller {
                    requests_per_second: series.per_second(RATE_OVER, at, requests),
                    client: name,
                    requests,
                    refused: refused.into_iter().map(|(why, n)| (why.to_owned(), n)).collect(),
                }
            });
        Status {
            savings: Some(savings),
            roots: roots.collect(),
            store: Some(status::Store {
                last_backup,
                decrypts_until,
                ..core.store.status(core.started_at)
            }),
            archives: core.archives.iter().map(|archive| archive.status()).collect(),
            replicas: core.root_reports.lock().replicas(core.owner, now.monotonic),
            callers: callers.collect(),
            ..status
        }
    }
}

/// The same moment by both clocks.
#[derive(Clone, Copy)]
struct Now {
    unix: u64,
    monotonic: Monotonic,
}

/// The failed calls of the last hour by code.
fn errors(of_chain: &OfChain, at: Moment, counters: &Counters) -> BTreeMap<String, u64> {
    let unused = Series::default();
    let within = |(code, count): (&&'static str, &u64)| {
        let series = of_chain.failures.get(code).unwrap_or(&unused);
        ((*code).to_owned(), series.within(MINUTES, at, *count))
    };
    counters.failures.iter().map(within).filter(|(_, count)| *count > 0).collect()
}

/// Adds what the records of the chain say.
fn add_facts(shown: &mut status::Chain, facts: &Facts, uses_per_second: f64, unix_now: u64) {
    shown.suite = facts.suite.as_str().to_owned();
    shown.primary = facts.mark.primary.map(|(id, _)| id.to_string());
    shown.standby = facts.standby.map(|id| id.to_string());
    shown.standby_state = facts.mark.standby.as_str().to_owned();
    shown.inline = facts.inline;
    shown.uses_reserved = facts.mark.reserved;
    shown.rotate_after_uses = facts.limits.rotate_after_uses;
    shown.max_uses = facts.limits.max_uses;
    shown.rotate_after_age = facts.limits.rotate_after_age;
    shown.promoted_at = facts.promoted_at.map(rfc3339);
    shown.age_seconds = facts.promoted_at.map(|at| unix_now.saturating_sub(at));
    shown.roots.clone_from(&facts.roots);
    shown.exposed = facts.exposed;
    shown.next_rotation = shown.age_seconds.map(|age| {
        let pace = Pace {
            reserved: shown.uses_reserved,
            rotate_after_uses: shown.rotate_after_uses,
            uses_per_second,
            age,
            rotate_after_age: shown.rotate_after_age,
        };
        forecast(&pace, unix_now)
    });
}
