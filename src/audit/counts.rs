//! Counts of calls that are not recorded singly: those of the level `count`, and refused callers
//! beyond the limit.
//!
//! Both are bounded, whatever callers send.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::id::{ChainName, KekId};
use crate::metrics::Operation;

/// What calls have in common that are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) api: &'static str,
    pub(super) client: Option<Arc<str>>,
    pub(super) auth: Option<&'static str>,
    pub(super) operation: Option<Operation>,
    pub(super) chain: Option<ChainName>,
    pub(super) kek_id: Option<KekId>,
    pub(super) outcome: &'static str,
}

impl Hash for Key {
    /// Enough to distinguish most keys: the ids of KEKs are hashes, and a service has few APIs,
    /// ways to identify callers and outcomes.
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(first) = self.kek_id.as_ref().and_then(|id| id.as_bytes().first_chunk()) {
            state.write_u64(u64::from_le_bytes(*first));
        }
        state.write_u8(self.operation.map_or(u8::MAX, |operation| operation as u8));
        state.write_usize(self.outcome.len());
        state.write(self.chain.as_ref().map_or("", ChainName::as_str).as_bytes());
        state.write(self.client.as_deref().unwrap_or_default().as_bytes());
    }
}

/// How many calls there were, and the sum of their plaintexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) calls: u64,
    pub(super) plaintext_bytes: u64,
}

impl Sum {
    pub(super) fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.plaintext_bytes += other.plaintext_bytes;
    }
}

/// The different keys of a second at most, in each part. Beyond them, calls are counted without
/// client, chain and KEK.
const MAX_KEYS: usize = 2_000;

/// Parts with a lock each, so that threads rarely wait for each other.
const PARTS: usize = 16;

/// The counts of one part.
type Part = HashMap<Key, Sum, BuildHasherDefault<Mixer>>;

/// Counts by key.
#[derive(Default)]
pub(super) struct Counts([Mutex<Part>; PARTS]);

impl Counts {
    pub(super) fn add(&self, key: Key, more: Sum) {
        let Some(part) = self.0.get(part_of_thread()) else { return };
        let mut part = part.lock();
        let has_room = part.len() < MAX_KEYS;
        let sum = match part.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if has_room => new.insert(Sum::default()),
            Entry::Vacant(new) => {
                let key = new.into_key();
                let rest = Key { client: None, auth: None, chain: None, kek_id: None, ..key };
                part.entry(rest).or_default()
            }
        };
        sum.add(more);
    }

    /// The counts since the last call.
    pub(super) fn take(&self) -> HashMap<Key, Sum> {
        let mut all = HashMap::<Key, Sum>::new();
        for part in &self.0 {
            // Its memory is kept: the next second has the same keys.
            for (key, sum) in part.lock().drain() {
                all.entry(key).or_default().add(sum);
            }
        }
        all
    }
}

/// The part in which this thread counts.
fn part_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PART: usize = NEXT.fetch_add(1, Ordering::Relaxed) % PARTS;
    }
    PART.with(|part| *part)
}

/// Hashes keys faster than the standard library. No caller chooses what is in a key, except a chain
/// among those that exist, so collisions can't be forced; and a part has few keys.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        let rest = rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        self.write_u64(rest);
    }

    fn write_u64(&mut self, word: u64) {
        // As rustc's hasher: an odd multiplier spreads each bit over those above it.
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x51_7c_c1_b7_27_22_0a_95);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(u64::try_from(word).unwrap_or_default());
    }

    fn finish(&self) -> u64 {
        // The table uses the highest bits and the lowest.
        self.0 ^ self.0.rotate_left(32)
    }
}

/// Lines about refused callers that are written per second, for each client and for all strangers
/// together.
pub(super) const REFUSALS_A_SECOND: u64 = 20;

/// Limits the lines about refused callers, so that they can't fill the disk.
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<Option<Arc<str>>, u64>>);

impl Refusals {
    /// Whether one more line may be written.
    pub(super) fn admit(&self, client: Option<&Arc<str>>) -> bool {
        let mut refusals = self.0.lock();
        let count = refusals.entry(client.cloned()).or_default();
        *count += 1;
        *count <= REFUSALS_A_SECOND
    }

    /// How many lines were not, by client, since the last call. It begins a new second.
    pub(super) fn take(&self) -> Vec<(Option<Arc<str>>, u64)> {
        let refusals = std::mem::take(&mut *self.0.lock());
        let omitted =
            refusals.into_iter().map(|(client, n)| (client, n - n.min(REFUSALS_A_SECOND)));
        omitted.filter(|&(_, omitted)| omitted > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(plaintext_bytes: u64) -> Sum {
        Sum { calls: 1, plaintext_bytes }
    }

    fn key(chain: &str, outcome: &'static str) -> Key {
        Key {
            api: "http",
            client: Some("billing".into()),
            auth: Some("token"),
            operation: Some(Operation::Encrypt),
            chain: ChainName::new(chain).ok(),
            kek_id: Some(KekId::of_key(&[7; 16])),
            outcome,
        }
    }

    #[test]
    fn calls_of_all_threads_are_counted_by_what_they_have_in_common() {
        let counts = Counts::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counts.add(key("orders", "ok"), one(10));
                        counts.add(key("orders", "kek_exhausted"), one(1));
                        counts.add(key("bills", "ok"), one(0));
                    }
                });
            }
        });
        let all = counts.take();
        assert_eq!(all.len(), 3);
        assert_eq!(all[&key("orders", "ok")], Sum { calls: 800, plaintext_bytes: 8_000 });
        assert_eq!(all[&key("bills", "ok")].calls, 800);
        assert!(counts.take().is_empty());
    }

    #[test]
    fn the_number_of_counts_is_bounded_and_no_call_is_missed() {
        let counts = Counts::default();
        for chain in 0..MAX_KEYS + 500 {
            counts.add(key(&format!("c{chain}"), "ok"), one(1));
        }
        let all = counts.take();
        assert_eq!(all.len(), MAX_KEYS + 1);
        assert_eq!(all.values().map(|sum| sum.calls).sum::<u64>(), MAX_KEYS as u64 + 500);
        assert!(all.keys().any(|key| key.chain.is_none() && key.client.is_none()));
    }

    #[test]
    fn refusals_beyond_the_limit_are_counted_for_each_client() {
        let refusals = Refusals::default();
        let client: Arc<str> = "billing".into();
        let admitted = (0..50).filter(|_| refusals.admit(None)).count() as u64;
        assert_eq!(admitted, REFUSALS_A_SECOND);
        assert!(refusals.admit(Some(&client)));
        assert_eq!(refusals.take(), [(None, 30)]);
        assert!(refusals.admit(None), "the next second begins");
        assert_eq!(refusals.take(), []);
    }
}
