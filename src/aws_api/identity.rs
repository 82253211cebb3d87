//! Who calls, and whether they may: by the client certificate, or by the signature.

use std::sync::Arc;

use http::request::Parts;

use crate::audit::{Event, record};
use crate::auth::{Client, Credential, Identified, Refusal, Shown, Token};
use crate::http::Stranger;
use crate::metrics::Operation as Permission;
use crate::sigv4::{self, Authorization, MAX_SKEW, Request, Scope};

use super::Api;
use super::error::{Code, Error};
use super::key_id::Key;

/// The service in the scope of signatures.
const SERVICE: &str = "kms";

/// Who called.
pub(super) struct Caller {
    /// The client; without it every caller may do everything.
    pub(super) client: Option<Arc<Client>>,
    pub(super) stranger: Stranger,
}

impl Caller {
    /// Whether the caller may use a chain so.
    pub(super) fn may(&self, permission: Permission, chain: &str) -> bool {
        self.client.as_ref().is_none_or(|client| client.may(permission, chain))
    }

    fn name(&self) -> &str {
        self.client.as_deref().map_or("anyone", Client::name)
    }

    /// Checks that the caller may use the chain of a key so. `operation` is that of KMS.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub(super) fn check(
        &self,
        operation: &str,
        permission: Permission,
        key: &Key,
    ) -> Result<(), Error> {
        match self.may(permission, key.chain.as_str()) {
            true => Ok(()),
            false => Err(self.denied(operation, &key.arn)),
        }
    }

    /// Checks that the caller may use every chain so, with the glob `*`: what keys without a chain
    /// need.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub(super) fn check_all(&self, operation: &str, permission: Permission) -> Result<(), Error> {
        match self.client.as_ref().is_none_or(|client| client.may_with_all(permission)) {
            true => Ok(()),
            false => Err(self.denied(operation, "*")),
        }
    }

    /// Checks that the caller may use some chain so.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub(super) fn check_some(&self, operation: &str, permission: Permission) -> Result<(), Error> {
        match self.client.as_ref().is_none_or(|client| client.may_with_some(permission)) {
            true => Ok(()),
            false => Err(self.denied(operation, "*")),
        }
    }

    /// The error of a call that the caller may not make, which is logged.
    pub(super) fn denied(&self, operation: &str, key: &str) -> Error {
        self.denied_as(operation, key, key)
    }

    /// The same for a key that the caller knows as `shown`.
    pub(super) fn denied_as(&self, operation: &str, key: &str, shown: &str) -> Error {
        let (client, id) = (self.name(), self.stranger.request_id());
        let (request_id, trace_id) = (id.as_str(), id.trace_text());
        if self.stranger.may_log() {
            tracing::info!(
                request_id,
                trace_id,
                client,
                operation,
                key,
                "access to a key was denied"
            );
        } else {
            tracing::debug!(
                request_id,
                trace_id,
                client,
                operation,
                key,
                "access to a key was denied"
            );
        }
        record::report(&Event {
            key: Some(key),
            outcome: Code::AccessDenied.outcome(),
            ..Event::default()
        });
        let message = format!(
            "User: {client} is not authorized to perform: kms:{operation} on resource: {shown}"
        );
        Error::new(Code::AccessDenied, message)
    }
}

impl Api {
    /// The client that calls; none where every caller may do everything. A client's certificate
    /// counts before the signature, which is not verified then.
    pub(super) async fn identify(
        &self,
        parts: &Parts,
        body: &[u8],
        stranger: &Stranger,
    ) -> Result<Option<Arc<Client>>, Error> {
        let Some(auth) = &self.auth else { return Ok(None) };
        if let Some(peer) = stranger.peer() {
            let shown = Shown { peer: Some(peer), token: Token::Missing };
            match Box::pin(auth.identify(shown)).await {
                Ok(known) => return Ok(Some(identified(known))),
                Err(Refusal::UnknownCertificate) => {}
                Err(refusal) => {
                    stranger.refused(refusal);
                    let message = "the client certificate is that of more than one client";
                    return Err(Error::new(Code::UnrecognizedClient, message));
                }
            }
        }
        match self.verify(parts, body).await {
            Ok(client) => Ok(Some(identified(Identified { client, by: Credential::AccessKey }))),
            Err((refusal, error)) => {
                stranger.refused(refusal);
                Err(error)
            }
        }
    }

    /// Verifies the signature.
    async fn verify(&self, parts: &Parts, body: &[u8]) -> Result<Arc<Client>, (Refusal, Error)> {
        let Some(auth) = &self.auth else { return Err((Refusal::Nothing, unrecognized())) };
        let refused = |refusal| self.explain(refusal);
        if parts.uri.query().is_some_and(|query| !query.is_empty()) {
            let detail = "the URL must have no query: a presigned request is not supported";
            return Err(refused(sigv4::Refusal::Incomplete(detail)));
        }
        let request = Request {
            method: parts.method.as_str(),
            // Signers write several slashes as one, and this API has no other path.
            path: "/",
            query: "",
            headers: &parts.headers,
            authority: parts.uri.authority().map(http::uri::Authority::as_str),
            body,
        };
        let scope = Scope { region: &self.region, service: SERVICE };
        let authorization = Authorization::parse(&parts.headers).map_err(refused)?;
        let checked = authorization.check(&request, scope, self.clock.unix_now());
        let checked = checked.map_err(refused)?;
        let key = auth.access_key(authorization.access_key_id);
        let key = key.ok_or_else(|| (Refusal::UnknownToken, unrecognized()))?;
        let signing = key.signing_key(authorization.day, scope, &*self.clock).await;
        let signing = signing.map_err(|error| {
            let client = key.client().name();
            tracing::error!(client, error, "the secret access key of a client cannot be read");
            let message = "kms-proxy cannot read the secret of this access key; its log says why";
            (Refusal::UnknownKey, Error::new(Code::DependencyTimeout, message))
        })?;
        checked.verify(&signing).map_err(refused)?;
        Ok(Arc::clone(key.client()))
    }

    /// A refusal as metrics and the caller see it.
    fn explain(&self, refusal: sigv4::Refusal) -> (Refusal, Error) {
        let now = self.clock.unix_now();
        let date = |unix| sigv4::format_date(unix);
        let signature = |message: String| Error::new(Code::InvalidSignature, message);
        match refusal {
            sigv4::Refusal::Missing => {
                let message = "Missing Authentication Token";
                (Refusal::Nothing, Error::new(Code::MissingAuthenticationToken, message))
            }
            sigv4::Refusal::Incomplete(detail) => {
                (Refusal::Malformed, Error::new(Code::IncompleteSignature, detail))
            }
            sigv4::Refusal::SecurityToken => {
                let message = "The security token included in the request is invalid: kms-proxy \
                               cannot know the secrets of IAM roles. Use the access key of a \
                               [[client]], or a client certificate";
                (Refusal::UnknownToken, Error::new(Code::UnrecognizedClient, message))
            }
            sigv4::Refusal::Expired => {
                let earliest = date(now.saturating_sub(MAX_SKEW.as_secs()));
                let message = format!(
                    "Signature expired: x-amz-date is now earlier than {earliest} ({} - 5 min.)",
                    date(now)
                );
                (Refusal::Expired, signature(message))
            }
            sigv4::Refusal::NotYetValid => {
                let latest = date(now.saturating_add(MAX_SKEW.as_secs()));
                let message = format!(
                    "Signature not yet current: x-amz-date is still later than {latest} ({} + 5 \
                     min.)",
                    date(now)
                );
                (Refusal::NotYetValid, signature(message))
            }
            sigv4::Refusal::Scope => {
                let region = &self.region;
                let message =
                    format!("Credential should be scoped to the region {region} and service kms");
                (Refusal::Audience, signature(message))
            }
            sigv4::Refusal::Signature => {
                let message = "The request signature we calculated does not match the signature \
                               you provided. Check your AWS Secret Access Key and signing method.";
                (Refusal::Signature, signature(message.to_owned()))
            }
        }
    }
}

/// Tells the audit log how a client was identified.
fn identified(known: Identified) -> Arc<Client> {
    let Identified { client, by } = known;
    if let Some(record) = record::current() {
        record.identified(Some(client.shared_name()), by.as_str());
    }
    client
}

fn unrecognized() -> Error {
    let message = "The security token included in the request is invalid.";
    Error::new(Code::UnrecognizedClient, message)
}
