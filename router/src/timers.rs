//! Moments at which something is looked at again. Cancelling is lazy: an entry whose stamp is out of
//! date is skipped, and when such entries outnumber the others, they are swept.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use escapement_protocol::MonoNs;

/// Fewer stale entries than this are never swept.
const STALE_MIN: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timer {
    pub(crate) at: MonoNs,
    pub(crate) index: u32,
    /// What the owner's stamp must be for the entry to count.
    pub(crate) stamp: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<Timer>>,
    stale: usize,
}

impl Timers {
    pub(crate) fn push(&mut self, timer: Timer) {
        self.heap.push(Reverse(timer));
    }

    /// The earliest entry, stale or not.
    pub(crate) fn next(&self) -> Option<MonoNs> {
        self.heap.peek().map(|timer| timer.0.at)
    }

    pub(crate) fn pop_due(&mut self, now: MonoNs) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|timer| timer.0)
    }

    /// One more entry is out of date.
    pub(crate) fn outdated(&mut self, counts: impl Fn(Timer) -> bool) {
        self.stale += 1;
        if self.stale >= STALE_MIN && self.stale * 2 > self.heap.len() {
            self.heap.retain(|timer| counts(timer.0));
            self.stale = 0;
        }
    }

    /// An entry out of date was popped.
    pub(crate) fn skipped(&mut self) {
        self.stale = self.stale.saturating_sub(1);
    }
}
