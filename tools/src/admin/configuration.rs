//! The configuration as commands see it: which resources and volumes of this node a target names.
//!
//! A resource with an error is refused with that error (exit 10); one that is not for this host or not there at all is
//! `'x' not defined in your config (for this host).` (exit 1). An error in one resource leaves the others alone.

use std::cell::Cell;
use std::path::Path;

use qrbd_config::{DiskSource, Loaded, Resource, Volume};
use qrbd_control::Target;

use super::arguments::{minor_of, parse_target};
use super::{EXIT_CONFIGURATION, EXIT_USAGE, Failure};

/// A loaded configuration.
#[derive(Debug)]
pub struct Configuration {
    /// What was read.
    pub loaded: Loaded,
    left_out: Cell<bool>,
}

/// A resource of this node and what of it a target names.
#[derive(Clone, Debug)]
pub struct Selected<'a> {
    /// The resource.
    pub resource: &'a Resource,
    /// Volume and peer, if named.
    pub target: Target,
}

impl<'a> Selected<'a> {
    /// The volumes named.
    pub fn volumes(&self) -> impl Iterator<Item = SelectedVolume<'a>> + use<'a> {
        let (resource, wanted) = (self.resource, self.target.volume);
        resource
            .volumes()
            .iter()
            .filter(move |volume| wanted.is_none_or(|number| number == volume.number))
            .map(move |volume| SelectedVolume { resource, volume })
    }
}

/// A volume of this node.
#[derive(Clone, Copy, Debug)]
pub struct SelectedVolume<'a> {
    /// Its resource.
    pub resource: &'a Resource,
    /// The volume.
    pub volume: &'a Volume,
}

impl SelectedVolume<'_> {
    /// `r0/0`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.resource.name, self.volume.number)
    }

    /// Path of the backing device, `None` if there is none on purpose.
    pub fn disk(&self) -> Option<&Path> {
        match &self.volume.disk {
            DiskSource::Path(path) => Some(path),
            DiskSource::None => None,
        }
    }

    /// Number of peers of the resource.
    pub fn peer_count(&self) -> usize {
        self.resource.peers().count()
    }
}

impl Configuration {
    /// Reads the configuration.
    pub fn load(path: &Path, node: &str) -> Configuration {
        Configuration {
            loaded: qrbd_config::load(path, node),
            left_out: Cell::new(false),
        }
    }

    /// `all` was asked for and did not mean all: the errors were told.
    pub fn left_resources_out(&self) -> bool {
        self.left_out.get()
    }

    /// All errors as text, in the order they were found.
    pub fn errors(&self) -> String {
        self.loaded
            .errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The resources that `targets` name; `all` and nothing name all of this node.
    ///
    /// # Errors
    /// A target is none, or is not in the configuration, or cannot be used because of an error in it.
    pub fn select(&self, targets: &[String]) -> Result<Vec<Selected<'_>>, Failure> {
        let mut selected = Vec::new();
        if targets.is_empty() {
            self.all(&mut selected)?;
        }
        for text in targets {
            let target = match minor_of(text) {
                Some(minor) => self.with_minor(minor, text)?,
                None => parse_target(text)
                    .map_err(|error| Failure::new(EXIT_USAGE, error.to_string()))?,
            };
            match &target.resource {
                None => self.all(&mut selected)?,
                Some(name) => {
                    let resource = self.resource(name)?;
                    check_parts(resource, &target)?;
                    selected.push(Selected { resource, target });
                }
            }
        }
        Ok(selected)
    }

    /// The volumes that `targets` name.
    ///
    /// # Errors
    /// As [`Configuration::select`].
    pub fn select_volumes(&self, targets: &[String]) -> Result<Vec<SelectedVolume<'_>>, Failure> {
        Ok(self
            .select(targets)?
            .iter()
            .flat_map(Selected::volumes)
            .collect())
    }

    fn all<'a>(&'a self, selected: &mut Vec<Selected<'a>>) -> Result<(), Failure> {
        if !self.loaded.errors.is_empty() {
            // The resources that can be used are used; the exit code tells that some were left out.
            let nothing_left = self.loaded.local_resources().next().is_none();
            if nothing_left {
                return Err(Failure::new(EXIT_CONFIGURATION, self.errors()));
            }
            complain!("{}", self.errors());
            self.left_out.set(true);
        }
        let resources = self.loaded.local_resources();
        selected.extend(resources.map(|resource| Selected {
            resource,
            target: Target::resource(&resource.name),
        }));
        Ok(())
    }

    fn resource(&self, name: &str) -> Result<&Resource, Failure> {
        match self.loaded.resource(name) {
            Some(resource) if resource.local.is_some() => Ok(resource),
            found => {
                let mut errors: Vec<String> = self
                    .loaded
                    .errors_of(name)
                    .map(ToString::to_string)
                    .collect();
                if errors.is_empty() && self.loaded.broken.iter().any(|broken| broken.name == name)
                {
                    errors = vec![self.errors()];
                }
                if found.is_none() && errors.is_empty() {
                    // It may be in a file that could not be read.
                    let general = self
                        .loaded
                        .errors
                        .iter()
                        .filter(|error| error.resource.is_none());
                    errors = general.map(ToString::to_string).collect();
                }
                Err(if errors.is_empty() {
                    Failure::new(
                        EXIT_USAGE,
                        format!("'{name}' not defined in your config (for this host)."),
                    )
                } else {
                    Failure::new(EXIT_CONFIGURATION, errors.join("\n"))
                })
            }
        }
    }

    fn with_minor(&self, minor: u32, text: &str) -> Result<Target, Failure> {
        for resource in self.loaded.local_resources() {
            for volume in resource.volumes() {
                if volume
                    .device
                    .as_ref()
                    .is_some_and(|device| device.minor == minor)
                {
                    return Ok(Target {
                        resource: Some(resource.name.clone()),
                        volume: Some(volume.number),
                        peer: None,
                    });
                }
            }
        }
        Err(Failure::new(
            EXIT_USAGE,
            format!("'{text}' not defined in your config (for this host)."),
        ))
    }
}

fn check_parts(resource: &Resource, target: &Target) -> Result<(), Failure> {
    if let Some(number) = target.volume
        && !resource
            .volumes()
            .iter()
            .any(|volume| volume.number == number)
    {
        return Err(Failure::new(
            EXIT_USAGE,
            format!("'{target}' not defined in your config (for this host)."),
        ));
    }
    if let Some(name) = &target.peer
        && !resource.peers().any(|peer| peer.node.is_called(name))
    {
        let peers: Vec<&str> = resource
            .peers()
            .map(|peer| peer.node.name.as_str())
            .collect();
        let message = format!(
            "'{name}' is no peer of {} (peers are: {}).",
            resource.name,
            peers.join(", ")
        );
        return Err(Failure::new(EXIT_USAGE, message));
    }
    Ok(())
}
