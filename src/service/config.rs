//! The settings of the service, as `[chain]` and `[cache]` of the configuration have them.
//!
//! Plain data: `crate::config` checks what was written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::archive;
use crate::human_units;
use crate::id::{ChainName, Suite};
use crate::store::record::Limits;

/// Settings of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which chains exist from the start, and the defaults of new ones.
    pub chain: ChainConfig,
    /// What is kept in memory.
    pub cache: CacheConfig,
    /// How many archives must hold a KEK before it encrypts.
    pub archive_policy: archive::Policy,
    /// How long a request waits for an empty budget to be filled: `server.request_timeout`.
    pub wait: Duration,
    /// The number of requests that may wait for that concurrently.
    pub max_waiting: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chain: ChainConfig::default(),
            cache: CacheConfig::default(),
            archive_policy: archive::Policy::default(),
            wait: Duration::from_secs(10),
            max_waiting: 20_000,
        }
    }
}

/// `[chain]`: the chains that are created at the start, and the defaults of new chains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChainConfig {
    /// Chains to create at the start, besides `default`.
    pub names: Vec<ChainName>,
    /// The suite of new chains.
    pub suite: Suite,
    /// [`Limits::rotate_after_uses`] of new chains.
    pub rotate_after_uses: u64,
    /// [`Limits::max_uses`] of new chains.
    pub max_uses: u64,
    /// [`Limits::rotate_after_age`] of new chains, in whole seconds.
    #[serde(with = "human_units::duration")]
    pub rotate_after_age: Duration,
    /// Whether envelopes of new chains embed the wrapped KEK, which the store has as well.
    pub inline: bool,
    /// How long a KEK must be disabled before it can be destroyed: 24 h by default, and never less
    /// than [`MIN_DESTROY_DELAY`](super::MIN_DESTROY_DELAY).
    #[serde(with = "human_units::duration")]
    pub destroy_delay: Duration,
    /// The largest number of chains.
    pub max_chains: usize,
}

impl ChainConfig {
    /// The defaults, with these limits for new chains.
    #[must_use]
    pub fn with_limits(limits: Limits) -> Self {
        let Limits { rotate_after_uses, max_uses, rotate_after_age } = limits;
        Self {
            names: Vec::new(),
            suite: Suite::default(),
            rotate_after_uses,
            max_uses,
            rotate_after_age: Duration::from_secs(rotate_after_age),
            inline: false,
            destroy_delay: Duration::from_secs(24 * 60 * 60),
            max_chains: 10_000,
        }
    }

    /// The limits of new chains.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits {
            rotate_after_uses: self.rotate_after_uses,
            max_uses: self.max_uses,
            rotate_after_age: self.rotate_after_age.as_secs(),
        }
    }
}

impl Default for ChainConfig {
    fn default() -> Self {
        Self::with_limits(Limits::default())
    }
}

/// `[cache]`: how many keys are kept in memory, and how long they are trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// The largest number of DEKs; 0 turns their cache off.
    pub dek_entries: usize,
    /// How long a DEK is kept.
    #[serde(with = "human_units::duration")]
    pub dek_max_age: Duration,
    /// The largest number of retired KEKs.
    pub keks: usize,
    /// How often the roots of a KEK in memory are asked whether they still unwrap it: 24 h by
    /// default. If they are unavailable, it stays in use for `offline_grace` longer.
    #[serde(with = "human_units::duration")]
    pub kek_max_age: Duration,
    /// How long decrypts continue while a store that others can write to is unavailable: 24 h by
    /// default. What others disable in that time is not known here.
    #[serde(with = "human_units::duration")]
    pub offline_grace: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            dek_entries: 10_000,
            dek_max_age: Duration::from_secs(300),
            keks: 10_000,
            kek_max_age: Duration::from_secs(24 * 60 * 60),
            offline_grace: Duration::from_secs(24 * 60 * 60),
        }
    }
}
