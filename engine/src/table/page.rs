//! 1,024 neighbouring sequences, of which only those that are there take space.

use super::{Entry, VACANT};

pub(super) const PAGE_BITS: u32 = 10;
pub(super) const PAGE_LEN: usize = 1 << PAGE_BITS;

const WORD_BITS: usize = 64;
const WORDS: usize = PAGE_LEN / WORD_BITS;

/// Up to so many entries a list of their positions is smaller than a bitmap, and found through as fast.
const LISTED_MAX: usize = 64;

/// In a run, one slot in so many may stand for a sequence that never came or is gone, when the page is laid out.
const HOLES_SHARE: usize = 8;

/// Which positions of a page the entries belong to.
#[derive(Debug)]
enum Index {
    /// Consecutive ones, from this.
    Run(u16),
    /// These, ascending.
    Listed(Vec<u16>),
    /// Those whose bit is set.
    Mapped(Box<Bitmap>),
}

impl Index {
    /// That of these positions, which ascend.
    fn of(positions: &[u16]) -> Index {
        if positions.len() <= LISTED_MAX {
            Index::Listed(positions.to_vec())
        } else {
            Index::Mapped(Bitmap::of(positions))
        }
    }

    /// The positions by slot; those after the last slot mean nothing.
    fn positions(&self) -> [u16; PAGE_LEN] {
        let mut positions = [0; PAGE_LEN];
        match self {
            Index::Run(first) => positions.iter_mut().zip(*first..).for_each(|(at, next)| *at = next),
            Index::Listed(listed) => positions[..listed.len()].copy_from_slice(listed),
            Index::Mapped(bitmap) => {
                let mut slot = 0;
                for (first, mut word) in (0..).step_by(WORD_BITS).zip(bitmap.words) {
                    while word != 0 {
                        positions[slot] = first + word.trailing_zeros() as u16;
                        slot += 1;
                        word &= word - 1;
                    }
                }
            }
        }
        positions
    }
}

/// With the count of bits before each word, as the plainest x86-64 has no instruction that counts bits.
#[derive(Debug, Default)]
struct Bitmap {
    words: [u64; WORDS],
    before: [u16; WORDS],
}

impl Bitmap {
    fn of(positions: &[u16]) -> Box<Bitmap> {
        let mut bitmap = Box::<Bitmap>::default();
        for at in positions {
            bitmap.words[usize::from(*at) / WORD_BITS] |= 1 << (usize::from(*at) % WORD_BITS);
        }
        let mut before = 0;
        for (count, word) in bitmap.before.iter_mut().zip(bitmap.words) {
            *count = before;
            before += word.count_ones() as u16;
        }
        bitmap
    }

    #[inline]
    fn has(&self, at: u16) -> bool {
        self.words[usize::from(at) / WORD_BITS] >> (usize::from(at) % WORD_BITS) & 1 == 1
    }

    /// How many bits are set below.
    #[inline]
    fn rank(&self, at: u16) -> usize {
        let word = usize::from(at) / WORD_BITS;
        let below = (1 << (usize::from(at) % WORD_BITS)) - 1;
        usize::from(self.before[word]) + (self.words[word] & below).count_ones() as usize
    }

    fn set(&mut self, at: u16) {
        let word = usize::from(at) / WORD_BITS;
        self.words[word] |= 1 << (usize::from(at) % WORD_BITS);
        for count in &mut self.before[word + 1..] {
            *count += 1;
        }
    }
}

/// The entries of a page by position, which is below [`PAGE_LEN`]. A removed entry leaves a vacant slot.
#[derive(Debug)]
pub(super) struct Page {
    entries: Vec<Entry>,
    index: Index,
    live: u16,
    /// With fewer live entries than this, the page is worth a compaction.
    live_min: u16,
}

impl Page {
    /// Empty, with the room of `entries`. It is not sparse before it is empty again or [settled](Page::settle).
    pub(super) fn new(mut entries: Vec<Entry>) -> Page {
        entries.clear();
        Page { entries, index: Index::Run(0), live: 0, live_min: 1 }
    }

    /// Makes an empty page of it, which keeps its room.
    pub(super) fn clear(&mut self) {
        *self = Page::new(std::mem::take(&mut self.entries));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Bytes allocated for it.
    #[inline]
    pub(super) fn memory_bytes(&self) -> usize {
        let index = match &self.index {
            Index::Run(_) => 0,
            Index::Listed(positions) => positions.capacity() * size_of::<u16>(),
            Index::Mapped(_) => size_of::<Bitmap>(),
        };
        size_of::<Page>() + self.entries.capacity() * size_of::<Entry>() + index
    }

    #[inline]
    fn slot(&self, at: u16) -> Option<usize> {
        match &self.index {
            Index::Run(first) => {
                let slot = usize::from(at.wrapping_sub(*first));
                (slot < self.entries.len()).then_some(slot)
            }
            Index::Listed(positions) => positions.binary_search(&at).ok(),
            Index::Mapped(bitmap) => bitmap.has(at).then(|| bitmap.rank(at)),
        }
    }

    #[inline]
    pub(super) fn entry(&self, at: u16) -> Option<&Entry> {
        self.slot(at).map(|slot| &self.entries[slot]).filter(|entry| !entry.is_vacant())
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, at: u16) -> Option<&mut Entry> {
        self.slot(at).map(|slot| &mut self.entries[slot]).filter(|entry| !entry.is_vacant())
    }

    /// Inserts what goes on where the entries end, as a publish does, if there is room; answers whether it did.
    #[inline]
    pub(super) fn push(&mut self, at: u16, entry: Entry) -> bool {
        let len = self.entries.len();
        let Index::Run(first) = self.index else { return false };
        if usize::from(first) + len != usize::from(at) || len == self.entries.capacity() {
            return false;
        }
        self.entries.push(entry);
        self.live += 1;
        true
    }

    /// Inserts; returns the entry that was there before.
    pub(super) fn insert(&mut self, at: u16, entry: Entry) -> Option<Entry> {
        if let Some(slot) = self.slot(at) {
            let before = std::mem::replace(&mut self.entries[slot], entry);
            if !before.is_vacant() {
                return Some(before);
            }
        } else {
            self.place(at, entry);
        }
        self.live += 1;
        None
    }

    /// Inserts what has no slot.
    fn place(&mut self, at: u16, entry: Entry) {
        if self.entries.is_empty() {
            self.index = Index::Run(at);
        }
        if let Index::Run(first) = self.index {
            let end = usize::from(first) + self.entries.len();
            if let Some(gap) = usize::from(at).checked_sub(end)
                && (gap == 0 || gap + self.vacant_count() <= self.entries.len() / HOLES_SHARE)
            {
                self.reserve(gap + 1);
                self.entries.resize(self.entries.len() + gap, VACANT);
                self.entries.push(entry);
                return;
            }
            let positions = self.squeeze();
            self.index = Index::of(&positions[..self.entries.len()]);
        }
        self.reserve(1);
        let slot = match &mut self.index {
            Index::Listed(positions) if positions.len() < LISTED_MAX => {
                let slot = positions.partition_point(|listed| *listed < at);
                if positions.len() == positions.capacity() {
                    let room = self.entries.capacity().min(LISTED_MAX);
                    positions.reserve_exact(room - positions.len());
                }
                positions.insert(slot, at);
                slot
            }
            Index::Mapped(bitmap) => {
                let slot = bitmap.rank(at);
                bitmap.set(at);
                slot
            }
            Index::Listed(positions) => {
                let mut bitmap = Bitmap::of(positions);
                let slot = bitmap.rank(at);
                bitmap.set(at);
                self.index = Index::Mapped(bitmap);
                slot
            }
            Index::Run(_) => unreachable!("a run that does not go on was given another index"),
        };
        self.entries.insert(slot, entry);
    }

    /// Makes room in steps of a sixteenth: what a page holds in vain stays small, and so does what growing it copies.
    #[inline]
    fn reserve(&mut self, count: usize) {
        if self.entries.capacity() - self.entries.len() < count {
            self.entries.reserve_exact(count.max(self.entries.len() / 16));
        }
    }

    /// Removes and returns the entry.
    #[inline]
    pub(super) fn remove(&mut self, at: u16) -> Option<Entry> {
        let slot = self.slot(at)?;
        let entry = std::mem::replace(&mut self.entries[slot], VACANT);
        if entry.is_vacant() {
            return None;
        }
        self.live -= 1;
        Some(entry)
    }

    fn vacant_count(&self) -> usize {
        self.entries.len() - usize::from(self.live)
    }

    /// Whether so little is live that the page should be given up or compacted.
    #[inline]
    pub(super) fn is_sparse(&self) -> bool {
        self.live < self.live_min
    }

    /// Sets from where on the page is sparse: copying a small page costs little, so it bears less waste.
    pub(super) fn settle(&mut self) {
        let len = self.entries.len();
        let vacant_max = if let Index::Listed(_) = self.index { len / 8 } else { len / 2 };
        self.live_min = (len - vacant_max) as u16;
    }

    /// Whether it has much more room than it uses.
    pub(super) fn is_roomy(&self) -> bool {
        self.entries.capacity() > self.entries.len() + self.entries.len() / HOLES_SHARE
    }

    /// Moves the live entries to the front and forgets the vacant slots; returns the positions by slot. The index is to
    /// be replaced. Does not branch on what is vacant, as that is as good as random.
    fn squeeze(&mut self) -> [u16; PAGE_LEN] {
        let mut positions = self.index.positions();
        let entries = &mut self.entries[..];
        let mut live = 0;
        for slot in 0..entries.len().min(PAGE_LEN) {
            let entry = entries[slot];
            entries[live] = entry;
            positions[live] = positions[slot];
            live += usize::from(!entry.is_vacant());
        }
        self.entries.truncate(live);
        positions
    }

    /// Gives the page just the room that its live entries take, or a run with few holes; returns the room that it had.
    /// At least one entry is live.
    pub(super) fn compact(&mut self) -> Vec<Entry> {
        let entries = if let Some((first, run)) = self.run() {
            self.index = Index::Run(first);
            run
        } else {
            let positions = self.squeeze();
            let positions = &positions[..self.entries.len()];
            let (first, last) = (positions[0], positions[positions.len() - 1]);
            let is_run = usize::from(last - first) < positions.len();
            self.index = if is_run { Index::Run(first) } else { Index::of(positions) };
            self.entries.clone()
        };
        let room = std::mem::replace(&mut self.entries, entries);
        self.settle();
        room
    }

    /// What is left of a run if its ends are vacant and little else, as when events end in the order of publish.
    fn run(&self) -> Option<(u16, Vec<Entry>)> {
        let Index::Run(first) = self.index else { return None };
        let start = self.entries.iter().position(|entry| !entry.is_vacant())?;
        let end = self.entries.iter().rposition(|entry| !entry.is_vacant())? + 1;
        let hole_count = end - start - usize::from(self.live);
        let is_run = hole_count <= (end - start) / HOLES_SHARE;
        is_run.then(|| (first + start as u16, self.entries[start..end].to_vec()))
    }

    /// The room of a page that is given up.
    pub(super) fn into_room(self) -> Vec<Entry> {
        self.entries
    }

    /// The live entries with their positions, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &Entry)> {
        let slots = self.index.positions().into_iter().zip(&self.entries);
        slots.filter(|(_, entry)| !entry.is_vacant())
    }
}
