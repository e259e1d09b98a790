//! The report behind `show-gi` and `get-gi`: generation identifiers and metadata flags of one volume.
//!
//! The daemon fills it from the running volume, the tools from the metadata of a disk that is not attached; both print the
//! same lines.

use serde::{Deserialize, Serialize};

/// Identifiers and flags of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationReport {
    /// Resource name.
    pub resource: String,
    /// Volume number.
    pub volume: u16,
    /// Version of the local data.
    pub current: u64,
    /// Older versions, newest first.
    pub history: Vec<u64>,
    /// Flags of the volume.
    pub flags: VolumeFlags,
    /// Per peer, sorted by node id.
    pub peers: Vec<PeerGeneration>,
}

/// Metadata flags of a volume, in the order of `get-gi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFlags {
    /// Data is consistent.
    pub consistent: bool,
    /// Data was or is UpToDate.
    pub was_up_to_date: bool,
    /// The node was or is Primary (or a peer writes here).
    pub primary: bool,
    /// The node crashed as Primary.
    pub crashed_primary: bool,
    /// The activity log was applied at detach.
    pub al_clean: bool,
    /// The activity log is not kept.
    pub al_disabled: bool,
    /// The node was Primary as it lost quorum.
    pub primary_lost_quorum: bool,
}

/// What the volume remembers about one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerGeneration {
    /// Number of the peer.
    pub node_id: u8,
    /// Host name of the peer, empty if unknown.
    pub name: String,
    /// Version the peer had when tracking for it began, zero if nothing is tracked.
    pub bitmap: u64,
    /// Flags of the peer.
    pub flags: PeerFlags,
}

/// Metadata flags of a peer, in the order of `get-gi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFlags {
    /// The peer was connected.
    pub connected: bool,
    /// The peer's data is known to be Outdated or worse.
    pub peer_outdated: bool,
    /// Fencing is on for the peer.
    pub peer_fencing: bool,
    /// A full sync is ordered.
    pub full_sync: bool,
    /// The peer's disk was seen.
    pub device_seen: bool,
}
