//! Opening a disk: what it is, how large, how aligned, and nobody else's.
//!
//! A block device is claimed with `O_EXCL`, a regular file locked with `flock`; both end with the last handle. Direct I/O is
//! verified, not assumed: the kernel is asked (`STATX_DIOALIGN`), otherwise trial reads decide. Where direct I/O is impossible
//! the disk works buffered and says so in [`Disk::notices`]. It does not create, grow or format anything.

use std::fs::{File, OpenOptions as FileOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::busy;
use crate::device::{DeviceInfo, DeviceKind};
use crate::error::{DiskError, DiskErrorKind, OperationKind};
use crate::sys::device as ask;
use crate::sys::memory::{AlignedMemory, PAGE_BYTES};
use crate::sysfs::BlockQueue;

/// Smallest addressable unit that the crate works with.
pub const SECTOR_BYTES: u32 = 512;

/// Major number of loop devices.
const LOOP_MAJOR: u64 = 7;

/// How to open a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Bypass the page cache where possible.
    pub direct: bool,
    /// Refuse changes.
    pub read_only: bool,
    /// Claim the disk, so that neither a mount nor a second daemon can use it at the same time.
    pub exclusive: bool,
}

impl Default for OpenOptions {
    /// Direct, writable, exclusive.
    fn default() -> Self {
        OpenOptions {
            direct: true,
            read_only: false,
            exclusive: true,
        }
    }
}

#[derive(Debug)]
enum Handle {
    Plain(File),
    Locked(Flock<File>),
}

/// An open disk: attach it to a reactor, or use its synchronous helpers. Closing it gives up the claim.
#[derive(Debug)]
pub struct Disk {
    handle: Handle,
    info: DeviceInfo,
    notices: Vec<String>,
}

impl Disk {
    /// What is known about it.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// What the administrator should know and may want to change: a fallback to buffered I/O, an odd size.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    pub(crate) fn file(&self) -> &File {
        match &self.handle {
            Handle::Plain(file) => file,
            Handle::Locked(file) => file,
        }
    }

    /// The size in bytes at this moment, a multiple of the alignment; [`DeviceInfo::size`] keeps the size found at opening.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn current_size(&self) -> Result<u64, DiskError> {
        size_of(self.file(), self.info.kind, &self.info.path)
            .map(|size| size - size % u64::from(self.info.alignment))
    }

    /// True if a write that is to be durable may be so by the word of another program alone: a file system in userspace is told of the
    /// wish with the write, and of a flush by a request that it has to answer.
    pub(crate) fn leaves_syncing_to_a_server(&self) -> bool {
        nix::sys::statfs::fstatfs(self.file())
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::FUSE_SUPER_MAGIC)
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file().as_fd()
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file().as_raw_fd()
    }
}

/// Opens a regular file, block device or loop device.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, `NotADisk`, `ReadOnly`, `Busy` (naming who holds it as far as can be found), or `Io`.
pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Disk, DiskError> {
    let path: Arc<Path> = Arc::from(path.as_ref());
    let failed = |error: &std::io::Error| DiskError::from_io(error, OperationKind::Open, &path);
    let metadata = std::fs::metadata(&path).map_err(|error| failed(&error))?;
    let kind = kind_of(&metadata, &path)?;
    let (file, direct) = open_file(&path, kind, options)?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if kind_of(&metadata, &path)? != kind {
        return Err(DiskError::new(
            DiskErrorKind::NotADisk,
            OperationKind::Open,
            &path,
            "it was replaced while it was being opened",
        ));
    }
    let mut notices = Vec::new();
    let handle = match kind {
        DeviceKind::File if options.exclusive => lock_file(file, &metadata, &path)?,
        _ => Handle::Plain(file),
    };
    let mut disk = Disk {
        handle,
        info: blank_info(&path, kind, options),
        notices: Vec::new(),
    };
    let logical_block = match kind {
        DeviceKind::File => SECTOR_BYTES,
        _ => ask::block_device_logical_block(&disk)
            .map_err(|errno| DiskError::from_errno(errno as i32, OperationKind::Open, &path))?
            .max(SECTOR_BYTES),
    };
    if kind != DeviceKind::File
        && !options.read_only
        && ask::block_device_read_only(&disk).unwrap_or(false)
    {
        let detail = "the block device is set read-only (see blockdev --setrw)";
        return Err(DiskError::new(
            DiskErrorKind::ReadOnly,
            OperationKind::Open,
            &path,
            detail,
        ));
    }
    let found = if direct {
        probe_direct(disk.file(), logical_block)
    } else {
        None
    };
    if direct && found.is_none() {
        disk = reopen_buffered(disk, options)?;
    }
    if options.direct && found.is_none() {
        notices.push(format!(
            "{}: the file system does not offer direct I/O; using the page cache, which costs memory and hides write errors until a flush",
            path.display()
        ));
    }
    let size = size_of(disk.file(), kind, &path)?;
    let info = &mut disk.info;
    info.direct = found.is_some();
    info.alignment = found.map_or(logical_block, |found| found.offset.max(logical_block));
    info.logical_block = if kind == DeviceKind::File {
        info.alignment
    } else {
        logical_block
    };
    info.memory_alignment = found.map_or(1, |found| found.memory);
    info.size = size - size % u64::from(info.alignment);
    if info.size != size {
        notices.push(format!(
            "{}: the last {} bytes are not used, they do not fill a block of {}",
            path.display(),
            size - info.size,
            info.alignment
        ));
    }
    let queue = BlockQueue::of(if kind == DeviceKind::File {
        metadata.dev()
    } else {
        metadata.rdev()
    });
    info.rotational = queue.rotational();
    (info.can_discard, info.discard_zeroes) = match kind {
        DeviceKind::File => (!options.read_only, true),
        _ => (
            !options.read_only && queue.can_discard(),
            queue.can_write_zeroes(),
        ),
    };
    disk.notices = notices;
    Ok(disk)
}

fn blank_info(path: &Arc<Path>, kind: DeviceKind, options: OpenOptions) -> DeviceInfo {
    DeviceInfo {
        path: Arc::clone(path),
        kind,
        size: 0,
        logical_block: SECTOR_BYTES,
        alignment: SECTOR_BYTES,
        memory_alignment: 1,
        direct: false,
        read_only: options.read_only,
        can_discard: false,
        discard_zeroes: false,
        rotational: false,
    }
}

fn kind_of(metadata: &std::fs::Metadata, path: &Arc<Path>) -> Result<DeviceKind, DiskError> {
    let file_type = metadata.file_type();
    if file_type.is_file() {
        Ok(DeviceKind::File)
    } else if file_type.is_block_device() {
        Ok(if u64::from(libc::major(metadata.rdev())) == LOOP_MAJOR {
            DeviceKind::Loop
        } else {
            DeviceKind::Block
        })
    } else {
        let detail = "a disk is a regular file or a block device, this is neither";
        Err(DiskError::new(
            DiskErrorKind::NotADisk,
            OperationKind::Open,
            path,
            detail,
        ))
    }
}

/// Opens with the wanted flags; the second value tells whether `O_DIRECT` was accepted.
fn open_file(
    path: &Arc<Path>,
    kind: DeviceKind,
    options: OpenOptions,
) -> Result<(File, bool), DiskError> {
    let exclusive = if options.exclusive && kind != DeviceKind::File {
        libc::O_EXCL
    } else {
        0
    };
    let attempt = |flags: i32| {
        FileOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(libc::O_CLOEXEC | exclusive | flags)
            .open(path)
    };
    let mut direct = options.direct;
    let mut result = attempt(if direct { libc::O_DIRECT } else { 0 });
    if direct && matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
        direct = false;
        result = attempt(0);
    }
    match result {
        Ok(file) => Ok((file, direct)),
        Err(error) => {
            let answer = DiskError::from_io(&error, OperationKind::Open, path);
            Err(match answer.kind {
                DiskErrorKind::Busy => {
                    let detail = format!(
                        "busy: already mounted or claimed by {}",
                        busy::block_device_user(path)
                    );
                    answer.because(detail)
                }
                _ => answer,
            })
        }
    }
}

fn lock_file(
    file: File,
    metadata: &std::fs::Metadata,
    path: &Arc<Path>,
) -> Result<Handle, DiskError> {
    let busy_error = |who: String| {
        DiskError::new(
            DiskErrorKind::Busy,
            OperationKind::Open,
            path,
            format!("busy: already in use by {who}"),
        )
    };
    if let Some(user) = busy::loop_device_on(metadata) {
        return Err(busy_error(user));
    }
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => Ok(Handle::Locked(locked)),
        Err((_, Errno::EWOULDBLOCK)) => Err(busy_error(busy::lock_holder(metadata))),
        Err((_, errno)) => Err(
            DiskError::from_errno(errno as i32, OperationKind::Open, path)
                .because("the file cannot be locked"),
        ),
    }
}

/// Takes `O_DIRECT` off the open file description, so that claim and lock stay without a gap.
fn reopen_buffered(disk: Disk, options: OpenOptions) -> Result<Disk, DiskError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = if options.read_only {
        OFlag::O_RDONLY
    } else {
        OFlag::O_RDWR
    };
    fcntl(&disk, FcntlArg::F_SETFL(flags)).map_err(|errno| {
        DiskError::from_errno(errno as i32, OperationKind::Open, &disk.info.path)
    })?;
    Ok(disk)
}

fn size_of(file: &File, kind: DeviceKind, path: &Arc<Path>) -> Result<u64, DiskError> {
    match kind {
        DeviceKind::File => file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|error| DiskError::from_io(&error, OperationKind::Open, path)),
        _ => ask::block_device_size(file)
            .map_err(|errno| DiskError::from_errno(errno as i32, OperationKind::Open, path)),
    }
}

/// The alignment that direct I/O really needs here, or `None` if it does not work at all.
fn probe_direct(file: &File, logical_block: u32) -> Option<ask::DirectAlignment> {
    if let Some(told) = ask::direct_alignment(file) {
        let usable = told.offset.is_power_of_two()
            && told.offset as usize <= PAGE_BYTES
            && told.memory as usize <= PAGE_BYTES;
        return usable.then_some(ask::DirectAlignment {
            memory: told.memory.max(1).next_power_of_two(),
            offset: told.offset,
        });
    }
    let mut memory = AlignedMemory::zeroed(2 * PAGE_BYTES);
    let works = |memory: &mut AlignedMemory, bytes: usize| {
        file.read_at(&mut memory.as_mut_slice()[bytes..2 * bytes], 0)
            .is_ok()
    };
    [SECTOR_BYTES, PAGE_BYTES as u32]
        .into_iter()
        .filter(|&bytes| bytes >= logical_block)
        .find(|&bytes| works(&mut memory, bytes as usize))
        .map(|bytes| ask::DirectAlignment {
            memory: bytes,
            offset: bytes,
        })
}
