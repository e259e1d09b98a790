//! Owns the typed model: what a configuration means for the daemon and the tools.
//!
//! Everything is resolved: options are inherited, defaults filled in, node ids assigned, addresses known.
//! The explicit settings of each level are kept beside the resolved options, for `dump` and for messages.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::ConfigError;
use crate::settings::Settings;
use crate::source::Position;
use crate::typed::{
    DiskOptions, Handlers, NetOptions, PeerDeviceOptions, ResourceOptions, StartupOptions,
};

/// The outcome of reading a configuration.
#[derive(Debug)]
pub struct Loaded {
    /// Resources without any error, in the order they were read; also those that have no section for this node.
    pub resources: Vec<Resource>,
    /// Resources that exist but cannot be used; `errors` say why.
    pub broken: Vec<Broken>,
    /// Resources that the configuration itself takes out of use.
    pub skipped: Vec<Skipped>,
    /// Everything that is wrong, in the order it was found.
    pub errors: Vec<ConfigError>,
    /// Options that were accepted but do not do what they say, each once, at its first place.
    pub ignored: Vec<Ignored>,
    /// Settings of the whole node.
    pub global: Global,
    /// The explicit options of `common`, already inherited by the resources: net, disk, options, startup, handlers.
    pub common: Vec<(&'static str, Settings)>,
    /// Files that were read, the main file first.
    pub files: Vec<PathBuf>,
}

impl Loaded {
    /// The resource called `name`.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// The resources that have a section for this node.
    pub fn local_resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources
            .iter()
            .filter(|resource| resource.local.is_some())
    }

    /// The errors that keep resource `name` from being used.
    pub fn errors_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ConfigError> {
        self.errors
            .iter()
            .filter(move |error| error.resource.as_deref() == Some(name))
    }
}

/// A resource that cannot be used because of an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub position: Position,
}

/// A resource that is not in use on purpose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub position: Position,
    /// Why.
    pub reason: SkipReason,
}

/// Why a resource is not in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SkipReason {
    /// `skip resource NAME { … }`.
    Skip,
    /// It has a `stacked-on-top-of` section; such resources take no part here, as in DRBD without `--stacked`.
    Stacked,
}

/// An option that was accepted but does nothing here, or not what its value says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ignored {
    /// The option or section.
    pub option: String,
    /// Its first place.
    pub position: Position,
    /// Why.
    pub reason: IgnoreReason,
}

/// Why an option does nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IgnoreReason {
    /// What it is about does not exist in this program.
    NoMeaning,
    /// This version does not carry it out.
    NotCarriedOut {
        /// The value that was written.
        value: String,
        /// The value that the program acts by, if there is one.
        acts_as: Option<&'static str>,
    },
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ignored {
            option,
            position,
            reason,
        } = self;
        match reason {
            IgnoreReason::NoMeaning => write!(
                f,
                "{position}: `{option}` has no effect in this program and is ignored"
            ),
            IgnoreReason::NotCarriedOut { value, acts_as } => {
                write!(
                    f,
                    "{position}: `{option} {value}` is not carried out by this version"
                )?;
                match acts_as {
                    Some(other) => write!(f, ", which acts as with `{option} {other}`"),
                    None => f.write_str(" and has no effect"),
                }
            }
        }
    }
}

/// `global { }`: settings of the whole node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Global {
    /// Limit for short commands, in seconds.
    pub cmd_timeout_short_s: u32,
    /// Limit for medium commands, in seconds.
    pub cmd_timeout_medium_s: u32,
    /// Limit for long commands, handlers among them, in seconds.
    pub cmd_timeout_long_s: u32,
    /// What was written.
    pub settings: Settings,
}

/// A resource: volumes that are replicated together between nodes.
#[derive(Clone, PartialEq, Debug)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub position: Position,
    /// Its nodes, in the order of their sections.
    pub nodes: Vec<Node>,
    /// Which of `nodes` is this node; `None`: the resource is not for this host.
    pub local: Option<usize>,
    /// Its connections, also those between other nodes.
    pub connections: Vec<Connection>,
    /// True if its defaults come from `common`, false if a template file replaced that.
    pub inherits_common: bool,
    /// Options of the resource on this node.
    pub options: ResourceOptions,
    /// Programs to run at events.
    pub handlers: Handlers,
    /// What waits at boot.
    pub startup: StartupOptions,
    /// Explicit settings by section: options, net, disk, startup, handlers; those of `common` included.
    pub settings: Vec<(&'static str, Settings)>,
}

impl Resource {
    /// This node's section.
    #[must_use]
    pub fn local_node(&self) -> Option<&Node> {
        self.local.map(|index| &self.nodes[index])
    }

    /// The volumes on this node; empty if the resource is not for this host.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        self.local_node().map_or(&[], |node| &node.volumes)
    }

    /// This node's connections, seen from here; empty if the resource is not for this host.
    pub fn peers(&self) -> impl Iterator<Item = Peer<'_>> {
        self.connections.iter().filter_map(move |connection| {
            let side = connection
                .nodes
                .iter()
                .position(|node| Some(*node) == self.local)?;
            let index = connection.nodes[1 - side];
            let paths = connection
                .paths
                .iter()
                .map(|path| PeerPath {
                    local: path.addresses[side],
                    peer: path.addresses[1 - side],
                })
                .collect();
            Some(Peer {
                index,
                node: &self.nodes[index],
                connection,
                paths,
            })
        })
    }

    /// The node called `name` (any of its names).
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.is_called(name))
    }
}

/// A connection of this node, seen from here.
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    /// Index of the peer in [`Resource::nodes`].
    pub index: usize,
    /// The peer.
    pub node: &'a Node,
    /// The connection.
    pub connection: &'a Connection,
    /// Where the connection may run; at least one.
    pub paths: Vec<PeerPath>,
}

/// The two ends of a path, seen from this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerPath {
    /// This node's address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
}

/// A node of a resource: an `on` or `floating` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its host name; for a `floating` section the address.
    pub name: String,
    /// Further host names of the same section.
    pub aliases: Vec<String>,
    /// True for a `floating` section.
    pub floating: bool,
    /// Its id, 0..=31, written or assigned.
    pub node_id: u8,
    /// Its address; if only its connections have addresses, the first of them.
    pub address: SocketAddr,
    /// Its volumes, by ascending number.
    pub volumes: Vec<Volume>,
    /// Explicit `options` of the section.
    pub options: Settings,
}

impl Node {
    /// True if `name` is one of its names.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// A volume on one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Its number within the resource.
    pub number: u16,
    /// The kernel device that it appears as; `None`: reached over NBD alone.
    pub device: Option<Device>,
    /// Where its data is.
    pub disk: DiskSource,
    /// Where its metadata is.
    pub meta_disk: MetaDisk,
    /// Its options.
    pub options: DiskOptions,
    /// Explicit disk options of the volume itself and of the node's section.
    pub settings: Settings,
}

/// `device`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Device {
    /// Its minor: `/dev/nbdN`; `/dev/drbdN` in a file means the same N.
    pub minor: u32,
    /// A further name below `/dev`, if one was written that is not just the minor.
    pub name: Option<String>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "/dev/{name} minor {}", self.minor),
            None => write!(f, "minor {}", self.minor),
        }
    }
}

/// `disk`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum DiskSource {
    /// A block device or a regular file.
    Path(PathBuf),
    /// The node has no disk for this volume, on purpose.
    None,
}

/// `meta-disk`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum MetaDisk {
    /// At the end of the disk.
    Internal,
    /// A device or file for this volume alone.
    External {
        /// The device or file.
        path: PathBuf,
    },
    /// A slot of 128 MiB.
    Indexed {
        /// The device or file.
        path: PathBuf,
        /// The slot, from 0.
        index: u32,
    },
}

/// A connection between two nodes.
#[derive(Clone, PartialEq, Debug)]
pub struct Connection {
    /// Indexes of its ends in [`Resource::nodes`].
    pub nodes: [usize; 2],
    /// Where it may run; at least one.
    pub paths: Vec<ConnectionPath>,
    /// Its options.
    pub net: NetOptions,
    /// Options of each volume on this connection, by ascending number.
    pub peer_devices: Vec<PeerDevice>,
    /// True if no `connection` section says so, but there are just two nodes.
    pub implicit: bool,
    /// Explicit `net` options of the connection.
    pub net_settings: Settings,
    /// Explicit `disk` options of the connection.
    pub disk_settings: Settings,
}

/// The addresses of the two ends of a path, in the order of [`Connection::nodes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionPath {
    /// The addresses.
    pub addresses: [SocketAddr; 2],
}

/// A volume on one connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerDevice {
    /// The volume's number.
    pub volume: u16,
    /// Its options; where the two nodes' sections differ, those of this node count (of the first end, if neither is this node).
    pub options: PeerDeviceOptions,
    /// Explicit `disk` options of `connection { volume N { disk { } } }`.
    pub settings: Settings,
}
