//! The network between two nodes: a UDP relay on loopback that can be cut in either direction, slowed, and healed.
//!
//! Each node knows the other one by an address of the relay. What comes to `before_left` (the right node's address in the left
//! node's eyes) goes on to the right node as if from `before_right`, and the other way round. A cut direction drops silently, as a
//! broken link does. Order is kept; nothing is kept for later when a cut heals.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::stage;

/// Largest UDP datagram.
const DATAGRAM_BYTES: usize = 65_535;
/// Datagrams that wait for their delay at once.
const MOST_DELAYED: usize = 8_192;
/// How often a waiting direction looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Kernel buffer asked for.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Which way datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the left node to the right one.
    LeftToRight,
    /// From the right node to the left one.
    RightToLeft,
}

#[derive(Debug, Default)]
struct Way {
    cut: AtomicBool,
    delay_micros: AtomicU64,
    passed: AtomicU64,
    dropped: AtomicU64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Relay {
    before_left: SocketAddr,
    before_right: SocketAddr,
    ways: [Arc<Way>; 2],
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// A relay between two nodes' own addresses, open in both directions.
    ///
    /// # Panics
    /// If no address is free.
    #[must_use]
    pub fn new(left: SocketAddr, right: SocketAddr) -> Relay {
        let socket = || {
            let (socket, address) = stage::socket();
            socket
                .set_read_timeout(Some(LOOK))
                .expect("a time limit can be set");
            // The kernel gives what it allows.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES);
            (Arc::new(socket), address)
        };
        let ((left_socket, before_left), (right_socket, before_right)) = (socket(), socket());
        let ways = [Arc::new(Way::default()), Arc::new(Way::default())];
        let end = Arc::new(AtomicBool::new(false));
        let pass = |from: &Arc<UdpSocket>, out: &Arc<UdpSocket>, to: SocketAddr, way: &Arc<Way>| {
            let (from, out, way, end) = (
                Arc::clone(from),
                Arc::clone(out),
                Arc::clone(way),
                Arc::clone(&end),
            );
            std::thread::spawn(move || pass(&from, &out, to, &way, &end))
        };
        let threads = vec![
            pass(&left_socket, &right_socket, right, &ways[0]),
            pass(&right_socket, &left_socket, left, &ways[1]),
        ];
        Relay {
            before_left,
            before_right,
            ways,
            end,
            threads,
        }
    }

    /// The right node's address in the left node's eyes.
    #[must_use]
    pub fn before_left(&self) -> SocketAddr {
        self.before_left
    }

    /// The left node's address in the right node's eyes.
    #[must_use]
    pub fn before_right(&self) -> SocketAddr {
        self.before_right
    }

    /// Nothing passes in this direction from now on.
    pub fn cut(&self, direction: Direction) {
        self.way(direction).cut.store(true, Ordering::SeqCst);
    }

    /// Nothing passes at all.
    pub fn cut_both(&self) {
        self.cut(Direction::LeftToRight);
        self.cut(Direction::RightToLeft);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        for way in &self.ways {
            way.cut.store(false, Ordering::SeqCst);
        }
    }

    /// Datagrams take this much longer, in both directions.
    pub fn delay(&self, delay: Duration) {
        for way in &self.ways {
            way.delay_micros.store(
                delay.as_micros().try_into().expect("a delay of seconds"),
                Ordering::SeqCst,
            );
        }
    }

    /// Datagrams that went through and that were dropped, in this direction.
    #[must_use]
    pub fn counts(&self, direction: Direction) -> (u64, u64) {
        let way = self.way(direction);
        (
            way.passed.load(Ordering::Relaxed),
            way.dropped.load(Ordering::Relaxed),
        )
    }

    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::LeftToRight => &self.ways[0],
            Direction::RightToLeft => &self.ways[1],
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn pass(from: &UdpSocket, out: &UdpSocket, to: SocketAddr, way: &Way, end: &AtomicBool) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    let mut delayed: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    // An error of a send is a lost datagram: the node is not there.
    let send = |bytes: &[u8]| match way.cut.load(Ordering::SeqCst) {
        true => way.dropped.fetch_add(1, Ordering::Relaxed),
        false => {
            let _ = out.send_to(bytes, to);
            way.passed.fetch_add(1, Ordering::Relaxed)
        }
    };
    let mut limit = LOOK;
    while !end.load(Ordering::SeqCst) {
        while delayed
            .front()
            .is_some_and(|(due, _)| *due <= Instant::now())
        {
            if let Some((_, bytes)) = delayed.pop_front() {
                send(&bytes);
            }
        }
        let due = delayed.front().map_or(LOOK, |(due, _)| {
            due.saturating_duration_since(Instant::now())
        });
        let wanted = due.clamp(Duration::from_micros(100), LOOK);
        if wanted != limit {
            from.set_read_timeout(Some(wanted))
                .expect("a time limit can be set");
            limit = wanted;
        }
        match from.recv(&mut buffer) {
            Ok(length) => {
                let delay = Duration::from_micros(way.delay_micros.load(Ordering::SeqCst));
                if delay.is_zero() && delayed.is_empty() {
                    send(&buffer[..length]);
                } else if delayed.len() < MOST_DELAYED {
                    delayed.push_back((Instant::now() + delay, buffer[..length].to_vec()));
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // What an earlier send met: nobody at the node's port.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
