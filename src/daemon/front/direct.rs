//! Sessions without a handshake: the client (the kernel) got its end of the socket, the flags and the size from this process.
//!
//! Otherwise sessions like all others, with two additions: they can be handed over between two requests, or closed so that nothing is lost on
//! the socket, and they follow the volume's size.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::sys::socket::{setsockopt, sockopt};
use qrbd_nbd::{Session, TransmissionFlags};
use tokio::sync::watch;

use super::backend::Export;
use super::listener::UNIX_SEND_BUFFER_BYTES;
use super::negotiation::export_info;
use super::stream::ClientStream;
use super::transmission::{Departure, End, Transmission};
use super::{Common, Limits};
use crate::volumes::ExportDescription;

/// What the kernel needs to know of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectSession {
    /// Size in bytes, a multiple of the block size.
    pub(crate) size: u64,
    /// Logical block size in bytes.
    pub(crate) block_size: u32,
    /// NBD transmission flags.
    pub(crate) flags: u16,
}

impl DirectSession {
    /// Of a volume.
    ///
    /// # Errors
    /// A text, if NBD cannot express its size or its block sizes.
    pub(crate) fn of(export: &ExportDescription) -> Result<DirectSession, String> {
        let session = session(export)?;
        // The kernel knows neither of them.
        let unknown = TransmissionFlags::SEND_FAST_ZERO | TransmissionFlags::SEND_CACHE;
        Ok(DirectSession {
            size: session.export().size(),
            block_size: export.minimum_block,
            flags: session.flags().without(unknown).bits(),
        })
    }
}

fn session(export: &ExportDescription) -> Result<Session, String> {
    export_info(export)
        .map(Session::without_handshake)
        .map_err(|error| error.to_string())
}

/// Serves the kernel's sockets. Cheap to clone; all clones share one budget of memory.
#[derive(Clone)]
pub(crate) struct DirectFront {
    common: Rc<Common>,
}

impl DirectFront {
    pub(crate) fn new() -> DirectFront {
        DirectFront::with(Limits::default())
    }

    pub(super) fn with(limits: Limits) -> DirectFront {
        DirectFront {
            common: Rc::new(Common::new(limits)),
        }
    }

    /// Serves one socket until the session ends. `departure` turning to something asks for that.
    ///
    /// # Errors
    /// If the socket cannot be used, or NBD cannot express the volume.
    pub(crate) fn serve<X: Export>(
        &self,
        socket: UnixStream,
        export: X,
        size: Rc<Cell<u64>>,
        mut departure: watch::Receiver<Option<Departure>>,
    ) -> io::Result<impl Future<Output = End> + use<X>> {
        let session = session(export.description()).map_err(io::Error::other)?;
        socket.set_nonblocking(true)?;
        roomy(&socket);
        let copy = socket.try_clone()?;
        let stream = ClientStream::new(socket)?;
        let wanted = async move {
            let wanted = departure.wait_for(Option::is_some).await;
            match wanted.ok().and_then(|wanted| *wanted) {
                Some(wanted) => wanted,
                // Nobody is left who could want it.
                None => std::future::pending().await,
            }
        };
        let stop_receiving = move || {
            // Closed already, if that fails.
            let _ = copy.shutdown(Shutdown::Read);
        };
        let common = Rc::clone(&self.common);
        Ok(
            Transmission::new(common, stream, session, export, std::future::pending())
                .until(wanted, stop_receiving)
                .with_size(size),
        )
    }
}

/// Gives a socket room for a large request or reply, so that neither side waits for the other within one.
pub(super) fn roomy(socket: &UnixStream) {
    let bytes = UNIX_SEND_BUFFER_BYTES;
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        // A smaller one works too.
        let _ = setsockopt(socket, sockopt::SndBuf, &bytes);
    }
}

/// The two ends of a socket for the kernel: ours and its own.
///
/// # Errors
/// What the system says.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    roomy(&theirs);
    Ok((ours, theirs))
}
