//! What this node knows of one peer: the connection, the handshake, both directions of the data lane, and one [`PeerDevice`] for
//! each volume. Data only; the rules are in `handshake`, `mirror`, `resync` and `request`.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::Range;

use slab::Slab;

use crate::api::SessionId;
use crate::config::PeerConfig;
use crate::fencing::Fence;
use crate::gathering::Gathered;
use crate::interval::IntervalId;
use crate::receiver::{Received, Receiver};
use crate::reports::Reports;
use crate::resync::Asked;
use crate::state::{ConnectionState, DiskState, ReplicationState, Role};
use crate::transfer_log::TransferLog;
use crate::units::{ByteRange, Generation, Time};
use crate::wire::message::Protocol;
use crate::wire::{Hello, VolumeHello};

/// A received operation that has not ended.
#[derive(Debug)]
pub(crate) struct ReceivedOperation<P> {
    pub operation: Received<P>,
    /// It must be durable when it ends.
    pub durable: bool,
    pub lock: Option<IntervalId>,
    /// It holds references on activity-log extents (this node tracks what the Primary's disk misses).
    pub logged: bool,
    /// The session it came on; an answer is sent only on the same.
    pub session: Option<SessionId>,
}

/// A resync operation at the source.
#[derive(Debug)]
pub(crate) struct SourceOperation {
    pub range: ByteRange,
    pub blocks: Range<u64>,
    pub lock: IntervalId,
    pub sent: bool,
}

/// A question whether the peer is alive, without an answer yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ping {
    /// The connection ends then.
    pub deadline: Time,
    /// The peer's machine is asked, too.
    pub probed: bool,
}

/// Resync of one volume, this node is the source.
#[derive(Debug, Default)]
pub(crate) struct ResyncSource {
    /// Next block to look at.
    pub cursor: u64,
    pub next_id: u64,
    pub operations: BTreeMap<u64, SourceOperation>,
    pub in_flight_bytes: u64,
    /// Written by the target, not known to be durable there.
    pub unflushed: Vec<Range<u64>>,
    pub unflushed_bytes: u64,
    /// The flush under way at the target and what it covers.
    pub flushing: Option<(u64, Vec<Range<u64>>)>,
    pub finishing: bool,
    /// The target put blocks off since the cursor was at the beginning.
    pub put_off: bool,
    /// When what was put off is sent again, while that is waited for.
    pub resume_at: Option<Time>,
    /// How long was waited the last time, in milliseconds.
    pub patience: u64,
    pub progress: Progress,
}

/// Figures of a resync for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks that were to be copied at the start.
    pub total_blocks: u64,
    /// When it began.
    pub started: Time,
    /// Blocks copied.
    pub copied_blocks: u64,
}

/// A resync write at the target.
#[derive(Debug)]
pub(crate) struct TargetOperation<P> {
    pub id: u64,
    /// Place in the order of arrival.
    pub arrival: u64,
    pub volume: usize,
    pub range: ByteRange,
    /// `None`: zeroes.
    pub payload: Option<P>,
    pub lock: IntervalId,
    pub session: SessionId,
    pub started: bool,
}

/// Resync of one volume, this node is the target.
#[derive(Debug, Default)]
pub(crate) struct ResyncTarget {
    /// Operations received and not ended, by their place in the order of arrival.
    pub pending: BTreeSet<u64>,
    /// Operations received.
    pub arrivals: u64,
    /// Blocks written since the last flush.
    pub written: Vec<Range<u64>>,
    /// A flush the source asked for, with the last arrival it covers.
    pub flush_wanted: Option<(u64, u64)>,
    /// The local flush that runs for it, with the blocks it covers.
    pub flushing: Option<(u64, Vec<Range<u64>>)>,
    pub finishing: bool,
    pub progress: Progress,
}

/// One volume on one connection.
#[derive(Debug)]
pub(crate) struct PeerDevice {
    pub replication: ReplicationState,
    /// The peer's disk.
    pub disk: DiskState,
    pub round: u32,
    /// What this node said in this round.
    pub mine: Option<VolumeHello>,
    /// What the peer said in this round.
    pub theirs: Option<VolumeHello>,
    /// A question for another round that came while a role change or a new generation was being written down.
    pub postponed: Option<VolumeHello>,
    /// The peer's disk as it said after that question.
    pub told_since: Option<DiskState>,
    /// Another round is to be asked for once the peer has written everything that it was sent (a Primary's disk came back).
    pub round_wanted: bool,
    /// Last number of a resync operation on this session; numbers run on over several resyncs.
    pub last_resync_id: u64,
    /// The block from which on this node's bitmap is still to be sent, while it is being sent.
    pub bitmap_rest: Option<u64>,
    /// Source: a resync was stopped before its end, and the target was not told where its data end.
    pub stopped_resync: bool,
    /// Target: data of a resync that was stopped may still be on their way.
    pub resync_ending: bool,
    /// This node takes mirrored writes from the peer.
    pub accepts: bool,
    /// The peer takes mirrored writes from this node.
    pub peer_accepts: bool,
    /// New writes wait until the handshake is through.
    pub hold: bool,
    pub paused_here: bool,
    pub paused_there: bool,
    pub source: Option<Box<ResyncSource>>,
    pub target: Option<Box<ResyncTarget>>,
    /// The generation in which both were last known to be connected by this very process, under the protocol that is configured.
    pub contact: Option<Generation>,
    /// The event in which the connection ended, if clients had been told of writes by then that the peer had, and not durably.
    pub unflushed: Option<u64>,
    /// The peer came back without the cache that had them: until a resync they are certain on this node's disk alone.
    pub cache_lost: bool,
    /// The life of the peer's cache that this node was connected to last.
    pub cache: Option<u64>,
    /// The peer was told that its initial sync is skipped: it becomes UpToDate, whether or not it still says so on this connection.
    pub told_to_skip: bool,
    /// The peer is Primary without a disk: its disk misses what is written here, and that is tracked.
    pub tracks_misses: bool,
    /// The peer tracks what this node's lost disk misses.
    pub misses_tracked: bool,
    /// The peer was told of this node's lost disk and has not answered.
    pub loss_told: bool,
    /// The generation that this node named to the peer for what its own lost disk misses.
    pub named: Generation,
    /// The generation that the peer named for what its lost disk misses.
    pub named_there: Generation,
    /// This node is to give its data up for the peer's.
    pub invalidation: Option<Invalidation>,
    /// The peer asked for it, and not this node's administrator.
    pub invalidation_wanted_there: bool,
    /// A handler of this node is asked before a resync.
    pub asked: Option<Box<Asked>>,
    /// A handler of the peer is asked, until then at most.
    pub waits_until: Option<Time>,
}

impl PeerDevice {
    pub fn new() -> Self {
        PeerDevice {
            replication: ReplicationState::Off,
            disk: DiskState::DUnknown,
            round: 0,
            mine: None,
            theirs: None,
            postponed: None,
            told_since: None,
            round_wanted: false,
            last_resync_id: 0,
            bitmap_rest: None,
            stopped_resync: false,
            resync_ending: false,
            accepts: false,
            peer_accepts: false,
            hold: false,
            paused_here: false,
            paused_there: false,
            source: None,
            target: None,
            contact: None,
            unflushed: None,
            cache_lost: false,
            cache: None,
            told_to_skip: false,
            tracks_misses: false,
            misses_tracked: false,
            loss_told: false,
            named: Generation::NONE,
            named_there: Generation::NONE,
            invalidation: None,
            invalidation_wanted_there: false,
            asked: None,
            waits_until: None,
        }
    }

    /// The peer takes this node's writes from now on. If it has a disk, what it was told of on earlier connections is durable there, or
    /// it is the target of a resync with all of that.
    pub fn takes_writes(&mut self) {
        self.peer_accepts = true;
        if self.disk.has_data() {
            self.unflushed = None;
            self.cache_lost = false;
        }
    }

    /// True if this node said something in a handshake and the peer has not answered yet.
    pub fn awaits_answer(&self) -> bool {
        self.mine.is_some() && self.theirs.is_none()
    }

    /// True while a handler, here or there, is asked before a resync.
    pub fn waits_for_handler(&self, now: Time) -> bool {
        self.asked.is_some() || self.waits_until.is_some_and(|until| now < until)
    }

    /// True if this node's application writes go to the peer.
    pub fn mirrors(&self) -> bool {
        self.peer_accepts && self.replication.mirrors() && self.disk.has_data()
    }
}

/// How far a node is that wants to give its data up for its peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Invalidation {
    /// The peer was asked whether its own are good.
    Asked,
    /// It was, and then this node gave its own word: whatever the answer is, it comes too late.
    Void,
    /// They are, said in the event with this number.
    Granted(u64),
    /// They are not, or the peer gives them up itself; said in the event with this number.
    Refused(u64),
}

/// A promotion that asks the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    Asked(u64),
    Granted,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer<P> {
    pub config: PeerConfig,
    pub connection: ConnectionState,
    pub session: Option<SessionId>,
    pub role: Role,
    pub discard_my_data: bool,
    pub fence: Fence,
    /// The peer was asked to be Outdated before the two part.
    pub outdate_asked: bool,
    pub hello_sent: Option<Hello>,
    pub hello_received: Option<Hello>,
    pub handshake_deadline: Option<Time>,
    /// When a volume must have left the states between two others.
    pub settle_deadline: Option<Time>,
    pub devices: Vec<PeerDevice>,
    pub log: TransferLog,
    pub receiver: Receiver<P>,
    /// The session whose operations the receiver holds; it may outlive the session itself.
    pub receiver_session: Option<SessionId>,
    /// The protocol of that session: what a receipt promised is decided by it, whatever is configured by now.
    pub receiver_protocol: Protocol,
    pub received: Slab<ReceivedOperation<P>>,
    pub resync_writes: Slab<TargetOperation<P>>,
    /// Parts of bitmaps that were sent and not taken up, of all volumes.
    pub bitmap_parts: usize,
    pub reports: Reports,
    /// Writes and barriers that the shell keeps for more of their kind.
    pub gathered: Gathered,
    /// Requests that wait for an epoch to be durable at the peer: (request, epoch).
    pub barrier_waiters: Vec<(usize, u64)>,
    pub last_heard: Time,
    /// Number of the event that brought the peer's last frame.
    pub heard_in: u64,
    pub last_sent: Time,
    /// When its machine was asked last whether anybody listens there.
    pub last_probed: Time,
    pub ping: Option<Ping>,
    /// The oldest unwritten operation and since when it has been the oldest.
    pub stalled: Option<(u64, Time)>,
    /// When an open epoch is closed for lack of activity.
    pub idle_barrier: Option<Time>,
    pub vote: Option<Vote>,
    /// This node granted the peer's promotion.
    pub granted: Option<Time>,
    /// The connection was ended in order to shake hands again, which is to be over by then.
    pub returns_by: Option<Time>,
    /// Remote reads under way: question → request.
    pub reads: BTreeMap<u64, usize>,
    /// Bytes that they ask for.
    pub read_bytes: u64,
    /// Requests that are read from the peer when others were answered.
    pub waiting_reads: VecDeque<usize>,
    /// StandAlone was asked for while the goodbye is still on its way.
    pub disconnecting: Option<crate::api::CommandId>,
}

impl<P> Peer<P> {
    pub fn new(config: PeerConfig, volumes: usize) -> Self {
        Peer {
            connection: ConnectionState::StandAlone,
            session: None,
            role: Role::Unknown,
            discard_my_data: false,
            fence: Fence::default(),
            outdate_asked: false,
            hello_sent: None,
            hello_received: None,
            handshake_deadline: None,
            settle_deadline: None,
            devices: (0..volumes).map(|_| PeerDevice::new()).collect(),
            log: TransferLog::new(),
            receiver: Receiver::new(),
            receiver_session: None,
            receiver_protocol: config.protocol,
            config,
            received: Slab::new(),
            resync_writes: Slab::new(),
            bitmap_parts: 0,
            reports: Reports::default(),
            gathered: Gathered::default(),
            barrier_waiters: Vec::new(),
            last_heard: Time(0),
            heard_in: 0,
            last_sent: Time(0),
            last_probed: Time(0),
            ping: None,
            stalled: None,
            idle_barrier: None,
            vote: None,
            granted: None,
            returns_by: None,
            reads: BTreeMap::new(),
            read_bytes: 0,
            waiting_reads: VecDeque::new(),
            disconnecting: None,
        }
    }

    /// True while a handshake is under way.
    pub fn shaking_hands(&self) -> bool {
        self.session.is_some() && self.connection != ConnectionState::Connected
    }

    /// True if nothing of an earlier session is still on its way to the disk.
    pub fn drained(&self) -> bool {
        self.received.is_empty() && self.receiver.buffered() == 0 && self.resync_writes.is_empty()
    }
}
