//! One level: a ring of slots of equal width, and a bitmap of those that hold entries.
//!
//! A level's ring holds two windows: the one that the wheel's time is in, and the next. A window is
//! as wide as one slot of the level above, so a slot above moves down while the window before it
//! still runs, a little at each call, and nothing moves in one piece at the window's border.

use super::chunks::{Chunks, Slot};

/// log2 of a window's slots.
pub(super) const WINDOW_BITS: u32 = 11;

/// Slots of a ring: two windows.
const SLOTS: usize = 2 << WINDOW_BITS;

const WORDS: usize = SLOTS / 64;

const _: () = assert!(WORDS == 64, "the summary is one word");

/// log2 of the width in ticks of a slot of `level`; of `level + 1`, log2 of the width of a window of `level`.
pub(super) const fn shift(level: usize) -> u32 {
    WINDOW_BITS * level as u32
}

pub(super) struct Level {
    slots: Box<[Slot]>,
    /// Bit per slot that holds entries.
    occupied: [u64; WORDS],
    /// Bit per word of `occupied` that is not zero.
    summary: u64,
}

impl Level {
    pub(super) fn new() -> Self {
        Level { slots: vec![Slot::default(); SLOTS].into_boxed_slice(), occupied: [0; WORDS], summary: 0 }
    }

    fn index(number: u64) -> usize {
        number as usize % SLOTS
    }

    #[inline]
    pub(super) fn push(&mut self, number: u64, key: u64, chunks: &mut Chunks) {
        let index = Self::index(number);
        chunks.push(&mut self.slots[index], key);
        self.occupied[index / 64] |= 1 << (index % 64);
        self.summary |= 1 << (index / 64);
    }

    /// Takes the newest key of a slot.
    #[inline]
    pub(super) fn pop(&mut self, number: u64, chunks: &mut Chunks) -> Option<u64> {
        let index = Self::index(number);
        let key = chunks.pop(&mut self.slots[index])?;
        if self.slots[index].len() == 0 {
            self.occupied[index / 64] &= !(1 << (index % 64));
            if self.occupied[index / 64] == 0 {
                self.summary &= !(1 << (index / 64));
            }
        }
        Some(key)
    }

    pub(super) fn slot_len(&self, number: u64) -> usize {
        self.slots[Self::index(number)].len()
    }

    /// The first slot with entries, from number `from` once around the ring.
    pub(super) fn first_occupied(&self, from: u64) -> Option<u64> {
        if self.summary == 0 {
            return None;
        }
        let start = Self::index(from);
        let (word, bit) = (start / 64, start % 64);
        let here = self.occupied[word] >> bit;
        if here != 0 {
            return Some(from + u64::from(here.trailing_zeros()));
        }
        // Words after this one, then around; this one again last, for the slots before `start`.
        let rotated = self.summary.rotate_right(word as u32 + 1);
        let ahead = rotated.trailing_zeros() as usize;
        let found = (word + 1 + ahead) % WORDS;
        let index = found * 64 + self.occupied[found].trailing_zeros() as usize;
        Some(from + ((index + SLOTS - start) % SLOTS) as u64)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>() + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_occupied_slot_is_found_around_the_ring() {
        for from in [0, 1, 63, 64, 2_047, 4_095, 1 << 40, (1 << 40) + 4_000] {
            for ahead in [0, 1, 62, 63, 64, 65, 2_048, 4_032, 4_095] {
                let (mut level, mut chunks) = (Level::new(), Chunks::default());
                assert_eq!(level.first_occupied(from), None);
                level.push(from + ahead, 7, &mut chunks);
                assert_eq!(level.first_occupied(from), Some(from + ahead), "{from} + {ahead}");
                assert_eq!(level.pop(from + ahead, &mut chunks), Some(7));
                assert_eq!(level.first_occupied(from), None);
            }
        }
    }
}
