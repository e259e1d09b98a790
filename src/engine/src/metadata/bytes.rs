//! Little-endian reads and writes at fixed positions of a metadata block.
//!
//! Positions are constants of the formats, checked against the block size at compile time by their owners; a position outside
//! the block is a bug and panics.

use super::MetadataBlock;

pub(super) fn put_u16(block: &mut MetadataBlock, at: usize, value: u16) {
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(block: &mut MetadataBlock, at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(block: &mut MetadataBlock, at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn get_u16(block: &MetadataBlock, at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

pub(super) fn get_u32(block: &MetadataBlock, at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

pub(super) fn get_u64(block: &MetadataBlock, at: usize) -> u64 {
    u64::from(get_u32(block, at)) | u64::from(get_u32(block, at + 4)) << 32
}

/// The first byte of `range` that is not zero. Looks at all of them at once first: nearly always there is none.
pub(super) fn first_not_zero(
    block: &MetadataBlock,
    range: core::ops::Range<usize>,
) -> Option<usize> {
    let bytes = block.get(range.clone())?;
    if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
        return None;
    }
    let at = bytes.iter().position(|&byte| byte != 0)?;
    Some(range.start + at)
}

/// CRC-32 (IEEE) over the whole block with the four bytes at `crc_at` taken as zero.
pub(super) fn checksum(block: &MetadataBlock, crc_at: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..crc_at]);
    hasher.update(&[0; 4]);
    hasher.update(&block[crc_at + 4..]);
    hasher.finalize()
}
