//! Fencing and suspended I/O: a Primary that lost its peer makes sure that nobody else goes on with the data, and waits with its clients
//! until that is sure.
//!
//! The engine asks ([`Effect::FencePeer`]), the shell's `fence-peer` handler answers ([`Event::PeerFenced`]). What is known of a fenced
//! peer is its disk: Outdated, durably. With `resource-and-stonith` no request is taken up and no write is answered meanwhile, and no
//! generation is made: if this node is the one that is shot, what it could not answer is no reason for a split brain.
//!
//! Invariants: one call at a time for each peer; an answer counts only while that peer has not come back since; I/O that was frozen goes on
//! under a generation of its own, or after every peer takes part in this one again. Not here: how a peer is fenced.

use alloc::format;
use alloc::string::String;

use crate::api::{ClientError, Effect, FenceAnswer, FenceId, Payload};
use crate::commands::RoleChange;
use crate::config::Fencing;
use crate::engine::Engine;
use crate::peer::{Peer, PeerDevice};
use crate::state::{ConnectionState, DiskState, Refusal, Role};
use crate::units::NodeId;
use crate::wire::Message;

/// What fencing has to do with one peer.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// The call whose answer counts.
    pub call: Option<FenceId>,
    /// A handler runs, for that call or for one that does not count any more; a new one waits for its end.
    pub running: bool,
    /// The answer came while the peer was shaking hands: it counts if the handshake fails.
    pub answer: Option<FenceAnswer>,
    /// Number of the event that brought the last failure, if the last call failed.
    pub failed_in: Option<u64>,
    /// Clients wait because of this peer.
    pub freezes: bool,
    /// The peer said that it returns at once: the handler is called if it does not.
    pub postponed: bool,
    /// `unfence-peer` is due once the peer is connected and UpToDate.
    pub unfence: bool,
}

impl<P: Payload> Engine<P> {
    // ---- suspended I/O ------------------------------------------------------------------------------------------------------------

    /// True while a Primary waits for a fenced peer: nothing is answered that only this node has.
    pub(crate) fn is_frozen(&self) -> bool {
        self.role == Role::Primary && self.peers.iter().any(|peer| peer.fence.freezes)
    }

    /// True while no request of a client is taken up.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended_by_user || self.is_frozen()
    }

    pub(crate) fn suspend_io(&mut self) {
        self.suspended_by_user = true;
    }

    /// The administrator knows better: everything goes on.
    pub(crate) fn resume_io(&mut self) -> Result<(), Refusal> {
        if self.is_frozen() && self.peers.iter().any(|peer| peer.shaking_hands()) {
            return Err(Refusal::InTransientState);
        }
        self.suspended_by_user = false;
        for p in 0..self.peers.len() {
            self.thaw(p, "resume-io");
        }
        Ok(())
    }

    /// Frozen I/O goes on, as far as this peer is concerned.
    fn thaw(&mut self, p: usize, rule: &'static str) {
        if !core::mem::take(&mut self.peers[p].fence.freezes) || self.is_frozen() {
            return;
        }
        self.decision(
            Some(p),
            None,
            rule,
            String::from("clients' requests, which waited for the peer to be fenced, go on"),
        );
        for v in 0..self.volumes.len() {
            if core::mem::take(&mut self.volumes[v].generation_due) {
                self.new_generation_if_shared(v, rule);
            }
            self.update_requests(v);
        }
    }

    /// Whether frozen I/O can go on because the peer is back or fencing is not wanted any more; and `unfence-peer`. True if something
    /// happened.
    pub(crate) fn pump_fencing(&mut self, p: usize) -> bool {
        let peer = &self.peers[p];
        let connected = peer.connection == ConnectionState::Connected;
        if peer.fence.freezes {
            let back = connected
                && peer.devices.iter().all(|device| {
                    device.mirrors() || !device.disk.has_data() && !device.awaits_answer()
                });
            let unwanted = peer.config.fencing != Fencing::ResourceAndStonith;
            if back || unwanted && !peer.shaking_hands() {
                self.thaw(
                    p,
                    if back {
                        "peer-is-back"
                    } else {
                        "fencing-not-wanted"
                    },
                );
                return true;
            }
        }
        let peer = &mut self.peers[p];
        let whole = |peer: &Peer<P>| {
            peer.devices
                .iter()
                .all(|device| device.disk == DiskState::UpToDate && device.mirrors())
        };
        if peer.fence.unfence
            && !peer.fence.running
            && connected
            && self.role == Role::Primary
            && whole(peer)
        {
            peer.fence.unfence = false;
            let node = peer.config.node_id;
            self.effect(Effect::Handler {
                name: "unfence-peer",
                peer: Some(node),
                volume: None,
            });
            return true;
        }
        false
    }

    /// True while a forced demotion ends what waits.
    pub(crate) fn fails_frozen(&self) -> bool {
        self.role_change
            .as_ref()
            .is_some_and(RoleChange::is_forced_demotion)
    }

    /// A forced demotion of a frozen Primary: its clients learn that what waits is not done. True if there was something.
    pub(crate) fn fail_suspended(&mut self) -> bool {
        if !self.fails_frozen() || !self.is_suspended() {
            return false;
        }
        let mut progress = false;
        for v in 0..self.volumes.len() {
            let volume = &mut self.volumes[v];
            let keys: alloc::vec::Vec<usize> = volume
                .held
                .drain(..)
                .chain(volume.parked.drain(..))
                .chain(volume.held_for_data.drain(..))
                .collect();
            for key in keys {
                progress = true;
                self.drop_request(key);
            }
            // Those that run end as soon as the disk says so.
            self.update_requests(v);
        }
        progress
    }

    /// Ends a request that was not submitted, with an error.
    fn drop_request(&mut self, key: usize) {
        let request = self.requests.remove(key);
        let volume = &mut self.volumes[request.volume];
        if let Some(lock) = request.lock {
            volume.intervals.remove(lock);
        }
        if request.logged
            && let Some(backing) = volume.backing.as_mut()
        {
            backing.log.release(request.range.extents_touched());
        }
        self.effect(Effect::Complete {
            id: request.id,
            result: Err(ClientError::NotPrimary),
        });
    }

    // ---- fencing --------------------------------------------------------------------------------------------------------------------

    /// True if the peer may go on with data of its own as far as this node knows, and the configuration wants to rule that out.
    pub(crate) fn is_unfenced(&self, p: usize) -> bool {
        let peer = &self.peers[p];
        peer.config.fencing != Fencing::DontCare
            && !(peer.connection == ConnectionState::Connected && peer.session.is_some())
            && peer
                .devices
                .iter()
                .zip(&self.volumes)
                .any(|(device, volume)| volume.usable() && device.disk > DiskState::Outdated)
    }

    /// True if this node is Primary without the peer, has something to protect from it, and it is not known to be harmless.
    fn must_fence(&self, p: usize) -> bool {
        // Without good data here there is nothing to protect; the clients get errors.
        let good = (self.volumes.iter()).any(|volume| volume.disk >= DiskState::Consistent);
        self.role == Role::Primary && good && self.is_unfenced(p)
    }

    /// This node is Primary without the peer: has it fenced, if that is wanted and was not done.
    pub(crate) fn fence_lost_peer(&mut self, p: usize) {
        if !self.must_fence(p) {
            return;
        }
        if self.peers[p].config.fencing == Fencing::ResourceAndStonith
            && !core::mem::replace(&mut self.peers[p].fence.freezes, true)
        {
            self.decision(
                Some(p),
                None,
                "io-frozen",
                String::from(
                    "clients' requests wait until the peer is fenced or back, or for resume-io",
                ),
            );
        }
        if self.peers[p].returns_by.is_some() {
            // Nobody is shot because a disk failed or was detached. Until the peer is back or its time is over, nothing is answered either.
            self.peers[p].fence.postponed = true;
        } else {
            self.call_fence_peer(p);
        }
    }

    /// The time in which the peer was to return is over, or it is not awaited any more. What was frozen is, unless the administrator
    /// had it go on meanwhile.
    pub(crate) fn fence_who_did_not_return(&mut self, p: usize) {
        if core::mem::take(&mut self.peers[p].fence.postponed) && self.must_fence(p) {
            self.call_fence_peer(p);
        }
    }

    fn call_fence_peer(&mut self, p: usize) {
        let id = FenceId(self.random.draw());
        let peer = &mut self.peers[p];
        peer.fence.answer = None;
        peer.fence.failed_in = None;
        peer.fence.call = Some(id);
        if core::mem::replace(&mut peer.fence.running, true) {
            return;
        }
        let node = peer.config.node_id;
        self.effect(Effect::FencePeer { peer: node, id });
    }

    /// The peer is connected: what was asked about it does not matter any more. What is known of its disk, it says itself.
    pub(crate) fn peer_needs_no_fence(&mut self, p: usize) {
        let peer = &mut self.peers[p];
        peer.fence.call = None;
        peer.fence.answer = None;
        peer.fence.failed_in = None;
        peer.fence.postponed = false;
        peer.fence.unfence = peer.config.fencing != Fencing::DontCare;
    }

    /// The peer left with a disk that is known to be old: that it need not be fenced is remembered over a restart.
    pub(crate) fn remember_outdated(&mut self, p: usize) {
        if self.peers[p].config.fencing == Fencing::DontCare {
            return;
        }
        let node = self.peers[p].config.node_id;
        for (device, volume) in self.peers[p].devices.iter().zip(&mut self.volumes) {
            let old = matches!(device.disk, DiskState::Inconsistent | DiskState::Outdated);
            if let Some(backing) = volume.backing.as_mut().filter(|_| old)
                && let Some(slot) = backing.superblock.peer_mut(node)
            {
                slot.flags.outdated = true;
                backing.writer.want_superblock();
            }
        }
    }

    /// A new session: the peer may become UpToDate again, so nobody must rely on its being Outdated after a crash.
    pub(crate) fn forget_outdated(&mut self, p: usize) {
        let node = self.peers[p].config.node_id;
        for volume in &mut self.volumes {
            let Some(backing) = volume.backing.as_mut() else {
                continue;
            };
            if let Some(slot) = backing.superblock.peer_mut(node)
                && slot.flags.outdated
            {
                slot.flags.outdated = false;
                backing.writer.want_superblock();
            }
        }
    }

    /// What the superblock knows of the peer's disk, for a volume that was just attached.
    pub(crate) fn recall_outdated(&mut self, p: usize, v: usize) {
        let node = self.peers[p].config.node_id;
        let outdated = (self.volumes[v].backing.as_ref())
            .and_then(|backing| backing.superblock.peer(node))
            .is_some_and(|slot| slot.flags.outdated);
        let device = &mut self.peers[p].devices[v];
        if outdated && device.disk == DiskState::DUnknown {
            device.disk = DiskState::Outdated;
        }
    }

    /// Whether a promotion may go on although peers are missing: each must be fenced if that is wanted.
    pub(crate) fn check_fenced(&mut self, force: bool, since: u64) -> Result<(), Refusal> {
        let mut waits = false;
        let connected = |peer: &Peer<P>| peer.connection == ConnectionState::Connected;
        if !force
            && self.peers.iter().all(connected)
            && self
                .volumes
                .iter()
                .any(|volume| volume.unconfirmed && volume.usable())
        {
            // The peer is there without its disk, which may have newer data.
            return Err(Refusal::NoUpToDateDisk);
        }
        for p in 0..self.peers.len() {
            if !self.is_unfenced(p) {
                continue;
            }
            match (self.peers[p].fence.call, self.peers[p].fence.failed_in) {
                (Some(_), _) => waits = true,
                (None, Some(event)) if event > since => {
                    if !force {
                        return Err(Refusal::PeerNotFenced);
                    }
                    self.decision(
                        Some(p),
                        None,
                        "forced-without-fencing",
                        String::from("promoted by force although the peer was not fenced: if it goes on as well, that is a split brain"),
                    );
                }
                (None, _) => {
                    self.call_fence_peer(p);
                    waits = true;
                }
            }
        }
        if waits {
            Err(Refusal::InTransientState)
        } else {
            Ok(())
        }
    }

    /// True while a `fence-peer` handler runs.
    pub(crate) fn awaits_fence(&self) -> bool {
        self.peers.iter().any(|peer| peer.fence.call.is_some())
    }

    pub(crate) fn peer_fenced(&mut self, node: NodeId, id: FenceId, answer: FenceAnswer) {
        let Some(p) = self.peer_index(node) else {
            return;
        };
        let fence = &mut self.peers[p].fence;
        fence.running = false;
        if fence.call != Some(id) {
            // The peer came back meanwhile. If it was lost again, the new question is asked now.
            if let Some(id) = fence.call {
                fence.running = true;
                self.effect(Effect::FencePeer { peer: node, id });
            }
            return;
        }
        if self.peers[p].session.is_some() {
            self.peers[p].fence.answer = Some(answer);
        } else {
            self.take_fence_answer(p, answer);
        }
    }

    /// The session ended. An answer that came during its handshake counts, if it never became more than that.
    pub(crate) fn take_postponed_answer(&mut self, p: usize) {
        if let Some(answer) = self.peers[p].fence.answer.take() {
            self.take_fence_answer(p, answer);
        }
    }

    fn take_fence_answer(&mut self, p: usize, answer: FenceAnswer) {
        self.peers[p].fence.call = None;
        let state = match answer {
            FenceAnswer::Inconsistent => DiskState::Inconsistent,
            FenceAnswer::Outdated => DiskState::Outdated,
            FenceAnswer::Unreachable | FenceAnswer::Stonith if self.knows_to_be_current() => {
                DiskState::Outdated
            }
            FenceAnswer::Unreachable | FenceAnswer::Stonith => {
                return self.fence_failed(
                    p,
                    "this node's data were not compared with the peer's since they were attached: that the peer is dead does not \
                     make them current",
                );
            }
            FenceAnswer::PeerIsPrimary => {
                if self.role != Role::Primary {
                    for v in 0..self.volumes.len() {
                        if self.volumes[v].disk > DiskState::Outdated {
                            self.outdate_disk(v, "peer-is-primary");
                        }
                    }
                }
                return self.fence_failed(p, "the peer is Primary");
            }
            FenceAnswer::Failed => {
                return self.fence_failed(p, "the fence-peer handler failed, or there is none");
            }
        };
        let node = self.peers[p].config.node_id;
        for v in 0..self.volumes.len() {
            // The peer's data are older, so these are not. Of a dead peer nobody knows.
            self.confirm(v);
            let device = &mut self.peers[p].devices[v];
            if device.disk <= state {
                continue;
            }
            device.disk = state;
            if let Some(backing) = self.volumes[v].backing.as_mut()
                && let Some(slot) = backing.superblock.peer_mut(node)
            {
                slot.flags.outdated = true;
                backing.writer.want_superblock();
            }
        }
        self.decision(
            Some(p),
            None,
            "peer-fenced",
            format!(
                "fence-peer says: {}; its disk counts as {state}",
                answer.text()
            ),
        );
        self.thaw(p, "peer-fenced");
        if self.role == Role::Primary {
            // What the peer has is old from here on, even if nothing is written: it must not pass for equal when it comes back.
            for v in 0..self.volumes.len() {
                self.new_generation_if_shared(v, "peer-fenced");
            }
        }
    }

    fn fence_failed(&mut self, p: usize, why: &str) {
        self.peers[p].fence.failed_in = Some(self.events);
        let consequence = if self.is_frozen() {
            "clients' requests wait until the peer is back, or for resume-io"
        } else {
            "nothing changes"
        };
        self.decision(
            Some(p),
            None,
            "fencing-failed",
            format!("{why}; {consequence}"),
        );
    }

    /// True unless a disk here has not been compared with the peers' since it was attached.
    fn knows_to_be_current(&self) -> bool {
        self.volumes.iter().all(|volume| {
            !volume.usable() || volume.disk == DiskState::UpToDate && !volume.unconfirmed
        })
    }

    /// The disk as the peers are told of it: whether data are current that were not compared with anybody's is not known.
    pub(crate) fn told_disk(&self, v: usize) -> DiskState {
        match self.volumes[v].disk {
            DiskState::UpToDate if self.volumes[v].unconfirmed => DiskState::Consistent,
            disk => disk,
        }
    }

    /// The data here are known to be current, or to become what a peer has.
    pub(crate) fn confirm(&mut self, v: usize) {
        if core::mem::take(&mut self.volumes[v].unconfirmed) {
            self.broadcast_state();
        }
    }

    // ---- leaving in good order ------------------------------------------------------------------------------------------------------

    /// Before the administrator's `disconnect`: where one side is Primary, the other one's disk is Outdated before the two part, so that
    /// it need not be fenced. An error: not yet.
    pub(crate) fn outdate_before_parting(&mut self, p: usize, force: bool) -> Result<(), Refusal> {
        let peer = &self.peers[p];
        if peer.config.fencing == Fencing::DontCare || peer.connection != ConnectionState::Connected
        {
            return Ok(());
        }
        if peer.role == Role::Primary && self.role != Role::Primary {
            if self.outdate_for(p) {
                return Ok(());
            }
            return Err(Refusal::InTransientState);
        }
        let good = |device: &PeerDevice| device.disk > DiskState::Outdated;
        if self.role == Role::Primary
            && peer.role != Role::Primary
            && !force
            && peer.devices.iter().any(good)
        {
            if !peer.outdate_asked {
                self.peers[p].outdate_asked = true;
                self.send(p, Message::OutdateRequest);
            }
            return Err(Refusal::InTransientState);
        }
        Ok(())
    }

    /// The Primary is going to part.
    pub(crate) fn outdate_request_received(&mut self, p: usize) -> Result<(), &'static str> {
        if self.peers[p].role != Role::Primary {
            return Err("a request to be Outdated from one that is not Primary");
        }
        self.outdate_for(p);
        Ok(())
    }

    /// Makes this Secondary's disks Outdated while the peer, Primary, is connected. True once that is durable and said.
    fn outdate_for(&mut self, p: usize) -> bool {
        for v in 0..self.volumes.len() {
            let good_there = self.peers[p].devices[v].disk == DiskState::UpToDate;
            if self.volumes[v].is_finishing_resync() {
                // It is going to be UpToDate.
                return false;
            }
            if self.volumes[v].usable() && self.volumes[v].disk > DiskState::Outdated && good_there
            {
                self.outdate_disk(v, "parting-from-primary");
            }
        }
        self.volumes.iter().all(|volume| {
            volume.backing.as_ref().is_none_or(|backing| {
                backing.writer.superblock.wanted == backing.writer.superblock.durable
            })
        })
    }
}
