//! Text form of `status`, line for line as `drbdsetup status` prints it.
//!
//! Rules: `volume:N` is left out if volume 0 is the only one; `connection:` appears only if not Connected, `replication:`
//! only above Established, a peer's `role:` only when Connected; `quorum:`, `blocked:`, `suspended:` and
//! `resync-suspended:` only if something is wrong. `verbose` shows all of them and the defaults. Two things are ours: a line
//! beginning with `#` under a connection that is down for a known reason, and under a volume that has no kernel device
//! (verbose).

use std::fmt::Write;

use qrbd_control::StatusReport;
use qrbd_control::status::{
    ConnectionState, ConnectionStatus, DeviceStatus, DiskState, PeerDeviceStatus, ReplicationState,
    ResourceStatus,
};

/// What `status` prints if no resource is configured.
pub const NOTHING_CONFIGURED: &str = "# No currently configured QRBD found.\n";

/// What the user asked to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// All fields with their defaults (0, 1 or 2 times `--verbose`).
    pub verbose: u8,
    /// Counters.
    pub statistics: bool,
}

/// The whole report.
#[must_use]
pub fn status(report: &StatusReport, options: Options) -> String {
    if report.resources.is_empty() {
        return NOTHING_CONFIGURED.to_owned();
    }
    let mut out = String::new();
    for entry in &report.resources {
        resource(&mut out, entry, options);
        out.push('\n');
    }
    out
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn listed(reasons: &[(bool, &str)]) -> String {
    let names: Vec<&str> = reasons
        .iter()
        .filter_map(|&(given, name)| given.then_some(name))
        .collect();
    if names.is_empty() {
        "no".to_owned()
    } else {
        names.join(",")
    }
}

/// `no`, or why I/O is frozen.
#[must_use]
pub fn suspended(resource: &ResourceStatus) -> String {
    listed(&[
        (resource.suspended_user, "user"),
        (resource.suspended_no_data, "no-data"),
        (resource.suspended_fencing, "fencing"),
        (resource.suspended_quorum, "quorum"),
    ])
}

macro_rules! put {
    ($out:expr, $($argument:tt)*) => { write!($out, $($argument)*).expect("writing to a String cannot fail") };
}

fn resource(out: &mut String, resource: &ResourceStatus, options: Options) {
    let verbose = options.verbose > 0;
    out.push_str(&resource.name);
    if verbose {
        put!(out, " node-id:{}", resource.node_id);
    }
    put!(out, " role:{}", resource.role);
    if verbose || resource.suspended() {
        put!(out, " suspended:{}", suspended(resource));
    }
    if verbose || resource.force_io_failures {
        put!(
            out,
            " force-io-failures:{}",
            yes_no(resource.force_io_failures)
        );
    }
    if options.statistics && verbose {
        put!(out, "\n    write-ordering:{}", resource.write_ordering);
    }
    out.push('\n');
    let single = resource.devices.len() == 1;
    for entry in &resource.devices {
        device(out, entry, single, options);
    }
    for entry in &resource.connections {
        connection(out, entry, resource, single, options);
    }
}

fn device(out: &mut String, device: &DeviceStatus, single: bool, options: Options) {
    let verbose = options.verbose > 0;
    out.push_str("  ");
    if verbose || !(single && device.volume == 0) {
        put!(out, "volume:{} ", device.volume);
        if verbose {
            put!(out, "minor:{} ", device.minor);
        }
    }
    put!(out, "disk:{}", device.disk_state);
    if verbose && !device.backing_dev.is_empty() {
        put!(out, " backing_dev:{}", device.backing_dev);
    }
    if device.disk_state == DiskState::Diskless {
        put!(out, " client:{}", yes_no(device.client));
    }
    if verbose || device.open {
        put!(out, " open:{}", yes_no(device.open));
    }
    if verbose || !device.quorum {
        put!(out, " quorum:{}", yes_no(device.quorum));
    }
    if options.statistics {
        out.push_str("\n     ");
        if verbose {
            put!(out, " size:{}", device.size_kib);
        }
        put!(
            out,
            " read:{} written:{}",
            device.read_kib,
            device.written_kib
        );
        if verbose {
            put!(
                out,
                " al-writes:{} bm-writes:{} upper-pending:{} lower-pending:{} al-suspended:{}",
                device.al_writes,
                device.bm_writes,
                device.upper_pending,
                device.lower_pending,
                yes_no(device.al_suspended)
            );
        }
    }
    if verbose || device.upper_blocked || device.lower_blocked {
        put!(
            out,
            " blocked:{}",
            listed(&[
                (device.upper_blocked, "upper"),
                (device.lower_blocked, "lower")
            ])
        );
    }
    out.push('\n');
    if verbose && device.device_path.is_none() {
        put!(
            out,
            "      # no kernel device: reach the volume as NBD export '{}'\n",
            device.export
        );
    }
}

fn connection(
    out: &mut String,
    connection: &ConnectionStatus,
    resource: &ResourceStatus,
    single: bool,
    options: Options,
) {
    let verbose = options.verbose > 0;
    let connected = connection.connection_state == ConnectionState::Connected;
    put!(out, "  {}", connection.name);
    if verbose {
        put!(out, " node-id:{}", connection.peer_node_id);
    }
    if verbose || !connected {
        put!(out, " connection:{}", connection.connection_state);
    }
    if verbose || connected {
        put!(out, " role:{}", connection.peer_role);
    }
    if verbose || connection.congested {
        put!(
            out,
            " congested:{} ap-in-flight:{} rs-in-flight:{}",
            yes_no(connection.congested),
            connection.ap_in_flight_sectors,
            connection.rs_in_flight_sectors
        );
    }
    out.push('\n');
    if let Some(reason) = &connection.reason {
        put!(out, "    # {}\n", one_line(reason));
    }
    if verbose || options.statistics || connected {
        for entry in &connection.peer_devices {
            let device = resource
                .devices
                .iter()
                .find(|device| device.volume == entry.volume);
            peer_device(
                out,
                entry,
                device.map_or(0, |device| device.size_kib),
                single,
                options,
            );
        }
    }
}

fn peer_device(
    out: &mut String,
    peer_device: &PeerDeviceStatus,
    size_kib: u64,
    single: bool,
    options: Options,
) {
    let verbose = options.verbose > 0;
    let mut words: Vec<String> = Vec::new();
    if verbose || !(single && peer_device.volume == 0) {
        words.push(format!("volume:{}", peer_device.volume));
    }
    if verbose || peer_device.replication_state > ReplicationState::Established {
        words.push(format!("replication:{}", peer_device.replication_state));
    }
    let known = peer_device.replication_state != ReplicationState::Off
        || peer_device.peer_disk_state != DiskState::DUnknown;
    let shown = verbose || options.statistics || known;
    if shown {
        words.push(format!("peer-disk:{}", peer_device.peer_disk_state));
        if peer_device.peer_disk_state == DiskState::Diskless {
            words.push(format!("peer-client:{}", yes_no(peer_device.peer_client)));
        }
        if let Some(percent) = done_percent(peer_device, size_kib) {
            words.push(format!("done:{percent:.2}"));
        }
        let suspended = peer_device.resync_suspended();
        if verbose || suspended != "no" {
            words.push(format!("resync-suspended:{suspended}"));
        }
    }
    put!(out, "    {}", words.join(" "));
    if shown && options.statistics {
        put!(out, "\n       ");
        peer_device_statistics(out, peer_device, options.verbose);
    }
    out.push('\n');
}

/// `done:` of a volume that is being synchronised or verified; without counters, the part that is in sync.
#[must_use]
pub fn done_percent(peer_device: &PeerDeviceStatus, size_kib: u64) -> Option<f64> {
    peer_device.percent_done().or_else(|| {
        peer_device
            .replication_state
            .is_resync()
            .then(|| peer_device.percent_in_sync(size_kib))
    })
}

fn peer_device_statistics(out: &mut String, peer_device: &PeerDeviceStatus, verbose: u8) {
    put!(
        out,
        " received:{} sent:{}",
        peer_device.received_kib,
        peer_device.sent_kib
    );
    if verbose > 0 || peer_device.out_of_sync_kib > 0 {
        put!(out, " out-of-sync:{}", peer_device.out_of_sync_kib);
    }
    if verbose == 0 {
        return;
    }
    put!(
        out,
        " pending:{} unacked:{}",
        peer_device.pending,
        peer_device.unacked
    );
    let Some(sync) = &peer_device.sync else {
        return;
    };
    if verbose > 1 {
        put!(
            out,
            " rs-total:{} rs-dt-start-ms:{} rs-paused-ms:{} rs-dt0-ms:{} rs-db0-sectors:{} rs-dt1-ms:{} rs-db1-sectors:{}",
            sync.total_sectors,
            sync.dt_start_ms,
            sync.paused_ms,
            sync.dt0_ms,
            sync.db0_sectors,
            sync.dt1_ms,
            sync.db1_sectors
        );
    }
    put!(out, " dbdt1:{:.2}", sync.mib_per_second_1());
    match peer_device.remaining_seconds() {
        Some(seconds) => put!(out, " eta:{seconds:.0}"),
        None => put!(out, " eta:nan"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
