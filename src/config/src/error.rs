//! Owns the errors of the configuration: what is wrong, where, and what to do about it.
//!
//! `Display` prints the whole message with the source line and carets; [`ConfigError::summary`] is the first line alone.

use std::fmt;

use crate::source::{Location, Position};

/// What sort of mistake it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// A file could not be read.
    Io,
    /// A path that is not a regular file (a directory, a pipe, a device), or a file over a size limit.
    NotAFile,
    /// Braces, semicolons, quotes, number of words.
    Syntax,
    /// A word that the section does not know.
    UnknownWord,
    /// A known option with a bad value.
    Value,
    /// Something mandatory is not there.
    Missing,
    /// Two statements that exclude each other.
    Conflict,
    /// The resource is fine, but what it inherits from could not be read.
    Inherited,
}

/// A mistake in the configuration, with its place and a remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// What sort of mistake it is.
    pub kind: ErrorKind,
    /// Where; `None` if there is no text to point at (a missing main file).
    pub position: Option<Position>,
    /// What is wrong, one line.
    pub message: String,
    /// Remedies and further places, one line each.
    pub notes: Vec<String>,
    /// The resource that cannot be used because of this, if it is one resource only.
    pub resource: Option<String>,
    /// Rendered when printed: a line may be as long as its file, and there may be many errors on it.
    location: Option<Box<Location>>,
}

impl ConfigError {
    pub(crate) fn at(kind: ErrorKind, location: &Location, message: impl Into<String>) -> Self {
        ConfigError {
            kind,
            position: Some(location.position()),
            message: message.into(),
            notes: Vec::new(),
            resource: None,
            location: Some(Box::new(location.clone())),
        }
    }

    pub(crate) fn nowhere(kind: ErrorKind, message: impl Into<String>) -> Self {
        ConfigError {
            kind,
            position: None,
            message: message.into(),
            notes: Vec::new(),
            resource: None,
            location: None,
        }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub(crate) fn of(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_string());
        self
    }

    /// `FILE:LINE:COLUMN: message`, one line.
    #[must_use]
    pub fn summary(&self) -> String {
        match &self.position {
            Some(position) => format!("{position}: {}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        let mut width = 1;
        if let Some(excerpt) = self.location.as_ref().map(|location| location.excerpt()) {
            let number = excerpt.line_number.to_string();
            width = number.len();
            write!(f, "\n{:width$} |\n{number} | {}", "", excerpt.text)?;
            if !excerpt.carets.is_empty() {
                write!(f, "\n{:width$} | {}", "", excerpt.carets)?;
            }
        }
        for note in &self.notes {
            write!(f, "\n{:width$} = {note}", "")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The word of `allowed` that `word` is most likely a misspelling of.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    allowed: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let limit = (word.chars().count() / 3).clamp(1, 3);
    allowed
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Number of insertions, removals, replacements and swaps of neighbours that turn `left` into `right`.
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.to_ascii_lowercase().chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for row in 1..=left.len() {
        let mut current = vec![row; right.len() + 1];
        for column in 1..=right.len() {
            let replaced = above[column - 1] + usize::from(left[row - 1] != right[column - 1]);
            let mut best = replaced.min(above[column] + 1).min(current[column - 1] + 1);
            if row > 1
                && column > 1
                && left[row - 1] == right[column - 2]
                && left[row - 2] == right[column - 1]
            {
                best = best.min(before[column - 2] + 1);
            }
            current[column] = best;
        }
        before = std::mem::replace(&mut above, current);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_of_neighbours_is_one_edit() {
        assert_eq!(edit_distance("dsik", "disk"), 1);
        assert_eq!(edit_distance("protcol", "protocol"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
    }

    #[test]
    fn a_far_word_is_not_suggested() {
        assert_eq!(did_you_mean("dsik", ["disk", "device"]), Some("disk"));
        assert_eq!(did_you_mean("filesystem", ["disk", "device"]), None);
    }
}
