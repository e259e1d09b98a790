//! Messages as bytes: frames of header, body and payload, laid out by hand, little-endian. Described byte by byte in
//! `docs/wire-protocol.md`.
//!
//! ```text
//!  0  magic           4   "QRBF"
//!  4  version         1   1
//!  5  kind            1   MessageKind
//!  6  flags           2   0
//!  8  body length     4   at most MAX_BODY_BYTES
//! 12  payload length  4   at most MAX_REQUEST_BYTES
//! 16  checksum        4   CRC-32 (IEEE) of bytes 0..16 and the body
//! 20  body, then payload
//! ```
//!
//! Invariants: a message has exactly one form in bytes, and decoding accepts nothing else; nothing is allocated that the bytes at
//! hand do not account for. The payload is not copied and has no checksum: QUIC authenticates every packet, so a second sum
//! would only guard against this host's memory. The head has one because it is cheap there and catches a frame that is cut at
//! the wrong place before it is obeyed.
//!
//! Not here: which message is allowed when (the engine), whether it came on its lane (the caller compares), the bytes' way
//! (the transport).

mod codes;
mod decode;
mod encode;
mod error;
mod kind;
mod reader;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use encode::{Length, Sink, put_body};
pub use error::WireError;
pub use kind::MessageKind;

use crate::api::Payload;
use crate::limits::{MAX_BODY_BYTES, MAX_REQUEST_BYTES};
use crate::wire::{Lane, Message};

/// What every frame begins with.
pub const FRAME_MAGIC: [u8; 4] = *b"QRBF";
/// Version of the frames and messages that this release writes and reads.
pub const WIRE_VERSION: u8 = 1;
/// Bytes of the fixed header.
pub const FRAME_HEADER_BYTES: usize = 20;

const VERSION_AT: usize = 4;
const KIND_AT: usize = 5;
const FLAGS_AT: usize = 6;
const BODY_LENGTH_AT: usize = 8;
const PAYLOAD_LENGTH_AT: usize = 12;
const CHECKSUM_AT: usize = 16;
const _: () = assert!(CHECKSUM_AT + 4 == FRAME_HEADER_BYTES);

/// Lengths of what follows a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLengths {
    /// Bytes of the body, at most [`MAX_BODY_BYTES`].
    pub body: usize,
    /// Bytes of the payload, at most [`MAX_REQUEST_BYTES`]; 0 where the kind has none.
    pub payload: usize,
}

fn u32_at(header: &[u8; FRAME_HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn parse(header: &[u8; FRAME_HEADER_BYTES]) -> Result<(MessageKind, FrameLengths), WireError> {
    let [m0, m1, m2, m3, ..] = *header;
    if [m0, m1, m2, m3] != FRAME_MAGIC {
        return Err(WireError::Magic {
            found: [m0, m1, m2, m3],
        });
    }
    if header[VERSION_AT] != WIRE_VERSION {
        return Err(WireError::Version {
            found: header[VERSION_AT],
        });
    }
    let flags = u16::from_le_bytes([header[FLAGS_AT], header[FLAGS_AT + 1]]);
    if flags != 0 {
        return Err(WireError::Flags { found: flags });
    }
    let code = header[KIND_AT];
    let kind = MessageKind::from_code(code).ok_or(WireError::Kind { code })?;
    let lengths = FrameLengths {
        body: u32_at(header, BODY_LENGTH_AT) as usize,
        payload: u32_at(header, PAYLOAD_LENGTH_AT) as usize,
    };
    let payload_limit = if kind.carries_payload() {
        MAX_REQUEST_BYTES as usize
    } else {
        0
    };
    for (field, bytes, limit) in [
        ("body length", lengths.body, MAX_BODY_BYTES),
        ("payload length", lengths.payload, payload_limit),
    ] {
        if bytes > limit {
            return Err(WireError::TooLong {
                kind,
                field,
                bytes,
                limit,
            });
        }
    }
    Ok((kind, lengths))
}

/// What follows a header, known before it came. The checksum is left to [`decode`]: it covers the body too.
///
/// # Errors
/// Wrong magic, version, flags or kind; a length beyond its limit; a payload announced for a kind that has none.
pub fn parse_frame_header(header: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameLengths, WireError> {
    parse(header).map(|(_, lengths)| lengths)
}

/// CRC-32 of the header before its checksum, and the body.
fn checksum(head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..CHECKSUM_AT]);
    hasher.update(&head[FRAME_HEADER_BYTES..]);
    hasher.finalize()
}

/// The payload that follows the head of the message.
#[must_use]
pub fn payload_of<P>(message: &Message<P>) -> Option<&P> {
    match message {
        Message::Write { payload, .. } | Message::ResyncData { payload, .. } => Some(payload),
        Message::ReadReply { payload, .. } => payload.as_ref(),
        _ => None,
    }
}

/// Header and body of a message, in one allocation of exactly their size. The frame is this and then [`payload_of`].
///
/// # Panics
/// If the message breaks a bound of [`crate::limits`], or its payload is not as long as its range: a bug of this node.
/// A text that is too long is cut.
#[must_use]
pub fn encode_head<P: Payload>(message: &Message<P>) -> Vec<u8> {
    let payload_bytes = payload_of(message).map_or(0, Payload::length);
    if let Message::Write { range, .. } | Message::ResyncData { range, .. } = message {
        assert_eq!(
            payload_bytes, range.length as usize,
            "payload of the range {range}"
        );
    }
    if payload_of(message).is_some() {
        let allowed = 1..=MAX_REQUEST_BYTES as usize;
        assert!(
            allowed.contains(&payload_bytes),
            "payload of {payload_bytes} bytes"
        );
    }
    let mut body = Length(0);
    put_body(&mut body, message);
    let Length(body_bytes) = body;

    let mut head = Vec::with_capacity(FRAME_HEADER_BYTES + body_bytes);
    head.bytes(&FRAME_MAGIC);
    head.u8(WIRE_VERSION);
    head.u8(MessageKind::of(message).code());
    head.u16(0);
    head.u32(body_bytes as u32);
    head.u32(payload_bytes as u32);
    head.u32(0);
    put_body(&mut head, message);
    let sum = checksum(&head);
    head[CHECKSUM_AT..FRAME_HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    head
}

/// The message of a frame, from its head (header and body) and its payload, which may be `None` if its length is 0. The caller
/// checks that it came on the lane that is returned.
///
/// # Errors
/// [`WireError`], naming kind and field; the connection cannot go on.
pub fn decode<P: Payload>(
    head: &[u8],
    payload: Option<P>,
) -> Result<(Lane, Message<P>), WireError> {
    let Some((header, body)) = head.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(WireError::NoHeader { bytes: head.len() });
    };
    let (kind, lengths) = parse(header)?;
    if body.len() != lengths.body {
        let announced = FRAME_HEADER_BYTES + lengths.body;
        return Err(WireError::HeadLength {
            kind,
            announced,
            found: head.len(),
        });
    }
    let (stored, computed) = (u32_at(header, CHECKSUM_AT), checksum(head));
    if stored != computed {
        return Err(WireError::Checksum {
            kind,
            stored,
            computed,
        });
    }
    let delivered = payload.as_ref().map_or(0, Payload::length);
    if delivered != lengths.payload {
        return Err(WireError::Delivered {
            kind,
            announced: lengths.payload,
            delivered,
        });
    }
    let message = decode::message(kind, body, lengths.payload, payload)?;
    Ok((message.lane(), message))
}
