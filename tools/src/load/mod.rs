//! `qrbd-load`: a load generator that remembers what was acknowledged, and proves later that it is still there.
//!
//! [`block`] makes content that describes itself, [`journal`] remembers every write issued and acknowledged, [`generate`]
//! drives an NBD export, [`verify`] compares what a device holds with the journal, [`compare`] compares two data areas.

pub mod block;
pub mod compare;
pub mod generate;
pub mod journal;
pub mod source;
pub mod verify;
