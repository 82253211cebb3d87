//! Checks of a configuration whose settings all have the right types.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::id::RootName;
use crate::service::MIN_DESTROY_DELAY;
use crate::tls::ClientCert;
use crate::{archive, auth, http, root, service, store, tls};

use super::Config;

impl Config {
    /// Checks that the sections fit together, and that sizes and times are in range.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        self.check_server()?;
        self.check_roots()?;
        self.check_archives()?;
        self.check_auth()?;
        let checked = self.store.check_settings();
        checked.map_err(|(key, detail)| wrong(&format!("store.{key}"), &detail))?;
        let checked = self.admin.check();
        checked.map_err(|(key, detail)| wrong(&format!("admin.{key}"), detail))?;
        let checked = self.traces.check();
        checked.map_err(|(key, detail)| wrong(&format!("traces.{key}"), detail))?;
        let checked = self.audit.check();
        checked.map_err(|(key, detail)| wrong(&format!("audit.{key}"), detail))?;
        let checked = self.aws_api.check();
        checked.map_err(|(key, detail)| wrong(&format!("aws_api.{key}"), detail))?;
        if let Some(kubernetes) = &self.kubernetes {
            let checked = kubernetes.check();
            checked.map_err(|(key, detail)| wrong(&format!("kubernetes.{key}"), detail))?;
        }
        let service::Config { chain, cache, .. } = &self.service;
        if chain.max_chains == 0 {
            return Err(wrong("chain.max_chains", "must be at least 1"));
        }
        let limits = chain.limits();
        limits.validate().map_err(|detail| wrong("chain", detail))?;
        if let Some(index) = first_repeated(&chain.names) {
            return Err(wrong(&format!("chain.names.{index}"), "this name is already in the list"));
        }
        if !(MIN_DESTROY_DELAY..=LONGEST).contains(&chain.destroy_delay) {
            return Err(wrong("chain.destroy_delay", "must be between 2m and 36500d"));
        }
        if chain.rotate_after_age > LONGEST {
            return Err(wrong("chain.rotate_after_age", "must be between 1m and 36500d"));
        }
        within("cache.dek_entries", cache.dek_entries, 0..=MAX_CACHED)?;
        within("cache.keks", cache.keks, 1..=MAX_CACHED)?;
        if cache.dek_max_age.is_zero() {
            let detail = "must be greater than 0s; cache.dek_entries = 0 turns the cache off";
            return Err(wrong("cache.dek_max_age", detail));
        }
        for (key, age) in
            [("cache.kek_max_age", cache.kek_max_age), ("cache.offline_grace", cache.offline_grace)]
        {
            if !(MIN_AGE..=LONGEST).contains(&age) {
                return Err(wrong(key, "must be between 1m and 36500d"));
            }
        }
        Ok(())
    }

    fn check_server(&self) -> Result<(), Wrong> {
        let http::Config { listen, admin_listen, insecure, tls, .. } = &self.server;
        let is_beyond = |address: &SocketAddr| !address.ip().is_loopback();
        if is_beyond(listen) && !self.is_protected() && !insecure {
            let detail = "this is not a loopback address, and TLS and auth are not both enabled; \
                          server.insecure = true allows it";
            return Err(wrong("server.listen", detail));
        }
        // It serves health and metrics by plain HTTP, and never asks for a certificate.
        if admin_listen.as_ref().is_some_and(is_beyond) && tls.is_none() && !insecure {
            let detail = "this is not a loopback address, and server.listen has no TLS; \
                          server.insecure = true allows it";
            return Err(wrong("server.admin_listen", detail));
        }
        if admin_listen.is_some_and(|admin| overlap(&admin, listen)) {
            let detail = "must not be server.listen, nor have its port on an address that is part \
                          of the other one; leave it out instead";
            return Err(wrong("server.admin_listen", detail));
        }
        if let Some(tls::Config { client_ca: None, client_cert: ClientCert::Required, .. }) = tls {
            return Err(wrong("server.tls.client_cert", "\"required\" needs server.tls.client_ca"));
        }
        within("server.max_body", self.server.max_body, 1 << 10..=1 << 30)?;
        within("server.max_connections", self.server.max_connections, 1..=1_000_000)?;
        within("server.max_requests", self.server.max_requests, 1..=1_000_000)?;
        within("server.max_streams", self.server.max_streams, 1..=100_000)?;
        if self.server.body_memory() < self.server.max_body.saturating_mul(2) {
            let detail = "must be at least twice server.max_body: a body and its response";
            return Err(wrong("server.body_memory", detail));
        }
        let timeout = self.server.request_timeout;
        if !(Duration::from_millis(10)..=Duration::from_secs(3_600)).contains(&timeout) {
            return Err(wrong("server.request_timeout", "must be between 10ms and 1h"));
        }
        let idle = self.server.idle_timeout;
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3_600)).contains(&idle) {
            return Err(wrong("server.idle_timeout", "must be between 1s and 24h"));
        }
        let idle = self.server.stream_idle_timeout;
        if !(Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&idle) {
            return Err(wrong("server.stream_idle_timeout", "must be between 1s and 1h"));
        }
        if self.server.drain_delay > Duration::from_secs(600) {
            return Err(wrong("server.drain_delay", "must be between 0s and 10m"));
        }
        Ok(())
    }

    fn check_auth(&self) -> Result<(), Wrong> {
        self.auth.check().map_err(|(key, detail)| Wrong(key, detail))?;
        let has_access_key = |client: &auth::ClientConfig| !client.aws_access_key_id.is_empty();
        if let Some(index) = self.auth.clients.iter().position(has_access_key)
            && !self.aws_api.enabled
        {
            let detail = "access keys are for the AWS KMS API: set aws_api.enabled = true";
            return Err(wrong(&format!("client.{index}.aws_access_key_id"), detail));
        }
        let asks = self.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        match self.auth.clients.iter().position(|client| !client.tls_san.is_empty()) {
            Some(index) if !asks => {
                let detail = "clients are not asked for certificates without server.tls.client_ca";
                Err(wrong(&format!("client.{index}.tls_san"), detail))
            }
            _ => Ok(()),
        }
    }

    fn check_roots(&self) -> Result<(), Wrong> {
        let names: Vec<_> = self.roots.iter().map(root::Config::name).collect();
        for (index, name) in names.iter().enumerate() {
            RootName::new(name)
                .map_err(|error| wrong(&format!("root.{index}.name"), &error.to_string()))?;
        }
        match first_repeated(&names) {
            Some(index) => Err(wrong(&format!("root.{index}.name"), "another root has this name")),
            None if names.is_empty() => Err(wrong("root", "there must be one")),
            None => Ok(()),
        }
    }
}

impl Config {
    fn check_archives(&self) -> Result<(), Wrong> {
        for (index, archive) in self.archives.iter().enumerate() {
            let checked = archive.check();
            checked.map_err(|(key, detail)| wrong(&format!("archive.{index}.{key}"), &detail))?;
        }
        let names: Vec<_> = self.archives.iter().map(archive::Config::name).collect();
        if let Some(index) = first_repeated(&names) {
            return Err(wrong(&format!("archive.{index}.name"), "another archive has this name"));
        }
        if !names.is_empty() && matches!(self.store, store::Config::Inline(_)) {
            let detail =
                "store.kind is \"inline\": nothing is stored, so there is nothing to archive";
            return Err(wrong("archive", detail));
        }
        Ok(())
    }
}

/// A shorter time would turn a brief outage of a store or a root into failed decrypts.
const MIN_AGE: Duration = Duration::from_secs(60);

/// 100 years: anything longer is a mistake in the unit.
const LONGEST: Duration = Duration::from_secs(36_500 * 24 * 60 * 60);

/// The largest size of a cache: at about 1 KB per entry, more than the memory of most machines.
const MAX_CACHED: usize = 100_000_000;

/// The key of a setting, and what is wrong with it.
pub(super) struct Wrong(pub(super) String, pub(super) String);

pub(super) fn wrong(key: &str, detail: &str) -> Wrong {
    Wrong(key.to_owned(), detail.to_owned())
}

/// Whether two listeners would need the same port. `0.0.0.0` contains every address of IPv4, and
/// `[::]` those of IPv4 too.
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let contains = |one: IpAddr, other: IpAddr| {
        one == other || one.is_unspecified() && (one.is_ipv6() || other.is_ipv4())
    };
    let (a, b) = (one.ip(), other.ip());
    one.port() == other.port() && one.port() != 0 && (contains(a, b) || contains(b, a))
}

fn within(key: &str, value: usize, allowed: RangeInclusive<usize>) -> Result<(), Wrong> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(wrong(key, &format!("must be between {} and {}", allowed.start(), allowed.end())))
}

/// The index of the first item that equals an earlier one.
fn first_repeated<T: Ord>(items: &[T]) -> Option<usize> {
    let mut seen = BTreeSet::new();
    items.iter().position(|item| !seen.insert(item))
}
