//! What create-md recognises on a device.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use qrbd_tools::signature::{Kind, Signature, scan};

const BYTES: u64 = 16 << 20;

/// Bytes at offsets.
type Writes<'a> = &'a [(u64, &'a [u8])];

/// What is found on a device with `writes`, and zeroes elsewhere.
fn found(writes: Writes<'_>) -> Vec<Signature> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES).unwrap();
    for (offset, bytes) in writes {
        file.write_all_at(bytes, *offset).unwrap();
    }
    scan(&file, BYTES).unwrap()
}

fn only(writes: Writes<'_>) -> Signature {
    let mut found = found(writes);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn blank_and_tiny_devices_hold_nothing() {
    assert_eq!(found(&[]), []);
    for bytes in [0, 1, 511, 1024, 4096] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        assert_eq!(scan(&file, bytes).unwrap(), [], "{bytes} bytes");
    }
}

#[test]
fn ext_family_is_told_apart_with_its_size() {
    let superblock = |compatible: u32, incompatible: u32, high: u32| {
        let mut bytes = [0; 1024];
        bytes[0x4..0x8].copy_from_slice(&1000_u32.to_le_bytes());
        bytes[0x18..0x1c].copy_from_slice(&2_u32.to_le_bytes());
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x5c..0x60].copy_from_slice(&compatible.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&incompatible.to_le_bytes());
        bytes[0x150..0x154].copy_from_slice(&high.to_le_bytes());
        bytes
    };
    let cases = [
        (superblock(0, 0, 7), "ext2", 4_096_000),
        (superblock(4, 0, 7), "ext3", 4_096_000),
        (superblock(4, 0x40, 7), "ext4", 4_096_000),
        (
            superblock(4, 0xc0, 1),
            "ext4",
            (1_u64 << 32) * 4096 + 4_096_000,
        ),
    ];
    for (bytes, name, used) in cases {
        let found = only(&[(1024, &bytes)]);
        assert_eq!(
            (found.kind, found.name, found.used_bytes),
            (Kind::FileSystem, name, Some(used))
        );
    }
}

#[test]
fn real_ext4_is_recognised_with_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    let path_variable = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let made = Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&path)
        .arg("8M")
        .env("PATH", path_variable)
        .status();
    assert!(made.expect("mkfs.ext4 is installed (e2fsprogs)").success());
    let found = scan(&File::open(&path).unwrap(), BYTES).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].name, found[0].used_bytes),
        ("ext4", Some(8 << 20))
    );
}

#[test]
fn xfs_and_btrfs_tell_their_size() {
    let mut xfs = *b"XFSB............";
    xfs[4..8].copy_from_slice(&4096_u32.to_be_bytes());
    xfs[8..16].copy_from_slice(&500_u64.to_be_bytes());
    let found = only(&[(0, &xfs)]);
    assert_eq!((found.name, found.used_bytes), ("xfs", Some(500 * 4096)));

    let size = 12_345_678_u64.to_le_bytes();
    let found = only(&[(0x1_0040, b"_BHRfS_M"), (0x1_00d1, &size)]);
    assert_eq!((found.name, found.used_bytes), ("btrfs", Some(12_345_678)));
}

#[test]
fn members_tables_swap_and_encryption_are_recognised() {
    let raid = 0xa92b_4efc_u32.to_le_bytes();
    let uberblock = 0x00ba_b10c_u64.to_le_bytes();
    let drbd = 0x8374_026d_u32.to_be_bytes();
    let mut partition = [0; 66];
    partition[4] = 0x83;
    partition[12] = 1;
    partition[64..].copy_from_slice(&[0x55, 0xaa]);
    let cases: [(Writes, Kind, &str); 12] = [
        (&[(0, b"LUKS\xba\xbe")], Kind::Encryption, "LUKS"),
        (&[(4086, b"SWAPSPACE2")], Kind::Swap, "swap space"),
        (
            &[(512, b"LABELONE"), (536, b"LVM2 001")],
            Kind::Member,
            "LVM2 physical volume",
        ),
        (&[(4096, &raid)], Kind::Member, "Linux RAID member"),
        (&[(BYTES - 65536, &raid)], Kind::Member, "Linux RAID member"),
        (
            &[((128 << 10) + 5 * 1024, &uberblock)],
            Kind::Member,
            "ZFS member",
        ),
        (
            &[(512, b"EFI PART")],
            Kind::PartitionTable,
            "GPT partition table",
        ),
        (
            &[(446, &partition)],
            Kind::PartitionTable,
            "MBR partition table",
        ),
        (&[(3, b"NTFS    ")], Kind::FileSystem, "ntfs"),
        (
            &[(82, b"FAT32   "), (510, b"\x55\xaa")],
            Kind::FileSystem,
            "vfat",
        ),
        (
            &[(BYTES - 4096 + 60, &drbd)],
            Kind::Drbd,
            "DRBD metadata (v09)",
        ),
        (&[(60, &drbd)], Kind::Drbd, "DRBD metadata (v09)"),
    ];
    for (writes, kind, name) in cases {
        let found = only(writes);
        assert_eq!((found.kind, found.name), (kind, name));
    }
}
