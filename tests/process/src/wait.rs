//! Polling within bounds.

use std::time::{Duration, Instant};

/// Between two looks.
const STEP: Duration = Duration::from_millis(30);

/// What `look` finds within `limit`.
///
/// # Panics
/// If it finds nothing in that time; the text names `what`.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    match within(limit, look) {
        Some(found) => found,
        None => panic!("not within {} s: {what}", limit.as_secs_f32()),
    }
}

/// What `look` finds within `limit`, if it finds anything. Looks at least once.
pub fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(STEP);
    }
}
