//! After a restart of the daemon under a device in use: back to Primary, if the engine's rules allow it.
//!
//! Peers are given a moment to connect first, so that a node that took over meanwhile is heard before this one decides; after a planned
//! restart only those that were connected before.

use std::rc::Rc;
use std::time::Duration;

use qrbd_engine::state::{ConnectionState, Role};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::blocking::{self, Found};
use crate::commands;
use crate::daemon::Daemon;
use crate::resource::Shared;

/// How long peers may take to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts, at first and after [`CONNECT_PATIENCE`].
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Promotes a resource again whose devices outlived an earlier daemon. Returns when it is Primary, or when a person has to decide.
pub(crate) async fn resume(daemon: &Rc<Daemon>, shared: &Rc<Shared>) {
    let kernel = &daemon.kernel;
    let inherited = kernel.inherited_names();
    let mut waiting = Vec::new();
    // After a planned restart those count that were connected; after a crash all, and nothing is known of any.
    let mut expected = Some(Vec::new());
    for (volume, device) in kernel.remembered.devices(&shared.name) {
        match blocking::look(&kernel.places, device.index, &device.backend) {
            Found::Ours => {
                waiting.push(kernel.places.device(device.index).display().to_string());
                // Where the sockets are not here any more, time has passed.
                let handed = device
                    .handed
                    .filter(|handed| inherited.contains(&handed.name));
                match (&mut expected, handed) {
                    (Some(expected), Some(handed)) => expected.extend(handed.peers),
                    (expected, _) => *expected = None,
                }
            }
            // Disconnected meanwhile.
            _ => kernel
                .remembered
                .forget_device(&(shared.name.to_string(), volume)),
        }
    }
    if waiting.is_empty() {
        return;
    }
    let devices = waiting.join(", ");
    info!("{}: {devices} waits: becoming Primary again", shared.name);
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let still_up = daemon.volumes.get(&shared.name);
        let status = shared.status();
        if !still_up.is_some_and(|up| Rc::ptr_eq(&up, shared))
            || status.role == Role::Primary
            || kernel.is_ending()
        {
            return;
        }
        let late = begun.elapsed() >= CONNECT_PATIENCE;
        let pause = if late { PAUSES.1 } else { PAUSES.0 };
        let connected = |state| state == ConnectionState::Connected;
        if let Some(peer) = status
            .peers
            .iter()
            .find(|peer| connected(peer.connection) && peer.role == Role::Primary)
        {
            let peer = shared.plan().node_name(peer.node_id);
            let why = format!(
                "{peer} is Primary. 'qrbdadm secondary --force {}' disconnects the device, and its users get errors",
                shared.name
            );
            kernel.distrust_all(&shared.name);
            return give_up(shared, &devices, &why);
        }
        let all_there = status.peers.iter().all(|peer| {
            connected(peer.connection)
                || expected
                    .as_ref()
                    .is_some_and(|expected| !expected.contains(&peer.node_id.0))
        });
        if (!late && !all_there) || shared.compares() {
            tokio::time::sleep(pause).await;
            continue;
        }
        let lock = daemon.lock(&shared.name);
        let guard = lock.lock().await;
        match kernel.before_promotion(shared).await {
            Err(refusal) => {
                let why = match refusal.detail.as_str() {
                    "" => &refusal.text,
                    detail => detail,
                };
                return give_up(shared, &devices, why);
            }
            Ok(_) if shared.status().role == Role::Primary || kernel.is_ending() => return,
            Ok(_) => {}
        }
        match commands::promote(daemon, shared, false).await {
            // What kept a device from being attached is in the log.
            Ok(told) => {
                if kernel.serves(&shared.name) {
                    let seconds = begun.elapsed().as_secs_f64();
                    info!("{}: {devices} goes on after {seconds:.1} s", shared.name);
                } else {
                    give_up(shared, &devices, &told.join("\n"));
                }
                return;
            }
            Err(refusal) => {
                let text = refusal.message(&shared.name);
                if late && told != text {
                    warn!("{devices} still waits: {text}");
                    told = text;
                }
            }
        }
        drop(guard);
        tokio::time::sleep(pause).await;
    }
}

fn give_up(shared: &Shared, devices: &str, why: &str) {
    error!(
        "{}: {devices} was in use when qrbdd ended and is not served any more, its users wait: {why}",
        shared.name
    );
}
