//! Tests of the tools: golden texts, command lines, metadata on real files, a scripted daemon, the load generator.
//!
//! One binary, so that it is linked once. `mkfs.ext4` (e2fsprogs) must be installed.

mod arguments;
mod daemon;
mod fixtures;
mod keygen;
mod load;
#[path = "../../../nbd/tests/support/memory.rs"]
mod memory;
mod metadata;
mod show;
mod signatures;
