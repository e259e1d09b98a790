//! DRBD's refusals: numbers, texts and exit codes, in one place for the daemon and the tools.
//!
//! Two families: a state change that was refused ([`StateChangeError`], negative numbers, `State change failed`) and a
//! request that could not be carried out ([`KernelError`], numbers from 101, `Failure`). Scripts grep for the texts and
//! branch on the exit codes, so both are fixed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit code of a state change that was refused, unless the table says otherwise.
pub const EXIT_STATE_CHANGE: u8 = 11;
/// Exit code of a request that could not be carried out.
pub const EXIT_FAILURE: u8 = 10;
/// Exit code of a `wait-*` command whose time is over.
pub const EXIT_WAIT_TIMEOUT: u8 = 5;

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident: $number:ty { $($(#[$variant_meta:meta])* $variant:ident = $value:literal => $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// Every entry of the table.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// DRBD's number.
            #[must_use]
            pub fn number(self) -> $number {
                match self { $($name::$variant => $value),+ }
            }

            /// The text that users and scripts know.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }

            /// The entry of `number`.
            #[must_use]
            pub fn from_number(number: $number) -> Option<$name> {
                Self::ALL.iter().copied().find(|entry| entry.number() == number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.text()) }
        }
    };
}

numbered! {
    /// Why a state change was refused.
    StateChangeError: i32 {
        /// Promote while a connected peer is Primary.
        TwoPrimaries = -1 => "Multiple primaries not allowed by config",
        /// No UpToDate data within reach, or the last of it would be lost.
        NoUpToDateDisk = -2 => "Need access to UpToDate data",
        /// Resync needs a local disk.
        NoLocalDisk = -4 => "Can not resync without local disk",
        /// Resync needs the peer's disk.
        NoRemoteDisk = -5 => "Can not resync without remote disk",
        /// Outdate while connected.
        ConnectedOutdates = -6 => "Refusing to be Outdated while Connected",
        /// Fencing is on and the peer was not fenced.
        PrimaryNop = -7 => "Refusing to be Primary while peer is not outdated",
        /// A verify or resync runs already.
        ResyncRunning = -8 => "Can not start OV/resync since it is already active",
        /// Disconnect of a StandAlone connection; reported as success.
        AlreadyStandAlone = -9 => "Can not disconnect a StandAlone device",
        /// The peer said no.
        RefusedByPeer = -10 => "State change was refused by peer node",
        /// Needs a disk.
        IsDiskless = -11 => "Device is diskless, the requested operation requires a disk",
        /// Openers hold the device.
        DeviceInUse = -12 => "Device is held open by someone",
        /// No connection is configured.
        NoNetConfig = -13 => "Have no net/connection configuration",
        /// verify-alg is not set.
        NoVerifyAlg = -14 => "Need a verify algorithm to start online verify",
        /// Needs a connection.
        NeedConnection = -15 => "State change requires a connection",
        /// Outdate of data that is worse already.
        LowerThanOutdated = -16 => "Disk state is lower than outdated",
        /// The peer is too old.
        NotSupported = -17 => "Peer does not support protocol",
        /// A handshake runs; try again.
        InTransientState = -18 => "In transient state, retry after next state change",
        /// Two changes met.
        ConcurrentStateChange = -19 => "Concurrent state changes detected and aborted",
        /// Another volume is Primary on the peer.
        OtherVolumePrimary = -20 => "Other vol primary on peer not allowed by config",
        /// Interrupted.
        Interrupted = -21 => "Interrupted state change",
        /// The peer has the device open for reading.
        PrimaryReader = -22 => "Peer may not become primary while device is opened read-only",
        /// The peers did not answer in time.
        Timeout = -23 => "Timeout in operation",
        /// Two Primaries without a direct connection.
        WeaklyConnected = -24 => "Primary nodes must be strongly connected among each other",
        /// Promote without quorum.
        NoQuorum = -25 => "No quorum",
        /// The peer keeps no bitmap for this node.
        AttachNoBitmap = -26 => "Intentional diskless peer may not attach a disk",
        /// The handshake chose to disconnect.
        HandshakeDisconnect = -27 => "Disconnect chosen in handshake",
        /// The handshake chose to retry.
        HandshakeRetry = -28 => "Retry chosen in handshake",
    }
}

impl StateChangeError {
    /// Exit code of the tool.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            StateChangeError::NoUpToDateDisk => 17,
            StateChangeError::NoLocalDisk => 16,
            StateChangeError::LowerThanOutdated => 5,
            StateChangeError::AlreadyStandAlone => 0,
            _ => EXIT_STATE_CHANGE,
        }
    }
}

numbered! {
    /// Why a request could not be carried out; exit code [`EXIT_FAILURE`].
    KernelError: u16 {
        /// Own address is used by another resource.
        LocalAddress = 102 => "Local address(port) already in use.",
        /// Peer's address is used by another connection.
        PeerAddress = 103 => "Remote address(port) already in use.",
        /// Backing device.
        OpenDisk = 104 => "Can not open backing device.",
        /// Metadata device.
        OpenMetaDisk = 105 => "Can not open meta device.",
        /// Backing device is smaller than the configured size.
        DiskTooSmall = 111 => "Low.dev. smaller than requested DRBD-dev. size.",
        /// Metadata device.
        MetaDiskTooSmall = 112 => "Meta device too small.",
        /// Backing device is in use.
        DiskClaimed = 114 => "Lower device is already claimed. This usually means it is mounted.",
        /// Metadata device is in use.
        MetaDiskClaimed = 115 => "Meta device is already claimed. This usually means it is mounted.",
        /// Index of an indexed metadata device.
        MetaIndexInvalid = 116 => "Lower device / meta device / index combination invalid.",
        /// Metadata cannot be read or written.
        MetaDiskIo = 118 => "IO error(s) occurred during initial access to meta-data.",
        /// No metadata found.
        MetaDataInvalid = 119 => "No valid meta-data signature found.\n\n\t==> Use 'qrbdadm create-md res' to initialize meta-data area. <==",
        /// Out of memory.
        NoMemory = 122 => "Unable to allocate memory.",
        /// `connect --discard-my-data` on a Primary.
        DiscardImpossible = 123 => "--discard-my-data not allowed when primary.",
        /// Attach of an attached volume.
        DiskConfigured = 124 => "Device is attached to a disk (use detach first)",
        /// Connect of a connected peer.
        NetConfigured = 125 => "Device has a net-config (use disconnect first)",
        /// Device minor.
        MinorInvalid = 127 => "Device minor not allocated",
        /// Interrupted.
        Interrupted = 129 => "Interrupted by Signal",
        /// Resize during resync.
        ResizeResync = 130 => "Resize not allowed during resync.",
        /// Resize without a Primary.
        NoPrimary = 131 => "Need one Primary node to resize.",
        /// resync-after target.
        ResyncAfter = 132 => "The resync-after minor number is invalid",
        /// resync-after cycle.
        ResyncAfterCycle = 133 => "This would cause a resync-after dependency cycle",
        /// pause-sync twice.
        PauseIsSet = 134 => "Sync-pause flag is already set",
        /// resume-sync without pause-sync.
        PauseIsClear = 135 => "Sync-pause flag is already cleared",
        /// No disk.
        NoDisk = 138 => "Need a disk configured, see 'attach'.",
        /// Two primaries need protocol C.
        NotProtocolC = 139 => "Protocol C required",
        /// csums-alg during resync.
        CsumsResyncRunning = 148 => "Can not change csums-alg while resync is in progress",
        /// verify-alg during verify.
        VerifyRunning = 149 => "Can not change verify-alg while online verify runs",
        /// Attach of other data than a diskless Primary exposes.
        DataNotCurrent = 150 => "Can only attach to the data we lost last (see the log of qrbdd).",
        /// new-current-uuid --clear-bitmap.
        NotStandAlone = 151 => "Need to be StandAlone",
        /// Not root.
        Permission = 152 => "Permission denied. CAP_SYS_ADMIN necessary",
        /// resource-and-stonith with protocol A.
        StonithProtocolA = 154 => "The fencing policy resource-and-stonith and prot A are mutually exclusive",
        /// on-congestion with protocol B or C.
        CongestionNotProtocolA = 155 => "on-congestion policy is only allowed with protocol A",
        /// Pause by dependency.
        PauseAfterDependency = 156 => "Sync-pause flag is already cleared. Note: Resync pause caused by a local resync-after dependency.",
        /// Pause by the peer.
        PausePeer = 157 => "Sync-pause flag is already cleared. Note: Resync pause caused by the peer node.",
        /// Not configured.
        ResourceUnknown = 158 => "Unknown resource",
        /// Still has devices or connections.
        ResourceInUse = 159 => "Resource still in use (delete all minors first)",
        /// Minor has a disk.
        MinorConfigured = 160 => "Minor still configured (down it first)",
        /// Minor or volume.
        MinorExists = 161 => "Minor or volume exists already (delete it first)",
        /// Bad request.
        InvalidRequest = 162 => "Invalid configuration request",
        /// Both are Primary.
        NeedTwoPrimaries = 164 => "Both nodes are primary; allow-two-primaries is needed",
        /// The activity log must be applied.
        MetaDataUnclean = 165 => "Unclean meta-data found.\nYou need to 'qrbdadm apply-al res'",
        /// Device shrank.
        ImplicitShrink = 170 => "Implicit device shrinking not allowed. See the log of qrbdd.",
        /// Node id.
        InvalidPeerNodeId = 171 => "Invalid peer-node-id",
        /// Own and peer's address are equal.
        AddressesEqual = 173 => "Local address and peer address are the same",
        /// Already there.
        AlreadyExists = 174 => "Already exists",
        /// The peer is too old.
        NeedHigherProtocol = 175 => "The peer needs a higher protocol version",
        /// Paths collide.
        PathCollision = 176 => "There is already a connection with that path",
    }
}

/// Which family a refusal is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Number of a [`StateChangeError`].
    StateChange(i32),
    /// Number of a [`KernelError`].
    Kernel(u16),
    /// A time limit of `wait-connect` or `wait-sync` is over.
    WaitTimeout,
    /// The configuration does not say what the command needs, or cannot be read.
    Configuration,
    /// Anything else; the text tells.
    Other,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Family and number.
    pub kind: RefusalKind,
    /// The text of the table, or a free text.
    pub text: String,
    /// More lines for a human: which peer, which opener, what to do. May be empty.
    pub detail: String,
    /// Exit code of the tool.
    pub exit_code: u8,
}

impl Refusal {
    /// A free text with its exit code.
    #[must_use]
    pub fn other(text: impl Into<String>, exit_code: u8) -> Refusal {
        Refusal {
            kind: RefusalKind::Other,
            text: text.into(),
            detail: String::new(),
            exit_code,
        }
    }

    /// The configuration is at fault; exit code 10.
    #[must_use]
    pub fn configuration(text: impl Into<String>) -> Refusal {
        Refusal {
            kind: RefusalKind::Configuration,
            text: text.into(),
            detail: String::new(),
            exit_code: EXIT_FAILURE,
        }
    }

    /// The time of a `wait-*` command is over.
    #[must_use]
    pub fn wait_timeout(text: impl Into<String>) -> Refusal {
        Refusal {
            kind: RefusalKind::WaitTimeout,
            text: text.into(),
            detail: String::new(),
            exit_code: EXIT_WAIT_TIMEOUT,
        }
    }

    /// The same with lines for a human.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Refusal {
        self.detail = detail.into();
        self
    }

    /// What the tool prints about `object` (`r0`, `r0/0`), without a newline at the end.
    #[must_use]
    pub fn message(&self, object: &str) -> String {
        let mut message = match self.kind {
            RefusalKind::StateChange(number) => {
                format!("{object}: State change failed: ({number}) {}", self.text)
            }
            RefusalKind::Kernel(number) => format!("{object}: Failure: ({number}) {}", self.text),
            RefusalKind::WaitTimeout | RefusalKind::Configuration | RefusalKind::Other => {
                format!("{object}: {}", self.text)
            }
        };
        if !self.detail.is_empty() {
            message.push('\n');
            message.push_str(self.detail.trim_end());
        }
        message
    }
}

impl From<StateChangeError> for Refusal {
    fn from(error: StateChangeError) -> Refusal {
        Refusal {
            kind: RefusalKind::StateChange(error.number()),
            text: error.text().to_owned(),
            detail: String::new(),
            exit_code: error.exit_code(),
        }
    }
}

impl From<KernelError> for Refusal {
    fn from(error: KernelError) -> Refusal {
        Refusal {
            kind: RefusalKind::Kernel(error.number()),
            text: error.text().to_owned(),
            detail: String::new(),
            exit_code: EXIT_FAILURE,
        }
    }
}
