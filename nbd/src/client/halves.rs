//! The client as two halves for two threads, so that a full socket in one direction never stops the other.
//!
//! Invariant: the sending half announces a request on the channel before its first byte leaves, and the receiving half
//! asks the channel after each read, so a reply always finds its request.

use std::io::{self, Read, Write};
use std::sync::mpsc;

use crate::protocol::{Cookie, command};

use super::ClientError;
use super::reply::{Expected, Reply, ReplyDecoder};
use super::request::{RequestFlags, encode_request};
use super::stream::{Input, payload_length, write_both};

/// Two halves from the parts of a client.
pub(super) fn split<S>(
    sending: S,
    receiving: S,
    decoder: ReplyDecoder,
    input: Input,
) -> (Sender<S>, Receiver<S>) {
    let (announce, announced) = mpsc::channel();
    let sender = Sender {
        stream: sending,
        announce,
    };
    (
        sender,
        Receiver {
            stream: receiving,
            decoder,
            input,
            announced,
        },
    )
}

/// The sending half of a [`super::Client::split`]. The caller chooses cookies that are not in flight.
#[derive(Debug)]
pub struct Sender<S> {
    stream: S,
    announce: mpsc::Sender<(Cookie, Expected)>,
}

impl<S: Write> Sender<S> {
    /// Sends a READ.
    ///
    /// # Errors
    /// Of the stream; `BrokenPipe` when the receiving half is gone.
    pub fn send_read(
        &mut self,
        cookie: Cookie,
        offset: u64,
        length: u32,
    ) -> Result<(), ClientError> {
        self.announce(cookie, Expected::Data { offset, length })?;
        self.send(
            command::READ,
            RequestFlags::NONE,
            cookie,
            offset,
            length,
            &[],
        )
    }

    /// Sends a WRITE.
    ///
    /// # Errors
    /// As [`Sender::send_read`].
    ///
    /// # Panics
    /// When `data` is longer than 4 GiB.
    pub fn send_write(
        &mut self,
        cookie: Cookie,
        offset: u64,
        data: &[u8],
        fua: bool,
    ) -> Result<(), ClientError> {
        self.announce(cookie, Expected::Nothing)?;
        self.send(
            command::WRITE,
            RequestFlags::fua(fua),
            cookie,
            offset,
            payload_length(data),
            data,
        )
    }

    /// Sends a FLUSH.
    ///
    /// # Errors
    /// As [`Sender::send_read`].
    pub fn send_flush(&mut self, cookie: Cookie) -> Result<(), ClientError> {
        self.announce(cookie, Expected::Nothing)?;
        self.send(command::FLUSH, RequestFlags::NONE, cookie, 0, 0, &[])
    }

    /// Says goodbye; the receiver gets the outstanding replies, then `UnexpectedEof`.
    ///
    /// # Errors
    /// Of the stream.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.send(command::DISC, RequestFlags::NONE, Cookie(0), 0, 0, &[])
    }

    fn announce(&mut self, cookie: Cookie, expected: Expected) -> Result<(), ClientError> {
        let gone = |_| ClientError::Io(io::ErrorKind::BrokenPipe.into());
        self.announce.send((cookie, expected)).map_err(gone)
    }

    fn send(
        &mut self,
        command: u16,
        flags: RequestFlags,
        cookie: Cookie,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        let header = encode_request(command, flags, cookie, offset, length);
        Ok(write_both(&mut self.stream, &header, payload)?)
    }
}

/// The receiving half of a [`super::Client::split`].
#[derive(Debug)]
pub struct Receiver<S> {
    stream: S,
    decoder: ReplyDecoder,
    input: Input,
    announced: mpsc::Receiver<(Cookie, Expected)>,
}

impl<S: Read> Receiver<S> {
    /// Waits for the next reply, as [`super::Client::receive_reply`].
    ///
    /// # Errors
    /// The connection is lost, `UnexpectedEof` when the server closed it.
    pub fn receive_reply(&mut self) -> Result<Reply, ClientError> {
        let Self {
            stream,
            decoder,
            input,
            announced,
        } = self;
        input.reply(stream, decoder, || announced.try_recv().ok())
    }
}
