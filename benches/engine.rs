//! A 4 KiB write through two engines, from the request to its completion, without disks and network.

use qrbd_benches::pair::Pair;
use qrbd_benches::{Places, measure};
use qrbd_engine::wire::message::Protocol;

const DEVICE_BYTES: u64 = 1 << 40;
/// Writes go to these many blocks (1 GiB), all of which the activity log holds after the first round.
const HOT_BLOCKS: u64 = 1 << 18;
/// And to these, of which it holds few: most writes need a transaction of the log.
const COLD_BLOCKS: u64 = 1 << 27;

fn main() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        writes(protocol, 1, HOT_BLOCKS, false, "hot extents");
    }
    writes(Protocol::C, 32, HOT_BLOCKS, false, "hot extents");
    writes(
        Protocol::C,
        32,
        HOT_BLOCKS,
        true,
        "hot extents, frames coded",
    );
    writes(Protocol::C, 32, COLD_BLOCKS, false, "cold extents");
    alone();
}

fn writes(protocol: Protocol, depth: usize, blocks: u64, with_codec: bool, what: &str) {
    let mut pair = Pair::new(DEVICE_BYTES, protocol, with_codec);
    let mut places = Places::new(1);
    for _ in 0..2000 {
        pair.write((0..depth).map(|_| places.below(blocks)));
    }
    let (events, mut writes) = (pair.events(), 0);
    measure(
        &format!("write, protocol {protocol:?}, {depth} in flight, {what}"),
        depth as u64,
        || {
            pair.write((0..depth).map(|_| places.below(blocks)));
            writes += depth as u64;
        },
    );
    println!(
        "{:<58} {:>10.1} events in both engines for each write",
        "",
        (pair.events() - events) as f64 / writes as f64
    );
}

/// A Primary without its peer: the bitmap is marked.
fn alone() {
    let mut pair = Pair::new(DEVICE_BYTES, Protocol::C, false);
    pair.cut();
    let mut places = Places::new(2);
    for _ in 0..2000 {
        pair.write((0..32).map(|_| places.below(HOT_BLOCKS)));
    }
    measure(
        "write without the peer, 32 in flight, hot extents",
        32,
        || {
            pair.write((0..32).map(|_| places.below(HOT_BLOCKS)));
        },
    );
}
