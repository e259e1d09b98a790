//! Who is woken when the ring has completions.
//!
//! Wakers may be called from any thread, so this part of a port is shared and locked. It holds no operations.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Wake, Waker};

/// The part of a port that wakers reach, which may be called from any thread.
#[derive(Default)]
pub struct Waiting {
    pub outstanding: AtomicUsize,
    pub waker: Mutex<Option<Waker>>,
}

/// Rung by the eventfd: wakes every port that waits for an operation. All of them, because the one that would reap for the
/// others may be held up elsewhere.
#[derive(Default)]
pub struct Bell {
    pub ports: Mutex<Vec<Weak<Waiting>>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let ports: Vec<_> = lock(&self.ports).iter().filter_map(Weak::upgrade).collect();
        for port in ports
            .iter()
            .filter(|port| port.outstanding.load(Ordering::Relaxed) > 0)
        {
            port.wake();
        }
    }
}

impl Waiting {
    /// Wakes the task that waits, if any; it has to wait anew.
    pub fn wake(&self) {
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
