//! The driver's generic netlink family `nbd` (`linux/nbd-netlink.h`): connect, reconfigure, disconnect, status.
//!
//! One request at a time on a socket of its own; each is answered before the call returns. All calls may wait as long as the kernel does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netlink::{Attributes, Message, Request, messages};

/// `GENL_ID_CTRL`, the family that knows the families, and what is asked of it.
const CONTROL_FAMILY: u16 = 0x10;
const CONTROL_VERSION: u8 = 1;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;

const FAMILY_NAME: &str = "nbd";
const FAMILY_VERSION: u8 = 1;

const COMMAND_CONNECT: u8 = 1;
const COMMAND_DISCONNECT: u8 = 2;
const COMMAND_RECONFIGURE: u8 = 3;
const COMMAND_STATUS: u8 = 5;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const DEVICE_LIST: u16 = 9;
const BACKEND_IDENTIFIER: u16 = 10;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;
const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// Longest answer of the driver to anything asked here.
const ANSWER_BYTES: usize = 64 << 10;
/// The kernel answers within the call that sends; this is for a kernel that does not.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no kernel device at all, in words that name the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The family is not registered.
    #[error("the kernel's NBD driver is not loaded: load the module 'nbd'")]
    NoDriver,
    /// No netlink socket, or the question was not answered.
    #[error("generic netlink does not answer: {0}")]
    Netlink(#[source] io::Error),
}

/// A request that the driver refused.
#[derive(Debug, thiserror::Error)]
#[error("{command} of nbd{index}: {}", explained(.error))]
pub struct NbdError {
    command: &'static str,
    index: u32,
    error: io::Error,
}

impl NbdError {
    /// The device is connected already, to whatever.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.error.raw_os_error() == Some(Errno::EBUSY as i32)
    }

    /// There is no such connected device, or it belongs to another backend.
    #[must_use]
    pub fn is_not_configured(&self) -> bool {
        self.error.raw_os_error() == Some(Errno::EINVAL as i32)
            || self.error.raw_os_error() == Some(Errno::ENOENT as i32)
    }
}

fn explained(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => "not permitted: it needs CAP_SYS_ADMIN (run as root)".to_owned(),
        Some(Errno::EBUSY) => "the device is in use already".to_owned(),
        _ => error.to_string(),
    }
}

/// What a device is connected with.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// N of `/dev/nbdN`; the device is made if it does not exist.
    pub index: u32,
    /// Its size, a multiple of the block size.
    pub size_bytes: u64,
    /// Its logical block size: 512 up to a page.
    pub block_size_bytes: u32,
    /// The NBD transmission flags.
    pub server_flags: u16,
    /// How long the kernel keeps requests when no socket is left, before they fail.
    pub dead_connection_timeout: Duration,
    /// What a later reconfiguration must name.
    pub backend: &'a str,
    /// The kernel's ends of the sockets; they may be closed afterwards.
    pub sockets: &'a [OwnedFd],
}

/// A connection to the driver.
#[derive(Debug)]
pub struct Nbd {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Nbd {
    /// Finds the driver. Does not touch any device, needs no privilege.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub fn open() -> Result<Nbd, Unavailable> {
        let fail = |errno: Errno| Unavailable::Netlink(errno.into());
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .map_err(fail)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(fail)?;
        let patience = TimeVal::milliseconds(ANSWER_PATIENCE.as_millis() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(fail)?;
        let mut nbd = Nbd {
            socket,
            family: CONTROL_FAMILY,
            sequence: 0,
        };
        let request = family_request(nbd.next_sequence());
        let mut family = None;
        let asked = nbd.ask(request, |_, attributes| {
            family = attributes.u16(CONTROL_FAMILY_ID);
        });
        match (asked, family) {
            (Ok(()), Some(family)) => {
                nbd.family = family;
                Ok(nbd)
            }
            (Ok(()), None) => Err(Unavailable::NoDriver),
            (Err(error), _) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
                Err(Unavailable::NoDriver)
            }
            (Err(error), _) => Err(Unavailable::Netlink(error)),
        }
    }

    /// Connects a device. Without a request timeout, which is said explicitly: a slow server is never cut off, and what an earlier
    /// connection set does not stay.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn connect(&mut self, connect: &Connect<'_>) -> Result<(), NbdError> {
        let request = connect_request(self.family, self.next_sequence(), connect);
        self.ask(request, |_, _| {})
            .map_err(failed("connect", connect.index))
    }

    /// Gives a connected device sockets in the place of dead ones. As many as are dead are taken; the driver drops the others without
    /// an error, which their other ends see as the end of the stream.
    ///
    /// # Errors
    /// What the driver answers; see [`NbdError::is_not_configured`].
    pub fn replace_sockets(
        &mut self,
        index: u32,
        backend: &str,
        sockets: &[OwnedFd],
    ) -> Result<(), NbdError> {
        let request = replace_request(self.family, self.next_sequence(), index, backend, sockets);
        self.ask(request, |_, _| {})
            .map_err(failed("reconfiguration", index))
    }

    /// Tells the size of a connected device, also while it is mounted. Newer kernels wait for requests under way.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn resize(&mut self, index: u32, backend: &str, size_bytes: u64) -> Result<(), NbdError> {
        let request = resize_request(
            self.family,
            self.next_sequence(),
            index,
            backend,
            size_bytes,
        );
        self.ask(request, |_, _| {})
            .map_err(failed("resize", index))
    }

    /// Disconnects a device: requests under way fail. It is gone when nobody has it open any more.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn disconnect(&mut self, index: u32) -> Result<(), NbdError> {
        let request = disconnect_request(self.family, self.next_sequence(), index);
        self.ask(request, |_, _| {})
            .map_err(failed("disconnect", index))
    }

    /// True if the device has a configuration; that says nothing about its sockets.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn is_configured(&mut self, index: u32) -> Result<bool, NbdError> {
        let request = status_request(self.family, self.next_sequence(), index);
        let mut configured = false;
        self.ask(request, |command, attributes| {
            configured |= command == COMMAND_STATUS && says_connected(attributes, index);
        })
        .map_err(failed("status", index))?;
        Ok(configured)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// Sends a request and reads until its acknowledgement.
    fn ask(
        &mut self,
        request: Vec<u8>,
        mut answer: impl FnMut(u8, Attributes<'_>),
    ) -> io::Result<()> {
        let ours = self.sequence;
        let descriptor = self.socket.as_raw_fd();
        send(descriptor, &request, MsgFlags::empty())?;
        let mut datagram = vec![0; ANSWER_BYTES];
        loop {
            let length = match recv(descriptor, &mut datagram, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            };
            for message in messages(&datagram[..length]) {
                match message {
                    Message::Acknowledgement { sequence, error } if sequence == ours => {
                        return match error {
                            0 => Ok(()),
                            error => Err(io::Error::from_raw_os_error(error)),
                        };
                    }
                    Message::Family {
                        sequence,
                        command,
                        attributes,
                        ..
                    } if sequence == ours => answer(command, attributes),
                    _ => {}
                }
            }
        }
    }
}

impl AsFd for Nbd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn failed(command: &'static str, index: u32) -> impl FnOnce(io::Error) -> NbdError {
    move |error| NbdError {
        command,
        index,
        error,
    }
}

fn family_request(sequence: u32) -> Vec<u8> {
    let mut request = Request::new(
        CONTROL_FAMILY,
        sequence,
        CONTROL_GET_FAMILY,
        CONTROL_VERSION,
    );
    request.string(CONTROL_FAMILY_NAME, FAMILY_NAME);
    request.finish()
}

fn put_sockets(request: &mut Request, sockets: &[OwnedFd]) {
    request.nested(SOCKETS, |list| {
        for socket in sockets {
            let descriptor = u32::try_from(socket.as_raw_fd()).expect("an open descriptor");
            list.nested(SOCKET_ITEM, |item| item.u32(SOCKET_FD, descriptor));
        }
    });
}

fn connect_request(family: u16, sequence: u32, connect: &Connect<'_>) -> Vec<u8> {
    let mut request = Request::new(family, sequence, COMMAND_CONNECT, FAMILY_VERSION);
    request.u32(INDEX, connect.index);
    request.u64(SIZE_BYTES, connect.size_bytes);
    request.u64(BLOCK_SIZE_BYTES, u64::from(connect.block_size_bytes));
    request.u64(TIMEOUT, 0);
    request.u64(SERVER_FLAGS, u64::from(connect.server_flags));
    request.u64(DEAD_CONN_TIMEOUT, connect.dead_connection_timeout.as_secs());
    request.string(BACKEND_IDENTIFIER, connect.backend);
    put_sockets(&mut request, connect.sockets);
    request.finish()
}

fn replace_request(
    family: u16,
    sequence: u32,
    index: u32,
    backend: &str,
    sockets: &[OwnedFd],
) -> Vec<u8> {
    let mut request = Request::new(family, sequence, COMMAND_RECONFIGURE, FAMILY_VERSION);
    request.u32(INDEX, index);
    request.string(BACKEND_IDENTIFIER, backend);
    put_sockets(&mut request, sockets);
    request.finish()
}

fn resize_request(
    family: u16,
    sequence: u32,
    index: u32,
    backend: &str,
    size_bytes: u64,
) -> Vec<u8> {
    let mut request = Request::new(family, sequence, COMMAND_RECONFIGURE, FAMILY_VERSION);
    request.u32(INDEX, index);
    request.string(BACKEND_IDENTIFIER, backend);
    request.u64(SIZE_BYTES, size_bytes);
    request.finish()
}

fn disconnect_request(family: u16, sequence: u32, index: u32) -> Vec<u8> {
    let mut request = Request::new(family, sequence, COMMAND_DISCONNECT, FAMILY_VERSION);
    request.u32(INDEX, index);
    request.finish()
}

fn status_request(family: u16, sequence: u32, index: u32) -> Vec<u8> {
    let mut request = Request::new(family, sequence, COMMAND_STATUS, FAMILY_VERSION);
    request.u32(INDEX, index);
    request.finish()
}

/// Whether an answer to [`status_request`] says that the device is connected.
fn says_connected(attributes: Attributes<'_>, index: u32) -> bool {
    let Some(list) = attributes.payload(DEVICE_LIST) else {
        return false;
    };
    Attributes::within(list).any(|(kind, item)| {
        let item = Attributes::within(item);
        kind == DEVICE_ITEM
            && item.u32(DEVICE_INDEX) == Some(index)
            && item.u8(DEVICE_CONNECTED) == Some(1)
    })
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Two descriptors, and their numbers as they stand in a message.
    fn sockets() -> (Vec<OwnedFd>, Vec<String>) {
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        let sockets: Vec<OwnedFd> = vec![one.into(), two.into()];
        let numbers = sockets
            .iter()
            .map(|socket| hex(&socket.as_raw_fd().to_le_bytes()))
            .collect();
        (sockets, numbers)
    }

    #[test]
    fn the_family_is_asked_for_by_its_name() {
        assert_eq!(
            hex(&family_request(1)),
            "1c000000100005000100000000000000\
             03010000\
             080002006e626400"
        );
    }

    #[test]
    fn connect_says_every_setting_and_an_explicit_timeout_of_zero() {
        let (sockets, numbers) = sockets();
        let connect = Connect {
            index: 3,
            size_bytes: 0x1_0000_0000,
            block_size_bytes: 512,
            server_flags: 0x016d,
            dead_connection_timeout: Duration::from_secs(86_400),
            backend: "r0/0",
            sockets: &sockets,
        };
        let expected = [
            "a0000000",
            "1f00",
            "0500",
            "02000000",
            "00000000", // header
            "01010000", // connect, version 1
            "08000100",
            "03000000", // index
            "0c000200",
            "0000000001000000", // size
            "0c000300",
            "0002000000000000", // block size
            "0c000400",
            "0000000000000000", // timeout
            "0c000500",
            "6d01000000000000", // server flags
            "0c000800",
            "8051010000000000", // dead connection timeout
            "09000a00",
            "72302f30",
            "00000000", // backend
            "1c000780", // sockets
            "0c000180",
            "08000100",
            &numbers[0], //
            "0c000180",
            "08000100",
            &numbers[1],
        ]
        .concat();
        let bytes = connect_request(0x1f, 2, &connect);
        let expected = format!("{:08x}", (bytes.len() as u32).swap_bytes()) + &expected[8..];
        assert_eq!(hex(&bytes), expected);
    }

    #[test]
    fn reconfigure_names_the_backend_and_carries_either_sockets_or_a_size() {
        let (sockets, numbers) = sockets();
        let head = |length: u8| {
            let message = ["000000", "1f00", "0500", "05000000", "00000000", "03010000"].concat();
            let attributes = "080001000300000009000a0072302f3000000000";
            format!("{length:02x}{message}{attributes}")
        };
        let replaced = hex(&replace_request(0x1f, 5, 3, "r0/0", &sockets[..1]));
        assert_eq!(
            replaced,
            head(0x38) + "100007800c00018008000100" + &numbers[0]
        );
        let resized = hex(&resize_request(0x1f, 5, 3, "r0/0", 1 << 20));
        assert_eq!(resized, head(0x34) + "0c0002000000100000000000");
    }

    #[test]
    fn disconnect_and_status_name_the_device() {
        assert_eq!(
            hex(&disconnect_request(0x1f, 1, 4)),
            "1c0000001f0005000100000000000000020100000800010004000000"
        );
        assert_eq!(
            hex(&status_request(0x1f, 1, 4)),
            "1c0000001f0005000100000000000000050100000800010004000000"
        );
    }

    #[test]
    fn a_status_answer_counts_for_the_device_that_it_names() {
        let answer = |index: u32, connected: u8| {
            let mut request = Request::new(0x1f, 1, COMMAND_STATUS, 0);
            request.nested(DEVICE_LIST, |list| {
                list.nested(DEVICE_ITEM, |item| {
                    item.u32(DEVICE_INDEX, index);
                    item.u32(DEVICE_CONNECTED, u32::from(connected));
                });
            });
            request.finish()
        };
        let says = |bytes: &[u8]| match messages(bytes).next() {
            Some(Message::Family { attributes, .. }) => says_connected(attributes, 4),
            _ => panic!("no message"),
        };
        assert!(says(&answer(4, 1)));
        assert!(!says(&answer(4, 0)));
        assert!(!says(&answer(5, 1)));
    }

    #[test]
    fn refusals_name_the_device_and_the_remedy() {
        let error = |errno: Errno| failed("connect", 2)(errno.into());
        assert_eq!(
            error(Errno::EPERM).to_string(),
            "connect of nbd2: not permitted: it needs CAP_SYS_ADMIN (run as root)"
        );
        assert!(error(Errno::EBUSY).is_busy() && !error(Errno::EPERM).is_busy());
        assert!(error(Errno::EINVAL).is_not_configured());
    }
}
