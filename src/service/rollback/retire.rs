//! The transaction that retires the KEKs which a chain encrypts with. Pure: the ledger and the
//! offline repair commit it.

use crate::id::ChainName;
use crate::store::record::{self, Head, Kek, Record, State};
use crate::store::records::{Held, Versioned};
use crate::store::{Error, Txn};

/// The transaction that retires the primary and the standby, and the head that it leaves. Compares:
/// the head and both KEKs unchanged.
///
/// # Errors
/// Those of [`Record::encode`].
pub(in crate::service) fn retire(
    chain: &ChainName,
    head: &Versioned<Head>,
    held: &[&Held],
) -> Result<(Txn, Head), Error> {
    let next = Head {
        primary: None,
        standby: None,
        generation: head.record.generation + 1,
        ..head.record.clone()
    };
    let mut txn = Txn::default()
        .replace(record::head_key(chain), head.revision, next.encode()?)
        .delete(record::claim_key(chain));
    for held in held {
        let key = record::kek_key(chain, held.id);
        // One that was disabled or destroyed since stays so.
        txn = if matches!(held.kek.record.state, State::Standby | State::Primary) {
            let retired = Kek { state: State::Retired, ..held.kek.record.clone() };
            txn.replace(key, held.kek.revision, retired.encode()?)
        } else {
            txn.unchanged(key, held.kek.revision)
        };
    }
    Ok((txn, next))
}
