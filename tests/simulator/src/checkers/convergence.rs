//! Liveness: when the faults stop, everything is answered and both copies become equal.

use qrbd_engine::state::DiskState;

use crate::network::NodeIndex;
use crate::world::World;

/// What is still missing.
pub type Unfinished = String;

impl World {
    /// What keeps the world from rest; `None` when nothing does.
    #[must_use]
    pub fn unfinished(&self) -> Option<Unfinished> {
        if let Some((id, request)) = self.requests.iter().next() {
            return Some(format!(
                "request {id} of n{} is not answered: {:?}",
                request.node, request.kind
            ));
        }
        if let Some((id, command)) = self.commands.iter().next() {
            return Some(format!(
                "command {id} of n{} is not answered: {}",
                command.node, command.text
            ));
        }
        for node in 0..self.settings.nodes {
            let Some(view) = self.nodes[node].live_view() else {
                return Some(format!("n{node} is down"));
            };
            for volume in 0..self.settings.volumes.len() {
                let disk = view.volumes[volume].disk;
                if disk != DiskState::UpToDate {
                    return Some(format!("n{node} v{volume} is {disk}"));
                }
                for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
                    if let Some(what) = self.not_in_sync(node, peer, volume) {
                        return Some(what);
                    }
                }
            }
        }
        let busy = self
            .nodes
            .iter()
            .filter_map(|node| node.process.as_ref())
            .map(|process| process.disk_operations)
            .sum::<usize>();
        if busy > 0 {
            return Some(format!("{busy} disk operations are open"));
        }
        for (volume, differing) in self.differing.iter().enumerate() {
            if let Some(sector) = differing.first() {
                return Some(format!(
                    "v{volume}: {} sectors differ, the first is {sector}",
                    differing.len()
                ));
            }
        }
        None
    }

    fn not_in_sync(&self, node: NodeIndex, peer: NodeIndex, volume: usize) -> Option<Unfinished> {
        let view = self.nodes[node].live_view()?;
        if !view.in_sync_with(peer, volume) {
            let connection = view.peers[peer].as_ref().map(|peer| peer.connection);
            return Some(format!(
                "n{node} v{volume}: connection to n{peer} {connection:?}, replication {}, peer disk {}",
                view.replication(peer, volume),
                view.peer_disk(peer, volume)
            ));
        }
        let bits = view.peers[peer]
            .as_ref()
            .map_or(0, |peer| peer.volumes[volume].bits);
        (bits > 0).then(|| format!("n{node} v{volume}: {bits} bits toward n{peer}"))
    }
}
