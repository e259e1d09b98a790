//! One backing disk with its metadata: sectors, a volatile cache, and what a crash does to them.
//!
//! Two areas: data, one stamp per sector, and metadata, real bytes in sectors of 512. With internal metadata both lie behind
//! the same cache, with external metadata each has its own.
//!
//! Invariants:
//! - completion is not durability: reads see the cache; a flush makes durable what was completed when it was submitted;
//! - a power loss keeps any subset of the sectors that are not durable, of completed writes and of those in flight;
//! - the end of the process alone loses nothing that was completed, and keeps any subset of the sectors in flight.
//!
//! Deliberately knows no time: the world decides when an operation ends and whether it fails.

use std::collections::BTreeMap;

use qrbd_engine::metadata::growth::KnownDevice;
use qrbd_engine::metadata::image::{LoadError, MetadataImage, load_grown};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::units::ByteRange;

use crate::random::Random;
use crate::stamps::{Sector, Stamp, Stamps, ZEROES, first_sector, sectors};

const METADATA_SECTOR: usize = 512;

/// What a disk is asked to do.
#[derive(Clone, Debug)]
pub enum Job {
    /// Read data.
    Read(ByteRange),
    /// Write data; with the flag, it is durable when it ends.
    Write(ByteRange, Stamps, bool),
    /// Make the range read as zeroes.
    Zero(ByteRange),
    /// Flush the data device.
    Flush,
    /// Find out the size.
    Measure,
    /// Write metadata at an absolute offset of the metadata device.
    MetadataWrite(u64, Vec<u8>),
    /// Flush the metadata device.
    MetadataFlush,
    /// The shell writes down what the metadata are found by, outside of the disk.
    Remember(KnownDevice),
}

impl Job {
    /// True for jobs that change sectors.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self, Job::Write(..) | Job::Zero(_) | Job::MetadataWrite(..))
    }

    /// True for jobs on the metadata device.
    #[must_use]
    pub fn is_metadata(&self) -> bool {
        matches!(self, Job::MetadataWrite(..) | Job::MetadataFlush)
    }
}

/// How long data live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// As a read sees them.
    Cached,
    /// As a power loss would at worst leave them.
    Durable,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Area {
    Data,
    Metadata,
}

/// Sectors that were written and may not be durable.
enum Piece {
    Data(Sector, Stamps),
    Zero(std::ops::Range<Sector>),
    Some(Vec<(Sector, Stamp)>),
    Metadata(usize, Vec<u8>),
}

impl Piece {
    fn area(&self) -> Area {
        if matches!(self, Piece::Metadata(..)) {
            Area::Metadata
        } else {
            Area::Data
        }
    }

    fn each_stamp(&self, mut take: impl FnMut(Sector, Stamp)) {
        match self {
            Piece::Data(first, stamps) => (*first..)
                .zip(stamps.0.iter())
                .for_each(|(sector, &stamp)| take(sector, stamp)),
            Piece::Zero(range) => range.clone().for_each(|sector| take(sector, ZEROES)),
            Piece::Some(list) => list.iter().for_each(|&(sector, stamp)| take(sector, stamp)),
            Piece::Metadata(..) => {}
        }
    }
}

struct Unflushed {
    number: u64,
    piece: Piece,
}

struct InFlight {
    job: Job,
    /// Completions before the submission.
    after: u64,
}

/// How much of what is not durable a power loss keeps.
#[derive(Clone, Copy)]
enum Survival {
    Nothing,
    Everything,
    WholePieces,
    AnySectors,
    Prefix(usize),
}

/// A disk.
pub struct Disk {
    /// Where the metadata lie.
    pub placement: Placement,
    /// Size of the backing device.
    pub device_bytes: u64,
    /// What the shell remembers of it.
    pub known: Option<KnownDevice>,
    data: Vec<Stamp>,
    data_durable: Vec<Stamp>,
    metadata_base: u64,
    metadata: Vec<u8>,
    metadata_durable: Vec<u8>,
    /// Changes whenever the durable metadata change.
    durable_version: u64,
    /// Changes whenever the metadata change.
    cached_version: u64,
    unflushed: Vec<Unflushed>,
    in_flight: BTreeMap<u64, InFlight>,
    completions: u64,
    next_token: u64,
}

impl Disk {
    /// A disk of zeroes, with room to grow: `data_bytes` and `metadata_bytes` are what it may hold at the end. `metadata_base` is the first byte of the metadata device that is kept, `metadata_bytes` how many.
    #[must_use]
    pub fn new(
        placement: Placement,
        device_bytes: u64,
        data_bytes: u64,
        metadata_base: u64,
        metadata_bytes: u64,
    ) -> Disk {
        let count = (data_bytes / qrbd_engine::units::SECTOR_BYTES) as usize;
        Disk {
            placement,
            device_bytes,
            known: None,
            data: vec![ZEROES; count],
            data_durable: vec![ZEROES; count],
            metadata_base,
            metadata: vec![0; metadata_bytes as usize],
            metadata_durable: vec![0; metadata_bytes as usize],
            durable_version: 0,
            cached_version: 0,
            unflushed: Vec::new(),
            in_flight: BTreeMap::new(),
            completions: 0,
            next_token: 0,
        }
    }

    /// The device is larger from now on.
    pub fn grow(&mut self, device_bytes: u64) {
        self.device_bytes = device_bytes;
        self.durable_version += 1;
        self.cached_version += 1;
    }

    /// The shell remembers something else.
    pub fn remember(&mut self, known: KnownDevice) {
        self.known = Some(known);
        self.durable_version += 1;
        self.cached_version += 1;
    }

    /// The shell was writing down what it remembers: all of it is there, or nothing.
    fn remember_perhaps(&mut self, job: &Job, random: &mut Random) {
        if let Job::Remember(known) = job
            && random.chance(500)
        {
            self.remember(*known);
        }
    }

    /// Data were written to a place where internal metadata were before the device grew: these bytes are gone.
    fn overwrite_metadata(base: u64, placement: Placement, metadata: &mut [u8], sector: Sector) {
        let offset = sector * qrbd_engine::units::SECTOR_BYTES;
        if placement == Placement::Internal && offset >= base {
            let at = (offset - base) as usize;
            metadata[at..at + METADATA_SECTOR].fill(0xDD);
        }
    }

    /// Writes both views at once: how the disk was found.
    pub fn found_data(&mut self, sector: Sector, stamp: Stamp) {
        self.data[sector as usize] = stamp;
        self.data_durable[sector as usize] = stamp;
    }

    /// Writes both views of the metadata at once: an offline tool wrote and flushed them.
    pub fn found_metadata(&mut self, offset: u64, bytes: &[u8]) {
        let at = self.metadata_at(offset, bytes.len());
        self.metadata[at..at + bytes.len()].copy_from_slice(bytes);
        self.metadata_durable[at..at + bytes.len()].copy_from_slice(bytes);
        self.durable_version += 1;
        self.cached_version += 1;
    }

    /// Changes whenever the metadata of the view change.
    #[must_use]
    pub fn metadata_version(&self, view: View) -> u64 {
        match view {
            View::Cached => self.cached_version,
            View::Durable => self.durable_version,
        }
    }

    /// Content of a sector.
    #[must_use]
    pub fn sector(&self, sector: Sector, view: View) -> Stamp {
        match view {
            View::Cached => self.data[sector as usize],
            View::Durable => self.data_durable[sector as usize],
        }
    }

    /// Number of data sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.data.len() as u64
    }

    /// Stamps that writes in flight may still put into `sector`.
    pub fn in_flight_stamps(&self, sector: Sector) -> impl Iterator<Item = Stamp> + '_ {
        self.in_flight
            .values()
            .filter_map(move |in_flight| stamp_of(&in_flight.job, sector))
    }

    /// Number of operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Reads the metadata.
    ///
    /// # Errors
    /// What the loader of metadata refuses.
    pub fn load(&self, view: View) -> Result<MetadataImage, LoadError<String>> {
        let bytes = match view {
            View::Cached => &self.metadata,
            View::Durable => &self.metadata_durable,
        };
        self.load_bytes(bytes, self.known)
    }

    fn load_bytes(
        &self,
        metadata: &[u8],
        known: Option<KnownDevice>,
    ) -> Result<MetadataImage, LoadError<String>> {
        load_grown(
            self.placement,
            self.device_bytes,
            known,
            |offset, bytes: &mut [u8]| {
                let at = (offset.checked_sub(self.metadata_base)).map(|at| at as usize);
                let found = at.and_then(|at| metadata.get(at..at + bytes.len()));
                let found = found
                    .ok_or_else(|| format!("read of {} bytes outside the metadata", bytes.len()))?;
                bytes.copy_from_slice(found);
                Ok(())
            },
        )
    }

    /// Metadata as one possible power loss at this instant would leave them; nothing changes.
    ///
    /// # Errors
    /// What the loader of metadata refuses.
    pub fn load_after_imagined_power_loss(
        &self,
        random: &mut Random,
    ) -> Result<MetadataImage, LoadError<String>> {
        let survival = self.survival(random);
        let mut metadata = self.metadata_durable.clone();
        for (index, unflushed) in self.unflushed.iter().enumerate() {
            if let Piece::Metadata(at, bytes) = &unflushed.piece {
                keep_metadata(&mut metadata, *at, bytes, survival, index, random);
            }
        }
        let mut known = self.known;
        for in_flight in self.in_flight.values() {
            match &in_flight.job {
                Job::MetadataWrite(offset, bytes) => keep_metadata(
                    &mut metadata,
                    (offset - self.metadata_base) as usize,
                    bytes,
                    Survival::AnySectors,
                    0,
                    random,
                ),
                Job::Remember(next) if random.chance(500) => known = Some(*next),
                _ => {}
            }
        }
        self.load_bytes(&metadata, known)
    }

    /// Takes a job; the token names it until it is finished. Panics on a range outside the device (a bug of the engine).
    pub fn submit(&mut self, job: Job) -> u64 {
        if let Job::Read(range) | Job::Write(range, ..) | Job::Zero(range) = &job {
            assert!(
                range.end() <= self.device_bytes,
                "{range} is outside the device"
            );
        }
        match &job {
            Job::Read(range) | Job::Zero(range) => assert!(
                sectors(*range).end <= self.sectors(),
                "{range} is outside the disk"
            ),
            Job::Write(range, stamps, _) => {
                assert!(
                    sectors(*range).end <= self.sectors(),
                    "{range} is outside the disk"
                );
                assert_eq!(
                    sectors(*range).count(),
                    stamps.0.len(),
                    "length of {range} and of its payload"
                );
            }
            Job::MetadataWrite(offset, bytes) => {
                assert_eq!(
                    (offset % 4096, bytes.len() % 4096),
                    (0, 0),
                    "metadata write at {offset} of {}",
                    bytes.len()
                );
                self.metadata_at(*offset, bytes.len());
            }
            Job::Flush | Job::MetadataFlush | Job::Measure | Job::Remember(_) => {}
        }
        let token = self.next_token;
        self.next_token += 1;
        self.in_flight.insert(
            token,
            InFlight {
                job,
                after: self.completions,
            },
        );
        token
    }

    /// The job of `token`, if it is still in flight.
    #[must_use]
    pub fn job(&self, token: u64) -> Option<&Job> {
        self.in_flight.get(&token).map(|in_flight| &in_flight.job)
    }

    /// Carries out a job. A read returns its stamps. Sectors whose cached content changed are appended to `changed`.
    pub fn finish(
        &mut self,
        token: u64,
        random: &mut Random,
        changed: &mut Vec<Sector>,
    ) -> Option<Stamps> {
        let in_flight = self.in_flight.remove(&token)?;
        match in_flight.job {
            Job::Read(range) => {
                self.land_some_in(range, random, changed);
                let range = sectors(range);
                return Some(Stamps(
                    self.data[range.start as usize..range.end as usize].into(),
                ));
            }
            Job::Write(range, stamps, durable) => {
                self.land(Piece::Data(first_sector(range), stamps), changed);
                if durable {
                    self.settle(range);
                }
            }
            Job::Zero(range) => self.land(Piece::Zero(sectors(range)), changed),
            Job::MetadataWrite(offset, bytes) => {
                let at = self.metadata_at(offset, bytes.len());
                self.land(Piece::Metadata(at, bytes), changed);
            }
            Job::Measure => {}
            Job::Remember(known) => self.remember(known),
            Job::Flush => self.flush(Area::Data, in_flight.after),
            Job::MetadataFlush => self.flush(Area::Metadata, in_flight.after),
        }
        None
    }

    /// Ends a job with an error: a write may have landed in part.
    pub fn fail(&mut self, token: u64, land: bool, random: &mut Random, changed: &mut Vec<Sector>) {
        if let Some(in_flight) = self.in_flight.remove(&token)
            && land
        {
            self.land_part(&in_flight.job, random, changed);
        }
    }

    /// The process ends: completed writes stay in the cache, of those in flight any sectors.
    pub fn process_ends(&mut self, random: &mut Random, changed: &mut Vec<Sector>) {
        for (_, in_flight) in std::mem::take(&mut self.in_flight) {
            self.remember_perhaps(&in_flight.job, random);
            self.land_part(&in_flight.job, random, changed);
        }
    }

    /// The power fails: any subset of the sectors that are not durable survives.
    pub fn power_loss(&mut self, random: &mut Random, changed: &mut Vec<Sector>) {
        let survival = self.survival(random);
        let mut affected = Vec::new();
        for (index, unflushed) in std::mem::take(&mut self.unflushed).into_iter().enumerate() {
            if let Piece::Metadata(at, bytes) = &unflushed.piece {
                keep_metadata(
                    &mut self.metadata_durable,
                    *at,
                    bytes,
                    survival,
                    index,
                    random,
                );
            } else {
                let whole = keeps_whole(survival, index, random);
                unflushed.piece.each_stamp(|sector, stamp| {
                    affected.push(sector);
                    if whole.unwrap_or_else(|| random.chance(500)) {
                        let (base, placement) = (self.metadata_base, self.placement);
                        let metadata = &mut self.metadata_durable;
                        Self::overwrite_metadata(base, placement, metadata, sector);
                        self.data_durable[sector as usize] = stamp;
                    }
                });
            }
        }
        for in_flight in std::mem::take(&mut self.in_flight).into_values() {
            self.remember_perhaps(&in_flight.job, random);
            match self.part(&in_flight.job, random) {
                _ if matches!(survival, Survival::Nothing) => {}
                Some(Piece::Metadata(at, bytes)) => {
                    self.metadata_durable[at..at + bytes.len()].copy_from_slice(&bytes)
                }
                Some(piece) => piece.each_stamp(|sector, stamp| {
                    affected.push(sector);
                    let (base, placement) = (self.metadata_base, self.placement);
                    let metadata = &mut self.metadata_durable;
                    Self::overwrite_metadata(base, placement, metadata, sector);
                    self.data_durable[sector as usize] = stamp;
                }),
                None => {}
            }
        }
        self.metadata.copy_from_slice(&self.metadata_durable);
        self.durable_version += 1;
        self.cached_version += 1;
        for sector in affected {
            let durable = self.data_durable[sector as usize];
            if std::mem::replace(&mut self.data[sector as usize], durable) != durable {
                changed.push(sector);
            }
        }
    }

    fn metadata_at(&self, offset: u64, length: usize) -> usize {
        let at = offset
            .checked_sub(self.metadata_base)
            .map_or(usize::MAX, |at| at as usize);
        assert!(
            at.saturating_add(length) <= self.metadata.len(),
            "metadata at {offset}+{length} is outside the metadata area"
        );
        at
    }

    fn land(&mut self, piece: Piece, changed: &mut Vec<Sector>) {
        self.completions += 1;
        if let Piece::Metadata(at, bytes) = &piece {
            self.metadata[*at..at + bytes.len()].copy_from_slice(bytes);
            self.cached_version += 1;
        }
        let data = &mut self.data;
        let (base, placement, metadata) = (self.metadata_base, self.placement, &mut self.metadata);
        piece.each_stamp(|sector, stamp| {
            Self::overwrite_metadata(base, placement, metadata, sector);
            if std::mem::replace(&mut data[sector as usize], stamp) != stamp {
                changed.push(sector);
            }
        });
        self.unflushed.push(Unflushed {
            number: self.completions,
            piece,
        });
    }

    /// Any sectors of a write in flight; `None` if there are none.
    fn part(&self, job: &Job, random: &mut Random) -> Option<Piece> {
        let keep = *random.pick(&[0, 500, 1000]);
        match job {
            Job::Write(range, stamps, _) => {
                let all = sectors(*range).zip(stamps.0.iter().copied());
                Some(Piece::Some(all.filter(|_| random.chance(keep)).collect()))
            }
            Job::Zero(range) => Some(Piece::Some(
                sectors(*range)
                    .filter(|_| random.chance(keep))
                    .map(|sector| (sector, ZEROES))
                    .collect(),
            )),
            Job::MetadataWrite(offset, bytes) => {
                let at = self.metadata_at(*offset, bytes.len());
                let mut kept = self.metadata[at..at + bytes.len()].to_vec();
                keep_metadata(&mut kept, 0, bytes, Survival::AnySectors, 0, random);
                Some(Piece::Metadata(at, kept))
            }
            Job::Read(_) | Job::Flush | Job::MetadataFlush | Job::Measure | Job::Remember(_) => {
                None
            }
        }
    }

    fn land_part(&mut self, job: &Job, random: &mut Random, changed: &mut Vec<Sector>) {
        if let Some(piece) = self.part(job, random) {
            self.land(piece, changed);
        }
    }

    /// A read may see sectors of writes in flight; what was seen once stays.
    fn land_some_in(&mut self, range: ByteRange, random: &mut Random, changed: &mut Vec<Sector>) {
        let mut list = Vec::new();
        for in_flight in self.in_flight.values() {
            if let Job::Write(written, ..) | Job::Zero(written) = &in_flight.job
                && written.overlaps(range)
            {
                list.extend(sectors(*written).filter_map(|sector| {
                    let stamp = stamp_of(&in_flight.job, sector)?;
                    random.chance(400).then_some((sector, stamp))
                }));
            }
        }
        if !list.is_empty() {
            self.land(Piece::Some(list), changed);
        }
    }

    fn flush(&mut self, area: Area, through: u64) {
        let both = self.placement == Placement::Internal;
        for unflushed in std::mem::take(&mut self.unflushed) {
            let covered = unflushed.number <= through && (both || unflushed.piece.area() == area);
            if !covered {
                self.unflushed.push(unflushed);
                continue;
            }
            if let Piece::Metadata(at, bytes) = &unflushed.piece {
                self.metadata_durable[*at..at + bytes.len()].copy_from_slice(bytes);
                self.durable_version += 1;
            }
            let durable = &mut self.data_durable;
            let (base, placement) = (self.metadata_base, self.placement);
            let metadata = &mut self.metadata_durable;
            unflushed.piece.each_stamp(|sector, stamp| {
                Self::overwrite_metadata(base, placement, metadata, sector);
                durable[sector as usize] = stamp;
            });
        }
    }

    /// What the sectors hold now is durable, and nothing else: older content of theirs is not in the cache any more.
    fn settle(&mut self, range: ByteRange) {
        let range = sectors(range);
        self.unflushed.retain_mut(|unflushed| {
            let mut touches = false;
            (unflushed.piece).each_stamp(|sector, _| touches |= range.contains(&sector));
            if !touches {
                return true;
            }
            let mut left = Vec::new();
            (unflushed.piece).each_stamp(|sector, stamp| left.push((sector, stamp)));
            left.retain(|(sector, _)| !range.contains(sector));
            let any = !left.is_empty();
            unflushed.piece = Piece::Some(left);
            any
        });
        for sector in range {
            let metadata = &mut self.metadata_durable;
            Self::overwrite_metadata(self.metadata_base, self.placement, metadata, sector);
            self.data_durable[sector as usize] = self.data[sector as usize];
        }
    }

    fn survival(&self, random: &mut Random) -> Survival {
        match random.below(5) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::WholePieces,
            3 => Survival::AnySectors,
            _ => Survival::Prefix(random.below(self.unflushed.len() as u64 + 1) as usize),
        }
    }
}

/// Whether the piece at `index` survives whole or not at all; `None`: sector by sector.
fn keeps_whole(survival: Survival, index: usize, random: &mut Random) -> Option<bool> {
    match survival {
        Survival::Nothing => Some(false),
        Survival::Everything => Some(true),
        Survival::WholePieces => Some(random.chance(500)),
        Survival::AnySectors => None,
        Survival::Prefix(end) => (index != end).then_some(index < end),
    }
}

fn keep_metadata(
    metadata: &mut [u8],
    at: usize,
    bytes: &[u8],
    survival: Survival,
    index: usize,
    random: &mut Random,
) {
    let whole = keeps_whole(survival, index, random);
    for (number, sector) in bytes.chunks(METADATA_SECTOR).enumerate() {
        if whole.unwrap_or_else(|| random.chance(500)) {
            let at = at + number * METADATA_SECTOR;
            metadata[at..at + sector.len()].copy_from_slice(sector);
        }
    }
}

fn stamp_of(job: &Job, sector: Sector) -> Option<Stamp> {
    match job {
        Job::Write(range, stamps, _) if sectors(*range).contains(&sector) => {
            Some(stamps.0[(sector - first_sector(*range)) as usize])
        }
        Job::Zero(range) if sectors(*range).contains(&sector) => Some(ZEROES),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk::new(
            Placement::External {
                metadata_bytes: 8192,
            },
            1 << 20,
            1 << 20,
            0,
            8192,
        )
    }

    fn write(disk: &mut Disk, write: u64, offset: u64, random: &mut Random) {
        let range = ByteRange::new(offset, 4096);
        let token = disk.submit(Job::Write(range, Stamps::of_write(write, range), false));
        disk.finish(token, random, &mut Vec::new());
    }

    #[test]
    fn a_flush_covers_what_was_completed_before_it_was_submitted_and_nothing_else() {
        let mut random = Random::new(1);
        let mut disk = disk();
        write(&mut disk, 1, 0, &mut random);
        let flush = disk.submit(Job::Flush);
        write(&mut disk, 2, 4096, &mut random);
        disk.finish(flush, &mut random, &mut Vec::new());
        assert_eq!(disk.sector(0, View::Durable), crate::stamps::stamp(1, 0));
        assert_eq!(disk.sector(8, View::Durable), ZEROES);
        assert_eq!(disk.sector(8, View::Cached), crate::stamps::stamp(2, 8));
    }

    #[test]
    fn a_power_loss_keeps_flushed_sectors_and_may_lose_and_tear_the_others() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut disk = disk();
            write(&mut disk, 1, 0, &mut random);
            let flush = disk.submit(Job::Flush);
            disk.finish(flush, &mut random, &mut Vec::new());
            write(&mut disk, 2, 4096, &mut random);
            disk.power_loss(&mut random, &mut Vec::new());
            assert_eq!(disk.sector(3, View::Cached), crate::stamps::stamp(1, 3));
            let survived = (8..16)
                .filter(|&sector| disk.sector(sector, View::Cached) != ZEROES)
                .count();
            match survived {
                0 => lost += 1,
                8 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 10 && kept > 10 && torn > 10, "{lost} {kept} {torn}");
    }

    #[test]
    fn a_durable_write_survives_a_power_loss_and_vouches_for_no_other() {
        let mut random = Random::new(7);
        let mut others = 0;
        for _ in 0..200 {
            let mut disk = disk();
            write(&mut disk, 1, 0, &mut random);
            write(&mut disk, 2, 4096, &mut random);
            let range = ByteRange::new(0, 4096);
            let token = disk.submit(Job::Write(range, Stamps::of_write(3, range), true));
            disk.finish(token, &mut random, &mut Vec::new());
            disk.power_loss(&mut random, &mut Vec::new());
            for sector in 0..8 {
                assert_eq!(
                    disk.sector(sector, View::Cached),
                    crate::stamps::stamp(3, sector)
                );
            }
            others += usize::from(disk.sector(8, View::Cached) == ZEROES);
        }
        assert!(others > 10, "{others}");
    }

    #[test]
    fn the_end_of_the_process_loses_no_completed_write() {
        let mut random = Random::new(3);
        let mut disk = disk();
        write(&mut disk, 1, 0, &mut random);
        disk.submit(Job::Write(
            ByteRange::new(4096, 4096),
            Stamps::of_write(2, ByteRange::new(4096, 4096)),
            false,
        ));
        disk.process_ends(&mut random, &mut Vec::new());
        assert_eq!(disk.sector(7, View::Cached), crate::stamps::stamp(1, 7));
        assert_eq!(disk.in_flight(), 0);
    }
}
