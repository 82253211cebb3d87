//! Examples for the document: what a call could be sent, what it could answer, and each error.
//!
//! It knows the calls by the ids of their operations. A test compares them with the schemas.

use serde_json::{Value, json};

use crate::http::problem::title;
use crate::service::error::{Error, Kind};

const KEK_ID: &str = "d68ed64748e80cb80d8ac6547dfb97d9";
const OTHER_ID: &str = "0a3f5b7c9d1e2f40516273849506a7b8";
/// `hello` with the AAD `row 7`, and the header of this envelope alone.
const ENVELOPE: &str = "kp:AQHWjtZHSOgMuA2KxlR9+5fZEMtYWq+p1JDkINz/vh7M2jmbm9u4aUORxrplY//\
    ITgvhc/g/b5aBJOUpmMgzj7fpT91qfbMaBsj4Nh8t7wa30+E=";
const HEADER: &str =
    "kp:AQHWjtZHSOgMuA2KxlR9+5fZEMtYWq+p1JDkINz/vh7M2jmbm9u4aUORxrplY//ITgvhc/g/b5aBJOUpmMg=";

/// What a call could be sent, and what it could answer.
pub(super) fn of(operation: &str) -> (Option<Value>, Option<Value>) {
    let chain = json!({
        "chain": "orders", "suite": "aes-128-gcm", "primary": KEK_ID, "standby": null, "keks": 12,
        "rotate_after_uses": 2_097_152, "max_uses": 4_194_304, "rotate_after_age": 7_776_000,
        "inline": false,
    });
    let kek = |state: &str, disabled: Value| {
        json!({
            "kek_id": KEK_ID, "state": state, "suite": "aes-128-gcm",
            "created_at": "2026-11-23T20:40:00Z", "promoted_at": "2026-11-23T20:40:00Z",
            "disabled_at": disabled, "uses_reserved": 65_536, "exposed": false,
            "roots": if state == "destroyed" { json!([]) } else { json!(["main", "dr"]) },
        })
    };
    let sealed = json!({"ciphertext": ENVELOPE, "chain": "orders", "kek_id": KEK_ID});
    let opened = json!({"plaintext": "aGVsbG8=", "chain": "orders", "kek_id": KEK_ID});
    let moved = json!({
        "ciphertext": HEADER, "chain": "orders", "kek_id": KEK_ID, "previous_kek_id": OTHER_ID,
    });
    let failed = |kind: Kind| {
        let problem = problem(kind);
        json!({"error": {"code": kind.code(), "detail": problem.get("detail")}})
    };
    let (request, response) = match operation {
        "encrypt" => {
            (Some(json!({"plaintext": "aGVsbG8=", "aad": "cm93IDc=", "chain": "orders"})), sealed)
        }
        "decrypt" => {
            (Some(json!({"ciphertext": ENVELOPE, "aad": "cm93IDc=", "chain": "orders"})), opened)
        }
        "rewrap" => (Some(json!({"ciphertext": HEADER, "chain": "orders"})), moved),
        "datakey" => (
            Some(json!({"bytes": 32, "aad": "cm93IDc=", "chain": "orders"})),
            json!({
                "plaintext": "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=",
                "ciphertext": ENVELOPE, "chain": "orders", "kek_id": KEK_ID,
            }),
        ),
        "batch_encrypt" => (
            Some(json!({
                "items": [{"plaintext": "aGVsbG8=", "aad": "cm93IDc="}, {"plaintext": "!"}],
                "chain": "orders",
            })),
            json!({"results": [sealed, failed(Kind::InvalidRequest)]}),
        ),
        "batch_decrypt" => (
            Some(json!({
                "items": [{"ciphertext": ENVELOPE, "aad": "cm93IDc="}, {"ciphertext": "kp:AQ=="}],
                "chain": "orders",
            })),
            json!({"results": [opened, failed(Kind::InvalidCiphertext)]}),
        ),
        "batch_rewrap" => (
            Some(json!({
                "items": [{"ciphertext": HEADER}, {"ciphertext": "kp:AQ=="}],
                "chain": "orders",
            })),
            json!({"results": [moved, failed(Kind::InvalidCiphertext)]}),
        ),
        "rotate" => (
            Some(json!({"chain": "orders"})),
            json!({"chain": "orders", "primary": KEK_ID, "previous": OTHER_ID, "key_id": null}),
        ),
        "list_chains" => (None, json!({"chains": [chain], "next": "orders"})),
        "read_chain" => {
            let mut answer = chain;
            if let Value::Object(fields) = &mut answer {
                fields.insert("items".to_owned(), json!([kek("primary", Value::Null)]));
                fields.insert("next".to_owned(), Value::Null);
            }
            (None, answer)
        }
        "put_chain" => (
            Some(json!({
                "suite": "aes-128-gcm", "rotate_after_uses": 2_097_152, "max_uses": 4_194_304,
                "rotate_after_age": 7_776_000,
            })),
            chain,
        ),
        "disable_kek" => (Some(json!({})), kek("disabled", json!("2026-11-24T08:00:00Z"))),
        "enable_kek" => (Some(json!({})), kek("retired", json!("2026-11-24T08:00:00Z"))),
        "destroy_kek" => {
            (Some(json!({"confirm": KEK_ID})), kek("destroyed", json!("2026-11-24T08:00:00Z")))
        }
        "missing_keks" => (
            None,
            json!({"chain": "orders", "items": [{
                "kek_id": OTHER_ID, "reason": "unknown",
                "first_seen": "2026-11-24T08:00:00Z", "last_seen": "2026-11-24T08:10:00Z",
            }]}),
        ),
        "rewrap_root" => (
            Some(json!({"limit": 100})),
            json!({"looked_at": 100, "changed": 12, "failed": [], "next": OTHER_ID,
                "settles_in_seconds": 0}),
        ),
        "remove_root" => (
            Some(json!({"after": OTHER_ID, "limit": 100})),
            json!({
                "looked_at": 2, "changed": 1, "next": null, "settles_in_seconds": 0,
                "failed": [{"kek_id": KEK_ID, "detail": "this is its last wrap"}],
            }),
        ),
        "status_json" => (
            None,
            json!({
                "status": "degraded", "version": "0.2.0", "time": "2026-11-24T08:00:00Z",
                "started_at": "2026-11-23T08:00:00Z", "uptime_seconds": 86_400,
                "summary": "Root main has been away since 2026-11-23T20:41:07Z.",
                "findings": [{
                    "level": "degraded", "about": "root:main",
                    "detail": "the root is away: throttled, since 2026-11-23T20:41:07Z",
                    "effect": "KEKs that no other root has wrapped decrypt while they are in \
                        memory. The other roots open the rest, and wrap new KEKs.",
                    "advice": "Make the root available, or correct its configuration.",
                    "commands": ["kms-proxy root status"],
                    "link": "https://github.com/kms-proxy/kms-proxy/blob/main/docs/operations.md",
                }],
                "chains": [{
                    "chain": "orders", "suite": "aes-128-gcm", "primary": KEK_ID,
                    "uses_reserved": 65_536, "rotate_after_uses": 2_097_152,
                    "next_rotation": {
                        "at": "2026-11-24T20:00:00Z", "in_seconds": 43_200, "reason": "uses",
                    },
                }],
                "next": null,
            }),
        ),
        "healthz" => (None, json!({"status": "ok"})),
        "readyz" => (
            None,
            json!({"status": "degraded", "checks": [
                {"name": "store", "status": "ok"},
                {"name": "root:main", "status": "degraded",
                    "detail": "the root is away: throttled, since 2026-11-23T20:41:07Z"},
            ]}),
        ),
        _ => return (None, None),
    };
    (request, Some(response))
}

/// What a call says that ends with this code.
pub(super) fn problem(kind: Kind) -> Value {
    let detail = match kind {
        Kind::InvalidRequest => "plaintext is not base64",
        Kind::InvalidCiphertext => {
            return problem_of(&Error::invalid_ciphertext());
        }
        Kind::UnknownKek => {
            "the ciphertext names KEK 0a3f5b7c9d1e2f40516273849506a7b8, which this chain does not \
                have"
        }
        Kind::Unauthenticated => "the request has no credentials that are known here",
        Kind::Forbidden => "requests from pages of other origins are refused",
        Kind::NotFound => "there is nothing at this path; /openapi.json lists what is",
        Kind::UnknownChain => "there is no chain of this name",
        Kind::MethodNotAllowed => "this path does not take this method",
        Kind::Conflict => "others changed it at the same time; try again",
        Kind::KekDisabled => "the KEK of this ciphertext is disabled",
        Kind::PayloadTooLarge => "the body has more than 4194304 bytes",
        Kind::UnsupportedMediaType => "the content type must be application/json",
        Kind::Overloaded => "the request was not done in time",
        Kind::Internal => "the service failed",
        Kind::KekExhausted => "no use of the primary KEK is left, and no new KEK could be made",
        Kind::RootUnavailable => "the root is away",
        Kind::StoreUnavailable => "the store is unavailable",
        Kind::ArchiveUnavailable => "the archives do not hold the next KEK of the chain yet",
        Kind::AuditUnavailable => "the audit log takes no line now",
    };
    problem_of(&Error::new(kind, detail))
}

fn problem_of(error: &Error) -> Value {
    json!({
        "type": "about:blank",
        "title": title(error),
        "status": error.kind().http_status(),
        "code": error.kind().code(),
        "detail": error.detail(),
        "request_id": "5f0c2a9e1b7d4c38",
    })
}
