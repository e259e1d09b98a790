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

mod answers;
mod completion;
mod flush;
mod read;
mod submission;

pub(crate) use flush::FlushRhythm;

use alloc::vec::Vec;

use crate::api::{ClientError, Effect, IoError, Operation, Payload, RequestId};
use crate::engine::Engine;
use crate::interval::{IntervalId, IntervalKind};
use crate::limits;
use crate::state::{ConnectionState, DiskState, Role};
use crate::units::{ByteRange, VolumeNumber};
use crate::volume::Owner;

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
    /// Submitted when neither this disk nor a peer had good data: no generation tells that the peers miss it.
    pub without_data: bool,
    /// A flush whose client must learn that writes before it may be gone.
    pub in_vain: bool,
    /// The event in which a flush began.
    pub began: u64,
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
            without_data: false,
            in_vain: false,
            began: 0,
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
        }) || self.is_suspended()
            || !volume.usable() && self.awaits_data(v)
    }

    /// True if a write must not be submitted before a handshake is over: it holds writes, or may end with the only good data.
    fn waits_for_handshake(&self, v: usize) -> bool {
        self.is_held(v) || self.is_suspended() || !self.volumes[v].usable() && self.awaits_data(v)
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
        if !self.volumes[v].parked.is_empty() && !self.waits_for_handshake(v) {
            progress = true;
            for key in core::mem::take(&mut self.volumes[v].parked) {
                if self.requests[key].logged || !self.volumes[v].usable() {
                    self.submit_write(key);
                } else {
                    let range = self.requests[key].range;
                    self.enter_log(v, Owner::Request(key), range);
                }
            }
        }
        if !self.volumes[v].held_for_data.is_empty()
            && !self.awaits_data(v)
            && !self.is_held(v)
            && !self.is_suspended()
        {
            progress = true;
            let in_vain = self.volumes[v].unflushed_lost;
            for key in core::mem::take(&mut self.volumes[v].held_for_data) {
                self.requests[key].in_vain |= in_vain;
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
}
