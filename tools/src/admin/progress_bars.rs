//! Progress on a terminal: one bar per volume and peer. Elsewhere a plain line whenever a whole percent, the phase or ten
//! seconds have passed.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use qrbd_control::Progress;

use crate::show::progress::{line, object, percent};

const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// The bars, or the memory of the lines printed.
pub(super) struct Bars {
    screen: Option<MultiProgress>,
    bars: HashMap<String, ProgressBar>,
    printed: HashMap<String, (String, u64, Instant)>,
}

impl Bars {
    /// For stderr, so that stdout stays what scripts read.
    pub(super) fn new() -> Bars {
        let screen = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Bars {
            screen,
            bars: HashMap::new(),
            printed: HashMap::new(),
        }
    }

    /// Shows what runs now; what is not among `steps` is taken away.
    pub(super) fn update<'a>(&mut self, steps: impl IntoIterator<Item = &'a Progress>) {
        let steps: Vec<&Progress> = steps.into_iter().collect();
        match &self.screen {
            Some(screen) => {
                self.bars.retain(|key, bar| {
                    let runs = steps.iter().any(|step| object(step) == *key);
                    if !runs {
                        bar.finish_and_clear();
                    }
                    runs
                });
                for step in steps {
                    let bar = self
                        .bars
                        .entry(object(step))
                        .or_insert_with(|| screen.add(ProgressBar::new(10_000)));
                    bar.set_style(style(step.total_kib > 0));
                    bar.set_position((percent(step) * 100.0) as u64);
                    bar.set_message(line(step));
                }
            }
            None => {
                for step in steps {
                    self.print(step);
                }
            }
        }
    }

    /// Takes everything off the screen.
    pub(super) fn clear(&mut self) {
        for (_, bar) in self.bars.drain() {
            bar.finish_and_clear();
        }
    }

    fn print(&mut self, step: &Progress) {
        let whole = percent(step) as u64;
        let known = self.printed.get(&object(step));
        let same = known.is_some_and(|(phase, percent, when)| {
            *phase == step.phase && *percent == whole && when.elapsed() < PLAIN_INTERVAL
        });
        if !same {
            complain!("{}", line(step));
            self.printed
                .insert(object(step), (step.phase.clone(), whole, Instant::now()));
        }
    }
}

fn style(with_bar: bool) -> ProgressStyle {
    let template = if with_bar {
        "[{bar:30}] {msg}"
    } else {
        "{msg}"
    };
    ProgressStyle::with_template(template)
        .expect("the template is constant and right")
        .progress_chars("=> ")
}
