//! A file system on an export, on a kernel without an NBD client: `nbdfuse` makes the export a file, a loop device makes the file a
//! block device, and that is mounted.
//!
//! Needs root, `/dev/fuse` and loop devices. Every step is undone at the end, in the other order, also when the server has died: then
//! the mount sees I/O errors and is taken away lazily.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::node::Node;
use crate::process::Process;
use crate::programs::{Finished, installed, run};
use crate::stage::Stage;
use crate::wait;

const LIMIT: Duration = Duration::from_secs(40);
/// For the kernel to let go of something whose server is gone.
const RELEASE_LIMIT: Duration = Duration::from_secs(15);

/// An export as a block device.
#[derive(Debug)]
pub struct BlockDevice {
    loop_device: PathBuf,
    attached: bool,
    mount_point: PathBuf,
    fuse: Process,
}

impl BlockDevice {
    /// Attaches the export of a Primary.
    ///
    /// # Panics
    /// If a tool or a right is missing; the text tells which.
    #[must_use]
    #[track_caller]
    pub fn attach(stage: &Stage, node: &Node) -> BlockDevice {
        require_root();
        assert!(
            Path::new("/dev/fuse").exists(),
            "/dev/fuse is missing: the kernel needs FUSE (modprobe fuse)"
        );
        let _ = installed("fuse3", "fusermount3");
        let directory = stage.path(&format!("{}.fuse", node.name));
        std::fs::create_dir_all(&directory).expect("a directory can be made");
        let mut command = Command::new(installed("libnbd-bin", "nbdfuse"));
        command.arg(&directory).arg(node.uri());
        let mut fuse = Process::start(
            "nbdfuse",
            &command,
            &stage.path(&format!("{}-nbdfuse.log", node.name)),
        );
        let file = directory.join("nbd");
        wait::until("the export as a file", LIMIT, || {
            assert!(fuse.ended().is_none(), "nbdfuse ended: {}", fuse.said());
            file.metadata()
                .is_ok_and(|metadata| metadata.len() > 0)
                .then_some(())
        });
        let arguments = ["--find".as_ref(), "--show".as_ref(), file.as_os_str()];
        let shown = run(&installed("mount", "losetup"), arguments, LIMIT).succeeded();
        BlockDevice {
            loop_device: shown.trim().into(),
            attached: true,
            mount_point: directory,
            fuse,
        }
    }

    /// The loop device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.loop_device
    }

    /// Runs a tool with the device as its last argument.
    #[track_caller]
    pub fn run(&self, package: &str, tool: &str, arguments: &[&str]) -> Finished {
        let words = arguments
            .iter()
            .map(|word| (*word).into())
            .chain([self.loop_device.clone().into_os_string()]);
        run(&installed(package, tool), words, LIMIT)
    }

    /// Gives it back in order; everything written is flushed.
    ///
    /// # Panics
    /// If the kernel does not let it go.
    #[track_caller]
    pub fn detach(mut self) {
        run(
            &installed("mount", "losetup"),
            ["--detach".as_ref(), self.loop_device.as_os_str()],
            LIMIT,
        )
        .succeeded();
        self.attached = false;
        // Whoever else has the loop device open for a moment (a probe for file systems) makes the kernel give it up later.
        wait::until("the loop device is gone", RELEASE_LIMIT, || {
            (!is_attached(&self.loop_device)).then_some(())
        });
        // The kernel closes the loop device's file a moment after it is gone: busy until then.
        let mut last = None;
        wait::within(RELEASE_LIMIT, || {
            let unmounted = run(
                &installed("fuse3", "fusermount3"),
                ["-u".as_ref(), self.mount_point.as_os_str()],
                LIMIT,
            );
            let done = unmounted.code == 0;
            last = Some(unmounted);
            done.then_some(())
        });
        last.expect("it is tried at least once").succeeded();
        let ended = self.fuse.wait(RELEASE_LIMIT);
        assert!(
            ended.success(),
            "nbdfuse ended with {ended}: {}",
            self.fuse.said()
        );
    }

    fn release(&mut self) {
        if self.attached {
            quietly(
                Command::new("losetup")
                    .arg("--detach")
                    .arg(&self.loop_device),
            );
        }
        quietly(
            Command::new("fusermount3")
                .args(["-u", "-z"])
                .arg(&self.mount_point),
        );
        self.fuse.kill();
        // A loop device whose file is gone is given back by the kernel when its last user is.
        let _ = wait::within(RELEASE_LIMIT, || {
            (!is_attached(&self.loop_device)).then_some(())
        });
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        self.release();
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    directory: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts a block device.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    #[track_caller]
    pub fn new(stage: &Stage, name: &str, device: &Path) -> Mount {
        require_root();
        let directory = stage.path(name);
        std::fs::create_dir_all(&directory).expect("a directory can be made");
        run(&installed("mount", "mount"), [device, &directory], LIMIT).succeeded();
        Mount {
            directory,
            mounted: true,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unmounts in order.
    ///
    /// # Panics
    /// If it is busy.
    #[track_caller]
    pub fn unmount(mut self) {
        run(&installed("mount", "umount"), [&self.directory], LIMIT).succeeded();
        self.mounted = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            quietly(Command::new("umount").arg("--lazy").arg(&self.directory));
        }
    }
}

/// Fails if the test does not run as root.
///
/// # Panics
/// That is how.
#[track_caller]
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts file systems: run it as root"
    );
}

/// A regular file as a loop device, which is given back at the end.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Attaches a file.
    ///
    /// # Panics
    /// If that is not possible.
    #[must_use]
    #[track_caller]
    pub fn new(file: &Path) -> LoopDevice {
        require_root();
        let arguments = ["--find".as_ref(), "--show".as_ref(), file.as_os_str()];
        LoopDevice(
            run(&installed("mount", "losetup"), arguments, LIMIT)
                .succeeded()
                .trim()
                .into(),
        )
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        quietly(Command::new("losetup").arg("--detach").arg(&self.0));
    }
}

fn is_attached(device: &Path) -> bool {
    let name = device
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Path::new(&format!("/sys/block/{name}/loop")).exists()
}

/// Runs a step of cleaning up, for a while; what fails then is shown by the next one.
fn quietly(command: &mut Command) {
    let mut bounded = Command::new("timeout");
    bounded
        .arg("--kill-after=1")
        .arg("10")
        .arg(command.get_program())
        .args(command.get_args());
    let _ = bounded.output();
}
