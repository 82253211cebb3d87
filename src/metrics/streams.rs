//! The metrics of streams: how many there are now, how they ended, and the bytes that they moved.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::operations::Operation;
use super::register::Register;

/// How a stream ended: the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// It is complete.
    Complete,
    /// A chunk did not open: it was changed, or the ciphertext was cut.
    Invalid,
    /// The client ended its body early, or closed the connection.
    Aborted,
    /// The client sent nothing for too long.
    Stalled,
    /// The client read nothing for too long.
    Unread,
    /// It is longer than a stream can be.
    TooLong,
}

impl StreamEnd {
    /// Every end.
    pub const ALL: [Self; 6] =
        [Self::Complete, Self::Invalid, Self::Aborted, Self::Stalled, Self::Unread, Self::TooLong];

    /// The label, and the outcome in the audit log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "ok",
            Self::Invalid => "invalid_ciphertext",
            Self::Aborted => "aborted",
            Self::Stalled => "stalled",
            Self::Unread => "unread",
            Self::TooLong => "payload_too_large",
        }
    }

    /// What the log says.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Complete => "a stream is complete",
            Self::Invalid => "a stream failed: a chunk does not open, or chunks are missing",
            Self::Aborted => "a stream failed: its client sent a part of it, or disconnected",
            Self::Stalled => "a stream failed: its client sent nothing for too long",
            Self::Unread => {
                "a stream failed: its client read nothing for too long; it must read while it sends"
            }
            Self::TooLong => "a stream failed: it is longer than a stream can be",
        }
    }
}

/// The metrics of streams.
pub struct Streams {
    /// Streams that are under way.
    pub open: IntGauge,
    ends: IntCounterVec,
    bytes: IntCounterVec,
}

impl Streams {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        let streams = Self {
            open: register.int_gauge("kms_proxy_streams_open", "Streams that are under way.")?,
            ends: register.counter_vec(
                "kms_proxy_streams_total",
                "Streams that ended, of those that began with status 200.",
                &["operation", "outcome"],
            )?,
            bytes: register.counter_vec(
                "kms_proxy_stream_bytes_total",
                "Bytes of plaintext that passed in streams.",
                &["operation"],
            )?,
        };
        for operation in [Operation::Encrypt, Operation::Decrypt] {
            _ = streams.bytes.with_label_values(&[operation.as_str()]);
            for end in StreamEnd::ALL {
                _ = streams.ends.with_label_values(&[operation.as_str(), end.as_str()]);
            }
        }
        Ok(streams)
    }

    /// Counts a stream of `operation` that ended.
    pub fn ended(&self, operation: Operation, end: StreamEnd) {
        self.ends.with_label_values(&[operation.as_str(), end.as_str()]).inc();
    }

    /// Counts the bytes of plaintext of the streams of `operation`.
    #[must_use]
    pub fn bytes(&self, operation: Operation) -> IntCounter {
        self.bytes.with_label_values(&[operation.as_str()])
    }
}
