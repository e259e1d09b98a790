//! Scripts over the world: for tests that tell a story instead of rolling dice.
//!
//! Delays still come from a seed, and every checker looks on; a violation, or something that does not happen within a minute of
//! virtual time, panics with the last lines of the trace.

use qrbd_engine::api::{ClientError, Command, Event};
use qrbd_engine::state::{ConnectionState, DiskState, Refusal, ReplicationState};
use qrbd_engine::units::{BLOCK_BYTES, ByteRange, EXTENT_BYTES};
use qrbd_engine::wire::message::Protocol;

use crate::administrator::Purpose;
use crate::disk::View;
use crate::engine_view::NodeView;
use crate::network::NodeIndex;
use crate::queue::{MILLISECOND, Micros, SECOND};
use crate::settings::{Beginning, Settings};
use crate::stamps::{Stamp, Stamps};
use crate::world::{World, node_id, volume_number};

const PATIENCE: Micros = 60 * SECOND;

/// A request that was submitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    id: u64,
    /// Number of the write, for writes.
    pub write: u64,
}

/// A script.
pub struct Scenario {
    /// The world, for what the script does not offer.
    pub world: World,
}

/// The range of a block.
#[must_use]
pub fn block(number: u64) -> ByteRange {
    ByteRange::new(number * BLOCK_BYTES, BLOCK_BYTES as u32)
}

/// The first block of an extent.
#[must_use]
pub fn extent(number: u64) -> ByteRange {
    ByteRange::new(number * EXTENT_BYTES, BLOCK_BYTES as u32)
}

impl Scenario {
    /// Two nodes that were never started, with fresh metadata.
    #[must_use]
    pub fn unstarted(settings: Settings) -> Scenario {
        let mut world = World::new(settings);
        world.trace.keep = true;
        world.answers = Some(Default::default());
        world.command_answers = Some(Default::default());
        world.rules = Some(Vec::new());
        Scenario { world }
    }

    /// Two nodes, connected, both UpToDate, both Secondary.
    #[must_use]
    pub fn in_sync(settings: Settings) -> Scenario {
        let mut scenario = Scenario::unstarted(settings);
        for node in 0..scenario.world.settings.nodes {
            scenario.world.start(node);
        }
        scenario.until("both nodes are connected with their disks", |world| {
            (0..2).all(|node| {
                world.nodes[node].live_view().is_some_and(|view| {
                    view.replication(1 - node, 0) == ReplicationState::Established
                        && view
                            .volumes
                            .iter()
                            .all(|volume| volume.disk == DiskState::Inconsistent)
                        && view.peer_disk(1 - node, 0) == DiskState::Inconsistent
                })
            })
        });
        if scenario.world.settings.beginning == Beginning::SkipInitialSync {
            for volume in 0..scenario.world.settings.volumes.len() {
                let volume = volume_number(volume);
                // Refused while a handshake runs.
                let mut attempts = 0;
                let command = Command::NewCurrentUuid {
                    volume,
                    clear_bitmap: true,
                };
                while let Err(refusal) = scenario.command(0, command.clone()) {
                    attempts += 1;
                    if attempts > 100 {
                        scenario.complain(&format!("the initial sync is not skipped: {refusal}"));
                    }
                    scenario.run(20 * MILLISECOND);
                }
            }
        } else {
            scenario
                .command(0, Command::Promote { force: true })
                .unwrap();
        }
        for node in &mut scenario.world.nodes {
            for volume in &mut node.volumes {
                volume.current = true;
            }
        }
        scenario.wait_in_sync();
        scenario
    }

    /// Two nodes in sync, node 0 Primary.
    #[must_use]
    pub fn serving(protocol: Protocol) -> Scenario {
        Scenario::serving_with(Settings::quiet(1, protocol))
    }

    /// As [`Scenario::serving`] with settings of the caller.
    #[must_use]
    pub fn serving_with(settings: Settings) -> Scenario {
        let mut scenario = Scenario::in_sync(settings);
        scenario.promote(0).unwrap();
        scenario.settle();
        scenario
    }

    fn complain(&self, text: &str) -> ! {
        let lines = &self.world.trace.lines;
        for line in &lines[lines.len().saturating_sub(80)..] {
            eprintln!("{line}");
        }
        panic!("{text}");
    }

    fn check(&self) {
        if let Some(violation) = &self.world.violation {
            self.complain(&format!("[{}] {}", violation.checker, violation.text));
        }
    }

    // ---- time ---------------------------------------------------------------------------------------------------------------

    /// Lets time pass.
    pub fn run(&mut self, time: Micros) {
        self.world.run_until(self.world.now + time);
        self.check();
    }

    /// Lets time pass until something is so.
    pub fn until(&mut self, what: &str, so: impl Fn(&World) -> bool) {
        let end = self.world.now + PATIENCE;
        while !so(&self.world) {
            if self.world.now >= end || !self.world.step() {
                self.check();
                self.complain(&format!("not so within a minute: {what}"));
            }
        }
        self.check();
    }

    /// Waits until both nodes know of their connection.
    pub fn until_connected(&mut self) {
        self.until("they are connected", |world| {
            world.nodes[0].connected(1) && world.nodes[1].connected(0)
        });
    }

    /// Waits until both nodes are UpToDate, connected, and nothing is out of sync.
    pub fn wait_in_sync(&mut self) {
        self.until("both nodes are in sync", |world| {
            world.unfinished().is_none()
        });
    }

    /// Waits until nothing moves any more: requests answered, disks idle.
    pub fn settle(&mut self) {
        self.run(200 * MILLISECOND);
        self.until("everything is answered", |world| world.requests.is_empty());
    }

    // ---- clients ------------------------------------------------------------------------------------------------------------

    /// Submits a write.
    pub fn write(&mut self, node: NodeIndex, range: ByteRange) -> Request {
        let (id, write) = self.world.client_write(node, 0, range, false);
        self.check();
        Request { id, write }
    }

    /// Submits a FUA write.
    pub fn write_fua(&mut self, node: NodeIndex, range: ByteRange) -> Request {
        let (id, write) = self.world.client_write(node, 0, range, true);
        self.check();
        Request { id, write }
    }

    /// Submits a read.
    pub fn read(&mut self, node: NodeIndex, range: ByteRange) -> Request {
        let id = self.world.client_read(node, 0, range);
        self.check();
        Request { id, write: 0 }
    }

    /// Submits a flush.
    pub fn flush(&mut self, node: NodeIndex) -> Request {
        let kind = crate::world::RequestKind::Flush;
        let id = self
            .world
            .submit(node, 0, kind, qrbd_engine::api::Operation::Flush);
        self.check();
        Request { id, write: 0 }
    }

    /// Submits a discard.
    pub fn discard(&mut self, node: NodeIndex, range: ByteRange) -> Request {
        let id = self.world.client_discard(node, 0, range, false);
        self.check();
        Request { id, write: 0 }
    }

    /// Submits a write of zeroes.
    pub fn zeroes(&mut self, node: NodeIndex, range: ByteRange) -> Request {
        let id = self.world.client_zeroes(node, 0, range, false);
        self.check();
        Request { id, write: 0 }
    }

    /// True if the request was answered.
    #[must_use]
    pub fn is_answered(&self, request: Request) -> bool {
        self.world
            .answers
            .as_ref()
            .is_some_and(|answers| answers.contains_key(&request.id))
    }

    /// Waits for the answer of a request.
    ///
    /// # Errors
    /// The request's error.
    pub fn answer(&mut self, request: Request) -> Result<Option<Stamps>, ClientError> {
        self.until(&format!("request {} is answered", request.id), |world| {
            world
                .answers
                .as_ref()
                .is_some_and(|answers| answers.contains_key(&request.id))
        });
        self.world
            .answers
            .as_mut()
            .and_then(|answers| answers.remove(&request.id))
            .expect("it was just there")
    }

    /// Waits for success.
    pub fn completed(&mut self, request: Request) -> Option<Stamps> {
        match self.answer(request) {
            Ok(data) => data,
            Err(error) => self.complain(&format!("request {} failed: {error:?}", request.id)),
        }
    }

    /// Writes and waits.
    pub fn write_now(&mut self, node: NodeIndex, range: ByteRange) -> Request {
        let request = self.write(node, range);
        self.completed(request);
        request
    }

    /// Reads the first sector of a range and waits.
    pub fn read_now(&mut self, node: NodeIndex, range: ByteRange) -> Stamp {
        let request = self.read(node, range);
        self.completed(request).expect("a read brings data").0[0]
    }

    /// Flushes and waits.
    pub fn flush_now(&mut self, node: NodeIndex) {
        let request = self.flush(node);
        self.completed(request);
    }

    // ---- administrator ------------------------------------------------------------------------------------------------------

    /// Gives a command and does not wait for its end.
    pub fn give(&mut self, node: NodeIndex, command: Command) -> u64 {
        self.world.command(node, command, Purpose::Scenario)
    }

    /// Waits for the end of a command.
    ///
    /// # Errors
    /// The refusal.
    pub fn ended(&mut self, id: u64) -> Result<(), Refusal> {
        self.until(&format!("command {id} is answered"), |world| {
            world
                .command_answers
                .as_ref()
                .is_some_and(|answers| answers.contains_key(&id))
        });
        self.world
            .command_answers
            .as_mut()
            .and_then(|answers| answers.remove(&id))
            .expect("it was just there")
    }

    /// Gives a command and waits for its end.
    ///
    /// # Errors
    /// The refusal.
    pub fn command(&mut self, node: NodeIndex, command: Command) -> Result<(), Refusal> {
        let id = self.give(node, command);
        self.ended(id)
    }

    /// Promotes a node and lets clients open the device.
    ///
    /// # Errors
    /// The refusal.
    pub fn promote(&mut self, node: NodeIndex) -> Result<(), Refusal> {
        self.command(node, Command::Promote { force: false })?;
        self.world.openers(node, 1);
        Ok(())
    }

    /// Closes the device and demotes the node.
    ///
    /// # Errors
    /// The refusal.
    pub fn demote(&mut self, node: NodeIndex) -> Result<(), Refusal> {
        self.world.openers(node, 0);
        self.command(node, Command::Demote { force: false })
    }

    /// Connects a node to the other.
    ///
    /// # Errors
    /// The refusal.
    pub fn connect(&mut self, node: NodeIndex, discard_my_data: bool) -> Result<(), Refusal> {
        self.command(
            node,
            Command::Connect {
                peer: node_id(1 - node),
                discard_my_data,
            },
        )
    }

    /// Disconnects a node from the other.
    ///
    /// # Errors
    /// The refusal.
    pub fn disconnect(&mut self, node: NodeIndex) -> Result<(), Refusal> {
        self.command(
            node,
            Command::Disconnect {
                peer: node_id(1 - node),
                force: false,
            },
        )
    }

    /// Has a running node take another protocol, as the administrator's `adjust` does once it has disconnected the node.
    pub fn adjust_protocol(&mut self, node: NodeIndex, protocol: Protocol) {
        let mut config = self.world.peer_config(1 - node);
        config.protocol = protocol;
        let process = self.world.nodes[node].process.as_mut();
        let engine = &mut process.expect("the node runs").engine;
        assert!(engine.reconfigure_peer(config), "the connection stands");
    }

    /// Detaches volume 0 of a node.
    ///
    /// # Errors
    /// The refusal.
    pub fn detach(&mut self, node: NodeIndex) -> Result<(), Refusal> {
        self.command(
            node,
            Command::Detach {
                volume: volume_number(0),
                force: false,
            },
        )
    }

    /// Attaches a volume of a node and does not wait.
    pub fn begin_attach(&mut self, node: NodeIndex, volume: usize) {
        self.world.attach(node, volume, Purpose::Scenario);
    }

    /// Attaches volume 0 of a node and waits.
    pub fn attach(&mut self, node: NodeIndex) {
        self.begin_attach(node, 0);
        self.until("the disk is attached", |world| {
            world.nodes[node].volumes[0].attached
                && !world.commands.values().any(|command| command.node == node)
        });
    }

    // ---- faults -------------------------------------------------------------------------------------------------------------

    /// Blocks the link in both directions until it is healed.
    pub fn partition(&mut self) {
        self.world.block(0, 0, None);
        self.world.block(0, 1, None);
    }

    /// Blocks what `node` sends until it is healed.
    pub fn mute(&mut self, node: NodeIndex) {
        self.world.block(0, node, None);
    }

    /// Heals the link.
    pub fn heal(&mut self) {
        self.world.heal(0, 0);
        self.world.heal(0, 1);
        self.check();
    }

    /// Waits until a node knows that the other is gone.
    pub fn wait_disconnected(&mut self, node: NodeIndex) {
        self.until("the loss is noticed", |world| {
            !world.nodes[node].connected(1 - node)
        });
    }

    /// Somebody on the way says that nobody listens at the other node.
    ///
    /// # Panics
    /// If the two have no session.
    pub fn hear_that_nobody_listens(&mut self, node: NodeIndex) {
        let peer = 1 - node;
        let (session, _) = self.world.process(node).sessions[peer].expect("a session");
        let peer = node_id(peer);
        self.world
            .tell(node, Event::NobodyListens { peer, session });
    }

    /// The power of a node fails.
    pub fn power_loss(&mut self, node: NodeIndex) {
        self.world.crash(node, true);
        self.check();
    }

    /// The process of a node is killed.
    pub fn kill(&mut self, node: NodeIndex) {
        self.world.crash(node, false);
        self.check();
    }

    /// Starts the process of a node and waits until its disk is attached.
    pub fn restart(&mut self, node: NodeIndex) {
        self.world.start(node);
        self.until("the node is up", |world| {
            world.nodes[node]
                .volumes
                .iter()
                .all(|volume| volume.attached)
                && !world.commands.values().any(|command| command.node == node)
        });
    }

    /// Nothing ends on the disk of a node for a while, or until [`Scenario::resume_disk`].
    pub fn stall_disk(&mut self, node: NodeIndex, time: Micros) {
        self.world.nodes[node].volumes[0].faults.stalled = self.world.now + time;
    }

    /// Ends a stall.
    pub fn resume_disk(&mut self, node: NodeIndex) {
        self.world.nodes[node].volumes[0].faults.stalled = 0;
    }

    /// Until an error has cost a node its disk.
    pub fn until_disk_is_given_up(&mut self, node: NodeIndex) {
        self.until("the disk is given up", |world| {
            world.nodes[node]
                .live_view()
                .expect("the node runs")
                .volumes[0]
                .disk
                == DiskState::Diskless
        });
    }

    /// Writes to the disk of a node fail from now on.
    pub fn break_disk(&mut self, node: NodeIndex) {
        let faults = &mut self.world.nodes[node].volumes[0].faults;
        faults.write_errors = (Micros::MAX, 1000);
        faults.read_errors = (Micros::MAX, 1000);
    }

    /// The metadata of a node can't be written any more.
    pub fn break_metadata(&mut self, node: NodeIndex) {
        self.world.nodes[node].volumes[0].faults.metadata_errors = (Micros::MAX, 1000);
    }

    /// The disk of a node works again.
    pub fn repair_disk(&mut self, node: NodeIndex) {
        let now = self.world.now;
        let faults = &mut self.world.nodes[node].volumes[0].faults;
        faults.write_errors = (now, 0);
        faults.read_errors = (now, 0);
        faults.metadata_errors = (now, 0);
    }

    // ---- what is so ---------------------------------------------------------------------------------------------------------

    /// What a node says.
    #[must_use]
    pub fn view(&self, node: NodeIndex) -> &NodeView {
        self.world.nodes[node].live_view().expect("the node runs")
    }

    /// The disk state of a node.
    #[must_use]
    pub fn disk(&self, node: NodeIndex) -> DiskState {
        self.view(node).volumes[0].disk
    }

    /// The connection state of a node.
    #[must_use]
    pub fn connection(&self, node: NodeIndex) -> ConnectionState {
        self.view(node).peers[1 - node]
            .as_ref()
            .expect("there is a peer")
            .connection
    }

    /// Bits of a node toward the other.
    #[must_use]
    pub fn bits(&self, node: NodeIndex) -> u64 {
        self.view(node).peers[1 - node]
            .as_ref()
            .expect("there is a peer")
            .volumes[0]
            .bits
    }

    /// True if the first sector of `range` holds write `write` on the disk of a node.
    #[must_use]
    pub fn holds(&self, node: NodeIndex, range: ByteRange, write: u64, view: View) -> bool {
        let sector = crate::stamps::first_sector(range);
        let stamp = self.world.nodes[node].volumes[0].disk.sector(sector, view);
        stamp == crate::stamps::stamp(write, sector)
    }

    /// True if a rule was named in a notice of a node.
    #[must_use]
    pub fn saw_rule(&self, node: NodeIndex, rule: &str) -> bool {
        self.world
            .rules
            .as_ref()
            .is_some_and(|rules| rules.iter().any(|&(who, name)| who == node && name == rule))
    }
}
