//! Two engines joined by a network and disks that are perfect unless a test holds something back.
//!
//! Owns what the shells own: disks, sessions, the way of messages, time. A test may hold back messages chosen by a predicate (lanes
//! are not ordered with each other, so anything but the order within a lane is fair) and answers of a disk, and let them go later.
//! Nothing is lost at random here and no clock runs by itself: faults by the thousand are the simulator's business.
#![allow(dead_code)] // Each file of tests uses its part.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use qrbd_engine::api::{ClientError, FenceAnswer, FenceId, HandlerId, IoError, LossReason, Notice};
use qrbd_engine::config::{Fencing, PeerConfig, VolumeConfig};
use qrbd_engine::metadata::growth::{DiskSizes, KnownDevice};
use qrbd_engine::metadata::image::{self, CreateOptions, MetadataImage, Step};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::state::{ConnectionState, DiskState, Refusal, ReplicationState};
use qrbd_engine::units::{ByteRange, NodeId, Time, VolumeNumber};
use qrbd_engine::wire::{Lane, Message};
use qrbd_engine::{
    Command, CommandId, Effect, Engine, EngineConfig, Event, Operation, Payload, RequestId,
    SessionId,
};

pub const DEVICE_BYTES: u64 = 64 << 20;
pub const VOLUME: VolumeNumber = VolumeNumber(0);

#[derive(Clone, Debug, PartialEq)]
pub struct Bytes(pub Rc<Vec<u8>>);

impl Payload for Bytes {
    fn length(&self) -> usize {
        self.0.len()
    }
    fn is_zero(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }
}

pub fn filled(value: u8, length: usize) -> Bytes {
    Bytes(Rc::new(vec![value; length]))
}

/// A kind of operation on a node's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    Read,
    Write,
    Flush,
    Metadata,
}

pub struct Node {
    pub engine: Engine<Bytes>,
    pub disk: Rc<RefCell<Vec<u8>>>,
    /// What the shell remembers of the disk.
    pub known: Option<KnownDevice>,
    /// Nothing can be remembered.
    pub forgetful: bool,
    pub completions: BTreeMap<u64, Result<Option<Bytes>, ClientError>>,
    pub commands: BTreeMap<u64, Result<(), Refusal>>,
    pub wants: bool,
    pub session: Option<SessionId>,
    pub rules: Vec<&'static str>,
    /// Handlers that were called.
    pub handlers: Vec<&'static str>,
    /// With what a handler whose word counts ends at once; `None`: it runs until [`Pair::say`].
    pub says_at_once: Option<i32>,
    /// `fence-peer` runs until [`Pair::fenced`].
    pub fencing: Option<FenceId>,
    /// Handlers that run.
    pub asked: VecDeque<(HandlerId, &'static str)>,
    /// Writes that were to be durable by themselves.
    pub durable_writes: usize,
    pub fail_writes: bool,
    pub fail_metadata: bool,
    pub detached: bool,
    /// Operations of these kinds are carried out, but not answered before [`Pair::thaw`].
    pub freeze: Vec<Io>,
    pub frozen: VecDeque<Event<Bytes>>,
    /// The disk stores nothing and reads as zeroes: for devices larger than memory.
    pub empty: bool,
}

pub struct Pair {
    pub nodes: [Node; 2],
    pub now: Time,
    pub wire: VecDeque<(usize, SessionId, Message<Bytes>)>,
    pub sessions: u64,
    pub next: u64,
    pub linked: bool,
    pub resync_bytes: u64,
    /// What was sent in resyncs, in order.
    pub resync_ranges: Vec<ByteRange>,
    /// Messages for which this is true do not arrive before [`Pair::release`].
    pub hold_back: Option<fn(&Message<Bytes>) -> bool>,
    pub held_back: VecDeque<(usize, SessionId, Message<Bytes>)>,
    /// Messages of the data lane that may be kept because more follows.
    pub kept: usize,
    /// What the nodes reported of received operations.
    pub reports: Vec<Message<Bytes>>,
    /// Parts of bitmaps that were sent, and the most that were on their way at the same time.
    pub bitmap_parts: usize,
    pub most_bitmap_parts: usize,
}

/// Messages between two nodes in one go, more than which means that they will talk for ever.
const ENDLESS: usize = 100_000;

pub fn config(node: usize, configure: &dyn Fn(&mut PeerConfig)) -> EngineConfig {
    let mut peer = PeerConfig::new(NodeId(1 - node as u8));
    configure(&mut peer);
    EngineConfig {
        node_id: NodeId(node as u8),
        seed: [7 + node as u64, 9],
        boot: 40 + node as u64,
        volumes: vec![VolumeConfig::new(VOLUME)],
        peers: vec![peer],
    }
}

pub fn run_steps(disk: &RefCell<Vec<u8>>, steps: impl IntoIterator<Item = Step>) {
    for step in steps {
        if let Step::Write { offset, bytes } = step {
            disk.borrow_mut()[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
    }
}

pub fn fresh_disk(node: usize) -> Rc<RefCell<Vec<u8>>> {
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

pub fn load(disk: &RefCell<Vec<u8>>, known: Option<KnownDevice>) -> MetadataImage {
    let device_bytes = disk.borrow().len() as u64;
    let read = |offset: u64, bytes: &mut [u8]| {
        bytes.copy_from_slice(&disk.borrow()[offset as usize..][..bytes.len()]);
        Ok(())
    };
    let mut image =
        image::load_grown::<String>(Placement::Internal, device_bytes, known, read).unwrap();
    let (_, steps) = image.start_log_steps(9);
    run_steps(disk, steps);
    image
}

impl Node {
    fn answer(&mut self, now: Time, kind: Option<Io>, event: Event<Bytes>) {
        if kind.is_some_and(|kind| self.freeze.contains(&kind)) {
            self.frozen.push_back(event);
        } else {
            self.engine.handle(now, event);
        }
    }

    /// First byte of the block at the offset.
    pub fn byte(&self, offset: u64) -> u8 {
        self.disk.borrow()[offset as usize]
    }
}

impl Pair {
    pub fn new(configure: &dyn Fn(&mut PeerConfig)) -> Pair {
        let node = |index: usize| Node {
            engine: Engine::new(config(index, configure), Time(0)),
            disk: fresh_disk(index),
            known: None,
            forgetful: false,
            completions: BTreeMap::new(),
            commands: BTreeMap::new(),
            wants: false,
            session: None,
            rules: Vec::new(),
            handlers: Vec::new(),
            says_at_once: Some(0),
            fencing: None,
            asked: VecDeque::new(),
            durable_writes: 0,
            fail_writes: false,
            fail_metadata: false,
            detached: false,
            freeze: Vec::new(),
            frozen: VecDeque::new(),
            empty: false,
        };
        Pair {
            nodes: [node(0), node(1)],
            now: Time(1),
            wire: VecDeque::new(),
            sessions: 0,
            next: 0,
            linked: true,
            resync_bytes: 0,
            resync_ranges: Vec::new(),
            hold_back: None,
            held_back: VecDeque::new(),
            kept: 0,
            bitmap_parts: 0,
            most_bitmap_parts: 0,
            reports: Vec::new(),
        }
    }

    pub fn event(&mut self, node: usize, event: Event<Bytes>) {
        self.nodes[node].engine.handle(self.now, event);
        self.run();
    }

    pub fn run(&mut self) {
        for _ in 0..ENDLESS {
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
        panic!("the nodes talk for ever although no time passes");
    }

    /// Lets what was held back arrive, and holds nothing back any more.
    pub fn release(&mut self) {
        self.hold_back = None;
        self.wire.append(&mut self.held_back);
        self.run();
    }

    /// Lets the node's disk answer, and nothing freezes there any more.
    pub fn thaw(&mut self, node: usize) {
        self.nodes[node].freeze.clear();
        while self.thaw_one(node) {}
    }

    /// Lets the node's disk answer the oldest operation that has no answer yet. False if there is none.
    pub fn thaw_one(&mut self, node: usize) -> bool {
        let answer = self.nodes[node].frozen.pop_front();
        answer.map(|event| self.event(node, event)).is_some()
    }

    /// The handler of the node that runs longest ends.
    pub fn say(&mut self, node: usize, exit_code: Option<i32>) {
        let (id, _) = self.nodes[node].asked.pop_front().expect("a handler runs");
        self.event(node, Event::HandlerAnswered { id, exit_code });
    }

    /// The node's `fence-peer` ends: its peer was shot.
    pub fn fenced(&mut self, node: usize) {
        let id = self.nodes[node].fencing.take().expect("fence-peer runs");
        let (peer, answer) = (NodeId(1 - node as u8), FenceAnswer::Stonith);
        self.event(node, Event::PeerFenced { peer, id, answer });
    }

    pub fn link(&mut self) -> bool {
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

    pub fn unlink(&mut self, session: SessionId, reason: LossReason) {
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

    pub fn cut(&mut self) {
        self.linked = false;
        if let Some(session) = self.nodes[0].session {
            self.unlink(session, LossReason::NetworkFailure);
        }
        self.run();
    }

    pub fn heal(&mut self) {
        self.linked = true;
        self.run();
    }

    pub fn carry_out(&mut self, index: usize, effect: Effect<Bytes>) {
        let node = &mut self.nodes[index];
        let done = |node: &mut Node, now, io, result| {
            node.answer(now, None, Event::DiskDone { io, result })
        };
        match effect {
            Effect::Read { io, range, .. } => {
                let bytes = if node.empty {
                    vec![0; range.length as usize]
                } else {
                    node.disk.borrow()[range.offset as usize..range.end() as usize].to_vec()
                };
                let result = Ok(Some(Bytes(Rc::new(bytes))));
                node.answer(self.now, Some(Io::Read), Event::DiskDone { io, result });
            }
            Effect::Write {
                io,
                range,
                payload,
                durable,
                ..
            } => {
                node.durable_writes += usize::from(durable);
                if node.fail_writes {
                    return done(node, self.now, io, Err(IoError::Failed));
                }
                if !node.empty {
                    node.disk.borrow_mut()[range.offset as usize..range.end() as usize]
                        .copy_from_slice(&payload.0);
                }
                let result = Ok(None);
                node.answer(self.now, Some(Io::Write), Event::DiskDone { io, result });
            }
            Effect::Discard { io, range, .. } | Effect::WriteZeroes { io, range, .. } => {
                if !node.empty {
                    node.disk.borrow_mut()[range.offset as usize..range.end() as usize].fill(0);
                }
                done(node, self.now, io, Ok(None));
            }
            Effect::Flush { io, .. } => {
                let result = Ok(None);
                node.answer(self.now, Some(Io::Flush), Event::DiskDone { io, result });
            }
            Effect::MetadataWrite {
                io, offset, bytes, ..
            } => {
                if !node.empty && !node.fail_metadata {
                    node.disk.borrow_mut()[offset as usize..][..bytes.len()]
                        .copy_from_slice(&bytes);
                }
                let result = if node.fail_metadata {
                    Err(IoError::Failed)
                } else {
                    Ok(())
                };
                node.answer(
                    self.now,
                    Some(Io::Metadata),
                    Event::MetadataDone { io, result },
                );
            }
            Effect::MetadataFlush { io, .. } => {
                let result = Ok(());
                node.answer(
                    self.now,
                    Some(Io::Metadata),
                    Event::MetadataDone { io, result },
                );
            }
            Effect::Send {
                session,
                message,
                more,
                ..
            } => {
                // Arrives at once although it may be kept, which no engine can rely on.
                if message.lane() == Lane::Data {
                    self.kept = if more { self.kept + 1 } else { 0 };
                }
                if let Message::ResyncData { range, .. } | Message::ResyncZeroes { range, .. } =
                    &message
                {
                    self.resync_bytes += u64::from(range.length);
                    self.resync_ranges.push(*range);
                }
                if let Message::Received { .. }
                | Message::Written { .. }
                | Message::BarrierAck { .. } = &message
                {
                    self.reports.push(message.clone());
                }
                let wire = match self.hold_back {
                    Some(held) if held(&message) => &mut self.held_back,
                    _ => &mut self.wire,
                };
                let part = matches!(message, Message::BitmapRuns { .. });
                wire.push_back((1 - index, session, message));
                if part {
                    let parts = wire
                        .iter()
                        .filter(|(.., message)| matches!(message, Message::BitmapRuns { .. }))
                        .count();
                    self.bitmap_parts += 1;
                    self.most_bitmap_parts = self.most_bitmap_parts.max(parts);
                }
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
            Effect::MeasureDisk { io, .. } => {
                let bytes = node.disk.borrow().len() as u64;
                let result = Ok(DiskSizes {
                    device_bytes: bytes,
                    metadata_bytes: bytes,
                });
                let event = Event::DiskMeasured { io, result };
                node.answer(self.now, None, event);
            }
            Effect::RememberDisk { io, known, .. } => {
                let result = if node.forgetful {
                    Err(IoError::Failed)
                } else {
                    node.known = Some(known);
                    Ok(())
                };
                let event = Event::DiskRemembered { io, result };
                node.answer(self.now, None, event);
            }
            Effect::Detached { .. } => node.detached = true,
            Effect::Handler { name, .. } => node.handlers.push(name),
            Effect::AskHandler { id, name, .. } => match node.says_at_once {
                None => node.asked.push_back((id, name)),
                exit_code => {
                    let event = Event::HandlerAnswered { id, exit_code };
                    node.answer(self.now, None, event);
                }
            },
            Effect::FencePeer { id, .. } => node.fencing = Some(id),
            Effect::Push { .. } => self.kept = 0,
            Effect::Probe { .. } => {}
            Effect::Notice(Notice::Decision { rule, .. }) => node.rules.push(rule),
            Effect::Notice(_) => {}
        }
    }

    /// Gives a command and does not wait for its answer.
    pub fn give(&mut self, node: usize, command: Command) -> u64 {
        self.next += 1;
        let id = self.next;
        self.event(
            node,
            Event::Command {
                id: CommandId(id),
                command,
            },
        );
        id
    }

    pub fn command(&mut self, node: usize, command: Command) -> Result<(), Refusal> {
        let id = self.give(node, command);
        for _ in 0..100 {
            if let Some(result) = self.nodes[node].commands.get(&id) {
                return *result;
            }
            self.pass_time();
        }
        panic!("command {id} never answered");
    }

    /// Jumps to the next timer.
    pub fn pass_time(&mut self) {
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

    pub fn submit(&mut self, node: usize, operation: Operation<Bytes>) -> u64 {
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

    /// Submits the write of a block and does not wait for its completion.
    pub fn start_write(&mut self, node: usize, offset: u64, value: u8) -> u64 {
        let operation = Operation::Write {
            range: ByteRange::new(offset, 4096),
            payload: filled(value, 4096),
            fua: false,
        };
        self.submit(node, operation)
    }

    pub fn write(&mut self, node: usize, offset: u64, value: u8) {
        let id = self.start_write(node, offset, value);
        assert_eq!(
            self.nodes[node].completions.get(&id),
            Some(&Ok(None)),
            "write of {value} at {offset}"
        );
    }

    pub fn read(&mut self, node: usize, offset: u64) -> u8 {
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

    pub fn attach(&mut self, node: usize) -> Result<(), Refusal> {
        let command = self.attach_command(node);
        self.command(node, command)
    }

    pub fn attach_command(&mut self, node: usize) -> Command {
        self.nodes[node].detached = false;
        let image = load(&self.nodes[node].disk, self.nodes[node].known);
        self.nodes[node].known = Some(KnownDevice::of(&image.superblock));
        let image = Box::new(image);
        Command::Attach {
            volume: VOLUME,
            image,
        }
    }

    pub fn detach(&mut self, node: usize) -> Result<(), Refusal> {
        self.command(
            node,
            Command::Detach {
                volume: VOLUME,
                force: false,
            },
        )
    }

    /// A synced pair whose Primary, node 0, has its old disk again: 1 there in the block at `offset`, 2 at node 1, and the resync paused.
    pub fn paused_target(offset: u64) -> Pair {
        let mut pair = Pair::synced(&plain);
        let (volume, peer) = (VOLUME, NodeId(1));
        pair.write(0, offset, 1);
        pair.detach(0).unwrap();
        pair.write(0, offset, 2);
        pair.command(0, Command::PauseSync { volume, peer })
            .unwrap();
        pair.attach(0).unwrap();
        assert_eq!(pair.replication(0), ReplicationState::PausedSyncT);
        pair
    }

    pub fn detach_by_force(&mut self, node: usize) -> Result<(), Refusal> {
        self.command(
            node,
            Command::Detach {
                volume: VOLUME,
                force: true,
            },
        )
    }

    pub fn up(&mut self, node: usize) {
        self.attach(node).unwrap();
        self.connect(node, false);
    }

    pub fn connect(&mut self, node: usize, discard_my_data: bool) {
        self.command(
            node,
            Command::Connect {
                peer: NodeId(1 - node as u8),
                discard_my_data,
            },
        )
        .unwrap();
    }

    pub fn restart(&mut self, node: usize, configure: &dyn Fn(&mut PeerConfig)) {
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
        old.freeze.clear();
        old.frozen.clear();
        self.run();
    }

    /// Makes the disk of a node larger; what is added reads as `value`.
    pub fn grow(&mut self, node: usize, device_bytes: u64, value: u8) {
        self.nodes[node]
            .disk
            .borrow_mut()
            .resize(device_bytes as usize, value);
    }

    /// Size of the volume as clients of a node see it.
    pub fn size(&self, node: usize) -> u64 {
        self.nodes[node].engine.status().volumes[0].size
    }

    pub fn disk(&self, node: usize) -> DiskState {
        self.nodes[node].engine.status().volumes[0].disk
    }

    pub fn replication(&self, node: usize) -> ReplicationState {
        self.nodes[node].engine.status().peers[0].devices[0].replication
    }

    pub fn connection(&self, node: usize) -> ConnectionState {
        self.nodes[node].engine.status().peers[0].connection
    }

    pub fn assert_equal_and_in_sync(&mut self) {
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
        let size = |node: usize| self.nodes[node].engine.status().volumes[0].size;
        assert_eq!(size(0), size(1), "size of the volume");
        let data = size(0) as usize;
        assert!(
            self.nodes[0].disk.borrow()[..data] == self.nodes[1].disk.borrow()[..data],
            "bytes differ"
        );
    }

    /// Both up, node 0 forced Primary, initial sync done.
    pub fn synced(configure: &dyn Fn(&mut PeerConfig)) -> Pair {
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

pub fn stonith(peer: &mut PeerConfig) {
    peer.fencing = Fencing::ResourceAndStonith;
}

pub fn plain(_: &mut PeerConfig) {}
