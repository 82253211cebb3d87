//! Simulates many replicas on one etcd cluster, to see what they cost it and the roots: the real
//! code of reservations and rotations on a simulated clock, cluster, network and root. The
//! simulated time advances only when every task waits.
//!
//! `make test` runs a small scenario and checks its bounds. `make scaling` runs the scenarios of
//! docs/scaling.md; the variables `KMS_PROXY_SCALING_*` in [`Scenario::of_environment`] make
//! others.

use std::time::Duration;

use super::*;
use crate::random::seeded;

mod cluster;
mod connection;
mod figures;
mod kms;
mod replica;

use super::simulation::{Rng, variable};
use cluster::Cluster;
use figures::Figures;
use replica::{Region, Replica};

/// Replicas start in this time, and are measured after it.
const START: Duration = Duration::from_secs(30);
const WARM: usize = 90;
/// How long a rotation and a restart are watched.
const WATCHED: Duration = Duration::from_secs(60);

/// What is simulated.
struct Scenario {
    replicas: u64,
    chains: u64,
    /// Encrypts in an hour, by all replicas together.
    per_hour: u64,
    limits: Limits,
    /// How long the load is measured before anything else happens.
    steady: Duration,
    /// How long the replicas are watched after all of them restarted at the same time, beyond the
    /// first minute; `None` without a restart.
    after_restart: Option<Duration>,
    /// How long a watch collects the changes of counters.
    collected_for: Duration,
}

impl Scenario {
    /// A small one, changed by the environment.
    fn of_environment() -> Self {
        let of =
            |name: &str, default| variable(&format!("KMS_PROXY_SCALING_{name}")).unwrap_or(default);
        let replicas = of("REPLICAS", 50);
        let rotate_after_uses = of("ROTATE_AFTER", 1 << 21);
        Self {
            replicas,
            chains: of("CHAINS", 1),
            // What a replica does of 10^9 an hour by 1,000 replicas.
            per_hour: of("PER_HOUR", replicas * 1_000_000),
            limits: Limits {
                rotate_after_uses,
                max_uses: rotate_after_uses * 2,
                ..Limits::default()
            },
            steady: Duration::from_secs(of("SECONDS", 480)),
            after_restart: Some(of("AFTER", 0))
                .filter(|_| of("RESTART", 1) == 1)
                .map(Duration::from_secs),
            collected_for: Duration::from_millis(of("COLLECTED_MS", 100)),
        }
    }

    /// Runs it on this thread.
    fn run(&self) -> Figures {
        seeded::seed(variable("KMS_PROXY_SCALING_SEED").unwrap_or(1));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(self.simulate())
    }

    async fn simulate(&self) -> Figures {
        let rng = Rng::new(variable("KMS_PROXY_SCALING_SEED").unwrap_or(1));
        let cluster = Cluster::new(self.collected_for);
        let more = (1..self.chains).map(|number| format!("chain-{number}"));
        let names = std::iter::once(DEFAULT_CHAIN.to_owned()).chain(more);
        let chains: Vec<_> = names.map(|name| ChainName::new(&name).unwrap()).collect();
        #[expect(clippy::cast_precision_loss, reason = "rates")]
        let rate = self.per_hour as f64 / 3600.0 / self.replicas as f64;
        let region = Region::new(&cluster, (chains, self.limits), rate, rng);
        let mut replicas: Vec<_> =
            (0..self.replicas).map(|_| Replica::start(&region, START)).collect();
        tokio::time::sleep(Duration::from_secs(WARM as u64)).await;
        let mut figures = Figures::default();
        region.look_again();
        let _ = cluster.longest_queue();
        tokio::time::sleep(self.steady).await;
        let end = cluster.second();
        figures.steady.note(&cluster, &region, (WARM, end));

        // A rotation by hand is what a rotation by uses or by age is, but for its time.
        let service = replicas.first().and_then(Replica::service).unwrap();
        service.rotate(None).await.unwrap();
        tokio::time::sleep(WATCHED).await;
        figures.rotation.note(&cluster, &region, (end, cluster.second()));

        if let Some(after) = self.after_restart {
            let (began, start) = (tokio::time::Instant::now(), cluster.second());
            for replica in &mut replicas {
                replica.replace(Duration::from_secs(1));
            }
            tokio::time::sleep(WATCHED).await;
            let mut first: Vec<_> =
                region.seen().first.iter().map(|at| at.duration_since(began)).collect();
            first.sort();
            let all = usize::try_from(self.replicas * self.chains).unwrap();
            figures.recovered(&first, all);
            figures.restart.note(&cluster, &region, (start, cluster.second()));
            let start = cluster.second();
            tokio::time::sleep(after).await;
            figures.later.note(&cluster, &region, (start, cluster.second()));
        }
        figures.check(&cluster, &region).await;
        figures
    }
}

#[expect(clippy::disallowed_methods, reason = "only tests read it")]
fn path(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

#[test]
fn many_replicas_share_one_cluster() {
    let scenario = Scenario::of_environment();
    let began = std::time::Instant::now();
    let figures = scenario.run();
    figures.print(&scenario, began.elapsed());
    // For the benchmark with real replicas.
    if let Some(path) = path("KMS_PROXY_SCALING_FILE") {
        std::fs::write(path, figures.to_json().to_string()).unwrap();
    }
    assert_eq!(figures.over, 0, "uses beyond the limit");
    figures.check_bounds();
}
