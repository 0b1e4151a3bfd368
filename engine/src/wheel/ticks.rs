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

    /// Empties a tick into `into`, in the order of insertion. Where it has more than `most` keys, they are handed over in
    /// their chunks instead.
    pub(super) fn take(
        &mut self,
        tick: u64,
        most: usize,
        chunks: &mut Chunks,
        into: &mut Vec<u64>,
    ) -> Option<Slot> {
        let index = tick as usize % TICKS;
        let slot = &mut self.ticks[index];
        let direct = &self.keys[index][..std::mem::take(&mut slot.count) as usize];
        let mut more = std::mem::take(&mut slot.more);
        self.occupied.unmark(index);
        if direct.len() + more.len() > most {
            direct.iter().for_each(|key| chunks.push(&mut more, *key));
            return Some(more);
        }
        into.extend_from_slice(direct);
        chunks.drain(&mut more, into);
        None
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
            assert!(ticks.take(511, usize::MAX, &mut chunks, &mut keys).is_none());
            assert!(keys.iter().copied().eq((0..count).rev()), "{count} keys, {keys:?}");
            assert_eq!(ticks.first_occupied(511), Some(512));
            assert!(ticks.take(512, usize::MAX, &mut chunks, &mut keys).is_none());
            assert_eq!((keys.len() as u64, keys[count as usize]), (2 * count, 5_000 + count - 1));
            assert_eq!(ticks.first_occupied(511), None);
        }
    }

    #[test]
    fn many_keys_are_handed_over_in_their_chunks() {
        let (mut ticks, mut chunks) = (Ticks::new(), Chunks::default());
        for key in 0..5_000 {
            ticks.push(7, key, &mut chunks);
        }
        let mut keys = Vec::new();
        let mut slot = ticks.take(7, 4_999, &mut chunks, &mut keys).expect("more than 4,999");
        assert!(keys.is_empty() && ticks.first_occupied(7).is_none());
        chunks.drain(&mut slot, &mut keys);
        keys.sort_unstable();
        assert!(keys.into_iter().eq(0..5_000));
    }
}
