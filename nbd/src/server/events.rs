//! What the server's handshake and its owner say to each other: steps, questions about exports, refusals, and the errors
//! that end a session. Types only; the order of things is `handshake`'s.

use crate::protocol::{limits, option_reply};

use super::request::Session;

/// What the owner has to do next.
#[derive(Debug)]
pub enum Step {
    /// All input is consumed: send the output, then bring more bytes.
    NeedInput,
    /// An answer is outstanding: call [`super::Handshake::answer_open`] or [`super::Handshake::answer_list`].
    NeedAnswer,
    /// Decide about an export and call [`super::Handshake::answer_open`].
    Open(Open),
    /// Collect the exports and call [`super::Handshake::answer_list`].
    List,
    /// The handshake is over. Send the output; what is left of the input are requests.
    Transmission(Session),
    /// The client said goodbye. Send the output and close.
    Aborted,
}

/// A client's wish to learn about or use an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The name as the client wrote it; empty means the default export.
    pub name: String,
    /// What the client wants with it.
    pub kind: OpenKind,
}

/// How an export is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenKind {
    /// INFO: only describe it. The client is no opener.
    Info,
    /// GO: an `Ok` answer begins the transmission.
    Go,
    /// EXPORT_NAME: as GO, but a refusal can only be said by closing.
    ExportName,
}

/// Why an export is not opened or listed; the text is shown to the client's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `ERR_UNKNOWN`: there is no such export.
    Unknown(String),
    /// `ERR_POLICY`: it exists but may not be used now.
    Policy(String),
    /// `ERR_SHUTDOWN`: the server is stopping.
    Shutdown(String),
}

impl Refusal {
    /// The reply type and the text.
    pub(super) fn reply(&self) -> (u32, &str) {
        match self {
            Self::Unknown(text) => (option_reply::ERR_UNKNOWN, text),
            Self::Policy(text) => (option_reply::ERR_POLICY, text),
            Self::Shutdown(text) => (option_reply::ERR_SHUTDOWN, text),
        }
    }
}

/// One line of the answer to LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// The canonical name.
    pub name: String,
    /// A text for people, may be empty.
    pub description: String,
}

/// The session must be closed: the client broke the protocol where no reply is possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A client must close when it does not know a server's flag, and so must we.
    #[error("client flags {0:#x} contain flags unknown to this server")]
    UnknownClientFlags(u32),
    /// The stream is not NBD, or out of step.
    #[error("option starts with {0:#018x} instead of IHAVEOPT")]
    OptionMagic(u64),
    /// Without fixed newstyle there are no option replies.
    #[error("option {0} from a client without fixed newstyle, which may send only EXPORT_NAME")]
    NotFixedNewstyle(u32),
    /// More data than this server is willing to skip.
    #[error("option {option} announces {length} bytes of data, the limit is {limit}", limit = limits::OPTION_SKIP)]
    OptionTooLong {
        /// The option's number.
        option: u32,
        /// Bytes.
        length: u32,
    },
    /// The client never comes to the point.
    #[error("more than {limit} options in one session", limit = limits::OPTIONS_PER_SESSION)]
    TooManyOptions,
    /// EXPORT_NAME cannot report errors.
    #[error("EXPORT_NAME refused: {0}")]
    ExportNameRefused(String),
}
