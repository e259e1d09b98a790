//! Bad input from the configuration, the key and the peer: a clear error that names place and remedy, and nothing lost.

use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use qrbd_process_tests::load;
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::programs::{built, run};
use qrbd_process_tests::wait;

const SOON: Duration = Duration::from_secs(10);

/// Changes the configuration file of a node.
fn edit(node: &Node, change: impl Fn(&str) -> String) {
    let text = fs::read_to_string(&node.configuration).unwrap();
    let changed = change(&text);
    assert_ne!(text, changed, "the test changes something");
    fs::write(&node.configuration, changed).unwrap();
}

/// Line and column, from 1, at which a word stands.
fn place(node: &Node, word: &str) -> String {
    let text = fs::read_to_string(&node.configuration).unwrap();
    let (line, column) = text
        .lines()
        .zip(1..)
        .find_map(|(text, line)| text.find(word).map(|column| (line, column + 1)))
        .unwrap();
    format!("{}:{line}:{column}:", node.configuration.display())
}

fn prepared() -> Pair {
    Pair::prepared(&PairOptions::default())
}

#[test]
fn an_unknown_word_is_told_with_its_place_and_the_words_that_are_allowed() {
    let mut pair = prepared();
    edit(&pair.alice, |text| {
        text.replace("timeout 15;", "timout 15;")
    });
    let told = pair.alice.admin(["dump", "r0"]);
    let place = place(&pair.alice, "timout");
    told.refused(10, &[&place, "timout", "timeout", "^"]);
    // The daemon says the same.
    pair.alice.start();
    pair.alice.try_command("up").refused(10, &[&place]);
    assert!(
        pair.alice
            .admin(["status"])
            .stdout
            .contains("No currently configured")
    );
}

#[test]
fn a_value_out_of_its_range_and_a_missing_brace_are_told_with_their_places() {
    let pair = prepared();
    edit(&pair.alice, |text| {
        text.replace("ping-int 2;", "ping-int 20000000;")
    });
    pair.alice
        .admin(["dump", "r0"])
        .refused(10, &[&place(&pair.alice, "20000000"), "ping-int"]);
    edit(&pair.alice, |text| {
        text.replace("ping-int 20000000;", "ping-int 2;")
            .trim_end()
            .trim_end_matches('}')
            .to_owned()
    });
    pair.alice
        .admin(["dump", "r0"])
        .refused(10, &[&pair.alice.configuration.display().to_string(), "}"]);
}

#[test]
fn a_broken_resource_does_not_stop_the_others() {
    let mut pair = prepared();
    let disk = pair.stage.file("second.disk", 16 << 20);
    let more = format!(
        "resource broken {{ net {{ protocol X; }} on alice {{ disk {0}; meta-disk internal; address 127.0.0.1:7999; }} on bob {{ disk {0}; meta-disk internal; address 127.0.0.1:7998; }} }}\n",
        disk.display()
    );
    edit(&pair.alice, |text| format!("{more}{text}"));
    pair.alice.start();
    pair.alice.command("up");
    assert_eq!(pair.alice.command("role"), "Secondary\n");
    let error = place(&pair.alice, "X;");
    pair.alice.admin(["up", "broken"]).refused(10, &[&error]);
    // Asked for all, it does what it can, and the exit code tells that something was left out.
    pair.alice.admin(["adjust", "all"]).refused(10, &[&error]);
    assert_eq!(pair.alice.command("role"), "Secondary\n");
}

#[test]
fn what_is_up_can_be_asked_about_and_taken_down_without_its_configuration() {
    let broken: fn(&str) -> String = |text| text.replacen('{', "{ {", 1);
    let gone: fn(&str) -> String = |_| String::new();
    for change in [broken, gone] {
        let mut pair = prepared();
        pair.alice.start();
        pair.alice.command("up");
        edit(&pair.alice, change);
        for (words, answer) in [("role r0", "Secondary\n"), ("cstate r0", "Connecting\n")] {
            let told = pair.alice.admin(words.split(' '));
            assert_eq!((told.code, told.stdout.as_str()), (0, answer), "{told}");
            assert!(told.stderr.contains("warning: r0 is up"), "{told}");
        }
        assert_eq!(pair.alice.admin(["status", "r0"]).code, 0);
        assert_eq!(pair.alice.admin(["secondary", "r0"]).code, 0);
        // What needs the file says what is wrong with it, and so does a resource that nobody knows.
        assert_ne!(pair.alice.admin(["adjust", "r0"]).code, 0);
        assert_ne!(pair.alice.admin(["role", "r1"]).code, 0);
        assert_eq!(pair.alice.admin(["down", "all"]).code, 0);
        assert_ne!(pair.alice.admin(["role", "r0"]).code, 0);
    }
}

#[test]
fn a_missing_configuration_file_is_named() {
    let pair = prepared();
    fs::remove_file(&pair.alice.configuration).unwrap();
    let told = pair.alice.admin(["dump", "r0"]);
    assert!(told.code != 0, "{told}");
    told.clone().refused(
        told.code,
        &[&pair.alice.configuration.display().to_string()],
    );
}

#[test]
fn a_node_that_is_not_in_the_file_has_no_such_resource() {
    let pair = prepared();
    let arguments = [
        "--config-file".as_ref(),
        pair.alice.configuration.as_os_str(),
        "--node".as_ref(),
        "carol".as_ref(),
        "up".as_ref(),
        "r0".as_ref(),
    ];
    let told = run(&built("qrbdadm"), arguments, SOON);
    told.refused(1, &["'r0' not defined in your config (for this host)."]);
}

#[test]
fn two_nodes_with_the_same_address_are_refused_with_the_place() {
    let mut pair = prepared();
    let text = fs::read_to_string(&pair.alice.configuration).unwrap();
    let addresses: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("address "))
        .collect();
    let (own, peer) = (addresses[0].to_owned(), addresses[1].to_owned());
    edit(&pair.alice, |text| text.replace(&peer, &own));
    let file = pair.alice.configuration.display().to_string();
    pair.alice
        .admin(["dump", "r0"])
        .refused(10, &[&file, own.trim_end_matches(';')]);
    pair.alice.start();
    pair.alice
        .try_command("up")
        .refused(10, &[own.trim_end_matches(';')]);
}

#[test]
fn an_occupied_port_is_named_and_taken_as_soon_as_it_is_free() {
    let mut pair = prepared();
    let text = fs::read_to_string(&pair.alice.configuration).unwrap();
    let address = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("address "))
        .unwrap()
        .trim_end_matches(';')
        .to_owned();
    let occupant = UdpSocket::bind(&address).unwrap();
    pair.alice.start();
    pair.bob.start_and_up();
    pair.alice
        .try_command("up")
        .refused(10, &["(102)", &address]);
    assert!(
        pair.alice.status().reason().contains(&address),
        "{}",
        pair.alice.status()
    );
    drop(occupant);
    pair.alice.wait_status("connected", SYNC_LIMIT, |status| {
        status.connection_state() == "Connected"
    });
}

#[test]
fn an_occupied_nbd_port_is_named_and_taken_by_adjust_when_it_is_free() {
    let occupant = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupant.local_addr().unwrap();
    let mut options = PairOptions::default();
    options.resource.more = format!("options {{ nbd-listen {address}; }}");
    let mut pair = Pair::prepared(&options);
    pair.alice.start();
    let told = pair.alice.try_command("up");
    assert!(
        told.code == 0
            && told.stderr.contains(&address.to_string())
            && told.stderr.contains("in use")
            && told.stderr.contains("adjust"),
        "the resource is up without it, and the port is named: {told}"
    );
    drop(occupant);
    let told = pair.alice.try_command("adjust");
    assert!(told.code == 0 && told.stderr.is_empty(), "{told}");
    TcpStream::connect(address).unwrap();
}

#[test]
fn without_a_key_nothing_connects_and_the_missing_file_is_named() {
    let mut pair = prepared();
    let key = pair.alice.key.clone();
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    for node in [&mut pair.alice, &mut pair.bob] {
        node.start();
        let told = node.try_command("up");
        assert!(format!("{told}").contains(key.to_str().unwrap()), "{told}");
    }
    let status = pair.alice.status();
    assert_eq!(status.connection_state(), "Connecting");
    assert!(status.reason().contains(key.to_str().unwrap()), "{status}");
    assert!(pair.alice.log().contains(key.to_str().unwrap()));
    // A key that everybody may read is no secret.
    fs::write(&key, &kept).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    pair.alice.wait_log("644", SOON);
    assert_ne!(pair.alice.status().connection_state(), "Connected");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    pair.alice
        .wait_status("connected once the key is there", SYNC_LIMIT, |status| {
            status.connection_state() == "Connected"
        });
}

#[test]
fn a_wrong_key_is_refused_on_both_sides_and_never_shown() {
    let mut pair = prepared();
    let other = pair.stage.path("otherkey");
    run(
        &built("qrbdadm"),
        ["keygen".as_ref(), "--output".as_ref(), other.as_os_str()],
        SOON,
    )
    .succeeded();
    pair.bob.key = other.clone();
    for node in [&mut pair.alice, &mut pair.bob] {
        node.start_and_up();
    }
    for node in [&pair.alice, &pair.bob] {
        wait::until("the refusal in the log", SYNC_LIMIT, || {
            node.log()
                .to_lowercase()
                .contains("wrong key")
                .then_some(())
        });
        assert!(node.log().contains("127."), "the peer's address is named");
        assert_ne!(node.status().connection_state(), "Connected");
    }
    pair.alice.wait_status("the reason", SYNC_LIMIT, |status| {
        status.reason().contains("key")
    });
    for file in [&pair.alice.key, &other] {
        let secret = fs::read_to_string(file).unwrap();
        let secret = secret.lines().rev().find(|line| line.len() >= 16).unwrap();
        for node in [&pair.alice, &pair.bob] {
            assert!(!node.log().contains(secret), "the key is in the log");
        }
    }
    // A Primary alone goes on all the same, and the right key repairs it.
    pair.alice.command("primary --force");
    let journal = load::write(&pair.stage, &pair.alice, "load", &["--writes", "100"]);
    pair.bob.stop();
    pair.bob.key = pair.alice.key.clone();
    pair.bob.start_and_up();
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn a_peer_with_another_resource_is_refused_by_name() {
    let mut pair = prepared();
    edit(&pair.bob, |text| {
        text.replace("resource r0", "resource other")
    });
    pair.bob.resource = "other".to_owned();
    for node in [&mut pair.alice, &mut pair.bob] {
        node.start_and_up();
    }
    for node in [&pair.alice, &pair.bob] {
        wait::until("both names in the log", SYNC_LIMIT, || {
            (node.log().contains("other") && node.log().contains("resource")).then_some(())
        });
        assert_ne!(node.status().connection_state(), "Connected");
    }
    pair.alice.wait_status("the reason", SYNC_LIMIT, |status| {
        status.reason().contains("resource")
    });
}

#[test]
fn unrelated_data_are_never_overwritten() {
    let mut pair = prepared();
    let mut journals = Vec::new();
    // Each node begins a life of its own.
    for (node, seed) in [(&mut pair.alice, "5"), (&mut pair.bob, "6")] {
        node.start_and_up();
        node.command("primary --force");
        journals.push(load::write(
            &pair.stage,
            node,
            &format!("own-{seed}"),
            &["--writes", "200", "--seed", seed],
        ));
        node.command("secondary");
        node.stop();
    }
    // They bring up what was up. Another `up` could ask a node that has just become StandAlone to connect again.
    for node in [&mut pair.alice, &mut pair.bob] {
        node.start();
    }
    for node in [&pair.alice, &pair.bob] {
        wait::until("the refusal in the log", SYNC_LIMIT, || {
            node.log()
                .to_lowercase()
                .contains("unrelated")
                .then_some(())
        });
    }
    wait::until("both StandAlone", SYNC_LIMIT, || {
        let alone = |node: &Node| node.status().connection_state() == "StandAlone";
        (alone(&pair.alice) && alone(&pair.bob)).then_some(())
    });
    for (node, journal) in [(&pair.alice, &journals[0]), (&pair.bob, &journals[1])] {
        node.command("primary");
        load::verify(node, journal);
    }
}
