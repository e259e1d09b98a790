//! Is the peer alive? Any frame says so. A ping asks; without an answer in `ping-timeout` the connection ends.
//!
//! Where somebody waits for the answer, the peer's machine is asked, too: a killed daemon's port is closed, and the kernel there says so
//! (ICMP). That is at once for a command (a promotion beside a Primary that may have died a moment ago), and after a silence of
//! `ping-timeout` for clients whose writes or flushes wait. Such a word is not authenticated, and a packet filter on the way says the same
//! for a daemon that lives. It ends nothing by itself; it has a ping sent and makes the patience shorter.

use crate::api::{Effect, Payload, SessionId};
use crate::engine::Engine;
use crate::limits;
use crate::peer::Ping;
use crate::state::ConnectionState;
use crate::units::{NodeId, Time};
use crate::wire::Message;

impl<P: Payload> Engine<P> {
    /// Sends a ping, unless one is under way; no answer in time ends the connection.
    pub(crate) fn ping(&mut self, p: usize) {
        if self.peers[p].ping.is_none() {
            let id = self.random.draw();
            let now = self.now;
            let peer = &mut self.peers[p];
            peer.ping = Some(Ping {
                deadline: now.after(peer.config.ping_timeout),
                probed: false,
            });
            self.send(p, Message::Ping { id });
        }
    }

    /// A command waits for the answer: a ping, and a way to learn sooner that the peer's daemon is gone.
    pub(crate) fn ask_whether_alive(&mut self, p: usize) {
        self.ping(p);
        let asked = self.peers[p].ping.as_mut().map(|ping| &mut ping.probed);
        if asked.is_some_and(|asked| !core::mem::replace(asked, true)) {
            self.probe(p);
        }
    }

    /// Has the peer's machine asked.
    pub(crate) fn probe(&mut self, p: usize) {
        let peer = &mut self.peers[p];
        if let Some(session) = peer.session {
            peer.last_probed = self.now;
            let peer = peer.config.node_id;
            self.effect(Effect::Probe { peer, session });
        }
    }

    /// When the peer's machine is to be asked because clients wait for a peer that says nothing.
    pub(crate) fn probe_due(&self, p: usize) -> Option<Time> {
        let peer = &self.peers[p];
        let written = peer.stalled.map(|(_, since)| since);
        let durable = Some(peer.last_sent).filter(|_| !peer.barrier_waiters.is_empty());
        let since = written.or(durable)?;
        let silent = since.max(peer.last_heard).max(peer.last_probed);
        Some(silent.after(peer.config.ping_timeout))
    }

    /// Whoever is there after all, behind a packet filter that lies or with a slow machine, has time to answer a ping.
    pub(crate) fn nobody_listens(&mut self, node: NodeId, session: SessionId) {
        let Some(p) = self.peer_index(node) else {
            return;
        };
        let peer = &self.peers[p];
        if peer.session != Some(session) || peer.connection != ConnectionState::Connected {
            return;
        }
        self.ping(p);
        let now = self.now;
        let peer = &mut self.peers[p];
        let short = now.after(peer.config.ping_timeout / limits::NOBODY_LISTENS_SHORTENS);
        if let Some(ping) = peer.ping.as_mut() {
            ping.deadline = ping.deadline.min(short);
        }
    }
}
