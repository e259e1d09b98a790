//! The report behind `status`, `status --json`, `role`, `cstate` and `dstate`.
//!
//! Carries DRBD's fields and nothing computed: percentages, speeds and the remaining time are derived here by methods, so
//! that the text and the JSON form cannot disagree. Units stand in the names; KiB where DRBD prints KiB, 512-byte sectors
//! where DRBD prints sectors. Resources are sorted by name, devices by volume, connections by peer name, peer devices by
//! volume: [`StatusReport::sort`] makes it so.
//!
//! Deliberately absent: rendering (tools) and any rule about states (engine).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// All words in rank order.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// DRBD's word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant)),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.as_str()) }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| UnknownWord(text.to_owned()))
            }
        }
    };
}

/// A text that is none of DRBD's state words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a state word")]
pub struct UnknownWord(pub String);

words! {
    /// Role of a node in a resource.
    Role {
        /// Not known: no contact.
        Unknown,
        /// May write.
        Primary,
        /// May not.
        Secondary,
    }
}

words! {
    /// State of a disk, in rank order.
    DiskState {
        /// No backing device.
        Diskless,
        /// Metadata is being read.
        Attaching,
        /// Being released.
        Detaching,
        /// I/O error, about to be Diskless.
        Failed,
        /// Waiting for the handshake.
        Negotiating,
        /// Partly synchronised.
        Inconsistent,
        /// Consistent but known to be old.
        Outdated,
        /// Peer's disk without contact.
        DUnknown,
        /// Consistent, unknown whether current.
        Consistent,
        /// Current.
        UpToDate,
    }
}

words! {
    /// State of a connection, in rank order.
    ConnectionState {
        /// No networking wanted.
        StandAlone,
        /// On the way to StandAlone.
        Disconnecting,
        /// About to try again.
        Unconnected,
        /// The peer missed a deadline.
        Timeout,
        /// The peer closed.
        BrokenPipe,
        /// The network failed.
        NetworkFailure,
        /// The peer sent what it must not.
        ProtocolError,
        /// The peer leaves deliberately.
        TearDown,
        /// Looking for the peer.
        Connecting,
        /// Established.
        Connected,
    }
}

words! {
    /// State of the replication of one volume to one peer, in rank order.
    ReplicationState {
        /// Not connected.
        Off,
        /// Mirroring.
        Established,
        /// Full sync ordered, this node is source.
        StartingSyncS,
        /// Full sync ordered, this node is target.
        StartingSyncT,
        /// Exchanging bitmaps as source.
        WFBitMapS,
        /// Exchanging bitmaps as target.
        WFBitMapT,
        /// Waiting for the source's generation.
        WFSyncUUID,
        /// Resync runs, this node is source.
        SyncSource,
        /// Resync runs, this node is target.
        SyncTarget,
        /// Online verify runs, this node drives.
        VerifyS,
        /// Online verify runs, the peer drives.
        VerifyT,
        /// Resync held, this node is source.
        PausedSyncS,
        /// Resync held, this node is target.
        PausedSyncT,
        /// Mirroring stopped by congestion, this node is source.
        Ahead,
        /// Mirroring stopped by congestion, this node is target.
        Behind,
    }
}

impl ReplicationState {
    /// A resync runs or is held.
    #[must_use]
    pub fn is_resync(self) -> bool {
        matches!(
            self,
            Self::SyncSource | Self::SyncTarget | Self::PausedSyncS | Self::PausedSyncT
        )
    }
    /// An online verify runs.
    #[must_use]
    pub fn is_verify(self) -> bool {
        matches!(self, Self::VerifyS | Self::VerifyT)
    }
}

/// Report of the resources asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Configured resources, sorted by name.
    pub resources: Vec<ResourceStatus>,
}

impl StatusReport {
    /// Brings every list into its order.
    pub fn sort(&mut self) {
        self.resources
            .sort_by(|left, right| left.name.cmp(&right.name));
        for resource in &mut self.resources {
            resource.devices.sort_by_key(|device| device.volume);
            resource
                .connections
                .sort_by(|left, right| left.name.cmp(&right.name));
            for connection in &mut resource.connections {
                connection
                    .peer_devices
                    .sort_by_key(|peer_device| peer_device.volume);
            }
        }
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceStatus {
    /// Name in the configuration.
    pub name: String,
    /// Number of this node.
    pub node_id: u8,
    /// Role of this node.
    pub role: Role,
    /// `suspend-io` by the administrator.
    pub suspended_user: bool,
    /// I/O frozen: no UpToDate data reachable.
    pub suspended_no_data: bool,
    /// I/O frozen: the peer is being fenced.
    pub suspended_fencing: bool,
    /// I/O frozen: no quorum.
    pub suspended_quorum: bool,
    /// Openers get errors (`secondary --force`).
    pub force_io_failures: bool,
    /// `none`, `drain`, `flush` or `barrier`.
    pub write_ordering: String,
    /// Volumes.
    pub devices: Vec<DeviceStatus>,
    /// Peers.
    pub connections: Vec<ConnectionStatus>,
}

impl ResourceStatus {
    /// I/O is frozen for any reason.
    #[must_use]
    pub fn suspended(&self) -> bool {
        self.suspended_user
            || self.suspended_no_data
            || self.suspended_fencing
            || self.suspended_quorum
    }
}

/// One volume on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Volume number.
    pub volume: u16,
    /// Device minor, -1 without a kernel device.
    pub minor: i32,
    /// Backing device or file, empty if there is none.
    pub backing_dev: String,
    /// Kernel device (`/dev/nbd0`) if attached.
    pub device_path: Option<String>,
    /// Name of the NBD export.
    pub export: String,
    /// State of the local disk.
    pub disk_state: DiskState,
    /// Intentionally diskless.
    pub client: bool,
    /// Somebody has the device open.
    pub open: bool,
    /// This node has quorum for the volume.
    pub quorum: bool,
    /// Size of the volume, KiB.
    pub size_kib: u64,
    /// Read from the backing device, KiB.
    pub read_kib: u64,
    /// Written to the backing device, KiB.
    pub written_kib: u64,
    /// Activity-log transactions written.
    pub al_writes: u64,
    /// Bitmap writes.
    pub bm_writes: u64,
    /// Application requests not yet completed.
    pub upper_pending: u32,
    /// Requests to the backing device not yet completed.
    pub lower_pending: u32,
    /// Updates of the activity log are suspended.
    pub al_suspended: bool,
    /// Application I/O is held back.
    pub upper_blocked: bool,
    /// The backing device is congested.
    pub lower_blocked: bool,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Number of the peer.
    pub peer_node_id: u8,
    /// Host name of the peer.
    pub name: String,
    /// State of the connection.
    pub connection_state: ConnectionState,
    /// The send queue is full.
    pub congested: bool,
    /// Role of the peer.
    pub peer_role: Role,
    /// The connection is encrypted (always, over QUIC).
    pub tls: bool,
    /// Application data in flight to the peer, sectors.
    pub ap_in_flight_sectors: u64,
    /// Resync data in flight, sectors.
    pub rs_in_flight_sectors: u64,
    /// Why there is no connection, for a human: "no key file /etc/qrbd/authkey". Ours, not DRBD's.
    pub reason: Option<String>,
    /// Paths to the peer.
    pub paths: Vec<PathStatus>,
    /// Volumes on this peer.
    pub peer_devices: Vec<PeerDeviceStatus>,
}

/// One pair of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Own end.
    pub this_host: HostAddress,
    /// Peer's end.
    pub remote_host: HostAddress,
    /// In use.
    pub established: bool,
}

/// One end of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAddress {
    /// Address without port.
    pub address: String,
    /// UDP port.
    pub port: u16,
    /// `ipv4` or `ipv6`.
    pub family: String,
}

/// One volume on one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerDeviceStatus {
    /// Volume number.
    pub volume: u16,
    /// State of the replication.
    pub replication_state: ReplicationState,
    /// State of the peer's disk.
    pub peer_disk_state: DiskState,
    /// The peer is intentionally diskless.
    pub peer_client: bool,
    /// Resync held by this node's administrator.
    pub resync_suspended_user: bool,
    /// Resync held by the peer's administrator.
    pub resync_suspended_peer: bool,
    /// Resync held by another resync.
    pub resync_suspended_dependency: bool,
    /// Received from the peer, KiB.
    pub received_kib: u64,
    /// Sent to the peer, KiB.
    pub sent_kib: u64,
    /// Marked out of sync, KiB.
    pub out_of_sync_kib: u64,
    /// Requests sent to the peer and not answered.
    pub pending: u32,
    /// Requests of the peer received and not answered.
    pub unacked: u32,
    /// Present while a resync or a verify runs.
    pub sync: Option<SyncDetails>,
}

impl PeerDeviceStatus {
    /// `no`, or a comma-separated list of who holds the resync.
    #[must_use]
    pub fn resync_suspended(&self) -> String {
        let holders: Vec<&str> = [
            (self.resync_suspended_user, "user"),
            (self.resync_suspended_peer, "peer"),
            (self.resync_suspended_dependency, "dependency"),
        ]
        .into_iter()
        .filter_map(|(held, name)| held.then_some(name))
        .collect();
        if holders.is_empty() {
            "no".to_owned()
        } else {
            holders.join(",")
        }
    }

    /// Part of a device of `size_kib` that is in sync, percent.
    #[must_use]
    pub fn percent_in_sync(&self, size_kib: u64) -> f64 {
        if size_kib == 0 {
            0.0
        } else {
            100.0 * (1.0 - self.out_of_sync_kib as f64 / size_kib as f64)
        }
    }

    /// What the running resync or verify still has to do, sectors.
    #[must_use]
    pub fn sectors_to_go(&self) -> u64 {
        match &self.sync {
            None => 0,
            Some(SyncDetails {
                kind: SyncKind::Verify { left_sectors, .. },
                ..
            }) => *left_sectors,
            Some(SyncDetails {
                kind: SyncKind::Resync { failed_sectors, .. },
                ..
            }) => (self.out_of_sync_kib * 2).saturating_sub(*failed_sectors),
        }
    }

    /// Done part of the running resync or verify, percent within 0..=100; `None` if none runs.
    #[must_use]
    pub fn percent_done(&self) -> Option<f64> {
        let details = self.sync.as_ref()?;
        if details.total_sectors == 0 {
            return Some(0.0);
        }
        let done = details.total_sectors.saturating_sub(self.sectors_to_go());
        Some(100.0 * done as f64 / details.total_sectors as f64)
    }

    /// Seconds until the running resync or verify ends at its present speed; `None` if none runs or it stands still.
    #[must_use]
    pub fn remaining_seconds(&self) -> Option<f64> {
        let details = self.sync.as_ref()?;
        if details.db1_sectors == 0 {
            return None;
        }
        let milliseconds = details.dt1_ms.max(1) as f64;
        Some(milliseconds / 1000.0 * self.sectors_to_go() as f64 / details.db1_sectors as f64)
    }

    /// Mean speed since the start, without pauses, MiB/s; `None` if none runs.
    #[must_use]
    pub fn mean_mib_per_second(&self) -> Option<f64> {
        let details = self.sync.as_ref()?;
        let done = details.total_sectors.saturating_sub(self.sectors_to_go());
        Some(mib_per_second(
            done,
            details.dt_start_ms.saturating_sub(details.paused_ms),
        ))
    }
}

/// Counters of a running resync or verify, as DRBD reports them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDetails {
    /// `rs-total`: amount at the start, sectors.
    pub total_sectors: u64,
    /// `rs-dt-start-ms`: time since the start.
    pub dt_start_ms: u64,
    /// `rs-paused-ms`: time it was held.
    pub paused_ms: u64,
    /// `rs-dt0-ms`: time since the older mark.
    pub dt0_ms: u64,
    /// `rs-db0-sectors`: done since the older mark.
    pub db0_sectors: u64,
    /// `rs-dt1-ms`: time since the newer mark.
    pub dt1_ms: u64,
    /// `rs-db1-sectors`: done since the newer mark.
    pub db1_sectors: u64,
    /// `want`: speed the controller aims at, KiB/s; zero if it has none.
    pub want_kib_per_second: u64,
    /// Which of the two it is.
    pub kind: SyncKind,
}

impl SyncDetails {
    /// Speed since the older mark, MiB/s.
    #[must_use]
    pub fn mib_per_second_0(&self) -> f64 {
        mib_per_second(self.db0_sectors, self.dt0_ms)
    }
    /// Speed since the newer mark, MiB/s.
    #[must_use]
    pub fn mib_per_second_1(&self) -> f64 {
        mib_per_second(self.db1_sectors, self.dt1_ms)
    }
}

/// Resync or online verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncKind {
    /// Resync.
    Resync {
        /// `rs-failed`.
        failed_sectors: u64,
        /// `rs-same-csum`.
        same_csum_sectors: u64,
    },
    /// Online verify.
    Verify {
        /// `ov-start-sector`.
        start_sector: u64,
        /// `ov-stop-sector`.
        stop_sector: u64,
        /// `ov-position`.
        position_sector: u64,
        /// `ov-left`.
        left_sectors: u64,
        /// `ov-skipped`.
        skipped_sectors: u64,
    },
}

fn mib_per_second(sectors: u64, milliseconds: u64) -> f64 {
    sectors as f64 / milliseconds.max(1) as f64 * 1000.0 / 2048.0
}
