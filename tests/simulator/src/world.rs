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

use qrbd_engine::Engine;
use qrbd_engine::api::{
    ClientError, Command, CommandId, Effect, Event, IoError, IoId, LossReason, Notice, Operation,
    RequestId, SessionId,
};
use qrbd_engine::config::{EngineConfig, PeerConfig, VolumeConfig};
use qrbd_engine::metadata::image::{CreateOptions, Step, create};
use qrbd_engine::metadata::layout::{Layout, Placement};
use qrbd_engine::state::{Refusal, Role};
use qrbd_engine::units::{BLOCK_BYTES, ByteRange, NodeId, SECTOR_BYTES, Time, VolumeNumber};
use qrbd_engine::wire::message::{Lane, Message};

use crate::administrator::Manager;
use crate::checkers::{Checks, Violation};
use crate::disk::{Disk, Job, View};
use crate::engine_view::NodeView;
use crate::network::{Connection, End, EndState, LaneQueue, Link, NodeIndex};
use crate::node::{DiskFaults, Loss, Node, NodeVolume, Process};
use crate::oracle::{Branch, Moment, WriteNumber, WriteRecord};
use crate::queue::{MILLISECOND, Micros, Queue, SECOND};
use crate::random::Random;
use crate::settings::{Beginning, Settings};
use crate::stamps::{Sector, Stamp, Stamps, stamp};
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
    /// A timer.
    Tick {
        /// Where.
        node: NodeIndex,
        /// For which process.
        incarnation: u64,
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
    /// A promotion and whether it is forced.
    pub promotion: Option<bool>,
    /// View before.
    pub view_before: NodeView,
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
}

/// The world of one run.
pub struct World {
    /// Settings.
    pub settings: Settings,
    /// The clock.
    pub now: Micros,
    /// Number of the step.
    pub moment: Moment,
    queue: Queue<Occurrence>,
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
    /// Sectors by volume that differ between any two nodes.
    pub differing: Vec<BTreeSet<Sector>>,
    /// State of the checkers.
    pub checks: Checks,
    /// The clients.
    pub workload: Workload,
    /// The cluster manager.
    pub manager: Manager,
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
    next_session: u64,
    next_handle: u64,
    scratch: Vec<Sector>,
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
            checks: Checks::new(&settings),
            workload: Workload::new(&settings, random.fork()),
            manager: Manager::new(&settings, random.fork()),
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
                view: None,
                volumes,
                serving: false,
                start_scheduled: false,
                unreadable: BTreeSet::new(),
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
            al_slots: settings.al_extents,
        })
        .expect("the device is large enough");
        assert_eq!(image.layout.data_bytes, data_bytes, "size of the data area");
        let (base, length) = match placement {
            Placement::Internal => (
                image.layout.metadata_offset(),
                image.layout.metadata_bytes(),
            ),
            _ => (0, 1 << 20),
        };
        let mut disk = Disk::new(placement, device_bytes, data_bytes, base, length);
        for step in image.write_steps() {
            if let Step::Write { offset, bytes } = step {
                disk.found_metadata(offset, &bytes);
            }
        }
        let mut found = BTreeMap::new();
        if self.settings.beginning == Beginning::ForcePrimary {
            for _ in 0..100 {
                let sector = self.disk_random.below(disk.sectors());
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
        NodeVolume {
            disk,
            faults: DiskFaults::default(),
            branch: self.branches.len() - 1,
            loss: Loss::Nothing,
            attached: false,
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
            Occurrence::Tick { node, incarnation } => self.timer(node, incarnation),
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

    // ---- processes ----------------------------------------------------------------------------------------------------------

    /// Starts the process of a node: it attaches its disks and connects.
    pub fn start(&mut self, node: NodeIndex) {
        self.nodes[node].start_scheduled = false;
        if self.nodes[node].process.is_some() {
            return;
        }
        self.boot(node);
        for volume in 0..self.settings.volumes.len() {
            self.attach(node, volume, crate::administrator::Purpose::Start);
        }
        for peer in 0..self.settings.nodes {
            if peer != node && self.manager.wants_connection(node) {
                let command = Command::Connect {
                    peer: node_id(peer),
                    discard_my_data: false,
                };
                self.command(node, command, crate::administrator::Purpose::Start);
            }
        }
    }

    /// Starts the process of a node and nothing else.
    pub fn boot(&mut self, node: NodeIndex) {
        let nodes = self.settings.nodes;
        let mut config = EngineConfig {
            node_id: node_id(node),
            seed: [self.random.bits(), self.random.bits()],
            volumes: Vec::new(),
            peers: Vec::new(),
        };
        for (volume, settings) in self.settings.volumes.iter().enumerate() {
            let mut volume = VolumeConfig::new(volume_number(volume));
            volume.al_extents = settings.al_extents;
            config.volumes.push(volume);
        }
        for peer in (0..nodes).filter(|&peer| peer != node) {
            let mut peer = PeerConfig::new(node_id(peer));
            peer.protocol = self.settings.protocol;
            peer.policies = self.settings.policies.clone();
            peer.ping_interval = 2000;
            peer.ping_timeout = 500;
            peer.timeout = 1000;
            peer.ko_count = 3;
            peer.max_in_flight_bytes = 1 << 20;
            peer.resync_window_bytes = 1 << 20;
            config.peers.push(peer);
        }
        let engine = Engine::new(config, Time(self.now / MILLISECOND));
        let view = NodeView::of(&engine, nodes);
        let state = &mut self.nodes[node];
        state.incarnation += 1;
        state.view = Some(view.clone());
        state.process = Some(Process {
            engine,
            view,
            wants: vec![false; nodes],
            sessions: vec![None; nodes],
            tick_at: None,
            ticks_in_place: 0,
            disk_operations: 0,
        });
        self.trace.mix(&[self.now, node as u64, 1]);
        self.trace
            .line(self.now, || format!("n{node} process starts"));
        self.arm(node);
    }

    /// The process of a node ends at once; with a power loss its disks lose what was not durable.
    pub fn crash(&mut self, node: NodeIndex, power: bool) {
        if self.nodes[node].process.take().is_none() && !power {
            return;
        }
        self.figures.crashes += 1;
        self.trace
            .mix(&[self.now, node as u64, 2, u64::from(power)]);
        self.trace.line(self.now, || {
            format!("n{node} {}", if power { "POWER LOSS" } else { "KILLED" })
        });
        self.nodes[node].serving = false;
        for volume in 0..self.settings.volumes.len() {
            let mut changed = std::mem::take(&mut self.scratch);
            let state = &mut self.nodes[node].volumes[volume];
            if power {
                state.disk.power_loss(&mut self.disk_random, &mut changed);
            } else {
                state.disk.process_ends(&mut self.disk_random, &mut changed);
            }
            state.loss = state
                .loss
                .max(if power { Loss::Power } else { Loss::Process });
            state.attached = false;
            self.sectors_changed(node, volume, &mut changed);
            self.scratch = changed;
        }
        self.end_requests_of(node);
        self.commands.retain(|_, command| command.node != node);
        for connection in self.live.clone() {
            let shell = &mut self.connections[connection];
            let Some(end) = shell
                .ends
                .iter()
                .position(|end| end.node == node && end.state != EndState::Gone)
            else {
                continue;
            };
            shell.ends[end].state = EndState::Gone;
            if !shell.dead {
                shell.die(&mut self.network_random);
            }
            self.lose_later(
                connection,
                1 - end,
                LossReason::NetworkFailure,
                (MILLISECOND, 3 * SECOND),
            );
        }
        self.manager.node_crashed(node);
        self.check_after_crash(node);
    }

    fn end_requests_of(&mut self, node: NodeIndex) {
        let now = self.tick_moment();
        let gone: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| request.node == node)
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            let request = self.requests.remove(&id).expect("it is in the list");
            if let RequestKind::Write { number, range, .. } = request.kind {
                self.branches[request.branch].end(number, range, false, false, now);
            }
        }
    }

    /// Gives the engine the disk of a volume. False if its metadata cannot be read, which is a violation.
    pub fn attach(
        &mut self,
        node: NodeIndex,
        volume: usize,
        purpose: crate::administrator::Purpose,
    ) -> Option<u64> {
        let image = match self.nodes[node].volumes[volume].disk.load(View::Cached) {
            Ok(image) => image,
            Err(error) => {
                self.fail(
                    "metadata",
                    format!("n{node} volume {volume}: metadata does not open: {error}"),
                );
                return None;
            }
        };
        self.check_loaded(node, volume, &image);
        self.nodes[node].volumes[volume].attached = true;
        Some(self.command(
            node,
            Command::Attach {
                volume: volume_number(volume),
                image: Box::new(image),
            },
            purpose,
        ))
    }

    // ---- commands and requests -------------------------------------------------------------------------------------------------

    /// Gives a command; returns its handle.
    pub fn command(
        &mut self,
        node: NodeIndex,
        command: Command,
        purpose: crate::administrator::Purpose,
    ) -> u64 {
        let id = self.next_handle;
        self.next_handle += 1;
        let Some(process) = &self.nodes[node].process else {
            return id;
        };
        let text = match &command {
            Command::Attach { volume, .. } => format!("Attach {{ volume: {volume} }}"),
            other => format!("{other:?}"),
        };
        let promotion = match command {
            Command::Promote { force } => Some(force),
            _ => None,
        };
        self.trace
            .line(self.now, || format!("n{node} command {id}: {text}"));
        let view_before = process.view.clone();
        self.commands.insert(
            id,
            OpenCommand {
                node,
                text,
                at: self.now,
                promotion,
                view_before,
                purpose,
            },
        );
        self.tell(
            node,
            Event::Command {
                id: CommandId(id),
                command,
            },
        );
        id
    }

    /// A client submits a request; returns its handle.
    pub fn submit(
        &mut self,
        node: NodeIndex,
        volume: usize,
        kind: RequestKind,
        operation: Operation<Stamps>,
    ) -> u64 {
        let id = self.next_handle;
        self.next_handle += 1;
        let began = self.tick_moment();
        let branch = self.nodes[node].volumes[volume].branch;
        if let RequestKind::Write { number, .. } = kind {
            self.writes[number as usize].began = began;
            let record = self.writes[number as usize].clone();
            self.branches[branch].begin(number, &record);
        }
        self.trace.line(self.now, || {
            format!("n{node} v{volume} request {id}: {kind:?}")
        });
        self.requests.insert(
            id,
            OpenRequest {
                node,
                volume,
                kind,
                branch,
                began,
                at: self.now,
            },
        );
        self.tell(
            node,
            Event::Request {
                id: RequestId(id),
                volume: volume_number(volume),
                operation,
            },
        );
        id
    }

    /// A new write of `range`; the number goes into a [`RequestKind::Write`].
    pub fn new_write(&mut self, range: ByteRange, zeroes: bool) -> WriteNumber {
        self.writes.push(WriteRecord {
            range,
            zeroes,
            began: 0,
            era: self.era,
        });
        self.writes.len() as u64 - 1
    }

    // ---- engine steps ---------------------------------------------------------------------------------------------------------

    /// Hands an event to the engine of a node and carries out what comes out.
    pub fn tell(&mut self, node: NodeIndex, event: Event<Stamps>) {
        if self.violation.is_some() {
            return;
        }
        self.trace.mix(&[self.now, node as u64, 3]);
        let nodes = self.settings.nodes;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        process.engine.handle(Time(self.now / MILLISECOND), event);
        let mut effects = Vec::new();
        while let Some(effect) = process.engine.poll() {
            effects.push(effect);
            if effects.len() > 100_000 {
                self.fail(
                    "bounds",
                    format!("n{node}: one event gave more than 100000 effects"),
                );
                return;
            }
        }
        let view = NodeView::of(&process.engine, nodes);
        let before = std::mem::replace(&mut process.view, view.clone());
        self.nodes[node].view = Some(view);
        self.figures.steps += 1;
        self.restless = true;
        let cut = self.fault_budget > 0
            && !effects.is_empty()
            && self.crash_amid_effects > 0
            && self.random.below(1_000_000) < self.crash_amid_effects;
        if cut {
            self.fault_budget -= 1;
            effects.truncate(self.random.below(effects.len() as u64 + 1) as usize);
        }
        let incarnation = self.nodes[node].incarnation;
        self.view_changed(node, &before);
        for effect in effects {
            self.carry_out(node, effect);
            if self.violation.is_some() || self.nodes[node].incarnation != incarnation {
                return;
            }
        }
        if cut {
            let power = self.random.chance(500);
            self.crash(node, power);
            self.start_later(node);
            return;
        }
        self.check_after_step(node);
        self.arm(node);
    }

    /// Schedules the start of a node's process.
    pub fn start_later(&mut self, node: NodeIndex) {
        if !self.nodes[node].start_scheduled {
            self.nodes[node].start_scheduled = true;
            let delay = self.random.delay(MILLISECOND, 3 * SECOND);
            self.schedule(delay, Occurrence::Start { node });
        }
    }

    fn arm(&mut self, node: NodeIndex) {
        let state = &mut self.nodes[node];
        let Some(process) = state.process.as_mut() else {
            return;
        };
        let Some(Time(at)) = process.engine.next_timeout() else {
            return;
        };
        let at = at.saturating_mul(MILLISECOND).max(self.now);
        if process
            .tick_at
            .is_none_or(|scheduled| at < scheduled || scheduled < self.now)
        {
            process.tick_at = Some(at);
            let incarnation = state.incarnation;
            self.queue.push(at, Occurrence::Tick { node, incarnation });
        }
    }

    fn timer(&mut self, node: NodeIndex, incarnation: u64) {
        let now = self.now;
        let state = &mut self.nodes[node];
        if state.incarnation != incarnation {
            return;
        }
        let Some(process) = state.process.as_mut() else {
            return;
        };
        if process.tick_at != Some(now) {
            return;
        }
        process.tick_at = None;
        let due = process
            .engine
            .next_timeout()
            .is_some_and(|Time(at)| at.saturating_mul(MILLISECOND) <= now);
        if due {
            self.tell(node, Event::Tick);
            let Some(process) = self.nodes[node].process.as_mut() else {
                return;
            };
            let again = process
                .engine
                .next_timeout()
                .is_some_and(|Time(at)| at.saturating_mul(MILLISECOND) <= now);
            process.ticks_in_place = if again { process.ticks_in_place + 1 } else { 0 };
            if process.ticks_in_place > 1000 {
                self.fail(
                    "bounds",
                    format!("n{node}: the timer stays due after 1000 ticks at the same moment"),
                );
            }
        } else {
            self.arm(node);
        }
    }

    fn carry_out(&mut self, node: NodeIndex, effect: Effect<Stamps>) {
        match effect {
            Effect::Read { volume, io, range } => self.disk_job(node, volume, io, Job::Read(range)),
            Effect::Write {
                volume,
                io,
                range,
                payload,
            } => self.disk_job(node, volume, io, Job::Write(range, payload)),
            Effect::Discard { volume, io, range }
            | Effect::WriteZeroes {
                volume, io, range, ..
            } => {
                self.disk_job(node, volume, io, Job::Zero(range));
            }
            Effect::Flush { volume, io } => self.disk_job(node, volume, io, Job::Flush),
            Effect::MetadataWrite {
                volume,
                io,
                offset,
                bytes,
            } => {
                self.disk_job(node, volume, io, Job::MetadataWrite(offset, bytes));
            }
            Effect::MetadataFlush { volume, io } => {
                self.disk_job(node, volume, io, Job::MetadataFlush)
            }
            Effect::Send {
                peer,
                session,
                message,
            } => self.send(node, peer, session, message),
            Effect::CloseSession { peer, session } => self.close(node, peer, session),
            Effect::StartConnecting { peer } => {
                let peer = usize::from(peer.0);
                self.process(node).wants[peer] = true;
                let link = self.link_of(node, peer);
                self.call_later(link);
            }
            Effect::StopConnecting { peer } => {
                self.process(node).wants[usize::from(peer.0)] = false
            }
            Effect::Complete { id, result } => self.complete(node, id, result),
            Effect::CommandDone { id, result } => self.command_done(node, id, result),
            Effect::Detached { volume } => {
                self.trace
                    .line(self.now, || format!("n{node} v{volume} detached"));
                self.nodes[node].volumes[usize::from(volume.0)].attached = false;
            }
            Effect::Handler { name, peer, volume } => {
                self.trace.line(self.now, || {
                    format!("n{node} handler {name} {peer:?} {volume:?}")
                });
                self.handler_called(node, name);
            }
            Effect::Notice(notice) => self.notice(node, &notice),
        }
    }

    fn notice(&mut self, node: NodeIndex, notice: &Notice) {
        let rule = match notice {
            Notice::Role { rule, .. }
            | Notice::Disk { rule, .. }
            | Notice::Connection { rule, .. }
            | Notice::Replication { rule, .. }
            | Notice::Decision { rule, .. } => rule,
        };
        if let Some(rules) = &mut self.rules {
            rules.push((node, rule));
        }
        self.trace.mix(&[
            rule.len() as u64,
            u64::from(rule.as_bytes().first().copied().unwrap_or(0)),
        ]);
        self.trace.line(self.now, || match notice {
            Notice::Role { from, to, rule } => format!("n{node} role {from} -> {to} ({rule})"),
            Notice::Disk {
                volume,
                from,
                to,
                rule,
            } => format!("n{node} v{volume} disk {from} -> {to} ({rule})"),
            Notice::Connection {
                peer,
                from,
                to,
                rule,
            } => format!("n{node} connection to n{peer} {from} -> {to} ({rule})"),
            Notice::Replication {
                peer,
                volume,
                from,
                to,
                rule,
            } => {
                format!("n{node} v{volume} replication to n{peer} {from} -> {to} ({rule})")
            }
            Notice::Decision {
                volume, rule, text, ..
            } => {
                format!(
                    "n{node} {}decision {rule}: {text}",
                    volume.map_or(String::new(), |volume| format!("v{volume} "))
                )
            }
        });
    }

    fn process(&mut self, node: NodeIndex) -> &mut Process {
        self.nodes[node]
            .process
            .as_mut()
            .expect("an effect comes from a running process")
    }

    fn complete(
        &mut self,
        node: NodeIndex,
        id: RequestId,
        result: Result<Option<Stamps>, ClientError>,
    ) {
        let Some(request) = self.requests.remove(&id.0) else {
            self.fail(
                "bounds",
                format!("n{node}: request {} was answered twice or never made", id.0),
            );
            return;
        };
        self.trace.mix(&[id.0, u64::from(result.is_ok())]);
        self.trace.line(self.now, || match &result {
            Ok(_) => format!("n{node} request {} done", id.0),
            Err(error) => format!("n{node} request {} failed: {error:?}", id.0),
        });
        match &result {
            Ok(_) => self.figures.completed += 1,
            Err(_) => self.figures.failed += 1,
        }
        let now = self.tick_moment();
        match (request.kind, &result) {
            (RequestKind::Write { number, range, fua }, Ok(_)) => {
                self.branches[request.branch].end(number, range, true, fua, now);
            }
            (RequestKind::Write { number, range, .. }, Err(_)) => {
                self.branches[request.branch].end(number, range, false, false, now);
            }
            _ => {}
        }
        self.check_answer(id.0, &request, &result, now);
        if let Some(answers) = &mut self.answers {
            answers.insert(id.0, result);
        }
    }

    fn command_done(&mut self, node: NodeIndex, id: CommandId, result: Result<(), Refusal>) {
        let Some(command) = self.commands.remove(&id.0) else {
            self.fail(
                "bounds",
                format!(
                    "n{node}: command {} was answered twice or never given",
                    id.0
                ),
            );
            return;
        };
        self.trace.mix(&[id.0, u64::from(result.is_ok())]);
        self.trace.line(self.now, || match &result {
            Ok(()) => format!("n{node} command {} done: {}", id.0, command.text),
            Err(refusal) => format!(
                "n{node} command {} refused: {refusal}: {}",
                id.0, command.text
            ),
        });
        if let (Some(forced), Ok(())) = (command.promotion, &result) {
            self.promoted(node, forced, &command);
        }
        if let Some(answers) = &mut self.command_answers {
            answers.insert(id.0, result);
        }
        self.manager_answer(node, &command, result);
    }

    // ---- disks ------------------------------------------------------------------------------------------------------------------

    fn disk_job(&mut self, node: NodeIndex, volume: VolumeNumber, io: IoId, job: Job) {
        let volume = usize::from(volume.0);
        self.check_job(node, volume, &job);
        let (least, most) = self.settings.disk_delay;
        let mut delay = self.disk_random.delay(least, most);
        if self.nodes[node].volumes[volume].faults.slow > self.now {
            delay += self.disk_random.delay(10 * MILLISECOND, SECOND);
        }
        let code = match &job {
            Job::Read(range) => (10, range.offset),
            Job::Write(range, _) => (11, range.offset),
            Job::Zero(range) => (12, range.offset),
            Job::Flush => (13, 0),
            Job::MetadataWrite(offset, _) => (14, *offset),
            Job::MetadataFlush => (15, 0),
        };
        self.trace.mix(&[code.0, code.1, io.0]);
        if self.trace.wanted() {
            let text = self.job_text(node, volume, &job);
            self.trace.line(self.now, || {
                format!("n{node} v{volume} io {:x} {text}", io.0)
            });
        }
        let token = self.nodes[node].volumes[volume].disk.submit(job);
        let incarnation = self.nodes[node].incarnation;
        self.process(node).disk_operations += 1;
        self.schedule(
            delay,
            Occurrence::DiskDone {
                node,
                incarnation,
                volume,
                token,
                io,
            },
        );
    }

    fn job_text(&self, node: NodeIndex, volume: usize, job: &Job) -> String {
        match job {
            Job::Write(range, stamps) => {
                let write = stamps
                    .0
                    .first()
                    .and_then(|&stamp| crate::stamps::write_of(stamp));
                format!(
                    "write {range} of {}",
                    write.map_or("zeroes".into(), |write| format!("w{write}"))
                )
            }
            Job::MetadataWrite(offset, bytes) => {
                format!(
                    "metadata write {offset}+{} {}",
                    bytes.len(),
                    self.metadata_name(node, volume, *offset)
                )
            }
            other => format!("{other:?}"),
        }
    }

    /// What lies at an offset of the metadata, for the trace.
    fn metadata_name(&self, node: NodeIndex, volume: usize, offset: u64) -> String {
        let disk = &self.nodes[node].volumes[volume].disk;
        let Ok(layout) = Layout::new(disk.placement, disk.device_bytes, 1) else {
            return String::new();
        };
        if offset == layout.superblock_a {
            "superblock A".into()
        } else if offset == layout.superblock_b {
            "superblock B".into()
        } else if offset >= layout.bitmap_offset
            && offset < layout.bitmap_offset + layout.bitmap_slot_bytes
        {
            "bitmap".into()
        } else {
            "activity log".into()
        }
    }

    fn disk_done(
        &mut self,
        node: NodeIndex,
        incarnation: u64,
        volume: usize,
        token: u64,
        io: IoId,
    ) {
        if self.nodes[node].incarnation != incarnation || self.nodes[node].process.is_none() {
            return;
        }
        self.process(node).disk_operations -= 1;
        let now = self.now;
        let mut changed = std::mem::take(&mut self.scratch);
        let state = &mut self.nodes[node].volumes[volume];
        let Some(job) = state.disk.job(token) else {
            return;
        };
        let metadata = job.is_metadata();
        let active = |(until, chance): (Micros, u64), random: &mut Random| {
            until > now && random.chance(chance)
        };
        let error = if metadata {
            active(state.faults.metadata_errors, &mut self.disk_random).then_some(IoError::Failed)
        } else if matches!(job, Job::Read(_)) {
            active(state.faults.read_errors, &mut self.disk_random).then_some(IoError::Failed)
        } else if job.is_write() && state.faults.full > now {
            Some(IoError::NoSpace)
        } else {
            active(state.faults.write_errors, &mut self.disk_random).then_some(IoError::Failed)
        };
        let result = match error {
            Some(error) => {
                state.disk.fail(
                    token,
                    error == IoError::Failed,
                    &mut self.disk_random,
                    &mut changed,
                );
                Err(error)
            }
            None => Ok(state
                .disk
                .finish(token, &mut self.disk_random, &mut changed)),
        };
        self.sectors_changed(node, volume, &mut changed);
        self.scratch = changed;
        self.trace.mix(&[16, io.0, u64::from(result.is_ok())]);
        if let Err(error) = &result {
            self.trace.line(now, || {
                format!("n{node} v{volume} io {:x} FAILS: {error:?}", io.0)
            });
        } else {
            self.trace
                .line(now, || format!("n{node} v{volume} io {:x} done", io.0));
        }
        if metadata {
            self.check_metadata_operation(node, volume);
        }
        if self.violation.is_some() {
            return;
        }
        let event = if metadata {
            Event::MetadataDone {
                io,
                result: result.map(|_| ()),
            }
        } else {
            Event::DiskDone { io, result }
        };
        self.tell(node, event);
    }

    fn sectors_changed(&mut self, node: NodeIndex, volume: usize, changed: &mut Vec<Sector>) {
        for sector in changed.drain(..) {
            let stamp = self.nodes[node].volumes[volume]
                .disk
                .sector(sector, View::Cached);
            let differs = self
                .nodes
                .iter()
                .any(|other| other.volumes[volume].disk.sector(sector, View::Cached) != stamp);
            if differs {
                self.differing[volume].insert(sector);
            } else {
                self.differing[volume].remove(&sector);
            }
        }
    }

    /// The cached content of a sector at a node.
    #[must_use]
    pub fn sector(&self, node: NodeIndex, volume: usize, sector: Sector) -> Stamp {
        self.nodes[node].volumes[volume]
            .disk
            .sector(sector, View::Cached)
    }

    // ---- network -----------------------------------------------------------------------------------------------------------------

    /// The link between two nodes.
    #[must_use]
    pub fn link_of(&self, a: NodeIndex, b: NodeIndex) -> usize {
        self.links
            .iter()
            .position(|link| link.nodes == [a.min(b), a.max(b)])
            .expect("each two nodes have a link")
    }

    fn call_later(&mut self, link: usize) {
        if !self.links[link].call_scheduled {
            self.links[link].call_scheduled = true;
            let delay = self.network_random.delay(MILLISECOND, 100 * MILLISECOND);
            self.schedule(delay, Occurrence::Call { link });
        }
    }

    fn call(&mut self, link: usize) {
        self.links[link].call_scheduled = false;
        let [a, b] = self.links[link].nodes;
        let wants = |node: NodeIndex, peer: NodeIndex| {
            self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|process| process.wants[peer])
        };
        let idle = |node: NodeIndex, peer: NodeIndex| {
            self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|process| process.wants[peer] && process.sessions[peer].is_none())
        };
        let lonely = idle(a, b) || idle(b, a);
        if !lonely {
            return;
        }
        let pending = self
            .live
            .iter()
            .map(|&live| &self.connections[live])
            .any(|connection| {
                connection.link == link
                    && !connection.dead
                    && connection
                        .ends
                        .iter()
                        .any(|end| end.state == EndState::Pending)
            });
        if !wants(a, b) || !wants(b, a) || !self.links[link].is_open() || pending {
            // Somebody goes on calling.
            self.links[link].call_scheduled = true;
            let delay = self
                .network_random
                .between(20 * MILLISECOND, 100 * MILLISECOND);
            self.schedule(delay, Occurrence::Call { link });
            return;
        }
        let ends = [a, b].map(|node| {
            let session = SessionId(self.next_session);
            self.next_session += 1;
            End {
                node,
                incarnation: self.nodes[node].incarnation,
                session,
                state: EndState::Pending,
                closing: false,
            }
        });
        let lanes: [[LaneQueue; 4]; 2] = Default::default();
        self.connections.push(Connection {
            link,
            ends,
            lanes,
            dead: false,
            loss_scheduled: [false; 2],
        });
        let connection = self.connections.len() - 1;
        let connections = &self.connections;
        self.live
            .retain(|&connection| !connections[connection].is_over());
        self.live.push(connection);
        for end in 0..2 {
            let delay = self
                .network_random
                .delay(self.links[link].delay.0, 4 * self.links[link].delay.1);
            self.schedule(delay, Occurrence::Up { connection, end });
        }
        // Both called at once: the surplus connection dies young.
        if self.network_random.chance(30) {
            let delay = self.network_random.delay(100, 20 * MILLISECOND);
            self.schedule(delay, Occurrence::Idle { connection, end: 0 });
        }
    }

    fn session_up(&mut self, connection: usize, end: usize) {
        let shell = &self.connections[connection];
        let (node, peer) = (shell.ends[end].node, shell.ends[1 - end].node);
        let link = shell.link;
        let session = shell.ends[end].session;
        let alive = self.nodes[node].incarnation == shell.ends[end].incarnation
            && self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|process| process.wants[peer]);
        if shell.dead || !alive {
            self.connections[connection].ends[end].state = EndState::Gone;
            if !self.connections[connection].dead {
                self.connections[connection].die(&mut self.network_random);
            }
            self.lose_later(
                connection,
                1 - end,
                LossReason::NetworkFailure,
                (MILLISECOND, SECOND),
            );
            self.call_later(link);
            return;
        }
        if let Some((_, old)) = self.process(node).sessions[peer] {
            let old_end = self.connections[old].end_of(node);
            if !self.connections[old].dead {
                self.connections[old].die(&mut self.network_random);
                self.lose_later(
                    old,
                    1 - old_end,
                    LossReason::NetworkFailure,
                    (MILLISECOND, SECOND),
                );
            }
            self.session_lost(old, old_end, LossReason::Replaced);
            if self.violation.is_some()
                || self.nodes[node]
                    .process
                    .as_ref()
                    .is_none_or(|process| !process.wants[peer])
            {
                self.connections[connection].ends[end].state = EndState::Gone;
                return;
            }
        }
        self.connections[connection].ends[end].state = EndState::Up;
        self.process(node).sessions[peer] = Some((session, connection));
        self.trace.line(self.now, || {
            format!("n{node} session {} to n{peer} is up", session.0)
        });
        self.tell(
            node,
            Event::PeerConnected {
                peer: node_id(peer),
                session,
            },
        );
        for lane in Lane::ALL {
            self.deliver_later(connection, 1 - end, lane);
        }
    }

    /// Tells an end, at some later time, that its session is over.
    pub fn lose_later(
        &mut self,
        connection: usize,
        end: usize,
        reason: LossReason,
        delay: (Micros, Micros),
    ) {
        let shell = &mut self.connections[connection];
        if shell.ends[end].state != EndState::Gone && !shell.loss_scheduled[end] {
            shell.loss_scheduled[end] = true;
            let delay = self.network_random.delay(delay.0, delay.1);
            self.schedule(
                delay,
                Occurrence::Lost {
                    connection,
                    end,
                    reason,
                },
            );
        }
    }

    /// The connection dies at once; the ends learn of it later.
    pub fn kill_connection(&mut self, connection: usize) {
        if !self.connections[connection].dead {
            self.trace
                .line(self.now, || format!("connection {connection} dies"));
            self.connections[connection].die(&mut self.network_random);
            for end in 0..2 {
                self.lose_later(
                    connection,
                    end,
                    LossReason::NetworkFailure,
                    (MILLISECOND, 2 * SECOND),
                );
            }
        }
    }

    fn session_lost(&mut self, connection: usize, end: usize, reason: LossReason) {
        let shell = &mut self.connections[connection];
        let state = std::mem::replace(&mut shell.ends[end].state, EndState::Gone);
        let (node, peer) = (shell.ends[end].node, shell.ends[1 - end].node);
        let (session, link, incarnation) = (
            shell.ends[end].session,
            shell.link,
            shell.ends[end].incarnation,
        );
        if !shell.dead {
            shell.die(&mut self.network_random);
            self.lose_later(
                connection,
                1 - end,
                LossReason::NetworkFailure,
                (MILLISECOND, 2 * SECOND),
            );
        }
        if state == EndState::Up
            && self.nodes[node].incarnation == incarnation
            && self.nodes[node].process.is_some()
        {
            if self.process(node).sessions[peer] == Some((session, connection)) {
                self.process(node).sessions[peer] = None;
            }
            self.trace.line(self.now, || {
                format!(
                    "n{node} session {} to n{peer} is lost: {reason:?}",
                    session.0
                )
            });
            self.tell(
                node,
                Event::PeerLost {
                    peer: node_id(peer),
                    session,
                    reason,
                },
            );
        }
        self.call_later(link);
    }

    fn close(&mut self, node: NodeIndex, peer: NodeId, session: SessionId) {
        let peer = usize::from(peer.0);
        let Some((current, connection)) = self.process(node).sessions[peer] else {
            return;
        };
        if current != session {
            return;
        }
        self.trace.line(self.now, || {
            format!("n{node} closes session {} to n{peer}", session.0)
        });
        let end = self.connections[connection].end_of(node);
        let blocked = self.links[self.connections[connection].link].blocked[end];
        let shell = &mut self.connections[connection];
        if std::mem::replace(&mut shell.ends[end].closing, true) {
            return;
        }
        let last = shell.lanes[end]
            .iter()
            .filter_map(|lane| lane.messages.back().map(|(at, _)| *at))
            .max()
            .unwrap_or(self.now);
        let flush = last.saturating_sub(self.now).min(SECOND);
        let dead = shell.dead;
        if !shell.loss_scheduled[end] {
            shell.loss_scheduled[end] = true;
            let delay = flush + self.network_random.delay(100, 20 * MILLISECOND);
            self.schedule(
                delay,
                Occurrence::Lost {
                    connection,
                    end,
                    reason: LossReason::ClosedHere,
                },
            );
        }
        if !dead && !blocked {
            // The peer learns of the end after the last message.
            let shell = &mut self.connections[connection];
            if !shell.loss_scheduled[1 - end] {
                shell.loss_scheduled[1 - end] = true;
                let delay = flush + self.network_random.delay(MILLISECOND, 50 * MILLISECOND);
                self.schedule(
                    delay,
                    Occurrence::Lost {
                        connection,
                        end: 1 - end,
                        reason: LossReason::Closed,
                    },
                );
            }
        } else {
            self.lose_later(
                connection,
                1 - end,
                LossReason::NetworkFailure,
                (MILLISECOND, 3 * SECOND),
            );
        }
    }

    fn send(
        &mut self,
        node: NodeIndex,
        peer: NodeId,
        session: SessionId,
        message: Message<Stamps>,
    ) {
        let peer = usize::from(peer.0);
        let lane = message.lane();
        self.trace.mix(&[20, lane as u64]);
        self.trace.line(self.now, || {
            format!("n{node} -> n{peer} {}", short(&message))
        });
        self.check_send(node, peer, &message);
        let Some((current, connection)) = self.process(node).sessions[peer] else {
            return;
        };
        let shell = &self.connections[connection];
        let end = shell.end_of(node);
        if current != session || shell.dead || shell.ends[end].closing {
            return;
        }
        let message = transmit(message);
        let link = &self.links[shell.link];
        let delay = self.network_random.delay(link.delay.0, link.delay.1);
        let at = self.now + delay;
        self.connections[connection].send(end, lane, message, at);
        self.check_lane(connection, end);
        self.deliver_later(connection, end, lane);
    }

    fn deliver_later(&mut self, connection: usize, from: usize, lane: Lane) {
        let shell = &mut self.connections[connection];
        let blocked = self.links[shell.link].blocked[from];
        let up = shell.ends[1 - from].state == EndState::Up;
        let queue = &mut shell.lanes[from][lane as usize];
        if let Some((at, _)) = queue.messages.front()
            && !queue.scheduled
            && !blocked
            && up
        {
            queue.scheduled = true;
            let at = (*at).max(self.now);
            self.queue.push(
                at,
                Occurrence::Deliver {
                    connection,
                    from,
                    lane,
                },
            );
        }
    }

    fn deliver(&mut self, connection: usize, from: usize, lane: Lane) {
        let shell = &mut self.connections[connection];
        shell.lanes[from][lane as usize].scheduled = false;
        let (node, peer) = (shell.ends[1 - from].node, shell.ends[from].node);
        let session = shell.ends[1 - from].session;
        let up = shell.ends[1 - from].state == EndState::Up
            && self.nodes[node].incarnation == shell.ends[1 - from].incarnation;
        if self.links[shell.link].blocked[from] || !up {
            return;
        }
        if let Some((_, message)) = shell.lanes[from][lane as usize].messages.pop_front() {
            self.trace.line(self.now, || {
                format!("n{node} <- n{peer} {}", short(&message))
            });
            self.check_delivery(node, peer, &message);
            self.tell(
                node,
                Event::Frame {
                    peer: node_id(peer),
                    session,
                    message,
                },
            );
        }
        self.deliver_later(connection, from, lane);
    }

    /// Blocks a direction of a link for a while.
    pub fn block(&mut self, link: usize, side: usize, heal_after: Option<Micros>) {
        if self.links[link].blocked[side] {
            return;
        }
        self.trace.line(self.now, || {
            format!("link {link} blocked from n{}", self.links[link].nodes[side])
        });
        self.links[link].blocked[side] = true;
        if let Some(after) = heal_after {
            self.schedule(after, Occurrence::Heal { link, side });
        }
        for connection in self.live.clone() {
            if self.connections[connection].link == link && !self.connections[connection].is_over()
            {
                // The receiver of the blocked direction hears nothing and gives up, unless it heals before.
                let delay = self.network_random.delay(100 * MILLISECOND, 3 * SECOND);
                self.schedule(
                    delay,
                    Occurrence::Idle {
                        connection,
                        end: 1 - side,
                    },
                );
            }
        }
    }

    /// Heals a direction of a link.
    pub fn heal(&mut self, link: usize, side: usize) {
        if !self.links[link].blocked[side] {
            return;
        }
        self.trace.line(self.now, || {
            format!("link {link} healed from n{}", self.links[link].nodes[side])
        });
        self.links[link].blocked[side] = false;
        for connection in self.live.clone() {
            if self.connections[connection].link == link && !self.connections[connection].is_over()
            {
                for lane in Lane::ALL {
                    self.deliver_later(connection, side, lane);
                }
            }
        }
        self.call_later(link);
    }

    fn idle(&mut self, connection: usize, end: usize) {
        let shell = &self.connections[connection];
        let link = &self.links[shell.link];
        let surplus = end == 0 && !link.blocked[1];
        if shell.dead || shell.is_over() || (!link.blocked[1 - end] && !surplus) {
            return;
        }
        self.kill_connection(connection);
    }
}

/// A message goes through the bytes of the wire.
fn transmit(message: Message<Stamps>) -> Message<Stamps> {
    crate::codec::through_the_wire(message)
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

/// A message without its bulk, for the trace.
fn short(message: &Message<Stamps>) -> String {
    match message {
        Message::Write {
            sequence,
            epoch,
            range,
            payload,
            ..
        } => {
            let write = payload
                .0
                .first()
                .and_then(|&stamp| crate::stamps::write_of(stamp))
                .unwrap_or(0);
            format!("Write {sequence} epoch {epoch} {range} w{write}")
        }
        Message::ResyncData { id, range, .. } => format!("ResyncData {id} {range}"),
        Message::ReadReply { id, outcome, .. } => format!("ReadReply {id} {outcome:?}"),
        Message::BitmapRuns { last, runs, .. } => {
            format!("BitmapRuns {} bytes, last {last}", runs.len())
        }
        other => format!("{other:?}"),
    }
}

/// True for a role that serves clients.
#[must_use]
pub fn serves(view: &NodeView) -> bool {
    view.role == Role::Primary
}

/// Number of sectors of a volume.
#[must_use]
pub fn sectors_of(settings: &Settings, volume: usize) -> u64 {
    settings.volumes[volume].data_bytes / SECTOR_BYTES
}
