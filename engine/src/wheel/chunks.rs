//! Storage of a slot's entries: chunks of 64 entries from one pool, so that a slot grows without
//! copying, an empty slot costs 8 bytes, and a dense wheel costs 8.1 bytes an entry.

/// Entries of one chunk: 512 bytes, long enough for the processor to read ahead.
pub(super) const CHUNK_ENTRIES: usize = 64;

/// Chunks allocated together: 64 KiB.
const PAGE_CHUNKS: usize = 128;

/// No chunk. Numbers of chunks count from 1, so that zeroed memory is a valid empty slot.
const NONE: u32 = 0;

struct Page {
    entries: [[u64; CHUNK_ENTRIES]; PAGE_CHUNKS],
    /// Of each chunk the next older one of its slot, or of the free list.
    next: [u32; PAGE_CHUNKS],
}

/// A stack of entries. All chunks but the newest are full, so the count also says where the newest ends.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    newest: u32,
    count: u32,
}

impl Slot {
    pub(super) fn len(self) -> usize {
        self.count as usize
    }
}

#[derive(Default)]
pub(super) struct Chunks {
    pages: Vec<Box<Page>>,
    free: u32,
}

impl Chunks {
    #[inline]
    fn page(&mut self, chunk: u32) -> (&mut Page, usize) {
        let index = chunk as usize - 1;
        (&mut self.pages[index / PAGE_CHUNKS], index % PAGE_CHUNKS)
    }

    /// A chunk on top of `below`.
    fn take(&mut self, below: u32) -> u32 {
        if self.free == NONE {
            self.grow();
        }
        let chunk = self.free;
        let (page, at) = self.page(chunk);
        self.free = std::mem::replace(&mut page.next[at], below);
        chunk
    }

    #[cold]
    fn grow(&mut self) {
        let first = self.pages.len() * PAGE_CHUNKS + 1;
        assert!(first + PAGE_CHUNKS <= u32::MAX as usize, "fewer than 2^32 chunks: 2 TiB of entries");
        // The last one ends the list.
        let next = |at: usize| if at == PAGE_CHUNKS - 1 { NONE } else { (first + at) as u32 + 1 };
        let page = Page { entries: [[0; CHUNK_ENTRIES]; PAGE_CHUNKS], next: std::array::from_fn(next) };
        self.pages.push(Box::new(page));
        self.free = first as u32;
    }

    #[inline]
    pub(super) fn push(&mut self, slot: &mut Slot, entry: u64) {
        let at = slot.count as usize % CHUNK_ENTRIES;
        if at == 0 {
            slot.newest = self.take(slot.newest);
        }
        let (page, chunk) = self.page(slot.newest);
        page.entries[chunk][at] = entry;
        slot.count += 1;
    }

    /// Takes up to `most` of the newest entries, as many as one chunk gives. They come in the order of
    /// their insertion; none where the slot is empty or `most` is 0.
    #[inline]
    pub(super) fn pop<'a>(
        &mut self,
        slot: &mut Slot,
        most: usize,
        into: &'a mut [u64; CHUNK_ENTRIES],
    ) -> &'a [u64] {
        if slot.count == 0 || most == 0 {
            return &[];
        }
        let held = (slot.count as usize - 1) % CHUNK_ENTRIES + 1;
        let taken = held.min(most);
        let (free, newest) = (self.free, slot.newest);
        let (page, chunk) = self.page(newest);
        let into = &mut into[..taken];
        into.copy_from_slice(&page.entries[chunk][held - taken..held]);
        slot.count -= taken as u32;
        if taken == held {
            slot.newest = std::mem::replace(&mut page.next[chunk], free);
            self.free = newest;
        }
        into
    }

    /// Gives all memory back. Only while no slot holds an entry.
    pub(super) fn release(&mut self) {
        self.pages = Vec::new();
        self.free = NONE;
    }

    /// Bytes held, those of free chunks included.
    pub(super) fn memory_bytes(&self) -> usize {
        self.pages.len() * size_of::<Page>() + self.pages.capacity() * size_of::<Box<Page>>()
    }
}
