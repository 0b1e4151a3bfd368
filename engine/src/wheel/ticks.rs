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

    /// Empties a tick into `into`, in the order of insertion.
    pub(super) fn take(&mut self, tick: u64, chunks: &mut Chunks, into: &mut Vec<u64>) {
        let index = tick as usize % TICKS;
        let slot = &mut self.ticks[index];
        into.extend_from_slice(&self.keys[index][..slot.count as usize]);
        slot.count = 0;
        self.occupied.unmark(index);
        if !slot.more.is_empty() {
            into.reserve(slot.more.len());
            chunks.drain(&mut slot.more, |keys| into.extend_from_slice(keys));
        }
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
            ticks.take(511, &mut chunks, &mut keys);
            assert!(keys.iter().copied().eq((0..count).rev()), "{count} keys, {keys:?}");
            assert_eq!(ticks.first_occupied(511), Some(512));
            ticks.take(512, &mut chunks, &mut keys);
            assert_eq!((keys.len() as u64, keys[count as usize]), (2 * count, 5_000 + count - 1));
            assert_eq!(ticks.first_occupied(511), None);
        }
    }
}
