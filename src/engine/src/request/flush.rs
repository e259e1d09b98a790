//! Flushes: of clients, and the second half of a write with FUA.
//!
//! One local flush runs at a time and serves everybody whose writes ended before it began. Where the local disk cannot make something
//! durable, the peers that mirror must.
//!
//! A client that flushes after every so many writes (the log of a database, the journal of a file system) does not wait for the flush
//! where its rhythm can be foreseen. The local one begins when the last of these writes ended here, while the peer writes, and serves
//! the client when it asks. The peers that the client will wait for get the barrier together with the last write, so that they do not
//! wait for it. Nothing is promised by that: a flush counts for a request only if nothing ended at the disk since it began, and an
//! epoch may end anywhere.

use super::{Kind, Local, Stage};
use crate::api::{Effect, IoError, Payload};
use crate::engine::{Engine, IoOwner};
use crate::state::DiskState;
use crate::wire::message::Protocol;

/// Longer rhythms are no rhythms: what is foreseen then is not worth a guess.
const MOST_WRITES: u32 = 64;

/// After how many writes a client flushes.
#[derive(Debug, Default)]
pub(crate) struct FlushRhythm {
    /// Writes that were submitted since the client's last flush.
    submitted: u32,
    /// Writes that ended since the client's last flush.
    writes: u32,
    /// Writes between the two flushes before.
    expected: u32,
    /// The last flush came when it was expected.
    steady: bool,
}

impl FlushRhythm {
    /// A write is submitted. True if the client's flush is expected next.
    pub(super) fn write_submitted(&mut self) -> bool {
        self.submitted = self.submitted.saturating_add(1);
        self.steady && self.submitted == self.expected
    }

    /// A write ended at the disk. True if the client's flush is expected next.
    fn write_ended(&mut self) -> bool {
        self.writes = self.writes.saturating_add(1);
        if self.writes > self.expected {
            // The guess was wrong, or there was none.
            self.steady = false;
        }
        self.steady && self.writes == self.expected
    }

    /// The client flushes.
    fn flushed(&mut self) {
        self.submitted = 0;
        let writes = core::mem::take(&mut self.writes);
        self.steady = (1..=MOST_WRITES).contains(&writes) && writes == self.expected;
        self.expected = writes;
    }
}

impl<P: Payload> Engine<P> {
    pub(super) fn start_flush(&mut self, key: usize) {
        let v = self.requests[key].volume;
        // During a handshake that holds writes no new generation may be made, so a flush must not be answered alone either.
        if self.waits_for_handshake(v) {
            return self.volumes[v].held_for_data.push_back(key);
        }
        self.requests[key].stage = Stage::Running;
        self.volumes[v].flush.rhythm.flushed();
        self.requests[key].in_vain |= core::mem::take(&mut self.volumes[v].unflushed_lost);
        self.requests[key].began = self.events;
        if self.requests[key].in_vain {
            self.requests[key].local = Local::Missing;
            return self.update_request(key);
        }
        let mut misses = false;
        for p in 0..self.peers.len() {
            let node = self.peers[p].config.node_id;
            if self.peers[p].devices[v].mirrors() {
                self.close_epoch(p);
                self.push_gathered(p);
                let epoch = self.peers[p].log.last_epoch_with_entries();
                if self.waits_for_durability(p, v) && epoch > self.peers[p].log.durable_epoch() {
                    self.requests[key].barriers.push((p, epoch));
                    self.peers[p].barrier_waiters.push((key, epoch));
                }
            } else {
                // A flush that is answered alone vouches for writes that the peer may miss.
                misses |= self.volumes[v]
                    .backing
                    .as_ref()
                    .is_some_and(|backing| backing.bits(node) > 0);
            }
        }
        if misses {
            self.new_generation_if_shared(v, "flush-without-peer");
        }
        if self.volumes[v].usable() {
            self.join_flush(v, key);
        } else {
            self.requests[key].local = Local::Missing;
            self.update_request(key);
        }
    }

    /// True if what is durable for a client must be durable at the peer as well (W3). Without good data here the peer's is the only
    /// durable copy, whatever the protocol.
    pub(super) fn waits_for_durability(&self, p: usize, v: usize) -> bool {
        self.peers[p].config.protocol == Protocol::C || self.volumes[v].disk != DiskState::UpToDate
    }

    /// Makes `key` part of a local flush that covers everything that ended at the disk so far.
    pub(super) fn join_flush(&mut self, v: usize, key: usize) {
        let flush = &mut self.volumes[v].flush;
        match (flush.covers_all, flush.running) {
            (true, true) => flush.served.push(key),
            (true, false) => self.durable_here(key),
            (false, running) => {
                flush.gathering.push(key);
                if !running {
                    self.run_flush(v);
                }
            }
        }
    }

    /// A client's write ended at the disk: begins the flush that is expected next.
    pub(super) fn flush_ahead(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        if volume.flush.rhythm.write_ended()
            && volume.outstanding == 0
            && !volume.flush.running
            && volume.usable()
        {
            self.run_flush(v);
        }
    }

    fn run_flush(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        volume.flush.served = core::mem::take(&mut volume.flush.gathering);
        volume.flush.running = true;
        volume.flush.covers_all = true;
        let number = volume.number;
        let io = self.new_io(v, IoOwner::FlushGroup);
        self.effect(Effect::Flush { volume: number, io });
    }

    /// The disk has made durable what the request wants.
    fn durable_here(&mut self, key: usize) {
        let request = &mut self.requests[key];
        if matches!(request.kind, Kind::Flush) {
            request.local = Local::Done;
        } else {
            request.local_durable = true;
        }
        self.update_request(key);
    }

    pub(crate) fn flush_group_done(&mut self, v: usize, result: Result<(), IoError>) {
        self.volumes[v].flush.running = false;
        let served = core::mem::take(&mut self.volumes[v].flush.served);
        if result.is_err() || !self.volumes[v].usable() {
            // After a failed flush nothing is known about what the cache held; one on a disk that was given up vouches for nothing.
            self.volumes[v].flush.covers_all = false;
            self.fail_disk(v, "flush-error");
            for &key in &served {
                self.requests[key].local = Local::Missing;
                self.requests[key].local_error = self.requests[key].local_error.or(result.err());
                self.durable_at_peers_instead(key);
            }
        } else {
            for &key in &served {
                self.durable_here(key);
            }
        }
        if !self.volumes[v].flush.gathering.is_empty() {
            if self.volumes[v].usable() {
                self.run_flush(v);
            } else {
                for key in core::mem::take(&mut self.volumes[v].flush.gathering) {
                    self.requests[key].local = Local::Missing;
                    self.durable_at_peers_instead(key);
                }
            }
        }
    }

    /// The local disk cannot make the request durable any more: the peers that mirror must.
    pub(super) fn durable_at_peers_instead(&mut self, key: usize) {
        let v = self.requests[key].volume;
        let flush = matches!(self.requests[key].kind, Kind::Flush);
        self.requests[key].local_durable = true;
        for p in 0..self.peers.len() {
            if !self.peers[p].devices[v].mirrors()
                || self.requests[key]
                    .barriers
                    .iter()
                    .any(|&(peer, _)| peer == p)
            {
                continue;
            }
            self.close_epoch(p);
            let sent = self.requests[key]
                .sent
                .iter()
                .find(|sent| sent.peer == p)
                .map(|sent| sent.epoch);
            let epoch = if flush {
                self.peers[p].log.last_epoch_with_entries()
            } else {
                sent.unwrap_or(0)
            };
            if epoch > self.peers[p].log.durable_epoch() {
                self.requests[key].barriers.push((p, epoch));
                self.peers[p].barrier_waiters.push((key, epoch));
            }
        }
        self.update_request(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many writes, then a flush; whether the flush was expected when it came, and how often too early.
    fn interval(rhythm: &mut FlushRhythm, writes: u32) -> (bool, u32) {
        let guesses: alloc::vec::Vec<bool> = (0..writes)
            .map(|_| {
                let submitted = rhythm.write_submitted();
                let ended = rhythm.write_ended();
                assert_eq!(submitted, ended, "one after the other, both say the same");
                ended
            })
            .collect();
        rhythm.flushed();
        let expected = guesses.last().copied().unwrap_or(false);
        let all = guesses.iter().filter(|&&guess| guess).count() as u32;
        (expected, all - u32::from(expected))
    }

    #[test]
    fn a_flush_is_expected_after_as_many_writes_as_twice_before() {
        for writes in [1, 3, MOST_WRITES] {
            let mut rhythm = FlushRhythm::default();
            assert_eq!(interval(&mut rhythm, writes), (false, 0));
            assert_eq!(interval(&mut rhythm, writes), (false, 0));
            for _ in 0..5 {
                assert_eq!(interval(&mut rhythm, writes), (true, 0));
            }
        }
    }

    #[test]
    fn a_wrong_guess_is_made_once() {
        let mut rhythm = FlushRhythm::default();
        for _ in 0..3 {
            interval(&mut rhythm, 1);
        }
        assert_eq!(interval(&mut rhythm, 100), (false, 1));
        assert_eq!(interval(&mut rhythm, 100), (false, 0), "no rhythm");
        assert_eq!(interval(&mut rhythm, 100), (false, 0));
        assert_eq!(interval(&mut rhythm, 1), (false, 0));
        assert_eq!(interval(&mut rhythm, 1), (false, 0));
        assert_eq!(interval(&mut rhythm, 1), (true, 0));
    }

    #[test]
    fn the_last_of_several_writes_at_once_is_known_when_it_is_submitted() {
        let mut rhythm = FlushRhythm::default();
        for _ in 0..3 {
            interval(&mut rhythm, 3);
        }
        let guesses: alloc::vec::Vec<bool> = (0..4).map(|_| rhythm.write_submitted()).collect();
        assert_eq!(guesses, [false, false, true, false]);
    }

    #[test]
    fn flushes_without_writes_are_no_rhythm() {
        let mut rhythm = FlushRhythm::default();
        for _ in 0..5 {
            rhythm.flushed();
        }
        assert_eq!(interval(&mut rhythm, 1), (false, 0));
    }
}
