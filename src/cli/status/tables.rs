//! The tables of `status` that follow those of checks and of chains: what the chains do, and the
//! parts of the service. A part that the service does not have, or does not show, has no table.

use kms_proxy::status::{Caller, Chain, Failure, Replica, Root, Status, duration, rate};

use super::super::chains::table;

/// Every table, in the order of the page.
pub(super) fn all(status: &Status) -> Vec<String> {
    let mut all = vec![pace(&status.chains)];
    all.extend(of(kek_rows(&status.chains), ["CHAIN", "KEKS BY STATE", "ROOTS", "EXPOSED"]));
    all.extend(of(trouble_rows(status), ["CHAIN", "TROUBLE"]));
    let roots = status.roots.iter().map(root_row).collect();
    let header =
        ["ROOT", "KIND", "STATE", "SINCE", "LATENCY", "CALLS", "FAILED", "MISSING WRAPS", "OUTAGE"];
    all.extend(of(roots, header));
    all.extend(of(part_rows(status), ["PART", "STATE", "DETAIL"]));
    let replicas = status.replicas.iter().map(replica_row).collect();
    all.extend(of(replicas, ["REPLICA", "ROOTS", "WITH ANOTHER KEY", "REPORTED"]));
    let callers = status.callers.iter().map(caller_row).collect();
    all.extend(of(callers, ["CLIENT", "REQUESTS/S", "REQUESTS", "REFUSED"]));
    all
}

fn of<const N: usize>(rows: Vec<[String; N]>, header: [&str; N]) -> Option<String> {
    (!rows.is_empty()).then(|| table(header, rows.into_iter()))
}

/// What the chains do now, and when they rotate next.
fn pace(chains: &[Chain]) -> String {
    let header =
        ["CHAIN", "USES", "NEXT ROTATION", "ENCRYPTS/S", "DECRYPTS/S", "ROOT CALLS", "AVOIDED"];
    let rows = chains.iter().map(|chain| {
        let next = match &chain.next_rotation {
            None => "-".to_owned(),
            Some(next) if next.in_seconds == 0 => format!("due ({})", next.reason),
            Some(next) => format!("in {} ({})", duration(next.in_seconds), next.reason),
        };
        [
            chain.chain.clone(),
            chain.uses_reserved.to_string(),
            next,
            rate(chain.encrypts_per_second),
            rate(chain.decrypts_per_second),
            chain.root_calls.to_string(),
            chain.avoided.to_string(),
        ]
    });
    table(header, rows)
}

fn kek_rows(chains: &[Chain]) -> Vec<[String; 4]> {
    let counted = chains.iter().filter_map(|chain| Some((chain, chain.keks_by_state.as_ref()?)));
    let row = |(chain, keks): (&Chain, &kms_proxy::status::Keks)| {
        let states = keks.states().into_iter().filter(|(_, number)| *number > 0);
        let mut text: Vec<_> = states.map(|(state, number)| format!("{number} {state}")).collect();
        let parts = [(keks.one_root, "under one root"), (keks.local_only, "under a local one")];
        text.extend(parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
        if keks.more {
            text.push("and more".to_owned());
        }
        let exposed = if chain.exposed { "yes" } else { "no" };
        [chain.chain.clone(), text.join(", "), chain.roots.join(", "), exposed.to_owned()]
    };
    counted.map(row).collect()
}

/// What fails: outages, and the errors of the last hour.
fn trouble_rows(status: &Status) -> Vec<[String; 2]> {
    let outage = |chain: &Chain| chain.outage.as_ref().map(|outage| outage.text(&status.time));
    let errors = |chain: &Chain| {
        let errors = chain.errors.iter().map(|(code, number)| format!("{number} {code}"));
        let errors: Vec<_> = errors.collect();
        (!errors.is_empty()).then(|| format!("errors in the last hour: {}", errors.join(", ")))
    };
    let rows = status.chains.iter().flat_map(|chain| {
        let lines = outage(chain).into_iter().chain(errors(chain));
        lines.map(|line| [chain.chain.clone(), line])
    });
    rows.collect()
}

fn root_row(root: &Root) -> [String; 9] {
    let mut state = root.state.clone();
    if let Some(left) = root.token_expires_in_seconds {
        state = format!("{state}, its token expires in {}", duration(left));
    }
    [
        root.name.clone(),
        root.kind.clone(),
        state,
        root.since.clone(),
        latency(root.latency_us),
        root.calls.to_string(),
        root.failed_calls.to_string(),
        root.missing_wraps.to_string(),
        outage(root.last_error.as_ref()),
    ]
}

fn latency(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{}.{} ms", us / 1_000, us % 1_000 / 100))
}

fn outage(failure: Option<&Failure>) -> String {
    match failure {
        None => "-".to_owned(),
        Some(Failure { detail, since, until: None }) => format!("since {since}: {detail}"),
        Some(Failure { detail, since, until: Some(until) }) => {
            format!("{since} to {until}: {detail}")
        }
    }
}

/// Store, archives, audit log and certificate.
fn part_rows(status: &Status) -> Vec<[String; 3]> {
    let mut rows = Vec::new();
    if let Some(store) = &status.store {
        let backup = store.last_backup.as_deref().unwrap_or("not known");
        let (since, latency) = (&store.since, latency(store.latency_us));
        let mut detail = format!("since {since}, latency {latency}, last backup {backup}");
        if store.last_error.is_some() {
            detail = format!("{detail}, outage {}", outage(store.last_error.as_ref()));
        }
        rows.push([format!("store ({})", store.kind), store.state.clone(), detail]);
    }
    for archive in &status.archives {
        let mut detail = format!("{} records to write", archive.pending);
        if archive.last_error.is_some() {
            detail = format!("{detail}, outage {}", outage(archive.last_error.as_ref()));
        }
        rows.push([format!("archive {}", archive.name), archive.state.clone(), detail]);
    }
    if let Some(audit) = &status.audit {
        let key = format!("verified by {}", audit.public_key);
        let detail = audit.detail.clone().unwrap_or(key);
        rows.push(["audit log".to_owned(), audit.state.clone(), detail]);
    }
    if let Some(certificate) = &status.certificate {
        let left = u64::try_from(certificate.expires_in_seconds);
        let expiry = left.map_or_else(
            |_| "it has expired".to_owned(),
            |left| format!("it expires in {}", duration(left)),
        );
        let warning = certificate.warning.iter().map(|warning| format!("; {warning}"));
        let is_well = certificate.warning.is_none() && certificate.expires_in_seconds >= 0;
        let state = if is_well { "ok" } else { "attention" };
        let detail = expiry + &warning.collect::<String>();
        rows.push(["certificate".to_owned(), state.to_owned(), detail]);
    }
    rows
}

fn replica_row(replica: &Replica) -> [String; 4] {
    [
        replica.id.clone(),
        replica.roots.join(", "),
        none_or(&replica.differing),
        format!("{} ago", duration(replica.reported_seconds_ago)),
    ]
}

fn caller_row(caller: &Caller) -> [String; 4] {
    let refused = caller.refused.iter().map(|(why, number)| format!("{number} {why}"));
    [
        caller.client.clone(),
        rate(caller.requests_per_second),
        caller.requests.to_string(),
        none_or(&refused.collect::<Vec<_>>()),
    ]
}

fn none_or(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kms_proxy::status::{Archive, Audit, Certificate, Keks, Outage, Store};

    use super::*;

    fn failure(until: Option<&str>) -> Failure {
        let (detail, since) = ("throttled".to_owned(), "2026-11-24T08:00:00Z".to_owned());
        Failure { detail, since, until: until.map(str::to_owned) }
    }

    #[test]
    fn each_part_of_the_service_has_its_table() {
        let status = Status {
            chains: vec![Chain {
                chain: "orders".to_owned(),
                keks_by_state: Some(Keks {
                    primary: 1,
                    retired: 7,
                    one_root: 2,
                    local_only: 1,
                    more: true,
                    ..Keks::default()
                }),
                roots: vec!["main".to_owned(), "spare".to_owned()],
                outage: Some(Outage { causes: vec!["store".to_owned()], ..Outage::default() }),
                errors: BTreeMap::from([("unknown_kek".to_owned(), 3)]),
                ..Chain::default()
            }],
            roots: vec![Root {
                name: "main".to_owned(),
                kind: "aws-kms".to_owned(),
                state: "away".to_owned(),
                since: "2026-11-24T08:00:00Z".to_owned(),
                latency_us: Some(12_345),
                calls: 9,
                failed_calls: 4,
                missing_wraps: 2,
                token_expires_in_seconds: Some(90),
                last_error: Some(failure(None)),
            }],
            store: Some(Store {
                kind: "etcd".to_owned(),
                state: "ok".to_owned(),
                last_error: Some(failure(Some("2026-11-24T08:05:00Z"))),
                ..Store::default()
            }),
            archives: vec![Archive {
                name: "nas".to_owned(),
                state: "behind".to_owned(),
                pending: 5,
                ..Archive::default()
            }],
            audit: Some(Audit {
                state: "ok".to_owned(),
                public_key: "b3BlbiBzZXNhbWU".to_owned(),
                ..Audit::default()
            }),
            certificate: Some(Certificate { expires_in_seconds: -1, ..Certificate::default() }),
            replicas: vec![Replica {
                id: "77".to_owned(),
                differing: vec!["main".to_owned()],
                ..Replica::default()
            }],
            callers: vec![Caller {
                client: "shop".to_owned(),
                requests: 12,
                refused: BTreeMap::from([("forbidden".to_owned(), 6)]),
                ..Caller::default()
            }],
            ..Status::default()
        };
        let text = all(&status).concat();
        let words = |line: &'static str| line.split_whitespace().collect::<Vec<_>>();
        let lines: Vec<Vec<_>> = text.lines().map(|it| it.split_whitespace().collect()).collect();
        for line in [
            "orders 1 primary, 7 retired, 2 under one root, 1 under a local one, and more \
             main, spare no",
            "orders errors in the last hour: 3 unknown_kek",
            "main aws-kms away, its token expires in 1 min 30 s 2026-11-24T08:00:00Z 12.3 ms \
             9 4 2 since 2026-11-24T08:00:00Z: throttled",
            "store (etcd) ok since , latency -, last backup not known, outage \
             2026-11-24T08:00:00Z to 2026-11-24T08:05:00Z: throttled",
            "archive nas behind 5 records to write",
            "audit log ok verified by b3BlbiBzZXNhbWU",
            "certificate attention it has expired",
            "77 main 0 s ago",
            "shop 0 12 6 forbidden",
        ] {
            assert!(lines.contains(&words(line)), "{line}: {text}");
        }
        assert!(text.contains("orders  Without store: "), "{text}");
        // What a service does not have, or does not show, has no table.
        assert_eq!(all(&Status::default()).len(), 1);
    }
}
