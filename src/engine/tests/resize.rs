//! A volume grows while it is in use: what is refused, what is copied, and what a crash in the middle leaves.

mod harness;

use harness::*;
use qrbd_engine::Command;
use qrbd_engine::metadata::layout::{Layout, Placement};
use qrbd_engine::state::{DiskState, Refusal};
use qrbd_engine::wire::{Message, ResizeStage};

const GROWN: u64 = 80 << 20;
const LARGER: u64 = 96 << 20;

fn data_bytes(device_bytes: u64) -> u64 {
    Layout::new(Placement::Internal, device_bytes, 1)
        .unwrap()
        .data_bytes
}

fn resize() -> Command {
    Command::Resize {
        volume: VOLUME,
        bytes: None,
        assume_clean: false,
    }
}

fn clean() -> Command {
    Command::Resize {
        volume: VOLUME,
        bytes: None,
        assume_clean: true,
    }
}

/// Both disks have grown, with different bytes in what was added.
fn grown() -> Pair {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 4096, 1);
    // Durable on both nodes: nothing but what is added is left to be copied.
    pair.pass_time();
    pair.grow(0, GROWN, 0xA0);
    pair.grow(1, GROWN, 0xA1);
    pair
}

#[test]
fn a_volume_grows_and_what_is_added_is_copied_from_the_primary() {
    let mut pair = grown();
    let (before, old) = (pair.resync_bytes, pair.size(0));
    assert_eq!(pair.command(0, resize()), Ok(()));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.size(0), data_bytes(GROWN));
    assert_eq!(pair.resync_bytes - before, data_bytes(GROWN) - old);
    assert_eq!(pair.read(0, 78 << 20), 0xA0);
    pair.write(0, 78 << 20, 7);
    assert_eq!(pair.nodes[1].byte(78 << 20), 7);
    // The metadata are found again, at the new end and nowhere else.
    for node in 0..2 {
        pair.restart(node, &plain);
        pair.nodes[node].known = None;
        pair.up(node);
        pair.assert_equal_and_in_sync();
    }
    let old_place = (64 << 20) - 4096;
    assert_ne!(&pair.nodes[1].disk.borrow()[old_place..][..8], b"QRBDMETA");
}

#[test]
fn assume_clean_copies_nothing() {
    let mut pair = grown();
    pair.grow(0, GROWN, 0);
    let before = pair.resync_bytes;
    assert_eq!(pair.command(0, clean()), Ok(()));
    assert_eq!(
        (pair.size(0), pair.size(1)),
        (data_bytes(GROWN), data_bytes(GROWN))
    );
    assert_eq!(
        (pair.disk(0), pair.disk(1)),
        (DiskState::UpToDate, DiskState::UpToDate)
    );
    assert_eq!(pair.resync_bytes, before);
    pair.write(0, 78 << 20, 7);
    assert_eq!(pair.nodes[1].byte(78 << 20), 7);
}

#[test]
fn a_volume_grows_to_what_the_smaller_disk_offers_and_on_with_that_one() {
    let mut pair = Pair::synced(&plain);
    let old = pair.size(0);
    pair.grow(0, GROWN, 1);
    assert_eq!(
        pair.command(0, resize()),
        Ok(()),
        "nothing to do is no error"
    );
    assert_eq!((pair.size(0), pair.size(1)), (old, old));
    assert!(pair.nodes[0].rules.contains(&"resize-unchanged"));
    pair.grow(1, 72 << 20, 2);
    assert_eq!(pair.command(0, resize()), Ok(()));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.size(0), data_bytes(72 << 20));
    pair.grow(1, GROWN, 3);
    assert_eq!(pair.command(0, resize()), Ok(()));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.size(0), data_bytes(GROWN));
}

#[test]
fn a_size_can_be_named_and_none_is_made_smaller() {
    let mut pair = grown();
    let old = pair.size(0);
    let to = |bytes| Command::Resize {
        volume: VOLUME,
        bytes: Some(bytes),
        assume_clean: false,
    };
    assert_eq!(pair.command(0, to(old - 4096)), Err(Refusal::DiskTooSmall));
    assert_eq!(pair.command(0, to(GROWN)), Err(Refusal::DiskTooSmall));
    assert_eq!(pair.size(0), old);
    assert_eq!(pair.command(0, to(70 << 20)), Ok(()));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.size(0), 70 << 20);
}

#[test]
fn a_resize_is_refused_where_nobody_could_be_the_source_or_the_peer_has_no_say() {
    let mut pair = grown();
    assert_eq!(pair.command(1, resize()), Err(Refusal::NeedPrimary));
    pair.cut();
    assert_eq!(pair.command(0, resize()), Err(Refusal::NeedConnection));
    pair.write(0, 0, 3);
    pair.hold_back = Some(|message| matches!(message, Message::ResyncData { .. }));
    pair.heal();
    assert_eq!(pair.command(0, resize()), Err(Refusal::ResizeDuringResync));
    pair.release();
    pair.assert_equal_and_in_sync();
    pair.command(0, Command::Demote { force: false }).unwrap();
    assert_eq!(pair.command(0, resize()), Err(Refusal::NeedPrimary));
    assert_eq!(pair.size(0), data_bytes(DEVICE_BYTES));
}

#[test]
fn a_disk_that_grew_less_than_its_metadata_need_is_refused_and_goes_on() {
    let mut pair = Pair::synced(&plain);
    pair.grow(0, DEVICE_BYTES + 8192, 1);
    assert_eq!(pair.command(0, resize()), Err(Refusal::DiskTooSmall));
    pair.grow(0, GROWN, 1);
    pair.grow(1, DEVICE_BYTES + 8192, 1);
    assert_eq!(pair.command(0, resize()), Err(Refusal::PeerRefused));
    pair.write(0, 0, 9);
    pair.assert_equal_and_in_sync();
    // Both are found again, the one at its new end, the other one where it was.
    for node in 0..2 {
        pair.restart(node, &plain);
        pair.up(node);
        pair.assert_equal_and_in_sync();
    }
}

#[test]
fn a_disk_that_grew_while_it_was_not_attached_is_found_by_its_last_size() {
    let mut pair = Pair::synced(&plain);
    pair.restart(1, &plain);
    pair.grow(1, GROWN, 0xA1);
    pair.grow(0, GROWN, 0xA0);
    pair.up(1);
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.command(0, resize()), Ok(()));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.size(1), data_bytes(GROWN));
}

/// The connection ends while a message of this kind is on its way.
fn cut_at(stage: fn(&Message<Bytes>) -> bool, command: Command) -> Pair {
    let mut pair = grown();
    pair.hold_back = Some(stage);
    let id = pair.give(0, command);
    assert_eq!(pair.nodes[0].commands.get(&id), None, "it waits");
    pair.held_back.clear();
    pair.hold_back = None;
    pair.cut();
    assert_eq!(
        pair.nodes[0].commands.get(&id),
        Some(&Err(Refusal::NeedConnection))
    );
    pair
}

fn is_stage(message: &Message<Bytes>, wanted: ResizeStage) -> bool {
    matches!(message, Message::Resize { stage, .. } if *stage == wanted)
}

#[test]
fn a_resize_that_loses_its_peer_before_the_size_was_noted_changes_nothing() {
    let stages: [fn(&Message<Bytes>) -> bool; 2] = [
        |message| is_stage(message, ResizeStage::Ask),
        |message| is_stage(message, ResizeStage::Offer),
    ];
    for stage in stages {
        let mut pair = cut_at(stage, resize());
        let old = data_bytes(DEVICE_BYTES);
        assert_eq!((pair.size(0), pair.size(1)), (old, old));
        pair.heal();
        pair.assert_equal_and_in_sync();
        assert_eq!(pair.size(0), old);
        assert_eq!(pair.command(0, resize()), Ok(()));
        pair.assert_equal_and_in_sync();
        assert_eq!(pair.size(0), data_bytes(GROWN));
    }
}

#[test]
fn what_one_side_alone_was_told_to_assume_clean_is_copied() {
    let mut pair = cut_at(|message| is_stage(message, ResizeStage::Taken), clean());
    assert_eq!(pair.size(0), data_bytes(DEVICE_BYTES));
    assert_eq!(pair.size(1), data_bytes(GROWN));
    pair.heal();
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.size(0), data_bytes(GROWN));
    assert_eq!(pair.nodes[1].byte(78 << 20), 0xA0);
}

#[test]
fn a_primary_that_died_after_it_noted_the_size_brings_it_back() {
    for primary in 0..2 {
        let mut pair = grown();
        pair.nodes[0].freeze = vec![Io::Read];
        pair.hold_back = Some(|message| matches!(message, Message::Hello(_)));
        assert_eq!(pair.command(0, resize()), Ok(()));
        assert_eq!(pair.size(0), data_bytes(DEVICE_BYTES), "not shown yet");
        pair.held_back.clear();
        pair.hold_back = None;
        pair.nodes[0].freeze.clear();
        pair.restart(0, &plain);
        if primary == 1 {
            pair.command(1, Command::Promote { force: false }).unwrap();
            pair.write(1, 0, 42);
            assert_eq!(pair.size(1), data_bytes(DEVICE_BYTES));
        }
        pair.up(0);
        pair.assert_equal_and_in_sync();
        assert_eq!(pair.size(0), data_bytes(GROWN));
        if primary == 1 {
            assert_eq!(pair.nodes[0].byte(78 << 20), 0xA1);
            assert_eq!(pair.nodes[0].byte(0), 42);
        }
    }
}

#[test]
fn a_disk_that_grows_again_while_its_metadata_move_is_found_wherever_they_are() {
    let (mut before, mut after) = (0, 0);
    for answered in 0.. {
        let mut pair = grown();
        pair.write(0, 8192, 2);
        pair.nodes[0].freeze = vec![Io::Metadata];
        let id = pair.give(0, resize());
        let on_the_way = pair.nodes[0].known.expect("it was remembered");
        assert_eq!(on_the_way.device_bytes, DEVICE_BYTES);
        assert_eq!(on_the_way.moving_to, Some(GROWN));
        let steps = (0..answered).take_while(|_| pair.thaw_one(0)).count();
        let over = pair.nodes[0].known.is_some_and(|now| now != on_the_way);
        pair.grow(0, LARGER, 0xB0);
        pair.restart(0, &plain);
        pair.up(0);
        pair.assert_equal_and_in_sync();
        let known = pair.nodes[0].known.expect("it was attached");
        assert_eq!(known.moving_to, None);
        before += u32::from(known.device_bytes == DEVICE_BYTES);
        after += u32::from(known.device_bytes == GROWN);
        assert_eq!(pair.nodes[0].byte(8192), 2, "after {steps} steps");
        if over {
            break;
        }
        assert!(!pair.nodes[0].commands.contains_key(&id), "it is under way");
    }
    assert!(before > 0 && after > 1, "{before} before, {after} after");
}

#[test]
fn metadata_do_not_move_to_where_nobody_would_look_for_them() {
    for (node, refusal) in [(0, Refusal::MetadataIo), (1, Refusal::PeerRefused)] {
        let mut pair = grown();
        pair.nodes[node].forgetful = true;
        assert_eq!(pair.command(0, resize()), Err(refusal));
        assert_eq!(pair.size(0), data_bytes(DEVICE_BYTES));
        pair.write(0, 0, 9);
        pair.assert_equal_and_in_sync();
        pair.nodes[node].forgetful = false;
        assert_eq!(pair.command(0, resize()), Ok(()));
        pair.assert_equal_and_in_sync();
        assert_eq!(pair.size(0), data_bytes(GROWN));
    }
}
