//! Every bound of the engine in one file.

/// Most nodes of a cluster; node ids are below it.
pub const MAX_NODES: usize = 32;
/// Most bitmap slots in a metadata area.
pub const MAX_PEERS: usize = 31;
/// Most volumes of one resource.
pub const MAX_VOLUMES: usize = 64;
/// Most history entries kept in a superblock.
pub const HISTORY_LENGTH: usize = 32;
/// Largest read, write, discard or zero request that the engine takes; shells split larger ones.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// Largest device: 1 PiB.
pub const MAX_DEVICE_BYTES: u64 = 1 << 50;
/// Fewest activity-log extents that may be configured.
pub const MIN_AL_EXTENTS: u32 = 7;
/// Default number of activity-log extents.
pub const DEFAULT_AL_EXTENTS: u32 = 1237;
