//! Which hosts are this machine: plain HTTP to them crosses no network.
//!
//! A leaf: it resolves no names.

use std::net::{IpAddr, Ipv6Addr};

/// Whether `host`, as a URL writes it, is `localhost` or a loopback address. An IPv6 address may be
/// in brackets.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse().is_ok_and(|address: Ipv6Addr| address.is_loopback()),
        None if host.eq_ignore_ascii_case("localhost") => true,
        None => host.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
    }
}

/// Whether the host of `authority`, a host with or without a port, is loopback. An IPv6 address
/// must be in brackets.
pub(crate) fn is_loopback_authority(authority: &str) -> bool {
    let after_brackets = authority.rfind(']').unwrap_or(0);
    let colon = authority.rfind(':').filter(|&colon| colon > after_brackets);
    let (host, port) = match colon.and_then(|colon| authority.split_at_checked(colon)) {
        Some((host, port)) => (host, port.trim_start_matches(':')),
        None => (authority, ""),
    };
    let is_bare_ipv6 = host.contains(':') && !host.starts_with('[');
    is_loopback(host) && !is_bare_ipv6 && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_and_loopback_addresses_are_this_machine() {
        for host in ["localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "localhost.test",
            "128.0.0.1",
            "0.0.0.0",
            "[::2]",
            "::",
            "[127.0.0.1]",
            "[localhost]",
            "127.1",
            "2130706433",
            "127.0.0.1:80",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn an_authority_may_have_a_port() {
        for authority in [
            "localhost",
            "localhost:8080",
            "127.0.0.1",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "LOCALHOST:",
        ] {
            assert!(is_loopback_authority(authority), "{authority}");
        }
        for authority in [
            "",
            ":8080",
            "::1",
            "::1:80",
            "localhost:x",
            "localhost:80@evil.test",
            "localhost.evil.test",
            "[::2]:80",
            "[::1]x",
            "10.0.0.1:80",
            "localhost:80:80",
        ] {
            assert!(!is_loopback_authority(authority), "{authority}");
        }
    }
}
