//! The source: reads what is marked, sends it, and clears a bit when the target has made the block durable.
//!
//! Owns the window (small while clients are busy), the cursor and its passes, and the locks of what is under way. What the target puts
//! off is sent again in a later pass, after a while.

use alloc::boxed::Box;

use crate::api::{Effect, IoError, Payload, SessionId};
use crate::engine::{Engine, IoOwner};
use crate::interval::IntervalKind;
use crate::limits;
use crate::peer::{Progress, ResyncSource, SourceOperation};
use crate::state::{DiskState, ReplicationState};
use crate::units::{BLOCK_BYTES, ByteRange, VolumeNumber};
use crate::volume::Owner;
use crate::wire::{Message, ResyncOutcome};

impl<P: Payload> Engine<P> {
    /// Source: its bitmap is sent, what follows is the resync.
    pub(super) fn send_resync_begin(&mut self, p: usize, v: usize) {
        let Some(backing) = self.volumes[v].backing.as_ref() else {
            return;
        };
        let (current, history) = (
            backing.superblock.current,
            backing.superblock.history.clone(),
        );
        let volume = self.volumes[v].number;
        self.peers[p].devices[v].accepts = true;
        self.send(
            p,
            Message::ResyncBegin {
                volume,
                current,
                history,
            },
        );
    }

    pub(crate) fn resync_ready_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        if self.peers[p].devices[v].replication != ReplicationState::WFBitMapS {
            return Err("a target that is ready for a resync that was not agreed on");
        }
        let node = self.peers[p].config.node_id;
        let now = self.now;
        let volume = &mut self.volumes[v];
        let mut total = 0;
        if let Some(backing) = volume.backing.as_mut() {
            // The target has this node's generation now: nothing older is tracked for it.
            let mut identifiers = backing.identifiers();
            identifiers.slot_cleared(node);
            backing.set_identifiers(&identifiers);
            if let Some(peer) = backing.superblock.peer_mut(node) {
                peer.flags.connected = true;
                peer.flags.device_seen = true;
            }
            total = backing.bits(node);
            backing.writer.want_superblock();
        }
        let device = &mut self.peers[p].devices[v];
        device.disk = DiskState::Inconsistent;
        device.takes_writes();
        device.hold = false;
        let progress = Progress {
            total_blocks: total,
            started: now,
            copied_blocks: 0,
        };
        let next_id = device.last_resync_id;
        device.source = Some(Box::new(ResyncSource {
            progress,
            next_id,
            ..ResyncSource::default()
        }));
        let paused = device.paused_here || device.paused_there;
        // The target's own data do not count any more: what a resize added is the same for whoever reads it.
        self.show_size(v);
        self.set_replication(
            p,
            v,
            if paused {
                ReplicationState::PausedSyncS
            } else {
                ReplicationState::SyncSource
            },
            "resync",
        );
        Ok(())
    }

    /// Keeps the pipe of every resync from this node full. True if something started.
    pub(crate) fn pump_resync(&mut self, p: usize) -> bool {
        let mut progress = self.try_send_hello(p) | self.take_postponed(p);
        for v in 0..self.volumes.len() {
            if self.peers[p].devices[v].replication == ReplicationState::SyncSource {
                progress |= self.pump_source(p, v);
            }
        }
        progress
    }

    fn pump_source(&mut self, p: usize, v: usize) -> bool {
        let node = self.peers[p].config.node_id;
        let now = self.now;
        let busy = now.since(self.last_application_io) < limits::APPLICATION_BUSY_MS;
        // The peer's bounds are shared by all resyncs with it.
        let sources = (self.peers[p].devices.iter())
            .filter(|device| device.replication == ReplicationState::SyncSource)
            .count();
        let share = limits::RESYNC_IN_FLIGHT_BYTES / sources as u64;
        let full = self.peers[p].config.resync_window_bytes.min(share);
        let most_operations = limits::RESYNC_IN_FLIGHT_OPERATIONS / sources;
        let window = if busy {
            limits::RESYNC_BUSY_WINDOW_BYTES.min(full)
        } else {
            full
        };
        let mut progress = false;
        loop {
            let Some(backing) = self.volumes[v].backing.as_ref() else {
                return progress;
            };
            let Some(slot) = backing.slot(node) else {
                return progress;
            };
            let Some(source) = self.peers[p].devices[v].source.as_mut() else {
                return progress;
            };
            if source.finishing || source.resume_at.is_some_and(|time| now < time) {
                return progress;
            }
            source.resume_at = None;
            if source.unflushed_bytes >= limits::RESYNC_FLUSH_BYTES && source.flushing.is_none() {
                self.ask_for_flush(p, v);
                progress = true;
                continue;
            }
            if source.in_flight_bytes >= window || source.operations.len() > most_operations {
                return progress;
            }
            let most = limits::RESYNC_REQUEST_BYTES / BLOCK_BYTES;
            let run = backing.bitmaps[slot].next_run(source.cursor, most);
            let Some(blocks) = run.filter(|blocks| blocks.start >= source.cursor) else {
                return self.end_of_pass(p, v) || progress;
            };
            source.cursor = blocks.end;
            let offset = blocks.start * BLOCK_BYTES;
            let length = (blocks.end * BLOCK_BYTES)
                .min(self.volumes[v].size)
                .saturating_sub(offset);
            if length == 0 {
                continue;
            }
            let range = ByteRange::new(offset, length as u32);
            source.next_id += 1;
            let id = source.next_id;
            source.in_flight_bytes += length;
            let owner = Owner::ResyncRead { peer: p, id };
            let (lock, free) = self.volumes[v]
                .intervals
                .insert(range, IntervalKind::Resync, owner);
            if let Some(source) = self.peers[p].devices[v].source.as_mut() {
                source.operations.insert(
                    id,
                    SourceOperation {
                        range,
                        blocks,
                        lock,
                        sent: false,
                    },
                );
            }
            if free {
                self.resync_read_unblocked(v, p, id);
            }
            progress = true;
        }
    }

    /// The cursor reached the end: flush, go round again for what was put off, or finish. True if something was done.
    fn end_of_pass(&mut self, p: usize, v: usize) -> bool {
        let node = self.peers[p].config.node_id;
        let bits = self.volumes[v]
            .backing
            .as_ref()
            .map_or(0, |backing| backing.bits(node));
        let now = self.now;
        let Some(source) = self.peers[p].devices[v].source.as_mut() else {
            return false;
        };
        if !source.operations.is_empty() || source.flushing.is_some() {
            return false;
        }
        if !source.unflushed.is_empty() {
            self.ask_for_flush(p, v);
            return true;
        }
        if bits > 0 {
            // Blocks that were put off, or marked since the cursor passed them.
            let from_start = source.cursor == 0;
            source.cursor = 0;
            if core::mem::take(&mut source.put_off) {
                // What is in the way at the target ends when this node has it, perhaps over the same slow link: do not fill that link.
                source.patience = (2 * source.patience)
                    .clamp(limits::RESYNC_RETRY_MS, limits::RESYNC_RETRY_MOST_MS);
                source.resume_at = Some(now.after(source.patience));
                return false;
            }
            source.patience = 0;
            return !from_start;
        }
        // The target goes on as an equal from there: that nothing older is tracked for it any more must be durable here first.
        let recorded = self.volumes[v].backing.as_ref().is_some_and(|backing| {
            backing.writer.superblock.wanted == backing.writer.superblock.durable
        });
        if !recorded {
            return false;
        }
        source.finishing = true;
        let volume = self.volumes[v].number;
        self.send(p, Message::ResyncFinish { volume });
        true
    }

    fn ask_for_flush(&mut self, p: usize, v: usize) {
        let volume = self.volumes[v].number;
        let Some(source) = self.peers[p].devices[v].source.as_mut() else {
            return;
        };
        source.next_id += 1;
        let id = source.next_id;
        source.flushing = Some((id, core::mem::take(&mut source.unflushed)));
        source.unflushed_bytes = 0;
        self.send(p, Message::ResyncFlush { volume, id });
    }

    pub(crate) fn resync_read_unblocked(&mut self, v: usize, p: usize, id: u64) {
        let Some(session) = self.peers[p].session else {
            return;
        };
        let Some(source) = self.peers[p].devices[v].source.as_ref() else {
            return;
        };
        let Some(operation) = source.operations.get(&id) else {
            return;
        };
        let range = operation.range;
        if !self.volumes[v].usable() {
            return;
        }
        let volume = self.volumes[v].number;
        let io = self.new_io(
            v,
            IoOwner::ResyncRead {
                peer: p,
                session,
                id,
            },
        );
        self.effect(Effect::Read { volume, io, range });
    }

    pub(crate) fn resync_read_done(
        &mut self,
        v: usize,
        p: usize,
        session: SessionId,
        id: u64,
        result: Result<Option<P>, IoError>,
    ) {
        let payload = match result {
            Ok(Some(payload)) => payload,
            _ => {
                self.fail_disk(v, "resync-read-error");
                return;
            }
        };
        if self.peers[p].session != Some(session) {
            return;
        }
        let volume = self.volumes[v].number;
        let Some(source) = self.peers[p].devices[v].source.as_mut() else {
            return;
        };
        let Some(operation) = source.operations.get_mut(&id) else {
            return;
        };
        operation.sent = true;
        let range = operation.range;
        let message = if payload.is_zero() {
            Message::ResyncZeroes { id, volume, range }
        } else {
            Message::ResyncData {
                id,
                volume,
                range,
                payload,
            }
        };
        self.send(p, message);
    }

    pub(crate) fn resync_ack_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        id: u64,
        outcome: ResyncOutcome,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        // None: on its way when the resync was stopped, because a disk was lost.
        let Some(source) = self.peers[p].devices[v].source.as_mut() else {
            return Ok(());
        };
        if !source
            .operations
            .get(&id)
            .is_some_and(|operation| operation.sent)
        {
            // Of a resync that was stopped earlier on this session.
            return if id <= source.next_id {
                Ok(())
            } else {
                Err("an acknowledgement of resync data that was never sent")
            };
        }
        let Some(operation) = source.operations.remove(&id) else {
            return Ok(());
        };
        source.in_flight_bytes -= u64::from(operation.range.length);
        source.put_off |= outcome == ResyncOutcome::Retry;
        if outcome == ResyncOutcome::Written {
            source.progress.copied_blocks += operation.blocks.end - operation.blocks.start;
            source.unflushed_bytes += u64::from(operation.range.length);
            source.unflushed.push(operation.blocks);
        }
        self.volumes[v].intervals.remove(operation.lock);
        if outcome == ResyncOutcome::Failed {
            self.peer_disk_lost(p, v, DiskState::Failed, "target-write-failed");
        }
        Ok(())
    }

    pub(crate) fn resync_flushed_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        id: u64,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        let node = self.peers[p].config.node_id;
        let Some(source) = self.peers[p].devices[v].source.as_mut() else {
            return Ok(());
        };
        match source.flushing.take() {
            Some((asked, blocks)) if asked == id => {
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    if let Some(slot) = backing.slot(node) {
                        for range in blocks {
                            backing.bitmaps[slot].clear(range);
                        }
                    }
                    backing.writer.want_bitmap();
                }
                Ok(())
            }
            other => {
                source.flushing = other;
                if id <= source.next_id {
                    Ok(())
                } else {
                    Err("an answer to a flush that was never asked")
                }
            }
        }
    }

    pub(crate) fn resync_finished_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        match &self.peers[p].devices[v].source {
            None => return Ok(()),
            Some(source) if !source.finishing => {
                return Err("the end of a resync that is not ending");
            }
            Some(_) => {}
        }
        if let Some(source) = self.peers[p].devices[v].source.take() {
            self.peers[p].devices[v].last_resync_id = source.next_id;
        }
        self.peers[p].devices[v].disk = DiskState::UpToDate;
        self.set_replication(p, v, ReplicationState::Established, "resync-finished");
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            backing.crashed_primary = false;
            backing.superblock.flags.crashed_primary = false;
            backing.writer.want_superblock();
            self.peers[p].devices[v].contact = Some(backing.superblock.current);
        }
        // The peer is UpToDate with these very data, so they are not old either, whatever they were called when the resync began.
        self.newest_within_reach(v);
        Ok(())
    }
}
