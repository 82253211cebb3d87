//! The caller of a request, and access to the service within its permissions.
//!
//! Handlers have no other way: [`GuardedService::enter`] wants the caller, the operation and the
//! chain.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::Extensions;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;

use crate::audit;
use crate::auth::{Auth, Client, Refusal, Shown, Token};
use crate::id::ChainName;
use crate::log_throttle::LogThrottle;
use crate::metrics::Operation;
use crate::service::error::{Error, Kind};
use crate::service::{Check, DEFAULT_CHAIN, Health, KeyService, Readiness};
use crate::tls::peer::Peer;

use super::App;
use super::problem::Problem;
use super::request_id::RequestId;

/// The caller of a request.
#[derive(Clone)]
pub(super) enum Caller {
    /// Anyone may do everything: `auth.mode = "none"`, or the listener of operators.
    Anyone,
    /// The client that the gate has recognised.
    Client(Arc<Client>),
}

/// The service, behind the permissions.
pub(super) struct GuardedService {
    service: Arc<KeyService>,
    auth: Option<Arc<Auth>>,
    /// Whether callers need no identity.
    open: bool,
}

/// The credentials of a request.
pub(super) fn shown<'a>(headers: &'a HeaderMap, extensions: &'a Extensions) -> Shown<'a> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let token = match (given.next(), given.next()) {
        (None, _) => Token::Missing,
        (Some(one), None) => {
            let bearer = one.to_str().ok().and_then(|text| text.split_once(' '));
            match bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
                Some((_, token)) => Token::Bearer(token.trim()),
                None => Token::Malformed,
            }
        }
        (Some(_), Some(_)) => Token::Malformed,
    };
    Shown { peer: extensions.get::<Arc<Peer>>().map(|peer| &**peer), token }
}

/// Whether a path is for probes, which have no identity.
pub(super) fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

/// The response to every caller that is not recognised: the same for each reason.
pub(super) fn unauthenticated() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "no valid client certificate, token or JWT came with the request",
    )
}

/// Unrecognised callers that are logged at `info` per second, so that they can't fill the disk.
/// The rest are logged at `debug`; the metric counts all of them.
const LINES_A_SECOND: u32 = 10;

/// Logs why callers were not recognised.
pub(super) struct RefusalLog(LogThrottle);

impl Default for RefusalLog {
    fn default() -> Self {
        Self(LogThrottle::new(LINES_A_SECOND, Duration::from_secs(1)))
    }
}

impl RefusalLog {
    pub(super) fn caller(&self, refusal: Refusal, id: &RequestId, peer: Option<&Peer>) {
        let (request_id, trace_id) = (id.as_str(), id.trace_text());
        let (reason, certificate) = (refusal.as_str(), peer.map(|peer| &*peer.subject));
        let by_names = matches!(refusal, Refusal::UnknownCertificate | Refusal::Ambiguous);
        let names = peer.filter(|_| by_names).map(Peer::names);
        let detail = refusal.detail();
        let (detail, names) = (detail.as_deref(), names.as_deref());
        if self.0.admit().is_some() {
            tracing::info!(
                request_id,
                trace_id,
                reason,
                detail,
                certificate,
                names,
                "a caller was not recognised"
            );
        } else {
            tracing::debug!(
                request_id,
                trace_id,
                reason,
                detail,
                certificate,
                names,
                "a caller was not recognised"
            );
        }
    }

    /// Logs a handshake that failed because of the client's certificate.
    pub(super) fn handshake(&self, why: &std::io::Error) {
        let reason = Refusal::Certificate.as_str();
        if self.0.admit().is_some() {
            tracing::info!(reason, %why, "a caller was not recognised");
        } else {
            tracing::debug!(reason, %why, "a caller was not recognised");
        }
    }

    /// Whether one more line may be written at `info`.
    pub(super) fn may_log(&self) -> bool {
        self.0.admit().is_some()
    }
}

impl GuardedService {
    /// For the clients of `auth`, or without it for everybody.
    pub(super) fn new(service: Arc<KeyService>, auth: Option<Arc<Auth>>) -> Self {
        let open = auth.is_none();
        Self { service, auth, open }
    }

    /// The same for anyone who reaches the listener of operators.
    pub(super) fn for_operators(service: Arc<KeyService>, auth: Option<Arc<Auth>>) -> Self {
        Self { service, auth, open: true }
    }

    /// Whether the service is about to end.
    pub(super) fn is_draining(&self) -> bool {
        self.service.is_draining()
    }

    /// The service, for a caller who may do `operation` with `chain`; `None` means `default`.
    pub(super) fn enter(
        &self,
        caller: &Caller,
        operation: Operation,
        chain: Option<&str>,
    ) -> Result<&Arc<KeyService>, Error> {
        if let Caller::Client(client) = caller {
            let chain = chain.unwrap_or(DEFAULT_CHAIN);
            let checked = client.check(operation, chain);
            checked.inspect_err(|error| {
                audit::record::report(&audit::Event {
                    operation: Some(operation),
                    chain: audit::ChainRef::Named(chain),
                    outcome: error.kind().code(),
                    ..audit::Event::default()
                });
            })?;
        }
        Ok(&self.service)
    }

    /// The service and the chains that a caller may read; an error if there are none.
    pub(super) fn enter_to_list(
        &self,
        caller: &Caller,
    ) -> Result<(&KeyService, impl Fn(&ChainName) -> bool), Error> {
        let client = match caller {
            Caller::Anyone => None,
            Caller::Client(client) if client.may_with_some(Operation::Read) => {
                Some(Arc::clone(client))
            }
            Caller::Client(client) => {
                let detail = format!("the client {} may not read any chain", client.name());
                return Err(Error::new(Kind::Forbidden, detail));
            }
        };
        let visible = move |name: &ChainName| {
            client.as_ref().is_none_or(|client| client.may(Operation::Read, name.as_str()))
        };
        Ok((&self.service, visible))
    }

    /// The service for calls that show every chain.
    pub(super) fn enter_for_all(&self, caller: &Caller) -> Result<&KeyService, Error> {
        match caller {
            Caller::Client(client) if !client.may_with_all(Operation::Read) => {
                let name = client.name();
                let detail = format!("the client {name} may not read all chains, with the glob *");
                Err(Error::new(Kind::Forbidden, detail))
            }
            _ => Ok(&self.service),
        }
    }

    /// Whether a caller may read every chain.
    pub(super) fn reads_all(&self, caller: &Caller) -> bool {
        self.enter_for_all(caller).is_ok()
    }

    /// The service, for a caller who may manage every chain: a backup contains all of them.
    pub(super) fn enter_to_back_up(&self, caller: &Caller) -> Result<&KeyService, Error> {
        match caller {
            Caller::Client(client) if !client.may_with_all(Operation::Manage) => {
                let name = client.name();
                let detail =
                    format!("the client {name} may not manage all chains, with the glob *");
                Err(Error::new(Kind::Forbidden, detail))
            }
            _ => Ok(&self.service),
        }
    }

    /// The readiness of the service. A caller who may not read all chains does not see what
    /// was looked at: it names chains.
    pub(super) fn readiness(
        &self,
        caller: Option<&Caller>,
        certificate: Option<Check>,
        audit: Option<Check>,
    ) -> Readiness {
        let mut readiness = self.service.readiness();
        if audit.as_ref().is_some_and(|check| check.health == Health::Down) {
            readiness.health = Health::Down;
        }
        let rules = self.auth.iter().flat_map(|auth| auth.checks());
        readiness.add(certificate.into_iter().chain(audit).chain(rules).collect());
        if caller.is_none_or(|caller| self.enter_for_all(caller).is_err()) {
            readiness.checks.clear();
        }
        readiness
    }

    /// Counts a failure, unless the service has counted it.
    pub(super) fn count(&self, operation: Operation, error: &Error) {
        if !error.is_counted() {
            self.service.metrics().failed(operation, "", error.kind().code());
        }
    }

    /// Who called, by what the gate has put into the request. Without it nobody did: what goes
    /// around the gate comes to no key.
    pub(super) fn caller(&self, extensions: &Extensions) -> Result<Caller, Error> {
        if self.open {
            return Ok(Caller::Anyone);
        }
        extensions.get().cloned().map(Caller::Client).ok_or_else(unauthenticated)
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        Ok(app.access.caller(&parts.extensions)?)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_bearer_token_is_the_one_header_of_its_kind() {
        let extensions = Extensions::new();
        for (given, token) in [
            (&[][..], "missing"),
            (&["Bearer abc"], "abc"),
            (&["bearer  abc "], "abc"),
            (&["BEARER a.b.c"], "a.b.c"),
            (&["Bearer "], ""),
            (&["Bearer"], "malformed"),
            (&["Basic YTpi"], "malformed"),
            (&[""], "malformed"),
            (&["Bearer \u{e9}"], "malformed"),
            (&["Bearer abc", "Bearer abc"], "malformed"),
        ] {
            let mut headers = HeaderMap::new();
            for value in given {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                headers.append(AUTHORIZATION, value);
            }
            let found = match shown(&headers, &extensions).token {
                Token::Missing => "missing",
                Token::Malformed => "malformed",
                Token::Bearer(token) => token,
            };
            assert_eq!(found, token, "{given:?}");
        }
    }
}
