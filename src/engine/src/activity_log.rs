//! The activity log in memory: which 4 MiB extents may be written without a metadata write first.
//!
//! Owns the assignment of extents to slots, the references that requests in flight hold, and the choice of what to evict.
//! The on-disk form is [`crate::metadata::ring`].
//!
//! Crash order, which the engine follows: a write takes references ([`ActivityLog::acquire`]) before it is submitted and keeps
//! them until no crash can make it a difference between the nodes. If that fails, [`ActivityLog::plan`] chooses a transaction;
//! the bitmap blocks of the extents it evicts become durable, then the transaction, then [`ActivityLog::committed`].
//!
//! Invariants:
//! - An extent is in at most one slot. An extent with references is never evicted.
//! - At most one transaction is planned and not yet committed. An extent it evicts is inactive at once, an extent it activates is
//!   inactive until it is committed: so what is active is on disk at every instant.
//! - Free slots are taken before any extent is evicted; of the active extents without references the least recently used goes.
//! - A plan that must evict evicts a few more and leaves their slots free: an eviction waits for a flush of the data, and so only
//!   one of many transactions does when every write meets a cold extent.
//! - An extent that the same plan was asked for is not evicted by it, so a request that spans several extents gets them all, as
//!   soon as enough slots are without references, if it is named first in every plan.
//!
//! Cost: a hit is one lookup in a flat table and two list links. Memory is fixed at creation.
//! Releasing what was not acquired is a bug and panics.

mod index;

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::metadata::ring::{MAX_SLOTS, MAX_UPDATES};
use index::Index;

/// Most slots emptied by a plan besides those that it needs,
const MAX_SPARE_SLOTS: usize = 32;
/// and of how many slots one at most: what is hot should stay.
const SLOTS_PER_SPARE: usize = 8;

/// End of a list of slots.
const NONE: u16 = u16::MAX;

const _: () = assert!(
    MAX_SLOTS <= NONE as u32,
    "slot numbers leave room for the end mark"
);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    /// Requests in flight.
    references: u32,
    /// Number of the plan that was asked for this extent last.
    wanted_by: u64,
    /// Neighbours among the active extents without references.
    older: u16,
    newer: u16,
}

const UNUSED: Entry = Entry {
    references: 0,
    wanted_by: 0,
    older: NONE,
    newer: NONE,
};

/// Changes of slots that must become durable together, in one block of the ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// New content of slots, at most [`MAX_UPDATES`].
    pub updates: Vec<(u16, Option<u32>)>,
    /// Extents that become active when it is committed.
    pub activated: Vec<u32>,
    /// Extents that are no longer active: their bitmap blocks must be durable before the transaction is written.
    pub evicted: Vec<u32>,
}

/// The activity log of one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActivityLog {
    /// Extent of each slot, as on disk once the planned transaction is durable.
    slots: Vec<Option<u32>>,
    entries: Vec<Entry>,
    /// Active extents only.
    index: Index,
    /// Slots without an extent, the next one last.
    free: Vec<u16>,
    /// Slots of the planned transaction.
    changing: Vec<u16>,
    oldest: u16,
    newest: u16,
    active: usize,
    referenced: usize,
    plans: u64,
}

impl ActivityLog {
    /// An empty log of `slots` slots. Panics if there are none or more than [`MAX_SLOTS`].
    #[must_use]
    pub fn new(slots: u32) -> ActivityLog {
        assert!((1..=MAX_SLOTS).contains(&slots), "{slots} slots");
        ActivityLog {
            slots: vec![None; slots as usize],
            entries: vec![UNUSED; slots as usize],
            index: Index::new(slots as usize),
            free: (0..slots as u16).rev().collect(),
            changing: Vec::with_capacity(MAX_UPDATES),
            oldest: NONE,
            newest: NONE,
            active: 0,
            referenced: 0,
            plans: 0,
        }
    }

    /// A log with the content that a replay found; every extent in it is active and without references.
    /// Panics if an extent is in two slots, which a replay refuses.
    #[must_use]
    pub fn from_replay(slots: &[Option<u32>]) -> ActivityLog {
        assert!(slots.len() <= MAX_SLOTS as usize, "{} slots", slots.len());
        let mut log = ActivityLog::new(slots.len() as u32);
        log.free.retain(|&slot| slots[usize::from(slot)].is_none());
        for (slot, extent) in slots
            .iter()
            .enumerate()
            .filter_map(|(slot, extent)| Some((slot, (*extent)?)))
        {
            assert!(
                log.index.get(extent).is_none(),
                "extent {extent} in two slots"
            );
            log.slots[slot] = Some(extent);
            log.activate(slot as u16, extent);
        }
        log
    }

    /// True if `extent` may be written without a transaction.
    #[must_use]
    pub fn is_active(&self, extent: u32) -> bool {
        self.index.get(extent).is_some()
    }

    /// Takes one reference on each extent of the range and returns true, if all are active; otherwise takes nothing.
    #[must_use = "without the references the extents may be evicted"]
    pub fn acquire(&mut self, extents: Range<u32>) -> bool {
        if !extents.clone().all(|extent| self.is_active(extent)) {
            return false;
        }
        for extent in extents {
            let slot = self.index.get(extent).expect("checked above");
            if self.entries[usize::from(slot)].references == 0 {
                self.unlink(slot);
                self.referenced += 1;
            }
            self.entries[usize::from(slot)].references += 1;
        }
        true
    }

    /// Gives back one reference on each extent of the range.
    pub fn release(&mut self, extents: Range<u32>) {
        for extent in extents {
            let slot = self
                .index
                .get(extent)
                .unwrap_or_else(|| panic!("extent {extent} released, not active"));
            let entry = &mut self.entries[usize::from(slot)];
            assert!(
                entry.references > 0,
                "extent {extent} released more often than acquired"
            );
            entry.references -= 1;
            if entry.references == 0 {
                self.referenced -= 1;
                self.link_newest(slot);
            }
        }
    }

    /// Chooses slots for the extents of `wanted` that are not active, first come first served, as many as one transaction takes
    /// and as can be placed. `None` if that is none, or if the transaction before is not committed yet.
    ///
    /// Extents of `wanted` that are active count as just used and are not evicted by this plan.
    pub fn plan(&mut self, wanted: impl Iterator<Item = u32>) -> Option<Transaction> {
        if !self.changing.is_empty() {
            return None;
        }
        self.plans += 1;
        let mut missing: Vec<u32> = Vec::new();
        for extent in wanted {
            if let Some(slot) = self.index.get(extent) {
                self.want(slot);
            } else if !missing.contains(&extent) {
                missing.push(extent);
                if missing.len() == MAX_UPDATES {
                    break;
                }
            }
        }
        let mut transaction = Transaction {
            updates: Vec::new(),
            activated: Vec::new(),
            evicted: Vec::new(),
        };
        for extent in missing {
            let Some(slot) = self.take_slot(&mut transaction.evicted) else {
                break;
            };
            self.slots[usize::from(slot)] = Some(extent);
            self.changing.push(slot);
            transaction.updates.push((slot, Some(extent)));
            transaction.activated.push(extent);
        }
        if !transaction.evicted.is_empty() {
            self.empty_spare_slots(&mut transaction);
        }
        (!transaction.updates.is_empty()).then_some(transaction)
    }

    /// The planned transaction is durable: its extents are active. Does nothing if none is planned.
    pub fn committed(&mut self) {
        for slot in core::mem::take(&mut self.changing) {
            let extent = self.slots[usize::from(slot)].expect("a changing slot has an extent");
            self.activate(slot, extent);
        }
    }

    /// True while a transaction is planned and not committed.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        !self.changing.is_empty()
    }

    /// Content of every slot, as on disk once the planned transaction is durable.
    #[must_use]
    pub fn slots(&self) -> &[Option<u32>] {
        &self.slots
    }

    /// Active extents, in the order of their slots.
    pub fn active_extents(&self) -> impl Iterator<Item = u32> {
        self.slots
            .iter()
            .copied()
            .flatten()
            .filter(|&extent| self.is_active(extent))
    }

    /// Number of active extents.
    #[must_use]
    pub fn active_count(&self) -> usize {
        self.active
    }

    /// Number of extents that requests in flight hold; all slots referenced means that new extents wait.
    #[must_use]
    pub fn referenced_count(&self) -> usize {
        self.referenced
    }

    /// Empties every slot and drops a planned transaction. For a log that needs no replay any more (`al_clean` durable).
    /// Panics while there are references.
    pub fn clear(&mut self) {
        assert_eq!(
            self.referenced, 0,
            "activity log cleared under requests in flight"
        );
        *self = ActivityLog::new(self.slots.len() as u32);
    }

    fn activate(&mut self, slot: u16, extent: u32) {
        self.index.insert(extent, slot);
        self.entries[usize::from(slot)].wanted_by = 0;
        self.active += 1;
        self.link_newest(slot);
    }

    /// Notes that the present plan was asked for the extent in `slot`.
    fn want(&mut self, slot: u16) {
        let entry = &mut self.entries[usize::from(slot)];
        entry.wanted_by = self.plans;
        if entry.references == 0 {
            self.unlink(slot);
            self.link_newest(slot);
        }
    }

    /// A slot for a new extent: a free one, or that of the least recently used extent without references, which is evicted.
    fn take_slot(&mut self, evicted: &mut Vec<u32>) -> Option<u16> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let (slot, extent) = self.evict_oldest()?;
        evicted.push(extent);
        Some(slot)
    }

    /// Evicts a few extents more in a transaction that evicts anyway.
    fn empty_spare_slots(&mut self, transaction: &mut Transaction) {
        let spare = (self.slots.len() / SLOTS_PER_SPARE)
            .min(MAX_SPARE_SLOTS)
            .min(MAX_UPDATES - transaction.updates.len());
        for _ in 0..spare {
            let Some((slot, extent)) = self.evict_oldest() else {
                return;
            };
            self.slots[usize::from(slot)] = None;
            self.free.push(slot);
            transaction.updates.push((slot, None));
            transaction.evicted.push(extent);
        }
    }

    /// Makes the least recently used extent without references inactive. Its slot still names it.
    fn evict_oldest(&mut self) -> Option<(u16, u32)> {
        let slot = self.oldest;
        // What this plan wants was moved to the newest end, so behind the first such extent there are only others of its kind.
        if slot == NONE || self.entries[usize::from(slot)].wanted_by == self.plans {
            return None;
        }
        let extent = self.slots[usize::from(slot)].expect("a slot in the list has an extent");
        self.unlink(slot);
        self.index.remove(extent);
        self.active -= 1;
        Some((slot, extent))
    }

    fn link_newest(&mut self, slot: u16) {
        let newest = self.newest;
        let entry = &mut self.entries[usize::from(slot)];
        entry.older = newest;
        entry.newer = NONE;
        self.newest = slot;
        match newest {
            NONE => self.oldest = slot,
            newest => self.entries[usize::from(newest)].newer = slot,
        }
    }

    fn unlink(&mut self, slot: u16) {
        let Entry { older, newer, .. } = self.entries[usize::from(slot)];
        match older {
            NONE => self.oldest = newer,
            older => self.entries[usize::from(older)].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[usize::from(newer)].older = older,
        }
    }
}

#[cfg(test)]
mod tests;
