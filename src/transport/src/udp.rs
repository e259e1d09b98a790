//! A UDP socket in tokio's event loop that wakes nobody for what was sent.
//!
//! Registered for both directions, as tokio's own socket is, each packet that leaves raises an event when the network has
//! taken it: a wake-up per packet that tells nothing. Here arrivals alone are watched. When the send buffer is full,
//! which is rare, a second descriptor is watched until there is room.
//!
//! Invariant: readiness is cleared only when the kernel had nothing more; a packet that came since then is an event that the loop
//! has yet to take in, and sets it again.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Udp {
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The send buffer was full at the last attempt.
    full: AtomicBool,
}

impl Udp {
    /// Takes `socket` into the event loop of the runtime in which it is called.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: watch(socket, Interest::READABLE)?,
            state,
            full: AtomicBool::new(false),
        })
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe code, to rule out types whose descriptor changes; a socket's does not"
)]
pub(crate) fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncUdpSocket for Udp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room {
            udp: self,
            watched: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        let full = matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        self.full.store(full, Relaxed);
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut readiness = ready!(self.socket.poll_read_ready(context))?;
            let received = self.state.recv(self.socket.get_ref().into(), buffers, meta);
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => readiness.clear_ready(),
                // The kernel had no more; asking it again to hear so would cost a call per packet.
                Ok(count) if count < meta.len() => {
                    readiness.clear_ready();
                    return Poll::Ready(Ok(count));
                }
                received => return Poll::Ready(received),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Waits for room in the send buffer.
struct Room {
    udp: Arc<Udp>,
    /// Only while somebody waits: its first event tells of the state at that time, later ones would come with each packet.
    watched: Option<AsyncFd<UdpSocket>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // QUIC asks before every packet.
        if self.watched.is_none() && !self.udp.full.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        if self.watched.is_none() {
            let socket = self.udp.socket.get_ref().try_clone()?;
            self.watched = Some(watch(socket, Interest::WRITABLE)?);
        }
        let watched = self.watched.as_ref().expect("set above");
        let result = ready!(watched.poll_write_ready(context)).map(drop);
        self.watched = None;
        self.udp.full.store(false, Relaxed);
        Poll::Ready(result)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Room").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    fn transmit(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit {
            destination,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        }
    }

    async fn receive(udp: &Udp, most: usize) -> Vec<Vec<u8>> {
        let mut memory = vec![vec![0u8; 65_536]; most];
        let mut meta = vec![RecvMeta::default(); most];
        let count = poll_fn(|context| {
            let mut buffers: Vec<_> = memory
                .iter_mut()
                .map(|bytes| IoSliceMut::new(bytes))
                .collect();
            udp.poll_recv(context, &mut buffers, &mut meta)
        })
        .await
        .unwrap();
        (0..count)
            .flat_map(|index| {
                memory[index][..meta[index].len]
                    .chunks(meta[index].stride)
                    .map(<[u8]>::to_vec)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn socket() -> Udp {
        Udp::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap()
    }

    #[tokio::test]
    async fn more_packets_than_a_batch_holds_all_arrive() {
        let (one, two) = (socket(), socket());
        let target = two.local_addr().unwrap();
        for number in 0..40u8 {
            // Different lengths, so that the kernel does not join them.
            one.try_send(&transmit(target, &vec![number; 10 + usize::from(number)]))
                .unwrap();
        }
        let mut seen = 0;
        while seen < 40 {
            let packets = tokio::time::timeout(Duration::from_secs(10), receive(&two, 2))
                .await
                .expect("a packet was forgotten");
            for packet in packets {
                assert_eq!(packet, vec![seen; 10 + usize::from(seen)]);
                seen += 1;
            }
        }
    }

    #[tokio::test]
    async fn packet_that_comes_while_nobody_looks_is_not_forgotten() {
        let (one, two) = (socket(), socket());
        let target = two.local_addr().unwrap();
        for round in 0..200u8 {
            one.try_send(&transmit(target, &[round; 5])).unwrap();
            if round % 3 == 0 {
                tokio::task::yield_now().await;
            }
            let packets = tokio::time::timeout(Duration::from_secs(10), receive(&two, 8))
                .await
                .expect("a packet was forgotten");
            assert_eq!(packets, [vec![round; 5]]);
        }
    }

    #[tokio::test]
    async fn room_in_the_send_buffer_is_noticed_each_time() {
        let udp = Arc::new(socket());
        let mut room = udp.clone().create_io_poller();
        for _ in 0..3 {
            udp.full.store(true, Relaxed);
            tokio::time::timeout(
                Duration::from_secs(10),
                poll_fn(|context| room.as_mut().poll_writable(context)),
            )
            .await
            .expect("there is room")
            .unwrap();
        }
    }
}
