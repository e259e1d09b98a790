//! What kind of run a seed gives: size, protocol, how faults and commands are mixed.

use qrbd_engine::config::Fencing;
use qrbd_engine::split_brain::Policies;
use qrbd_engine::wire::message::Protocol;

use crate::queue::{MILLISECOND, Micros, SECOND};
use crate::random::Random;

/// How one volume is made.
#[derive(Clone, Debug)]
pub struct VolumeSettings {
    /// Size of the data area in bytes, equal on all nodes.
    pub data_bytes: u64,
    /// Internal metadata, by node.
    pub internal: Vec<bool>,
    /// Slots of the activity log.
    pub al_extents: u32,
    /// Sizes that the data area of each node's disk grows to, one after the other.
    pub growth: Vec<u64>,
}

impl VolumeSettings {
    /// Size of the data area at the end.
    #[must_use]
    pub fn largest_bytes(&self) -> u64 {
        self.growth.last().copied().unwrap_or(self.data_bytes)
    }
}

/// How the nodes become UpToDate at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beginning {
    /// `new-current-uuid --clear-bitmap` while connected; both disks hold zeroes.
    SkipInitialSync,
    /// `primary --force` on one node and a full sync over disks that hold garbage.
    ForcePrimary,
}

/// Probabilities, per mille, of what the fault injector picks at each of its steps.
#[derive(Clone, Debug)]
pub struct FaultMix {
    /// Time between two faults.
    pub interval: (Micros, Micros),
    /// Most faults in the safety phase.
    pub budget: u32,
    /// Weights in the order of `faults::FAULTS`.
    pub weights: Vec<u64>,
    /// Probability, per million steps of an engine, of a crash amid its effects.
    pub crash_amid_effects: u64,
}

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The seed.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: usize,
    /// Acknowledgement rule.
    pub protocol: Protocol,
    /// Volumes.
    pub volumes: Vec<VolumeSettings>,
    /// How it begins.
    pub beginning: Beginning,
    /// What a Primary does about a lost peer.
    pub fencing: Fencing,
    /// The cluster manager promotes both sides of a partition.
    pub reckless: bool,
    /// Policies for split brain.
    pub policies: Policies,
    /// Length of the safety phase.
    pub safety: Micros,
    /// Bound of the liveness phase.
    pub liveness: Micros,
    /// Most requests in flight.
    pub queue_depth: u64,
    /// Clients write to every extent, so that their depth asks for more than the activity log holds.
    pub spread: bool,
    /// Time between two requests.
    pub think: (Micros, Micros),
    /// Disk latency.
    pub disk_delay: (Micros, Micros),
    /// Network latency.
    pub network_delay: (Micros, Micros),
    /// Time between two steps of the administrator.
    pub administrator_interval: (Micros, Micros),
    /// Probability, per mille, of a random command at a step of the administrator.
    pub whims: u64,
    /// Probability, per mille, of a demotion at a step of the manager.
    pub demotions: u64,
    /// Probability, per mille, that a node loses its power right after it was demoted.
    pub retiring: u64,
    /// Probability, per mille, that a disk grows or a volume is resized at a step of the administrator.
    pub resizes: u64,
    /// What disks grow by is the same on every node, and is not copied.
    pub clean_growth: bool,
    /// Handlers are asked before each resync, and forbid so many of a thousand.
    pub asked_before_resync: Option<u64>,
    /// Faults.
    pub faults: FaultMix,
}

impl Settings {
    /// The settings that `seed` stands for.
    #[must_use]
    pub fn of_seed(seed: u64) -> Settings {
        let mut random = Random::new(seed ^ 0x5E77_1465);
        let reckless = random.chance(200);
        let volumes = if random.chance(200) { 2 } else { 1 };
        let protocol = *random.pick(&[Protocol::C, Protocol::C, Protocol::B, Protocol::A]);
        let volumes = (0..volumes)
            .map(|_| VolumeSettings::random(&mut random))
            .collect();
        let calm = random.chance(150);
        let weights = (0..crate::faults::FAULTS.len())
            .map(|_| {
                if random.chance(300) {
                    0
                } else {
                    random.between(1, 10)
                }
            })
            .collect();
        let mut settings = Settings {
            seed,
            nodes: 2,
            protocol,
            volumes,
            beginning: if random.chance(600) {
                Beginning::SkipInitialSync
            } else {
                Beginning::ForcePrimary
            },
            fencing: Fencing::DontCare,
            reckless,
            policies: if reckless {
                crate::engine_view::random_policies(&mut random)
            } else {
                Policies::default()
            },
            safety: random.between(1, 6) * SECOND,
            liveness: 60 * SECOND,
            queue_depth: random.between(1, 12),
            spread: false,
            think: *random.pick(&[
                (200, 2 * MILLISECOND),
                (MILLISECOND, 20 * MILLISECOND),
                (MILLISECOND, 100 * MILLISECOND),
            ]),
            disk_delay: *random.pick(&[(50, 500), (100, 5 * MILLISECOND), (20, 40 * MILLISECOND)]),
            network_delay: *random.pick(&[
                (50, 300),
                (100, 5 * MILLISECOND),
                (100, 40 * MILLISECOND),
            ]),
            administrator_interval: (5 * MILLISECOND, 200 * MILLISECOND),
            whims: *random.pick(&[0, 50, 200]),
            demotions: 15,
            retiring: 0,
            resizes: 0,
            clean_growth: false,
            asked_before_resync: None,
            faults: FaultMix {
                interval: *random.pick(&[
                    (20 * MILLISECOND, 300 * MILLISECOND),
                    (200 * MILLISECOND, 2 * SECOND),
                ]),
                budget: if calm {
                    0
                } else {
                    random.between(1, 12) as u32
                },
                weights,
                crash_amid_effects: if calm {
                    0
                } else {
                    *random.pick(&[0, 200, 1000])
                },
            },
        };
        // Of a stream of its own, so that the other seeds stay what they were.
        let mut starving = Random::new(seed ^ 0x57A2_71E5);
        if starving.chance(120) {
            settings.spread = true;
            settings.queue_depth = starving.between(16, 40);
            for volume in &mut settings.volumes {
                volume.al_extents = 9;
            }
        }
        let mut fencing = Random::new(seed ^ 0xFE2C_1265);
        if fencing.chance(250) {
            settings.fencing = if settings.protocol == Protocol::A || fencing.chance(300) {
                Fencing::ResourceOnly
            } else {
                Fencing::ResourceAndStonith
            };
        }
        let mut retiring = Random::new(seed ^ 0x2E71_2E5D);
        if settings.faults.budget > 0 && retiring.chance(100) {
            settings.demotions = 150;
            settings.retiring = 500;
        }
        let mut handlers = Random::new(seed ^ 0x4A2D_1E25);
        if handlers.chance(100) {
            settings.asked_before_resync = Some(*handlers.pick(&[0, 100, 300]));
        }
        let mut growing = Random::new(seed ^ 0x6203_7E51);
        if growing.chance(200) {
            settings.resizes = *growing.pick(&[150, 400]);
            settings.clean_growth = growing.chance(300);
            for volume in &mut settings.volumes {
                let first = volume.data_bytes.next_multiple_of(4096)
                    + growing.between(1, 2) * (4 << 20)
                    + 4096 * growing.below(1000);
                let second = first + 4096 * growing.between(64, 1500);
                volume.growth = vec![first, second];
            }
        }
        settings
    }

    /// Settings without faults and without commands, for scenarios.
    #[must_use]
    pub fn quiet(seed: u64, protocol: Protocol) -> Settings {
        Settings {
            seed,
            nodes: 2,
            protocol,
            volumes: vec![VolumeSettings {
                data_bytes: 48 << 20,
                internal: vec![false; 2],
                al_extents: 9,
                growth: Vec::new(),
            }],
            beginning: Beginning::SkipInitialSync,
            fencing: Fencing::DontCare,
            reckless: false,
            policies: Policies::default(),
            safety: 0,
            liveness: 60 * SECOND,
            queue_depth: 4,
            spread: false,
            think: (MILLISECOND, 5 * MILLISECOND),
            disk_delay: (50, 500),
            network_delay: (50, 500),
            administrator_interval: (5 * MILLISECOND, 50 * MILLISECOND),
            whims: 0,
            demotions: 15,
            retiring: 0,
            resizes: 0,
            clean_growth: false,
            asked_before_resync: None,
            faults: FaultMix {
                interval: (SECOND, SECOND),
                budget: 0,
                weights: vec![1; crate::faults::FAULTS.len()],
                crash_amid_effects: 0,
            },
        }
    }
}

impl VolumeSettings {
    fn random(random: &mut Random) -> VolumeSettings {
        let mut data_bytes = random.between(12, 20) * (4 << 20);
        let internal: Vec<bool> = (0..2).map(|_| random.chance(400)).collect();
        match random.below(4) {
            0 => data_bytes += 4096 * random.between(1, 1000),
            // A size that is no multiple of a block is possible only with external metadata.
            1 if !internal.contains(&true) => data_bytes += 512 * random.between(1, 8000),
            _ => {}
        }
        VolumeSettings {
            data_bytes,
            internal,
            al_extents: random.between(9, 11) as u32,
            growth: Vec::new(),
        }
    }
}
