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
/// Fewest activity-log extents: as many as one unaligned request of [`MAX_REQUEST_BYTES`] touches. Smaller settings are raised.
pub const MIN_AL_EXTENTS: u32 = 9;
/// Default number of activity-log extents.
pub const DEFAULT_AL_EXTENTS: u32 = 1237;
/// Operations that a peer may have sent and the receiver has not finished; more is a protocol error.
pub const MAX_BUFFERED_OPERATIONS: usize = 16_384;
/// Operations sent to a peer and not yet written there, above which clients are slowed.
pub const MAX_UNWRITTEN_OPERATIONS: usize = 8_192;
/// Reads that a peer is asked for at once; with [`MAX_UNWRITTEN_OPERATIONS`] they stay below [`MAX_BUFFERED_OPERATIONS`].
pub const MAX_REMOTE_READS: usize = 8_000;
/// Bytes that a peer is asked for at once: it holds as many until they are taken.
pub const MAX_REMOTE_READ_BYTES: u64 = 64 << 20;
/// Milliseconds for which a report that no client waits for is gathered with those that follow,
pub const REPORT_GATHER_MS: u64 = 2;
/// or until it tells of so many operations,
pub const REPORT_OPERATIONS: usize = 32;
/// or of so many bytes: far less than the Primary lets wait before it slows its clients.
pub const REPORT_BYTES: u64 = 512 << 10;
/// or of as many operations as this part of the activity log has extents.
pub const REPORT_LOG_PART: usize = 4;
/// Milliseconds for which a write that no client waits for is gathered with those that follow, before it is sent,
pub const SEND_GATHER_MS: u64 = 1;
/// or until there are so many,
pub const SEND_OPERATIONS: usize = 4;
/// or so many bytes.
pub const SEND_BYTES: u64 = 16 << 10;
/// Operations of a Primary under protocol A that a Secondary may have before it is called behind.
pub const UNHURRIED_OPERATIONS: usize = 16;
/// Milliseconds without a new write after which an open epoch is closed, so that its entries can retire.
pub const IDLE_BARRIER_MS: u64 = 100;
/// The part of `ping-timeout` that a ping is given when the peer's machine says that nobody listens there: one of so many.
pub const NOBODY_LISTENS_SHORTENS: u64 = 5;
/// Milliseconds that a command waits for the state to settle.
pub const COMMAND_PATIENCE_MS: u64 = 10_000;
/// Milliseconds that the peers have for their part of a resize: their metadata may have to move.
pub const RESIZE_PATIENCE_MS: u64 = 30_000;
/// Most milliseconds that a handler of a peer is waited for before a resync.
pub const HANDLER_PATIENCE_MS: u64 = 3_600_000;
/// Milliseconds that a connection has which was ended in order to shake hands again.
pub const RETURN_PATIENCE_MS: u64 = 10_000;
/// Milliseconds that the peers have for their vote on a promotion.
pub const VOTE_TIMEOUT_MS: u64 = 5_000;
/// Largest resync operation.
pub const RESYNC_REQUEST_BYTES: u64 = 256 << 10;
/// Bytes of all resyncs of one peer that are read, sent or written at once, whatever the windows: shells refuse to queue more than
/// twice as many.
pub const RESYNC_IN_FLIGHT_BYTES: u64 = 128 << 20;
/// The same in requests; less than [`MAX_BUFFERED_OPERATIONS`].
pub const RESYNC_IN_FLIGHT_OPERATIONS: usize = 8_192;
/// Bytes of resync data in flight while clients are busy.
pub const RESYNC_BUSY_WINDOW_BYTES: u64 = 512 << 10;
/// Milliseconds that a source waits before it sends again what the target put off, at first; each time twice as long,
pub const RESYNC_RETRY_MS: u64 = 10;
/// up to this.
pub const RESYNC_RETRY_MOST_MS: u64 = 640;
/// Resync data after which the target is asked to make it durable.
pub const RESYNC_FLUSH_BYTES: u64 = 32 << 20;
/// Milliseconds after the last client I/O during which resync yields.
pub const APPLICATION_BUSY_MS: u64 = 20;
/// Bytes of run-length coded bitmap in one message.
pub const BITMAP_PART_BYTES: usize = 64 << 10;
/// Parts of bitmaps that a peer was sent and has not taken up: the rest waits here, so that pings and goodbyes, which share their
/// lane, do not wait behind it.
pub const BITMAP_PARTS_UNDER_WAY: usize = 4;
/// Bytes of text in a goodbye.
pub const MAX_TEXT_BYTES: usize = 512;
/// Bytes of a message's body, the part of a frame between header and payload.
pub const MAX_BODY_BYTES: usize = 256 << 10;
/// Ranges in the report of a lost disk.
pub const MAX_MISSED_RANGES: usize = 16_384;
/// Milliseconds that a volume may stay between two replication states (handshake, bitmap exchange) without progress.
pub const SETTLE_TIMEOUT_MS: u64 = 30_000;
