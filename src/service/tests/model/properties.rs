//! What must hold in every state, and what must happen somewhere so that the model is not empty.

use stateright::Property;

use super::replica::bit;
use super::{MAX_USES, Protocol, State, Wrong};
use crate::store::record::State as KekState;

pub(super) const LIMIT: &str = "no KEK makes more than max_uses envelopes";
pub(super) const KNOWN: &str = "no process takes uses that it has seen to be reserved";
pub(super) const READABLE: &str = "a KEK that encrypted is in the store or in the archive";
pub(super) const ARCHIVED: &str = "a KEK is archived before its first use";
pub(super) const AGREES: &str = "the head and the records of the KEKs agree";
pub(super) const COUNTER: &str = "a counter only grows, for the primary alone, up to max_uses";
pub(super) const ONE_MAKER: &str = "without faults one process makes the next KEK";
pub(super) const CALM: &str = "no process sees a rollback that did not happen";
pub(super) const REPAIRED: &str = "a repair restores all that its process holds";

pub(super) fn all(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let mut properties = vec![
        Property::always(LIMIT, |_, state: &State| {
            state.envelopes.iter().flatten().all(|&made| made <= MAX_USES)
        }),
        Property::always(KNOWN, |_, state: &State| state.wrong != Some(Wrong::KnownUses)),
        Property::always(READABLE, is_readable),
        Property::always(ARCHIVED, is_archived),
        Property::always(AGREES, |_, state: &State| state.store.agrees()),
        Property::always(COUNTER, |_, state: &State| {
            let wrong = [Wrong::CounterFell, Wrong::CounterPastLimit, Wrong::UsesOfRetired];
            state.wrong.is_none_or(|found| !wrong.contains(&found))
        }),
        Property::always(ONE_MAKER, |_, state: &State| state.wrong != Some(Wrong::Wasted)),
        Property::always(CALM, |_, state: &State| {
            let ledgers = state.replicas.iter().filter_map(|it| it.ledger.as_ref());
            state.restores > 0 || !ledgers.into_iter().any(|it| it.detector.is_restored())
        }),
        Property::always(REPAIRED, |_, state: &State| state.wrong != Some(Wrong::NotRestored)),
        Property::sometimes("all uses of a KEK are spent", |_, state: &State| {
            state.envelopes.iter().flatten().any(|&made| made == MAX_USES)
        }),
        Property::sometimes("a rotation", |_, state: &State| {
            let retired = |id| state.store.state(id) == Some(KekState::Retired);
            state.restores == 0
                && (0..state.made).any(|id| retired(id) && state.envelopes(id) > 0)
                && state.primary().is_some_and(|id| state.envelopes(id) > 0)
        }),
    ];
    if protocol.losses > 0 {
        properties.extend([
            Property::sometimes("an answer is lost, and its block", |_, state: &State| {
                // Nothing else reserves uses that nobody has.
                let primary = state.primary();
                state.losses > 0
                    && state.crashes + state.restores == 0
                    && primary.is_some_and(|id| {
                        state.store.reserved(id) == MAX_USES
                            && state.envelopes(id) < MAX_USES
                            && state.replicas.iter().all(|it| it.budget.left == 0)
                    })
            }),
            Property::sometimes("a request is late", |protocol: &Protocol, state: &State| {
                state.late.is_some() || !protocol.late
            }),
        ]);
    }
    if protocol.crashes > 0 && protocol.archive {
        properties.push(Property::sometimes(
            "a crash between archive and promotion",
            |_, state: &State| {
                let standby = state.store.head.and_then(|(head, _)| head.standby);
                state.losses + state.restores == 0
                    && standby.is_some_and(|id| {
                        let knows = |archived: u8| archived & bit(id) != 0;
                        knows(state.archive) && !state.replicas.iter().any(|it| knows(it.archived))
                    })
            },
        ));
    }
    if protocol.restores > 0 {
        properties.extend(restores());
    }
    properties
}

fn restores() -> [Property<Protocol>; 5] {
    [
        Property::sometimes("an old copy is restored while uses exist", |_, state: &State| {
            state.segment > 0
                && (0..state.made).any(|id| {
                    state.store.has(id)
                        && state.envelopes[usize::from(id)][0] > state.store.reserved(id)
                })
        }),
        Property::sometimes("a process encrypts after a restore", |_, state: &State| {
            state.envelopes.iter().any(|made| made[1] > 0)
        }),
        Property::sometimes("a process encrypts after an offline restore", |_, state: &State| {
            state.store.history > 0
                && state.segment == 0
                && state.primary().is_some_and(|id| state.envelopes(id) > 0)
        }),
        Property::sometimes("one process repairs, and another follows", |_, state: &State| {
            let repaired = state.store.head.filter(|(head, _)| head.repair.is_some());
            let knew = |it: &&super::replica::Replica| {
                it.ledger.as_ref().is_some_and(|ledger| {
                    Some(ledger.head) == repaired
                        && !ledger.detector.is_restored()
                        && it.seen.iter().any(|&seen| seen > 0)
                })
            };
            repaired.is_some() && state.replicas.iter().filter(knew).count() > 1
        }),
        Property::sometimes("a KEK that the store lacked is restored", |_, state: &State| {
            // Written since the restore, and never promoted since.
            let is_restored = |id: u8| {
                let kek = state.store.keks[usize::from(id)];
                kek.is_some_and(|(is, revision)| is == KekState::Retired && revision.history > 0)
                    && state.store.uses[usize::from(id)]
                        .is_some_and(|(uses, revision)| revision.history > 0 && uses == MAX_USES)
            };
            (0..state.made).any(|id| is_restored(id) && state.envelopes(id) > 0)
        }),
    ]
}

/// With an archive nothing is lost. Without one, a KEK that was made after the copy is kept by the
/// processes that hold it.
fn is_readable(protocol: &Protocol, state: &State) -> bool {
    (0..state.made).filter(|&id| state.envelopes(id) > 0).all(|id| {
        let is_kept = match protocol.archive {
            true => state.archive & bit(id) != 0,
            false => state.is_held(id) || state.lost & bit(id) != 0,
        };
        state.store.has(id) || is_kept
    })
}

fn is_archived(protocol: &Protocol, state: &State) -> bool {
    let is_archived = |id| state.archive & bit(id) != 0;
    let is_used = |id| state.envelopes(id) > 0 || state.store.state(id) == Some(KekState::Primary);
    !protocol.archive || (0..state.made).all(|id| !is_used(id) || is_archived(id))
}
