//! The other end of a connection, as lines name it.

use std::net::SocketAddr;
use std::sync::Arc;

/// Who is at the other end of a connection, as lines say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer(Option<Arc<str>>);

impl Peer {
    /// It is not known.
    pub const UNKNOWN: Self = Self(None);

    /// An address.
    #[must_use]
    pub fn address(address: SocketAddr) -> Self {
        Self(Some(address.to_string().into()))
    }

    /// A user of this machine.
    #[must_use]
    pub fn user(uid: u32) -> Self {
        Self(Some(format!("uid:{uid}").into()))
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}
