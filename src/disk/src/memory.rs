//! A backend in memory, with faults on request, for tests.
//!
//! Deterministic: nothing happens but in [`Reactor::flush`], [`Reactor::take_completions`] and [`Reactor::poll_completed`], each of
//! which is a round; operations complete in the order of their rounds, then of their submission. An operation takes effect at its
//! completion. It has no volatile cache: modelling what a crash loses is the simulator's business.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::buffer::{Payload, Pool};
use crate::device::{DeviceInfo, DeviceKind};
use crate::error::{DiskError, OperationKind};
use crate::operation::{BlockDevice, Completion, Operation, Reactor, Refused};

const CHUNK_BYTES: u64 = 64 << 10;

/// Operations accepted whose completion was not taken.
pub const OUTSTANDING_LIMIT: usize = 16384;

/// What a fault hook is told about an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// The name the device was created with.
    pub device: Arc<Path>,
    /// The token of the submission.
    pub token: u64,
    /// The operation.
    pub kind: OperationKind,
    /// First byte, zero for a flush.
    pub offset: u64,
    /// Bytes, zero for a flush.
    pub length: u64,
}

/// What is to become of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It completes in the next round.
    None,
    /// It fails with this error number and has no effect.
    Error(i32),
    /// It completes after this many further rounds.
    Delay(u32),
    /// It completes after [`MemoryReactor::release`] of its token.
    Hold,
}

type Hook = Box<dyn FnMut(&Submitted) -> Fault>;

struct Waiting {
    token: u64,
    operation: Operation,
    storage: Rc<Storage>,
    due: Option<u64>,
    errno: Option<i32>,
}

#[derive(Default)]
struct State {
    round: u64,
    waiting: VecDeque<Waiting>,
    ready: VecDeque<Completion>,
    waker: Option<Waker>,
    hook: Option<Hook>,
}

struct Storage {
    info: DeviceInfo,
    /// Absent chunks read as zeroes.
    chunks: RefCell<BTreeMap<u64, Box<[u8]>>>,
}

/// The reactor of devices in memory.
pub struct MemoryReactor {
    state: Rc<RefCell<State>>,
    pool: Pool,
}

/// A device in memory.
pub struct MemoryDevice {
    state: Rc<RefCell<State>>,
    storage: Rc<Storage>,
}

impl MemoryReactor {
    /// A reactor without devices; reads take their buffers from `pool`.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        MemoryReactor {
            state: Rc::default(),
            pool,
        }
    }

    /// A device of `size` zero bytes, rounded down to 512.
    #[must_use]
    pub fn create(&self, name: &str, size: u64) -> MemoryDevice {
        let info = DeviceInfo {
            path: Arc::from(Path::new(name)),
            kind: DeviceKind::Memory,
            size: size - size % 512,
            logical_block: 512,
            alignment: 512,
            memory_alignment: 1,
            direct: false,
            read_only: false,
            can_discard: true,
            discard_zeroes: true,
            rotational: false,
        };
        MemoryDevice {
            state: Rc::clone(&self.state),
            storage: Rc::new(Storage {
                info,
                chunks: RefCell::default(),
            }),
        }
    }

    /// Asks `hook` about every operation submitted from now on that is valid.
    pub fn set_faults(&self, hook: impl FnMut(&Submitted) -> Fault + 'static) {
        self.state.borrow_mut().hook = Some(Box::new(hook));
    }

    /// Lets the held operations with this token complete in the next round; the number of them.
    pub fn release(&self, token: u64) -> usize {
        let state = &mut *self.state.borrow_mut();
        let mut released = 0;
        for waiting in state
            .waiting
            .iter_mut()
            .filter(|waiting| waiting.token == token && waiting.due.is_none())
        {
            waiting.due = Some(state.round + 1);
            released += 1;
        }
        if released > 0
            && let Some(waker) = state.waker.take()
        {
            waker.wake();
        }
        released
    }

    fn next_round(&self) {
        let state = &mut *self.state.borrow_mut();
        state.round += 1;
        let (round, pool) = (state.round, &self.pool);
        for _ in 0..state.waiting.len() {
            let waiting = state.waiting.pop_front().expect("counted above");
            if waiting.due.is_some_and(|due| due <= round) {
                let result = waiting.carry_out(pool);
                state.ready.push_back(Completion {
                    token: waiting.token,
                    result,
                });
            } else {
                state.waiting.push_back(waiting);
            }
        }
    }
}

impl Waiting {
    fn carry_out(&self, pool: &Pool) -> Result<Option<Payload>, DiskError> {
        let (offset, length) = self.operation.range();
        if let Some(errno) = self.errno {
            let error =
                DiskError::from_errno(errno, self.operation.kind(), &self.storage.info.path);
            return Err(if length > 0 {
                error.at(offset, length)
            } else {
                error
            });
        }
        match &self.operation {
            Operation::Read { .. } => {
                let mut buffer = pool.take(length as usize);
                self.storage.read(offset, buffer.as_mut_slice());
                return Ok(Some(buffer.freeze()));
            }
            Operation::Write { payload, .. } => self.storage.write(offset, payload),
            Operation::Flush => {}
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                self.storage.zero(offset, length)
            }
        }
        Ok(None)
    }
}

impl Storage {
    fn read(&self, offset: u64, target: &mut [u8]) {
        let chunks = self.chunks.borrow();
        for_chunks(offset, target.len() as u64, |chunk, inside, done| {
            let part = &mut target[done..done + inside.len()];
            match chunks.get(&chunk) {
                Some(bytes) => part.copy_from_slice(&bytes[inside]),
                None => part.fill(0),
            }
        });
    }

    fn write(&self, offset: u64, source: &[u8]) {
        let mut chunks = self.chunks.borrow_mut();
        for_chunks(offset, source.len() as u64, |chunk, inside, done| {
            let bytes = chunks
                .entry(chunk)
                .or_insert_with(|| vec![0; CHUNK_BYTES as usize].into_boxed_slice());
            let length = inside.len();
            bytes[inside].copy_from_slice(&source[done..done + length]);
        });
    }

    fn zero(&self, offset: u64, length: u64) {
        let end = offset + length;
        let mut chunks = self.chunks.borrow_mut();
        for (&chunk, bytes) in chunks.range_mut(offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES)) {
            let base = chunk * CHUNK_BYTES;
            let from = offset.max(base) - base;
            let to = end.min(base + CHUNK_BYTES) - base;
            bytes[from as usize..to as usize].fill(0);
        }
    }
}

/// Calls `visit` with each chunk's number, the range within it, and the bytes before it.
fn for_chunks(offset: u64, length: u64, mut visit: impl FnMut(u64, std::ops::Range<usize>, usize)) {
    let mut done = 0;
    while done < length {
        let position = offset + done;
        let inside = position % CHUNK_BYTES;
        let step = (CHUNK_BYTES - inside).min(length - done);
        visit(
            position / CHUNK_BYTES,
            inside as usize..(inside + step) as usize,
            done as usize,
        );
        done += step;
    }
}

impl Reactor for MemoryReactor {
    fn flush(&self) {
        self.next_round();
    }

    fn take_completions(&self, completions: &mut Vec<Completion>) -> usize {
        self.next_round();
        let mut state = self.state.borrow_mut();
        let count = state.ready.len();
        completions.extend(state.ready.drain(..));
        count
    }

    fn poll_completed(&self, context: &mut Context<'_>) -> Poll<()> {
        self.next_round();
        let mut state = self.state.borrow_mut();
        if !state.ready.is_empty() {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        if state.waiting.iter().any(|waiting| waiting.due.is_some()) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn stop_waiting(&self) {
        self.state.borrow_mut().waker = None;
    }

    fn outstanding(&self) -> usize {
        let state = self.state.borrow();
        state.waiting.len() + state.ready.len()
    }
}

impl BlockDevice for MemoryDevice {
    fn info(&self) -> &DeviceInfo {
        &self.storage.info
    }

    fn submit(&self, token: u64, operation: Operation) -> Result<(), Refused> {
        let mut state = self.state.borrow_mut();
        if state.waiting.len() + state.ready.len() >= OUTSTANDING_LIMIT {
            return Err(Refused {
                operation,
                limit: OUTSTANDING_LIMIT,
            });
        }
        let waker = state.waker.take();
        if let Err(error) = operation.validate(self.info()) {
            state.ready.push_back(Completion {
                token,
                result: Err(error),
            });
        } else {
            let (offset, length) = operation.range();
            let submitted = Submitted {
                device: Arc::clone(&self.info().path),
                token,
                kind: operation.kind(),
                offset,
                length,
            };
            let fault = state
                .hook
                .as_mut()
                .map_or(Fault::None, |hook| hook(&submitted));
            let next = state.round + 1;
            let (due, errno) = match fault {
                Fault::None => (Some(next), None),
                Fault::Error(errno) => (Some(next), Some(errno)),
                Fault::Delay(rounds) => (Some(next + u64::from(rounds)), None),
                Fault::Hold => (None, None),
            };
            state.waiting.push_back(Waiting {
                token,
                operation,
                storage: Rc::clone(&self.storage),
                due,
                errno,
            });
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}
