//! The daemon's state: which resources are up, and what they are made of.
//!
//! Owns the ring of the disks, the clock, the configuration's place and the locks that keep two structural commands (`up`, `down`,
//! `adjust`, `attach`) off the same resource. One thread's; nothing here decides about replication.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use qrbd_config::Loaded;
use qrbd_control::Refusal;
use qrbd_disk::{Pool, UringOptions, UringReactor};
use tokio::sync::Mutex;
use tracing::warn;

use crate::busy_wait::BusyWait;
use crate::clock::Clock;
use crate::handlers::{self, Handlers};
use crate::kernel::KernelDevices;
use crate::plan::ResourcePlan;
use crate::resource::{KeySource, Shared};
use crate::tcp_front::TcpFronts;
use crate::volumes::Volumes;

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) configuration: PathBuf,
    pub(crate) node: String,
    /// For what is remembered beyond a reboot.
    pub(crate) state: PathBuf,
}

/// See the module's text.
pub(crate) struct Daemon {
    pub(crate) places: Places,
    pub(crate) volumes: Volumes,
    pub(crate) kernel: Rc<KernelDevices>,
    key: KeySource,
    clock: Clock,
    reactor: UringReactor,
    busy_wait: Rc<BusyWait>,
    pub(crate) tcp_fronts: TcpFronts,
    locks: RefCell<HashMap<String, Rc<Mutex<()>>>>,
    /// What was told once of the configuration.
    told: RefCell<HashSet<String>>,
}

impl Daemon {
    /// A daemon without resources.
    ///
    /// # Errors
    /// If the kernel offers no usable io_uring.
    pub(crate) fn new(
        places: Places,
        key_file: PathBuf,
        volumes: Volumes,
        kernel: Rc<KernelDevices>,
        busy_wait: Duration,
    ) -> anyhow::Result<Rc<Daemon>> {
        let reactor = UringReactor::new(UringOptions::default(), Pool::default())
            .context("the disk backend cannot be set up")?;
        Ok(Rc::new(Daemon {
            places,
            volumes,
            kernel,
            key: KeySource::new(key_file),
            clock: Clock::start(),
            reactor,
            busy_wait: BusyWait::start(busy_wait),
            tcp_fronts: TcpFronts::default(),
            locks: RefCell::default(),
            told: RefCell::default(),
        }))
    }

    /// Reads the configuration as it is now.
    pub(crate) fn configuration(&self) -> Loaded {
        qrbd_config::load(&self.places.configuration, &self.places.node)
    }

    /// Options that do not do what they say, each once in the life of the daemon: to the log, and for whoever brings something up.
    pub(crate) fn news_of(&self, loaded: &Loaded) -> Vec<String> {
        let mut told = self.told.borrow_mut();
        let lines = loaded.ignored.iter().map(ToString::to_string);
        let news: Vec<String> = lines.filter(|line| told.insert(line.clone())).collect();
        for line in &news {
            warn!("{line}");
        }
        news
    }

    /// What the configuration says of one resource.
    ///
    /// # Errors
    /// The configuration's errors that concern it, with their places.
    pub(crate) fn plan(&self, loaded: &Loaded, name: &str) -> Result<ResourcePlan, Refusal> {
        let timeout = handlers::time_limit(loaded.global.cmd_timeout_long_s);
        if let Some(resource) = loaded.resource(name) {
            return ResourcePlan::of(resource, timeout).ok_or_else(|| {
                let text = format!(
                    "not defined for this node '{}' in {}",
                    self.places.node,
                    self.places.configuration.display()
                );
                Refusal::configuration(text)
            });
        }
        let of_resource: Vec<String> = loaded.errors_of(name).map(ToString::to_string).collect();
        // A file that could not be read may be the one that the resource is in.
        let errors = if of_resource.is_empty() {
            loaded.errors.iter().map(ToString::to_string).collect()
        } else {
            of_resource
        };
        let text = format!("not usable in {}", self.places.configuration.display());
        Err(match errors.is_empty() {
            true => Refusal::configuration(format!(
                "not defined in {}",
                self.places.configuration.display()
            )),
            false => Refusal::configuration(text).with_detail(errors.join("\n")),
        })
    }

    /// Makes a resource without disks and connections, and lets it run.
    pub(crate) fn start(&self, plan: ResourcePlan) -> anyhow::Result<Rc<Shared>> {
        let handlers = Handlers::start(self.places.configuration.display().to_string());
        let shared = Shared::new(
            plan,
            self.clock,
            seed()?,
            self.reactor.share(),
            handlers,
            self.key.clone(),
        );
        tokio::task::spawn_local(shared.owner(Rc::clone(&self.busy_wait)));
        self.volumes.insert(&shared);
        Ok(shared)
    }

    /// Ends a resource.
    pub(crate) async fn forget(&self, shared: &Shared) {
        self.volumes.remove(&shared.name);
        self.tcp_fronts.remove(&shared.name);
        shared.stop().await;
    }

    /// The lock of a resource's structure.
    pub(crate) fn lock(&self, name: &str) -> Rc<Mutex<()>> {
        let mut locks = self.locks.borrow_mut();
        locks.retain(|_, lock| Rc::strong_count(lock) > 1);
        Rc::clone(locks.entry(name.to_owned()).or_default())
    }

    /// Stops every resource, at most for `patience`: demoted where nobody has it open, disconnected, disks closed. With `goes_on`, another
    /// daemon follows at once: what has a kernel device stays Primary.
    pub(crate) async fn shut_down(self: &Rc<Self>, patience: Duration, goes_on: bool) {
        let all = self.volumes.all();
        let stops = all.into_iter().map(|shared| {
            let daemon = Rc::clone(self);
            tokio::task::spawn_local(async move {
                crate::commands::lifecycle::end(&daemon, &shared, goes_on).await
            })
        });
        let stops: Vec<_> = stops.collect();
        let whole = async {
            for stop in stops {
                if let Err(error) = stop.await {
                    warn!("stop: {error}");
                }
            }
        };
        if tokio::time::timeout(patience, whole).await.is_err() {
            warn!(
                "not everything ended within {} s; what is left is recovered at the next start",
                patience.as_secs()
            );
        }
    }
}

/// Random bits for generation identifiers.
fn seed() -> anyhow::Result<[u64; 2]> {
    let mut bytes = [[0; 8]; 2];
    for half in &mut bytes {
        std::fs::File::open("/dev/urandom")
            .and_then(|mut source| std::io::Read::read_exact(&mut source, half))
            .context("no random bits from /dev/urandom")?;
    }
    Ok(bytes.map(u64::from_le_bytes))
}
