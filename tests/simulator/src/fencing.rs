//! The cluster around the nodes, as far as fencing goes: what a `fence-peer` handler brings about and finds out. And the handlers that
//! are asked before a resync: how long they take and what they say.
//!
//! A constraint in the cluster's configuration, which outlives every node, keeps one of two nodes from being promoted. Whoever fences
//! first places it, `unfence-peer` lifts it, and who is under it cannot fence. With STONITH the fenced node has lost its power before the
//! handler says so. A handler may fail, and takes its time; meanwhile the peer may come back.

use qrbd_engine::api::{Event, FenceAnswer, FenceId, HandlerId};
use qrbd_engine::config::Fencing;

use crate::network::NodeIndex;
use crate::queue::{MILLISECOND, SECOND};
use crate::world::{Occurrence, World, node_id};

impl World {
    /// An engine wants a peer fenced.
    pub(crate) fn fence_called(&mut self, node: NodeIndex, peer: NodeIndex, id: FenceId) {
        self.trace
            .line(self.now, || format!("n{node} handler fence-peer n{peer}"));
        let delay = self.random.delay(MILLISECOND, 3 * SECOND / 2);
        let incarnation = self.nodes[node].incarnation;
        self.schedule(
            delay,
            Occurrence::Fence {
                node,
                incarnation,
                peer,
                id,
            },
        );
    }

    /// The handler comes to its end.
    pub(crate) fn fence(
        &mut self,
        node: NodeIndex,
        incarnation: u64,
        peer: NodeIndex,
        id: FenceId,
    ) {
        if !self.nodes[node].still_runs(incarnation) {
            return;
        }
        let answer = self.fencing_verdict(node, peer);
        self.trace.line(self.now, || {
            format!("n{node} fence-peer n{peer}: {}", answer.text())
        });
        self.tell(
            node,
            Event::PeerFenced {
                peer: node_id(peer),
                id,
                answer,
            },
        );
    }

    fn fencing_verdict(&mut self, node: NodeIndex, peer: NodeIndex) -> FenceAnswer {
        let fails = !self.manager.healing && self.random.chance(80);
        if self.constrained == Some(node) || fails || self.fencing_fails {
            return FenceAnswer::Failed;
        }
        let lives = self.nodes[peer].process.is_some();
        if self.settings.fencing == Fencing::ResourceAndStonith {
            self.constrained = Some(peer);
            if !lives && self.random.chance(500) {
                return FenceAnswer::Unreachable;
            }
            self.crash(peer, true);
            self.start_later(peer);
            return FenceAnswer::Stonith;
        }
        if self.nodes[peer].is_primary() {
            return FenceAnswer::PeerIsPrimary;
        }
        let being_promoted = (self.commands.values())
            .any(|command| command.node == peer && command.promotion.is_some());
        if lives && being_promoted {
            return FenceAnswer::Failed;
        }
        self.constrained = Some(peer);
        if lives {
            FenceAnswer::Outdated
        } else {
            FenceAnswer::Unreachable
        }
    }

    /// An engine asks a handler before a resync.
    pub(crate) fn handler_asked(&mut self, node: NodeIndex, name: &str, id: HandlerId) {
        self.trace
            .line(self.now, || format!("n{node} handler {name}"));
        let delay = self.random.delay(MILLISECOND, SECOND);
        let incarnation = self.nodes[node].incarnation;
        self.schedule(
            delay,
            Occurrence::Handler {
                node,
                incarnation,
                id,
            },
        );
    }

    /// That handler comes to its end.
    pub(crate) fn handler_ends(&mut self, node: NodeIndex, incarnation: u64, id: HandlerId) {
        if !self.nodes[node].still_runs(incarnation) {
            return;
        }
        let refuses = self.settings.asked_before_resync.unwrap_or(0);
        let forbidden = !self.manager.healing && self.random.chance(refuses);
        let exit_code = if forbidden {
            *self.random.pick(&[Some(1), None])
        } else {
            Some(0)
        };
        self.trace.line(self.now, || {
            format!("n{node} handler ends with {exit_code:?}")
        });
        self.tell(node, Event::HandlerAnswered { id, exit_code });
    }

    /// An engine wants its peer to be free again.
    pub(crate) fn unfence_called(&mut self, node: NodeIndex) {
        if self.constrained.is_some_and(|other| other != node) {
            self.trace
                .line(self.now, || format!("n{node} lifts the constraint"));
            self.constrained = None;
        }
    }
}
