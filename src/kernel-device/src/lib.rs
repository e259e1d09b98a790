//! The kernel's NBD device: everything that the daemon asks of the kernel so that a volume appears as `/dev/nbdN`.
//!
//! [`netlink`] is the codec, [`Nbd`] speaks to the driver's generic netlink family, [`sysfs`] reads and sets what is not in it, [`holders`]
//! finds who has a device open, [`links`] makes the names that people use, [`process`] keeps the daemon's memory from waiting for its own
//! device, [`inherit`] passes sockets to the program that replaces this one.
//!
//! Every call here may wait for the kernel, and the kernel may wait for the device: none may be made on the thread that serves the
//! device's sockets, except where its text says so. Nothing here knows of resources, roles or replication.

pub mod holders;
pub mod inherit;
pub mod links;
mod nbd;
pub mod netlink;
pub mod process;
pub mod sysfs;

pub use nbd::{Connect, Nbd, NbdError, Unavailable};

use std::path::PathBuf;

/// Where the kernel's file systems are; elsewhere in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// `/dev`.
    pub dev: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Places {
            dev: "/dev".into(),
            sys: "/sys".into(),
            proc: "/proc".into(),
        }
    }
}

impl Places {
    /// The device's node, `/dev/nbdN`.
    #[must_use]
    pub fn device(&self, index: u32) -> PathBuf {
        self.dev.join(format!("nbd{index}"))
    }
}
