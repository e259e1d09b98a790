//! Handlers: the administrator's programs that are run at events, in DRBD's environment.
//!
//! One runner for each resource runs them one after the other with `sh -c`, so the owner never waits and the events of a resource stay
//! in order. `fence-peer`, for whose answer clients may wait, does not queue behind them. Bounds: [`QUEUE`] calls wait at most, further ones are dropped and logged; each run has a time limit (`cmd-timeout-long`),
//! at which its process group is killed. Output goes to the log.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use qrbd_engine::state::{ConnectionState, DiskState};
use qrbd_engine::status::Status;
use qrbd_engine::units::{NodeId, VolumeNumber};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::plan::{PeerPlan, ResourcePlan, VolumePlan};

/// Calls that wait for their turn.
const QUEUE: usize = 64;
/// Bytes of one handler's output that are logged.
const OUTPUT_BYTES: u64 = 64 << 10;

/// How long a handler may take by `cmd-timeout-long`; DRBD's 0 is no limit.
pub(crate) fn time_limit(seconds: u32) -> Duration {
    match seconds {
        0 => Duration::MAX,
        seconds => Duration::from_secs(u64::from(seconds)),
    }
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct HandlerCall {
    resource: String,
    name: &'static str,
    command: String,
    timeout: Duration,
    environment: BTreeMap<String, String>,
}

impl HandlerCall {
    /// The call of `command` for the event `name`, with everything that scripts expect in their environment.
    pub(crate) fn new(
        plan: &ResourcePlan,
        status: &Status,
        name: &'static str,
        command: &str,
        peer: Option<NodeId>,
        volume: Option<VolumeNumber>,
    ) -> HandlerCall {
        let mut environment = BTreeMap::new();
        let mut set = |key: String, value: String| {
            environment.insert(key, value);
        };
        set("DRBD_RESOURCE".into(), plan.name.clone());
        let volumes: Vec<&VolumePlan> = plan
            .volumes
            .iter()
            .filter(|plan| volume.is_none_or(|volume| plan.number == volume))
            .collect();
        let list = |value: &dyn Fn(&VolumePlan) -> String| {
            volumes
                .iter()
                .map(|plan| value(plan))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let minor = |plan: &VolumePlan| {
            plan.minor
                .map(|minor| minor.to_string())
                .unwrap_or_default()
        };
        let disk = |plan: &VolumePlan| {
            plan.disk
                .as_ref()
                .map_or_else(|| "none".to_owned(), |path| path.display().to_string())
        };
        set("DRBD_VOLUME".into(), list(&|plan| plan.number.to_string()));
        set("DRBD_MINOR".into(), list(&minor));
        set("DRBD_LL_DISK".into(), list(&disk));
        if volume.is_some() {
            set("DRBD_BACKING_DEV".into(), list(&disk));
        }
        for plan in &plan.volumes {
            set(format!("DRBD_MINOR_{}", plan.number), minor(plan));
            set(format!("DRBD_BACKING_DEV_{}", plan.number), disk(plan));
        }
        for (node, name) in &plan.node_names {
            set(format!("DRBD_NODE_ID_{node}"), name.clone());
        }
        set(
            "DRBD_PEERS".into(),
            plan.peers
                .iter()
                .map(|peer| peer.name.as_str())
                .collect::<Vec<_>>()
                .join(" "),
        );
        set("UP_TO_DATE_NODES".into(), up_to_date_nodes(plan, status));
        // An event that concerns no peer in particular concerns the only one there is.
        let only = || (plan.peers.len() == 1).then(|| &plan.peers[0]);
        if let Some(peer) = peer
            .and_then(|node| plan.peers.iter().find(|peer| peer.node_id == node))
            .or_else(only)
        {
            set_peer(&mut environment, peer, status);
        }
        HandlerCall {
            resource: plan.name.clone(),
            name,
            command: command.to_owned(),
            timeout: plan.handler_timeout,
            environment,
        }
    }
}

/// DRBD's mask of the nodes whose data are known to be good: this one's, and those of connected peers.
fn up_to_date_nodes(plan: &ResourcePlan, status: &Status) -> String {
    let mut mask = 0_u64;
    let good = |disk: DiskState| disk == DiskState::UpToDate;
    if status.volumes.iter().all(|volume| good(volume.told_disk)) {
        mask |= 1 << plan.node_id.0;
    }
    for peer in &status.peers {
        if peer.connection == ConnectionState::Connected
            && peer.devices.iter().all(|device| good(device.peer_disk))
        {
            mask |= 1 << peer.node_id.0;
        }
    }
    format!("{mask:#x}")
}

fn set_peer(environment: &mut BTreeMap<String, String>, peer: &PeerPlan, status: &Status) {
    let family = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    };
    let state = status
        .peers
        .iter()
        .find(|known| known.node_id == peer.node_id);
    for (key, value) in [
        ("DRBD_PEER", peer.name.clone()),
        ("DRBD_PEER_NODE_ID", peer.node_id.to_string()),
        ("DRBD_PEER_ADDRESS", peer.remote.ip().to_string()),
        ("DRBD_PEER_AF", family(&peer.remote).to_owned()),
        ("DRBD_MY_ADDRESS", peer.local.ip().to_string()),
        ("DRBD_MY_AF", family(&peer.local).to_owned()),
        (
            "DRBD_CSTATE",
            state
                .map(|state| state.connection.to_string())
                .unwrap_or_default(),
        ),
    ] {
        environment.insert(key.to_owned(), value);
    }
}

/// Who waits for the exit code of a call; it gets `None` if the handler did not end by itself in time.
type Done = Box<dyn FnOnce(Option<i32>)>;

/// Where calls are queued. Dropping it lets the runner end after the calls that wait.
#[derive(Clone)]
pub(crate) struct Handlers {
    queue: mpsc::Sender<(HandlerCall, Option<Done>)>,
    configuration: Rc<str>,
}

impl Handlers {
    /// Starts a runner. `configuration` is the path that scripts get as `DRBD_CONF`.
    pub(crate) fn start(configuration: String) -> Handlers {
        let (queue, mut calls) = mpsc::channel::<(HandlerCall, Option<Done>)>(QUEUE);
        let configuration: Rc<str> = configuration.into();
        let path = Rc::clone(&configuration);
        tokio::task::spawn_local(async move {
            while let Some((call, done)) = calls.recv().await {
                let status = run(&call, &path).await;
                if let Some(done) = done {
                    done(status.and_then(|status| status.code()));
                }
            }
        });
        Handlers {
            queue,
            configuration,
        }
    }

    /// Runs a call at once, beside those that wait; `done` gets its exit code, `None` if it did not end by itself in time.
    pub(crate) fn run_now(&self, call: HandlerCall, done: impl FnOnce(Option<i32>) + 'static) {
        let configuration = Rc::clone(&self.configuration);
        tokio::task::spawn_local(async move {
            let status = run(&call, &configuration).await;
            done(status.and_then(|status| status.code()));
        });
    }

    /// Queues a call.
    pub(crate) fn call(&self, call: HandlerCall) {
        self.enqueue(call, None);
    }

    /// Queues a call; `done` gets its exit code, `None` if it did not end by itself in time or could not be queued.
    pub(crate) fn ask(&self, call: HandlerCall, done: impl FnOnce(Option<i32>) + 'static) {
        self.enqueue(call, Some(Box::new(done)));
    }

    fn enqueue(&self, call: HandlerCall, done: Option<Done>) {
        let Err(refused) = self.queue.try_send((call, done)) else {
            return;
        };
        let (call, done) = refused.into_inner();
        warn!(
            "{}: handler {} is dropped: {QUEUE} calls are waiting",
            call.resource, call.name
        );
        if let Some(done) = done {
            // Not from within the owner's round.
            tokio::task::spawn_local(async move { done(None) });
        }
    }
}

/// Runs a handler to its end or its time limit; `None` if it could not be run to its end.
async fn run(call: &HandlerCall, configuration: &str) -> Option<ExitStatus> {
    let HandlerCall { resource, name, .. } = call;
    info!("{resource}: handler {name}: {}", call.command);
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(&call.command)
        .env_clear()
        .env("HOME", "/")
        .env("TERM", "linux")
        .env(
            "PATH",
            "/sbin:/usr/sbin:/bin:/usr/bin:/usr/local/sbin:/usr/local/bin",
        )
        .env("DRBD_CONF", configuration)
        .envs(&call.environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            warn!("{resource}: handler {name} cannot be started: {error}");
            return None;
        }
    };
    let group = child.id();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let output = async {
        tokio::join!(
            log_lines(resource, name, stdout),
            log_lines(resource, name, stderr)
        )
    };
    let whole = async {
        // A grandchild in the background may hold the pipes open: the end of the shell counts.
        tokio::select! {
            biased;
            status = child.wait() => status,
            status = async { output.await; child_never_ends().await } => status,
        }
    };
    match tokio::time::timeout(call.timeout, whole).await {
        Ok(Ok(status)) => {
            info!("{resource}: handler {name}: {status}");
            Some(status)
        }
        Ok(Err(error)) => {
            warn!("{resource}: handler {name}: {error}");
            None
        }
        Err(_) => {
            warn!(
                "{resource}: handler {name} did not end within {} s and is killed",
                call.timeout.as_secs()
            );
            if let Some(group) = group.and_then(|group| i32::try_from(group).ok()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            None
        }
    }
}

/// The other branch of the race decides.
async fn child_never_ends() -> std::io::Result<ExitStatus> {
    std::future::pending().await
}

async fn log_lines(resource: &str, name: &str, stream: Option<impl AsyncRead + Unpin>) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream.take(OUTPUT_BYTES)).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        info!(
            "{resource}: handler {name}: {}",
            String::from_utf8_lossy(&line).escape_debug()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(command: &str, seconds: u32) -> Option<i32> {
        let call = HandlerCall {
            resource: "r0".to_owned(),
            name: "split-brain",
            command: command.to_owned(),
            timeout: time_limit(seconds),
            environment: BTreeMap::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let status = runtime.block_on(run(&call, "/dev/null"));
        status.and_then(|status| status.code())
    }

    #[test]
    fn a_handler_is_killed_at_its_limit_and_zero_is_none() {
        assert_eq!(ends("sleep 600", 1), None);
        assert_eq!(ends("sleep 0.2; exit 3", 0), Some(3));
    }
}
