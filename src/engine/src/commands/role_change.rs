//! A role change from its command to its end: the steps, and what moves it from one to the next.
//!
//! Promotion: voting, recording. Demotion: draining, flushing, recording. The role itself changes at the very end, when everything that
//! says so is durable.

use alloc::vec::Vec;

use crate::api::{CommandId, Effect, Payload};
use crate::engine::{Engine, IoOwner};
use crate::generation::Identifiers;
use crate::state::{ConnectionState, Refusal, ReplicationState, Role};
use crate::units::Time;

/// How far a role change is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Promotion: the peers vote until the deadline.
    Voting { deadline: Time },
    /// Demotion: open requests end, epochs become durable.
    Draining,
    /// Demotion: the local disks are flushed; so many answers are missing.
    Flushing { missing: usize },
    /// The superblocks are written; so many are missing.
    Recording { missing: usize },
}

/// A role change under way.
#[derive(Debug)]
pub(crate) struct RoleChange {
    pub(super) command: CommandId,
    pub(super) promotion: bool,
    pub(super) force: bool,
    pub(super) step: Step,
    /// Volumes for which the promotion made a new generation, with the identifiers before.
    pub(super) generations: Vec<(usize, Identifiers)>,
}

impl RoleChange {
    pub fn is_promotion(&self) -> bool {
        self.promotion
    }
    pub fn is_demotion(&self) -> bool {
        !self.promotion
    }
    /// A demotion that the clients must follow.
    pub fn is_forced_demotion(&self) -> bool {
        !self.promotion && self.force
    }
    /// A demotion that waits for open requests.
    pub fn is_draining(&self) -> bool {
        self.step == Step::Draining
    }
    pub fn deadline(&self) -> Option<Time> {
        match self.step {
            Step::Voting { deadline } => Some(deadline),
            _ => None,
        }
    }
}

impl<P: Payload> Engine<P> {
    pub(crate) fn role_change_durable(&mut self, _v: usize) {
        let Some(change) = &mut self.role_change else {
            return;
        };
        if let Step::Recording { missing } = &mut change.step {
            *missing = missing.saturating_sub(1);
            if *missing == 0 {
                self.finish_role_change();
            }
        }
    }

    /// Nothing was written under the generations of a promotion that was not carried out. If they stayed, these data would pass for
    /// newer than those of the last Primary. A peer that has heard of them keeps them alive.
    fn take_back_generations(&mut self, generations: Vec<(usize, Identifiers)>) {
        if self.peers.iter().any(|peer| peer.hello_sent.is_some()) {
            return;
        }
        for (v, before) in generations {
            self.follow_identifiers(v, &before, "promotion-given-up");
        }
    }

    pub(super) fn finish_role_change(&mut self) {
        let Some(change) = self.role_change.take() else {
            return;
        };
        for peer in &mut self.peers {
            peer.vote = None;
        }
        if change.promotion
            && let Err(refusal) = self.check_data(false)
        {
            // A disk failed while the promotion was written down.
            self.take_back_generations(change.generations);
            for volume in &mut self.volumes {
                if let Some(backing) = volume.backing.as_mut() {
                    backing.superblock.flags.primary_indicator = false;
                    backing.writer.want_superblock();
                }
            }
            self.broadcast_state();
            return self.command_done(change.command, Err(refusal));
        }
        let (role, rule) = if change.promotion {
            (Role::Primary, "promote")
        } else {
            (Role::Secondary, "demote")
        };
        self.set_role(role, rule);
        if change.promotion && !change.force {
            // Lost while the promotion was written down.
            for p in 0..self.peers.len() {
                self.fence_lost_peer(p);
            }
        }
        self.command_done(change.command, Ok(()));
    }

    /// Moves a role change on. True if it moved.
    pub(crate) fn pump_role_change(&mut self) -> bool {
        let Some(change) = &self.role_change else {
            return false;
        };
        match change.step {
            Step::Voting { deadline } if self.now >= deadline => {
                self.give_up_promotion(Refusal::Timeout);
                true
            }
            Step::Draining if self.requests.is_empty() && !self.compares() => {
                let mut missing = 0;
                for v in 0..self.volumes.len() {
                    if self.volumes[v].usable() {
                        let volume = self.volumes[v].number;
                        let io = self.new_io(v, IoOwner::DemoteFlush);
                        self.effect(Effect::Flush { volume, io });
                        missing += 1;
                    }
                }
                self.set_role_step(Step::Flushing { missing });
                if missing == 0 {
                    self.record_demotion();
                }
                true
            }
            Step::Draining => {
                for p in 0..self.peers.len() {
                    self.close_epoch(p);
                }
                false
            }
            _ => false,
        }
    }

    /// True while a comparison with a peer is under way: what was said in it, the generation above all, must stay true until its end.
    fn compares(&self) -> bool {
        self.peers.iter().any(|peer| {
            if peer.connection != ConnectionState::Connected {
                return peer.session.is_some() && peer.hello_sent.is_some();
            }
            peer.devices.iter().any(|device| match device.replication {
                _ if device.awaits_answer() => true,
                ReplicationState::WFBitMapS | ReplicationState::WFBitMapT => true,
                ReplicationState::Established => !(device.accepts && device.peer_accepts),
                _ => false,
            })
        })
    }

    pub(super) fn set_role_step(&mut self, step: Step) {
        if let Some(change) = &mut self.role_change {
            change.step = step;
        }
    }
}
