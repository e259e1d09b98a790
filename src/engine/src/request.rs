//! The life of a client's request under protocols A, B and C.
//!
//! A write passes these gates in order: held (handshake, full queues) → overlap order → activity log → submitted to the local disk
//! and, in the same step, to the data lane of every peer that mirrors; for every other peer its blocks are marked out of sync. It
//! is completed to the client when the disk has it, each mirroring peer confirmed what its protocol asks for (W1–W3), FUA is
//! satisfied (W4), and the superblock that records who misses it is durable (W8). It is forgotten when nothing can make it
//! out of sync any more: every peer made its epoch durable, or its blocks are marked.
//!
//! Invariants: `al` is held from submission until the request is forgotten (C1); a lock is held until the local disk and all
//! peers have written (R2); every request is completed exactly once.

use alloc::string::String;
use alloc::vec::Vec;

use crate::api::{ClientError, Effect, IoError, Operation, Payload, RequestId};
use crate::engine::{Engine, IoOwner};
use crate::interval::{IntervalId, IntervalKind};
use crate::limits;
use crate::state::{ConnectionState, DiskState, Role};
use crate::units::{ByteRange, VolumeNumber};
use crate::volume::{LogWaiter, Owner};
use crate::wire::message::Protocol;
use crate::wire::{Message, ReadOutcome};

/// What a request does.
#[derive(Clone, Debug)]
pub(crate) enum Kind<P> {
    Read,
    Write(P),
    Discard,
    WriteZeroes { may_unmap: bool },
    Flush,
}

/// The local disk's part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Local {
    /// Not submitted, or under way.
    Pending,
    /// On the disk.
    Done,
    /// Failed, or there is no disk.
    Missing,
}

/// A peer's part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Progress {
    Sent,
    Received,
    Written,
    /// Its epoch is durable at the peer, or its blocks are marked out of sync.
    Settled,
    /// The connection or the peer's disk was lost before; its blocks are marked.
    Lost,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SentTo {
    pub peer: usize,
    pub epoch: u64,
    pub progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Waits for its turn.
    Waiting,
    /// Submitted.
    Running,
}

/// A client's request.
#[derive(Debug)]
pub(crate) struct Request<P> {
    pub id: RequestId,
    pub volume: usize,
    pub kind: Kind<P>,
    pub range: ByteRange,
    pub fua: bool,
    pub stage: Stage,
    pub lock: Option<IntervalId>,
    pub relaxed: bool,
    /// Holds references on its activity-log extents.
    pub logged: bool,
    pub local: Local,
    pub local_error: Option<IoError>,
    /// FUA: the local disk was flushed after the write.
    pub local_durable: bool,
    pub sent: Vec<SentTo>,
    /// Epochs that must be durable at peers before completion.
    pub barriers: Vec<(usize, u64)>,
    pub completed: bool,
}

impl<P> Request<P> {
    fn settled(&self) -> bool {
        self.sent
            .iter()
            .all(|sent| sent.progress >= Progress::Settled)
    }
    fn written_everywhere(&self) -> bool {
        self.sent
            .iter()
            .all(|sent| sent.progress >= Progress::Written)
    }
}

impl<P: Payload> Engine<P> {
    // ---- entry ----------------------------------------------------------------------------------------------------------------

    pub(crate) fn client_request(
        &mut self,
        id: RequestId,
        number: VolumeNumber,
        operation: Operation<P>,
    ) {
        let refuse = |engine: &mut Self, error| {
            engine.effect(Effect::Complete {
                id,
                result: Err(error),
            })
        };
        let Some(v) = self.volume_index(number) else {
            return refuse(self, ClientError::NotPrimary);
        };
        if self.role != Role::Primary
            || self
                .role_change
                .as_ref()
                .is_some_and(|change| change.is_demotion())
        {
            return refuse(self, ClientError::NotPrimary);
        }
        let (kind, range, fua) = match operation {
            Operation::Read(range) => (Kind::Read, range, false),
            Operation::Write {
                range,
                payload,
                fua,
            } => (Kind::Write(payload), range, fua),
            Operation::Flush => (Kind::Flush, ByteRange::new(0, 0), false),
            Operation::Discard { range, fua } => (Kind::Discard, range, fua),
            Operation::WriteZeroes {
                range,
                may_unmap,
                fua,
            } => (Kind::WriteZeroes { may_unmap }, range, fua),
        };
        let end = range.offset.checked_add(u64::from(range.length));
        if end.is_none_or(|end| end > self.volumes[v].size)
            || range.length > limits::MAX_REQUEST_BYTES
        {
            return refuse(self, ClientError::OutOfRange);
        }
        if let Kind::Write(payload) = &kind {
            assert_eq!(
                payload.length(),
                range.length as usize,
                "payload and range of a write differ"
            );
        }
        if range.length == 0 && !matches!(kind, Kind::Flush) {
            return self.effect(Effect::Complete {
                id,
                result: Ok(None),
            });
        }
        self.last_application_io = self.now;
        let is_read = matches!(kind, Kind::Read);
        let is_flush = matches!(kind, Kind::Flush);
        let key = self.requests.insert(Request {
            id,
            volume: v,
            kind,
            range,
            fua,
            stage: Stage::Waiting,
            lock: None,
            relaxed: false,
            logged: false,
            local: Local::Pending,
            local_error: None,
            local_durable: !fua,
            sent: Vec::new(),
            barriers: Vec::new(),
            completed: false,
        });
        if is_read {
            self.start_read(key);
        } else if is_flush {
            self.start_flush(key);
        } else {
            // Behind those that wait already, so that the client's order of overlapping writes is kept.
            self.volumes[v].held.push_back(key);
        }
    }

    /// True if new writes of the volume must wait.
    fn must_hold(&self, v: usize) -> bool {
        let volume = &self.volumes[v];
        self.peers.iter().any(|peer| {
            let device = &peer.devices[v];
            device.hold
                || peer.log.unwritten() >= limits::MAX_UNWRITTEN_OPERATIONS
                || peer.log.in_flight_bytes() >= peer.config.max_in_flight_bytes
        }) || !volume.usable() && self.awaits_data(v)
    }

    /// True while a handshake holds new writes of the volume.
    fn is_held(&self, v: usize) -> bool {
        self.peers.iter().any(|peer| peer.devices[v].hold)
    }

    /// True if no peer serves the volume now, but a handshake under way may end with one that does.
    fn awaits_data(&self, v: usize) -> bool {
        !self.has_remote_data(v)
            && self.peers.iter().any(|peer| {
                peer.shaking_hands()
                    || peer.connection == ConnectionState::Connected
                        && (peer.devices[v].hold
                            || peer.devices[v].disk == DiskState::UpToDate
                                && !peer.devices[v].peer_accepts)
            })
    }

    /// Lets held writes go on as far as possible. True if one did.
    pub(crate) fn release_held(&mut self, v: usize) -> bool {
        let mut progress = false;
        if !self.volumes[v].parked.is_empty() && !self.is_held(v) {
            progress = true;
            for key in core::mem::take(&mut self.volumes[v].parked) {
                self.submit_write(key);
            }
        }
        if !self.volumes[v].held_for_data.is_empty() && !self.awaits_data(v) && !self.is_held(v) {
            progress = true;
            for key in core::mem::take(&mut self.volumes[v].held_for_data) {
                match self.requests[key].kind {
                    Kind::Read => self.start_read(key),
                    _ => self.start_flush(key),
                }
            }
        }
        while !self.volumes[v].held.is_empty() && !self.must_hold(v) {
            let Some(key) = self.volumes[v].held.pop_front() else {
                break;
            };
            progress = true;
            let range = self.requests[key].range;
            let (lock, free) = self.volumes[v].intervals.insert(
                range,
                IntervalKind::Application,
                Owner::Request(key),
            );
            self.requests[key].lock = Some(lock);
            if free {
                self.enter_log(v, Owner::Request(key), range);
            }
        }
        progress
    }

    /// The overlap order lets an operation go on.
    pub(crate) fn run_unblocked(&mut self, v: usize, owner: Owner) {
        match owner {
            Owner::Request(key) => {
                let range = self.requests[key].range;
                self.enter_log(v, owner, range);
            }
            Owner::Received { peer, key } => self.received_unblocked(peer, key),
            Owner::ResyncRead { peer, id } => self.resync_read_unblocked(v, peer, id),
            Owner::ResyncWrite { peer, key } => self.resync_write_unblocked(peer, key),
        }
    }

    /// Takes references on the extents of a write, or queues it until a transaction made them active.
    pub(crate) fn enter_log(&mut self, v: usize, owner: Owner, range: ByteRange) {
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut().filter(|_| volume.disk.has_data()) {
            if volume.log_starving && !volume.log_waiters.is_empty()
                || !backing.log.acquire(range.extents_touched())
            {
                volume.log_waiters.push_back(LogWaiter { owner, range });
                return;
            }
            self.run_logged(owner, true);
        } else {
            self.run_logged(owner, false);
        }
    }

    /// The extents of a write are active and durable in the log (`logged`), or there is no disk to log on.
    pub(crate) fn run_logged(&mut self, owner: Owner, logged: bool) {
        match owner {
            Owner::Request(key) => {
                self.requests[key].logged = logged;
                let v = self.requests[key].volume;
                if self.is_held(v) {
                    self.volumes[v].parked.push_back(key);
                } else {
                    self.submit_write(key);
                }
            }
            Owner::Received { peer, key } => {
                self.peers[peer].received[key].logged = logged;
                self.start_received(peer, key);
            }
            Owner::ResyncRead { .. } | Owner::ResyncWrite { .. } => {
                unreachable!("resync does not enter the activity log")
            }
        }
    }

    // ---- submission -----------------------------------------------------------------------------------------------------------

    fn submit_write(&mut self, key: usize) {
        let request = &self.requests[key];
        let (v, range, fua, kind) = (
            request.volume,
            request.range,
            request.fua,
            request.kind.clone(),
        );
        let number = self.volumes[v].number;
        self.requests[key].stage = Stage::Running;
        let mut misses = false;
        for p in 0..self.peers.len() {
            // Without a disk here only a peer with good data takes the write: nobody else could tell what it misses.
            if self.peers[p].devices[v].mirrors() && (self.volumes[v].usable() || self.serves(p, v))
            {
                if self.peers[p]
                    .log
                    .must_close_epoch(self.peers[p].config.max_epoch_size)
                {
                    self.close_epoch(p);
                }
                let payload_bytes = if matches!(kind, Kind::Write(_)) {
                    range.length
                } else {
                    0
                };
                let (sequence, epoch) = self.peers[p].log.push(v, range, payload_bytes, key);
                self.requests[key].sent.push(SentTo {
                    peer: p,
                    epoch,
                    progress: Progress::Sent,
                });
                let message = match &kind {
                    Kind::Write(payload) => Message::Write {
                        sequence,
                        epoch,
                        volume: number,
                        range,
                        payload: payload.clone(),
                    },
                    Kind::Discard => Message::Discard {
                        sequence,
                        epoch,
                        volume: number,
                        range,
                    },
                    Kind::WriteZeroes { may_unmap } => Message::WriteZeroes {
                        sequence,
                        epoch,
                        volume: number,
                        range,
                        may_unmap: *may_unmap,
                    },
                    Kind::Read | Kind::Flush => unreachable!("only writes are submitted here"),
                };
                self.send(p, message);
                self.peers[p].idle_barrier = Some(self.now.after(limits::IDLE_BARRIER_MS));
                self.note_progress(p);
                if fua {
                    self.close_epoch(p);
                    // Without good data here the peer's is the only durable copy, whatever the protocol.
                    if self.peers[p].config.protocol == Protocol::C
                        || self.volumes[v].disk != DiskState::UpToDate
                    {
                        self.requests[key].barriers.push((p, epoch));
                        self.peers[p].barrier_waiters.push((key, epoch));
                    }
                }
            } else {
                let node = self.peers[p].config.node_id;
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    backing.mark(node, range);
                    misses |= backing.slot(node).is_some();
                }
            }
        }
        if misses {
            self.new_generation_if_shared(v, "write-without-peer");
        }
        if self.volumes[v].usable() {
            let io = self.new_io(v, IoOwner::RequestWrite(key));
            self.effect(match kind {
                Kind::Write(payload) => Effect::Write {
                    volume: number,
                    io,
                    range,
                    payload,
                },
                Kind::Discard => Effect::Discard {
                    volume: number,
                    io,
                    range,
                },
                Kind::WriteZeroes { may_unmap } => Effect::WriteZeroes {
                    volume: number,
                    io,
                    range,
                    may_unmap,
                },
                Kind::Read | Kind::Flush => unreachable!("only writes are submitted here"),
            });
        } else {
            self.requests[key].local = Local::Missing;
            self.requests[key].local_durable = true;
            self.update_request(key);
        }
    }

    /// Closes the current epoch toward the peer, if it holds something, with a barrier.
    pub(crate) fn close_epoch(&mut self, p: usize) {
        self.peers[p].idle_barrier = None;
        if let Some(epoch) = self.peers[p].log.close_epoch() {
            self.send(p, Message::Barrier { epoch });
        }
    }

    fn start_flush(&mut self, key: usize) {
        let v = self.requests[key].volume;
        // During a handshake that holds writes no new generation may be made, so a flush must not be answered alone either.
        if self.is_held(v) || !self.volumes[v].usable() && self.awaits_data(v) {
            return self.volumes[v].held_for_data.push_back(key);
        }
        self.requests[key].stage = Stage::Running;
        let mut misses = false;
        for p in 0..self.peers.len() {
            let node = self.peers[p].config.node_id;
            if self.peers[p].devices[v].mirrors() {
                self.close_epoch(p);
                let epoch = self.peers[p].log.last_epoch_with_entries();
                let remote = self.peers[p].config.protocol == Protocol::C
                    || self.volumes[v].disk != DiskState::UpToDate;
                if remote && epoch > self.peers[p].log.durable_epoch() {
                    self.requests[key].barriers.push((p, epoch));
                    self.peers[p].barrier_waiters.push((key, epoch));
                }
            } else {
                // A flush that is answered alone vouches for writes that the peer may miss.
                misses |= self.volumes[v]
                    .backing
                    .as_ref()
                    .is_some_and(|backing| backing.bits(node) > 0);
            }
        }
        if misses {
            self.new_generation_if_shared(v, "flush-without-peer");
        }
        if self.volumes[v].usable() {
            self.join_flush(v, key);
        } else {
            self.requests[key].local = Local::Missing;
            self.update_request(key);
        }
    }

    /// Makes `key` part of the next local flush.
    fn join_flush(&mut self, v: usize, key: usize) {
        self.volumes[v].flush.gathering.push(key);
        if !self.volumes[v].flush.running {
            self.run_flush(v);
        }
    }

    fn run_flush(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        volume.flush.served = core::mem::take(&mut volume.flush.gathering);
        volume.flush.running = true;
        let number = volume.number;
        let io = self.new_io(v, IoOwner::FlushGroup);
        self.effect(Effect::Flush { volume: number, io });
    }

    pub(crate) fn flush_group_done(&mut self, v: usize, result: Result<(), IoError>) {
        self.volumes[v].flush.running = false;
        let served = core::mem::take(&mut self.volumes[v].flush.served);
        if result.is_err() || !self.volumes[v].usable() {
            // After a failed flush nothing is known about what the cache held; one on a disk that was given up vouches for nothing.
            self.fail_disk(v, "flush-error");
            for &key in &served {
                self.requests[key].local = Local::Missing;
                self.requests[key].local_error = self.requests[key].local_error.or(result.err());
                self.durable_at_peers_instead(key);
            }
        } else {
            for &key in &served {
                let request = &mut self.requests[key];
                if matches!(request.kind, Kind::Flush) {
                    request.local = Local::Done;
                } else {
                    request.local_durable = true;
                }
                self.update_request(key);
            }
        }
        if !self.volumes[v].flush.gathering.is_empty() {
            if self.volumes[v].usable() {
                self.run_flush(v);
            } else {
                for key in core::mem::take(&mut self.volumes[v].flush.gathering) {
                    self.requests[key].local = Local::Missing;
                    self.durable_at_peers_instead(key);
                }
            }
        }
    }

    /// The local disk cannot make the request durable any more: the peers that mirror must.
    fn durable_at_peers_instead(&mut self, key: usize) {
        let v = self.requests[key].volume;
        let flush = matches!(self.requests[key].kind, Kind::Flush);
        self.requests[key].local_durable = true;
        for p in 0..self.peers.len() {
            if !self.peers[p].devices[v].mirrors()
                || self.requests[key]
                    .barriers
                    .iter()
                    .any(|&(peer, _)| peer == p)
            {
                continue;
            }
            self.close_epoch(p);
            let sent = self.requests[key]
                .sent
                .iter()
                .find(|sent| sent.peer == p)
                .map(|sent| sent.epoch);
            let epoch = if flush {
                self.peers[p].log.last_epoch_with_entries()
            } else {
                sent.unwrap_or(0)
            };
            if epoch > self.peers[p].log.durable_epoch() {
                self.requests[key].barriers.push((p, epoch));
                self.peers[p].barrier_waiters.push((key, epoch));
            }
        }
        self.update_request(key);
    }

    // ---- answers --------------------------------------------------------------------------------------------------------------

    pub(crate) fn local_write_done(&mut self, key: usize, result: Result<(), IoError>) {
        let v = self.requests[key].volume;
        match result {
            Ok(()) => self.requests[key].local = Local::Done,
            Err(error) => {
                self.requests[key].local = Local::Missing;
                self.requests[key].local_error = Some(error);
                self.write_failed(v, error);
            }
        }
        // Giving up the disk may have ended the request.
        let Some(request) = self.requests.get(key) else {
            return;
        };
        if request.fua && !request.local_durable {
            if request.local == Local::Done && self.volumes[v].usable() {
                self.join_flush(v, key);
            } else {
                return self.durable_at_peers_instead(key);
            }
        }
        self.update_request(key);
    }

    pub(crate) fn received_ack(&mut self, p: usize, through: u64) -> Result<(), &'static str> {
        let mut touched = Vec::new();
        if !self.peers[p]
            .log
            .received(through, |request| touched.push(request))
        {
            return Err("receipt of an operation that was never sent");
        }
        for key in touched {
            self.request_progress(key, p, Progress::Received);
        }
        Ok(())
    }

    pub(crate) fn written_ack(
        &mut self,
        p: usize,
        first: u64,
        count: u32,
    ) -> Result<(), &'static str> {
        if count as usize > limits::MAX_BUFFERED_OPERATIONS {
            return Err("more acknowledgements than operations");
        }
        for sequence in (0..u64::from(count)).map(|index| first.saturating_add(index)) {
            match self.peers[p].log.written(sequence) {
                Some(entry) => {
                    if !entry.lost {
                        self.request_progress(entry.request, p, Progress::Written);
                    }
                }
                None => return Err("acknowledgement of an operation that is not under way"),
            }
        }
        self.note_progress(p);
        Ok(())
    }

    pub(crate) fn failed_ack(&mut self, p: usize, sequence: u64) -> Result<(), &'static str> {
        let Some(entry) = self.peers[p].log.written(sequence) else {
            return Err("failure of an operation that is not under way");
        };
        if !entry.lost {
            self.peer_disk_lost(p, entry.volume, DiskState::Failed, "peer-write-failed");
        }
        self.note_progress(p);
        Ok(())
    }

    /// An operation of the log will not be confirmed by the peer: marks its blocks and lets the request go on without.
    pub(crate) fn entry_lost(&mut self, p: usize, v: usize, range: ByteRange, request: usize) {
        let node = self.peers[p].config.node_id;
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            backing.mark(node, range);
        }
        self.request_progress(request, p, Progress::Lost);
    }

    pub(crate) fn barrier_ack(&mut self, p: usize, epoch: u64) -> Result<(), &'static str> {
        let mut retired = Vec::new();
        if !self.peers[p]
            .log
            .barrier_acked(epoch, |entry| retired.push(entry))
        {
            return Err("acknowledgement of a barrier that is not under way");
        }
        for entry in retired {
            if !entry.lost {
                self.request_progress(entry.request, p, Progress::Settled);
            }
        }
        self.wake_barrier_waiters(p, |waiting| waiting <= epoch);
        Ok(())
    }

    /// Requests that wait for an epoch selected by `over` need not wait for this peer any more.
    pub(crate) fn wake_barrier_waiters(&mut self, p: usize, over: impl Fn(u64) -> bool) {
        let waiters = core::mem::take(&mut self.peers[p].barrier_waiters);
        let (woken, left): (Vec<_>, Vec<_>) =
            waiters.into_iter().partition(|&(_, epoch)| over(epoch));
        self.peers[p].barrier_waiters = left;
        for (key, _) in woken {
            self.requests[key]
                .barriers
                .retain(|&(peer, epoch)| peer != p || !over(epoch));
            self.update_request(key);
        }
    }

    /// Remembers since when the oldest operation has been waiting for the peer (`ko-count`).
    pub(crate) fn note_progress(&mut self, p: usize) {
        let now = self.now;
        let peer = &mut self.peers[p];
        peer.stalled = peer
            .log
            .oldest_unwritten()
            .map(|oldest| match peer.stalled {
                Some((sequence, since)) if sequence == oldest => (sequence, since),
                _ => (oldest, now),
            });
    }

    fn request_progress(&mut self, key: usize, p: usize, progress: Progress) {
        let request = &mut self.requests[key];
        for sent in &mut request.sent {
            if sent.peer == p && sent.progress < progress {
                sent.progress = progress;
            }
        }
        self.update_request(key);
    }

    // ---- rules ----------------------------------------------------------------------------------------------------------------

    /// True if the request may be completed to its client now (W1–W4, W8).
    fn may_complete(&self, request: &Request<P>) -> bool {
        let volume = &self.volumes[request.volume];
        if request.local == Local::Pending || !request.local_durable || !request.barriers.is_empty()
        {
            return false;
        }
        if let Some(backing) = &volume.backing
            && backing.writer.superblock.durable < backing.completion_gate
        {
            return false;
        }
        let confirmed = request.sent.iter().all(|sent| {
            let needed = match self.peers[sent.peer].config.protocol {
                Protocol::A => Progress::Sent,
                Protocol::B => Progress::Received,
                Protocol::C => Progress::Written,
            };
            sent.progress >= needed
        });
        if !confirmed {
            return false;
        }
        if self.good_here(request) {
            return true;
        }
        // Without good data here a peer must really have it, and must have noted if this node misses it (W9). If no peer can have
        // it any more, the request ends with an error.
        let copies: Vec<usize> = (0..self.peers.len())
            .filter(|&p| self.has_good_data(p, request.volume))
            .collect();
        let can = copies.iter().any(|&p| {
            matches!(request.kind, Kind::Flush)
                || request
                    .sent
                    .iter()
                    .any(|sent| sent.peer == p && sent.progress != Progress::Lost)
        });
        !can || copies.iter().any(|&p| self.good_at(request, p))
    }

    /// True if the local disk has the request's effect and its data are good.
    fn good_here(&self, request: &Request<P>) -> bool {
        request.local == Local::Done && self.volumes[request.volume].disk == DiskState::UpToDate
    }

    /// True if the peer is within reach and its data are good.
    fn has_good_data(&self, p: usize, v: usize) -> bool {
        let (peer, device) = (&self.peers[p], &self.peers[p].devices[v]);
        peer.connection == ConnectionState::Connected
            && device.peer_accepts
            && device.disk == DiskState::UpToDate
    }

    /// True if the peer's data are good and it takes this node's writes.
    fn serves(&self, p: usize, v: usize) -> bool {
        let device = &self.peers[p].devices[v];
        device.mirrors() && device.disk == DiskState::UpToDate
    }

    /// True if the peer has the request's effect, and has noted it if this node misses it.
    fn good_at(&self, request: &Request<P>, p: usize) -> bool {
        let noted =
            request.local == Local::Done || self.peers[p].devices[request.volume].misses_tracked;
        let there = matches!(request.kind, Kind::Flush)
            || request.sent.iter().any(|sent| {
                sent.peer == p && matches!(sent.progress, Progress::Written | Progress::Settled)
            });
        noted && there && self.has_good_data(p, request.volume)
    }

    /// What the client gets for a request that may be completed.
    fn result(&self, request: &Request<P>) -> Result<Option<P>, ClientError> {
        if self.good_here(request) || (0..self.peers.len()).any(|p| self.good_at(request, p)) {
            return Ok(None);
        }
        Err(match request.local_error {
            Some(IoError::NoSpace) => ClientError::NoSpace,
            _ => ClientError::Io,
        })
    }

    /// Carries out whatever the state of the request allows.
    pub(crate) fn update_request(&mut self, key: usize) {
        let Some(request) = self.requests.get(key) else {
            return;
        };
        if request.stage != Stage::Running || matches!(request.kind, Kind::Read) {
            return;
        }
        let v = request.volume;
        if !request.completed && self.may_complete(request) {
            let result = self.result(request);
            let id = request.id;
            self.requests[key].completed = true;
            for index in 0..self.requests[key].sent.len() {
                let SentTo {
                    peer,
                    epoch,
                    progress,
                } = self.requests[key].sent[index];
                if progress < Progress::Settled {
                    self.peers[peer].log.completed(epoch);
                }
            }
            self.effect(Effect::Complete { id, result });
        }
        let request = &mut self.requests[key];
        if request.local == Local::Pending {
            return;
        }
        if let Some(lock) = request.lock {
            if request.written_everywhere() {
                request.lock = None;
                self.volumes[v].intervals.remove(lock);
            } else if !request.relaxed {
                request.relaxed = true;
                self.volumes[v].intervals.relax(lock);
            }
        }
        let request = &self.requests[key];
        if request.completed && request.settled() && request.lock.is_none() {
            let request = self.requests.remove(key);
            if request.logged
                && let Some(backing) = self.volumes[v].backing.as_mut()
            {
                backing.log.release(request.range.extents_touched());
            }
        }
    }

    /// Looks at every running request of the volume again.
    pub(crate) fn update_requests(&mut self, v: usize) {
        let keys: Vec<usize> = self
            .requests
            .iter()
            .filter(|(_, request)| request.volume == v)
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            self.update_request(key);
        }
    }

    // ---- reads ----------------------------------------------------------------------------------------------------------------

    /// The peer (by index) from which the volume can be read.
    fn remote_source(&self, v: usize) -> Option<usize> {
        (0..self.peers.len()).find(|&p| self.has_good_data(p, v))
    }

    /// True if an UpToDate peer is within reach.
    pub(crate) fn has_remote_data(&self, v: usize) -> bool {
        self.remote_source(v).is_some()
    }

    /// True if the local disk holds the current bytes of the range.
    fn readable_here(&self, v: usize, range: ByteRange) -> bool {
        let volume = &self.volumes[v];
        match (&volume.backing, volume.disk) {
            (Some(_), DiskState::UpToDate) => true,
            // A target knows by its bits which blocks are old.
            (Some(backing), DiskState::Inconsistent) => self.peers.iter().any(|peer| {
                peer.devices[v].replication.is_sync_target()
                    && backing
                        .slot(peer.config.node_id)
                        .is_some_and(|slot| !backing.bitmaps[slot].any_set(range.blocks_touched()))
            }),
            _ => false,
        }
    }

    pub(crate) fn start_read(&mut self, key: usize) {
        let (v, range) = (self.requests[key].volume, self.requests[key].range);
        self.requests[key].stage = Stage::Running;
        if self.requests[key].local_error.is_none() && self.readable_here(v, range) {
            let volume = self.volumes[v].number;
            let io = self.new_io(v, IoOwner::ClientRead(key));
            self.effect(Effect::Read { volume, io, range });
        } else if let Some(p) = self.remote_source(v) {
            let id = self.random.draw();
            let volume = self.volumes[v].number;
            self.peers[p].reads.insert(id, key);
            self.send(p, Message::ReadRequest { id, volume, range });
        } else if self.awaits_data(v) {
            self.volumes[v].held_for_data.push_back(key);
        } else {
            let id = self.requests.remove(key).id;
            self.effect(Effect::Complete {
                id,
                result: Err(ClientError::Io),
            });
        }
    }

    pub(crate) fn client_read_done(&mut self, key: usize, result: Result<Option<P>, IoError>) {
        match result {
            Ok(payload) => {
                let id = self.requests.remove(key).id;
                self.effect(Effect::Complete {
                    id,
                    result: Ok(payload),
                });
            }
            Err(error) => {
                let v = self.requests[key].volume;
                self.requests[key].local_error = Some(error);
                self.decision(
                    None,
                    Some(v),
                    "read-error",
                    String::from("a read from the local disk failed; trying a peer"),
                );
                self.read_failed(v);
                self.start_read(key);
            }
        }
    }

    pub(crate) fn read_reply_received(
        &mut self,
        p: usize,
        id: u64,
        outcome: ReadOutcome,
        payload: Option<P>,
    ) -> Result<(), &'static str> {
        let Some(key) = self.peers[p].reads.remove(&id) else {
            return Err("answer to a read that was never asked");
        };
        match (outcome, payload) {
            (ReadOutcome::Data, Some(payload))
                if payload.length() == self.requests[key].range.length as usize =>
            {
                let request = self.requests.remove(key);
                self.effect(Effect::Complete {
                    id: request.id,
                    result: Ok(Some(payload)),
                });
                Ok(())
            }
            (ReadOutcome::Failed, _) => {
                let request = self.requests.remove(key);
                self.effect(Effect::Complete {
                    id: request.id,
                    result: Err(ClientError::Io),
                });
                Ok(())
            }
            _ => {
                self.start_read(key);
                Err("answer to a read with a wrong length")
            }
        }
    }

    /// Remote reads that were under way on a lost connection look for another source.
    pub(crate) fn retry_remote_reads(&mut self, p: usize) {
        for (_, key) in core::mem::take(&mut self.peers[p].reads) {
            self.start_read(key);
        }
    }
}
