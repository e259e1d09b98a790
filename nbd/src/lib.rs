//! The NBD protocol without I/O: a server's handshake, request validator and reply encoders, and a small client.
//!
//! Owns: every byte of the wire format of NBD's baseline (fixed newstyle handshake, compact 28-byte requests, simple and
//! structured replies, `base:allocation`), as described by `doc/proto.md` of the NBD project.
//!
//! Invariants:
//! - No sockets, threads, clocks or files. Bytes go in, bytes and typed events come out; the owner moves them.
//!   Only the client has a thin wrapper that moves them itself, over any `Read + Write`.
//! - No input of the other side panics, hangs or makes memory grow: every length is checked against `limits` first.
//! - Payload is never copied by the server's side. The validator says how many payload bytes follow, the owner reads them
//!   into its own buffer; for a READ it sends the head made here and then its own buffer.
//!
//! Deliberately absent: TLS, extended headers, resize, and any knowledge of what stands behind an export.
//!
//! # The server's life
//! ```text
//! Handshake::new() -> advance(bytes) -> Step::Open -> answer_open(..) -> Step::Transmission(Session)
//! loop: read 28 bytes -> Session::check -> Request  -> (read payload) execute -> done / read_head / error / block_status
//!                                       -> Answer   -> drain, send Session::answer
//!                                       -> Disconnect -> finish what is in flight, close
//! ```
//!
//! # What the owner promises by the flags it advertises
//! - `CAN_MULTI_CONN`: a completed FLUSH on one connection covers the writes *answered on every* connection of the export.
//! - `SEND_FUA`: the reply to a request with `fua` leaves only after its data is stable.
//! - `SEND_FAST_ZERO`: `fast_zero` fails at once with `ENOTSUP` rather than writing zeroes slowly, and nothing else
//!   answers `ENOTSUP`.

pub mod client;
mod errno;
mod export;
pub mod protocol;
pub mod server;

pub use client::{Client, ClientError};
pub use errno::Errno;
pub use export::{BlockSizes, ExportInfo, ExportInfoError, TransmissionFlags};
pub use protocol::{Cookie, Extent, limits};
pub use server::{
    Answer, Command, Handshake, HandshakeError, Head, ListedExport, Open, OpenKind, Outcome,
    Received, Refusal, Request, Session, Step, TransmissionError,
};
