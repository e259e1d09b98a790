//! Operations of engines on their disks: delays, faults, and what the other nodes' copies look like in comparison.

use qrbd_engine::api::{Event, IoError, IoId};
use qrbd_engine::metadata::growth::DiskSizes;
use qrbd_engine::metadata::layout::{Layout, Placement};
use qrbd_engine::units::VolumeNumber;

use crate::disk::{Job, View};
use crate::network::NodeIndex;
use crate::queue::{MILLISECOND, Micros, SECOND};
use crate::random::Random;
use crate::stamps::{Sector, Stamp};
use crate::world::{Occurrence, World};

impl World {
    pub(crate) fn disk_job(&mut self, node: NodeIndex, volume: VolumeNumber, io: IoId, job: Job) {
        let volume = usize::from(volume.0);
        self.check_job(node, volume, &job);
        let (least, most) = self.settings.disk_delay;
        let mut delay = self.disk_random.delay(least, most);
        if self.nodes[node].volumes[volume].faults.slow > self.now {
            delay += self.disk_random.delay(10 * MILLISECOND, SECOND);
        }
        let code = match &job {
            Job::Read(range) => (10, range.offset),
            Job::Write(range, ..) => (11, range.offset),
            Job::Zero(range) => (12, range.offset),
            Job::Flush => (13, 0),
            Job::Measure => (17, 0),
            Job::Remember(known) => (18, known.device_bytes),
            Job::MetadataWrite(offset, _) => (14, *offset),
            Job::MetadataFlush => (15, 0),
        };
        self.trace.mix(&[code.0, code.1, io.0]);
        if self.trace.wanted() {
            let text = self.job_text(node, volume, &job);
            self.trace.line(self.now, || {
                format!("n{node} v{volume} io {:x} {text}", io.0)
            });
        }
        let token = self.nodes[node].volumes[volume].disk.submit(job);
        let incarnation = self.nodes[node].incarnation;
        self.process(node).disk_operations += 1;
        self.schedule(
            delay,
            Occurrence::DiskDone {
                node,
                incarnation,
                volume,
                token,
                io,
            },
        );
    }

    fn job_text(&self, node: NodeIndex, volume: usize, job: &Job) -> String {
        match job {
            Job::Write(range, stamps, _) => {
                let write = stamps
                    .0
                    .first()
                    .and_then(|&stamp| crate::stamps::write_of(stamp));
                format!(
                    "write {range} of {}",
                    write.map_or("zeroes".into(), |write| format!("w{write}"))
                )
            }
            Job::MetadataWrite(offset, bytes) => {
                format!(
                    "metadata write {offset}+{} {}",
                    bytes.len(),
                    self.metadata_name(node, volume, *offset)
                )
            }
            other => format!("{other:?}"),
        }
    }

    /// What lies at an offset of the metadata, for the trace.
    fn metadata_name(&self, node: NodeIndex, volume: usize, offset: u64) -> String {
        let disk = &self.nodes[node].volumes[volume].disk;
        let Ok(layout) = Layout::new(disk.placement, disk.device_bytes, 1) else {
            return String::new();
        };
        if offset == layout.superblock_a {
            "superblock A".into()
        } else if offset == layout.superblock_b {
            "superblock B".into()
        } else if offset >= layout.bitmap_offset
            && offset < layout.bitmap_offset + layout.bitmap_slot_bytes
        {
            "bitmap".into()
        } else {
            "activity log".into()
        }
    }

    pub(crate) fn disk_done(
        &mut self,
        node: NodeIndex,
        incarnation: u64,
        volume: usize,
        token: u64,
        io: IoId,
    ) {
        if !self.nodes[node].still_runs(incarnation) {
            return;
        }
        let stalled = self.nodes[node].volumes[volume].faults.stalled;
        if stalled > self.now {
            let after = stalled - self.now;
            return self.schedule(
                after,
                Occurrence::DiskDone {
                    node,
                    incarnation,
                    volume,
                    token,
                    io,
                },
            );
        }
        self.process(node).disk_operations -= 1;
        let now = self.now;
        let mut changed = std::mem::take(&mut self.scratch);
        let state = &mut self.nodes[node].volumes[volume];
        let Some(job) = state.disk.job(token) else {
            return;
        };
        if matches!(job, Job::Measure) {
            self.scratch = changed;
            return self.measured(node, volume, token, io);
        }
        let remembers = matches!(job, Job::Remember(_));
        let device_bytes = state.disk.device_bytes;
        let on_the_way = matches!(job, Job::Remember(known) if known.device_bytes < device_bytes);
        let metadata = job.is_metadata();
        let active = |(until, chance): (Micros, u64), random: &mut Random| {
            until > now && random.chance(chance)
        };
        let error = if metadata || remembers {
            active(state.faults.metadata_errors, &mut self.disk_random).then_some(IoError::Failed)
        } else if matches!(job, Job::Read(_)) {
            active(state.faults.read_errors, &mut self.disk_random).then_some(IoError::Failed)
        } else if job.is_write() && state.faults.full > now {
            Some(IoError::NoSpace)
        } else {
            active(state.faults.write_errors, &mut self.disk_random).then_some(IoError::Failed)
        };
        let result = match error {
            Some(error) => {
                state.disk.fail(
                    token,
                    error == IoError::Failed,
                    &mut self.disk_random,
                    &mut changed,
                );
                Err(error)
            }
            None => Ok(state
                .disk
                .finish(token, &mut self.disk_random, &mut changed)),
        };
        self.sectors_changed(node, volume, &mut changed);
        self.scratch = changed;
        self.trace.mix(&[16, io.0, u64::from(result.is_ok())]);
        if let Err(error) = &result {
            self.trace.line(now, || {
                format!("n{node} v{volume} io {:x} FAILS: {error:?}", io.0)
            });
        } else {
            self.trace
                .line(now, || format!("n{node} v{volume} io {:x} done", io.0));
        }
        if metadata {
            self.check_metadata_operation(node, volume);
        }
        if self.violation.is_some() {
            return;
        }
        if on_the_way && self.settings.resizes > 0 && self.disk_random.chance(250) {
            self.grow_disk(node, volume);
        }
        let event = if remembers {
            Event::DiskRemembered {
                io,
                result: result.map(|_| ()),
            }
        } else if metadata {
            Event::MetadataDone {
                io,
                result: result.map(|_| ()),
            }
        } else {
            Event::DiskDone { io, result }
        };
        self.tell(node, event);
    }

    fn measured(&mut self, node: NodeIndex, volume: usize, token: u64, io: IoId) {
        let disk = &mut self.nodes[node].volumes[volume].disk;
        disk.finish(token, &mut self.disk_random, &mut Vec::new());
        let metadata_bytes = match disk.placement {
            Placement::External { metadata_bytes } => metadata_bytes,
            _ => disk.device_bytes,
        };
        let result = Ok(DiskSizes {
            device_bytes: disk.device_bytes,
            metadata_bytes,
        });
        self.tell(node, Event::DiskMeasured { io, result });
    }

    pub(crate) fn sectors_changed(
        &mut self,
        node: NodeIndex,
        volume: usize,
        changed: &mut Vec<Sector>,
    ) {
        for sector in changed.drain(..) {
            let stamp = self.nodes[node].volumes[volume]
                .disk
                .sector(sector, View::Cached);
            if self.trace.watch == Some((volume, sector)) {
                let text = self.name(stamp);
                self.trace.line(self.now, || {
                    format!("n{node} v{volume} sector {sector} now holds {text}")
                });
            }
            let differs = self
                .nodes
                .iter()
                .any(|other| other.volumes[volume].disk.sector(sector, View::Cached) != stamp);
            if differs {
                self.differing[volume].insert(sector);
            } else {
                self.differing[volume].remove(&sector);
            }
        }
    }

    /// The cached content of a sector at a node.
    #[must_use]
    pub fn sector(&self, node: NodeIndex, volume: usize, sector: Sector) -> Stamp {
        self.nodes[node].volumes[volume]
            .disk
            .sector(sector, View::Cached)
    }
}
