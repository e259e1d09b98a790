//! How reports look: pure functions from the messages of the control socket to text.
//!
//! Deliberately no I/O here, so that every line is held by a golden test.

pub mod generations;
pub mod json;
pub mod metadata;
pub mod progress;
pub mod queries;
pub mod text;
