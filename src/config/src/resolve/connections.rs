//! Owns who is connected to whom, over which addresses, and with which options.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Claim, Claimed, Resolver};
use crate::error::{ConfigError, ErrorKind, did_you_mean};
use crate::lexer::Word;
use crate::model::{Connection, ConnectionPath, Node, PeerDevice};
use crate::raw::{RawConnection, RawEnd};
use crate::section::Sections;
use crate::settings::Settings;
use crate::source::Location;
use crate::typed::{
    AfterSplitBrain0Primaries, Fencing, NetOptions, OnCongestion, PeerDeviceOptions, Protocol,
};

/// Milliseconds as seconds with one decimal.
fn tenths(milliseconds: u64) -> String {
    format!("{}.{}", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// Two nodes that are connected; `paths` is empty if the nodes' own addresses count.
pub(super) struct Pair<'a> {
    pub(super) nodes: [usize; 2],
    paths: Vec<[&'a RawEnd; 2]>,
    raw: Option<&'a RawConnection>,
}

impl<'a> Resolver<'a> {
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
    pub(super) fn connections(&self) -> Result<Vec<Pair<'a>>, ConfigError> {
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
    pub(super) fn addresses(&self, pairs: &[Pair<'_>]) -> Result<Vec<SocketAddr>, ConfigError> {
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

    pub(super) fn connection(
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
