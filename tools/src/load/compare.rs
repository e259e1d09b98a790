//! Compares two data areas and tells the ranges that differ.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Differences are told in units of this many bytes.
pub const GRANULARITY_BYTES: u64 = 4096;
/// Ranges that a result keeps; more are only counted.
pub const REPORTED_RANGES: usize = 1000;

/// Where two areas differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first ranges, in bytes, ascending, not touching each other.
    pub ranges: Vec<Range<u64>>,
    /// Number of ranges.
    pub range_count: u64,
    /// Bytes in units that differ.
    pub bytes: u64,
}

/// Compares the first `bytes` of two files or devices.
///
/// # Errors
/// A read failed, also because a file is shorter.
pub fn compare(left: &File, right: &File, bytes: u64) -> io::Result<Differences> {
    let mut differences = Differences::default();
    let mut open: Option<Range<u64>> = None;
    let mut left_buffer = vec![0; 1 << 20];
    let mut right_buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(left_buffer.len() as u64) as usize;
        left.read_exact_at(&mut left_buffer[..length], offset)?;
        right.read_exact_at(&mut right_buffer[..length], offset)?;
        let units = left_buffer[..length]
            .chunks(GRANULARITY_BYTES as usize)
            .zip(right_buffer[..length].chunks(GRANULARITY_BYTES as usize));
        for (left, right) in units {
            let end = offset + left.len() as u64;
            if left != right {
                differences.bytes += left.len() as u64;
                match &mut open {
                    Some(range) if range.end == offset => range.end = end,
                    _ => {
                        differences.close(open.take());
                        open = Some(offset..end);
                    }
                }
            }
            offset = end;
        }
    }
    differences.close(open);
    Ok(differences)
}

impl Differences {
    fn close(&mut self, range: Option<Range<u64>>) {
        let Some(range) = range else { return };
        self.range_count += 1;
        if self.ranges.len() < REPORTED_RANGES {
            self.ranges.push(range);
        }
    }
}
