//! Frames on their lanes: order, independence, sizes.

use super::*;

#[tokio::test]
async fn frames_of_each_lane_arrive_whole_and_in_order_both_ways() {
    const FRAMES: u32 = 400;
    let (mut a, on_a, mut b, on_b) = pair().await;
    let size = |tag: u32| [0, 1, 100, 4096, 70_000][tag as usize % 5];
    for tag in 0..FRAMES {
        for lane in Lane::ALL {
            for session in [&on_a, &on_b] {
                let body = pattern(tag, tag as usize % 50);
                let payload = (size(tag) > 0).then(|| pattern(tag, size(tag)));
                session
                    .send(lane, head(tag, &body, size(tag)), payload)
                    .unwrap();
            }
        }
    }
    for node in [&mut a, &mut b] {
        let mut next = [0; 4];
        while next != [FRAMES; 4] {
            let frame = node.frame().await;
            let expected = &mut next[frame.lane as usize];
            assert_eq!(tag(&frame.head), *expected, "{}", frame.lane);
            assert_eq!(
                frame.head[12..],
                pattern(*expected, *expected as usize % 50)
            );
            assert_eq!(
                frame.payload.unwrap_or_default(),
                pattern(*expected, size(*expected))
            );
            *expected += 1;
        }
    }
    let (sent, received) = (on_a.sent(), on_b.received());
    assert_eq!(sent, received);
    assert_eq!(sent.of(Lane::Acks).frames, u64::from(FRAMES));
    assert_eq!(sent.all().frames, 4 * u64::from(FRAMES));
}

#[tokio::test]
async fn small_and_large_payloads_and_bodies_arrive_unchanged() {
    let (_a, on_a, mut b, _on_b) = pair().await;
    for (tag, length) in [0, 1, 64 << 10, 1 << 20, 32 << 20, 33 << 20]
        .into_iter()
        .enumerate()
    {
        send(&on_a, Lane::Data, tag as u32, length);
        let frame = b.frame().await;
        assert!(
            frame.payload.unwrap_or_default() == pattern(tag as u32, length),
            "payload of {length} bytes"
        );
    }
    let body = pattern(9, 1 << 20);
    on_a.send(Lane::Control, head(9, &body, 0), None).unwrap();
    assert!(b.frame().await.head[12..] == body);
}

#[tokio::test]
async fn a_stalled_data_lane_stops_neither_control_nor_acks_nor_resync() {
    const FRAME: usize = 1 << 20;
    let (mut a, on_a, mut b, on_b) = pair().await;
    for tag in 0..100 {
        send(&on_a, Lane::Data, tag, FRAME);
    }
    // The owner of b holds on to every frame until nothing more comes.
    let mut held = Vec::new();
    while let Ok(frame) = tokio::time::timeout(Duration::from_millis(500), b.frame()).await {
        held.push(frame);
    }
    assert!(held.len() < 100, "the lane has stalled");
    assert!(on_a.queued_bytes(Lane::Data) > 0);
    for tag in 0..200 {
        for lane in [Lane::Control, Lane::Acks, Lane::Resync] {
            send(&on_a, lane, tag, 100);
            let frame = b.frame().await;
            assert_eq!((frame.lane, super::tag(&frame.head)), (lane, tag));
            send(&on_b, lane, tag, 0);
            assert_eq!(super::tag(&a.frame().await.head), tag);
        }
    }
    let mut next = 0;
    for frame in held {
        assert_eq!(tag(&frame.head), next);
        next += 1;
    }
    while next < 100 {
        assert_eq!(tag(&b.frame().await.head), next);
        next += 1;
    }
    assert_eq!(on_a.queued_bytes(Lane::Data), 0);
}

#[tokio::test]
async fn stalled_data_and_resync_lanes_together_leave_control_free() {
    let (_a, on_a, mut b, _on_b) = pair().await;
    for tag in 0..80 {
        send(&on_a, Lane::Data, tag, 1 << 20);
        send(&on_a, Lane::Resync, tag, 1 << 20);
    }
    let mut held = Vec::new();
    while let Ok(frame) = tokio::time::timeout(Duration::from_millis(500), b.frame()).await {
        held.push(frame);
    }
    assert!(on_a.queued_bytes(Lane::Data) > 0 && on_a.queued_bytes(Lane::Resync) > 0);
    for tag in 0..1000 {
        send(&on_a, Lane::Control, tag, 1000);
        let frame = b.frame().await;
        assert_eq!((frame.lane, super::tag(&frame.head)), (Lane::Control, tag));
    }
}

#[tokio::test]
async fn control_overtakes_data_that_waits() {
    let (_a, on_a, mut b, _on_b) = pair().await;
    for tag in 0..64 {
        send(&on_a, Lane::Data, tag, 1 << 20);
    }
    send(&on_a, Lane::Control, 1000, 0);
    let mut before = 0;
    while b.frame().await.lane != Lane::Control {
        before += 1;
    }
    assert!(before < 16, "{before} MiB of data came before");
}

#[tokio::test]
async fn a_lossy_slow_link_changes_and_reorders_nothing() {
    let (a, on_a, mut b, _on_b) = pair().await;
    a.faults.lose_outbound(20_000);
    a.faults.delay_outbound(Duration::from_millis(2));
    b.faults.lose_outbound(20_000);
    for tag in 0..300 {
        send(&on_a, Lane::Data, tag, 20_000);
    }
    for tag in 0..300 {
        let frame = b.frame().await;
        assert_eq!(super::tag(&frame.head), tag);
        assert!(frame.payload.unwrap() == pattern(tag, 20_000));
    }
    assert!(on_a.stats().lost_packets > 0, "the fault was in effect");
}

#[tokio::test]
async fn jumbo_packets_in_full_batches_do_not_stall() {
    for payload_bytes in [1472, 8972] {
        let (_a, on_a, mut b, _on_b) =
            pair_with(|config| config.tuning.max_udp_payload_bytes = Some(payload_bytes)).await;
        // Finding the size of the path takes a few round trips.
        while on_a.stats().udp_payload_bytes < payload_bytes - 20 {
            send(&on_a, Lane::Control, 0, 0);
            b.frame().await;
        }
        for tag in 0..128 {
            send(&on_a, Lane::Data, tag, 1 << 20);
        }
        for _ in 0..128 {
            b.frame().await;
        }
        let stats = on_a.stats();
        assert!(
            stats.udp_payload_bytes >= payload_bytes - 20,
            "packets shrank to {}",
            stats.udp_payload_bytes
        );
        assert!(stats.lost_packets * 10 < stats.sent_packets, "{stats:?}");
    }
}

/// Announces nothing, so that its owner can put any bytes on the wire.
struct Unchecked;

impl FrameCodec for Unchecked {
    const HEADER_BYTES: usize = 12;

    fn lengths(_header: &[u8]) -> Result<FrameLengths, CodecError> {
        Ok(FrameLengths {
            body: 0,
            payload: 0,
        })
    }
}

#[tokio::test]
async fn a_frame_beyond_the_limits_ends_the_session_with_the_reason_on_both_sides() {
    let too_long = |at: usize, length: u32| {
        let mut bytes = head(1, b"", 0).to_vec();
        bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        Bytes::from(bytes)
    };
    let cases = [
        (too_long(4, (1 << 20) + 1), "body of 1048577 bytes"),
        (too_long(8, (33 << 20) + 1), "payload of 34603009 bytes"),
        (too_long(0, u32::MAX), "tag of all ones"),
    ];
    for (bytes, words) in cases {
        let mut liar: Node<Unchecked> = typed_node(0, BytesAllocator, |_| {});
        let mut b = node(1);
        let (on_liar, _) = join(&mut liar, &mut b).await;
        on_liar.send(Lane::Acks, bytes, None).unwrap();
        let (_, reason) = b.lost().await;
        assert!(
            matches!(&reason, LossReason::ProtocolViolation(what) if what.contains(words)),
            "{reason}"
        );
        let (_, reason) = liar.lost().await;
        assert!(
            reason.to_string().contains("acks lane") && reason.to_string().contains(words),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn frame_of_a_better_lane_on_a_thin_line_waits_for_little_of_the_resync_data_before_it() {
    const FRAME: usize = 32 << 10;
    const FRAMES: u32 = 512;
    // A second of the line: what is in flight while the first round trips find out how thin it is. Later it is a quarter of that.
    const MOST_BEFORE: usize = 2 << 20;
    for delay_ms in [0, 4] {
        let (mut a, on_a, mut b, on_b) = pair().await;
        a.faults.limit_outbound(2 << 20);
        for node in [&a, &b] {
            node.faults.delay_outbound(Duration::from_millis(delay_ms));
        }
        for tag in 0..FRAMES {
            send(&on_a, Lane::Resync, tag, FRAME);
        }
        let mut arrived = 0;
        // At once, then again and again while the line is full.
        for question in 0..6 {
            let lane = [Lane::Control, Lane::Acks, Lane::Data][question as usize % 3];
            send(&on_a, lane, question, 0);
            let mut before = 0;
            loop {
                let frame = b.frame().await;
                if frame.lane == lane {
                    assert_eq!(tag(&frame.head), question);
                    break;
                }
                before += FRAME;
            }
            arrived += before;
            assert!(
                before <= MOST_BEFORE,
                "a frame of the {lane} lane, {delay_ms} ms: it waited for {before} bytes"
            );
            // The answer comes beside what is measured: nothing is in its way.
            send(&on_b, Lane::Control, question, 0);
            assert_eq!(tag(&a.frame().await.head), question);
            for _ in 0..12 {
                assert_eq!(b.frame().await.lane, Lane::Resync);
                arrived += FRAME;
            }
        }
        assert!(
            arrived < FRAMES as usize * FRAME,
            "the line was full all the time"
        );
    }
}
