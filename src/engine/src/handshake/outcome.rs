//! Carries out a verdict for a volume: states, flags and sizes, until both sides are ready or a resync begins.

use alloc::format;

use super::verdict::{agreed_size, level};
use crate::api::Payload;
use crate::engine::Engine;
use crate::generation::{DiskLevel, Extent, Outcome};
use crate::peer::ResyncTarget;
use crate::state::{ConnectionState, DiskState, ReplicationState, Role};
use crate::units::{Generation, VolumeNumber};
use crate::volume::After;
use crate::wire::{Message, VolumeHello};

/// True if a disk has been at this generation, or is.
fn knows(disk: &VolumeHello, generation: Generation) -> bool {
    generation.same(disk.current)
        || generation.same(disk.bitmap)
        || disk.history.iter().any(|old| old.same(generation))
}

impl<P: Payload> Engine<P> {
    /// Carries out the verdict for a volume.
    pub(super) fn decide_volume(&mut self, p: usize, v: usize) {
        let device = &self.peers[p].devices[v];
        let (Some(mine), Some(theirs)) = (device.mine.clone(), device.theirs.clone()) else {
            return;
        };
        if mine.round != theirs.round {
            return;
        }
        self.compare_caches(p, v, &theirs);
        let (outcome, rule) = match self.verdict(p, v, mine.round > 1) {
            Ok(found) => found,
            // The Primary gives that disk up and goes on with this one.
            Err((rule, text)) if theirs.attached_anew => {
                self.peers[p].devices[v].takes_writes();
                return self.decision(Some(p), Some(v), rule, text);
            }
            Err((rule, text)) if mine.attached_anew => {
                // The peer serves this Primary's clients: it is the disk that goes, not the connection.
                self.decision(Some(p), Some(v), rule, text);
                self.peers[p].devices[v].hold = false;
                return self.fail_disk(v, rule);
            }
            Err((rule, text)) => return self.refuse_connection(p, rule, text),
        };
        // Whoever is source has current data, whatever it knew before.
        self.peers[p].devices[v].disk = match (outcome, theirs.disk) {
            (Outcome::Target(_), DiskState::Consistent) => DiskState::UpToDate,
            (_, disk) => disk,
        };
        self.peers[p].devices[v].tracks_misses = false;
        let text = format!(
            "generations {} / {}: {outcome}",
            mine.current, theirs.current
        );
        self.decision(Some(p), Some(v), rule, text);
        if mine.disk == DiskState::Diskless || theirs.disk == DiskState::Diskless {
            return self.connect_diskless(p, v, &mine, &theirs);
        }
        self.confirm(v);
        if let Ok(size) = agreed_size(&mine, &theirs) {
            // What is added is not shown to clients before the peer counts as target: until then its own would be as good.
            let shown = self.role != Role::Primary || !matches!(outcome, Outcome::Source(_));
            self.agree_on_size(v, size, shown);
        }
        let seen = self.volumes[v].exposed;
        if mine.attached_anew && !seen.is_none() && !knows(&mine, seen) && !knows(&theirs, seen) {
            // What the clients of this Primary saw is gone, here and there: older data must not take its place under their feet.
            self.peers[p].devices[v].hold = false;
            self.peers[p].devices[v].disk = theirs.disk.min(DiskState::Outdated);
            return self.fail_disk(v, "clients-saw-newer-data");
        }
        if let (Outcome::Target(_), Some(claimed)) = (outcome, self.volumes[v].attached_anew) {
            self.set_disk(v, claimed.min(DiskState::Outdated), rule);
        }
        match outcome {
            // The Primary gives that disk up, see below; here nothing changes.
            Outcome::Target(_) if theirs.attached_anew => {
                self.peers[p].devices[v].takes_writes();
                self.peers[p].devices[v].disk = DiskState::Diskless
            }
            Outcome::Source(_) if mine.attached_anew => {
                self.peers[p].devices[v].hold = false;
                let seen = self.volumes[v].exposed;
                if seen.same(mine.current) && !seen.same(theirs.current) {
                    // Its clients saw these very data, and the peer's are older: an ordinary handshake makes it the source.
                    self.end_attached_anew(v);
                    return self.renegotiate(p, "clients-saw-these-data");
                }
                if !seen.is_none() && !seen.same(theirs.current) {
                    self.peers[p].devices[v].disk = theirs.disk.min(DiskState::Outdated);
                }
                // Its clients saw the peer's data; a disk that claims to be newer is not one of this volume's line.
                self.fail_disk(v, rule);
            }
            Outcome::InSync | Outcome::NoSource => {
                self.set_replication(p, v, ReplicationState::Established, rule);
                self.in_sync(p, v, outcome == Outcome::InSync, theirs.disk);
            }
            Outcome::Source(extent) => {
                if let Some(claimed) = self.volumes[v].attached_anew.take() {
                    self.set_disk(v, claimed, rule);
                }
                if !theirs.attached_anew {
                    self.newest_within_reach(v);
                }
                // Whatever it calls itself, it lacks something until the resync is over.
                self.peers[p].devices[v].disk = theirs.disk.min(DiskState::Consistent);
                self.set_replication(p, v, ReplicationState::WFBitMapS, rule);
                let node = self.peers[p].config.node_id;
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    if let (Extent::Full, Some(slot)) = (extent, backing.slot(node)) {
                        backing.bitmaps[slot].set_all();
                    }
                    // Under a generation of its own, what a Primary writes meanwhile is marked and follows with the resync.
                    let tracked = !backing.bitmap_generation(node).is_none();
                    self.peers[p].devices[v].hold &= !tracked;
                }
            }
            Outcome::Target(extent) => {
                self.volumes[v].failed_unflushed = None;
                self.set_replication(p, v, ReplicationState::WFBitMapT, rule);
                if !mine.current.same(theirs.current) && self.volumes[v].disk > DiskState::Outdated
                {
                    // Newer data exist: whatever becomes of this connection, these are old.
                    self.outdate_disk(v, rule);
                }
                self.peers[p].devices[v].target =
                    Some(alloc::boxed::Box::new(ResyncTarget::default()));
                self.send_bitmap(p, v, extent == Extent::Bitmap);
            }
            Outcome::SplitBrain(_) | Outcome::Unrelated | Outcome::Refuse(_) => {
                unreachable!("refused by verdict()")
            }
        }
    }

    /// Nothing to copy: records that durably, then lets writes flow.
    fn in_sync(&mut self, p: usize, v: usize, equal: bool, their_disk: DiskState) {
        let node = self.peers[p].config.node_id;
        if let Some(claimed) = self.volumes[v].attached_anew.take() {
            self.set_disk(v, claimed, "in-sync-with-peer");
        }
        if equal {
            let anew = self.peers[p].devices[v]
                .theirs
                .as_ref()
                .is_some_and(|theirs| theirs.attached_anew);
            if !anew {
                self.newest_within_reach(v);
            }
            if level(their_disk) == DiskLevel::UpToDate
                && self.volumes[v].disk != DiskState::UpToDate
                || self.volumes[v].disk == DiskState::Consistent
            {
                self.set_disk(v, DiskState::UpToDate, "in-sync-with-peer");
            }
            if self.volumes[v].disk == DiskState::UpToDate
                && matches!(their_disk, DiskState::Outdated | DiskState::Consistent)
            {
                self.peers[p].devices[v].disk = DiskState::UpToDate;
            }
        }
        let disk = self.volumes[v].disk;
        let volume = &mut self.volumes[v];
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        if equal {
            let mut identifiers = backing.identifiers();
            identifiers.slot_cleared(node);
            backing.set_identifiers(&identifiers);
            backing.crashed_primary = false;
            backing.superblock.flags.crashed_primary = false;
            set_disk_flags(&mut backing.superblock.flags, disk);
        }
        if let Some(peer) = backing.superblock.peer_mut(node) {
            peer.flags.connected = true;
            peer.flags.device_seen = true;
        }
        let version = volume.want_superblock();
        volume.after(version, 0, Some(p), After::Ready { peer: p });
    }

    pub(crate) fn send_volume_ready(&mut self, p: usize, v: usize) {
        let number = self.volumes[v].number;
        self.peers[p].devices[v].accepts = true;
        self.send(p, Message::VolumeReady { volume: number });
        self.volume_settled(p, v);
    }

    pub(crate) fn volume_ready_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("readiness of an unknown volume")?;
        if self.peers[p].devices[v].replication != ReplicationState::Established {
            return Err("readiness of a volume that is not in sync");
        }
        self.peers[p].devices[v].takes_writes();
        self.volume_settled(p, v);
        Ok(())
    }

    /// Both sides are ready: held writes go on, mirrored.
    fn volume_settled(&mut self, p: usize, v: usize) {
        let current = self.volumes[v].current();
        let mine = self.volumes[v].disk;
        let device = &mut self.peers[p].devices[v];
        if device.accepts && device.peer_accepts {
            device.hold = false;
            if device.disk == DiskState::UpToDate && mine == DiskState::UpToDate {
                device.contact = current;
            }
        }
    }

    /// One side has no disk: the connection stands, nothing is compared.
    fn connect_diskless(&mut self, p: usize, v: usize, mine: &VolumeHello, theirs: &VolumeHello) {
        self.set_replication(p, v, ReplicationState::Established, "diskless");
        if mine.disk == DiskState::Diskless && theirs.disk.has_data() && self.volumes[v].size == 0 {
            self.volumes[v].size = if theirs.effective_bytes == 0 {
                theirs.max_bytes
            } else {
                theirs.effective_bytes
            };
        }
        // What a Primary without a disk showed its clients must be what the other one has; anything else is old.
        let stale = |primary: &VolumeHello, disk: &VolumeHello| {
            primary.disk == DiskState::Diskless
                && !primary.current.is_none()
                && !knows(disk, primary.current)
        };
        let shown = |primary: &VolumeHello, disk: &VolumeHello| {
            primary.disk == DiskState::Diskless
                && !primary.current.is_none()
                && knows(disk, primary.current)
        };
        if shown(mine, theirs) && theirs.disk == DiskState::Consistent {
            self.peers[p].devices[v].disk = DiskState::UpToDate;
        }
        if shown(theirs, mine) {
            self.confirm(v);
        }
        if stale(mine, theirs) && theirs.disk > DiskState::Outdated {
            self.peers[p].devices[v].disk = DiskState::Outdated;
        }
        if self.role == Role::Primary
            && mine.disk == DiskState::Diskless
            && self.peers[p].devices[v].disk == DiskState::UpToDate
        {
            // Its clients work on these data from now on; an older disk that is attached without the peer would begin a split brain.
            self.volumes[v].exposed = theirs.current;
        }
        if stale(theirs, mine) {
            // Before the disk takes the state that it claims: the Primary must not see it UpToDate for a moment and write to it.
            if let Some(claimed) = &mut self.volumes[v].attached_anew {
                *claimed = (*claimed).min(DiskState::Outdated);
            }
            self.end_attached_anew(v);
            if self.volumes[v].disk > DiskState::Outdated {
                self.outdate_disk(v, "primary-showed-newer-data");
            }
        } else {
            self.end_attached_anew(v);
        }
        match self.volumes[v]
            .backing
            .as_mut()
            .filter(|_| theirs.disk == DiskState::Diskless)
        {
            Some(backing) => {
                // The other one has only this disk: what it was told of on an earlier connection becomes durable before it goes on, so
                // that its next flush covers that too (W4).
                backing.writer.data_flush = true;
                let version = backing.writer.want_bitmap();
                self.volumes[v].after(0, version, Some(p), After::Ready { peer: p });
            }
            None => self.send_volume_ready(p, v),
        }
        if theirs.disk == DiskState::Diskless {
            self.peers[p].devices[v].named_there = theirs.bitmap;
        }
        if self.peers[p].role == Role::Primary {
            self.track_misses(p, v, &[]);
        }
    }

    /// Nobody has current data to bring a disk up to date that a Primary attached: unless it holds what the clients last saw, it
    /// cannot be used.
    pub(crate) fn end_attached_anew(&mut self, v: usize) {
        let Some(claimed) = self.volumes[v].attached_anew.take() else {
            return;
        };
        let current = self.volumes[v].current();
        if self.volumes[v].disk != DiskState::Negotiating {
            return;
        }
        if self.role != Role::Primary {
            self.set_disk(v, claimed, "metadata");
        } else if current.is_some_and(|current| current.same(self.volumes[v].exposed)) {
            self.set_disk(v, claimed, "clients-saw-these-data");
            self.disk_taken_back(v);
        } else {
            self.fail_disk(v, "clients-saw-newer-data");
        }
    }

    /// The comparison found nothing newer at the peer: with every peer at hand, old data are the newest that there are.
    pub(crate) fn newest_within_reach(&mut self, v: usize) {
        let all = self
            .peers
            .iter()
            .all(|peer| peer.connection == ConnectionState::Connected);
        if all
            && matches!(
                self.volumes[v].disk,
                DiskState::Outdated | DiskState::Consistent
            )
        {
            self.set_disk(v, DiskState::UpToDate, "nothing-newer");
            if let Some(backing) = self.volumes[v].backing.as_mut() {
                set_disk_flags(&mut backing.superblock.flags, DiskState::UpToDate);
                backing.writer.want_superblock();
            }
        }
    }

    /// Newer data than these exist: records it (in the next superblock write).
    pub(crate) fn outdate_disk(&mut self, v: usize, rule: &'static str) {
        self.set_disk(v, DiskState::Outdated, rule);
        self.record_outdated(v);
    }

    /// Whoever attaches this disk from now on learns that its data are old.
    pub(crate) fn record_outdated(&mut self, v: usize) {
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            set_disk_flags(&mut backing.superblock.flags, DiskState::Outdated);
            backing.writer.want_superblock();
        }
    }

    fn agree_on_size(&mut self, v: usize, bytes: u64, shown: bool) {
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            let old = core::mem::replace(&mut backing.superblock.effective_bytes, bytes);
            for bitmap in &mut backing.bitmaps {
                bitmap.resize(crate::units::blocks_of(bytes), true);
            }
            if old != 0 && old < bytes {
                // The other side was told to grow, and this one takes it over. Nothing is completed there before that is durable.
                backing.mark_from(old);
                backing.writer.want_bitmap();
                backing.completion_gate = backing.writer.want_superblock();
                let gate = backing.completion_gate;
                volume.after(gate, 0, None, After::Requests);
            }
        }
        if bytes <= volume.size {
            volume.size = bytes;
        } else if shown {
            self.show_size(v);
        }
    }
}

/// Writes what a disk state means into the flags of the superblock.
pub(crate) fn set_disk_flags(flags: &mut crate::metadata::superblock::Flags, disk: DiskState) {
    flags.consistent = disk >= DiskState::Outdated;
    flags.was_up_to_date = disk == DiskState::UpToDate;
}
