//! Who is turned away, and what a stranger can do.

use std::sync::Arc;

use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::*;
use crate::CloseCode;
use crate::handshake::exporter;
use crate::limits::{HANDSHAKE_TIMEOUT, MAX_UNPROVEN_FROM_OTHERS, UNPROVEN_RECEIVE_WINDOW_BYTES};
use crate::proof::{Hello, Message, Role, Transcript};
use crate::tls;

/// A plain QUIC endpoint that speaks our TLS but not our proof.
fn raw_endpoint(local: &str) -> quinn::Endpoint {
    let (client, server) = tls::configurations().unwrap();
    let server = quinn::ServerConfig::with_crypto(Arc::new(server));
    let mut endpoint = quinn::Endpoint::server(server, local.parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
    endpoint
}

async fn raw_connection(endpoint: &quinn::Endpoint, remote: SocketAddr) -> Connection {
    endpoint
        .connect(remote, tls::SERVER_NAME)
        .unwrap()
        .await
        .unwrap()
}

async fn closed_with(connection: &Connection) -> CloseCode {
    match tokio::time::timeout(PATIENCE, connection.closed())
        .await
        .expect("the connection is closed")
    {
        quinn::ConnectionError::ApplicationClosed(close) => CloseCode::from_wire(close.error_code),
        other => panic!("{other}"),
    }
}

fn hello(node: u8, peer: u8) -> Hello {
    Hello {
        versions: VersionRange::new(1, 1),
        node: NodeId(node),
        peer: NodeId(peer),
        instance: 1,
        last_decision: 0,
        nonce: [3; 32],
        resource: "r0".into(),
    }
}

/// Reads what comes until the stream ends.
async fn read_all(receive: &mut RecvStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
        bytes.extend_from_slice(&chunk.bytes);
    }
    bytes
}

#[tokio::test]
async fn a_wrong_key_is_refused_with_that_word_on_both_sides() {
    for (dialer, acceptor) in [(0, 1), (1, 0)] {
        let (mut a, mut b) = (node(dialer), node(acceptor));
        b.only_accept(a.id);
        let other = SharedKey::from_secret("not the same").unwrap();
        a.add_with(b.id, b.address(), other, Duration::from_millis(100));
        assert_eq!(
            a.dial_failed().await,
            RefusalReason::ByPeer(CloseCode::WrongKey)
        );
        let (remote, reason) = b.refused().await;
        assert_eq!(
            (remote, &reason),
            (a.address(), &RefusalReason::WrongKey(a.id))
        );
        assert!(
            reason.to_string().contains("wrong key")
                && !reason.to_string().contains("not the same")
        );
        let seen = b.watch(Duration::from_millis(400)).await;
        assert!(
            !seen.is_empty()
                && seen
                    .iter()
                    .all(|seen| seen.starts_with("Refused wrong key")),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn an_acceptor_with_a_wrong_key_is_found_out_by_the_dialer() {
    // It lets any dialer's proof pass, which a real one would not.
    let fake = raw_endpoint("127.0.0.1:0");
    let mut a = node(0);
    a.add(NodeId(1), fake.local_addr().unwrap());
    let connection = fake.accept().await.unwrap().await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let mut dialer_hello = vec![0; 66];
    receive.read_exact(&mut dialer_hello).await.unwrap();
    let own_hello = Message::Hello(hello(1, 0)).encode();
    send.write_all(&own_hello).await.unwrap();
    let mut proof = [0; 40];
    receive.read_exact(&mut proof).await.unwrap();
    let transcript = Transcript::new(exporter(&connection).unwrap(), dialer_hello, own_hello);
    let other = SharedKey::from_secret("not the same").unwrap();
    send.write_all(&Message::Proof(transcript.prove(Role::Acceptor, &other)).encode())
        .await
        .unwrap();
    assert_eq!(closed_with(&connection).await, CloseCode::WrongKey);
    assert_eq!(a.dial_failed().await, RefusalReason::WrongKey(NodeId(1)));
    assert!(
        read_all(&mut receive).await.is_empty(),
        "nothing follows the failed proof"
    );
}

#[tokio::test]
async fn an_acceptor_that_returns_the_dialers_own_proof_is_found_out() {
    let fake = raw_endpoint("127.0.0.1:0");
    let mut a = node(0);
    a.add(NodeId(1), fake.local_addr().unwrap());
    let connection = fake.accept().await.unwrap().await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    receive.read_exact(&mut [0; 66]).await.unwrap();
    send.write_all(&Message::Hello(hello(1, 0)).encode())
        .await
        .unwrap();
    let mut proof = [0; 40];
    receive.read_exact(&mut proof).await.unwrap();
    send.write_all(&proof).await.unwrap();
    assert_eq!(closed_with(&connection).await, CloseCode::WrongKey);
    assert_eq!(a.dial_failed().await, RefusalReason::WrongKey(NodeId(1)));
}

#[tokio::test]
async fn other_resource_wrong_node_and_version_are_refused_by_name() {
    let mut b = node_with(1, |config| config.versions = VersionRange::new(4, 5));
    b.only_accept(NodeId(0));

    let mut other = node_with(0, |config| config.resource = "r1".into());
    other.add(b.id, b.address());
    assert_eq!(
        other.dial_failed().await,
        RefusalReason::ByPeer(CloseCode::OtherResource)
    );
    let (ours, theirs) = ("r0".into(), "r1".into());
    assert_eq!(
        b.refused().await,
        (
            other.address(),
            RefusalReason::OtherResource { ours, theirs }
        )
    );
    drop(other);

    let mut lost = node_with(0, |config| config.versions = VersionRange::new(4, 5));
    lost.add(NodeId(7), b.address());
    assert_eq!(
        lost.dial_failed().await,
        RefusalReason::ByPeer(CloseCode::WrongNode)
    );
    let (expected, found) = (NodeId(7), NodeId(1));
    assert_eq!(
        b.refused().await,
        (lost.address(), RefusalReason::WrongNode { expected, found })
    );
    drop(lost);

    let mut stranger = node_with(6, |config| config.versions = VersionRange::new(4, 5));
    stranger.add(b.id, b.address());
    assert_eq!(
        stranger.dial_failed().await,
        RefusalReason::ByPeer(CloseCode::UnknownNode)
    );
    assert_eq!(
        b.refused().await,
        (stranger.address(), RefusalReason::UnknownNode(NodeId(6)))
    );
    drop(stranger);

    let mut old = node_with(0, |config| config.versions = VersionRange::new(1, 3));
    old.add(b.id, b.address());
    assert_eq!(
        old.dial_failed().await,
        RefusalReason::ByPeer(CloseCode::NoCommonVersion)
    );
    let (ours, theirs) = (VersionRange::new(4, 5), VersionRange::new(1, 3));
    assert_eq!(
        b.refused().await,
        (
            old.address(),
            RefusalReason::NoCommonVersion { ours, theirs }
        )
    );
}

/// Copies one direction of the proof.
async fn relay(mut from: RecvStream, mut to: SendStream) {
    while let Ok(Some(chunk)) = from.read_chunk(usize::MAX, true).await {
        if to.write_chunk(chunk.bytes).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_man_in_the_middle_cannot_pass_the_proofs_on() {
    let middle = raw_endpoint("127.0.0.1:0");
    let (mut a, mut b) = (node(0), node(1));
    b.only_accept(a.id);
    // Both nodes have the right key; only the way between them is wrong.
    a.add_with(
        b.id,
        middle.local_addr().unwrap(),
        key(),
        Duration::from_secs(3600),
    );
    let to_a = middle.accept().await.unwrap().await.unwrap();
    let to_b = raw_connection(&middle, b.address()).await;
    let (send_a, receive_a) = to_a.accept_bi().await.unwrap();
    let (send_b, receive_b) = to_b.open_bi().await.unwrap();
    tokio::spawn(relay(receive_a, send_b));
    let back = tokio::spawn(relay(receive_b, send_a));
    let (remote, reason) = b.refused().await;
    assert_eq!(
        (remote, reason),
        (middle.local_addr().unwrap(), RefusalReason::WrongKey(a.id))
    );
    assert_eq!(closed_with(&to_b).await, CloseCode::WrongKey);
    back.await.unwrap();
    to_a.close(VarInt::from_u32(0), b"");
    a.dial_failed().await;
    assert!(a.endpoint.session(b.id).is_none() && b.endpoint.session(a.id).is_none());
}

#[tokio::test]
async fn a_stranger_learns_a_hello_and_nothing_that_helps_to_guess_the_key() {
    let mut b = node(1);
    b.only_accept(NodeId(0));
    let stranger = raw_endpoint("127.0.0.1:0");
    let connection = raw_connection(&stranger, b.address()).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&Message::Hello(hello(0, 1)).encode())
        .await
        .unwrap();
    let mut received = vec![0; 66];
    receive.read_exact(&mut received).await.unwrap();
    assert!(matches!(Message::decode(&received), Ok(Message::Hello(_))));
    send.write_all(&Message::Proof([0; 32]).encode())
        .await
        .unwrap();
    assert_eq!(read_all(&mut receive).await, b"", "a proof or more");
    assert_eq!(closed_with(&connection).await, CloseCode::WrongKey);
    assert_eq!(b.refused().await.1, RefusalReason::WrongKey(NodeId(0)));
}

#[tokio::test]
async fn malformed_proofs_are_refused_with_what_is_wrong() {
    let mut b = node(1);
    b.only_accept(NodeId(0));
    let stranger = raw_endpoint("127.0.0.1:0");
    let mut other_format = Message::Verified.encode();
    other_format[4] = 9;
    let cases: [(Vec<u8>, &str); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "QRBD"),
        (other_format, "format 9"),
        (b"QRBD\x01\x01\xff\xff".to_vec(), "65535 bytes"),
        (b"QRBD\x01\x63\x08\x00".to_vec(), "type 99"),
        (Message::Start { decision: 1 }.encode(), "Start out of turn"),
        (Message::Proof([0; 32]).encode(), "Proof out of turn"),
    ];
    for (bytes, words) in cases {
        let connection = raw_connection(&stranger, b.address()).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        assert_eq!(
            closed_with(&connection).await,
            CloseCode::MalformedProof,
            "{words}"
        );
        let (_, reason) = b.refused().await;
        assert!(
            matches!(reason, RefusalReason::Malformed(_)) && reason.to_string().contains(words),
            "{reason}"
        );
    }
    // A stream that ends early.
    let connection = raw_connection(&stranger, b.address()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(b"QRBD").await.unwrap();
    send.finish().unwrap();
    assert_eq!(closed_with(&connection).await, CloseCode::MalformedProof);
}

#[tokio::test]
async fn without_a_proof_no_lane_opens_and_only_a_little_is_taken() {
    let b = node(1);
    let stranger = raw_endpoint("127.0.0.1:0");
    let connection = raw_connection(&stranger, b.address()).await;
    let short = Duration::from_millis(300);
    assert!(
        tokio::time::timeout(short, connection.open_uni())
            .await
            .is_err(),
        "a lane was allowed"
    );
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    assert!(
        tokio::time::timeout(short, connection.open_bi())
            .await
            .is_err(),
        "a second stream was allowed"
    );
    assert!(
        connection.max_datagram_size().is_none(),
        "datagrams were allowed"
    );
    let mut taken = 0;
    let flood = async {
        // A header that announces 200 bytes, and far more than that.
        let mut next = b"QRBD\x01\x01\xc8\x00".to_vec();
        while let Ok(count) = send.write(&next).await {
            taken += count;
            next = vec![0; 1024];
        }
    };
    let _ = tokio::time::timeout(short, flood).await;
    // What is read of the proof is credited again.
    assert!(
        taken <= UNPROVEN_RECEIVE_WINDOW_BYTES as usize + 256,
        "{taken} bytes were taken"
    );
}

#[tokio::test]
async fn garbage_datagrams_do_nothing() {
    let (mut a, on_a, mut b, on_b) = pair().await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for tag in 0..2000 {
        let mut bytes = pattern(tag, tag as usize % 1400 + 1).to_vec();
        if tag % 2 == 0 {
            // Long header, version 1, so that it looks like a first packet.
            bytes.splice(..0, [0xc3, 0, 0, 0, 1, 8]);
            bytes.resize(1200, tag as u8);
        }
        socket.send_to(&bytes, b.address()).unwrap();
        if tag % 50 == 0 {
            send(&on_a, Lane::Control, tag, 10);
            assert_eq!(super::tag(&b.frame().await.head), tag);
        }
    }
    assert_eq!(
        a.watch(Duration::from_millis(200)).await,
        Vec::<String>::new()
    );
    assert_eq!(
        b.watch(Duration::from_millis(10)).await,
        Vec::<String>::new()
    );
    assert!(on_b.is_open());
}

#[tokio::test]
async fn half_open_handshakes_are_few_end_in_time_and_do_not_keep_a_peer_out() {
    let mut b = node(1);
    b.only_accept(NodeId(0));
    // From an address where no peer is configured.
    let stranger = raw_endpoint("127.0.0.2:0");
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..MAX_UNPROVEN_FROM_OTHERS + 20 {
        match stranger
            .connect(b.address(), tls::SERVER_NAME)
            .unwrap()
            .await
        {
            Ok(connection) => open.push(connection),
            Err(_) => refused += 1,
        }
    }
    assert_eq!((open.len(), refused), (MAX_UNPROVEN_FROM_OTHERS, 20));

    let mut a = node(0);
    a.add(b.id, b.address());
    let begun = std::time::Instant::now();
    let (on_a, _on_b) = tokio::join!(a.connected(), b.connected());
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "a peer was kept out"
    );

    for connection in &open {
        assert_eq!(closed_with(connection).await, CloseCode::HandshakeTimedOut);
    }
    assert_eq!(
        b.refused().await.1,
        RefusalReason::TimedOut(HANDSHAKE_TIMEOUT)
    );
    assert!(on_a.is_open());
    let again = raw_connection(&stranger, b.address()).await;
    assert!(again.close_reason().is_none(), "the places are free again");
}

#[tokio::test]
async fn a_peer_that_never_answers_is_reported_after_the_deadline() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut a = node(0);
    a.add(NodeId(1), silent.local_addr().unwrap());
    assert_eq!(
        a.dial_failed().await,
        RefusalReason::TimedOut(HANDSHAKE_TIMEOUT)
    );
}

#[tokio::test]
async fn another_protocol_over_quic_is_refused_before_the_proof() {
    let mut b = node(1);
    let mut crypto = rustls::ClientConfig::builder_with_provider(
        rustls::crypto::ring::default_provider().into(),
    )
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(rustls::RootCertStore::empty())
    .with_no_client_auth();
    crypto.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let browser = raw_endpoint("127.0.0.1:0");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let outcome = browser
        .connect_with(config, b.address(), "qrbd")
        .unwrap()
        .await;
    assert!(outcome.is_err());
    assert!(matches!(b.refused().await.1, RefusalReason::Transport(_)));
}

#[tokio::test]
async fn a_dial_given_up_before_an_answer_does_not_keep_the_address_after_the_shutdown() {
    let a = node(0);
    a.only_accept(NodeId(1));
    let address = a.address();
    for _ in 0..3 {
        let stranger = raw_endpoint("127.0.0.1:0");
        // Its first packet says that it is over.
        drop(stranger.connect(address, tls::SERVER_NAME).unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let started = std::time::Instant::now();
    let Node {
        endpoint, events, ..
    } = a;
    endpoint.shutdown().await;
    while std::net::UdpSocket::bind(address).is_err() {
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "the address is still taken"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(events);
}

#[tokio::test]
async fn a_dial_that_its_node_gave_up_between_tls_and_the_proof_is_no_refusal() {
    let mut a = node(0);
    a.only_accept(NodeId(1));
    let stranger = raw_endpoint("127.0.0.1:0");
    // Dropped, as by a dial loop whose peer has a session now: QUIC closes it with code 0.
    drop(raw_connection(&stranger, a.address()).await);
    stranger.wait_idle().await;
    // It is told apart from a peer that refuses: the next event is that one's.
    let connection = raw_connection(&stranger, a.address()).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&Message::Hello(hello(1, 0)).encode())
        .await
        .unwrap();
    receive.read_exact(&mut [0; 66]).await.unwrap();
    connection.close(CloseCode::WrongKey.wire(), b"");
    assert_eq!(
        a.refused().await.1,
        RefusalReason::ByPeer(CloseCode::WrongKey)
    );
}
