//! Payload of the simulated system: one 64-bit stamp per sector instead of 512 bytes.
//!
//! A stamp names the write that made the sector and the sector it was made for, so that data at a wrong place is recognised
//! wherever it turns up. Stamp 0 is a sector of zeroes. The engine never looks into payloads, so nothing is lost by this.

use std::rc::Rc;

use qrbd_engine::api::Payload;
use qrbd_engine::units::{ByteRange, SECTOR_BYTES};

/// Number of a sector of a volume.
pub type Sector = u64;
/// Content of a sector.
pub type Stamp = u64;

/// A sector of zeroes.
pub const ZEROES: Stamp = 0;
const SECTOR_BITS: u32 = 24;

/// The stamp that write `write` puts into `sector`.
#[must_use]
pub fn stamp(write: u64, sector: Sector) -> Stamp {
    debug_assert!(sector < 1 << SECTOR_BITS);
    (write + 1) << SECTOR_BITS | sector
}

/// The write that made the stamp; `None` for zeroes.
#[must_use]
pub fn write_of(stamp: Stamp) -> Option<u64> {
    (stamp >> SECTOR_BITS).checked_sub(1)
}

/// False if the stamp was made for another sector than `sector`.
#[must_use]
pub fn belongs(stamp: Stamp, sector: Sector) -> bool {
    stamp == ZEROES || stamp & ((1 << SECTOR_BITS) - 1) == sector
}

/// First sector of a range that is aligned to sectors.
#[must_use]
pub fn first_sector(range: ByteRange) -> Sector {
    assert_eq!(range.offset % SECTOR_BYTES, 0, "unaligned range {range}");
    range.offset / SECTOR_BYTES
}

/// Sectors of a range that is aligned to sectors.
#[must_use]
pub fn sectors(range: ByteRange) -> std::ops::Range<Sector> {
    assert_eq!(
        u64::from(range.length) % SECTOR_BYTES,
        0,
        "unaligned range {range}"
    );
    let first = first_sector(range);
    first..first + u64::from(range.length) / SECTOR_BYTES
}

/// Bytes on their way, as stamps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamps(pub Rc<[Stamp]>);

impl Stamps {
    /// The payload that write `write` carries for `range`.
    #[must_use]
    pub fn of_write(write: u64, range: ByteRange) -> Stamps {
        Stamps(sectors(range).map(|sector| stamp(write, sector)).collect())
    }
}

impl Payload for Stamps {
    fn length(&self) -> usize {
        self.0.len() * SECTOR_BYTES as usize
    }
    fn is_zero(&self) -> bool {
        self.0.iter().all(|&stamp| stamp == ZEROES)
    }
}
