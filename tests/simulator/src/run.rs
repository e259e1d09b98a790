//! One run of a seed: a safety phase with faults, a liveness phase without, and the verdict.

use crate::checkers::Violation;
use crate::panics::while_caught;
use crate::settings::Settings;
use crate::world::{Figures, World};

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The first violation.
    pub violation: Option<Violation>,
    /// Hash of the trace.
    pub hash: u64,
    /// Figures.
    pub figures: Figures,
    /// Times each checker looked.
    pub checks: std::collections::BTreeMap<&'static str, u64>,
}

/// Runs a seed; with `print` the trace goes to standard output, with the changes of the sector `watch` of a volume.
#[must_use]
pub fn run_seed(seed: u64, print: bool, watch: Option<(usize, u64)>) -> Outcome {
    let mut world = World::new(Settings::of_seed(seed));
    world.trace.print = print;
    world.trace.watch = watch;
    if print {
        println!("{:#?}", world.settings);
    }
    if let Err(text) = while_caught(|| drive(&mut world)) {
        world.violation = Some(Violation {
            checker: "panic",
            text,
            at: world.now,
        });
    }
    Outcome {
        seed,
        violation: world.violation,
        hash: world.trace.hash(),
        figures: world.figures,
        checks: world.checks.done,
    }
}

fn drive(world: &mut World) {
    world.begin();
    world.begin_workload();
    world.begin_faults();
    let safety = world.settings.safety;
    if !world.run_until(safety) {
        return;
    }
    world.start_healing();
    world.workload.budget = world.workload.budget.min(30);
    let end = safety + world.settings.liveness;
    loop {
        if !world.run_until(world.now + 100_000) {
            return;
        }
        if world.unfinished().is_none() && world.is_serving() && world.workload.budget == 0 {
            break;
        }
        if world.now >= end {
            let what = world
                .unfinished()
                .unwrap_or_else(|| format!("no node serves: {}", world.manager_state()));
            world.fail(
                "convergence",
                format!(
                    "not at rest {} s after the faults stopped: {what}",
                    world.settings.liveness / 1_000_000
                ),
            );
            return;
        }
    }
    if let Some(node) = (0..world.settings.nodes).find(|&node| world.nodes[node].serving) {
        world.read_everything(node);
        let end = world.now + 60_000_000;
        while !world.requests.is_empty() && world.now < end {
            if !world.run_until(world.now + 50_000) {
                return;
            }
        }
        if !world.requests.is_empty() {
            let what = world.unfinished().unwrap_or_default();
            world.fail(
                "convergence",
                format!("the last reads are not answered: {what}"),
            );
        }
    }
}
