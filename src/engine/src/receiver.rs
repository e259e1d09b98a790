//! The Secondary's side of the data lane: which received operation may touch the disk (W6), and what is durable.
//!
//! Operations arrive in the Primary's order, each with its epoch. Operations of one epoch run beside each other (overlap order is
//! the business of `interval`); the first of the next epoch starts only when the barrier of the previous one arrived, all its
//! operations ended, and the backing devices were flushed or the operation was durable by itself.
//!
//! The flush need not wait for the barrier: when an epoch seems to be complete (as many operations as the one before it had, and
//! all ended), it begins at once. A client that writes one block after another then finds it done, or nearly so, when its next block
//! arrives. If the guess was wrong, what came later is flushed as well.
//!
//! Where no client waits for the report of a write alone, the only write of an epoch, as far as one can tell, is made durable by itself:
//! one operation of the disk instead of two, one after the other. That is so where reports are gathered (see `reports`): a client that
//! writes one block after another is slowed to the pace of the peer's epochs as soon as enough of them wait there. And it is so where
//! the Primary closes an epoch before its only write has ended: a flush is asked for or foreseen, or the write has FUA.
//!
//! Invariants: `epochs` holds consecutive epochs, only the first is being written; `pending` counts its operations that have
//! not ended; `touched` names the volumes with operations that began after the last flush of them was asked for and are not durable by
//! themselves, so an epoch is durable when it is closed and has nothing pending, touched or being flushed.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::limits::MAX_BUFFERED_OPERATIONS;
use crate::units::ByteRange;

/// What a received operation does to the disk.
#[derive(Clone, Debug)]
pub enum ReceivedKind<P> {
    /// Write the payload.
    Write(P),
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes {
        /// The space may be given back.
        may_unmap: bool,
    },
    /// Read for the peer's client; `sequence` is the id of the question.
    Read,
}

/// A received operation.
#[derive(Clone, Debug)]
pub struct Received<P> {
    /// Number on the data lane.
    pub sequence: u64,
    /// Epoch.
    pub epoch: u64,
    /// Index of the volume.
    pub volume: usize,
    /// Where.
    pub range: ByteRange,
    /// The sender's own disk misses it, so it must be noted here.
    pub missed: bool,
    /// What.
    pub kind: ReceivedKind<P>,
}

impl<P> Received<P> {
    /// It changes nothing, and has no number on the lane.
    pub fn is_read(&self) -> bool {
        matches!(self.kind, ReceivedKind::Read)
    }
}

#[derive(Debug)]
struct Epoch<P> {
    number: u64,
    waiting: Vec<Received<P>>,
    pending: usize,
    closed: bool,
    /// Operations so far, without reads.
    operations: usize,
    /// Volumes (by index) whose disks this epoch touched since they were flushed.
    touched: Vec<usize>,
    flushing: usize,
}

impl<P> Epoch<P> {
    fn new(number: u64) -> Self {
        Epoch {
            number,
            waiting: Vec::new(),
            pending: 0,
            closed: false,
            operations: 0,
            touched: Vec::new(),
            flushing: 0,
        }
    }

    fn touch(&mut self, volume: usize) {
        if !self.touched.contains(&volume) {
            self.touched.push(volume);
        }
    }

    /// The operation is carried out now; `alone` if it seems to be the only one and nobody waits for its report.
    fn start(&mut self, operation: Received<P>, alone: bool) -> Step<P> {
        let durable = alone && matches!(operation.kind, ReceivedKind::Write(_));
        self.pending += 1;
        if !operation.is_read() && !durable {
            self.touch(operation.volume);
        }
        Step::Start { operation, durable }
    }
}

/// What to do next.
#[derive(Debug)]
pub enum Step<P> {
    /// Carry the operation out.
    Start {
        /// The operation.
        operation: Received<P>,
        /// It is a write that must be durable when it ends.
        durable: bool,
    },
    /// Flush the backing device of this volume for the epoch being written.
    Flush {
        /// Index of the volume.
        volume: usize,
    },
    /// The epoch is durable: tell the Primary.
    Durable {
        /// The epoch.
        epoch: u64,
    },
}

/// State of the data lane of one connection at its receiver.
#[derive(Debug)]
pub struct Receiver<P> {
    next_sequence: u64,
    epochs: VecDeque<Epoch<P>>,
    next_epoch: u64,
    /// Operations received of the epoch that is open.
    open_operations: usize,
    /// Operations of the last epoch that was durable.
    last_operations: usize,
    buffered: usize,
    steps: VecDeque<Step<P>>,
    /// A client waits for the report of each write.
    pub awaited: bool,
    /// The last epoch was closed before its operations had ended. If it held a single one, the Primary waits for durability.
    closed_early: bool,
}

impl<P> Receiver<P> {
    /// The lane of a new connection.
    #[must_use]
    pub fn new() -> Self {
        Receiver {
            awaited: true,
            next_sequence: 1,
            epochs: VecDeque::new(),
            next_epoch: 1,
            open_operations: 0,
            last_operations: 0,
            buffered: 0,
            steps: VecDeque::new(),
            closed_early: false,
        }
    }

    /// True if writes to this volume wait for their epoch.
    #[must_use]
    pub fn holds_writes(&self, volume: usize) -> bool {
        let waits = |operation: &Received<P>| operation.volume == volume && !operation.is_read();
        let starts =
            |step: &Step<P>| matches!(step, Step::Start { operation, .. } if waits(operation));
        self.epochs
            .iter()
            .flat_map(|epoch| &epoch.waiting)
            .any(waits)
            || self.steps.iter().any(starts)
    }

    /// Takes an operation. False if its numbers do not follow, or if the peer sends more than was agreed
    /// ([`MAX_BUFFERED_OPERATIONS`]).
    pub fn receive(&mut self, operation: Received<P>) -> bool {
        if self.buffered >= MAX_BUFFERED_OPERATIONS {
            return false;
        }
        let is_read = operation.is_read();
        let number = if is_read {
            self.newest_epoch()
        } else {
            operation.epoch
        };
        if !is_read {
            if operation.sequence != self.next_sequence || operation.epoch != self.newest_epoch() {
                return false;
            }
            self.next_sequence += 1;
            self.open_operations += 1;
        }
        if self
            .epochs
            .back()
            .is_none_or(|epoch| epoch.number != number)
        {
            self.epochs.push_back(Epoch::new(number));
        }
        let first = self.epochs.len() == 1;
        let ones = self.last_operations == 1 && (self.closed_early || !self.awaited);
        let Some(epoch) = self.epochs.back_mut() else {
            return false;
        };
        self.buffered += 1;
        epoch.operations += usize::from(!is_read);
        if first {
            let step = epoch.start(operation, ones && epoch.operations == 1);
            self.steps.push_back(step);
        } else {
            epoch.waiting.push(operation);
        }
        true
    }

    fn newest_epoch(&self) -> u64 {
        self.next_epoch
    }

    /// Takes a barrier. False if it does not close the epoch that is open, or if that epoch is empty (so that the number of epochs
    /// is bounded by the number of operations).
    pub fn barrier(&mut self, number: u64) -> bool {
        if number != self.next_epoch || self.open_operations == 0 {
            return false;
        }
        self.next_epoch += 1;
        self.open_operations = 0;
        if self
            .epochs
            .back()
            .is_none_or(|epoch| epoch.number != number)
        {
            self.epochs.push_back(Epoch::new(number));
        }
        if let Some(epoch) = self.epochs.back_mut() {
            epoch.closed = true;
            self.closed_early = epoch.pending > 0 || !epoch.waiting.is_empty();
        }
        self.advance();
        true
    }

    /// An operation of the epoch being written ended.
    pub fn ended(&mut self) {
        self.buffered -= 1;
        if let Some(epoch) = self.epochs.front_mut() {
            epoch.pending -= 1;
        }
        self.advance();
    }

    /// A write that was to be durable by itself is not: what reached the volume's disk needs a flush after all.
    pub fn not_durable(&mut self, volume: usize) {
        if let Some(epoch) = self.epochs.front_mut() {
            epoch.touch(volume);
        }
    }

    /// A flush asked for by [`Step::Flush`] ended.
    pub fn flushed(&mut self) {
        if let Some(epoch) = self.epochs.front_mut() {
            epoch.flushing -= 1;
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(epoch) = self.epochs.front_mut() {
            let seems_complete = epoch.operations == self.last_operations;
            if epoch.pending > 0 || epoch.flushing > 0 || !(epoch.closed || seems_complete) {
                return;
            }
            if !epoch.touched.is_empty() {
                epoch.flushing = epoch.touched.len();
                for volume in core::mem::take(&mut epoch.touched) {
                    self.steps.push_back(Step::Flush { volume });
                }
                return;
            }
            if !epoch.closed {
                return;
            }
            let number = epoch.number;
            self.last_operations = epoch.operations;
            self.steps.push_back(Step::Durable { epoch: number });
            self.epochs.pop_front();
            self.open_first();
        }
    }

    fn open_first(&mut self) {
        if let Some(epoch) = self.epochs.front_mut() {
            let alone = epoch.operations == 1 && (epoch.closed || !self.awaited);
            for operation in core::mem::take(&mut epoch.waiting) {
                let step = epoch.start(operation, alone);
                self.steps.push_back(step);
            }
        }
    }

    /// The next thing to do.
    pub fn next_step(&mut self) -> Option<Step<P>> {
        self.steps.pop_front()
    }

    /// Number of the last operation received.
    #[must_use]
    pub fn received_through(&self) -> u64 {
        self.next_sequence - 1
    }

    /// True while an operation of the epoch being written has not ended.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.epochs.front().is_some_and(|epoch| epoch.pending > 0)
    }

    /// Operations received and not ended.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffered
    }
}

impl<P> Default for Receiver<P> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sequence: u64, epoch: u64) -> Received<u8> {
        Received {
            sequence,
            epoch,
            volume: 0,
            range: ByteRange::new(sequence * 4096, 4096),
            missed: false,
            kind: ReceivedKind::Write(1),
        }
    }

    #[test]
    fn nothing_of_the_next_epoch_starts_before_the_flush_of_the_previous_one() {
        let mut lane = Receiver::new();
        assert!(lane.receive(write(1, 1)));
        assert!(lane.receive(write(2, 1)));
        assert!(lane.barrier(1));
        assert!(lane.receive(write(3, 2)));
        assert_eq!(steps(&mut lane), ["start 1", "start 2"]);
        lane.ended();
        assert_eq!(steps(&mut lane), [""; 0], "operation 2 has not ended");
        lane.ended();
        assert_eq!(steps(&mut lane), ["flush 0"]);
        lane.flushed();
        assert_eq!(steps(&mut lane), ["durable 1", "start 3"]);
    }

    #[test]
    fn numbers_that_do_not_follow_are_refused() {
        let mut lane = Receiver::new();
        assert!(!lane.receive(write(2, 1)));
        assert!(lane.receive(write(1, 1)));
        assert!(!lane.receive(write(2, 2)), "no barrier closed epoch 1");
        assert!(!lane.barrier(2));
        assert!(lane.barrier(1));
        assert!(!lane.barrier(1));
        assert!(!lane.receive(write(2, 1)));
        assert!(lane.receive(write(2, 2)));
    }

    fn steps(lane: &mut Receiver<u8>) -> Vec<alloc::string::String> {
        core::iter::from_fn(|| lane.next_step())
            .map(|step| match step {
                Step::Start {
                    operation,
                    durable: false,
                } => alloc::format!("start {}", operation.sequence),
                Step::Start {
                    operation,
                    durable: true,
                } => alloc::format!("start {} durable", operation.sequence),
                Step::Flush { volume } => alloc::format!("flush {volume}"),
                Step::Durable { epoch } => alloc::format!("durable {epoch}"),
            })
            .collect()
    }

    /// Epoch 1 with one operation, durable.
    fn one_by_one() -> Receiver<u8> {
        let mut lane = Receiver::new();
        assert!(lane.receive(write(1, 1)));
        lane.ended();
        assert_eq!(
            steps(&mut lane),
            ["start 1"],
            "nothing is known of this client"
        );
        assert!(lane.barrier(1));
        lane.flushed();
        assert_eq!(steps(&mut lane), ["flush 0", "durable 1"]);
        lane
    }

    #[test]
    fn epoch_that_seems_complete_is_flushed_before_its_barrier() {
        let mut lane = one_by_one();
        assert!(lane.receive(write(2, 2)));
        lane.ended();
        assert_eq!(steps(&mut lane), ["start 2", "flush 0"]);
        lane.flushed();
        assert_eq!(
            steps(&mut lane),
            [""; 0],
            "durable is said of what was closed"
        );
        assert!(lane.barrier(2));
        assert!(lane.receive(write(3, 3)));
        assert_eq!(
            steps(&mut lane),
            ["durable 2", "start 3"],
            "no second flush"
        );
    }

    #[test]
    fn write_that_comes_after_an_early_flush_began_is_flushed_too() {
        let mut lane = one_by_one();
        assert!(lane.receive(write(2, 2)));
        lane.ended();
        assert!(lane.receive(write(3, 2)));
        lane.ended();
        assert!(lane.barrier(2));
        assert!(lane.receive(write(4, 3)));
        assert_eq!(steps(&mut lane), ["start 2", "flush 0", "start 3"]);
        lane.flushed();
        assert_eq!(
            steps(&mut lane),
            ["flush 0"],
            "3 ended after the first flush began"
        );
        lane.flushed();
        assert_eq!(steps(&mut lane), ["durable 2", "start 4"]);
    }

    #[test]
    fn write_that_has_not_ended_when_an_early_flush_does_is_flushed_too() {
        let mut lane = one_by_one();
        assert!(lane.receive(write(2, 2)));
        lane.ended();
        assert!(lane.receive(write(3, 2)));
        assert!(lane.barrier(2));
        lane.flushed();
        assert_eq!(steps(&mut lane), ["start 2", "flush 0", "start 3"]);
        lane.ended();
        assert_eq!(steps(&mut lane), ["flush 0"]);
        lane.flushed();
        assert_eq!(steps(&mut lane), ["durable 2"]);
    }

    /// As `one_by_one`, where nobody waits for reports.
    fn one_by_one_unawaited() -> Receiver<u8> {
        let mut lane = Receiver::new();
        lane.awaited = false;
        assert!(lane.receive(write(1, 1)));
        lane.ended();
        assert!(lane.barrier(1));
        lane.flushed();
        assert_eq!(steps(&mut lane), ["start 1", "flush 0", "durable 1"]);
        lane
    }

    #[test]
    fn only_write_of_an_epoch_is_durable_by_itself_where_nobody_waits_for_its_report() {
        let mut lane = one_by_one_unawaited();
        assert!(lane.receive(write(2, 2)));
        assert!(lane.barrier(2));
        assert!(lane.receive(write(3, 3)));
        assert!(lane.barrier(3));
        assert_eq!(steps(&mut lane), ["start 2 durable"]);
        lane.ended();
        assert_eq!(steps(&mut lane), ["durable 2", "start 3 durable"]);
        lane.ended();
        assert_eq!(steps(&mut lane), ["durable 3"]);
    }

    #[test]
    fn write_that_follows_a_durable_one_in_its_epoch_is_flushed() {
        let mut lane = one_by_one_unawaited();
        assert!(lane.receive(write(2, 2)));
        assert!(lane.receive(write(3, 2)));
        assert!(lane.barrier(2));
        assert_eq!(steps(&mut lane), ["start 2 durable", "start 3"]);
        lane.ended();
        lane.ended();
        assert_eq!(steps(&mut lane), ["flush 0"]);
        lane.flushed();
        assert_eq!(steps(&mut lane), ["durable 2"]);
    }

    #[test]
    fn epochs_of_several_writes_that_wait_are_flushed_once() {
        let mut lane = one_by_one_unawaited();
        assert!(lane.receive(write(2, 2)));
        assert!(lane.barrier(2));
        assert!(lane.receive(write(3, 3)));
        assert!(lane.receive(write(4, 3)));
        assert!(lane.barrier(3));
        lane.ended();
        let expected = ["start 2 durable", "durable 2", "start 3", "start 4"];
        assert_eq!(steps(&mut lane), expected);
        lane.ended();
        lane.ended();
        assert_eq!(steps(&mut lane), ["flush 0"]);
    }

    #[test]
    fn write_that_failed_to_be_durable_is_not_passed_for_it() {
        let mut lane = one_by_one_unawaited();
        assert!(lane.receive(write(2, 2)));
        assert!(lane.barrier(2));
        lane.not_durable(0);
        lane.ended();
        assert_eq!(steps(&mut lane), ["start 2 durable", "flush 0"]);
    }

    #[test]
    fn write_whose_report_is_awaited_does_not_wait_for_a_flush() {
        let mut lane = one_by_one();
        for sequence in 2..5 {
            assert!(lane.receive(write(sequence, sequence)));
            lane.ended();
            assert!(lane.barrier(sequence));
            lane.flushed();
            assert_eq!(
                steps(&mut lane),
                [
                    alloc::format!("start {sequence}"),
                    "flush 0".into(),
                    alloc::format!("durable {sequence}")
                ]
            );
        }
        assert!(lane.receive(write(5, 5)));
        assert!(lane.barrier(5));
        assert!(lane.receive(write(6, 6)));
        lane.ended();
        lane.flushed();
        assert_eq!(
            steps(&mut lane),
            ["start 5", "flush 0", "durable 5", "start 6"],
            "nobody waits for the durability of 6 yet"
        );
    }

    #[test]
    fn write_is_durable_by_itself_while_epochs_are_closed_before_their_only_write_ended() {
        let mut lane = one_by_one();
        assert!(lane.receive(write(2, 2)));
        assert!(lane.barrier(2));
        lane.ended();
        lane.flushed();
        assert_eq!(steps(&mut lane), ["start 2", "flush 0", "durable 2"]);
        assert!(lane.receive(write(3, 3)));
        assert!(lane.barrier(3));
        lane.ended();
        assert_eq!(steps(&mut lane), ["start 3 durable", "durable 3"]);
        assert!(lane.receive(write(4, 4)));
        lane.ended();
        assert!(lane.barrier(4));
        assert_eq!(steps(&mut lane), ["start 4 durable", "durable 4"]);
        assert!(lane.receive(write(5, 5)));
        assert_eq!(
            steps(&mut lane),
            ["start 5"],
            "the last one was closed when its write had ended"
        );
    }

    #[test]
    fn only_write_of_an_epoch_that_was_closed_while_it_waited_is_durable_by_itself() {
        let mut lane = one_by_one();
        assert!(lane.receive(write(2, 2)));
        assert!(lane.receive(write(3, 2)));
        assert!(lane.barrier(2));
        assert!(lane.receive(write(4, 3)));
        assert!(lane.barrier(3));
        lane.ended();
        lane.ended();
        lane.flushed();
        let expected = [
            "start 2",
            "start 3",
            "flush 0",
            "durable 2",
            "start 4 durable",
        ];
        assert_eq!(steps(&mut lane), expected);
    }

    #[test]
    fn epoch_of_several_writes_that_is_closed_early_says_nothing_about_the_next() {
        let mut lane = one_by_one();
        assert!(lane.receive(write(2, 2)));
        assert!(lane.receive(write(3, 2)));
        assert!(lane.barrier(2));
        lane.ended();
        lane.ended();
        lane.flushed();
        assert!(lane.receive(write(4, 3)));
        let expected = ["start 2", "start 3", "flush 0", "durable 2", "start 4"];
        assert_eq!(steps(&mut lane), expected);
    }

    #[test]
    fn a_report_may_wait_only_for_a_write_that_will_end() {
        let mut lane = Receiver::new();
        assert!(!lane.is_writing());
        assert!(lane.receive(write(1, 1)));
        assert!(lane.barrier(1));
        assert!(lane.receive(write(2, 2)));
        assert!(lane.is_writing());
        lane.ended();
        assert!(
            !lane.is_writing(),
            "2 waits for the flush, not the flush for 2"
        );
        while lane.next_step().is_some() {}
        lane.flushed();
        assert!(lane.is_writing());
        lane.ended();
        assert!(!lane.is_writing());
    }

    #[test]
    fn an_empty_epoch_is_refused() {
        let mut lane = Receiver::<u8>::new();
        assert!(!lane.barrier(1));
        assert!(lane.receive(write(1, 1)));
        assert!(lane.barrier(1));
        assert!(!lane.barrier(2));
    }
}
