//! Which events became due while the shard did not serve, and when what was missed is dispatched.

use std::collections::VecDeque;

use escapement_protocol::settings::Misfire;
use escapement_protocol::{Now, WallMs};

use super::Shard;

/// A shard that is called so much later than it asked for was not served: its machine was suspended, its process stopped,
/// or its clock stepped.
const STANDSTILL_MS: u64 = 5_000;

/// Standstills that are remembered. Of an older one that still has events waiting, these count as not missed.
const STANDSTILL_COUNT_MAX: usize = 16;

/// A time through which the shard did not serve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standstill {
    /// Events due after this,
    after: WallMs,
    /// and before this, when the shard served again.
    until: WallMs,
    /// Events that it made overdue, where that is known.
    count: u64,
}

/// What becomes of a missed task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// It is offered, and dispatched from this moment on at the earliest.
    Offer { from: WallMs },
    /// It ends.
    Skip,
}

/// Standstills, the oldest first; they don't overlap.
#[derive(Debug, Default)]
pub(super) struct Standstills(VecDeque<Standstill>);

impl Standstills {
    /// The shard serves from `until` on. `count` events became due before.
    pub(super) fn started(&mut self, until: WallMs, count: u64) {
        self.0.push_back(Standstill { after: WallMs(0), until, count });
    }

    /// The shard has stood still.
    fn stood(&mut self, after: WallMs, until: WallMs) {
        if self.0.len() == STANDSTILL_COUNT_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Standstill { after, until, count: 0 });
    }

    /// The standstill that an event fell into that is due at `due`.
    pub(super) fn of(&self, due: WallMs) -> Option<Standstill> {
        let late = self.0.iter().rev().take_while(|standstill| due < standstill.until).last()?;
        (due > late.after).then_some(*late)
    }
}

impl Standstill {
    /// What becomes of a task of an event that is due at `due` and that this standstill missed, as the one at `position`
    /// of all, where they are counted.
    pub(super) fn missed(&self, misfire: Misfire, due: WallMs, position: u64, now: WallMs) -> Missed {
        match misfire {
            Misfire::SkipOlderThan(ms) if now.0.saturating_sub(due.0) > ms => Missed::Skip,
            Misfire::SpreadOver(ms) => {
                let (part, whole) = match self.count {
                    0 => (due.0 - self.after.0, self.until.0 - self.after.0),
                    count => (position.min(count), count),
                };
                let share = u128::from(ms) * u128::from(part) / u128::from(whole);
                Missed::Offer { from: self.until.plus_ms(share as u64) }
            }
            Misfire::Fire | Misfire::SkipOlderThan(_) => Missed::Offer { from: WallMs(0) },
        }
    }
}

impl Shard {
    /// Notices that the shard was called long after it wanted to be.
    pub(super) fn note_standstill(&mut self, now: Now) {
        let before = self.volatile.now.wall;
        if now.wall.0 - before.0 <= STANDSTILL_MS {
            return;
        }
        let wanted = self.next_deadline().wall;
        if wanted.is_some_and(|wanted| now.wall.0.saturating_sub(wanted.0) > STANDSTILL_MS) {
            self.volatile.standstills.stood(before, now.wall);
        }
    }
}
