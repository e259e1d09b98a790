//! The server's side: [`Handshake`] until the transmission begins, then one [`Session`] per connection.
//!
//! `handshake` owns the state machine, `events` what it asks its owner, `options` the parsing of option data, `option_replies` their encoding; `request`
//! owns the one validator of requests, `reply` the heads of replies.

mod events;
mod handshake;
mod option_replies;
mod options;
mod reply;
mod request;

pub use events::{HandshakeError, ListedExport, Open, OpenKind, Refusal, Step};
pub use handshake::Handshake;
pub use reply::{Head, offset_data_head, simple_reply};
pub use request::{Answer, Command, Outcome, Received, Request, Session, TransmissionError};
