//! `resize`: a volume grows while it is in use.
//!
//! Sequence, at the Primary (`P`) that the administrator asked, with its peer (`S`):
//! 1. `P` looks at its disk; if that has grown, its metadata move to the new end ([`crate::metadata::growth`]);
//! 2. `P → S` *ask*: `S` does the same, `S → P` *offer*: so many bytes, durably. Up to here nothing has changed but that the disks
//!    offer more;
//! 3. the new size is what every disk offers, never less than the present one. `P` marks what is added as missing at `S`, durably,
//!    then its superblock has the new size, durably;
//! 4. both shake hands anew: by an ordinary handshake `P` is the source and `S` takes the larger size over. The clients of `P` see it
//!    when the resync begins, so that what they read there is never replaced by what `S` has in its place.
//!
//! With `--assume-clean` nothing is marked: after 2, `P → S` *take*: `S` notes the new size durably and says *taken*; then `P` does the
//! same and its clients see it. A crash in between ends in step 4: one side has the new size and the other one not, which a handshake
//! takes for a block that is marked (`handshake::verdict`).
//!
//! Invariants: a size that clients have seen is durable here, and the disk of every peer that was asked has room for it. Whatever is
//! cut short before the superblock has the new size leaves the volume as it was.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::api::{CommandId, Effect, IoError, Payload, SessionId};
use crate::engine::{Engine, IoOwner};
use crate::limits;
use crate::metadata::growth::{DiskSizes, GrowthError, grown_layout};
use crate::metadata::layout::LayoutError;
use crate::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use crate::units::{BLOCK_BYTES, Time, VolumeNumber, blocks_of};
use crate::volume::After;
use crate::wire::{Message, ResizeStage};

/// For whom a volume is resized.
#[derive(Clone, Copy, Debug)]
enum Asker {
    /// The administrator of this node.
    Command {
        id: CommandId,
        most: Option<u64>,
        assume_clean: bool,
    },
    /// A peer, on a session.
    Peer { peer: usize, session: SessionId },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The operating system is asked for the sizes of the disks.
    Measuring,
    /// The metadata move.
    Moving,
    /// The peers do the same.
    Asking,
    /// The peers take the new size.
    Taking,
    /// The bits of what is added are being written.
    Marking,
    /// The superblock with the new size is being written: there is no way back.
    Recording,
}

/// A resize under way.
#[derive(Debug)]
pub(crate) struct Resize {
    asker: Asker,
    step: Step,
    /// Tells this attempt from an earlier one.
    attempt: u64,
    /// Peers that are asked, with the session; those that did not answer first.
    asked: Vec<(usize, SessionId)>,
    missing: usize,
    /// The least that was offered so far, then the new size; bytes.
    bytes: u64,
    deadline: Time,
}

impl Resize {
    /// When it is given up; `None` while the disk of this node is at work, which answers.
    pub fn deadline(&self) -> Option<Time> {
        matches!(self.step, Step::Asking | Step::Taking).then_some(self.deadline)
    }

    /// What is added holds the same bytes everywhere: so said the administrator here, or at the peer who asks to take it.
    fn is_clean(&self) -> bool {
        match self.asker {
            Asker::Command { assume_clean, .. } => assume_clean,
            Asker::Peer { .. } => true,
        }
    }
}

fn refusal_of(error: &GrowthError) -> Refusal {
    match error {
        GrowthError::Layout(
            LayoutError::MetadataDeviceTooSmall { .. } | LayoutError::SlotTooSmall { .. },
        )
        | GrowthError::SlotsWouldMove { .. } => Refusal::MetadataTooSmall,
        _ => Refusal::DiskTooSmall,
    }
}

impl<P: Payload> Engine<P> {
    pub(super) fn resize(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        most: Option<u64>,
        assume_clean: bool,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        self.settled()?;
        if self.volumes[v].resize.is_some() {
            return Err(Refusal::InTransientState);
        }
        if let Err((refusal, text)) = self.may_resize(v, most) {
            self.decision(None, Some(v), "resize-refused", text);
            return Err(refusal);
        }
        let asked = self
            .peers
            .iter()
            .enumerate()
            .filter_map(|(p, peer)| Some((p, peer.session?)))
            .collect();
        let asker = Asker::Command {
            id,
            most,
            assume_clean,
        };
        self.start_resize(v, asker, asked);
        Ok(false)
    }

    /// What stands in the way, in DRBD's words and with what helps.
    fn may_resize(&self, v: usize, most: Option<u64>) -> Result<(), (Refusal, String)> {
        let volume = &self.volumes[v];
        let refuse = |refusal, text: &str| Err((refusal, String::from(text)));
        if !volume.usable() {
            return refuse(
                Refusal::NoDisk,
                "this node has no disk for the volume: attach it first",
            );
        }
        if most.is_some_and(|most| most < volume.size) {
            let text = format!(
                "the volume has {} bytes, and none is made smaller",
                volume.size
            );
            return Err((Refusal::DiskTooSmall, text));
        }
        if self.role != Role::Primary {
            let text = match self.peers.iter().find(|peer| peer.role == Role::Primary) {
                Some(peer) => format!(
                    "run it on the Primary, which is the node with node-id {}",
                    peer.config.node_id
                ),
                None => {
                    String::from("make this node Primary first: what is added is copied from there")
                }
            };
            return Err((Refusal::NeedPrimary, text));
        }
        for peer in &self.peers {
            let device = &peer.devices[v];
            if peer.connection != ConnectionState::Connected {
                let text = format!(
                    "the node with node-id {} is not connected ({}): its disk must grow too, so connect it and try again",
                    peer.config.node_id, peer.connection
                );
                return Err((Refusal::NeedConnection, text));
            }
            if !device.disk.has_data() {
                let text = format!(
                    "the node with node-id {} has no disk for the volume: attach it there and try again",
                    peer.config.node_id
                );
                return Err((Refusal::NoRemoteDisk, text));
            }
            if device.replication != ReplicationState::Established {
                return refuse(
                    Refusal::ResizeDuringResync,
                    "wait for the end of the resync and try again",
                );
            }
        }
        if volume.disk != DiskState::UpToDate {
            return refuse(
                Refusal::NoUpToDateDisk,
                "the disk of this node is not UpToDate",
            );
        }
        Ok(())
    }

    fn start_resize(&mut self, v: usize, asker: Asker, asked: Vec<(usize, SessionId)>) {
        let moving = (self.volumes[v].backing.as_ref())
            .is_some_and(|backing| backing.writer.moving || backing.writer.move_to.is_some());
        self.volumes[v].resize = Some(Resize {
            asker,
            // What an attempt began that was given up is waited for.
            step: if moving {
                Step::Moving
            } else {
                Step::Measuring
            },
            attempt: self.events,
            asked,
            missing: 0,
            bytes: 0,
            deadline: Time(0),
        });
        if !moving {
            let volume = self.volumes[v].number;
            let io = self.new_io(v, IoOwner::Measure);
            self.effect(Effect::MeasureDisk { volume, io });
        }
    }

    /// The sizes of a volume's disks are known.
    pub(crate) fn disk_measured(&mut self, v: usize, result: Result<DiskSizes, IoError>) {
        let volume = &mut self.volumes[v];
        let (Some(resize), Some(backing)) = (&mut volume.resize, volume.backing.as_mut()) else {
            return;
        };
        if resize.step != Step::Measuring {
            return;
        }
        let Ok(sizes) = result else {
            let text = String::from("the size of the disk cannot be found out");
            return self.end_resize(v, Err((Refusal::DiskTooSmall, text)));
        };
        match grown_layout(&backing.layout, sizes) {
            Err(error) => {
                let text = format!("{error}");
                self.end_resize(v, Err((refusal_of(&error), text)));
            }
            Ok(None) => self.disk_offers(v),
            Ok(Some(layout)) => {
                resize.step = Step::Moving;
                backing.writer.move_to = Some(layout);
                let text = format!(
                    "the disk has {} bytes now, {} before: its metadata follow",
                    layout.device_bytes, backing.layout.device_bytes
                );
                self.decision(None, Some(v), "disk-grew", text);
            }
        }
    }

    /// The metadata are in their new place.
    pub(crate) fn metadata_moved(&mut self, v: usize) {
        if let Some(Resize {
            step: Step::Moving, ..
        }) = self.volumes[v].resize
        {
            self.disk_offers(v);
        }
    }

    /// The metadata stay where they are, since the shell cannot remember where they would go.
    pub(crate) fn move_refused(&mut self, v: usize) {
        let text = "where the metadata are on the way to cannot be remembered outside of the disk: see this node's log";
        self.end_resize(v, Err((Refusal::MetadataIo, String::from(text))));
    }

    /// This node's disk offers what it can: ask the peers, or tell the one who asked.
    fn disk_offers(&mut self, v: usize) {
        let now = self.now;
        let volume = &mut self.volumes[v];
        let number = volume.number;
        let (Some(resize), Some(backing)) = (&mut volume.resize, &volume.backing) else {
            return;
        };
        resize.bytes = backing.layout.data_bytes;
        match resize.asker {
            Asker::Peer { peer, .. } => {
                let bytes = resize.bytes;
                volume.resize = None;
                self.send_resize(peer, number, ResizeStage::Offer, bytes, String::new());
            }
            Asker::Command { .. } => {
                resize.step = Step::Asking;
                resize.deadline = now.after(limits::RESIZE_PATIENCE_MS);
                resize.missing = resize.asked.len();
                for (p, _) in resize.asked.clone() {
                    self.send_resize(p, number, ResizeStage::Ask, 0, String::new());
                }
            }
        }
    }

    fn send_resize(
        &mut self,
        p: usize,
        volume: VolumeNumber,
        stage: ResizeStage,
        bytes: u64,
        text: String,
    ) {
        self.send(
            p,
            Message::Resize {
                volume,
                stage,
                bytes,
                text,
            },
        );
    }

    pub(crate) fn resize_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        stage: ResizeStage,
        bytes: u64,
        text: String,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a resize of an unknown volume")?;
        let Some(session) = self.peers[p].session else {
            return Ok(());
        };
        match stage {
            ResizeStage::Ask => {
                if let Err(text) = self.may_take_part(p, v) {
                    self.decision(Some(p), Some(v), "resize-refused", text.clone());
                    self.send_resize(p, number, ResizeStage::Refuse, 0, text);
                } else {
                    self.start_resize(v, Asker::Peer { peer: p, session }, Vec::new());
                }
            }
            ResizeStage::Take => {
                let fits = self.volumes[v].backing.as_ref().is_some_and(|backing| {
                    (backing.superblock.effective_bytes..=backing.layout.data_bytes)
                        .contains(&bytes)
                });
                if !fits {
                    return Err("a resize to a size that was not offered");
                }
                if let Err(text) = self.may_take_part(p, v) {
                    self.send_resize(p, number, ResizeStage::Refuse, 0, text);
                    return Ok(());
                }
                self.volumes[v].resize = Some(Resize {
                    asker: Asker::Peer { peer: p, session },
                    step: Step::Marking,
                    attempt: self.events,
                    asked: Vec::new(),
                    missing: 0,
                    bytes,
                    deadline: Time(0),
                });
                self.mark_added(v);
            }
            // The answers; without a question they come too late.
            ResizeStage::Offer | ResizeStage::Refuse | ResizeStage::Taken => {
                let node = self.peers[p].config.node_id;
                let Some(resize) = &mut self.volumes[v].resize else {
                    return Ok(());
                };
                let expected = match resize.step {
                    Step::Asking => ResizeStage::Offer,
                    Step::Taking => ResizeStage::Taken,
                    _ => return Ok(()),
                };
                if !resize.asked.contains(&(p, session)) {
                    return Ok(());
                }
                if stage == ResizeStage::Refuse {
                    let text = format!("the node with node-id {node} cannot: {text}");
                    self.end_resize(v, Err((Refusal::PeerRefused, text)));
                } else if stage == expected {
                    resize.bytes = resize.bytes.min(bytes);
                    resize.missing = resize.missing.saturating_sub(1);
                    if resize.missing == 0 {
                        self.all_answered(v);
                    }
                }
            }
        }
        Ok(())
    }

    /// Why this node cannot take part in a resize that its peer carries out.
    fn may_take_part(&self, p: usize, v: usize) -> Result<(), String> {
        let volume = &self.volumes[v];
        let device = &self.peers[p].devices[v];
        let text = if !volume.usable() {
            "it has no disk for the volume"
        } else if volume.resize.is_some() {
            "another resize is under way there"
        } else if device.replication != ReplicationState::Established
            || !device.accepts
            || volume.disk != DiskState::UpToDate
        {
            "its disk is not UpToDate, or just changing"
        } else if self.peers[p].role != Role::Primary {
            "it sees no Primary"
        } else {
            return Ok(());
        };
        Err(String::from(text))
    }

    /// Every peer offered, or took the new size.
    fn all_answered(&mut self, v: usize) {
        let now = self.now;
        let volume = &mut self.volumes[v];
        let (size, number) = (volume.size, volume.number);
        let (Some(resize), Some(backing)) = (&mut volume.resize, &volume.backing) else {
            return;
        };
        if resize.step == Step::Taking {
            resize.step = Step::Marking;
            return self.mark_added(v);
        }
        let Asker::Command {
            most, assume_clean, ..
        } = resize.asker
        else {
            return;
        };
        let (here, offered) = (backing.layout.data_bytes, resize.bytes);
        let bytes = offered.min(most.unwrap_or(u64::MAX));
        if let Some(most) = most.filter(|&most| most > offered) {
            let text = format!("the disks offer {offered} bytes, {most} were asked for");
            return self.end_resize(v, Err((Refusal::DiskTooSmall, text)));
        }
        if bytes <= size.max(backing.superblock.effective_bytes) {
            let text = if most.is_none() && here > size {
                format!(
                    "the volume stays at {size} bytes: this node's disk offers {here}, the peer's {offered}; make the peer's \
                     disk larger and try again"
                )
            } else {
                format!("the volume stays at {size} bytes: this node's disk offers {here}")
            };
            self.decision(None, Some(v), "resize-unchanged", text);
            return self.end_resize(v, Ok(()));
        }
        resize.bytes = bytes;
        if assume_clean {
            resize.step = Step::Taking;
            resize.missing = resize.asked.len();
            resize.deadline = now.after(limits::RESIZE_PATIENCE_MS);
            for (p, _) in resize.asked.clone() {
                self.send_resize(p, number, ResizeStage::Take, bytes, String::new());
            }
        } else {
            resize.step = Step::Marking;
            self.mark_added(v);
        }
    }

    /// The bitmaps get the new size, with what is added marked, durably.
    fn mark_added(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        let (Some(resize), Some(backing)) = (&volume.resize, volume.backing.as_mut()) else {
            return;
        };
        let (attempt, bytes, clean) = (resize.attempt, resize.bytes, resize.is_clean());
        let old = backing.superblock.effective_bytes;
        for bitmap in &mut backing.bitmaps {
            bitmap.resize(blocks_of(bytes), !clean);
        }
        if !clean {
            backing.mark_from(old);
        }
        let version = backing.writer.want_bitmap();
        volume.after(0, version, None, After::ResizeMarked { attempt });
    }

    pub(crate) fn resize_marked(&mut self, v: usize, attempt: u64) {
        let volume = &mut self.volumes[v];
        let (Some(resize), Some(backing)) = (&mut volume.resize, volume.backing.as_mut()) else {
            return;
        };
        if resize.attempt != attempt || resize.step != Step::Marking {
            return;
        }
        resize.step = Step::Recording;
        backing.superblock.effective_bytes = resize.bytes;
        let version = volume.want_superblock();
        volume.after(version, 0, None, After::Resized { attempt });
    }

    pub(crate) fn resize_durable(&mut self, v: usize, attempt: u64) {
        let Some(resize) = self.volumes[v]
            .resize
            .as_ref()
            .filter(|resize| resize.attempt == attempt)
        else {
            return;
        };
        let (asker, bytes, clean) = (resize.asker, resize.bytes, resize.is_clean());
        let sessions = resize.asked.clone();
        if clean {
            self.show_size(v);
        }
        match asker {
            Asker::Peer { peer, session } => {
                self.volumes[v].resize = None;
                if self.peers[peer].session == Some(session) {
                    let number = self.volumes[v].number;
                    self.send_resize(peer, number, ResizeStage::Taken, bytes, String::new());
                }
            }
            Asker::Command { .. } => {
                for (p, session) in sessions {
                    if !clean && self.peers[p].session == Some(session) {
                        self.renegotiate(p, "resized");
                    }
                }
                self.end_resize(v, Ok(()));
            }
        }
    }

    /// Clients see the size that the superblock has.
    pub(crate) fn show_size(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        let Some(bytes) = volume
            .backing
            .as_ref()
            .map(|backing| backing.superblock.effective_bytes)
        else {
            return;
        };
        if bytes > volume.size {
            let text = format!("the volume has {bytes} bytes now, {} before", volume.size);
            volume.size = bytes;
            self.decision(None, Some(v), "resized", text);
        }
    }

    /// The resize is over, one way or the other.
    fn end_resize(&mut self, v: usize, result: Result<(), (Refusal, String)>) {
        let Some(resize) = self.volumes[v].resize.take() else {
            return;
        };
        if let (Err(_), Some(backing)) = (&result, self.volumes[v].backing.as_mut()) {
            // Bits beyond the end would pass for writes.
            let blocks = blocks_of(match backing.superblock.effective_bytes {
                0 => backing.layout.data_bytes,
                bytes => bytes,
            });
            for bitmap in &mut backing.bitmaps {
                if bitmap.blocks() > blocks {
                    bitmap.resize(blocks, false);
                }
            }
        }
        if let Err((_, text)) = &result {
            self.decision(None, Some(v), "resize-refused", text.clone());
        }
        match resize.asker {
            Asker::Command { id, .. } => {
                self.command_done(id, result.map_err(|(refusal, _)| refusal));
            }
            Asker::Peer { peer, session } => {
                if let Err((_, text)) = result
                    && self.peers[peer].session == Some(session)
                {
                    let number = self.volumes[v].number;
                    self.send_resize(peer, number, ResizeStage::Refuse, 0, text);
                }
            }
        }
    }

    /// Gives a resize up whose ground is gone. True if it did.
    pub(crate) fn pump_resize(&mut self, v: usize) -> bool {
        let volume = &self.volumes[v];
        let Some(resize) = &volume.resize else {
            return false;
        };
        let gone = |&(p, session): &(usize, SessionId)| self.peers[p].session != Some(session);
        let lost = match resize.asker {
            Asker::Peer { peer, session } => gone(&(peer, session)),
            Asker::Command { .. } => resize.asked.iter().any(gone),
        };
        let found = if !volume.usable() {
            Some((Refusal::NoDisk, "the disk of this node was lost"))
        } else if lost && resize.step != Step::Recording {
            Some((
                Refusal::NeedConnection,
                "the connection was lost meanwhile: the volume is as large as before; try again",
            ))
        } else if resize
            .deadline()
            .is_some_and(|deadline| self.now >= deadline)
        {
            Some((Refusal::Timeout, "a peer gives no answer: look at its log"))
        } else {
            None
        };
        let Some((refusal, text)) = found else {
            return false;
        };
        self.end_resize(v, Err((refusal, String::from(text))));
        true
    }
}

impl crate::volume::Backing {
    /// Marks everything from a byte offset on toward every peer.
    pub(crate) fn mark_from(&mut self, bytes: u64) {
        for slot in 0..self.bitmaps.len() {
            if self.superblock.peers[slot].node_id.is_some() {
                let end = self.bitmaps[slot].blocks();
                self.bitmaps[slot].set((bytes / BLOCK_BYTES).min(end)..end);
            }
        }
    }
}
