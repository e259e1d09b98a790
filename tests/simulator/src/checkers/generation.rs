//! W8 and the generation rules: nothing is completed alone whose absence on the peer could be forgotten, and nothing that was completed
//! is merged away.

use qrbd_engine::state::DiskState;
use qrbd_engine::units::{ByteRange, Generation};

use crate::disk::View;
use crate::network::NodeIndex;
use crate::world::World;

impl World {
    /// A write was completed on `node` without `peer`.
    pub(crate) fn check_alone(
        &mut self,
        id: u64,
        node: NodeIndex,
        peer: NodeIndex,
        volume: usize,
        range: ByteRange,
    ) {
        self.checked("generation");
        let has_bitmap = self.nodes[node]
            .process
            .as_ref()
            .is_some_and(|process| crate::engine_view::bits(process, volume, peer).is_some());
        if has_bitmap && !self.is_marked(node, peer, volume, range) {
            let text = format!(
                "write {id} {range} was completed on n{node} without n{peer}, and the bits are not set"
            );
            return self.fail("generation", text);
        }
        let Some(mine) = self.knowledge(node, volume, View::Durable) else {
            return;
        };
        let Some(theirs) = self.knowledge(peer, volume, View::Cached) else {
            return;
        };
        let (mine, theirs) = (&mine.image().superblock, &theirs.image().superblock);
        let peer_believes = theirs.flags.consistent && !theirs.current.is_just_created();
        if peer_believes && mine.current.same(theirs.current) {
            let text = format!(
                "write {id} {range} was completed on n{node} without n{peer}, but the durable current generation {} is still n{peer}'s",
                mine.current
            );
            self.fail("generation", text);
        }
    }

    /// Two branches become one: no completed write of the loser is missing in the winner, unless someone said that it may be.
    pub(crate) fn check_nothing_merged_away(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        volume: usize,
        winner: usize,
        loser: usize,
    ) {
        if self.settings.reckless || self.manager.forced_apart {
            return;
        }
        self.checked("merge");
        let winner = &self.branches[winner];
        for (sector, entries) in &self.branches[loser].entries {
            for entry in entries.iter().filter(|entry| entry.certain) {
                let Some(write) = entry.write else { continue };
                let kept = winner
                    .entries
                    .get(sector)
                    .is_some_and(|entries| entries.iter().any(|other| other.write == Some(write)));
                if !kept {
                    let text = format!(
                        "n{node} and n{peer} v{volume} were joined and the completed write w{write} in sector {sector} is lost"
                    );
                    return self.fail("generation", text);
                }
            }
        }
    }

    /// The current generation of a node's disk as a restart would find it.
    #[must_use]
    pub fn generation_on_disk(&self, node: NodeIndex, volume: usize) -> Option<Generation> {
        self.nodes[node].volumes[volume]
            .disk
            .load(View::Cached)
            .ok()
            .map(|image| image.superblock.current)
    }

    /// True if the node says its disk is UpToDate.
    #[must_use]
    pub fn is_up_to_date(&self, node: NodeIndex, volume: usize) -> bool {
        self.nodes[node]
            .live_view()
            .is_some_and(|view| view.volumes[volume].disk == DiskState::UpToDate)
    }
}
