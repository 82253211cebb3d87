//! Every rule is needed: without it, the search finds a history that breaks a promise, and shows
//! it.

use super::properties::*;
use super::search::{REPLICAS, RESTORES, search_shortest};
use super::*;

/// The history that breaks `promise` without a rule.
#[track_caller]
fn breaks(protocol: Protocol, promise: &str) {
    let protocol = Protocol { is_symmetric: false, ..protocol };
    let name = match protocol.fault {
        Some(fault) => format!("{fault:?}"),
        None if protocol.repeats => "repeated revisions".to_owned(),
        None => "without detection".to_owned(),
    };
    let found = search_shortest(&name, protocol);
    let broken: Vec<_> = found.broken.keys().copied().collect();
    assert!(broken.contains(&promise), "{name} breaks {broken:?}");
}

fn without(fault: Fault, protocol: Protocol) -> Protocol {
    Protocol { fault: Some(fault), ..protocol }
}

/// Replicas that neither crash nor lose an answer.
const QUIET: Protocol = Protocol { crashes: 0, losses: 0, ..REPLICAS };

#[test]
fn without_a_compare_two_processes_make_the_next_kek() {
    breaks(without(Fault::ClaimWithoutCompare, QUIET), ONE_MAKER);
}

#[test]
fn without_a_compare_two_processes_store_a_standby() {
    let protocol = Protocol { takeovers: true, ..QUIET };
    breaks(without(Fault::StandbyWithoutCompare, protocol), AGREES);
}

#[test]
fn without_a_compare_two_processes_promote() {
    breaks(without(Fault::PromotionWithoutCompare, QUIET), COUNTER);
}

#[test]
fn without_a_compare_two_processes_reserve_the_same_uses() {
    breaks(without(Fault::ReservationWithoutCompare, QUIET), LIMIT);
}

#[test]
fn without_a_compare_uses_of_a_retired_kek_are_reserved() {
    breaks(without(Fault::ReservationOfRetired, QUIET), COUNTER);
}

#[test]
fn without_a_permit_a_kek_encrypts_that_no_archive_holds() {
    breaks(without(Fault::UseBeforeArchive, QUIET), ARCHIVED);
}

#[test]
fn an_archive_that_has_not_answered_may_not_hold_the_kek() {
    breaks(without(Fault::ArchivedBeforeAnswer, REPLICAS), ARCHIVED);
}

#[test]
fn a_block_whose_answer_was_lost_may_be_of_another_process() {
    breaks(without(Fault::BlockSpentAfterLostAnswer, REPLICAS), KNOWN);
}

#[test]
fn a_block_of_before_a_crash_may_be_spent() {
    breaks(without(Fault::BlockReusedAfterCrash, REPLICAS), LIMIT);
}

#[test]
fn a_promotion_that_is_published_too_early_may_fail() {
    breaks(without(Fault::PublishedBeforeStored, REPLICAS), KNOWN);
}

#[test]
fn without_detection_a_process_takes_the_same_uses_again() {
    breaks(Protocol { detects: false, ..RESTORES }, KNOWN);
}

#[test]
fn without_a_retirement_a_process_takes_the_same_uses_again() {
    breaks(without(Fault::RepairWithoutRetirement, RESTORES), KNOWN);
}

#[test]
fn without_a_repair_a_kek_is_not_in_the_store() {
    let protocol = Protocol { archive: false, ..RESTORES };
    breaks(without(Fault::RepairWithoutRestoring, protocol), REPAIRED);
}

#[test]
fn a_kek_that_the_store_lacked_may_not_encrypt() {
    breaks(without(Fault::RestoredAsStandby, RESTORES), AGREES);
}

#[test]
fn without_store_restored_a_kek_passes_its_limit() {
    breaks(without(Fault::NotRetiredOffline, RESTORES), LIMIT);
}

/// The assumption of `Hub::meets_another_history` of the simulation. The detector sees such a head
/// later, since its primary is retired.
#[test]
fn a_revision_that_repeats_lets_an_old_head_be_written() {
    breaks(Protocol { repeats: true, ..RESTORES }, AGREES);
}
