//! C1 and R1: a crash costs a resync of the activity log's extents and the marked blocks, and a resync copies what is marked.

use qrbd_engine::metadata::image::MetadataImage;
use qrbd_engine::state::ReplicationState;
use qrbd_engine::units::{BLOCKS_PER_EXTENT, ByteRange};

use crate::engine_view::{Knowledge, NodeView, bits};
use crate::network::NodeIndex;
use crate::world::World;

impl World {
    /// Called when metadata were loaded for an attach.
    pub(crate) fn check_loaded(&mut self, node: NodeIndex, volume: usize, image: &MetadataImage) {
        let knowledge = Knowledge::of(image.clone());
        let most = self.settings.volumes[volume].al_extents as usize;
        let Some(logged) = knowledge.logged_count() else {
            return self.fail(
                "crash-resync",
                format!("n{node} v{volume}: the activity log is lost"),
            );
        };
        if logged > most {
            return self.fail(
                "crash-resync",
                format!("n{node} v{volume}: {logged} extents are logged, {most} are configured"),
            );
        }
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            if !knowledge.expects_full_sync(peer) {
                let bits = knowledge.marked_count(peer) + logged as u64 * BLOCKS_PER_EXTENT;
                self.checks.expected_bits.insert((node, volume, peer), bits);
            }
        }
    }

    /// Called when the engine was given a disk.
    pub(crate) fn check_attached(&mut self, node: NodeIndex, volume: usize) {
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            let Some(most) = self.checks.expected_bits.remove(&(node, volume, peer)) else {
                continue;
            };
            let view = self.nodes[node]
                .live_view()
                .and_then(|view| view.peers[peer].as_ref());
            let Some(bits) = view.map(|peer| peer.volumes[volume].bits) else {
                continue;
            };
            self.checked("crash-resync");
            if bits > most {
                let text = format!(
                    "n{node} v{volume}: {bits} bits toward n{peer} after the attach, the crash explains {most}"
                );
                self.fail("crash-resync", text);
            }
        }
    }

    /// Called when a view changed: keeps the bits with which a resync starts.
    pub(crate) fn resync_may_start(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        volume: usize,
        before: &NodeView,
        view: &NodeView,
    ) {
        let runs = |view: &NodeView| view.replication(peer, volume).is_sync_source();
        if runs(view) && !runs(before) {
            let process = self.nodes[node].process.as_ref().expect("it has a view");
            if let Some(bits) = bits(process, volume, peer) {
                self.checks.resync.insert((node, peer, volume), bits);
            }
        } else if view.replication(peer, volume) == ReplicationState::Off {
            self.checks.resync.remove(&(node, peer, volume));
        }
    }

    /// Called when resync data are sent: they were marked.
    pub(crate) fn check_resync_data(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        volume: usize,
        range: ByteRange,
    ) {
        let Some(start) = self.checks.resync.get(&(node, peer, volume)) else {
            return;
        };
        let process = self.nodes[node].process.as_ref().expect("it sends");
        if start.covers(range.blocks_touched()) {
            return;
        }
        let now = bits(process, volume, peer);
        let mut blocks = range.blocks_touched();
        let extra = blocks.find(|&block| {
            !start.is_set(block) && !now.as_ref().is_some_and(|now| now.is_set(block))
        });
        if let Some(block) = extra {
            self.fail(
                "crash-resync",
                format!("n{node} v{volume} copies block {block} to n{peer}, which is not marked"),
            );
        }
    }
}
