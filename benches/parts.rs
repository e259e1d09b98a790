//! The parts of the engine that every write passes: bitmap and activity log.

use std::hint::black_box;

use qrbd_benches::{Places, measure};
use qrbd_engine::activity_log::ActivityLog;
use qrbd_engine::bitmap::Bitmap;

/// Blocks of 1 TiB.
const BLOCKS: u64 = 1 << 28;

fn main() {
    bitmap();
    activity_log();
}

fn bitmap() {
    let mut places = Places::new(3);
    let mut bitmap = Bitmap::new(BLOCKS);
    measure("bitmap of 1 TiB: set a block and clear it", 1, || {
        let block = places.below(BLOCKS);
        black_box(bitmap.set(block..block + 1));
        black_box(bitmap.clear(block..block + 1));
    });
    let mut bitmap = Bitmap::new(BLOCKS);
    for _ in 0..100_000 {
        let block = places.below(BLOCKS);
        bitmap.set(block..block + 1);
    }
    let mut from = 0;
    measure(
        "bitmap of 1 TiB: next of 100 000 scattered runs",
        1,
        || match bitmap.next_run(from, 256) {
            Some(run) => from = black_box(run.end),
            None => from = 0,
        },
    );
    let empty = Bitmap::new(BLOCKS);
    measure("bitmap of 1 TiB: whole scan of an empty one", 1, || {
        black_box(black_box(&empty).next_run(0, 256));
    });
}

fn activity_log() {
    const SLOTS: u32 = 1237;
    let mut places = Places::new(4);
    let mut log = ActivityLog::new(SLOTS);
    let mut touch = |extent: u32| {
        if !log.acquire(extent..extent + 1) {
            let planned = log.plan([extent].into_iter()).expect("slots are free");
            black_box(planned);
            log.committed();
            assert!(
                log.acquire(extent..extent + 1),
                "active after its transaction"
            );
        }
        log.release(extent..extent + 1);
    };
    (0..SLOTS).for_each(&mut touch);
    measure("activity log: touch an active extent", 1, || {
        touch(places.below(u64::from(SLOTS)) as u32);
    });
    measure(
        "activity log: touch one of 2^18 extents, with transaction",
        1,
        || {
            touch(places.below(1 << 18) as u32);
        },
    );
}
