//! Which slots of a ring hold entries.

pub(super) struct Occupied {
    /// Bit per slot that holds entries.
    words: Box<[u64]>,
    /// Bit per word that is not zero.
    summary: u64,
}

impl Occupied {
    /// For a ring of `slots` slots.
    pub(super) fn new(slots: usize) -> Self {
        assert!(slots.is_power_of_two() && (64..=64 * 64).contains(&slots), "the summary is one word");
        Occupied { words: vec![0; slots / 64].into_boxed_slice(), summary: 0 }
    }

    #[inline]
    pub(super) fn mark(&mut self, index: usize) {
        self.words[index / 64] |= 1 << (index % 64);
        self.summary |= 1 << (index / 64);
    }

    #[inline]
    pub(super) fn unmark(&mut self, index: usize) {
        self.words[index / 64] &= !(1 << (index % 64));
        if self.words[index / 64] == 0 {
            self.summary &= !(1 << (index / 64));
        }
    }

    /// The number of the first slot with entries, from number `from` once around the ring.
    #[inline]
    pub(super) fn first(&self, from: u64) -> Option<u64> {
        if self.summary == 0 {
            return None;
        }
        let last = self.words.len() * 64 - 1;
        let start = from as usize & last;
        let (word, bit) = (start / 64, start % 64);
        let here = self.words[word] >> bit;
        if here != 0 {
            return Some(from + u64::from(here.trailing_zeros()));
        }
        // Words after this one, then around; this one again last, for the slots before `start`.
        let after = self.summary & (u64::MAX << word << 1);
        let found = if after == 0 { self.summary } else { after }.trailing_zeros() as usize;
        let index = found * 64 + self.words[found].trailing_zeros() as usize;
        Some(from + (index.wrapping_sub(start) & last) as u64)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_occupied_slot_is_found_around_the_ring() {
        for slots in [512, 4_096] {
            let froms = [0, 1, 63, 64, 255, 511, 2_047, 4_095, 1 << 40, (1 << 40) + 4_000];
            let distances = [0, 1, 62, 63, 64, 65, 500, 511, 2_048, 4_032, 4_095];
            for (from, ahead) in froms.into_iter().flat_map(|from| distances.map(|ahead| (from, ahead))) {
                if ahead >= slots {
                    continue;
                }
                let mut occupied = Occupied::new(slots as usize);
                assert_eq!(occupied.first(from), None);
                let index = ((from + ahead) % slots) as usize;
                occupied.mark(index);
                assert_eq!(occupied.first(from), Some(from + ahead), "{from} + {ahead}");
                occupied.unmark(index);
                assert_eq!(occupied.first(from), None);
            }
        }
    }
}
