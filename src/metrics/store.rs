//! The metrics of the store, and of the DEK cache.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntGauge};

use super::register::Register;

const OPERATIONS: [&str; 4] = ["get", "list", "count", "commit"];

/// The metrics of the store.
pub struct StoreMetrics {
    /// 1 if the store's last response was a success.
    pub up: IntGauge,
    /// When the last backup began, in seconds since the Unix epoch; 0 without one, because a series
    /// that appears later is easily missed.
    pub last_backup: IntGauge,
    call_duration: HistogramVec,
}

impl StoreMetrics {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        let call_duration = register.histogram_vec(
            "kms_proxy_store_call_duration_seconds",
            "Time that calls of the store took.",
            &["operation"],
            &[1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0],
        )?;
        for operation in OPERATIONS {
            _ = call_duration.with_label_values(&[operation]);
        }
        Ok(Self {
            up: register.int_gauge(
                "kms_proxy_store_up",
                "Whether the store's last answer was a good one.",
            )?,
            last_backup: register.int_gauge(
                "kms_proxy_last_backup_timestamp_seconds",
                "Unix time of the last complete backup of the store; 0 if none was ever made.",
            )?,
            call_duration,
        })
    }

    pub(super) fn called(&self, operation: &str, time: Duration) {
        self.call_duration.with_label_values(&[operation]).observe(time.as_secs_f64());
    }
}

/// The metrics of the DEK cache.
pub struct DekCache {
    /// DEKs found.
    pub hits: IntCounter,
    /// DEKs not found.
    pub misses: IntCounter,
    evictions: IntCounter,
    entries: IntGauge,
}

impl DekCache {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            hits: register.counter("kms_proxy_dek_cache_hits_total", "DEKs found in the cache.")?,
            misses: register
                .counter("kms_proxy_dek_cache_misses_total", "DEKs not found in the cache.")?,
            evictions: register.counter(
                "kms_proxy_dek_cache_evictions_total",
                "DEKs that left the cache: for room, for age, or with their KEK.",
            )?,
            entries: register.int_gauge("kms_proxy_dek_cache_entries", "DEKs in the cache.")?,
        })
    }

    /// Sets how many DEKs the cache holds, and how many have left it since the start.
    pub fn holds(&self, entries: usize, evicted: u64) {
        self.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.evictions.inc_by(evicted.saturating_sub(self.evictions.get()));
    }
}
