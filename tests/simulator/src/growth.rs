//! Disks that grow, and volumes that are resized.
//!
//! What a disk grows by holds garbage, another one on each node (unless it is said to be clean): as long as nobody wrote there, any of it
//! may be read, but what was read once stays, whoever serves.

use qrbd_engine::api::Command;
use qrbd_engine::units::{ByteRange, SECTOR_BYTES};

use crate::administrator::Purpose;
use crate::disk::Disk;
use crate::network::NodeIndex;
use crate::oracle::WriteRecord;
use crate::random::Random;
use crate::stamps::{Sector, stamp};
use crate::world::{World, device_bytes, volume_number};

/// Sectors with garbage on each disk.
const GARBAGE_SECTORS: u64 = 60;

impl World {
    /// What the storage behind the end of a disk holds before the disk grows.
    pub(crate) fn found_garbage(&mut self, volume: usize, disk: &mut Disk) {
        let settings = &self.settings.volumes[volume];
        let first = settings.data_bytes / SECTOR_BYTES;
        let end = settings.largest_bytes() / SECTOR_BYTES;
        let number = self.writes.len() as u64;
        let mut random = Random::new(self.settings.seed ^ number << 32 ^ 0x6A2B);
        for count in 0..GARBAGE_SECTORS {
            // The first and the last ones, too.
            let sector = match count {
                0 => first,
                1 => end - 1,
                _ => first + random.below(end - first),
            };
            disk.found_data(sector, stamp(number, sector));
            self.garbage[volume].insert(sector);
        }
        self.writes.push(WriteRecord {
            range: ByteRange::new(0, 0),
            zeroes: false,
            began: 0,
            era: 0,
        });
    }

    /// The disk of a node grows by one stage, also while its metadata follow the last growth. False if it has its largest size.
    pub fn grow_disk(&mut self, node: NodeIndex, volume: usize) -> bool {
        let disk = &mut self.nodes[node].volumes[volume].disk;
        let next = self.settings.volumes[volume]
            .growth
            .iter()
            .map(|&bytes| device_bytes(disk.placement, bytes))
            .find(|&bytes| bytes > disk.device_bytes);
        let Some(bytes) = next else {
            return false;
        };
        disk.grow(bytes);
        self.trace.line(self.now, || {
            format!("n{node} v{volume} DISK GROWS to {bytes}")
        });
        true
    }

    /// Grows a disk or resizes a volume.
    pub(crate) fn growth_whim(&mut self, random: &mut Random) {
        let node = random.below(self.settings.nodes as u64) as NodeIndex;
        let volume = random.below(self.settings.volumes.len() as u64) as usize;
        if random.chance(400) {
            self.grow_disk(node, volume);
            return;
        }
        let primary = (0..self.settings.nodes).find(|&node| self.nodes[node].is_primary());
        let node = primary.filter(|_| random.chance(900)).unwrap_or(node);
        if self.nodes[node].process.is_none() {
            return;
        }
        let bytes = random.chance(100).then(|| {
            let settings = &self.settings.volumes[volume];
            settings.data_bytes + 4096 * random.below(3000)
        });
        let command = Command::Resize {
            volume: volume_number(volume),
            bytes,
            assume_clean: self.settings.clean_growth && random.chance(700),
        };
        self.command(node, command, Purpose::Whim);
    }

    /// A node said that a volume is larger than any said before: what it holds there counts from now on.
    pub(crate) fn grew(&mut self, volume: usize, bytes: u64) {
        let before = std::mem::replace(&mut self.shown[volume], bytes);
        self.figures.resizes += 1;
        let now = self.tick_moment();
        let added: Vec<Sector> = self.garbage[volume]
            .range(before / SECTOR_BYTES..bytes / SECTOR_BYTES)
            .copied()
            .collect();
        let mut branches: Vec<usize> = self
            .nodes
            .iter()
            .map(|node| &node.volumes[volume])
            .flat_map(|volume| [Some(volume.branch), volume.disk_branch])
            .flatten()
            .collect();
        branches.sort_unstable();
        branches.dedup();
        for sector in added {
            let stamps: Vec<_> = (0..self.settings.nodes)
                .map(|node| self.sector(node, volume, sector))
                .collect();
            for &branch in &branches {
                for &stamp in &stamps {
                    self.branches[branch].found_later(sector, stamp, now);
                }
            }
            if stamps.iter().any(|&stamp| stamp != stamps[0]) {
                self.differing[volume].insert(sector);
            }
        }
    }
}
