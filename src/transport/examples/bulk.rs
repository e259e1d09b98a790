//! Sanity check of the transport's speed over loopback: bulk throughput in MiB/s and the round trip of 4 KiB frames.
//!
//! `cargo run --release -p qrbd-transport --example bulk [UDP_PAYLOAD_BYTES] [MIB]`
//!
//! Two endpoints on two threads, each on a runtime of its own, as in two daemons. Compare figures of one machine and one
//! hour only.

use std::time::{Duration, Instant};

use bytes::Bytes;
use qrbd_transport::{
    BytesAllocator, CodecError, Endpoint, EndpointConfig, Event, Events, FrameCodec, FrameLengths,
    Lane, NodeId, PeerConfig, Session, SharedKey, Tuning, VersionRange,
};

/// One number: the length of the payload.
struct Codec;

impl FrameCodec for Codec {
    const HEADER_BYTES: usize = 4;

    fn lengths(header: &[u8]) -> Result<FrameLengths, CodecError> {
        let payload = u32::from_le_bytes(header.try_into().expect("4 bytes")) as usize;
        Ok(FrameLengths { body: 0, payload })
    }
}

const FRAME_BYTES: usize = 256 << 10;
const SMALL_BYTES: usize = 4 << 10;
const ROUND_TRIPS: usize = 5000;
const PIPELINED: usize = 200_000;
const WINDOW: usize = 64;
/// What the sender keeps queued during the bulk run.
const BACKLOG_BYTES: usize = 4 << 20;

type Bulk = (Endpoint<Codec, BytesAllocator>, Events<Bytes>);

fn endpoint(id: u8, udp_payload: u16) -> Bulk {
    let config = EndpointConfig {
        on_arrival: None,
        local: "127.0.0.1:0".parse().expect("an address"),
        node: NodeId(id),
        resource: "bulk".into(),
        versions: VersionRange::new(1, 1),
        tuning: Tuning {
            max_udp_payload_bytes: Some(udp_payload),
            ..Tuning::lan()
        },
        faults: None,
    };
    Endpoint::bind(config, BytesAllocator).expect("an endpoint")
}

fn peer(id: u8, port: u16) -> PeerConfig {
    PeerConfig {
        node: NodeId(id),
        remote: ([127, 0, 0, 1], port).into(),
        key: SharedKey::from_secret("for the example only").expect("a key"),
        connect_interval: Duration::from_secs(1),
    }
}

fn send(session: &Session, lane: Lane, payload: &Bytes) {
    let head = Bytes::copy_from_slice(&(payload.len() as u32).to_le_bytes());
    session
        .send(
            lane,
            head,
            Some(payload.clone()).filter(|payload| !payload.is_empty()),
        )
        .expect("the session is up");
}

/// A phase of the run: how long it takes, and the processor time of both ends, which a busy machine disturbs less.
struct Phase {
    begun: Instant,
    cpu_ms: u64,
}

impl Phase {
    fn begin() -> Self {
        Self {
            begun: Instant::now(),
            cpu_ms: cpu_ms(),
        }
    }

    fn end(self) -> (f64, String) {
        (
            self.begun.elapsed().as_secs_f64(),
            format!("{:.2} CPU s", (cpu_ms() - self.cpu_ms) as f64 / 1e3),
        )
    }
}

/// User and system time of this process, from ticks of 10 ms.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum::<u64>()
        * 10
}

/// Acknowledges every frame of the data lane with an empty frame.
async fn serve(mut events: Events<Bytes>) {
    let mut session = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Connected { handle, .. } => session = Some(handle),
            Event::Frame {
                lane: Lane::Data, ..
            } => {
                send(
                    session.as_ref().expect("connected first"),
                    Lane::Acks,
                    &Bytes::new(),
                );
            }
            Event::Lost { .. } => return,
            _ => {}
        }
    }
}

async fn acks(events: &mut Events<Bytes>, count: usize) {
    let mut left = count;
    while left > 0 {
        match events.recv().await.expect("events") {
            Event::Frame { .. } => left -= 1,
            Event::Lost { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
}

async fn measure(session: &Session, events: &mut Events<Bytes>, mib: usize) {
    let small = Bytes::from(vec![0x5a; SMALL_BYTES]);
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        send(session, Lane::Data, &small);
        acks(events, 1).await;
        times.push(begun.elapsed());
    }
    times.sort();
    let us = |part: usize| times[ROUND_TRIPS * part / 1000].as_secs_f64() * 1e6;
    println!(
        "4 KiB round trip        p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us",
        us(500),
        us(990),
        us(999)
    );

    let phase = Phase::begin();
    for _ in 0..WINDOW {
        send(session, Lane::Data, &small);
    }
    for _ in WINDOW..PIPELINED {
        acks(events, 1).await;
        send(session, Lane::Data, &small);
    }
    acks(events, WINDOW).await;
    let (seconds, cpu) = phase.end();
    println!(
        "4 KiB, {WINDOW} under way     {:.0} frames/s, {cpu}",
        PIPELINED as f64 / seconds
    );

    let large = Bytes::from(vec![0x5a; FRAME_BYTES]);
    let frames = (mib << 20) / FRAME_BYTES;
    let phase = Phase::begin();
    for _ in 0..frames {
        session.drained_to(Lane::Data, BACKLOG_BYTES).await;
        send(session, Lane::Data, &large);
    }
    acks(events, frames).await;
    let (seconds, cpu) = phase.end();
    println!(
        "bulk, 256 KiB frames    {:.0} MiB/s, {cpu}",
        mib as f64 / seconds
    );
    println!("{:?}", session.stats());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|argument| argument.parse::<usize>().expect("a number"));
    let udp_payload = arguments.next().unwrap_or(8972) as u16;
    let mib = arguments.next().unwrap_or(2048);
    let (port, server_port) = std::sync::mpsc::channel();
    let (client, client_port) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        runtime().block_on(async {
            let (endpoint, events) = endpoint(1, udp_payload);
            port.send(endpoint.local_address().port())
                .expect("the client waits");
            endpoint
                .add_peer(peer(0, client_port.recv().expect("the client's port")))
                .expect("a peer");
            serve(events).await;
        });
    });
    runtime().block_on(async {
        let (endpoint, mut events) = endpoint(0, udp_payload);
        client
            .send(endpoint.local_address().port())
            .expect("the server waits");
        endpoint
            .add_peer(peer(1, server_port.recv().expect("the server's port")))
            .expect("a peer");
        let session = loop {
            match events.recv().await.expect("events") {
                Event::Connected { handle, .. } => break handle,
                Event::DialFailed { reason, .. } => eprintln!("{reason}"),
                _ => {}
            }
        };
        measure(&session, &mut events, mib).await;
        endpoint.shutdown().await;
    });
    server.join().expect("the server ends");
}
