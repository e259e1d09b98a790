//! How far resyncs were a while ago: DRBD's rolling marks, from which `status` tells speed and remaining time.
//!
//! A mark is set at most every [`STEP_MS`]; the last [`MARKS`] are kept. Only counts: whether a resync runs is the engine's.

use std::collections::{BTreeMap, VecDeque};

use qrbd_engine::api::Notice;
use qrbd_engine::state::ReplicationState;
use qrbd_engine::status::Status;
use qrbd_engine::units::{NodeId, Time, VolumeNumber};

/// Marks kept.
const MARKS: usize = 8;
/// Time between two marks.
const STEP_MS: u64 = 3_000;

#[derive(Debug)]
struct Resync {
    /// Time and bytes that were left.
    marks: VecDeque<(Time, u64)>,
    paused_since: Option<Time>,
    paused_ms: u64,
}

/// The resyncs that run.
#[derive(Debug, Default)]
pub(super) struct Marks {
    running: BTreeMap<(NodeId, VolumeNumber), Resync>,
    next: Option<Time>,
}

/// What was done since two marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Since {
    /// Milliseconds since the mark.
    pub(super) milliseconds: u64,
    /// Bytes done since the mark.
    pub(super) bytes: u64,
}

impl Marks {
    /// Follows a change of the replication state.
    pub(super) fn notice(&mut self, now: Time, notice: &Notice) {
        let Notice::Replication {
            peer, volume, to, ..
        } = notice
        else {
            return;
        };
        let key = (*peer, *volume);
        let paused = matches!(
            to,
            ReplicationState::PausedSyncS | ReplicationState::PausedSyncT
        );
        if !(to.is_sync_source() || to.is_sync_target()) {
            self.running.remove(&key);
            return;
        }
        let resync = self.running.entry(key).or_insert_with(|| {
            // The first mark is set at once.
            self.next = Some(now);
            Resync {
                marks: VecDeque::new(),
                paused_since: None,
                paused_ms: 0,
            }
        });
        match (paused, resync.paused_since) {
            (true, None) => resync.paused_since = Some(now),
            (false, Some(since)) => {
                resync.paused_ms += now.since(since);
                resync.paused_since = None;
            }
            _ => {}
        }
    }

    /// True if [`Marks::set`] is to be called.
    pub(super) fn are_due(&self, now: Time) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    /// Sets a mark for each resync.
    pub(super) fn set(&mut self, now: Time, status: &Status) {
        self.next = (!self.running.is_empty()).then(|| now.after(STEP_MS));
        for peer in &status.peers {
            for device in &peer.devices {
                if let Some(resync) = self.running.get_mut(&(peer.node_id, device.number)) {
                    if resync.marks.len() == MARKS {
                        resync.marks.pop_front();
                    }
                    resync.marks.push_back((now, device.out_of_sync_bytes));
                }
            }
        }
    }

    /// What was done since the oldest mark and since the last but one, with `left` bytes to go, and how long it was held.
    pub(super) fn since(
        &self,
        peer: NodeId,
        volume: VolumeNumber,
        now: Time,
        left: u64,
    ) -> Option<([Since; 2], u64)> {
        let resync = self.running.get(&(peer, volume))?;
        let newer = resync.marks.len().saturating_sub(2);
        let pair = [resync.marks.front()?, resync.marks.get(newer)?];
        let since = pair.map(|&(time, before)| Since {
            milliseconds: now.since(time),
            bytes: before.saturating_sub(left),
        });
        Some((
            since,
            resync.paused_ms + resync.paused_since.map_or(0, |paused| now.since(paused)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use qrbd_engine::state::{ConnectionState, DiskState, Role};
    use qrbd_engine::status::{PeerDeviceStatus, PeerStatus};

    use super::*;

    const PEER: NodeId = NodeId(1);
    const VOLUME: VolumeNumber = VolumeNumber(0);

    fn change(to: ReplicationState) -> Notice {
        Notice::Replication {
            peer: PEER,
            volume: VOLUME,
            from: ReplicationState::Off,
            to,
            rule: "test",
        }
    }

    fn status(left: u64) -> Status {
        let device = PeerDeviceStatus {
            number: VOLUME,
            replication: ReplicationState::SyncSource,
            peer_disk: DiskState::Inconsistent,
            out_of_sync_bytes: left,
            paused_here: false,
            paused_there: false,
            resync: None,
        };
        let peer = PeerStatus {
            node_id: PEER,
            connection: ConnectionState::Connected,
            role: Role::Secondary,
            in_flight_bytes: 0,
            log_entries: 0,
            received_operations: 0,
            devices: vec![device],
        };
        Status {
            role: Role::Primary,
            suspended_user: false,
            suspended_fencing: false,
            volumes: vec![],
            peers: vec![peer],
        }
    }

    #[test]
    fn speeds_are_told_from_the_oldest_mark_and_a_recent_one() {
        let mut marks = Marks::default();
        marks.notice(Time(0), &change(ReplicationState::SyncSource));
        let mut left = 100_000;
        for second in 0..60 {
            let now = Time(second * 1_000);
            if marks.are_due(now) {
                marks.set(now, &status(left));
            }
            left -= 100;
        }
        // Marks at 36, 39, … 57 seconds are kept; the last but one is that at 54.
        let ([oldest, recent], paused) = marks.since(PEER, VOLUME, Time(60_000), left).unwrap();
        assert_eq!(
            oldest,
            Since {
                milliseconds: 24_000,
                bytes: 2_400
            }
        );
        assert_eq!(
            recent,
            Since {
                milliseconds: 6_000,
                bytes: 600
            }
        );
        assert_eq!(paused, 0);
    }

    #[test]
    fn a_pause_counts_and_the_end_forgets() {
        let mut marks = Marks::default();
        marks.notice(Time(0), &change(ReplicationState::SyncTarget));
        marks.set(Time(0), &status(10));
        marks.notice(Time(1_000), &change(ReplicationState::PausedSyncT));
        marks.notice(Time(3_000), &change(ReplicationState::SyncTarget));
        marks.notice(Time(9_000), &change(ReplicationState::PausedSyncT));
        assert_eq!(marks.since(PEER, VOLUME, Time(9_500), 10).unwrap().1, 2_500);
        marks.notice(Time(10_000), &change(ReplicationState::Established));
        assert_eq!(marks.since(PEER, VOLUME, Time(10_000), 0), None);
        marks.set(Time(12_000), &status(0));
        assert!(
            !marks.are_due(Time(99_000)),
            "nothing runs, nothing is marked"
        );
    }
}
