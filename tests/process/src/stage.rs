//! The place where a test happens: a directory that goes with it, loopback addresses of its own, logs that are shown when it fails.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

/// Lines of each log that are shown when a test fails.
const SHOWN_LINES: usize = 60;
/// With this variable set, directories stay.
const KEEP: &str = "QRBD_KEEP_TESTS";
/// The port that users of DRBD know.
const PORT: u16 = 7789;

/// See the module's text.
#[derive(Debug)]
pub struct Stage {
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Default for Stage {
    fn default() -> Self {
        Stage::new()
    }
}

impl Stage {
    /// A fresh one.
    ///
    /// # Panics
    /// If no directory can be made.
    #[must_use]
    pub fn new() -> Stage {
        let directory = tempfile::Builder::new()
            .prefix("qrbd-")
            .tempdir()
            .expect("a temporary directory can be made");
        let path = directory.path().to_owned();
        if std::env::var_os(KEEP).is_some() {
            let _ = directory.keep();
            return Stage {
                directory: None,
                path,
            };
        }
        Stage {
            directory: Some(directory),
            path,
        }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.path
    }

    /// A path in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A sparse file of zeroes.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        let made = std::fs::File::create(&path).and_then(|file| file.set_len(bytes));
        made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(&self.path);
        }
        if self.directory.is_none() {
            eprintln!("kept: {}", self.path.display());
        }
    }
}

fn show_logs(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut logs: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .collect();
    logs.sort();
    for log in logs {
        let bytes = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("---- {}", log.display());
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            eprintln!("{line}");
        }
    }
}

/// A loopback address that no other test uses now: an own one of 127.0.0.0/8, since every one of them works.
///
/// # Panics
/// If no address is free.
#[must_use]
pub fn address() -> SocketAddr {
    socket().1
}

/// A socket at such an address. Whoever needs the socket itself must not bind the address again: a child process that another thread is
/// starting has the first socket open for a moment longer.
///
/// # Panics
/// If no address is free.
#[must_use]
pub fn socket() -> (UdpSocket, SocketAddr) {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    for _ in 0..10_000 {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(64).wrapping_add(count) % (1 << 22);
        // Beyond 127.64.0.0, away from what people write into their files.
        let [_, high, middle, low] = (place | 0x7f40_0000).to_be_bytes();
        if low == 0 || low == 255 {
            continue;
        }
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, high, middle, low)), PORT);
        if let Ok(socket) = UdpSocket::bind(address) {
            return (socket, address);
        }
    }
    panic!("no free loopback address");
}
