//! Sessions without a handshake: what the kernel is told, and handing a socket over between two requests.

use std::cell::Cell;
use std::os::unix::net::UnixStream as StdStream;
use std::rc::Rc;

use qrbd_nbd::client::{Expected, ReplyDecoder, RequestFlags, encode_request};
use qrbd_nbd::protocol::command;
use qrbd_nbd::{Cookie, Errno, TransmissionFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

use super::support::*;
use crate::front::backend::{Export as _, Exports as _};
use crate::front::{DirectFront, DirectSession, End, socket_pair};

/// A session over a socket whose other end the test has.
struct Direct {
    client: UnixStream,
    /// The daemon's end, for the next session.
    kept: StdStream,
    size: Rc<Cell<u64>>,
    hand_over: watch::Sender<bool>,
    session: JoinHandle<End>,
}

fn serve(volume: &Rc<FakeVolume>, ours: StdStream, client: UnixStream) -> Direct {
    let export = FakeExports(vec![("r0", Rc::clone(volume))])
        .open("r0")
        .unwrap();
    let size = Rc::new(Cell::new(export.description().size));
    let hand_over = watch::Sender::new(false);
    let kept = ours.try_clone().unwrap();
    let session = DirectFront::new()
        .serve(ours, export, Rc::clone(&size), hand_over.subscribe())
        .unwrap();
    Direct {
        client,
        kept,
        size,
        hand_over,
        session: spawn_local(session),
    }
}

fn start(volume: &Rc<FakeVolume>) -> Direct {
    let (ours, theirs) = socket_pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    serve(volume, ours, UnixStream::from_std(theirs).unwrap())
}

impl Direct {
    async fn send(&mut self, kind: u16, cookie: u64, offset: u64, length: u32) {
        let bytes = encode_request(kind, RequestFlags(0), Cookie(cookie), offset, length);
        self.client.write_all(&bytes).await.unwrap();
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
        direct.hand_over.send_replace(true);
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
        direct.hand_over.send_replace(true);
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
        direct.hand_over.send_replace(true);
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
