//! Is the peer alive? Any frame says so. A ping asks; without an answer in `ping-timeout` the connection ends.
//!
//! Where a command waits for the answer (a promotion beside a Primary that may have died a moment ago), the peer's machine is asked,
//! too: a killed daemon's port is closed, and the kernel there says so (ICMP). Such a word is not authenticated, and a packet filter on
//! the way says the same for a daemon that lives. It ends nothing by itself; it makes the patience shorter.

use crate::api::{Effect, Payload, SessionId};
use crate::engine::Engine;
use crate::limits;
use crate::peer::Ping;
use crate::units::NodeId;
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
        let peer = &mut self.peers[p];
        if let (Some(session), Some(ping)) = (peer.session, peer.ping.as_mut())
            && !core::mem::replace(&mut ping.probed, true)
        {
            let peer = peer.config.node_id;
            self.effect(Effect::Probe { peer, session });
        }
    }

    /// Whoever is there after all, behind a packet filter that lies or with a slow machine, has time to answer the ping.
    pub(crate) fn nobody_listens(&mut self, node: NodeId, session: SessionId) {
        let Some(p) = self.peer_index(node) else {
            return;
        };
        let now = self.now;
        let peer = &mut self.peers[p];
        if let Some(ping) = peer.ping.as_mut()
            && peer.session == Some(session)
        {
            let short = now.after(peer.config.ping_timeout / limits::NOBODY_LISTENS_SHORTENS);
            ping.deadline = ping.deadline.min(short);
        }
    }
}
