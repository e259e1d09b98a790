//! `attach`, `detach`, `outdate`: the backing disk comes, goes, or is known to be old.
//!
//! A disk that is attached on a standing connection is Negotiating until a handshake of its own says what it is worth. A detach of a
//! Secondary is durable in an order that survives a crash: the bits first, then the word that the log need not be read.

use crate::activity_log::ActivityLog;
use crate::api::{CommandId, Payload};
use crate::config::Fencing;
use crate::engine::Engine;
use crate::handshake::set_disk_flags;
use crate::metadata::image::MetadataImage;
use crate::metadata::ring::RingWriter;
use crate::metadata_writer::MetadataWriter;
use crate::peer::Peer;
use crate::state::{ConnectionState, DiskState, Refusal, Role};
use crate::units::VolumeNumber;
use crate::volume::{After, Backing};
use crate::wire::message::Protocol;

impl<P: Payload> Engine<P> {
    pub(super) fn attach(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        image: &mut MetadataImage,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        if self.volumes[v].backing.is_some() {
            return Err(Refusal::DiskConfigured);
        }
        if self.role_change.is_some() {
            return Err(Refusal::InTransientState);
        }
        let mut superblock = image.superblock.clone();
        let connected = self
            .peers
            .iter()
            .any(|peer| peer.connection == ConnectionState::Connected);
        if self.role == Role::Primary
            && !connected
            && !self.volumes[v].exposed.same(superblock.current)
        {
            // Its clients saw the peer's data: an older state must not take their place. With the peer at hand the handshake decides.
            return Err(Refusal::DataNotCurrent);
        }
        let crashed = superblock.flags.primary_indicator || superblock.flags.crashed_primary;
        superblock.flags.crashed_primary = crashed;
        superblock.flags.primary_indicator = self.role == Role::Primary;
        let mut contacts = alloc::vec::Vec::new();
        for peer in &self.peers {
            if superblock.allocate_slot(peer.config.node_id).is_err() {
                return Err(Refusal::Unknown);
            }
            // Taken over by this process, and gone if it dies.
            let slot = superblock.peer_mut(peer.config.node_id);
            let contact = slot.is_some_and(|slot| {
                // Of a peer that is here, it says itself how good its disk is.
                slot.flags.outdated &= peer.session.is_none();
                core::mem::take(&mut slot.flags.left_in_contact)
            });
            contacts.push(Some(superblock.current).filter(|_| contact && !crashed));
        }
        let state = if !superblock.flags.consistent {
            DiskState::Inconsistent
        } else if !superblock.flags.was_up_to_date {
            DiskState::Outdated
        } else {
            DiskState::UpToDate
        };
        let size = if superblock.effective_bytes == 0 {
            image.layout.data_bytes
        } else {
            superblock.effective_bytes
        };
        if self.role == Role::Primary && self.volumes[v].size > image.layout.data_bytes {
            return Err(Refusal::DataNotCurrent);
        }
        let slots = superblock.al_slots;
        let ring = RingWriter::new(image.layout.ring_blocks, slots, image.ring_sequence);
        let mut writer = MetadataWriter::default();
        let version = writer.want_superblock();
        let primary = self.role == Role::Primary;
        let volume = &mut self.volumes[v];
        if !primary {
            volume.size = size;
        }
        volume.attached_anew = Some(state).filter(|_| connected);
        let state = if connected {
            DiskState::Negotiating
        } else {
            state
        };
        volume.backing = Some(Backing {
            layout: image.layout,
            superblock,
            // The command is done with the image: nothing below refuses.
            bitmaps: core::mem::take(&mut image.bitmaps),
            log: ActivityLog::new(slots),
            ring,
            writer,
            crashed_primary: crashed,
            completion_gate: 0,
        });
        let bytes = volume.size;
        if let Some(backing) = volume.backing.as_mut() {
            for bitmap in &mut backing.bitmaps {
                bitmap.resize(crate::units::blocks_of(bytes), true);
            }
        }
        self.set_disk(v, DiskState::Attaching, "attach");
        self.set_disk(v, state, "metadata");
        for (p, contact) in contacts.into_iter().enumerate() {
            self.recall_outdated(p, v);
            self.peers[p].devices[v].contact = contact;
            if primary && connected {
                self.peers[p].devices[v].hold = true;
            }
            if self.peers[p].connection == ConnectionState::Connected {
                // The question is asked when it can be followed up: what the peer sends behind its answer must not meet a node that is
                // still writing the attach down.
                self.peers[p].devices[v].round_wanted = true;
            } else if self.peers[p].shaking_hands() {
                // The Hello may have said that there is no disk.
                self.renegotiate(p, "attached-during-handshake");
            }
        }
        // Until the peer was met, or is known to be older. Who attaches on a standing connection may lose it before the comparison.
        self.volumes[v].unconfirmed = self.peers.iter().any(|peer| {
            peer.config.fencing != Fencing::DontCare
                && (peer.session.is_some() || peer.devices[v].disk > DiskState::Outdated)
        });
        if primary && !connected {
            self.disk_taken_back(v);
        }
        self.volumes[v].after(version, 0, None, After::Command(id));
        Ok(false)
    }

    pub(super) fn detach(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        force: bool,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        match self.volumes[v].disk {
            DiskState::Diskless => return Ok(true),
            DiskState::Failed | DiskState::Detaching | DiskState::Attaching => {
                return Err(Refusal::InTransientState);
            }
            _ => {}
        }
        self.settled()?;
        if self.volumes[v].detaching.is_some() {
            return Err(Refusal::InTransientState);
        }
        if self.role == Role::Primary && !self.has_remote_data(v) && !force {
            return Err(Refusal::NoUpToDateDisk);
        }
        if self.role == Role::Primary {
            // The clients go on through the peer, as after a disk error.
            self.volumes[v].detaching = Some(id);
            let was = self.volumes[v].disk;
            self.set_disk(v, DiskState::Detaching, "detach");
            self.disk_gone(v, was, "detach");
            return Ok(false);
        }
        let needed = self.peers.iter().any(|peer| {
            peer.connection == ConnectionState::Connected
                && peer.role == Role::Primary
                && peer.devices[v].disk != DiskState::UpToDate
                && self.volumes[v].disk == DiskState::UpToDate
        });
        if needed && !force {
            // The Primary would lose its last good data.
            return Err(Refusal::PeerRefused);
        }
        self.volumes[v].detaching = Some(id);
        for p in 0..self.peers.len() {
            // What the Primary sent and this disk did not make durable is marked there.
            self.renegotiate(p, "detach");
        }
        self.write_down_before_detach(v);
        Ok(false)
    }

    /// Has the data flushed and the bits written before the disk is let go.
    fn write_down_before_detach(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        let bitmap = volume.backing.as_mut().map_or(0, |backing| {
            backing.writer.data_flush = true;
            backing.writer.want_bitmap()
        });
        volume.after(0, bitmap, None, After::Detach);
    }

    pub(crate) fn detach_durable(&mut self, v: usize) {
        // The log may be called clean only when the bits are on disk, and contact be claimed when the data are.
        // What was received is carried out even now, and may mark blocks: again, until nothing is left.
        let volume = &self.volumes[v];
        let dirty = (volume.backing.iter().flat_map(|backing| &backing.bitmaps))
            .any(|bitmap| bitmap.dirty_count() > 0);
        let unfinished = dirty || !self.peers.iter().all(Peer::drained);
        if unfinished && volume.disk.has_data() {
            return self.write_down_before_detach(v);
        }
        let volume = &mut self.volumes[v];
        let mut news = false;
        if let Some(backing) = volume.backing.as_mut() {
            news |= !core::mem::replace(&mut backing.superblock.flags.al_clean, true);
            let current = backing.superblock.current;
            for peer in &self.peers {
                // Another protocol may be configured when the disk is attached again, and C alone makes use of contact.
                let contact = peer.config.protocol == Protocol::C
                    && (peer.devices[v].contact).is_some_and(|contact| contact.same(current));
                if let Some(slot) = backing.superblock.peer_mut(peer.config.node_id) {
                    news |= slot.flags.left_in_contact != contact;
                    slot.flags.left_in_contact = contact;
                }
            }
        }
        if let Some(backing) = volume.backing.as_mut().filter(|_| news) {
            let superblock = backing.writer.want_superblock();
            return volume.after(superblock, 0, None, After::Detach);
        }
        if self.volumes[v].disk.has_data() {
            let was = self.volumes[v].disk;
            self.set_disk(v, DiskState::Detaching, "detach");
            self.disk_gone(v, was, "detach");
        }
    }

    pub(super) fn outdate(&mut self, id: CommandId, number: VolumeNumber) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        if self.volumes[v].disk < DiskState::Outdated {
            return Err(if self.volumes[v].disk == DiskState::Diskless {
                Refusal::IsDiskless
            } else {
                Refusal::LowerThanOutdated
            });
        }
        if self.role == Role::Primary {
            return Err(Refusal::NoUpToDateDisk);
        }
        if self.peers.iter().any(|peer| peer.session.is_some()) {
            return Err(Refusal::ConnectedOutdates);
        }
        self.settled()?;
        self.set_disk(v, DiskState::Outdated, "outdate");
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            set_disk_flags(&mut backing.superblock.flags, DiskState::Outdated);
            let version = backing.writer.want_superblock();
            volume.after(version, 0, None, After::Command(id));
        }
        Ok(false)
    }
}
