//! A daemon that follows another one in the same run directory: what was up is up again, and its role is asked for anew.

use std::time::Duration;

use nix::sys::signal::Signal;
use qrbd_process_tests::load;
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::wait;

const SOON: Duration = Duration::from_secs(20);

/// Nobody said `up`.
fn wait_up(node: &Node) {
    wait::until("the resource is up again", SOON, || {
        (node.try_command("dstate").code == 0).then_some(())
    });
}

#[test]
fn a_daemon_that_was_killed_has_everything_up_again_that_was_up() {
    let mut pair = Pair::ready(&PairOptions::default());
    let journal = load::write(&pair.stage, &pair.alice, "before", &["--writes", "200"]);
    pair.alice.kill();
    pair.alice.start();
    wait_up(&pair.alice);
    // Without a kernel device in use nobody waits for the role.
    let healthy = pair
        .alice
        .wait_status("connected again", SYNC_LIMIT, |status| {
            status.connection_state() == "Connected" && status.disk() == "UpToDate"
        });
    assert_eq!(healthy.role(), "Secondary", "{healthy}");
    pair.alice.promote(SOON);
    load::try_verify(&pair.alice, &journal, &["--allow-foreign"]).succeeded();
}

#[test]
fn what_was_taken_down_stays_down() {
    let mut pair = Pair::ready(&PairOptions::default());
    pair.alice.command("secondary");
    pair.alice.command("down");
    pair.alice.kill();
    pair.alice.start();
    assert_eq!(pair.alice.try_command("role").code, 10);
}

#[test]
fn usr2_executes_the_program_anew_under_the_same_process_id() {
    let mut pair = Pair::ready(&PairOptions::default());
    let id = pair.alice.daemon().id();
    pair.alice.daemon().signal(Signal::SIGUSR2);
    wait::until("it says that it has started again", SOON, || {
        let log = pair.alice.log();
        (log.matches("is node alice, control socket").count() == 2).then_some(())
    });
    assert!(pair.alice.daemon().ended().is_none());
    assert_eq!(pair.alice.daemon().id(), id);
    wait_up(&pair.alice);
    pair.alice
        .wait_status("connected again", SYNC_LIMIT, |status| {
            status.connection_state() == "Connected"
        });
    pair.alice.promote(SOON);
}
