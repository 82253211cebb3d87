//! `/openapi.json` and `/docs`: the document generated from the code, and a page that shows it and
//! fetches nothing from elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::extract::Path;
use axum::response::{IntoResponse, Redirect, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HeaderValue};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, RefOr, ServerBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};
use utoipa_swagger_ui::{Config, serve};

use crate::service::error::{Error, Kind};

use super::problem::{Problem, ProblemBody};
use super::{answer, calls};

/// All errors by status; [`calls`] keeps those that a call can return.
impl IntoResponses for ProblemBody<'_> {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let mut kinds = BTreeMap::<u16, Vec<Kind>>::new();
        for kind in Kind::ALL {
            kinds.entry(kind.http_status()).or_default().push(kind);
        }
        let response =
            |(status, kinds): (u16, Vec<Kind>)| (status.to_string(), calls::problem(&kinds).into());
        kinds.into_iter().map(response).collect()
    }
}

const BEARER: &str = "bearer";
const CERTIFICATE: &str = "certificate";

/// Adds the parts of the document that all routes share.
pub(super) fn complete(mut api: OpenApi) -> OpenApi {
    api.info = InfoBuilder::new()
        .title("kms-proxy")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Encryption as a service under a key chain: data is encrypted under single-use keys, \
             those are wrapped by a KEK in memory, and only the KEK is wrapped by the root key. \
             Binary fields are standard base64, ids are lower-case hex, times are RFC 3339, \
             durations whole seconds.",
        ))
        .license(Some(
            LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
        ))
        .build();
    api.servers = Some(vec![ServerBuilder::new().url("/").build()]);
    let tags = [
        ("data", "Encrypting and decrypting."),
        ("keys", "Key chains and their KEKs."),
        ("operations", "For probes, operators and Prometheus."),
    ];
    let tags =
        tags.map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build());
    api.tags = Some(tags.into());
    let mut schemas = Vec::new();
    ProblemBody::schemas(&mut schemas);
    schemas.push((ProblemBody::name().into_owned(), ProblemBody::schema()));
    let components = api.components.get_or_insert_default();
    components.schemas.extend(schemas);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token, or a JWT of an issuer that is configured."))
        .build();
    let certificate = SecurityScheme::MutualTls {
        description: Some("A client certificate with a name that is configured.".to_owned()),
        deprecated: None,
        extensions: None,
    };
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    components.add_security_scheme(CERTIFICATE, certificate);
    // Either of them, or nothing: `auth.mode` may be `none`.
    let nothing: [&str; 0] = [];
    let needs = |name| SecurityRequirement::new(name, nothing);
    api.security = Some(vec![needs(BEARER), needs(CERTIFICATE), SecurityRequirement::default()]);
    calls::complete(&mut api);
    api
}

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| super::openapi().into());

/// The document.
pub(super) async fn document() -> Response {
    answer::typed(DOCUMENT.clone(), HeaderValue::from_static("application/json"))
}

/// The page's files are beside it, so its address ends in a slash.
pub(super) async fn redirect() -> Redirect {
    Redirect::permanent("/docs/")
}

/// The page.
pub(super) async fn index() -> Result<Response, Problem> {
    page("")
}

/// A file of the page. It changes only with the binary.
pub(super) async fn file(Path(file): Path<String>) -> Result<Response, Problem> {
    let mut response = page(&file)?;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    Ok(response)
}

fn page(file: &str) -> Result<Response, Problem> {
    static PAGE: LazyLock<Arc<Config<'static>>> =
        LazyLock::new(|| Arc::new(Config::from("/openapi.json").validator_url("none")));
    let served = serve(file, Arc::clone(&PAGE)).map_err(|error| {
        tracing::error!(%error, "a file of the documentation page could not be made");
        Error::new(Kind::Internal, "the page could not be made")
    })?;
    let Some(served) = served else {
        return Err(Error::new(Kind::NotFound, "the page has no such file").into());
    };
    let content_type = HeaderValue::from_str(&served.content_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let bytes = if file.is_empty() { titled(&served.bytes) } else { served.bytes.into_owned() };
    let mut response = answer::typed(Bytes::from(bytes), content_type);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
             base-uri 'none'; frame-ancestors 'none'",
        ),
    );
    if served.gzpipped {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response.into_response())
}

/// The page with this service's name as its title.
fn titled(page: &[u8]) -> Vec<u8> {
    let (old, new) = ("<title>Swagger UI</title>", "<title>kms-proxy</title>");
    String::from_utf8_lossy(page).replace(old, new).into_bytes()
}
