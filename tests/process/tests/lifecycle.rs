//! The administrator's path: create metadata, up, initial sync, roles, states, refusals with their texts and exit codes, down.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use qrbd_process_tests::load;
use qrbd_process_tests::pair::{Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::programs::{built, run};
use qrbd_process_tests::wait;

/// Bytes that are on the Primary's disk before it becomes one.
const OLD_DATA_BYTES: u64 = 32 << 20;
const SOON: Duration = Duration::from_secs(10);

#[test]
fn initial_sync_copies_the_primary_s_data_and_both_become_up_to_date() {
    let mut pair = Pair::prepared(&PairOptions::default());
    // What was on the disk before is data too.
    let words = 0..OLD_DATA_BYTES / 8;
    let old: Vec<u8> = words
        .flat_map(|word| (word | 1 << 60).to_le_bytes())
        .collect();
    let disk = std::fs::OpenOptions::new()
        .write(true)
        .open(&pair.alice.disk)
        .unwrap();
    disk.write_all_at(&old, 0).unwrap();
    for node in [&mut pair.alice, &mut pair.bob] {
        node.start_and_up();
    }
    pair.bob.wait_status("connected", SYNC_LIMIT, |status| {
        status.connection_state() == "Connected"
    });
    let fresh = pair.bob.status();
    assert_eq!(
        (fresh.disk(), fresh.peer_disk()),
        ("Inconsistent", "Inconsistent"),
        "{fresh}"
    );
    pair.alice.command("-- --overwrite-data-of-peer primary");
    let journal = load::write(&pair.stage, &pair.alice, "during", &["--writes", "500"]);
    let healthy = pair.alice.wait_healthy(SYNC_LIMIT);
    assert_eq!(
        (healthy.role(), healthy.peer_role()),
        ("Primary", "Secondary")
    );
    load::try_verify(&pair.alice, &journal, &["--allow-foreign"]).succeeded();
    pair.assert_equal_disks();
    let sent = pair.alice.status().sent_bytes();
    assert!(sent >= OLD_DATA_BYTES, "{sent} bytes sent");
}

#[test]
fn status_and_queries_answer_in_drbd_s_words() {
    let pair = Pair::ready(&PairOptions::default());
    assert_eq!(
        pair.alice.command("status"),
        "r0 role:Primary\n  disk:UpToDate\n  bob role:Secondary\n    peer-disk:UpToDate\n\n"
    );
    assert_eq!(pair.alice.command("role"), "Primary\n");
    assert_eq!(
        pair.alice.admin(["role", "r0:bob"]).succeeded(),
        "Secondary\n"
    );
    assert_eq!(pair.bob.command("role"), "Secondary\n");
    assert_eq!(pair.bob.command("cstate"), "Connected\n");
    assert_eq!(pair.bob.command("dstate"), "UpToDate/UpToDate\n");
    let client = pair.alice.client();
    assert!(pair.alice.status().open());
    assert!(
        pair.alice
            .command("status")
            .contains("disk:UpToDate open:yes")
    );
    client.disconnect().unwrap();
    wait::until("the session is over", SOON, || {
        (!pair.alice.status().open()).then_some(())
    });
    let status = pair.alice.status();
    let device = &status.value()["devices"][0];
    assert_eq!(device["minor"], -1);
    assert_eq!(device["export"], "r0");
    assert_eq!(device["backing-dev"], pair.alice.disk.to_str().unwrap());
    let path = &status.value()["connections"][0]["paths"][0];
    assert_eq!(path["established"], true);
    assert_eq!(path["this_host"]["port"], 7789);
}

#[test]
fn generation_identifiers_are_shown_and_equal_on_both_nodes() {
    let pair = Pair::ready(&PairOptions::default());
    pair.alice.command("secondary");
    let own = pair.alice.command("get-gi");
    let theirs = pair.bob.command("get-gi");
    let current = |line: &str| {
        line.split(':')
            .next()
            .unwrap()
            .trim_start_matches("0x")
            .to_owned()
    };
    assert_eq!(current(&own), current(&theirs), "{own}{theirs}");
    assert!(
        current(&own).len() == 16 && !current(&own).starts_with("000000000000000"),
        "{own}"
    );
    let shown = pair.alice.command("show-gi");
    assert!(shown.contains(&current(&own)), "{shown}");
    for node in [&pair.alice, &pair.bob] {
        node.command("down");
    }
    let dumped = pair.alice.command("dump-md");
    assert!(
        dumped
            .to_lowercase()
            .contains(&current(&own).to_lowercase()),
        "{dumped}"
    );
    assert_eq!(
        current(&pair.alice.command("get-gi")),
        current(&own),
        "offline and online answers are the same"
    );
}

#[test]
fn down_ends_everything_and_up_brings_the_same_data_back() {
    let mut pair = Pair::ready(&PairOptions::default());
    let journal = load::write(&pair.stage, &pair.alice, "load", &["--writes", "300"]);
    for node in [&pair.alice, &pair.bob] {
        node.command("down");
        assert!(
            node.admin(["status"])
                .stdout
                .contains("No currently configured"),
            "{}",
            node.admin(["status"])
        );
        node.try_command("status")
            .refused(10, &["No such resource"]);
        // Not configured is success, as with DRBD.
        node.command("down");
    }
    for node in [&pair.alice, &pair.bob] {
        node.command("up");
    }
    pair.alice.wait_healthy(SYNC_LIMIT);
    assert_eq!(
        pair.alice.status().sent_bytes() + pair.bob.status().sent_bytes(),
        0,
        "an orderly restart copies nothing"
    );
    pair.bob.command("primary");
    load::verify(&pair.bob, &journal);
    pair.bob.stop();
    pair.alice.stop();
}

#[test]
fn a_second_primary_is_refused_with_minus_1() {
    let pair = Pair::ready(&PairOptions::default());
    let refused = pair.bob.try_command("primary");
    refused.refused(
        11,
        &["r0: State change failed: (-1) Multiple primaries not allowed by config"],
    );
    assert_eq!(pair.bob.status().role(), "Secondary");
    assert_eq!(pair.alice.status().role(), "Primary");
}

#[test]
fn promotion_without_up_to_date_data_is_refused_with_exit_17_and_needs_force() {
    let pair = Pair::connected(&PairOptions::default());
    let refused = pair.alice.try_command("primary");
    refused.refused(
        17,
        &["r0: State change failed: (-2) Need access to UpToDate data"],
    );
    assert_eq!(pair.alice.status().role(), "Secondary");
    pair.alice.command("primary --force");
    assert_eq!(pair.alice.status().role(), "Primary");
}

#[test]
fn a_connected_client_holds_the_device_open_until_it_goes() {
    let pair = Pair::ready(&PairOptions::default());
    let client = pair.alice.client();
    for command in ["secondary", "down"] {
        let refused = pair.alice.try_command(command);
        refused.refused(
            11,
            &["State change failed: (-12) Device is held open by someone"],
        );
    }
    client.disconnect().unwrap();
    wait::until("demotion", SOON, || {
        (pair.alice.try_command("secondary").code == 0).then_some(())
    });
    assert_eq!(pair.alice.status().role(), "Secondary");
    pair.bob.command("primary");
}

#[test]
fn a_secondary_s_export_is_refused_with_a_text_that_names_the_primary() {
    let pair = Pair::ready(&PairOptions::default());
    let error = pair
        .bob
        .try_client()
        .expect_err("a Secondary serves nobody")
        .to_string();
    for word in ["r0", "Secondary", "alice"] {
        assert!(error.contains(word), "'{word}' in: {error}");
    }
}

#[test]
fn what_does_not_exist_is_told_in_a_line_with_its_exit_code() {
    let pair = Pair::prepared(&PairOptions::default());
    let nobody = pair.alice.try_command("up");
    nobody.refused(20, &["qrbdd"]);
    let unknown = pair.alice.admin(["up", "r9"]);
    unknown.refused(1, &["r9"]);
    let verb = pair.alice.admin(["promote-me", "r0"]);
    verb.refused(1, &["promote-me"]);
    let option = pair.alice.admin(["primary", "--harder", "r0"]);
    option.refused(2, &["--harder"]);
}

#[test]
fn wait_connect_ends_with_exit_5_when_nobody_comes() {
    let mut pair = Pair::prepared(&PairOptions::default());
    pair.alice.start_and_up();
    let waited = pair.alice.try_command("wait-connect --wfc-timeout 1");
    waited.refused(5, &["r0"]);
    assert_eq!(pair.alice.command("cstate"), "Connecting\n");
    pair.bob.start_and_up();
    pair.alice.command("wait-connect --wfc-timeout 20");
    assert_eq!(pair.alice.command("cstate"), "Connected\n");
}

#[test]
fn two_daemons_do_not_share_a_run_directory() {
    let mut pair = Pair::prepared(&PairOptions::default());
    pair.alice.start();
    let socket = pair.alice.control_socket();
    let run_dir = socket.parent().unwrap();
    let arguments = [
        "--run-dir".as_ref(),
        run_dir.as_os_str(),
        "--node".as_ref(),
        "alice".as_ref(),
    ];
    let second = run(&built("qrbdd"), arguments, SOON);
    let holder = pair.alice.daemon().id().to_string();
    second.refused(1, &["another qrbdd", &holder, "--run-dir"]);
}

#[test]
fn disconnect_and_connect_by_hand_copy_only_what_was_written_between() {
    let pair = Pair::ready(&PairOptions::default());
    pair.bob.command("disconnect");
    assert_eq!(pair.bob.command("cstate"), "StandAlone\n");
    pair.alice.wait_disconnected(SOON);
    let before = pair.alice.status().sent_bytes();
    let journal = load::write(&pair.stage, &pair.alice, "alone", &["--writes", "200"]);
    let alone = pair.alice.status();
    assert!(
        alone.out_of_sync_bytes() > 0 && alone.out_of_sync_bytes() <= 200 * 4096,
        "{alone}"
    );
    pair.bob.command("connect");
    pair.alice.wait_healthy(SYNC_LIMIT);
    let copied = pair.alice.status().sent_bytes() - before;
    assert!(
        (4096..=200 * 4096).contains(&copied),
        "{copied} bytes copied"
    );
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn a_file_written_for_drbd_is_understood() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/r0.res");
    for (node, address) in [
        ("node1", "192.168.1.10:7789"),
        ("node2", "192.168.1.11:7789"),
    ] {
        let arguments = [
            "--config-file".as_ref(),
            file.as_os_str(),
            "--node".as_ref(),
            node.as_ref(),
            "dump".as_ref(),
        ];
        let dumped = run(&built("qrbdadm"), arguments, SOON).succeeded();
        for words in [
            "resource r0",
            "protocol",
            "on node1",
            "on node2",
            "/dev/sdb",
            "192.168.1.10:7789",
            "192.168.1.11:7789",
        ] {
            assert!(dumped.contains(words), "'{words}' in\n{dumped}");
        }
        let arguments = [
            "--config-file".as_ref(),
            file.as_os_str(),
            "--node".as_ref(),
            node.as_ref(),
            "sh-ip".as_ref(),
            "r0".as_ref(),
        ];
        assert_eq!(
            run(&built("qrbdadm"), arguments, SOON).succeeded().trim(),
            address.split(':').next().unwrap()
        );
    }
}

#[test]
fn a_daemon_may_have_as_many_open_files_as_the_system_allows() {
    let mut pair = Pair::prepared(&PairOptions::default());
    let (own, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let few = 512;
    assert!(few < most);
    setrlimit(Resource::RLIMIT_NOFILE, few, most).unwrap();
    pair.alice.start();
    setrlimit(Resource::RLIMIT_NOFILE, own, most).unwrap();
    let limits = format!("/proc/{}/limits", pair.alice.daemon().id());
    let limits = std::fs::read_to_string(limits).unwrap();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .expect("the kernel tells it");
    let words: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(words[0], most.to_string());
}
