//! The only module of the crate with `unsafe` code: aligned memory, the ring, ioctls, `statx`, and the buffer
//! traits of `tokio-uring`.
//!
//! Everything it exports is safe to call: a transfer owns its buffer and its file, the ring keeps both until the
//! kernel reported the end of the transfer, and dropping the ring waits for that. It decides nothing: short
//! transfers, retries and fallbacks belong to the callers.
#![allow(unsafe_code)]

pub mod device;
pub mod memory;
pub mod ring;
#[cfg(feature = "tokio-uring")]
pub mod tokio_buffer;
