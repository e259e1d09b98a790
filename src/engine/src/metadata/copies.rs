//! Which of the superblock copies counts.
//!
//! Owns the judgement over the copies found on a device. It never repairs: it names what must be rewritten and what is wrong.

use alloc::vec::Vec;
use core::fmt;

use super::layout::CopyName;
use super::superblock::{FORMAT_VERSION, Superblock, SuperblockError};

/// Bytes found where a copy may lie.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Which copy.
    pub copy: CopyName,
    /// Its offset on the metadata device, for messages.
    pub offset: u64,
    /// What was read there; `None` if the device could not read it.
    pub bytes: Option<&'a [u8]>,
}

/// A copy that does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefusedCopy {
    /// Which copy.
    pub copy: CopyName,
    /// Its offset on the metadata device.
    pub offset: u64,
    /// Why.
    pub error: SuperblockError,
}

impl fmt::Display for RefusedCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "superblock copy {} at byte {}: {}",
            self.copy, self.offset, self.error
        )
    }
}

/// The copy that counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// What it says.
    pub superblock: Superblock,
    /// Which copy it is.
    pub copy: CopyName,
    /// Copies that are refused or older: the next update writes them first.
    pub stale: Vec<CopyName>,
    /// The refused ones among them, to be reported.
    pub refused: Vec<RefusedCopy>,
}

/// Why no copy counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetadataError {
    /// No copy has a known magic.
    NotFound {
        /// What is there instead.
        refused: Vec<RefusedCopy>,
    },
    /// Copies exist, all damaged.
    Damaged {
        /// What is wrong with each.
        refused: Vec<RefusedCopy>,
    },
    /// DRBD's metadata lies in one of the places, whatever the other one holds.
    Drbd {
        /// The place.
        copy: RefusedCopy,
    },
    /// The newest copy was written by a newer release.
    NewerVersion {
        /// The copy.
        copy: RefusedCopy,
    },
    /// The copies belong to different volumes.
    DifferentDevices {
        /// Device uuid of the first.
        first: u64,
        /// Device uuid of the second.
        second: u64,
    },
    /// Both copies claim to be the same update and differ.
    SameSequence {
        /// The number of the update.
        sequence: u64,
    },
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataError::NotFound { refused } => {
                f.write_str("no metadata found (create-md makes it)")?;
                refused.iter().try_for_each(|copy| write!(f, "; {copy}"))
            }
            MetadataError::Damaged { refused } => {
                f.write_str(
                    "metadata damaged (restore-md from a dump, or create-md and a full resync)",
                )?;
                refused.iter().try_for_each(|copy| write!(f, "; {copy}"))
            }
            MetadataError::Drbd { copy } => {
                write!(
                    f,
                    "refusing to use a device with DRBD metadata (create-md replaces it after a question): {copy}"
                )
            }
            MetadataError::NewerVersion { copy } => {
                write!(
                    f,
                    "metadata was written by a newer release, use that release: {copy}"
                )
            }
            MetadataError::DifferentDevices { first, second } => write!(
                f,
                "field device-uuid: the superblock copies belong to different volumes, {first:016X} and {second:016X} \
                 (wipe-md, then restore-md or create-md)"
            ),
            MetadataError::SameSequence { sequence } => write!(
                f,
                "field sequence: both superblock copies are update {sequence} and differ (restore-md or create-md)"
            ),
        }
    }
}

impl core::error::Error for MetadataError {}

/// Finds the copy that counts: whole, and of the highest sequence.
///
/// A damaged or blank copy never hides a good one. Three things do refuse a good copy, because each says that something other
/// than a crash happened and that the good copy may be old: DRBD's magic in the other place, a newer format version with a
/// higher sequence, another device uuid.
///
/// # Errors
/// [`MetadataError`], naming each place and what is wrong with it.
pub fn choose(candidates: &[Candidate<'_>]) -> Result<Chosen, MetadataError> {
    let mut good: Vec<(CopyName, Superblock)> = Vec::new();
    let mut refused = Vec::new();
    for candidate in candidates {
        match candidate
            .bytes
            .map_or(Err(SuperblockError::Unreadable), Superblock::decode)
        {
            Ok(superblock) => good.push((candidate.copy, superblock)),
            Err(error) => refused.push(RefusedCopy {
                copy: candidate.copy,
                offset: candidate.offset,
                error,
            }),
        }
    }
    if let Some(&copy) = refused
        .iter()
        .find(|copy| matches!(copy.error, SuperblockError::Drbd { .. }))
    {
        return Err(MetadataError::Drbd { copy });
    }
    for pair in good.windows(2) {
        let (first, second) = (&pair[0].1, &pair[1].1);
        if first.device_uuid != second.device_uuid {
            return Err(MetadataError::DifferentDevices {
                first: first.device_uuid,
                second: second.device_uuid,
            });
        }
        if first.sequence == second.sequence && first != second {
            return Err(MetadataError::SameSequence {
                sequence: first.sequence,
            });
        }
    }
    let newest = good.iter().map(|(_, superblock)| superblock.sequence).max();
    let newer_version = |copy: &&RefusedCopy| match copy.error {
        SuperblockError::Version { version, sequence } => {
            version > FORMAT_VERSION && newest.is_none_or(|newest| sequence > newest)
        }
        _ => false,
    };
    if let Some(&copy) = refused.iter().find(newer_version) {
        return Err(MetadataError::NewerVersion { copy });
    }
    let Some(newest) = newest else {
        let nothing = |copy: &RefusedCopy| {
            matches!(
                copy.error,
                SuperblockError::Blank | SuperblockError::NoMagic
            )
        };
        return Err(if refused.iter().all(nothing) {
            MetadataError::NotFound { refused }
        } else {
            MetadataError::Damaged { refused }
        });
    };
    let older = good
        .iter()
        .filter(|(_, superblock)| superblock.sequence < newest)
        .map(|&(copy, _)| copy);
    let stale = older
        .chain(refused.iter().map(|refused| refused.copy))
        .collect();
    let at = good
        .iter()
        .position(|(_, superblock)| superblock.sequence == newest)
        .expect("the maximum is in the list");
    let (copy, superblock) = good.swap_remove(at);
    Ok(Chosen {
        superblock,
        copy,
        stale,
        refused,
    })
}

#[cfg(test)]
mod tests;
