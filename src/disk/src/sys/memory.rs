//! Owned memory aligned to a page, as direct I/O needs it.
//!
//! Invariants: `pointer` comes from the global allocator with the layout of `capacity` and [`PAGE_BYTES`]; every byte
//! is initialised; the address never changes while the value lives, wherever the value itself is moved.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of every buffer, and the smallest one.
pub const PAGE_BYTES: usize = 4096;

/// Page-aligned, initialised memory of a fixed size.
#[derive(Debug)]
pub struct AlignedMemory {
    pointer: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the memory is owned exclusively and holds plain bytes; shared access only reads.
unsafe impl Send for AlignedMemory {}
// SAFETY: as above; mutation needs `&mut self`.
unsafe impl Sync for AlignedMemory {}

impl AlignedMemory {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, PAGE_BYTES)
            .expect("buffer sizes are far below isize::MAX")
    }

    /// Allocates `capacity` zero bytes, rounded up to whole pages, at least one.
    #[must_use]
    pub fn zeroed(capacity: usize) -> Self {
        let capacity = capacity.max(1).next_multiple_of(PAGE_BYTES);
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else {
            handle_alloc_error(layout)
        };
        AlignedMemory { pointer, capacity }
    }

    /// Size in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// All bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is owned, initialised and `capacity` long.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.capacity) }
    }

    /// All bytes, for writing.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.capacity) }
    }
}

impl Drop for AlignedMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed once.
        unsafe { dealloc(self.pointer.as_ptr(), Self::layout(self.capacity)) }
    }
}
