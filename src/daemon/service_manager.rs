//! The service manager (systemd): what it is told (`sd_notify`), its watchdog, and its store for descriptors.
//!
//! Nothing happens without one. The store is used at the end of a process only: while a manager holds a copy of a socket, the kernel
//! cannot see that this process died, so the copies are taken out of the store first of all.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tracing::warn;

/// Where a manager is told something.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// Whether there is one that can be told something.
pub(crate) fn is_there() -> bool {
    std::env::var_os(SOCKET_VARIABLE).is_some()
}

/// Says something: lines of `NAME=VALUE`.
pub(crate) fn tell(state: &str) {
    tell_with(state, &[]);
}

/// Has sockets kept for the next process, under a name.
pub(crate) fn store(name: &str, sockets: &[UnixStream]) {
    let descriptors: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    // Without polling: a socket that the kernel has closed is found out by the next process.
    tell_with(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &descriptors);
}

/// Has the manager drop what it keeps under a name.
pub(crate) fn drop_stored(name: &str) {
    tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
}

fn tell_with(state: &str, descriptors: &[RawFd]) {
    let Some(path) = std::env::var_os(SOCKET_VARIABLE) else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| send(&address, state, descriptors));
    if let Err(error) = sent {
        warn!(
            "the service manager at {} was not told {state}: {error}",
            path.display()
        );
    }
}

fn send(address: &SocketAddr, state: &str, descriptors: &[RawFd]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &[][..]
    } else {
        &rights[..]
    };
    let bytes = [IoSlice::new(state.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, control, MsgFlags::empty(), None)?;
    Ok(())
}

/// How often the manager wants to hear that this process lives, if it does: half of what it allows, as its documentation asks for.
fn watchdog_interval(micros: Option<&str>, process: Option<&str>, own: u32) -> Option<Duration> {
    let for_us = process.is_none_or(|text| text.parse() == Ok(own));
    let micros: u64 = micros?.parse().ok().filter(|&micros| micros > 0)?;
    for_us.then(|| Duration::from_micros(micros / 2))
}

/// Tells the manager that this process lives, from the thread that does all the work; for ever.
pub(crate) async fn feed_watchdog() {
    let variable = |name: &str| std::env::var(name).ok();
    let interval = watchdog_interval(
        variable("WATCHDOG_USEC").as_deref(),
        variable("WATCHDOG_PID").as_deref(),
        std::process::id(),
    );
    let Some(interval) = interval else {
        return;
    };
    loop {
        tell("WATCHDOG=1");
        tokio::time::sleep(interval).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_asks_for_and_only_by_its_process() {
        let half = Some(Duration::from_secs(5));
        assert_eq!(watchdog_interval(Some("10000000"), None, 7), half);
        assert_eq!(watchdog_interval(Some("10000000"), Some("7"), 7), half);
        assert_eq!(watchdog_interval(Some("10000000"), Some("8"), 7), None);
        assert_eq!(watchdog_interval(Some("0"), None, 7), None);
        assert_eq!(watchdog_interval(Some("x"), None, 7), None);
        assert_eq!(watchdog_interval(None, None, 7), None);
    }

    #[test]
    fn the_manager_gets_the_sockets_beside_their_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let (one, two) = UnixStream::pair().unwrap();
        let address = SocketAddr::from_pathname(&path).unwrap();
        send(&address, "FDSTORE=1", &[one.as_raw_fd(), two.as_raw_fd()]).unwrap();
        let mut bytes = [0; 64];
        let mut control = nix::cmsg_space!([RawFd; 2]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(
            manager.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        )
        .unwrap();
        let rights: Vec<RawFd> = message
            .cmsgs()
            .unwrap()
            .flat_map(|message| match message {
                ControlMessageOwned::ScmRights(rights) => rights,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(rights.len(), 2);
        let length = message.bytes;
        assert_eq!(&bytes[..length], b"FDSTORE=1");
        for descriptor in rights {
            nix::unistd::close(descriptor).unwrap();
        }
    }
}
