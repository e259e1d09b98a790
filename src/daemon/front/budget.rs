//! Payload bytes that all sessions of a server have in flight together.
//!
//! A session that finds the budget spent waits until another one gives bytes back. It does not reserve: whoever comes
//! first takes them, which cannot starve anybody for good since a session without anything in flight needs no permission.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

pub struct Budget {
    limit: u64,
    used: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    /// Whether `bytes` fit; if not, the task is woken when some were given back.
    pub fn has_room(&self, context: &mut Context<'_>, bytes: u64) -> bool {
        let fits = bytes == 0 || self.used.get() + bytes <= self.limit;
        if !fits {
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
        }
        fits
    }

    /// Takes the bytes, also beyond the limit.
    pub fn take(&self, bytes: u64) {
        self.used.set(self.used.get() + bytes);
    }

    pub fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let used = self.used.get();
        self.used
            .set(used.checked_sub(bytes).expect("given back once"));
        self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}
