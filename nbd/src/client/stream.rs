//! Moving requests and replies over a blocking stream: the only I/O of the crate, shared by the client and its halves.

use std::io::{self, IoSlice, Read, Write};

use crate::protocol::Cookie;

use super::ClientError;
use super::reply::{Expected, Reply, ReplyDecoder};

const INPUT_BUFFER: usize = 256 * 1024;

/// Received bytes that are not decoded yet.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; INPUT_BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// The next reply: from what is here, or after reading more. `announced` yields the requests sent from elsewhere; it
    /// is asked after each read, so what was announced before the bytes arrived is surely known.
    pub(super) fn reply(
        &mut self,
        stream: &mut impl Read,
        decoder: &mut ReplyDecoder,
        mut announced: impl FnMut() -> Option<(Cookie, Expected)>,
    ) -> Result<Reply, ClientError> {
        loop {
            let mut rest = &self.bytes[self.start..self.end];
            let reply = decoder.advance(&mut rest)?;
            self.start = self.end - rest.len();
            if let Some(reply) = reply {
                return Ok(reply);
            }
            self.start = 0;
            self.end = 0;
            self.end = read_some(stream, &mut self.bytes)?;
            while let Some((cookie, expected)) = announced() {
                if !decoder.expect(cookie, expected) {
                    return Err(cookie_in_flight(cookie));
                }
            }
        }
    }
}

pub(super) fn cookie_in_flight(cookie: Cookie) -> ClientError {
    ClientError::protocol(format!("cookie {:#x} is in flight already", cookie.0))
}

pub(super) fn payload_length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("a payload below 4 GiB")
}

/// At least one byte; the end of the stream is an error.
pub(super) fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Header and payload with as few calls as the stream allows.
pub(super) fn write_both(stream: &mut impl Write, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < header.len() {
        let slices = [IoSlice::new(&header[written..]), IoSlice::new(payload)];
        match stream.write_vectored(&slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.write_all(&payload[written - header.len()..])?;
    stream.flush()
}
