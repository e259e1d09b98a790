//! The one seam between whoever decides about I/O and whoever carries it out: [`BlockDevice`] and [`Reactor`].
//!
//! A device takes operations with a token, its reactor hands out one [`Completion`] per token, later and in any order.
//! Invariants of every backend: each accepted operation completes exactly once; a completed read or write is complete
//! (short transfers are continued inside); buffers stay alive until the device is done with them; nothing is ordered
//! against anything, so what must wait for a completion is submitted after it; a completed write is durable only if it
//! was `durable` or a flush submitted after its completion has completed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::coop::poll_proceed;

use crate::buffer::{MAX_BUFFER_BYTES, Payload};
use crate::device::DeviceInfo;
use crate::error::{DiskError, DiskErrorKind, OperationKind};

/// One request to a device. Offsets and lengths are bytes and multiples of [`DeviceInfo::alignment`].
#[derive(Clone, Debug)]
pub enum Operation {
    /// Reads into a buffer of the pool, which comes with the completion.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`MAX_BUFFER_BYTES`].
        length: u32,
    },
    /// Writes a payload.
    Write {
        /// First byte.
        offset: u64,
        /// The data, at most [`MAX_BUFFER_BYTES`].
        payload: Payload,
        /// The data is on stable storage when the completion comes (`RWF_DSYNC`).
        durable: bool,
    },
    /// Makes every write that completed before the submission durable (`fdatasync`).
    Flush,
    /// Tells the device that the range is unused. A hint: where it is unsupported, it succeeds without effect. The
    /// range reads as zeroes afterwards only if [`DeviceInfo::discard_zeroes`] says so.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Makes the range read as zeroes; falls back to writing them.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The space below the range may be released.
        may_unmap: bool,
    },
}

impl Operation {
    /// The name of the operation.
    #[must_use]
    pub fn kind(&self) -> OperationKind {
        match self {
            Operation::Read { .. } => OperationKind::Read,
            Operation::Write { .. } => OperationKind::Write,
            Operation::Flush => OperationKind::Flush,
            Operation::Discard { .. } => OperationKind::Discard,
            Operation::WriteZeroes { .. } => OperationKind::WriteZeroes,
        }
    }

    /// Offset and length in bytes; zeroes for a flush.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match self {
            Operation::Read { offset, length } => (*offset, u64::from(*length)),
            Operation::Write {
                offset, payload, ..
            } => (*offset, payload.len() as u64),
            Operation::Flush => (0, 0),
            Operation::Discard { offset, length }
            | Operation::WriteZeroes { offset, length, .. } => (*offset, *length),
        }
    }

    /// Checks the operation against the device before anything else looks at it.
    ///
    /// # Errors
    /// `ReadOnly`, `InvalidLength`, `Misaligned` or `OutOfRange`, with the range.
    pub fn validate(&self, info: &DeviceInfo) -> Result<(), DiskError> {
        self.validate_within(info, info.size)
    }

    /// As [`Operation::validate`], for a device that has `size` bytes by now.
    ///
    /// # Errors
    /// As [`Operation::validate`].
    pub fn validate_within(&self, info: &DeviceInfo, size: u64) -> Result<(), DiskError> {
        let kind = self.kind();
        let (offset, length) = self.range();
        let fail = |error_kind, detail: String| {
            Err(DiskError::new(error_kind, kind, &info.path, detail).at(offset, length))
        };
        if info.read_only && !matches!(self, Operation::Read { .. } | Operation::Flush) {
            return fail(
                DiskErrorKind::ReadOnly,
                "the disk was opened read-only".into(),
            );
        }
        if matches!(self, Operation::Flush) {
            return Ok(());
        }
        let buffered = matches!(self, Operation::Read { .. } | Operation::Write { .. });
        if length == 0 || (buffered && length > MAX_BUFFER_BYTES as u64) {
            return fail(
                DiskErrorKind::InvalidLength,
                format!("one request carries 1 to {MAX_BUFFER_BYTES} bytes"),
            );
        }
        let alignment = u64::from(info.alignment);
        if !offset.is_multiple_of(alignment) || !length.is_multiple_of(alignment) {
            return fail(
                DiskErrorKind::Misaligned,
                format!("offset and length must be multiples of {alignment} bytes"),
            );
        }
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return fail(
                DiskErrorKind::OutOfRange,
                format!("the device ends at {size} bytes"),
            );
        }
        Ok(())
    }
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// The token of the submission.
    pub token: u64,
    /// The data for a read, `None` for the others.
    pub result: Result<Option<Payload>, DiskError>,
}

/// The backend holds as many operations as it may; the operation comes back untouched.
#[derive(Debug)]
pub struct Refused {
    /// What was to be submitted.
    pub operation: Operation,
    /// The limit that was reached.
    pub limit: usize,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations are outstanding, the limit of the disk backend",
            self.limit
        )
    }
}

impl std::error::Error for Refused {}

/// An open device of one backend.
pub trait BlockDevice {
    /// What is known about the device.
    fn info(&self) -> &DeviceInfo;

    /// Accepts an operation. Its completion, also one for an operation that is invalid, comes through the reactor the
    /// device was attached to, never from within this call. Tokens are the caller's; a reactor does not look at them.
    ///
    /// # Errors
    /// [`Refused`] when the backend's limit of outstanding operations is reached; submit again after a completion.
    fn submit(&self, token: u64, operation: Operation) -> Result<(), Refused>;
}

/// Where the completions of a set of devices come out. One owner: the loop that submitted the operations.
///
/// The loop of the owner is: take completions, decide, submit, [`flush`](Reactor::flush), wait for
/// [`completed`](ReactorExt::completed) beside its other sources. Waiting flushes as well, and an operation submitted by another
/// task while the owner waits wakes the owner, so nothing that was accepted is left lying.
pub trait Reactor {
    /// Hands everything submitted so far to the kernel, in one system call if it fits. Call once per round, at least.
    fn flush(&self);

    /// Moves the completions that are there to the end of `completions` and returns their number. Never blocks and
    /// hands nothing over; sees what is done also where the runtime never gets to look at its file descriptors.
    fn take_completions(&self, completions: &mut Vec<Completion>) -> usize;

    /// Ready when at least one completion can be taken; otherwise the task is woken when that has changed.
    fn poll_completed(&self, context: &mut Context<'_>) -> Poll<()>;

    /// Forgets the task that the last `poll_completed` noted.
    fn stop_waiting(&self);

    /// Operations accepted by devices of this reactor whose completion has not been taken.
    fn outstanding(&self) -> usize;
}

/// What every reactor can do on top of [`Reactor`].
pub trait ReactorExt: Reactor {
    /// Waits until at least one completion can be taken. Cancel-safe.
    fn completed(&self) -> Completed<'_, Self> {
        Completed { reactor: self }
    }
}

impl<R: Reactor + ?Sized> ReactorExt for R {}

/// Future of [`ReactorExt::completed`].
#[must_use = "futures do nothing unless polled"]
pub struct Completed<'a, R: Reactor + ?Sized> {
    reactor: &'a R,
}

impl<R: Reactor + ?Sized> Future for Completed<'_, R> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.reactor.flush();
        // Devices that complete at once must not keep the thread from its other tasks.
        let budget = std::task::ready!(poll_proceed(context));
        std::task::ready!(self.reactor.poll_completed(context));
        budget.made_progress();
        Poll::Ready(())
    }
}

impl<R: Reactor + ?Sized> Drop for Completed<'_, R> {
    fn drop(&mut self) {
        self.reactor.stop_waiting();
    }
}
