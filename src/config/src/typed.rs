//! Owns the typed options and how they come from settings. Units stand last in the names.
//!
//! Only options that act in this program are here. Defaults come from the option table.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use crate::options::Section;
use crate::section::{listen_address, resync_after, striping_bytes};
use crate::settings::Settings;

/// A secret; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Declares an enum whose variants are the words of an option.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The word in the configuration.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }

            fn from_word(word: &str) -> Self {
                match word {
                    $($word => $name::$variant,)+
                    other => panic!("`{other}` passed the option table but is no {}", stringify!($name)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// When a write is acknowledged.
    Protocol {
        /// On the local disk and sent.
        A = "A",
        /// On the local disk and in the peer's memory.
        B = "B",
        /// On both disks.
        C = "C",
    }
}
words! {
    /// Split brain with one Primary.
    AfterSplitBrain1Primary {
        /// Nobody loses.
        Disconnect = "disconnect",
        /// As without Primary, if the Secondary loses.
        Consensus = "consensus",
        /// As without Primary, even if the Primary loses.
        ViolentlyAs0p = "violently-as0p",
        /// The Secondary loses.
        DiscardSecondary = "discard-secondary",
        /// As without Primary; a Primary that loses is demoted or its handler called.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
    }
}
words! {
    /// Split brain with two Primaries.
    AfterSplitBrain2Primaries {
        /// Nobody loses.
        Disconnect = "disconnect",
        /// As without Primary.
        ViolentlyAs0p = "violently-as0p",
        /// As without Primary; the loser is demoted or its handler called.
        CallPriLostAfterSb = "call-pri-lost-after-sb",
    }
}
words! {
    /// A Primary would have to become SyncTarget.
    RrConflict {
        /// Drop the connection.
        Disconnect = "disconnect",
        /// Go on.
        Violently = "violently",
        /// Call the `pri-lost` handler.
        CallPriLost = "call-pri-lost",
        /// Try again.
        RetryConnect = "retry-connect",
        /// Reverse the direction where protocol A or B allows it.
        AutoDiscard = "auto-discard",
    }
}
words! {
    /// What is done about a peer that cannot be reached.
    Fencing {
        /// Nothing.
        DontCare = "dont-care",
        /// Call `fence-peer`.
        ResourceOnly = "resource-only",
        /// Call `fence-peer` and freeze I/O until it answered.
        ResourceAndStonith = "resource-and-stonith",
    }
}
words! {
    /// A full send queue under protocol A.
    OnCongestion {
        /// Wait.
        Block = "block",
        /// Stop mirroring, resync later.
        PullAhead = "pull-ahead",
        /// Drop the connection.
        Disconnect = "disconnect",
    }
}
words! {
    /// An error of the backing disk.
    OnIoError {
        /// Go on without the disk.
        Detach = "detach",
        /// Report it upwards.
        PassOn = "pass_on",
        /// Call the `local-io-error` handler, then detach.
        CallLocalIoError = "call-local-io-error",
    }
}
words! {
    /// No data can be reached, or no quorum.
    OnNoData {
        /// Fail requests.
        IoError = "io-error",
        /// Freeze requests.
        SuspendIo = "suspend-io",
    }
}
words! {
    /// A frozen Primary finds itself Outdated.
    OnSuspendedPrimaryOutdated {
        /// Stay frozen without the connection.
        Disconnect = "disconnect",
        /// Fail requests and become Secondary.
        ForceSecondary = "force-secondary",
    }
}

/// Split brain without a Primary.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum AfterSplitBrain0Primaries {
    /// Nobody loses.
    Disconnect,
    /// The node that became Primary later loses.
    DiscardYoungerPrimary,
    /// The node that became Primary earlier loses.
    DiscardOlderPrimary,
    /// The node without changes loses.
    DiscardZeroChanges,
    /// The node with fewer changes loses.
    DiscardLeastChanges,
    /// This node loses.
    DiscardLocal,
    /// The peer loses.
    DiscardRemote,
    /// The named node loses (`discard-node-NAME`); the node exists in the resource.
    DiscardNode(String),
}

/// Which copy answers reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ReadBalancing {
    /// This node's.
    PreferLocal,
    /// A peer's.
    PreferRemote,
    /// All in turn.
    RoundRobin,
    /// The one with the fewest open requests.
    LeastPending,
    /// A peer's while the local disk is congested.
    WhenCongestedRemote,
    /// All in turn, by stripes.
    Striping {
        /// Size of a stripe.
        bytes: u32,
    },
}

/// How many nodes must agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Quorum {
    /// No quorum is asked for.
    Off,
    /// More than half.
    Majority,
    /// All.
    All,
    /// This many, 1..=32.
    Number(u8),
}

/// Options of one connection (`net`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetOptions {
    /// Acknowledgement rule.
    pub protocol: Protocol,
    /// A peer must answer within it.
    pub timeout_ms: u64,
    /// The peer is dropped after so many timeouts; 0: never.
    pub ko_count: u32,
    /// Idle time before a keep-alive.
    pub ping_int_ms: u64,
    /// A keep-alive must be answered within it.
    pub ping_timeout_ms: u64,
    /// Time between attempts to connect.
    pub connect_int_ms: u64,
    /// Receive buffers on the Secondary, in pages of 4 KiB.
    pub max_buffers: u32,
    /// Writes between two barriers.
    pub max_epoch_size: u32,
    /// Two Primaries at a time are legal.
    pub allow_two_primaries: bool,
    /// The peer may serve as source of data.
    pub allow_remote_read: bool,
    /// Secret that both ends must know.
    pub shared_secret: Option<Secret>,
    /// Digest over replicated data.
    pub data_integrity_alg: Option<String>,
    /// Digest for online verify.
    pub verify_alg: Option<String>,
    /// Digest for resync by checksums.
    pub csums_alg: Option<String>,
    /// Resync by checksums only after a crash.
    pub csums_after_crash_only: bool,
    /// Split brain without a Primary.
    pub after_sb_0pri: AfterSplitBrain0Primaries,
    /// Split brain with one Primary.
    pub after_sb_1pri: AfterSplitBrain1Primary,
    /// Split brain with two Primaries.
    pub after_sb_2pri: AfterSplitBrain2Primaries,
    /// Use these policies also when only the history matches.
    pub always_asbp: bool,
    /// A Primary would have to become SyncTarget.
    pub rr_conflict: RrConflict,
    /// A peer cannot be reached.
    pub fencing: Fencing,
    /// The send queue is full.
    pub on_congestion: OnCongestion,
    /// Bytes in flight that count as congestion; 0: off.
    pub congestion_fill_bytes: u64,
    /// Active extents that count as congestion.
    pub congestion_extents: u32,
}

impl NetOptions {
    pub(crate) fn new(settings: &Settings) -> Self {
        let section = Section::Net;
        let integer = |name| settings.integer(section, name);
        let text = |name| settings.text(name).map(str::to_string);
        NetOptions {
            protocol: Protocol::from_word(settings.choice(section, "protocol")),
            timeout_ms: integer("timeout") * 100,
            ko_count: small(integer("ko-count")),
            ping_int_ms: integer("ping-int") * 1000,
            ping_timeout_ms: integer("ping-timeout") * 100,
            connect_int_ms: integer("connect-int") * 1000,
            max_buffers: small(integer("max-buffers")),
            max_epoch_size: small(integer("max-epoch-size")),
            allow_two_primaries: settings.boolean(section, "allow-two-primaries"),
            allow_remote_read: settings.boolean(section, "allow-remote-read"),
            shared_secret: text("shared-secret").map(Secret),
            data_integrity_alg: text("data-integrity-alg"),
            verify_alg: text("verify-alg"),
            csums_alg: text("csums-alg"),
            csums_after_crash_only: settings.boolean(section, "csums-after-crash-only"),
            after_sb_0pri: after_sb_0pri(settings.choice(section, "after-sb-0pri")),
            after_sb_1pri: AfterSplitBrain1Primary::from_word(
                settings.choice(section, "after-sb-1pri"),
            ),
            after_sb_2pri: AfterSplitBrain2Primaries::from_word(
                settings.choice(section, "after-sb-2pri"),
            ),
            always_asbp: settings.boolean(section, "always-asbp"),
            rr_conflict: RrConflict::from_word(settings.choice(section, "rr-conflict")),
            fencing: Fencing::from_word(settings.choice(section, "fencing")),
            on_congestion: OnCongestion::from_word(settings.choice(section, "on-congestion")),
            congestion_fill_bytes: integer("congestion-fill") * 512,
            congestion_extents: small(integer("congestion-extents")),
        }
    }
}

impl Default for NetOptions {
    fn default() -> Self {
        NetOptions::new(&Settings::default())
    }
}

fn after_sb_0pri(word: &str) -> AfterSplitBrain0Primaries {
    use AfterSplitBrain0Primaries as After;
    match word {
        "disconnect" => After::Disconnect,
        "discard-younger-primary" => After::DiscardYoungerPrimary,
        "discard-older-primary" => After::DiscardOlderPrimary,
        "discard-zero-changes" => After::DiscardZeroChanges,
        "discard-least-changes" => After::DiscardLeastChanges,
        "discard-local" => After::DiscardLocal,
        "discard-remote" => After::DiscardRemote,
        other => match other.strip_prefix("discard-node-") {
            Some(node) => After::DiscardNode(node.to_string()),
            None => panic!("`{other}` passed the option table"),
        },
    }
}

/// Options of one device on one node (`disk`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskOptions {
    /// An error of the backing disk.
    pub on_io_error: OnIoError,
    /// Cap of the device's size; `None`: as large as the disk allows.
    pub size_bytes: Option<u64>,
    /// Extents of 4 MiB in the activity log.
    pub al_extents: u32,
    /// Write the activity log.
    pub al_updates: bool,
    /// Flush the disk between dependent writes.
    pub disk_flushes: bool,
    /// Wait for writes before dependent writes.
    pub disk_drain: bool,
    /// Flush after metadata writes.
    pub md_flushes: bool,
    /// Detach a disk that does not answer within it; `None`: never.
    pub disk_timeout_ms: Option<u64>,
    /// Which copy answers reads.
    pub read_balancing: ReadBalancing,
    /// Resync only after this resource and volume did; the volume is known, unless it is in a broken resource.
    pub resync_after: Option<(String, u16)>,
    /// Zero blocks of this size become discards during resync; 0: never.
    pub rs_discard_granularity_bytes: u32,
    /// Discards may be used for aligned zeroes.
    pub discard_zeroes_if_aligned: bool,
}

impl DiskOptions {
    pub(crate) fn new(settings: &Settings) -> Self {
        let section = Section::Disk;
        let integer = |name| settings.integer(section, name);
        let some = |number: u64| (number != 0).then_some(number);
        DiskOptions {
            on_io_error: OnIoError::from_word(settings.choice(section, "on-io-error")),
            size_bytes: some(integer("size") * 512),
            al_extents: small(integer("al-extents")),
            al_updates: settings.boolean(section, "al-updates"),
            disk_flushes: settings.boolean(section, "disk-flushes"),
            disk_drain: settings.boolean(section, "disk-drain"),
            md_flushes: settings.boolean(section, "md-flushes"),
            disk_timeout_ms: some(integer("disk-timeout") * 100),
            read_balancing: read_balancing(settings.choice(section, "read-balancing")),
            resync_after: settings
                .text("resync-after")
                .and_then(|text| resync_after(text).flatten()),
            rs_discard_granularity_bytes: small(integer("rs-discard-granularity")),
            discard_zeroes_if_aligned: settings.boolean(section, "discard-zeroes-if-aligned"),
        }
    }
}

impl Default for DiskOptions {
    fn default() -> Self {
        DiskOptions::new(&Settings::default())
    }
}

fn read_balancing(word: &str) -> ReadBalancing {
    match word {
        "prefer-local" => ReadBalancing::PreferLocal,
        "prefer-remote" => ReadBalancing::PreferRemote,
        "round-robin" => ReadBalancing::RoundRobin,
        "least-pending" => ReadBalancing::LeastPending,
        "when-congested-remote" => ReadBalancing::WhenCongestedRemote,
        other => match striping_bytes(other) {
            Some(bytes) => ReadBalancing::Striping { bytes },
            None => panic!("`{other}` passed the option table"),
        },
    }
}

/// Options of one device on one connection (in `disk`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerDeviceOptions {
    /// Keep a bitmap for this peer.
    pub bitmap: bool,
    /// Rate of resync at its start, or its fixed rate.
    pub resync_rate_bytes_per_second: u64,
    /// How far the controller looks ahead; 0: the rate is fixed.
    pub c_plan_ahead_ms: u64,
    /// Delay that the controller aims at if there is no fill target.
    pub c_delay_target_ms: u64,
    /// Bytes in flight that the controller aims at; 0: use the delay.
    pub c_fill_target_bytes: u64,
    /// Most that a resync may take; 0: no limit.
    pub c_max_rate_bytes_per_second: u64,
    /// What a resync takes even while applications are busy; 0: it is never throttled.
    pub c_min_rate_bytes_per_second: u64,
    /// This diskless peer counts as tie breaker.
    pub peer_tiebreaker: bool,
}

impl PeerDeviceOptions {
    pub(crate) fn new(settings: &Settings) -> Self {
        let section = Section::Disk;
        let integer = |name| settings.integer(section, name);
        PeerDeviceOptions {
            bitmap: settings.boolean(section, "bitmap"),
            resync_rate_bytes_per_second: integer("resync-rate") * 1024,
            c_plan_ahead_ms: integer("c-plan-ahead") * 100,
            c_delay_target_ms: integer("c-delay-target") * 100,
            c_fill_target_bytes: integer("c-fill-target") * 512,
            c_max_rate_bytes_per_second: integer("c-max-rate") * 1024,
            c_min_rate_bytes_per_second: integer("c-min-rate") * 1024,
            peer_tiebreaker: settings.boolean(section, "peer-tiebreaker"),
        }
    }
}

impl Default for PeerDeviceOptions {
    fn default() -> Self {
        PeerDeviceOptions::new(&Settings::default())
    }
}

/// Options of one resource (`options`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResourceOptions {
    /// Opening promotes. Off unless asked, unlike DRBD 9: an NBD client that only reads looks like one that writes.
    pub auto_promote: bool,
    /// How long an opener waits for the promotion.
    pub auto_promote_timeout_ms: u64,
    /// No copy of the data can be reached.
    pub on_no_data_accessible: OnNoData,
    /// How many nodes must be present.
    pub quorum: Quorum,
    /// How many of them must be UpToDate.
    pub quorum_minimum_redundancy: Quorum,
    /// Quorum is lost.
    pub on_no_quorum: OnNoData,
    /// A frozen Primary finds itself Outdated.
    pub on_suspended_primary_outdated: OnSuspendedPrimaryOutdated,
    /// Serve NBD on this TCP address too (own option `nbd-listen`).
    pub nbd_listen: Option<SocketAddr>,
}

impl ResourceOptions {
    pub(crate) fn new(settings: &Settings) -> Self {
        let section = Section::Options;
        ResourceOptions {
            auto_promote: settings.boolean(section, "auto-promote"),
            auto_promote_timeout_ms: settings.integer(section, "auto-promote-timeout") * 100,
            on_no_data_accessible: OnNoData::from_word(
                settings.choice(section, "on-no-data-accessible"),
            ),
            quorum: quorum(settings.text("quorum")),
            quorum_minimum_redundancy: quorum(settings.text("quorum-minimum-redundancy")),
            on_no_quorum: OnNoData::from_word(settings.choice(section, "on-no-quorum")),
            on_suspended_primary_outdated: OnSuspendedPrimaryOutdated::from_word(
                settings.choice(section, "on-suspended-primary-outdated"),
            ),
            nbd_listen: settings.text("nbd-listen").and_then(listen_address),
        }
    }
}

impl Default for ResourceOptions {
    fn default() -> Self {
        ResourceOptions::new(&Settings::default())
    }
}

fn quorum(word: Option<&str>) -> Quorum {
    match word {
        None | Some("off") => Quorum::Off,
        Some("majority") => Quorum::Majority,
        Some("all") => Quorum::All,
        Some(number) => match number.parse() {
            Ok(number) => Quorum::Number(number),
            Err(_) => panic!("`{number}` passed the option table"),
        },
    }
}

/// What waits at boot (`startup`). `None` waits forever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartupOptions {
    /// Wait for the peers.
    pub wfc_timeout_s: Option<u32>,
    /// The same after a boot as degraded node.
    pub degr_wfc_timeout_s: Option<u32>,
    /// The same if the peers' data is outdated.
    pub outdated_wfc_timeout_s: Option<u32>,
    /// Wait also after a split brain.
    pub wait_after_sb: bool,
    /// Nodes that become Primary at boot: names, or `both`.
    pub become_primary_on: Vec<String>,
}

impl StartupOptions {
    pub(crate) fn new(settings: &Settings) -> Self {
        let section = Section::Startup;
        let wait =
            |name| Some(small(settings.integer(section, name))).filter(|seconds| *seconds != 0);
        StartupOptions {
            wfc_timeout_s: wait("wfc-timeout"),
            degr_wfc_timeout_s: wait("degr-wfc-timeout"),
            outdated_wfc_timeout_s: wait("outdated-wfc-timeout"),
            wait_after_sb: settings.boolean(section, "wait-after-sb"),
            become_primary_on: settings.names("become-primary-on"),
        }
    }
}

impl Default for StartupOptions {
    fn default() -> Self {
        StartupOptions::new(&Settings::default())
    }
}

/// Programs to run at events (`handlers`); each is given to `sh -c`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Handlers {
    commands: BTreeMap<&'static str, String>,
}

impl Handlers {
    pub(crate) fn new(settings: &Settings) -> Self {
        let commands = settings
            .iter()
            .filter_map(|(name, _)| Some((name, settings.text(name)?.to_string())))
            .collect();
        Handlers { commands }
    }

    /// The command for `event` (`fence-peer`, `split-brain`, …), if one is configured.
    #[must_use]
    pub fn get(&self, event: &str) -> Option<&str> {
        self.commands.get(event).map(String::as_str)
    }

    /// Events and commands in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.commands
            .iter()
            .map(|(event, command)| (*event, command.as_str()))
    }
}

/// A number whose table range fits into 32 bits.
pub(crate) fn small(number: u64) -> u32 {
    u32::try_from(number).expect("the option table bounds this number to 32 bits")
}
