//! `simulate`: runs seeds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use qrbd_engine::config::Fencing;
use qrbd_simulator::run::{Outcome, run_seed};
use qrbd_simulator::settings::Settings;

const USAGE: &str = "usage:
  simulate --seed N [--trace] [--watch VOLUME:SECTOR]
  simulate --seeds COUNT [--from N] [--minutes M] [--jobs J] [--stop-at-first] [--except SEED,..] [--figures] [--stonith]";

struct Options {
    seed: Option<u64>,
    trace: bool,
    watch: Option<(usize, u64)>,
    seeds: u64,
    from: u64,
    minutes: Option<f64>,
    jobs: usize,
    stop_at_first: bool,
    except: Vec<u64>,
    figures: bool,
    /// Only those of the seeds whose nodes fence each other by killing.
    stonith: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        seed: None,
        trace: false,
        watch: None,
        seeds: 0,
        from: 1,
        minutes: None,
        jobs: 2,
        stop_at_first: false,
        except: Vec::new(),
        figures: false,
        stonith: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
            text.parse()
                .map_err(|_| format!("'{text}' is not a number"))
        }
        match argument.as_str() {
            "--seed" => options.seed = Some(number(&value()?)?),
            "--seeds" => options.seeds = number(&value()?)?,
            "--from" => options.from = number(&value()?)?,
            "--minutes" => options.minutes = Some(number(&value()?)?),
            "--jobs" => options.jobs = number::<usize>(&value()?)?.max(1),
            "--trace" => options.trace = true,
            "--watch" => {
                let text = value()?;
                let (volume, sector) = text.split_once(':').ok_or("--watch needs VOLUME:SECTOR")?;
                options.watch = Some((number(volume)?, number(sector)?));
            }
            "--stop-at-first" => options.stop_at_first = true,
            "--except" => {
                options.except = value()?.split(',').map(number).collect::<Result<_, _>>()?;
            }
            "--figures" => options.figures = true,
            "--stonith" => options.stonith = true,
            other => return Err(format!("unknown argument '{other}'")),
        }
    }
    if options.seed.is_none() && options.seeds == 0 && options.minutes.is_none() {
        return Err("--seed, --seeds or --minutes is needed".into());
    }
    Ok(options)
}

fn report(outcome: &Outcome) -> bool {
    let Some(violation) = &outcome.violation else {
        return true;
    };
    println!(
        "seed {} FAILED [{}] at {}.{:06} s: {}",
        outcome.seed,
        violation.checker,
        violation.at / 1_000_000,
        violation.at % 1_000_000,
        violation.text
    );
    false
}

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            std::process::exit(2);
        }
    };
    qrbd_simulator::panics::keep_quiet();
    let passed = match options.seed {
        Some(seed) => one(seed, &options),
        None => many(&options),
    };
    std::process::exit(i32::from(!passed));
}

fn one(seed: u64, options: &Options) -> bool {
    let outcome = run_seed(seed, options.trace, options.watch);
    let again = run_seed(seed, false, None);
    println!("seed {seed}: {:?}", outcome.figures);
    println!("checks: {:?}; trace {:016x}", outcome.checks, outcome.hash);
    let mut passed = report(&outcome);
    if again.hash != outcome.hash {
        println!(
            "seed {seed} FAILED [determinism] a second run gave trace {:016x}",
            again.hash
        );
        passed = false;
    }
    println!(
        "{} passed, {} failed",
        u32::from(passed),
        u32::from(!passed)
    );
    passed
}

fn kills(seed: u64) -> bool {
    Settings::of_seed(seed).fencing == Fencing::ResourceAndStonith
}

fn many(options: &Options) -> bool {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let count = if options.seeds == 0 {
        u64::MAX
    } else {
        options.seeds
    };
    let deadline = options
        .minutes
        .map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    let (sender, receiver) = mpsc::channel::<(Outcome, bool)>();
    let (mut passed, mut failed) = (0u64, 0u64);
    let mut totals = std::collections::BTreeMap::<&'static str, u64>::new();
    let mut figures = qrbd_simulator::world::Figures::default();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            let sender = sender.clone();
            let (next, stop) = (&next, &stop);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                    if index >= count || late || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = options.from + index;
                    if options.except.contains(&seed) || options.stonith && !kills(seed) {
                        continue;
                    }
                    let outcome = run_seed(seed, false, None);
                    // Every hundredth seed runs twice: same seed, same trace.
                    let same = index % 100 != 0 || run_seed(seed, false, None).hash == outcome.hash;
                    if sender.send((outcome, same)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (outcome, same) in receiver {
            let mut good = report(&outcome);
            if !same {
                println!(
                    "seed {} FAILED [determinism] a second run gave another trace",
                    outcome.seed
                );
                good = false;
            }
            for (name, count) in &outcome.checks {
                *totals.entry(name).or_insert(0) += count;
            }
            figures.add(&outcome.figures);
            if good {
                passed += 1;
            } else {
                failed += 1;
                if options.stop_at_first {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
    if options.figures {
        println!("{figures:?}");
        println!("checks: {totals:?}");
    }
    println!("{passed} passed, {failed} failed");
    failed == 0
}
