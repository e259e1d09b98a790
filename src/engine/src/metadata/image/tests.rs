//! Claims about making, reading and repairing whole metadata, on a device with a volatile cache that crashes at any step.

use std::collections::BTreeSet;
use std::string::{String, ToString};

use proptest::prelude::*;

use super::*;
use crate::metadata::MetadataBlock;
use crate::metadata::copies::MetadataError;
use crate::metadata::ring::RingError;
use crate::metadata::superblock::SuperblockError;
use crate::metadata::superblock::tests::seal;
use crate::units::EXTENT_BYTES;

const SECTOR: usize = 512;
const BLOCK: usize = METADATA_BLOCK_BYTES as usize;
/// Ten extents and a bit: more than one on-disk bitmap block would need 126 MiB, so tests that want two use 200 MiB.
const DEVICE_BYTES: u64 = 10 * EXTENT_BYTES + 3 * 4096 + 512;

/// A device whose writes are durable only after a flush.
#[derive(Clone)]
struct Device {
    durable: Vec<u8>,
    /// Sectors written and not flushed, in order.
    cache: Vec<(usize, Vec<u8>)>,
}

impl Device {
    fn new(bytes: u64) -> Device {
        Device {
            durable: vec![0xA5; bytes as usize],
            cache: Vec::new(),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Write { offset, bytes } => {
                assert!(
                    offset % METADATA_BLOCK_BYTES == 0 && bytes.len() % BLOCK == 0,
                    "unaligned write"
                );
                let places = (*offset as usize..).step_by(SECTOR);
                self.cache
                    .extend(places.zip(bytes.chunks(SECTOR).map(<[u8]>::to_vec)));
            }
            Step::Flush => self.keep(|_| true),
        }
    }

    fn run_all(&mut self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            self.run(&step);
        }
        self.keep(|_| true);
    }

    /// What the cache holds reaches the disk, or not: `kept` is asked for each sector.
    fn keep(&mut self, mut kept: impl FnMut(usize) -> bool) {
        for (index, (at, sector)) in self.cache.drain(..).enumerate() {
            if kept(index) {
                self.durable[at..at + SECTOR].copy_from_slice(&sector);
            }
        }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let at = offset as usize;
        let source = self
            .durable
            .get(at..at + bytes.len())
            .ok_or("beyond the end")?;
        bytes.copy_from_slice(source);
        Ok(())
    }

    fn load(&self, options: &CreateOptions) -> Result<MetadataImage, LoadError<String>> {
        load(options.placement, options.device_bytes, |offset, bytes| {
            self.read(offset, bytes)
        })
    }

    fn load_for_repair(&self, options: &CreateOptions) -> Result<MetadataImage, LoadError<String>> {
        load_for_repair(options.placement, options.device_bytes, |offset, bytes| {
            self.read(offset, bytes)
        })
    }
}

/// States that a crash within `steps` leaves. After each step: the cache lost, kept, only its last write kept or lost whole,
/// its last write torn in the middle either way with the rest kept or lost, and some random subsets.
fn crashes(device: &Device, steps: &[Step], seed: u64) -> Vec<(usize, Device)> {
    let mut states = Vec::new();
    let mut device = device.clone();
    for (done, step) in steps.iter().enumerate() {
        let before = device.cache.len();
        device.run(step);
        let middle = before + device.cache.len().saturating_sub(before) / 2;
        for subset in 0..10u64 {
            let mut crashed = device.clone();
            let mut random =
                (seed ^ subset << 32 ^ done as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            crashed.keep(|index| match subset {
                0 => false,
                1 => true,
                2 => index >= before,
                3 => index < before,
                4 => index < middle,
                5 => index >= middle,
                6 => (before..middle).contains(&index),
                _ => {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random & 1 != 0
                }
            });
            states.push((done, crashed));
        }
    }
    states
}

fn options(placement: Placement) -> CreateOptions {
    CreateOptions {
        placement,
        device_bytes: DEVICE_BYTES,
        max_peers: 2,
        node_id: NodeId(1),
        device_uuid: 0xFEED,
        al_slots: 9,
    }
}

/// 34 blocks: the fixed part and two slots of one block.
fn external() -> CreateOptions {
    options(Placement::External {
        metadata_bytes: 34 * 4096,
    })
}

fn internal() -> CreateOptions {
    CreateOptions {
        device_bytes: (1 << 20) + 512,
        ..options(Placement::Internal)
    }
}

fn created(options: &CreateOptions) -> (Device, MetadataImage) {
    let bytes = match options.placement {
        Placement::Internal => options.device_bytes,
        Placement::External { metadata_bytes } | Placement::Indexed { metadata_bytes, .. } => {
            metadata_bytes
        }
    };
    let mut device = Device::new(bytes);
    let image = create(options).unwrap();
    device.run_all(image.write_steps());
    (device, image)
}

/// A volume with one peer whose log is running: slot 0 belongs to node 0.
fn running(options: &CreateOptions) -> (Device, MetadataImage, RingWriter) {
    let (mut device, mut image) = created(options);
    image.superblock.allocate_slot(NodeId(0)).unwrap();
    let (writer, steps) = image.start_log_steps(options.al_slots);
    device.run_all(steps);
    (device, image, writer)
}

fn log_extents(
    device: &mut Device,
    image: &MetadataImage,
    writer: &mut RingWriter,
    extents: &[u32],
) {
    let mut slots = vec![None; 9];
    let updates: Vec<_> = (0u16..)
        .zip(extents)
        .map(|(slot, &extent)| (slot, Some(extent)))
        .collect();
    for &(slot, extent) in &updates {
        slots[usize::from(slot)] = extent;
    }
    let (index, block) = writer.transaction(&updates, &slots);
    device.run_all([Step::Write {
        offset: image.layout.ring_block_offset(index),
        bytes: block.to_vec(),
    }]);
}

fn marked(bitmap: &Bitmap) -> BTreeSet<u64> {
    bitmap.runs().flatten().collect()
}

#[test]
fn created_metadata_loads_as_created_in_every_placement() {
    let indexed = options(Placement::Indexed {
        slot: 1,
        metadata_bytes: (128 << 20) + 34 * 4096,
    });
    for options in [internal(), external(), indexed] {
        let (device, image) = created(&options);
        let loaded = device.load(&options).unwrap();
        assert_eq!(
            (loaded.superblock.current, loaded.superblock.flags.al_clean),
            (Generation::JUST_CREATED, true)
        );
        assert_eq!(
            loaded,
            MetadataImage {
                ring_sequence: 30,
                ..image
            }
        );
        assert_eq!(device.load_for_repair(&options).unwrap(), loaded);
    }
}

#[test]
fn internal_metadata_leaves_the_data_alone() {
    let (device, image) = created(&internal());
    assert!(
        device.durable[..image.layout.data_bytes as usize]
            .iter()
            .all(|&byte| byte == 0xA5)
    );
    assert_eq!(device.durable[device.durable.len() - 512..], [0xA5; 512]);
}

#[test]
fn bad_options_are_refused() {
    for (al_slots, accepted) in [(8, false), (9, true), (26_680, true), (26_681, false)] {
        assert_eq!(
            create(&CreateOptions {
                al_slots,
                ..external()
            })
            .is_ok(),
            accepted,
            "{al_slots}"
        );
    }
    let error = create(&CreateOptions {
        max_peers: 3,
        ..external()
    })
    .unwrap_err();
    assert!(error.to_string().contains("143360 bytes"), "{error}");
}

#[test]
fn crash_while_making_leaves_the_old_metadata_or_none_or_the_new() {
    for options in [internal(), external()] {
        let (mut device, mut old, mut writer) = running(&options);
        log_extents(&mut device, &old, &mut writer, &[0]);
        old.ring_sequence = writer.next_sequence();
        old.logged = LoggedExtents::Known(vec![0]);
        let mut new = create(&CreateOptions {
            device_uuid: 0xBEEF,
            ..options
        })
        .unwrap();
        new.bitmaps[1].set(3..9);
        let steps: Vec<Step> = new.write_steps().collect();
        let mut seen = BTreeSet::new();
        for (done, crashed) in crashes(&device, &steps, 1) {
            match crashed.load(&options) {
                Ok(image) if image.superblock.device_uuid == 0xBEEF => {
                    assert_eq!(image.superblock, new.superblock, "after step {done}");
                    assert_eq!(
                        marked(&image.bitmaps[1]),
                        marked(&new.bitmaps[1]),
                        "after step {done}"
                    );
                    assert_eq!(image.logged, LoggedExtents::Known(vec![]));
                    seen.insert("new");
                }
                Ok(image) => {
                    assert_eq!(
                        (image.superblock, image.logged),
                        (old.superblock.clone(), old.logged.clone())
                    );
                    assert!(done < 3, "old metadata after step {done}");
                    seen.insert("old");
                }
                Err(LoadError::Superblock(
                    MetadataError::NotFound { .. } | MetadataError::Damaged { .. },
                )) => {
                    seen.insert("none");
                }
                Err(error) => panic!("after step {done}: {error}"),
            }
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
}

#[test]
fn superblock_update_is_old_or_new_and_durable_after_the_first_flush() {
    let many = CreateOptions {
        max_peers: 6,
        ..options(Placement::External {
            metadata_bytes: 38 * 4096,
        })
    };
    let (mut device, mut image, _) = running(&many);
    for generation in 1..6u64 {
        let old = image.superblock.clone();
        image.superblock.current = Generation(generation << 8);
        // Lies in the second sector, so a write can be torn.
        image.superblock.peers[4].bitmap = Generation(generation << 8);
        let steps = superblock_update(&mut image.superblock, &image.layout);
        for (done, crashed) in crashes(&device, &steps, generation) {
            let mut loaded = crashed.load(&many).unwrap();
            assert!(loaded.superblock == image.superblock || loaded.superblock == old);
            assert!(
                done < 1 || loaded.superblock == image.superblock,
                "lost after step {done}"
            );

            // The first update after that crash spares the good copy.
            let before = loaded.superblock.clone();
            loaded.superblock.peers[5].bitmap = Generation(0x77 << 8);
            let steps = loaded.superblock_update();
            assert!(loaded.stale.is_empty());
            for (again_done, again) in crashes(&crashed, &steps, 77) {
                let current = again
                    .load(&many)
                    .unwrap_or_else(|error| panic!("{done}, {again_done}: {error}"))
                    .superblock;
                assert!(current == loaded.superblock || (again_done < 1 && current == before));
            }
        }
        device.run_all(steps);
    }
}

#[test]
fn crash_during_recovery_loses_no_logged_extent_and_no_bit() {
    let (mut device, mut image, mut writer) = running(&external());
    image.bitmaps[0].set(5..6);
    let block = image.bitmaps[0].encode_block(0, 0).to_vec();
    device.run_all([Step::Write {
        offset: image.layout.bitmap_block_offset(0, 0),
        bytes: block,
    }]);
    log_extents(&mut device, &image, &mut writer, &[3, 10, 7]);
    let expected: BTreeSet<u64> = [5]
        .into_iter()
        .chain(3 * 1024..4 * 1024)
        .chain(7 * 1024..8 * 1024)
        .chain(10 * 1024..10 * 1024 + 4)
        .collect();

    let mut loaded = device.load(&external()).unwrap();
    assert_eq!(loaded.logged, LoggedExtents::Known(vec![3, 10, 7]));
    let (_, steps) = loaded.start_log_steps(11);
    assert_eq!(marked(&loaded.bitmaps[0]), expected);
    assert!(
        loaded.bitmaps[1].is_empty(),
        "a slot that nobody owns stays as it is"
    );
    for (done, crashed) in crashes(&device, &steps, 5) {
        let mut again = crashed
            .load(&external())
            .unwrap_or_else(|error| panic!("after step {done}: {error}"));
        apply_activity_log(&mut again);
        assert_eq!(marked(&again.bitmaps[0]), expected, "after step {done}");
    }
    device.run_all(steps);
    let reloaded = device.load(&external()).unwrap();
    assert_eq!(
        (&reloaded.superblock, &reloaded.logged),
        (&loaded.superblock, &LoggedExtents::Known(vec![]))
    );
    assert!(!reloaded.superblock.flags.al_clean && reloaded.superblock.al_slots == 11);
}

#[test]
fn crash_during_recovery_from_a_damaged_copy_keeps_a_good_one() {
    for copy in [CopyName::A, CopyName::B] {
        for extents in [&[][..], &[4]] {
            let (mut device, image, mut writer) = running(&external());
            log_extents(&mut device, &image, &mut writer, extents);
            device.durable[image.layout.superblock_offset(copy) as usize + 700] ^= 1;
            let mut loaded = device.load(&external()).unwrap();
            assert_eq!(loaded.stale, [copy]);
            let (_, steps) = loaded.start_log_steps(7);
            for (done, crashed) in crashes(&device, &steps, 3) {
                let mut again = crashed
                    .load(&external())
                    .unwrap_or_else(|error| panic!("after step {done}: {error}"));
                assert!(again.superblock.sequence >= image.superblock.sequence);
                apply_activity_log(&mut again);
                assert_eq!(
                    again.bitmaps[0].count(),
                    1024 * extents.len() as u64,
                    "after step {done}"
                );
            }
        }
    }
}

#[test]
fn clean_steps_are_idempotent_and_leave_a_clean_log() {
    let (mut device, image, mut writer) = running(&external());
    log_extents(&mut device, &image, &mut writer, &[1]);
    let mut loaded = device.load(&external()).unwrap();
    let steps = loaded.clean_steps();
    device.run_all(steps);
    assert_eq!(loaded.clean_steps(), []);
    let reloaded = device.load(&external()).unwrap();
    assert!(reloaded.superblock.flags.al_clean);
    assert_eq!(reloaded.bitmaps[0].count(), 1024);
    assert_eq!(reloaded.logged, LoggedExtents::Known(vec![]));
}

#[test]
fn applied_log_is_counted_per_owned_slot_and_cut_at_the_end() {
    let (_, mut image) = created(&external());
    image.superblock.allocate_slot(NodeId(0)).unwrap();
    image.superblock.allocate_slot(NodeId(5)).unwrap();
    image.bitmaps[1].set(0..24);
    image.logged = LoggedExtents::Known(vec![0, 10, 99]);
    assert_eq!(apply_activity_log(&mut image), 2 * (1024 + 4) - 24);
    assert_eq!(apply_activity_log(&mut image), 0);
    image.logged = LoggedExtents::Unknown;
    assert_eq!(
        apply_activity_log(&mut image),
        2 * (10 * 1024 + 4 - 1024 - 4)
    );
}

#[test]
fn damaged_log_is_refused_and_repair_marks_everything() {
    let (mut device, mut image, _) = running(&external());
    let at = image.layout.ring_block_offset(7) as usize;
    device.durable[at + 100] ^= 1;
    let error = device.load(&external()).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::ActivityLog(RingError::Damaged { block: 7, .. })
        ),
        "{error}"
    );
    let mut repaired = device.load_for_repair(&external()).unwrap();
    assert_eq!(
        (&repaired.logged, repaired.damage.len()),
        (&LoggedExtents::Unknown, 1)
    );
    device.run_all(repaired.clean_steps());
    let reloaded = device.load(&external()).unwrap();
    assert_eq!(reloaded.bitmaps[0].count(), reloaded.bitmaps[0].blocks());

    let (mut device, _, _) = running(&external());
    image.superblock.flags.al_clean = true;
    device.run_all(superblock_update(&mut image.superblock, &image.layout));
    device.durable[at..at + 8192].fill(0);
    assert_eq!(
        device.load(&external()).unwrap().logged,
        LoggedExtents::Known(vec![]),
        "a clean log is not needed"
    );
}

#[test]
fn log_that_was_not_kept_makes_a_crashed_primary_resync_fully() {
    for (crashed_primary, logged) in [
        (true, LoggedExtents::Unknown),
        (false, LoggedExtents::Known(vec![])),
    ] {
        let (mut device, mut image, _) = running(&external());
        image.superblock.flags.al_disabled = true;
        image.superblock.flags.crashed_primary = crashed_primary;
        device.run_all(superblock_update(&mut image.superblock, &image.layout));
        assert_eq!(device.load(&external()).unwrap().logged, logged);
    }
}

#[test]
fn damaged_bitmap_sector_is_named_and_repair_marks_its_block() {
    let options = CreateOptions {
        device_bytes: 200 << 20,
        ..options(Placement::External {
            metadata_bytes: 36 * 4096,
        })
    };
    let (mut device, image) = created(&options);
    let at = image.layout.bitmap_block_offset(1, 1) as usize + 3 * 512;
    device.durable[at + 77] ^= 0x10;
    let error = device.load(&options).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("bitmap slot 1, sector 11: checksum"),
        "{error}"
    );
    let repaired = device.load_for_repair(&options).unwrap();
    assert_eq!(marked(&repaired.bitmaps[1]), (32_256..51_200).collect());
    assert_eq!(repaired.bitmaps[1].dirty_blocks().collect::<Vec<_>>(), [1]);
    assert!(repaired.bitmaps[0].is_empty());
}

#[test]
fn unreadable_copy_does_not_hide_the_other_and_other_read_errors_name_the_place() {
    let (device, image) = created(&external());
    let failing = |bad: &[u64]| {
        load(external().placement, DEVICE_BYTES, |offset, bytes| {
            if bad.contains(&offset) {
                Err(String::from("medium error"))
            } else {
                device.read(offset, bytes)
            }
        })
    };
    let (a, b) = (image.layout.superblock_a, image.layout.superblock_b);
    for (bad, copy) in [(a, CopyName::A), (b, CopyName::B)] {
        let loaded = failing(&[bad]).unwrap();
        assert_eq!(
            (loaded.stale, loaded.refused[0].error),
            (vec![copy], SuperblockError::Unreadable)
        );
    }
    let both = failing(&[a, b]).unwrap_err();
    assert_eq!(
        both,
        LoadError::Read {
            offset: a,
            error: "medium error".to_string()
        }
    );
    for offset in [
        image.layout.ring_offset,
        image.layout.bitmap_block_offset(1, 0),
    ] {
        let error = failing(&[offset]).unwrap_err();
        assert_eq!(
            error.to_string(),
            std::format!("cannot read metadata at byte {offset}: medium error")
        );
    }
}

#[test]
fn changed_device_sizes_are_refused_by_name() {
    let (mut device, mut image) = created(&external());
    image.superblock.effective_bytes = DEVICE_BYTES - 512;
    device.run_all(superblock_update(&mut image.superblock, &image.layout));
    assert_eq!(
        device.load(&external()).unwrap().volume_bytes,
        DEVICE_BYTES - 512
    );
    let grown = CreateOptions {
        device_bytes: DEVICE_BYTES + (1 << 20),
        ..external()
    };
    assert_eq!(
        device.load(&grown).unwrap().volume_bytes,
        DEVICE_BYTES - 512
    );
    let shrunk = CreateOptions {
        device_bytes: DEVICE_BYTES - 1024,
        ..external()
    };
    let error = device.load(&shrunk).unwrap_err();
    assert!(matches!(error, LoadError::EffectiveSize { .. }), "{error}");

    let (mut device, mut image) = created(&internal());
    image.superblock.device_bytes -= 4096;
    let steps = superblock_update(&mut image.superblock, &image.layout);
    device.run_all(steps);
    let error = device.load(&internal()).unwrap_err();
    assert!(matches!(error, LoadError::DeviceSize { .. }), "{error}");
    let grown = CreateOptions {
        device_bytes: internal().device_bytes + 4096,
        ..internal()
    };
    let mut moved = device.clone();
    moved.durable.extend([0; 4096]);
    let error = moved.load(&grown).unwrap_err();
    assert!(
        matches!(error, LoadError::Superblock(MetadataError::NotFound { .. })),
        "{error}"
    );
}

#[test]
fn volume_smaller_than_the_device_has_a_smaller_bitmap() {
    let (mut device, mut image) = created(&external());
    image.bitmaps[0].set(1999..2001);
    let bytes = image.bitmaps[0].encode_block(0, 0).to_vec();
    device.run_all([Step::Write {
        offset: image.layout.bitmap_block_offset(0, 0),
        bytes,
    }]);
    image.superblock.effective_bytes = 2000 * 4096;
    device.run_all(superblock_update(&mut image.superblock, &image.layout));
    let loaded = device.load(&external()).unwrap();
    assert_eq!(
        (loaded.bitmaps[0].blocks(), marked(&loaded.bitmaps[0])),
        (2000, [1999].into())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_damage_loads_or_is_refused_without_panic(
        edits in prop::collection::vec((0usize..34 * BLOCK, any::<u8>()), 1..20),
        sealed in any::<bool>(),
    ) {
        let (mut device, _, _) = running(&external());
        for (at, value) in edits {
            device.durable[at] = value;
        }
        if sealed {
            for at in [0, 31 * BLOCK] {
                let block: MetadataBlock = device.durable[at..at + BLOCK].try_into().unwrap();
                device.durable[at..at + BLOCK].copy_from_slice(&seal(block));
            }
        }
        if let Ok(mut image) = device.load_for_repair(&external()) {
            device.run_all(image.clean_steps());
            prop_assert!(device.load(&external()).is_ok());
        }
    }

    #[test]
    fn written_image_loads_as_it_was(bits in prop::collection::vec(0u64..10_000, 0..50), slot in 0usize..2) {
        let (mut device, mut image) = created(&external());
        for bit in bits {
            image.bitmaps[slot].set(bit..bit + 3);
        }
        image.superblock.push_history(Generation(88));
        device.run_all(image.write_steps());
        let loaded = device.load(&external()).unwrap();
        prop_assert_eq!(&loaded.superblock, &image.superblock);
        for slot in 0..2 {
            prop_assert_eq!(marked(&loaded.bitmaps[slot]), marked(&image.bitmaps[slot]));
        }
    }
}
