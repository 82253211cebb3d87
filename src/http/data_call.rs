//! The steps of a call on data: read and parse the body, check the caller, run the call, write the
//! result. Each call implements only what differs: [`DataCall`], [`Made`] and [`RawMade`].

use axum::extract::Request;
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;

use crate::metrics::Operation;
use crate::service::error::Error;
use crate::service::{Calls, KeyService};

use super::App;
use super::answer;
use super::body::{self, Content, Limit};
use super::identity::Caller;
use super::media::Media;

/// A call on data, by its JSON body. It can be an item of a batch.
pub(super) trait DataCall {
    /// The permission that it needs, and what it counts as.
    const OPERATION: Operation;

    /// What it makes.
    type Made: Made;

    /// The chain that the body names.
    fn chain(&self) -> Option<&str>;

    /// Makes the call as one of `calls`, which are on the chain.
    async fn run(&self, calls: &mut Calls<'_>) -> Result<Self::Made, Error>;
}

/// The result of a call.
pub(super) trait Made {
    /// Writes it, as a JSON object, to the end of `out`.
    fn write(&self, out: &mut Vec<u8>);
}

/// The result of a call whose response may also be raw bytes.
pub(super) trait RawMade: Made {
    /// The raw response.
    fn raw(self) -> Response;
}

/// Makes the call of a JSON body, once its caller was checked.
pub(super) async fn run<'a, C: DataCall + Deserialize<'a>>(
    app: &App,
    caller: &Caller,
    body: &'a [u8],
) -> Result<C::Made, Error> {
    let call: C = body::parse(body)?;
    let chain = call.chain();
    let service = app.access.enter(caller, C::OPERATION, chain)?;
    call.run(&mut service.on(chain)).await
}

/// The result as JSON.
pub(super) fn json(made: &impl Made) -> Response {
    let mut out = Vec::new();
    made.write(&mut out);
    answer::written(out)
}

/// A request whose body may be JSON or raw.
pub(super) struct Received {
    headers: HeaderMap,
    pub(super) caller: Caller,
    wanted: Media,
    pub(super) media: Media,
    pub(super) body: Content,
}

impl Received {
    /// Reads a request. A raw body in pieces has `room` around it.
    pub(super) async fn read(
        app: &App,
        request: Request,
        limit: Limit<'_>,
        room: (usize, usize),
    ) -> Result<Self, Error> {
        let (head, body) = request.into_parts();
        let caller = app.access.caller(&head.extensions)?;
        let media = Media::of(&head.headers)?;
        let wanted = Media::wanted(&head.headers, media);
        let room = if media == Media::Octets { room } else { (0, 0) };
        let body = body::read_with_room(body, limit, room).await?;
        Ok(Self { headers: head.headers, caller, wanted, media, body })
    }

    /// The service, the chain and the AAD of a raw body, once its caller was checked.
    pub(super) fn enter_raw<'a>(
        &self,
        app: &'a App,
        operation: Operation,
    ) -> Result<(&'a KeyService, Option<String>, Vec<u8>), Error> {
        let (chain, aad) = body::raw_context(&self.headers)?;
        let service = app.access.enter(&self.caller, operation, chain.as_deref())?;
        Ok((service, chain, aad))
    }

    /// The result in the form that the caller accepts.
    pub(super) fn respond(&self, made: impl RawMade) -> Response {
        match self.wanted {
            Media::Json => json(&made),
            Media::Octets => made.raw(),
        }
    }
}
