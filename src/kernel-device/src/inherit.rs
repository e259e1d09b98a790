//! Sockets that one program passes to the next: from the service manager's store, or by replacing itself.
//!
//! Both come as open descriptors with names. Invariant: a descriptor is taken once, and closes when another program is executed unless it
//! was passed on purpose.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};

/// First descriptor that a service manager passes.
const FIRST: RawFd = 3;
/// More than any program is passed.
const MOST: RawFd = 4096;
/// `NAME:FD,NAME:FD`: what this program passes to the one that replaces it.
pub const VARIABLE: &str = "QRBD_INHERITED";

/// A descriptor with the name that it was passed under.
#[derive(Debug)]
pub struct Inherited {
    /// Its name.
    pub name: String,
    /// The descriptor.
    pub descriptor: OwnedFd,
}

/// The sockets that were passed to this process. Meant to be called before anything is opened; a second call finds nothing.
#[must_use]
pub fn take() -> Vec<Inherited> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let variable = |name: &str| std::env::var(name).ok();
    let mut found = from_manager(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
        std::process::id(),
    );
    found.extend(parse(&variable(VARIABLE).unwrap_or_default()));
    found.sort_by_key(|(_, descriptor)| *descriptor);
    found.dedup_by_key(|(_, descriptor)| *descriptor);
    found
        .into_iter()
        .filter_map(|(name, descriptor)| {
            // SAFETY: whoever started this process passed the descriptor for this very use, and it is taken once.
            let descriptor = unsafe { adopt(descriptor) }?;
            Some(Inherited { name, descriptor })
        })
        .collect()
}

/// Owns a descriptor if it is an open socket.
///
/// # Safety
/// Nothing else in the process owns it.
unsafe fn adopt(descriptor: RawFd) -> Option<OwnedFd> {
    // SAFETY: only looked at; the borrow ends here.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    let mode = fstat(borrowed).ok()?.st_mode;
    if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return None;
    }
    // SAFETY: it is open, and the caller vouches that nothing else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    set_inherited(&owned, false).ok()?;
    Some(owned)
}

/// `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`, as `sd_listen_fds` reads them.
fn from_manager(
    process: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
    own: u32,
) -> Vec<(String, RawFd)> {
    if process.and_then(|text| text.parse().ok()) != Some(own) {
        return Vec::new();
    }
    let count: RawFd = count.and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut names = names.unwrap_or_default().split(':');
    (FIRST..FIRST + count.clamp(0, MOST))
        .map(|descriptor| (names.next().unwrap_or_default().to_owned(), descriptor))
        .collect()
}

fn parse(text: &str) -> Vec<(String, RawFd)> {
    text.split(',')
        .filter_map(|part| {
            let (name, number) = part.rsplit_once(':')?;
            let number = number.parse().ok().filter(|&number| number >= FIRST)?;
            Some((name.to_owned(), number))
        })
        .collect()
}

/// The value of [`VARIABLE`] for the program that replaces this one.
#[must_use]
pub fn passed<'a>(sockets: impl IntoIterator<Item = (&'a str, RawFd)>) -> String {
    let parts: Vec<String> = sockets
        .into_iter()
        .map(|(name, descriptor)| format!("{name}:{descriptor}"))
        .collect();
    parts.join(",")
}

/// Whether a descriptor stays open when another program is executed.
///
/// # Errors
/// What the system says.
pub fn set_inherited(descriptor: impl AsFd, inherited: bool) -> io::Result<()> {
    let flags = if inherited {
        FdFlag::empty()
    } else {
        FdFlag::FD_CLOEXEC
    };
    fcntl(descriptor, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// The environment variables of passed descriptors: a program that is executed without descriptors must not see them.
#[must_use]
pub fn variables() -> [&'static OsStr; 4] {
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", VARIABLE].map(OsStr::new)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_service_managers_descriptors_count_from_three_and_are_for_one_process() {
        let names = Some("nbd0.a:nbd0.a");
        let found = from_manager(Some("12"), Some("3"), names, 12);
        let expected = [("nbd0.a", 3), ("nbd0.a", 4), ("", 5)];
        let expected = expected.map(|(name, number)| (name.to_owned(), number));
        assert_eq!(found, expected);
        assert_eq!(from_manager(Some("13"), Some("3"), names, 12), []);
        assert_eq!(from_manager(None, Some("3"), names, 12), []);
        assert_eq!(from_manager(Some("12"), Some("-4"), names, 12), []);
    }

    #[test]
    fn what_is_passed_is_what_is_read() {
        let text = passed([("nbd0.17", 9), ("nbd1.17", 12)]);
        assert_eq!(text, "nbd0.17:9,nbd1.17:12");
        let found = parse(&text);
        assert_eq!(
            found,
            [("nbd0.17".to_owned(), 9), ("nbd1.17".to_owned(), 12)]
        );
        for nonsense in ["", ",", "nbd0", "nbd0:", "nbd0:x", "nbd0:2", ":-1"] {
            assert_eq!(parse(nonsense), [], "{nonsense:?}");
        }
    }

    #[test]
    fn only_open_sockets_are_taken_and_they_close_at_the_next_program() {
        let (one, _two) = UnixStream::pair().unwrap();
        let number = one.into_raw_fd();
        // SAFETY: the number was given up just now.
        let taken = unsafe { adopt(number) }.expect("a socket");
        assert_eq!(taken.as_raw_fd(), number);
        let flags = fcntl(&taken, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
        let file = tempfile::tempfile().unwrap();
        // SAFETY: refused, so it is not owned twice.
        assert!(unsafe { adopt(file.as_raw_fd()) }.is_none());
    }
}
