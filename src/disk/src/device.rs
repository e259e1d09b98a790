//! What is known about an open disk.

use std::path::Path;
use std::sync::Arc;

/// What the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A regular file.
    File,
    /// A block device other than a loop device.
    Block,
    /// A loop device.
    Loop,
    /// Memory of this process.
    Memory,
}

/// Facts about an open disk, found once when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The path it was opened by.
    pub path: Arc<Path>,
    /// What it is.
    pub kind: DeviceKind,
    /// Bytes that can be addressed, a multiple of `alignment`.
    pub size: u64,
    /// Logical block size in bytes; for a file, that of direct I/O to it.
    pub logical_block: u32,
    /// Offsets and lengths must be multiples of this many bytes; a power of two, at least 512.
    pub alignment: u32,
    /// Addresses of buffers must be multiples of this many bytes for a transfer without a copy; a power of two.
    pub memory_alignment: u32,
    /// I/O bypasses the page cache.
    pub direct: bool,
    /// Changes are refused.
    pub read_only: bool,
    /// Discard has an effect, as far as can be told without trying.
    pub can_discard: bool,
    /// A discarded range reads as zeroes.
    pub discard_zeroes: bool,
    /// The device, or the one below the file, is a rotating disk.
    pub rotational: bool,
}
