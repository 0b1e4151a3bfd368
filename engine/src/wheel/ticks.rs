//! The lowest level: a ring of single ticks, whose first keys lie side by side in one block of memory.
//!
//! The keys of the next 256 ticks arrive in any order of ticks, so each one goes to another slot. In chunks that lie
//! anywhere in the pool that costs more than all the rest of moving down; 512 ticks of 32 keys are 128 KiB, which stay
//! in the second-level cache. What a busy tick holds beyond goes to chunks, where many keys make up for it.

use super::chunks::{Chunks, Slot};
use super::level::ring;
use super::occupied::Occupied;

/// Keys of a tick that need no chunk.
pub(super) const DIRECT_KEYS: usize = 32;

const TICKS: usize = ring(0);

#[derive(Clone, Copy, Default)]
struct Tick {
    /// Of the direct keys.
    count: u32,
    /// The keys after the first [`DIRECT_KEYS`].
    more: Slot,
}

pub(super) struct Ticks {
    ticks: Box<[Tick; TICKS]>,
    keys: Box<[[u64; DIRECT_KEYS]; TICKS]>,
    occupied: Occupied,
}

impl Ticks {
    pub(super) fn new() -> Self {
        Ticks {
            ticks: Box::new([Tick::default(); TICKS]),
            keys: Box::new([[0; DIRECT_KEYS]; TICKS]),
            occupied: Occupied::new(TICKS),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, tick: u64, key: u64, chunks: &mut Chunks) {
        let index = tick as usize % TICKS;
        let slot = &mut self.ticks[index];
        let at = slot.count as usize;
        if at < DIRECT_KEYS {
            self.keys[index][at] = key;
            slot.count += 1;
            if at == 0 {
                self.occupied.mark(index);
            }
        } else {
            chunks.push(&mut slot.more, key);
        }
    }

    /// Empties a tick into `into`, in the order of insertion. Where it has more than `most` keys and they ascend, what
    /// follows about as many is handed over in its chunks.
    pub(super) fn take(&mut self, tick: u64, most: usize, chunks: &mut Chunks, into: &mut Vec<u64>) -> Slot {
        let index = tick as usize % TICKS;
        let slot = &mut self.ticks[index];
        let direct = &self.keys[index][..slot.count as usize];
        into.extend_from_slice(direct);
        slot.count = 0;
        self.occupied.unmark(index);
        let mut more = std::mem::take(&mut slot.more);
        let count = more.len();
        let is_ascending =
            || direct.is_sorted_by(|a, b| a < b) && chunks.is_ascending(more, direct.last().copied());
        let most = if count > most && is_ascending() { most } else { count };
        into.reserve(most);
        chunks.drain(&mut more, most, into);
        more
    }

    /// The first tick with keys, from this one once around the ring.
    #[inline]
    pub(super) fn first_occupied(&self, from: u64) -> Option<u64> {
        self.occupied.first(from)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.ticks) + size_of_val(&*self.keys) + self.occupied.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_gives_its_keys_in_the_order_of_insertion_and_is_empty_then() {
        let (mut ticks, mut chunks) = (Ticks::new(), Chunks::default());
        for count in [1, 31, 32, 33, 64, 1_000, 2] {
            for (tick, first) in [(511, 0), (512, 5_000)] {
                (first..first + count).rev().for_each(|key| ticks.push(tick, key, &mut chunks));
            }
            assert_eq!(ticks.first_occupied(511), Some(511));
            let mut keys = Vec::new();
            assert!(ticks.take(511, 100, &mut chunks, &mut keys).is_empty());
            assert!(keys.iter().copied().eq((0..count).rev()), "{count} keys, {keys:?}");
            assert_eq!(ticks.first_occupied(511), Some(512));
            assert!(ticks.take(512, 100, &mut chunks, &mut keys).is_empty());
            assert_eq!((keys.len() as u64, keys[count as usize]), (2 * count, 5_000 + count - 1));
            assert_eq!(ticks.first_occupied(511), None);
        }
    }

    #[test]
    fn of_many_keys_that_ascend_a_part_stays_in_its_chunks() {
        let (mut ticks, mut chunks) = (Ticks::new(), Chunks::default());
        (0..5_000).for_each(|key| ticks.push(7, key, &mut chunks));
        let mut keys = Vec::new();
        let mut more = ticks.take(7, 1_000, &mut chunks, &mut keys);
        assert!((1_000..1_500).contains(&keys.len()), "{}", keys.len());
        assert_eq!(keys.len() + more.len(), 5_000);
        chunks.drain(&mut more, usize::MAX, &mut keys);
        assert!(keys.into_iter().eq(0..5_000));
        // The owner sorts what is smaller than one before, wherever that is.
        for smaller in [1, DIRECT_KEYS as u64, 4_999] {
            (1..=5_000).for_each(|key| ticks.push(7, if key == smaller + 1 { 0 } else { key }, &mut chunks));
            assert!(ticks.take(7, 1_000, &mut chunks, &mut Vec::new()).is_empty(), "{smaller}");
        }
    }
}
