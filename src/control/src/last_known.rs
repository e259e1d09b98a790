//! What is remembered of a disk outside of it, so that its metadata are found after it grew: one small file for each volume of a node in
//! the state directory.
//!
//! Internal metadata lie where the device ended when they were written. `create-md` and each attach write the file, and a resize before
//! and after the metadata move; `wipe-md` removes it. It is only a hint: what is found by it must carry the same identity. A file that is missing or damaged is as none; a device that
//! did not grow is found without.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where the state directory is if nothing else is said.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/qrbd";
/// Variable of the environment that names another one.
pub const STATE_DIRECTORY_VARIABLE: &str = "QRBD_STATE_DIR";

/// Longest file that is read.
const MOST_BYTES: u64 = 4096;

/// Identity and size of a disk the last time, and the size that its metadata are moving for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastKnown {
    /// Identity of the metadata.
    pub device_uuid: u64,
    /// Size of the backing device that they were made for, in bytes.
    pub device_bytes: u64,
    /// Size of the backing device at whose end they may be as well, in bytes: a move there had begun.
    pub moving_to: Option<u64>,
}

impl LastKnown {
    /// The file for a volume of a node.
    #[must_use]
    pub fn file(directory: &Path, node: &str, resource: &str, volume: u16) -> PathBuf {
        let safe = |name: &str| name.replace(['/', '\0'], "_");
        let name = format!("{}.{}.{volume}", safe(node), safe(resource));
        directory.join("last-known").join(name)
    }

    /// Reads the file; `None` if there is none that makes sense.
    #[must_use]
    pub fn read(file: &Path) -> Option<LastKnown> {
        if fs::metadata(file).ok()?.len() > MOST_BYTES {
            return None;
        }
        let text = fs::read_to_string(file).ok()?;
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.strip_prefix(' ')
        };
        Some(LastKnown {
            device_uuid: u64::from_str_radix(value("device-uuid")?, 16).ok()?,
            device_bytes: value("device-bytes")?.parse().ok()?,
            moving_to: match value("moving-to") {
                Some(bytes) => Some(bytes.parse().ok()?),
                None => None,
            },
        })
    }

    /// Writes the file, durably and in one step. Does nothing if it says the same already.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(self, file: &Path) -> io::Result<()> {
        if LastKnown::read(file) == Some(self) {
            return Ok(());
        }
        let directory = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let new = file.with_file_name(format!(
            "{}.new",
            file.file_name().unwrap_or_default().to_string_lossy()
        ));
        let mut out = File::create(&new)?;
        let LastKnown {
            device_uuid,
            device_bytes,
            moving_to,
        } = self;
        write!(
            out,
            "device-uuid {device_uuid:016X}\ndevice-bytes {device_bytes}\n"
        )?;
        if let Some(bytes) = moving_to {
            writeln!(out, "moving-to {bytes}")?;
        }
        out.sync_all()?;
        fs::rename(&new, file)?;
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_anything_else_is_as_nothing() {
        let directory =
            std::env::temp_dir().join(format!("qrbd-last-known-{}", std::process::id()));
        let file = LastKnown::file(&directory, "al/ice", "r0", 3);
        assert_eq!(
            file.strip_prefix(&directory).unwrap(),
            Path::new("last-known/al_ice.r0.3")
        );
        assert_eq!(LastKnown::read(&file), None);
        for (device_bytes, moving_to) in
            [(1 << 20, None), (1 << 20, Some(1 << 40)), (1 << 40, None)]
        {
            let known = LastKnown {
                device_uuid: 0xFEED_0000_0000_0001,
                device_bytes,
                moving_to,
            };
            known.write(&file).unwrap();
            assert_eq!(LastKnown::read(&file), Some(known));
        }
        for damaged in [
            "",
            "device-uuid 12\n",
            "device-uuid x\ndevice-bytes 5\n",
            "device-uuid 12\ndevice-bytes 5\nmoving-to x\n",
            "\u{1}",
        ] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(LastKnown::read(&file), None, "{damaged:?}");
        }
        fs::write(&file, vec![b'7'; 1 << 20]).unwrap();
        assert_eq!(LastKnown::read(&file), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
