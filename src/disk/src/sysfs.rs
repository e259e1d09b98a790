//! Properties of a block device's request queue, read from sysfs. Best effort: what cannot be read counts as absent.

use std::fs::read_to_string;
use std::path::PathBuf;

use nix::libc;

/// The queue directory of a device, or of the disk a partition lies on.
pub struct BlockQueue {
    directory: Option<PathBuf>,
}

impl BlockQueue {
    /// The queue of the block device with this number.
    pub fn of(device: u64) -> Self {
        let base = sysfs_directory(device);
        let directory = ["queue", "../queue"]
            .into_iter()
            .map(|name| base.join(name))
            .find(|path| path.is_dir());
        BlockQueue { directory }
    }

    fn value(&self, name: &str) -> u64 {
        let text = self
            .directory
            .as_ref()
            .and_then(|directory| read_to_string(directory.join(name)).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// A rotating disk.
    pub fn rotational(&self) -> bool {
        self.value("rotational") != 0
    }

    /// Discard is supported.
    pub fn can_discard(&self) -> bool {
        self.value("discard_max_bytes") > 0
    }

    /// The device can zero a range by itself, so a discard goes that way and leaves zeroes.
    pub fn can_write_zeroes(&self) -> bool {
        self.value("write_zeroes_max_bytes") > 0
    }
}

/// Where sysfs describes the block device with this number.
pub fn sysfs_directory(device: u64) -> PathBuf {
    // sysfs resolves the symbolic link, which `../queue` of a partition needs.
    let link = PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        libc::major(device),
        libc::minor(device)
    ));
    link.canonicalize().unwrap_or(link)
}
