//! Requests of every kind, their order, and their errors.

use qrbd_engine::api::ClientError;
use qrbd_nbd::client::ClientOptions;
use qrbd_nbd::protocol::{command, command_flag};
use qrbd_nbd::{Cookie, Errno, Extent};
use tokio::io::AsyncWriteExt;

use super::support::*;

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 512) as u8 ^ at as u8 ^ seed)
        .collect()
}

#[test]
fn data_of_every_size_comes_back() {
    run(async {
        let volume = FakeVolume::new(64 << 20);
        let server = Server::one(&volume);
        let sizes = [
            512,
            4096,
            31 << 10,
            32 << 10,
            (32 << 10) + 512,
            (1 << 20) + 512,
            32 << 20,
        ];
        for structured_replies in [true, false] {
            let options = ClientOptions {
                structured_replies,
                allocation: false,
            };
            let stream = server.raw().await;
            let client = TestClient::connect(stream, "r0", options).await.unwrap();
            let mut client = client;
            for (index, &size) in sizes.iter().enumerate() {
                let data = pattern(size, index as u8);
                client.send_write(1, 512, &data, false).await;
                client.receive_ok(1).await;
                client.send(command::READ, 0, 2, 512, size as u32).await;
                assert!(client.receive_ok(2).await.data == data, "{size} bytes");
            }
        }
    });
}

#[test]
fn requests_cut_anywhere_are_understood() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        let small = pattern(1024, 1);
        let large = pattern(40 << 10, 2);
        let mut bytes = client.request(command::WRITE, 0, 1, 0, 1024).to_vec();
        bytes.extend(&small);
        bytes.extend(client.request(command::WRITE, 0, 2, 4096, 40 << 10));
        bytes.extend(&large);
        bytes.extend(client.request(command::FLUSH, 0, 3, 0, 0));
        bytes.extend(client.request(command::WRITE, 0, 4, 1, 7)); // misaligned: drained
        bytes.extend([0; 7]);
        bytes.extend(client.request(command::READ, 0, 5, 0, 1024));
        let cuts = [
            1, 27, 28, 29, 500, 1051, 1052, 1060, 1080, 20_000, 42_040, 42_080, 42_100,
        ];
        let mut from = 0;
        for cut in cuts {
            client.stream.write_all(&bytes[from..cut]).await.unwrap();
            from = cut;
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        client.stream.write_all(&bytes[from..]).await.unwrap();
        let mut replies = Vec::new();
        for _ in 0..5 {
            replies.push(client.receive().await.unwrap());
        }
        replies.sort_by_key(|reply| reply.cookie);
        let failed: Vec<bool> = replies.iter().map(|reply| reply.result.is_err()).collect();
        assert_eq!(failed, [false, false, false, true, false]);
        assert!(replies[4].data == small);
        assert!(volume.data.borrow()[4096..4096 + (40 << 10)] == large[..]);
    });
}

#[test]
fn many_requests_in_one_piece_are_all_answered() {
    run(async {
        let volume = FakeVolume::new(4 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        let mut bytes = Vec::new();
        for index in 0..200u64 {
            bytes.extend(client.request(command::WRITE, 0, index, index * 4096, 4096));
            bytes.extend([index as u8; 4096]);
        }
        client.stream.write_all(&bytes).await.unwrap();
        let mut seen = [false; 200];
        for _ in 0..200 {
            let reply = client.receive().await.unwrap();
            assert_eq!(reply.result, Ok(()));
            seen[reply.cookie.0 as usize] = true;
        }
        assert!(seen.iter().all(|&seen| seen));
        let data = volume.data.borrow();
        assert!((0..200).all(|index| data[index * 4096 + 4095] == index as u8));
    });
}

#[test]
fn a_slow_request_does_not_hold_up_the_others() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        volume.hold.set(true);
        for cookie in 0..3 {
            client
                .send(command::READ, 0, cookie, cookie * 4096, 4096)
                .await;
        }
        until(|| volume.waiting() == 3).await;
        for (index, cookie) in [(2, 2), (0, 0), (0, 1)] {
            volume.release_one(index);
            client.receive_ok(cookie).await;
        }
    });
}

#[test]
fn fua_reaches_the_volume_and_flush_has_no_range() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        client.send_write(1, 0, &[1; 512], true).await;
        client.receive_ok(1).await;
        client
            .send(command::TRIM, command_flag::FUA, 2, 0, 512)
            .await;
        client.receive_ok(2).await;
        client
            .send(command::WRITE_ZEROES, command_flag::FUA, 3, 512, 512)
            .await;
        client.receive_ok(3).await;
        client.send(command::FLUSH, 0, 4, 0, 0).await;
        client.receive_ok(4).await;
        let expected = [
            ("write", 0, 512, true),
            ("discard", 0, 512, true),
            ("zeroes", 512, 512, true),
            ("flush", 0, 0, false),
        ];
        assert_eq!(*volume.log.borrow(), expected);
    });
}

#[test]
fn cache_and_block_status_are_answered_without_the_volume() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let options = ClientOptions {
            structured_replies: true,
            allocation: true,
        };
        let stream = server.raw().await;
        let mut client = TestClient::connect(stream, "r0", options).await.unwrap();
        client.send(command::CACHE, 0, 1, 0, 1 << 20).await;
        client.receive_ok(1).await;
        client.send(command::BLOCK_STATUS, 0, 2, 4096, 8192).await;
        let extent = Extent {
            length: 8192,
            status: 0,
        };
        assert_eq!(client.receive_ok(2).await.extents, [extent]);
        assert!(volume.log.borrow().is_empty());
    });
}

#[test]
fn fast_zero_is_refused_at_once_where_it_would_be_slow() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        volume.fast_zero.set(false);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        let fast = command_flag::FAST_ZERO;
        client.send(command::WRITE_ZEROES, fast, 1, 0, 4096).await;
        assert_eq!(client.receive_error(1).await, Errno::Enotsup);
        assert!(volume.log.borrow().is_empty());
        volume.fast_zero.set(true);
        client.send(command::WRITE_ZEROES, fast, 2, 0, 4096).await;
        client.receive_ok(2).await;
    });
}

#[test]
fn errors_of_the_volume_have_their_numbers() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        let cases = [
            (ClientError::Io, command::READ, Errno::Eio),
            (ClientError::NoSpace, command::WRITE_ZEROES, Errno::Enospc),
            (ClientError::OutOfRange, command::READ, Errno::Einval),
            (ClientError::OutOfRange, command::TRIM, Errno::Einval),
            (
                ClientError::OutOfRange,
                command::WRITE_ZEROES,
                Errno::Enospc,
            ),
            (ClientError::NotPrimary, command::READ, Errno::Eshutdown),
        ];
        for (error, kind, errno) in cases {
            volume.failure.set(Some((0, error)));
            client.send(kind, 0, 1, 0, 4096).await;
            assert_eq!(client.receive_error(1).await, errno, "{error:?}");
        }
    });
}

#[test]
fn bad_requests_are_refused_and_their_payload_is_skipped() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let mut client = server.client("r0").await;
        let beyond = vec![0xee; 300 << 10];
        client.send_write(1, 1 << 20, &beyond, false).await;
        assert_eq!(client.receive_error(1).await, Errno::Enospc);
        client.send(command::READ, 0, 2, 1, 512).await;
        assert_eq!(client.receive_error(2).await, Errno::Einval);
        client.send(99, 0, 3, 0, 512).await;
        assert_eq!(client.receive_error(3).await, Errno::Einval);
        client.send(command::READ, 0, 4, 0, 0).await;
        client.receive_ok(4).await;
        assert!(volume.log.borrow().is_empty());
        client.send(command::READ, 0, 5, 0, 512).await;
        assert_eq!(client.receive_ok(5).await.cookie, Cookie(5));
    });
}

#[test]
fn sessions_of_one_volume_see_each_others_writes() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let server = Server::one(&volume);
        let (mut first, mut second) = (server.client("r0").await, server.client("r0").await);
        assert_eq!(volume.openers.get(), 2);
        first.send_write(1, 4096, &[9; 4096], false).await;
        first.receive_ok(1).await;
        second.send(command::FLUSH, 0, 1, 0, 0).await;
        second.receive_ok(1).await;
        second.send(command::READ, 0, 2, 4096, 4096).await;
        assert!(second.receive_ok(2).await.data == [9; 4096]);
    });
}
