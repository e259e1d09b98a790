//! The clients: reads, writes, flushes, discards on the nodes that serve, overlapping on purpose.
//!
//! A few hot blocks lie in more extents than the activity log holds; around them come parts of blocks, runs of blocks, and ranges
//! across the border of two extents.

use qrbd_engine::api::Operation;
use qrbd_engine::units::{ByteRange, EXTENT_BYTES, SECTOR_BYTES};

use crate::network::NodeIndex;
use crate::queue::MILLISECOND;
use crate::random::Random;
use crate::settings::Settings;
use crate::stamps::Stamps;
use crate::world::{Occurrence, RequestKind, World};

/// The clients.
pub struct Workload {
    random: Random,
    /// Offsets of the hot blocks, by volume.
    hot: Vec<Vec<u64>>,
    /// Pause until.
    pause_until: u64,
    /// Requests still to be made in this phase.
    pub budget: u32,
}

impl Workload {
    /// Clients for the run's volumes.
    #[must_use]
    pub fn new(settings: &Settings, mut random: Random) -> Workload {
        let hot = settings
            .volumes
            .iter()
            .map(|volume| {
                let mut hot = hot_blocks(volume.data_bytes, settings.spread, &mut random);
                for &bytes in &volume.growth {
                    // Before the volume has grown so far they stand for its last sector.
                    hot.extend((1..=4).map(|back| (bytes - 1) / 4096 * 4096 - back * (1 << 20)));
                    hot.push((bytes - 1) / 4096 * 4096);
                }
                hot
            })
            .collect();
        let budget = random.between(100, 1000) as u32;
        Workload {
            random,
            hot,
            pause_until: 0,
            budget,
        }
    }

    fn range(&mut self, volume: usize, data_bytes: u64) -> ByteRange {
        let hot = *self.random.pick(&self.hot[volume]);
        let (offset, length) = match self.random.weighted(&[50, 15, 15, 5, 3]) {
            0 => (hot, 4096),
            1 => (
                hot + SECTOR_BYTES * self.random.below(8),
                SECTOR_BYTES * self.random.between(1, 8),
            ),
            2 => (hot, 4096 * self.random.between(2, 16)),
            3 => (
                hot + SECTOR_BYTES * self.random.below(8),
                SECTOR_BYTES * self.random.between(9, 64),
            ),
            _ => {
                let border = (hot / EXTENT_BYTES + 1) * EXTENT_BYTES;
                (
                    border - SECTOR_BYTES * self.random.between(1, 16),
                    SECTOR_BYTES * self.random.between(17, 40),
                )
            }
        };
        let offset = offset.min(data_bytes - SECTOR_BYTES);
        let length = length.min(data_bytes - offset);
        ByteRange::new(offset, length as u32)
    }
}

fn hot_blocks(data_bytes: u64, spread: bool, random: &mut Random) -> Vec<u64> {
    let extents = data_bytes.div_ceil(EXTENT_BYTES);
    let mut hot = Vec::new();
    for _ in 0..random.between(4, 30) {
        let offset = random.below(extents) * EXTENT_BYTES + 4096 * random.below(24);
        if offset + 4096 <= data_bytes {
            hot.push(offset);
        }
    }
    if spread {
        hot.extend((0..data_bytes / EXTENT_BYTES).map(|extent| extent * EXTENT_BYTES));
    }
    // The last block, which may be cut short.
    hot.push((data_bytes - 1) / 4096 * 4096);
    hot
}

impl World {
    /// Schedules the clients.
    pub fn begin_workload(&mut self) {
        self.schedule(MILLISECOND, Occurrence::Client);
    }

    /// The clients' next step.
    pub(crate) fn client_step(&mut self) {
        let (least, most) = self.settings.think;
        let delay = self.workload.random.delay(least, most);
        self.schedule(delay, Occurrence::Client);
        if self.now < self.workload.pause_until || self.workload.budget == 0 {
            return;
        }
        let serving: Vec<NodeIndex> = (0..self.settings.nodes)
            .filter(|&node| self.nodes[node].serving)
            .collect();
        if serving.is_empty() {
            return;
        }
        if self.workload.random.chance(10) {
            self.workload.pause_until = self.now
                + self
                    .workload
                    .random
                    .delay(10 * MILLISECOND, 500 * MILLISECOND);
            return;
        }
        let node = *self.workload.random.pick(&serving);
        let open = self
            .requests
            .values()
            .filter(|request| request.node == node)
            .count() as u64;
        if open < self.settings.queue_depth {
            let burst = if self.workload.random.chance(100) {
                self.settings.queue_depth - open
            } else {
                1
            };
            for _ in 0..burst {
                self.workload.budget = self.workload.budget.saturating_sub(1);
                self.one_request(node);
                if self.violation.is_some() || !self.nodes[node].serving {
                    return;
                }
            }
        }
    }

    fn one_request(&mut self, node: NodeIndex) {
        let volume = self
            .workload
            .random
            .below(self.settings.volumes.len() as u64) as usize;
        let size = self.nodes[node]
            .live_view()
            .map_or(0, |view| view.volumes[volume].size);
        let data_bytes = self.settings.volumes[volume].data_bytes.max(size);
        let range = self.workload.range(volume, data_bytes);
        let fua = self.workload.random.chance(50);
        match self.workload.random.weighted(&[500, 300, 60, 40, 40, 8]) {
            0 => {
                self.client_write(node, volume, range, fua);
            }
            1 => {
                self.client_read(node, volume, range);
            }
            2 => {
                self.submit(node, volume, RequestKind::Flush, Operation::Flush);
            }
            3 => {
                let range = self.large(range, data_bytes);
                self.client_discard(node, volume, range, fua);
            }
            4 => {
                let range = self.large(range, data_bytes);
                self.client_zeroes(node, volume, range, fua);
            }
            _ => {
                let outside = ByteRange::new(data_bytes - SECTOR_BYTES, 2 * SECTOR_BYTES as u32);
                self.submit(node, volume, RequestKind::Outside, Operation::Read(outside));
            }
        }
    }

    fn large(&mut self, range: ByteRange, data_bytes: u64) -> ByteRange {
        if self.workload.random.chance(100) {
            let length = self.workload.random.between(1, 512) * 4096;
            return ByteRange::new(range.offset, length.min(data_bytes - range.offset) as u32);
        }
        range
    }

    /// A client writes; returns the request's handle and the write's number.
    pub fn client_write(
        &mut self,
        node: NodeIndex,
        volume: usize,
        range: ByteRange,
        fua: bool,
    ) -> (u64, u64) {
        let number = self.new_write(range, false);
        let payload = Stamps::of_write(number, range);
        let kind = RequestKind::Write { number, range, fua };
        (
            self.submit(
                node,
                volume,
                kind,
                Operation::Write {
                    range,
                    payload,
                    fua,
                },
            ),
            number,
        )
    }

    /// A client reads.
    pub fn client_read(&mut self, node: NodeIndex, volume: usize, range: ByteRange) -> u64 {
        self.submit(
            node,
            volume,
            RequestKind::Read(range),
            Operation::Read(range),
        )
    }

    /// A client discards.
    pub fn client_discard(
        &mut self,
        node: NodeIndex,
        volume: usize,
        range: ByteRange,
        fua: bool,
    ) -> u64 {
        let number = self.new_write(range, true);
        self.submit(
            node,
            volume,
            RequestKind::Write { number, range, fua },
            Operation::Discard { range, fua },
        )
    }

    /// A client writes zeroes.
    pub fn client_zeroes(
        &mut self,
        node: NodeIndex,
        volume: usize,
        range: ByteRange,
        fua: bool,
    ) -> u64 {
        let number = self.new_write(range, true);
        let may_unmap = number.is_multiple_of(2);
        self.submit(
            node,
            volume,
            RequestKind::Write { number, range, fua },
            Operation::WriteZeroes {
                range,
                may_unmap,
                fua,
            },
        )
    }

    /// Clients read back every sector that was ever written, in runs.
    pub fn read_everything(&mut self, node: NodeIndex) {
        for volume in 0..self.settings.volumes.len() {
            let branch = self.nodes[node].volumes[volume].branch;
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for &sector in self.branches[branch].entries.keys() {
                match runs.last_mut() {
                    Some((first, count)) if *first + *count == sector && *count < 64 => *count += 1,
                    _ => runs.push((sector, 1)),
                }
            }
            for (first, count) in runs {
                self.client_read(
                    node,
                    volume,
                    ByteRange::new(first * SECTOR_BYTES, (count * SECTOR_BYTES) as u32),
                );
                if self.violation.is_some() {
                    return;
                }
            }
        }
    }
}
