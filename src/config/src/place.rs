//! Owns the statements that say where things are: `device`, `disk`, `meta-disk`, `address`, `node-id`, `volume N`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Component, PathBuf};

use crate::error::{ConfigError, ErrorKind};
use crate::lexer::Word;
use crate::limits::{MAX_META_INDEX, MAX_MINORS, MAX_NODES, MAX_VOLUME_NUMBER};
use crate::model::{Device, DiskSource, MetaDisk};
use crate::section::{bad_value, no_block, no_more_words, one_argument};
use crate::tree::Statement;

/// `device /dev/drbdN;`, `device minor N;`, `device NAME minor N;`.
pub(crate) fn device(statement: &Statement) -> Result<Device, ConfigError> {
    no_block(statement)?;
    let arguments = statement.arguments();
    let Some(first) = arguments.first() else {
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &statement.at().just_after(),
            "`device` needs a name or a minor",
        )
        .note("write `device /dev/nbd0;` or `device minor 0;`"));
    };
    if first.is("minor") {
        let minor = minor(statement, 2)?;
        no_more_words(statement, 3)?;
        return Ok(Device { minor, name: None });
    }
    let implied = implied_minor(&first.text);
    let name = match implied {
        Some(_) => None,
        None => Some(device_name(first)?),
    };
    let minor = match arguments.get(1) {
        Some(word) if word.is("minor") => {
            let minor = minor(statement, 3)?;
            no_more_words(statement, 4)?;
            if implied.is_some_and(|implied| implied != minor) {
                return Err(bad_value(
                    &arguments[2],
                    format!("`{}` is not minor {minor}", first.text),
                )
                .note("write either the device or the minor"));
            }
            minor
        }
        _ => {
            no_more_words(statement, 2)?;
            implied.ok_or_else(|| {
                bad_value(
                    first,
                    format!("the name `{}` does not tell the minor", first.text),
                )
                .note(format!(
                    "write `device {} minor N;`, `device minor N;` or `device /dev/nbdN;`",
                    first.text
                ))
            })?
        }
    };
    if minor >= MAX_MINORS {
        return Err(bad_value(first, format!("minor {minor} is out of range"))
            .note(format!("allowed: 0..{}", MAX_MINORS - 1)));
    }
    Ok(Device { minor, name })
}

/// The minor in `/dev/drbdN`, `/dev/nbdN`, `/dev/qrbdN`.
fn implied_minor(text: &str) -> Option<u32> {
    let name = text.strip_prefix("/dev/")?;
    let digits = name
        .strip_prefix("drbd")
        .or_else(|| name.strip_prefix("nbd"))
        .or_else(|| name.strip_prefix("qrbd"))?;
    let plain =
        !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// A name for a link in /dev, with or without the leading directory.
fn device_name(word: &Word) -> Result<String, ConfigError> {
    let name = word.text.strip_prefix("/dev/").unwrap_or(&word.text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/+:@".contains(c);
    let parts_fine = name
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    if !parts_fine || !name.chars().all(plain) || name.len() > 128 {
        return Err(bad_value(
            word,
            format!(
                "`{}` is not a device name",
                word.text.chars().take(64).collect::<String>()
            ),
        )
        .note("write `device /dev/nbd0;` or `device minor 0;`"));
    }
    Ok(name.to_string())
}

fn minor(statement: &Statement, index: usize) -> Result<u32, ConfigError> {
    let Some(word) = statement.words.get(index) else {
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &statement.words[index - 1].at.just_after(),
            "`minor` needs a number",
        ));
    };
    number(word, "minor", 0, MAX_MINORS - 1)
}

/// A plain decimal number.
pub(crate) fn number(word: &Word, what: &str, min: u32, max: u32) -> Result<u32, ConfigError> {
    let digits = !word.text.is_empty() && word.text.bytes().all(|byte| byte.is_ascii_digit());
    match word.text.parse::<u32>() {
        Ok(value) if digits && (min..=max).contains(&value) => Ok(value),
        _ => Err(bad_value(
            word,
            format!(
                "`{}` is not a {what}",
                word.text.chars().take(64).collect::<String>()
            ),
        )
        .note(format!("allowed: {min}..{max}"))),
    }
}

/// `disk PATH;` or `disk none;`.
pub(crate) fn disk(statement: &Statement) -> Result<DiskSource, ConfigError> {
    let word = one_argument(statement, "a path or none")?;
    if word.text == "none" {
        return Ok(DiskSource::None);
    }
    Ok(DiskSource::Path(absolute(word, &word.text)?))
}

/// The argument of `meta-disk` or `flexible-meta-disk`.
pub(crate) fn meta_disk(statement: &Statement) -> Result<MetaDisk, ConfigError> {
    no_block(statement)?;
    let flexible = statement.keyword().text == "flexible-meta-disk";
    let Some(word) = statement.words.get(1) else {
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &statement.at().just_after(),
            format!(
                "`{}` needs internal, PATH or PATH[INDEX]",
                statement.keyword().text
            ),
        ));
    };
    let (path, index) = match statement.words.get(2) {
        Some(next) if next.text.starts_with('[') => {
            no_more_words(statement, 3)?;
            (word.text.as_str(), Some((next, next.text.as_str())))
        }
        _ => {
            no_more_words(statement, 2)?;
            match word.text.find('[').filter(|_| word.text.ends_with(']')) {
                Some(at) => (&word.text[..at], Some((word, &word.text[at..]))),
                None => (word.text.as_str(), None),
            }
        }
    };
    if path == "internal" && index.is_none() {
        return Ok(MetaDisk::Internal);
    }
    let path = absolute(word, path)?;
    let Some((place, text)) = index else {
        return Ok(MetaDisk::External { path });
    };
    if flexible {
        return Err(
            bad_value(place, "`flexible-meta-disk` takes a path without an index")
                .note("write `meta-disk PATH[INDEX];` for an indexed one"),
        );
    }
    let digits = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or_default();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse::<u32>() {
        Ok(index) if plain && index <= MAX_META_INDEX => Ok(MetaDisk::Indexed { path, index }),
        _ => Err(bad_value(place, format!("`{text}` is not an index"))
            .note(format!("allowed: [0]..[{MAX_META_INDEX}]"))),
    }
}

/// A path from the root, without `.` parts and doubled slashes.
fn absolute(word: &Word, text: &str) -> Result<PathBuf, ConfigError> {
    let shown: String = text.chars().take(64).collect();
    if !text.starts_with('/') {
        return Err(
            bad_value(word, format!("`{shown}` is not an absolute path"))
                .note("a path begins with `/`"),
        );
    }
    let path: PathBuf = std::path::Path::new(text).components().collect();
    if path.components().any(|part| part == Component::ParentDir) || path.components().count() < 2 {
        return Err(bad_value(word, format!("`{shown}` does not name a disk"))
            .note("write the path without `..`"));
    }
    if text.contains('\n') {
        return Err(bad_value(word, "a path with a line break"));
    }
    Ok(path)
}

/// The arguments of `address` or `floating`: `[ipv4|ipv6] IP:PORT`, in however many words.
pub(crate) fn address(keyword: &Word, arguments: &[Word]) -> Result<SocketAddr, ConfigError> {
    let mut rest = arguments;
    let mut family = None;
    if let Some(first) = rest.first() {
        match first.text.as_str() {
            "ipv4" | "ipv6" => {
                family = Some(first);
                rest = &rest[1..];
            }
            "ssocks" | "sdp" | "sci" => {
                return Err(bad_value(
                    first,
                    format!("address family `{}` is not supported", first.text),
                )
                .note("allowed: ipv4, ipv6; QUIC runs over UDP"));
            }
            _ => {}
        }
    }
    let Some(first) = rest.first() else {
        let last = arguments.last().unwrap_or(keyword);
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &last.at.just_after(),
            format!("`{}` needs IP:PORT", keyword.text),
        ));
    };
    // `IP : PORT` is legal with spaces around the colon; anything more is a missing semicolon.
    let joins = |left: &Word, right: &Word| left.text.ends_with(':') || right.text.starts_with(':');
    let mut text = first.text.clone();
    let mut used = 1;
    while used < rest.len() && used < 3 && joins(&rest[used - 1], &rest[used]) {
        text.push_str(&rest[used].text);
        used += 1;
    }
    if let Some(extra) = rest.get(used) {
        let last = &rest[used - 1];
        let at = if extra.at.line > last.at.line {
            last.at.just_after()
        } else {
            extra.at.clone()
        };
        return Err(ConfigError::at(
            ErrorKind::Syntax,
            &at,
            format!("`;` missing after `{} {text}`", keyword.text),
        ));
    }
    let address = parse_address(first, &text)?;
    let fits = match family.map(|word| word.text.as_str()) {
        Some("ipv4") => address.is_ipv4(),
        Some("ipv6") => address.is_ipv6(),
        _ => true,
    };
    if !fits {
        return Err(bad_value(
            first,
            format!(
                "`{text}` is not an {} address",
                family.map_or("", |word| word.text.as_str())
            ),
        ));
    }
    Ok(address)
}

fn parse_address(word: &Word, text: &str) -> Result<SocketAddr, ConfigError> {
    let shown: String = text.chars().take(64).collect();
    let address = text.parse::<SocketAddr>().ok().or_else(|| scoped(text));
    let Some(address) = address else {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        let error = if bare.parse::<IpAddr>().is_ok() {
            bad_value(word, format!("the address `{shown}` has no port"))
        } else {
            bad_value(word, format!("`{shown}` is not an address"))
        };
        return Err(error.note("write IP:PORT, for example 192.168.1.10:7789 or [fd00::1]:7789; host names are not resolved"));
    };
    if address.port() == 0 {
        return Err(bad_value(word, "port 0 is not a port").note("allowed: 1..65535"));
    }
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        || address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    {
        return Err(
            bad_value(word, format!("`{shown}` is not the address of one node"))
                .note("write the address at which the peers reach this node"),
        );
    }
    Ok(address)
}

/// `[IP%INTERFACE]:PORT` with the interface's name.
fn scoped(text: &str) -> Option<SocketAddr> {
    let (inside, port) = text.strip_prefix('[')?.rsplit_once("]:")?;
    let (ip, interface) = inside.split_once('%')?;
    if interface.is_empty() || interface.starts_with('.') || interface.contains('/') {
        return None;
    }
    let index = nix::net::if_::if_nametoindex(interface).ok()?;
    Some(SocketAddr::V6(SocketAddrV6::new(
        ip.parse().ok()?,
        port.parse().ok()?,
        0,
        index,
    )))
}

/// `node-id N;`.
pub(crate) fn node_id(statement: &Statement) -> Result<u8, ConfigError> {
    let word = one_argument(statement, "a number")?;
    let value = number(word, "node-id", 0, MAX_NODES as u32 - 1)?;
    Ok(value as u8)
}

/// The number of `volume N { … }`.
pub(crate) fn volume_number(statement: &Statement) -> Result<u16, ConfigError> {
    let Some(word) = statement.words.get(1) else {
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &statement.at().just_after(),
            "`volume` needs a number",
        ));
    };
    no_more_words(statement, 2)?;
    let value = number(word, "volume number", 0, u32::from(MAX_VOLUME_NUMBER))?;
    Ok(value as u16)
}
