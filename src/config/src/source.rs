//! Owns the text of a configuration file and the places in it.
//!
//! Lines and columns count from 1; columns count characters. A [`Location`] keeps its text alive so that an error can show
//! the line it speaks of long after the file was parsed. A line that holds a `shared-secret`, or what looks like
//! a misspelling of that, is never shown.

use std::fmt;
use std::sync::Arc;

/// Longest piece of a source line that an error shows, in characters.
const EXCERPT_CHARACTERS: usize = 160;

/// A place in a configuration file, as users see it: `FILE:LINE:COLUMN`.
#[derive(Clone, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Position {
    /// Path of the file, as it was named or found.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One file that was read.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: Arc<str>,
    pub(crate) text: String,
}

/// A word's place: the file, where the word begins, how many characters it has, and where its line begins in the text.
#[derive(Clone)]
pub(crate) struct Location {
    pub(crate) source: Arc<Source>,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) length: u32,
    pub(crate) line_start: usize,
    /// A value that no message may show.
    pub(crate) secret: bool,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.position().fmt(f)
    }
}

impl PartialEq for Location {
    fn eq(&self, other: &Self) -> bool {
        let place = |location: &Location| {
            (
                location.line,
                location.column,
                location.length,
                location.secret,
            )
        };
        self.source.name == other.source.name && place(self) == place(other)
    }
}

impl Eq for Location {}

impl Location {
    pub(crate) fn position(&self) -> Position {
        Position {
            file: self.source.name.clone(),
            line: self.line,
            column: self.column,
        }
    }

    /// The place right after this one, one character wide: where a missing `;` belongs.
    pub(crate) fn just_after(&self) -> Location {
        Location {
            column: self.column + self.length,
            length: 1,
            ..self.clone()
        }
    }

    /// The source line and a line of carets below it, ready to print; control characters are replaced, so that a file
    /// cannot write escape sequences to the administrator's terminal.
    pub(crate) fn excerpt(&self) -> Excerpt {
        let rest = &self.source.text[self.line_start..];
        let line = rest.split('\n').next().unwrap_or_default();
        if self.secret || line.to_ascii_lowercase().contains("secr") {
            return Excerpt {
                line_number: self.line,
                text: "(a line with a secret is not shown)".to_string(),
                carets: String::new(),
            };
        }
        let at = self.column as usize - 1;
        let first = at.saturating_sub(EXCERPT_CHARACTERS / 2);
        let mut text = String::new();
        let mut carets = String::new();
        if first > 0 {
            text.push('…');
            carets.push(' ');
        }
        for character in line.chars().skip(first).take(EXCERPT_CHARACTERS) {
            text.push(match character {
                '\t' => '\t',
                c if c.is_control() => '\u{fffd}',
                c => c,
            });
        }
        let text = text.trim_end().to_string();
        for character in line.chars().skip(first).take(at - first) {
            carets.push(if character == '\t' { '\t' } else { ' ' });
        }
        let room = (first + EXCERPT_CHARACTERS).saturating_sub(at).max(1);
        carets.extend(std::iter::repeat_n(
            '^',
            (self.length as usize).clamp(1, room),
        ));
        Excerpt {
            line_number: self.line,
            text,
            carets,
        }
    }
}

/// A source line as an error shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Excerpt {
    pub(crate) line_number: u32,
    pub(crate) text: String,
    pub(crate) carets: String,
}
