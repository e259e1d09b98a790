//! Commands on the metadata of volumes that are not attached: generations, states, `dump-md`, `wipe-md`, `apply-al`, and
//! `invalidate` and `outdate` for a resource that is not up.
//!
//! Crash order: stale superblock copies are rewritten before anything is changed; each change is one superblock update.

use qrbd_control::generations::GenerationReport;
use qrbd_control::status::{DiskState, ResourceStatus};
use qrbd_control::{Command, KernelError, Response, StateChangeError, Target};
use qrbd_disk::DiskError;
use qrbd_engine::metadata::METADATA_BLOCK_BYTES;
use qrbd_engine::metadata::copies::MetadataError;
use qrbd_engine::metadata::image::{
    Damage, LoadError, LoggedExtents, MetadataImage, Step, superblock_update,
};
use qrbd_engine::metadata::layout::superblock_candidates;

use super::arguments::Face;
use super::configuration::{Selected, SelectedVolume};
use super::create_md::confirmed;
use super::daemon::unexpected;
use super::metadata::{Access, Disks, refused};
use super::{Context, EXIT_CONFIGURATION, EXIT_UNCLEAN, Failure, Outcome};
use crate::show::{generations, metadata};

impl Context {
    /// `show-gi` and `get-gi`: of the running volume, or of its metadata.
    pub(super) fn generations(&self, name: &str, targets: &[String]) -> Outcome {
        let print = |report: &GenerationReport| match name {
            "show-gi" => put!("{}", generations::show_gi(report)),
            _ => put!("{}", generations::get_gi(report)),
        };
        let configuration = self.configuration();
        let selected = configuration.select(targets)?;
        self.for_each(name, selected, object, |selected| {
            let running = self.running(&selected.resource.name)?;
            let wanted = |report: &GenerationReport| {
                selected
                    .target
                    .volume
                    .is_none_or(|volume| volume == report.volume)
            };
            if running.as_ref().is_some_and(|resource| {
                selected
                    .volumes()
                    .any(|volume| is_attached(resource, &volume))
            }) {
                let command = if name == "show-gi" {
                    Command::ShowGi
                } else {
                    Command::GetGi
                };
                match self.call(command, selected.target.clone())? {
                    Response::Generations(reports) => reports
                        .iter()
                        .filter(|report| wanted(report))
                        .for_each(print),
                    response => return Err(unexpected(&selected.target, response)),
                }
                return Ok(());
            }
            for volume in selected.volumes() {
                let (_, image) = self.load(&volume, Access::Read)?;
                let peers: Vec<(u8, String)> = volume
                    .resource
                    .peers()
                    .map(|peer| (peer.node.node_id, peer.node.name.clone()))
                    .collect();
                let resource = &volume.resource.name;
                print(&metadata::generations(
                    &image.superblock,
                    resource,
                    volume.volume.number,
                    &peers,
                ));
            }
            Ok(())
        })
    }

    fn load(
        &self,
        volume: &SelectedVolume<'_>,
        access: Access,
    ) -> Result<(Disks, MetadataImage), Failure> {
        let disks = Disks::open(&self.global.state_dir, volume, access)?;
        let image = disks
            .load()
            .map_err(|error| refused(volume, &disks, &error))?;
        Ok((disks, image))
    }

    pub(super) fn dstate_of_metadata(&self, target: &Target) -> Outcome {
        let configuration = self.configuration();
        for volume in configuration.select_volumes(&[target.to_string()])? {
            let state = if volume.disk().is_none() {
                DiskState::Diskless
            } else {
                metadata::disk_state(&self.load(&volume, Access::Read)?.1.superblock)
            };
            say!("{state}/{}", DiskState::DUnknown);
        }
        Ok(())
    }

    pub(super) fn invalidate(&self, targets: &[String]) -> Outcome {
        if self.face == Face::Drbdsetup {
            return self.ask("invalidate", targets, Command::Invalidate);
        }
        self.online_or_offline(
            "invalidate",
            targets,
            &Command::Invalidate,
            |disks, image| {
                image.superblock.flags.consistent = false;
                image.superblock.flags.was_up_to_date = false;
                // As the daemon does: the next connection makes this node the target, whatever its generation. What is blank is that anyway.
                image.superblock.flags.invalidated = !image.superblock.current.is_just_created();
                disks.carry_out(superblock_update(&mut image.superblock, &image.layout))?;
                for slot in image.superblock.allocated_slots().collect::<Vec<_>>() {
                    image.bitmaps[slot].set_all();
                }
                disks.carry_out(image.clean_steps())
            },
        )
    }

    pub(super) fn outdate(&self, targets: &[String]) -> Outcome {
        if self.face == Face::Drbdsetup {
            return self.ask("outdate", targets, Command::Outdate);
        }
        self.online_or_offline("outdate", targets, &Command::Outdate, |disks, image| {
            if !image.superblock.flags.consistent {
                let error = StateChangeError::LowerThanOutdated;
                return Err(Failure::new(error.exit_code(), error.text()));
            }
            image.superblock.flags.was_up_to_date = false;
            disks.carry_out(superblock_update(&mut image.superblock, &image.layout))
        })
    }

    /// Asks the daemon for volumes that are attached, changes the metadata of the others.
    fn online_or_offline(
        &self,
        name: &str,
        targets: &[String],
        command: &Command,
        change: impl Fn(&Disks, &mut MetadataImage) -> Outcome,
    ) -> Outcome {
        let configuration = self.configuration();
        let volumes = configuration.select_volumes(targets)?;
        self.for_each(name, volumes, SelectedVolume::name, |volume| {
            let target = Target {
                volume: Some(volume.volume.number),
                ..Target::resource(&volume.resource.name)
            };
            if self.global.dry_run {
                say!("{name} {target}");
                return Ok(());
            }
            let running = self.running(&volume.resource.name)?;
            if running.is_some_and(|resource| is_attached(&resource, volume)) {
                return match self.call(command.clone(), target.clone())? {
                    Response::Ok { .. } => Ok(()),
                    response => Err(unexpected(&target, response)),
                };
            }
            let (disks, mut image) = self.load(volume, Access::Write)?;
            disks.carry_out(image.clean_steps())?;
            change(&disks, &mut image).map_err(|failure| Failure {
                message: format!("{}: {}", volume.name(), failure.message),
                ..failure
            })
        })
    }

    pub(super) fn dump_md(&self, force: bool, targets: &[String]) -> Outcome {
        self.with_detached("dump-md", targets, |volume| {
            let disks = Disks::open(&self.global.state_dir, volume, Access::Read)?;
            let loaded = if force { disks.load_for_repair() } else { disks.load() };
            let image = loaded.map_err(|error| refused(volume, &disks, &error))?;
            let is_clean = image.logged == LoggedExtents::Known(Vec::new());
            if !force && !is_clean {
                let message = format!(
                    "{}: the activity log is not applied: what it names is not in the bitmap. Please apply-al first (or --force).",
                    volume.name()
                );
                return Err(Failure::new(EXIT_UNCLEAN, message));
            }
            put!("{}", metadata::dump(&image));
            Ok(())
        })
    }

    pub(super) fn apply_al(&self, targets: &[String]) -> Outcome {
        self.with_detached("apply-al", targets, |volume| {
            let disks = Disks::open(&self.global.state_dir, volume, Access::Write)?;
            let mut image = disks.load_for_repair().map_err(|error| Failure {
                exit_code: 2,
                ..refused(volume, &disks, &error)
            })?;
            let damage = std::mem::take(&mut image.damage);
            let logged = match &image.logged {
                LoggedExtents::Known(extents) => format!("{} extents", extents.len()),
                LoggedExtents::Unknown => "all extents".to_owned(),
            };
            let before: u64 = image.bitmaps.iter().map(|bitmap| bitmap.count()).sum();
            disks.carry_out(image.clean_steps())?;
            let after: u64 = image.bitmaps.iter().map(|bitmap| bitmap.count()).sum();
            if self.global.verbose > 0 {
                say!(
                    "{}: activity log: {logged}; {} blocks newly out of sync",
                    volume.name(),
                    after.saturating_sub(before)
                );
            }
            for damage in &damage {
                complain!("{}: {damage}", volume.name());
            }
            if damage
                .iter()
                .any(|damage| matches!(damage, Damage::ActivityLog(_)))
            {
                return Err(Failure::new(
                    1,
                    format!(
                        "{}: no usable activity log: a full sync is needed",
                        volume.name()
                    ),
                ));
            }
            Ok(())
        })
    }

    pub(super) fn wipe_md(&self, force: bool, targets: &[String]) -> Outcome {
        self.with_detached("wipe-md", targets, |volume| {
            let disks = Disks::open(&self.global.state_dir, volume, Access::Write)?;
            let found = disks.load();
            if let Err(LoadError::Superblock(MetadataError::NotFound { .. })) = &found {
                say!("{}: no metadata to wipe", volume.name());
                return Ok(());
            }
            if !force {
                say!("{}: {}", volume.name(), describe(&found));
                say!(
                    "Do you really want to wipe out the metadata on {}?",
                    disks.metadata_path().display()
                );
                confirmed()?;
            }
            let places = superblock_candidates(disks.placement, disks.data_bytes())
                .map_err(|error| Failure::execution(format!("{}: {error}", volume.name())))?;
            let blank = vec![0; METADATA_BLOCK_BYTES as usize];
            let writes = places.map(|(_, offset)| Step::Write {
                offset,
                bytes: blank.clone(),
            });
            disks.carry_out(writes.into_iter().chain([Step::Flush]))?;
            disks.forget();
            say!("{}: metadata wiped", volume.name());
            Ok(())
        })
    }

    /// Runs `work` for each volume that the daemon does not hold.
    fn with_detached(
        &self,
        name: &str,
        targets: &[String],
        mut work: impl FnMut(&SelectedVolume<'_>) -> Outcome,
    ) -> Outcome {
        let configuration = self.configuration();
        let volumes = configuration.select_volumes(targets)?;
        self.for_each(name, volumes, SelectedVolume::name, |volume| {
            if self.global.dry_run {
                say!("{name} {}", volume.name());
                return Ok(());
            }
            if let Some(resource) = self.running(&volume.resource.name)?
                && is_attached(&resource, volume)
            {
                let error = KernelError::DiskConfigured;
                let message = format!("{}: Failure: ({}) {error}", volume.name(), error.number());
                return Err(Failure::new(EXIT_CONFIGURATION, message));
            }
            work(volume)
        })
    }
}

fn object(selected: &Selected<'_>) -> String {
    selected.target.to_string()
}

fn describe(found: &Result<MetadataImage, LoadError<DiskError>>) -> String {
    match found {
        Ok(image) => format!(
            "QRBD metadata, current generation {}, {} blocks out of sync",
            image.superblock.current,
            image
                .bitmaps
                .iter()
                .map(|bitmap| bitmap.count())
                .max()
                .unwrap_or(0)
        ),
        Err(error) => error.to_string(),
    }
}

fn is_attached(resource: &ResourceStatus, volume: &SelectedVolume<'_>) -> bool {
    let device = resource
        .devices
        .iter()
        .find(|device| device.volume == volume.volume.number);
    device.is_some_and(|device| device.disk_state != DiskState::Diskless)
}
