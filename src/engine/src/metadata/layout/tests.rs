//! Claims about the layout.

use super::*;
use crate::bitmap::BITS_PER_DISK_BLOCK;
use crate::units::BLOCK_BYTES;
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;

fn areas(layout: &Layout) -> Vec<(u64, u64)> {
    let mut areas = std::vec![
        (layout.superblock_a, METADATA_BLOCK_BYTES),
        (layout.superblock_b, METADATA_BLOCK_BYTES),
        (
            layout.ring_offset,
            u64::from(layout.ring_blocks) * METADATA_BLOCK_BYTES
        ),
    ];
    for slot in 0..usize::from(layout.max_peers) {
        areas.push((
            layout.bitmap_block_offset(slot, 0),
            layout.bitmap_slot_bytes,
        ));
    }
    if layout.placement == Placement::Internal {
        areas.push((0, layout.data_bytes));
    }
    areas.sort_unstable();
    areas
}

fn check(layout: &Layout, end: u64) {
    let areas = areas(layout);
    for pair in areas.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{areas:?} overlap");
    }
    for &(offset, length) in &areas {
        assert_eq!(offset % METADATA_BLOCK_BYTES, 0);
        assert!(offset + length <= end, "{offset}+{length} beyond {end}");
    }
    assert!(layout.data_bytes > 0);
    assert!(layout.bitmap_slot_blocks() * BITS_PER_DISK_BLOCK >= blocks_of(layout.data_bytes));
}

#[test]
fn internal_one_gibibyte_one_peer_has_the_documented_offsets() {
    let layout = Layout::new(Placement::Internal, 1 << 30, 1).unwrap();
    assert_eq!(layout.superblock_a, (1 << 30) - 4096);
    assert_eq!(layout.ring_offset, (1 << 30) - 31 * 4096);
    assert_eq!(layout.superblock_b, (1 << 30) - 32 * 4096);
    assert_eq!(layout.bitmap_slot_bytes, 9 * 4096);
    assert_eq!(layout.bitmap_offset, (1 << 30) - 41 * 4096);
    assert_eq!(layout.data_bytes, layout.bitmap_offset);
    assert_eq!(layout.metadata_bytes(), 41 * 4096);
}

#[test]
fn external_has_copy_a_first_and_bitmaps_last() {
    let placement = Placement::External {
        metadata_bytes: 1 << 20,
    };
    let layout = Layout::new(placement, (1 << 30) + 700, 2).unwrap();
    assert_eq!(layout.superblock_a, 0);
    assert_eq!(layout.ring_offset, 4096);
    assert_eq!(layout.superblock_b, 31 * 4096);
    assert_eq!(layout.bitmap_offset, 32 * 4096);
    assert_eq!(layout.data_bytes, (1 << 30) + 512);
    assert_eq!(layout.bitmap_block_offset(1, 2), (32 + 9 + 2) * 4096);
}

#[test]
fn indexed_slot_starts_at_its_multiple_of_128_mebibytes() {
    let placement = Placement::Indexed {
        slot: 3,
        metadata_bytes: 512 << 20,
    };
    let layout = Layout::new(placement, 1 << 40, 3).unwrap();
    assert_eq!(layout.superblock_a, 384 << 20);
    let error = Layout::new(placement, 1 << 40, 4).unwrap_err();
    assert!(matches!(error, LayoutError::SlotTooSmall { .. }), "{error}");
}

#[test]
fn errors_name_the_bytes_needed_and_that_size_suffices() {
    for peers in [1, 2, 31] {
        let Err(LayoutError::DeviceTooSmall { needed_bytes, .. }) =
            Layout::new(Placement::Internal, 4096, peers)
        else {
            panic!("4 KiB accepted")
        };
        check(
            &Layout::new(Placement::Internal, needed_bytes, peers).unwrap(),
            needed_bytes,
        );
        assert!(Layout::new(Placement::Internal, needed_bytes - 1, peers).is_err());

        let place = |metadata_bytes| Placement::External { metadata_bytes };
        let Err(LayoutError::MetadataDeviceTooSmall { needed_bytes, .. }) =
            Layout::new(place(0), 1 << 33, peers)
        else {
            panic!("empty metadata device accepted")
        };
        check(
            &Layout::new(place(needed_bytes), 1 << 33, peers).unwrap(),
            needed_bytes,
        );
        assert!(Layout::new(place(needed_bytes - 1), 1 << 33, peers).is_err());
    }
    let text = Layout::new(Placement::Internal, 4096, 1)
        .unwrap_err()
        .to_string();
    assert!(text.contains("139264"), "{text}");
}

#[test]
fn extremes_are_accepted_or_refused_by_name() {
    assert!(Layout::new(Placement::Internal, MAX_DEVICE_BYTES, 31).is_ok());
    assert!(matches!(
        Layout::new(Placement::Internal, MAX_DEVICE_BYTES + 1, 1),
        Err(LayoutError::DeviceTooLarge { .. })
    ));
    for max_peers in [0, 32, 255] {
        assert_eq!(
            Layout::new(Placement::Internal, 1 << 30, max_peers),
            Err(LayoutError::MaxPeers { max_peers })
        );
    }
    let last = Placement::Indexed {
        slot: u32::MAX,
        metadata_bytes: u64::MAX,
    };
    assert!(Layout::new(last, 1 << 30, 1).is_ok());
    assert!(superblock_candidates(Placement::Internal, FIXED_BYTES - 1).is_err());
    assert!(
        superblock_candidates(
            Placement::External {
                metadata_bytes: 4096
            },
            1 << 30
        )
        .is_err()
    );
}

proptest! {
    #[test]
    fn every_layout_is_aligned_disjoint_large_enough_and_found_again(
        device_bytes in prop_oneof![1u64..1 << 22, 1u64..1 << 36, 1u64..=MAX_DEVICE_BYTES],
        max_peers in 1u8..=31,
    ) {
        let external = Placement::External { metadata_bytes: u64::MAX };
        for placement in [Placement::Internal, external] {
            let Ok(layout) = Layout::new(placement, device_bytes, max_peers) else { continue };
            let end = if placement == Placement::Internal { device_bytes } else { u64::MAX };
            check(&layout, end);
            let candidates = superblock_candidates(placement, device_bytes).unwrap();
            prop_assert_eq!(candidates, [(CopyName::A, layout.superblock_a), (CopyName::B, layout.superblock_b)]);
        }
    }

    #[test]
    fn internal_wastes_at_most_one_bitmap_block_per_peer(blocks in 100u64..1 << 28, max_peers in 1u8..=31) {
        let layout = Layout::new(Placement::Internal, blocks * BLOCK_BYTES, max_peers).unwrap();
        let smaller = layout.bitmap_slot_blocks() - 1;
        let data = blocks - 32 - smaller * u64::from(max_peers);
        prop_assert!(smaller * BITS_PER_DISK_BLOCK < data);
    }
}
