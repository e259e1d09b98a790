//! Why bytes of the peer are not a message. Every variant that is found inside a message names its kind and field.

use core::fmt;

use super::kind::MessageKind;
use super::{FRAME_HEADER_BYTES, FRAME_MAGIC, WIRE_VERSION};

/// Why bytes are refused. The connection cannot go on after it: where the next frame begins is not known any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WireError {
    /// The head is shorter than a header.
    NoHeader {
        /// Bytes that there are.
        bytes: usize,
    },
    /// The header does not begin with [`FRAME_MAGIC`].
    Magic {
        /// What it begins with.
        found: [u8; 4],
    },
    /// A version that this release does not read.
    Version {
        /// The version.
        found: u8,
    },
    /// Flags that have no meaning in this version.
    Flags {
        /// All flags of the header.
        found: u16,
    },
    /// A number that stands for no message.
    Kind {
        /// The number.
        code: u8,
    },
    /// The header announces more than is allowed.
    TooLong {
        /// Kind of the message.
        kind: MessageKind,
        /// `body length` or `payload length`.
        field: &'static str,
        /// What it announces, in bytes.
        bytes: usize,
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// Header and body together have another length than the header says.
    HeadLength {
        /// Kind of the message.
        kind: MessageKind,
        /// What the header says, itself included, in bytes.
        announced: usize,
        /// What there is, in bytes.
        found: usize,
    },
    /// Header or body were damaged.
    Checksum {
        /// Kind of the message, if that is not damaged.
        kind: MessageKind,
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The payload that came has another length than the header says.
    Delivered {
        /// Kind of the message.
        kind: MessageKind,
        /// What the header says, in bytes.
        announced: usize,
        /// What came, in bytes.
        delivered: usize,
    },
    /// The body speaks of another payload than the header.
    PayloadLength {
        /// Kind of the message.
        kind: MessageKind,
        /// What the body says, in bytes; 0: no payload.
        expected: usize,
        /// What the header says, in bytes.
        announced: usize,
    },
    /// The body ends within a field.
    Truncated {
        /// Kind of the message.
        kind: MessageKind,
        /// The field.
        field: &'static str,
    },
    /// The body goes on after its last field.
    Trailing {
        /// Kind of the message.
        kind: MessageKind,
        /// How many bytes too many.
        bytes: usize,
    },
    /// A code that stands for nothing, or for nothing that a peer can say.
    Code {
        /// Kind of the message.
        kind: MessageKind,
        /// The field.
        field: &'static str,
        /// The code.
        code: u8,
    },
    /// A number outside of its bounds.
    Bounds {
        /// Kind of the message.
        kind: MessageKind,
        /// The field.
        field: &'static str,
        /// The number.
        value: u64,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// A text that is not UTF-8.
    Text {
        /// Kind of the message.
        kind: MessageKind,
        /// The field.
        field: &'static str,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            WireError::NoHeader { bytes } => {
                write!(
                    f,
                    "frame of {bytes} bytes, a header has {FRAME_HEADER_BYTES}"
                )
            }
            WireError::Magic { found } => {
                write!(
                    f,
                    "frame begins with {found:02x?} instead of {FRAME_MAGIC:02x?}"
                )
            }
            WireError::Version { found } => write!(
                f,
                "frame of wire version {found}, this node reads version {WIRE_VERSION}: \
                 run releases on both nodes that share a wire version"
            ),
            WireError::Flags { found } => {
                write!(f, "frame header with flags {found:#06x}, none are defined")
            }
            WireError::Kind { code } => write!(f, "message of unknown kind {code:#04x}"),
            WireError::TooLong {
                kind,
                field,
                bytes,
                limit,
            } => {
                write!(f, "{kind}: {field} {bytes}, at most {limit} are allowed")
            }
            WireError::HeadLength {
                kind,
                announced,
                found,
            } => write!(
                f,
                "{kind}: header and body have {found} bytes, the header announces {announced}"
            ),
            WireError::Checksum {
                kind,
                stored,
                computed,
            } => write!(
                f,
                "{kind}: checksum {computed:08x} does not match {stored:08x} in the header"
            ),
            WireError::Delivered {
                kind,
                announced,
                delivered,
            } => write!(
                f,
                "{kind}: payload of {delivered} bytes, the header announces {announced}"
            ),
            WireError::PayloadLength {
                kind,
                expected,
                announced,
            } => write!(
                f,
                "{kind}: the header announces a payload of {announced} bytes, the body speaks of {expected}"
            ),
            WireError::Truncated { kind, field } => {
                write!(f, "{kind}: the body ends before the end of field {field}")
            }
            WireError::Trailing { kind, bytes } => {
                write!(f, "{kind}: {bytes} bytes after the last field")
            }
            WireError::Code { kind, field, code } => {
                write!(f, "{kind}, field {field}: code {code} has no meaning")
            }
            WireError::Bounds {
                kind,
                field,
                value,
                least,
                most,
            } => {
                write!(
                    f,
                    "{kind}, field {field}: {value} is outside of {least}..={most}"
                )
            }
            WireError::Text { kind, field } => write!(f, "{kind}, field {field}: not UTF-8"),
        }
    }
}

impl core::error::Error for WireError {}
