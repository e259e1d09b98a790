//! Owns the checks between resources: names, devices, disks and addresses that two of them use, and `resync-after`.
//!
//! Of two resources in conflict the one that was read first stays; the error stands at the second and names both places.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::{ConfigError, ErrorKind};
use crate::model::Resource;
use crate::resolve::{Claim, Claimed};
use crate::source::Location;

/// Who uses a thing, and where it says so.
struct User {
    resource: String,
    at: Location,
}

/// A slot of a metadata device, or the whole device, and its user.
type Slot = (Option<u32>, User);

/// Everything that the resources so far use.
#[derive(Default)]
pub(crate) struct Ledger {
    minors: HashMap<(String, u32), User>,
    /// Per node and path: the slots in use; `None` is the whole.
    disks: HashMap<(String, PathBuf), Vec<Slot>>,
    addresses: HashMap<SocketAddr, User>,
    /// `resync-after` edges between volumes of loaded resources.
    after: HashMap<(String, u16), (String, u16)>,
}

impl Ledger {
    /// Enters what `resource` uses. The first conflict is the error, and then nothing stays entered that matters:
    /// a resource in conflict is not loaded, but what it claimed stays claimed, as its owner will correct the file.
    pub(crate) fn enter(
        &mut self,
        resource: &Resource,
        claims: Vec<Claim>,
    ) -> Result<(), ConfigError> {
        for Claim { what, at } in claims {
            let user = User {
                resource: resource.name.clone(),
                at,
            };
            match what {
                Claimed::Minor(node, minor) => {
                    let text = format!("device minor {minor} on node `{node}`");
                    if let Some(error) = claim(self.minors.entry((node, minor)), user, &text) {
                        return Err(error);
                    }
                }
                Claimed::Disk(node, path, slot) => {
                    let text = match slot {
                        Some(slot) => format!("{}[{slot}] on node `{node}`", path.display()),
                        None => format!("{} on node `{node}`", path.display()),
                    };
                    let users = self.disks.entry((node, path)).or_default();
                    let meets =
                        |known: &Option<u32>| known.is_none() || slot.is_none() || *known == slot;
                    if let Some((_, earlier)) = users.iter().find(|(known, _)| meets(known)) {
                        return Err(conflict(&user, earlier, &text));
                    }
                    users.push((slot, user));
                }
                Claimed::Address(address, _) => match self.addresses.entry(address) {
                    Entry::Occupied(earlier) if earlier.get().resource == user.resource => {}
                    entry => {
                        if let Some(error) = claim(entry, user, &format!("address {address}")) {
                            return Err(error);
                        }
                    }
                },
            }
        }
        Ok(())
    }

    /// Enters the `resync-after` of a resource that is otherwise fine; a cycle is an error.
    pub(crate) fn enter_resync_after(&mut self, resource: &Resource) -> Result<(), ConfigError> {
        for volume in resource.volumes() {
            let Some(target) = &volume.options.resync_after else {
                continue;
            };
            let from = (resource.name.clone(), volume.number);
            let mut next = Some(target);
            while let Some(step) = next {
                if *step == from {
                    return Err(resync_after_error(
                        resource,
                        volume.number,
                        "`resync-after` goes round in a circle",
                    ));
                }
                next = self.after.get(step);
            }
            self.after.insert(from, target.clone());
        }
        Ok(())
    }
}

/// An error at the `resync-after` that counts for a volume.
pub(crate) fn resync_after_error(resource: &Resource, number: u16, message: &str) -> ConfigError {
    let own = resource
        .volumes()
        .iter()
        .find(|volume| volume.number == number)
        .map(|volume| &volume.settings);
    let outer = resource
        .settings
        .iter()
        .find(|(section, _)| *section == "disk")
        .map(|(_, settings)| settings);
    match own
        .and_then(|settings| settings.get("resync-after"))
        .or_else(|| outer?.get("resync-after"))
    {
        Some(setting) => ConfigError::at(ErrorKind::Conflict, &setting.at, message),
        None => ConfigError::nowhere(ErrorKind::Conflict, message),
    }
}

fn claim<K>(entry: Entry<'_, K, User>, user: User, text: &str) -> Option<ConfigError> {
    match entry {
        Entry::Occupied(earlier) => Some(conflict(&user, earlier.get(), text)),
        Entry::Vacant(free) => {
            free.insert(user);
            None
        }
    }
}

fn conflict(user: &User, earlier: &User, text: &str) -> ConfigError {
    let message = if user.resource == earlier.resource {
        format!("{text} is used twice in this resource")
    } else {
        format!("{text} is already used by resource `{}`", earlier.resource)
    };
    ConfigError::at(ErrorKind::Conflict, &user.at, message)
        .note(format!("first used at {}", earlier.at.position()))
}
