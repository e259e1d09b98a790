//! What a server says about one export: size, transmission flags, block sizes, names.
//!
//! Owns the rules of `doc/proto.md` on these values, checked once when the description is made, so that the handshake
//! and the validator may rely on them. Knows nothing about where an export comes from.

use std::fmt;
use std::ops::BitOr;

use crate::protocol::limits;

/// Transmission flags of an export.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TransmissionFlags(u16);

impl TransmissionFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The field is valid. Set by the session itself.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// Changes are refused with `EPERM`.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// FLUSH is served.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// FUA is accepted, on every command.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// The medium rotates.
    pub const ROTATIONAL: Self = Self(1 << 4);
    /// TRIM is served.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// WRITE_ZEROES is served.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// DF is accepted on READ. Set by the session itself, exactly when structured replies are negotiated.
    pub const SEND_DF: Self = Self(1 << 7);
    /// FLUSH and FUA reach across all connections of the export.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// CACHE is served.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// FAST_ZERO is accepted on WRITE_ZEROES.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);

    const NAMES: [(Self, &'static str); 11] = [
        (Self::HAS_FLAGS, "HAS_FLAGS"),
        (Self::READ_ONLY, "READ_ONLY"),
        (Self::SEND_FLUSH, "SEND_FLUSH"),
        (Self::SEND_FUA, "SEND_FUA"),
        (Self::ROTATIONAL, "ROTATIONAL"),
        (Self::SEND_TRIM, "SEND_TRIM"),
        (Self::SEND_WRITE_ZEROES, "SEND_WRITE_ZEROES"),
        (Self::SEND_DF, "SEND_DF"),
        (Self::CAN_MULTI_CONN, "CAN_MULTI_CONN"),
        (Self::SEND_CACHE, "SEND_CACHE"),
        (Self::SEND_FAST_ZERO, "SEND_FAST_ZERO"),
    ];

    /// The field as it came from the wire, unknown bits included.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The field for the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags without those of `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for TransmissionFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for TransmissionFlags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unnamed = self.0;
        let mut list = formatter.debug_set();
        for (flag, name) in Self::NAMES {
            if self.contains(flag) {
                list.entry(&format_args!("{name}"));
                unnamed &= !flag.0;
            }
        }
        if unnamed != 0 {
            list.entry(&format_args!("{unnamed:#x}"));
        }
        list.finish()
    }
}

/// Block size constraints in bytes, `doc/proto.md`, "Block size constraints".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum_payload: u32,
}

impl BlockSizes {
    /// Checks the three sizes.
    ///
    /// # Errors
    /// Names the size that breaks the spec's rule: `minimum` a power of two up to 64 KiB; `preferred` a power of two, at
    /// least 512 and at least `minimum`; `maximum_payload` a multiple of `minimum`, not below `preferred` nor 1 MiB, and
    /// not above `limits::PAYLOAD`.
    pub fn new(
        minimum: u32,
        preferred: u32,
        maximum_payload: u32,
    ) -> Result<Self, ExportInfoError> {
        if !minimum.is_power_of_two() || minimum > 64 * 1024 {
            return Err(ExportInfoError::MinimumBlockSize(minimum));
        }
        if !preferred.is_power_of_two()
            || preferred < 512.max(minimum)
            || preferred > limits::PAYLOAD
        {
            return Err(ExportInfoError::PreferredBlockSize { preferred, minimum });
        }
        let lowest = preferred.max(1024 * 1024);
        if !(lowest..=limits::PAYLOAD).contains(&maximum_payload)
            || !maximum_payload.is_multiple_of(minimum)
        {
            return Err(ExportInfoError::MaximumPayload {
                maximum_payload,
                lowest,
                highest: limits::PAYLOAD,
                minimum,
            });
        }
        Ok(Self {
            minimum,
            preferred,
            maximum_payload,
        })
    }

    /// Offsets and lengths are multiples of this many bytes.
    pub const fn minimum(self) -> u32 {
        self.minimum
    }

    /// Requests aligned to this many bytes need no read-modify-write.
    pub const fn preferred(self) -> u32 {
        self.preferred
    }

    /// Most bytes of one READ or WRITE.
    pub const fn maximum_payload(self) -> u32 {
        self.maximum_payload
    }
}

impl Default for BlockSizes {
    /// 512 bytes, 4 KiB, 32 MiB.
    fn default() -> Self {
        Self {
            minimum: 512,
            preferred: 4096,
            maximum_payload: limits::PAYLOAD,
        }
    }
}

/// Everything a client learns about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    name: String,
    description: Option<String>,
    size: u64,
    flags: TransmissionFlags,
    block_sizes: BlockSizes,
}

impl ExportInfo {
    /// Describes an export of `size` bytes under its canonical name.
    ///
    /// `HAS_FLAGS` and `SEND_DF` in `flags` are ignored, since the session decides them; `SEND_FAST_ZERO` counts only
    /// together with `SEND_WRITE_ZEROES`.
    ///
    /// # Errors
    /// A name that is longer than the protocol's strings or contains NUL; a size above `limits::EXPORT_SIZE` or not a
    /// multiple of the minimum block size.
    pub fn new(
        name: impl Into<String>,
        size: u64,
        flags: TransmissionFlags,
        block_sizes: BlockSizes,
    ) -> Result<Self, ExportInfoError> {
        let name = name.into();
        if !is_string(&name) {
            return Err(ExportInfoError::Name { length: name.len() });
        }
        check_size(size, block_sizes)?;
        let mut flags = flags.without(TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_DF);
        if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
            flags = flags.without(TransmissionFlags::SEND_FAST_ZERO);
        }
        Ok(Self {
            name,
            description: None,
            size,
            flags,
            block_sizes,
        })
    }

    /// Adds a text for people.
    ///
    /// # Errors
    /// A text that is longer than the protocol's strings or contains NUL.
    pub fn with_description(
        mut self,
        description: impl Into<String>,
    ) -> Result<Self, ExportInfoError> {
        let description = description.into();
        if !is_string(&description) {
            return Err(ExportInfoError::Description {
                length: description.len(),
            });
        }
        self.description = Some(description);
        Ok(self)
    }

    /// The canonical name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text for people.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What the owner offers; a session adds `HAS_FLAGS` and `SEND_DF`.
    pub const fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// The block size constraints.
    pub const fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    pub(crate) fn set_size(&mut self, size: u64) -> Result<(), ExportInfoError> {
        check_size(size, self.block_sizes)?;
        self.size = size;
        Ok(())
    }
}

/// A value that no client could work with, found before it is told to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportInfoError {
    /// See [`BlockSizes::new`].
    #[error("minimum block size {0} is not a power of two between 1 and 65536")]
    MinimumBlockSize(u32),
    /// See [`BlockSizes::new`].
    #[error(
        "preferred block size {preferred} is not a power of two of at least 512 and the minimum {minimum}"
    )]
    PreferredBlockSize {
        /// Bytes.
        preferred: u32,
        /// Bytes.
        minimum: u32,
    },
    /// See [`BlockSizes::new`].
    #[error(
        "maximum payload {maximum_payload} is not a multiple of {minimum} between {lowest} and {highest}"
    )]
    MaximumPayload {
        /// Bytes.
        maximum_payload: u32,
        /// Bytes.
        lowest: u32,
        /// Bytes.
        highest: u32,
        /// Bytes.
        minimum: u32,
    },
    /// See [`ExportInfo::new`].
    #[error(
        "export size {size} is not a multiple of the minimum block size {minimum}; round it down"
    )]
    SizeAlignment {
        /// Bytes.
        size: u64,
        /// Bytes.
        minimum: u32,
    },
    /// See [`ExportInfo::new`].
    #[error("export size {0} is above 2^63 - 1")]
    SizeTooLarge(u64),
    /// See [`ExportInfo::new`].
    #[error("export name of {length} bytes is longer than 4096 or contains NUL")]
    Name {
        /// Bytes.
        length: usize,
    },
    /// See [`ExportInfo::with_description`].
    #[error("export description of {length} bytes is longer than 4096 or contains NUL")]
    Description {
        /// Bytes.
        length: usize,
    },
}

/// The protocol's strings: at most 4096 bytes, no NUL.
pub(crate) fn is_string(text: &str) -> bool {
    text.len() <= limits::STRING && !text.contains('\0')
}

fn check_size(size: u64, block_sizes: BlockSizes) -> Result<(), ExportInfoError> {
    if size > limits::EXPORT_SIZE {
        return Err(ExportInfoError::SizeTooLarge(size));
    }
    if !size.is_multiple_of(u64::from(block_sizes.minimum)) {
        return Err(ExportInfoError::SizeAlignment {
            size,
            minimum: block_sizes.minimum,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_outside_the_spec_are_refused_by_name() {
        use ExportInfoError::*;
        assert_eq!(BlockSizes::new(0, 4096, 1 << 20), Err(MinimumBlockSize(0)));
        assert_eq!(BlockSizes::new(3, 4096, 1 << 20), Err(MinimumBlockSize(3)));
        assert_eq!(
            BlockSizes::new(1 << 17, 1 << 17, 1 << 20),
            Err(MinimumBlockSize(1 << 17))
        );
        assert!(matches!(
            BlockSizes::new(1, 256, 1 << 20),
            Err(PreferredBlockSize { .. })
        ));
        assert!(matches!(
            BlockSizes::new(4096, 512, 1 << 20),
            Err(PreferredBlockSize { .. })
        ));
        assert!(matches!(
            BlockSizes::new(512, 4096, 4096),
            Err(MaximumPayload { .. })
        ));
        assert!(matches!(
            BlockSizes::new(512, 4096, (1 << 20) + 1),
            Err(MaximumPayload { .. })
        ));
        assert!(matches!(
            BlockSizes::new(512, 4096, 1 << 26),
            Err(MaximumPayload { .. })
        ));
    }

    #[test]
    fn default_block_sizes_obey_the_spec() {
        let sizes = BlockSizes::default();
        assert_eq!(
            BlockSizes::new(sizes.minimum, sizes.preferred, sizes.maximum_payload),
            Ok(sizes)
        );
    }

    #[test]
    fn export_size_must_be_whole_blocks_and_signed() {
        let new = |size| ExportInfo::new("", size, TransmissionFlags::NONE, BlockSizes::default());
        assert!(new(0).is_ok());
        assert_eq!(
            new(513),
            Err(ExportInfoError::SizeAlignment {
                size: 513,
                minimum: 512
            })
        );
        assert_eq!(new(1 << 63), Err(ExportInfoError::SizeTooLarge(1 << 63)));
    }

    #[test]
    fn names_and_descriptions_are_bounded_and_without_nul() {
        let new =
            |name: &str| ExportInfo::new(name, 0, TransmissionFlags::NONE, BlockSizes::default());
        assert!(new(&"x".repeat(4096)).is_ok());
        assert!(new(&"x".repeat(4097)).is_err());
        assert!(new("a\0b").is_err());
        assert!(new("a").unwrap().with_description("\0").is_err());
    }

    #[test]
    fn fast_zero_needs_write_zeroes() {
        let fast = TransmissionFlags::SEND_FAST_ZERO;
        let alone = ExportInfo::new("", 0, fast, BlockSizes::default()).unwrap();
        assert!(!alone.flags().contains(fast));
        let both = fast | TransmissionFlags::SEND_WRITE_ZEROES;
        assert_eq!(
            ExportInfo::new("", 0, both, BlockSizes::default())
                .unwrap()
                .flags(),
            both
        );
    }
}
