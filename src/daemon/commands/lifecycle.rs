//! `up`, `down`, `adjust`, `attach`: bringing a resource to what the configuration says, and away.
//!
//! `up` and `adjust` are one: a resource that is not up is made; one that is gets the disks it has not, the connections it wants, and
//! the options that changed. A step that is refused does not undo the steps before it: the resource stays up as far as it came.

use std::rc::Rc;
use std::time::Duration;

use qrbd_control::{KernelError, LastKnown, Progress, Refusal, RefusalKind, Response, Target};
use qrbd_engine::Command as Order;
use qrbd_engine::state::{ConnectionState, DiskState, Role};
use qrbd_engine::units::{NodeId, VolumeNumber};
use tracing::{info, warn};

use super::{ProgressSender, answer, demote, explained, resources, volumes};
use crate::attach::AttachRequest;
use crate::daemon::Daemon;
use crate::kernel::Unchanged;
use crate::plan::ResourcePlan;
use crate::resource::Shared;

/// How long the end of a resource in use may take.
const PART_PATIENCE: Duration = Duration::from_secs(5);

/// `up` and `adjust`.
pub(super) async fn up(
    daemon: &Rc<Daemon>,
    target: &Target,
    progress: &ProgressSender,
) -> Response {
    let loaded = daemon.configuration();
    let names: Vec<String> = match &target.resource {
        Some(name) => vec![name.clone()],
        None => loaded
            .local_resources()
            .map(|resource| resource.name.clone())
            .collect(),
    };
    let mut first = None;
    let mut hints = daemon.news_of(&loaded);
    let mut plans = Vec::new();
    for name in names {
        let plan = match daemon.plan(&loaded, &name) {
            Ok(plan) => plan,
            Err(refusal) => {
                first.get_or_insert(refusal);
                continue;
            }
        };
        plans.push(plan.clone());
        match up_one(daemon, plan, progress).await {
            Ok(more) => hints.extend(more),
            Err(refusal) => {
                first.get_or_insert(refusal);
            }
        }
    }
    hints.extend(daemon.kernel.warnings(&plans).await);
    match first {
        Some(refusal) => Response::Refused(refusal),
        None => Response::Ok {
            text: hints.join("\n"),
        },
    }
}

/// Brings one resource up, or to its new plan. Gives hints for the administrator.
///
/// # Errors
/// The first refusal.
pub(crate) async fn up_one(
    daemon: &Rc<Daemon>,
    plan: ResourcePlan,
    progress: &ProgressSender,
) -> Result<Vec<String>, Refusal> {
    let lock = daemon.lock(&plan.name);
    let _guard = lock.lock().await;
    let running = match daemon.volumes.get(&plan.name) {
        Some(shared) => follow(daemon, shared, &plan).await?,
        None => None,
    };
    let shared = match running {
        Some(shared) => shared,
        None => {
            info!("{}: up", plan.name);
            daemon
                .start(plan.clone())
                .map_err(|error| Refusal::other(format!("{error:#}"), 10))?
        }
    };
    daemon.kernel.remember_up(&plan.name, true);
    let mut first = None;
    let mut hints = Vec::new();
    if let Err(text) = daemon.tcp_fronts.place(&shared, plan.nbd_listen) {
        warn!("{}: {text}", plan.name);
        hints.push(format!("{}: {text}", plan.name));
    }
    for volume in &plan.volumes {
        let diskless = shared
            .status()
            .volumes
            .iter()
            .any(|status| status.number == volume.number && status.disk == DiskState::Diskless);
        if volume.disk.is_some() && diskless {
            tell(progress, &plan.name, Some(volume.number), "attaching");
            if let Err(refusal) = attach_one(daemon, &shared, volume.number).await {
                warn!(
                    "{}",
                    refusal.message(&format!("{}/{}", plan.name, volume.number))
                );
                first.get_or_insert(refusal);
            }
        }
    }
    for peer in &plan.peers {
        if connection(&shared, peer.node_id) == Some(ConnectionState::StandAlone) {
            let order = Order::Connect {
                peer: peer.node_id,
                discard_my_data: false,
            };
            if let Err(refusal) = shared.command(order).await {
                first.get_or_insert(explained(&shared, refusal));
            }
        }
        if let Some(trouble) = shared
            .trouble_with(peer.node_id)
            .filter(|trouble| trouble.here)
        {
            if trouble.local_address {
                first.get_or_insert(
                    Refusal::from(KernelError::LocalAddress).with_detail(trouble.text),
                );
            } else {
                hints.push(format!(
                    "{}: not connected to {}: {}",
                    plan.name, peer.name, trouble.text
                ));
            }
        }
    }
    if shared.status().role == Role::Primary && daemon.kernel.lacks_device(&plan) {
        hints.extend(daemon.kernel.attach(&shared, &Unchanged::new()).await);
    }
    match first {
        Some(refusal) => Err(refusal),
        None => Ok(hints),
    }
}

/// Brings a running resource to a new plan as far as that goes without disks and connections. `None`: it was taken down, to be made
/// anew.
async fn follow(
    daemon: &Rc<Daemon>,
    shared: Rc<Shared>,
    plan: &ResourcePlan,
) -> Result<Option<Rc<Shared>>, Refusal> {
    let old = shared.plan();
    if old == *plan {
        return Ok(Some(shared));
    }
    if !old.same_shape(plan) {
        if shared.status().role == Role::Primary {
            let why = "other volumes, peers or node-ids need the resource to be taken down and up, which 'adjust' does not do to a \
                       Primary; nothing was changed";
            return Err(Refusal::from(KernelError::ResourceInUse).with_detail(why));
        }
        info!(
            "{}: other volumes, peers or node-ids need the resource to be taken down and up",
            plan.name
        );
        down_one(daemon, &shared).await?;
        return Ok(None);
    }
    for (before, peer) in old.peers.iter().zip(&plan.peers) {
        // Connected again where the rest of the command finds it StandAlone.
        if !before.same_connection(peer)
            && connection(&shared, peer.node_id) != Some(ConnectionState::StandAlone)
        {
            disconnect(&shared, peer.node_id).await?;
        }
        if before != peer {
            info!(
                "{}: changed options of the connection to {}",
                plan.name, peer.name
            );
            shared
                .reconfigure_peer(peer, !before.same_way(peer))
                .map_err(|refusal| explained(&shared, refusal))?;
        }
    }
    shared.replace_plan(plan.clone());
    Ok(Some(shared))
}

fn connection(shared: &Shared, peer: NodeId) -> Option<ConnectionState> {
    shared
        .status()
        .peers
        .iter()
        .find(|status| status.node_id == peer)
        .map(|status| status.connection)
}

async fn disconnect(shared: &Shared, peer: NodeId) -> Result<(), Refusal> {
    match shared
        .command(Order::Disconnect { peer, force: false })
        .await
    {
        Ok(()) => Ok(()),
        Err(refusal) => match explained(shared, refusal) {
            refusal if refusal.exit_code == 0 => Ok(()),
            refusal => Err(refusal),
        },
    }
}

fn tell(progress: &ProgressSender, resource: &str, volume: Option<VolumeNumber>, phase: &str) {
    let step = Progress {
        resource: resource.to_owned(),
        volume: volume.map(|volume| volume.0),
        peer: None,
        phase: phase.to_owned(),
        done_kib: 0,
        total_kib: 0,
        kib_per_second: 0,
        remaining_seconds: None,
    };
    // A client that does not read misses it.
    let _ = progress.try_send(step);
}

/// `attach`.
pub(super) async fn attach(daemon: &Rc<Daemon>, target: &Target) -> Response {
    let meant = match resources(daemon, target) {
        Ok(meant) => meant,
        Err(refusal) => return Response::Refused(refusal),
    };
    let loaded = daemon.configuration();
    let mut first = None;
    for shared in meant {
        let lock = daemon.lock(&shared.name);
        let _guard = lock.lock().await;
        // The configuration may name another disk by now.
        if let Ok(plan) = daemon.plan(&loaded, &shared.name)
            && shared.plan().same_shape(&plan)
        {
            let peers = shared.plan().peers;
            shared.replace_plan(ResourcePlan { peers, ..plan });
        }
        match volumes(&shared, target) {
            Err(refusal) => {
                first.get_or_insert(refusal);
            }
            Ok(numbers) => {
                for number in numbers {
                    if let Err(refusal) = attach_one(daemon, &shared, number).await {
                        first.get_or_insert(refusal);
                    }
                }
            }
        }
    }
    answer(first)
}

/// Attaches the disk that the plan names.
async fn attach_one(
    daemon: &Daemon,
    shared: &Rc<Shared>,
    number: VolumeNumber,
) -> Result<(), Refusal> {
    let plan = shared.plan();
    let volume = plan.volume(number).ok_or(KernelError::MinorInvalid)?;
    if shared
        .status()
        .volumes
        .iter()
        .any(|status| status.number == number && status.disk != DiskState::Diskless)
    {
        return Err(KernelError::DiskConfigured.into());
    }
    let Some(disk) = volume.disk.clone() else {
        let detail = format!("{}/{number} has 'disk none' on this node", plan.name);
        return Err(Refusal::from(KernelError::NoDisk).with_detail(detail));
    };
    let object = format!("{}/{number}", plan.name);
    let request = AttachRequest {
        object: object.clone(),
        disk,
        meta_disk: volume.meta_disk.clone(),
        al_extents: volume.al_extents,
        node_id: plan.node_id,
        last_known: LastKnown::file(
            &daemon.places.state,
            &daemon.places.node,
            &plan.name,
            number.0,
        ),
    };
    // Opening and reading metadata may take long on a slow disk.
    let attached = tokio::task::spawn_blocking(move || crate::attach::attach(&request))
        .await
        .map_err(|error| Refusal::other(format!("attach: {error}"), 20))??;
    for notice in &attached.notices {
        warn!("{object}: {notice}");
    }
    shared
        .attach(number, attached)
        .await
        .map_err(|refusal| explained(shared, refusal))
}

/// `down`: not configured is success.
pub(super) async fn down(daemon: &Rc<Daemon>, target: &Target) -> Response {
    let Ok(meant) = resources(daemon, target) else {
        return answer(None);
    };
    let mut first = None;
    for shared in meant {
        let lock = daemon.lock(&shared.name);
        let _guard = lock.lock().await;
        // It may have gone while this waited.
        let Some(shared) = daemon.volumes.get(&shared.name) else {
            continue;
        };
        match down_one(daemon, &shared).await {
            Ok(()) => daemon.kernel.remember_up(&shared.name, false),
            Err(refusal) => {
                first.get_or_insert(refusal);
            }
        }
    }
    answer(first)
}

async fn down_one(daemon: &Daemon, shared: &Rc<Shared>) -> Result<(), Refusal> {
    demote(daemon, shared, false).await?;
    disconnect_all(shared).await?;
    detach_all(shared).await?;
    info!("{}: down", shared.name);
    daemon.forget(shared).await;
    Ok(())
}

async fn disconnect_all(shared: &Shared) -> Result<(), Refusal> {
    for peer in &shared.plan().peers {
        disconnect(shared, peer.node_id).await?;
    }
    Ok(())
}

async fn detach_all(shared: &Shared) -> Result<(), Refusal> {
    for volume in &shared.plan().volumes {
        let order = Order::Detach {
            volume: volume.number,
            force: false,
        };
        let detached = shared.command(order).await;
        detached.map_err(|refusal| explained(shared, refusal))?;
    }
    Ok(())
}

/// The daemon ends: as `down`, but what is refused stays as it is, for the next start to recover. With `goes_on`, what has a kernel device
/// is not even tried.
pub(crate) async fn end(daemon: &Daemon, shared: &Rc<Shared>, goes_on: bool) {
    if goes_on && daemon.kernel.serves(&shared.name) {
        return end_in_use(daemon, shared, goes_on).await;
    }
    if let Err(refusal) = down_one(daemon, shared).await {
        let held = matches!(refusal.kind, RefusalKind::StateChange(-12));
        let why = if held {
            "clients have it open"
        } else {
            &refusal.text
        };
        warn!("{}: left as it is: {why}", shared.name);
        if daemon.kernel.serves(&shared.name) {
            end_in_use(daemon, shared, goes_on).await;
        } else {
            daemon.forget(shared).await;
        }
    }
}

/// Ends a resource whose kernel devices are in use: they wait for the next daemon, and the role is given up in order, so that the next one
/// has nothing to recover.
async fn end_in_use(daemon: &Daemon, shared: &Rc<Shared>, goes_on: bool) {
    daemon.kernel.keep(shared, goes_on).await;
    let parted = tokio::time::timeout(PART_PATIENCE, async {
        let demoted = shared.command(Order::Demote { force: true }).await;
        demoted.map_err(|refusal| explained(shared, refusal))?;
        disconnect_all(shared).await?;
        daemon.kernel.vouch(shared);
        detach_all(shared).await
    });
    match parted.await {
        Ok(Ok(())) => {}
        Ok(Err(refusal)) => warn!("{}", refusal.message(&shared.name)),
        Err(_) => warn!(
            "{}: not ended in order within {} s",
            shared.name,
            PART_PATIENCE.as_secs()
        ),
    }
    daemon.kernel.vouch(shared);
    daemon.forget(shared).await;
}
