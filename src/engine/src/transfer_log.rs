//! The Primary's memory of what it sent to one peer and what the peer has confirmed (W7), and the epochs that order it (W6).
//!
//! An entry lives from the moment the operation is handed to the data lane until the peer reported its epoch durable. If the
//! connection ends, what is left is out of sync. Epochs: an operation that starts after another one was completed to a client goes
//! into a later epoch; the peer makes an epoch durable before it writes anything of the next.
//!
//! Invariants: sequence numbers are consecutive; epochs never decrease along the log; `in_flight_bytes` is the sum over entries
//! not yet written. Not here: what a state change means for the request (see `request`).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::units::ByteRange;

/// How far one operation got at the peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Confirmed {
    /// Handed to the data lane.
    Sent,
    /// In the peer's memory.
    Received,
    /// On the peer's disk (perhaps in its volatile cache), or failed there and noted as out of sync.
    Written,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Number on the data lane.
    pub sequence: u64,
    /// Epoch.
    pub epoch: u64,
    /// Index of the volume.
    pub volume: usize,
    /// Where.
    pub range: ByteRange,
    /// Bytes that travel.
    pub payload_bytes: u32,
    /// How far it got.
    pub confirmed: Confirmed,
    /// Key of the request.
    pub request: usize,
    /// The peer's disk went away: its blocks are marked and the request does not wait for it any more.
    pub lost: bool,
}

/// The transfer log of one connection.
#[derive(Debug, Default)]
pub struct TransferLog {
    entries: VecDeque<LogEntry>,
    next_sequence: u64,
    received_through: u64,
    epoch: u64,
    epoch_operations: u32,
    /// An operation of the current epoch was completed to a client: the next one must start a new epoch.
    epoch_completed: bool,
    durable_epoch: u64,
    in_flight_bytes: u64,
    unwritten: usize,
    /// Everything up to this number is written.
    written_through: u64,
}

impl TransferLog {
    /// The log of a new connection.
    #[must_use]
    pub fn new() -> Self {
        TransferLog {
            next_sequence: 1,
            epoch: 1,
            ..TransferLog::default()
        }
    }

    /// True if the current epoch must be closed before the next operation.
    #[must_use]
    pub fn must_close_epoch(&self, max_epoch_size: u32) -> bool {
        self.epoch_operations > 0
            && (self.epoch_completed || self.epoch_operations >= max_epoch_size)
    }

    /// Closes the current epoch if it holds an operation; returns the epoch for the barrier.
    pub fn close_epoch(&mut self) -> Option<u64> {
        if self.epoch_operations == 0 {
            return None;
        }
        let closed = self.epoch;
        self.epoch += 1;
        self.epoch_operations = 0;
        self.epoch_completed = false;
        Some(closed)
    }

    /// Enters an operation; returns its sequence number and epoch.
    pub fn push(
        &mut self,
        volume: usize,
        range: ByteRange,
        payload_bytes: u32,
        request: usize,
    ) -> (u64, u64) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.epoch_operations += 1;
        self.in_flight_bytes += u64::from(payload_bytes);
        self.unwritten += 1;
        self.entries.push_back(LogEntry {
            sequence,
            epoch: self.epoch,
            volume,
            range,
            payload_bytes,
            confirmed: Confirmed::Sent,
            request,
            lost: false,
        });
        (sequence, self.epoch)
    }

    /// A request whose operation is in `epoch` was completed to its client.
    pub fn completed(&mut self, epoch: u64) {
        if epoch == self.epoch {
            self.epoch_completed = true;
        }
    }

    fn index_of(&self, sequence: u64) -> Option<usize> {
        let first = self.entries.front()?.sequence;
        let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
        (index < self.entries.len()).then_some(index)
    }

    /// The peer has received everything up to `through`. Calls `each` with the request of every newly received operation.
    /// False if the peer claims more than was sent.
    pub fn received(&mut self, through: u64, mut each: impl FnMut(usize)) -> bool {
        if through >= self.next_sequence {
            return false;
        }
        while self.received_through < through {
            self.received_through += 1;
            if let Some(index) = self.index_of(self.received_through) {
                let entry = &mut self.entries[index];
                if entry.confirmed == Confirmed::Sent {
                    entry.confirmed = Confirmed::Received;
                    if !entry.lost {
                        each(entry.request);
                    }
                }
            }
        }
        true
    }

    /// The peer has written the operation (or failed to). Returns the entry, or `None` if the claim makes no sense.
    pub fn written(&mut self, sequence: u64) -> Option<LogEntry> {
        let index = self.index_of(sequence)?;
        let entry = &mut self.entries[index];
        if entry.confirmed == Confirmed::Written {
            return None;
        }
        entry.confirmed = Confirmed::Written;
        self.in_flight_bytes -= u64::from(entry.payload_bytes);
        self.unwritten -= 1;
        let written = entry.clone();
        while self.written_through + 1 < self.next_sequence
            && self
                .index_of(self.written_through + 1)
                .is_none_or(|index| self.entries[index].confirmed == Confirmed::Written)
        {
            self.written_through += 1;
        }
        Some(written)
    }

    /// The peer has made everything up to the end of `epoch` durable. Calls `each` for the entries that retire. False if the claim
    /// makes no sense: the epoch is open, or holds an operation that was not confirmed as written.
    pub fn barrier_acked(&mut self, epoch: u64, mut each: impl FnMut(LogEntry)) -> bool {
        if epoch >= self.epoch || epoch <= self.durable_epoch {
            return false;
        }
        if self
            .entries
            .iter()
            .take_while(|entry| entry.epoch <= epoch)
            .any(|entry| entry.confirmed != Confirmed::Written)
        {
            return false;
        }
        self.durable_epoch = epoch;
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.epoch <= epoch)
        {
            if let Some(entry) = self.entries.pop_front() {
                each(entry);
            }
        }
        true
    }

    /// The peer's disk of this volume went away: marks every entry of it as lost and returns those that were not lost yet.
    /// What the peer still says about them is accepted and means nothing.
    pub fn lose_volume(&mut self, volume: usize) -> Vec<LogEntry> {
        let mut lost = Vec::new();
        for entry in self
            .entries
            .iter_mut()
            .filter(|entry| entry.volume == volume && !entry.lost)
        {
            lost.push(entry.clone());
            entry.lost = true;
        }
        lost
    }

    /// True if the peer has not written everything of the volume that it was sent.
    #[must_use]
    pub fn has_unwritten(&self, volume: usize) -> bool {
        self.unwritten > 0
            && self
                .entries
                .iter()
                .any(|entry| entry.volume == volume && entry.confirmed != Confirmed::Written)
    }

    /// The connection is gone: takes what is left.
    pub fn take_all(&mut self) -> VecDeque<LogEntry> {
        core::mem::replace(self, TransferLog::new()).entries
    }

    /// Last epoch that is durable at the peer.
    #[must_use]
    pub fn durable_epoch(&self) -> u64 {
        self.durable_epoch
    }

    /// The epoch after whose durability everything sent so far is durable at the peer; 0 if nothing is outstanding.
    #[must_use]
    pub fn last_epoch_with_entries(&self) -> u64 {
        self.entries.back().map_or(0, |entry| entry.epoch)
    }

    /// Bytes sent and not yet written by the peer.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Operations that the peer has not written yet.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.unwritten
    }

    /// Sequence number of the oldest operation that the peer has not written yet.
    #[must_use]
    pub fn oldest_unwritten(&self) -> Option<u64> {
        (self.unwritten > 0).then_some(self.written_through + 1)
    }

    /// Operations remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_with(operations: usize) -> TransferLog {
        let mut log = TransferLog::new();
        for index in 0..operations {
            log.push(0, ByteRange::new(index as u64 * 4096, 4096), 4096, index);
        }
        log
    }

    #[test]
    fn a_write_after_a_completion_starts_a_new_epoch() {
        let mut log = log_with(1);
        assert!(!log.must_close_epoch(100));
        log.completed(1);
        assert!(log.must_close_epoch(100));
        assert_eq!(log.close_epoch(), Some(1));
        assert_eq!(log.push(0, ByteRange::new(0, 512), 512, 9), (2, 2));
        assert_eq!(log.close_epoch(), Some(2));
        assert_eq!(log.close_epoch(), None, "an empty epoch is not closed");
    }

    #[test]
    fn entries_retire_only_with_the_barrier_of_their_epoch() {
        let mut log = log_with(2);
        assert!(log.written(1).is_some() && log.written(2).is_some());
        assert_eq!(log.len(), 2, "an ack is not durability");
        assert!(!log.barrier_acked(1, |_| {}), "the epoch is still open");
        log.close_epoch();
        let mut retired = Vec::new();
        assert!(log.barrier_acked(1, |entry| retired.push(entry.sequence)));
        assert_eq!(retired, [1, 2]);
        assert_eq!(log.len(), 0);
        assert_eq!(log.in_flight_bytes(), 0);
    }

    #[test]
    fn senseless_claims_of_the_peer_are_refused() {
        let mut log = log_with(2);
        assert!(!log.received(3, |_| {}));
        assert!(log.written(3).is_none());
        assert!(log.written(0).is_none());
        assert!(log.written(1).is_some());
        assert!(log.written(1).is_none(), "twice");
        log.close_epoch();
        assert!(
            !log.barrier_acked(1, |_| {}),
            "operation 2 was never written"
        );
    }
}
