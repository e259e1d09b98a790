//! Sessions between nodes: calls, losses, messages on their way, blocked links. The data are in [`crate::network`].

use qrbd_engine::api::{Event, LossReason, SessionId};
use qrbd_engine::units::NodeId;
use qrbd_engine::wire::message::{Lane, Message};

use crate::codec::through_the_wire;
use crate::network::{Connection, End, EndState, LaneQueue, NodeIndex};
use crate::queue::{MILLISECOND, Micros, SECOND};
use crate::stamps::Stamps;
use crate::world::{Occurrence, World, node_id};

impl World {
    /// The link between two nodes.
    #[must_use]
    pub fn link_of(&self, a: NodeIndex, b: NodeIndex) -> usize {
        self.links
            .iter()
            .position(|link| link.nodes == [a.min(b), a.max(b)])
            .expect("each two nodes have a link")
    }

    pub(crate) fn call_later(&mut self, link: usize) {
        if !self.links[link].call_scheduled {
            self.links[link].call_scheduled = true;
            let delay = self.network_random.delay(MILLISECOND, 100 * MILLISECOND);
            self.schedule(delay, Occurrence::Call { link });
        }
    }

    pub(crate) fn call(&mut self, link: usize) {
        self.links[link].call_scheduled = false;
        let [a, b] = self.links[link].nodes;
        let wants = |node: NodeIndex, peer: NodeIndex| {
            self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|process| process.wants[peer])
        };
        let idle = |node: NodeIndex, peer: NodeIndex| {
            self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|process| process.wants[peer] && process.sessions[peer].is_none())
        };
        let lonely = idle(a, b) || idle(b, a);
        if !lonely {
            return;
        }
        let pending = self
            .live
            .iter()
            .map(|&live| &self.connections[live])
            .any(|connection| {
                connection.link == link
                    && !connection.dead
                    && connection
                        .ends
                        .iter()
                        .any(|end| end.state == EndState::Pending)
            });
        if !wants(a, b) || !wants(b, a) || !self.links[link].is_open() || pending {
            // Somebody goes on calling.
            self.links[link].call_scheduled = true;
            let delay = self
                .network_random
                .between(20 * MILLISECOND, 100 * MILLISECOND);
            self.schedule(delay, Occurrence::Call { link });
            return;
        }
        let ends = [a, b].map(|node| {
            let session = SessionId(self.next_session);
            self.next_session += 1;
            End {
                node,
                incarnation: self.nodes[node].incarnation,
                session,
                state: EndState::Pending,
                closing: false,
            }
        });
        let lanes: [[LaneQueue; 4]; 2] = Default::default();
        self.connections.push(Connection {
            link,
            ends,
            lanes,
            dead: false,
            loss_scheduled: [false; 2],
        });
        let connection = self.connections.len() - 1;
        let connections = &self.connections;
        self.live
            .retain(|&connection| !connections[connection].is_over());
        self.live.push(connection);
        for end in 0..2 {
            let delay = self
                .network_random
                .delay(self.links[link].delay.0, 4 * self.links[link].delay.1);
            self.schedule(delay, Occurrence::Up { connection, end });
        }
        // Both called at once: the surplus connection dies young.
        if self.network_random.chance(30) {
            let delay = self.network_random.delay(100, 20 * MILLISECOND);
            self.schedule(delay, Occurrence::Idle { connection, end: 0 });
        }
    }

    pub(crate) fn session_up(&mut self, connection: usize, end: usize) {
        let shell = &self.connections[connection];
        let (node, peer) = (shell.ends[end].node, shell.ends[1 - end].node);
        let link = shell.link;
        let session = shell.ends[end].session;
        let alive = self.nodes[node].incarnation == shell.ends[end].incarnation
            && self.nodes[node]
                .process
                .as_ref()
                .is_some_and(|process| process.wants[peer]);
        if shell.dead || !alive {
            self.connections[connection].ends[end].state = EndState::Gone;
            if !self.connections[connection].dead {
                self.connections[connection].die(&mut self.network_random);
            }
            self.lose_later(
                connection,
                1 - end,
                LossReason::NetworkFailure,
                (MILLISECOND, SECOND),
            );
            self.call_later(link);
            return;
        }
        if let Some((_, old)) = self.process(node).sessions[peer] {
            let old_end = self.connections[old].end_of(node);
            if !self.connections[old].dead {
                self.connections[old].die(&mut self.network_random);
                self.lose_later(
                    old,
                    1 - old_end,
                    LossReason::NetworkFailure,
                    (MILLISECOND, SECOND),
                );
            }
            self.session_lost(old, old_end, LossReason::Replaced);
            if self.violation.is_some()
                || self.nodes[node]
                    .process
                    .as_ref()
                    .is_none_or(|process| !process.wants[peer])
            {
                self.connections[connection].ends[end].state = EndState::Gone;
                return;
            }
        }
        self.connections[connection].ends[end].state = EndState::Up;
        self.process(node).sessions[peer] = Some((session, connection));
        self.trace.line(self.now, || {
            format!("n{node} session {} to n{peer} is up", session.0)
        });
        self.tell(
            node,
            Event::PeerConnected {
                peer: node_id(peer),
                session,
            },
        );
        for lane in Lane::ALL {
            self.deliver_later(connection, 1 - end, lane);
        }
    }

    /// Tells an end, at some later time, that its session is over.
    pub fn lose_later(
        &mut self,
        connection: usize,
        end: usize,
        reason: LossReason,
        delay: (Micros, Micros),
    ) {
        let shell = &mut self.connections[connection];
        if shell.ends[end].state != EndState::Gone && !shell.loss_scheduled[end] {
            shell.loss_scheduled[end] = true;
            let delay = self.network_random.delay(delay.0, delay.1);
            self.schedule(
                delay,
                Occurrence::Lost {
                    connection,
                    end,
                    reason,
                },
            );
        }
    }

    /// The connection dies at once; the ends learn of it later.
    pub fn kill_connection(&mut self, connection: usize) {
        if !self.connections[connection].dead {
            self.trace
                .line(self.now, || format!("connection {connection} dies"));
            self.connections[connection].die(&mut self.network_random);
            for end in 0..2 {
                self.lose_later(
                    connection,
                    end,
                    LossReason::NetworkFailure,
                    (MILLISECOND, 2 * SECOND),
                );
            }
        }
    }

    pub(crate) fn session_lost(&mut self, connection: usize, end: usize, reason: LossReason) {
        let shell = &mut self.connections[connection];
        let state = std::mem::replace(&mut shell.ends[end].state, EndState::Gone);
        let (node, peer) = (shell.ends[end].node, shell.ends[1 - end].node);
        let (session, link, incarnation) = (
            shell.ends[end].session,
            shell.link,
            shell.ends[end].incarnation,
        );
        if !shell.dead {
            shell.die(&mut self.network_random);
            self.lose_later(
                connection,
                1 - end,
                LossReason::NetworkFailure,
                (MILLISECOND, 2 * SECOND),
            );
        }
        if state == EndState::Up && self.nodes[node].still_runs(incarnation) {
            if self.process(node).sessions[peer] == Some((session, connection)) {
                self.process(node).sessions[peer] = None;
            }
            self.trace.line(self.now, || {
                format!(
                    "n{node} session {} to n{peer} is lost: {reason:?}",
                    session.0
                )
            });
            self.tell(
                node,
                Event::PeerLost {
                    peer: node_id(peer),
                    session,
                    reason,
                },
            );
        }
        self.call_later(link);
    }

    /// The peer's machine is asked whether anybody listens there.
    pub(crate) fn probe(&mut self, node: NodeIndex, peer: NodeIndex, session: SessionId) {
        let link = self.link_of(node, peer);
        let (least, most) = self.links[link].delay;
        let delay = self.network_random.delay(2 * least, 2 * most);
        self.schedule(
            delay,
            Occurrence::Probed {
                node,
                incarnation: self.nodes[node].incarnation,
                peer,
                session,
            },
        );
    }

    /// What has power says that nobody listens where no process runs; behind a blocked link nothing is heard of it.
    pub(crate) fn probed(
        &mut self,
        node: NodeIndex,
        incarnation: u64,
        peer: NodeIndex,
        session: SessionId,
    ) {
        if !self.nodes[node].still_runs(incarnation) {
            return;
        }
        let link = self.link_of(node, peer);
        let silent = self.nodes[peer].process.is_some() || self.nodes[peer].without_power;
        if !silent && self.links[link].is_open() {
            self.trace
                .line(self.now, || format!("n{node} nobody listens at n{peer}"));
            let peer = node_id(peer);
            self.tell(node, Event::NobodyListens { peer, session });
        }
    }

    pub(crate) fn close(&mut self, node: NodeIndex, peer: NodeId, session: SessionId) {
        let peer = usize::from(peer.0);
        let Some((current, connection)) = self.process(node).sessions[peer] else {
            return;
        };
        if current != session {
            return;
        }
        self.trace.line(self.now, || {
            format!("n{node} closes session {} to n{peer}", session.0)
        });
        let end = self.connections[connection].end_of(node);
        let blocked = self.links[self.connections[connection].link].blocked[end];
        let shell = &mut self.connections[connection];
        if std::mem::replace(&mut shell.ends[end].closing, true) {
            return;
        }
        let last = shell.lanes[end]
            .iter()
            .filter_map(|lane| lane.messages.back().map(|(at, _)| *at))
            .max()
            .unwrap_or(self.now);
        let flush = last.saturating_sub(self.now).min(SECOND);
        let dead = shell.dead;
        if !shell.loss_scheduled[end] {
            shell.loss_scheduled[end] = true;
            let delay = flush + self.network_random.delay(100, 20 * MILLISECOND);
            self.schedule(
                delay,
                Occurrence::Lost {
                    connection,
                    end,
                    reason: LossReason::ClosedHere,
                },
            );
        }
        if !dead && !blocked {
            // The peer learns of the end after the last message.
            let shell = &mut self.connections[connection];
            if !shell.loss_scheduled[1 - end] {
                shell.loss_scheduled[1 - end] = true;
                let delay = flush + self.network_random.delay(MILLISECOND, 50 * MILLISECOND);
                self.schedule(
                    delay,
                    Occurrence::Lost {
                        connection,
                        end: 1 - end,
                        reason: LossReason::Closed,
                    },
                );
            }
        } else {
            self.lose_later(
                connection,
                1 - end,
                LossReason::NetworkFailure,
                (MILLISECOND, 3 * SECOND),
            );
        }
    }

    pub(crate) fn send(
        &mut self,
        node: NodeIndex,
        peer: NodeId,
        session: SessionId,
        message: Message<Stamps>,
        more: bool,
    ) {
        let peer = usize::from(peer.0);
        let lane = message.lane();
        self.trace.mix(&[20, lane as u64]);
        self.trace.line(self.now, || {
            format!("n{node} -> n{peer} {}", short(&message))
        });
        self.check_send(node, peer, &message);
        let Some((connection, end)) = self.open_end(node, peer, session) else {
            return;
        };
        let message = through_the_wire(&message);
        let at = self.arrival(connection);
        self.connections[connection].send(end, lane, message, at, more);
        self.check_lane(connection, end);
        self.deliver_later(connection, end, lane);
    }

    /// The connection and the node's end of it, if the session still takes messages there.
    fn open_end(
        &mut self,
        node: NodeIndex,
        peer: NodeIndex,
        session: SessionId,
    ) -> Option<(usize, usize)> {
        let (current, connection) = self.process(node).sessions[peer]?;
        let shell = &self.connections[connection];
        let end = shell.end_of(node);
        (current == session && !shell.dead && !shell.ends[end].closing).then_some((connection, end))
    }

    /// When a message may be delivered that leaves now.
    fn arrival(&mut self, connection: usize) -> Micros {
        let link = &self.links[self.connections[connection].link];
        self.now + self.network_random.delay(link.delay.0, link.delay.1)
    }

    /// What the node kept for this session, because more was to follow, leaves.
    pub(crate) fn push(&mut self, node: NodeIndex, peer: NodeId, session: SessionId) {
        let Some((connection, end)) = self.open_end(node, usize::from(peer.0), session) else {
            return;
        };
        let at = self.arrival(connection);
        self.connections[connection].lanes[end][Lane::Data as usize].push(at);
        self.deliver_later(connection, end, Lane::Data);
    }

    pub(crate) fn deliver_later(&mut self, connection: usize, from: usize, lane: Lane) {
        let shell = &mut self.connections[connection];
        let blocked = self.links[shell.link].blocked[from];
        let up = shell.ends[1 - from].state == EndState::Up;
        let queue = &mut shell.lanes[from][lane as usize];
        if let Some((at, _)) = queue.messages.front()
            && queue.messages.len() > queue.kept
            && !queue.scheduled
            && !blocked
            && up
        {
            queue.scheduled = true;
            let at = (*at).max(self.now);
            self.queue.push(
                at,
                Occurrence::Deliver {
                    connection,
                    from,
                    lane,
                },
            );
        }
    }

    pub(crate) fn deliver(&mut self, connection: usize, from: usize, lane: Lane) {
        let shell = &mut self.connections[connection];
        shell.lanes[from][lane as usize].scheduled = false;
        let (node, peer) = (shell.ends[1 - from].node, shell.ends[from].node);
        let session = shell.ends[1 - from].session;
        let up = shell.ends[1 - from].state == EndState::Up
            && self.nodes[node].incarnation == shell.ends[1 - from].incarnation;
        if self.links[shell.link].blocked[from] || !up {
            return;
        }
        if let Some((_, message)) = shell.lanes[from][lane as usize].messages.pop_front() {
            self.trace.line(self.now, || {
                format!("n{node} <- n{peer} {}", short(&message))
            });
            self.check_delivery(node, peer, &message);
            self.tell(
                node,
                Event::Frame {
                    peer: node_id(peer),
                    session,
                    message,
                },
            );
        }
        self.deliver_later(connection, from, lane);
    }

    /// Blocks a direction of a link for a while.
    pub fn block(&mut self, link: usize, side: usize, heal_after: Option<Micros>) {
        if self.links[link].blocked[side] {
            return;
        }
        self.trace.line(self.now, || {
            format!("link {link} blocked from n{}", self.links[link].nodes[side])
        });
        self.links[link].blocked[side] = true;
        if let Some(after) = heal_after {
            self.schedule(after, Occurrence::Heal { link, side });
        }
        for connection in self.live.clone() {
            if self.connections[connection].link == link && !self.connections[connection].is_over()
            {
                // The receiver of the blocked direction hears nothing and gives up, unless it heals before.
                let delay = self.network_random.delay(100 * MILLISECOND, 3 * SECOND);
                self.schedule(
                    delay,
                    Occurrence::Idle {
                        connection,
                        end: 1 - side,
                    },
                );
            }
        }
    }

    /// Heals a direction of a link.
    pub fn heal(&mut self, link: usize, side: usize) {
        if !self.links[link].blocked[side] {
            return;
        }
        self.trace.line(self.now, || {
            format!("link {link} healed from n{}", self.links[link].nodes[side])
        });
        self.links[link].blocked[side] = false;
        for connection in self.live.clone() {
            if self.connections[connection].link == link && !self.connections[connection].is_over()
            {
                for lane in Lane::ALL {
                    self.deliver_later(connection, side, lane);
                }
            }
        }
        self.call_later(link);
    }

    pub(crate) fn idle(&mut self, connection: usize, end: usize) {
        let shell = &self.connections[connection];
        let link = &self.links[shell.link];
        let surplus = end == 0 && !link.blocked[1];
        if shell.dead || shell.is_over() || (!link.blocked[1 - end] && !surplus) {
            return;
        }
        self.kill_connection(connection);
    }
}

/// A message without its bulk, for the trace.
fn short(message: &Message<Stamps>) -> String {
    match message {
        Message::Write {
            sequence,
            epoch,
            range,
            payload,
            ..
        } => {
            let write = payload
                .0
                .first()
                .and_then(|&stamp| crate::stamps::write_of(stamp))
                .unwrap_or(0);
            format!("Write {sequence} epoch {epoch} {range} w{write}")
        }
        Message::ResyncData { id, range, .. } => format!("ResyncData {id} {range}"),
        Message::ReadReply { id, outcome, .. } => format!("ReadReply {id} {outcome:?}"),
        Message::BitmapRuns { last, runs, .. } => {
            format!("BitmapRuns {} bytes, last {last}", runs.len())
        }
        other => format!("{other:?}"),
    }
}
