//! `get-gi` (one machine-readable line per peer) and `show-gi` (the same with a legend).
//!
//! `get-gi` is DRBD 9's line: `current:bitmap:history:history:` and flags as 0 or 1,
//! `consistent:was-up-to-date:primary:crashed-primary:al-clean:al-disabled:primary-lost-quorum:` of the volume, then
//! `connected:peer-outdated:peer-fencing:full-sync:device-seen` of the peer.

use std::fmt::Write;

use qrbd_control::generations::{GenerationReport, PeerFlags, PeerGeneration};

const FLAGS: [&str; 12] = [
    "the local data is consistent",
    "the local data was or is UpToDate",
    "this node was or is Primary, or a peer wrote here",
    "this node crashed as Primary",
    "the activity log was applied at the last detach",
    "the activity log is not kept (al-updates no)",
    "this node lost quorum as Primary",
    "the peer was connected",
    "the peer's data is known to be Outdated or worse",
    "fencing is on for the peer",
    "a full sync with the peer is ordered",
    "the peer's disk was seen",
];

/// One line per peer; a volume that knows no peer gives one line with an empty slot.
#[must_use]
pub fn get_gi(report: &GenerationReport) -> String {
    let mut out = String::new();
    for peer in peers(report) {
        out.push_str(&line(report, &peer));
        out.push('\n');
    }
    out
}

/// The lines of `get-gi` with a legend, per peer.
#[must_use]
pub fn show_gi(report: &GenerationReport) -> String {
    let mut out = String::new();
    for peer in peers(report) {
        let name = match (peer.name.as_str(), report.peers.is_empty()) {
            (_, true) => "no peer known".to_owned(),
            ("", _) => format!("peer with node-id {}", peer.node_id),
            (name, _) => format!("peer {name}, node-id {}", peer.node_id),
        };
        writeln!(out, "{}/{}  {name}", report.resource, report.volume)
            .expect("writing to a String cannot fail");
        out.push_str(
            "\n       +--<  current data generation of this node  >-\n\
             \x20      |                +--<  generation since which changes for the peer are tracked, 0 = none  >-\n\
             \x20      |                |                +--<  newest older generation  >-\n\
             \x20      |                |                |                +--<  the one before  >-\n\
             \x20      V                V                V                V\n",
        );
        let line = line(report, &peer);
        out.push_str(&line);
        out.push('\n');
        // The first flag stands after four identifiers of 16 digits and their colons.
        let first = 4 * 17;
        for done in 0..FLAGS.len() {
            let column = first + 2 * (FLAGS.len() - 1 - done);
            let label = format!("-<  {}  >-", FLAGS[FLAGS.len() - 1 - done]);
            let bars: String = (0..FLAGS.len() - done - 1).map(|_| "| ").collect();
            let _ = writeln!(out, "{:first$}{bars}+-{label}", "");
            debug_assert_eq!(first + bars.len(), column);
        }
        out.push('\n');
    }
    out
}

fn peers(report: &GenerationReport) -> Vec<PeerGeneration> {
    if report.peers.is_empty() {
        vec![PeerGeneration::default()]
    } else {
        report.peers.clone()
    }
}

fn line(report: &GenerationReport, peer: &PeerGeneration) -> String {
    let history = |index: usize| report.history.get(index).copied().unwrap_or(0);
    let volume = report.flags;
    let PeerFlags {
        connected,
        peer_outdated,
        peer_fencing,
        full_sync,
        device_seen,
    } = peer.flags;
    let flags = [
        volume.consistent,
        volume.was_up_to_date,
        volume.primary,
        volume.crashed_primary,
        volume.al_clean,
        volume.al_disabled,
        volume.primary_lost_quorum,
        connected,
        peer_outdated,
        peer_fencing,
        full_sync,
        device_seen,
    ]
    .map(|flag| if flag { "1" } else { "0" });
    format!(
        "{:016X}:{:016X}:{:016X}:{:016X}:{}",
        report.current,
        peer.bitmap,
        history(0),
        history(1),
        flags.join(":")
    )
}
