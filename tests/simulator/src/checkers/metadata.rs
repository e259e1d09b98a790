//! C2: after any crash the metadata open, to a state that the engine wrote and no older than what was durable.

use qrbd_engine::metadata::image::MetadataImage;
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::metadata::superblock::Superblock;

use crate::disk::View;
use crate::engine_view::Knowledge;
use crate::network::NodeIndex;
use crate::world::World;

impl World {
    /// Called when a metadata operation ended: now and then, the power is imagined to fail here.
    pub(crate) fn check_metadata_operation(&mut self, node: NodeIndex, volume: usize) {
        if !self.disk_random.chance(30) {
            return;
        }
        self.checked("metadata");
        match self.nodes[node].volumes[volume]
            .disk
            .load_after_imagined_power_loss(&mut self.disk_random)
        {
            Ok(image) => {
                self.check_superblock(node, volume, &image);
                self.check_log(node, volume, image);
            }
            Err(error) => {
                self.fail("metadata", format!("n{node} v{volume}: a power loss here leaves metadata that do not open: {error}"));
            }
        }
    }

    /// The log is as it was durable, or as it was written last: one transaction is under way at a time.
    fn check_log(&mut self, node: NodeIndex, volume: usize, image: MetadataImage) {
        let found = Knowledge::of(image);
        let possible = [View::Durable, View::Cached];
        let known = possible.into_iter().any(|view| {
            self.knowledge(node, volume, view)
                .is_none_or(|knowledge| knowledge.extents() == found.extents())
        });
        if !known {
            let text = format!(
                "n{node} v{volume}: a power loss here leaves an activity log that never was: {:?}",
                found.extents()
            );
            self.fail("metadata", text);
        }
    }

    /// Internal metadata keep off what clients were shown.
    pub(crate) fn check_metadata_place(&mut self, node: NodeIndex, volume: usize, offset: u64) {
        let internal = self.nodes[node].volumes[volume].disk.placement == Placement::Internal;
        let data_bytes = self.settings.volumes[volume].data_bytes;
        let shown = self.nodes[node]
            .live_view()
            .map_or(data_bytes, |view| view.volumes[volume].size.max(data_bytes));
        if internal && offset < shown {
            let text = format!(
                "n{node} v{volume}: metadata are written at byte {offset}, the volume has {shown} bytes"
            );
            self.fail("metadata", text);
        }
    }

    /// Keeps what the engine writes as superblock.
    pub(crate) fn remember_superblock(
        &mut self,
        node: NodeIndex,
        volume: usize,
        _offset: u64,
        bytes: &[u8],
    ) {
        if bytes.len() == 4096
            && let Ok(superblock) = Superblock::decode(bytes)
        {
            let list = self.checks.superblocks.entry((node, volume)).or_default();
            list.push(superblock);
            if list.len() > 64 {
                list.drain(..32);
            }
        }
    }

    /// The superblock that counts is one that was written, and not an older one than the durable one.
    pub(crate) fn check_superblock(
        &mut self,
        node: NodeIndex,
        volume: usize,
        image: &MetadataImage,
    ) {
        let written = self.checks.superblocks.get(&(node, volume));
        let known = written.is_none_or(|list| list.contains(&image.superblock))
            || image.superblock.sequence <= 2;
        if !known {
            let text = format!(
                "n{node} v{volume}: the superblock of sequence {} was never written",
                image.superblock.sequence
            );
            return self.fail("metadata", text);
        }
        let durable = self
            .knowledge(node, volume, View::Durable)
            .map(|knowledge| knowledge.image().superblock.sequence);
        if durable.is_some_and(|durable| durable > image.superblock.sequence) {
            let text = format!(
                "n{node} v{volume}: superblock {} after {durable:?} was durable",
                image.superblock.sequence
            );
            self.fail("metadata", text);
        }
    }
}
