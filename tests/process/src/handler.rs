//! What handlers are told.

/// Each of `lines` stands in the environment that a handler wrote down.
///
/// # Panics
/// If one does not; it is named.
#[track_caller]
pub fn assert_told(environment: &str, lines: &[&str]) {
    for line in lines {
        assert!(
            environment.lines().any(|said| said == *line),
            "{line}: {environment}"
        );
    }
}
