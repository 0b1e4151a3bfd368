//! A simple owner's table, as the wheel expects one: pages of entries by sequence, cancel is removal.

const PAGE_ENTRIES: usize = 4_096;

/// What an owner keeps per pending event, at the least.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// 0 where there is none.
    due: u64,
    /// Where the event's bytes are.
    payload: u64,
}

/// Pending events by sequence. Pages without entries are given back.
#[derive(Debug, Default)]
pub struct Table {
    pages: Vec<Option<Page>>,
}

#[derive(Debug)]
struct Page {
    entries: Box<[Entry]>,
    used: usize,
}

impl Table {
    /// Adds the event with this sequence, which is not there yet. `due` is not 0.
    pub fn insert(&mut self, sequence: u64, due: u64, payload: u64) {
        let at = sequence as usize;
        if at / PAGE_ENTRIES >= self.pages.len() {
            self.pages.resize_with(at / PAGE_ENTRIES + 1, || None);
        }
        let empty = || Page { entries: vec![Entry::default(); PAGE_ENTRIES].into_boxed_slice(), used: 0 };
        let page = self.pages[at / PAGE_ENTRIES].get_or_insert_with(empty);
        page.entries[at % PAGE_ENTRIES] = Entry { due, payload };
        page.used += 1;
    }

    /// The due time of the event, if it is there.
    #[inline]
    #[must_use]
    pub fn due(&self, sequence: u64) -> Option<u64> {
        let page = self.pages.get(sequence as usize / PAGE_ENTRIES)?.as_ref()?;
        let due = page.entries[sequence as usize % PAGE_ENTRIES].due;
        (due != 0).then_some(due)
    }

    /// Removes the event, and answers where its bytes are.
    #[inline]
    pub fn remove(&mut self, sequence: u64) -> Option<u64> {
        let slot = self.pages.get_mut(sequence as usize / PAGE_ENTRIES)?;
        let page = slot.as_mut()?;
        let entry = std::mem::take(&mut page.entries[sequence as usize % PAGE_ENTRIES]);
        if entry.due == 0 {
            return None;
        }
        page.used -= 1;
        if page.used == 0 {
            *slot = None;
        }
        Some(entry.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_is_final_and_gives_the_page_back() {
        let mut table = Table::default();
        for sequence in 4_000..5_000 {
            table.insert(sequence, 7, sequence * 2);
        }
        assert_eq!((table.due(4_100), table.due(3_999), table.due(90_000)), (Some(7), None, None));
        for sequence in 4_000..5_000 {
            assert_eq!(table.remove(sequence), Some(sequence * 2));
            assert_eq!((table.remove(sequence), table.due(sequence)), (None, None));
        }
        assert!(table.pages.iter().all(Option::is_none));
    }
}
