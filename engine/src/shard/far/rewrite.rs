//! Runs of which most has gone are written again, together with what else is far.
//!
//! There is no way of its own for that: what is left of such a run is loaded early, a piece at a time, and goes to the
//! far buffer, from there to the next run. The old file goes as one that was loaded whole does.

use std::collections::BTreeSet;

use super::load::{SPARSE_ROOM_SHARE, Why};
use super::{RunId, Shard};
use crate::effects::Effects;
use crate::far::Run;
use escapement_protocol::WallMs;

/// A run whose last event is due within so many horizons is left alone: its file goes soon by itself. With delays of up
/// to two hours and a horizon of 15 minutes, 4 in place of 32 made a task cost half as much again.
const HORIZONS_LEFT: u64 = 32;

/// Which runs are to be written again.
#[derive(Debug, Default)]
pub(super) struct Rewriting {
    /// Of which most has gone.
    sparse: BTreeSet<RunId>,
    /// One of them is being read, or on its way to the log.
    is_busy: bool,
}

impl Rewriting {
    /// Something has gone from a run.
    pub(super) fn consider(&mut self, id: RunId, run: &Run) {
        if run.is_sparse() {
            self.sparse.insert(id);
        }
    }

    /// Blocks of a run have come to memory.
    pub(super) fn loaded(&mut self, id: RunId, why: Why) {
        self.is_busy &= why != Why::Sparse;
        self.sparse.remove(&id);
    }
}

impl Shard {
    /// Reads the next piece of a run of which most has gone.
    pub(super) fn rewrite(&mut self, out: &mut Effects) {
        let far = &self.volatile.far;
        if far.rewriting.sparse.is_empty() || far.rewriting.is_busy || self.volatile.draining {
            return;
        }
        // A disk that takes no run must not be given more to do, nor memory what it can't get rid of.
        let waits = far.retry_at > self.volatile.now.mono
            || far.buffer.size_bytes() >= self.config.run_size_bytes
            || 2 * self.live_bytes() > self.config.memory_bytes_max;
        if waits {
            return;
        }
        let (horizon, later) =
            (self.horizon(), self.volatile.now.wall.plus_ms(self.config.horizon_ms * HORIZONS_LEFT));
        let is_worth_it = |run: &Run| run.is_sparse() && run.last_due().is_some_and(|due| due > later);
        while let Some(id) = self.volatile.far.rewriting.sparse.first().copied() {
            let run = self.durable.runs.get(id).filter(|run| is_worth_it(run));
            let next = run.and_then(|_| self.places(id).first()).filter(|place| place.first.0 > horizon);
            // What is near is loaded anyway, and looked at again then.
            let Some(place) = next else {
                self.volatile.far.rewriting.sparse.remove(&id);
                continue;
            };
            let due = place.first.0;
            let is_free = self.volatile.far.to_read.contains(&(due, id));
            if is_free && self.copy_size_bytes(place) <= self.log_room_bytes() / SPARSE_ROOM_SHARE {
                self.volatile.far.rewriting.is_busy = true;
                self.read(due, id, WallMs(u64::MAX), Why::Sparse, out);
            }
            return;
        }
    }
}
