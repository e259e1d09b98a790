//! Deterministic simulator of QRBD with its checkers and scenarios.
//!
//! One seed decides everything: the engine of each node runs unchanged in a world of virtual disks, networks, clients and
//! administrators that crash it, cut it and reorder what it sees, while checkers compare what happens with what is promised.
//! `docs/simulator.md` tells how to use it.

pub mod administrator;
pub mod checkers;
pub mod codec;
pub mod disk;
mod disk_jobs;
mod effects;
pub mod engine_view;
pub mod faults;
mod fencing;
pub mod growth;
pub mod network;
pub mod node;
pub mod oracle;
pub mod panics;
mod processes;
pub mod queue;
pub mod random;
pub mod run;
pub mod scenario;
mod sessions;
pub mod settings;
pub mod stamps;
pub mod trace;
pub mod workload;
pub mod world;
