//! The default backend: one ring per thread, driven by the thread's own event loop.
//!
//! Owns the life of an accepted operation: checked, queued, with the kernel, continued if it was short, retried if interrupted,
//! replaced by a fallback if unsupported, completed. Submissions are batched and handed over by [`Reactor::flush`], by every
//! poll and by [`QUEUE_BATCH`]; completions are reaped on every poll and every take, and announced by an eventfd, so neither
//! direction depends on the runtime becoming idle.
//!
//! Bounds: [`UringOptions::outstanding`] operations per handle, [`UringOptions::in_kernel`] per ring with the kernel. Dropping
//! the last handle of a ring drops what was not handed over and waits for what was, however long the device takes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use nix::libc;
use tokio::io::unix::AsyncFd;

use crate::buffer::{Payload, Pool};
use crate::device::{DeviceInfo, DeviceKind};
use crate::error::{DiskError, OperationKind};
use crate::open::Disk;
use crate::operation::{BlockDevice, Completion, Operation, Reactor, Refused};
pub use crate::sys::ring::TaskRun;
use crate::sys::ring::{Action, Ring, Transfer};
use crate::transfer::{self, PUNCH_HOLE, SMALL_ZEROES, ZERO_RANGE};

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

struct Core {
    ring: RefCell<Ring<Request>>,
    queue: RefCell<VecDeque<Transfer<Request>>>,
    finished: RefCell<Vec<(Transfer<Request>, i32)>>,
    wake_source: AsyncFd<OwnedFd>,
    bell: Arc<Bell>,
    bell_waker: Waker,
    pool: Pool,
    limit: usize,
    statistics: Cell<UringStatistics>,
}

/// Where one handle's completions wait to be taken.
struct Port {
    ready: RefCell<VecDeque<Completion>>,
    waiting: Arc<Waiting>,
}

/// The part of a port that wakers reach, which may be called from any thread.
#[derive(Default)]
struct Waiting {
    outstanding: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

/// Rung by the eventfd: wakes every port that waits for an operation. All of them, because the one that would reap for the
/// others may be held up elsewhere.
#[derive(Default)]
struct Bell {
    ports: Mutex<Vec<Weak<Waiting>>>,
}

/// A device and what was learnt about it on the way.
struct Device {
    disk: Rc<Disk>,
    no_punch: Cell<bool>,
    no_zero_range: Cell<bool>,
    no_discard: Cell<bool>,
}

/// What has to be known of an operation at its end.
struct Request {
    token: u64,
    port: Rc<Port>,
    device: Rc<Device>,
    kind: OperationKind,
    offset: u64,
    length: u64,
    retries: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let ports: Vec<_> = lock(&self.ports).iter().filter_map(Weak::upgrade).collect();
        for port in ports
            .iter()
            .filter(|port| port.outstanding.load(Ordering::Relaxed) > 0)
        {
            port.wake();
        }
    }
}

impl Waiting {
    fn wake(&self) {
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
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
            disk: Rc::new(disk),
            no_punch: Cell::new(false),
            no_zero_range: Cell::new(false),
            no_discard: Cell::new(false),
        };
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
        self.core.turn();
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
        let request = Request {
            token,
            port: Rc::clone(&self.port),
            device: Rc::clone(&self.device),
            kind: operation.kind(),
            offset,
            length,
            retries: 0,
        };
        if let Err(error) = operation.validate(self.info()) {
            core.complete(&request, Err(error));
            return Ok(());
        }
        match core.first_action(&request, operation) {
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

impl Core {
    fn count(&self, change: impl FnOnce(&mut UringStatistics)) {
        let mut statistics = self.statistics.get();
        change(&mut statistics);
        self.statistics.set(statistics);
    }

    /// What to ask the kernel first; `None` if there is nothing to do.
    fn first_action(&self, request: &Request, operation: Operation) -> Option<Action> {
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
                Some(Action::Write {
                    payload,
                    done: 0,
                    offset,
                    durable,
                })
            }
            Operation::Flush => Some(Action::Sync),
            Operation::Discard { .. } => next_discard(request),
            Operation::WriteZeroes { may_unmap, .. } => Some(next_zeroing(request, may_unmap)),
        }
    }

    fn enqueue(&self, action: Action, request: Request) {
        let disk = Rc::clone(&request.device.disk);
        self.queue.borrow_mut().push_back(Transfer {
            disk,
            action,
            context: request,
        });
    }

    /// Completes the operation; its port's owner is woken.
    fn complete(&self, request: &Request, result: Result<Option<Payload>, DiskError>) {
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

    /// Hands queued transfers over and reaps until nothing moves. True if the kernel asked to come back later.
    fn turn(&self) -> bool {
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
    fn hand_over(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::OpenOptions;
    use crate::operation::ReactorExt;

    /// Carries out a discard and a write of zeroes on `path` after the faster ways were found missing; what is then read.
    async fn without_fallocate(path: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
        let reactor = UringReactor::new(UringOptions::default(), Pool::default()).expect("ring");
        let device = reactor.attach(crate::open(path, OpenOptions::default()).expect("open"));
        device.device.no_punch.set(true);
        device.device.no_zero_range.set(true);
        let carry_out = async |operation: Operation| {
            device.submit(0, operation).expect("below the limit");
            let mut completions = Vec::new();
            reactor.completed().await;
            reactor.take_completions(&mut completions);
            completions.remove(0).result.expect("success")
        };
        let payload = reactor.pool().copy_from(&[7; 4 << 20]);
        carry_out(Operation::Write {
            offset: 0,
            payload,
            durable: false,
        })
        .await;
        carry_out(Operation::Discard {
            offset: 65536,
            length: 65536,
        })
        .await;
        let discarded = carry_out(Operation::Read {
            offset: 0,
            length: 262_144,
        })
        .await
        .expect("data");
        carry_out(Operation::WriteZeroes {
            offset: 8192,
            length: 3 << 20,
            may_unmap: true,
        })
        .await;
        let zeroed = carry_out(Operation::Read {
            offset: 0,
            length: 4 << 20,
        })
        .await
        .expect("data");
        (discarded.to_vec(), zeroed.to_vec())
    }

    fn assert_only_zero(bytes: &[u8], start: usize, end: usize) {
        let wrong = bytes
            .iter()
            .enumerate()
            .position(|(at, &byte)| (byte == 0) != (start..end).contains(&at));
        assert_eq!(wrong, None, "first byte that is not as expected");
    }

    fn block_on<T>(body: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(body)
    }

    fn file_of_8_mebibytes() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("disk");
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(8 << 20))
            .expect("disk file");
        (folder, path)
    }

    #[test]
    fn file_without_fallocate_ignores_discards_and_gets_zeroes_written() {
        let (_folder, path) = file_of_8_mebibytes();
        let (discarded, zeroed) = block_on(without_fallocate(&path));
        assert_only_zero(&discarded, 0, 0);
        assert_only_zero(&zeroed, 8192, 8192 + (3 << 20));
    }

    /// The command exists since Linux 6.12; without it the discard is a hint that has no effect.
    #[test]
    fn block_device_without_zeroing_discard_gets_the_discard_command() {
        let run = |program: &str, arguments: &[&str]| {
            let output = std::process::Command::new(program)
                .args(arguments)
                .output()
                .ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let (_folder, file) = file_of_8_mebibytes();
        let attach = || {
            run(
                "losetup",
                &["--find", "--show", file.to_str().expect("plain path")],
            )
        };
        let attached = nix::unistd::geteuid()
            .is_root()
            .then(|| (0..20).find_map(|_| attach()))
            .flatten();
        let Some(path) = attached else {
            eprintln!("skipped: needs root and losetup");
            return;
        };
        let (discarded, zeroed) = block_on(without_fallocate(std::path::Path::new(&path)));
        run("losetup", &["--detach", &path]);
        let release = nix::sys::utsname::uname()
            .expect("uname")
            .release()
            .to_string_lossy()
            .into_owned();
        let mut numbers = release
            .split(['.', '-'])
            .map_while(|number| number.parse::<u32>().ok());
        if (numbers.next(), numbers.next()) >= (Some(6), Some(12)) {
            assert_only_zero(&discarded, 65536, 131_072);
        } else {
            assert_only_zero(&discarded, 0, 0);
        }
        assert_only_zero(&zeroed, 8192, 8192 + (3 << 20));
    }
}
