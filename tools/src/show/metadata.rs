//! Text form of metadata: `dump-md`. Statements in DRBD's order and words where DRBD has them.
//!
//! Numbers that describe the place on the disk are comments, everything else is a statement. A bitmap is a list of
//! `first-block count;`, each block 4096 bytes of data.

use std::fmt::Write;

use qrbd_control::generations::{GenerationReport, PeerFlags, PeerGeneration, VolumeFlags};
use qrbd_control::status::DiskState;
use qrbd_engine::metadata::image::{LoggedExtents, MetadataImage};
use qrbd_engine::metadata::superblock::{self, Superblock};
use qrbd_engine::units::SECTOR_BYTES;

macro_rules! put {
    ($out:expr, $($argument:tt)*) => { writeln!($out, $($argument)*).expect("writing to a String cannot fail") };
}

/// The metadata as text.
#[must_use]
pub fn dump(image: &MetadataImage) -> String {
    let mut out = String::new();
    let (superblock, layout) = (&image.superblock, &image.layout);
    put!(out, "# QRBD metadata dump");
    put!(out, "version \"q{:02}\";", superblock::FORMAT_VERSION);
    put!(out, "");
    put!(out, "max-peers {};", superblock.max_peers);
    put!(out, "# placement {}", layout.placement);
    put!(
        out,
        "# md_size_sect {}",
        layout.metadata_bytes() / SECTOR_BYTES
    );
    put!(out, "# md_offset {}", layout.superblock_a);
    put!(out, "# md_offset_second {}", layout.superblock_b);
    put!(out, "# al_offset {}", layout.ring_offset);
    put!(out, "# bm_offset {}", layout.bitmap_offset);
    put!(out, "# data_bytes {}", image.volume_bytes);
    put!(out, "# sequence {}", superblock.sequence);
    for copy in &image.refused {
        put!(out, "# refused: {copy}");
    }
    for damage in &image.damage {
        put!(out, "# damaged: {damage}");
    }
    put!(out, "");
    put!(out, "node-id {};", superblock.node_id);
    put!(out, "current-uuid 0x{};", superblock.current);
    put!(
        out,
        "flags 0x{:08x};{}",
        superblock.flags.bits(),
        names(superblock::Flags::NAMES, &superblock.flags.values())
    );
    put!(out, "device-uuid 0x{:016X};", superblock.device_uuid);
    put!(
        out,
        "la-size-sect {};",
        superblock.effective_bytes / SECTOR_BYTES
    );
    put!(
        out,
        "device-size-sect {};",
        superblock.device_bytes / SECTOR_BYTES
    );
    put!(out, "bm-byte-per-bit {};", superblock.bit_bytes);
    put!(out, "al-extents {};", superblock.al_slots);
    put!(out, "al-stripes 1;");
    put!(out, "al-stripe-size-4k {};", superblock.al_ring_blocks);
    for (slot, peer) in superblock.peers.iter().enumerate() {
        put!(out, "peer[{slot}] {{");
        match peer.node_id {
            Some(node_id) => put!(out, "    node-id {node_id};"),
            None => put!(out, "    # free"),
        }
        put!(out, "    bitmap-index {slot};");
        put!(out, "    bitmap-uuid 0x{};", peer.bitmap);
        let flag_names = names(superblock::PeerFlags::NAMES, &peer.flags.values());
        put!(out, "    flags 0x{:08x};{flag_names}", peer.flags.bits());
        put!(out, "}}");
    }
    put!(out, "history-uuids {{");
    for generation in &superblock.history {
        put!(out, "    0x{generation};");
    }
    put!(out, "}}");
    activity_log(&mut out, image);
    for (slot, bitmap) in image.bitmaps.iter().enumerate() {
        put!(out, "bitmap[{slot}] {{");
        for run in bitmap.runs() {
            put!(out, "    {} {};", run.start, run.end - run.start);
        }
        put!(out, "}}");
        put!(out, "# bits-set {};", bitmap.count());
    }
    out
}

fn activity_log(out: &mut String, image: &MetadataImage) {
    match &image.logged {
        LoggedExtents::Unknown => put!(out, "# activity log: not known, all extents count"),
        LoggedExtents::Known(extents) if extents.is_empty() => {}
        LoggedExtents::Known(extents) => {
            let numbers: Vec<String> = extents.iter().map(u32::to_string).collect();
            put!(
                out,
                "# activity log, not applied: extents {}",
                numbers.join(" ")
            );
        }
    }
}

fn names(names: &[&str], values: &[bool]) -> String {
    let set: Vec<String> = names
        .iter()
        .zip(values)
        .filter(|&(_, &set)| set)
        .map(|(name, _)| name.replace('_', "-"))
        .collect();
    if set.is_empty() {
        String::new()
    } else {
        format!(" # {}", set.join(" "))
    }
}

/// The generations as `show-gi` and `get-gi` print them; `peers` are the node ids and names of the configuration. A peer of the
/// configuration that has no slot yet is shown with an empty one.
#[must_use]
pub fn generations(
    superblock: &Superblock,
    resource: &str,
    volume: u16,
    peers: &[(u8, String)],
) -> GenerationReport {
    let mut report = GenerationReport {
        resource: resource.to_owned(),
        volume,
        current: superblock.current.0,
        history: superblock
            .history
            .iter()
            .map(|generation| generation.0)
            .collect(),
        flags: VolumeFlags {
            consistent: superblock.flags.consistent,
            was_up_to_date: superblock.flags.was_up_to_date,
            primary: superblock.flags.primary_indicator,
            crashed_primary: superblock.flags.crashed_primary,
            al_clean: superblock.flags.al_clean,
            al_disabled: superblock.flags.al_disabled,
            primary_lost_quorum: superblock.flags.primary_lost_quorum,
        },
        peers: Vec::new(),
    };
    for slot in &superblock.peers {
        let Some(node_id) = slot.node_id else {
            continue;
        };
        let name = peers
            .iter()
            .find(|(id, _)| *id == node_id.0)
            .map(|(_, name)| name.clone());
        report.peers.push(PeerGeneration {
            node_id: node_id.0,
            name: name.unwrap_or_default(),
            bitmap: slot.bitmap.0,
            flags: PeerFlags {
                connected: slot.flags.connected,
                peer_outdated: slot.flags.outdated,
                peer_fencing: slot.flags.fencing,
                full_sync: slot.flags.full_sync || superblock.flags.invalidated,
                device_seen: slot.flags.device_seen,
            },
        });
    }
    for (node_id, name) in peers {
        if !report.peers.iter().any(|peer| peer.node_id == *node_id) {
            report.peers.push(PeerGeneration {
                node_id: *node_id,
                name: name.clone(),
                ..PeerGeneration::default()
            });
        }
    }
    report.peers.sort_by_key(|peer| peer.node_id);
    report
}

/// The disk state that the metadata of a volume that is not attached stands for.
#[must_use]
pub fn disk_state(superblock: &Superblock) -> DiskState {
    let flags = superblock.flags;
    let mut peers = superblock
        .peers
        .iter()
        .filter(|peer| peer.node_id.is_some())
        .peekable();
    if !flags.consistent {
        DiskState::Inconsistent
    } else if !flags.was_up_to_date {
        DiskState::Outdated
    } else if peers.peek().is_some() && peers.all(|peer| peer.flags.outdated) {
        DiskState::UpToDate
    } else {
        DiskState::Consistent
    }
}
