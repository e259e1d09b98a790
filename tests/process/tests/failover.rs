//! The Primary dies in the middle of writes: promotion of the other one, every acknowledged write there, resync by bitmap, equal disks.

use std::time::Duration;

use qrbd_process_tests::configuration::{Options, Protocol};
use qrbd_process_tests::journal::assert_ordered_prefix;
use qrbd_process_tests::load::{self, Load};
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{DISK_BYTES, Pair, PairOptions, SYNC_LIMIT};

/// For a survivor to notice a dead Primary and to be promoted.
const PROMOTION_LIMIT: Duration = Duration::from_secs(15);
/// Extents of the activity log: a resync after a crash copies at most this much, plus what was written alone.
const SMALL_LOG_EXTENTS: u64 = 9;
const EXTENT_BYTES: u64 = 4 << 20;
/// Several times the activity log, so that a full copy is told from a resync.
const LARGE_DISK_BYTES: u64 = 4 * DISK_BYTES;

/// With A an extent stays in the log until the peer has its writes: a small log would hold the Primary back to the pace of the link.
fn al_extents(protocol: Protocol) -> u64 {
    match protocol {
        Protocol::A => LARGE_DISK_BYTES / EXTENT_BYTES,
        Protocol::B | Protocol::C => SMALL_LOG_EXTENTS,
    }
}

fn options(protocol: Protocol) -> PairOptions {
    let disk = format!("al-extents {};", al_extents(protocol));
    let resource = Options {
        protocol,
        disk,
        ..Options::default()
    };
    PairOptions {
        resource,
        disk_bytes: Some(LARGE_DISK_BYTES),
        ..PairOptions::default()
    }
}

/// Kills the Primary under load after about `records` records, and promotes the other.
fn crash_and_promote(
    primary: &mut Node,
    survivor: &Node,
    mut load: Load,
    records: u64,
) -> std::path::PathBuf {
    load.wait_records(records);
    primary.kill();
    let journal = load.finish(Duration::from_secs(30));
    survivor.promote(PROMOTION_LIMIT);
    journal
}

/// Brings the dead node back and checks that the resync copied little.
fn return_and_resync(returning: &mut Node, survivor: &Node, protocol: Protocol) {
    let before = survivor.status();
    returning.start_and_up();
    let after = survivor.wait_healthy(SYNC_LIMIT);
    returning.wait_healthy(SYNC_LIMIT);
    let copied = after.sent_bytes() - before.sent_bytes();
    // What was written alone is marked already; the activity log of the dead node adds its extents.
    let most = al_extents(protocol) * EXTENT_BYTES + before.out_of_sync_bytes();
    assert!(copied > 0, "writes were in flight: something differs");
    assert!(
        copied <= most,
        "{copied} bytes copied, at most {most} expected of {}",
        after.size_bytes()
    );
}

#[test]
fn acknowledged_writes_survive_the_primary_s_death_again_and_again_with_protocol_c() {
    let mut pair = Pair::ready(&options(Protocol::C));
    for (round, records) in [40, 3_000, 700, 1_900].into_iter().enumerate() {
        let (primary, survivor) = match round % 2 {
            0 => (&mut pair.alice, &mut pair.bob),
            _ => (&mut pair.bob, &mut pair.alice),
        };
        let load = Load::until_disconnect(&pair.stage, primary, "load");
        // The journal goes on from round to round.
        let already = load.records();
        let journal = crash_and_promote(primary, survivor, load, already + records);
        load::verify(survivor, &journal);
        load::write(&pair.stage, survivor, "load", &["--writes", "100"]);
        return_and_resync(primary, survivor, Protocol::C);
        load::verify(survivor, &journal);
        survivor.must_run();
        pair.assert_equal_disks();
    }
}

#[test]
fn writes_with_fua_survive_the_primary_s_death() {
    let mut pair = Pair::ready(&options(Protocol::C));
    let load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &["--until-disconnect", "--fua", "--block-size", "65536"],
    );
    let journal = crash_and_promote(&mut pair.alice, &pair.bob, load, 300);
    load::verify(&pair.bob, &journal);
    return_and_resync(&mut pair.alice, &pair.bob, Protocol::C);
    pair.assert_equal_disks();
}

#[test]
fn a_promotion_hears_from_the_dead_primary_s_machine_that_nobody_listens() {
    let mut pair = Pair::ready(&options(Protocol::C));
    pair.alice.kill();
    pair.bob.promote(PROMOTION_LIMIT);
    assert!(
        pair.bob
            .log()
            .contains("its machine says that nobody listens"),
        "{}",
        pair.bob.log()
    );
}

/// Rounds of a cut link, crash, promotion and return; what survives is a state that the Primary's disk passed through. Gives the number
/// of blocks whose newest acknowledged write was lost.
fn survivors_are_a_prefix(protocol: Protocol) -> u64 {
    let mut pair = Pair::ready(&PairOptions {
        relay: true,
        ..options(protocol)
    });
    pair.relay().delay(Duration::from_millis(5));
    let mut lost = 0;
    for (round, records) in [60, 2_500, 900].into_iter().enumerate() {
        let (primary, survivor) = match round % 2 {
            0 => (&mut pair.alice, &mut pair.bob),
            _ => (&mut pair.bob, &mut pair.alice),
        };
        let mut load = Load::until_disconnect(&pair.stage, primary, &format!("load-{round}"));
        load.wait_records(records);
        // The last moments of the Primary do not reach its peer.
        pair.relay.as_ref().expect("made with a relay").cut_both();
        std::thread::sleep(Duration::from_millis(60));
        primary.kill();
        let journal = load.finish(Duration::from_secs(30));
        survivor.promote(PROMOTION_LIMIT);
        let survivors = assert_ordered_prefix(survivor, &journal);
        eprintln!("protocol {protocol:?}: {survivors:?}");
        lost += survivors.lost;
        pair.relay.as_ref().expect("made with a relay").heal();
        return_and_resync(primary, survivor, protocol);
        pair.assert_equal_disks();
        let (primary, survivor) = match round % 2 {
            0 => (&pair.alice, &pair.bob),
            _ => (&pair.bob, &pair.alice),
        };
        // What the old Primary alone had is gone on both, and the order still holds.
        assert_eq!(assert_ordered_prefix(survivor, &journal), survivors);
        assert_eq!(primary.status().role(), "Secondary");
        zero(survivor);
        survivor.wait_status("the peer has the zeroes", SYNC_LIMIT, |status| {
            status.pending() == 0
        });
    }
    lost
}

/// Makes the device as it was at the beginning.
fn zero(node: &Node) {
    let mut client = node.client();
    let (size, piece) = (client.size(), 16 << 20);
    let mut at = 0;
    while at < size {
        let length = piece.min(size - at);
        client
            .write_zeroes(at, length as u32, qrbd_nbd::client::RequestFlags::NONE)
            .expect("zeroes can be written");
        at += length;
    }
    client.flush().expect("a flush");
    client.disconnect().expect("the session ends");
}

#[test]
fn acknowledged_writes_survive_the_primary_s_death_in_order_with_protocol_b() {
    let lost = survivors_are_a_prefix(Protocol::B);
    assert_eq!(
        lost, 0,
        "the peer had received what was acknowledged, and it lives"
    );
}

#[test]
fn what_survives_the_primary_s_death_with_protocol_a_is_an_ordered_prefix() {
    let lost = survivors_are_a_prefix(Protocol::A);
    assert!(
        lost > 0,
        "the test has to meet the case that it is about: acknowledged writes that the peer never got"
    );
}
