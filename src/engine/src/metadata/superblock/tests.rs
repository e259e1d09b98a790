//! Claims about the bytes of one superblock copy.

use std::string::ToString;
use std::vec;

use proptest::prelude::*;

use super::*;
use crate::metadata::layout::RING_BLOCKS;

/// A superblock with something in every field.
pub(in crate::metadata) fn sample() -> Superblock {
    Superblock {
        sequence: 0x0102_0304_0506_0708,
        device_uuid: 0xA1A2_A3A4_A5A6_A7A8,
        device_bytes: 1 << 30,
        effective_bytes: 0x3FF0_0000,
        node_id: NodeId(1),
        max_peers: 2,
        current: Generation(0x1122_3344_5566_7789),
        history: vec![Generation(0x99), Generation(0x7766_5544_3322_1100)],
        flags: Flags {
            consistent: true,
            primary_indicator: true,
            was_up_to_date: true,
            crashed_primary: true,
            have_quorum: true,
            ..Flags::default()
        },
        peers: vec![
            PeerSlot {
                node_id: Some(NodeId(0)),
                bitmap: Generation(0xB1B2_B3B4_B5B6_B7B8),
                flags: PeerFlags {
                    connected: true,
                    device_seen: true,
                    ..PeerFlags::default()
                },
            },
            PeerSlot::default(),
        ],
        bit_bytes: 4096,
        al_ring_blocks: RING_BLOCKS,
        al_slots: 1237,
    }
}

/// `block` with a checksum that fits.
pub(in crate::metadata) fn seal(mut block: MetadataBlock) -> MetadataBlock {
    let crc = checksum(&block, AT_CRC);
    put_u32(&mut block, AT_CRC, crc);
    block
}

#[test]
fn golden_superblock() {
    let mut expected = [0; 4096];
    let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QRBDMETA"); // magic
    put(8, &[1, 0, 0, 0]); // format version
    put(12, &[0x6B, 0xDC, 0x8F, 0x76]); // CRC-32 with zero in this place
    put(16, &[0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01]); // sequence
    put(24, &[0xA8, 0xA7, 0xA6, 0xA5, 0xA4, 0xA3, 0xA2, 0xA1]); // device uuid
    put(32, &[0, 0, 0, 0x40, 0, 0, 0, 0]); // device size: 1 GiB
    put(40, &[0, 0, 0xF0, 0x3F, 0, 0, 0, 0]); // effective size
    put(48, &[0x89, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]); // current
    put(56, &[0, 0x10, 0, 0]); // bytes per bit
    put(60, &[0b0101_0011, 0b100, 0, 0]); // consistent, primary, was up to date, crashed primary; have quorum
    put(64, &[30, 0, 0, 0]); // blocks of the activity-log ring
    put(68, &[0xD5, 0x04, 0, 0]); // activity-log extents: 1237
    put(72, &[1, 2, 2]); // node id, max-peers, history count
    put(128, &[0x99, 0, 0, 0, 0, 0, 0, 0]); // history 0
    put(136, &[0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]); // history 1
    put(384, &[0, 0, 0, 0]); // slot 0: node id 0
    put(388, &[0b1_0001, 0, 0, 0]); // slot 0: connected, device seen
    put(392, &[0xB8, 0xB7, 0xB6, 0xB5, 0xB4, 0xB3, 0xB2, 0xB1]); // slot 0: bitmap generation
    put(416, &[0xFF]); // slot 1: free
    assert_eq!(sample().encode(), expected);
    assert_eq!(Superblock::decode(&expected), Ok(sample()));
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = sample().encode();
    for bit in 0..good.len() * 8 {
        let mut block = good;
        block[bit / 8] ^= 1 << (bit % 8);
        let error = Superblock::decode(&block).unwrap_err();
        let expected = if bit / 8 < 8 {
            error == SuperblockError::NoMagic
        } else {
            matches!(error, SuperblockError::Checksum { .. })
        };
        assert!(expected, "bit {bit}: {error}");
    }
}

#[test]
fn every_prefix_is_refused() {
    let good = sample().encode();
    for length in 0..good.len() {
        assert_eq!(
            Superblock::decode(&good[..length]),
            Err(SuperblockError::Length { bytes: length })
        );
    }
    assert!(Superblock::decode(&[&good[..], &[0]].concat()).is_err());
}

#[test]
fn impossible_values_are_refused_by_the_name_of_the_field() {
    let cases: [(usize, &[u8], &str); 19] = [
        (AT_SEQUENCE, &[0; 8], "sequence"),
        (AT_SEQUENCE, &[0xFF; 8], "sequence"),
        (AT_DEVICE_BYTES, &[0; 8], "device size"),
        (AT_DEVICE_BYTES, &[0xFF; 8], "device size"),
        (AT_EFFECTIVE_BYTES, &[1, 0, 0, 0x40], "effective size"),
        (AT_BIT_BYTES, &[0, 0x20], "bytes per bit"),
        (AT_FLAGS, &[4], "flags"),
        (AT_RING_BLOCKS, &[29], "activity-log blocks"),
        (AT_AL_SLOTS, &[0; 4], "activity-log extents"),
        (AT_AL_SLOTS, &[0xFF; 2], "activity-log extents"),
        (AT_NODE_ID, &[32], "node-id"),
        (AT_MAX_PEERS, &[0], "max-peers"),
        (AT_MAX_PEERS, &[32], "max-peers"),
        (AT_HISTORY_COUNT, &[33], "history count"),
        (AT_HISTORY, &[1], "history"),
        (AT_RESERVED, &[1], "reserved bytes"),
        (AT_PEERS, &[32], "peer node-id"),
        (AT_PEERS + PEER_FLAGS, &[0x40], "peer flags"),
        (AT_PEERS + PEER_BYTES, &[0], "peer node-id"),
    ];
    for (at, bytes, name) in cases {
        let mut block = sample().encode();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let error = Superblock::decode(&seal(block)).unwrap_err();
        assert!(
            matches!(error, SuperblockError::Field { field, .. } if field == name),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(name));
    }
    let unused = [75, 127, 144, 383, 385, 400, 415, 448, 1375, 1376, 4095];
    for at in unused {
        let mut block = sample().encode();
        block[at] = 1;
        let expected = SuperblockError::Field {
            field: "reserved bytes",
            value: at as u64,
        };
        assert_eq!(Superblock::decode(&seal(block)), Err(expected));
    }
}

#[test]
fn newer_version_is_named_even_if_its_fields_are_unknown() {
    let mut block = [0xEE; 4096];
    block[..32].copy_from_slice(&sample().encode()[..32]);
    put_u32(&mut block, AT_VERSION, 2);
    let sequence = sample().sequence;
    assert_eq!(
        Superblock::decode(&seal(block)),
        Err(SuperblockError::Version {
            version: 2,
            sequence
        })
    );
}

#[test]
fn foreign_blocks_are_told_apart() {
    assert_eq!(Superblock::decode(&[0; 4096]), Err(SuperblockError::Blank));
    assert_eq!(
        Superblock::decode(&[7; 4096]),
        Err(SuperblockError::NoMagic)
    );
    for (last, format) in [(0x6A, "v07"), (0x6B, "v08"), (0x6C, "v08"), (0x6D, "v09")] {
        let mut block = [0; 4096];
        block[60..64].copy_from_slice(&[0x83, 0x74, 0x02, last]);
        let error = Superblock::decode(&block).unwrap_err();
        assert_eq!(error, SuperblockError::Drbd { format });
        assert!(error.to_string().contains(format));
    }
}

#[test]
fn history_is_newest_first_without_duplicates_and_bounded() {
    let mut superblock = sample();
    superblock.history.clear();
    for value in 1..=40u64 {
        superblock.push_history(Generation(value * 2));
    }
    assert_eq!(superblock.history.len(), HISTORY_LENGTH);
    assert_eq!(superblock.history[0], Generation(80));
    superblock.push_history(Generation(61));
    assert_eq!(superblock.history[..2], [Generation(61), Generation(80)]);
    assert_eq!(
        superblock
            .history
            .iter()
            .filter(|entry| entry.same(Generation(60)))
            .count(),
        1
    );
    superblock.push_history(Generation::NONE);
    superblock.push_history(Generation(1));
    assert_eq!(superblock.history[0], Generation(61));
    assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
}

#[test]
fn slots_are_allocated_once_per_peer_and_freed_into_the_history() {
    let mut superblock = sample();
    assert_eq!(superblock.allocate_slot(NodeId(0)), Ok(0));
    assert_eq!(superblock.allocate_slot(NodeId(9)), Ok(1));
    let error = superblock.allocate_slot(NodeId(3)).unwrap_err();
    assert_eq!(
        error,
        NoFreeSlot {
            node_id: NodeId(3),
            max_peers: 2
        }
    );
    assert_eq!(superblock.allocated_slots().collect::<Vec<_>>(), [0, 1]);
    let bitmap = superblock.peer(NodeId(0)).unwrap().bitmap;
    assert_eq!(superblock.free_slot(NodeId(0)), Some(0));
    assert_eq!(superblock.history[0], bitmap);
    assert_eq!(
        (
            superblock.slot_of(NodeId(0)),
            superblock.free_slot(NodeId(0))
        ),
        (None, None)
    );
    assert_eq!(superblock.allocate_slot(NodeId(3)), Ok(0));
    superblock.peer_mut(NodeId(3)).unwrap().flags.full_sync = true;
    assert_eq!(superblock.peers[0].flags.bits(), 8);
}

#[test]
fn flags_and_their_names_agree() {
    let flags = Flags {
        was_up_to_date: true,
        al_clean: true,
        ..Flags::default()
    };
    assert_eq!(flags.bits(), 1 << 4 | 1 << 7);
    let set = Flags::NAMES
        .iter()
        .zip(flags.values())
        .filter(|(_, value)| *value);
    assert_eq!(
        set.map(|(name, _)| *name).collect::<Vec<_>>(),
        ["was_up_to_date", "al_clean"]
    );
    assert_eq!(Flags::from_bits(1 << 2), None);
    assert_eq!(
        PeerFlags::NAMES,
        [
            "connected",
            "outdated",
            "fencing",
            "full_sync",
            "device_seen",
            "left_in_contact"
        ]
    );
}

proptest! {
    #[test]
    fn whatever_decodes_encodes_to_the_same_bytes(
        edits in prop::collection::vec((0usize..1400, any::<u8>()), 0..4),
    ) {
        let mut block = sample().encode();
        for (at, value) in edits {
            block[at] = value;
        }
        let block = seal(block);
        if let Ok(superblock) = Superblock::decode(&block) {
            prop_assert_eq!(superblock.encode(), block);
        }
    }
}
