//! One node: the process with its engine (which may be gone), the disks (which stay), and what the world knows of both.

use std::collections::VecDeque;

use qrbd_engine::api::SessionId;
use qrbd_engine::metadata::image::{MetadataImage, Step};

use crate::administrator::Purpose;
use crate::disk::Disk;
use crate::engine_view::{NodeView, SimulatedEngine};
use crate::network::NodeIndex;
use crate::queue::Micros;

/// What a node has lost since it was last in sync with the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// Its process, with everything in memory and in flight.
    Process,
    /// Its power, with everything that was not durable: of a Secondary, whose disk is made durable in the order of epochs.
    Power,
    /// Its power while it was Primary, whose disk loses any writes that no flush covered.
    PrimaryPower,
}

/// Faults of a disk, each until a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// Reads fail, with a probability per mille.
    pub read_errors: (Micros, u64),
    /// Data writes and flushes fail, with a probability per mille.
    pub write_errors: (Micros, u64),
    /// Metadata operations fail, with a probability per mille.
    pub metadata_errors: (Micros, u64),
    /// Everything is slow.
    pub slow: Micros,
    /// Nothing ends until then.
    pub stalled: Micros,
    /// Data writes end with "no space".
    pub full: Micros,
}

/// An attach under way.
pub struct Attaching {
    /// The metadata, with the steps already applied.
    pub image: MetadataImage,
    /// Steps still to be carried out.
    pub steps: VecDeque<Step>,
    /// The step at the disk.
    pub token: Option<u64>,
    /// Why.
    pub purpose: Purpose,
}

/// One volume of a node.
pub struct NodeVolume {
    /// The backing disk.
    pub disk: Disk,
    /// Its faults.
    pub faults: DiskFaults,
    /// The branch of the data that it holds or follows.
    pub branch: usize,
    /// The branch of the disk's own data, while the node follows its peer's as a Primary without a good disk.
    pub disk_branch: Option<usize>,
    /// What was lost since it was last in sync.
    pub loss: Loss,
    /// It crashed while it was Primary since it was last in sync.
    pub killed_as_primary: bool,
    /// The engine was given the disk.
    pub attached: bool,
    /// The engine refused the disk the last time.
    pub attach_refused: bool,
    /// The shell brings the metadata into order for an attach.
    pub attaching: Option<Attaching>,
    /// When the engine gave up a good disk because of an error last.
    pub failed_at: u64,
    /// Holds every completed write, as far as the cluster manager can know.
    pub current: bool,
}

/// A running process.
pub struct Process {
    /// The engine.
    pub engine: SimulatedEngine,
    /// What it said after the last step.
    pub view: NodeView,
    /// Peers that it wants to reach, by node index.
    pub wants: Vec<bool>,
    /// Session and connection by peer, from the moment the engine was told of it.
    pub sessions: Vec<Option<(SessionId, usize)>>,
    /// When the next tick is scheduled.
    pub tick_at: Option<Micros>,
    /// Ticks in a row that came at the same millisecond.
    pub ticks_in_place: u32,
    /// Operations open at the disks.
    pub disk_operations: usize,
}

/// A node.
pub struct Node {
    /// Its process.
    pub process: Option<Process>,
    /// Starts of the process so far.
    pub incarnation: u64,
    /// When it lost its power last.
    pub power_lost_at: u64,
    /// Its machine is off.
    pub without_power: bool,
    /// What it said last, kept when the process is gone.
    pub view: Option<NodeView>,
    /// Its disks.
    pub volumes: Vec<NodeVolume>,
    /// When it became Primary last.
    pub primary_since: u64,
    /// When it found a connection lost last.
    pub disconnected_at: u64,
    /// Clients use the device here.
    pub serving: bool,
    /// A start is scheduled.
    pub start_scheduled: bool,
}

impl Node {
    /// The view of the living process.
    #[must_use]
    pub fn live_view(&self) -> Option<&NodeView> {
        self.process.as_ref().map(|process| &process.view)
    }

    /// True if that very process runs still.
    #[must_use]
    pub fn still_runs(&self, incarnation: u64) -> bool {
        self.incarnation == incarnation && self.process.is_some()
    }

    /// True if the process runs and says it is Primary.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.live_view()
            .is_some_and(|view| view.role == qrbd_engine::state::Role::Primary)
    }

    /// True if the process runs and considers itself connected to `peer`.
    #[must_use]
    pub fn connected(&self, peer: NodeIndex) -> bool {
        self.live_view().is_some_and(|view| view.connected(peer))
    }
}
