//! Rotation of one node's identifiers.

use alloc::vec;
use alloc::vec::Vec;

use super::{O, X, Y, Z, side};
use crate::generation::{DiskLevel, Extent, History, Identifiers, Outcome, Rule, Side, compare};
use crate::limits::HISTORY_LENGTH;
use crate::units::{Generation, NodeId};

const ME: NodeId = NodeId(0);
const PEER: NodeId = NodeId(1);
const THIRD: NodeId = NodeId(2);

fn at(current: Generation) -> Identifiers {
    Identifiers::from_parts(current, [], [])
}

fn seen<'a>(identifiers: &'a Identifiers, me: NodeId, peer: NodeId) -> Side<'a> {
    Side {
        node_id: me,
        current: identifiers.current(),
        bitmap: identifiers.slot(peer),
        history: identifiers.history(),
        ..side(0)
    }
}

#[test]
fn new_current_leaves_the_old_one_in_empty_slots_of_absent_peers_only() {
    let mut ids = Identifiers::from_parts(O, [(THIRD, Z)], [Y]);
    ids.new_current(0x9001, false, &[PEER, THIRD]);
    assert_eq!(ids.current(), Generation(0x9000));
    assert_eq!((ids.slot(PEER), ids.slot(THIRD)), (O, Z));
    assert_eq!(ids.history(), [Y]);
}

#[test]
fn new_current_that_no_slot_takes_goes_to_the_history_once() {
    let mut ids = Identifiers::from_parts(X, [(PEER, O)], [Y]);
    ids.new_current(0x9000, true, &[PEER]);
    assert_eq!(ids.current(), Generation(0x9001));
    assert_eq!(ids.slot(PEER), O);
    assert_eq!(ids.history(), [X, Y]);
    ids.slot_cleared(PEER);
    ids.slot_cleared(PEER);
    assert_eq!(ids.history(), [O, X, Y]);
    assert!(ids.slot(PEER).is_none());
}

#[test]
fn just_created_value_never_becomes_an_ancestor() {
    let mut ids = Identifiers::just_created();
    assert!(ids.needs_new_current(&[]));
    ids.new_current(0x9000, true, &[PEER]);
    assert!(ids.slot(PEER).is_none() && ids.history().is_empty());
    let mut target = Identifiers::just_created();
    target.adopt(&ids, ME);
    assert!(target.history().is_empty());
}

#[test]
fn random_value_that_is_reserved_or_known_is_replaced() {
    for random in [0, 1, 4, 5, O.0, O.0 | 1, X.0, Y.0] {
        let mut ids = Identifiers::from_parts(O, [(THIRD, X)], [Y]);
        ids.new_current(random, false, &[PEER]);
        let known = [Generation::NONE, Generation::JUST_CREATED, O, X, Y];
        assert!(
            known.iter().all(|value| !value.same(ids.current())),
            "{random:x}"
        );
    }
}

#[test]
fn writing_without_a_peer_needs_a_new_generation_exactly_if_its_slot_is_empty() {
    let mut ids = at(O);
    assert!(!ids.needs_new_current(&[]));
    assert!(ids.needs_new_current(&[PEER]));
    ids.new_current(0x9000, true, &[PEER]);
    assert!(!ids.needs_new_current(&[PEER]));
    assert!(ids.needs_new_current(&[PEER, THIRD]));
}

#[test]
fn adopting_remembers_own_past_first_then_the_sources() {
    let source = Identifiers::from_parts(X, [(PEER, O), (THIRD, Generation(0x6000))], [Y]);
    let mut target = Identifiers::from_parts(O, [(THIRD, Z)], [Generation(0x7000)]);
    target.adopt(&source, ME);
    assert_eq!(target.current(), X);
    assert_eq!(target.slots().count(), 0);
    let expected = [O, Generation(0x7000), Z, Y, Generation(0x6000)];
    assert_eq!(target.history(), expected);
}

#[test]
fn adopting_again_keeps_the_value_that_the_sources_slot_names() {
    let source = Identifiers::from_parts(X, [(PEER, O)], [Y]);
    let mut target = at(O);
    target.adopt(&source, ME);
    target.adopt(&source, ME);
    assert_eq!(target.history().first(), Some(&O));
}

#[test]
fn split_brain_victim_remembers_its_slot_for_the_source_first() {
    let source = Identifiers::from_parts(X, [(PEER, O)], []);
    let mut victim = Identifiers::from_parts(Y, [(ME, O)], []);
    victim.adopt(&source, ME);
    assert_eq!(victim.history(), [O, Y]);
}

#[test]
fn follow_current_of_a_connected_peer_moves_the_old_one_to_the_history() {
    let mut ids = at(O);
    ids.follow_current(X);
    ids.follow_current(Generation(X.0 | 1));
    assert_eq!(ids.current(), X);
    assert_eq!(ids.history(), [O]);
}

#[test]
fn history_is_bounded_and_forgets_the_oldest() {
    let mut ids = at(O);
    for step in 0..100u64 {
        ids.new_current(0x10_0000 + step * 2, false, &[]);
    }
    assert_eq!(ids.history().len(), HISTORY_LENGTH);
    assert_eq!(ids.history()[0], Generation(0x10_0000 + 98 * 2));
    let source = Identifiers::from_parts(X, [], (1..60).map(|n| Generation(0x20_0000 + n * 2)));
    ids.adopt(&source, PEER);
    assert_eq!(ids.history().len(), HISTORY_LENGTH);
}

#[test]
fn identifiers_from_metadata_drop_what_means_nothing() {
    let history = vec![
        Generation(5),
        X,
        Generation(X.0 | 1),
        O,
        Generation::NONE,
        Y,
    ];
    let ids = Identifiers::from_parts(
        O,
        [(PEER, Generation(1)), (THIRD, Generation::JUST_CREATED)],
        history,
    );
    assert_eq!(ids.slots().count(), 0);
    assert_eq!(ids.history(), [X, Y]);
}

/// The danger of adopting early: a half-synced disk that is declared good must not look like the successor of the source.
#[test]
fn forced_half_synced_disk_meets_its_source_as_a_split_brain() {
    for source_learned_the_start in [false, true] {
        for source_went_on in [false, true] {
            let mut source = at(O);
            source.new_current(0x9000, true, &[PEER]);
            let mut target = at(O);
            target.adopt(&source, ME);
            if source_learned_the_start {
                source.slot_cleared(PEER);
            }
            if source_went_on {
                source.new_current(0xA000, true, &[PEER]);
            }
            target.force_current(0xB000, &[ME]);
            let history = if source_learned_the_start {
                History::Ancestor
            } else {
                History::Bitmap
            };
            let verdict = compare(&seen(&source, ME, PEER), &seen(&target, PEER, ME));
            assert_eq!(verdict.outcome, Outcome::SplitBrain(history), "{verdict}");
        }
    }
}

/// In the very first sync there is no older generation to stand for the half-synced disk: refused, nothing is overwritten.
#[test]
fn disk_forced_during_its_first_sync_is_refused_as_unrelated() {
    let mut source = Identifiers::just_created();
    source.new_current(0x9000, true, &[PEER]);
    let mut target = Identifiers::just_created();
    target.adopt(&source, ME);
    target.force_current(0xB000, &[ME]);
    assert_eq!(
        compare(&seen(&source, ME, PEER), &seen(&target, PEER, ME)).outcome,
        Outcome::Unrelated
    );
}

#[test]
fn resync_that_was_interrupted_after_the_source_went_on_continues_by_bitmap() {
    let mut source = at(O);
    source.new_current(0x9000, true, &[PEER]);
    let mut target = at(O);
    target.adopt(&source, ME);
    source.new_current(0xA000, true, &[PEER]);
    let half = Side {
        disk: DiskLevel::Inconsistent,
        sync_target: true,
        ..seen(&target, PEER, ME)
    };
    let verdict = compare(&seen(&source, ME, PEER), &half);
    assert_eq!(verdict.rule, Rule::SyncSourceMissedStart);
    assert_eq!(verdict.outcome, Outcome::Source(Extent::Bitmap));
}

#[test]
fn third_node_is_filled_completely_after_a_resync_from_elsewhere() {
    let mut third = at(O);
    let mut target = at(O);
    target.new_current(0x9000, true, &[ME, THIRD]);
    let mut source = at(O);
    source.new_current(0xA000, true, &[PEER, THIRD]);
    target.adopt(&source, ME);
    let verdict = compare(&seen(&third, THIRD, PEER), &seen(&target, PEER, THIRD));
    assert_eq!(verdict.outcome, Outcome::Target(Extent::Full));
    third.adopt(&target, PEER);
    assert_eq!(third.current(), target.current());
    let remembered: Vec<_> = third.history().to_vec();
    assert!(remembered.contains(&O));
}
