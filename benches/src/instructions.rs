//! Work to count instructions of, under valgrind: `benches/instructions` calls it and holds the counts against a record.
//!
//! `qrbd-instructions CASE COUNT` prepares the case and does it COUNT times; without arguments it prints the cases, one a line:
//! name, pattern of the functions inside which instructions count, and what it is. Preparations and warm-up lie outside.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::ExitCode;

use qrbd_benches::Places;
use qrbd_benches::pair::Pair;
use qrbd_benches::parts::{Frames, LOG_SLOTS, Log, Marks, Meeting, Requests, Scan};
use qrbd_engine::wire::message::Protocol;

/// Name, pattern for `--toggle-collect`, what one of it is.
const CASES: &[(&str, &str, &str)] = &[
    (
        "write-at-primary",
        "*collected_at_primary_*",
        "a 4 KiB write under protocol C through the Primary's engine, hot extent, from the request to its completion",
    ),
    (
        "write-at-secondary",
        "*collected_at_secondary_*",
        "the same write through the Secondary's engine",
    ),
    (
        "nbd-request",
        "*collected_work*",
        "an NBD WRITE: header judged, reply made",
    ),
    (
        "frame",
        "*collected_work*",
        "the head of a write's frame: encoded, decoded",
    ),
    (
        "bitmap-set-clear",
        "*collected_work*",
        "a block of the bitmap: set, cleared",
    ),
    (
        "bitmap-scan",
        "*collected_work*",
        "the next of scattered runs in the bitmap of 1 TiB",
    ),
    (
        "activity-log-hot",
        "*collected_work*",
        "an active extent of the activity log: acquired, released",
    ),
    (
        "activity-log-cold",
        "*collected_work*",
        "an extent of many: mostly with a transaction",
    ),
    (
        "generations",
        "*collected_work*",
        "two nodes' generations compared after an outage",
    ),
];

/// Blocks of the hot extents: 1 GiB.
const HOT_BLOCKS: u64 = 1 << 18;
const WARM_UP: u64 = 2000;

/// Instructions in here count: all of the steps, and what little the loop itself needs.
#[inline(never)]
fn collected_work(count: u64, step: &mut dyn FnMut()) {
    for _ in 0..count {
        step();
    }
    // Keeps this frame on the stack until the end: a jump out of it would end the collection early.
    black_box(());
}

fn repeat(count: u64, mut step: impl FnMut()) {
    (0..WARM_UP).for_each(|_| step());
    collected_work(count, &mut step);
}

/// The same writes for both roles; the functions that count are in [`Pair`].
fn writes(count: u64) {
    let mut pair = Pair::new(8 << 30, Protocol::C, false);
    let mut places = Places::new(1);
    for _ in 0..WARM_UP {
        pair.write([places.below(HOT_BLOCKS)]);
    }
    pair.collect(true);
    for _ in 0..count {
        pair.write([places.below(HOT_BLOCKS)]);
    }
    pair.collect(false);
}

fn run(case: &str, count: u64) -> bool {
    match case {
        "write-at-primary" | "write-at-secondary" => writes(count),
        "nbd-request" => {
            let mut work = Requests::new();
            repeat(count, || work.step());
        }
        "frame" => {
            let mut work = Frames::new();
            repeat(count, || work.step());
        }
        "bitmap-set-clear" => {
            let mut work = Marks::new();
            repeat(count, || work.step());
        }
        "bitmap-scan" => {
            let mut work = Scan::new();
            repeat(count, || work.step());
        }
        "activity-log-hot" => {
            let mut work = Log::new(LOG_SLOTS);
            repeat(count, || work.step());
        }
        "activity-log-cold" => {
            let mut work = Log::new(1 << 18);
            repeat(count, || work.step());
        }
        "generations" => {
            let mut work = Meeting::new();
            repeat(count, || work.step());
        }
        _ => return false,
    }
    true
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [] => {
            for (name, pattern, what) in CASES {
                println!("{name}\t{pattern}\t{what}");
            }
            ExitCode::SUCCESS
        }
        [case, count] if count.parse().is_ok_and(|count| run(case, count)) => ExitCode::SUCCESS,
        _ => {
            eprintln!(
                "usage: qrbd-instructions [CASE COUNT]; without arguments it names the cases"
            );
            ExitCode::from(2)
        }
    }
}
