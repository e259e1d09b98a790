//! Protocol A: writes that nobody waits for leave together, and not too late.

mod harness;

use harness::*;
use qrbd_engine::config::PeerConfig;
use qrbd_engine::limits;
use qrbd_engine::state::DiskState;
use qrbd_engine::units::{ByteRange, NodeId};
use qrbd_engine::wire::message::Protocol;
use qrbd_engine::{Command, Event, Operation};

fn loose(peer: &mut PeerConfig) {
    peer.protocol = Protocol::A;
}

/// A pair under protocol A that keeps a write for those that follow.
fn keeping() -> Pair {
    let mut pair = Pair::synced(&loose);
    pair.pass_time();
    write_small(&mut pair, 0);
    assert!(pair.kept > 0);
    pair
}

fn write_small(pair: &mut Pair, offset: u64) {
    let write = Operation::Write {
        range: ByteRange::new(offset, 512),
        payload: filled(1, 512),
        fua: false,
    };
    let write = pair.submit(0, write);
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
}

#[test]
fn several_writes_leave_together() {
    let mut pair = keeping();
    for write in 1..limits::SEND_OPERATIONS {
        assert!(pair.kept >= write, "{} kept", pair.kept);
        write_small(&mut pair, 512 * write as u64);
    }
    assert_eq!(pair.kept, 0);
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_large_write_takes_along_what_was_kept() {
    let mut pair = keeping();
    let payload = filled(7, limits::SEND_BYTES as usize);
    pair.submit(
        0,
        Operation::Write {
            range: ByteRange::new(1 << 20, payload.0.len() as u32),
            payload,
            fua: false,
        },
    );
    assert_eq!(pair.kept, 0);
}

#[test]
fn a_lone_write_leaves_when_its_time_has_come() {
    let mut pair = keeping();
    let due = pair.nodes[0].engine.next_timeout().expect("it is timed");
    assert!(due <= pair.now.after(limits::SEND_GATHER_MS));
    pair.now = due;
    pair.event(0, Event::Tick);
    assert_eq!(pair.kept, 0);
}

#[test]
fn what_a_client_makes_durable_is_on_its_way() {
    let mut pair = keeping();
    pair.submit(0, Operation::Flush);
    assert_eq!(pair.kept, 0);
}

#[test]
fn a_write_that_is_to_be_durable_takes_along_what_was_kept() {
    let mut pair = keeping();
    let write = Operation::Write {
        range: ByteRange::new(4096, 512),
        payload: filled(1, 512),
        fua: true,
    };
    pair.submit(0, write);
    assert_eq!(pair.kept, 0);
}

#[test]
fn a_node_that_leaves_keeps_nothing() {
    let mut pair = keeping();
    let disconnect = Command::Disconnect {
        peer: NodeId(1),
        force: true,
    };
    pair.hold_back = Some(|_| true);
    pair.give(0, disconnect);
    assert_eq!(pair.kept, 0);
}

#[test]
fn what_was_kept_leaves_when_the_peer_needs_a_resync() {
    let mut pair = keeping();
    // The resync's reads never end, so that no data of its own takes along what was kept.
    pair.nodes[0].freeze = vec![Io::Read];
    pair.give(1, Command::Invalidate { volume: VOLUME });
    let peer_disk = pair.nodes[0].engine.status().peers[0].devices[0].peer_disk;
    assert_eq!(peer_disk, DiskState::Inconsistent);
    assert_eq!(pair.kept, 0);
    pair.thaw(0);
    pair.assert_equal_and_in_sync();
}

#[test]
fn nothing_is_kept_while_somebody_waits() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    assert_eq!(pair.kept, 0, "protocol C");

    let mut pair = keeping();
    pair.nodes[0].fail_writes = true;
    let write = pair.start_write(0, 8192, 3);
    assert_eq!(pair.kept, 0, "the disk is lost");
    assert_eq!(pair.nodes[0].completions.get(&write), Some(&Ok(None)));
    pair.write(0, 12288, 4);
    assert_eq!(pair.kept, 0, "the peer alone has it");
    pair.nodes[0].fail_writes = false;

    let mut pair = keeping();
    pair.cut();
    pair.write(0, 1 << 20, 2);
    pair.nodes[1].freeze = vec![Io::Write];
    pair.heal();
    pair.start_write(0, 8 << 20, 3);
    assert_eq!(pair.kept, 0, "a resync runs");
    pair.thaw(1);
}
