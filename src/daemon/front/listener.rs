//! Listening sockets, and the life of each connection: handshake, transmission, farewell.
//!
//! Owns the limit of simultaneous connections and the orderly end of all sessions. Logs each fact once: what clients do
//! wrong at debug, what concerns the administrator above.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::backend::{Export, Exports};
use super::negotiation::negotiate;
use super::stream::ClientStream;
use super::transmission::{End, Transmission};
use super::{Common, Limits};

/// Kernel memory for replies of one Unix connection: a large read should not need a dozen wake-ups of both sides.
pub(super) const UNIX_SEND_BUFFER_BYTES: usize = 1 << 20;

/// Pause after an `accept` that failed for want of descriptors or memory, which would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Time that sessions get beyond their own farewell before they are dropped.
const STOP_MARGIN: Duration = Duration::from_secs(1);

/// Seconds of silence after which a TCP client is probed, between probes, and the number of lost probes that end it: a
/// client whose machine is gone does not hold the volume open for more than a minute.
const KEEPALIVE_SECONDS: (u32, u32, u32) = (30, 10, 3);

/// Makes the server's Unix socket, for its owner only, in place of one that nobody listens on.
///
/// # Errors
/// `AddrInUse` when somebody does listen there; otherwise what the system says about the path.
///
/// # Panics
/// Outside of a Tokio runtime.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = format!("{} is served by another process", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // Under its own name the socket appears with its mode, and takes the place of a stale one at once.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    match std::fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    let placed = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&hidden, path));
    if let Err(error) = placed {
        // The caller learns about the first failure.
        let _ = std::fs::remove_file(&hidden);
        return Err(error);
    }
    Ok(listener)
}

/// Serves clients of a Unix socket until `shutdown`, then answers what is in flight and closes all connections within a few
/// seconds. Must run where local tasks can be spawned.
pub async fn serve_unix<E: Exports>(
    exports: E,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) {
    serve(exports, UnixAcceptor(listener), Limits::default(), shutdown).await;
}

/// As [`serve_unix`], for clients of a TCP socket.
pub async fn serve_tcp<E: Exports>(
    exports: E,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    serve(exports, TcpAcceptor(listener), Limits::default(), shutdown).await;
}

/// Where clients come from.
pub(super) trait Acceptor {
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// The next client and what to call it in the log.
    async fn accept(&self) -> io::Result<(Self::Stream, String)>;
}

pub(super) struct UnixAcceptor(pub UnixListener);

impl Acceptor for UnixAcceptor {
    type Stream = ClientStream<std::os::unix::net::UnixStream>;

    async fn accept(&self) -> io::Result<(Self::Stream, String)> {
        let (stream, _) = self.0.accept().await?;
        // A smaller buffer works too: the system's limit applies unless this process may exceed it.
        let bytes = UNIX_SEND_BUFFER_BYTES;
        if setsockopt(&stream, sockopt::SndBufForce, &bytes).is_err() {
            let _ = setsockopt(&stream, sockopt::SndBuf, &bytes);
        }
        let name = match stream.peer_cred() {
            Ok(peer) => match peer.pid() {
                Some(pid) => format!("process {pid} of user {}", peer.uid()),
                None => format!("user {}", peer.uid()),
            },
            Err(_) => "a local process".to_owned(),
        };
        Ok((ClientStream::new(stream.into_std()?)?, name))
    }
}

pub(super) struct TcpAcceptor(pub TcpListener);

impl Acceptor for TcpAcceptor {
    type Stream = ClientStream<std::net::TcpStream>;

    async fn accept(&self) -> io::Result<(Self::Stream, String)> {
        let (stream, address) = self.0.accept().await?;
        if let Err(error) = tune_tcp(&stream) {
            debug!("NBD client {address}: socket options: {error}");
        }
        Ok((ClientStream::new(stream.into_std()?)?, address.to_string()))
    }
}

fn tune_tcp(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, count) = KEEPALIVE_SECONDS;
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(stream, sockopt::TcpKeepCount, &count)?;
    Ok(())
}

pub(super) async fn serve<E: Exports, A: Acceptor>(
    exports: E,
    acceptor: A,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let common = Rc::new(Common::new(limits));
    let (stop_sender, stop) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut refusing = false;
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = acceptor.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!("NBD: a connection was not accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.len() >= limits.connections {
            if !refusing {
                warn!(
                    "NBD: {} connections are open, the most there may be; refusing further ones",
                    limits.connections
                );
            }
            refusing = true;
            continue;
        }
        refusing = false;
        connections.spawn_local(connection(
            stream,
            peer,
            exports.clone(),
            Rc::clone(&common),
            stop.clone(),
        ));
    }
    drop(acceptor);
    if connections.is_empty() {
        return;
    }
    debug!("NBD: ending {} connections", connections.len());
    // Each connection holds a receiver, so there is at least one.
    let _ = stop_sender.send(true);
    let all_over = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.farewell + STOP_MARGIN, all_over)
        .await
        .is_err()
    {
        warn!("NBD: {} connections were cut off", connections.len());
    }
}

/// The life of one connection.
async fn connection<S, E>(
    mut stream: S,
    peer: String,
    exports: E,
    common: Rc<Common>,
    mut stop: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let negotiated = tokio::select! {
        negotiated = timeout(common.limits.handshake, negotiate(&mut stream, &exports)) => negotiated,
        () = stopped(&mut stop) => return,
    };
    let (session, export) = match negotiated {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return debug!("NBD client {peer} left during the handshake"),
        Ok(Err(error)) => return debug!("NBD client {peer}: {error}"),
        Err(_) => {
            let seconds = common.limits.handshake.as_secs();
            return debug!("NBD client {peer} did not finish the handshake within {seconds} s");
        }
    };
    let name = export.description().name.clone();
    info!("NBD client {peer} opened {name}");
    let stop = async move { stopped(&mut stop).await };
    let end = Transmission::new(common, stream, session, export, stop).await;
    match end {
        End::ClientLeft => info!("NBD client {peer} closed {name}"),
        End::Garbage(error) => debug!("NBD client {peer} of {name}: {error}"),
        End::Stopped | End::HandedOver | End::Closed | End::Broken(_) => {
            info!("NBD client {peer} of {name} ended: {end}")
        }
    }
}

/// Ready when the server stops, also when it is gone without having said so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
