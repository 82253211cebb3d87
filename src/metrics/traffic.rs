//! The metrics of requests and connections: how many there are now, and whose they are.
//!
//! The label `client` holds names of configured clients alone.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::register::Register;

/// Why a request of a known client is refused, as codes of errors: the label `reason`.
const REFUSALS: [&str; 2] = ["forbidden", "overloaded"];

/// The metrics of requests and connections.
pub struct Traffic {
    in_flight: IntGaugeVec,
    connections: IntGaugeVec,
    requests: IntCounterVec,
    client_requests: IntCounterVec,
    client_refusals: IntCounterVec,
    /// The configured clients, as far as they have metrics.
    clients: Mutex<Vec<String>>,
}

/// The counters of an API.
pub struct Requests {
    all: IntCounterVec,
    api: &'static str,
    ok: IntCounter,
}

impl Requests {
    /// Counts a request that has ended, with the error of this code or without one.
    pub fn ended(&self, failure: Option<&'static str>) {
        match failure {
            None => self.ok.inc(),
            Some(code) => self.all.with_label_values(&[self.api, code]).inc(),
        }
    }
}

/// Counts for one in a gauge until it is dropped.
pub struct Counted(IntGauge);

impl Counted {
    /// Adds one to `gauge`.
    #[must_use]
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Traffic {
    pub(super) fn new(register: &Register<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            in_flight: register.int_gauge_vec(
                "kms_proxy_requests_in_flight",
                "HTTP requests that are not answered yet, this one included.",
                &["listener"],
            )?,
            connections: register.int_gauge_vec(
                "kms_proxy_connections",
                "Open connections of HTTP clients.",
                &["listener"],
            )?,
            requests: register.counter_vec(
                "kms_proxy_requests_total",
                "Requests of the public listener by API and outcome: ok or the error's code.",
                &["api", "outcome"],
            )?,
            client_requests: register.counter_vec(
                "kms_proxy_client_requests_total",
                "Requests by the configured client that sent them.",
                &["client"],
            )?,
            client_refusals: register.counter_vec(
                "kms_proxy_client_refusals_total",
                "Requests of a configured client that were forbidden, or beyond the concurrency \
                 limits of the client or the service.",
                &["client", "reason"],
            )?,
            clients: Mutex::default(),
        })
    }

    /// The gauges of requests in flight and of connections of a listener: `public` or `admin`.
    #[must_use]
    pub fn listener(&self, listener: &'static str) -> (IntGauge, IntGauge) {
        let labels = [listener];
        (self.in_flight.with_label_values(&labels), self.connections.with_label_values(&labels))
    }

    /// The counters of an API, as the audit log names it: `http` or `aws`.
    #[must_use]
    pub fn requests(&self, api: &'static str) -> Requests {
        let ok = self.requests.with_label_values(&[api, "ok"]);
        Requests { all: self.requests.clone(), api, ok }
    }

    /// Sets the names of the configured clients. New ones start at 0; the metrics of those that are
    /// gone are removed.
    pub fn set_clients(&self, names: impl Iterator<Item = String>) {
        let names: Vec<_> = names.collect();
        let mut clients = self.clients.lock();
        for gone in clients.iter().filter(|name| !names.contains(name)) {
            _ = self.client_requests.remove_label_values(&[gone]);
            for reason in REFUSALS {
                _ = self.client_refusals.remove_label_values(&[gone, reason]);
            }
        }
        for name in &names {
            _ = self.client_requests.with_label_values(&[name]);
            for reason in REFUSALS {
                _ = self.client_refusals.with_label_values(&[name, reason]);
            }
        }
        *clients = names;
    }

    /// Each configured client: its name, its requests, and those that were refused, by reason.
    #[must_use]
    pub fn callers(&self) -> Vec<(String, u64, BTreeMap<&'static str, u64>)> {
        let of = |name: &String| {
            let requests = self.client_requests.with_label_values(&[name]).get();
            let refused = REFUSALS.map(|reason| {
                (reason, self.client_refusals.with_label_values(&[&**name, reason]).get())
            });
            let refused = refused.into_iter().filter(|(_, count)| *count > 0).collect();
            (name.clone(), requests, refused)
        };
        self.clients.lock().iter().map(of).collect()
    }

    /// Counts a request of `client`.
    pub fn client_called(&self, client: &str) {
        self.client_requests.with_label_values(&[client]).inc();
    }

    /// Counts an error with which a request of `client` ended, if it is a refusal.
    pub fn client_failed(&self, client: &str, code: &'static str) {
        if REFUSALS.contains(&code) {
            self.client_refusals.with_label_values(&[client, code]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;

    fn client_lines(registry: &Registry) -> Vec<String> {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("kms_proxy_client_"));
        lines.map(|line| line.trim_start_matches("kms_proxy_client_").to_owned()).collect()
    }

    #[test]
    fn clients_start_at_zero_and_leave_nothing_behind() {
        let registry = Registry::new();
        let traffic = Traffic::new(&Register(&registry)).unwrap();
        traffic.set_clients(["billing", "shop"].map(str::to_owned).into_iter());
        assert_eq!(client_lines(&registry).len(), 2 * (1 + REFUSALS.len()));
        assert!(client_lines(&registry).iter().all(|line| line.ends_with(" 0")));
        traffic.client_called("shop");
        traffic.client_failed("shop", "forbidden");
        traffic.client_failed("shop", "invalid_ciphertext");
        traffic.set_clients(["shop"].map(str::to_owned).into_iter());
        let left = [
            "refusals_total{client=\"shop\",reason=\"forbidden\"} 1",
            "refusals_total{client=\"shop\",reason=\"overloaded\"} 0",
            "requests_total{client=\"shop\"} 1",
        ];
        assert_eq!(client_lines(&registry), left);
        let refused = BTreeMap::from([("forbidden", 1)]);
        assert_eq!(traffic.callers(), [("shop".to_owned(), 1, refused)]);
    }
}
