//! On-disk metadata of one volume: where it lies, what its bytes are, how a set of bytes is judged.
//!
//! Owns the formats (byte-level description: `docs/metadata-format.md`) and nothing that changes while the device runs:
//! the out-of-sync bitmap in memory is [`crate::bitmap`], the activity log in memory is [`crate::activity_log`].
//!
//! Invariants:
//! - Every structure carries a checksum of its own, so that damage is refused where it lies.
//! - A sector of 512 bytes is the largest unit that is assumed to be written whole. Larger structures are either kept twice
//!   (superblock), written round-robin (activity log) or checked sector by sector (bitmap).
//! - Decoding never panics and allocates no more than the device's size demands.
//!
//! Deliberately does no I/O: shells read and write the bytes at the offsets that [`layout::Layout`] names.

mod bytes;
pub mod copies;
pub mod growth;
pub mod image;
pub mod layout;
pub mod load;
pub mod ring;
pub mod superblock;

/// Unit and alignment of every metadata structure.
pub const METADATA_BLOCK_BYTES: u64 = 4096;

/// One metadata block.
pub type MetadataBlock = [u8; METADATA_BLOCK_BYTES as usize];
