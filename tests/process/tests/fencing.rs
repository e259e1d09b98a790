//! The `fencing` option, with handlers as administrators write them: shell commands with DRBD's environment and exit codes.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use qrbd_nbd::{Client, Cookie};
use qrbd_process_tests::configuration::Options;
use qrbd_process_tests::handler::assert_told;
use qrbd_process_tests::load::{self, Load};
use qrbd_process_tests::pair::{Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::stage;
use qrbd_process_tests::wait;
use tempfile::TempDir;

/// For a cut link to be noticed and a handler to be called.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);

/// A pair with a relay; each `fence-peer` writes its environment to the file `called` and ends with the exit code in the file `verdict`,
/// as soon as there is one.
struct Fenced {
    pair: Pair,
    called: PathBuf,
    verdict: PathBuf,
    unfenced: PathBuf,
    /// Where they are; behind the daemons, which go first.
    _directory: TempDir,
}

fn fenced(policy: &str) -> Fenced {
    fenced_with(policy, "")
}

fn fenced_with(policy: &str, sections: &str) -> Fenced {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let [called, verdict, unfenced] =
        ["called", "verdict", "unfenced"].map(|name| directory.path().join(name));
    let more = format!(
        "{sections}\nhandlers {{\n fence-peer \"env > {c}.new; mv {c}.new {c}; while ! test -e {v}; do sleep 0.05; done; exit $(cat {v})\";\n \
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
        _directory: directory,
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

/// Load on the Primary for so many seconds, well under way.
fn start_load(pair: &Pair, seconds: &str) -> Load {
    let arguments = ["--seconds", seconds, "--flush-every", "20"];
    let mut load = Load::start(&pair.stage, &pair.alice, "load", &arguments);
    load.wait_records(100);
    load
}

/// Nothing is answered, but for what was on its way. Gives the number of records.
fn demand_silence(load: &Load) -> u64 {
    std::thread::sleep(Duration::from_millis(300));
    let records = load.records();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(load.records(), records, "answered while I/O is suspended");
    records
}

/// The link heals, and everything that was answered is there, on both nodes.
fn heal_and_verify(pair: &Pair, load: Load) {
    pair.relay().heal();
    let journal = load.finish(Duration::from_secs(40));
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn a_primary_with_stonith_waits_for_the_handler_and_loses_nothing() {
    let fenced = fenced("resource-and-stonith");
    let pair = &fenced.pair;
    let mut load = start_load(pair, "12");
    pair.relay().cut_both();
    let environment = fenced.wait_called();
    assert_told(
        &environment,
        &[
            "DRBD_RESOURCE=r0",
            "DRBD_PEER=bob",
            "DRBD_PEER_NODE_ID=1",
            "UP_TO_DATE_NODES=0x1",
        ],
    );
    let status = pair.alice.command("status");
    assert!(status.contains("suspended:fencing"), "{status}");
    let records = demand_silence(&load);
    fenced.say(4);
    load.wait_records(records + 100);
    let status = pair.alice.status();
    assert_eq!(status.peer_disk(), "Outdated", "{status}");
    // It was called when the two met first.
    std::fs::remove_file(&fenced.unfenced).expect("it was there");
    heal_and_verify(pair, load);
    wait::until("unfence-peer is called", NOTICE_LIMIT, || {
        fenced.unfenced.exists().then_some(())
    });
}

#[test]
fn a_failed_handler_keeps_io_frozen_until_resume_io() {
    let fenced = fenced("resource-and-stonith");
    let pair = &fenced.pair;
    fenced.say(1);
    let mut load = start_load(pair, "10");
    pair.relay().cut_both();
    pair.alice.wait_log("fencing-failed", NOTICE_LIMIT);
    let refused = pair.alice.try_command("secondary");
    refused.refused(
        11,
        &[
            "(-12) Device is held open by someone",
            "qrbdadm resume-io r0",
        ],
    );
    let records = demand_silence(&load);
    pair.alice.command("resume-io");
    load.wait_records(records + 50);
    heal_and_verify(pair, load);
}

#[test]
fn without_stonith_io_goes_on_while_the_handler_runs() {
    let fenced = fenced("resource-only");
    let pair = &fenced.pair;
    let mut load = start_load(pair, "10");
    pair.relay().cut_both();
    fenced.wait_called();
    let records = load.records();
    load.wait_records(records + 100);
    fenced.say(7);
    pair.alice
        .wait_status("the peer counts as Outdated", NOTICE_LIMIT, |status| {
            status.peer_disk() == "Outdated"
        });
    heal_and_verify(pair, load);
}

#[test]
fn a_promotion_without_the_peer_takes_the_handler_and_obeys_it() {
    let mut fenced = fenced("resource-only");
    fenced.pair.alice.command("secondary");
    fenced.pair.alice.kill();
    let pair = &fenced.pair;
    pair.bob.wait_disconnected(NOTICE_LIMIT);
    assert!(
        !fenced.called.exists(),
        "a Secondary that loses its peer fences nobody"
    );
    fenced.say(1);
    let refused = pair.bob.try_command("primary");
    refused.refused(
        11,
        &[
            "(-7) Refusing to be Primary while peer is not outdated",
            "fence-peer handler failed",
        ],
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
    pair.alice.wait_disconnected(NOTICE_LIMIT);
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

/// The Primary's daemon ends, and the peer is neither fenced nor harmed.
fn stop_fences_nobody(fenced: &mut Fenced) {
    fenced.pair.alice.stop();
    let log = fenced.pair.alice.log();
    assert!(!log.contains("handler fence-peer"), "{log}");
    assert!(!fenced.called.exists());
    fenced.pair.bob.wait_disconnected(NOTICE_LIMIT);
    assert_eq!(fenced.pair.bob.status().disk(), "UpToDate");
}

#[test]
fn a_primary_that_is_stopped_while_a_client_has_it_open_over_tcp_is_demoted_first() {
    let listen = stage::address();
    let mut fenced = fenced_with(
        "resource-and-stonith",
        &format!("options {{ nbd-listen {listen}; }}"),
    );
    let stream = TcpStream::connect(listen).expect("somebody listens");
    let mut client = Client::connect(stream, "r0").expect("the export is served");
    client.write(0, &[7; 4096], false).expect("it is Primary");
    stop_fences_nobody(&mut fenced);
    let log = fenced.pair.alice.log();
    assert!(log.contains("role Primary -> Secondary"), "{log}");
}

#[test]
fn a_primary_that_is_stopped_and_cannot_be_demoted_fences_nobody() {
    let mut fenced = fenced("resource-and-stonith");
    fenced.pair.alice.command("suspend-io");
    let mut client = fenced.pair.alice.client();
    client
        .send_write(Cookie(1), 0, &[7; 4096], false)
        .expect("it is sent");
    stop_fences_nobody(&mut fenced);
    let log = fenced.pair.alice.log();
    assert!(log.contains("left as it is"), "{log}");
}

#[test]
fn suspended_io_waits_for_resume_io() {
    let pair = Pair::ready(&PairOptions::default());
    let mut load = start_load(&pair, "6");
    pair.alice.command("suspend-io");
    assert!(pair.alice.command("status").contains("suspended:user"));
    let records = demand_silence(&load);
    pair.alice.command("resume-io");
    load.wait_records(records + 50);
    let journal = load.finish(Duration::from_secs(40));
    load::verify(&pair.alice, &journal);
}
