//! The access of tests to a service beyond its public methods: one step of a task, and the state
//! in memory. No other test file knows how the service is built inside.

use super::*;
use crate::service::{kek_lifecycle, rotation};

/// The steps of background tasks. A test whose result must not depend on the tasks' timing stops
/// the service first; it then does only what the test calls.
impl KeyService {
    /// Runs the reserver of `default` once.
    pub(super) async fn run_reserver(&self) {
        self.run_reserver_of(DEFAULT_CHAIN).await;
    }

    /// Runs the reserver of `chain` once.
    pub(super) async fn run_reserver_of(&self, chain: &str) {
        rotation::reserver::drive(&self.core, &self.chain_named(chain)).await;
    }

    /// Runs the rotator of `default` once.
    pub(super) async fn run_rotator(&self) {
        self.run_rotator_of(DEFAULT_CHAIN).await;
    }

    /// Runs the rotator of `chain` once.
    pub(super) async fn run_rotator_of(&self, chain: &str) {
        rotation::rotator::drive(&self.core, &self.chain_named(chain)).await;
    }

    /// Runs the step that reads KEKs again whose state is in doubt.
    pub(super) async fn settle_doubts(&self) {
        kek_lifecycle::settle(&self.core, &self.chain_named(DEFAULT_CHAIN)).await;
    }

    /// Waits until no rotation by hand of `default` is in progress.
    pub(super) async fn manual_rotation_ended(&self) {
        drop(self.chain_named(DEFAULT_CHAIN).by_hand.lock().await);
    }

    /// Completes `during` while the service can't reserve, promote or read the records of
    /// `default`.
    pub(super) async fn without_ledger<T>(&self, during: impl Future<Output = T>) -> T {
        let chain = self.chain_named(DEFAULT_CHAIN);
        let _ledger = chain.reservations.lock().await;
        during.await
    }

    /// Lets a request of `default` wait for uses, and fails the reservation for it twice: one
    /// permit to try again is left over.
    pub(super) async fn leave_permit_over(&self, error: &Error) -> Result<(), Error> {
        let chain = self.chain_named(DEFAULT_CHAIN);
        let waiting = chain.wait_for_uses(Duration::from_secs(10), 10);
        let failures = async {
            for _ in 0..2 {
                chain.set_last_error(Some(error.clone()));
                chain.wake(0);
            }
        };
        tokio::join!(biased; waiting, failures).0
    }

    /// Occupies all concurrent calls of roots for KEKs until the permit is dropped.
    pub(super) async fn occupy_roots(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.core.keyring.crowd().await
    }

    /// Marks every state in memory as read from the store just now.
    pub(super) fn confirm_states(&self) {
        self.core.confirm(self.core.clock.now());
    }

    /// Drops a KEK of `default` from memory.
    pub(super) fn drop_kek(&self, id: KekId) {
        self.core.keyring.drop_kek(&self.chain_named(DEFAULT_CHAIN).name, id);
    }

    /// Probes the store, as a task does after a failure.
    pub(super) async fn is_store_back(&self) -> bool {
        self.core.store.probe(&self.chain_named(DEFAULT_CHAIN).name, self.core.owner).await;
        self.core.store.is_up()
    }

    /// Reports that the store went back to an earlier state.
    pub(super) async fn report_rollback(&self) {
        let chain = self.chain_named(DEFAULT_CHAIN);
        chain.reservations.lock().await.ledger.report_restored();
        chain.need_uses.notify_one();
    }

    /// Ends all tasks where they are, as a crash does.
    pub(super) fn abort_tasks(&self) {
        for task in self.tasks.lock().iter() {
            task.abort();
        }
    }
}

/// What is in memory, of the chain `default` unless said otherwise.
impl KeyService {
    /// Reserved uses that are not spent and not expired.
    pub(super) fn uses_left(&self) -> u64 {
        let snapshot = self.chain_named(DEFAULT_CHAIN).snapshot();
        snapshot.budget().map_or(0, |budget| budget.left(self.core.clock.now()))
    }

    /// The KEK that encrypts.
    pub(super) fn primary_id(&self) -> Option<KekId> {
        self.chain_named(DEFAULT_CHAIN).snapshot().primary_id()
    }

    /// The KEKs that are held for encryption: the primary and an opened standby.
    pub(super) fn keks_in_memory(&self) -> Vec<KekId> {
        let snapshot = self.chain_named(DEFAULT_CHAIN).snapshot();
        snapshot.keks().map(|kek| kek.id()).collect()
    }

    /// The KEKs whose records could be restored from memory.
    pub(super) fn remembered_keks(&self) -> Vec<KekId> {
        let records = self.core.keyring.records(&self.chain_named(DEFAULT_CHAIN).name);
        records.into_iter().map(|(id, _)| id).collect()
    }

    /// The inline KEKs of all chains.
    pub(super) fn inline_keks(&self) -> Vec<(ChainName, KekId)> {
        self.core.keyring.inline_keks()
    }

    /// The head as it was last read.
    pub(super) async fn known_head(&self) -> record::Head {
        let chain = self.chain_named(DEFAULT_CHAIN);
        chain.reservations.lock().await.ledger.head.record.clone()
    }

    /// The head, read again if it may be out of date.
    pub(super) async fn current_head(&self) -> Result<record::Head, store::Error> {
        let chain = self.chain_named(DEFAULT_CHAIN);
        let ledger = &mut chain.reservations.lock().await.ledger;
        ledger.refresh().await?;
        Ok(ledger.head.record.clone())
    }

    /// Whether something is left to do about a rollback of the store.
    pub(super) async fn is_repairing(&self) -> bool {
        self.chain_named(DEFAULT_CHAIN).reservations.lock().await.ledger.is_restored()
    }

    /// How many rollbacks of the store were detected.
    pub(super) fn rollbacks(&self) -> u64 {
        self.chain_named(DEFAULT_CHAIN).metrics.store_rollbacks.get()
    }

    /// The health of the store alone.
    pub(super) fn store_health(&self) -> Health {
        self.core.store.check().health
    }

    /// The number of KEKs for which a root is being called.
    pub(super) fn root_calls_in_progress(&self) -> usize {
        self.core.keyring.in_flight()
    }

    /// Whether no task has ended, as one that panicked does.
    pub(super) fn has_all_tasks(&self) -> bool {
        self.tasks.lock().iter().all(|task| !task.is_finished())
    }

    pub(super) fn chain_named(&self, name: &str) -> Arc<Chain> {
        Arc::clone(&self.chains.load()[name])
    }
}
