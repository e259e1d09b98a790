//! What the daemon remembers of itself in the run directory, for the daemon that comes after it: which resources are up, and which kernel
//! devices they have.
//!
//! The run directory is empty after a reboot, as the kernel's devices are. Invariant: the file is replaced as a whole, so a daemon that is
//! killed leaves the old or the new one. A file that cannot be read is reported and counts as empty.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

/// Name of the file in the run directory.
const FILE_NAME: &str = "remembered";
/// First line of the file.
const HEAD: &str = "qrbdd 1";

/// A volume: resource and number.
pub(super) type Key = (String, u16);

/// A kernel device that was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RememberedDevice {
    /// N of `/dev/nbdN`.
    pub(super) index: u32,
    /// The identifier that the kernel has of it.
    pub(super) backend: String,
    /// The generation of the data that whoever uses the device has seen; 0: it is not known any more.
    pub(super) generation: u64,
    /// Set if its sockets were handed over between two requests.
    pub(super) handed: Option<HandedOver>,
}

/// What was handed over in a planned restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HandedOver {
    /// The name of the sockets.
    pub(super) name: String,
    /// How many they are.
    pub(super) count: usize,
    /// The peers (node ids) that were connected: what the others have done since is no less known than it was before.
    pub(super) peers: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    up: BTreeSet<String>,
    devices: BTreeMap<Key, RememberedDevice>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Remembered {
    path: PathBuf,
    state: RefCell<State>,
}

impl Remembered {
    /// What an earlier daemon left in this run directory.
    pub(super) fn read(run_dir: &Path) -> Remembered {
        let path = run_dir.join(FILE_NAME);
        let state = match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text).unwrap_or_else(|line| {
                warn!(
                    "{}: line {line} makes no sense: nothing of an earlier daemon is taken over",
                    path.display()
                );
                State::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => {
                warn!("{}: {error}", path.display());
                State::default()
            }
        };
        Remembered {
            path,
            state: RefCell::new(state),
        }
    }

    /// The resources that are up.
    pub(super) fn resources(&self) -> Vec<String> {
        self.state.borrow().up.iter().cloned().collect()
    }

    /// The device of a volume.
    pub(super) fn device(&self, key: &Key) -> Option<RememberedDevice> {
        self.state.borrow().devices.get(key).cloned()
    }

    /// The devices of a resource.
    pub(super) fn devices(&self, resource: &str) -> Vec<(u16, RememberedDevice)> {
        let state = self.state.borrow();
        let of_resource = state
            .devices
            .iter()
            .filter(|((name, _), _)| name == resource);
        of_resource
            .map(|((_, volume), device)| (*volume, device.clone()))
            .collect()
    }

    /// A resource is up, or not any more.
    pub(super) fn set_up(&self, resource: &str, up: bool) {
        self.change(|state| {
            if up {
                state.up.insert(resource.to_owned());
            } else {
                state.up.remove(resource);
            }
        });
    }

    /// A device is attached like this.
    pub(super) fn set_device(&self, key: &Key, device: RememberedDevice) {
        self.change(|state| {
            state.devices.insert(key.clone(), device);
        });
    }

    /// A device is detached.
    pub(super) fn forget_device(&self, key: &Key) {
        self.change(|state| {
            state.devices.remove(key);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.borrow_mut();
        let before = state.clone();
        change(&mut state);
        if *state == before {
            return;
        }
        let hidden = self.path.with_extension("new");
        let written = std::fs::write(&hidden, text(&state))
            .and_then(|()| std::fs::rename(&hidden, &self.path));
        if let Err(error) = written {
            warn!(
                "{}: {error}: a daemon that is started after this one does not know what is up",
                self.path.display()
            );
        }
    }
}

fn text(state: &State) -> String {
    let mut text = format!("{HEAD}\n");
    for name in &state.up {
        let _ = writeln!(text, "up {name}");
    }
    for ((resource, volume), device) in &state.devices {
        let RememberedDevice {
            index,
            backend,
            generation,
            handed,
        } = device;
        let _ = write!(
            text,
            "device {resource} {volume} {index} {backend} {generation:016x}"
        );
        if let Some(HandedOver { name, count, peers }) = handed {
            let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
            let _ = write!(text, " {name} {count} {}", peers.join(","));
        }
        text.push('\n');
    }
    text
}

/// The state, or the number of the first line that makes no sense. Names have no spaces: neither the configuration nor a backend's
/// identifier allows them.
fn parse(text: &str) -> Result<State, usize> {
    let mut lines = text.lines().enumerate();
    match lines.next() {
        Some((_, HEAD)) => {}
        _ => return Err(1),
    }
    let mut state = State::default();
    for (number, line) in lines {
        let wrong = number + 1;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["up", name] => {
                state.up.insert(name.to_owned());
            }
            [
                "device",
                resource,
                volume,
                index,
                backend,
                generation,
                ref handed @ ..,
            ] => {
                let handed = match handed {
                    [] => None,
                    [name, count, peers] => Some(HandedOver {
                        name: (*name).to_owned(),
                        count: count.parse().map_err(|_| wrong)?,
                        peers: parse_peers(peers).ok_or(wrong)?,
                    }),
                    _ => return Err(wrong),
                };
                let key = (resource.to_owned(), volume.parse().map_err(|_| wrong)?);
                let device = RememberedDevice {
                    index: index.parse().map_err(|_| wrong)?,
                    backend: backend.to_owned(),
                    generation: u64::from_str_radix(generation, 16).map_err(|_| wrong)?,
                    handed,
                };
                state.devices.insert(key, device);
            }
            _ => return Err(wrong),
        }
    }
    Ok(state)
}

/// `0,3`, or nothing.
fn parse_peers(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(|peer| peer.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed(peers: &[u8]) -> Option<HandedOver> {
        Some(HandedOver {
            name: "nbd3.17".to_owned(),
            count: 4,
            peers: peers.to_vec(),
        })
    }

    fn device(handed: Option<HandedOver>) -> RememberedDevice {
        RememberedDevice {
            index: 3,
            backend: "qrbd:alice:r0/0:00000000000000ff".to_owned(),
            generation: 0xFEED_0000_0000_0001,
            handed,
        }
    }

    #[test]
    fn the_next_daemon_reads_what_this_one_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let first = Remembered::read(directory.path());
        assert_eq!(first.resources(), Vec::<String>::new());
        first.set_up("r0", true);
        first.set_up("r1", true);
        first.set_up("r1", false);
        let key = ("r0".to_owned(), 0);
        first.set_device(&key, device(handed(&[1, 2])));
        first.set_device(&("r0".to_owned(), 1), device(handed(&[])));
        first.set_device(&("r0".to_owned(), 2), device(None));

        let second = Remembered::read(directory.path());
        assert_eq!(second.resources(), ["r0"]);
        let devices = second.devices("r0");
        let expected = [handed(&[1, 2]), handed(&[]), None].map(device);
        assert!(
            devices.iter().map(|(_, device)| device).eq(&expected),
            "{devices:?}"
        );
        second.forget_device(&key);
        assert_eq!(Remembered::read(directory.path()).device(&key), None);
    }

    #[test]
    fn a_file_that_makes_no_sense_counts_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        for text in [
            "",
            "qrbdd 2\nup r0\n",
            "qrbdd 1\nup\n",
            "qrbdd 1\nup r0\ndevice r0 0 nbd0 b 0\n",
            "qrbdd 1\ndevice r0 0 1 b zz\n",
            "qrbdd 1\ndevice r0 0 1 b 00 name\n",
        ] {
            std::fs::write(directory.path().join(FILE_NAME), text).unwrap();
            let remembered = Remembered::read(directory.path());
            assert_eq!(remembered.resources(), Vec::<String>::new(), "{text:?}");
        }
    }
}
