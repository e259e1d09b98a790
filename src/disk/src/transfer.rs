//! Rules that every backend on a real disk follows: what a result of the kernel means, and which ways exist to release or zero a
//! range. No state, no I/O.

use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;

use crate::device::DeviceInfo;
use crate::error::{DiskError, DiskErrorKind, OperationKind};

/// Longest range of zeroes that is written outright although the file system might have a faster way.
pub const SMALL_ZEROES: u64 = 64 << 10;

/// Times that one operation is retried after `EINTR` or `EAGAIN` before that counts as its result.
pub const MAX_RETRIES: u32 = 1000;

/// `fallocate` mode that releases a range and leaves zeroes.
pub const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// `fallocate` mode that zeroes a range and keeps its space.
pub const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// The result asks for the same transfer again.
pub fn interrupted(result: i32) -> bool {
    result == -libc::EINTR || result == -libc::EAGAIN
}

/// The file system or device does not know the operation.
pub fn unsupported(errno: i32) -> bool {
    matches!(
        errno,
        libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV
    )
}

/// Bytes done after a transfer that started at `done`, rounded down to what direct I/O can continue from.
pub fn progress(
    info: &DeviceInfo,
    kind: OperationKind,
    done: usize,
    length: usize,
    result: i32,
) -> Result<usize, DiskError> {
    let Ok(moved) = usize::try_from(result) else {
        return Err(DiskError::from_errno(-result, kind, &info.path));
    };
    let mut reached = done + moved;
    if reached < length {
        reached -= reached % info.alignment as usize;
    }
    if reached > done {
        return Ok(reached);
    }
    let detail = match kind {
        OperationKind::Read => "the disk ends here: it is smaller than when it was opened",
        _ => {
            "the disk takes no more data here: it, or the file system that holds it, has become smaller or is full"
        }
    };
    Err(DiskError::new(
        DiskErrorKind::UnexpectedEnd,
        kind,
        &info.path,
        detail,
    ))
}

/// Explains why there is no ring.
pub fn setup_error(error: &io::Error) -> DiskError {
    let backend: Arc<Path> = Arc::from(Path::new("io_uring"));
    let answer = DiskError::from_io(error, OperationKind::Setup, &backend);
    let detail = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSYS) => {
            "this kernel has no io_uring; Linux 5.6 or newer, built with CONFIG_IO_URING, is needed"
        }
        Some(Errno::EPERM | Errno::EACCES) => {
            "the kernel refuses io_uring to this process; set the sysctl kernel.io_uring_disabled to 0, and check the container's seccomp profile"
        }
        Some(Errno::ENOMEM) => {
            "not enough lockable memory for the ring; raise the limit (ulimit -l, LimitMEMLOCK=)"
        }
        Some(Errno::EMFILE | Errno::ENFILE) => {
            "too many open files; raise the limit (ulimit -n, LimitNOFILE=)"
        }
        None if error.kind() == io::ErrorKind::Unsupported => {
            "the io_uring of this kernel is too old; Linux 5.6 or newer is needed"
        }
        _ => return answer,
    };
    let kind = match answer.kind {
        DiskErrorKind::PermissionDenied => DiskErrorKind::PermissionDenied,
        _ => DiskErrorKind::Unsupported,
    };
    DiskError { kind, ..answer }.because(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_io_uring_names_the_kernel_version() {
        let error = setup_error(&io::Error::from_raw_os_error(libc::ENOSYS));
        assert_eq!(error.kind, DiskErrorKind::Unsupported);
        assert!(error.to_string().contains("Linux 5.6"), "{error}");
    }

    #[test]
    fn refused_io_uring_names_the_sysctl() {
        let error = setup_error(&io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(error.kind, DiskErrorKind::PermissionDenied);
        assert!(
            error.to_string().contains("kernel.io_uring_disabled"),
            "{error}"
        );
    }

    #[test]
    fn too_old_io_uring_names_the_kernel_version() {
        let error = setup_error(&io::Error::from(io::ErrorKind::Unsupported));
        assert_eq!(error.kind, DiskErrorKind::Unsupported);
        assert!(error.to_string().contains("Linux 5.6"), "{error}");
    }
}
