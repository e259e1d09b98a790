//! Overlap order: which operations on one volume may run beside each other.
//!
//! Every operation that writes, and every resync read, enters its range here in the order of arrival and runs when no earlier
//! overlapping entry is left (W5). An application write has two phases: until the local disk has it, it holds back everything that
//! overlaps; after [`Intervals::relax`], while peers have not confirmed it, it holds back resync only (R2), so that under
//! protocol A a hot block is not written at the speed of the link.
//!
//! Invariants: an entry's `blockers` equals the number of earlier live entries that list it as a waiter; nothing waits for a
//! later entry, so there is no cycle.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use slab::Slab;

use crate::units::ByteRange;

/// What an entry stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IntervalKind {
    /// A write of a local client.
    Application,
    /// A write received from the Primary.
    Replicated,
    /// A resync read at the source or a resync write at the target.
    Resync,
    /// A read for the peer's client, ordered behind earlier writes.
    PeerRead,
}

/// Handle of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct IntervalId(usize);

#[derive(Debug)]
struct Entry<T> {
    range: ByteRange,
    kind: IntervalKind,
    relaxed: bool,
    blockers: u32,
    /// Entries that wait for the first phase only.
    waiters: Vec<usize>,
    /// Entries that wait until this entry is gone.
    late_waiters: Vec<usize>,
    owner: T,
}

/// The entries of one volume; `T` tells the owner of an entry.
#[derive(Debug)]
pub struct Intervals<T> {
    entries: Slab<Entry<T>>,
    by_start: BTreeSet<(u64, usize)>,
    /// Upper bound of the length of any live entry; reset when none is left.
    longest: u64,
    runnable: VecDeque<T>,
}

impl<T: Copy> Default for Intervals<T> {
    fn default() -> Self {
        Intervals {
            entries: Slab::new(),
            by_start: BTreeSet::new(),
            longest: 0,
            runnable: VecDeque::new(),
        }
    }
}

impl<T: Copy> Intervals<T> {
    fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = usize> + '_ {
        let from = range.offset.saturating_sub(self.longest);
        self.by_start
            .range((from, 0)..(range.end(), 0))
            .map(|&(_, key)| key)
            .filter(move |&key| self.entries[key].range.overlaps(range))
    }

    /// Enters a range. Returns the handle and whether the operation may run now; if not, its owner appears later in
    /// [`Intervals::next_runnable`].
    pub fn insert(&mut self, range: ByteRange, kind: IntervalKind, owner: T) -> (IntervalId, bool) {
        let key = self.entries.insert(Entry {
            range,
            kind,
            relaxed: false,
            blockers: 0,
            waiters: Vec::new(),
            late_waiters: Vec::new(),
            owner,
        });
        let earlier: Vec<usize> = self.overlapping(range).collect();
        let mut blockers = 0;
        for other in earlier {
            let entry = &mut self.entries[other];
            let late = kind == IntervalKind::Resync && entry.kind == IntervalKind::Application;
            if kind == IntervalKind::PeerRead && entry.kind == IntervalKind::PeerRead {
                continue;
            }
            if late {
                entry.late_waiters.push(key);
            } else if !entry.relaxed {
                entry.waiters.push(key);
            } else {
                continue;
            }
            blockers += 1;
        }
        self.entries[key].blockers = blockers;
        self.by_start.insert((range.offset, key));
        self.longest = self.longest.max(u64::from(range.length));
        (IntervalId(key), blockers == 0)
    }

    /// True if an entry of this kind overlaps the range.
    pub fn overlaps_kind(&self, range: ByteRange, kind: IntervalKind) -> bool {
        self.overlapping(range)
            .any(|key| self.entries[key].kind == kind)
    }

    /// The local disk has the write; from now on the entry holds back resync only.
    pub fn relax(&mut self, id: IntervalId) {
        let entry = &mut self.entries[id.0];
        debug_assert_eq!(entry.blockers, 0);
        entry.relaxed = true;
        let waiters = core::mem::take(&mut entry.waiters);
        self.release(&waiters);
    }

    /// The operation is over.
    pub fn remove(&mut self, id: IntervalId) {
        let entry = self.entries.remove(id.0);
        self.by_start.remove(&(entry.range.offset, id.0));
        // An entry that is withdrawn while it waits must not be woken through a stale key.
        if entry.blockers > 0 {
            for (_, other) in self.entries.iter_mut() {
                other.waiters.retain(|&waiter| waiter != id.0);
                other.late_waiters.retain(|&waiter| waiter != id.0);
            }
        }
        self.release(&entry.waiters);
        self.release(&entry.late_waiters);
        if self.entries.is_empty() {
            self.longest = 0;
        }
    }

    fn release(&mut self, waiters: &[usize]) {
        for &key in waiters {
            let entry = &mut self.entries[key];
            entry.blockers -= 1;
            if entry.blockers == 0 {
                self.runnable.push_back(entry.owner);
            }
        }
    }

    /// The next operation whose last blocker went away, in the order of release.
    pub fn next_runnable(&mut self) -> Option<T> {
        self.runnable.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, length: u32) -> ByteRange {
        ByteRange::new(offset, length)
    }

    #[test]
    fn overlapping_writes_run_in_order_of_arrival() {
        let mut set = Intervals::default();
        let (a, run_a) = set.insert(range(0, 8192), IntervalKind::Application, 'a');
        let (b, run_b) = set.insert(range(4096, 4096), IntervalKind::Application, 'b');
        let (_, run_c) = set.insert(range(8191, 1), IntervalKind::Application, 'c');
        let (_, run_d) = set.insert(range(8192, 512), IntervalKind::Application, 'd');
        assert!(run_a && !run_b && !run_c && run_d);
        set.relax(a);
        assert_eq!(set.next_runnable(), Some('b'));
        assert_eq!(set.next_runnable(), None, "c still waits for b");
        set.remove(b);
        assert_eq!(set.next_runnable(), Some('c'));
    }

    #[test]
    fn resync_waits_until_the_peer_confirmed_the_write() {
        let mut set = Intervals::default();
        let (a, _) = set.insert(range(0, 512), IntervalKind::Application, 'a');
        set.relax(a);
        let (_, run) = set.insert(range(0, 4096), IntervalKind::Resync, 'r');
        assert!(!run);
        let (_, write_runs) = set.insert(range(512, 512), IntervalKind::Application, 'w');
        assert!(
            !write_runs,
            "a write behind a waiting resync of the block waits for it"
        );
        set.remove(a);
        assert_eq!(set.next_runnable(), Some('r'));
        assert_eq!(set.next_runnable(), None);
    }

    #[test]
    fn withdrawing_a_waiting_entry_leaves_no_stale_waiter() {
        let mut set = Intervals::default();
        let (a, _) = set.insert(range(0, 512), IntervalKind::Application, 'a');
        let (b, _) = set.insert(range(0, 512), IntervalKind::Application, 'b');
        set.remove(b);
        set.remove(a);
        assert_eq!(set.next_runnable(), None);
        assert!(set.entries.is_empty());
    }

    #[test]
    fn reads_for_the_peer_wait_for_writes_but_not_for_each_other() {
        let mut set = Intervals::default();
        let (w, _) = set.insert(range(0, 512), IntervalKind::Replicated, 'w');
        let (_, first) = set.insert(range(0, 512), IntervalKind::PeerRead, '1');
        let (_, second) = set.insert(range(0, 512), IntervalKind::PeerRead, '2');
        assert!(!first && !second);
        set.remove(w);
        assert_eq!(
            (set.next_runnable(), set.next_runnable()),
            (Some('1'), Some('2'))
        );
    }
}
