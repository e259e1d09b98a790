//! One line of progress: what runs, how far it is, how fast, how long it takes.
//!
//! The same words appear beside the bar on a terminal and in plain lines elsewhere.

use qrbd_control::Progress;
use qrbd_control::StatusReport;

/// `r0/0 bob SyncSource 41.35% 102.4 MiB/s 0:01:30 left`.
#[must_use]
pub fn line(progress: &Progress) -> String {
    let mut line = object(progress);
    line.push(' ');
    line.push_str(&progress.phase);
    if progress.total_kib > 0 {
        line.push_str(&format!(" {:.2}%", percent(progress)));
        if progress.kib_per_second > 0 {
            line.push_str(&format!(
                " {:.1} MiB/s",
                progress.kib_per_second as f64 / 1024.0
            ));
        }
        match progress.remaining_seconds {
            Some(seconds) => line.push_str(&format!(" {} left", clock(seconds))),
            None => line.push_str(" (stalled)"),
        }
    }
    line
}

/// `r0/0 bob`.
#[must_use]
pub fn object(progress: &Progress) -> String {
    let mut object = progress.resource.clone();
    if let Some(volume) = progress.volume {
        object.push_str(&format!("/{volume}"));
    }
    if let Some(peer) = &progress.peer {
        object.push(' ');
        object.push_str(peer);
    }
    object
}

/// Done part, percent within 0..=100.
#[must_use]
pub fn percent(progress: &Progress) -> f64 {
    if progress.total_kib == 0 {
        return 0.0;
    }
    (100.0 * progress.done_kib as f64 / progress.total_kib as f64).min(100.0)
}

/// `H:MM:SS`.
#[must_use]
pub fn clock(seconds: u64) -> String {
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Every resync and verify that runs according to `report`.
#[must_use]
pub fn running(report: &StatusReport) -> Vec<Progress> {
    let mut running = Vec::new();
    for resource in &report.resources {
        for connection in &resource.connections {
            for peer_device in &connection.peer_devices {
                let Some(sync) = &peer_device.sync else {
                    continue;
                };
                let to_go = peer_device.sectors_to_go();
                running.push(Progress {
                    resource: resource.name.clone(),
                    volume: Some(peer_device.volume),
                    peer: Some(connection.name.clone()),
                    phase: peer_device.replication_state.to_string(),
                    done_kib: sync.total_sectors.saturating_sub(to_go) / 2,
                    total_kib: sync.total_sectors / 2,
                    kib_per_second: (sync.mib_per_second_1() * 1024.0) as u64,
                    remaining_seconds: peer_device
                        .remaining_seconds()
                        .map(|seconds| seconds.round() as u64),
                });
            }
        }
    }
    running
}
