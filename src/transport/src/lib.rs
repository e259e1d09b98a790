//! QUIC transport of QRBD: authenticated sessions with ordered lanes.
//!
//! Owns the UDP socket, the QUIC connections, the mutual proof of the shared key, dialing, and the choice of the one
//! connection that serves a pair of nodes. Carries opaque frames; decides nothing about replication.
//!
//! What holds at every moment:
//! - a peer has at most one session, and both nodes hold the same one;
//! - no frame is sent or delivered before both proofs of the shared key were verified;
//! - each [`Event::Connected`] is followed by exactly one [`Event::Lost`], after which nothing of that session is delivered;
//! - frames of one lane arrive in the order they were sent; a lane never waits for another;
//! - every queue and buffer has a bound (see [`limits`] and [`Tuning`]).
//!
//! Everything runs as tasks of the runtime in which [`Endpoint::bind`] was called. On a `current_thread` runtime it
//! stays on that thread, which is how it is meant to be used: a multi-threaded runtime doubles the round trip.
#![forbid(unsafe_code)]

mod allowance;
mod attempt;
mod budget;
mod codec;
mod config;
mod congestion;
mod endpoint;
mod event;
mod fault;
mod handshake;
mod ids;
mod key;
mod lane;
pub mod limits;
mod probe;
mod proof;
mod reader;
mod registry;
mod session;
mod socket;
mod tls;
mod tuning;
mod udp;
mod writer;

pub use budget::Credit;
pub use codec::{BytesAllocator, CodecError, FrameCodec, FrameLengths, PayloadAllocator};
pub use config::{AddPeerError, BindError, EndpointConfig, PeerConfig};
pub use endpoint::Endpoint;
pub use event::{CloseCode, Event, Events, LossReason, RefusalReason};
pub use fault::Faults;
pub use ids::{NodeId, ProtocolVersion, SessionId, VersionRange};
pub use key::{KeyError, SharedKey};
pub use lane::Lane;
pub use probe::nobody_listens;
pub use session::{LaneCounters, LaneTotals, SendError, Session, SessionStats};
pub use tuning::{Congestion, LaneBudgets, Tuning};

#[cfg(test)]
mod tests;
