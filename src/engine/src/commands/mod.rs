//! The administrator's commands: what is refused, what it takes until it is done.
//!
//! This file takes a command and keeps it while it must wait; each group of commands has a file of its own. A command that meets a
//! state that is just changing (a handshake, data of an old connection on its way to the disk) waits for it, at most
//! [`limits::COMMAND_PATIENCE_MS`], and each is answered exactly once.

mod connection;
mod demotion;
mod disk;
mod generation;
mod invalidation;
mod promotion;
mod resize;
mod role_change;
mod sync;

use crate::api::{Command, CommandId, Payload};
use crate::engine::Engine;
use crate::limits;
use crate::state::{ConnectionState, Refusal, ReplicationState};
use crate::units::{NodeId, Time, VolumeNumber};
pub(crate) use generation::SkipCommand;
pub(crate) use resize::Resize;
pub(crate) use role_change::RoleChange;

/// A command that waits for the state to settle.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub id: CommandId,
    pub command: Command,
    /// Number of the event that brought it.
    pub since: u64,
    pub deadline: Time,
}

impl<P: Payload> Engine<P> {
    pub(crate) fn command(&mut self, id: CommandId, command: Command) {
        let deadline = self.now.after(limits::COMMAND_PATIENCE_MS);
        let since = self.events;
        self.try_command(Deferred {
            id,
            command,
            since,
            deadline,
        });
    }

    /// Tries the commands that wait again. True if one got through.
    pub(crate) fn retry_deferred(&mut self) -> bool {
        if self.deferred.is_empty() {
            return false;
        }
        let mut progress = false;
        for mut deferred in core::mem::take(&mut self.deferred) {
            if matches!(deferred.command, Command::Promote { .. }) && self.awaits_fence() {
                // The shell ends the handler in time.
                deferred.deadline = self.now.after(limits::COMMAND_PATIENCE_MS);
            }
            if self.now >= deferred.deadline {
                self.command_done(deferred.id, Err(Refusal::InTransientState));
                progress = true;
            } else {
                let waiting = self.deferred.len();
                self.try_command(deferred);
                progress |= self.deferred.len() == waiting;
            }
        }
        progress
    }

    fn try_command(&mut self, mut deferred: Deferred) {
        let id = deferred.id;
        let result = match &mut deferred.command {
            Command::Attach { volume, image } => self.attach(id, *volume, image),
            Command::Detach { volume, force } => self.detach(id, *volume, *force),
            Command::Connect {
                peer,
                discard_my_data,
            } => self.connect(*peer, *discard_my_data).map(|()| true),
            Command::Disconnect { peer, force } => self.disconnect(id, *peer, *force),
            Command::Promote { force } => self.promote(id, *force, deferred.since),
            Command::Demote { force } => self.demote(id, *force),
            Command::Invalidate { volume } => self.invalidate(Some(id), *volume, deferred.since),
            Command::InvalidateRemote { volume, peer } => {
                self.invalidate_remote(id, *volume, *peer)
            }
            Command::Outdate { volume } => self.outdate(id, *volume),
            Command::PauseSync { volume, peer } => {
                self.pause_sync(*volume, *peer, true).map(|()| true)
            }
            Command::ResumeSync { volume, peer } => {
                self.pause_sync(*volume, *peer, false).map(|()| true)
            }
            Command::SuspendIo => {
                self.suspend_io();
                Ok(true)
            }
            Command::ResumeIo => self.resume_io().map(|()| true),
            Command::Resize {
                volume,
                bytes,
                assume_clean,
            } => self.resize(id, *volume, *bytes, *assume_clean),
            Command::NewCurrentUuid {
                volume,
                clear_bitmap,
            } => self.new_current_uuid(id, *volume, *clear_bitmap),
        };
        match result {
            // Done at once.
            Ok(true) => self.command_done(id, Ok(())),
            // Under way; whoever ends it reports.
            Ok(false) => {}
            Err(Refusal::InTransientState) if self.now < deferred.deadline => {
                self.deferred.push(deferred)
            }
            Err(refusal) => self.command_done(id, Err(refusal)),
        }
    }

    /// Takes a changed configuration of a peer: timeouts, policies, windows; the protocol counts from the next connection on, so the
    /// shell disconnects before. False if the peer is unknown or the protocol would change under a standing connection.
    pub fn reconfigure_peer(&mut self, config: crate::config::PeerConfig) -> bool {
        let Some(p) = self.peer_index(config.node_id) else {
            return false;
        };
        if self.peers[p].session.is_some() && self.peers[p].config.protocol != config.protocol {
            return false;
        }
        if self.peers[p].config.protocol != config.protocol {
            // What contact means depends on the protocol: under C each of the two had every completed write.
            for device in &mut self.peers[p].devices {
                device.contact = None;
            }
        }
        self.peers[p].config = config;
        true
    }

    /// Takes a changed configuration of a volume; `al-extents` counts from the next attach on. False if the volume is unknown.
    pub fn reconfigure_volume(&mut self, config: crate::config::VolumeConfig) -> bool {
        let Some(v) = self.volume_index(config.number) else {
            return false;
        };
        self.volumes[v].config = config;
        true
    }

    fn volume_of(&self, number: VolumeNumber) -> Result<usize, Refusal> {
        self.volume_index(number).ok_or(Refusal::Unknown)
    }

    fn peer_of(&self, node: NodeId) -> Result<usize, Refusal> {
        self.peer_index(node).ok_or(Refusal::Unknown)
    }

    /// Refuses while anything is between two states.
    fn settled(&self) -> Result<(), Refusal> {
        let busy = self.role_change.is_some()
            || self.skip_command.is_some()
            || self.peers.iter().any(|peer| {
                peer.shaking_hands()
                    || peer.receiver_session != peer.session && !peer.drained()
                    || peer.connection == ConnectionState::Connected
                        && peer.devices.iter().any(|device| {
                            device.round_wanted
                                || device.postponed.is_some()
                                || device.awaits_answer()
                        })
                    || peer.devices.iter().any(|device| {
                        matches!(
                            device.replication,
                            ReplicationState::WFBitMapS | ReplicationState::WFBitMapT
                        ) || device.replication == ReplicationState::Established
                            && !(device.accepts && device.peer_accepts)
                    })
            });
        if busy {
            Err(Refusal::InTransientState)
        } else {
            Ok(())
        }
    }
}
