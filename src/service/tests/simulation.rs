//! Simulates the protocol of chains with the real code: processes on one store lose responses, lose
//! their connections, crash, and lose access to their roots. The simulated time advances only when
//! every task waits.
//!
//! A seed determines a run. `KMS_PROXY_SIM_SEED=n` runs one seed and prints its events,
//! `KMS_PROXY_SIM_SEEDS=n` runs the first n seeds; `make soak` runs thousands. The iteration order
//! of hash maps is not reproduced: the order of the KEKs of one read or one repair.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::archive::{OnFailure, Policy, Require};
use crate::random::seeded;
use crate::store::record::Limits;

mod actions;
mod archive;
mod checks;
mod client;
mod ending;
mod hub;
pub(super) mod process;
mod store;
mod watch;

/// The number of seeds in `make test`: a few seconds.
const SEEDS: u64 = 300;

/// A pseudorandom generator.
#[derive(Clone)]
pub(super) struct Rng(Arc<AtomicU64>);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// An independent generator.
    pub(super) fn fork(&self) -> Self {
        Self::new(self.next())
    }

    fn next(&self) -> u64 {
        let mut state = self.0.load(Relaxed);
        let next = seeded::split_mix(&mut state);
        self.0.store(state, Relaxed);
        next
    }

    pub(super) fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    fn index(&self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn per_mille(&self, n: u64) -> bool {
        self.below(1_000) < n
    }

    pub(super) fn up_to(&self, most: Duration) -> Duration {
        Duration::from_millis(self.below(u64::try_from(most.as_millis()).unwrap() + 1))
    }
}

/// The faults of one run, and how often they occur.
struct Conditions {
    is_calm: bool,
    restores: bool,
    /// Whether the store reports restores, as etcd does: only if its revision went back, or all
    /// of them if this is `true`.
    reports: Option<bool>,
    /// The longest delay of a request to the store, or of its response.
    delay: Duration,
    /// Of 1,000 calls: how many are not sent, and how many lose their response.
    refused: u64,
    lost: u64,
    reads_apart: bool,
    watch_delay: Duration,
    root_delay: Duration,
    hangs: u64,
    roots: &'static [&'static str],
    limits: Limits,
    processes: u64,
    steps: u64,
    /// The number of archives, and their policy.
    archives: usize,
    policy: Policy,
}

impl Conditions {
    fn of(seed: u64, rng: &Rng) -> Self {
        let class = seed % 8;
        let is_calm = class == 0;
        let calm = usize::from(is_calm);
        let faults = if is_calm { 0 } else { rng.below(4) };
        let max_uses = 40 + rng.below(400);
        let archives = [0, 1, 2][rng.index(3)];
        let policy = Policy {
            require: [Require::All, Require::Any][rng.index(2)],
            on_failure: if rng.one_in(8) { OnFailure::Continue } else { OnFailure::Wait },
        };
        Self {
            archives,
            policy,
            is_calm,
            restores: class >= 6,
            reports: [None, Some(false), Some(true)][rng.index(3)],
            // Without faults, no claim expires.
            delay: Duration::from_millis([20, 200, 1_000, 2_500][rng.index(4 - 2 * calm)]),
            refused: faults * 10,
            lost: faults * 25,
            reads_apart: rng.one_in(2),
            watch_delay: Duration::from_secs([0, 1, 5, 15][rng.index(4)]),
            root_delay: Duration::from_millis([10, 500, 3_000][rng.index(3 - calm)]),
            hangs: faults * 10,
            roots: [&["main"][..], &["main", "spare"]][rng.index(2)],
            limits: Limits {
                rotate_after_uses: max_uses / 4 + rng.below(max_uses / 2) + 1,
                max_uses,
                rotate_after_age: [90, 600, 86_400][rng.index(3)],
            },
            processes: 1 + rng.below(5),
            steps: 40 + rng.below(80),
        }
    }
}

/// How often each event occurred.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    steps: u64,
    envelopes: u64,
    decrypts: u64,
    keks: u64,
    wasted: u64,
    lost: u64,
    crashes: u64,
    restores: u64,
    /// Reports of restores by the store.
    reported: u64,
    /// Processes whose roots were configured wrongly.
    mistakes: u64,
    /// Writes refused because the revision number belongs to another history.
    confused: u64,
    failures: u64,
    /// KEK objects written to archives.
    archived: u64,
    /// Restores of an empty copy.
    wipes: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.steps += more.steps;
        self.envelopes += more.envelopes;
        self.decrypts += more.decrypts;
        self.keks += more.keks;
        self.wasted += more.wasted;
        self.lost += more.lost;
        self.crashes += more.crashes;
        self.restores += more.restores;
        self.reported += more.reported;
        self.mistakes += more.mistakes;
        self.confused += more.confused;
        self.failures += more.failures;
        self.archived += more.archived;
        self.wipes += more.wipes;
    }
}

/// Runs one seed on this thread.
fn run(seed: u64, log: bool) -> Result<(Counts, u64), String> {
    seeded::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let ran = std::panic::catch_unwind(|| runtime.block_on(actions::simulate(seed, log)));
    let again = format!("run it again with KMS_PROXY_SIM_SEED={seed} and --nocapture");
    match ran {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(broken)) => Err(format!("seed {seed}: {broken}\n{again}")),
        Err(_) => Err(format!("seed {seed}: a panic\n{again}")),
    }
}

#[expect(clippy::disallowed_methods, reason = "only tests read it")]
pub(super) fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_promises_hold_in_every_simulated_history() {
    if let Some(seed) = variable("KMS_PROXY_SIM_SEED") {
        let (counts, trace) = run(seed, true).unwrap();
        println!("{counts:?}, trace {trace:016x}");
        return;
    }
    let seeds = variable("KMS_PROXY_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, total) = (AtomicU64::new(0), Mutex::new((Counts::default(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds || total.lock().unwrap().1.len() > 40 {
                        return;
                    }
                    let ran = run(seed, false);
                    let mut total = total.lock().unwrap();
                    match ran {
                        Ok((counts, _)) => total.0 += counts,
                        Err(broken) => total.1.push(broken),
                    }
                }
            });
        }
    });
    let (counts, broken) = total.into_inner().unwrap();
    // The output of a macro is shown only if the test fails.
    let _ = writeln!(std::io::stderr(), "simulation: {seeds} seeds, {counts:?}");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
