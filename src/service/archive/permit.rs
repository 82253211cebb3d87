//! Whether a KEK may become primary: only if the required archives hold it. It calls no archive.

use crate::archive::{OnFailure, Require};
use crate::id::{ChainName, KekId};
use crate::service::error::{Error, Kind};

use super::archives::{Archives, One};

/// The permission to make a KEK primary. Only [`Archives::permit`] makes one.
#[derive(Debug)]
pub(in crate::service) struct Permit {
    id: KekId,
    /// The required archives do not hold it, and the policy is to continue.
    is_waived: bool,
}

impl Permit {
    /// The KEK that may become primary.
    pub(in crate::service) fn id(&self) -> KekId {
        self.id
    }

    pub(in crate::service) fn is_waived(&self) -> bool {
        self.is_waived
    }
}

impl Archives {
    /// The permission to make a KEK primary, if the required archives hold it. With
    /// `on_failure = "continue"` also if an attempt to archive it failed.
    pub(in crate::service) fn permit(&self, chain: &ChainName, id: KekId) -> Option<Permit> {
        let is_waived = !self.hold(chain, id);
        let may_continue = self.policy().on_failure == OnFailure::Continue;
        (!is_waived || may_continue && self.obstacle(chain, id).is_some())
            .then_some(Permit { id, is_waived })
    }

    /// Whether the required archives hold a KEK.
    fn hold(&self, chain: &ChainName, id: KekId) -> bool {
        let mut archives = self.iter();
        match self.policy().require {
            Require::Any if !self.is_empty() => archives.any(|one| one.holds(chain, id)),
            _ => archives.all(|one| one.holds(chain, id)),
        }
    }

    /// Why the required archives do not hold a KEK; `None` if they do, or may do so soon.
    pub(in crate::service) fn obstacle(&self, chain: &ChainName, id: KekId) -> Option<Error> {
        if self.hold(chain, id) {
            return None;
        }
        let lacking = || self.iter().filter(|one| !one.holds(chain, id));
        let failing: Vec<_> = lacking().filter(|one| one.fails(chain, id)).collect();
        let is_hopeless = match self.policy().require {
            Require::All => !failing.is_empty(),
            Require::Any => failing.len() == lacking().count(),
        };
        is_hopeless.then(|| unavailable(failing.into_iter().map(|one| &**one)))
    }
}

/// The error for a call that waits for a KEK that is not archived.
fn unavailable<'a>(failing: impl Iterator<Item = &'a One>) -> Error {
    let why = failing.map(|one| {
        let why = one.last_error();
        format!("archive {}: {}", one.name, why.as_deref().unwrap_or("see its log lines"))
    });
    let why = why.collect::<Vec<_>>().join("; ");
    let detail = "the archives do not hold the next KEK of this chain yet";
    Error::new(Kind::ArchiveUnavailable, detail).with_advice(why)
}

/// The error if an archive did not answer in time.
pub(super) fn not_yet() -> Error {
    unavailable(std::iter::empty())
}
