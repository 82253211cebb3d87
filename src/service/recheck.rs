//! What KEKs in memory need over time: now and then their roots are asked whether they still open
//! them, and roots that were away get to wrap what was made without them.
//!
//! A root that is away takes nothing from memory for `offline_grace`; one that says no does.

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
use super::rotation::{continuity, root_check};
use super::tasks::proceed;
use super::{KeyService, admin};

/// How often it is looked at what is due.
const TICK: Duration = Duration::from_secs(5);
/// How often the roots are asked again for KEKs that none of them opened.
pub(super) const RETRY: Duration = Duration::from_secs(5 * 60);
/// KEKs whose roots are asked in one tick.
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

    /// Does what is due.
    pub(super) async fn look_after_keks(&self) {
        let core = &self.core;
        core.rollbacks.report(core.clock.now());
        core.check_damage().await;
        self.load_repaired().await;
        self.drop_deleted();
        self.sample_roots().await;
        root_check::look_after(core).await;
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
            // One answer is enough to know that all roots of a KEK are away, for all KEKs of these.
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

    /// Takes chains into service whose records were damaged at the start and are whole now.
    async fn load_repaired(&self) {
        let damaged: Vec<_> = self.damaged_chains().keys().cloned().collect();
        for name in damaged {
            if let Ok(Some(_)) = self.load_chain(&name).await {
                tracing::info!(chain = %name, "the record of a chain that was damaged is whole again");
                self.damaged_chains().remove(&name);
            }
        }
    }

    /// Has each root that opened nothing yet open a KEK that names it: readiness reports a root with
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

    /// Now and then asks the roots again for KEKs that none of them opened.
    async fn retry_unopenable(&self) {
        let core = &self.core;
        if !core.retries.take(core.clock.now()) {
            return;
        }
        let chains = self.chains.load_full();
        for (name, id) in core.keyring.unopenable(AT_ONCE) {
            if let Some(chain) = chains.get(&name) {
                // What comes of it is noted by the keyring.
                check(core, chain, id).await;
            }
        }
    }

    /// Has the roots asked of those that are due among the KEKs that travelled along.
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
            Opening::Away => "its roots have been away for longer than cache.offline_grace",
            Opening::Refused => "no root opens it any more",
        };
        tracing::error!(chain = %chain.name, kek_id = %id, detail, "a KEK is dropped from memory");
        chain.publish(|next| next.forget(id));
        core.keyring.drop_kek(&chain.name, id);
        core.deks.forget(&chain.name, id);
        chain.need_uses.notify_one();
    }
}

/// Asks each root of a KEK whether it opens it, and notes it when one does.
pub(super) async fn ask(core: &Core, chain: &Chain, id: KekId) {
    if let Some(kek) = stored(core, chain, id).await
        && core.keyring.ask_each(&chain.name, id, &kek).await
    {
        core.keyring.checked(&chain.name, id, core.clock.now());
    }
}

/// Asks the roots of a KEK whether one of them opens it.
async fn check(core: &Core, chain: &Chain, id: KekId) -> Opening {
    match stored(core, chain, id).await {
        Some(kek) => core.keyring.opening(&chain.name, id, &kek).await,
        None => Opening::Away,
    }
}

/// The record of a KEK: as it is stored or, if that can't be read, as it was last known.
async fn stored(core: &Core, chain: &Chain, id: KekId) -> Option<Arc<Kek>> {
    let key = record::kek_key(&chain.name, id);
    match records::read::<Kek>(&*core.store, &key).await {
        Ok(Some(read)) => Some(Arc::new(read.record)),
        // What is stored is not known now; what was stored has to do.
        Ok(None) | Err(_) => core.keyring.remembered(&chain.name, id),
    }
}

impl super::keyring::Keyring {
    /// How long ago the roots of a KEK were found to open it, if that is so long that they are to be
    /// asked again.
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

/// Up to an eighth earlier, by the id, so that not all KEKs are due at once.
fn is_due(id: KekId, age: Duration, max_age: Duration) -> bool {
    let [spread, ..] = *id.as_bytes();
    age >= max_age - max_age * u32::from(spread) / 2048
}
