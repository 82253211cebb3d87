//! The health of the service, for `/readyz`, and the gauges that are set when metrics are read. It
//! looks at memory only.

use super::KeyService;
use super::chain::Chain;
use super::error::Error;
use super::types::{Absence, Check, Health, Readiness};

impl KeyService {
    /// Updates the gauges that are computed when they are read.
    pub fn refresh_metrics(&self) {
        let deks = &self.core.deks;
        self.core.metrics.dek_cache.holds(deks.len(), deks.evicted());
        self.core.archives.report();
        let last_backup = i64::try_from(self.core.last_backup()).unwrap_or(i64::MAX);
        self.core.metrics.store.last_backup.set(last_backup);
        let missing: Vec<_> =
            self.chains.load().values().map(|chain| chain.missing_wraps.load_full()).collect();
        self.core.keyring.roots.report_missing(missing.iter().map(|chain| chain.as_slice()));
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for chain in self.chains.load().values() {
            let count = |absence| gauge(self.core.keyring.count_missing(&chain.name, absence));
            chain.metrics.unknown_keks.set(count(Absence::Unknown));
            chain.metrics.unopenable_keks.set(count(Absence::Unopenable));
            // While the records are read or written, the gauge keeps its value.
            if let Ok(reservations) = chain.reservations.try_lock() {
                chain.metrics.standby.set(i64::from(reservations.ledger.standby.is_some()));
            }
        }
    }

    /// The health of the service. Calls no store and no root.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let mut checks = vec![self.core.store.check()];
        checks.extend(self.core.keyring.roots.checks());
        checks.extend(self.core.archives.checks());
        checks.extend(self.core.backup_check());
        checks.extend(self.damaged_chains().iter().map(|(chain, detail)| Check {
            name: format!("chain:{chain}"),
            health: Health::Degraded,
            detail: Some(detail.clone()),
        }));
        let now = self.core.clock.now();
        let (store, keyring) = (&self.core.store, &self.core.keyring);
        let reachable = store.is_up() && keyring.roots.is_any_up();
        let (mut can_encrypt, mut can_decrypt) = (false, keyring.holds_any());
        let chains = self.chains.load_full();
        let mut chains: Vec<_> = chains.values().collect();
        chains.sort_by_key(|chain| &chain.name);
        for chain in chains {
            let (snapshot, failure) = (chain.snapshot(), chain.root_failure.load());
            // Roots that answer are no help to a chain whose KEK none of them unwraps.
            can_decrypt |= snapshot.keks().next().is_some() || reachable && failure.is_none();
            can_encrypt |= snapshot.budget().is_some_and(|budget| {
                budget.left(now) > 0 || store.is_up() && chain.last_error().is_none()
            });
            checks.extend(self.check_chain(chain));
        }
        checks.extend(self.reports.lock().iter().cloned());
        if self.is_draining() {
            let detail = Some("shutting down".to_owned());
            checks.push(Check { name: "service".to_owned(), health: Health::Down, detail });
        }
        let health = if self.is_draining() || !(can_encrypt || can_decrypt) {
            Health::Down
        } else if checks.iter().any(|check| check.health != Health::Ok) {
            Health::Degraded
        } else {
            Health::Ok
        };
        Readiness { health, checks }
    }

    /// What an operator should know about a chain.
    fn check_chain(&self, chain: &Chain) -> Option<Check> {
        /// The maximum number of KEKs that are named.
        const NAMED: usize = 3;
        let failure = chain.root_failure.load();
        let error = chain.last_error().or_else(|| failure.as_deref().cloned());
        let mut details: Vec<_> = error.iter().map(Error::for_operators).collect();
        details.extend(chain.clock_fault.load().as_deref().cloned());
        details.extend(self.core.damage_of(&chain.name));
        let keyring = &self.core.keyring;
        let missing = keyring.missing(&chain.name);
        let [unopenable, unknown] = [Absence::Unopenable, Absence::Unknown].map(|absence| {
            let ids = missing.iter().filter(|kek| kek.absence == absence);
            ids.map(|kek| kek.kek_id.to_string()).collect::<Vec<_>>()
        });
        let list = |ids: &[String]| ids.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if !unopenable.is_empty() {
            let (count, ids) = (unopenable.len(), list(&unopenable));
            details
                .push(format!("no root opens {count} of its KEKs ({ids}): kms-proxy kek missing"));
        }
        let primary = chain.snapshot().primary_id();
        let primary = primary.and_then(|id| keyring.remembered(&chain.name, id));
        let wraps = primary.iter().flat_map(|kek| &kek.wraps);
        for wrap in wraps.filter(|wrap| !keyring.roots.is_configured(&wrap.root)) {
            let root = &wrap.root;
            details.push(format!(
                "its primary KEK has a wrap by root {root}, which is not configured and opens \
                    what is encrypted now: kms-proxy root remove --root {root}"
            ));
        }
        // The following is no fault: callers can forge ids.
        let health = if details.is_empty() { Health::Ok } else { Health::Degraded };
        if !unknown.is_empty() {
            let (count, ids) = (unknown.len(), list(&unknown));
            details.push(format!(
                "ciphertexts name {count} KEKs that it does not have ({ids}): kms-proxy kek missing"
            ));
        }
        (!details.is_empty()).then(|| Check {
            name: format!("chain:{}", chain.name),
            health,
            detail: Some(details.join("; ")),
        })
    }
}
