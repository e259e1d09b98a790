//! One claim per row of the table. Every check looks from both sides.

use super::{O, X, Y, Z, side};
use crate::generation::{
    DiskLevel, Extent, History, Outcome, Protocol, Refusal, Rule, Side, Verdict, compare,
};
use crate::units::{Generation, NodeId};

#[track_caller]
fn expect(me: &Side<'_>, peer: &Side<'_>, rule: Rule, outcome: Outcome) {
    let expected = Verdict { rule, outcome };
    assert_eq!(compare(me, peer), expected);
    assert_eq!(compare(peer, me), expected.mirrored());
}

fn interrupted_target(node_id: u8, current: Generation) -> Side<'static> {
    Side {
        current,
        disk: DiskLevel::Inconsistent,
        sync_target: true,
        ..side(node_id)
    }
}

const BITMAP_SOURCE: Outcome = Outcome::Source(Extent::Bitmap);
const BITMAP_TARGET: Outcome = Outcome::Target(Extent::Bitmap);
const FULL_SOURCE: Outcome = Outcome::Source(Extent::Full);
const FULL_TARGET: Outcome = Outcome::Target(Extent::Full);

#[test]
fn same_node_id_is_refused() {
    expect(
        &side(1),
        &side(1),
        Rule::SameNodeId,
        Outcome::Refuse(Refusal::SameNodeId),
    );
}

#[test]
fn invalidated_side_becomes_full_target_even_if_its_generation_is_newer() {
    let me = Side {
        full_sync_requested: true,
        current: X,
        bitmap: O,
        ..side(0)
    };
    expect(&me, &side(1), Rule::FullSyncRequestedSelf, FULL_TARGET);
}

#[test]
fn two_invalidated_sides_are_refused() {
    let me = Side {
        full_sync_requested: true,
        ..side(0)
    };
    let peer = Side {
        full_sync_requested: true,
        ..side(1)
    };
    expect(
        &me,
        &peer,
        Rule::FullSyncRequestedBoth,
        Outcome::Refuse(Refusal::NoConsistentSource),
    );
}

#[test]
fn invalidated_side_is_never_overwritten_by_a_blank_disk_nor_made_its_source() {
    let me = Side {
        full_sync_requested: true,
        ..side(0)
    };
    let blank = Side {
        current: Generation::JUST_CREATED,
        disk: DiskLevel::Inconsistent,
        ..side(1)
    };
    expect(
        &me,
        &blank,
        Rule::NoConsistentSource,
        Outcome::Refuse(Refusal::NoConsistentSource),
    );
}

#[test]
fn two_new_disks_have_no_source_and_are_not_in_sync() {
    let new = |id| Side {
        current: Generation::JUST_CREATED,
        disk: DiskLevel::Inconsistent,
        ..side(id)
    };
    expect(&new(0), &new(1), Rule::JustCreatedBoth, Outcome::NoSource);
    let empty = Side {
        current: Generation(1),
        ..new(1)
    };
    expect(&new(0), &empty, Rule::JustCreatedBoth, Outcome::NoSource);
}

#[test]
fn new_disk_is_filled_from_the_one_that_has_a_generation() {
    let new = Side {
        current: Generation(5),
        disk: DiskLevel::Inconsistent,
        ..side(0)
    };
    expect(&new, &side(1), Rule::JustCreatedSelf, FULL_TARGET);
    expect(&side(1), &new, Rule::JustCreatedPeer, FULL_SOURCE);
}

#[test]
fn new_disk_and_half_synced_disk_are_refused() {
    let new = Side {
        current: Generation::JUST_CREATED,
        disk: DiskLevel::Inconsistent,
        ..side(0)
    };
    expect(
        &new,
        &interrupted_target(1, O),
        Rule::NoConsistentSource,
        Outcome::Refuse(Refusal::NoConsistentSource),
    );
}

#[test]
fn primary_bit_does_not_tell_generations_apart() {
    let me = Side {
        current: Generation(O.0 | 1),
        ..side(0)
    };
    expect(&me, &side(1), Rule::Equal, Outcome::InSync);
    let newer = Side {
        current: X,
        bitmap: Generation(O.0 | 1),
        ..side(1)
    };
    expect(&side(0), &newer, Rule::BitmapPeer, BITMAP_TARGET);
}

#[test]
fn interrupted_resync_goes_on_by_bitmap() {
    let source = Side { bits: 7, ..side(0) };
    let target = Side {
        bits: 7,
        ..interrupted_target(1, O)
    };
    expect(&source, &target, Rule::ResyncInterruptedPeer, BITMAP_SOURCE);
    // The source did not learn that the resync began: its slot is still filled.
    expect(
        &Side {
            bitmap: X,
            ..source
        },
        &target,
        Rule::ResyncInterruptedPeer,
        BITMAP_SOURCE,
    );
    // The target is Primary and crashed: it is no source for all that.
    let primary = Side {
        role_primary: true,
        crashed_primary: true,
        ..target
    };
    expect(
        &source,
        &primary,
        Rule::ResyncInterruptedPeer,
        BITMAP_SOURCE,
    );
}

#[test]
fn resync_that_only_lacks_its_end_is_a_resync_and_not_in_sync() {
    expect(
        &side(0),
        &interrupted_target(1, O),
        Rule::ResyncInterruptedPeer,
        BITMAP_SOURCE,
    );
}

#[test]
fn inconsistent_disk_without_a_resync_needs_a_full_sync() {
    let damaged = Side {
        disk: DiskLevel::Inconsistent,
        bits: 1,
        ..side(1)
    };
    expect(&side(0), &damaged, Rule::InconsistentPeer, FULL_SOURCE);
    let newer = Side {
        current: X,
        bitmap: O,
        ..side(0)
    };
    expect(&newer, &damaged, Rule::InconsistentPeer, FULL_SOURCE);
}

#[test]
fn two_inconsistent_disks_of_one_generation_have_no_source_and_keep_their_bits() {
    let me = Side {
        bits: 3,
        ..interrupted_target(0, O)
    };
    expect(
        &me,
        &interrupted_target(1, O),
        Rule::InconsistentBoth,
        Outcome::NoSource,
    );
}

#[test]
fn equal_generations_without_bits_are_in_sync() {
    expect(&side(0), &side(1), Rule::Equal, Outcome::InSync);
    let up = |id| Side {
        still_running_since_contact: true,
        ..side(id)
    };
    expect(&up(0), &up(1), Rule::Reconnected, Outcome::InSync);
    expect(&up(0), &side(1), Rule::Equal, Outcome::InSync);
    // Being Primary or Outdated changes nothing as long as no block is marked.
    let outdated = Side {
        disk: DiskLevel::Outdated,
        ..side(1)
    };
    expect(
        &Side {
            role_primary: true,
            ..side(0)
        },
        &outdated,
        Rule::Equal,
        Outcome::InSync,
    );
}

#[test]
fn crash_without_a_marked_block_is_in_sync() {
    let me = Side {
        crashed_primary: true,
        ..side(0)
    };
    expect(&me, &side(1), Rule::CrashedNothingMarked, Outcome::InSync);
}

#[test]
fn equal_generations_never_drop_a_bit() {
    for (mine, theirs) in [(1, 0), (0, 1), (1, 1)] {
        let me = Side {
            bits: mine,
            still_running_since_contact: true,
            ..side(0)
        };
        let peer = Side {
            bits: theirs,
            still_running_since_contact: true,
            ..side(1)
        };
        assert!(matches!(
            compare(&me, &peer).outcome,
            Outcome::Source(Extent::Bitmap) | Outcome::Target(Extent::Bitmap)
        ));
    }
}

#[test]
fn leftover_bits_are_resolved_towards_the_primary() {
    let me = Side {
        role_primary: true,
        ..side(1)
    };
    let peer = Side { bits: 4, ..side(0) };
    expect(&me, &peer, Rule::PrimarySelf, BITMAP_SOURCE);
}

#[test]
fn primary_on_an_outdated_disk_is_no_source() {
    let me = Side {
        role_primary: true,
        disk: DiskLevel::Outdated,
        ..side(0)
    };
    let peer = Side { bits: 4, ..side(1) };
    expect(&me, &peer, Rule::LeftoverBitsPeer, BITMAP_TARGET);
}

#[test]
fn two_primaries_with_marked_blocks_are_refused() {
    let primary = |id, bits| Side {
        role_primary: true,
        bits,
        ..side(id)
    };
    expect(
        &primary(0, 1),
        &primary(1, 0),
        Rule::TwoPrimaries,
        Outcome::Refuse(Refusal::TwoPrimaries),
    );
    let crashed = Side {
        crashed_primary: true,
        ..primary(1, 1)
    };
    expect(
        &primary(0, 1),
        &crashed,
        Rule::TwoPrimaries,
        Outcome::Refuse(Refusal::TwoPrimaries),
    );
    expect(&primary(0, 0), &primary(1, 0), Rule::Equal, Outcome::InSync);
}

#[test]
fn without_a_primary_the_side_that_holds_bits_is_source() {
    expect(
        &Side { bits: 1, ..side(1) },
        &side(0),
        Rule::LeftoverBitsSelf,
        BITMAP_SOURCE,
    );
}

#[test]
fn bits_on_both_sides_prefer_the_disk_that_is_not_outdated_then_the_lower_node_id() {
    let me = Side { bits: 1, ..side(0) };
    let peer = Side { bits: 9, ..side(1) };
    expect(&me, &peer, Rule::LeftoverBitsBoth, BITMAP_SOURCE);
    expect(
        &Side {
            disk: DiskLevel::Outdated,
            ..me
        },
        &peer,
        Rule::BetterDiskPeer,
        BITMAP_TARGET,
    );
}

#[test]
fn protocol_c_survivor_of_a_primary_crash_is_source() {
    let crashed = Side {
        crashed_primary: true,
        bits: 5,
        ..side(0)
    };
    let survivor = Side {
        still_running_since_contact: true,
        ..side(1)
    };
    expect(&survivor, &crashed, Rule::SurvivorSelf, BITMAP_SOURCE);
}

#[test]
fn protocols_a_and_b_prefer_the_crashed_primary_to_the_survivor() {
    for protocol in [Protocol::A, Protocol::B] {
        let crashed = Side {
            crashed_primary: true,
            bits: 5,
            protocol,
            ..side(1)
        };
        let survivor = Side {
            still_running_since_contact: true,
            protocol,
            ..side(0)
        };
        expect(&crashed, &survivor, Rule::CrashedPrimarySelf, BITMAP_SOURCE);
        // A misconfigured pair has no guarantee of C.
        expect(
            &crashed,
            &Side {
                protocol: Protocol::C,
                ..survivor
            },
            Rule::CrashedPrimarySelf,
            BITMAP_SOURCE,
        );
    }
}

#[test]
fn after_both_were_off_the_crashed_primary_is_source() {
    let crashed = Side {
        crashed_primary: true,
        bits: 5,
        ..side(1)
    };
    expect(&crashed, &side(0), Rule::CrashedPrimarySelf, BITMAP_SOURCE);
}

#[test]
fn current_primary_is_source_whoever_crashed() {
    let crashed = Side {
        crashed_primary: true,
        bits: 5,
        ..side(0)
    };
    let promoted = Side {
        role_primary: true,
        ..side(1)
    };
    expect(&promoted, &crashed, Rule::PrimarySelf, BITMAP_SOURCE);
    // A daemon that came back under its mounted client: the client goes on with what this disk says.
    let back = Side {
        role_primary: true,
        ..crashed
    };
    let survivor = Side {
        still_running_since_contact: true,
        ..side(1)
    };
    expect(&back, &survivor, Rule::PrimarySelf, BITMAP_SOURCE);
}

#[test]
fn two_crashed_primaries_are_decided_by_node_id_unless_one_is_primary_now() {
    let crashed = |id| Side {
        crashed_primary: true,
        bits: 5,
        ..side(id)
    };
    expect(&crashed(0), &crashed(1), Rule::CrashedBoth, BITMAP_SOURCE);
    let primary = Side {
        role_primary: true,
        ..crashed(1)
    };
    expect(&crashed(0), &primary, Rule::PrimaryPeer, BITMAP_TARGET);
}

#[test]
fn side_that_still_tracks_an_older_generation_is_source_of_its_bits() {
    let me = Side {
        bitmap: X,
        bits: 2,
        ..side(1)
    };
    expect(&me, &side(0), Rule::SyncSourceMissedFinish, BITMAP_SOURCE);
    expect(
        &Side { bits: 0, ..me },
        &side(0),
        Rule::Equal,
        Outcome::InSync,
    );
}

#[test]
fn equal_generations_with_changes_on_both_sides_since_an_older_one_are_a_split_brain() {
    let me = Side {
        bitmap: X,
        bits: 2,
        ..side(0)
    };
    let peer = Side { bits: 2, ..side(1) };
    expect(
        &me,
        &peer,
        Rule::EqualDiverged,
        Outcome::SplitBrain(History::Bitmap),
    );
}

#[test]
fn peer_that_went_on_alone_is_source_by_bitmap() {
    let peer = Side {
        current: X,
        bitmap: O,
        bits: 3,
        ..side(1)
    };
    expect(&side(0), &peer, Rule::BitmapPeer, BITMAP_TARGET);
    // The old Primary crashed and comes back.
    let crashed = Side {
        crashed_primary: true,
        bits: 2,
        ..side(0)
    };
    expect(&crashed, &peer, Rule::BitmapPeer, BITMAP_TARGET);
    // A Primary that would be target stays target: rr-conflict decides.
    expect(
        &Side {
            role_primary: true,
            ..side(0)
        },
        &peer,
        Rule::BitmapPeer,
        BITMAP_TARGET,
    );
}

#[test]
fn would_be_target_that_tracks_its_own_changes_is_a_split_brain() {
    let me = Side {
        bitmap: Y,
        bits: 3,
        ..side(0)
    };
    let peer = Side {
        current: X,
        bitmap: O,
        ..side(1)
    };
    expect(
        &me,
        &peer,
        Rule::BitmapPeerDiverged,
        Outcome::SplitBrain(History::Bitmap),
    );
    let far = Side {
        current: X,
        history: &[O],
        ..side(1)
    };
    expect(
        &me,
        &far,
        Rule::HistoryPeerDiverged,
        Outcome::SplitBrain(History::Ancestor),
    );
}

#[test]
fn each_having_left_the_other_behind_is_a_split_brain() {
    let me = Side {
        current: O,
        bitmap: X,
        ..side(0)
    };
    let peer = Side {
        current: X,
        bitmap: O,
        ..side(1)
    };
    expect(
        &me,
        &peer,
        Rule::BitmapCrossed,
        Outcome::SplitBrain(History::Bitmap),
    );
    let me = Side {
        current: O,
        history: &[X],
        ..side(0)
    };
    let peer = Side {
        current: X,
        history: &[O],
        ..side(1)
    };
    expect(
        &me,
        &peer,
        Rule::HistoryCrossed,
        Outcome::SplitBrain(History::Ancestor),
    );
}

#[test]
fn source_that_missed_the_start_and_went_on_still_syncs_by_bitmap() {
    let source = Side {
        current: Y,
        bitmap: O,
        history: &[X],
        bits: 9,
        ..side(0)
    };
    let target = Side {
        history: &[O],
        ..interrupted_target(1, X)
    };
    expect(&source, &target, Rule::SyncSourceMissedStart, BITMAP_SOURCE);
    // Without the proof that the bits reach back far enough it is a full sync.
    let target = Side {
        history: &[Z, O],
        ..target
    };
    expect(&source, &target, Rule::HistorySelf, FULL_SOURCE);
}

#[test]
fn older_generation_of_the_peer_is_target_of_a_full_sync() {
    let peer = Side {
        current: X,
        history: &[Y, O],
        ..side(1)
    };
    expect(&side(0), &peer, Rule::HistoryPeer, FULL_TARGET);
}

#[test]
fn both_written_alone_since_the_same_generation_is_a_split_brain() {
    let me = Side {
        current: X,
        bitmap: O,
        bits: 1,
        ..side(0)
    };
    let peer = Side {
        current: Y,
        bitmap: O,
        bits: 1,
        ..side(1)
    };
    expect(
        &me,
        &peer,
        Rule::BitmapBoth,
        Outcome::SplitBrain(History::Bitmap),
    );
}

#[test]
fn generation_begun_for_a_lost_disk_and_given_up_is_the_older_one() {
    let me = Side {
        current: X,
        bitmap: O,
        history: &[Y],
        bits: 1,
        ..side(0)
    };
    let peer = Side {
        current: Y,
        bitmap: O,
        bits: 1,
        ..side(1)
    };
    expect(&me, &peer, Rule::GivenUpSelf, BITMAP_SOURCE);
    // Nothing was written since.
    let unwritten = Side {
        current: O,
        bitmap: Generation::NONE,
        ..me
    };
    expect(&unwritten, &peer, Rule::GivenUpSelf, BITMAP_SOURCE);
    // It crashed: the survivor has what its cache lost, unless it did not wait for that one.
    let crashed = Side {
        crashed_primary: true,
        ..unwritten
    };
    let survivor = Side {
        still_running_since_contact: true,
        ..peer
    };
    expect(&crashed, &survivor, Rule::BitmapPeer, BITMAP_TARGET);
    expect(&crashed, &peer, Rule::GivenUpSelf, BITMAP_SOURCE);
    let back = Side {
        role_primary: true,
        ..crashed
    };
    expect(&back, &survivor, Rule::GivenUpSelf, BITMAP_SOURCE);
    let loose = |side| Side {
        protocol: Protocol::A,
        ..side
    };
    expect(
        &loose(crashed),
        &loose(survivor),
        Rule::GivenUpSelf,
        BITMAP_SOURCE,
    );
    // A Primary began it: that one's writes were completed.
    let completed = Side {
        current: Generation(Y.0 | Generation::PRIMARY_BIT),
        ..peer
    };
    expect(
        &me,
        &completed,
        Rule::HistorySelfDiverged,
        Outcome::SplitBrain(History::Ancestor),
    );
    // It went on by itself since: a split brain.
    let went_on = Side {
        current: Z,
        history: &[Y],
        ..peer
    };
    expect(
        &me,
        &went_on,
        Rule::BitmapBoth,
        Outcome::SplitBrain(History::Bitmap),
    );
    // Its bits reach back to something else.
    let other = Side { bitmap: Z, ..peer };
    expect(
        &me,
        &other,
        Rule::HistorySelfDiverged,
        Outcome::SplitBrain(History::Ancestor),
    );
}

#[test]
fn common_ancestor_further_back_is_a_split_brain() {
    let me = Side {
        current: X,
        bitmap: O,
        ..side(0)
    };
    let peer = Side {
        current: Y,
        bitmap: Z,
        history: &[O],
        ..side(1)
    };
    expect(
        &me,
        &peer,
        Rule::HistoryBoth,
        Outcome::SplitBrain(History::Ancestor),
    );
}

#[test]
fn empty_and_just_created_values_are_no_common_ancestor() {
    const FRESH: &[Generation] = &[Generation::JUST_CREATED, Generation::NONE, Generation(1)];
    let me = Side {
        current: X,
        bitmap: Generation::JUST_CREATED,
        history: FRESH,
        ..side(0)
    };
    let peer = Side {
        current: Y,
        bitmap: Generation(5),
        history: FRESH,
        ..side(1)
    };
    expect(&me, &peer, Rule::Unrelated, Outcome::Unrelated);
}

#[test]
fn foreign_disk_is_refused_whatever_its_state() {
    let me = Side {
        current: X,
        history: &[Y],
        ..side(0)
    };
    for disk in [
        DiskLevel::Inconsistent,
        DiskLevel::Outdated,
        DiskLevel::UpToDate,
    ] {
        for sync_target in [false, true] {
            let peer = Side {
                disk,
                sync_target,
                bits: 8,
                ..side(1)
            };
            expect(&me, &peer, Rule::Unrelated, Outcome::Unrelated);
        }
    }
}

#[test]
fn newer_generation_on_a_half_synced_disk_yields_to_the_consistent_one() {
    let me = interrupted_target(0, X);
    let me = Side {
        history: &[O],
        ..me
    };
    expect(&me, &side(1), Rule::OnlyConsistentPeer, FULL_TARGET);
    let peer = Side {
        current: Y,
        bitmap: O,
        ..side(1)
    };
    expect(&me, &peer, Rule::OnlyConsistentPeer, FULL_TARGET);
}

#[test]
fn newer_generation_on_a_damaged_disk_is_not_discarded_without_being_asked() {
    let me = Side {
        current: X,
        bitmap: O,
        disk: DiskLevel::Inconsistent,
        ..side(0)
    };
    expect(
        &me,
        &side(1),
        Rule::DamagedSourceSelf,
        Outcome::Refuse(Refusal::DamagedSource),
    );
    let peer = Side {
        current: Y,
        bitmap: O,
        ..side(1)
    };
    expect(
        &me,
        &peer,
        Rule::BitmapBoth,
        Outcome::SplitBrain(History::Bitmap),
    );
}

#[test]
fn two_inconsistent_disks_of_different_generations_are_refused() {
    let me = Side {
        bitmap: Generation::NONE,
        ..interrupted_target(0, O)
    };
    let peer = Side {
        bitmap: O,
        ..interrupted_target(1, X)
    };
    expect(
        &me,
        &peer,
        Rule::NoConsistentSource,
        Outcome::Refuse(Refusal::NoConsistentSource),
    );
}

#[test]
fn rule_names_are_unique_kebab_case_and_mirroring_twice_is_identity() {
    let mut names = alloc::collections::BTreeSet::new();
    for rule in Rule::ALL {
        assert!(names.insert(rule.name()), "{rule} twice");
        assert!(
            rule.name()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        );
        assert_eq!(rule.mirrored().mirrored(), *rule);
        let sided = rule.mirrored() != *rule;
        let named = rule.name().contains("-self")
            || rule.name().contains("-peer")
            || rule.name().starts_with("sync-source");
        assert_eq!(sided, named, "{rule}");
    }
}

#[test]
fn node_id_order_alone_breaks_ties() {
    let me = Side {
        bits: 1,
        node_id: NodeId(9),
        ..side(0)
    };
    let peer = Side {
        bits: 1,
        node_id: NodeId(3),
        ..side(0)
    };
    expect(&me, &peer, Rule::LeftoverBitsBoth, BITMAP_TARGET);
}
