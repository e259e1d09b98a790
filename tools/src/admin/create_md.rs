//! `create-md`: fresh metadata, and all the care before it.
//!
//! Refused at any rate: internal metadata that would lie within a file system (exit 40). Asked for, unless forced: metadata
//! or anything else that is recognised on the device that the metadata goes to. Whoever does not type "yes" leaves everything
//! as it was (exit 1).

use std::io::{self, BufRead, Write};

use qrbd_disk::Disk;
use qrbd_engine::limits::{MAX_PEERS, MIN_AL_EXTENTS};
use qrbd_engine::metadata::copies::MetadataError;
use qrbd_engine::metadata::image::{self, CreateError, CreateOptions, LoadError, MetadataImage};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::metadata::layout::RING_BLOCKS;
use qrbd_engine::metadata::ring;
use qrbd_engine::units::NodeId;

use super::configuration::SelectedVolume;
use super::metadata::{Access, Disks};
use super::{Context, EXIT_EXECUTION, EXIT_FILE_SYSTEM, EXIT_USAGE, Failure, Outcome};
use crate::signature::{self, Kind, Signature};

impl Context {
    pub(super) fn create_md(
        &self,
        force: bool,
        max_peers: Option<u8>,
        targets: &[String],
    ) -> Outcome {
        let configuration = self.configuration();
        let volumes = configuration.select_volumes(targets)?;
        self.for_each("create-md", volumes, SelectedVolume::name, |volume| {
            if volume.disk().is_none() {
                say!("{}: no disk here, nothing to do", volume.name());
                return Ok(());
            }
            if self.global.dry_run {
                say!("create-md {}", volume.name());
                return Ok(());
            }
            self.create_one(volume, force, max_peers)
        })
    }

    fn create_one(
        &self,
        volume: &SelectedVolume<'_>,
        force: bool,
        max_peers: Option<u8>,
    ) -> Outcome {
        let disks = Disks::open(&self.global.state_dir, volume, Access::Write)?;
        let node = volume
            .resource
            .local_node()
            .expect("selected resources have this node");
        let needed = volume.peer_count().max(1);
        let max_peers = max_peers.unwrap_or(needed.min(MAX_PEERS) as u8);
        if usize::from(max_peers) < volume.peer_count() {
            let message = format!(
                "{}: --max-peers {max_peers}, but the resource has {needed} peers",
                volume.name()
            );
            return Err(Failure::new(EXIT_USAGE, message));
        }
        let fresh = image::create(&CreateOptions {
            placement: disks.placement,
            device_bytes: disks.data_bytes(),
            max_peers,
            node_id: NodeId(node.node_id),
            device_uuid: random()?,
            al_slots: volume
                .volume
                .options
                .al_extents
                .clamp(MIN_AL_EXTENTS, ring::max_extents(RING_BLOCKS)),
        })
        .map_err(|error| refusal(volume, &error))?;
        look_before(volume, &disks, &fresh, force)?;
        let bitmap_kib = fresh.layout.bitmap_slot_bytes * u64::from(max_peers) / 1024;
        say!("initializing activity log");
        say!("initializing bitmap ({bitmap_kib} KB) to all zero");
        say!("Writing metadata...");
        disks.carry_out(fresh.write_steps())?;
        disks.remember(&fresh);
        say!("New QRBD metadata block successfully created.");
        tell_sizes(volume, &disks, &fresh);
        Ok(())
    }
}

fn refusal(volume: &SelectedVolume<'_>, error: &CreateError) -> Failure {
    Failure::new(EXIT_EXECUTION, format!("{}: {error}", volume.name()))
}

fn random() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| io::Read::read_exact(&mut source, &mut bytes))
        .map_err(|error| Failure::execution(format!("cannot read /dev/urandom: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Everything that could be lost: refuses, or asks.
fn look_before(
    volume: &SelectedVolume<'_>,
    disks: &Disks,
    fresh: &MetadataImage,
    force: bool,
) -> Outcome {
    let disk = disks.metadata_disk();
    let found = signature::scan(disk, disk.info().size).map_err(|error| {
        Failure::execution(format!(
            "{}: cannot read: {error}",
            disks.metadata_path().display()
        ))
    })?;
    if disks.placement == Placement::Internal {
        for signature in &found {
            if let Some(used) = signature
                .used_bytes
                .filter(|&used| used > fresh.layout.data_bytes)
            {
                return Err(overlap(disk, signature, used, fresh));
            }
        }
    }
    let mut reasons: Vec<String> = found
        .iter()
        .filter(|found| found.kind != Kind::Drbd)
        .map(describe)
        .collect();
    match disks.load() {
        Err(LoadError::Superblock(MetadataError::NotFound { .. })) => {}
        Ok(old) => reasons.push(format!(
            "QRBD metadata is there already (current generation {}, last written as update {})",
            old.superblock.current, old.superblock.sequence
        )),
        // Of another size, damaged, of DRBD, of a newer release: somebody's metadata in any case.
        Err(error) => reasons.push(error.to_string()),
    }
    if reasons.is_empty() || force {
        return Ok(());
    }
    say!(
        "{}: found on {}:",
        volume.name(),
        disks.metadata_path().display()
    );
    for reason in &reasons {
        say!("    {reason}");
    }
    say!("\n ==> This might destroy existing data! <==\n");
    confirmed()
}

fn describe(found: &Signature) -> String {
    match found.used_bytes {
        Some(bytes) => format!("{} which uses {} kB", found.name, bytes / 1024),
        None => format!("{} (at byte {})", found.name, found.offset),
    }
}

fn overlap(disk: &Disk, found: &Signature, used: u64, fresh: &MetadataImage) -> Failure {
    let usable = fresh.layout.data_bytes;
    let message = format!(
        "Found {} on {}, which uses {} kB; with internal metadata {} kB are left for data.\n\
         The end of the file system would be overwritten: {} kB of metadata go to the end of the device.\n\
         Operation refused.\n\
         You need to either\n  \
           * use external metadata (recommended): meta-disk PATH;\n  \
           * shrink the file system first, to at most {} kB\n  \
           * grow the device first by {} kB\n  \
           * or, if its content is not needed, erase it: wipefs -a {}",
        found.name,
        disk.info().path.display(),
        used / 1024,
        usable / 1024,
        fresh.layout.metadata_bytes() / 1024,
        usable / 1024,
        (used - usable).div_ceil(1024),
        disk.info().path.display(),
    );
    Failure::new(EXIT_FILE_SYSTEM, message)
}

fn tell_sizes(volume: &SelectedVolume<'_>, disks: &Disks, fresh: &MetadataImage) {
    let metadata = fresh.layout.metadata_bytes();
    match disks.placement {
        Placement::Internal => say!(
            "{}: {} kB of {} are for data, {} kB at its end for metadata.",
            volume.name(),
            fresh.volume_bytes / 1024,
            disks.data.info().path.display(),
            disks
                .data_bytes()
                .saturating_sub(fresh.volume_bytes)
                .div_ceil(1024),
        ),
        Placement::External { .. } | Placement::Indexed { .. } => say!(
            "{}: {} kB of {} are for data, {} kB of {} for metadata.",
            volume.name(),
            fresh.volume_bytes / 1024,
            disks.data.info().path.display(),
            metadata / 1024,
            disks.metadata_path().display(),
        ),
    }
}

/// Asks; only "yes" is yes.
///
/// # Errors
/// Anything else was answered, or nothing: exit 1.
pub(super) fn confirmed() -> Outcome {
    put!("Do you want to proceed?\n[need to type 'yes' to confirm] ");
    let _ = io::stdout().flush();
    let mut answer = String::new();
    let read = io::Read::take(io::stdin().lock(), 1024).read_line(&mut answer);
    say!();
    match read {
        Ok(_) if answer.trim_end_matches(['\r', '\n']) == "yes" => Ok(()),
        _ => Err(Failure::new(EXIT_USAGE, "Operation canceled.")),
    }
}
