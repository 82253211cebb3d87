//! `POST /v1/batch/...`: many items in one request, each with its own result.
//!
//! The status is 200 if the request itself is well-formed. An item that fails has an error as its
//! result.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::aead;
use crate::audit;
use crate::json::Text;
use crate::metrics::Operation;
use crate::service::error::{Error, Kind};
use crate::service::{Calls, DEFAULT_CHAIN};

use super::App;
use super::answer;
use super::body;
use super::data_call::{DataCall, Made};
use super::decrypt::{DecryptRequest, DecryptResponse};
use super::encrypt::{EncryptRequest, EncryptResponse};
use super::identity::Caller;
use super::problem::{Problem, ProblemBody};
use super::rewrap::{RewrapRequest, RewrapResponse};
use super::strict::Strict;

/// Maximum number of items in a batch.
const MAX_ITEMS: usize = 10_000;
/// Number of items after which a batch yields to other requests: about 100 us of small items.
const ITEMS_AT_A_STRETCH: usize = 64;
/// What a result has beside base64 in bytes, generously.
const ITEM_ROOM: usize = 320;

/// Many items for one chain.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "I: Deserialize<'de>"))]
struct Batch<'a, I> {
    items: Vec<Strict<I>>,
    #[serde(borrow)]
    chain: Option<Text<'a>>,
}

/// Declares what a batch of `$item` looks like, for the document alone.
macro_rules! describe {
    ($request:ident, $response:ident, $result:ident, $item:ty, $answer:ty) => {
        /// Many items for one chain.
        #[derive(Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "it describes `Batch`, which is generic")]
        pub(super) struct $request<'a> {
            /// The items; none of them names a chain.
            #[serde(borrow)]
            #[schema(min_items = 1, max_items = 10_000)]
            items: Vec<$item>,
            /// The key chain of all items; by default, `default`.
            #[schema(
                pattern = "^[a-z0-9][a-z0-9._-]{0,62}$",
                example = "default",
                required = false
            )]
            chain: Option<&'a str>,
        }

        /// The results of the items.
        #[derive(ToSchema)]
        #[expect(dead_code, reason = "it describes what `run` writes; a test compares the two")]
        pub(super) struct $response {
            /// One result for each item, in the same order.
            results: Vec<$result>,
        }

        /// The result of an item.
        #[derive(Serialize, ToSchema)]
        #[serde(untagged)]
        #[expect(dead_code, reason = "it describes what `run` writes; a test compares the two")]
        pub(super) enum $result {
            /// The item succeeded.
            Done($answer),
            /// The item failed.
            Failed(ItemFailure),
        }
    };
}

describe!(EncryptBatch, EncryptResults, EncryptResult, EncryptRequest<'a>, EncryptResponse);
describe!(DecryptBatch, DecryptResults, DecryptResult, DecryptRequest<'a>, DecryptResponse);
describe!(RewrapBatch, RewrapResults, RewrapResult, RewrapRequest<'a>, RewrapResponse);

/// An item that failed.
#[derive(Serialize, ToSchema)]
pub(super) struct ItemFailure {
    /// Why.
    error: ItemError,
}

/// Why an item failed.
#[derive(Serialize, ToSchema)]
pub(super) struct ItemError {
    /// The stable code of the error.
    #[schema(schema_with = super::problem::error_code)]
    code: &'static str,
    /// An explanation for the caller.
    #[schema(example = "plaintext is not base64")]
    detail: String,
}

/// Encrypts many plaintexts.
#[utoipa::path(post, path = "/v1/batch/encrypt", operation_id = "batch_encrypt", tag = "data",
    request_body = EncryptBatch,
    responses((status = 200, description = "The result of each item.", body = EncryptResults),
        ProblemBody))]
pub(super) async fn encrypt(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let body = body::read_json(request, app.body()).await?;
    run::<EncryptRequest<'_>>(&app, &caller, &body).await
}

/// Decrypts many envelopes.
#[utoipa::path(post, path = "/v1/batch/decrypt", operation_id = "batch_decrypt", tag = "data",
    request_body = DecryptBatch,
    responses((status = 200, description = "The result of each item.", body = DecryptResults),
        ProblemBody))]
pub(super) async fn decrypt(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let body = body::read_json(request, app.body()).await?;
    run::<DecryptRequest<'_>>(&app, &caller, &body).await
}

/// Rewraps the DEKs of many envelopes, or of headers alone, under the primary KEK.
#[utoipa::path(post, path = "/v1/batch/rewrap", operation_id = "batch_rewrap", tag = "data",
    request_body = RewrapBatch,
    responses((status = 200, description = "The result of each item.", body = RewrapResults),
        ProblemBody))]
pub(super) async fn rewrap(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let body = body::read_json(request, app.body()).await?;
    run::<RewrapRequest<'_>>(&app, &caller, &body).await
}

async fn run<'a, C: DataCall + Deserialize<'a>>(
    app: &App,
    caller: &Caller,
    body: &'a [u8],
) -> Result<Response, Problem> {
    let batch: Batch<'a, C> = body::parse(body)?;
    if !(1..=MAX_ITEMS).contains(&batch.items.len()) {
        return Err(body::invalid(format!("items: there must be 1 to {MAX_ITEMS} of them")).into());
    }
    let chain = batch.chain.as_ref().map(Text::as_str);
    // Items name no chain, so all are allowed or none is.
    let service = app.access.enter(caller, C::OPERATION, chain)?;
    // The answer of most batches has no more than this.
    let room = 2 * body.len() + ITEM_ROOM * batch.items.len();
    let out = aead::sweep_once(results(app, &batch.items, service.on(chain), chain, room)).await?;
    Ok(answer::written(out))
}

/// Makes the calls of the items, and writes their results, which take `room` bytes at most unless
/// there are long errors.
async fn results<C: DataCall>(
    app: &App,
    items: &[Strict<C>],
    mut calls: Calls<'_>,
    chain: Option<&str>,
    room: usize,
) -> Result<Vec<u8>, Error> {
    let mut out = b"{\"results\":[".to_vec();
    // Many batches grow concurrently, long before one is sent.
    let mut held = app.budget.take(0);
    let mut reserve = |out: &mut Vec<u8>, room: usize| {
        out.reserve(room);
        if held.as_mut().is_some_and(|held| held.grow(out.capacity())) {
            return Ok(());
        }
        Err(Error::new(Kind::Overloaded, "there is no room for the answer now"))
    };
    let mut left = items.len();
    for stretch in items.chunks(ITEMS_AT_A_STRETCH) {
        if left < items.len() {
            reserve(&mut out, 0)?;
            tokio::task::yield_now().await;
        }
        calls.expect(stretch.len());
        for Strict(item) in stretch {
            if left < items.len() {
                out.push(b',');
            }
            let start = out.len();
            let made = match item.chain() {
                None => item.run(&mut calls).await,
                Some(_) => Err(body::invalid("chain is given once for all items, not in an item")),
            };
            match made {
                Ok(made) => made.write(&mut out),
                Err(error) => fail(app, C::OPERATION, chain, &error, &mut out),
            }
            if left == items.len() {
                // The other results are likely to be as long as the first.
                let others = (out.len() - start + 1) * (left - 1);
                reserve(&mut out, others.min(room) + "]}".len())?;
            }
            left -= 1;
        }
        calls.settle();
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// Counts the error of an item, and writes it as the result.
fn fail(app: &App, operation: Operation, chain: Option<&str>, error: &Error, out: &mut Vec<u8>) {
    app.access.count(operation, error);
    // The service has reported the others.
    if !error.is_counted() {
        audit::record::report(&audit::Event {
            operation: Some(operation),
            chain: audit::ChainRef::Named(chain.unwrap_or(DEFAULT_CHAIN)),
            outcome: error.kind().code(),
            ..audit::Event::default()
        });
    }
    let detail = error.detail().to_owned();
    let failure = ItemFailure { error: ItemError { code: error.kind().code(), detail } };
    // Two strings can be written.
    out.extend_from_slice(&serde_json::to_vec(&failure).unwrap_or_default());
}
