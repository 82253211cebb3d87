//! `[server]` and `[admin]` of the configuration, with their defaults. It knows no handler.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{human_units, tls};

/// `[server]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The address that it listens on.
    pub listen: SocketAddr,
    /// The address of health and metrics, which `listen` serves if this is not set.
    pub admin_listen: Option<SocketAddr>,
    /// Allows plain HTTP without auth beyond loopback.
    pub insecure: bool,
    /// The largest body in bytes.
    #[serde(deserialize_with = "human_units::size::deserialize")]
    pub max_body: usize,
    /// How long a request may take.
    #[serde(with = "human_units::duration")]
    pub request_timeout: Duration,
    /// Concurrent connections, on each listener.
    pub max_connections: usize,
    /// Maximum number of concurrent requests that wait for something.
    pub max_requests: usize,
    /// What bodies and answers may take together, in bytes; see [`Config::body_memory()`].
    #[serde(deserialize_with = "human_units::size::deserialize_some")]
    pub body_memory: Option<usize>,
    /// How long a connection stays open between two requests.
    #[serde(with = "human_units::duration")]
    pub idle_timeout: Duration,
    /// Concurrent streams.
    pub max_streams: usize,
    /// How long a stream waits for its client to send, or to read.
    #[serde(with = "human_units::duration")]
    pub stream_idle_timeout: Duration,
    /// How long requests are still accepted after SIGTERM, while `/readyz` fails.
    #[serde(with = "human_units::duration")]
    pub drain_delay: Duration,
    /// HTTPS on `listen`; without it plain HTTP.
    pub tls: Option<tls::Config>,
}

/// `[admin]` of the configuration: the status page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Whether `server.admin_listen` serves the page: by default if that is a loopback address. If
    /// it does not, or is not set, `server.listen` serves it.
    pub status: Option<bool>,
    /// The price of 10,000 calls of a root, to show what the avoided ones would have cost.
    pub root_call_price: f64,
    /// The currency of the price.
    pub currency: String,
}

impl Default for Admin {
    fn default() -> Self {
        // AWS KMS, for symmetric keys.
        Self { status: None, root_call_price: 0.03, currency: "USD".to_owned() }
    }
}

impl Admin {
    /// Checks the settings.
    ///
    /// # Errors
    /// The key of a setting, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !(0.0..=1e9).contains(&self.root_call_price) {
            return Err(("root_call_price", "must be between 0 and 1000000000"));
        }
        let is_word = self.currency.chars().all(char::is_alphanumeric);
        if !(1..=8).contains(&self.currency.chars().count()) || !is_word {
            return Err(("currency", "must be 1 to 8 letters or digits, such as USD"));
        }
        Ok(())
    }

    /// Whether a listener of operators at this address serves the status page.
    pub(super) fn is_served_at(&self, listen: SocketAddr) -> bool {
        self.status.unwrap_or_else(|| listen.ip().is_loopback())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: None,
            insecure: false,
            max_body: 4 << 20,
            request_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            max_requests: 10_000,
            body_memory: None,
            idle_timeout: Duration::from_secs(75),
            max_streams: 100,
            stream_idle_timeout: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            tls: None,
        }
    }
}

impl Config {
    /// What bodies and answers may take together, in bytes: 256 MiB unless it is set, and room for
    /// four bodies where they may be larger.
    #[must_use]
    pub fn body_memory(&self) -> usize {
        self.body_memory.unwrap_or_else(|| self.max_body.saturating_mul(4).max(256 << 20))
    }

    /// How long a shutdown waits for the requests in flight: as long as a request may take.
    pub(super) const fn shutdown_grace(&self) -> Duration {
        self.request_timeout
    }
}
