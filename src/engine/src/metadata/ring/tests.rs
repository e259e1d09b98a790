//! Claims about the on-disk ring, against a list of what each transaction made of the log.

use std::string::ToString;

use proptest::prelude::*;

use super::*;
use crate::metadata::layout::RING_BLOCKS;

const BLOCK: usize = METADATA_BLOCK_BYTES as usize;

/// A ring on disk, its writer, and the log after each transaction.
struct Disk {
    bytes: Vec<u8>,
    writer: RingWriter,
    log: Vec<Option<u32>>,
}

impl Disk {
    fn new(ring_blocks: u32, slots: u32, first_sequence: u64) -> Disk {
        let (writer, blocks) = RingWriter::fresh(ring_blocks, slots, first_sequence);
        Disk {
            bytes: blocks.concat(),
            writer,
            log: vec![None; slots as usize],
        }
    }

    fn next(&mut self, updates: &[(u16, Option<u32>)]) -> (usize, MetadataBlock) {
        for &(slot, extent) in updates {
            self.log[usize::from(slot)] = extent;
        }
        let (index, block) = self.writer.transaction(updates, &self.log);
        (index as usize * BLOCK, block)
    }

    fn commit(&mut self, updates: &[(u16, Option<u32>)]) {
        let (at, block) = self.next(updates);
        self.bytes[at..at + BLOCK].copy_from_slice(&block);
    }
}

fn reseal(block: &mut [u8]) {
    let block: &mut MetadataBlock = block.try_into().unwrap();
    let crc = checksum(block, AT_CRC);
    put_u32(block, AT_CRC, crc);
}

#[test]
fn golden_transaction_block() {
    let mut expected = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QBAL"); // magic
    put(4, &[1, 0]); // format version
    put(6, &[2, 0]); // updates
    put(8, &[0x99, 0x22, 0x9E, 0x17]); // CRC-32 with zero in this place
    put(12, &[0xD5, 0x04, 0, 0]); // slots of the log: 1237
    put(16, &[0xE8, 0x03, 0, 0, 0, 0, 0, 0]); // sequence 1000
    put(24, &[0x8D, 0x03]); // context starts at slot 909
    put(26, &[0x98, 0x03]); // context of 920 slots
    put(28, &[30, 0, 0, 0]); // blocks of the ring
    put(32, &[3, 0, 0xD4, 0x04]); // updates: slots 3 and 1236
    put(160, &[4, 3, 2, 1, 0xFF, 0xFF, 0xFF, 0xFF]); // updates: extent 0x01020304, empty
    put(416, &[0xFF; 3680]); // context: empty slots, but
    put(416, &[7, 0, 0, 0]); // slot 909 has extent 7
    put(416 + 4 * 331, &[4, 3, 2, 1]); // slot (909 + 331) % 1237 = 3
    let mut slots = vec![None; 1237];
    (slots[909], slots[3]) = (Some(7), Some(0x0102_0304));
    let mut writer = RingWriter::new(30, 1237, 1000);
    let (index, block) = writer.transaction(&[(3, Some(0x0102_0304)), (1236, None)], &slots);
    assert_eq!((index, writer.next_sequence()), (10, 1001));
    assert_eq!(block, expected);
}

#[test]
fn sizes_are_the_documented_ones() {
    assert_eq!(max_extents(RING_BLOCKS), 26_680);
    assert_eq!(max_extents(2), 920);
    assert_eq!(max_extents(1), 0);
    assert_eq!(max_extents(u32::MAX), MAX_SLOTS);
}

#[test]
fn fresh_ring_replays_to_an_empty_log_and_continues_above_the_old_sequence() {
    let disk = Disk::new(RING_BLOCKS, 1237, 1001);
    let replay = replay(&disk.bytes).unwrap();
    assert_eq!(
        replay,
        Replay {
            slots: vec![None; 1237],
            next_sequence: 1050,
            torn: None
        }
    );
    assert_eq!(sequence_after(&disk.bytes), 1050);
    assert_eq!(sequence_after(&[0; 3 * BLOCK]), 0);
}

/// The newest block is not distinguishable from a torn one; every other damage is refused.
#[test]
fn every_flipped_bit_is_refused_or_counts_as_a_torn_newest_block() {
    let mut disk = Disk::new(3, 100, 0);
    disk.commit(&[(0, Some(11))]);
    disk.commit(&[(1, Some(12))]);
    let before = disk.log.clone();
    disk.commit(&[(2, Some(13))]);
    assert_eq!(
        disk.writer.next_sequence(),
        6,
        "the newest block is the last one"
    );
    for bit in 0..disk.bytes.len() * 8 {
        disk.bytes[bit / 8] ^= 1 << (bit % 8);
        let block = (bit / 8 / BLOCK) as u32;
        match replay(&disk.bytes) {
            Ok(replay) if block == 2 => {
                assert_eq!(
                    replay,
                    Replay {
                        slots: before.clone(),
                        next_sequence: 5,
                        torn: Some(2)
                    }
                );
            }
            // The oldest block is where the next transaction would be torn.
            Ok(replay) if block == 0 => {
                assert_eq!((replay.slots, replay.torn), (disk.log.clone(), Some(0)))
            }
            Ok(_) => panic!("bit {bit} of block {block} harmless"),
            Err(error) => assert!(
                matches!(error, RingError::Damaged { block: 1, .. }),
                "bit {bit}: {error}"
            ),
        }
        disk.bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_prefix_is_refused() {
    let disk = Disk::new(3, 1237, 0);
    for length in 0..disk.bytes.len() {
        assert!(replay(&disk.bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn damage_beyond_one_torn_block_names_block_and_remedy() {
    let mut disk = Disk::new(RING_BLOCKS, 1237, 0);
    for extent in 0..45 {
        disk.commit(&[(extent, Some(u32::from(extent)))]);
    }
    let good = disk.bytes.clone();
    disk.bytes[5 * BLOCK + 9] ^= 1;
    let error = replay(&disk.bytes).unwrap_err();
    assert_eq!(
        error,
        RingError::Damaged {
            block: 5,
            error: BlockError::Checksum
        }
    );
    assert!(
        error.to_string().contains("apply-al") && error.to_string().contains("full resync"),
        "{error}"
    );

    disk.bytes = good.clone();
    disk.bytes.copy_within(0..BLOCK, 20 * BLOCK);
    let error = replay(&disk.bytes).unwrap_err();
    assert_eq!(
        error,
        RingError::Gap {
            block: 20,
            expected: 50,
            found: 60
        }
    );

    let error = replay(&[0; 30 * BLOCK]).unwrap_err();
    assert_eq!(
        error,
        RingError::Damaged {
            block: 0,
            error: BlockError::NoMagic
        }
    );
}

#[test]
fn lost_durable_transaction_is_a_gap() {
    let mut disk = Disk::new(4, 100, 0);
    disk.commit(&[(0, Some(1))]);
    let (_lost_at, _lost) = disk.next(&[(1, Some(2))]);
    disk.commit(&[(2, Some(3))]);
    assert_eq!(
        replay(&disk.bytes),
        Err(RingError::Gap {
            block: 1,
            expected: 5,
            found: 1
        })
    );
}

#[test]
fn impossible_values_are_refused_by_the_name_of_the_field() {
    let cases: [(usize, &[u8], &str); 9] = [
        (AT_UPDATE_COUNT, &[65], "update count"),
        (AT_SLOT_COUNT, &[0; 4], "slot count"),
        (AT_SLOT_COUNT, &[0, 0, 1], "slot count"),
        (AT_SEQUENCE, &[0xFF; 8], "sequence"),
        (AT_CONTEXT_START, &[1], "context start"),
        (AT_CONTEXT_COUNT, &[1], "context count"),
        (AT_UPDATE_SLOTS, &[100], "update slot"),
        (AT_RING_BLOCKS, &[4], "ring blocks"),
        (AT_UPDATE_SLOTS + 2, &[1], "reserved bytes"),
    ];
    for (at, bytes, name) in cases {
        let mut disk = Disk::new(3, 100, 0);
        disk.commit(&[(0, Some(1))]);
        disk.bytes[BLOCK + at..BLOCK + at + bytes.len()].copy_from_slice(bytes);
        if name == "update slot" {
            disk.bytes[BLOCK + AT_UPDATE_COUNT] = 1;
        }
        reseal(&mut disk.bytes[BLOCK..2 * BLOCK]);
        let error = replay(&disk.bytes).unwrap_err();
        let named = matches!(error, RingError::Damaged { block: 1, error: BlockError::Field { field, .. } } if field == name);
        assert!(named, "{name}: {error}");
    }
    let mut disk = Disk::new(3, 100, 0);
    disk.bytes[4] = 2;
    reseal(&mut disk.bytes[..BLOCK]);
    let error = BlockError::Version { version: 2 };
    assert_eq!(
        replay(&disk.bytes),
        Err(RingError::Damaged { block: 0, error })
    );
}

#[test]
fn blocks_that_do_not_belong_together_are_refused() {
    let (small, large) = (Disk::new(3, 99, 0), Disk::new(3, 100, 0));
    let mixed = [
        &large.bytes[..BLOCK],
        &small.bytes[BLOCK..2 * BLOCK],
        &large.bytes[2 * BLOCK..],
    ]
    .concat();
    let error = BlockError::Field {
        field: "slot count",
        value: 99,
    };
    assert_eq!(replay(&mixed), Err(RingError::Damaged { block: 1, error }));

    let mut disk = Disk::new(3, 100, 0);
    disk.commit(&[(0, Some(5)), (1, Some(5))]);
    assert_eq!(replay(&disk.bytes), Err(RingError::Duplicate { extent: 5 }));

    let mut short = Disk::new(30, 2000, 0);
    short.commit(&[]);
    let error = replay(&short.bytes[..2 * BLOCK]).unwrap_err();
    assert!(
        matches!(error, RingError::Damaged { .. } | RingError::Gap { .. }),
        "{error}"
    );
}

#[test]
fn largest_log_survives_the_loss_of_any_next_block() {
    let slots = max_extents(4);
    let mut disk = Disk::new(4, slots, 0);
    let mut extent = 1;
    for first in (0..slots as u16).step_by(64) {
        let updates: Vec<_> = (first..(first + 64).min(slots as u16))
            .map(|slot| {
                extent += 1;
                (slot, Some(extent))
            })
            .collect();
        disk.commit(&updates);
    }
    for round in 0..8 {
        assert_eq!(replay(&disk.bytes).unwrap().slots, disk.log);
        let before = disk.log.clone();
        let (at, block) = disk.next(&[(round, Some(1_000_000 + u32::from(round)))]);
        let mut torn = disk.bytes.clone();
        torn[at..at + 512].copy_from_slice(&block[..512]);
        assert_eq!(replay(&torn).unwrap().slots, before);
        disk.bytes[at..at + BLOCK].copy_from_slice(&block);
    }
}

/// Transactions that keep extents unique: slot, and whether it is emptied.
fn transactions() -> impl Strategy<Value = Vec<Vec<(u16, bool)>>> {
    prop::collection::vec(
        prop::collection::vec((any::<u16>(), any::<bool>()), 0..8),
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn replay_after_any_crash_point_equals_the_model(
        ring_blocks in 2u32..6,
        slots in prop_oneof![1u32..50, 900u32..921, Just(u32::MAX)],
        first_sequence in 0u64..100,
        transactions in transactions(),
        written in any::<u8>(),
    ) {
        let slots = slots.min(max_extents(ring_blocks));
        let mut disk = Disk::new(ring_blocks, slots, first_sequence);
        let mut extent = 0;
        for updates in transactions {
            let before = disk.log.clone();
            let updates: Vec<_> = updates
                .into_iter()
                .map(|(slot, emptied)| {
                    extent += 1;
                    ((u32::from(slot) % slots) as u16, (!emptied).then_some(extent))
                })
                .collect();
            let (at, block) = disk.next(&updates);
            let mut torn = disk.bytes.clone();
            for sector in (0..8).filter(|sector| written >> sector & 1 != 0) {
                let place = sector * 512..(sector + 1) * 512;
                torn[at..at + BLOCK][place.clone()].copy_from_slice(&block[place]);
            }
            let after_crash = replay(&torn).unwrap();
            let whole = torn[at..at + BLOCK] == block;
            prop_assert_eq!(&after_crash.slots, if whole { &disk.log } else { &before });
            let continued = disk.writer.next_sequence() - u64::from(!whole);
            prop_assert_eq!(after_crash.next_sequence, continued);
            disk.bytes[at..at + BLOCK].copy_from_slice(&block);
            prop_assert_eq!(&replay(&disk.bytes).unwrap().slots, &disk.log);
        }
    }

    #[test]
    fn any_edit_of_any_block_replays_or_is_refused(
        edits in prop::collection::vec((0usize..3 * BLOCK, any::<u8>()), 1..6),
        sealed in any::<bool>(),
    ) {
        let mut disk = Disk::new(3, 100, 0);
        disk.commit(&[(0, Some(1)), (9, Some(2))]);
        for (at, value) in edits {
            disk.bytes[at] = value;
        }
        if sealed {
            disk.bytes.chunks_exact_mut(BLOCK).for_each(reseal);
        }
        if let Ok(replay) = replay(&disk.bytes) {
            prop_assert!(replay.slots.len() <= MAX_SLOTS as usize);
        }
    }
}
