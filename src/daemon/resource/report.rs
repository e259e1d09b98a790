//! What the resource tells about itself in DRBD's terms: `status`, `show-gi`, the list of exports.
//!
//! Only translates: states and figures come from the engine, counters from the shells.

use std::net::SocketAddr;

use qrbd_control::generations::{GenerationReport, PeerFlags, PeerGeneration, VolumeFlags};
use qrbd_control::status::{
    ConnectionStatus, DeviceStatus, HostAddress, PathStatus, PeerDeviceStatus, ResourceStatus,
    SyncDetails, SyncKind,
};
use qrbd_disk::BlockDevice;
use qrbd_engine::limits::MAX_REQUEST_BYTES;
use qrbd_engine::status::{PeerDeviceStatus as EnginePeerDevice, PeerStatus, VolumeStatus};
use qrbd_engine::units::{BLOCK_BYTES, NodeId, SECTOR_BYTES, Time};
use qrbd_engine::{Progress, state};

use super::core::Core;
use super::marks::Since;
use crate::volumes::ExportDescription;

/// Bytes of DRBD's unit of sizes.
const KIB: u64 = 1024;
/// What is written to at once without a read around it.
const PREFERRED_BLOCK_BYTES: u32 = BLOCK_BYTES as u32;

/// A word of the engine as the same word of the control messages.
macro_rules! same_word {
    ($word:expr) => {
        $word.word().parse().expect("both sides have DRBD's words")
    };
}

/// DRBD's status of the resource.
pub(super) fn status(core: &Core) -> ResourceStatus {
    let engine = core.engine_status();
    let plan = &core.plan;
    ResourceStatus {
        name: plan.name.clone(),
        node_id: plan.node_id.0,
        role: same_word!(engine.role),
        suspended_user: engine.suspended_user,
        suspended_no_data: false,
        suspended_fencing: engine.suspended_fencing,
        suspended_quorum: false,
        force_io_failures: false,
        write_ordering: if plan.volumes.iter().all(|volume| volume.disk_flushes) {
            "flush"
        } else {
            "drain"
        }
        .to_owned(),
        devices: engine
            .volumes
            .iter()
            .map(|volume| device(core, volume))
            .collect(),
        connections: engine
            .peers
            .iter()
            .map(|peer| connection(core, peer))
            .collect(),
    }
}

fn device(core: &Core, volume: &VolumeStatus) -> DeviceStatus {
    let plan = core.plan.volume(volume.number);
    let counters = core.disks.counters(volume.number).unwrap_or_default();
    DeviceStatus {
        volume: volume.number.0,
        minor: plan
            .and_then(|plan| plan.minor)
            .and_then(|minor| i32::try_from(minor).ok())
            .unwrap_or(-1),
        backing_dev: plan
            .and_then(|plan| plan.disk.as_ref())
            .map(|disk| disk.display().to_string())
            .unwrap_or_default(),
        device_path: None,
        export: export_name(&core.plan.name, volume.number.0),
        disk_state: same_word!(volume.told_disk),
        client: plan.is_some_and(|plan| plan.disk.is_none()),
        open: volume.openers > 0,
        quorum: true,
        size_kib: volume.size / KIB,
        read_kib: counters.read_bytes / KIB,
        written_kib: counters.written_bytes / KIB,
        al_writes: counters.activity_log_writes,
        bm_writes: counters.bitmap_writes,
        upper_pending: small(volume.pending_requests),
        lower_pending: counters.pending,
        al_suspended: false,
        upper_blocked: volume.held_requests > 0,
        lower_blocked: false,
    }
}

fn connection(core: &Core, peer: &PeerStatus) -> ConnectionStatus {
    let trouble = core.network.trouble_with(peer.node_id);
    ConnectionStatus {
        peer_node_id: peer.node_id.0,
        name: core.plan.node_name(peer.node_id),
        connection_state: same_word!(peer.connection),
        congested: false,
        peer_role: same_word!(peer.role),
        tls: true,
        ap_in_flight_sectors: peer.in_flight_bytes / SECTOR_BYTES,
        rs_in_flight_sectors: 0,
        reason: trouble.map(|trouble| trouble.text),
        paths: core
            .network
            .path(peer.node_id)
            .map(path)
            .into_iter()
            .collect(),
        peer_devices: peer
            .devices
            .iter()
            .map(|device| peer_device(core, peer, device))
            .collect(),
    }
}

fn path((local, remote, established): (SocketAddr, SocketAddr, bool)) -> PathStatus {
    let host = |address: SocketAddr| HostAddress {
        address: address.ip().to_string(),
        port: address.port(),
        family: if address.is_ipv4() { "ipv4" } else { "ipv6" }.to_owned(),
    };
    PathStatus {
        this_host: host(local),
        remote_host: host(remote),
        established,
    }
}

fn peer_device(core: &Core, peer: &PeerStatus, device: &EnginePeerDevice) -> PeerDeviceStatus {
    let traffic = core.network.traffic(peer.node_id, device.number);
    let left_sectors = device.out_of_sync_bytes / SECTOR_BYTES;
    PeerDeviceStatus {
        volume: device.number.0,
        replication_state: same_word!(device.replication),
        peer_disk_state: same_word!(device.peer_disk),
        peer_client: false,
        resync_suspended_user: device.paused_here,
        resync_suspended_peer: device.paused_there,
        resync_suspended_dependency: false,
        received_kib: traffic.received_bytes / KIB,
        sent_kib: traffic.sent_bytes / KIB,
        out_of_sync_kib: device.out_of_sync_bytes / KIB,
        pending: small(peer.log_entries),
        unacked: small(peer.received_operations),
        sync: device.resync.map(|progress| {
            let now = core.now();
            let marks =
                core.marks
                    .since(peer.node_id, device.number, now, device.out_of_sync_bytes);
            sync_details(&progress, left_sectors, now, marks)
        }),
    }
}

/// The figures of a running resync. Before the first mark, what was done since the start stands for what was done since the marks.
fn sync_details(
    progress: &Progress,
    left_sectors: u64,
    now: Time,
    marks: Option<([Since; 2], u64)>,
) -> SyncDetails {
    let total_sectors = progress.total_blocks * (BLOCK_BYTES / SECTOR_BYTES);
    let elapsed_ms = now.since(progress.started);
    let done = Since {
        milliseconds: elapsed_ms,
        bytes: total_sectors.saturating_sub(left_sectors) * SECTOR_BYTES,
    };
    let ([older, newer], paused_ms) = marks.unwrap_or(([done; 2], 0));
    SyncDetails {
        total_sectors,
        dt_start_ms: elapsed_ms,
        paused_ms,
        dt0_ms: older.milliseconds,
        db0_sectors: older.bytes / SECTOR_BYTES,
        dt1_ms: newer.milliseconds,
        db1_sectors: newer.bytes / SECTOR_BYTES,
        want_kib_per_second: 0,
        kind: SyncKind::Resync {
            failed_sectors: 0,
            same_csum_sectors: 0,
        },
    }
}

/// Generation identifiers of the attached volumes.
pub(super) fn generations(core: &Core) -> Vec<GenerationReport> {
    let engine = core.engine_status();
    let report = |volume: &VolumeStatus| {
        let identifiers = volume.identifiers.as_ref()?;
        let flags = volume.flags?;
        let peers = engine.peers.iter().map(|peer| {
            let device = peer
                .devices
                .iter()
                .find(|device| device.number == volume.number);
            PeerGeneration {
                node_id: peer.node_id.0,
                name: core.plan.node_name(peer.node_id),
                bitmap: identifiers.slot(peer.node_id).0,
                flags: PeerFlags {
                    full_sync: flags.invalidated,
                    ..device.map_or_else(PeerFlags::default, |device| peer_flags(peer, device))
                },
            }
        });
        Some(GenerationReport {
            resource: core.plan.name.clone(),
            volume: volume.number.0,
            current: identifiers.current().0,
            history: identifiers
                .history()
                .iter()
                .map(|generation| generation.0)
                .collect(),
            flags: VolumeFlags {
                consistent: flags.consistent,
                was_up_to_date: flags.was_up_to_date,
                primary: flags.primary_indicator,
                crashed_primary: flags.crashed_primary,
                al_clean: flags.al_clean,
                al_disabled: flags.al_disabled,
                primary_lost_quorum: flags.primary_lost_quorum,
            },
            peers: peers.collect(),
        })
    };
    engine.volumes.iter().filter_map(report).collect()
}

/// Flags of a peer as the running state has them.
fn peer_flags(peer: &PeerStatus, device: &EnginePeerDevice) -> PeerFlags {
    use state::DiskState as Disk;
    PeerFlags {
        connected: peer.connection == state::ConnectionState::Connected,
        peer_outdated: matches!(device.peer_disk, Disk::Inconsistent | Disk::Outdated),
        device_seen: device.peer_disk.has_data(),
        ..PeerFlags::default()
    }
}

/// What the NBD front may show.
pub(super) fn exports(core: &Core) -> Vec<ExportDescription> {
    let engine = core.engine_status();
    let primary = engine
        .peers
        .iter()
        .find(|peer| peer.role == state::Role::Primary)
        .map(|peer| core.plan.node_name(NodeId(peer.node_id.0)));
    let export = |volume: &VolumeStatus| {
        let alignment = core
            .disks
            .device(volume.number)
            .map_or(PREFERRED_BLOCK_BYTES, |device| device.info().alignment);
        ExportDescription {
            name: export_name(&core.plan.name, volume.number.0),
            resource: core.plan.name.clone(),
            volume: volume.number.0,
            size: volume.size,
            role: engine.role.word(),
            primary: primary.clone(),
            minimum_block: alignment,
            preferred_block: PREFERRED_BLOCK_BYTES.max(alignment),
            maximum_block: MAX_REQUEST_BYTES,
            openable: may_be_opened(engine.role),
        }
    };
    engine.volumes.iter().map(export).collect()
}

/// The one rule about opening that is not the engine's: clients are served where the role is Primary.
fn may_be_opened(role: state::Role) -> bool {
    role == state::Role::Primary
}

/// True if clients may have volumes open now.
pub(super) fn is_openable(core: &Core) -> bool {
    may_be_opened(core.engine_status().role)
}

/// `r0` for volume 0, `r0/1` for others.
fn export_name(resource: &str, volume: u16) -> String {
    if volume == 0 {
        resource.to_owned()
    } else {
        format!("{resource}/{volume}")
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use qrbd_control::status::{ConnectionState, DiskState, ReplicationState, Role};

    use super::*;

    #[test]
    fn every_word_of_the_engine_is_a_word_of_the_status() {
        for word in state::DiskState::ALL {
            let _: DiskState = same_word!(word);
        }
        for word in state::ConnectionState::ALL {
            let _: ConnectionState = same_word!(word);
        }
        for word in state::ReplicationState::ALL {
            let _: ReplicationState = same_word!(word);
        }
        for word in [
            state::Role::Unknown,
            state::Role::Primary,
            state::Role::Secondary,
        ] {
            let _: Role = same_word!(word);
        }
    }

    #[test]
    fn progress_becomes_sectors_and_milliseconds() {
        let progress = Progress {
            total_blocks: 100,
            started: Time(1_000),
            copied_blocks: 25,
        };
        let details = sync_details(&progress, 75 * 8, Time(3_500), None);
        assert_eq!(
            (
                details.total_sectors,
                details.dt_start_ms,
                details.db1_sectors
            ),
            (800, 2_500, 200)
        );
        let marks = [
            Since {
                milliseconds: 600,
                bytes: 4096,
            },
            Since {
                milliseconds: 300,
                bytes: 512,
            },
        ];
        let details = sync_details(&progress, 75 * 8, Time(3_500), Some((marks, 7)));
        assert_eq!(
            (
                details.dt0_ms,
                details.db0_sectors,
                details.dt1_ms,
                details.db1_sectors
            ),
            (600, 8, 300, 1)
        );
        assert_eq!(details.paused_ms, 7);
    }

    #[test]
    fn volume_zero_is_exported_under_the_name_of_the_resource() {
        assert_eq!(export_name("r0", 0), "r0");
        assert_eq!(export_name("r0", 3), "r0/3");
    }
}
