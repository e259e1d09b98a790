//! A write goes out: activity log first, then in one step the local disk and every peer that mirrors.

use super::{Kind, Local, Progress, SentTo, Stage};
use crate::api::{Effect, Payload};
use crate::engine::{Engine, IoOwner};
use crate::limits;
use crate::state::DiskState;
use crate::units::ByteRange;
use crate::volume::{LogWaiter, Owner};
use crate::wire::Message;

impl<P: Payload> Engine<P> {
    /// Takes references on the extents of a write, or queues it until a transaction made them active.
    pub(crate) fn enter_log(&mut self, v: usize, owner: Owner, range: ByteRange) {
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut().filter(|_| volume.disk.has_data()) {
            if volume.log_starving && !volume.log_waiters.is_empty()
                || !backing.log.acquire(range.extents_touched())
            {
                volume.log_waiters.push_back(LogWaiter { owner, range });
                return;
            }
            self.run_logged(owner, true);
        } else {
            self.run_logged(owner, false);
        }
    }

    /// The extents of a write are active and durable in the log (`logged`), or there is no disk to log on.
    pub(crate) fn run_logged(&mut self, owner: Owner, logged: bool) {
        match owner {
            Owner::Request(key) => {
                self.requests[key].logged = logged;
                let v = self.requests[key].volume;
                if self.waits_for_handshake(v) {
                    self.volumes[v].parked.push_back(key);
                } else {
                    self.submit_write(key);
                }
            }
            Owner::Received { peer, key } => {
                self.peers[peer].received[key].logged = logged;
                self.start_received(peer, key);
            }
            Owner::ResyncRead { .. } | Owner::ResyncWrite { .. } => {
                unreachable!("resync does not enter the activity log")
            }
        }
    }

    pub(super) fn submit_write(&mut self, key: usize) {
        let request = &self.requests[key];
        let (v, range, fua, kind) = (
            request.volume,
            request.range,
            request.fua,
            request.kind.clone(),
        );
        let number = self.volumes[v].number;
        self.requests[key].stage = Stage::Running;
        let flush_follows = self.volumes[v].flush.rhythm.write_submitted();
        let mut misses = false;
        for p in 0..self.peers.len() {
            // Without a disk here only a peer with good data takes the write: nobody else could tell what it misses.
            if self.peers[p].devices[v].mirrors() && (self.volumes[v].usable() || self.serves(p, v))
            {
                if self.peers[p]
                    .log
                    .must_close_epoch(self.peers[p].config.max_epoch_size)
                {
                    self.close_epoch(p);
                }
                let payload_bytes = if matches!(kind, Kind::Write(_)) {
                    range.length
                } else {
                    0
                };
                let (sequence, epoch) = self.peers[p].log.push(v, range, payload_bytes, key);
                self.requests[key].sent.push(SentTo {
                    peer: p,
                    epoch,
                    progress: Progress::Sent,
                });
                let message = match &kind {
                    Kind::Write(payload) => Message::Write {
                        sequence,
                        epoch,
                        volume: number,
                        range,
                        payload: payload.clone(),
                    },
                    Kind::Discard => Message::Discard {
                        sequence,
                        epoch,
                        volume: number,
                        range,
                    },
                    Kind::WriteZeroes { may_unmap } => Message::WriteZeroes {
                        sequence,
                        epoch,
                        volume: number,
                        range,
                        may_unmap: *may_unmap,
                    },
                    Kind::Read | Kind::Flush => unreachable!("only writes are submitted here"),
                };
                self.send(p, message);
                self.peers[p].idle_barrier = Some(self.now.after(limits::IDLE_BARRIER_MS));
                self.note_progress(p);
                let awaited = self.waits_for_durability(p, v);
                if fua || flush_follows && awaited {
                    self.close_epoch(p);
                }
                if fua {
                    self.push_gathered(p);
                }
                if fua && awaited {
                    self.requests[key].barriers.push((p, epoch));
                    self.peers[p].barrier_waiters.push((key, epoch));
                }
            } else {
                let node = self.peers[p].config.node_id;
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    backing.mark(node, range);
                    misses |= backing.slot(node).is_some();
                }
            }
        }
        if misses {
            self.new_generation_if_shared(v, "write-without-peer");
            self.requests[key].without_data =
                self.volumes[v].disk != DiskState::UpToDate && self.requests[key].sent.is_empty();
        }
        if self.volumes[v].usable() {
            let io = self.new_io(v, IoOwner::RequestWrite(key));
            self.effect(match kind {
                Kind::Write(payload) => Effect::Write {
                    volume: number,
                    io,
                    range,
                    payload,
                    durable: false,
                },
                Kind::Discard => Effect::Discard {
                    volume: number,
                    io,
                    range,
                },
                Kind::WriteZeroes { may_unmap } => Effect::WriteZeroes {
                    volume: number,
                    io,
                    range,
                    may_unmap,
                },
                Kind::Read | Kind::Flush => unreachable!("only writes are submitted here"),
            });
        } else {
            self.requests[key].local = Local::Missing;
            self.requests[key].local_durable = true;
            self.update_request(key);
        }
    }

    /// Closes the current epoch toward the peer, if it holds something, with a barrier.
    pub(crate) fn close_epoch(&mut self, p: usize) {
        self.peers[p].idle_barrier = None;
        if let Some(epoch) = self.peers[p].log.close_epoch() {
            self.send(p, Message::Barrier { epoch });
        }
    }
}
