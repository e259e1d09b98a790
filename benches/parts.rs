//! The parts that every write passes, each by itself: bitmap, activity log, frames, NBD requests; and the comparison of
//! generations.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use qrbd_benches::parts::{BLOCKS, Frames, LOG_SLOTS, Log, Marks, Meeting, Requests, Scan};
use qrbd_engine::bitmap::Bitmap;

fn parts(criterion: &mut Criterion) {
    let mut bench = |name: &str, step: &mut dyn FnMut()| {
        criterion.bench_function(name, |bencher| bencher.iter(&mut *step));
    };
    let mut frames = Frames::new();
    bench("frame: encode and decode the head of a write", &mut || {
        frames.step()
    });
    let mut requests = Requests::new();
    bench("NBD: judge a WRITE and make its reply", &mut || {
        requests.step()
    });
    let mut marks = Marks::new();
    bench("bitmap of 1 TiB: set a block and clear it", &mut || {
        marks.step()
    });
    let mut scan = Scan::new();
    bench(
        "bitmap of 1 TiB: next of 100 000 scattered runs",
        &mut || scan.step(),
    );
    let empty = Bitmap::new(BLOCKS);
    bench("bitmap of 1 TiB: whole scan of an empty one", &mut || {
        black_box(black_box(&empty).next_run(0, 256));
    });
    let mut hot = Log::new(LOG_SLOTS);
    bench("activity log: touch an active extent", &mut || hot.step());
    let mut cold = Log::new(1 << 18);
    bench(
        "activity log: touch one of 2^18 extents, with transaction",
        &mut || cold.step(),
    );
    let mut meeting = Meeting::new();
    bench(
        "generations: compare two nodes after an outage",
        &mut || meeting.step(),
    );
}

criterion_group! {
    name = all;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500)).sample_size(30);
    targets = parts
}
criterion_main!(all);
