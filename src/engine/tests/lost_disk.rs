//! A disk that is lost, and taken back: who is ahead when the two meet, who is fenced, what is noted of what it misses, and what a Primary
//! without it asks of its peer.

mod harness;

use harness::*;
use qrbd_engine::api::{ClientError, IoError};
use qrbd_engine::config::PeerConfig;
use qrbd_engine::limits;
use qrbd_engine::state::{ConnectionState, DiskState, ReplicationState};
use qrbd_engine::units::{ByteRange, NodeId};
use qrbd_engine::wire::{Lane, Message};
use qrbd_engine::{Command, Event, Operation};

const FAR: u64 = 20 << 20;

/// The link breaks with what is held back.
fn cut_without_it(pair: &mut Pair) {
    pair.hold_back = None;
    pair.held_back.clear();
    pair.cut();
}

/// The Primary's disk and its metadata fail; the peer notes what it misses, but the answer does not arrive.
fn lose_the_disk_and_the_answer(pair: &mut Pair) {
    pair.write(0, 0, 1);
    pair.nodes[1].rules.clear();
    pair.hold_back = Some(|message| matches!(message, Message::MissesTracked { .. }));
    (pair.nodes[0].fail_writes, pair.nodes[0].fail_metadata) = (true, true);
    let write = pair.start_write(0, 4096, 9);
    (pair.nodes[0].fail_writes, pair.nodes[0].fail_metadata) = (false, false);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    assert!(pair.nodes[1].rules.contains(&"primary-lost-its-disk"));
    assert!(!pair.nodes[0].completions.contains_key(&write));
}

/// The two are apart, and the Primary has no disk: the peer noted what that misses, and the answer did not arrive.
fn alone_without_its_disk(configure: &dyn Fn(&mut PeerConfig)) -> Pair {
    let mut pair = Pair::synced(configure);
    lose_the_disk_and_the_answer(&mut pair);
    cut_without_it(&mut pair);
    pair
}

/// The link is back: the Primary is the source, by what it gave up.
fn is_ahead_when_they_meet(pair: &mut Pair) {
    pair.heal();
    assert!(pair.nodes[0].rules.contains(&"given-up-self"));
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_primary_that_takes_its_disk_back_is_ahead_of_a_peer_that_began_a_generation_in_vain() {
    let mut pair = alone_without_its_disk(&plain);
    pair.attach(0).unwrap();
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    pair.write(0, 8192, 5);
    is_ahead_when_they_meet(&mut pair);
    assert_eq!((pair.nodes[1].byte(0), pair.nodes[1].byte(8192)), (1, 5));
}

#[test]
fn a_disk_attached_just_before_the_link_breaks_is_taken_back_too() {
    let mut pair = Pair::synced(&plain);
    lose_the_disk_and_the_answer(&mut pair);
    pair.hold_back = Some(|_| true);
    let attach = pair.attach_command(0);
    pair.give(0, attach);
    assert_eq!(pair.disk(0), DiskState::Negotiating);
    cut_without_it(&mut pair);
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    pair.write(0, 8192, 5);
    is_ahead_when_they_meet(&mut pair);
}

#[test]
fn the_survivor_has_what_a_primary_lost_that_crashed_with_its_disk_back() {
    let mut pair = alone_without_its_disk(&plain);
    pair.attach(0).unwrap();
    pair.restart(0, &plain);
    pair.heal();
    pair.up(0);
    assert!(pair.nodes[0].rules.contains(&"bitmap-peer"));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[0].byte(4096), 9, "the peer had it");
}

#[test]
fn a_generation_that_was_given_up_is_not_written_in_again() {
    let mut pair = alone_without_its_disk(&plain);
    pair.attach(0).unwrap();
    // The disk is lost again before anything was completed alone, and the clients go on through the peer.
    pair.detach_by_force(0).unwrap();
    pair.heal();
    pair.write(0, 8192, 7);
    pair.submit(0, Operation::Flush);
    // Both lose power.
    pair.cut();
    pair.restart(0, &plain);
    pair.restart(1, &plain);
    pair.heal();
    pair.up(0);
    pair.up(1);
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[0].byte(8192), 7, "it was completed");
}

#[test]
fn a_disk_that_fails_while_it_is_compared_keeps_the_name_of_its_loss() {
    let mut pair = Pair::synced(&plain);
    lose_the_disk_and_the_answer(&mut pair);
    pair.hold_back = Some(|_| true);
    pair.nodes[0].fail_metadata = true;
    let attach = pair.attach_command(0);
    pair.give(0, attach);
    pair.nodes[0].fail_metadata = false;
    assert_eq!(pair.disk(0), DiskState::Diskless);
    cut_without_it(&mut pair);
    pair.attach(0).unwrap();
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    pair.write(0, 8192, 5);
    is_ahead_when_they_meet(&mut pair);
}

#[test]
fn every_loss_of_the_disk_has_a_generation_of_its_own() {
    let mut pair = Pair::synced(&plain);
    pair.detach(0).unwrap();
    pair.write(0, 16384, 2);
    pair.attach(0).unwrap();
    pair.assert_equal_and_in_sync();
    lose_the_disk_and_the_answer(&mut pair);
    cut_without_it(&mut pair);
    pair.attach(0).unwrap();
    pair.write(0, 8192, 5);
    is_ahead_when_they_meet(&mut pair);
}

#[test]
fn a_disk_taken_back_unwritten_is_ahead_too() {
    let mut pair = alone_without_its_disk(&plain);
    pair.attach(0).unwrap();
    pair.heal();
    assert_eq!(pair.connection(0), ConnectionState::Connected);
    assert!(pair.nodes[0].rules.contains(&"given-up-self"));
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_diskless_primary_that_returned_and_left_again_takes_its_disk_back_as_well() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.pass_time();
    pair.cut();
    pair.detach_by_force(0).unwrap();
    pair.hold_back = Some(|message| matches!(message, Message::MissesTracked { .. }));
    pair.heal();
    assert!(pair.nodes[1].rules.contains(&"primary-lost-its-disk"));
    cut_without_it(&mut pair);
    pair.attach(0).unwrap();
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    pair.write(0, 8192, 5);
    is_ahead_when_they_meet(&mut pair);
    assert_eq!(pair.nodes[1].byte(8192), 5);
}

#[test]
fn a_peer_promoted_on_a_generation_that_was_given_up_elsewhere_is_a_split_brain() {
    let mut pair = alone_without_its_disk(&plain);
    pair.attach(0).unwrap();
    pair.write(0, 8192, 5);
    pair.command(1, Command::Promote { force: true }).unwrap();
    pair.write(1, 12288, 7);
    pair.heal();
    assert!(pair.nodes[0].handlers.contains(&"split-brain"));
    let written = |pair: &Pair, node: usize| {
        (
            pair.nodes[node].byte(8192) == 5,
            pair.nodes[node].byte(12288) == 7,
        )
    };
    assert_eq!(written(&pair, 0), (true, false));
    assert_eq!(written(&pair, 1), (false, true));
}

/// A Primary that is frozen until its peer is fenced, with its disk back.
fn frozen_with_its_disk_back() -> Pair {
    let mut pair = alone_without_its_disk(&stonith);
    pair.attach(0).unwrap();
    assert!(pair.nodes[0].engine.status().suspended_fencing);
    pair
}

#[test]
fn a_frozen_primary_that_is_shot_with_its_disk_back_is_no_split_brain() {
    let mut pair = frozen_with_its_disk_back();
    pair.restart(0, &stonith);
    pair.give(1, Command::Promote { force: false });
    pair.fenced(1);
    pair.write(1, 12288, 7);
    pair.heal();
    pair.up(0);
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[0].byte(12288), 7);
}

#[test]
fn a_frozen_primary_with_its_disk_back_goes_on_with_its_peer() {
    let mut pair = frozen_with_its_disk_back();
    let write = pair.start_write(0, 8192, 5);
    pair.heal();
    assert!(pair.nodes[0].rules.contains(&"given-up-self"));
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_frozen_primary_whose_peer_is_fenced_is_ahead_with_its_disk_back() {
    let mut pair = frozen_with_its_disk_back();
    let write = pair.start_write(0, 8192, 5);
    assert!(!pair.nodes[0].completions.contains_key(&write));
    pair.restart(1, &stonith);
    pair.fenced(0);
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.heal();
    pair.up(1);
    assert!(pair.nodes[0].rules.contains(&"given-up-self"));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[1].byte(8192), 5);
}

#[test]
fn a_peer_that_became_good_while_the_disk_was_away_must_be_fenced_again() {
    let mut pair = Pair::synced(&stonith);
    pair.cut();
    pair.fenced(0);
    pair.command(0, Command::Demote { force: false }).unwrap();
    pair.detach(0).unwrap();
    pair.heal();
    pair.attach(0).unwrap();
    pair.assert_equal_and_in_sync();
    pair.cut();
    pair.restart(0, &stonith);
    pair.nodes[0].fencing = None;
    pair.attach(0).unwrap();
    pair.give(0, Command::Promote { force: false });
    assert!(pair.nodes[0].fencing.is_some(), "it is not known to be old");
}

#[test]
fn nobody_is_shot_because_a_disk_was_detached_or_failed() {
    let mut pair = Pair::synced(&stonith);
    pair.detach(1).unwrap();
    pair.write(0, 0, 1);
    pair.attach(1).unwrap();
    pair.nodes[1].fail_writes = true;
    pair.write(0, 4096, 2);
    pair.nodes[1].fail_writes = false;
    assert_eq!(pair.disk(1), DiskState::Diskless);
    pair.attach(1).unwrap();
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[0].fencing, None);
}

/// The peer's disk failed under a write, for which it parted; the link is down since.
fn parted_and_not_back() -> (Pair, u64) {
    let mut pair = Pair::synced(&stonith);
    pair.nodes[1].fail_writes = true;
    pair.linked = false;
    let write = pair.start_write(0, 0, 1);
    (pair, write)
}

fn wait_until_it_is_fenced(pair: &mut Pair) {
    let until = pair.now.after(limits::RETURN_PATIENCE_MS);
    while pair.nodes[0].fencing.is_none() {
        assert!(pair.now <= until, "it is not fenced");
        pair.pass_time();
    }
}

#[test]
fn a_peer_that_does_not_return_as_it_said_is_fenced() {
    let (mut pair, write) = parted_and_not_back();
    assert!(pair.nodes[0].engine.status().suspended_fencing);
    assert_eq!(pair.nodes[0].fencing, None);
    wait_until_it_is_fenced(&mut pair);
    assert!(!pair.nodes[0].completions.contains_key(&write));
    pair.fenced(0);
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
}

#[test]
fn what_the_administrator_had_go_on_is_not_frozen_again() {
    let (mut pair, write) = parted_and_not_back();
    pair.command(0, Command::ResumeIo).unwrap();
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    wait_until_it_is_fenced(&mut pair);
    pair.write(0, 4096, 2);
}

/// Node 1, which has the only good disk, is told to detach it by force. A received write waits for the flush of the epoch before it; that
/// flush and the one for the detaching are under way, in this order.
fn detaching_by_force_with_a_write_that_waits() -> Pair {
    let mut pair = Pair::synced(&plain);
    pair.detach(0).unwrap();
    pair.write(0, FAR, 5);
    for _ in 0..3 {
        pair.pass_time();
    }
    pair.nodes[1].freeze = vec![Io::Flush];
    pair.write(0, FAR, 6);
    pair.start_write(0, FAR + 4096, 9);
    let detach = Command::Detach {
        volume: VOLUME,
        force: true,
    };
    pair.give(1, detach);
    assert_eq!(pair.nodes[1].frozen.len(), 2);
    pair
}

/// Both attach again, and what was carried out meanwhile is copied.
fn attach_both(pair: &mut Pair) {
    assert_eq!(pair.disk(1), DiskState::Diskless);
    pair.attach(1).unwrap();
    pair.attach(0).unwrap();
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_write_carried_out_while_its_disk_is_detached_by_force_is_noted() {
    let mut pair = detaching_by_force_with_a_write_that_waits();
    // The bitmap is on its way to the disk when the epoch is flushed.
    pair.nodes[1].freeze = vec![Io::Flush, Io::Metadata];
    let for_the_bitmap = (pair.nodes[1].frozen.pop_back()).expect("the data are flushed");
    pair.event(1, for_the_bitmap);
    let of_the_epoch = (pair.nodes[1].frozen.pop_front()).expect("the epoch is flushed");
    pair.event(1, of_the_epoch);
    assert_eq!(pair.nodes[1].byte(FAR + 4096), 9, "it was carried out");
    pair.thaw(1);
    attach_both(&mut pair);
}

#[test]
fn a_disk_is_not_detached_by_force_before_what_was_received_is_carried_out() {
    let mut pair = detaching_by_force_with_a_write_that_waits();
    let for_the_bitmap = (pair.nodes[1].frozen.pop_back()).expect("the data are flushed");
    pair.event(1, for_the_bitmap);
    assert_eq!(pair.disk(1), DiskState::UpToDate, "the epoch's flush hangs");
    pair.thaw(1);
    assert_eq!(pair.nodes[1].byte(FAR + 4096), 9, "it was carried out");
    attach_both(&mut pair);
}

#[test]
fn a_loss_that_nobody_heard_of_is_forgotten_with_the_connection() {
    let mut pair = Pair::synced(&plain);
    pair.hold_back = Some(|message| matches!(message, Message::DiskLost { .. }));
    pair.detach(0).unwrap();
    pair.command(0, Command::Demote { force: false }).unwrap();
    cut_without_it(&mut pair);
    pair.heal();
    assert_eq!(pair.connection(0), ConnectionState::Connected);
    pair.attach(0).unwrap();
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_disk_that_fails_while_the_end_of_its_resync_is_written_down_is_taken_back_at_once() {
    let mut pair = Pair::paused_target(FAR);
    let (volume, peer) = (VOLUME, NodeId(1));
    pair.write(0, 0, 4);
    pair.hold_back = Some(|message| matches!(message, Message::ResyncFinish { .. }));
    pair.command(0, Command::ResumeSync { volume, peer })
        .unwrap();
    pair.nodes[0].freeze = vec![Io::Metadata];
    pair.release();
    assert_eq!(pair.disk(0), DiskState::Inconsistent);
    pair.nodes[0].fail_writes = true;
    pair.start_write(0, 0, 5);
    pair.nodes[0].fail_writes = false;
    pair.thaw(0);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    let attach = pair.attach_command(0);
    pair.give(0, attach);
    let write = pair.start_write(0, 4096, 7);
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_write_suspended_across_the_loss_of_the_disk_enters_the_activity_log_of_the_next() {
    let mut pair = Pair::synced(&plain);
    pair.nodes[0].freeze = vec![Io::Metadata];
    pair.start_write(0, 8 << 20, 8);
    pair.start_write(0, FAR, 9);
    pair.command(0, Command::SuspendIo).unwrap();
    let detach = Command::Detach {
        volume: VOLUME,
        force: false,
    };
    pair.give(0, detach);
    pair.thaw(0);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    pair.attach(0).unwrap();
    // Its disk has it, the peer does not, and it crashes.
    pair.hold_back = Some(|message| message.lane() == Lane::Data);
    pair.command(0, Command::ResumeIo).unwrap();
    assert_eq!(pair.nodes[0].byte(FAR), 9);
    pair.hold_back = None;
    pair.held_back.clear();
    pair.restart(0, &plain);
    pair.up(0);
    pair.assert_equal_and_in_sync();
}

#[test]
fn resync_data_that_overlap_and_a_disk_error_are_no_panic() {
    let mut pair = Pair::synced(&plain);
    let (volume, peer) = (VOLUME, NodeId(1));
    pair.cut();
    pair.write(0, FAR, 2);
    pair.command(0, Command::PauseSync { volume, peer })
        .unwrap();
    pair.heal();
    assert_eq!(pair.replication(1), ReplicationState::PausedSyncT);
    pair.nodes[1].freeze = vec![Io::Write];
    let session = pair.nodes[1].session.expect("they are connected");
    for id in 1..3 {
        let message = Message::ResyncData {
            id,
            volume,
            range: ByteRange::new(FAR, 4096),
            payload: filled(2, 4096),
        };
        let peer = NodeId(0);
        pair.event(
            1,
            Event::Frame {
                peer,
                session,
                message,
            },
        );
    }
    let Some(Event::DiskDone { io, .. }) = pair.nodes[1].frozen.pop_front() else {
        panic!("the first write is under way");
    };
    let result = Err(IoError::Failed);
    pair.event(1, Event::DiskDone { io, result });
    assert_eq!(pair.disk(1), DiskState::Diskless);
}

/// A Primary without its disk whose clients ask for more than the peer, whose disk is slow, may be asked for.
fn more_reads_than_the_peer_takes(length: u32, count: usize) {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 3);
    pair.detach(0).unwrap();
    let session = pair.nodes[0].session;
    pair.nodes[1].freeze = vec![Io::Read];
    let reads: Vec<u64> = (0..count)
        .map(|_| pair.submit(0, Operation::Read(ByteRange::new(0, length))))
        .collect();
    let asked = pair.nodes[1].frozen.len();
    assert!(asked > 0 && asked <= limits::MAX_REMOTE_READS && asked < count);
    assert!(asked as u64 * u64::from(length) <= limits::MAX_REMOTE_READ_BYTES);
    pair.thaw(1);
    for read in reads {
        let Some(Ok(Some(bytes))) = pair.nodes[0].completions.get(&read) else {
            panic!("{:?}", pair.nodes[0].completions.get(&read));
        };
        assert_eq!((bytes.0[0], bytes.0.len()), (3, length as usize));
    }
    assert_eq!(pair.nodes[0].session, session, "nobody broke the protocol");
}

#[test]
fn a_primary_without_its_disk_asks_for_no_more_reads_than_the_peer_takes() {
    more_reads_than_the_peer_takes(512, limits::MAX_BUFFERED_OPERATIONS + 1000);
}

#[test]
fn a_primary_without_its_disk_asks_for_no_more_bytes_than_the_peer_holds() {
    let length = 4 << 20;
    more_reads_than_the_peer_takes(length, 20);
}

#[test]
fn reads_that_wait_for_a_peer_end_when_it_is_lost() {
    let mut pair = Pair::synced(&plain);
    pair.detach(0).unwrap();
    pair.nodes[1].freeze = vec![Io::Read];
    let reads: Vec<u64> = (0..20)
        .map(|_| pair.submit(0, Operation::Read(ByteRange::new(0, 4 << 20))))
        .collect();
    pair.cut();
    for read in reads {
        assert_eq!(
            pair.nodes[0].completions.get(&read),
            Some(&Err(ClientError::Io))
        );
    }
}
