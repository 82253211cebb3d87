//! What works of a chain in an outage, as data and as text.

use serde::{Deserialize, Serialize};

use super::text::count;

/// What of a chain works while the store or its roots are away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outage {
    /// What is away: `store`, roots of the chain such as `root:main`, or `roots` if no root answers
    /// and the chain has no KEK.
    pub causes: Vec<String>,
    /// The encrypts that this replica can still make; null while it can reserve further uses.
    pub encrypts_left: Option<u64>,
    /// When these uses expire, as RFC 3339; null if none is left, or if they do not expire.
    pub encrypts_until: Option<String>,
    /// Until when the primary KEK decrypts, as RFC 3339; null if nothing limits that.
    pub decrypts_until: Option<String>,
    /// Whether the primary KEK is in memory. If not, it neither encrypts nor decrypts.
    pub holds_primary: bool,
}

impl Outage {
    /// Whether no encrypt works any more.
    #[must_use]
    pub fn ended_encrypts(&self) -> bool {
        self.encrypts_left == Some(0)
    }

    /// Whether it has this cause.
    #[must_use]
    pub fn has_cause(&self, name: &str) -> bool {
        self.causes.iter().any(|cause| cause == name)
    }

    /// What works and what fails at `now`, an RFC 3339 time.
    #[must_use]
    pub fn text(&self, now: &str) -> String {
        let encrypts = match (self.encrypts_left, &self.encrypts_until) {
            (Some(0), _) => "encrypts fail".to_owned(),
            (Some(left), None) => format!("{} encrypts are left", count(left)),
            (Some(left), Some(until)) => {
                format!("{} encrypts are left, until {until}", count(left))
            }
            (None, _) => "encrypts work, up to max_uses".to_owned(),
        };
        let decrypts = match &self.decrypts_until {
            _ if !self.holds_primary => "the primary KEK is not in memory".to_owned(),
            None => "KEKs in memory decrypt".to_owned(),
            Some(until) if is_over(until, now) => format!("decrypts have failed since {until}"),
            Some(until) => format!("the primary KEK decrypts until {until}"),
        };
        format!("Without {}: {encrypts}; {decrypts}", self.causes.join(", "))
    }
}

/// Whether a time is not after another one. Both are RFC 3339 in UTC and in whole seconds, so they
/// sort as text.
pub(super) fn is_over(until: &str, now: &str) -> bool {
    until <= now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_and_what_works_is_said_with_its_end() {
        let (now, later) = ("2026-11-24T08:00:00Z", "2026-11-24T08:01:00Z");
        let at = |time: &str| Some(time.to_owned());
        let well = Outage {
            causes: vec!["store".to_owned(), "root:main".to_owned()],
            holds_primary: true,
            ..Outage::default()
        };
        let expected = "Without store, root:main: encrypts work, up to max_uses; KEKs in memory \
            decrypt";
        assert_eq!(well.text(now), expected);
        for (left, until, expected) in [
            (Some(1_016), at(later), "1,016 encrypts are left, until 2026-11-24T08:01:00Z;"),
            (Some(3), None, "3 encrypts are left;"),
            (Some(0), None, "encrypts fail;"),
        ] {
            let outage = Outage { encrypts_left: left, encrypts_until: until, ..well.clone() };
            assert!(outage.text(now).contains(expected), "{}", outage.text(now));
            assert_eq!(outage.ended_encrypts(), left == Some(0));
        }
        for (until, expected) in [(later, "decrypts until 2026"), (now, "have failed since")] {
            let outage = Outage { decrypts_until: at(until), ..well.clone() };
            assert!(outage.text(now).contains(expected), "{}", outage.text(now));
        }
        let cold = Outage { holds_primary: false, ..well };
        assert!(cold.text(now).ends_with("the primary KEK is not in memory"));
    }
}
