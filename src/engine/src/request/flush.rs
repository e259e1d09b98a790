//! Flushes: of clients, and the second half of a write with FUA.
//!
//! One local flush runs at a time and serves everybody who came before it began. Where the local disk cannot make something durable,
//! the peers that mirror must.

use super::{Kind, Local, Stage};
use crate::api::{Effect, IoError, Payload};
use crate::engine::{Engine, IoOwner};
use crate::state::DiskState;
use crate::wire::message::Protocol;

impl<P: Payload> Engine<P> {
    pub(super) fn start_flush(&mut self, key: usize) {
        let v = self.requests[key].volume;
        // During a handshake that holds writes no new generation may be made, so a flush must not be answered alone either.
        if self.waits_for_handshake(v) {
            return self.volumes[v].held_for_data.push_back(key);
        }
        self.requests[key].stage = Stage::Running;
        let mut misses = false;
        for p in 0..self.peers.len() {
            let node = self.peers[p].config.node_id;
            if self.peers[p].devices[v].mirrors() {
                self.close_epoch(p);
                let epoch = self.peers[p].log.last_epoch_with_entries();
                let remote = self.peers[p].config.protocol == Protocol::C
                    || self.volumes[v].disk != DiskState::UpToDate;
                if remote && epoch > self.peers[p].log.durable_epoch() {
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

    /// Makes `key` part of the next local flush.
    pub(super) fn join_flush(&mut self, v: usize, key: usize) {
        self.volumes[v].flush.gathering.push(key);
        if !self.volumes[v].flush.running {
            self.run_flush(v);
        }
    }

    fn run_flush(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        volume.flush.served = core::mem::take(&mut volume.flush.gathering);
        volume.flush.running = true;
        let number = volume.number;
        let io = self.new_io(v, IoOwner::FlushGroup);
        self.effect(Effect::Flush { volume: number, io });
    }

    pub(crate) fn flush_group_done(&mut self, v: usize, result: Result<(), IoError>) {
        self.volumes[v].flush.running = false;
        let served = core::mem::take(&mut self.volumes[v].flush.served);
        if result.is_err() || !self.volumes[v].usable() {
            // After a failed flush nothing is known about what the cache held; one on a disk that was given up vouches for nothing.
            self.fail_disk(v, "flush-error");
            for &key in &served {
                self.requests[key].local = Local::Missing;
                self.requests[key].local_error = self.requests[key].local_error.or(result.err());
                self.durable_at_peers_instead(key);
            }
        } else {
            for &key in &served {
                let request = &mut self.requests[key];
                if matches!(request.kind, Kind::Flush) {
                    request.local = Local::Done;
                } else {
                    request.local_durable = true;
                }
                self.update_request(key);
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
