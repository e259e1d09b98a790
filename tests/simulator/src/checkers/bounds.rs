//! S2: what is open is bounded.

use crate::network::NodeIndex;
use crate::stamps::Stamps;
use crate::world::World;
use qrbd_engine::api::Payload;
use qrbd_engine::wire::message::Message;

/// Two windows of 1 MiB as configured, one request or resync block of up to 1 MiB beyond each.
const MOST_BYTES_ON_THE_WAY: usize = 5 << 20;
/// More than any mix of the workload's requests and of a resync window can need.
const MOST_DISK_OPERATIONS: usize = 4096;

fn payload_bytes(message: &Message<Stamps>) -> usize {
    match message {
        Message::Write { payload, .. } | Message::ResyncData { payload, .. } => payload.length(),
        Message::ReadReply { payload, .. } => payload.as_ref().map_or(0, Payload::length),
        _ => 0,
    }
}

impl World {
    /// Called when a connection took a message.
    pub(crate) fn check_lane(&mut self, connection: usize, end: usize) {
        let lanes = &self.connections[connection].lanes[end];
        let messages: usize = lanes.iter().map(|lane| lane.messages.len()).sum();
        if messages % 64 == 63 {
            let bytes: usize = lanes
                .iter()
                .flat_map(|lane| &lane.messages)
                .map(|(_, message)| payload_bytes(message))
                .sum();
            if bytes > MOST_BYTES_ON_THE_WAY {
                self.fail("bounds", format!("{bytes} bytes in {messages} messages are on their way on connection {connection}"));
            } else if messages > 20_000 {
                self.fail(
                    "bounds",
                    format!("{messages} messages are on their way on connection {connection}"),
                );
            }
        }
    }

    /// Called after a step.
    pub(crate) fn check_open_operations(&mut self, node: NodeIndex) {
        let open = self.nodes[node]
            .process
            .as_ref()
            .map_or(0, |process| process.disk_operations);
        if open > MOST_DISK_OPERATIONS {
            self.fail("bounds", format!("n{node} has {open} disk operations open"));
        }
    }
}
