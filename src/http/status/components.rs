//! The tables of the status page below the chains: roots, store, archives, audit log, certificate,
//! replicas and callers. It knows the structure of the status alone.

use maud::{Markup, html};

use crate::status::{Caller, Failure, Replica, Root, Status, count, duration, rate};

use super::layout::{table, time};

/// Every root.
pub(super) fn roots(roots: &[Root]) -> Markup {
    let header = ["Root", "Kind", "State", "Latency", "Calls", "Missing wraps", "Last outage"];
    let row = |root: &Root| {
        let (class, word) = match &*root.state {
            "ok" => ("ok", "answers"),
            "away" => ("bad", "away"),
            _ => ("bad", "has another key"),
        };
        vec![
            html! { (root.name) },
            html! { (root.kind) },
            html! {
                span.(class) { (word) } " since " (time(&root.since))
                @if let Some(left) = root.token_expires_in_seconds {
                    "; its token expires in " (duration(left))
                }
            },
            latency(root.latency_us),
            html! { (count(root.calls)) ", " (count(root.failed_calls)) " failed" },
            html! { (count(root.missing_wraps)) },
            outage(root.last_error.as_ref()),
        ]
    };
    html! {
        @if !roots.is_empty() {
            section id="roots" { h2 { "Roots" } (table("Roots", &header, roots.iter().map(row))) }
        }
    }
}

fn latency(us: Option<u64>) -> Markup {
    html! {
        @match us {
            None => "-",
            Some(us) if us < 10_000 => { (us / 1_000) "." (us % 1_000 / 100) " ms" }
            Some(us) => { (count(us / 1_000)) " ms" }
        }
    }
}

fn outage(failure: Option<&Failure>) -> Markup {
    html! {
        @match failure {
            None => "none",
            Some(Failure { detail, since, until }) => {
                (detail) ", from " (time(since))
                @if let Some(until) = until { " to " (time(until)) }
            }
        }
    }
}

/// Store, archives, audit log and certificate.
pub(super) fn components(status: &Status) -> Markup {
    let mut rows = Vec::new();
    if let Some(store) = &status.store {
        let backup = store.last_backup.as_ref();
        rows.push(vec![
            html! { "Store (" (store.kind) ")" },
            html! { (state(&store.state)) " since " (time(&store.since)) },
            html! {
                "latency " (latency(store.latency_us)) "; last backup "
                @match backup { None => "unknown", Some(at) => (time(at)) }
                "; outage: " (outage(store.last_error.as_ref()))
            },
        ]);
    }
    for archive in &status.archives {
        rows.push(vec![
            html! { "Archive " (archive.name) },
            html! {
                (state(&archive.state))
                @if let Some(since) = &archive.since { " since " (time(since)) }
            },
            html! {
                (count(archive.pending)) " records to write"
                @if archive.last_error.is_some() { "; " (outage(archive.last_error.as_ref())) }
            },
        ]);
    }
    if let Some(audit) = &status.audit {
        rows.push(vec![
            html! { "Audit log" },
            state(&audit.state),
            html! { @if let Some(detail) = &audit.detail { (detail) } },
        ]);
    }
    if let Some(certificate) = &status.certificate {
        let left = u64::try_from(certificate.expires_in_seconds);
        rows.push(vec![
            html! { "Certificate" },
            state(if certificate.warning.is_some() { "attention" } else { "ok" }),
            html! {
                @match left {
                    Ok(left) => { "expires in " (duration(left)) }
                    Err(_) => "has expired",
                }
                @if let Some(warning) = &certificate.warning { "; " (warning) }
            },
        ]);
    }
    html! {
        @if !rows.is_empty() {
            section id="components" {
                h2 { "Store, archives, audit log and certificate" }
                (table("Components", &["Part", "State", "Details"], rows.into_iter()))
            }
        }
    }
}

/// A state in words, in its colour.
fn state(state: &str) -> Markup {
    let (class, word) = match state {
        "ok" => ("ok", "ok"),
        "away" => ("bad", "away"),
        "refusing" => ("bad", "calls are refused"),
        "losing" => ("bad", "lines are lost"),
        "behind" => ("warn", "behind"),
        "not_compared" => ("warn", "not compared with the store yet"),
        _ => ("warn", "needs attention"),
    };
    html! { span.(class) { (word) } }
}

/// The other processes that use the store.
pub(super) fn replicas(replicas: &[Replica]) -> Markup {
    let row = |replica: &Replica| {
        vec![
            html! { code { (replica.id) } },
            html! { (replica.roots.join(", ")) },
            html! {
                @if replica.differing.is_empty() { "none" } @else {
                    span.bad { (replica.differing.join(", ")) }
                }
            },
            html! { (duration(replica.reported_seconds_ago)) " ago" },
        ]
    };
    let header = ["Process", "Roots", "With another key", "Reported"];
    html! {
        @if !replicas.is_empty() {
            section id="replicas" {
                h2 { "Other replicas that use the store" }
                (table("Replicas", &header, replicas.iter().map(row)))
                p.soft {
                    "A replica reports every 5 minutes. One that was killed is shown for 15 \
                    minutes."
                }
            }
        }
    }
}

/// Configured clients.
pub(super) fn callers(callers: &[Caller]) -> Markup {
    let row = |caller: &Caller| {
        let refused = caller.refused.iter().map(|(why, number)| format!("{number} {why}"));
        let refused: Vec<_> = refused.collect();
        vec![
            html! { (caller.client) },
            html! { (rate(caller.requests_per_second)) },
            html! { (count(caller.requests)) },
            html! {
                @if refused.is_empty() { "none" } @else { span.warn { (refused.join(", ")) } }
            },
        ]
    };
    let header = ["Client", "Requests/s", "Requests", "Refused"];
    html! {
        @if !callers.is_empty() {
            section id="callers" {
                h2 { "Callers" }
                (table("Callers", &header, callers.iter().map(row)))
            }
        }
    }
}
