//! The seam between the NBD server and what it exports, so that sessions are tested without resources and disks.

use std::task::{Context, Poll};

use qrbd_disk::BufferMut;
use qrbd_engine::Operation;

use crate::payload::EnginePayload;
use crate::volumes::{Completed, ExportDescription, OpenRefusal, OpenVolume, Volumes};

/// What may be exported.
pub trait Exports: Clone + 'static {
    /// One that a client has open.
    type Export: Export;

    /// All that exist, also those that cannot be opened now.
    fn exports(&self) -> Vec<ExportDescription>;

    /// Opens one; it counts as open until it is dropped.
    ///
    /// # Errors
    /// There is none of this name, or it may not be served now.
    fn open(&self, name: &str) -> Result<Self::Export, OpenRefusal>;
}

/// A volume that a client has open.
pub trait Export: Unpin + 'static {
    /// What was known when it was opened.
    fn description(&self) -> &ExportDescription;

    /// Hands over a request, which completes exactly once, never within this call.
    fn submit(&self, token: u64, operation: Operation<EnginePayload>);

    /// Moves all completions to the end of `target`; pending if there is none, and then the task is woken for the next
    /// one and for the end of the export.
    fn poll_completions(
        &self,
        context: &mut Context<'_>,
        target: &mut Vec<(u64, Completed)>,
    ) -> Poll<()>;

    /// The volume may not be served any more: its sessions are to end.
    fn is_closed(&self) -> bool;

    /// Zeroes are faster than writes of the same length, on every node.
    fn zeroes_fast(&self) -> bool;

    /// A buffer for the payload of a write.
    fn allocate(&self, length: usize) -> BufferMut;
}

impl Exports for Volumes {
    type Export = OpenVolume;

    fn exports(&self) -> Vec<ExportDescription> {
        Volumes::exports(self)
    }

    fn open(&self, name: &str) -> Result<OpenVolume, OpenRefusal> {
        Volumes::open(self, name)
    }
}

impl Export for OpenVolume {
    fn description(&self) -> &ExportDescription {
        OpenVolume::description(self)
    }

    fn submit(&self, token: u64, operation: Operation<EnginePayload>) {
        OpenVolume::submit(self, token, operation);
    }

    fn poll_completions(
        &self,
        context: &mut Context<'_>,
        target: &mut Vec<(u64, Completed)>,
    ) -> Poll<()> {
        self.completions().poll_take(context, target)
    }

    fn is_closed(&self) -> bool {
        self.completions().is_closed()
    }

    // What the disks can do is not part of the description; refusing a fast zero is always right.
    fn zeroes_fast(&self) -> bool {
        false
    }

    fn allocate(&self, length: usize) -> BufferMut {
        OpenVolume::allocate(self, length)
    }
}
