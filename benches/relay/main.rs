//! A long, thin link: forwards the UDP packets of two nodes with a delay, at a rate, through a queue that overflows.
//!
//! Each node is told the relay's port as the address of the other. Both directions are alike and independent: a packet waits for the
//! line (its size at `--megabits`), is lost if more than `--queue` bytes wait already, if it is larger than `--packet`, or at random
//! (`--loss-ppm`, repeatable), and arrives `--delay-us` after it left the line. Order is kept.
//!
//! Prints a JSON line of totals every 50 ms. One thread; packets are taken and given in the kernel's batches, so that it is not what
//! limits the link. For kernels without `tc netem`, and where nobody is root.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};

/// What one `sendmsg` takes is below 64 KiB.
const MAX_BATCH_BYTES: usize = 65_000;
const RECEIVE_BYTES: usize = 65_536;
const SOCKET_BUFFER_BYTES: usize = 32 << 20;
const REPORT_INTERVAL: Duration = Duration::from_millis(50);
const USAGE: &str = "usage: qrbd-relay --ports ALICE-SENDS-TO BOB-SENDS-TO --nodes ALICE BOB [--delay-us ONE-WAY] [--megabits RATE] \
[--queue BYTES] [--packet UDP-PAYLOAD] [--loss-ppm PER-MILLION]; all addresses are IP:PORT";

struct Settings {
    ports: [SocketAddr; 2],
    nodes: [SocketAddr; 2],
    delay: Duration,
    bytes_per_second: u64,
    queue_bytes: u64,
    packet_bytes: usize,
    loss_ppm: u64,
}

fn settings() -> Result<Settings> {
    let mut words = std::env::args().skip(1);
    let (mut ports, mut nodes) = (None, None);
    let (mut delay_us, mut megabits, mut queue, mut packet, mut loss) = (0, 1000, 1 << 20, 1472, 0);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word}: {USAGE}"));
        let mut two = || -> Result<_> { Ok(Some([value()?.parse()?, value()?.parse()?])) };
        match word.as_str() {
            "--ports" => ports = two()?,
            "--nodes" => nodes = two()?,
            "--delay-us" => delay_us = value()?.parse()?,
            "--megabits" => megabits = value()?.parse()?,
            "--queue" => queue = value()?.parse()?,
            "--packet" => packet = value()?.parse()?,
            "--loss-ppm" => loss = value()?.parse()?,
            _ => bail!("{word}: {USAGE}"),
        }
    }
    ensure!(megabits > 0, "a link without a rate: {USAGE}");
    Ok(Settings {
        ports: ports.context(USAGE)?,
        nodes: nodes.context(USAGE)?,
        delay: Duration::from_micros(delay_us),
        bytes_per_second: megabits * 125_000,
        queue_bytes: queue,
        packet_bytes: packet,
        loss_ppm: loss,
    })
}

struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Port {
    fn bind(address: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(address).with_context(|| format!("the port {address}"))?;
        let size = &SOCKET_BUFFER_BYTES;
        // Forced only as root; otherwise what the system allows.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, size)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, size));
        let _ = setsockopt(&socket, sockopt::SndBufForce, size)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, size));
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(true)?;
        Ok(Port { socket, state })
    }
}

/// From one node to the other.
struct Line {
    waiting: VecDeque<(Instant, Vec<u8>)>,
    /// When the line has sent what was given to it.
    free_at: Instant,
    random: u64,
    forwarded_packets: u64,
    forwarded_bytes: u64,
    overflowed_packets: u64,
    lost_packets: u64,
    too_large_packets: u64,
    most_queued_bytes: u64,
}

impl Line {
    fn new(now: Instant, seed: u64) -> Self {
        Line {
            waiting: VecDeque::new(),
            free_at: now,
            random: seed,
            forwarded_packets: 0,
            forwarded_bytes: 0,
            overflowed_packets: 0,
            lost_packets: 0,
            too_large_packets: 0,
            most_queued_bytes: 0,
        }
    }

    fn take(&mut self, now: Instant, packet: &[u8], settings: &Settings) {
        if packet.len() > settings.packet_bytes {
            self.too_large_packets += 1;
            return;
        }
        if settings.loss_ppm > 0 && self.random() % 1_000_000 < settings.loss_ppm {
            self.lost_packets += 1;
            return;
        }
        let rate = settings.bytes_per_second;
        let backlog = self.free_at.saturating_duration_since(now);
        let queued = (backlog.as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
        if queued + packet.len() as u64 > settings.queue_bytes {
            self.overflowed_packets += 1;
            return;
        }
        self.most_queued_bytes = self.most_queued_bytes.max(queued + packet.len() as u64);
        let on_the_line = Duration::from_nanos(packet.len() as u64 * 1_000_000_000 / rate);
        self.free_at = self.free_at.max(now) + on_the_line;
        self.waiting
            .push_back((self.free_at + settings.delay, packet.to_vec()));
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.random;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// Sends what is due, neighbours of one size in one call.
    fn send_due(&mut self, now: Instant, port: &Port, to: SocketAddr, batch: &mut Vec<u8>) {
        loop {
            batch.clear();
            let (mut segment, mut count) = (0, 0);
            while let Some((due, packet)) = self.waiting.get(count)
                && *due <= now
                && count < port.state.max_gso_segments()
                && batch.len() + packet.len() <= MAX_BATCH_BYTES
                && (count == 0 || packet.len() <= segment)
            {
                if count == 0 {
                    segment = packet.len();
                }
                batch.extend_from_slice(packet);
                count += 1;
                if packet.len() < segment {
                    break;
                }
            }
            if count == 0 {
                return;
            }
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: batch,
                segment_size: (count > 1).then_some(segment),
                src_ip: None,
            };
            match port.state.try_send((&port.socket).into(), &transmit) {
                Ok(()) => {
                    self.forwarded_packets += count as u64;
                    self.forwarded_bytes += batch.len() as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A node that is down: as lost as on any link.
                Err(_) => self.lost_packets += count as u64,
            }
            self.waiting.drain(..count);
        }
    }

    fn report(&self) -> String {
        format!(
            r#"{{"packets": {}, "bytes": {}, "overflowed": {}, "lost": {}, "too_large": {}, "most_queued_bytes": {}}}"#,
            self.forwarded_packets,
            self.forwarded_bytes,
            self.overflowed_packets,
            self.lost_packets,
            self.too_large_packets,
            self.most_queued_bytes
        )
    }
}

fn receive(
    port: &Port,
    line: &mut Line,
    settings: &Settings,
    memory: &mut [Vec<u8>],
) -> Result<()> {
    loop {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut slices: Vec<_> = memory
            .iter_mut()
            .map(|part| IoSliceMut::new(part))
            .collect();
        let received = port
            .state
            .recv((&port.socket).into(), &mut slices, &mut meta);
        let count = match received {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error).context("receiving"),
        };
        let now = Instant::now();
        for (part, meta) in memory.iter().zip(&meta[..count]) {
            for packet in part[..meta.len].chunks(meta.stride.max(1)) {
                line.take(now, packet, settings);
            }
        }
    }
}

fn main() -> Result<()> {
    let settings = settings()?;
    let ports = [
        Port::bind(settings.ports[0])?,
        Port::bind(settings.ports[1])?,
    ];
    let mut now = Instant::now();
    // lines[0] from alice to bob: in at ports[0], out at ports[1], which is who bob knows as alice.
    let mut lines = [Line::new(now, 1), Line::new(now, 2)];
    let mut memory = vec![vec![0; RECEIVE_BYTES]; BATCH_SIZE];
    let mut batch = Vec::with_capacity(MAX_BATCH_BYTES);
    let begun = now;
    let mut report_at = now + REPORT_INTERVAL;
    loop {
        let mut wake_at = report_at;
        for line in &lines {
            if let Some((due, _)) = line.waiting.front() {
                wake_at = wake_at.min(*due);
            }
        }
        let mut watched = [0, 1].map(|n| PollFd::new(ports[n].socket.as_fd(), PollFlags::POLLIN));
        let wait = TimeSpec::from_duration(wake_at.saturating_duration_since(now));
        ppoll(&mut watched, Some(wait), None).context("waiting for packets")?;
        for n in 0..2 {
            receive(&ports[n], &mut lines[n], &settings, &mut memory)?;
        }
        now = Instant::now();
        for n in 0..2 {
            lines[n].send_due(now, &ports[1 - n], settings.nodes[1 - n], &mut batch);
        }
        if now >= report_at {
            report_at = now + REPORT_INTERVAL;
            let mut output = io::stdout().lock();
            writeln!(
                output,
                r#"{{"seconds": {:.3}, "alice_to_bob": {}, "bob_to_alice": {}}}"#,
                begun.elapsed().as_secs_f64(),
                lines[0].report(),
                lines[1].report()
            )?;
            output.flush()?;
        }
    }
}
