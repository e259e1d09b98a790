//! The `fencing` option, with handlers as administrators write them: shell commands with DRBD's environment and exit codes.

use std::path::PathBuf;
use std::time::Duration;

use qrbd_process_tests::configuration::Options;
use qrbd_process_tests::load::{self, Load};
use qrbd_process_tests::pair::{Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::wait;

/// For a cut link to be noticed and a handler to be called.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);

/// A pair with a relay; each `fence-peer` writes its environment to the file `called` and ends with the exit code in the file `verdict`,
/// as soon as there is one.
struct Fenced {
    pair: Pair,
    called: PathBuf,
    verdict: PathBuf,
    unfenced: PathBuf,
}

fn fenced(policy: &str) -> Fenced {
    let directory = tempfile::tempdir().expect("a directory can be made").keep();
    let (called, verdict, unfenced) = (
        directory.join("called"),
        directory.join("verdict"),
        directory.join("unfenced"),
    );
    let more = format!(
        "handlers {{\n fence-peer \"env > {c}.new; mv {c}.new {c}; while ! test -e {v}; do sleep 0.05; done; exit $(cat {v})\";\n \
         unfence-peer \"touch {u}\";\n }}",
        c = called.display(),
        v = verdict.display(),
        u = unfenced.display()
    );
    let pair = Pair::ready(&PairOptions {
        relay: true,
        resource: Options {
            net: format!("fencing {policy};"),
            more,
            ..Options::default()
        },
        ..PairOptions::default()
    });
    Fenced {
        pair,
        called,
        verdict,
        unfenced,
    }
}

impl Fenced {
    fn wait_called(&self) -> String {
        wait::until("the handler is called", NOTICE_LIMIT, || {
            std::fs::read_to_string(&self.called).ok()
        })
    }

    fn say(&self, code: i32) {
        let new = self.verdict.with_extension("new");
        std::fs::write(&new, code.to_string()).expect("a file can be written");
        std::fs::rename(&new, &self.verdict).expect("a file can be renamed");
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        let directory = self.called.parent().expect("it is in a directory");
        let _ = std::fs::remove_dir_all(directory);
    }
}

#[test]
fn a_primary_with_stonith_waits_for_the_handler_and_loses_nothing() {
    let fenced = fenced("resource-and-stonith");
    let pair = &fenced.pair;
    let mut load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &["--seconds", "12", "--flush-every", "20"],
    );
    load.wait_records(200);
    pair.relay().cut_both();
    let environment = fenced.wait_called();
    for line in [
        "DRBD_RESOURCE=r0",
        "DRBD_PEER=bob",
        "DRBD_PEER_NODE_ID=1",
        "UP_TO_DATE_NODES=0x1",
    ] {
        assert!(
            environment.lines().any(|said| said == line),
            "{line}: {environment}"
        );
    }
    let status = pair.alice.command("status");
    assert!(status.contains("suspended:fencing"), "{status}");
    // Nothing is answered meanwhile, but for what was on its way.
    std::thread::sleep(Duration::from_millis(300));
    let records = load.records();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        load.records(),
        records,
        "answered while the peer was not fenced"
    );
    fenced.say(4);
    load.wait_records(records + 100);
    let status = pair.alice.status();
    assert_eq!(status.peer_disk(), "Outdated", "{status}");
    // It was called when the two met first.
    std::fs::remove_file(&fenced.unfenced).expect("it was there");
    pair.relay().heal();
    let journal = load.finish(Duration::from_secs(40));
    pair.alice.wait_healthy(SYNC_LIMIT);
    wait::until("unfence-peer is called", NOTICE_LIMIT, || {
        fenced.unfenced.exists().then_some(())
    });
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn a_failed_handler_keeps_io_frozen_until_resume_io() {
    let fenced = fenced("resource-and-stonith");
    let pair = &fenced.pair;
    fenced.say(1);
    let mut load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &["--seconds", "10", "--flush-every", "20"],
    );
    load.wait_records(50);
    pair.relay().cut_both();
    pair.alice.wait_log("fencing-failed", NOTICE_LIMIT);
    let records = load.records();
    let refused = pair.alice.try_command("secondary");
    refused.refused(11, &["(-12) Device is held open by someone"]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(load.records(), records);
    pair.alice.command("resume-io");
    load.wait_records(records + 50);
    pair.relay().heal();
    let journal = load.finish(Duration::from_secs(40));
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn without_stonith_io_goes_on_while_the_handler_runs() {
    let fenced = fenced("resource-only");
    let pair = &fenced.pair;
    let mut load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &["--seconds", "10", "--flush-every", "20"],
    );
    load.wait_records(50);
    pair.relay().cut_both();
    fenced.wait_called();
    let records = load.records();
    load.wait_records(records + 100);
    fenced.say(7);
    pair.alice
        .wait_status("the peer counts as Outdated", NOTICE_LIMIT, |status| {
            status.peer_disk() == "Outdated"
        });
    pair.relay().heal();
    let journal = load.finish(Duration::from_secs(40));
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn a_promotion_without_the_peer_takes_the_handler_and_obeys_it() {
    let mut fenced = fenced("resource-only");
    fenced.pair.alice.command("secondary");
    fenced.pair.alice.kill();
    let pair = &fenced.pair;
    pair.bob
        .wait_status("the loss is noticed", NOTICE_LIMIT, |status| {
            status.connection_state() != "Connected"
        });
    assert!(
        !fenced.called.exists(),
        "a Secondary that loses its peer fences nobody"
    );
    fenced.say(1);
    let refused = pair.bob.try_command("primary");
    refused.refused(
        11,
        &["(-7) Refusing to be Primary while peer is not outdated"],
    );
    fenced.say(5);
    pair.bob.command("primary");
    // The data that bob has are the newest; what comes back gets them.
    fenced.pair.alice.start_and_up();
    fenced.pair.alice.wait_healthy(SYNC_LIMIT);
    assert_eq!(fenced.pair.bob.command("role"), "Primary\n");
}

#[test]
fn a_secondary_that_leaves_is_outdated_and_nobody_is_fenced() {
    let fenced = fenced("resource-and-stonith");
    let pair = &fenced.pair;
    pair.bob.command("disconnect");
    assert_eq!(pair.bob.status().disk(), "Outdated");
    pair.alice.wait_status("parted", NOTICE_LIMIT, |status| {
        status.connection_state() != "Connected"
    });
    assert_eq!(pair.alice.status().peer_disk(), "Outdated");
    let journal = load::write(&pair.stage, &pair.alice, "alone", &["--seconds", "1"]);
    pair.bob
        .try_command("primary")
        .refused(17, &["(-2) Need access to UpToDate data"]);
    pair.bob.command("connect");
    pair.alice.wait_healthy(SYNC_LIMIT);
    // The Primary's own `disconnect` has the other one be Outdated first.
    pair.alice.command("disconnect");
    pair.bob.wait_status("Outdated", NOTICE_LIMIT, |status| {
        status.disk() == "Outdated"
    });
    assert!(!fenced.called.exists(), "nobody had to be fenced");
    load::verify(&pair.alice, &journal);
}

#[test]
fn suspended_io_waits_for_resume_io() {
    let pair = Pair::ready(&PairOptions::default());
    let mut load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &["--seconds", "6", "--flush-every", "20"],
    );
    load.wait_records(50);
    pair.alice.command("suspend-io");
    assert!(pair.alice.command("status").contains("suspended:user"));
    std::thread::sleep(Duration::from_millis(300));
    let records = load.records();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(load.records(), records);
    pair.alice.command("resume-io");
    load.wait_records(records + 50);
    let journal = load.finish(Duration::from_secs(40));
    load::verify(&pair.alice, &journal);
}
