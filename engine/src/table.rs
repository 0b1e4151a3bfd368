//! The pending events of a shard, by sequence.
//!
//! Sequences are dense when new and die roughly in order, but what is due in months stays when its neighbours have
//! gone, and events are also loaded back into stretches that were empty. So an event costs about its [`Entry`] whether
//! its neighbours are pending or not: pages of 1,024 sequences hold only what is there ([`page`]), and pages are found
//! through leaves where they are dense and through an ordered map where they are rare. No operation is proportional
//! to more than a page or a leaf; nothing depends on the distance between the oldest event and the newest.

mod page;

use std::collections::BTreeMap;

use escapement_protocol::{Sequence, TopicId, WallMs};

use crate::payload::Location;
use page::{PAGE_BITS, PAGE_LEN, Page};

const LEAF_BITS: u32 = 5;
const LEAF_LEN: usize = 1 << LEAF_BITS;

/// Places for leaves: of 2,048, the newest 67 million sequences have one each.
const LEAVES: usize = 2_048;

/// A leaf that is not the newest and has no more pages than these costs more than they do in the map.
const LEAF_PAGES_FEW: usize = 4;

/// Rooms kept for the next pages.
const SPARE_MAX: usize = 8;

/// What a page takes in the map at the most: a node has room for 11, takes 288 bytes at the most, and all but the
/// topmost hold at least 5.
const MAPPED_SIZE_BYTES: usize = 288 / 5;

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

impl Entry {
    #[inline]
    fn is_vacant(&self) -> bool {
        self.due == VACANT.due
    }
}

/// The pages of 32,768 neighbouring sequences.
#[derive(Debug)]
struct Leaf {
    number: u64,
    page_count: usize,
    pages: [Option<Box<Page>>; LEAF_LEN],
}

/// Looks entries up, and keeps the page that it found last.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    table: &'a EventTable,
    /// No page's before the first look-up.
    number: u64,
    page: Option<&'a Page>,
}

impl<'a> Reader<'a> {
    /// The entry of `sequence`.
    #[inline]
    pub(crate) fn get(&mut self, sequence: Sequence) -> Option<&'a Entry> {
        let (number, at) = split(sequence);
        if number != self.number {
            (self.number, self.page) = (number, self.table.page(number));
        }
        self.page?.entry(at)
    }
}

/// Pending events by sequence. Lookup, insert and remove take constant time where sequences are dense, and time
/// logarithmic in the number of pages elsewhere.
#[derive(Debug, Default)]
pub(crate) struct EventTable {
    /// Empty, or of [`LEAVES`] places: a leaf is at its number modulo that. Made for new sequences only.
    leaves: Vec<Option<Box<Leaf>>>,
    /// The pages that have no leaf, by number.
    elsewhere: BTreeMap<u64, Box<Page>>,
    /// Number of the newest page. It is always there once there were events, and keeps its room to the end.
    newest: u64,
    len: usize,
    spare: Vec<Vec<Entry>>,
    leaf_count: usize,
    pages_size_bytes: usize,
}

fn leaf_place(leaf: u64) -> usize {
    leaf as usize % LEAVES
}

fn page_place(page: u64) -> usize {
    page as usize % LEAF_LEN
}

/// Number of the page, and position in it.
fn split(sequence: Sequence) -> (u64, u16) {
    (sequence.0 >> PAGE_BITS, (sequence.0 % PAGE_LEN as u64) as u16)
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
        self.pages_size_bytes
            + self.leaves.capacity() * size_of::<Option<Box<Leaf>>>()
            + self.leaf_count * size_of::<Leaf>()
            + self.elsewhere.len() * MAPPED_SIZE_BYTES
            + self.spare.len() * PAGE_LEN * size_of::<Entry>()
    }

    #[inline]
    fn page(&self, number: u64) -> Option<&Page> {
        let leaf = number >> LEAF_BITS;
        match self.leaves.get(leaf_place(leaf)) {
            Some(Some(there)) if there.number == leaf => there.pages[page_place(number)].as_deref(),
            _ => self.elsewhere.get(&number).map(|page| &**page),
        }
    }

    #[inline]
    fn leaf_mut(&mut self, leaf: u64) -> Option<&mut Leaf> {
        self.leaves.get_mut(leaf_place(leaf))?.as_deref_mut().filter(|there| there.number == leaf)
    }

    #[inline]
    fn page_mut(&mut self, number: u64) -> Option<&mut Page> {
        let leaf = number >> LEAF_BITS;
        match self.leaves.get_mut(leaf_place(leaf)) {
            Some(Some(there)) if there.number == leaf => there.pages[page_place(number)].as_deref_mut(),
            _ => self.elsewhere.get_mut(&number).map(|page| &mut **page),
        }
    }

    /// The entry of `sequence`.
    #[must_use]
    #[inline]
    pub(crate) fn get(&self, sequence: Sequence) -> Option<&Entry> {
        let (number, at) = split(sequence);
        self.page(number)?.entry(at)
    }

    /// For look-ups of which most are near the one before.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { table: self, number: u64::MAX, page: None }
    }

    /// Reads a little of each entry, so that the cache misses of a batch overlap instead of following one another.
    pub(crate) fn touch(&self, sequences: impl Iterator<Item = Sequence>) {
        let touched = sequences.filter_map(|sequence| self.get(sequence));
        std::hint::black_box(touched.fold(0, |mixed, entry| mixed ^ entry.block));
    }

    /// The entry of `sequence`, to be changed.
    #[must_use]
    pub(crate) fn get_mut(&mut self, sequence: Sequence) -> Option<&mut Entry> {
        let (number, at) = split(sequence);
        self.page_mut(number)?.entry_mut(at)
    }

    /// Inserts; returns the entry that was there before.
    #[inline]
    pub(crate) fn insert(&mut self, sequence: Sequence, entry: Entry) -> Option<Entry> {
        let (number, at) = split(sequence);
        if let Some(page) = self.page_mut(number)
            && page.push(at, entry)
        {
            self.len += 1;
            return None;
        }
        self.insert_anywhere(number, at, entry)
    }

    fn insert_anywhere(&mut self, number: u64, at: u16, entry: Entry) -> Option<Entry> {
        if self.page(number).is_none() {
            self.add_page(number);
        }
        let is_newest = number == self.newest;
        let page = self.page_mut(number).expect("just made, if it was not there");
        let had = page.memory_bytes();
        let before = page.insert(at, entry);
        if !is_newest {
            page.settle();
        }
        let has = page.memory_bytes();
        self.pages_size_bytes = self.pages_size_bytes + has - had;
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes and returns the entry.
    pub(crate) fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let (number, at) = split(sequence);
        let page = self.page_mut(number)?;
        let entry = page.remove(at)?;
        if page.is_sparse() {
            self.tidy(number);
        }
        self.len -= 1;
        Some(entry)
    }

    /// Gives up what a page holds in vain. The newest has its room for what comes, and is cleared when it is empty.
    fn tidy(&mut self, number: u64) {
        let is_newest = number == self.newest;
        let page = self.page_mut(number).expect("a page to tidy");
        let had = page.memory_bytes();
        let mut room = Vec::new();
        match (page.is_empty(), is_newest) {
            (true, true) => page.clear(),
            (true, false) => return self.drop_page(number),
            (false, _) => room = page.compact(),
        }
        let has = page.memory_bytes();
        self.pages_size_bytes = self.pages_size_bytes + has - had;
        self.keep_room(room);
    }

    fn keep_room(&mut self, room: Vec<Entry>) {
        if room.capacity() == PAGE_LEN && self.spare.len() < SPARE_MAX {
            self.spare.push(room);
        }
    }

    fn add_page(&mut self, number: u64) {
        let is_first = self.leaves.is_empty();
        if is_first {
            self.leaves.resize_with(LEAVES, || None);
        }
        let mut room = Vec::new();
        if is_first || number > self.newest {
            let settled = std::mem::replace(&mut self.newest, number);
            if !is_first {
                let page = self.page_mut(settled).expect("the newest page is always there");
                page.settle();
                if page.is_empty() || page.is_sparse() || page.is_roomy() {
                    self.tidy(settled);
                }
                self.drop_if_few(settled >> LEAF_BITS);
            }
            self.make_leaf(number >> LEAF_BITS);
            room = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(PAGE_LEN));
        }
        let page = Box::new(Page::new(room));
        self.pages_size_bytes += page.memory_bytes();
        if let Some(leaf) = self.leaf_mut(number >> LEAF_BITS) {
            leaf.pages[page_place(number)] = Some(page);
            leaf.page_count += 1;
        } else {
            self.elsewhere.insert(number, page);
        }
    }

    /// Makes a leaf if there is none of this number. The one in its place is older, and its pages go to the map.
    fn make_leaf(&mut self, number: u64) {
        let place = leaf_place(number);
        match &self.leaves[place] {
            Some(leaf) if leaf.number == number => return,
            Some(_) => self.drop_leaf(place),
            None => {}
        }
        self.leaves[place] = Some(Box::new(Leaf { number, page_count: 0, pages: Default::default() }));
        self.leaf_count += 1;
    }

    fn drop_leaf(&mut self, place: usize) {
        let Some(leaf) = self.leaves[place].take() else { return };
        self.leaf_count -= 1;
        let numbers = leaf.number << LEAF_BITS..;
        let pages = numbers.zip(leaf.pages).filter_map(|(number, page)| Some((number, page?)));
        self.elsewhere.extend(pages);
    }

    fn drop_page(&mut self, number: u64) {
        let leaf_number = number >> LEAF_BITS;
        let page = if let Some(leaf) = self.leaf_mut(leaf_number) {
            leaf.page_count -= 1;
            let page = leaf.pages[page_place(number)].take();
            self.drop_if_few(leaf_number);
            page
        } else {
            self.elsewhere.remove(&number)
        };
        let page = page.expect("a page to drop");
        self.pages_size_bytes -= page.memory_bytes();
        self.keep_room(page.into_room());
    }

    fn drop_if_few(&mut self, leaf: u64) {
        let is_newest = leaf == self.newest >> LEAF_BITS;
        if self.leaf_mut(leaf).is_some_and(|leaf| leaf.page_count <= LEAF_PAGES_FEW) && !is_newest {
            self.drop_leaf(leaf_place(leaf));
        }
    }

    /// All entries by ascending sequence. Takes time to sort the pages: for recovery and checks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Sequence, &Entry)> {
        let in_leaves = self.leaves.iter().flatten().flat_map(|leaf| {
            let numbered = (leaf.number << LEAF_BITS..).zip(&leaf.pages);
            numbered.filter_map(|(number, page)| Some((number, page.as_deref()?)))
        });
        let elsewhere = self.elsewhere.iter().map(|(number, page)| (*number, &**page));
        let mut pages: Vec<_> = in_leaves.chain(elsewhere).collect();
        pages.sort_unstable_by_key(|(number, _)| *number);
        pages.into_iter().flat_map(|(number, page)| {
            let first = number << PAGE_BITS;
            page.iter().map(move |(at, entry)| (Sequence(first + u64::from(at)), entry))
        })
    }
}

#[cfg(test)]
mod tests;
