//! The life of an accepted operation on a ring: queued, with the kernel, continued if it was short, retried if interrupted, replaced
//! by a fallback if unsupported, completed.
//!
//! Invariant: a request is in exactly one place: the queue, the ring, or its port's completions. It validates nothing and polls no
//! runtime; that is the handle's part.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use nix::libc;
use tokio::io::unix::AsyncFd;

use super::UringStatistics;
use super::bell::{Bell, Waiting};
use crate::buffer::{Payload, Pool};
use crate::device::DeviceKind;
use crate::error::{DiskError, OperationKind};
use crate::open::Disk;
use crate::operation::{Completion, Operation};
use crate::sys::ring::{Action, Ring, Transfer};
use crate::transfer::{self, PUNCH_HOLE, SMALL_ZEROES, ZERO_RANGE};

/// One ring, shared by its handles and devices.
pub struct Core {
    pub ring: RefCell<Ring<Request>>,
    pub queue: RefCell<VecDeque<Transfer<Request>>>,
    pub finished: RefCell<Vec<(Transfer<Request>, i32)>>,
    pub wake_source: AsyncFd<OwnedFd>,
    pub bell: Arc<Bell>,
    pub bell_waker: Waker,
    pub pool: Pool,
    pub limit: usize,
    pub statistics: Cell<UringStatistics>,
}

/// Where one handle's completions wait to be taken.
pub struct Port {
    pub ready: RefCell<VecDeque<Completion>>,
    pub waiting: Arc<Waiting>,
}

/// A device and what was learnt about it on the way.
pub struct Device {
    pub disk: Rc<Disk>,
    /// Bytes that can be addressed; the disk may have grown since it was opened.
    pub size: Cell<u64>,
    pub no_punch: Cell<bool>,
    pub no_zero_range: Cell<bool>,
    pub no_discard: Cell<bool>,
    /// A write that must be durable is followed by a flush.
    pub no_durable_writes: Cell<bool>,
}

/// What has to be known of an operation at its end.
pub struct Request {
    pub token: u64,
    pub port: Rc<Port>,
    pub device: Rc<Device>,
    pub kind: OperationKind,
    pub offset: u64,
    pub length: u64,
    pub retries: u32,
    /// A flush has to follow the write.
    pub then_flush: bool,
}

impl Core {
    pub fn count(&self, change: impl FnOnce(&mut UringStatistics)) {
        let mut statistics = self.statistics.get();
        change(&mut statistics);
        self.statistics.set(statistics);
    }

    /// What to ask the kernel first; `None` if there is nothing to do.
    pub fn first_action(&self, request: &mut Request, operation: Operation) -> Option<Action> {
        let info = request.device.disk.info();
        match operation {
            Operation::Read { offset, length } => Some(Action::Read {
                buffer: self.pool.take(length as usize),
                done: 0,
                offset,
            }),
            Operation::Write {
                offset,
                mut payload,
                durable,
            } => {
                if !payload.is_aligned_to(info.memory_alignment as usize) {
                    payload = self.pool.copy_from(&payload);
                    self.count(|statistics| statistics.bounced += 1);
                }
                request.then_flush = durable && request.device.no_durable_writes.get();
                Some(Action::Write {
                    payload,
                    done: 0,
                    offset,
                    durable: durable && !request.then_flush,
                })
            }
            Operation::Flush => Some(Action::Sync),
            Operation::Discard { .. } => next_discard(request),
            Operation::WriteZeroes { may_unmap, .. } => Some(next_zeroing(request, may_unmap)),
        }
    }

    pub fn enqueue(&self, action: Action, request: Request) {
        let disk = Rc::clone(&request.device.disk);
        self.queue.borrow_mut().push_back(Transfer {
            disk,
            action,
            context: request,
        });
    }

    /// Completes the operation; its port's owner is woken.
    pub fn complete(&self, request: &Request, result: Result<Option<Payload>, DiskError>) {
        let result = result.map_err(|error| {
            if request.length > 0 {
                error.at(request.offset, request.length)
            } else {
                error
            }
        });
        self.count(|statistics| statistics.completed += 1);
        request.port.ready.borrow_mut().push_back(Completion {
            token: request.token,
            result,
        });
        request.port.waiting.wake();
    }

    /// Reaps what is done. What has to be continued stays queued: handing over is a system call that the owner times.
    pub fn reap(&self) {
        let mut finished = std::mem::take(&mut *self.finished.borrow_mut());
        self.ring.borrow_mut().reap(&mut finished);
        for (transfer, result) in finished.drain(..) {
            self.advance(transfer, result);
        }
        *self.finished.borrow_mut() = finished;
    }

    /// Hands queued transfers over and reaps until nothing moves. True if the kernel asked to come back later.
    pub fn turn(&self) -> bool {
        loop {
            let starved = self.hand_over();
            let mut finished = std::mem::take(&mut *self.finished.borrow_mut());
            self.ring.borrow_mut().reap(&mut finished);
            let moved = !finished.is_empty();
            for (transfer, result) in finished.drain(..) {
                self.advance(transfer, result);
            }
            *self.finished.borrow_mut() = finished;
            if !moved || self.queue.borrow().is_empty() {
                return starved;
            }
        }
    }

    /// Moves the queue into the ring and the ring's entries to the kernel, as far as both have room. True if the kernel was short
    /// of resources, which no completion may announce the end of.
    pub fn hand_over(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        loop {
            let mut queue = self.queue.borrow_mut();
            while let Some(transfer) = queue.pop_front() {
                if let Err(transfer) = ring.push(transfer) {
                    queue.push_front(transfer);
                    break;
                }
            }
            let more = !queue.is_empty();
            drop(queue);
            if !ring.has_unsubmitted() {
                return false;
            }
            match ring.enter() {
                Ok(0) => return true,
                Ok(_) if more || ring.has_unsubmitted() => {}
                Ok(_) => return false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => return true,
                    _ => panic!("io_uring_enter failed on a ring of our own: {error}"),
                },
            }
        }
    }

    /// Takes the kernel's word on a transfer and either completes its operation or asks for the rest.
    fn advance(&self, transfer: Transfer<Request>, result: i32) {
        let Transfer {
            action,
            context: mut request,
            ..
        } = transfer;
        if transfer::interrupted(result) && request.retries < transfer::MAX_RETRIES {
            request.retries += 1;
            self.resubmit(action, request);
            return;
        }
        match action {
            Action::Read {
                buffer,
                done,
                offset,
            } => {
                let length = buffer.len();
                match self.progress(&request, done, length, result) {
                    Ok(done) if done == length => {
                        self.complete(&request, Ok(Some(buffer.freeze())))
                    }
                    Ok(done) => self.resubmit(
                        Action::Read {
                            buffer,
                            done,
                            offset,
                        },
                        request,
                    ),
                    Err(error) => self.complete(&request, Err(error)),
                }
            }
            Action::Write {
                payload,
                done,
                offset,
                durable,
            } => {
                let length = payload.len();
                if durable && result == -libc::EOPNOTSUPP {
                    request.device.no_durable_writes.set(true);
                    request.then_flush = true;
                    let action = Action::Write {
                        payload,
                        done,
                        offset,
                        durable: false,
                    };
                    return self.resubmit(action, request);
                }
                match self.progress(&request, done, length, result) {
                    Ok(done) if done < length => self.resubmit(
                        Action::Write {
                            payload,
                            done,
                            offset,
                            durable,
                        },
                        request,
                    ),
                    Ok(_) => {
                        let end = offset + length as u64;
                        if request.kind == OperationKind::WriteZeroes
                            && end < request.offset + request.length
                        {
                            let action = zero_fill(end, request.offset + request.length);
                            self.enqueue(action, request);
                        } else if std::mem::take(&mut request.then_flush) {
                            self.count(|statistics| statistics.flushed_after += 1);
                            self.enqueue(Action::Sync, request);
                        } else {
                            self.complete(&request, Ok(None));
                        }
                    }
                    Err(error) => self.complete(&request, Err(error)),
                }
            }
            Action::Sync | Action::Allocate { .. } | Action::BlockDiscard { .. } if result >= 0 => {
                self.complete(&request, Ok(None))
            }
            Action::Allocate { mode, .. } if transfer::unsupported(-result) => {
                self.without_allocate(mode, request)
            }
            Action::BlockDiscard { .. }
                if transfer::unsupported(-result) || result == -libc::EINVAL =>
            {
                request.device.no_discard.set(true);
                self.complete(&request, Ok(None));
            }
            Action::Sync | Action::Allocate { .. } | Action::BlockDiscard { .. } => {
                let error = self.failed(&request, -result);
                self.complete(&request, Err(error));
            }
        }
    }

    fn resubmit(&self, action: Action, request: Request) {
        self.count(|statistics| statistics.resubmitted += 1);
        self.enqueue(action, request);
    }

    fn progress(
        &self,
        request: &Request,
        done: usize,
        length: usize,
        result: i32,
    ) -> Result<usize, DiskError> {
        transfer::progress(
            request.device.disk.info(),
            request.kind,
            done,
            length,
            result,
        )
    }

    fn failed(&self, request: &Request, errno: i32) -> DiskError {
        DiskError::from_errno(errno, request.kind, &request.device.disk.info().path)
    }

    /// The file system does not know this way to release or zero a range: remembers that, and takes the next way.
    fn without_allocate(&self, mode: i32, request: Request) {
        let punch = mode == PUNCH_HOLE;
        if punch {
            &request.device.no_punch
        } else {
            &request.device.no_zero_range
        }
        .set(true);
        let next = match request.kind {
            OperationKind::Discard => next_discard(&request),
            _ => Some(next_zeroing(&request, punch)),
        };
        match next {
            Some(action) => self.enqueue(action, request),
            None => self.complete(&request, Ok(None)),
        }
    }
}

fn next_discard(request: &Request) -> Option<Action> {
    let (offset, length, device) = (request.offset, request.length, &request.device);
    if !device.no_punch.get() {
        return Some(Action::Allocate {
            mode: PUNCH_HOLE,
            offset,
            length,
        });
    }
    let block = device.disk.info().kind != DeviceKind::File;
    (block && !device.no_discard.get()).then_some(Action::BlockDiscard { offset, length })
}

fn next_zeroing(request: &Request, may_unmap: bool) -> Action {
    let (offset, length, device) = (request.offset, request.length, &request.device);
    if may_unmap && !device.no_punch.get() {
        return Action::Allocate {
            mode: PUNCH_HOLE,
            offset,
            length,
        };
    }
    if length > SMALL_ZEROES && !device.no_zero_range.get() {
        return Action::Allocate {
            mode: ZERO_RANGE,
            offset,
            length,
        };
    }
    zero_fill(offset, offset + length)
}

/// Writes the next stretch of zeroes before `end`.
fn zero_fill(offset: u64, end: u64) -> Action {
    let length = (end - offset).min(Payload::MAX_ZEROES as u64) as usize;
    Action::Write {
        payload: Payload::zeroes(length),
        done: 0,
        offset,
        durable: false,
    }
}
