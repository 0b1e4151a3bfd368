//! One level above the ticks: a ring of slots of equal width.
//!
//! A level's ring holds two windows: the one that the wheel's time is in, and the next. A window is
//! as wide as one slot of the level above, so a slot above moves down while the window before it
//! still runs, a little at each call, and nothing moves in one piece at the window's border.

use super::chunks::{BATCH_ENTRIES, Chunks, Slot};
use super::occupied::Occupied;

pub(super) const LEVELS: usize = 4;

/// log2 of the width in ticks of a slot of each level, and last of the top level's window.
const SHIFTS: [u32; LEVELS + 1] = [0, 8, 16, 27, 38];

/// log2 of the width in ticks of a slot of `level`; of `level + 1`, log2 of the width of a window of `level`.
pub(super) const fn shift(level: usize) -> u32 {
    SHIFTS[level]
}

/// Slots in the ring of `level`.
pub(super) const fn ring(level: usize) -> usize {
    2 << (shift(level + 1) - shift(level))
}

pub(super) struct Level {
    slots: Box<[Slot]>,
    occupied: Occupied,
}

impl Level {
    pub(super) fn new(level: usize) -> Self {
        let slots = ring(level);
        Level { slots: vec![Slot::default(); slots].into_boxed_slice(), occupied: Occupied::new(slots) }
    }

    fn index(&self, number: u64) -> usize {
        number as usize & (self.slots.len() - 1)
    }

    #[inline]
    pub(super) fn push(&mut self, number: u64, entry: u64, chunks: &mut Chunks) {
        let index = self.index(number);
        let slot = &mut self.slots[index];
        if slot.is_empty() {
            self.occupied.mark(index);
        }
        chunks.push(slot, entry);
    }

    /// Takes up to `most` of a slot's oldest entries: see [`Chunks::take`].
    #[inline]
    pub(super) fn take<'a>(
        &mut self,
        number: u64,
        most: usize,
        chunks: &mut Chunks,
        into: &'a mut [u64; BATCH_ENTRIES],
    ) -> &'a [u64] {
        let index = self.index(number);
        let entries = chunks.take(&mut self.slots[index], most, into);
        if self.slots[index].is_empty() {
            self.occupied.unmark(index);
        }
        entries
    }

    pub(super) fn slot_len(&self, number: u64) -> usize {
        self.slots[self.index(number)].len()
    }

    /// The first slot with entries, from number `from` once around the ring.
    pub(super) fn first_occupied(&self, from: u64) -> Option<u64> {
        self.occupied.first(from)
    }

    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Puts entries back where they came from, into a slot that is empty.
    pub(super) fn put_back(&mut self, number: u64, entries: Slot) {
        let index = self.index(number);
        if !entries.is_empty() {
            self.slots[index] = entries;
            self.occupied.mark(index);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>() + self.occupied.memory_bytes()
    }
}
