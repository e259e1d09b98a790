//! Recognises what a device holds, so that `create-md` does not overwrite it.
//!
//! Reads only. A signature says what it is and, for file systems that record it, how many bytes of the device they use:
//! internal metadata must not lie within them. The list is a guard against mistakes, not a replacement for blkid.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use qrbd_disk::Disk;

/// What sort of content it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file system.
    FileSystem,
    /// A partition table.
    PartitionTable,
    /// LVM, RAID, bcache, Ceph, ZFS: storage managed by another layer.
    Member,
    /// LUKS.
    Encryption,
    /// Swap space.
    Swap,
    /// Metadata of DRBD.
    Drbd,
}

/// Something recognised on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What sort.
    pub kind: Kind,
    /// Its usual name: `ext4`, `LVM2 physical volume`.
    pub name: &'static str,
    /// Where the magic was found.
    pub offset: u64,
    /// Bytes from the start of the device that the content uses, if it says so.
    pub used_bytes: Option<u64>,
}

/// Anything that can be read at any offset.
pub trait ReadAt {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The read failed or reaches beyond the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl ReadAt for Disk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(offset, buffer).map_err(io::Error::other)
    }
}

/// Everything recognised on `device`, which is `device_bytes` long; empty if nothing is.
///
/// # Errors
/// A read failed. Places beyond the end are skipped.
pub fn scan(device: &dyn ReadAt, device_bytes: u64) -> io::Result<Vec<Signature>> {
    let device = Device {
        file: device,
        bytes: device_bytes,
    };
    let mut found = Vec::new();
    found.extend(ext(&device)?);
    found.extend(xfs(&device)?);
    found.extend(btrfs(&device)?);
    found.extend(by_magic(&device)?);
    found.extend(lvm(&device)?);
    found.extend(raid(&device)?);
    found.extend(zfs(&device)?);
    found.extend(partition_table(&device)?);
    found.extend(drbd(&device)?);
    Ok(found)
}

struct Device<'a> {
    file: &'a dyn ReadAt,
    bytes: u64,
}

impl Device<'_> {
    /// `N` bytes at `offset`, `None` if they are not all within the device.
    fn read<const N: usize>(&self, offset: u64) -> io::Result<Option<[u8; N]>> {
        if offset
            .checked_add(N as u64)
            .is_none_or(|end| end > self.bytes)
        {
            return Ok(None);
        }
        let mut buffer = [0; N];
        self.file.read_at(offset, &mut buffer)?;
        Ok(Some(buffer))
    }
}

fn little32(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(
        bytes[at..at + 4].try_into().expect("four bytes"),
    ))
}

fn signature(kind: Kind, name: &'static str, offset: u64, used_bytes: Option<u64>) -> Signature {
    Signature {
        kind,
        name,
        offset,
        used_bytes,
    }
}

fn ext(device: &Device) -> io::Result<Option<Signature>> {
    const HAS_JOURNAL: u64 = 0x4;
    const EXTENTS_64BIT_OR_FLEX: u64 = 0x40 | 0x80 | 0x200;
    const IS_64BIT: u64 = 0x80;
    let Some(superblock) = device.read::<1024>(1024)? else {
        return Ok(None);
    };
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return Ok(None);
    }
    let incompatible = little32(&superblock, 0x60);
    let name = if incompatible & EXTENTS_64BIT_OR_FLEX != 0 {
        "ext4"
    } else if little32(&superblock, 0x5c) & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    };
    let high = if incompatible & IS_64BIT != 0 {
        little32(&superblock, 0x150)
    } else {
        0
    };
    let blocks = high << 32 | little32(&superblock, 0x4);
    let shift = little32(&superblock, 0x18);
    // A block size beyond 64 KiB is damage; the magic alone is warning enough.
    let used = (shift <= 6).then(|| blocks.saturating_mul(1024 << shift));
    Ok(Some(signature(Kind::FileSystem, name, 1024 + 0x38, used)))
}

fn xfs(device: &Device) -> io::Result<Option<Signature>> {
    let Some(superblock) = device.read::<16>(0)? else {
        return Ok(None);
    };
    if &superblock[..4] != b"XFSB" {
        return Ok(None);
    }
    let block_bytes = u32::from_be_bytes(superblock[4..8].try_into().expect("four bytes"));
    let blocks = u64::from_be_bytes(superblock[8..16].try_into().expect("eight bytes"));
    Ok(Some(signature(
        Kind::FileSystem,
        "xfs",
        0,
        Some(blocks.saturating_mul(u64::from(block_bytes))),
    )))
}

fn btrfs(device: &Device) -> io::Result<Option<Signature>> {
    const SUPERBLOCK: u64 = 0x1_0000;
    let Some(superblock) = device.read::<256>(SUPERBLOCK)? else {
        return Ok(None);
    };
    if &superblock[0x40..0x48] != b"_BHRfS_M" {
        return Ok(None);
    }
    // The size of this device within a file system that may span several: dev_item.total_bytes.
    let used = u64::from_le_bytes(superblock[0xd1..0xd9].try_into().expect("eight bytes"));
    Ok(Some(signature(
        Kind::FileSystem,
        "btrfs",
        SUPERBLOCK + 0x40,
        Some(used),
    )))
}

fn by_magic(device: &Device) -> io::Result<Vec<Signature>> {
    const MAGICS: &[(u64, &[u8], Kind, &str)] = &[
        (0, b"LUKS\xba\xbe", Kind::Encryption, "LUKS"),
        (4096 - 10, b"SWAPSPACE2", Kind::Swap, "swap space"),
        (4096 - 10, b"SWAP-SPACE", Kind::Swap, "swap space"),
        (1024, &[0x10, 0x20, 0xf5, 0xf2], Kind::FileSystem, "f2fs"),
        (65536 + 52, b"ReIsEr", Kind::FileSystem, "reiserfs"),
        (32768 + 1, b"CD001", Kind::FileSystem, "iso9660"),
        (3, b"NTFS    ", Kind::FileSystem, "ntfs"),
        (3, b"EXFAT   ", Kind::FileSystem, "exfat"),
        (54, b"FAT12   ", Kind::FileSystem, "vfat"),
        (54, b"FAT16   ", Kind::FileSystem, "vfat"),
        (82, b"FAT32   ", Kind::FileSystem, "vfat"),
        (0, b"bluestore block device", Kind::Member, "Ceph BlueStore"),
        (
            4096 + 24,
            &[
                0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba,
                0x6d, 0x81,
            ],
            Kind::Member,
            "bcache",
        ),
    ];
    let mut found = Vec::new();
    for &(offset, magic, kind, name) in MAGICS {
        if offset + magic.len() as u64 > device.bytes {
            continue;
        }
        let mut bytes = vec![0; magic.len()];
        device.file.read_at(offset, &mut bytes)?;
        if bytes == magic {
            found.push(signature(kind, name, offset, None));
        }
    }
    Ok(found)
}

fn lvm(device: &Device) -> io::Result<Option<Signature>> {
    // The label may stand in any of the first four sectors.
    for sector in 0..4 {
        let Some(label) = device.read::<32>(sector * 512)? else {
            break;
        };
        if &label[..8] == b"LABELONE" && &label[24..32] == b"LVM2 001" {
            return Ok(Some(signature(
                Kind::Member,
                "LVM2 physical volume",
                sector * 512,
                None,
            )));
        }
    }
    Ok(None)
}

fn raid(device: &Device) -> io::Result<Option<Signature>> {
    const MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
    const KIB_64: u64 = 64 << 10;
    // Formats 1.1, 1.2, 1.0 (8 KiB from the end, aligned to 4 KiB) and 0.90 (last aligned 64 KiB).
    let old = (device.bytes & !(KIB_64 - 1)).checked_sub(KIB_64);
    let end = device
        .bytes
        .checked_sub(8 << 10)
        .map(|offset| offset & !4095);
    for offset in [Some(0), Some(4096), end, old].into_iter().flatten() {
        if device.read::<4>(offset)? == Some(MAGIC) {
            return Ok(Some(signature(
                Kind::Member,
                "Linux RAID member",
                offset,
                None,
            )));
        }
    }
    Ok(None)
}

fn zfs(device: &Device) -> io::Result<Option<Signature>> {
    const MAGIC: u64 = 0x00ba_b10c;
    // The ring of uberblocks fills the second half of the first label.
    const RING: u64 = 128 << 10;
    let Some(ring) = device.read::<{ RING as usize }>(RING)? else {
        return Ok(None);
    };
    let found = ring.chunks_exact(1024).position(|slot| {
        let word = slot[..8].try_into().expect("eight bytes");
        u64::from_le_bytes(word) == MAGIC || u64::from_be_bytes(word) == MAGIC
    });
    Ok(found.map(|slot| signature(Kind::Member, "ZFS member", RING + 1024 * slot as u64, None)))
}

fn partition_table(device: &Device) -> io::Result<Option<Signature>> {
    for sector_bytes in [512, 4096] {
        if device.read::<8>(sector_bytes)?.as_ref() == Some(b"EFI PART") {
            return Ok(Some(signature(
                Kind::PartitionTable,
                "GPT partition table",
                sector_bytes,
                None,
            )));
        }
    }
    let Some(sector) = device.read::<512>(0)? else {
        return Ok(None);
    };
    let entries = || sector[446..510].as_chunks::<16>().0.iter();
    // Boot sectors of file systems carry the same two bytes; a table has sane boot flags and a partition.
    let is_table = sector[510..] == [0x55, 0xaa]
        && entries().all(|entry| matches!(entry[0], 0 | 0x80))
        && entries().any(|entry| entry[4] != 0 && little32(entry, 12) != 0);
    Ok(is_table.then(|| signature(Kind::PartitionTable, "MBR partition table", 510, None)))
}

fn drbd(device: &Device) -> io::Result<Option<Signature>> {
    const MAGICS: [(u32, &str); 3] = [
        (0x8374_026d, "DRBD metadata (v09)"),
        (0x8374_026b, "DRBD metadata (v08)"),
        (0x8374_026c, "DRBD metadata (v08, unclean)"),
    ];
    const MAGIC_OFFSET: u64 = 60;
    // Internal: the last aligned 4 KiB. External: the first.
    let internal = (device.bytes & !4095).checked_sub(4096);
    for offset in [internal, Some(0)].into_iter().flatten() {
        let Some(bytes) = device.read::<4>(offset + MAGIC_OFFSET)? else {
            continue;
        };
        if let Some((_, name)) = MAGICS
            .iter()
            .find(|(magic, _)| *magic == u32::from_be_bytes(bytes))
        {
            return Ok(Some(signature(Kind::Drbd, name, offset, None)));
        }
    }
    Ok(None)
}
