//! Lives of sessions: who dials, which connection counts, how they end.

use super::*;
use crate::CloseCode;
use crate::ids::ProtocolVersion;

/// Whether frames go both ways between the two handles.
async fn are_one<A: PayloadAllocator, B: PayloadAllocator>(
    a: &mut Node<Codec, A>,
    on_a: &Session,
    b: &mut Node<Codec, B>,
    on_b: &Session,
) {
    send(on_a, Lane::Control, 41, 0);
    send(on_b, Lane::Control, 42, 0);
    assert_eq!(tag(&b.frame().await.head), 41);
    assert_eq!(tag(&a.frame().await.head), 42);
}

#[tokio::test]
async fn both_dial_at_once_and_hold_the_same_single_session() {
    for round in 0..20 {
        let (mut a, mut b) = (node(0), node(1));
        // Both orders, so that either connection may be the first to come up.
        if round % 2 == 0 {
            a.add(b.id, b.address());
            b.add(a.id, a.address());
        } else {
            b.add(a.id, a.address());
            a.add(b.id, b.address());
        }
        let (on_a, on_b) = tokio::join!(a.connected(), b.connected());
        assert_ne!(on_a.dialed_by_us(), on_b.dialed_by_us(), "round {round}");
        let (seen_a, seen_b) = tokio::join!(
            a.watch(Duration::from_millis(100)),
            b.watch(Duration::from_millis(100))
        );
        assert_eq!((seen_a, seen_b), (vec![], vec![]), "round {round}");
        are_one(&mut a, &on_a, &mut b, &on_b).await;
    }
}

#[tokio::test]
async fn both_dial_over_a_slow_and_lossy_link_and_end_with_one_session() {
    for round in 0..5 {
        let (mut a, mut b) = (node(0), node(1));
        for faults in [&a.faults, &b.faults] {
            faults.delay_outbound(Duration::from_millis(5 + 7 * round));
            faults.lose_outbound(50_000);
        }
        b.add(a.id, a.address());
        a.add(b.id, b.address());
        let mut on_a = a.connected().await;
        let mut on_b = b.connected().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Whatever happened meanwhile, the newest handles belong together.
        while let Some(event) = a.events.try_recv() {
            if let Event::Connected { handle, .. } = event {
                on_a = handle;
            }
        }
        while let Some(event) = b.events.try_recv() {
            if let Event::Connected { handle, .. } = event {
                on_b = handle;
            }
        }
        assert!(on_a.is_open() && on_b.is_open());
        assert_ne!(on_a.dialed_by_us(), on_b.dialed_by_us());
        are_one(&mut a, &on_a, &mut b, &on_b).await;
    }
}

#[tokio::test]
async fn one_side_that_can_dial_is_enough_whichever_it_is() {
    for (dialer, acceptor) in [(0, 1), (1, 0)] {
        let (mut a, mut b) = (node(dialer), node(acceptor));
        let (on_a, on_b) = join(&mut a, &mut b).await;
        assert!(on_a.dialed_by_us() && !on_b.dialed_by_us());
        assert_eq!((on_a.peer(), on_b.peer()), (b.id, a.id));
        assert_eq!((on_a.remote(), on_b.remote()), (b.address(), a.address()));
        are_one(&mut a, &on_a, &mut b, &on_b).await;
    }
}

#[tokio::test]
async fn dialing_goes_on_until_the_peer_is_there() {
    let (mut a, mut b) = (node(0), node(1));
    a.add(b.id, b.address());
    assert_eq!(
        a.dial_failed().await,
        RefusalReason::ByPeer(CloseCode::UnknownNode)
    );
    assert_eq!(
        a.dial_failed().await,
        RefusalReason::ByPeer(CloseCode::UnknownNode)
    );
    assert_eq!(
        b.refused().await,
        (a.address(), RefusalReason::UnknownNode(a.id))
    );
    b.add(a.id, a.address());
    let on_a = a.connected().await;
    assert!(on_a.is_open());
}

#[tokio::test]
async fn a_restarted_peer_replaces_its_old_session_at_once() {
    for (survivor_id, restarted_id) in [(0, 1), (1, 0)] {
        let (mut survivor, mut old) = (node(survivor_id), node(restarted_id));
        let (first, _) = join(&mut survivor, &mut old).await;
        // It dies without a word.
        old.faults.block_outbound(true);
        drop(old);
        let mut new = node(restarted_id);
        let dead_since = std::time::Instant::now();
        new.add(survivor.id, survivor.address());
        let (session, reason) = survivor.lost().await;
        assert_eq!((session, reason), (first.id(), LossReason::PeerRestarted));
        let second = survivor.connected().await;
        assert!(
            dead_since.elapsed() < Duration::from_secs(2),
            "long before the idle timeout"
        );
        assert_ne!(second.id(), first.id());
        assert!(!first.is_open());
        let on_new = new.connected().await;
        are_one(&mut survivor, &second, &mut new, &on_new).await;
    }
}

#[tokio::test]
async fn a_peer_that_lost_the_session_unnoticed_gets_a_new_one_at_once() {
    for (first_id, second_id) in [(0, 1), (1, 0)] {
        let (mut a, mut b) = (node(first_id), node(second_id));
        a.add(b.id, b.address());
        b.add(a.id, a.address());
        let (old_on_a, old_on_b) = tokio::join!(a.connected(), b.connected());
        // b closes it, but a does not hear that; a itself must not dial either.
        b.faults.block_outbound(true);
        old_on_b.close("given up");
        assert_eq!(b.lost().await.1, LossReason::Closed("given up".into()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        b.faults.block_outbound(false);
        let (session, _) = a.lost().await;
        assert_eq!(session, old_on_a.id());
        let (on_a, on_b) = tokio::join!(a.connected(), b.connected());
        are_one(&mut a, &on_a, &mut b, &on_b).await;
    }
}

#[tokio::test]
async fn a_partition_in_either_direction_is_noticed_by_both_and_heals() {
    for blocked_at_a in [true, false] {
        let quick = |config: &mut EndpointConfig| {
            config.tuning.idle_timeout = Duration::from_millis(800);
            config.tuning.keep_alive_interval = Duration::from_millis(200);
        };
        let (mut a, mut b) = (node_with(0, quick), node_with(1, quick));
        a.add(b.id, b.address());
        b.add(a.id, a.address());
        let (on_a, on_b) = tokio::join!(a.connected(), b.connected());
        let faults = if blocked_at_a {
            a.faults.clone()
        } else {
            b.faults.clone()
        };
        faults.block_outbound(true);
        faults.block_inbound(!blocked_at_a);
        let ((lost_a, reason_a), (lost_b, _)) = tokio::join!(a.lost(), b.lost());
        assert_eq!((lost_a, lost_b), (on_a.id(), on_b.id()));
        assert!(
            matches!(
                reason_a,
                LossReason::TimedOut(_) | LossReason::ClosedByPeer { .. }
            ),
            "{reason_a}"
        );
        faults.block_outbound(false);
        faults.block_inbound(false);
        let (on_a, on_b) = tokio::join!(a.connected(), b.connected());
        are_one(&mut a, &on_a, &mut b, &on_b).await;
    }
}

#[tokio::test]
async fn closing_tells_the_peer_why_and_dialing_starts_again() {
    let (mut a, on_a, mut b, on_b) = pair().await;
    on_b.close("maintenance\n of the other node");
    assert_eq!(
        b.lost().await,
        (
            on_b.id(),
            LossReason::Closed("maintenance\n of the other node".into())
        )
    );
    let text = "maintenance? of the other node".into();
    assert_eq!(
        a.lost().await,
        (
            on_a.id(),
            LossReason::ClosedByPeer {
                code: CloseCode::Closed,
                text
            }
        )
    );
    let (on_a, on_b) = tokio::join!(a.connected(), b.connected());
    are_one(&mut a, &on_a, &mut b, &on_b).await;
}

#[tokio::test]
async fn a_removed_peer_is_lost_here_and_refused_from_then_on() {
    let (mut a, on_a, mut b, on_b) = pair().await;
    assert!(b.endpoint.session(a.id).is_some());
    assert!(b.endpoint.remove_peer(a.id));
    assert!(!b.endpoint.remove_peer(a.id));
    assert!(b.endpoint.session(a.id).is_none());
    assert_eq!(b.lost().await, (on_b.id(), LossReason::PeerRemoved));
    let (session, reason) = a.lost().await;
    let text = String::new();
    assert_eq!(
        (session, reason),
        (
            on_a.id(),
            LossReason::ClosedByPeer {
                code: CloseCode::PeerRemoved,
                text
            }
        )
    );
    assert_eq!(
        a.dial_failed().await,
        RefusalReason::ByPeer(CloseCode::UnknownNode)
    );
    a.endpoint.remove_peer(b.id);
    a.watch(Duration::from_millis(50)).await;
    assert_eq!(
        a.watch(Duration::from_millis(500)).await,
        Vec::<String>::new(),
        "it has stopped dialing"
    );
}

#[tokio::test]
async fn after_the_loss_nothing_of_a_session_is_delivered() {
    for _ in 0..10 {
        let (_a, on_a, mut b, on_b) = pair().await;
        for tag in 0..200 {
            send(&on_a, Lane::Data, tag, 10_000);
            send(&on_a, Lane::Resync, tag, 10_000);
        }
        b.frame().await;
        on_b.close("in the middle");
        let mut lost = 0;
        for seen in b.watch(Duration::from_millis(60)).await {
            let frame = seen.starts_with("Frame 1 ");
            assert!(!(frame && lost > 0), "a frame after the loss");
            lost += usize::from(seen.starts_with("Lost 1 "));
        }
        assert_eq!(lost, 1);
    }
}

#[tokio::test]
async fn shutdown_tells_every_peer_and_ends_the_events() {
    let (mut hub, mut one, mut two) = (node(0), node(1), node(2));
    for leaf in [&one, &two] {
        hub.only_accept(leaf.id);
        leaf.add(hub.id, hub.address());
    }
    let (on_one, on_two) = tokio::join!(one.connected(), two.connected());
    let (first, second) = (hub.connected().await, hub.connected().await);
    let mut peers = [first.peer(), second.peer()];
    peers.sort();
    assert_eq!(peers, [one.id, two.id]);
    let Node {
        endpoint,
        mut events,
        ..
    } = hub;
    endpoint.shutdown().await;
    for (leaf, session) in [(&mut one, on_one), (&mut two, on_two)] {
        let text = String::new();
        assert_eq!(
            leaf.lost().await,
            (
                session.id(),
                LossReason::ClosedByPeer {
                    code: CloseCode::ShutDown,
                    text
                }
            )
        );
    }
    let mut lost = 0;
    let drain = async {
        while let Some(event) = events.recv().await {
            assert!(
                matches!(
                    event,
                    Event::Lost {
                        reason: LossReason::ShutDown,
                        ..
                    }
                ),
                "{}",
                summary(&event)
            );
            lost += 1;
        }
    };
    tokio::time::timeout(PATIENCE, drain).await.unwrap();
    assert_eq!(lost, 2);
}

#[tokio::test]
async fn the_newest_common_version_is_agreed_on() {
    let mut a = node_with(0, |config| config.versions = VersionRange::new(1, 7));
    let mut b = node_with(1, |config| config.versions = VersionRange::new(3, 5));
    let (on_a, on_b) = join(&mut a, &mut b).await;
    assert_eq!(
        (on_a.version(), on_b.version()),
        (ProtocolVersion(5), ProtocolVersion(5))
    );
}

#[tokio::test]
async fn impossible_peers_are_refused_by_name() {
    let a = node(3);
    let peer = |node, remote: &str| PeerConfig {
        node: NodeId(node),
        remote: remote.parse().unwrap(),
        key: key(),
        connect_interval: Duration::from_secs(10),
    };
    use crate::AddPeerError::*;
    assert_eq!(
        a.endpoint.add_peer(peer(3, "127.0.0.1:9")),
        Err(OwnNode(NodeId(3)))
    );
    assert_eq!(a.endpoint.add_peer(peer(4, "127.0.0.1:9")), Ok(()));
    assert_eq!(
        a.endpoint.add_peer(peer(4, "127.0.0.1:9")),
        Err(Exists(NodeId(4)))
    );
    assert!(matches!(
        a.endpoint.add_peer(peer(5, "[::1]:9")),
        Err(AddressFamily { .. })
    ));
}

#[tokio::test]
async fn both_address_families_work_and_a_wildcard_socket_serves_both() {
    let bound = |id, local: &'static str| {
        node_with(id, move |config| config.local = local.parse().unwrap())
    };
    let mut hub = bound(0, "[::]:0");
    let port = hub.address().port();
    for (id, local, remote) in [(1, "[::1]:0", "::1"), (2, "127.0.0.1:0", "127.0.0.1")] {
        let mut leaf = bound(id, local);
        hub.only_accept(leaf.id);
        leaf.add(hub.id, SocketAddr::new(remote.parse().unwrap(), port));
        let (on_leaf, on_hub) = tokio::join!(leaf.connected(), hub.connected());
        assert_eq!(on_hub.remote(), leaf.address());
        are_one(&mut leaf, &on_leaf, &mut hub, &on_hub).await;
        assert!(hub.endpoint.remove_peer(leaf.id));
        hub.lost().await;
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_is_named() {
    let taken = node(0);
    let mut config = config(1, &taken.faults);
    config.local = taken.address();
    let error = Endpoint::<Codec, _>::bind(config.clone(), BytesAllocator)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains(&taken.address().to_string()),
        "{error}"
    );
    config.resource = "r0\n".into();
    let error = Endpoint::<Codec, _>::bind(config, BytesAllocator)
        .err()
        .unwrap();
    assert!(error.to_string().contains(r#""r0\n""#), "{error}");
}
