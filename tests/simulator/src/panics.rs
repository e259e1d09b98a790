//! Panics of the engine are violations: their place is kept instead of printed.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the place of a panic within [`while_caught`] instead of printing it. Called once per process.
pub fn keep_quiet() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if CAUGHT.get() {
            let place = info
                .location()
                .map(|place| format!("{}:{}", place.file(), place.line()));
            LAST.with(|last| *last.borrow_mut() = place.unwrap_or_default());
        } else {
            print(info);
        }
    }));
}

/// Runs something; a panic gives its text and place.
///
/// # Errors
/// The text and the place of the panic.
pub fn while_caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    CAUGHT.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    CAUGHT.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let place = LAST.with(|last| last.borrow().clone());
        format!("{} at {place}", text.unwrap_or_else(|| "panic".into()))
    })
}
