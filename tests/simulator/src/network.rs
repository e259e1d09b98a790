//! The network between nodes: QUIC's contract, weakened as far as it may be.
//!
//! Invariants:
//! - order within a lane until the connection ends, none between lanes;
//! - when a connection dies, an unknown suffix of each lane is lost, and each end learns of it at another time;
//! - an end that still holds a dead session loses it before it gets a new one; session numbers are never reused;
//! - a blocked direction delivers nothing; data wait until it heals or the connection dies.
//!
//! Owns links and connections as data. Who wants a session, and telling the engines, is the world's business.

use std::collections::VecDeque;

use qrbd_engine::api::SessionId;
use qrbd_engine::wire::message::{Lane, Message};

use crate::queue::Micros;
use crate::random::Random;
use crate::stamps::Stamps;

/// Index of a node in the world.
pub type NodeIndex = usize;

/// Messages of one lane in one direction, with the time at which each may be delivered.
#[derive(Default)]
pub struct LaneQueue {
    /// Messages on their way.
    pub messages: VecDeque<(Micros, Message<Stamps>)>,
    /// So many of the last ones are kept by the sender, which expects more of them.
    pub kept: usize,
    /// Delivery time of the last message sent.
    last_at: Micros,
    /// True while a delivery is scheduled.
    pub scheduled: bool,
}

impl LaneQueue {
    /// What is kept leaves, and may be delivered at `at`.
    pub fn push(&mut self, at: Micros) {
        self.last_at = self.last_at.max(at);
        let sent = self.messages.len() - self.kept;
        for (time, _) in self.messages.range_mut(sent..) {
            *time = self.last_at;
        }
        self.kept = 0;
    }
}

/// What an end knows of its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndState {
    /// The connection stands, this end was not told yet.
    Pending,
    /// The engine was told of the session.
    Up,
    /// The engine was told of its end, or never will be told of the session.
    Gone,
}

/// One end of a connection.
pub struct End {
    /// Which node.
    pub node: NodeIndex,
    /// Which start of its process.
    pub incarnation: u64,
    /// Its session.
    pub session: SessionId,
    /// What it knows.
    pub state: EndState,
    /// The engine closed it: nothing more is sent.
    pub closing: bool,
}

/// A connection.
pub struct Connection {
    /// Its link.
    pub link: usize,
    /// Both ends, in the order of the link's nodes.
    pub ends: [End; 2],
    /// Lanes by sender (index of the end) and lane.
    pub lanes: [[LaneQueue; 4]; 2],
    /// Nothing that is sent from now on arrives.
    pub dead: bool,
    /// The loss was scheduled at the end.
    pub loss_scheduled: [bool; 2],
}

impl Connection {
    /// The end of `node`.
    #[must_use]
    pub fn end_of(&self, node: NodeIndex) -> usize {
        usize::from(self.ends[0].node != node)
    }

    /// Queues a message that may be delivered at `at`; with `more` it is kept.
    pub fn send(
        &mut self,
        from: usize,
        lane: Lane,
        message: Message<Stamps>,
        at: Micros,
        more: bool,
    ) {
        let queue = &mut self.lanes[from][lane as usize];
        queue.messages.push_back((at, message));
        queue.kept += 1;
        if !more {
            queue.push(at);
        }
    }

    /// Messages on their way to end `to`.
    #[must_use]
    pub fn pending_to(&self, to: usize) -> usize {
        self.lanes[1 - to]
            .iter()
            .map(|lane| lane.messages.len())
            .sum()
    }

    /// The connection dies: a random suffix of each lane is lost.
    pub fn die(&mut self, random: &mut Random) {
        self.dead = true;
        for lane in self.lanes.iter_mut().flatten() {
            lane.messages.truncate(lane.messages.len() - lane.kept);
            let keep = match random.below(3) {
                0 => 0,
                1 => lane.messages.len(),
                _ => random.below(lane.messages.len() as u64 + 1) as usize,
            };
            lane.messages.truncate(keep);
            lane.kept = 0;
        }
    }

    /// True if no end has or will have a session.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.state == EndState::Gone)
    }
}

/// The path between two nodes.
pub struct Link {
    /// Both nodes.
    pub nodes: [NodeIndex; 2],
    /// Blocked directions, by sender.
    pub blocked: [bool; 2],
    /// A call is scheduled.
    pub call_scheduled: bool,
    /// Shortest and longest delay of a message.
    pub delay: (Micros, Micros),
}

impl Link {
    /// True if nothing is blocked.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.blocked[0] && !self.blocked[1]
    }

    /// Index of `node` among the link's nodes, if it is one of them.
    #[must_use]
    pub fn side_of(&self, node: NodeIndex) -> Option<usize> {
        self.nodes.iter().position(|&other| other == node)
    }
}
