//! What the OpenAPI document says of a call: every error that any test sees is looked up here.

use std::sync::LazyLock;

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value};

use super::root;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read(root().join("openapi/kms-proxy.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
});

/// Panics when `answer` is an error that the document does not list for this call. Paths that the
/// document does not have are not checked.
pub(crate) fn check(method: &Method, path: &str, status: StatusCode, answer: &Value) {
    let path = path.split('?').next().unwrap();
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let Some(item) = paths.iter().find_map(|(template, item)| fits(template, path).then_some(item))
    else {
        return;
    };
    let Some(operation) = item.get(method.as_str().to_ascii_lowercase()) else { return };
    let listed = &operation["responses"][status.as_str()];
    let said = format!("{method} {path}: {status} {answer}");
    assert!(listed.is_object(), "the document has no such status: {said}");
    if let Some(code) = answer["code"].as_str() {
        let examples = &listed["content"]["application/problem+json"]["examples"];
        let codes = examples.as_object().map(Map::keys).into_iter().flatten();
        assert!(codes.into_iter().any(|listed| listed == code), "not in the document: {said}");
    }
}

/// Whether `path` is one of `/v1/chains/{name}`.
fn fits(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(part, given)| part.starts_with('{') || part == given)
}

#[test]
fn an_error_that_the_document_does_not_list_is_noticed() {
    let problem = serde_json::json!({"code": "kek_disabled"});
    let disabled = |path: &str| check(&Method::POST, path, StatusCode::CONFLICT, &problem);
    disabled("/v1/decrypt");
    disabled("/v1/no-such-call");
    for path in ["/v1/encrypt", "/v1/rotate", "/v1/chains/orders/roots/main/rewrap"] {
        assert!(std::panic::catch_unwind(|| disabled(path)).is_err(), "{path}");
    }
}
