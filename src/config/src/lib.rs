//! Configuration of QRBD: DRBD's `.res` grammar and the typed model that daemon and tools share.
//!
//! Reading goes in one direction, one module per step:
//! [`source`](Position) (text and places) → `lexer` (tokens) → `tree` (statements and blocks, recovery) →
//! `section` and `raw` (words become options, devices, addresses) → `resolve` (inheritance, node ids, connections) →
//! `check` (conflicts between resources) → [`Loaded`].
//!
//! Invariants:
//! - No input makes the loader panic, hang or grow without bound; every limit stands in [`limits`].
//! - A resource that is in [`Loaded::resources`] had no error at all. A resource with an error is in [`Loaded::broken`].
//! - An error inside one resource leaves the other resources alone; a `common` section that could not be read
//!   takes every resource with it, because their options would be guesses.
//!
//! Not here: the disks and the network are not touched (a path need not exist, an address need not be configured), with one
//! exception: `floating` sections compare their address with the addresses of this host.
#![forbid(unsafe_code)]

mod check;
mod dump;
mod error;
mod glob;
mod lexer;
pub mod limits;
mod load;
mod model;
mod options;
mod place;
mod raw;
mod resolve;
mod section;
mod settings;
mod source;
mod tree;
mod typed;

pub use dump::{dump, dump_resource};
pub use error::{ConfigError, ErrorKind};
pub use load::{load, load_on_host};
pub use model::{
    Broken, Connection, Device, DiskSource, Global, IgnoreReason, Ignored, Loaded, MetaDisk, Node,
    Peer, PeerDevice, PeerPath, Resource, SkipReason, Skipped, Volume,
};
pub use settings::{Setting, Settings, Value};
pub use source::Position;
pub use typed::{
    AfterSplitBrain0Primaries, AfterSplitBrain1Primary, AfterSplitBrain2Primaries, DiskOptions,
    Fencing, Handlers, NetOptions, OnCongestion, OnIoError, OnNoData, OnSuspendedPrimaryOutdated,
    PeerDeviceOptions, Protocol, Quorum, ReadBalancing, ResourceOptions, RrConflict, Secret,
    StartupOptions,
};

/// The file that is read when none is named. It includes `qrbd.d/global_common.conf` and `qrbd.d/*.res`.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/qrbd.conf";
