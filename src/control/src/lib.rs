//! Control-socket messages shared by the daemon and the tools.
//!
//! Owns the words that travel over `RUN_DIR/control.sock`: [`message`] (requests and responses), [`status`] (the report
//! from which the text and the JSON form of `status` are printed), [`generations`] (the report of `show-gi` and `get-gi`),
//! [`refusal`] (error numbers, texts and exit codes of DRBD) and [`codec`] (the frame around them, in one place so that
//! the library behind it can be exchanged). [`client`] is the blocking side that the tools use.
//!
//! Invariants: a frame is at most [`codec::MAX_FRAME_BYTES`] long; any other bytes give a [`codec::CodecError`], never a
//! panic or an unbounded allocation. A request gets zero or more [`message::Response::Progress`] and exactly one final
//! response, in order; a connection may carry several requests one after the other.
//!
//! Also what both keep outside of the disks: [`last_known`].
//!
//! Deliberately absent: who may connect (the daemon checks peer credentials) and how things look on a terminal (tools).
#![forbid(unsafe_code)]

pub mod client;
pub mod codec;
pub mod generations;
pub mod last_known;
pub mod message;
pub mod refusal;
pub mod status;

pub use codec::CodecError;
pub use last_known::LastKnown;
pub use message::{Command, Progress, Request, Response, Target, VersionInformation};
pub use refusal::{KernelError, Refusal, RefusalKind, StateChangeError};
pub use status::StatusReport;

/// File name of the control socket inside the run directory.
pub const SOCKET_NAME: &str = "control.sock";
