//! Why a requested change of state is turned down, with DRBD's numbers and texts (scripts grep for them).

use core::fmt;

/// A refused change of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Refusal {
    /// A peer is Primary already.
    TwoPrimaries,
    /// No UpToDate data within reach.
    NoUpToDateDisk,
    /// A resync needs a local disk.
    NoLocalDisk,
    /// A resync needs a remote disk.
    NoRemoteDisk,
    /// `outdate` while connected.
    ConnectedOutdates,
    /// Fencing is on and the peer was not fenced.
    PeerNotFenced,
    /// Resync is running already.
    ResyncRunning,
    /// The connection is StandAlone already.
    AlreadyStandAlone,
    /// The peer refused.
    PeerRefused,
    /// The volume has no disk.
    IsDiskless,
    /// A client has the device open.
    DeviceInUse,
    /// The connection is not configured.
    NoNetConfig,
    /// A connection is needed.
    NeedConnection,
    /// The disk state is lower than Outdated.
    LowerThanOutdated,
    /// The state is just changing; try again.
    InTransientState,
    /// Two nodes wanted to change the state at the same time.
    ConcurrentStateChange,
    /// No answer in time.
    Timeout,
    /// `connect --discard-my-data` on a Primary (kernel error 123).
    DiscardNotAllowed,
    /// A disk is attached already (kernel error 124).
    DiskConfigured,
    /// The connection exists already (kernel error 125).
    NetConfigured,
    /// The disk offers less than what is asked for (kernel error 111).
    DiskTooSmall,
    /// The metadata device is too small (kernel error 112).
    MetadataTooSmall,
    /// What belongs to the metadata cannot be written (kernel error 118).
    MetadataIo,
    /// `resize` during a resync (kernel error 130).
    ResizeDuringResync,
    /// `resize` where there is no Primary (kernel error 131).
    NeedPrimary,
    /// Resync pause is set already (kernel error 134).
    PauseAlreadySet,
    /// Resync pause is cleared already (kernel error 135).
    PauseAlreadyClear,
    /// The operation needs a disk (kernel error 138).
    NoDisk,
    /// The metadata holds another generation than the data last exposed (kernel error 150).
    DataNotCurrent,
    /// The operation needs StandAlone (kernel error 151).
    NeedStandAlone,
    /// Unknown volume or peer (kernel error 158).
    Unknown,
    /// The resource has the wrong role for the operation.
    NeedSecondary,
}

impl Refusal {
    /// DRBD's number: negative for a refused state change, 101.. for an error of the kernel interface.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Refusal::TwoPrimaries => -1,
            Refusal::NoUpToDateDisk => -2,
            Refusal::NoLocalDisk => -4,
            Refusal::NoRemoteDisk => -5,
            Refusal::ConnectedOutdates => -6,
            Refusal::PeerNotFenced => -7,
            Refusal::ResyncRunning => -8,
            Refusal::AlreadyStandAlone => -9,
            Refusal::PeerRefused => -10,
            Refusal::IsDiskless => -11,
            Refusal::DeviceInUse => -12,
            Refusal::NoNetConfig => -13,
            Refusal::NeedConnection => -15,
            Refusal::LowerThanOutdated => -16,
            Refusal::InTransientState => -18,
            Refusal::ConcurrentStateChange => -19,
            Refusal::Timeout => -23,
            Refusal::DiscardNotAllowed => 123,
            Refusal::DiskConfigured => 124,
            Refusal::NetConfigured => 125,
            Refusal::DiskTooSmall => 111,
            Refusal::MetadataTooSmall => 112,
            Refusal::MetadataIo => 118,
            Refusal::ResizeDuringResync => 130,
            Refusal::NeedPrimary => 131,
            Refusal::PauseAlreadySet => 134,
            Refusal::PauseAlreadyClear => 135,
            Refusal::NoDisk => 138,
            Refusal::DataNotCurrent => 150,
            Refusal::NeedStandAlone => 151,
            Refusal::Unknown => 158,
            Refusal::NeedSecondary => 159,
        }
    }

    /// DRBD's text.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Refusal::TwoPrimaries => "Multiple primaries not allowed by config",
            Refusal::NoUpToDateDisk => "Need access to UpToDate data",
            Refusal::NoLocalDisk => "Can not resync without local disk",
            Refusal::NoRemoteDisk => "Can not resync without remote disk",
            Refusal::ConnectedOutdates => "Refusing to be Outdated while Connected",
            Refusal::PeerNotFenced => "Refusing to be Primary while peer is not outdated",
            Refusal::ResyncRunning => "Can not start OV/resync since it is already active",
            Refusal::AlreadyStandAlone => "Can not disconnect a StandAlone device",
            Refusal::PeerRefused => "State change was refused by peer node",
            Refusal::IsDiskless => "Device is diskless, the requested operation requires a disk",
            Refusal::DeviceInUse => "Device is held open by someone",
            Refusal::NoNetConfig => "Have no net/connection configuration",
            Refusal::NeedConnection => "State change requires a connection",
            Refusal::LowerThanOutdated => "Disk state is lower than outdated",
            Refusal::InTransientState => "In transient state, retry after next state change",
            Refusal::ConcurrentStateChange => "Concurrent state changes detected and aborted",
            Refusal::Timeout => "Timeout in operation",
            Refusal::DiscardNotAllowed => "--discard-my-data not allowed when primary.",
            Refusal::DiskConfigured => "Device is attached to a disk (use detach first)",
            Refusal::NetConfigured => "Device has a net-config (use disconnect first)",
            Refusal::DiskTooSmall => "Low.dev. smaller than requested DRBD-dev. size.",
            Refusal::MetadataTooSmall => "Meta device too small.",
            Refusal::MetadataIo => "IO error(s) occurred during initial access to meta-data.",
            Refusal::ResizeDuringResync => "Resize not allowed during resync.",
            Refusal::NeedPrimary => "Need one Primary node to resize.",
            Refusal::PauseAlreadySet => "Sync-pause flag is already set",
            Refusal::PauseAlreadyClear => "Sync-pause flag is already cleared",
            Refusal::NoDisk => "Device does not have a disk-config",
            Refusal::DataNotCurrent => "Can only attach to the data we lost last (see kernel log).",
            Refusal::NeedStandAlone => "Need to be StandAlone",
            Refusal::Unknown => "Unknown resource",
            Refusal::NeedSecondary => "Resource is in use: it must be Secondary for this operation",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}) {}", self.code(), self.text())
    }
}
