//! What a failed call returns: AWS's names, and which of them each of our errors becomes.

use std::borrow::Cow;

use crate::service::error::{Error as ServiceError, Kind};

/// A failed call: an error of AWS KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Error {
    pub(super) code: Code,
    pub(super) message: Cow<'static, str>,
    /// Whether the key service has counted it.
    pub(super) is_counted: bool,
}

/// The names of errors. Programs and SDKs decide by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    AccessDenied,
    Conflict,
    DependencyTimeout,
    Disabled,
    DryRunOperation,
    IncompleteSignature,
    IncorrectKey,
    InvalidCiphertext,
    InvalidKeyUsage,
    InvalidMarker,
    InvalidSignature,
    InvalidState,
    KeyUnavailable,
    Internal,
    MissingAuthenticationToken,
    NotFound,
    Serialization,
    Throttling,
    UnknownOperation,
    UnrecognizedClient,
    UnsupportedOperation,
    Validation,
}

impl Code {
    /// The text of `__type`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::AccessDenied => "AccessDeniedException",
            Self::Conflict => "ConflictException",
            Self::DependencyTimeout => "DependencyTimeoutException",
            Self::Disabled => "DisabledException",
            Self::DryRunOperation => "DryRunOperationException",
            Self::IncompleteSignature => "IncompleteSignature",
            Self::IncorrectKey => "IncorrectKeyException",
            Self::InvalidCiphertext => "InvalidCiphertextException",
            Self::InvalidKeyUsage => "InvalidKeyUsageException",
            Self::InvalidMarker => "InvalidMarkerException",
            Self::InvalidSignature => "InvalidSignatureException",
            Self::InvalidState => "KMSInvalidStateException",
            Self::KeyUnavailable => "KeyUnavailableException",
            Self::Internal => "KMSInternalException",
            Self::MissingAuthenticationToken => "MissingAuthenticationToken",
            Self::NotFound => "NotFoundException",
            Self::Serialization => "SerializationException",
            Self::Throttling => "ThrottlingException",
            Self::UnknownOperation => "UnknownOperationException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::UnsupportedOperation => "UnsupportedOperationException",
            Self::Validation => "ValidationException",
        }
    }

    /// The HTTP status: SDKs retry what is 5xx, and throttling.
    pub(super) const fn http_status(self) -> u16 {
        match self {
            Self::KeyUnavailable | Self::Internal => 500,
            Self::DependencyTimeout => 503,
            _ => 400,
        }
    }

    /// The code that our metrics count it under.
    pub(super) const fn outcome(self) -> &'static str {
        match self {
            Self::AccessDenied => "forbidden",
            Self::Conflict => "conflict",
            Self::DependencyTimeout => "root_unavailable",
            Self::Disabled | Self::InvalidState => "kek_disabled",
            Self::IncompleteSignature
            | Self::InvalidSignature
            | Self::MissingAuthenticationToken
            | Self::UnrecognizedClient => "unauthenticated",
            Self::IncorrectKey | Self::InvalidCiphertext => "invalid_ciphertext",
            Self::KeyUnavailable => "kek_exhausted",
            Self::Internal => "internal",
            Self::NotFound => "unknown_chain",
            Self::Throttling => "overloaded",
            Self::DryRunOperation
            | Self::InvalidKeyUsage
            | Self::InvalidMarker
            | Self::Serialization
            | Self::UnknownOperation
            | Self::UnsupportedOperation
            | Self::Validation => "invalid_request",
        }
    }
}

impl Error {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), is_counted: false }
    }

    /// A member that does not meet its constraint, in the words of AWS.
    pub(super) fn constraint(member: &'static str, constraint: &str) -> Self {
        let message = format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: \
             {constraint}"
        );
        Self::new(Code::Validation, message)
    }

    /// No key has this name. The name is not repeated: it may be a misplaced secret.
    pub(super) fn unknown_key() -> Self {
        let message = "no key or chain of kms-proxy has this KeyId; a chain is named by its name, \
                       alias/NAME, or its ARN with the account and region of [aws_api]";
        Self::new(Code::NotFound, message)
    }

    pub(super) fn invalid_ciphertext() -> Self {
        Self::new(
            Code::InvalidCiphertext,
            "the ciphertext is malformed or was not made with this key and encryption context",
        )
    }

    pub(super) fn incorrect_key() -> Self {
        Self::new(
            Code::IncorrectKey,
            "The key ID in the request does not identify a KMS key that can perform this \
             operation.",
        )
    }

    /// It is no failure, and not counted as one.
    pub(super) fn dry_run() -> Self {
        let message = "The request would have succeeded, but the DryRun option is set.";
        Self { is_counted: true, ..Self::new(Code::DryRunOperation, message) }
    }
}

impl From<ServiceError> for Error {
    fn from(error: ServiceError) -> Self {
        let code = match error.kind() {
            Kind::InvalidRequest | Kind::PayloadTooLarge => Code::Validation,
            // Which of the two it is, is no concern of a caller of KMS.
            Kind::InvalidCiphertext | Kind::UnknownKek => {
                return Self { is_counted: true, ..Self::invalid_ciphertext() };
            }
            Kind::Unauthenticated => Code::MissingAuthenticationToken,
            Kind::Forbidden => Code::AccessDenied,
            Kind::UnknownChain => return Self { is_counted: true, ..Self::unknown_key() },
            Kind::NotFound | Kind::MethodNotAllowed => Code::UnknownOperation,
            Kind::UnsupportedMediaType => Code::Serialization,
            Kind::Conflict => Code::Conflict,
            Kind::KekDisabled => Code::Disabled,
            Kind::Overloaded => Code::Throttling,
            Kind::Internal => Code::Internal,
            Kind::KekExhausted | Kind::ArchiveUnavailable => Code::KeyUnavailable,
            Kind::RootUnavailable | Kind::StoreUnavailable | Kind::AuditUnavailable => {
                Code::DependencyTimeout
            }
        };
        Self { is_counted: true, ..Self::new(code, error.detail().to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_our_errors_becomes_the_one_that_the_documents_name() {
        let expected = |kind| match kind {
            Kind::UnknownChain => "NotFoundException",
            Kind::InvalidCiphertext | Kind::UnknownKek => "InvalidCiphertextException",
            Kind::KekDisabled => "DisabledException",
            Kind::Overloaded => "ThrottlingException",
            Kind::KekExhausted | Kind::ArchiveUnavailable => "KeyUnavailableException",
            Kind::RootUnavailable | Kind::StoreUnavailable | Kind::AuditUnavailable => {
                "DependencyTimeoutException"
            }
            Kind::Internal => "KMSInternalException",
            Kind::InvalidRequest | Kind::PayloadTooLarge => "ValidationException",
            Kind::UnsupportedMediaType => "SerializationException",
            Kind::Unauthenticated => "MissingAuthenticationToken",
            Kind::Forbidden => "AccessDeniedException",
            Kind::Conflict => "ConflictException",
            Kind::NotFound | Kind::MethodNotAllowed => "UnknownOperationException",
        };
        for kind in Kind::ALL {
            let error = Error::from(ServiceError::new(kind, "x"));
            assert_eq!(error.code.as_str(), expected(kind));
            // SDKs retry throttling and 5xx, and nothing else.
            let is_retried = error.code == Code::Throttling || error.code.http_status() >= 500;
            assert_eq!(is_retried, kind.retryable() || kind == Kind::Internal, "{kind:?}");
        }
    }

    #[test]
    fn every_outcome_is_one_that_the_metrics_know() {
        for code in [Code::Validation, Code::AccessDenied, Code::NotFound, Code::InvalidSignature] {
            assert!(crate::metrics::FAILURES.contains(&code.outcome()), "{code:?}");
        }
    }
}
