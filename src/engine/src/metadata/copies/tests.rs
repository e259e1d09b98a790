//! Claims about the choice between superblock copies.

use std::string::ToString;

use std::vec;

use super::*;
use crate::metadata::MetadataBlock;
use crate::metadata::superblock::tests::{sample, seal};
use crate::units::Generation;

const BLANK: MetadataBlock = [0; 4096];

fn pick(a: &[u8], b: &[u8]) -> Result<Chosen, MetadataError> {
    choose(&[
        Candidate {
            copy: CopyName::A,
            offset: 4096,
            bytes: Some(a),
        },
        Candidate {
            copy: CopyName::B,
            offset: 0,
            bytes: Some(b),
        },
    ])
}

fn update(number: u64) -> Superblock {
    Superblock {
        sequence: number,
        current: Generation(number << 8),
        ..sample()
    }
}

fn drbd() -> MetadataBlock {
    let mut block = BLANK;
    block[60..64].copy_from_slice(&[0x83, 0x74, 0x02, 0x6D]);
    block
}

fn newer_version(sequence: u64) -> MetadataBlock {
    let mut block = update(sequence).encode();
    block[8] = 2;
    seal(block)
}

#[test]
fn highest_sequence_wins_in_either_place() {
    let (old, new) = (update(7).encode(), update(8).encode());
    let chosen = pick(&new, &old).unwrap();
    assert_eq!(
        (chosen.superblock, chosen.copy, chosen.stale),
        (update(8), CopyName::A, vec![CopyName::B])
    );
    let chosen = pick(&old, &new).unwrap();
    assert_eq!(
        (chosen.superblock, chosen.copy, chosen.stale),
        (update(8), CopyName::B, vec![CopyName::A])
    );
    let chosen = pick(&new, &new).unwrap();
    assert_eq!(
        (chosen.copy, chosen.stale, chosen.refused),
        (CopyName::A, vec![], vec![])
    );
}

#[test]
fn refused_copy_never_hides_a_good_one() {
    let good = update(8).encode();
    let mut damaged = update(9).encode();
    damaged[100] ^= 1;
    for bad in [
        BLANK,
        [7; 4096],
        damaged,
        newer_version(7),
        newer_version(8),
    ] {
        for (a, b, stale) in [(bad, good, CopyName::A), (good, bad, CopyName::B)] {
            let chosen = pick(&a, &b).unwrap();
            assert_eq!((chosen.superblock, chosen.stale), (update(8), vec![stale]));
            assert_eq!(chosen.refused.len(), 1);
            assert_eq!(chosen.refused[0].copy, stale);
        }
    }
    let unreadable = Candidate {
        copy: CopyName::A,
        offset: 4096,
        bytes: None,
    };
    let chosen = choose(&[
        unreadable,
        Candidate {
            copy: CopyName::B,
            offset: 0,
            bytes: Some(&good),
        },
    ])
    .unwrap();
    assert_eq!(chosen.refused[0].error, SuperblockError::Unreadable);
}

#[test]
fn update_torn_at_any_sectors_leaves_the_old_or_the_new_superblock() {
    let (old, new) = (update(7).encode(), update(8).encode());
    for written in 0..1u32 << 8 {
        let mut torn = old;
        for sector in (0..8).filter(|sector| written >> sector & 1 != 0) {
            torn[sector * 512..(sector + 1) * 512]
                .copy_from_slice(&new[sector * 512..(sector + 1) * 512]);
        }
        let expected = |whole| if whole { update(8) } else { update(7) };
        assert_eq!(
            pick(&torn, &old).unwrap().superblock,
            expected(torn == new),
            "torn while A is written"
        );
        assert_eq!(
            pick(&new, &torn).unwrap().superblock,
            update(8),
            "torn while B is written"
        );
    }
}

#[test]
fn absent_and_damaged_metadata_are_told_apart() {
    let error = pick(&BLANK, &[7; 4096]).unwrap_err();
    assert!(matches!(error, MetadataError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("create-md"), "{error}");
    let mut damaged = update(9).encode();
    damaged[4000] ^= 1;
    for (a, b) in [(damaged, BLANK), (BLANK, damaged), (damaged, damaged)] {
        let error = pick(&a, &b).unwrap_err();
        assert!(matches!(error, MetadataError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("field checksum"), "{error}");
    }
}

#[test]
fn what_no_crash_can_cause_is_refused_despite_a_good_copy() {
    let good = update(8).encode();
    for (a, b) in [(drbd(), good), (good, drbd()), (drbd(), BLANK)] {
        let error = pick(&a, &b).unwrap_err();
        assert!(matches!(error, MetadataError::Drbd { .. }), "{error}");
        assert!(error.to_string().contains("v09"), "{error}");
    }
    for (a, b) in [
        (newer_version(9), good),
        (good, newer_version(9)),
        (newer_version(1), BLANK),
    ] {
        let error = pick(&a, &b).unwrap_err();
        assert!(
            matches!(error, MetadataError::NewerVersion { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("version: 2"), "{error}");
    }
    let other = Superblock {
        device_uuid: 0x1234,
        ..update(9)
    };
    let error = pick(&good, &other.encode()).unwrap_err();
    assert_eq!(
        error,
        MetadataError::DifferentDevices {
            first: sample().device_uuid,
            second: 0x1234
        }
    );
    let twin = Superblock {
        current: Generation(2),
        ..update(8)
    };
    assert_eq!(
        pick(&good, &twin.encode()).unwrap_err(),
        MetadataError::SameSequence { sequence: 8 }
    );
}
