//! The NBD server: accepts clients on a Unix socket or TCP, and turns their requests into requests to the volumes.
//!
//! `backend` owns the seam to the volumes, `listener` sockets and the life of connections, `negotiation` the handshake,
//! `transmission` the loop of one session, made of `intake` (bytes in), `in_flight` (requests at the engine), `outbox`
//! (bytes out), `stream` (the client's socket) and `budget` (memory of all sessions). `replies` maps errors. `direct` serves the
//! kernel, which needs no handshake.
//!
//! Invariants:
//! - One task per connection; nothing is spawned per request. A request costs no system call of its own: what is there is
//!   read at once, replies that are ready together leave together.
//! - Payload of large writes is read into its final buffer; data of reads is written from the buffer it was read into.
//! - What a client has in flight, replies it has not taken included, is bounded by `Limits`; beyond it nothing is read,
//!   which slows the client.
//! - Every request that was read gets exactly one reply as long as the client takes replies.
//! - A volume stays open as long as a request of the session is in flight, and no longer than the session.
//!
//! Deliberately absent: TLS, resizing under a connected client other than the kernel (NBD has no message for it), and any decision about
//! data.

mod backend;
mod budget;
mod direct;
mod in_flight;
mod intake;
mod listener;
mod negotiation;
mod outbox;
mod replies;
mod stream;
mod transmission;

#[cfg(test)]
mod tests;

pub use backend::{Export, Exports};
pub(crate) use direct::{DirectFront, DirectSession, socket_pair};
pub use listener::{bind_unix, serve_tcp, serve_unix};

use std::cell::RefCell;
use std::time::Duration;

use budget::Budget;
pub(crate) use transmission::{Departure, End};

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Simultaneous connections, those in the handshake included.
    pub connections: usize,
    /// Requests of one session whose replies it has not taken.
    pub session_requests: usize,
    /// Bytes of payload of one session in flight. A session without anything in flight may always begin a request.
    pub session_bytes: u64,
    /// Bytes of payload of all sessions in flight, with the same exception.
    pub total_bytes: u64,
    /// Parts of one long TRIM or WRITE_ZEROES at the engine at once.
    pub parallel_parts: u32,
    /// For the whole handshake.
    pub handshake: Duration,
    /// For a client to take its last replies, once its session is to end.
    pub farewell: Duration,
    /// How long nothing may have come from a client whose replies are held back until it counts as waiting for them.
    pub silence: Duration,
    /// How long replies are held back at most.
    pub silence_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            session_requests: 256,
            session_bytes: 64 << 20,
            total_bytes: 256 << 20,
            parallel_parts: 4,
            handshake: Duration::from_secs(10),
            farewell: Duration::from_secs(3),
            silence: Duration::from_millis(20),
            silence_patience: Duration::from_secs(1),
        }
    }
}

/// Bytes that one read may bring when requests are small: what a Unix socket holds by default.
const SCRATCH_BYTES: usize = 256 << 10;

/// What all sessions of a server share.
struct Common {
    limits: Limits,
    budget: Budget,
    /// Where headers and small payloads arrive; nothing stays in it after the poll that read it.
    scratch: RefCell<Box<[u8]>>,
}

impl Common {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            budget: Budget::new(limits.total_bytes),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
        }
    }
}
