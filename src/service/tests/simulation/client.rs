//! The clients of one process: what they call, what they may hear, what they keep.

use std::sync::{Arc, Mutex};

use super::Rng;
use super::hub::Hub;
use crate::id::KekId;
use crate::service::types::Change;
use crate::service::{DEFAULT_CHAIN, Error, KeyService, Kind};

/// An envelope that a client keeps.
#[derive(Clone)]
pub(super) struct Letter {
    pub(super) bytes: Vec<u8>,
    pub(super) plaintext: Vec<u8>,
    pub(super) kek: KekId,
}

/// Somebody who calls one process.
pub(super) struct Client {
    pub(super) hub: Arc<Hub>,
    pub(super) process: usize,
    pub(super) service: Arc<KeyService>,
    pub(super) letters: Arc<Mutex<Vec<Letter>>>,
    pub(super) rng: Rng,
}

impl Client {
    /// What was answered; a failure must be one of those that are documented.
    pub(super) fn judge<T>(
        &self,
        what: &str,
        result: Result<T, Error>,
        kinds: &[Kind],
    ) -> Option<T> {
        let mut book = self.hub.book();
        let now = self.hub.now();
        match result {
            Ok(good) => Some(good),
            Err(error) => {
                book.counts.failures += 1;
                book.note(now, || format!("{} fails to {what}: {error}", self.process));
                if !kinds.contains(&error.kind()) {
                    let at = now.as_secs_f64();
                    book.broken.push(format!("at {at:.3} s: {what} fails: {error}"));
                }
                None
            }
        }
    }

    pub(super) fn letter(&self) -> Option<Letter> {
        let letters = self.letters.lock().unwrap();
        (!letters.is_empty()).then(|| letters[self.rng.index(letters.len())].clone())
    }

    fn keep(&self, letter: Letter) {
        self.hub.book().encrypted(self.process, self.hub.now(), letter.kek);
        self.hub.check_archived(letter.kek);
        self.letters.lock().unwrap().push(letter);
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
        if let Some(made) = self.judge("encrypt", made, &kinds) {
            let bytes = made.envelope.as_slice().to_vec();
            self.keep(Letter { bytes, plaintext: plaintext.to_vec(), kek: made.kek_id });
        }
    }

    pub(super) async fn decrypt(&self, letter: &Letter) {
        let began = self.hub.now();
        let opened = self.service.decrypt(None, letter.bytes.clone(), b"aad").await;
        let (history, doubted) = {
            let book = self.hub.book();
            (book.history, book.keks.get(&letter.kek).is_some_and(|page| page.doubted))
        };
        let mut kinds =
            vec![Kind::RootUnavailable, Kind::StoreUnavailable, Kind::ArchiveUnavailable];
        kinds.extend((doubted || history > 0).then_some(Kind::KekDisabled));
        // A store may lose KEKs, but not those that are archived.
        let may_lose = history > 0 && !self.hub.is_guaranteed();
        kinds.extend(may_lose.then_some(Kind::UnknownKek));
        if let Some(opened) = self.judge("decrypt", opened, &kinds) {
            assert_eq!(opened.plaintext.as_slice(), letter.plaintext);
            let now = self.hub.now();
            self.hub.book().decrypted(self.process, began, now, letter.kek);
        }
    }

    pub(super) async fn rewrap(&self) {
        let Some(letter) = self.letter() else { return };
        let moved = self.service.rewrap(None, letter.bytes.clone()).await;
        let kinds = [
            Kind::KekExhausted,
            Kind::RootUnavailable,
            Kind::StoreUnavailable,
            Kind::ArchiveUnavailable,
            Kind::KekDisabled,
            Kind::UnknownKek,
        ];
        let moved = self.judge("rewrap", moved, &kinds);
        if let Some(moved) = moved.filter(|moved| moved.kek_id != moved.previous_kek_id) {
            self.keep(Letter { bytes: moved.envelope, kek: moved.kek_id, ..letter });
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
        self.judge("rotate", rotated, &kinds);
    }

    pub(super) async fn change(&self, id: KekId, change: Change) {
        if let Some(page) = self.hub.book().keks.get_mut(&id) {
            page.doubted |= change != Change::Enable;
        }
        let now = self.hub.now();
        self.hub.book().note(now, || format!("{} is to {change:?} {id}", self.process));
        let changed = self.service.change_kek(DEFAULT_CHAIN, id, change).await;
        let kinds = [
            Kind::Conflict,
            Kind::StoreUnavailable,
            Kind::UnknownKek,
            Kind::ArchiveUnavailable,
            Kind::RootUnavailable,
        ];
        self.judge("change", changed, &kinds);
    }
}
