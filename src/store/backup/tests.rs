//! Backups of a store in memory, and files that are not backups.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::parse::{parse, sha256};
use super::*;
use crate::id::{KekId, Suite};
use crate::store::record::{Head, Kek, Limits, Record as _, State, Uses, Wrap};
use crate::store::{Committed, Entry, Txn, memory, record};

/// Changes the store when it was read for the `at`th time.
struct Busy<'a> {
    store: &'a memory::Store,
    reads: AtomicUsize,
    at: usize,
    txn: Txn,
    /// Whether `get_all` reads as of one moment.
    is_atomic: bool,
}

#[async_trait]
impl Store for Busy<'static> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.pass().await;
        self.store.get(key).await
    }

    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        if self.is_atomic {
            self.pass().await;
            return self.store.get_all(keys).await;
        }
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            entries.push(self.get(key).await?);
        }
        Ok(entries)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        self.pass().await;
        self.store.list(prefix, after, limit).await
    }

    async fn count(&self, prefix: &str) -> Result<u64, Error> {
        self.store.count(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        self.store.commit(txn).await
    }

    fn kind(&self) -> &'static str {
        "busy"
    }
}

impl Busy<'_> {
    async fn pass(&self) {
        if self.reads.fetch_add(1, Ordering::SeqCst) == self.at {
            let _ = self.store.commit(self.txn.clone()).await.unwrap();
        }
    }
}

/// A rotation at any moment leaves a backup whose head names KEKs that are in it, in their states.
#[tokio::test]
async fn a_rotation_while_the_store_is_read_leaves_each_chain_as_at_one_moment() {
    let (chain, old, new) =
        (ChainName::new("a").unwrap(), KekId::from_bytes([7; 16]), KekId::from_bytes([9; 16]));
    let mut seen = std::collections::BTreeSet::new();
    for (at, is_atomic) in (0..24).flat_map(|at| [(at, true), (at, false)]) {
        let store: &'static memory::Store = Box::leak(Box::new(store().await));
        let (head, kek) = (record::head_key(&chain), record::kek_key(&chain, old));
        let decoded = store.get(&head).await.unwrap().unwrap();
        let rotated = Head { primary: Some(new), ..Head::decode(&head, &decoded.value).unwrap() };
        let value = store.get(&kek).await.unwrap().unwrap().value;
        let primary = Kek::decode(&kek, &value).unwrap();
        let retired = Kek { state: State::Retired, ..primary.clone() };
        let uses = Uses { reserved: 1, owner: 1, sequence: 1 };
        let puts = vec![
            (head.clone(), rotated.encode().unwrap()),
            (kek, retired.encode().unwrap()),
            (record::kek_key(&chain, new), primary.encode().unwrap()),
            (record::uses_key(&chain, new), uses.encode().unwrap()),
        ];
        let txn = Txn { puts, ..Txn::default() };
        let busy = Busy { store, reads: AtomicUsize::new(0), at, txn, is_atomic };
        let mut stream = Stream::begin(&busy, &[], 0).await.unwrap();
        let mut bytes = Vec::new();
        while let Some(part) = stream.next().await.unwrap() {
            bytes.extend(part);
        }
        assert_eq!(stream.report().problems, []);
        let read = parse(&bytes).unwrap();
        let entry = read.store.get(&head).await.unwrap().unwrap();
        let named = Head::decode(&head, &entry.value).unwrap().primary.unwrap();
        seen.insert(named);
        for id in [old, new] {
            let key = record::kek_key(&chain, id);
            let Some(entry) = read.store.get(&key).await.unwrap() else {
                assert_ne!(id, named, "the backup has the KEK that its head names");
                continue;
            };
            let state = Kek::decode(&key, &entry.value).unwrap().state;
            assert_eq!(state == State::Primary, id == named, "{at} {is_atomic}: {id} is {state:?}");
        }
    }
    assert_eq!(seen.len(), 2, "before and after the rotation");
}

/// Two chains with a KEK each. One value has white space that no serializer writes.
async fn store() -> memory::Store {
    let mut txn = Txn::default();
    for name in ["a", "b"] {
        let (chain, id) = (ChainName::new(name).unwrap(), KekId::from_bytes([7; 16]));
        let suite = Suite::Aes128Gcm;
        let head = Head {
            suite,
            limits: Limits::default(),
            primary: Some(id),
            standby: None,
            generation: 2,
            roots_generation: 1,
            named_root: None,
            repair: None,
            inline: false,
        };
        let kek = Kek {
            suite,
            state: State::Primary,
            created_at: 1,
            promoted_at: Some(2),
            disabled_at: None,
            exposed: true,
            wraps: vec![Wrap { root: "main".into(), bytes: vec![1, 2, 3] }],
        };
        let mut uses = Uses { reserved: 5, owner: u64::MAX, sequence: 1 }.encode().unwrap();
        uses.extend(b" \n\t");
        txn.puts.push((record::head_key(&chain), head.encode().unwrap()));
        txn.puts.push((record::kek_key(&chain, id), kek.encode().unwrap()));
        txn.puts.push((record::uses_key(&chain, id), uses));
    }
    memory::Store::holding(txn)
}

async fn put(store: &memory::Store, key: &str, value: &[u8]) {
    let txn = Txn { puts: vec![(key.to_owned(), value.to_vec())], ..Txn::default() };
    let _ = store.commit(txn).await.unwrap();
}

async fn entries(store: &memory::Store) -> Vec<(String, Vec<u8>)> {
    let all = store.list("", None, 1_000).await.unwrap();
    all.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

async fn written(store: &memory::Store) -> (String, CopyReport) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let report = write(store, &path, &[], 1_795_553_406, |_| {}).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    (std::fs::read_to_string(path).unwrap(), report)
}

/// The text with the checksum that it should have.
fn sealed(content: &str) -> String {
    format!("{content}{{\"sha256\":\"{}\"}}\n", sha256(content.as_bytes()))
}

/// The text without its checksum.
fn content(text: &str) -> &str {
    &text[..text.rfind("{\"sha256\"").unwrap()]
}

/// The same in format 1.
fn in_format_1(text: &str) -> String {
    let header = "{\"kms_proxy_backup\":1,\"created_at\":\"2026-11-24T20:50:06Z\",\
                  \"chains\":2,\"records\":6}\n";
    let records = text.split_inclusive('\n').filter(|line| line.starts_with("{\"key\""));
    sealed(&std::iter::once(header).chain(records).collect::<String>())
}

/// The result of checking a backup that arrives in small parts.
fn checked(bytes: &[u8]) -> Result<Summary, ReadError> {
    let mut check = Check::default();
    for part in bytes.chunks(7) {
        check.take(part)?;
    }
    check.finish()
}

fn refused(text: &str) -> String {
    parse(text.as_bytes()).err().expect("it is not a valid backup").to_string()
}

#[test]
fn a_device_and_a_pipe_are_not_read_as_backups() {
    let error = super::read(Path::new("/dev/zero")).err().unwrap().to_string();
    assert!(error.contains("it is a device, not a regular file"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    files::mkfifo(&pipe);
    let error = super::read(&pipe).err().unwrap().to_string();
    assert!(error.contains("it is a named pipe, not a regular file"), "{error}");
}

#[tokio::test]
async fn records_come_back_byte_by_byte() {
    let store = store().await;
    put(&store, "chains/a/claim", b"{}").await;
    let (text, report) = written(&store).await;
    assert_eq!((report.chains, report.added, &report.problems[..]), (2, 6, &[][..]));
    assert!(
        text.starts_with("{\"kms_proxy_backup\":2,\"created_at\":\"2026-11-24T20:50:06Z\"}\n"),
        "{text}"
    );
    let read = parse(text.as_bytes()).unwrap();
    assert_eq!((read.chains, read.records, &*read.created_at), (2, 6, "2026-11-24T20:50:06Z"));
    let kept = entries(&store).await.into_iter().filter(|(key, _)| !key.ends_with("claim"));
    assert_eq!(entries(&read.store).await, kept.collect::<Vec<_>>());
    assert_eq!(sealed(content(&text)), text);

    let older = parse(in_format_1(&text).as_bytes()).unwrap();
    assert_eq!((older.chains, older.records, older.left_out), (2, 6, 0));
    assert_eq!(entries(&older.store).await, entries(&read.store).await);
}

#[tokio::test]
async fn damaged_records_are_left_out_and_named() {
    let store = store().await;
    let uses = record::uses_key(&ChainName::new("a").unwrap(), KekId::from_bytes([7; 16]));
    put(&store, &uses, b"{").await;
    put(&store, "chains/b/head", &[0xff]).await;
    put(&store, "chains/b/keks/x", b"").await;
    let (text, report) = written(&store).await;
    let mut keys: Vec<_> = report.problems.iter().map(|problem| &*problem.key).collect();
    keys.sort_unstable();
    assert_eq!(keys, [&*uses, "chains/b/head", "chains/b/keks/x"]);
    let read = parse(text.as_bytes()).unwrap();
    assert_eq!((read.records, read.left_out), (4, 3));
    let (chains, records, left_out) = (read.chains, read.records, read.left_out);
    let summary = Summary { chains, records, left_out };
    assert_eq!(checked(text.as_bytes()).unwrap(), summary);
}

#[tokio::test]
async fn every_cut_and_every_changed_byte_is_found() {
    let (text, _) = written(&store().await).await;
    assert!(checked(text.as_bytes()).is_ok());
    for len in 0..text.len() {
        assert!(checked(&text.as_bytes()[..len]).is_err(), "{len}");
    }
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        assert!(checked(&bytes).is_err(), "byte {at}");
    }
    assert!(checked(format!("{text}\n").as_bytes()).is_err());
    for text in [in_format_1(&text), text] {
        for len in 0..text.len() {
            refused(&text[..len]);
        }
        let whole = text.into_bytes();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(parse(&bytes).is_err(), "byte {at}");
        }
        assert!(parse(&[&whole[..], b"\n"].concat()).is_err());
        assert!(parse(&[&whole[..], &whole].concat()).is_err());
    }
}

#[tokio::test]
async fn an_error_names_the_line() {
    let (text, _) = written(&store().await).await;
    let lines: Vec<_> = content(&text).split_inclusive('\n').collect();
    let with = |at: usize, line: String| {
        let mut lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
        lines[at] = line;
        lines.concat()
    };
    let claim = with(2, "{\"key\":\"chains/a/claim\",\"value\":\"{}\"}\n".to_owned());
    for (content, part) in [
        (lines[0].replace(":2,", ":9,"), "line 1: its format is 9, this version reads 1 and 2"),
        ([&lines[..3], &lines[7..]].concat().concat(), "line 4: it has 1 chains and 2 records"),
        (lines[..3].concat(), "line 3: unknown field `key`"),
        (
            [&lines[..7], &lines[1..2], &lines[7..]].concat().concat(),
            "line 8: chains/a/head occurs twice",
        ),
        (with(0, lines[0].replace("}", ",\"more\":1}")), "line 1: unknown field `more`"),
        (with(3, lines[3].replace("uses", "abuses")), "line 4: its key is not that of a record"),
        (with(2, lines[2].replace("exposed", "opposed")), "line 3: the record chains/a/keks/"),
        (with(2, lines[2].replace("format\\\":1", "format\\\":2")), "its format is 2"),
        (claim, "line 3: chains/a/claim is not a record that a backup contains"),
        (with(5, "\n".to_owned()), "line 6: "),
    ] {
        let said = refused(&sealed(&content));
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = refused(&text.replacen("exposed", "exp\0sed", 1));
    assert_eq!(said, "its checksum does not match: it is damaged, in line 3 if not before");
    let said = refused(&text.replacen("AQID", "AQIE", 1));
    assert_eq!(said, "its checksum does not match: it is damaged");
    assert_eq!(
        refused(content(&text)),
        "line 8: it ends here, without a checksum: the rest is cut off"
    );
}

#[tokio::test]
async fn no_file_is_replaced_and_a_missing_directory_is_reported_before_the_store_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    std::fs::write(&path, "mine").unwrap();
    let store = store().await;
    let error = write(&store, &path, &[], 0, |_| {}).await.unwrap_err();
    assert!(matches!(error, WriteError::Exists), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    store.set_down(true);
    let error = write(&store, &dir.path().join("none/backup"), &[], 0, |_| {}).await.unwrap_err();
    assert!(matches!(error, WriteError::Output(_)), "{error}");
    let error = write(&store, &dir.path().join("new"), &[], 0, |_| {}).await.unwrap_err();
    assert!(matches!(error, WriteError::Store(_)), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_time_of_the_last_backup_is_in_the_store_and_in_no_backup() {
    let store = store().await;
    assert_eq!(last(&store).await.unwrap(), None);
    for at in [1_795_553_406, 1_795_553_400] {
        note(&store, at).await.unwrap();
        assert_eq!(last(&store).await.unwrap(), Some(at), "the last writer wins");
    }
    let (text, report) = written(&store).await;
    assert_eq!(report.problems, []);
    assert!(!text.contains("backups/"), "{text}");
}
