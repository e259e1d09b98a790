//! The process: start, signals, orderly end.
//!
//! Invariants: one daemon for each run directory (a lock that the kernel gives up with the process); the control socket answers from
//! the moment at which readiness is reported; a stop ends within
//! [`CLIENT_PATIENCE`] and [`STOP_PATIENCE`].
//!
//! SIGTERM and SIGINT stop it; SIGUSR2 makes it execute its program anew (an upgrade) under the same process id. In both cases kernel
//! devices in use are handed over: to the service manager's store, or to the new program itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use qrbd_control::{Command, Request, Response, SOCKET_NAME, Target};
use qrbd_kernel_device::inherit::{self, Inherited};
use tokio::runtime::LocalOptions;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use crate::arguments::Arguments;
use crate::daemon::{Daemon, Places};
use crate::kernel::{Handed, KernelDevices, resume};
use crate::volumes::Volumes;
use crate::{commands, control_socket, front, service_manager};

/// File that tells who uses the run directory.
const LOCK_NAME: &str = "qrbdd.lock";
/// File name of the NBD socket in the run directory.
const NBD_SOCKET_NAME: &str = "nbd.sock";
/// How long the NBD clients may take to go.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
/// How long the resources may take to go.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// If it cannot start: another daemon runs, a directory cannot be used, the kernel lacks io_uring.
pub fn run(arguments: Arguments, inherited: Vec<Inherited>) -> anyhow::Result<()> {
    for refused in qrbd_kernel_device::process::protect() {
        debug!("under memory pressure a kernel device may stall: {refused}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("no runtime")?;
    // Local tasks are the runtime's own: a `LocalSet` inside of another runtime is woken by a system call each time.
    let result = runtime.block_on(main(arguments, inherited));
    // Helper threads that hang in a disk must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result? {
        Next::End => Ok(()),
        Next::Again(handed) => Err(execute_again(&handed)),
    }
}

/// What follows the daemon's end.
enum Next {
    /// Nothing.
    End,
    /// The program is executed anew, with these sockets.
    Again(Vec<Handed>),
}

async fn main(arguments: Arguments, inherited: Vec<Inherited>) -> anyhow::Result<Next> {
    let node = match arguments.node {
        Some(node) => node,
        None => nix::unistd::gethostname()
            .context("the host name is not known: use --node")?
            .to_string_lossy()
            .into_owned(),
    };
    let run_dir = &arguments.run_dir;
    std::fs::create_dir_all(run_dir)
        .with_context(|| format!("the directory {} cannot be made", run_dir.display()))?;
    let _lock = lock(run_dir)?;
    let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
    let mut again = signal(SignalKind::user_defined2()).context("no signal handler")?;
    // `systemctl reload` and closed terminals: nothing is kept of the configuration, so there is nothing to reread.
    let mut hang_up = signal(SignalKind::hangup()).context("no signal handler")?;

    allow_descriptors();
    // The working directory may change for handlers; paths must not.
    let configuration =
        std::path::absolute(&arguments.config_file).context("the path of the configuration")?;
    let nbd_socket = run_dir.join(NBD_SOCKET_NAME);
    let volumes = Volumes::default();
    let kernel = KernelDevices::new(
        run_dir,
        nbd_socket.clone(),
        &node,
        volumes.clone(),
        Duration::from_secs(u64::from(arguments.dead_connection_timeout)),
        inherited,
    );
    for name in kernel.inherited_names() {
        service_manager::drop_stored(&name);
    }
    let daemon = Daemon::new(
        Places {
            configuration,
            node: node.clone(),
            state: arguments.state_dir,
        },
        arguments.key_file,
        volumes,
        kernel,
        Duration::from_micros(u64::from(arguments.busy_wait)),
    )?;
    let socket = run_dir.join(SOCKET_NAME);
    let listener = control_socket::bind(&socket)?;
    tokio::task::spawn_local(control_socket::serve(daemon.clone(), listener));
    info!(
        "qrbdd {} is node {node}, control socket {}",
        env!("CARGO_PKG_VERSION"),
        socket.display()
    );
    let clients = front::bind_unix(&nbd_socket)
        .with_context(|| format!("the socket {} cannot be made", nbd_socket.display()))?;
    let (end_clients, clients_end) = oneshot::channel::<()>();
    let front =
        tokio::task::spawn_local(front::serve_unix(daemon.volumes.clone(), clients, async {
            // Its sender goes with the daemon at the latest.
            let _ = clients_end.await;
        }));
    service_manager::tell("READY=1");
    tokio::task::spawn_local(service_manager::feed_watchdog());
    if arguments.adopt {
        for name in daemon.kernel.remembered_resources() {
            tokio::task::spawn_local(adopt(daemon.clone(), name));
        }
    } else {
        daemon.kernel.take_over_nothing();
    }
    for name in arguments.up {
        let target = if name == "all" {
            Target::all()
        } else {
            Target::resource(&name)
        };
        let daemon = daemon.clone();
        tokio::task::spawn_local(async move { bring_up(&daemon, target, &name).await });
    }
    let goes_on = loop {
        tokio::select! {
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
            _ = again.recv() => break true,
            _ = hang_up.recv() => info!("hang-up: the configuration is read by each 'adjust'"),
        }
    };
    info!("{}", if goes_on { "restarting" } else { "stopping" });
    service_manager::tell(if goes_on { "RELOADING=1" } else { "STOPPING=1" });
    // No new commands: the socket goes first.
    let _ = std::fs::remove_file(&socket);
    let _ = std::fs::remove_file(&nbd_socket);
    // Clients get the answers to what they asked, then nobody has anything open.
    let _ = end_clients.send(());
    let clients = async { tokio::join!(front, daemon.tcp_fronts.end()) };
    if tokio::time::timeout(CLIENT_PATIENCE, clients)
        .await
        .is_err()
    {
        warn!(
            "NBD clients did not go within {} s",
            CLIENT_PATIENCE.as_secs()
        );
    }
    daemon.kernel.end();
    daemon.shut_down(STOP_PATIENCE, goes_on).await;
    let handed = daemon.kernel.take_handed();
    if goes_on {
        return Ok(Next::Again(handed));
    }
    for Handed { name, sockets } in handed {
        service_manager::store(&name, &sockets);
    }
    info!("stopped");
    Ok(Next::End)
}

/// As many descriptors as this process may have: two of each client that takes no replies, one of each other.
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!("the limit of open files cannot be raised: {error}");
    }
}

/// `up` without a client.
async fn bring_up(daemon: &Rc<Daemon>, target: Target, name: &str) {
    let (progress, _) = mpsc::channel(1);
    let request = Request {
        command: Command::Up,
        target,
    };
    // Hints are in the log already.
    if let Response::Refused(refusal) = commands::carry_out(daemon, request, &progress).await {
        error!("{}", refusal.message(name));
    }
}

/// Brings up what an earlier daemon had up; Primary again, if it left a kernel device in use.
async fn adopt(daemon: Rc<Daemon>, name: String) {
    bring_up(&daemon, Target::resource(&name), &name).await;
    if let Some(shared) = daemon.volumes.get(&name) {
        resume::resume(&daemon, &shared).await;
    }
}

/// Replaces this program by itself as it is on the disk now. Returns only if that fails.
fn execute_again(handed: &[Handed]) -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(path) => replaced(&path),
        Err(error) => return anyhow::Error::new(error).context("this program's path"),
    };
    let mut passed = Vec::new();
    for Handed { name, sockets } in handed {
        for socket in sockets {
            if let Err(error) = inherit::set_inherited(socket, true) {
                return anyhow::Error::new(error).context("a socket cannot be passed on");
            }
            passed.push((name.as_str(), socket.as_raw_fd()));
        }
    }
    let mut command = std::process::Command::new(&program);
    command.args(std::env::args_os().skip(1));
    for variable in inherit::variables() {
        command.env_remove(variable);
    }
    command.env(inherit::VARIABLE, inherit::passed(passed));
    let error = command.exec();
    anyhow::Error::new(error).context(format!("{} cannot be executed", program.display()))
}

/// Where a program is whose file was replaced while it ran.
fn replaced(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    match text.strip_suffix(" (deleted)") {
        Some(text) => PathBuf::from(text),
        None => path.to_owned(),
    }
}

/// Takes the run directory for this process.
fn lock(run_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = run_dir.join(LOCK_NAME);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    let mut locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => locked,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => String::new(),
                pid => format!(" (process {pid})"),
            };
            bail!(
                "another qrbdd{holder} uses {}: stop it, or give this one its own --run-dir",
                run_dir.display()
            );
        }
        Err((_, errno)) => {
            return Err(io::Error::from(errno))
                .with_context(|| format!("{} cannot be locked", path.display()));
        }
    };
    locked
        .set_len(0)
        .and_then(|()| writeln!(locked, "{}", std::process::id()))
        .with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(locked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_on_the_disk_is_found_where_it_was() {
        let path = Path::new("/usr/sbin/qrbdd");
        assert_eq!(replaced(path), path);
        assert_eq!(replaced(Path::new("/usr/sbin/qrbdd (deleted)")), path);
    }
}
