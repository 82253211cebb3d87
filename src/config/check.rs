//! What makes a configuration unusable although each setting has its type.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::id::ChainName;
use crate::service::MIN_DESTROY_DELAY;
use crate::{http, root, service};

use super::Config;

impl Config {
    /// Checks what no part can check alone, and that sizes are sane.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        self.check_server()?;
        self.check_roots()?;
        let service::Config { names, limits, destroy_delay, .. } = &self.service;
        limits.validate().map_err(|detail| wrong("chain", detail))?;
        if let Some(index) = first_repeated(names) {
            return Err(wrong(&format!("chain.names.{index}"), "this name is there already"));
        }
        if !(MIN_DESTROY_DELAY..=LONGEST).contains(destroy_delay) {
            return Err(wrong("chain.destroy_delay", "it is 2m to 36500d"));
        }
        if limits.rotate_after_age > LONGEST.as_secs() {
            return Err(wrong("chain.rotate_after_age", "it is 1m to 36500d"));
        }
        within("cache.dek_entries", self.service.dek_entries, 0..=MAX_CACHED)?;
        within("cache.keks", self.service.keks, 1..=MAX_CACHED)?;
        if self.service.dek_max_age.is_zero() {
            let detail = "it is more than nothing; cache.dek_entries = 0 switches the cache off";
            return Err(wrong("cache.dek_max_age", detail));
        }
        Ok(())
    }

    fn check_server(&self) -> Result<(), Wrong> {
        let http::Config { listen, admin_listen, insecure, .. } = self.server;
        let addresses = [("server.listen", Some(listen)), ("server.admin_listen", admin_listen)];
        for (key, address) in addresses {
            if address.is_some_and(|address| !address.ip().is_loopback()) && !insecure {
                let detail = "it is not a loopback address, and there is neither TLS nor auth; \
                              server.insecure = true allows it";
                return Err(wrong(key, detail));
            }
        }
        if admin_listen == Some(listen) && listen.port() != 0 {
            return Err(wrong("server.admin_listen", "it is server.listen; leave it out instead"));
        }
        within("server.max_body", self.server.max_body, 1 << 10..=1 << 30)?;
        within("server.max_connections", self.server.max_connections, 1..=1_000_000)?;
        let timeout = self.server.request_timeout;
        if !(Duration::from_millis(10)..=Duration::from_secs(3_600)).contains(&timeout) {
            return Err(wrong("server.request_timeout", "it is 10ms to 1h"));
        }
        Ok(())
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
