//! The only place that knows how the engine shows its state; everything else uses the plain values here.
//!
//! Also says what metadata on a disk would tell a restarted node: which blocks it would count as out of sync.

use std::collections::BTreeSet;
use std::ops::Range;

use qrbd_engine::Engine;
use qrbd_engine::bitmap::Bitmap;
use qrbd_engine::metadata::image::{LoggedExtents, MetadataImage};
use qrbd_engine::split_brain::Policies;
use qrbd_engine::state::{ConnectionState, DiskState, ReplicationState, Role};
use qrbd_engine::units::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, Generation, NodeId, SECTOR_BYTES, VolumeNumber,
};

use crate::node::Process;
use crate::random::Random;
use crate::stamps::{Sector, Stamps};

/// Sectors of one bitmap block.
pub const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;

/// The engine under test.
pub type SimulatedEngine = Engine<Stamps>;

/// One volume as its node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeView {
    /// Local disk state.
    pub disk: DiskState,
    /// Current generation; empty without a disk.
    pub current: Generation,
    /// A disk is attached.
    pub attached: bool,
    /// Size that clients see, in bytes.
    pub size: u64,
}

/// One volume toward one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerVolumeView {
    /// Replication state.
    pub replication: ReplicationState,
    /// The peer's disk.
    pub disk: DiskState,
    /// Bits set toward the peer.
    pub bits: u64,
}

/// One peer as the node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerView {
    /// Connection state.
    pub connection: ConnectionState,
    /// The peer's role.
    pub role: Role,
    /// By volume.
    pub volumes: Vec<PeerVolumeView>,
}

/// Everything a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    /// Role.
    pub role: Role,
    /// Clients wait until a lost peer is fenced.
    pub frozen: bool,
    /// By volume.
    pub volumes: Vec<VolumeView>,
    /// By node index; `None` for the node itself.
    pub peers: Vec<Option<PeerView>>,
}

impl NodeView {
    /// A node whose process just started.
    #[must_use]
    pub fn fresh(engine: &SimulatedEngine, nodes: usize) -> NodeView {
        NodeView::of(engine, nodes)
    }

    /// Reads the engine's status.
    #[must_use]
    pub fn of(engine: &SimulatedEngine, nodes: usize) -> NodeView {
        let status = engine.status();
        let volumes = status.volumes.iter().map(|volume| VolumeView {
            disk: volume.disk,
            current: volume
                .identifiers
                .as_ref()
                .map_or(Generation::NONE, |identifiers| identifiers.current()),
            attached: volume.identifiers.is_some(),
            size: volume.size,
        });
        let volumes = volumes.collect();
        let mut peers: Vec<Option<PeerView>> = vec![None; nodes];
        for peer in &status.peers {
            let volumes = peer.devices.iter().map(|device| PeerVolumeView {
                replication: device.replication,
                disk: device.peer_disk,
                bits: device.out_of_sync_bytes / BLOCK_BYTES,
            });
            peers[usize::from(peer.node_id.0)] = Some(PeerView {
                connection: peer.connection,
                role: peer.role,
                volumes: volumes.collect(),
            });
        }
        NodeView {
            role: status.role,
            frozen: status.suspended_fencing,
            volumes,
            peers,
        }
    }

    /// True if the node considers itself connected to `peer`.
    #[must_use]
    pub fn connected(&self, peer: usize) -> bool {
        self.peers[peer]
            .as_ref()
            .is_some_and(|peer| peer.connection == ConnectionState::Connected)
    }

    /// The replication state toward `peer`; Off if not connected.
    #[must_use]
    pub fn replication(&self, peer: usize, volume: usize) -> ReplicationState {
        match &self.peers[peer] {
            Some(view) if view.connection == ConnectionState::Connected => {
                view.volumes[volume].replication
            }
            _ => ReplicationState::Off,
        }
    }

    /// The disk state of `peer` as far as known.
    #[must_use]
    pub fn peer_disk(&self, peer: usize, volume: usize) -> DiskState {
        self.peers[peer]
            .as_ref()
            .map_or(DiskState::DUnknown, |peer| peer.volumes[volume].disk)
    }

    /// True if the peer mirrors and is UpToDate, as far as the node knows.
    #[must_use]
    pub fn in_sync_with(&self, peer: usize, volume: usize) -> bool {
        self.replication(peer, volume) == ReplicationState::Established
            && self.peer_disk(peer, volume) == DiskState::UpToDate
    }

    /// True if writes are mirrored to the peer.
    #[must_use]
    pub fn mirrors_to(&self, peer: usize, volume: usize) -> bool {
        self.replication(peer, volume).mirrors()
            && self.peer_disk(peer, volume) >= DiskState::Inconsistent
    }
}

/// The bits of a living node toward a peer, as runs of blocks.
#[derive(Clone, Debug)]
pub struct Bits(Vec<Range<u64>>);

impl Bits {
    /// True if the bit of `block` is set.
    #[must_use]
    pub fn is_set(&self, block: u64) -> bool {
        let after = self.0.partition_point(|run| run.end <= block);
        self.0.get(after).is_some_and(|run| run.start <= block)
    }

    /// True if the bit of the block that holds `sector` is set.
    #[must_use]
    pub fn marks(&self, sector: Sector) -> bool {
        self.is_set(sector / SECTORS_PER_BLOCK)
    }

    /// True if every block of the range is set.
    #[must_use]
    pub fn covers(&self, mut blocks: Range<u64>) -> bool {
        blocks.all(|block| self.is_set(block))
    }
}

/// The bits of a running process toward `peer`; `None` without a disk.
#[must_use]
pub fn bits(process: &Process, volume: usize, peer: usize) -> Option<Bits> {
    let attached = process.view.volumes[volume].attached;
    attached.then(|| {
        Bits(
            process
                .engine
                .out_of_sync(VolumeNumber(volume as u16), NodeId(peer as u8)),
        )
    })
}

fn marks(bitmap: &Bitmap, sector: Sector) -> bool {
    let block = sector / SECTORS_PER_BLOCK;
    block < bitmap.blocks() && bitmap.is_set(block)
}

/// What metadata on a disk would tell a restarted node.
pub struct Knowledge {
    image: MetadataImage,
    extents: Option<BTreeSet<u32>>,
}

impl std::fmt::Debug for Knowledge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits: Vec<u64> = self.image.bitmaps.iter().map(Bitmap::count).collect();
        write!(
            f,
            "extents {:?}, {bits:?} bits, current {}, {:?}",
            self.extents, self.image.superblock.current, self.image.superblock.flags
        )
    }
}

impl Knowledge {
    /// Of loaded metadata.
    #[must_use]
    pub fn of(image: MetadataImage) -> Knowledge {
        let extents = match &image.logged {
            LoggedExtents::Known(list) => Some(list.iter().copied().collect()),
            LoggedExtents::Unknown => None,
        };
        Knowledge { image, extents }
    }

    /// The loaded metadata.
    #[must_use]
    pub fn image(&self) -> &MetadataImage {
        &self.image
    }

    /// True if the extent of `sector` is in the activity log.
    #[must_use]
    pub fn logged(&self, sector: Sector) -> bool {
        let extent = (sector / SECTORS_PER_BLOCK / BLOCKS_PER_EXTENT) as u32;
        self.extents
            .as_ref()
            .is_none_or(|extents| extents.contains(&extent))
    }

    /// The logged extents; `None` if all of them count.
    #[must_use]
    pub fn extents(&self) -> Option<&BTreeSet<u32>> {
        self.extents.as_ref()
    }

    /// Number of logged extents; `None` if all of them count.
    #[must_use]
    pub fn logged_count(&self) -> Option<usize> {
        self.extents.as_ref().map(BTreeSet::len)
    }

    /// True if the bit toward `peer` is set on the disk.
    #[must_use]
    pub fn marked(&self, peer: usize, sector: Sector) -> bool {
        let slot = self
            .image
            .superblock
            .peers
            .iter()
            .position(|slot| slot.node_id == Some(NodeId(peer as u8)));
        slot.is_some_and(|slot| marks(&self.image.bitmaps[slot], sector))
    }

    /// Bits on the disk toward `peer`.
    #[must_use]
    pub fn marked_count(&self, peer: usize) -> u64 {
        let slot = self
            .image
            .superblock
            .peers
            .iter()
            .position(|slot| slot.node_id == Some(NodeId(peer as u8)));
        slot.map_or(0, |slot| self.image.bitmaps[slot].count())
    }

    /// True if the two disks never held the same data, as far as they know.
    #[must_use]
    pub fn is_unrelated_to(&self, other: &Knowledge) -> bool {
        let known = |image: &MetadataImage| -> Vec<Generation> {
            let slots = image.superblock.peers.iter().map(|slot| slot.bitmap);
            let all = slots
                .chain([image.superblock.current])
                .chain(image.superblock.history.clone());
            all.filter(|generation| !generation.is_just_created())
                .collect()
        };
        let theirs = known(&other.image);
        !known(&self.image)
            .iter()
            .any(|mine| theirs.iter().any(|generation| generation.same(*mine)))
    }

    /// True if a full sync of this disk is due anyway: never synced, or ordered.
    #[must_use]
    pub fn expects_full_sync(&self, peer: usize) -> bool {
        let superblock = &self.image.superblock;
        superblock.current.is_just_created()
            || superblock
                .peers
                .iter()
                .any(|slot| slot.node_id == Some(NodeId(peer as u8)) && slot.flags.full_sync)
    }
}

/// Split-brain policies of a run in which split brain happens.
#[must_use]
pub fn random_policies(_random: &mut Random) -> Policies {
    Policies::default()
}
