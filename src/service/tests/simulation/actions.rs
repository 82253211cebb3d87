//! The steps of a run: calls of clients, actions of operators, and faults.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::{Ciphertext, Client};
use super::hub::Hub;
use super::process::{Mistake, Process, Starting};
use super::{Conditions, Counts, Rng};
use crate::id::KekId;
use crate::service::types::{ChainSettings, Change};
use crate::service::{DEFAULT_CHAIN, Health, Kind};
use crate::store::memory::{self, Snapshot};
use crate::store::record::State;

pub(super) struct Sim {
    pub(super) hub: Arc<Hub>,
    pub(super) rng: Rng,
    pub(super) processes: Vec<Process>,
    pub(super) starting: Vec<Starting>,
    pub(super) ciphertexts: Arc<Mutex<Vec<Ciphertext>>>,
    old: Option<Snapshot>,
    /// KEKs that must survive a restore, since a running process has their records.
    pub(super) kept: BTreeSet<KekId>,
}

/// Runs a seed. Returns the counts and the trace.
///
/// # Errors
/// The violated invariants.
pub(super) async fn simulate(seed: u64, log: bool) -> Result<(Counts, u64), String> {
    let rng = Rng::new(seed ^ 0x5eed);
    let conditions = Conditions::of(seed, &rng);
    let hub = Arc::new(Hub::new(conditions, log));
    let mut sim = Sim {
        hub,
        rng,
        processes: Vec::new(),
        starting: Vec::new(),
        ciphertexts: Arc::default(),
        old: None,
        kept: BTreeSet::new(),
    };
    sim.trouble().await;
    sim.correction().await;
    sim.recovery().await;
    sim.quiet().await;
    sim.ending().await;
    let mut checker = sim.hub.checker();
    if let Some(log) = checker.log.take() {
        for line in log {
            println!("{line}");
        }
    }
    if checker.broken.is_empty() {
        Ok((checker.counts, checker.trace))
    } else {
        checker.broken.truncate(6);
        Err(checker.broken.join("\n"))
    }
}

impl Sim {
    pub(super) fn is_broken(&self) -> bool {
        !self.hub.checker().broken.is_empty()
    }

    pub(super) fn broken(&self, what: String) {
        let at = self.hub.now().as_secs_f64();
        self.hub.checker().broken.push(format!("at {at:.3} s: {what}"));
    }

    async fn trouble(&mut self) {
        for _ in 0..self.hub.conditions.processes {
            self.starting.push(Starting::new(&self.hub, self.rng.fork()));
        }
        for _ in 0..self.hub.conditions.steps {
            self.hub.checker().counts.steps += 1;
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

    /// Adds the processes that have started.
    pub(super) async fn receive(&mut self) {
        let (over, starting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.starting).into_iter().partition(Starting::is_over);
        self.starting = starting;
        for starting in over {
            let mistake = starting.mistake;
            match starting.finish().await {
                Ok(process) => self.processes.push(process),
                Err(error) => {
                    if error.kind() != Kind::StoreUnavailable {
                        self.broken(format!("a start failed: {error}"));
                    }
                    self.starting.push(Starting::with(&self.hub, self.rng.fork(), mistake));
                }
            }
        }
    }

    async fn step(&mut self) {
        let (rng, conditions) = (self.rng.clone(), &self.hub.conditions);
        let one = rng.index(self.processes.len());
        let faults = if conditions.is_calm { 80 } else { 118 };
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
            95..100 if !conditions.restores || self.hub.checker().history == 0 => self.crash(one),
            100..102 if self.processes.len() < 6 => {
                self.starting.push(Starting::new(&self.hub, rng.fork()));
            }
            // A store without KEKs accepts any roots from the first process.
            102..105 if conditions.restores && self.has_keks() => {
                self.old = Some(self.hub.store.snapshot());
            }
            105..110 if conditions.restores => self.restore().await,
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
        self.starting.push(Starting::with(&self.hub, self.rng.fork(), mistake));
    }

    /// Whether the chain has a KEK that a root must open.
    fn has_keks(&self) -> bool {
        let checker = self.hub.checker();
        checker
            .keks
            .values()
            .any(|observed| observed.kek.as_ref().is_some_and(|kek| !kek.wraps.is_empty()))
    }

    /// Whether the chain has a KEK that encrypts, which the archives hold.
    fn has_primary(&self) -> bool {
        self.hub.checker().head.as_ref().is_some_and(|head| head.primary.is_some())
    }

    /// An operator starts one more process, with a mistake in its configuration.
    fn misconfigure(&mut self) {
        let wrong = self.processes.iter().filter(|process| process.mistake.is_some()).count()
            + self.starting.iter().filter(|starting| starting.mistake.is_some()).count();
        if wrong >= 2 {
            return;
        }
        let mistakes = [Mistake::AllWrong, Mistake::FirstWrong, Mistake::Swapped];
        let mistake = mistakes[self.rng.index(mistakes.len())];
        self.hub.checker().counts.mistakes += 1;
        self.starting.push(Starting::with(&self.hub, self.rng.fork(), Some(mistake)));
    }

    /// The operator corrects the configuration of every process. A process with a mistake must not
    /// report `ok`.
    async fn correction(&mut self) {
        if self.is_broken() {
            return;
        }
        for process in &self.processes {
            process.mend();
        }
        // A process checks its roots every 5 s, and waits up to 15 s for a call.
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
            self.starting.push(Starting::new(&self.hub, self.rng.fork()));
        }
        let (wrong, right): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.starting).into_iter().partition(|it| it.mistake.is_some());
        self.starting = right;
        for starting in wrong {
            starting.abandon();
            self.starting.push(Starting::new(&self.hub, self.rng.fork()));
        }
    }

    /// An operator replaces the store by an old copy.
    async fn restore(&mut self) {
        let wipes = self.hub.is_guaranteed() && self.has_primary() && self.rng.one_in(2);
        let old = self.old.take();
        let Some(old) = (if wipes { Some(memory::Store::new().snapshot()) } else { old }) else {
            return;
        };
        self.hub.checker().counts.wipes += u64::from(wipes);
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
            let checker = self.hub.checker();
            let kept = held.into_iter().filter(|id| {
                let kek = checker.keks.get(id).and_then(|observed| observed.kek.as_ref());
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
            ciphertexts: Arc::clone(&self.ciphertexts),
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
                if let Some(ciphertext) = client.ciphertext() {
                    client.decrypt(&ciphertext).await;
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
            let checker = self.hub.checker();
            let states: Vec<_> = checker
                .keks
                .iter()
                .filter_map(|(id, observed)| Some((*id, observed.kek.as_ref()?.state)))
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
            client.checked("limits", changed, &[Kind::Conflict, Kind::StoreUnavailable]);
        });
    }
}
