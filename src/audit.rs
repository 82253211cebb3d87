//! The audit log: which calls were made, by whom, and proof that nobody changed the record.
//!
//! [`Audit`] is what listeners and the service report to: it decides by rules, makes lines, and
//! gives them to a writer, which owns the sink and the proof. It knows no HTTP, no gRPC and no
//! chain beyond its name. The format of the proof, its keys and the tools that read the log know
//! lines of bytes alone.

use std::sync::Arc;

use crate::clock::Clock;
use crate::metrics::Metrics;

mod config;
mod counts;
mod format;
#[cfg(feature = "server")]
mod open;
mod peer;
mod queue;
pub mod record;
#[cfg(feature = "server")]
mod roots;
mod rules;
#[cfg(feature = "server")]
pub mod secret;
#[cfg(feature = "server")]
mod sink;
pub mod stored;
mod system;
#[cfg(feature = "server")]
mod writer;

#[cfg(feature = "server")]
pub mod find;
#[cfg(feature = "server")]
pub mod keys;
#[cfg(feature = "server")]
pub mod line;
#[cfg(feature = "server")]
pub mod note;
#[cfg(feature = "server")]
pub mod sealer;
#[cfg(feature = "server")]
pub mod tree;
#[cfg(feature = "server")]
pub mod verify;

pub use config::{AadForm, Config, OnFailure, Sync, Target};
#[cfg(feature = "server")]
pub use open::{Opened, open};
pub use peer::Peer;
pub use queue::PATIENCE;
pub use record::{Call, ChainRef, Event, Record, Request};
#[cfg(feature = "server")]
pub use roots::audited;
pub use rules::{Level, Rule};
pub use system::System;

use counts::{Counts, Refusals};
use queue::{Orders, Queue};
use rules::Rules;

/// The audit log takes no line, and the call must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit log takes no line now, and nothing is done without one")]
pub struct Unavailable;

/// An audit log that will be opened: empty if none is configured.
pub type Slot = Arc<std::sync::OnceLock<Arc<Audit>>>;

/// The HMAC of an AAD, under the key of the deployment.
type HmacOf = Box<dyn Fn(&[u8]) -> [u8; 32] + Send + std::marker::Sync>;

/// The audit log of a process.
pub struct Audit {
    queue: Queue,
    counts: Counts,
    refusals: Refusals,
    rules: Rules,
    aad: AadForm,
    hmac: HmacOf,
    /// The name of the machine, as JSON.
    node: String,
    /// The key that verifies the log, as text.
    public_key: String,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl Audit {
    /// Begins the record of a request of an API: `http`, `aws` or `kubernetes`.
    #[must_use]
    pub fn begin(
        self: &Arc<Self>,
        api: &'static str,
        id: &str,
        peer: Peer,
        call: Call,
    ) -> Arc<Record> {
        Record::begin(self, api, id, peer, call)
    }

    /// Whether calls must fail before they do anything, since their lines could not be written.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Whether calls fail if their lines can't be written.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.queue.refuses()
    }

    /// Why the log takes no lines.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.queue.trouble()
    }

    /// The key that verifies the log.
    #[must_use]
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Opens the file again, if it was renamed.
    pub fn reopen(&self) {
        self.queue.order(Orders { reopen: true, stop: false });
    }
}
