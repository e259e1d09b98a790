//! Two engines joined by a perfect network and perfect disks: the sequences that every user meets first.
//!
//! Faults, delays and crashes are the simulator's business; here each step is followed to its end before the next.

mod harness;

use harness::*;
use qrbd_engine::api::{ClientError, Event};
use qrbd_engine::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use qrbd_engine::units::{ByteRange, NodeId};
use qrbd_engine::wire::Message;
use qrbd_engine::{Command, Operation};

#[test]
fn a_forced_primary_syncs_a_fresh_pair_and_mirrors_writes() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 4096, 1);
    pair.write(0, 5 << 20, 2);
    assert_eq!(pair.nodes[1].disk.borrow()[4096], 1);
    assert_eq!(pair.read(0, 5 << 20), 2);
    assert_eq!(
        pair.command(1, Command::Promote { force: false }),
        Err(Refusal::TwoPrimaries)
    );
    pair.assert_equal_and_in_sync();
}

#[test]
fn roles_change_hands_without_a_resync() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 9);
    let before = pair.resync_bytes;
    assert_eq!(pair.command(0, Command::Demote { force: false }), Ok(()));
    assert_eq!(pair.command(1, Command::Promote { force: false }), Ok(()));
    assert_eq!(pair.nodes[1].engine.status().role, Role::Primary);
    assert_eq!(pair.read(1, 0), 9);
    pair.write(1, 0, 10);
    assert_eq!(pair.nodes[0].disk.borrow()[0], 10);
    assert_eq!(pair.resync_bytes, before);
}

#[test]
fn writes_of_a_lone_primary_follow_by_bitmap() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    // The idle barrier makes the first write durable on both nodes, so that the cut finds nothing unconfirmed.
    pair.pass_time();
    pair.cut();
    pair.write(0, 4096, 2);
    pair.write(0, 9 << 20, 3);
    let before = pair.resync_bytes;
    pair.heal();
    pair.assert_equal_and_in_sync();
    assert_eq!(
        pair.resync_bytes - before,
        8192,
        "exactly what was written alone"
    );
    assert!(
        pair.nodes[0].rules.contains(&"bitmap-self"),
        "{:?}",
        pair.nodes[0].rules
    );
}

#[test]
fn an_idle_outage_needs_no_resync() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.pass_time();
    pair.cut();
    let before = pair.resync_bytes;
    pair.heal();
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.resync_bytes, before);
}

#[test]
fn a_word_about_an_earlier_session_is_not_about_this_one() {
    let mut pair = Pair::synced(&plain);
    let peer = NodeId(1);
    let earlier = pair.nodes[0].session.unwrap();
    pair.cut();
    pair.heal();
    let deadline = pair.nodes[0].engine.next_timeout();
    let session = pair.nodes[0].session.unwrap();
    let mut hear = |session| {
        let word = Event::NobodyListens { peer, session };
        pair.nodes[0].engine.handle(pair.now, word);
        pair.nodes[0].engine.next_timeout()
    };
    assert_eq!(hear(earlier), deadline);
    assert!(hear(session) < deadline, "that of this one counts");
}

#[test]
fn the_survivor_of_a_dead_primary_is_promoted_and_the_returning_node_follows_by_bitmap() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.restart(0, &plain);
    assert_eq!(pair.command(1, Command::Promote { force: false }), Ok(()));
    assert_eq!(pair.read(1, 0), 1);
    pair.write(1, 4096, 2);
    let before = pair.resync_bytes;
    pair.up(0);
    pair.assert_equal_and_in_sync();
    assert!(
        pair.resync_bytes - before <= 9 * (4 << 20) + 8192,
        "bounded by the activity log"
    );
    assert_eq!(pair.nodes[0].disk.borrow()[4096], 2);
}

#[test]
fn two_lone_primaries_are_a_split_brain_and_discard_my_data_resolves_it() {
    let mut pair = Pair::synced(&plain);
    pair.cut();
    pair.write(0, 0, 1);
    assert_eq!(pair.command(1, Command::Promote { force: false }), Ok(()));
    pair.write(1, 4096, 2);
    pair.heal();
    assert_eq!(
        (pair.connection(0), pair.connection(1)),
        (ConnectionState::StandAlone, ConnectionState::StandAlone)
    );
    assert_eq!(pair.nodes[0].disk.borrow()[4096], 0);
    assert_eq!(
        pair.command(
            1,
            Command::Connect {
                peer: NodeId(0),
                discard_my_data: true
            }
        ),
        Err(Refusal::DiscardNotAllowed)
    );
    assert_eq!(pair.command(1, Command::Demote { force: false }), Ok(()));
    pair.connect(1, true);
    pair.connect(0, false);
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[1].disk.borrow()[0], 1);
    assert_eq!(pair.nodes[1].disk.borrow()[4096], 0);
}

#[test]
fn a_primary_whose_disk_fails_goes_on_through_the_peer() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.nodes[0].fail_writes = true;
    pair.write(0, 4096, 2);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    assert!(pair.nodes[0].detached);
    assert_eq!(pair.read(0, 4096), 2);
    pair.write(0, 8192, 3);
    assert_eq!(pair.nodes[1].disk.borrow()[8192], 3);
    pair.nodes[0].fail_writes = false;
    pair.attach(0).unwrap();
    pair.assert_equal_and_in_sync();
    pair.write(0, 8192, 4);
    assert_eq!(
        (
            pair.nodes[0].disk.borrow()[8192],
            pair.nodes[1].disk.borrow()[8192]
        ),
        (4, 4)
    );
}

#[test]
fn a_secondary_whose_disk_fails_does_not_stop_the_primary() {
    let mut pair = Pair::synced(&plain);
    pair.nodes[1].fail_writes = true;
    pair.write(0, 4096, 2);
    pair.write(0, 8192, 3);
    assert_eq!(pair.disk(1), DiskState::Diskless);
    pair.nodes[1].fail_writes = false;
    pair.attach(1).unwrap();
    pair.assert_equal_and_in_sync();
}

#[test]
fn invalidate_makes_the_node_target_of_a_full_sync() {
    let mut pair = Pair::synced(&plain);
    let before = pair.resync_bytes;
    assert_eq!(
        pair.command(1, Command::Invalidate { volume: VOLUME }),
        Ok(())
    );
    pair.assert_equal_and_in_sync();
    assert!(pair.resync_bytes - before > DEVICE_BYTES / 2);
    let before = pair.resync_bytes;
    assert_eq!(
        pair.command(
            0,
            Command::InvalidateRemote {
                volume: VOLUME,
                peer: NodeId(1)
            }
        ),
        Ok(())
    );
    pair.assert_equal_and_in_sync();
    assert!(pair.resync_bytes - before > DEVICE_BYTES / 2);
}

#[test]
fn a_word_that_was_given_voids_the_question_of_a_command_that_is_over() {
    let invalidate = || Command::Invalidate { volume: VOLUME };
    let mut pair = Pair::synced(&plain);
    pair.command(0, Command::Demote { force: false }).unwrap();
    pair.hold_back = Some(|message| matches!(message, Message::InvalidateQuestion { .. }));
    let refused = Err(Refusal::InTransientState);
    assert_eq!(
        pair.command(0, invalidate()),
        refused,
        "the question is lost"
    );
    pair.hold_back = Some(|message| matches!(message, Message::InvalidateAnswer { .. }));
    let commands = [
        (1, pair.give(1, invalidate())),
        (0, pair.give(0, invalidate())),
    ];
    pair.release();
    assert!(
        (0..2).any(|node| pair.disk(node) == DiskState::UpToDate),
        "both gave their data up"
    );
    for (node, command) in commands {
        while !pair.nodes[node].commands.contains_key(&command) {
            pair.pass_time();
        }
    }
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_refusal_counts_for_the_command_that_asked() {
    let mut pair = Pair::synced(&plain);
    pair.command(0, Command::Demote { force: false }).unwrap();
    pair.hold_back = Some(|message| matches!(message, Message::InvalidateAnswer { .. }));
    let first = pair.give(1, Command::Invalidate { volume: VOLUME });
    let second = pair.give(0, Command::Invalidate { volume: VOLUME });
    while !pair.nodes[1].commands.contains_key(&first)
        || !pair.nodes[0].commands.contains_key(&second)
    {
        pair.pass_time();
    }
    // What either said comes when nobody waits for it any more.
    pair.release();
    for node in [1, 0] {
        let ended = pair.command(node, Command::Invalidate { volume: VOLUME });
        assert_eq!(ended, Ok(()), "node {node}");
        pair.assert_equal_and_in_sync();
    }
}

#[test]
fn the_initial_sync_can_be_skipped() {
    let mut pair = Pair::new(&plain);
    pair.up(0);
    pair.up(1);
    assert_eq!(
        pair.command(
            0,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: true
            }
        ),
        Ok(())
    );
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.resync_bytes, 0);
    assert_eq!(pair.command(0, Command::Promote { force: false }), Ok(()));
    pair.write(0, 0, 1);
    assert_eq!(
        pair.command(
            0,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: true
            }
        ),
        Err(Refusal::NeedStandAlone)
    );
    pair.assert_equal_and_in_sync();
}

#[test]
fn an_outdated_disk_is_not_promoted_without_force() {
    let mut pair = Pair::synced(&plain);
    assert_eq!(
        pair.command(1, Command::Outdate { volume: VOLUME }),
        Err(Refusal::ConnectedOutdates)
    );
    assert_eq!(
        pair.command(
            1,
            Command::Disconnect {
                peer: NodeId(0),
                force: false
            }
        ),
        Ok(())
    );
    assert_eq!(pair.command(1, Command::Outdate { volume: VOLUME }), Ok(()));
    assert_eq!(
        pair.command(1, Command::Promote { force: false }),
        Err(Refusal::NoUpToDateDisk)
    );
    pair.write(0, 0, 7);
    pair.connect(1, false);
    pair.assert_equal_and_in_sync();
}

#[test]
fn every_protocol_carries_flush_and_fua_discard_and_zeroes() {
    use qrbd_engine::wire::message::Protocol;
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = Pair::synced(&move |peer| peer.protocol = protocol);
        let range = ByteRange::new(0, 8192);
        let operations = [
            Operation::Write {
                range,
                payload: filled(3, 8192),
                fua: true,
            },
            Operation::Flush,
            Operation::Discard {
                range: ByteRange::new(4096, 4096),
                fua: false,
            },
            Operation::WriteZeroes {
                range: ByteRange::new(512, 512),
                may_unmap: false,
                fua: true,
            },
            Operation::Flush,
        ];
        for operation in operations {
            let id = pair.submit(0, operation);
            assert_eq!(
                pair.nodes[0].completions.get(&id),
                Some(&Ok(None)),
                "{protocol:?}"
            );
        }
        pair.pass_time();
        pair.assert_equal_and_in_sync();
        assert_eq!(pair.nodes[1].disk.borrow()[0], 3);
        assert_eq!(pair.nodes[1].disk.borrow()[512], 0);
        assert_eq!(pair.nodes[1].disk.borrow()[4096], 0);
        assert_eq!(
            pair.nodes[0].engine.status().peers[0].log_entries,
            0,
            "everything durable retires"
        );
    }
}

#[test]
fn sync_can_be_paused_and_resumed_from_either_side() {
    let mut pair = Pair::synced(&plain);
    for side in 0..2 {
        let peer = NodeId(1 - side as u8);
        assert_eq!(
            pair.command(
                side,
                Command::PauseSync {
                    volume: VOLUME,
                    peer
                }
            ),
            Ok(())
        );
        assert_eq!(
            pair.command(
                side,
                Command::PauseSync {
                    volume: VOLUME,
                    peer
                }
            ),
            Err(Refusal::PauseAlreadySet)
        );
        pair.cut();
        pair.write(0, 0, 20 + side as u8);
        pair.heal();
        assert_eq!(pair.replication(0), ReplicationState::PausedSyncS);
        assert_eq!(pair.replication(1), ReplicationState::PausedSyncT);
        pair.write(0, 8 << 20, 30);
        assert_eq!(
            pair.nodes[1].disk.borrow()[8 << 20],
            30,
            "mirrored while paused"
        );
        assert_eq!(
            pair.command(
                side,
                Command::ResumeSync {
                    volume: VOLUME,
                    peer
                }
            ),
            Ok(())
        );
        pair.assert_equal_and_in_sync();
    }
}

#[test]
fn a_peer_that_was_told_to_skip_its_initial_sync_must_be_fenced_when_it_is_lost() {
    let mut pair = Pair::new(&stonith);
    // What the nodes say of their disks is on its way for long.
    pair.hold_back = Some(|message| {
        let Message::PeerState { disks, .. } = message else {
            return false;
        };
        disks.iter().any(|&(_, disk)| disk == DiskState::UpToDate)
    });
    pair.up(0);
    pair.up(1);
    let skip = Command::NewCurrentUuid {
        volume: VOLUME,
        clear_bitmap: true,
    };
    assert_eq!(pair.command(0, skip), Ok(()));
    assert_eq!(pair.disk(0), DiskState::UpToDate);
    assert_eq!(pair.disk(1), DiskState::UpToDate);
    let peer_disk = |pair: &Pair| pair.nodes[1].engine.status().peers[0].devices[0].peer_disk;
    assert_eq!(peer_disk(&pair), DiskState::Inconsistent);
    pair.cut();
    assert_eq!(peer_disk(&pair), DiskState::DUnknown);
}

#[test]
fn a_target_that_was_told_of_the_end_of_its_resync_must_be_fenced_when_it_is_lost() {
    let mut pair = Pair::new(&stonith);
    // What the target says when it is UpToDate is on its way for long.
    pair.hold_back = Some(|message| match message {
        Message::ResyncFinished { .. } => true,
        Message::PeerState { role, disks } => {
            *role == Role::Secondary && disks.iter().any(|&(_, disk)| disk == DiskState::UpToDate)
        }
        _ => false,
    });
    pair.up(0);
    pair.up(1);
    assert_eq!(pair.command(0, Command::Promote { force: true }), Ok(()));
    for _ in 0..20 {
        pair.pass_time();
    }
    // The Primary has not heard that the target is UpToDate.
    assert_eq!(pair.disk(1), DiskState::UpToDate);
    let peer_disk = |pair: &Pair| pair.nodes[0].engine.status().peers[0].devices[0].peer_disk;
    assert_eq!(peer_disk(&pair), DiskState::Inconsistent);
    pair.cut();
    assert_eq!(peer_disk(&pair), DiskState::DUnknown);
    assert!(pair.nodes[0].engine.status().suspended_fencing);
}

#[test]
fn a_write_begun_on_old_data_is_not_answered_as_good_when_they_prove_to_be_the_newest() {
    let mut pair = Pair::synced(&plain);
    // The peer cannot record that the Primary's clients go on with its data alone.
    pair.nodes[1].fail_metadata = true;
    pair.detach(0).unwrap();
    assert_eq!(pair.disk(1), DiskState::Diskless);
    pair.nodes[1].fail_metadata = false;
    pair.cut();
    pair.attach(0).unwrap();
    assert_eq!(pair.disk(0), DiskState::Outdated);
    pair.nodes[0].freeze = vec![Io::Write];
    let write = pair.start_write(0, 4096, 9);
    pair.attach(1).unwrap();
    pair.heal();
    assert_eq!(pair.disk(0), DiskState::UpToDate, "nothing newer");
    pair.thaw(0);
    let answer = pair.nodes[0].completions.get(&write);
    assert_eq!(
        answer,
        Some(&Err(ClientError::Io)),
        "no generation tells that the peer misses it"
    );
    pair.write(0, 8192, 7);
    pair.assert_equal_and_in_sync();
}
