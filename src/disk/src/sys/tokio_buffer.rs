//! Hands this crate's buffers to `tokio-uring`, which keeps them until the kernel is done.

use tokio_uring::buf::{IoBuf, IoBufMut};

use crate::buffer::{BufferMut, Payload};

/// The part of a buffer from `done` on, to be read into.
pub struct ReadPart {
    pub buffer: BufferMut,
    pub done: usize,
}

/// The part of a payload from `done` on, to be written.
pub struct WritePart {
    pub payload: Payload,
    pub done: usize,
}

// SAFETY: the bytes live outside the value at an address that does not change, are initialised, and belong to the value until it
// is dropped; pointer and lengths describe the same range.
unsafe impl IoBuf for ReadPart {
    fn stable_ptr(&self) -> *const u8 {
        self.buffer.as_slice()[self.done..].as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.buffer.len() - self.done
    }
    fn bytes_total(&self) -> usize {
        self.buffer.len() - self.done
    }
}

// SAFETY: as above, and the buffer is unique, so writing through the pointer is exclusive.
unsafe impl IoBufMut for ReadPart {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        let done = self.done;
        self.buffer.as_mut_slice()[done..].as_mut_ptr()
    }
    unsafe fn set_init(&mut self, _position: usize) {}
}

// SAFETY: the bytes live outside the value at an address that does not change, are initialised and immutable, and stay until the
// last clone of the payload is dropped; pointer and lengths describe the same range.
unsafe impl IoBuf for WritePart {
    fn stable_ptr(&self) -> *const u8 {
        self.payload[self.done..].as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.payload.len() - self.done
    }
    fn bytes_total(&self) -> usize {
        self.payload.len() - self.done
    }
}
