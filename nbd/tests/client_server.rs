//! The client against the server over a socket pair, in one process.

mod support;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use qrbd_nbd::client::{ClientOptions, Expected, RequestFlags};
use qrbd_nbd::protocol::{command, limits, option, option_reply};
use qrbd_nbd::{Client, ClientError, Cookie, Errno, Extent};
use support::memory::{MemoryServer, POLICY_TEXT};

const SIZE: u64 = 80 << 20;
const SIMPLE: ClientOptions = ClientOptions {
    structured_replies: false,
    allocation: false,
};
const FULL: ClientOptions = ClientOptions {
    structured_replies: true,
    allocation: true,
};

fn open(export: &str, options: ClientOptions) -> (Arc<MemoryServer>, Client<UnixStream>) {
    let server = MemoryServer::new(SIZE);
    let client = Client::connect_with(server.connect(), export, options).unwrap();
    (server, client)
}

fn both(export: &str, test: impl Fn(&MemoryServer, Client<UnixStream>)) {
    for options in [SIMPLE, FULL] {
        let (server, client) = open(export, options);
        test(&server, client);
    }
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn errno<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Errno {
    match result {
        Err(ClientError::Request(error)) => error.errno,
        other => panic!("no error of a request: {other:?}"),
    }
}

#[test]
fn what_was_written_is_read_again() {
    both("disk", |_, mut client| {
        let data = pattern(3 * 4096, 7);
        client.write(8192, &data, false).unwrap();
        let mut read = vec![1; 5 * 4096];
        client.read(4096, &mut read).unwrap();
        assert_eq!(read, [vec![0; 4096], data, vec![0; 4096]].concat());
    });
}

#[test]
fn connections_see_each_others_writes() {
    let (server, mut one) = open("disk", FULL);
    let mut two = Client::connect(server.connect(), "").unwrap();
    one.write(0, &pattern(512, 1), false).unwrap();
    let mut read = vec![0; 512];
    two.read(0, &mut read).unwrap();
    assert_eq!(read, pattern(512, 1));
}

#[test]
fn the_client_learns_size_names_and_block_sizes() {
    both("", |_, client| {
        let negotiated = client.negotiated();
        assert_eq!(client.size(), SIZE);
        assert_eq!(negotiated.name.as_deref(), Some("disk"));
        assert_eq!(
            negotiated.description.as_deref(),
            Some("memory export disk")
        );
        assert_eq!(negotiated.block_sizes.unwrap().minimum, 512);
    });
}

#[test]
fn long_reads_and_writes_are_split_at_the_maximum_payload() {
    both("disk", |_, mut client| {
        let data = pattern(limits::PAYLOAD as usize + 4096, 3);
        client.write(4096, &data, false).unwrap();
        let mut read = vec![0; data.len()];
        client.read(4096, &mut read).unwrap();
        assert!(read == data);
    });
}

#[test]
fn flush_and_fua_reach_the_owner() {
    both("disk", |server, mut client| {
        client.write(0, &[1; 512], true).unwrap();
        client.trim(0, 512, true).unwrap();
        client
            .write_zeroes(0, 512, RequestFlags::FUA | RequestFlags::NO_HOLE)
            .unwrap();
        client.write(0, &[1; 512], false).unwrap();
        client.flush().unwrap();
        let export = server.export("disk").unwrap();
        assert_eq!(export.fuas.load(Ordering::Relaxed), 3);
        assert_eq!(export.flushes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn zeroes_read_as_zeroes() {
    both("disk", |_, mut client| {
        client.write(0, &[1; 2048], false).unwrap();
        client.write_zeroes(512, 1024, RequestFlags::NONE).unwrap();
        let mut read = vec![9; 2048];
        client.read(0, &mut read).unwrap();
        assert_eq!(read, [vec![1; 512], vec![0; 1024], vec![1; 512]].concat());
    });
}

#[test]
fn a_slow_fast_zero_is_enotsup() {
    let (_, mut client) = open("slow-zero", FULL);
    assert_eq!(
        errno(client.write_zeroes(0, 512, RequestFlags::FAST_ZERO)),
        Errno::Enotsup
    );
    client.write_zeroes(0, 512, RequestFlags::NONE).unwrap();
}

#[test]
fn errors_keep_their_numbers_and_the_connection_goes_on() {
    both("disk", |_, mut client| {
        assert_eq!(errno(client.write(SIZE, &[0; 512], false)), Errno::Enospc);
        assert_eq!(errno(client.read(SIZE, &mut [0; 512])), Errno::Einval);
        assert_eq!(errno(client.write(1, &[0; 512], false)), Errno::Einval);
        client.write(0, &[5; 512], false).unwrap();
        let mut read = [0; 512];
        client.read(0, &mut read).unwrap();
        assert_eq!(read, [5; 512]);
    });
    both("readonly", |_, mut client| {
        assert_eq!(errno(client.write(0, &[0; 512], false)), Errno::Eperm);
        client.read(0, &mut [0; 512]).unwrap();
    });
    both("broken", |_, mut client| {
        assert_eq!(errno(client.read(0, &mut [0; 512])), Errno::Eio);
        assert_eq!(errno(client.write(0, &[0; 512], false)), Errno::Eio);
    });
}

#[test]
fn error_text_arrives_with_structured_replies() {
    let (_, mut client) = open("broken", FULL);
    let error = client.read(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.to_string(), "EIO: the memory is broken");
}

#[test]
fn a_refused_write_is_drained_to_the_last_byte() {
    both("disk", |_, mut client| {
        let length = limits::PAYLOAD + 512;
        let (cookie, payload) = (Cookie(99), vec![0xee; length as usize]);
        client
            .send_request(
                command::WRITE,
                RequestFlags::NONE,
                cookie,
                0,
                length,
                &payload,
                Expected::Nothing,
            )
            .unwrap();
        let reply = client.receive_reply().unwrap();
        assert_eq!(
            (reply.cookie, reply.result.unwrap_err().errno),
            (cookie, Errno::Einval)
        );
        client.flush().unwrap();
    });
}

#[test]
fn a_write_beyond_the_drain_limit_closes_the_connection() {
    let (_, mut client) = open("disk", FULL);
    let length = limits::DRAIN + 512;
    client
        .send_request(
            command::WRITE,
            RequestFlags::NONE,
            Cookie(1),
            0,
            length,
            &[],
            Expected::Nothing,
        )
        .unwrap();
    match client.receive_reply() {
        Err(ClientError::Io(error)) => {
            assert!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_of_length_zero_succeed() {
    both("disk", |_, mut client| {
        client.trim(0, 0, false).unwrap();
        client.send_read(Cookie(7), 0, 0).unwrap();
        let reply = client.receive_reply().unwrap();
        assert_eq!((reply.result, reply.data.len()), (Ok(()), 0));
        client.send_write(Cookie(8), 0, &[], false).unwrap();
        assert_eq!(client.receive_reply().unwrap().result, Ok(()));
    });
}

#[test]
fn block_status_says_allocated() {
    let (_, mut client) = open("disk", FULL);
    assert_eq!(
        client.block_status(512, 4096).unwrap(),
        [Extent {
            length: 4096,
            status: 0
        }]
    );
}

#[test]
fn refused_export_gives_kind_and_text() {
    let server = MemoryServer::new(4096);
    for (name, expected) in [
        ("nothing", option_reply::ERR_UNKNOWN),
        ("secondary", option_reply::ERR_POLICY),
    ] {
        match Client::connect(server.connect(), name) {
            Err(ClientError::Refused {
                option: option::GO,
                kind,
                text,
            }) => {
                assert_eq!(kind, expected);
                assert_eq!(text == POLICY_TEXT, name == "secondary");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn many_requests_in_flight_are_told_apart_by_their_cookies() {
    both("disk", |_, mut client| {
        for number in 0..64u64 {
            client
                .send_write(Cookie(number), number * 4096, &pattern(4096, number), false)
                .unwrap();
        }
        assert_eq!(client.in_flight(), 64);
        assert!(matches!(client.flush(), Err(ClientError::InFlight(64))));
        for _ in 0..64 {
            assert_eq!(client.receive_reply().unwrap().result, Ok(()));
        }
        for number in 0..64u64 {
            client
                .send_read(Cookie(number), number * 4096, 4096)
                .unwrap();
        }
        for _ in 0..64 {
            let reply = client.receive_reply().unwrap();
            assert_eq!(reply.data, pattern(4096, reply.cookie.0));
        }
        assert_eq!(client.in_flight(), 0);
    });
}

#[test]
fn a_cookie_in_flight_cannot_be_used_again() {
    let (_, mut client) = open("disk", FULL);
    client.send_flush(Cookie(1)).unwrap();
    assert!(matches!(
        client.send_flush(Cookie(1)),
        Err(ClientError::Protocol(_))
    ));
}

#[test]
fn two_halves_carry_more_than_the_sockets_hold() {
    both("disk", |_, mut client| {
        let block = 256 << 10;
        let count = 128u64;
        client.write(0, &pattern(block, 5), false).unwrap();
        let sending = client.stream().try_clone().unwrap();
        let (mut sender, mut receiver) = client.split(sending);
        let sending = thread::spawn(move || {
            for number in 0..count {
                sender
                    .send_read(Cookie(2 * number), 0, block as u32)
                    .unwrap();
                let data = pattern(block, number);
                sender
                    .send_write(
                        Cookie(2 * number + 1),
                        (number + 1) * block as u64,
                        &data,
                        false,
                    )
                    .unwrap();
            }
            sender.send_flush(Cookie(u64::MAX)).unwrap();
            sender.disconnect().unwrap();
        });
        let mut replies = HashMap::new();
        for _ in 0..=2 * count {
            let reply = receiver.receive_reply().unwrap();
            assert_eq!(reply.result, Ok(()));
            assert!(reply.cookie.0 % 2 == 1 || reply.data == pattern(block, 5));
            *replies.entry(reply.cookie).or_insert(0) += 1;
        }
        assert_eq!(replies.len() as u64, 2 * count + 1);
        sending.join().unwrap();
        assert!(
            matches!(receiver.receive_reply(), Err(ClientError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof)
        );
    });
}

#[test]
fn disconnect_ends_the_servers_side() {
    use std::io::Read;
    let (_, client) = open("disk", FULL);
    let mut stream = client.disconnect().unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}
