//! The engine with everything around it: events in, effects carried out.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use qrbd_config::{OnIoError, RrConflict};
use qrbd_disk::{Completion, Disk, Reactor, UringReactor};
use qrbd_engine::api::{ClientError, Effect, Event, FenceAnswer, FenceId, HandlerId, Notice};
use qrbd_engine::metadata::image::MetadataImage;
use qrbd_engine::state::{DiskState, Refusal, Role};
use qrbd_engine::status::Status;
use qrbd_engine::units::{NodeId, Time, VolumeNumber};
use qrbd_engine::wire::message::{Message, Protocol};
use qrbd_engine::{CommandId, Engine, RequestId};
use slab::Slab;
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

use super::disks::{Disks, disk_request};
use super::marks::Marks;
use super::network::{KeySource, Network, ResourceEndpoint};
use super::{Incoming, Shared};
use crate::clock::Clock;
use crate::handlers::{HandlerCall, Handlers};
use crate::payload::EnginePayload;
use crate::plan::{PeerPlan, ResourcePlan};
use crate::volumes::CompletionQueue;

/// With more than these at the disks, throughput counts; see [`Core::network_goes_first`].
const FEW_OPERATIONS: usize = 4;
/// So many operations are handed over to the kernel at once. All that a client sent together, they would also end together, and disk
/// and daemon would wait for one another in turns.
const DISK_BATCH: usize = 8;

/// A client's request that the engine has.
struct Client {
    token: u64,
    completions: Rc<CompletionQueue>,
}

/// The owner's state.
pub(crate) struct Core {
    pub(crate) plan: ResourcePlan,
    pub(super) clock: Clock,
    engine: Engine<EnginePayload>,
    reactor: UringReactor,
    pub(super) disks: Disks,
    pub(super) network: Network,
    shared: Weak<Shared>,
    handlers: Handlers,
    notices: broadcast::Sender<Notice>,
    clients: Slab<Client>,
    commands: HashMap<u64, oneshot::Sender<Result<(), Refusal>>>,
    next_command: u64,
    /// Taken in and not given to the engine.
    incoming: Vec<Incoming>,
    completions: Vec<Completion>,
    role_changed: bool,
    /// Something that somebody waits for was given to the network since the disks were flushed last.
    sent: bool,
    /// How often this node agreed that another one becomes Primary, since the daemon was started.
    agreements: u64,
    /// As many as that were when this node became Primary last.
    agreements_before: u64,
    /// The resource ends whatever its role: what becomes of its sessions now is this node's own doing.
    leaves: bool,
    pub(super) marks: Marks,
}

impl Core {
    #[allow(
        clippy::too_many_arguments,
        reason = "called once, by the handle that owns it"
    )]
    pub(super) fn new(
        plan: ResourcePlan,
        clock: Clock,
        seed: [u64; 2],
        reactor: UringReactor,
        handlers: Handlers,
        key: KeySource,
        notices: broadcast::Sender<Notice>,
        shared: Weak<Shared>,
    ) -> Core {
        Core {
            engine: Engine::new(plan.engine(seed), clock.now()),
            disks: Disks::new(&plan, reactor.pool().clone()),
            network: Network::new(&plan, reactor.pool().clone(), key, shared.clone()),
            shared,
            plan,
            clock,
            reactor,
            handlers,
            notices,
            clients: Slab::new(),
            commands: HashMap::new(),
            next_command: 0,
            incoming: Vec::new(),
            completions: Vec::new(),
            role_changed: false,
            sent: false,
            agreements: 0,
            agreements_before: 0,
            leaves: false,
            marks: Marks::default(),
        }
    }

    /// The engine's state.
    pub(super) fn engine_status(&self) -> Status {
        self.engine.status()
    }

    /// True if nothing was written to the data of a volume's disk since it was attached, or if what a peer writes there in a resync has
    /// all that was completed here: protocol A completes what only this node has.
    pub(super) fn copies_are_whole(&self, volume: VolumeNumber) -> bool {
        let counters = self.disks.counters(volume).unwrap_or_default();
        let is_loose = |peer: &PeerPlan| peer.engine().protocol == Protocol::A;
        counters.written_bytes == 0 || !self.plan.peers.iter().any(is_loose)
    }

    /// True if this node agreed that another one becomes Primary, since the daemon was started.
    pub(super) fn agreed_to_another(&self) -> bool {
        self.agreements > 0
    }

    /// True if this node agreed that another one becomes Primary, since it was Primary itself.
    pub(super) fn agreed_to_a_successor(&self) -> bool {
        self.agreements != self.agreements_before
    }

    /// Another plan of the same shape counts.
    pub(super) fn replace_plan(&mut self, plan: ResourcePlan) {
        for volume in &plan.volumes {
            assert!(
                self.engine.reconfigure_volume(volume.engine()),
                "a plan of the same shape"
            );
        }
        self.plan = plan;
    }

    /// Other options count for a peer.
    pub(super) fn reconfigure_peer(&mut self, peer: &PeerPlan, moved: bool) -> Result<(), Refusal> {
        if !self.engine.reconfigure_peer(peer.engine()) {
            return Err(Refusal::InTransientState);
        }
        if moved {
            self.network.reconfigure(peer);
        }
        Ok(())
    }

    /// Time of the engine.
    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Opens the way to a disk, before the engine is told of it.
    pub(super) fn use_disk(
        &mut self,
        volume: VolumeNumber,
        data: Disk,
        meta: Option<Disk>,
        image: &MetadataImage,
        last_known: PathBuf,
    ) -> Result<(), Refusal> {
        let data = self.reactor.attach(data);
        let meta = meta.map(|meta| self.reactor.attach(meta));
        self.disks
            .attach(volume, data, meta, image.layout, last_known)
    }

    /// The engine does not use the disk: close it.
    pub(super) fn drop_disk(&mut self, volume: VolumeNumber) {
        self.disks.detach(volume);
    }

    /// Moves what others gave into the core.
    pub(super) fn take_incoming(&mut self, inbox: &mut Vec<Incoming>) {
        self.incoming.append(inbox);
    }

    /// One round: everything that is there goes to the engine, its effects are carried out. False if there was nothing.
    pub(super) fn round(&mut self, context: &mut Context<'_>) -> bool {
        let now = self.clock.now();
        let mut worked = !self.incoming.is_empty();
        let mut incoming = std::mem::take(&mut self.incoming);
        for item in incoming.drain(..) {
            self.take_in(now, item);
        }
        self.incoming = incoming;

        worked |= self.reactor.take_completions(&mut self.completions) > 0;
        for completion in self.completions.drain(..) {
            if let Some(event) = self.disks.completed(completion) {
                self.engine.handle(now, event);
            }
        }
        while let Some(event) = self.disks.failed_at_once() {
            worked = true;
            self.engine.handle(now, event);
        }
        self.disks.resubmit();

        while let Some(event) = self.network.poll_event(context) {
            worked = true;
            // A Primary that ends would take its peer for lost, fence it and begin a generation without it.
            if !self.leaves {
                self.engine.handle(now, event);
            }
        }
        if !self.leaves && self.engine.next_timeout().is_some_and(|due| due <= now) {
            worked = true;
            self.engine.handle(now, Event::Tick);
        }
        worked |= self.network.keep_connecting(now);
        if worked {
            let mut submitted = self.reactor.outstanding();
            while let Some(effect) = self.engine.poll() {
                self.carry_out(now, effect);
                if self.reactor.outstanding() >= submitted + DISK_BATCH {
                    // The disk begins with these while the rest is prepared.
                    self.reactor.flush();
                    submitted = self.reactor.outstanding();
                }
            }
            if self.marks.are_due(now) {
                let status = self.engine.status();
                self.marks.set(now, &status);
            }
        }
        worked
    }

    /// Hands what was submitted to the disks over to the kernel.
    pub(super) fn flush_disks(&mut self) {
        self.sent = false;
        self.reactor.flush();
    }

    /// The task looks by itself from now on: what it submits must not wake it.
    pub(super) fn stop_waiting_for_disks(&self) {
        self.reactor.stop_waiting();
    }

    /// True if clients wait for what this node and the peer tell one another: not under protocol A.
    fn waits_for(&self, peer: NodeId) -> bool {
        let of_peer = self.plan.peers.iter().find(|plan| plan.node_id == peer);
        of_peer.is_none_or(PeerPlan::is_waited_for)
    }

    /// True if the disks should wait until the network has sent: what goes to a peer has the longer way, and the kernel takes its time
    /// to accept an operation. Not so with more to do: then the disks work while the network encrypts.
    pub(super) fn network_goes_first(&self) -> bool {
        self.sent && self.reactor.outstanding() <= FEW_OPERATIONS
    }

    /// True if somebody may wait for what this node does next.
    pub(super) fn is_waited_for(&self) -> bool {
        self.engine.is_waited_for()
    }

    /// How much somebody waits for: clients' requests, operations at the disks.
    pub(super) fn under_way(&self) -> usize {
        self.clients.len().max(self.reactor.outstanding())
    }

    /// True once after the role changed.
    pub(super) fn take_role_change(&mut self) -> bool {
        std::mem::take(&mut self.role_changed)
    }

    /// Ready when the disk has completions; otherwise the task is woken when it has.
    pub(super) fn poll_disk(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.reactor.poll_completed(context)
    }

    /// When the clock alone is a reason to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let engine = self.engine.next_timeout().filter(|_| !self.leaves);
        let next = [engine, self.network.retry_at()]
            .into_iter()
            .flatten()
            .min()?;
        Some(self.clock.instant(next))
    }

    fn take_in(&mut self, now: Time, item: Incoming) {
        let event = match item {
            Incoming::Request {
                volume,
                operation,
                token,
                completions,
            } => {
                let key = self.clients.insert(Client { token, completions });
                Event::Request {
                    id: RequestId(key as u64),
                    volume,
                    operation,
                }
            }
            Incoming::Openers { volume, count } => Event::Openers { volume, count },
            Incoming::PeerFenced { peer, id, answer } => Event::PeerFenced { peer, id, answer },
            Incoming::NobodyListens { peer, session } => Event::NobodyListens { peer, session },
            Incoming::HandlerAnswered { id, exit_code } => Event::HandlerAnswered { id, exit_code },
            Incoming::Command { command, reply } => {
                self.next_command += 1;
                self.commands.insert(self.next_command, reply);
                Event::Command {
                    id: CommandId(self.next_command),
                    command,
                }
            }
        };
        self.engine.handle(now, event);
    }

    fn carry_out(&mut self, now: Time, effect: Effect<EnginePayload>) {
        match effect {
            Effect::Read { .. }
            | Effect::Write { .. }
            | Effect::Discard { .. }
            | Effect::WriteZeroes { .. }
            | Effect::Flush { .. }
            | Effect::MetadataFlush { .. } => self.disks.submit(disk_request(effect)),
            Effect::MetadataWrite {
                volume,
                io,
                offset,
                bytes,
            } => {
                self.disks.write_metadata(volume, io, offset, &bytes);
            }
            Effect::MeasureDisk { volume, io } => self.disks.measure(volume, io),
            Effect::RememberDisk { volume, io, known } => self.disks.remember(volume, io, known),
            Effect::Send {
                peer,
                session,
                message,
                more,
            } => {
                self.sent |= self.waits_for(peer);
                if let Message::PromoteReply { refusal: 0, .. } = message {
                    self.agreements += 1;
                }
                self.network.send(peer, session, message, more);
            }
            Effect::Push { peer, session } => self.network.push(peer, session),
            Effect::CloseSession { peer, session } => self.network.close_session(peer, session),
            Effect::Probe { peer, session } => self.network.probe(peer, session),
            Effect::StartConnecting { peer } => self.network.start_connecting(now, peer),
            Effect::StopConnecting { peer } => self.network.stop_connecting(peer),
            Effect::Complete { id, result } => {
                let client = self.clients.remove(id.0 as usize);
                // The client is charged for what it has not taken; the peer's lane is for everybody.
                let result = result.map(|data| data.map(EnginePayload::without_credit));
                client.completions.push(client.token, result);
            }
            Effect::CommandDone { id, result } => {
                let reply = self
                    .commands
                    .remove(&id.0)
                    .expect("each command is answered once");
                // The one who asked may be gone.
                let _ = reply.send(result);
            }
            Effect::Detached { volume } => self.disks.detach(volume),
            Effect::Handler { name, peer, volume } => self.call_handler(name, peer, volume),
            Effect::AskHandler {
                id,
                name,
                peer,
                volume,
            } => self.ask_handler(id, name, peer, volume),
            Effect::FencePeer { peer, id } => self.fence_peer(peer, id),
            Effect::Notice(notice) => {
                self.log(&notice);
                self.marks.notice(now, &notice);
                if let Notice::Role {
                    to: Role::Primary, ..
                } = notice
                {
                    self.agreements_before = self.agreements;
                }
                self.role_changed |= matches!(notice, Notice::Role { .. });
                // Nobody listens most of the time.
                let _ = self.notices.send(notice);
            }
        }
    }

    /// Has the handler fence a peer; the engine gets its answer in any case.
    fn fence_peer(&self, peer: NodeId, id: FenceId) {
        let shared = self.shared.clone();
        let answer = move |code| {
            if let Some(shared) = shared.upgrade() {
                let answer = FenceAnswer::from_exit_code(code);
                shared.push(Incoming::PeerFenced { peer, id, answer });
            }
        };
        let name = "fence-peer";
        let Some(call) = self.handler_call(name, Some(peer), None) else {
            warn!(
                "{}: there is no {name} handler, but `fencing` asks for one: nobody can tell whether {} goes on",
                self.plan.name,
                self.plan.node_name(peer)
            );
            // Not from within the owner's round.
            tokio::task::spawn_local(async move { answer(None) });
            return;
        };
        self.handlers.run_now(call, answer);
    }

    /// Calls a handler behind those that wait; the engine gets its exit code in any case.
    fn ask_handler(&self, id: HandlerId, name: &'static str, peer: NodeId, volume: VolumeNumber) {
        let shared = self.shared.clone();
        let answer = move |exit_code| {
            if let Some(shared) = shared.upgrade() {
                shared.push(Incoming::HandlerAnswered { id, exit_code });
            }
        };
        let Some(call) = self.handler_call(name, Some(peer), Some(volume)) else {
            // It was there a moment ago.
            tokio::task::spawn_local(async move { answer(Some(0)) });
            return;
        };
        self.handlers.ask(call, answer);
    }

    fn call_handler(&self, name: &'static str, peer: Option<NodeId>, volume: Option<VolumeNumber>) {
        if matches!(name, "split-brain" | "pri-lost-after-sb") {
            warn!(
                "{}: {name}: a person has to decide, nothing is merged by itself; the lines beside this one say what each side would lose",
                self.plan.name
            );
        }
        // DRBD calls it where `on-io-error call-local-io-error` asks for it, and nowhere else.
        let is_wanted = |volume| {
            self.plan
                .volume(volume)
                .is_some_and(|plan| plan.on_io_error == OnIoError::CallLocalIoError)
        };
        if name == "local-io-error" && !volume.is_some_and(is_wanted) {
            return;
        }
        // The same holds for `rr-conflict call-pri-lost`.
        let calls_pri_lost = |node| {
            (self.plan.peers.iter())
                .any(|peer| peer.node_id == node && peer.net.rr_conflict == RrConflict::CallPriLost)
        };
        if name == "pri-lost" && !peer.is_some_and(calls_pri_lost) {
            return;
        }
        if let Some(call) = self.handler_call(name, peer, volume) {
            self.handlers.call(call);
        }
    }

    /// A call of a handler as things are now; `None` if there is no such handler.
    fn handler_call(
        &self,
        name: &'static str,
        peer: Option<NodeId>,
        volume: Option<VolumeNumber>,
    ) -> Option<HandlerCall> {
        let command = self.plan.handlers.get(name)?;
        let status = self.engine.status();
        Some(HandlerCall::new(
            &self.plan, &status, name, command, peer, volume,
        ))
    }

    fn log(&self, notice: &Notice) {
        let resource = &*self.plan.name;
        let name = |peer: NodeId| self.plan.node_name(peer);
        match notice {
            Notice::Role { from, to, rule } => info!("{resource}: role {from} -> {to} ({rule})"),
            Notice::Disk {
                volume,
                from,
                to,
                rule,
            } if *to == DiskState::Failed => {
                warn!("{resource}/{volume}: disk {from} -> {to} ({rule})")
            }
            Notice::Disk {
                volume,
                from,
                to,
                rule,
            } => info!("{resource}/{volume}: disk {from} -> {to} ({rule})"),
            Notice::Connection {
                peer,
                from,
                to,
                rule,
            } => {
                info!(
                    "{resource} {}: connection {from} -> {to} ({rule})",
                    name(*peer)
                );
            }
            Notice::Replication {
                peer,
                volume,
                from,
                to,
                rule,
            } => {
                info!(
                    "{resource}/{volume} {}: replication {from} -> {to} ({rule})",
                    name(*peer)
                );
            }
            Notice::Decision {
                peer,
                volume,
                rule,
                text,
            } => {
                let volume = volume
                    .map(|volume| format!("/{volume}"))
                    .unwrap_or_default();
                let peer = peer
                    .map(|peer| format!(" {}", name(peer)))
                    .unwrap_or_default();
                info!("{resource}{volume}{peer}: {text} ({rule})");
            }
        }
    }

    /// Ends the sessions; the engine hears of no peer any more.
    pub(super) fn leave(&mut self) {
        self.leaves = true;
        self.network.leave();
    }

    /// The owner ends: gives back what is open, answers what waits.
    pub(super) fn end(&mut self) -> Vec<ResourceEndpoint> {
        let left = self.clients.len();
        if left > 0 {
            warn!(
                "{}: {left} client requests end with an error: the resource goes down",
                self.plan.name
            );
        }
        for client in self.clients.drain() {
            client.completions.push(client.token, Err(ClientError::Io));
        }
        self.commands.clear();
        for item in self.incoming.drain(..) {
            if let Incoming::Request {
                token, completions, ..
            } = item
            {
                completions.push(token, Err(ClientError::Io));
            }
        }
        self.disks.detach_all();
        self.network.end()
    }
}
