//! Real use: ext4 on the replicated device, a tree of real files, a SQLite database that commits in a loop; the Primary's daemon is
//! killed in the middle, the other node is promoted and the file system is mounted there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qrbd_process_tests::configuration::{Options, Protocol};
use qrbd_process_tests::file_system::{BlockDevice, Mount};
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{DISK_BYTES, Pair, PairOptions, SYNC_LIMIT};
use qrbd_process_tests::process::Process;
use qrbd_process_tests::programs::{PYTHON, installed, run};
use qrbd_process_tests::stage::Stage;
use qrbd_process_tests::wait;

const PROMOTION_LIMIT: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(40);
/// Files of the tree that is copied.
const TREE_FILES: usize = 300;

/// Commits a row at a time and tells each commit after it was acknowledged: number and content, outside of the device.
const COMMITS: &str = r#"
import hashlib, os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("pragma journal_mode=" + sys.argv[3])
database.execute("pragma synchronous=extra")
database.execute("create table if not exists entries (number integer primary key, content text)")
witness = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    number += 1
    content = hashlib.sha256(str(number).encode()).hexdigest()
    database.execute("begin immediate")
    database.execute("insert into entries values (?, ?)", (number, content))
    database.execute("commit")
    os.write(witness, f"{number} {content}\n".encode())
"#;

/// Copies files one by one; tells each one after it and its directory entry were acknowledged durable.
const COPIES: &str = r#"
import os, sys
source, target, witness = sys.argv[1:4]
witness = os.open(witness, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    for name in sorted(os.listdir(source)):
        number += 1
        content = open(os.path.join(source, name), "rb").read()
        copy = os.path.join(target, f"{number}-{name}")
        with open(copy, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(target, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        os.write(witness, f"{number}-{name}\n".encode())
"#;

/// Tells what is in the database, if it is in order.
const CONTENT: &str = r#"
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
for number, content in database.execute("select number, content from entries order by number"):
    print(number, content)
"#;

/// Some moment of the next second and a half; it is printed, since it is another one each time.
fn random_moment() -> Duration {
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let moment = Duration::from_micros(u64::from(clock.subsec_nanos()) * 7_919 % 1_500_000);
    eprintln!("crash after {moment:?}");
    moment
}

fn options(protocol: Protocol) -> PairOptions {
    PairOptions {
        // Where writes may be lost, the test takes care that some are.
        relay: protocol != Protocol::C,
        resource: Options {
            protocol,
            ..Options::default()
        },
        disk_bytes: Some(2 * DISK_BYTES),
    }
}

/// Files of the system, by name and content, copied and fsynced one by one.
fn copy_tree(to: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut pending = vec![PathBuf::from("/usr/share"), PathBuf::from("/etc")];
    let mut copied = BTreeMap::new();
    while let Some(directory) = pending.pop() {
        let mut entries: Vec<_> = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file()
                && entry
                    .metadata()
                    .is_ok_and(|metadata| metadata.len() < 200_000)
            {
                let Ok(content) = fs::read(entry.path()) else {
                    continue;
                };
                let path = PathBuf::from("tree").join(entry.path().strip_prefix("/").unwrap());
                let place = to.join(&path);
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                fs::write(&place, &content).unwrap();
                copied.insert(path, content);
            }
            if copied.len() >= TREE_FILES {
                break;
            }
        }
        if copied.len() >= TREE_FILES {
            break;
        }
    }
    // One sync of the whole file system: everything above is acknowledged durable after it.
    run(
        &installed("coreutils", "sync"),
        ["--file-system".as_ref(), to.as_os_str()],
        LIMIT,
    )
    .succeeded();
    assert!(
        copied.len() > 50,
        "this system has too few files to copy: {}",
        copied.len()
    );
    copied
}

fn assert_tree(directory: &Path, tree: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, content) in tree {
        let found = fs::read(directory.join(path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(found == *content, "{} has changed", path.display());
    }
}

/// A database committing in a loop.
struct Commits {
    process: Process,
    witness: PathBuf,
}

impl Commits {
    fn start(stage: &Stage, directory: &Path, name: &str, journal_mode: &str) -> Commits {
        let witness = stage.path(&format!("{name}.witness"));
        let mut command = Command::new(PYTHON);
        command
            .args(["-c", COMMITS])
            .arg(directory.join("database"))
            .arg(&witness)
            .arg(journal_mode);
        Commits {
            process: Process::start("SQLite", &command, &stage.path(&format!("{name}.log"))),
            witness,
        }
    }

    fn recorded(&self) -> Vec<String> {
        let Ok(file) = fs::File::open(&self.witness) else {
            return Vec::new();
        };
        BufReader::new(file).lines().map_while(Result::ok).collect()
    }

    fn wait(&mut self, commits: usize) {
        wait::until(&format!("{commits} commits"), LIMIT, || {
            assert!(
                self.process.ended().is_none(),
                "the database failed: {}",
                self.process.said()
            );
            (self.recorded().len() >= commits).then_some(())
        });
    }
}

/// The file system as it is after the crash: journal replayed by the mount, then checked.
fn recover(stage: &Stage, node: &Node, round: usize) -> (BlockDevice, Mount) {
    let device = BlockDevice::attach(stage, node);
    // The mount replays the journal, as it does after any crash; then nothing may be left to repair.
    Mount::new(stage, &format!("replay-{round}"), device.path()).unmount();
    let checked = device.run("e2fsprogs", "e2fsck", &["-f", "-n"]);
    assert!(checked.code == 0, "the file system is not clean: {checked}");
    let mount = Mount::new(stage, &format!("recovered-{round}"), device.path());
    (device, mount)
}

fn database(directory: &Path) -> Vec<String> {
    let said = run(
        Path::new(PYTHON),
        [
            "-c".as_ref(),
            CONTENT.as_ref(),
            directory.join("database").as_os_str(),
        ],
        LIMIT,
    )
    .succeeded();
    said.lines().map(ToOwned::to_owned).collect()
}

fn make_file_system(device: &BlockDevice) {
    device
        .run(
            "e2fsprogs",
            "mkfs.ext4",
            &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
        )
        .succeeded();
}

/// One crash after a number of commits; `complete`: every recorded commit must be there.
fn crash_under_database(protocol: Protocol, journal_mode: &str, commits: usize, complete: bool) {
    let mut pair = Pair::ready(&options(protocol));
    let device = BlockDevice::attach(&pair.stage, &pair.alice);
    make_file_system(&device);
    let mount = Mount::new(&pair.stage, "primary", device.path());
    let tree = copy_tree(mount.directory());
    // With A and B the last writes may be missing: what was synced long before is not among them.
    let mut running = Commits::start(&pair.stage, mount.directory(), "commits", journal_mode);
    running.wait(commits);
    std::thread::sleep(random_moment());
    if let Some(relay) = &pair.relay {
        relay.cut_both();
        std::thread::sleep(Duration::from_millis(150));
    }
    pair.alice.kill();
    running.process.kill();
    let recorded = running.recorded();
    drop(mount);
    drop(device);

    pair.bob.promote(PROMOTION_LIMIT);
    let (device, mount) = recover(&pair.stage, &pair.bob, 0);
    assert_tree(mount.directory(), &tree);
    let found = database(mount.directory());
    let common = found.len().min(recorded.len());
    assert_eq!(
        found[..common],
        recorded[..common],
        "the database holds what was committed, in order"
    );
    eprintln!(
        "protocol {protocol:?}: {} commits recorded, {} found",
        recorded.len(),
        found.len()
    );
    if complete {
        assert!(
            found.len() >= recorded.len(),
            "{} commits were acknowledged, {} are there",
            recorded.len(),
            found.len()
        );
    }
    mount.unmount();
    device.detach();
    if let Some(relay) = &pair.relay {
        relay.heal();
    }
    pair.alice.start_and_up();
    pair.bob.wait_healthy(SYNC_LIMIT);
    pair.assert_equal_disks();
}

#[test]
fn no_commit_is_lost_when_the_primary_dies_with_protocol_c() {
    crash_under_database(Protocol::C, "delete", 20, true);
}

#[test]
fn no_commit_of_a_write_ahead_log_is_lost_when_the_primary_dies_with_protocol_c() {
    crash_under_database(Protocol::C, "wal", 137, true);
}

#[test]
fn no_commit_is_lost_when_the_primary_alone_dies_with_protocol_b() {
    crash_under_database(Protocol::B, "delete", 31, true);
}

#[test]
fn the_database_is_consistent_when_the_primary_dies_with_protocol_a() {
    crash_under_database(Protocol::A, "wal", 53, false);
}

#[test]
fn no_fsynced_file_is_lost_when_primaries_die_one_after_the_other() {
    let mut pair = Pair::ready(&options(Protocol::C));
    let device = BlockDevice::attach(&pair.stage, &pair.alice);
    make_file_system(&device);
    let mut places = (device, None);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for round in 0..4 {
        let (primary, survivor) = match round % 2 {
            0 => (&mut pair.alice, &mut pair.bob),
            _ => (&mut pair.bob, &mut pair.alice),
        };
        let (device, mount) = places;
        let mount = mount.unwrap_or_else(|| Mount::new(&pair.stage, "first", device.path()));
        let target = mount.directory().join(format!("copies-{round}"));
        fs::create_dir(&target).unwrap();
        let witness = pair.stage.path(&format!("copies-{round}.witness"));
        let mut command = Command::new(PYTHON);
        command
            .args(["-c", COPIES])
            .arg(&sources)
            .arg(&target)
            .arg(&witness);
        let mut copies = Process::start("copies", &command, &pair.stage.path("copies.log"));
        let recorded = || fs::read_to_string(&witness).unwrap_or_default();
        wait::until("two copies", LIMIT, || {
            (recorded().lines().count() >= 2).then_some(())
        });
        std::thread::sleep(random_moment());
        primary.kill();
        copies.kill();
        let recorded = recorded();
        drop(mount);
        drop(device);

        survivor.promote(PROMOTION_LIMIT);
        let (device, mount) = recover(&pair.stage, survivor, round);
        for name in recorded.lines() {
            let original = fs::read(sources.join(name.split_once('-').unwrap().1)).unwrap();
            let copy = mount.directory().join(format!("copies-{round}")).join(name);
            let found =
                fs::read(&copy).unwrap_or_else(|error| panic!("{name} was fsynced: {error}"));
            assert!(found == original, "{name} has changed");
        }
        places = (device, Some(mount));
        primary.start_and_up();
        survivor.wait_healthy(SYNC_LIMIT);
    }
    drop(places.1);
    drop(places.0);
    pair.assert_equal_disks();
}

#[test]
fn a_file_system_moves_to_the_other_node_and_back() {
    let pair = Pair::ready(&options(Protocol::C));
    let device = BlockDevice::attach(&pair.stage, &pair.alice);
    make_file_system(&device);
    let mount = Mount::new(&pair.stage, "first", device.path());
    let tree = copy_tree(mount.directory());
    mount.unmount();
    device.detach();
    for (round, (from, to)) in [(&pair.alice, &pair.bob), (&pair.bob, &pair.alice)]
        .into_iter()
        .enumerate()
    {
        from.command("secondary");
        to.command("primary");
        let device = BlockDevice::attach(&pair.stage, to);
        let checked = device.run("e2fsprogs", "e2fsck", &["-f", "-n"]);
        assert!(checked.code == 0, "{checked}");
        let mount = Mount::new(&pair.stage, &format!("moved-{round}"), device.path());
        assert_tree(mount.directory(), &tree);
        fs::write(mount.directory().join(format!("round-{round}")), "was here").unwrap();
        mount.unmount();
        device.detach();
    }
    pair.assert_equal_disks();
}
