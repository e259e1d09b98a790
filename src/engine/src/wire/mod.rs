//! The peer protocol: messages, their bytes, and the lanes they travel on.
//!
//! [`message`] holds the meaning, [`codec`] the bytes; their layout is described in `docs/wire-protocol.md`.

pub mod codec;
pub mod message;

pub use message::{
    GoodbyeReason, Hello, Lane, Message, ReadOutcome, ResizeStage, ResyncOutcome, VolumeHello,
};
