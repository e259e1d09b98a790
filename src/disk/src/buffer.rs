//! Page-aligned, pooled, counted buffers that travel from the network to the disk and back without a copy.
//!
//! A [`BufferMut`] is unique and is being filled; [`BufferMut::freeze`] turns it into a [`Payload`], which is immutable
//! and cheap to clone. The last clone that goes away returns the memory to its [`Pool`].
//!
//! Invariants: a buffer starts at a page boundary; the pool's live and cached bytes count capacities (size classes), not
//! lengths; cached bytes never exceed the configured limit. The pool does not limit live bytes: whoever accepts requests
//! does. The content of a fresh buffer is initialised but unspecified.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use crate::sys::memory::AlignedMemory;
pub use crate::sys::memory::PAGE_BYTES;

/// Capacities of pooled buffers; a request gets the smallest that fits.
pub const SIZE_CLASSES: [usize; 8] = [
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    32 << 20,
];

/// Largest buffer, and largest single read or write.
pub const MAX_BUFFER_BYTES: usize = SIZE_CLASSES[SIZE_CLASSES.len() - 1];

/// Bytes of unused buffers that a pool keeps unless told otherwise.
pub const DEFAULT_CACHED_BYTES: usize = 32 << 20;

/// Bytes of the shared zero payload.
const ZERO_BYTES: usize = 1 << 20;

/// What a pool holds at one moment; sizes are capacities in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStatistics {
    /// Bytes in use.
    pub live_bytes: usize,
    /// Buffers in use.
    pub live_buffers: usize,
    /// Most bytes that were ever in use at once.
    pub peak_live_bytes: usize,
    /// Bytes kept for reuse.
    pub cached_bytes: usize,
    /// Buffers kept for reuse.
    pub cached_buffers: usize,
    /// Buffers taken so far that needed a new allocation.
    pub allocated: u64,
    /// Buffers taken so far that were reused.
    pub reused: u64,
}

#[derive(Default)]
struct Shelves {
    free: [Vec<AlignedMemory>; SIZE_CLASSES.len()],
    statistics: PoolStatistics,
}

struct PoolInner {
    cached_bytes_limit: usize,
    shelves: Mutex<Shelves>,
}

impl PoolInner {
    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, memory: AlignedMemory) {
        let capacity = memory.capacity();
        let class = class_of(capacity);
        let mut shelves = self.lock();
        shelves.statistics.live_bytes -= capacity;
        shelves.statistics.live_buffers -= 1;
        if shelves.statistics.cached_bytes + capacity <= self.cached_bytes_limit {
            shelves.statistics.cached_bytes += capacity;
            shelves.statistics.cached_buffers += 1;
            shelves.free[class].push(memory);
        } else {
            drop(shelves);
            drop(memory);
        }
    }
}

fn class_of(length: usize) -> usize {
    SIZE_CLASSES
        .iter()
        .position(|&capacity| length <= capacity)
        .unwrap_or_else(|| {
            panic!("buffer of {length} bytes requested, the limit is {MAX_BUFFER_BYTES}")
        })
}

/// A pool of aligned buffers; clones share it. Buffers may be dropped on any thread.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<PoolInner>,
}

impl Default for Pool {
    fn default() -> Self {
        Pool::new(DEFAULT_CACHED_BYTES)
    }
}

impl Pool {
    /// A pool that keeps at most `cached_bytes_limit` bytes of unused buffers.
    #[must_use]
    pub fn new(cached_bytes_limit: usize) -> Self {
        Pool {
            inner: Arc::new(PoolInner {
                cached_bytes_limit,
                shelves: Mutex::default(),
            }),
        }
    }

    /// A buffer of `length` bytes whose content is unspecified.
    ///
    /// # Panics
    /// If `length` exceeds [`MAX_BUFFER_BYTES`]: lengths from outside are checked before they get here.
    #[must_use]
    pub fn take(&self, length: usize) -> BufferMut {
        let class = class_of(length);
        let capacity = SIZE_CLASSES[class];
        let mut shelves = self.inner.lock();
        let cached = shelves.free[class].pop();
        let statistics = &mut shelves.statistics;
        statistics.live_bytes += capacity;
        statistics.live_buffers += 1;
        statistics.peak_live_bytes = statistics.peak_live_bytes.max(statistics.live_bytes);
        if cached.is_some() {
            statistics.cached_bytes -= capacity;
            statistics.cached_buffers -= 1;
            statistics.reused += 1;
        } else {
            statistics.allocated += 1;
        }
        drop(shelves);
        let memory = cached.unwrap_or_else(|| AlignedMemory::zeroed(capacity));
        BufferMut {
            lease: Lease {
                memory: Some(memory),
                pool: Some(Arc::clone(&self.inner)),
            },
            length,
        }
    }

    /// A buffer that holds a copy of `source`.
    ///
    /// # Panics
    /// As [`Pool::take`].
    #[must_use]
    pub fn copy_from(&self, source: &[u8]) -> Payload {
        let mut buffer = self.take(source.len());
        buffer.as_mut_slice().copy_from_slice(source);
        buffer.freeze()
    }

    /// The counters at this moment.
    #[must_use]
    pub fn statistics(&self) -> PoolStatistics {
        self.inner.lock().statistics
    }

    /// Frees the unused buffers.
    pub fn trim(&self) {
        let mut shelves = self.inner.lock();
        let free = std::mem::take(&mut shelves.free);
        shelves.statistics.cached_bytes = 0;
        shelves.statistics.cached_buffers = 0;
        drop(shelves);
        drop(free);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.statistics()).finish()
    }
}

/// Memory with the way back to its pool; `memory` is `None` only inside `drop`.
struct Lease {
    memory: Option<AlignedMemory>,
    pool: Option<Arc<PoolInner>>,
}

impl Lease {
    fn memory(&self) -> &AlignedMemory {
        self.memory
            .as_ref()
            .expect("a lease holds its memory until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), self.pool.take()) {
            pool.give_back(memory);
        }
    }
}

/// A unique buffer that is being filled.
pub struct BufferMut {
    lease: Lease,
    length: usize,
}

impl BufferMut {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// True for a length of zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that [`BufferMut::resize`] may go up to.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.lease.memory().capacity()
    }

    /// Changes the length within the capacity; bytes that come into view are unspecified.
    ///
    /// # Panics
    /// If `length` exceeds the capacity.
    pub fn resize(&mut self, length: usize) {
        assert!(
            length <= self.capacity(),
            "length {length} exceeds the buffer's {} bytes",
            self.capacity()
        );
        self.length = length;
    }

    /// The bytes so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.lease.memory().as_slice()[..self.length]
    }

    /// The bytes, for filling.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let length = self.length;
        let memory = self
            .lease
            .memory
            .as_mut()
            .expect("a lease holds its memory until it is dropped");
        &mut memory.as_mut_slice()[..length]
    }

    /// Ends the filling: from now on the bytes are shared and immutable.
    #[must_use]
    pub fn freeze(self) -> Payload {
        let end = self.length;
        Payload {
            lease: Arc::new(self.lease),
            start: 0,
            end,
        }
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferMut({} bytes)", self.length)
    }
}

/// Immutable bytes in a pooled buffer, or a part of one; cheap to clone.
#[derive(Clone)]
pub struct Payload {
    lease: Arc<Lease>,
    start: usize,
    end: usize,
}

impl Payload {
    /// A part of this payload that shares its memory. The disk writes it without a copy if it starts at the device's
    /// memory alignment, and through a bounce buffer otherwise.
    ///
    /// # Panics
    /// If the range does not lie within the payload.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Payload {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "slice {range:?} of a payload of {} bytes",
            self.len()
        );
        Payload {
            lease: Arc::clone(&self.lease),
            start: self.start + range.start,
            end: self.start + range.end,
        }
    }

    /// `length` zero bytes from one buffer that the whole process shares; at most 1 MiB.
    ///
    /// # Panics
    /// If `length` exceeds 1 MiB.
    #[must_use]
    pub fn zeroes(length: usize) -> Payload {
        static ZEROES: OnceLock<Payload> = OnceLock::new();
        let zeroes = ZEROES.get_or_init(|| {
            let lease = Lease {
                memory: Some(AlignedMemory::zeroed(ZERO_BYTES)),
                pool: None,
            };
            Payload {
                lease: Arc::new(lease),
                start: 0,
                end: ZERO_BYTES,
            }
        });
        zeroes.slice(0..length)
    }

    /// Longest payload that [`Payload::zeroes`] gives.
    pub const MAX_ZEROES: usize = ZERO_BYTES;

    /// True if the first byte's address is a multiple of `alignment`, a power of two.
    #[must_use]
    pub fn is_aligned_to(&self, alignment: usize) -> bool {
        (self.as_ptr() as usize).is_multiple_of(alignment)
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.lease.memory().as_slice()[self.start..self.end]
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Payload> for Bytes {
    fn from(payload: Payload) -> Bytes {
        Bytes::from_owner(payload)
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        **self == **other
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}
