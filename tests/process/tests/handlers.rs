//! Handlers, as administrators write them: shell commands with DRBD's environment, whose exit codes count where they do in DRBD.

use std::path::PathBuf;
use std::time::Duration;

use qrbd_process_tests::configuration::Options;
use qrbd_process_tests::handler::assert_told;
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::wait;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// A pair whose handlers write their environment to a file with their name.
struct Handled {
    pair: Pair,
    /// Behind the daemons, which go first.
    directory: TempDir,
}

fn handled(lines: impl Fn(&str) -> String) -> Handled {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().display().to_string();
    let pair = Pair::ready(&PairOptions {
        resource: Options {
            more: format!("handlers {{\n{}\n}}", lines(&path)),
            ..Options::default()
        },
        ..PairOptions::default()
    });
    Handled { pair, directory }
}

impl Handled {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn wait_called(&self, name: &str) -> String {
        wait::until("the handler is called", SOON, || {
            std::fs::read_to_string(self.path(name)).ok()
        })
    }

    /// What the handler says from now on.
    fn say(&self, code: i32) {
        std::fs::write(self.path("verdict"), code.to_string()).expect("a file can be written");
    }
}

fn write(node: &Node, value: u8) {
    let mut client = node.client();
    client.write(4096, &[value; 4096], true).unwrap();
    client.disconnect().unwrap();
}

/// The block on the disk itself.
fn on_disk(node: &Node) -> u8 {
    let bytes = std::fs::read(&node.disk).unwrap();
    bytes[4096]
}

#[test]
fn a_resync_begins_when_the_targets_handler_allows_it_and_not_before() {
    // The snapshot is what such a handler is for: what the disk held before the resync.
    let handled = handled(|path| {
        format!(
            "before-resync-target \"env > {path}/new; cp $DRBD_LL_DISK {path}/snapshot; mv {path}/new {path}/before; \
             exit $(cat {path}/verdict || echo 0)\";\n\
             after-resync-target \"env > {path}/new-after; mv {path}/new-after {path}/after\";"
        )
    });
    let mut pair = &handled.pair;
    write(&pair.alice, 1);
    let mut handled = handled;
    handled.say(1);
    handled.pair.bob.kill();
    pair = &handled.pair;
    pair.alice.wait_status("alone", SOON, |status| {
        status.connection_state() != "Connected"
    });
    write(&pair.alice, 7);
    handled.pair.bob.start_and_up();
    let environment = handled.wait_called("before");
    pair = &handled.pair;
    assert_told(
        &environment,
        &[
            "DRBD_RESOURCE=r0",
            "DRBD_VOLUME=0",
            "DRBD_PEER=alice",
            "DRBD_PEER_NODE_ID=0",
        ],
    );
    pair.bob
        .wait_status("refused by its handler", SOON, |status| {
            status.connection_state() == "StandAlone"
        });
    assert!(
        pair.bob
            .log()
            .contains("handler before-resync-target ended with exit code 1"),
        "the log says why"
    );
    assert_eq!(pair.bob.command("dstate"), "Outdated/DUnknown\n");
    assert_eq!(on_disk(&pair.bob), 1, "nothing was copied");
    assert!(!handled.path("after").exists());
    // The Primary goes on, and tries again as soon as it is wanted.
    write(&pair.alice, 8);
    handled.say(0);
    pair.bob.command("connect");
    pair.bob.wait_healthy(SYNC_LIMIT);
    handled.wait_called("after");
    let snapshot = std::fs::read(handled.path("snapshot")).unwrap();
    assert_eq!(
        snapshot[4096], 1,
        "the snapshot holds what was there before"
    );
    assert_eq!(on_disk(&pair.bob), 8);
    pair.assert_equal_disks();
}

#[test]
fn a_primary_that_has_no_good_data_any_more_calls_its_handler() {
    let mut handled = handled(|path| {
        format!("pri-on-incon-degr \"env > {path}/new; mv {path}/new {path}/degraded\";")
    });
    write(&handled.pair.alice, 1);
    handled.pair.alice.command("detach");
    assert!(!handled.path("degraded").exists(), "bob has good data");
    write(&handled.pair.alice, 2);
    handled.pair.bob.kill();
    let environment = handled.wait_called("degraded");
    assert_told(&environment, &["DRBD_RESOURCE=r0", "DRBD_VOLUME=0"]);
}
