//! The error codes and examples of each call in the OpenAPI document.
//!
//! Calls are identified by their operation ids. The tests of the running service compare every
//! error that they see with this table.

use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Content, ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};

use crate::service::error::Kind;

use super::problem::ProblemBody;

mod examples;

const PROBLEM: &str = "application/problem+json";

/// Of every call: errors of the gate, and of callers without permission.
const ANY: &[Kind] = &[
    Kind::InvalidRequest,
    Kind::Unauthenticated,
    Kind::Forbidden,
    Kind::Overloaded,
    Kind::Internal,
    Kind::AuditUnavailable,
];
/// The same for calls without authentication.
const PROBE: &[Kind] = &[Kind::InvalidRequest, Kind::Forbidden, Kind::Overloaded, Kind::Internal];
/// Of calls with a body.
const BODY: &[Kind] = &[Kind::PayloadTooLarge, Kind::UnsupportedMediaType];
/// Of calls that need no store, while the service is starting.
const START: &[Kind] = &[Kind::StoreUnavailable];
/// Of calls on a chain.
const CHAIN: &[Kind] = &[Kind::UnknownChain, Kind::StoreUnavailable, Kind::ArchiveUnavailable];
/// Of calls with a name in their path: an empty one makes another path of it.
const PATH: &[Kind] = &[Kind::NotFound];
/// Of calls that need a use of the primary.
const SEAL: &[Kind] = &[Kind::KekExhausted, Kind::RootUnavailable];
/// Of calls that read an envelope.
const OPEN: &[Kind] =
    &[Kind::InvalidCiphertext, Kind::UnknownKek, Kind::KekDisabled, Kind::RootUnavailable];
/// Of calls that change a KEK.
const KEK: &[Kind] = &[Kind::UnknownKek, Kind::Conflict, Kind::RootUnavailable];
/// Of calls that wrap a KEK.
const WRAP: &[Kind] = &[Kind::Conflict, Kind::RootUnavailable];

/// The codes of a call, in groups; `None` for one that is not in the table.
fn codes(operation: &str) -> Option<&'static [&'static [Kind]]> {
    Some(match operation {
        "encrypt" | "datakey" | "stream_encrypt" => &[ANY, BODY, CHAIN, SEAL],
        "decrypt" | "stream_decrypt" => &[ANY, BODY, CHAIN, OPEN],
        "rewrap" => &[ANY, BODY, CHAIN, OPEN, SEAL],
        // The items have theirs.
        "batch_encrypt" | "batch_decrypt" | "batch_rewrap" => &[ANY, BODY, START],
        "rotate" => &[ANY, BODY, CHAIN, WRAP],
        "list_chains" => &[ANY, &[Kind::StoreUnavailable]],
        "read_chain" | "missing_keks" => &[ANY, PATH, CHAIN],
        "delete_chain" => &[ANY, PATH, CHAIN, &[Kind::Conflict]],
        "put_chain" => {
            &[ANY, PATH, BODY, &[Kind::Conflict, Kind::StoreUnavailable, Kind::ArchiveUnavailable]]
        }
        "disable_kek" | "enable_kek" | "destroy_kek" => &[ANY, PATH, BODY, CHAIN, KEK],
        "rewrap_root" | "remove_root" => &[ANY, PATH, BODY, CHAIN, WRAP],
        "backup" => &[ANY, &[Kind::Conflict, Kind::StoreUnavailable]],
        "status" | "status_json" => &[ANY, START],
        "chain_status" => &[ANY, PATH, CHAIN],
        "healthz" | "readyz" => &[PROBE],
        "metrics" => &[PROBE, START],
        _ => return None,
    })
}

/// Puts codes and examples into the document.
pub(super) fn complete(api: &mut OpenApi) {
    for item in api.paths.paths.values_mut() {
        for operation in operations(item) {
            let Some(id) = operation.operation_id.clone() else { continue };
            if let Some(codes) = codes(&id) {
                set_problems(operation, codes);
            }
            set_examples(operation, &id);
            if matches!(&*id, "encrypt" | "decrypt" | "stream_encrypt" | "stream_decrypt") {
                add_raw_headers(operation);
            }
        }
    }
}

/// The operations of a path, by the methods that the API has.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
}

/// Every error that a call of this kind can end with, one answer a status.
fn set_problems(operation: &mut Operation, codes: &[&[Kind]]) {
    let responses = &mut operation.responses.responses;
    responses.retain(|_, response| match response {
        RefOr::T(response) => !response.content.contains_key(PROBLEM),
        RefOr::Ref(_) => true,
    });
    let possible = |kind: &Kind| codes.iter().any(|group| group.contains(kind));
    let mut kinds: Vec<_> = Kind::ALL.into_iter().filter(possible).collect();
    kinds.sort_by_key(|kind| kind.http_status());
    for group in kinds.chunk_by(|a, b| a.http_status() == b.http_status()) {
        let Some(first) = group.first() else { continue };
        // Probes document their own responses with a status of failure.
        responses.entry(first.http_status().to_string()).or_insert_with(|| problem(group).into());
    }
}

/// The answer of a status, with an example of each code.
pub(super) fn problem(kinds: &[Kind]) -> Response {
    let codes: Vec<_> = kinds.iter().map(|kind| format!("`{}`", kind.code())).collect();
    let examples = kinds.iter().map(|&kind| {
        let example = ExampleBuilder::new().value(Some(examples::problem(kind))).build();
        (kind.code().to_owned(), RefOr::T(example))
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(ProblemBody::name())))
        .examples_from_iter(examples)
        .build();
    let response = ResponseBuilder::new().description(codes.join(", ")).content(PROBLEM, content);
    if kinds.iter().any(|kind| kind.retryable()) {
        let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
        let header = HeaderBuilder::new()
            .schema(Some(seconds))
            .description(Some("Seconds after which the caller should try again."));
        response.header("retry-after", header.build()).build()
    } else {
        response.build()
    }
}

fn set_examples(operation: &mut Operation, id: &str) {
    let (request, response) = examples::of(id);
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        set_example(body.content.get_mut("application/json"), request);
    }
    for status in ["200", "201"] {
        if let Some(RefOr::T(made)) = operation.responses.responses.get_mut(status) {
            set_example(made.content.get_mut("application/json"), response.clone());
        }
    }
}

fn set_example(content: Option<&mut RefOr<Content>>, example: Option<Value>) {
    if let (Some(RefOr::T(content)), Some(example)) = (content, example) {
        content.example = Some(example);
    }
}

/// What comes in headers where the answer is raw bytes.
fn add_raw_headers(operation: &mut Operation) {
    let Some(RefOr::T(made)) = operation.responses.responses.get_mut("200") else { return };
    for (name, text) in [
        ("kms-proxy-chain", "The key chain, of a raw answer."),
        ("kms-proxy-kek-id", "The KEK that wraps the envelope's DEK, of a raw answer."),
    ] {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(text)).build();
        made.headers.insert(name.to_owned(), header.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_says_what_it_can_end_with_and_has_examples() {
        let mut api: OpenApi = serde_json::from_str(&super::super::openapi()).unwrap();
        for (path, item) in &mut api.paths.paths {
            for operation in operations(item) {
                let id = operation.operation_id.clone().unwrap();
                assert!(codes(&id).is_some(), "{path}: {id} is not in the table");
                if id.starts_with("stream_") {
                    // Both bodies are bytes.
                    continue;
                }
                let (request, response) = examples::of(&id);
                assert_eq!(operation.request_body.is_some(), request.is_some(), "{id}");
                let has_none = ["metrics", "delete_chain", "backup", "status", "chain_status"];
                let has_none = has_none.contains(&&*id);
                assert!(response.is_some() || has_none, "{id}");
            }
        }
    }
}
