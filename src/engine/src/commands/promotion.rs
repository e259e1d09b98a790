//! `primary`: every connected peer votes, good data must be within reach, and the promotion is durable before it counts.
//!
//! Two nodes that want it at the same time are told apart by their ids. Without a peer a promotion makes a new generation at once, so
//! that a Primary that died and the node that took over are told apart for sure.

use super::Deferred;
use super::role_change::{RoleChange, Step};
use crate::api::{Command, CommandId, Payload};
use crate::engine::Engine;
use crate::handshake::set_disk_flags;
use crate::limits;
use crate::peer::Vote;
use crate::state::{ConnectionState, DiskState, Refusal, Role};
use crate::units::NodeId;
use crate::volume::After;
use crate::wire::Message;

impl<P: Payload> Engine<P> {
    pub(super) fn promote(
        &mut self,
        id: CommandId,
        force: bool,
        since: u64,
    ) -> Result<bool, Refusal> {
        if self.role == Role::Primary {
            return if self.role_change.is_some() {
                Err(Refusal::InTransientState)
            } else {
                Ok(true)
            };
        }
        for p in 0..self.peers.len() {
            let peer = &self.peers[p];
            if peer.connection == ConnectionState::Connected && peer.role == Role::Primary {
                if peer.heard_in > since {
                    return Err(Refusal::TwoPrimaries);
                }
                // It may have died a moment ago: it refuses only if it is alive.
                self.ask_whether_alive(p);
                return Err(Refusal::InTransientState);
            }
        }
        self.settled()?;
        if self.peers.iter().any(|peer| peer.granted.is_some()) {
            return Err(Refusal::InTransientState);
        }
        self.check_data(force)?;
        self.check_fenced(force, since)?;
        let mut asked = false;
        for p in 0..self.peers.len() {
            self.peers[p].vote = None;
            if self.peers[p].connection == ConnectionState::Connected {
                let question = self.random.draw();
                self.peers[p].vote = Some(Vote::Asked(question));
                self.send(p, Message::PromoteRequest { id: question });
                asked = true;
            }
        }
        let deadline = self.now.after(limits::VOTE_TIMEOUT_MS);
        self.role_change = Some(RoleChange {
            command: id,
            promotion: true,
            force,
            step: Step::Voting { deadline },
            generations: alloc::vec::Vec::new(),
        });
        if !asked {
            self.record_promotion();
        }
        Ok(false)
    }

    /// True data must be within reach of a Primary (G4).
    pub(super) fn check_data(&self, force: bool) -> Result<(), Refusal> {
        for (v, volume) in self.volumes.iter().enumerate() {
            let good = volume.disk == DiskState::UpToDate
                || self.has_remote_data(v)
                    && (volume.disk == DiskState::Diskless || self.is_sync_target(v));
            let forced = force && volume.usable();
            if !good && !forced {
                return Err(Refusal::NoUpToDateDisk);
            }
        }
        Ok(())
    }

    fn is_sync_target(&self, v: usize) -> bool {
        self.peers
            .iter()
            .any(|peer| peer.devices[v].replication.is_sync_target())
    }

    pub(crate) fn promote_request_received(
        &mut self,
        p: usize,
        id: u64,
    ) -> Result<(), &'static str> {
        let node = self.peers[p].config.node_id;
        let refusal = if self.role == Role::Primary {
            Some(Refusal::TwoPrimaries)
        } else if self
            .role_change
            .as_ref()
            .is_some_and(|change| change.promotion)
            && self.node_id < node
        {
            Some(Refusal::ConcurrentStateChange)
        } else if self
            .role_change
            .as_ref()
            .is_some_and(|change| matches!(change.step, Step::Recording { .. }))
            || self.peers[p].connection != ConnectionState::Connected
        {
            Some(Refusal::InTransientState)
        } else {
            None
        };
        if refusal.is_none() {
            // The peer has the smaller id and wants it at the same moment: this node steps back.
            if let Some(change) = self.role_change.take() {
                self.command_done(change.command, Err(Refusal::ConcurrentStateChange));
            }
            self.peers[p].granted = Some(self.now.after(2 * limits::VOTE_TIMEOUT_MS));
        }
        self.send(
            p,
            Message::PromoteReply {
                id,
                refusal: refusal.map_or(0, Refusal::code),
            },
        );
        Ok(())
    }

    pub(crate) fn promote_reply_received(
        &mut self,
        p: usize,
        id: u64,
        refusal: i32,
    ) -> Result<(), &'static str> {
        if self.peers[p].vote != Some(Vote::Asked(id)) {
            // The promotion was given up meanwhile.
            return Ok(());
        }
        if refusal == 0 {
            self.peers[p].vote = Some(Vote::Granted);
            self.count_votes();
            return Ok(());
        }
        self.peers[p].vote = None;
        let refusal = [
            Refusal::TwoPrimaries,
            Refusal::ConcurrentStateChange,
            Refusal::InTransientState,
        ]
        .into_iter()
        .find(|known| known.code() == refusal)
        .unwrap_or(Refusal::PeerRefused);
        self.give_up_promotion(refusal);
        Ok(())
    }

    /// A peer that is gone does not vote.
    pub(crate) fn vote_lost(&mut self, p: usize) {
        if self.peers[p].vote.take().is_some() {
            self.count_votes();
        }
        if let Some(command) = self
            .skip_command
            .take_if(|command| command.asked.contains(&p))
        {
            self.command_done(command.id, Err(Refusal::NeedConnection));
        }
    }

    pub(super) fn give_up_promotion(&mut self, refusal: Refusal) {
        if let Some(change) = self
            .role_change
            .take_if(|change| change.promotion && matches!(change.step, Step::Voting { .. }))
        {
            for peer in &mut self.peers {
                peer.vote = None;
            }
            self.command_done(change.command, Err(refusal));
            // A peer that granted it must know that it may promote itself.
            self.broadcast_state();
        }
    }

    /// A peer was lost while it voted and must be fenced first: the command begins anew.
    fn promote_again(&mut self) {
        if let Some(change) = self.role_change.take() {
            for peer in &mut self.peers {
                peer.vote = None;
            }
            self.deferred.push(Deferred {
                id: change.command,
                command: Command::Promote {
                    force: change.force,
                },
                since: self.events,
                deadline: self.now.after(limits::COMMAND_PATIENCE_MS),
            });
            self.broadcast_state();
        }
    }

    fn count_votes(&mut self) {
        let voting = self
            .role_change
            .as_ref()
            .is_some_and(|change| matches!(change.step, Step::Voting { .. }));
        if voting
            && !self
                .peers
                .iter()
                .any(|peer| matches!(peer.vote, Some(Vote::Asked(_))))
        {
            self.record_promotion();
        }
    }

    /// Everybody agrees: makes the promotion durable, then takes the role.
    fn record_promotion(&mut self) {
        let Some(change) = &self.role_change else {
            return;
        };
        let force = change.force;
        if let Err(refusal) = self.check_data(force) {
            return self.give_up_promotion(refusal);
        }
        if !force && (0..self.peers.len()).any(|p| self.is_unfenced(p)) {
            return self.promote_again();
        }
        let mut missing = 0;
        let mut renegotiate = false;
        let mut generations = alloc::vec::Vec::new();
        for v in 0..self.volumes.len() {
            if !self.volumes[v].usable() {
                continue;
            }
            let absent = self.peers.iter().any(|peer| !peer.devices[v].mirrors());
            if force && self.volumes[v].disk != DiskState::UpToDate && !self.is_sync_target(v) {
                self.force_up_to_date(v);
                renegotiate = true;
            } else if absent {
                // An absent peer that shares the generation may have gone on by itself: from here on the two are told apart.
                let before = self.volumes[v]
                    .backing
                    .as_ref()
                    .map(|backing| backing.identifiers());
                self.new_generation_if_shared(v, "promotion-without-peer");
                let after = self.volumes[v]
                    .backing
                    .as_ref()
                    .map(|backing| backing.identifiers());
                if let Some(before) = before.filter(|before| after.as_ref() != Some(before)) {
                    generations.push((v, before));
                }
            }
            let volume = &mut self.volumes[v];
            let Some(backing) = volume.backing.as_mut() else {
                continue;
            };
            let flags = &mut backing.superblock.flags;
            flags.primary_indicator = true;
            flags.al_clean = false;
            if backing.superblock.effective_bytes == 0 {
                backing.superblock.effective_bytes = volume.size;
            }
            let bitmap = backing.writer.want_bitmap();
            let superblock = backing.writer.want_superblock();
            volume.after(superblock, bitmap, None, After::RoleChange);
            missing += 1;
        }
        if let Some(change) = &mut self.role_change {
            change.step = Step::Recording { missing };
            change.generations = generations;
        }
        if missing == 0 {
            self.finish_role_change();
        }
        if renegotiate {
            for p in 0..self.peers.len() {
                self.renegotiate(p, "forced-promotion");
            }
        }
    }

    /// `primary --force`: whatever is here is declared current.
    fn force_up_to_date(&mut self, v: usize) {
        let random = self.random.draw();
        let absent: alloc::vec::Vec<NodeId> =
            self.peers.iter().map(|peer| peer.config.node_id).collect();
        let was = self.volumes[v].disk;
        self.set_disk(v, DiskState::UpToDate, "forced");
        let Some(backing) = self.volumes[v].backing.as_mut() else {
            return;
        };
        let mut identifiers = backing.identifiers();
        if was == DiskState::Inconsistent && !identifiers.current().is_just_created() {
            identifiers.force_current(random, &absent);
        } else {
            identifiers.new_current(random, true, &absent);
        }
        let flags = &mut backing.superblock.flags;
        flags.sync_target = false;
        flags.invalidated = false;
        set_disk_flags(flags, DiskState::UpToDate);
        self.follow_identifiers(v, &identifiers, "forced-promotion");
    }
}
