//! Owns the reading of files: the main file, `include`, `template-file`, and what stands at the top level.
//!
//! What an error costs:
//! - inside `resource NAME { }`: that resource;
//! - at the top level of a file: the rest of that file (its resources are listed as broken); a missing or unreadable
//!   included file costs that file only;
//! - inside `common { }`, or anywhere that may have hidden the only `common`: every resource, because what they inherit is
//!   unknown, and running them with guessed options may lose data;
//! - inside `global { }`: nothing else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::check::{Ledger, resync_after_error};
use crate::error::{ConfigError, ErrorKind};
use crate::glob;
use crate::lexer::Word;
use crate::limits::{
    MAX_ERRORS, MAX_FILE_BYTES, MAX_FILES, MAX_INCLUDE_DEPTH, MAX_PEER_DEVICES, MAX_RESOURCES,
    MAX_TOTAL_BYTES,
};
use crate::model::{Broken, Global, Ignored, Loaded, Resource, SkipReason, Skipped};
use crate::options::Section;
use crate::raw::{self, RawResource};
use crate::resolve::{Host, resolve};
use crate::section::{
    Findings, Sections, bad_value, no_more_words, one_argument, only_block, some_block,
    unknown_word,
};
use crate::settings::Settings;
use crate::source::{Location, Position, Source};
use crate::tree::{Statement, Top, TreeParser};
use crate::typed::small;

const TOP_WORDS: &[&str] = &["common", "global", "include", "resource", "skip"];

/// Reads the configuration `main_path` (`-`: standard input) as node `node_name`.
///
/// Never fails as a whole: what can be used is in [`Loaded::resources`], what is wrong in [`Loaded::errors`].
#[must_use]
pub fn load(main_path: &Path, node_name: &str) -> Loaded {
    load_on_host(main_path, node_name, &addresses_of_this_host())
}

/// [`load`] with the addresses that count as this host's own for `floating` sections.
#[must_use]
pub fn load_on_host(main_path: &Path, node_name: &str, addresses: &[IpAddr]) -> Loaded {
    let mut loader = Loader::default();
    loader.main_file(main_path);
    loader.finish(&Host {
        name: node_name,
        addresses,
    })
}

fn addresses_of_this_host() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect()
}

#[derive(Default)]
struct Loader {
    errors: Vec<ConfigError>,
    errors_not_shown: usize,
    ignored: Vec<Ignored>,
    ignored_names: HashSet<String>,
    files: Vec<PathBuf>,
    already_read: HashSet<PathBuf>,
    bytes_read: u64,
    common: Option<(Sections, Location)>,
    common_has_errors: bool,
    /// Something was not read that may hold `common`.
    common_may_be_unread: bool,
    global: Settings,
    resources: Vec<RawResource>,
    /// Names of all resources that were met, and where.
    names: HashMap<String, Position>,
    broken: Vec<Broken>,
    skipped: Vec<Skipped>,
}

impl Loader {
    fn error(&mut self, error: ConfigError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        } else {
            self.errors_not_shown += 1;
        }
    }

    /// Takes over findings; those of a resource carry its name. True if there was no error.
    fn take(&mut self, findings: Findings, resource: Option<&str>) -> bool {
        let fine = findings.errors.is_empty();
        for error in findings.errors {
            self.error(match resource {
                Some(name) => error.of(name),
                None => error,
            });
        }
        for ignored in findings.ignored {
            if self.ignored_names.insert(ignored.option.clone()) {
                self.ignored.push(ignored);
            }
        }
        fine
    }

    fn main_file(&mut self, path: &Path) {
        if path == Path::new("-") {
            let mut bytes = Vec::new();
            let read = std::io::stdin()
                .take(MAX_FILE_BYTES + 1)
                .read_to_end(&mut bytes);
            match read {
                Err(error) => {
                    self.error(ConfigError::nowhere(
                        ErrorKind::Io,
                        format!("cannot read standard input: {error}"),
                    ));
                }
                Ok(_) if bytes.len() as u64 > MAX_FILE_BYTES => {
                    self.error(too_large(Path::new("-"), None))
                }
                Ok(_) => self.text(Path::new(""), "-", &bytes, 0),
            }
            return;
        }
        self.file(path, None, 0);
    }

    /// Reads one file; `from` is the word that includes it.
    fn file(&mut self, path: &Path, from: Option<&Word>, depth: usize) {
        match self.bytes(path, from) {
            Ok(Some(bytes)) => {
                self.files.push(path.to_path_buf());
                let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
                self.text(&directory, &path.to_string_lossy(), &bytes, depth);
            }
            Ok(None) => {}
            Err(error) => {
                self.common_may_be_unread |= error.kind == ErrorKind::Io;
                self.error(error);
            }
        }
    }

    /// The content of a file, or nothing if it was read before.
    fn bytes(&mut self, path: &Path, from: Option<&Word>) -> Result<Option<Vec<u8>>, ConfigError> {
        let io = |error: std::io::Error| {
            let message = format!("cannot read {}: {error}", path.display());
            match from {
                Some(word) => ConfigError::at(ErrorKind::Io, &word.at, message),
                None => ConfigError::nowhere(ErrorKind::Io, message),
            }
        };
        let real = path.canonicalize().map_err(io)?;
        if self.already_read.contains(&real) {
            return Ok(None);
        }
        let metadata = real.metadata().map_err(io)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() {
                "a directory"
            } else {
                "not a regular file"
            };
            let message = format!("{} is {what}", path.display());
            return Err(match from {
                Some(word) => ConfigError::at(ErrorKind::NotAFile, &word.at, message),
                None => ConfigError::nowhere(ErrorKind::NotAFile, message)
                    .note("name a file, or `-` for standard input"),
            });
        }
        if self.already_read.len() >= MAX_FILES {
            self.common_may_be_unread = true;
            let message = format!(
                "{} is not read: more than {MAX_FILES} files",
                path.display()
            );
            return Err(ConfigError::nowhere(ErrorKind::NotAFile, message));
        }
        let mut bytes = Vec::new();
        File::open(&real)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(io)?;
        self.bytes_read += bytes.len() as u64;
        if bytes.len() as u64 > MAX_FILE_BYTES || self.bytes_read > MAX_TOTAL_BYTES {
            self.common_may_be_unread = true;
            return Err(too_large(path, from));
        }
        self.already_read.insert(real);
        Ok(Some(bytes))
    }

    fn text(&mut self, directory: &Path, name: &str, bytes: &[u8], depth: usize) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut parser = TreeParser::new(Arc::new(Source {
            name: name.into(),
            text,
        }));
        loop {
            let error = match parser.next_top() {
                Top::End => return,
                Top::Statement(statement) => match self.top(&statement, directory, depth) {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Top::Broken(words, error) => match self.broken_block(&words, error) {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Top::Stray(error) => error,
            };
            let remainder = parser.remainder();
            let lost = remainder.resources.len();
            self.common_may_be_unread |= remainder.may_hold_common;
            for name in remainder.resources {
                self.break_resource(&name);
            }
            let note = match lost {
                0 => "the rest of this file is not read".to_string(),
                1 => "the rest of this file is not read: 1 resource is not loaded".to_string(),
                _ => format!("the rest of this file is not read: {lost} resources are not loaded"),
            };
            self.error(error.note(note));
            return;
        }
    }

    /// A top-level statement whose block cannot be parsed. Fails if it is none that this program knows.
    fn broken_block(&mut self, words: &[Word], error: ConfigError) -> Result<(), ConfigError> {
        match words[0].text.as_str() {
            "resource" if words.len() == 2 => {
                self.break_resource(&words[1]);
                self.error(error.of(&words[1].text));
            }
            "common" => {
                self.common_has_errors = true;
                self.error(error);
            }
            "global" | "skip" => self.error(error),
            _ => return Err(error),
        }
        Ok(())
    }

    fn break_resource(&mut self, name: &Word) {
        if self.names.len() < 2 * MAX_RESOURCES {
            self.names
                .entry(name.text.clone())
                .or_insert_with(|| name.at.position());
        }
        if self.broken.len() < MAX_RESOURCES
            && !self.broken.iter().any(|known| known.name == name.text)
        {
            self.broken.push(Broken {
                name: name.text.clone(),
                position: name.at.position(),
            });
        }
    }

    /// A top-level statement. An error costs the rest of the file.
    fn top(
        &mut self,
        statement: &Statement,
        directory: &Path,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let word = statement.keyword();
        match word.text.as_str() {
            _ if word.quoted => Err(unknown_word(word, "at the top level", TOP_WORDS)),
            "skip" => {
                if let [_, kind, name] = statement.words.as_slice()
                    && kind.is("resource")
                    && self.skipped.len() < MAX_RESOURCES
                {
                    let reason = SkipReason::Skip;
                    self.skipped.push(Skipped {
                        name: name.text.clone(),
                        position: word.at.position(),
                        reason,
                    });
                    self.names
                        .entry(name.text.clone())
                        .or_insert_with(|| name.at.position());
                }
                Ok(())
            }
            "include" => {
                let pattern = one_argument(statement, "a file name or pattern")?;
                self.include(pattern, directory, depth);
                Ok(())
            }
            "global" => {
                let block = only_block(statement)?;
                let mut findings = Findings::default();
                let mut sections = Sections {
                    global: self.global.clone(),
                    ..Sections::default()
                };
                sections.read(Section::Global, block, false, &mut findings);
                self.global = sections.global;
                self.take(findings, None);
                Ok(())
            }
            "common" => self.common(statement),
            "resource" => self.resource(statement, directory),
            text if text
                .strip_prefix("require-drbd-module-version-")
                .is_some_and(is_comparison) =>
            {
                one_argument(statement, "a version")?;
                let mut findings = Findings::default();
                findings.ignore(text, &word.at);
                self.take(findings, None);
                Ok(())
            }
            _ => {
                let mut error = unknown_word(word, "at the top level", TOP_WORDS);
                if matches!(
                    word.text.as_str(),
                    "net" | "disk" | "options" | "startup" | "handlers" | "on" | "volume"
                ) {
                    error.notes.insert(
                        0,
                        format!("`{}` belongs in `common` or in a `resource`", word.text),
                    );
                }
                Err(error)
            }
        }
    }

    fn include(&mut self, pattern: &Word, directory: &Path, depth: usize) {
        if depth >= MAX_INCLUDE_DEPTH {
            self.common_may_be_unread = true;
            self.error(
                ConfigError::at(
                    ErrorKind::Syntax,
                    &pattern.at,
                    format!("`include` is nested deeper than {MAX_INCLUDE_DEPTH}"),
                )
                .note("this file is not read"),
            );
            return;
        }
        let path = directory.join(&pattern.text);
        if glob::is_pattern(&pattern.text) {
            for found in glob::expand(&path) {
                self.file(&found, Some(pattern), depth + 1);
            }
        } else {
            self.file(&path, Some(pattern), depth + 1);
        }
    }

    fn common(&mut self, statement: &Statement) -> Result<(), ConfigError> {
        let block = only_block(statement)?;
        if let Some((_, earlier)) = &self.common {
            return Err(ConfigError::at(
                ErrorKind::Conflict,
                statement.at(),
                "conflicting use of `common`: there is one already",
            )
            .note(format!("first at {}", earlier.position())));
        }
        let mut findings = Findings::default();
        let sections = raw::common(block, &mut findings);
        self.common = Some((sections, statement.at().clone()));
        if !self.take(findings, None) {
            self.common_has_errors = true;
        }
        Ok(())
    }

    fn resource(&mut self, statement: &Statement, directory: &Path) -> Result<(), ConfigError> {
        let Some(name) = statement.words.get(1) else {
            return Err(ConfigError::at(
                ErrorKind::Missing,
                &statement.at().just_after(),
                "`resource` needs a name",
            ));
        };
        no_more_words(statement, 2)?;
        let block = some_block(statement)?;
        if let Err(error) = check_resource_name(name) {
            self.error(error.of(&name.text));
            self.break_resource(name);
            return Ok(());
        }
        if let Some(earlier) = self.names.get(&name.text) {
            let message = format!("resource `{}` is defined twice", name.text);
            let error = ConfigError::at(ErrorKind::Conflict, &name.at, message)
                .note(format!("first at {earlier}; that one counts"));
            self.error(error);
            return Ok(());
        }
        if self.names.len() >= MAX_RESOURCES {
            return Err(ConfigError::at(
                ErrorKind::Value,
                &name.at,
                format!("more than {MAX_RESOURCES} resources"),
            ));
        }
        self.names.insert(name.text.clone(), name.at.position());
        let mut findings = Findings::default();
        let mut raw = raw::resource(statement.at().clone(), name.clone(), block, &mut findings);
        if let Some(template) = raw.template_file.take() {
            match self.template(&template, directory, &mut findings) {
                Ok(sections) => {
                    raw.template_file = Some(template);
                    raw.template = Some(sections);
                }
                Err(error) => findings.error(error),
            }
        }
        if !self.take(findings, Some(&name.text)) {
            self.break_resource(name);
        } else if raw.stacked {
            let reason = SkipReason::Stacked;
            self.skipped.push(Skipped {
                name: name.text.clone(),
                position: raw.at.position(),
                reason,
            });
        } else {
            self.resources.push(raw);
        }
        Ok(())
    }

    /// The `common` of a template file, which one resource has instead of the general one.
    fn template(
        &mut self,
        file: &Word,
        directory: &Path,
        findings: &mut Findings,
    ) -> Result<Sections, ConfigError> {
        let path = directory.join(&file.text);
        let read_before = std::mem::take(&mut self.already_read);
        let bytes = self.bytes(&path, Some(file));
        self.already_read = read_before;
        let bytes = bytes?.unwrap_or_default();
        if !self.files.contains(&path) {
            self.files.push(path.clone());
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let name = path.to_string_lossy().into_owned();
        let mut parser = TreeParser::new(Arc::new(Source {
            name: name.as_str().into(),
            text,
        }));
        let mut sections = Sections::default();
        loop {
            match parser.next_top() {
                Top::End => return Ok(sections),
                Top::Broken(_, error) | Top::Stray(error) => return Err(error),
                Top::Statement(statement) => match statement.keyword().text.as_str() {
                    "common" => {
                        sections =
                            sections.overridden_by(&raw::common(only_block(&statement)?, findings))
                    }
                    "global" | "skip" => {}
                    _ => {
                        return Err(unknown_word(
                            statement.keyword(),
                            "in a template file",
                            &["common", "global", "skip"],
                        ));
                    }
                },
            }
        }
    }

    /// Resolves what was read.
    fn finish(mut self, host: &Host<'_>) -> Loaded {
        let common = self.common.take().map(|(sections, _)| sections);
        let common_missing =
            self.common_has_errors || (common.is_none() && self.common_may_be_unread);
        let common = common.unwrap_or_default();
        let resources = self.resolve_all(&common, common_missing, host);
        if self.errors_not_shown > 0 {
            let message = format!("{} more errors are not shown", self.errors_not_shown);
            self.errors
                .push(ConfigError::nowhere(ErrorKind::Syntax, message));
        }
        let second = |name| small(self.global.integer(Section::Global, name));
        Loaded {
            resources,
            global: Global {
                cmd_timeout_short_s: second("cmd-timeout-short"),
                cmd_timeout_medium_s: second("cmd-timeout-medium"),
                cmd_timeout_long_s: second("cmd-timeout-long"),
                settings: self.global.clone(),
            },
            broken: self.broken,
            skipped: self.skipped,
            errors: self.errors,
            ignored: self.ignored,
            common: vec![
                ("options", common.options),
                ("net", common.net),
                ("disk", common.disk),
                ("startup", common.startup),
                ("handlers", common.handlers),
            ],
            files: self.files,
        }
    }

    /// The resources that are free of errors and of conflicts with each other.
    fn resolve_all(
        &mut self,
        common: &Sections,
        common_missing: bool,
        host: &Host<'_>,
    ) -> Vec<Resource> {
        let mut ledger = Ledger::default();
        let mut loaded: Vec<Resource> = Vec::new();
        let mut peer_devices = 0;
        for raw in std::mem::take(&mut self.resources) {
            let name = &raw.name;
            let mut findings = Findings::default();
            let defaults = raw
                .template
                .as_ref()
                .or((!common_missing).then_some(common));
            match defaults {
                None => findings.error(
                    ConfigError::at(
                        ErrorKind::Inherited,
                        &name.at,
                        format!("resource `{}` is not loaded: the section `common` could not be read", name.text),
                    )
                    .note("it would run with other options than intended; correct the errors above first"),
                ),
                Some(_) if peer_devices > MAX_PEER_DEVICES => findings.error(ConfigError::at(
                    ErrorKind::Value,
                    &name.at,
                    format!("more than {MAX_PEER_DEVICES} volumes on connections in all resources together"),
                )),
                Some(defaults) => {
                    if let Some((resource, claims)) = resolve(&raw, defaults, host, &mut findings) {
                        peer_devices +=
                            resource.connections.iter().map(|connection| connection.peer_devices.len()).sum::<usize>();
                        match ledger.enter(&resource, claims) {
                            Ok(()) => loaded.push(resource),
                            Err(error) => findings.error(error),
                        }
                    }
                }
            }
            if !self.take(findings, Some(&name.text)) {
                self.break_resource(name);
            }
        }
        self.check_resync_after(loaded, &mut ledger)
    }

    /// Drops the resources whose `resync-after` names nothing that exists, or themselves.
    fn check_resync_after(&mut self, loaded: Vec<Resource>, ledger: &mut Ledger) -> Vec<Resource> {
        let volumes: HashMap<String, Vec<u16>> = loaded
            .iter()
            .map(|resource| {
                let numbers = resource.nodes[0]
                    .volumes
                    .iter()
                    .map(|volume| volume.number)
                    .collect();
                (resource.name.clone(), numbers)
            })
            .collect();
        let mut fine = Vec::new();
        for resource in loaded {
            let unknown = resource.volumes().iter().find_map(|volume| {
                let (target, number) = volume.options.resync_after.as_ref()?;
                let known = match volumes.get(target) {
                    Some(numbers) => numbers.contains(number),
                    None => self.names.contains_key(target),
                };
                let message =
                    format!("`resync-after {target}/{number}` names a volume that does not exist");
                (!known).then(|| resync_after_error(&resource, volume.number, &message))
            });
            let result = match unknown {
                Some(error) => Err(error),
                None => ledger.enter_resync_after(&resource),
            };
            match result {
                Ok(()) => fine.push(resource),
                Err(error) => {
                    self.broken.push(Broken {
                        name: resource.name.clone(),
                        position: resource.position.clone(),
                    });
                    self.error(error.of(&resource.name));
                }
            }
        }
        fine
    }
}

fn is_comparison(text: &str) -> bool {
    matches!(text, "eq" | "ne" | "gt" | "ge" | "lt" | "le")
}

fn too_large(path: &Path, from: Option<&Word>) -> ConfigError {
    let message = format!(
        "{} is too large: a configuration has at most {MAX_FILE_BYTES} bytes per file, {MAX_TOTAL_BYTES} in all",
        path.display()
    );
    match from {
        Some(word) => ConfigError::at(ErrorKind::NotAFile, &word.at, message),
        None => ConfigError::nowhere(ErrorKind::NotAFile, message),
    }
}

/// A resource's name is also a directory, an NBD export and the first part of `RES/VOL` and `RES:PEER`.
fn check_resource_name(name: &Word) -> Result<(), ConfigError> {
    let text = &name.text;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+@".contains(c);
    if text == "all" {
        return Err(bad_value(
            name,
            "`all` cannot be the name of a resource: it means every resource",
        ));
    }
    if text.is_empty()
        || text.len() > 128
        || !text.chars().all(plain)
        || text.starts_with(['-', '.'])
    {
        let shown: String = text.escape_debug().take(64).collect();
        return Err(
            bad_value(name, format!("`{shown}` cannot be the name of a resource")).note(
                "allowed: letters, digits and . _ - + @, at most 128, not beginning with . or -",
            ),
        );
    }
    Ok(())
}
