//! Links with a delay. Nothing here measures time: a delay is what makes the windows matter.

use super::*;

const FRAME_BYTES: usize = 256 << 10;
const MOST_FRAMES: u32 = 2_000;

#[tokio::test]
async fn window_of_a_long_link_grows_beyond_that_of_a_local_one() {
    const LOCAL_WINDOW: u64 = 2 << 20;
    // What 1 Gbit/s needs for 50 ms, and a standing queue.
    const LET_COME: u64 = 10 << 20;
    let (mut a, mut b) = (node(0), node(1));
    for node in [&a, &b] {
        node.faults.delay_outbound(Duration::from_millis(60));
    }
    let (on_a, on_b) = join(&mut a, &mut b).await;
    let payload = pattern(1, FRAME_BYTES);
    let (mut frames, mut most_window, mut most_let_come) = (0, 0, 0);
    while most_window <= LOCAL_WINDOW || most_let_come <= LET_COME {
        assert!(
            frames < MOST_FRAMES,
            "window {most_window}, taken over by QUIC before the peer had it: {most_let_come}"
        );
        while on_a.queued_bytes(Lane::Data) < 4 << 20 {
            let head = head(frames, b"", FRAME_BYTES);
            on_a.send(Lane::Data, head, Some(payload.clone())).unwrap();
            frames += 1;
        }
        b.frame().await;
        most_window = most_window.max(on_a.stats().congestion_window_bytes);
        let sent = on_a.sent().of(Lane::Data).bytes - on_a.queued_bytes(Lane::Data) as u64;
        most_let_come = most_let_come.max(sent - on_b.received().of(Lane::Data).bytes);
    }
}
