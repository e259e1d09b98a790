//! What the engine tells about itself: plain values for `status`, events and tests.

use alloc::vec::Vec;

use crate::api::Payload;
use crate::engine::Engine;
use crate::generation::Identifiers;
use crate::peer::Progress;
use crate::state::{ConnectionState, DiskState, ReplicationState, Role};
use crate::units::{BLOCK_BYTES, NodeId, VolumeNumber};

/// One resource as this node sees it.
#[derive(Clone, Debug)]
pub struct Status {
    /// The local role.
    pub role: Role,
    /// `suspend-io` holds the clients' requests.
    pub suspended_user: bool,
    /// They wait for a lost peer to be fenced.
    pub suspended_fencing: bool,
    /// The volumes.
    pub volumes: Vec<VolumeStatus>,
    /// The peers.
    pub peers: Vec<PeerStatus>,
}

/// One volume on this node.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// Which volume.
    pub number: VolumeNumber,
    /// The local disk.
    pub disk: DiskState,
    /// The local disk as peers and people are told of it: with fencing, data that were not compared with a peer's since they were attached
    /// are Consistent, since newer ones may exist.
    pub told_disk: DiskState,
    /// Size that clients see, in bytes.
    pub size: u64,
    /// Clients that have it open.
    pub openers: u32,
    /// Generations; `None` without a disk.
    pub identifiers: Option<Identifiers>,
    /// Flags of the superblock; `None` without a disk.
    pub flags: Option<crate::metadata::superblock::Flags>,
    /// Client requests under way.
    pub pending_requests: usize,
    /// Writes that wait for the handshake, full queues or the activity log.
    pub held_requests: usize,
    /// Active extents of the activity log.
    pub active_extents: usize,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Who.
    pub node_id: NodeId,
    /// The connection.
    pub connection: ConnectionState,
    /// The peer's role.
    pub role: Role,
    /// Bytes sent and not yet written by the peer.
    pub in_flight_bytes: u64,
    /// Operations sent and not yet known to be durable at the peer.
    pub log_entries: usize,
    /// Operations received and not finished.
    pub received_operations: usize,
    /// One entry per volume.
    pub devices: Vec<PeerDeviceStatus>,
}

/// One volume toward one peer.
#[derive(Clone, Debug)]
pub struct PeerDeviceStatus {
    /// Which volume.
    pub number: VolumeNumber,
    /// Replication state.
    pub replication: ReplicationState,
    /// The peer's disk.
    pub peer_disk: DiskState,
    /// Bytes out of sync toward the peer.
    pub out_of_sync_bytes: u64,
    /// This node's administrator holds the resync.
    pub paused_here: bool,
    /// The peer's administrator holds the resync.
    pub paused_there: bool,
    /// Figures of a running resync.
    pub resync: Option<Progress>,
}

impl<P: Payload> Engine<P> {
    /// The state now.
    #[must_use]
    pub fn status(&self) -> Status {
        let volumes = self
            .volumes
            .iter()
            .enumerate()
            .map(|(v, volume)| VolumeStatus {
                number: volume.number,
                disk: volume.disk,
                told_disk: self.told_disk(v),
                size: volume.size,
                openers: volume.openers,
                identifiers: volume
                    .backing
                    .as_ref()
                    .map(crate::volume::Backing::identifiers),
                flags: volume
                    .backing
                    .as_ref()
                    .map(|backing| backing.superblock.flags),
                pending_requests: self
                    .requests
                    .iter()
                    .filter(|(_, request)| request.volume == v && !request.completed)
                    .count(),
                held_requests: volume.held.len()
                    + volume.parked.len()
                    + volume.held_for_data.len()
                    + volume.log_waiters.len(),
                active_extents: volume
                    .backing
                    .as_ref()
                    .map_or(0, |backing| backing.log.active_count()),
            })
            .collect();
        let peers =
            self.peers
                .iter()
                .map(|peer| PeerStatus {
                    node_id: peer.config.node_id,
                    connection: peer.connection,
                    role: peer.role,
                    in_flight_bytes: peer.log.in_flight_bytes(),
                    log_entries: peer.log.len(),
                    received_operations: peer.received.len() + peer.receiver.buffered(),
                    devices: peer
                        .devices
                        .iter()
                        .zip(&self.volumes)
                        .map(|(device, volume)| PeerDeviceStatus {
                            number: volume.number,
                            replication: device.replication,
                            peer_disk: device.disk,
                            out_of_sync_bytes: volume.backing.as_ref().map_or(0, |backing| {
                                backing.bits(peer.config.node_id) * BLOCK_BYTES
                            }),
                            paused_here: device.paused_here,
                            paused_there: device.paused_there,
                            resync: device
                                .source
                                .as_ref()
                                .map(|source| source.progress)
                                .or(device.target.as_ref().map(|target| target.progress)),
                        })
                        .collect(),
                })
                .collect();
        Status {
            role: self.role,
            suspended_user: self.suspended_by_user,
            suspended_fencing: self.is_frozen(),
            volumes,
            peers,
        }
    }

    /// The out-of-sync blocks toward a peer, as runs; for reports and checkers.
    #[must_use]
    pub fn out_of_sync(&self, volume: VolumeNumber, peer: NodeId) -> Vec<core::ops::Range<u64>> {
        self.volume_index(volume)
            .and_then(|v| self.volumes[v].backing.as_ref())
            .and_then(|backing| {
                backing
                    .slot(peer)
                    .map(|slot| backing.bitmaps[slot].runs().collect())
            })
            .unwrap_or_default()
    }
}
