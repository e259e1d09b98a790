//! Two engines joined by a perfect network and perfect disks: the sequences that every user meets first.
//!
//! Faults, delays and crashes are the simulator's business; here each step is followed to its end before the next.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use qrbd_engine::api::{ClientError, IoError, LossReason, Notice};
use qrbd_engine::config::{PeerConfig, VolumeConfig};
use qrbd_engine::metadata::image::{self, CreateOptions, MetadataImage, Step};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use qrbd_engine::units::{ByteRange, NodeId, Time, VolumeNumber};
use qrbd_engine::wire::Message;
use qrbd_engine::{
    Command, CommandId, Effect, Engine, EngineConfig, Event, Operation, Payload, RequestId,
    SessionId,
};

const DEVICE_BYTES: u64 = 64 << 20;
const VOLUME: VolumeNumber = VolumeNumber(0);

#[derive(Clone, Debug, PartialEq)]
struct Bytes(Rc<Vec<u8>>);

impl Payload for Bytes {
    fn length(&self) -> usize {
        self.0.len()
    }
    fn is_zero(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }
}

fn filled(value: u8, length: usize) -> Bytes {
    Bytes(Rc::new(vec![value; length]))
}

struct Node {
    engine: Engine<Bytes>,
    disk: Rc<RefCell<Vec<u8>>>,
    completions: BTreeMap<u64, Result<Option<Bytes>, ClientError>>,
    commands: BTreeMap<u64, Result<(), Refusal>>,
    wants: bool,
    session: Option<SessionId>,
    rules: Vec<&'static str>,
    fail_writes: bool,
    detached: bool,
}

struct Pair {
    nodes: [Node; 2],
    now: Time,
    wire: VecDeque<(usize, SessionId, Message<Bytes>)>,
    sessions: u64,
    next: u64,
    linked: bool,
    resync_bytes: u64,
}

fn config(node: usize, configure: &dyn Fn(&mut PeerConfig)) -> EngineConfig {
    let mut peer = PeerConfig::new(NodeId(1 - node as u8));
    configure(&mut peer);
    EngineConfig {
        node_id: NodeId(node as u8),
        seed: [7 + node as u64, 9],
        volumes: vec![VolumeConfig::new(VOLUME)],
        peers: vec![peer],
    }
}

fn run_steps(disk: &RefCell<Vec<u8>>, steps: impl IntoIterator<Item = Step>) {
    for step in steps {
        if let Step::Write { offset, bytes } = step {
            disk.borrow_mut()[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
    }
}

fn fresh_disk(node: usize) -> Rc<RefCell<Vec<u8>>> {
    let disk = Rc::new(RefCell::new(vec![0u8; DEVICE_BYTES as usize]));
    let options = CreateOptions {
        placement: Placement::Internal,
        device_bytes: DEVICE_BYTES,
        max_peers: 1,
        node_id: NodeId(node as u8),
        device_uuid: 77 + node as u64,
        al_slots: 9,
    };
    let image = image::create(&options).unwrap();
    run_steps(&disk, image.write_steps());
    disk
}

fn load(disk: &RefCell<Vec<u8>>) -> MetadataImage {
    let mut image = image::load::<String>(Placement::Internal, DEVICE_BYTES, |offset, bytes| {
        bytes.copy_from_slice(&disk.borrow()[offset as usize..][..bytes.len()]);
        Ok(())
    })
    .unwrap();
    let (_, steps) = image.start_log_steps(9);
    run_steps(disk, steps);
    image
}

impl Pair {
    fn new(configure: &dyn Fn(&mut PeerConfig)) -> Pair {
        let node = |index: usize| Node {
            engine: Engine::new(config(index, configure), Time(0)),
            disk: fresh_disk(index),
            completions: BTreeMap::new(),
            commands: BTreeMap::new(),
            wants: false,
            session: None,
            rules: Vec::new(),
            fail_writes: false,
            detached: false,
        };
        Pair {
            nodes: [node(0), node(1)],
            now: Time(1),
            wire: VecDeque::new(),
            sessions: 0,
            next: 0,
            linked: true,
            resync_bytes: 0,
        }
    }

    fn event(&mut self, node: usize, event: Event<Bytes>) {
        self.nodes[node].engine.handle(self.now, event);
        self.run();
    }

    fn run(&mut self) {
        loop {
            let mut progress = false;
            for node in 0..2 {
                while let Some(effect) = self.nodes[node].engine.poll() {
                    progress = true;
                    self.carry_out(node, effect);
                }
            }
            progress |= self.link();
            if let Some((to, session, message)) = self.wire.pop_front() {
                progress = true;
                if self.nodes[to].session == Some(session) {
                    let peer = NodeId(1 - to as u8);
                    self.nodes[to].engine.handle(
                        self.now,
                        Event::Frame {
                            peer,
                            session,
                            message,
                        },
                    );
                }
            }
            if !progress {
                return;
            }
        }
    }

    fn link(&mut self) -> bool {
        let both_want = self.linked
            && self
                .nodes
                .iter()
                .all(|node| node.wants && node.session.is_none());
        if both_want {
            self.sessions += 1;
            let session = SessionId(self.sessions);
            for node in 0..2 {
                self.nodes[node].session = Some(session);
                let peer = NodeId(1 - node as u8);
                self.nodes[node]
                    .engine
                    .handle(self.now, Event::PeerConnected { peer, session });
            }
        }
        both_want
    }

    fn unlink(&mut self, session: SessionId, reason: LossReason) {
        // What is on its way arrives first on a perfect network.
        let on_its_way: Vec<_> = self.wire.drain(..).collect();
        for (to, on, message) in on_its_way {
            if self.nodes[to].session == Some(on) {
                let peer = NodeId(1 - to as u8);
                self.nodes[to].engine.handle(
                    self.now,
                    Event::Frame {
                        peer,
                        session: on,
                        message,
                    },
                );
            }
        }
        for node in 0..2 {
            if self.nodes[node].session == Some(session) {
                self.nodes[node].session = None;
                let peer = NodeId(1 - node as u8);
                self.nodes[node].engine.handle(
                    self.now,
                    Event::PeerLost {
                        peer,
                        session,
                        reason,
                    },
                );
            }
        }
    }

    fn cut(&mut self) {
        self.linked = false;
        if let Some(session) = self.nodes[0].session {
            self.unlink(session, LossReason::NetworkFailure);
        }
        self.run();
    }

    fn heal(&mut self) {
        self.linked = true;
        self.run();
    }

    fn carry_out(&mut self, index: usize, effect: Effect<Bytes>) {
        let node = &mut self.nodes[index];
        let done = |node: &mut Node, now, io, result| {
            node.engine.handle(now, Event::DiskDone { io, result })
        };
        match effect {
            Effect::Read { io, range, .. } => {
                let bytes =
                    node.disk.borrow()[range.offset as usize..range.end() as usize].to_vec();
                done(node, self.now, io, Ok(Some(Bytes(Rc::new(bytes)))));
            }
            Effect::Write {
                io, range, payload, ..
            } => {
                if node.fail_writes {
                    return done(node, self.now, io, Err(IoError::Failed));
                }
                node.disk.borrow_mut()[range.offset as usize..range.end() as usize]
                    .copy_from_slice(&payload.0);
                done(node, self.now, io, Ok(None));
            }
            Effect::Discard { io, range, .. } | Effect::WriteZeroes { io, range, .. } => {
                node.disk.borrow_mut()[range.offset as usize..range.end() as usize].fill(0);
                done(node, self.now, io, Ok(None));
            }
            Effect::Flush { io, .. } => done(node, self.now, io, Ok(None)),
            Effect::MetadataWrite {
                io, offset, bytes, ..
            } => {
                node.disk.borrow_mut()[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                node.engine
                    .handle(self.now, Event::MetadataDone { io, result: Ok(()) });
            }
            Effect::MetadataFlush { io, .. } => node
                .engine
                .handle(self.now, Event::MetadataDone { io, result: Ok(()) }),
            Effect::Send {
                session, message, ..
            } => {
                if let Message::ResyncData { range, .. } | Message::ResyncZeroes { range, .. } =
                    &message
                {
                    self.resync_bytes += u64::from(range.length);
                }
                self.wire.push_back((1 - index, session, message));
            }
            Effect::CloseSession { session, .. } => self.unlink(session, LossReason::Closed),
            Effect::StartConnecting { .. } => node.wants = true,
            Effect::StopConnecting { .. } => node.wants = false,
            Effect::Complete { id, result } => assert!(
                node.completions.insert(id.0, result).is_none(),
                "completed twice"
            ),
            Effect::CommandDone { id, result } => assert!(
                node.commands.insert(id.0, result).is_none(),
                "answered twice"
            ),
            Effect::Detached { .. } => node.detached = true,
            Effect::Handler { .. } => {}
            Effect::Notice(Notice::Decision { rule, .. }) => node.rules.push(rule),
            Effect::Notice(_) => {}
        }
    }

    fn command(&mut self, node: usize, command: Command) -> Result<(), Refusal> {
        self.next += 1;
        let id = self.next;
        self.event(
            node,
            Event::Command {
                id: CommandId(id),
                command,
            },
        );
        for _ in 0..100 {
            if let Some(result) = self.nodes[node].commands.get(&id) {
                return *result;
            }
            self.pass_time();
        }
        panic!("command {id} never answered");
    }

    /// Jumps to the next timer.
    fn pass_time(&mut self) {
        let next = self
            .nodes
            .iter()
            .filter_map(|node| node.engine.next_timeout())
            .min();
        self.now = next.unwrap_or(self.now.after(1)).max(self.now.after(1));
        for node in 0..2 {
            self.event(node, Event::Tick);
        }
    }

    fn submit(&mut self, node: usize, operation: Operation<Bytes>) -> u64 {
        self.next += 1;
        let id = self.next;
        self.event(
            node,
            Event::Request {
                id: RequestId(id),
                volume: VOLUME,
                operation,
            },
        );
        id
    }

    fn write(&mut self, node: usize, offset: u64, value: u8) {
        let operation = Operation::Write {
            range: ByteRange::new(offset, 4096),
            payload: filled(value, 4096),
            fua: false,
        };
        let id = self.submit(node, operation);
        assert_eq!(
            self.nodes[node].completions.get(&id),
            Some(&Ok(None)),
            "write of {value} at {offset}"
        );
    }

    fn read(&mut self, node: usize, offset: u64) -> u8 {
        let id = self.submit(node, Operation::Read(ByteRange::new(offset, 4096)));
        match self.nodes[node].completions.get(&id) {
            Some(Ok(Some(bytes))) => {
                assert!(
                    bytes.0.iter().all(|&byte| byte == bytes.0[0]),
                    "a mixed block"
                );
                bytes.0[0]
            }
            other => panic!("read at {offset}: {other:?}"),
        }
    }

    fn attach(&mut self, node: usize) -> Result<(), Refusal> {
        self.nodes[node].detached = false;
        let image = Box::new(load(&self.nodes[node].disk));
        self.command(
            node,
            Command::Attach {
                volume: VOLUME,
                image,
            },
        )
    }

    fn up(&mut self, node: usize) {
        self.attach(node).unwrap();
        self.connect(node, false);
    }

    fn connect(&mut self, node: usize, discard_my_data: bool) {
        self.command(
            node,
            Command::Connect {
                peer: NodeId(1 - node as u8),
                discard_my_data,
            },
        )
        .unwrap();
    }

    fn restart(&mut self, node: usize, configure: &dyn Fn(&mut PeerConfig)) {
        if let Some(session) = self.nodes[node].session {
            self.wire.clear();
            self.nodes[node].session = None;
            let other = 1 - node;
            self.nodes[other].session = None;
            let peer = NodeId(node as u8);
            self.nodes[other].engine.handle(
                self.now,
                Event::PeerLost {
                    peer,
                    session,
                    reason: LossReason::NetworkFailure,
                },
            );
        }
        let engine = Engine::new(config(node, configure), self.now);
        let old = &mut self.nodes[node];
        old.engine = engine;
        old.wants = false;
        old.rules.clear();
        self.run();
    }

    fn disk(&self, node: usize) -> DiskState {
        self.nodes[node].engine.status().volumes[0].disk
    }

    fn replication(&self, node: usize) -> ReplicationState {
        self.nodes[node].engine.status().peers[0].devices[0].replication
    }

    fn connection(&self, node: usize) -> ConnectionState {
        self.nodes[node].engine.status().peers[0].connection
    }

    fn assert_equal_and_in_sync(&mut self) {
        for _ in 0..20 {
            if (0..2).all(|node| {
                self.disk(node) == DiskState::UpToDate
                    && self.replication(node) == ReplicationState::Established
            }) {
                break;
            }
            self.pass_time();
        }
        for node in 0..2 {
            assert_eq!(self.disk(node), DiskState::UpToDate, "disk of node {node}");
            assert_eq!(
                self.replication(node),
                ReplicationState::Established,
                "replication of node {node}"
            );
            let out_of_sync =
                self.nodes[node].engine.status().peers[0].devices[0].out_of_sync_bytes;
            assert_eq!(out_of_sync, 0, "out of sync on node {node}");
        }
        // A copy: laying the log anew must not touch the disk of a running engine.
        let copy = RefCell::new(self.nodes[0].disk.borrow().clone());
        let data = load(&copy).layout.data_bytes as usize;
        assert!(
            self.nodes[0].disk.borrow()[..data] == self.nodes[1].disk.borrow()[..data],
            "bytes differ"
        );
    }

    /// Both up, node 0 forced Primary, initial sync done.
    fn synced(configure: &dyn Fn(&mut PeerConfig)) -> Pair {
        let mut pair = Pair::new(configure);
        pair.nodes[0].disk.borrow_mut()[8192] = 55;
        pair.up(0);
        pair.up(1);
        assert_eq!(pair.disk(0), DiskState::Inconsistent);
        assert_eq!(
            pair.command(0, Command::Promote { force: false }),
            Err(Refusal::NoUpToDateDisk)
        );
        assert_eq!(pair.command(0, Command::Promote { force: true }), Ok(()));
        pair.assert_equal_and_in_sync();
        assert_eq!(pair.nodes[1].disk.borrow()[8192], 55);
        pair
    }
}

fn plain(_: &mut PeerConfig) {}

#[test]
fn a_forced_primary_syncs_a_fresh_pair_and_mirrors_writes() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 4096, 1);
    pair.write(0, 5 << 20, 2);
    assert_eq!(pair.nodes[1].disk.borrow()[4096], 1);
    assert_eq!(pair.read(0, 5 << 20), 2);
    assert_eq!(
        pair.command(1, Command::Promote { force: false }),
        Err(Refusal::TwoPrimaries)
    );
    pair.assert_equal_and_in_sync();
}

#[test]
fn roles_change_hands_without_a_resync() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 9);
    let before = pair.resync_bytes;
    assert_eq!(pair.command(0, Command::Demote { force: false }), Ok(()));
    assert_eq!(pair.command(1, Command::Promote { force: false }), Ok(()));
    assert_eq!(pair.nodes[1].engine.status().role, Role::Primary);
    assert_eq!(pair.read(1, 0), 9);
    pair.write(1, 0, 10);
    assert_eq!(pair.nodes[0].disk.borrow()[0], 10);
    assert_eq!(pair.resync_bytes, before);
}

#[test]
fn writes_of_a_lone_primary_follow_by_bitmap() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    // The idle barrier makes the first write durable on both nodes, so that the cut finds nothing unconfirmed.
    pair.pass_time();
    pair.cut();
    pair.write(0, 4096, 2);
    pair.write(0, 9 << 20, 3);
    let before = pair.resync_bytes;
    pair.heal();
    pair.assert_equal_and_in_sync();
    assert_eq!(
        pair.resync_bytes - before,
        8192,
        "exactly what was written alone"
    );
    assert!(
        pair.nodes[0].rules.contains(&"bitmap-self"),
        "{:?}",
        pair.nodes[0].rules
    );
}

#[test]
fn an_idle_outage_needs_no_resync() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.pass_time();
    pair.cut();
    let before = pair.resync_bytes;
    pair.heal();
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.resync_bytes, before);
}

#[test]
fn the_survivor_of_a_dead_primary_is_promoted_and_the_returning_node_follows_by_bitmap() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.restart(0, &plain);
    assert_eq!(pair.command(1, Command::Promote { force: false }), Ok(()));
    assert_eq!(pair.read(1, 0), 1);
    pair.write(1, 4096, 2);
    let before = pair.resync_bytes;
    pair.up(0);
    pair.assert_equal_and_in_sync();
    assert!(
        pair.resync_bytes - before <= 9 * (4 << 20) + 8192,
        "bounded by the activity log"
    );
    assert_eq!(pair.nodes[0].disk.borrow()[4096], 2);
}

#[test]
fn two_lone_primaries_are_a_split_brain_and_discard_my_data_resolves_it() {
    let mut pair = Pair::synced(&plain);
    pair.cut();
    pair.write(0, 0, 1);
    assert_eq!(pair.command(1, Command::Promote { force: false }), Ok(()));
    pair.write(1, 4096, 2);
    pair.heal();
    assert_eq!(
        (pair.connection(0), pair.connection(1)),
        (ConnectionState::StandAlone, ConnectionState::StandAlone)
    );
    assert_eq!(pair.nodes[0].disk.borrow()[4096], 0);
    assert_eq!(
        pair.command(
            1,
            Command::Connect {
                peer: NodeId(0),
                discard_my_data: true
            }
        ),
        Err(Refusal::DiscardNotAllowed)
    );
    assert_eq!(pair.command(1, Command::Demote { force: false }), Ok(()));
    pair.connect(1, true);
    pair.connect(0, false);
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[1].disk.borrow()[0], 1);
    assert_eq!(pair.nodes[1].disk.borrow()[4096], 0);
}

#[test]
fn a_primary_whose_disk_fails_goes_on_through_the_peer() {
    let mut pair = Pair::synced(&plain);
    pair.write(0, 0, 1);
    pair.nodes[0].fail_writes = true;
    pair.write(0, 4096, 2);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    assert!(pair.nodes[0].detached);
    assert_eq!(pair.read(0, 4096), 2);
    pair.write(0, 8192, 3);
    assert_eq!(pair.nodes[1].disk.borrow()[8192], 3);
    pair.nodes[0].fail_writes = false;
    pair.attach(0).unwrap();
    pair.assert_equal_and_in_sync();
    pair.write(0, 8192, 4);
    assert_eq!(
        (
            pair.nodes[0].disk.borrow()[8192],
            pair.nodes[1].disk.borrow()[8192]
        ),
        (4, 4)
    );
}

#[test]
fn a_secondary_whose_disk_fails_does_not_stop_the_primary() {
    let mut pair = Pair::synced(&plain);
    pair.nodes[1].fail_writes = true;
    pair.write(0, 4096, 2);
    pair.write(0, 8192, 3);
    assert_eq!(pair.disk(1), DiskState::Diskless);
    pair.nodes[1].fail_writes = false;
    pair.attach(1).unwrap();
    pair.assert_equal_and_in_sync();
}

#[test]
fn invalidate_makes_the_node_target_of_a_full_sync() {
    let mut pair = Pair::synced(&plain);
    let before = pair.resync_bytes;
    assert_eq!(
        pair.command(1, Command::Invalidate { volume: VOLUME }),
        Ok(())
    );
    pair.assert_equal_and_in_sync();
    assert!(pair.resync_bytes - before > DEVICE_BYTES / 2);
    let before = pair.resync_bytes;
    assert_eq!(
        pair.command(
            0,
            Command::InvalidateRemote {
                volume: VOLUME,
                peer: NodeId(1)
            }
        ),
        Ok(())
    );
    pair.assert_equal_and_in_sync();
    assert!(pair.resync_bytes - before > DEVICE_BYTES / 2);
}

#[test]
fn the_initial_sync_can_be_skipped() {
    let mut pair = Pair::new(&plain);
    pair.up(0);
    pair.up(1);
    assert_eq!(
        pair.command(
            0,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: true
            }
        ),
        Ok(())
    );
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.resync_bytes, 0);
    assert_eq!(pair.command(0, Command::Promote { force: false }), Ok(()));
    pair.write(0, 0, 1);
    assert_eq!(
        pair.command(
            0,
            Command::NewCurrentUuid {
                volume: VOLUME,
                clear_bitmap: true
            }
        ),
        Err(Refusal::NeedStandAlone)
    );
    pair.assert_equal_and_in_sync();
}

#[test]
fn an_outdated_disk_is_not_promoted_without_force() {
    let mut pair = Pair::synced(&plain);
    assert_eq!(
        pair.command(1, Command::Outdate { volume: VOLUME }),
        Err(Refusal::ConnectedOutdates)
    );
    assert_eq!(
        pair.command(
            1,
            Command::Disconnect {
                peer: NodeId(0),
                force: false
            }
        ),
        Ok(())
    );
    assert_eq!(pair.command(1, Command::Outdate { volume: VOLUME }), Ok(()));
    assert_eq!(
        pair.command(1, Command::Promote { force: false }),
        Err(Refusal::NoUpToDateDisk)
    );
    pair.write(0, 0, 7);
    pair.connect(1, false);
    pair.assert_equal_and_in_sync();
}

#[test]
fn every_protocol_carries_flush_and_fua_discard_and_zeroes() {
    use qrbd_engine::wire::message::Protocol;
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = Pair::synced(&move |peer| peer.protocol = protocol);
        let range = ByteRange::new(0, 8192);
        let operations = [
            Operation::Write {
                range,
                payload: filled(3, 8192),
                fua: true,
            },
            Operation::Flush,
            Operation::Discard {
                range: ByteRange::new(4096, 4096),
                fua: false,
            },
            Operation::WriteZeroes {
                range: ByteRange::new(512, 512),
                may_unmap: false,
                fua: true,
            },
            Operation::Flush,
        ];
        for operation in operations {
            let id = pair.submit(0, operation);
            assert_eq!(
                pair.nodes[0].completions.get(&id),
                Some(&Ok(None)),
                "{protocol:?}"
            );
        }
        pair.pass_time();
        pair.assert_equal_and_in_sync();
        assert_eq!(pair.nodes[1].disk.borrow()[0], 3);
        assert_eq!(pair.nodes[1].disk.borrow()[512], 0);
        assert_eq!(pair.nodes[1].disk.borrow()[4096], 0);
        assert_eq!(
            pair.nodes[0].engine.status().peers[0].log_entries,
            0,
            "everything durable retires"
        );
    }
}

#[test]
fn sync_can_be_paused_and_resumed_from_either_side() {
    let mut pair = Pair::synced(&plain);
    for side in 0..2 {
        let peer = NodeId(1 - side as u8);
        assert_eq!(
            pair.command(
                side,
                Command::PauseSync {
                    volume: VOLUME,
                    peer
                }
            ),
            Ok(())
        );
        assert_eq!(
            pair.command(
                side,
                Command::PauseSync {
                    volume: VOLUME,
                    peer
                }
            ),
            Err(Refusal::PauseAlreadySet)
        );
        pair.cut();
        pair.write(0, 0, 20 + side as u8);
        pair.heal();
        assert_eq!(pair.replication(0), ReplicationState::PausedSyncS);
        assert_eq!(pair.replication(1), ReplicationState::PausedSyncT);
        pair.write(0, 8 << 20, 30);
        assert_eq!(
            pair.nodes[1].disk.borrow()[8 << 20],
            30,
            "mirrored while paused"
        );
        assert_eq!(
            pair.command(
                side,
                Command::ResumeSync {
                    volume: VOLUME,
                    peer
                }
            ),
            Ok(())
        );
        pair.assert_equal_and_in_sync();
    }
}
