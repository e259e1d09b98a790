//! What a failed request is answered with.

use qrbd_engine::api::ClientError;
use qrbd_nbd::{Command, Errno};

/// The text of an answer to a request that comes too late.
pub const STOPPING: &str = "the volume is not served here any more";

/// The number of the protocol and a text for people. `doc/proto.md`, "Error values", tells writes beyond the end from
/// everything else beyond it.
pub fn error_of(error: ClientError, command: Command) -> (Errno, &'static str) {
    match (error, command) {
        (ClientError::Io, _) => (Errno::Eio, "no usable data within reach"),
        (ClientError::NoSpace, _) => (Errno::Enospc, "the backing store is full"),
        (ClientError::NotPrimary, _) => (Errno::Eshutdown, "the resource is not Primary any more"),
        (ClientError::OutOfRange, Command::Write | Command::WriteZeroes { .. }) => {
            (Errno::Enospc, "beyond the end of the volume")
        }
        (ClientError::OutOfRange, _) => (Errno::Einval, "beyond the end of the volume"),
    }
}
