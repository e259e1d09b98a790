//! A 4 KiB write through two engines, from the request to its completion, without disks and network.
//!
//! Besides the time of a write it prints how many events both engines handled for it, and so how many they handle in a second.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qrbd_benches::Places;
use qrbd_benches::pair::Pair;
use qrbd_engine::wire::message::Protocol;

const DEVICE_BYTES: u64 = 1 << 40;
/// Writes go to these many blocks (1 GiB), all of which the activity log holds after the first round.
const HOT_BLOCKS: u64 = 1 << 18;
/// And to these, of which it holds few: most writes need a transaction of the log.
const COLD_BLOCKS: u64 = 1 << 27;
const WARM_UP: usize = 2000;

struct Load {
    protocol: Protocol,
    /// Writes in flight together: as many ranges are looked through for overlaps.
    depth: usize,
    blocks: u64,
    with_codec: bool,
    connected: bool,
}

const HOT: Load = Load {
    protocol: Protocol::C,
    depth: 1,
    blocks: HOT_BLOCKS,
    with_codec: false,
    connected: true,
};

fn writes(criterion: &mut Criterion, name: &str, load: &Load) {
    let mut pair = Pair::new(DEVICE_BYTES, load.protocol, load.with_codec);
    if !load.connected {
        pair.cut();
    }
    let mut places = Places::new(1);
    let mut write =
        |pair: &mut Pair| pair.write((0..load.depth).map(|_| places.below(load.blocks)));
    (0..WARM_UP / load.depth + 1).for_each(|_| write(&mut pair));
    let (events, mut written) = (pair.events(), 0);
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(load.depth as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            write(&mut pair);
            written += load.depth;
        });
    });
    group.finish();
    // Nothing was written if another benchmark was asked for.
    if written > 0 {
        let each = (pair.events() - events) as f64 / written as f64;
        println!(
            "{:<24}events: {each:.1} for each write, both engines together",
            ""
        );
    }
}

fn engine(criterion: &mut Criterion) {
    let of = |protocol| Load { protocol, ..HOT };
    writes(criterion, "write, A, hot", &of(Protocol::A));
    writes(criterion, "write, B, hot", &of(Protocol::B));
    writes(criterion, "write, C, hot", &HOT);
    for depth in [32, 1024] {
        writes(
            criterion,
            &format!("{depth} writes in flight, C, hot"),
            &Load { depth, ..HOT },
        );
    }
    let coded = Load {
        depth: 32,
        with_codec: true,
        ..HOT
    };
    writes(
        criterion,
        "32 writes in flight, C, hot, frames coded",
        &coded,
    );
    let cold = Load {
        depth: 32,
        blocks: COLD_BLOCKS,
        ..HOT
    };
    writes(criterion, "32 writes in flight, C, cold", &cold);
    let alone = Load {
        depth: 32,
        connected: false,
        ..HOT
    };
    writes(criterion, "32 writes in flight, without the peer", &alone);
}

criterion_group! {
    name = all;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500)).sample_size(30);
    targets = engine
}
criterion_main!(all);
