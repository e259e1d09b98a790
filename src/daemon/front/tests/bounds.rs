//! What a client may have in flight.

use std::rc::Rc;

use qrbd_nbd::protocol::command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::front::Limits;

fn limited(volume: &Rc<FakeVolume>, limits: Limits) -> Server {
    Server::start(FakeExports(vec![("r0", Rc::clone(volume))]), limits)
}

#[test]
fn requests_beyond_the_limit_wait_and_are_answered_later() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let limits = Limits {
            session_requests: 8,
            ..Limits::default()
        };
        let server = limited(&volume, limits);
        let mut client = server.client("r0").await;
        volume.hold.set(true);
        let mut bytes = Vec::new();
        for cookie in 0..20u64 {
            bytes.extend(client.request(command::WRITE, 0, cookie, cookie * 512, 512));
            bytes.extend([cookie as u8 + 1; 512]);
        }
        client.stream.write_all(&bytes).await.unwrap();
        until(|| volume.waiting() == 8).await;
        quiet().await;
        assert_eq!(volume.waiting(), 8);
        volume.release();
        for cookie in 0..20 {
            client.receive_ok(cookie).await;
        }
        assert!((0..20).all(|index| volume.data.borrow()[index * 512] == index as u8 + 1));
    });
}

#[test]
fn payload_bytes_of_a_session_are_bounded() {
    run(async {
        let volume = FakeVolume::new(4 << 20);
        let limits = Limits {
            session_bytes: 64 << 10,
            ..Limits::default()
        };
        let server = limited(&volume, limits);
        let mut client = server.client("r0").await;
        volume.hold.set(true);
        for cookie in 0..6 {
            client.send(command::READ, 0, cookie, 0, 32 << 10).await;
        }
        until(|| volume.waiting() == 2).await;
        quiet().await;
        assert_eq!(volume.waiting(), 2);
        volume.release();
        for cookie in 0..6 {
            client.receive_ok(cookie).await;
        }
        // A single request above the limit passes when nothing else is there.
        client.send(command::READ, 0, 9, 0, 1 << 20).await;
        client.receive_ok(9).await;
    });
}

#[test]
fn replies_that_a_client_does_not_take_count_against_it() {
    run(async {
        let volume = FakeVolume::new(4 << 20);
        let limits = Limits {
            session_bytes: 4 << 20,
            ..Limits::default()
        };
        let server = limited(&volume, limits);
        let mut client = server.client("r0").await;
        let mut bytes = Vec::new();
        for cookie in 0..40 {
            bytes.extend(client.request(command::READ, 0, cookie, 0, 1 << 20));
        }
        client.stream.write_all(&bytes).await.unwrap();
        quiet().await;
        quiet().await;
        // Of 40 MiB the limit, what the socket holds, and one request that waits to be written.
        assert!(
            volume.log.borrow().len() <= 8,
            "{}",
            volume.log.borrow().len()
        );
        assert!(volume.pool.statistics().peak_live_bytes <= 5 << 20);
        for cookie in 0..40 {
            client.receive_ok(cookie).await;
        }
    });
}

#[test]
fn sessions_share_one_budget_and_none_is_stuck() {
    run(async {
        let volume = FakeVolume::new(4 << 20);
        let limits = Limits {
            total_bytes: 128 << 10,
            ..Limits::default()
        };
        let server = limited(&volume, limits);
        let (mut greedy, mut modest) = (server.client("r0").await, server.client("r0").await);
        volume.hold.set(true);
        for cookie in 0..4 {
            greedy.send(command::READ, 0, cookie, 0, 64 << 10).await;
        }
        until(|| volume.waiting() == 2).await;
        // The first request of a session always passes, the second has to wait.
        modest.send(command::READ, 0, 0, 0, 64 << 10).await;
        modest.send(command::READ, 0, 1, 0, 64 << 10).await;
        until(|| volume.waiting() == 3).await;
        quiet().await;
        assert_eq!(volume.waiting(), 3);
        // Bytes that one session gives back let the other one go on.
        volume.release_one(0);
        volume.release_one(0);
        greedy.receive_ok(0).await;
        greedy.receive_ok(1).await;
        until(|| volume.waiting() >= 2).await;
        volume.release();
        greedy.receive_ok(2).await;
        greedy.receive_ok(3).await;
        modest.receive_ok(0).await;
        modest.receive_ok(1).await;
    });
}

#[test]
fn announced_payload_that_never_comes_does_not_block_others() {
    run(async {
        let volume = FakeVolume::new(64 << 20);
        let server = limited(&volume, Limits::default());
        let mut silent = server.client("r0").await;
        silent.send(command::WRITE, 0, 1, 0, 32 << 20).await;
        let mut other = server.client("r0").await;
        other.send_write(1, 0, &[1; 4096], false).await;
        other.receive_ok(1).await;
        drop(silent);
        until(|| volume.openers.get() == 1).await;
        assert_eq!(volume.pool.statistics().live_buffers, 0);
    });
}

#[test]
fn flood_of_refused_requests_is_bounded_by_the_client_reading() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = limited(&volume, Limits::default());
        let mut client = server.client("r0").await;
        let header = client.request(99, 0, 7, 0, 512);
        let flood = header.repeat(1000);
        let mut sent = 0;
        // Nobody reads the answers: the server stops reading requests at some point.
        while tokio::time::timeout(
            std::time::Duration::from_millis(200),
            client.stream.write_all(&flood),
        )
        .await
        .is_ok()
        {
            sent += 1;
            assert!(
                sent < 1000,
                "28 MB of requests were taken without an answer being read"
            );
        }
        let mut answers = vec![0; 1 << 20];
        assert!(client.stream.read(&mut answers).await.unwrap() > 0);
    });
}
