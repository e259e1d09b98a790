//! The default backend: one ring per thread, driven by the thread's own event loop.
//!
//! Owns the handles: checking and accepting operations, waiting, handing completions out; the life of an operation is in `core`, who
//! is woken in `bell`. Submissions are batched and handed over by [`Reactor::flush`], by every
//! poll and by [`QUEUE_BATCH`]; completions are reaped on every poll and every take, and announced by an eventfd, so neither
//! direction depends on the runtime becoming idle.
//!
//! Bounds: [`UringOptions::outstanding`] operations per handle, [`UringOptions::in_kernel`] per ring with the kernel. Dropping
//! the last handle of a ring drops what was not handed over and waits for what was, however long the device takes.

mod bell;
mod core;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use nix::libc;

use self::bell::{Bell, lock};
use self::core::{Core, Device, Port, Request};
use crate::buffer::Pool;
use crate::device::DeviceInfo;
use crate::error::DiskError;
use crate::open::Disk;
use crate::operation::{BlockDevice, Completion, Operation, Reactor, Refused};
use crate::sys::ring::Ring;
pub use crate::sys::ring::TaskRun;
use crate::transfer;

/// Operations queued at most before they are handed over without waiting for the end of the round.
pub const QUEUE_BATCH: usize = 64;

/// Sizes of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringOptions {
    /// Slots of the submission queue.
    pub entries: u32,
    /// Slots of the completion queue.
    pub completions: u32,
    /// Operations with the kernel at once; above `completions`, the kernel has to buffer completions.
    pub in_kernel: usize,
    /// Operations accepted whose completion was not taken, per handle.
    pub outstanding: usize,
    /// How the kernel posts completions; where it does not know this way, the next older one is taken.
    pub task_run: TaskRun,
}

impl Default for UringOptions {
    fn default() -> Self {
        UringOptions {
            entries: 256,
            completions: 1024,
            in_kernel: 1024,
            outstanding: 16384,
            task_run: TaskRun::Deferred,
        }
    }
}

/// Counters of a ring since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UringStatistics {
    /// Operations accepted.
    pub accepted: u64,
    /// Operations completed.
    pub completed: u64,
    /// System calls made.
    pub enters: u64,
    /// Writes copied because their payload was not aligned for the device.
    pub bounced: u64,
    /// Transfers continued after a short one, or retried.
    pub resubmitted: u64,
    /// Durable writes that took a flush of their own.
    pub flushed_after: u64,
}

/// A handle on a ring, with its own completion queue. Use it on the thread that made it, inside a tokio runtime.
pub struct UringReactor {
    core: Rc<Core>,
    port: Rc<Port>,
}

/// A disk attached to a [`UringReactor`].
pub struct UringDevice {
    core: Rc<Core>,
    port: Rc<Port>,
    device: Rc<Device>,
}

impl UringReactor {
    /// A new ring. Reads and bounced writes take their buffers from `pool`.
    ///
    /// # Errors
    /// `Unsupported` or `PermissionDenied` where the kernel offers no usable io_uring, with the remedy.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new(options: UringOptions, pool: Pool) -> Result<Self, DiskError> {
        let attempt = |task_run| {
            Ring::new(
                options.entries,
                options.completions,
                options.in_kernel,
                task_run,
            )
        };
        let unknown_flag = |error: &std::io::Error| error.raw_os_error() == Some(libc::EINVAL);
        let mut task_run = options.task_run;
        let ring = loop {
            match (attempt(task_run), task_run.older()) {
                (Err(error), Some(older)) if unknown_flag(&error) => task_run = older,
                (result, _) => break result,
            }
        };
        let ring = ring.map_err(|error| transfer::setup_error(&error))?;
        let wake_source = ring
            .wake_source()
            .map_err(|error| transfer::setup_error(&error))?;
        let bell = Arc::new(Bell::default());
        let core = Rc::new(Core {
            ring: RefCell::new(ring),
            queue: RefCell::default(),
            finished: RefCell::default(),
            wake_source,
            bell_waker: Waker::from(Arc::clone(&bell)),
            bell,
            pool,
            limit: options.outstanding,
            statistics: Cell::default(),
        });
        Ok(Self::with_port(core))
    }

    fn with_port(core: Rc<Core>) -> Self {
        let port = Rc::new(Port {
            ready: RefCell::default(),
            waiting: Arc::default(),
        });
        let mut ports = lock(&core.bell.ports);
        ports.retain(|port| port.strong_count() > 0);
        ports.push(Arc::downgrade(&port.waiting));
        drop(ports);
        UringReactor { core, port }
    }

    /// Another handle on the same ring: completions of devices attached to it come out of it alone.
    #[must_use]
    pub fn share(&self) -> Self {
        Self::with_port(Rc::clone(&self.core))
    }

    /// Makes the disk usable through this ring; its completions come out of this handle. Device and reactor may be dropped in
    /// any order.
    #[must_use]
    pub fn attach(&self, disk: Disk) -> UringDevice {
        let device = Device {
            size: Cell::new(disk.info().size),
            disk: Rc::new(disk),
            no_punch: Cell::new(false),
            no_zero_range: Cell::new(false),
            no_discard: Cell::new(false),
            no_durable_writes: Cell::new(false),
        };
        device
            .no_durable_writes
            .set(device.disk.leaves_syncing_to_a_server());
        UringDevice {
            core: Rc::clone(&self.core),
            port: Rc::clone(&self.port),
            device: Rc::new(device),
        }
    }

    /// The pool that reads take their buffers from.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.core.pool
    }

    /// The counters of the ring, all its handles together.
    #[must_use]
    pub fn statistics(&self) -> UringStatistics {
        UringStatistics {
            enters: self.core.ring.borrow().enters(),
            ..self.core.statistics.get()
        }
    }
}

impl Reactor for UringReactor {
    fn flush(&self) {
        self.core.hand_over();
    }

    fn take_completions(&self, completions: &mut Vec<Completion>) -> usize {
        self.core.reap();
        let mut ready = self.port.ready.borrow_mut();
        let count = ready.len();
        completions.extend(ready.drain(..));
        self.port
            .waiting
            .outstanding
            .fetch_sub(count, Ordering::Relaxed);
        count
    }

    fn poll_completed(&self, context: &mut Context<'_>) -> Poll<()> {
        let starved = self.core.turn();
        let has_ready = || !self.port.ready.borrow().is_empty();
        if has_ready() {
            return Poll::Ready(());
        }
        {
            let mut waker = lock(&self.port.waiting.waker);
            match waker.as_mut() {
                Some(known) => known.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
        }
        let mut bell = Context::from_waker(&self.core.bell_waker);
        while let Poll::Ready(readiness) = self.core.wake_source.poll_read_ready(&mut bell) {
            // Cleared before reaping: a completion that comes in between is a new edge.
            readiness
                .expect("the runtime's I/O driver outlives its tasks")
                .clear_ready();
            self.core.turn();
            if has_ready() {
                return Poll::Ready(());
            }
        }
        if starved {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn stop_waiting(&self) {
        lock(&self.port.waiting.waker).take();
    }

    fn outstanding(&self) -> usize {
        self.port.waiting.outstanding.load(Ordering::Relaxed)
    }
}

impl UringDevice {
    /// The size of the device at this moment, in bytes; if it has grown, operations go that far from now on.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn measure(&self) -> Result<u64, DiskError> {
        let size = self.device.disk.current_size()?;
        self.device.size.set(self.device.size.get().max(size));
        Ok(size)
    }
}

impl BlockDevice for UringDevice {
    fn info(&self) -> &DeviceInfo {
        self.device.disk.info()
    }

    fn submit(&self, token: u64, operation: Operation) -> Result<(), Refused> {
        let core = &*self.core;
        if self.port.waiting.outstanding.load(Ordering::Relaxed) >= core.limit {
            return Err(Refused {
                operation,
                limit: core.limit,
            });
        }
        core.count(|statistics| statistics.accepted += 1);
        self.port
            .waiting
            .outstanding
            .fetch_add(1, Ordering::Relaxed);
        let (offset, length) = operation.range();
        let mut request = Request {
            token,
            port: Rc::clone(&self.port),
            device: Rc::clone(&self.device),
            kind: operation.kind(),
            offset,
            length,
            retries: 0,
            then_flush: false,
        };
        if let Err(error) = operation.validate_within(self.info(), self.device.size.get()) {
            core.complete(&request, Err(error));
            return Ok(());
        }
        match core.first_action(&mut request, operation) {
            Some(action) => {
                core.enqueue(action, request);
                if core.queue.borrow().len() >= QUEUE_BATCH {
                    core.hand_over();
                } else {
                    self.port.waiting.wake();
                }
            }
            None => core.complete(&request, Ok(None)),
        }
        Ok(())
    }
}
