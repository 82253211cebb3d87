//! What a simulated scenario measured, and how it is printed.

use std::io::Write as _;
use std::time::Duration;

use super::Scenario;
use super::cluster::{Cluster, Counts};
use super::replica::Region;
use crate::store::Store as _;
use crate::store::record::{self, Part, Record as _, Uses};

/// What happened in some seconds.
#[derive(Default)]
pub(super) struct Span {
    seconds: u64,
    all: Counts,
    /// The most of each count in one second.
    peak: Counts,
    longest_queue: Duration,
    steps: u64,
    waited: u64,
    longest_wait: Duration,
    failed: u64,
}

impl Span {
    /// Takes what happened from one second up to another.
    pub(super) fn note(
        &mut self,
        cluster: &Cluster,
        region: &Region,
        (start, end): (usize, usize),
    ) {
        let seen = region.look_again();
        for counts in &cluster.seconds(start, end) {
            self.all += counts;
            self.peak = self.peak.max(counts);
        }
        self.seconds = (end - start) as u64;
        self.longest_queue = cluster.longest_queue();
        (self.steps, self.waited, self.failed) = (seen.steps, seen.waited, seen.failed);
        self.longest_wait = seen.longest;
    }

    #[expect(clippy::cast_precision_loss, reason = "rates")]
    fn rate(&self, of: &dyn Fn(&Counts) -> u64) -> f64 {
        of(&self.all) as f64 / self.seconds as f64
    }
}

impl Counts {
    fn max(self, other: &Self) -> Self {
        Self {
            reads: self.reads.max(other.reads),
            entries: self.entries.max(other.entries),
            writes: self.writes.max(other.writes),
            conflicts: self.conflicts.max(other.conflicts),
            events: self.events.max(other.events),
            event_bytes: self.event_bytes.max(other.event_bytes),
            answer_bytes: self.answer_bytes.max(other.answer_bytes),
            blocks: self.blocks.max(other.blocks),
            wraps: self.wraps.max(other.wraps),
            unwraps: self.unwraps.max(other.unwraps),
            throttled: self.throttled.max(other.throttled),
            new_keks: self.new_keks.max(other.new_keks),
        }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) steady: Span,
    pub(super) rotation: Span,
    pub(super) restart: Span,
    pub(super) later: Span,
    /// After a restart: when half and all of the clients encrypted, and how many never did.
    half: Duration,
    last: Duration,
    missing: usize,
    spent: u64,
    reserved: u64,
    keks: u64,
    /// Uses beyond what was reserved, or beyond the limit.
    pub(super) over: u64,
}

impl Figures {
    pub(super) fn recovered(&mut self, first: &[Duration], all: usize) {
        self.half = first.get(first.len() / 2).copied().unwrap_or_default();
        self.last = first.last().copied().unwrap_or_default();
        self.missing = all - first.len();
    }

    /// Compares what was spent with what the store has as reserved.
    pub(super) async fn check(&mut self, cluster: &Cluster, region: &Region) {
        let entries = cluster.store.list(record::CHAINS, None, usize::MAX).await.unwrap();
        for entry in entries {
            let Some((chain, Part::Uses(id))) = record::parse_key(&entry.key) else { continue };
            let reserved = Uses::decode(&entry.key, &entry.value).unwrap().reserved;
            let spent = region.seen().spent.remove(&(chain, id)).unwrap_or_default();
            self.over += spent.saturating_sub(reserved);
            self.over += reserved.saturating_sub(region.limits.max_uses);
            self.spent += spent;
            self.reserved += reserved;
            self.keks += 1;
        }
        self.over += region.seen().spent.values().sum::<u64>();
    }

    /// Fails if what the store does for a block grows with the number of replicas, or if a client
    /// is refused.
    pub(super) fn check_bounds(&self) {
        let Counts { blocks, writes, conflicts, reads, .. } = self.steady.all;
        assert!(writes <= 2 * blocks, "{writes} writes for {blocks} blocks");
        assert!(conflicts <= 2 * blocks, "{conflicts} conflicts for {blocks} blocks");
        assert!(reads <= 10 * blocks, "{reads} reads for {blocks} blocks");
        assert_eq!((self.steady.failed, self.missing), (0, 0), "clients without an answer");
    }

    /// What the benchmark with real replicas compares: rates of the steady load.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let rate = |of: &dyn Fn(&Counts) -> u64| self.steady.rate(of);
        serde_json::json!({
            "reads": rate(&|it| it.reads),
            "transactions": rate(&|it| it.writes + it.conflicts),
            "writes": rate(&|it| it.writes),
            "blocks": rate(&|it| it.blocks),
            "events": rate(&|it| it.events),
            "sent": rate(&|it| it.event_bytes + it.answer_bytes),
            "wraps": rate(&|it| it.wraps),
            "unwraps": rate(&|it| it.unwraps),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "rates")]
    pub(super) fn print(&self, scenario: &Scenario, took: Duration) {
        let Scenario { replicas, chains, per_hour, limits, .. } = scenario;
        let mut lines = vec![
            format!(
                "{replicas} replicas, {chains} chains, {per_hour} encrypts an hour, rotation after \
                 {} uses; simulated in {:.1} s",
                limits.rotate_after_uses,
                took.as_secs_f64()
            ),
            format!(
                "spent {} of {} reserved uses ({:.3}) of {} KEKs",
                self.spent,
                self.reserved,
                self.spent as f64 / self.reserved as f64,
                self.keks
            ),
        ];
        for (name, span) in [
            ("steady", &self.steady),
            ("rotation", &self.rotation),
            ("restart", &self.restart),
            ("later", &self.later),
        ] {
            if span.seconds == 0 {
                continue;
            }
            let Span { seconds, peak, all, .. } = span;
            lines.push(format!("{name}, {seconds} s, each second (most):"));
            let mut row = |title: &str, of: &dyn Fn(&Counts) -> u64| {
                lines.push(format!("  {title:<18} {:>12.1} {:>12}", span.rate(of), of(peak)));
            };
            row("reads", &|it| it.reads);
            row("entries read", &|it| it.entries);
            row("writes", &|it| it.writes);
            row("conflicts", &|it| it.conflicts);
            row("watch events", &|it| it.events);
            row("watch bytes", &|it| it.event_bytes);
            row("answer bytes", &|it| it.answer_bytes);
            row("blocks", &|it| it.blocks);
            row("wraps", &|it| it.wraps);
            row("unwraps", &|it| it.unwraps);
            lines.push(format!(
                "  root calls {}, throttled {}, new KEKs {}; longest queue {} ms; of {} steps {} \
                 waited ({:.5}), {} ms at most; {} uses failed",
                all.wraps + all.unwraps,
                all.throttled,
                all.new_keks,
                span.longest_queue.as_millis(),
                span.steps,
                span.waited,
                span.waited as f64 / span.steps.max(1) as f64,
                span.longest_wait.as_millis(),
                span.failed
            ));
        }
        lines.push(format!(
            "after the restart half encrypt after {} ms, all after {} ms, {} not within a minute",
            self.half.as_millis(),
            self.last.as_millis(),
            self.missing
        ));
        // The output of a macro is shown only if the test fails.
        let _ = writeln!(std::io::stderr(), "scaling: {}", lines.join("\n"));
    }
}
