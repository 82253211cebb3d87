//! The key of the audit log in archives: how it is read, restored to a store that lacks it, and
//! compared. Roots are not involved.

use crate::archive::Named;
use crate::archive::object::{self, Damaged, Wraps, merge_audit_key};
use crate::store::record::{self, AuditKey, Record as _};
use crate::store::{self, Committed, Problem, Store, Txn, audit_key};

use super::{at, get};

/// The key in one archive.
pub(in crate::archive) async fn read(named: &Named) -> Result<Option<AuditKey>, Problem> {
    match get(&named.archive, object::AUDIT_KEY).await {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => {
            object::decode_audit_key(&bytes).map(Some).map_err(|Damaged { key, detail }| {
                at(named, &key, &format!("it is damaged: {detail}"))
            })
        }
        Err(error) => Err(at(named, object::AUDIT_KEY, &error.to_string())),
    }
}

/// The key in `archives`: that of the first one that has it, with the wraps of all.
async fn find(archives: &[Named], problems: &mut Vec<Problem>) -> Option<AuditKey> {
    let mut found: Option<AuditKey> = None;
    for named in archives {
        match (read(named).await, &found) {
            (Ok(None), _) => {}
            (Ok(Some(key)), None) => found = Some(key),
            (Ok(Some(key)), Some(known)) if key.id == known.id => {
                found = Some(merge_audit_key(&key, known, Wraps::Join));
            }
            (Ok(Some(_)), Some(_)) => {
                let detail = "it is another key than that of the archive before";
                problems.push(at(named, object::AUDIT_KEY, detail));
            }
            (Err(problem), _) => problems.push(problem),
        }
    }
    found
}

/// Writes the key of the archives to a store that has none. Returns whether it did. What an archive
/// could not say is a problem, and so is a stored key with another secret.
///
/// # Errors
/// [`store::Error`] if the store is unavailable.
pub async fn recover(
    archives: &[Named],
    to: &dyn Store,
    problems: &mut Vec<Problem>,
) -> Result<bool, store::Error> {
    let Some(found) = find(archives, problems).await else { return Ok(false) };
    let txn = Txn::default().create(record::AUDIT_KEY.to_owned(), found.encode()?);
    if matches!(to.commit(txn).await?, Committed::Applied(_)) {
        return Ok(true);
    }
    match audit_key(to).await? {
        Ok(Some(stored)) if stored.record.id != found.id => {
            let detail = "the archives have another key of the audit log, and this one stays";
            problems.push(Problem::new(record::AUDIT_KEY, detail));
        }
        Ok(_) => {}
        Err(problem) => problems.push(problem),
    }
    Ok(false)
}

/// How the key in an archive differs from the stored one; `None` if it does not.
pub(in crate::archive) async fn difference(
    store: &dyn Store,
    named: &Named,
) -> Result<Option<Problem>, store::Error> {
    let stored = match audit_key(store).await? {
        Ok(stored) => stored.map(|read| read.record),
        Err(problem) => return Ok(Some(problem)),
    };
    let archived = match read(named).await {
        Ok(archived) => archived,
        Err(problem) => return Ok(Some(problem)),
    };
    let detail = match (stored, archived) {
        (None, None) => return Ok(None),
        (None, Some(_)) => "it is not in the store",
        (Some(_), None) => "it is not in the archive",
        (Some(stored), Some(archived)) if stored.id != archived.id => {
            "it is another key than that of the store"
        }
        (Some(stored), Some(archived)) => {
            let is_archived = |wrap| archived.wraps.contains(wrap);
            let is_same = stored.wraps.len() == archived.wraps.len();
            if is_same && stored.wraps.iter().all(is_archived) {
                return Ok(None);
            }
            "its wraps are not those of the store"
        }
    };
    Ok(Some(Problem::new(object::AUDIT_KEY, detail)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::archive::{Archive as _, Condition, memory as archives};
    use crate::id::KekId;
    use crate::store::memory;
    use crate::store::record::Wrap;

    fn key(secret: u8, roots: &[&str]) -> AuditKey {
        let wrap = |root: &&str| Wrap { root: (*root).to_owned(), bytes: vec![secret] };
        AuditKey { id: KekId::of_key(&[secret; 32]), wraps: roots.iter().map(wrap).collect() }
    }

    /// An archive with this key, and how to take it down.
    async fn archive(key: Option<&AuditKey>) -> (Named, Arc<archives::Archive>) {
        let archive = Arc::new(archives::Archive::new());
        if let Some(key) = key {
            let bytes = object::encode_audit_key(key).unwrap();
            let _ = archive.put(object::AUDIT_KEY, bytes, Condition::Absent).await.unwrap();
        }
        (Named { name: "nas".into(), archive: archive.clone() }, archive)
    }

    async fn stored(store: &memory::Store) -> Option<AuditKey> {
        audit_key(store).await.unwrap().unwrap().map(|read| read.record)
    }

    #[tokio::test]
    async fn an_empty_store_gets_the_key_and_another_key_stays() {
        let (one, _) = archive(Some(&key(1, &["main"]))).await;
        let (two, down) = archive(Some(&key(1, &["spare"]))).await;
        let (other, _) = archive(Some(&key(2, &["main"]))).await;
        let (store, mut problems) = (memory::Store::new(), Vec::new());
        let both = [one, two];
        assert!(recover(&both, &store, &mut problems).await.unwrap());
        assert_eq!(stored(&store).await, Some(key(1, &["main", "spare"])));
        assert!(!recover(&both, &store, &mut problems).await.unwrap(), "a repetition");
        assert_eq!(problems, []);
        let [one, two] = both;
        let differs = async |named| difference(&store, named).await.unwrap().unwrap().detail;
        assert_eq!(differs(&one).await, "its wraps are not those of the store");
        assert_eq!(differs(&other).await, "it is another key than that of the store");
        assert_eq!(differs(&archive(None).await.0).await, "it is not in the archive");
        let (same, _) = archive(Some(&key(1, &["spare", "main"]))).await;
        assert_eq!(difference(&store, &same).await.unwrap(), None);
        let empty = difference(&memory::Store::new(), &one).await.unwrap().unwrap();
        assert_eq!(empty.to_string(), "audit/key.json: it is not in the store");

        assert!(!recover(&[other], &store, &mut problems).await.unwrap());
        assert_eq!(stored(&store).await, Some(key(1, &["main", "spare"])));
        assert_eq!(problems.pop().unwrap().key, record::AUDIT_KEY);
        down.set_down(true);
        let empty = memory::Store::new();
        assert!(!recover(std::slice::from_ref(&two), &empty, &mut problems).await.unwrap());
        assert_eq!(problems.len(), 1, "it is not known whether there is a key");
        assert!(recover(&[two, one], &empty, &mut problems).await.unwrap());
        assert_eq!(stored(&empty).await, Some(key(1, &["main"])));
    }

    #[tokio::test]
    async fn a_damaged_object_is_never_restored() {
        let whole = object::encode_audit_key(&key(1, &["main"])).unwrap();
        assert_eq!(object::decode_audit_key(&whole), Ok(key(1, &["main"])));
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            assert!(object::decode_audit_key(&bad).is_err(), "byte {at}");
            assert!(object::decode_audit_key(&whole[..at]).is_err(), "cut at {at}");
        }
        let none = object::encode_audit_key(&key(1, &[])).unwrap();
        assert!(object::decode_audit_key(&none).is_err());
    }
}
