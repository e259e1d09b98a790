//! Writes that nobody waits for leave together (protocol A).
//!
//! A client under protocol A waits for the local disk alone. At depth 1 each of its writes would be a packet of its own, with a wake-up at the
//! peer, on two machines that have better things to do. So the shell is told that more follows, until there are several writes or much data, or
//! [`limits::SEND_GATHER_MS`] have passed.
//!
//! Invariants: what is gathered leaves with whatever else is sent on the data lane, before a goodbye, and when a client flushes or writes with
//! FUA: what an application made durable is on its way to the peer. Nothing is gathered while anybody waits for the peer: without a good disk here, or during a
//! resync.

use crate::api::{Effect, Payload};
use crate::engine::Engine;
use crate::limits;
use crate::state::DiskState;
use crate::units::Time;
use crate::wire::message::Protocol;
use crate::wire::{Lane, Message};

/// What the shell keeps of one session's data lane, because more follows.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    operations: usize,
    bytes: u64,
    /// When it leaves at the latest; `None` while there is nothing.
    pub due: Option<Time>,
}

impl<P: Payload> Engine<P> {
    pub(crate) fn send(&mut self, p: usize, message: Message<P>) {
        let Some(session) = self.peers[p].session else {
            return;
        };
        let more = match message.lane() {
            Lane::Data => self.is_gathered(p, &message),
            Lane::Control if matches!(message, Message::Goodbye { .. }) => {
                self.push_gathered(p);
                false
            }
            _ => false,
        };
        self.peers[p].last_sent = self.now;
        self.effect(Effect::Send {
            peer: self.peers[p].config.node_id,
            session,
            message,
            more,
        });
    }

    /// True if this message of the data lane may wait for others. Otherwise those that wait leave with it.
    fn is_gathered(&mut self, p: usize, message: &Message<P>) -> bool {
        if !self.gathers_writes(p) {
            self.peers[p].gathered = Gathered::default();
            return false;
        }
        let (operations, bytes) = match message {
            Message::Write { payload, .. } => (1, payload.length() as u64),
            Message::Discard { .. } | Message::WriteZeroes { .. } => (1, 0),
            Message::Barrier { .. } => (0, 0),
            _ => (usize::MAX, 0),
        };
        let most = self.most_gathered().min(limits::SEND_OPERATIONS);
        let due = self.now.after(limits::SEND_GATHER_MS);
        let gathered = &mut self.peers[p].gathered;
        gathered.operations = gathered.operations.saturating_add(operations);
        gathered.bytes += bytes;
        let more = gathered.operations < most && gathered.bytes < limits::SEND_BYTES;
        if more {
            gathered.due.get_or_insert(due);
        } else {
            *gathered = Gathered::default();
        }
        more
    }

    /// What is gathered leaves now.
    pub(crate) fn push_gathered(&mut self, p: usize) {
        let peer = &mut self.peers[p];
        if core::mem::take(&mut peer.gathered).due.is_some()
            && let Some(session) = peer.session
        {
            let peer = peer.config.node_id;
            self.effect(Effect::Push { peer, session });
        }
    }

    /// Has what is gathered leave if it is time, or if somebody waits for it by now.
    pub(crate) fn release_gathered(&mut self, p: usize) {
        let due = self.peers[p].gathered.due;
        if due.is_some_and(|due| due <= self.now || !self.gathers_writes(p)) {
            self.push_gathered(p);
        }
    }

    /// True if nobody waits for the writes that are sent to the peer.
    fn gathers_writes(&self, p: usize) -> bool {
        let peer = &self.peers[p];
        peer.config.protocol == Protocol::A
            && (self.volumes.iter().zip(&peer.devices)).all(|(volume, device)| {
                volume.disk == DiskState::UpToDate && device.disk == DiskState::UpToDate
            })
    }
}
