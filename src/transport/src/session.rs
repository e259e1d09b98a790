//! A session: the queues of its sending lanes, its counters, and how it ends.
//!
//! Invariants:
//! - frames are delivered and accepted for sending only while the gate is open; it closes once, under its lock, so that
//!   nothing follows the report of the loss;
//! - a lane's queue holds whole frames in the order of `send`; `queued_bytes` is what QUIC has not taken over yet.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::budget::Budget;
use crate::codec::{CodecError, FrameCodec, FrameLengths, checked_lengths};
use crate::event::{CloseCode, LossReason};
use crate::ids::{NodeId, ProtocolVersion, SessionId};
use crate::lane::Lane;
use crate::limits::MAX_CLOSE_TEXT_BYTES;
use crate::tuning::Tuning;

/// A handle on a session. Clones are the same session; dropping them does not end it.
#[derive(Clone, Debug)]
pub struct Session(pub(crate) Arc<Shared>);

/// Why a frame was not queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The session is over; its loss is reported as an event.
    #[error("the session is over")]
    Closed,
    /// Too much is queued: the owner should have looked at [`Session::queued_bytes`].
    #[error("{queued_bytes} bytes are queued for sending, at most {limit_bytes} are allowed")]
    QueueFull {
        /// Bytes queued on all lanes.
        queued_bytes: usize,
        /// See [`Tuning::max_queued_bytes`].
        limit_bytes: usize,
    },
}

/// Frames and bytes that went over one lane in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneTotals {
    /// Whole frames.
    pub frames: u64,
    /// Bytes of header, body and payload.
    pub bytes: u64,
}

/// Totals per lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaneCounters([LaneTotals; 4]);

impl LaneCounters {
    /// Totals of `lane`.
    pub fn of(&self, lane: Lane) -> LaneTotals {
        self.0[lane.index()]
    }

    /// Totals of all lanes.
    pub fn all(&self) -> LaneTotals {
        self.0
            .iter()
            .fold(LaneTotals::default(), |sum, lane| LaneTotals {
                frames: sum.frames + lane.frames,
                bytes: sum.bytes + lane.bytes,
            })
    }
}

/// What QUIC knows of the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionStats {
    /// Smoothed round trip.
    pub round_trip: Duration,
    /// Bytes that may be in flight.
    pub congestion_window_bytes: u64,
    /// Largest UDP payload that the path was found to carry.
    pub udp_payload_bytes: u16,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets lost, without size probes.
    pub lost_packets: u64,
    /// UDP bytes sent.
    pub sent_bytes: u64,
    /// UDP bytes received.
    pub received_bytes: u64,
}

#[derive(Debug, Default)]
struct Totals {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Totals {
    fn add(&self, bytes: usize) {
        self.frames.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn read(&self) -> LaneTotals {
        LaneTotals {
            frames: self.frames.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

/// Everything of one lane of one session.
#[derive(Debug)]
pub(crate) struct LaneState {
    queue: Mutex<VecDeque<Bytes>>,
    queued_bytes: AtomicUsize,
    /// Wakes the lane's writer.
    pub(crate) work: Notify,
    /// Wakes owners that wait for the queue to drain.
    drained: Notify,
    sent: Totals,
    received: Totals,
    /// What the owner may hold of this lane.
    pub(crate) budget: Budget,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: SessionId,
    pub(crate) peer: NodeId,
    pub(crate) version: ProtocolVersion,
    pub(crate) dialed_by_us: bool,
    pub(crate) connection: quinn::Connection,
    pub(crate) remote: SocketAddr,
    lanes: [LaneState; 4],
    max_queued_bytes: usize,
    header_bytes: usize,
    lengths: fn(&[u8]) -> Result<FrameLengths, CodecError>,
    /// Whether the session lives.
    gate: Mutex<bool>,
    /// Why this side ended it.
    reason: Mutex<Option<LossReason>>,
}

/// The locks of a session are held for a few instructions that cannot leave their data half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new<C: FrameCodec>(
        id: SessionId,
        peer: NodeId,
        version: ProtocolVersion,
        dialed_by_us: bool,
        remote: SocketAddr,
        connection: quinn::Connection,
        tuning: &Tuning,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            peer,
            version,
            dialed_by_us,
            remote,
            connection,
            lanes: Lane::ALL.map(|lane| LaneState {
                queue: Mutex::default(),
                queued_bytes: AtomicUsize::new(0),
                work: Notify::new(),
                drained: Notify::new(),
                sent: Totals::default(),
                received: Totals::default(),
                budget: Budget::new(tuning.budgets.of(lane)),
            }),
            max_queued_bytes: tuning.max_queued_bytes,
            header_bytes: C::HEADER_BYTES,
            lengths: checked_lengths::<C>,
            gate: Mutex::new(true),
            reason: Mutex::new(None),
        })
    }

    pub(crate) fn lane(&self, lane: Lane) -> &LaneState {
        &self.lanes[lane.index()]
    }

    pub(crate) fn is_open(&self) -> bool {
        *lock(&self.gate)
    }

    /// Runs `deliver` unless the session is over. What runs before the gate closes is delivered before the loss.
    pub(crate) fn while_open(&self, deliver: impl FnOnce()) -> bool {
        let open = lock(&self.gate);
        if *open {
            deliver();
        }
        *open
    }

    pub(crate) fn count_received(&self, lane: Lane, bytes: usize) {
        self.lane(lane).received.add(bytes);
    }

    /// Moves queued pieces of frames into `batch`, at most `limit`, in order; `false` if there are none.
    pub(crate) fn take_queued(&self, lane: Lane, batch: &mut Vec<Bytes>, limit: usize) -> bool {
        let mut queue = lock(&self.lane(lane).queue);
        let count = queue.len().min(limit);
        batch.extend(queue.drain(..count));
        count > 0
    }

    /// QUIC took `bytes` of the lane's queue over.
    pub(crate) fn handed_over(&self, lane: Lane, bytes: usize) {
        let lane = self.lane(lane);
        // Saturating: the end of the session sets the counter to zero in between.
        let _ = lane.queued_bytes.fetch_update(Relaxed, Relaxed, |queued| {
            Some(queued.saturating_sub(bytes))
        });
        lane.drained.notify_waiters();
    }

    /// Ends the session from this side. The first reason counts.
    pub(crate) fn end(&self, code: CloseCode, text: &str, reason: LossReason) {
        lock(&self.reason).get_or_insert(reason);
        let cut = (0..=text.len().min(MAX_CLOSE_TEXT_BYTES))
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        self.connection.close(code.wire(), &text.as_bytes()[..cut]);
        self.shut();
    }

    /// Ends the session because the peer broke the rules of a lane.
    pub(crate) fn end_for_violation(&self, lane: Option<Lane>, what: &str) {
        let what = match lane {
            Some(lane) => format!("{lane} lane: {what}"),
            None => what.to_owned(),
        };
        self.end(
            CloseCode::ProtocolViolation,
            &what,
            LossReason::ProtocolViolation(what.clone().into()),
        );
    }

    /// Closes the gate, releases what is queued and wakes everyone who waits on the session. Repeating it does no harm.
    pub(crate) fn shut(&self) {
        *lock(&self.gate) = false;
        for lane in &self.lanes {
            let released = std::mem::take(&mut *lock(&lane.queue));
            drop(released);
            lane.queued_bytes.store(0, Relaxed);
            lane.budget.close();
            lane.work.notify_one();
            lane.drained.notify_waiters();
        }
    }

    /// Why this side ended the session, if it did.
    pub(crate) fn own_reason(&self) -> Option<LossReason> {
        lock(&self.reason).clone()
    }
}

impl Session {
    /// Number of the session in its endpoint.
    pub fn id(&self) -> SessionId {
        self.0.id
    }

    /// With whom.
    pub fn peer(&self) -> NodeId {
        self.0.peer
    }

    /// Where the peer's packets come from.
    pub fn remote(&self) -> SocketAddr {
        self.0.remote
    }

    /// The negotiated version.
    pub fn version(&self) -> ProtocolVersion {
        self.0.version
    }

    /// Whether this node dialed.
    pub fn dialed_by_us(&self) -> bool {
        self.0.dialed_by_us
    }

    /// Whether frames are still taken.
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Sends a frame at the end of `lane`: [`queue`](Self::queue) and [`push`](Self::push).
    ///
    /// # Errors
    /// If the session is over or too much is queued; the frame was not taken.
    ///
    /// # Panics
    /// If the lengths of the frame are not those that its header announces: the peer would lose the thread.
    pub fn send(&self, lane: Lane, head: Bytes, payload: Option<Bytes>) -> Result<(), SendError> {
        self.queue(lane, head, payload)?;
        self.push(lane);
        Ok(())
    }

    /// Has everything that is queued on `lane` leave.
    pub fn push(&self, lane: Lane) {
        self.0.lane(lane).work.notify_one();
    }

    /// Queues a frame at the end of `lane`: `head` is header and body. It leaves with the next one that is sent there, or is pushed.
    /// Copies nothing and does not wait; the buffers are released when the peer has acknowledged their packets.
    ///
    /// # Errors
    /// If the session is over or too much is queued; the frame was not taken.
    ///
    /// # Panics
    /// If the lengths of the frame are not those that its header announces: the peer would lose the thread.
    pub fn queue(&self, lane: Lane, head: Bytes, payload: Option<Bytes>) -> Result<(), SendError> {
        let payload_bytes = payload.as_ref().map_or(0, Bytes::len);
        let announced =
            (self.0.lengths)(&head[..self.0.header_bytes]).expect("the owner's own header");
        assert_eq!(
            (head.len() - self.0.header_bytes, payload_bytes),
            (announced.body, announced.payload),
            "lengths of body and payload against the frame's own header"
        );
        let bytes = head.len() + payload_bytes;
        let queued_bytes = self.queued_bytes_total();
        if queued_bytes + bytes > self.0.max_queued_bytes {
            return Err(SendError::QueueFull {
                queued_bytes,
                limit_bytes: self.0.max_queued_bytes,
            });
        }
        let state = self.0.lane(lane);
        let taken = self.0.while_open(|| {
            let mut queue = lock(&state.queue);
            queue.push_back(head);
            queue.extend(payload.filter(|payload| !payload.is_empty()));
            state.queued_bytes.fetch_add(bytes, Relaxed);
        });
        if !taken {
            return Err(SendError::Closed);
        }
        state.sent.add(bytes);
        Ok(())
    }

    /// Bytes of `lane` that wait to be taken over by QUIC: what came on top of a full window.
    pub fn queued_bytes(&self, lane: Lane) -> usize {
        self.0.lane(lane).queued_bytes.load(Relaxed)
    }

    /// Bytes that wait on all lanes.
    pub fn queued_bytes_total(&self) -> usize {
        Lane::ALL
            .into_iter()
            .map(|lane| self.queued_bytes(lane))
            .sum()
    }

    /// Waits until at most `bytes` of `lane` are queued, or the session is over.
    pub async fn drained_to(&self, lane: Lane, bytes: usize) {
        self.push(lane);
        let state = self.0.lane(lane);
        loop {
            let drained = state.drained.notified();
            if state.queued_bytes.load(Relaxed) <= bytes || !self.0.is_open() {
                return;
            }
            drained.await;
        }
    }

    /// Frames and bytes given to [`send`](Self::send).
    pub fn sent(&self) -> LaneCounters {
        LaneCounters(Lane::ALL.map(|lane| self.0.lane(lane).sent.read()))
    }

    /// Frames and bytes delivered as events.
    pub fn received(&self) -> LaneCounters {
        LaneCounters(Lane::ALL.map(|lane| self.0.lane(lane).received.read()))
    }

    /// Bytes of `lane`'s budget that the owner holds.
    pub fn unreleased_bytes(&self, lane: Lane) -> usize {
        self.0.lane(lane).budget.held()
    }

    /// What QUIC knows of the path.
    pub fn stats(&self) -> SessionStats {
        let stats = self.0.connection.stats();
        SessionStats {
            round_trip: stats.path.rtt,
            congestion_window_bytes: stats.path.cwnd,
            udp_payload_bytes: stats.path.current_mtu,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
        }
    }

    /// Ends the session at once; what is queued is not sent. The peer is told `reason`. The loss is reported as an event,
    /// no frame is delivered before it any more. Dialing starts again: [`Endpoint::remove_peer`](crate::Endpoint::remove_peer)
    /// ends that too.
    pub fn close(&self, reason: &str) {
        self.0.end(
            CloseCode::Closed,
            reason,
            LossReason::Closed(reason.to_owned()),
        );
    }
}
