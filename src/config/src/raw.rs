//! Owns the step from statements to what a `resource` or `common` section says, before anything is inherited or looked up.
//!
//! Here words get their meaning one statement at a time; whatever needs a second statement (a host's name in a connection,
//! a default from `common`) is left to `resolve`.

mod connection;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::error::{ConfigError, ErrorKind};
use crate::lexer::Word;
use crate::limits::{MAX_NODES, MAX_VOLUMES};
use crate::model::{Device, DiskSource, MetaDisk};
use crate::options::Section;
use crate::place;
use crate::section::{
    Findings, Sections, bad_value, no_block, no_more_words, one_argument, only_block, some_block,
    unknown_word,
};
use crate::settings::Settings;
use crate::source::Location;
use crate::tree::{Block, Statement, title};

pub(crate) use connection::{RawConnection, RawEnd};

/// A thing and where it was written.
pub(crate) type At<T> = (T, Location);

#[derive(Debug)]
pub(crate) struct RawResource {
    pub(crate) name: Word,
    /// Where the statement begins.
    pub(crate) at: Location,
    pub(crate) template_file: Option<Word>,
    /// What `template_file` holds; read by the loader.
    pub(crate) template: Option<Sections>,
    pub(crate) sections: Sections,
    pub(crate) volumes: RawVolumes,
    pub(crate) hosts: Vec<RawHost>,
    pub(crate) connections: Vec<RawConnection>,
    pub(crate) stacked: bool,
}

#[derive(Debug, Default)]
pub(crate) struct RawVolumes {
    pub(crate) by_number: BTreeMap<u16, RawVolume>,
    /// Where the first `device`, `disk` or `meta-disk` without `volume` is.
    pub(crate) implicit: Option<Location>,
}

#[derive(Debug)]
pub(crate) struct RawVolume {
    pub(crate) at: Location,
    pub(crate) device: Option<At<Device>>,
    pub(crate) disk: Option<At<DiskSource>>,
    pub(crate) meta_disk: Option<At<MetaDisk>>,
    pub(crate) options: Settings,
}

#[derive(Debug)]
pub(crate) struct RawHost {
    pub(crate) names: Vec<Word>,
    pub(crate) floating: bool,
    pub(crate) at: Location,
    pub(crate) node_id: Option<At<u8>>,
    pub(crate) address: Option<At<SocketAddr>>,
    pub(crate) volumes: RawVolumes,
    pub(crate) sections: Sections,
}

/// Reads the block of `common`, or of a template file's `common`.
pub(crate) fn common(block: &Block, findings: &mut Findings) -> Sections {
    let mut sections = Sections::default();
    for statement in &block.statements {
        let result = match option_section(statement, &mut sections, findings) {
            Some(result) => result,
            None if statement.keyword().is("skip") => Ok(()),
            None => {
                let mut error =
                    unknown_word(statement.keyword(), "in section `common`", COMMON_WORDS);
                if RESOURCE_WORDS.contains(&statement.keyword().text.as_str()) {
                    error.notes.insert(
                        0,
                        format!("`{}` belongs in a `resource`", statement.keyword().text),
                    );
                }
                Err(error)
            }
        };
        if let Err(error) = result {
            findings.error(error);
        }
        if findings.full() {
            break;
        }
    }
    sections
}

const COMMON_WORDS: &[&str] = &[
    "disk", "handlers", "net", "options", "protocol", "proxy", "skip", "startup", "syncer",
];

const RESOURCE_WORDS: &[&str] = &[
    "connection",
    "connection-mesh",
    "device",
    "disk",
    "flexible-meta-disk",
    "floating",
    "handlers",
    "meta-disk",
    "net",
    "on",
    "options",
    "protocol",
    "proxy",
    "skip",
    "stacked-on-top-of",
    "startup",
    "syncer",
    "template-file",
    "volume",
];

const HOST_WORDS: &[&str] = &[
    "address",
    "device",
    "disk",
    "flexible-meta-disk",
    "meta-disk",
    "node-id",
    "options",
    "proxy",
    "skip",
    "volume",
];

const VOLUME_WORDS: &[&str] = &["device", "disk", "flexible-meta-disk", "meta-disk", "skip"];

/// Reads an option section that `common`, `resource` and others share; `None` if the statement is something else.
fn option_section(
    statement: &Statement,
    sections: &mut Sections,
    findings: &mut Findings,
) -> Option<Result<(), ConfigError>> {
    let word = statement.keyword();
    if word.quoted {
        return None;
    }
    let section = match word.text.as_str() {
        "net" => Section::Net,
        "disk" => Section::Disk,
        "options" => Section::Options,
        "startup" => Section::Startup,
        "handlers" => Section::Handlers,
        "protocol" => return Some(sections.read_protocol(statement, findings)),
        "syncer" => {
            return Some(only_block(statement).map(|block| sections.read_syncer(block, findings)));
        }
        "proxy" => {
            findings.ignore("proxy", &word.at);
            return Some(some_block(statement).map(|_| ()));
        }
        _ => return None,
    };
    Some(only_block(statement).map(|block| sections.read(section, block, false, findings)))
}

/// Reads the block of `resource NAME`.
pub(crate) fn resource(
    at: Location,
    name: Word,
    block: &Block,
    findings: &mut Findings,
) -> RawResource {
    let mut raw = RawResource {
        name,
        at,
        template_file: None,
        template: None,
        sections: Sections::default(),
        volumes: RawVolumes::default(),
        hosts: Vec::new(),
        connections: Vec::new(),
        stacked: false,
    };
    for statement in &block.statements {
        if let Err(error) = resource_statement(&mut raw, statement, findings) {
            findings.error(error);
        }
        if findings.full() {
            break;
        }
    }
    raw
}

fn resource_statement(
    raw: &mut RawResource,
    statement: &Statement,
    findings: &mut Findings,
) -> Result<(), ConfigError> {
    let word = statement.keyword();
    match word.text.as_str() {
        "skip" => Ok(()),
        "template-file" => {
            let file = one_argument(statement, "a file name")?;
            if let Some(earlier) = &raw.template_file {
                return Err(twice("template-file", &word.at, &earlier.at));
            }
            raw.template_file = Some(file.clone());
            Ok(())
        }
        "device" | "meta-disk" | "flexible-meta-disk" | "volume" => {
            volume_statement(&mut raw.volumes, statement, findings)
        }
        "disk" if statement.block.is_none() => {
            volume_statement(&mut raw.volumes, statement, findings)
        }
        "on" | "floating" => {
            let host = host(statement, findings)?;
            if raw.hosts.len() >= MAX_NODES {
                return Err(ConfigError::at(
                    ErrorKind::Value,
                    &word.at,
                    format!("more than {MAX_NODES} nodes"),
                ));
            }
            raw.hosts.push(host);
            Ok(())
        }
        "connection" | "connection-mesh" => {
            let connection = connection::connection(statement, findings)?;
            if raw.connections.len() >= MAX_NODES * MAX_NODES {
                return Err(ConfigError::at(
                    ErrorKind::Value,
                    &word.at,
                    "too many connections",
                ));
            }
            raw.connections.push(connection);
            Ok(())
        }
        "stacked-on-top-of" => {
            if statement.words.len() < 2 {
                return Err(ConfigError::at(
                    ErrorKind::Missing,
                    &word.at.just_after(),
                    "`stacked-on-top-of` needs a resource",
                ));
            }
            no_more_words(statement, 2)?;
            some_block(statement)?;
            findings.ignore("stacked-on-top-of", &word.at);
            raw.stacked = true;
            Ok(())
        }
        _ => option_section(statement, &mut raw.sections, findings).unwrap_or_else(|| {
            Err(unknown_word(
                word,
                &format!("in `resource {}`", raw.name.text),
                RESOURCE_WORDS,
            ))
        }),
    }
}

fn twice(what: &str, at: &Location, earlier: &Location) -> ConfigError {
    ConfigError::at(ErrorKind::Conflict, at, format!("`{what}` stands twice"))
        .note(format!("first at {}", earlier.position()))
}

/// `volume N { … }`, or `device`, `disk`, `meta-disk` of the implicit volume 0.
fn volume_statement(
    volumes: &mut RawVolumes,
    statement: &Statement,
    findings: &mut Findings,
) -> Result<(), ConfigError> {
    let word = statement.keyword();
    if !word.is("volume") {
        if volumes.implicit.is_none()
            && let Some(explicit) = volumes.by_number.values().next()
        {
            return Err(ConfigError::at(
                ErrorKind::Conflict,
                &word.at,
                format!(
                    "`{}` outside of `volume` cannot be mixed with `volume` sections",
                    word.text
                ),
            )
            .note(format!(
                "the first `volume` is at {}",
                explicit.at.position()
            )));
        }
        volumes.implicit.get_or_insert_with(|| word.at.clone());
        let volume = volumes
            .by_number
            .entry(0)
            .or_insert_with(|| RawVolume::new(word.at.clone()));
        return volume.place(statement);
    }
    let number = place::volume_number(statement)?;
    let block = some_block(statement)?;
    if let Some(implicit) = &volumes.implicit {
        return Err(ConfigError::at(
            ErrorKind::Conflict,
            &word.at,
            "`volume` sections cannot be mixed with `device`, `disk` or `meta-disk` outside of them",
        )
        .note(format!("the first of those is at {}", implicit.position())));
    }
    if let Some(earlier) = volumes.by_number.get(&number) {
        return Err(twice(&format!("volume {number}"), &word.at, &earlier.at));
    }
    if volumes.by_number.len() >= MAX_VOLUMES {
        return Err(ConfigError::at(
            ErrorKind::Value,
            &word.at,
            format!("more than {MAX_VOLUMES} volumes"),
        ));
    }
    let mut volume = RawVolume::new(word.at.clone());
    let mut sections = Sections::default();
    for inner in &block.statements {
        let word = inner.keyword();
        let result = match word.text.as_str() {
            "skip" => Ok(()),
            "disk" if inner.block.is_some() => {
                only_block(inner).map(|block| sections.read(Section::Disk, block, false, findings))
            }
            "device" | "disk" | "meta-disk" | "flexible-meta-disk" => volume.place(inner),
            _ => Err(unknown_word(
                word,
                &format!("in `volume {number}`"),
                VOLUME_WORDS,
            )),
        };
        if let Err(error) = result {
            findings.error(error);
        }
    }
    volume.options = sections.disk;
    reject_moved(&sections.net, "a volume", findings);
    volumes.by_number.insert(number, volume);
    Ok(())
}

/// `fencing` in a `disk` section means the `net` section, which a single volume or node does not have.
fn reject_moved(net: &Settings, owner: &str, findings: &mut Findings) {
    for (name, setting) in net.iter() {
        findings.error(
            ConfigError::at(
                ErrorKind::UnknownWord,
                &setting.at,
                format!("`{name}` cannot be set for {owner}"),
            )
            .note("move it to the `net` section of the resource or of the connection"),
        );
    }
}

impl RawVolume {
    fn new(at: Location) -> Self {
        RawVolume {
            at,
            device: None,
            disk: None,
            meta_disk: None,
            options: Settings::default(),
        }
    }

    /// `device`, `disk PATH` or `meta-disk`.
    fn place(&mut self, statement: &Statement) -> Result<(), ConfigError> {
        let at = &statement.keyword().at;
        let value_at = statement.words.get(1).map_or(at, |word| &word.at).clone();
        match statement.keyword().text.as_str() {
            "device" => set(
                &mut self.device,
                place::device(statement)?,
                value_at,
                "device",
                at,
            ),
            "disk" => set(
                &mut self.disk,
                place::disk(statement)?,
                value_at,
                "disk",
                at,
            ),
            _ => set(
                &mut self.meta_disk,
                place::meta_disk(statement)?,
                value_at,
                "meta-disk",
                at,
            ),
        }
    }
}

fn set<T>(
    slot: &mut Option<At<T>>,
    value: T,
    value_at: Location,
    what: &str,
    at: &Location,
) -> Result<(), ConfigError> {
    if let Some((_, earlier)) = slot {
        return Err(twice(what, at, earlier));
    }
    *slot = Some((value, value_at));
    Ok(())
}

/// `on NAME… { … }` or `floating [ipv4|ipv6] IP:PORT { … }`.
fn host(statement: &Statement, findings: &mut Findings) -> Result<RawHost, ConfigError> {
    let word = statement.keyword();
    let floating = word.is("floating");
    if statement.words.len() < 2 {
        let what = if floating {
            "`floating` needs IP:PORT"
        } else {
            "`on` needs a host name"
        };
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &word.at.just_after(),
            what,
        ));
    }
    let block = some_block(statement)?;
    let mut host = RawHost {
        names: Vec::new(),
        floating,
        at: word.at.clone(),
        node_id: None,
        address: None,
        volumes: RawVolumes::default(),
        sections: Sections::default(),
    };
    if floating {
        let address = place::address(word, statement.arguments())?;
        let place = &statement.words[1];
        host.address = Some((address, place.at.clone()));
        host.names.push(Word {
            text: address.to_string(),
            ..place.clone()
        });
    } else {
        for name in statement.arguments() {
            if name.text.is_empty()
                || name.text.contains(['/', ':'])
                || name.text.chars().any(char::is_control)
            {
                return Err(bad_value(name, format!("`{}` is not a host name", name.text.escape_default()))
                    .note("write the name that `uname -n` prints on that node; for an address use `floating`"));
            }
            host.names.push(name.clone());
        }
    }
    let owner = title(&statement.words);
    for inner in &block.statements {
        if let Err(error) = host_statement(&mut host, &owner, inner, findings) {
            findings.error(error);
        }
    }
    let net = std::mem::take(&mut host.sections.net);
    reject_moved(&net, "one node", findings);
    Ok(host)
}

fn host_statement(
    host: &mut RawHost,
    owner: &str,
    statement: &Statement,
    findings: &mut Findings,
) -> Result<(), ConfigError> {
    let word = statement.keyword();
    match word.text.as_str() {
        "skip" => Ok(()),
        "address" => {
            no_block(statement)?;
            let address = place::address(word, statement.arguments())?;
            if host.floating {
                return Err(ConfigError::at(
                    ErrorKind::Conflict,
                    &word.at,
                    "`floating` already says the address",
                )
                .note("remove this line"));
            }
            set(
                &mut host.address,
                address,
                statement.words[1].at.clone(),
                "address",
                &word.at,
            )
        }
        "node-id" => {
            let id = place::node_id(statement)?;
            set(
                &mut host.node_id,
                id,
                statement.words[1].at.clone(),
                "node-id",
                &word.at,
            )
        }
        "disk" if statement.block.is_some() => only_block(statement)
            .map(|block| host.sections.read(Section::Disk, block, false, findings)),
        "options" => only_block(statement)
            .map(|block| host.sections.read(Section::Options, block, false, findings)),
        "proxy" => {
            findings.ignore("proxy", &word.at);
            some_block(statement).map(|_| ())
        }
        "device" | "disk" | "meta-disk" | "flexible-meta-disk" | "volume" => {
            volume_statement(&mut host.volumes, statement, findings)
        }
        _ => Err(unknown_word(word, &format!("in `{owner}`"), HOST_WORDS)),
    }
}
