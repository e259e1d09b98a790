//! Clients of others against this server: libnbd (nbdinfo, nbdcopy, Python), QEMU (qemu-img, qemu-io) and fio.
//!
//! Each test runs the memory server on a socket of its own and fails, naming the package, when a tool is missing.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use support::memory::{MemoryServer, POLICY_TEXT};
use tempfile::TempDir;

const SIZE: u64 = 64 << 20;
/// The interpreter of the distribution's packages; another `python3` first in PATH lacks the module.
const PYTHON: &str = "/usr/bin/python3";

struct Stage {
    directory: TempDir,
    server: Arc<MemoryServer>,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = MemoryServer::new(SIZE);
        server.listen(&directory.path().join("nbd.sock")).unwrap();
        Self { directory, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.path("nbd.sock").display()
        )
    }

    /// A file of random-looking bytes.
    fn file(&self, name: &str, length: usize) -> PathBuf {
        let path = self.path(name);
        let words = (0..length as u64 / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        fs::write(&path, words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        path
    }
}

/// Runs a tool of a Debian package for at most a minute.
fn run(package: &str, tool: &str, arguments: &[&str]) -> Output {
    let found = Path::new(tool).is_absolute() && Path::new(tool).exists()
        || std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|directory| directory.join(tool).exists());
    assert!(
        found,
        "{tool} is missing: install it with 'apt-get install {package}'"
    );
    Command::new("timeout")
        .arg("60")
        .arg(tool)
        .args(arguments)
        .output()
        .expect("timeout of coreutils runs")
}

/// The standard output of a tool that must succeed.
fn succeed(package: &str, tool: &str, arguments: &[&str]) -> String {
    let output = run(package, tool, arguments);
    let (said, failed) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}\n{said}\n{failed}",
        output.status
    );
    said.into_owned()
}

fn python(stage: &Stage, export: &str, script: &str) -> String {
    let module = run("python3-libnbd", PYTHON, &["-c", "import nbd"]);
    assert!(
        module.status.success(),
        "the nbd module is missing: install it with 'apt-get install python3-libnbd'"
    );
    let prelude = r#"
import sys, errno, nbd

def opened(structured=True):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_request_structured_replies(structured)
    handle.add_meta_context("base:allocation")
    handle.connect_uri(sys.argv[1])
    assert handle.get_structured_replies_negotiated() == structured
    return handle

def fails(expected, function, *arguments):
    try:
        function(*arguments)
    except nbd.Error as error:
        right = error.errnum == getattr(errno, expected)
        assert right, f"{function.__name__}{arguments[1:]}: {error} instead of {expected}"
    else:
        raise AssertionError(f"{function.__name__} succeeded instead of {expected}")
"#;
    succeed(
        "python3-libnbd",
        PYTHON,
        &["-c", &format!("{prelude}\n{script}"), &stage.uri(export)],
    )
}

#[test]
fn nbdinfo_lists_every_export_with_its_properties() {
    let stage = Stage::new();
    let said = succeed("libnbd-bin", "nbdinfo", &["--list", &stage.uri("")]);
    for name in ["disk", "readonly", "large-blocks", "slow-zero", "broken"] {
        assert!(said.contains(&format!("export=\"{name}\"")), "{said}");
        assert!(said.contains(&format!("memory export {name}")), "{said}");
    }
}

#[test]
fn nbdinfo_sees_flags_and_block_sizes() {
    let stage = Stage::new();
    let said = succeed("libnbd-bin", "nbdinfo", &[&stage.uri("large-blocks")]);
    for line in [
        "newstyle-fixed without TLS, using structured packets",
        "base:allocation",
        "export-size: 67108864",
        "is_read_only: false",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_minimum: 4096",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(said.contains(line), "{line} in\n{said}");
    }
    assert!(
        succeed("libnbd-bin", "nbdinfo", &[&stage.uri("readonly")]).contains("is_read_only: true")
    );
}

#[test]
fn nbdinfo_maps_everything_as_data() {
    let stage = Stage::new();
    let said = succeed("libnbd-bin", "nbdinfo", &["--map", &stage.uri("disk")]);
    assert_eq!(
        said.split_whitespace().collect::<Vec<_>>(),
        ["0", "67108864", "0", "data"]
    );
}

#[test]
fn a_refusal_by_policy_reaches_users_of_qemu_with_its_text() {
    let stage = Stage::new();
    let output = run("qemu-utils", "qemu-img", &["info", &stage.uri("secondary")]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(POLICY_TEXT), "{said}");
    assert!(
        !run("libnbd-bin", "nbdinfo", &[&stage.uri("secondary")])
            .status
            .success()
    );
    assert!(
        !run("libnbd-bin", "nbdinfo", &[&stage.uri("nothing")])
            .status
            .success()
    );
}

#[test]
fn nbdcopy_carries_an_image_there_and_back_over_four_connections() {
    let stage = Stage::new();
    let image = stage.file("image", SIZE as usize);
    let back = stage.path("back");
    fs::write(&back, []).unwrap();
    let (from, to) = (image.to_str().unwrap(), back.to_str().unwrap());
    succeed(
        "libnbd-bin",
        "nbdcopy",
        &["--connections=4", "--flush", from, &stage.uri("disk")],
    );
    assert!(
        stage
            .server
            .export("disk")
            .unwrap()
            .flushes
            .load(Ordering::Relaxed)
            > 0
    );
    succeed(
        "libnbd-bin",
        "nbdcopy",
        &["--connections=4", &stage.uri("disk"), to],
    );
    assert!(fs::read(image).unwrap() == fs::read(back).unwrap());
}

#[test]
fn libnbd_gets_the_error_numbers_of_the_spec() {
    let stage = Stage::new();
    let script = r#"
for structured in (True, False):
    h = opened(structured)
    size, block = h.get_size(), bytearray(512)
    fails("ENOSPC", h.pwrite, block, size)
    fails("ENOSPC", h.zero, 1024, size - 512)
    fails("EINVAL", h.pread, 512, size)
    fails("EINVAL", h.trim, 1024, size - 512)
    fails("EINVAL", h.cache, 512, size)
    fails("EINVAL", h.pwrite, block, 1)
    fails("EINVAL", h.pwrite, bytearray(511), 0)
    fails("EINVAL", h.pread, 100, 0)
    fails("EINVAL", h.pread, 512, 0, 1 << 15)
    fails("EINVAL", h.pwrite, block, 0, nbd.CMD_FLAG_NO_HOLE)
    fails("EINVAL", h.pwrite, bytearray((32 << 20) + 512), 0)
    fails("EINVAL", h.pread, (32 << 20) + 512, 0)
    fails("EINVAL", h.trim, 0xfffffe00, 0)
    fails("ENOSPC", h.zero, 0xfffffe00, 0)
    if structured:
        fails("EINVAL", h.block_status, 512, size, lambda *a: None)
    h.pwrite(bytearray(b"z" * 512), 512, nbd.CMD_FLAG_FUA)
    assert h.pread(512, 512) == b"z" * 512, "the connection goes on"
    h.flush(nbd.CMD_FLAG_FUA)
    h.shutdown()
print("checked")
"#;
    assert_eq!(python(&stage, "disk", script), "checked\n");
}

#[test]
fn libnbd_gets_eperm_for_changes_of_a_read_only_export() {
    let stage = Stage::new();
    let script = r#"
for structured in (True, False):
    h = opened(structured)
    fails("EPERM", h.pwrite, bytearray(512), 0)
    fails("EPERM", h.pwrite, bytearray(512), h.get_size())
    fails("EPERM", h.zero, 512, 0)
    fails("EPERM", h.trim, 512, 0)
    assert h.pread(512, 0) == bytes(512)
    h.shutdown()
print("checked")
"#;
    assert_eq!(python(&stage, "readonly", script), "checked\n");
}

#[test]
fn libnbd_gets_enotsup_for_a_slow_fast_zero_and_eio_from_a_broken_medium() {
    let stage = Stage::new();
    let slow = r#"
h = opened()
fails("ENOTSUP", h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
h.zero(512, 0)
h.shutdown()
print("checked")
"#;
    assert_eq!(python(&stage, "slow-zero", slow), "checked\n");
    let broken = r#"
h = opened()
fails("EIO", h.pread, 512, 0)
fails("EIO", h.pwrite, bytearray(512), 0)
h.flush()
h.shutdown()
print("checked")
"#;
    assert_eq!(python(&stage, "broken", broken), "checked\n");
}

#[test]
fn libnbd_survives_requests_of_length_zero() {
    let stage = Stage::new();
    let script = r#"
for structured in (True, False):
    h = opened(structured)
    for request in (lambda: h.pread(0, 0), lambda: h.pwrite(b"", 0), lambda: h.trim(0, 0), lambda: h.zero(0, 0)):
        try:
            request()
        except nbd.Error:
            pass
    h.pwrite(bytearray(b"y" * 512), 0)
    assert h.pread(512, 0) == b"y" * 512
    h.shutdown()
print("checked")
"#;
    assert_eq!(python(&stage, "disk", script), "checked\n");
}

#[test]
fn libnbd_keeps_64_requests_in_flight() {
    let stage = Stage::new();
    let script = r#"
h = opened()
block = lambda number: nbd.Buffer.from_bytearray(bytearray([number]) * 65536)
cookies = [h.aio_pwrite(block(number), number * 65536) for number in range(64)]
for cookie in cookies:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
for number in range(64):
    assert h.pread(65536, number * 65536) == bytes([number]) * 65536
h.shutdown()
print("checked")
"#;
    assert_eq!(python(&stage, "disk", script), "checked\n");
}

#[test]
fn qemu_io_reads_back_its_patterns_and_zeroes() {
    let stage = Stage::new();
    let uri = stage.uri("disk");
    let said = succeed(
        "qemu-utils",
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0xa5 0 4M",
            "-c",
            "write -f -P 0x3c 4M 64k",
            "-c",
            "write -z 1M 512k",
            "-c",
            "write -z -u 2M 512k",
            "-c",
            "discard 3M 512k",
            "-c",
            "flush",
            "-c",
            "read -P 0xa5 0 1M",
            "-c",
            "read -P 0 1M 512k",
            "-c",
            "read -P 0xa5 1536k 512k",
            "-c",
            "read -P 0 2M 512k",
            "-c",
            "read -P 0x3c 4M 64k",
            "-c",
            "write -P 0x77 512 1024",
            "-c",
            "read -P 0x77 512 1024",
            &uri,
        ],
    );
    assert!(!said.contains("failed"), "{said}");
    let export = stage.server.export("disk").unwrap();
    assert!(
        export.fuas.load(Ordering::Relaxed) > 0,
        "write -f carries FUA"
    );
}

#[test]
fn qemu_io_cannot_open_a_read_only_export_for_writing() {
    let stage = Stage::new();
    let output = run(
        "qemu-utils",
        "qemu-io",
        &["-f", "raw", "-c", "write 0 512", &stage.uri("readonly")],
    );
    assert!(!output.status.success());
    let read_only = [
        "-r",
        "-f",
        "raw",
        "-c",
        "read -P 0 0 1M",
        &stage.uri("readonly"),
    ];
    succeed("qemu-utils", "qemu-io", &read_only);
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let stage = Stage::new();
    let image = stage.file("image", SIZE as usize);
    let (image, uri) = (image.to_str().unwrap(), stage.uri("disk"));
    succeed(
        "qemu-utils",
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri],
    );
    succeed(
        "qemu-utils",
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", image, &uri],
    );
    let map = succeed(
        "qemu-utils",
        "qemu-img",
        &["map", "--output=json", "-f", "raw", &uri],
    );
    assert!(
        map.contains("\"length\": 67108864") && map.contains("\"data\": true"),
        "{map}"
    );
}

#[test]
fn fio_verifies_random_writes_at_depth_16() {
    let stage = Stage::new();
    let uri = format!("--uri={}", stage.uri("disk"));
    let said = succeed(
        "fio",
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--bs_unaligned=0",
            "--size=32M",
            "--iodepth=16",
            "--fsync=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            // No file beside the sources.
            "--verify_state_save=0",
        ],
    );
    assert!(said.contains("err= 0"), "{said}");
    assert!(
        stage
            .server
            .export("disk")
            .unwrap()
            .flushes
            .load(Ordering::Relaxed)
            > 0
    );
}
