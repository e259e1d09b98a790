//! Drives an NBD export with self-describing writes and notes each one that is acknowledged.
//!
//! Invariants: a block has at most one write in flight, and a block whose last write was never answered is not written
//! again by this journal, so that "the newest acknowledged generation" is well defined at any moment; the journal knows a
//! write before its first byte leaves; the flush that follows every `flush_every` writes runs beside them.
//!
//! A read back (`read_percent`) is judged by the same rule as `verify`, at the moment of its reply.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use qrbd_nbd::client::{Reply, Sender};
use qrbd_nbd::{Client, ClientError, Cookie};

use super::block::{self, Random};
use super::journal::Journal;
use super::verify::{Tolerance, Violation, judge};

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests in flight.
    pub depth: usize,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Stop after this many acknowledged writes.
    pub writes: Option<u64>,
    /// A flush after this many issued writes.
    pub flush_every: Option<u64>,
    /// Every write with FUA.
    pub fua: bool,
    /// Share of requests that read a block back, percent.
    pub read_percent: u8,
    /// Longest silence of the server that is borne while requests are in flight.
    pub silence: Option<Duration>,
    /// Seed of the order of blocks.
    pub order_seed: u64,
}

/// Why the load ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The time or number of writes asked for is reached.
    Finished,
    /// The connection is gone: the text says how.
    Disconnected(String),
    /// The server did not answer for too long.
    Silent,
    /// The server refused a request.
    Failed(String),
    /// A block read back broke the promise.
    Violated {
        /// Block number.
        block: u64,
        /// What is wrong.
        violation: Violation,
    },
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Why it ended.
    pub end: End,
    /// Writes sent.
    pub issued: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Blocks read back and found right.
    pub reads: u64,
    /// Flushes acknowledged.
    pub flushes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Latency of acknowledged writes.
    pub latency: Latencies,
}

/// Latencies in buckets of a power of two of microseconds, and the longest.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    buckets: [u64; 32],
    count: u64,
    /// The longest.
    pub longest: Duration,
}

impl Latencies {
    fn note(&mut self, latency: Duration) {
        let micros = latency.as_micros().clamp(1, u128::from(u64::MAX)) as u64;
        let bucket = (micros.ilog2() as usize).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
        self.count += 1;
        self.longest = self.longest.max(latency);
    }

    /// Upper bound of the latency of `percent` of the requests, exact to a factor of two; zero without requests.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        let wanted = (self.count as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return Duration::from_micros(2 << bucket).min(self.longest);
            }
        }
        Duration::ZERO
    }
}

enum Pending {
    Write {
        block: u64,
        generation: u64,
        sent: Instant,
    },
    Read {
        block: u64,
    },
    Flush,
}

struct Load<'a> {
    options: &'a Options,
    journal: &'a mut Journal,
    sender: Sender<UnixStream>,
    random: Random,
    next_cookie: u64,
    pending: HashMap<Cookie, Pending>,
    /// Blocks with a write in flight, now or for ever (see the invariants).
    taken: HashSet<u64>,
    buffer: Vec<u8>,
    summary: Summary,
    since_flush: u64,
}

/// Loads `client` until the options say stop, the connection ends or something goes wrong.
///
/// # Errors
/// The journal cannot be written, or does not fit the export. What the server does is told by [`Summary::end`].
pub fn generate(
    client: Client<UnixStream>,
    journal: &mut Journal,
    options: &Options,
    mut progress: impl FnMut(&Summary),
) -> anyhow::Result<Summary> {
    let run = journal.history.run;
    ensure!(
        client.size() == run.export_bytes,
        "the export has {} bytes, the journal says {}",
        client.size(),
        run.export_bytes
    );
    ensure!(
        run.blocks() > 0,
        "the export is smaller than a block of {} bytes",
        run.block_bytes
    );
    let stream = client
        .stream()
        .try_clone()
        .context("cannot duplicate the socket")?;
    let closing = stream.try_clone().context("cannot duplicate the socket")?;
    // A server that stops reading is as silent as one that stops answering.
    stream
        .set_write_timeout(options.silence)
        .context("cannot limit the time of a send")?;
    let (sender, mut receiver) = client.split(stream);
    let (reply_sender, replies) = mpsc::channel::<Result<Reply, ClientError>>();
    let reader = std::thread::spawn(move || {
        loop {
            let reply = receiver.receive_reply();
            let last = reply.is_err();
            if reply_sender.send(reply).is_err() || last {
                return;
            }
        }
    });
    let taken: HashSet<u64> = journal
        .history
        .blocks
        .iter()
        .filter(|(_, known)| !known.issued.is_empty())
        .map(|(&block, _)| block)
        .collect();
    let mut load = Load {
        options,
        journal,
        sender,
        random: Random::new(options.order_seed),
        next_cookie: 1,
        pending: HashMap::new(),
        taken,
        buffer: vec![0; run.block_bytes as usize],
        summary: Summary {
            end: End::Finished,
            issued: 0,
            acknowledged: 0,
            reads: 0,
            flushes: 0,
            elapsed: Duration::ZERO,
            latency: Latencies::default(),
        },
        since_flush: 0,
    };
    let end = load.run(&replies, &mut progress)?;
    load.summary.end = end;
    let Load {
        sender, summary, ..
    } = load;
    // What fails here has been told by `end` already.
    let _ = sender.disconnect();
    let _ = closing.shutdown(std::net::Shutdown::Both);
    let _ = reader.join();
    Ok(summary)
}

impl Load<'_> {
    fn run(
        &mut self,
        replies: &mpsc::Receiver<Result<Reply, ClientError>>,
        progress: &mut impl FnMut(&Summary),
    ) -> anyhow::Result<End> {
        let start = Instant::now();
        let mut told = start;
        loop {
            self.summary.elapsed = start.elapsed();
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                progress(&self.summary);
            }
            let stop = self.stop();
            if stop && self.pending.is_empty() {
                return Ok(End::Finished);
            }
            while !stop && self.pending.len() < self.options.depth {
                if let Err(error) = self.send()? {
                    // Replies that arrived before the connection broke still count.
                    while let Ok(Ok(reply)) = replies.recv_timeout(Duration::from_secs(1)) {
                        if let Some(end) = self.receive(reply)? {
                            return Ok(end);
                        }
                    }
                    return Ok(match error {
                        ClientError::Io(error) if error.kind() == ErrorKind::WouldBlock => {
                            End::Silent
                        }
                        error => End::Disconnected(error.to_string()),
                    });
                }
                if self.stop() {
                    break;
                }
            }
            if self.pending.is_empty() {
                continue;
            }
            let silence = self
                .options
                .silence
                .unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
            match replies.recv_timeout(silence) {
                Ok(Ok(reply)) => {
                    if let Some(end) = self.receive(reply)? {
                        return Ok(end);
                    }
                }
                Ok(Err(error)) => return Ok(End::Disconnected(error.to_string())),
                Err(RecvTimeoutError::Timeout) => return Ok(End::Silent),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(End::Disconnected("the reader ended".to_owned()));
                }
            }
        }
    }

    fn stop(&self) -> bool {
        self.options
            .duration
            .is_some_and(|duration| self.summary.elapsed >= duration)
            || self
                .options
                .writes
                .is_some_and(|writes| self.summary.issued >= writes)
    }

    fn cookie(&mut self) -> Cookie {
        self.next_cookie += 1;
        Cookie(self.next_cookie)
    }

    /// A block without a write in flight, if one turns up soon.
    fn free_block(&mut self) -> Option<u64> {
        let blocks = self.journal.history.run.blocks();
        (0..64)
            .map(|_| self.random.below(blocks))
            .find(|block| !self.taken.contains(block))
    }

    fn send(&mut self) -> anyhow::Result<Result<(), ClientError>> {
        let run = self.journal.history.run;
        if self
            .options
            .flush_every
            .is_some_and(|every| self.since_flush >= every)
        {
            self.since_flush = 0;
            let cookie = self.cookie();
            self.pending.insert(cookie, Pending::Flush);
            return Ok(self.sender.send_flush(cookie));
        }
        let Some(block) = self.free_block() else {
            ensure!(
                !self.pending.is_empty(),
                "no block is left to write: {} of {} have writes that were never answered",
                self.taken.len(),
                run.blocks()
            );
            // All blocks drawn are in flight: a flush keeps the window moving.
            let cookie = self.cookie();
            self.pending.insert(cookie, Pending::Flush);
            return Ok(self.sender.send_flush(cookie));
        };
        let offset = block * u64::from(run.block_bytes);
        if self.random.below(100) < u64::from(self.options.read_percent) {
            let cookie = self.cookie();
            self.taken.insert(block);
            self.pending.insert(cookie, Pending::Read { block });
            return Ok(self.sender.send_read(cookie, offset, run.block_bytes));
        }
        let generation = self.journal.history.newest + 1;
        self.journal.issue(block, generation)?;
        self.taken.insert(block);
        block::fill(&mut self.buffer, run.seed, block, generation);
        let cookie = self.cookie();
        self.pending.insert(
            cookie,
            Pending::Write {
                block,
                generation,
                sent: Instant::now(),
            },
        );
        self.summary.issued += 1;
        self.since_flush += 1;
        Ok(self
            .sender
            .send_write(cookie, offset, &self.buffer, self.options.fua))
    }

    fn receive(&mut self, reply: Reply) -> anyhow::Result<Option<End>> {
        let pending = self
            .pending
            .remove(&reply.cookie)
            .context("a reply to a request that was not sent")?;
        if let Err(error) = reply.result {
            let what = match pending {
                Pending::Write { block, .. } => format!("write of block {block}"),
                Pending::Read { block } => format!("read of block {block}"),
                Pending::Flush => "flush".to_owned(),
            };
            return Ok(Some(End::Failed(format!("{what}: {error}"))));
        }
        match pending {
            Pending::Write {
                block,
                generation,
                sent,
            } => {
                self.journal.acknowledge(block, generation)?;
                self.taken.remove(&block);
                self.summary.acknowledged += 1;
                self.summary.latency.note(sent.elapsed());
            }
            Pending::Read { block } => {
                self.taken.remove(&block);
                let content = block::inspect(&reply.data, self.journal.history.run.seed, block);
                let tolerance = Tolerance {
                    foreign_content: true,
                    ..Tolerance::default()
                };
                if let Some(violation) = judge(&self.journal.history, block, &content, tolerance) {
                    return Ok(Some(End::Violated { block, violation }));
                }
                self.summary.reads += 1;
            }
            Pending::Flush => self.summary.flushes += 1,
        }
        Ok(None)
    }
}
