//! What is known of each event, in pages by number. A page whose events are all settled is given up.

use escapement_protocol::{Sequence, ShardId};

use super::Place;

const PAGE_EVENTS: usize = 4096;

const PUBLISHED: u16 = 1 << 0;
const ACKNOWLEDGED: u16 = 1 << 1;
const REFUSED: u16 = 1 << 2;
const PUSHED: u16 = 1 << 3;
const RETRY_EXPECTED: u16 = 1 << 4;
const FINISHED: u16 = 1 << 5;
const RESENT: u16 = 1 << 6;
const RESCHEDULED: u16 = 1 << 7;

/// One event: 24 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// Due time in ms, 48 bits, above the flags.
    due_and_flags: u64,
    acknowledged_ms: u64,
    /// Sequence, 48 bits, above the shard.
    place: u64,
}

impl Entry {
    fn has(&self, flag: u16) -> bool {
        self.due_and_flags & u64::from(flag) != 0
    }

    fn set(&mut self, flag: u16) {
        self.due_and_flags |= u64::from(flag);
    }

    pub(super) fn publish(&mut self, due_ms: u64) {
        self.due_and_flags = due_ms << 16 | u64::from(PUBLISHED);
    }

    pub(super) fn resend(&mut self) {
        self.set(RESENT);
    }

    pub(super) fn reschedule(&mut self) {
        self.set(RESCHEDULED);
    }

    pub(super) fn acknowledge(&mut self, received_wall_ms: u64, place: Place) {
        self.set(ACKNOWLEDGED);
        self.acknowledged_ms = received_wall_ms;
        self.place = packed(place);
    }

    pub(super) fn refuse(&mut self) {
        self.set(REFUSED);
    }

    pub(super) fn push(&mut self, place: Place) {
        self.set(PUSHED);
        self.place = packed(place);
    }

    pub(super) fn expect_retry(&mut self) {
        self.set(RETRY_EXPECTED);
    }

    /// Whether a retry was expected; from now on it is not.
    pub(super) fn take_retry(&mut self) -> bool {
        let expected = self.has(RETRY_EXPECTED);
        self.due_and_flags &= !u64::from(RETRY_EXPECTED);
        expected
    }

    pub(super) fn finish(&mut self) {
        self.set(FINISHED);
    }

    pub(super) fn due_ms(&self) -> u64 {
        self.due_and_flags >> 16
    }

    /// When the receipt arrived; `None` where it has not.
    pub(super) fn acknowledged_ms(&self) -> Option<u64> {
        self.is_acknowledged().then_some(self.acknowledged_ms)
    }

    pub(super) fn is_at(&self, place: Place) -> bool {
        self.place == packed(place)
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        self.has(ACKNOWLEDGED)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.has(REFUSED)
    }

    pub(super) fn is_answered(&self) -> bool {
        self.has(ACKNOWLEDGED | REFUSED)
    }

    pub(super) fn is_resent(&self) -> bool {
        self.has(RESENT)
    }

    pub(super) fn is_rescheduled(&self) -> bool {
        self.has(RESCHEDULED)
    }

    pub(super) fn is_pushed(&self) -> bool {
        self.has(PUSHED)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.has(FINISHED)
    }

    pub(super) fn is_outstanding(&self) -> bool {
        self.is_acknowledged() && !self.is_finished()
    }
}

fn packed(Place { shard: ShardId(shard), sequence: Sequence(sequence) }: Place) -> u64 {
    sequence << 16 | u64::from(shard)
}

#[derive(Debug)]
enum Page {
    Unused,
    Live { entries: Box<[Entry]>, settled: usize },
    Settled,
}

/// What [`Table::look`] finds.
pub(super) enum Found<'a> {
    Live(&'a mut Entry),
    /// Acknowledged and finished, and so were its neighbours.
    Settled,
    /// Never published.
    Unknown,
}

/// Events by number. Only [`Table::create`] allocates, so that a number from the wire cannot.
#[derive(Debug, Default)]
pub(super) struct Table {
    pages: Vec<Page>,
    spare: Vec<Box<[Entry]>>,
}

impl Table {
    pub(super) fn create(&mut self, n: u64) -> &mut Entry {
        let (page, slot) = place_of(n);
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || Page::Unused);
        }
        if matches!(self.pages[page], Page::Unused) {
            let entries = self.spare.pop().unwrap_or_else(|| vec![Entry::default(); PAGE_EVENTS].into());
            self.pages[page] = Page::Live { entries, settled: 0 };
        }
        match &mut self.pages[page] {
            Page::Live { entries, .. } if !entries[slot].has(PUBLISHED) => &mut entries[slot],
            _ => panic!("event {n} is published twice"),
        }
    }

    /// The entry of a published event that is not settled with its page.
    pub(super) fn get(&mut self, n: u64) -> Option<&mut Entry> {
        match self.look(n) {
            Found::Live(entry) => Some(entry),
            Found::Settled | Found::Unknown => None,
        }
    }

    pub(super) fn look(&mut self, n: u64) -> Found<'_> {
        let (page, slot) = place_of(n);
        match self.pages.get_mut(page) {
            Some(Page::Live { entries, .. }) if entries[slot].has(PUBLISHED) => {
                Found::Live(&mut entries[slot])
            }
            Some(Page::Settled) => Found::Settled,
            _ => Found::Unknown,
        }
    }

    /// Some bits of an entry; 0 where there is none.
    pub(super) fn peek(&self, n: u64) -> u64 {
        let (page, slot) = place_of(n);
        match self.pages.get(page) {
            Some(Page::Live { entries, .. }) => entries[slot].due_and_flags,
            _ => 0,
        }
    }

    /// Nothing more is expected of event `n`.
    pub(super) fn settle(&mut self, n: u64) {
        let (at, _) = place_of(n);
        let Page::Live { settled, .. } = &mut self.pages[at] else { return };
        *settled += 1;
        if *settled == PAGE_EVENTS
            && let Page::Live { mut entries, .. } = std::mem::replace(&mut self.pages[at], Page::Settled)
        {
            entries.fill(Entry::default());
            self.spare.push(entries);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.pages.iter().enumerate().flat_map(|(page, held)| {
            let entries = match held {
                Page::Live { entries, .. } => &entries[..],
                Page::Unused | Page::Settled => &[],
            };
            entries.iter().enumerate().map(move |(slot, entry)| ((page * PAGE_EVENTS + slot) as u64, entry))
        })
    }

    /// Pages that take memory.
    #[cfg(test)]
    pub(super) fn live_pages(&self) -> usize {
        self.spare.len() + self.pages.iter().filter(|page| matches!(page, Page::Live { .. })).count()
    }
}

fn place_of(n: u64) -> (usize, usize) {
    (n as usize / PAGE_EVENTS, n as usize % PAGE_EVENTS)
}
