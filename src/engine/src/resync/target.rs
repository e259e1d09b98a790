//! The target: becomes Inconsistent under the source's generation, writes what comes, flushes when asked, becomes UpToDate at the end.
//!
//! A block on which a client of this node is writing is put off at once: waiting for that write would keep the source's lock, and the
//! write waits for that lock there.

use alloc::vec::Vec;

use crate::api::{Effect, IoError, Payload, SessionId};
use crate::engine::{Engine, IoOwner};
use crate::generation::Identifiers;
use crate::handshake::set_disk_flags;
use crate::interval::IntervalKind;
use crate::limits;
use crate::peer::{Progress, TargetOperation};
use crate::state::{DiskState, ReplicationState};
use crate::units::{BLOCK_BYTES, ByteRange, Generation, VolumeNumber};
use crate::volume::{After, Owner};
use crate::wire::{Message, ResyncOutcome};

impl<P: Payload> Engine<P> {
    pub(crate) fn resync_begin_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        current: Generation,
        history: Vec<Generation>,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        let device = &self.peers[p].devices[v];
        if device.replication != ReplicationState::WFBitMapT || device.asked.is_some() {
            return Err("a resync that was not agreed on");
        }
        if current.is_just_created() {
            return Err("a resync without a generation");
        }
        self.may_adopt(p, v, current, history);
        Ok(())
    }

    /// Target: the bitmap of the source becomes durable here, too.
    pub(super) fn prepare_target(
        &mut self,
        p: usize,
        v: usize,
        current: Generation,
        history: Vec<Generation>,
    ) {
        let volume = &mut self.volumes[v];
        let version = volume
            .backing
            .as_mut()
            .map_or(0, |backing| backing.writer.want_bitmap());
        volume.after(
            0,
            version,
            Some(p),
            After::TargetBitmap {
                peer: p,
                current,
                history,
            },
        );
    }

    /// Target: the OR-ed bitmap is durable here: becomes Inconsistent under the source's generation.
    pub(crate) fn adopt(
        &mut self,
        p: usize,
        v: usize,
        current: Generation,
        history: Vec<Generation>,
    ) {
        let node = self.peers[p].config.node_id;
        self.set_disk(v, DiskState::Inconsistent, "resync-target");
        let volume = &mut self.volumes[v];
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        let source = Identifiers::from_parts(current, [], history);
        let mut identifiers = backing.identifiers();
        identifiers.adopt(&source, node);
        backing.set_identifiers(&identifiers);
        backing.crashed_primary = false;
        let flags = &mut backing.superblock.flags;
        flags.crashed_primary = false;
        flags.invalidated = false;
        flags.sync_target = true;
        set_disk_flags(flags, DiskState::Inconsistent);
        if let Some(peer) = backing.superblock.peer_mut(node) {
            peer.flags.connected = true;
            peer.flags.device_seen = true;
        }
        let version = volume.want_superblock();
        volume.after(version, 0, Some(p), After::TargetAdopted { peer: p });
    }

    pub(crate) fn target_adopted(&mut self, p: usize, v: usize) {
        let number = self.volumes[v].number;
        let node = self.peers[p].config.node_id;
        let total = self.volumes[v]
            .backing
            .as_ref()
            .map_or(0, |backing| backing.bits(node));
        let now = self.now;
        let device = &mut self.peers[p].devices[v];
        let paused = device.paused_here || device.paused_there;
        if let Some(target) = &mut device.target {
            target.progress = Progress {
                total_blocks: total,
                started: now,
                copied_blocks: 0,
            };
        }
        device.accepts = true;
        device.takes_writes();
        device.hold = false;
        self.volumes[v].attached_anew = None;
        self.set_replication(
            p,
            v,
            if paused {
                ReplicationState::PausedSyncT
            } else {
                ReplicationState::SyncTarget
            },
            "resync",
        );
        if self.role == crate::state::Role::Primary {
            self.send(p, Message::DiskBack { volume: number });
        }
        self.send(p, Message::ResyncReady { volume: number });
    }

    pub(crate) fn resync_data_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        id: u64,
        range: ByteRange,
        payload: Option<P>,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("resync data for an unknown volume")?;
        if !self.peers[p].devices[v].replication.is_sync_target() {
            // On its way when the disk was lost here; the source learns of that.
            return if self.volumes[v].usable() {
                Err("resync data outside of a resync")
            } else {
                Ok(())
            };
        }
        let size = self.volumes[v].size;
        let end = range
            .offset
            .checked_add(u64::from(range.length))
            .ok_or("resync data beyond the end of the address space")?;
        let aligned =
            range.offset.is_multiple_of(BLOCK_BYTES) && (end % BLOCK_BYTES == 0 || end == size);
        if range.length == 0 || range.length > limits::MAX_REQUEST_BYTES || end > size || !aligned {
            return Err("resync data with a senseless range");
        }
        if payload
            .as_ref()
            .is_some_and(|payload| payload.length() != range.length as usize)
        {
            return Err("resync data whose payload has another length than its range");
        }
        if self.peers[p].resync_writes.len() >= limits::MAX_BUFFERED_OPERATIONS {
            return Err("more resync data than agreed");
        }
        let Some(session) = self.peers[p].session else {
            return Ok(());
        };
        // A client of this node writes there: the source will have that write and send the block again.
        if self.volumes[v]
            .intervals
            .overlaps_kind(range, IntervalKind::Application)
        {
            self.send(
                p,
                Message::ResyncAck {
                    volume: number,
                    id,
                    outcome: ResyncOutcome::Retry,
                },
            );
            return Ok(());
        }
        let Some(target) = self.peers[p].devices[v].target.as_mut() else {
            return Err("resync data outside of a resync");
        };
        target.arrivals += 1;
        let arrival = target.arrivals;
        target.pending.insert(arrival);
        let entry = self.peers[p].resync_writes.vacant_entry();
        let key = entry.key();
        let owner = Owner::ResyncWrite { peer: p, key };
        let (lock, free) = self.volumes[v]
            .intervals
            .insert(range, IntervalKind::Resync, owner);
        entry.insert(TargetOperation {
            id,
            arrival,
            volume: v,
            range,
            payload,
            lock,
            session,
            started: false,
        });
        if free {
            self.resync_write_unblocked(p, key);
        }
        Ok(())
    }

    pub(crate) fn resync_write_unblocked(&mut self, p: usize, key: usize) {
        // Stopped between its release and its turn.
        let Some(operation) = self.peers[p].resync_writes.get_mut(key) else {
            return;
        };
        operation.started = true;
        let (v, range, payload) = (operation.volume, operation.range, operation.payload.clone());
        if !self.volumes[v].usable() {
            return self.resync_write_done(p, key, Err(IoError::Failed));
        }
        let volume = self.volumes[v].number;
        let io = self.new_io(v, IoOwner::ResyncWrite { peer: p, key });
        self.effect(match payload {
            Some(payload) => Effect::Write {
                volume,
                io,
                range,
                payload,
                durable: false,
            },
            None => Effect::WriteZeroes {
                volume,
                io,
                range,
                may_unmap: true,
            },
        });
    }

    pub(crate) fn resync_write_done(&mut self, p: usize, key: usize, result: Result<(), IoError>) {
        let TargetOperation {
            id,
            arrival,
            volume: v,
            range,
            lock,
            session,
            ..
        } = self.peers[p].resync_writes.remove(key);
        self.volumes[v].intervals.remove(lock);
        let volume = self.volumes[v].number;
        let size = self.volumes[v].size;
        let current = self.peers[p].session == Some(session);
        if current && let Some(target) = self.peers[p].devices[v].target.as_mut() {
            target.pending.remove(&arrival);
            if result.is_ok() {
                let blocks = range.blocks_covered(size);
                target.progress.copied_blocks += blocks.end - blocks.start;
                target.written.push(blocks);
            }
            let outcome = if result.is_ok() {
                ResyncOutcome::Written
            } else {
                ResyncOutcome::Failed
            };
            self.send(
                p,
                Message::ResyncAck {
                    volume,
                    id,
                    outcome,
                },
            );
            self.try_target_flush(p, v);
        }
        if let Err(error) = result {
            self.write_failed(v, error);
        }
    }

    pub(crate) fn resync_flush_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        id: u64,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        let Some(target) = self.peers[p].devices[v].target.as_mut() else {
            return Ok(());
        };
        if target.flush_wanted.is_some() || target.flushing.is_some() {
            return Err("a resync flush before the last one was answered");
        }
        target.flush_wanted = Some((id, target.arrivals));
        self.try_target_flush(p, v);
        Ok(())
    }

    /// Flushes once everything before the source's flush is written.
    fn try_target_flush(&mut self, p: usize, v: usize) {
        let Some(session) = self.peers[p].session else {
            return;
        };
        let Some(target) = self.peers[p].devices[v].target.as_mut() else {
            return;
        };
        let Some((id, through)) = target.flush_wanted else {
            return;
        };
        if target
            .pending
            .first()
            .is_some_and(|&first| first <= through)
        {
            return;
        }
        target.flush_wanted = None;
        target.flushing = Some((id, core::mem::take(&mut target.written)));
        if !self.volumes[v].usable() {
            return;
        }
        let volume = self.volumes[v].number;
        let io = self.new_io(v, IoOwner::ResyncFlush { peer: p, session });
        self.effect(Effect::Flush { volume, io });
    }

    pub(crate) fn resync_flush_done(
        &mut self,
        v: usize,
        p: usize,
        session: SessionId,
        result: Result<(), IoError>,
    ) {
        if result.is_err() {
            return self.fail_disk(v, "flush-error");
        }
        if self.peers[p].session != Some(session) {
            return;
        }
        let node = self.peers[p].config.node_id;
        let volume = self.volumes[v].number;
        let Some(target) = self.peers[p].devices[v].target.as_mut() else {
            return;
        };
        let Some((id, blocks)) = target.flushing.take() else {
            return;
        };
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            if let Some(slot) = backing.slot(node) {
                for range in blocks {
                    backing.bitmaps[slot].clear(range);
                }
            }
            // So that a resync that is interrupted goes on here and does not start over (R1).
            backing.writer.want_bitmap();
        }
        self.send(p, Message::ResyncFlushed { volume, id });
    }

    pub(crate) fn resync_finish_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        let node = self.peers[p].config.node_id;
        let device = &mut self.peers[p].devices[v];
        let Some(target) = device.target.as_mut() else {
            // The end of the data of a resync that was stopped.
            device.resync_ending = false;
            return Ok(());
        };
        if !target.pending.is_empty()
            || target.flush_wanted.is_some()
            || target.flushing.is_some()
            || target.finishing
        {
            return Err("the end of a resync with data under way");
        }
        target.finishing = true;
        let volume = &mut self.volumes[v];
        let Some(backing) = volume.backing.as_mut() else {
            return Ok(());
        };
        // The source's bitmap is empty: that is the proof for the bits that are left here (blocks whose resync was repeated).
        if let Some(slot) = backing.slot(node) {
            backing.bitmaps[slot].clear_all();
        }
        let flags = &mut backing.superblock.flags;
        flags.sync_target = false;
        set_disk_flags(flags, DiskState::UpToDate);
        let bitmap = backing.writer.want_bitmap();
        let superblock = backing.writer.want_superblock();
        volume.after(
            superblock,
            bitmap,
            Some(p),
            After::TargetFinished { peer: p },
        );
        Ok(())
    }

    pub(crate) fn target_finished(&mut self, p: usize, v: usize) {
        let volume = self.volumes[v].number;
        self.peers[p].devices[v].target = None;
        self.set_disk(v, DiskState::UpToDate, "resync-finished");
        let node = self.peers[p].config.node_id;
        self.effect(Effect::Handler {
            name: "after-resync-target",
            peer: Some(node),
            volume: Some(volume),
        });
        if !self.peers[p].devices[v].replication.is_sync_target() {
            // The connection or the source's disk was lost meanwhile.
            return;
        }
        self.set_replication(p, v, ReplicationState::Established, "resync-finished");
        self.peers[p].devices[v].contact = self.volumes[v].current();
        self.send(p, Message::ResyncFinished { volume });
    }
}
