//! The status page of a service as HTML: one style block, no script, nothing from elsewhere.
//!
//! It knows the structure of the status alone. Every text is escaped by `maud`.

use maud::{Markup, html};

use crate::status::{Finding, Level, Savings, Status, count, duration, money};

use super::chains;
use super::chart::sparkline;
use super::components::{callers, components, replicas, roots};
use super::layout::{REFRESH, document, sentence, time};

/// The page of the service.
pub(super) fn overview(status: &Status, refreshes: bool) -> Markup {
    let (class, word) = match &*status.status {
        "ok" => ("ok", "works"),
        "degraded" => ("warn", "works, and needs attention"),
        _ => ("bad", "is unavailable"),
    };
    let body = html! {
        header {
            h1 { "kms-proxy" }
            p.state.(class) { "This replica " (word) }
            @if !status.is_well() { p.lead { (status.summary) } }
            p.soft {
                "Version " (status.version) ", up for " (duration(status.uptime_seconds))
                ". As of " (time(&status.time)) ". "
                @if refreshes {
                    a href="status?still" { "Stop refreshing" }
                } @else {
                    a href="status" { "Refresh every " (REFRESH) " seconds" }
                }
                ", " a href="status.json" { "the same as JSON" }
            }
            (sections(status))
        }
        main {
            (attention(status))
            @if let Some(savings) = &status.savings { (saved(savings, status.uptime_seconds)) }
            (all_chains(status))
            (roots(&status.roots))
            (components(status))
            (replicas(&status.replicas))
            (callers(&status.callers))
        }
    };
    document(&format!("kms-proxy: {}", status.status), refreshes, &body)
}

/// Links to the parts of a long page.
fn sections(status: &Status) -> Markup {
    let parts = [
        ("chains", "Chains", true),
        ("roots", "Roots", !status.roots.is_empty()),
        ("components", "Store", status.store.is_some()),
        ("replicas", "Other replicas", !status.replicas.is_empty()),
        ("callers", "Callers", !status.callers.is_empty()),
    ];
    html! {
        nav aria-label="Sections" {
            @for (id, name, _) in parts.iter().filter(|(_, _, is_there)| *is_there) {
                a href={ "#" (id) } { (name) } " "
            }
        }
    }
}

fn attention(status: &Status) -> Markup {
    html! {
        section {
            h2 { "What needs attention" }
            @if status.is_well() { p.ok { "All is well." } }
            @for finding in &status.findings { (one_finding(finding)) }
        }
    }
}

fn one_finding(finding: &Finding) -> Markup {
    let (class, word) = match finding.level {
        Level::Unavailable => ("bad", "Unavailable"),
        Level::Degraded => ("warn", "Degraded"),
        Level::Note => ("soft", "Note"),
    };
    html! {
        article.note.(class) {
            h3 { span.(class) { (word) } ": " (finding.about) }
            p { (sentence(&finding.detail)) }
            @if !finding.effect.is_empty() { p.lead { (finding.effect) } }
            p {
                (finding.advice) " "
                a href=(finding.link) { "More about " (finding.about) }
            }
            @for command in &finding.commands { p { code { (command) } } }
        }
    }
}

fn saved(savings: &Savings, uptime: u64) -> Markup {
    html! {
        section {
            h2 { "What was saved" }
            div.saved {
                dl.numbers {
                    div { dt { "Root calls made" } dd { (count(savings.root_calls)) } }
                    div { dt { "Root calls avoided" } dd { (count(savings.avoided)) } }
                    div { dt { "Saved" } dd { (money(savings.saved, &savings.currency)) } }
                }
                div.past { (sparkline(&savings.avoided_per_minute, "Avoided root calls")) }
            }
            p.soft {
                "Since this replica started, " (duration(uptime)) " ago, at "
                (savings.currency) " " (savings.price_per_10000) " for 10,000 root calls."
            }
        }
    }
}

fn all_chains(status: &Status) -> Markup {
    html! {
        section id="chains" {
            h2 { "Chains" }
            @for chain in &status.chains { (chains::row(chain, &status.time)) }
            @if let Some(next) = &status.next {
                p { a href={ "status?still&after=" (next) } { "More chains" } }
            }
        }
    }
}
