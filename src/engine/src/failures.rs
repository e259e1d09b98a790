//! What happens when something is lost: a connection, the peer's disk, the local disk.
//!
//! The order is always the same: first remember what may differ (bits, in memory, covered by the activity log), then record durably
//! that this node goes on alone (W8), and only then let waiting requests go on. `completion_gate` holds them back until the new
//! superblock is durable.

use alloc::string::String;
use alloc::vec::Vec;

use crate::api::{Effect, IoError, Payload};
use crate::engine::Engine;
use crate::gathering::Gathered;
use crate::limits;
use crate::reports::Reports;
use crate::state::{ConnectionState, DiskState, ReplicationState, Role};
use crate::units::{ByteRange, Generation, VolumeNumber};
use crate::volume::After;
use crate::wire::{GoodbyeReason, Message};

impl<P: Payload> Engine<P> {
    // ---- the connection -----------------------------------------------------------------------------------------------------

    /// Ends the session from this side and tries again later, if the connection is wanted.
    pub(crate) fn drop_session(&mut self, p: usize, state: ConnectionState, rule: &'static str) {
        if let Some(session) = self.peers[p].session {
            let node = self.peers[p].config.node_id;
            self.connection_lost(p, state, rule);
            self.effect(Effect::CloseSession {
                peer: node,
                session,
            });
        }
    }

    /// Says why and ends the session, so that both sides shake hands again.
    pub(crate) fn renegotiate(&mut self, p: usize, why: &'static str) {
        if self.peers[p].session.is_some() {
            self.send(
                p,
                Message::Goodbye {
                    reason: GoodbyeReason::Renegotiate,
                    text: String::from(why),
                },
            );
            self.drop_session_for_a_moment(p, why);
        }
    }

    /// Ends the session in order to shake hands again: for a moment nobody takes the peer for lost.
    pub(crate) fn drop_session_for_a_moment(&mut self, p: usize, rule: &'static str) {
        self.peers[p].returns_by = Some(self.now.after(limits::RETURN_PATIENCE_MS));
        self.drop_session(p, ConnectionState::TearDown, rule);
        if self.peers[p].connection != ConnectionState::Connecting {
            self.peers[p].returns_by = None;
            self.fence_who_did_not_return(p);
        }
    }

    /// A Primary that has no good data any more, neither here nor at a peer, tells the administrator: handler `pri-on-incon-degr`.
    pub(crate) fn watch_primary(&mut self) {
        // What is remembered from an earlier time as Primary does not count: with good data within reach alone a node becomes Primary.
        if self.role != Role::Primary {
            return;
        }
        for v in 0..self.volumes.len() {
            let there = || {
                self.peers.iter().any(|peer| {
                    peer.devices[v].disk == DiskState::UpToDate || peer.returns_by.is_some()
                })
            };
            let lacks = self.volumes[v].disk != DiskState::UpToDate && !there();
            let volume = &mut self.volumes[v];
            if core::mem::replace(&mut volume.lacks_good_data, lacks) || !lacks {
                continue;
            }
            let volume = Some(volume.number);
            self.effect(Effect::Handler {
                name: "pri-on-incon-degr",
                peer: None,
                volume,
            });
        }
    }

    /// The session is gone. Everything that the peer may miss is marked, waiting requests go on by the rules for a lone node.
    pub(crate) fn connection_lost(&mut self, p: usize, state: ConnectionState, rule: &'static str) {
        let node = self.peers[p].config.node_id;
        let was_connected = self.peers[p].connection == ConnectionState::Connected;
        self.peers[p].session = None;
        self.peers[p].outdate_asked = false;
        self.peers[p].hello_sent = None;
        self.peers[p].hello_received = None;
        self.peers[p].handshake_deadline = None;
        self.peers[p].settle_deadline = None;
        self.peers[p].ping = None;
        self.peers[p].stalled = None;
        self.peers[p].idle_barrier = None;
        self.peers[p].granted = None;
        self.peers[p].reports = Reports::default();
        self.peers[p].gathered = Gathered::default();
        self.peers[p].bitmap_parts = 0;
        self.peers[p].role = Role::Unknown;
        for v in 0..self.volumes.len() {
            // A target that was told of the resync's end becomes UpToDate without the connection too; so does a peer that was told that
            // there is no initial sync.
            let device = &mut self.peers[p].devices[v];
            let ended = core::mem::take(&mut device.told_to_skip)
                || (device.source.as_ref()).is_some_and(|source| source.finishing);
            self.stop_resync(p, v);
            self.set_replication(p, v, ReplicationState::Off, rule);
            let device = &mut self.peers[p].devices[v];
            device.round = 0;
            device.mine = None;
            device.theirs = None;
            device.postponed = None;
            device.told_since = None;
            device.round_wanted = false;
            device.last_resync_id = 0;
            device.stopped_resync = false;
            device.resync_ending = false;
            device.accepts = false;
            device.peer_accepts = false;
            device.hold = false;
            device.paused_there = false;
            device.tracks_misses = false;
            device.misses_tracked = false;
            device.loss_told = false;
            device.named_there = Generation::NONE;
            device.invalidation = None;
            device.invalidation_wanted_there = false;
            if ended || !matches!(device.disk, DiskState::Inconsistent | DiskState::Outdated) {
                device.disk = DiskState::DUnknown;
            }
            // A resync that the source ended is over: this disk has everything, and becomes UpToDate without the connection too.
            self.volumes[v].waiters.retain(|waiter| {
                waiter.peer != Some(p) || matches!(waiter.then, After::TargetFinished { .. })
            });
        }
        if was_connected {
            self.remember_outdated(p);
            self.fence_lost_peer(p);
        }
        // What is left in the transfer log may be missing at the peer (W7).
        let left = self.peers[p].log.take_all();
        self.remember_unflushed(p, &left);
        let mut alone = alloc::vec![false; self.volumes.len()];
        let mut shown = alloc::vec![false; self.volumes.len()];
        for entry in &left {
            if entry.lost {
                continue;
            }
            // A write that the peer never wrote makes the two differ for sure, and one whose client still waits is going to be
            // completed alone; the rest differs only if the peer lost its cache.
            let missing = entry.confirmed != crate::transfer_log::Confirmed::Written;
            let waits = self
                .requests
                .get(entry.request)
                .is_some_and(|request| !request.completed);
            alone[entry.volume] |= missing || waits;
            shown[entry.volume] |= missing && !waits;
            let backing = self.volumes[entry.volume].backing.as_mut();
            if let Some(backing) = backing {
                backing.mark(node, entry.range);
            }
        }
        for (v, shown) in shown.into_iter().enumerate() {
            if shown && self.role == Role::Primary && !self.volumes[v].usable() {
                // Completed writes are on the lost disk only (protocol A): no peer's data may take their place unseen. Those whose
                // clients still wait end with an error.
                self.volumes[v].exposed = Generation(self.random.draw() | 1 << 63);
            }
        }
        // A flush that is now answered alone vouches for writes that the peer may miss.
        for &(key, _) in &self.peers[p].barrier_waiters {
            alone[self.requests[key].volume] = true;
        }
        for (v, alone) in alone.into_iter().enumerate() {
            if alone {
                self.new_generation_if_shared(v, "connection-lost-under-load");
            }
        }
        for entry in left {
            if !entry.lost {
                self.entry_lost(p, entry.volume, entry.range, entry.request);
            }
        }
        self.wake_barrier_waiters(p, |_| true);
        if self.peers[p].connection != ConnectionState::StandAlone {
            self.set_connection(p, state, rule);
            if self.peers[p].disconnecting.is_some() || state == ConnectionState::Disconnecting {
                self.become_stand_alone(p, rule);
            } else {
                self.set_connection(p, ConnectionState::Unconnected, rule);
                self.set_connection(p, ConnectionState::Connecting, "retry");
            }
        }
        self.effect(Effect::Handler {
            name: "disconnected",
            peer: Some(node),
            volume: None,
        });
        for v in 0..self.volumes.len() {
            self.end_attached_anew(v);
        }
        self.retry_remote_reads(p);
        self.vote_lost(p);
        for v in 0..self.volumes.len() {
            self.update_requests(v);
        }
        self.take_postponed_answer(p);
    }

    /// No networking with this peer any more.
    pub(crate) fn become_stand_alone(&mut self, p: usize, rule: &'static str) {
        let node = self.peers[p].config.node_id;
        if self.peers[p].connection != ConnectionState::Disconnecting
            && self.peers[p].connection != ConnectionState::StandAlone
        {
            self.set_connection(p, ConnectionState::Disconnecting, rule);
        }
        self.set_connection(p, ConnectionState::StandAlone, rule);
        self.peers[p].discard_my_data = false;
        self.effect(Effect::StopConnecting { peer: node });
        if let Some(id) = self.peers[p].disconnecting.take() {
            self.command_done(id, Ok(()));
        }
    }

    // ---- the peer's disk ----------------------------------------------------------------------------------------------------------

    /// The peer has no usable disk for the volume any more: what it did not confirm as durable is marked.
    pub(crate) fn peer_disk_lost(
        &mut self,
        p: usize,
        v: usize,
        state: DiskState,
        rule: &'static str,
    ) {
        if !self.peers[p].devices[v].disk.has_data() {
            self.peers[p].devices[v].disk = state;
            return;
        }
        self.stop_resync(p, v);
        self.peers[p].devices[v].disk = state;
        if self.peers[p].devices[v].replication != ReplicationState::Off {
            self.set_replication(p, v, ReplicationState::Established, rule);
        }
        let node = self.peers[p].config.node_id;
        let lost = self.peers[p].log.lose_volume(v);
        self.peer_disk_failed(p, v, &lost);
        for entry in &lost {
            if let Some(backing) = self.volumes[v].backing.as_mut() {
                backing.mark(node, entry.range);
            }
        }
        let waits = self.peers[p]
            .barrier_waiters
            .iter()
            .any(|&(key, _)| self.requests[key].volume == v);
        if !lost.is_empty() || waits {
            self.new_generation_if_shared(v, rule);
        }
        for entry in lost {
            self.entry_lost(p, v, entry.range, entry.request);
        }
        if waits {
            // The barrier of other volumes comes back as before; waiting for it here would do no harm but prove nothing.
            let keys: Vec<_> = self.peers[p]
                .barrier_waiters
                .extract_if(.., |&mut (key, _)| self.requests[key].volume == v)
                .collect();
            for (key, _) in keys {
                self.requests[key].barriers.retain(|&(peer, _)| peer != p);
                self.update_request(key);
            }
        }
    }

    // ---- the local disk -----------------------------------------------------------------------------------------------------------

    /// A write to the local disk failed.
    pub(crate) fn write_failed(&mut self, v: usize, error: IoError) {
        let rule = match error {
            IoError::NoSpace => "local-disk-full",
            IoError::Failed => "local-write-error",
        };
        // Even with `pass_on` the block's content is unknown, so the disk cannot stay UpToDate; it is given up like with `detach`.
        self.fail_disk(v, rule);
    }

    /// A read from the local disk failed.
    pub(crate) fn read_failed(&mut self, v: usize) {
        if self.volumes[v].config.detach_on_io_error {
            self.fail_disk(v, "local-read-error");
        }
    }

    /// The local disk is given up.
    pub(crate) fn fail_disk(&mut self, v: usize, rule: &'static str) {
        if !self.volumes[v].disk.has_data() && self.volumes[v].disk != DiskState::Negotiating {
            return;
        }
        let was = self.volumes[v].disk;
        self.set_disk(v, DiskState::Failed, rule);
        // Nobody knows what its cache held and still holds when it is attached again.
        self.volumes[v].cache = self.random.draw();
        let number = self.volumes[v].number;
        self.effect(Effect::Handler {
            name: "local-io-error",
            peer: None,
            volume: Some(number),
        });
        if was == DiskState::UpToDate {
            self.disk_fails_with_unflushed(v);
        }
        self.disk_gone(v, was, rule);
    }

    /// The volume's disk, which was in the state `was`, takes no more operations: what waits for it goes on without, peers learn.
    pub(crate) fn disk_gone(&mut self, v: usize, was: DiskState, rule: &'static str) {
        let current = self.volumes[v].current();
        // A disk that was not good, or not taken yet, did not serve the clients: they saw what the peer has.
        if was == DiskState::UpToDate && self.role == Role::Primary {
            self.volumes[v].exposed = current.unwrap_or(Generation::NONE);
            self.disk_gone_with_unflushed(v);
        }
        self.received_writes_lost(v);
        for p in 0..self.peers.len() {
            let device = &mut self.peers[p].devices[v];
            if was != DiskState::Negotiating {
                device.named = Generation::NONE;
            }
            device.resync_ending |=
                (device.target.as_ref()).is_some_and(|target| !target.finishing);
            let finishing = (device.source.as_ref()).is_some_and(|source| source.finishing);
            self.stop_resync(p, v);
            if core::mem::take(&mut self.peers[p].devices[v].round_wanted) {
                // The handshake that the writes wait for will not take place.
                self.peers[p].devices[v].hold = false;
            }
            if self.peers[p].session.is_none() {
                continue;
            }
            // A list that no frame can hold: shake hands anew instead (a client sees errors, no other loses anything).
            let open = self
                .requests
                .iter()
                .filter(|(_, request)| request.volume == v)
                .count();
            let good = self.serves(p, v);
            let serves = self.role == Role::Primary && open <= limits::MAX_MISSED_RANGES && good;
            if serves {
                // The peer keeps the clients going; it must note what this disk misses.
                if self.peers[p].devices[v].replication != ReplicationState::Established {
                    self.set_replication(p, v, ReplicationState::Established, rule);
                }
                let missed = self
                    .requests
                    .iter()
                    .filter(|(_, request)| {
                        request.volume == v
                            && request.local != crate::request::Local::Done
                            && request.sent.iter().any(|sent| sent.peer == p)
                    })
                    .map(|(_, request)| request.range)
                    .collect();
                let number = self.volumes[v].number;
                self.peers[p].devices[v].misses_tracked = false;
                self.peers[p].devices[v].loss_told = true;
                let generation = self.name_generation(p, v);
                self.send(
                    p,
                    Message::DiskLost {
                        volume: number,
                        generation,
                        missed,
                    },
                );
            } else {
                self.renegotiate(p, rule);
            }
            // Whoever attaches this disk again must know that newer data exist: the clients go on with a good peer, at once or when it is
            // connected again. One whose resync is just over becomes good without the connection. If the metadata cannot be written any
            // more, only the peer knows.
            let consistent = (self.volumes[v].backing.as_ref())
                .is_some_and(|backing| backing.superblock.flags.consistent);
            if consistent && self.role == Role::Primary && (good || finishing) {
                self.record_outdated(v);
            }
        }
        // Requests that wait for the activity log or the disk go on without them.
        let waiting = core::mem::take(&mut self.volumes[v].log_waiters);
        for waiter in waiting {
            self.run_logged(waiter.owner, false);
        }
        let after = core::mem::take(&mut self.volumes[v].waiters);
        for waiter in after {
            self.after_failed(v, waiter.then);
        }
        self.update_requests(v);
    }

    /// Gives the disk back once nothing is under way on it.
    pub(crate) fn finish_detach(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        if !matches!(volume.disk, DiskState::Failed | DiskState::Detaching)
            || volume.outstanding > 0
        {
            return;
        }
        let unwritten = volume.backing.as_ref().is_some_and(|backing| {
            !backing.writer.is_idle()
                || backing.writer.superblock.wanted > backing.writer.superblock.durable
        });
        if unwritten && !volume.metadata_failed {
            return;
        }
        // References of requests that are still open die with the log.
        for (_, request) in self
            .requests
            .iter_mut()
            .filter(|(_, request)| request.volume == v)
        {
            request.logged = false;
        }
        for peer in &mut self.peers {
            for (_, received) in peer
                .received
                .iter_mut()
                .filter(|(_, received)| received.operation.volume == v)
            {
                received.logged = false;
            }
        }
        let volume = &mut self.volumes[v];
        volume.backing = None;
        volume.metadata_failed = false;
        volume.attached_anew = None;
        volume.attachment = volume.attachment.wrapping_add(1);
        volume.flush.covers_all = false;
        volume.waiters.clear();
        let number = volume.number;
        let detaching = volume.detaching.take();
        self.set_disk(v, DiskState::Diskless, "nothing-under-way");
        self.effect(Effect::Detached { volume: number });
        if let Some(id) = detaching {
            self.command_done(id, Ok(()));
        }
        self.update_requests(v);
    }

    /// The peer, Primary, lost its disk: this node notes, durably and under a new generation, what that disk misses.
    pub(crate) fn disk_lost_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        generation: Generation,
        missed: &[ByteRange],
    ) -> Result<(), &'static str> {
        let v = self.volume_index(number).ok_or("an unknown volume")?;
        if !self.peers[p].devices[v].accepts || self.volumes[v].disk != DiskState::UpToDate {
            return Err("a lost disk on a volume that is not mirrored");
        }
        let size = self.volumes[v].size;
        if missed.iter().any(|range| {
            range
                .offset
                .checked_add(u64::from(range.length))
                .is_none_or(|end| end > size)
        }) {
            return Err("a missed write beyond the end of the volume");
        }
        self.stop_resync(p, v);
        self.peers[p].devices[v].postponed = None;
        self.peers[p].devices[v].told_since = None;
        if core::mem::take(&mut self.peers[p].devices[v].stopped_resync) {
            // Behind the last data of the resync that was stopped: the target takes part in another one only after this.
            self.send(p, Message::ResyncFinish { volume: number });
        }
        self.set_replication(p, v, ReplicationState::Established, "primary-lost-its-disk");
        self.peers[p].devices[v].disk = DiskState::Diskless;
        self.peers[p].devices[v].named_there = generation;
        self.track_misses(p, v, missed);
        Ok(())
    }

    /// From now on everything that is written here is noted as missing at the peer, a Primary without a disk.
    pub(crate) fn track_misses(&mut self, p: usize, v: usize, missed: &[ByteRange]) {
        if self.volumes[v].disk != DiskState::UpToDate {
            return;
        }
        let node = self.peers[p].config.node_id;
        self.peers[p].devices[v].tracks_misses = true;
        // Operations that were received and not started yet do not know that they must be logged; mark their ranges as well.
        let under_way: Vec<_> = self.peers[p]
            .received
            .iter()
            .filter(|(_, received)| received.operation.volume == v)
            .map(|(_, received)| received.operation.range)
            .collect();
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            for &range in missed.iter().chain(&under_way) {
                backing.mark(node, range);
            }
        }
        let device = &self.peers[p].devices[v];
        let in_contact = device.contact == self.volumes[v].current();
        self.begin_generation_if_shared(v, device.named_there, "primary-lost-its-disk");
        // This disk has everything that was completed, as before.
        self.peers[p].devices[v].contact = self.volumes[v].current().filter(|_| in_contact);
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            backing.superblock.flags.al_clean = false;
            let superblock = backing.writer.want_superblock();
            let bitmap = backing.writer.want_bitmap();
            self.volumes[v].after(
                superblock,
                bitmap,
                Some(p),
                After::MissesTracked { peer: p },
            );
        }
    }

    /// The peer's disk takes every write again.
    pub(crate) fn disk_back_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self.volume_index(number).ok_or("an unknown volume")?;
        self.peers[p].devices[v].tracks_misses = false;
        Ok(())
    }

    /// The peer noted what this node's lost disk misses: writes through it may be completed (W9).
    pub(crate) fn misses_tracked_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        current: Generation,
    ) -> Result<(), &'static str> {
        let v = self.volume_index(number).ok_or("an unknown volume")?;
        self.peers[p].devices[v].misses_tracked = true;
        self.peers[p].devices[v].loss_told = false;
        self.volumes[v].exposed = current;
        self.update_requests(v);
        Ok(())
    }
}
