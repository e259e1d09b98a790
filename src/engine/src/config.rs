//! What the engine must know of the configuration, in plain numbers (the shell translates the `.res` model).

use alloc::vec::Vec;

use crate::limits;
use crate::split_brain::Policies;
use crate::units::{NodeId, VolumeNumber};
use crate::wire::message::Protocol;

/// Configuration of one resource on this node.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This node.
    pub node_id: NodeId,
    /// Random bits for generation identifiers; different for each start of the process.
    pub seed: [u64; 2],
    /// Tells one run of this machine from the next: the same when the process was started again, another one after the machine was,
    /// with the volatile caches of its disks gone.
    pub boot: u64,
    /// The volumes of the resource.
    pub volumes: Vec<VolumeConfig>,
    /// The peers of the resource.
    pub peers: Vec<PeerConfig>,
}

/// One volume.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// Which volume.
    pub number: VolumeNumber,
    /// Slots of the activity log (`al-extents`).
    pub al_extents: u32,
    /// `disk-flushes`: epochs are made durable by flushing the backing device. Off only for storage with a safe cache.
    pub disk_flushes: bool,
    /// `on-io-error`: true = detach, false = pass the error on.
    pub detach_on_io_error: bool,
}

impl VolumeConfig {
    /// DRBD's defaults.
    #[must_use]
    pub fn new(number: VolumeNumber) -> Self {
        VolumeConfig {
            number,
            al_extents: limits::DEFAULT_AL_EXTENTS,
            disk_flushes: true,
            detach_on_io_error: true,
        }
    }
}

/// `fencing`: what a Primary does about a peer that it lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fencing {
    /// Nothing.
    #[default]
    DontCare,
    /// The peer is fenced, I/O goes on meanwhile.
    ResourceOnly,
    /// I/O is frozen until the peer is fenced.
    ResourceAndStonith,
}

/// One peer; times in milliseconds.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Who.
    pub node_id: NodeId,
    /// Acknowledgement rule.
    pub protocol: Protocol,
    /// What a lost peer means.
    pub fencing: Fencing,
    /// Split-brain policies.
    pub policies: Policies,
    /// `ping-int`: idle time after which the peer is asked whether it is there.
    pub ping_interval: u64,
    /// `ping-timeout`: the answer's deadline.
    pub ping_timeout: u64,
    /// `timeout`: deadline of a request.
    pub timeout: u64,
    /// `ko-count`: the peer is given up after this many timeouts without completing a write; 0 = never.
    pub ko_count: u32,
    /// `max-epoch-size`: writes in one epoch.
    pub max_epoch_size: u32,
    /// Bytes of writes on their way to the peer, above which clients are slowed.
    pub max_in_flight_bytes: u64,
    /// Bytes of resync data on their way to the target when nothing else is going on (`max-buffers`).
    pub resync_window_bytes: u64,
    /// How long the handler `before-resync-target` may take; `None`: there is none.
    pub before_resync_target: Option<u64>,
    /// The same for `before-resync-source`.
    pub before_resync_source: Option<u64>,
}

impl PeerConfig {
    /// DRBD's defaults.
    #[must_use]
    pub fn new(node_id: NodeId) -> Self {
        PeerConfig {
            node_id,
            protocol: Protocol::C,
            fencing: Fencing::default(),
            policies: Policies::default(),
            ping_interval: 10_000,
            ping_timeout: 500,
            timeout: 6_000,
            ko_count: 7,
            max_epoch_size: 2048,
            max_in_flight_bytes: 32 << 20,
            resync_window_bytes: 8 << 20,
            before_resync_target: None,
            before_resync_source: None,
        }
    }
}
