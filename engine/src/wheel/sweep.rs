//! Dropping cancelled entries before their time comes.

use super::chunks::{BATCH_ENTRIES, Slot};
use super::level::{LEVELS, shift};
use super::{DUE_BITS, TOP, Tick, Wheel};

/// Where a sweep is: in one slot, of which the entries looked at and found alive are set aside. The slot
/// itself is not empty meanwhile, so that the wheel knows of it.
#[derive(Default)]
pub(super) struct Sweep {
    /// Level and number of the slot. The levels below it, and what lies before it on its own, are swept.
    at: Option<(usize, u64)>,
    aside: Slot,
}

impl Wheel {
    /// Looks at up to `most` entries and drops those of cancelled and rescheduled keys, going on where
    /// the last call stopped. Answers whether this ended a pass over all entries, but for those that
    /// are due within half a second and go by themselves.
    ///
    /// The wheel does not know how many of its entries are dead: an owner that sees [`Wheel::len`] far
    /// above its own count calls this, a little in each turn, until a pass has ended.
    pub fn sweep(&mut self, most: usize, mut due_of: impl FnMut(u64) -> Option<Tick>) -> bool {
        let (mut left, mut batch) = (most, [0; BATCH_ENTRIES]);
        while left > 0 {
            let at = match self.sweep.at {
                // That slot went down since the last call, and what was set aside with it.
                Some((level, number)) if number <= self.cursor >> shift(level) => self.slot_after(level, 0),
                None => self.slot_after(1, 0),
                at => at,
            };
            let Some((level, number)) = at else {
                self.sweep.at = None;
                return true;
            };
            let entries = self.levels[level - 1].take(number, left, &mut self.chunks, &mut batch);
            left -= entries.len().max(1);
            for entry in entries {
                let due = due_of(entry >> DUE_BITS).map(|tick| tick.0);
                let lives = if level < TOP {
                    due == Some(Self::due_in(level, number, *entry))
                } else {
                    due.is_some_and(|due| due >> shift(TOP) >= number)
                };
                if lives {
                    self.chunks.push(&mut self.sweep.aside, *entry);
                } else {
                    self.stored -= 1;
                }
            }
            self.sweep.at = Some((level, number));
            if self.levels[level - 1].slot_len(number) == 0 {
                let lived = std::mem::take(&mut self.sweep.aside);
                self.levels[level - 1].put_back(number, lived);
                self.sweep.at = self.slot_after(level, number + 1);
                if self.sweep.at.is_none() {
                    return true;
                }
            }
        }
        false
    }

    /// The first slot with entries from this one on, level by level.
    fn slot_after(&self, level: usize, number: u64) -> Option<(usize, u64)> {
        (level..LEVELS).find_map(|at| {
            let current = self.cursor >> shift(at);
            let from = if at == level { number.max(current) } else { current };
            let found = self.levels[at - 1].first_occupied(from)?;
            // One that is found around the ring's end lies before `from`.
            let end = current + self.levels[at - 1].slot_count() as u64;
            (found < end).then_some((at, found))
        })
    }

    /// Puts back what a sweep set aside, where it is about to be looked for.
    pub(super) fn end_sweep_of(&mut self, level: usize, number: u64) {
        if self.sweep.at == Some((level, number)) {
            let mut batch = [0; BATCH_ENTRIES];
            loop {
                let entries = self.chunks.take(&mut self.sweep.aside, usize::MAX, &mut batch);
                if entries.is_empty() {
                    return;
                }
                for entry in entries {
                    self.levels[level - 1].push(number, *entry, &mut self.chunks);
                }
            }
        }
    }
}
