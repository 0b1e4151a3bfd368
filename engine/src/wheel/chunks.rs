//! Storage of a slot's entries: chunks of 31 entries from one pool, so that a slot grows without
//! copying, an empty slot costs 8 bytes, and a dense wheel costs 8.3 bytes an entry.

/// Entries of one chunk: with its link, 256 bytes.
const CHUNK_ENTRIES: u32 = 31;

/// Chunks allocated together: 64 KiB.
const PAGE_CHUNKS: usize = 256;

/// No chunk. Numbers of chunks count from 1, so that zeroed memory is a valid empty slot.
const NONE: u32 = 0;

#[derive(Clone, Copy)]
struct Chunk {
    /// The next older chunk of the slot, or of the free list.
    next: u32,
    entries: [u64; CHUNK_ENTRIES as usize],
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
    pages: Vec<Box<[Chunk; PAGE_CHUNKS]>>,
    free: u32,
}

impl Chunks {
    fn at(&mut self, chunk: u32) -> &mut Chunk {
        let index = chunk as usize - 1;
        &mut self.pages[index / PAGE_CHUNKS][index % PAGE_CHUNKS]
    }

    fn take(&mut self) -> u32 {
        if self.free == NONE {
            self.grow();
        }
        let chunk = self.free;
        self.free = self.at(chunk).next;
        chunk
    }

    #[cold]
    fn grow(&mut self) {
        let first = self.pages.len() * PAGE_CHUNKS + 1;
        let number = |index: usize| u32::try_from(index).expect("fewer than 2^32 chunks: 1 TiB of entries");
        let last = first + PAGE_CHUNKS - 1;
        let page: Vec<Chunk> = (first..=last)
            .map(|at| Chunk {
                next: if at == last { NONE } else { number(at + 1) },
                entries: [0; CHUNK_ENTRIES as usize],
            })
            .collect();
        self.pages.push(page.try_into().ok().expect("a page's length"));
        self.free = number(first);
    }

    #[inline]
    pub(super) fn push(&mut self, slot: &mut Slot, entry: u64) {
        let at = slot.count % CHUNK_ENTRIES;
        if at == 0 {
            let chunk = self.take();
            self.at(chunk).next = slot.newest;
            slot.newest = chunk;
        }
        self.at(slot.newest).entries[at as usize] = entry;
        slot.count += 1;
    }

    /// Takes the newest entry.
    #[inline]
    pub(super) fn pop(&mut self, slot: &mut Slot) -> Option<u64> {
        let last = slot.count.checked_sub(1)?;
        let at = last % CHUNK_ENTRIES;
        let newest = slot.newest;
        let free = self.free;
        let chunk = self.at(newest);
        let entry = chunk.entries[at as usize];
        slot.count = last;
        if at == 0 {
            slot.newest = std::mem::replace(&mut chunk.next, free);
            self.free = newest;
        }
        Some(entry)
    }

    /// Gives all memory back. Only while no slot holds an entry.
    pub(super) fn release(&mut self) {
        self.pages = Vec::new();
        self.free = NONE;
    }

    /// Bytes held, those of free chunks included.
    pub(super) fn memory_bytes(&self) -> usize {
        self.pages.len() * PAGE_CHUNKS * size_of::<Chunk>() + self.pages.capacity() * size_of::<Box<Chunk>>()
    }
}
