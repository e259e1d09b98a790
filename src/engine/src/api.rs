//! The engine's boundary: what goes in ([`Event`]) and what comes out ([`Effect`]).
//!
//! Invariants of the boundary, kept by the engine:
//! * every client request gets exactly one [`Effect::Complete`], every command exactly one [`Effect::CommandDone`];
//! * every I/O effect has a fresh [`IoId`]; an answer that comes after its disk was detached is ignored;
//! * an effect that must wait for another one is not emitted before the event that reports the other's completion came back,
//!   so a shell may carry out the effects it holds in any order, except that frames of one lane keep their order.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

use crate::metadata::growth::{DiskSizes, KnownDevice};
use crate::metadata::image::MetadataImage;
use crate::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use crate::units::{ByteRange, NodeId, VolumeNumber};
use crate::wire::Message;

/// Bytes on their way: a reference-counted buffer in the daemon, anything cheap to clone in tests.
pub trait Payload: Clone + Debug {
    /// Length in bytes.
    fn length(&self) -> usize;
    /// True if every byte is zero (used to send holes instead of data during a resync).
    fn is_zero(&self) -> bool;
}

/// Handle of a client's request, chosen by the shell, unique while the request is open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct RequestId(pub u64);

/// Handle of a disk or metadata operation, chosen by the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct IoId(pub u64);

/// Handle of one authenticated connection, chosen by the shell, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SessionId(pub u64);

/// Handle of an administrator's command, chosen by the shell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct CommandId(pub u64);

/// Handle of a call of the `fence-peer` handler, chosen by the engine, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct FenceId(pub u64);

/// Handle of a call of another handler whose answer counts, chosen by the engine, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct HandlerId(pub u64);

/// What the `fence-peer` handler found out or brought about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceAnswer {
    /// The peer's disk is Inconsistent or worse.
    Inconsistent,
    /// The peer's disk is Outdated now, or was already; or the cluster keeps it from becoming Primary.
    Outdated,
    /// The peer cannot be reached and is presumed dead.
    Unreachable,
    /// The peer is Primary.
    PeerIsPrimary,
    /// The peer was shot.
    Stonith,
    /// Anything else: nothing is known of the peer.
    Failed,
}

impl FenceAnswer {
    /// By the handler's exit code, DRBD's numbers; `None` if it did not end by itself.
    #[must_use]
    pub fn from_exit_code(code: Option<i32>) -> FenceAnswer {
        match code {
            Some(3) => FenceAnswer::Inconsistent,
            Some(4) => FenceAnswer::Outdated,
            Some(5) => FenceAnswer::Unreachable,
            Some(6) => FenceAnswer::PeerIsPrimary,
            Some(7) => FenceAnswer::Stonith,
            _ => FenceAnswer::Failed,
        }
    }

    /// What it says, for a person.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            FenceAnswer::Inconsistent => "peer is inconsistent or worse",
            FenceAnswer::Outdated => "peer was outdated",
            FenceAnswer::Unreachable => "peer is unreachable, assumed to be dead",
            FenceAnswer::PeerIsPrimary => "peer is Primary",
            FenceAnswer::Stonith => "peer was stonithed",
            FenceAnswer::Failed => "failed",
        }
    }
}

/// What a client wants done.
#[derive(Clone, Debug)]
pub enum Operation<P> {
    /// Read the range.
    Read(ByteRange),
    /// Write the payload; `fua`: durable (by the rules of W4) before completion.
    Write {
        /// Where; the length equals the payload's.
        range: ByteRange,
        /// The bytes.
        payload: P,
        /// Force unit access.
        fua: bool,
    },
    /// Make every completed write durable (by the rules of W4).
    Flush,
    /// Discard the range (advisory; both nodes read the same bytes afterwards).
    Discard {
        /// Where.
        range: ByteRange,
        /// Force unit access.
        fua: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// Where.
        range: ByteRange,
        /// The space may be given back.
        may_unmap: bool,
        /// Force unit access.
        fua: bool,
    },
}

/// Why a client's request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientError {
    /// Not Primary (any more).
    NotPrimary,
    /// No usable data within reach, or the disk failed.
    Io,
    /// The backing store is full.
    NoSpace,
    /// Outside the device or larger than [`crate::limits::MAX_REQUEST_BYTES`].
    OutOfRange,
}

/// Why a disk operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoError {
    /// The device reported an error.
    Failed,
    /// The file system below is full.
    NoSpace,
}

/// Why a connection ended, as the shell saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LossReason {
    /// The peer closed it.
    Closed,
    /// No answer, or the network failed.
    NetworkFailure,
    /// Undecodable bytes.
    ProtocolError,
    /// A newer connection from a restarted peer replaced it.
    Replaced,
    /// This node closed it.
    ClosedHere,
}

/// An administrator's command.
#[derive(Clone, Debug)]
pub enum Command {
    /// Use the backing disk whose metadata was read as `image`.
    Attach {
        /// Which volume.
        volume: VolumeNumber,
        /// The metadata, after the shell carried out [`MetadataImage::start_log_steps`] (the logged extents are in the bitmaps, a
        /// fresh log is on the disk).
        image: Box<MetadataImage>,
    },
    /// Give the backing disk back.
    Detach {
        /// Which volume.
        volume: VolumeNumber,
        /// Even if it is the last good copy.
        force: bool,
    },
    /// Leave StandAlone.
    Connect {
        /// Which peer.
        peer: NodeId,
        /// In a split brain this node's changes lose.
        discard_my_data: bool,
    },
    /// Become StandAlone.
    Disconnect {
        /// Which peer.
        peer: NodeId,
        /// Even if a Primary loses its last good data.
        force: bool,
    },
    /// Become Primary.
    Promote {
        /// Declare whatever data is here UpToDate.
        force: bool,
    },
    /// Become Secondary.
    Demote {
        /// Even if clients hold the device: their I/O fails from now on.
        force: bool,
    },
    /// The local data is bad: become target of a full sync.
    Invalidate {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// The peer's data is bad: make it target of a full sync.
    InvalidateRemote {
        /// Which volume.
        volume: VolumeNumber,
        /// Which peer.
        peer: NodeId,
    },
    /// Mark the local data Outdated.
    Outdate {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Hold resync.
    PauseSync {
        /// Which volume.
        volume: VolumeNumber,
        /// Which peer.
        peer: NodeId,
    },
    /// Let resync go on.
    ResumeSync {
        /// Which volume.
        volume: VolumeNumber,
        /// Which peer.
        peer: NodeId,
    },
    /// Take up no request of a client until [`Command::ResumeIo`].
    SuspendIo,
    /// Go on after [`Command::SuspendIo`], or without having fenced a lost peer.
    ResumeIo,
    /// The backing disks have grown: agree with the peers on a larger size. Never makes a volume smaller.
    Resize {
        /// Which volume.
        volume: VolumeNumber,
        /// At most this many bytes; `None`: as many as every disk offers.
        bytes: Option<u64>,
        /// The space that is added holds the same bytes on every node already: it is not copied.
        assume_clean: bool,
    },
    /// Make a new current generation; with `clear_bitmap` declare all nodes equal (skips the initial sync).
    NewCurrentUuid {
        /// Which volume.
        volume: VolumeNumber,
        /// Skip the initial sync.
        clear_bitmap: bool,
    },
}

/// What the engine is told.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// A client's request.
    Request {
        /// The shell's handle.
        id: RequestId,
        /// Which volume.
        volume: VolumeNumber,
        /// What to do.
        operation: Operation<P>,
    },
    /// A data operation ended; reads carry the bytes.
    DiskDone {
        /// Which operation.
        io: IoId,
        /// How it ended.
        result: Result<Option<P>, IoError>,
    },
    /// A metadata operation ended.
    MetadataDone {
        /// Which operation.
        io: IoId,
        /// How it ended.
        result: Result<(), IoError>,
    },
    /// The answer to [`Effect::MeasureDisk`].
    DiskMeasured {
        /// Which operation.
        io: IoId,
        /// The sizes now.
        result: Result<DiskSizes, IoError>,
    },
    /// The answer to [`Effect::RememberDisk`].
    DiskRemembered {
        /// Which operation.
        io: IoId,
        /// Whether it is remembered durably.
        result: Result<(), IoError>,
    },
    /// An authenticated connection stands. The shell reports the loss of an older session of this peer first.
    PeerConnected {
        /// Who.
        peer: NodeId,
        /// The new session.
        session: SessionId,
    },
    /// A connection ended. Reported once for each session, also after [`Effect::CloseSession`].
    PeerLost {
        /// Who.
        peer: NodeId,
        /// Which session.
        session: SessionId,
        /// Why.
        reason: LossReason,
    },
    /// A frame of the peer.
    Frame {
        /// Who.
        peer: NodeId,
        /// On which session; frames of older sessions are dropped.
        session: SessionId,
        /// The message.
        message: Message<P>,
    },
    /// The peer's machine says that nobody listens at the peer's address. A hint, which anybody on the way may have made up.
    NobodyListens {
        /// Who.
        peer: NodeId,
        /// The session that [`Effect::Probe`] named; of an older one it tells nothing.
        session: SessionId,
    },
    /// Time passed; see [`crate::Engine::next_timeout`].
    Tick,
    /// An administrator's command.
    Command {
        /// The shell's handle.
        id: CommandId,
        /// The command.
        command: Command,
    },
    /// The `fence-peer` handler that [`Effect::FencePeer`] asked for ended. Reported once for each call.
    PeerFenced {
        /// Whom it was about.
        peer: NodeId,
        /// Which call.
        id: FenceId,
        /// What it says.
        answer: FenceAnswer,
    },
    /// The handler that [`Effect::AskHandler`] asked for ended. Reported once for each call.
    HandlerAnswered {
        /// Which call.
        id: HandlerId,
        /// Its exit code; `None` if it did not end by itself.
        exit_code: Option<i32>,
    },
    /// The number of clients that have the volume open changed.
    Openers {
        /// Which volume.
        volume: VolumeNumber,
        /// How many now.
        count: u32,
    },
}

/// What the engine wants done.
#[derive(Clone, Debug)]
pub enum Effect<P> {
    /// Read from the backing disk (offsets are relative to the data area); answer with [`Event::DiskDone`].
    Read {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
        /// Where.
        range: ByteRange,
    },
    /// Write to the backing disk.
    Write {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
        /// Where.
        range: ByteRange,
        /// The bytes.
        payload: P,
        /// The answer says that it is durable, as if a flush had followed.
        durable: bool,
    },
    /// Discard on the backing disk. The shell makes the range read as zeroes.
    Discard {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
        /// Where.
        range: ByteRange,
    },
    /// Write zeroes to the backing disk.
    WriteZeroes {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
        /// Where.
        range: ByteRange,
        /// The space may be given back.
        may_unmap: bool,
    },
    /// Make everything whose completion was reported durable on the data device.
    Flush {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
    },
    /// Write metadata; `offset` is absolute on the metadata device. Answer with [`Event::MetadataDone`].
    MetadataWrite {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
        /// Byte offset on the metadata device, a multiple of 4096.
        offset: u64,
        /// The bytes, a multiple of 4096.
        bytes: Vec<u8>,
    },
    /// Make metadata writes whose completion was reported durable (and, on internal metadata, the data with it).
    MetadataFlush {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
    },
    /// Ask the operating system how large the disks are now, and let operations go that far. Answer with [`Event::DiskMeasured`].
    MeasureDisk {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
    },
    /// Remember durably, outside of the disk, by what its metadata are found from now on, also when the device grows while nobody
    /// looks. Answer with [`Event::DiskRemembered`].
    RememberDisk {
        /// Which volume.
        volume: VolumeNumber,
        /// The engine's handle.
        io: IoId,
        /// What to remember, in place of what was remembered before.
        known: KnownDevice,
    },
    /// Send a message on its lane.
    Send {
        /// To whom.
        peer: NodeId,
        /// On which session.
        session: SessionId,
        /// The message; [`Message::lane`] tells the lane.
        message: Message<P>,
        /// Nobody waits for it, and more follows on the data lane: it may be kept, in its order, until the next one there without this
        /// mark, or until [`Effect::Push`].
        more: bool,
    },
    /// What was sent with the mark `more`, on the data lane, leaves now.
    Push {
        /// To whom.
        peer: NodeId,
        /// On which session.
        session: SessionId,
    },
    /// Somebody waits for a peer that may be dead: have its machine asked whether anybody listens at its address, if there is a way
    /// to, and tell if it says no ([`Event::NobodyListens`]).
    Probe {
        /// Whom.
        peer: NodeId,
        /// On which session it is waited for.
        session: SessionId,
    },
    /// Close a session after what was sent on it was flushed (at most a second); [`Event::PeerLost`] follows.
    CloseSession {
        /// Whom.
        peer: NodeId,
        /// Which session.
        session: SessionId,
    },
    /// Try to reach the peer (and accept its calls) until [`Effect::StopConnecting`].
    StartConnecting {
        /// Whom.
        peer: NodeId,
    },
    /// Neither call nor accept the peer.
    StopConnecting {
        /// Whom.
        peer: NodeId,
    },
    /// A client's request is done.
    Complete {
        /// Which request.
        id: RequestId,
        /// Reads carry the bytes.
        result: Result<Option<P>, ClientError>,
    },
    /// A command is done.
    CommandDone {
        /// Which command.
        id: CommandId,
        /// How it ended.
        result: Result<(), Refusal>,
    },
    /// The backing disk is not used any more; no operation is outstanding that matters.
    Detached {
        /// Which volume.
        volume: VolumeNumber,
    },
    /// Call the configured handler, e.g. `split-brain`, `local-io-error`.
    Handler {
        /// DRBD's name of the handler.
        name: &'static str,
        /// For which peer, where it concerns one.
        peer: Option<NodeId>,
        /// For which volume, where it concerns one.
        volume: Option<VolumeNumber>,
    },
    /// Call the handler, which the configuration of the peer says there is; answer with [`Event::HandlerAnswered`].
    AskHandler {
        /// The engine's handle.
        id: HandlerId,
        /// DRBD's name of the handler.
        name: &'static str,
        /// For which peer.
        peer: NodeId,
        /// For which volume.
        volume: VolumeNumber,
    },
    /// Have the peer fenced (handler `fence-peer`); answer with [`Event::PeerFenced`], also if there is no handler.
    FencePeer {
        /// Whom.
        peer: NodeId,
        /// The engine's handle.
        id: FenceId,
    },
    /// A state changed or a decision was taken; for the log, `status` and tests.
    Notice(Notice),
}

/// A state change or decision, with the rule that caused it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The local role changed.
    Role {
        /// Before.
        from: Role,
        /// Now.
        to: Role,
        /// Why.
        rule: &'static str,
    },
    /// The local disk state changed.
    Disk {
        /// Which volume.
        volume: VolumeNumber,
        /// Before.
        from: DiskState,
        /// Now.
        to: DiskState,
        /// Why.
        rule: &'static str,
    },
    /// A connection state changed.
    Connection {
        /// Toward whom.
        peer: NodeId,
        /// Before.
        from: ConnectionState,
        /// Now.
        to: ConnectionState,
        /// Why.
        rule: &'static str,
    },
    /// A replication state changed.
    Replication {
        /// Toward whom.
        peer: NodeId,
        /// Which volume.
        volume: VolumeNumber,
        /// Before.
        from: ReplicationState,
        /// Now.
        to: ReplicationState,
        /// Why.
        rule: &'static str,
    },
    /// A decision worth a line in the log.
    Decision {
        /// Concerning whom.
        peer: Option<NodeId>,
        /// Concerning which volume.
        volume: Option<VolumeNumber>,
        /// The rule's name.
        rule: &'static str,
        /// What it means, with figures, for a person.
        text: String,
    },
}
