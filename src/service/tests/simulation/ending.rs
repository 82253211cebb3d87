//! The end of a simulation: nothing fails any more, and what was promised is looked at.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::actions::Sim;
use super::world::Birth;
use crate::service::Kind;
use crate::store::record::State;

/// After the last fault every process serves again within this time: a claim of a process that is
/// gone runs out after 20 s, a failed call of a root is tried again after 40 s at most.
const RECOVERS_WITHIN: Duration = Duration::from_secs(150);
/// An archive that was away is tried again after 10 s at most, and a record after 60 s.
const ARCHIVES_WITHIN: Duration = Duration::from_secs(90);
/// After a restore each process that knew more than the one before it repairs the chain once more.
const REPAIRS_WITHIN: Duration = Duration::from_secs(90);

impl Sim {
    /// Nothing fails from now on: every process serves again, soon.
    pub(super) async fn recovery(&mut self) {
        if self.is_broken() {
            return;
        }
        self.hub.set_calm();
        let mut until = Instant::now() + RECOVERS_WITHIN;
        if !self.hub.archives.is_empty() {
            until += ARCHIVES_WITHIN;
        }
        if self.hub.book().history > 0 {
            until += REPAIRS_WITHIN;
        }
        for process in &self.processes {
            process.mend();
        }
        while !self.births.is_empty() && Instant::now() < until {
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
                        self.hub.book().encrypted(process.net.process, now, made.kek_id);
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

    /// Nobody asks for anything: then next to nothing happens.
    pub(super) async fn quiet(&mut self) {
        if self.is_broken() {
            return;
        }
        sleep(Duration::from_secs(70)).await;
        let before = self.hub.book().counts.keks;
        sleep(Duration::from_secs(170)).await;
        let made = self.hub.book().counts.keks - before;
        // Where they live for 90 s, two become too old, and a standby is made.
        if made > 4 {
            self.broken(format!("{made} KEKs are made for nobody"));
        }
    }

    /// A process that was never here reads all that was made.
    pub(super) async fn ending(&mut self) {
        if self.is_broken() {
            return;
        }
        let now = self.hub.now();
        {
            let mut book = self.hub.book();
            book.check_fallen(now);
            book.check_wraps(now, self.hub.weather.is_calm);
        }
        let fresh = match Birth::new(&self.hub, self.rng.fork()).born().await {
            Ok(fresh) => fresh,
            Err(error) => return self.broken(format!("a last start failed: {error}")),
        };
        let letters = std::mem::take(&mut *self.letters.lock().unwrap());
        for letter in letters {
            let state = {
                let book = self.hub.book();
                book.keks.get(&letter.kek).and_then(|page| Some(page.kek.as_ref()?.state))
            };
            let opened = fresh.service.decrypt(None, letter.bytes.clone(), b"aad").await;
            let good = match (&opened, state) {
                (Ok(opened), Some(State::Primary | State::Retired)) => {
                    opened.plaintext.as_slice() == letter.plaintext
                }
                (Err(error), Some(State::Disabled | State::Destroyed)) => {
                    error.kind() == Kind::KekDisabled
                }
                // It was read from an archive.
                (Ok(opened), None) if !self.hub.archives.is_empty() => {
                    let destroyed = self.hub.is_archived_as(letter.kek, &[State::Destroyed]);
                    !destroyed && opened.plaintext.as_slice() == letter.plaintext
                }
                (Err(error), None) if error.kind() == Kind::KekDisabled => {
                    let refused = [State::Disabled, State::Destroyed];
                    self.hub.is_archived_as(letter.kek, &refused)
                }
                (Err(_), None) if self.hub.is_guaranteed() => false,
                (Err(error), None) => {
                    error.kind() == Kind::UnknownKek
                        && !self.kept.contains(&letter.kek)
                        && self.hub.book().history > 0
                }
                _ => false,
            };
            if !good {
                let opened = opened.err().map(|error| error.to_string());
                return self.broken(format!("{} is {state:?}, and opens: {opened:?}", letter.kek));
            }
        }
    }
}
