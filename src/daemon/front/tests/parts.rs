//! Requests longer than the engine takes at once.

use qrbd_engine::api::ClientError;
use qrbd_engine::limits::MAX_REQUEST_BYTES;
use qrbd_nbd::Errno;
use qrbd_nbd::protocol::command;

use super::support::*;

const PART: u64 = MAX_REQUEST_BYTES as u64;

#[test]
fn long_trim_is_split_without_gaps_and_answered_once() {
    run(async {
        let volume = FakeVolume::sparse(8 << 30);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        let length = u32::MAX - 511;
        client.send(command::TRIM, 0, 1, 4096, length).await;
        client.receive_ok(1).await;
        let mut log = volume.log.borrow().clone();
        log.sort_by_key(|entry| entry.1);
        let mut next = 4096;
        for (kind, offset, length, _) in log {
            assert_eq!((kind, offset), ("discard", next));
            assert!(length <= MAX_REQUEST_BYTES);
            next += u64::from(length);
        }
        assert_eq!(next, 4096 + u64::from(length));
        client.send(command::FLUSH, 0, 2, 0, 0).await;
        client.receive_ok(2).await;
    });
}

#[test]
fn few_parts_are_at_the_engine_at_once() {
    run(async {
        let volume = FakeVolume::sparse(8 << 30);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        client
            .send(command::WRITE_ZEROES, 0, 1, 0, 40 * MAX_REQUEST_BYTES)
            .await;
        client.receive_ok(1).await;
        assert_eq!(volume.log.borrow().len(), 40);
        assert_eq!(volume.most_waiting.get(), 4);
    });
}

#[test]
fn failed_part_fails_the_request_and_stops_the_rest() {
    run(async {
        let volume = FakeVolume::sparse(8 << 30);
        volume.failure.set(Some((6 * PART, ClientError::NoSpace)));
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        client
            .send(command::WRITE_ZEROES, 0, 1, 0, 100 * MAX_REQUEST_BYTES)
            .await;
        assert_eq!(client.receive_error(1).await, Errno::Enospc);
        assert!(volume.log.borrow().len() <= 10);
        assert_eq!(volume.waiting(), 0);
        client.send(command::FLUSH, 0, 2, 0, 0).await;
        client.receive_ok(2).await;
    });
}

#[test]
fn parts_of_two_requests_are_not_confused() {
    run(async {
        let volume = FakeVolume::sparse(8 << 30);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        volume.hold.set(true);
        let length = 3 * MAX_REQUEST_BYTES;
        client.send(command::TRIM, 0, 1, 0, length).await;
        client.send(command::TRIM, 0, 2, 1 << 32, length).await;
        until(|| volume.waiting() == 6).await;
        // All of the second, then all of the first.
        for _ in 0..3 {
            volume.release_one(3);
        }
        client.receive_ok(2).await;
        volume.release();
        client.receive_ok(1).await;
    });
}
