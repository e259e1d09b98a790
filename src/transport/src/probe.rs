//! A question to the machine of a peer: does anybody listen at this address?
//!
//! When a daemon is killed, its port closes, and the kernel there answers whatever arrives with "port unreachable" (ICMP; RFC 1122
//! §4.1.3.1), long before QUIC gives the connection up. The kernel here tells that to a connected socket only, which QUIC's is not. So a
//! socket of its own sends one byte that no QUIC endpoint takes for a packet (the fixed bit is not set, RFC 9000 §17.3.1) and waits for
//! the error. A living peer drops the byte.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::io::Interest;

use crate::udp::watch;

/// No packet of any version of QUIC that is in use.
const NO_PACKET: [u8; 1] = [0];

/// True if the machine at `remote` says within `patience` that nobody listens there. It is asked from `local`, an address of this node
/// or a wildcard. Not authenticated: a packet filter, or anybody who guesses the port of this socket, can say it for a peer that lives.
///
/// Must be called in a runtime.
///
/// # Errors
/// Whatever stands in the way of asking.
pub async fn nobody_listens(
    local: IpAddr,
    remote: SocketAddr,
    patience: Duration,
) -> io::Result<bool> {
    let socket = UdpSocket::bind((local, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(remote)?;
    let socket = watch(socket, Interest::ERROR)?;
    socket.get_ref().send(&NO_PACKET)?;
    match tokio::time::timeout(patience, socket.ready(Interest::ERROR)).await {
        Ok(ready) => drop(ready?),
        Err(_) => return Ok(false),
    }
    let error = socket.get_ref().take_error()?;
    Ok(error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_closed_port_is_told_and_an_open_one_is_not() {
        let listener = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let open = nobody_listens(LOOPBACK, address, Duration::from_millis(50)).await;
        assert!(!open.unwrap(), "somebody listens");
        drop(listener);
        let closed = nobody_listens(LOOPBACK, address, Duration::from_secs(20)).await;
        assert!(closed.unwrap(), "nobody listens any more");
    }
}
