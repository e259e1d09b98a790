//! Claims about the bitmap in memory, on disk and on the wire, against a naive model.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of runs, often of one"
)]

use std::collections::BTreeSet;
use std::string::ToString;

use proptest::prelude::*;

use super::disk::{BITS_PER_DISK_SECTOR, disk_blocks_of};
use super::runs::{MIN_CHUNK_BYTES, decode_runs};
use super::*;
use crate::metadata::{METADATA_BLOCK_BYTES, MetadataBlock};

/// Three on-disk blocks, the last one partly used, the last word too.
const BLOCKS: u64 = 2 * BITS_PER_DISK_BLOCK + 5000;

fn bits(bitmap: &Bitmap) -> BTreeSet<u64> {
    bitmap.runs().flatten().collect()
}

fn bitmap_of(blocks: u64, ranges: &[Range<u64>]) -> Bitmap {
    let mut bitmap = Bitmap::new(blocks);
    for range in ranges {
        bitmap.set(range.clone());
    }
    bitmap
}

fn encode_slot(bitmap: &Bitmap, slot: usize) -> Vec<u8> {
    (0..bitmap.disk_blocks())
        .flat_map(|index| bitmap.encode_block(slot, index))
        .collect()
}

fn ranges(blocks: u64) -> impl Strategy<Value = Vec<Range<u64>>> {
    let range = (0..blocks, prop_oneof![1u64..4, 1u64..200, 1u64..blocks]);
    prop::collection::vec(
        range.prop_map(move |(start, length)| start..blocks.min(start + length)),
        0..12,
    )
}

#[test]
fn set_and_clear_count_what_changed() {
    let mut bitmap = Bitmap::new(1000);
    assert_eq!(bitmap.set(10..20), 10);
    assert_eq!(bitmap.set(15..30), 10);
    assert_eq!(bitmap.clear(0..12), 2);
    assert_eq!((bitmap.count(), bitmap.count_in(0..20)), (18, 8));
    assert!(
        bitmap.is_set(12)
            && !bitmap.is_set(11)
            && bitmap.any_set(29..31)
            && !bitmap.any_set(30..1000)
    );
    assert_eq!(bitmap.set_all(), 982);
    assert_eq!(bitmap.clear_all(), 1000);
    assert!(bitmap.is_empty());
    assert_eq!(bitmap.set(5..5), 0);
}

#[test]
fn empty_bitmap_works() {
    let mut bitmap = Bitmap::new(0);
    assert_eq!(
        (
            bitmap.set_all(),
            bitmap.next_run(0, 10),
            bitmap.disk_blocks()
        ),
        (0, None, 0)
    );
    assert_eq!(bitmap.encode_runs(0, MIN_CHUNK_BYTES).1, None);
}

#[test]
#[should_panic(expected = "blocks 999..1001 of 1000")]
fn range_beyond_the_device_is_a_bug() {
    Bitmap::new(1000).set(999..1001);
}

#[test]
fn next_run_is_cut_and_does_not_wrap() {
    let bitmap = bitmap_of(10_000, &[100..5000]);
    assert_eq!(bitmap.next_run(0, 64), Some(100..164));
    assert_eq!(bitmap.next_run(164, 1), Some(164..165));
    assert_eq!(bitmap.next_run(4999, u64::MAX), Some(4999..5000));
    assert_eq!(bitmap.next_run(5000, u64::MAX), None);
    assert_eq!(bitmap.next_run(10_000, u64::MAX), None);
    assert_eq!(bitmap.next_run(0, 0), None);
}

#[test]
fn scan_of_a_clean_tebibyte_finds_the_last_block() {
    let blocks = (1u64 << 40) / BLOCK_BYTES;
    let mut bitmap = Bitmap::new(blocks);
    bitmap.set(blocks - 1..blocks);
    assert_eq!(bitmap.next_run(0, u64::MAX), Some(blocks - 1..blocks));
    assert_eq!(
        bitmap.dirty_blocks().collect::<Vec<_>>(),
        [blocks.div_ceil(BITS_PER_DISK_BLOCK) - 1]
    );
}

#[test]
fn memory_follows_what_differs_and_not_the_device() {
    let blocks = (16u64 << 40) / BLOCK_BYTES;
    let mut bitmap = Bitmap::new(blocks);
    let table = bitmap.memory_bytes();
    assert!(table < 3 << 20, "{table} bytes of table");
    assert_eq!(bitmap.set_all(), blocks);
    assert_eq!(
        bitmap.memory_bytes(),
        table,
        "all set costs as little as none"
    );
    // A resync that copies it from the begin on.
    let mut from = 0;
    while let Some(run) = bitmap.next_run(from, 1 << 20) {
        assert_eq!(bitmap.clear(run.clone()), run.end - run.start);
        assert!(
            bitmap.memory_bytes() <= table + 8192,
            "at most one mixed chunk and a spare"
        );
        from = run.end;
    }
    assert!(bitmap.is_empty());
    for block in (0..blocks).step_by(1 << 30) {
        bitmap.set(block..block + 1);
    }
    assert!(bitmap.memory_bytes() <= table + 4 * 4096);
}

/// Ways to the same bits: equal bitmaps, equal answers.
#[test]
fn a_chunk_is_the_same_whichever_way_its_bits_came() {
    let last = 2 * BITS_PER_DISK_BLOCK;
    let mut piecewise = Bitmap::new(BLOCKS);
    for start in (0..BLOCKS).step_by(1000) {
        piecewise.set(start..BLOCKS.min(start + 1000));
    }
    let mut at_once = Bitmap::new(BLOCKS);
    at_once.set_all();
    assert_eq!(piecewise, at_once);
    assert_eq!(piecewise.memory_bytes(), at_once.memory_bytes());
    let mut grown = bitmap_of(last + 1, &[0..last + 1]);
    grown.resize(BLOCKS, true);
    assert_eq!(bits(&grown), bits(&at_once));
    let mut partly = bitmap_of(last + 1, &[0..last + 1]);
    partly.resize(BLOCKS, false);
    assert_eq!(partly.count(), last + 1);
    assert_eq!(partly.next_run(last, u64::MAX), Some(last..last + 1));
    partly.resize(last + 1, false);
    assert_eq!(bits(&partly), (0..last + 1).collect());
    let read = Bitmap::decode_slot(0, BLOCKS, &encode_slot(&at_once, 0)).unwrap();
    let _ = at_once.take_all_dirty();
    assert_eq!(read, at_once);
    assert_eq!(read.memory_bytes(), Bitmap::new(BLOCKS).memory_bytes());
    let mut merged = bitmap_of(BLOCKS, &[0..BITS_PER_DISK_BLOCK / 2]);
    merged.or_with(&bitmap_of(BLOCKS, &[BITS_PER_DISK_BLOCK / 2..BLOCKS]));
    let _ = merged.take_all_dirty();
    assert_eq!(merged, at_once);
}

#[test]
fn any_set_and_runs_cross_clear_full_and_mixed_chunks() {
    let chunk = BITS_PER_DISK_BLOCK;
    let bitmap = bitmap_of(
        5 * chunk,
        &[chunk - 3..3 * chunk + 5, 5 * chunk - 1..5 * chunk],
    );
    assert_eq!(
        bitmap.runs().collect::<Vec<_>>(),
        [chunk - 3..3 * chunk + 5, 5 * chunk - 1..5 * chunk]
    );
    assert!(!bitmap.any_set(0..chunk - 3) && bitmap.any_set(0..chunk - 2));
    assert!(!bitmap.any_set(3 * chunk + 5..5 * chunk - 1) && bitmap.any_set(4 * chunk..5 * chunk));
    assert_eq!(bitmap.count_in(2 * chunk - 1..2 * chunk + 1), 2);
    assert_eq!(
        bitmap.next_run(2 * chunk, chunk),
        Some(2 * chunk..3 * chunk)
    );
}

#[test]
fn dirty_blocks_are_those_whose_bits_changed() {
    let mut bitmap = Bitmap::new(BLOCKS);
    bitmap.set(BITS_PER_DISK_BLOCK - 1..BITS_PER_DISK_BLOCK + 1);
    assert_eq!(bitmap.dirty_blocks().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(bitmap.take_dirty(0..1), [0]);
    bitmap.set(BITS_PER_DISK_BLOCK - 1..BITS_PER_DISK_BLOCK);
    assert_eq!(
        bitmap.dirty_count(),
        1,
        "a bit that was set already changes nothing"
    );
    assert_eq!(
        bitmap.take_dirty(BITS_PER_DISK_BLOCK - 1..BITS_PER_DISK_BLOCK),
        []
    );
    assert_eq!(bitmap.take_all_dirty(), [1]);
    bitmap.mark_dirty(2);
    bitmap.mark_dirty(3);
    assert_eq!(
        bitmap.take_all_dirty(),
        [2],
        "a block beyond the bitmap is never dirty"
    );
}

#[test]
fn extent_maps_to_at_most_two_disk_blocks() {
    assert_eq!(disk_blocks_of(0..1024), 0..1);
    assert_eq!(disk_blocks_of(31 * 1024..32 * 1024), 0..2);
    assert_eq!(disk_blocks_of(32 * 1024..33 * 1024), 1..2);
    assert_eq!(disk_blocks_of(7..7), 0..0);
}

#[test]
fn bits_that_a_shrink_dropped_do_not_come_back_from_the_disk() {
    let mut bitmap = bitmap_of(BLOCKS, &[0..BLOCKS]);
    let mut disk = encode_slot(&bitmap, 0);
    let _ = bitmap.take_all_dirty();
    bitmap.resize(100, true);
    assert_eq!((bitmap.count(), bitmap.take_all_dirty()), (100, vec![0]));
    bitmap.resize(BLOCKS, false);
    assert_eq!(bitmap.count(), 100);
    for index in bitmap.take_all_dirty() {
        disk[index as usize * 4096..][..4096].copy_from_slice(&bitmap.encode_block(0, index));
    }
    assert_eq!(
        bits(&Bitmap::decode_slot(0, BLOCKS, &disk).unwrap()),
        (0..100).collect()
    );
}

/// Slot 3, sector 9 (the second of on-disk block 1).
#[test]
fn golden_sector() {
    let first = 9 * BITS_PER_DISK_SECTOR;
    let bitmap = bitmap_of(
        BLOCKS,
        &[
            first..first + 1,
            first + 9..first + 13,
            first + 4031..first + 4032,
        ],
    );
    let block = bitmap.encode_block(3, 1);
    let mut expected = [0; 512];
    expected[0..4].copy_from_slice(&[0xA4, 0x4E, 0xB5, 0x00]); // CRC-32 with "QBM1" in this place
    expected[4..8].copy_from_slice(&[0x09, 0x00, 0x00, 0x18]); // tag: 3 << 27 | 9
    expected[8] = 0b0000_0001; // block 36288
    expected[9] = 0b0001_1110; // blocks 36297..36301
    expected[511] = 0b1000_0000; // block 40319
    assert_eq!(block[512..1024], expected);
}

#[test]
fn every_flipped_bit_of_a_disk_block_is_refused_by_its_sector() {
    let bitmap = bitmap_of(BLOCKS, &[0..7, 5000..6000]);
    let good = bitmap.encode_block(0, 0);
    for bit in 0..good.len() * 8 {
        let mut block = good;
        block[bit / 8] ^= 1 << (bit % 8);
        let error = Bitmap::new(BLOCKS).decode_block(0, 0, &block).unwrap_err();
        let BitmapError::Checksum {
            slot: 0, sector, ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!(sector, bit as u64 / 8 / 512);
    }
}

#[test]
fn blank_misplaced_and_short_slots_are_refused_by_name() {
    let bitmap = bitmap_of(BLOCKS, &[0..7]);
    let mut bytes = encode_slot(&bitmap, 2);
    let error = Bitmap::decode_slot(1, BLOCKS, &bytes).unwrap_err();
    assert_eq!(
        error,
        BitmapError::Misplaced {
            slot: 1,
            sector: 0,
            found_slot: 2,
            found_sector: 0
        }
    );
    bytes.rotate_left(4096);
    let error = Bitmap::decode_slot(2, BLOCKS, &bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bitmap slot 2, sector 0: holds slot 2, sector 8"
    );
    bytes.rotate_right(4096);
    for length in 0..bytes.len() {
        let error = Bitmap::decode_slot(2, BLOCKS, &bytes[..length]).unwrap_err();
        assert!(
            matches!(error, BitmapError::Length { slot: 2, .. }),
            "{error}"
        );
    }
    bytes[4096..8192].fill(0);
    let error = Bitmap::decode_slot(2, BLOCKS, &bytes).unwrap_err();
    assert!(
        matches!(
            error,
            BitmapError::Checksum {
                slot: 2,
                sector: 8,
                stored: 0,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn torn_write_of_any_sectors_leaves_each_sector_old_or_new() {
    let old = bitmap_of(BITS_PER_DISK_BLOCK, &[0..3000, 20_000..20_001]);
    let new = bitmap_of(BITS_PER_DISK_BLOCK, &[2000..9000, 31_000..32_000]);
    let (old_block, new_block) = (old.encode_block(0, 0), new.encode_block(0, 0));
    for written in 0..1u64 << 8 {
        let mut block = old_block;
        for sector in (0..8).filter(|sector| written >> sector & 1 != 0) {
            let place = sector * 512..(sector + 1) * 512;
            block[place.clone()].copy_from_slice(&new_block[place]);
        }
        let torn = Bitmap::decode_slot(0, BITS_PER_DISK_BLOCK, &block).unwrap();
        for bit in 0..BITS_PER_DISK_BLOCK {
            let source = if written >> (bit / BITS_PER_DISK_SECTOR) & 1 != 0 {
                &new
            } else {
                &old
            };
            assert_eq!(torn.is_set(bit), source.is_set(bit));
        }
    }
}

#[test]
fn bits_beyond_the_volume_are_left_out_and_rewritten() {
    let large = bitmap_of(BLOCKS, &[90..110]);
    let mut small = Bitmap::new(100);
    small.decode_block(0, 0, &large.encode_block(0, 0)).unwrap();
    assert_eq!(bits(&small), (90..100).collect());
    assert_eq!(small.take_all_dirty(), [0]);
    small.decode_block(0, 0, &small.encode_block(0, 0)).unwrap();
    assert_eq!(small.dirty_count(), 0);
}

#[test]
fn damaged_disk_block_can_be_counted_as_out_of_sync() {
    let mut bitmap = bitmap_of(BLOCKS, &[BITS_PER_DISK_BLOCK..BITS_PER_DISK_BLOCK + 10]);
    assert_eq!(bitmap.set_disk_block(1), BITS_PER_DISK_BLOCK - 10);
    assert_eq!(bitmap.set_disk_block(2), 5000);
    assert_eq!(bitmap.set_disk_block(3), 0);
}

#[test]
fn golden_chunks() {
    let bitmap = bitmap_of(100_000, &[10..11, 300..100_000]);
    // kind 0; first 5; gap 5, length 1; gap 289, length 99 700
    let expected = [0x00, 0x05, 0x05, 0x01, 0xA1, 0x02, 0xF4, 0x8A, 0x06];
    assert_eq!(bitmap.encode_runs(5, 64), (expected.to_vec(), None));
    let mut bitmap = Bitmap::new(100_000);
    for block in (0..100_000).step_by(2) {
        bitmap.set(block..block + 1);
    }
    // kind 1; first 300; bits of blocks 300..796
    let mut expected = vec![0x01, 0xAC, 0x02];
    expected.resize(64, 0x55);
    assert_eq!(bitmap.encode_runs(300, 64), (expected, Some(300 + 61 * 8)));
}

#[test]
fn bad_chunks_are_refused_by_name() {
    let blocks = 1000;
    for (chunk, error) in [
        (&[][..], RunsError::Truncated { at: 0 }),
        (&[0], RunsError::Truncated { at: 1 }),
        (&[2, 0], RunsError::Kind { kind: 2 }),
        (&[0, 0, 5], RunsError::Truncated { at: 3 }),
        (&[0, 0, 0x80], RunsError::Truncated { at: 3 }),
        (&[0, 0, 0x80, 0, 1], RunsError::Number { at: 2 }),
        (
            &[0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 1],
            RunsError::Number { at: 2 },
        ),
        (&[0, 0, 1, 0], RunsError::EmptyRun { at: 2 }),
        (&[0, 0, 1, 1, 0, 1], RunsError::EmptyRun { at: 4 }),
        (&[0, 0xE9, 7], RunsError::Beyond { end: 1001, blocks }),
        (&[0, 0xE7, 7, 0, 2], RunsError::Beyond { end: 1001, blocks }),
        (&[1, 0xE7, 7, 2], RunsError::Beyond { end: 1001, blocks }),
    ] {
        assert_eq!(decode_runs(chunk, blocks), Err(error), "{chunk:?}");
    }
}

#[derive(Clone, Debug)]
enum Action {
    Set(Range<u64>),
    Clear(Range<u64>),
    Or(Vec<Range<u64>>),
    Resize(u64, bool),
    WriteBack(Range<u64>),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let range = || {
        let length = prop_oneof![0u64..5, 0u64..300, 0u64..BLOCKS];
        (0..BLOCKS, length).prop_map(|(start, length)| start..BLOCKS.min(start + length))
    };
    let action = prop_oneof![
        4 => range().prop_map(Action::Set),
        3 => range().prop_map(Action::Clear),
        1 => ranges(BLOCKS).prop_map(Action::Or),
        1 => (1..BLOCKS, any::<bool>()).prop_map(|(blocks, set)| Action::Resize(blocks, set)),
        1 => range().prop_map(Action::WriteBack),
    ];
    prop::collection::vec(action, 0..25)
}

fn within(range: &Range<u64>, blocks: u64) -> Range<u64> {
    range.start.min(blocks)..range.end.min(blocks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Also: writing back the dirty blocks, in whatever portions, keeps the disk equal to memory.
    #[test]
    fn bitmap_behaves_as_a_set(actions in actions()) {
        let mut bitmap = Bitmap::new(BLOCKS);
        let mut model: BTreeSet<u64> = BTreeSet::new();
        let mut disk = encode_slot(&bitmap, 7);
        let write_back = |bitmap: &mut Bitmap, disk: &mut [u8], range: Range<u64>| {
            for index in bitmap.take_dirty(range) {
                let place = index as usize * 4096..(index as usize + 1) * 4096;
                disk[place].copy_from_slice(&bitmap.encode_block(7, index));
            }
        };
        for action in actions {
            let blocks = bitmap.blocks();
            match action {
                Action::Set(range) => {
                    let range = within(&range, blocks);
                    let newly = range.clone().filter(|&block| model.insert(block)).count();
                    prop_assert_eq!(bitmap.set(range), newly as u64);
                }
                Action::Clear(range) => {
                    let range = within(&range, blocks);
                    let newly = range.clone().filter(|block| model.remove(block)).count();
                    prop_assert_eq!(bitmap.clear(range), newly as u64);
                }
                Action::Or(ranges) => {
                    let ranges: Vec<_> = ranges.iter().map(|range| within(range, blocks)).collect();
                    let newly = ranges.iter().cloned().flatten().filter(|&block| model.insert(block)).count();
                    prop_assert_eq!(bitmap.or_with(&bitmap_of(blocks, &ranges)), newly as u64);
                }
                Action::Resize(size, set) => {
                    bitmap.resize(size, set);
                    model.split_off(&size);
                    if set {
                        model.extend(blocks..size);
                    }
                }
                Action::WriteBack(range) => write_back(&mut bitmap, &mut disk, range),
            }
            prop_assert_eq!(bitmap.count(), model.len() as u64);
            prop_assert_eq!(bitmap.dirty_count(), bitmap.dirty_blocks().count() as u64);
        }
        prop_assert_eq!(&bits(&bitmap), &model);
        for from in (0..bitmap.blocks()).step_by(997) {
            let start = model.range(from..).next().copied();
            prop_assert_eq!(bitmap.next_run(from, 1), start.map(|start| start..start + 1));
            let count = model.range(from..).count() as u64;
            prop_assert_eq!(bitmap.count_in(from..bitmap.blocks()), count);
            prop_assert_eq!(bitmap.is_set(from), model.contains(&from));
        }
        let blocks = bitmap.blocks();
        write_back(&mut bitmap, &mut disk, 0..blocks);
        prop_assert_eq!(bitmap.dirty_count(), 0);
        let mut reread = Bitmap::decode_slot(7, blocks, &disk).unwrap();
        prop_assert_eq!(bits(&reread), model);
        let _ = reread.take_all_dirty();
        prop_assert_eq!(reread, bitmap);
    }

    #[test]
    fn chunks_of_any_budget_carry_every_bit(
        ranges in ranges(20_000),
        noise in prop::collection::vec(0u64..20_000, 0..2000),
        budget in MIN_CHUNK_BYTES..2000,
    ) {
        let mut bitmap = bitmap_of(20_000, &ranges);
        for block in noise {
            bitmap.set(block..block + 1);
        }
        let mut received = Bitmap::new(20_000);
        let mut next = Some(0);
        let mut chunks = 0;
        while let Some(from) = next {
            let (chunk, following) = bitmap.encode_runs(from, budget);
            prop_assert!(chunk.len() <= budget);
            prop_assert!(following.is_none_or(|following| following > from));
            for run in received.decode_runs(&chunk).unwrap() {
                prop_assert!(run.start >= from);
                received.set(run);
            }
            next = following;
            chunks += 1;
        }
        prop_assert_eq!(bits(&received), bits(&bitmap));
        prop_assert!(chunks <= 20_000 / ((budget - 11) * 8) + 1, "{} chunks", chunks);
    }

    #[test]
    fn any_bytes_decode_to_ascending_runs_within_the_device_or_are_refused(
        kind in 0u8..3,
        bytes in prop::collection::vec(any::<u8>(), 0..40),
        blocks in prop_oneof![0u64..2000, Just(u64::MAX)],
    ) {
        let chunk: Vec<u8> = [kind].into_iter().chain(bytes).collect();
        if let Ok(runs) = decode_runs(&chunk, blocks) {
            prop_assert!(runs.len() <= chunk.len() * 4);
            let mut end = 0;
            for run in runs {
                prop_assert!(run.start >= end && run.start < run.end && run.end <= blocks);
                end = run.end;
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_as_a_disk_block(mut bytes in prop::collection::vec(any::<u8>(), 4096), keep in 0usize..8) {
        let good = bitmap_of(BLOCKS, &[0..100]).encode_block(0, 0);
        bytes[keep * 512..(keep + 1) * 512].copy_from_slice(&good[keep * 512..(keep + 1) * 512]);
        let block: MetadataBlock = bytes.try_into().unwrap();
        let mut bitmap = Bitmap::new(BLOCKS);
        prop_assert!(bitmap.decode_block(0, 0, &block).is_err());
        prop_assert_eq!(bitmap, Bitmap::new(BLOCKS));
        prop_assert_eq!(block.len() as u64, METADATA_BLOCK_BYTES);
    }
}
