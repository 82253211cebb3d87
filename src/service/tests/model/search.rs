//! The searches of the whole protocol, and their bounds.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model as _};

use super::actions::Action;
use super::*;

/// Replicas that crash and lose answers, on one history of the store.
pub(super) const REPLICAS: Protocol = Protocol {
    replicas: 2,
    keks: 2,
    crashes: 1,
    losses: 1,
    late: true,
    restores: 0,
    wipes: false,
    archive: true,
    reports: false,
    claims: true,
    takeovers: false,
    reads_apart: false,
    repeats: false,
    detects: false,
    is_symmetric: true,
    fault: None,
};

/// Replicas on a store of which an old copy is restored.
pub(super) const RESTORES: Protocol =
    Protocol { crashes: 0, losses: 0, restores: 1, claims: false, detects: true, ..REPLICAS };

/// What a search found.
pub(super) struct Found {
    /// The promises that do not hold, with a history that breaks each.
    pub(super) broken: BTreeMap<&'static str, Vec<Action>>,
    /// What never happens.
    pub(super) missing: Vec<&'static str>,
}

/// Searches all states of `protocol`, depth first: that takes less memory.
fn search_all(name: &str, protocol: Protocol) -> Found {
    let began = Instant::now();
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).threads(2);
    report(name, checker.spawn_dfs().join(), began)
}

/// Searches the shortest history that breaks a promise. One thread always finds the same.
pub(super) fn search_shortest(name: &str, protocol: Protocol) -> Found {
    let began = Instant::now();
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures);
    report(name, checker.spawn_bfs().join(), began)
}

fn report(name: &str, checker: impl Checker<Protocol>, began: Instant) -> Found {
    let mut found = Found { broken: BTreeMap::new(), missing: Vec::new() };
    for property in checker.model().properties() {
        let path = checker.discovery(property.name);
        match (property.expectation, path) {
            (Expectation::Sometimes, None) => found.missing.push(property.name),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(path)) => _ = found.broken.insert(property.name, path.into_actions()),
        }
    }
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    let (depth, took) = (checker.max_depth(), began.elapsed().as_secs_f64());
    let mut lines =
        format!("model: {name}: {states} states, {steps} steps, depth {depth}, {took:.1} s\n");
    for (name, history) in &found.broken {
        lines.push_str(&format!("  broken: {name}\n"));
        history.iter().for_each(|action| lines.push_str(&format!("    {action:?}\n")));
    }
    // The output of a macro is shown only if the test fails.
    let _ = std::io::stderr().write_all(lines.as_bytes());
    found
}

/// Nothing breaks a promise, and everything happens that may.
#[track_caller]
fn holds(name: &str, protocol: Protocol) {
    let found = search_all(name, protocol);
    assert!(found.broken.is_empty(), "{:#?}", found.broken);
    assert!(found.missing.is_empty(), "{:?} never happens", found.missing);
}

/// The searches of `make model`: minutes. The others take seconds.
fn is_full() -> bool {
    variable("KMS_PROXY_MODEL_FULL").is_some()
}

#[test]
fn replicas_that_crash_and_lose_answers_keep_every_promise() {
    holds("replicas", REPLICAS);
    if is_full() {
        let three = Protocol { replicas: 3, crashes: 2, losses: 2, ..REPLICAS };
        holds("three replicas", three);
        holds(
            "three replicas whose claims expire",
            Protocol { takeovers: true, losses: 1, ..three },
        );
    }
}

#[test]
fn no_process_sees_a_rollback_that_did_not_happen() {
    let detects = Protocol { detects: true, ..REPLICAS };
    holds("detectors", Protocol { reads_apart: true, losses: 0, ..detects });
    if is_full() {
        holds("detectors and lost answers", Protocol { reads_apart: true, ..detects });
        holds("three detectors", Protocol { replicas: 3, ..detects });
    }
}

#[test]
fn a_restore_of_an_old_copy_breaks_no_promise() {
    holds("restores", RESTORES);
    holds("restores without an archive", Protocol { archive: false, ..RESTORES });
    if is_full() {
        holds("restores, some of an empty store", Protocol { wipes: true, ..RESTORES });
        holds("restores that the store reports", Protocol { reports: true, ..RESTORES });
        holds("restores and reads apart", Protocol { reads_apart: true, ..RESTORES });
        holds("restores and claims", Protocol { claims: true, ..RESTORES });
        holds("restores and lost answers", Protocol { losses: 1, ..RESTORES });
        holds("restores and three replicas", Protocol { replicas: 3, ..RESTORES });
        holds("restores and crashes", Protocol { crashes: 2, ..RESTORES });
        let one = Protocol { crashes: 1, losses: 1, ..RESTORES };
        holds("restores, a crash and a lost answer", one);
    }
}
