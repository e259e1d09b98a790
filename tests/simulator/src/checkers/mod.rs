//! The checkers: each promise that a run can break, in a file of its own.
//!
//! All of them look from outside: at effects, at views, at the bytes on the disks. None changes anything but the figures and the
//! oracle. The first violation ends the run.

mod acknowledgement;
mod activity_log;
mod bounds;
mod convergence;
mod crash_resync;
mod divergence;
mod generation;
mod metadata;
mod primary;
mod reads;
mod write_order;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use qrbd_engine::config::Fencing;
use qrbd_engine::metadata::superblock::Superblock;
use qrbd_engine::state::{DiskState, ReplicationState, Role};
use qrbd_engine::wire::message::{Message, Protocol};

use crate::disk::{Job, View};
use crate::engine_view::{Bits, Knowledge, NodeView};
use crate::network::NodeIndex;
use crate::node::Loss;
use crate::queue::Micros;
use crate::settings::Settings;
use crate::stamps::Stamps;
use crate::world::{Figures, RequestKind, World};

pub use convergence::Unfinished;

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which checker found it.
    pub checker: &'static str,
    /// What and where.
    pub text: String,
    /// When, on the virtual clock.
    pub at: Micros,
}

/// What metadata say, by node, volume and durability, with the version they were read at.
type KnownMetadata = BTreeMap<(NodeIndex, usize, bool), (u64, Rc<Knowledge>)>;

/// What the checkers remember.
pub struct Checks {
    /// Disks that were given up while writes were on their way to them that clients had been told of (protocols A and B), and that
    /// were all there was.
    promises_lost: BTreeSet<(NodeIndex, usize)>,
    /// When a node was last connected to a peer, or to a disk of it, anew.
    connected_since: BTreeMap<(NodeIndex, NodeIndex), Micros>,
    /// When a node's disk became UpToDate.
    good_since: BTreeMap<(NodeIndex, usize), Micros>,
    /// Primaries that work on the disk of a peer that had lost its power and never got everything back.
    fallen_back: BTreeSet<(NodeIndex, usize)>,
    /// Nodes that found a connection lost in the step at hand.
    separated: Vec<(NodeIndex, NodeIndex)>,
    /// What metadata say, by node, volume and durability, with the version they were read at.
    knowledge: RefCell<KnownMetadata>,
    /// Writes that were handed to the network, by number.
    sent: Vec<bool>,
    /// Writes that another engine received, by number.
    received: Vec<bool>,
    /// Superblocks written by the engine, by node and volume.
    superblocks: BTreeMap<(NodeIndex, usize), Vec<Superblock>>,
    /// Bits at the start of a resync, by source, target and volume.
    resync: BTreeMap<(NodeIndex, NodeIndex, usize), Bits>,
    /// What a source had lost when it ended a resync, by source, target and volume: the target has its data of that moment.
    losses_at_finish: BTreeMap<(NodeIndex, NodeIndex, usize), Loss>,
    /// Most bits that an attach may leave set, by node, volume and peer.
    expected_bits: BTreeMap<(NodeIndex, usize, NodeIndex), u64>,
    /// How many checks each checker did, for reports.
    pub done: BTreeMap<&'static str, u64>,
}

impl Checks {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(_settings: &Settings) -> Checks {
        Checks {
            promises_lost: BTreeSet::new(),
            connected_since: BTreeMap::new(),
            good_since: BTreeMap::new(),
            fallen_back: BTreeSet::new(),
            separated: Vec::new(),
            knowledge: RefCell::default(),
            sent: Vec::new(),
            received: Vec::new(),
            superblocks: BTreeMap::new(),
            resync: BTreeMap::new(),
            losses_at_finish: BTreeMap::new(),
            expected_bits: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }
}

fn raise(flags: &mut Vec<bool>, number: u64) {
    let number = number as usize;
    if flags.len() <= number {
        flags.resize(number + 1, false);
    }
    flags[number] = true;
}

fn raised(flags: &[bool], number: u64) -> bool {
    flags.get(number as usize).copied().unwrap_or(false)
}

impl World {
    /// A promise is broken: the run ends.
    pub fn fail(&mut self, checker: &'static str, text: String) {
        if self.violation.is_none() {
            self.trace
                .line(self.now, || format!("VIOLATION [{checker}] {text}"));
            self.violation = Some(Violation {
                checker,
                text,
                at: self.now,
            });
        }
    }

    fn checked(&mut self, checker: &'static str) {
        *self.checks.done.entry(checker).or_insert(0) += 1;
    }

    /// What the metadata of a volume say; `None` if they do not open, which other checkers report.
    pub(crate) fn knowledge(
        &self,
        node: NodeIndex,
        volume: usize,
        view: View,
    ) -> Option<Rc<Knowledge>> {
        let disk = &self.nodes[node].volumes[volume].disk;
        let version = disk.metadata_version(view);
        let mut cache = self.checks.knowledge.borrow_mut();
        let key = (node, volume, view == View::Durable);
        if let Some((at, knowledge)) = cache.get(&key)
            && *at == version
        {
            return Some(Rc::clone(knowledge));
        }
        let knowledge = Rc::new(Knowledge::of(disk.load(view).ok()?));
        cache.insert(key, (version, Rc::clone(&knowledge)));
        Some(knowledge)
    }

    /// Called when the view of a node may have changed, before the effects of the step are carried out.
    pub(crate) fn view_changed(&mut self, node: NodeIndex, before: &NodeView) {
        let Some(view) = self.nodes[node].live_view() else {
            return;
        };
        if view == before {
            return;
        }
        let view = view.clone();
        for volume in 0..self.settings.volumes.len() {
            let size = view.volumes[volume].size;
            if size > self.shown[volume] {
                self.grew(volume, size);
            }
        }
        for volume in 0..self.settings.volumes.len() {
            let had = before.volumes[volume].disk == DiskState::UpToDate;
            if had
                && matches!(
                    view.volumes[volume].disk,
                    DiskState::Failed | DiskState::Detaching | DiskState::Diskless
                )
            {
                self.good_disk_leaves(node, volume);
            }
        }
        for volume in 0..self.settings.volumes.len() {
            let was = before.volumes[volume].disk;
            let is = view.volumes[volume].disk;
            if was != DiskState::UpToDate && is == DiskState::UpToDate {
                self.checks.good_since.insert((node, volume), self.now);
                self.nothing_newer(node, volume);
            }
        }
        if before.role == Role::Primary && view.role != Role::Primary {
            self.leave_peers_branch(node);
        }
        if before.role != Role::Primary && view.role == Role::Primary {
            self.nodes[node].primary_since = self.tick_moment();
        }
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            let disk_came = (0..self.settings.volumes.len()).any(|volume| {
                !before.peer_disk(peer, volume).has_data()
                    && view.peer_disk(peer, volume).has_data()
            });
            if view.connected(peer) && (!before.connected(peer) || disk_came) {
                self.checks.connected_since.insert((node, peer), self.now);
            }
            if before.connected(peer) && !view.connected(peer) {
                self.checks.separated.push((node, peer));
                self.nodes[node].disconnected_at = self.tick_moment();
            }
            for volume in 0..self.settings.volumes.len() {
                self.resync_may_start(node, peer, volume, before, &view);
                let in_sync = |view: &NodeView| {
                    view.in_sync_with(peer, volume)
                        && view.volumes[volume].disk == DiskState::UpToDate
                };
                // The source of a resync may be Outdated itself; the target has its data all the same.
                let synced = before.replication(peer, volume).is_sync_target()
                    && view.replication(peer, volume) == ReplicationState::Established
                    && view.volumes[volume].disk == DiskState::UpToDate;
                if in_sync(&view) && !in_sync(before) || synced {
                    self.got_in_sync(node, peer, volume, before);
                }
            }
        }
        self.manager_view_changed(node);
    }

    /// A good disk is given up. If those that go on with the data lost their power since, two failures met: what no flush covered may
    /// be on the lost disk only.
    fn good_disk_leaves(&mut self, node: NodeIndex, volume: usize) {
        let holders: Vec<NodeIndex> = (0..self.settings.nodes)
            .filter(|&other| other != node && self.nodes[other].volumes[volume].current)
            .collect();
        let harmed = |&other: &NodeIndex| self.nodes[other].volumes[volume].loss >= Loss::Power;
        let received = holders.is_empty()
            && self.settings.protocol != Protocol::C
            && !self.nodes[node].is_primary()
            && self.nodes[node].volumes[volume].current;
        if received {
            self.checks.promises_lost.insert((node, volume));
        }
        if self.settings.protocol != Protocol::C && self.nodes[node].is_primary() {
            // Its flushes made durable here alone (W4).
            let branch = self.nodes[node].volumes[volume].branch;
            self.branches[branch].forget_durability();
        }
        if !holders.is_empty() && holders.iter().all(harmed) {
            let branch = self.nodes[node].volumes[volume].branch;
            self.branches[branch].lose_unflushed();
        }
    }

    /// An old disk is the newest that is left. If it was given up with completed writes on their way to it, and the other disk before
    /// it, two disks failed one after the other: these writes are gone, and nothing else is.
    fn nothing_newer(&mut self, node: NodeIndex, volume: usize) {
        // Under A and B so are those that only a disk had that was refused because its clients had seen more; and whatever was given up
        // by order.
        let may_be_lost = self.settings.protocol != Protocol::C || self.manager.given_up[volume];
        let nobody = may_be_lost && (self.nodes.iter()).all(|node| !node.volumes[volume].current);
        if !self.checks.promises_lost.remove(&(node, volume)) && !nobody {
            return;
        }
        self.nodes[node].volumes[volume].current |= nobody;
        let state = &self.nodes[node].volumes[volume];
        let disk = &state.disk;
        self.branches[state.branch].lose_beyond(|sector| disk.sector(sector, View::Cached));
    }

    /// A node that worked on its peer's data is no Primary any more: what counts for it is its own disk.
    pub(crate) fn leave_peers_branch(&mut self, node: NodeIndex) {
        for volume in &mut self.nodes[node].volumes {
            if let Some(branch) = volume.disk_branch.take() {
                volume.branch = branch;
            }
        }
    }

    /// Primaries whose data are those of another disk than before follow its branch.
    ///
    /// A Primary that lost its disk works on its peer's data as soon as both ends of the session say so, although the two may have been
    /// forked before: it was promoted apart and has completed nothing since, or a refused promotion left the peer a branch of its own. If
    /// it takes its own disk again without the peer, it goes back. Either way nothing that was completed may be left behind.
    fn follow_data(&mut self) {
        for node in 0..self.settings.nodes {
            if !self.nodes[node].is_primary() {
                continue;
            }
            for volume in 0..self.settings.volumes.len() {
                let state = &self.nodes[node].volumes[volume];
                let own = state.disk_branch;
                match self.view_of(node).volumes[volume].disk {
                    DiskState::UpToDate if own.is_some() => {
                        let own = own.unwrap_or(state.branch);
                        self.go_over(node, node, volume, own);
                        self.nodes[node].volumes[volume].disk_branch = None;
                    }
                    DiskState::UpToDate => {
                        self.checks.fallen_back.remove(&(node, volume));
                    }
                    DiskState::Diskless => {
                        let served = (0..self.settings.nodes)
                            .find(|&peer| peer != node && self.is_served_by(node, peer, volume));
                        if let Some(peer) = served {
                            let own = own.unwrap_or(state.branch);
                            let holder = &self.nodes[peer].volumes[volume];
                            let theirs = holder.branch;
                            let behind = holder.loss >= Loss::Power;
                            // Its own disk failed before the peer, which had lost its power, got from it what it lacks: two failures.
                            if behind && self.checks.fallen_back.insert((node, volume)) {
                                self.branches[theirs].lose_unflushed();
                            }
                            if theirs != state.branch {
                                self.go_over(node, peer, volume, theirs);
                                self.nodes[node].volumes[volume].disk_branch = Some(own);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// True if `node`, without a disk, works on the data of `peer`, and both ends of the session know.
    fn is_served_by(&self, node: NodeIndex, peer: NodeIndex, volume: usize) -> bool {
        let session = |node: NodeIndex, peer: NodeIndex| {
            let process = self.nodes[node].process.as_ref()?;
            let (_, connection) = process.sessions[peer]?;
            process.view.connected(peer).then_some(connection)
        };
        session(node, peer).is_some()
            && session(node, peer) == session(peer, node)
            && !self.nodes[peer].is_primary()
            && self.view_of(node).in_sync_with(peer, volume)
            && self.view_of(peer).volumes[volume].disk == DiskState::UpToDate
    }

    fn view_of(&self, node: NodeIndex) -> &NodeView {
        self.nodes[node].live_view().expect("the node runs")
    }

    /// What the clients of a Primary see is another branch from now on, on the disk of `holder`. Their open requests go with them.
    fn go_over(&mut self, node: NodeIndex, holder: NodeIndex, volume: usize, branch: usize) {
        let left = self.nodes[node].volumes[volume].branch;
        self.trace.line(self.now, || {
            format!("n{node} v{volume} goes over from branch {left} to {branch}, n{holder}'s")
        });
        self.checked("follow");
        self.check_nothing_merged_away(node, holder, volume, branch, left);
        self.nodes[node].volumes[volume].branch = branch;
        let now = self.tick_moment();
        for request in self.requests.values_mut() {
            if request.node != node || request.volume != volume || request.branch != left {
                continue;
            }
            request.branch = branch;
            if let RequestKind::Write { number, range, .. } = request.kind {
                self.branches[left].end(number, range, false, false, now);
                self.branches[branch].begin_late(number, &self.writes[number as usize]);
            }
        }
    }

    /// Called after the effects of a step.
    pub(crate) fn check_after_step(&mut self, node: NodeIndex) {
        self.follow_data();
        self.check_one_primary(node);
        for (node, peer) in std::mem::take(&mut self.checks.separated) {
            self.check_separated(node, peer);
        }
        self.check_open_operations(node);
    }

    /// Called after a crash, when the disks are as a restart would find them.
    pub(crate) fn check_after_crash(&mut self, node: NodeIndex) {
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            if !self.nodes[peer].connected(node) {
                self.check_separated(node, peer);
            }
        }
        self.check_order_after_crash(node);
        for volume in 0..self.settings.volumes.len() {
            let loaded = self.nodes[node].volumes[volume].disk.load(View::Cached);
            match loaded {
                Ok(image) => self.check_superblock(node, volume, &image),
                Err(error) => self.fail(
                    "metadata",
                    format!("n{node} v{volume}: metadata does not open after a crash: {error}"),
                ),
            }
        }
    }

    /// Called before a disk gets a job.
    pub(crate) fn check_job(&mut self, node: NodeIndex, volume: usize, job: &Job) {
        match job {
            Job::Write(..) | Job::Zero(_) => self.check_logged(node, volume, job),
            Job::MetadataWrite(offset, bytes) => {
                self.check_metadata_place(node, volume, *offset);
                self.remember_superblock(node, volume, *offset, bytes)
            }
            _ => {}
        }
    }

    /// Called when an engine sends.
    pub(crate) fn check_send(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        message: &Message<Stamps>,
    ) {
        match message {
            Message::Write { payload, .. } => {
                if let Some(write) = payload
                    .0
                    .first()
                    .and_then(|&stamp| crate::stamps::write_of(stamp))
                {
                    raise(&mut self.checks.sent, write);
                }
            }
            Message::ResyncData { volume, range, .. }
            | Message::ResyncZeroes { volume, range, .. } => {
                self.check_resync_data(node, peer, usize::from(volume.0), *range);
            }
            Message::ResyncFinish { volume } => {
                let volume = usize::from(volume.0);
                let loss = self.nodes[node].volumes[volume].loss;
                let key = (node, peer, volume);
                self.checks.losses_at_finish.insert(key, loss);
            }
            _ => {}
        }
    }

    /// Called before an engine gets a frame.
    pub(crate) fn check_delivery(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        message: &Message<Stamps>,
    ) {
        if let Message::ResyncFinish { volume } = message {
            // The target has everything from here on. It says so when that is durable, which may be after a restart.
            let volume = usize::from(volume.0);
            let view = self.nodes[node].live_view().cloned();
            if let Some(view) = view
                && view.replication(peer, volume).is_sync_target()
            {
                self.join_branches(node, peer, volume, &view);
            }
        }
        if let Message::Write { payload, .. } = message
            && let Some(write) = payload
                .0
                .first()
                .and_then(|&stamp| crate::stamps::write_of(stamp))
        {
            raise(&mut self.checks.received, write);
        }
    }

    /// Two nodes hold the same data from now on, as `node` sees it: their branches become one.
    fn got_in_sync(&mut self, node: NodeIndex, peer: NodeIndex, volume: usize, before: &NodeView) {
        self.figures.syncs += 1;
        if self.nodes[peer].is_primary() && !self.nodes[peer].connected(node) {
            // It was promoted apart before its last word arrived.
            return;
        }
        self.join_branches(node, peer, volume, before);
        self.settle_losses(node, peer, volume, before);
        // A Primary's own word counts more than what its peers think.
        if !self.nodes[peer].is_primary() {
            let current = self.nodes[node].volumes[volume].current
                || self.nodes[peer].volumes[volume].current;
            self.nodes[node].volumes[volume].current = current;
            self.nodes[peer].volumes[volume].current = current;
        }
    }

    /// Two nodes have one history from now on.
    fn join_branches(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        volume: usize,
        before: &NodeView,
    ) {
        for node in [node, peer] {
            self.nodes[node].volumes[volume].disk_branch = None;
        }
        let (mine, theirs) = (
            self.nodes[node].volumes[volume].branch,
            self.nodes[peer].volumes[volume].branch,
        );
        if mine != theirs {
            let was_target = before.replication(peer, volume).is_sync_target();
            let was_source = before.replication(peer, volume).is_sync_source();
            let winner = if was_target {
                theirs
            } else if was_source || self.nodes[node].is_primary() {
                mine
            } else if self.nodes[peer].is_primary() {
                theirs
            } else {
                mine.max(theirs)
            };
            self.trace.line(self.now, || {
                format!("n{node} and n{peer} v{volume} are one again: branch {winner} of {mine}, {theirs}")
            });
            let loser = if winner == mine { theirs } else { mine };
            self.check_nothing_merged_away(node, peer, volume, winner, loser);
            self.nodes[node].volumes[volume].branch = winner;
            self.nodes[peer].volumes[volume].branch = winner;
        }
    }

    /// What is lost for both once they hold the same data.
    ///
    /// With C each of two current nodes held every completed write, so the better one must have won: always the one that ran on. Of
    /// two that both came back nobody can tell a killed process from a power loss; the Primary's disk wins then. With A and B the Primary's
    /// tail and a power loss of the Primary exclude each other's remedy: the source decides.
    fn settle_losses(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        volume: usize,
        before: &NodeView,
    ) {
        let (mine, theirs) = (
            self.nodes[node].volumes[volume].loss,
            self.nodes[peer].volumes[volume].loss,
        );
        let replication = before.replication(peer, volume);
        let peer_lives = self.peer_is_the_same(node, peer);
        let at_finish = self.checks.losses_at_finish.get(&(peer, node, volume));
        let theirs = match at_finish {
            // The source died since: what it lost with that, the target still has.
            Some(&loss) if !peer_lives && replication.is_sync_target() => loss,
            _ => theirs,
        };
        let both_current =
            self.nodes[node].volumes[volume].current && self.nodes[peer].volumes[volume].current;
        // A promotion that ends in this very step is measured by what it finds, so it settles nothing yet.
        let loss = if before.role == Role::Primary || self.nodes[peer].is_primary() {
            Loss::Nothing
        } else if both_current
            && self.settings.protocol == Protocol::C
            && (mine.min(theirs), mine.max(theirs)) != (Loss::Process, Loss::PrimaryPower)
        {
            mine.min(theirs)
        } else if replication.is_sync_target() {
            theirs
        } else if replication.is_sync_source() {
            mine
        } else {
            mine.max(theirs)
        };
        // What a peer lost when it died stays lost, although its last words arrive only now.
        self.nodes[node].volumes[volume].loss = loss;
        if peer_lives {
            self.nodes[peer].volumes[volume].loss = loss;
        }
    }

    /// A handler was called.
    pub(crate) fn handler_called(&mut self, node: NodeIndex, name: &'static str) {
        if name == "unfence-peer" {
            self.unfence_called(node);
        }
        if name.contains("split-brain") {
            self.figures.split_brains += 1;
            // With STONITH both sides never write, whatever the manager does.
            let apart = self.settings.reckless
                && self.settings.fencing != Fencing::ResourceAndStonith
                || self.manager.forced_apart
                || self.manager.half_promoted.is_some();
            if !apart {
                self.fail(
                    "generation",
                    format!(
                        "n{node}: handler {name} in a run whose manager never let both sides write"
                    ),
                );
            }
        }
    }
}

/// Figures that tell whether a run tested anything.
#[must_use]
pub fn report(figures: &Figures, checks: &Checks) -> String {
    let checks: Vec<String> = checks
        .done
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    format!("{figures:?}; checks: {}", checks.join(", "))
}
