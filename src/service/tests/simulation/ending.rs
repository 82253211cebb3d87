//! The end of a run: the faults end, and the final invariants are checked.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::actions::Sim;
use super::process::Starting;
use crate::service::Kind;
use crate::store::record::State;

/// After the last fault every process serves again within this time: the claim of a crashed process
/// expires after 20 s, and a failed root call is repeated after at most 40 s.
const RECOVERS_WITHIN: Duration = Duration::from_secs(150);
/// An unavailable archive is tried again after at most 10 s, and a record after 60 s.
const ARCHIVES_WITHIN: Duration = Duration::from_secs(90);
/// After a restore, each process that knows more than the ones before it repairs the chain again.
const REPAIRS_WITHIN: Duration = Duration::from_secs(90);

impl Sim {
    /// The faults end, and every process must serve again soon.
    pub(super) async fn recovery(&mut self) {
        if self.is_broken() {
            return;
        }
        self.hub.set_calm();
        let mut until = Instant::now() + RECOVERS_WITHIN;
        if !self.hub.archives.is_empty() {
            until += ARCHIVES_WITHIN;
        }
        if self.hub.checker().history > 0 {
            until += REPAIRS_WITHIN;
        }
        for process in &self.processes {
            process.mend();
        }
        while !self.starting.is_empty() && Instant::now() < until {
            sleep(Duration::from_secs(1)).await;
            self.receive().await;
        }
        for one in 0..self.processes.len() {
            let calls = std::mem::take(&mut self.processes[one].calls);
            for call in calls {
                if tokio::time::timeout_at(until, call).await.is_err() {
                    self.broken("a call does not end".to_owned());
                }
            }
        }
        for process in &self.processes {
            let mut last = None;
            while Instant::now() < until {
                match process.service.encrypt(None, b"again"[..].into(), b"").await {
                    Ok(made) => {
                        let now = self.hub.now();
                        self.hub.checker().encrypted(process.net.process, now, made.kek_id);
                        self.hub.check_archived(made.kek_id);
                        last = None;
                        break;
                    }
                    Err(error) => last = Some(error),
                }
                sleep(Duration::from_millis(500)).await;
            }
            if let Some(error) = last {
                self.broken(format!("{} encrypts no more: {error}", process.net.process));
            }
            if !process.is_whole() {
                self.broken(format!("a task of {} ended", process.net.process));
            }
        }
    }

    /// Without calls, the processes must create almost no KEKs.
    pub(super) async fn quiet(&mut self) {
        if self.is_broken() {
            return;
        }
        sleep(Duration::from_secs(70)).await;
        let before = self.hub.checker().counts.keks;
        sleep(Duration::from_secs(170)).await;
        let made = self.hub.checker().counts.keks - before;
        // With a maximum age of 90 s, two become too old, and a standby is created.
        if made > 4 {
            self.broken(format!("{made} KEKs are made for nobody"));
        }
    }

    /// A new process must open every envelope.
    pub(super) async fn ending(&mut self) {
        if self.is_broken() {
            return;
        }
        let now = self.hub.now();
        {
            let mut checker = self.hub.checker();
            checker.check_decreased(now);
            checker.check_wraps(now, self.hub.conditions.is_calm);
        }
        let fresh = match Starting::new(&self.hub, self.rng.fork()).finish().await {
            Ok(fresh) => fresh,
            Err(error) => return self.broken(format!("a last start failed: {error}")),
        };
        let ciphertexts = std::mem::take(&mut *self.ciphertexts.lock().unwrap());
        for ciphertext in ciphertexts {
            let state = {
                let checker = self.hub.checker();
                checker
                    .keks
                    .get(&ciphertext.kek)
                    .and_then(|observed| Some(observed.kek.as_ref()?.state))
            };
            let opened = fresh.service.decrypt(None, ciphertext.bytes.clone(), b"aad").await;
            let good = match (&opened, state) {
                (Ok(opened), Some(State::Primary | State::Retired)) => {
                    opened.plaintext.as_slice() == ciphertext.plaintext
                }
                (Err(error), Some(State::Disabled | State::Destroyed)) => {
                    error.kind() == Kind::KekDisabled
                }
                // The store lost it, and the envelope contains it.
                (Ok(opened), None) if self.hub.archives.is_empty() => {
                    self.hub.checker().history > 0
                        && ciphertext.is_inline()
                        && opened.plaintext.as_slice() == ciphertext.plaintext
                }
                // It was read from an archive.
                (Ok(opened), None) => {
                    let destroyed = self.hub.is_archived_as(ciphertext.kek, &[State::Destroyed]);
                    !destroyed && opened.plaintext.as_slice() == ciphertext.plaintext
                }
                (Err(error), None) if error.kind() == Kind::KekDisabled => {
                    let refused = [State::Disabled, State::Destroyed];
                    self.hub.is_archived_as(ciphertext.kek, &refused)
                }
                (Err(_), None) if self.hub.is_guaranteed() => false,
                (Err(error), None) => {
                    error.kind() == Kind::UnknownKek
                        && !self.kept.contains(&ciphertext.kek)
                        && self.hub.checker().history > 0
                }
                _ => false,
            };
            if !good {
                let opened = opened.err().map(|error| error.to_string());
                return self
                    .broken(format!("{} is {state:?}, and opens: {opened:?}", ciphertext.kek));
            }
        }
    }
}
