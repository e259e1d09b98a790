//! Byte budgets of the receiving lanes.
//!
//! A lane's reader takes a frame's cost from the lane's budget before it reads the frame, and the owner gives it back by
//! dropping the frame's [`Credit`]. While the budget is used up the reader does not read, QUIC's flow control fills, and
//! the peer's lane stops: a slow owner slows its peer, and memory stays within the budget plus QUIC's stream window.
//! A frame that costs more than the whole budget is let in alone.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::FRAME_OVERHEAD_BYTES;

/// What a received frame takes of its lane's budget. Drop it when the frame's memory is released.
#[derive(Debug)]
pub struct Credit(OwnedSemaphorePermit);

impl Credit {
    /// Bytes of the budget that this credit holds.
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }
}

#[derive(Debug)]
pub(crate) struct Budget {
    semaphore: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    pub(crate) fn new(total: u32) -> Self {
        let total = total.max(1);
        Self {
            semaphore: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// Waits until a frame of `bytes` may be read; `None` once the budget is closed.
    pub(crate) async fn take(&self, bytes: usize) -> Option<Credit> {
        let cost = u32::try_from(bytes + FRAME_OVERHEAD_BYTES)
            .unwrap_or(u32::MAX)
            .min(self.total);
        self.semaphore
            .clone()
            .acquire_many_owned(cost)
            .await
            .ok()
            .map(Credit)
    }

    /// Bytes that the owner has not released.
    pub(crate) fn held(&self) -> usize {
        self.total as usize - self.semaphore.available_permits()
    }

    /// Wakes the reader that waits, for good.
    pub(crate) fn close(&self) {
        self.semaphore.close();
    }
}
