//! Bad input from disks: metadata that is damaged, short or foreign, disks that shrank, are busy or full. A clear error that names the
//! disk, nothing repaired silently, nothing acknowledged lost.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qrbd_process_tests::file_system::{LoopDevice, Mount};
use qrbd_process_tests::load::{self, Load};
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{DISK_BYTES, Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::programs::{installed, run};
use qrbd_process_tests::stage::Stage;
use qrbd_process_tests::wait;

const SOON: Duration = Duration::from_secs(10);
/// Bytes at the end of the device that hold both superblocks and the activity log.
const SUPERBLOCKS_AND_LOG: u64 = 131_072;

fn overwrite(disk: &Path, from_end: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    let at = file.metadata().unwrap().len() - from_end;
    file.write_all_at(bytes, at).unwrap();
}

/// A pair that has data, with both daemons stopped; gives the journal of what is there.
fn stopped_with_data() -> (Pair, PathBuf) {
    let mut pair = Pair::ready(&PairOptions::default());
    let journal = load::write(&pair.stage, &pair.alice, "load", &["--writes", "300"]);
    pair.alice.command("secondary");
    for node in [&mut pair.alice, &mut pair.bob] {
        node.stop();
    }
    (pair, journal)
}

/// `up` is refused with this number, and the disk is named.
fn attach_refused(node: &mut Node, number: u16, words: &[&str]) {
    node.start();
    let disk = node.disk.display().to_string();
    let refused = node
        .try_command("up")
        .refused(10, &[&format!("({number})"), &disk]);
    for word in words {
        assert!(refused.contains(word), "'{word}' in {refused}");
    }
    assert_eq!(node.status().disk(), "Diskless");
}

#[test]
fn damaged_metadata_are_refused_and_the_data_stay_on_the_other_node() {
    let (mut pair, journal) = stopped_with_data();
    overwrite(
        &pair.alice.disk,
        SUPERBLOCKS_AND_LOG,
        &vec![0xa5; SUPERBLOCKS_AND_LOG as usize],
    );
    attach_refused(&mut pair.alice, 119, &["metadata"]);
    pair.bob.start_and_up();
    pair.bob.command("primary");
    load::verify(&pair.bob, &journal);
    // Made anew, it gets everything back.
    pair.alice.command("down");
    pair.alice.command("create-md --force");
    pair.alice.command("up");
    pair.bob.wait_healthy(SYNC_LIMIT);
    pair.assert_equal_disks();
}

#[test]
fn a_damaged_superblock_is_replaced_by_its_good_copy_with_a_word_in_the_log() {
    let (mut pair, journal) = stopped_with_data();
    overwrite(&pair.alice.disk, 4096, &[0xa5; 512]);
    pair.alice.start_and_up();
    assert!(
        pair.alice
            .log()
            .contains("the other copy of the superblock is good")
    );
    pair.bob.start_and_up();
    pair.alice.wait_healthy(SYNC_LIMIT);
    pair.alice.command("primary");
    load::verify(&pair.alice, &journal);
    pair.assert_equal_disks();
}

#[test]
fn a_damaged_field_is_named() {
    let (mut pair, _) = stopped_with_data();
    // Behind the magic of both copies.
    for from_end in [4096, SUPERBLOCKS_AND_LOG] {
        overwrite(&pair.alice.disk, from_end - 8, &99_u32.to_le_bytes());
    }
    attach_refused(
        &mut pair.alice,
        119,
        &["copy A", "copy B", "field checksum"],
    );
}

#[test]
fn a_disk_without_metadata_is_refused_with_the_command_that_makes_them() {
    let mut pair = Pair::prepared(&PairOptions::default());
    File::create(&pair.alice.disk)
        .unwrap()
        .set_len(DISK_BYTES)
        .unwrap();
    attach_refused(&mut pair.alice, 119, &["create-md"]);
}

#[test]
fn metadata_of_drbd_are_recognised_and_left_alone() {
    let mut pair = Pair::prepared(&PairOptions::default());
    File::create(&pair.alice.disk)
        .unwrap()
        .set_len(DISK_BYTES)
        .unwrap();
    // The last block of the disk, with DRBD 9's magic where it stands.
    let mut superblock = vec![0; 4096];
    superblock[60..64].copy_from_slice(&0x8374_026d_u32.to_be_bytes());
    overwrite(&pair.alice.disk, 4096, &superblock);
    let before = fs::read(&pair.alice.disk).unwrap();
    attach_refused(&mut pair.alice, 119, &["DRBD", "v09"]);
    pair.alice.command("down");
    let told = pair.alice.try_command("create-md");
    assert!(told.code == 1 && told.stdout.contains("DRBD"), "{told}");
    assert!(
        fs::read(&pair.alice.disk).unwrap() == before,
        "nothing was written"
    );
}

#[test]
fn another_node_s_disk_is_refused() {
    let (mut pair, _) = stopped_with_data();
    fs::copy(&pair.bob.disk, &pair.alice.disk).unwrap();
    attach_refused(&mut pair.alice, 171, &["node-id"]);
}

/// Alice's metadata go to a file of their own; its path.
fn use_external_metadata(pair: &Pair) -> PathBuf {
    let meta = pair.stage.file("alice.meta", 8 << 20);
    let text = fs::read_to_string(&pair.alice.configuration).unwrap();
    let external = format!("meta-disk {};", meta.display());
    fs::write(
        &pair.alice.configuration,
        text.replacen("meta-disk internal;", &external, 1),
    )
    .unwrap();
    meta
}

#[test]
fn metadata_that_are_too_short_are_refused() {
    let mut pair = Pair::prepared(&PairOptions::default());
    let meta = use_external_metadata(&pair);
    pair.alice.command("create-md --force");
    File::options()
        .write(true)
        .open(&meta)
        .unwrap()
        .set_len(16 << 10)
        .unwrap();
    pair.alice.start();
    let refused = pair.alice.try_command("up");
    refused.refused(10, &[meta.to_str().unwrap()]);
    assert_eq!(pair.alice.status().disk(), "Diskless");
    pair.alice.command("down");
    let told = pair.alice.try_command("create-md --force");
    assert!(told.code != 0 && told.stderr.contains("small"), "{told}");
}

#[test]
fn a_disk_that_became_smaller_is_refused_and_its_peer_keeps_everything() {
    let (mut pair, journal) = stopped_with_data();
    File::options()
        .write(true)
        .open(&pair.alice.disk)
        .unwrap()
        .set_len(DISK_BYTES - (1 << 20))
        .unwrap();
    attach_refused(&mut pair.alice, 119, &[]);
    pair.bob.start_and_up();
    pair.bob.command("primary");
    load::verify(&pair.bob, &journal);
}

#[test]
fn a_disk_in_front_of_external_metadata_that_became_smaller_is_refused() {
    let mut pair = Pair::prepared(&PairOptions::default());
    use_external_metadata(&pair);
    pair.alice.command("create-md --force");
    for node in [&mut pair.alice, &mut pair.bob] {
        node.start_and_up();
    }
    pair.alice.wait_status("connected", SYNC_LIMIT, |status| {
        status.connection_state() == "Connected"
    });
    pair.alice.command("new-current-uuid --clear-bitmap");
    pair.alice.wait_healthy(SYNC_LIMIT);
    pair.alice.stop();
    File::options()
        .write(true)
        .open(&pair.alice.disk)
        .unwrap()
        .set_len(DISK_BYTES / 2)
        .unwrap();
    pair.alice.start();
    pair.alice.try_command("up").refused(10, &["(170)", "size"]);
    assert_eq!(pair.alice.status().disk(), "Diskless");
}

#[test]
fn a_missing_disk_and_one_that_is_none_are_refused_by_name() {
    let mut pair = Pair::prepared(&PairOptions::default());
    fs::remove_file(&pair.alice.disk).unwrap();
    attach_refused(&mut pair.alice, 104, &["no such file"]);
    pair.alice.command("down");
    fs::create_dir(&pair.alice.disk).unwrap();
    pair.alice
        .try_command("up")
        .refused(10, &["(104)", pair.alice.disk.to_str().unwrap()]);
}

#[test]
fn a_disk_that_another_daemon_uses_is_refused_with_its_process() {
    let mut pair = Pair::prepared(&PairOptions::default());
    pair.alice.start_and_up();
    let holder = pair.alice.daemon().id().to_string();
    // A second daemon of the same node, on the same disk.
    let mut second = Node::new(
        &pair.stage,
        "alice",
        "r0",
        &pair.alice.disk,
        &pair.alice.configuration,
        &pair.alice.key,
    );
    second.use_directories_of(&pair.stage, "second");
    attach_refused(&mut second, 114, &[&holder]);
    assert_ne!(pair.alice.status().disk(), "Diskless");
    second.command("down");
    // The offline tools keep their hands off it too.
    let told = second.try_command("create-md --force");
    assert!(told.code != 0 && told.stderr.contains(&holder), "{told}");
}

#[test]
fn a_mounted_disk_is_refused_with_its_mount_point() {
    let stage = Stage::new();
    let image = stage.file("mounted.img", 32 << 20);
    run(
        &installed("e2fsprogs", "mkfs.ext4"),
        ["-q".as_ref(), "-F".as_ref(), image.as_os_str()],
        SOON,
    )
    .succeeded();
    let device = LoopDevice::new(&image);
    let mount = Mount::new(&stage, "mounted", device.path());
    let mut pair = Pair::prepared(&PairOptions::default());
    let text = fs::read_to_string(&pair.alice.configuration).unwrap();
    let disk = pair.alice.disk.display().to_string();
    fs::write(
        &pair.alice.configuration,
        text.replacen(&disk, device.path().to_str().unwrap(), 1),
    )
    .unwrap();
    pair.alice.disk = device.path().to_owned();
    attach_refused(&mut pair.alice, 114, &[mount.directory().to_str().unwrap()]);
    mount.unmount();
    pair.alice.command("down");
    // Not busy any more, but there is a file system: it is in the way of internal metadata.
    pair.alice.try_command("create-md").refused(40, &["ext4"]);
    drop(pair);
}

#[test]
fn create_md_asks_before_it_destroys_metadata() {
    let pair = Pair::prepared(&PairOptions::default());
    let before = fs::read(&pair.alice.disk).unwrap();
    let told = pair.alice.try_command("create-md");
    told.clone().refused(1, &["canceled"]);
    assert!(told.stdout.contains("destroy"), "{told}");
    assert!(
        fs::read(&pair.alice.disk).unwrap() == before,
        "nothing was written"
    );
}

/// A directory of limited space.
struct SmallSpace {
    _mount: Mount,
    _device: LoopDevice,
    directory: PathBuf,
}

/// An ext4 of its own with so many bytes.
fn small_space(stage: &Stage, bytes: u64) -> SmallSpace {
    let image = stage.file("space.img", bytes);
    run(
        &installed("e2fsprogs", "mkfs.ext4"),
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-m0".as_ref(),
            image.as_os_str(),
        ],
        SOON,
    )
    .succeeded();
    let device = LoopDevice::new(&image);
    let mount = Mount::new(stage, "space", device.path());
    SmallSpace {
        directory: mount.directory().to_owned(),
        _mount: mount,
        _device: device,
    }
}

/// The disk of one node does not fit where it is: it fills up under load. The node goes on without it, nothing is lost; the handler
/// is called where the option asks for it.
fn full_disk(of_primary: bool, on_io_error: &str) {
    let space_stage = Stage::new();
    let space = small_space(&space_stage, 40 << 20);
    let called = space_stage.path("handler-was-called");
    let mut options = PairOptions::default();
    options.resource.disk = format!("on-io-error {on_io_error};");
    options.resource.more = format!(
        "handlers {{ local-io-error \"echo $DRBD_RESOURCE/$DRBD_VOLUME >> {}\"; }}",
        called.display()
    );
    let mut pair = Pair::prepared(&options);
    let node = if of_primary {
        &mut pair.alice
    } else {
        &mut pair.bob
    };
    let disk = space.directory.join("thin.disk");
    File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    let text = fs::read_to_string(&node.configuration).unwrap();
    fs::write(
        &node.configuration,
        text.replace(&node.disk.display().to_string(), disk.to_str().unwrap()),
    )
    .unwrap();
    node.disk = disk;
    node.command("create-md");
    for node in [&mut pair.alice, &mut pair.bob] {
        node.start_and_up();
    }
    pair.alice.wait_status("connected", SYNC_LIMIT, |status| {
        status.connection_state() == "Connected"
    });
    pair.alice.command("new-current-uuid --clear-bitmap");
    pair.alice.wait_healthy(SYNC_LIMIT);
    pair.alice.command("primary");
    let mut load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &["--writes", "6000", "--block-size", "16384"],
    );
    let full = if of_primary { &pair.alice } else { &pair.bob };
    wait::until("the full disk is given up", SYNC_LIMIT, || {
        let _ = load.has_ended();
        (full.status().disk() == "Diskless").then_some(())
    });
    let journal = load.finish(SYNC_LIMIT);
    load::verify(&pair.alice, &journal);
    let log = full.log();
    assert!(
        log.contains("space") || log.contains("full"),
        "the log says what happened"
    );
    assert!(
        log.lines()
            .any(|line| line.contains(" WARN ") && line.contains("Failed")),
        "who reads warnings alone hears of it"
    );
    if on_io_error == "call-local-io-error" {
        let said = wait::until("the handler's word", SOON, || {
            fs::read_to_string(&called)
                .ok()
                .filter(|said| !said.is_empty())
        });
        assert_eq!(said, "r0/0\n", "once, for the volume that failed");
    } else {
        assert!(!called.exists(), "nobody asked for the handler");
    }
    pair.alice.must_run();
    pair.bob.must_run();
    if of_primary {
        pair.alice.command("secondary");
        pair.bob.command("primary");
        load::verify(&pair.bob, &journal);
    }
    // Released before the space goes.
    for node in [&mut pair.alice, &mut pair.bob] {
        node.stop();
    }
}

#[test]
fn a_primary_whose_disk_is_full_goes_on_through_its_peer() {
    full_disk(true, "call-local-io-error");
}

#[test]
fn a_secondary_whose_disk_is_full_does_not_disturb_the_primary() {
    full_disk(false, "detach");
}
