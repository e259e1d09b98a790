//! `wait-connect` and `wait-sync`: looks at the state after each change until the goal is reached or the time is over.

use std::rc::Rc;
use std::time::Duration;

use qrbd_control::status::{ConnectionState, PeerDeviceStatus, ReplicationState, ResourceStatus};
use qrbd_control::{Progress, Refusal, Response, Target};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::{ProgressSender, resources};
use crate::daemon::Daemon;
use crate::resource::Shared;

/// How often a client hears of progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    /// Every peer that is meant is connected and the handshake is through.
    Connected,
    /// No resync runs either.
    InSync,
}

/// How far a resource is from the goal.
enum Look {
    Reached,
    /// Waiting makes no sense.
    StandAlone(String),
    Missing(String),
}

/// Waits for every resource that is meant.
pub(super) async fn wait(
    daemon: &Daemon,
    target: &Target,
    goal: Goal,
    timeout_seconds: Option<u32>,
    progress: &ProgressSender,
) -> Response {
    let meant = match resources(daemon, target) {
        Ok(meant) => meant,
        Err(refusal) => return Response::Refused(refusal),
    };
    let deadline =
        timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds)));
    for shared in meant {
        if let Err(refusal) = wait_one(&shared, target, goal, deadline, progress).await {
            return Response::Refused(refusal);
        }
    }
    Response::Ok {
        text: String::new(),
    }
}

async fn wait_one(
    shared: &Rc<Shared>,
    target: &Target,
    goal: Goal,
    deadline: Option<Instant>,
    progress: &ProgressSender,
) -> Result<(), Refusal> {
    let mut notices = shared.listen();
    let mut report_at = Instant::now();
    loop {
        let report = shared.report();
        let missing = match look(&report, target, goal) {
            Look::Reached => return Ok(()),
            Look::StandAlone(text) => return Err(Refusal::wait_timeout(text)),
            Look::Missing(text) => text,
        };
        if Instant::now() >= report_at {
            steps(&report, target, &missing)
                .into_iter()
                .for_each(|step| {
                    // A client that does not read misses steps.
                    let _ = progress.try_send(step);
                });
            report_at = Instant::now() + REPORT_INTERVAL;
        }
        let next = deadline.map_or(report_at, |deadline| deadline.min(report_at));
        tokio::select! {
            notice = notices.recv() => {
                if matches!(notice, Err(RecvError::Closed)) {
                    return Err(Refusal::other("the resource went down while it was waited for", 10));
                }
            }
            () = tokio::time::sleep_until(next) => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Refusal::wait_timeout(format!("timeout: {missing}")));
        }
    }
}

fn look(report: &ResourceStatus, target: &Target, goal: Goal) -> Look {
    let meant = report.connections.iter().filter(|connection| {
        target
            .peer
            .as_ref()
            .is_none_or(|name| &connection.name == name)
    });
    for connection in meant {
        let name = &connection.name;
        if connection.connection_state == ConnectionState::StandAlone {
            return Look::StandAlone(format!(
                "{name} is StandAlone: no connection is wanted (connect)"
            ));
        }
        if connection.connection_state != ConnectionState::Connected {
            let why = connection
                .reason
                .as_ref()
                .map(|reason| format!(" ({reason})"))
                .unwrap_or_default();
            return Look::Missing(format!("waiting for {name}{why}"));
        }
        for device in &connection.peer_devices {
            if target.volume.is_none_or(|volume| volume == device.volume) && !reached(device, goal)
            {
                return Look::Missing(format!("{name}: {}", device.replication_state));
            }
        }
    }
    Look::Reached
}

fn reached(device: &PeerDeviceStatus, goal: Goal) -> bool {
    match goal {
        Goal::Connected => device.replication_state >= ReplicationState::Established,
        Goal::InSync => device.replication_state == ReplicationState::Established,
    }
}

/// What a client is told: each resync, or what is missing.
fn steps(report: &ResourceStatus, target: &Target, missing: &str) -> Vec<Progress> {
    let mut steps = Vec::new();
    for connection in &report.connections {
        for device in &connection.peer_devices {
            let Some(sync) = &device.sync else { continue };
            let total_kib = sync.total_sectors / 2;
            steps.push(Progress {
                resource: report.name.clone(),
                volume: Some(device.volume),
                peer: Some(connection.name.clone()),
                phase: device.replication_state.to_string(),
                done_kib: total_kib.saturating_sub(device.sectors_to_go() / 2),
                total_kib,
                kib_per_second: (sync.mib_per_second_1() * 1024.0) as u64,
                remaining_seconds: device.remaining_seconds().map(|seconds| seconds as u64),
            });
        }
    }
    if steps.is_empty() {
        steps.push(Progress {
            resource: report.name.clone(),
            volume: target.volume,
            peer: target.peer.clone(),
            phase: missing.to_owned(),
            done_kib: 0,
            total_kib: 0,
            kib_per_second: 0,
            remaining_seconds: None,
        });
    }
    steps
}
