//! Every fixed bound of the transport in one file. Bounds that an installation may want to change are in
//! [`Tuning`](crate::Tuning).

use std::time::Duration;

/// Longest fixed-size frame header that a codec may declare.
pub const MAX_HEADER_BYTES: usize = 256;
/// Longest body of a frame.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Longest payload of a frame: the largest request (32 MiB) with room for what surrounds it.
pub const MAX_PAYLOAD_BYTES: usize = 33 << 20;
/// What a received frame costs of its lane's budget beside its own bytes, so that empty frames are bounded too.
pub const FRAME_OVERHEAD_BYTES: usize = 128;

/// Longest resource name.
pub const MAX_RESOURCE_NAME_BYTES: usize = 128;
/// Longest message of the proof.
pub const MAX_PROOF_MESSAGE_BYTES: usize = 256;
/// Time from the first packet of a connection to the end of the proof.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that a connection may send us before its proof.
pub const UNPROVEN_RECEIVE_WINDOW_BYTES: u32 = 16 << 10;
/// Connections from configured peers' addresses that may be in the handshake at once.
pub const MAX_UNPROVEN_FROM_PEERS: usize = 32;
/// Connections from any other address that may be in the handshake at once.
pub const MAX_UNPROVEN_FROM_OTHERS: usize = 32;
/// From this many unproven connections on, an unknown address must first show that it receives what we send to it.
pub const ADDRESS_VALIDATION_FROM: usize = 4;
/// Connection attempts that QUIC keeps until they are looked at, and the bytes kept for each and for all of them.
pub const MAX_INCOMING: usize = 64;
/// See [`MAX_INCOMING`].
pub const MAX_INCOMING_BYTES_EACH: u64 = 16 << 10;
/// See [`MAX_INCOMING`].
pub const MAX_INCOMING_BYTES_TOTAL: u64 = 256 << 10;
/// Refusals that are reported (event and log) at once, before the rate below applies; the rest is counted.
pub const REFUSAL_REPORT_BURST: u32 = 16;
/// One more refusal is reported each such interval.
pub const REFUSAL_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest secret that a key file may hold.
pub const MIN_KEY_BYTES: usize = 16;
/// Longest key file or secret.
pub const MAX_KEY_BYTES: usize = 4096;

/// Smallest UDP payload that QUIC requires of every path.
pub const MIN_UDP_PAYLOAD_BYTES: u16 = 1200;
/// Largest UDP payload used: a jumbo frame less IPv4 and UDP headers. Larger ones were slower, even on loopback.
pub const MAX_UDP_PAYLOAD_BYTES: u16 = 8972;
/// A batch of segments handed to the kernel in one call stays below this; the limit of an IP packet is 65 535.
pub const MAX_SEGMENT_BATCH_BYTES: usize = 65_000;

/// Longest text of a close reason that is sent, or kept of one received.
pub const MAX_CLOSE_TEXT_BYTES: usize = 256;
