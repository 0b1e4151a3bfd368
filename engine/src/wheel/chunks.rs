//! Storage of a slot's entries: chunks of 256 entries from one pool, so that a slot grows without
//! copying, an empty slot costs 12 bytes, and a dense wheel costs 8.2 bytes an entry.

/// Entries of one chunk: 2 KiB. The chunks of a slot lie anywhere, and each costs a few misses at its begin: in chunks
/// of 64 entries, moving down took twice the time.
const CHUNK_ENTRIES: usize = 256;

/// Entries taken at once.
pub(super) const BATCH_ENTRIES: usize = 64;

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
    fn oldest(&self, slot: Slot) -> &[u64] {
        if slot.is_empty() {
            return &[];
        }
        let at = slot.oldest as usize % PAGE_ENTRIES;
        let count = (CHUNK_ENTRIES - at % CHUNK_ENTRIES).min(slot.len());
        &self.pages[slot.oldest as usize / PAGE_ENTRIES].entries[at..at + count]
    }

    /// Removes the first `count` of what [`Chunks::oldest`] answers.
    #[inline]
    fn drop_oldest(&mut self, slot: &mut Slot, count: usize) {
        let chunk = slot.oldest / CHUNK_ENTRIES as u32;
        slot.oldest += count as u32;
        let is_empty = slot.oldest == slot.end;
        if is_empty || slot.oldest.is_multiple_of(CHUNK_ENTRIES as u32) {
            let free = self.free;
            let newer = std::mem::replace(self.next_of(chunk), free);
            self.free = chunk;
            if is_empty {
                *slot = Slot::default();
            } else {
                slot.oldest = newer * CHUNK_ENTRIES as u32;
                slot.chunks -= 1;
            }
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

    /// Empties a slot, and hands its entries over in the order of their insertion.
    #[inline]
    pub(super) fn drain(&mut self, slot: &mut Slot, mut over: impl FnMut(&[u64])) {
        while !slot.is_empty() {
            let entries = self.oldest(*slot);
            let count = entries.len();
            over(entries);
            self.drop_oldest(slot, count);
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
