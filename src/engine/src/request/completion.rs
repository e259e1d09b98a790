//! When a request may be completed to its client, with what, and when it is forgotten (W1 to W4, W8, W9).

use alloc::vec::Vec;

use super::{Kind, Local, Progress, Request, SentTo, Stage};
use crate::api::{ClientError, Effect, IoError, Payload};
use crate::engine::Engine;
use crate::state::{ConnectionState, DiskState};
use crate::wire::message::Protocol;

impl<P: Payload> Engine<P> {
    /// True if the request may be completed to its client now (W1–W4, W8).
    fn may_complete(&self, request: &Request<P>) -> bool {
        let volume = &self.volumes[request.volume];
        if self.is_frozen() && !self.fails_frozen() {
            return false;
        }
        if request.local == Local::Pending || !request.local_durable || !request.barriers.is_empty()
        {
            return false;
        }
        if let Some(backing) = &volume.backing
            && backing.writer.superblock.durable < backing.completion_gate
        {
            return false;
        }
        let confirmed = request.sent.iter().all(|sent| {
            let needed = match self.peers[sent.peer].config.protocol {
                Protocol::A => Progress::Sent,
                Protocol::B => Progress::Received,
                Protocol::C => Progress::Written,
            };
            sent.progress >= needed
        });
        if !confirmed {
            return false;
        }
        if request.in_vain {
            return true;
        }
        if self.good_here(request) {
            return true;
        }
        // Without good data here a peer must really have it, and must have noted if this node misses it (W9). If no peer can have
        // it any more, the request ends with an error.
        let copies: Vec<usize> = (0..self.peers.len())
            .filter(|&p| self.has_good_data(p, request.volume))
            .collect();
        let can = copies.iter().any(|&p| {
            matches!(request.kind, Kind::Flush)
                || request
                    .sent
                    .iter()
                    .any(|sent| sent.peer == p && sent.progress != Progress::Lost)
        });
        !can || copies.iter().any(|&p| self.good_at(request, p))
    }

    /// True if the local disk has the request's effect and its data are good, and were when it began.
    fn good_here(&self, request: &Request<P>) -> bool {
        request.local == Local::Done
            && self.volumes[request.volume].disk == DiskState::UpToDate
            && !request.without_data
    }

    /// True if the peer is within reach and its data are good.
    pub(super) fn has_good_data(&self, p: usize, v: usize) -> bool {
        let (peer, device) = (&self.peers[p], &self.peers[p].devices[v]);
        peer.connection == ConnectionState::Connected
            && device.peer_accepts
            && device.disk == DiskState::UpToDate
    }

    /// True if the peer's data are good and it takes this node's writes.
    pub(crate) fn serves(&self, p: usize, v: usize) -> bool {
        let device = &self.peers[p].devices[v];
        device.mirrors() && device.disk == DiskState::UpToDate
    }

    /// True if the peer has the request's effect, and has noted it if this node misses it.
    fn good_at(&self, request: &Request<P>, p: usize) -> bool {
        let noted =
            request.local == Local::Done || self.peers[p].devices[request.volume].misses_tracked;
        let there = matches!(request.kind, Kind::Flush)
            || request.sent.iter().any(|sent| {
                sent.peer == p && matches!(sent.progress, Progress::Written | Progress::Settled)
            });
        noted && there && self.has_good_data(p, request.volume)
    }

    /// What the client gets for a request that may be completed.
    pub(super) fn result(&self, request: &Request<P>) -> Result<Option<P>, ClientError> {
        if self.is_frozen() {
            return Err(ClientError::NotPrimary);
        }
        if request.in_vain {
            return Err(ClientError::Io);
        }
        if self.good_here(request) || (0..self.peers.len()).any(|p| self.good_at(request, p)) {
            return Ok(None);
        }
        Err(match request.local_error {
            Some(IoError::NoSpace) => ClientError::NoSpace,
            _ => ClientError::Io,
        })
    }

    /// Carries out whatever the state of the request allows.
    pub(crate) fn update_request(&mut self, key: usize) {
        let Some(request) = self.requests.get(key) else {
            return;
        };
        if request.stage != Stage::Running || matches!(request.kind, Kind::Read) {
            return;
        }
        let v = request.volume;
        if !request.completed && self.may_complete(request) {
            let result = self.result(request);
            let id = request.id;
            self.requests[key].completed = true;
            if result.is_err() && matches!(self.requests[key].kind, Kind::Flush) {
                self.unflushed_are_told(v, self.requests[key].began);
            }
            for index in 0..self.requests[key].sent.len() {
                let SentTo {
                    peer,
                    epoch,
                    progress,
                } = self.requests[key].sent[index];
                if progress < Progress::Settled {
                    self.peers[peer].log.completed(epoch);
                }
            }
            self.effect(Effect::Complete { id, result });
        }
        let request = &mut self.requests[key];
        if request.local == Local::Pending {
            return;
        }
        if let Some(lock) = request.lock {
            if request.written_everywhere() {
                request.lock = None;
                self.volumes[v].intervals.remove(lock);
            } else if !request.relaxed {
                request.relaxed = true;
                self.volumes[v].intervals.relax(lock);
            }
        }
        let request = &self.requests[key];
        if request.completed && request.settled() && request.lock.is_none() {
            let request = self.requests.remove(key);
            if request.logged
                && let Some(backing) = self.volumes[v].backing.as_mut()
            {
                backing.log.release(request.range.extents_touched());
            }
        }
    }

    /// Looks at every running request of the volume again.
    pub(crate) fn update_requests(&mut self, v: usize) {
        let keys: Vec<usize> = self
            .requests
            .iter()
            .filter(|(_, request)| request.volume == v)
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            self.update_request(key);
        }
    }
}
