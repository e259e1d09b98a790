//! Bitmap resync: one side is the source, the other the target.
//!
//! Sequence (the first three steps on the control lane, so that they stay behind the handshake; `S` source, `T` target):
//! 1. `T → S` its bitmap; `S` ORs it into its own and makes the result durable;
//! 2. `S → T` the OR-ed bitmap, then `ResyncBegin` with its generation; `T` makes the bitmap durable, then in one superblock write becomes
//!    Inconsistent and adopts the generation;
//! 3. `T → S` `ResyncReady`: from here on writes are mirrored and blocks copied;
//! 4. `S` reads a dirty range under its lock and sends it; `T` writes it, or answers "retry" if a client of its own writes there;
//! 5. now and then, and at the end, `S` asks `T` to flush; only what is durable at `T` is cleared in `S`'s bitmap (W7);
//! 6. no bit is left: `ResyncFinish`; `T` becomes UpToDate durably and says so.
//!
//! R2: a range is locked at the source from the read until the target has it, so no application write overtakes or is overtaken.
//! The source's bitmap decides; the target's is a superset of what is still missing, so that an interrupted resync goes on (R1).

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::api::{Effect, IoError, Payload, SessionId};
use crate::engine::{Engine, IoOwner};
use crate::generation::Identifiers;
use crate::handshake::set_disk_flags;
use crate::interval::IntervalKind;
use crate::limits;
use crate::peer::{Progress, ResyncSource, SourceOperation, TargetOperation};
use crate::state::{DiskState, ReplicationState};
use crate::units::{BLOCK_BYTES, ByteRange, Generation, VolumeNumber};
use crate::volume::{After, Owner};
use crate::wire::{Message, ResyncOutcome};

impl<P: Payload> Engine<P> {
    // ---- bitmap exchange ----------------------------------------------------------------------------------------------------------

    /// Begins to send this node's bitmap toward the peer; an empty one if the resync is a full one anyway.
    pub(crate) fn send_bitmap(&mut self, p: usize, v: usize, with_bits: bool) {
        if with_bits {
            self.peers[p].devices[v].bitmap_rest = Some(0);
            self.pump_bitmaps(p);
        } else {
            self.send_bitmap_part(p, v, Vec::new(), true);
        }
    }

    /// Sends as much of the bitmaps as the peer has room for.
    fn pump_bitmaps(&mut self, p: usize) {
        let node = self.peers[p].config.node_id;
        for v in 0..self.volumes.len() {
            while let Some(start) = self.peers[p].devices[v].bitmap_rest {
                if self.peers[p].bitmap_parts >= limits::BITMAP_PARTS_UNDER_WAY {
                    return;
                }
                let bitmap = self.volumes[v].backing.as_ref().and_then(|backing| {
                    let slot = backing.slot(node)?;
                    backing.bitmaps.get(slot)
                });
                let (runs, rest) = bitmap.map_or((Vec::new(), None), |bitmap| {
                    bitmap.encode_runs(start, limits::BITMAP_PART_BYTES)
                });
                self.peers[p].devices[v].bitmap_rest = rest;
                self.send_bitmap_part(p, v, runs, rest.is_none());
            }
        }
    }

    /// Every part but the last is answered when it was taken up; the last one by what follows from the whole.
    fn send_bitmap_part(&mut self, p: usize, v: usize, runs: Vec<u8>, last: bool) {
        let volume = self.volumes[v].number;
        self.send(p, Message::BitmapRuns { volume, runs, last });
        if !last {
            self.peers[p].bitmap_parts += 1;
        } else if self.peers[p].devices[v].replication == ReplicationState::WFBitMapS {
            self.send_resync_begin(p, v);
        }
    }

    pub(crate) fn bitmap_taken_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        if self.volume_index(number).is_none() {
            return Err("a bitmap of an unknown volume");
        }
        let peer = &mut self.peers[p];
        if peer.bitmap_parts == 0 {
            return Err("an answer to a part of a bitmap that was never sent");
        }
        peer.bitmap_parts -= 1;
        peer.settle_deadline = None;
        self.pump_bitmaps(p);
        Ok(())
    }

    pub(crate) fn bitmap_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        runs: &[u8],
        last: bool,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a bitmap of an unknown volume")?;
        let state = self.peers[p].devices[v].replication;
        if !matches!(
            state,
            ReplicationState::WFBitMapS | ReplicationState::WFBitMapT
        ) {
            return Err("a bitmap outside of a bitmap exchange");
        }
        let node = self.peers[p].config.node_id;
        let backing = self.volumes[v]
            .backing
            .as_mut()
            .ok_or("a bitmap for a volume without a disk")?;
        let slot = backing
            .slot(node)
            .ok_or("a bitmap from a peer without a bitmap slot")?;
        self.peers[p].settle_deadline = None;
        if !runs.is_empty() {
            let ranges = backing.bitmaps[slot]
                .decode_runs(runs)
                .map_err(|_| "an undecodable bitmap")?;
            for range in ranges {
                backing.bitmaps[slot].set(range);
            }
        }
        if !last {
            self.send(p, Message::BitmapTaken { volume: number });
        } else if state == ReplicationState::WFBitMapS {
            // A bit is cleared when the target has the block durably; what this node sends must be durable here by then as well, or a
            // crash of this node would make it the older one without a mark.
            backing.writer.data_flush = true;
            let version = backing.writer.want_bitmap();
            self.volumes[v].after(0, version, Some(p), After::SourceBitmap { peer: p });
        }
        Ok(())
    }

    /// Source: its bitmap is sent, what follows is the resync.
    fn send_resync_begin(&mut self, p: usize, v: usize) {
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
        if self.peers[p].devices[v].replication != ReplicationState::WFBitMapT {
            return Err("a resync that was not agreed on");
        }
        if current.is_just_created() {
            return Err("a resync without a generation");
        }
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
        Ok(())
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
        device.peer_accepts = true;
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

    // ---- source -------------------------------------------------------------------------------------------------------------------

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
        device.peer_accepts = true;
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
        let full = self.peers[p].config.resync_window_bytes;
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
            if source.in_flight_bytes >= window {
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
        Ok(())
    }

    // ---- target -------------------------------------------------------------------------------------------------------------------

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
        let operation = &mut self.peers[p].resync_writes[key];
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
        if !self.peers[p].devices[v].replication.is_sync_target() {
            // The connection or the source's disk was lost meanwhile.
            return;
        }
        self.set_replication(p, v, ReplicationState::Established, "resync-finished");
        self.peers[p].devices[v].contact = self.volumes[v]
            .backing
            .as_ref()
            .map(|backing| backing.superblock.current);
        self.send(p, Message::ResyncFinished { volume });
    }

    // ---- both sides ---------------------------------------------------------------------------------------------------------------

    /// Ends a resync without finishing it. Writes that the disk is working on keep their locks until it answers.
    pub(crate) fn stop_resync(&mut self, p: usize, v: usize) {
        self.volumes[v].waiters.retain(|waiter| {
            let begins = matches!(
                waiter.then,
                After::SourceBitmap { .. }
                    | After::TargetBitmap { .. }
                    | After::TargetAdopted { .. }
            );
            !(begins && waiter.peer == Some(p))
        });
        if let Some(source) = self.peers[p].devices[v].source.take() {
            self.peers[p].devices[v].last_resync_id = source.next_id;
            self.peers[p].devices[v].stopped_resync = !source.finishing;
            for (_, operation) in source.operations {
                self.volumes[v].intervals.remove(operation.lock);
            }
        }
        self.peers[p].devices[v].target = None;
        self.peers[p].devices[v].bitmap_rest = None;
        let idle: Vec<usize> = self.peers[p]
            .resync_writes
            .iter()
            .filter(|(_, operation)| operation.volume == v && !operation.started)
            .map(|(key, _)| key)
            .collect();
        for key in idle {
            let operation = self.peers[p].resync_writes.remove(key);
            self.volumes[v].intervals.remove(operation.lock);
        }
    }

    /// Holds or releases a resync according to the pause flags of both sides.
    pub(crate) fn apply_pause(&mut self, p: usize, v: usize) {
        let device = &self.peers[p].devices[v];
        let paused = device.paused_here || device.paused_there;
        let next = match (device.replication, paused) {
            (ReplicationState::SyncSource, true) => ReplicationState::PausedSyncS,
            (ReplicationState::SyncTarget, true) => ReplicationState::PausedSyncT,
            (ReplicationState::PausedSyncS, false) => ReplicationState::SyncSource,
            (ReplicationState::PausedSyncT, false) => ReplicationState::SyncTarget,
            _ => return,
        };
        self.set_replication(
            p,
            v,
            next,
            if paused {
                "sync-paused"
            } else {
                "sync-resumed"
            },
        );
    }

    pub(crate) fn resync_pause_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        paused: bool,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a pause of an unknown volume")?;
        self.peers[p].devices[v].paused_there = paused;
        self.apply_pause(p, v);
        Ok(())
    }
}
