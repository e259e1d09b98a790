//! Claims about the move of metadata: what a crash at any step leaves, and which copy counts afterwards.

use alloc::vec;
use alloc::vec::Vec;
use std::string::{String, ToString};

use super::*;
use crate::activity_log::ActivityLog;
use crate::metadata::image::{
    self, CreateOptions, LoadError, LoggedExtents, MetadataImage, Step, load_grown,
};

use crate::metadata_writer::{MetadataWriter, Phase};
use crate::units::NodeId;
use crate::volume::Backing;

const SECTOR: usize = 512;
const OLD: u64 = 20 << 20;
const NEW: u64 = 24 << 20;
/// The size of a device that grew again while its metadata were on the way to the end that it had before.
const LARGER: u64 = 29 << 20;
const UUID: u64 = 0xFEED;
const KNOWN: KnownDevice = KnownDevice {
    device_uuid: UUID,
    device_bytes: OLD,
    moving_to: None,
};
const MOVING: KnownDevice = KnownDevice {
    moving_to: Some(NEW),
    ..KNOWN
};

#[derive(Clone)]
struct Device {
    durable: Vec<u8>,
    cache: Vec<(usize, Vec<u8>)>,
}

impl Device {
    fn run(&mut self, step: &Step) {
        match step {
            Step::Write { offset, bytes } => self.cache.extend(
                (*offset as usize..)
                    .step_by(SECTOR)
                    .zip(bytes.chunks(SECTOR).map(<[u8]>::to_vec)),
            ),
            Step::Flush => self.keep(|_| true),
        }
    }

    fn write(&mut self, image: &MetadataImage) {
        for step in image.write_steps() {
            self.run(&step);
        }
    }

    fn keep(&mut self, mut kept: impl FnMut(usize) -> bool) {
        for (index, (at, sector)) in self.cache.drain(..).enumerate() {
            if kept(index) {
                self.durable[at..at + SECTOR].copy_from_slice(&sector);
            }
        }
    }

    fn load(
        &self,
        device_bytes: u64,
        known: Option<KnownDevice>,
    ) -> Result<MetadataImage, LoadError<String>> {
        load_grown(Placement::Internal, device_bytes, known, |offset, bytes| {
            let at = offset as usize;
            let source = self.durable.get(at..at + bytes.len()).ok_or("beyond")?;
            bytes.copy_from_slice(source);
            Ok(())
        })
        .map_err(|error: LoadError<&str>| match error {
            LoadError::Read { offset, error } => LoadError::Read {
                offset,
                error: error.to_string(),
            },
            LoadError::Superblock(error) => LoadError::Superblock(error),
            LoadError::OtherVolume {
                found,
                known,
                known_bytes,
            } => LoadError::OtherVolume {
                found,
                known,
                known_bytes,
            },
            other => panic!("{other}"),
        })
    }
}

/// Metadata of a new volume for a device of that size.
fn new_metadata(device_bytes: u64, max_peers: u8, device_uuid: u64) -> MetadataImage {
    image::create(&CreateOptions {
        placement: Placement::Internal,
        device_bytes,
        max_peers,
        node_id: NodeId(0),
        device_uuid,
        al_slots: 9,
    })
    .unwrap()
}

/// A device that grew under a running volume: bits are set, the log holds extents.
fn running(max_peers: u8) -> (Device, Backing) {
    let mut image = new_metadata(OLD, max_peers, UUID);
    image.superblock.allocate_slot(NodeId(1)).unwrap();
    image.superblock.effective_bytes = image.layout.data_bytes;
    image.bitmaps[0].set(5..7);
    let mut device = Device {
        // What an earlier life of the storage left behind.
        durable: vec![0xA5; LARGER as usize],
        cache: Vec::new(),
    };
    device.write(&image);
    let (mut ring, steps) = image.start_log_steps(9);
    for step in &steps {
        device.run(step);
    }
    let mut log = ActivityLog::new(9);
    let transaction = log.plan([1, 3].into_iter()).expect("room for two extents");
    let (index, block) = ring.transaction(&transaction.updates, log.slots());
    log.committed();
    device.run(&Step::Write {
        offset: image.layout.ring_block_offset(index),
        bytes: block.to_vec(),
    });
    device.run(&Step::Flush);
    let backing = Backing {
        layout: image.layout,
        superblock: image.superblock,
        bitmaps: image.bitmaps,
        log,
        ring,
        writer: MetadataWriter::default(),
        crashed_primary: false,
        completion_gate: 0,
    };
    (device, backing)
}

/// The steps of the move, as the engine would carry them out.
fn moving(backing: &mut Backing) -> (Layout, Vec<Step>) {
    let sizes = DiskSizes {
        device_bytes: NEW,
        metadata_bytes: NEW,
    };
    let new = grown_layout(&backing.layout, sizes)
        .unwrap()
        .expect("it grew");
    backing.start_move(&new);
    let mut steps = Vec::new();
    while let Some(phase) = backing.writer.next_phase() {
        match phase {
            Phase::Block(offset, bytes) => steps.push(Step::Write { offset, bytes }),
            Phase::MovedBitmap(layout, slot, blocks) => steps.push(Step::Write {
                offset: layout.bitmap_block_offset(slot, blocks.start),
                bytes: blocks
                    .flat_map(|block| backing.bitmaps[slot].encode_block(slot, block))
                    .collect(),
            }),
            Phase::Zeroes(offset, bytes) => steps.push(Step::Write {
                offset,
                bytes: vec![0; bytes as usize],
            }),
            Phase::Flush => steps.push(Step::Flush),
            Phase::Moved(layout) => assert_eq!(layout, new),
            Phase::SuperblockDurable(_) => {}
            other => panic!("{other:?} in a move"),
        }
    }
    (new, steps)
}

fn is_whole(image: &MetadataImage) {
    assert_eq!(image.bitmaps[0].count(), 2, "bits are lost");
    assert!(image.bitmaps[0].is_set(5) && image.bitmaps[0].is_set(6));
    match &image.logged {
        LoggedExtents::Known(extents) => {
            let mut extents = extents.clone();
            extents.sort_unstable();
            assert_eq!(extents, [1, 3], "extents are lost");
        }
        LoggedExtents::Unknown => panic!("the log is lost"),
    }
}

/// What a power loss at any step of the move leaves on a device that has `device_bytes` afterwards.
fn crash_at_any_step(max_peers: u8, known: KnownDevice, device_bytes: u64) {
    let (device, mut backing) = running(max_peers);
    let old = backing.layout;
    let (new, steps) = moving(&mut backing);
    let mut before = device;
    let (mut at_old, mut at_new, mut unfinished) = (0, 0, 0);
    for (done, step) in steps.iter().enumerate() {
        before.run(step);
        for subset in 0..20u64 {
            let mut crashed = before.clone();
            let mut random = (subset << 32 ^ done as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            crashed.keep(|index| match subset {
                0 => false,
                1 => true,
                2 => index % 2 == 0,
                3 => index % 2 == 1,
                _ => {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random & 1 != 0
                }
            });
            let mut image = crashed
                .load(device_bytes, Some(known))
                .unwrap_or_else(|error| panic!("step {done}, subset {subset}: {error}"));
            is_whole(&image);
            let moved = image.layout == new;
            let (came_from, left) = if moved { (new, old) } else { (old, new) };
            assert_eq!(image.layout, came_from, "step {done}, subset {subset}");
            at_old += u32::from(!moved);
            at_new += u32::from(moved);
            unfinished += u32::from(moved && !image.superseded.is_empty());
            // The next attach leaves nothing in the other place, once it knows that something may be there.
            let told = moved || known.moving_to.is_some();
            for step in image.clean_steps() {
                crashed.run(&step);
            }
            crashed.keep(|_| true);
            let left = left.metadata_offset() as usize..left.device_bytes as usize;
            assert!(
                !told || crashed.durable[left].iter().all(|&byte| byte == 0),
                "step {done}, {subset}"
            );
            let known = KnownDevice::of(&image.superblock);
            let again = crashed.load(device_bytes, Some(known)).unwrap();
            assert_eq!(again.layout, image.layout);
            if moved {
                assert!(
                    crashed.load(OLD, None).is_err(),
                    "the old superblock comes back when the device is made smaller again"
                );
            }
        }
    }
    assert!(at_old > 0 && at_new > 0 && unfinished > 0);
}

#[test]
fn a_power_loss_at_any_step_of_a_move_leaves_metadata_that_open_with_everything_in_them() {
    for max_peers in [1, 3] {
        crash_at_any_step(max_peers, MOVING, NEW);
        // What a version remembered that knew of one place only.
        crash_at_any_step(max_peers, KNOWN, NEW);
    }
}

#[test]
fn a_device_that_grows_again_during_the_move_has_its_metadata_in_one_of_the_two_places() {
    for max_peers in [1, 3] {
        crash_at_any_step(max_peers, MOVING, LARGER);
    }
}

#[test]
fn an_old_place_that_the_volume_has_grown_over_since_is_left_alone() {
    let (mut device, mut backing) = running(1);
    let old = backing.layout;
    let (new, steps) = moving(&mut backing);
    for step in &steps {
        device.run(step);
    }
    // The volume grew, and its data there look like the superblocks that were there.
    let mut before = backing.superblock.clone();
    before.device_bytes = OLD;
    before.sequence -= 1;
    backing.superblock.effective_bytes = new.data_bytes;
    let (data, now) = (before.encode(), backing.superblock.encode());
    for (layout, block) in [(old, data), (new, now)] {
        for offset in [layout.superblock_a, layout.superblock_b] {
            let bytes = block.to_vec();
            device.run(&Step::Write { offset, bytes });
        }
    }
    device.run(&Step::Flush);
    let image = device.load(LARGER, Some(MOVING)).unwrap();
    assert_eq!((image.layout, &image.superseded[..]), (new, &[][..]));
}

#[test]
fn what_another_volume_left_at_the_end_does_not_count_against_a_move_to_there() {
    let (mut device, _) = running(1);
    device.write(&new_metadata(NEW, 1, 0xBEEF));
    let image = device.load(NEW, Some(MOVING)).unwrap();
    is_whole(&image);
    assert_eq!(image.layout.device_bytes, OLD);
    assert!(device.load(NEW, Some(KNOWN)).is_err());
}

#[test]
fn nothing_that_an_earlier_life_left_at_the_new_end_takes_part() {
    // The same volume was larger once: whole metadata of it, older, lie at the new end.
    let (mut device, mut backing) = running(1);
    device.write(&new_metadata(NEW, 1, UUID));
    let found = device.load(NEW, Some(KNOWN)).unwrap();
    assert_eq!(found.layout.device_bytes, OLD);
    is_whole(&found);
    let (_, steps) = moving(&mut backing);
    for step in &steps {
        device.run(step);
        let mut crashed = device.clone();
        crashed.keep(|index| index % 3 != 0);
        is_whole(&crashed.load(NEW, Some(KNOWN)).unwrap());
    }
}

#[test]
fn a_device_whose_end_belongs_to_another_volume_is_refused_with_both_named() {
    let (mut device, _) = running(1);
    device.write(&new_metadata(NEW, 1, 0xBEEF));
    let error = device.load(NEW, Some(KNOWN)).unwrap_err().to_string();
    for part in ["BEEF", "FEED", "create-md", &OLD.to_string()] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(
        device.load(NEW, None).is_ok(),
        "nothing is known of another"
    );
}

#[test]
fn a_device_that_grew_too_little_is_told_the_size_that_would_do() {
    for max_peers in [1, 3, 31] {
        let old = Layout::new(Placement::Internal, OLD, max_peers).unwrap();
        let at = |device_bytes| {
            let sizes = DiskSizes {
                device_bytes,
                metadata_bytes: device_bytes,
            };
            grown_layout(&old, sizes)
        };
        assert_eq!(at(OLD), Ok(None));
        assert_eq!(at(OLD + 4095), Ok(None));
        let Err(GrowthError::TooLittle { needed_bytes, .. }) = at(OLD + 4096) else {
            panic!("one block is too little");
        };
        assert!(matches!(
            at(needed_bytes - 4096),
            Err(GrowthError::TooLittle { .. })
        ));
        let new = at(needed_bytes).unwrap().expect("large enough");
        assert!(new.data_bytes >= OLD, "the new metadata overlap the old");
        assert_eq!(
            at(OLD - 4096),
            Err(GrowthError::Shrunk {
                stored_bytes: OLD,
                device_bytes: OLD - 4096
            })
        );
    }
}

#[test]
fn external_metadata_become_longer_in_place() {
    let placement = |metadata_bytes| Placement::External { metadata_bytes };
    let large = 1 << 40;
    let old = Layout::new(placement(1 << 20), 1 << 30, 1).unwrap();
    let grow = |old: &Layout, device_bytes, metadata_bytes| {
        grown_layout(
            old,
            DiskSizes {
                device_bytes,
                metadata_bytes,
            },
        )
    };
    let new = grow(&old, 2 << 30, 1 << 20).unwrap().expect("it grew");
    assert_eq!(new.bitmap_offset, old.bitmap_offset);
    assert!(new.bitmap_slot_bytes > old.bitmap_slot_bytes);
    assert!(matches!(
        grow(&old, large, 1 << 20),
        Err(GrowthError::Layout(
            LayoutError::MetadataDeviceTooSmall { .. }
        ))
    ));
    assert!(grow(&old, large, 64 << 20).unwrap().is_some());
    let several = Layout::new(placement(1 << 20), 1 << 30, 2).unwrap();
    assert_eq!(
        grow(&several, 2 << 30, 1 << 20),
        Err(GrowthError::SlotsWouldMove { max_peers: 2 })
    );
    assert!(grow(&several, (1 << 30) + 4096, 1 << 20).unwrap().is_some());
}
