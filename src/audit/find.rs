//! Finds lines of an audit log by their fields.
//!
//! It does not verify them, and knows no key: the caller passes the texts that an AAD may have.

use serde::Deserialize;

pub use crate::json::Text;

/// What is searched for. Each condition that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The chain.
    pub chain: Option<String>,
    /// The texts that the `aad` of a line may have.
    pub aad: Option<Vec<String>>,
    /// The name of the client.
    pub client: Option<String>,
    /// The operation.
    pub operation: Option<String>,
    /// The first time, as lines contain it.
    pub since: Option<String>,
    /// The first time that is too late.
    pub until: Option<String>,
}

/// The fields of a line that a table shows. Lines that prove others have no operation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Event<'a> {
    /// When.
    #[serde(borrow)]
    pub time: Text<'a>,
    /// The process.
    #[serde(borrow)]
    pub node: Option<Text<'a>>,
    /// The caller.
    #[serde(borrow)]
    pub client: Option<Text<'a>>,
    /// What was done.
    #[serde(borrow)]
    pub operation: Option<Text<'a>>,
    /// The chain.
    #[serde(borrow)]
    pub chain: Option<Text<'a>>,
    /// The KEK.
    #[serde(borrow)]
    pub kek_id: Option<Text<'a>>,
    /// The AAD, or what stands for it.
    #[serde(borrow)]
    pub aad: Option<Text<'a>>,
    /// `ok` or an error code.
    #[serde(borrow)]
    pub outcome: Option<Text<'a>>,
    /// How many calls the line counts.
    pub count: Option<u64>,
}

impl Query {
    /// The event of `line`, if it is one and every condition holds.
    #[must_use]
    pub fn find<'a>(&self, line: &'a [u8]) -> Option<Event<'a>> {
        let event: Event<'a> = serde_json::from_slice(line).ok()?;
        let is = |wanted: &Option<String>, found: &Option<Text<'_>>| {
            wanted.as_ref().is_none_or(|wanted| found.as_ref().is_some_and(|it| it.0 == *wanted))
        };
        let aad = event.aad.as_ref();
        let found = event.operation.is_some()
            && is(&self.chain, &event.chain)
            && is(&self.client, &event.client)
            && is(&self.operation, &event.operation)
            && self
                .aad
                .as_ref()
                .is_none_or(|any| aad.is_some_and(|it| any.iter().any(|aad| it.0 == *aad)))
            && self.since.as_ref().is_none_or(|since| *event.time.0 >= **since)
            && self.until.as_ref().is_none_or(|until| *event.time.0 < **until);
        found.then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        br#"{"v":1,"seq":3,"time":"2026-11-28T23:02:34.123Z","node":"a","request_id":
        "1","api":"http","client":"billing","auth":"token","operation":"decrypt","chain":"orders",
        "kek_id":"00","aad":"text:row \"7\"","plaintext_bytes":5,"outcome":"ok","new":{"a":[1]}}"#;

    #[test]
    fn each_condition_must_hold() {
        let good = Query {
            chain: Some("orders".into()),
            aad: Some(vec!["hmac:x".into(), "text:row \"7\"".into()]),
            client: Some("billing".into()),
            operation: Some("decrypt".into()),
            since: Some("2026-11-28T23:02:34.123Z".into()),
            until: Some("2026-11-28T23:02:34.124Z".into()),
        };
        assert_eq!(good.find(LINE).unwrap().outcome.unwrap().0, "ok");
        assert!(Query::default().find(LINE).is_some());
        let other = || Some("x".to_owned());
        for bad in [
            Query { chain: other(), ..good.clone() },
            Query { aad: Some(Vec::new()), ..good.clone() },
            Query { client: other(), ..good.clone() },
            Query { operation: other(), ..good.clone() },
            Query { since: Some("2026-11-28T23:02:34.124Z".into()), ..good.clone() },
            Query { until: Some("2026-11-28T23:02:34.123Z".into()), ..good.clone() },
        ] {
            assert!(bad.find(LINE).is_none(), "{bad:?}");
        }
        for line in [&b""[..], b"{}", br#"{"v":1,"seq":1,"time":"","checkpoint":""}"#] {
            assert!(Query::default().find(line).is_none());
        }
    }
}
