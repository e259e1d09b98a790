//! NBD clients of others against the real daemon with a connected peer: libnbd, QEMU, fio. What they write is on both disks.

use std::path::PathBuf;
use std::time::Duration;

use qrbd_process_tests::load::assert_equal;
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{Pair, PairOptions};
use qrbd_process_tests::process::Process;
use qrbd_process_tests::programs::{Finished, PYTHON, installed, run, run_with};
use qrbd_process_tests::wait;

const LIMIT: Duration = Duration::from_secs(60);

fn tool(package: &str, name: &str, arguments: &[&str]) -> Finished {
    run(&installed(package, name), arguments, LIMIT)
}

fn ready() -> Pair {
    Pair::ready(&PairOptions::default())
}

/// A file of bytes that no compression hides, as long as the volume.
fn image(pair: &Pair, name: &str) -> PathBuf {
    let words = pair.alice.status().size_bytes() / 8;
    let path = pair.stage.path(name);
    let bytes: Vec<u8> = (1..=words)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn size(node: &Node) -> u64 {
    node.status().size_bytes()
}

#[test]
fn nbdinfo_lists_the_resource() {
    let pair = ready();
    let server = format!("nbd+unix:///?socket={}", pair.alice.nbd_socket().display());
    let listed = tool("libnbd-bin", "nbdinfo", &["--list", &server]).succeeded();
    assert!(listed.contains("export=\"r0\""), "{listed}");
    assert!(
        listed.contains(&format!("export-size: {}", size(&pair.alice))),
        "{listed}"
    );
}

#[test]
fn nbdinfo_sees_what_the_device_can_as_json() {
    let pair = ready();
    let said = tool("libnbd-bin", "nbdinfo", &["--json", &pair.alice.uri()]).succeeded();
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "r0", "{said}");
    assert_eq!(export["export-size"].as_u64(), Some(size(&pair.alice)));
    for (flag, value) in [
        ("is_read_only", false),
        ("can_flush", true),
        ("can_fua", true),
        ("can_multi_conn", true),
        ("can_trim", true),
        ("can_zero", true),
    ] {
        assert_eq!(export[flag], value, "{flag}: {said}");
    }
}

#[test]
fn the_empty_name_is_the_only_volume() {
    let pair = ready();
    let server = format!("nbd+unix:///?socket={}", pair.alice.nbd_socket().display());
    let said = tool("libnbd-bin", "nbdinfo", &["--size", &server]).succeeded();
    assert_eq!(said.trim(), size(&pair.alice).to_string());
    let unknown = format!(
        "nbd+unix:///r9?socket={}",
        pair.alice.nbd_socket().display()
    );
    let refused = tool("libnbd-bin", "nbdinfo", &["--size", &unknown]);
    assert!(
        refused.code != 0 && refused.stderr.contains("r9"),
        "{refused}"
    );
}

#[test]
fn a_secondary_refuses_libnbd_with_its_policy_text() {
    let pair = ready();
    // This release prints the server's text only when it is asked to tell everything.
    let told = [("LIBNBD_DEBUG", "1")];
    let refused = run_with(
        &installed("libnbd-bin", "nbdinfo"),
        ["--size", &pair.bob.uri()],
        LIMIT,
        &told,
    );
    assert!(refused.code != 0, "{refused}");
    for word in ["policy", "Secondary", "alice"] {
        assert!(refused.stderr.contains(word), "'{word}' in {refused}");
    }
}

#[test]
fn nbdcopy_brings_an_image_in_and_out_unchanged() {
    let pair = ready();
    let (source, back) = (image(&pair, "source"), pair.stage.path("back"));
    tool(
        "libnbd-bin",
        "nbdcopy",
        &["--flush", source.to_str().unwrap(), &pair.alice.uri()],
    )
    .succeeded();
    tool(
        "libnbd-bin",
        "nbdcopy",
        &[&pair.alice.uri(), back.to_str().unwrap()],
    )
    .succeeded();
    assert_equal(&source, &back, size(&pair.alice));
    pair.assert_equal_disks();
    assert_equal(&source, &pair.bob.disk, size(&pair.alice));
}

#[test]
fn nbdsh_sees_its_writes_zeroes_and_trims_on_every_connection() {
    let pair = ready();
    let script = r#"
import errno, nbd, sys
def opened():
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.connect_uri(sys.argv[1])
    return handle
one, two = opened(), opened()
assert one.can_multi_conn()
size = one.get_size()
one.pwrite(b"A" * 65536, 0)
two.flush()
assert two.pread(65536, 0) == b"A" * 65536
two.pwrite(b"B" * 4096, 4096, nbd.CMD_FLAG_FUA)
assert one.pread(12288, 0) == b"A" * 4096 + b"B" * 4096 + b"A" * 4096
one.zero(8192, 8192)
assert two.pread(4096, 8192) == bytes(4096)
two.trim(4096, 0, nbd.CMD_FLAG_FUA)
one.pwrite(b"C" * 512, size - 512)
assert two.pread(512, size - 512) == b"C" * 512
for call, code in [(lambda: one.pread(512, size), errno.EINVAL), (lambda: one.pwrite(b"D" * 512, size), errno.ENOSPC),
                   (lambda: one.zero(8192, size - 4096), errno.ENOSPC)]:
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == code, error
    else:
        raise AssertionError("a request beyond the end succeeded")
one.shutdown()
two.shutdown()
"#;
    let module = run(&PathBuf::from(PYTHON), ["-c", "import nbd"], LIMIT);
    assert!(
        module.code == 0,
        "the nbd module is missing: install it with 'apt-get install python3-libnbd'"
    );
    run(
        &PathBuf::from(PYTHON),
        ["-c", script, &pair.alice.uri()],
        LIMIT,
    )
    .succeeded();
    pair.assert_equal_disks();
}

#[test]
fn nbdfuse_reads_the_export_as_a_file() {
    let pair = ready();
    let source = image(&pair, "source");
    tool(
        "libnbd-bin",
        "nbdcopy",
        &["--flush", source.to_str().unwrap(), &pair.alice.uri()],
    )
    .succeeded();
    let directory = pair.stage.path("fuse");
    std::fs::create_dir(&directory).unwrap();
    let unmount = installed("fuse3", "fusermount3");
    let mut command = std::process::Command::new(installed("libnbd-bin", "nbdfuse"));
    command
        .arg("--readonly")
        .arg(&directory)
        .arg(pair.alice.uri());
    let mut fuse = Process::start("nbdfuse", &command, &pair.stage.path("nbdfuse.log"));
    let file = directory.join("nbd");
    let mounted = wait::within(Duration::from_secs(10), || {
        (fuse.ended().is_some()
            || file
                .metadata()
                .is_ok_and(|metadata| metadata.len() == size(&pair.alice)))
        .then_some(())
    });
    // The mount must not outlive the test, whatever the comparison says.
    let same = std::panic::catch_unwind(|| assert_equal(&source, &file, size(&pair.alice)));
    let unmounted = run(&unmount, ["-u".as_ref(), directory.as_os_str()], LIMIT);
    assert!(
        mounted.is_some() && fuse.wait(LIMIT).success(),
        "nbdfuse failed: {}",
        fuse.said()
    );
    unmounted.succeeded();
    assert!(same.is_ok());
}

#[test]
fn qemu_img_converts_onto_the_device_and_compares_equal() {
    let pair = ready();
    let source = image(&pair, "source");
    let (raw, uri) = (source.to_str().unwrap(), pair.alice.uri());
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", raw, &uri];
    tool("qemu-utils", "qemu-img", &convert).succeeded();
    let same = tool(
        "qemu-utils",
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", raw, &uri],
    )
    .succeeded();
    assert!(same.contains("Images are identical"), "{same}");
    pair.assert_equal_disks();
}

#[test]
fn qemu_io_reads_back_its_patterns_zeroes_and_discards() {
    let pair = ready();
    let commands = [
        "write -P 0x5a 0 1M",
        "aio_write -P 0xa5 4M 2M",
        "aio_flush",
        "write -z 256k 256k",
        "flush",
        "read -v -P 0x5a 0 4k",
        "read -P 0x5a 512k 512k",
        "read -P 0 256k 256k",
        "read -P 0xa5 4M 2M",
        "discard 4M 1M",
        "write -f -P 0x77 5M 4k",
        "read -P 0x77 5M 4k",
    ];
    let uri = pair.alice.uri();
    let arguments: Vec<&str> = ["-f", "raw"]
        .into_iter()
        .chain(commands.iter().flat_map(|command| ["-c", command]))
        .chain([uri.as_str()])
        .collect();
    let said = tool("qemu-utils", "qemu-io", &arguments).succeeded();
    assert!(
        !said.contains("failed") && !said.contains("Pattern verification"),
        "{said}"
    );
    pair.assert_equal_disks();
}

/// Options of both runs; the state files of its verification are not wanted.
const FIO: &[&str] = &[
    "--ioengine=nbd",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
];

fn fio(pair: &Pair, arguments: &[&str]) {
    let places = [
        format!("--uri={}", pair.alice.uri()),
        format!("--aux-path={}", pair.stage.directory().display()),
    ];
    let words = arguments
        .iter()
        .chain(FIO)
        .map(ToString::to_string)
        .chain(places);
    let said = run(&installed("fio", "fio"), words, LIMIT).succeeded();
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn fio_verifies_its_checksums_of_random_writes() {
    let pair = ready();
    fio(
        &pair,
        &[
            "--name=random",
            "--rw=randwrite",
            "--bs=4k",
            "--size=24M",
            "--iodepth=16",
            "--fsync=64",
        ],
    );
    pair.assert_equal_disks();
}

#[test]
fn fio_verifies_its_checksums_of_reads_and_writes_of_all_sizes() {
    let pair = ready();
    fio(
        &pair,
        &[
            "--name=mixed",
            "--rw=randrw",
            "--bsrange=512-128k",
            "--size=32M",
            "--io_size=48M",
            "--iodepth=32",
        ],
    );
    pair.assert_equal_disks();
}
