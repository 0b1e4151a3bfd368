//! Storage of a slot's entries: chunks of 256 entries from one pool, so that a slot grows without
//! copying, an empty slot costs 12 bytes, and a dense wheel costs 8.2 bytes an entry.

/// Entries of one chunk: 2 KiB. The chunks of a slot lie anywhere, and each costs a few misses at its begin: in chunks
/// of 64 entries, moving down took twice the time.
const CHUNK_ENTRIES: usize = 256;

/// Entries taken at once, at most: a whole chunk, so that the misses at its begin are paid once.
pub(super) const BATCH_ENTRIES: usize = CHUNK_ENTRIES;

/// Chunks allocated together: 256 KiB.
const PAGE_CHUNKS: usize = 128;

const PAGE_ENTRIES: usize = PAGE_CHUNKS * CHUNK_ENTRIES;

/// No chunk: ends the free list.
const NONE: u32 = u32::MAX;

struct Page {
    /// Zeroed by the allocator, so that a fresh page costs its first touch only.
    entries: Box<[u64; PAGE_ENTRIES]>,
    /// Of each chunk the next newer one of its slot, or the next of the free list.
    next: Box<[u32; PAGE_CHUNKS]>,
}

/// A queue of entries, oldest first. Entries are numbered through all pages; a slot without entries holds no chunk.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    /// Where the oldest entry is.
    oldest: u32,
    /// After the newest entry; 0 where there is none. At a chunk's border, the next entry needs a new chunk.
    end: u32,
    chunks: u32,
}

impl Slot {
    pub(super) fn is_empty(self) -> bool {
        self.end == 0
    }

    pub(super) fn len(self) -> usize {
        if self.is_empty() {
            return 0;
        }
        let first = self.oldest as usize % CHUNK_ENTRIES;
        let last = (self.end as usize - 1) % CHUNK_ENTRIES + 1;
        (self.chunks as usize - 1) * CHUNK_ENTRIES + last - first
    }
}

pub(super) struct Chunks {
    pages: Vec<Page>,
    free: u32,
}

impl Default for Chunks {
    fn default() -> Self {
        Chunks { pages: Vec::new(), free: NONE }
    }
}

impl Chunks {
    fn next_of(&mut self, chunk: u32) -> &mut u32 {
        let at = chunk as usize;
        &mut self.pages[at / PAGE_CHUNKS].next[at % PAGE_CHUNKS]
    }

    /// Gives a slot a chunk for its next entries.
    #[cold]
    fn lengthen(&mut self, slot: &mut Slot) {
        if self.free == NONE {
            self.grow();
        }
        let chunk = self.free;
        self.free = *self.next_of(chunk);
        let begin = chunk * CHUNK_ENTRIES as u32;
        if slot.is_empty() {
            slot.oldest = begin;
        } else {
            *self.next_of((slot.end - 1) / CHUNK_ENTRIES as u32) = chunk;
        }
        slot.chunks += 1;
        slot.end = begin;
    }

    #[cold]
    fn grow(&mut self) {
        let first = self.pages.len() * PAGE_CHUNKS;
        let end = first + PAGE_CHUNKS;
        assert!(end * CHUNK_ENTRIES <= u32::MAX as usize, "fewer than 2^32 entries: 32 GiB");
        // The last one ends the list.
        let next = |at: usize| if first + at + 1 == end { NONE } else { (first + at) as u32 + 1 };
        let entries = vec![0; PAGE_ENTRIES].into_boxed_slice();
        let Ok(entries) = entries.try_into() else { unreachable!("it was made with this length") };
        self.pages.push(Page { entries, next: Box::new(std::array::from_fn(next)) });
        self.free = first as u32;
    }

    #[inline]
    pub(super) fn push(&mut self, slot: &mut Slot, entry: u64) {
        if slot.end.is_multiple_of(CHUNK_ENTRIES as u32) {
            self.lengthen(slot);
        }
        let at = slot.end as usize;
        self.pages[at / PAGE_ENTRIES].entries[at % PAGE_ENTRIES] = entry;
        slot.end += 1;
    }

    /// A slot's oldest entries, as many as one chunk gives, in the order of their insertion. None where the
    /// slot is empty.
    #[inline]
    pub(super) fn oldest(&self, slot: Slot) -> &[u64] {
        if slot.is_empty() {
            return &[];
        }
        let at = slot.oldest as usize % PAGE_ENTRIES;
        let count = (CHUNK_ENTRIES - at % CHUNK_ENTRIES).min(slot.len());
        &self.pages[slot.oldest as usize / PAGE_ENTRIES].entries[at..at + count]
    }

    /// What is left of a slot without the first `count` of what [`Chunks::oldest`] answers.
    #[inline]
    pub(super) fn after_oldest(&self, slot: Slot, count: usize) -> Slot {
        let oldest = slot.oldest + count as u32;
        if oldest == slot.end {
            return Slot::default();
        }
        if !oldest.is_multiple_of(CHUNK_ENTRIES as u32) {
            return Slot { oldest, ..slot };
        }
        let at = slot.oldest as usize / CHUNK_ENTRIES;
        let newer = self.pages[at / PAGE_CHUNKS].next[at % PAGE_CHUNKS];
        Slot { oldest: newer * CHUNK_ENTRIES as u32, chunks: slot.chunks - 1, ..slot }
    }

    /// Removes the first `count` of what [`Chunks::oldest`] answers.
    #[inline]
    fn drop_oldest(&mut self, slot: &mut Slot, count: usize) {
        let chunk = slot.oldest / CHUNK_ENTRIES as u32;
        *slot = self.after_oldest(*slot, count);
        if slot.is_empty() || slot.oldest / CHUNK_ENTRIES as u32 != chunk {
            let free = std::mem::replace(&mut self.free, chunk);
            *self.next_of(chunk) = free;
        }
    }

    /// Takes a slot's oldest entries: up to `most`, at most a batch, and as many as one chunk gives. They come in the order of
    /// their insertion; none where the slot is empty or `most` is 0.
    #[inline]
    pub(super) fn take<'a>(
        &mut self,
        slot: &mut Slot,
        most: usize,
        into: &'a mut [u64; BATCH_ENTRIES],
    ) -> &'a [u64] {
        let entries = self.oldest(*slot);
        let count = entries.len().min(most).min(BATCH_ENTRIES);
        let into = &mut into[..count];
        into.copy_from_slice(&entries[..count]);
        if count > 0 {
            self.drop_oldest(slot, count);
        }
        into
    }

    /// Gives back a slot's chunks.
    pub(super) fn free(&mut self, mut slot: Slot) {
        while !slot.is_empty() {
            let count = self.oldest(slot).len();
            self.drop_oldest(&mut slot, count);
        }
    }

    /// Empties a slot into `into`, in the order of insertion.
    #[inline]
    pub(super) fn drain(&mut self, slot: &mut Slot, into: &mut Vec<u64>) {
        into.reserve(slot.len());
        while !slot.is_empty() {
            let entries = self.oldest(*slot);
            into.extend_from_slice(entries);
            self.drop_oldest(slot, entries.len());
        }
    }

    /// Gives all memory back. Only while no slot holds an entry.
    pub(super) fn release(&mut self) {
        *self = Chunks::default();
    }

    /// Bytes held, those of free chunks included.
    pub(super) fn memory_bytes(&self) -> usize {
        let page = PAGE_ENTRIES * size_of::<u64>() + PAGE_CHUNKS * size_of::<u32>();
        self.pages.len() * page + self.pages.capacity() * size_of::<Page>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn slots_of_one_pool_are_queues_and_share_its_memory(
            steps in prop::collection::vec((0..3usize, 0..3u8, 0..700usize), 1..60),
        ) {
            let mut chunks = Chunks::default();
            let mut slots = [Slot::default(); 3];
            let mut models: [VecDeque<u64>; 3] = Default::default();
            let (mut next, mut most_held) = (0, 0);
            for (of, what, count) in steps {
                let (slot, model) = (&mut slots[of], &mut models[of]);
                if what < 2 {
                    for entry in next..next + count as u64 {
                        chunks.push(slot, entry);
                        model.push_back(entry);
                    }
                    next += count as u64;
                } else {
                    let mut batch = [0; BATCH_ENTRIES];
                    let taken = chunks.take(slot, count, &mut batch);
                    prop_assert_eq!(taken.is_empty(), model.is_empty() || count == 0);
                    prop_assert!(taken.len() <= count);
                    prop_assert!(taken.iter().copied().eq(model.drain(..taken.len())));
                }
                prop_assert_eq!(slot.len(), model.len());
                prop_assert_eq!(slot.is_empty(), model.is_empty());
                most_held = most_held.max(models.iter().map(VecDeque::len).sum());
            }
            for (slot, model) in slots.iter_mut().zip(models) {
                let mut drained = Vec::new();
                chunks.drain(slot, &mut drained);
                prop_assert!(drained.into_iter().eq(model));
                prop_assert!(slot.is_empty());
            }
            // Each slot may hold a chunk that is partly empty at each of its ends.
            let needed = most_held.div_ceil(CHUNK_ENTRIES) + 2 * slots.len();
            prop_assert!(chunks.pages.len() <= needed.div_ceil(PAGE_CHUNKS));
        }
    }

    #[test]
    fn chunks_that_were_given_back_are_used_before_new_ones() {
        let (mut chunks, mut slot) = (Chunks::default(), Slot::default());
        for round in 0..5 {
            for entry in 0..PAGE_ENTRIES as u64 {
                chunks.push(&mut slot, entry);
            }
            let mut drained = Vec::new();
            chunks.drain(&mut slot, &mut drained);
            assert_eq!((drained.len(), chunks.pages.len()), (PAGE_ENTRIES, 1), "round {round}");
        }
    }
}
