//! Garbage on every socket of a daemon under load, and clients that behave badly: nothing acknowledged is lost, nobody is shut out, memory
//! stays bounded.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use qrbd_nbd::Cookie;
use qrbd_process_tests::configuration::Options;
use qrbd_process_tests::load::{self, Load};
use qrbd_process_tests::node::Node;
use qrbd_process_tests::pair::{Pair, PairOptions};

/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(4);
/// What a daemon may occupy under this load, whatever else comes in: its pools and budgets, and room.
const MOST_RESIDENT_KIB: u64 = 450 << 10;

/// Numbers that look random; the same in each run.
struct Noise(u64);

impl Noise {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.number() as u8).collect()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
}

/// [`under_load_of`] a pair without further options.
fn under_load(flood: impl Fn(&Pair, &mut Noise)) {
    under_load_of(&PairOptions::default(), flood);
}

/// Runs load, and `flood` beside it until its time is over; then everything acknowledged is there and both disks are equal.
fn under_load_of(options: &PairOptions, flood: impl Fn(&Pair, &mut Noise)) {
    let mut pair = Pair::ready(options);
    let load = Load::start(
        &pair.stage,
        &pair.alice,
        "load",
        &[
            "--seconds",
            "5",
            "--flush-every",
            "50",
            "--read-percent",
            "10",
        ],
    );
    let end = Instant::now() + FLOOD;
    let mut noise = Noise(0x5eed);
    while Instant::now() < end {
        flood(&pair, &mut noise);
    }
    // The administrator is heard all the time.
    assert_eq!(pair.alice.status().role(), "Primary");
    let journal = load.finish(Duration::from_secs(40));
    load::verify(&pair.alice, &journal);
    for node in [&mut pair.alice, &mut pair.bob] {
        node.must_run();
        let resident = node.daemon().resident_kib();
        assert!(resident < MOST_RESIDENT_KIB, "{} KiB occupied", resident);
        assert!(!node.log().contains("panicked"), "no panic");
    }
    pair.assert_equal_disks();
}

/// Sends, and reads what comes back for a moment; errors are what is wanted.
fn throw(socket: &std::path::Path, bytes: &[u8]) {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return;
    };
    let short = Some(Duration::from_millis(20));
    stream.set_read_timeout(short).unwrap();
    stream.set_write_timeout(short).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 4096]);
}

#[test]
fn garbage_on_the_control_socket_harms_nobody() {
    under_load(|pair, noise| {
        let mut bytes = match noise.below(4) {
            // A frame of the largest length that says nothing, one that is too long, one that ends early, noise.
            0 => (1_u32 << 20).to_le_bytes().to_vec(),
            1 => u32::MAX.to_le_bytes().to_vec(),
            2 => [200_u32.to_le_bytes().to_vec(), vec![1]].concat(),
            _ => Vec::new(),
        };
        let length = noise.below(3_000) as usize;
        bytes.extend(noise.bytes(length));
        throw(&pair.alice.control_socket(), &bytes);
    });
}

#[test]
fn silent_clients_of_the_control_socket_shut_nobody_out() {
    let pair = Pair::ready(&PairOptions::default());
    let silent: Vec<UnixStream> = (0..200)
        .filter_map(|_| connect_shortly(&pair.alice))
        .collect();
    assert!(silent.len() >= 100, "{} connections", silent.len());
    assert_eq!(pair.alice.status().role(), "Primary");
    drop(silent);
    assert_eq!(pair.alice.status().role(), "Primary");
}

/// A connection, unless the queue of the listener is full.
fn connect_shortly(node: &Node) -> Option<UnixStream> {
    // A full queue makes a blocking connect wait; the daemon accepts in the meantime.
    std::thread::sleep(Duration::from_millis(1));
    let path = node.control_socket();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(UnixStream::connect(path)));
    receiver.recv_timeout(Duration::from_millis(500)).ok()?.ok()
}

/// The beginning of a conversation that goes wrong in one of several ways.
fn nbd_garbage(noise: &mut Noise) -> Vec<u8> {
    let mut bytes = match noise.below(5) {
        0 => Vec::new(),
        // Right client flags, then an option with a senseless length.
        1 => [
            &3_u32.to_be_bytes()[..],
            b"IHAVEOPT",
            &7_u32.to_be_bytes(),
            &u32::MAX.to_be_bytes(),
        ]
        .concat(),
        // EXPORT_NAME of a name that does not end.
        2 => [
            &3_u32.to_be_bytes()[..],
            b"IHAVEOPT",
            &1_u32.to_be_bytes(),
            &4096_u32.to_be_bytes(),
        ]
        .concat(),
        // The export opened properly, then noise instead of requests.
        3 => [
            &3_u32.to_be_bytes()[..],
            b"IHAVEOPT",
            &1_u32.to_be_bytes(),
            &2_u32.to_be_bytes(),
            b"r0",
        ]
        .concat(),
        // The export opened, a write of 4 GiB announced that never comes.
        _ => [
            &3_u32.to_be_bytes()[..],
            b"IHAVEOPT",
            &1_u32.to_be_bytes(),
            &2_u32.to_be_bytes(),
            b"r0",
            &0x2560_9513_u32.to_be_bytes(),
            &[0, 0, 0, 1],
            &[0; 16],
            &u32::MAX.to_be_bytes(),
        ]
        .concat(),
    };
    // Noise that begins as a request would be one: it must not.
    bytes.push(0xff);
    bytes
}

#[test]
fn garbage_on_the_nbd_socket_harms_nobody() {
    under_load(|pair, noise| {
        let mut bytes = nbd_garbage(noise);
        let length = noise.below(20_000) as usize;
        bytes.extend(noise.bytes(length));
        throw(&pair.alice.nbd_socket(), &bytes);
    });
}

#[test]
fn silent_clients_of_the_nbd_socket_shut_nobody_out() {
    let pair = Pair::ready(&PairOptions::default());
    let silent: Vec<UnixStream> = (0..300)
        .filter_map(|_| UnixStream::connect(pair.alice.nbd_socket()).ok())
        .collect();
    assert!(silent.len() >= 200, "{} connections", silent.len());
    let journal = load::write(&pair.stage, &pair.alice, "load", &["--writes", "200"]);
    load::verify(&pair.alice, &journal);
    drop(silent);
    pair.assert_equal_disks();
}

fn address(node: &Node, name: &str) -> SocketAddr {
    let text = std::fs::read_to_string(&node.configuration).unwrap();
    let section = text.split(&format!("on {name} {{")).nth(1).unwrap();
    let line = section
        .lines()
        .find_map(|line| line.trim().strip_prefix("address "))
        .unwrap();
    line.trim_end_matches(';').parse().unwrap()
}

#[test]
fn garbage_on_the_udp_port_harms_nobody() {
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    under_load(|pair, noise| {
        for (node, name) in [(&pair.alice, "alice"), (&pair.bob, "bob")] {
            let to = address(node, name);
            for _ in 0..50 {
                let length = 1 + noise.below(1_400) as usize;
                let mut bytes = noise.bytes(length);
                match noise.below(3) {
                    // Looks like the first packet of a connection: long header, version 1, connection ids of 8 bytes.
                    0 if length > 40 => {
                        bytes.resize(1_200, 0);
                        bytes[0] = 0xc3;
                        bytes[1..6].copy_from_slice(&[0, 0, 0, 1, 8]);
                        bytes[14] = 8;
                        bytes[23] = 0;
                    }
                    // A version that nobody speaks.
                    1 if length > 40 => {
                        bytes.resize(1_200, 0);
                        bytes[0] = 0xc0;
                        bytes[1..6].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a, 8]);
                    }
                    // A short header: a packet of a connection that does not exist.
                    _ => bytes[0] = 0x40 | (bytes[0] & 0x3f),
                }
                let _ = stranger.send_to(&bytes, to);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    });
}

#[test]
fn garbage_on_the_nbd_tcp_port_harms_nobody() {
    let listen = qrbd_process_tests::stage::address();
    let options = PairOptions {
        resource: Options {
            more: format!("options {{ nbd-listen {listen}; }}"),
            ..Options::default()
        },
        ..PairOptions::default()
    };
    let connect = || TcpStream::connect_timeout(&listen, Duration::from_secs(1));
    under_load_of(&options, |_, noise| {
        let Ok(mut stream) = connect() else {
            panic!("nobody listens at {listen}");
        };
        let short = Some(Duration::from_millis(20));
        stream.set_read_timeout(short).unwrap();
        stream.set_write_timeout(short).unwrap();
        let mut bytes = nbd_garbage(noise);
        let length = noise.below(20_000) as usize;
        bytes.extend(noise.bytes(length));
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 4096]);
    });
}

#[test]
fn a_client_that_takes_no_replies_leaves_the_peer_s_data_to_the_others() {
    const READ_BYTES: u32 = 1 << 20;
    let pair = Pair::ready(&PairOptions::default());
    pair.alice.command("detach");
    assert_eq!(pair.alice.status().disk(), "Diskless");
    // More than the peer may send ahead, and nobody takes it.
    let mut silent = pair.alice.client();
    for read in 0..48 {
        let offset = (read % 16) * u64::from(READ_BYTES);
        silent
            .send_read(Cookie(read), offset, READ_BYTES)
            .expect("it is sent");
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut other = pair.alice.client();
    other
        .read(0, &mut [0; 4096])
        .expect("it is answered although somebody else takes nothing");
}
