//! The link is cut and healed under load, the Secondary dies, both die, and a split brain is made and resolved. Both disks are equal
//! at the end of each.

use std::time::Duration;

use qrbd_process_tests::load::{self, Load};
use qrbd_process_tests::pair::{DISK_BYTES, Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::relay::Direction;

/// For a cut link to be noticed: `timeout` and `ping-timeout` are below it.
const NOTICE_LIMIT: Duration = Duration::from_secs(12);
const PROMOTION_LIMIT: Duration = Duration::from_secs(15);
/// Two full copies of the device would be more than this.
const BOUNDED: &[&str] = &[
    "--seconds",
    "6",
    "--flush-every",
    "50",
    "--read-percent",
    "10",
];

fn with_relay() -> PairOptions {
    PairOptions {
        relay: true,
        ..PairOptions::default()
    }
}

#[test]
fn a_primary_goes_on_when_the_link_is_cut_and_the_resync_copies_only_what_was_written() {
    let pair = Pair::ready(&PairOptions {
        disk_bytes: Some(4 * DISK_BYTES),
        ..with_relay()
    });
    let mut load = Load::start(&pair.stage, &pair.alice, "load", BOUNDED);
    load.wait_records(200);
    pair.relay().cut_both();
    pair.alice.wait_disconnected(NOTICE_LIMIT);
    pair.bob.wait_disconnected(NOTICE_LIMIT);
    let records = load.records();
    load.wait_records(records + 200);
    let alone = pair.alice.status();
    assert!(alone.out_of_sync_bytes() > 0, "{alone}");
    assert_eq!(alone.disk(), "UpToDate");
    pair.relay().heal();
    pair.alice.wait_healthy(SYNC_LIMIT);
    let journal = load.finish(Duration::from_secs(40));
    load::verify(&pair.alice, &journal);
    let sent = pair.alice.status().sent_bytes();
    // Each block at most twice: mirrored and resynchronised. A full copy would add the device's size.
    let written = (std::fs::metadata(&journal).unwrap().len() / 64) * 4096;
    assert!(
        sent <= 2 * written + (8 << 20),
        "{sent} bytes sent for {written} written"
    );
    pair.assert_equal_disks();
}

#[test]
fn a_link_that_flaps_under_load_loses_nothing() {
    let pair = Pair::ready(&with_relay());
    let mut load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &["--seconds", "14", "--flush-every", "50"],
    );
    load.wait_records(100);
    for pause in [300, 900, 2_500] {
        pair.relay().cut_both();
        std::thread::sleep(Duration::from_millis(pause));
        pair.relay().heal();
        std::thread::sleep(Duration::from_millis(800));
    }
    let journal = load.finish(Duration::from_secs(60));
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
    pair.alice.command("secondary");
    pair.bob.command("primary");
    load::verify(&pair.bob, &journal);
}

/// Only one direction is cut: both sides notice, the Primary goes on, and the resync follows the heal.
fn one_way(direction: Direction) {
    let pair = Pair::ready(&with_relay());
    let mut load = Load::start(&pair.stage, &pair.alice, "load", BOUNDED);
    load.wait_records(200);
    pair.relay().cut(direction);
    pair.alice.wait_disconnected(NOTICE_LIMIT);
    pair.bob.wait_disconnected(NOTICE_LIMIT);
    let records = load.records();
    load.wait_records(records + 100);
    pair.relay().heal();
    let journal = load.finish(Duration::from_secs(40));
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn a_link_cut_towards_the_secondary_only_is_noticed_by_both_and_heals() {
    one_way(Direction::LeftToRight);
}

#[test]
fn a_link_cut_towards_the_primary_only_is_noticed_by_both_and_heals() {
    one_way(Direction::RightToLeft);
}

#[test]
fn a_slow_link_delays_protocol_c_and_nothing_else() {
    let pair = Pair::ready(&with_relay());
    pair.relay().delay(Duration::from_millis(20));
    let mut client = pair.alice.client();
    let start = std::time::Instant::now();
    for block in 0..10 {
        client.write(block * 4096, &[7; 4096], false).unwrap();
    }
    let took = start.elapsed();
    client.disconnect().unwrap();
    assert!(
        took >= Duration::from_millis(10 * 40),
        "ten writes, one after the other, need ten round trips of 40 ms: {took:?}"
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(pair.alice.status().connection_state(), "Connected");
    let journal = load::write(
        &pair.stage,
        &pair.alice,
        "load",
        &["--writes", "300", "--block-size", "8192", "--seed", "3"],
    );
    pair.relay().delay(Duration::ZERO);
    pair.assert_equal_disks();
    let tolerant = load::try_verify(&pair.alice, &journal, &["--allow-foreign"]);
    tolerant.succeeded();
}

#[test]
fn the_secondary_s_death_is_survived_and_its_return_copies_little() {
    let mut pair = Pair::ready(&PairOptions {
        disk_bytes: Some(4 * DISK_BYTES),
        ..PairOptions::default()
    });
    let mut load = Load::start(&pair.stage, &pair.alice, "load", BOUNDED);
    load.wait_records(500);
    pair.bob.kill();
    let records = load.records();
    load.wait_records(records + 100);
    // Its clients did not wait for a ping's time to come.
    let said = "its machine says that nobody listens";
    assert!(pair.alice.log().contains(said), "{}", pair.alice.log());
    pair.bob.start_and_up();
    pair.alice.wait_healthy(SYNC_LIMIT);
    let journal = load.finish(Duration::from_secs(40));
    load::verify(&pair.alice, &journal);
    let written = (std::fs::metadata(&journal).unwrap().len() / 64) * 4096;
    let sent = pair.alice.status().sent_bytes();
    assert!(
        sent <= 2 * written + (8 << 20),
        "{sent} bytes sent for {written} written"
    );
    pair.assert_equal_disks();
}

#[test]
fn a_resync_that_is_interrupted_goes_on_where_it_was() {
    let mut pair = Pair::ready(&PairOptions {
        disk_bytes: Some(4 * DISK_BYTES),
        ..with_relay()
    });
    pair.bob.kill();
    pair.alice.wait_disconnected(NOTICE_LIMIT);
    let journal = load::write(
        &pair.stage,
        &pair.alice,
        "load",
        &["--writes", "900", "--block-size", "131072"],
    );
    let missing = pair.alice.status().out_of_sync_bytes();
    pair.relay().delay(Duration::from_millis(25));
    pair.bob.start_and_up();
    pair.alice
        .wait_status("half of it is copied", SYNC_LIMIT, |status| {
            status.replication() == "SyncSource" && status.out_of_sync_bytes() < missing / 2
        });
    pair.bob.kill();
    pair.relay().delay(Duration::ZERO);
    pair.alice.wait_disconnected(NOTICE_LIMIT);
    let interrupted = pair.alice.status();
    let left = interrupted.out_of_sync_bytes();
    pair.bob.start_and_up();
    let healthy = pair.alice.wait_healthy(SYNC_LIMIT);
    let copied = healthy.sent_bytes() - interrupted.sent_bytes();
    // What was on its way when the target died is copied again.
    assert!(
        copied <= left + missing / 4,
        "{copied} bytes copied, {left} were left of {missing}"
    );
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn both_nodes_die_and_come_back_with_every_acknowledged_write() {
    let mut pair = Pair::ready(&PairOptions::default());
    for (round, records) in [300, 2_000].into_iter().enumerate() {
        let mut load = Load::until_disconnect(&pair.stage, &pair.alice, "load");
        let already = load.records();
        load.wait_records(already + records);
        let (first, second) = if round == 0 {
            (&mut pair.alice, &mut pair.bob)
        } else {
            (&mut pair.bob, &mut pair.alice)
        };
        first.kill();
        second.kill();
        let journal = load.finish(Duration::from_secs(30));
        pair.alice.start_and_up();
        pair.bob.start_and_up();
        pair.alice.wait_healthy(SYNC_LIMIT);
        pair.alice.promote(PROMOTION_LIMIT);
        load::verify(&pair.alice, &journal);
        pair.assert_equal_disks();
    }
}

/// Both write alone while the link is cut; gives the journals.
fn split(pair: &Pair) -> [std::path::PathBuf; 2] {
    pair.relay().cut_both();
    for node in [&pair.alice, &pair.bob] {
        node.wait_disconnected(NOTICE_LIMIT);
    }
    pair.bob.promote(PROMOTION_LIMIT);
    let write = |node, name, seed| {
        load::write(
            &pair.stage,
            node,
            name,
            &["--writes", "200", "--seed", seed],
        )
    };
    let journals = [
        write(&pair.alice, "alice", "11"),
        write(&pair.bob, "bob", "22"),
    ];
    pair.relay().heal();
    journals
}

#[test]
fn a_split_brain_is_detected_kept_and_resolved_by_discarding_one_side() {
    let pair = Pair::ready(&with_relay());
    let [of_alice, of_bob] = split(&pair);
    // Nothing is merged by itself, and each keeps what it has.
    pair.bob.wait_status("StandAlone", SYNC_LIMIT, |status| {
        status.connection_state() == "StandAlone"
    });
    pair.alice.wait_disconnected(SYNC_LIMIT);
    let logs = format!("{}{}", pair.alice.log(), pair.bob.log());
    assert!(
        logs.to_lowercase().contains("split-brain") || logs.to_lowercase().contains("split brain"),
        "the log tells of it"
    );
    assert!(
        logs.lines()
            .any(|line| line.contains(" WARN ") && line.contains("split-brain")),
        "who reads warnings alone hears of it"
    );
    load::verify(&pair.alice, &of_alice);
    load::verify(&pair.bob, &of_bob);

    let primary = pair.bob.try_command("connect --discard-my-data");
    assert_ne!(
        primary.code, 0,
        "a Primary's data are not discarded: {primary}"
    );
    pair.bob.command("secondary");
    pair.bob.command("connect --discard-my-data");
    if pair.alice.status().connection_state() == "StandAlone" {
        pair.alice.command("connect");
    }
    let healthy = pair.alice.wait_healthy(SYNC_LIMIT);
    assert_eq!(
        (healthy.role(), healthy.peer_role()),
        ("Primary", "Secondary")
    );
    load::verify(&pair.alice, &of_alice);
    pair.assert_equal_disks();
    // The victor's data are what both have; nothing of the victim is left.
    pair.alice.command("secondary");
    pair.bob.command("primary");
    load::verify(&pair.bob, &of_alice);
}

#[test]
fn a_split_brain_resync_copies_only_what_either_side_wrote() {
    let pair = Pair::ready(&PairOptions {
        disk_bytes: Some(4 * DISK_BYTES),
        ..with_relay()
    });
    let [_, of_bob] = split(&pair);
    pair.alice.wait_disconnected(SYNC_LIMIT);
    pair.bob.wait_status("StandAlone", SYNC_LIMIT, |status| {
        status.connection_state() == "StandAlone"
    });
    let before = pair.bob.status().sent_bytes();
    pair.alice.command("secondary");
    pair.alice.command("disconnect");
    pair.alice.command("connect --discard-my-data");
    if pair.bob.status().connection_state() == "StandAlone" {
        pair.bob.command("connect");
    }
    let healthy = pair.bob.wait_healthy(SYNC_LIMIT);
    let copied = healthy.sent_bytes() - before;
    assert!(
        copied <= 400 * 4096,
        "{copied} bytes copied, 400 blocks were written"
    );
    load::verify(&pair.bob, &of_bob);
    pair.assert_equal_disks();
}

#[test]
fn a_split_brain_without_changes_on_one_side_is_resolved_by_the_policy() {
    let mut options = with_relay();
    options.resource.net =
        "after-sb-0pri discard-zero-changes;\nafter-sb-1pri discard-secondary;".to_owned();
    let pair = Pair::ready(&options);
    let [of_alice, _] = split(&pair);
    pair.bob.wait_status("StandAlone", SYNC_LIMIT, |status| {
        status.connection_state() == "StandAlone"
    });
    // One Primary is left, and the policy for that decides.
    pair.bob.command("secondary");
    for node in [&pair.alice, &pair.bob] {
        if node.status().connection_state() == "StandAlone" {
            node.command("connect");
        }
    }
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.alice, &of_alice);
    pair.assert_equal_disks();
}
