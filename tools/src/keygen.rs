//! `keygen`: makes the key file that all nodes of a cluster share.
//!
//! Invariants: 256 bits from the kernel's generator as 64 hexadecimal digits and a newline; the file is 0400 from its first
//! byte on; an existing file is never touched unless forced, and then replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where the daemon looks for the key.
pub const DEFAULT_KEY_FILE: &str = "/etc/qrbd/authkey";
/// Bytes of randomness.
const KEY_BYTES: usize = 32;

/// Writes a fresh key to `path`.
///
/// # Errors
/// The file exists and `force` is not given, or cannot be written; nothing is left behind.
pub fn keygen(path: &Path, force: bool) -> anyhow::Result<()> {
    if !force && path.symlink_metadata().is_ok() {
        bail!(
            "{} exists: all nodes that hold a copy of it would stop talking to this one. Use --force to replace it.",
            path.display()
        );
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if !directory.is_dir() {
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create the directory {}", directory.display()))?;
    }
    let mut key = [0; KEY_BYTES];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut key))
        .context("cannot read /dev/urandom")?;
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();

    let name = path
        .file_name()
        .with_context(|| format!("{} names no file", path.display()))?;
    let temporary = directory.join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let written = write_new(&temporary, &digits).and_then(|()| {
        // Without --force a hard link instead of a rename: it fails if somebody was faster.
        if force {
            fs::rename(&temporary, path)
        } else {
            fs::hard_link(&temporary, path)
        }
    });
    let _ = fs::remove_file(&temporary);
    written.with_context(|| format!("cannot write {}", path.display()))?;
    File::open(&directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

fn write_new(path: &Path, digits: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)?;
    file.write_all(digits.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}
