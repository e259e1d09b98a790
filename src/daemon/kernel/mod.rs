//! The kernel's NBD devices: attached while a resource is Primary, taken over from an earlier daemon, given up on demotion.
//!
//! [`KernelDevices`] owns which devices are attached, `device` the sessions of one, `blocking` what is asked of the kernel, `remembered` what
//! outlives the daemon, `succession` which waiting devices may go on, `resume` the way back to Primary after a restart.
//!
//! Invariants:
//! - The thread that serves requests never waits for the kernel: connecting makes the kernel read from us.
//! - A device that outlived its daemon is served again only if its users have seen the data as they are: the generation is the remembered
//!   one and no other node can have written since. Otherwise it waits, or is disconnected if nobody uses it.
//! - Before a resource stops with a device in use, its sessions are ended between two requests where somebody takes the sockets over, with
//!   everything answered where nobody does, or cut if that takes too long: the kernel never gets an error because the daemon goes.
//!
//! Deliberately absent: listening to the driver's multicast group. It names a device, not a socket; each session sees its own end.

mod blocking;
mod device;
mod remembered;
pub(crate) mod resume;
mod succession;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use qrbd_control::{Refusal, StateChangeError, StatusReport};
use qrbd_engine::state::Role;
use qrbd_engine::units::VolumeNumber;
use qrbd_kernel_device::Places;
use qrbd_kernel_device::holders::{self, Holder};
use qrbd_kernel_device::inherit::Inherited;
use qrbd_kernel_device::links::Names;
use tracing::{error, info, warn};

use self::blocking::{Found, Wanted};
use self::device::{Device, described, pairs};
use self::remembered::{Key, Remembered, RememberedDevice};
use crate::front::DirectFront;
use crate::plan::{ResourcePlan, VolumePlan};
use crate::resource::Shared;
use crate::volumes::Volumes;

/// Sockets of a device. Only with a single one does the kernel leave a slow server alone: with several, each request that outlasts the
/// timer of its queue is taken for the death of its socket, `TIMEOUT` 0 or not, and sent again on another one.
const SOCKETS: usize = 1;
/// How often it is looked whether the generation or the size changed, besides when something happens.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Sockets between two requests, and the name that they are passed under.
pub(crate) struct Handed {
    /// The name.
    pub(crate) name: String,
    /// The sockets.
    pub(crate) sockets: Vec<UnixStream>,
}

/// Volumes whose data are as the users of their waiting devices have seen them.
pub(crate) type Unchanged = BTreeSet<VolumeNumber>;

/// See the module's text. One thread's.
pub(crate) struct KernelDevices {
    places: Places,
    /// Part of the identifiers of the devices.
    node: String,
    nbd_socket: PathBuf,
    dead_connection_timeout: Duration,
    volumes: Volumes,
    front: DirectFront,
    remembered: Remembered,
    devices: RefCell<BTreeMap<Key, Rc<Device>>>,
    /// Sockets that an earlier daemon handed over and that are not served yet.
    inherited: RefCell<Vec<(String, UnixStream)>>,
    /// Sockets for the next daemon.
    handed: RefCell<Vec<Handed>>,
    /// The daemon ends: nothing is attached any more.
    ending: Cell<bool>,
}

impl KernelDevices {
    /// With what an earlier daemon left.
    pub(crate) fn new(
        run_dir: &Path,
        nbd_socket: PathBuf,
        node: &str,
        volumes: Volumes,
        dead_connection_timeout: Duration,
        inherited: Vec<Inherited>,
    ) -> Rc<KernelDevices> {
        let remembered = Remembered::read(run_dir);
        let inherited = inherited
            .into_iter()
            .map(|Inherited { name, descriptor }| (name, UnixStream::from(descriptor)))
            .collect();
        let kernel = KernelDevices {
            places: Places::default(),
            node: node.to_owned(),
            nbd_socket,
            dead_connection_timeout,
            volumes,
            front: DirectFront::new(),
            remembered,
            devices: RefCell::default(),
            inherited: RefCell::new(inherited),
            handed: RefCell::default(),
            ending: Cell::new(false),
        };
        kernel.drop_unknown_sockets();
        Rc::new(kernel)
    }

    /// Names of the sockets that were passed to this process.
    pub(crate) fn inherited_names(&self) -> BTreeSet<String> {
        let inherited = self.inherited.borrow();
        inherited.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The resources that were up when an earlier daemon of this run directory ended.
    pub(crate) fn remembered_resources(&self) -> Vec<String> {
        self.remembered.resources()
    }

    /// A resource was brought up or taken down by the administrator.
    pub(crate) fn remember_up(&self, resource: &str, up: bool) {
        self.remembered.set_up(resource, up);
    }

    /// Runs something that waits.
    async fn helper<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| format!("a helper thread failed: {error}"))
    }

    /// What the administrator should know when resources come up whose volumes are to have kernel devices: that they cannot have them.
    pub(crate) async fn warnings<'a>(
        &self,
        plans: impl IntoIterator<Item = &'a ResourcePlan>,
    ) -> Vec<String> {
        let wanted: Vec<String> = plans
            .into_iter()
            .flat_map(|plan| plan.volumes.iter().map(move |volume| (plan, volume)))
            .filter_map(|(plan, volume)| Some(self.title(plan, volume, volume.minor?)))
            .collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        match self.helper(|| blocking::driver().map(drop)).await {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(text)) | Err(text) => {
                let one = wanted.len() == 1;
                let line = format!(
                    "{} cannot be attached: {text}; {} over the NBD socket {} alone",
                    wanted.join(", "),
                    match one {
                        true => "the volume is reached",
                        false => "the volumes are reached",
                    },
                    self.nbd_socket.display()
                );
                warn!("{line}");
                vec![line]
            }
        }
    }

    /// `r0/0 (/dev/nbd0)`.
    fn title(&self, plan: &ResourcePlan, volume: &VolumePlan, index: u32) -> String {
        let device = self.places.device(index);
        format!("{}/{} ({})", plan.name, volume.number, device.display())
    }

    /// The identifier of a volume's device: the kernel keeps it, and lets only those replace sockets who name it.
    fn backend(&self, shared: &Shared, volume: VolumeNumber) -> String {
        let uuid = shared.device_uuid(volume).unwrap_or_default();
        format!("qrbd:{}:{}/{volume}:{uuid:016x}", self.node, shared.name)
    }

    /// What is at the place of a volume's device, and under which identifier it is ours.
    fn look(&self, shared: &Shared, volume: VolumeNumber, index: u32) -> (Found, String) {
        let key = (shared.name.to_string(), volume.0);
        if let Some(remembered) = self.remembered.device(&key)
            && remembered.index == index
            && let Found::Ours = blocking::look(&self.places, index, &remembered.backend)
        {
            return (Found::Ours, remembered.backend);
        }
        let backend = self.backend(shared, volume);
        (blocking::look(&self.places, index, &backend), backend)
    }

    fn attached(&self, key: &Key) -> Option<Rc<Device>> {
        self.devices.borrow().get(key).cloned()
    }

    fn devices_of(&self, resource: &str) -> Vec<Rc<Device>> {
        let devices = self.devices.borrow();
        devices
            .values()
            .filter(|device| device.key.0 == resource)
            .cloned()
            .collect()
    }

    /// True if a volume is to have a device and has none.
    pub(crate) fn lacks_device(&self, plan: &ResourcePlan) -> bool {
        let devices = self.devices.borrow();
        Self::volumes_of(plan)
            .into_iter()
            .any(|(volume, _)| !devices.contains_key(&(plan.name.clone(), volume.0)))
    }

    /// True if a device of the resource is attached.
    pub(crate) fn serves(&self, resource: &str) -> bool {
        !self.devices_of(resource).is_empty()
    }

    /// The volumes that are to have a device, with its number.
    fn volumes_of(plan: &ResourcePlan) -> Vec<(VolumeNumber, u32)> {
        let volumes = plan.volumes.iter();
        volumes
            .filter_map(|volume| Some((volume.number, volume.minor?)))
            .collect()
    }

    fn names(&self, shared: &Shared, volume: VolumeNumber, index: u32) -> Names {
        let plan = shared.plan();
        Names {
            resource: shared.name.to_string(),
            volume: volume.0,
            index,
            own: plan
                .volume(volume)
                .and_then(|volume| volume.device_name.clone()),
        }
    }

    /// Attaches the devices of a resource that is Primary and has none yet. Gives lines for the administrator: what cannot be attached is
    /// reached over the socket.
    pub(crate) async fn attach(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        unchanged: &Unchanged,
    ) -> Vec<String> {
        let mut told = Vec::new();
        if self.is_ending() {
            return told;
        }
        let served_before = self.serves(&shared.name);
        for (volume, index) in Self::volumes_of(&shared.plan()) {
            let key = (shared.name.to_string(), volume.0);
            if self.attached(&key).is_some() {
                continue;
            }
            let may_go_on = unchanged.contains(&volume);
            let path = self.places.device(index);
            match self.attach_one(shared, &key, index, may_go_on).await {
                Ok(lines) => {
                    info!("{}/{volume}: {} is attached", shared.name, path.display());
                    told.extend(lines.into_iter().map(|line| format!("{}/{volume}: {line}", shared.name)));
                }
                Err(text) => told.push(format!(
                    "{}/{volume}: {} is not attached: {text}; the volume is reached over the NBD socket {}",
                    shared.name,
                    path.display(),
                    self.nbd_socket.display()
                )),
            }
        }
        for line in &told {
            warn!("{line}");
        }
        if !served_before && self.serves(&shared.name) {
            tokio::task::spawn_local(watch(Rc::clone(self), Rc::clone(shared)));
        }
        told
    }

    async fn attach_one(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        key: &Key,
        index: u32,
        may_go_on: bool,
    ) -> Result<Vec<String>, String> {
        let volume = VolumeNumber(key.1);
        let (found, backend) = self.look(shared, volume, index);
        let goes_on = match found {
            Found::Free => false,
            Found::Foreign(text) => return Err(text),
            Found::Ours if may_go_on => true,
            Found::Ours => {
                self.give_up_waiting(shared, volume, index)
                    .await
                    .map_err(|refusal| refusal.message(&shared.name))?;
                false
            }
        };
        let (export, session) = described(self, &shared.name, key.1)?;
        let wanted = Wanted {
            index,
            size: session.size,
            block_size: session.block_size,
            flags: session.flags,
            dead_connection_timeout: self.dead_connection_timeout,
            backend,
            names: self.names(shared, volume, index),
        };
        let device = Device::new(key.clone(), export, wanted);
        let attached = match goes_on {
            true => self.take_over(&device).await,
            false => self.connect(&device).await,
        };
        match attached {
            Ok(lines) => {
                self.remember(shared, &device);
                self.devices.borrow_mut().insert(key.clone(), device);
                Ok(lines)
            }
            Err(text) => {
                device.cut();
                Err(text)
            }
        }
    }

    async fn connect(self: &Rc<Self>, device: &Rc<Device>) -> Result<Vec<String>, String> {
        let (ours, theirs) = pairs(SOCKETS).map_err(|error| error.to_string())?;
        device.serve(self, ours);
        let (places, wanted) = (self.places.clone(), device.wanted.clone());
        self.helper(move || blocking::connect(&places, &wanted, theirs))
            .await?
    }

    fn remember(&self, shared: &Shared, device: &Device) {
        let remembered = RememberedDevice {
            index: device.wanted.index,
            backend: device.wanted.backend.clone(),
            generation: shared.current_generation(VolumeNumber(device.key.1)),
            handed: None,
        };
        self.remembered.set_device(&device.key, remembered);
    }

    /// Gives up the devices of a resource that is about to become Secondary, those that wait for a daemon included. Returns whether there
    /// was any.
    ///
    /// # Errors
    /// Somebody has one open, and it is not forced; nothing is given up then.
    pub(crate) async fn release(&self, shared: &Shared, force: bool) -> Result<bool, Refusal> {
        let plan = shared.plan();
        let mut targets: Vec<(Key, u32, Option<Rc<Device>>)> = Vec::new();
        for device in self.devices_of(&shared.name) {
            targets.push((device.key.clone(), device.wanted.index, Some(device)));
        }
        for (volume, index) in Self::volumes_of(&plan) {
            let key = (shared.name.to_string(), volume.0);
            if self.attached(&key).is_none()
                && matches!(self.look(shared, volume, index).0, Found::Ours)
            {
                targets.push((key, index, None));
            }
        }
        let mut claims = Vec::new();
        let mut held = Vec::new();
        for ((_, volume), index, device) in &targets {
            let (places, index, serves) = (self.places.clone(), *index, device.is_some());
            let path = places.device(index);
            let claimed = self
                .helper(move || blocking::claim(&places, index, serves))
                .await;
            match claimed {
                Ok(Ok(claim)) => claims.push(claim),
                Ok(Err(holders)) => {
                    claims.push(None);
                    held.push(format!("{}/{volume}: {}", shared.name, listed(&holders)));
                }
                Err(text) => held.push(format!(
                    "{}/{volume}: {}: {text}",
                    shared.name,
                    path.display()
                )),
            }
        }
        if !held.is_empty() && !force {
            return Err(Refusal::from(StateChangeError::DeviceInUse).with_detail(held.join("\n")));
        }
        for line in &held {
            warn!("{line}: its requests fail from now on");
        }
        let any = !targets.is_empty();
        for ((key, index, device), claim) in targets.into_iter().zip(claims) {
            let volume = VolumeNumber(key.1);
            if let Some(device) = &device {
                device.expect_end();
            }
            let (places, names) = (self.places.clone(), self.names(shared, volume, index));
            let gone = self
                .helper(move || blocking::disconnect(&places, index, &names, claim))
                .await
                .and_then(|gone| gone);
            if let Err(text) = gone {
                if !force {
                    if let Some(device) = &device {
                        device.expect_no_end();
                    }
                    let text = format!("{}/{volume}: {text}", shared.name);
                    return Err(Refusal::from(StateChangeError::DeviceInUse).with_detail(text));
                }
                warn!("{}/{volume}: {text}", shared.name);
            }
            if let Some(device) = device {
                device.cut();
            }
            self.close_inherited(index);
            self.devices.borrow_mut().remove(&key);
            self.remembered.forget_device(&key);
            info!(
                "{}/{volume}: {} is detached",
                shared.name,
                self.places.device(index).display()
            );
        }
        Ok(any)
    }

    /// From now on nothing is attached or taken over.
    pub(crate) fn end(&self) {
        self.ending.set(true);
    }

    /// True after [`KernelDevices::end`].
    fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// The sockets for the next daemon.
    pub(crate) fn take_handed(&self) -> Vec<Handed> {
        std::mem::take(&mut *self.handed.borrow_mut())
    }

    /// Somebody else disconnected the device.
    fn lost(&self, device: &Device) {
        if self.devices.borrow_mut().remove(&device.key).is_none() {
            // Another of its sockets said so already.
            return;
        }
        device.expect_end();
        self.remembered.forget_device(&device.key);
        error!(
            "{}: {} was disconnected by somebody else: 'qrbdadm adjust {}' attaches it again",
            device.export,
            self.places.device(device.wanted.index).display(),
            device.key.0
        );
    }

    /// The resource is not Primary any more although nobody demoted it here: the device's users get errors, not stale data.
    fn role_lost(self: &Rc<Self>, device: &Rc<Device>) {
        if self.devices.borrow_mut().remove(&device.key).is_none() {
            return;
        }
        device.expect_end();
        self.remembered.forget_device(&device.key);
        error!(
            "{}: not Primary any more: {} is disconnected",
            device.export,
            self.places.device(device.wanted.index).display()
        );
        let (kernel, device) = (Rc::clone(self), Rc::clone(device));
        tokio::task::spawn_local(async move {
            let (places, wanted) = (kernel.places.clone(), device.wanted.clone());
            let gone = kernel
                .helper(move || blocking::disconnect(&places, wanted.index, &wanted.names, None))
                .await
                .and_then(|gone| gone);
            if let Err(text) = gone {
                warn!("{}: {text}", device.export);
            }
        });
    }

    /// Adds what is known of the kernel's devices to a status.
    pub(crate) fn complete(&self, report: &mut StatusReport) {
        for resource in &mut report.resources {
            for volume in &mut resource.devices {
                let key = (resource.name.clone(), volume.volume);
                let Some(device) = self.attached(&key) else {
                    continue;
                };
                let index = device.wanted.index;
                volume.device_path = Some(self.places.device(index).display().to_string());
                volume.open |= !holders::users(&self.places, index).is_empty();
            }
        }
    }

    /// Follows what changes while a device is attached: the generation of the data, and the size.
    async fn follow(&self, shared: &Shared) {
        if shared.status().role != Role::Primary {
            return;
        }
        for device in self.devices_of(&shared.name) {
            let key = &device.key;
            let generation = shared.current_generation(VolumeNumber(key.1));
            if let Some(remembered) = self.remembered.device(key)
                && remembered.generation != generation
            {
                let now = RememberedDevice {
                    generation,
                    ..remembered
                };
                self.remembered.set_device(key, now);
            }
            let Ok((_, session)) = described(self, &key.0, key.1) else {
                continue;
            };
            let before = device.size.get();
            if session.size <= before {
                continue;
            }
            // First the sessions, so that no request is refused that the kernel may send.
            device.size.set(session.size);
            let (index, backend) = (device.wanted.index, device.wanted.backend.clone());
            let size = session.size;
            let told = self
                .helper(move || blocking::resize(index, &backend, size))
                .await
                .and_then(|told| told);
            let path = self.places.device(index);
            match told {
                Ok(()) => info!("{}: {} has {size} bytes now", device.export, path.display()),
                Err(text) => {
                    // The next look tries again.
                    device.size.set(before);
                    warn!(
                        "{}: {} does not grow: {text}",
                        device.export,
                        path.display()
                    );
                }
            }
        }
    }
}

/// One line for each.
fn listed(holders: &[Holder]) -> String {
    let lines: Vec<String> = holders.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Follows a resource as long as it has a device.
async fn watch(kernel: Rc<KernelDevices>, shared: Rc<Shared>) {
    let mut notices = shared.listen();
    loop {
        // What happens is a reason to look; what was missed, too.
        let _ = tokio::time::timeout(FOLLOW_INTERVAL, notices.recv()).await;
        while notices.try_recv().is_ok() {}
        if !kernel.serves(&shared.name) {
            return;
        }
        kernel.follow(&shared).await;
    }
}
