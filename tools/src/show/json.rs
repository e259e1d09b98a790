//! JSON form of `status`: the fields of `drbdsetup status --json` in its order, under its names.
//!
//! A program that reads DRBD's output reads this. Fields that DRBD does not have come last in their object:
//! `open`, `backing-dev`, `device` (kernel device or null) and `export` (NBD) of a device, `reason` of a connection.

use qrbd_control::StatusReport;
use qrbd_control::status::{
    ConnectionStatus, DeviceStatus, HostAddress, PathStatus, PeerDeviceStatus, ResourceStatus,
    SyncKind,
};
use serde::Serialize;

use super::text::done_percent;

/// What `estimated-seconds-to-finish` says while a resync stands still.
const STALLED_SECONDS: u64 = 987_654_321;

/// The report as a JSON array, with a newline at the end.
#[must_use]
pub fn status(report: &StatusReport) -> String {
    let resources: Vec<Resource> = report.resources.iter().map(resource).collect();
    let mut text = serde_json::to_string_pretty(&resources)
        .expect("strings and finite numbers always serialise");
    text.push('\n');
    text
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Resource<'a> {
    name: &'a str,
    node_id: u8,
    role: &'static str,
    suspended: bool,
    suspended_user: bool,
    suspended_no_data: bool,
    suspended_fencing: bool,
    suspended_quorum: bool,
    force_io_failures: bool,
    write_ordering: &'a str,
    devices: Vec<Device<'a>>,
    connections: Vec<Connection<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Device<'a> {
    volume: u16,
    minor: i32,
    disk_state: &'static str,
    client: bool,
    quorum: bool,
    size: u64,
    read: u64,
    written: u64,
    al_writes: u64,
    bm_writes: u64,
    upper_pending: u32,
    lower_pending: u32,
    open: bool,
    backing_dev: &'a str,
    device: Option<&'a str>,
    export: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Connection<'a> {
    peer_node_id: u8,
    name: &'a str,
    connection_state: &'static str,
    congested: bool,
    peer_role: &'static str,
    tls: bool,
    ap_in_flight: u64,
    rs_in_flight: u64,
    paths: Vec<Path<'a>>,
    #[serde(rename = "peer_devices")]
    peer_devices: Vec<PeerDevice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Path<'a> {
    this_host: Host<'a>,
    remote_host: Host<'a>,
    established: bool,
}

#[derive(Serialize)]
struct Host<'a> {
    address: &'a str,
    port: u16,
    family: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct PeerDevice {
    volume: u16,
    replication_state: &'static str,
    peer_disk_state: &'static str,
    peer_client: bool,
    resync_suspended: String,
    received: u64,
    sent: u64,
    out_of_sync: u64,
    pending: u32,
    unacked: u32,
    has_sync_details: bool,
    has_online_verify_details: bool,
    percent_in_sync: f64,
    #[serde(flatten)]
    sync: Option<Sync>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent_resync_done: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Sync {
    rs_total: u64,
    rs_dt_start_ms: u64,
    rs_paused_ms: u64,
    rs_dt0_ms: u64,
    rs_db0_sectors: u64,
    rs_dt1_ms: u64,
    rs_db1_sectors: u64,
    #[serde(flatten)]
    kind: Kind,
    want: f64,
    #[serde(rename = "db0/dt0 [MiB/s]")]
    speed_0: f64,
    #[serde(rename = "db1/dt1 [MiB/s]")]
    speed_1: f64,
    estimated_seconds_to_finish: u64,
    #[serde(rename = "db/dt [MiB/s]")]
    speed: f64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Kind {
    #[serde(rename_all = "kebab-case")]
    Resync { rs_failed: u64, rs_same_csum: u64 },
    #[serde(rename_all = "kebab-case")]
    Verify {
        ov_start_sector: u64,
        ov_stop_sector: u64,
        ov_position: u64,
        ov_left: u64,
        ov_skipped: u64,
    },
}

fn resource(resource: &ResourceStatus) -> Resource<'_> {
    Resource {
        name: &resource.name,
        node_id: resource.node_id,
        role: resource.role.as_str(),
        suspended: resource.suspended(),
        suspended_user: resource.suspended_user,
        suspended_no_data: resource.suspended_no_data,
        suspended_fencing: resource.suspended_fencing,
        suspended_quorum: resource.suspended_quorum,
        force_io_failures: resource.force_io_failures,
        write_ordering: &resource.write_ordering,
        devices: resource.devices.iter().map(device).collect(),
        connections: resource
            .connections
            .iter()
            .map(|entry| connection(entry, resource))
            .collect(),
    }
}

fn device(device: &DeviceStatus) -> Device<'_> {
    Device {
        volume: device.volume,
        minor: device.minor,
        disk_state: device.disk_state.as_str(),
        client: device.client,
        quorum: device.quorum,
        size: device.size_kib,
        read: device.read_kib,
        written: device.written_kib,
        al_writes: device.al_writes,
        bm_writes: device.bm_writes,
        upper_pending: device.upper_pending,
        lower_pending: device.lower_pending,
        open: device.open,
        backing_dev: &device.backing_dev,
        device: device.device_path.as_deref(),
        export: &device.export,
    }
}

fn connection<'a>(connection: &'a ConnectionStatus, resource: &ResourceStatus) -> Connection<'a> {
    let peer_devices = connection.peer_devices.iter().map(|entry| {
        let device = resource
            .devices
            .iter()
            .find(|device| device.volume == entry.volume);
        peer_device(entry, device.map_or(0, |device| device.size_kib))
    });
    Connection {
        peer_node_id: connection.peer_node_id,
        name: &connection.name,
        connection_state: connection.connection_state.as_str(),
        congested: connection.congested,
        peer_role: connection.peer_role.as_str(),
        tls: connection.tls,
        ap_in_flight: connection.ap_in_flight_sectors,
        rs_in_flight: connection.rs_in_flight_sectors,
        paths: connection.paths.iter().map(path).collect(),
        peer_devices: peer_devices.collect(),
        reason: connection.reason.as_deref(),
    }
}

fn path(path: &PathStatus) -> Path<'_> {
    Path {
        this_host: host(&path.this_host),
        remote_host: host(&path.remote_host),
        established: path.established,
    }
}

fn host(host: &HostAddress) -> Host<'_> {
    Host {
        address: &host.address,
        port: host.port,
        family: &host.family,
    }
}

fn peer_device(peer_device: &PeerDeviceStatus, size_kib: u64) -> PeerDevice {
    let verify =
        matches!(&peer_device.sync, Some(sync) if matches!(sync.kind, SyncKind::Verify { .. }));
    PeerDevice {
        volume: peer_device.volume,
        replication_state: peer_device.replication_state.as_str(),
        peer_disk_state: peer_device.peer_disk_state.as_str(),
        peer_client: peer_device.peer_client,
        resync_suspended: peer_device.resync_suspended(),
        received: peer_device.received_kib,
        sent: peer_device.sent_kib,
        out_of_sync: peer_device.out_of_sync_kib,
        pending: peer_device.pending,
        unacked: peer_device.unacked,
        has_sync_details: peer_device.sync.is_some(),
        has_online_verify_details: verify,
        percent_in_sync: two_digits(peer_device.percent_in_sync(size_kib)),
        sync: sync(peer_device),
        percent_resync_done: done_percent(peer_device, size_kib).map(two_digits),
    }
}

fn sync(peer_device: &PeerDeviceStatus) -> Option<Sync> {
    let details = peer_device.sync.as_ref()?;
    let kind = match details.kind {
        SyncKind::Resync {
            failed_sectors,
            same_csum_sectors,
        } => Kind::Resync {
            rs_failed: failed_sectors,
            rs_same_csum: same_csum_sectors,
        },
        SyncKind::Verify {
            start_sector,
            stop_sector,
            position_sector,
            left_sectors,
            skipped_sectors,
        } => Kind::Verify {
            ov_start_sector: start_sector,
            ov_stop_sector: stop_sector,
            ov_position: position_sector,
            ov_left: left_sectors,
            ov_skipped: skipped_sectors,
        },
    };
    Some(Sync {
        rs_total: details.total_sectors,
        rs_dt_start_ms: details.dt_start_ms,
        rs_paused_ms: details.paused_ms,
        rs_dt0_ms: details.dt0_ms,
        rs_db0_sectors: details.db0_sectors,
        rs_dt1_ms: details.dt1_ms,
        rs_db1_sectors: details.db1_sectors,
        kind,
        want: two_digits(details.want_kib_per_second as f64 / 1024.0),
        speed_0: two_digits(details.mib_per_second_0()),
        speed_1: two_digits(details.mib_per_second_1()),
        estimated_seconds_to_finish: peer_device
            .remaining_seconds()
            .map_or(STALLED_SECONDS, |seconds| seconds.round() as u64),
        speed: two_digits(peer_device.mean_mib_per_second().unwrap_or(0.0)),
    })
}

fn two_digits(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
