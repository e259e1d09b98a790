//! The load generator: what it remembers, and that it catches every way to break the promise.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use qrbd_tools::load::block::{Content, fill, inspect};
use qrbd_tools::load::compare::compare;
use qrbd_tools::load::journal::{self, Journal, Run};
use qrbd_tools::load::source::FileSource;
use qrbd_tools::load::verify::{Report, Tolerance, Violation, verify};

use super::fixtures::qrbd_load;
use super::memory::MemoryServer;

const BLOCK: usize = 4096;
const RUN: Run = Run {
    seed: 7,
    block_bytes: BLOCK as u32,
    export_bytes: 64 * BLOCK as u64,
};

fn block(number: u64, generation: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    fill(&mut bytes, RUN.seed, number, generation);
    bytes
}

#[test]
fn block_tells_what_it_is_and_what_is_wrong_with_it() {
    let whole = block(3, 9);
    assert_eq!(inspect(&whole, 7, 3), Content::Whole(9));
    assert_eq!(inspect(&[0; BLOCK], 7, 3), Content::Zero);
    assert_eq!(
        inspect(&whole, 7, 4),
        Content::Misplaced { seed: 7, block: 3 }
    );
    assert_eq!(
        inspect(&whole, 8, 3),
        Content::Misplaced { seed: 7, block: 3 }
    );
    let mut torn = whole.clone();
    torn[512 * 5..].copy_from_slice(&block(3, 12)[512 * 5..]);
    assert_eq!(inspect(&torn, 7, 3), Content::Mixed(9, 12));
    let mut half = whole.clone();
    half[2048..].fill(0);
    assert_eq!(inspect(&half, 7, 3), Content::Mixed(0, 9));
    let mut swapped = whole.clone();
    swapped[..512].copy_from_slice(&whole[512..1024]);
    assert_eq!(
        inspect(&swapped, 7, 3),
        Content::Misplaced { seed: 7, block: 3 }
    );
    for byte in [0, 20, 38, 100, 511] {
        let mut damaged = whole.clone();
        damaged[1024 + byte] ^= 1;
        assert_eq!(
            inspect(&damaged, 7, 3),
            Content::Damaged { sector: 2 },
            "byte {byte}"
        );
    }
}

struct Bench {
    directory: tempfile::TempDir,
    journal: Journal,
    disk: File,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(&directory.path().join("journal"), RUN).unwrap();
        let path = directory.path().join("disk");
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        disk.set_len(RUN.export_bytes).unwrap();
        Bench {
            directory,
            journal,
            disk,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, number: u64, bytes: &[u8]) {
        self.disk
            .write_all_at(bytes, number * BLOCK as u64)
            .unwrap();
    }

    /// Writes and acknowledges.
    fn write(&mut self, number: u64, generation: u64) {
        self.journal.issue(number, generation).unwrap();
        self.put(number, &block(number, generation));
        self.journal.acknowledge(number, generation).unwrap();
    }

    fn verify(&self, tolerance: Tolerance) -> Report {
        let history = journal::read(&self.path("journal")).unwrap();
        let mut source = FileSource::open(&self.path("disk")).unwrap();
        verify(&mut source, &history, tolerance, |_| {}).unwrap()
    }

    fn violations(&self) -> Vec<(u64, Violation)> {
        self.verify(Tolerance::default()).first
    }
}

#[test]
fn what_was_acknowledged_and_is_there_passes() {
    let mut bench = Bench::new();
    bench.write(1, 1);
    bench.write(2, 2);
    bench.write(1, 3);
    let report = bench.verify(Tolerance::default());
    assert_eq!(
        report,
        Report {
            blocks: 64,
            acknowledged: 2,
            ..Report::default()
        }
    );
}

#[test]
fn unacknowledged_write_may_be_there_or_not() {
    let mut bench = Bench::new();
    bench.write(1, 1);
    bench.journal.issue(1, 2).unwrap();
    bench.journal.issue(5, 3).unwrap();
    assert_eq!(bench.violations(), []);
    bench.put(1, &block(1, 2));
    bench.put(5, &block(5, 3));
    let report = bench.verify(Tolerance::default());
    assert_eq!((report.violations, report.newer), (0, 2));
}

#[test]
fn every_planted_violation_is_found() {
    let mut bench = Bench::new();
    for (generation, number) in (1..).zip([1, 2, 3, 4, 5, 6, 1, 3]) {
        bench.write(number, generation);
    }
    bench.journal.issue(3, 20).unwrap();
    bench.put(1, &block(1, 1)); // older than acknowledged
    bench.put(2, &[0; BLOCK]); // gone
    let mut torn = block(3, 8);
    torn[..512].copy_from_slice(&block(3, 20)[..512]);
    bench.put(3, &torn); // mixed
    bench.put(4, &block(5, 5)); // another block's
    bench.put(5, &[0x5a; BLOCK]); // damaged
    bench.put(6, &block(6, 19)); // never issued
    bench.put(7, &block(7, 9)); // never written at all
    assert_eq!(
        bench.violations(),
        [
            (
                1,
                Violation::Lost {
                    found: 1,
                    acknowledged: 7
                }
            ),
            (
                2,
                Violation::Lost {
                    found: 0,
                    acknowledged: 2
                }
            ),
            (
                3,
                Violation::Mixed {
                    smallest: 8,
                    largest: 20,
                    acknowledged: 8
                }
            ),
            (4, Violation::Misplaced { seed: 7, block: 5 }),
            (5, Violation::Damaged { sector: 0 }),
            (6, Violation::Unissued { found: 19 }),
            (7, Violation::Unissued { found: 9 }),
        ]
    );
    let tolerant = bench.verify(Tolerance {
        torn_unacknowledged: true,
        foreign_content: true,
    });
    assert_eq!(
        tolerant.violations, 5,
        "only the torn one and the foreign one are tolerated"
    );
}

#[test]
fn tearing_back_below_the_acknowledged_generation_is_never_tolerated() {
    let mut bench = Bench::new();
    bench.write(1, 1);
    bench.write(1, 2);
    let mut torn = block(1, 2);
    torn[..512].copy_from_slice(&block(1, 1)[..512]);
    bench.put(1, &torn);
    let report = bench.verify(Tolerance {
        torn_unacknowledged: true,
        foreign_content: true,
    });
    assert_eq!(
        report.first,
        [(
            1,
            Violation::Mixed {
                smallest: 1,
                largest: 2,
                acknowledged: 2
            }
        )]
    );
}

#[test]
fn program_tells_violations_by_exit_code() {
    let mut bench = Bench::new();
    bench.write(1, 1);
    let (journal, disk) = (bench.path("journal"), bench.path("disk"));
    let arguments = [
        "verify",
        "--journal",
        journal.to_str().unwrap(),
        "--file",
        disk.to_str().unwrap(),
    ];
    assert_eq!(qrbd_load(&arguments).code, 0);
    bench.put(1, &[0; BLOCK]);
    let ran = qrbd_load(&arguments);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout
            .contains("block 1 (byte 4096): acknowledged write lost: holds zeroes"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("violations 1"), "{}", ran.stdout);
    assert_eq!(
        qrbd_load(&["verify", "--journal", "/nonexistent", "--file", "/dev/null"]).code,
        20
    );
    assert_eq!(qrbd_load(&["verify"]).code, 2);
}

#[test]
fn journal_survives_a_cut_but_not_damage() {
    let mut bench = Bench::new();
    bench.write(1, 1);
    bench.journal.issue(2, 2).unwrap();
    let path = bench.path("journal");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let history = journal::read(&path).unwrap();
    assert_eq!((history.newest, history.acknowledged), (1, 1));
    // Appending goes on behind the last whole record.
    let mut reopened = Journal::open(&path, RUN).unwrap();
    reopened.issue(3, 2).unwrap();
    assert_eq!(journal::read(&path).unwrap().newest, 2);

    let mut damaged = bytes.clone();
    damaged[64 + 9] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let error = format!("{:#}", journal::read(&path).unwrap_err());
    assert!(error.contains("record 0 of 3 is damaged"), "{error}");
    for end in 0..64 {
        std::fs::write(&path, &bytes[..end]).unwrap();
        assert!(journal::read(&path).is_err(), "header cut at {end}");
    }
    let other = Run { seed: 8, ..RUN };
    std::fs::write(&path, &bytes).unwrap();
    assert!(
        Journal::open(&path, other)
            .unwrap_err()
            .to_string()
            .contains("another run")
    );
}

fn server(directory: &Path) -> PathBuf {
    let socket = directory.join("nbd.sock");
    MemoryServer::new(4 << 20).listen(&socket).unwrap();
    socket
}

#[test]
fn load_over_nbd_is_remembered_and_verified() {
    let directory = tempfile::tempdir().unwrap();
    let socket = server(directory.path());
    let journal = directory.path().join("journal");
    let common = [
        "--socket",
        socket.to_str().unwrap(),
        "--journal",
        journal.to_str().unwrap(),
    ];
    for round in 1..=2 {
        let ran = qrbd_load(
            &[
                &[
                    "run",
                    "--quiet",
                    "--writes",
                    "500",
                    "--depth",
                    "32",
                    "--flush-every",
                    "50",
                    "--read-percent",
                    "20",
                ],
                &common[..],
            ]
            .concat(),
        );
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(
            ran.stdout
                .contains("writes issued 500, acknowledged 500, unanswered 0"),
            "{}",
            ran.stdout
        );
        assert!(
            ran.stdout.contains("flushes ") && ran.stdout.contains("end: finished"),
            "{}",
            ran.stdout
        );
        let ran = qrbd_load(&[&["verify"], &common[..]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(
            ran.stdout
                .contains(&format!("acknowledged writes {},", 500 * round)),
            "{}",
            ran.stdout
        );
    }
    // Another server holds nothing of it.
    let other = tempfile::tempdir().unwrap();
    let empty = server(other.path());
    let ran = qrbd_load(&[
        "verify",
        "--socket",
        empty.to_str().unwrap(),
        "--journal",
        journal.to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 1);
}

/// Relays a connection to `target`; drops it after `bytes` of the client's bytes.
fn relay_that_dies(socket: &Path, target: PathBuf, bytes: usize) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = UnixStream::connect(target).unwrap();
        let (mut from_server, mut to_client) =
            (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_server, &mut to_client);
        });
        let mut buffer = [0; 8192];
        let mut relayed = 0;
        while relayed < bytes {
            let count = client.read(&mut buffer).unwrap();
            server.write_all(&buffer[..count]).unwrap();
            relayed += count;
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
        let _ = server.shutdown(std::net::Shutdown::Both);
    });
}

#[test]
fn lost_server_is_success_only_if_it_was_expected_and_the_rest_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let socket = server(directory.path());
    for (name, extra, code) in [
        ("expected", &["--until-disconnect"][..], 0),
        ("surprise", &["--seconds", "60"], 1),
    ] {
        let dying = directory.path().join(name);
        relay_that_dies(&dying, socket.clone(), 2 << 20);
        let journal = directory.path().join(format!("{name}.journal"));
        // Each of the two runs has its own seed, so its own content: the second overwrites the first.
        let seed = name.len().to_string();
        let common = ["--journal", journal.to_str().unwrap()];
        let ran = qrbd_load(
            &[
                &[
                    "run",
                    "--quiet",
                    "--seed",
                    &seed,
                    "--socket",
                    dying.to_str().unwrap(),
                ],
                &common[..],
                extra,
            ]
            .concat(),
        );
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(
            ran.stdout.contains("end: server disconnected"),
            "{}",
            ran.stdout
        );
        let history = journal::read(&journal).unwrap();
        assert!(history.acknowledged > 100, "{}", history.acknowledged);
        if name == "expected" {
            let ran = qrbd_load(
                &[
                    &["verify", "--socket", socket.to_str().unwrap()],
                    &common[..],
                ]
                .concat(),
            );
            assert_eq!(ran.code, 0, "{ran:?}");
        }
    }
}

/// Relays a connection to `target`, but nothing of the server's after its handshake.
fn relay_that_swallows_answers(socket: &Path, target: PathBuf) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = UnixStream::connect(target).unwrap();
        let (mut from_server, mut to_client) =
            (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = from_server.read(&mut buffer) {
                // Simple and structured replies begin with these; the handshake does not.
                let is_reply = [&b"\x67\x44\x66\x98"[..], b"\x66\x8e\x33\xef"]
                    .iter()
                    .any(|magic| buffer.starts_with(magic));
                if count == 0 || (!is_reply && to_client.write_all(&buffer[..count]).is_err()) {
                    return;
                }
            }
        });
        let _ = std::io::copy(&mut client, &mut server);
    });
}

#[test]
fn silent_server_is_given_up_and_its_writes_stay_unacknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let socket = server(directory.path());
    let mute = directory.path().join("mute");
    relay_that_swallows_answers(&mute, socket);
    let journal = directory.path().join("journal");
    let ran = qrbd_load(&[
        "run",
        "--quiet",
        "--until-disconnect",
        "--max-silence",
        "0.3",
        "--socket",
        mute.to_str().unwrap(),
        "--journal",
        journal.to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stdout.contains("end: the server answers nothing"),
        "{}",
        ran.stdout
    );
    let history = journal::read(&journal).unwrap();
    assert_eq!((history.newest, history.acknowledged), (16, 0));
}

#[test]
fn refused_writes_and_exports_are_failures() {
    let directory = tempfile::tempdir().unwrap();
    let socket = server(directory.path());
    let journal = directory.path().join("journal");
    let run = |export: &str| {
        let common = [
            "--socket",
            socket.to_str().unwrap(),
            "--journal",
            journal.to_str().unwrap(),
        ];
        qrbd_load(
            &[
                &["run", "--quiet", "--writes", "5", "--export", export],
                &common[..],
            ]
            .concat(),
        )
    };
    let ran = run("broken");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("end: request failed: write of block"),
        "{}",
        ran.stdout
    );
    let ran = run("secondary");
    assert_eq!(ran.code, 20);
    assert!(ran.stderr.contains("ERR_POLICY"), "{}", ran.stderr);
    let ran = qrbd_load(&[
        "run",
        "--socket",
        socket.to_str().unwrap(),
        "--journal",
        journal.to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 20);
    assert!(ran.stderr.contains("say when to stop"), "{}", ran.stderr);
}

#[test]
fn compare_names_the_ranges_that_differ() {
    let directory = tempfile::tempdir().unwrap();
    let (left, right) = (
        directory.path().join("left"),
        directory.path().join("right"),
    );
    std::fs::write(&left, vec![0; 3 << 20]).unwrap();
    let mut bytes = vec![0; 3 << 20];
    bytes[5000] = 1;
    bytes[(1 << 20) - 1] = 1;
    bytes[1 << 20] = 1;
    bytes[(3 << 20) - 1] = 1;
    std::fs::write(&right, &bytes).unwrap();
    let (a, b) = (File::open(&left).unwrap(), File::open(&right).unwrap());
    let differences = compare(&a, &b, 3 << 20).unwrap();
    let mib = 1_u64 << 20;
    assert_eq!(
        differences.ranges,
        [4096..8192, mib - 4096..mib + 4096, 3 * mib - 4096..3 * mib]
    );
    assert_eq!((differences.bytes, differences.range_count), (4 * 4096, 3));
    assert_eq!(compare(&a, &b, 5000).unwrap().bytes, 0);

    let (left, right) = (left.to_str().unwrap(), right.to_str().unwrap());
    let ran = qrbd_load(&["compare", left, right, "--bytes", "5001"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("differ: 4096..5001 (905 bytes)"),
        "{}",
        ran.stdout
    );
    assert_eq!(
        qrbd_load(&["compare", left, right, "--bytes", "5000"]).code,
        0
    );
    assert_eq!(
        qrbd_load(&["compare", left, right, "--bytes", "99999999"]).code,
        20
    );
}
