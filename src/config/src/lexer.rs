//! Owns the tokens: words, quoted strings, braces, semicolons, comments.
//!
//! A bare word is any run of printable characters other than `{ } ; " #` and white space. That is wider than DRBD's lexer
//! (addresses and `PATH[N]` are one word here), so every file that DRBD reads is read, and a stray character becomes a
//! word that the section can name in its error.
//! The lexer never stops: a bad token is reported as [`Token::Bad`] and reading goes on after it.

use std::sync::Arc;

use crate::limits::MAX_WORD_BYTES;
use crate::source::{Location, Source};

#[derive(Clone, Debug)]
pub(crate) enum Token {
    Word(Word),
    Open(Location),
    Close(Location),
    Semicolon(Location),
    Bad(Location, &'static str),
    End,
}

/// A word or a quoted string (then without quotes and escapes).
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) quoted: bool,
    pub(crate) at: Location,
}

impl Word {
    /// True if this is the keyword `keyword`; a quoted string is never one.
    pub(crate) fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

pub(crate) struct Lexer {
    source: Arc<Source>,
    offset: usize,
    line: u32,
    column: u32,
    line_start: usize,
}

impl Lexer {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Lexer {
            source,
            offset: 0,
            line: 1,
            column: 1,
            line_start: 0,
        }
    }

    fn peek(&self) -> Option<char> {
        self.source.text[self.offset..].chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.offset += character.len_utf8();
        if character == '\n' {
            self.line += 1;
            self.column = 1;
            self.line_start = self.offset;
        } else {
            self.column += 1;
        }
        Some(character)
    }

    fn here(&self) -> Location {
        Location {
            source: self.source.clone(),
            line: self.line,
            column: self.column,
            length: 1,
            line_start: self.line_start,
            secret: false,
        }
    }

    /// `start` widened to the current place, which must be on the same line.
    fn since(&self, mut start: Location) -> Location {
        start.length = (self.column - start.column).max(1);
        start
    }

    pub(crate) fn next(&mut self) -> Token {
        loop {
            match self.peek() {
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.bump();
                    }
                }
                Some(c) if c.is_whitespace() => {
                    self.bump();
                }
                _ => break,
            }
        }
        let start = self.here();
        match self.peek() {
            None => Token::End,
            Some('{') => {
                self.bump();
                Token::Open(start)
            }
            Some('}') => {
                self.bump();
                Token::Close(start)
            }
            Some(';') => {
                self.bump();
                Token::Semicolon(start)
            }
            Some('"') => self.quoted(start),
            Some(_) => self.bare(start),
        }
    }

    fn bare(&mut self, start: Location) -> Token {
        let from = self.offset;
        while self
            .peek()
            .is_some_and(|c| !c.is_whitespace() && !matches!(c, '{' | '}' | ';' | '"' | '#'))
        {
            self.bump();
        }
        let text = self.source.text[from..self.offset].to_string();
        let at = self.since(start);
        if text.chars().any(|c| c.is_control() || c == '\u{fffd}') {
            return Token::Bad(at, "a word with a control character or invalid UTF-8");
        }
        if text.len() > MAX_WORD_BYTES {
            return Token::Bad(at, "this word is longer than 4096 bytes");
        }
        Token::Word(Word {
            text,
            quoted: false,
            at,
        })
    }

    /// A string in double quotes on one line; a backslash takes the next character as it is, as in DRBD.
    fn quoted(&mut self, start: Location) -> Token {
        self.bump();
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => {
                    return Token::Bad(
                        self.since(start),
                        "this string has no closing quote on its line",
                    );
                }
                Some('"') => {
                    self.bump();
                    break;
                }
                Some('\\') => {
                    self.bump();
                    match self.peek() {
                        None | Some('\n') => {}
                        Some(c) => {
                            text.push(c);
                            self.bump();
                        }
                    }
                }
                Some(c) => {
                    text.push(c);
                    self.bump();
                }
            }
        }
        let at = self.since(start);
        if text.contains(['\0', '\u{fffd}']) {
            return Token::Bad(at, "a string with a NUL or invalid UTF-8");
        }
        if text.len() > MAX_WORD_BYTES {
            return Token::Bad(at, "this string is longer than 4096 bytes");
        }
        Token::Word(Word {
            text,
            quoted: true,
            at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut lexer = Lexer::new(Arc::new(Source {
            name: "t".into(),
            text: text.into(),
        }));
        let mut out = Vec::new();
        loop {
            out.push(match lexer.next() {
                Token::Word(word) if word.quoted => {
                    format!("\"{}\"@{}:{}", word.text, word.at.line, word.at.column)
                }
                Token::Word(word) => format!("{}@{}:{}", word.text, word.at.line, word.at.column),
                Token::Open(_) => "{".into(),
                Token::Close(_) => "}".into(),
                Token::Semicolon(_) => ";".into(),
                Token::Bad(_, why) => format!("bad: {why}"),
                Token::End => return out,
            });
        }
    }

    #[test]
    fn addresses_and_indexed_paths_are_one_word() {
        assert_eq!(
            words("[fd00::1]:7789 /dev/sdb[0];"),
            ["[fd00::1]:7789@1:1", "/dev/sdb[0]@1:16", ";"]
        );
    }

    #[test]
    fn comments_run_to_the_end_of_the_line_and_end_a_word() {
        assert_eq!(words("a#b;\nc"), ["a@1:1", "c@2:1"]);
    }

    #[test]
    fn a_backslash_escapes_a_quote() {
        assert_eq!(words(r#""say \"hi\" \\""#), [r#""say "hi" \"@1:1"#]);
    }

    #[test]
    fn an_open_string_ends_at_its_line_and_reading_goes_on() {
        assert_eq!(
            words("\"abc\nd"),
            ["bad: this string has no closing quote on its line", "d@2:1"]
        );
    }

    #[test]
    fn columns_count_characters_not_bytes() {
        assert_eq!(words("\"é\" x"), ["\"é\"@1:1", "x@1:5"]);
    }

    #[test]
    fn control_characters_are_bad_tokens() {
        assert_eq!(
            words("a\u{1b}b c"),
            [
                "bad: a word with a control character or invalid UTF-8",
                "c@1:5"
            ]
        );
    }
}
