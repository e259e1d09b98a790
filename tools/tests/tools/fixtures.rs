//! A status report with two volumes, one of them being synchronised, and a way to run the programs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use qrbd_control::StatusReport;
use qrbd_control::status::{
    ConnectionState, ConnectionStatus, DeviceStatus, DiskState, HostAddress, PathStatus,
    PeerDeviceStatus, ReplicationState, ResourceStatus, Role, SyncDetails, SyncKind,
};

pub fn device(volume: u16) -> DeviceStatus {
    DeviceStatus {
        volume,
        minor: i32::from(volume),
        backing_dev: format!("/dev/vg/r{volume}"),
        device_path: Some(format!("/dev/nbd{volume}")),
        export: format!("r0/{volume}"),
        disk_state: DiskState::UpToDate,
        client: false,
        open: false,
        quorum: true,
        size_kib: 1_048_576,
        read_kib: 100,
        written_kib: 200,
        al_writes: 3,
        bm_writes: 4,
        upper_pending: 5,
        lower_pending: 6,
        al_suspended: false,
        upper_blocked: false,
        lower_blocked: false,
    }
}

pub fn peer_device(volume: u16) -> PeerDeviceStatus {
    PeerDeviceStatus {
        volume,
        replication_state: ReplicationState::Established,
        peer_disk_state: DiskState::UpToDate,
        peer_client: false,
        resync_suspended_user: false,
        resync_suspended_peer: false,
        resync_suspended_dependency: false,
        received_kib: 0,
        sent_kib: 1000,
        out_of_sync_kib: 0,
        pending: 0,
        unacked: 0,
        sync: None,
    }
}

pub fn syncing(volume: u16) -> PeerDeviceStatus {
    PeerDeviceStatus {
        replication_state: ReplicationState::SyncSource,
        peer_disk_state: DiskState::Inconsistent,
        out_of_sync_kib: 615_014,
        sync: Some(SyncDetails {
            total_sectors: 2_097_152,
            dt_start_ms: 5_000,
            paused_ms: 0,
            dt0_ms: 4_000,
            db0_sectors: 819_200,
            dt1_ms: 1_000,
            db1_sectors: 204_800,
            want_kib_per_second: 102_400,
            kind: SyncKind::Resync {
                failed_sectors: 0,
                same_csum_sectors: 7,
            },
        }),
        ..peer_device(volume)
    }
}

pub fn connection(
    name: &str,
    peer_node_id: u8,
    peer_devices: Vec<PeerDeviceStatus>,
) -> ConnectionStatus {
    let host = |last| HostAddress {
        address: format!("10.0.0.{last}"),
        port: 7789,
        family: "ipv4".into(),
    };
    ConnectionStatus {
        peer_node_id,
        name: name.into(),
        connection_state: ConnectionState::Connected,
        congested: false,
        peer_role: Role::Secondary,
        tls: true,
        ap_in_flight_sectors: 8,
        rs_in_flight_sectors: 16,
        reason: None,
        paths: vec![PathStatus {
            this_host: host(1),
            remote_host: host(peer_node_id + 1),
            established: true,
        }],
        peer_devices,
    }
}

pub fn resource(devices: Vec<DeviceStatus>, connections: Vec<ConnectionStatus>) -> ResourceStatus {
    ResourceStatus {
        name: "r0".into(),
        node_id: 0,
        role: Role::Primary,
        suspended_user: false,
        suspended_no_data: false,
        suspended_fencing: false,
        suspended_quorum: false,
        force_io_failures: false,
        write_ordering: "flush".into(),
        devices,
        connections,
    }
}

pub fn healthy() -> StatusReport {
    let open = DeviceStatus {
        open: true,
        ..device(0)
    };
    StatusReport {
        resources: vec![resource(
            vec![open],
            vec![connection("bob", 1, vec![peer_device(0)])],
        )],
    }
}

pub fn two_volumes_syncing() -> StatusReport {
    let mut carol = connection("carol", 2, vec![peer_device(0), peer_device(1)]);
    carol.connection_state = ConnectionState::Connecting;
    carol.peer_role = Role::Unknown;
    for peer_device in &mut carol.peer_devices {
        peer_device.replication_state = ReplicationState::Off;
        peer_device.peer_disk_state = DiskState::DUnknown;
    }
    let bob = connection("bob", 1, vec![syncing(0), peer_device(1)]);
    StatusReport {
        resources: vec![resource(vec![device(0), device(1)], vec![bob, carol])],
    }
}

/// What a program printed and returned.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(mut command: Command, input: &str) -> Ran {
    for name in ["QRBD_CONFIG", "QRBD_NODE", "QRBD_RUN_DIR", "QRBD_STATE_DIR"] {
        command.env_remove(name);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its input is fine.
    let _ = child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes());
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().expect("the program ends");
    Ran {
        code: status.code().expect("no signal"),
        stdout: String::from_utf8(stdout).expect("text"),
        stderr: String::from_utf8(stderr).expect("text"),
    }
}

/// `qrbdadm` as node alice with the configuration and the run directory in `directory`.
pub fn qrbdadm(directory: &Path, arguments: &[&str]) -> Ran {
    qrbdadm_with_input(directory, arguments, "")
}

pub fn qrbdadm_with_input(directory: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qrbdadm"));
    command
        .arg("-c")
        .arg(directory.join("qrbd.conf"))
        .args(["--node", "alice", "--run-dir"])
        .arg(directory);
    command.args(arguments);
    run(command, input)
}

pub fn qrbd_load(arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qrbd-load"));
    command.args(arguments);
    run(command, "")
}

/// A configuration with r0 on `disk` (metadata at `meta_disk`), which is 64 MiB of zeroes, in a fresh directory.
pub fn configured(meta_disk: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().display();
    let configuration = format!(
        "resource r0 {{\n\
         \x20 startup {{ wfc-timeout 9; }}\n\
         \x20 on alice {{ device /dev/drbd0; disk {path}/disk; address 127.0.0.1:7789; meta-disk {meta_disk}; node-id 0; }}\n\
         \x20 on bob {{ device /dev/drbd0; disk {path}/other; address 127.0.0.1:7790; meta-disk {meta_disk}; node-id 1; }}\n\
         }}\n"
    )
    .replace("HERE", &path.to_string());
    std::fs::write(directory.path().join("qrbd.conf"), configuration).expect("written");
    blank(&directory.path().join("disk"), 64 << 20);
    directory
}

/// A sparse file of zeroes.
pub fn blank(path: &Path, bytes: u64) {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(bytes))
        .expect("a sparse file");
}
