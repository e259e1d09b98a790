//! Processes of nodes: their start, their end, and taking disks into use.
//!
//! An attach is the shell's work until the engine gets the image: the metadata are read, brought into order after a crash, and a fresh
//! activity log is laid, one step after the other; a crash may come between any two of them.

use qrbd_engine::Engine;
use qrbd_engine::api::{Command, LossReason};
use qrbd_engine::config::{EngineConfig, PeerConfig, VolumeConfig};
use qrbd_engine::metadata::growth::KnownDevice;
use qrbd_engine::metadata::image::Step;
use qrbd_engine::state::Role;
use qrbd_engine::units::Time;
use qrbd_engine::wire::message::Protocol;

use crate::administrator::Purpose;
use crate::disk::{Job, View};
use crate::engine_view::NodeView;
use crate::network::{EndState, NodeIndex};
use crate::node::{Attaching, Loss, Process};
use crate::queue::{MILLISECOND, SECOND};
use crate::world::{Occurrence, RequestKind, World, node_id, volume_number};

impl World {
    /// Starts the process of a node: it attaches its disks and connects.
    pub fn start(&mut self, node: NodeIndex) {
        self.nodes[node].start_scheduled = false;
        if self.nodes[node].process.is_some() {
            return;
        }
        self.boot(node);
        for volume in 0..self.settings.volumes.len() {
            self.attach(node, volume, Purpose::Start);
        }
        for peer in 0..self.settings.nodes {
            if peer != node && self.manager.wants_connection(node) {
                let command = Command::Connect {
                    peer: node_id(peer),
                    discard_my_data: false,
                };
                self.command(node, command, Purpose::Start);
            }
        }
    }

    /// The configuration of a peer, as every node has it.
    #[must_use]
    pub fn peer_config(&self, peer: NodeIndex) -> PeerConfig {
        let mut peer = PeerConfig::new(node_id(peer));
        peer.protocol = self.settings.protocol;
        peer.fencing = self.settings.fencing;
        peer.policies = self.settings.policies;
        peer.ping_interval = 2000;
        peer.ping_timeout = 500;
        peer.timeout = 1000;
        peer.ko_count = 3;
        peer.max_in_flight_bytes = 1 << 20;
        peer.resync_window_bytes = 1 << 20;
        let patience = self.settings.asked_before_resync.map(|_| 60_000);
        peer.before_resync_target = patience;
        peer.before_resync_source = patience;
        peer
    }

    /// Starts the process of a node and nothing else.
    pub fn boot(&mut self, node: NodeIndex) {
        let nodes = self.settings.nodes;
        let mut config = EngineConfig {
            node_id: node_id(node),
            seed: [self.random.bits(), self.random.bits()],
            boot: self.nodes[node].power_lost_at,
            volumes: Vec::new(),
            peers: Vec::new(),
        };
        for (volume, settings) in self.settings.volumes.iter().enumerate() {
            let mut volume = VolumeConfig::new(volume_number(volume));
            volume.al_extents = settings.al_extents;
            config.volumes.push(volume);
        }
        for peer in (0..nodes).filter(|&peer| peer != node) {
            config.peers.push(self.peer_config(peer));
        }
        let engine = Engine::new(config, Time(self.now / MILLISECOND));
        let view = NodeView::of(&engine, nodes);
        let state = &mut self.nodes[node];
        state.incarnation += 1;
        state.without_power = false;
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
        let primary = self.nodes[node]
            .view
            .as_ref()
            .is_some_and(|view| view.role == Role::Primary);
        self.trace
            .mix(&[self.now, node as u64, 2, u64::from(power)]);
        self.trace.line(self.now, || {
            format!("n{node} {}", if power { "POWER LOSS" } else { "KILLED" })
        });
        self.nodes[node].serving = false;
        if power {
            self.nodes[node].without_power = true;
            self.nodes[node].power_lost_at = self.tick_moment();
        }
        for volume in 0..self.settings.volumes.len() {
            let mut changed = std::mem::take(&mut self.scratch);
            let state = &mut self.nodes[node].volumes[volume];
            if power {
                state.disk.power_loss(&mut self.disk_random, &mut changed);
            } else {
                state.disk.process_ends(&mut self.disk_random, &mut changed);
            }
            // What a Primary wrote before its process was killed is lost with the power as if it were Primary still.
            let was_primary = state.killed_as_primary && state.loss != Loss::Nothing;
            state.killed_as_primary = primary || was_primary;
            state.loss = state.loss.max(match (power, primary || was_primary) {
                (true, true) => Loss::PrimaryPower,
                (true, false) => Loss::Power,
                (false, _) => Loss::Process,
            });
            state.attached = false;
            state.attaching = None;
            self.sectors_changed(node, volume, &mut changed);
            self.scratch = changed;
        }
        self.end_requests_of(node);
        self.leave_peers_branch(node);
        if power {
            self.lose_unflushed_of(node);
        } else if !primary && self.settings.protocol != Protocol::C {
            self.lose_unwritten_of(node);
        }
        let ended: Vec<_> = (self.commands.values())
            .filter(|command| command.node == node)
            .cloned()
            .collect();
        self.commands.retain(|_, command| command.node != node);
        for command in ended {
            self.note_half_promotion(node, &command);
        }
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

    /// A power loss of the only node that held everything takes what no flush covered.
    fn lose_unflushed_of(&mut self, node: NodeIndex) {
        for volume in 0..self.settings.volumes.len() {
            let held_elsewhere = self.nodes.iter().enumerate().any(|(other, state)| {
                other != node
                    && state.volumes[volume].current
                    && state.volumes[volume].loss < Loss::Power
            });
            if self.nodes[node].volumes[volume].current && !held_elsewhere {
                let branch = self.nodes[node].volumes[volume].branch;
                self.branches[branch].lose_unflushed();
            }
        }
    }

    /// The process of the only node that held everything ends: what it had received for a Primary whose own disk was lost since, and not
    /// written yet, is gone (protocols A and B).
    fn lose_unwritten_of(&mut self, node: NodeIndex) {
        for volume in 0..self.settings.volumes.len() {
            let holders = || {
                (0..self.settings.nodes).filter(|&other| self.nodes[other].volumes[volume].current)
            };
            if holders().eq([node]) {
                let state = &self.nodes[node].volumes[volume];
                let disk = &state.disk;
                self.branches[state.branch].lose_beyond(|sector| disk.sector(sector, View::Cached));
            }
        }
    }

    pub(crate) fn end_requests_of(&mut self, node: NodeIndex) {
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

    /// Takes the disk of a volume into use: reads its metadata, brings them into order, and gives them to the engine.
    pub fn attach(&mut self, node: NodeIndex, volume: usize, purpose: Purpose) {
        let state = &self.nodes[node].volumes[volume];
        if state.attached || state.attaching.is_some() || self.nodes[node].process.is_none() {
            return;
        }
        let mut image = match state.disk.load(View::Cached) {
            Ok(image) => image,
            Err(error) => {
                return self.fail(
                    "metadata",
                    format!("n{node} v{volume}: metadata does not open: {error}"),
                );
            }
        };
        self.check_loaded(node, volume, &image);
        let (_, steps) = image.start_log_steps(self.settings.volumes[volume].al_extents);
        let attaching = Attaching {
            image,
            steps: steps.into(),
            token: None,
            purpose,
        };
        self.nodes[node].volumes[volume].attaching = Some(attaching);
        let incarnation = self.nodes[node].incarnation;
        self.attach_step(node, incarnation, volume);
    }

    pub(crate) fn attach_step(&mut self, node: NodeIndex, incarnation: u64, volume: usize) {
        if self.nodes[node].incarnation != incarnation {
            return;
        }
        let state = &mut self.nodes[node].volumes[volume];
        let Some(attaching) = &mut state.attaching else {
            return;
        };
        if let Some(token) = attaching.token.take() {
            state
                .disk
                .finish(token, &mut self.disk_random, &mut Vec::new());
        }
        let Some(step) = attaching.steps.pop_front() else {
            let attaching = state.attaching.take().expect("it was there");
            state.attached = true;
            let known = KnownDevice::of(&attaching.image.superblock);
            state.disk.remember(known);
            let command = Command::Attach {
                volume: volume_number(volume),
                image: Box::new(attaching.image),
            };
            self.command(node, command, attaching.purpose);
            self.check_attached(node, volume);
            return;
        };
        let job = match step {
            Step::Write { offset, bytes } => Job::MetadataWrite(offset, bytes),
            Step::Flush => Job::MetadataFlush,
        };
        attaching.token = Some(state.disk.submit(job.clone()));
        self.check_job(node, volume, &job);
        let (least, most) = self.settings.disk_delay;
        let delay = self.disk_random.delay(least, most);
        self.schedule(
            delay,
            Occurrence::Attach {
                node,
                incarnation,
                volume,
            },
        );
    }
}
