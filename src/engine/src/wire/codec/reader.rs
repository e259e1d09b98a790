//! A bounded reader over the body of one message.
//!
//! Invariants: never reads beyond the body; a count is held against its limit and against the bytes that are left before anything
//! is allocated for it; every error names kind and field.

use alloc::string::String;
use alloc::vec::Vec;

use super::codes::WireCode;
use super::error::WireError;
use super::kind::MessageKind;
use crate::limits::{MAX_DEVICE_BYTES, MAX_REQUEST_BYTES};
use crate::units::{ByteRange, Generation, VolumeNumber};

/// Bytes of a [`ByteRange`] on the wire.
pub(super) const RANGE_BYTES: usize = 12;

pub(super) struct Reader<'a> {
    pub kind: MessageKind,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(kind: MessageKind, body: &'a [u8]) -> Self {
        Reader { kind, rest: body }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated {
            kind: self.kind,
            field,
        })?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(self.array::<1>(field)?[0])
    }

    pub fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub fn i32(&mut self, field: &'static str) -> Result<i32, WireError> {
        Ok(i32::from_le_bytes(self.array(field)?))
    }

    pub fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A number of at most `most`.
    pub fn u64_up_to(&mut self, field: &'static str, most: u64) -> Result<u64, WireError> {
        let value = self.u64(field)?;
        self.bounds(field, value, 0, most)?;
        Ok(value)
    }

    pub fn bounds(
        &self,
        field: &'static str,
        value: u64,
        least: u64,
        most: u64,
    ) -> Result<(), WireError> {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(WireError::Bounds {
            kind: self.kind,
            field,
            value,
            least,
            most,
        })
    }

    pub fn volume(&mut self) -> Result<VolumeNumber, WireError> {
        Ok(VolumeNumber(self.u16("volume")?))
    }

    pub fn generation(&mut self, field: &'static str) -> Result<Generation, WireError> {
        Ok(Generation(self.u64(field)?))
    }

    pub fn code<T: WireCode>(&mut self, field: &'static str) -> Result<T, WireError> {
        let code = self.u8(field)?;
        T::from_code(code).ok_or(WireError::Code {
            kind: self.kind,
            field,
            code,
        })
    }

    /// A byte of which only the bits in `known` may be set.
    pub fn flags(&mut self, field: &'static str, known: u8) -> Result<u8, WireError> {
        let code = self.u8(field)?;
        if code & !known == 0 {
            return Ok(code);
        }
        Err(WireError::Code {
            kind: self.kind,
            field,
            code,
        })
    }

    pub fn flag(&mut self, field: &'static str) -> Result<bool, WireError> {
        Ok(self.flags(field, 1)? != 0)
    }

    /// A range that is not empty, not above [`MAX_REQUEST_BYTES`], and ends within [`MAX_DEVICE_BYTES`].
    pub fn range(&mut self) -> Result<ByteRange, WireError> {
        let offset = self.u64("range.offset")?;
        let length = self.u32("range.length")?;
        self.bounds("range.length", length.into(), 1, MAX_REQUEST_BYTES.into())?;
        let most = MAX_DEVICE_BYTES - u64::from(length);
        self.bounds("range.offset", offset, 0, most)?;
        Ok(ByteRange::new(offset, length))
    }

    /// The count of a list whose entries take at least `item_bytes` each.
    fn count(
        &mut self,
        field: &'static str,
        limit: usize,
        item_bytes: usize,
    ) -> Result<usize, WireError> {
        let count = self.u32(field)?;
        self.bounds(field, count.into(), 0, limit as u64)?;
        if self.rest.len() / item_bytes < count as usize {
            return Err(WireError::Truncated {
                kind: self.kind,
                field,
            });
        }
        Ok(count as usize)
    }

    /// A count and as many entries, which take at least `item_bytes` each.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        limit: usize,
        item_bytes: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.count(field, limit, item_bytes)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// A count and as many bytes.
    pub fn bytes(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let count = self.count(field, limit, 1)?;
        let (bytes, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(bytes)
    }

    pub fn text(&mut self, field: &'static str, limit: usize) -> Result<String, WireError> {
        let bytes = self.bytes(field, limit)?;
        let text = core::str::from_utf8(bytes).map_err(|_| WireError::Text {
            kind: self.kind,
            field,
        })?;
        Ok(String::from(text))
    }

    /// The body must be over.
    pub fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(WireError::Trailing {
            kind: self.kind,
            bytes: self.rest.len(),
        })
    }
}
