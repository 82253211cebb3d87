//! What clients, operators and misfortune do to the processes, step by step.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::{Client, Letter};
use super::hub::Hub;
use super::world::{Birth, Mistake, Process};
use super::{Counts, Rng, Weather};
use crate::id::KekId;
use crate::service::types::{ChainSettings, Change};
use crate::service::{DEFAULT_CHAIN, Health, Kind};
use crate::store::memory::{self, Snapshot};
use crate::store::record::State;

pub(super) struct Sim {
    pub(super) hub: Arc<Hub>,
    pub(super) rng: Rng,
    pub(super) processes: Vec<Process>,
    pub(super) births: Vec<Birth>,
    pub(super) letters: Arc<Mutex<Vec<Letter>>>,
    old: Option<Snapshot>,
    /// KEKs that must outlive a restore, since a process that lives has their records.
    pub(super) kept: BTreeSet<KekId>,
}

/// Runs a seed: what was done, and the trace of it.
///
/// # Errors
/// What was broken.
pub(super) async fn simulate(seed: u64, log: bool) -> Result<(Counts, u64), String> {
    let rng = Rng::new(seed ^ 0x5eed);
    let weather = Weather::of(seed, &rng);
    let hub = Arc::new(Hub::new(weather, log));
    let mut sim = Sim {
        hub,
        rng,
        processes: Vec::new(),
        births: Vec::new(),
        letters: Arc::default(),
        old: None,
        kept: BTreeSet::new(),
    };
    sim.trouble().await;
    sim.correction().await;
    sim.recovery().await;
    sim.quiet().await;
    sim.ending().await;
    let mut book = sim.hub.book();
    if let Some(log) = book.log.take() {
        for line in log {
            println!("{line}");
        }
    }
    if book.broken.is_empty() {
        Ok((book.counts, book.trace))
    } else {
        book.broken.truncate(6);
        Err(book.broken.join("\n"))
    }
}

impl Sim {
    pub(super) fn is_broken(&self) -> bool {
        !self.hub.book().broken.is_empty()
    }

    pub(super) fn broken(&self, what: String) {
        let at = self.hub.now().as_secs_f64();
        self.hub.book().broken.push(format!("at {at:.3} s: {what}"));
    }

    async fn trouble(&mut self) {
        for _ in 0..self.hub.weather.processes {
            self.births.push(Birth::new(&self.hub, self.rng.fork()));
        }
        for _ in 0..self.hub.weather.steps {
            self.hub.book().counts.steps += 1;
            self.receive().await;
            if !self.processes.is_empty() {
                self.step().await;
            }
            let pause = match self.rng.below(10) {
                0..4 => Duration::from_millis(self.rng.below(50)),
                4..9 => self.rng.up_to(Duration::from_secs(5)),
                _ => self.rng.up_to(Duration::from_secs(90)),
            };
            sleep(pause).await;
            if self.is_broken() {
                return;
            }
        }
    }

    /// Takes those in that are born.
    pub(super) async fn receive(&mut self) {
        let (over, births): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.births).into_iter().partition(Birth::is_over);
        self.births = births;
        for birth in over {
            let mistake = birth.mistake;
            match birth.born().await {
                Ok(process) => self.processes.push(process),
                Err(error) => {
                    if error.kind() != Kind::StoreUnavailable {
                        self.broken(format!("a start failed: {error}"));
                    }
                    self.births.push(Birth::with(&self.hub, self.rng.fork(), mistake));
                }
            }
        }
    }

    async fn step(&mut self) {
        let (rng, weather) = (self.rng.clone(), &self.hub.weather);
        let one = rng.index(self.processes.len());
        let faults = if weather.is_calm { 80 } else { 118 };
        match rng.below(faults) {
            0..40 => self.encrypt(one, 1 + rng.below(60)),
            40..55 => self.decrypt(one),
            55..60 => self.rewrap(one),
            60..65 => self.rotate(one),
            65..75 => self.change_state(one),
            75..80 => self.change_settings(one),
            80..85 => {
                let until = Instant::now() + rng.up_to(Duration::from_secs(120));
                self.processes[one].net.cut(until);
            }
            85..90 => {
                let until = Instant::now() + rng.up_to(Duration::from_secs(100));
                match rng.below(3) {
                    0 => self.processes[one].lose_root(until),
                    _ => self.processes[one].lose_roots(until),
                }
            }
            90..95 => {
                let until = Instant::now() + rng.up_to(Duration::from_secs(120));
                self.processes[one].net.silence(until);
            }
            95..100 if !weather.restores || self.hub.book().history == 0 => self.crash(one),
            100..102 if self.processes.len() < 6 => {
                self.births.push(Birth::new(&self.hub, rng.fork()));
            }
            // A process that starts on a store without KEKs founds it, whatever its roots are.
            102..105 if weather.restores && self.has_keks() => {
                self.old = Some(self.hub.store.snapshot());
            }
            105..110 if weather.restores => self.restore().await,
            110..114 if self.has_keks() => self.misconfigure(),
            114..118 if !self.hub.archives.is_empty() => {
                let until = Instant::now() + rng.up_to(Duration::from_secs(150));
                let (_, away) = &self.hub.archives[rng.index(self.hub.archives.len())];
                *away.lock().unwrap() = until;
            }
            _ => {}
        }
    }

    fn crash(&mut self, one: usize) {
        let process = self.processes.remove(one);
        let mistake = process.mistake;
        process.kill();
        self.births.push(Birth::with(&self.hub, self.rng.fork(), mistake));
    }

    /// Whether the chain has a KEK that a root must open.
    fn has_keks(&self) -> bool {
        let book = self.hub.book();
        book.keks.values().any(|page| page.kek.as_ref().is_some_and(|kek| !kek.wraps.is_empty()))
    }

    /// Whether the chain has a KEK that encrypts, which the archives hold.
    fn has_primary(&self) -> bool {
        self.hub.book().head.as_ref().is_some_and(|head| head.primary.is_some())
    }

    /// An operator starts one more process, with a mistake in its configuration.
    fn misconfigure(&mut self) {
        let wrong = self.processes.iter().filter(|process| process.mistake.is_some()).count()
            + self.births.iter().filter(|birth| birth.mistake.is_some()).count();
        if wrong >= 2 {
            return;
        }
        let mistakes = [Mistake::AllWrong, Mistake::FirstWrong, Mistake::Swapped];
        let mistake = mistakes[self.rng.index(mistakes.len())];
        self.hub.book().counts.mistakes += 1;
        self.births.push(Birth::with(&self.hub, self.rng.fork(), Some(mistake)));
    }

    /// The operator corrects the configuration of every process, which said all the while that
    /// something is wrong.
    async fn correction(&mut self) {
        if self.is_broken() {
            return;
        }
        for process in &self.processes {
            process.mend();
        }
        // A process looks at its roots every 5 s, and waits up to 15 s for a call.
        sleep(Duration::from_secs(60)).await;
        for process in &self.processes {
            let health = process.service.readiness().health;
            if health == Health::Ok && process.must_complain() {
                let number = process.net.process;
                self.broken(format!("{number} has {:?} and says ok", process.mistake));
            }
        }
        let (wrong, right): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.processes).into_iter().partition(|it| it.mistake.is_some());
        self.processes = right;
        for process in wrong {
            process.kill();
            self.births.push(Birth::new(&self.hub, self.rng.fork()));
        }
        let (wrong, right): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.births).into_iter().partition(|it| it.mistake.is_some());
        self.births = right;
        for birth in wrong {
            birth.abandon();
            self.births.push(Birth::new(&self.hub, self.rng.fork()));
        }
    }

    /// An operator puts an old copy in the place of the store.
    async fn restore(&mut self) {
        let wipes = self.hub.is_guaranteed() && self.has_primary() && self.rng.one_in(2);
        let old = self.old.take();
        let Some(old) = (if wipes { Some(memory::Store::new().snapshot()) } else { old }) else {
            return;
        };
        self.hub.book().counts.wipes += u64::from(wipes);
        if wipes && self.rng.one_in(3) {
            // The store and all processes are lost at the same moment.
            while !self.processes.is_empty() {
                self.crash(0);
            }
        }
        self.hub.set_down(true);
        sleep(Duration::from_secs(1) + self.rng.up_to(Duration::from_secs(20))).await;
        let allowed = |state| !matches!(state, State::Disabled | State::Destroyed);
        let held: BTreeSet<_> = self.processes.iter().flat_map(Process::records).collect();
        {
            let book = self.hub.book();
            let kept = held.into_iter().filter(|id| {
                let kek = book.keks.get(id).and_then(|page| page.kek.as_ref());
                kek.is_some_and(|kek| allowed(kek.state))
            });
            self.kept.extend(kept);
        }
        self.hub.restore(old).await;
        self.hub.set_down(false);
    }

    fn call<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        one: usize,
        call: impl FnOnce(Client) -> F,
    ) {
        let process = &mut self.processes[one];
        let client = Client {
            hub: Arc::clone(&self.hub),
            process: process.net.process,
            service: Arc::clone(&process.service),
            letters: Arc::clone(&self.letters),
            rng: self.rng.fork(),
        };
        process.calls.retain(|call| !call.is_finished());
        let call = tokio::spawn(call(client));
        if self.rng.one_in(20) {
            let (abort, after) = (call.abort_handle(), self.rng.up_to(Duration::from_secs(3)));
            tokio::spawn(async move {
                sleep(after).await;
                abort.abort();
            });
        }
        process.calls.push(call);
    }

    fn encrypt(&mut self, one: usize, count: u64) {
        self.call(one, |client| async move {
            for _ in 0..count {
                client.encrypt().await;
                if client.rng.one_in(4) {
                    sleep(client.rng.up_to(Duration::from_millis(400))).await;
                }
            }
        });
    }

    fn decrypt(&mut self, one: usize) {
        self.call(one, |client| async move {
            for _ in 0..10 {
                if let Some(letter) = client.letter() {
                    client.decrypt(&letter).await;
                }
            }
        });
    }

    fn rewrap(&mut self, one: usize) {
        self.call(one, |client| async move {
            for _ in 0..5 {
                client.rewrap().await;
            }
        });
    }

    fn rotate(&mut self, one: usize) {
        self.call(one, |client| async move { client.rotate().await });
    }

    fn change_state(&mut self, one: usize) {
        let (id, change) = {
            let book = self.hub.book();
            let states: Vec<_> = book
                .keks
                .iter()
                .filter_map(|(id, page)| Some((*id, page.kek.as_ref()?.state)))
                .filter(|(_, state)| *state != State::Destroyed)
                .collect();
            if states.is_empty() {
                return;
            }
            let (id, state) = states[self.rng.index(states.len())];
            let change = match (state, self.rng.below(3)) {
                (State::Disabled, 0) => Change::Enable,
                (State::Disabled, _) => Change::Destroy,
                _ => Change::Disable,
            };
            (id, change)
        };
        self.call(one, move |client| async move { client.change(id, change).await });
    }

    fn change_settings(&mut self, one: usize) {
        let max_uses = 40 + self.rng.below(400);
        let settings = ChainSettings {
            rotate_after_uses: Some(max_uses / 2),
            max_uses: Some(max_uses),
            inline: Some(max_uses.is_multiple_of(3)),
            ..ChainSettings::default()
        };
        self.call(one, move |client| async move {
            let changed = client.service.put_chain(DEFAULT_CHAIN, settings).await;
            client.judge("limits", changed, &[Kind::Conflict, Kind::StoreUnavailable]);
        });
    }
}
