//! An endpoint: one UDP socket of one resource on this node, its peers, and the sessions with them.
//!
//! Owns the table of peers, the dial loops, the acceptor and the lives of sessions. Invariants:
//! - events of sessions are sent under the table's lock: Lost of the old before Connected of the new, each once;
//! - a dial loop has at most one attempt under way and none while its peer has a session;
//! - a connection that is dropped before it is a session is closed with a reason.
//!
//! Which connection becomes the session is decided in `registry`.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, Incoming, TokioRuntime, TransportErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::allowance::ReportAllowance;
use crate::attempt::Attempt;
use crate::codec::{FrameCodec, PayloadAllocator};
use crate::config::{AddPeerError, BindError, EndpointConfig, PeerConfig};
use crate::event::{CloseCode, Event, Events, LossReason, RefusalReason};
use crate::handshake::{Identity, Proven, prove_as_acceptor, prove_as_dialer, random};
use crate::ids::{NodeId, SessionId};
use crate::key::SharedKey;
use crate::lane::Lane;
use crate::limits::{
    ADDRESS_VALIDATION_FROM, HANDSHAKE_TIMEOUT, MAX_INCOMING, MAX_INCOMING_BYTES_EACH,
    MAX_INCOMING_BYTES_TOTAL, MAX_UNPROVEN_FROM_OTHERS, MAX_UNPROVEN_FROM_PEERS,
};
use crate::proof::{Message, is_resource_name};
use crate::registry::{Candidate, Holding, Verdict, decide, follow};
use crate::session::{Session, Shared};
use crate::tuning::Tuning;
use crate::{reader, socket, tls, writer};

/// A session that lived shorter is no reason to dial at once again.
const SETTLED_SESSION: Duration = Duration::from_secs(1);
/// Pause before dialing after a settled session was lost, and after an attempt that lost a race.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// How long a shutdown lasts at most. The goodbye leaves at once; QUIC would stay for three of its probe timeouts to say it again, and a
/// restart of the program, with everybody who waits for it, would wait for that. A peer that misses it finds out by asking.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(50);

/// One UDP socket with the sessions of its peers. `C` is the owner's frame format, `A` allocates its payloads.
///
/// Dropping it ends everything at once; [`shutdown`](Self::shutdown) also lets the peers know.
pub struct Endpoint<C: FrameCodec, A: PayloadAllocator> {
    inner: Arc<Inner<C, A>>,
    acceptor: AbortHandle,
    local: SocketAddr,
}

struct Inner<C: FrameCodec, A: PayloadAllocator> {
    identity: Identity,
    tuning: Tuning,
    quinn: quinn::Endpoint,
    client: quinn::ClientConfig,
    runtime: tokio::runtime::Handle,
    events: mpsc::UnboundedSender<Event<A::Payload>>,
    allocator: Arc<A>,
    table: Mutex<Table>,
    unproven_from_peers: Arc<Semaphore>,
    unproven_from_others: Arc<Semaphore>,
    reports: Mutex<ReportAllowance>,
    codec: PhantomData<fn() -> C>,
}

struct Table {
    peers: BTreeMap<NodeId, Peer>,
    next_session: u64,
    /// Starts at random, so that the numbers of two processes of this node are not mistaken for one another; 0 is "none".
    next_decision: u64,
    stopped: bool,
}

struct Peer {
    config: PeerConfig,
    current: Option<Current>,
    /// Newest decision followed or made: process of the arbiter's peer, number.
    last: Option<(u64, u64)>,
    /// Whether there is a session; the dial loop watches it.
    up: watch::Sender<bool>,
    dialer: AbortHandle,
    last_failure: Option<RefusalReason>,
}

struct Current {
    session: Arc<Shared>,
    holding: Holding,
}

impl<C: FrameCodec, A: PayloadAllocator> Endpoint<C, A> {
    /// Binds the socket and accepts connections of peers that are added later. Must be called inside the runtime that is
    /// to run the endpoint.
    ///
    /// # Errors
    /// If the address or the resource name cannot be used.
    pub fn bind(
        config: EndpointConfig,
        allocator: A,
    ) -> Result<(Self, Events<A::Payload>), BindError> {
        if !is_resource_name(&config.resource) {
            return Err(BindError::ResourceName(config.resource));
        }
        let address = |source| BindError::Address {
            local: config.local,
            source,
        };
        let tls = |error: rustls::Error| BindError::Tls(error.to_string());
        let max_udp_payload =
            socket::max_udp_payload(config.local.ip(), config.tuning.max_udp_payload_bytes);
        let udp = socket::bind(config.local, config.tuning.socket_buffer_bytes).map_err(address)?;
        let socket = socket::Socket::new(udp, max_udp_payload, config.on_arrival, config.faults)
            .map_err(address)?;

        let transport = Arc::new(config.tuning.transport(max_udp_payload));
        let (client_tls, server_tls) = tls::configurations().map_err(tls)?;
        let mut client = quinn::ClientConfig::new(Arc::new(client_tls));
        client.transport_config(transport.clone());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server_tls));
        server
            .transport_config(transport)
            .migration(false)
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(MAX_INCOMING_BYTES_EACH)
            .incoming_buffer_size_total(MAX_INCOMING_BYTES_TOTAL);
        let mut quic = quinn::EndpointConfig::default();
        quic.max_udp_payload_size(max_udp_payload)
            .expect("the payload size is clamped to what QUIC allows");
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            quic,
            Some(server),
            Arc::new(socket),
            Arc::new(TokioRuntime),
        )
        .map_err(address)?;
        let local = quinn.local_addr().map_err(address)?;

        let (events, receiver) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            identity: Identity {
                node: config.node,
                resource: config.resource,
                versions: config.versions,
                instance: u64::from_le_bytes(random()),
            },
            tuning: config.tuning,
            quinn,
            client,
            runtime: tokio::runtime::Handle::current(),
            events,
            allocator: Arc::new(allocator),
            table: Mutex::new(Table {
                peers: BTreeMap::new(),
                next_session: 1,
                next_decision: u64::from(u32::from_le_bytes(random())) << 16 | 1,
                stopped: false,
            }),
            unproven_from_peers: Arc::new(Semaphore::new(MAX_UNPROVEN_FROM_PEERS)),
            unproven_from_others: Arc::new(Semaphore::new(MAX_UNPROVEN_FROM_OTHERS)),
            reports: Mutex::new(ReportAllowance::new(Instant::now())),
            codec: PhantomData,
        });
        let acceptor = tokio::spawn(accept_connections(inner.clone())).abort_handle();
        Ok((
            Self {
                inner,
                acceptor,
                local,
            },
            Events(receiver),
        ))
    }

    /// Address of the socket, with the port that the system chose.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Accepts sessions of `config.node` from now on, and dials it: at once, then after each connect interval, until
    /// there is a session, and again when it is lost.
    ///
    /// # Errors
    /// If it is no possible peer, or one already.
    pub fn add_peer(&self, config: PeerConfig) -> Result<(), AddPeerError> {
        let (node, remote) = (config.node, config.remote);
        if node == self.inner.identity.node {
            return Err(AddPeerError::OwnNode(node));
        }
        if remote.is_ipv6() && self.local.is_ipv4() {
            return Err(AddPeerError::AddressFamily {
                local: self.local,
                remote,
            });
        }
        let mut table = self.inner.table();
        if table.stopped {
            return Err(AddPeerError::ShutDown);
        }
        if table.peers.contains_key(&node) {
            return Err(AddPeerError::Exists(node));
        }
        let (up, watch) = watch::channel(false);
        let dialer = dial_loop(
            self.inner.clone(),
            node,
            remote,
            config.connect_interval,
            watch,
        );
        let dialer = self.inner.runtime.spawn(dialer).abort_handle();
        table.peers.insert(
            node,
            Peer {
                config,
                current: None,
                last: None,
                up,
                dialer,
                last_failure: None,
            },
        );
        Ok(())
    }

    /// Stops dialing and accepting `node` and ends its session. Returns whether it was a peer.
    pub fn remove_peer(&self, node: NodeId) -> bool {
        let mut table = self.inner.table();
        let removed = table.peers.remove(&node);
        removed
            .map(|peer| {
                self.inner
                    .retire(peer, CloseCode::PeerRemoved, LossReason::PeerRemoved)
            })
            .is_some()
    }

    /// The session with `node`, if there is one.
    pub fn session(&self, node: NodeId) -> Option<Session> {
        let table = self.inner.table();
        table
            .peers
            .get(&node)?
            .current
            .as_ref()
            .map(|current| Session(current.session.clone()))
    }

    /// Ends all sessions, with a word to the peers. The events end when all are read; the address is
    /// free as soon as the tasks of its connections have run once more.
    pub async fn shutdown(self) {
        self.stop();
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.inner.quinn.wait_idle()).await;
        self.give_socket_up();
    }

    /// Closes the socket although QUIC may still hold connections on it: a dial whose first packet was already its end stays
    /// until the idle timeout, and the address would stay taken, and answer, as long.
    fn give_socket_up(&self) {
        // QUIC keeps one previous socket to receive from, so that the real one is gone with the second change.
        for _ in 0..2 {
            let replaced = UdpSocket::bind(SocketAddr::new(self.local.ip(), 0))
                .and_then(|unused| self.inner.quinn.rebind(unused));
            if let Err(error) = replaced {
                tracing::debug!(local = %self.local, %error, "the socket is closed only when it is idle");
            }
        }
    }

    fn stop(&self) {
        self.acceptor.abort();
        let mut table = self.inner.table();
        table.stopped = true;
        for (_, peer) in std::mem::take(&mut table.peers) {
            self.inner
                .retire(peer, CloseCode::ShutDown, LossReason::ShutDown);
        }
        drop(table);
        self.inner.quinn.close(CloseCode::ShutDown.wire(), b"");
    }
}

impl<C: FrameCodec, A: PayloadAllocator> Drop for Endpoint<C, A> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<C: FrameCodec, A: PayloadAllocator> Inner<C, A> {
    /// The table is never left half changed: what can panic happens before its changes.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, event: Event<A::Payload>) {
        // An owner that dropped its events does not want them.
        let _ = self.events.send(event);
    }

    fn is_arbiter_with(&self, peer: NodeId) -> bool {
        self.identity.node < peer
    }

    /// Ends what belongs to a peer that was taken from the table.
    fn retire(&self, peer: Peer, code: CloseCode, reason: LossReason) {
        peer.dialer.abort();
        if let Some(current) = peer.current {
            current.session.end(code, "", reason.clone());
            self.report_lost(&current.session, reason);
        }
    }

    fn report_lost(&self, session: &Shared, reason: LossReason) {
        tracing::info!(peer = %session.peer, session = %session.id, %reason, "session lost");
        self.emit(Event::Lost {
            peer: session.peer,
            session: session.id,
            reason,
        });
    }

    /// Makes `connection` the session with its peer, if that is the decision. The last step of an attempt: nothing is
    /// awaited after it.
    fn admit(
        self: &Arc<Self>,
        connection: &Connection,
        proven: Proven,
        dialed_by_us: bool,
        start: Option<u64>,
    ) -> Result<(), RefusalReason> {
        let Proven {
            peer: node,
            instance,
            last_decision,
            version,
            mut stream,
        } = proven;
        if let Some(error) = connection.close_reason() {
            return Err(RefusalReason::of_connection(&error, HANDSHAKE_TIMEOUT));
        }
        let mut table = self.table();
        let table = &mut *table;
        let peer = table
            .peers
            .get_mut(&node)
            .ok_or(RefusalReason::UnknownNode(node))?;
        let held = peer.current.as_ref().map(|current| current.holding);
        let candidate = Candidate {
            instance,
            last_decision,
            dialed_by_us,
        };
        let verdict = match start {
            None => decide(held, candidate),
            Some(decision) => follow(held, instance, decision, peer.last),
        };
        let replaced = match verdict {
            Verdict::Refuse => return Err(RefusalReason::Superseded),
            Verdict::Take => None,
            Verdict::Replace(reason) => peer.current.take().map(|old| (old, reason)),
        };
        let decision = start.unwrap_or_else(|| {
            table.next_decision += 1;
            table.next_decision
        });
        if let Some((old, reason)) = replaced {
            old.session.end(CloseCode::Replaced, "", reason.clone());
            self.report_lost(&old.session, reason);
        }

        let id = SessionId(table.next_session);
        table.next_session += 1;
        let remote = canonical(connection.remote_address());
        let session = Shared::new::<C>(
            id,
            node,
            version,
            dialed_by_us,
            remote,
            connection.clone(),
            &self.tuning,
        );
        peer.current = Some(Current {
            session: session.clone(),
            holding: Holding {
                instance,
                decision,
                dialed_by_us,
            },
        });
        peer.last = Some((instance, decision));
        peer.last_failure = None;
        tracing::info!(peer = %node, session = %id, %remote, dialed_by_us, %version, "session established");
        self.emit(Event::Connected {
            peer: node,
            session: id,
            handle: Session(session.clone()),
            dialed_by_us,
            remote,
            version,
        });
        peer.up.send_replace(true);

        connection.set_receive_window(self.tuning.connection_window());
        connection.set_max_concurrent_uni_streams((Lane::ALL.len() as u32).into());
        connection.set_max_concurrent_bi_streams(0u32.into());
        let runtime = &self.runtime;
        if start.is_none() {
            // In a task of its own: the attempt that led here may be dropped now.
            runtime.spawn(async move {
                let _ = stream.write(&Message::Start { decision }).await;
            });
        }
        for lane in Lane::ALL {
            runtime.spawn(writer::run(session.clone(), lane));
        }
        runtime.spawn(reader::accept_lanes::<C, A>(
            session.clone(),
            self.events.clone(),
            self.allocator.clone(),
        ));
        runtime.spawn(supervise(self.clone(), session));
        Ok(())
    }

    /// Steps 1 to 6 over a fresh connection that we dialed.
    async fn dial(
        self: &Arc<Self>,
        node: NodeId,
        remote: SocketAddr,
        attempt: &mut Attempt,
    ) -> Result<(), RefusalReason> {
        let (key, last_decision) = self.key_of(node).ok_or(RefusalReason::UnknownNode(node))?;
        let connecting = self
            .quinn
            .connect_with(self.client.clone(), remote, tls::SERVER_NAME)
            .map_err(|error| RefusalReason::Transport(error.to_string()))?;
        let connection = connecting
            .await
            .map_err(|error| RefusalReason::of_connection(&error, HANDSHAKE_TIMEOUT))?;
        let connection = attempt.guard(connection);
        let proven =
            prove_as_dialer(&connection, &self.identity, node, &key, last_decision).await?;
        self.settle(&connection, proven, true).await
    }

    /// Steps 1 to 6 over a connection that came in.
    async fn accept(
        self: &Arc<Self>,
        incoming: Incoming,
        attempt: &mut Attempt,
    ) -> Result<(), RefusalReason> {
        let connecting = incoming.accept().map_err(|error| match &error {
            // TLS alerts (RFC 9001 section 4.8): someone who speaks QUIC, but another protocol in it.
            ConnectionError::TransportError(failure)
                if (0x100..0x200).contains(&u64::from(failure.code)) =>
            {
                RefusalReason::of_connection(&error, HANDSHAKE_TIMEOUT)
            }
            // No QUIC handshake at all: noise, which anyone can send from any address.
            _ => RefusalReason::Superseded,
        })?;
        let connection = connecting.await.map_err(|error| match error {
            // RFC 9000 section 10.2.3: the form that a dialer's own close takes during the handshake.
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
            {
                RefusalReason::Superseded
            }
            other => RefusalReason::of_connection(&other, HANDSHAKE_TIMEOUT),
        })?;
        let connection = attempt.guard(connection);
        let session = async {
            let proven =
                prove_as_acceptor(&connection, &self.identity, |node| self.key_of(node)).await?;
            self.settle(&connection, proven, false).await
        };
        session.await.map_err(|reason| match reason {
            // How QUIC itself ends what its owner drops: a dial that was given up between TLS and the proof, because another
            // connection of the two nodes has become the session.
            RefusalReason::ByPeer(CloseCode::Closed) => RefusalReason::Superseded,
            other => other,
        })
    }

    async fn settle(
        self: &Arc<Self>,
        connection: &Connection,
        mut proven: Proven,
        dialed_by_us: bool,
    ) -> Result<(), RefusalReason> {
        let start = if self.is_arbiter_with(proven.peer) {
            None
        } else {
            Some(proven.stream.read_start().await?)
        };
        self.admit(connection, proven, dialed_by_us, start)
    }

    fn key_of(&self, node: NodeId) -> Option<(SharedKey, u64)> {
        let table = self.table();
        let peer = table.peers.get(&node)?;
        Some((
            peer.config.key.clone(),
            peer.last.map_or(0, |(_, decision)| decision),
        ))
    }

    fn has_peer_at(&self, address: IpAddr) -> bool {
        self.table()
            .peers
            .values()
            .any(|peer| peer.config.remote.ip().to_canonical() == address)
    }

    fn has_session_at(&self, remote: SocketAddr) -> bool {
        self.table()
            .peers
            .values()
            .filter_map(|peer| peer.current.as_ref())
            .any(|current| current.session.remote == remote)
    }

    fn report_refused(&self, remote: SocketAddr, reason: RefusalReason) {
        if !reason.is_news(self.has_session_at(remote)) {
            tracing::debug!(%remote, %reason, "connection closed");
            return;
        }
        let allowance = self
            .reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(Instant::now());
        let Some(unreported) = allowance else { return };
        tracing::warn!(%remote, %reason, unreported, "connection refused");
        self.emit(Event::Refused { remote, reason });
    }

    fn report_dial_failed(&self, node: NodeId, remote: SocketAddr, reason: RefusalReason) {
        let mut table = self.table();
        let Some(peer) = table.peers.get_mut(&node) else {
            return;
        };
        if peer.last_failure.as_ref() == Some(&reason) {
            tracing::debug!(peer = %node, %remote, %reason, "still cannot connect");
        } else {
            tracing::warn!(peer = %node, %remote, %reason, "cannot connect");
        }
        peer.last_failure = Some(reason.clone());
        self.emit(Event::DialFailed { peer: node, reason });
    }
}

/// Reports the end of a session's connection.
async fn supervise<C: FrameCodec, A: PayloadAllocator>(
    inner: Arc<Inner<C, A>>,
    session: Arc<Shared>,
) {
    let error = session.connection.closed().await;
    let reason = session
        .own_reason()
        .unwrap_or_else(|| LossReason::of_connection(&error, inner.tuning.idle_timeout));
    let mut table = inner.table();
    session.shut();
    let Some(peer) = table.peers.get_mut(&session.peer) else {
        return;
    };
    // Otherwise its loss was reported when it was replaced.
    if peer
        .current
        .take_if(|current| current.session.id == session.id)
        .is_some()
    {
        inner.report_lost(&session, reason);
        peer.up.send_replace(false);
    }
}

async fn accept_connections<C: FrameCodec, A: PayloadAllocator>(inner: Arc<Inner<C, A>>) {
    while let Some(incoming) = inner.quinn.accept().await {
        let remote = canonical(incoming.remote_address());
        // Strangers cannot take the places of configured peers.
        let (places, total) = if inner.has_peer_at(remote.ip()) {
            (&inner.unproven_from_peers, MAX_UNPROVEN_FROM_PEERS)
        } else {
            (&inner.unproven_from_others, MAX_UNPROVEN_FROM_OTHERS)
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let crowded = total - places.available_permits() > ADDRESS_VALIDATION_FROM;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        tokio::spawn(accept_one(inner.clone(), incoming, place));
    }
    if !inner.table().stopped {
        tracing::error!(
            "the UDP socket failed: no peer can be reached until the endpoint is bound anew"
        );
    }
}

/// The address without the disguise that IPv4 has on a socket for both families.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn accept_one<C: FrameCodec, A: PayloadAllocator>(
    inner: Arc<Inner<C, A>>,
    incoming: Incoming,
    place: OwnedSemaphorePermit,
) {
    let remote = canonical(incoming.remote_address());
    let outcome = Attempt::default()
        .run(async |attempt| inner.accept(incoming, attempt).await)
        .await;
    drop(place);
    if let Err(reason) = outcome {
        inner.report_refused(remote, reason);
    }
}

async fn dial_loop<C: FrameCodec, A: PayloadAllocator>(
    inner: Arc<Inner<C, A>>,
    node: NodeId,
    remote: SocketAddr,
    connect_interval: Duration,
    mut up: watch::Receiver<bool>,
) {
    let mut pause = Duration::ZERO;
    // The watch ends with the peer, and with it this loop, which is aborted then anyway.
    loop {
        if *up.borrow_and_update() {
            let since = Instant::now();
            if up.wait_for(|up| !*up).await.is_err() {
                return;
            }
            pause = if since.elapsed() >= SETTLED_SESSION {
                SHORT_PAUSE
            } else {
                connect_interval
            };
            continue;
        }
        tokio::select! {
            biased;
            _ = up.wait_for(|up| *up) => continue,
            () = tokio::time::sleep(jittered(pause.min(connect_interval))) => {}
        }
        let attempt =
            Attempt::default().run(async |attempt| inner.dial(node, remote, attempt).await);
        let outcome = tokio::select! {
            biased;
            _ = up.wait_for(|up| *up) => continue,
            outcome = attempt => outcome,
        };
        pause = match outcome {
            Ok(()) | Err(RefusalReason::Superseded) => SHORT_PAUSE,
            Err(reason) => {
                inner.report_dial_failed(node, remote, reason);
                connect_interval
            }
        };
    }
}

/// `pause` give or take a tenth, so that two nodes do not keep dialing at the same instant.
fn jittered(pause: Duration) -> Duration {
    let part = f64::from(u16::from_le_bytes(random())) / f64::from(u16::MAX);
    pause.mul_f64(0.9 + part * 0.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jittered_pause_stays_within_a_tenth() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_secs(10));
            assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&pause));
        }
        assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
    }
}
