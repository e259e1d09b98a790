//! Drives the metadata writer of each volume and continues what waited for durable metadata.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::api::{Effect, IoError, Payload};
use crate::engine::{Engine, IoOwner};
use crate::metadata::growth::KnownDevice;
use crate::metadata::layout::{CopyName, Placement};
use crate::metadata_writer::Phase;
use crate::state::{DiskState, Refusal};
use crate::units::BLOCKS_PER_EXTENT;
use crate::volume::{After, Waiter};
use crate::wire::Message;

impl<P: Payload> Engine<P> {
    /// Starts the next metadata job or phase. True if something started or ended.
    pub(crate) fn pump_metadata(&mut self, v: usize) -> bool {
        let between = matches!(
            self.volumes[v].disk,
            DiskState::Attaching
                | DiskState::Negotiating
                | DiskState::Detaching
                | DiskState::Failed
        );
        if self.volumes[v].metadata_failed || !self.volumes[v].usable() && !between {
            return false;
        }
        let mut progress = false;
        loop {
            let volume = &mut self.volumes[v];
            let Some(backing) = volume.backing.as_mut() else {
                return progress;
            };
            if backing.writer.is_idle() && !self.start_metadata_job(v) {
                return progress;
            }
            let Some(backing) = self.volumes[v].backing.as_mut() else {
                return progress;
            };
            let Some(phase) = backing.writer.next_phase() else {
                return progress;
            };
            progress = true;
            self.carry_out(v, phase);
        }
    }

    /// Chooses the next job of an idle writer. True if there is one.
    fn start_metadata_job(&mut self, v: usize) -> bool {
        // Those whose extents became active, or whose slots were released, need no transaction.
        self.log_committed(v);
        let volume = &mut self.volumes[v];
        let Some(backing) = volume.backing.as_mut() else {
            return false;
        };
        if let Some(layout) = backing.writer.move_to {
            backing.writer.moving = true;
            let known = KnownDevice {
                moving_to: Some(layout.device_bytes)
                    .filter(|_| layout.placement == Placement::Internal),
                ..KnownDevice::of(&backing.superblock)
            };
            self.remember_disk(v, known);
            return true;
        }
        if backing.writer.superblock.wanted > backing.writer.superblock.durable {
            backing.superblock.sequence += 1;
            let block = backing.superblock.encode();
            let (a, b) = (
                backing.layout.superblock_offset(CopyName::A),
                backing.layout.superblock_offset(CopyName::B),
            );
            backing.writer.start_superblock(a, b, &block);
            return true;
        }
        if backing.writer.bitmap.wanted > backing.writer.bitmap.durable {
            let mut blocks = VecDeque::new();
            for (slot, bitmap) in backing.bitmaps.iter_mut().enumerate() {
                blocks.extend(
                    bitmap
                        .take_all_dirty()
                        .into_iter()
                        .map(|block| (slot, block)),
                );
            }
            backing.writer.start_bitmap(blocks);
            return true;
        }
        if volume.log_waiters.is_empty() {
            return false;
        }
        // No more extents than slots: what is asked for is not evicted, so asking for everything would leave nothing to evict.
        let mut room = backing.log.slots().len();
        let count = volume
            .log_waiters
            .iter()
            .take_while(|waiter| {
                let extents = waiter.range.extents_touched().len();
                let fits = extents <= room;
                room -= extents.min(room);
                fits
            })
            .count();
        let wanted = volume
            .log_waiters
            .iter()
            .take(count.max(1))
            .flat_map(|waiter| waiter.range.extents_touched());
        let Some(transaction) = backing.log.plan(wanted) else {
            // Every slot is referenced by writes whose epoch is not durable everywhere: close the epochs, so that they retire, and let
            // nobody overtake those that wait.
            volume.log_starving = true;
            for p in 0..self.peers.len() {
                self.close_epoch(p);
            }
            return false;
        };
        volume.log_starving = false;
        let mut blocks = VecDeque::new();
        for (slot, bitmap) in backing.bitmaps.iter_mut().enumerate() {
            for &extent in &transaction.evicted {
                let first = u64::from(extent) * BLOCKS_PER_EXTENT;
                let end = bitmap.blocks().min(first + BLOCKS_PER_EXTENT);
                blocks.extend(
                    bitmap
                        .take_dirty(first.min(end)..end)
                        .into_iter()
                        .map(|block| (slot, block)),
                );
            }
        }
        let (index, block) = backing
            .ring
            .transaction(&transaction.updates, backing.log.slots());
        let offset = backing.layout.ring_block_offset(index);
        backing.writer.start_log(
            !transaction.evicted.is_empty(),
            blocks,
            offset,
            block.to_vec(),
        );
        true
    }

    fn carry_out(&mut self, v: usize, phase: Phase) {
        let volume = self.volumes[v].number;
        match phase {
            Phase::DataFlush => {
                let io = self.new_metadata_io(v);
                self.effect(Effect::Flush { volume, io });
            }
            Phase::Flush => {
                let io = self.new_metadata_io(v);
                self.effect(Effect::MetadataFlush { volume, io });
            }
            Phase::Block(offset, bytes) => self.write_metadata(v, offset, bytes),
            Phase::Bitmap(blocks) => {
                for (slot, block) in blocks {
                    let Some(backing) = self.volumes[v].backing.as_ref() else {
                        return;
                    };
                    let bytes = backing.bitmaps[slot].encode_block(slot, block).to_vec();
                    let offset = backing.layout.bitmap_block_offset(slot, block);
                    self.write_metadata(v, offset, bytes);
                }
            }
            Phase::SuperblockDurable(version) => {
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    backing.writer.superblock.durable = version;
                }
                self.metadata_durable(v);
            }
            Phase::BitmapDurable(version) => {
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    backing.writer.bitmap.durable = version;
                }
                self.metadata_durable(v);
            }
            Phase::MovedBitmap(layout, slot, blocks) => {
                let Some(backing) = self.volumes[v].backing.as_ref() else {
                    return;
                };
                let offset = layout.bitmap_block_offset(slot, blocks.start);
                let bitmap = &backing.bitmaps[slot];
                let bytes = blocks
                    .flat_map(|block| bitmap.encode_block(slot, block))
                    .collect();
                self.write_metadata(v, offset, bytes);
            }
            Phase::Zeroes(offset, bytes) => {
                let bytes = alloc::vec![0; bytes as usize];
                self.write_metadata(v, offset, bytes);
            }
            Phase::Moved(layout) => {
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    backing.layout = layout;
                    let known = KnownDevice::of(&backing.superblock);
                    self.remember_disk(v, known);
                }
            }
            Phase::LogCommitted => {
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    backing.log.committed();
                }
                self.log_committed(v);
            }
        }
    }

    fn write_metadata(&mut self, v: usize, offset: u64, bytes: Vec<u8>) {
        let volume = self.volumes[v].number;
        let io = self.new_metadata_io(v);
        self.effect(Effect::MetadataWrite {
            volume,
            io,
            offset,
            bytes,
        });
    }

    fn remember_disk(&mut self, v: usize, known: KnownDevice) {
        let volume = self.volumes[v].number;
        let io = self.new_metadata_io(v);
        self.effect(Effect::RememberDisk { volume, io, known });
    }

    /// The shell remembers where the metadata are, or where they are on the way to; or it cannot.
    pub(crate) fn disk_remembered(&mut self, v: usize, result: Result<(), IoError>) {
        let Some(backing) = self.volumes[v].backing.as_mut() else {
            return;
        };
        backing.writer.ended();
        match backing.writer.move_to.take() {
            Some(layout) if result.is_ok() => backing.start_move(&layout),
            Some(_) => {
                backing.writer.moving = false;
                self.move_refused(v);
            }
            None => {
                // Is it not remembered, then an attach looks at both places, and finds the metadata in this one.
                backing.writer.moving = false;
                self.metadata_moved(v);
            }
        }
    }

    fn new_metadata_io(&mut self, v: usize) -> crate::api::IoId {
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            backing.writer.submitted();
        }
        self.new_io(v, IoOwner::Metadata)
    }

    /// A metadata operation ended.
    pub(crate) fn metadata_operation_done(&mut self, v: usize, result: Result<(), IoError>) {
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            backing.writer.ended();
        }
        if result.is_err() {
            self.volumes[v].metadata_failed = true;
            self.fail_disk(v, "metadata-io-error");
        }
    }

    /// New extents are active: what waited for them goes on, first come first served.
    fn log_committed(&mut self, v: usize) {
        while let Some(&waiter) = self.volumes[v].log_waiters.front() {
            let granted = self.volumes[v]
                .backing
                .as_mut()
                .is_some_and(|backing| backing.log.acquire(waiter.range.extents_touched()));
            if !granted {
                return;
            }
            self.volumes[v].log_waiters.pop_front();
            self.run_logged(waiter.owner, true);
        }
        self.volumes[v].log_starving = false;
    }

    /// Continues what waited for versions that are durable now.
    fn metadata_durable(&mut self, v: usize) {
        let Some(backing) = self.volumes[v].backing.as_ref() else {
            return;
        };
        let (superblock, bitmap) = (
            backing.writer.superblock.durable,
            backing.writer.bitmap.durable,
        );
        let waiters = core::mem::take(&mut self.volumes[v].waiters);
        let (due, left): (Vec<Waiter>, Vec<Waiter>) = waiters
            .into_iter()
            .partition(|waiter| waiter.superblock <= superblock && waiter.bitmap <= bitmap);
        self.volumes[v].waiters = left;
        for waiter in due {
            self.run_after(v, waiter.then);
        }
    }

    fn run_after(&mut self, v: usize, then: After) {
        match then {
            After::Requests => self.update_requests(v),
            After::Ready { peer } => self.send_volume_ready(peer, v),
            After::SourceBitmap { peer } => self.send_bitmap(peer, v, true),
            After::TargetBitmap {
                peer,
                current,
                history,
            } => self.adopt(peer, v, current, history),
            After::TargetAdopted { peer } => self.target_adopted(peer, v),
            After::TargetFinished { peer } => self.target_finished(peer, v),
            After::RoleChange => self.role_change_durable(v),
            After::Detach => self.detach_durable(v),
            After::Command(id) => self.command_done(id, Ok(())),
            After::ResizeMarked { attempt } => self.resize_marked(v, attempt),
            After::Resized { attempt } => self.resize_durable(v, attempt),
            After::SkippedForPeer { peer, current } => {
                let volume = self.volumes[v].number;
                self.peers[peer].devices[v].told_to_skip = true;
                self.send(
                    peer,
                    Message::SkipInitialSyncDone {
                        volume,
                        current,
                        done: true,
                    },
                );
            }
            After::MissesTracked { peer } => {
                let volume = self.volumes[v].number;
                if let Some(backing) = &self.volumes[v].backing {
                    let current = backing.superblock.current;
                    self.send(peer, Message::MissesTracked { volume, current });
                }
            }
            After::Invalidated { peer, command } => {
                if let Some(id) = command {
                    self.command_done(id, Ok(()));
                }
                self.renegotiate(peer, "invalidated");
            }
        }
    }

    /// The disk failed before the metadata were durable.
    pub(crate) fn after_failed(&mut self, v: usize, then: After) {
        match then {
            After::Command(id)
            | After::Invalidated {
                command: Some(id), ..
            } => self.command_done(id, Err(Refusal::NoDisk)),
            After::RoleChange => self.role_change_durable(v),
            After::Detach => {}
            _ => {}
        }
    }
}
