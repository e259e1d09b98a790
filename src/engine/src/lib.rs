//! Sans-I/O replication core of QRBD: events in, effects out.
//!
//! No sockets, no files, no clock, no threads, no async: the crate is `no_std` (with `alloc`), so the compiler keeps it pure.
//! The daemon and the simulator drive the same code.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod activity_log;
pub mod api;
pub mod bitmap;
mod commands;
pub mod config;
mod engine;
mod failures;
mod fencing;
mod gathering;
pub mod generation;
mod handshake;
mod interval;
pub mod limits;
mod liveness;
mod lone;
pub mod metadata;
mod metadata_events;
mod metadata_writer;
mod mirror;
mod peer;
mod random;
mod receiver;
mod reports;
mod request;
mod resync;
pub mod split_brain;
pub mod state;
pub mod status;
mod transfer_log;
mod unflushed;
pub mod units;
mod volume;
pub mod wire;

pub use api::{Command, CommandId, Effect, Event, IoId, Operation, Payload, RequestId, SessionId};
pub use config::EngineConfig;
pub use engine::Engine;
pub use peer::Progress;
pub use random::Random;
