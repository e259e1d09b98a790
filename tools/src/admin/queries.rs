//! `dump` and `sh-*`: what the configuration says, for scripts.

use qrbd_config::{Device, MetaDisk, Resource};

use super::arguments::Face;
use super::configuration::SelectedVolume;
use super::{Context, EXIT_CONFIGURATION, Failure, Outcome};

impl Context {
    pub(super) fn dump(&self, targets: &[String]) -> Outcome {
        let configuration = self.configuration();
        let all = targets.is_empty() || targets.iter().any(|target| target == "all");
        if all {
            put!("{}", qrbd_config::dump(&configuration.loaded));
            return self.errors_of(configuration);
        }
        for selected in configuration.select(targets)? {
            put!("{}", qrbd_config::dump_resource(selected.resource));
        }
        Ok(())
    }

    pub(super) fn sh_nop(&self, targets: &[String]) -> Outcome {
        let configuration = self.configuration();
        for ignored in &configuration.loaded.ignored {
            complain!("{ignored}");
        }
        if !targets.is_empty() {
            configuration.select(targets)?;
        }
        self.errors_of(configuration)
    }

    fn errors_of(&self, configuration: &super::Configuration) -> Outcome {
        if configuration.loaded.errors.is_empty() {
            return Ok(());
        }
        Err(Failure::new(EXIT_CONFIGURATION, configuration.errors()))
    }

    pub(super) fn sh_resources(&self) -> Outcome {
        let configuration = self.configuration();
        let names: Vec<&str> = configuration
            .loaded
            .local_resources()
            .map(|resource| resource.name.as_str())
            .collect();
        say!("{}", names.join(" "));
        self.errors_of(configuration)
    }

    pub(super) fn sh_resource(&self, targets: &[String]) -> Outcome {
        self.per_resource(targets, |resource| Some(resource.name.clone()))
    }

    pub(super) fn sh_ip(&self, targets: &[String]) -> Outcome {
        self.per_resource(targets, |resource| {
            resource
                .local_node()
                .map(|node| node.address.ip().to_string())
        })
    }

    pub(super) fn sh_dev(&self, targets: &[String]) -> Outcome {
        // Who calls us drbdadm expects DRBD's device name; it is a link to the same device.
        let prefix = if self.face == Face::Drbdadm {
            "drbd"
        } else {
            "nbd"
        };
        self.per_volume(targets, |volume| match &volume.volume.device {
            Some(Device {
                name: Some(name), ..
            }) => format!("/dev/{name}"),
            Some(Device { minor, name: None }) => format!("/dev/{prefix}{minor}"),
            None => String::new(),
        })
    }

    pub(super) fn sh_minor(&self, targets: &[String]) -> Outcome {
        self.per_volume(targets, |volume| {
            volume
                .volume
                .device
                .as_ref()
                .map_or_else(String::new, |device| device.minor.to_string())
        })
    }

    pub(super) fn sh_ll_dev(&self, targets: &[String]) -> Outcome {
        self.per_volume(targets, |volume| {
            volume
                .disk()
                .map_or_else(|| "none".to_owned(), |path| path.display().to_string())
        })
    }

    pub(super) fn sh_md_dev(&self, targets: &[String]) -> Outcome {
        self.per_volume(targets, |volume| match &volume.volume.meta_disk {
            MetaDisk::Internal => volume
                .disk()
                .map_or_else(|| "none".to_owned(), |path| path.display().to_string()),
            MetaDisk::External { path } | MetaDisk::Indexed { path, .. } => {
                path.display().to_string()
            }
        })
    }

    pub(super) fn sh_md_idx(&self, targets: &[String]) -> Outcome {
        self.per_volume(targets, |volume| match &volume.volume.meta_disk {
            MetaDisk::Internal => "internal".to_owned(),
            MetaDisk::External { .. } => "flexible".to_owned(),
            MetaDisk::Indexed { index, .. } => index.to_string(),
        })
    }

    fn per_resource(
        &self,
        targets: &[String],
        line: impl Fn(&Resource) -> Option<String>,
    ) -> Outcome {
        let configuration = self.configuration();
        for selected in configuration.select(targets)? {
            say!("{}", line(selected.resource).unwrap_or_default());
        }
        Ok(())
    }

    fn per_volume(
        &self,
        targets: &[String],
        line: impl Fn(SelectedVolume<'_>) -> String,
    ) -> Outcome {
        let configuration = self.configuration();
        for volume in configuration.select_volumes(targets)? {
            say!("{}", line(volume));
        }
        Ok(())
    }
}
