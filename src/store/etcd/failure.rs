//! Classifies a failed call of a member: whether it may have been applied, and whether another
//! attempt can help.

use tonic::{Code, Status};

use crate::error_chain::{to_text, with_causes};

/// A call that failed.
#[derive(Debug)]
pub(super) struct CallError {
    pub(super) detail: String,
    /// It may have been applied, or be applied later.
    pub(super) maybe_applied: bool,
    /// A later attempt does not help.
    pub(super) hopeless: bool,
    /// etcd itself refused: another member does not help either.
    pub(super) refused: bool,
    /// The call used outdated credentials: another attempt uses the new ones.
    pub(super) stale: bool,
}

impl CallError {
    pub(super) fn certain(detail: String) -> Self {
        Self { detail, maybe_applied: false, hopeless: false, refused: false, stale: false }
    }

    pub(super) fn doubtful(detail: String) -> Self {
        Self { detail, maybe_applied: true, hopeless: false, refused: false, stale: false }
    }

    /// The call itself was not sent yet.
    pub(super) fn not_sent(error: etcd_client::Error) -> Self {
        Self { maybe_applied: false, ..Self::of(error) }
    }

    pub(super) fn of(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = &error else {
            // Before anything was sent: a wrong URL or certificate.
            return Self { hopeless: true, ..Self::certain(to_text(&error)) };
        };
        let detail = status_text(status);
        if detail.contains("certificate") {
            return Self { hopeless: true, ..Self::certain(detail) };
        }
        // Connecting failed: nothing was sent.
        if ["connect error", "dns error", "tls handshake"].iter().any(|part| detail.contains(part))
        {
            return Self::certain(detail);
        }
        match status.code() {
            // etcd itself refuses.
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::Unimplemented => {
                Self { hopeless: true, refused: true, ..Self::certain(detail) }
            }
            _ => Self::doubtful(detail),
        }
    }
}

/// The message of `status` and its causes. The `Display` of a status shows its cause as `Debug`
/// does, which is not a text for people.
fn status_text(status: &Status) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    with_causes(message.to_owned(), status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_text_for_people() {
        let cause = std::io::Error::other("Connection refused");
        let status = Status::from_error(Box::new(cause));
        assert_eq!(status_text(&status), "Connection refused");
        assert_eq!(
            status_text(&Status::new(Code::Unavailable, "")),
            Code::Unavailable.description()
        );
        let mut status = Status::unavailable("tcp connect error");
        status.set_source(std::sync::Arc::new(std::io::Error::other("Connection refused")));
        assert_eq!(status_text(&status), "tcp connect error: Connection refused");
        assert!(CallError::of(etcd_client::Error::GRpcStatus(status)).detail.contains(": Conn"));
    }
}
