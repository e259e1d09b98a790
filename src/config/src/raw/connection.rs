//! Owns what `connection`, `connection-mesh`, `path` and `host` say.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::twice;
use crate::error::{ConfigError, ErrorKind};
use crate::lexer::Word;
use crate::limits::{MAX_NODES, MAX_VOLUMES};
use crate::options::Section;
use crate::place;
use crate::section::{
    Findings, Sections, bad_value, no_block, no_more_words, only_block, some_block, unknown_word,
};
use crate::settings::Settings;
use crate::source::Location;
use crate::tree::Statement;

/// `connection` or `connection-mesh`.
#[derive(Debug)]
pub(crate) struct RawConnection {
    pub(crate) at: Location,
    pub(crate) mesh: bool,
    /// The two ends of a connection that has no `path`, or the hosts of a mesh.
    pub(crate) ends: Vec<RawEnd>,
    pub(crate) paths: Vec<[RawEnd; 2]>,
    pub(crate) sections: Sections,
    pub(crate) volumes: BTreeMap<u16, (Settings, Location)>,
}

/// `host NAME [address IP:PORT] [port N];`
#[derive(Debug, Clone)]
pub(crate) struct RawEnd {
    pub(crate) host: Word,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) port: Option<u16>,
}

const CONNECTION_WORDS: &[&str] = &[
    "disk", "host", "net", "path", "protocol", "proxy", "skip", "volume",
];

const MESH_WORDS: &[&str] = &[
    "disk", "hosts", "net", "protocol", "proxy", "skip", "volume",
];

/// `connection [NAME] { … }` or `connection-mesh { … }`.
pub(super) fn connection(
    statement: &Statement,
    findings: &mut Findings,
) -> Result<RawConnection, ConfigError> {
    let word = statement.keyword();
    let mesh = word.is("connection-mesh");
    if mesh {
        no_more_words(statement, 1)?;
    } else {
        no_more_words(statement, 2)?;
        if let Some(name) = statement.words.get(1) {
            findings.ignore("connection NAME", &name.at);
        }
    }
    let block = some_block(statement)?;
    let mut connection = RawConnection {
        at: word.at.clone(),
        mesh,
        ends: Vec::new(),
        paths: Vec::new(),
        sections: Sections::default(),
        volumes: BTreeMap::new(),
    };
    for inner in &block.statements {
        if let Err(error) = connection_statement(&mut connection, inner, findings) {
            findings.error(error);
        }
        if findings.full() {
            break;
        }
    }
    Ok(connection)
}

fn connection_statement(
    connection: &mut RawConnection,
    statement: &Statement,
    findings: &mut Findings,
) -> Result<(), ConfigError> {
    let word = statement.keyword();
    match word.text.as_str() {
        "skip" => Ok(()),
        "hosts" if connection.mesh => {
            no_block(statement)?;
            for host in statement.arguments() {
                if connection.ends.len() >= MAX_NODES {
                    return Err(bad_value(host, format!("more than {MAX_NODES} hosts")));
                }
                connection.ends.push(RawEnd {
                    host: host.clone(),
                    address: None,
                    port: None,
                });
            }
            Ok(())
        }
        "host" if !connection.mesh => {
            let end = end(statement, findings)?;
            if connection.ends.len() == 2 {
                return Err(ConfigError::at(
                    ErrorKind::Conflict,
                    &word.at,
                    "a connection has two hosts, this is the third",
                ));
            }
            connection.ends.push(end);
            Ok(())
        }
        "path" if !connection.mesh => {
            let path = path(statement, findings)?;
            if connection.paths.len() >= 16 {
                return Err(ConfigError::at(
                    ErrorKind::Value,
                    &word.at,
                    "more than 16 paths",
                ));
            }
            connection.paths.push(path);
            Ok(())
        }
        "net" => only_block(statement).map(|block| {
            connection
                .sections
                .read(Section::Net, block, false, findings)
        }),
        "protocol" => connection.sections.read_protocol(statement, findings),
        "disk" => only_block(statement).map(|block| {
            connection
                .sections
                .read(Section::Disk, block, true, findings)
        }),
        "proxy" => {
            findings.ignore("proxy", &word.at);
            some_block(statement).map(|_| ())
        }
        "volume" => {
            let number = place::volume_number(statement)?;
            let block = some_block(statement)?;
            let mut sections = Sections::default();
            for inner in &block.statements {
                let keyword = inner.keyword();
                let result = match keyword.text.as_str() {
                    "disk" => only_block(inner)
                        .map(|block| sections.read(Section::Disk, block, true, findings)),
                    "skip" => Ok(()),
                    _ => Err(unknown_word(
                        keyword,
                        "in `volume` of a connection",
                        &["disk", "skip"],
                    )),
                };
                if let Err(error) = result {
                    findings.error(error);
                }
            }
            if let Some((_, earlier)) = connection.volumes.get(&number) {
                return Err(twice(&format!("volume {number}"), &word.at, earlier));
            }
            if connection.volumes.len() >= MAX_VOLUMES {
                return Err(ConfigError::at(
                    ErrorKind::Value,
                    &word.at,
                    format!("more than {MAX_VOLUMES} volumes"),
                ));
            }
            connection
                .volumes
                .insert(number, (sections.disk, word.at.clone()));
            Ok(())
        }
        _ if connection.mesh => Err(unknown_word(word, "in `connection-mesh`", MESH_WORDS)),
        _ => Err(unknown_word(word, "in `connection`", CONNECTION_WORDS)),
    }
}

/// `path { host A …; host B …; }`.
fn path(statement: &Statement, findings: &mut Findings) -> Result<[RawEnd; 2], ConfigError> {
    let mut ends = Vec::new();
    for inner in &only_block(statement)?.statements {
        match inner.keyword().text.as_str() {
            "host" => ends.push(end(inner, findings)?),
            _ => return Err(unknown_word(inner.keyword(), "in `path`", &["host"])),
        }
    }
    <[RawEnd; 2]>::try_from(ends).map_err(|ends| {
        ConfigError::at(
            ErrorKind::Missing,
            statement.at(),
            format!("a path has two hosts, this one has {}", ends.len()),
        )
        .note("write `host A address IP:PORT; host B address IP:PORT;`")
    })
}

/// `host NAME [address [ipv4|ipv6] IP:PORT] [port N] [via proxy on HOST { … }]`.
fn end(statement: &Statement, findings: &mut Findings) -> Result<RawEnd, ConfigError> {
    let Some(host) = statement.words.get(1) else {
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &statement.at().just_after(),
            "`host` needs a name",
        ));
    };
    let mut end = RawEnd {
        host: host.clone(),
        address: None,
        port: None,
    };
    let mut rest = &statement.words[2..];
    if let Some(at) = rest.iter().position(|word| word.is("via")) {
        findings.ignore("proxy", &rest[at].at);
        rest = &rest[..at];
    } else {
        no_block(statement)?;
    }
    match rest.first().map(|word| word.text.as_str()) {
        None => {}
        Some("address") => end.address = Some(place::address(&rest[0], &rest[1..])?),
        Some("port") => {
            let Some(port) = rest.get(1) else {
                return Err(ConfigError::at(
                    ErrorKind::Missing,
                    &rest[0].at.just_after(),
                    "`port` needs a number",
                ));
            };
            end.port = Some(place::number(port, "port", 1, 65_535)? as u16);
            no_more_words(statement, 4)?;
        }
        Some(_) => {
            no_more_words(statement, 2)?;
        }
    }
    Ok(end)
}
