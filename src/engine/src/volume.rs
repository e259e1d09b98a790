//! One volume on this node: its disk state, its backing metadata, and everything that waits on them.
//!
//! Owns the disk state, the overlap order, the queue of held requests, the group commit of local flushes, and the continuations that
//! wait for durable metadata. Decides nothing about peers.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use crate::activity_log::ActivityLog;
use crate::api::CommandId;
use crate::bitmap::Bitmap;
use crate::commands::Resize;
use crate::config::VolumeConfig;
use crate::generation::Identifiers;
use crate::interval::Intervals;
use crate::metadata::METADATA_BLOCK_BYTES;
use crate::metadata::layout::{Layout, Placement};
use crate::metadata::ring::RingWriter;
use crate::metadata::superblock::Superblock;
use crate::metadata_writer::MetadataWriter;
use crate::request::FlushRhythm;
use crate::state::DiskState;
use crate::units::{ByteRange, Generation, NodeId, VolumeNumber};

/// Who owns an entry of the overlap order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// A client's request.
    Request(usize),
    /// An operation received from a peer.
    Received { peer: usize, key: usize },
    /// A resync operation of this node as source.
    ResyncRead { peer: usize, id: u64 },
    /// A resync operation of this node as target.
    ResyncWrite { peer: usize, key: usize },
}

/// What happens when metadata of a version is durable.
#[derive(Clone, Debug)]
pub(crate) enum After {
    /// Look at every open request of the volume again.
    Requests,
    /// In sync: tell the peer that mirrored writes are welcome.
    Ready { peer: usize },
    /// Source: the OR-ed bitmap is durable, send it.
    SourceBitmap { peer: usize },
    /// Target: the OR-ed bitmap is durable, adopt the source's generation.
    TargetBitmap {
        peer: usize,
        current: Generation,
        history: Vec<Generation>,
    },
    /// Target: Inconsistent under the new generation, let the resync begin.
    TargetAdopted { peer: usize },
    /// Target: UpToDate.
    TargetFinished { peer: usize },
    /// The role change is durable on this volume.
    RoleChange,
    /// The detach is durable.
    Detach,
    /// The command is done.
    Command(CommandId),
    /// The initial sync is skipped durably, on the peer's request.
    SkippedForPeer { peer: usize, current: Generation },
    /// Misses of the peer's disk are tracked durably.
    MissesTracked { peer: usize },
    /// The bits of the space that a resize adds are durable: the superblock may say that it is there.
    ResizeMarked { attempt: u64 },
    /// The new size is durable.
    Resized { attempt: u64 },
    /// Invalidated: shake hands again.
    Invalidated {
        peer: usize,
        command: Option<CommandId>,
    },
}

/// A continuation.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub superblock: u64,
    pub bitmap: u64,
    /// The peer whose session it belongs to, where it belongs to one: it dies with the session.
    pub peer: Option<usize>,
    pub then: After,
}

/// An operation that waits for activity-log extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogWaiter {
    pub owner: Owner,
    pub range: ByteRange,
}

/// Local flushes: one runs, the next one gathers everybody whom it does not cover.
#[derive(Debug, Default)]
pub(crate) struct FlushGroup {
    pub running: bool,
    pub served: Vec<usize>,
    pub gathering: Vec<usize>,
    /// Nothing that changes data ended at the disk since a flush began that is running or succeeded.
    pub covers_all: bool,
    pub rhythm: FlushRhythm,
}

/// The attached disk.
#[derive(Debug)]
pub(crate) struct Backing {
    pub layout: Layout,
    pub superblock: Superblock,
    /// By slot number.
    pub bitmaps: Vec<Bitmap>,
    pub log: ActivityLog,
    pub ring: RingWriter,
    pub writer: MetadataWriter,
    /// This node was Primary when it went down; cleared once both nodes are known to be equal.
    pub crashed_primary: bool,
    /// Version of the superblock that every completion to a client waits for (W8).
    pub completion_gate: u64,
}

impl Backing {
    /// The generations as a value that knows the rules of rotation.
    pub fn identifiers(&self) -> Identifiers {
        let slots = self
            .superblock
            .peers
            .iter()
            .filter_map(|peer| Some((peer.node_id?, peer.bitmap)));
        Identifiers::from_parts(
            self.superblock.current,
            slots,
            self.superblock.history.iter().copied(),
        )
    }

    /// Puts rotated generations into the superblock (in memory).
    pub fn set_identifiers(&mut self, identifiers: &Identifiers) {
        self.superblock.current = identifiers.current();
        self.superblock.history = identifiers.history().to_vec();
        for peer in &mut self.superblock.peers {
            peer.bitmap = peer
                .node_id
                .map_or(Generation::NONE, |node| identifiers.slot(node));
        }
    }

    /// Starts to move the metadata where another layout has them. What changes meanwhile is written afterwards, in the new place.
    pub fn start_move(&mut self, new: &Layout) {
        let mut ring = vec![0; new.ring_blocks as usize * METADATA_BLOCK_BYTES as usize];
        if new.placement == Placement::Internal {
            // Transactions without updates: together they say what the log holds.
            for _ in 0..new.ring_blocks {
                let (index, block) = self.ring.transaction(&[], self.log.slots());
                let at = index as usize * block.len();
                ring[at..at + block.len()].copy_from_slice(&block);
            }
        }
        self.superblock.device_bytes = new.device_bytes;
        self.superblock.sequence += 1;
        let block = self.superblock.encode();
        let old = self.layout;
        self.writer.start_move(&old, new, &block, ring);
    }

    /// Slot of the peer.
    pub fn slot(&self, node: NodeId) -> Option<usize> {
        self.superblock.slot_of(node)
    }

    /// Bits set toward the peer.
    pub fn bits(&self, node: NodeId) -> u64 {
        self.slot(node).map_or(0, |slot| self.bitmaps[slot].count())
    }

    /// Marks a range out of sync toward the peer.
    pub fn mark(&mut self, node: NodeId, range: ByteRange) {
        if let Some(slot) = self.slot(node) {
            self.bitmaps[slot].set(range.blocks_touched());
        }
    }

    /// The peer's bitmap generation, [`Generation::NONE`] without a slot.
    pub fn bitmap_generation(&self, node: NodeId) -> Generation {
        self.superblock
            .peer(node)
            .map_or(Generation::NONE, |peer| peer.bitmap)
    }
}

/// One volume.
#[derive(Debug)]
pub(crate) struct Volume {
    pub number: VolumeNumber,
    pub config: VolumeConfig,
    pub disk: DiskState,
    pub backing: Option<Backing>,
    /// The metadata of the disk cannot be written any more.
    pub metadata_failed: bool,
    /// Counts attachments, so that an answer for an earlier disk is recognised.
    pub attachment: u32,
    /// Operations under way on the backing disk.
    pub outstanding: u32,
    /// Size that clients see, in bytes; kept over a detach.
    pub size: u64,
    pub intervals: Intervals<Owner>,
    /// Requests that may not start yet, in order.
    pub held: VecDeque<usize>,
    /// Writes that passed the activity log while a handshake began: submitted when it is over.
    pub parked: VecDeque<usize>,
    /// Reads and flushes that wait for a handshake, because only a peer may have the data.
    pub held_for_data: VecDeque<usize>,
    pub log_waiters: VecDeque<LogWaiter>,
    /// The activity log has no slot for those that wait; until it has, no write overtakes them.
    pub log_starving: bool,
    pub flush: FlushGroup,
    pub waiters: Vec<Waiter>,
    pub openers: u32,
    /// The administrator's detach under way.
    pub detaching: Option<CommandId>,
    /// The disk was attached on a standing connection; it is Negotiating until the handshake, and this is the state that its metadata
    /// claim.
    pub attached_anew: Option<DiskState>,
    /// A new generation waits until frozen I/O goes on.
    pub generation_due: bool,
    /// Fencing is wanted, and the disk was not compared with a peer's since it was attached: newer data may exist.
    pub unconfirmed: bool,
    /// Generation of the data that a Primary without a disk serves from its peer.
    pub exposed: Generation,
    /// This node is Primary and there are no good data within reach.
    pub lacks_good_data: bool,
    /// Completed writes may be gone that no flush had made durable: flushes under way and the next one fail.
    pub unflushed_lost: bool,
    /// The event in which the disk failed, if it did with completed writes that no flush had made durable.
    pub failed_unflushed: Option<u64>,
    /// Tells one life of the disk's volatile cache from the next, see [`crate::wire::VolumeHello::cache`].
    pub cache: u64,
    /// A resize under way, for the administrator or for a peer.
    pub resize: Option<Resize>,
}

impl Volume {
    pub fn new(config: VolumeConfig, boot: u64) -> Self {
        Volume {
            number: config.number,
            config,
            disk: DiskState::Diskless,
            backing: None,
            metadata_failed: false,
            attachment: 0,
            outstanding: 0,
            size: 0,
            intervals: Intervals::default(),
            held: VecDeque::new(),
            parked: VecDeque::new(),
            held_for_data: VecDeque::new(),
            log_waiters: VecDeque::new(),
            log_starving: false,
            flush: FlushGroup::default(),
            waiters: Vec::new(),
            openers: 0,
            detaching: None,
            attached_anew: None,
            generation_due: false,
            unconfirmed: false,
            exposed: Generation::NONE,
            lacks_good_data: false,
            unflushed_lost: false,
            failed_unflushed: None,
            cache: boot,
            resize: None,
        }
    }

    /// Generation of the data on the attached disk.
    pub fn current(&self) -> Option<Generation> {
        let backing = self.backing.as_ref();
        backing.map(|backing| backing.superblock.current)
    }

    /// True if the local disk takes data I/O.
    pub fn usable(&self) -> bool {
        self.disk.has_data() && self.backing.is_some()
    }

    /// True while the end of a resync to this disk is being written down. Its data are whole, whatever becomes of the connection.
    pub fn is_finishing_resync(&self) -> bool {
        self.waiters
            .iter()
            .any(|waiter| matches!(waiter.then, After::TargetFinished { .. }))
    }

    /// Superblock changed in memory: version that must become durable; 0 without a disk.
    pub fn want_superblock(&mut self) -> u64 {
        self.backing
            .as_mut()
            .map_or(0, |backing| backing.writer.want_superblock())
    }

    /// Waits for durable metadata.
    pub fn after(&mut self, superblock: u64, bitmap: u64, peer: Option<usize>, then: After) {
        self.waiters.push(Waiter {
            superblock,
            bitmap,
            peer,
            then,
        });
    }
}
