//! stub
use std::net::SocketAddr;
use std::time::Duration;

/// Settings of the HTTP service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where health and metrics are served alone; `None`: only on `listen`.
    pub admin_listen: Option<SocketAddr>,
    /// Plain HTTP without auth beyond loopback.
    pub insecure: bool,
    /// The largest body in bytes.
    pub max_body: usize,
    /// How long a request may take.
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
