//! The records of one chain as this process knows them, and the conditional writes that change
//! them: the transactions of the protocol, and nothing that is not stored.
//!
//! What is known may be out of date; then a write conflicts, and everything is read again. A write
//! whose answer was lost counts as made: what it would have given is never used.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::clock::Monotonic;
use crate::id::{ChainName, KekId};
use crate::store::record::{self, CHAINS, Head, Kek, Limits, NamedRoot, Record, State, Uses};
use crate::store::{Committed, Compare, Entry, Error, Revision, Store, Txn};

mod claim;
mod history;

use history::Known;
pub(super) use history::{Retired, retire_all};

/// A record and the revision that it was read at.
#[derive(Clone, Debug)]
pub(super) struct Versioned<R> {
    pub(super) record: R,
    pub(super) revision: Revision,
}

/// A KEK's two records.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) id: KekId,
    pub(super) kek: Versioned<Kek>,
    pub(super) uses: Versioned<Uses>,
}

/// What was read of a chain.
struct Read {
    head: Versioned<Head>,
    primary: Option<Held>,
    standby: Option<Held>,
    /// What is wrong with the standby's records.
    damage: Option<Error>,
}

/// The records of one chain.
pub(super) struct Ledger {
    store: Arc<dyn Store>,
    chain: ChainName,
    /// This process, and the number of its last block.
    owner: u64,
    sequence: u64,
    pub(super) head: Versioned<Head>,
    pub(super) primary: Option<Held>,
    /// None as well when the head names a standby whose records are damaged.
    pub(super) standby: Option<Held>,
    /// What is wrong with the standby's records.
    pub(super) standby_damage: Option<Error>,
    stale: bool,
    tidings: Arc<Tidings>,
    /// The claim of another process, and since when it is known.
    foreign_claim: Option<(Revision, Monotonic)>,
    /// The store went back to an earlier state.
    restored: bool,
    /// The highest generation that was ever read.
    seen_generation: u64,
    /// The newest set of roots that was ever read, and what the keys were called by it.
    seen_roots: (u64, Option<NamedRoot>),
    /// The KEKs that are or were primary or standby, the last ones.
    known: VecDeque<Known>,
    /// KEKs that were primary or standby before it did.
    lost: Vec<(KekId, Kek, Uses)>,
}

/// What is heard of a chain's records between two reads; it is asked without the ledger's lock.
#[derive(Default)]
pub(super) struct Tidings {
    /// The newest revision that the ledger knows of.
    newest: AtomicU64,
    /// The mark of the head that the ledger knows.
    head: AtomicU64,
    outdated: AtomicBool,
}

impl Tidings {
    /// A record was written at `revision`. True when that is news.
    pub(super) fn written(&self, revision: Revision) -> bool {
        let news = revision.0 > self.newest.load(Ordering::Relaxed);
        if news {
            self.outdate();
        }
        news
    }

    /// This head was read, or none. True when that is news.
    pub(super) fn head_is(&self, head: Option<&Entry>) -> bool {
        let mark = head.and_then(|head| Some(mark(&decode(head).ok()?)));
        let news = mark != Some(self.head.load(Ordering::Relaxed));
        if news {
            self.outdate();
        }
        news
    }

    /// What the ledger knows must be read again.
    pub(super) fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }
}

/// A number that tells heads apart. Where an old copy of the store was restored, the numbers of
/// revisions come again: then two heads may share one.
fn mark(Versioned { record, revision }: &Versioned<Head>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (revision, record.generation, record.primary, record.standby).hash(&mut hasher);
    hasher.finish()
}

/// Reads the record at `key`.
pub(super) async fn read<R: Record>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Versioned<R>>, Error> {
    store.get(key).await?.map(|entry| decode(&entry)).transpose()
}

/// Reads the head of `chain`. Limits that nobody could have set are damage: a KEK must not pass
/// NIST's bound because a record was tampered with.
async fn read_head(store: &dyn Store, chain: &ChainName) -> Result<Option<Versioned<Head>>, Error> {
    let key = record::head_key(chain);
    let head = read::<Head>(store, &key).await?;
    if let Some(Err(detail)) = head.as_ref().map(|head| head.record.limits.validate()) {
        return Err(Error::Corrupt { key, detail: detail.to_owned() });
    }
    Ok(head)
}

/// The head of a chain that is there.
pub(super) async fn head(store: &dyn Store, chain: &ChainName) -> Result<Head, Error> {
    let head = read_head(store, chain).await?;
    head.map(|head| head.record).ok_or_else(|| missing(&record::head_key(chain)))
}

/// The records of a KEK that is there.
async fn read_held(store: &dyn Store, chain: &ChainName, id: KekId) -> Result<Held, Error> {
    let keys = [record::kek_key(chain, id), record::uses_key(chain, id)];
    let mut entries = store.get_all(&keys).await?.into_iter();
    let [kek_key, uses_key] = &keys;
    let kek = entries.next().flatten().ok_or_else(|| missing(kek_key))?;
    let uses = entries.next().flatten().ok_or_else(|| missing(uses_key))?;
    Ok(Held { id, kek: decode(&kek)?, uses: decode(&uses)? })
}

fn decode<R: Record>(entry: &Entry) -> Result<Versioned<R>, Error> {
    Ok(Versioned { record: R::decode(&entry.key, &entry.value)?, revision: entry.revision })
}

/// Stores the head of a new chain; false when there is one already.
pub(super) async fn create(
    store: &dyn Store,
    chain: &ChainName,
    head: &Head,
) -> Result<bool, Error> {
    let key = record::head_key(chain);
    let txn = Txn {
        compares: vec![Compare::Absent(key.clone())],
        puts: vec![(key, head.encode()?)],
        deletes: Vec::new(),
    };
    Ok(matches!(store.commit(txn).await?, Committed::Applied(_)))
}

impl Ledger {
    /// Reads a chain; `None` when there is none of this name.
    pub(super) async fn load(
        store: Arc<dyn Store>,
        chain: ChainName,
        owner: u64,
    ) -> Result<Option<Self>, Error> {
        let Some(head) = read_head(&*store, &chain).await? else {
            return Ok(None);
        };
        // The KEKs are read when they are first needed.
        Ok(Some(Self {
            store,
            chain,
            owner,
            sequence: 0,
            head,
            primary: None,
            standby: None,
            standby_damage: None,
            stale: true,
            tidings: Arc::default(),
            foreign_claim: None,
            restored: false,
            seen_generation: 0,
            seen_roots: (0, None),
            known: VecDeque::new(),
            lost: Vec::new(),
        }))
    }

    /// What others hear of the records goes here.
    pub(super) fn tidings(&self) -> Arc<Tidings> {
        Arc::clone(&self.tidings)
    }

    /// Reads everything again if it may be out of date.
    pub(super) async fn refresh(&mut self) -> Result<(), Error> {
        if !self.tidings.outdated.swap(false, Ordering::Relaxed) && !self.stale {
            return Ok(());
        }
        self.stale = true;
        let Read { head, primary, standby, damage } = self.read_all().await?;
        self.seen_generation = self.seen_generation.max(self.head.record.generation);
        self.notice_restore(&head, primary.as_ref(), standby.as_ref());
        self.head = head;
        (self.primary, self.standby, self.standby_damage) = (primary, standby, damage);
        self.stale = false;
        self.tell();
        Ok(())
    }

    /// Reads head, primary and standby: one after the other, so again when others wrote in between.
    async fn read_all(&mut self) -> Result<Read, Error> {
        let mut last = None;
        loop {
            let head = match read_head(&*self.store, &self.chain).await? {
                Some(head) => head,
                None => self.put_head_again().await?,
            };
            let primary = self.read_held(head.record.primary).await?;
            // A standby has no uses: damage to it must not stop the primary, since it can be replaced.
            let (standby, damage) = match self.read_held(head.record.standby).await {
                Err(error @ Error::Corrupt { .. }) => (None, Some(error)),
                standby => (standby?, None),
            };
            let state = primary.as_ref().map(|primary| primary.kek.record.state);
            let fits = state.is_none_or(|state| state == State::Primary);
            if !fits && last != Some(head.revision) {
                last = Some(head.revision);
                continue;
            }
            if !fits {
                // No write makes it so, but one that met a revision of another history.
                self.set_restored();
            }
            return Ok(Read { head, primary, standby, damage });
        }
    }

    /// Notes what is known now.
    fn tell(&mut self) {
        self.note_known();
        self.note_roots();
        let held = self.primary.iter().chain(&self.standby);
        let newest = held.flat_map(|held| [held.kek.revision, held.uses.revision]).max();
        let newest = newest.max(Some(self.head.revision)).map_or(0, |revision| revision.0);
        self.tidings.newest.store(newest, Ordering::Relaxed);
        self.tidings.head.store(mark(&self.head), Ordering::Relaxed);
    }

    async fn read_held(&self, id: Option<KekId>) -> Result<Option<Held>, Error> {
        let Some(id) = id else { return Ok(None) };
        read_held(&*self.store, &self.chain, id).await.map(Some)
    }

    /// Commits, and says whether it was applied. Unless it was, what is known is out of date.
    async fn commit(&mut self, txn: Txn) -> Result<Option<Revision>, Error> {
        // Until the answer is here, and for good if this future is dropped before.
        self.stale = true;
        match self.store.commit(txn).await? {
            Committed::Applied(revision) => {
                self.stale = false;
                Ok(Some(revision))
            }
            Committed::Conflict => Ok(None),
        }
    }

    /// Stores a new KEK as standby. Compares: head unchanged, without a standby.
    pub(super) async fn put_standby(&mut self, id: KekId, kek: Kek) -> Result<bool, Error> {
        if self.head.record.standby.is_some() {
            return Ok(false);
        }
        self.put_new(id, kek, Txn::default()).await
    }

    /// Stores a new KEK in the place of a standby that can't be opened; that is retired, unless its
    /// record is damaged: then it stays as it is. Compares: head and old standby unchanged.
    pub(super) async fn replace_standby(&mut self, id: KekId, kek: Kek) -> Result<bool, Error> {
        if self.head.record.standby.is_none() {
            return Ok(false);
        }
        let (mut compares, mut puts) = (Vec::new(), Vec::new());
        if let Some(old) = &self.standby {
            let key = record::kek_key(&self.chain, old.id);
            let retired = Kek { state: State::Retired, ..old.kek.record.clone() };
            compares.push(Compare::Unchanged(key.clone(), old.kek.revision));
            puts.push((key, retired.encode()?));
        }
        self.put_new(id, kek, Txn { compares, puts, deletes: Vec::new() }).await
    }

    /// Adds to `txn` what stores a new KEK as standby, and commits it.
    async fn put_new(&mut self, id: KekId, kek: Kek, mut txn: Txn) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.standby = Some(id);
        head.generation += 1;
        let (head_key, kek_key, uses_key) = self.keys(id);
        txn.compares.extend([
            Compare::Unchanged(head_key.clone(), self.head.revision),
            Compare::Absent(kek_key.clone()),
        ]);
        txn.puts.extend([
            (head_key, head.encode()?),
            (kek_key, kek.encode()?),
            (uses_key, Uses::default().encode()?),
        ]);
        // Whoever makes one as well is too late.
        txn.deletes.push(record::claim_key(&self.chain));
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        self.standby = Some(Held {
            id,
            kek: Versioned { record: kek, revision },
            uses: Versioned { record: Uses::default(), revision },
        });
        self.standby_damage = None;
        self.tell();
        Ok(true)
    }

    /// Makes the standby primary and reserves its first block, so that nobody waits for it.
    /// Compares: head, standby, its uses and the old primary unchanged.
    pub(super) async fn promote(&mut self, now: u64, block: u64) -> Result<bool, Error> {
        let Some(mut next) = self.standby.clone() else { return Ok(false) };
        let mut head = self.head.record.clone();
        head.primary = Some(next.id);
        head.standby = None;
        head.generation += 1;
        next.kek.record.state = State::Primary;
        next.kek.record.promoted_at = Some(now);
        next.uses.record = self.next_block(&next.uses.record, block);
        let (head_key, kek_key, uses_key) = self.keys(next.id);
        let mut txn = Txn {
            compares: vec![
                Compare::Unchanged(head_key.clone(), self.head.revision),
                Compare::Unchanged(kek_key.clone(), next.kek.revision),
                Compare::Unchanged(uses_key.clone(), next.uses.revision),
            ],
            puts: vec![
                (head_key, head.encode()?),
                (kek_key, next.kek.record.encode()?),
                (uses_key, next.uses.record.encode()?),
            ],
            deletes: Vec::new(),
        };
        if let Some(old) = &self.primary {
            let key = record::kek_key(&self.chain, old.id);
            let retired = Kek { state: State::Retired, ..old.kek.record.clone() };
            txn.compares.push(Compare::Unchanged(key.clone(), old.kek.revision));
            txn.puts.push((key, retired.encode()?));
        }
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        next.kek.revision = revision;
        next.uses.revision = revision;
        self.primary = Some(next);
        self.standby = None;
        self.tell();
        Ok(true)
    }

    /// Reserves `block` uses of the primary. Compares: its uses unchanged, its state still
    /// primary, and the head unchanged, since a lower `max_uses` may stand there by now.
    pub(super) async fn reserve(&mut self, block: u64) -> Result<bool, Error> {
        let Some(primary) = &self.primary else { return Ok(false) };
        let uses = self.next_block(&primary.uses.record, block);
        if uses.reserved > self.head.record.limits.max_uses {
            return Ok(false);
        }
        let (head_key, kek_key, uses_key) = self.keys(primary.id);
        let txn = Txn {
            compares: vec![
                Compare::Unchanged(head_key, self.head.revision),
                Compare::Unchanged(kek_key, primary.kek.revision),
                Compare::Unchanged(uses_key.clone(), primary.uses.revision),
            ],
            puts: vec![(uses_key, uses.encode()?)],
            deletes: Vec::new(),
        };
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.sequence = uses.sequence;
        if let Some(primary) = &mut self.primary {
            primary.uses = Versioned { record: uses, revision };
        }
        self.tell();
        Ok(true)
    }

    /// Changes the limits. Compares: head and the primary's uses unchanged.
    pub(super) async fn set_limits(&mut self, limits: Limits) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.limits = limits;
        head.generation += 1;
        let head_key = record::head_key(&self.chain);
        let mut txn = Txn {
            compares: vec![Compare::Unchanged(head_key.clone(), self.head.revision)],
            puts: vec![(head_key, head.encode()?)],
            deletes: Vec::new(),
        };
        if let Some(primary) = &self.primary {
            let key = record::uses_key(&self.chain, primary.id);
            txn.compares.push(Compare::Unchanged(key, primary.uses.revision));
        }
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        self.tell();
        Ok(true)
    }

    /// Notes that the set of roots changed, and after which one the keys are called now, if that
    /// changed too. Compares: head unchanged.
    pub(super) async fn roots_changed(&mut self, named: Option<NamedRoot>) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.roots_generation += 1;
        if let Some(named) = named {
            head.named_root = Some(NamedRoot { generation: head.roots_generation, ..named });
        }
        self.put_head(head).await
    }

    /// Notes after which root the keys are called, where that was not needed before. Compares: head
    /// unchanged.
    pub(super) async fn name_root(&mut self, named: NamedRoot) -> Result<bool, Error> {
        let mut head = self.head.record.clone();
        head.named_root = Some(NamedRoot { generation: head.roots_generation, ..named });
        self.put_head(head).await
    }

    async fn put_head(&mut self, mut head: Head) -> Result<bool, Error> {
        head.generation += 1;
        let head_key = record::head_key(&self.chain);
        let txn = Txn {
            compares: vec![Compare::Unchanged(head_key.clone(), self.head.revision)],
            puts: vec![(head_key, head.encode()?)],
            deletes: Vec::new(),
        };
        let Some(revision) = self.commit(txn).await? else { return Ok(false) };
        self.head = Versioned { record: head, revision };
        self.tell();
        Ok(true)
    }

    fn next_block(&self, uses: &Uses, block: u64) -> Uses {
        Uses {
            reserved: uses.reserved.saturating_add(block),
            owner: self.owner,
            sequence: self.sequence + 1,
        }
    }

    fn keys(&self, id: KekId) -> (String, String, String) {
        let chain = &self.chain;
        (record::head_key(chain), record::kek_key(chain, id), record::uses_key(chain, id))
    }
}

/// Stores a KEK in another state. Compares: the KEK unchanged.
pub(super) async fn put_kek(
    store: &dyn Store,
    chain: &ChainName,
    id: KekId,
    read: &Versioned<Kek>,
    kek: &Kek,
) -> Result<bool, Error> {
    let key = record::kek_key(chain, id);
    let txn = Txn {
        compares: vec![Compare::Unchanged(key.clone(), read.revision)],
        puts: vec![(key, kek.encode()?)],
        deletes: Vec::new(),
    };
    Ok(matches!(store.commit(txn).await?, Committed::Applied(_)))
}

/// The names of all chains. KEKs are skipped, not read. A name that is none belongs to nobody's chain, and
/// takes nothing from the others.
pub(super) async fn chains(store: &dyn Store) -> Result<Vec<ChainName>, Error> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let next = store.list(CHAINS, after.as_deref(), 1).await?;
        let Some(entry) = next.first() else { return Ok(names) };
        let name = entry.key.strip_prefix(CHAINS).and_then(|rest| rest.split('/').next());
        let name = name.unwrap_or_default();
        match ChainName::new(name) {
            Ok(name) => names.push(name),
            Err(_) => tracing::error!(key = entry.key, "a record that is no chain's is left out"),
        }
        // '0' follows '/': no key of this chain comes after it, every other chain's does.
        after = Some(format!("{CHAINS}{name}0"));
    }
}

fn missing(key: &str) -> Error {
    Error::Corrupt { key: key.to_owned(), detail: "it is missing".to_owned() }
}
