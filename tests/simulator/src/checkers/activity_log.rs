//! The activity-log rule: a Primary's write to its disk goes only where the durable log (or the durable bits) would look after a crash.

use qrbd_engine::units::{EXTENT_BYTES, SECTOR_BYTES};

use crate::disk::{Job, View};
use crate::network::NodeIndex;
use crate::stamps::{Sector, first_sector, sectors, write_of};
use crate::world::{RequestKind, World};

const SECTORS_PER_EXTENT: u64 = EXTENT_BYTES / SECTOR_BYTES;

impl World {
    /// Called before a write goes to a data disk.
    pub(crate) fn check_logged(&mut self, node: NodeIndex, volume: usize, job: &Job) {
        let (range, write) = match job {
            Job::Write(range, stamps, _) => {
                (*range, stamps.0.first().and_then(|&stamp| write_of(stamp)))
            }
            Job::Zero(range) => (*range, None),
            _ => return,
        };
        // Only what this node's clients write; a peer's writes and resync data are in the peer's log.
        let own = self.requests.values().any(|request| {
            request.node == node
                && request.volume == volume
                && match request.kind {
                    RequestKind::Write {
                        number,
                        range: wanted,
                        ..
                    } => match write {
                        Some(write) => write == number,
                        None => self.writes[number as usize].zeroes && wanted == range,
                    },
                    _ => false,
                }
        });
        if !own {
            return;
        }
        self.checked("activity-log");
        let peers: Vec<NodeIndex> = (0..self.settings.nodes)
            .filter(|&peer| peer != node)
            .collect();
        let Some(knowledge) = self.knowledge(node, volume, View::Durable) else {
            return;
        };
        let mut at: Sector = first_sector(range);
        let end = sectors(range).end;
        while at < end {
            let next = ((at / SECTORS_PER_EXTENT + 1) * SECTORS_PER_EXTENT).min(end);
            let marked = || {
                (at..next).all(|sector| peers.iter().all(|&peer| knowledge.marked(peer, sector)))
            };
            if !knowledge.logged(at) && !marked() {
                let text = format!(
                    "n{node} v{volume} writes {range} while extent {} is not in the durable activity log",
                    at / SECTORS_PER_EXTENT
                );
                return self.fail("activity-log", text);
            }
            at = next;
        }
    }
}
