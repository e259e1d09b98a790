//! Who has a device open: mounts, swap, devices made of it, processes.
//!
//! The kernel's own truth is [`claim`]: whoever uses a device as a whole (a mount, swap, a device-mapper table) has it exclusively. The
//! names come from `/proc` and `/sys`, which never wait for the device; processes that merely opened it are found by their
//! descriptors.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;

use crate::Places;
use crate::sysfs::Device;

/// Names that are listed; a device that a thousand processes have open is not described better by all of them.
const MOST_PROCESSES: usize = 8;

/// One who has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Mounted there.
    Mount {
        /// The device or partition.
        device: String,
        /// Where.
        point: String,
    },
    /// Used as swap.
    Swap {
        /// The device or partition.
        device: String,
    },
    /// Another device is made of it.
    Stacked {
        /// That device.
        name: String,
    },
    /// A process has it open.
    Process {
        /// Its number.
        id: u32,
        /// Its name.
        name: String,
    },
    /// The kernel says that somebody has it exclusively, and nothing above was found.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Mount { device, point } => write!(f, "{device} is mounted on {point}"),
            Holder::Swap { device } => write!(f, "{device} is used as swap"),
            Holder::Stacked { name } => write!(f, "/dev/{name} is made of it"),
            Holder::Process { id, name } => write!(f, "process {id} ({name}) has it open"),
            Holder::Unknown => write!(f, "the kernel says that it is in exclusive use"),
        }
    }
}

/// Those who use the device as a whole: mounts (of this process's view), swap, devices made of it. Does not touch the device.
#[must_use]
pub fn users(places: &Places, index: u32) -> Vec<Holder> {
    let device = Device::new(places, index);
    let numbers = device.numbers();
    let mut found = mounts(places, &numbers);
    found.extend(swaps(places, &numbers));
    found.extend(
        device
            .stacked()
            .into_iter()
            .map(|name| Holder::Stacked { name }),
    );
    found
}

/// Processes that have the device or one of its partitions open. Looks at every process of the system; does not touch the device.
#[must_use]
pub fn processes(places: &Places, index: u32) -> Vec<Holder> {
    let mut nodes: Vec<_> = Device::new(places, index)
        .numbers()
        .into_iter()
        .map(|(_, name)| places.dev.join(name))
        .collect();
    nodes.push(places.device(index));
    let Ok(entries) = fs::read_dir(&places.proc) else {
        return Vec::new();
    };
    let mut ids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&id| id != std::process::id())
        .collect();
    ids.sort_unstable();
    ids.into_iter()
        .filter(|id| has_open(&places.proc.join(id.to_string()), &nodes))
        .take(MOST_PROCESSES)
        .map(|id| {
            let name = fs::read_to_string(places.proc.join(format!("{id}/comm")));
            Holder::Process {
                id,
                name: name.map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned()),
            }
        })
        .collect()
}

fn has_open(process: &Path, nodes: &[std::path::PathBuf]) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| nodes.contains(&target))
}

/// Opens the device exclusively: while the file is open, nobody can mount it. `None`: somebody has it.
///
/// Opening may make the kernel read the device, so its sockets must be served meanwhile.
///
/// # Errors
/// If it cannot be opened for another reason.
pub fn claim(places: &Places, index: u32) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL | nix::libc::O_CLOEXEC)
        .open(places.device(index));
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

fn mounts(places: &Places, numbers: &[(String, String)]) -> Vec<Holder> {
    let Ok(table) = fs::read_to_string(places.proc.join("self/mountinfo")) else {
        return Vec::new();
    };
    table
        .lines()
        .filter_map(|line| {
            // `36 35 43:0 / /data rw,noatime shared:1 - ext4 /dev/nbd0 rw`
            let (before, after) = line.split_once(" - ")?;
            let mut words = before.split(' ').skip(2);
            let (dev, _root, point) = (words.next()?, words.next()?, words.next()?);
            let source = after.split(' ').nth(1)?;
            let (_, name) = numbers.iter().find(|(number, name)| {
                // File systems of several devices have a number of their own; their source still names one.
                number == dev || Path::new(source) == places.dev.join(name)
            })?;
            Some(Holder::Mount {
                device: places.dev.join(name).display().to_string(),
                point: unescaped(point),
            })
        })
        .collect()
}

fn swaps(places: &Places, numbers: &[(String, String)]) -> Vec<Holder> {
    let Ok(table) = fs::read_to_string(places.proc.join("swaps")) else {
        return Vec::new();
    };
    let used: Vec<&str> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    numbers
        .iter()
        .map(|(_, name)| places.dev.join(name).display().to_string())
        .filter(|device| used.contains(&device.as_str()))
        .map(|device| Holder::Swap { device })
        .collect()
}

/// `\040` and the like, as mountinfo writes spaces, tabs, line feeds and backslashes.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `/dev`, `/sys` and `/proc` in a directory.
    pub(crate) struct FakeKernel {
        root: tempfile::TempDir,
        pub(crate) places: Places,
    }

    impl FakeKernel {
        pub(crate) fn new() -> FakeKernel {
            let root = tempfile::tempdir().unwrap();
            let places = Places {
                dev: root.path().join("dev"),
                sys: root.path().join("sys"),
                proc: root.path().join("proc"),
            };
            for directory in ["dev", "sys/block/nbd0/queue", "proc/self"] {
                fs::create_dir_all(root.path().join(directory)).unwrap();
            }
            let kernel = FakeKernel { root, places };
            kernel.file("sys/block/nbd0/dev", "43:0\n");
            kernel
        }

        pub(crate) fn file(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub(crate) fn read(&self, path: &str) -> String {
            fs::read_to_string(self.root.path().join(path)).unwrap()
        }

        fn dev(&self, name: &str) -> String {
            self.places.dev.join(name).display().to_string()
        }

        fn process(&self, id: u32, name: &str, opened: &Path) {
            self.file(&format!("proc/{id}/comm"), &format!("{name}\n"));
            let descriptors = self.root.path().join(format!("proc/{id}/fd"));
            fs::create_dir_all(&descriptors).unwrap();
            std::os::unix::fs::symlink(opened, descriptors.join("3")).unwrap();
        }
    }

    #[test]
    fn a_mount_is_named_by_its_device_and_place_also_with_spaces_and_on_a_partition() {
        let kernel = FakeKernel::new();
        kernel.file("sys/block/nbd0/nbd0p1/dev", "43:1\n");
        kernel.file(
            "proc/self/mountinfo",
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
             36 22 43:1 / /my\\040data rw,noatime shared:1 - ext4 /dev/whatever rw\n\
             37 22 43:10 / /other rw - ext4 /dev/nbd10 rw\n",
        );
        let found = users(&kernel.places, 0);
        assert_eq!(
            found,
            [Holder::Mount {
                device: kernel.dev("nbd0p1"),
                point: "/my data".to_owned()
            }]
        );
        assert_eq!(
            found[0].to_string(),
            format!("{} is mounted on /my data", kernel.dev("nbd0p1"))
        );
    }

    #[test]
    fn a_file_system_with_a_number_of_its_own_is_found_by_its_source() {
        let kernel = FakeKernel::new();
        let line = format!("36 22 0:41 / /data rw - btrfs {} rw\n", kernel.dev("nbd0"));
        kernel.file("proc/self/mountinfo", &line);
        assert_eq!(users(&kernel.places, 0).len(), 1);
    }

    #[test]
    fn swap_and_devices_made_of_it_count() {
        let kernel = FakeKernel::new();
        kernel.file("sys/block/nbd0/holders/dm-3", "");
        let swaps = format!(
            "Filename Type Size Used Priority\n{} partition 1 0 -2\n",
            kernel.dev("nbd0")
        );
        kernel.file("proc/swaps", &swaps);
        assert_eq!(
            users(&kernel.places, 0),
            [
                Holder::Swap {
                    device: kernel.dev("nbd0")
                },
                Holder::Stacked {
                    name: "dm-3".to_owned()
                }
            ]
        );
    }

    #[test]
    fn processes_are_found_by_what_they_have_open() {
        let kernel = FakeKernel::new();
        kernel.process(100, "dd", &kernel.places.device(0));
        kernel.process(200, "dd", &kernel.places.device(10));
        kernel.process(300, "sh", Path::new("/dev/null"));
        assert_eq!(
            processes(&kernel.places, 0),
            [Holder::Process {
                id: 100,
                name: "dd".to_owned()
            }]
        );
    }

    #[test]
    fn a_device_that_is_not_there_has_no_holders_and_cannot_be_claimed() {
        let kernel = FakeKernel::new();
        assert_eq!(users(&kernel.places, 7), []);
        assert_eq!(processes(&kernel.places, 7), []);
        let error = claim(&kernel.places, 7).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
