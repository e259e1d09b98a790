//! What a client is told and refused during the handshake.

use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::time::Duration;

use qrbd_nbd::client::{ClientOptions, encode_option};
use qrbd_nbd::protocol::{command, option, option_reply};
use qrbd_nbd::{ClientError, TransmissionFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::support::*;
use crate::front::{Limits, bind_unix, serve_tcp};

#[test]
fn description_offers_every_flag_and_the_disk_alignment() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let client = server.client("r0").await;
        let all = TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO
            | TransmissionFlags::SEND_CACHE
            | TransmissionFlags::SEND_DF
            | TransmissionFlags::CAN_MULTI_CONN;
        assert!(client.negotiated.flags.contains(all));
        assert_eq!(client.negotiated.size, 1 << 20);
        let sizes = client.negotiated.block_sizes.unwrap();
        assert_eq!(
            (sizes.minimum, sizes.preferred, sizes.maximum_payload),
            (512, 4096, 32 << 20)
        );
    });
}

#[test]
fn empty_name_opens_the_only_volume() {
    run(async {
        let volume = FakeVolume::new(4096);
        let server = Server::one(&volume);
        let client = server.client("").await;
        assert_eq!(client.negotiated.size, 4096);
        assert_eq!(volume.openers.get(), 1);
    });
}

#[test]
fn secondary_is_refused_by_policy_with_the_reason() {
    run(async {
        let volume = FakeVolume::new(4096);
        volume.openable.set(false);
        let server = Server::one(&volume);
        let refused = TestClient::connect(server.raw().await, "r0", ClientOptions::default()).await;
        let Err(ClientError::Refused { kind, text, .. }) = refused else {
            panic!("opened a Secondary");
        };
        assert_eq!(kind, option_reply::ERR_POLICY);
        assert_eq!(text, "resource r0 is Secondary on this node");
        assert_eq!(volume.openers.get(), 0);
    });
}

#[test]
fn unknown_name_is_refused_as_unknown() {
    run(async {
        let server = Server::one(&FakeVolume::new(4096));
        let refused = TestClient::connect(server.raw().await, "r9", ClientOptions::default()).await;
        assert!(matches!(
            refused,
            Err(ClientError::Refused { kind, .. }) if kind == option_reply::ERR_UNKNOWN
        ));
    });
}

#[test]
fn size_that_no_client_could_use_is_refused_with_the_reason() {
    run(async {
        let volume = FakeVolume::sparse(u64::MAX - 511);
        let server = Server::one(&volume);
        let refused = TestClient::connect(server.raw().await, "r0", ClientOptions::default()).await;
        assert!(matches!(refused, Err(ClientError::Refused { text, .. }) if text.contains("2^63")));
        assert_eq!(volume.openers.get(), 0);
    });
}

async fn say(stream: &mut tokio::net::UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
}

async fn option_reply_of(stream: &mut tokio::net::UnixStream) -> (u32, Vec<u8>) {
    let mut header = [0; 20];
    stream.read_exact(&mut header).await.unwrap();
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut data = vec![0; number(16) as usize];
    stream.read_exact(&mut data).await.unwrap();
    (number(12), data)
}

#[test]
fn list_names_only_what_can_be_opened() {
    run(async {
        let (primary, secondary) = (FakeVolume::new(4096), FakeVolume::new(4096));
        secondary.openable.set(false);
        let exports = FakeExports(vec![("r0", primary), ("r1", secondary)]);
        let server = Server::start(exports, Limits::default());
        let mut stream = server.raw().await;
        stream.read_exact(&mut [0; 18]).await.unwrap();
        say(&mut stream, &3u32.to_be_bytes()).await;
        say(&mut stream, &encode_option(option::LIST, &[])).await;
        let (kind, data) = option_reply_of(&mut stream).await;
        assert_eq!(kind, option_reply::SERVER);
        assert_eq!(&data[4..6], b"r0");
        let (kind, _) = option_reply_of(&mut stream).await;
        assert_eq!(kind, option_reply::ACK);
    });
}

#[test]
fn asking_for_information_does_not_keep_the_volume_open() {
    run(async {
        let volume = FakeVolume::new(4096);
        let server = Server::one(&volume);
        let mut stream = server.raw().await;
        stream.read_exact(&mut [0; 18]).await.unwrap();
        say(&mut stream, &3u32.to_be_bytes()).await;
        let request = [&2u32.to_be_bytes()[..], b"r0", &0u16.to_be_bytes()].concat();
        say(&mut stream, &encode_option(option::INFO, &request)).await;
        while option_reply_of(&mut stream).await.0 != option_reply::ACK {}
        assert_eq!(volume.openers.get(), 0);
    });
}

#[test]
fn half_a_handshake_is_dropped_after_its_deadline() {
    run(async {
        let limits = Limits {
            handshake: Duration::from_millis(100),
            ..Limits::default()
        };
        let volume = FakeVolume::new(4096);
        let server = Server::start(FakeExports(vec![("r0", volume)]), limits);
        let mut stream = server.raw().await;
        say(&mut stream, &[0, 0]).await;
        let mut greeting = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut greeting))
            .await
            .expect("closed in time")
            .unwrap();
        assert_eq!(greeting.len(), 18);
    });
}

#[test]
fn garbage_in_the_handshake_closes_only_its_own_connection() {
    run(async {
        let volume = FakeVolume::new(4096);
        let server = Server::one(&volume);
        let mut healthy = server.client("r0").await;
        for garbage in [
            &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
            &[0xff; 4096],
            &[0; 64],
        ] {
            let mut stream = server.raw().await;
            say(&mut stream, garbage).await;
            let mut rest = Vec::new();
            // The server may close before it has read everything.
            let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
                .await
                .expect("closed in time");
        }
        healthy.send_write(1, 0, &[7; 512], false).await;
        healthy.receive_ok(1).await;
        assert_eq!(volume.openers.get(), 1);
    });
}

#[test]
fn connections_above_the_limit_are_closed_and_room_is_reused() {
    run(async {
        let limits = Limits {
            connections: 2,
            ..Limits::default()
        };
        let volume = FakeVolume::new(4096);
        let server = Server::start(FakeExports(vec![("r0", Rc::clone(&volume))]), limits);
        let first = server.client("r0").await;
        let _second = server.client("r0").await;
        let mut third = server.raw().await;
        assert_eq!(third.read(&mut [0; 18]).await.unwrap(), 0);
        drop(first);
        until(|| volume.openers.get() == 1).await;
        server.client("r0").await;
    });
}

#[test]
fn tcp_clients_are_served_as_local_ones_are() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let exports = FakeExports(vec![("r0", Rc::clone(&volume))]);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = spawn_local(serve_tcp(exports, listener, async move {
            let _ = stopped.await;
        }));
        let stream = TcpStream::connect(address).await.unwrap();
        let client = TestClient::connect(stream, "r0", ClientOptions::default()).await;
        let mut client = client.unwrap();
        client.send_write(1, 4096, &[8; 128 << 10], false).await;
        client.receive_ok(1).await;
        client.send(command::READ, 0, 2, 4096, 128 << 10).await;
        assert!(client.receive_ok(2).await.data == [8; 128 << 10]);
        stop.send(()).unwrap();
        assert!(client.receive().await.is_none());
        server.await.unwrap();
        assert_eq!(volume.openers.get(), 0);
    });
}

#[test]
fn socket_is_for_its_owner_and_replaces_only_a_stale_one() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        let listener = bind_unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            bind_unix(&path).unwrap_err().kind(),
            std::io::ErrorKind::AddrInUse
        );
        drop(listener);
        bind_unix(&path).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    });
}
