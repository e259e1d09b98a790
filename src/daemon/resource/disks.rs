//! The backing disks of a resource: operations of the engine on their way, and what was counted.
//!
//! Invariants: every operation of the engine is answered once, also when its disk is not there or the backend is full at the
//! moment; what came over the network keeps its credit until the disk is done with it. Data starts at byte 0 of the backing disk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use qrbd_disk::{BlockDevice, Completion, DiskError, DiskErrorKind, Operation, Pool, UringDevice};
use qrbd_engine::IoId;
use qrbd_engine::api::{Effect, Event, IoError};
use qrbd_engine::metadata::METADATA_BLOCK_BYTES;
use qrbd_engine::metadata::growth::{DiskSizes, KnownDevice};
use qrbd_engine::metadata::layout::Layout;
use qrbd_engine::state::Refusal;
use qrbd_engine::units::{ByteRange, VolumeNumber};
use qrbd_transport::Credit;
use slab::Slab;
use tracing::{error, warn};

use crate::attach;
use crate::payload::EnginePayload;
use crate::plan::ResourcePlan;

/// Errors of one disk that are logged; the rest is counted.
const ERRORS_LOGGED: u64 = 20;

/// Which of a volume's disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Data,
    Metadata,
}

/// An operation of the engine for one of a volume's disks.
pub(super) struct DiskRequest {
    volume: VolumeNumber,
    io: IoId,
    target: Target,
    operation: Operation,
    /// What the peer is charged for the bytes.
    credit: Option<Arc<Credit>>,
}

/// What an effect asks of a disk.
///
/// # Panics
/// For an effect that asks nothing of a disk, and for writes of metadata, see [`Disks::write_metadata`].
pub(super) fn disk_request(effect: Effect<EnginePayload>) -> DiskRequest {
    let mut credit = None;
    let mut target = Target::Data;
    let (volume, io, operation) = match effect {
        Effect::Read { volume, io, range } => {
            let operation = Operation::Read {
                offset: range.offset,
                length: range.length,
            };
            (volume, io, operation)
        }
        Effect::Write {
            volume,
            io,
            range,
            payload,
            durable,
        } => {
            credit = payload.credit();
            let operation = Operation::Write {
                offset: range.offset,
                payload: payload.into_data(),
                durable,
            };
            (volume, io, operation)
        }
        // A discard that the device ignores would leave the nodes different: the range must read as zeroes.
        Effect::Discard { volume, io, range } => (volume, io, zeroes(range, true)),
        Effect::WriteZeroes {
            volume,
            io,
            range,
            may_unmap,
        } => (volume, io, zeroes(range, may_unmap)),
        Effect::Flush { volume, io } => (volume, io, Operation::Flush),
        Effect::MetadataFlush { volume, io } => {
            target = Target::Metadata;
            (volume, io, Operation::Flush)
        }
        _ => unreachable!("no operation of a disk"),
    };
    DiskRequest {
        volume,
        io,
        target,
        operation,
        credit,
    }
}

fn zeroes(range: ByteRange, may_unmap: bool) -> Operation {
    Operation::WriteZeroes {
        offset: range.offset,
        length: u64::from(range.length),
        may_unmap,
    }
}

/// What was done on a volume's disk since it was attached.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
    pub(super) activity_log_writes: u64,
    pub(super) bitmap_writes: u64,
    /// Operations on their way.
    pub(super) pending: u32,
    errors: u64,
}

struct Backing {
    data: UringDevice,
    meta: Option<UringDevice>,
    layout: Layout,
    /// Where is remembered how large the disk was.
    last_known: PathBuf,
}

struct Volume {
    number: VolumeNumber,
    backing: Option<Backing>,
    counters: Counters,
}

struct InFlight {
    io: IoId,
    volume: usize,
    target: Target,
    /// Held until the disk is done with the bytes.
    _credit: Option<Arc<Credit>>,
}

/// See the module's text.
pub(crate) struct Disks {
    resource: String,
    pool: Pool,
    volumes: Vec<Volume>,
    in_flight: Slab<InFlight>,
    /// Refused by a full backend: token and operation.
    refused: VecDeque<(u64, Operation)>,
    failed: VecDeque<Event<EnginePayload>>,
}

impl Disks {
    pub(super) fn new(plan: &ResourcePlan, pool: Pool) -> Disks {
        let volume = |number| Volume {
            number,
            backing: None,
            counters: Counters::default(),
        };
        Disks {
            resource: plan.name.clone(),
            pool,
            volumes: plan
                .volumes
                .iter()
                .map(|plan| volume(plan.number))
                .collect(),
            in_flight: Slab::new(),
            refused: VecDeque::new(),
            failed: VecDeque::new(),
        }
    }

    fn index(&self, number: VolumeNumber) -> Option<usize> {
        self.volumes
            .iter()
            .position(|volume| volume.number == number)
    }

    pub(super) fn attach(
        &mut self,
        number: VolumeNumber,
        data: UringDevice,
        meta: Option<UringDevice>,
        layout: Layout,
        last_known: PathBuf,
    ) -> Result<(), Refusal> {
        let index = self.index(number).ok_or(Refusal::Unknown)?;
        let volume = &mut self.volumes[index];
        if volume.backing.is_some() {
            return Err(Refusal::DiskConfigured);
        }
        volume.backing = Some(Backing {
            data,
            meta,
            layout,
            last_known,
        });
        volume.counters = Counters::default();
        Ok(())
    }

    /// Closes the disks; the backend keeps them open until what it still has is done.
    pub(super) fn detach(&mut self, number: VolumeNumber) {
        if let Some(index) = self.index(number) {
            self.volumes[index].backing = None;
        }
    }

    pub(super) fn detach_all(&mut self) {
        self.volumes
            .iter_mut()
            .for_each(|volume| volume.backing = None);
    }

    /// Counters of a volume; `None` for a volume that there is not.
    pub(super) fn counters(&self, number: VolumeNumber) -> Option<Counters> {
        self.index(number).map(|index| self.volumes[index].counters)
    }

    /// The backing disk of a volume, if it is attached.
    pub(super) fn device(&self, number: VolumeNumber) -> Option<&UringDevice> {
        self.volumes[self.index(number)?]
            .backing
            .as_ref()
            .map(|backing| &backing.data)
    }

    pub(super) fn write_metadata(
        &mut self,
        number: VolumeNumber,
        io: IoId,
        offset: u64,
        bytes: &[u8],
    ) {
        if let Some(index) = self.index(number)
            && let Some(backing) = &self.volumes[index].backing
        {
            let layout = &backing.layout;
            let ring = layout.ring_offset
                ..layout.ring_offset + u64::from(layout.ring_blocks) * METADATA_BLOCK_BYTES;
            let bitmaps = layout.bitmap_offset
                ..layout.bitmap_offset + layout.bitmap_slot_bytes * u64::from(layout.max_peers);
            let counters = &mut self.volumes[index].counters;
            counters.activity_log_writes += u64::from(ring.contains(&offset));
            counters.bitmap_writes += u64::from(bitmaps.contains(&offset));
        }
        let payload = self.pool.copy_from(bytes);
        self.submit(DiskRequest {
            volume: number,
            io,
            target: Target::Metadata,
            operation: Operation::Write {
                offset,
                payload,
                durable: false,
            },
            credit: None,
        });
    }

    /// Looks how large the disks are now; the answer comes with the next ones that need no disk.
    pub(super) fn measure(&mut self, number: VolumeNumber, io: IoId) {
        let index = self.index(number);
        let backing = index.and_then(|index| self.volumes[index].backing.as_ref());
        let measured = backing.map(|backing| {
            let device_bytes = backing.data.measure()?;
            let metadata_bytes = match &backing.meta {
                Some(meta) => meta.measure()?,
                None => device_bytes,
            };
            Ok::<_, DiskError>(DiskSizes {
                device_bytes,
                metadata_bytes,
            })
        });
        let result = match (index, measured) {
            (Some(_), Some(Ok(sizes))) => Ok(sizes),
            (Some(index), Some(Err(error))) => Err(self.explain(index, &error)),
            _ => Err(IoError::Failed),
        };
        self.failed.push_back(Event::DiskMeasured { io, result });
    }

    /// Remembers where the metadata are, or where they are on the way to; the answer comes with the next ones that need no disk.
    pub(super) fn remember(&mut self, number: VolumeNumber, io: IoId, known: KnownDevice) {
        let index = self.index(number);
        let backing = index.and_then(|index| self.volumes[index].backing.as_mut());
        let result = match backing {
            Some(backing) => {
                if known.moving_to.is_none()
                    && let Ok(layout) = Layout::new(
                        backing.layout.placement,
                        known.device_bytes,
                        backing.layout.max_peers,
                    )
                {
                    backing.layout = layout;
                }
                attach::remember(&backing.last_known, known).map_err(|error| {
                    warn!(
                        "{}/{number}: {} cannot be written: {error}",
                        self.resource,
                        backing.last_known.display()
                    );
                    IoError::Failed
                })
            }
            None => Err(IoError::Failed),
        };
        self.failed.push_back(Event::DiskRemembered { io, result });
    }

    /// Starts an operation of the engine.
    pub(super) fn submit(&mut self, request: DiskRequest) {
        let DiskRequest {
            volume,
            io,
            target,
            operation,
            credit,
        } = request;
        let index = self
            .index(volume)
            .expect("the engine has the volumes of the plan");
        let volume = &mut self.volumes[index];
        if target == Target::Data {
            let (_, length) = operation.range();
            match operation {
                Operation::Read { .. } => volume.counters.read_bytes += length,
                _ => volume.counters.written_bytes += length,
            }
        }
        volume.counters.pending += 1;
        let token = self.in_flight.insert(InFlight {
            io,
            volume: index,
            target,
            _credit: credit,
        }) as u64;
        self.hand_over(token, operation);
    }

    fn hand_over(&mut self, token: u64, operation: Operation) {
        let entry = &self.in_flight[token as usize];
        let Some(backing) = &self.volumes[entry.volume].backing else {
            error!(
                "{}/{}: {} without a disk",
                self.resource,
                self.volumes[entry.volume].number,
                operation.kind()
            );
            let event = self.end(token, Err(IoError::Failed));
            self.failed.push_back(event);
            return;
        };
        let device = match (entry.target, &backing.meta) {
            (Target::Metadata, Some(meta)) => meta,
            _ => &backing.data,
        };
        if let Err(refused) = device.submit(token, operation) {
            self.refused.push_back((token, refused.operation));
        }
    }

    /// Tries again what the backend had no room for.
    pub(super) fn resubmit(&mut self) {
        for _ in 0..self.refused.len() {
            let (token, operation) = self.refused.pop_front().expect("counted");
            self.hand_over(token, operation);
        }
    }

    /// The answer for an operation that could not even begin.
    pub(super) fn failed_at_once(&mut self) -> Option<Event<EnginePayload>> {
        self.failed.pop_front()
    }

    /// The answer for a completion.
    pub(super) fn completed(&mut self, completion: Completion) -> Option<Event<EnginePayload>> {
        let result = match completion.result {
            Ok(payload) => Ok(payload.map(EnginePayload::from)),
            Err(error) => {
                let volume = self.in_flight[completion.token as usize].volume;
                Err(self.explain(volume, &error))
            }
        };
        Some(self.end(completion.token, result))
    }

    fn end(
        &mut self,
        token: u64,
        result: Result<Option<EnginePayload>, IoError>,
    ) -> Event<EnginePayload> {
        let entry = self.in_flight.remove(token as usize);
        self.volumes[entry.volume].counters.pending -= 1;
        match entry.target {
            Target::Data => Event::DiskDone {
                io: entry.io,
                result,
            },
            Target::Metadata => Event::MetadataDone {
                io: entry.io,
                result: result.map(|_| ()),
            },
        }
    }

    fn explain(&mut self, index: usize, error: &DiskError) -> IoError {
        let volume = &mut self.volumes[index];
        volume.counters.errors += 1;
        if volume.counters.errors <= ERRORS_LOGGED {
            warn!("{}/{}: {error}", self.resource, volume.number);
        } else if volume.counters.errors.is_power_of_two() {
            warn!(
                "{}/{}: {} errors so far, the last: {error}",
                self.resource, volume.number, volume.counters.errors
            );
        }
        if error.kind == DiskErrorKind::NoSpace {
            IoError::NoSpace
        } else {
            IoError::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_is_told_which_writes_are_to_be_durable() {
        for told in [true, false] {
            let request = disk_request(Effect::Write {
                volume: VolumeNumber(1),
                io: IoId(7),
                range: ByteRange::new(8192, 4096),
                payload: Pool::default().copy_from(&[7; 4096]).into(),
                durable: told,
            });
            let Operation::Write {
                offset: 8192,
                durable,
                ref payload,
            } = request.operation
            else {
                panic!("{:?}", request.operation);
            };
            assert_eq!((durable, payload.len()), (told, 4096));
            assert_eq!((request.volume, request.io), (VolumeNumber(1), IoId(7)));
            assert_eq!(request.target, Target::Data);
        }
    }

    #[test]
    fn discard_is_carried_out_so_that_it_reads_as_zeroes() {
        let request = disk_request(Effect::Discard {
            volume: VolumeNumber(0),
            io: IoId(7),
            range: ByteRange::new(8192, 4096),
        });
        assert!(matches!(
            request.operation,
            Operation::WriteZeroes {
                offset: 8192,
                length: 4096,
                may_unmap: true
            }
        ));
    }
}
