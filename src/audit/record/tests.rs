//! What a line says of a call, for each operation, outcome, level and kind of caller.

use serde_json::Value as Json;

use super::*;
use crate::audit::AadForm;
use crate::audit::counts::{Counts, Refusals};
use crate::audit::queue::Queue;
use crate::audit::rules::Rules;
use crate::clock::ManualClock;
use crate::id::KekId;
use crate::metrics::{Metrics, Registry};
use crate::service::error::Kind;

/// An audit log whose only rule has this level.
fn audit(level: &str) -> Arc<Audit> {
    audit_by(&format!("[{{\"level\":\"{level}\"}}]"))
}

/// An audit log with these rules.
fn audit_by(rules: &str) -> Arc<Audit> {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let rules = serde_json::from_str(rules).unwrap();
    Arc::new(Audit {
        queue: Queue::new(true, Arc::clone(&metrics)),
        counts: Counts::default(),
        refusals: Refusals::default(),
        rules: Rules::new(rules),
        aad: AadForm::Plain,
        hmac: Box::new(|_| [0; 32]),
        node: "\"node\"".to_owned(),
        public_key: String::new(),
        clock: Arc::new(ManualClock::new()),
        metrics,
    })
}

/// The lines that wait for the writer.
fn lines(audit: &Audit) -> Vec<Json> {
    let work = audit.queue.take(Vec::new(), std::time::Duration::ZERO);
    let text = String::from_utf8(work.lines).unwrap();
    let lines: Vec<Json> =
        text.lines().map(|line| serde_json::from_str(&format!("{{{line}")).unwrap()).collect();
    assert_eq!(work.count, lines.len() as u64);
    lines
}

/// A batch whose first item succeeded, whose second failed, and which failed as a whole.
fn failed(audit: &Arc<Audit>) {
    let call = Call { is_batch: true, ..Call::default() };
    let record = audit.begin("http", "7", Peer::UNKNOWN, call);
    record.identified(Some("billing".into()), "token");
    let chain = ChainName::default();
    for (outcome, aad) in [(OK, &b"\",\"outcome\":\"ok\""[..]), ("invalid_ciphertext", b"")] {
        record.add(&Event {
            operation: Some(Operation::Decrypt),
            chain: ChainRef::Known(&chain),
            aad: Some(aad),
            plaintext_bytes: Some(5),
            outcome,
            change: &[("call", &"x")],
            ..Event::default()
        });
    }
    let request = Request { failure: Some("overloaded"), ..Request::default() };
    _ = record.submit(&request);
}

#[test]
fn what_is_not_returned_did_not_succeed() {
    let audit = audit("full");
    failed(&audit);
    let lines = lines(&audit);
    let field = |name: &str| lines.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("outcome"), ["overloaded", "invalid_ciphertext"]);
    assert_eq!(field("item"), [0, 1]);
    assert_eq!(field("client"), ["billing", "billing"]);
    assert_eq!(lines[0]["aad"], "text:\",\"outcome\":\"ok\"", "no text is changed");
}

#[test]
fn counts_of_what_is_not_returned_are_failures() {
    let audit = audit("count");
    failed(&audit);
    let counts = audit.counts.take();
    let mut outcomes: Vec<_> =
        counts.iter().map(|(key, sum)| (key.outcome, sum.calls, sum.plaintext_bytes)).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, [("invalid_ciphertext", 1, 0), ("overloaded", 1, 0)]);
    assert_eq!(lines(&audit), [] as [Json; 0]);
}

#[test]
fn items_with_everything_in_common_are_counted_together() {
    let audit = audit("count");
    let record =
        audit.begin("http", "7", Peer::UNKNOWN, Call { is_batch: true, ..Call::default() });
    record.identified(Some("billing".into()), "token");
    let (chain, other) = (ChainName::default(), ChainName::new("other").unwrap());
    let [id, next] = [7, 8].map(|byte| KekId::from_bytes([byte; 16]));
    for (chain, id, outcome) in [
        (&chain, id, OK),
        (&chain, id, OK),
        (&chain, next, OK),
        (&other, next, OK),
        (&other, next, "invalid_ciphertext"),
        (&chain, id, OK),
    ] {
        record.add(&Event {
            operation: Some(Operation::Decrypt),
            chain: ChainRef::Known(chain),
            kek_id: Some(id),
            plaintext_bytes: Some(5),
            outcome,
            ..Event::default()
        });
    }
    assert_eq!(record.state.lock().counted.len(), 5);
    _ = record.submit(&Request::default());
    let counts = audit.counts.take();
    assert!(counts.keys().all(|key| key.client.as_deref() == Some("billing")));
    let mut sums: Vec<_> = counts.values().map(|sum| (sum.calls, sum.plaintext_bytes)).collect();
    sums.sort_unstable();
    assert_eq!(sums, [(1, 0), (1, 5), (1, 5), (3, 15)]);
}

#[tokio::test]
async fn a_record_that_is_used_again_knows_nothing_of_the_request_before() {
    let audit = audit_by(r#"[{"clients":["billing"],"level":"count"}]"#);
    let call = Call { name: Some("x".into()), is_batch: true, ..Call::default() };
    let first = audit.begin("aws", "one", Peer::user(7), call);
    first.identified(Some("billing".into()), "token");
    first.asks(Operation::Decrypt);
    first.add(&Event { outcome: OK, ..Event::default() });
    let place = Arc::as_ptr(&first);
    first.end(Request::default()).await.unwrap();
    assert_eq!(audit.counts.take().len(), 1);

    let second = audit.begin("http", "two", Peer::UNKNOWN, Call::default());
    assert_eq!(Arc::as_ptr(&second), place, "it is used again");
    _ = second.submit(&Request::default());
    let [line] = &lines(&audit)[..] else { panic!("not one line") };
    let expected = serde_json::json!({
        "time": line["time"], "node": "node", "request_id": "two", "api": "http", "client": null,
        "auth": null, "operation": "unknown", "outcome": "ok",
    });
    assert_eq!(*line, expected);
    assert!(audit.counts.take().is_empty());
}

#[tokio::test]
async fn a_record_that_a_task_still_has_is_not_used_again() {
    let (audit, other) = (audit("count"), audit("count"));
    let begin = |audit: &Arc<Audit>| audit.begin("http", "7", Peer::UNKNOWN, Call::default());
    let first = begin(&audit);
    let of_task = Arc::clone(&first);
    first.end(Request::default()).await.unwrap();
    let second = begin(&audit);
    assert!(!Arc::ptr_eq(&of_task, &second));
    second.end(Request::default()).await.unwrap();
    let third = begin(&other);
    assert!(Arc::ptr_eq(&third.audit, &other), "a record belongs to one log");
    assert_eq!(audit.counts.take().values().map(|sum| sum.calls).sum::<u64>(), 2);
}

/// Who calls: the name, and what identified the caller.
const CALLERS: [(Option<&str>, &str); 7] = [
    (None, "none"),
    (Some("billing"), "token"),
    (Some("billing"), "jwt"),
    (Some("billing"), "mtls"),
    (Some("billing"), "sigv4"),
    (Some("billing"), "socket"),
    (None, "unidentified"),
];

/// Calls `it` with the outcome of each call that can be made: every operation with every outcome,
/// by every kind of caller.
fn every_call(mut it: impl FnMut(Operation, &'static str, (Option<&str>, &'static str))) {
    let codes = Kind::ALL.map(Kind::code);
    for operation in Operation::ALL {
        for outcome in std::iter::once(OK).chain(codes) {
            for caller in CALLERS {
                it(operation, outcome, caller);
            }
        }
    }
}

/// A call with one operation, which the request ends with.
fn make(
    audit: &Arc<Audit>,
    operation: Operation,
    outcome: &'static str,
    (client, auth): (Option<&str>, &'static str),
) {
    let record = audit.begin("aws", "7", Peer::user(7), Call::default());
    if auth != "unidentified" {
        record.identified(client.map(Into::into), auth);
    }
    let chain = ChainName::default();
    let id = KekId::from_bytes([7; 16]);
    record.add(&Event {
        operation: Some(operation),
        chain: ChainRef::Known(&chain),
        kek_id: Some(id),
        aad: Some(b"row 7"),
        plaintext_bytes: Some(5),
        outcome,
        ..Event::default()
    });
    _ = record
        .submit(&Request { failure: (outcome != OK).then_some(outcome), ..Request::default() });
}

#[test]
fn in_full_each_operation_has_a_line_whatever_its_outcome_and_caller() {
    let audit = audit("full");
    every_call(|operation, outcome, caller| {
        make(&audit, operation, outcome, caller);
        let (client, auth) = caller;
        let auth = if auth == "unidentified" { Json::Null } else { auth.into() };
        let place = format!("{operation:?}, {outcome}, {caller:?}");
        // The lines of refused callers are limited; the others are counted, and none is lost.
        let omitted: u64 = audit.refusals.take().into_iter().map(|(_, omitted)| omitted).sum();
        let [line] = &lines(&audit)[..] else { panic!("{place}: not one line; {omitted} omitted") };
        let expected = serde_json::json!({
            "time": line["time"], "node": "node", "request_id": "7", "api": "aws",
            "client": client, "auth": auth, "peer": "uid:7", "operation": operation.as_str(),
            "chain": "default", "kek_id": "07070707070707070707070707070707",
            "aad": "text:row 7", "plaintext_bytes": 5, "outcome": outcome,
        });
        assert_eq!((line, omitted), (&expected, 0), "{place}");
    });
}

#[test]
fn at_count_each_operation_is_counted_whatever_its_outcome_and_caller() {
    let audit = audit("count");
    every_call(|operation, outcome, caller| {
        make(&audit, operation, outcome, caller);
        make(&audit, operation, outcome, caller);
        let (client, auth) = caller;
        let counts: Vec<_> = audit.counts.take().into_iter().collect();
        let [(key, sum)] = &counts[..] else { panic!("{operation:?}, {outcome}: {counts:?}") };
        let is_ok = outcome == OK;
        let expected = counts::Key {
            api: "aws",
            client: client.map(Into::into),
            auth: (auth != "unidentified").then_some(auth),
            operation: Some(operation),
            chain: Some(ChainName::default()),
            kek_id: is_ok.then(|| KekId::from_bytes([7; 16])),
            outcome,
        };
        assert_eq!(*key, expected);
        assert_eq!((sum.calls, sum.plaintext_bytes), (2, if is_ok { 10 } else { 0 }));
        assert_eq!(lines(&audit), [] as [Json; 0], "{expected:?}");
    });
}

#[test]
fn at_none_no_operation_leaves_a_trace() {
    let audit = audit("none");
    every_call(|operation, outcome, caller| make(&audit, operation, outcome, caller));
    assert!(audit.counts.take().is_empty() && audit.refusals.take().is_empty());
    assert_eq!(lines(&audit), [] as [Json; 0]);
}
