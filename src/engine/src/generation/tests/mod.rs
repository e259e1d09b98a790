//! Tests of the table: one claim per row, every combination for symmetry, a snapshot, the rotations, and a model with ground truth.

extern crate std;

mod exhaustive;
mod identifiers;
mod model;
mod rows;

use super::{DiskLevel, Protocol, Side};
use crate::units::{Generation, NodeId};

const O: Generation = Generation(0x1000);
const X: Generation = Generation(0x2000);
const Y: Generation = Generation(0x3000);
const Z: Generation = Generation(0x4000);

/// An UpToDate Secondary at generation `O` that was restarted in an orderly way, protocol C.
fn side(node_id: u8) -> Side<'static> {
    Side {
        node_id: NodeId(node_id),
        current: O,
        bitmap: Generation::NONE,
        history: &[],
        crashed_primary: false,
        still_running_since_contact: false,
        role_primary: false,
        disk: DiskLevel::UpToDate,
        full_sync_requested: false,
        sync_target: false,
        bits: 0,
        protocol: Protocol::C,
    }
}
