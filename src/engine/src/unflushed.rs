//! Completed writes of a Primary without good data of its own, which only a peer had, in a cache that may have lost them.
//!
//! Such a Primary (its disk is lost, or the target of a resync) tells its clients of a write when the peer's disk has it; a flush makes
//! it durable there (W4). If the connection ends in between and the peer comes back, what it holds depends on what happened to it: a
//! cut network or a killed daemon loses nothing, and the peer makes everything durable before it goes on. If its machine was started
//! anew, or its disk failed, the writes may be gone. A client can't be asked to write them again, but it must not be told that they
//! are durable: its next flush fails, as it does on a disk that lost its cache. The same goes for a Primary that loses its own disk
//! before a peer that came back without its cache got from it what it lacks.

use alloc::string::String;

use crate::api::Payload;
use crate::engine::Engine;
use crate::request::{Kind, Stage};
use crate::state::{DiskState, Role};
use crate::transfer_log::{Confirmed, LogEntry};
use crate::wire::Hello;

impl<P: Payload> Engine<P> {
    /// True if a client was told of this operation, which the peer had not made durable, and no other peer has it.
    fn is_unflushed(&self, p: usize, entry: &LogEntry) -> bool {
        let waits = (self.requests.get(entry.request)).is_some_and(|request| !request.completed);
        self.role == Role::Primary
            && entry.confirmed == Confirmed::Written
            && !waits
            && (0..self.peers.len()).all(|other| other == p || !self.serves(other, entry.volume))
    }

    /// The connection is lost with these operations in the transfer log: remembers what a restart of the peer's machine would take.
    pub(crate) fn remember_unflushed<'a>(
        &mut self,
        p: usize,
        left: impl Iterator<Item = &'a LogEntry>,
    ) {
        for entry in left.filter(|entry| !entry.lost) {
            if self.is_unflushed(p, entry) {
                self.peers[p].devices[entry.volume].unflushed = true;
            }
        }
    }

    /// The peer's disk failed with these operations in the transfer log: nobody knows what its cache held.
    pub(crate) fn unflushed_fail<'a>(
        &mut self,
        p: usize,
        v: usize,
        mut lost: impl Iterator<Item = &'a LogEntry>,
    ) {
        let only_there = self.volumes[v].disk != DiskState::UpToDate;
        if only_there && lost.any(|entry| self.is_unflushed(p, entry)) {
            self.unflushed_are_lost(p, v, "peer-disk-failed-unflushed");
        }
    }

    /// The peer is back: did its disk's cache live on?
    pub(crate) fn compare_caches(&mut self, p: usize, theirs: &Hello) {
        for hello in &theirs.volumes {
            let Some(v) = self.volume_index(hello.volume) else {
                continue;
            };
            let device = &mut self.peers[p].devices[v];
            let another = device.cache.replace(hello.cache) != Some(hello.cache);
            if another && core::mem::take(&mut device.unflushed) {
                device.cache_lost = true;
                if self.volumes[v].disk != DiskState::UpToDate {
                    self.unflushed_are_lost(p, v, "peer-lost-unflushed-writes");
                }
            }
        }
    }

    /// This Primary's disk is lost: what a peer had lost already is nowhere now.
    pub(crate) fn disk_gone_with_unflushed(&mut self, v: usize) {
        for p in 0..self.peers.len() {
            if self.peers[p].devices[v].cache_lost {
                self.unflushed_are_lost(p, v, "disk-lost-before-its-peer-had-everything");
            }
        }
    }

    /// A client knows that writes before its flush are not durable.
    pub(crate) fn unflushed_are_told(&mut self, v: usize) {
        for peer in &mut self.peers {
            peer.devices[v].unflushed = false;
        }
    }

    /// Whoever flushes now or next learns that writes may be gone.
    fn unflushed_are_lost(&mut self, p: usize, v: usize, rule: &'static str) {
        self.peers[p].devices[v].unflushed = false;
        self.peers[p].devices[v].cache_lost = false;
        self.volumes[v].unflushed_lost = true;
        for (_, request) in self.requests.iter_mut() {
            let flushes = matches!(request.kind, Kind::Flush) && request.stage == Stage::Running;
            request.in_vain |= request.volume == v && flushes;
        }
        let text = String::from(
            "completed writes that no flush had made durable were only in the cache of the peer's disk and may be gone; \
             the next flush fails, so that the client learns of it",
        );
        self.decision(Some(p), Some(v), rule, text);
    }
}
