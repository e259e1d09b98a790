//! Reads: from the local disk where its bytes are current, otherwise from a peer.

use alloc::string::String;

use super::Stage;
use crate::api::{ClientError, Effect, IoError, Payload};
use crate::engine::{Engine, IoOwner};
use crate::limits;
use crate::peer::Peer;
use crate::state::DiskState;
use crate::units::ByteRange;
use crate::wire::{Message, ReadOutcome};

impl<P: Payload> Engine<P> {
    /// The peer (by index) from which the volume can be read.
    fn remote_source(&self, v: usize) -> Option<usize> {
        (0..self.peers.len()).find(|&p| self.has_good_data(p, v))
    }

    /// True if an UpToDate peer is within reach.
    pub(crate) fn has_remote_data(&self, v: usize) -> bool {
        self.remote_source(v).is_some()
    }

    /// True if the local disk holds the current bytes of the range.
    fn readable_here(&self, v: usize, range: ByteRange) -> bool {
        let volume = &self.volumes[v];
        match (&volume.backing, volume.disk) {
            (Some(_), DiskState::UpToDate) => true,
            // A target knows by its bits which blocks are old.
            (Some(backing), DiskState::Inconsistent) => self.peers.iter().any(|peer| {
                peer.devices[v].replication.is_sync_target()
                    && backing
                        .slot(peer.config.node_id)
                        .is_some_and(|slot| !backing.bitmaps[slot].any_set(range.blocks_touched()))
            }),
            _ => false,
        }
    }

    pub(crate) fn start_read(&mut self, key: usize) {
        let (v, range) = (self.requests[key].volume, self.requests[key].range);
        if self.is_suspended() {
            return self.volumes[v].held_for_data.push_back(key);
        }
        self.requests[key].stage = Stage::Running;
        if self.requests[key].local_error.is_none() && self.readable_here(v, range) {
            let volume = self.volumes[v].number;
            let io = self.new_io(v, IoOwner::ClientRead(key));
            self.effect(Effect::Read { volume, io, range });
        } else if let Some(p) = self.remote_source(v) {
            let peer = &mut self.peers[p];
            if !peer.waiting_reads.is_empty() || !may_ask(peer, range) {
                return peer.waiting_reads.push_back(key);
            }
            let id = self.random.draw();
            let volume = self.volumes[v].number;
            peer.reads.insert(id, key);
            peer.read_bytes += u64::from(range.length);
            self.send(p, Message::ReadRequest { id, volume, range });
        } else if self.awaits_data(v) {
            self.volumes[v].held_for_data.push_back(key);
        } else {
            let id = self.requests.remove(key).id;
            self.effect(Effect::Complete {
                id,
                result: Err(ClientError::Io),
            });
        }
    }

    pub(crate) fn client_read_done(&mut self, key: usize, result: Result<Option<P>, IoError>) {
        match result {
            Ok(payload) => {
                let id = self.requests.remove(key).id;
                self.effect(Effect::Complete {
                    id,
                    result: Ok(payload),
                });
            }
            Err(error) => {
                let v = self.requests[key].volume;
                self.requests[key].local_error = Some(error);
                self.decision(
                    None,
                    Some(v),
                    "read-error",
                    String::from("a read from the local disk failed; trying a peer"),
                );
                self.read_failed(v);
                self.start_read(key);
            }
        }
    }

    pub(crate) fn read_reply_received(
        &mut self,
        p: usize,
        id: u64,
        outcome: ReadOutcome,
        payload: Option<P>,
    ) -> Result<(), &'static str> {
        let Some(key) = self.peers[p].reads.remove(&id) else {
            return Err("answer to a read that was never asked");
        };
        self.peers[p].read_bytes -= u64::from(self.requests[key].range.length);
        let taken = self.take_read_reply(key, outcome, payload);
        self.ask_for_waiting_reads(p);
        taken
    }

    fn take_read_reply(
        &mut self,
        key: usize,
        outcome: ReadOutcome,
        payload: Option<P>,
    ) -> Result<(), &'static str> {
        match (outcome, payload) {
            (ReadOutcome::Data, Some(payload))
                if payload.length() == self.requests[key].range.length as usize =>
            {
                let request = self.requests.remove(key);
                self.effect(Effect::Complete {
                    id: request.id,
                    result: Ok(Some(payload)),
                });
                Ok(())
            }
            (ReadOutcome::Failed, _) => {
                let request = self.requests.remove(key);
                self.effect(Effect::Complete {
                    id: request.id,
                    result: Err(ClientError::Io),
                });
                Ok(())
            }
            _ => {
                self.start_read(key);
                Err("answer to a read with a wrong length")
            }
        }
    }

    /// There is room for reads that wait.
    fn ask_for_waiting_reads(&mut self, p: usize) {
        let mut waiting = core::mem::take(&mut self.peers[p].waiting_reads);
        while let Some(&key) = waiting.front()
            && may_ask(&self.peers[p], self.requests[key].range)
        {
            waiting.pop_front();
            self.start_read(key);
        }
        waiting.append(&mut self.peers[p].waiting_reads);
        self.peers[p].waiting_reads = waiting;
    }

    /// Remote reads that were under way on a lost connection, or waited for it, look for another source.
    pub(crate) fn retry_remote_reads(&mut self, p: usize) {
        let peer = &mut self.peers[p];
        let asked = core::mem::take(&mut peer.reads);
        let waiting = core::mem::take(&mut peer.waiting_reads);
        peer.read_bytes = 0;
        for key in asked.into_values().chain(waiting) {
            self.start_read(key);
        }
    }
}

/// True if the peer may be asked for these bytes too. One read it is asked for whatever its length.
fn may_ask<P>(peer: &Peer<P>, range: ByteRange) -> bool {
    let bytes = peer.read_bytes + u64::from(range.length);
    peer.reads.is_empty()
        || peer.reads.len() < limits::MAX_REMOTE_READS && bytes <= limits::MAX_REMOTE_READ_BYTES
}
