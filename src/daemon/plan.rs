//! What the configuration wants of one resource on this node: the typed model cut down to what the daemon acts on, and its
//! translation into the engine's plain numbers.
//!
//! A plan is a value: two plans are compared to find what `adjust` has to do. Nothing here touches disks or the network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use qrbd_config::{
    AfterSplitBrain0Primaries, DiskSource, Handlers, MetaDisk, NetOptions, OnIoError, Resource,
};
use qrbd_engine::EngineConfig;
use qrbd_engine::config::{Fencing, PeerConfig, VolumeConfig};
use qrbd_engine::split_brain::{Policies, Policy};
use qrbd_engine::units::{NodeId, VolumeNumber};
use qrbd_engine::wire::message::Protocol;

/// Bytes of one of `max-buffers`.
const BUFFER_BYTES: u64 = 4096;
/// Least window of a resync: below it, a round trip for each block is all there is.
const LEAST_RESYNC_WINDOW_BYTES: u64 = 1 << 20;

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResourcePlan {
    pub(crate) name: String,
    pub(crate) node_id: NodeId,
    /// Names of all nodes of the resource.
    pub(crate) node_names: BTreeMap<u8, String>,
    pub(crate) volumes: Vec<VolumePlan>,
    pub(crate) peers: Vec<PeerPlan>,
    pub(crate) handlers: Handlers,
    /// Serve NBD on this TCP address too.
    pub(crate) nbd_listen: Option<SocketAddr>,
    /// Longest run of a handler.
    pub(crate) handler_timeout: Duration,
}

/// One volume on this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VolumePlan {
    pub(crate) number: VolumeNumber,
    pub(crate) minor: Option<u32>,
    /// A name of the kernel device below `/dev` that does not tell the minor.
    pub(crate) device_name: Option<String>,
    /// `None`: diskless on purpose.
    pub(crate) disk: Option<PathBuf>,
    pub(crate) meta_disk: MetaDisk,
    pub(crate) al_extents: u32,
    pub(crate) disk_flushes: bool,
    pub(crate) on_io_error: OnIoError,
}

/// One peer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeerPlan {
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) net: NetOptions,
    policies: Policies,
    /// How long the handlers may take that are asked before a resync, in milliseconds; `None` where there is none.
    before_resync_target: Option<u64>,
    before_resync_source: Option<u64>,
}

impl ResourcePlan {
    /// The plan for this node; `None` if the resource is not for this host.
    pub(crate) fn of(resource: &Resource, handler_timeout: Duration) -> Option<ResourcePlan> {
        let local = resource.local_node()?;
        let volumes = local
            .volumes
            .iter()
            .map(|volume| VolumePlan {
                number: VolumeNumber(volume.number),
                minor: volume.device.as_ref().map(|device| device.minor),
                device_name: volume
                    .device
                    .as_ref()
                    .and_then(|device| device.name.clone()),
                disk: match &volume.disk {
                    DiskSource::Path(path) => Some(path.clone()),
                    DiskSource::None => None,
                },
                meta_disk: volume.meta_disk.clone(),
                al_extents: volume.options.al_extents,
                disk_flushes: volume.options.disk_flushes,
                on_io_error: volume.options.on_io_error,
            })
            .collect();
        let patience = |event| {
            let milliseconds = u64::try_from(handler_timeout.as_millis()).unwrap_or(u64::MAX);
            resource.handlers.get(event).map(|_| milliseconds)
        };
        let peers = resource
            .peers()
            .map(|peer| {
                let path = peer.paths.first().expect("a connection has a path");
                let net = peer.connection.net.clone();
                PeerPlan {
                    node_id: NodeId(peer.node.node_id),
                    name: peer.node.name.clone(),
                    local: path.local,
                    remote: path.peer,
                    policies: policies(&net, |name| local.is_called(name)),
                    before_resync_target: patience("before-resync-target"),
                    before_resync_source: patience("before-resync-source"),
                    net,
                }
            })
            .collect();
        Some(ResourcePlan {
            name: resource.name.clone(),
            node_id: NodeId(local.node_id),
            node_names: resource
                .nodes
                .iter()
                .map(|node| (node.node_id, node.name.clone()))
                .collect(),
            volumes,
            peers,
            handlers: resource.handlers.clone(),
            nbd_listen: resource.options.nbd_listen,
            handler_timeout,
        })
    }

    /// The engine's configuration.
    pub(crate) fn engine(&self, seed: [u64; 2]) -> EngineConfig {
        EngineConfig {
            node_id: self.node_id,
            seed,
            boot: crate::boot::of_machine(seed[0]),
            volumes: self.volumes.iter().map(VolumePlan::engine).collect(),
            peers: self.peers.iter().map(PeerPlan::engine).collect(),
        }
    }

    /// The volume's plan.
    pub(crate) fn volume(&self, number: VolumeNumber) -> Option<&VolumePlan> {
        self.volumes.iter().find(|volume| volume.number == number)
    }

    /// Name of a node, its number if the configuration does not know it.
    pub(crate) fn node_name(&self, node: NodeId) -> String {
        self.node_names
            .get(&node.0)
            .cloned()
            .unwrap_or_else(|| format!("node-id {node}"))
    }

    /// True if a running engine with this plan can go on under `other`: the same node, volumes and peers, whatever their options.
    pub(crate) fn same_shape(&self, other: &ResourcePlan) -> bool {
        let volumes = |plan: &ResourcePlan| {
            plan.volumes
                .iter()
                .map(|volume| volume.number)
                .collect::<Vec<_>>()
        };
        let peers = |plan: &ResourcePlan| {
            plan.peers
                .iter()
                .map(|peer| peer.node_id)
                .collect::<Vec<_>>()
        };
        self.node_id == other.node_id
            && volumes(self) == volumes(other)
            && peers(self) == peers(other)
    }
}

impl VolumePlan {
    /// The engine's configuration.
    pub(crate) fn engine(&self) -> VolumeConfig {
        VolumeConfig {
            al_extents: self.al_extents,
            disk_flushes: self.disk_flushes,
            // `pass_on` is told to act as `detach` (the table of options): half of it, for reads alone, would leave a disk UpToDate that
            // is not.
            detach_on_io_error: true,
            ..VolumeConfig::new(self.number)
        }
    }
}

impl PeerPlan {
    /// Pause between attempts to connect.
    pub(crate) fn connect_interval(&self) -> Duration {
        Duration::from_millis(self.net.connect_int_ms)
    }

    /// True if a write of a client waits for the other node.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.net.protocol != qrbd_config::Protocol::A
    }

    /// The engine's configuration.
    pub(crate) fn engine(&self) -> PeerConfig {
        let net = &self.net;
        PeerConfig {
            protocol: protocol(net.protocol),
            fencing: fencing(net.fencing),
            policies: self.policies,
            ping_interval: net.ping_int_ms,
            ping_timeout: net.ping_timeout_ms,
            timeout: net.timeout_ms,
            ko_count: net.ko_count,
            max_epoch_size: net.max_epoch_size,
            resync_window_bytes: (u64::from(net.max_buffers) * BUFFER_BYTES)
                .max(LEAST_RESYNC_WINDOW_BYTES),
            before_resync_target: self.before_resync_target,
            before_resync_source: self.before_resync_source,
            ..PeerConfig::new(self.node_id)
        }
    }

    /// True if a standing connection can go on under `other`: what is agreed on when it is made is the same.
    pub(crate) fn same_connection(&self, other: &PeerPlan) -> bool {
        self.same_way(other) && self.net.protocol == other.net.protocol
    }

    /// True if the peer is reached in the same way.
    pub(crate) fn same_way(&self, other: &PeerPlan) -> bool {
        (
            self.local,
            self.remote,
            &self.net.shared_secret,
            self.net.connect_int_ms,
        ) == (
            other.local,
            other.remote,
            &other.net.shared_secret,
            other.net.connect_int_ms,
        )
    }
}

fn fencing(fencing: qrbd_config::Fencing) -> Fencing {
    match fencing {
        qrbd_config::Fencing::DontCare => Fencing::DontCare,
        qrbd_config::Fencing::ResourceOnly => Fencing::ResourceOnly,
        qrbd_config::Fencing::ResourceAndStonith => Fencing::ResourceAndStonith,
    }
}

fn protocol(protocol: qrbd_config::Protocol) -> Protocol {
    match protocol {
        qrbd_config::Protocol::A => Protocol::A,
        qrbd_config::Protocol::B => Protocol::B,
        qrbd_config::Protocol::C => Protocol::C,
    }
}

fn policies(net: &NetOptions, is_this_node: impl Fn(&str) -> bool) -> Policies {
    use AfterSplitBrain0Primaries as After;
    let word = |word: &str| {
        word.parse()
            .expect("the words of the configuration are those of the engine")
    };
    Policies {
        after_sb_0pri: match &net.after_sb_0pri {
            After::Disconnect => Policy::Disconnect,
            After::DiscardYoungerPrimary => Policy::DiscardYoungerPrimary,
            After::DiscardOlderPrimary => Policy::DiscardOlderPrimary,
            After::DiscardZeroChanges => Policy::DiscardZeroChanges,
            After::DiscardLeastChanges => Policy::DiscardLeastChanges,
            After::DiscardLocal => Policy::DiscardLocal,
            After::DiscardRemote => Policy::DiscardRemote,
            After::DiscardNode(name) if is_this_node(name) => Policy::DiscardLocal,
            After::DiscardNode(_) => Policy::DiscardRemote,
        },
        after_sb_1pri: word(net.after_sb_1pri.as_str()),
        after_sb_2pri: word(net.after_sb_2pri.as_str()),
        always_asbp: net.always_asbp,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn plan(node: &str, net: &str) -> ResourcePlan {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(
            file,
            "resource r0 {{ net {{ {net} }} disk {{ al-extents 67; on-io-error pass_on; }}
               on alice {{ device minor 3; disk /tmp/a; meta-disk internal; address 127.0.0.1:7001; }}
               on bob {{ device minor 3; disk /tmp/b; meta-disk internal; address 127.0.0.1:7002; }} }}"
        )
        .unwrap();
        let loaded = qrbd_config::load(Path::new(file.path()), node);
        assert!(loaded.errors.is_empty(), "{}", loaded.errors[0]);
        ResourcePlan::of(&loaded.resources[0], Duration::from_secs(120)).unwrap()
    }

    #[test]
    fn times_reach_the_engine_in_milliseconds_and_buffers_in_bytes() {
        let plan = plan(
            "alice",
            "ping-int 7; ping-timeout 4; timeout 50; ko-count 3; max-epoch-size 100; max-buffers 4096; protocol B;",
        );
        let config = plan.engine([1, 2]);
        assert_eq!(
            (config.node_id, config.peers[0].node_id),
            (NodeId(0), NodeId(1))
        );
        let peer = &config.peers[0];
        assert_eq!(
            (peer.ping_interval, peer.ping_timeout, peer.timeout),
            (7_000, 400, 5_000)
        );
        assert_eq!((peer.ko_count, peer.max_epoch_size), (3, 100));
        assert_eq!(
            (peer.resync_window_bytes, peer.protocol),
            (16 << 20, Protocol::B)
        );
        assert_eq!(
            (
                config.volumes[0].al_extents,
                config.volumes[0].detach_on_io_error
            ),
            (67, true)
        );
    }

    #[test]
    fn a_named_loser_of_a_split_brain_is_local_on_one_node_and_remote_on_the_other() {
        let net = "after-sb-0pri discard-node-bob; after-sb-1pri call-pri-lost-after-sb;";
        let (alice, bob) = (
            plan("alice", net).engine([0; 2]),
            plan("bob", net).engine([0; 2]),
        );
        assert_eq!(alice.peers[0].policies.after_sb_0pri, Policy::DiscardRemote);
        assert_eq!(bob.peers[0].policies.after_sb_0pri, Policy::DiscardLocal);
        assert_eq!(
            alice.peers[0]
                .policies
                .contradiction(&bob.peers[0].policies),
            None
        );
        assert_eq!(
            bob.peers[0].policies.after_sb_1pri,
            Policy::CallPriLostAfterSb
        );
    }

    #[test]
    fn every_word_of_the_configuration_is_a_policy_of_the_engine() {
        for (option, words) in [
            (
                "after-sb-0pri",
                &[
                    "disconnect",
                    "discard-younger-primary",
                    "discard-older-primary",
                    "discard-zero-changes",
                    "discard-least-changes",
                    "discard-local",
                    "discard-remote",
                ][..],
            ),
            (
                "after-sb-1pri",
                &[
                    "disconnect",
                    "consensus",
                    "violently-as0p",
                    "discard-secondary",
                    "call-pri-lost-after-sb",
                ],
            ),
            (
                "after-sb-2pri",
                &["disconnect", "violently-as0p", "call-pri-lost-after-sb"],
            ),
        ] {
            for word in words {
                let config = plan("alice", &format!("{option} {word};")).engine([0; 2]);
                assert_eq!(
                    config.peers[0].policies.validate(),
                    Ok(()),
                    "{option} {word}"
                );
            }
        }
    }

    #[test]
    fn a_connection_is_made_anew_only_for_what_is_agreed_on_when_it_is_made() {
        let before = plan("alice", "");
        let calmer = plan("alice", "connect-int 15;");
        assert!(!before.peers[0].same_way(&calmer.peers[0]));
        let slower = plan("alice", "timeout 80;");
        assert!(before.peers[0].same_connection(&slower.peers[0]) && before != slower);
        let weaker = plan("alice", "protocol A;");
        assert!(
            before.peers[0].same_way(&weaker.peers[0])
                && !before.peers[0].same_connection(&weaker.peers[0])
        );
        assert!(before.same_shape(&weaker) && !before.same_shape(&plan("bob", "")));
    }
}
