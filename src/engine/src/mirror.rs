//! The Secondary's part: operations received from the Primary reach the disk in epoch order and are acknowledged.
//!
//! An operation that was received is carried out even if the connection ends meanwhile: under protocol B its receipt was
//! already a promise (W2). Nothing is acknowledged before the disk has it (W3), no barrier before what it covers is durable (W7).

use crate::api::{Effect, IoError, Payload, SessionId};
use crate::engine::{Engine, IoOwner};
use crate::interval::IntervalKind;
use crate::limits;
use crate::peer::ReceivedOperation;
use crate::receiver::{Received, ReceivedKind, Step};
use crate::state::{ConnectionState, DiskState};
use crate::units::{ByteRange, VolumeNumber};
use crate::volume::Owner;
use crate::wire::message::Protocol;
use crate::wire::{Message, ReadOutcome};

impl<P: Payload> Engine<P> {
    fn check_range(&self, v: usize, range: ByteRange) -> Result<(), &'static str> {
        let end = range
            .offset
            .checked_add(u64::from(range.length))
            .ok_or("a range beyond the end of the address space")?;
        if range.length == 0 || range.length > limits::MAX_REQUEST_BYTES {
            return Err("an operation of length zero or above the limit");
        }
        if end > self.volumes[v].size {
            return Err("an operation beyond the end of the volume");
        }
        Ok(())
    }

    pub(crate) fn write_received(
        &mut self,
        p: usize,
        sequence: u64,
        epoch: u64,
        number: VolumeNumber,
        range: ByteRange,
        kind: ReceivedKind<P>,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a write to an unknown volume")?;
        if !self.peers[p].devices[v].accepts {
            return Err("a write to a volume that is not ready for it");
        }
        self.check_range(v, range)?;
        if let ReceivedKind::Write(payload) = &kind
            && payload.length() != range.length as usize
        {
            return Err("a write whose payload has another length than its range");
        }
        self.last_application_io = self.now;
        let device = &self.peers[p].devices[v];
        // Who has no disk misses it, also where the word of its promotion, on another lane, is late.
        let missed = device.tracks_misses || !device.disk.has_data();
        let awaited = !self.may_gather(p);
        self.peers[p].receiver.awaited = awaited;
        if !self.peers[p].receiver.receive(Received {
            sequence,
            epoch,
            volume: v,
            range,
            missed,
            kind,
        }) {
            return Err("a write out of order or above the agreed number");
        }
        Ok(())
    }

    pub(crate) fn barrier_received(&mut self, p: usize, epoch: u64) -> Result<(), &'static str> {
        if self.peers[p].receiver.barrier(epoch) {
            Ok(())
        } else {
            Err("a barrier out of order")
        }
    }

    pub(crate) fn read_request_received(
        &mut self,
        p: usize,
        id: u64,
        number: VolumeNumber,
        range: ByteRange,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a read of an unknown volume")?;
        self.check_range(v, range)?;
        let operation = Received {
            sequence: id,
            epoch: 0,
            volume: v,
            range,
            missed: false,
            kind: ReceivedKind::Read,
        };
        if self.peers[p].receiver.receive(operation) {
            Ok(())
        } else {
            Err("more reads than agreed")
        }
    }

    /// Carries out what the receivers released. True if there was something.
    pub(crate) fn pump_receiver(&mut self, p: usize) -> bool {
        let mut progress = false;
        while let Some(step) = self.peers[p].receiver.next_step() {
            progress = true;
            match step {
                Step::Start { operation, durable } => self.enter_received(p, operation, durable),
                Step::Flush { volume: v } => {
                    if !self.volumes[v].usable() {
                        // The disk went away with unflushed writes of this epoch in its cache.
                        self.receiver_lost_durability(p);
                    } else if self.volumes[v].config.disk_flushes {
                        let number = self.volumes[v].number;
                        let io = self.new_io(
                            v,
                            IoOwner::EpochFlush {
                                peer: p,
                                session: self.peers[p].receiver_session,
                            },
                        );
                        self.effect(Effect::Flush { volume: number, io });
                        continue;
                    }
                    self.peers[p].receiver.flushed();
                }
                Step::Durable { epoch } => {
                    if self.receiver_is_current(p) {
                        self.peers[p].reports.durable = Some(epoch);
                    }
                }
            }
        }
        progress
    }

    fn enter_received(&mut self, p: usize, operation: Received<P>, durable: bool) {
        let (v, range) = (operation.volume, operation.range);
        let kind = match operation.kind {
            ReceivedKind::Read => IntervalKind::PeerRead,
            _ => IntervalKind::Replicated,
        };
        let session = self.peers[p].receiver_session;
        let key = self.peers[p].received.insert(ReceivedOperation {
            operation,
            durable,
            lock: None,
            logged: false,
            session,
        });
        let (lock, free) =
            self.volumes[v]
                .intervals
                .insert(range, kind, Owner::Received { peer: p, key });
        self.peers[p].received[key].lock = Some(lock);
        if free {
            self.received_unblocked(p, key);
        }
    }

    pub(crate) fn received_unblocked(&mut self, p: usize, key: usize) {
        let operation = &self.peers[p].received[key].operation;
        let (v, range) = (operation.volume, operation.range);
        if operation.missed && self.volumes[v].usable() {
            self.enter_log(v, Owner::Received { peer: p, key }, range);
        } else {
            self.start_received(p, key);
        }
    }

    pub(crate) fn start_received(&mut self, p: usize, key: usize) {
        let received = &self.peers[p].received[key];
        let (operation, mut durable) = (received.operation.clone(), received.durable);
        let (v, range) = (operation.volume, operation.range);
        let number = self.volumes[v].number;
        let readable = self.volumes[v].disk == DiskState::UpToDate;
        if operation.is_read() && !readable {
            let (operation, current) = self.end_received(p, key);
            if current {
                self.send(
                    p,
                    Message::ReadReply {
                        id: operation.sequence,
                        outcome: ReadOutcome::Failed,
                        payload: None,
                    },
                );
            }
            return;
        }
        if !self.volumes[v].usable() {
            return self.received_write_done(p, key, Err(IoError::Failed));
        }
        if operation.missed {
            let node = self.peers[p].config.node_id;
            if let Some(backing) = self.volumes[v].backing.as_mut() {
                backing.mark(node, range);
            }
        }
        if durable && !self.volumes[v].config.disk_flushes {
            // Whether it is flushed after all is decided when its turn comes.
            durable = false;
            self.peers[p].receiver.not_durable(v);
        }
        let effect = match operation.kind {
            ReceivedKind::Write(payload) => {
                let io = self.new_io(v, IoOwner::ReceivedWrite { peer: p, key });
                Effect::Write {
                    volume: number,
                    io,
                    range,
                    payload,
                    durable,
                }
            }
            ReceivedKind::Discard => {
                let io = self.new_io(v, IoOwner::ReceivedWrite { peer: p, key });
                Effect::Discard {
                    volume: number,
                    io,
                    range,
                }
            }
            ReceivedKind::WriteZeroes { may_unmap } => {
                let io = self.new_io(v, IoOwner::ReceivedWrite { peer: p, key });
                Effect::WriteZeroes {
                    volume: number,
                    io,
                    range,
                    may_unmap,
                }
            }
            ReceivedKind::Read => {
                let io = self.new_io(v, IoOwner::ReceivedRead { peer: p, key });
                Effect::Read {
                    volume: number,
                    io,
                    range,
                }
            }
        };
        self.effect(effect);
    }

    /// The operation is over: gives back its lock and its extents. Returns it with whether its session still stands.
    fn end_received(&mut self, p: usize, key: usize) -> (Received<P>, bool) {
        let ReceivedOperation {
            operation,
            durable: _,
            lock,
            logged,
            session,
        } = self.peers[p].received.remove(key);
        let v = operation.volume;
        if let Some(lock) = lock {
            self.volumes[v].intervals.remove(lock);
        }
        if logged && let Some(backing) = self.volumes[v].backing.as_mut() {
            backing.log.release(operation.range.extents_touched());
        }
        self.peers[p].receiver.ended();
        (
            operation,
            session.is_some() && self.peers[p].session == session,
        )
    }

    pub(crate) fn received_write_done(
        &mut self,
        p: usize,
        key: usize,
        result: Result<(), IoError>,
    ) {
        let received = &self.peers[p].received[key];
        let v = received.operation.volume;
        if result.is_err() && received.durable {
            self.peers[p].receiver.not_durable(v);
        }
        let (operation, current) = self.end_received(p, key);
        match result {
            Ok(()) if current => {
                let bytes = match operation.kind {
                    ReceivedKind::Write(_) => operation.range.length,
                    _ => 0,
                };
                (self.peers[p].reports).written(operation.sequence, bytes);
            }
            Ok(()) => {}
            Err(error) => {
                if current {
                    self.report(p);
                    self.send(
                        p,
                        Message::Failed {
                            sequence: operation.sequence,
                        },
                    );
                }
                if self.peers[p].receiver_protocol == Protocol::B {
                    self.promised_write_lost(v);
                }
                self.write_failed(v, error);
            }
        }
    }

    /// In a session of protocol B the receipt of a write was a promise. A disk that will never have that write must not pass for
    /// UpToDate when it is attached again, whether or not the Primary is there to tell.
    fn promised_write_lost(&mut self, v: usize) {
        let unrecorded = (self.volumes[v].backing.as_ref())
            .is_some_and(|backing| backing.superblock.flags.was_up_to_date);
        if unrecorded {
            self.record_outdated(v);
            let text = "the disk failed before a write reached it that the peer was promised; \
                        it is Outdated until a resync, or until primary --force declares it good";
            self.decision(None, Some(v), "promised-write-lost", text.into());
        }
    }

    /// The disk takes nothing more: writes that were received and have not reached it are lost.
    pub(crate) fn received_writes_lost(&mut self, v: usize) {
        let promised = self.peers.iter().any(|peer| {
            let entered = peer.received.iter().any(|(_, received)| {
                received.operation.volume == v && !received.operation.is_read()
            });
            peer.receiver_protocol == Protocol::B && (entered || peer.receiver.holds_writes(v))
        });
        if promised {
            self.promised_write_lost(v);
        }
    }

    pub(crate) fn received_read_done(
        &mut self,
        p: usize,
        key: usize,
        result: Result<Option<P>, IoError>,
    ) {
        let v = self.peers[p].received[key].operation.volume;
        let (operation, current) = self.end_received(p, key);
        let failed = result.is_err();
        if current {
            let (outcome, payload) = match result {
                Ok(Some(payload)) => (ReadOutcome::Data, Some(payload)),
                _ => (ReadOutcome::Failed, None),
            };
            self.send(
                p,
                Message::ReadReply {
                    id: operation.sequence,
                    outcome,
                    payload,
                },
            );
        }
        if failed {
            self.read_failed(v);
        }
    }

    pub(crate) fn epoch_flush_done(
        &mut self,
        v: usize,
        p: usize,
        session: Option<SessionId>,
        result: Result<(), IoError>,
    ) {
        // A flush of an earlier session says nothing about the epochs of this one.
        let same = self.peers[p].receiver_session == session;
        if result.is_err() {
            self.fail_disk(v, "flush-error");
            if same {
                self.receiver_lost_durability(p);
            }
        }
        if same {
            self.peers[p].receiver.flushed();
        }
    }

    /// True while the connection stands on which the receiver's operations came.
    pub(crate) fn receiver_is_current(&self, p: usize) -> bool {
        self.peers[p].session.is_some() && self.peers[p].receiver_session == self.peers[p].session
    }

    /// Acknowledged writes may never become durable here. The connection ends without the barrier's acknowledgement, so that the
    /// Primary's transfer log marks everything that was not durable.
    fn receiver_lost_durability(&mut self, p: usize) {
        if self.receiver_is_current(p) {
            self.drop_session(p, ConnectionState::BrokenPipe, "disk-lost-before-flush");
        }
    }
}
