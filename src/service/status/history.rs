//! Counts of the last hour, a number for each minute: what sparklines, rates and forecasts are made
//! of. It takes no time and reads no metric itself.
//!
//! Only minutes in which something happened take memory: an idle chain has none.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::ChainName;

/// The minutes that are remembered.
pub(super) const MINUTES: u64 = 60;

/// The length of a minute of the history.
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// The counts of the last hour.
#[derive(Default)]
pub(in crate::service) struct History {
    /// The number of the minute that has not ended, and when it began.
    minute: u64,
    began: Monotonic,
    pub(super) made: Series,
    pub(super) avoided: Series,
    pub(super) chains: HashMap<ChainName, OfChain>,
    /// The requests of clients by name.
    pub(super) callers: HashMap<String, Series>,
}

/// The counts of a chain.
#[derive(Default)]
pub(super) struct OfChain {
    pub(super) encrypts: Series,
    pub(super) decrypts: Series,
    /// Reserved uses.
    pub(super) uses: Series,
    /// Calls on data.
    pub(super) calls: Series,
    pub(super) failures: BTreeMap<&'static str, Series>,
}

/// The counters of a chain now.
pub(super) struct Counters {
    pub(super) root_calls: u64,
    pub(super) avoided: u64,
    pub(super) encrypts: u64,
    pub(super) decrypts: u64,
    pub(super) uses: u64,
    pub(super) calls: u64,
    pub(super) failures: BTreeMap<&'static str, u64>,
}

/// A counter in the minutes of the last hour.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// The counter at the end of the last minute.
    counter: u64,
    /// Minutes in which it grew, and by how much.
    minutes: VecDeque<(u64, u64)>,
}

/// Where a reader is in the history.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    minute: u64,
    /// Time since the minute began.
    into: Duration,
}

impl History {
    pub(in crate::service) fn new(now: Monotonic) -> Self {
        Self { began: now, ..Self::default() }
    }

    pub(super) fn at(&self, now: Monotonic) -> Moment {
        Moment { minute: self.minute, into: now.since(self.began) }
    }

    /// Ends the minute, unless it has only begun; its counts are given to what this returns. If the
    /// process slept, several minutes end.
    pub(super) fn end_minute(&mut self, now: Monotonic) -> Option<Ending<'_>> {
        let past = now.since(self.began).as_secs() / (MINUTE.as_secs() - 1);
        if past == 0 {
            return None;
        }
        let ended = self.minute + past - 1;
        (self.minute, self.began) = (self.minute + past, now);
        Some(Ending { history: self, minute: ended })
    }
}

/// The end of a minute.
pub(super) struct Ending<'a> {
    history: &'a mut History,
    minute: u64,
}

impl Ending<'_> {
    pub(super) fn roots(&mut self, made: u64, avoided: u64) {
        self.history.made.end(self.minute, made);
        self.history.avoided.end(self.minute, avoided);
    }

    /// Takes the counters of all chains; those of others are forgotten.
    pub(super) fn chains(&mut self, chains: impl Iterator<Item = (ChainName, Counters)>) {
        let mut before = std::mem::take(&mut self.history.chains);
        for (name, counters) in chains {
            let mut of_chain = before.remove(&name).unwrap_or_default();
            of_chain.encrypts.end(self.minute, counters.encrypts);
            of_chain.decrypts.end(self.minute, counters.decrypts);
            of_chain.uses.end(self.minute, counters.uses);
            of_chain.calls.end(self.minute, counters.calls);
            for (code, count) in counters.failures {
                of_chain.failures.entry(code).or_default().end(self.minute, count);
            }
            self.history.chains.insert(name, of_chain);
        }
    }

    /// Takes the counters of all clients; those of others are forgotten.
    pub(super) fn callers(&mut self, callers: impl Iterator<Item = (String, u64)>) {
        let mut before = std::mem::take(&mut self.history.callers);
        for (name, requests) in callers {
            let mut series = before.remove(&name).unwrap_or_default();
            series.end(self.minute, requests);
            self.history.callers.insert(name, series);
        }
    }
}

impl Series {
    fn end(&mut self, minute: u64, counter: u64) {
        let grown = self.since_last(counter);
        if grown > 0 {
            self.minutes.push_back((minute, grown));
        }
        let oldest = (minute + 1).saturating_sub(MINUTES);
        while self.minutes.front().is_some_and(|(minute, _)| *minute < oldest) {
            self.minutes.pop_front();
        }
        self.counter = counter;
    }

    /// How much it grew in the minute that has not ended. A counter that fell began again.
    fn since_last(&self, counter: u64) -> u64 {
        counter.checked_sub(self.counter).unwrap_or(counter)
    }

    /// How much it grew in the last `minutes` and in the one that has not ended.
    pub(super) fn within(&self, minutes: u64, at: Moment, counter: u64) -> u64 {
        let oldest = at.minute.saturating_sub(minutes);
        let past = self.minutes.iter().filter(|(minute, _)| *minute >= oldest);
        past.map(|(_, grown)| grown).sum::<u64>() + self.since_last(counter)
    }

    /// The same as a rate.
    pub(super) fn per_second(&self, minutes: u64, at: Moment, counter: u64) -> f64 {
        self.rate(minutes, at, counter, Duration::from_secs(1))
    }

    /// The same as a rate over one minute at least: a counter that grows in blocks would seem to
    /// grow fast right after a start.
    pub(super) fn steady(&self, minutes: u64, at: Moment, counter: u64) -> f64 {
        self.rate(minutes, at, counter, MINUTE)
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
    fn rate(&self, minutes: u64, at: Moment, counter: u64, least: Duration) -> f64 {
        let past = u32::try_from(minutes.min(at.minute)).unwrap_or(u32::MAX);
        let time = (MINUTE * past + at.into).max(least);
        self.within(minutes, at, counter) as f64 / time.as_secs_f64()
    }

    /// How much it grew in each minute of the last hour; the last one has not ended.
    pub(super) fn points(&self, at: Moment, counter: u64) -> Vec<u64> {
        let first = (at.minute + 1).saturating_sub(MINUTES);
        let mut points = vec![0; usize::try_from(at.minute + 1 - first).unwrap_or_default()];
        for (minute, grown) in &self.minutes {
            let index = minute.checked_sub(first).and_then(|index| usize::try_from(index).ok());
            if let Some(point) = index.and_then(|index| points.get_mut(index)) {
                *point = *grown;
            }
        }
        if let Some(last) = points.last_mut() {
            *last = self.since_last(counter);
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Monotonic {
        Monotonic::default() + Duration::from_secs(seconds)
    }

    fn chains(name: &str, calls: u64) -> impl Iterator<Item = (ChainName, Counters)> {
        let (encrypts, failures) = (calls, BTreeMap::new());
        let counters =
            Counters { root_calls: 0, avoided: 0, encrypts, decrypts: 0, uses: 0, calls, failures };
        std::iter::once((ChainName::new(name).unwrap(), counters))
    }

    #[test]
    fn rates_and_points_follow_the_minutes() {
        let mut history = History::new(after(0));
        assert!(history.end_minute(after(30)).is_none(), "it has only begun");
        let at = history.at(after(30));
        assert_eq!(history.made.points(at, 15), [15]);
        assert!((history.made.per_second(1, at, 15) - 0.5).abs() < 1e-9);
        assert!((history.made.steady(1, at, 15) - 0.25).abs() < 1e-9);
        for (minute, made) in [(1, 60), (2, 60), (3, 180)] {
            history.end_minute(after(60 * minute)).unwrap().roots(made, 2 * made);
        }
        let at = history.at(after(210));
        assert_eq!(history.made.points(at, 210), [60, 0, 120, 30]);
        assert_eq!(history.avoided.points(at, 360), [120, 0, 240, 0]);
        // The last minute, and half of the present one.
        assert!((history.made.per_second(1, at, 210) - 150.0 / 90.0).abs() < 1e-9);
        assert_eq!(history.made.within(60, at, 210), 210);
    }

    #[test]
    fn it_keeps_an_hour_and_nothing_of_idle_minutes() {
        let mut history = History::new(after(0));
        for minute in 1..=200 {
            let made = minute.min(100);
            history.end_minute(after(60 * minute)).unwrap().roots(made, 0);
        }
        assert_eq!(history.made.minutes.len(), 0, "nothing happened for 100 minutes");
        assert_eq!(history.made.points(history.at(after(12_000)), 100), [0; 60]);
        history.end_minute(after(12_060)).unwrap().roots(107, 0);
        let points = history.made.points(history.at(after(12_060)), 107);
        assert_eq!((points.len(), points[58], points[59]), (60, 7, 0));
        // A machine that slept: its minutes are empty, and older ones are dropped.
        history.end_minute(after(12_060 + 7_200)).unwrap().roots(110, 0);
        let points = history.made.points(history.at(after(19_260)), 110);
        assert_eq!((points[58], points.iter().sum::<u64>()), (3, 3));
    }

    #[test]
    fn a_chain_that_is_deleted_is_forgotten_and_one_that_begins_again_counts_from_zero() {
        let mut history = History::new(after(0));
        history.end_minute(after(60)).unwrap().chains(chains("a", 100));
        history.end_minute(after(120)).unwrap().chains(chains("a", 3));
        let a = &history.chains[&ChainName::new("a").unwrap()];
        assert_eq!(a.calls.points(history.at(after(120)), 3), [100, 3, 0]);
        history.end_minute(after(180)).unwrap().chains(chains("b", 1));
        assert_eq!(history.chains.len(), 1);
    }
}
