//! The clients of one process: their calls, the responses they accept, and the envelopes they keep.

use std::sync::{Arc, Mutex};

use super::Rng;
use super::hub::Hub;
use crate::envelope::{Envelope, Version};
use crate::id::KekId;
use crate::service::types::Change;
use crate::service::{DEFAULT_CHAIN, Error, KeyService, Kind};

/// An envelope that a client keeps.
#[derive(Clone)]
pub(super) struct Ciphertext {
    pub(super) bytes: Vec<u8>,
    pub(super) plaintext: Vec<u8>,
    pub(super) kek: KekId,
}

impl Ciphertext {
    /// Whether it contains its KEK.
    pub(super) fn is_inline(&self) -> bool {
        let envelope = Envelope::parse(&self.bytes).unwrap();
        matches!(envelope.header.version, Version::Inline(_))
    }
}

/// A client of one process.
pub(super) struct Client {
    pub(super) hub: Arc<Hub>,
    pub(super) process: usize,
    pub(super) service: Arc<KeyService>,
    pub(super) ciphertexts: Arc<Mutex<Vec<Ciphertext>>>,
    pub(super) rng: Rng,
}

impl Client {
    /// The result of a call. An error must be of one of `kinds`.
    pub(super) fn checked<T>(
        &self,
        what: &str,
        result: Result<T, Error>,
        kinds: &[Kind],
    ) -> Option<T> {
        let mut checker = self.hub.checker();
        let now = self.hub.now();
        match result {
            Ok(good) => Some(good),
            Err(error) => {
                checker.counts.failures += 1;
                checker.note(now, || format!("{} fails to {what}: {error}", self.process));
                if !kinds.contains(&error.kind()) {
                    let at = now.as_secs_f64();
                    checker.broken.push(format!("at {at:.3} s: {what} fails: {error}"));
                }
                None
            }
        }
    }

    pub(super) fn ciphertext(&self) -> Option<Ciphertext> {
        let ciphertexts = self.ciphertexts.lock().unwrap();
        (!ciphertexts.is_empty()).then(|| ciphertexts[self.rng.index(ciphertexts.len())].clone())
    }

    fn keep(&self, ciphertext: Ciphertext) {
        self.hub.checker().encrypted(self.process, self.hub.now(), ciphertext.kek);
        self.hub.check_archived(ciphertext.kek);
        self.ciphertexts.lock().unwrap().push(ciphertext);
    }

    pub(super) async fn encrypt(&self) {
        let plaintext = self.rng.next().to_le_bytes();
        let made = self.service.encrypt(None, plaintext[..].into(), b"aad").await;
        let kinds = [
            Kind::KekExhausted,
            Kind::RootUnavailable,
            Kind::StoreUnavailable,
            Kind::ArchiveUnavailable,
        ];
        if let Some(made) = self.checked("encrypt", made, &kinds) {
            let bytes = made.envelope.as_slice().to_vec();
            self.keep(Ciphertext { bytes, plaintext: plaintext.to_vec(), kek: made.kek_id });
        }
    }

    pub(super) async fn decrypt(&self, ciphertext: &Ciphertext) {
        let began = self.hub.now();
        let opened = self.service.decrypt(None, ciphertext.bytes.clone(), b"aad").await;
        let (history, doubted) = {
            let checker = self.hub.checker();
            (
                checker.history,
                checker.keks.get(&ciphertext.kek).is_some_and(|observed| observed.doubted),
            )
        };
        let mut kinds =
            vec![Kind::RootUnavailable, Kind::StoreUnavailable, Kind::ArchiveUnavailable];
        kinds.extend((doubted || history > 0).then_some(Kind::KekDisabled));
        // A store may lose KEKs, but not those that are archived.
        let may_lose = history > 0 && !self.hub.is_guaranteed();
        kinds.extend(may_lose.then_some(Kind::UnknownKek));
        if let Some(opened) = self.checked("decrypt", opened, &kinds) {
            assert_eq!(opened.plaintext.as_slice(), ciphertext.plaintext);
            let now = self.hub.now();
            self.hub.checker().decrypted(self.process, began, now, ciphertext.kek);
        }
    }

    pub(super) async fn rewrap(&self) {
        let Some(ciphertext) = self.ciphertext() else { return };
        let moved = self.service.rewrap(None, ciphertext.bytes.clone()).await;
        let kinds = [
            Kind::KekExhausted,
            Kind::RootUnavailable,
            Kind::StoreUnavailable,
            Kind::ArchiveUnavailable,
            Kind::KekDisabled,
            Kind::UnknownKek,
        ];
        let moved = self.checked("rewrap", moved, &kinds);
        if let Some(moved) = moved.filter(|moved| moved.kek_id != moved.previous_kek_id) {
            self.keep(Ciphertext { bytes: moved.envelope, kek: moved.kek_id, ..ciphertext });
        }
    }

    pub(super) async fn rotate(&self) {
        let rotated = self.service.rotate(None).await;
        let kinds = [
            Kind::Overloaded,
            Kind::Conflict,
            Kind::RootUnavailable,
            Kind::StoreUnavailable,
            Kind::ArchiveUnavailable,
        ];
        self.checked("rotate", rotated, &kinds);
    }

    pub(super) async fn change(&self, id: KekId, change: Change) {
        if let Some(observed) = self.hub.checker().keks.get_mut(&id) {
            observed.doubted |= change != Change::Enable;
        }
        let now = self.hub.now();
        self.hub.checker().note(now, || format!("{} is to {change:?} {id}", self.process));
        let changed = self.service.change_kek(DEFAULT_CHAIN, id, change).await;
        let kinds = [
            Kind::Conflict,
            Kind::StoreUnavailable,
            Kind::UnknownKek,
            Kind::ArchiveUnavailable,
            Kind::RootUnavailable,
        ];
        self.checked("change", changed, &kinds);
    }
}
