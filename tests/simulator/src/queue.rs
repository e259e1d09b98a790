//! The event queue: what happens next on the virtual clock.
//!
//! Invariant: occurrences at the same microsecond come in the order in which they were scheduled.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Virtual time in microseconds since the start of the run.
pub type Micros = u64;

/// One millisecond.
pub const MILLISECOND: Micros = 1000;
/// One second.
pub const SECOND: Micros = 1_000_000;

struct Entry<T> {
    at: Micros,
    number: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Occurrences by time.
pub struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    next_number: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue {
            heap: BinaryHeap::new(),
            next_number: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Schedules `what`.
    pub fn push(&mut self, at: Micros, what: T) {
        self.heap.push(Entry {
            at,
            number: self.next_number,
            what,
        });
        self.next_number += 1;
    }

    /// When the next occurrence is due.
    #[must_use]
    pub fn next_at(&self) -> Option<Micros> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// The next occurrence.
    pub fn pop(&mut self) -> Option<(Micros, T)> {
        self.heap.pop().map(|entry| (entry.at, entry.what))
    }
}
