//! A flat table from extent to slot: open addressing with linear probing, at most half full, no tombstones.
//!
//! Its size is fixed at creation; more entries than it was made for are a bug. Deterministic: no random seed, so extents that a
//! client chooses on purpose can make probes longer, at most by the number of slots.

use alloc::vec;
use alloc::vec::Vec;

/// No extent: beyond the largest device.
const VACANT: u32 = u32::MAX;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Index {
    places: Vec<(u32, u16)>,
    shift: u32,
}

impl Index {
    pub(super) fn new(entries: usize) -> Index {
        let size = (entries * 2).next_power_of_two();
        Index {
            places: vec![(VACANT, 0); size],
            shift: 32 - size.trailing_zeros(),
        }
    }

    pub(super) fn get(&self, extent: u32) -> Option<u16> {
        let mut place = self.home(extent);
        loop {
            match self.places[place] {
                (found, slot) if found == extent => return (extent != VACANT).then_some(slot),
                (VACANT, _) => return None,
                _ => place = self.next(place),
            }
        }
    }

    pub(super) fn insert(&mut self, extent: u32, slot: u16) {
        assert_ne!(extent, VACANT, "no such extent");
        let mut place = self.home(extent);
        while self.places[place].0 != VACANT {
            debug_assert_ne!(self.places[place].0, extent, "inserted twice");
            place = self.next(place);
        }
        self.places[place] = (extent, slot);
    }

    /// Removes an entry and closes the gap, so that every entry stays reachable from its home without tombstones.
    pub(super) fn remove(&mut self, extent: u32) {
        let mut gap = self.home(extent);
        while self.places[gap].0 != extent {
            assert_ne!(
                self.places[gap].0, VACANT,
                "extent {extent} removed, not present"
            );
            gap = self.next(gap);
        }
        let mut place = self.next(gap);
        while self.places[place].0 != VACANT {
            let mask = self.places.len() - 1;
            let from_home = place.wrapping_sub(self.home(self.places[place].0)) & mask;
            let from_gap = place.wrapping_sub(gap) & mask;
            if from_home >= from_gap {
                self.places[gap] = self.places[place];
                gap = place;
            }
            place = self.next(place);
        }
        self.places[gap] = (VACANT, 0);
    }

    /// Multiplicative hashing: neighbouring extents spread evenly.
    fn home(&self, extent: u32) -> usize {
        (extent.wrapping_mul(0x9E37_79B9) >> self.shift) as usize
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }
}
