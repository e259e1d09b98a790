//! On a standing connection: the handshake for one volume whose disk was attached, and what the peer says of its role and disks.
//!
//! A round waits until what its facts say is durable, and until the peer has written and noted what it was sent before: lanes are not
//! ordered with each other.

use alloc::vec::Vec;

use crate::api::Payload;
use crate::engine::Engine;
use crate::state::{ConnectionState, DiskState, ReplicationState, Role};
use crate::units::VolumeNumber;
use crate::wire::{Message, VolumeHello};

impl<P: Payload> Engine<P> {
    /// Shakes hands again for one volume whose disk was attached on a standing connection.
    pub(crate) fn start_round(&mut self, p: usize, v: usize) {
        let round = self.peers[p].devices[v].round + 1;
        self.send_round(p, v, round);
    }

    fn send_round(&mut self, p: usize, v: usize, round: u32) {
        let mine = self.volume_hello(p, v, round);
        let device = &mut self.peers[p].devices[v];
        device.round = round;
        device.mine = Some(mine.clone());
        device.theirs = None;
        device.hold = self.role == Role::Primary;
        self.send(p, Message::Again(alloc::boxed::Box::new(mine)));
    }

    /// The peer's part of another round. If its disk came anew, what it takes is told once it has decided, not by what it said
    /// without one.
    pub(crate) fn again_arrived(
        &mut self,
        p: usize,
        theirs: VolumeHello,
    ) -> Result<(), &'static str> {
        if let Some(v) = self.volume_index(theirs.volume) {
            let device = &mut self.peers[p].devices[v];
            if theirs.disk != DiskState::Diskless && !device.disk.has_data() {
                device.peer_accepts = false;
            }
        }
        self.again_received(p, theirs)
    }

    pub(crate) fn again_received(
        &mut self,
        p: usize,
        theirs: VolumeHello,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(theirs.volume)
            .ok_or("a handshake for an unknown volume")?;
        if self.peers[p].connection != ConnectionState::Connected {
            return Err("a handshake for one volume before that of the connection");
        }
        if !self.may_shake_hands(p, v) {
            self.peers[p].devices[v].postponed = Some(theirs);
            return Ok(());
        }
        let device = &self.peers[p].devices[v];
        let round = device.round;
        let answer = theirs.round == round && device.theirs.is_none();
        // Only a disk that came anew asks for another round; two that mirror do not.
        let question =
            theirs.round == round + 1 && !(self.volumes[v].usable() && device.disk.has_data());
        if !answer && !question {
            return Err("a handshake for one volume out of turn");
        }
        if theirs.round == round + 1 {
            self.send_round(p, v, theirs.round);
        }
        let said = self.peers[p].devices[v]
            .mine
            .as_ref()
            .is_some_and(|mine| mine.disk != DiskState::Diskless);
        if said && !self.volumes[v].usable() && self.volumes[v].disk != DiskState::Negotiating {
            // The disk that the round was about is gone again.
            self.renegotiate(p, "disk-lost-during-handshake");
            return Ok(());
        }
        self.peers[p].devices[v].theirs = Some(theirs);
        self.decide_volume(p, v);
        Ok(())
    }

    /// What a handshake says must be durable and stay true until its verdict.
    fn may_shake_hands(&self, p: usize, v: usize) -> bool {
        let changing = self
            .role_change
            .as_ref()
            .is_some_and(|change| !change.is_draining())
            || self.volumes[v].is_finishing_resync();
        let recorded = self.volumes[v].backing.as_ref().is_none_or(|backing| {
            backing.writer.superblock.wanted == backing.writer.superblock.durable
        });
        // What a Primary without a disk sent must be written and noted at the peer before the two compare, or the comparison would
        // overtake it (lanes are not ordered with each other). One that was demoted since waits for the answer, if it told of the loss.
        let device = &self.peers[p].devices[v];
        let noted = device.misses_tracked
            || device.disk != DiskState::UpToDate
            || self.role != Role::Primary && !device.loss_told;
        let drained = !device.round_wanted
            || noted && !device.resync_ending && !self.peers[p].log.has_unwritten(v);
        !changing && recorded && drained
    }

    /// Takes up questions that were postponed. True if there was one.
    pub(crate) fn take_postponed(&mut self, p: usize) -> bool {
        let mut progress = false;
        for v in 0..self.volumes.len() {
            if self.peers[p].devices[v].round_wanted
                && self.peers[p].devices[v].postponed.is_none()
                && self.may_shake_hands(p, v)
            {
                self.peers[p].devices[v].round_wanted = false;
                self.start_round(p, v);
                progress = true;
            }
            if self.peers[p].devices[v].postponed.is_some() && self.may_shake_hands(p, v) {
                self.peers[p].devices[v].round_wanted = false;
                let told = self.peers[p].devices[v].told_since.take();
                if let Some(theirs) = self.peers[p].devices[v].postponed.take() {
                    progress = true;
                    if let Err(what) = self.again_received(p, theirs) {
                        self.protocol_error(p, what);
                    }
                }
                // What the peer said after its question counts more than what stood in it.
                let device = &mut self.peers[p].devices[v];
                if let Some(disk) = told
                    && device.replication != ReplicationState::Off
                    && device.disk.has_data()
                {
                    device.disk = disk;
                }
            }
        }
        progress
    }

    pub(crate) fn peer_state_received(
        &mut self,
        p: usize,
        role: Role,
        disks: Vec<(VolumeNumber, DiskState)>,
    ) -> Result<(), &'static str> {
        if role == Role::Primary && self.role == Role::Primary {
            return Err("two Primaries");
        }
        let promoted = role == Role::Primary && self.peers[p].role != Role::Primary;
        self.peers[p].role = role;
        // Primary now, or the promotion was given up.
        self.peers[p].granted = None;
        for (number, disk) in disks {
            let Some(v) = self.volume_index(number) else {
                continue;
            };
            let device = &mut self.peers[p].devices[v];
            // What a disk that is being attached becomes is learned through a handshake of its own.
            let passing = matches!(disk, DiskState::Attaching | DiskState::Negotiating);
            if device.replication == ReplicationState::Off || passing {
                continue;
            }
            device.told_since =
                Some(disk).filter(|_| device.postponed.is_some() && disk.has_data());
            if device.disk == disk {
                continue;
            }
            if disk.has_data() {
                // What a disk that was without data became is learned through a handshake of its own.
                if device.disk.has_data() {
                    device.disk = disk;
                    // It has heard that its initial sync is skipped; what it becomes from now on, it says.
                    device.told_to_skip &= disk != DiskState::UpToDate;
                }
            } else {
                self.peer_disk_lost(p, v, disk, "peer-disk-lost");
            }
        }
        if promoted {
            for v in 0..self.volumes.len() {
                if self.peers[p].devices[v].disk == DiskState::Diskless {
                    self.track_misses(p, v, &[]);
                }
            }
        }
        Ok(())
    }
}
