//! `invalidate`, `invalidate-remote`, `pause-sync`, `resume-sync`: the administrator orders a full sync, or holds one.

use alloc::string::String;

use crate::api::{CommandId, Payload};
use crate::engine::Engine;
use crate::handshake::set_disk_flags;
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
        }) else {
            return Err(Refusal::NeedConnection);
        };
        if self.peers[p].devices[v].replication != ReplicationState::Established {
            return Err(Refusal::ResyncRunning);
        }
        if self.peers[p].heard_in <= since {
            // It may have died a moment ago, and what it had not made durable would be here alone: only a peer that is alive takes over.
            self.ask_whether_alive(p);
            return Err(Refusal::InTransientState);
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
        if self.volume_index(number).is_none() {
            return Err("an unknown volume");
        }
        if self.invalidate(None, number, self.events - 1).is_err() {
            self.decision(
                Some(p),
                None,
                "invalidate-refused",
                String::from("the peer asked for a full sync at a bad moment"),
            );
        }
        Ok(())
    }

    pub(super) fn pause_sync(
        &mut self,
        number: VolumeNumber,
        node: NodeId,
        pause: bool,
    ) -> Result<(), Refusal> {
        let v = self.volume_of(number)?;
        let p = self.peer_of(node)?;
        if self.peers[p].devices[v].paused_here == pause {
            return Err(if pause {
                Refusal::PauseAlreadySet
            } else {
                Refusal::PauseAlreadyClear
            });
        }
        self.peers[p].devices[v].paused_here = pause;
        if self.peers[p].connection == ConnectionState::Connected {
            self.send(
                p,
                Message::ResyncPause {
                    volume: number,
                    paused: pause,
                },
            );
        }
        self.apply_pause(p, v);
        Ok(())
    }
}
