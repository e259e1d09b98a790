//! Every way a session can end.

use std::rc::Rc;
use std::time::Duration;

use qrbd_engine::api::ClientError;
use qrbd_nbd::Errno;
use qrbd_nbd::client::{RequestFlags, encode_request};
use qrbd_nbd::protocol::command;
use tokio::io::AsyncWriteExt;

use super::support::*;
use crate::front::Limits;

#[test]
fn client_that_disconnects_gets_its_last_replies() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        volume.hold.set(true);
        client.send_write(1, 0, &[5; 4096], false).await;
        let goodbye = encode_request(command::DISC, RequestFlags(0), qrbd_nbd::Cookie(0), 0, 0);
        client.stream.write_all(&goodbye).await.unwrap();
        until(|| volume.waiting() == 1).await;
        quiet().await;
        assert_eq!(volume.openers.get(), 1);
        volume.release();
        client.receive_ok(1).await;
        assert!(client.receive().await.is_none());
        assert_eq!(volume.openers.get(), 0);
    });
}

#[test]
fn volume_stays_open_until_the_last_request_of_a_vanished_client_is_done() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let limits = Limits {
            farewell: Duration::from_millis(50),
            ..Limits::default()
        };
        let server = Server::start(FakeExports(vec![("r0", Rc::clone(&volume))]), limits);
        let mut client = server.client("r0").await;
        volume.hold.set(true);
        client.send_write(1, 0, &[5; 4096], false).await;
        client.send(command::READ, 0, 2, 0, 1 << 20).await;
        until(|| volume.waiting() == 2).await;
        drop(client);
        quiet().await;
        quiet().await;
        assert_eq!(volume.openers.get(), 1);
        volume.release_one(0);
        quiet().await;
        assert_eq!(volume.openers.get(), 1);
        volume.release();
        until(|| volume.openers.get() == 0).await;
        assert_eq!(volume.pool.statistics().live_buffers, 0);
        assert_eq!(volume.data.borrow()[0], 5);
    });
}

#[test]
fn half_a_request_is_forgotten_with_its_client() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        let header = client.request(command::WRITE, 0, 1, 0, 64 << 10);
        client.stream.write_all(&header).await.unwrap();
        client.stream.write_all(&[1; 1000]).await.unwrap();
        quiet().await;
        drop(client);
        until(|| volume.openers.get() == 0).await;
        assert!(volume.log.borrow().is_empty());
        assert_eq!(volume.pool.statistics().live_buffers, 0);
    });
}

#[test]
fn garbage_after_the_handshake_closes_that_session_only() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let (mut bad, mut good) = (server.client("r0").await, server.client("r0").await);
        bad.stream.write_all(&[0x55; 100]).await.unwrap();
        assert!(bad.receive().await.is_none());
        until(|| volume.openers.get() == 1).await;
        good.send(command::READ, 0, 1, 0, 512).await;
        good.receive_ok(1).await;
    });
}

#[test]
fn demotion_answers_eshutdown_and_closes() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        volume.failure.set(Some((0, ClientError::NotPrimary)));
        client.send_write(1, 0, &[1; 512], false).await;
        assert_eq!(client.receive_error(1).await, Errno::Eshutdown);
        assert!(client.receive().await.is_none());
        until(|| volume.openers.get() == 0).await;
    });
}

#[test]
fn volume_taken_away_ends_idle_sessions_at_once() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        volume.close();
        assert!(client.receive().await.is_none());
        until(|| volume.openers.get() == 0).await;
    });
}

#[test]
fn volume_taken_away_answers_what_is_in_flight_and_refuses_the_rest() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        volume.hold.set(true);
        client.send(command::READ, 0, 1, 0, 512).await;
        // The header of a write whose payload comes after the end.
        let head = client.request(command::WRITE, 0, 2, 0, 64 << 10);
        client.stream.write_all(&head).await.unwrap();
        until(|| volume.waiting() == 1).await;
        quiet().await;
        volume.close();
        quiet().await;
        client.stream.write_all(&[1; 64 << 10]).await.unwrap();
        assert_eq!(client.receive_error(2).await, Errno::Eshutdown);
        client.send_write(3, 0, &[1; 4096], false).await;
        assert_eq!(client.receive_error(3).await, Errno::Eshutdown);
        volume.release();
        client.receive_ok(1).await;
        assert!(client.receive().await.is_none());
        assert_eq!(volume.log.borrow().len(), 1);
    });
}

#[test]
fn stopping_server_answers_what_is_in_flight() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let mut server = Server::one(&volume);
        let (mut busy, mut idle) = (server.client("r0").await, server.client("r0").await);
        volume.hold.set(true);
        busy.send_write(1, 0, &[3; 4096], false).await;
        until(|| volume.waiting() == 1).await;
        server.stop();
        assert!(idle.receive().await.is_none());
        assert!(!server.task.is_finished());
        volume.release();
        busy.receive_ok(1).await;
        assert!(busy.receive().await.is_none());
        server.task.await.unwrap();
        assert_eq!(volume.openers.get(), 0);
    });
}

#[test]
fn stopping_server_does_not_wait_forever_for_anybody() {
    run(async {
        let volume = FakeVolume::new(4 << 20);
        let limits = Limits {
            farewell: Duration::from_millis(100),
            ..Limits::default()
        };
        let mut server = Server::start(FakeExports(vec![("r0", Rc::clone(&volume))]), limits);
        // One whose request never ends, one that does not take its replies, one in the handshake.
        let (mut frozen, mut deaf) = (server.client("r0").await, server.client("r0").await);
        let _silent = server.raw().await;
        for cookie in 0..8 {
            deaf.send(command::READ, 0, cookie, 0, 4 << 20).await;
        }
        until(|| volume.log.borrow().len() >= 2).await;
        quiet().await;
        volume.hold.set(true);
        frozen.send(command::READ, 0, 1, 0, 512).await;
        until(|| volume.waiting() == 1).await;
        server.stop();
        tokio::time::timeout(PATIENCE, &mut server.task)
            .await
            .expect("the server ends")
            .unwrap();
        assert_eq!(volume.openers.get(), 0);
    });
}
