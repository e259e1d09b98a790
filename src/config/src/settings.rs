//! Owns what a section says: option name → value, with the place where it was written.
//!
//! A setting's place is not part of what it says, so it does not take part in comparisons.

use std::collections::BTreeMap;
use std::fmt;

use crate::options::{Kind, Section, Spec, Unit};
use crate::source::{Location, Position};

/// A value as it was written, checked against the option's table entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// yes or no.
    Boolean(bool),
    /// A number in the option's base unit.
    Integer(u64),
    /// A word or a string.
    Text(String),
    /// Several words.
    Names(Vec<String>),
}

/// One option that was set explicitly.
#[derive(Clone)]
pub struct Setting {
    /// Its value.
    pub value: Value,
    pub(crate) spec: &'static Spec,
    pub(crate) at: Location,
}

impl Setting {
    /// Where it was written.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at.position()
    }

    /// The value in configuration syntax.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.value {
            Value::Boolean(true) => "yes".to_string(),
            Value::Boolean(false) => "no".to_string(),
            Value::Integer(number) => match self.spec.kind {
                Kind::Integer {
                    unit: Unit::Sectors,
                    ..
                } => format!("{number}s"),
                Kind::Integer {
                    unit: Unit::KibPerSecond,
                    ..
                } => format!("{number}K"),
                _ => number.to_string(),
            },
            Value::Text(text) => match self.spec.kind {
                Kind::Text(_) => quote(text),
                _ => bare_or_quoted(text),
            },
            Value::Names(names) => names
                .iter()
                .map(|name| bare_or_quoted(name))
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

impl PartialEq for Setting {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name && self.value == other.value
    }
}

impl Eq for Setting {}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spec.name {
            "shared-secret" => f.write_str("(secret)"),
            _ => self.value.fmt(f),
        }
    }
}

/// The options of one section that were set explicitly, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    by_name: BTreeMap<&'static str, Setting>,
}

impl Settings {
    /// The setting of option `name`, if it was set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.by_name.get(name)
    }

    /// Names and settings in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Setting)> {
        self.by_name.iter().map(|(name, setting)| (*name, setting))
    }

    /// True if nothing was set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Puts `setting` in and returns the one that stood there.
    pub(crate) fn insert(&mut self, setting: Setting) -> Option<Setting> {
        self.by_name.insert(setting.spec.name, setting)
    }

    /// These settings, each overridden by the one of the same name in `stronger`.
    pub(crate) fn overridden_by(&self, stronger: &Settings) -> Settings {
        let mut merged = self.clone();
        merged.by_name.extend(
            stronger
                .by_name
                .iter()
                .map(|(name, setting)| (*name, setting.clone())),
        );
        merged
    }

    fn spec(section: Section, name: &str) -> &'static Spec {
        section
            .find(name)
            .unwrap_or_else(|| panic!("no option `{name}` in section {}", section.name()))
    }

    /// The boolean option `name`, or its default.
    pub(crate) fn boolean(&self, section: Section, name: &str) -> bool {
        match (
            self.get(name).map(|setting| &setting.value),
            Self::spec(section, name).kind,
        ) {
            (Some(Value::Boolean(value)), _) => *value,
            (None, Kind::Boolean { default }) => default,
            other => panic!("`{name}` is not a boolean: {other:?}"),
        }
    }

    /// The integer option `name` in its base unit, or its default.
    pub(crate) fn integer(&self, section: Section, name: &str) -> u64 {
        match (
            self.get(name).map(|setting| &setting.value),
            Self::spec(section, name).kind,
        ) {
            (Some(Value::Integer(value)), _) => *value,
            (None, Kind::Integer { default, .. }) => default,
            other => panic!("`{name}` is not an integer: {other:?}"),
        }
    }

    /// The text of option `name`, if it was set and is not empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.value {
            Value::Text(text) if text.is_empty() => None,
            Value::Text(text) => Some(text),
            other => panic!("`{name}` is not text: {other:?}"),
        }
    }

    /// The word of option `name`, or the first word of its choice.
    pub(crate) fn choice(&self, section: Section, name: &str) -> &str {
        match (
            self.get(name).map(|setting| &setting.value),
            Self::spec(section, name).kind,
        ) {
            (Some(Value::Text(text)), _) => text,
            (
                None,
                Kind::Choice(words) | Kind::ChoiceOrNode(words, _) | Kind::ReadBalancing(words),
            ) => words[0],
            other => panic!("`{name}` is not a choice: {other:?}"),
        }
    }

    /// The words of option `name`.
    pub(crate) fn names(&self, name: &str) -> Vec<String> {
        match self.get(name).map(|setting| &setting.value) {
            Some(Value::Names(names)) => names.clone(),
            _ => Vec::new(),
        }
    }
}

/// `text` in double quotes.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// `text` as a bare word if the lexer reads it back as one that no keyword rule touches, otherwise quoted.
pub(crate) fn bare_or_quoted(text: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "/._-:[]%@+,".contains(c);
    if !text.is_empty() && text.chars().all(bare) {
        text.to_string()
    } else {
        quote(text)
    }
}
