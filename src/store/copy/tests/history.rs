//! Histories of stores, made at random: what services do to a chain, step by step.

use std::sync::Arc;

use proptest::prelude::*;

use crate::id::{ChainName, KekId, Suite};
use crate::store::record::{self, Head, Kek, Limits, Record, State, Uses, Wrap};
use crate::store::{Store as _, Txn, memory};

/// A step of a service, or of an operator.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Standby,
    Promote,
    Reserve(u8),
    Disable(u8),
    Enable(u8),
    Destroy(u8),
    AddWrap(u8),
    Limits,
    Retire,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Standby),
        4 => Just(Step::Promote),
        4 => any::<u8>().prop_map(Step::Reserve),
        2 => any::<u8>().prop_map(Step::Disable),
        1 => any::<u8>().prop_map(Step::Enable),
        2 => any::<u8>().prop_map(Step::Destroy),
        1 => any::<u8>().prop_map(Step::AddWrap),
        1 => Just(Step::Limits),
        1 => Just(Step::Retire),
    ]
}

/// Chains, and the time, which distinguishes the KEKs of two histories.
pub(super) struct History {
    pub(super) store: Arc<memory::Store>,
    branch: u8,
    now: u64,
}

impl History {
    /// A history that has not begun.
    pub(super) fn new(branch: u8) -> Self {
        Self { store: Arc::default(), branch, now: 1_000 }
    }

    /// Another one that continues from here.
    pub(super) fn fork(&self, branch: u8) -> Self {
        let store = Arc::new(memory::Store::new());
        store.restore(self.store.snapshot());
        Self { store, branch, now: self.now }
    }

    /// Makes the chain unless it is there.
    pub(super) async fn make(&mut self, chain: &ChainName) {
        if self.head(chain).await.is_none() {
            let head = Head {
                suite: Suite::Aes128Gcm,
                limits: Limits::default(),
                primary: None,
                standby: None,
                generation: 1,
                roots_generation: 1,
                named_root: None,
                repair: None,
                inline: false,
            };
            self.put(record::head_key(chain), &head).await;
        }
    }

    pub(super) async fn head(&self, chain: &ChainName) -> Option<Head> {
        read(&self.store, &record::head_key(chain)).await
    }

    pub(super) async fn run(&mut self, chain: &ChainName, steps: &[Step]) {
        self.make(chain).await;
        for &step in steps {
            self.step(chain, step).await;
        }
    }

    /// Does `step` if it can be done now.
    pub(super) async fn step(&mut self, chain: &ChainName, step: Step) {
        self.now += 1;
        let mut head = self.head(chain).await.unwrap();
        head.generation += 1;
        match (step, head.primary, head.standby) {
            (Step::Standby, _, None) => {
                let mut bytes = [self.branch; 16];
                bytes[..8].copy_from_slice(&self.now.to_be_bytes());
                let id = KekId::from_bytes(bytes);
                head.standby = Some(id);
                let wraps = vec![Wrap { root: "main".to_owned(), bytes: bytes.to_vec() }];
                let kek = Kek {
                    suite: head.suite,
                    state: State::Standby,
                    created_at: self.now,
                    promoted_at: None,
                    disabled_at: None,
                    exposed: false,
                    wraps,
                };
                self.put(record::kek_key(chain, id), &kek).await;
                self.put(record::uses_key(chain, id), &Uses::default()).await;
                self.put(record::head_key(chain), &head).await;
            }
            (Step::Promote, old, Some(id)) => {
                if let Some(old) = old {
                    self.change(chain, old, |kek| kek.state = State::Retired).await;
                }
                (head.primary, head.standby) = (Some(id), None);
                let now = self.now;
                self.change(chain, id, |kek| {
                    (kek.state, kek.promoted_at) = (State::Primary, Some(now));
                })
                .await;
                self.put(record::head_key(chain), &head).await;
            }
            (Step::Reserve(block), Some(id), _) => {
                let key = record::uses_key(chain, id);
                let uses: Uses = read(&self.store, &key).await.unwrap();
                let reserved = uses.reserved + 1 + u64::from(block);
                let owner = u64::from(self.branch);
                self.put(key, &Uses { reserved, owner, sequence: self.now }).await;
            }
            (Step::Limits, ..) => {
                head.limits.rotate_after_age += 1;
                self.put(record::head_key(chain), &head).await;
            }
            (Step::Retire, primary, standby) if primary.or(standby).is_some() => {
                for id in [primary, standby].into_iter().flatten() {
                    self.change(chain, id, |kek| kek.state = State::Retired).await;
                }
                (head.primary, head.standby) = (None, None);
                self.put(record::head_key(chain), &head).await;
            }
            (step, ..) => self.step_of_one(chain, step).await,
        }
    }

    /// A step of one KEK, which is any that it fits.
    async fn step_of_one(&mut self, chain: &ChainName, step: Step) {
        let (which, from) = match step {
            Step::Disable(which) => (which, State::Retired),
            Step::Enable(which) | Step::Destroy(which) => (which, State::Disabled),
            Step::AddWrap(which) => (which, State::Retired),
            _ => return,
        };
        let mut fitting = Vec::new();
        for entry in self.store.list(&record::keks_prefix(chain), None, 10_000).await.unwrap() {
            let kek = Kek::decode(&entry.key, &entry.value).unwrap();
            if kek.state == from {
                fitting.push(record::parse_key(&entry.key).unwrap().1);
            }
        }
        if fitting.is_empty() {
            return;
        }
        let record::Part::Kek(id) = fitting[usize::from(which) % fitting.len()] else { return };
        let now = self.now;
        self.change(chain, id, |kek| match step {
            Step::Disable(_) => (kek.state, kek.disabled_at) = (State::Disabled, Some(now)),
            Step::Enable(_) => kek.state = State::Retired,
            Step::Destroy(_) => (kek.state, kek.wraps) = (State::Destroyed, Vec::new()),
            _ => kek.wraps.push(Wrap { root: format!("root-{now}"), bytes: vec![1] }),
        })
        .await;
    }

    pub(super) async fn change(&self, chain: &ChainName, id: KekId, by: impl FnOnce(&mut Kek)) {
        let key = record::kek_key(chain, id);
        let mut kek = read(&self.store, &key).await.unwrap();
        by(&mut kek);
        self.put(key, &kek).await;
    }

    pub(super) async fn put(&self, key: String, record: &impl Record) {
        put(&self.store, key, record.encode().unwrap()).await;
    }
}

/// Writes without a condition.
pub(super) async fn put(store: &memory::Store, key: String, value: Vec<u8>) {
    let _ = store.commit(Txn { puts: vec![(key, value)], ..Txn::default() }).await.unwrap();
}

pub(super) async fn read<R: Record>(store: &memory::Store, key: &str) -> Option<R> {
    store.get(key).await.unwrap().map(|entry| R::decode(key, &entry.value).unwrap())
}
