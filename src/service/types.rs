//! Arguments and results of the service. They know no HTTP, gRPC or JSON.

use std::time::Duration;

use crate::id::{ChainName, KekId, Suite};
use crate::keychain::message::{Opened, Sealed};
use crate::secret::SecretBytes;
use crate::status;
use crate::store::record::{LastUsed, Limits, State};
use crate::timestamp::{date, rfc3339};

/// A new envelope.
pub struct Encrypted {
    /// The binary envelope.
    pub envelope: Sealed,
    /// The chain that encrypted it.
    pub chain: ChainName,
    /// The KEK that wraps its DEK.
    pub kek_id: KekId,
}

/// A decrypted plaintext.
pub struct Decrypted {
    /// The plaintext; wiped on drop.
    pub plaintext: Opened,
    /// The chain of its envelope.
    pub chain: ChainName,
    /// The KEK that wrapped its DEK.
    pub kek_id: KekId,
}

/// An envelope, or a header alone, whose DEK the primary KEK wraps.
pub struct Rewrapped {
    /// A header if a header was given, else a whole envelope.
    pub envelope: Vec<u8>,
    /// The chain of the envelope.
    pub chain: ChainName,
    /// The KEK that wraps the DEK now.
    pub kek_id: KekId,
    /// The KEK that wrapped it before; the same one if it was current.
    pub previous_kek_id: KekId,
}

/// A fresh random key for the caller's own cryptography.
pub struct DataKey {
    /// The key.
    pub plaintext: SecretBytes,
    /// Its envelope.
    pub envelope: Sealed,
    /// The chain that encrypted it.
    pub chain: ChainName,
    /// The KEK that wraps the envelope's DEK.
    pub kek_id: KekId,
}

/// A completed rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The chain.
    pub chain: ChainName,
    /// The KEK that encrypts now.
    pub primary: KekId,
    /// The KEK that encrypted before; `None` for a chain's first KEK.
    pub previous: Option<KekId>,
}

/// A description of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub chain: ChainName,
    /// The suite of its new KEKs.
    pub suite: Suite,
    /// The KEK that encrypts.
    pub primary: Option<KekId>,
    /// The KEK that will encrypt next.
    pub standby: Option<KekId>,
    /// The number of its KEKs, including destroyed ones.
    pub keks: u64,
    /// When KEKs are replaced.
    pub limits: Limits,
    /// Whether new envelopes embed the wrapped KEK.
    pub inline: bool,
}

/// A description of a KEK. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekInfo {
    /// Its id.
    pub kek_id: KekId,
    /// Its state.
    pub state: State,
    /// Its suite.
    pub suite: Suite,
    /// When it was created.
    pub created_at: u64,
    /// When it became primary.
    pub promoted_at: Option<u64>,
    /// When it was last disabled.
    pub disabled_at: Option<u64>,
    /// Uses that are reserved in the store.
    pub uses_reserved: u64,
    /// The days on which it was last used, by all replicas.
    pub last_used: LastUsed,
    /// The day in UTC from which on these are known, in days since the Unix epoch.
    pub usage_known_since: Option<u32>,
    /// Whether a `local` root ever wrapped it.
    pub exposed: bool,
    /// The names of the roots that wrapped it.
    pub roots: Vec<String>,
    /// After a destruction: the archives that could not be written, and still have its wraps.
    pub still_archived_in: Vec<String>,
}

impl KekInfo {
    /// When it last encrypted and decrypted, as text.
    #[must_use]
    pub fn last_used_text(&self) -> [String; 2] {
        let since = self.usage_known_since.map(date);
        let created_at = rfc3339(self.created_at);
        [self.last_used.encrypt, self.last_used.decrypt].map(|day| {
            let day = day.map(date);
            status::last_used(day.as_deref(), since.as_deref(), &created_at)
        })
    }
}

/// Why a requested KEK can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absence {
    /// The chain has no KEK of this id: it was lost with the store, or the id is forged.
    Unknown,
    /// The chain has it, but no configured root unwraps it.
    Unopenable,
}

impl Absence {
    /// The word for it in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Unopenable => "unopenable",
        }
    }
}

/// A requested KEK that can't be used. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingKek {
    /// Its id.
    pub kek_id: KekId,
    /// Why.
    pub absence: Absence,
    /// When it was first requested from this process.
    pub first_seen: u64,
    /// When it was last requested.
    pub last_seen: u64,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, N> {
    /// The items of the page.
    pub items: Vec<T>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<N>,
}

/// Settings of a chain. `None` keeps the current value, or takes the default for a new chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainSettings {
    /// The suite. It can't be changed later.
    pub suite: Option<Suite>,
    /// See [`Limits::rotate_after_uses`].
    pub rotate_after_uses: Option<u64>,
    /// See [`Limits::max_uses`].
    pub max_uses: Option<u64>,
    /// See [`Limits::rotate_after_age`], in seconds.
    pub rotate_after_age: Option<u64>,
    /// Whether new envelopes embed the wrapped KEK, which the store has as well.
    pub inline: Option<bool>,
}

/// A change of a KEK's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `retired` to `disabled`; refused if Kubernetes depends on the chain.
    Disable,
    /// `retired` to `disabled`, even if Kubernetes depends on the chain.
    ForceDisable,
    /// `disabled` to `retired`.
    Enable,
    /// `disabled` to `destroyed`, permanently; refused if Kubernetes depends on the chain.
    Destroy,
    /// `disabled` to `destroyed`, permanently, even if Kubernetes depends on the chain.
    ForceDestroy,
}

impl Change {
    /// The call that asks for it, and whether it is forced.
    #[must_use]
    pub const fn as_call(self) -> (&'static str, bool) {
        match self {
            Self::Disable => ("disable_kek", false),
            Self::ForceDisable => ("disable_kek", true),
            Self::Enable => ("enable_kek", false),
            Self::Destroy => ("destroy_kek", false),
            Self::ForceDestroy => ("destroy_kek", true),
        }
    }
}

/// The result of one page of a change of roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootProgress {
    /// KEKs that were examined.
    pub looked_at: u64,
    /// KEKs that were changed.
    pub changed: u64,
    /// KEKs that could not be changed, and why.
    pub failed: Vec<(KekId, String)>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<KekId>,
    /// How long a replica that has lost the store may still encrypt under a KEK that the removed
    /// root opens; zero before the last page.
    pub settles_in: Duration,
}

/// The health of the service or of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Ok,
    /// It works, but an operator should look at it.
    Degraded,
    /// It can neither encrypt nor decrypt, or it is starting or stopping.
    Down,
}

/// One check of readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `store`, `root:{name}`, `archive:{name}`, `chain:{name}`, `kubernetes` or `service`.
    pub name: String,
    /// Its result.
    pub health: Health,
    /// A text for the operator.
    pub detail: Option<String>,
}

/// The response of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// The health of the service as a whole.
    pub health: Health,
    /// The checks that were made.
    pub checks: Vec<Check>,
}

impl Readiness {
    /// Adds checks of components outside the service.
    pub fn add(&mut self, checks: Vec<Check>) {
        if self.health == Health::Ok && checks.iter().any(|check| check.health != Health::Ok) {
            self.health = Health::Degraded;
        }
        self.checks.extend(checks);
    }
}
