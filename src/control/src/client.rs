//! Blocking client of the control socket.
//!
//! Owns one connection. A daemon that is not there gives [`ClientError::NotRunning`], which names the socket and the way
//! to start the daemon; every other failure keeps its cause.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::codec::{self, CodecError};
use crate::message::{Progress, Request, Response};

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "the daemon qrbdd is not running: no one answers on {socket} ({source})\n\
         Start it with 'systemctl start qrbdd' (or 'qrbdd --run-dir {directory}'); another --run-dir needs QRBD_RUN_DIR or the option here too."
    )]
    NotRunning {
        /// Path of the socket.
        socket: String,
        /// Its directory.
        directory: String,
        /// What the system said.
        source: io::Error,
    },
    /// The caller may not use the socket.
    #[error(
        "{socket}: permission denied: the control socket is for root or the user that qrbdd runs as"
    )]
    NotAllowed {
        /// Path of the socket.
        socket: String,
    },
    /// The daemon closed the connection before its answer.
    #[error(
        "qrbdd closed the control connection without an answer (it crashed or was stopped; see its log)"
    )]
    Closed,
    /// No answer within the time given.
    #[error("qrbdd did not answer within {seconds} seconds")]
    Timeout {
        /// The time given.
        seconds: u64,
    },
    /// Frame or socket error.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    timeout: Option<Duration>,
}

impl Client {
    /// Connects to the socket in `run_dir`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`], [`ClientError::NotAllowed`], [`ClientError::Codec`].
    pub fn connect(run_dir: &Path) -> Result<Client, ClientError> {
        let socket: PathBuf = run_dir.join(crate::SOCKET_NAME);
        match UnixStream::connect(&socket) {
            Ok(stream) => Ok(Client {
                stream,
                timeout: None,
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClientError::NotAllowed {
                    socket: socket.display().to_string(),
                })
            }
            Err(source) => Err(ClientError::NotRunning {
                socket: socket.display().to_string(),
                directory: run_dir.display().to_string(),
                source,
            }),
        }
    }

    /// Longest silence of the daemon that [`Client::call`] bears; `None` (the default) waits for ever.
    ///
    /// # Errors
    /// [`ClientError::Codec`] if the socket refuses.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.stream
            .set_read_timeout(timeout)
            .map_err(CodecError::from)?;
        self.timeout = timeout;
        Ok(())
    }

    /// Sends `request` and returns the final response; `progress` sees what comes before it.
    ///
    /// # Errors
    /// [`ClientError::Closed`], [`ClientError::Timeout`], [`ClientError::Codec`].
    pub fn call(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(Progress),
    ) -> Result<Response, ClientError> {
        match codec::write_message(&mut self.stream, request) {
            // The daemon may have answered and closed already; its answer tells more than the broken pipe.
            Err(CodecError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
        loop {
            match codec::read_message(&mut self.stream) {
                Ok(Some(Response::Progress(step))) => progress(step),
                Ok(Some(response)) => return Ok(response),
                Ok(None) => return Err(ClientError::Closed),
                Err(CodecError::Io(error)) => return Err(self.socket_error(error)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn socket_error(&self, error: io::Error) -> ClientError {
        match (error.kind(), self.timeout) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(timeout)) => {
                ClientError::Timeout {
                    seconds: timeout.as_secs(),
                }
            }
            (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset, _) => {
                ClientError::Closed
            }
            _ => CodecError::from(error).into(),
        }
    }
}
