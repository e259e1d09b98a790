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
pub mod bitmap;
pub mod generation;
pub mod limits;
pub mod metadata;
pub mod split_brain;
pub mod units;
