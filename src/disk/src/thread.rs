//! A second backend: the `tokio-uring` crate on a disk thread of its own (feature `tokio-uring`).
//!
//! `tokio-uring` hands submissions over only when its thread runs out of work. On a thread that does nothing but closed-loop disk
//! work that does no harm; beside a network it would starve the disk, hence the separate thread. The price is two wake-ups of another
//! thread per operation. Operations come through a channel, completions go back through a locked queue.
//!
//! Bounds: [`OUTSTANDING_LIMIT`] operations per reactor. Dropping the reactor waits until the thread has carried out what was accepted;
//! devices that outlive it get `Shutdown`. A durable write is a write followed by `fdatasync`.

use std::collections::{HashMap, VecDeque};
use std::fs::File as StandardFile;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_uring::fs::File;

use crate::buffer::{Payload, Pool};
use crate::device::DeviceInfo;
use crate::error::{DiskError, DiskErrorKind, OperationKind};
use crate::open::Disk;
use crate::operation::{BlockDevice, Completion, Operation, Reactor, Refused};
use crate::sys::tokio_buffer::{ReadPart, WritePart};
use crate::transfer::{self, PUNCH_HOLE, SMALL_ZEROES, ZERO_RANGE};

/// Operations accepted whose completion was not taken.
pub const OUTSTANDING_LIMIT: usize = 16384;

/// Slots of the thread's submission queue.
const QUEUE_ENTRIES: u32 = 256;

enum Job {
    Attach {
        number: u64,
        file: StandardFile,
    },
    Carry {
        token: u64,
        operation: Operation,
        device: Arc<Device>,
    },
    Detach {
        number: u64,
    },
    Stop,
}

struct Device {
    number: u64,
    disk: Disk,
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
}

#[derive(Default)]
struct Ready {
    completions: VecDeque<Completion>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Shared {
    ready: Mutex<Ready>,
    outstanding: AtomicUsize,
    next_number: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, token: u64, result: Result<Option<Payload>, DiskError>) {
        let mut ready = self.lock();
        ready.completions.push_back(Completion { token, result });
        let waker = ready.waker.take();
        drop(ready);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A disk thread and the queue of its completions.
pub struct DiskThread {
    jobs: UnboundedSender<Job>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A disk attached to a [`DiskThread`].
pub struct ThreadDevice {
    jobs: UnboundedSender<Job>,
    shared: Arc<Shared>,
    device: Arc<Device>,
}

impl DiskThread {
    /// Starts the thread; reads take their buffers from `pool`.
    ///
    /// # Errors
    /// When the thread cannot be started or has no usable io_uring.
    pub fn new(pool: Pool) -> Result<Self, DiskError> {
        let (jobs, receiver) = unbounded_channel();
        let shared = Arc::<Shared>::default();
        let (report, outcome) = std::sync::mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("qrbd-disk".into())
            .spawn(move || {
                match tokio_uring::Runtime::new(tokio_uring::builder().entries(QUEUE_ENTRIES)) {
                    Ok(runtime) => {
                        let _ = report.send(Ok(()));
                        runtime.block_on(serve(receiver, for_thread, pool));
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                    }
                }
            })
            .map_err(|error| transfer::setup_error(&error))?;
        let started = outcome
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the disk thread ended at once")));
        started.map_err(|error| transfer::setup_error(&error))?;
        Ok(DiskThread {
            jobs,
            shared,
            thread: Some(thread),
        })
    }

    /// Makes the disk usable through this thread.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn attach(&self, disk: Disk) -> Result<ThreadDevice, DiskError> {
        let file = disk
            .file()
            .try_clone()
            .map_err(|error| DiskError::from_io(&error, OperationKind::Setup, &disk.info().path))?;
        let number = self.shared.next_number.fetch_add(1, Ordering::Relaxed);
        let device = Device {
            number,
            disk,
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
        };
        // A failure shows at the first submission.
        let _ = self.jobs.send(Job::Attach { number, file });
        Ok(ThreadDevice {
            jobs: self.jobs.clone(),
            shared: Arc::clone(&self.shared),
            device: Arc::new(device),
        })
    }
}

impl Drop for DiskThread {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Reactor for DiskThread {
    /// Nothing to do: the thread takes operations as they come.
    fn flush(&self) {}

    fn take_completions(&self, completions: &mut Vec<Completion>) -> usize {
        let mut ready = self.shared.lock();
        let count = ready.completions.len();
        completions.extend(ready.completions.drain(..));
        self.shared.outstanding.fetch_sub(count, Ordering::Relaxed);
        count
    }

    fn poll_completed(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut ready = self.shared.lock();
        if !ready.completions.is_empty() {
            return Poll::Ready(());
        }
        ready.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn stop_waiting(&self) {
        self.shared.lock().waker = None;
    }

    fn outstanding(&self) -> usize {
        self.shared.outstanding.load(Ordering::Relaxed)
    }
}

impl BlockDevice for ThreadDevice {
    fn info(&self) -> &DeviceInfo {
        self.device.disk.info()
    }

    fn submit(&self, token: u64, operation: Operation) -> Result<(), Refused> {
        if self.shared.outstanding.load(Ordering::Relaxed) >= OUTSTANDING_LIMIT {
            return Err(Refused {
                operation,
                limit: OUTSTANDING_LIMIT,
            });
        }
        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = operation.validate(self.info()) {
            self.shared.complete(token, Err(error));
            return Ok(());
        }
        let kind = operation.kind();
        if self
            .jobs
            .send(Job::Carry {
                token,
                operation,
                device: Arc::clone(&self.device),
            })
            .is_err()
        {
            let error = DiskError::new(
                DiskErrorKind::Shutdown,
                kind,
                &self.info().path,
                "the disk thread has ended",
            );
            self.shared.complete(token, Err(error));
        }
        Ok(())
    }
}

impl Drop for ThreadDevice {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Detach {
            number: self.device.number,
        });
    }
}

async fn serve(mut jobs: UnboundedReceiver<Job>, shared: Arc<Shared>, pool: Pool) {
    let mut files: HashMap<u64, Rc<File>> = HashMap::new();
    let mut running = JoinSet::new();
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Attach { number, file } => {
                files.insert(number, Rc::new(File::from_std(file)));
            }
            Job::Carry {
                token,
                operation,
                device,
            } => {
                let file = Rc::clone(
                    files
                        .get(&device.number)
                        .expect("a device is attached before it submits"),
                );
                let (shared, pool) = (Arc::clone(&shared), pool.clone());
                running.spawn_local(async move {
                    let (offset, length) = operation.range();
                    let result = carry_out(&file, &device, operation, &pool).await;
                    drop(file);
                    shared.complete(
                        token,
                        result.map_err(|error| {
                            if length > 0 {
                                error.at(offset, length)
                            } else {
                                error
                            }
                        }),
                    );
                });
            }
            Job::Detach { number } => {
                files.remove(&number);
            }
            Job::Stop => break,
        }
        while running.try_join_next().is_some() {}
    }
    jobs.close();
    while let Ok(job) = jobs.try_recv() {
        if let Job::Carry {
            token,
            operation,
            device,
        } = job
        {
            let path = &device.disk.info().path;
            let error = DiskError::new(
                DiskErrorKind::Shutdown,
                operation.kind(),
                path,
                "the disk thread is ending",
            );
            shared.complete(token, Err(error));
        }
    }
    while running.join_next().await.is_some() {}
}

async fn carry_out(
    file: &File,
    device: &Device,
    operation: Operation,
    pool: &Pool,
) -> Result<Option<Payload>, DiskError> {
    let info = device.disk.info();
    match operation {
        Operation::Read { offset, length } => read(file, info, offset, length as usize, pool)
            .await
            .map(Some),
        Operation::Write {
            offset,
            mut payload,
            durable,
        } => {
            if !payload.is_aligned_to(info.memory_alignment as usize) {
                payload = pool.copy_from(&payload);
            }
            write(file, info, OperationKind::Write, offset, payload).await?;
            if durable {
                flush(file, info, OperationKind::Write).await?;
            }
            Ok(None)
        }
        Operation::Flush => flush(file, info, OperationKind::Flush).await.map(|()| None),
        Operation::Discard { offset, length } => allocate(
            file,
            info,
            OperationKind::Discard,
            PUNCH_HOLE,
            offset,
            length,
            &device.no_punch,
        )
        .await
        .map(|_| None),
        Operation::WriteZeroes {
            offset,
            length,
            may_unmap,
        } => zero(file, device, offset, length, may_unmap)
            .await
            .map(|()| None),
    }
}

fn as_result(outcome: &io::Result<usize>) -> i32 {
    match outcome {
        Ok(moved) => i32::try_from(*moved).expect("one transfer moves at most a buffer"),
        Err(error) => -error.raw_os_error().unwrap_or(nix::libc::EIO),
    }
}

async fn read(
    file: &File,
    info: &DeviceInfo,
    offset: u64,
    length: usize,
    pool: &Pool,
) -> Result<Payload, DiskError> {
    let mut part = ReadPart {
        buffer: pool.take(length),
        done: 0,
    };
    let mut retries = 0;
    while part.done < length {
        let position = offset + part.done as u64;
        let (outcome, returned) = file.read_at(part, position).await;
        part = returned;
        let result = as_result(&outcome);
        if transfer::interrupted(result) && retries < transfer::MAX_RETRIES {
            retries += 1;
            continue;
        }
        part.done = transfer::progress(info, OperationKind::Read, part.done, length, result)?;
    }
    Ok(part.buffer.freeze())
}

async fn write(
    file: &File,
    info: &DeviceInfo,
    kind: OperationKind,
    offset: u64,
    payload: Payload,
) -> Result<(), DiskError> {
    let length = payload.len();
    let mut part = WritePart { payload, done: 0 };
    let mut retries = 0;
    while part.done < length {
        let position = offset + part.done as u64;
        let (outcome, returned) = file.write_at(part, position).submit().await;
        part = returned;
        let result = as_result(&outcome);
        if transfer::interrupted(result) && retries < transfer::MAX_RETRIES {
            retries += 1;
            continue;
        }
        part.done = transfer::progress(info, kind, part.done, length, result)?;
    }
    Ok(())
}

async fn flush(file: &File, info: &DeviceInfo, kind: OperationKind) -> Result<(), DiskError> {
    file.sync_data()
        .await
        .map_err(|error| DiskError::from_io(&error, kind, &info.path))
}

/// True if the file system carried it out, false if it cannot.
async fn allocate(
    file: &File,
    info: &DeviceInfo,
    kind: OperationKind,
    mode: i32,
    offset: u64,
    length: u64,
    known_unsupported: &AtomicBool,
) -> Result<bool, DiskError> {
    if known_unsupported.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let mut retries = 0;
    loop {
        let Err(error) = file.fallocate(offset, length, mode).await else {
            return Ok(true);
        };
        let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
        if transfer::unsupported(errno) {
            known_unsupported.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        if !transfer::interrupted(-errno) || retries >= transfer::MAX_RETRIES {
            return Err(DiskError::from_errno(errno, kind, &info.path));
        }
        retries += 1;
    }
}

async fn zero(
    file: &File,
    device: &Device,
    offset: u64,
    length: u64,
    may_unmap: bool,
) -> Result<(), DiskError> {
    let (info, kind) = (device.disk.info(), OperationKind::WriteZeroes);
    if may_unmap
        && allocate(
            file,
            info,
            kind,
            PUNCH_HOLE,
            offset,
            length,
            &device.no_punch,
        )
        .await?
    {
        return Ok(());
    }
    if length > SMALL_ZEROES
        && allocate(
            file,
            info,
            kind,
            ZERO_RANGE,
            offset,
            length,
            &device.no_zero_range,
        )
        .await?
    {
        return Ok(());
    }
    let end = offset + length;
    let mut position = offset;
    while position < end {
        let step = (end - position).min(Payload::MAX_ZEROES as u64);
        write(file, info, kind, position, Payload::zeroes(step as usize)).await?;
        position += step;
    }
    Ok(())
}
