//! Heads of replies: everything of a reply but the data of a READ, which the owner sends from its own buffer.
//!
//! Invariants:
//! - With structured replies negotiated a READ never gets a simple reply, success or error. Errors to any command are
//!   then ERROR chunks with a text; success without data stays a simple reply, which the spec allows and is shortest.
//! - Every reply is one chunk with DONE. So a READ is never fragmented and DF needs no care; an error after the head of a
//!   READ was sent cannot be expressed, and the owner must close.

use std::ops::Deref;

use crate::errno::Errno;
use crate::protocol::{
    BASE_ALLOCATION_ID, CHUNK_HEADER_LENGTH, Cookie, Extent, SIMPLE_REPLY_LENGTH,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, bounded_text, chunk, limits,
};

use super::request::{Answer, Command, Outcome, Request, Session};

const OFFSET_DATA_HEAD_LENGTH: usize = CHUNK_HEADER_LENGTH + 8;

/// The head of a reply, without allocation. Use it as a slice of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; OFFSET_DATA_HEAD_LENGTH],
    length: u8,
}

impl Head {
    fn new(content: &[u8]) -> Self {
        let mut bytes = [0; OFFSET_DATA_HEAD_LENGTH];
        bytes[..content.len()].copy_from_slice(content);
        Self {
            bytes,
            length: content.len() as u8,
        }
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl AsRef<[u8]> for Head {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A simple reply; `None` is success.
pub fn simple_reply(cookie: Cookie, errno: Option<Errno>) -> [u8; SIMPLE_REPLY_LENGTH] {
    let mut bytes = [0; SIMPLE_REPLY_LENGTH];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.map_or(0, Errno::number).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    bytes
}

/// The head of the only OFFSET_DATA chunk of a READ; `length` bytes of data follow.
///
/// # Panics
/// When `length` is zero or above `limits::PAYLOAD`, which a valid request never is.
pub fn offset_data_head(cookie: Cookie, offset: u64, length: u32) -> [u8; OFFSET_DATA_HEAD_LENGTH] {
    assert!(
        (1..=limits::PAYLOAD).contains(&length),
        "READ of {length} bytes"
    );
    let mut bytes = [0; OFFSET_DATA_HEAD_LENGTH];
    bytes[..CHUNK_HEADER_LENGTH].copy_from_slice(&chunk_header(
        chunk::OFFSET_DATA,
        cookie,
        8 + length,
    ));
    bytes[CHUNK_HEADER_LENGTH..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

fn chunk_header(kind: u16, cookie: Cookie, length: u32) -> [u8; CHUNK_HEADER_LENGTH] {
    let mut bytes = [0; CHUNK_HEADER_LENGTH];
    bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    bytes[16..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

impl Session {
    /// Success of anything but READ and BLOCK_STATUS.
    pub fn done(&self, cookie: Cookie) -> Head {
        Head::new(&simple_reply(cookie, None))
    }

    /// Success of a READ; the request's data follows.
    pub fn read_head(&self, request: &Request) -> Head {
        debug_assert_eq!(request.command, Command::Read);
        if self.structured_replies() {
            Head::new(&offset_data_head(
                request.cookie,
                request.offset,
                request.length,
            ))
        } else {
            Head::new(&simple_reply(request.cookie, None))
        }
    }

    /// Failure of any request. The text is for people and is dropped when only simple replies were negotiated.
    pub fn error(&self, cookie: Cookie, errno: Errno, text: &str) -> Vec<u8> {
        if !self.structured_replies() {
            return simple_reply(cookie, Some(errno)).to_vec();
        }
        let text = bounded_text(text);
        let mut reply = chunk_header(chunk::ERROR, cookie, 6 + text.len() as u32).to_vec();
        reply.extend_from_slice(&errno.number().to_be_bytes());
        reply.extend_from_slice(&(text.len() as u16).to_be_bytes());
        reply.extend_from_slice(text.as_bytes());
        reply
    }

    /// Success of a BLOCK_STATUS: extents from the request's offset on. They may cover less than the request; what reaches
    /// beyond it, and all but the first when the client asked for one, is cut off. One extent of status 0 and the
    /// request's length is always legal.
    ///
    /// # Panics
    /// When there is no extent, or one of length zero.
    pub fn block_status(&self, request: &Request, extents: &[Extent]) -> Vec<u8> {
        let Command::BlockStatus { one_extent } = request.command else {
            panic!("{:?} is no BLOCK_STATUS", request.command);
        };
        assert!(!extents.is_empty(), "a BLOCK_STATUS reply needs an extent");
        let most = if one_extent { 1 } else { limits::EXTENTS };
        let mut remaining = request.length;
        let mut payload = BASE_ALLOCATION_ID.to_be_bytes().to_vec();
        for extent in extents.iter().take(most) {
            assert!(extent.length > 0, "an extent of length zero");
            if remaining == 0 {
                break;
            }
            let length = extent.length.min(remaining);
            remaining -= length;
            payload.extend_from_slice(&length.to_be_bytes());
            payload.extend_from_slice(&extent.status.to_be_bytes());
        }
        let mut reply =
            chunk_header(chunk::BLOCK_STATUS, request.cookie, payload.len() as u32).to_vec();
        reply.extend_from_slice(&payload);
        reply
    }

    /// The reply that the validator decided.
    pub fn answer(&self, answer: &Answer) -> Vec<u8> {
        match answer.outcome {
            Outcome::Refused { errno, text } => self.error(answer.cookie, errno, text),
            // Right for a READ too, whose data chunk could not be empty.
            Outcome::Empty if self.structured_replies() => {
                chunk_header(chunk::NONE, answer.cookie, 0).to_vec()
            }
            Outcome::Empty => simple_reply(answer.cookie, None).to_vec(),
        }
    }
}
