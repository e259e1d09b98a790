//! Metadata commands on real files, without a daemon.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use qrbd_engine::metadata::image::{Step, load, superblock_update};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::units::{Generation, NodeId};

use super::fixtures::{blank, configured, qrbdadm, qrbdadm_with_input};

const FRESH: &str =
    "0000000000000004:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:1:0:0:0:0:0:0:0\n";

#[test]
fn create_md_makes_metadata_that_is_just_created() {
    let directory = configured("internal");
    let ran = qrbdadm(directory.path(), &["create-md", "r0"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let disk = directory.path().join("disk");
    assert_eq!(
        ran.stdout,
        format!(
            "initializing activity log\n\
             initializing bitmap (4 KB) to all zero\n\
             Writing metadata...\n\
             New QRBD metadata block successfully created.\n\
             r0/0: 65404 kB of {} are for data, 132 kB at its end for metadata.\n",
            disk.display()
        )
    );
    assert_eq!(qrbdadm(directory.path(), &["get-gi", "r0"]).stdout, FRESH);
    assert_eq!(
        qrbdadm(directory.path(), &["dstate", "r0"]).stdout,
        "Inconsistent/DUnknown\n"
    );
    assert!(
        qrbdadm(directory.path(), &["show-gi", "r0"])
            .stdout
            .contains("r0/0  peer bob, node-id 1")
    );
    let dump = qrbdadm(directory.path(), &["dump-md", "r0"]).stdout;
    assert!(
        dump.contains("current-uuid 0x0000000000000004;") && dump.contains("max-peers 1;"),
        "{dump}"
    );
}

#[test]
fn two_creations_have_different_identities() {
    let directory = configured("internal");
    let identity = || {
        assert_eq!(
            qrbdadm(directory.path(), &["create-md", "--force", "r0"]).code,
            0
        );
        let dump = qrbdadm(directory.path(), &["dump-md", "r0"]).stdout;
        dump.lines()
            .find(|line| line.starts_with("device-uuid"))
            .unwrap()
            .to_owned()
    };
    assert_ne!(identity(), identity());
}

#[test]
fn fewer_al_extents_than_a_log_needs_are_raised_to_the_least() {
    let directory = configured("internal");
    let file = directory.path().join("qrbd.conf");
    let text = fs::read_to_string(&file).unwrap();
    let few = text.replacen("resource r0 {", "resource r0 { disk { al-extents 7; }", 1);
    assert_ne!(few, text);
    fs::write(&file, few).unwrap();
    let ran = qrbdadm(directory.path(), &["create-md", "r0"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let dump = qrbdadm(directory.path(), &["dump-md", "r0"]).stdout;
    assert!(dump.contains("al-extents 9;"), "{dump}");
}

#[test]
fn existing_metadata_is_replaced_only_after_yes_or_by_force() {
    let directory = configured("internal");
    assert_eq!(qrbdadm(directory.path(), &["create-md", "r0"]).code, 0);
    let before = fs::read(directory.path().join("disk")).unwrap();
    for answer in ["", "no\n", "y\n", "Yes\n"] {
        let ran = qrbdadm_with_input(directory.path(), &["create-md", "r0"], answer);
        assert_eq!(ran.code, 1, "{answer:?}");
        assert!(
            ran.stdout.contains("QRBD metadata is there already"),
            "{}",
            ran.stdout
        );
        assert!(ran.stderr.contains("Operation canceled."), "{}", ran.stderr);
    }
    assert!(
        fs::read(directory.path().join("disk")).unwrap() == before,
        "nothing was written"
    );
    assert_eq!(
        qrbdadm_with_input(directory.path(), &["create-md", "r0"], "yes\n").code,
        0
    );
    assert_eq!(
        qrbdadm(directory.path(), &["create-md", "--force", "r0"]).code,
        0
    );
    assert_eq!(
        qrbdadm(directory.path(), &["--", "--force", "create-md", "r0"]).code,
        0
    );
}

fn make_ext4(path: &Path, size: &str) {
    let path_variable = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let made = Command::new("mkfs.ext4")
        .arg("-q")
        .arg(path)
        .arg(size)
        .env("PATH", path_variable)
        .status();
    assert!(made.expect("mkfs.ext4 is installed (e2fsprogs)").success());
}

#[test]
fn file_system_that_fills_the_device_is_never_overwritten() {
    let directory = configured("internal");
    let disk = directory.path().join("disk");
    make_ext4(&disk, "64M");
    let before = fs::read(&disk).unwrap();
    for words in [&["create-md", "r0"][..], &["create-md", "--force", "r0"]] {
        let ran = qrbdadm_with_input(directory.path(), words, "yes\n");
        assert_eq!(ran.code, 40, "{ran:?}");
        assert!(ran.stderr.contains("Found ext4 on"), "{}", ran.stderr);
        assert!(
            ran.stderr.contains("132 kB of metadata") && ran.stderr.contains("65404 kB"),
            "{}",
            ran.stderr
        );
        assert!(
            ran.stderr
                .contains("Command 'qrbdadm create-md r0/0' terminated with exit code 40"),
            "{}",
            ran.stderr
        );
    }
    assert!(fs::read(&disk).unwrap() == before, "nothing was written");
}

#[test]
fn file_system_that_leaves_room_is_kept_after_yes() {
    let directory = configured("internal");
    let disk = directory.path().join("disk");
    make_ext4(&disk, "32M");
    let before = fs::read(&disk).unwrap();
    let ran = qrbdadm(directory.path(), &["create-md", "r0"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("ext4 which uses 32768 kB"),
        "{}",
        ran.stdout
    );
    assert_eq!(
        qrbdadm_with_input(directory.path(), &["create-md", "r0"], "yes\n").code,
        0
    );
    assert!(
        fs::read(&disk).unwrap()[..32 << 20] == before[..32 << 20],
        "the file system is untouched"
    );
}

#[test]
fn anything_recognised_on_the_device_is_asked_about() {
    for (offset, bytes, name) in [
        (
            0,
            &b"XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x10\x00"[..],
            "xfs",
        ),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (4086, b"SWAPSPACE2", "swap space"),
        (512, b"EFI PART", "GPT partition table"),
        ((64 << 20) - 4096 + 60, b"\x83\x74\x02\x6d", "DRBD metadata"),
    ] {
        let directory = configured("internal");
        let disk = OpenOptions::new()
            .write(true)
            .open(directory.path().join("disk"))
            .unwrap();
        disk.write_all_at(bytes, offset).unwrap();
        let ran = qrbdadm(directory.path(), &["create-md", "r0"]);
        assert_eq!(ran.code, 1, "{name}");
        assert!(ran.stdout.contains(name), "{name}: {}", ran.stdout);
        assert_eq!(
            qrbdadm(directory.path(), &["create-md", "--force", "r0"]).code,
            0,
            "{name}"
        );
        assert_eq!(
            qrbdadm(directory.path(), &["get-gi", "r0"]).stdout,
            FRESH,
            "{name}"
        );
    }
}

#[test]
fn external_metadata_leaves_the_whole_disk_for_data() {
    let directory = configured("HERE/meta");
    blank(&directory.path().join("meta"), 1 << 20);
    let before = fs::read(directory.path().join("disk")).unwrap();
    let ran = qrbdadm(directory.path(), &["create-md", "--max-peers", "3", "r0"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("r0/0: 65536 kB of "), "{}", ran.stdout);
    assert!(
        fs::read(directory.path().join("disk")).unwrap() == before,
        "the disk is untouched"
    );
    let dump = qrbdadm(directory.path(), &["dump-md", "r0"]).stdout;
    assert!(
        dump.contains("# placement external")
            && dump.contains("max-peers 3;")
            && dump.contains("peer[2] {"),
        "{dump}"
    );
}

#[test]
fn slots_of_an_indexed_device_do_not_disturb_each_other() {
    let directory = configured("HERE/meta[1]");
    blank(&directory.path().join("meta"), 256 << 20);
    assert_eq!(qrbdadm(directory.path(), &["create-md", "r0"]).code, 0);
    let meta = fs::File::open(directory.path().join("meta")).unwrap();
    let mut bytes = vec![0; 1 << 20];
    meta.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0), "slot 0 is untouched");
    assert_eq!(qrbdadm(directory.path(), &["get-gi", "r0"]).stdout, FRESH);
}

#[test]
fn device_that_is_too_small_is_refused_with_the_size_needed() {
    let directory = configured("HERE/meta");
    blank(&directory.path().join("meta"), 64 << 10);
    let ran = qrbdadm(directory.path(), &["create-md", "r0"]);
    assert_eq!(ran.code, 20);
    assert!(
        ran.stderr
            .contains("metadata device too small: 65536 bytes"),
        "{}",
        ran.stderr
    );
}

#[test]
fn missing_metadata_and_missing_disk_are_told_apart() {
    let directory = configured("internal");
    let ran = qrbdadm(directory.path(), &["get-gi", "r0"]);
    assert_eq!(ran.code, 20);
    assert!(
        ran.stderr
            .contains("no metadata found (create-md makes it)"),
        "{}",
        ran.stderr
    );
    fs::remove_file(directory.path().join("disk")).unwrap();
    let ran = qrbdadm(directory.path(), &["create-md", "r0"]);
    assert_eq!(ran.code, 20);
    assert!(ran.stderr.contains("disk"), "{}", ran.stderr);
}

#[test]
fn wipe_md_asks_and_leaves_nothing() {
    let directory = configured("internal");
    assert_eq!(qrbdadm(directory.path(), &["create-md", "r0"]).code, 0);
    assert_eq!(qrbdadm(directory.path(), &["wipe-md", "r0"]).code, 1);
    assert_eq!(qrbdadm(directory.path(), &["get-gi", "r0"]).code, 0);
    assert_eq!(
        qrbdadm_with_input(directory.path(), &["wipe-md", "r0"], "yes\n").code,
        0
    );
    assert_eq!(qrbdadm(directory.path(), &["get-gi", "r0"]).code, 20);
    let ran = qrbdadm(directory.path(), &["wipe-md", "r0"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "r0/0: no metadata to wipe\n")
    );
    assert_eq!(
        qrbdadm(directory.path(), &["create-md", "r0"]).code,
        0,
        "nothing is left to ask about"
    );
}

/// Changes the metadata of the internal disk of r0 behind the tool's back.
fn change(
    directory: &Path,
    log: bool,
    change: impl FnOnce(&mut qrbd_engine::metadata::image::MetadataImage),
) {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(directory.join("disk"))
        .unwrap();
    let bytes = disk.metadata().unwrap().len();
    let mut image = load(Placement::Internal, bytes, |offset, buffer| {
        disk.read_exact_at(buffer, offset)
    })
    .unwrap();
    change(&mut image);
    let mut steps = Vec::new();
    if log {
        let (mut writer, start) = image.start_log_steps(1237);
        steps.extend(start);
        let mut slots = vec![None; 1237];
        slots[0] = Some(2);
        let (index, block) = writer.transaction(&[(0, Some(2))], &slots);
        steps.push(Step::Write {
            offset: image.layout.ring_block_offset(index),
            bytes: block.to_vec(),
        });
    } else {
        steps.extend(superblock_update(&mut image.superblock, &image.layout));
    }
    for step in steps {
        if let Step::Write { offset, bytes } = step {
            disk.write_all_at(&bytes, offset).unwrap();
        }
    }
}

#[test]
fn outdate_and_invalidate_work_on_the_metadata_of_a_resource_that_is_down() {
    let directory = configured("internal");
    assert_eq!(qrbdadm(directory.path(), &["create-md", "r0"]).code, 0);
    let ran = qrbdadm(directory.path(), &["outdate", "r0"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (5, "r0/0: Disk state is lower than outdated\n")
    );
    change(directory.path(), false, |image| {
        image.superblock.flags.consistent = true;
        image.superblock.flags.was_up_to_date = true;
        image.superblock.current = Generation(0x1234_5678_9abc_def0);
        image.superblock.allocate_slot(NodeId(1)).unwrap();
    });
    assert_eq!(
        qrbdadm(directory.path(), &["dstate", "r0"]).stdout,
        "Consistent/DUnknown\n"
    );
    assert_eq!(qrbdadm(directory.path(), &["outdate", "r0"]).code, 0);
    assert_eq!(
        qrbdadm(directory.path(), &["dstate", "r0"]).stdout,
        "Outdated/DUnknown\n"
    );
    assert_eq!(qrbdadm(directory.path(), &["invalidate", "r0"]).code, 0);
    assert_eq!(
        qrbdadm(directory.path(), &["dstate", "r0"]).stdout,
        "Inconsistent/DUnknown\n"
    );
    let dump = qrbdadm(directory.path(), &["dump-md", "r0"]).stdout;
    assert!(
        dump.contains("invalidated") && dump.contains("# bits-set 16351;"),
        "{dump}"
    );
    let full_sync = "1:0";
    let told = qrbdadm(directory.path(), &["get-gi", "r0"]).stdout;
    assert!(told.trim_end().ends_with(full_sync), "{told}");
}

#[test]
fn unapplied_log_is_refused_by_dump_md_until_apply_al() {
    let directory = configured("internal");
    assert_eq!(qrbdadm(directory.path(), &["create-md", "r0"]).code, 0);
    change(directory.path(), true, |image| {
        image.superblock.flags.consistent = true;
        image.superblock.flags.primary_indicator = true;
        image.superblock.allocate_slot(NodeId(1)).unwrap();
    });
    let ran = qrbdadm(directory.path(), &["dump-md", "r0"]);
    assert_eq!(ran.code, 255);
    assert!(
        ran.stderr.contains("Please apply-al first"),
        "{}",
        ran.stderr
    );
    let forced = qrbdadm(directory.path(), &["dump-md", "--force", "r0"]);
    assert!(
        forced.code == 0
            && forced
                .stdout
                .contains("# activity log, not applied: extents 2\n"),
        "{forced:?}"
    );

    let ran = qrbdadm(directory.path(), &["-v", "apply-al", "r0"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout
            .contains("1 extents; 1024 blocks newly out of sync"),
        "{}",
        ran.stdout
    );
    let dump = qrbdadm(directory.path(), &["dump-md", "r0"]).stdout;
    assert!(
        dump.contains("bitmap[0] {\n    2048 1024;\n}\n# bits-set 1024;"),
        "{dump}"
    );
    assert_eq!(
        qrbdadm(directory.path(), &["apply-al", "r0"]).code,
        0,
        "a second time changes nothing"
    );
    assert_eq!(qrbdadm(directory.path(), &["dump-md", "r0"]).stdout, dump);
}

#[test]
fn destroyed_log_means_a_full_sync_and_says_so() {
    let directory = configured("internal");
    assert_eq!(qrbdadm(directory.path(), &["create-md", "r0"]).code, 0);
    let mut ring = 0..0;
    change(directory.path(), true, |image| {
        image.superblock.flags.primary_indicator = true;
        image.superblock.allocate_slot(NodeId(1)).unwrap();
        ring = image.layout.ring_offset..image.layout.superblock_a;
    });
    let disk = OpenOptions::new()
        .write(true)
        .open(directory.path().join("disk"))
        .unwrap();
    disk.write_all_at(&vec![0x5a; (ring.end - ring.start) as usize], ring.start)
        .unwrap();
    let ran = qrbdadm(directory.path(), &["apply-al", "r0"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("a full sync is needed"),
        "{}",
        ran.stderr
    );
    let dump = qrbdadm(directory.path(), &["dump-md", "r0"]).stdout;
    assert!(dump.contains("# bits-set 16351;"), "{dump}");
}

#[test]
fn script_queries_read_the_configuration() {
    let directory = configured("HERE/meta[3]");
    let path = directory.path().display();
    for (words, line) in [
        (&["sh-resources"][..], "r0\n".to_owned()),
        (&["sh-resource", "minor-0"], "r0\n".to_owned()),
        (&["sh-dev", "r0"], "/dev/nbd0\n".to_owned()),
        (&["sh-minor", "r0/0"], "0\n".to_owned()),
        (&["sh-ll-dev", "all"], format!("{path}/disk\n")),
        (&["sh-md-dev", "r0"], format!("{path}/meta\n")),
        (&["sh-md-idx", "r0"], "3\n".to_owned()),
        (&["sh-ip", "r0"], "127.0.0.1\n".to_owned()),
        (&["sh-nop"], String::new()),
    ] {
        let ran = qrbdadm(directory.path(), words);
        assert_eq!(
            (ran.code, ran.stdout, ran.stderr.as_str()),
            (0, line, ""),
            "{words:?}"
        );
    }
    let dump = qrbdadm(directory.path(), &["dump"]).stdout;
    assert!(
        dump.contains("resource r0 {")
            && dump == qrbdadm(directory.path(), &["dump", "all"]).stdout,
        "{dump}"
    );
}
