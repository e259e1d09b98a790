//! Every command of the administrator in its good, its refused and its impossible form: DRBD's numbers, texts and exit codes.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use qrbd_process_tests::load;
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::wait;

const SOON: Duration = Duration::from_secs(10);

fn ready() -> Pair {
    Pair::ready(&PairOptions::default())
}

/// The whole of standard error: refusals are parsed by scripts.
#[track_caller]
fn told(node: &Node, words: &str, code: i32, line: &str) {
    let finished = node.try_command(words);
    assert_eq!(finished.code, code, "{finished}");
    assert_eq!(
        finished.stderr.lines().next().unwrap_or_default(),
        line,
        "{finished}"
    );
}

const UNKNOWN: &str = "r0: Failure: (158) Unknown resource";
const NO_DATA: &str = "r0: State change failed: (-2) Need access to UpToDate data";

#[test]
fn what_is_not_up_is_unknown_to_every_command_but_down() {
    let mut pair = Pair::prepared(&PairOptions::default());
    pair.alice.start();
    for words in [
        "attach",
        "detach",
        "connect",
        "disconnect",
        "primary",
        "secondary",
        "cstate",
        "wait-connect",
        "wait-sync",
        "invalidate-remote",
        "pause-sync",
        "resume-sync",
        "new-current-uuid",
    ] {
        told(&pair.alice, words, 10, UNKNOWN);
    }
    told(&pair.alice, "status", 10, "r0: No such resource");
    assert_eq!(pair.alice.try_command("role").stdout, "Unknown\n");
    pair.alice.command("down");
    // What the metadata know is told without the daemon.
    assert_eq!(pair.alice.command("dstate"), "Inconsistent/DUnknown\n");
    assert!(
        pair.alice
            .command("get-gi")
            .starts_with("0000000000000004:")
    );
}

#[test]
fn a_node_without_good_data_refuses_what_needs_them() {
    let mut pair = Pair::prepared(&PairOptions::default());
    pair.alice.start_and_up();
    pair.alice.command("up");
    pair.alice.command("adjust");
    for words in ["primary", "invalidate-remote", "new-current-uuid"] {
        told(&pair.alice, words, 17, NO_DATA);
    }
    told(
        &pair.alice,
        "invalidate",
        11,
        "r0/0: State change failed: (-15) State change requires a connection",
    );
    told(
        &pair.alice,
        "outdate",
        5,
        "r0/0: State change failed: (-16) Disk state is lower than outdated",
    );
    pair.alice.command("secondary");
    let waited = pair.alice.try_command("wait-sync -t 1");
    waited.refused(5, &["waiting for bob"]);
}

#[test]
fn a_disk_is_detached_and_attached_under_a_client_and_misses_nothing() {
    let pair = ready();
    let attached = "r0: Failure: (124) Device is attached to a disk (use detach first)";
    told(&pair.alice, "attach", 10, attached);
    for words in ["dump-md", "wipe-md --force"] {
        let line = "r0/0: Failure: (124) Device is attached to a disk (use detach first)";
        told(&pair.alice, words, 10, line);
    }
    let before = load::write(&pair.stage, &pair.alice, "before", &["--writes", "200"]);
    pair.alice.command("detach");
    assert_eq!(pair.alice.command("dstate"), "Diskless/UpToDate\n");
    // It is free now for the offline tools, and detaching what is detached is no error.
    pair.alice.command("apply-al");
    assert!(pair.alice.command("dump-md").contains("version"));
    pair.alice.command("detach");
    // The last good copy stays.
    told(
        &pair.bob,
        "detach",
        11,
        "r0: State change failed: (-10) State change was refused by peer node",
    );
    told(&pair.alice, "disconnect", 17, NO_DATA);
    load::verify(&pair.alice, &before);
    let during = load::write(
        &pair.stage,
        &pair.alice,
        "during",
        &["--writes", "200", "--seed", "7"],
    );
    pair.alice.command("attach");
    pair.alice.command("wait-sync");
    pair.alice.wait_healthy(SYNC_LIMIT);
    // Between them are blocks of the first run.
    load::try_verify(&pair.alice, &during, &["--allow-foreign"]).succeeded();
    pair.assert_equal_disks();
}

#[test]
fn disconnect_and_connect_answer_as_drbd_does() {
    let pair = ready();
    pair.alice.command("disconnect");
    pair.alice.command("disconnect");
    assert_eq!(pair.alice.command("cstate"), "StandAlone\n");
    let waited = pair.alice.try_command("wait-connect");
    waited.refused(5, &["bob is StandAlone"]);
    told(&pair.alice, "detach", 17, NO_DATA);
    told(
        &pair.alice,
        "connect --discard-my-data",
        10,
        "r0: Failure: (123) --discard-my-data not allowed when primary.",
    );
    pair.bob.wait_status("the reason", SOON, |status| {
        status.reason().contains("StandAlone")
    });
    pair.alice.command("connect");
    pair.alice.command("wait-connect");
    pair.alice.wait_healthy(SYNC_LIMIT);
    // A peer that is unknown is no resource of ours.
    let finished = pair.alice.admin(["connect", "r0:carol"]);
    finished.refused(1, &["'carol' is no peer of r0 (peers are: bob)."]);
}

#[test]
fn invalidate_on_either_node_copies_everything_from_the_other() {
    let pair = ready();
    let journal = load::write(&pair.stage, &pair.alice, "load", &["--writes", "300"]);
    let bytes = pair.alice.status().size_bytes();
    told(
        &pair.alice,
        "invalidate",
        10,
        "r0/0: Failure: (159) Resource is in use: it must be Secondary for this operation",
    );
    for (node, words) in [
        (&pair.bob, "invalidate"),
        (&pair.alice, "invalidate-remote"),
    ] {
        let before = pair.alice.status().value()["devices"][0]["read"]
            .as_u64()
            .unwrap();
        node.command(words);
        node.command("wait-sync");
        pair.alice.wait_healthy(SYNC_LIMIT);
        let after = pair.alice.status().value()["devices"][0]["read"]
            .as_u64()
            .unwrap();
        assert!(
            (after - before) * 1024 >= bytes,
            "{words}: {} KiB of {} were read for it",
            after - before,
            bytes / 1024
        );
    }
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn invalidate_of_a_resource_that_is_down_makes_it_the_target_even_if_it_is_newer() {
    let pair = ready();
    let both = load::write(&pair.stage, &pair.alice, "both", &["--writes", "200"]);
    pair.bob.command("down");
    // Only alice has these, and gives them up.
    load::write(
        &pair.stage,
        &pair.alice,
        "alice",
        &["--writes", "200", "--seed", "9"],
    );
    pair.alice.command("down");
    // The reason to give a disk up: something that no bitmap knows of.
    let disk = std::fs::File::options()
        .write(true)
        .open(&pair.alice.disk)
        .unwrap();
    disk.write_all_at(&[0xee; 4096], 20 << 20).unwrap();
    pair.alice.command("invalidate");
    assert_eq!(pair.alice.command("dstate"), "Inconsistent/DUnknown\n");
    assert!(
        pair.alice.command("get-gi").trim_end().ends_with(":1:1"),
        "a full sync is ordered: {}",
        pair.alice.command("get-gi")
    );
    for node in [&pair.bob, &pair.alice] {
        node.command("up");
    }
    pair.alice.wait_healthy(SYNC_LIMIT);
    pair.bob.command("primary");
    load::verify(&pair.bob, &both);
    pair.assert_equal_disks();
    assert!(
        pair.alice.command("get-gi").trim_end().ends_with(":0:1"),
        "it is done: {}",
        pair.alice.command("get-gi")
    );
}

#[test]
fn a_resync_is_held_by_either_node_until_the_same_one_lets_it_go_on() {
    let pair = ready();
    for node in [&pair.alice, &pair.bob] {
        let set = "r0: Failure: (134) Sync-pause flag is already set";
        let cleared = "r0: Failure: (135) Sync-pause flag is already cleared";
        told(node, "resume-sync", 10, cleared);
        node.command("pause-sync");
        told(node, "pause-sync", 10, set);
        pair.alice.command("invalidate-remote");
        pair.alice
            .wait_status("held", SOON, |status| status.replication() == "PausedSyncS");
        pair.bob
            .wait_status("held", SOON, |status| status.replication() == "PausedSyncT");
        let here = node.command("status");
        assert!(here.contains("resync-suspended:user"), "{here}");
        let there = if node.name == "alice" {
            pair.bob.command("status")
        } else {
            pair.alice.command("status")
        };
        assert!(there.contains("resync-suspended:peer"), "{there}");
        // Nothing is copied meanwhile, and waiting has its limit.
        let waited = pair.alice.try_command("wait-sync -t 1");
        waited.refused(5, &["PausedSyncS"]);
        node.command("resume-sync");
        pair.alice.command("wait-sync");
        pair.alice.wait_healthy(SYNC_LIMIT);
    }
    pair.assert_equal_disks();
}

#[test]
fn new_current_uuid_skips_the_initial_sync_only_where_nothing_was_written_yet() {
    let pair = Pair::connected(&PairOptions::default());
    pair.bob.command("new-current-uuid --clear-bitmap");
    let healthy = pair.alice.wait_healthy(SYNC_LIMIT);
    assert_eq!(healthy.sent_bytes() + healthy.received_bytes(), 0);
    pair.alice.command("primary");
    for words in ["new-current-uuid", "new-current-uuid --clear-bitmap"] {
        told(
            &pair.alice,
            words,
            10,
            "r0: Failure: (151) Need to be StandAlone",
        );
    }
}

#[test]
fn secondary_by_force_takes_the_device_from_its_clients() {
    let pair = ready();
    let mut client = pair.alice.client();
    let held = "r0: State change failed: (-12) Device is held open by someone";
    for words in ["secondary", "down"] {
        told(&pair.alice, words, 11, held);
    }
    assert_eq!(pair.alice.command("role"), "Primary\n");
    pair.alice.command("secondary --force");
    assert_eq!(pair.alice.command("role"), "Secondary\n");
    assert!(
        client.write(0, &[1; 4096], false).is_err(),
        "nothing is taken from a client of a Secondary"
    );
    pair.bob.command("primary");
    pair.assert_equal_disks();
}

#[test]
fn primary_right_after_the_primary_s_death_is_done_by_the_first_command() {
    let mut pair = ready();
    let journal = load::write(&pair.stage, &pair.alice, "load", &["--writes", "200"]);
    pair.alice.kill();
    let begin = Instant::now();
    // It asks whether the old Primary is alive, and waits for no longer than ping-timeout: half a second here.
    pair.bob.command("primary");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    load::verify(&pair.bob, &journal);
    // It comes back as Secondary.
    pair.alice.start_and_up();
    let healthy = pair.bob.wait_healthy(SYNC_LIMIT);
    assert_eq!(
        (healthy.role(), healthy.peer_role()),
        ("Primary", "Secondary")
    );
    pair.assert_equal_disks();
}

#[test]
fn down_takes_a_resource_only_as_a_whole() {
    let pair = ready();
    let finished = pair.alice.admin(["down", "r0:bob"]);
    finished.refused(
        1,
        &["down operates on whole resources, but you specified a specific connection!"],
    );
    assert_eq!(pair.alice.command("role"), "Primary\n");
    pair.alice.admin(["down", "r0/0"]).succeeded();
    pair.alice.admin(["down", "all"]).succeeded();
}

#[test]
fn metadata_are_made_shown_applied_and_wiped_offline() {
    let mut pair = ready();
    let journal = load::write(&pair.stage, &pair.alice, "load", &["--writes", "300"]);
    pair.alice.kill();
    pair.bob.promote(SYNC_LIMIT);
    // The log of a killed Primary names what may differ.
    let unclean = pair.alice.try_command("dump-md");
    unclean.refused(255, &["apply-al"]);
    pair.alice.command("apply-al");
    let dumped = pair.alice.command("dump-md");
    let bits = dumped
        .lines()
        .find_map(|line| line.strip_prefix("# bits-set "))
        .unwrap()
        .trim_end_matches(';');
    assert_ne!(bits, "0", "{dumped}");
    pair.alice.start_and_up();
    pair.bob.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.bob, &journal);
    pair.alice.command("down");
    let asked = pair.alice.try_command("wipe-md");
    asked.refused(1, &["canceled"]);
    pair.alice.command("wipe-md --force");
    told(&pair.alice, "attach", 10, UNKNOWN);
    pair.alice
        .try_command("up")
        .refused(10, &["(119)", "create-md"]);
    pair.alice.command("down");
    pair.alice.command("create-md");
    pair.alice.command("up");
    pair.bob.wait_healthy(SYNC_LIMIT);
    pair.assert_equal_disks();
}

#[test]
fn options_that_are_not_carried_out_are_told_once_with_their_place() {
    let mut options = PairOptions::default();
    options.resource.net = "allow-two-primaries;\nno-tcp-cork;".to_owned();
    let mut pair = Pair::prepared(&options);
    pair.alice.start();
    let finished = pair.alice.try_command("up");
    let file = pair.alice.configuration.display().to_string();
    let told = "`allow-two-primaries yes` is not carried out by this version, which acts as with `allow-two-primaries no`";
    let place = |finished: &str, words: &str| {
        finished
            .lines()
            .any(|line| line.starts_with(&file) && line.contains(words))
    };
    assert!(
        finished.code == 0
            && place(&finished.stderr, told)
            && place(&finished.stderr, "`tcp-cork` has no effect"),
        "{finished}"
    );
    assert_eq!(finished.stdout, "");
    wait::until("the same in the log", SOON, || {
        pair.alice.log().contains(told).then_some(())
    });
    let again = pair.alice.try_command("adjust");
    assert!(again.code == 0 && again.stderr.is_empty(), "{again}");
    // Who wants to know them all asks for the check.
    let check = pair.alice.admin(["sh-nop"]);
    assert!(place(&check.stderr, told), "{check}");
    pair.alice.command("down");
}
