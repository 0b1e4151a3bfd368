//! The keys of one tick, where they are very many.
//!
//! Sorting a million keys at once takes longer than anybody else's event should wait, and so does the first touch of the
//! memory that they are copied to. But keys are inserted by ascending number, and come in few stretches: one from each
//! level that they came down from. So they stay in their chunks, and the stretches are merged when keys are asked for.

use super::chunks::{Chunks, Slot};

/// With more stretches, sorting is as good.
const STRETCHES_MAX: usize = 16;

/// What is left of one stretch: the first keys of `rest`.
struct Stretch {
    rest: Slot,
    len: usize,
}

impl Stretch {
    /// The next keys, ascending, as many as lie side by side.
    fn next<'a>(&self, chunks: &'a Chunks) -> &'a [u64] {
        let keys = chunks.oldest(self.rest);
        &keys[..keys.len().min(self.len)]
    }
}

/// What is left of a tick's keys. Empty by default.
#[derive(Default)]
pub(super) struct Crowd {
    /// All the keys: their chunks are given back when the last one was taken.
    slot: Slot,
    /// None of them empty.
    stretches: Vec<Stretch>,
    /// The key that was taken last.
    last: Option<u64>,
}

impl Crowd {
    /// Of a slot's keys, unless they are in too many stretches: then the slot comes back.
    pub(super) fn of(slot: Slot, chunks: &Chunks) -> Result<Crowd, Slot> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let (mut rest, mut last) = (slot, None);
        while !rest.is_empty() {
            let keys = chunks.oldest(rest);
            let follows = last.is_some_and(|last| last < keys[0]);
            let len = keys.windows(2).position(|pair| pair[0] >= pair[1]).map_or(keys.len(), |at| at + 1);
            if let Some(stretch) = stretches.last_mut().filter(|_| follows) {
                stretch.len += len;
            } else if stretches.len() < STRETCHES_MAX {
                stretches.push(Stretch { rest, len });
            } else {
                return Err(slot);
            }
            last = Some(keys[len - 1]);
            rest = chunks.after_oldest(rest, len);
        }
        Ok(Crowd { slot, stretches, last: None })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// Moves the smallest keys to the end of `into`, ascending, about as many as `most`, each once. Answers how many there are
    /// less now: a key that was rescheduled away and back is there twice.
    pub(super) fn take(&mut self, most: usize, chunks: &mut Chunks, into: &mut Vec<u64>) -> usize {
        let (most, mut count) = (most.saturating_add(into.len()), 0);
        while into.len() < most && !self.is_empty() {
            count += self.take_some(chunks, into);
        }
        if count > 0 && self.is_empty() {
            chunks.free(std::mem::take(&mut self.slot));
        }
        count
    }

    /// Takes what comes next out of one stretch.
    fn take_some(&mut self, chunks: &Chunks, into: &mut Vec<u64>) -> usize {
        let first = |stretch: &Stretch| stretch.next(chunks)[0];
        let heads = self.stretches.iter().map(first).enumerate();
        let (at, _) = heads.min_by_key(|(_, key)| *key).expect("not empty");
        let others = self.stretches.iter().enumerate().filter(|(other, _)| *other != at);
        let upto = others.map(|(_, stretch)| first(stretch)).min().unwrap_or(u64::MAX);
        let stretch = &mut self.stretches[at];
        let keys = stretch.next(chunks);
        let keys = &keys[..keys.partition_point(|key| *key <= upto)];
        let known = usize::from(self.last == Some(keys[0]));
        into.extend_from_slice(&keys[known..]);
        self.last = keys.last().copied();
        stretch.rest = chunks.after_oldest(stretch.rest, keys.len());
        stretch.len -= keys.len();
        if stretch.len == 0 {
            self.stretches.swap_remove(at);
        }
        keys.len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.stretches.capacity() * size_of::<Stretch>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn stretches_come_out_in_one_order_each_key_once_and_give_their_chunks_back(
            stretches in prop::collection::vec((0..2_000u64, 1..4u64, 1..600usize), 1..=STRETCHES_MAX),
            most in 1..700usize,
        ) {
            let (mut chunks, mut slot) = (Chunks::default(), Slot::default());
            let mut model = BTreeSet::new();
            for (first, step, count) in stretches {
                for key in (first..).step_by(step as usize).take(count) {
                    chunks.push(&mut slot, key);
                    model.insert(key);
                }
            }
            let mut left = slot.len();
            let Ok(mut crowd) = Crowd::of(slot, &chunks) else { panic!("few stretches") };
            let mut taken = Vec::new();
            while left > 0 {
                let before = taken.len();
                left -= crowd.take(most, &mut chunks, &mut taken);
                prop_assert_eq!(crowd.is_empty(), left == 0);
                prop_assert!(left == 0 || taken.len() >= before + most);
            }
            prop_assert!(taken.into_iter().eq(model));
            // All that was held is free: as much again fits without another page.
            let held = chunks.memory_bytes();
            let mut again = Slot::default();
            (0..slot.len() as u64).for_each(|key| chunks.push(&mut again, key));
            prop_assert_eq!(chunks.memory_bytes(), held);
        }
    }

    #[test]
    fn what_is_in_no_order_is_left_to_be_sorted() {
        let (mut chunks, mut slot) = (Chunks::default(), Slot::default());
        (0..1_000).rev().for_each(|key| chunks.push(&mut slot, key));
        assert_eq!(Crowd::of(slot, &chunks).err().map(Slot::len), Some(1_000));
    }
}
