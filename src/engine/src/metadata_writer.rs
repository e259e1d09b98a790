//! Order of metadata updates of one volume: which write waits for which flush.
//!
//! One job runs at a time, each a list of phases; a phase starts when every operation of the one before it has ended:
//! * superblock: write copy A, flush, *durable*, write copy B, flush;
//! * bitmap: (before a resync from here: flush the data device), write every dirty block, flush, *durable*;
//! * activity log: (only if an extent is evicted: flush the data device, write the evicted extents' dirty bitmap blocks, flush),
//!   write the transaction, flush, *committed*;
//! * move, after the device grew: the order is in [`crate::metadata::growth`].
//!
//! So a superblock never replaces its only good copy, and an extent leaves the log only when everything written to it is durable and
//! its bits are on disk (C1). Versions count requests: who needs durability remembers the version and waits until `durable` reaches
//! it. Not here: what the volume does with a committed change.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::metadata::METADATA_BLOCK_BYTES;
use crate::metadata::growth::{left_behind, parts};
use crate::metadata::layout::{CopyName, Layout, Placement};

/// Bitmap blocks written at a time, so that a large bitmap does not sit in memory twice.
const BITMAP_BATCH: usize = 256;

/// One step of a job.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Flush the data device.
    DataFlush,
    /// Write a block at a byte offset: a superblock copy or a block of the activity-log ring.
    Block(u64, Vec<u8>),
    /// Write bitmap blocks: (slot, block index).
    Bitmap(VecDeque<(usize, u64)>),
    /// Flush the metadata device.
    Flush,
    /// The superblock of this version is durable.
    SuperblockDurable(u64),
    /// The bitmaps of this version are durable.
    BitmapDurable(u64),
    /// The activity-log transaction is durable.
    LogCommitted,
    /// Write these blocks of a bitmap slot where another layout has them, in one piece.
    MovedBitmap(Layout, usize, Range<u64>),
    /// Write so many zeroes at a byte offset.
    Zeroes(u64, u64),
    /// The metadata are where this layout has them, durably.
    Moved(Layout),
}

/// A kind of update, asked for and made durable under counted versions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Versions {
    /// Last version asked for.
    pub wanted: u64,
    /// Last version durable.
    pub durable: u64,
}

/// The writer.
#[derive(Debug, Default)]
pub(crate) struct MetadataWriter {
    pub superblock: Versions,
    pub bitmap: Versions,
    /// The next bitmap job flushes the data device first.
    pub data_flush: bool,
    /// The metadata shall go where this layout has them.
    pub move_to: Option<Layout>,
    /// A move is under way, from the moment when both places are being remembered until the new one alone is.
    pub moving: bool,
    /// Operations of the running phase that have not ended.
    outstanding: u32,
    phases: VecDeque<Phase>,
}

impl MetadataWriter {
    /// The superblock changed in memory: returns the version that must become durable.
    pub fn want_superblock(&mut self) -> u64 {
        self.superblock.wanted += 1;
        self.superblock.wanted
    }

    /// The bitmaps shall become durable as they are now: returns the version.
    pub fn want_bitmap(&mut self) -> u64 {
        self.bitmap.wanted += 1;
        self.bitmap.wanted
    }

    /// True if no job runs.
    pub fn is_idle(&self) -> bool {
        self.outstanding == 0 && self.phases.is_empty()
    }

    /// Starts a superblock job: the same block to both places.
    pub fn start_superblock(&mut self, offset_a: u64, offset_b: u64, block: &[u8]) {
        debug_assert!(self.is_idle());
        let version = self.superblock.wanted;
        self.phases = VecDeque::from([
            Phase::Block(offset_a, block.to_vec()),
            Phase::Flush,
            Phase::SuperblockDurable(version),
            Phase::Block(offset_b, block.to_vec()),
            // The other copy must be whole before the next update touches copy A.
            Phase::Flush,
        ]);
    }

    /// Starts a bitmap job for these blocks.
    pub fn start_bitmap(&mut self, blocks: VecDeque<(usize, u64)>) {
        debug_assert!(self.is_idle());
        let version = self.bitmap.wanted;
        if core::mem::take(&mut self.data_flush) {
            self.phases.push_back(Phase::DataFlush);
        }
        if !blocks.is_empty() {
            self.phases.push_back(Phase::Bitmap(blocks));
            self.phases.push_back(Phase::Flush);
        }
        self.phases.push_back(Phase::BitmapDurable(version));
    }

    /// Starts an activity-log job.
    pub fn start_log(
        &mut self,
        evicting: bool,
        bitmap_blocks: VecDeque<(usize, u64)>,
        ring_offset: u64,
        ring_block: Vec<u8>,
    ) {
        debug_assert!(self.is_idle());
        if evicting {
            self.phases.push_back(Phase::DataFlush);
        }
        if !bitmap_blocks.is_empty() {
            self.phases.push_back(Phase::Bitmap(bitmap_blocks));
            self.phases.push_back(Phase::Flush);
        }
        self.phases.push_back(Phase::Block(ring_offset, ring_block));
        self.phases.push_back(Phase::Flush);
        self.phases.push_back(Phase::LogCommitted);
    }

    /// Starts a move from one layout to another, with the superblock and the whole ring for the new place.
    pub fn start_move(&mut self, old: &Layout, new: &Layout, superblock: &[u8], ring: Vec<u8>) {
        debug_assert!(self.is_idle());
        let version = self.superblock.wanted;
        let internal = new.placement == Placement::Internal;
        let blank = |layout: &Layout, phases: &mut VecDeque<Phase>| {
            for copy in [CopyName::A, CopyName::B] {
                let zeroes = vec![0; METADATA_BLOCK_BYTES as usize];
                phases.push_back(Phase::Block(layout.superblock_offset(copy), zeroes));
            }
            phases.push_back(Phase::Flush);
        };
        if internal {
            blank(new, &mut self.phases);
            self.phases.push_back(Phase::Block(new.ring_offset, ring));
        }
        let end = new.bitmap_slot_blocks();
        for slot in 0..usize::from(new.max_peers) {
            let mut first = if internal {
                0
            } else {
                old.bitmap_slot_blocks()
            };
            while first < end {
                let last = end.min(first + BITMAP_BATCH as u64);
                let phase = Phase::MovedBitmap(*new, slot, first..last);
                self.phases.push_back(phase);
                first = last;
            }
        }
        self.phases.push_back(Phase::Flush);
        for copy in [CopyName::A, CopyName::B] {
            let offset = new.superblock_offset(copy);
            self.phases
                .push_back(Phase::Block(offset, superblock.to_vec()));
            self.phases.push_back(Phase::Flush);
        }
        if internal {
            for (offset, bytes) in left_behind(old).into_iter().flat_map(parts) {
                self.phases.push_back(Phase::Zeroes(offset, bytes));
            }
            self.phases.push_back(Phase::Flush);
            blank(old, &mut self.phases);
        }
        self.phases.push_back(Phase::SuperblockDurable(version));
        self.phases.push_back(Phase::Moved(*new));
    }

    /// The next phase to carry out, if the one before it is over. Of a bitmap phase a batch is returned.
    pub fn next_phase(&mut self) -> Option<Phase> {
        if self.outstanding > 0 {
            return None;
        }
        if let Some(Phase::Bitmap(blocks)) = self.phases.front_mut()
            && blocks.len() > BITMAP_BATCH
        {
            return Some(Phase::Bitmap(blocks.drain(..BITMAP_BATCH).collect()));
        }
        self.phases.pop_front()
    }

    /// An operation of the phase was submitted.
    pub fn submitted(&mut self) {
        self.outstanding += 1;
    }

    /// An operation of the phase ended.
    pub fn ended(&mut self) {
        self.outstanding -= 1;
    }
}
