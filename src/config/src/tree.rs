//! Owns the shape of a file: statements of words that end with `;` or with a block of statements.
//!
//! Every form of DRBD's grammar fits that shape, so this step needs no keywords except `skip` (its block is only matched
//! brace by brace) and `resource` (its appearance inside a block shows that a `}` is missing).
//!
//! Recovery: a mistake inside the block of a top-level statement is reported as [`Top::Broken`], and reading goes on after the
//! matching brace, or at the next line that begins with `resource NAME {`. A mistake outside all braces is [`Top::Stray`]:
//! the caller gives up the rest of the file and asks [`TreeParser::remainder`] what was lost.

use std::sync::Arc;

use crate::error::{ConfigError, ErrorKind};
use crate::lexer::{Lexer, Token, Word};
use crate::limits::MAX_BRACE_DEPTH;
use crate::source::{Location, Source};

/// `words… ;` or `words… { block }`; there is at least one word.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) words: Vec<Word>,
    pub(crate) block: Option<Block>,
}

impl Statement {
    pub(crate) fn keyword(&self) -> &Word {
        &self.words[0]
    }

    pub(crate) fn at(&self) -> &Location {
        &self.words[0].at
    }

    pub(crate) fn arguments(&self) -> &[Word] {
        &self.words[1..]
    }
}

#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) statements: Vec<Statement>,
}

/// What comes next outside all braces.
#[derive(Debug)]
pub(crate) enum Top {
    Statement(Statement),
    /// A statement whose block has a mistake; reading can go on behind it.
    Broken(Vec<Word>, ConfigError),
    /// A mistake outside all braces.
    Stray(ConfigError),
    End,
}

/// What the unread rest of a file seems to hold.
#[derive(Debug, Default)]
pub(crate) struct Remainder {
    pub(crate) may_hold_common: bool,
    pub(crate) resources: Vec<Word>,
}

pub(crate) struct TreeParser {
    lexer: Lexer,
    /// Braces that are open.
    depth: usize,
    /// Words of a top-level statement that was met inside a block; its `{` has been read.
    found_inside: Option<Vec<Word>>,
    /// The last token ended a statement or began a block.
    statement_start: bool,
}

impl TreeParser {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        TreeParser {
            lexer: Lexer::new(source),
            depth: 0,
            found_inside: None,
            statement_start: true,
        }
    }

    fn next(&mut self) -> Token {
        let token = self.lexer.next();
        match &token {
            Token::Open(_) => self.depth += 1,
            Token::Close(_) => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.statement_start = matches!(
            token,
            Token::Open(_) | Token::Close(_) | Token::Semicolon(_)
        );
        token
    }

    pub(crate) fn next_top(&mut self) -> Top {
        if let Some(words) = self.found_inside.take() {
            self.depth = 1;
            return self.top_block(words);
        }
        self.depth = 0;
        let mut words = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => add(&mut words, word),
                Token::Semicolon(at) if words.is_empty() => {
                    return Top::Stray(stray(&at, "`;` without a statement"));
                }
                Token::Semicolon(_) => return Top::Statement(Statement { words, block: None }),
                Token::Open(at) if words.is_empty() => {
                    return Top::Stray(stray(&at, "`{` without a section name before it"));
                }
                Token::Open(_) => return self.top_block(words),
                Token::Close(at) => {
                    return Top::Stray(
                        stray(&at, "`}` without a `{`")
                            .note("remove it, or look for a `{` missing above"),
                    );
                }
                Token::Bad(at, why) => return Top::Stray(bad(&words, at, why)),
                Token::End if words.is_empty() => return Top::End,
                Token::End => return Top::Stray(unfinished(&words)),
            }
        }
    }

    fn top_block(&mut self, words: Vec<Word>) -> Top {
        let block = if skips(&words) {
            self.skipped_block(&words)
        } else {
            self.block(&words)
        };
        match block {
            Ok(block) => Top::Statement(Statement {
                words,
                block: Some(block),
            }),
            Err(error) => {
                self.recover();
                Top::Broken(words, error)
            }
        }
    }

    /// The statements up to the matching `}`; the `{` has been read. `owner` are the words before it.
    fn block(&mut self, owner: &[Word]) -> Result<Block, ConfigError> {
        if self.depth > MAX_BRACE_DEPTH {
            return Err(stray(&owner[0].at, "braces are nested deeper than 16"));
        }
        let mut statements = Vec::new();
        let mut words: Vec<Word> = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => add(&mut words, word),
                Token::Semicolon(at) if words.is_empty() => {
                    return Err(stray(&at, "`;` without a statement")
                        .note("a section's `}` is not followed by `;`"));
                }
                Token::Semicolon(_) => {
                    statements.push(Statement {
                        words: std::mem::take(&mut words),
                        block: None,
                    });
                }
                Token::Open(at) if words.is_empty() => {
                    return Err(stray(&at, "`{` without a section name before it"));
                }
                Token::Open(_) if words.len() == 2 && words[0].is("resource") => {
                    let error = stray(
                        &words[0].at,
                        format!("`resource {}` inside `{}`", words[1].text, title(owner)),
                    )
                    .note(format!(
                        "a `}}` is missing before this line; `{}` begins at {}",
                        title(owner),
                        owner[0].at.position()
                    ));
                    self.found_inside = Some(words);
                    return Err(error);
                }
                Token::Open(_) => {
                    let block = if skips(&words) {
                        self.skipped_block(&words)?
                    } else {
                        self.block(&words)?
                    };
                    statements.push(Statement {
                        words: std::mem::take(&mut words),
                        block: Some(block),
                    });
                }
                Token::Close(_) if words.is_empty() => return Ok(Block { statements }),
                Token::Close(_) => return Err(unfinished(&words)),
                Token::Bad(at, why) => return Err(bad(&words, at, why)),
                Token::End => return Err(unclosed(owner)),
            }
        }
    }

    /// Passes over a block of `skip`, whatever is in it.
    fn skipped_block(&mut self, owner: &[Word]) -> Result<Block, ConfigError> {
        let outside = self.depth - 1;
        while self.depth > outside {
            if let Token::End = self.next() {
                return Err(unclosed(owner));
            }
        }
        Ok(Block::default())
    }

    /// Passes over the rest of a broken top-level block.
    fn recover(&mut self) {
        if self.found_inside.is_some() {
            return;
        }
        while self.depth > 0 {
            let fresh = self.statement_start;
            match self.next() {
                Token::End => return,
                Token::Word(word) if fresh && word.is("resource") && word.at.column == 1 => {
                    let Token::Word(name) = self.next() else {
                        continue;
                    };
                    let Token::Open(_) = self.next() else {
                        continue;
                    };
                    self.found_inside = Some(vec![word, name]);
                    return;
                }
                _ => {}
            }
        }
    }

    /// Reads to the end of the file without understanding it.
    pub(crate) fn remainder(&mut self) -> Remainder {
        let mut remainder = Remainder::default();
        loop {
            match self.next() {
                Token::End => return remainder,
                Token::Word(word) if word.is("common") || word.is("include") => {
                    remainder.may_hold_common = true
                }
                Token::Word(word) if word.is("resource") => {
                    if let Token::Word(name) = self.next() {
                        remainder.resources.push(name);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Puts a word to its statement; the value of `shared-secret` is marked.
fn add(words: &mut Vec<Word>, mut word: Word) {
    word.at.secret = holds_secret(words);
    words.push(word);
}

fn holds_secret(words: &[Word]) -> bool {
    words
        .first()
        .is_some_and(|first| first.text == "shared-secret")
}

fn bad(words: &[Word], mut at: Location, why: &str) -> ConfigError {
    at.secret = holds_secret(words);
    stray(&at, why)
}

fn skips(words: &[Word]) -> bool {
    words[0].is("skip")
}

/// The first words of a statement, as errors name it; a secret is left out.
pub(crate) fn title(words: &[Word]) -> String {
    let mut text = String::new();
    for word in words.iter().take(3).filter(|word| !word.at.secret) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.extend(word.text.chars().take(64));
    }
    text
}

fn stray(at: &Location, message: impl Into<String>) -> ConfigError {
    ConfigError::at(ErrorKind::Syntax, at, message)
}

fn unfinished(words: &[Word]) -> ConfigError {
    let last = &words[words.len() - 1];
    stray(
        &last.at.just_after(),
        format!("`;` or `{{` expected after `{}`", title(words)),
    )
}

fn unclosed(owner: &[Word]) -> ConfigError {
    stray(
        &owner[0].at,
        format!(
            "`{}` is not closed: the file ends before its `}}`",
            title(owner)
        ),
    )
}
