//! Lanes are not ordered with each other, and a disk may answer late: what overtakes what must not matter.
//!
//! Each test holds back one thing on its way (messages of a lane, answers of a disk) across the moment at which it would do harm.

mod harness;

use harness::*;
use qrbd_engine::config::PeerConfig;
use qrbd_engine::limits;
use qrbd_engine::metadata::image::{self, CreateOptions, MetadataImage};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use qrbd_engine::units::{Generation, NodeId};
use qrbd_engine::wire::message::Protocol;
use qrbd_engine::wire::{Lane, Message};
use qrbd_engine::{Command, Operation};

const FAR: u64 = 20 << 20;

#[test]
fn a_primary_that_attaches_again_waits_for_its_writes_on_the_data_lane() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.detach(0).unwrap();
    pair.write(0, 0, 2);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    pair.hold_back = Some(|message| message.lane() == Lane::Data);
    let write = pair.start_write(0, FAR, 9);
    let attach = pair.attach_command(0);
    pair.give(0, attach);
    assert!(!pair.nodes[0].completions.contains_key(&write));
    assert_eq!(pair.disk(0), DiskState::Negotiating);
    pair.release();
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    assert_eq!(
        pair.read(0, FAR),
        9,
        "the Primary reads what it was told is written"
    );
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_write_that_waits_for_the_activity_log_when_a_handshake_begins_is_mirrored() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.pass_time();
    pair.cut();
    // Nothing differs. A write to a cold extent waits for its transaction while the link comes back.
    pair.nodes[0].freeze = vec![Io::Metadata];
    pair.nodes[1].freeze = vec![Io::Metadata];
    let write = pair.start_write(0, FAR, 9);
    pair.heal();
    assert_eq!(pair.connection(0), ConnectionState::Connected);
    pair.thaw(0);
    assert_eq!(
        pair.nodes[0].byte(FAR),
        0,
        "not submitted during a handshake"
    );
    pair.thaw(1);
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    assert_eq!(pair.nodes[1].byte(FAR), 9);
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_flush_of_an_old_session_makes_no_epoch_of_the_new_one_durable() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.nodes[1].freeze = vec![Io::Flush];
    pair.pass_time();
    assert_eq!(pair.nodes[1].frozen.len(), 1, "the barrier's flush runs");
    pair.cut();
    pair.heal();
    pair.write(0, 4096, 2);
    let flush = pair.submit(0, Operation::Flush);
    assert!(pair.nodes[1].frozen.len() > 1, "so does the new session's");
    pair.thaw_one(1);
    assert_eq!(
        pair.nodes[0].completions.get(&flush),
        None,
        "the peer's disk did not flush what was written"
    );
    pair.thaw(1);
    assert_eq!(pair.nodes[0].completions.get(&flush), Some(&Ok(None)));
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_read_of_a_stopped_resync_is_not_taken_for_one_of_the_next() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.write(0, 40960, 1);
    pair.detach(0).unwrap();
    pair.write(0, 40960, 7);
    pair.nodes[1].freeze = vec![Io::Read];
    pair.attach(0).unwrap();
    assert_eq!(pair.replication(0), ReplicationState::SyncTarget);
    let first = pair.nodes[1].frozen.len();
    assert!(first > 0, "the source reads");
    // The target loses its disk again, and the session stands.
    pair.nodes[0].fail_writes = true;
    pair.write(0, FAR, 5);
    pair.nodes[0].fail_writes = false;
    assert_eq!(pair.disk(0), DiskState::Diskless);
    pair.write(0, 0, 3);
    pair.attach(0).unwrap();
    assert_eq!(pair.replication(0), ReplicationState::SyncTarget);
    assert!(pair.nodes[1].frozen.len() > first, "it reads again");
    pair.thaw(1);
    pair.assert_equal_and_in_sync();
    assert_eq!((pair.nodes[0].byte(0), pair.nodes[0].byte(40960)), (3, 7));
}

#[test]
fn a_lost_disk_is_reported_before_the_handshake_for_the_next_one() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.hold_back = Some(|message| matches!(message, Message::DiskLost { .. }));
    pair.nodes[0].fail_writes = true;
    let write = pair.start_write(0, FAR, 9);
    pair.nodes[0].fail_writes = false;
    assert_eq!(pair.disk(0), DiskState::Diskless);
    let attach = pair.attach_command(0);
    pair.give(0, attach);
    pair.release();
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[0].byte(FAR), 9);
}

#[test]
fn a_peer_that_died_with_a_write_of_a_diskless_primary_is_good_enough_when_it_returns() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.detach(0).unwrap();
    pair.write(0, 0, 2);
    // On its way when the peer dies, and never answered: no client saw it.
    pair.hold_back = Some(|message| message.lane() == Lane::Data);
    let write = pair.start_write(0, FAR, 9);
    pair.hold_back = None;
    pair.restart(1, &plain);
    assert_ne!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.up(1);
    assert_eq!(pair.connection(0), ConnectionState::Connected);
    assert_eq!(pair.disk(1), DiskState::UpToDate);
    assert_eq!(pair.read(0, 0), 2);
}

#[test]
fn data_older_than_what_the_clients_of_a_diskless_primary_saw_are_not_served() {
    let mut pair = Pair::synced(&|peer| peer.protocol = Protocol::A);
    pair.write(0, 0, 1);
    // Complete on the disk that is lost next, and nowhere else.
    pair.hold_back = Some(|message| message.lane() == Lane::Data);
    pair.write(0, 0, 2);
    pair.nodes[0].fail_writes = true;
    pair.start_write(0, FAR, 9);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    pair.hold_back = None;
    pair.restart(1, &|peer| peer.protocol = Protocol::A);
    pair.up(1);
    assert_eq!(pair.disk(1), DiskState::Outdated);
}

#[test]
fn a_node_is_not_promoted_on_what_a_disk_claims_while_it_is_compared() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.detach(1).unwrap();
    pair.write(0, 0, 2);
    pair.command(0, Command::Demote { force: false }).unwrap();
    pair.hold_back = Some(|_| true);
    let attach = pair.attach_command(1);
    pair.give(1, attach);
    let promote = pair.give(1, Command::Promote { force: false });
    assert_eq!(pair.nodes[1].commands.get(&promote), None);
    pair.release();
    assert_eq!(pair.connection(1), ConnectionState::Connected);
    assert_ne!(
        pair.nodes[1].commands.get(&promote),
        Some(&Err(Refusal::NoUpToDateDisk))
    );
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[1].commands.get(&promote), Some(&Ok(())));
    assert_eq!(pair.nodes[1].engine.status().role, Role::Primary);
    assert_eq!(pair.read(1, 0), 2);
}

#[test]
fn a_demotion_vouches_for_writes_that_the_peer_may_have_lost() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    for _ in 0..3 {
        pair.pass_time();
    }
    let durable = pair.nodes[1].disk.borrow().clone();
    pair.write(0, 0, 2);
    pair.cut();
    pair.command(0, Command::Demote { force: false }).unwrap();
    // Power loss: what the other node had not flushed is gone (its metadata did not change meanwhile).
    *pair.nodes[1].disk.borrow_mut() = durable;
    pair.restart(1, &plain);
    pair.attach(1).unwrap();
    pair.command(1, Command::Promote { force: false }).unwrap();
    pair.write(1, 4096, 3);
    pair.connect(1, false);
    pair.heal();
    assert_eq!(
        (pair.connection(0), pair.connection(1)),
        (ConnectionState::StandAlone, ConnectionState::StandAlone),
        "a split brain: both went on alone"
    );
    assert_eq!(
        pair.nodes[0].byte(0),
        2,
        "a write that was completed and flushed is overwritten by nobody"
    );
}

const OLD: Generation = Generation(0x1110);
const NEW: Generation = Generation(0x2221);

/// Metadata of a disk of this many bytes: node 0 went on alone from the generation that node 1 still has. Toward the other one
/// the blocks `marked` are.
fn huge(device_bytes: u64, node: usize, marked: impl Iterator<Item = u64>) -> Box<MetadataImage> {
    let mut image = image::create(&CreateOptions {
        placement: Placement::Internal,
        device_bytes,
        max_peers: 1,
        node_id: NodeId(node as u8),
        device_uuid: 77 + node as u64,
        al_slots: 9,
    })
    .unwrap();
    let superblock = &mut image.superblock;
    let slot = superblock.allocate_slot(NodeId(1 - node as u8)).unwrap();
    superblock.effective_bytes = image.layout.data_bytes;
    superblock.flags.consistent = true;
    superblock.flags.was_up_to_date = true;
    superblock.current = if node == 0 { NEW } else { OLD };
    if node == 0 {
        superblock.peers[slot].bitmap = OLD;
        superblock.history = vec![OLD];
    }
    image.bitmaps[slot].clear_all();
    for block in marked {
        image.bitmaps[slot].set(block..block + 1);
    }
    Box::new(image)
}

/// Two nodes that are about to exchange bitmaps of several parts each.
fn huge_pair(device_bytes: u64) -> Pair {
    huge_pair_with(&plain, device_bytes, 2)
}

/// The same, with every so many-th block marked in a part of the device. Every second: no run-length code makes that small.
fn huge_pair_with(configure: &dyn Fn(&mut PeerConfig), device_bytes: u64, step: usize) -> Pair {
    let mut pair = Pair::new(configure);
    let blocks = 8 * limits::BITMAP_PART_BYTES as u64 * 8;
    for node in 0..2 {
        pair.nodes[node].empty = true;
        let first = (3 - node as u64) * blocks;
        let image = huge(device_bytes, node, (first..first + blocks).step_by(step));
        let volume = VOLUME;
        pair.command(node, Command::Attach { volume, image })
            .unwrap();
    }
    // The exchange is what counts here, not the copying.
    let (volume, peer) = (VOLUME, NodeId(1));
    pair.command(0, Command::PauseSync { volume, peer })
        .unwrap();
    pair
}

#[test]
fn a_bitmap_that_no_code_makes_small_is_sent_as_the_peer_takes_it_up() {
    let mut pair = huge_pair(16 << 40);
    pair.connect(0, false);
    pair.connect(1, false);
    assert_eq!(pair.replication(0), ReplicationState::PausedSyncS);
    assert_eq!(pair.replication(1), ReplicationState::PausedSyncT);
    let (mine, theirs) = (
        pair.nodes[0].engine.out_of_sync(VOLUME, NodeId(1)),
        pair.nodes[1].engine.out_of_sync(VOLUME, NodeId(0)),
    );
    let alone = 8 * limits::BITMAP_PART_BYTES * 8 / 2;
    assert_eq!(mine.len(), 2 * alone, "what either of the two marked");
    assert!(mine == theirs, "both know the same blocks");
    assert!(pair.bitmap_parts >= 8 + 16, "{} parts", pair.bitmap_parts);
    assert!(
        pair.most_bitmap_parts <= limits::BITMAP_PARTS_UNDER_WAY + 1,
        "{} parts on their way at once",
        pair.most_bitmap_parts
    );
}

#[test]
fn a_peer_that_takes_up_no_bitmap_is_sent_no_more_and_given_up() {
    let mut pair = huge_pair(256 << 30);
    pair.hold_back = Some(|message| matches!(message, Message::BitmapTaken { .. }));
    pair.connect(0, false);
    pair.connect(1, false);
    assert_eq!(pair.replication(1), ReplicationState::WFBitMapT);
    assert_eq!(pair.bitmap_parts, limits::BITMAP_PARTS_UNDER_WAY);
    let (session, start) = (pair.nodes[1].session, pair.now);
    while pair.nodes[1].session == session {
        pair.pass_time();
        assert!(pair.now.since(start) <= 2 * limits::SETTLE_TIMEOUT_MS);
    }
    pair.release();
    while pair.replication(0) != ReplicationState::PausedSyncS {
        pair.pass_time();
        assert!(pair.now.since(start) <= 4 * limits::SETTLE_TIMEOUT_MS);
    }
}

#[test]
fn a_resync_yields_to_a_write_of_the_target_that_is_stuck() {
    let mut pair = Pair::paused_target(FAR);
    let (volume, peer) = (VOLUME, NodeId(1));
    // A write of the target's own client where the resync wants to write, and a data lane on which it does not get through.
    pair.hold_back = Some(|message| message.lane() == Lane::Data);
    let write = pair.start_write(0, FAR, 3);
    pair.resync_ranges.clear();
    pair.command(0, Command::ResumeSync { volume, peer })
        .unwrap();
    let start = pair.now;
    while pair.now.since(start) < 5_000 {
        pair.pass_time();
    }
    let sent = pair
        .resync_ranges
        .iter()
        .filter(|range| (range.offset..range.end()).contains(&FAR))
        .count();
    assert!(
        (2..=20).contains(&sent),
        "sent {sent} times what the target puts off"
    );
    assert_eq!(pair.nodes[0].completions.get(&write), None);
    pair.release();
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[0].byte(FAR), 3);
}

#[test]
fn nodes_are_not_declared_equal_when_the_peer_is_silent_about_it() {
    let mut pair = Pair::new(&plain);
    pair.up(0);
    pair.up(1);
    // The peer is alive, but its metadata do not become durable.
    pair.nodes[1].freeze = vec![Io::Metadata];
    let (volume, clear_bitmap) = (VOLUME, true);
    let start = pair.now;
    assert_eq!(
        pair.command(
            0,
            Command::NewCurrentUuid {
                volume,
                clear_bitmap
            }
        ),
        Err(Refusal::Timeout)
    );
    assert!(pair.now.since(start) <= 2 * limits::COMMAND_PATIENCE_MS);
    assert_eq!(pair.disk(0), DiskState::Inconsistent);
    // It did its part after all: the two compare, and nothing is believed.
    pair.thaw(1);
    pair.assert_equal_and_in_sync();
    assert!(pair.resync_bytes > 0, "copied, not declared equal");
}

#[test]
fn a_write_that_overtakes_the_promotion_of_a_node_without_a_disk_is_noted() {
    let mut pair = Pair::synced(&plain);
    pair.command(0, Command::Demote { force: false }).unwrap();
    pair.detach(0).unwrap();
    let promotion = |message: &Message<Bytes>| matches!(message, Message::PeerState { role, .. } if *role == Role::Primary);
    pair.hold_back = Some(promotion);
    pair.command(0, Command::Promote { force: false }).unwrap();
    let write = pair.start_write(0, FAR, 9);
    pair.release();
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.attach(0).unwrap();
    assert_eq!(pair.read(0, FAR), 9, "the disk got what it missed");
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_node_that_was_demoted_without_its_disk_waits_until_the_peer_knows_of_the_loss() {
    let mut pair = Pair::synced(&plain);
    pair.hold_back = Some(|message| matches!(message, Message::DiskLost { .. }));
    pair.detach(0).unwrap();
    pair.command(0, Command::Demote { force: false }).unwrap();
    let attach = pair.attach_command(0);
    pair.give(0, attach);
    assert_eq!(pair.disk(0), DiskState::Negotiating);
    pair.release();
    pair.assert_equal_and_in_sync();
    pair.command(1, Command::Promote { force: false }).unwrap();
    pair.write(1, 0, 7);
    assert_eq!(pair.nodes[0].byte(0), 7, "it is mirrored again");
}

#[test]
fn a_demoted_target_does_not_take_the_end_of_a_stopped_resync_for_that_of_the_next() {
    let mut pair = Pair::paused_target(FAR);
    let (volume, peer) = (VOLUME, NodeId(1));
    pair.hold_back = Some(|message| message.lane() == Lane::Resync);
    pair.detach(0).unwrap();
    assert_eq!(pair.held_back.len(), 1, "the end of the stopped resync");
    pair.command(0, Command::Demote { force: false }).unwrap();
    let attach = pair.attach_command(0);
    pair.give(0, attach);
    assert_eq!(pair.disk(0), DiskState::Negotiating);
    pair.release();
    assert_eq!(pair.replication(0), ReplicationState::PausedSyncT);
    assert_eq!(pair.disk(0), DiskState::Inconsistent);
    pair.command(0, Command::ResumeSync { volume, peer })
        .unwrap();
    assert_eq!(pair.nodes[0].byte(FAR), 2);
    pair.assert_equal_and_in_sync();
}

/// Requests of a resync with a very large window that are on their way at once, of a device with every so many-th block marked.
fn resync_in_flight(step: usize) -> usize {
    let wide = |peer: &mut PeerConfig| peer.resync_window_bytes = 1 << 30;
    let mut pair = huge_pair_with(&wide, 256 << 30, step);
    pair.connect(0, false);
    pair.connect(1, false);
    assert_eq!(pair.replication(0), ReplicationState::PausedSyncS);
    pair.hold_back = Some(|message| message.lane() == Lane::Resync);
    // No client is busy.
    pair.now = pair.now.after(limits::APPLICATION_BUSY_MS);
    let (volume, peer) = (VOLUME, NodeId(1));
    pair.command(0, Command::ResumeSync { volume, peer })
        .unwrap();
    pair.held_back.len()
}

#[test]
fn a_resync_with_a_large_window_does_not_drown_the_peer() {
    let requests = resync_in_flight(2);
    assert!(
        (1000..=limits::RESYNC_IN_FLIGHT_OPERATIONS + 1).contains(&requests),
        "{requests}"
    );
    assert!(requests < limits::MAX_BUFFERED_OPERATIONS);
    let bytes = resync_in_flight(1) as u64 * limits::RESYNC_REQUEST_BYTES;
    assert!(
        (1 << 20..=limits::RESYNC_IN_FLIGHT_BYTES).contains(&bytes),
        "{bytes}"
    );
}
