//! The fault injector: what breaks in the safety phase, within a budget.

use crate::network::{EndState, NodeIndex};
use crate::node::DiskFaults;
use crate::queue::{MILLISECOND, SECOND};
use crate::world::{Occurrence, World};

/// What may break; the settings hold a weight for each.
pub const FAULTS: &[&str] = &[
    "power loss of one node",
    "process killed",
    "power loss of all nodes",
    "partition",
    "one-way partition",
    "connection dies",
    "power loss of the Primary behind a partition",
    "read errors",
    "write errors",
    "metadata errors",
    "slow disk",
    "full disk",
];

impl World {
    /// Schedules the injector.
    pub fn begin_faults(&mut self) {
        self.schedule(self.settings.faults.interval.0, Occurrence::Fault);
    }

    /// The injector's next step.
    pub(crate) fn fault_step(&mut self) {
        if self.fault_budget == 0 {
            return;
        }
        let (least, most) = self.settings.faults.interval;
        let delay = self.random.delay(least, most);
        self.schedule(delay, Occurrence::Fault);
        if !self.manager.began() && self.random.chance(700) {
            return;
        }
        if self
            .settings
            .faults
            .weights
            .iter()
            .all(|&weight| weight == 0)
        {
            return;
        }
        self.fault_budget -= 1;
        let kind = self.random.weighted(&self.settings.faults.weights.clone());
        let node = self.random.below(self.settings.nodes as u64) as NodeIndex;
        self.trace
            .line(self.now, || format!("FAULT: {}", FAULTS[kind]));
        match kind {
            0 => self.crash_and_return(node, true),
            1 => self.crash_and_return(node, false),
            2 => (0..self.settings.nodes).for_each(|node| self.crash_and_return(node, true)),
            3 => self.partition(true),
            4 => self.partition(false),
            5 => {
                let live: Vec<usize> = (self.live.iter().copied())
                    .filter(|&connection| {
                        let connection = &self.connections[connection];
                        !connection.dead
                            && connection.ends.iter().any(|end| end.state == EndState::Up)
                    })
                    .collect();
                if !live.is_empty() {
                    let connection = *self.random.pick(&live);
                    self.kill_connection(connection);
                }
            }
            6 => {
                self.partition(true);
                if let Some(primary) =
                    (0..self.settings.nodes).find(|&node| self.nodes[node].is_primary())
                {
                    self.crash_and_return(primary, true);
                }
            }
            _ => self.disk_fault(kind, node),
        }
    }

    fn crash_and_return(&mut self, node: NodeIndex, power: bool) {
        if self.violation.is_none() {
            self.crash(node, power);
            self.start_later(node);
        }
    }

    fn partition(&mut self, both_ways: bool) {
        let link = self.random.below(self.links.len() as u64) as usize;
        let side = self.random.below(2) as usize;
        let heal_after = self.random.delay(5 * MILLISECOND, 4 * SECOND);
        self.block(link, side, Some(heal_after));
        if both_ways {
            let heal_after = self.random.delay(5 * MILLISECOND, 4 * SECOND);
            self.block(link, 1 - side, Some(heal_after));
        }
    }

    fn disk_fault(&mut self, kind: usize, node: NodeIndex) {
        let volume = self.random.below(self.settings.volumes.len() as u64) as usize;
        let until = self.now + self.random.delay(5 * MILLISECOND, SECOND);
        let chance = *self.random.pick(&[50, 300, 1000]);
        let faults: &mut DiskFaults = &mut self.nodes[node].volumes[volume].faults;
        match kind {
            7 => faults.read_errors = (until, chance),
            8 => faults.write_errors = (until, chance),
            9 => faults.metadata_errors = (until, chance),
            10 => faults.slow = until,
            _ => faults.full = until,
        }
    }
}
