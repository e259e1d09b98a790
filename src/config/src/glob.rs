//! Owns the patterns of `include`: `*`, `?` and `[…]` within one path component, never across `/`.
//!
//! The match never backtracks more than to the last `*`, so that no pattern takes exponential time.
//! A name that begins with a dot is matched only by a pattern that begins with one.

use std::path::{Path, PathBuf};

/// Most directory entries that one pattern may look at.
const MAX_ENTRIES: usize = 100_000;

/// True if `text` is a pattern and not a plain path.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The existing paths that `pattern` matches, sorted. Directories that cannot be read match nothing.
pub(crate) fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    let mut looked_at = 0;
    for component in pattern.components() {
        let text = component.as_os_str().to_string_lossy();
        if !is_pattern(&text) {
            for path in &mut found {
                path.push(component);
            }
            continue;
        }
        let mut next = Vec::new();
        for directory in &found {
            let listed = if directory.as_os_str().is_empty() {
                Path::new(".")
            } else {
                directory
            };
            let Ok(entries) = std::fs::read_dir(listed) else {
                continue;
            };
            for entry in entries.flatten() {
                looked_at += 1;
                if looked_at > MAX_ENTRIES {
                    break;
                }
                let name = entry.file_name();
                if matches(&text, &name.to_string_lossy()) {
                    next.push(directory.join(name));
                }
            }
        }
        found = next;
    }
    // A plain tail behind a pattern (`*/x.res`) may name nothing; the last component of a pattern comes from a listing.
    found.retain(|path| path.symlink_metadata().is_ok());
    found.sort();
    found
}

/// True if the whole of `name` matches `pattern`.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut position) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while position < name.len() {
        let step = match pattern.get(at) {
            Some('*') => {
                star = Some((at + 1, position));
                at += 1;
                continue;
            }
            Some('?') => Some(at + 1),
            Some('[') => class(&pattern, at, name[position]),
            Some(literal) => (*literal == name[position]).then_some(at + 1),
            None => None,
        };
        match (step, star) {
            (Some(next), _) => {
                at = next;
                position += 1;
            }
            (None, Some((after_star, taken))) => {
                star = Some((after_star, taken + 1));
                at = after_star;
                position = taken + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// Where the pattern goes on if the class that begins at `at` matches `character`. An unclosed `[` is a plain character.
fn class(pattern: &[char], at: usize, character: char) -> Option<usize> {
    let mut next = at + 1;
    let negated = matches!(pattern.get(next), Some('!' | '^'));
    if negated {
        next += 1;
    }
    let first = next;
    let mut hit = false;
    loop {
        let Some(&low) = pattern.get(next) else {
            return (character == '[').then_some(at + 1);
        };
        if low == ']' && next > first {
            return (hit != negated).then_some(next + 1);
        }
        match (pattern.get(next + 1), pattern.get(next + 2)) {
            (Some('-'), Some(&high)) if high != ']' => {
                hit |= (low..=high).contains(&character);
                next += 3;
            }
            _ => {
                hit |= low == character;
                next += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_matches_any_run_but_no_hidden_file() {
        assert!(matches("*.res", "r0.res"));
        assert!(matches("*.res", "a.b.res"));
        assert!(!matches("*.res", "r0.res.bak"));
        assert!(!matches("*", ".hidden"));
        assert!(matches(".*", ".hidden"));
    }

    #[test]
    fn classes_ranges_and_negation_match() {
        assert!(matches("r[0-3].res", "r2.res"));
        assert!(!matches("r[0-3].res", "r4.res"));
        assert!(matches("r[!0-3].res", "r4.res"));
        assert!(matches("r[]].res", "r].res"));
        assert!(matches("r[.res", "r[.res"));
        assert!(matches("?0.res", "r0.res"));
    }

    #[test]
    fn many_stars_end_quickly() {
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
        assert!(matches(&"*a".repeat(200), &"a".repeat(200)));
    }
}
