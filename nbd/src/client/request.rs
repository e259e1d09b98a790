//! Encoding of requests. Checks nothing, so that tests can send what no good client would.

use std::ops::BitOr;

use crate::protocol::{Cookie, REQUEST_LENGTH, REQUEST_MAGIC, command_flag};

/// Flags of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RequestFlags(pub u16);

impl RequestFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Stable before the reply.
    pub const FUA: Self = Self(command_flag::FUA);
    /// Keep blocks allocated.
    pub const NO_HOLE: Self = Self(command_flag::NO_HOLE);
    /// One content chunk.
    pub const DF: Self = Self(command_flag::DF);
    /// One extent.
    pub const REQ_ONE: Self = Self(command_flag::REQ_ONE);
    /// Fail rather than write slowly.
    pub const FAST_ZERO: Self = Self(command_flag::FAST_ZERO);

    /// FUA or nothing.
    pub const fn fua(fua: bool) -> Self {
        if fua { Self::FUA } else { Self::NONE }
    }
}

impl BitOr for RequestFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The header of a request; a WRITE's payload follows it. `command` is one of `protocol::command`, `length` in bytes.
pub fn encode_request(
    command: u16,
    flags: RequestFlags,
    cookie: Cookie,
    offset: u64,
    length: u32,
) -> [u8; REQUEST_LENGTH] {
    let mut bytes = [0; REQUEST_LENGTH];
    bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.0.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&length.to_be_bytes());
    bytes
}
