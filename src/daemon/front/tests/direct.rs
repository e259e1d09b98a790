//! Sessions without a handshake: what the kernel is told, handing a socket over between two requests, and closing it with nothing lost.

use std::cell::Cell;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream as StdStream;
use std::rc::Rc;
use std::time::Duration;

use qrbd_nbd::client::{Expected, ReplyDecoder, RequestFlags, encode_request};
use qrbd_nbd::protocol::command;
use qrbd_nbd::{Cookie, Errno, TransmissionFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

use super::support::*;
use crate::front::backend::{Export as _, Exports as _};
use crate::front::{Departure, DirectFront, DirectSession, End, Limits, socket_pair};

/// A session over a socket whose other end the test has.
struct Direct {
    client: UnixStream,
    /// The daemon's end, for the next session.
    kept: StdStream,
    size: Rc<Cell<u64>>,
    departure: watch::Sender<Option<Departure>>,
    session: JoinHandle<End>,
}

/// Limits for a session that is to be closed: so long may it take until the client is silent.
fn closing(silence_patience: Duration) -> Limits {
    Limits {
        silence_patience,
        ..Limits::default()
    }
}

fn serve(volume: &Rc<FakeVolume>, ours: StdStream, client: UnixStream) -> Direct {
    serve_with(volume, ours, client, &Limits::default())
}

fn serve_with(
    volume: &Rc<FakeVolume>,
    ours: StdStream,
    client: UnixStream,
    limits: &Limits,
) -> Direct {
    let export = FakeExports(vec![("r0", Rc::clone(volume))])
        .open("r0")
        .unwrap();
    let size = Rc::new(Cell::new(export.description().size));
    let departure = watch::Sender::new(None);
    let kept = ours.try_clone().unwrap();
    let session = DirectFront::with(*limits)
        .serve(ours, export, Rc::clone(&size), departure.subscribe())
        .unwrap();
    Direct {
        client,
        kept,
        size,
        departure,
        session: spawn_local(session),
    }
}

fn start(volume: &Rc<FakeVolume>) -> Direct {
    start_with(volume, &Limits::default())
}

fn start_with(volume: &Rc<FakeVolume>, limits: &Limits) -> Direct {
    let (ours, theirs) = socket_pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    serve_with(volume, ours, UnixStream::from_std(theirs).unwrap(), limits)
}

impl Direct {
    async fn send(&mut self, kind: u16, cookie: u64, offset: u64, length: u32) {
        let bytes = encode_request(kind, RequestFlags(0), Cookie(cookie), offset, length);
        self.client.write_all(&bytes).await.unwrap();
    }

    fn ask(&self, departure: Departure) {
        self.departure.send_replace(Some(departure));
    }

    /// The cookie and result of the next reply, which carries no data.
    async fn receive(&mut self) -> (u64, Result<(), Errno>) {
        let mut bytes = [0; 16];
        tokio::time::timeout(PATIENCE, self.client.read_exact(&mut bytes))
            .await
            .expect("a reply in time")
            .unwrap();
        let cookie = u64::from_be_bytes(bytes[8..].try_into().unwrap());
        let mut decoder = ReplyDecoder::new(false);
        assert!(decoder.expect(Cookie(cookie), Expected::Nothing));
        let reply = decoder.advance(&mut &bytes[..]).unwrap().unwrap();
        (reply.cookie.0, reply.result.map_err(|error| error.errno))
    }

    async fn ended(self) -> (End, StdStream, UnixStream) {
        let end = tokio::time::timeout(PATIENCE, self.session)
            .await
            .expect("the session ends")
            .unwrap();
        (end, self.kept, self.client)
    }
}

#[test]
fn the_kernel_is_told_what_the_volume_can_and_nothing_that_it_does_not_know() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let export = FakeExports(vec![("r0", Rc::clone(&volume))])
            .open("r0")
            .unwrap();
        let session = DirectSession::of(export.description()).unwrap();
        let flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::CAN_MULTI_CONN;
        assert_eq!(session.flags, flags.bits());
        assert_eq!((session.size, session.block_size), (1 << 20, 512));
    });
}

#[test]
fn a_socket_is_handed_over_when_everything_that_was_read_is_answered() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let mut direct = start(&volume);
        volume.hold.set(true);
        direct.send(command::FLUSH, 1, 0, 0).await;
        until(|| volume.waiting() == 1).await;
        direct.ask(Departure::HandOver);
        quiet().await;
        assert!(!direct.session.is_finished(), "a request is under way");
        // What comes now is for the next session.
        direct.send(command::FLUSH, 2, 0, 0).await;
        quiet().await;
        assert_eq!(volume.waiting(), 1);
        volume.release();
        assert_eq!(direct.receive().await, (1, Ok(())));
        let (end, ours, client) = direct.ended().await;
        assert!(matches!(end, End::HandedOver), "{end}");

        let mut next = serve(&volume, ours, client);
        assert_eq!(next.receive().await, (2, Ok(())));
    });
}

#[test]
fn a_request_that_has_begun_is_read_to_its_end_before_the_socket_is_handed_over() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let mut direct = start(&volume);
        let write = encode_request(command::WRITE, RequestFlags(0), Cookie(7), 4096, 8192);
        // Half of a payload, then half of a header: neither side of a request may be split between two readers.
        direct.client.write_all(&write).await.unwrap();
        direct.client.write_all(&[9; 100]).await.unwrap();
        quiet().await;
        direct.ask(Departure::HandOver);
        quiet().await;
        assert!(!direct.session.is_finished());
        direct.client.write_all(&[9; 8092]).await.unwrap();
        let next = encode_request(command::FLUSH, RequestFlags(0), Cookie(8), 0, 0);
        direct.client.write_all(&next[..10]).await.unwrap();
        assert_eq!(direct.receive().await, (7, Ok(())));
        assert_eq!(volume.data.borrow()[4096 + 8191], 9);
        let (end, ours, mut client) = direct.ended().await;
        assert!(matches!(end, End::HandedOver), "{end}");
        client.write_all(&next[10..]).await.unwrap();
        let mut next = serve(&volume, ours, client);
        assert_eq!(next.receive().await, (8, Ok(())));
    });
}

#[test]
fn requests_that_were_read_together_are_all_answered_before_the_socket_is_handed_over() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let mut direct = start(&volume);
        volume.hold.set(true);
        let mut bytes = Vec::new();
        for cookie in 0..600 {
            let flush = encode_request(command::FLUSH, RequestFlags(0), Cookie(cookie), 0, 0);
            bytes.extend_from_slice(&flush);
        }
        direct.client.write_all(&bytes).await.unwrap();
        // As many as a session may have in flight; the others were read and wait.
        until(|| volume.waiting() == 256).await;
        direct.ask(Departure::HandOver);
        quiet().await;
        volume.release();
        for cookie in 0..600 {
            assert_eq!(direct.receive().await, (cookie, Ok(())));
        }
        let (end, _, _) = direct.ended().await;
        assert!(matches!(end, End::HandedOver), "{end}");
    });
}

#[test]
fn a_session_of_the_kernel_follows_the_size_of_the_volume() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let mut direct = start(&volume);
        direct.send(command::TRIM, 1, 1 << 20, 4096).await;
        assert_eq!(direct.receive().await, (1, Err(Errno::Einval)));
        volume.data.borrow_mut().resize(2 << 20, 0);
        direct.size.set(2 << 20);
        direct.send(command::TRIM, 2, 1 << 20, 4096).await;
        assert_eq!(direct.receive().await, (2, Ok(())));
    });
}

#[test]
fn a_socket_is_closed_with_every_request_answered_and_none_taken_that_is_not() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let mut direct = start_with(&volume, &closing(PATIENCE));
        volume.hold.set(true);
        direct.send(command::FLUSH, 1, 0, 0).await;
        until(|| volume.waiting() == 1).await;
        direct.ask(Departure::Close);
        quiet().await;
        // The client does not know of it and goes on asking.
        direct.send(command::FLUSH, 2, 0, 0).await;
        until(|| volume.waiting() == 2).await;
        volume.release_one(0);
        quiet().await;
        // An answer now would make it ask for more.
        let early = direct.client.try_read(&mut [0]);
        assert_eq!(early.unwrap_err().kind(), ErrorKind::WouldBlock);
        volume.release();
        for cookie in [1, 2] {
            assert_eq!(direct.receive().await, (cookie, Ok(())));
        }
        let (end, _kept, mut client) = direct.ended().await;
        assert!(matches!(end, End::Closed), "{end}");
        // Who asks now finds out at once, not by waiting for an answer.
        let late = encode_request(command::FLUSH, RequestFlags(0), Cookie(3), 0, 0);
        let error = client.write_all(&late).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_client_that_never_falls_silent_does_not_keep_its_socket_open() {
    run(async {
        let volume = FakeVolume::new(1 << 20);
        let mut direct = start_with(&volume, &closing(Duration::from_millis(30)));
        volume.hold.set(true);
        direct.ask(Departure::Close);
        let mut taken = 0;
        loop {
            let flush = encode_request(command::FLUSH, RequestFlags(0), Cookie(taken), 0, 0);
            match direct.client.write_all(&flush).await {
                Ok(()) => taken += 1,
                Err(error) => break assert_eq!(error.kind(), ErrorKind::BrokenPipe),
            }
            // Never more than a session may have under way.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        quiet().await;
        volume.release();
        for cookie in 0..taken {
            assert_eq!(direct.receive().await, (cookie, Ok(())));
        }
        let (end, _, _) = direct.ended().await;
        assert!(matches!(end, End::ClientLeft), "{end}");
    });
}
