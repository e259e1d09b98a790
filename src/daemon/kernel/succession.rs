//! From one daemon to the next: which waiting devices may go on, and how they are handed over.
//!
//! Owns the question whether the users of a device have seen the data as they are. Invariant: what cannot be proved counts as no, is
//! written down, and stays no for every later daemon.

use std::collections::BTreeSet;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qrbd_control::{Refusal, StateChangeError, refusal};
use qrbd_engine::api::Notice;
use qrbd_engine::state::{ConnectionState, ReplicationState, Role};
use qrbd_engine::status::PeerStatus;
use qrbd_engine::units::VolumeNumber;
use qrbd_kernel_device::holders::Holder;
use qrbd_kernel_device::sysfs;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tracing::{info, warn};

use super::blocking::{self, Found};
use super::device::{Device, Ended, pairs};
use super::remembered::{HandedOver, Key, RememberedDevice};
use super::{Handed, KernelDevices, SOCKETS, Unchanged, listed};
use crate::front::Departure;
use crate::resource::Shared;
use crate::service_manager;

/// How long a comparison with a peer may take after a promotion.
const COMPARISON_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const COMPARISON_STEP: Duration = Duration::from_millis(10);

impl KernelDevices {
    /// Looks at the devices of a resource that is about to become Primary: a device from an earlier daemon may go on if its users have seen
    /// the data as they are, otherwise it is disconnected.
    ///
    /// # Errors
    /// A device is somebody else's, or its users have seen other data.
    pub(crate) async fn before_promotion(&self, shared: &Shared) -> Result<Unchanged, Refusal> {
        let mut unchanged = Unchanged::new();
        for (volume, index) in Self::volumes_of(&shared.plan()) {
            let key = (shared.name.to_string(), volume.0);
            if self.attached(&key).is_some() {
                continue;
            }
            match self.look(shared, volume, index).0 {
                Found::Free => {}
                Found::Foreign(text) => {
                    let text = format!("{}/{volume}: {text}", shared.name);
                    return Err(Refusal::other(text, refusal::EXIT_FAILURE));
                }
                Found::Ours if self.has_seen_all(shared, volume) => {
                    unchanged.insert(volume);
                }
                Found::Ours => {
                    self.distrust(&key);
                    self.give_up_waiting(shared, volume, index).await?;
                }
            }
        }
        Ok(unchanged)
    }

    /// The users of a waiting device may have seen other data than there are now: no later daemon may serve it either.
    pub(super) fn distrust(&self, key: &Key) {
        if let Some(device) = self.remembered.device(key) {
            let distrusted = RememberedDevice {
                generation: 0,
                handed: None,
                ..device
            };
            self.remembered.set_device(key, distrusted);
        }
    }

    /// As [`KernelDevices::distrust`], for all devices of a resource.
    pub(super) fn distrust_all(&self, resource: &str) {
        for (volume, _) in self.remembered.devices(resource) {
            self.distrust(&(resource.to_owned(), volume));
        }
    }

    /// Nothing of an earlier daemon is taken over: devices that it left in use wait until they are given up.
    pub(crate) fn take_over_nothing(&self) {
        for resource in self.remembered.resources() {
            self.distrust_all(&resource);
            self.remembered.set_up(&resource, false);
        }
        self.drop_unknown_sockets();
    }

    /// Of the volumes that were found unchanged before the promotion, those that still are: a peer that connected meanwhile may have brought
    /// other data. `notices` begin before that look.
    pub(crate) async fn after_promotion(
        &self,
        shared: &Shared,
        mut unchanged: Unchanged,
        notices: &mut broadcast::Receiver<Notice>,
    ) -> Unchanged {
        let deadline = Instant::now() + COMPARISON_PATIENCE;
        while !unchanged.is_empty() && shared.compares() && Instant::now() < deadline {
            tokio::time::sleep(COMPARISON_STEP).await;
        }
        if shared.compares() {
            unchanged.clear();
        }
        loop {
            match notices.try_recv() {
                Ok(Notice::Replication { volume, to, .. }) if takes_data(to) => {
                    // It may have become the target of a peer with the same generation.
                    if !self.has_seen_all(shared, volume) {
                        unchanged.remove(&volume);
                    }
                }
                Ok(_) => {}
                Err(broadcast::error::TryRecvError::Lagged(_)) => unchanged.clear(),
                Err(_) => break,
            }
        }
        // Without a peer the promotion itself made a new generation.
        unchanged.retain(|&volume| shared.data_is_as_left(volume));
        unchanged
    }

    /// True if whoever uses the volume's device has seen the data that are on this node's disk now.
    fn has_seen_all(&self, shared: &Shared, volume: VolumeNumber) -> bool {
        let key = (shared.name.to_string(), volume.0);
        let generation = shared.current_generation(volume);
        let seen = self.remembered.device(&key).map(|device| device.generation);
        generation != 0 && seen == Some(generation) && shared.data_is_as_left(volume)
    }

    /// Disconnects a device from an earlier daemon whose users have seen other data.
    pub(super) async fn give_up_waiting(
        &self,
        shared: &Shared,
        volume: VolumeNumber,
        index: u32,
    ) -> Result<(), Refusal> {
        let names = self.names(shared, volume, index);
        let places = self.places.clone();
        let done = self
            .helper(move || {
                blocking::claim(&places, index, false)
                    .map(|claim| blocking::disconnect(&places, index, &names, claim))
            })
            .await;
        let key = (shared.name.to_string(), volume.0);
        match done {
            Ok(Ok(Ok(()))) => {
                self.remembered.forget_device(&key);
                self.close_inherited(index);
                Ok(())
            }
            Ok(Err(holders)) => Err(self.has_old_users(shared, volume, index, &holders)),
            Ok(Ok(Err(text))) | Err(text) => Err(Refusal::other(
                format!("{}/{volume}: {text}", shared.name),
                refusal::EXIT_FAILURE,
            )),
        }
    }

    fn has_old_users(
        &self,
        shared: &Shared,
        volume: VolumeNumber,
        index: u32,
        holders: &[Holder],
    ) -> Refusal {
        let device = self.places.device(index);
        let detail = format!(
            "{}/{volume}: {} was attached before qrbdd was started, and it cannot be ruled out that another node has written since: whoever \
             has it open must let go of it first.\n{}\n'qrbdadm secondary --force {}' disconnects it; its users get errors then.",
            shared.name,
            device.display(),
            listed(holders),
            shared.name
        );
        Refusal::from(StateChangeError::DeviceInUse).with_detail(detail)
    }

    /// The users of the devices that were kept have seen the data as they are: this node is Primary still, or left its peers without having
    /// agreed to another one.
    pub(crate) fn vouch(&self, shared: &Shared) {
        let status = shared.status();
        let alone = |peer: &PeerStatus| peer.connection == ConnectionState::StandAlone;
        let nobody_else = !shared.agreed_to_a_successor() && status.peers.iter().all(alone);
        if status.role != Role::Primary && !nobody_else {
            return;
        }
        for (volume, device) in self.remembered.devices(&shared.name) {
            let generation = shared.current_generation(VolumeNumber(volume));
            // A disk that was detached after it was vouched for.
            if generation != 0 {
                let key = (shared.name.to_string(), volume);
                let vouched = RememberedDevice {
                    generation,
                    ..device
                };
                self.remembered.set_device(&key, vouched);
            }
        }
    }

    /// The resource stops although its devices are in use: they wait for the next daemon. With `goes_on`, that is this process. When this
    /// returns, no session is left that could answer with an error.
    pub(crate) async fn keep(&self, shared: &Shared, goes_on: bool) {
        let resource = &*shared.name;
        let peers: Vec<u8> = shared
            .status()
            .peers
            .iter()
            .filter(|peer| peer.connection == ConnectionState::Connected)
            .map(|peer| peer.node_id.0)
            .collect();
        let departure = match goes_on || service_manager::is_there() {
            true => Departure::HandOver,
            false => Departure::Close,
        };
        for device in self.devices_of(resource) {
            // From here on nothing more is taken from the kernel.
            let stopped = SystemTime::now();
            let ended = device.end(departure).await;
            device.cut();
            self.devices.borrow_mut().remove(&device.key);
            let path = self.places.device(device.wanted.index);
            // Until it is vouched for.
            self.distrust(&device.key);
            let Some(remembered) = self.remembered.device(&device.key) else {
                continue;
            };
            if let Ended::Cut = ended {
                warn!(
                    "{}: {}: requests under way are sent again to the next qrbdd",
                    device.export,
                    path.display()
                );
                continue;
            }
            info!(
                "{}: {} waits for the next qrbdd; what was under way is answered, after {:.3} s",
                device.export,
                path.display(),
                stopped.elapsed().unwrap_or_default().as_secs_f64()
            );
            let Ended::Kept(sockets) = ended else {
                continue;
            };
            let name = handed_name(device.wanted.index, stopped);
            let handed = Some(HandedOver {
                name: name.clone(),
                count: sockets.len(),
                peers: peers.clone(),
            });
            self.remembered.set_device(
                &device.key,
                RememberedDevice {
                    handed,
                    ..remembered
                },
            );
            self.handed.borrow_mut().push(Handed { name, sockets });
        }
    }

    /// Goes on with a device of an earlier daemon: with its sockets, if they were handed over, or with new ones in their places.
    pub(super) async fn take_over(
        self: &Rc<Self>,
        device: &Rc<Device>,
    ) -> Result<Vec<String>, String> {
        let remembered = self.remembered.device(&device.key);
        let handed = remembered.clone().and_then(|device| device.handed);
        // Whatever happens next, nobody may go on with them a second time.
        if let Some(remembered) = remembered {
            let spent = RememberedDevice {
                handed: None,
                ..remembered
            };
            self.remembered.set_device(&device.key, spent);
        }
        let stood_still = handed.as_ref().and_then(|handed| since(&handed.name));
        let sockets = handed.map_or_else(Vec::new, |handed| {
            self.inherited_under(&handed.name, handed.count)
        });
        let (places, wanted) = (self.places.clone(), device.wanted.clone());
        let path = places.device(wanted.index);
        if sockets.is_empty() {
            info!(
                "{}: {} gets new sockets: what was not answered is sent again",
                device.export,
                path.display()
            );
            let (ours, theirs) = pairs(SOCKETS).map_err(|error| error.to_string())?;
            device.serve(self, ours);
            let (index, backend) = (wanted.index, wanted.backend.clone());
            self.helper(move || blocking::replace(index, &backend, theirs))
                .await?
                .map_err(|error| error.to_string())?;
        } else {
            device.serve(self, sockets);
            info!(
                "{}: {} goes on with the sockets that were kept for it, {}",
                device.export,
                path.display(),
                match stood_still {
                    Some(time) => format!("after {:.3} s", time.as_secs_f64()),
                    None => "after a while".to_owned(),
                }
            );
        }
        self.helper(move || {
            let mut told = blocking::set_up(&places, &wanted);
            let size = sysfs::Device::new(&places, wanted.index).size_bytes();
            if size < wanted.size
                && let Err(text) = blocking::resize(wanted.index, &wanted.backend, wanted.size)
            {
                told.push(text);
            }
            told
        })
        .await
    }

    /// All sockets that were handed over under a name, or none.
    fn inherited_under(&self, name: &str, count: usize) -> Vec<UnixStream> {
        let mut inherited = self.inherited.borrow_mut();
        let (found, others): (Vec<_>, Vec<_>) = std::mem::take(&mut *inherited)
            .into_iter()
            .partition(|(found, _)| found == name);
        *inherited = others;
        let sockets: Vec<UnixStream> = found.into_iter().map(|(_, socket)| socket).collect();
        if sockets.len() == count {
            return sockets;
        }
        for socket in sockets {
            // Closed already, most likely.
            let _ = socket.shutdown(Shutdown::Both);
        }
        Vec::new()
    }

    /// Closes the sockets that were handed over for a device that is not taken over.
    pub(super) fn close_inherited(&self, index: u32) {
        let prefix = format!("nbd{index}.");
        self.inherited
            .borrow_mut()
            .retain(|(name, _)| !name.starts_with(&prefix));
    }

    /// Sockets whose position in the stream nobody vouches for are closed, also for others who hold them: the kernel then waits for new
    /// ones and sends again what was under way.
    pub(super) fn drop_unknown_sockets(&self) {
        let mut names = BTreeSet::new();
        for resource in self.remembered.resources() {
            for (_, device) in self.remembered.devices(&resource) {
                names.extend(device.handed.map(|handed| handed.name));
            }
        }
        self.inherited.borrow_mut().retain(|(name, socket)| {
            let known = names.contains(name);
            if !known {
                // Closed by the kernel already, most likely.
                let _ = socket.shutdown(Shutdown::Both);
            }
            known
        });
    }
}

/// The name of a device's sockets: one of its own for each time, which also tells since when nothing is taken from them.
fn handed_name(index: u32, stopped: SystemTime) -> String {
    let since_epoch = stopped.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("nbd{index}.{:x}", since_epoch.as_nanos())
}

/// How long a device has stood still whose sockets have this name. `None` if the clock was set meanwhile.
fn since(name: &str) -> Option<Duration> {
    let (_, moment) = name.split_once('.')?;
    let nanoseconds = u64::from_str_radix(moment, 16).ok()?;
    let stopped = UNIX_EPOCH + Duration::from_nanos(nanoseconds);
    stopped.elapsed().ok()
}

/// True for the states in which a peer's data replace this node's.
fn takes_data(state: ReplicationState) -> bool {
    matches!(
        state,
        ReplicationState::StartingSyncT
            | ReplicationState::WFBitMapT
            | ReplicationState::WFSyncUUID
            | ReplicationState::SyncTarget
            | ReplicationState::PausedSyncT
            | ReplicationState::Behind
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_sockets_tells_how_long_nobody_has_read_from_them() {
        let stopped = SystemTime::now() - Duration::from_millis(1500);
        let name = handed_name(3, stopped);
        assert!(name.starts_with("nbd3."), "{name}");
        assert!(since(&name).unwrap() >= Duration::from_millis(1500));
        // A clock that was set back, and names of somebody else.
        let ahead = handed_name(3, SystemTime::now() + Duration::from_secs(3600));
        assert_eq!(since(&ahead), None);
        assert_eq!(since("nbd3"), None);
        assert_eq!(since("nbd3.x"), None);
    }
}
