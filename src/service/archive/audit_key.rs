//! Brings the key of the audit log into one archive: the object is read before the stored record,
//! and replaced only if it has not changed. An object with another secret is never replaced.

use crate::archive::object::{self, Wraps};
use crate::archive::{Condition, Written};
use crate::service::core::Core;
use crate::store;

use super::archives::One;
use super::sync::{Failed, TRIES, busy, call, joined};

/// Archives the stored record, if there is one. What is wrong with it is in readiness, and holds up
/// no other record.
pub(super) async fn sync(core: &Core, one: &One) -> Result<(), Failed> {
    match try_sync(core, one).await {
        Ok(()) => one.note_audit_key(None),
        Err(Failed::Record(detail)) => one.note_audit_key(Some(detail)),
        Err(failed) => return Err(failed),
    }
    Ok(())
}

async fn try_sync(core: &Core, one: &One) -> Result<(), Failed> {
    for _ in 0..TRIES {
        let found = call(core, one, one.archive.get(object::AUDIT_KEY)).await?;
        let stored = match store::audit_key(&*core.store).await? {
            Ok(Some(read)) => read.record,
            Ok(None) => return Ok(()),
            Err(problem) => return Err(Failed::Record(problem.to_string())),
        };
        let archived = found.as_ref().map(|it| object::decode_audit_key(&it.bytes)).transpose()?;
        let merged = match &archived {
            None => stored,
            Some(archived) if archived.id != stored.id => {
                let detail = "the archive has another key of the audit log than the store";
                return Err(Failed::Record(detail.to_owned()));
            }
            Some(archived) => {
                let wraps = joined(core, &archived.wraps, &stored.wraps, Wraps::Join);
                object::merge_audit_key(archived, &stored, wraps)
            }
        };
        if archived.as_ref() == Some(&merged) {
            return Ok(());
        }
        let condition = found.map_or(Condition::Absent, |it| Condition::Unchanged(it.version));
        let bytes = object::encode_audit_key(&merged)?;
        let put = one.archive.put(object::AUDIT_KEY, bytes, condition);
        if call(core, one, put).await? != Written::Conflict {
            return Ok(());
        }
    }
    Err(busy(object::AUDIT_KEY))
}
