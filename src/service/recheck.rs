//! The periodic work on KEKs in memory: their roots must unwrap them again, and roots that were
//! unavailable wrap the KEKs that were created without them.
//!
//! A KEK stays in memory for `offline_grace` while its roots are unavailable. If they answer and
//! none unwraps it, it is dropped.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Monotonic;
use crate::id::KekId;
use crate::keychain::KekPlacement;
use crate::store::record::{self, Kek};
use crate::store::records;

use super::chain::Chain;
use super::core::Core;
use super::keyring::Opening;
use super::rotation::{continuity, root_users};
use super::tasks::proceed;
use super::{KeyService, admin};

/// How often the task looks for due work.
const TICK: Duration = Duration::from_secs(5);
/// How often KEKs that no root unwrapped are tried again.
pub(super) const RETRY: Duration = Duration::from_secs(5 * 60);
/// The maximum number of KEKs that are checked in one tick.
const AT_ONCE: usize = 32;

impl KeyService {
    pub(super) fn keep_up(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let (service, mut stop) = (Arc::downgrade(self), self.core.stopping.subscribe());
        tokio::spawn(async move {
            while proceed(&mut stop, tokio::time::sleep(TICK)).await {
                let Some(service) = service.upgrade() else { return };
                service.look_after_keks().await;
            }
        })
    }

    /// Does the work that is due.
    pub(super) async fn look_after_keks(&self) {
        let core = &self.core;
        core.rollbacks.report(core.clock.now());
        core.check_damage().await;
        self.load_repaired().await;
        self.drop_deleted();
        self.sample_roots().await;
        root_users::look_after(core).await;
        core.audit_key.look_after(&*core.store).await;
        self.retry_unopenable().await;
        let chains: Vec<_> = self.chains.load().values().cloned().collect();
        for chain in chains {
            if !core.keyring.roots.lacking(&chain.missing_wraps.load()).is_empty() {
                admin::roots::complete(core, &chain).await;
            }
        }
        let (now, mut asked, mut away) = (core.clock.now(), 0, HashSet::new());
        for (chain, id) in self.held() {
            let Some(age) =
                core.keyring.check_due(&chain.name, id, core.config.cache.kek_max_age, now)
            else {
                continue;
            };
            if asked == AT_ONCE {
                return;
            }
            // If all roots of one KEK are unavailable, other KEKs of these roots are not tried.
            let record = core.keyring.remembered(&chain.name, id);
            let roots: Vec<String> = record
                .iter()
                .flat_map(|record| record.wraps.iter().map(|wrap| wrap.root.clone()))
                .collect();
            let opening = if away.contains(&roots) {
                Opening::Away
            } else {
                asked += 1;
                check(core, &chain, id).await
            };
            self.judge(&chain, id, opening, age);
            if opening == Opening::Away {
                away.insert(roots);
            }
        }
        self.recheck_inline(now, AT_ONCE - asked, away).await;
    }

    /// Loads chains whose records were damaged at the start and have been repaired.
    async fn load_repaired(&self) {
        let damaged: Vec<_> = self.damaged_chains().keys().cloned().collect();
        for name in damaged {
            if let Ok(Some(_)) = self.load_chain(&name).await {
                tracing::info!(chain = %name, "the damaged record of a chain was repaired");
                self.damaged_chains().remove(&name);
            }
        }
    }

    /// Has each root without evidence unwrap a stored KEK, so that readiness reports a root with
    /// another key before it is needed.
    async fn sample_roots(&self) {
        if self.core.placement == KekPlacement::Inline {
            return;
        }
        let chains: Vec<_> = self.chains.load().values().cloned().collect();
        for state in self.core.keyring.roots.iter() {
            if state.opened_any() || state.wrong().is_some() || !state.is_up() {
                continue;
            }
            for chain in &chains {
                if continuity::sample(&self.core, chain, state).await {
                    break;
                }
            }
        }
    }

    /// Tries KEKs again that no root unwrapped.
    async fn retry_unopenable(&self) {
        let core = &self.core;
        if !core.retries.take(core.clock.now()) {
            return;
        }
        let chains = self.chains.load_full();
        for (name, id) in core.keyring.unopenable(AT_ONCE) {
            if let Some(chain) = chains.get(&name) {
                // The keyring notes the result.
                check(core, chain, id).await;
            }
        }
    }

    /// Checks the inline KEKs that are due.
    async fn recheck_inline(&self, now: Monotonic, most: usize, mut away: HashSet<Vec<String>>) {
        let (core, mut asked) = (&self.core, 0);
        let chains = self.chains.load_full();
        for (name, id) in core.keyring.inline_keks() {
            let due = core.keyring.inline_checked(&name, id, now);
            let due = due.filter(|&(age, _)| is_due(id, age, core.config.cache.kek_max_age));
            let (Some((age, roots)), Some(chain)) = (due, chains.get(&name)) else { continue };
            let opening = if away.contains(&roots) {
                Opening::Away
            } else if asked < most {
                asked += 1;
                core.keyring.check_inline(&name, id).await
            } else {
                return;
            };
            self.judge(chain, id, opening, age);
            if opening == Opening::Away {
                away.insert(roots);
            }
        }
    }

    fn judge(&self, chain: &Chain, id: KekId, opening: Opening, age: Duration) {
        let core = &self.core;
        let detail = match opening {
            Opening::Opens => return core.keyring.checked(&chain.name, id, core.clock.now()),
            Opening::Away
                if age < core.config.cache.kek_max_age + core.config.cache.offline_grace =>
            {
                return;
            }
            Opening::Away => "its roots have been unavailable for longer than cache.offline_grace",
            Opening::Refused => "no root opens it any more",
        };
        tracing::error!(chain = %chain.name, kek_id = %id, detail, "a KEK is dropped from memory");
        chain.publish(|next| next.forget(id));
        core.keyring.drop_kek(&chain.name, id);
        core.deks.forget(&chain.name, id);
        chain.need_uses.notify_one();
    }
}

/// Has each root of a KEK unwrap it, and notes it if one does.
pub(super) async fn ask(core: &Core, chain: &Chain, id: KekId) {
    if let Some(kek) = stored(core, chain, id).await
        && core.keyring.ask_each(&chain.name, id, &kek).await
    {
        core.keyring.checked(&chain.name, id, core.clock.now());
    }
}

/// Checks whether a root of a KEK unwraps it.
async fn check(core: &Core, chain: &Chain, id: KekId) -> Opening {
    match stored(core, chain, id).await {
        Some(kek) => core.keyring.opening(&chain.name, id, &kek).await,
        None => Opening::Away,
    }
}

/// The stored record of a KEK or, if it can't be read, the remembered one.
async fn stored(core: &Core, chain: &Chain, id: KekId) -> Option<Arc<Kek>> {
    let key = record::kek_key(&chain.name, id);
    match records::read::<Kek>(&*core.store, &key).await {
        Ok(Some(read)) => Some(Arc::new(read.record)),
        Ok(None) | Err(_) => core.keyring.remembered(&chain.name, id),
    }
}

impl super::keyring::Keyring {
    /// How long ago a root unwrapped a KEK, if a check is due.
    fn check_due(
        &self,
        chain: &crate::id::ChainName,
        id: KekId,
        max_age: Duration,
        now: Monotonic,
    ) -> Option<Duration> {
        let age = now.since(self.last_checked(chain, id, now));
        is_due(id, age, max_age).then_some(age)
    }
}

/// Whether a check is due: up to an eighth before `max_age`, depending on the id, so that not all
/// KEKs are due at the same time.
fn is_due(id: KekId, age: Duration, max_age: Duration) -> bool {
    let [spread, ..] = *id.as_bytes();
    age >= max_age - max_age * u32::from(spread) / 2048
}
