//! Two nodes meet: who has the newer data, and what follows from it for each volume.
//!
//! Sequence on a new session (control lane unless noted):
//! 1. each side sends `Hello` once its metadata is settled and nothing of an older session is on its way to the disk;
//! 2. both compare the same facts (what was sent, not what changed since) and reach mirrored verdicts;
//! 3. in sync: `VolumeReady` when the verdict is durable; resync: bitmaps are exchanged, see `resync`;
//! 4. a verdict that forbids the connection makes both sides StandAlone; each tells the other.
//!
//! From its `Hello` until the peer takes mirrored writes a Primary holds new writes of the volume, except where it will be source of
//! a resync under a generation of its own already: there their blocks are marked and follow with the resync.

mod outcome;
mod rounds;
mod verdict;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::api::{Effect, Payload, SessionId};
use crate::engine::Engine;
use crate::limits;
use crate::state::{ConnectionState, DiskState, Role};
use crate::units::NodeId;
use crate::wire::{GoodbyeReason, Hello, Message, VolumeHello};
pub(crate) use outcome::set_disk_flags;

impl<P: Payload> Engine<P> {
    pub(crate) fn peer_connected(&mut self, node: NodeId, session: SessionId) {
        let Some(p) = self.peer_index(node) else {
            return self.effect(Effect::CloseSession {
                peer: node,
                session,
            });
        };
        if self.peers[p].session.is_some() {
            // The shell reports the loss of an older session first; if it did not, this is that report.
            self.connection_lost(p, ConnectionState::BrokenPipe, "replaced");
        }
        if self.peers[p].connection != ConnectionState::Connecting {
            return self.effect(Effect::CloseSession {
                peer: node,
                session,
            });
        }
        let now = self.now;
        let peer = &mut self.peers[p];
        peer.session = Some(session);
        peer.last_heard = now;
        peer.handshake_deadline = Some(now.after(peer.config.timeout));
        self.forget_outdated(p);
        self.try_send_hello(p);
    }

    /// Sends the Hello if nothing stands in the way; called again whenever something might have gone out of it. True if sent.
    pub(crate) fn try_send_hello(&mut self, p: usize) -> bool {
        let peer = &self.peers[p];
        if peer.session.is_none()
            || peer.hello_sent.is_some()
            || !peer.drained()
            || self
                .role_change
                .as_ref()
                .is_some_and(|change| !change.is_draining())
        {
            return false;
        }
        let settled = self.volumes.iter().all(|volume| {
            volume.detaching.is_none()
                && !volume.is_finishing_resync()
                && volume.backing.as_ref().is_none_or(|backing| {
                    backing.writer.superblock.wanted == backing.writer.superblock.durable
                })
                && !matches!(
                    volume.disk,
                    DiskState::Attaching | DiskState::Failed | DiskState::Detaching
                )
        });
        if !settled {
            return false;
        }
        let volumes: Vec<VolumeHello> = (0..self.volumes.len())
            .map(|v| self.volume_hello(p, v, 1))
            .collect();
        let hello = Hello {
            node_id: self.node_id,
            role: self.role,
            protocol: self.peers[p].config.protocol,
            policies: self.peers[p].config.policies,
            discard_my_data: self.peers[p].discard_my_data,
            volumes,
        };
        let session = self.peers[p].session;
        let peer = &mut self.peers[p];
        peer.receiver = crate::receiver::Receiver::new();
        peer.receiver_session = session;
        peer.receiver_protocol = hello.protocol;
        peer.reports = crate::reports::Reports::default();
        peer.log = crate::transfer_log::TransferLog::new();
        for (device, mine) in peer.devices.iter_mut().zip(&hello.volumes) {
            device.round = 1;
            device.mine = Some(mine.clone());
            device.theirs = None;
            device.hold = self.role == Role::Primary;
        }
        peer.hello_sent = Some(hello.clone());
        self.send(p, Message::Hello(alloc::boxed::Box::new(hello)));
        self.try_decide(p);
        true
    }

    fn volume_hello(&mut self, p: usize, v: usize, round: u32) -> VolumeHello {
        let volume = &self.volumes[v];
        let node = self.peers[p].config.node_id;
        let contact = self.peers[p].devices[v].contact;
        let claimed = volume
            .attached_anew
            .filter(|_| volume.disk == DiskState::Negotiating);
        let Some(backing) = volume
            .backing
            .as_ref()
            .filter(|_| volume.disk.has_data() || claimed.is_some())
        else {
            return self.diskless_hello(p, v, round);
        };
        let superblock = &backing.superblock;
        VolumeHello {
            volume: volume.number,
            round,
            disk: claimed.unwrap_or(self.told_disk(v)),
            attached_anew: volume.attached_anew.is_some() && self.role == Role::Primary,
            max_bytes: backing.layout.data_bytes,
            effective_bytes: superblock.effective_bytes,
            current: superblock.current,
            bitmap: backing.bitmap_generation(node),
            history: superblock.history.clone(),
            crashed_primary: backing.crashed_primary,
            running_since_contact: contact
                .is_some_and(|generation| generation.same(superblock.current)),
            full_sync: superblock.flags.invalidated,
            sync_target: superblock.flags.sync_target,
            bits: backing.bits(node),
            cache: volume.cache,
        }
    }

    fn diskless_hello(&mut self, p: usize, v: usize, round: u32) -> VolumeHello {
        let named = self.name_generation(p, v);
        let volume = &self.volumes[v];
        VolumeHello {
            volume: volume.number,
            round,
            disk: DiskState::Diskless,
            attached_anew: false,
            max_bytes: 0,
            effective_bytes: volume.size,
            current: if self.role == Role::Primary {
                volume.exposed
            } else {
                crate::units::Generation::NONE
            },
            bitmap: named,
            history: Vec::new(),
            crashed_primary: false,
            running_since_contact: false,
            full_sync: false,
            sync_target: false,
            bits: 0,
            cache: volume.cache,
        }
    }

    pub(crate) fn hello_received(&mut self, p: usize, hello: Hello) -> Result<(), &'static str> {
        let peer = &mut self.peers[p];
        if peer.hello_received.is_some() {
            return Err("a second Hello");
        }
        if hello.node_id != peer.config.node_id {
            return Err("a Hello of another node");
        }
        if hello.volumes.len() > limits::MAX_VOLUMES {
            return Err("a Hello with too many volumes");
        }
        peer.hello_received = Some(hello);
        self.try_decide(p);
        Ok(())
    }

    fn try_decide(&mut self, p: usize) {
        let (Some(mine), Some(theirs)) = (&self.peers[p].hello_sent, &self.peers[p].hello_received)
        else {
            return;
        };
        if self.peers[p].connection == ConnectionState::Connected {
            return;
        }
        let (mine, theirs) = (mine.clone(), theirs.clone());
        if mine.protocol != theirs.protocol {
            return self.refuse_connection(
                p,
                "incompatible-protocol",
                String::from("incompatible protocol settings"),
            );
        }
        if let Some(setting) = mine.policies.contradiction(&theirs.policies) {
            return self.refuse_connection(
                p,
                "incompatible-policies",
                format!("incompatible {} settings", setting.word()),
            );
        }
        if mine.discard_my_data && theirs.discard_my_data {
            let text = String::from(
                "incompatible discard-my-data settings: give --discard-my-data on one node only",
            );
            return self.refuse_connection(p, "incompatible-discard-my-data", text);
        }
        // A verdict that forbids the connection is found before anything changes.
        for v in 0..self.volumes.len() {
            let Some(their) = theirs
                .volumes
                .iter()
                .find(|hello| hello.volume == self.volumes[v].number)
            else {
                continue;
            };
            self.peers[p].devices[v].theirs = Some(their.clone());
            if let Err((rule, text)) = self.verdict(p, v, true) {
                return self.refuse_connection(p, rule, text);
            }
        }
        if mine.role == Role::Primary && theirs.role == Role::Primary {
            let text = String::from(
                "Multiple primaries not allowed by config: make one node Secondary, then connect",
            );
            return self.refuse_connection(p, "two-primaries", text);
        }
        let now = self.now;
        let peer = &mut self.peers[p];
        peer.handshake_deadline = None;
        peer.role = theirs.role;
        peer.last_heard = now;
        peer.discard_my_data = false;
        self.set_connection(p, ConnectionState::Connected, "handshake");
        self.peers[p].returns_by = None;
        self.peer_needs_no_fence(p);
        for v in 0..self.volumes.len() {
            if self.peers[p].devices[v].theirs.is_some() {
                self.decide_volume(p, v);
            } else {
                self.peers[p].devices[v].hold = false;
                self.peers[p].devices[v].mine = None;
            }
        }
        for v in 0..self.volumes.len() {
            if self.peers[p].devices[v].paused_here {
                let volume = self.volumes[v].number;
                self.send(
                    p,
                    Message::ResyncPause {
                        volume,
                        paused: true,
                    },
                );
            }
        }
        self.broadcast_state();
    }

    /// Ends the handshake for good: both sides become StandAlone.
    pub(crate) fn refuse_connection(&mut self, p: usize, rule: &'static str, text: String) {
        self.decision(Some(p), None, rule, text.clone());
        let mut text = text;
        while text.len() > limits::MAX_TEXT_BYTES {
            text.pop();
        }
        self.send(
            p,
            Message::Goodbye {
                reason: GoodbyeReason::StandAlone,
                text,
            },
        );
        self.drop_session(p, ConnectionState::Disconnecting, rule);
    }

    pub(crate) fn goodbye_received(
        &mut self,
        p: usize,
        reason: GoodbyeReason,
        text: String,
    ) -> Result<(), &'static str> {
        let (state, rule) = match reason {
            GoodbyeReason::Disconnect => (ConnectionState::TearDown, "peer-disconnects"),
            GoodbyeReason::StandAlone => (ConnectionState::Disconnecting, "refused-by-peer"),
            GoodbyeReason::Renegotiate => (ConnectionState::TearDown, "peer-renegotiates"),
            GoodbyeReason::ProtocolError => {
                (ConnectionState::ProtocolError, "refused-as-senseless")
            }
        };
        self.decision(Some(p), None, rule, text);
        if reason == GoodbyeReason::Renegotiate {
            self.drop_session_for_a_moment(p, rule);
        } else {
            self.drop_session(p, state, rule);
        }
        Ok(())
    }
}
