//! What a read may return: the order of writes per sector, as far as clients have seen it.
//!
//! A branch is one history of the data. Nodes that mirror each other share a branch; a promotion apart from the others forks it.
//! All moments are sequence numbers of the run, not times.
//!
//! For one sector, entry `e` is superseded if some entry `f` was completed and `e` had ended before `f` began. A read may return
//! the entries that were not superseded by one that ended before the read began. What survives the power loss of every node are the
//! entries that were not superseded by one that a flush made durable. A write without an answer (its node died, or it
//! failed) never supersedes, and ends when its node died; once a read or a promotion has seen it, it counts as completed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use qrbd_engine::units::ByteRange;

use crate::stamps::{Sector, Stamp, ZEROES, sectors};

/// A moment: the number of a step of the run.
pub type Moment = u64;
/// Number of a write, unique in the run.
pub type WriteNumber = u64;

/// One write, discard or write of zeroes.
#[derive(Clone, Debug)]
pub struct WriteRecord {
    /// Where.
    pub range: ByteRange,
    /// Zeroes instead of stamps.
    pub zeroes: bool,
    /// When the client submitted it.
    pub began: Moment,
    /// Which promotion it belongs to.
    pub era: u64,
}

/// One value of a sector in a branch.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The write; `None` for what the disk held at first.
    pub write: Option<WriteNumber>,
    /// The content.
    pub stamp: Stamp,
    /// When it began.
    pub began: Moment,
    /// When it ended, with or without success.
    pub ended: Option<Moment>,
    /// It certainly took place.
    pub certain: bool,
    /// It survives the power loss of all nodes.
    pub durable: bool,
}

/// A sector of a write that was completed and may be gone with the power of the only good copy.
#[derive(Clone, Copy, Debug)]
pub struct Lost {
    /// Which sector.
    pub sector: Sector,
    /// Of which write.
    pub write: WriteNumber,
    /// When it was completed.
    pub ended: Moment,
}

/// What a value is measured by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standard {
    /// Nothing that was completed may be missing.
    Live,
    /// Nothing that a flush made durable may be missing.
    Flushed,
    /// Any value that was ever written.
    Any,
}

/// First content of a disk.
pub type Found = Rc<BTreeMap<Sector, Stamp>>;

/// One history of the data of a volume.
#[derive(Clone)]
pub struct Branch {
    /// Sectors that were written, each with its entries in the order in which they began.
    pub entries: BTreeMap<Sector, Vec<Entry>>,
    found: Found,
    /// What may have gone with the only good copy's power, see [`Branch::lose_unflushed`].
    lost: Vec<Lost>,
    /// Losses before this moment were found by the Primary, and a client was told by a flush that failed.
    lost_told: Moment,
    /// When that flush was answered.
    lost_told_at: Moment,
    /// When such a flush began last: its client knows of every write before.
    told_until: Moment,
    /// Certain writes since the fork.
    pub own_writes: u64,
}

fn latest(entries: &[Entry], counts: impl Fn(&Entry) -> bool) -> Moment {
    entries
        .iter()
        .filter(|entry| counts(entry))
        .map(|entry| entry.began)
        .max()
        .unwrap_or(0)
}

/// Entries that ended before this moment are superseded.
fn bar(entries: &[Entry], standard: Standard, after: Moment) -> Moment {
    match standard {
        Standard::Live => latest(entries, |entry| {
            entry.certain && entry.ended.is_some_and(|ended| ended < after)
        }),
        Standard::Flushed => latest(entries, |entry| entry.durable),
        Standard::Any => 0,
    }
}

fn superseded(entry: &Entry, by: Moment) -> bool {
    entry.ended.is_some_and(|ended| ended < by)
}

impl Branch {
    /// A branch that starts with what a disk holds.
    #[must_use]
    pub fn new(found: Found) -> Branch {
        Branch {
            entries: BTreeMap::new(),
            found,
            lost: Vec::new(),
            lost_told: 0,
            lost_told_at: 0,
            told_until: 0,
            own_writes: 0,
        }
    }

    fn found_stamp(&self, sector: Sector) -> Stamp {
        self.found.get(&sector).copied().unwrap_or(ZEROES)
    }

    fn entries_mut(&mut self, sector: Sector) -> &mut Vec<Entry> {
        let stamp = self.found_stamp(sector);
        self.entries.entry(sector).or_insert_with(|| {
            vec![Entry {
                write: None,
                stamp,
                began: 0,
                ended: Some(0),
                certain: true,
                durable: true,
            }]
        })
    }

    /// A write begins.
    pub fn begin(&mut self, number: WriteNumber, record: &WriteRecord) {
        for sector in sectors(record.range) {
            let stamp = if record.zeroes {
                ZEROES
            } else {
                crate::stamps::stamp(number, sector)
            };
            self.entries_mut(sector).push(Entry {
                write: Some(number),
                stamp,
                began: record.began,
                ended: None,
                certain: false,
                durable: false,
            });
        }
    }

    /// A write that began in another branch goes on in this one, which may know of it since they were one.
    pub fn begin_late(&mut self, number: WriteNumber, record: &WriteRecord) {
        let knows = sectors(record.range).next().is_some_and(|sector| {
            let entries = self.entries.get(&sector);
            entries.is_some_and(|entries| entries.iter().any(|entry| entry.write == Some(number)))
        });
        if !knows {
            self.begin(number, record);
        }
    }

    /// A sector that the volume has grown by may hold this, as if somebody had written it without an answer.
    pub fn found_later(&mut self, sector: Sector, stamp: Stamp, now: Moment) {
        let entries = self.entries_mut(sector);
        if entries.iter().all(|entry| entry.stamp != stamp) {
            entries.push(Entry {
                write: None,
                stamp,
                began: now,
                ended: Some(now),
                certain: false,
                durable: false,
            });
        }
    }

    /// A write ends; `certain` if the client was told of success.
    pub fn end(
        &mut self,
        number: WriteNumber,
        range: ByteRange,
        certain: bool,
        durable: bool,
        now: Moment,
    ) {
        for sector in sectors(range) {
            if let Some(entry) = self
                .entries_mut(sector)
                .iter_mut()
                .find(|entry| entry.write == Some(number))
            {
                entry.ended = Some(now);
                entry.certain |= certain;
                entry.durable |= durable;
            }
        }
        self.own_writes += u64::from(certain);
    }

    /// A flush that began at `began` was answered.
    pub fn flushed(&mut self, began: Moment) {
        for entry in self.entries.values_mut().flatten() {
            if entry.certain && entry.ended.is_some_and(|ended| ended < began) {
                entry.durable = true;
            }
        }
    }

    /// Forgets what is known of durability: the node whose flushes counted is not the one that holds the data now.
    pub fn forget_durability(&mut self) {
        for entry in self.entries.values_mut().flatten() {
            entry.durable = false;
        }
    }

    /// The only good copy lost power: what no flush had made durable may be gone, whatever the clients were told.
    pub fn lose_unflushed(&mut self) {
        for (&sector, entries) in &mut self.entries {
            for entry in entries.iter_mut().filter(|entry| !entry.durable) {
                if entry.certain
                    && let Some(write) = entry.write
                {
                    let ended = entry.ended.unwrap_or(Moment::MAX);
                    self.lost.push(Lost {
                        sector,
                        write,
                        ended,
                    });
                }
                entry.certain = false;
            }
        }
    }

    /// Writes that a Primary's clients submitted from the moment `since` on, that may be gone, and that nobody was told of.
    pub fn lost_untold(
        &self,
        writes: &[WriteRecord],
        since: Moment,
    ) -> impl Iterator<Item = &Lost> {
        self.lost.iter().filter(move |lost| {
            lost.ended >= self.told_until && writes[lost.write as usize].began > since
        })
    }

    /// A flush that began at `began` failed: its client knows of every write before, and of what was lost before `found`.
    pub fn tell_lost(&mut self, found: Moment, began: Moment, now: Moment) {
        self.told_until = self.told_until.max(began);
        self.lost_told = found;
        self.lost_told_at = now;
    }

    /// True if a flush that began at this moment may fail because of a loss at the moment `lost`.
    #[must_use]
    pub fn may_tell(&self, lost: Moment, began: Moment) -> bool {
        lost >= self.lost_told || began <= self.lost_told_at
    }

    /// True if `stamp` is what a write or a later one put into the sector.
    #[must_use]
    pub fn is_not_older(&self, sector: Sector, stamp: Stamp, write: WriteNumber) -> bool {
        self.entries.get(&sector).is_some_and(|entries| {
            entries
                .iter()
                .any(|entry| entry.stamp == stamp && entry.write >= Some(write))
        })
    }

    /// The only copy that is left is `image`: what it does not have yet may be gone, whatever the clients were told.
    pub fn lose_beyond(&mut self, image: impl Fn(Sector) -> Stamp) {
        for (&sector, entries) in &mut self.entries {
            let stamp = image(sector);
            let has = entries.iter().rposition(|entry| entry.stamp == stamp);
            for entry in entries.iter_mut().skip(has.map_or(0, |at| at + 1)) {
                entry.certain = false;
                entry.durable = false;
            }
        }
    }

    /// Values that a sector may have at a moment after `after`.
    pub fn allowed(&self, sector: Sector, standard: Standard, after: Moment) -> Vec<Stamp> {
        let Some(entries) = self.entries.get(&sector) else {
            return vec![self.found_stamp(sector)];
        };
        let by = bar(entries, standard, after);
        entries
            .iter()
            .filter(|entry| !superseded(entry, by))
            .map(|entry| entry.stamp)
            .collect()
    }

    /// True if `stamp` may stand in `sector` at a moment after `after`.
    #[must_use]
    pub fn allows(&self, sector: Sector, stamp: Stamp, standard: Standard, after: Moment) -> bool {
        let Some(entries) = self.entries.get(&sector) else {
            return stamp == self.found_stamp(sector);
        };
        // Nothing supersedes the newest entry.
        if entries.last().is_some_and(|newest| newest.stamp == stamp) {
            return true;
        }
        let by = bar(entries, standard, after);
        entries
            .iter()
            .rev()
            .any(|entry| entry.stamp == stamp && !superseded(entry, by))
    }

    /// The first sector (of `within`) of `image` that does not meet the standard.
    #[must_use]
    pub fn first_bad(
        &self,
        within: Range<Sector>,
        standard: Standard,
        after: Moment,
        image: impl Fn(Sector) -> Stamp,
    ) -> Option<Sector> {
        let bad = self.entries.range(within).find(|(sector, entries)| {
            let stamp = image(**sector);
            // Nothing supersedes the newest entry.
            if entries.last().is_some_and(|newest| newest.stamp == stamp) {
                return false;
            }
            let by = bar(entries, standard, after);
            !entries
                .iter()
                .rev()
                .any(|entry| entry.stamp == stamp && !superseded(entry, by))
        });
        bad.map(|(&sector, _)| sector)
    }

    /// The first sector (of `within`) of `image` whose content is older than what was written from the moment `began` on.
    #[must_use]
    pub fn first_older(
        &self,
        within: Range<Sector>,
        began: Moment,
        image: impl Fn(Sector) -> Stamp,
    ) -> Option<Sector> {
        let old = self.entries.range(within).find(|(sector, entries)| {
            let stamp = image(**sector);
            !entries
                .iter()
                .any(|entry| entry.stamp == stamp && entry.began >= began)
        });
        old.map(|(&sector, _)| sector)
    }

    /// A read that began at `began` saw `stamp`: the order of the writes before it is settled if none is under way.
    pub fn seen(&mut self, sector: Sector, stamp: Stamp, began: Moment, now: Moment) {
        let Some(entries) = self.entries.get_mut(&sector) else {
            return;
        };
        let by = latest(entries, |entry| entry.certain);
        let open = entries.iter().filter(|entry| !superseded(entry, by));
        if open.clone().count() > 1
            && open
                .clone()
                .all(|entry| entry.ended.is_some_and(|ended| ended < began))
        {
            settle(entries, by, stamp, now);
        }
    }

    /// The data are what a node holds from now on: the order of everything before is settled by `stamp`.
    pub fn fix(&mut self, sector: Sector, stamp: Stamp, now: Moment) {
        let entries = self.entries_mut(sector);
        settle(entries, 0, stamp, now);
    }

    /// A write of the same era that was completed before one that is visible in `image` began, and is not visible itself: the
    /// sector, the missing write and the visible one.
    pub fn order_violation(
        &self,
        writes: &[WriteRecord],
        image: impl Fn(Sector) -> Stamp,
    ) -> Option<(Sector, WriteNumber, WriteNumber)> {
        let mut newest: BTreeMap<u64, (Moment, WriteNumber)> = BTreeMap::new();
        let shown = |sector, entries: &[Entry]| {
            let stamp = image(sector);
            entries.iter().rposition(|entry| entry.stamp == stamp)
        };
        for (&sector, entries) in &self.entries {
            if let Some(write) = shown(sector, entries).and_then(|at| entries[at].write)
                && !writes[write as usize].zeroes
            {
                let record = &writes[write as usize];
                let newest = newest.entry(record.era).or_insert((0, write));
                *newest = (*newest).max((record.began, write));
            }
        }
        for (&sector, entries) in &self.entries {
            let Some(at) = shown(sector, entries) else {
                continue;
            };
            let shown = &entries[at];
            for missing in &entries[at + 1..] {
                let Some(write) = missing.write else { continue };
                let Some(&(began, visible)) = newest.get(&writes[write as usize].era) else {
                    continue;
                };
                let completed_before =
                    missing.certain && missing.ended.is_some_and(|ended| ended < began);
                if completed_before && shown.ended.is_some_and(|ended| ended < missing.began) {
                    return Some((sector, write, visible));
                }
            }
        }
        None
    }
}

/// Makes the newest entry with `stamp` that is not superseded by `by` the last one; the others stay as what a power loss may bring back.
fn settle(entries: &mut Vec<Entry>, by: Moment, stamp: Stamp, now: Moment) {
    let found = entries
        .iter()
        .rposition(|entry| entry.stamp == stamp && !superseded(entry, by));
    let found = found.or_else(|| entries.iter().rposition(|entry| entry.stamp == stamp));
    let mut entry = match found {
        Some(at) => entries.remove(at),
        None => Entry {
            write: None,
            stamp,
            began: now,
            ended: None,
            certain: true,
            durable: false,
        },
    };
    for older in entries.iter_mut() {
        older.ended = Some(older.ended.unwrap_or(now).min(now.saturating_sub(1)));
    }
    entry.began = now;
    entry.ended = Some(now);
    entry.certain = true;
    entries.push(entry);
}
