//! G2: never silently different.
//!
//! Two rules over the sectors whose bytes differ between two nodes:
//! - at a quiet moment, connected and both UpToDate: none outside the bits;
//! - when neither side counts on the connection (loss noticed, or crashed): each lies in the bits of a side, or, for a side that is
//!   down, in the bits or the activity log on its disk, or in a write that no client was told of yet.

use std::rc::Rc;

use qrbd_engine::state::DiskState;

use crate::disk::View;
use crate::engine_view::{Bits, Knowledge, bits};
use crate::network::{EndState, NodeIndex};
use crate::stamps::{Sector, sectors};
use crate::world::{RequestKind, World};

/// What one side knows of the differences to another.
#[derive(Debug)]
enum Side {
    Metadata(Rc<Knowledge>),
    Memory(Bits),
    /// The disk is being given up: whoever attaches it again knows what is on it.
    Leaving(Bits, Rc<Knowledge>),
}

impl World {
    fn side(&self, node: NodeIndex, peer: NodeIndex, volume: usize) -> Option<Side> {
        let process = self.nodes[node].process.as_ref();
        let Some(bits) = process.and_then(|process| bits(process, volume, peer)) else {
            return Some(Side::Metadata(self.knowledge(
                node,
                volume,
                View::Cached,
            )?));
        };
        let disk = process.map(|process| process.view.volumes[volume].disk);
        if matches!(disk, Some(DiskState::Failed | DiskState::Detaching)) {
            return Some(Side::Leaving(
                bits,
                self.knowledge(node, volume, View::Cached)?,
            ));
        }
        Some(Side::Memory(bits))
    }

    fn knows(side: &Side, peer: NodeIndex, sector: Sector) -> bool {
        match side {
            Side::Metadata(knowledge) => knowledge.marked(peer, sector) || knowledge.logged(sector),
            Side::Memory(bits) => bits.marks(sector),
            Side::Leaving(bits, knowledge) => {
                bits.marks(sector) || knowledge.marked(peer, sector) || knowledge.logged(sector)
            }
        }
    }

    /// True if a full sync between the two is due whatever the bits say, or they have nothing in common, according to what is
    /// on their disks.
    pub(crate) fn full_sync_due(&self, node: NodeIndex, peer: NodeIndex, volume: usize) -> bool {
        let (Some(mine), Some(theirs)) = (
            self.knowledge(node, volume, View::Cached),
            self.knowledge(peer, volume, View::Cached),
        ) else {
            return false;
        };
        mine.expects_full_sync(peer)
            || theirs.expects_full_sync(node)
            || mine.is_unrelated_to(&theirs)
    }

    /// True if a client waits for a write that touches the sector.
    pub(crate) fn is_being_written(&self, volume: usize, sector: Sector) -> bool {
        self.requests.values().any(|request| {
            request.volume == volume
                && matches!(request.kind, RequestKind::Write { range, .. } if sectors(range).contains(&sector))
        })
    }

    /// After a loss of contact: what differs is known to one of the two.
    pub(crate) fn check_separated(&mut self, node: NodeIndex, peer: NodeIndex) {
        if self.nodes[node].connected(peer) || self.nodes[peer].connected(node) {
            return;
        }
        self.checked("divergence-apart");
        for volume in 0..self.settings.volumes.len() {
            let sectors: Vec<Sector> = self.differing[volume].iter().copied().collect();
            if sectors.is_empty() {
                continue;
            }
            let (Some(mine), Some(theirs)) =
                (self.side(node, peer, volume), self.side(peer, node, volume))
            else {
                continue;
            };
            if self.full_sync_due(node, peer, volume) {
                continue;
            }
            for sector in sectors {
                let (here, there) = (
                    self.sector(node, volume, sector),
                    self.sector(peer, volume, sector),
                );
                if here != there
                    && !Self::knows(&mine, peer, sector)
                    && !Self::knows(&theirs, node, sector)
                    && !self.is_being_written(volume, sector)
                {
                    let text = format!(
                        "v{volume} sector {sector} (block {}, extent {}) differs, n{node} has {}, n{peer} has {}, and neither side knows after they lost \
                         contact; n{node} knows {mine:?}, n{peer} knows {theirs:?}",
                        sector / 8,
                        sector / 8192,
                        self.name(here),
                        self.name(there)
                    );
                    self.fail("divergence", text);
                    return;
                }
            }
        }
    }

    /// A stamp for people.
    pub(crate) fn name(&self, stamp: u64) -> String {
        match crate::stamps::write_of(stamp) {
            None => "zeroes".into(),
            Some(write) => format!("w{write}@{}", stamp & 0xFF_FFFF),
        }
    }

    fn is_quiet(&self) -> bool {
        self.requests.is_empty()
            && self
                .nodes
                .iter()
                .filter_map(|node| node.process.as_ref())
                .all(|process| process.disk_operations == 0)
            && self
                .live
                .iter()
                .map(|&live| &self.connections[live])
                .all(|connection| {
                    // A death that an end does not know of is no rest either.
                    (0..2).all(|end| {
                        connection.ends[end].state != EndState::Up
                            || (connection.pending_to(end) == 0 && !connection.dead)
                    })
                })
    }

    /// At quiet moments: equal bytes where both sides say so.
    pub(crate) fn compare_if_quiet(&mut self) {
        if !self.restless || !self.is_quiet() {
            return;
        }
        self.restless = false;
        self.figures.comparisons += 1;
        for node in 0..self.settings.nodes {
            for peer in node + 1..self.settings.nodes {
                self.check_separated(node, peer);
                for volume in 0..self.settings.volumes.len() {
                    self.compare(node, peer, volume);
                }
            }
        }
    }

    fn compare(&mut self, node: NodeIndex, peer: NodeIndex, volume: usize) {
        let sure = |node: NodeIndex, peer: NodeIndex| {
            self.nodes[node].live_view().is_some_and(|view| {
                view.in_sync_with(peer, volume) && view.volumes[volume].disk == DiskState::UpToDate
            })
        };
        // Both ends must mean the same session.
        let same_session = {
            let session = |node: NodeIndex, peer: NodeIndex| {
                self.nodes[node]
                    .process
                    .as_ref()
                    .and_then(|process| process.sessions[peer])
                    .map(|(_, connection)| connection)
            };
            session(node, peer).is_some() && session(node, peer) == session(peer, node)
        };
        if !sure(node, peer) || !sure(peer, node) || !same_session {
            return;
        }
        self.checked("divergence-quiet");
        let size = |node: NodeIndex| {
            self.nodes[node]
                .live_view()
                .map_or(0, |view| view.volumes[volume].size)
        };
        if size(node) != size(peer) {
            let text = format!(
                "v{volume}: connected, both UpToDate, nothing in flight, but n{node} has {} bytes and n{peer} has {}",
                size(node),
                size(peer)
            );
            return self.fail("divergence", text);
        }
        let differing: Vec<Sector> = self.differing[volume].iter().copied().collect();
        for sector in differing {
            let (here, there) = (
                self.sector(node, volume, sector),
                self.sector(peer, volume, sector),
            );
            let known = |node: NodeIndex, peer: NodeIndex| {
                let process = self.nodes[node].process.as_ref().expect("it has a view");
                bits(process, volume, peer).is_some_and(|bits| bits.marks(sector))
            };
            if here != there && !known(node, peer) && !known(peer, node) {
                let text = format!(
                    "v{volume} sector {sector}: connected, both UpToDate, nothing in flight, but n{node} has {} and n{peer} has {}",
                    self.name(here),
                    self.name(there)
                );
                self.fail("divergence", text);
                return;
            }
        }
    }
}
