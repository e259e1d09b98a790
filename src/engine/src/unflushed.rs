//! Completed writes of a Primary without good data of its own, which only a peer had, in a cache that may have lost them.
//!
//! Such a Primary (its disk is lost, or the target of a resync) tells its clients of a write when the peer's disk has it; a flush makes
//! it durable there (W4). If the connection ends in between and the peer comes back, what it holds depends on what happened to it: a
//! cut network or a killed daemon loses nothing, and the peer makes everything durable before it goes on. If its machine was started
//! anew, or its disk failed, the writes may be gone. A client can't be asked to write them again, but it must not be told that they
//! are durable: the flushes under way and the next one fail, as they do on a disk that lost its cache. The same goes for a Primary that
//! loses its own disk before a peer that came back without its cache got from it what it lacks, and for one whose own disk, the only good
//! one, fails and is attached again.
//!
//! A peer whose disk fails while nobody hears of it, and whose daemon is then started again without the machine, can't be told from one
//! that was only killed.

use alloc::collections::VecDeque;
use alloc::string::String;

use crate::api::Payload;
use crate::engine::Engine;
use crate::request::{Kind, Stage};
use crate::state::{DiskState, Role};
use crate::transfer_log::{Confirmed, LogEntry};
use crate::wire::VolumeHello;

impl<P: Payload> Engine<P> {
    /// True if a client was told of this operation, the peer did not make it durable, and no other peer has it.
    fn is_unflushed(&self, p: usize, entry: &LogEntry) -> bool {
        let waits = (self.requests.get(entry.request)).is_some_and(|request| !request.completed);
        self.role == Role::Primary
            && !waits
            && (0..self.peers.len()).all(|other| other == p || !self.serves(other, entry.volume))
    }

    /// The connection is lost with these operations in the transfer log: remembers what a restart of the peer's machine would take.
    pub(crate) fn remember_unflushed(&mut self, p: usize, left: &VecDeque<LogEntry>) {
        let written =
            (left.iter()).filter(|entry| !entry.lost && entry.confirmed == Confirmed::Written);
        for entry in written {
            if self.is_unflushed(p, entry) {
                self.peers[p].devices[entry.volume].unflushed = Some(self.events);
            }
        }
    }

    /// The peer's disk failed with these operations in the transfer log: nobody knows what its cache held.
    pub(crate) fn peer_disk_failed(&mut self, p: usize, v: usize, lost: &[LogEntry]) {
        let only_there = self.volumes[v].disk != DiskState::UpToDate;
        if only_there && lost.iter().any(|entry| self.is_unflushed(p, entry)) {
            self.unflushed_are_lost(Some(p), v, "peer-disk-failed-unflushed");
        }
    }

    /// The peer's disk as it is now: did its cache live on?
    pub(crate) fn compare_caches(&mut self, p: usize, v: usize, theirs: &VolumeHello) {
        let device = &mut self.peers[p].devices[v];
        let another = device.cache.replace(theirs.cache) != Some(theirs.cache);
        if another && device.unflushed.take().is_some() {
            device.cache_lost = true;
            if self.volumes[v].disk != DiskState::UpToDate {
                self.unflushed_are_lost(Some(p), v, "peer-lost-unflushed-writes");
            }
        }
    }

    /// This Primary's good disk is lost: what a peer had lost already is nowhere now.
    pub(crate) fn disk_gone_with_unflushed(&mut self, v: usize) {
        for p in 0..self.peers.len() {
            if self.peers[p].devices[v].cache_lost {
                self.unflushed_are_lost(Some(p), v, "disk-lost-before-its-peer-had-everything");
            }
        }
    }

    /// A Primary's good disk fails: what it holds if it is attached again is not what was written.
    pub(crate) fn disk_fails_with_unflushed(&mut self, v: usize) {
        let flush = &self.volumes[v].flush;
        let durable = flush.covers_all && !flush.running;
        self.volumes[v].failed_unflushed =
            Some(self.events).filter(|_| self.role == Role::Primary && !durable);
    }

    /// A disk that this Primary attached again is good by its own word: no peer's data take the place of what it had lost.
    pub(crate) fn failed_disk_is_back(&mut self, v: usize) {
        if self.volumes[v].failed_unflushed.take().is_some() {
            self.unflushed_are_lost(None, v, "disk-failed-unflushed");
        }
    }

    /// A flush that began in the event `began` failed: its client knows that writes before it are not durable.
    pub(crate) fn unflushed_are_told(&mut self, v: usize, began: u64) {
        for peer in &mut self.peers {
            peer.devices[v].unflushed.take_if(|lost| *lost < began);
        }
        let failed = &mut self.volumes[v].failed_unflushed;
        failed.take_if(|failed| *failed < began);
    }

    /// Another role, other clients: whoever was to be told is gone.
    pub(crate) fn forget_unflushed(&mut self) {
        for volume in &mut self.volumes {
            volume.unflushed_lost = false;
            volume.failed_unflushed = None;
        }
        for device in (self.peers.iter_mut()).flat_map(|peer| &mut peer.devices) {
            device.unflushed = None;
            device.cache_lost = false;
        }
    }

    /// Whoever flushes now or next learns that writes may be gone.
    fn unflushed_are_lost(&mut self, p: Option<usize>, v: usize, rule: &'static str) {
        if let Some(p) = p {
            self.peers[p].devices[v].unflushed = None;
            self.peers[p].devices[v].cache_lost = false;
        }
        self.volumes[v].unflushed_lost = true;
        for (_, request) in self.requests.iter_mut() {
            let flushes = matches!(request.kind, Kind::Flush) && request.stage == Stage::Running;
            request.in_vain |= request.volume == v && flushes;
        }
        let text = String::from(
            "completed writes that no flush had made durable may be gone; flushes under way and the next one fail, so that the clients \
             learn of it",
        );
        self.decision(p, Some(v), rule, text);
    }
}
