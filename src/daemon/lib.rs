//! The QRBD daemon: a thin shell around the engine that does I/O and decides nothing.
//!
//! One process, one thread, one runtime: disk (io_uring), network (QUIC), NBD clients and the control socket are tasks beside one
//! another, and each resource has one owner task that drives its engine.

mod arguments;
mod attach;
mod boot;
mod busy_wait;
mod clock;
mod commands;
mod control_socket;
mod daemon;
mod frames;
pub mod front;
mod handlers;
mod kernel;
pub mod payload;
mod plan;
mod resource;
mod service;
mod service_manager;
mod tcp_front;
pub mod volumes;

pub use arguments::Arguments;
pub use service::run;
