//! `connect` and `disconnect`: whether a peer is wanted.

use alloc::string::String;

use crate::api::{CommandId, Effect, Payload};
use crate::engine::Engine;
use crate::state::{ConnectionState, DiskState, Refusal, Role};
use crate::units::NodeId;
use crate::wire::{GoodbyeReason, Message};

impl<P: Payload> Engine<P> {
    pub(super) fn connect(&mut self, node: NodeId, discard_my_data: bool) -> Result<(), Refusal> {
        let p = self.peer_of(node)?;
        if discard_my_data && self.role == Role::Primary {
            return Err(Refusal::DiscardNotAllowed);
        }
        match self.peers[p].connection {
            ConnectionState::StandAlone => {}
            ConnectionState::Connecting if !self.peers[p].shaking_hands() => {
                self.peers[p].discard_my_data = discard_my_data;
                return Ok(());
            }
            ConnectionState::Connected if !discard_my_data => return Ok(()),
            ConnectionState::Connected => return Err(Refusal::NetConfigured),
            _ => return Err(Refusal::InTransientState),
        }
        self.peers[p].discard_my_data = discard_my_data;
        self.set_connection(p, ConnectionState::Unconnected, "connect");
        self.set_connection(p, ConnectionState::Connecting, "connect");
        self.effect(Effect::StartConnecting { peer: node });
        Ok(())
    }

    pub(super) fn disconnect(
        &mut self,
        id: CommandId,
        node: NodeId,
        force: bool,
    ) -> Result<bool, Refusal> {
        let p = self.peer_of(node)?;
        if self.peers[p].connection == ConnectionState::StandAlone {
            return Ok(true);
        }
        if !force
            && self.role == Role::Primary
            && self.peers[p].connection == ConnectionState::Connected
        {
            let loses = (0..self.volumes.len()).any(|v| {
                self.volumes[v].disk != DiskState::UpToDate
                    && self.peers[p].devices[v].disk == DiskState::UpToDate
            });
            if loses {
                return Err(Refusal::NoUpToDateDisk);
            }
        }
        if !force && self.peers[p].role == Role::Primary {
            let blinds = (0..self.volumes.len()).any(|v| {
                self.volumes[v].disk == DiskState::UpToDate
                    && self.peers[p].devices[v].disk != DiskState::UpToDate
            });
            if blinds {
                return Err(Refusal::PeerRefused);
            }
        }
        self.outdate_before_parting(p, force)?;
        if self.peers[p].session.is_some() {
            self.peers[p].disconnecting = Some(id);
            self.send(
                p,
                Message::Goodbye {
                    reason: GoodbyeReason::Disconnect,
                    text: String::from("disconnected by the administrator"),
                },
            );
            self.drop_session(p, ConnectionState::Disconnecting, "disconnect");
            return Ok(false);
        }
        self.set_connection(p, ConnectionState::Disconnecting, "disconnect");
        self.become_stand_alone(p, "disconnect");
        Ok(true)
    }
}
