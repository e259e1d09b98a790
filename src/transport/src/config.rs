//! What an endpoint and a peer are, and why they cannot be.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::fault::Faults;
use crate::ids::{NodeId, VersionRange};
use crate::key::SharedKey;
use crate::limits::MAX_RESOURCE_NAME_BYTES;
use crate::tuning::Tuning;

/// What an endpoint is.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Address of the UDP socket.
    pub local: SocketAddr,
    /// Node id of this node.
    pub node: NodeId,
    /// Name of the resource; at most [`MAX_RESOURCE_NAME_BYTES`] bytes without control characters.
    pub resource: String,
    /// Protocol versions that the owner speaks.
    pub versions: VersionRange,
    /// Windows, buffers, congestion control.
    pub tuning: Tuning,
    /// Called in the endpoint's task whenever packets have arrived: what they bring takes a few more tasks to become events.
    pub on_arrival: Option<fn()>,
    /// Faults for tests.
    pub faults: Option<Faults>,
}

/// A peer of an endpoint.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its node id; another one than ours.
    pub node: NodeId,
    /// Where to dial it. Its own connections are accepted from anywhere, since it is known by its proof.
    pub remote: SocketAddr,
    /// The key that both share.
    pub key: SharedKey,
    /// Pause between attempts (`connect-int`), give or take a tenth.
    pub connect_interval: Duration,
}

/// Why an endpoint cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The socket.
    #[error("UDP address {local} cannot be used: {source}")]
    Address {
        /// What was asked for.
        local: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The resource name.
    #[error(
        "resource name {0:?} cannot be used on the wire: it needs 1 to {MAX_RESOURCE_NAME_BYTES} bytes without control characters"
    )]
    ResourceName(String),
    /// TLS.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// Why a peer cannot be added.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddPeerError {
    /// It is this node.
    #[error("node-id {0} is this node's own")]
    OwnNode(NodeId),
    /// It is there already.
    #[error("node-id {0} is a peer already")]
    Exists(NodeId),
    /// The socket cannot reach it.
    #[error("{remote} cannot be reached from {local}: one is IPv4, the other IPv6")]
    AddressFamily {
        /// Address of the endpoint.
        local: SocketAddr,
        /// Address of the peer.
        remote: SocketAddr,
    },
    /// The endpoint is shut down.
    #[error("the endpoint is shut down")]
    ShutDown,
}
