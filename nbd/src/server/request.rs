//! The transmission phase of one connection: the one validator that every request passes before anything else sees it.
//!
//! Owns the rules and error numbers of `doc/proto.md` for bad requests. Order of the rules: magic, command and its flags,
//! permission, payload limit, alignment, range; the first that is broken gives the answer.
//!
//! Invariants of an accepted [`Request`]:
//! - `offset + length` does not overflow and lies within the export; both are multiples of the minimum block size;
//! - `length` is not zero, except for FLUSH, where offset and length are zero;
//! - READ and WRITE are not longer than the advertised maximum payload (TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS may be
//!   just under 4 GiB);
//! - the command and each of its flags were advertised, and it does not change a read-only export.
//!
//! Deliberately absent: order, overlap and completion of requests, which are the owner's.

use crate::errno::Errno;
use crate::export::{ExportInfo, ExportInfoError, TransmissionFlags};
use crate::protocol::{
    Cookie, REQUEST_LENGTH, REQUEST_MAGIC, be_u16, be_u32, be_u64, command, command_flag, limits,
};

/// A valid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: Cookie,
    /// What to do.
    pub command: Command,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// The reply must wait until the change is stable. Only ever set on WRITE, TRIM and WRITE_ZEROES.
    pub fua: bool,
}

impl Request {
    /// Bytes of payload that follow on the stream: the length of a WRITE, zero otherwise.
    pub const fn payload_length(&self) -> u32 {
        match self.command {
            Command::Write => self.length,
            _ => 0,
        }
    }

    /// The first byte after the range.
    pub const fn end(&self) -> u64 {
        self.offset + self.length as u64
    }
}

/// What a valid request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Answer with [`Session::read_head`] and the data.
    Read,
    /// The payload follows on the stream.
    Write,
    /// Stable: every write whose reply was sent, on all connections if `CAN_MULTI_CONN` was advertised.
    Flush,
    /// A hint; doing nothing is legal.
    Trim,
    /// The range must read as zeroes afterwards.
    WriteZeroes {
        /// Keep the blocks allocated.
        no_hole: bool,
        /// `ENOTSUP` at once if this is not faster than writing.
        fast_zero: bool,
    },
    /// A hint that the range will be read.
    Cache,
    /// Answer with [`Session::block_status`].
    BlockStatus {
        /// The client wants the first extent only.
        one_extent: bool,
    },
}

/// What to do with 28 bytes from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Read [`Request::payload_length`] bytes, execute, reply.
    Request(Request),
    /// Drain [`Answer::drain`] bytes, then send [`Session::answer`]; nothing to execute.
    Answer(Answer),
    /// Finish what is in flight and close; there is no reply.
    Disconnect,
}

/// A reply that the validator itself decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The client's name for the request.
    pub cookie: Cookie,
    /// Success or error.
    pub outcome: Outcome,
    /// Payload bytes to read and forget before the next header.
    pub drain: u32,
}

/// The content of an [`Answer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A request of length zero: there is nothing to do.
    Empty,
    /// A bad request.
    Refused {
        /// The number for the reply.
        errno: Errno,
        /// The rule that was broken, for people.
        text: &'static str,
    },
}

/// The stream is lost: close at once, no reply is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransmissionError {
    /// The stream is out of step.
    #[error("request starts with {0:#010x} instead of {REQUEST_MAGIC:#010x}")]
    RequestMagic(u32),
    /// More payload than this server is willing to drain.
    #[error("WRITE announces {length} bytes, the limit is {limit}", limit = limits::DRAIN)]
    PayloadTooLong {
        /// Bytes.
        length: u32,
    },
}

/// What was negotiated on one connection; checks its requests and makes its replies.
#[derive(Clone, Debug)]
pub struct Session {
    export: ExportInfo,
    flags: TransmissionFlags,
    structured_replies: bool,
    allocation: bool,
}

impl Session {
    pub(super) fn new(export: ExportInfo, structured_replies: bool, allocation: bool) -> Self {
        let mut flags = export.flags() | TransmissionFlags::HAS_FLAGS;
        if structured_replies {
            flags = flags | TransmissionFlags::SEND_DF;
        }
        Self {
            export,
            flags,
            structured_replies,
            allocation,
        }
    }

    /// A connection whose client was told everything by other means and speaks only simple replies, such as a kernel that
    /// received the socket from the server's own process. Such a client must get [`Session::flags`].
    pub fn without_handshake(export: ExportInfo) -> Self {
        Self::new(export, false, false)
    }

    /// The export.
    pub fn export(&self) -> &ExportInfo {
        &self.export
    }

    /// The transmission flags as the client sees them.
    pub fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// Whether structured replies were negotiated.
    pub fn structured_replies(&self) -> bool {
        self.structured_replies
    }

    /// Accepts requests for a changed size. NBD cannot tell the client; a kernel learns it by RECONFIGURE.
    ///
    /// # Errors
    /// The size breaks a rule of [`ExportInfo::new`]; the old one stays.
    pub fn set_size(&mut self, size: u64) -> Result<(), ExportInfoError> {
        self.export.set_size(size)
    }

    /// Decides about a request from its header.
    ///
    /// # Errors
    /// The connection must be closed.
    pub fn check(&self, header: &[u8; REQUEST_LENGTH]) -> Result<Received, TransmissionError> {
        let magic = be_u32(header, 0);
        if magic != REQUEST_MAGIC {
            return Err(TransmissionError::RequestMagic(magic));
        }
        let raw = RawRequest {
            flags: be_u16(header, 4),
            command: be_u16(header, 6),
            offset: be_u64(header, 16),
            length: be_u32(header, 24),
        };
        if raw.command == command::DISC {
            return Ok(Received::Disconnect);
        }
        let drain = if raw.command == command::WRITE {
            raw.length
        } else {
            0
        };
        if drain > limits::DRAIN {
            return Err(TransmissionError::PayloadTooLong { length: drain });
        }
        let cookie = Cookie(be_u64(header, 8));
        let outcome = match self.accept(&raw) {
            Ok(command) if raw.length == 0 && command != Command::Flush => Outcome::Empty,
            Ok(command) => {
                let changes = matches!(
                    command,
                    Command::Write | Command::Trim | Command::WriteZeroes { .. }
                );
                let fua = changes && raw.has(command_flag::FUA);
                return Ok(Received::Request(Request {
                    cookie,
                    command,
                    offset: raw.offset,
                    length: raw.length,
                    fua,
                }));
            }
            Err(refused) => Outcome::Refused {
                errno: refused.0,
                text: refused.1,
            },
        };
        Ok(Received::Answer(Answer {
            cookie,
            outcome,
            drain,
        }))
    }

    fn accept(&self, raw: &RawRequest) -> Result<Command, Refused> {
        let offers = |flag| self.flags.contains(flag);
        let (command, offered, allowed) = match raw.command {
            command::READ => (Command::Read, true, command_flag::DF),
            command::WRITE => (Command::Write, true, 0),
            command::FLUSH => (Command::Flush, offers(TransmissionFlags::SEND_FLUSH), 0),
            command::TRIM => (Command::Trim, offers(TransmissionFlags::SEND_TRIM), 0),
            command::CACHE => (Command::Cache, offers(TransmissionFlags::SEND_CACHE), 0),
            command::WRITE_ZEROES => (
                Command::WriteZeroes {
                    no_hole: raw.has(command_flag::NO_HOLE),
                    fast_zero: raw.has(command_flag::FAST_ZERO),
                },
                offers(TransmissionFlags::SEND_WRITE_ZEROES),
                command_flag::NO_HOLE | command_flag::FAST_ZERO,
            ),
            command::BLOCK_STATUS => (
                Command::BlockStatus {
                    one_extent: raw.has(command_flag::REQ_ONE),
                },
                self.allocation,
                command_flag::REQ_ONE,
            ),
            _ => return Err(Refused(Errno::Einval, "unknown command")),
        };
        self.accept_flags(raw, allowed)?;
        let changes = matches!(
            command,
            Command::Write | Command::Trim | Command::WriteZeroes { .. }
        );
        if changes && offers(TransmissionFlags::READ_ONLY) {
            return Err(Refused(Errno::Eperm, "the export is read-only"));
        }
        if !offered {
            return Err(Refused(Errno::Einval, "the command was not negotiated"));
        }
        if command == Command::Flush {
            if (raw.offset, raw.length) != (0, 0) {
                return Err(Refused(
                    Errno::Einval,
                    "offset and length of a flush must be zero",
                ));
            }
            return Ok(command);
        }
        self.accept_range(raw, command)?;
        Ok(command)
    }

    /// FUA is legal on every command once it is advertised; the others belong to one command each.
    fn accept_flags(&self, raw: &RawRequest, mut allowed: u16) -> Result<(), Refused> {
        if self.flags.contains(TransmissionFlags::SEND_FUA) {
            allowed |= command_flag::FUA;
        }
        if !self.flags.contains(TransmissionFlags::SEND_DF) {
            allowed &= !command_flag::DF;
        }
        if !self.flags.contains(TransmissionFlags::SEND_FAST_ZERO) {
            allowed &= !command_flag::FAST_ZERO;
        }
        if raw.flags & !allowed != 0 {
            return Err(Refused(
                Errno::Einval,
                "unknown flag, or not legal on this command",
            ));
        }
        Ok(())
    }

    fn accept_range(&self, raw: &RawRequest, command: Command) -> Result<(), Refused> {
        let sizes = self.export.block_sizes();
        if matches!(command, Command::Read | Command::Write) && raw.length > sizes.maximum_payload()
        {
            let errno = if raw.has(command_flag::DF) {
                Errno::Eoverflow
            } else {
                Errno::Einval
            };
            return Err(Refused(errno, "longer than the maximum payload"));
        }
        let minimum = sizes.minimum();
        if !raw.offset.is_multiple_of(u64::from(minimum)) || !raw.length.is_multiple_of(minimum) {
            return Err(Refused(
                Errno::Einval,
                "not aligned to the minimum block size",
            ));
        }
        let inside = raw
            .offset
            .checked_add(u64::from(raw.length))
            .is_some_and(|end| end <= self.export.size());
        if !inside {
            let errno = match command {
                Command::Write | Command::WriteZeroes { .. } => Errno::Enospc,
                _ => Errno::Einval,
            };
            return Err(Refused(errno, "beyond the end of the export"));
        }
        if matches!(command, Command::BlockStatus { .. }) && raw.length == 0 {
            return Err(Refused(Errno::Einval, "no extent describes zero bytes"));
        }
        Ok(())
    }
}

struct RawRequest {
    flags: u16,
    command: u16,
    offset: u64,
    length: u32,
}

impl RawRequest {
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

struct Refused(Errno, &'static str);
