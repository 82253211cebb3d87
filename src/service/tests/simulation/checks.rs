//! What must hold, whatever happens: a book of all that was stored, granted, wrapped and encrypted,
//! and the promises that each entry is held against. It knows no service and no fault.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::KekId;
use crate::store::record::{self, Head, Kek, Part, Record, State, Uses};
use crate::store::{Entry, Txn};

use super::Counts;
use super::world::is_right;

/// A block is void this long after it was asked for.
const BLOCK_LIFE: Duration = Duration::from_secs(60);
/// How long a process that reaches the store may use a KEK that was disabled: it reads all
/// again every 20 s, and its reads may be slow.
const TOLD_WITHIN: Duration = Duration::from_secs(45);
/// A claim of a process that is gone is taken over after this time.
const CLAIM_LIFE: Duration = Duration::from_secs(20);
/// A write whose answer was lost comes this late at most.
pub(super) const LATE: Duration = Duration::from_secs(40);

/// Everything that happened.
#[derive(Default)]
pub(super) struct Book {
    /// How often the store was restored: its promises hold within one history.
    pub(super) history: u32,
    pub(super) head: Option<Head>,
    pub(super) keks: BTreeMap<KekId, Page>,
    processes: Vec<Process>,
    made: BTreeMap<KekId, Making>,
    /// KEKs whose writers heard nothing, and how often a root may wrap them once more for that.
    unheard: BTreeMap<KekId, u32>,
    /// When a new KEK was stored whose maker had given it up.
    late: Vec<Duration>,
    pub(super) broken: Vec<String>,
    pub(super) counts: Counts,
    /// The last lines of what happened, for the reader of a failure.
    pub(super) log: Option<Vec<String>>,
    /// A number that two runs share when they did the same.
    pub(super) trace: u64,
}

/// What is known of one KEK.
#[derive(Default)]
pub(super) struct Page {
    /// Its record now; none where a restore took it away.
    pub(super) kek: Option<Kek>,
    reserved: u64,
    /// All uses that were ever granted, in every history.
    granted: u64,
    /// All envelopes, of every process.
    wraps: u64,
    was_primary: bool,
    pub(super) disabled_at: Option<Duration>,
    /// Somebody tried to disable it: who tries refuses it before it is stored.
    pub(super) doubted: bool,
    /// By process: uses that were granted and told, envelopes made, and when the last was asked
    /// for.
    grants: BTreeMap<usize, (u64, u64, Duration)>,
}

/// What is known of one process.
#[derive(Default)]
struct Process {
    started: Duration,
    /// When a call of the store last failed.
    failed: Duration,
    crashed: Option<Duration>,
    /// The counters that it knew when it last wrote, and in which history.
    seen: BTreeMap<KekId, (u64, u32)>,
    /// KEKs whose counters it saw fall.
    fallen: BTreeSet<KekId>,
    /// A standby was there when it last claimed the making of a KEK.
    replaces: bool,
}

/// How a KEK came to be, or did not.
struct Making {
    process: usize,
    began: Duration,
    /// A standby was there, which its maker alone could not open: others may promote it meanwhile.
    replaces: bool,
    wraps: BTreeMap<String, u32>,
    put: Option<Put>,
}

/// What a process heard of its storing a new KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Applied,
    Conflict(Duration),
    Doubtful,
}

impl Page {
    /// Whether `next` has the wraps that are stored, and more.
    fn gains_a_wrap(&self, next: &Kek) -> bool {
        self.kek.as_ref().is_some_and(|old| {
            next.wraps.len() > old.wraps.len()
                && old.wraps.iter().all(|wrap| next.wraps.contains(wrap))
        })
    }
}

impl Book {
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

    /// A process is born; its number comes back.
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

    /// A txn was applied. What it granted comes back.
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
            let fallen = self.processes[process].fallen.contains(&id);
            self.check(now, !fallen, || {
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
        let page = self.keks.entry(id).or_default();
        let before = page.kek.as_ref().map(|kek| kek.state);
        let allowed = match (before, kek.state) {
            (None, State::Standby)
            | (Some(State::Standby), State::Primary | State::Retired)
            | (Some(State::Primary), State::Retired)
            | (Some(State::Retired), State::Disabled)
            | (Some(State::Disabled), State::Retired | State::Destroyed) => true,
            // Restored, and destroyed again.
            (None, State::Retired | State::Disabled | State::Destroyed) => restored,
            (Some(_), State::Destroyed) => restored,
            // It gets the wrap of a root that was away when it was made.
            (Some(before), after) => before == after && page.gains_a_wrap(&kek),
            _ => false,
        };
        let mut same = kek.wraps.is_empty() == (kek.state == State::Destroyed);
        if let Some(old) = &page.kek {
            same &= kek.wraps == old.wraps
                || kek.state == State::Destroyed
                || page.gains_a_wrap(&kek) && kek.state == old.state;
            same &= (kek.suite, kek.created_at, kek.exposed)
                == (old.suite, old.created_at, old.exposed);
            // One KEK may be promoted once in each history.
            same &= restored || kek.promoted_at == old.promoted_at || kek.state == State::Primary;
        }
        // The clocks of two machines are up to 20 s apart each, and a record may have come late.
        let late = if self.unheard.contains_key(&id) { LATE } else { Duration::ZERO };
        let early = kek.state == State::Destroyed
            && !restored
            && page.disabled_at.is_none_or(|at| now + late - at < Duration::from_secs(120 - 40));
        let opens = kek.wraps.is_empty() || kek.wraps.iter().any(is_right);
        page.was_primary |= kek.state == State::Primary;
        page.disabled_at = match kek.state {
            State::Disabled | State::Destroyed => page.disabled_at.or(Some(now)),
            _ => None,
        };
        if before.is_none() && kek.state == State::Standby {
            self.counts.keks += 1;
            let given_up = self.made.get(&id).is_some_and(|making| making.put.is_some());
            self.late.extend(given_up.then_some(now));
        }
        let state = kek.state;
        page.kek = Some(kek);
        self.check(now, allowed, || format!("{id} goes from {before:?} to {state:?}"));
        self.check(now, same, || format!("another field of {id} changes"));
        self.check(now, !early, || format!("{id} is destroyed too early"));
        self.check(now, opens, || format!("no root that is meant opens {id}"));
    }

    fn put_uses(&mut self, now: Duration, id: KekId, uses: Uses) -> Option<(KekId, u64)> {
        let limits = self.head.as_ref()?.limits;
        let state = self.keks.get(&id).and_then(|page| Some(page.kek.as_ref()?.state));
        let page = self.keks.entry(id).or_default();
        let before = page.reserved;
        page.reserved = uses.reserved;
        // A restored record counts all uses that there may have been.
        let more = uses.reserved.saturating_sub(before);
        let grants = more > 0 && state == Some(State::Primary);
        if grants {
            page.granted += more;
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
            .filter(|(_, page)| page.kek.as_ref().is_some_and(|kek| kek.state == State::Primary))
            .all(|(id, _)| head.primary == Some(*id));
        self.check(now, primary && standby && alone, || {
            format!("the head names other KEKs than the records do: {head:?}")
        });
    }

    /// The process learns that its block is stored.
    pub(super) fn told(&mut self, process: usize, asked: Duration, granted: (KekId, u64)) {
        let (id, uses) = granted;
        let grant = self.keks.entry(id).or_default().grants.entry(process).or_default();
        *grant = (grant.0 + uses, grant.1, asked);
    }

    /// An envelope is born.
    pub(super) fn encrypted(&mut self, process: usize, now: Duration, id: KekId) {
        self.counts.envelopes += 1;
        self.traced(id.as_bytes()[0].into());
        let know_by = self.knows_by(process, id);
        let page = self.keks.entry(id).or_default();
        page.wraps += 1;
        let grant = page.grants.entry(process).or_default();
        grant.1 += 1;
        let (told, made, asked) = *grant;
        let (wraps, granted) = (page.wraps, page.granted);
        let was_primary = page.was_primary;
        let disabled_at = page.disabled_at;
        let destroyed = page.kek.as_ref().is_some_and(|kek| kek.state == State::Destroyed);
        self.check(now, was_primary, || format!("{id} encrypts, and was never stored as primary"));
        self.check(now, made <= told, || {
            format!("{process} made {made} envelopes under {id} with {told} uses")
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

    /// Until when the process must know that the KEK is disabled, if it is.
    fn knows_by(&self, process: usize, id: KekId) -> Option<Duration> {
        let Process { started, failed, .. } = self.processes[process];
        let at = self.keks.get(&id)?.disabled_at?;
        Some(at.max(started).max(failed) + TOLD_WITHIN)
    }

    /// The process read an entry.
    pub(super) fn read(&mut self, process: usize, now: Duration, entry: &Entry) {
        let Some((_, Part::Uses(id))) = record::parse_key(&entry.key) else { return };
        let Ok(uses) = Uses::decode(&entry.key, &entry.value) else { return };
        let (history, book) = (self.history, &mut self.processes[process]);
        let knew = book.seen.get(&id);
        let fell = knew.is_some_and(|seen| seen.1 < history && seen.0 > uses.reserved);
        if fell && book.fallen.insert(id) {
            self.note(now, || format!("{process} sees that the counter of {id} fell"));
        }
    }

    /// The process writes on the ground of this entry. What it only read it may not have heard.
    pub(super) fn knew(&mut self, process: usize, key: &str, value: &[u8]) {
        let Some((_, Part::Uses(id))) = record::parse_key(key) else { return };
        let Ok(uses) = Uses::decode(key, value) else { return };
        let seen = (uses.reserved, self.history);
        self.processes[process].seen.insert(id, seen);
    }

    pub(super) fn wrapped(&mut self, process: usize, now: Duration, id: KekId, root: &str) {
        let making = self.made.entry(id).or_insert_with(|| Making {
            process,
            began: now,
            replaces: self.processes[process].replaces,
            wraps: BTreeMap::new(),
            put: None,
        });
        let wraps = making.wraps.entry(root.to_owned()).or_default();
        *wraps += 1;
        // One that was away when the KEK was made makes up for it, and once more where it is not
        // known whether its wrap was stored.
        let stored = self.keks.get(&id).and_then(|page| page.kek.as_ref());
        let lacks = stored.is_some_and(|kek| kek.wraps.iter().all(|wrap| wrap.root != root));
        let mut once = *wraps == 1 || lacks;
        if let Some(left) = self.unheard.get_mut(&id).filter(|left| !once && **left > 0) {
            *left -= 1;
            once = true;
        }
        self.note(now, || format!("{process} has {root} wrap {id}"));
        self.check(now, once, || format!("{root} wraps {id} again"));
    }

    /// The process learns whether its new KEK was stored.
    pub(super) fn put_heard(&mut self, now: Duration, id: KekId, put: Put) {
        self.note(now, || format!("the maker of {id} receives {put:?}"));
        if let Some(making) = self.made.get_mut(&id) {
            making.put = Some(put);
        }
    }

    /// A process heard nothing of its writing these KEKs.
    pub(super) fn unheard(&mut self, keks: Vec<KekId>) {
        for id in keks {
            *self.unheard.entry(id).or_default() += 1;
        }
    }

    /// The store is what an old copy of it was.
    pub(super) fn restored(&mut self, now: Duration, entries: &[Entry]) {
        self.history += 1;
        self.counts.restores += 1;
        self.head = None;
        for page in self.keks.values_mut() {
            (page.kek, page.reserved, page.disabled_at) = (None, 0, None);
        }
        for Entry { key, value, .. } in entries {
            match record::parse_key(key).map(|(_, part)| part) {
                Some(Part::Head) => self.head = Head::decode(key, value).ok(),
                Some(Part::Kek(id)) => {
                    let kek = Kek::decode(key, value).unwrap();
                    let page = self.keks.entry(id).or_default();
                    if matches!(kek.state, State::Disabled | State::Destroyed) {
                        page.disabled_at = Some(now);
                    }
                    page.kek = Some(kek);
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

    /// Each wrap that no stored KEK came of has a reason: its maker crashed, the answer of the
    /// store was lost, or the roots took so long that another process took over.
    pub(super) fn check_wraps(&mut self, now: Duration, is_calm: bool) {
        let mut wasted = Vec::new();
        for (id, making) in &self.made {
            let is_stored = self.keks.get(id).is_some_and(|page| page.kek.is_some());
            if making.put == Some(Put::Applied) || making.put.is_none() && is_stored {
                continue;
            }
            // It is being made at this moment.
            if making.put.is_none() && now < making.began + CLAIM_LIFE {
                continue;
            }
            let maker = &self.processes[making.process];
            let reason = match making.put {
                Some(Put::Doubtful) => !is_calm,
                // What was to be read again could not be, the claim ran out, or another KEK of
                // this maker came late. A repair of a chain ends the claims of others.
                Some(Put::Conflict(at)) => {
                    self.history > 0
                        || making.replaces
                        || at - making.began >= CLAIM_LIFE / 2
                        || maker.failed >= at
                        || maker.crashed.is_some()
                        || self.late.iter().any(|late| (making.began..=at).contains(late))
                }
                // It was not tried: a crash, or another KEK was there already.
                None => maker.crashed.is_some() || !is_calm && now > maker.failed,
                Some(Put::Applied) => true,
            };
            self.counts.wasted += 1;
            if !reason || is_calm {
                wasted
                    .push(format!("{} wrapped {id} without use: {:?}", making.process, making.put));
            }
        }
        for wasted in wasted {
            self.check(now, false, || wasted);
        }
    }

    /// KEKs whose counters a process that lives saw fall encrypt no more.
    pub(super) fn check_fallen(&mut self, now: Duration) {
        let primary = self.head.as_ref().and_then(|head| head.primary);
        let alive = self.processes.iter().filter(|process| process.crashed.is_none());
        let fallen: Vec<KekId> = alive.flat_map(|process| process.fallen.iter().copied()).collect();
        for id in fallen {
            self.check(now, primary != Some(id), || {
                format!("{id} is primary still, and a process saw its counter fall")
            });
        }
    }
}
