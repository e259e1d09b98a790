//! What the local disk and the peers say about operations, entered into the requests that they belong to.

use alloc::vec::Vec;

use super::{Local, Progress};
use crate::api::{IoError, Payload};
use crate::engine::Engine;
use crate::limits;
use crate::state::DiskState;
use crate::units::ByteRange;

impl<P: Payload> Engine<P> {
    pub(crate) fn local_write_done(&mut self, key: usize, result: Result<(), IoError>) {
        let v = self.requests[key].volume;
        match result {
            Ok(()) => self.requests[key].local = Local::Done,
            Err(error) => {
                self.requests[key].local = Local::Missing;
                self.requests[key].local_error = Some(error);
                self.write_failed(v, error);
            }
        }
        // Giving up the disk may have ended the request.
        let Some(request) = self.requests.get(key) else {
            return;
        };
        if request.fua && !request.local_durable {
            if request.local == Local::Done && self.volumes[v].usable() {
                self.join_flush(v, key);
            } else {
                return self.durable_at_peers_instead(key);
            }
        }
        self.update_request(key);
        self.flush_ahead(v);
    }

    pub(crate) fn received_ack(&mut self, p: usize, through: u64) -> Result<(), &'static str> {
        let mut touched = Vec::new();
        if !self.peers[p]
            .log
            .received(through, |request| touched.push(request))
        {
            return Err("receipt of an operation that was never sent");
        }
        for key in touched {
            self.request_progress(key, p, Progress::Received);
        }
        Ok(())
    }

    pub(crate) fn written_ack(
        &mut self,
        p: usize,
        first: u64,
        count: u32,
    ) -> Result<(), &'static str> {
        if count as usize > limits::MAX_BUFFERED_OPERATIONS {
            return Err("more acknowledgements than operations");
        }
        for sequence in (0..u64::from(count)).map(|index| first.saturating_add(index)) {
            match self.peers[p].log.written(sequence) {
                Some(entry) => {
                    if !entry.lost {
                        self.request_progress(entry.request, p, Progress::Written);
                    }
                }
                None => return Err("acknowledgement of an operation that is not under way"),
            }
        }
        self.note_progress(p);
        Ok(())
    }

    pub(crate) fn failed_ack(&mut self, p: usize, sequence: u64) -> Result<(), &'static str> {
        let Some(entry) = self.peers[p].log.written(sequence) else {
            return Err("failure of an operation that is not under way");
        };
        if !entry.lost {
            self.peer_disk_lost(p, entry.volume, DiskState::Failed, "peer-write-failed");
        }
        self.note_progress(p);
        Ok(())
    }

    /// An operation of the log will not be confirmed by the peer: marks its blocks and lets the request go on without.
    pub(crate) fn entry_lost(&mut self, p: usize, v: usize, range: ByteRange, request: usize) {
        let node = self.peers[p].config.node_id;
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            backing.mark(node, range);
        }
        self.request_progress(request, p, Progress::Lost);
    }

    pub(crate) fn barrier_ack(&mut self, p: usize, epoch: u64) -> Result<(), &'static str> {
        let mut retired = Vec::new();
        if !self.peers[p]
            .log
            .barrier_acked(epoch, |entry| retired.push(entry))
        {
            return Err("acknowledgement of a barrier that is not under way");
        }
        for entry in retired {
            if !entry.lost {
                self.request_progress(entry.request, p, Progress::Settled);
            }
        }
        self.wake_barrier_waiters(p, |waiting| waiting <= epoch);
        Ok(())
    }

    /// Requests that wait for an epoch selected by `over` need not wait for this peer any more.
    pub(crate) fn wake_barrier_waiters(&mut self, p: usize, over: impl Fn(u64) -> bool) {
        let waiters = core::mem::take(&mut self.peers[p].barrier_waiters);
        let (woken, left): (Vec<_>, Vec<_>) =
            waiters.into_iter().partition(|&(_, epoch)| over(epoch));
        self.peers[p].barrier_waiters = left;
        for (key, _) in woken {
            self.requests[key]
                .barriers
                .retain(|&(peer, epoch)| peer != p || !over(epoch));
            self.update_request(key);
        }
    }

    /// Remembers since when the oldest operation has been waiting for the peer (`ko-count`).
    pub(crate) fn note_progress(&mut self, p: usize) {
        let now = self.now;
        let peer = &mut self.peers[p];
        peer.stalled = peer
            .log
            .oldest_unwritten()
            .map(|oldest| match peer.stalled {
                Some((sequence, since)) if sequence == oldest => (sequence, since),
                _ => (oldest, now),
            });
    }

    fn request_progress(&mut self, key: usize, p: usize, progress: Progress) {
        let request = &mut self.requests[key];
        for sent in &mut request.sent {
            if sent.peer == p && sent.progress < progress {
                sent.progress = progress;
            }
        }
        self.update_request(key);
    }
}
