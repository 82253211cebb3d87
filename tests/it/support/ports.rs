//! Ports for servers that must be told where to listen.

use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the range from which Linux takes the ports of connections and of listeners that ask for
/// any port: nothing takes such a port before its server starts, or while it restarts.
const RANGE: std::ops::Range<u16> = 20_000..32_768;

/// A free port. No other test gets it until this process ends.
pub(crate) fn free_port() -> u16 {
    let count = usize::from(RANGE.end - RANGE.start);
    let first = usize::try_from(RandomState::new().hash_one(0) % count as u64).unwrap();
    let mut ports = RANGE.cycle().skip(first).take(count);
    ports.find(|&port| reserve(port)).expect("a free port")
}

/// Reserves a port among all processes that run tests, by a socket in the abstract namespace, and
/// checks that nothing listens there.
fn reserve(port: u16) -> bool {
    let name = SocketAddr::from_abstract_name(format!("kms-proxy-test-port-{port}")).unwrap();
    let Ok(reservation) = UnixListener::bind_addr(&name) else { return false };
    std::mem::forget(reservation);
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
