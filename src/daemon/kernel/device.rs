//! One kernel device while it is attached: the sessions of its sockets.
//!
//! Each socket has a task. When its session ends although nobody wanted that, the kernel gets a new socket in the place of the dead one and
//! sends the requests again that were under way on it; this also finds sockets that the kernel dropped because none was dead yet.
//! Invariant: a reply leaves only on the socket that its request came from.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::KernelDevices;
use super::blocking::{self, Found, ReplaceError, Wanted};
use super::remembered::Key;
use crate::front::{Departure, DirectSession, End, socket_pair};

/// Before the first attempt to replace a dead socket, and between the last ones.
const REPLACE_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A session that lived so long was no failed attempt.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// How long requests under way may take when the sockets are handed over.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);

/// See the module's text.
pub(super) struct Device {
    pub(super) key: Key,
    /// Name of the export.
    pub(super) export: String,
    pub(super) wanted: Wanted,
    pub(super) size: Rc<Cell<u64>>,
    /// The ends of the sessions are expected.
    ending: Cell<bool>,
    departure: watch::Sender<Option<Departure>>,
    /// Sockets that stand between two requests.
    kept: RefCell<Vec<UnixStream>>,
    /// Sockets that were closed with nothing lost on them.
    closed: Cell<usize>,
    slots: RefCell<Vec<JoinHandle<()>>>,
}

/// How all sessions of a device ended.
pub(super) enum Ended {
    /// Between two requests: the sockets.
    Kept(Vec<UnixStream>),
    /// The sockets are closed, and nothing was lost on them.
    Closed,
    /// Requests may be under way that will not be answered.
    Cut,
}

/// What became of a session.
enum After {
    /// The socket is to be replaced.
    Replace,
    /// The slot is not needed any more.
    Over,
}

impl Device {
    pub(super) fn new(key: Key, export: String, wanted: Wanted) -> Rc<Device> {
        Rc::new(Device {
            key,
            export,
            size: Rc::new(Cell::new(wanted.size)),
            wanted,
            ending: Cell::new(false),
            departure: watch::Sender::new(None),
            kept: RefCell::default(),
            closed: Cell::new(0),
            slots: RefCell::default(),
        })
    }

    /// Serves sockets from now on.
    pub(super) fn serve(self: &Rc<Self>, kernel: &Rc<KernelDevices>, sockets: Vec<UnixStream>) {
        for socket in sockets {
            let slot = slot(Rc::clone(self), Rc::clone(kernel), socket);
            self.slots.borrow_mut().push(tokio::task::spawn_local(slot));
        }
    }

    /// From now on the sessions are expected to end.
    pub(super) fn expect_end(&self) {
        self.ending.set(true);
    }

    /// The sessions go on as if nothing had happened: the end that was expected did not come.
    pub(super) fn expect_no_end(&self) {
        self.ending.set(false);
    }

    /// Ends the sessions at once: what is under way is not answered, and the kernel sends it again when it gets other sockets.
    pub(super) fn cut(&self) {
        self.expect_end();
        for slot in self.slots.borrow_mut().drain(..) {
            slot.abort();
        }
        self.kept.borrow_mut().clear();
    }

    /// Ends the sessions, as `departure` says.
    pub(super) async fn end(&self, departure: Departure) -> Ended {
        self.expect_end();
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        let count = slots.len();
        self.departure.send_replace(Some(departure));
        let deadline = Instant::now() + HAND_OVER_PATIENCE;
        for mut slot in slots {
            if tokio::time::timeout_at(deadline, &mut slot).await.is_err() {
                slot.abort();
            }
        }
        let kept = std::mem::take(&mut *self.kept.borrow_mut());
        if kept.len() == count {
            Ended::Kept(kept)
        } else if self.closed.get() == count {
            Ended::Closed
        } else {
            Ended::Cut
        }
    }
}

/// The life of one of the device's sockets.
async fn slot(device: Rc<Device>, kernel: Rc<KernelDevices>, mut socket: UnixStream) {
    let mut pause = REPLACE_PAUSES.0;
    loop {
        let begun = Instant::now();
        match session(&device, &kernel, socket).await {
            After::Replace => {}
            After::Over => return,
        }
        if begun.elapsed() >= LONG_LIFE {
            pause = REPLACE_PAUSES.0;
        }
        socket = loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REPLACE_PAUSES.1);
            if device.ending.get() {
                return;
            }
            match replace(&device, &kernel).await {
                Ok(socket) => break socket,
                Err(error) => {
                    let wanted = &device.wanted;
                    let found = blocking::look(&kernel.places, wanted.index, &wanted.backend);
                    if !matches!(found, Found::Ours) {
                        return kernel.lost(&device);
                    }
                    warn!(
                        "{}: a socket of {} is not replaced yet: {error}",
                        device.export,
                        kernel.places.device(wanted.index).display()
                    );
                }
            }
        };
    }
}

/// One session.
async fn session(device: &Rc<Device>, kernel: &Rc<KernelDevices>, socket: UnixStream) -> After {
    let name = kernel.places.device(device.wanted.index);
    let opened = kernel.volumes.open_for_kernel(&device.export);
    let volume = match opened {
        Ok(volume) => volume,
        Err(refusal) => {
            debug!("{}: {}: {refusal}", device.export, name.display());
            return After::Over;
        }
    };
    let started = socket.try_clone().and_then(|copy| {
        let size = Rc::clone(&device.size);
        let departure = device.departure.subscribe();
        let session = kernel.front.serve(socket, volume, size, departure)?;
        Ok((copy, session))
    });
    let (copy, session) = match started {
        Ok(started) => started,
        Err(error) => {
            warn!("{}: a socket of {}: {error}", device.export, name.display());
            return After::Replace;
        }
    };
    let end = session.await;
    match end {
        End::HandedOver => {
            device.kept.borrow_mut().push(copy);
            After::Over
        }
        End::Closed => {
            device.closed.set(device.closed.get() + 1);
            After::Over
        }
        // The kernel must not get answers to what was asked while the role was another.
        End::Stopped => {
            if !device.ending.get() {
                kernel.role_lost(device);
            }
            After::Over
        }
        _ if device.ending.get() => After::Over,
        end => {
            info!(
                "{}: a socket of {} ended: {end}",
                device.export,
                name.display()
            );
            After::Replace
        }
    }
}

/// Gives the kernel a new socket; returns the daemon's end.
async fn replace(
    device: &Rc<Device>,
    kernel: &Rc<KernelDevices>,
) -> Result<UnixStream, ReplaceError> {
    let (ours, theirs) = pair()?;
    let (index, backend) = (device.wanted.index, device.wanted.backend.clone());
    kernel
        .helper(move || blocking::replace(index, &backend, vec![theirs]))
        .await
        .unwrap_or_else(|text| Err(ReplaceError::NoDriver(text)))?;
    Ok(ours)
}

fn pair() -> Result<(UnixStream, UnixStream), ReplaceError> {
    socket_pair().map_err(|error| ReplaceError::NoDriver(error.to_string()))
}

/// So many pairs of sockets: the daemon's ends and the kernel's.
pub(super) fn pairs(count: usize) -> io::Result<(Vec<UnixStream>, Vec<UnixStream>)> {
    let pairs: io::Result<Vec<_>> = (0..count).map(|_| socket_pair()).collect();
    Ok(pairs?.into_iter().unzip())
}

/// What the kernel is told of a volume.
pub(super) fn described(
    kernel: &KernelDevices,
    resource: &str,
    volume: u16,
) -> Result<(String, DirectSession), String> {
    let shared = kernel
        .volumes
        .get(resource)
        .ok_or("the resource is not up")?;
    let export = shared
        .exports()
        .into_iter()
        .find(|export| export.volume == volume)
        .ok_or("the volume is not there")?;
    if export.size == 0 {
        return Err("its size is not known yet".to_owned());
    }
    let session = DirectSession::of(&export)?;
    Ok((export.name, session))
}
