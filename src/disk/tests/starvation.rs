//! Disk writes beside tasks that are always ready complete continuously.
//!
//! Counted in rounds of the busy tasks, so that a slow machine does not matter: a backend that hands over submissions, or looks
//! for completions, only when the thread runs out of work would not complete at all.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Case;
use qrbd_disk::{Completion, Operation, ReactorExt};

const WRITES: usize = 400;
/// Rounds of the busy local task within which all writes complete; a round takes well below a microsecond.
const MAX_ROUNDS: u64 = 200_000_000;
const MAX_P99: Duration = Duration::from_secs(1);

async fn writes_complete_beside_busy_tasks(case: &Case, depth: usize) {
    let rounds = Rc::new(Cell::new(0u64));
    let counting = Rc::clone(&rounds);
    let local = tokio::task::spawn_local(async move {
        loop {
            counting.set(counting.get() + 1);
            tokio::task::yield_now().await;
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let global = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
    });
    let payload = case.pool.copy_from(&[0x77; 4096]);
    let mut started = vec![Instant::now(); depth];
    let mut latencies = Vec::with_capacity(WRITES);
    let mut submitted = 0;
    let mut submit = |token: usize, started: &mut Vec<Instant>| {
        started[token] = Instant::now();
        let offset = (submitted % 256) as u64 * 4096;
        submitted += 1;
        case.submit(
            token as u64,
            Operation::Write {
                offset,
                payload: payload.clone(),
                durable: false,
            },
        );
    };
    for token in 0..depth {
        submit(token, &mut started);
    }
    let mut completions: Vec<Completion> = Vec::new();
    while latencies.len() < WRITES {
        case.reactor.completed().await;
        case.reactor.take_completions(&mut completions);
        for completion in completions.drain(..) {
            completion.result.expect("write");
            let token = usize::try_from(completion.token).expect("small");
            latencies.push(started[token].elapsed());
            submit(token, &mut started);
        }
        assert!(
            rounds.get() < MAX_ROUNDS,
            "{} of {WRITES} writes after {} rounds",
            latencies.len(),
            rounds.get()
        );
    }
    assert!(rounds.get() > 0, "the busy task runs too");
    stop.store(true, Ordering::Relaxed);
    local.abort();
    global.await.expect("busy task");
    case.finish().await;
    latencies.sort_unstable();
    let p99 = latencies[latencies.len() * 99 / 100];
    assert!(p99 < MAX_P99, "p99 {p99:?} at depth {depth}");
}

fn on_file(backend: fn(&std::path::Path, Vec<Box<dyn std::any::Any>>) -> Case, depth: usize) {
    common::run(async {
        let (folder, path) = common::file_of(1 << 20);
        let case = backend(&path, vec![Box::new(folder)]);
        writes_complete_beside_busy_tasks(&case, depth).await;
    });
}

#[test]
fn ring_at_depth_1_is_not_starved() {
    on_file(common::on_ring, 1);
}

#[test]
fn ring_at_depth_16_is_not_starved() {
    on_file(common::on_ring, 16);
}

#[cfg(feature = "tokio-uring")]
#[test]
fn thread_at_depth_1_is_not_starved() {
    on_file(common::on_thread, 1);
}

#[cfg(feature = "tokio-uring")]
#[test]
fn thread_at_depth_16_is_not_starved() {
    on_file(common::on_thread, 16);
}

#[test]
fn device_that_completes_at_once_does_not_starve_other_tasks() {
    common::run(async { writes_complete_beside_busy_tasks(&common::in_memory(), 1).await });
}
