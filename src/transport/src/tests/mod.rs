//! Tests of the whole transport over loopback, with ephemeral ports. This file owns what they share.

mod lanes;
mod limits;
mod links;
mod refusals;
mod sessions;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    BytesAllocator, CodecError, Credit, Endpoint, EndpointConfig, Event, Events, Faults,
    FrameCodec, FrameLengths, Lane, LossReason, NodeId, PayloadAllocator, PeerConfig,
    RefusalReason, Session, SessionId, SharedKey, Tuning, VersionRange,
};

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// `tag`, length of the body, length of the payload; 4 bytes each.
pub(super) struct Codec;

impl FrameCodec for Codec {
    const HEADER_BYTES: usize = 12;

    fn lengths(header: &[u8]) -> Result<FrameLengths, CodecError> {
        let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        if field(0) == u32::MAX {
            return Err(CodecError("tag of all ones".into()));
        }
        Ok(FrameLengths {
            body: field(4) as usize,
            payload: field(8) as usize,
        })
    }
}

/// Header and body of a frame.
pub(super) fn head(tag: u32, body: &[u8], payload_bytes: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(12 + body.len());
    head.put_u32_le(tag);
    head.put_u32_le(body.len() as u32);
    head.put_u32_le(payload_bytes as u32);
    head.put_slice(body);
    head.freeze()
}

/// Bytes that tell `tag`s and positions apart.
pub(super) fn pattern(tag: u32, length: usize) -> Bytes {
    (0..length)
        .map(|at| (at as u32 ^ (at as u32 >> 8) ^ tag.wrapping_mul(0x9e37_79b9)) as u8)
        .collect()
}

pub(super) fn send(session: &Session, lane: Lane, tag: u32, payload_bytes: usize) {
    let payload = (payload_bytes > 0).then(|| pattern(tag, payload_bytes));
    session
        .send(lane, head(tag, b"", payload_bytes), payload)
        .unwrap();
}

pub(super) fn tag(head: &[u8]) -> u32 {
    u32::from_le_bytes(head[..4].try_into().unwrap())
}

pub(super) fn key() -> SharedKey {
    SharedKey::from_secret("the key of the tests").unwrap()
}

/// An endpoint under test and its events.
pub(super) struct Node<C: FrameCodec = Codec, A: PayloadAllocator = BytesAllocator> {
    pub(super) id: NodeId,
    pub(super) endpoint: Endpoint<C, A>,
    pub(super) events: Events<A::Payload>,
    pub(super) faults: Faults,
}

/// A received frame.
pub(super) struct Frame<P> {
    pub(super) lane: Lane,
    pub(super) head: Bytes,
    pub(super) payload: Option<P>,
    pub(super) credit: Credit,
}

pub(super) fn config(id: u8, faults: &Faults) -> EndpointConfig {
    EndpointConfig {
        on_arrival: None,
        local: "127.0.0.1:0".parse().unwrap(),
        node: NodeId(id),
        resource: "r0".into(),
        versions: VersionRange::new(1, 1),
        tuning: Tuning::lan(),
        faults: Some(faults.clone()),
    }
}

pub(super) fn node(id: u8) -> Node {
    node_with(id, |_| {})
}

pub(super) fn node_with(id: u8, change: impl FnOnce(&mut EndpointConfig)) -> Node {
    typed_node(id, BytesAllocator, change)
}

pub(super) fn typed_node<C: FrameCodec, A: PayloadAllocator>(
    id: u8,
    allocator: A,
    change: impl FnOnce(&mut EndpointConfig),
) -> Node<C, A> {
    let faults = Faults::new(u64::from(id));
    let mut config = config(id, &faults);
    change(&mut config);
    let (endpoint, events) = Endpoint::bind(config, allocator).unwrap();
    Node {
        id: NodeId(id),
        endpoint,
        events,
        faults,
    }
}

impl<C: FrameCodec, A: PayloadAllocator> Node<C, A> {
    pub(super) fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    /// Adds node `peer` at `remote`.
    pub(super) fn add(&self, peer: NodeId, remote: SocketAddr) {
        self.add_with(peer, remote, key(), Duration::from_millis(200));
    }

    pub(super) fn add_with(
        &self,
        peer: NodeId,
        remote: SocketAddr,
        key: SharedKey,
        connect_interval: Duration,
    ) {
        self.endpoint
            .add_peer(PeerConfig {
                node: peer,
                remote,
                key,
                connect_interval,
            })
            .unwrap();
    }

    /// Accepts `peer` but cannot reach it: nobody answers at the address.
    pub(super) fn only_accept(&self, peer: NodeId) {
        self.add_with(
            peer,
            "127.0.0.1:9".parse().unwrap(),
            key(),
            Duration::from_secs(3600),
        );
    }

    pub(super) async fn next(&mut self) -> Event<A::Payload> {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event in time")
            .expect("events go on")
    }

    /// The next session; failed dials before it, in either direction, are normal.
    pub(super) async fn connected(&mut self) -> Session {
        loop {
            match self.next().await {
                Event::Connected { handle, .. } => return handle,
                Event::DialFailed { .. }
                | Event::Refused {
                    reason: RefusalReason::TimedOut(_),
                    ..
                } => {}
                other => panic!("expected a session, not {:?}", summary(&other)),
            }
        }
    }

    pub(super) async fn lost(&mut self) -> (SessionId, LossReason) {
        loop {
            match self.next().await {
                Event::Lost {
                    session, reason, ..
                } => return (session, reason),
                Event::Frame { .. } | Event::DialFailed { .. } => {}
                other => panic!("expected a loss, not {:?}", summary(&other)),
            }
        }
    }

    pub(super) async fn frame(&mut self) -> Frame<A::Payload> {
        loop {
            match self.next().await {
                Event::Frame {
                    lane,
                    head,
                    payload,
                    credit,
                    ..
                } => {
                    return Frame {
                        lane,
                        head,
                        payload,
                        credit,
                    };
                }
                Event::DialFailed { .. } => {}
                other => panic!("expected a frame, not {:?}", summary(&other)),
            }
        }
    }

    pub(super) async fn dial_failed(&mut self) -> RefusalReason {
        match self.next().await {
            Event::DialFailed { reason, .. } => reason,
            other => panic!("expected a failed dial, not {:?}", summary(&other)),
        }
    }

    pub(super) async fn refused(&mut self) -> (SocketAddr, RefusalReason) {
        loop {
            match self.next().await {
                Event::Refused { remote, reason } => return (remote, reason),
                Event::DialFailed { .. } => {}
                other => panic!("expected a refusal, not {:?}", summary(&other)),
            }
        }
    }

    /// Everything that happens within `time`, in words.
    pub(super) async fn watch(&mut self, time: Duration) -> Vec<String> {
        let mut seen = Vec::new();
        let _ = tokio::time::timeout(time, async {
            while let Some(event) = self.events.recv().await {
                seen.push(summary(&event));
            }
        })
        .await;
        seen
    }
}

pub(super) fn summary<P>(event: &Event<P>) -> String {
    match event {
        Event::Connected { peer, session, .. } => format!("Connected {peer} {session}"),
        Event::Frame { session, lane, .. } => format!("Frame {session} {lane}"),
        Event::Lost {
            session, reason, ..
        } => format!("Lost {session} {reason}"),
        Event::Refused { reason, .. } => format!("Refused {reason}"),
        Event::DialFailed { reason, .. } => format!("DialFailed {reason}"),
    }
}

/// Two nodes with a session that node 0 dialed.
pub(super) async fn pair_with(
    change: impl Fn(&mut EndpointConfig),
) -> (Node, Session, Node, Session) {
    let (mut a, mut b) = (node_with(0, &change), node_with(1, &change));
    let (on_a, on_b) = join(&mut a, &mut b).await;
    (a, on_a, b, on_b)
}

pub(super) async fn pair() -> (Node, Session, Node, Session) {
    pair_with(|_| {}).await
}

/// Lets `a` dial `b`.
pub(super) async fn join<
    CA: FrameCodec,
    CB: FrameCodec,
    A: PayloadAllocator,
    B: PayloadAllocator,
>(
    a: &mut Node<CA, A>,
    b: &mut Node<CB, B>,
) -> (Session, Session) {
    b.only_accept(a.id);
    a.add(b.id, b.address());
    tokio::join!(a.connected(), b.connected())
}
