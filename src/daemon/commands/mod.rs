//! Commands of the control socket: which resources, volumes and peers are meant, and who carries them out.
//!
//! Refusals of the engine become DRBD's numbers, texts and exit codes here. A command for several volumes or peers goes on after a
//! refusal and answers with the first one.

pub(crate) mod lifecycle;
mod resize;
mod wait;

use std::rc::Rc;
use std::time::Duration;

use qrbd_control::{
    Command, KernelError, Progress, Refusal, RefusalKind, Request, Response, StateChangeError,
    StatusReport, Target, VersionInformation, refusal,
};
use qrbd_engine::api::Notice;
use qrbd_engine::state;
use qrbd_engine::units::{NodeId, VolumeNumber};
use tokio::sync::{broadcast, mpsc};

use crate::daemon::Daemon;
use crate::kernel::Unchanged;
use crate::resource::Shared;

/// Progress on its way to the client; a client that does not read misses steps.
pub(crate) type ProgressSender = mpsc::Sender<Progress>;

/// How long a peer may take to do what it was asked for.
const PEER_PATIENCE: Duration = Duration::from_secs(5);

/// True for commands that only wait: they end with their client.
pub(crate) fn only_waits(command: &Command) -> bool {
    matches!(
        command,
        Command::WaitConnect { .. } | Command::WaitSync { .. }
    )
}

/// Carries out a request.
pub(crate) async fn carry_out(
    daemon: &Rc<Daemon>,
    request: Request,
    progress: &ProgressSender,
) -> Response {
    let Request { command, target } = request;
    match command {
        Command::Version => Response::Version(VersionInformation {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: daemon.places.node.clone(),
            configuration_file: daemon.places.configuration.display().to_string(),
            process_id: std::process::id(),
        }),
        Command::Status | Command::Role | Command::Cstate | Command::Dstate => {
            status(daemon, &target)
        }
        Command::ShowGi | Command::GetGi => generations(daemon, &target),
        Command::WaitConnect { timeout_seconds } => {
            wait::wait(
                daemon,
                &target,
                wait::Goal::Connected,
                timeout_seconds,
                progress,
            )
            .await
        }
        Command::WaitSync { timeout_seconds } => {
            wait::wait(
                daemon,
                &target,
                wait::Goal::InSync,
                timeout_seconds,
                progress,
            )
            .await
        }
        Command::Up | Command::Adjust => lifecycle::up(daemon, &target, progress).await,
        Command::Down => lifecycle::down(daemon, &target).await,
        Command::Attach => lifecycle::attach(daemon, &target).await,
        Command::Resize {
            bytes,
            assume_clean,
        } => resize::resize(daemon, &target, bytes, assume_clean).await,
        Command::Primary { force } => primary(daemon, &target, force).await,
        Command::Secondary { force } => secondary(daemon, &target, force).await,
        command => for_engines(daemon, &target, &command).await,
    }
}

/// The resources that are up and meant.
fn resources(daemon: &Daemon, target: &Target) -> Result<Vec<Rc<Shared>>, Refusal> {
    match &target.resource {
        None => Ok(daemon.volumes.all()),
        Some(name) => match daemon.volumes.get(name) {
            Some(shared) => Ok(vec![shared]),
            None => Err(KernelError::ResourceUnknown.into()),
        },
    }
}

/// The volumes of a resource that are meant.
fn volumes(shared: &Shared, target: &Target) -> Result<Vec<VolumeNumber>, Refusal> {
    let plan = shared.plan();
    let all = plan.volumes.iter().map(|volume| volume.number);
    match target.volume {
        None => Ok(all.collect()),
        Some(number) => match all.into_iter().find(|volume| volume.0 == number) {
            Some(volume) => Ok(vec![volume]),
            None => Err(Refusal::from(KernelError::MinorInvalid)
                .with_detail(format!("{} has no volume {number}", plan.name))),
        },
    }
}

/// The peers of a resource that are meant.
fn peers(shared: &Shared, target: &Target) -> Result<Vec<NodeId>, Refusal> {
    let plan = shared.plan();
    match &target.peer {
        None => Ok(plan.peers.iter().map(|peer| peer.node_id).collect()),
        Some(name) => match plan.peers.iter().find(|peer| &peer.name == name) {
            Some(peer) => Ok(vec![peer.node_id]),
            None => Err(Refusal::from(KernelError::InvalidPeerNodeId)
                .with_detail(format!("{} has no peer '{name}'", plan.name))),
        },
    }
}

/// `primary`: answers when the kernel devices are there, or when it is known that they cannot be.
async fn primary(daemon: &Rc<Daemon>, target: &Target, force: bool) -> Response {
    let meant = match resources(daemon, target) {
        Ok(meant) => meant,
        Err(refusal) => return Response::Refused(refusal),
    };
    let mut first = None;
    let mut hints = Vec::new();
    for shared in meant {
        let lock = daemon.lock(&shared.name);
        let _guard = lock.lock().await;
        match promote(daemon, &shared, force).await {
            Ok(told) => hints.extend(told),
            Err(refusal) => {
                first.get_or_insert(refusal);
            }
        }
    }
    match first {
        Some(refusal) => Response::Refused(refusal),
        None => Response::Ok {
            text: hints.join("\n"),
        },
    }
}

/// Makes a resource Primary and attaches its kernel devices. The caller has its lock. Gives hints for the administrator.
///
/// # Errors
/// The engine's refusal, or that of a device that cannot be had.
pub(crate) async fn promote(
    daemon: &Rc<Daemon>,
    shared: &Rc<Shared>,
    force: bool,
) -> Result<Vec<String>, Refusal> {
    let mut notices = shared.listen();
    let unchanged = daemon.kernel.before_promotion(shared).await?;
    if let Err(found) = shared
        .command(qrbd_engine::Command::Promote { force })
        .await
    {
        let refusal = explained(shared, found);
        if refusal.exit_code != 0 {
            return Err(refusal);
        }
    }
    let unchanged = daemon
        .kernel
        .after_promotion(shared, unchanged, &mut notices)
        .await;
    Ok(daemon.kernel.attach(shared, &unchanged).await)
}

/// `secondary`: the kernel devices go first.
async fn secondary(daemon: &Rc<Daemon>, target: &Target, force: bool) -> Response {
    let meant = match resources(daemon, target) {
        Ok(meant) => meant,
        Err(refusal) => return Response::Refused(refusal),
    };
    let mut first = None;
    for shared in meant {
        let lock = daemon.lock(&shared.name);
        let _guard = lock.lock().await;
        if let Err(refusal) = demote(daemon, &shared, force).await {
            first.get_or_insert(refusal);
        }
    }
    answer(first)
}

/// Gives up the kernel devices of a resource and makes it Secondary. The caller has its lock.
///
/// # Errors
/// Somebody has a volume open, or the engine refuses; the devices are there then.
pub(crate) async fn demote(
    daemon: &Daemon,
    shared: &Rc<Shared>,
    force: bool,
) -> Result<(), Refusal> {
    let opened = || {
        shared
            .status()
            .volumes
            .iter()
            .any(|volume| volume.openers > 0)
    };
    // What the engine will refuse must not cost the devices.
    let released = (force || !opened()) && daemon.kernel.release(shared, force).await?;
    let Err(found) = shared.command(qrbd_engine::Command::Demote { force }).await else {
        return Ok(());
    };
    let refusal = explained(shared, found);
    if refusal.exit_code == 0 {
        return Ok(());
    }
    if released && shared.status().role == state::Role::Primary {
        daemon.kernel.attach(shared, &Unchanged::new()).await;
    }
    Err(refusal)
}

fn status(daemon: &Daemon, target: &Target) -> Response {
    let shared = match resources(daemon, target) {
        Ok(shared) => shared,
        Err(refusal) => return Response::Refused(refusal),
    };
    let mut report = StatusReport {
        resources: shared.iter().map(|shared| shared.report()).collect(),
    };
    for resource in &mut report.resources {
        if let Some(name) = &target.peer {
            resource
                .connections
                .retain(|connection| &connection.name == name);
        }
        if let Some(number) = target.volume {
            resource.devices.retain(|device| device.volume == number);
            for connection in &mut resource.connections {
                connection
                    .peer_devices
                    .retain(|device| device.volume == number);
            }
        }
    }
    daemon.kernel.complete(&mut report);
    report.sort();
    Response::Status(report)
}

fn generations(daemon: &Daemon, target: &Target) -> Response {
    match resources(daemon, target) {
        Err(refusal) => Response::Refused(refusal),
        Ok(shared) => {
            let reports = shared.iter().flat_map(|shared| shared.generations());
            Response::Generations(
                reports
                    .filter(|report| target.volume.is_none_or(|volume| volume == report.volume))
                    .collect(),
            )
        }
    }
}

/// Commands that the engine carries out for each resource, volume or peer that is meant.
async fn for_engines(daemon: &Daemon, target: &Target, command: &Command) -> Response {
    let meant = match resources(daemon, target) {
        Ok(meant) => meant,
        Err(refusal) => return Response::Refused(refusal),
    };
    let mut first = None;
    for shared in meant {
        let orders = match orders(&shared, target, command) {
            Ok(orders) => orders,
            Err(refusal) => {
                first.get_or_insert(refusal);
                continue;
            }
        };
        for order in orders {
            let asked = asked_of_peer(&shared, &order).map(|asked| (asked, shared.listen()));
            let mut result = shared.command(order).await;
            if let (Ok(()), Some(((peer, volume), notices))) = (&result, asked) {
                result = peer_followed(peer, volume, notices, PEER_PATIENCE).await;
            }
            if let Err(found) = result {
                let found = explained(&shared, found);
                if found.exit_code != 0 {
                    first.get_or_insert(found);
                }
            }
        }
    }
    answer(first)
}

/// Whom an order asks for something, and for which volume: a peer that is connected.
fn asked_of_peer(shared: &Shared, order: &qrbd_engine::Command) -> Option<(NodeId, VolumeNumber)> {
    let qrbd_engine::Command::InvalidateRemote { volume, peer } = *order else {
        return None;
    };
    let status = shared.status();
    let status = status.peers.iter().find(|status| status.node_id == peer)?;
    (status.connection == state::ConnectionState::Connected).then_some((peer, volume))
}

/// Waits until the peer does what it was asked for, which begins with a new handshake: a `wait-sync` right after the command must
/// not find the nodes in sync as they were before.
///
/// # Errors
/// [`state::Refusal::PeerRefused`] if it does not in time.
async fn peer_followed(
    peer: NodeId,
    volume: VolumeNumber,
    mut notices: broadcast::Receiver<Notice>,
    patience: Duration,
) -> Result<(), state::Refusal> {
    let begun = async {
        loop {
            match notices.recv().await {
                Ok(Notice::Replication {
                    peer: of,
                    volume: number,
                    from: state::ReplicationState::Established,
                    ..
                }) if (of, number) == (peer, volume) => return,
                Ok(_) => {}
                // What was missed may have been it, or the resource is gone.
                Err(_) => return,
            }
        }
    };
    tokio::time::timeout(patience, begun)
        .await
        .map_err(|_| state::Refusal::PeerRefused)
}

/// What the engine is told.
fn orders(
    shared: &Shared,
    target: &Target,
    command: &Command,
) -> Result<Vec<qrbd_engine::Command>, Refusal> {
    use qrbd_engine::Command as Order;
    let each_volume = |order: &dyn Fn(VolumeNumber) -> Order| -> Result<Vec<Order>, Refusal> {
        Ok(volumes(shared, target)?.into_iter().map(order).collect())
    };
    let each_peer = |order: &dyn Fn(NodeId) -> Order| -> Result<Vec<Order>, Refusal> {
        Ok(peers(shared, target)?.into_iter().map(order).collect())
    };
    let each_pair = |order: &dyn Fn(VolumeNumber, NodeId) -> Order| -> Result<Vec<Order>, Refusal> {
        let peers = peers(shared, target)?;
        let volumes = volumes(shared, target)?;
        Ok(volumes
            .iter()
            .flat_map(|&volume| peers.iter().map(move |&peer| order(volume, peer)))
            .collect())
    };
    match *command {
        Command::Detach { force } => each_volume(&|volume| Order::Detach { volume, force }),
        Command::Connect { discard_my_data } => each_peer(&|peer| Order::Connect {
            peer,
            discard_my_data,
        }),
        Command::Disconnect { force } => each_peer(&|peer| Order::Disconnect { peer, force }),
        Command::Invalidate => each_volume(&|volume| Order::Invalidate { volume }),
        Command::InvalidateRemote => {
            each_pair(&|volume, peer| Order::InvalidateRemote { volume, peer })
        }
        Command::Outdate => each_volume(&|volume| Order::Outdate { volume }),
        Command::PauseSync => each_pair(&|volume, peer| Order::PauseSync { volume, peer }),
        Command::ResumeSync => each_pair(&|volume, peer| Order::ResumeSync { volume, peer }),
        Command::NewCurrentUuid { clear_bitmap } => each_volume(&|volume| Order::NewCurrentUuid {
            volume,
            clear_bitmap,
        }),
        Command::SuspendIo => Ok(vec![Order::SuspendIo]),
        Command::ResumeIo => Ok(vec![Order::ResumeIo]),
        ref other => Err(Refusal::other(
            format!("this daemon does not carry out {other:?}"),
            refusal::EXIT_FAILURE,
        )),
    }
}

/// Done, or the refusal.
fn answer(refusal: Option<Refusal>) -> Response {
    match refusal {
        None => Response::Ok {
            text: String::new(),
        },
        Some(refusal) => Response::Refused(refusal),
    }
}

/// The engine's refusal in DRBD's words, with what helps a person.
fn explained(shared: &Shared, found: state::Refusal) -> Refusal {
    let refusal = translated(found);
    if found == state::Refusal::PeerNotFenced {
        return refusal.with_detail(
            "the fence-peer handler failed, or there is none: the log has what it said. Bring the peer back, or mend the handler; with \
             --force a peer that goes on as well is a split brain"
                .to_owned(),
        );
    }
    if found != state::Refusal::DeviceInUse {
        return refusal;
    }
    let status = shared.status();
    let mut holders: Vec<String> = status
        .volumes
        .iter()
        .filter(|volume| volume.openers > 0)
        .map(|volume| {
            format!(
                "{}/{}: {}",
                shared.name,
                volume.number,
                match volume.openers {
                    1 => "an NBD client has it open".to_owned(),
                    count => format!("{count} NBD clients have it open"),
                }
            )
        })
        .collect();
    if status.suspended_user || status.suspended_fencing {
        holders.push(format!(
            "I/O is suspended: 'qrbdadm resume-io {0}' lets what waits go on, 'qrbdadm secondary --force {0}' fails it",
            shared.name
        ));
    }
    refusal.with_detail(holders.join("\n"))
}

/// The engine's refusal in DRBD's words.
fn translated(found: state::Refusal) -> Refusal {
    let code = found.code();
    let text = found.text().to_owned();
    if let Some(error) = StateChangeError::from_number(code) {
        return Refusal {
            text,
            ..Refusal::from(error)
        };
    }
    Refusal {
        kind: u16::try_from(code).map_or(RefusalKind::Other, RefusalKind::Kernel),
        text,
        detail: String::new(),
        exit_code: refusal::EXIT_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_peer_was_asked_for_is_done_when_its_volume_leaves_the_established_state() {
        let leaves = |peer, volume| Notice::Replication {
            peer: NodeId(peer),
            volume: VolumeNumber(volume),
            from: state::ReplicationState::Established,
            to: state::ReplicationState::Off,
            rule: "peer-renegotiates",
        };
        let sender = broadcast::Sender::new(8);
        let patience = Duration::from_millis(20);
        let asked = |notices| peer_followed(NodeId(1), VolumeNumber(0), notices, patience);

        let notices = sender.subscribe();
        sender.send(leaves(1, 0)).unwrap();
        assert_eq!(asked(notices).await, Ok(()));

        let notices = sender.subscribe();
        sender.send(leaves(2, 0)).unwrap();
        sender.send(leaves(1, 1)).unwrap();
        assert_eq!(asked(notices).await, Err(state::Refusal::PeerRefused));
    }

    #[test]
    fn refusals_keep_the_numbers_and_exit_codes_that_scripts_know() {
        let no_data = translated(state::Refusal::NoUpToDateDisk);
        assert_eq!(
            (no_data.kind, no_data.exit_code),
            (RefusalKind::StateChange(-2), 17)
        );
        assert_eq!(
            no_data.message("r0"),
            "r0: State change failed: (-2) Need access to UpToDate data"
        );
        let held = translated(state::Refusal::DeviceInUse);
        assert_eq!(
            (held.text.as_str(), held.exit_code),
            ("Device is held open by someone", 11)
        );
        assert_eq!(translated(state::Refusal::LowerThanOutdated).exit_code, 5);
        assert_eq!(translated(state::Refusal::AlreadyStandAlone).exit_code, 0);
        let attached = translated(state::Refusal::DiskConfigured);
        assert_eq!(
            (attached.kind, attached.exit_code),
            (RefusalKind::Kernel(124), 10)
        );
    }
}
