//! The connections of a resource: endpoints, sessions and who is to be reached, as the engine wants it.
//!
//! Owns the numbering of sessions for the engine and the orderly end of a session: what was sent before is given time to arrive.
//! Invariants: the engine hears of the loss of each session it heard of, once; a peer that is not wanted is neither called nor
//! accepted; what stands in the way (no key, an address in use) is logged when it changes, shown by `status`, and tried again.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use qrbd_config::Secret;
use qrbd_disk::Pool;
use qrbd_engine::SessionId;
use qrbd_engine::api::{Event, LossReason};
use qrbd_engine::units::{NodeId, Time, VolumeNumber};
use qrbd_engine::wire::Message;
use qrbd_engine::wire::codec::{decode, encode_head, payload_of};
use qrbd_transport::{
    BindError, Endpoint, EndpointConfig, Events, Lane, LossReason as TransportLoss, PeerConfig,
    Session, SharedKey, Tuning, nobody_listens,
};
use tracing::{debug, info, warn};

use super::{Incoming, Shared};
use crate::frames::{EngineFrames, VERSIONS, lane_of};
use crate::payload::{EnginePayload, PooledAllocator};
use crate::plan::{PeerPlan, ResourcePlan};

/// How long a session that is to be closed may take to send what is queued.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds of the time that the last packets get to arrive: two round trips within them.
const LAST_WORDS: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(500)];

/// How long to wait for the word of a peer's machine that nobody listens there: it comes within a round trip or never.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Pause before an address of this node is tried again.
const ADDRESS_RETRY_MS: u64 = 1_000;
/// Calls without a pause within [`REDIAL_WINDOW_MS`].
const QUICK_REDIALS: usize = 3;
/// See [`QUICK_REDIALS`].
const REDIAL_WINDOW_MS: u64 = 10_000;

/// An endpoint that carries the engine's frames.
pub(crate) type ResourceEndpoint = Endpoint<EngineFrames, PooledAllocator>;

/// Where the key of the cluster is.
#[derive(Clone, Debug)]
pub(crate) struct KeySource(pub(crate) Rc<Path>);

impl KeySource {
    pub(crate) fn new(path: PathBuf) -> Self {
        KeySource(Rc::from(path))
    }

    fn key(&self, secret: Option<&Secret>) -> Result<SharedKey, String> {
        match secret {
            Some(secret) => SharedKey::from_secret(secret.expose()),
            None => SharedKey::from_file(&self.0),
        }
        .map_err(|error| error.to_string())
    }
}

/// What keeps a peer from being connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Trouble {
    /// The address of this node is in use by somebody else.
    pub(crate) local_address: bool,
    /// It is found on this node, before any packet is sent.
    pub(crate) here: bool,
    /// For a person.
    pub(crate) text: String,
}

impl Trouble {
    fn here(text: String) -> Trouble {
        Trouble {
            local_address: false,
            here: true,
            text,
        }
    }
    fn remote(text: String) -> Trouble {
        Trouble {
            local_address: false,
            here: false,
            text,
        }
    }
}

/// Payload bytes of one volume over one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
}

/// A session that the engine knows.
struct Live {
    id: SessionId,
    handle: Session,
    /// It sent something senseless: nothing of it is delivered any more.
    broken: bool,
    closing: bool,
}

struct Peer {
    plan: PeerPlan,
    key: Option<SharedKey>,
    wanted: bool,
    /// The endpoint knows it.
    added: bool,
    live: Option<Live>,
    trouble: Option<Trouble>,
    traffic: BTreeMap<VolumeNumber, Traffic>,
    /// When it was called without a pause.
    redials: Vec<Time>,
}

struct Bound {
    endpoint: ResourceEndpoint,
    events: Events<qrbd_disk::Payload>,
}

/// See the module's text.
pub(crate) struct Network {
    resource: String,
    node: NodeId,
    pool: Pool,
    key: KeySource,
    shared: Weak<Shared>,
    /// By the address of this node.
    endpoints: BTreeMap<SocketAddr, Bound>,
    peers: Vec<Peer>,
    last_session: u64,
    retry_at: Option<Time>,
    /// Losses that no endpoint will report.
    pending: VecDeque<Event<EnginePayload>>,
}

impl Network {
    pub(super) fn new(
        plan: &ResourcePlan,
        pool: Pool,
        key: KeySource,
        shared: Weak<Shared>,
    ) -> Network {
        let peer = |plan: &PeerPlan| Peer {
            plan: plan.clone(),
            key: None,
            wanted: false,
            added: false,
            live: None,
            trouble: None,
            traffic: BTreeMap::new(),
            redials: Vec::new(),
        };
        Network {
            resource: plan.name.clone(),
            node: plan.node_id,
            pool,
            key,
            shared,
            endpoints: BTreeMap::new(),
            peers: plan.peers.iter().map(peer).collect(),
            last_session: 0,
            retry_at: None,
            pending: VecDeque::new(),
        }
    }

    fn index(&self, node: NodeId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.plan.node_id == node)
    }

    fn known(&self, node: NodeId) -> usize {
        self.index(node)
            .expect("the engine has the peers of the plan")
    }

    // ---- what the engine wants ---------------------------------------------------------------------------------------------

    pub(super) fn start_connecting(&mut self, now: Time, node: NodeId) {
        let index = self.known(node);
        self.peers[index].wanted = true;
        self.connect(now);
    }

    pub(super) fn stop_connecting(&mut self, node: NodeId) {
        let index = self.known(node);
        self.peers[index].wanted = false;
        self.peers[index].trouble = None;
        match self.peers[index].live.as_ref().map(|live| live.id) {
            // Its last words are on their way; the peer is forgotten when it is over.
            Some(session) => self.close_session(node, session),
            None => self.forget(index),
        }
    }

    /// No peer is wanted any more.
    pub(super) fn leave(&mut self) {
        for node in self
            .peers
            .iter()
            .map(|peer| peer.plan.node_id)
            .collect::<Vec<_>>()
        {
            self.stop_connecting(node);
        }
    }

    /// Tells the endpoint that a peer is not wanted.
    fn forget(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if std::mem::take(&mut peer.added)
            && let Some(bound) = self.endpoints.get(&peer.plan.local)
        {
            bound
                .endpoint
                .remove_peer(transport_node(peer.plan.node_id));
        }
    }

    pub(super) fn send(
        &mut self,
        node: NodeId,
        session: SessionId,
        message: Message<EnginePayload>,
        more: bool,
    ) {
        let index = self.known(node);
        let peer = &mut self.peers[index];
        let Some(live) = peer
            .live
            .as_ref()
            .filter(|live| live.id == session && !live.broken)
        else {
            return;
        };
        let head = Bytes::from(encode_head(&message));
        let lane = lane_of(message.lane());
        if let Some((volume, bytes)) = volume_bytes(&message) {
            peer.traffic.entry(volume).or_default().sent_bytes += bytes;
        }
        let payload = take_payload(message).map(EnginePayload::into_bytes);
        let taken = if more {
            live.handle.queue(lane, head, payload)
        } else {
            live.handle.send(lane, head, payload)
        };
        if let Err(error) = taken {
            // A session that is over reports its loss by itself. One that is too slow for its bound cannot go on with a gap.
            if live.handle.is_open() {
                warn!(
                    "{} {}: {lane} lane: {error}; the connection is closed",
                    self.resource, peer.plan.name
                );
                live.handle.close("the send queue is full");
            }
        }
    }

    /// What was sent with `more` leaves now.
    pub(super) fn push(&self, node: NodeId, session: SessionId) {
        let live = self.peers[self.known(node)].live.as_ref();
        if let Some(live) = live.filter(|live| live.id == session) {
            live.handle.push(Lane::Data);
        }
    }

    /// Asks the peer's machine whether anybody listens there, and tells the engine if it says no.
    pub(super) fn probe(&self, node: NodeId, session: SessionId) {
        let peer = &self.peers[self.known(node)];
        let Some(live) = peer.live.as_ref().filter(|live| live.id == session) else {
            return;
        };
        let (local, remote) = (peer.plan.local.ip(), live.handle.remote());
        let (shared, resource, name) = (
            self.shared.clone(),
            self.resource.clone(),
            peer.plan.name.clone(),
        );
        tokio::task::spawn_local(async move {
            match nobody_listens(local, remote, PROBE_PATIENCE).await {
                Ok(true) => {
                    info!("{resource} {name}: its machine says that nobody listens at {remote}");
                    if let Some(shared) = shared.upgrade() {
                        shared.push(Incoming::NobodyListens {
                            peer: node,
                            session,
                        });
                    }
                }
                Ok(false) => {}
                Err(error) => debug!("{resource} {name}: {remote} could not be asked: {error}"),
            }
        });
    }

    /// Closes a session when what was sent before had time to arrive.
    pub(super) fn close_session(&mut self, node: NodeId, session: SessionId) {
        let index = self.known(node);
        let Some(live) = self.peers[index]
            .live
            .as_mut()
            .filter(|live| live.id == session && !live.closing)
        else {
            return;
        };
        live.closing = true;
        let handle = live.handle.clone();
        let shared = self.shared.clone();
        tokio::task::spawn_local(async move {
            let drained = async {
                for lane in Lane::ALL {
                    handle.drained_to(lane, 0).await;
                }
            };
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
            if handle.is_open() {
                let [least, most] = LAST_WORDS;
                tokio::time::sleep((handle.stats().round_trip * 2).clamp(least, most)).await;
            }
            if let Some(shared) = shared.upgrade() {
                shared.finish_close(node, handle.id());
            }
        });
    }

    pub(super) fn finish_close(
        &mut self,
        now: Time,
        node: NodeId,
        session: qrbd_transport::SessionId,
    ) {
        let Some(index) = self.index(node) else {
            return;
        };
        let peer = &self.peers[index];
        if peer
            .live
            .as_ref()
            .is_none_or(|live| live.handle.id() != session)
        {
            return;
        }
        if !peer.wanted {
            self.forget(index);
        } else if self.quick_redial(now, index) {
            // To the endpoint it is a new peer, which is called at once.
            self.forget(index);
            self.connect(now);
        } else {
            self.peers[index]
                .live
                .as_ref()
                .inspect(|live| live.handle.close("to be connected anew"));
        }
    }

    /// True if a peer whose session was closed on purpose, to shake hands anew, may be called without a pause. Two nodes that never
    /// agree must not do so in a loop.
    fn quick_redial(&mut self, now: Time, index: usize) -> bool {
        let redials = &mut self.peers[index].redials;
        redials.retain(|&time| now.since(time) < REDIAL_WINDOW_MS);
        let quick = redials.len() < QUICK_REDIALS;
        if quick {
            redials.push(now);
        }
        quick
    }

    /// Other addresses or another key count for the peer from now on.
    pub(super) fn reconfigure(&mut self, plan: &PeerPlan) {
        let Some(index) = self.index(plan.node_id) else {
            return;
        };
        self.forget(index);
        if let Some(live) = self.peers[index].live.take() {
            let reason = LossReason::ClosedHere;
            self.pending.push_back(Event::PeerLost {
                peer: plan.node_id,
                session: live.id,
                reason,
            });
        }
        let old = std::mem::replace(&mut self.peers[index].plan, plan.clone());
        self.peers[index].key = None;
        if self.peers.iter().all(|peer| peer.plan.local != old.local) {
            self.endpoints.remove(&old.local);
        }
        self.retry_at = Some(Time(0));
    }

    // ---- getting connected -------------------------------------------------------------------------------------------------

    /// When [`Network::keep_connecting`] has something to do.
    pub(super) fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// Tries again what did not work on this node. True if it was time to: there may be a new endpoint to listen to.
    pub(super) fn keep_connecting(&mut self, now: Time) -> bool {
        let due = self.retry_at.is_some_and(|due| due <= now);
        if due {
            self.connect(now);
        }
        due
    }

    fn connect(&mut self, now: Time) {
        self.retry_at = None;
        for index in 0..self.peers.len() {
            if !self.peers[index].wanted || self.peers[index].added {
                continue;
            }
            match self.add(index) {
                Ok(()) => {
                    self.peers[index].added = true;
                    if let Some(trouble) = self.peers[index].trouble.take() {
                        info!(
                            "{} {}: no longer: {}",
                            self.resource, self.peers[index].plan.name, trouble.text
                        );
                    }
                }
                Err(trouble) => {
                    // An address is often in use only for a moment: by the resource's own past.
                    let pause = self.peers[index].plan.net.connect_int_ms;
                    let again = now.after(if trouble.local_address {
                        pause.min(ADDRESS_RETRY_MS)
                    } else {
                        pause
                    });
                    self.note(index, trouble);
                    self.retry_at = Some(self.retry_at.map_or(again, |due| due.min(again)));
                }
            }
        }
    }

    fn note(&mut self, index: usize, trouble: Trouble) {
        let peer = &mut self.peers[index];
        if peer.trouble.as_ref() != Some(&trouble) {
            warn!(
                "{} {}: not connected: {}",
                self.resource, peer.plan.name, trouble.text
            );
            peer.trouble = Some(trouble);
        }
    }

    /// Makes the endpoint call and accept the peer.
    fn add(&mut self, index: usize) -> Result<(), Trouble> {
        let peer = &mut self.peers[index];
        let key = match &peer.key {
            Some(key) => key.clone(),
            None => self
                .key
                .key(peer.plan.net.shared_secret.as_ref())
                .map_err(Trouble::here)?,
        };
        peer.key = Some(key.clone());
        let (local, remote) = (peer.plan.local, peer.plan.remote);
        let config = PeerConfig {
            node: transport_node(peer.plan.node_id),
            remote,
            key,
            connect_interval: peer.plan.connect_interval(),
        };
        if !self.endpoints.contains_key(&local) {
            let endpoint = EndpointConfig {
                on_arrival: Some(crate::busy_wait::something_happens),
                local,
                node: transport_node(self.node),
                resource: self.resource.clone(),
                versions: VERSIONS,
                tuning: Tuning::lan(),
                faults: None,
            };
            let (endpoint, events) = Endpoint::bind(endpoint, PooledAllocator(self.pool.clone()))
                .map_err(|error| Trouble {
                local_address: matches!(error, BindError::Address { .. }),
                ..Trouble::here(format!("resource {}: {error}", self.resource))
            })?;
            self.endpoints.insert(local, Bound { endpoint, events });
        }
        self.endpoints[&local]
            .endpoint
            .add_peer(config)
            .map_err(|error| Trouble::here(error.to_string()))
    }

    // ---- what the network tells --------------------------------------------------------------------------------------------

    /// The next event for the engine; `None`: nothing more now, the task is woken when there is.
    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Option<Event<EnginePayload>> {
        if let Some(event) = self.pending.pop_front() {
            return Some(event);
        }
        let locals: [SocketAddr; 1];
        let many: Vec<SocketAddr>;
        // One address is the rule; it costs no allocation.
        let addresses: &[SocketAddr] = match self.endpoints.len() {
            0 => return None,
            1 => {
                locals = [*self.endpoints.keys().next().expect("counted")];
                &locals
            }
            _ => {
                many = self.endpoints.keys().copied().collect();
                &many
            }
        };
        for address in addresses {
            while let Some(bound) = self.endpoints.get_mut(address)
                && let Poll::Ready(Some(event)) = bound.events.poll_recv(context)
            {
                if let Some(event) = self.translate(event) {
                    return Some(event);
                }
            }
        }
        None
    }

    fn translate(
        &mut self,
        event: qrbd_transport::Event<qrbd_disk::Payload>,
    ) -> Option<Event<EnginePayload>> {
        use qrbd_transport::Event as Told;
        match event {
            Told::Frame {
                peer,
                session,
                lane,
                head,
                payload,
                credit,
            } => {
                let index = self.index(engine_node(peer))?;
                let live = self.peers[index]
                    .live
                    .as_mut()
                    .filter(|live| live.handle.id() == session && !live.broken)?;
                let credit = Arc::new(credit);
                let payload =
                    payload.map(|data| EnginePayload::received(data, Arc::clone(&credit)));
                let problem = match decode(&head, payload) {
                    Ok((expected, message)) if lane_of(expected) == lane => {
                        let id = live.id;
                        if let Some((volume, bytes)) = volume_bytes(&message) {
                            self.peers[index]
                                .traffic
                                .entry(volume)
                                .or_default()
                                .received_bytes += bytes;
                        }
                        return Some(Event::Frame {
                            peer: engine_node(peer),
                            session: id,
                            message,
                        });
                    }
                    Ok((expected, _)) => format!(
                        "a message of the {} lane on the {lane} lane",
                        lane_of(expected)
                    ),
                    Err(error) => error.to_string(),
                };
                warn!(
                    "{} {}: senseless frame: {problem}",
                    self.resource, self.peers[index].plan.name
                );
                let live = self.peers[index].live.as_mut()?;
                live.broken = true;
                live.handle.close(&problem);
                None
            }
            Told::Connected {
                peer,
                session,
                handle,
                dialed_by_us,
                remote,
                version,
            } => {
                let index = self.index(engine_node(peer))?;
                self.last_session += 1;
                let id = SessionId(self.last_session);
                let wanted = self.peers[index].wanted;
                let name = &self.peers[index].plan.name;
                debug!(
                    "{} {name}: session {session} with {remote}, dialed here: {dialed_by_us}, version {version}",
                    self.resource
                );
                if !wanted {
                    // Connected in the moment in which it was given up.
                    handle.close("not wanted any more");
                    self.forget(index);
                    return None;
                }
                self.peers[index].trouble = None;
                self.peers[index].live = Some(Live {
                    id,
                    handle,
                    broken: false,
                    closing: false,
                });
                Some(Event::PeerConnected {
                    peer: engine_node(peer),
                    session: id,
                })
            }
            Told::Lost {
                peer,
                session,
                reason,
            } => {
                let index = self.index(engine_node(peer))?;
                let live = self.peers[index]
                    .live
                    .take_if(|live| live.handle.id() == session)?;
                match &reason {
                    TransportLoss::Closed(_) | TransportLoss::PeerRemoved => {}
                    other => info!(
                        "{} {}: session over: {other}",
                        self.resource, self.peers[index].plan.name
                    ),
                }
                if !self.peers[index].wanted {
                    self.forget(index);
                }
                let reason = if live.broken {
                    LossReason::ProtocolError
                } else {
                    loss(&reason)
                };
                Some(Event::PeerLost {
                    peer: engine_node(peer),
                    session: live.id,
                    reason,
                })
            }
            Told::DialFailed { peer, reason } => {
                let index = self.index(engine_node(peer))?;
                if self.peers[index].wanted && self.peers[index].live.is_none() {
                    let text = format!("{}: {reason}", self.peers[index].plan.remote);
                    self.note(index, Trouble::remote(text));
                }
                None
            }
            Told::Refused { remote, reason } => {
                warn!(
                    "{}: a connection from {remote} was refused: {reason}",
                    self.resource
                );
                None
            }
        }
    }

    // ---- reports -----------------------------------------------------------------------------------------------------------

    pub(super) fn trouble_with(&self, node: NodeId) -> Option<Trouble> {
        self.peers[self.index(node)?].trouble.clone()
    }

    /// True while a session is up or about to be closed.
    pub(super) fn has_sessions(&self) -> bool {
        self.peers.iter().any(|peer| peer.live.is_some())
    }

    pub(super) fn traffic(&self, node: NodeId, volume: VolumeNumber) -> Traffic {
        self.index(node)
            .and_then(|index| self.peers[index].traffic.get(&volume).copied())
            .unwrap_or_default()
    }

    /// Addresses and whether there is a session.
    pub(super) fn path(&self, node: NodeId) -> Option<(SocketAddr, SocketAddr, bool)> {
        let peer = &self.peers[self.index(node)?];
        Some((peer.plan.local, peer.plan.remote, peer.live.is_some()))
    }

    /// Gives the endpoints away, to be shut down.
    pub(super) fn end(&mut self) -> Vec<ResourceEndpoint> {
        self.peers.clear();
        std::mem::take(&mut self.endpoints)
            .into_values()
            .map(|bound| bound.endpoint)
            .collect()
    }
}

fn transport_node(node: NodeId) -> qrbd_transport::NodeId {
    qrbd_transport::NodeId(node.0)
}

fn engine_node(node: qrbd_transport::NodeId) -> NodeId {
    NodeId(node.0)
}

/// Volume and payload bytes of a message that carries data of a volume.
fn volume_bytes(message: &Message<EnginePayload>) -> Option<(VolumeNumber, u64)> {
    let payload = payload_of(message)?;
    match message {
        Message::Write { volume, .. } | Message::ResyncData { volume, .. } => {
            Some((*volume, payload.data().len() as u64))
        }
        _ => None,
    }
}

fn take_payload(message: Message<EnginePayload>) -> Option<EnginePayload> {
    match message {
        Message::Write { payload, .. } | Message::ResyncData { payload, .. } => Some(payload),
        Message::ReadReply { payload, .. } => payload,
        _ => None,
    }
}

fn loss(reason: &TransportLoss) -> LossReason {
    match reason {
        TransportLoss::Closed(_) | TransportLoss::PeerRemoved | TransportLoss::ShutDown => {
            LossReason::ClosedHere
        }
        TransportLoss::ClosedByPeer { .. } => LossReason::Closed,
        TransportLoss::PeerRestarted | TransportLoss::Replaced => LossReason::Replaced,
        TransportLoss::ProtocolViolation(_) => LossReason::ProtocolError,
        _ => LossReason::NetworkFailure,
    }
}
