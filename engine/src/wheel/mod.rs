//! The timing wheel: which keys are due, in order, and when to look again.
//!
//! Four levels of slots 1 ms, 256 ms, 66 s and 37 hours wide; the farthest slot lies 17 years ahead. A
//! slot is an append-only queue of 8-byte entries: a key of 48 bits, and the low 16 bits of its due
//! time, which with the slot's number are the whole due time on all levels but the top one. A cancel
//! does not touch the wheel: before it yields a key, it asks the owner's table, and a key whose due time
//! is gone or another one vanishes. So cancelling and rescheduling cost the owner's table only, an entry
//! costs 8.1 bytes, and moving down costs no look-up. `docs/decisions/0003-wheel.md` has the measured
//! alternative.
//!
//! What holds:
//! * A key is never yielded before its tick, and never twice for one insertion.
//! * One call yields the smallest keys by (due tick, key) of all that are due, up to its limit, whatever
//!   the order of insertion.
//! * Entries move down a level gradually, ahead of need, in proportion to the time that passes; only a
//!   jump of the time beyond the current window moves a whole slot at once.
//!
//! Left out on purpose: clocks, threads, and what a key means.

mod chunks;
mod crowd;
mod level;
mod occupied;
mod sweep;
mod take;
#[cfg(test)]
mod tests;
mod ticks;

use std::fmt;

use chunks::{BATCH_ENTRIES, Chunks};
use crowd::Crowd;
use level::{LEVELS, Level, shift};
use sweep::Sweep;
use ticks::Ticks;

/// A moment of the wall clock in milliseconds since the Unix epoch: the wheel's resolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// Largest tick that a wheel accepts: what 48 bits hold, as in an event's id.
    pub const MAX: Tick = Tick((1 << 48) - 1);
}

/// Largest key: what 48 bits hold, as a [`Sequence`](escapement_protocol::Sequence).
pub const KEY_MAX: u64 = (1 << (64 - DUE_BITS)) - 1;

/// Low bits of the due time in an entry: as many as the widest slot below the top level has.
const DUE_BITS: u32 = shift(TOP - 1);

const TOP: usize = LEVELS - 1;

/// Farthest slot of the top level that an entry is put into, counted from the current one. What is due
/// later still waits there, and is placed again when that slot's time comes.
const TOP_AHEAD_MAX: u64 = 4_000;

const _: () = assert!(
    TOP_AHEAD_MAX << shift(TOP) > 15 * 366 * 86_400_000,
    "the horizon holds the longest delay with slack"
);
const _: () = assert!(TOP_AHEAD_MAX < 2 << (shift(LEVELS) - shift(TOP)), "and the top ring holds it");

/// Keys met in one call beyond its limit, per key of the limit: what a crowd of cancelled keys costs at most.
const DEAD_PER_YIELD: usize = 4;

/// Fewer entries than this come down only together with others, or at a window's end: one far read
/// of memory then serves many.
const SPREAD_MIN: u64 = BATCH_ENTRIES as u64;

/// Entries of the run kept allocated between calls, and of the late ones.
const RUN_KEPT: usize = 1 << 16;

/// Keys of one tick that come to the run together, about, where there are more.
const RUN_PART: usize = if cfg!(test) { 50 } else { RUN_KEPT / 2 };

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    tick: u64,
    key: u64,
}

/// What one call may still do.
struct Left {
    yields: usize,
    looks: usize,
}

impl Left {
    fn is_spent(&self) -> bool {
        self.yields == 0 || self.looks == 0
    }

    /// The next of `due` from `head` on, as many as this call may look at.
    fn batch<'a, T>(&mut self, due: &'a [T], head: &mut usize) -> &'a [T] {
        let from = *head;
        *head = due.len().min(from + self.yields.min(self.looks));
        self.looks -= *head - from;
        &due[from..*head]
    }

    fn yielded(&mut self, out: &mut Vec<u64>, keys: impl Iterator<Item = u64>) {
        let before = out.len();
        out.extend(keys);
        self.yields -= out.len() - before;
    }
}

fn clear<T>(due: &mut Vec<T>, head: &mut usize) {
    due.clear();
    *head = 0;
    if due.capacity() > RUN_KEPT {
        due.shrink_to(RUN_KEPT);
    }
}

/// Keys by due time. See the module's documentation for what holds.
pub struct Wheel {
    ticks: Ticks,
    /// Those above the ticks.
    levels: [Level; TOP],
    chunks: Chunks,
    /// First tick whose slot was not emptied yet: every entry in a slot is due here or later.
    cursor: u64,
    /// Keys of the tick before the cursor, ascending, from `run_head` on.
    run: Vec<u64>,
    run_head: usize,
    /// Those after the run, where a tick has very many.
    crowd: Crowd,
    /// What is due before the run, in order, from `late_head` on.
    late: Vec<Due>,
    late_head: usize,
    /// Inserted when already due, not yet merged with what is late.
    fresh: Vec<Due>,
    /// Entries in slots, and set aside from them.
    stored: usize,
    sweep: Sweep,
    /// The time when entries last came down to each level.
    spread_at: [u64; TOP],
}

impl fmt::Debug for Wheel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wheel")
            .field("cursor", &self.cursor)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl Wheel {
    /// An empty wheel whose time is `now`.
    ///
    /// # Panics
    /// If `now` is later than [`Tick::MAX`].
    #[must_use]
    pub fn new(now: Tick) -> Self {
        assert!(now <= Tick::MAX, "the wheel's time fits 48 bits");
        Wheel {
            ticks: Ticks::new(),
            levels: std::array::from_fn(|at| Level::new(at + 1)),
            chunks: Chunks::default(),
            cursor: now.0,
            run: Vec::new(),
            run_head: 0,
            crowd: Crowd::default(),
            late: Vec::new(),
            late_head: 0,
            fresh: Vec::new(),
            stored: 0,
            sweep: Sweep::default(),
            spread_at: [now.0; TOP],
        }
    }

    /// Adds a key. One that is due already is yielded by the next [`Wheel::advance`].
    ///
    /// From now on, and until the key was yielded, the owner's `due_of(key)` answers `due`, or nothing
    /// once the key is cancelled. To reschedule, change that answer and insert again: the older entry
    /// vanishes by itself.
    ///
    /// # Panics
    /// If `due` is later than [`Tick::MAX`], or `key` larger than [`KEY_MAX`].
    #[inline]
    pub fn insert(&mut self, due: Tick, key: u64) {
        assert!(due <= Tick::MAX && key <= KEY_MAX, "due times and keys fit 48 bits");
        if due.0 < self.cursor {
            self.fresh.push(Due { tick: due.0, key });
        } else {
            self.place(due.0, key);
            self.stored += 1;
        }
    }

    /// Moves the time forward to `to` and appends to `out` every key that is due by then, ordered by due
    /// tick, then by key, at most `limit` of them. Answers whether more is due: then call again.
    ///
    /// `due_of` is the owner's table: the due time of a key, or `None` for one that is cancelled. It is
    /// asked right before a key is yielded, and when an entry comes down from the top level. A `to` before that
    /// of an earlier call counts as that one. A call that met many cancelled keys may answer that more is
    /// due although it yielded fewer than `limit`.
    pub fn advance(
        &mut self,
        to: Tick,
        limit: usize,
        mut due_of: impl FnMut(u64) -> Option<Tick>,
        out: &mut Vec<u64>,
    ) -> bool {
        let to = to.min(Tick::MAX).0;
        let mut due_of = |key| due_of(key).map(|tick| tick.0);
        self.merge_fresh();
        let more = self.yield_due(to, limit, &mut due_of, out);
        self.spread(&mut due_of);
        if self.stored == 0 && self.chunks.memory_bytes() > 0 && !more {
            self.chunks.release();
        }
        more
    }

    fn yield_due(
        &mut self,
        to: u64,
        limit: usize,
        due_of: &mut impl FnMut(u64) -> Option<u64>,
        out: &mut Vec<u64>,
    ) -> bool {
        let mut left = Left { yields: limit, looks: limit.saturating_mul(DEAD_PER_YIELD) };
        loop {
            let late = left.batch(&self.late, &mut self.late_head);
            left.yielded(out, late.iter().filter(|d| due_of(d.key) == Some(d.tick)).map(|d| d.key));
            if self.late_head == self.late.len() {
                let tick = Some(self.cursor.saturating_sub(1));
                let run = left.batch(&self.run, &mut self.run_head);
                left.yielded(out, run.iter().copied().filter(|key| due_of(*key) == tick));
            }
            let waits = self.late_head < self.late.len() || self.run_head < self.run.len();
            if waits && left.is_spent() {
                return true;
            }
            if waits {
                continue;
            }
            clear(&mut self.late, &mut self.late_head);
            clear(&mut self.run, &mut self.run_head);
            self.fill_run(RUN_PART);
            if !self.run.is_empty() {
                if left.is_spent() {
                    return true;
                }
                continue;
            }
            if left.is_spent() {
                return self.next_due().is_some_and(|next| next.0 <= to);
            }
            if !self.next_tick(to, due_of) {
                return false;
            }
        }
    }

    /// Fills the run with the next tick's keys, or moves nearer to it. False once the time is `to`.
    fn next_tick(&mut self, to: u64, due_of: &mut impl FnMut(u64) -> Option<u64>) -> bool {
        if self.cursor > to {
            return false;
        }
        let window_end = ((self.cursor >> shift(1)) + 1) << shift(1);
        match self.ticks.first_occupied(self.cursor) {
            Some(tick) if tick < window_end && tick <= to => {
                self.take_tick(tick);
                self.set_cursor(tick + 1, due_of);
            }
            Some(tick) if tick < window_end => self.set_cursor(to + 1, due_of),
            // This window is empty, so nothing is due before the lowest slot of all levels.
            _ => {
                let next = self.lowest_slot().map_or(to + 1, |next| next.max(window_end).min(to + 1));
                self.set_cursor(next, due_of);
            }
        }
        true
    }

    /// When [`Wheel::advance`] should next be called: nothing is due before. It is the next due tick
    /// itself where that lies within 256 ms, unless its key was cancelled; a slot's start farther out.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        let late = self.late.get(self.late_head).into_iter().chain(&self.fresh).map(|d| d.tick).min();
        let run = (self.run_head < self.run.len()).then(|| self.cursor - 1);
        late.or(run).or_else(|| self.lowest_slot()).map(Tick)
    }

    /// Entries held. Cancelled and rescheduled ones count until the wheel meets them.
    #[must_use]
    pub fn len(&self) -> usize {
        let late = self.late.len() - self.late_head + self.fresh.len();
        self.stored + self.run.len() - self.run_head + late
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes allocated. Those of yielded entries are reused, and given back once the wheel is empty.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.ticks.memory_bytes()
            + self.levels.iter().map(Level::memory_bytes).sum::<usize>()
            + self.chunks.memory_bytes()
            + self.crowd.memory_bytes()
            + self.run.capacity() * size_of::<u64>()
            + (self.late.capacity() + self.fresh.capacity()) * size_of::<Due>()
    }

    #[inline]
    fn place(&mut self, due: u64, key: u64) {
        // Whether it lies in one of the two windows of a level.
        let fits = |level: usize| (due >> shift(level + 1)) - (self.cursor >> shift(level + 1)) <= 1;
        if fits(0) {
            return self.ticks.push(due, key, &mut self.chunks);
        }
        let entry = (key << DUE_BITS) | (due & ((1 << DUE_BITS) - 1));
        // Written out: a loop over the levels is not unrolled, and costs a third more.
        if fits(1) {
            return self.levels[0].push(due >> shift(1), entry, &mut self.chunks);
        }
        if fits(2) {
            return self.levels[1].push(due >> shift(2), entry, &mut self.chunks);
        }
        let farthest = (self.cursor >> shift(TOP)) + TOP_AHEAD_MAX;
        self.levels[TOP - 1].push((due >> shift(TOP)).min(farthest), entry, &mut self.chunks);
    }

    /// The due time of an entry, as it was when it was inserted. Not known on the top level.
    #[inline]
    fn due_in(level: usize, number: u64, entry: u64) -> u64 {
        debug_assert!(level < TOP);
        (number << shift(level)) | (entry & ((1 << shift(level)) - 1))
    }

    /// First tick at which an entry in a slot can be due.
    fn lowest_slot(&self) -> Option<u64> {
        let starts = (1..).zip(&self.levels).filter_map(|(level, ring)| {
            Some(ring.first_occupied(self.cursor >> shift(level))? << shift(level))
        });
        starts.chain(self.ticks.first_occupied(self.cursor)).min().map(|start| start.max(self.cursor))
    }

    /// Moves the keys of one tick into the run, which is empty: all of them, or the first ones of a crowd.
    fn take_tick(&mut self, tick: u64) {
        let Wheel { ticks, chunks, run, .. } = self;
        if let Some(slot) = ticks.take(tick, RUN_PART, chunks, run) {
            match Crowd::of(slot, chunks) {
                Ok(crowd) => {
                    self.crowd = crowd;
                    return self.fill_run(RUN_PART);
                }
                Err(mut slot) => chunks.drain(&mut slot, run),
            }
        }
        self.stored -= run.len();
        // Slots are queues, so keys that were inserted ascending mostly are so here.
        if !run.is_sorted_by(|a, b| a < b) {
            run.sort_unstable();
            // A key that was rescheduled away and back has two entries.
            run.dedup();
        }
    }

    /// Lengthens the run by the next of the crowd, about as many as `most`.
    fn fill_run(&mut self, most: usize) {
        let Wheel { chunks, run, crowd, stored, .. } = self;
        *stored -= crowd.take(most, chunks, run);
    }

    /// Merges late insertions with what is due. What is there already is moved only from the first
    /// place where one belongs, so that a large backlog is not sorted again at each call.
    fn merge_fresh(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        self.fill_run(usize::MAX);
        self.fresh.sort_unstable();
        self.fresh.dedup();
        let Wheel { late, late_head, run, run_head, fresh, cursor, .. } = self;
        if *late_head * 2 >= late.len() {
            late.drain(..*late_head);
            *late_head = 0;
        }
        // Once only for each key: what is late stays so until it is yielded.
        late.extend(run[*run_head..].iter().map(|key| Due { tick: *cursor - 1, key: *key }));
        clear(run, run_head);
        let first = fresh[0];
        let at = *late_head + late[*late_head..].partition_point(|d| *d < first);
        // What is already there needs no second entry.
        fresh.retain(|d| late[at..].binary_search(d).is_err());
        let sorted = at == late.len();
        late.append(fresh);
        if !sorted {
            // Two ascending runs: the stable sort recognises and merges them in linear time.
            late[at..].sort();
        }
    }

    /// Moves the time to `cursor`, before which no slot holds entries, and brings down what the levels
    /// above hold for the windows that this enters.
    fn set_cursor(&mut self, cursor: u64, due_of: &mut impl FnMut(u64) -> Option<u64>) {
        let before = std::mem::replace(&mut self.cursor, cursor);
        for level in (0..TOP).rev() {
            let window = cursor >> shift(level + 1);
            if window != before >> shift(level + 1) {
                self.bring_down(level + 1, window, usize::MAX, due_of);
            }
        }
    }

    /// Moves at most `most` entries of a slot to the levels below.
    fn bring_down(
        &mut self,
        level: usize,
        number: u64,
        most: usize,
        due_of: &mut impl FnMut(u64) -> Option<u64>,
    ) {
        self.end_sweep_of(level, number);
        // Where all of a slot lies behind the ticks, its entries need not be asked one by one.
        let is_behind_ticks = level == 2 && number << (shift(2) - shift(1)) > (self.cursor >> shift(1)) + 1;
        let (mut left, mut batch) = (most, [0; BATCH_ENTRIES]);
        loop {
            let entries = self.levels[level - 1].take(number, left, &mut self.chunks, &mut batch);
            if entries.is_empty() {
                return;
            }
            left -= entries.len();
            for entry in entries {
                let key = entry >> DUE_BITS;
                if level == 1 {
                    self.ticks.push(Self::due_in(1, number, *entry), key, &mut self.chunks);
                    continue;
                }
                if is_behind_ticks {
                    let due = Self::due_in(2, number, *entry);
                    self.levels[0].push(due >> shift(1), *entry, &mut self.chunks);
                    continue;
                }
                if level < TOP {
                    self.place(Self::due_in(level, number, *entry), key);
                    continue;
                }
                // One that is due before the slot was rescheduled, and has another entry. One that is
                // due later lay beyond the horizon, or was rescheduled.
                match due_of(key).filter(|due| due >> shift(TOP) >= number) {
                    Some(due) => self.place(due, key),
                    None => self.stored -= 1,
                }
            }
        }
    }

    /// Brings down a share of what the next windows will need: as much of the rest as the time that
    /// passed since the last share is of the time that was left then in the window.
    fn spread(&mut self, due_of: &mut impl FnMut(u64) -> Option<u64>) {
        for level in (0..TOP).rev() {
            let window = self.cursor >> shift(level + 1);
            let waiting = self.levels[level].slot_len(window + 1) as u64;
            let from = self.spread_at[level].max(window << shift(level + 1));
            let left = ((window + 1) << shift(level + 1)) - from;
            // A slot holds fewer than 2^32 entries, a window fewer than 2^31 ticks.
            let share = waiting * (self.cursor - from);
            if share >= SPREAD_MIN * left {
                self.bring_down(level + 1, window + 1, (share / left) as usize, due_of);
                self.spread_at[level] = self.cursor;
            }
        }
    }
}
