//! One level: a ring of slots of equal width, and a bitmap of those that hold entries.
//!
//! A level's ring holds two windows: the one that the wheel's time is in, and the next. A window is
//! as wide as one slot of the level above, so a slot above moves down while the window before it
//! still runs, a little at each call, and nothing moves in one piece at the window's border.

use super::chunks::{CHUNK_ENTRIES, Chunks, Slot};

pub(super) const LEVELS: usize = 4;

/// log2 of the width in ticks of a slot of each level, and last of the top level's window.
const SHIFTS: [u32; LEVELS + 1] = [0, 8, 16, 27, 38];

/// log2 of the width in ticks of a slot of `level`; of `level + 1`, log2 of the width of a window of `level`.
pub(super) const fn shift(level: usize) -> u32 {
    SHIFTS[level]
}

pub(super) struct Level {
    slots: Box<[Slot]>,
    /// Bit per slot that holds entries.
    occupied: Box<[u64]>,
    /// Bit per word of `occupied` that is not zero.
    summary: u64,
}

impl Level {
    pub(super) fn new(level: usize) -> Self {
        let slots = 2 << (shift(level + 1) - shift(level));
        assert!(usize::is_multiple_of(slots, 64) && slots <= 64 * 64, "the summary is one word");
        Level {
            slots: vec![Slot::default(); slots].into_boxed_slice(),
            occupied: vec![0; slots / 64].into_boxed_slice(),
            summary: 0,
        }
    }

    fn index(&self, number: u64) -> usize {
        number as usize & (self.slots.len() - 1)
    }

    #[inline]
    pub(super) fn push(&mut self, number: u64, entry: u64, chunks: &mut Chunks) {
        let index = self.index(number);
        let slot = &mut self.slots[index];
        let was_empty = slot.len() == 0;
        chunks.push(slot, entry);
        if was_empty {
            self.mark(index);
        }
    }

    fn mark(&mut self, index: usize) {
        self.occupied[index / 64] |= 1 << (index % 64);
        self.summary |= 1 << (index / 64);
    }

    fn unmark(&mut self, index: usize) {
        self.occupied[index / 64] &= !(1 << (index % 64));
        if self.occupied[index / 64] == 0 {
            self.summary &= !(1 << (index / 64));
        }
    }

    /// Takes up to `most` of a slot's oldest entries: see [`Chunks::take`].
    #[inline]
    pub(super) fn take<'a>(
        &mut self,
        number: u64,
        most: usize,
        chunks: &mut Chunks,
        into: &'a mut [u64; CHUNK_ENTRIES],
    ) -> &'a [u64] {
        let index = self.index(number);
        let entries = chunks.take(&mut self.slots[index], most, into);
        if self.slots[index].len() == 0 {
            self.unmark(index);
        }
        entries
    }

    /// Empties a slot: see [`Chunks::drain`].
    #[inline]
    pub(super) fn drain(&mut self, number: u64, chunks: &mut Chunks, over: impl FnMut(&[u64])) {
        let index = self.index(number);
        chunks.drain(&mut self.slots[index], over);
        self.unmark(index);
    }

    pub(super) fn slot_len(&self, number: u64) -> usize {
        self.slots[self.index(number)].len()
    }

    /// The first slot with entries, from number `from` once around the ring.
    pub(super) fn first_occupied(&self, from: u64) -> Option<u64> {
        if self.summary == 0 {
            return None;
        }
        let start = self.index(from);
        let (word, bit) = (start / 64, start % 64);
        let here = self.occupied[word] >> bit;
        if here != 0 {
            return Some(from + u64::from(here.trailing_zeros()));
        }
        // Words after this one, then around; this one again last, for the slots before `start`.
        let after = self.summary & (u64::MAX << word << 1);
        let found = if after == 0 { self.summary } else { after }.trailing_zeros() as usize;
        let index = found * 64 + self.occupied[found].trailing_zeros() as usize;
        Some(from + (index.wrapping_sub(start) & (self.slots.len() - 1)) as u64)
    }

    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Puts entries back where they came from, into a slot that is empty.
    pub(super) fn put_back(&mut self, number: u64, entries: Slot) {
        let index = self.index(number);
        if entries.len() > 0 {
            self.slots[index] = entries;
            self.mark(index);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>() + self.occupied.len() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_occupied_slot_is_found_around_the_ring() {
        for (of, slots) in [(0, 512), (3, 4_096)] {
            let froms = [0, 1, 63, 64, 255, 511, 2_047, 4_095, 1 << 40, (1 << 40) + 4_000];
            let distances = [0, 1, 62, 63, 64, 65, 500, 511, 2_048, 4_032, 4_095];
            for (from, ahead) in froms.into_iter().flat_map(|from| distances.map(|ahead| (from, ahead))) {
                if ahead >= slots {
                    continue;
                }
                let (mut level, mut chunks) = (Level::new(of), Chunks::default());
                assert_eq!(level.first_occupied(from), None);
                level.push(from + ahead, 7, &mut chunks);
                assert_eq!(level.first_occupied(from), Some(from + ahead), "{from} + {ahead}");
                assert_eq!(level.take(from + ahead, 9, &mut chunks, &mut [0; CHUNK_ENTRIES]), [7]);
                assert_eq!(level.first_occupied(from), None);
            }
        }
    }
}
