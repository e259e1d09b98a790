//! What the owner of the transport supplies: how long a frame is, and where received payloads go.
//!
//! A frame on a lane is `header` (fixed size) + `body` + `payload`. The transport reads the header only to learn the two
//! lengths; it enforces [`limits`](crate::limits) on them and looks at nothing else.

use std::borrow::Cow;

use bytes::Bytes;

use crate::limits::{MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES};

/// Lengths of the two variable parts of a frame, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLengths {
    /// Bytes between header and payload, at most [`MAX_BODY_BYTES`].
    pub body: usize,
    /// Bytes of payload, at most [`MAX_PAYLOAD_BYTES`].
    pub payload: usize,
}

/// Why a header is not one; the text goes to the log and, as the reason of the close, to the peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(pub Cow<'static, str>);

/// How long the owner's frames are.
pub trait FrameCodec: Send + Sync + 'static {
    /// Bytes of the fixed header, at least 1 and at most [`MAX_HEADER_BYTES`].
    const HEADER_BYTES: usize;

    /// Lengths of body and payload that `header` (exactly [`Self::HEADER_BYTES`] bytes) announces.
    ///
    /// # Errors
    /// If the header is not one of this protocol; the session is closed as a protocol violation.
    fn lengths(header: &[u8]) -> Result<FrameLengths, CodecError>;
}

/// Where received payloads are put. A payload is copied exactly once, from QUIC's buffers into the allocator's.
pub trait PayloadAllocator: Send + Sync + 'static {
    /// A buffer that is being filled; only the first `length` bytes that were asked for are written.
    type Buffer: AsMut<[u8]> + Send;
    /// A filled buffer.
    type Payload: Send + 'static;

    /// A buffer of at least `length` bytes, with any contents. How many bytes are out at once is bounded by the budgets
    /// of the lanes.
    fn allocate(&self, length: usize) -> Self::Buffer;

    /// The buffer when its bytes are complete.
    fn freeze(buffer: Self::Buffer) -> Self::Payload;
}

/// An allocator for owners that need no alignment: payloads are [`Bytes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct BytesAllocator;

impl PayloadAllocator for BytesAllocator {
    type Buffer = Vec<u8>;
    type Payload = Bytes;

    fn allocate(&self, length: usize) -> Vec<u8> {
        vec![0; length]
    }

    fn freeze(buffer: Vec<u8>) -> Bytes {
        Bytes::from(buffer)
    }
}

/// The codec's answer for `header`, held against the limits.
pub(crate) fn checked_lengths<C: FrameCodec>(header: &[u8]) -> Result<FrameLengths, CodecError> {
    const { assert!(C::HEADER_BYTES >= 1 && C::HEADER_BYTES <= MAX_HEADER_BYTES) };
    let lengths = C::lengths(header)?;
    if lengths.body > MAX_BODY_BYTES {
        return Err(CodecError(
            format!(
                "body of {} bytes, at most {MAX_BODY_BYTES} are allowed",
                lengths.body
            )
            .into(),
        ));
    }
    if lengths.payload > MAX_PAYLOAD_BYTES {
        return Err(CodecError(
            format!(
                "payload of {} bytes, at most {MAX_PAYLOAD_BYTES} are allowed",
                lengths.payload
            )
            .into(),
        ));
    }
    Ok(lengths)
}
