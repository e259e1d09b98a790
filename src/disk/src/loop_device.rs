//! Attaches a file to a loop device, for tests and tools (feature `loop`; building it needs libclang).
//!
//! It uses the `loopdev-3` crate and needs root. The device is detached when the value is dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use loopdev::{LoopControl, LoopDevice};

use crate::error::{DiskError, DiskErrorKind, OperationKind};

/// Attempts to find a free device while other processes look for one too.
const ATTEMPTS: u32 = 16;

/// How often and how long to wait for the kernel to let go of a detached file.
const DETACH_ATTEMPTS: u32 = 200;
const DETACH_PAUSE: Duration = Duration::from_millis(10);

/// A file attached to a loop device.
#[derive(Debug)]
pub struct AttachedFile {
    /// None only while it is dropped.
    device: Option<LoopDevice>,
    path: PathBuf,
}

impl AttachedFile {
    /// Attaches `file`, with direct I/O to it where its file system allows.
    ///
    /// # Errors
    /// `PermissionDenied` without root, `NotFound` without the loop module, `Busy` if no device is free.
    pub fn new(file: impl AsRef<Path>) -> Result<Self, DiskError> {
        let file = file.as_ref();
        let shown: Arc<Path> = Arc::from(file);
        let failed = |error: &io::Error| DiskError::from_io(error, OperationKind::Setup, &shown);
        let control = LoopControl::open().map_err(|error| {
            failed(&error)
                .because("/dev/loop-control cannot be opened; it needs root and the loop module")
        })?;
        for _ in 0..ATTEMPTS {
            let device = control.next_free().map_err(|error| failed(&error))?;
            match device.with().autoclear(false).attach(file) {
                Ok(()) => {
                    // Refused where the file system has no direct I/O; the device works either way.
                    let _ = device.set_direct_io(true);
                    let path = device.path().ok_or_else(|| {
                        DiskError::new(
                            DiskErrorKind::NotFound,
                            OperationKind::Setup,
                            &shown,
                            "the loop device has no node in /dev",
                        )
                    })?;
                    return Ok(AttachedFile {
                        device: Some(device),
                        path,
                    });
                }
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(DiskError::new(
            DiskErrorKind::Busy,
            OperationKind::Setup,
            &shown,
            "no loop device stayed free long enough",
        ))
    }

    /// The device's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AttachedFile {
    /// Detaches the file and waits until it is free again. The kernel lets go of it at the last close of the device, and a
    /// descriptor that a child process just inherited lives until that process executes its program.
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            let _ = device.detach();
        }
        let Some(name) = self.path.file_name().and_then(|name| name.to_str()) else {
            return;
        };
        let backing = format!("/sys/block/{name}/loop/backing_file");
        for _ in 0..DETACH_ATTEMPTS {
            if !Path::new(&backing).exists() {
                break;
            }
            std::thread::sleep(DETACH_PAUSE);
        }
    }
}
