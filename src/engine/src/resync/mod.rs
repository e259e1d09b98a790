//! Bitmap resync: one side is the source, the other the target.
//!
//! Sequence (the first three steps on the control lane, so that they stay behind the handshake; `S` source, `T` target):
//! 1. `T → S` its bitmap; `S` ORs it into its own and makes the result durable;
//! 2. `S → T` the OR-ed bitmap, then `ResyncBegin` with its generation; `T` makes the bitmap durable, then in one superblock write becomes
//!    Inconsistent and adopts the generation;
//!    (Before 2 and before what `T` does in 2, a handler of that node may be asked: [`handlers`].)
//! 3. `T → S` `ResyncReady`: from here on writes are mirrored and blocks copied;
//! 4. `S` reads a dirty range under its lock and sends it; `T` writes it, or answers "retry" if a client of its own writes there;
//! 5. now and then, and at the end, `S` asks `T` to flush; only what is durable at `T` is cleared in `S`'s bitmap (W7);
//! 6. no bit is left: `ResyncFinish`; `T` becomes UpToDate durably and says so.
//!
//! R2: a range is locked at the source from the read until the target has it, so no application write overtakes or is overtaken.
//! The source's bitmap decides; the target's is a superset of what is still missing, so that an interrupted resync goes on (R1).

mod bitmaps;
mod handlers;
mod source;
mod target;

use alloc::vec::Vec;

use crate::api::Payload;
use crate::engine::Engine;
use crate::state::ReplicationState;
use crate::units::VolumeNumber;
use crate::volume::After;

pub(crate) use handlers::Asked;

impl<P: Payload> Engine<P> {
    /// Ends a resync without finishing it. Writes that the disk is working on keep their locks until it answers.
    pub(crate) fn stop_resync(&mut self, p: usize, v: usize) {
        self.volumes[v].waiters.retain(|waiter| {
            let begins = matches!(
                waiter.then,
                After::SourceBitmap { .. }
                    | After::TargetBitmap { .. }
                    | After::TargetAdopted { .. }
            );
            !(begins && waiter.peer == Some(p))
        });
        if let Some(source) = self.peers[p].devices[v].source.take() {
            self.peers[p].devices[v].last_resync_id = source.next_id;
            self.peers[p].devices[v].stopped_resync = !source.finishing;
            for (_, operation) in source.operations {
                self.volumes[v].intervals.remove(operation.lock);
            }
        }
        self.peers[p].devices[v].target = None;
        self.peers[p].devices[v].bitmap_rest = None;
        let idle: Vec<usize> = self.peers[p]
            .resync_writes
            .iter()
            .filter(|(_, operation)| operation.volume == v && !operation.started)
            .map(|(key, _)| key)
            .collect();
        for key in idle {
            let operation = self.peers[p].resync_writes.remove(key);
            self.volumes[v].intervals.remove(operation.lock);
        }
    }

    /// Holds or releases a resync according to the pause flags of both sides.
    pub(crate) fn apply_pause(&mut self, p: usize, v: usize) {
        let device = &self.peers[p].devices[v];
        let paused = device.paused_here || device.paused_there;
        let next = match (device.replication, paused) {
            (ReplicationState::SyncSource, true) => ReplicationState::PausedSyncS,
            (ReplicationState::SyncTarget, true) => ReplicationState::PausedSyncT,
            (ReplicationState::PausedSyncS, false) => ReplicationState::SyncSource,
            (ReplicationState::PausedSyncT, false) => ReplicationState::SyncTarget,
            _ => return,
        };
        self.set_replication(
            p,
            v,
            next,
            if paused {
                "sync-paused"
            } else {
                "sync-resumed"
            },
        );
    }

    pub(crate) fn resync_pause_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        paused: bool,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a pause of an unknown volume")?;
        self.peers[p].devices[v].paused_there = paused;
        self.apply_pause(p, v);
        Ok(())
    }
}
