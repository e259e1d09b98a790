//! `pause-sync` and `resume-sync`: the administrator holds a resync.

use crate::api::Payload;
use crate::engine::Engine;
use crate::state::{ConnectionState, Refusal};
use crate::units::{NodeId, VolumeNumber};
use crate::wire::Message;

impl<P: Payload> Engine<P> {
    pub(super) fn pause_sync(
        &mut self,
        number: VolumeNumber,
        node: NodeId,
        pause: bool,
    ) -> Result<(), Refusal> {
        let v = self.volume_of(number)?;
        let p = self.peer_of(node)?;
        if self.peers[p].devices[v].paused_here == pause {
            return Err(if pause {
                Refusal::PauseAlreadySet
            } else {
                Refusal::PauseAlreadyClear
            });
        }
        self.peers[p].devices[v].paused_here = pause;
        if self.peers[p].connection == ConnectionState::Connected {
            self.send(
                p,
                Message::ResyncPause {
                    volume: number,
                    paused: pause,
                },
            );
        }
        self.apply_pause(p, v);
        Ok(())
    }
}
