//! The client's handshake: fixed newstyle, structured replies and `base:allocation` if wanted, then GO; EXPORT_NAME when
//! the server does not know GO.
//!
//! Invariants: any split of the server's bytes gives the same result; option replies above `limits::OPTION_REPLY` end the
//! session; nothing after the last handshake byte is consumed.

use crate::export::TransmissionFlags;
use crate::protocol::{
    BASE_ALLOCATION, EXPORT_NAME_ZEROES, GREETING_LENGTH, GREETING_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_HEADER_LENGTH, OPTION_REPLY_MAGIC, be_u16, be_u32, be_u64, fill, handshake_flag,
    info, limits, option, option_reply,
};

use super::ClientError;

/// What the client asks for beyond the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Negotiate structured replies.
    pub structured_replies: bool,
    /// Select `base:allocation`; needs structured replies.
    pub allocation: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            structured_replies: true,
            allocation: false,
        }
    }
}

/// Block sizes as the server sent them, in bytes, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireBlockSizes {
    /// Alignment of requests.
    pub minimum: u32,
    /// Alignment of fast requests.
    pub preferred: u32,
    /// Most bytes of one READ or WRITE.
    pub maximum_payload: u32,
}

/// What the client learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: TransmissionFlags,
    /// Block sizes, if the server sent them.
    pub block_sizes: Option<WireBlockSizes>,
    /// The canonical name, if the server sent it.
    pub name: Option<String>,
    /// The text for people, if the server sent it.
    pub description: Option<String>,
    /// Whether READs get structured replies.
    pub structured_replies: bool,
    /// The number of `base:allocation` in BLOCK_STATUS replies, if it was selected.
    pub allocation_context: Option<u32>,
}

#[derive(Debug)]
enum State {
    Greeting,
    ReplyHeader,
    ReplyData { kind: u32, length: usize },
    ExportNameReply,
    Ended,
}

/// The state machine of one connection's handshake.
#[derive(Debug)]
pub struct ClientHandshake {
    state: State,
    /// The option whose replies are awaited.
    option: u32,
    export: String,
    options: ClientOptions,
    no_zeroes: bool,
    export_info_seen: bool,
    buffer: Vec<u8>,
    output: Vec<u8>,
    negotiated: Negotiated,
}

impl ClientHandshake {
    /// Begins a handshake for the export of this name.
    pub fn new(export: &str, options: ClientOptions) -> Self {
        Self {
            state: State::Greeting,
            option: 0,
            export: export.to_owned(),
            options,
            no_zeroes: false,
            export_info_seen: false,
            buffer: Vec::new(),
            output: Vec::new(),
            negotiated: Negotiated::default(),
        }
    }

    /// Bytes to send, emptied by the call.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// How many bytes the handshake surely takes from the stream next.
    pub fn wanted(&self) -> usize {
        self.needed() - self.buffer.len()
    }

    fn needed(&self) -> usize {
        match self.state {
            State::Greeting => GREETING_LENGTH,
            State::ReplyHeader => OPTION_REPLY_HEADER_LENGTH,
            State::ReplyData { length, .. } => length,
            State::ExportNameReply => {
                10 + if self.no_zeroes {
                    0
                } else {
                    EXPORT_NAME_ZEROES
                }
            }
            State::Ended => 0,
        }
    }

    /// Consumes input; the result when the handshake is complete.
    ///
    /// # Errors
    /// `Refused` when the server refuses the export, `Protocol` when it is no such server.
    ///
    /// # Panics
    /// When called after the result was given.
    pub fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Negotiated>, ClientError> {
        loop {
            let needed = self.needed();
            if !fill(&mut self.buffer, input, needed) {
                return Ok(None);
            }
            let data = std::mem::take(&mut self.buffer);
            match self.state {
                State::Greeting => self.greeting(&data)?,
                State::ReplyHeader => self.reply_header(&data)?,
                State::ReplyData { kind, .. } => {
                    self.state = State::ReplyHeader;
                    if self.reply(kind, &data)? {
                        break;
                    }
                }
                State::ExportNameReply => {
                    self.negotiated.size = be_u64(&data, 0);
                    self.negotiated.flags = TransmissionFlags::from_bits(be_u16(&data, 8));
                    break;
                }
                State::Ended => panic!("the handshake has ended"),
            }
        }
        self.state = State::Ended;
        if self.negotiated.size > limits::EXPORT_SIZE {
            return Err(ClientError::protocol("export size above 2^63 - 1"));
        }
        Ok(Some(std::mem::take(&mut self.negotiated)))
    }

    fn greeting(&mut self, data: &[u8]) -> Result<(), ClientError> {
        if (be_u64(data, 0), be_u64(data, 8)) != (GREETING_MAGIC, OPTION_MAGIC) {
            return Err(ClientError::protocol("no NBD newstyle server"));
        }
        let flags = be_u16(data, 16);
        if flags & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(ClientError::protocol(
                "the server is older than fixed newstyle",
            ));
        }
        self.no_zeroes = flags & handshake_flag::NO_ZEROES != 0;
        let answer = flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        self.output
            .extend_from_slice(&u32::from(answer).to_be_bytes());
        let first = if self.options.structured_replies {
            option::STRUCTURED_REPLY
        } else {
            option::GO
        };
        self.send(first);
        Ok(())
    }

    fn send(&mut self, option: u32) {
        let counted =
            |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
        let mut data = Vec::new();
        match option {
            option::SET_META_CONTEXT => {
                data.extend(counted(&self.export));
                data.extend(1u32.to_be_bytes());
                data.extend(counted(BASE_ALLOCATION));
            }
            option::GO => {
                let kinds = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
                data.extend(counted(&self.export));
                data.extend((kinds.len() as u16).to_be_bytes());
                kinds
                    .iter()
                    .for_each(|kind| data.extend(kind.to_be_bytes()));
            }
            option::EXPORT_NAME => data.extend(self.export.as_bytes()),
            _ => {}
        }
        self.output.extend(encode_option(option, &data));
        self.option = option;
        self.state = if option == option::EXPORT_NAME {
            State::ExportNameReply
        } else {
            State::ReplyHeader
        };
    }

    fn reply_header(&mut self, data: &[u8]) -> Result<(), ClientError> {
        let (magic, option) = (be_u64(data, 0), be_u32(data, 8));
        let (kind, length) = (be_u32(data, 12), be_u32(data, 16));
        if magic != OPTION_REPLY_MAGIC {
            return Err(ClientError::protocol(format!(
                "option reply starts with {magic:#018x}"
            )));
        }
        if option != self.option {
            return Err(ClientError::protocol(format!(
                "reply to option {option} instead of {}",
                self.option
            )));
        }
        if length > limits::OPTION_REPLY {
            return Err(ClientError::protocol(format!(
                "option reply of {length} bytes"
            )));
        }
        self.state = State::ReplyData {
            kind,
            length: length as usize,
        };
        Ok(())
    }

    /// True when the transmission begins.
    fn reply(&mut self, kind: u32, data: &[u8]) -> Result<bool, ClientError> {
        let failed = kind & option_reply::ERROR_BIT != 0;
        match (self.option, kind) {
            (option::STRUCTURED_REPLY, _) => {
                self.negotiated.structured_replies = kind == option_reply::ACK;
                let meta = self.negotiated.structured_replies && self.options.allocation;
                self.send(if meta {
                    option::SET_META_CONTEXT
                } else {
                    option::GO
                });
            }
            (option::SET_META_CONTEXT, option_reply::META_CONTEXT) => {
                if data.len() < 4 || &data[4..] != BASE_ALLOCATION.as_bytes() {
                    return Err(ClientError::protocol(
                        "a metadata context that was not asked for",
                    ));
                }
                self.negotiated.allocation_context = Some(be_u32(data, 0));
            }
            (option::SET_META_CONTEXT, option_reply::ACK) => self.send(option::GO),
            (option::SET_META_CONTEXT, _) if failed => {
                self.negotiated.allocation_context = None;
                self.send(option::GO);
            }
            (option::GO, option_reply::INFO) => self.info(data)?,
            (option::GO, option_reply::ACK) => {
                if !self.export_info_seen {
                    return Err(ClientError::protocol(
                        "GO succeeded without the export's size",
                    ));
                }
                return Ok(true);
            }
            (option::GO, option_reply::ERR_UNSUP) => self.send(option::EXPORT_NAME),
            (option, kind) if failed => {
                let text =
                    String::from_utf8_lossy(&data[..data.len().min(limits::STRING)]).into_owned();
                return Err(ClientError::Refused { option, kind, text });
            }
            (option, kind) => {
                return Err(ClientError::protocol(format!(
                    "reply type {kind} to option {option}"
                )));
            }
        }
        Ok(false)
    }

    fn info(&mut self, data: &[u8]) -> Result<(), ClientError> {
        let malformed = || ClientError::protocol("malformed information about the export");
        let (kind, data) = data.split_at_checked(2).ok_or_else(malformed)?;
        match (be_u16(kind, 0), data.len()) {
            (info::EXPORT, 10) => {
                self.export_info_seen = true;
                self.negotiated.size = be_u64(data, 0);
                self.negotiated.flags = TransmissionFlags::from_bits(be_u16(data, 8));
            }
            (info::BLOCK_SIZE, 12) => {
                let sizes = WireBlockSizes {
                    minimum: be_u32(data, 0),
                    preferred: be_u32(data, 4),
                    maximum_payload: be_u32(data, 8),
                };
                if !sizes.minimum.is_power_of_two() || sizes.maximum_payload < sizes.minimum {
                    return Err(malformed());
                }
                self.negotiated.block_sizes = Some(sizes);
            }
            (info::EXPORT | info::BLOCK_SIZE, _) => return Err(malformed()),
            (info::NAME, _) => {
                self.negotiated.name = Some(String::from_utf8_lossy(data).into_owned())
            }
            (info::DESCRIPTION, _) => {
                self.negotiated.description = Some(String::from_utf8_lossy(data).into_owned());
            }
            _ => {}
        }
        Ok(())
    }
}

/// An option with its data, as a client sends it.
///
/// # Panics
/// When the data is longer than an option can say (4 GiB).
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("option data below 4 GiB");
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    bytes
}
