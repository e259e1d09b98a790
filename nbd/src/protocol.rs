//! Numbers and names of the NBD protocol, spelled as in `doc/proto.md` without the `NBD_` prefix.
//!
//! Owns the constants, the sizes of the fixed messages and the bounds this crate sets on everything a peer can make long.
//! Contains no behaviour.

/// First eight bytes of the server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": second half of the greeting and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of the server's greeting.
pub const GREETING_LENGTH: usize = 18;
/// Bytes before an option's data.
pub const OPTION_HEADER_LENGTH: usize = 16;
/// Bytes before an option reply's data.
pub const OPTION_REPLY_HEADER_LENGTH: usize = 20;
/// Bytes of a compact request without its payload.
pub const REQUEST_LENGTH: usize = 28;
/// Bytes of a simple reply without the data of a READ.
pub const SIMPLE_REPLY_LENGTH: usize = 16;
/// Bytes before the payload of a structured reply chunk.
pub const CHUNK_HEADER_LENGTH: usize = 20;
/// Reserved zero bytes after an EXPORT_NAME reply, unless both sides set NO_ZEROES.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// Upper bounds, in bytes unless the name says otherwise.
pub mod limits {
    /// Longest string of the protocol (export name, query, description, error text).
    pub const STRING: usize = 4096;
    /// Option data that is buffered and understood; longer data of a known option gets `ERR_TOO_BIG`.
    pub const OPTION_DATA: u32 = 64 * 1024;
    /// Option data that is skipped; a longer option ends the session.
    pub const OPTION_SKIP: u32 = 32 * 1024 * 1024;
    /// Options one session may send before it is ended, a count.
    pub const OPTIONS_PER_SESSION: u32 = 1024;
    /// Largest payload of READ and WRITE, which servers SHOULD accept from clients that negotiated no sizes.
    pub const PAYLOAD: u32 = 32 * 1024 * 1024;
    /// A refused WRITE up to this length is drained and answered; a longer one ends the session.
    pub const DRAIN: u32 = 64 * 1024 * 1024;
    /// Descriptors in one BLOCK_STATUS chunk, a count.
    pub const EXTENTS: usize = 1 << 20;
    /// Largest export: clients keep sizes in signed 64-bit numbers.
    pub const EXPORT_SIZE: u64 = i64::MAX as u64;
    /// Option reply data that the client accepts.
    pub const OPTION_REPLY: u32 = 64 * 1024;
}

/// Handshake flags, both directions: the server's 16 bits and the client's 32 bits use the same numbers.
pub mod handshake_flag {
    /// Fixed newstyle: errors to options have replies.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zero bytes after an EXPORT_NAME reply.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the client during the handshake.
pub mod option {
    /// Choose an export, without a way to report errors.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// Names of all exports.
    pub const LIST: u32 = 3;
    /// Change to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and begin the transmission.
    pub const GO: u32 = 7;
    /// Negotiate structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which metadata contexts exist.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts for BLOCK_STATUS.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Negotiate 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod option_reply {
    /// Success, or the end of a list.
    pub const ACK: u32 = 1;
    /// One export of a LIST.
    pub const SERVER: u32 = 2;
    /// One piece of information of INFO or GO.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// Option unknown.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Option or export forbidden at present.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// Option malformed, or sent at the wrong time.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Not possible on this platform.
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    /// TLS first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The client must negotiate block sizes.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// Option too large to be understood.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Types of information in INFO and GO.
pub mod info {
    /// Size and transmission flags; always sent.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for a person.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum and preferred block size, maximum payload.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Request types.
pub mod command {
    /// Read data.
    pub const READ: u16 = 0;
    /// Write data; the only compact request with a payload.
    pub const WRITE: u16 = 1;
    /// End of the session, without a reply.
    pub const DISC: u16 = 2;
    /// Make answered writes stable.
    pub const FLUSH: u16 = 3;
    /// The content is no longer needed.
    pub const TRIM: u16 = 4;
    /// A read is expected soon.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Query metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod command_flag {
    /// Stable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES must keep the blocks allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ in at most one content chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS with one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES fails when it is not faster than WRITE.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types and flags of structured reply chunks.
pub mod chunk {
    /// Flag: last chunk of the reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No content; only useful as the last chunk.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Descriptors of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// Error with text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// Error with text and offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// The metadata context this crate offers.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number in BLOCK_STATUS chunks of the server.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// The client's opaque name of a request; the reply carries it back. The spec also calls it "handle".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// One descriptor of BLOCK_STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, never zero.
    pub length: u32,
    /// Flags of the context. For `base:allocation` bit 0 is a hole, bit 1 reads as zeroes, and 0 is always legal.
    pub status: u32,
}

/// The first `limits::STRING` bytes of a text, cut at a character.
pub(crate) fn bounded_text(text: &str) -> &str {
    let mut end = text.len().min(limits::STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Moves bytes from `input` until `buffer` holds `length`; true when it does.
pub(crate) fn fill(buffer: &mut Vec<u8>, input: &mut &[u8], length: usize) -> bool {
    let count = length.saturating_sub(buffer.len()).min(input.len());
    let (taken, rest) = input.split_at(count);
    buffer.extend_from_slice(taken);
    *input = rest;
    buffer.len() >= length
}

pub(crate) fn be_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
