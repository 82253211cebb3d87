//! What the service is asked for and answers, as types: no HTTP, no gRPC, no JSON.

use crate::id::{ChainName, KekId, Suite};
use crate::keychain::message::{Opened, Sealed};
use crate::secret::SecretBytes;
use crate::store::record::{Limits, State};

/// An envelope that was made.
pub struct Encrypted {
    /// The binary envelope.
    pub envelope: Sealed,
    /// The chain it was made under.
    pub chain: ChainName,
    /// The KEK that wraps its DEK.
    pub kek_id: KekId,
}

/// A plaintext that was recovered.
pub struct Decrypted {
    /// The plaintext; wiped on drop.
    pub plaintext: Opened,
    /// The chain of its envelope.
    pub chain: ChainName,
    /// The KEK that wrapped its DEK.
    pub kek_id: KekId,
}

/// An envelope, or a header, under the primary KEK.
pub struct Rewrapped {
    /// As much as was given: a header for a header, a whole envelope for a whole one.
    pub envelope: Vec<u8>,
    /// The chain of the envelope.
    pub chain: ChainName,
    /// The KEK that wraps the DEK now.
    pub kek_id: KekId,
    /// The KEK that wrapped it before; the same one when nothing had to be done.
    pub previous_kek_id: KekId,
}

/// A fresh random key for the caller's own cryptography.
pub struct DataKey {
    /// The key.
    pub plaintext: SecretBytes,
    /// Its envelope.
    pub envelope: Sealed,
    /// The chain it was made under.
    pub chain: ChainName,
    /// The KEK that wraps the envelope's DEK.
    pub kek_id: KekId,
}

/// A rotation that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The chain.
    pub chain: ChainName,
    /// The KEK that encrypts now.
    pub primary: KekId,
    /// The KEK that encrypted before; none for a chain's first.
    pub previous: Option<KekId>,
}

/// A chain as the service tells of it.
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
    /// How many KEKs it has, destroyed ones included.
    pub keks: u64,
    /// When KEKs are replaced.
    pub limits: Limits,
}

/// A KEK as the service tells of it. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekInfo {
    /// Its id.
    pub kek_id: KekId,
    /// Where it is in its life.
    pub state: State,
    /// Its suite.
    pub suite: Suite,
    /// When it was made.
    pub created_at: u64,
    /// When it became primary.
    pub promoted_at: Option<u64>,
    /// When it was last disabled.
    pub disabled_at: Option<u64>,
    /// Uses that are reserved in the store.
    pub uses_reserved: u64,
    /// Whether a `local` root ever wrapped it.
    pub exposed: bool,
    /// The names of the roots that wrapped it.
    pub roots: Vec<String>,
}

/// Why a KEK that was asked for can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absence {
    /// The chain has no KEK of this id: it was lost with the store, or the id is forged.
    Unknown,
    /// The chain has it, and no configured root opens it.
    Unopenable,
}

impl Absence {
    /// The word that users read.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Unopenable => "unopenable",
        }
    }
}

/// A KEK that was asked for and can't be used. Times are seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingKek {
    /// Its id.
    pub kek_id: KekId,
    /// Why.
    pub absence: Absence,
    /// When this process first missed it.
    pub first_seen: u64,
    /// When it last did.
    pub last_seen: u64,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, N> {
    /// The part.
    pub items: Vec<T>,
    /// Where the next part starts; `None` at the end.
    pub next: Option<N>,
}

/// What to set on a chain; what is `None` stays, or takes the default on a new chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainSettings {
    /// The suite: it can't be changed later.
    pub suite: Option<Suite>,
    /// See [`Limits::rotate_after_uses`].
    pub rotate_after_uses: Option<u64>,
    /// See [`Limits::max_uses`].
    pub max_uses: Option<u64>,
    /// See [`Limits::rotate_after_age`], in seconds.
    pub rotate_after_age: Option<u64>,
}

/// What to do with a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `retired` to `disabled`; not where Kubernetes depends on the chain.
    Disable,
    /// The same, whatever depends on the chain.
    ForceDisable,
    /// `disabled` to `retired`.
    Enable,
    /// `disabled` to `destroyed`, for ever; not where Kubernetes depends on the chain.
    Destroy,
    /// The same, whoever depends on the chain.
    ForceDestroy,
}

/// What came of a part of the work when a root comes or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootProgress {
    /// KEKs that were looked at.
    pub looked_at: u64,
    /// Those of them that were changed.
    pub changed: u64,
    /// Those that could not be, and why.
    pub failed: Vec<(KekId, String)>,
    /// Where the next part starts; `None` at the end.
    pub next: Option<KekId>,
}

/// How well the service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Ok,
    /// It works, and an operator should look.
    Degraded,
    /// It can neither encrypt nor decrypt, or is on its way up or down.
    Down,
}

/// One thing that was looked at for readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `store`, `root:{name}`, `chain:{name}`, `kubernetes` or `service`.
    pub name: String,
    /// How well it stands.
    pub health: Health,
    /// What an operator should know.
    pub detail: Option<String>,
}

/// The answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// How well the service as a whole stands.
    pub health: Health,
    /// The things that were looked at.
    pub checks: Vec<Check>,
}

impl Readiness {
    /// Adds what was found beside the service itself.
    pub fn add(&mut self, checks: Vec<Check>) {
        if self.health == Health::Ok && checks.iter().any(|check| check.health != Health::Ok) {
            self.health = Health::Degraded;
        }
        self.checks.extend(checks);
    }
}
