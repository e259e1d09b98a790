//! `resize`: disks grow under running nodes, and the volume with them.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use qrbd_process_tests::load::{self, Load};
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{DISK_BYTES, Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::wait;

const GROWN: u64 = 96 << 20;
const SOON: Duration = Duration::from_secs(20);

fn grow(disk: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    file.set_len(bytes).unwrap();
}

fn size(node: &Node) -> u64 {
    node.status().size_bytes()
}

fn wait_size(node: &Node, what: &str, so: impl Fn(u64) -> bool) -> u64 {
    wait::until(what, SOON, || Some(size(node)).filter(|&bytes| so(bytes)))
}

#[test]
fn a_volume_grows_under_load_and_survives_a_failover_and_restarts() {
    let mut pair = Pair::ready(&PairOptions::default());
    let old = size(&pair.alice);
    let mut load = Load::start(
        &pair.stage,
        &pair.alice,
        "during",
        &["--writes", "20000", "--flush-every", "20"],
    );
    load.wait_records(500);
    // One disk alone changes nothing, and the command says which one is missing.
    grow(&pair.alice.disk, GROWN);
    let said = pair.alice.try_command("resize");
    assert!(said.stderr.contains("the peer's"), "{}", said.stderr);
    said.succeeded();
    assert_eq!(size(&pair.alice), old);
    grow(&pair.bob.disk, GROWN);
    pair.alice.command("resize");
    let new = wait_size(&pair.alice, "the volume has grown", |bytes| bytes > old);
    assert!(
        new > old + (GROWN - DISK_BYTES) - (1 << 20),
        "{new} after {old}"
    );
    let journal = load.finish(SYNC_LIMIT);
    pair.alice.command("wait-sync");
    pair.alice.wait_healthy(SYNC_LIMIT);
    assert_eq!(size(&pair.bob), new);
    assert!(pair.alice.log().contains("resized"), "the log tells it");
    // What is added takes writes, on both nodes.
    let mut client = pair.alice.client();
    assert_eq!(client.size(), new);
    client.write(new - 4096, &[7; 4096], true).unwrap();
    client.disconnect().unwrap();
    load::verify(&pair.alice, &journal);
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::assert_equal(&pair.alice.disk, &pair.bob.disk, new);
    pair.alice.kill();
    pair.bob.promote(SYNC_LIMIT);
    load::verify(&pair.bob, &journal);
    let mut last = [0; 4096];
    pair.bob.client().read(new - 4096, &mut last).unwrap();
    assert_eq!(last, [7; 4096]);
    pair.alice.start_and_up();
    pair.bob.wait_healthy(SYNC_LIMIT);
    assert_eq!(size(&pair.alice), new);
}

#[test]
fn refusals_name_the_node_and_the_remedy_in_drbd_s_numbers() {
    let mut pair = Pair::ready(&PairOptions::default());
    let old = size(&pair.alice);
    for disk in [&pair.alice.disk, &pair.bob.disk] {
        grow(disk, DISK_BYTES + 8192);
    }
    pair.alice
        .try_command("resize")
        .refused(10, &["(111)", "too little", "grow it to at least"]);
    for disk in [&pair.alice.disk, &pair.bob.disk] {
        grow(disk, GROWN);
    }
    pair.bob.try_command("resize").refused(
        10,
        &[
            "(131)",
            "Need one Primary node to resize.",
            "run it on the Primary",
        ],
    );
    pair.alice
        .try_command("resize --size 1M")
        .refused(10, &["(111)", "none is made smaller"]);
    pair.bob.stop();
    pair.alice.wait_disconnected(SYNC_LIMIT);
    pair.alice
        .try_command("resize")
        .refused(11, &["(-15)", "not connected", "connect it"]);
    assert_eq!(size(&pair.alice), old);
    // A disk that grew while its node was down is found and grows with the next resize.
    pair.bob.start_and_up();
    pair.alice.wait_healthy(SYNC_LIMIT);
    assert!(pair.bob.log().contains("qrbdadm resize r0/0"));
    // What cannot be remembered outside of the disk is not begun.
    let [known, aside] =
        ["last-known", "aside"].map(|name| pair.stage.path("alice.state").join(name));
    std::fs::rename(&known, &aside).unwrap();
    std::fs::write(&known, "in the way").unwrap();
    pair.alice
        .try_command("resize")
        .refused(10, &["(118)", "cannot be remembered", "log"]);
    assert!(pair.alice.log().contains("last-known/alice.r0.0"));
    std::fs::remove_file(&known).unwrap();
    std::fs::rename(&aside, &known).unwrap();
    pair.alice.command("resize --assume-clean");
    let new = wait_size(&pair.alice, "the volume has grown", |bytes| bytes > old);
    assert_eq!(size(&pair.bob), new);
    assert_eq!(pair.alice.wait_healthy(SYNC_LIMIT).out_of_sync_bytes(), 0);
    load::assert_equal(&pair.alice.disk, &pair.bob.disk, new);
    let remembered = std::fs::read_to_string(known.join("alice.r0.0")).unwrap();
    assert!(
        remembered.contains(&format!("device-bytes {GROWN}\n"))
            && !remembered.contains("moving-to"),
        "{remembered}"
    );
}

#[test]
fn a_daemon_that_is_killed_during_a_resize_comes_back_with_everything() {
    let mut pair = Pair::ready(&PairOptions::default());
    let old = size(&pair.alice);
    let journal = load::write(&pair.stage, &pair.alice, "before", &["--writes", "400"]);
    for disk in [&pair.alice.disk, &pair.bob.disk] {
        grow(disk, GROWN);
    }
    // Whether the answer came before the death or not, both ends are good.
    std::thread::scope(|scope| {
        let alice = &pair.alice;
        let asked = scope.spawn(move || alice.try_command("resize"));
        pair.bob.kill();
        asked.join().unwrap();
    });
    pair.bob.start_and_up();
    pair.alice.wait_healthy(SYNC_LIMIT);
    pair.alice.kill();
    pair.alice.start_and_up();
    pair.bob.wait_healthy(SYNC_LIMIT);
    pair.alice.promote(SYNC_LIMIT);
    // The peer may not have noticed the death when it was asked; a resync refuses.
    pair.alice.wait_healthy(SYNC_LIMIT);
    pair.alice.command("resize");
    wait_size(&pair.alice, "the volume has grown", |bytes| bytes > old);
    pair.alice.wait_healthy(SYNC_LIMIT);
    load::verify(&pair.alice, &journal);
}
