//! Chains on the status pages: a row for each, and the page of one chain with its KEKs.

use maud::{Markup, html};

use crate::service::KekInfo;
use crate::status::{Chain, count, duration, rate};
use crate::timestamp::rfc3339;

use super::chart::{bar, sparkline};
use super::layout::{document, table, time};

/// A chain in the list of all.
pub(super) fn row(chain: &Chain, now: &str) -> Markup {
    let name = &chain.chain;
    html! {
        article.chain {
            div {
                h3 { a href={ "status/chains/" (name) } { (name) } }
                (keks(chain))
            }
            @if chain.primary.is_none() {
                div.two { (budget(chain)) }
            } @else {
                div { (budget(chain)) }
                div { (next_rotation(chain)) }
            }
            div { (calls(chain)) }
            (outage(chain, now))
            (errors(chain))
        }
    }
}

/// What works in an outage.
fn outage(chain: &Chain, now: &str) -> Markup {
    html! {
        @if let Some(outage) = &chain.outage {
            p.(if outage.ended_encrypts() { "bad" } else { "warn" }) { (outage.text(now)) }
        }
    }
}

/// The uses of the primary, as a bar and as text.
fn budget(chain: &Chain) -> Markup {
    if chain.primary.is_none() {
        return html! { p.soft { "No KEK yet: the first use makes one" } };
    }
    let (used, after, most) = (chain.uses_reserved, chain.rotate_after_uses, chain.max_uses);
    let text = format!("{} of {} uses", count(used), count(after));
    html! {
        (bar(used, after, most, &format!("{text}, {} at most", count(most))))
        p { (text) }
    }
}

fn next_rotation(chain: &Chain) -> Markup {
    let standby = match &*chain.standby_state {
        "ready" => "next KEK ready",
        "not_archived" => "next KEK not archived yet",
        "not_loaded" => "next KEK not unwrapped yet",
        _ => "next KEK not made yet",
    };
    let Some(next) = &chain.next_rotation else { return html! {} };
    html! {
        p {
            @if next.in_seconds == 0 {
                "Rotation due"
            } @else {
                "Next rotation in " time datetime=(next.at) { (duration(next.in_seconds)) }
            }
            " by " (next.reason)
        }
        p.soft {
            (standby)
            @if let Some(age) = chain.age_seconds {
                "; age " (duration(age)) " of " (duration(chain.rotate_after_age))
            }
        }
    }
}

fn calls(chain: &Chain) -> Markup {
    html! {
        p {
            (rate(chain.encrypts_per_second)) " encrypts/s, "
            (rate(chain.decrypts_per_second)) " decrypts/s"
        }
        p.soft {
            "Root calls: " (count(chain.root_calls)) " made, " (count(chain.avoided)) " avoided"
        }
    }
}

fn keks(chain: &Chain) -> Markup {
    let Some(keks) = &chain.keks_by_state else { return html! {} };
    let states = keks.states().into_iter().filter(|(_, number)| *number > 0);
    let states: Vec<_> = states.map(|(state, number)| format!("{number} {state}")).collect();
    html! {
        @if !states.is_empty() {
            p.soft {
                "KEKs: " (states.join(", ")) @if keks.more { " and more" }
                @if keks.one_root > 0 { "; " (keks.one_root) " under one root" }
                @if keks.local_only > 0 { ", " (keks.local_only) " under a local one" }
            }
        }
    }
}

fn errors(chain: &Chain) -> Markup {
    let errors = chain.errors.iter().map(|(code, number)| format!("{number} {code}"));
    let errors: Vec<_> = errors.collect();
    html! {
        @if !errors.is_empty() {
            p.warn { "Errors in the last hour: " (errors.join(", ")) }
        }
    }
}

/// The page of a chain at `now`, with a part of its KEKs.
pub(super) fn page(chain: &Chain, now: &str, keks_of: &[KekInfo], next: Option<&str>) -> Markup {
    let name = &chain.chain;
    let header = [
        "KEK",
        "State",
        "Created",
        "Promoted",
        "Disabled",
        "Uses",
        "Last encrypt",
        "Last decrypt",
        "Roots",
        "Exposed",
    ];
    let at =
        |unix: Option<u64>| html! { @match unix { None => "-", Some(at) => (time(&rfc3339(at))) } };
    let row = |kek: &KekInfo| {
        let [encrypt, decrypt] = kek.last_used_text();
        vec![
            html! { code { (kek.kek_id) } },
            html! { (kek.state.as_str()) },
            at(Some(kek.created_at)),
            at(kek.promoted_at),
            at(kek.disabled_at),
            html! { (count(kek.uses_reserved)) },
            html! { (encrypt) },
            html! { (decrypt) },
            html! { (kek.roots.join(", ")) },
            html! { @if kek.exposed { span.warn { "yes" } } @else { "no" } },
        ]
    };
    let body = html! {
        header {
            h1 { "Chain " (name) }
            nav aria-label="Pages" { a href="../../status" { "All chains" } }
            p.soft {
                (chain.suite) @if chain.inline { ", inline" } ", rotated after "
                (count(chain.rotate_after_uses)) " uses (" (count(chain.max_uses))
                " at most) or " (duration(chain.rotate_after_age))
            }
        }
        main {
            section {
                h2 { "Now" }
                div.saved {
                    div.past { (budget(chain)) (next_rotation(chain)) (calls(chain)) }
                    div.past { (sparkline(&chain.calls_per_minute, "Calls on data")) }
                }
                (outage(chain, now))
                (errors(chain))
            }
            section {
                h2 { "KEKs" }
                (keks(chain))
                (table("KEKs", &header, keks_of.iter().map(row)))
                @if let Some(next) = next {
                    p { a href={ (name) "?after=" (next) } { "More KEKs" } }
                }
                p.soft {
                    "Last encrypt and decrypt: the day in UTC, by any replica. "
                    "Exposed: a local root once wrapped it. The same list: "
                    code { "kms-proxy kek list --chain " (name) }
                }
            }
        }
    };
    document(&format!("kms-proxy: {name}"), false, &body)
}
