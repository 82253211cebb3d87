//! The HTTP face of the service: to come.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use crate::units;

/// `[server]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where health and metrics are served alone; without it they are served on `listen`.
    pub admin_listen: Option<SocketAddr>,
    /// Allows plain HTTP without auth beyond loopback.
    pub insecure: bool,
    /// The largest body in bytes.
    #[serde(deserialize_with = "units::size::deserialize")]
    pub max_body: usize,
    /// How long a request may take.
    #[serde(deserialize_with = "units::duration::deserialize")]
    pub request_timeout: Duration,
    /// Connections at once.
    pub max_connections: usize,
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
        }
    }
}

/// Serves HTTP on `listener` (and health and metrics on `admin`) until `shutdown` ends, then finishes what is in flight (bounded) and returns.
pub async fn serve(
    config: Config,
    listener: tokio::net::TcpListener,
    admin: Option<tokio::net::TcpListener>,
    service: std::sync::Arc<crate::service::KeyService>,
    registry: prometheus::Registry,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let _ = (config, listener, admin, service, registry);
    shutdown.await;
    Ok(())
}

/// The OpenAPI document made from the code, as pretty JSON with a newline at its end.
pub fn openapi() -> String {
    String::new()
}
