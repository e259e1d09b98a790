//! Messages between two engines. Order is guaranteed within a lane until the connection ends, never between lanes.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

pub use crate::generation::Protocol;
use crate::split_brain::Policies;
use crate::state::{DiskState, Role};
use crate::units::{ByteRange, Generation, NodeId, VolumeNumber};

/// An ordered stream of messages inside a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Application writes, barriers and remote reads, in the Primary's order.
    Data = 0,
    /// Acknowledgements.
    Acks = 1,
    /// Handshake, bitmaps, state, pings.
    Control = 2,
    /// Resync data and answers to remote reads.
    Resync = 3,
}

impl Lane {
    /// All lanes in the order of their codes.
    pub const ALL: [Lane; 4] = [Lane::Data, Lane::Acks, Lane::Control, Lane::Resync];
}

/// First message of each side after authentication: everything that both sides need to decide who has the newer data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Sender.
    pub node_id: NodeId,
    /// Sender's role.
    pub role: Role,
    /// Configured protocol; must be equal on both sides.
    pub protocol: Protocol,
    /// Split-brain policies; must be compatible.
    pub policies: Policies,
    /// The administrator said that this side's changes lose in a split brain.
    pub discard_my_data: bool,
    /// One entry for each volume configured at the sender.
    pub volumes: Vec<VolumeHello>,
}

/// One volume in a [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeHello {
    /// Which volume.
    pub volume: VolumeNumber,
    /// Number of this exchange for the volume on this session: 1 in the [`Hello`], counted up by [`Message::Again`].
    pub round: u32,
    /// The sender's disk.
    pub disk: DiskState,
    /// The sender is Primary and attached this disk anew: its clients' data is not on it yet.
    pub attached_anew: bool,
    /// Largest data size that the sender's disk can hold, in bytes; 0 without a disk.
    pub max_bytes: u64,
    /// Size agreed with a peer before, 0 if never.
    pub effective_bytes: u64,
    /// Current generation.
    pub current: Generation,
    /// The sender's bitmap generation toward the receiver. Without a disk: the generation that the receiver is to begin once it notes what
    /// that disk misses.
    pub bitmap: Generation,
    /// The sender's history, newest first.
    pub history: Vec<Generation>,
    /// The sender was Primary when it crashed.
    pub crashed_primary: bool,
    /// The sender has been running since it was last connected to the receiver in this generation.
    pub running_since_contact: bool,
    /// The sender must become target of a full sync.
    pub full_sync: bool,
    /// The sender is the target of an unfinished resync.
    pub sync_target: bool,
    /// Bits set toward the receiver.
    pub bits: u64,
    /// Tells one life of the disk's volatile cache from the next: another number after the sender's machine was started anew, and after
    /// the disk failed under the process that runs.
    pub cache: u64,
}

/// Why a side leaves on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum GoodbyeReason {
    /// The administrator disconnects the sender.
    Disconnect = 0,
    /// The handshake ended in a refusal; both sides become StandAlone.
    StandAlone = 1,
    /// Shake hands again on a new connection.
    Renegotiate = 2,
    /// The sender found the receiver's messages senseless.
    ProtocolError = 3,
}

/// How far a resize is, see [`Message::Resize`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ResizeStage {
    /// The Primary asks the peer to look at its disk and to move its metadata to the end of it.
    Ask = 0,
    /// The peer's disk offers so many bytes, durably.
    Offer = 1,
    /// The peer cannot take part; the text says why.
    Refuse = 2,
    /// The volume has so many bytes from now on, and what is added is the same everywhere.
    Take = 3,
    /// The peer noted that durably.
    Taken = 4,
}

/// What became of a block of resync data at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ResyncOutcome {
    /// On the target's disk (perhaps in its volatile cache).
    Written = 0,
    /// A newer write is under way there; send again later.
    Retry = 1,
    /// The target's disk failed.
    Failed = 2,
}

/// How a remote read ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ReadOutcome {
    /// The payload holds the bytes.
    Data = 0,
    /// No usable data at the peer.
    Failed = 1,
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message<P> {
    /// Control: first message of each side.
    Hello(Box<Hello>),
    /// Control: shake hands again for one volume, whose disk was attached on a standing connection. The receiver answers with
    /// the same round unless it sent that round already.
    Again(Box<VolumeHello>),
    /// Control: the sender has carried out the handshake's verdict for the volume durably and accepts mirrored writes.
    VolumeReady {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Control: the sender's role and disks changed.
    PeerState {
        /// The sender's role.
        role: Role,
        /// The sender's disks.
        disks: Vec<(VolumeNumber, DiskState)>,
    },
    /// Control: are you there?
    Ping {
        /// Comes back in the answer.
        id: u64,
    },
    /// Control: yes.
    Pong {
        /// Of the question.
        id: u64,
    },
    /// Control: the sender wants to become Primary.
    PromoteRequest {
        /// Comes back in the answer.
        id: u64,
    },
    /// Control: answer.
    PromoteReply {
        /// Of the question.
        id: u64,
        /// 0 = granted, otherwise the refusal's code (see [`crate::state::Refusal::code`]).
        refusal: i32,
    },
    /// Control: the sender leaves on purpose.
    Goodbye {
        /// Why.
        reason: GoodbyeReason,
        /// For the receiver's log, at most 512 bytes.
        text: String,
    },
    /// Control: the sender's administrator holds (or releases) the resync.
    ResyncPause {
        /// Which volume.
        volume: VolumeNumber,
        /// Held?
        paused: bool,
    },
    /// Control: both disks were just created; declare them equal under this generation.
    SkipInitialSync {
        /// Which volume.
        volume: VolumeNumber,
        /// The new current generation.
        current: Generation,
    },
    /// Control: done durably.
    SkipInitialSyncDone {
        /// Which volume.
        volume: VolumeNumber,
        /// The new current generation.
        current: Generation,
        /// False: refused.
        done: bool,
    },
    /// Control: your data is bad, become target of a full sync.
    InvalidateRequest {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Control: the sender's data are to become those of a resync from the receiver; are the receiver's good?
    InvalidateQuestion {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Control: answer.
    InvalidateAnswer {
        /// Which volume.
        volume: VolumeNumber,
        /// The answering side's data are good, and it is not about to give them up itself.
        granted: bool,
    },
    /// Control: the sender, Primary, is going to part: make your disks Outdated and say so.
    OutdateRequest,
    /// Control: the sender noted durably, under a new generation, which writes the receiver's lost disk misses.
    MissesTracked {
        /// Which volume.
        volume: VolumeNumber,
        /// The sender's new current generation.
        current: Generation,
    },
    /// Data: a write.
    Write {
        /// Number of the operation in this session's data lane, from 1.
        sequence: u64,
        /// Epoch.
        epoch: u64,
        /// Which volume.
        volume: VolumeNumber,
        /// Where.
        range: ByteRange,
        /// The bytes.
        payload: P,
    },
    /// Data: a discard.
    Discard {
        /// Number of the operation.
        sequence: u64,
        /// Epoch.
        epoch: u64,
        /// Which volume.
        volume: VolumeNumber,
        /// Where.
        range: ByteRange,
    },
    /// Data: zeroes.
    WriteZeroes {
        /// Number of the operation.
        sequence: u64,
        /// Epoch.
        epoch: u64,
        /// Which volume.
        volume: VolumeNumber,
        /// Where.
        range: ByteRange,
        /// The space may be given back.
        may_unmap: bool,
    },
    /// Data: the epoch is complete; everything in it must be durable before anything of the next one is written.
    Barrier {
        /// The closed epoch.
        epoch: u64,
    },
    /// Data: read for a client of the sender, ordered behind the writes sent before.
    ReadRequest {
        /// Comes back in the answer.
        id: u64,
        /// Which volume.
        volume: VolumeNumber,
        /// Where.
        range: ByteRange,
    },
    /// Data: the sender has no disk for the volume any more: note these ranges and every later write as missing there.
    DiskLost {
        /// Which volume.
        volume: VolumeNumber,
        /// The generation that the receiver is to begin for that.
        generation: Generation,
        /// Ranges of writes sent earlier that did not reach the sender's own disk.
        missed: Vec<ByteRange>,
    },
    /// Data: from here on the sender's own disk takes every write again.
    DiskBack {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Acks: everything up to this number was received.
    Received {
        /// Last number received.
        through: u64,
    },
    /// Acks: these operations are on the disk (perhaps in its volatile cache).
    Written {
        /// First number.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Acks: the operation failed on the sender's disk.
    Failed {
        /// Which number.
        sequence: u64,
    },
    /// Acks: every operation up to the end of this epoch is durable.
    BarrierAck {
        /// The epoch.
        epoch: u64,
    },
    /// Control (behind the handshake that decided about it): a part of the sender's bitmap, run-length coded.
    BitmapRuns {
        /// Which volume.
        volume: VolumeNumber,
        /// [`crate::bitmap::Bitmap::encode_runs`].
        runs: Vec<u8>,
        /// The last part.
        last: bool,
    },
    /// Control: a part that was not the last is taken up; one more may be sent.
    BitmapTaken {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Control: a step of a resize, between a Primary and its peer.
    Resize {
        /// Which volume.
        volume: VolumeNumber,
        /// Which step.
        stage: ResizeStage,
        /// The size that it is about, in bytes; 0 where it is about none.
        bytes: u64,
        /// Of a refusal: why, and what helps.
        text: String,
    },
    /// Control: the source's bitmap is complete and durable; adopt this generation, become Inconsistent.
    ResyncBegin {
        /// Which volume.
        volume: VolumeNumber,
        /// The source's current generation.
        current: Generation,
        /// The source's history.
        history: Vec<Generation>,
    },
    /// Control: a handler of the sender runs before the resync, whose next step takes so much longer.
    ResyncWaits {
        /// Which volume.
        volume: VolumeNumber,
        /// At most.
        milliseconds: u32,
    },
    /// Control: the target is Inconsistent durably and ready.
    ResyncReady {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Resync: a block of data.
    ResyncData {
        /// Number of the operation, from 1, for each volume.
        id: u64,
        /// Which volume.
        volume: VolumeNumber,
        /// Where.
        range: ByteRange,
        /// The bytes.
        payload: P,
    },
    /// Resync: a range that holds only zeroes.
    ResyncZeroes {
        /// Number of the operation.
        id: u64,
        /// Which volume.
        volume: VolumeNumber,
        /// Where.
        range: ByteRange,
    },
    /// Resync: make everything received before durable.
    ResyncFlush {
        /// Which volume.
        volume: VolumeNumber,
        /// Comes back in the answer.
        id: u64,
    },
    /// Resync: nothing is left; become UpToDate.
    ResyncFinish {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Resync: answer to [`Message::ReadRequest`].
    ReadReply {
        /// Of the question.
        id: u64,
        /// How it ended.
        outcome: ReadOutcome,
        /// The bytes, where there are any.
        payload: Option<P>,
    },
    /// Acks: a resync operation ended.
    ResyncAck {
        /// Which volume.
        volume: VolumeNumber,
        /// Number of the operation.
        id: u64,
        /// How it ended.
        outcome: ResyncOutcome,
    },
    /// Acks: everything up to this flush is durable.
    ResyncFlushed {
        /// Which volume.
        volume: VolumeNumber,
        /// Of the question.
        id: u64,
    },
    /// Acks: the target is UpToDate durably.
    ResyncFinished {
        /// Which volume.
        volume: VolumeNumber,
    },
}

impl<P> Message<P> {
    /// The lane that this message travels on.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Message::Hello(_)
            | Message::Again(_)
            | Message::VolumeReady { .. }
            | Message::PeerState { .. }
            | Message::Ping { .. }
            | Message::Pong { .. }
            | Message::PromoteRequest { .. }
            | Message::PromoteReply { .. }
            | Message::Goodbye { .. }
            | Message::ResyncPause { .. }
            | Message::SkipInitialSync { .. }
            | Message::SkipInitialSyncDone { .. }
            | Message::InvalidateRequest { .. }
            | Message::InvalidateQuestion { .. }
            | Message::InvalidateAnswer { .. }
            | Message::OutdateRequest
            | Message::MissesTracked { .. }
            | Message::BitmapRuns { .. }
            | Message::BitmapTaken { .. }
            | Message::Resize { .. }
            | Message::ResyncBegin { .. }
            | Message::ResyncWaits { .. }
            | Message::ResyncReady { .. } => Lane::Control,
            Message::Write { .. }
            | Message::Discard { .. }
            | Message::WriteZeroes { .. }
            | Message::Barrier { .. }
            | Message::ReadRequest { .. }
            | Message::DiskLost { .. }
            | Message::DiskBack { .. } => Lane::Data,
            Message::Received { .. }
            | Message::Written { .. }
            | Message::Failed { .. }
            | Message::BarrierAck { .. }
            | Message::ResyncAck { .. }
            | Message::ResyncFlushed { .. }
            | Message::ResyncFinished { .. } => Lane::Acks,
            Message::ResyncData { .. }
            | Message::ResyncZeroes { .. }
            | Message::ResyncFlush { .. }
            | Message::ResyncFinish { .. }
            | Message::ReadReply { .. } => Lane::Resync,
        }
    }
}
