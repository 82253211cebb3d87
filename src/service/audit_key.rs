//! The key of the audit log in the store of a running service. The service remembers the record,
//! and writes it back if the store loses it, as it does with KEKs.
//!
//! It knows the wrapped record and the store, and no root.

use parking_lot::Mutex;

use crate::store::record::{AUDIT_KEY, AuditKey, Record as _};
use crate::store::{self, Committed, Error, Store, Txn};

/// What this process knows of the record.
#[derive(Default)]
pub(super) struct Remembered {
    record: Mutex<Option<AuditKey>>,
    /// The last complaint, which is logged once.
    complaint: Mutex<Option<String>>,
}

impl Remembered {
    /// Remembers the stored record. The first one stays while the store has one with another
    /// secret.
    fn note(&self, stored: AuditKey) {
        let mut record = self.record.lock();
        match &*record {
            Some(known) if known.id != stored.id => self.complain(
                "the store has another key of the audit log than before: it went back to another \
                 state, or was lost. HMACs under the other key can't be searched with this one"
                    .to_owned(),
            ),
            _ => {
                *record = Some(stored);
                *self.complaint.lock() = None;
            }
        }
    }

    fn complain(&self, detail: String) {
        let mut complaint = self.complaint.lock();
        if complaint.as_ref() != Some(&detail) {
            tracing::error!(detail, "the key of the audit log needs attention");
            *complaint = Some(detail);
        }
    }

    /// Remembers the record in `store`, or writes it back if the store has lost it.
    pub(super) async fn look_after(&self, store: &dyn Store) {
        // The store reports its own failures, and the next call repeats what failed.
        match store::audit_key(store).await {
            Ok(Ok(Some(read))) => self.note(read.record),
            Ok(Ok(None)) => _ = self.write_back(store).await,
            Ok(Err(problem)) => self.complain(problem.to_string()),
            Err(_) => {}
        }
    }

    async fn write_back(&self, store: &dyn Store) -> Result<(), Error> {
        let Some(record) = self.record.lock().clone() else { return Ok(()) };
        let txn = Txn::default().create(AUDIT_KEY.to_owned(), record.encode()?);
        if matches!(store.commit(txn).await?, Committed::Applied(_)) {
            tracing::warn!(id = %record.id, "the store lost the key of the audit log, which is \
                written back");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::KekId;
    use crate::store::memory;

    fn record(byte: u8) -> AuditKey {
        AuditKey { id: KekId::of_key(&[byte; 32]), wraps: Vec::new() }
    }

    async fn put(store: &memory::Store, record: &AuditKey) {
        let txn = Txn::default().put(AUDIT_KEY.to_owned(), record.encode().unwrap());
        let _ = store.commit(txn).await.unwrap();
    }

    async fn stored(store: &memory::Store) -> Option<AuditKey> {
        store::audit_key(store).await.unwrap().unwrap().map(|read| read.record)
    }

    #[tokio::test]
    async fn a_store_that_loses_the_key_gets_it_back_and_another_key_stays() {
        let (store, remembered) = (memory::Store::new(), Remembered::default());
        remembered.look_after(&store).await;
        assert_eq!(stored(&store).await, None, "none was ever there");
        put(&store, &record(1)).await;
        remembered.look_after(&store).await;
        store.restore(memory::Store::new().snapshot());
        remembered.look_after(&store).await;
        assert_eq!(stored(&store).await, Some(record(1)));
        put(&store, &record(2)).await;
        remembered.look_after(&store).await;
        assert_eq!(stored(&store).await, Some(record(2)), "another key is not replaced");
        assert!(remembered.complaint.lock().is_some());
        put(&store, &record(1)).await;
        remembered.look_after(&store).await;
        assert_eq!(*remembered.complaint.lock(), None);
    }
}
