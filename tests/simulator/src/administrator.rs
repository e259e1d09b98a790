//! The cluster manager and the administrator behind it.
//!
//! The manager keeps one node Primary: it promotes a node only if that node holds every completed write as far as the last Primary
//! knew (`NodeVolume::current`), so a run without `reckless` never has a split brain of its making. A reckless manager
//! promotes whatever says UpToDate, and settles the split brain in the liveness phase. Between that it gives commands on a whim,
//! wise and senseless ones. In the liveness phase it heals: attaches, connects, resumes.

use qrbd_engine::api::{Command, Event};
use qrbd_engine::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use qrbd_engine::units::{NodeId, VolumeNumber};

use crate::disk::View;
use crate::network::NodeIndex;
use crate::queue::{MILLISECOND, Micros, SECOND};
use crate::random::Random;
use crate::settings::{Beginning, Settings};
use crate::world::{Occurrence, OpenCommand, World, node_id, volume_number};

/// Why a command was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// After the start of a process.
    Start,
    /// To make the first data.
    Beginning,
    /// To have a Primary.
    Promote,
    /// To have another Primary.
    Demote,
    /// For no reason.
    Whim,
    /// To end what a fault or a whim left.
    Heal,
    /// A scenario's.
    Scenario,
}

/// What the manager is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The first data do not exist yet.
    Beginning,
    /// No Primary.
    Vacant,
    /// A promotion is under way.
    Promoting(NodeIndex),
    /// A node serves.
    Serving(NodeIndex),
    /// Clients of the node finish before a demotion.
    Draining(NodeIndex),
    /// A demotion is under way.
    Demoting(NodeIndex),
}

/// The manager.
pub struct Manager {
    random: Random,
    phase: Phase,
    /// The first node.
    first: NodeIndex,
    /// The first data come from a forced promotion.
    forces: bool,
    /// The last node that was promoted.
    pub holder: Option<NodeIndex>,
    /// The node whose word on who is current counts: the last one promoted, as long as it is Primary.
    pub speaks: Option<NodeIndex>,
    /// The last Primary left its role in good order, by volume: its own data were good, or it saw its peer's to the end.
    pub graceful: Vec<bool>,
    /// The last good copy was given up by order, by volume.
    pub given_up: Vec<bool>,
    /// Somebody forced a promotion while another node may have had data.
    pub forced_apart: bool,
    /// A promotion apart from the others was written down and not carried out: the node's disk tells of a history of its own, in which
    /// nothing was written.
    pub half_promoted: Option<NodeIndex>,
    /// Liveness phase.
    pub healing: bool,
    /// Nodes that a whim disconnected.
    disconnected: Vec<bool>,
    /// Attempts to connect in the liveness phase.
    attempts: u32,
    /// Who loses a split brain.
    victim: Option<NodeIndex>,
    /// No promotion before.
    wait_until: Micros,
    /// Off in scenarios.
    pub active: bool,
}

impl Manager {
    /// A manager before anything happened.
    #[must_use]
    pub fn new(settings: &Settings, mut random: Random) -> Manager {
        let first = random.below(settings.nodes as u64) as usize;
        Manager {
            random,
            phase: Phase::Beginning,
            first,
            forces: settings.beginning == Beginning::ForcePrimary,
            holder: None,
            speaks: None,
            graceful: vec![false; settings.volumes.len()],
            given_up: vec![false; settings.volumes.len()],
            forced_apart: false,
            half_promoted: None,
            healing: false,
            disconnected: vec![false; settings.nodes],
            attempts: 0,
            victim: None,
            wait_until: 0,
            active: false,
        }
    }

    /// True unless a whim disconnected the node.
    #[must_use]
    pub fn wants_connection(&self, node: NodeIndex) -> bool {
        !self.disconnected[node]
    }

    /// From now on the node does not connect by itself.
    pub fn disconnect_whim(&mut self, node: NodeIndex) {
        self.disconnected[node] = true;
    }

    /// True when the first data exist.
    #[must_use]
    pub fn began(&self) -> bool {
        self.phase != Phase::Beginning
    }

    /// A node crashed.
    pub(crate) fn node_crashed(&mut self, node: NodeIndex) {
        if self.speaks == Some(node) {
            self.speaks = None;
        }
        match self.phase {
            Phase::Promoting(who)
            | Phase::Serving(who)
            | Phase::Draining(who)
            | Phase::Demoting(who)
                if who == node =>
            {
                let unborn = self.holder.is_none() && self.forces;
                self.phase = if unborn {
                    Phase::Beginning
                } else {
                    Phase::Vacant
                };
                self.graceful.fill(false);
            }
            _ => {}
        }
    }
}

impl World {
    /// Starts every process and the manager.
    pub fn begin(&mut self) {
        self.manager.active = true;
        for node in 0..self.settings.nodes {
            let delay = self.random.delay(100, 50 * MILLISECOND);
            self.nodes[node].start_scheduled = true;
            self.schedule(delay, Occurrence::Start { node });
        }
        self.schedule(MILLISECOND, Occurrence::Administrator);
    }

    /// The manager's next step.
    pub(crate) fn administrator_step(&mut self) {
        let (least, most) = if self.manager.healing {
            (20 * MILLISECOND, 300 * MILLISECOND)
        } else {
            self.settings.administrator_interval
        };
        let delay = self.manager.random.delay(least, most);
        self.schedule(delay, Occurrence::Administrator);
        if let Some(node) = self.retire_at.take() {
            self.crash(node, true);
            self.start_later(node);
        }
        if self.violation.is_some() {
            return;
        }
        if self.manager.healing {
            self.heal_step();
        } else if self.manager.random.chance(self.settings.whims) && self.manager.began() {
            self.whim();
        }
        if self.settings.resizes > 0 && !self.manager.healing && self.manager.began() {
            let mut random = std::mem::replace(&mut self.manager.random, Random::new(0));
            if random.chance(self.settings.resizes) {
                self.growth_whim(&mut random);
            }
            self.manager.random = random;
        }
        match self.manager.phase {
            Phase::Beginning => self.begin_step(),
            Phase::Vacant => self.vacant_step(),
            Phase::Draining(node) => self.drain_step(node),
            Phase::Serving(_) | Phase::Promoting(_) | Phase::Demoting(_) => {}
        }
        if self.settings.reckless && !self.manager.healing && self.manager.began() {
            self.reckless_step();
        }
        if let Phase::Serving(node) = self.manager.phase
            && !self.manager.healing
            && self.manager.random.chance(self.settings.demotions)
        {
            self.stop_clients(node);
            self.manager.phase = Phase::Draining(node);
        }
    }

    fn begin_step(&mut self) {
        let first = self.manager.first;
        let volumes = self.settings.volumes.len();
        if self.commands.values().any(|command| command.node == first) {
            return;
        }
        let Some(view) = self.nodes[first].live_view().cloned() else {
            return;
        };
        if (0..volumes).any(|volume| view.volumes[volume].disk < DiskState::Inconsistent) {
            return;
        }
        match self.settings.beginning {
            Beginning::ForcePrimary => {
                self.manager.phase = Phase::Promoting(first);
                self.command(first, Command::Promote { force: true }, Purpose::Beginning);
            }
            Beginning::SkipInitialSync => {
                let peers: Vec<NodeIndex> = (0..self.settings.nodes)
                    .filter(|&peer| peer != first)
                    .collect();
                if let Some(volume) = (0..volumes)
                    .find(|&volume| view.volumes[volume].disk == DiskState::Inconsistent)
                {
                    let connected = peers.iter().all(|&peer| {
                        view.connected(peer)
                            && view.replication(peer, volume) == ReplicationState::Established
                            && view.peer_disk(peer, volume) == DiskState::Inconsistent
                    });
                    if connected {
                        let command = Command::NewCurrentUuid {
                            volume: volume_number(volume),
                            clear_bitmap: true,
                        };
                        self.command(first, command, Purpose::Beginning);
                    }
                } else {
                    for volume in 0..volumes {
                        self.nodes[first].volumes[volume].current = true;
                        for &peer in &peers {
                            if view.in_sync_with(peer, volume) {
                                self.nodes[peer].volumes[volume].current = true;
                            }
                        }
                    }
                    self.manager.phase = Phase::Vacant;
                }
            }
        }
    }

    /// True if the manager may promote the node.
    #[must_use]
    pub fn is_eligible(&self, node: NodeIndex) -> bool {
        let Some(view) = self.nodes[node].live_view() else {
            return false;
        };
        (0..self.settings.volumes.len()).all(|volume| {
            self.nodes[node].volumes[volume].current
                && view.volumes[volume].disk == DiskState::UpToDate
        })
    }

    fn is_connected_to_all(&self, node: NodeIndex) -> bool {
        (0..self.settings.nodes).all(|peer| peer == node || self.nodes[node].connected(peer))
    }

    fn vacant_step(&mut self) {
        // A split brain is settled first.
        let apart = self.manager.healing && self.manager.victim.is_some();
        let settled = !apart || (0..self.settings.nodes).all(|node| self.is_connected_to_all(node));
        if self.now < self.manager.wait_until || !settled {
            return;
        }
        let eligible: Vec<NodeIndex> = (0..self.settings.nodes)
            .filter(|&node| {
                self.is_eligible(node)
                    && (self.constrained != Some(node) || self.nodes[node].is_primary())
                    && !self.commands.values().any(|command| command.node == node)
            })
            .collect();
        if eligible.is_empty() {
            return;
        }
        let node = *self.manager.random.pick(&eligible);
        self.manager.phase = Phase::Promoting(node);
        self.command(node, Command::Promote { force: false }, Purpose::Promote);
    }

    fn reckless_step(&mut self) {
        for node in 0..self.settings.nodes {
            let Some(view) = self.nodes[node].live_view() else {
                continue;
            };
            let good = view
                .volumes
                .iter()
                .all(|volume| volume.disk == DiskState::UpToDate);
            let apart = (0..self.settings.nodes).all(|peer| peer == node || !view.connected(peer));
            let idle = view.role == Role::Secondary
                && !self.commands.values().any(|command| command.node == node);
            if good && apart && idle && self.manager.random.chance(100) {
                self.command(node, Command::Promote { force: false }, Purpose::Promote);
            }
        }
    }

    fn stop_clients(&mut self, node: NodeIndex) {
        self.nodes[node].serving = false;
    }

    /// Lets clients use the device of a node.
    pub fn start_clients(&mut self, node: NodeIndex) {
        self.nodes[node].serving = true;
        self.openers(node, 1);
    }

    /// Tells the engine how many clients have each volume open.
    pub fn openers(&mut self, node: NodeIndex, count: u32) {
        for volume in 0..self.settings.volumes.len() {
            self.tell(
                node,
                Event::Openers {
                    volume: volume_number(volume),
                    count,
                },
            );
        }
    }

    fn drain_step(&mut self, node: NodeIndex) {
        let busy = self.requests.values().any(|request| request.node == node);
        let commanded = self.commands.values().any(|command| command.node == node);
        if !busy && !commanded {
            self.openers(node, 0);
            self.manager.phase = Phase::Demoting(node);
            self.command(node, Command::Demote { force: false }, Purpose::Demote);
        }
    }

    /// The manager learns how a command ended.
    pub(crate) fn manager_answer(
        &mut self,
        node: NodeIndex,
        command: &OpenCommand,
        result: Result<(), Refusal>,
    ) {
        if command.text.starts_with("Attach") {
            let digits = |c: char| !c.is_ascii_digit();
            let volume: usize = command.text.trim_matches(digits).parse().unwrap_or(0);
            self.nodes[node].volumes[volume].attach_refused = result.is_err();
            if result.is_err() {
                self.nodes[node].volumes[volume].attached = false;
            }
            return;
        }
        if command.text.starts_with("Invalidate {") && result.is_ok() {
            self.invalidated(node, command);
        }
        if result.is_err() {
            self.note_half_promotion(node, command);
        }
        if !self.manager.active {
            return;
        }
        let phase = self.manager.phase;
        match command.purpose {
            Purpose::Beginning | Purpose::Promote if command.promotion.is_some() => {
                match (phase, result) {
                    (Phase::Promoting(who), Ok(())) if who == node => {
                        self.manager.phase = Phase::Serving(node);
                        self.start_clients(node);
                    }
                    (Phase::Promoting(who), Err(_)) if who == node => {
                        let beginning = command.purpose == Purpose::Beginning;
                        self.manager.phase = if beginning {
                            Phase::Beginning
                        } else {
                            Phase::Vacant
                        };
                        self.manager.wait_until =
                            self.now + self.manager.random.delay(MILLISECOND, 200 * MILLISECOND);
                    }
                    // A second Primary of a reckless manager.
                    (_, Ok(())) => self.start_clients(node),
                    (_, Err(_)) => {}
                }
            }
            Purpose::Demote if phase == Phase::Demoting(node) => match result {
                Ok(()) => {
                    self.manager.phase = Phase::Vacant;
                    self.left_in_order(node);
                    if self.settings.retiring > 0
                        && self.fault_budget > 0
                        && self.manager.random.chance(self.settings.retiring)
                    {
                        self.fault_budget -= 1;
                        self.retire_at = Some(node);
                    }
                    self.manager.wait_until =
                        self.now + self.manager.random.delay(100, 50 * MILLISECOND);
                }
                Err(_) => {
                    self.manager.phase = Phase::Serving(node);
                    self.start_clients(node);
                }
            },
            _ => {}
        }
        if command.text.starts_with("Demote")
            && command.purpose != Purpose::Demote
            && result.is_ok()
        {
            self.stop_clients(node);
            self.openers(node, 0);
            if matches!(self.manager.phase, Phase::Serving(who) | Phase::Draining(who) | Phase::Demoting(who) if who == node)
            {
                self.manager.phase = Phase::Vacant;
                self.manager.graceful.fill(false);
            }
        }
    }

    /// A demotion was answered. Where the node had neither a good disk nor a peer with one, it could not bring anything to an end.
    fn left_in_order(&mut self, node: NodeIndex) {
        let Some(view) = self.nodes[node].live_view().cloned() else {
            return;
        };
        for volume in 0..self.settings.volumes.len() {
            let good = view.volumes[volume].disk == DiskState::UpToDate
                || (0..self.settings.nodes)
                    .any(|peer| peer != node && view.in_sync_with(peer, volume));
            self.manager.graceful[volume] = good;
        }
    }

    /// A node gave its data up by order. If its peer was alive when the order was given and lost power before it was carried out, what
    /// no flush covered is gone with that order.
    fn invalidated(&mut self, node: NodeIndex, command: &OpenCommand) {
        for volume in 0..self.settings.volumes.len() {
            let inconsistent = self.nodes[node]
                .live_view()
                .is_some_and(|view| view.volumes[volume].disk == DiskState::Inconsistent);
            if !inconsistent || command.view_before.volumes[volume].disk == DiskState::Inconsistent
            {
                continue;
            }
            self.nodes[node].volumes[volume].current = false;
            self.manager.given_up[volume] |=
                (self.nodes.iter()).all(|node| !node.volumes[volume].current);
            for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
                let crashed = self.nodes[peer].volumes[volume].loss >= crate::node::Loss::Power;
                if command.peers_live && crashed {
                    let branch = self.nodes[peer].volumes[volume].branch;
                    self.branches[branch].lose_unflushed();
                }
            }
        }
    }

    /// A promotion ended without success: did it leave a generation behind?
    pub(crate) fn note_half_promotion(&mut self, node: NodeIndex, command: &OpenCommand) {
        if command.promotion.is_none() {
            return;
        }
        let mut left = false;
        for volume in 0..self.settings.volumes.len() {
            let before = command.view_before.volumes[volume].current;
            let lives = self.nodes[node]
                .live_view()
                .map(|view| view.volumes[volume].current)
                .filter(|current| !current.is_none());
            let here = lives.or_else(|| self.generation_on_disk(node, volume));
            if before.is_none() || here.is_none_or(|here| here.same(before)) {
                continue;
            }
            left = true;
            // Whoever goes on elsewhere goes on without this disk.
            let state = &self.nodes[node].volumes[volume];
            let mut fork = self.branches[state.disk_branch.unwrap_or(state.branch)].clone();
            fork.own_writes = 0;
            if !state.current {
                // It had missed writes already, and has no claim to them.
                fork.lose_beyond(|sector| state.disk.sector(sector, View::Cached));
            }
            self.branches.push(fork);
            let state = &mut self.nodes[node].volumes[volume];
            match &mut state.disk_branch {
                Some(branch) => *branch = self.branches.len() - 1,
                None => state.branch = self.branches.len() - 1,
            }
        }
        if left {
            self.trace
                .line(self.now, || format!("n{node} is half promoted"));
            // Without the manager nobody goes on elsewhere because of it, so it excuses no split brain.
            if self.manager.active {
                self.manager.half_promoted = Some(node);
            }
        }
    }

    /// A promotion was measured: from now on this node's word counts.
    pub(crate) fn manager_promoted(&mut self, node: NodeIndex) {
        self.manager.holder = Some(node);
        self.manager.speaks = Some(node);
        self.manager.graceful.fill(false);
        // Those in sync with the new Primary hold what was just measured.
        let view = self.nodes[node].live_view().cloned();
        for volume in 0..self.settings.volumes.len() {
            for other in 0..self.settings.nodes {
                let same = (view.as_ref())
                    .is_some_and(|view| other != node && view.in_sync_with(other, volume));
                if other == node || same {
                    self.nodes[other].volumes[volume].loss = crate::node::Loss::Nothing;
                }
            }
        }
        self.holder_speaks(node);
    }

    /// The view of a node changed.
    pub(crate) fn manager_view_changed(&mut self, node: NodeIndex) {
        if self.manager.speaks == Some(node) {
            if self.nodes[node].is_primary() {
                self.holder_speaks(node);
            } else {
                self.manager.speaks = None;
            }
        }
    }

    fn holder_speaks(&mut self, node: NodeIndex) {
        let Some(view) = self.nodes[node].live_view().cloned() else {
            return;
        };
        for volume in 0..self.settings.volumes.len() {
            let current: Vec<bool> = (0..self.settings.nodes)
                .map(|other| {
                    if other == node {
                        view.volumes[volume].disk == DiskState::UpToDate
                    } else {
                        // The source of a resync to this very node has everything as well.
                        view.in_sync_with(other, volume)
                            || view.replication(other, volume).is_sync_target()
                                && view.peer_disk(other, volume) == DiskState::UpToDate
                    }
                })
                .collect();
            // Without a good copy within reach nothing is completed: whoever was current stays so.
            if current.contains(&true) {
                self.trace.line(self.now, || {
                    format!("n{node} v{volume}: current are {current:?}")
                });
                for (other, current) in current.into_iter().enumerate() {
                    self.nodes[other].volumes[volume].current = current;
                }
            }
        }
    }

    // ---- whims ----------------------------------------------------------------------------------------------------------------

    fn whim(&mut self) {
        let nodes = self.settings.nodes;
        let node = self.manager.random.below(nodes as u64) as usize;
        let Some(view) = self.nodes[node].live_view().cloned() else {
            return;
        };
        let peer = (node + 1) % nodes;
        let volume = self
            .manager
            .random
            .below(self.settings.volumes.len() as u64) as usize;
        let number = volume_number(volume);
        let primary = view.role == Role::Primary;
        let kind = self.manager.random.below(17);
        let command = match kind {
            0 | 1 => {
                self.manager.disconnected[node] = true;
                Command::Disconnect {
                    peer: node_id(peer),
                    force: false,
                }
            }
            2..=4 => {
                self.manager.disconnected[node] = false;
                Command::Connect {
                    peer: node_id(peer),
                    discard_my_data: false,
                }
            }
            5 => Command::Detach {
                volume: number,
                force: false,
            },
            6 | 7 => {
                if self.nodes[node].volumes[volume].attached {
                    return;
                }
                self.attach(node, volume, Purpose::Whim);
                return;
            }
            // Whoever invalidates the only copy with a tail that A or B did not deliver yet loses it on purpose.
            8 if !primary => Command::Invalidate { volume: number },
            9 if primary || !self.nodes[peer].is_primary() => Command::InvalidateRemote {
                volume: number,
                peer: node_id(peer),
            },
            10 => Command::Outdate { volume: number },
            11 => Command::PauseSync {
                volume: number,
                peer: node_id(peer),
            },
            12 => Command::ResumeSync {
                volume: number,
                peer: node_id(peer),
            },
            // On another node than the Primary, a promotion that waits long enough would be split brain.
            13 if primary || self.settings.reckless => Command::Promote { force: false },
            14 => Command::Demote {
                force: self.manager.random.chance(300),
            },
            // Who clears the bitmap vouches for equal disks; where the first synchronisation is not over they are not equal.
            15 if self.settings.beginning == Beginning::SkipInitialSync => {
                Command::NewCurrentUuid {
                    volume: number,
                    clear_bitmap: true,
                }
            }
            16 => match self.manager.random.below(3) {
                0 => Command::Detach {
                    volume: VolumeNumber(99),
                    force: false,
                },
                1 => Command::Connect {
                    peer: NodeId(9),
                    discard_my_data: false,
                },
                _ => Command::Outdate {
                    volume: VolumeNumber(99),
                },
            },
            _ => return,
        };
        self.command(node, command, Purpose::Whim);
    }

    // ---- liveness -----------------------------------------------------------------------------------------------------------------

    /// The faults stop: everything that the injector did is undone, and the manager heals.
    pub fn start_healing(&mut self) {
        self.trace
            .line(self.now, || "LIVENESS: the faults stop".into());
        self.manager.healing = true;
        self.fault_budget = 0;
        self.crash_amid_effects = 0;
        for link in 0..self.links.len() {
            for side in 0..2 {
                self.heal(link, side);
            }
        }
        for node in &mut self.nodes {
            for volume in &mut node.volumes {
                // What happened stays known to the checkers, it only ends.
                let end = |until: Micros| until.min(self.now);
                volume.faults = crate::node::DiskFaults {
                    read_errors: (end(volume.faults.read_errors.0), 0),
                    write_errors: (end(volume.faults.write_errors.0), 0),
                    metadata_errors: (end(volume.faults.metadata_errors.0), 0),
                    slow: end(volume.faults.slow),
                    full: end(volume.faults.full),
                    stalled: end(volume.faults.stalled),
                };
            }
        }
        for disconnected in &mut self.manager.disconnected {
            *disconnected = false;
        }
    }

    fn heal_step(&mut self) {
        for node in 0..self.settings.nodes {
            if self.nodes[node].process.is_none() {
                self.start_later(node);
                continue;
            }
            if self.commands.values().any(|command| command.node == node) {
                continue;
            }
            self.heal_node(node);
            if self.violation.is_some() {
                return;
            }
        }
    }

    fn heal_node(&mut self, node: NodeIndex) {
        let Some(view) = self.nodes[node].live_view().cloned() else {
            return;
        };
        for volume in 0..self.settings.volumes.len() {
            if view.volumes[volume].disk == DiskState::Diskless
                && !self.nodes[node].volumes[volume].attached
            {
                // A Primary takes only the data that it shows; a Secondary takes any.
                if self.nodes[node].volumes[volume].attach_refused && view.role == Role::Primary {
                    self.nodes[node].volumes[volume].attach_refused = false;
                    self.stop_clients(node);
                    self.command(node, Command::Demote { force: true }, Purpose::Heal);
                } else {
                    self.attach(node, volume, Purpose::Heal);
                }
                return;
            }
            for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
                if matches!(
                    view.replication(peer, volume),
                    ReplicationState::PausedSyncS | ReplicationState::PausedSyncT
                ) {
                    self.command(
                        node,
                        Command::ResumeSync {
                            volume: volume_number(volume),
                            peer: node_id(peer),
                        },
                        Purpose::Heal,
                    );
                    return;
                }
            }
        }
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            if view.peers[peer]
                .as_ref()
                .is_some_and(|peer| peer.connection == ConnectionState::StandAlone)
            {
                self.heal_connection(node, peer, view.role);
                return;
            }
        }
    }

    fn heal_connection(&mut self, node: NodeIndex, peer: NodeIndex, role: Role) {
        self.manager.attempts += 1;
        // Nobody agrees to a Primary that would have to become target: it steps down.
        if role == Role::Primary && self.manager.attempts > 12 {
            self.manager.attempts = 6;
            self.stop_clients(node);
            self.command(node, Command::Demote { force: true }, Purpose::Heal);
            return;
        }
        let half = self.manager.half_promoted;
        if (self.settings.reckless || half.is_some()) && self.manager.attempts > 6 {
            let victim = *self.manager.victim.get_or_insert_with(|| match half {
                // Nothing was written there.
                Some(half) if !self.settings.reckless => half,
                _ => self.manager.random.below(self.settings.nodes as u64) as usize,
            });
            if victim == node {
                if role == Role::Primary {
                    self.stop_clients(node);
                    self.command(node, Command::Demote { force: true }, Purpose::Heal);
                    return;
                }
                self.command(
                    node,
                    Command::Connect {
                        peer: node_id(peer),
                        discard_my_data: true,
                    },
                    Purpose::Heal,
                );
                return;
            }
        }
        self.command(
            node,
            Command::Connect {
                peer: node_id(peer),
                discard_my_data: false,
            },
            Purpose::Heal,
        );
    }

    /// What the manager waits for, for reports.
    #[must_use]
    pub fn manager_state(&self) -> String {
        let current = |volume: usize| -> Vec<bool> {
            self.nodes
                .iter()
                .map(|node| node.volumes[volume].current)
                .collect()
        };
        let current: Vec<Vec<bool>> = (0..self.settings.volumes.len()).map(current).collect();
        format!(
            "manager {:?}, last Primary {:?}, current {current:?}",
            self.manager.phase, self.manager.holder
        )
    }

    /// True when the run may end: nothing is unfinished, and one node serves.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.manager.phase, Phase::Serving(_)) && self.now > SECOND
    }
}
