//! The process: start, signals, orderly end.
//!
//! Invariants: one daemon for each run directory (a lock that the kernel gives up with the process); the control socket answers from
//! the moment at which readiness is reported; a stop ends within
//! [`CLIENT_PATIENCE`] and [`STOP_PATIENCE`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use qrbd_control::{Command, Request, Response, SOCKET_NAME, Target};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::arguments::Arguments;
use crate::daemon::{Daemon, Places};
use crate::{commands, control_socket, front};

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
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, main(arguments));
    // Helper threads that hang in a disk must not keep the process.
    drop(local);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn main(arguments: Arguments) -> anyhow::Result<()> {
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
    // `systemctl reload` and closed terminals: nothing is kept of the configuration, so there is nothing to reread.
    let mut hang_up = signal(SignalKind::hangup()).context("no signal handler")?;

    // The working directory may change for handlers; paths must not.
    let configuration =
        std::path::absolute(&arguments.config_file).context("the path of the configuration")?;
    let daemon = Daemon::new(
        Places {
            configuration,
            node: node.clone(),
        },
        arguments.key_file,
    )?;
    let socket = run_dir.join(SOCKET_NAME);
    let listener = control_socket::bind(&socket)?;
    tokio::task::spawn_local(control_socket::serve(daemon.clone(), listener));
    info!(
        "qrbdd {} is node {node}, control socket {}",
        env!("CARGO_PKG_VERSION"),
        socket.display()
    );
    let nbd_socket = run_dir.join(NBD_SOCKET_NAME);
    let clients = front::bind_unix(&nbd_socket)
        .with_context(|| format!("the socket {} cannot be made", nbd_socket.display()))?;
    let (end_clients, clients_end) = oneshot::channel::<()>();
    let front =
        tokio::task::spawn_local(front::serve_unix(daemon.volumes.clone(), clients, async {
            // Its sender goes with the daemon at the latest.
            let _ = clients_end.await;
        }));
    tell_service_manager("READY=1");
    for name in arguments.up {
        let target = if name == "all" {
            Target::all()
        } else {
            Target::resource(&name)
        };
        let daemon = daemon.clone();
        tokio::task::spawn_local(async move {
            let (progress, _) = mpsc::channel(1);
            let request = Request {
                command: Command::Up,
                target,
            };
            // Hints are in the log already.
            if let Response::Refused(refusal) =
                commands::carry_out(&daemon, request, &progress).await
            {
                error!("{}", refusal.message(&name));
            }
        });
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => info!("hang-up: the configuration is read by each 'adjust'"),
        }
    }
    info!("stopping");
    tell_service_manager("STOPPING=1");
    // No new commands: the socket goes first.
    let _ = std::fs::remove_file(&socket);
    let _ = std::fs::remove_file(&nbd_socket);
    // Clients get the answers to what they asked, then nobody has anything open.
    let _ = end_clients.send(());
    if tokio::time::timeout(CLIENT_PATIENCE, front).await.is_err() {
        warn!(
            "NBD clients did not go within {} s",
            CLIENT_PATIENCE.as_secs()
        );
    }
    daemon.shut_down(STOP_PATIENCE).await;
    info!("stopped");
    Ok(())
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

/// `sd_notify`: nothing happens without a service manager.
fn tell_service_manager(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        warn!(
            "the service manager at {} was not told {state}: {error}",
            path.display()
        );
    }
}
