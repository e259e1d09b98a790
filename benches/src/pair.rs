//! Two engines joined by a network that delivers at once and disks that complete at once and keep nothing.
//!
//! Invariants: every effect is answered before the next request is made, so a write has been through both engines when
//! [`Pair::write`] returns. Nothing here decides anything: a pair that does not become healthy is a bug and panics.

use std::collections::VecDeque;
use std::hint::black_box;

use qrbd_engine::config::{PeerConfig, VolumeConfig};
use qrbd_engine::metadata::image::{self, CreateOptions};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::state::{DiskState, Role};
use qrbd_engine::units::{ByteRange, NodeId, Time, VolumeNumber};
use qrbd_engine::wire::Message;
use qrbd_engine::wire::codec::{decode, encode_head, payload_of};
use qrbd_engine::wire::message::Protocol;
use qrbd_engine::{
    Command, CommandId, Effect, Engine, EngineConfig, Event, Operation, Payload, RequestId,
    SessionId,
};

const VOLUME: VolumeNumber = VolumeNumber(0);
const AL_EXTENTS: u32 = 1237;

/// A payload that has a length and no bytes.
#[derive(Clone, Debug)]
pub struct Length(pub usize);

impl Payload for Length {
    fn length(&self) -> usize {
        self.0
    }
    fn is_zero(&self) -> bool {
        false
    }
}

/// See the module's text.
pub struct Pair {
    engines: [Engine<Length>; 2],
    session: Option<SessionId>,
    sessions: u64,
    wants: [bool; 2],
    wire: VecDeque<(usize, Message<Length>)>,
    /// Frames are encoded and decoded on their way.
    with_codec: bool,
    requests: u64,
    completed: u64,
    commands: u64,
    answered: Option<bool>,
    events: u64,
    now: Time,
    collecting: bool,
}

impl Pair {
    /// A connected pair, both UpToDate, the first one Primary.
    ///
    /// # Panics
    /// If the engines refuse one of the steps to that.
    #[must_use]
    pub fn new(device_bytes: u64, protocol: Protocol, with_codec: bool) -> Pair {
        let engine = |node: u8| {
            let peer = PeerConfig {
                protocol,
                ..PeerConfig::new(NodeId(1 - node))
            };
            let config = EngineConfig {
                node_id: NodeId(node),
                seed: [u64::from(node), 9],
                boot: u64::from(node),
                volumes: vec![VolumeConfig::new(VOLUME)],
                peers: vec![peer],
            };
            Engine::new(config, Time(0))
        };
        let mut pair = Pair {
            engines: [engine(0), engine(1)],
            session: None,
            sessions: 0,
            wants: [false; 2],
            wire: VecDeque::new(),
            with_codec,
            requests: 0,
            completed: 0,
            commands: 0,
            answered: None,
            events: 0,
            now: Time(1),
            collecting: false,
        };
        for node in 0..2u8 {
            let options = CreateOptions {
                placement: Placement::Internal,
                device_bytes,
                max_peers: 1,
                node_id: NodeId(node),
                device_uuid: 77 + u64::from(node),
                al_slots: AL_EXTENTS,
            };
            let mut image = image::create(&options).expect("a device large enough for metadata");
            let _ = image.start_log_steps(AL_EXTENTS);
            let attach = Command::Attach {
                volume: VOLUME,
                image: Box::new(image),
            };
            pair.command(usize::from(node), attach);
            let peer = NodeId(1 - node);
            pair.command(
                usize::from(node),
                Command::Connect {
                    peer,
                    discard_my_data: false,
                },
            );
        }
        let skip_sync = Command::NewCurrentUuid {
            volume: VOLUME,
            clear_bitmap: true,
        };
        pair.command(0, skip_sync);
        pair.command(0, Command::Promote { force: false });
        let status = pair.engines[0].status();
        assert_eq!(status.role, Role::Primary);
        assert_eq!(status.volumes[0].disk, DiskState::UpToDate);
        assert_eq!(
            pair.engines[1].status().volumes[0].disk,
            DiskState::UpToDate
        );
        assert!(pair.session.is_some(), "the pair is connected");
        pair
    }

    /// Writes 4 KiB at each of the block numbers, all in flight together, until all are completed.
    ///
    /// # Panics
    /// If one is not completed.
    pub fn write(&mut self, blocks: impl IntoIterator<Item = u64>) {
        for block in blocks {
            self.requests += 1;
            let operation = Operation::Write {
                range: ByteRange::new(block * 4096, 4096),
                payload: Length(4096),
                fua: false,
            };
            let id = RequestId(self.requests);
            let volume = VOLUME;
            self.handle(
                0,
                Event::Request {
                    id,
                    volume,
                    operation,
                },
            );
        }
        self.run();
        assert_eq!(self.completed, self.requests, "every write is completed");
    }

    /// Loses the connection.
    ///
    /// # Panics
    /// If there is none.
    pub fn cut(&mut self) {
        let session = self.session.take().expect("there is a connection");
        self.wire.clear();
        for node in 0..2u8 {
            let reason = qrbd_engine::api::LossReason::NetworkFailure;
            self.handle(
                usize::from(node),
                Event::PeerLost {
                    peer: NodeId(1 - node),
                    session,
                    reason,
                },
            );
            self.wants[usize::from(node)] = false;
        }
        self.run();
    }

    /// From now on engines are called through functions whose instructions can be counted, one pair of them for each role.
    pub fn collect(&mut self, collecting: bool) {
        self.collecting = collecting;
    }

    /// Events that both engines handled.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    fn handle(&mut self, node: usize, event: Event<Length>) {
        self.events += 1;
        let (engine, now) = (&mut self.engines[node], self.now);
        match (self.collecting, node) {
            (false, _) => engine.handle(now, event),
            (true, 0) => collected_at_primary_handle(engine, now, event),
            (true, _) => collected_at_secondary_handle(engine, now, event),
        }
    }

    fn poll(&mut self, node: usize) -> Option<Effect<Length>> {
        let engine = &mut self.engines[node];
        match (self.collecting, node) {
            (false, _) => engine.poll(),
            (true, 0) => collected_at_primary_poll(engine),
            (true, _) => collected_at_secondary_poll(engine),
        }
    }

    fn command(&mut self, node: usize, command: Command) {
        self.commands += 1;
        self.answered = None;
        let id = CommandId(self.commands);
        self.handle(node, Event::Command { id, command });
        self.run();
        let mut ticks = 0;
        while self.answered.is_none() {
            ticks += 1;
            assert!(ticks < 100, "a command is not answered");
            let next = self.engines.iter().filter_map(Engine::next_timeout).min();
            self.now = next.unwrap_or(self.now).max(self.now.after(1));
            self.handle(0, Event::Tick);
            self.handle(1, Event::Tick);
            self.run();
        }
        assert_eq!(self.answered, Some(true), "a command was refused");
    }

    fn run(&mut self) {
        loop {
            let mut progress = false;
            for node in 0..2 {
                while let Some(effect) = self.poll(node) {
                    progress = true;
                    self.carry_out(node, effect);
                }
            }
            if self.wants == [true; 2] && self.session.is_none() {
                self.sessions += 1;
                let session = SessionId(self.sessions);
                self.session = Some(session);
                for node in 0..2u8 {
                    let peer = NodeId(1 - node);
                    self.handle(usize::from(node), Event::PeerConnected { peer, session });
                }
                progress = true;
            }
            while let Some((to, message)) = self.wire.pop_front() {
                progress = true;
                if let Some(session) = self.session {
                    let message = if self.with_codec {
                        through_codec(&message)
                    } else {
                        message
                    };
                    let peer = NodeId(1 - to as u8);
                    self.handle(
                        to,
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

    fn carry_out(&mut self, node: usize, effect: Effect<Length>) {
        match effect {
            Effect::Read { io, range, .. } => {
                let result = Ok(Some(Length(range.length as usize)));
                self.handle(node, Event::DiskDone { io, result });
            }
            Effect::Write { io, .. }
            | Effect::Discard { io, .. }
            | Effect::WriteZeroes { io, .. }
            | Effect::Flush { io, .. } => {
                self.handle(
                    node,
                    Event::DiskDone {
                        io,
                        result: Ok(None),
                    },
                );
            }
            Effect::MetadataWrite { io, .. } | Effect::MetadataFlush { io, .. } => {
                self.handle(node, Event::MetadataDone { io, result: Ok(()) });
            }
            Effect::Send { message, .. } => self.wire.push_back((1 - node, message)),
            Effect::CloseSession { .. } => {
                if let Some(session) = self.session.take() {
                    self.wire.clear();
                    for node in 0..2u8 {
                        let peer = NodeId(1 - node);
                        let reason = qrbd_engine::api::LossReason::Closed;
                        self.handle(
                            usize::from(node),
                            Event::PeerLost {
                                peer,
                                session,
                                reason,
                            },
                        );
                    }
                }
            }
            Effect::StartConnecting { .. } => self.wants[node] = true,
            Effect::StopConnecting { .. } => self.wants[node] = false,
            Effect::Complete { result, .. } => {
                assert!(result.is_ok(), "a write failed");
                self.completed += 1;
            }
            Effect::CommandDone { result, .. } => self.answered = Some(result.is_ok()),
            Effect::Detached { .. }
            | Effect::Handler { .. }
            | Effect::FencePeer { .. }
            | Effect::Probe { .. }
            | Effect::Push { .. }
            | Effect::AskHandler { .. }
            | Effect::MeasureDisk { .. }
            | Effect::RememberDisk { .. }
            | Effect::Notice(_) => {}
        }
    }
}

// Counted by `--toggle-collect` of valgrind's callgrind. The words in the black boxes keep the functions apart, which would
// otherwise be merged into one, and each on the stack until the engine returned.

#[inline(never)]
fn collected_at_primary_handle(engine: &mut Engine<Length>, now: Time, event: Event<Length>) {
    engine.handle(now, event);
    black_box("primary");
}

#[inline(never)]
fn collected_at_primary_poll(engine: &mut Engine<Length>) -> Option<Effect<Length>> {
    let effect = engine.poll();
    black_box("primary");
    effect
}

#[inline(never)]
fn collected_at_secondary_handle(engine: &mut Engine<Length>, now: Time, event: Event<Length>) {
    engine.handle(now, event);
    black_box("secondary");
}

#[inline(never)]
fn collected_at_secondary_poll(engine: &mut Engine<Length>) -> Option<Effect<Length>> {
    let effect = engine.poll();
    black_box("secondary");
    effect
}

fn through_codec(message: &Message<Length>) -> Message<Length> {
    let head = encode_head(message);
    let payload = payload_of(message).cloned();
    let (_, message) = decode(&head, payload).expect("what was encoded can be decoded");
    message
}
