//! Frames of the control socket: the only place that knows the serialisation library.
//!
//! A frame is `length: u32 LE` (bytes after this field), `version: u8`, payload. The payload is bincode 2 with fixed-width
//! little-endian integers: enum tags are `u32` in declaration order, fields in declaration order, so both orders are part
//! of the format and pinned by golden bytes in the tests of this module.
//!
//! Invariants: `length` is within `1..=MAX_FRAME_BYTES`; a hostile inner length fails before it allocates; bytes left
//! over after the message are an error.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the message set. Changed whenever a message changes its encoding.
pub const VERSION: u8 = 1;
/// Most bytes that may follow the length field: 1 MiB.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Bytes of the length field.
pub const HEADER_BYTES: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The length field is zero or beyond the bound.
    #[error("control frame of {length} bytes: allowed are 1..={MAX_FRAME_BYTES}")]
    Length {
        /// The value found.
        length: usize,
    },
    /// The other side speaks another version.
    #[error(
        "control protocol version {found}, this program speaks {VERSION}: install the same version of qrbdd and qrbdadm"
    )]
    Version {
        /// The version found.
        found: u8,
    },
    /// The payload is not a message of this version.
    #[error("malformed control message: {reason}")]
    Malformed {
        /// What the decoder found.
        reason: String,
    },
    /// Bytes follow the message inside the frame.
    #[error("{count} bytes follow the control message inside its frame")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// The message does not fit into a frame.
    #[error("control message does not fit into {MAX_FRAME_BYTES} bytes: {reason}")]
    TooLarge {
        /// What the encoder said.
        reason: String,
    },
    /// The socket failed or closed in the middle of a frame.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
}

/// The whole frame of `message`, header included.
///
/// # Errors
/// [`CodecError::TooLarge`] if it exceeds [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.push(VERSION);
    bincode::serde::encode_into_std_write(message, &mut frame, configuration()).map_err(
        |error| CodecError::TooLarge {
            reason: error.to_string(),
        },
    )?;
    let length = frame.len() - HEADER_BYTES;
    if length > MAX_FRAME_BYTES {
        return Err(CodecError::TooLarge {
            reason: format!("{length} bytes"),
        });
    }
    frame[..HEADER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// Number of bytes that follow `header`, checked against the bound.
///
/// # Errors
/// [`CodecError::Length`].
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, CodecError> {
    let length = u32::from_le_bytes(header) as usize;
    if (1..=MAX_FRAME_BYTES).contains(&length) {
        Ok(length)
    } else {
        Err(CodecError::Length { length })
    }
}

/// The message in `body`, which is the frame without its length field.
///
/// # Errors
/// [`CodecError::Version`], [`CodecError::Malformed`], [`CodecError::TrailingBytes`], [`CodecError::Length`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    if body.len() > MAX_FRAME_BYTES {
        return Err(CodecError::Length { length: body.len() });
    }
    let (&found, payload) = body.split_first().ok_or(CodecError::Length { length: 0 })?;
    if found != VERSION {
        return Err(CodecError::Version { found });
    }
    let (message, consumed) =
        bincode::serde::decode_from_slice(payload, configuration()).map_err(|error| {
            CodecError::Malformed {
                reason: error.to_string(),
            }
        })?;
    match payload.len() - consumed {
        0 => Ok(message),
        count => Err(CodecError::TrailingBytes { count }),
    }
}

/// Reads one message; `None` if the stream ended before the first byte of a frame.
///
/// # Errors
/// Any [`CodecError`]; an end inside a frame is [`CodecError::Io`].
pub fn read_message<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, CodecError> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match stream.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Writes one message.
///
/// # Errors
/// [`CodecError::TooLarge`] or [`CodecError::Io`].
pub fn write_message<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), CodecError> {
    stream.write_all(&encode(message)?)?;
    stream.flush()?;
    Ok(())
}

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<MAX_FRAME_BYTES>()
}
