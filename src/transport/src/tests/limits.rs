//! Bounds: what the owner holds, what it queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::{LaneBudgets, SendError};

/// Counts the bytes of its buffers that are not dropped.
#[derive(Clone, Default)]
struct Counting {
    out: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Counted {
    bytes: Vec<u8>,
    out: Arc<AtomicUsize>,
}

impl AsMut<[u8]> for Counted {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.out.fetch_sub(self.bytes.len(), Relaxed);
    }
}

impl PayloadAllocator for Counting {
    type Buffer = Counted;
    type Payload = Counted;

    fn allocate(&self, length: usize) -> Counted {
        let out = self.out.fetch_add(length, Relaxed) + length;
        self.most.fetch_max(out, Relaxed);
        Counted {
            bytes: vec![0; length],
            out: self.out.clone(),
        }
    }

    fn freeze(buffer: Counted) -> Counted {
        buffer
    }
}

const BUDGETS: LaneBudgets = LaneBudgets {
    data: 4 << 20,
    acks: 64 << 10,
    control: 64 << 10,
    resync: 1 << 20,
};

fn small_budgets(config: &mut EndpointConfig) {
    config.tuning.budgets = BUDGETS;
    config.tuning.stream_window_bytes = 1 << 20;
}

#[tokio::test]
async fn what_a_slow_owner_holds_is_bounded_and_the_sender_waits() {
    const FRAMES: u32 = 256;
    const FRAME: usize = 256 << 10;
    let counting = Counting::default();
    let mut a = node_with(0, small_budgets);
    let mut b: Node<Codec, Counting> = typed_node(1, counting.clone(), small_budgets);
    let (on_a, on_b) = join(&mut a, &mut b).await;
    for tag in 0..FRAMES {
        send(&on_a, Lane::Data, tag, FRAME);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Nothing was released, so nothing moves: the budget at the receiver, the stream's window between.
    let held = counting.out.load(Relaxed);
    assert!(
        held <= BUDGETS.data as usize && held > BUDGETS.data as usize / 2,
        "{held} bytes are out"
    );
    assert!(on_b.unreleased_bytes(Lane::Data) >= held);
    let queued = on_a.queued_bytes(Lane::Data);
    let accounted = queued + held + (1 << 20) + (1 << 20);
    assert!(
        accounted >= FRAMES as usize * FRAME,
        "{queued} bytes are queued"
    );

    for tag in 0..FRAMES {
        let frame = b.frame().await;
        assert_eq!(super::tag(&frame.head), tag);
        assert!(frame.payload.unwrap().bytes == pattern(tag, FRAME));
        drop(frame.credit);
    }
    assert!(counting.most.load(Relaxed) <= BUDGETS.data as usize);
    assert_eq!(counting.out.load(Relaxed), 0);
    assert_eq!(on_b.unreleased_bytes(Lane::Data), 0);
    assert_eq!(on_a.queued_bytes_total(), 0);
}

#[tokio::test]
async fn a_frame_larger_than_the_budget_is_let_in_alone() {
    let (_a, on_a, mut b, on_b) = pair_with(small_budgets).await;
    send(&on_a, Lane::Resync, 1, 8 << 20);
    send(&on_a, Lane::Resync, 2, 8 << 20);
    let first = b.frame().await;
    assert_eq!(on_b.unreleased_bytes(Lane::Resync), BUDGETS.resync as usize);
    assert!(
        b.watch(Duration::from_millis(300)).await.is_empty(),
        "the second waits for the first"
    );
    assert!(first.payload.unwrap() == pattern(1, 8 << 20));
    drop(first.credit);
    assert!(b.frame().await.payload.unwrap() == pattern(2, 8 << 20));
}

#[tokio::test]
async fn empty_frames_are_bounded_too() {
    let (_a, on_a, mut b, _on_b) = pair_with(small_budgets).await;
    for tag in 0..100_000 {
        send(&on_a, Lane::Acks, tag, 0);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut held = Vec::new();
    while let Some(Event::Frame { credit, .. }) = b.events.try_recv() {
        held.push(credit);
    }
    assert!(
        held.len() <= BUDGETS.acks as usize / 128,
        "{} frames were delivered",
        held.len()
    );
    drop(held);
    for _ in 0..1000 {
        b.frame().await;
    }
}

#[tokio::test]
async fn the_backlog_counter_rises_while_the_peer_stands_and_falls_to_zero() {
    let (_a, on_a, mut b, _on_b) = pair_with(small_budgets).await;
    assert_eq!(on_a.queued_bytes(Lane::Data), 0);
    send(&on_a, Lane::Data, 0, 1000);
    // No task has run in between: everything is still here.
    assert_eq!(on_a.queued_bytes(Lane::Data), 12 + 1000);
    assert_eq!(on_a.queued_bytes(Lane::Control), 0);
    b.frame().await;
    for tag in 0..64 {
        send(&on_a, Lane::Data, tag, 1 << 20);
    }
    assert!(on_a.queued_bytes(Lane::Data) > 60 << 20);
    let waiting = on_a.clone();
    let drained = tokio::spawn(async move {
        waiting.drained_to(Lane::Data, 1 << 20).await;
        waiting.queued_bytes(Lane::Data)
    });
    for _ in 0..64 {
        b.frame().await;
    }
    assert!(
        tokio::time::timeout(PATIENCE, drained)
            .await
            .unwrap()
            .unwrap()
            <= 1 << 20
    );
    assert_eq!(on_a.queued_bytes_total(), 0);
}

#[tokio::test]
async fn sending_is_refused_beyond_the_bound_and_after_the_end() {
    let (mut a, on_a, _b, _on_b) =
        pair_with(|config| config.tuning.max_queued_bytes = 1 << 20).await;
    send(&on_a, Lane::Data, 0, 600 << 10);
    let refused = on_a.send(
        Lane::Resync,
        head(1, b"", 600 << 10),
        Some(pattern(1, 600 << 10)),
    );
    let queued_bytes = 12 + (600 << 10);
    assert_eq!(
        refused,
        Err(SendError::QueueFull {
            queued_bytes,
            limit_bytes: 1 << 20
        })
    );
    assert_eq!(
        on_a.queued_bytes_total(),
        queued_bytes,
        "nothing of it was taken"
    );
    on_a.close("enough");
    assert_eq!(
        on_a.send(Lane::Data, head(2, b"", 0), None),
        Err(SendError::Closed)
    );
    assert_eq!(on_a.queued_bytes_total(), 0, "the buffers are released");
    on_a.drained_to(Lane::Data, 0).await;
    assert!(!on_a.is_open());
    assert_eq!(a.lost().await.1, LossReason::Closed("enough".into()));
}

#[tokio::test]
async fn sending_a_frame_whose_header_lies_is_a_bug() {
    let (_a, on_a, _b, _on_b) = pair().await;
    let lie = std::panic::AssertUnwindSafe(|| {
        on_a.send(Lane::Data, head(1, b"", 10), Some(pattern(1, 11)))
    });
    assert!(std::panic::catch_unwind(lie).is_err());
}

#[tokio::test]
async fn a_queued_frame_leaves_with_the_next_that_is_sent_or_when_it_is_pushed() {
    let (_a, on_a, mut b, _on_b) = pair().await;
    for lane in [Lane::Data, Lane::Control] {
        on_a.send(lane, head(0, b"", 0), None).unwrap();
        b.frame().await;
    }
    on_a.queue(Lane::Data, head(1, b"", 0), None).unwrap();
    on_a.send(Lane::Control, head(2, b"", 0), None).unwrap();
    assert_eq!(b.frame().await.lane, Lane::Control, "the other one waits");
    on_a.push(Lane::Data);
    assert_eq!(b.frame().await.head, head(1, b"", 0));
    on_a.queue(Lane::Data, head(3, b"", 0), None).unwrap();
    on_a.send(Lane::Data, head(4, b"", 0), None).unwrap();
    assert_eq!(b.frame().await.head, head(3, b"", 0));
    assert_eq!(b.frame().await.head, head(4, b"", 0));
    on_a.queue(Lane::Data, head(5, b"", 0), None).unwrap();
    on_a.drained_to(Lane::Data, 0).await;
    assert_eq!(b.frame().await.head, head(5, b"", 0));
}
