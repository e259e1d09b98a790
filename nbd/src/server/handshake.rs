//! The server's handshake: fixed newstyle, fed with bytes, asking its owner about exports.
//!
//! Owns the order of the messages and the answer to every option.
//!
//! Invariants:
//! - Any split of the client's bytes gives the same output and the same steps.
//! - An option's data is consumed exactly, whatever the answer, so the next option starts at the right byte.
//! - While the owner has not answered an `Open` or `List`, no byte is consumed: nothing piles up behind a slow decision.
//! - Nothing after the option that starts the transmission is consumed; those bytes are the first requests.
//! - Memory is bounded by `limits::OPTION_DATA` and by the answers to the bytes of one `advance`.
//!
//! Deliberately absent: time limits (the owner drops a silent client) and TLS (STARTTLS gets `ERR_UNSUP`, after which a
//! client may go on without it).

use crate::export::{ExportInfo, is_string};
use crate::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, OPTION_HEADER_LENGTH, OPTION_MAGIC, be_u32, be_u64,
    bounded_text, fill, handshake_flag, limits, option, option_reply,
};

use super::events::{HandshakeError, ListedExport, Open, OpenKind, Refusal, Step};
use super::option_replies as replies;
use super::options::{InfoWants, parse_export_name, parse_info, parse_meta_context};
use super::request::Session;

#[derive(Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    /// Collecting the data of an understood option.
    OptionData {
        option: u32,
        length: usize,
    },
    /// Dropping data whose answer is already decided.
    Skip {
        remaining: u32,
        then: AfterSkip,
    },
    /// The owner has the question.
    AwaitOpen {
        open: Open,
        wants: InfoWants,
    },
    AwaitList,
    /// GO or EXPORT_NAME succeeded; the session is handed out by the next `advance`.
    Opened(Box<Session>),
    Failed(HandshakeError),
    Ended,
}

#[derive(Debug)]
enum AfterSkip {
    Error {
        option: u32,
        kind: u32,
        text: &'static str,
    },
    Abort,
}

/// The state machine of one connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    buffer: Vec<u8>,
    output: Vec<u8>,
    options_seen: u32,
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured_replies: bool,
    /// The export name for which `base:allocation` was selected last.
    allocation_for: Option<String>,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// Starts with the greeting in the output.
    pub fn new() -> Self {
        let mut output = Vec::new();
        replies::greeting(&mut output);
        Self {
            state: State::ClientFlags,
            buffer: Vec::new(),
            output,
            options_seen: 0,
            fixed_newstyle: false,
            no_zeroes: false,
            structured_replies: false,
            allocation_for: None,
        }
    }

    /// Bytes to send, emptied by the call. Valid after every step and also after an error.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// How many bytes the handshake surely takes from the stream before its next decision. An owner that never reads
    /// more than this keeps nothing over for the transmission.
    pub fn wanted(&self) -> usize {
        match &self.state {
            State::ClientFlags => 4 - self.buffer.len(),
            State::OptionHeader => OPTION_HEADER_LENGTH - self.buffer.len(),
            State::OptionData { length, .. } => length - self.buffer.len(),
            State::Skip { remaining, .. } => *remaining as usize,
            _ => 0,
        }
    }

    /// Consumes from `input` up to the next decision.
    ///
    /// # Errors
    /// The session must be closed after sending the output; every later call gives the same error.
    ///
    /// # Panics
    /// When called after [`Step::Transmission`] or [`Step::Aborted`].
    pub fn advance(&mut self, input: &mut &[u8]) -> Result<Step, HandshakeError> {
        loop {
            match &mut self.state {
                State::ClientFlags => {
                    if !fill(&mut self.buffer, input, 4) {
                        return Ok(Step::NeedInput);
                    }
                    self.client_flags()?;
                }
                State::OptionHeader => {
                    if !fill(&mut self.buffer, input, OPTION_HEADER_LENGTH) {
                        return Ok(Step::NeedInput);
                    }
                    self.option_header()?;
                }
                State::OptionData { option, length } => {
                    let option = *option;
                    if !fill(&mut self.buffer, input, *length) {
                        return Ok(Step::NeedInput);
                    }
                    let data = std::mem::take(&mut self.buffer);
                    if let Some(step) = self.option_complete(option, &data)? {
                        return Ok(step);
                    }
                }
                State::Skip { remaining, then } => {
                    let count = (*remaining as usize).min(input.len());
                    *input = &input[count..];
                    *remaining -= count as u32;
                    if *remaining > 0 {
                        return Ok(Step::NeedInput);
                    }
                    match *then {
                        AfterSkip::Error { option, kind, text } => {
                            self.refuse_option(option, kind, text)
                        }
                        AfterSkip::Abort => {
                            replies::ack(&mut self.output, option::ABORT);
                            self.state = State::Ended;
                            return Ok(Step::Aborted);
                        }
                    }
                }
                State::AwaitOpen { .. } | State::AwaitList => return Ok(Step::NeedAnswer),
                State::Opened(_) => {
                    let State::Opened(session) = std::mem::replace(&mut self.state, State::Ended)
                    else {
                        unreachable!("matched above");
                    };
                    return Ok(Step::Transmission(*session));
                }
                State::Failed(error) => return Err(error.clone()),
                State::Ended => panic!("the handshake has ended"),
            }
        }
    }

    /// The owner's decision about [`Step::Open`]. Call [`Handshake::advance`] afterwards.
    ///
    /// # Panics
    /// When no `Open` is outstanding.
    pub fn answer_open(&mut self, answer: Result<ExportInfo, Refusal>) {
        let State::AwaitOpen { open, wants } =
            std::mem::replace(&mut self.state, State::OptionHeader)
        else {
            panic!("no export was asked for");
        };
        let number = match open.kind {
            OpenKind::Info => option::INFO,
            OpenKind::Go => option::GO,
            OpenKind::ExportName => option::EXPORT_NAME,
        };
        match answer {
            Ok(export) => {
                let allocation = self.allocation_for.as_ref() == Some(&open.name);
                let session = Session::new(export, self.structured_replies, allocation);
                let (export, flags) = (session.export(), session.flags());
                if open.kind == OpenKind::ExportName {
                    replies::export_name(&mut self.output, export.size(), flags, !self.no_zeroes);
                } else {
                    replies::infos(&mut self.output, number, export, flags, wants);
                }
                if open.kind != OpenKind::Info {
                    self.state = State::Opened(Box::new(session));
                }
            }
            Err(refusal) => {
                let (kind, text) = refusal.reply();
                if open.kind == OpenKind::ExportName {
                    let text = bounded_text(text).to_owned();
                    self.state = State::Failed(HandshakeError::ExportNameRefused(text));
                } else {
                    self.refuse_option(number, kind, text);
                }
            }
        }
    }

    /// The owner's answer to [`Step::List`]. Names that the protocol cannot carry (see [`ExportInfo::new`]) are left
    /// out. Call [`Handshake::advance`] afterwards.
    ///
    /// # Panics
    /// When no `List` is outstanding.
    pub fn answer_list(&mut self, answer: Result<Vec<ListedExport>, Refusal>) {
        assert!(
            matches!(self.state, State::AwaitList),
            "no list was asked for"
        );
        self.state = State::OptionHeader;
        match answer {
            Ok(exports) => {
                for export in exports.iter().filter(|export| is_string(&export.name)) {
                    replies::listed_export(
                        &mut self.output,
                        option::LIST,
                        &export.name,
                        &export.description,
                    );
                }
                replies::ack(&mut self.output, option::LIST);
            }
            Err(refusal) => {
                let (kind, text) = refusal.reply();
                self.refuse_option(option::LIST, kind, text);
            }
        }
    }

    fn fail<T>(&mut self, error: HandshakeError) -> Result<T, HandshakeError> {
        self.state = State::Failed(error.clone());
        Err(error)
    }

    fn refuse_option(&mut self, option: u32, kind: u32, text: &str) {
        replies::error(&mut self.output, option, kind, text);
        self.state = State::OptionHeader;
    }

    fn client_flags(&mut self) -> Result<(), HandshakeError> {
        let flags = be_u32(&self.buffer, 0);
        self.buffer.clear();
        let fixed = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return self.fail(HandshakeError::UnknownClientFlags(flags));
        }
        self.fixed_newstyle = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.state = State::OptionHeader;
        Ok(())
    }

    fn option_header(&mut self) -> Result<(), HandshakeError> {
        let magic = be_u64(&self.buffer, 0);
        let option = be_u32(&self.buffer, 8);
        let length = be_u32(&self.buffer, 12);
        self.buffer.clear();
        if magic != OPTION_MAGIC {
            return self.fail(HandshakeError::OptionMagic(magic));
        }
        if !self.fixed_newstyle && option != option::EXPORT_NAME {
            return self.fail(HandshakeError::NotFixedNewstyle(option));
        }
        if length > limits::OPTION_SKIP {
            return self.fail(HandshakeError::OptionTooLong { option, length });
        }
        self.options_seen += 1;
        if self.options_seen > limits::OPTIONS_PER_SESSION {
            return self.fail(HandshakeError::TooManyOptions);
        }
        if option == option::EXPORT_NAME && length as usize > limits::STRING {
            return self.fail(HandshakeError::ExportNameRefused(format!(
                "name of {length} bytes"
            )));
        }
        self.state = match data_policy(option, length) {
            Ok(()) => State::OptionData {
                option,
                length: length as usize,
            },
            Err(then) => State::Skip {
                remaining: length,
                then,
            },
        };
        Ok(())
    }

    /// Acts on an option whose data is complete.
    fn option_complete(
        &mut self,
        option: u32,
        data: &[u8],
    ) -> Result<Option<Step>, HandshakeError> {
        self.state = State::OptionHeader;
        match option {
            option::EXPORT_NAME => match parse_export_name(data) {
                Some(name) => Ok(Some(self.ask(
                    name,
                    OpenKind::ExportName,
                    InfoWants::default(),
                ))),
                None => self.fail(HandshakeError::ExportNameRefused(
                    "name is not a valid string".into(),
                )),
            },
            option::INFO | option::GO => {
                let kind = if option == option::GO {
                    OpenKind::Go
                } else {
                    OpenKind::Info
                };
                match parse_info(data) {
                    Some(request) => Ok(Some(self.ask(request.name, kind, request.wants))),
                    None => {
                        self.refuse_option(
                            option,
                            option_reply::ERR_INVALID,
                            "malformed export request",
                        );
                        Ok(None)
                    }
                }
            }
            option::LIST => {
                self.state = State::AwaitList;
                Ok(Some(Step::List))
            }
            option::STRUCTURED_REPLY => {
                self.structured_replies = true;
                replies::ack(&mut self.output, option);
                Ok(None)
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data);
                Ok(None)
            }
            _ => unreachable!("data_policy lets only these options through"),
        }
    }

    fn ask(&mut self, name: &str, kind: OpenKind, wants: InfoWants) -> Step {
        let open = Open {
            name: name.to_owned(),
            kind,
        };
        self.state = State::AwaitOpen {
            open: open.clone(),
            wants,
        };
        Step::Open(open)
    }

    /// Contexts are answered for any export name: whether it may be opened is decided once, by GO, and a selection for
    /// another name than GO's has no effect.
    fn meta_context(&mut self, option: u32, data: &[u8]) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.allocation_for = None;
        }
        if !self.structured_replies {
            return self.refuse_option(
                option,
                option_reply::ERR_INVALID,
                "negotiate structured replies first",
            );
        }
        let Some(request) = parse_meta_context(data) else {
            return self.refuse_option(
                option,
                option_reply::ERR_INVALID,
                "malformed metadata context request",
            );
        };
        let selected = if set {
            request.queries.contains(&BASE_ALLOCATION)
        } else {
            request.queries.is_empty()
                || request
                    .queries
                    .iter()
                    .any(|query| ["base:", BASE_ALLOCATION].contains(query))
        };
        if selected {
            // The number is only meaningful in SET; LIST SHOULD say zero.
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            replies::meta_context(&mut self.output, option, id, BASE_ALLOCATION);
        }
        replies::ack(&mut self.output, option);
        if set && selected {
            self.allocation_for = Some(request.name.to_owned());
        }
    }
}

/// Whether an option's data is worth collecting, or what to say after skipping it.
fn data_policy(option: u32, length: u32) -> Result<(), AfterSkip> {
    let error = |kind, text| Err(AfterSkip::Error { option, kind, text });
    match option {
        option::ABORT => Err(AfterSkip::Abort),
        option::LIST | option::STRUCTURED_REPLY if length > 0 => {
            error(option_reply::ERR_INVALID, "this option takes no data")
        }
        option::EXPORT_NAME
        | option::LIST
        | option::INFO
        | option::GO
        | option::STRUCTURED_REPLY
        | option::LIST_META_CONTEXT
        | option::SET_META_CONTEXT => {
            if length > limits::OPTION_DATA {
                return error(option_reply::ERR_TOO_BIG, "option data is too long");
            }
            Ok(())
        }
        option::STARTTLS => error(option_reply::ERR_UNSUP, "this server does not offer TLS"),
        _ => error(option_reply::ERR_UNSUP, "this option is not supported"),
    }
}
