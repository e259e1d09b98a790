//! The control socket: who may talk to the daemon, and frames in and out.
//!
//! Bounds: [`MAX_CLIENTS`] at once, [`FRAME_TIMEOUT`] for the rest of a frame that has begun, the codec's limit for its length. When all
//! places are taken, the client whose request has been awaited longest gives way: silent clients shut nobody out. Anything that is not a
//! request closes that one connection. A command that has begun goes on when its client is gone, except those that only
//! wait.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::socket::{MsgFlags, recv};
use qrbd_control::codec::{self, HEADER_BYTES};
use qrbd_control::{CodecError, Progress, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use crate::commands;
use crate::daemon::Daemon;

/// Connections at once.
const MAX_CLIENTS: usize = 64;
/// For the rest of a frame that has begun, and for a client to take an answer.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts to accept a client, or to find a place for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Steps of progress that wait for a slow client.
const PROGRESS_KEPT: usize = 16;

/// Makes the socket, 0600, in the place of one that a dead daemon left. The caller holds the lock of the directory.
///
/// # Errors
/// If something else is at the path, or the directory cannot be written.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            std::fs::remove_file(path).with_context(|| {
                format!("the stale socket {} cannot be removed", path.display())
            })?;
        }
        Ok(_) => bail!(
            "{} is there and is no socket: remove it or use another --run-dir",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be looked at", path.display()));
        }
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("the socket {} cannot be made", path.display()))?;
    // Until the mode is set, peer credentials keep others out.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("the mode of {} cannot be set", path.display()))?;
    Ok(listener)
}

/// A connected client.
struct Place {
    task: AbortHandle,
    /// Since when its next request is awaited; `None` while a command of it is carried out.
    awaited_since: Rc<Cell<Option<Instant>>>,
}

/// Serves clients for ever.
pub(crate) async fn serve(daemon: Rc<Daemon>, listener: UnixListener) {
    let mut places: Vec<Place> = Vec::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                make_room(&mut places).await;
                let awaited_since = Rc::new(Cell::new(Some(Instant::now())));
                let (daemon, awaited) = (Rc::clone(&daemon), Rc::clone(&awaited_since));
                let task = tokio::task::spawn_local(async move {
                    if let Err(error) = client(&daemon, stream, &awaited).await {
                        debug!("control connection closed: {error}");
                    }
                });
                places.push(Place {
                    task: task.abort_handle(),
                    awaited_since,
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: do not spin.
                warn!("control socket: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Returns when there is a place.
async fn make_room(places: &mut Vec<Place>) {
    loop {
        places.retain(|place| !place.task.is_finished());
        if places.len() < MAX_CLIENTS {
            return;
        }
        let silent = places
            .iter()
            .enumerate()
            .filter_map(|(index, place)| Some((place.awaited_since.get()?, index)));
        match silent.min() {
            Some((_, index)) => places.swap_remove(index).task.abort(),
            // Every one has a command under way.
            None => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Only root and the user that the daemon runs as.
fn allowed(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?.uid();
    Ok(peer == 0 || peer == nix::unistd::geteuid().as_raw())
}

async fn client(
    daemon: &Rc<Daemon>,
    mut stream: UnixStream,
    awaited_since: &Cell<Option<Instant>>,
) -> Result<(), CodecError> {
    if !allowed(&stream)? {
        warn!("control socket: refused a client of another user");
        return Ok(());
    }
    while let Some(request) = read_request(&mut stream).await? {
        awaited_since.set(None);
        let (progress, steps) = mpsc::channel(PROGRESS_KEPT);
        let waits = commands::only_waits(&request.command);
        let work = commands::carry_out(daemon, request, &progress);
        let Some(response) = answer_of(&mut stream, work, steps, waits).await? else {
            return Ok(());
        };
        write(&mut stream, &response).await?;
        awaited_since.set(Some(Instant::now()));
    }
    Ok(())
}

/// Runs a command to its answer; `None` if its client is gone and the command ends with it.
async fn answer_of(
    stream: &mut UnixStream,
    work: impl Future<Output = Response>,
    mut steps: mpsc::Receiver<Progress>,
    waits: bool,
) -> Result<Option<Response>, CodecError> {
    let mut work = std::pin::pin!(work);
    let mut gone = false;
    loop {
        tokio::select! {
            biased;
            response = &mut work => return Ok((!gone).then_some(response)),
            Some(step) = steps.recv(), if !gone => {
                gone = write(stream, &Response::Progress(step)).await.is_err();
            }
            () = hung_up(stream), if !gone => gone = true,
        }
        if gone && waits {
            return Ok(None);
        }
    }
}

/// Returns when the client has closed its side. Bytes of a next request are left alone.
async fn hung_up(stream: &UnixStream) {
    loop {
        if stream.ready(Interest::READABLE).await.is_err() {
            return;
        }
        let peeked = stream.try_io(Interest::READABLE, || {
            recv(
                stream.as_raw_fd(),
                &mut [0; 1],
                MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
            )
            .map_err(io::Error::from)
        });
        match peeked {
            Ok(0) => return,
            // A next request is there already; whether its sender stays is seen when it is answered.
            Ok(_) => std::future::pending::<()>().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

async fn read_request(stream: &mut UnixStream) -> Result<Option<Request>, CodecError> {
    let mut header = [0; HEADER_BYTES];
    // A client may be silent between requests, not within one.
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    let rest = async {
        stream.read_exact(&mut header[1..]).await?;
        let mut body = vec![0; codec::body_length(header)?];
        stream.read_exact(&mut body).await?;
        codec::decode(&body).map(Some)
    };
    tokio::time::timeout(FRAME_TIMEOUT, rest)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

async fn write(stream: &mut UnixStream, response: &Response) -> Result<(), CodecError> {
    let frame = codec::encode(response)?;
    tokio::time::timeout(FRAME_TIMEOUT, stream.write_all(&frame))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(CodecError::from)
}
