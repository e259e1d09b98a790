//! What the kernel shows and lets be set of an NBD device in `/sys/block/nbdN`.
//!
//! Reading is cheap and never waits for the device.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Places;

/// Bytes of a sector in `size`.
const SECTOR_BYTES: u64 = 512;

/// One device.
#[derive(Clone, Debug)]
pub struct Device {
    directory: PathBuf,
    name: String,
}

impl Device {
    /// The device `nbdN`, which need not exist.
    #[must_use]
    pub fn new(places: &Places, index: u32) -> Device {
        let name = format!("nbd{index}");
        Device {
            directory: places.sys.join("block").join(&name),
            name,
        }
    }

    fn read(&self, attribute: &str) -> Option<String> {
        let text = fs::read_to_string(self.directory.join(attribute)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The process that connected it; `None` if it is not connected.
    #[must_use]
    pub fn process(&self) -> Option<String> {
        self.read("pid")
    }

    /// The backend's identifier, if whoever connected it gave one.
    #[must_use]
    pub fn backend(&self) -> Option<String> {
        self.read("backend")
    }

    /// True if it is connected to something, with living sockets or without.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.process().is_some()
    }

    /// Its size; 0 if it is not connected.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.read("size")
            .and_then(|sectors| sectors.parse::<u64>().ok())
            .map_or(0, |sectors| sectors.saturating_mul(SECTOR_BYTES))
    }

    /// `MAJOR:MINOR` and the name of the device and of each of its partitions.
    #[must_use]
    pub fn numbers(&self) -> Vec<(String, String)> {
        let whole = self.read("dev").map(|dev| (dev, self.name.clone()));
        whole.into_iter().chain(self.partitions()).collect()
    }

    fn partitions(&self) -> Vec<(String, String)> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        let prefix = format!("{}p", self.name);
        let mut found: Vec<(String, String)> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&prefix))
            .filter_map(|name| Some((self.read(&format!("{name}/dev"))?, name)))
            .collect();
        found.sort();
        found
    }

    /// Devices that are made of this one or of its partitions: volumes of LVM, dm-crypt, software RAID.
    #[must_use]
    pub fn stacked(&self) -> Vec<String> {
        let mut directories = vec![self.directory.join("holders")];
        for (_, partition) in self.partitions() {
            directories.push(self.directory.join(partition).join("holders"));
        }
        let mut names: Vec<String> = directories
            .iter()
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flat_map(|entries| entries.flatten())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// How soon a request whose socket was replaced is sent again.
    ///
    /// # Errors
    /// If the kernel does not take the value.
    pub fn set_request_timer(&self, interval: Duration) -> io::Result<()> {
        let text = interval.as_millis().to_string();
        fs::write(self.directory.join("queue/io_timeout"), text)
    }

    /// Largest request in KiB, as far as the driver allows.
    ///
    /// # Errors
    /// If the kernel does not take the value.
    pub fn set_largest_request(&self, kib: u32) -> io::Result<()> {
        let hardware = self
            .read("queue/max_hw_sectors_kb")
            .and_then(|text| text.parse().ok())
            .unwrap_or(kib);
        let text = kib.min(hardware).to_string();
        fs::write(self.directory.join("queue/max_sectors_kb"), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holders::tests::FakeKernel;

    #[test]
    fn a_device_is_connected_when_the_kernel_names_a_process() {
        let kernel = FakeKernel::new();
        let device = Device::new(&kernel.places, 0);
        assert!(!device.is_connected());
        assert_eq!(device.size_bytes(), 0);
        kernel.file("sys/block/nbd0/pid", "4711\n");
        kernel.file("sys/block/nbd0/backend", "qrbd:alice:r0/0\n");
        kernel.file("sys/block/nbd0/size", "2048\n");
        assert_eq!(device.process().as_deref(), Some("4711"));
        assert_eq!(device.backend().as_deref(), Some("qrbd:alice:r0/0"));
        assert_eq!(device.size_bytes(), 1 << 20);
    }

    #[test]
    fn settings_are_written_in_the_kernels_units_and_within_its_limits() {
        let kernel = FakeKernel::new();
        kernel.file("sys/block/nbd0/queue/io_timeout", "30000\n");
        kernel.file("sys/block/nbd0/queue/max_sectors_kb", "128\n");
        kernel.file("sys/block/nbd0/queue/max_hw_sectors_kb", "512\n");
        let device = Device::new(&kernel.places, 0);
        device.set_request_timer(Duration::from_secs(1)).unwrap();
        device.set_largest_request(1024).unwrap();
        assert_eq!(kernel.read("sys/block/nbd0/queue/io_timeout"), "1000");
        assert_eq!(kernel.read("sys/block/nbd0/queue/max_sectors_kb"), "512");
        let other = Device::new(&kernel.places, 1);
        assert!(other.set_request_timer(Duration::from_secs(1)).is_err());
    }
}
