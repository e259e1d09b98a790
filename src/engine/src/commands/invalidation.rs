//! `invalidate` and `invalidate-remote`: the administrator orders a full sync.
//!
//! A node gives its data up only with the word of a living peer that its own are good: two nodes that invalidate at the same moment
//! would have none left. If both ask, the one with the lower node id may. Who gave its word and asks afterwards is refused, because
//! question and word travel on one lane: the other side has given its data up by then, or holds the word for that.

use alloc::string::String;

use crate::api::{Command, CommandId, Payload};
use crate::engine::Engine;
use crate::handshake::set_disk_flags;
use crate::peer::Invalidation;
use crate::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use crate::units::{NodeId, VolumeNumber};
use crate::volume::After;
use crate::wire::Message;

impl<P: Payload> Engine<P> {
    pub(super) fn invalidate(
        &mut self,
        id: Option<CommandId>,
        number: VolumeNumber,
        since: u64,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        if !self.volumes[v].usable() {
            return Err(Refusal::NoLocalDisk);
        }
        self.settled()?;
        if self.role == Role::Primary {
            return Err(Refusal::NeedSecondary);
        }
        let Some(p) = self.peers.iter().position(|peer| {
            peer.connection == ConnectionState::Connected
                && peer.devices[v].disk == DiskState::UpToDate
                && (id.is_some() || peer.devices[v].invalidation_wanted_there)
        }) else {
            return Err(Refusal::NeedConnection);
        };
        if self.peers[p].devices[v].replication != ReplicationState::Established {
            return Err(Refusal::ResyncRunning);
        }
        let device = &mut self.peers[p].devices[v];
        match device.invalidation {
            Some(Invalidation::Granted(event)) if event > since => device.invalidation = None,
            Some(Invalidation::Refused(event)) if event > since => {
                device.invalidation = None;
                return Err(Refusal::PeerRefused);
            }
            Some(Invalidation::Asked | Invalidation::Void) => {
                return Err(Refusal::InTransientState);
            }
            // What was said to an earlier command is old by now. The peer may have died a moment ago, and what it had not made
            // durable would be here alone: only one that is alive takes over.
            None | Some(Invalidation::Granted(_) | Invalidation::Refused(_)) => {
                device.invalidation = Some(Invalidation::Asked);
                self.send(p, Message::InvalidateQuestion { volume: number });
                self.ask_whether_alive(p);
                return Err(Refusal::InTransientState);
            }
        }
        self.set_disk(v, DiskState::Inconsistent, "invalidate");
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            backing.superblock.flags.invalidated = true;
            set_disk_flags(&mut backing.superblock.flags, DiskState::Inconsistent);
            let version = backing.writer.want_superblock();
            // Not bound to the session: the mark stays, and whoever connects next carries it out.
            volume.after(
                version,
                0,
                None,
                After::Invalidated {
                    peer: p,
                    command: id,
                },
            );
        }
        Ok(false)
    }

    pub(super) fn invalidate_remote(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        node: NodeId,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        let p = self.peer_of(node)?;
        if !self.volumes[v].usable() {
            return Err(Refusal::NoLocalDisk);
        }
        self.settled()?;
        if self.volumes[v].disk != DiskState::UpToDate {
            return Err(Refusal::NoUpToDateDisk);
        }
        if self.peers[p].connection == ConnectionState::Connected {
            if self.peers[p].role == Role::Primary {
                return Err(Refusal::NeedSecondary);
            }
            if !self.peers[p].devices[v].disk.has_data() {
                return Err(Refusal::NoRemoteDisk);
            }
            if self.peers[p].devices[v].replication != ReplicationState::Established {
                return Err(Refusal::ResyncRunning);
            }
            self.send(p, Message::InvalidateRequest { volume: number });
            return Ok(true);
        }
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            if let Some(slot) = backing.slot(node) {
                backing.bitmaps[slot].set_all();
            }
            let version = backing.writer.want_bitmap();
            volume.after(0, version, None, After::Command(id));
        }
        Ok(false)
    }

    pub(crate) fn invalidate_request_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self.volume_index(number).ok_or("an unknown volume")?;
        self.invalidate_for_peer(p, v, self.events);
        Ok(())
    }

    fn invalidate_for_peer(&mut self, p: usize, v: usize, since: u64) {
        let number = self.volumes[v].number;
        self.peers[p].devices[v].invalidation_wanted_there = true;
        let result = self.invalidate(None, number, since);
        let asked = self.peers[p].devices[v].invalidation == Some(Invalidation::Asked);
        self.peers[p].devices[v].invalidation_wanted_there = result.is_err() && asked;
        if result.is_err() && !asked {
            self.decision(
                Some(p),
                None,
                "invalidate-refused",
                String::from("the peer asked for a full sync at a bad moment"),
            );
        }
    }

    /// True if this node is about to give its data up and the peer's question comes too late: it has the peer's word already, or asked at
    /// the same moment and has the lower node id.
    fn invalidates_first(&self, p: usize, v: usize) -> bool {
        let device = &self.peers[p].devices[v];
        let number = self.volumes[v].number;
        let ordered = self.deferred.iter().any(|deferred| {
            matches!(deferred.command, Command::Invalidate { volume } if volume == number)
        });
        let first = match device.invalidation {
            Some(Invalidation::Granted(_)) => true,
            Some(Invalidation::Asked) => self.node_id < self.peers[p].config.node_id,
            Some(Invalidation::Void | Invalidation::Refused(_)) | None => false,
        };
        first && (ordered || device.invalidation_wanted_there)
    }

    pub(crate) fn invalidate_question_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self.volume_index(number).ok_or("an unknown volume")?;
        let device = &self.peers[p].devices[v];
        let granted = self.peers[p].connection == ConnectionState::Connected
            && self.volumes[v].disk == DiskState::UpToDate
            && device.replication == ReplicationState::Established
            && self.volumes[v].detaching.is_none()
            && !self.invalidates_first(p, v);
        if granted {
            // The answer to an own question must not be used any more; an answer that lies here is void at once.
            let invalidation = &mut self.peers[p].devices[v].invalidation;
            *invalidation = match *invalidation {
                Some(Invalidation::Asked | Invalidation::Void) => Some(Invalidation::Void),
                Some(Invalidation::Granted(_) | Invalidation::Refused(_)) | None => None,
            };
        }
        self.send(
            p,
            Message::InvalidateAnswer {
                volume: number,
                granted,
            },
        );
        Ok(())
    }

    pub(crate) fn invalidate_answer_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        granted: bool,
    ) -> Result<(), &'static str> {
        let v = self.volume_index(number).ok_or("an unknown volume")?;
        let event = self.events;
        let device = &mut self.peers[p].devices[v];
        device.invalidation = Some(match device.invalidation {
            Some(Invalidation::Asked) if granted => Invalidation::Granted(event),
            Some(Invalidation::Asked | Invalidation::Void) => Invalidation::Refused(event),
            _ => return Err("an answer to a question that was never asked"),
        });
        if core::mem::take(&mut device.invalidation_wanted_there) {
            self.invalidate_for_peer(p, v, event - 1);
        }
        Ok(())
    }
}
