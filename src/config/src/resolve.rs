//! Owns the step from what a resource says to what it means: inheritance, node ids, connections, addresses, and the checks
//! that concern one resource alone.
//!
//! Inheritance is per option, weakest first. disk: common, resource, volume, `on` section, volume in the `on` section. net:
//! common, resource, connection. Resync options of a volume on a connection: as disk of this node's volume, then connection,
//! then volume of the connection. options: common, resource, this node's `on` section.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::error::{ConfigError, ErrorKind, did_you_mean};
use crate::lexer::Word;
use crate::limits::MAX_VOLUMES;
use crate::model::{
    Connection, ConnectionPath, DiskSource, MetaDisk, Node, PeerDevice, Resource, Volume,
};
use crate::raw::{RawConnection, RawEnd, RawHost, RawResource, RawVolume};
use crate::section::{Findings, Sections};
use crate::settings::Settings;
use crate::source::Location;
use crate::typed::{
    AfterSplitBrain0Primaries, DiskOptions, Fencing, Handlers, NetOptions, OnCongestion,
    PeerDeviceOptions, Protocol, ResourceOptions, StartupOptions,
};

/// Something that one resource alone may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Claimed {
    /// A device minor on a node.
    Minor(String, u32),
    /// A disk or metadata device on a node, or one slot of it.
    Disk(String, PathBuf, Option<u32>),
    /// An address; the node it belongs to.
    Address(SocketAddr, usize),
}

/// What a resource uses, and where it says so.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) what: Claimed,
    pub(crate) at: Location,
}

/// Who this node is.
pub(crate) struct Host<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: &'a [IpAddr],
}

struct Resolver<'a> {
    raw: &'a RawResource,
    sections: Sections,
    host: &'a Host<'a>,
    findings: &'a mut Findings,
    claims: Vec<Claim>,
}

/// Resolves `raw` with the defaults of `common`. `None` if anything is wrong; `findings` tell what.
pub(crate) fn resolve(
    raw: &RawResource,
    common: &Sections,
    host: &Host<'_>,
    findings: &mut Findings,
) -> Option<(Resource, Vec<Claim>)> {
    let sections = common.overridden_by(&raw.sections);
    let mut resolver = Resolver {
        raw,
        sections,
        host,
        findings,
        claims: Vec::new(),
    };
    let resource = resolver.run();
    let claims = resolver.claims;
    match resource {
        Ok(resource) if findings.errors.is_empty() => Some((resource, claims)),
        Ok(_) => None,
        Err(error) => {
            findings.error(error);
            None
        }
    }
}

impl<'a> Resolver<'a> {
    fn run(&mut self) -> Result<Resource, ConfigError> {
        if self.raw.hosts.is_empty() {
            return Err(self
                .missing("has no `on` section")
                .note("write `on HOST { … }` for each node"));
        }
        self.check_names()?;
        let local = self.local()?;
        let ends = self.connections()?;
        let addresses = self.addresses(&ends)?;
        let ids = self.node_ids(&addresses)?;
        let mut nodes = Vec::new();
        for (index, raw) in self.raw.hosts.iter().enumerate() {
            nodes.push(self.node(index, raw, ids[index], addresses[index])?);
        }
        self.check_volumes(&nodes)?;
        let side = local.unwrap_or(0);
        let mut connections = Vec::new();
        for pair in &ends {
            connections.push(self.connection(pair, &nodes, local)?);
        }
        self.check_addresses();
        let options = self
            .sections
            .options
            .overridden_by(&self.raw.hosts[side].sections.options);
        Ok(Resource {
            name: self.raw.name.text.clone(),
            position: self.raw.at.position(),
            local,
            connections,
            inherits_common: self.raw.template.is_none(),
            options: ResourceOptions::new(if local.is_some() {
                &options
            } else {
                &self.sections.options
            }),
            handlers: Handlers::new(&self.sections.handlers),
            startup: StartupOptions::new(&self.sections.startup),
            settings: vec![
                ("options", self.sections.options.clone()),
                ("net", self.sections.net.clone()),
                ("disk", self.sections.disk.clone()),
                ("startup", self.sections.startup.clone()),
                ("handlers", self.sections.handlers.clone()),
            ],
            nodes,
        })
    }

    fn missing(&self, what: &str) -> ConfigError {
        ConfigError::at(
            ErrorKind::Missing,
            &self.raw.at,
            format!("resource `{}` {what}", self.raw.name.text),
        )
    }

    fn check_names(&self) -> Result<(), ConfigError> {
        let mut seen: BTreeMap<&str, &Word> = BTreeMap::new();
        for name in self.raw.hosts.iter().flat_map(|host| &host.names) {
            if let Some(earlier) = seen.insert(&name.text, name) {
                return Err(ConfigError::at(
                    ErrorKind::Conflict,
                    &name.at,
                    format!("node `{}` has two sections", name.text),
                )
                .note(format!("first at {}", earlier.at.position())));
            }
        }
        Ok(())
    }

    /// The section for this node: a host name that equals, else a floating address that is configured here.
    fn local(&self) -> Result<Option<usize>, ConfigError> {
        let hosts = &self.raw.hosts;
        let named = |host: &RawHost| {
            host.names.iter().any(|name| name.text == self.host.name)
                || host.floating
                    && host
                        .address
                        .as_ref()
                        .is_some_and(|(address, _)| address.ip().to_string() == self.host.name)
        };
        if let Some(index) = hosts.iter().position(named) {
            return Ok(Some(index));
        }
        let here = |host: &RawHost| {
            host.floating
                && host
                    .address
                    .as_ref()
                    .is_some_and(|(address, _)| self.host.addresses.contains(&address.ip()))
        };
        let mut candidates = hosts.iter().enumerate().filter(|(_, host)| here(host));
        let Some((index, first)) = candidates.next() else {
            return Ok(None);
        };
        if let Some((_, second)) = candidates.next() {
            return Err(ConfigError::at(
                ErrorKind::Conflict,
                &second.at,
                "two `floating` sections have an address of this host",
            )
            .note(format!("the other one is at {}", first.at.position()))
            .note("tell which node this is with --node IP:PORT"));
        }
        Ok(Some(index))
    }

    fn host_index(&self, word: &Word) -> Result<usize, ConfigError> {
        let hosts = &self.raw.hosts;
        if let Some(index) = hosts
            .iter()
            .position(|host| host.names.iter().any(|name| name.text == word.text))
        {
            return Ok(index);
        }
        let names: Vec<&str> = hosts
            .iter()
            .map(|host| host.names[0].text.as_str())
            .collect();
        let shown: String = word.text.chars().take(64).collect();
        let mut error = ConfigError::at(
            ErrorKind::Value,
            &word.at,
            format!("host `{shown}` has no `on` section in this resource"),
        );
        if let Some(better) = did_you_mean(&word.text, names.iter().copied()) {
            error = error.note(format!("did you mean `{better}`?"));
        }
        Err(error.note(format!("hosts: {}", names.join(", "))))
    }

    /// Every pair of connected nodes with the section that says so.
    fn connections(&self) -> Result<Vec<Pair<'a>>, ConfigError> {
        let hosts = &self.raw.hosts;
        if self.raw.connections.is_empty() {
            return match hosts.len() {
                1 => Ok(Vec::new()),
                2 => Ok(vec![Pair {
                    nodes: [0, 1],
                    paths: Vec::new(),
                    raw: None,
                }]),
                count => Err(self
                    .missing(&format!("has {count} nodes, but no `connection`"))
                    .note("write `connection-mesh { hosts A B C; }` to connect all of them")),
            };
        }
        let mut pairs: Vec<Pair<'a>> = Vec::new();
        let mut known: BTreeMap<[usize; 2], &Location> = BTreeMap::new();
        for raw in &self.raw.connections {
            for pair in self.pairs_of(raw)? {
                let [a, b] = pair.nodes;
                let name = |index: usize| &hosts[index].names[0].text;
                if a == b {
                    return Err(ConfigError::at(
                        ErrorKind::Conflict,
                        &raw.at,
                        format!("`{}` is connected to itself", name(a)),
                    ));
                }
                if let Some(earlier) = known.insert([a.min(b), a.max(b)], &raw.at) {
                    let message = format!("`{}` and `{}` are connected twice", name(a), name(b));
                    return Err(ConfigError::at(ErrorKind::Conflict, &raw.at, message)
                        .note(format!("first at {}", earlier.position()))
                        .note("several routes are `path` sections of one connection"));
                }
                pairs.push(pair);
            }
        }
        Ok(pairs)
    }

    fn pairs_of(&self, raw: &'a RawConnection) -> Result<Vec<Pair<'a>>, ConfigError> {
        if raw.mesh {
            let indexes = raw
                .ends
                .iter()
                .map(|end| self.host_index(&end.host))
                .collect::<Result<Vec<_>, _>>()?;
            if indexes.len() < 2 {
                return Err(ConfigError::at(
                    ErrorKind::Missing,
                    &raw.at,
                    "`connection-mesh` needs two hosts or more",
                )
                .note("write `hosts A B C;`"));
            }
            let mut pairs = Vec::new();
            for (position, a) in indexes.iter().enumerate() {
                for b in &indexes[position + 1..] {
                    pairs.push(Pair {
                        nodes: [*a, *b],
                        paths: Vec::new(),
                        raw: Some(raw),
                    });
                }
            }
            return Ok(pairs);
        }
        if !raw.ends.is_empty() && !raw.paths.is_empty() {
            return Err(ConfigError::at(
                ErrorKind::Conflict,
                &raw.at,
                "a connection has either two `host` lines or `path` sections",
            ));
        }
        let paths: Vec<[&RawEnd; 2]> = match raw.ends.as_slice() {
            [a, b] => vec![[a, b]],
            [] if !raw.paths.is_empty() => raw.paths.iter().map(|[a, b]| [a, b]).collect(),
            ends => {
                let message = format!("a connection has two hosts, this one has {}", ends.len());
                return Err(ConfigError::at(ErrorKind::Missing, &raw.at, message)
                    .note("write `host A; host B;`"));
            }
        };
        let nodes = [
            self.host_index(&paths[0][0].host)?,
            self.host_index(&paths[0][1].host)?,
        ];
        let mut ordered = Vec::new();
        for [first, second] in paths {
            let ends = [
                self.host_index(&first.host)?,
                self.host_index(&second.host)?,
            ];
            if ends == nodes {
                ordered.push([first, second]);
            } else if [ends[1], ends[0]] == nodes {
                ordered.push([second, first]);
            } else {
                return Err(ConfigError::at(
                    ErrorKind::Conflict,
                    &first.host.at,
                    "all paths of a connection join the same two hosts",
                ));
            }
        }
        Ok(vec![Pair {
            nodes,
            paths: ordered,
            raw: Some(raw),
        }])
    }

    /// The address of one end of a path.
    fn end_address(&self, node: usize, end: Option<&RawEnd>) -> Result<SocketAddr, ConfigError> {
        let host = &self.raw.hosts[node];
        if let Some(address) = end.and_then(|end| end.address) {
            return Ok(address);
        }
        let Some((mut address, _)) = host.address else {
            let name = &host.names[0].text;
            return Err(ConfigError::at(
                ErrorKind::Missing,
                &host.at,
                format!("node `{name}` has no `address`"),
            )
            .note("write `address IP:PORT;` in its section"));
        };
        if let Some(port) = end.and_then(|end| end.port) {
            address.set_port(port);
        }
        Ok(address)
    }

    /// The address of each node: its own, or that of its first connection.
    fn addresses(&self, pairs: &[Pair<'_>]) -> Result<Vec<SocketAddr>, ConfigError> {
        (0..self.raw.hosts.len())
            .map(|node| {
                if self.raw.hosts[node].address.is_some() {
                    return self.end_address(node, None);
                }
                let end = pairs.iter().find_map(|pair| {
                    let side = pair.nodes.iter().position(|index| *index == node)?;
                    pair.paths.first().map(|path| path[side])
                });
                self.end_address(node, end)
            })
            .collect()
    }

    /// The ids that were written; two nodes without ids get 0 and 1 by ascending address, a single one gets 0.
    fn node_ids(&self, addresses: &[SocketAddr]) -> Result<Vec<u8>, ConfigError> {
        let hosts = &self.raw.hosts;
        if hosts.iter().all(|host| host.node_id.is_none()) {
            match addresses {
                [_] => return Ok(vec![0]),
                [a, b] => return Ok(if a <= b { vec![0, 1] } else { vec![1, 0] }),
                _ => {}
            }
        }
        let mut seen: BTreeMap<u8, &Location> = BTreeMap::new();
        let mut ids = Vec::new();
        for host in hosts {
            let Some((id, at)) = &host.node_id else {
                let name = &host.names[0].text;
                return Err(ConfigError::at(ErrorKind::Missing, &host.at, format!("node `{name}` has no `node-id`"))
                    .note("ids are assigned only if there are two nodes and none has one; write `node-id N;`, the same in every copy of the file"));
            };
            if let Some(earlier) = seen.insert(*id, at) {
                return Err(ConfigError::at(
                    ErrorKind::Conflict,
                    at,
                    format!("`node-id {id}` belongs to another node"),
                )
                .note(format!("first used at {}", earlier.position())));
            }
            ids.push(*id);
        }
        Ok(ids)
    }

    fn node(
        &mut self,
        index: usize,
        raw: &RawHost,
        node_id: u8,
        address: SocketAddr,
    ) -> Result<Node, ConfigError> {
        let names: Vec<String> = raw.names.iter().map(|name| name.text.clone()).collect();
        let mut numbers: BTreeSet<u16> = self.raw.volumes.by_number.keys().copied().collect();
        numbers.extend(raw.volumes.by_number.keys());
        if numbers.is_empty() {
            return Err(ConfigError::at(
                ErrorKind::Missing,
                &raw.at,
                format!("node `{}` has no volume", names[0]),
            )
            .note("write `disk PATH;` or `volume 0 { … }`"));
        }
        if numbers.len() > MAX_VOLUMES {
            return Err(ConfigError::at(
                ErrorKind::Value,
                &raw.at,
                format!("more than {MAX_VOLUMES} volumes"),
            ));
        }
        let mut volumes = Vec::new();
        for number in numbers {
            volumes.push(self.volume(raw, &names, number)?);
        }
        if let Some((own, at)) = &raw.address {
            self.claims.push(Claim {
                what: Claimed::Address(*own, index),
                at: at.clone(),
            });
        }
        Ok(Node {
            name: names[0].clone(),
            aliases: names[1..].to_vec(),
            floating: raw.floating,
            node_id,
            address,
            volumes,
            options: raw.sections.options.clone(),
        })
    }

    fn volume(
        &mut self,
        raw: &RawHost,
        names: &[String],
        number: u16,
    ) -> Result<Volume, ConfigError> {
        let outer = self.raw.volumes.by_number.get(&number);
        let inner = raw.volumes.by_number.get(&number);
        let at = inner.or(outer).map_or(&raw.at, |volume| &volume.at);
        let pick = |part: fn(&RawVolume) -> bool| inner.filter(|volume| part(volume)).or(outer);
        let device =
            pick(|volume| volume.device.is_some()).and_then(|volume| volume.device.clone());
        let disk = pick(|volume| volume.disk.is_some()).and_then(|volume| volume.disk.clone());
        let meta_disk =
            pick(|volume| volume.meta_disk.is_some()).and_then(|volume| volume.meta_disk.clone());
        let Some((disk, disk_at)) = disk else {
            let message = format!("volume {number} of node `{}` has no `disk`", names[0]);
            return Err(ConfigError::at(ErrorKind::Missing, at, message)
                .note("write `disk PATH;`, or `disk none;` for a node without data"));
        };
        for name in names {
            if let Some((device, at)) = &device {
                self.claims.push(Claim {
                    what: Claimed::Minor(name.clone(), device.minor),
                    at: at.clone(),
                });
            }
            let DiskSource::Path(path) = &disk else {
                continue;
            };
            self.claims.push(Claim {
                what: Claimed::Disk(name.clone(), path.clone(), None),
                at: disk_at.clone(),
            });
            let (path, index, at) = match &meta_disk {
                Some((MetaDisk::External { path }, at)) => (path, None, at),
                Some((MetaDisk::Indexed { path, index }, at)) => (path, Some(*index), at),
                Some((MetaDisk::Internal, _)) | None => continue,
            };
            self.claims.push(Claim {
                what: Claimed::Disk(name.clone(), path.clone(), index),
                at: at.clone(),
            });
        }
        if let Some((MetaDisk::Indexed { .. }, at)) = &meta_disk
            && self.raw.hosts.len() > 2
        {
            return Err(ConfigError::at(
                ErrorKind::Conflict,
                at,
                "an indexed meta-disk has room for one peer only",
            )
            .note("write `meta-disk internal;` or `meta-disk PATH;`"));
        }
        let outer_options = outer.map_or_else(Settings::default, |volume| volume.options.clone());
        let inner_options = inner.map_or_else(Settings::default, |volume| volume.options.clone());
        let settings = outer_options
            .overridden_by(&raw.sections.disk)
            .overridden_by(&inner_options);
        Ok(Volume {
            number,
            device: device.map(|(device, _)| device),
            disk,
            meta_disk: meta_disk.map_or(MetaDisk::Internal, |(meta_disk, _)| meta_disk),
            options: DiskOptions::new(&self.sections.disk.overridden_by(&settings)),
            settings,
        })
    }

    /// Every node has the same volumes.
    fn check_volumes(&self, nodes: &[Node]) -> Result<(), ConfigError> {
        let numbers = |node: &Node| {
            node.volumes
                .iter()
                .map(|volume| volume.number)
                .collect::<BTreeSet<_>>()
        };
        let first = numbers(&nodes[0]);
        for (node, raw) in nodes.iter().zip(&self.raw.hosts).skip(1) {
            let own = numbers(node);
            let Some(number) = own.symmetric_difference(&first).next() else {
                continue;
            };
            let (lacks, has) = if own.contains(number) {
                (&nodes[0], node)
            } else {
                (node, &nodes[0])
            };
            let message = format!(
                "volume {number} is on node `{}`, but not on node `{}`",
                has.name, lacks.name
            );
            return Err(
                ConfigError::at(ErrorKind::Missing, &raw.at, message).note(format!(
                    "write `volume {number} {{ disk none; }}` on a node that has no disk for it"
                )),
            );
        }
        Ok(())
    }

    /// Two nodes of the resource must not share an address.
    fn check_addresses(&mut self) {
        let mut seen: BTreeMap<SocketAddr, (usize, Location)> = BTreeMap::new();
        for claim in &self.claims {
            let Claimed::Address(address, node) = claim.what else {
                continue;
            };
            match seen.get(&address) {
                Some((owner, at)) if *owner != node => {
                    let name = &self.raw.hosts[*owner].names[0].text;
                    let message = format!("address {address} is already that of node `{name}`");
                    self.findings.error(
                        ConfigError::at(ErrorKind::Conflict, &claim.at, message)
                            .note(format!("first used at {}", at.position())),
                    );
                }
                Some(_) => {}
                None => {
                    seen.insert(address, (node, claim.at.clone()));
                }
            }
        }
    }

    fn connection(
        &mut self,
        pair: &Pair<'_>,
        nodes: &[Node],
        local: Option<usize>,
    ) -> Result<Connection, ConfigError> {
        let empty = Sections::default();
        let own = pair.raw.map_or(&empty, |raw| &raw.sections);
        let net_settings = self.sections.net.overridden_by(&own.net);
        let net = NetOptions::new(&net_settings);
        self.check_net(&net, &net_settings, nodes);
        let mut paths = Vec::new();
        for ends in pair
            .paths
            .iter()
            .map(|[a, b]| [Some(*a), Some(*b)])
            .chain(pair.paths.is_empty().then_some([None, None]))
        {
            let mut addresses = [SocketAddr::from(([0, 0, 0, 0], 0)); 2];
            for side in 0..2 {
                addresses[side] = self.end_address(pair.nodes[side], ends[side])?;
                if let Some(end) = ends[side] {
                    let claim = Claim {
                        what: Claimed::Address(addresses[side], pair.nodes[side]),
                        at: end.host.at.clone(),
                    };
                    self.claims.push(claim);
                }
            }
            if addresses[0].is_ipv4() != addresses[1].is_ipv4() {
                let at = ends[0].map_or(&self.raw.hosts[pair.nodes[0]].at, |end| &end.host.at);
                let message = format!(
                    "{} and {} are of different families",
                    addresses[0], addresses[1]
                );
                return Err(ConfigError::at(ErrorKind::Conflict, at, message)
                    .note("both ends of a path are ipv4, or both are ipv6"));
            }
            if addresses[0] == addresses[1] && ends[0].is_some() {
                let at = ends[1].map_or(&self.raw.at, |end| &end.host.at);
                return Err(ConfigError::at(
                    ErrorKind::Conflict,
                    at,
                    format!("both ends of the path have the address {}", addresses[0]),
                ));
            }
            paths.push(ConnectionPath { addresses });
        }
        let side = pair
            .nodes
            .iter()
            .position(|index| Some(*index) == local)
            .unwrap_or(0);
        let volumes = &nodes[pair.nodes[side]].volumes;
        if let Some(raw) = pair.raw {
            for (number, (_, at)) in &raw.volumes {
                if !volumes.iter().any(|volume| volume.number == *number) {
                    return Err(ConfigError::at(
                        ErrorKind::Value,
                        at,
                        format!("the resource has no volume {number}"),
                    ));
                }
            }
        }
        let none = Settings::default();
        let peer_devices = volumes
            .iter()
            .map(|volume| {
                let settings = pair
                    .raw
                    .and_then(|raw| raw.volumes.get(&volume.number))
                    .map_or(&none, |(settings, _)| settings);
                let all = self
                    .sections
                    .disk
                    .overridden_by(&volume.settings)
                    .overridden_by(&own.disk)
                    .overridden_by(settings);
                PeerDevice {
                    volume: volume.number,
                    options: PeerDeviceOptions::new(&all),
                    settings: settings.clone(),
                }
            })
            .collect();
        Ok(Connection {
            nodes: pair.nodes,
            paths,
            net,
            peer_devices,
            implicit: pair.raw.is_none(),
            net_settings: own.net.clone(),
            disk_settings: own.disk.clone(),
        })
    }

    /// Options of `net` that exclude each other.
    fn check_net(&mut self, net: &NetOptions, settings: &Settings, nodes: &[Node]) {
        let mut conflict = |name: &str, message: String, remedy: &str| {
            let at = settings
                .get(name)
                .map_or(&self.raw.at, |setting| &setting.at);
            let error = ConfigError::at(ErrorKind::Conflict, at, message).note(remedy);
            if !self.findings.errors.contains(&error) {
                self.findings.error(error);
            }
        };
        if net.allow_two_primaries && net.protocol != Protocol::C {
            let message = format!(
                "`allow-two-primaries` needs protocol C, this connection has {}",
                net.protocol
            );
            conflict("allow-two-primaries", message, "write `protocol C;`");
        }
        if net.fencing == Fencing::ResourceAndStonith && net.protocol == Protocol::A {
            conflict(
                "fencing",
                "`fencing resource-and-stonith` is not possible with protocol A".into(),
                "write `protocol C;` or `protocol B;`",
            );
        }
        if net.on_congestion != OnCongestion::Block && net.protocol != Protocol::A {
            let message = format!(
                "`on-congestion {}` is for protocol A only",
                net.on_congestion
            );
            conflict(
                "on-congestion",
                message,
                "remove it, or write `protocol A;`",
            );
        }
        for (limit, name) in [
            (net.connect_int_ms, "connect-int"),
            (net.ping_int_ms, "ping-int"),
        ] {
            if net.timeout_ms >= limit {
                let message = format!(
                    "`timeout` ({} s) must be shorter than `{name}` ({} s)",
                    tenths(net.timeout_ms),
                    tenths(limit)
                );
                let named = if settings.get("timeout").is_some() {
                    "timeout"
                } else {
                    name
                };
                conflict(
                    named,
                    message,
                    "`timeout` counts tenths of a second, the other seconds",
                );
            }
        }
        if let AfterSplitBrain0Primaries::DiscardNode(node) = &net.after_sb_0pri
            && !nodes.iter().any(|known| known.is_called(node))
        {
            let message =
                format!("`discard-node-{node}` names a node that the resource does not have");
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            conflict(
                "after-sb-0pri",
                message,
                &format!("nodes: {}", names.join(", ")),
            );
        }
    }
}

/// Milliseconds as seconds with one decimal.
fn tenths(milliseconds: u64) -> String {
    format!("{}.{}", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// Two nodes that are connected; `paths` is empty if the nodes' own addresses count.
struct Pair<'a> {
    nodes: [usize; 2],
    paths: Vec<[&'a RawEnd; 2]>,
    raw: Option<&'a RawConnection>,
}
