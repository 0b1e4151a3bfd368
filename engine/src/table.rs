//! The pending events of a shard, by sequence: a paged array, because sequences are dense when new and
//! die roughly in order.

use std::collections::VecDeque;

use escapement_protocol::{Sequence, TopicId, WallMs};

use crate::payload::Location;

const PAGE_BITS: u32 = 10;
const PAGE_LEN: usize = 1 << PAGE_BITS;

/// What is kept in memory of one pending event, besides its bytes: 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Effective due time: its `schedule_time`, or when it was accepted where that is later.
    pub(crate) due: WallMs,
    /// Where its bytes are, and how many.
    pub(crate) location: Location,
    /// Its topic.
    pub(crate) topic: TopicId,
    /// Low 32 bits of the sequence of the block that holds it.
    pub(crate) block: u32,
}

const VACANT: Entry =
    Entry { due: WallMs(u64::MAX), location: Location::NOWHERE, topic: TopicId(0), block: 0 };

#[derive(Debug)]
struct Page {
    live: u32,
    entries: Box<[Entry; PAGE_LEN]>,
}

impl Page {
    fn new() -> Page {
        let entries = vec![VACANT; PAGE_LEN].into_boxed_slice();
        Page { live: 0, entries: entries.try_into().expect("a page's length") }
    }
}

/// Pending events by sequence. Lookup, insert and remove are O(1); memory follows the pages that hold live events.
#[derive(Debug, Default)]
pub(crate) struct EventTable {
    pages: VecDeque<Option<Page>>,
    /// Page number of `pages[0]`.
    base: u64,
    len: usize,
    spare: Vec<Page>,
    page_count: usize,
}

impl EventTable {
    /// How many events are pending.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes held.
    #[must_use]
    pub(crate) fn memory_bytes(&self) -> usize {
        (self.page_count + self.spare.len()) * PAGE_LEN * size_of::<Entry>()
            + self.pages.capacity() * size_of::<Option<Page>>()
    }

    fn position(&self, sequence: Sequence) -> Option<(usize, usize)> {
        let page = (sequence.0 >> PAGE_BITS).checked_sub(self.base)?;
        Some((usize::try_from(page).ok()?, sequence.0 as usize & (PAGE_LEN - 1)))
    }

    /// The entry of `sequence`.
    #[must_use]
    #[inline]
    pub(crate) fn get(&self, sequence: Sequence) -> Option<&Entry> {
        let (page, at) = self.position(sequence)?;
        let entry = &self.pages.get(page)?.as_ref()?.entries[at];
        (entry.due != VACANT.due).then_some(entry)
    }

    /// Reads a little of each entry, so that the cache misses of a batch overlap instead of following one another.
    pub(crate) fn touch(&self, sequences: &[Sequence]) {
        let touched = sequences.iter().filter_map(|sequence| self.get(*sequence));
        std::hint::black_box(touched.fold(0, |mixed, entry| mixed ^ entry.block));
    }

    /// The entry of `sequence`, to be changed.
    #[must_use]
    pub(crate) fn get_mut(&mut self, sequence: Sequence) -> Option<&mut Entry> {
        let (page, at) = self.position(sequence)?;
        let entry = &mut self.pages.get_mut(page)?.as_mut()?.entries[at];
        (entry.due != VACANT.due).then_some(entry)
    }

    /// Inserts; returns the entry that was there before.
    pub(crate) fn insert(&mut self, sequence: Sequence, entry: Entry) -> Option<Entry> {
        let number = sequence.0 >> PAGE_BITS;
        if self.pages.is_empty() {
            self.base = number;
        }
        while number < self.base {
            self.pages.push_front(None);
            self.base -= 1;
        }
        let index = (number - self.base) as usize;
        while self.pages.len() <= index {
            self.pages.push_back(None);
        }
        let spare = &mut self.spare;
        let page_count = &mut self.page_count;
        let page = self.pages[index].get_or_insert_with(|| {
            *page_count += 1;
            spare.pop().unwrap_or_else(Page::new)
        });
        let slot = &mut page.entries[sequence.0 as usize & (PAGE_LEN - 1)];
        let before = std::mem::replace(slot, entry);
        if before.due != VACANT.due {
            return Some(before);
        }
        page.live += 1;
        self.len += 1;
        None
    }

    /// Removes and returns the entry.
    pub(crate) fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let (index, at) = self.position(sequence)?;
        let slot = self.pages.get_mut(index)?;
        let page = slot.as_mut()?;
        let entry = std::mem::replace(&mut page.entries[at], VACANT);
        if entry.due == VACANT.due {
            return None;
        }
        page.live -= 1;
        self.len -= 1;
        if page.live == 0 {
            self.page_count -= 1;
            let page = slot.take();
            if self.spare.len() < 64 {
                self.spare.extend(page);
            }
            while let Some(None) = self.pages.front() {
                self.pages.pop_front();
                self.base += 1;
            }
        }
        Some(entry)
    }

    /// All entries by ascending sequence.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Sequence, &Entry)> {
        self.pages.iter().enumerate().filter_map(|(i, page)| page.as_ref().map(|p| (i, p))).flat_map(
            move |(i, page)| {
                let first = (self.base + i as u64) << PAGE_BITS;
                page.entries
                    .iter()
                    .enumerate()
                    .filter(|(_, entry)| entry.due != VACANT.due)
                    .map(move |(at, entry)| (Sequence(first + at as u64), entry))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_table_behaves_like_an_ordered_map() {
        let mut table = EventTable::default();
        let mut model = BTreeMap::new();
        let mut state = 7u64;
        for step in 0..200_000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let sequence = Sequence(1 + (state >> 33) % 9_000 + step / 50);
            if state & 3 != 0 {
                let entry = Entry {
                    due: WallMs(step),
                    location: Location::new(step as u32, 8, 8),
                    topic: TopicId(1),
                    block: 2,
                };
                assert_eq!(table.insert(sequence, entry), model.insert(sequence, entry));
            } else {
                assert_eq!(table.remove(sequence), model.remove(&sequence));
            }
            assert_eq!(table.len(), model.len());
        }
        assert!(table.iter().map(|(s, e)| (s, *e)).eq(model.iter().map(|(s, e)| (*s, *e))));
        for sequence in model.keys() {
            assert_eq!(table.get(*sequence), model.get(sequence));
            table.remove(*sequence);
        }
        assert_eq!(table.len(), 0);
        assert_eq!(table.page_count, 0);
    }
}
