//! W6 and C4: if a write that was submitted after another one was completed is visible on a peer's disk, the other one is too.
//!
//! Looked at where it matters: on a Secondary's disk as a crash leaves it, and on a survivor that is promoted.

use qrbd_engine::state::{DiskState, Role};

use crate::disk::View;
use crate::network::NodeIndex;
use crate::node::Loss;
use crate::world::World;

impl World {
    /// After a crash of a Secondary that was in sync.
    pub(crate) fn check_order_after_crash(&mut self, node: NodeIndex) {
        let Some(view) = self.nodes[node].view.clone() else {
            return;
        };
        if view.role != Role::Secondary {
            return;
        }
        for volume in 0..self.settings.volumes.len() {
            let mirrored = (0..self.settings.nodes)
                .any(|peer| peer != node && view.in_sync_with(peer, volume));
            let same_branch = (0..self.settings.nodes).all(|peer| {
                self.nodes[peer].volumes[volume].branch == self.nodes[node].volumes[volume].branch
            });
            // After its own power loss as a Primary the data lack whatever its cache held; a promotion makes that the truth.
            let ordered = self.nodes[node].volumes[volume].loss != Loss::PrimaryPower;
            if ordered
                && mirrored
                && same_branch
                && view.volumes[volume].disk == DiskState::UpToDate
            {
                self.check_order(node, volume, "crashed");
            }
        }
    }

    /// The data on a node's disk respect the order of dependent writes.
    pub(crate) fn check_order(&mut self, node: NodeIndex, volume: usize, occasion: &str) {
        self.checked("write-order");
        let state = &self.nodes[node].volumes[volume];
        let violation = self.branches[state.branch].order_violation(&self.writes, |sector| {
            state.disk.sector(sector, View::Cached)
        });
        if let Some((sector, missing, visible)) = violation {
            let text = format!(
                "n{node} v{volume} {occasion}: w{visible} is on its disk, but w{missing}, completed before that began, is not in sector {sector}"
            );
            self.fail("write-order", text);
        }
    }
}
