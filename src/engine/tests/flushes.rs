//! Flushes of clients, and those that begin before the client asks.

mod harness;

use harness::*;
use qrbd_engine::Operation;
use qrbd_engine::state::ConnectionState;
use qrbd_engine::wire::Message;
use qrbd_engine::wire::message::Protocol;

const FAR: u64 = 20 << 20;

/// A pair whose client flushes after every write, and has done so a few times; local flushes freeze from here on.
fn steady_pair() -> Pair {
    let mut pair = Pair::synced(&|peer| peer.protocol = Protocol::A);
    for value in 1..5 {
        pair.write(0, FAR, value);
        let flush = pair.submit(0, Operation::Flush);
        assert!(is_done(&pair, flush));
    }
    pair.nodes[0].freeze = vec![Io::Flush];
    pair
}

fn is_done(pair: &Pair, request: u64) -> bool {
    pair.nodes[0].completions.get(&request) == Some(&Ok(None))
}

fn frozen(pair: &Pair) -> usize {
    pair.nodes[0].frozen.len()
}

#[test]
fn flush_that_is_expected_begins_with_the_end_of_the_write_and_serves_the_client() {
    let mut pair = steady_pair();
    pair.write(0, FAR, 9);
    assert_eq!(frozen(&pair), 1, "it runs before the client asks");
    let flush = pair.submit(0, Operation::Flush);
    assert_eq!(frozen(&pair), 1, "no second one");
    assert!(!is_done(&pair, flush), "it has not ended");
    pair.thaw_one(0);
    assert!(is_done(&pair, flush));
}

#[test]
fn flush_that_ended_before_the_client_asks_serves_it_at_once() {
    let mut pair = steady_pair();
    pair.write(0, FAR, 9);
    pair.thaw_one(0);
    let flush = pair.submit(0, Operation::Flush);
    assert!(is_done(&pair, flush));
    let again = pair.submit(0, Operation::Flush);
    assert!(is_done(&pair, again), "nothing was written since");
    assert_eq!(frozen(&pair), 0);
}

#[test]
fn write_that_ended_after_an_expected_flush_began_is_flushed_again() {
    let mut pair = steady_pair();
    pair.write(0, FAR, 9);
    pair.write(0, FAR + 4096, 9);
    let flush = pair.submit(0, Operation::Flush);
    assert_eq!(frozen(&pair), 1);
    pair.thaw_one(0);
    assert!(!is_done(&pair, flush), "it began before the second write");
    assert_eq!(frozen(&pair), 1, "another one runs");
    pair.thaw_one(0);
    assert!(is_done(&pair, flush));
}

#[test]
fn write_that_ended_after_an_expected_flush_ended_is_flushed_again() {
    let mut pair = steady_pair();
    pair.write(0, FAR, 9);
    pair.thaw_one(0);
    pair.write(0, FAR + 4096, 9);
    let flush = pair.submit(0, Operation::Flush);
    assert!(!is_done(&pair, flush));
    pair.thaw_one(0);
    assert!(is_done(&pair, flush));
}

#[test]
fn fua_write_is_flushed_by_itself_although_a_flush_runs() {
    let mut pair = steady_pair();
    pair.write(0, FAR, 9);
    assert_eq!(frozen(&pair), 1);
    let fua = pair.submit(
        0,
        Operation::Write {
            range: qrbd_engine::units::ByteRange::new(FAR, 4096),
            payload: filled(7, 4096),
            fua: true,
        },
    );
    pair.thaw_one(0);
    assert!(!is_done(&pair, fua));
    pair.thaw_one(0);
    assert!(is_done(&pair, fua));
}

#[test]
fn disk_that_was_attached_anew_is_flushed_although_nothing_was_written_to_it() {
    let mut pair = steady_pair();
    pair.nodes[0].freeze.clear();
    pair.detach(0).unwrap();
    pair.attach(0).unwrap();
    pair.nodes[0].freeze = vec![Io::Flush];
    let flush = pair.submit(0, Operation::Flush);
    assert!(!is_done(&pair, flush));
    pair.thaw(0);
    assert!(is_done(&pair, flush));
}

#[test]
fn client_without_a_rhythm_causes_no_flush() {
    let mut pair = Pair::synced(&|peer| peer.protocol = Protocol::A);
    pair.nodes[0].freeze = vec![Io::Flush];
    for value in 1..20 {
        pair.write(0, FAR, value);
        assert_eq!(frozen(&pair), 0);
    }
}

/// A pair under protocol C whose client flushes after every write, and has done so a few times.
fn steady_synchronous_pair() -> Pair {
    let mut pair = Pair::synced(&plain);
    for value in 1..6 {
        pair.write(0, FAR, value);
        let flush = pair.submit(0, Operation::Flush);
        assert!(is_done(&pair, flush));
    }
    pair
}

fn barriers_acked(pair: &Pair) -> usize {
    let acked = |message: &&Message<Bytes>| matches!(message, Message::BarrierAck { .. });
    pair.reports.iter().filter(acked).count()
}

#[test]
fn peer_makes_a_write_durable_before_the_flush_that_is_expected() {
    let mut pair = steady_synchronous_pair();
    pair.reports.clear();
    pair.write(0, FAR, 9);
    assert_eq!(barriers_acked(&pair), 1, "the barrier came with the write");
    // The client's flush waits for nobody: nothing travels any more.
    pair.hold_back = Some(|_| true);
    let flush = pair.submit(0, Operation::Flush);
    assert!(is_done(&pair, flush));
    assert!(pair.held_back.is_empty());
}

#[test]
fn write_beyond_the_rhythm_is_in_an_epoch_of_its_own_that_the_flush_waits_for() {
    let mut pair = steady_synchronous_pair();
    pair.write(0, FAR, 9);
    pair.write(0, FAR + 4096, 9);
    pair.hold_back = Some(|message| matches!(message, Message::BarrierAck { .. }));
    let flush = pair.submit(0, Operation::Flush);
    assert!(
        !is_done(&pair, flush),
        "the peer did not say that the second write is durable"
    );
    pair.release();
    assert!(is_done(&pair, flush));
    pair.assert_equal_and_in_sync();
}

#[test]
fn expected_flush_closes_no_epoch_where_the_client_does_not_wait_for_the_peer() {
    let mut pair = steady_pair();
    pair.hold_back = Some(|message| matches!(message, Message::Barrier { .. }));
    pair.write(0, FAR, 9);
    assert!(pair.held_back.is_empty());
}

#[test]
fn flush_of_a_primary_without_a_disk_covers_what_the_peer_wrote_in_an_earlier_session() {
    let mut pair = Pair::synced(&plain);
    pair.detach(0).unwrap();
    for value in 1..3 {
        pair.write(0, FAR, value);
        let flush = pair.submit(0, Operation::Flush);
        assert!(is_done(&pair, flush));
    }
    // Two in one epoch, so that the peer does not know that there is no third.
    pair.hold_back = Some(|message| matches!(message, Message::Written { .. }));
    let writes = [FAR, FAR + 4096].map(|offset| pair.start_write(0, offset, 9));
    pair.release();
    assert!(writes.iter().all(|&write| is_done(&pair, write)));
    pair.nodes[1].freeze = vec![Io::Flush];
    pair.cut();
    pair.heal();
    assert_eq!(pair.connection(0), ConnectionState::Connected);
    let flush = pair.submit(0, Operation::Flush);
    assert!(!is_done(&pair, flush), "the peer's disk was not flushed");
    pair.thaw(1);
    assert!(is_done(&pair, flush));
}
