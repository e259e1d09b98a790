//! Questions to the kernel about a file or block device that need an ioctl or `statx`.
//!
//! It only asks; what follows from the answers is decided in `open`.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

mod calls {
    use nix::libc::{c_int, c_ulong};
    nix::ioctl_read_bad!(logical_block, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_read_bad!(read_only, nix::request_code_none!(0x12, 94), c_int);
    // Declared with size_t in the kernel's header, filled with 64 bits everywhere.
    nix::ioctl_read_bad!(
        size,
        nix::request_code_read!(0x12, 114, std::mem::size_of::<c_ulong>()),
        u64
    );
}

/// Size of a block device in bytes (`BLKGETSIZE64`).
///
/// # Errors
/// That of the ioctl.
pub fn block_device_size(file: impl AsFd) -> Result<u64, Errno> {
    let mut size = 0u64;
    // SAFETY: the descriptor is open and the kernel writes 64 bits to a live variable.
    unsafe { calls::size(file.as_fd().as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Logical block size of a block device in bytes (`BLKSSZGET`).
///
/// # Errors
/// That of the ioctl.
pub fn block_device_logical_block(file: impl AsFd) -> Result<u32, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open and the kernel writes an int to a live variable.
    unsafe { calls::logical_block(file.as_fd().as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(|_| Errno::EINVAL)
}

/// True if the block device is set read-only (`BLKROGET`).
///
/// # Errors
/// That of the ioctl.
pub fn block_device_read_only(file: impl AsFd) -> Result<bool, Errno> {
    let mut flag: libc::c_int = 0;
    // SAFETY: the descriptor is open and the kernel writes an int to a live variable.
    unsafe { calls::read_only(file.as_fd().as_raw_fd(), &raw mut flag) }?;
    Ok(flag != 0)
}

/// Alignment that direct I/O to this file needs, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of buffer addresses.
    pub memory: u32,
    /// Of offsets and lengths; zero if the file does not take direct I/O.
    pub offset: u32,
}

/// The kernel's own word on direct I/O to this file (`STATX_DIOALIGN`, Linux 6.1), or `None` where it gives none.
#[must_use]
pub fn direct_alignment(file: impl AsFd) -> Option<DirectAlignment> {
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path is an empty C string, and the kernel fills a live struct.
    let result = unsafe {
        libc::statx(
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    (result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DirectAlignment {
        memory: answer.stx_dio_mem_align,
        offset: answer.stx_dio_offset_align,
    })
}
