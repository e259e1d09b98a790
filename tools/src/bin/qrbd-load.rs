//! `qrbd-load`: writes to an NBD export, remembers what was acknowledged, and proves later that it is there.
//!
//! Owns the command line and the exit codes: 0 right, 1 a promise is broken or areas differ, 2 usage, 20 anything else.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use qrbd_tools::load::compare::{REPORTED_RANGES, compare};
use qrbd_tools::load::generate::{End, Options, Summary, generate};
use qrbd_tools::load::journal::{self, Journal, Run};
use qrbd_tools::load::source::{ExportSource, FileSource, Source, connect, file_bytes};
use qrbd_tools::load::verify::{Tolerance, verify};
use qrbd_tools::{complain, say};

/// Load generator that remembers what was acknowledged.
#[derive(Debug, Parser)]
#[command(name = "qrbd-load", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write blocks at random places of an export and append each acknowledged write to the journal.
    Run(RunArguments),
    /// Prove that every write of the journal that was acknowledged is there.
    Verify(VerifyArguments),
    /// Compare the first bytes of two files or devices and print the ranges that differ.
    Compare(CompareArguments),
}

#[derive(Debug, Args)]
struct ExportArguments {
    /// Unix socket of the NBD server.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Export name.
    #[arg(long, default_value = "")]
    export: String,
}

#[derive(Debug, Args)]
struct RunArguments {
    #[command(flatten)]
    export: ExportArguments,
    /// File that remembers; an existing one is continued.
    #[arg(long, value_name = "FILE")]
    journal: PathBuf,
    /// Seed of content and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes of a block.
    #[arg(long, default_value_t = 4096, value_parser = block_bytes)]
    block_size: u32,
    /// Requests in flight.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Stop after this many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// Stop after this many writes.
    #[arg(long, value_name = "N")]
    writes: Option<u64>,
    /// Flush after every N writes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    flush_every: Option<u64>,
    /// Send every write with FUA.
    #[arg(long)]
    fua: bool,
    /// Percentage of requests that read a block back and check it.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=99))]
    read_percent: u8,
    /// Fail if the server answers nothing for this many seconds.
    #[arg(long, value_name = "SECONDS")]
    max_silence: Option<f64>,
    /// Go on until the server is gone; that is success then.
    #[arg(long)]
    until_disconnect: bool,
    /// No progress lines.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct VerifyArguments {
    /// Journal of the run.
    #[arg(long, value_name = "FILE")]
    journal: PathBuf,
    /// Unix socket of the NBD server.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    socket: Option<PathBuf>,
    /// Export name.
    #[arg(long, default_value = "", conflicts_with = "file")]
    export: String,
    /// Read this file or device instead of an export.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Tolerate blocks torn within a write that was not acknowledged (after a power loss).
    #[arg(long)]
    allow_torn: bool,
    /// Tolerate any content in blocks that were never written.
    #[arg(long)]
    allow_foreign: bool,
}

#[derive(Debug, Args)]
struct CompareArguments {
    /// First file or device.
    left: PathBuf,
    /// Second file or device.
    right: PathBuf,
    /// Bytes to compare from the start; the size of the smaller one if not given.
    #[arg(long, value_name = "N")]
    bytes: Option<u64>,
}

fn block_bytes(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(bytes) if (512..=1 << 20).contains(&bytes) && u32::is_multiple_of(bytes, 512) => {
            Ok(bytes)
        }
        _ => Err("a multiple of 512 within 512..=1048576".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Run(arguments) => run(arguments),
        Command::Verify(arguments) => run_verify(arguments),
        Command::Compare(arguments) => run_compare(arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            complain!("qrbd-load: {error:#}");
            ExitCode::from(20)
        }
    }
}

fn seconds(value: Option<f64>) -> anyhow::Result<Option<Duration>> {
    value
        .map(Duration::try_from_secs_f64)
        .transpose()
        .context("a time must be a positive number of seconds")
}

fn run(arguments: &RunArguments) -> anyhow::Result<bool> {
    ensure!(
        arguments.until_disconnect || arguments.seconds.is_some() || arguments.writes.is_some(),
        "say when to stop: --seconds, --writes or --until-disconnect"
    );
    let options = Options {
        depth: usize::from(arguments.depth),
        duration: seconds(arguments.seconds)?,
        writes: arguments.writes,
        flush_every: arguments.flush_every,
        fua: arguments.fua,
        read_percent: arguments.read_percent,
        silence: seconds(arguments.max_silence)?,
        order_seed: 0,
    };
    let client = connect(&arguments.export.socket, &arguments.export.export)?;
    let run = Run {
        seed: arguments.seed,
        block_bytes: arguments.block_size,
        export_bytes: client.size(),
    };
    let mut journal = Journal::open(&arguments.journal, run)?;
    // A continued run must not repeat the order of the one before.
    let options = Options {
        order_seed: arguments.seed ^ journal.history.newest.rotate_left(32),
        ..options
    };
    let summary = generate(client, &mut journal, &options, |summary| {
        if !arguments.quiet {
            say!(
                "{:.0} s: {} writes issued, {} acknowledged, longest {:.1} ms",
                summary.elapsed.as_secs_f64(),
                summary.issued,
                summary.acknowledged,
                milliseconds(summary.latency.longest)
            );
        }
    })?;
    print_summary(&summary, arguments.block_size);
    Ok(match summary.end {
        End::Finished => true,
        End::Disconnected(_) => arguments.until_disconnect,
        End::Silent | End::Failed(_) | End::Violated { .. } => false,
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn print_summary(summary: &Summary, block_bytes: u32) {
    let seconds = summary.elapsed.as_secs_f64().max(1e-9);
    let mebibytes = summary.acknowledged as f64 * f64::from(block_bytes) / f64::from(1 << 20);
    say!(
        "writes issued {}, acknowledged {}, unanswered {}; reads checked {}; flushes {}",
        summary.issued,
        summary.acknowledged,
        summary.issued - summary.acknowledged,
        summary.reads,
        summary.flushes
    );
    say!(
        "{:.1} s, {:.0} writes/s, {:.1} MiB/s; latency ms: half below {:.3}, 99 % below {:.3}, longest {:.3}",
        summary.elapsed.as_secs_f64(),
        summary.acknowledged as f64 / seconds,
        mebibytes / seconds,
        milliseconds(summary.latency.percentile(50.0)),
        milliseconds(summary.latency.percentile(99.0)),
        milliseconds(summary.latency.longest)
    );
    match &summary.end {
        End::Finished => say!("end: finished"),
        End::Disconnected(how) => say!("end: server disconnected ({how})"),
        End::Silent => say!("end: the server answers nothing"),
        End::Failed(what) => say!("end: request failed: {what}"),
        End::Violated { block, violation } => say!("end: block {block}: {violation}"),
    }
}

fn run_verify(arguments: &VerifyArguments) -> anyhow::Result<bool> {
    let history = journal::read(&arguments.journal)?;
    let mut source: Box<dyn Source> = match (&arguments.file, &arguments.socket) {
        (Some(path), _) => Box::new(FileSource::open(path)?),
        (None, Some(socket)) => Box::new(ExportSource::connect(socket, &arguments.export)?),
        (None, None) => unreachable!("the command line demands one of them"),
    };
    let tolerance = Tolerance {
        torn_unacknowledged: arguments.allow_torn,
        foreign_content: arguments.allow_foreign,
    };
    let report = verify(source.as_mut(), &history, tolerance, |_| {})?;
    for (block, violation) in &report.first {
        say!(
            "block {block} (byte {}): {violation}",
            block * u64::from(history.run.block_bytes)
        );
    }
    if report.violations > report.first.len() as u64 {
        say!(
            "... and {} more",
            report.violations - report.first.len() as u64
        );
    }
    say!(
        "blocks {}, with acknowledged writes {}, acknowledged writes {}, holding a newer unacknowledged write {}, violations {}",
        report.blocks,
        report.acknowledged,
        history.acknowledged,
        report.newer,
        report.violations
    );
    Ok(report.violations == 0)
}

fn run_compare(arguments: &CompareArguments) -> anyhow::Result<bool> {
    let open = |path: &PathBuf| -> anyhow::Result<(File, u64)> {
        let mut file =
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let bytes = file_bytes(&mut file)
            .with_context(|| format!("cannot tell the size of {}", path.display()))?;
        Ok((file, bytes))
    };
    let (left, left_bytes) = open(&arguments.left)?;
    let (right, right_bytes) = open(&arguments.right)?;
    let smaller = left_bytes.min(right_bytes);
    let bytes = arguments.bytes.unwrap_or(smaller);
    ensure!(
        bytes <= smaller,
        "asked for {bytes} bytes, the smaller one has {smaller}"
    );
    let differences = compare(&left, &right, bytes).context("cannot read")?;
    for range in &differences.ranges {
        say!(
            "differ: {}..{} ({} bytes)",
            range.start,
            range.end,
            range.end - range.start
        );
    }
    if differences.range_count > REPORTED_RANGES as u64 {
        say!(
            "... and {} more ranges",
            differences.range_count - REPORTED_RANGES as u64
        );
    }
    say!(
        "compared {bytes} bytes: {} differ in {} ranges",
        differences.bytes,
        differences.range_count
    );
    Ok(differences.bytes == 0)
}
