//! Synchronous access through an open [`Disk`], for tools that work while no daemon runs.
//!
//! Any offset and length: what direct I/O cannot do is widened to the alignment through an aligned buffer. A write that is not
//! aligned reads the block around it first, so it is not atomic against anybody else's write to that block; offline, there
//! is nobody else. Not for the data path.

use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{DiskError, DiskErrorKind, OperationKind};
use crate::open::Disk;
use crate::sys::memory::AlignedMemory;

/// Bytes moved per system call.
const CHUNK_BYTES: u64 = 1 << 20;

impl Disk {
    /// Fills `target` with the bytes from `offset`.
    ///
    /// # Errors
    /// `OutOfRange` beyond the end, `UnexpectedEnd` if the disk has shrunk, or the kernel's error.
    pub fn read_exact_at(&self, offset: u64, target: &mut [u8]) -> Result<(), DiskError> {
        let length = target.len() as u64;
        self.check(OperationKind::Read, offset, length)?;
        let mut memory = self.bounce(length);
        let mut done = 0u64;
        while done < length {
            let (start, end) = self.widened(offset + done, length - done);
            let span = &mut memory.as_mut_slice()[..(end - start) as usize];
            self.fill(start, span)
                .map_err(|error| error.at(offset, length))?;
            let skip = offset + done - start;
            let useful = (end - start - skip).min(length - done);
            target[done as usize..(done + useful) as usize]
                .copy_from_slice(&span[skip as usize..(skip + useful) as usize]);
            done += useful;
        }
        Ok(())
    }

    /// Writes `source` at `offset`. Durable only after [`Disk::sync`].
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange`, `NoSpace`, or the kernel's error.
    pub fn write_all_at(&self, offset: u64, source: &[u8]) -> Result<(), DiskError> {
        let length = source.len() as u64;
        self.check(OperationKind::Write, offset, length)?;
        let alignment = u64::from(self.info().alignment) as usize;
        let mut memory = self.bounce(length);
        let mut done = 0u64;
        while done < length {
            let (start, end) = self.widened(offset + done, length - done);
            let span = &mut memory.as_mut_slice()[..(end - start) as usize];
            let skip = offset + done - start;
            let useful = (end - start - skip).min(length - done);
            if skip > 0 {
                self.fill(start, &mut span[..alignment])
                    .map_err(|error| error.at(offset, length))?;
            }
            let rest = span.len() - (skip + useful) as usize;
            if rest > 0 && (skip == 0 || span.len() > alignment) {
                let last = span.len() - alignment;
                self.fill(end - alignment as u64, &mut span[last..])
                    .map_err(|error| error.at(offset, length))?;
            }
            span[skip as usize..(skip + useful) as usize]
                .copy_from_slice(&source[done as usize..(done + useful) as usize]);
            self.file()
                .write_all_at(span, start)
                .map_err(|error| self.failed(&error, OperationKind::Write, offset, length))?;
            done += useful;
        }
        Ok(())
    }

    /// Makes every completed write durable (`fdatasync`).
    ///
    /// # Errors
    /// That of the kernel; what was written since the last successful sync may be lost then.
    pub fn sync(&self) -> Result<(), DiskError> {
        self.file()
            .sync_data()
            .map_err(|error| DiskError::from_io(&error, OperationKind::Flush, &self.info().path))
    }

    fn check(&self, operation: OperationKind, offset: u64, length: u64) -> Result<(), DiskError> {
        let info = self.info();
        let fail = |kind, detail: String| {
            Err(DiskError::new(kind, operation, &info.path, detail).at(offset, length))
        };
        if operation == OperationKind::Write && info.read_only {
            return fail(
                DiskErrorKind::ReadOnly,
                "the disk was opened read-only".into(),
            );
        }
        if offset.checked_add(length).is_none_or(|end| end > info.size) {
            return fail(
                DiskErrorKind::OutOfRange,
                format!("the device ends at {} bytes", info.size),
            );
        }
        Ok(())
    }

    fn bounce(&self, length: u64) -> AlignedMemory {
        AlignedMemory::zeroed(length.min(CHUNK_BYTES) as usize + 2 * self.info().alignment as usize)
    }

    /// The aligned range around at most one chunk from `offset`.
    fn widened(&self, offset: u64, length: u64) -> (u64, u64) {
        let alignment = u64::from(self.info().alignment);
        let start = offset - offset % alignment;
        let end = (offset + length.min(CHUNK_BYTES)).next_multiple_of(alignment);
        (start, end)
    }

    fn fill(&self, offset: u64, span: &mut [u8]) -> Result<(), DiskError> {
        let length = span.len() as u64;
        self.file()
            .read_exact_at(span, offset)
            .map_err(|error| self.failed(&error, OperationKind::Read, offset, length))
    }

    fn failed(
        &self,
        error: &io::Error,
        operation: OperationKind,
        offset: u64,
        length: u64,
    ) -> DiskError {
        let path = &self.info().path;
        let answer = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => DiskError::new(
                DiskErrorKind::UnexpectedEnd,
                operation,
                path,
                "the disk is smaller than when it was opened",
            ),
            _ => DiskError::from_io(error, operation, path),
        };
        answer.at(offset, length)
    }
}
