//! Disk shell of QRBD: direct I/O through io_uring behind one trait.
//!
//! Owns opening and claiming disks, the pooled aligned buffers, and the backends that carry out operations. It decides nothing
//! about replication: which writes go where, in which order, and what an error means is up to its caller.
//!
//! - [`open()`] gives a [`Disk`]; offline tools use it as it is ([`Disk::read_exact_at`] and friends).
//! - [`UringReactor::attach`] makes it a [`BlockDevice`] on the thread's ring. [`memory::MemoryReactor`] has devices in memory
//!   with injected faults; the feature `tokio-uring` adds a backend on a disk thread of its own.
//! - [`Pool`], [`BufferMut`], [`Payload`]: one buffer from the network to the disk and back.
#![deny(unsafe_code)]

pub mod buffer;
mod busy;
pub mod device;
pub mod error;
#[cfg(feature = "loop")]
pub mod loop_device;
pub mod memory;
mod offline;
mod open;
pub mod operation;
mod sys;
mod sysfs;
#[cfg(feature = "tokio-uring")]
pub mod thread;
mod transfer;
pub mod uring;

pub use buffer::{BufferMut, MAX_BUFFER_BYTES, Payload, Pool, PoolStatistics};
pub use device::{DeviceInfo, DeviceKind};
pub use error::{DiskError, DiskErrorKind, OperationKind};
pub use open::{Disk, OpenOptions, open};
pub use operation::{BlockDevice, Completion, Operation, Reactor, ReactorExt, Refused};
pub use uring::{TaskRun, UringDevice, UringOptions, UringReactor};
