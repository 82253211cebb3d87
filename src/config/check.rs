//! What makes a configuration unusable although each setting has its type.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::id::ChainName;
use crate::service::MIN_DESTROY_DELAY;
use crate::tls::ClientCert;
use crate::{http, root, service, tls};

use super::Config;

impl Config {
    /// Checks what no part can check alone, and that sizes are sane.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        self.check_server()?;
        self.check_roots()?;
        self.check_auth()?;
        let checked = self.store.check_settings();
        checked.map_err(|(key, detail)| wrong(&format!("store.{key}"), &detail))?;
        if let Some(kubernetes) = &self.kubernetes {
            let checked = kubernetes.check();
            checked.map_err(|(key, detail)| wrong(&format!("kubernetes.{key}"), detail))?;
        }
        let service::Config { chain, cache, .. } = &self.service;
        if chain.max_chains == 0 {
            return Err(wrong("chain.max_chains", "it is 1 or more"));
        }
        let limits = chain.limits();
        limits.validate().map_err(|detail| wrong("chain", detail))?;
        if let Some(index) = first_repeated(&chain.names) {
            return Err(wrong(&format!("chain.names.{index}"), "this name is there already"));
        }
        if !(MIN_DESTROY_DELAY..=LONGEST).contains(&chain.destroy_delay) {
            return Err(wrong("chain.destroy_delay", "it is 2m to 36500d"));
        }
        if chain.rotate_after_age > LONGEST {
            return Err(wrong("chain.rotate_after_age", "it is 1m to 36500d"));
        }
        within("cache.dek_entries", cache.dek_entries, 0..=MAX_CACHED)?;
        within("cache.keks", cache.keks, 1..=MAX_CACHED)?;
        if cache.dek_max_age.is_zero() {
            let detail = "it is more than nothing; cache.dek_entries = 0 switches the cache off";
            return Err(wrong("cache.dek_max_age", detail));
        }
        for (key, age) in
            [("cache.kek_max_age", cache.kek_max_age), ("cache.offline_grace", cache.offline_grace)]
        {
            if !(MIN_AGE..=LONGEST).contains(&age) {
                return Err(wrong(key, "it is 1m to 36500d"));
            }
        }
        Ok(())
    }

    fn check_server(&self) -> Result<(), Wrong> {
        let http::Config { listen, admin_listen, insecure, tls, .. } = &self.server;
        let is_beyond = |address: &SocketAddr| !address.ip().is_loopback();
        if is_beyond(listen) && !self.is_protected() && !insecure {
            let detail = "it is not a loopback address, and there is not both TLS and auth; \
                          server.insecure = true allows it";
            return Err(wrong("server.listen", detail));
        }
        // It shows health and metrics, and no client of it could have a certificate.
        if admin_listen.as_ref().is_some_and(is_beyond) && tls.is_none() && !insecure {
            let detail = "it is not a loopback address, and server.listen has no TLS; \
                          server.insecure = true allows it";
            return Err(wrong("server.admin_listen", detail));
        }
        if *admin_listen == Some(*listen) && listen.port() != 0 {
            return Err(wrong("server.admin_listen", "it is server.listen; leave it out instead"));
        }
        if let Some(tls::Config { client_ca: None, client_cert: ClientCert::Required, .. }) = tls {
            return Err(wrong("server.tls.client_cert", "\"required\" needs server.tls.client_ca"));
        }
        within("server.max_body", self.server.max_body, 1 << 10..=1 << 30)?;
        within("server.max_connections", self.server.max_connections, 1..=1_000_000)?;
        within("server.max_requests", self.server.max_requests, 1..=1_000_000)?;
        if self.server.body_memory() < self.server.max_body.saturating_mul(2) {
            let detail = "it is twice server.max_body or more: a body and its answer";
            return Err(wrong("server.body_memory", detail));
        }
        let timeout = self.server.request_timeout;
        if !(Duration::from_millis(10)..=Duration::from_secs(3_600)).contains(&timeout) {
            return Err(wrong("server.request_timeout", "it is 10ms to 1h"));
        }
        let idle = self.server.idle_timeout;
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3_600)).contains(&idle) {
            return Err(wrong("server.idle_timeout", "must be between 1s and 24h"));
        }
        if self.server.drain_delay > Duration::from_secs(600) {
            return Err(wrong("server.drain_delay", "it is 0s to 10m"));
        }
        Ok(())
    }

    fn check_auth(&self) -> Result<(), Wrong> {
        self.auth.check().map_err(|(key, detail)| Wrong(key, detail))?;
        let asks = self.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        match self.auth.clients.iter().position(|client| !client.tls_san.is_empty()) {
            Some(index) if !asks => {
                let detail = "nobody is asked for a certificate without server.tls.client_ca";
                Err(wrong(&format!("client.{index}.tls_san"), detail))
            }
            _ => Ok(()),
        }
    }

    fn check_roots(&self) -> Result<(), Wrong> {
        let names: Vec<_> = self.roots.iter().map(root::Config::name).collect();
        for (index, name) in names.iter().enumerate() {
            // Names stand in records, labels and logs: what suits a chain suits a root.
            if ChainName::new(name).is_err() {
                let detail = "it is 1 to 63 of a-z 0-9 . _ - and starts with a letter or digit";
                return Err(wrong(&format!("root.{index}.name"), detail));
            }
        }
        match first_repeated(&names) {
            Some(index) => Err(wrong(&format!("root.{index}.name"), "another root has this name")),
            None if names.is_empty() => Err(wrong("root", "there must be one")),
            None => Ok(()),
        }
    }
}

/// Shorter, and the passing trouble of a store or a root would stop decrypts.
const MIN_AGE: Duration = Duration::from_secs(60);

/// 100 years: whoever means longer has a slip in the unit.
const LONGEST: Duration = Duration::from_secs(36_500 * 24 * 60 * 60);

/// Entries of a cache: at about 1 KB each, more than a machine is likely to have.
const MAX_CACHED: usize = 100_000_000;

/// The key of a setting, and what is wrong with it.
pub(super) struct Wrong(pub(super) String, pub(super) String);

pub(super) fn wrong(key: &str, detail: &str) -> Wrong {
    Wrong(key.to_owned(), detail.to_owned())
}

fn within(key: &str, value: usize, allowed: RangeInclusive<usize>) -> Result<(), Wrong> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(wrong(key, &format!("it is {} to {}", allowed.start(), allowed.end())))
}

/// The index of the first item that an earlier one equals.
fn first_repeated<T: Ord>(items: &[T]) -> Option<usize> {
    let mut seen = BTreeSet::new();
    items.iter().position(|item| !seen.insert(item))
}
