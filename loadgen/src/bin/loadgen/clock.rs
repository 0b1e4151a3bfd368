//! The two clocks of a run, read together once.

use std::time::{Instant, SystemTime};

/// Time since the run began, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_wall_ns: u64,
}

impl Clock {
    /// The run begins now.
    pub(crate) fn start() -> Self {
        Clock { start: Instant::now(), start_wall_ns: wall_ns() }
    }

    /// Since the run began, in ns.
    pub(crate) fn elapsed_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The wall clock at a moment of the run, in ns since the Unix epoch, as it was foreseen at the start.
    pub(crate) fn wall_at_ns(&self, elapsed_ns: u64) -> u64 {
        self.start_wall_ns + elapsed_ns
    }
}

/// The wall clock now, in ns since the Unix epoch: what the node's own clock follows.
pub(crate) fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
