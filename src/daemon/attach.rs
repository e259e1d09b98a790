//! Taking a backing disk into use: opening, reading the metadata, starting a fresh activity log.
//!
//! Runs on a helper thread, since all of it blocks. Invariant: when it returns, everything it wrote is durable, so the engine may
//! begin with the image as it is. Refusals carry DRBD's numbers and name the path, the field and the remedy.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qrbd_config::MetaDisk;
use qrbd_control::{KernelError, LastKnown, Refusal};
use qrbd_disk::{Disk, DiskError, DiskErrorKind, OpenOptions};
use qrbd_engine::limits::MIN_AL_EXTENTS;
use qrbd_engine::metadata::METADATA_BLOCK_BYTES;
use qrbd_engine::metadata::copies::MetadataError;
use qrbd_engine::metadata::growth::KnownDevice;
use qrbd_engine::metadata::image::{self, LoadError, MetadataImage, Step};
use qrbd_engine::metadata::layout::{LayoutError, Placement};
use qrbd_engine::metadata::ring;
use qrbd_engine::units::{NodeId, SECTOR_BYTES};
use tracing::info;

/// How long a busy disk is tried: the kernel closes the files of a killed daemon only when its last I/O is done, which may be after
/// the next daemon has started.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const CLAIM_STEP: Duration = Duration::from_millis(20);

/// What is to be attached.
#[derive(Clone, Debug)]
pub(crate) struct AttachRequest {
    /// The object's name, for messages.
    pub(crate) object: String,
    pub(crate) disk: PathBuf,
    pub(crate) meta_disk: MetaDisk,
    pub(crate) al_extents: u32,
    pub(crate) node_id: NodeId,
    /// Where is remembered how large the disk was.
    pub(crate) last_known: PathBuf,
}

/// An open disk whose metadata is in order.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) data: Disk,
    /// `None`: the metadata is on the data disk.
    pub(crate) meta: Option<Disk>,
    pub(crate) image: MetadataImage,
    /// Where is remembered how large the disk was.
    pub(crate) last_known: PathBuf,
    /// What the administrator should know.
    pub(crate) notices: Vec<String>,
}

/// Opens, reads and prepares.
///
/// # Errors
/// A refusal for the administrator.
pub(crate) fn attach(request: &AttachRequest) -> Result<Attached, Refusal> {
    let data = open(
        &request.disk,
        true,
        KernelError::DiskClaimed,
        KernelError::OpenDisk,
    )?;
    let (meta, placement) = match &request.meta_disk {
        MetaDisk::Internal => (None, Placement::Internal),
        MetaDisk::External { path } => {
            let meta = open(
                path,
                true,
                KernelError::MetaDiskClaimed,
                KernelError::OpenMetaDisk,
            )?;
            let metadata_bytes = meta.info().size;
            (Some(meta), Placement::External { metadata_bytes })
        }
        // Shared by several volumes, so it cannot be claimed.
        MetaDisk::Indexed { path, index } => {
            let meta = open(
                path,
                false,
                KernelError::MetaDiskClaimed,
                KernelError::OpenMetaDisk,
            )?;
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
    let mut notices = data.notices().to_vec();
    notices.extend(meta.iter().flat_map(|meta| meta.notices().iter().cloned()));
    let metadata_disk = meta.as_ref().unwrap_or(&data);
    let path = metadata_disk.info().path.clone();
    let known = LastKnown::read(&request.last_known).map(|known| KnownDevice {
        device_uuid: known.device_uuid,
        device_bytes: known.device_bytes,
        moving_to: known.moving_to,
    });
    let device_bytes = data.info().size;
    let mut image = image::load_grown(placement, device_bytes, known, |offset, buffer| {
        metadata_disk.read_exact_at(offset, buffer)
    })
    .map_err(|error| refused(&request.object, &path, &error))?;
    if image.superblock.node_id != request.node_id {
        let detail = format!(
            "{}: field node id: the metadata was made for node-id {}, the configuration says this node is {}.\n\
             Correct 'node-id' in the configuration, or make new metadata with 'qrbdadm create-md {}' (a full resync follows).",
            path.display(),
            image.superblock.node_id,
            request.node_id,
            request.object
        );
        return Err(Refusal::from(KernelError::InvalidPeerNodeId).with_detail(detail));
    }
    notices.extend(coarse(&request.disk, data.info().alignment));
    for copy in &image.refused {
        notices.push(format!(
            "{}: {copy}; the other copy of the superblock is good and replaces it",
            path.display()
        ));
    }
    if let image::LoggedExtents::Known(extents) = &image.logged
        && !extents.is_empty()
    {
        notices.push(format!(
            "{}: the node went down as Primary: {} extents of the activity log are marked out of sync",
            path.display(),
            extents.len()
        ));
    }
    let slots = request
        .al_extents
        .clamp(MIN_AL_EXTENTS, ring::max_extents(image.layout.ring_blocks));
    let (_, steps) = image.start_log_steps(slots);
    carry_out(metadata_disk, steps)
        .map_err(|error| Refusal::from(KernelError::MetaDiskIo).with_detail(error.to_string()))?;
    let made_for = image.superblock.device_bytes;
    if device_bytes / METADATA_BLOCK_BYTES > made_for / METADATA_BLOCK_BYTES {
        notices.push(format!(
            "{}: the device has grown from {made_for} to {device_bytes} bytes; the volume stays as large as it was until \
             'qrbdadm resize {}'",
            request.disk.display(),
            request.object
        ));
    }
    if let Err(error) = remember(&request.last_known, KnownDevice::of(&image.superblock)) {
        // Needed only for a device that grows while it is not attached.
        info!(
            "{}: cannot be written: {error}",
            request.last_known.display()
        );
    }
    Ok(Attached {
        data,
        meta,
        image,
        last_known: request.last_known.clone(),
        notices,
    })
}

/// Remembers durably what the metadata of a device are found by.
///
/// # Errors
/// What the file system says.
pub(crate) fn remember(file: &Path, known: KnownDevice) -> io::Result<()> {
    let KnownDevice {
        device_uuid,
        device_bytes,
        moving_to,
    } = known;
    let last = LastKnown {
        device_uuid,
        device_bytes,
        moving_to,
    };
    last.write(file)
}

/// What to know about a disk that does not take every sector: the peer's clients are told the peer's alignment, not this one.
fn coarse(path: &Path, alignment: u32) -> Option<String> {
    (u64::from(alignment) > SECTOR_BYTES).then(|| {
        format!(
            "{}: the disk takes only multiples of {alignment} bytes: use disks of the same alignment on both nodes, since a smaller \
             write at a peer that accepts it counts as an I/O error of this disk",
            path.display()
        )
    })
}

fn carry_out(disk: &Disk, steps: Vec<Step>) -> Result<(), DiskError> {
    for step in steps {
        match step {
            Step::Write { offset, bytes } => disk.write_all_at(offset, &bytes)?,
            Step::Flush => disk.sync()?,
        }
    }
    Ok(())
}

fn open(
    path: &Path,
    exclusive: bool,
    claimed: KernelError,
    unopened: KernelError,
) -> Result<Disk, Refusal> {
    let deadline = Instant::now() + CLAIM_PATIENCE;
    loop {
        match qrbd_disk::open(
            path,
            OpenOptions {
                exclusive,
                ..OpenOptions::default()
            },
        ) {
            Ok(disk) => return Ok(disk),
            Err(error) if error.kind == DiskErrorKind::Busy => {
                if Instant::now() >= deadline {
                    return Err(Refusal::from(claimed).with_detail(error.to_string()));
                }
                std::thread::sleep(CLAIM_STEP);
            }
            Err(error) => return Err(Refusal::from(unopened).with_detail(error.to_string())),
        }
    }
}

/// The refusal for metadata that cannot be used.
fn refused(object: &str, path: &Path, error: &LoadError<DiskError>) -> Refusal {
    let detail = format!("{}: {error}", path.display());
    match error {
        LoadError::Layout(LayoutError::DeviceTooSmall { .. }) => {
            Refusal::from(KernelError::DiskTooSmall)
        }
        LoadError::Layout(_) => Refusal::from(KernelError::MetaDiskTooSmall),
        LoadError::Read { .. } => Refusal::from(KernelError::MetaDiskIo),
        LoadError::EffectiveSize { .. } => Refusal::from(KernelError::ImplicitShrink),
        LoadError::ActivityLog(_) | LoadError::Bitmap(_) => {
            Refusal::from(KernelError::MetaDataUnclean)
        }
        LoadError::Superblock(MetadataError::NotFound { .. }) => {
            let remedy = format!(
                "{detail}\nA new device: make it with 'qrbdadm create-md {object}'. A device that held a volume and has grown \
                 since: make it as large as it was, attach it, and grow it then (the state directory does not remember its size)."
            );
            return Refusal::from(KernelError::MetaDataInvalid).with_detail(remedy);
        }
        LoadError::Superblock(_)
        | LoadError::DeviceSize { .. }
        | LoadError::OtherVolume { .. } => Refusal {
            // Making new metadata would lose what the old one knows: not to be advised lightly.
            text: "No valid meta-data found.".to_owned(),
            ..Refusal::from(KernelError::MetaDataInvalid)
        },
    }
    .with_detail(detail)
}

#[cfg(test)]
mod tests {
    use qrbd_control::RefusalKind;
    use qrbd_engine::metadata::image::CreateOptions;

    use super::*;

    fn request(directory: &tempfile::TempDir, bytes: u64) -> AttachRequest {
        let disk = directory.path().join("disk");
        std::fs::File::create(&disk)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        AttachRequest {
            object: "r0/0".to_owned(),
            disk,
            meta_disk: MetaDisk::Internal,
            al_extents: 67,
            node_id: NodeId(1),
            last_known: directory.path().join("last-known"),
        }
    }

    fn create(request: &AttachRequest, bytes: u64) {
        let options = CreateOptions {
            placement: Placement::Internal,
            device_bytes: bytes,
            max_peers: 1,
            node_id: NodeId(1),
            device_uuid: 7,
            al_slots: 67,
        };
        let disk = qrbd_disk::open(&request.disk, OpenOptions::default()).unwrap();
        carry_out(
            &disk,
            image::create(&options).unwrap().write_steps().collect(),
        )
        .unwrap();
    }

    #[test]
    fn refusals_carry_the_numbers_that_users_know_and_name_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let blank = request(&directory, 16 << 20);
        let number = |request: &AttachRequest| {
            let refusal = attach(request).unwrap_err();
            assert!(
                refusal.detail.contains(request.disk.to_str().unwrap()),
                "{refusal:?}"
            );
            refusal.kind
        };
        assert_eq!(number(&blank), RefusalKind::Kernel(119));
        assert!(
            attach(&blank)
                .unwrap_err()
                .detail
                .contains("create-md r0/0")
        );
        assert_eq!(
            number(&request(&directory, 64 << 10)),
            RefusalKind::Kernel(111)
        );
        let missing = AttachRequest {
            disk: directory.path().join("none"),
            ..blank.clone()
        };
        assert_eq!(number(&missing), RefusalKind::Kernel(104));
        let held = request(&directory, 16 << 20);
        create(&held, 16 << 20);
        let other_node = AttachRequest {
            node_id: NodeId(0),
            ..held.clone()
        };
        assert_eq!(number(&other_node), RefusalKind::Kernel(171));
        let _holder = attach(&held).unwrap();
        assert_eq!(number(&held), RefusalKind::Kernel(114));
    }

    #[test]
    fn a_disk_that_does_not_take_every_sector_is_pointed_out() {
        assert_eq!(coarse(Path::new("/disk"), 512), None);
        let notice = coarse(Path::new("/disk"), 4096).unwrap();
        assert!(notice.starts_with("/disk: ") && notice.contains("multiples of 4096 bytes"));
    }

    #[test]
    fn an_attached_disk_has_a_fresh_log_that_a_second_attach_continues() {
        let directory = tempfile::tempdir().unwrap();
        let request = request(&directory, 16 << 20);
        create(&request, 16 << 20);
        let first = attach(&request).unwrap();
        assert!(!first.image.superblock.flags.al_clean && first.meta.is_none());
        let sequence = first.image.ring_sequence;
        drop(first);
        let second = attach(&request).unwrap();
        assert!(second.image.ring_sequence > sequence);
        assert_eq!(second.image.superblock.al_slots, 67);
    }
}
