//! The client around any blocking stream.
//!
//! Two ways of use: blocking calls (`read`, `write` …), one request at a time; or `send_*` with own cookies and
//! [`Client::receive_reply`], at any depth. [`Client::split`] gives two halves for two threads, so that a full socket in
//! one direction never stops the other.
//!
//! Invariant: a reply is expected before the first byte of its request is sent.

use std::io::{Read, Write};

use crate::protocol::{Cookie, Extent, command, limits};

use super::ClientError;
use super::halves::{self, Receiver, Sender};
use super::handshake::{ClientHandshake, ClientOptions, Negotiated};
use super::reply::{Expected, Reply, ReplyDecoder};
use super::request::{RequestFlags, encode_request};
use super::stream::{Input, cookie_in_flight, payload_length, read_some, write_both};

/// A connected client.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    negotiated: Negotiated,
    decoder: ReplyDecoder,
    input: Input,
    next_cookie: u64,
}

impl<S: Read + Write> Client<S> {
    /// Opens an export with structured replies.
    ///
    /// # Errors
    /// `Refused` with the server's text when it does not give the export.
    pub fn connect(stream: S, export: &str) -> Result<Self, ClientError> {
        Self::connect_with(stream, export, ClientOptions::default())
    }

    /// Opens an export.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(
        mut stream: S,
        export: &str,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let mut handshake = ClientHandshake::new(export, options);
        let mut bytes = vec![0; limits::OPTION_REPLY as usize];
        let negotiated = loop {
            // Never more than is wanted, so that no byte of the transmission is taken.
            let wanted = handshake.wanted().min(bytes.len());
            let count = read_some(&mut stream, &mut bytes[..wanted])?;
            let negotiated = handshake.advance(&mut &bytes[..count])?;
            stream.write_all(&handshake.take_output())?;
            if let Some(negotiated) = negotiated {
                break negotiated;
            }
        };
        let decoder = ReplyDecoder::new(negotiated.structured_replies);
        Ok(Self {
            stream,
            negotiated,
            decoder,
            input: Input::new(),
            next_cookie: 1,
        })
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.negotiated.size
    }

    /// Everything the handshake told.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// The stream, for its options.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Fills `buffer` from `offset` on, in as many READs as the server's maximum payload asks for.
    ///
    /// # Errors
    /// `Request` with the server's error.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ClientError> {
        let most = self.maximum_payload();
        let mut at = offset;
        for piece in buffer.chunks_mut(most) {
            let expected = Expected::Data {
                offset: at,
                length: piece.len() as u32,
            };
            let reply = self.call(
                command::READ,
                RequestFlags::NONE,
                at,
                piece.len() as u32,
                &[],
                expected,
            )?;
            piece.copy_from_slice(&reply.data);
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`, in as many WRITEs as the server's maximum payload asks for.
    ///
    /// # Errors
    /// `Request` with the server's error.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        let most = self.maximum_payload();
        let mut at = offset;
        for piece in data.chunks(most) {
            let flags = RequestFlags::fua(fua);
            self.call(
                command::WRITE,
                flags,
                at,
                piece.len() as u32,
                piece,
                Expected::Nothing,
            )?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes all answered writes stable.
    ///
    /// # Errors
    /// `Request` with the server's error.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(
            command::FLUSH,
            RequestFlags::NONE,
            0,
            0,
            &[],
            Expected::Nothing,
        )
        .map(drop)
    }

    /// Tells that `length` bytes are no longer needed.
    ///
    /// # Errors
    /// `Request` with the server's error.
    pub fn trim(&mut self, offset: u64, length: u32, fua: bool) -> Result<(), ClientError> {
        self.call(
            command::TRIM,
            RequestFlags::fua(fua),
            offset,
            length,
            &[],
            Expected::Nothing,
        )
        .map(drop)
    }

    /// Writes `length` zero bytes. `flags` may hold FUA, NO_HOLE and FAST_ZERO.
    ///
    /// # Errors
    /// `Request` with the server's error.
    pub fn write_zeroes(
        &mut self,
        offset: u64,
        length: u32,
        flags: RequestFlags,
    ) -> Result<(), ClientError> {
        self.call(
            command::WRITE_ZEROES,
            flags,
            offset,
            length,
            &[],
            Expected::Nothing,
        )
        .map(drop)
    }

    /// The extents of `base:allocation` from `offset` on, which may cover less than `length` bytes.
    ///
    /// # Errors
    /// `Request` with the server's error.
    pub fn block_status(&mut self, offset: u64, length: u32) -> Result<Vec<Extent>, ClientError> {
        let reply = self.call(
            command::BLOCK_STATUS,
            RequestFlags::NONE,
            offset,
            length,
            &[],
            Expected::Extents,
        )?;
        Ok(reply.extents)
    }

    /// Says goodbye and gives the stream back.
    ///
    /// # Errors
    /// Only of the stream.
    pub fn disconnect(mut self) -> Result<S, ClientError> {
        let header = encode_request(command::DISC, RequestFlags::NONE, Cookie(0), 0, 0);
        self.stream.write_all(&header)?;
        self.stream.flush()?;
        Ok(self.stream)
    }

    /// Sends a READ and returns; its data comes with [`Client::receive_reply`].
    ///
    /// # Errors
    /// Of the stream, or `Protocol` when the cookie is in flight already.
    pub fn send_read(
        &mut self,
        cookie: Cookie,
        offset: u64,
        length: u32,
    ) -> Result<(), ClientError> {
        let expected = Expected::Data { offset, length };
        self.send_request(
            command::READ,
            RequestFlags::NONE,
            cookie,
            offset,
            length,
            &[],
            expected,
        )
    }

    /// Sends a WRITE and returns.
    ///
    /// # Errors
    /// As [`Client::send_read`].
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
        let (flags, length) = (RequestFlags::fua(fua), payload_length(data));
        self.send_request(
            command::WRITE,
            flags,
            cookie,
            offset,
            length,
            data,
            Expected::Nothing,
        )
    }

    /// Sends a FLUSH and returns.
    ///
    /// # Errors
    /// As [`Client::send_read`].
    pub fn send_flush(&mut self, cookie: Cookie) -> Result<(), ClientError> {
        self.send_request(
            command::FLUSH,
            RequestFlags::NONE,
            cookie,
            0,
            0,
            &[],
            Expected::Nothing,
        )
    }

    /// Sends any request, valid or not, with any payload.
    ///
    /// # Errors
    /// As [`Client::send_read`].
    #[allow(clippy::too_many_arguments)] // the fields of a request, in their order
    pub fn send_request(
        &mut self,
        command: u16,
        flags: RequestFlags,
        cookie: Cookie,
        offset: u64,
        length: u32,
        payload: &[u8],
        expected: Expected,
    ) -> Result<(), ClientError> {
        if !self.decoder.expect(cookie, expected) {
            return Err(cookie_in_flight(cookie));
        }
        let header = encode_request(command, flags, cookie, offset, length);
        Ok(write_both(&mut self.stream, &header, payload)?)
    }

    /// Waits for the next reply, in the server's order. A failed request is `Ok` here: its error is in the reply.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn receive_reply(&mut self) -> Result<Reply, ClientError> {
        self.input
            .reply(&mut self.stream, &mut self.decoder, || None)
    }

    /// How many requests wait for their replies.
    pub fn in_flight(&self) -> usize {
        self.decoder.in_flight()
    }

    /// Two halves for two threads; `sending` is a second handle of the same stream (`try_clone`).
    pub fn split(self, sending: S) -> (Sender<S>, Receiver<S>) {
        halves::split(sending, self.stream, self.decoder, self.input)
    }

    fn maximum_payload(&self) -> usize {
        let told = self
            .negotiated
            .block_sizes
            .map_or(limits::PAYLOAD, |sizes| sizes.maximum_payload);
        told.min(limits::PAYLOAD) as usize
    }

    fn call(
        &mut self,
        command: u16,
        flags: RequestFlags,
        offset: u64,
        length: u32,
        payload: &[u8],
        expected: Expected,
    ) -> Result<Reply, ClientError> {
        if self.in_flight() > 0 {
            return Err(ClientError::InFlight(self.in_flight()));
        }
        let cookie = Cookie(self.next_cookie);
        self.next_cookie += 1;
        self.send_request(command, flags, cookie, offset, length, payload, expected)?;
        let reply = self.receive_reply()?;
        match reply.result {
            Ok(()) => Ok(reply),
            Err(error) => Err(ClientError::Request(error)),
        }
    }
}
