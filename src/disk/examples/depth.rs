//! Prints 4 KiB random-write IOPS and latency of the ring backend at depth 1 and 16, idle and beside a task that is always ready.
//!
//! Usage: `cargo run --release -p qrbd-disk --example depth -- FILE [MEBIBYTES] [SECONDS]`. FILE is created if it is missing and
//! overwritten; a device is overwritten as well.

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};

use qrbd_disk::{
    BlockDevice, Completion, OpenOptions, Operation, Pool, Reactor, ReactorExt, UringOptions,
    UringReactor,
};

const BLOCK_BYTES: u64 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("usage: depth FILE [MEBIBYTES] [SECONDS]")?;
    let size = arguments
        .next()
        .map_or(Ok(256), |text| text.parse::<u64>())?
        << 20;
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse::<u64>())?;
    if !std::path::Path::new(&path).exists() {
        std::fs::File::create(&path)?.set_len(size)?;
    }
    let disk = qrbd_disk::open(&path, OpenOptions::default())?;
    println!("{:?}", disk.info());
    for notice in disk.notices() {
        println!("notice: {notice}");
    }
    let blocks = disk.info().size / BLOCK_BYTES;
    let chunk = vec![0x5a; 1 << 20];
    for offset in (0..disk.info().size).step_by(chunk.len()) {
        let length = (disk.info().size - offset).min(chunk.len() as u64) as usize;
        disk.write_all_at(offset, &chunk[..length])?;
    }
    disk.sync()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let reactor = UringReactor::new(UringOptions::default(), Pool::default())?;
        let device = reactor.attach(disk);
        let stop = Rc::new(Cell::new(false));
        for busy in [false, true] {
            if busy {
                let stop = Rc::clone(&stop);
                tokio::task::spawn_local(async move {
                    while !stop.get() {
                        tokio::task::yield_now().await;
                    }
                });
            }
            for depth in [1, 16] {
                measure(
                    &reactor,
                    &device,
                    blocks,
                    depth,
                    Duration::from_secs(seconds),
                    busy,
                )
                .await?;
            }
        }
        stop.set(true);
        println!("{:?}", reactor.statistics());
        Ok(())
    })
}

async fn measure(
    reactor: &UringReactor,
    device: &impl BlockDevice,
    blocks: u64,
    depth: usize,
    span: Duration,
    busy: bool,
) -> Result<(), Box<dyn Error>> {
    let payload = reactor.pool().copy_from(&[0xa5; BLOCK_BYTES as usize]);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut started = vec![Instant::now(); depth];
    let mut latencies: Vec<u32> = Vec::new();
    let mut submit = |token: usize, started: &mut Vec<Instant>| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        started[token] = Instant::now();
        let offset = state % blocks * BLOCK_BYTES;
        device.submit(
            token as u64,
            Operation::Write {
                offset,
                payload: payload.clone(),
                durable: false,
            },
        )
    };
    let enters = reactor.statistics().enters;
    let begin = Instant::now();
    for token in 0..depth {
        submit(token, &mut started)?;
    }
    let mut completions: Vec<Completion> = Vec::new();
    while reactor.outstanding() > 0 {
        reactor.flush();
        reactor.completed().await;
        reactor.take_completions(&mut completions);
        for completion in completions.drain(..) {
            completion.result?;
            let token = completion.token as usize;
            latencies.push(started[token].elapsed().as_micros() as u32);
            if begin.elapsed() < span {
                submit(token, &mut started)?;
            }
        }
    }
    let count = latencies.len();
    let seconds = begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    println!(
        "{} depth {depth:2}: {:8.0} IOPS, p50 {} us, p99 {} us, max {} us, {:.2} system calls per write",
        if busy { "busy" } else { "idle" },
        count as f64 / seconds,
        latencies[count / 2],
        latencies[count * 99 / 100],
        latencies[count - 1],
        (reactor.statistics().enters - enters) as f64 / count as f64,
    );
    Ok(())
}
