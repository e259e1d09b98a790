//! The UDP socket under QUIC.
//!
//! Owns its buffers, the size of the packets to try, and two corrections of what QUIC would do by itself:
//! - a batch of segments stays below the 64 KiB that one `sendmsg` takes; a larger one is lost silently, and with it
//!   every full batch of a jumbo-frame connection;
//! - the receive buffer is sized for the 64 KiB that the kernel hands over at once, not for 64 packets of the largest size.
//!
//! It is also where tests put their faults.

use std::fmt;
use std::fs;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::fault::Faults;
use crate::limits::{MAX_SEGMENT_BATCH_BYTES, MAX_UDP_PAYLOAD_BYTES, MIN_UDP_PAYLOAD_BYTES};
use crate::udp::Udp;

/// Where interfaces' sizes cannot be told: what fits Ethernet with IPv6.
const ETHERNET_UDP_PAYLOAD_BYTES: u16 = 1452;
/// Below this the kernel drops packets of a full-speed sender whenever the daemon is away for a moment.
const USEFUL_BUFFER_BYTES: usize = 1 << 20;
/// What the kernel hands over at once at most.
const MAX_RECEIVE_BATCH_BYTES: usize = 65_536;
/// Batches that a delaying fault holds at most; beyond it they are lost, as in a router.
const MAX_DELAYED_BATCHES: usize = 65_536;

/// Binds `local` with buffers of `buffer_bytes`, as far as the system allows.
pub(crate) fn bind(local: SocketAddr, buffer_bytes: usize) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    // The forced variants need CAP_NET_ADMIN; the plain ones are silently capped by sysctl.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &buffer_bytes)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &buffer_bytes));
    let _ = setsockopt(&socket, sockopt::SndBufForce, &buffer_bytes)
        .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &buffer_bytes));
    // The kernel answers with twice what it was asked for: it counts its own overhead.
    let receive_bytes = getsockopt(&socket, sockopt::RcvBuf).unwrap_or(0) / 2;
    if receive_bytes < USEFUL_BUFFER_BYTES.min(buffer_bytes) {
        tracing::warn!(
            %local, receive_bytes, wanted_bytes = buffer_bytes,
            "the socket's receive buffer is small and packets will be lost under load: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    Ok(socket)
}

/// Largest UDP payload to try from `local`: `wanted`, or what its interface carries.
pub(crate) fn max_udp_payload(local: IpAddr, wanted: Option<u16>) -> u16 {
    wanted
        .or_else(|| interface_udp_payload(local))
        .unwrap_or(ETHERNET_UDP_PAYLOAD_BYTES)
        .clamp(MIN_UDP_PAYLOAD_BYTES, MAX_UDP_PAYLOAD_BYTES)
}

/// What the interface of `local` carries; for a wildcard, the largest of all interfaces that are up.
fn interface_udp_payload(local: IpAddr) -> Option<u16> {
    let headers = if local.is_ipv4() { 28 } else { 48 };
    let interfaces = getifaddrs().ok()?.filter(|interface| {
        if local.is_unspecified() {
            let up = InterfaceFlags::IFF_UP;
            interface.flags & (up | InterfaceFlags::IFF_LOOPBACK) == up
        } else {
            interface.address.is_some_and(|address| {
                let v4 = address
                    .as_sockaddr_in()
                    .map(|address| IpAddr::V4(address.ip()));
                let v6 = address
                    .as_sockaddr_in6()
                    .map(|address| IpAddr::V6(address.ip()));
                v4.or(v6) == Some(local)
            })
        }
    });
    let mtu = interfaces
        .filter_map(|interface| interface_mtu(&interface.interface_name))
        .max()?;
    Some(u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX))
}

fn interface_mtu(name: &str) -> Option<u32> {
    // An alias ("eth0:1") has the size of its interface.
    let name = name.split(':').next()?;
    fs::read_to_string(format!("/sys/class/net/{name}/mtu"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The socket as QUIC sees it.
pub(crate) struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    transmit_segments: usize,
    receive_segments: usize,
    on_arrival: Option<fn()>,
    faults: Option<FaultySender>,
}

impl Socket {
    /// Wraps `socket`. Must be called inside the runtime.
    pub(crate) fn new(
        socket: UdpSocket,
        max_udp_payload: u16,
        on_arrival: Option<fn()>,
        faults: Option<Faults>,
    ) -> io::Result<Self> {
        let inner: Arc<dyn AsyncUdpSocket> = Arc::new(Udp::new(socket)?);
        let payload = usize::from(max_udp_payload);
        Ok(Self {
            transmit_segments: inner
                .max_transmit_segments()
                .min(MAX_SEGMENT_BATCH_BYTES / payload)
                .max(1),
            receive_segments: inner
                .max_receive_segments()
                .min(MAX_RECEIVE_BATCH_BYTES.div_ceil(payload)),
            on_arrival,
            faults: faults.map(|faults| FaultySender::new(faults, &inner)),
            inner,
        })
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match &self.faults {
            None => self.inner.try_send(transmit),
            Some(faults) => faults.try_send(&*self.inner, transmit),
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.inner.poll_recv(context, buffers, meta));
            match (received, &self.faults) {
                (Ok(_), Some(faulty)) if faulty.faults.inbound_blocked() => {}
                // Reported once for something that was sent, and gone then. QUIC would give the whole socket up.
                (Err(error), _) if is_passing(&error) => {
                    tracing::debug!(%error, "receiving from the socket");
                }
                (received, _) => {
                    if let Some(on_arrival) = self.on_arrival {
                        on_arrival();
                    }
                    return Poll::Ready(received);
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        // Asked each time: a device that cannot compute checksums refuses batches, the socket then halts them, and whoever went on
        // sending batches would have each of them refused for ever.
        self.transmit_segments
            .min(self.inner.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Whether an error of receiving tells of the network, not of the socket.
fn is_passing(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let passing = [
        Errno::ECONNREFUSED,
        Errno::EHOSTDOWN,
        Errno::EHOSTUNREACH,
        Errno::EMSGSIZE,
        Errno::ENETDOWN,
        Errno::ENETUNREACH,
        Errno::ENOPROTOOPT,
        Errno::EPROTO,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| passing.contains(&Errno::from_raw(code)))
}

impl fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Socket")
            .field("local", &self.inner.local_addr().ok())
            .finish_non_exhaustive()
    }
}

/// One `sendmsg` that a delay holds back.
struct Delayed {
    due: Instant,
    contents: Vec<u8>,
    destination: SocketAddr,
    segment_size: Option<usize>,
    src_ip: Option<IpAddr>,
}

struct FaultySender {
    faults: Faults,
    delayed: mpsc::Sender<Delayed>,
    /// When the line has taken what was given to it.
    line_free: Mutex<Instant>,
}

impl FaultySender {
    fn new(faults: Faults, socket: &Arc<dyn AsyncUdpSocket>) -> Self {
        let (delayed, queue) = mpsc::channel(MAX_DELAYED_BATCHES);
        tokio::spawn(send_when_due(queue, Arc::downgrade(socket)));
        Self {
            faults,
            delayed,
            line_free: Mutex::new(Instant::now()),
        }
    }

    /// When bytes that are sent now leave the line.
    fn off_the_line(&self, bytes: usize) -> Instant {
        let now = Instant::now();
        let takes = self.faults.time_on_the_line(bytes);
        if takes.is_zero() {
            return now;
        }
        let mut free = self
            .line_free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *free = now.max(*free) + takes;
        *free
    }

    fn try_send(&self, socket: &dyn AsyncUdpSocket, transmit: &Transmit<'_>) -> io::Result<()> {
        let whole = transmit.contents.len().max(1);
        // A batch is lost as a whole under a partition, packet by packet under random loss.
        let packet = if self.faults.divides_batches() {
            transmit.segment_size.unwrap_or(whole)
        } else {
            whole
        };
        for contents in transmit.contents.chunks(packet) {
            if self.faults.drops_outbound() {
                continue;
            }
            let segment_size = transmit.segment_size.filter(|&size| size < contents.len());
            let part = Transmit {
                contents,
                segment_size,
                ..transmit.clone()
            };
            let due = self.off_the_line(contents.len()) + self.faults.outbound_delay();
            if due <= Instant::now() {
                match socket.try_send(&part) {
                    // Only a whole batch can be tried again without sending its beginning twice.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && packet < whole => {}
                    sent => sent?,
                }
            } else {
                let _ = self.delayed.try_send(Delayed {
                    due,
                    contents: contents.to_vec(),
                    destination: part.destination,
                    segment_size,
                    src_ip: part.src_ip,
                });
            }
        }
        Ok(())
    }
}

async fn send_when_due(mut queue: mpsc::Receiver<Delayed>, socket: Weak<dyn AsyncUdpSocket>) {
    while let Some(delayed) = queue.recv().await {
        tokio::time::sleep_until(delayed.due).await;
        let Some(socket) = socket.upgrade() else {
            return;
        };
        let _ = socket.try_send(&Transmit {
            destination: delayed.destination,
            ecn: None,
            contents: &delayed.contents,
            segment_size: delayed.segment_size,
            src_ip: delayed.src_ip,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_of_the_largest_packets_fits_one_call_and_so_does_what_the_kernel_hands_over() {
        for payload in [
            MIN_UDP_PAYLOAD_BYTES,
            1452,
            1472,
            4096,
            MAX_UDP_PAYLOAD_BYTES,
        ] {
            let socket = Socket::new(
                bind("127.0.0.1:0".parse().unwrap(), 1 << 20).unwrap(),
                payload,
                None,
                None,
            )
            .unwrap();
            assert!(socket.max_transmit_segments() >= 1);
            assert!(
                socket.max_transmit_segments() * usize::from(payload) <= MAX_SEGMENT_BATCH_BYTES
            );
            assert!(socket.max_receive_segments() >= 1);
            assert!(
                socket.max_receive_segments() == socket.inner.max_receive_segments()
                    || socket.max_receive_segments() * usize::from(payload)
                        >= MAX_RECEIVE_BATCH_BYTES
            );
        }
    }

    /// A socket whose kernel stops taking batches.
    #[derive(Debug)]
    struct Halting(std::sync::atomic::AtomicUsize);

    impl AsyncUdpSocket for Halting {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            panic!("nothing is polled")
        }
        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            self.0.store(1, std::sync::atomic::Ordering::Relaxed);
            Err(io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32))
        }
        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok("127.0.0.1:1".parse().unwrap())
        }
        fn max_transmit_segments(&self) -> usize {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    #[test]
    fn a_device_that_refuses_batches_is_asked_for_none_any_more() {
        let socket = Socket {
            inner: Arc::new(Halting(10.into())),
            transmit_segments: 40,
            receive_segments: 1,
            on_arrival: None,
            faults: None,
        };
        assert_eq!(socket.max_transmit_segments(), 10);
        let transmit = Transmit {
            destination: "127.0.0.1:2".parse().unwrap(),
            ecn: None,
            contents: &[0; 2400],
            segment_size: Some(1200),
            src_ip: None,
        };
        assert!(socket.try_send(&transmit).is_err());
        assert_eq!(socket.max_transmit_segments(), 1);
    }

    #[test]
    fn packet_size_follows_the_interface_within_the_bounds() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        let from_interface = u16::try_from(interface_mtu("lo").unwrap() - 28).unwrap_or(u16::MAX);
        assert_eq!(
            max_udp_payload(loopback, None),
            from_interface.min(MAX_UDP_PAYLOAD_BYTES)
        );
        assert_eq!(max_udp_payload(loopback, Some(1472)), 1472);
        assert_eq!(max_udp_payload(loopback, Some(1)), MIN_UDP_PAYLOAD_BYTES);
        assert_eq!(
            max_udp_payload("192.0.2.1".parse().unwrap(), None),
            ETHERNET_UDP_PAYLOAD_BYTES
        );
    }
}
