//! G4 and C3: who becomes Primary, and with which data.
//!
//! Without force only UpToDate data are promoted, and one Primary exists among connected nodes. What a promoted node holds is measured by
//! the oracle: after the loss of one node with C everything completed, after power losses everything flushed, with A and B a state that
//! the Primary passed through.

use qrbd_engine::state::{DiskState, Role};
use qrbd_engine::wire::message::Protocol;

use crate::disk::View;
use crate::network::NodeIndex;
use crate::node::Loss;
use crate::oracle::Standard;
use crate::stamps::Sector;
use crate::world::{OpenCommand, World};

impl World {
    /// Two nodes that see each other are not both Primary.
    pub(crate) fn check_one_primary(&mut self, node: NodeIndex) {
        if !self.nodes[node].is_primary() {
            return;
        }
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            if self.nodes[peer].is_primary()
                && self.nodes[node].connected(peer)
                && self.nodes[peer].connected(node)
            {
                self.fail(
                    "primary",
                    format!("n{node} and n{peer} are connected and both Primary"),
                );
            }
        }
    }

    /// A promotion succeeded.
    pub(crate) fn promoted(&mut self, node: NodeIndex, forced: bool, command: &OpenCommand) {
        self.figures.promotions += 1;
        self.era += 1;
        let Some(view) = self.nodes[node].live_view().cloned() else {
            return;
        };
        // A command that waited while another one made the node Primary promotes nothing; one that waited for a demotion does.
        let all_along = command.view_before.role == Role::Primary
            && self.nodes[node].primary_since <= command.began;
        let again = all_along || self.manager.speaks == Some(node);
        if again {
            return;
        }
        self.checked("primary");
        if view.role != Role::Primary {
            return self.fail(
                "primary",
                format!(
                    "n{node}: promotion succeeded, but the role is {}",
                    view.role
                ),
            );
        }
        for volume in 0..self.settings.volumes.len() {
            let here = view.volumes[volume].disk == DiskState::UpToDate;
            let before = command.view_before.volumes[volume].disk;
            let source = if here {
                Some(node)
            } else {
                (0..self.settings.nodes).find(|&peer| {
                    peer != node
                        && view.connected(peer)
                        && view.peer_disk(peer, volume) == DiskState::UpToDate
                })
            };
            if !forced && source.is_none() {
                return self.fail(
                    "primary",
                    format!("n{node} v{volume} was promoted without UpToDate data within reach"),
                );
            }
            let connected = (0..self.settings.nodes).any(|peer| {
                peer != node && (view.connected(peer) || command.view_before.connected(peer))
            });
            if !forced
                && here
                && !connected
                && matches!(before, DiskState::Inconsistent | DiskState::Outdated)
            {
                return self.fail(
                    "primary",
                    format!("n{node} v{volume} was promoted from {before} without force"),
                );
            }
            if let Some(source) = source {
                self.measure(node, source, volume, forced);
            }
        }
        self.manager_promoted(node);
    }

    /// Measures the data that a new Primary offers, and makes them the truth.
    fn measure(&mut self, node: NodeIndex, source: NodeIndex, volume: usize, forced: bool) {
        let holder = self.manager.holder;
        let (loss, branch) = (
            self.nodes[source].volumes[volume].loss,
            self.nodes[source].volumes[volume].branch,
        );
        let same_as_holder = holder == Some(source);
        // A reckless manager promotes beside a Primary that goes on alone, without its word on what it has completed since.
        let beside = self.settings.reckless
            && (0..self.settings.nodes).any(|other| {
                other != source
                    && self.nodes[other].is_primary()
                    && !self.nodes[source].connected(other)
            });
        let standard = if forced || beside || !self.nodes[source].volumes[volume].current {
            Standard::Any
        } else if loss == Loss::Nothing
            && (self.settings.protocol != Protocol::A || self.manager.graceful[volume])
        {
            Standard::Live
        } else if self.settings.protocol == Protocol::C
            || same_as_holder
            || loss == Loss::PrimaryPower
        {
            if loss >= Loss::Power {
                Standard::Flushed
            } else {
                Standard::Live
            }
        } else {
            Standard::Any
        };
        let now = self.tick_moment();
        let image: Vec<(Sector, Vec<u64>)> = self.branches[branch]
            .entries
            .keys()
            .map(|&sector| {
                let disk = &self.nodes[source].volumes[volume].disk;
                let mut stamps = vec![disk.sector(sector, View::Cached)];
                stamps.extend(disk.in_flight_stamps(sector));
                (sector, stamps)
            })
            .collect();
        for (sector, stamps) in &image {
            for &stamp in stamps {
                if !self.branches[branch].allows(*sector, stamp, standard, now) {
                    let allowed = self.branches[branch].allowed(*sector, standard, now);
                    let allowed: Vec<String> =
                        allowed.into_iter().map(|stamp| self.name(stamp)).collect();
                    let text = format!(
                        "n{node} v{volume} became Primary with {} in sector {sector}; measured by {standard:?} allowed: {}",
                        self.name(stamp),
                        allowed.join(", ")
                    );
                    return self.fail("primary", text);
                }
            }
        }
        if standard == Standard::Any
            && !forced
            && self.nodes[source].volumes[volume].current
            && !same_as_holder
        {
            self.check_order(source, volume, "became Primary");
        }
        // Apart from the others, the node goes its own way from here.
        let shared = (0..self.settings.nodes).any(|other| {
            let without = (self.nodes[source].live_view())
                .is_some_and(|view| view.peer_disk(other, volume) == DiskState::Diskless);
            // A disk that its node has put away keeps what it holds.
            let apart = !self.nodes[source].connected(other) || without && other != node;
            other != source && self.nodes[other].volumes[volume].branch == branch && apart
        });
        // So do the peer's data from the disk of a node that works on them without its own.
        let own = &self.nodes[node].volumes[volume];
        let shared = shared || source != node && own.disk_branch.unwrap_or(own.branch) == branch;
        let branch = if shared {
            let mut fork = self.branches[branch].clone();
            fork.own_writes = 0;
            self.branches.push(fork);
            self.branches.len() - 1
        } else {
            branch
        };
        self.trace.line(self.now, || {
            format!("n{node} v{volume} is measured by {standard:?}; branch {branch}")
        });
        if source != node {
            let state = &mut self.nodes[node].volumes[volume];
            state.disk_branch = state.disk_branch.or(Some(state.branch));
        }
        self.nodes[source].volumes[volume].branch = branch;
        self.nodes[node].volumes[volume].branch = branch;
        for (sector, stamps) in image {
            if stamps.iter().all(|&stamp| stamp == stamps[0]) {
                self.branches[branch].fix(sector, stamps[0], now);
            }
        }
        if standard == Standard::Any && !same_as_holder {
            self.branches[branch].forget_durability();
        }
    }
}
