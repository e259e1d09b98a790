//! What the tests of the disk shell share: a runtime, one device of each backend, loop devices and mounts.
#![allow(dead_code)]

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qrbd_disk::memory::MemoryReactor;
use qrbd_disk::{
    BlockDevice, Completion, DiskError, OpenOptions, Operation, Payload, Pool, Reactor, ReactorExt,
    UringOptions, UringReactor,
};

/// Size of the devices of the conformance tests.
pub const DEVICE_BYTES: u64 = 80 << 20;

/// A device of some backend, with everything that keeps it alive. Fields drop in order.
pub struct Case {
    pub device: Box<dyn BlockDevice>,
    pub reactor: Box<dyn Reactor>,
    pub pool: Pool,
    pub held: Vec<Box<dyn Any>>,
}

/// Runs a test body as the daemon runs: one thread, local tasks.
pub fn run<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let limit = Duration::from_secs(120);
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(limit, body)
            .await
            .expect("the test hangs")
    })
}

/// A sparse file in a fresh folder.
pub fn file_of(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("disk");
    File::create(&path)
        .and_then(|file| file.set_len(bytes))
        .expect("disk file");
    (folder, path)
}

pub fn on_ring(path: &Path, held: Vec<Box<dyn Any>>) -> Case {
    let pool = Pool::default();
    let reactor = UringReactor::new(UringOptions::default(), pool.clone()).expect("ring");
    let disk = qrbd_disk::open(path, OpenOptions::default()).expect("open");
    Case {
        device: Box::new(reactor.attach(disk)),
        reactor: Box::new(reactor),
        pool,
        held,
    }
}

#[cfg(feature = "tokio-uring")]
pub fn on_thread(path: &Path, held: Vec<Box<dyn Any>>) -> Case {
    let pool = Pool::default();
    let reactor = qrbd_disk::thread::DiskThread::new(pool.clone()).expect("disk thread");
    let disk = qrbd_disk::open(path, OpenOptions::default()).expect("open");
    Case {
        device: Box::new(reactor.attach(disk).expect("attach")),
        reactor: Box::new(reactor),
        pool,
        held,
    }
}

pub fn in_memory() -> Case {
    let pool = Pool::default();
    let reactor = MemoryReactor::new(pool.clone());
    Case {
        device: Box::new(reactor.create("memory", DEVICE_BYTES)),
        reactor: Box::new(reactor),
        pool,
        held: Vec::new(),
    }
}

impl Case {
    pub fn submit(&self, token: u64, operation: Operation) {
        self.device
            .submit(token, operation)
            .expect("below the limit");
    }

    /// Completions of everything outstanding, by token; no token may come twice.
    pub async fn finish(&self) -> BTreeMap<u64, Result<Option<Payload>, DiskError>> {
        let mut results = BTreeMap::new();
        let mut completions: Vec<Completion> = Vec::new();
        while self.reactor.outstanding() > 0 {
            self.reactor.flush();
            self.reactor.completed().await;
            assert!(
                self.reactor.take_completions(&mut completions) > 0,
                "ready means that there is a completion"
            );
            for completion in completions.drain(..) {
                assert!(
                    results
                        .insert(completion.token, completion.result)
                        .is_none(),
                    "token {} twice",
                    completion.token
                );
            }
        }
        results
    }

    pub async fn carry_out(&self, operation: Operation) -> Result<Option<Payload>, DiskError> {
        self.submit(7, operation);
        self.finish().await.remove(&7).expect("its completion")
    }

    pub async fn write(&self, offset: u64, bytes: &[u8]) {
        let payload = self.pool.copy_from(bytes);
        let result = self
            .carry_out(Operation::Write {
                offset,
                payload,
                durable: false,
            })
            .await;
        assert_eq!(result.expect("write"), None);
    }

    pub async fn read(&self, offset: u64, length: usize) -> Payload {
        let length = u32::try_from(length).expect("short");
        self.carry_out(Operation::Read { offset, length })
            .await
            .expect("read")
            .expect("data of a read")
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Runs a program; its standard output if it succeeds.
pub fn command(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// True if loop devices can be attached here; tests that need them say that they were skipped otherwise.
pub fn can_use_loop_devices() -> bool {
    let possible = nix::unistd::geteuid().is_root()
        && Path::new("/dev/loop-control").exists()
        && command("losetup", &["--version"]).is_some();
    if !possible {
        eprintln!("skipped: needs root, /dev/loop-control and losetup");
    }
    possible
}

/// A file attached to a loop device with `losetup`.
pub struct LoopDevice {
    pub path: PathBuf,
    pub file: PathBuf,
    _folder: tempfile::TempDir,
}

impl LoopDevice {
    pub fn new(bytes: u64, sector: u32) -> Self {
        let (folder, file) = file_of(bytes);
        let sector = sector.to_string();
        let name = file.to_str().expect("plain path");
        // Several tests look for a free device at once; losetup may lose the race.
        let path = (0..20)
            .find_map(|_| {
                let path = command(
                    "losetup",
                    &[
                        "--find",
                        "--show",
                        "--direct-io=on",
                        "--sector-size",
                        &sector,
                        name,
                    ],
                );
                if path.is_none() {
                    std::thread::sleep(Duration::from_millis(50));
                }
                path
            })
            .expect("a free loop device");
        LoopDevice {
            path: PathBuf::from(path),
            file,
            _folder: folder,
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let path = self.path.to_str().expect("plain path");
        // The read-only flag would outlive the attachment.
        command("blockdev", &["--setrw", path]);
        command("losetup", &["--detach", path]);
    }
}

/// A mounted file system, unmounted at the end.
pub struct Mount {
    pub folder: tempfile::TempDir,
}

impl Mount {
    pub fn tmpfs(bytes: u64) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let place = folder.path().to_str().expect("plain path");
        command(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={bytes}"),
                "tmpfs",
                place,
            ],
        )
        .expect("mount tmpfs");
        Mount { folder }
    }

    pub fn ext4(device: &Path) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (device, place) = (
            device.to_str().expect("plain path"),
            folder.path().to_str().expect("plain path"),
        );
        command("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", device]).expect("mkfs.ext4");
        command("mount", &["-t", "ext4", device, place]).expect("mount ext4");
        Mount { folder }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        command(
            "umount",
            &[self.folder.path().to_str().expect("plain path")],
        );
    }
}
