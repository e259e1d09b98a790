//! The administrator's word before a resync: the handlers `before-resync-target` and `before-resync-source`.
//!
//! A handler runs while nothing has changed yet, neither the data of the target nor what its metadata say of them, and the resync waits
//! for its end; a snapshot of the target's data is what it is for. With an exit code other than 0 there is no resync: this node parts
//! from the peer and stays StandAlone. As with DRBD the source passes over a 3.
//!
//! Invariants: an answer counts only for the resync that asked; the peer knows how long it may have to wait, so that neither takes the
//! other one for stuck. Where no handler is configured nothing is asked.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::api::{Effect, HandlerId, Payload};
use crate::engine::Engine;
use crate::limits;
use crate::state::{ConnectionState, Role};
use crate::units::{Generation, VolumeNumber};
use crate::wire::{GoodbyeReason, Message};

/// What goes on when the handler allows it.
#[derive(Debug)]
pub(crate) enum Awaited {
    /// The source begins.
    Source,
    /// The target takes over the source's generation.
    Target {
        /// The source's current generation.
        current: Generation,
        /// The source's history.
        history: Vec<Generation>,
    },
}

/// A resync that waits for a handler of this node.
#[derive(Debug)]
pub(crate) struct Asked {
    id: HandlerId,
    then: Awaited,
}

impl<P: Payload> Engine<P> {
    /// Source: both bitmaps are one.
    pub(super) fn may_begin(&mut self, p: usize, v: usize) {
        match self.peers[p].config.before_resync_source {
            Some(patience) => {
                self.ask(p, v, "before-resync-source", patience, Awaited::Source);
            }
            None => self.send_resync_begin(p, v),
        }
    }

    /// Target: the source begins.
    pub(super) fn may_adopt(
        &mut self,
        p: usize,
        v: usize,
        current: Generation,
        history: Vec<Generation>,
    ) {
        match self.peers[p].config.before_resync_target {
            Some(patience) => {
                let then = Awaited::Target { current, history };
                self.ask(p, v, "before-resync-target", patience, then);
            }
            None => self.prepare_target(p, v, current, history),
        }
    }

    fn ask(&mut self, p: usize, v: usize, name: &'static str, patience: u64, then: Awaited) {
        let id = HandlerId(self.random.draw());
        let peer = self.peers[p].config.node_id;
        let volume = self.volumes[v].number;
        self.peers[p].devices[v].asked = Some(Box::new(Asked { id, then }));
        let milliseconds = u32::try_from(patience).unwrap_or(u32::MAX);
        self.send(
            p,
            Message::ResyncWaits {
                volume,
                milliseconds,
            },
        );
        self.effect(Effect::AskHandler {
            id,
            name,
            peer,
            volume,
        });
    }

    /// The peer's handler runs: the resync may begin so much later.
    pub(crate) fn resync_waits_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        milliseconds: u32,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resync of an unknown volume")?;
        let device = &mut self.peers[p].devices[v];
        if !device.replication.is_exchanging_bitmaps() {
            // Given up here while that was on its way.
            return Ok(());
        }
        let patience = u64::from(milliseconds).min(limits::HANDLER_PATIENCE_MS);
        device.waits_until = Some(self.now.after(patience));
        self.decision(
            Some(p),
            Some(v),
            "resync-waits",
            String::from("the peer's handler runs before the resync"),
        );
        Ok(())
    }

    /// A handler ended, `None`: it did not end by itself.
    pub(crate) fn handler_answered(&mut self, id: HandlerId, exit_code: Option<i32>) {
        let place = self.peers.iter().enumerate().find_map(|(p, peer)| {
            let asks = |device: &crate::peer::PeerDevice| {
                device.asked.as_ref().is_some_and(|asked| asked.id == id)
            };
            Some((p, peer.devices.iter().position(asks)?))
        });
        let Some((p, v)) = place else {
            // The resync that it was about is not to be any more.
            return;
        };
        let Some(asked) = self.peers[p].devices[v].asked.take() else {
            return;
        };
        match (asked.then, exit_code) {
            (Awaited::Source, Some(0 | 3)) => self.send_resync_begin(p, v),
            (Awaited::Target { current, history }, Some(0)) => {
                self.prepare_target(p, v, current, history);
            }
            (Awaited::Source, code) => self.resync_forbidden(p, v, "before-resync-source", code),
            (Awaited::Target { .. }, code) => {
                self.resync_forbidden(p, v, "before-resync-target", code)
            }
        }
    }

    fn resync_forbidden(&mut self, p: usize, v: usize, name: &'static str, code: Option<i32>) {
        let said = match code {
            Some(code) => format!("ended with exit code {code}"),
            None => String::from("did not come to its end"),
        };
        let text = format!(
            "handler {name} {said}: no resync, the connection is dropped; 'connect' asks again"
        );
        let serves = self.role == Role::Primary
            && (self.peers[p].devices[v].mine.as_ref()).is_some_and(|mine| mine.attached_anew);
        self.decision(Some(p), Some(v), name, text.clone());
        if serves {
            // This Primary's clients live on the peer's data: it is the disk that goes, not the connection.
            self.peers[p].devices[v].hold = false;
            return self.fail_disk(v, name);
        }
        self.send(
            p,
            Message::Goodbye {
                reason: GoodbyeReason::Disconnect,
                text,
            },
        );
        self.drop_session(p, ConnectionState::Disconnecting, name);
    }
}
