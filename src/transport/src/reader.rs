//! The reader of one receiving lane: cuts its QUIC stream into frames and delivers them.
//!
//! A payload is copied once, from QUIC's packets into the owner's buffer. The lane's budget is taken before a frame is
//! read, so what a peer announces costs nothing until there is room for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream};
use tokio::sync::mpsc;

use crate::codec::{FrameCodec, PayloadAllocator, checked_lengths};
use crate::event::Event;
use crate::lane::{Lane, PREAMBLE_BYTES};
use crate::limits::MAX_HEADER_BYTES;
use crate::session::Shared;

/// Pieces taken from QUIC at once.
const BATCH_PIECES: usize = 32;
/// After this many bytes the reader lets the other tasks of its thread run.
const TURN_BYTES: usize = 1 << 20;

/// Why a lane cannot be read on.
enum LaneEnd {
    /// The session's supervisor reports it.
    SessionOver,
    Violation(String),
}

impl From<ReadError> for LaneEnd {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(_) => Self::SessionOver,
            other => Self::Violation(format!("it cannot be read: {other}")),
        }
    }
}

/// A stream with the pieces that were taken from it but not used.
struct Inbox {
    stream: RecvStream,
    pieces: [Bytes; BATCH_PIECES],
    /// Pieces from `next` to `filled` are unused.
    next: usize,
    filled: usize,
    turn_bytes: usize,
}

impl Inbox {
    fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            pieces: [const { Bytes::new() }; BATCH_PIECES],
            next: 0,
            filled: 0,
            turn_bytes: 0,
        }
    }

    /// Fills `target` with the next bytes of the lane.
    async fn fill(&mut self, mut target: &mut [u8]) -> Result<(), LaneEnd> {
        while !target.is_empty() {
            if self.next == self.filled {
                self.take_pieces().await?;
            }
            let piece = &mut self.pieces[self.next];
            let count = piece.len().min(target.len());
            let (now, later) = target.split_at_mut(count);
            piece.copy_to_slice(now);
            if piece.is_empty() {
                // Releases the packet's memory, which the emptied piece would keep.
                *piece = Bytes::new();
                self.next += 1;
            }
            target = later;
            self.turn_bytes += count;
        }
        Ok(())
    }

    async fn take_pieces(&mut self) -> Result<(), LaneEnd> {
        if self.turn_bytes >= TURN_BYTES {
            self.turn_bytes = 0;
            tokio::task::yield_now().await;
        }
        match self.stream.read_chunks(&mut self.pieces).await? {
            Some(count) => (self.next, self.filled) = (0, count),
            None => return Err(LaneEnd::Violation("the peer ended it".into())),
        }
        Ok(())
    }
}

/// Accepts the peer's lanes and starts a reader for each.
pub(crate) async fn accept_lanes<C: FrameCodec, A: PayloadAllocator>(
    session: Arc<Shared>,
    events: mpsc::UnboundedSender<Event<A::Payload>>,
    allocator: Arc<A>,
) {
    let opened = Arc::new(AtomicU8::new(0));
    // The peer may have one stream for each lane open and no more, so there is never another one to accept.
    for _ in Lane::ALL {
        let Ok(stream) = session.connection.accept_uni().await else {
            return;
        };
        let (session, events, allocator, opened) = (
            session.clone(),
            events.clone(),
            allocator.clone(),
            opened.clone(),
        );
        // Its own task: a lane whose first packet is late must not hold up the others.
        tokio::spawn(async move {
            let mut inbox = Inbox::new(stream);
            let mut lane = None;
            let end = read_lane::<C, A>(
                &session,
                &mut inbox,
                &mut lane,
                &opened,
                &events,
                &*allocator,
            )
            .await;
            if let Err(LaneEnd::Violation(what)) = end {
                session.end_for_violation(lane, &what);
            }
        });
    }
}

async fn read_lane<C: FrameCodec, A: PayloadAllocator>(
    session: &Shared,
    inbox: &mut Inbox,
    lane: &mut Option<Lane>,
    opened: &AtomicU8,
    events: &mpsc::UnboundedSender<Event<A::Payload>>,
    allocator: &A,
) -> Result<(), LaneEnd> {
    let mut preamble = [0; PREAMBLE_BYTES];
    inbox.fill(&mut preamble).await?;
    let named = Lane::from_preamble(preamble).ok_or_else(|| {
        LaneEnd::Violation(format!(
            "a stream that opens with {preamble:02x?} is no lane"
        ))
    })?;
    if opened.fetch_or(1 << named.index(), Relaxed) & (1 << named.index()) != 0 {
        return Err(LaneEnd::Violation(format!(
            "the {named} lane was opened twice"
        )));
    }
    *lane = Some(named);
    loop {
        read_frame::<C, A>(session, inbox, named, events, allocator).await?;
    }
}

async fn read_frame<C: FrameCodec, A: PayloadAllocator>(
    session: &Shared,
    inbox: &mut Inbox,
    lane: Lane,
    events: &mpsc::UnboundedSender<Event<A::Payload>>,
    allocator: &A,
) -> Result<(), LaneEnd> {
    let mut header = [0; MAX_HEADER_BYTES];
    let header = &mut header[..C::HEADER_BYTES];
    inbox.fill(header).await?;
    let lengths =
        checked_lengths::<C>(header).map_err(|error| LaneEnd::Violation(error.to_string()))?;
    let frame_bytes = header.len() + lengths.body + lengths.payload;
    let credit = session
        .lane(lane)
        .budget
        .take(frame_bytes)
        .await
        .ok_or(LaneEnd::SessionOver)?;

    let mut head = vec![0; header.len() + lengths.body];
    head[..header.len()].copy_from_slice(header);
    inbox.fill(&mut head[header.len()..]).await?;
    let payload = match lengths.payload {
        0 => None,
        length => {
            let mut buffer = allocator.allocate(length);
            inbox.fill(&mut buffer.as_mut()[..length]).await?;
            Some(A::freeze(buffer))
        }
    };
    let delivered = session.while_open(|| {
        session.count_received(lane, frame_bytes);
        // An owner that dropped its events has no use for frames; the credit goes back with them.
        let _ = events.send(Event::Frame {
            peer: session.peer,
            session: session.id,
            lane,
            head: Bytes::from(head),
            payload,
            credit,
        });
    });
    if delivered {
        Ok(())
    } else {
        Err(LaneEnd::SessionOver)
    }
}
