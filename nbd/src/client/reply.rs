//! Decoding of replies, simple and structured, fed with bytes.
//!
//! Invariants:
//! - Only replies to expected cookies are accepted, each once; data must lie inside the READ it answers.
//! - No length of the server is trusted: memory for a reply is bounded by what its request asked for, by
//!   `limits::STRING` for texts and by `limits::EXTENTS` for extents.
//! - Any split of the bytes gives the same replies.

use std::collections::HashMap;
use std::fmt;

use crate::errno::Errno;
use crate::protocol::{
    Cookie, Extent, SIMPLE_REPLY_LENGTH, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, be_u16,
    be_u32, be_u64, chunk, fill, limits,
};

use super::ClientError;

/// What kind of reply a request will get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Data of a READ.
    Data {
        /// First byte of the READ.
        offset: u64,
        /// Bytes of the READ.
        length: u32,
    },
    /// Extents of a BLOCK_STATUS.
    Extents,
    /// Success or error only.
    Nothing,
}

/// A complete reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's cookie.
    pub cookie: Cookie,
    /// Success or error.
    pub result: Result<(), ReplyError>,
    /// The data of a successful READ, exactly of its length; otherwise empty.
    pub data: Vec<u8>,
    /// The extents of a successful BLOCK_STATUS; otherwise empty.
    pub extents: Vec<Extent>,
}

/// An error of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    /// The number.
    pub errno: Errno,
    /// The server's text, if it sent one.
    pub text: String,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.as_str() {
            "" => write!(formatter, "{}", self.errno),
            text => write!(formatter, "{}: {text}", self.errno),
        }
    }
}

impl std::error::Error for ReplyError {}

#[derive(Debug)]
struct Pending {
    expected: Expected,
    error: Option<ReplyError>,
    data: Vec<u8>,
    /// Bytes of the READ that content chunks have covered.
    covered: u64,
    extents: Vec<Extent>,
}

#[derive(Debug)]
enum State {
    /// The first sixteen bytes, common to both kinds.
    Head,
    /// The length of a structured chunk.
    ChunkLength {
        kind: u16,
        done: bool,
        cookie: Cookie,
    },
    /// The fixed part and texts of a chunk.
    ChunkBody {
        kind: u16,
        done: bool,
        cookie: Cookie,
        length: usize,
    },
    /// Offset of a data chunk, before its data.
    DataOffset {
        done: bool,
        cookie: Cookie,
        length: usize,
    },
    /// Data into the pending READ's buffer.
    Data {
        done: bool,
        cookie: Cookie,
        at: usize,
        remaining: usize,
    },
}

/// Decodes the server's stream of the transmission phase.
#[derive(Debug)]
pub struct ReplyDecoder {
    structured_replies: bool,
    state: State,
    buffer: Vec<u8>,
    pending: HashMap<Cookie, Pending>,
}

impl ReplyDecoder {
    /// For a connection with or without structured replies.
    pub fn new(structured_replies: bool) -> Self {
        Self {
            structured_replies,
            state: State::Head,
            buffer: Vec::new(),
            pending: HashMap::new(),
        }
    }

    /// Announces a request, before its first byte is sent. False when the cookie is in flight already.
    #[must_use]
    pub fn expect(&mut self, cookie: Cookie, expected: Expected) -> bool {
        if self.pending.contains_key(&cookie) {
            return false;
        }
        let pending = Pending {
            expected,
            error: None,
            data: Vec::new(),
            covered: 0,
            extents: Vec::new(),
        };
        self.pending.insert(cookie, pending);
        true
    }

    /// How many requests wait for their replies.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Consumes input up to the end of the next complete reply.
    ///
    /// # Errors
    /// `Protocol`: the stream is lost.
    pub fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, ClientError> {
        loop {
            let needed = match self.state {
                State::Head => SIMPLE_REPLY_LENGTH,
                State::ChunkLength { .. } => 4,
                State::ChunkBody { length, .. } => length,
                State::DataOffset { .. } => 8,
                State::Data {
                    done,
                    cookie,
                    at,
                    remaining,
                } => {
                    let count = remaining.min(input.len());
                    let (taken, rest) = input.split_at(count);
                    self.pending(cookie)?.data[at..at + count].copy_from_slice(taken);
                    *input = rest;
                    let remaining = remaining - count;
                    if remaining > 0 {
                        self.state = State::Data {
                            done,
                            cookie,
                            at: at + count,
                            remaining,
                        };
                        return Ok(None);
                    }
                    if let Some(reply) = self.chunk_end(cookie, done)? {
                        return Ok(Some(reply));
                    }
                    continue;
                }
            };
            if !fill(&mut self.buffer, input, needed) {
                return Ok(None);
            }
            let bytes = std::mem::take(&mut self.buffer);
            if let Some(reply) = self.part(&bytes)? {
                return Ok(Some(reply));
            }
            self.buffer = bytes;
            self.buffer.clear();
        }
    }

    fn part(&mut self, bytes: &[u8]) -> Result<Option<Reply>, ClientError> {
        match self.state {
            State::Head => self.head(bytes),
            State::ChunkLength { kind, done, cookie } => {
                self.chunk_length(kind, done, cookie, be_u32(bytes, 0))
            }
            State::ChunkBody {
                kind, done, cookie, ..
            } => {
                self.chunk_body(kind, cookie, bytes)?;
                self.chunk_end(cookie, done)
            }
            State::DataOffset {
                done,
                cookie,
                length,
            } => {
                let at = self.cover(cookie, be_u64(bytes, 0), length as u64)?;
                self.state = State::Data {
                    done,
                    cookie,
                    at,
                    remaining: length,
                };
                Ok(None)
            }
            State::Data { .. } => unreachable!("data is not collected in parts"),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Option<Reply>, ClientError> {
        let cookie = Cookie(be_u64(bytes, 8));
        match be_u32(bytes, 0) {
            SIMPLE_REPLY_MAGIC => {
                let errno = Errno::from_wire(be_u32(bytes, 4));
                let structured = self.structured_replies;
                let pending = self.pending(cookie)?;
                match (pending.expected, errno) {
                    (Expected::Data { .. }, _) if structured => {
                        return Err(ClientError::protocol(
                            "simple reply to a READ despite structured replies",
                        ));
                    }
                    (Expected::Extents, None) => {
                        return Err(ClientError::protocol("simple success of a BLOCK_STATUS"));
                    }
                    (_, Some(errno)) => {
                        pending.error = Some(ReplyError {
                            errno,
                            text: String::new(),
                        })
                    }
                    (Expected::Data { offset, length }, None) => {
                        let remaining = length as usize;
                        let at = self.cover(cookie, offset, u64::from(length))?;
                        self.state = State::Data {
                            done: true,
                            cookie,
                            at,
                            remaining,
                        };
                        return Ok(None);
                    }
                    (Expected::Nothing, None) => {}
                }
                self.chunk_end(cookie, true)
            }
            STRUCTURED_REPLY_MAGIC if self.structured_replies => {
                self.pending(cookie)?;
                let done = be_u16(bytes, 4) & chunk::FLAG_DONE != 0;
                self.state = State::ChunkLength {
                    kind: be_u16(bytes, 6),
                    done,
                    cookie,
                };
                Ok(None)
            }
            magic => Err(ClientError::protocol(format!(
                "reply starts with {magic:#010x}"
            ))),
        }
    }

    /// Bounds a chunk by its type before any of it is stored.
    fn chunk_length(
        &mut self,
        kind: u16,
        done: bool,
        cookie: Cookie,
        length: u32,
    ) -> Result<Option<Reply>, ClientError> {
        let length = length as usize;
        let expected = self.pending(cookie)?.expected;
        let legal = match (kind, expected) {
            (chunk::NONE, _) => length == 0 && done,
            (chunk::OFFSET_DATA, Expected::Data { length: asked, .. }) => {
                length > 8 && length - 8 <= asked as usize
            }
            (chunk::OFFSET_HOLE, Expected::Data { .. }) => length == 12,
            (chunk::BLOCK_STATUS, Expected::Extents) => {
                length >= 12
                    && (length - 4).is_multiple_of(8)
                    && (length - 4) / 8 <= limits::EXTENTS
            }
            (kind, _) => {
                kind & chunk::ERROR_BIT != 0 && (6..=6 + 8 + limits::STRING).contains(&length)
            }
        };
        if !legal {
            return Err(ClientError::protocol(format!(
                "chunk of type {kind} and {length} bytes for {expected:?}"
            )));
        }
        self.state = if kind == chunk::OFFSET_DATA {
            State::DataOffset {
                done,
                cookie,
                length: length - 8,
            }
        } else {
            State::ChunkBody {
                kind,
                done,
                cookie,
                length,
            }
        };
        Ok(None)
    }

    fn chunk_body(&mut self, kind: u16, cookie: Cookie, bytes: &[u8]) -> Result<(), ClientError> {
        match kind {
            chunk::NONE => {}
            chunk::OFFSET_HOLE => {
                // The buffer is born zeroed.
                self.cover(cookie, be_u64(bytes, 0), u64::from(be_u32(bytes, 8)))?;
            }
            chunk::BLOCK_STATUS => {
                let pending = self.pending(cookie)?;
                if !pending.extents.is_empty() {
                    return Err(ClientError::protocol(
                        "two BLOCK_STATUS chunks for one context",
                    ));
                }
                let extent = |raw: &[u8]| Extent {
                    length: be_u32(raw, 0),
                    status: be_u32(raw, 4),
                };
                pending.extents = bytes[4..].chunks_exact(8).map(extent).collect();
                if pending.extents.iter().any(|extent| extent.length == 0) {
                    return Err(ClientError::protocol("an extent of length zero"));
                }
            }
            _ => {
                let errno = Errno::from_wire(be_u32(bytes, 0))
                    .ok_or_else(|| ClientError::protocol("error chunk without an error"))?;
                let text = bytes[6..]
                    .get(..usize::from(be_u16(bytes, 4)))
                    .ok_or_else(|| ClientError::protocol("error text longer than its chunk"))?;
                let text = String::from_utf8_lossy(text).into_owned();
                self.pending(cookie)?
                    .error
                    .get_or_insert(ReplyError { errno, text });
            }
        }
        Ok(())
    }

    /// Accounts for content of a READ and gives its place in the buffer.
    fn cover(&mut self, cookie: Cookie, start: u64, count: u64) -> Result<usize, ClientError> {
        let pending = self.pending(cookie)?;
        let Expected::Data { offset, length } = pending.expected else {
            return Err(ClientError::protocol("data for a request that is no READ"));
        };
        let length = u64::from(length);
        let at = start
            .checked_sub(offset)
            .filter(|at| at.checked_add(count).is_some_and(|end| end <= length));
        let Some(at) = at else {
            return Err(ClientError::protocol("data outside the READ it answers"));
        };
        pending.covered += count;
        if pending.covered > length {
            return Err(ClientError::protocol("more data than the READ asked for"));
        }
        pending.data.resize(length as usize, 0);
        Ok(at as usize)
    }

    fn chunk_end(&mut self, cookie: Cookie, done: bool) -> Result<Option<Reply>, ClientError> {
        self.state = State::Head;
        if !done {
            return Ok(None);
        }
        let Some(pending) = self.pending.remove(&cookie) else {
            return Err(unexpected(cookie));
        };
        if let Some(error) = pending.error {
            return Ok(Some(Reply {
                cookie,
                result: Err(error),
                data: Vec::new(),
                extents: Vec::new(),
            }));
        }
        let complete = match pending.expected {
            Expected::Data { length, .. } => pending.covered == u64::from(length),
            Expected::Extents => !pending.extents.is_empty(),
            Expected::Nothing => true,
        };
        if !complete {
            return Err(ClientError::protocol(
                "success before the content was complete",
            ));
        }
        Ok(Some(Reply {
            cookie,
            result: Ok(()),
            data: pending.data,
            extents: pending.extents,
        }))
    }

    fn pending(&mut self, cookie: Cookie) -> Result<&mut Pending, ClientError> {
        self.pending
            .get_mut(&cookie)
            .ok_or_else(|| unexpected(cookie))
    }
}

fn unexpected(cookie: Cookie) -> ClientError {
    ClientError::protocol(format!(
        "reply with cookie {:#x}, which is not in flight",
        cookie.0
    ))
}
