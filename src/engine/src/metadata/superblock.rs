//! The superblock: identity, generations, flags and geometry of one volume, 4 KiB, kept twice.
//!
//! Owns the bytes of one copy; the judgement over several copies is [`super::copies`].
//!
//! Update rule (crash order), which every shell follows:
//! 1. raise `sequence` by one, encode;
//! 2. write copy A, flush: the update is durable from here on;
//! 3. write copy B, flush, before step 2 of the next update.
//!
//! So at any instant one copy is whole and no older than the last update that was called durable. After a crash between
//! steps 2 and 3 the copies differ: [`super::copies::Chosen::stale`] names the copy that the next update writes in step 2, and
//! the other one takes its place in step 3.
//!
//! Invariants: integers are little-endian; bytes without meaning are zero and are refused otherwise; the first 32 bytes keep
//! their place in every format version. Byte-level description: `docs/metadata-format.md`.

use alloc::vec::Vec;
use core::fmt;

use super::bytes::{checksum, first_not_zero, get_u32, get_u64, put_u32, put_u64};
use super::{METADATA_BLOCK_BYTES, MetadataBlock};
use crate::limits::{HISTORY_LENGTH, MAX_DEVICE_BYTES, MAX_NODES, MAX_PEERS};
use crate::units::{BLOCK_BYTES, Generation, NodeId};

/// First eight bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"QRBDMETA";
/// Format version that this release writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Highest sequence: far from reach, and far from overflow.
pub const MAX_SEQUENCE: u64 = 1 << 62;

const AT_MAGIC: usize = 0;
const AT_VERSION: usize = AT_MAGIC + 8;
const AT_CRC: usize = AT_VERSION + 4;
const AT_SEQUENCE: usize = AT_CRC + 4;
const AT_DEVICE_UUID: usize = AT_SEQUENCE + 8;
const AT_DEVICE_BYTES: usize = AT_DEVICE_UUID + 8;
const AT_EFFECTIVE_BYTES: usize = AT_DEVICE_BYTES + 8;
const AT_CURRENT: usize = AT_EFFECTIVE_BYTES + 8;
const AT_BIT_BYTES: usize = AT_CURRENT + 8;
const AT_FLAGS: usize = AT_BIT_BYTES + 4;
const AT_RING_BLOCKS: usize = AT_FLAGS + 4;
const AT_AL_SLOTS: usize = AT_RING_BLOCKS + 4;
const AT_NODE_ID: usize = AT_AL_SLOTS + 4;
const AT_MAX_PEERS: usize = AT_NODE_ID + 1;
const AT_HISTORY_COUNT: usize = AT_MAX_PEERS + 1;
const AT_RESERVED: usize = AT_HISTORY_COUNT + 1;
const AT_HISTORY: usize = 128;
const AT_PEERS: usize = AT_HISTORY + 8 * HISTORY_LENGTH;
const PEER_BYTES: usize = 32;
const AT_END: usize = AT_PEERS + PEER_BYTES * MAX_PEERS;

const PEER_NODE_ID: usize = 0;
const PEER_FLAGS: usize = 4;
const PEER_BITMAP: usize = 8;
const PEER_RESERVED: usize = 16;

const NO_NODE: u8 = 0xFF;

const _: () = assert!(
    AT_DEVICE_BYTES == 32,
    "the part common to all versions is 32 bytes"
);
const _: () = assert!(AT_RESERVED == 75 && AT_RESERVED <= AT_HISTORY);
const _: () = assert!(AT_PEERS == 384 && AT_END == 1376 && AT_END <= METADATA_BLOCK_BYTES as usize);
const _: () = assert!(HISTORY_LENGTH <= u8::MAX as usize && MAX_NODES < NO_NODE as usize);

/// Defines a struct of booleans with its bits on disk.
macro_rules! flag_set {
    ($(#[$meta:meta])* $name:ident { $($(#[$flag_meta:meta])* $flag:ident = $bit:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $name { $($(#[$flag_meta])* pub $flag: bool,)* }

        impl $name {
            const KNOWN: u32 = $(1 << $bit)|*;
            /// Names of the flags, in the order of their bits.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($flag)),*];

            /// The bits as stored on disk.
            #[must_use]
            pub fn bits(self) -> u32 {
                $(u32::from(self.$flag) << $bit)|*
            }
            /// The flags of `bits`; `None` if a bit has no meaning.
            #[must_use]
            pub fn from_bits(bits: u32) -> Option<Self> {
                (bits & !Self::KNOWN == 0).then_some($name { $($flag: bits >> $bit & 1 != 0,)* })
            }
            /// Values of the flags, in the order of [`Self::NAMES`].
            #[must_use]
            pub fn values(self) -> Vec<bool> {
                [$(self.$flag),*].to_vec()
            }
        }
    };
}

flag_set! {
    /// Flags of the volume.
    Flags {
        /// The data is consistent (disk state at least Outdated).
        consistent = 0,
        /// This node is Primary, or a peer is Primary and writes here.
        primary_indicator = 1,
        /// The disk was UpToDate.
        was_up_to_date = 4,
        /// Written while Primary; stays set over a crash until a graceful demotion.
        crashed_primary = 6,
        /// The activity log needs no replay: every difference is in the bitmap.
        al_clean = 7,
        /// The activity log is not kept; a crash of a Primary needs a full resync.
        al_disabled = 8,
        /// Primary without quorum when this was written.
        primary_lost_quorum = 9,
        /// Had quorum when this was written.
        have_quorum = 10,
        /// Target of a resync that is not finished; the disk is Inconsistent.
        sync_target = 11,
        /// The data were declared bad; the next resync with this node is a full one with this node as target.
        invalidated = 12,
    }
}

flag_set! {
    /// Flags of one peer.
    PeerFlags {
        /// The peer was connected.
        connected = 0,
        /// The peer's disk is known to be Outdated or worse.
        outdated = 1,
        /// Fencing is configured for this peer.
        fencing = 2,
        /// A full resync with this peer is ordered.
        full_sync = 3,
        /// The peer's disk was seen once.
        device_seen = 4,
        /// The disk was given back in good order, everything on it durable, by a process that had been in contact with the peer in this
        /// very generation, under protocol C.
        left_in_contact = 5,
    }
}

/// What the volume knows about one peer; its index is the number of the bitmap slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerSlot {
    /// The peer that owns the slot; `None` for a free slot.
    pub node_id: Option<NodeId>,
    /// Generation that the peer had when differences to it began to be tracked; [`Generation::NONE`] when nothing is tracked.
    pub bitmap: Generation,
    /// Flags of the peer.
    pub flags: PeerFlags,
}

/// The superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Number of the update, 1..=[`MAX_SEQUENCE`]; the copy with the highest one counts.
    pub sequence: u64,
    /// Random identity of this metadata, made at creation, never changed.
    pub device_uuid: u64,
    /// Size of the backing device at creation, in bytes.
    pub device_bytes: u64,
    /// Size last agreed with a peer, in bytes; 0 if never.
    pub effective_bytes: u64,
    /// This node.
    pub node_id: NodeId,
    /// Number of bitmap slots.
    pub max_peers: u8,
    /// Current generation.
    pub current: Generation,
    /// Older generations, newest first, at most [`HISTORY_LENGTH`].
    pub history: Vec<Generation>,
    /// Flags of the volume.
    pub flags: Flags,
    /// One entry per bitmap slot, `max_peers` of them.
    pub peers: Vec<PeerSlot>,
    /// Bytes that one bit of the bitmap stands for.
    pub bit_bytes: u32,
    /// Blocks of the activity-log ring.
    pub al_ring_blocks: u32,
    /// Slots of the activity log that the ring describes (`al-extents`).
    pub al_slots: u32,
}

/// No bitmap slot is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoFreeSlot {
    /// The peer that needs one.
    pub node_id: NodeId,
    /// Number of slots.
    pub max_peers: u8,
}

impl fmt::Display for NoFreeSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no free bitmap slot for peer {}: all {} are in use; forget-peer frees one, create-md --max-peers makes more",
            self.node_id, self.max_peers
        )
    }
}

impl core::error::Error for NoFreeSlot {}

/// Why one copy is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuperblockError {
    /// Not 4096 bytes.
    Length {
        /// Bytes given.
        bytes: usize,
    },
    /// The device could not read it.
    Unreadable,
    /// Only zero bytes: nothing was ever written here.
    Blank,
    /// Neither this format's magic nor DRBD's.
    NoMagic,
    /// Metadata of DRBD.
    Drbd {
        /// The format's name: `v07`, `v08` or `v09`.
        format: &'static str,
    },
    /// Checksum mismatch: torn or damaged.
    Checksum {
        /// The checksum stored.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// Whole, but of a version that this release does not know.
    Version {
        /// The version stored.
        version: u32,
        /// The number of the update.
        sequence: u64,
    },
    /// Whole, but a field has a value that it cannot have.
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SuperblockError::Length { bytes } => {
                write!(
                    f,
                    "superblock of {bytes} bytes instead of {METADATA_BLOCK_BYTES}"
                )
            }
            SuperblockError::Unreadable => f.write_str("cannot be read"),
            SuperblockError::Blank => f.write_str("blank"),
            SuperblockError::NoMagic => f.write_str("field magic: not metadata"),
            SuperblockError::Drbd { format } => {
                write!(f, "field magic: this is DRBD {format} metadata")
            }
            SuperblockError::Checksum { stored, computed } => {
                write!(
                    f,
                    "field checksum: {stored:#010x} stored, {computed:#010x} computed"
                )
            }
            SuperblockError::Version { version, .. } => {
                write!(
                    f,
                    "field version: {version}, this release reads up to {FORMAT_VERSION}"
                )
            }
            SuperblockError::Field { field, value } => {
                write!(f, "field {field}: impossible value {value:#x}")
            }
        }
    }
}

impl core::error::Error for SuperblockError {}

fn field(field: &'static str, value: impl Into<u64>) -> SuperblockError {
    SuperblockError::Field {
        field,
        value: value.into(),
    }
}

impl Superblock {
    /// The 4 KiB of one copy. Panics if a field is outside the format (a bug of the caller).
    #[must_use]
    pub fn encode(&self) -> MetadataBlock {
        assert!(
            self.history.len() <= HISTORY_LENGTH,
            "{} history entries",
            self.history.len()
        );
        assert_eq!(
            self.peers.len(),
            usize::from(self.max_peers),
            "one peer slot per bitmap slot"
        );
        let mut block = [0; METADATA_BLOCK_BYTES as usize];
        block[AT_MAGIC..AT_VERSION].copy_from_slice(&MAGIC);
        put_u32(&mut block, AT_VERSION, FORMAT_VERSION);
        put_u64(&mut block, AT_SEQUENCE, self.sequence);
        put_u64(&mut block, AT_DEVICE_UUID, self.device_uuid);
        put_u64(&mut block, AT_DEVICE_BYTES, self.device_bytes);
        put_u64(&mut block, AT_EFFECTIVE_BYTES, self.effective_bytes);
        put_u64(&mut block, AT_CURRENT, self.current.0);
        put_u32(&mut block, AT_BIT_BYTES, self.bit_bytes);
        put_u32(&mut block, AT_FLAGS, self.flags.bits());
        put_u32(&mut block, AT_RING_BLOCKS, self.al_ring_blocks);
        put_u32(&mut block, AT_AL_SLOTS, self.al_slots);
        block[AT_NODE_ID] = self.node_id.0;
        block[AT_MAX_PEERS] = self.max_peers;
        block[AT_HISTORY_COUNT] = self.history.len() as u8;
        for (index, generation) in self.history.iter().enumerate() {
            put_u64(&mut block, AT_HISTORY + 8 * index, generation.0);
        }
        for (index, peer) in self.peers.iter().enumerate() {
            let at = AT_PEERS + PEER_BYTES * index;
            block[at + PEER_NODE_ID] = peer.node_id.map_or(NO_NODE, |node_id| node_id.0);
            put_u32(&mut block, at + PEER_FLAGS, peer.flags.bits());
            put_u64(&mut block, at + PEER_BITMAP, peer.bitmap.0);
        }
        let crc = checksum(&block, AT_CRC);
        put_u32(&mut block, AT_CRC, crc);
        debug_assert_eq!(
            Self::decode(&block).as_ref(),
            Ok(self),
            "encoded what decode refuses"
        );
        block
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// [`SuperblockError`], naming the field.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let block: &MetadataBlock = bytes
            .try_into()
            .map_err(|_| SuperblockError::Length { bytes: bytes.len() })?;
        Self::check_frame(block)?;
        let history_count = usize::from(block[AT_HISTORY_COUNT]);
        let max_peers = block[AT_MAX_PEERS];
        if history_count > HISTORY_LENGTH {
            return Err(field("history count", block[AT_HISTORY_COUNT]));
        }
        if max_peers == 0 || usize::from(max_peers) > MAX_PEERS {
            return Err(field("max-peers", max_peers));
        }
        let superblock = Superblock {
            sequence: get_u64(block, AT_SEQUENCE),
            device_uuid: get_u64(block, AT_DEVICE_UUID),
            device_bytes: get_u64(block, AT_DEVICE_BYTES),
            effective_bytes: get_u64(block, AT_EFFECTIVE_BYTES),
            node_id: NodeId(block[AT_NODE_ID]),
            max_peers,
            current: Generation(get_u64(block, AT_CURRENT)),
            history: (0..history_count)
                .map(|i| Generation(get_u64(block, AT_HISTORY + 8 * i)))
                .collect(),
            flags: Flags::from_bits(get_u32(block, AT_FLAGS))
                .ok_or(field("flags", get_u32(block, AT_FLAGS)))?,
            peers: (0..usize::from(max_peers))
                .map(|slot| decode_peer(block, slot))
                .collect::<Result<_, _>>()?,
            bit_bytes: get_u32(block, AT_BIT_BYTES),
            al_ring_blocks: get_u32(block, AT_RING_BLOCKS),
            al_slots: get_u32(block, AT_AL_SLOTS),
        };
        superblock.check_fields()?;
        let used = [
            (AT_RESERVED, AT_HISTORY),
            (AT_HISTORY + 8 * history_count, AT_PEERS),
            (
                AT_PEERS + PEER_BYTES * usize::from(max_peers),
                METADATA_BLOCK_BYTES as usize,
            ),
        ];
        for (start, end) in used {
            if let Some(at) = first_not_zero(block, start..end) {
                return Err(field("reserved bytes", at as u64));
            }
        }
        Ok(superblock)
    }

    /// Magic, checksum and version: what is judged alike for every version.
    fn check_frame(block: &MetadataBlock) -> Result<(), SuperblockError> {
        if block[AT_MAGIC..AT_VERSION] != MAGIC {
            return Err(foreign(block));
        }
        let stored = get_u32(block, AT_CRC);
        let computed = checksum(block, AT_CRC);
        if stored != computed {
            return Err(SuperblockError::Checksum { stored, computed });
        }
        let version = get_u32(block, AT_VERSION);
        if version != FORMAT_VERSION {
            return Err(SuperblockError::Version {
                version,
                sequence: get_u64(block, AT_SEQUENCE),
            });
        }
        Ok(())
    }

    fn check_fields(&self) -> Result<(), SuperblockError> {
        if self.sequence == 0 || self.sequence > MAX_SEQUENCE {
            return Err(field("sequence", self.sequence));
        }
        if usize::from(self.node_id.0) >= MAX_NODES {
            return Err(field("node-id", self.node_id.0));
        }
        if self.device_bytes == 0 || self.device_bytes > MAX_DEVICE_BYTES {
            return Err(field("device size", self.device_bytes));
        }
        if self.effective_bytes > self.device_bytes {
            return Err(field("effective size", self.effective_bytes));
        }
        if u64::from(self.bit_bytes) != BLOCK_BYTES {
            return Err(field("bytes per bit", self.bit_bytes));
        }
        if self.al_ring_blocks != super::layout::RING_BLOCKS {
            return Err(field("activity-log blocks", self.al_ring_blocks));
        }
        if self.al_slots == 0 || self.al_slots > super::ring::max_extents(self.al_ring_blocks) {
            return Err(field("activity-log extents", self.al_slots));
        }
        if let Some(empty) = self.history.iter().find(|generation| generation.is_none()) {
            return Err(field("history", empty.0));
        }
        let owners = || self.peers.iter().filter_map(|peer| peer.node_id);
        for (index, node_id) in owners().enumerate() {
            if usize::from(node_id.0) >= MAX_NODES
                || owners().skip(index + 1).any(|other| other == node_id)
            {
                return Err(field("peer node-id", node_id.0));
            }
        }
        Ok(())
    }

    /// Makes `generation` the newest history entry. An entry equal to it is moved, an empty one is ignored, the oldest falls
    /// off beyond [`HISTORY_LENGTH`].
    pub fn push_history(&mut self, generation: Generation) {
        if generation.is_none() {
            return;
        }
        self.history.retain(|entry| !entry.same(generation));
        self.history.insert(0, generation);
        self.history.truncate(HISTORY_LENGTH);
    }

    /// Bitmap slot of a peer.
    #[must_use]
    pub fn slot_of(&self, node_id: NodeId) -> Option<usize> {
        self.peers
            .iter()
            .position(|peer| peer.node_id == Some(node_id))
    }

    /// Bitmap slot of a peer, taking the lowest free one if it has none yet. The bits of a slot that is newly taken are not
    /// touched: they are the caller's to set.
    ///
    /// # Errors
    /// [`NoFreeSlot`] if other peers own all slots.
    pub fn allocate_slot(&mut self, node_id: NodeId) -> Result<usize, NoFreeSlot> {
        if let Some(slot) = self.slot_of(node_id) {
            return Ok(slot);
        }
        let free = self.peers.iter().position(|peer| peer.node_id.is_none());
        let slot = free.ok_or(NoFreeSlot {
            node_id,
            max_peers: self.max_peers,
        })?;
        self.peers[slot] = PeerSlot {
            node_id: Some(node_id),
            ..PeerSlot::default()
        };
        Ok(slot)
    }

    /// Frees the slot of a peer (`forget-peer`): its generation goes to the history. Returns the slot.
    pub fn free_slot(&mut self, node_id: NodeId) -> Option<usize> {
        let slot = self.slot_of(node_id)?;
        let peer = core::mem::take(&mut self.peers[slot]);
        self.push_history(peer.bitmap);
        Some(slot)
    }

    /// Entry of a peer.
    #[must_use]
    pub fn peer(&self, node_id: NodeId) -> Option<&PeerSlot> {
        self.slot_of(node_id).map(|slot| &self.peers[slot])
    }

    /// Entry of a peer, to be changed.
    pub fn peer_mut(&mut self, node_id: NodeId) -> Option<&mut PeerSlot> {
        self.slot_of(node_id).map(|slot| &mut self.peers[slot])
    }

    /// Slots that a peer owns.
    pub fn allocated_slots(&self) -> impl Iterator<Item = usize> {
        self.peers
            .iter()
            .enumerate()
            .filter(|(_, peer)| peer.node_id.is_some())
            .map(|(slot, _)| slot)
    }
}

fn decode_peer(block: &MetadataBlock, slot: usize) -> Result<PeerSlot, SuperblockError> {
    let at = AT_PEERS + PEER_BYTES * slot;
    let padding =
        (at + PEER_NODE_ID + 1..at + PEER_FLAGS).chain(at + PEER_RESERVED..at + PEER_BYTES);
    for reserved in padding {
        if block[reserved] != 0 {
            return Err(field("reserved bytes", reserved as u64));
        }
    }
    let bits = get_u32(block, at + PEER_FLAGS);
    Ok(PeerSlot {
        node_id: Some(block[at + PEER_NODE_ID])
            .filter(|&id| id != NO_NODE)
            .map(NodeId),
        bitmap: Generation(get_u64(block, at + PEER_BITMAP)),
        flags: PeerFlags::from_bits(bits).ok_or(field("peer flags", bits))?,
    })
}

/// Judges a block that does not start with our magic. DRBD keeps a big-endian magic at byte 60 in all its versions.
fn foreign(block: &MetadataBlock) -> SuperblockError {
    if block.iter().all(|&byte| byte == 0) {
        return SuperblockError::Blank;
    }
    match get_u32(block, 60).swap_bytes() {
        0x8374_026a => SuperblockError::Drbd { format: "v07" },
        0x8374_026b | 0x8374_026c => SuperblockError::Drbd { format: "v08" },
        0x8374_026d => SuperblockError::Drbd { format: "v09" },
        _ => SuperblockError::NoMagic,
    }
}

#[cfg(test)]
pub(in crate::metadata) mod tests;
