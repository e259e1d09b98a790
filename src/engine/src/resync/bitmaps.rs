//! The exchange of bitmaps before a resync, in parts.
//!
//! Target first, source with the union. A peer has at most [`limits::BITMAP_PARTS_UNDER_WAY`] parts that it did not answer: a bitmap
//! that no code makes small takes neither the memory nor the control lane for itself.

use alloc::vec::Vec;

use crate::api::Payload;
use crate::engine::Engine;
use crate::limits;
use crate::state::ReplicationState;
use crate::units::VolumeNumber;
use crate::volume::After;
use crate::wire::Message;

impl<P: Payload> Engine<P> {
    /// Begins to send this node's bitmap toward the peer; an empty one if the resync is a full one anyway.
    pub(crate) fn send_bitmap(&mut self, p: usize, v: usize, with_bits: bool) {
        if with_bits {
            self.peers[p].devices[v].bitmap_rest = Some(0);
            self.pump_bitmaps(p);
        } else {
            self.send_bitmap_part(p, v, Vec::new(), true);
        }
    }

    /// Sends as much of the bitmaps as the peer has room for.
    fn pump_bitmaps(&mut self, p: usize) {
        let node = self.peers[p].config.node_id;
        for v in 0..self.volumes.len() {
            while let Some(start) = self.peers[p].devices[v].bitmap_rest {
                if self.peers[p].bitmap_parts >= limits::BITMAP_PARTS_UNDER_WAY {
                    return;
                }
                let bitmap = self.volumes[v].backing.as_ref().and_then(|backing| {
                    let slot = backing.slot(node)?;
                    backing.bitmaps.get(slot)
                });
                let (runs, rest) = bitmap.map_or((Vec::new(), None), |bitmap| {
                    bitmap.encode_runs(start, limits::BITMAP_PART_BYTES)
                });
                self.peers[p].devices[v].bitmap_rest = rest;
                self.send_bitmap_part(p, v, runs, rest.is_none());
            }
        }
    }

    /// Every part but the last is answered when it was taken up; the last one by what follows from the whole.
    fn send_bitmap_part(&mut self, p: usize, v: usize, runs: Vec<u8>, last: bool) {
        let volume = self.volumes[v].number;
        self.send(p, Message::BitmapRuns { volume, runs, last });
        if !last {
            self.peers[p].bitmap_parts += 1;
        } else if self.peers[p].devices[v].replication == ReplicationState::WFBitMapS {
            self.may_begin(p, v);
        }
    }

    pub(crate) fn bitmap_taken_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        if self.volume_index(number).is_none() {
            return Err("a bitmap of an unknown volume");
        }
        let peer = &mut self.peers[p];
        if peer.bitmap_parts == 0 {
            return Err("an answer to a part of a bitmap that was never sent");
        }
        peer.bitmap_parts -= 1;
        peer.settle_deadline = None;
        self.pump_bitmaps(p);
        Ok(())
    }

    pub(crate) fn bitmap_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        runs: &[u8],
        last: bool,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("a bitmap of an unknown volume")?;
        let state = self.peers[p].devices[v].replication;
        if !matches!(
            state,
            ReplicationState::WFBitMapS | ReplicationState::WFBitMapT
        ) {
            return Err("a bitmap outside of a bitmap exchange");
        }
        let node = self.peers[p].config.node_id;
        let backing = self.volumes[v]
            .backing
            .as_mut()
            .ok_or("a bitmap for a volume without a disk")?;
        let slot = backing
            .slot(node)
            .ok_or("a bitmap from a peer without a bitmap slot")?;
        self.peers[p].settle_deadline = None;
        if !runs.is_empty() {
            let ranges = backing.bitmaps[slot]
                .decode_runs(runs)
                .map_err(|_| "an undecodable bitmap")?;
            for range in ranges {
                backing.bitmaps[slot].set(range);
            }
        }
        if !last {
            self.send(p, Message::BitmapTaken { volume: number });
        } else if state == ReplicationState::WFBitMapS {
            // A bit is cleared when the target has the block durably; what this node sends must be durable here by then as well, or a
            // crash of this node would make it the older one without a mark.
            backing.writer.data_flush = true;
            let version = backing.writer.want_bitmap();
            self.volumes[v].after(0, version, Some(p), After::SourceBitmap { peer: p });
        }
        Ok(())
    }
}
