//! Owns the step from what a resource says to what it means: inheritance, node ids, connections, addresses, and the checks
//! that concern one resource alone.
//!
//! Inheritance is per option, weakest first. disk: common, resource, volume, `on` section, volume in the `on` section. net:
//! common, resource, connection. Resync options of a volume on a connection: as disk of this node's volume, then connection,
//! then volume of the connection. options: common, resource, this node's `on` section.

mod connections;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::error::{ConfigError, ErrorKind};
use crate::lexer::Word;
use crate::limits::MAX_VOLUMES;
use crate::model::{DiskSource, MetaDisk, Node, Resource, Volume};
use crate::raw::{RawHost, RawResource, RawVolume};
use crate::section::{Findings, Sections};
use crate::settings::Settings;
use crate::source::Location;
use crate::typed::{DiskOptions, Handlers, ResourceOptions, StartupOptions};

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
}
