//! Panics of the engine are violations: their place is kept instead of printed.

use std::cell::RefCell;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the place of every panic of a thread instead of printing it. Called once per process.
pub fn keep_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, |place| {
            format!("{}:{}", place.file(), place.line())
        });
        LAST.with(|last| *last.borrow_mut() = place);
    }));
}

/// The place of the last panic of this thread.
#[must_use]
pub fn last_place() -> String {
    LAST.with(|last| last.borrow().clone())
}
