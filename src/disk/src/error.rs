//! What went wrong with a disk, where, and what to do about it.
//!
//! One error type for the whole crate: a kind to decide by, and the context for the log. It does not decide whether an
//! error detaches a disk; that is the engine's.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

/// What a caller may want to distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskErrorKind {
    /// There is nothing at the path.
    NotFound,
    /// The process may not open or use it.
    PermissionDenied,
    /// Mounted, claimed, or locked by somebody else.
    Busy,
    /// Neither a regular file nor a block device.
    NotADisk,
    /// A change was asked of a disk opened, or set, read-only.
    ReadOnly,
    /// The file system or the thin pool below is full, or a quota or file size limit is reached.
    NoSpace,
    /// The request lies outside the device.
    OutOfRange,
    /// Offset or length is not a multiple of the device's alignment.
    Misaligned,
    /// The request is longer than [`crate::MAX_BUFFER_BYTES`], or empty.
    InvalidLength,
    /// The device ended before the request did, or stopped taking data: it is smaller than when it was opened.
    UnexpectedEnd,
    /// The device reported an error.
    Io,
    /// The kernel or the device does not offer what is needed.
    Unsupported,
    /// The backend ended before the operation did; whether it took effect is unknown.
    Shutdown,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// Setting up the backend.
    Setup,
    /// Opening and probing.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Flushing the volatile cache.
    Flush,
    /// Discarding.
    Discard,
    /// Writing zeroes.
    WriteZeroes,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationKind::Setup => "setup",
            OperationKind::Open => "open",
            OperationKind::Read => "read",
            OperationKind::Write => "write",
            OperationKind::Flush => "flush",
            OperationKind::Discard => "discard",
            OperationKind::WriteZeroes => "write of zeroes",
        })
    }
}

/// An error with its place: operation, path, range in bytes, the kernel's error number, and a remedy where one is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DiskError {
    /// What to decide by.
    pub kind: DiskErrorKind,
    /// What was being done.
    pub operation: OperationKind,
    /// The disk, or the name of the backend.
    pub path: Arc<Path>,
    /// Offset in bytes and length in bytes, for operations that have them.
    pub range: Option<(u64, u64)>,
    /// The kernel's error number.
    pub errno: Option<i32>,
    /// Cause and remedy in words.
    pub detail: Option<Box<str>>,
}

impl DiskError {
    /// An error that this crate found itself.
    #[must_use]
    pub fn new(
        kind: DiskErrorKind,
        operation: OperationKind,
        path: &Arc<Path>,
        detail: impl Into<String>,
    ) -> Self {
        let detail = Some(detail.into().into_boxed_str());
        DiskError {
            kind,
            operation,
            path: Arc::clone(path),
            range: None,
            errno: None,
            detail,
        }
    }

    /// An error number of the kernel, with the kind and the remedy that follow from it.
    #[must_use]
    pub fn from_errno(errno: i32, operation: OperationKind, path: &Arc<Path>) -> Self {
        let (kind, detail) = interpret(errno);
        let detail = detail.map(Box::from);
        DiskError {
            kind,
            operation,
            path: Arc::clone(path),
            range: None,
            errno: Some(errno),
            detail,
        }
    }

    /// As [`DiskError::from_errno`], from the standard library's error.
    #[must_use]
    pub fn from_io(error: &io::Error, operation: OperationKind, path: &Arc<Path>) -> Self {
        match error.raw_os_error() {
            Some(errno) => DiskError::from_errno(errno, operation, path),
            None => DiskError::new(DiskErrorKind::Io, operation, path, error.to_string()),
        }
    }

    /// Adds the range of bytes that was asked for.
    #[must_use]
    pub fn at(mut self, offset: u64, length: u64) -> Self {
        self.range = Some((offset, length));
        self
    }

    /// Replaces cause and remedy.
    #[must_use]
    pub fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into().into_boxed_str());
        self
    }
}

fn interpret(errno: i32) -> (DiskErrorKind, Option<&'static str>) {
    use DiskErrorKind as Kind;
    match Errno::from_raw(errno) {
        Errno::ENOENT => (
            Kind::NotFound,
            Some("no such file or device; create it or correct the path"),
        ),
        Errno::ENXIO | Errno::ENODEV | Errno::ENOMEDIUM => (
            Kind::NotFound,
            Some("the device node has no device behind it (gone, or not attached)"),
        ),
        Errno::EACCES | Errno::EPERM => (
            Kind::PermissionDenied,
            Some("not permitted; check owner, mode, and the device's read-only flag"),
        ),
        Errno::EBUSY | Errno::ETXTBSY => (Kind::Busy, None),
        Errno::EROFS => (
            Kind::ReadOnly,
            Some("the device or its file system is read-only"),
        ),
        Errno::ENOSPC => (
            Kind::NoSpace,
            Some(
                "the file system or thin pool that holds the disk is full; free or add space there",
            ),
        ),
        Errno::EDQUOT => (
            Kind::NoSpace,
            Some("the disk quota is exhausted; raise it or free space"),
        ),
        Errno::EFBIG => (
            Kind::NoSpace,
            Some(
                "the file may not grow further (file size limit of the process or the file system)",
            ),
        ),
        Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY => (Kind::Unsupported, None),
        Errno::EIO | Errno::EREMOTEIO | Errno::EILSEQ | Errno::ENODATA => (
            Kind::Io,
            Some("the device reported an error; see the kernel log"),
        ),
        _ => (Kind::Io, None),
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.operation)?;
        if let Some((offset, length)) = self.range {
            write!(f, " of {length} bytes at offset {offset}")?;
        }
        f.write_str(" failed: ")?;
        match (&self.detail, self.errno.map(Errno::from_raw)) {
            (Some(detail), Some(errno)) => write!(f, "{detail} ({errno:?})"),
            (Some(detail), None) => f.write_str(detail),
            (None, Some(errno)) => write!(f, "{} ({errno:?})", errno.desc()),
            (None, None) => write!(f, "{:?}", self.kind),
        }
    }
}
