//! Waking a parked core from another thread.
//!
//! Three states keep the system call off the busy path: a wake costs one atomic swap while the core runs, and
//! a write to an eventfd only when it found the core parked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::sys;

/// The core is awake and nobody called.
const RUNNING: u8 = 0;
/// Somebody called since the core last looked.
const NOTIFIED: u8 = 1;
/// The core sleeps, or is about to, and nobody called.
const PARKED: u8 = 2;

/// Wakes one core. Cheap to clone, to call often, and to call from any thread.
///
/// What a thread wrote before [`Waker::wake`] is visible to the core after the `park` that it ends, or
/// prevents: fill the queue first, then wake.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    event: OwnedFd,
}

impl Waker {
    /// Ends the core's present or next `park`. Calls in between count as one.
    pub fn wake(&self) {
        // A swap even where the state is already NOTIFIED: it carries this thread's writes to the core.
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == PARKED {
            sys::eventfd_signal(self.shared.event.as_fd());
        }
    }
}

/// The core's end of its [`Waker`].
#[derive(Debug)]
pub(super) struct Parker {
    shared: Arc<Shared>,
}

impl Parker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Parker { shared: Arc::new(Shared { state: AtomicU8::new(RUNNING), event: sys::eventfd()? }) })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    /// Readable after a wake that found the core parked. A late one only makes a later wait return early.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Announces sleep; false where a wake came first and there must be none.
    pub(super) fn begin(&self) -> bool {
        self.shared.state.compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Announces that the core looks at its queues from here on.
    pub(super) fn end(&self) {
        // A swap, so that it reads the last wake's and with it sees what that thread wrote.
        self.shared.state.swap(RUNNING, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_sleep_prevents_it_once() {
        let parker = Parker::new().unwrap();
        parker.waker().wake();
        parker.waker().wake();
        assert!(!parker.begin());
        parker.end();
        assert!(parker.begin());
    }

    #[test]
    fn only_a_wake_of_a_sleeper_signals() {
        let parker = Parker::new().unwrap();
        parker.waker().wake();
        assert_eq!(sys::wait_ready([(parker.event(), sys::Ready::Read)], 0), [false]);
        parker.end();
        assert!(parker.begin());
        parker.waker().wake();
        parker.waker().wake();
        assert_eq!(sys::wait_ready([(parker.event(), sys::Ready::Read)], 0), [true]);
        sys::eventfd_drain(parker.event());
        assert_eq!(sys::wait_ready([(parker.event(), sys::Ready::Read)], 0), [false]);
    }
}
