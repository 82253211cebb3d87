//! What an outage means for callers: what works, until when, and what fails; and the one sentence
//! that leads the page. It takes everything from the status.

use super::super::outage::is_over;
use super::super::text::count;
use super::super::{Chain, Level, Outage, Root, Status};
use super::kind;

/// Chains that are named; the others are counted.
const NAMED: usize = 3;

/// What works and what fails because of the check `about`; empty if that is not known.
pub(super) fn of(about: &str, status: &Status) -> String {
    match about.split_once(':') {
        None if about == "store" => of_store(status),
        Some(("root", name)) => of_root(name, status),
        _ => String::new(),
    }
}

/// What is most urgent, in a sentence.
pub(in crate::status) fn summary(status: &Status) -> String {
    if status.is_well() {
        return "All is well.".to_owned();
    }
    let urgent = status.findings.iter().filter(|finding| finding.level != Level::Note);
    let Some(first) = urgent.clone().next() else { return String::new() };
    let about = &first.about;
    let name = about.split_once(':').map_or("", |(_, name)| name);
    let root = status.roots.iter().find(|root| root.name == name);
    let away = status.store.as_ref().filter(|store| store.state == "away");
    let lead = match (kind(about), away, root) {
        ("store", Some(store), _) => format!("The store has been away since {}", store.since),
        ("root", _, Some(root)) if root.state == "away" => {
            let which = if are_all_away(&status.roots) { "No root answers: " } else { "" };
            format!("{which}root {name} has been away since {}", root.since)
        }
        ("root", _, Some(root)) if root.state == "wrong_key" => {
            format!("Root {name} does not open KEKs that name it")
        }
        ("root", ..) => format!("Root {name} needs attention"),
        ("archive", ..) => format!("Archive {name} is behind or away"),
        ("audit", ..) => "The audit log needs attention".to_owned(),
        ("chain", ..) => format!("Chain {name} needs attention"),
        ("service", ..) => format!("The service is {}", status.status),
        _ => format!("The check {about} needs attention"),
    };
    let mut chars = lead.chars();
    let lead: String = chars.next().iter().flat_map(|c| c.to_uppercase()).chain(chars).collect();
    match urgent.count() {
        1 => format!("{lead}."),
        more => format!("{lead}; {} more to look at.", more - 1),
    }
}

fn are_all_away(roots: &[Root]) -> bool {
    roots.iter().all(|root| root.state == "away")
}

fn of_store(status: &Status) -> String {
    let away = status.store.as_ref().filter(|store| store.state == "away");
    let Some(store) = away else { return String::new() };
    let decrypts = match &store.decrypts_until {
        None => "Decrypts under KEKs in memory work as long as the process runs.".to_owned(),
        Some(until) if is_over(until, &status.time) => {
            format!("Decrypts have failed since {until}: cache.offline_grace is over.")
        }
        Some(until) => {
            format!("Decrypts under KEKs in memory work until {until} (cache.offline_grace).")
        }
    };
    let encrypts = encrypts(&affected(status, "store"), status);
    format!(
        "{encrypts}{decrypts} Until the store is back, no other KEK decrypts, and no KEK is made."
    )
}

fn of_root(name: &str, status: &Status) -> String {
    let root = status.roots.iter().find(|root| root.name == name);
    if root.is_none_or(|root| root.state != "away") {
        return String::new();
    }
    let about = format!("root:{name}");
    // The finding of the store has what the store limits.
    let affected = affected(status, &about).into_iter();
    let affected = affected.chain(self::affected(status, "roots"));
    let affected: Vec<_> = affected.filter(|(_, outage)| !outage.has_cause("store")).collect();
    let encrypts = encrypts(&affected, status);
    let held = affected.iter().filter(|(_, outage)| outage.holds_primary);
    let decrypts = match held.filter_map(|(_, outage)| outage.decrypts_until.as_ref()).min() {
        None => String::new(),
        Some(until) => format!(
            "Primary KEKs in memory decrypt until {until}, and are removed from memory then. "
        ),
    };
    let rest = if are_all_away(&status.roots) {
        "Until a root answers, KEKs that are not in memory do not decrypt, and no KEK is made."
    } else {
        "KEKs that no other root has wrapped decrypt while they are in memory. The other roots \
         open the rest, and wrap new KEKs."
    };
    format!("{encrypts}{decrypts}{rest}")
}

/// The chains that suffer from `cause`.
fn affected<'a>(status: &'a Status, cause: &str) -> Vec<(&'a Chain, &'a Outage)> {
    let outages = status.chains.iter().filter_map(|it| Some((it, it.outage.as_ref()?)));
    outages.filter(|(_, outage)| outage.has_cause(cause)).collect()
}

/// What becomes of encrypts on these chains: a sentence with a space after it, or nothing.
fn encrypts(affected: &[(&Chain, &Outage)], status: &Status) -> String {
    let failing: Vec<_> = affected.iter().filter(|(_, outage)| outage.ended_encrypts()).collect();
    let working: Vec<_> = affected.iter().filter(|(_, outage)| !outage.ended_encrypts()).collect();
    let mut text = String::new();
    // Chains on other pages may have uses left.
    let are_all_known = status.next.is_none();
    if !failing.is_empty() && failing.len() == status.chains.len() && are_all_known {
        text += "Encrypts fail now. ";
    } else if !failing.is_empty() {
        let names: Vec<_> = failing.iter().take(NAMED).map(|(it, _)| &*it.chain).collect();
        let more = failing.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more chains") } else { String::new() };
        text += &format!("Encrypts fail now in {}{more}. ", names.join(", "));
    }
    if working.is_empty() {
        return text;
    }
    let others = if failing.is_empty() { "Encrypts" } else { "In the other chains they" };
    let fewest = working.iter().filter_map(|(it, outage)| Some((outage.encrypts_left?, it)));
    let until = working.iter().filter_map(|(_, outage)| outage.encrypts_until.as_ref()).min();
    text += &match (fewest.min_by_key(|(left, _)| *left), until) {
        (None, _) => format!("{others} work, up to max_uses of the KEKs in memory. "),
        (Some((left, chain)), None) => format!(
            "{others} work within the uses that are reserved, {} in {}, and fail then. ",
            count(left),
            chain.chain
        ),
        (Some((left, chain)), Some(until)) => format!(
            "{others} work within the uses that are reserved, {} in {}, and fail from {until} on. ",
            count(left),
            chain.chain
        ),
    };
    text
}
