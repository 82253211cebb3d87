//! What an operator sees of a running service: the structure of `/status.json`, of the page
//! `/status` and of `kms-proxy status`.
//!
//! Plain data, and what follows from it alone: findings and forecasts. It knows no service, no HTTP
//! and no HTML. It has no place for a secret. Fields may be added later, so a reader ignores those
//! that it does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

mod findings;
mod forecast;
mod outage;
mod savings;
mod text;

pub use findings::{DOCUMENTS, findings};
pub use forecast::{Pace, forecast};
pub use outage::Outage;
pub use savings::Savings;
pub use text::{count, duration, last_used, money, rate};

/// A service at one moment. What the caller may not see is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `ok`, `degraded` or `unavailable`.
    pub status: String,
    /// The version of the service.
    pub version: String,
    /// The time of this status, as RFC 3339.
    pub time: String,
    /// When the process started. Its counts begin there.
    pub started_at: String,
    /// The same in seconds before `time`.
    pub uptime_seconds: u64,
    /// What is most urgent, in a sentence.
    pub summary: String,
    /// What needs attention: the most urgent first, and a cause before what follows from it.
    pub findings: Vec<Finding>,
    /// The checks of `/readyz`.
    pub checks: Vec<Check>,
    /// The root calls that were made and avoided.
    pub savings: Option<Savings>,
    /// Chains, in the order of their names.
    pub chains: Vec<Chain>,
    /// What to give as `after` for further chains; null at the end.
    pub next: Option<String>,
    /// Roots, the preferred one first.
    pub roots: Vec<Root>,
    /// The store.
    pub store: Option<Store>,
    /// Archives.
    pub archives: Vec<Archive>,
    /// The audit log, if one is configured.
    pub audit: Option<Audit>,
    /// The certificate of `server.listen`, if it uses HTTPS.
    pub certificate: Option<Certificate>,
    /// The other processes that use the store, as far as the store knows them.
    pub replicas: Vec<Replica>,
    /// Configured clients.
    pub callers: Vec<Caller>,
}

/// How urgent a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The service can neither encrypt nor decrypt.
    Unavailable,
    /// It works, and an operator should act.
    Degraded,
    /// Nothing is wrong, and an operator should know it.
    Note,
}

/// Something that an operator should know, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How urgent it is.
    pub level: Level,
    /// What it concerns: the name of a check, such as `root:main` or `chain:orders`.
    pub about: String,
    /// What was found.
    pub detail: String,
    /// What works in spite of it, until when, and what fails; empty if that is not known.
    #[serde(default)]
    pub effect: String,
    /// What to do.
    pub advice: String,
    /// Commands that deal with it, or that show more.
    pub commands: Vec<String>,
    /// The section of the documentation about it.
    pub link: String,
}

/// One check of `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// `ok`, `degraded` or `unavailable`.
    pub status: String,
    /// A text for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A key chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Chain {
    /// Its name.
    pub chain: String,
    /// The suite of its new KEKs.
    pub suite: String,
    /// The KEK that encrypts.
    pub primary: Option<String>,
    /// The KEK that will encrypt next.
    pub standby: Option<String>,
    /// Whether the standby could take over now: `none`, `not_loaded` (this process has not
    /// unwrapped it yet), `not_archived` (archives do not hold it yet) or `ready`.
    pub standby_state: String,
    /// Whether new envelopes embed the wrapped KEK.
    pub inline: bool,
    /// Uses of the primary that are reserved in the store.
    pub uses_reserved: u64,
    /// Uses that start a rotation.
    pub rotate_after_uses: u64,
    /// The most uses of a KEK.
    pub max_uses: u64,
    /// When the primary was promoted.
    pub promoted_at: Option<String>,
    /// The same in seconds before `time`.
    pub age_seconds: Option<u64>,
    /// The age that starts a rotation, in seconds.
    pub rotate_after_age: u64,
    /// When the next rotation is expected; null if the chain has no primary.
    pub next_rotation: Option<Forecast>,
    /// What works while the store or its roots are away; null while they are not.
    pub outage: Option<Outage>,
    /// The number of its KEKs, including destroyed ones; null while they are not counted.
    pub keks: Option<u64>,
    /// The KEKs by state.
    pub keks_by_state: Option<Keks>,
    /// The roots that wrapped the primary.
    pub roots: Vec<String>,
    /// Whether a `local` root ever wrapped the primary.
    pub exposed: bool,
    /// Encrypts and new data keys a second, in the last one to two minutes.
    pub encrypts_per_second: f64,
    /// Decrypts a second, in the same time.
    pub decrypts_per_second: f64,
    /// Calls on data in each minute of the last hour. On the page of a chain alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calls_per_minute: Vec<u64>,
    /// Failed calls of the last hour by code.
    pub errors: BTreeMap<String, u64>,
    /// Calls on data that succeeded.
    pub operations: u64,
    /// Calls of roots for this chain.
    pub root_calls: u64,
    /// The calls that one root call per operation would have taken, minus those that were made.
    pub avoided: u64,
}

/// When something is expected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The time, as RFC 3339.
    pub at: String,
    /// The same in seconds from now; 0 if it is due.
    pub in_seconds: u64,
    /// The limit that is reached first: `uses` or `age`.
    pub reason: String,
}

/// The KEKs of a chain by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Keks {
    /// Waiting to be promoted.
    pub standby: u64,
    /// Encrypts.
    pub primary: u64,
    /// Only decrypts.
    pub retired: u64,
    /// Refused until it is enabled again.
    pub disabled: u64,
    /// A tombstone.
    pub destroyed: u64,
    /// KEKs that are not destroyed and that one root alone has wrapped.
    pub one_root: u64,
    /// Those of them that only a `local` root has wrapped.
    pub local_only: u64,
    /// Whether the chain has more KEKs than were counted.
    pub more: bool,
}

impl Keks {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.standby + self.primary + self.retired + self.disabled + self.destroyed
    }

    /// Each state and its number.
    #[must_use]
    pub const fn states(&self) -> [(&'static str, u64); 5] {
        [
            ("standby", self.standby),
            ("primary", self.primary),
            ("retired", self.retired),
            ("disabled", self.disabled),
            ("destroyed", self.destroyed),
        ]
    }
}

/// An outage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed.
    pub detail: String,
    /// When it began, as RFC 3339.
    pub since: String,
    /// When it ended; null while it lasts.
    pub until: Option<String>,
}

/// A root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Its name.
    pub name: String,
    /// Its kind, such as `aws-kms`.
    pub kind: String,
    /// `ok`, `away` (its last call failed) or `wrong_key` (KEKs that it should open do not open).
    pub state: String,
    /// Since when, as RFC 3339.
    pub since: String,
    /// The average of recent calls, in microseconds; null before the first.
    pub latency_us: Option<u64>,
    /// Calls of this process.
    pub calls: u64,
    /// Those of them that failed.
    pub failed_calls: u64,
    /// Primaries and standbys that it has not wrapped.
    pub missing_wraps: u64,
    /// When the token expires that it is called with, in seconds; null without one.
    pub token_expires_in_seconds: Option<u64>,
    /// Its outage, or the last one of this process.
    pub last_error: Option<Failure>,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Store {
    /// Its kind: `file`, `etcd`, `inline` or `memory`.
    pub kind: String,
    /// `ok` or `away`.
    pub state: String,
    /// Since when, as RFC 3339.
    pub since: String,
    /// The average of recent calls, in microseconds; null before the first.
    pub latency_us: Option<u64>,
    /// Its outage, or the last one of this process.
    pub last_error: Option<Failure>,
    /// Until when KEKs in memory decrypt while it is away, as RFC 3339; null if it is not, or if
    /// nothing limits that.
    pub decrypts_until: Option<String>,
    /// When the last complete backup began, as RFC 3339.
    pub last_backup: Option<String>,
}

/// An archive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Archive {
    /// Its name.
    pub name: String,
    /// `ok`, `away`, `behind` (it lacks records) or `not_compared`.
    pub state: String,
    /// Since when it is away, as RFC 3339.
    pub since: Option<String>,
    /// Records that it lacks, or has in an older state.
    pub pending: u64,
    /// Its outage.
    pub last_error: Option<Failure>,
}

/// The audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    /// `ok`, `refusing` (calls fail) or `losing` (lines are lost).
    pub state: String,
    /// Why it takes no lines.
    pub detail: Option<String>,
    /// The key that verifies it.
    pub public_key: String,
}

/// The certificate of `server.listen`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// Seconds until it expires; negative when it has.
    pub expires_in_seconds: i64,
    /// A problem that needs an operator.
    pub warning: Option<String>,
}

/// Another process that uses the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Replica {
    /// The number that it has chosen at its start.
    pub id: String,
    /// The roots that it reports.
    pub roots: Vec<String>,
    /// The roots that have another key there.
    pub differing: Vec<String>,
    /// Seconds since this process first saw its last report. Reports are repeated every 5 minutes,
    /// and those of a process that was killed count for 15.
    pub reported_seconds_ago: u64,
}

/// A configured client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// Its name.
    pub client: String,
    /// Requests a second, in the last one to two minutes.
    pub requests_per_second: f64,
    /// All of its requests.
    pub requests: u64,
    /// Those that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
}

impl Status {
    /// Replaces the findings and the summary by those that follow from the rest.
    pub fn conclude(&mut self) {
        self.findings = findings(self);
        self.summary = findings::summary(self);
    }

    /// Whether no finding asks for an action.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.status == "ok" && self.findings.iter().all(|finding| finding.level == Level::Note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_a_later_field_is_ignored() {
        let status = Status {
            status: "degraded".to_owned(),
            chains: vec![Chain { chain: "orders".to_owned(), ..Chain::default() }],
            findings: vec![Finding {
                level: Level::Degraded,
                about: "root:main".to_owned(),
                detail: "it is away".to_owned(),
                effect: String::new(),
                advice: "Make it available.".to_owned(),
                commands: vec!["kms-proxy root status".to_owned()],
                link: DOCUMENTS.to_owned(),
            }],
            savings: Some(Savings { avoided: 7, ..Savings::default() }),
            ..Status::default()
        };
        let mut json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["findings"][0]["level"], "degraded");
        json["a_later_field"] = true.into();
        json["chains"][0]["a_later_field"] = true.into();
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
        assert_eq!(serde_json::from_str::<Status>("{}").unwrap(), Status::default());
    }
}
