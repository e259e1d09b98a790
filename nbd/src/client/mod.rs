//! A small client: for tests, tools and load generators.
//!
//! `handshake`, `request` and `reply` do no I/O; `blocking`, `halves` and `stream` wrap them around any
//! `Read + Write`.
//!
//! Deliberately absent: TLS, reconnection, and more metadata contexts than `base:allocation`.

mod blocking;
mod halves;
mod handshake;
mod reply;
mod request;
mod stream;

pub use blocking::Client;
pub use halves::{Receiver, Sender};
pub use handshake::{ClientHandshake, ClientOptions, Negotiated, WireBlockSizes, encode_option};
pub use reply::{Expected, Reply, ReplyDecoder, ReplyError};
pub use request::{RequestFlags, encode_request};

use crate::protocol::option_reply;

/// Why a client gave up, or why one of its requests failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The stream failed; `UnexpectedEof` when the server closed it.
    #[error("NBD connection: {0}")]
    Io(#[from] std::io::Error),
    /// The server answered an option with an error.
    #[error("the server refused option {option}: {name}: {text}", name = option_reply_name(*kind))]
    Refused {
        /// The option's number.
        option: u32,
        /// The reply type, one of `protocol::option_reply`.
        kind: u32,
        /// The server's text.
        text: String,
    },
    /// The server broke the protocol; the connection is useless.
    #[error("the server broke the NBD protocol: {0}")]
    Protocol(String),
    /// A request failed.
    #[error("{0}")]
    Request(ReplyError),
    /// A blocking call while replies to `send_*` calls are outstanding: receive them first.
    #[error("{0} requests are still in flight; receive their replies first")]
    InFlight(usize),
}

impl ClientError {
    fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }
}

fn option_reply_name(kind: u32) -> &'static str {
    match kind {
        option_reply::ERR_UNSUP => "ERR_UNSUP",
        option_reply::ERR_POLICY => "ERR_POLICY",
        option_reply::ERR_INVALID => "ERR_INVALID",
        option_reply::ERR_PLATFORM => "ERR_PLATFORM",
        option_reply::ERR_TLS_REQD => "ERR_TLS_REQD",
        option_reply::ERR_UNKNOWN => "ERR_UNKNOWN",
        option_reply::ERR_SHUTDOWN => "ERR_SHUTDOWN",
        option_reply::ERR_BLOCK_SIZE_REQD => "ERR_BLOCK_SIZE_REQD",
        option_reply::ERR_TOO_BIG => "ERR_TOO_BIG",
        _ => "unknown error",
    }
}
