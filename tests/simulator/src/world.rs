//! The world: nodes, links, the clock, and the one place where effects of engines become happenings.
//!
//! Invariants:
//! - everything that happens is an [`Occurrence`] of the queue, or is called from the one at hand: no other order exists;
//! - an answer of a disk, a frame or a tick reaches only the process that it was meant for;
//! - after each step of an engine its effects are carried out in order, then the checkers look.
//!
//! Deliberately decides nothing: commands come from [`crate::administrator`], requests from [`crate::workload`], faults from
//! [`crate::faults`], or from a scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use qrbd_engine::api::{ClientError, FenceId, HandlerId, IoId, LossReason, SessionId};
use qrbd_engine::limits::MIN_AL_EXTENTS;
use qrbd_engine::metadata::growth::KnownDevice;
use qrbd_engine::metadata::image::{CreateOptions, Step, create};
use qrbd_engine::metadata::layout::{Layout, Placement};
use qrbd_engine::state::Refusal;
use qrbd_engine::units::{BLOCK_BYTES, ByteRange, NodeId, VolumeNumber};
use qrbd_engine::wire::message::Lane;

use crate::administrator::Manager;
use crate::checkers::{Checks, Violation};
use crate::disk::Disk;
use crate::engine_view::NodeView;
use crate::network::{Connection, Link, NodeIndex};
use crate::node::{DiskFaults, Loss, Node, NodeVolume};
use crate::oracle::{Branch, Moment, WriteNumber, WriteRecord};
use crate::queue::{Micros, Queue};
use crate::random::Random;
use crate::settings::{Beginning, Settings};
use crate::stamps::{Sector, Stamps, stamp};
use crate::trace::Trace;
use crate::workload::Workload;

/// Everything that can happen.
#[derive(Debug)]
pub enum Occurrence {
    /// A disk operation ends.
    DiskDone {
        /// Where.
        node: NodeIndex,
        /// For which process.
        incarnation: u64,
        /// Which volume.
        volume: usize,
        /// The disk's handle.
        token: u64,
        /// The engine's handle.
        io: IoId,
    },
    /// The first message of a lane arrives.
    Deliver {
        /// Which connection.
        connection: usize,
        /// The sending end.
        from: usize,
        /// Which lane.
        lane: Lane,
    },
    /// An end is told of its session.
    Up {
        /// Which connection.
        connection: usize,
        /// Which end.
        end: usize,
    },
    /// An end is told that its session is over.
    Lost {
        /// Which connection.
        connection: usize,
        /// Which end.
        end: usize,
        /// Why.
        reason: LossReason,
    },
    /// Somebody calls.
    Call {
        /// On which link.
        link: usize,
    },
    /// A handler that was asked before a resync ends.
    Handler {
        /// Where.
        node: NodeIndex,
        /// For which process.
        incarnation: u64,
        /// The engine's handle.
        id: HandlerId,
    },
    /// A peer's machine says whether anybody listens there.
    Probed {
        /// Who asked.
        node: NodeIndex,
        /// For which process.
        incarnation: u64,
        /// Whose machine.
        peer: NodeIndex,
        /// On which session.
        session: SessionId,
    },
    /// A `fence-peer` handler ends.
    Fence {
        /// Where.
        node: NodeIndex,
        /// For which process.
        incarnation: u64,
        /// Whom it is about.
        peer: NodeIndex,
        /// The engine's handle.
        id: FenceId,
    },
    /// A timer.
    Tick {
        /// Where.
        node: NodeIndex,
        /// For which process.
        incarnation: u64,
    },
    /// The next step of an attach.
    Attach {
        /// Where.
        node: NodeIndex,
        /// For which process.
        incarnation: u64,
        /// Which volume.
        volume: usize,
    },
    /// A process starts.
    Start {
        /// Where.
        node: NodeIndex,
    },
    /// A blocked direction of a link heals.
    Heal {
        /// Which link.
        link: usize,
        /// Which direction, by sender.
        side: usize,
    },
    /// The path has been blocked for too long.
    Idle {
        /// Which connection.
        connection: usize,
        /// Which end gives up.
        end: usize,
    },
    /// The clients' next step.
    Client,
    /// The administrator's next step.
    Administrator,
    /// The fault injector's next step.
    Fault,
}

/// A client's request.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// Where.
    pub node: NodeIndex,
    /// Which volume.
    pub volume: usize,
    /// What; payloads are left out.
    pub kind: RequestKind,
    /// The branch it works on.
    pub branch: usize,
    /// When it began.
    pub began: Moment,
    /// When it began on the clock.
    pub at: Micros,
}

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// Read.
    Read(ByteRange),
    /// Write, discard or write of zeroes.
    Write {
        /// Its number.
        number: WriteNumber,
        /// Where.
        range: ByteRange,
        /// Force unit access.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// A request beyond the end of the device.
    Outside,
}

/// A command without an answer yet.
#[derive(Clone, Debug)]
pub struct OpenCommand {
    /// Where.
    pub node: NodeIndex,
    /// Short text.
    pub text: String,
    /// When it was given.
    pub at: Micros,
    /// The same in the order of the run.
    pub began: Moment,
    /// A promotion and whether it is forced.
    pub promotion: Option<bool>,
    /// View before.
    pub view_before: NodeView,
    /// The processes at the other ends of the node's sessions were alive.
    pub peers_live: bool,
    /// Why it was given.
    pub purpose: crate::administrator::Purpose,
}

/// Figures of a run.
#[derive(Clone, Copy, Default, Debug)]
pub struct Figures {
    /// Steps of engines.
    pub steps: u64,
    /// Requests answered with success.
    pub completed: u64,
    /// Requests answered with an error.
    pub failed: u64,
    /// Crashes.
    pub crashes: u64,
    /// Promotions.
    pub promotions: u64,
    /// Times two nodes got in sync.
    pub syncs: u64,
    /// Quiet moments at which the copies were compared.
    pub comparisons: u64,
    /// Split brains reported by engines.
    pub split_brains: u64,
    /// Times that a volume was shown larger than before.
    pub resizes: u64,
}

/// The world of one run.
pub struct World {
    /// Settings.
    pub settings: Settings,
    /// The clock.
    pub now: Micros,
    /// Number of the step.
    pub moment: Moment,
    pub(crate) queue: Queue<Occurrence>,
    /// Chance for disks.
    pub disk_random: Random,
    /// Chance for the network.
    pub network_random: Random,
    /// Chance for engines' seeds and everything else.
    pub random: Random,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Links between each two nodes.
    pub links: Vec<Link>,
    /// Connections; those that are over stay as empty shells.
    pub connections: Vec<Connection>,
    /// Connections that are not over.
    pub live: Vec<usize>,
    /// Branches of the data.
    pub branches: Vec<Branch>,
    /// All writes.
    pub writes: Vec<WriteRecord>,
    /// Which promotion is the last one.
    pub era: u64,
    /// Open requests.
    pub requests: BTreeMap<u64, OpenRequest>,
    /// Answers, if a scenario wants to know them.
    pub answers: Option<BTreeMap<u64, Result<Option<Stamps>, ClientError>>>,
    /// Open commands.
    pub commands: BTreeMap<u64, OpenCommand>,
    /// Answers to commands, if a scenario wants to know them.
    pub command_answers: Option<BTreeMap<u64, Result<(), Refusal>>>,
    /// Rules seen in notices, if a scenario wants to know them: node, rule.
    pub rules: Option<Vec<(NodeIndex, &'static str)>>,
    /// Sectors by volume that differ between any two nodes, within what was shown.
    pub differing: Vec<BTreeSet<Sector>>,
    /// The largest size that a node said a volume has, by volume; bytes.
    pub shown: Vec<u64>,
    /// Sectors with garbage in what the disks grow by, by volume.
    pub(crate) garbage: Vec<BTreeSet<Sector>>,
    /// State of the checkers.
    pub checks: Checks,
    /// The clients.
    pub workload: Workload,
    /// The cluster manager.
    pub manager: Manager,
    /// A node that was demoted and loses its power at the manager's next step.
    pub(crate) retire_at: Option<NodeIndex>,
    /// The node that the cluster's configuration keeps from being promoted.
    pub constrained: Option<NodeIndex>,
    /// Every `fence-peer` handler fails (scenarios).
    pub fencing_fails: bool,
    /// Faults left.
    pub fault_budget: u32,
    /// Chance of a crash amid effects, per million steps.
    pub crash_amid_effects: u64,
    /// Trace.
    pub trace: Trace,
    /// Figures.
    pub figures: Figures,
    /// The first violation.
    pub violation: Option<Violation>,
    pub(crate) next_session: u64,
    pub(crate) next_handle: u64,
    pub(crate) scratch: Vec<Sector>,
    /// Something changed since the last comparison at a quiet moment.
    pub restless: bool,
}

/// Shorthand for the number of a volume.
#[must_use]
pub fn volume_number(volume: usize) -> VolumeNumber {
    VolumeNumber(volume as u16)
}

/// Shorthand for the id of a node.
#[must_use]
pub fn node_id(node: NodeIndex) -> NodeId {
    NodeId(node as u8)
}

impl Figures {
    /// Adds the figures of another run.
    pub fn add(&mut self, other: &Figures) {
        self.steps += other.steps;
        self.completed += other.completed;
        self.failed += other.failed;
        self.crashes += other.crashes;
        self.promotions += other.promotions;
        self.syncs += other.syncs;
        self.comparisons += other.comparisons;
        self.split_brains += other.split_brains;
        self.resizes += other.resizes;
    }
}

impl World {
    /// A world with fresh metadata on every disk and no process running.
    #[must_use]
    pub fn new(settings: Settings) -> World {
        let mut random = Random::new(settings.seed);
        let mut world = World {
            now: 0,
            moment: 1,
            queue: Queue::default(),
            disk_random: random.fork(),
            network_random: random.fork(),
            nodes: Vec::new(),
            links: Vec::new(),
            connections: Vec::new(),
            live: Vec::new(),
            branches: Vec::new(),
            writes: Vec::new(),
            era: 0,
            requests: BTreeMap::new(),
            answers: None,
            commands: BTreeMap::new(),
            command_answers: None,
            rules: None,
            differing: vec![BTreeSet::new(); settings.volumes.len()],
            shown: settings
                .volumes
                .iter()
                .map(|volume| volume.data_bytes)
                .collect(),
            garbage: vec![BTreeSet::new(); settings.volumes.len()],
            checks: Checks::new(&settings),
            workload: Workload::new(&settings, random.fork()),
            manager: Manager::new(&settings, random.fork()),
            retire_at: None,
            constrained: None,
            fencing_fails: false,
            fault_budget: settings.faults.budget,
            crash_amid_effects: settings.faults.crash_amid_effects,
            trace: Trace::default(),
            figures: Figures::default(),
            violation: None,
            next_session: 1,
            next_handle: 1,
            scratch: Vec::new(),
            restless: false,
            random,
            settings,
        };
        for node in 0..world.settings.nodes {
            let volumes = (0..world.settings.volumes.len())
                .map(|volume| world.new_volume(node, volume))
                .collect();
            world.nodes.push(Node {
                process: None,
                incarnation: 0,
                power_lost_at: 0,
                without_power: false,
                primary_since: 0,
                disconnected_at: 0,
                view: None,
                volumes,
                serving: false,
                start_scheduled: false,
            });
        }
        for a in 0..world.settings.nodes {
            for b in a + 1..world.settings.nodes {
                let delay = world.settings.network_delay;
                world.links.push(Link {
                    nodes: [a, b],
                    blocked: [false; 2],
                    call_scheduled: false,
                    delay,
                });
            }
        }
        world
    }

    fn new_volume(&mut self, node: NodeIndex, volume: usize) -> NodeVolume {
        let settings = &self.settings.volumes[volume];
        let data_bytes = settings.data_bytes;
        let (placement, device_bytes) = if settings.internal[node] {
            (Placement::Internal, internal_device_bytes(data_bytes))
        } else {
            (
                Placement::External {
                    metadata_bytes: 1 << 20,
                },
                data_bytes,
            )
        };
        let image = create(&CreateOptions {
            placement,
            device_bytes,
            max_peers: 1,
            node_id: node_id(node),
            device_uuid: self.random.bits(),
            // The tools keep to DRBD's least number; the attach then lays a smaller log.
            al_slots: MIN_AL_EXTENTS,
        })
        .expect("the device is large enough");
        assert_eq!(image.layout.data_bytes, data_bytes, "size of the data area");
        let largest_bytes = settings.largest_bytes();
        let (base, length) = match placement {
            Placement::Internal => {
                let base = image.layout.metadata_offset();
                (base, internal_device_bytes(largest_bytes) - base)
            }
            _ => (0, 1 << 20),
        };
        let mut disk = Disk::new(placement, device_bytes, largest_bytes, base, length);
        for step in image.write_steps() {
            if let Step::Write { offset, bytes } = step {
                disk.found_metadata(offset, &bytes);
            }
        }
        disk.remember(KnownDevice::of(&image.superblock));
        let mut found = BTreeMap::new();
        if self.settings.beginning == Beginning::ForcePrimary {
            for _ in 0..100 {
                let sector = self
                    .disk_random
                    .below(data_bytes / qrbd_engine::units::SECTOR_BYTES);
                let stamp = stamp(self.writes.len() as u64, sector);
                disk.found_data(sector, stamp);
                found.insert(sector, stamp);
                self.differing[volume].insert(sector);
            }
            // Garbage has a write number of its own, so that stamps stay unique.
            self.writes.push(WriteRecord {
                range: ByteRange::new(0, 0),
                zeroes: false,
                began: 0,
                era: 0,
            });
        }
        self.branches.push(Branch::new(Rc::new(found)));
        if largest_bytes > data_bytes && !self.settings.clean_growth {
            self.found_garbage(volume, &mut disk);
        }
        NodeVolume {
            disk,
            faults: DiskFaults::default(),
            branch: self.branches.len() - 1,
            disk_branch: None,
            loss: Loss::Nothing,
            killed_as_primary: false,
            failed_at: 0,
            attached: false,
            attach_refused: false,
            attaching: None,
            current: false,
        }
    }

    // ---- clock --------------------------------------------------------------------------------------------------------------

    /// Schedules something.
    pub fn schedule(&mut self, after: Micros, what: Occurrence) {
        self.queue.push(self.now + after, what);
    }

    /// The next moment.
    pub fn tick_moment(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    /// Lets the next thing happen. False if nothing is left or a checker complained.
    pub fn step(&mut self) -> bool {
        if self.violation.is_some() {
            return false;
        }
        let Some((at, what)) = self.queue.pop() else {
            return false;
        };
        self.now = self.now.max(at);
        match what {
            Occurrence::DiskDone {
                node,
                incarnation,
                volume,
                token,
                io,
            } => self.disk_done(node, incarnation, volume, token, io),
            Occurrence::Deliver {
                connection,
                from,
                lane,
            } => self.deliver(connection, from, lane),
            Occurrence::Up { connection, end } => self.session_up(connection, end),
            Occurrence::Lost {
                connection,
                end,
                reason,
            } => self.session_lost(connection, end, reason),
            Occurrence::Call { link } => self.call(link),
            Occurrence::Handler {
                node,
                incarnation,
                id,
            } => self.handler_ends(node, incarnation, id),
            Occurrence::Fence {
                node,
                incarnation,
                peer,
                id,
            } => self.fence(node, incarnation, peer, id),
            Occurrence::Probed {
                node,
                incarnation,
                peer,
                session,
            } => self.probed(node, incarnation, peer, session),
            Occurrence::Tick { node, incarnation } => self.timer(node, incarnation),
            Occurrence::Attach {
                node,
                incarnation,
                volume,
            } => {
                self.attach_step(node, incarnation, volume);
            }
            Occurrence::Start { node } => self.start(node),
            Occurrence::Heal { link, side } => self.heal(link, side),
            Occurrence::Idle { connection, end } => self.idle(connection, end),
            Occurrence::Client => self.client_step(),
            Occurrence::Administrator => self.administrator_step(),
            Occurrence::Fault => self.fault_step(),
        }
        if self.violation.is_none() {
            self.compare_if_quiet();
        }
        self.violation.is_none()
    }

    /// Runs until the clock reaches `until`. False if a checker complained.
    pub fn run_until(&mut self, until: Micros) -> bool {
        while self.queue.next_at().is_some_and(|at| at <= until) {
            if !self.step() {
                break;
            }
        }
        if self.violation.is_none() {
            self.now = self.now.max(until);
        }
        self.violation.is_none()
    }
}

/// Size of the backing device of a node for a data area.
pub(crate) fn device_bytes(placement: Placement, data_bytes: u64) -> u64 {
    match placement {
        Placement::Internal => internal_device_bytes(data_bytes),
        _ => data_bytes,
    }
}

/// Smallest backing device with internal metadata and `data_bytes` of data.
fn internal_device_bytes(data_bytes: u64) -> u64 {
    assert_eq!(
        data_bytes % BLOCK_BYTES,
        0,
        "internal metadata need whole blocks"
    );
    let mut device = data_bytes + 33 * BLOCK_BYTES;
    loop {
        match Layout::new(Placement::Internal, device, 1) {
            Ok(layout) if layout.data_bytes >= data_bytes => return device,
            _ => device += BLOCK_BYTES,
        }
    }
}
