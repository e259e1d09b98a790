//! The engine: one resource on one node.
//!
//! Owns the state, takes one event at a time, and leaves effects in a queue. This file holds the frame (dispatch, the table of
//! operations under way, timers, notices); what the events mean is in the modules beside it, each an `impl Engine` of its own:
//! `request` (clients), `mirror` (the peer's writes), `handshake`, `resync`, `commands`, `metadata_events`, `failures`.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use slab::Slab;

use crate::api::{CommandId, Effect, Event, IoError, IoId, LossReason, Notice, Payload, SessionId};
use crate::commands::{Deferred, RoleChange, SkipCommand};
use crate::config::EngineConfig;
use crate::limits;
use crate::peer::Peer;
use crate::random::Random;
use crate::request::Request;
use crate::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use crate::units::{Generation, NodeId, Time, VolumeNumber};
use crate::volume::Volume;
use crate::wire::message::Protocol;
use crate::wire::{GoodbyeReason, Message};

/// Who waits for a disk operation.
#[derive(Clone, Debug)]
pub(crate) enum IoOwner {
    /// A client's read.
    ClientRead(usize),
    /// The local part of a client's write.
    RequestWrite(usize),
    /// The group of requests that the running flush serves.
    FlushGroup,
    /// A write received from a peer.
    ReceivedWrite { peer: usize, key: usize },
    /// A read for a peer's client.
    ReceivedRead { peer: usize, key: usize },
    /// The flush of an epoch received from a peer.
    EpochFlush {
        peer: usize,
        session: Option<SessionId>,
    },
    /// A resync read.
    ResyncRead {
        peer: usize,
        session: SessionId,
        id: u64,
    },
    /// A resync write.
    ResyncWrite { peer: usize, key: usize },
    /// The flush that a resync source asked for.
    ResyncFlush { peer: usize, session: SessionId },
    /// The flush before a demotion.
    DemoteFlush,
    /// A metadata operation.
    Metadata,
    /// A look at the disk's size.
    Measure,
}

struct Io {
    serial: u32,
    volume: usize,
    attachment: u32,
    owner: IoOwner,
}

/// The engine of one resource on one node. See the module's text.
pub struct Engine<P: Payload> {
    pub(crate) node_id: NodeId,
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) role: Role,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) peers: Vec<Peer<P>>,
    pub(crate) requests: Slab<Request<P>>,
    pub(crate) role_change: Option<RoleChange>,
    pub(crate) deferred: Vec<Deferred>,
    pub(crate) skip_command: Option<SkipCommand>,
    pub(crate) suspended_by_user: bool,
    pub(crate) last_application_io: Time,
    /// Events handled.
    pub(crate) events: u64,
    ios: Slab<Io>,
    io_serial: u32,
    effects: VecDeque<Effect<P>>,
}

impl<P: Payload> Engine<P> {
    /// A Secondary without disks and connections.
    #[must_use]
    pub fn new(config: EngineConfig, now: Time) -> Self {
        let volumes: Vec<Volume> = (config.volumes)
            .into_iter()
            .map(|volume| Volume::new(volume, config.boot))
            .collect();
        let count = volumes.len();
        Engine {
            node_id: config.node_id,
            now,
            random: Random::new(config.seed),
            role: Role::Secondary,
            volumes,
            peers: config
                .peers
                .into_iter()
                .map(|peer| Peer::new(peer, count))
                .collect(),
            requests: Slab::new(),
            role_change: None,
            deferred: Vec::new(),
            skip_command: None,
            suspended_by_user: false,
            last_application_io: Time(0),
            events: 0,
            ios: Slab::new(),
            io_serial: 0,
            effects: VecDeque::new(),
        }
    }

    /// Takes one event. Drain [`Engine::poll`] afterwards (after several events is fine too, and batches acknowledgements).
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        self.now = self.now.max(now);
        self.events += 1;
        match event {
            Event::Request {
                id,
                volume,
                operation,
            } => self.client_request(id, volume, operation),
            Event::DiskDone { io, result } => self.disk_done(io, result),
            Event::MetadataDone { io, result } => self.metadata_done(io, result),
            Event::DiskMeasured { io, result } => {
                if let Some((v, _)) = self.take_io(io) {
                    self.disk_measured(v, result);
                    self.finish_detach(v);
                }
            }
            Event::DiskRemembered { io, result } => {
                if let Some((v, _)) = self.take_io(io) {
                    self.disk_remembered(v, result);
                    self.finish_detach(v);
                }
            }
            Event::PeerConnected { peer, session } => self.peer_connected(peer, session),
            Event::PeerLost {
                peer,
                session,
                reason,
            } => self.peer_lost_event(peer, session, reason),
            Event::Frame {
                peer,
                session,
                message,
            } => self.frame(peer, session, message),
            Event::PeerFenced { peer, id, answer } => self.peer_fenced(peer, id, answer),
            Event::NobodyListens { peer, session } => self.nobody_listens(peer, session),
            Event::Tick => self.tick(),
            Event::HandlerAnswered { id, exit_code } => self.handler_answered(id, exit_code),
            Event::Command { id, command } => self.command(id, command),
            Event::Openers { volume, count } => {
                if let Some(v) = self.volume_index(volume) {
                    self.volumes[v].openers = count;
                }
            }
        }
        self.settle();
    }

    /// The next effect.
    pub fn poll(&mut self) -> Option<Effect<P>> {
        if self.effects.is_empty() {
            self.send_reports();
        }
        self.effects.pop_front()
    }

    /// True if somebody may wait for what this node does next: its own clients, or those of a Primary that waits for this node. Under
    /// protocol A nobody waits for a Secondary, unless it falls behind (a Primary whose buffer is full slows its clients) or one of the two
    /// disks is not good.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.role == Role::Primary
            || (0..self.peers.len()).any(|p| {
                let peer = &self.peers[p];
                let connected = peer.connection == ConnectionState::Connected;
                peer.config.protocol != Protocol::A
                    || connected && !self.may_gather(p)
                    || peer.receiver.buffered() > limits::UNHURRIED_OPERATIONS
            })
    }

    /// When [`Event::Tick`] is due, if nothing else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        let mut next: Option<Time> = None;
        let mut consider = |time: Option<Time>| {
            if let Some(time) = time {
                next = Some(next.map_or(time, |other| other.min(time)));
            }
        };
        for (p, peer) in self.peers.iter().enumerate() {
            consider(peer.handshake_deadline);
            consider(peer.settle_deadline);
            consider(peer.idle_barrier);
            consider(peer.reports.due);
            consider(peer.gathered.due);
            if peer.session.is_some() && peer.connection == ConnectionState::Connected {
                consider(Some(peer.ping.map_or(
                    peer.last_heard.after(peer.config.ping_interval),
                    |ping| ping.deadline,
                )));
                if peer.config.ko_count > 0 {
                    consider(peer.stalled.map(|(_, since)| {
                        since.after(peer.config.timeout * u64::from(peer.config.ko_count))
                    }));
                }
                consider(peer.granted);
                consider(self.probe_due(p));
            }
            consider(peer.returns_by);
            for device in &peer.devices {
                consider(device.waits_until.filter(|&until| until > self.now));
                if device.replication == ReplicationState::SyncSource {
                    consider(device.source.as_ref().and_then(|source| source.resume_at));
                }
            }
        }
        for volume in &self.volumes {
            consider(
                volume
                    .resize
                    .as_ref()
                    .and_then(crate::commands::Resize::deadline),
            );
        }
        for deferred in &self.deferred {
            consider(Some(deferred.deadline));
        }
        if let Some(change) = &self.role_change {
            consider(change.deadline());
        }
        if let Some(command) = &self.skip_command {
            consider(Some(command.deadline));
        }
        next
    }

    // ---- tables -------------------------------------------------------------------------------------------------------------

    pub(crate) fn volume_index(&self, number: VolumeNumber) -> Option<usize> {
        self.volumes
            .iter()
            .position(|volume| volume.number == number)
    }

    pub(crate) fn peer_index(&self, node: NodeId) -> Option<usize> {
        self.peers
            .iter()
            .position(|peer| peer.config.node_id == node)
    }

    /// A fresh handle for an operation on the volume's backing disk.
    pub(crate) fn new_io(&mut self, v: usize, owner: IoOwner) -> IoId {
        self.io_serial = self.io_serial.wrapping_add(1);
        let volume = &mut self.volumes[v];
        volume.outstanding += 1;
        let key = self.ios.insert(Io {
            serial: self.io_serial,
            volume: v,
            attachment: volume.attachment,
            owner,
        });
        IoId(u64::from(self.io_serial) << 32 | key as u64)
    }

    /// Looks up a handle and forgets it. Returns the volume and the owner; `None` for the owner if the disk is another one by now.
    fn take_io(&mut self, io: IoId) -> Option<(usize, IoOwner)> {
        let key = (io.0 & 0xFFFF_FFFF) as usize;
        if self
            .ios
            .get(key)
            .is_none_or(|entry| u64::from(entry.serial) != io.0 >> 32)
        {
            return None;
        }
        let entry = self.ios.remove(key);
        debug_assert_eq!(
            self.volumes[entry.volume].attachment, entry.attachment,
            "a disk is given back only when idle"
        );
        self.volumes[entry.volume].outstanding -= 1;
        Some((entry.volume, entry.owner))
    }

    pub(crate) fn effect(&mut self, effect: Effect<P>) {
        self.effects.push_back(effect);
    }

    pub(crate) fn command_done(&mut self, id: CommandId, result: Result<(), Refusal>) {
        self.effects.push_back(Effect::CommandDone { id, result });
    }

    pub(crate) fn decision(
        &mut self,
        p: Option<usize>,
        v: Option<usize>,
        rule: &'static str,
        text: String,
    ) {
        let peer = p.map(|p| self.peers[p].config.node_id);
        let volume = v.map(|v| self.volumes[v].number);
        self.effects.push_back(Effect::Notice(Notice::Decision {
            peer,
            volume,
            rule,
            text,
        }));
    }

    // ---- checked state changes ------------------------------------------------------------------------------------------------

    pub(crate) fn set_role(&mut self, to: Role, rule: &'static str) {
        if self.role != to {
            let from = core::mem::replace(&mut self.role, to);
            for volume in &mut self.volumes {
                volume.exposed = Generation::NONE;
                volume.generation_due = false;
                volume.unconfirmed &= to != Role::Primary;
            }
            for peer in &mut self.peers {
                peer.fence.freezes = false;
            }
            self.forget_unflushed();
            self.effects
                .push_back(Effect::Notice(Notice::Role { from, to, rule }));
            self.broadcast_state();
        }
    }

    pub(crate) fn set_disk(&mut self, v: usize, to: DiskState, rule: &'static str) {
        let volume = &mut self.volumes[v];
        if volume.disk != to {
            assert!(
                volume.disk.may_become(to),
                "disk state {} must not become {to} ({rule})",
                volume.disk
            );
            let from = core::mem::replace(&mut volume.disk, to);
            let number = volume.number;
            self.effects.push_back(Effect::Notice(Notice::Disk {
                volume: number,
                from,
                to,
                rule,
            }));
            self.broadcast_state();
            if to == DiskState::UpToDate {
                self.failed_disk_is_back(v);
            }
        }
    }

    pub(crate) fn set_connection(&mut self, p: usize, to: ConnectionState, rule: &'static str) {
        let peer = &mut self.peers[p];
        if peer.connection != to {
            assert!(
                peer.connection.may_become(to),
                "connection state {} must not become {to} ({rule})",
                peer.connection
            );
            let from = core::mem::replace(&mut peer.connection, to);
            let node = peer.config.node_id;
            self.effects.push_back(Effect::Notice(Notice::Connection {
                peer: node,
                from,
                to,
                rule,
            }));
        }
    }

    pub(crate) fn set_replication(
        &mut self,
        p: usize,
        v: usize,
        to: ReplicationState,
        rule: &'static str,
    ) {
        let peer = &mut self.peers[p];
        let device = &mut peer.devices[v];
        if device.replication != to {
            assert!(
                device.replication.may_become(to),
                "replication state {} must not become {to} ({rule})",
                device.replication
            );
            let from = core::mem::replace(&mut device.replication, to);
            device.asked = None;
            device.waits_until = None;
            let node = peer.config.node_id;
            let volume = self.volumes[v].number;
            self.effects.push_back(Effect::Notice(Notice::Replication {
                peer: node,
                volume,
                from,
                to,
                rule,
            }));
        }
    }

    /// Tells every connected peer this node's role and disks.
    pub(crate) fn broadcast_state(&mut self) {
        for p in 0..self.peers.len() {
            if self.peers[p].connection == ConnectionState::Connected {
                let disks = (0..self.volumes.len())
                    .map(|v| (self.volumes[v].number, self.told_disk(v)))
                    .collect();
                let role = self.role;
                self.send(p, Message::PeerState { role, disks });
            }
        }
    }

    // ---- dispatch -------------------------------------------------------------------------------------------------------------

    fn disk_done(&mut self, io: IoId, result: Result<Option<P>, IoError>) {
        let Some((v, owner)) = self.take_io(io) else {
            return;
        };
        if let IoOwner::RequestWrite(_)
        | IoOwner::ReceivedWrite { .. }
        | IoOwner::ResyncWrite { .. } = owner
        {
            self.volumes[v].flush.covers_all = false;
        }
        match owner {
            IoOwner::ClientRead(key) => self.client_read_done(key, result),
            IoOwner::RequestWrite(key) => self.local_write_done(key, result.map(|_| ())),
            IoOwner::FlushGroup => self.flush_group_done(v, result.map(|_| ())),
            IoOwner::ReceivedWrite { peer, key } => {
                self.received_write_done(peer, key, result.map(|_| ()))
            }
            IoOwner::ReceivedRead { peer, key } => self.received_read_done(peer, key, result),
            IoOwner::EpochFlush { peer, session } => {
                self.epoch_flush_done(v, peer, session, result.map(|_| ()))
            }
            IoOwner::ResyncRead { peer, session, id } => {
                self.resync_read_done(v, peer, session, id, result)
            }
            IoOwner::ResyncWrite { peer, key } => {
                self.resync_write_done(peer, key, result.map(|_| ()))
            }
            IoOwner::ResyncFlush { peer, session } => {
                self.resync_flush_done(v, peer, session, result.map(|_| ()))
            }
            IoOwner::DemoteFlush => self.demote_flush_done(v, result.map(|_| ())),
            IoOwner::Metadata => self.metadata_operation_done(v, result.map(|_| ())),
            IoOwner::Measure => {}
        }
        self.finish_detach(v);
    }

    fn metadata_done(&mut self, io: IoId, result: Result<(), IoError>) {
        if let Some((v, _)) = self.take_io(io) {
            self.metadata_operation_done(v, result);
            self.finish_detach(v);
        }
    }

    fn peer_lost_event(&mut self, node: NodeId, session: SessionId, reason: LossReason) {
        let Some(p) = self.peer_index(node) else {
            return;
        };
        if self.peers[p].session == Some(session) {
            let (state, rule) = match reason {
                LossReason::Closed => (ConnectionState::BrokenPipe, "peer-closed"),
                LossReason::NetworkFailure => (ConnectionState::NetworkFailure, "network-failure"),
                LossReason::ProtocolError => (ConnectionState::ProtocolError, "undecodable-frame"),
                LossReason::Replaced => (ConnectionState::BrokenPipe, "peer-restarted"),
                LossReason::ClosedHere => (ConnectionState::BrokenPipe, "closed-here"),
            };
            self.connection_lost(p, state, rule);
        }
    }

    fn frame(&mut self, node: NodeId, session: SessionId, message: Message<P>) {
        let Some(p) = self.peer_index(node) else {
            return;
        };
        if self.peers[p].session != Some(session) {
            return;
        }
        // Any frame proves that the peer is there.
        self.peers[p].last_heard = self.now;
        self.peers[p].heard_in = self.events;
        self.peers[p].ping = None;
        if let Err(what) = self.message(p, message) {
            self.protocol_error(p, what);
        }
    }

    /// The peer said something that makes no sense: both sides learn what, and try again on a new connection.
    pub(crate) fn protocol_error(&mut self, p: usize, what: &'static str) {
        self.decision(Some(p), None, "protocol-error", String::from(what));
        self.send(
            p,
            Message::Goodbye {
                reason: GoodbyeReason::ProtocolError,
                text: String::from(what),
            },
        );
        self.drop_session(p, ConnectionState::ProtocolError, "protocol-error");
    }

    /// One message; an error names what makes no sense in it.
    fn message(&mut self, p: usize, message: Message<P>) -> Result<(), &'static str> {
        if self.peers[p].hello_received.is_none()
            && !matches!(
                message,
                Message::Hello(_)
                    | Message::Goodbye { .. }
                    | Message::Ping { .. }
                    | Message::Pong { .. }
            )
        {
            return Err("a message before the Hello");
        }
        match message {
            Message::Hello(hello) => self.hello_received(p, *hello),
            Message::Again(hello) => self.again_arrived(p, *hello),
            Message::VolumeReady { volume } => self.volume_ready_received(p, volume),
            Message::PeerState { role, disks } => self.peer_state_received(p, role, disks),
            Message::Ping { id } => {
                self.send(p, Message::Pong { id });
                Ok(())
            }
            Message::Pong { .. } => Ok(()),
            Message::PromoteRequest { id } => self.promote_request_received(p, id),
            Message::PromoteReply { id, refusal } => self.promote_reply_received(p, id, refusal),
            Message::Goodbye { reason, text } => self.goodbye_received(p, reason, text),
            Message::ResyncPause { volume, paused } => {
                self.resync_pause_received(p, volume, paused)
            }
            Message::SkipInitialSync { volume, current } => {
                self.skip_initial_sync_received(p, volume, current)
            }
            Message::SkipInitialSyncDone {
                volume,
                current,
                done,
            } => self.skip_initial_sync_done(p, volume, current, done),
            Message::InvalidateQuestion { volume } => self.invalidate_question_received(p, volume),
            Message::InvalidateAnswer { volume, granted } => {
                self.invalidate_answer_received(p, volume, granted)
            }
            Message::InvalidateRequest { volume } => self.invalidate_request_received(p, volume),
            Message::OutdateRequest => self.outdate_request_received(p),
            Message::MissesTracked { volume, current } => {
                self.misses_tracked_received(p, volume, current)
            }
            Message::Write {
                sequence,
                epoch,
                volume,
                range,
                payload,
            } => self.write_received(
                p,
                sequence,
                epoch,
                volume,
                range,
                crate::receiver::ReceivedKind::Write(payload),
            ),
            Message::Discard {
                sequence,
                epoch,
                volume,
                range,
            } => self.write_received(
                p,
                sequence,
                epoch,
                volume,
                range,
                crate::receiver::ReceivedKind::Discard,
            ),
            Message::WriteZeroes {
                sequence,
                epoch,
                volume,
                range,
                may_unmap,
            } => self.write_received(
                p,
                sequence,
                epoch,
                volume,
                range,
                crate::receiver::ReceivedKind::WriteZeroes { may_unmap },
            ),
            Message::Barrier { epoch } => self.barrier_received(p, epoch),
            Message::ReadRequest { id, volume, range } => {
                self.read_request_received(p, id, volume, range)
            }
            Message::DiskLost {
                volume,
                generation,
                missed,
            } => self.disk_lost_received(p, volume, generation, &missed),
            Message::DiskBack { volume } => self.disk_back_received(p, volume),
            Message::Received { through } => self.received_ack(p, through),
            Message::Written { first, count } => self.written_ack(p, first, count),
            Message::Failed { sequence } => self.failed_ack(p, sequence),
            Message::BarrierAck { epoch } => self.barrier_ack(p, epoch),
            Message::BitmapRuns { volume, runs, last } => {
                self.bitmap_received(p, volume, &runs, last)
            }
            Message::Resize {
                volume,
                stage,
                bytes,
                text,
            } => self.resize_received(p, volume, stage, bytes, text),
            Message::BitmapTaken { volume } => self.bitmap_taken_received(p, volume),
            Message::ResyncBegin {
                volume,
                current,
                history,
            } => self.resync_begin_received(p, volume, current, history),
            Message::ResyncWaits {
                volume,
                milliseconds,
            } => self.resync_waits_received(p, volume, milliseconds),
            Message::ResyncReady { volume } => self.resync_ready_received(p, volume),
            Message::ResyncData {
                id,
                volume,
                range,
                payload,
            } => self.resync_data_received(p, volume, id, range, Some(payload)),
            Message::ResyncZeroes { id, volume, range } => {
                self.resync_data_received(p, volume, id, range, None)
            }
            Message::ResyncFlush { volume, id } => self.resync_flush_received(p, volume, id),
            Message::ResyncFinish { volume } => self.resync_finish_received(p, volume),
            Message::ReadReply {
                id,
                outcome,
                payload,
            } => self.read_reply_received(p, id, outcome, payload),
            Message::ResyncAck {
                volume,
                id,
                outcome,
            } => self.resync_ack_received(p, volume, id, outcome),
            Message::ResyncFlushed { volume, id } => self.resync_flushed_received(p, volume, id),
            Message::ResyncFinished { volume } => self.resync_finished_received(p, volume),
        }
    }

    /// Watches that a volume does not stay between two replication states for ever.
    fn note_settling(&mut self, p: usize) {
        let now = self.now;
        let peer = &mut self.peers[p];
        let unsettled = peer.connection == ConnectionState::Connected
            && peer.devices.iter().any(|device| match device.replication {
                _ if device.round_wanted
                    || device.postponed.is_some()
                    || device.awaits_answer() =>
                {
                    true
                }
                ReplicationState::WFBitMapS | ReplicationState::WFBitMapT => {
                    !device.waits_for_handler(now)
                }
                ReplicationState::Established => !(device.accepts && device.peer_accepts),
                _ => false,
            });
        if !unsettled {
            peer.settle_deadline = None;
        } else if peer.settle_deadline.is_none() {
            peer.settle_deadline = Some(now.after(limits::SETTLE_TIMEOUT_MS));
        }
    }

    /// After each event: runs what became possible, until nothing does.
    fn settle(&mut self) {
        loop {
            let mut progress = false;
            for v in 0..self.volumes.len() {
                while let Some(owner) = self.volumes[v].intervals.next_runnable() {
                    self.run_unblocked(v, owner);
                    progress = true;
                }
                progress |= self.release_held(v);
                self.finish_detach(v);
                progress |= self.pump_metadata(v);
                progress |= self.pump_resize(v);
            }
            for p in 0..self.peers.len() {
                self.note_settling(p);
                progress |= self.pump_receiver(p);
                progress |= self.pump_resync(p);
                progress |= self.pump_fencing(p);
            }
            progress |= self.fail_suspended();
            progress |= self.pump_role_change();
            progress |= self.retry_deferred();
            if !progress {
                break;
            }
        }
        for p in 0..self.peers.len() {
            self.release_gathered(p);
        }
        self.watch_primary();
    }

    fn tick(&mut self) {
        let now = self.now;
        self.check_skip_command();
        for p in 0..self.peers.len() {
            let peer = &mut self.peers[p];
            if peer.returns_by.is_some_and(|time| now >= time) {
                peer.returns_by = None;
                self.fence_who_did_not_return(p);
            }
            let peer = &mut self.peers[p];
            if peer
                .handshake_deadline
                .is_some_and(|deadline| now >= deadline)
            {
                peer.handshake_deadline = None;
                self.drop_session(p, ConnectionState::Timeout, "handshake-timeout");
                continue;
            }
            if peer.settle_deadline.is_some_and(|deadline| now >= deadline) {
                self.drop_session(p, ConnectionState::Timeout, "settle-timeout");
                continue;
            }
            if peer.idle_barrier.is_some_and(|deadline| now >= deadline) {
                peer.idle_barrier = None;
                self.close_epoch(p);
            }
            let peer = &mut self.peers[p];
            if peer.granted.is_some_and(|deadline| now >= deadline) {
                peer.granted = None;
            }
            if peer.connection != ConnectionState::Connected {
                continue;
            }
            match peer.ping {
                Some(ping) if now >= ping.deadline => {
                    self.drop_session(p, ConnectionState::NetworkFailure, "ping-timeout");
                    continue;
                }
                None if now >= peer.last_heard.after(peer.config.ping_interval) => self.ping(p),
                _ => {}
            }
            if self.probe_due(p).is_some_and(|due| now >= due) {
                self.probe(p);
            }
            let peer = &self.peers[p];
            let patience = peer.config.timeout * u64::from(peer.config.ko_count);
            if peer.config.ko_count > 0
                && peer
                    .stalled
                    .is_some_and(|(_, since)| now >= since.after(patience))
            {
                self.drop_session(p, ConnectionState::Timeout, "ko-count");
            }
        }
    }
}
