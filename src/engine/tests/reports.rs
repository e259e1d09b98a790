//! What a Secondary reports of the operations that it received, and when.

mod harness;

use harness::*;
use qrbd_engine::config::VolumeConfig;
use qrbd_engine::limits;
use qrbd_engine::state::DiskState;
use qrbd_engine::units::{ByteRange, EXTENT_BYTES};
use qrbd_engine::wire::Message;
use qrbd_engine::wire::message::Protocol;
use qrbd_engine::{Command, Event, Operation, RequestId};

const FAR: u64 = 20 << 20;

/// Blocks that are written one after the other, each a dependent write.
const WRITES: u64 = 100;

fn pair_with(protocol: Protocol) -> Pair {
    let mut pair = Pair::synced(&|peer| peer.protocol = protocol);
    pair.write(0, FAR, 1);
    for _ in 0..3 {
        pair.pass_time();
    }
    pair.reports.clear();
    pair
}

fn write_one_by_one(pair: &mut Pair) {
    for index in 0..WRITES {
        pair.write(0, FAR + index * 4096, 2);
    }
}

/// Operations reported as written, and messages that it took.
fn written(pair: &Pair) -> (u64, usize) {
    let counts = pair.reports.iter().filter_map(|message| match message {
        Message::Written { count, .. } => Some(u64::from(*count)),
        _ => None,
    });
    (counts.clone().sum(), counts.count())
}

fn has_unreported(pair: &Pair) -> bool {
    written(pair).0 < WRITES
}

#[test]
fn under_protocol_a_reports_of_written_blocks_are_gathered_for_a_moment() {
    let mut pair = pair_with(Protocol::A);
    write_one_by_one(&mut pair);
    let (told, messages) = written(&pair);
    assert!(
        told < WRITES && messages <= WRITES as usize / limits::REPORT_OPERATIONS,
        "{told} writes in {messages} reports"
    );
    let due = pair.nodes[1]
        .engine
        .next_timeout()
        .expect("a report is due");
    assert!(due.since(pair.now) <= limits::REPORT_GATHER_MS);
    pair.pass_time();
    assert_eq!(written(&pair).0, WRITES);
    pair.assert_equal_and_in_sync();
}

/// A client that touches another extent with each write waits for no gathering, though the log is the smallest there is.
#[test]
fn an_activity_log_does_not_starve_for_gathered_reports() {
    for protocol in [Protocol::A, Protocol::B] {
        for at_once in [1, 5, 30] {
            let mut pair = pair_with(protocol);
            for node in &mut pair.nodes {
                let mut volume = VolumeConfig::new(VOLUME);
                volume.al_extents = limits::MIN_AL_EXTENTS;
                assert!(node.engine.reconfigure_volume(volume));
            }
            let extents = DEVICE_BYTES / EXTENT_BYTES - 1;
            for round in 0..20 {
                for index in 0..at_once {
                    let offset = (round * at_once + index) * 7 % extents * EXTENT_BYTES;
                    let request = Event::Request {
                        id: RequestId(1000 + index),
                        volume: VOLUME,
                        operation: Operation::Write {
                            range: ByteRange::new(offset, 4096),
                            payload: filled(4, 4096),
                            fua: false,
                        },
                    };
                    pair.nodes[0].engine.handle(pair.now, request);
                }
                pair.run();
                for index in 0..at_once {
                    let answer = pair.nodes[0].completions.remove(&(1000 + index));
                    assert_eq!(answer, Some(Ok(None)), "{protocol:?}, {at_once} at once");
                }
            }
            for _ in 0..3 {
                pair.pass_time();
            }
            pair.assert_equal_and_in_sync();
        }
    }
}

#[test]
fn under_protocol_a_much_data_is_reported_at_once() {
    let mut pair = pair_with(Protocol::A);
    let length = limits::REPORT_BYTES as usize;
    pair.submit(
        0,
        Operation::Write {
            range: ByteRange::new(FAR, length as u32),
            payload: filled(3, length),
            fua: false,
        },
    );
    assert_eq!(written(&pair), (1, 1));
}

#[test]
fn under_protocol_b_what_is_written_is_reported_with_the_next_receipt() {
    let mut pair = pair_with(Protocol::B);
    write_one_by_one(&mut pair);
    let receipts = (pair.reports.iter())
        .filter(|message| matches!(message, Message::Received { .. }))
        .count();
    assert_eq!(receipts as u64, WRITES, "a client waits for each");
    let (told, messages) = written(&pair);
    assert!(told >= WRITES - 1 && messages <= receipts);
    for (index, message) in pair.reports.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &pair.reports[before]);
        assert!(
            !matches!(message, Message::Written { .. })
                || matches!(before, Some(Message::Received { .. })),
            "a packet of its own: {before:?}, {message:?}"
        );
    }
    pair.pass_time();
    assert!(!has_unreported(&pair));
    pair.assert_equal_and_in_sync();
}

#[test]
fn under_protocol_c_every_write_is_reported_at_once() {
    let mut pair = pair_with(Protocol::C);
    write_one_by_one(&mut pair);
    assert_eq!(written(&pair), (WRITES, WRITES as usize));
}

#[test]
fn a_primary_without_a_disk_is_told_of_every_write_at_once_under_every_protocol() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = pair_with(protocol);
        pair.detach(0).unwrap();
        assert_eq!(pair.disk(0), DiskState::Diskless);
        pair.reports.clear();
        write_one_by_one(&mut pair);
        assert_eq!(written(&pair).0, WRITES, "{protocol:?}");
        assert_eq!(pair.read(0, FAR), 2);
    }
}

#[test]
fn gathered_reports_of_a_connection_that_ended_are_not_sent_on_the_next_one() {
    let mut pair = pair_with(Protocol::A);
    write_one_by_one(&mut pair);
    assert!(has_unreported(&pair));
    pair.cut();
    pair.reports.clear();
    pair.heal();
    for _ in 0..3 {
        pair.pass_time();
    }
    assert_eq!(written(&pair).0, 0);
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_demotion_waits_for_gathered_reports_and_no_longer() {
    let mut pair = pair_with(Protocol::A);
    write_one_by_one(&mut pair);
    assert!(has_unreported(&pair));
    let demote = pair.give(0, Command::Demote { force: false });
    let began = pair.now;
    while !pair.nodes[0].commands.contains_key(&demote) {
        pair.pass_time();
        assert!(pair.now.since(began) <= 10 * limits::REPORT_GATHER_MS);
    }
    assert_eq!(pair.nodes[0].commands.get(&demote), Some(&Ok(())));
    assert!(!has_unreported(&pair));
    pair.assert_equal_and_in_sync();
}

#[test]
fn lone_writes_are_durable_by_themselves_only_where_nobody_waits_for_their_reports() {
    for (protocol, expected) in [
        (Protocol::A, WRITES as usize),
        (Protocol::B, WRITES as usize),
        (Protocol::C, 0),
    ] {
        let mut pair = pair_with(protocol);
        pair.nodes[1].durable_writes = 0;
        write_one_by_one(&mut pair);
        let durable = pair.nodes[1].durable_writes;
        // Before the first one nothing is known of the client.
        assert!(
            (expected.saturating_sub(1)..=expected).contains(&durable),
            "{protocol:?}: {durable}"
        );
        pair.detach(0).unwrap();
        pair.nodes[1].durable_writes = 0;
        write_one_by_one(&mut pair);
        assert_eq!(
            pair.nodes[1].durable_writes, 0,
            "a client of a Primary without a disk waits"
        );
    }
}
