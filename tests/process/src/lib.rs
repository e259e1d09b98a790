//! Tests of the real programs as separate processes: daemons, administrator's tool, load generator, foreign NBD clients, file systems.
//!
//! The library is the harness, the tests are in `tests/`, one file per theme. [`stage`] gives a test its directory and its addresses,
//! [`node`] is one node with its daemon, [`pair`] are two of them, [`relay`] the network between them that can be cut and slowed,
//! [`status`] reads `qrbdadm status --json`, [`load`] writes what can be checked later, [`journal`] judges the order of what survived,
//! [`file_system`] mounts a device without kernel support for NBD, [`programs`] finds and runs programs, [`wait`] polls within bounds.
//!
//! Invariants: no test waits without a bound; every process, mount and loop device that a test makes ends with it, however it ends;
//! only own processes are ever signalled. Nothing here decides what is right: that is said in the tests.
//!
//! The programs under test are those beside the test executable: build them first with `cargo build --workspace`.
#![forbid(unsafe_code)]

pub mod configuration;
pub mod file_system;
pub mod handler;
pub mod journal;
pub mod load;
pub mod node;
pub mod pair;
pub mod process;
pub mod programs;
pub mod relay;
pub mod stage;
pub mod status;
pub mod wait;
