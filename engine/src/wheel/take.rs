//! Emptying the wheel of what is due, many keys at a time.

use super::{Due, Left, RUN_PART, Tick, Wheel};

impl Wheel {
    /// Moves the time forward to `to` as [`Wheel::advance`] does, but hands over what is due as it lies, at most `most` keys
    /// of it: the keys of one due time side by side, ascending, the earliest mostly first. Whether a key is still due then,
    /// the owner asks its table itself. Answers whether more is due.
    pub fn take_due(
        &mut self,
        to: Tick,
        most: usize,
        mut due_of: impl FnMut(u64) -> Option<Tick>,
        mut take: impl FnMut(Tick, &[u64]),
    ) -> bool {
        let to = to.min(Tick::MAX).0;
        let mut due_of = |key| due_of(key).map(|tick| tick.0);
        // One that was rescheduled to when it was due before may be in the run still, or behind it.
        if self.fresh.iter().any(|due| due.tick + 1 == self.cursor) {
            self.fill_run(usize::MAX);
        }
        let (run, late) = (&self.run[self.run_head..], &self.late[self.late_head..]);
        let run_tick = self.cursor.saturating_sub(1);
        let is_in_run = |due: &Due| due.tick == run_tick && run.binary_search(&due.key).is_ok();
        self.fresh.retain(|due| !is_in_run(due) && late.binary_search(due).is_err());
        let mut left = Left { yields: most, looks: most };
        let more = loop {
            for due in left.batch(&self.late, &mut self.late_head) {
                take(Tick(due.tick), &[due.key]);
            }
            let run = left.batch(&self.run, &mut self.run_head);
            if !run.is_empty() {
                take(Tick(self.cursor - 1), run);
            }
            if self.late_head < self.late.len() || self.run_head < self.run.len() {
                break true;
            }
            super::clear(&mut self.late, &mut self.late_head);
            super::clear(&mut self.run, &mut self.run_head);
            self.fill_run(RUN_PART);
            if !self.run.is_empty() {
                if left.is_spent() {
                    break true;
                }
            } else if !self.fresh.is_empty() {
                // Cheap only now: with what is late, it would be merged.
                self.merge_fresh();
            } else if left.is_spent() {
                break self.next_due().is_some_and(|next| next.0 <= to);
            } else if !self.next_tick(to, &mut due_of) {
                break false;
            }
        };
        self.spread(&mut due_of);
        if self.stored == 0 && self.chunks.memory_bytes() > 0 && !more {
            self.chunks.release();
        }
        more
    }
}
