//! Owns the step from statements to settings: `net { }`, `disk { }`, `options { }`, `startup { }`, `handlers { }`, `global { }`
//! and 8.3's `syncer { }`, and the checks of how many words a statement has.
//!
//! A bad statement costs that statement alone: the section is read to its end, so that one run shows all mistakes.

use std::net::{IpAddr, SocketAddr};

use crate::error::{ConfigError, ErrorKind, did_you_mean};
use crate::lexer::Word;
use crate::limits::MAX_ERRORS_PER_RESOURCE;
use crate::model::{IgnoreReason, Ignored};
use crate::options::{Effect, Kind, MOVED, PEER_DEVICE, SECTIONS, Section, Spec, Unit};
use crate::settings::{Setting, Settings, Value};
use crate::source::Location;
use crate::tree::{Block, Statement, title};

/// The port of `nbd-listen` if none is named: the one registered for NBD.
const NBD_PORT: u16 = 10809;

/// What is wrong with, and what is ignored in, one top-level section.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) errors: Vec<ConfigError>,
    pub(crate) ignored: Vec<Ignored>,
}

impl Findings {
    pub(crate) fn error(&mut self, error: ConfigError) {
        if !self.full() {
            self.errors.push(error);
        }
    }

    /// True if so much is wrong that reading on is of no use.
    pub(crate) fn full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS_PER_RESOURCE
    }

    /// Something that has no meaning here.
    pub(crate) fn ignore(&mut self, option: &str, at: &Location) {
        self.report(option, at, IgnoreReason::NoMeaning);
    }

    /// A setting that does not do what it says.
    fn judge(&mut self, setting: &Setting) {
        let name = setting.spec.name;
        match setting.spec.effect {
            Effect::Acts => {}
            Effect::None => self.ignore(name, &setting.at),
            Effect::Only(values) => {
                let value = setting.text();
                if !values.contains(&value.as_str()) {
                    let acts_as = values.first().copied();
                    let reason = IgnoreReason::NotCarriedOut { value, acts_as };
                    self.report(name, &setting.at, reason);
                }
            }
        }
    }

    fn report(&mut self, option: &str, at: &Location, reason: IgnoreReason) {
        if !self.ignored.iter().any(|known| known.option == option) {
            self.ignored.push(Ignored {
                option: option.to_string(),
                position: at.position(),
                reason,
            });
        }
    }
}

/// The option sections of one level (common, resource, connection, …).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sections {
    pub(crate) net: Settings,
    pub(crate) disk: Settings,
    pub(crate) options: Settings,
    pub(crate) startup: Settings,
    pub(crate) handlers: Settings,
    pub(crate) global: Settings,
}

impl Sections {
    fn of(&mut self, section: Section) -> &mut Settings {
        match section {
            Section::Net => &mut self.net,
            Section::Disk => &mut self.disk,
            Section::Options => &mut self.options,
            Section::Startup => &mut self.startup,
            Section::Handlers => &mut self.handlers,
            Section::Global => &mut self.global,
        }
    }

    /// These settings, each overridden by the one of the same name in `stronger`.
    pub(crate) fn overridden_by(&self, stronger: &Sections) -> Sections {
        Sections {
            net: self.net.overridden_by(&stronger.net),
            disk: self.disk.overridden_by(&stronger.disk),
            options: self.options.overridden_by(&stronger.options),
            startup: self.startup.overridden_by(&stronger.startup),
            handlers: self.handlers.overridden_by(&stronger.handlers),
            global: self.global.overridden_by(&stronger.global),
        }
    }

    /// Reads the section `name { block }`; `allowed` limits the options (`None`: all of the section).
    pub(crate) fn read(
        &mut self,
        section: Section,
        block: &Block,
        peer_device_only: bool,
        findings: &mut Findings,
    ) {
        for statement in &block.statements {
            if findings.full() {
                return;
            }
            if let Err(error) = self.statement(
                section.name(),
                Some(section),
                statement,
                peer_device_only,
                findings,
            ) {
                findings.error(error);
            }
        }
    }

    /// Reads 8.3's `syncer { block }` into the sections where its options live now.
    pub(crate) fn read_syncer(&mut self, block: &Block, findings: &mut Findings) {
        for statement in &block.statements {
            if findings.full() {
                return;
            }
            if let Err(error) = self.statement("syncer", None, statement, false, findings) {
                findings.error(error);
            }
        }
    }

    /// Reads the legacy `protocol C;` outside `net`.
    pub(crate) fn read_protocol(
        &mut self,
        statement: &Statement,
        findings: &mut Findings,
    ) -> Result<(), ConfigError> {
        self.statement("net", Some(Section::Net), statement, false, findings)
    }

    fn statement(
        &mut self,
        section_name: &str,
        section: Option<Section>,
        statement: &Statement,
        peer_device_only: bool,
        findings: &mut Findings,
    ) -> Result<(), ConfigError> {
        let word = statement.keyword();
        let Some((section, spec, negated)) = look_up(section_name, section, &word.text) else {
            return Err(unknown_option(word, section_name, section));
        };
        if statement.block.is_some() {
            return Err(ConfigError::at(
                ErrorKind::Syntax,
                &word.at,
                format!("`{}` is an option, not a section", spec.name),
            )
            .note(format!("write `{} VALUE;`", spec.name)));
        }
        if peer_device_only && !PEER_DEVICE.contains(&spec.name) {
            return Err(ConfigError::at(
                ErrorKind::UnknownWord,
                &word.at,
                format!(
                    "`{}` is an option of the whole device; a connection cannot have its own",
                    spec.name
                ),
            )
            .note("move it to the `disk` section of the resource or of the volume")
            .note(format!("allowed here: {}", PEER_DEVICE.join(", "))));
        }
        let value = if negated {
            no_more_words(statement, 1)?;
            Value::Boolean(false)
        } else {
            value(spec, statement)?
        };
        let setting = Setting {
            value,
            spec,
            at: word.at.clone(),
        };
        let settings = self.of(section);
        if let Some(earlier) = settings.get(spec.name)
            && *earlier != setting
        {
            return Err(ConfigError::at(
                ErrorKind::Conflict,
                &word.at,
                format!("`{}` is set twice, differently", spec.name),
            )
            .note(format!("first set at {}", earlier.position())));
        }
        findings.judge(&setting);
        settings.insert(setting);
        Ok(())
    }
}

/// The option that `word` names in a section: where it lives now, its table entry, and whether it was written as `no-foo`.
fn look_up(
    section_name: &str,
    section: Option<Section>,
    word: &str,
) -> Option<(Section, &'static Spec, bool)> {
    let direct = |name: &str| {
        if let Some(section) = section
            && let Some(spec) = section.find(name)
        {
            return Some((section, spec));
        }
        let (_, _, section, name) = MOVED
            .iter()
            .find(|(old, old_name, ..)| *old == section_name && *old_name == name)?;
        Some((*section, section.find(name)?))
    };
    if let Some((section, spec)) = direct(word) {
        return Some((section, spec, false));
    }
    let (section, spec) = direct(word.strip_prefix("no-")?)?;
    matches!(spec.kind, Kind::Boolean { .. }).then_some((section, spec, true))
}

fn unknown_option(word: &Word, section_name: &str, section: Option<Section>) -> ConfigError {
    let mut allowed: Vec<&str> = match section {
        Some(section) => section.table().iter().map(|spec| spec.name).collect(),
        None => Vec::new(),
    };
    allowed.extend(
        MOVED
            .iter()
            .filter(|(old, ..)| *old == section_name)
            .map(|(_, name, ..)| *name),
    );
    allowed.sort_unstable();
    let mut error = unknown_word(word, &format!("in section `{section_name}`"), &allowed);
    for other in SECTIONS.iter().filter(|other| Some(**other) != section) {
        if other.find(&word.text).is_some() {
            error.notes.insert(
                0,
                format!("`{}` belongs in section `{}`", word.text, other.name()),
            );
        }
    }
    error
}

/// The error for a word that is none of `allowed`; `place` reads like "in section `net`".
pub(crate) fn unknown_word(word: &Word, place: &str, allowed: &[&str]) -> ConfigError {
    let mut shown: String = word.text.chars().take(64).collect();
    if let Some(at) = shown.find('=').filter(|_| word.text.contains("secr")) {
        shown.truncate(at);
    }
    let mut error = ConfigError::at(
        ErrorKind::UnknownWord,
        &word.at,
        format!("unknown word `{shown}` {place}"),
    );
    if let Some((name, _)) = word.text.split_once('=') {
        error = error.note(format!("values are written without `=`: `{name} VALUE;`"));
    } else if let Some(better) = did_you_mean(&word.text, allowed.iter().copied()) {
        error = error.note(format!("did you mean `{better}`?"));
    }
    error.note(format!("allowed here: {}", allowed.join(", ")))
}

/// Fails if the statement has more than `count` words: nearly always a missing `;`.
pub(crate) fn no_more_words(statement: &Statement, count: usize) -> Result<(), ConfigError> {
    let Some(extra) = statement.words.get(count) else {
        return Ok(());
    };
    let last = &statement.words[count - 1];
    if extra.is("=") {
        return Err(without_equals_sign(statement, extra));
    }
    if extra.at.line > last.at.line {
        return Err(ConfigError::at(
            ErrorKind::Syntax,
            &last.at.just_after(),
            format!("`;` missing after `{}`", title(&statement.words[..count])),
        ));
    }
    let shown: String = extra.text.chars().take(64).collect();
    let shown = if extra.at.secret {
        "second word".to_string()
    } else {
        format!("`{shown}`")
    };
    Err(ConfigError::at(
        ErrorKind::Syntax,
        &extra.at,
        format!(
            "unexpected {shown} after `{}`",
            title(&statement.words[..count])
        ),
    )
    .note("is a `;` missing before it?"))
}

fn without_equals_sign(statement: &Statement, sign: &Word) -> ConfigError {
    ConfigError::at(
        ErrorKind::Syntax,
        &sign.at,
        "values are written without `=`",
    )
    .note(format!("write `{} VALUE;`", statement.keyword().text))
}

/// The only argument of `statement`, which has no block.
pub(crate) fn one_argument<'a>(
    statement: &'a Statement,
    what: &str,
) -> Result<&'a Word, ConfigError> {
    no_block(statement)?;
    let Some(argument) = statement.words.get(1) else {
        let word = statement.keyword();
        return Err(ConfigError::at(
            ErrorKind::Missing,
            &word.at.just_after(),
            format!("`{}` needs {what}", word.text),
        ));
    };
    if argument.is("=") {
        return Err(without_equals_sign(statement, argument));
    }
    no_more_words(statement, 2)?;
    Ok(argument)
}

/// Fails if the statement ends with a block.
pub(crate) fn no_block(statement: &Statement) -> Result<(), ConfigError> {
    if statement.block.is_none() {
        return Ok(());
    }
    let words = title(&statement.words);
    Err(ConfigError::at(
        ErrorKind::Syntax,
        statement.at(),
        format!("`{words}` has no `{{ }}` block"),
    )
    .note(format!("is a `;` missing after `{words}`?")))
}

/// The block of a section without arguments.
pub(crate) fn only_block(statement: &Statement) -> Result<&Block, ConfigError> {
    no_more_words(statement, 1)?;
    some_block(statement)
}

/// The block of a section.
pub(crate) fn some_block(statement: &Statement) -> Result<&Block, ConfigError> {
    statement.block.as_ref().ok_or_else(|| {
        let word = statement.keyword();
        ConfigError::at(
            ErrorKind::Syntax,
            &word.at,
            format!("`{}` is a section", word.text),
        )
        .note(format!("write `{} {{ … }}`", title(&statement.words)))
    })
}

fn value(spec: &'static Spec, statement: &Statement) -> Result<Value, ConfigError> {
    if let Kind::Boolean { .. } = spec.kind {
        if statement.words.len() == 1 {
            return Ok(Value::Boolean(true));
        }
        let word = one_argument(statement, "yes or no")?;
        return match word.text.as_str() {
            "yes" => Ok(Value::Boolean(true)),
            "no" => Ok(Value::Boolean(false)),
            _ => Err(bad_word(spec, word, &["yes", "no"])),
        };
    }
    if let Kind::Names = spec.kind {
        if statement.words.len() < 2 {
            return Err(ConfigError::at(
                ErrorKind::Missing,
                statement.at(),
                format!("`{}` needs a name", spec.name),
            ));
        }
        return Ok(Value::Names(
            statement
                .arguments()
                .iter()
                .map(|word| word.text.clone())
                .collect(),
        ));
    }
    let word = one_argument(statement, "a value")?;
    match spec.kind {
        Kind::Boolean { .. } | Kind::Names => unreachable!("handled above"),
        Kind::Integer { min, max, unit, .. } => {
            integer(spec.name, word, min, max, unit).map(Value::Integer)
        }
        Kind::Choice(words) => choice(spec, word, words, |_| false),
        Kind::ChoiceOrNode(words, prefix) => choice(spec, word, words, |text| {
            text.strip_prefix(prefix)
                .is_some_and(|node| !node.is_empty())
        }),
        Kind::ReadBalancing(words) => {
            choice(spec, word, words, |text| striping_bytes(text).is_some())
        }
        Kind::Quorum => choice(spec, word, &["off", "majority", "all"], |text| {
            text.parse::<u8>()
                .is_ok_and(|number| (1..=32).contains(&number))
        }),
        Kind::Text(max) if word.text.len() > max => Err(bad_value(
            word,
            format!(
                "`{}` takes at most {max} bytes, this has {}",
                spec.name,
                word.text.len()
            ),
        )),
        Kind::Text(_) => Ok(Value::Text(word.text.clone())),
        Kind::ResyncAfter => match resync_after(&word.text) {
            Some(_) => Ok(Value::Text(word.text.clone())),
            None => Err(bad_value(
                word,
                format!("`{}` takes RESOURCE, RESOURCE/VOLUME or none", spec.name),
            )),
        },
        Kind::Address => match listen_address(&word.text) {
            Some(address) => Ok(Value::Text(address.to_string())),
            None => Err(bad_value(
                word,
                format!("`{}` takes IP:PORT, not `{}`", spec.name, word.text),
            )
            .note("for example 127.0.0.1:10809 or [::1]:10809")),
        },
    }
}

fn choice(
    spec: &Spec,
    word: &Word,
    words: &[&'static str],
    also: impl Fn(&str) -> bool,
) -> Result<Value, ConfigError> {
    if words.contains(&word.text.as_str()) || also(&word.text) {
        return Ok(Value::Text(word.text.clone()));
    }
    Err(bad_word(spec, word, words))
}

fn bad_word(spec: &Spec, word: &Word, allowed: &[&str]) -> ConfigError {
    let shown: String = word.text.chars().take(64).collect();
    let mut error = bad_value(word, format!("`{}` cannot be `{shown}`", spec.name));
    let lower = word.text.to_ascii_lowercase();
    let upper = word.text.to_ascii_uppercase();
    let other_case = allowed
        .iter()
        .find(|candidate| **candidate == lower || **candidate == upper)
        .copied();
    if let Some(better) = other_case
        .or_else(|| did_you_mean(&word.text, allowed.iter().copied().filter(|a| a.len() > 2)))
    {
        error = error.note(format!("did you mean `{better}`?"));
    }
    let mut sorted = allowed.to_vec();
    if sorted.first() == Some(&"C") {
        sorted.sort_unstable();
    }
    let mut list = sorted.join(", ");
    if let Kind::ChoiceOrNode(_, prefix) = spec.kind {
        list.push_str(&format!(", {prefix}NODE"));
    }
    if let Kind::Quorum = spec.kind {
        list.push_str(", 1..32");
    }
    if let Kind::ReadBalancing(_) = spec.kind {
        list.push_str(", 32K-striping … 1M-striping");
    }
    error.note(format!("allowed values: {list}"))
}

pub(crate) fn bad_value(word: &Word, message: impl Into<String>) -> ConfigError {
    ConfigError::at(ErrorKind::Value, &word.at, message)
}

/// A number in base units of `unit`: digits and one of K, M, G (times 1024), or s (sectors).
fn integer(name: &str, word: &Word, min: u64, max: u64, unit: Unit) -> Result<u64, ConfigError> {
    let digits = word
        .text
        .trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &word.text[digits.len()..];
    let shown: String = word.text.chars().take(64).collect();
    let factor = match suffix {
        "" => Some(unit.scale()),
        "k" | "K" => Some(1 << 10),
        "m" | "M" => Some(1 << 20),
        "g" | "G" => Some(1 << 30),
        "s" if !matches!(unit, Unit::Count(_)) => Some(512),
        _ => None,
    };
    let suffixes = if let Unit::Count(_) = unit {
        "K, M, G"
    } else {
        "K, M, G, s (sectors)"
    };
    let number = if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse::<u64>().ok()
    } else {
        None
    };
    let too_long = digits.len() > 19 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let (Some(number), Some(factor)) = (number.or(too_long.then_some(u64::MAX)), factor) else {
        let mut error = bad_value(word, format!("`{name}` takes a number, not `{shown}`"));
        if suffix == "s" {
            error = error.note("the suffix `s` means sectors of 512 bytes, not seconds");
        }
        return Err(error.note(format!(
            "allowed: {min}..{max}{}, suffixes {suffixes}",
            unit.text()
        )));
    };
    let scaled = number.saturating_mul(factor) / unit.scale();
    if !(min..=max).contains(&scaled) {
        let shown = if suffix.is_empty() {
            shown
        } else {
            format!("{shown} = {scaled}")
        };
        return Err(bad_value(word, format!("`{name}` {shown} is out of range"))
            .note(format!("allowed: {min}..{max}{}", unit.text())));
    }
    Ok(scaled)
}

/// Bytes of `SIZE-striping`.
pub(crate) fn striping_bytes(text: &str) -> Option<u32> {
    Some(match text.strip_suffix("-striping")? {
        "32K" => 32 << 10,
        "64K" => 64 << 10,
        "128K" => 128 << 10,
        "256K" => 256 << 10,
        "512K" => 512 << 10,
        "1M" => 1 << 20,
        _ => return None,
    })
}

/// Resource and volume of RES, RES/VOL; `Some(None)` for none.
#[allow(
    clippy::option_option,
    reason = "the outer one is a syntax error, the inner one the word none"
)]
pub(crate) fn resync_after(text: &str) -> Option<Option<(String, u16)>> {
    match text.split_once('/') {
        None if text.is_empty() => None,
        None if text == "none" || text == "-1" => Some(None),
        None => Some(Some((text.to_string(), 0))),
        Some(("", _)) => None,
        Some((resource, volume)) => Some(Some((resource.to_string(), volume.parse().ok()?))),
    }
}

/// IP:PORT, or an IP with NBD's port.
pub(crate) fn listen_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>()
        .ok()
        .map(|ip| SocketAddr::new(ip, NBD_PORT))
}
