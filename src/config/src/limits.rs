//! Every bound of the configuration in one file.

/// Largest configuration file.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most files that one load reads, the main file and everything it includes.
pub const MAX_FILES: usize = 8192;
/// Most bytes that one load reads in total.
pub const MAX_TOTAL_BYTES: u64 = 64 << 20;
/// Deepest nesting of `include`.
pub const MAX_INCLUDE_DEPTH: usize = 10;
/// Deepest nesting of braces.
pub const MAX_BRACE_DEPTH: usize = 16;
/// Longest word or quoted string, in bytes.
pub const MAX_WORD_BYTES: usize = 4096;
/// Most resources of one configuration.
pub const MAX_RESOURCES: usize = 4096;
/// Most volumes times connections of one configuration; a resource of many nodes and volumes has many.
pub const MAX_PEER_DEVICES: usize = 1 << 17;
/// Most nodes of one resource; node ids are below it.
pub const MAX_NODES: usize = 32;
/// Most volumes of one resource.
pub const MAX_VOLUMES: usize = 64;
/// Largest volume number.
pub const MAX_VOLUME_NUMBER: u16 = 65534;
/// Device minors are below it.
pub const MAX_MINORS: u32 = 1 << 20;
/// Most slots of an indexed meta-disk.
pub const MAX_META_INDEX: u32 = 255;
/// Most errors reported for one resource; reading of it stops there.
pub const MAX_ERRORS_PER_RESOURCE: usize = 20;
/// Most errors reported for one load; the rest is counted.
pub const MAX_ERRORS: usize = 500;
