//! The one table of errors of the service: stable code, HTTP status, gRPC status, and whether a
//! retry may succeed.
//!
//! The errors of the layers below are converted to these. An error never says which check an
//! envelope failed, and never contains a secret.

use std::borrow::Cow;
use std::time::Duration;

/// The kinds of failure that a client can distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is malformed: not JSON, unknown field, wrong type, bad base64, out of range.
    InvalidRequest,
    /// The envelope is malformed or modified, or the AAD or the chain is wrong: one error for all.
    InvalidCiphertext,
    /// The envelope names a KEK that this chain does not have.
    UnknownKek,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// The client has no permission for the call.
    Forbidden,
    /// No such path.
    NotFound,
    /// No such chain.
    UnknownChain,
    /// The path does not support this method.
    MethodNotAllowed,
    /// The state does not allow it.
    Conflict,
    /// The KEK is disabled or destroyed.
    KekDisabled,
    /// The body is larger than `server.max_body`.
    PayloadTooLarge,
    /// Neither JSON nor octet-stream, or a path that supports only one of them.
    UnsupportedMediaType,
    /// A limit is reached, such as that of manual rotations or of requests in flight.
    Overloaded,
    /// A defect of the service, or a damaged record.
    Internal,
    /// No uses are left, and none became available in time.
    KekExhausted,
    /// A root is needed and does not answer.
    RootUnavailable,
    /// The store is needed and does not answer.
    StoreUnavailable,
    /// An archive is needed and does not answer.
    ArchiveUnavailable,
    /// The audit log takes no line, and nothing is done without one.
    AuditUnavailable,
}

impl Kind {
    /// Every kind, in the order of their HTTP statuses.
    pub const ALL: [Self; 19] = [
        Self::InvalidRequest,
        Self::InvalidCiphertext,
        Self::UnknownKek,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::UnknownChain,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::KekDisabled,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::Overloaded,
        Self::Internal,
        Self::KekExhausted,
        Self::RootUnavailable,
        Self::StoreUnavailable,
        Self::ArchiveUnavailable,
        Self::AuditUnavailable,
    ];

    /// The stable code: in problem+json, in batch items and as the metrics' outcome.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.row().1
    }

    /// The gRPC status code.
    #[must_use]
    pub const fn grpc_code(self) -> i32 {
        self.row().2
    }

    /// Whether the same call may succeed later without a change.
    #[must_use]
    pub const fn retryable(self) -> bool {
        matches!(self.http_status(), 429 | 503)
    }

    const fn row(self) -> (&'static str, u16, i32) {
        match self {
            Self::InvalidRequest => ("invalid_request", 400, 3),
            Self::InvalidCiphertext => ("invalid_ciphertext", 400, 3),
            Self::UnknownKek => ("unknown_kek", 400, 3),
            Self::Unauthenticated => ("unauthenticated", 401, 16),
            Self::Forbidden => ("forbidden", 403, 7),
            Self::NotFound => ("not_found", 404, 5),
            Self::UnknownChain => ("unknown_chain", 404, 5),
            Self::MethodNotAllowed => ("method_not_allowed", 405, 12),
            Self::Conflict => ("conflict", 409, 9),
            Self::KekDisabled => ("kek_disabled", 409, 9),
            Self::PayloadTooLarge => ("payload_too_large", 413, 8),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415, 3),
            Self::Overloaded => ("overloaded", 429, 8),
            Self::Internal => ("internal", 500, 13),
            Self::KekExhausted => ("kek_exhausted", 503, 14),
            Self::RootUnavailable => ("root_unavailable", 503, 14),
            Self::StoreUnavailable => ("store_unavailable", 503, 14),
            Self::ArchiveUnavailable => ("archive_unavailable", 503, 14),
            Self::AuditUnavailable => ("audit_unavailable", 503, 14),
        }
    }
}

/// A failed call, as a client may see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.code())]
pub struct Error {
    kind: Kind,
    detail: Cow<'static, str>,
    /// For operators alone: in the log and in readiness, never in a response.
    advice: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    /// The metrics have it.
    is_counted: bool,
}

impl Error {
    /// An error with a sentence for the client. Those with status 429 or 503 suggest a retry after
    /// one second.
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = kind.retryable().then_some(Duration::from_secs(1));
        Self { kind, detail: detail.into(), advice: None, retry_after, is_counted: false }
    }

    /// Adds another fact for the client.
    #[must_use]
    pub(super) fn and(mut self, fact: &str) -> Self {
        self.detail = format!("{}; {fact}", self.detail).into();
        self
    }

    /// Adds a sentence that only operators read.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Sets the time to wait before a retry.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The error for every envelope that does not decrypt.
    #[must_use]
    pub fn invalid_ciphertext() -> Self {
        Self::new(
            Kind::InvalidCiphertext,
            "the ciphertext is malformed or was not made with this chain and AAD",
        )
    }

    /// No use of a KEK is available.
    pub(super) fn exhausted(detail: &'static str) -> Self {
        Self::new(Kind::KekExhausted, detail)
    }

    /// An internal failure. Its cause is logged, not returned.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "a call failed because of an internal error");
        Self::new(Kind::Internal, "the service failed; its log says why")
    }

    /// The metrics of operations have this failure.
    pub(super) fn counted(mut self) -> Self {
        self.is_counted = true;
        self
    }

    /// Whether the metrics of operations have this failure. The API that answers a call
    /// counts a failure from before it reached the service.
    #[must_use]
    pub const fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// Which kind of failure.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The sentence for the client.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The sentence for the client, followed by the one for operators.
    #[must_use]
    pub fn for_operators(&self) -> String {
        match &self.advice {
            Some(advice) => format!("{}: {advice}", self.detail),
            None => self.detail.clone().into_owned(),
        }
    }

    /// How long to wait before a retry, in whole seconds, at least one; `None` if a retry won't
    /// help.
    #[must_use]
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(|after| after.as_secs().max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_metrics_know_every_code() {
        assert_eq!(Kind::ALL.map(Kind::code), crate::metrics::FAILURES);
    }

    #[test]
    fn codes_are_distinct_and_503_can_be_retried() {
        let codes: HashSet<_> = Kind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let retry = Error::new(kind, "x").retry_after_secs();
            assert_eq!(retry.is_some(), matches!(kind.http_status(), 429 | 503), "{kind:?}");
        }
    }
}
