//! The way of a request from the gate to what handles it: checks, identification of the caller, the
//! deadline and panics.
//!
//! It makes no response to an error, and does not know how a response is sent.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use axum::extract::Request;
use axum::response::Response;

use crate::audit::record;
use crate::auth::{Auth, Client, Identified};
use crate::service::error::{Error, Kind};

use super::super::beside::{Beside, Call};
use super::super::paced::Streaming;
use super::super::request_id::RequestId;
use super::super::{Handler, identity};
use super::Shared;

/// A request on its way to what handles it.
pub(super) struct Passing<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) id: &'a RequestId,
    /// Who it is from, for the log.
    pub(super) client: &'a mut Option<Arc<Client>>,
}

impl Passing<'_> {
    /// Handles it, unless it must be refused.
    pub(super) async fn answer(
        self,
        handler: Handler,
        request: Request,
        beside: Option<&dyn Beside>,
        framed: bool,
    ) -> Result<Response, Error> {
        let Self { shared, id, client } = self;
        if !framed {
            let why = "transfer-encoding must be chunked and nothing else";
            return Err(Error::new(Kind::InvalidRequest, why));
        }
        shared.origins.check(&request)?;
        match (beside, &shared.auth) {
            (Some(api), _) => {
                let call = Call::new(request, id, Arc::clone(shared) as _);
                guarded(api.respond(call), shared).await
            }
            (None, None) => guarded(handler.answer(request), shared).await,
            (None, Some(auth)) => {
                // Boxed, so that requests without authentication don't carry this future.
                let recognised = Recognised { auth, shared, id, client };
                Box::pin(recognised.answer(handler, request)).await
            }
        }
    }
}

/// A request to a service that serves only clients.
struct Recognised<'a> {
    auth: &'a Auth,
    shared: &'a Shared,
    id: &'a RequestId,
    /// Who it is from, for the log.
    client: &'a mut Option<Arc<Client>>,
}

impl Recognised<'_> {
    /// Handles it with the permissions of its client. Probes need none.
    async fn answer(self, handler: Handler, mut request: Request) -> Result<Response, Error> {
        let shown = identity::shown(request.headers(), request.extensions());
        let Identified { client, by } = match self.auth.identify(shown).await {
            Ok(identified) => identified,
            // Until the service has started every request gets the same answer.
            Err(_)
                if handler.is_starting()
                    || identity::is_open(request.uri().path())
                    || handler.lacks_status(request.uri().path()) =>
            {
                return guarded(handler.answer(request), self.shared).await;
            }
            Err(refusal) => {
                self.auth.failed(refusal);
                self.shared.refusal_log.caller(refusal, self.id, shown.peer);
                return Err(identity::unauthenticated());
            }
        };
        let client = self.client.insert(client);
        self.shared.metrics.traffic.client_called(client.name());
        if let Some(record) = record::current() {
            record.identified(Some(client.shared_name()), by.as_str());
        }
        let place = client.enter()?;
        request.extensions_mut().insert(Arc::clone(client));
        let answer = client.lookups().scope(guarded(handler.answer(request), self.shared)).await;
        if let Ok(response) = &answer
            && let Some(streaming) = response.extensions().get::<Streaming>()
        {
            streaming.hold(place);
        }
        answer
    }
}

/// Runs a call until it ends, panics or exceeds its deadline. The timer starts, and the call takes
/// one of the places for waiting calls, when it first waits: most calls never do.
async fn guarded(call: impl Future<Output = Response>, shared: &Shared) -> Result<Response, Error> {
    let mut call = pin!(call);
    let mut place = None;
    let mut timer: Option<Pin<Box<tokio::time::Sleep>>> = None;
    std::future::poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
            Ok(Poll::Ready(response)) => Poll::Ready(Ok(response)),
            Ok(Poll::Pending) => {
                if place.is_none() {
                    place = shared.waiting.try_acquire().ok();
                }
                if place.is_none() {
                    let error = Error::new(Kind::Overloaded, "too many requests are under way");
                    return Poll::Ready(Err(error));
                }
                let timer =
                    timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(shared.timeout)));
                timer
                    .as_mut()
                    .poll(context)
                    .map(|()| Err(Error::new(Kind::Overloaded, "the request was not done in time")))
            }
            Err(_) => Poll::Ready(Err(Error::new(Kind::Internal, "the service failed"))),
        }
    })
    .await
}
