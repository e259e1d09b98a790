//! A ring of the kernel (`io_uring`) that owns what it works on.
//!
//! Invariants: a [`Transfer`] that was pushed stays in `transfers`, with its buffer and its file, until its completion was
//! reaped; its slab key is the completion's `user_data`; no more than `limit` transfers are with the kernel, so with a limit
//! up to the size of the completion queue that queue cannot overflow (if it does, the kernel keeps the surplus and it is fetched
//! later); dropping the ring waits for every transfer. It interprets no result.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::buffer::{BufferMut, Payload};
use crate::open::Disk;

/// `BLOCK_URING_CMD_DISCARD`, Linux 6.12: `_IO(0x12, 0)`.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// What the kernel is to do. Offsets and lengths are bytes.
#[derive(Debug)]
pub enum Action {
    /// Reads to `buffer[done..]` from `offset + done`.
    Read {
        buffer: BufferMut,
        done: usize,
        offset: u64,
    },
    /// Writes `payload[done..]` to `offset + done`.
    Write {
        payload: Payload,
        done: usize,
        offset: u64,
        durable: bool,
    },
    /// `fdatasync`.
    Sync,
    /// `fallocate` with this mode.
    Allocate { mode: i32, offset: u64, length: u64 },
    /// Discard of a block device that does not promise zeroes.
    BlockDiscard { offset: u64, length: u64 },
}

/// One action on one file, with whatever the caller wants back at its end.
#[derive(Debug)]
pub struct Transfer<C> {
    pub disk: Rc<Disk>,
    pub action: Action,
    pub context: C,
}

impl<C> Transfer<C> {
    /// The kernel's description. The pointers in it are into memory that `self` owns and that does not move with it.
    fn entry(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.disk.as_raw_fd());
        match &mut self.action {
            Action::Read {
                buffer,
                done,
                offset,
            } => {
                let target = &mut buffer.as_mut_slice()[*done..];
                opcode::Read::new(fd, target.as_mut_ptr(), target.len() as u32)
                    .offset(*offset + *done as u64)
                    .build()
            }
            Action::Write {
                payload,
                done,
                offset,
                durable,
            } => {
                let source = &payload[*done..];
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, source.as_ptr(), source.len() as u32)
                    .offset(*offset + *done as u64)
                    .rw_flags(flags)
                    .build()
            }
            Action::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Action::Allocate {
                mode,
                offset,
                length,
            } => opcode::Fallocate::new(fd, *length)
                .offset(*offset)
                .mode(*mode)
                .build(),
            Action::BlockDiscard { offset, length } => {
                // The command takes its length in `addr3`, which lies where the command bytes begin.
                let mut command = [0u8; 16];
                command[..8].copy_from_slice(&length.to_ne_bytes());
                opcode::UringCmd16::new(fd, BLOCK_URING_CMD_DISCARD)
                    .addr(Some(*offset))
                    .cmd(command)
                    .build()
            }
        }
    }
}

#[cfg(test)]
impl<C> Transfer<C> {
    /// The flags of a read or write (`rw_flags`) in the kernel's description.
    pub fn rw_flags(&mut self) -> i32 {
        /// Where `struct io_uring_sqe` of the kernel has them.
        const OFFSET: usize = 28;
        let entry = self.entry();
        // SAFETY: an entry is `struct io_uring_sqe`, 64 bytes without padding, all of them initialised; the sizes are compared.
        let bytes = unsafe { std::mem::transmute::<squeue::Entry, [u8; 64]>(entry) };
        i32::from_ne_bytes(bytes[OFFSET..][..4].try_into().expect("four bytes"))
    }
}

/// How the kernel gets to post completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskRun {
    /// Only when asked, on this thread (Linux 6.1).
    Deferred,
    /// At the next system call, without interrupting the thread (Linux 5.19).
    Cooperative,
    /// At once.
    Interrupting,
}

impl TaskRun {
    /// The next best way, which older kernels know.
    pub(crate) fn older(self) -> Option<TaskRun> {
        match self {
            TaskRun::Deferred => Some(TaskRun::Cooperative),
            TaskRun::Cooperative => Some(TaskRun::Interrupting),
            TaskRun::Interrupting => None,
        }
    }
}

/// A ring and the transfers it works on.
pub struct Ring<C> {
    uring: IoUring,
    transfers: Slab<Transfer<C>>,
    limit: usize,
    enters: u64,
}

impl<C> Ring<C> {
    /// A ring with `entries` submission slots that has at most `limit` transfers with the kernel. `completions` is the size of the
    /// completion queue.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` if it lacks an operation that is needed (before Linux 5.6).
    pub fn new(
        entries: u32,
        completions: u32,
        limit: usize,
        task_run: TaskRun,
    ) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(completions);
        match task_run {
            TaskRun::Deferred => {
                builder
                    .setup_submit_all()
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag();
            }
            TaskRun::Cooperative => {
                builder
                    .setup_submit_all()
                    .setup_coop_taskrun()
                    .setup_taskrun_flag();
            }
            TaskRun::Interrupting => {}
        }
        let uring: IoUring = builder.build(entries)?;
        let mut probe = Probe::new();
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        let known = uring.submitter().register_probe(&mut probe).is_ok()
            && needed.iter().all(|&code| probe.is_supported(code));
        if !known || !uring.params().is_feature_nodrop() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        Ok(Ring {
            uring,
            transfers: Slab::with_capacity(64),
            limit,
            enters: 0,
        })
    }

    /// A descriptor that becomes readable with every completion, registered with the runtime of this thread. Each completion is a
    /// new edge, so nobody has to read it.
    ///
    /// # Errors
    /// Those of the kernel.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn wake_source(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        self.uring.submitter().register_eventfd(event.as_raw_fd())?;
        let event = OwnedFd::from(event);
        // SAFETY: the descriptor is open, owned by the `AsyncFd`, and is never replaced or closed before it.
        unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }
            .map_err(io::Error::from)
    }

    /// System calls made so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Queues a transfer for the next [`Ring::enter`]; gives it back when the submission queue is full or the limit is reached.
    ///
    /// # Errors
    /// The transfer.
    pub fn push(&mut self, transfer: Transfer<C>) -> Result<(), Transfer<C>> {
        if self.transfers.len() >= self.limit || self.uring.submission().is_full() {
            return Err(transfer);
        }
        let key = self.transfers.insert(transfer);
        let entry = self.transfers[key].entry().user_data(key as u64);
        // SAFETY: file and buffer belong to the transfer, which stays in `transfers` until its completion is reaped and which is
        // never accessed in between; the buffer's bytes have a stable address outside the slab.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue had room a moment ago");
        Ok(())
    }

    /// True if transfers were pushed that the kernel has not seen.
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// Hands the pushed transfers to the kernel.
    ///
    /// # Errors
    /// `EINTR`, `EAGAIN` and `EBUSY` ask for another call later; transfers not taken stay queued.
    pub fn enter(&mut self) -> io::Result<usize> {
        self.enters += 1;
        self.uring.submit()
    }

    /// Moves finished transfers with the kernel's results to `finished`.
    pub fn reap(&mut self, finished: &mut Vec<(Transfer<C>, i32)>) {
        self.collect(finished);
        let submission = self.uring.submission();
        let pending_work = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if pending_work {
            // The kernel holds completions back until it is entered; errors leave them for the next call.
            let _ = self.enter();
            self.collect(finished);
        }
    }

    fn collect(&mut self, finished: &mut Vec<(Transfer<C>, i32)>) {
        for entry in self.uring.completion() {
            let key =
                usize::try_from(entry.user_data()).expect("keys come from a slab of this process");
            finished.push((self.transfers.remove(key), entry.result()));
        }
    }

    /// Blocks until the kernel is done with everything and drops it.
    fn drain(&mut self) {
        let mut finished = Vec::new();
        while !self.transfers.is_empty() {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                    ) => {}
                Err(_) => {
                    // The ring cannot tell any more when the kernel is done: the memory must outlive the process's knowledge.
                    std::mem::forget(std::mem::take(&mut self.transfers));
                    return;
                }
            }
            self.reap(&mut finished);
            finished.clear();
        }
    }
}

impl<C> Drop for Ring<C> {
    fn drop(&mut self) {
        self.drain();
    }
}
