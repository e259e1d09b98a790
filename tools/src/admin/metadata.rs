//! Metadata of a volume that is not attached: opening its disks, reading the image, carrying out steps.
//!
//! Disks are claimed while they are open, so that a daemon that holds one makes the command fail and not the data.
//! An indexed metadata device belongs to several volumes and is not claimed.

use std::path::{Path, PathBuf};

use qrbd_config::MetaDisk;
use qrbd_control::LastKnown;
use qrbd_disk::{Disk, DiskError, DiskErrorKind, OpenOptions};
use qrbd_engine::metadata::growth::KnownDevice;
use qrbd_engine::metadata::image::{self, LoadError, MetadataImage, Step};
use qrbd_engine::metadata::layout::Placement;

use super::configuration::SelectedVolume;
use super::{EXIT_EXECUTION, Failure};

/// What is done with the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing is changed.
    Read,
    /// Metadata is written.
    Write,
}

/// The disks of a volume.
pub(super) struct Disks {
    /// Backing device.
    pub(super) data: Disk,
    /// Metadata device, if it is another one.
    meta: Option<Disk>,
    /// Where the metadata lies.
    pub(super) placement: Placement,
    /// Where is remembered how large the backing device was.
    last_known: PathBuf,
}

impl Disks {
    /// Opens the disks of `volume`; the backing device is there, or it is an error.
    pub(super) fn open(
        state_directory: &Path,
        volume: &SelectedVolume<'_>,
        access: Access,
    ) -> Result<Disks, Failure> {
        let Some(path) = volume.disk() else {
            return Err(Failure::new(
                EXIT_EXECUTION,
                format!("{}: has no disk (disk none)", volume.name()),
            ));
        };
        let data = open(path, access, true)?;
        let (meta, placement) = match &volume.volume.meta_disk {
            MetaDisk::Internal => (None, Placement::Internal),
            MetaDisk::External { path } => {
                let meta = open(path, access, true)?;
                let metadata_bytes = meta.info().size;
                (Some(meta), Placement::External { metadata_bytes })
            }
            MetaDisk::Indexed { path, index } => {
                let meta = open(path, access, false)?;
                let metadata_bytes = meta.info().size;
                (
                    Some(meta),
                    Placement::Indexed {
                        slot: *index,
                        metadata_bytes,
                    },
                )
            }
        };
        let node = volume
            .resource
            .local_node()
            .map_or("", |node| node.name.as_str());
        let (resource, number) = (&volume.resource.name, volume.volume.number);
        Ok(Disks {
            data,
            meta,
            placement,
            last_known: LastKnown::file(state_directory, node, resource, number),
        })
    }

    /// The disk that the metadata lies on.
    pub(super) fn metadata_disk(&self) -> &Disk {
        self.meta.as_ref().unwrap_or(&self.data)
    }

    /// Its path.
    pub(super) fn metadata_path(&self) -> PathBuf {
        self.metadata_disk().info().path.to_path_buf()
    }

    /// Bytes of the backing device.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data.info().size
    }

    /// Reads the metadata; damage is refused.
    pub(super) fn load(&self) -> Result<MetadataImage, LoadError<DiskError>> {
        let known = LastKnown::read(&self.last_known).map(|known| KnownDevice {
            device_uuid: known.device_uuid,
            device_bytes: known.device_bytes,
            moving_to: known.moving_to,
        });
        let size = self.data_bytes();
        image::load_grown(self.placement, size, known, |offset, buffer| {
            self.metadata_disk().read_exact_at(offset, buffer)
        })
    }

    /// Remembers how large the backing device is, so that its metadata are found if it grows before it is attached.
    pub(super) fn remember(&self, image: &MetadataImage) {
        let known = LastKnown {
            device_uuid: image.superblock.device_uuid,
            device_bytes: image.superblock.device_bytes,
            moving_to: None,
        };
        // Not all who make metadata may write there, and it is seldom needed.
        let _ = known.write(&self.last_known);
    }

    /// There is nothing to remember any more.
    pub(super) fn forget(&self) {
        let _ = std::fs::remove_file(&self.last_known);
    }

    /// Reads the metadata; damage is bridged by counting more as out of sync.
    pub(super) fn load_for_repair(&self) -> Result<MetadataImage, LoadError<DiskError>> {
        image::load_for_repair(self.placement, self.data_bytes(), |offset, buffer| {
            self.metadata_disk().read_exact_at(offset, buffer)
        })
    }

    /// Carries out `steps` in order.
    pub(super) fn carry_out(&self, steps: impl IntoIterator<Item = Step>) -> Result<(), Failure> {
        let disk = self.metadata_disk();
        for step in steps {
            match step {
                Step::Write { offset, bytes } => disk
                    .write_all_at(offset, &bytes)
                    .map_err(Failure::execution)?,
                Step::Flush => disk.sync().map_err(Failure::execution)?,
            }
        }
        Ok(())
    }
}

/// What a command says when the metadata of `volume` cannot be read.
pub(super) fn refused(
    volume: &SelectedVolume<'_>,
    disks: &Disks,
    error: &LoadError<DiskError>,
) -> Failure {
    Failure::execution(format!(
        "{}: {}: {error}",
        volume.name(),
        disks.metadata_path().display()
    ))
}

fn open(path: &Path, access: Access, exclusive: bool) -> Result<Disk, Failure> {
    let options = OpenOptions {
        direct: true,
        read_only: access == Access::Read,
        exclusive,
    };
    qrbd_disk::open(path, options).map_err(|error| {
        let hint = match error.kind {
            DiskErrorKind::Busy => {
                "\nIf it is qrbdd that holds it: qrbdadm detach (or down) first."
            }
            _ => "",
        };
        Failure::execution(format!("{error}{hint}"))
    })
}
