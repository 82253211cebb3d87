//! The invariants: the checker records what was stored, granted, wrapped and encrypted, and checks
//! each event. It knows no service and no fault.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::KekId;
use crate::store::record::{self, Head, Kek, Part, Record, State, Uses};
use crate::store::{Entry, Txn};

use super::Counts;
use super::process::is_right;

/// A block expires this long after it was requested.
const BLOCK_LIFE: Duration = Duration::from_secs(60);
/// How long a process with access to the store may use a KEK that was disabled: it reads all
/// records again every 20 s, and its reads may be slow.
const LEARNS_WITHIN: Duration = Duration::from_secs(45);
/// Another process takes over the claim of a crashed one after this time.
const CLAIM_LIFE: Duration = Duration::from_secs(20);
/// The longest delay of a write whose response was lost.
pub(super) const LATE: Duration = Duration::from_secs(40);

/// Everything that happened so far.
#[derive(Default)]
pub(super) struct Checker {
    /// How often the store was restored. Some invariants hold only between two restores.
    pub(super) history: u32,
    pub(super) head: Option<Head>,
    pub(super) keks: BTreeMap<KekId, Observed>,
    processes: Vec<Process>,
    made: BTreeMap<KekId, Creation>,
    /// KEKs whose writers received no response, and how often a root may wrap each again for that
    /// reason.
    unanswered: BTreeMap<KekId, u32>,
    /// When a new KEK was stored after its creator had given it up, or after the claim may have
    /// expired.
    late: Vec<Duration>,
    pub(super) broken: Vec<String>,
    pub(super) counts: Counts,
    /// The events as text, to print after a failure.
    pub(super) log: Option<Vec<String>>,
    /// A hash of the events: equal in two runs with the same events.
    pub(super) trace: u64,
}

/// What was observed of one KEK.
#[derive(Default)]
pub(super) struct Observed {
    /// Its current record; `None` if a restore removed it.
    pub(super) kek: Option<Kek>,
    reserved: u64,
    /// All uses ever granted, over all restores.
    granted: u64,
    /// The envelopes of all processes.
    wraps: u64,
    was_primary: bool,
    pub(super) disabled_at: Option<Duration>,
    /// A process tried to disable it. That process refuses it before the change is stored.
    pub(super) doubted: bool,
    /// For each process: the uses granted by responses that it received, the envelopes it made, and
    /// when it requested its last block.
    grants: BTreeMap<usize, (u64, u64, Duration)>,
}

/// What was observed of one process.
#[derive(Default)]
struct Process {
    started: Duration,
    /// When a call of the store last failed.
    failed: Duration,
    crashed: Option<Duration>,
    /// The counters that it knew when it last wrote, and in which history.
    seen: BTreeMap<KekId, (u64, u32)>,
    /// KEKs whose counters decreased between two of its reads.
    decreased: BTreeSet<KekId>,
    /// Whether the chain had a standby when it last claimed the creation of a KEK.
    replaces: bool,
}

/// The creation of a KEK, successful or not.
struct Creation {
    process: usize,
    began: Duration,
    /// Whether the chain had a standby that the creator could not open. Other processes may promote
    /// that standby.
    replaces: bool,
    wraps: BTreeMap<String, u32>,
    put: Option<Put>,
}

/// The result of storing a new KEK, as its creator received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Applied,
    Conflict(Duration),
    Doubtful,
}

impl Observed {
    /// Whether `next` has all stored wraps, and more.
    fn gains_a_wrap(&self, next: &Kek) -> bool {
        self.kek.as_ref().is_some_and(|old| {
            next.wraps.len() > old.wraps.len()
                && old.wraps.iter().all(|wrap| next.wraps.contains(wrap))
        })
    }
}

impl Checker {
    pub(super) fn note(&mut self, now: Duration, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>9.3} {}", now.as_secs_f64(), line()));
        }
    }

    fn check(&mut self, now: Duration, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(format!("at {:.3} s: {}", now.as_secs_f64(), what()));
        }
    }

    fn traced(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
    }

    /// A process starts. Returns its number.
    pub(super) fn process(&mut self, now: Duration) -> usize {
        self.processes.push(Process { started: now, ..Process::default() });
        self.processes.len() - 1
    }

    pub(super) fn crashed(&mut self, process: usize, now: Duration) {
        self.processes[process].crashed = Some(now);
        self.counts.crashes += 1;
        self.note(now, || format!("process {process} crashes"));
    }

    pub(super) fn call_failed(&mut self, process: usize, now: Duration) {
        self.processes[process].failed = now;
        self.note(now, || format!("a call of {process} fails"));
    }

    /// A transaction was applied. Returns the uses that it granted.
    pub(super) fn applied(
        &mut self,
        process: usize,
        now: Duration,
        txn: &Txn,
    ) -> Option<(KekId, u64)> {
        for key in &txn.deletes {
            let claim = matches!(record::parse_key(key), Some((_, Part::Claim)));
            let report = record::root_user(key).is_some();
            self.check(now, claim || report, || format!("{key} is deleted"));
        }
        let mut granted = None;
        for (key, value) in &txn.puts {
            self.traced(value.len() as u64 ^ now.as_nanos() as u64);
            self.note(now, || format!("{process} puts {key} {}", String::from_utf8_lossy(value)));
            match record::parse_key(key).map(|(_, part)| part) {
                Some(Part::Claim) => {
                    let standby = self.head.as_ref().and_then(|head| head.standby);
                    self.processes[process].replaces = standby.is_some();
                }
                Some(Part::Head) => self.put_head(now, Head::decode(key, value).unwrap()),
                Some(Part::Kek(id)) => self.put_kek(now, id, Kek::decode(key, value).unwrap()),
                Some(Part::Uses(id)) => {
                    granted = self.put_uses(now, id, Uses::decode(key, value).unwrap());
                }
                _ => {}
            }
        }
        if let Some((id, _)) = granted {
            let decreased = self.processes[process].decreased.contains(&id);
            self.check(now, !decreased, || {
                format!("{process} reserves uses of {id}, whose counter it saw fall")
            });
        }
        self.check_head(now);
        granted
    }

    fn put_head(&mut self, now: Duration, head: Head) {
        let before = self.head.as_ref().map_or(0, |head| head.generation);
        self.check(now, head.generation > before, || {
            format!("the head's generation goes from {before} to {}", head.generation)
        });
        self.check(now, head.limits.validate().is_ok(), || format!("{:?}", head.limits));
        self.head = Some(head);
    }

    fn put_kek(&mut self, now: Duration, id: KekId, kek: Kek) {
        let restored = self.history > 0;
        let observed = self.keks.entry(id).or_default();
        let before = observed.kek.as_ref().map(|kek| kek.state);
        let allowed = match (before, kek.state) {
            (None, State::Standby)
            | (Some(State::Standby), State::Primary | State::Retired)
            | (Some(State::Primary), State::Retired)
            | (Some(State::Retired), State::Disabled)
            | (Some(State::Disabled), State::Retired | State::Destroyed) => true,
            // It was restored, and is destroyed again.
            (None, State::Retired | State::Disabled | State::Destroyed) => restored,
            (Some(_), State::Destroyed) => restored,
            // It gets the wrap of a root that was unavailable when it was created.
            (Some(before), after) => before == after && observed.gains_a_wrap(&kek),
            _ => false,
        };
        let mut same = kek.wraps.is_empty() == (kek.state == State::Destroyed);
        if let Some(old) = &observed.kek {
            same &= kek.wraps == old.wraps
                || kek.state == State::Destroyed
                || observed.gains_a_wrap(&kek) && kek.state == old.state;
            same &= (kek.suite, kek.created_at, kek.exposed)
                == (old.suite, old.created_at, old.exposed);
            // A KEK may be promoted once after each restore.
            same &= restored || kek.promoted_at == old.promoted_at || kek.state == State::Primary;
        }
        // The clocks of two machines differ by up to 40 s, and a record may be late.
        let late = if self.unanswered.contains_key(&id) { LATE } else { Duration::ZERO };
        let early = kek.state == State::Destroyed
            && !restored
            && observed
                .disabled_at
                .is_none_or(|at| now + late - at < Duration::from_secs(120 - 40));
        let opens = kek.wraps.is_empty() || kek.wraps.iter().any(is_right);
        observed.was_primary |= kek.state == State::Primary;
        observed.disabled_at = match kek.state {
            State::Disabled | State::Destroyed => observed.disabled_at.or(Some(now)),
            _ => None,
        };
        if before.is_none() && kek.state == State::Standby {
            self.counts.keks += 1;
            // Its creator gave it up, or its claim expired, so another process may create one too.
            let is_late = self.made.get(&id).is_some_and(|creation| {
                creation.put.is_some() || now - creation.began >= CLAIM_LIFE / 2
            });
            self.late.extend(is_late.then_some(now));
        }
        let state = kek.state;
        observed.kek = Some(kek);
        self.check(now, allowed, || format!("{id} goes from {before:?} to {state:?}"));
        self.check(now, same, || format!("another field of {id} changes"));
        self.check(now, !early, || format!("{id} is destroyed too early"));
        self.check(now, opens, || format!("no root that is meant opens {id}"));
    }

    fn put_uses(&mut self, now: Duration, id: KekId, uses: Uses) -> Option<(KekId, u64)> {
        let limits = self.head.as_ref()?.limits;
        let state = self.keks.get(&id).and_then(|observed| Some(observed.kek.as_ref()?.state));
        let observed = self.keks.entry(id).or_default();
        let before = observed.reserved;
        observed.reserved = uses.reserved;
        // A restored record counts all uses that may have been made.
        let more = uses.reserved.saturating_sub(before);
        let grants = more > 0 && state == Some(State::Primary);
        if grants {
            observed.granted += more;
        }
        let put_back = self.history > 0
            && matches!(state, Some(State::Retired | State::Disabled | State::Destroyed))
            && before == 0;
        self.check(now, uses.reserved >= before, || {
            format!("the uses of {id} fall from {before} to {}", uses.reserved)
        });
        self.check(now, put_back || more == 0 || grants, || {
            format!("uses of {id} are reserved, and it is {state:?}")
        });
        self.check(now, put_back || more <= (limits.max_uses / 64).max(16), || {
            format!("a block of {more} uses")
        });
        self.check(now, put_back || uses.reserved <= limits.max_uses, || {
            format!("{} uses of {id} are reserved, of {}", uses.reserved, limits.max_uses)
        });
        grants.then_some((id, more))
    }

    fn check_head(&mut self, now: Duration) {
        let Some(head) = self.head.clone() else { return };
        let state = |id: KekId| Some(self.keks.get(&id)?.kek.as_ref()?.state);
        let primary = head.primary.is_none_or(|id| state(id) == Some(State::Primary));
        let standby = head.standby.is_none_or(|id| state(id) == Some(State::Standby));
        let alone = self
            .keks
            .iter()
            .filter(|(_, observed)| {
                observed.kek.as_ref().is_some_and(|kek| kek.state == State::Primary)
            })
            .all(|(id, _)| head.primary == Some(*id));
        self.check(now, primary && standby && alone, || {
            format!("the head names other KEKs than the records do: {head:?}")
        });
    }

    /// The process receives the response that its block is stored.
    pub(super) fn block_answered(
        &mut self,
        process: usize,
        asked: Duration,
        granted: (KekId, u64),
    ) {
        let (id, uses) = granted;
        let grant = self.keks.entry(id).or_default().grants.entry(process).or_default();
        *grant = (grant.0 + uses, grant.1, asked);
    }

    /// A process returned an envelope.
    pub(super) fn encrypted(&mut self, process: usize, now: Duration, id: KekId) {
        self.counts.envelopes += 1;
        self.traced(id.as_bytes()[0].into());
        let know_by = self.knows_by(process, id);
        let observed = self.keks.entry(id).or_default();
        observed.wraps += 1;
        let grant = observed.grants.entry(process).or_default();
        grant.1 += 1;
        let (block_answered, made, asked) = *grant;
        let (wraps, granted) = (observed.wraps, observed.granted);
        let was_primary = observed.was_primary;
        let disabled_at = observed.disabled_at;
        let destroyed = observed.kek.as_ref().is_some_and(|kek| kek.state == State::Destroyed);
        self.check(now, was_primary, || format!("{id} encrypts, and was never stored as primary"));
        self.check(now, made <= block_answered, || {
            format!("{process} made {made} envelopes under {id} with {block_answered} uses")
        });
        self.check(now, wraps <= granted, || format!("{wraps} envelopes under {id} of {granted}"));
        self.check(now, now < asked + BLOCK_LIFE, || {
            format!("{process} uses a void block of {id}")
        });
        self.check(now, !destroyed, || format!("{id} encrypts, and is destroyed"));
        self.check(now, disabled_at.is_none_or(|at| now < at + BLOCK_LIFE), || {
            format!("{id} encrypts long after it was disabled")
        });
        self.check(now, know_by.is_none_or(|by| now < by), || {
            format!("{process} reaches the store and encrypts under {id}, which is disabled")
        });
    }

    /// An envelope was opened; the call began at `began`.
    pub(super) fn decrypted(&mut self, process: usize, began: Duration, now: Duration, id: KekId) {
        self.counts.decrypts += 1;
        let know_by = self.knows_by(process, id);
        self.check(now, know_by.is_none_or(|by| began < by), || {
            format!("{process} reaches the store and decrypts under {id}, which is disabled")
        });
    }

    /// When the process must know that the KEK is disabled, if it is.
    fn knows_by(&self, process: usize, id: KekId) -> Option<Duration> {
        let Process { started, failed, .. } = self.processes[process];
        let at = self.keks.get(&id)?.disabled_at?;
        Some(at.max(started).max(failed) + LEARNS_WITHIN)
    }

    /// The process read an entry.
    pub(super) fn read(&mut self, process: usize, now: Duration, entry: &Entry) {
        let Some((_, Part::Uses(id))) = record::parse_key(&entry.key) else { return };
        let Ok(uses) = Uses::decode(&entry.key, &entry.value) else { return };
        let (history, checker) = (self.history, &mut self.processes[process]);
        let wrote_after = checker.seen.get(&id);
        let fell = wrote_after.is_some_and(|seen| seen.1 < history && seen.0 > uses.reserved);
        if fell && checker.decreased.insert(id) {
            self.note(now, || format!("{process} sees that the counter of {id} fell"));
        }
    }

    /// The process makes a write that depends on this entry, so it received the entry. The response
    /// to a read alone may be lost.
    pub(super) fn wrote_after(&mut self, process: usize, key: &str, value: &[u8]) {
        let Some((_, Part::Uses(id))) = record::parse_key(key) else { return };
        let Ok(uses) = Uses::decode(key, value) else { return };
        let seen = (uses.reserved, self.history);
        self.processes[process].seen.insert(id, seen);
    }

    pub(super) fn wrapped(&mut self, process: usize, now: Duration, id: KekId, root: &str) {
        let creation = self.made.entry(id).or_insert_with(|| Creation {
            process,
            began: now,
            replaces: self.processes[process].replaces,
            wraps: BTreeMap::new(),
            put: None,
        });
        let wraps = creation.wraps.entry(root.to_owned()).or_default();
        *wraps += 1;
        // A root that was unavailable at the creation wraps the KEK later, and again if it is not
        // known whether its wrap was stored.
        let stored = self.keks.get(&id).and_then(|observed| observed.kek.as_ref());
        let lacks = stored.is_some_and(|kek| kek.wraps.iter().all(|wrap| wrap.root != root));
        let mut once = *wraps == 1 || lacks;
        if let Some(left) = self.unanswered.get_mut(&id).filter(|left| !once && **left > 0) {
            *left -= 1;
            once = true;
        }
        self.note(now, || format!("{process} has {root} wrap {id}"));
        self.check(now, once, || format!("{root} wraps {id} again"));
    }

    /// The process receives the result of storing its new KEK.
    pub(super) fn put_answered(&mut self, now: Duration, id: KekId, put: Put) {
        self.note(now, || format!("the maker of {id} receives {put:?}"));
        if let Some(creation) = self.made.get_mut(&id) {
            creation.put = Some(put);
        }
    }

    /// A process received no response to its write of these KEKs.
    pub(super) fn unanswered(&mut self, keks: Vec<KekId>) {
        for id in keks {
            *self.unanswered.entry(id).or_default() += 1;
        }
    }

    /// The store was replaced by an old copy.
    pub(super) fn restored(&mut self, now: Duration, entries: &[Entry]) {
        self.history += 1;
        self.counts.restores += 1;
        self.head = None;
        for observed in self.keks.values_mut() {
            (observed.kek, observed.reserved, observed.disabled_at) = (None, 0, None);
        }
        for Entry { key, value, .. } in entries {
            match record::parse_key(key).map(|(_, part)| part) {
                Some(Part::Head) => self.head = Head::decode(key, value).ok(),
                Some(Part::Kek(id)) => {
                    let kek = Kek::decode(key, value).unwrap();
                    let observed = self.keks.entry(id).or_default();
                    if matches!(kek.state, State::Disabled | State::Destroyed) {
                        observed.disabled_at = Some(now);
                    }
                    observed.kek = Some(kek);
                }
                Some(Part::Uses(id)) => {
                    self.keks.entry(id).or_default().reserved =
                        Uses::decode(key, value).unwrap().reserved;
                }
                _ => {}
            }
        }
        self.note(now, || "the store is restored".to_owned());
    }

    /// Each wrap of a KEK that was not stored has a reason: its creator crashed, the response of
    /// the store was lost, or the roots took so long that another process took over.
    pub(super) fn check_wraps(&mut self, now: Duration, is_calm: bool) {
        let mut wasted = Vec::new();
        for (id, creation) in &self.made {
            let is_stored = self.keks.get(id).is_some_and(|observed| observed.kek.is_some());
            if creation.put == Some(Put::Applied) || creation.put.is_none() && is_stored {
                continue;
            }
            // Its creation is in progress.
            if creation.put.is_none() && now < creation.began + CLAIM_LIFE {
                continue;
            }
            let maker = &self.processes[creation.process];
            let reason = match creation.put {
                Some(Put::Doubtful) => !is_calm,
                // A read failed, the claim expired, or another KEK of this creator was late. The
                // repair of a chain ends the claims of others.
                Some(Put::Conflict(at)) => {
                    self.history > 0
                        || creation.replaces
                        || at - creation.began >= CLAIM_LIFE / 2
                        || maker.failed >= at
                        || maker.crashed.is_some()
                        || self.late.iter().any(|late| (creation.began..=at).contains(late))
                }
                // It was not stored: a crash, or the chain had another KEK already.
                None => maker.crashed.is_some() || !is_calm && now > maker.failed,
                Some(Put::Applied) => true,
            };
            self.counts.wasted += 1;
            if !reason || is_calm {
                wasted.push(format!(
                    "{} wrapped {id} without use: {:?}",
                    creation.process, creation.put
                ));
            }
        }
        for wasted in wasted {
            self.check(now, false, || wasted);
        }
    }

    /// A KEK whose counter decreased, as a running process saw, encrypts no more.
    pub(super) fn check_decreased(&mut self, now: Duration) {
        let primary = self.head.as_ref().and_then(|head| head.primary);
        let alive = self.processes.iter().filter(|process| process.crashed.is_none());
        let decreased: Vec<KekId> =
            alive.flat_map(|process| process.decreased.iter().copied()).collect();
        for id in decreased {
            self.check(now, primary != Some(id), || {
                format!("{id} is primary still, and a process saw its counter fall")
            });
        }
    }
}
