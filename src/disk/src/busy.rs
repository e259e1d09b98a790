//! Finds out who holds a disk that could not be claimed, for the text of the error. Best effort, from procfs and sysfs;
//! it never decides whether the disk is busy.

use std::fs::{Metadata, read_dir, read_to_string};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;

use crate::sysfs::sysfs_directory;

const UNKNOWN: &str = "another program (see lsblk, fuser and /proc/mounts)";

/// Who uses the block device, or a partition of it.
pub fn block_device_user(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else {
        return UNKNOWN.into();
    };
    let device = metadata.rdev();
    let directory = sysfs_directory(device);
    let mut numbers = vec![format!("{}:{}", libc::major(device), libc::minor(device))];
    for partition in names_in(&directory) {
        if let Ok(number) = read_to_string(directory.join(&partition).join("dev")) {
            numbers.push(number.trim().to_owned());
        }
    }
    if let Some(mount_point) = mount_point_of(&numbers) {
        return format!("the file system mounted at {mount_point}");
    }
    let holders = names_in(&directory.join("holders"));
    if !holders.is_empty() {
        let names: Vec<String> = holders.iter().map(|name| describe_holder(name)).collect();
        return format!("the block device {}", names.join(", "));
    }
    if let Some(swap) = swap_entry(device) {
        return format!("swap ({swap})");
    }
    UNKNOWN.into()
}

/// The loop device that has this file attached, if any.
pub fn loop_device_on(file: &Metadata) -> Option<String> {
    names_in(Path::new("/sys/block"))
        .into_iter()
        .filter(|name| name.starts_with("loop"))
        .find_map(|name| {
            let backing = read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
            let other = std::fs::metadata(backing.trim_end_matches('\n')).ok()?;
            (other.dev() == file.dev() && other.ino() == file.ino()).then(|| {
                format!("the loop device /dev/{name}; detach it, or use /dev/{name} itself")
            })
        })
}

/// Who holds the `flock` on this file.
pub fn lock_holder(file: &Metadata) -> String {
    let place = format!(
        "{:02x}:{:02x}:{}",
        libc::major(file.dev()),
        libc::minor(file.dev()),
        file.ino()
    );
    let locks = read_to_string("/proc/locks").unwrap_or_default();
    let process = locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str()))
            .then(|| fields[4].to_owned())
    });
    match process {
        Some(process) => {
            let name = read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            format!("process {process} ({})", name.trim())
        }
        None => "another program that has locked the file".into(),
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn describe_holder(name: &str) -> String {
    match read_to_string(format!("/sys/block/{name}/dm/name")) {
        Ok(mapped) => format!("{name} (device-mapper {})", mapped.trim()),
        Err(_) => name.to_owned(),
    }
}

fn mount_point_of(numbers: &[String]) -> Option<String> {
    let mounts = read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let number = fields.nth(2)?;
        let mount_point = fields.nth(1)?;
        numbers
            .iter()
            .any(|wanted| wanted == number)
            .then(|| mount_point.to_owned())
    })
}

fn swap_entry(device: u64) -> Option<String> {
    let swaps = read_to_string("/proc/swaps").ok()?;
    swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .find_map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            (metadata.rdev() == device).then(|| path.to_owned())
        })
}
