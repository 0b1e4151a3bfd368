//! How many events come due soon, by topic, without looking at each.
//!
//! Pending events in memory are counted by slots of their due time. What is past is forgotten with its slot, so that an
//! event that ends after it was due, as nearly all do, costs a comparison. A slot is 128 ms wide for what is due within
//! 17 minutes when it comes to memory, and wider for the few that are due later: such an event stays in its wide slot
//! when its time comes near. Of runs the footers say how many events of which topics each block has, and when the first
//! of them is due.
//!
//! A moment that lies in a slot or block divides it in proportion, and the count is not exact then. Nor is it while an
//! operation on a group holds events: they are counted as they would come without it, as nothing tells when that is but they
//! themselves.

use std::collections::BTreeMap;
use std::ops::Range;

use hashbrown::HashMap;

use escapement_protocol::frame::{DUE_WITHIN_MS, DueCount};
use escapement_protocol::{TopicId, WallMs};

use super::Shard;
use crate::far::Run;

/// log2 of the width in ms of the narrow slots, and of the wider ones.
const NARROW_BITS: u32 = 7;
const WIDER_BITS: [u32; 2] = [14, 27];

/// Narrow slots that there are room for, from the current one on: more than a horizon of 15 minutes takes.
const NARROW_COUNT: usize = 8_192;

/// Blocks of runs that one question looks at, about; where more are due soon enough, every second or third, and so on.
const BLOCK_COUNT_MAX: u64 = 8_192;

/// Events that ended in runs that one question looks at; where there are more, it takes them for evenly spread.
const ENDED_COUNT_MAX: usize = 4_096;

/// Pending events due in one slot.
#[derive(Debug, Default)]
struct Slot {
    total: u32,
    /// Those of one topic, which is mostly the only one.
    topic: TopicId,
    count: u32,
    others: Option<Box<HashMap<TopicId, u32>>>,
}

impl Slot {
    #[inline]
    fn add(&mut self, topic: TopicId) {
        if self.count == 0 {
            self.topic = topic;
        }
        self.total += 1;
        // A topic has one place: it may be among the others since another one was first.
        let is_other = self.others.as_ref().is_some_and(|others| others.contains_key(&topic));
        if self.topic == topic && !is_other {
            self.count += 1;
        } else {
            *self.others.get_or_insert_default().entry(topic).or_default() += 1;
        }
    }

    /// False where no event of the topic is counted.
    fn remove(&mut self, topic: TopicId) -> bool {
        let count = match &mut self.others {
            Some(others) if others.contains_key(&topic) => others.get_mut(&topic),
            _ => (self.topic == topic).then_some(&mut self.count),
        };
        let Some(count) = count.filter(|count| **count > 0) else { return false };
        *count -= 1;
        self.total -= 1;
        true
    }

    /// Of a topic, or of all for topic 0.
    fn of(&self, topic: TopicId) -> u32 {
        let others = self.others.as_ref().and_then(|others| others.get(&topic)).copied().unwrap_or(0);
        match topic {
            TopicId(0) => self.total,
            topic if topic == self.topic => self.count + others,
            _ => others,
        }
    }
}

/// Pending events in memory by due time.
#[derive(Debug)]
pub(super) struct Soon {
    /// The narrow slot that the time is in. The largest number before the shard serves: nothing is counted then.
    now: u64,
    /// A ring: a slot is at its number modulo that of all. Empty until an event comes.
    narrow: Vec<Slot>,
    /// By the width's number and the slot's.
    wider: BTreeMap<(usize, u64), Slot>,
}

impl Default for Soon {
    fn default() -> Self {
        Soon { now: u64::MAX, narrow: Vec::new(), wider: BTreeMap::new() }
    }
}

impl Soon {
    /// The shard serves from now on.
    pub(super) fn start(&mut self, now: WallMs) {
        *self = Soon { now: now.0 >> NARROW_BITS, ..Soon::default() };
    }

    /// Time passes: what is past is forgotten.
    #[inline]
    pub(super) fn advance(&mut self, now: WallMs) {
        let number = now.0 >> NARROW_BITS;
        if number > self.now {
            self.forget_past(number);
        }
    }

    fn forget_past(&mut self, number: u64) {
        let past = (number - self.now).min(self.narrow.len() as u64);
        for past in self.now..self.now + past {
            self.narrow[past as usize % NARROW_COUNT] = Slot::default();
        }
        self.now = number;
        for (width, bits) in WIDER_BITS.iter().enumerate() {
            let current = number >> (bits - NARROW_BITS);
            while let Some((key, _)) = self.wider.range((width, 0)..(width, current)).next() {
                let key = *key;
                self.wider.remove(&key);
            }
        }
    }

    /// An event is pending in memory.
    #[inline]
    pub(super) fn add(&mut self, topic: TopicId, due: WallMs) {
        let number = due.0 >> NARROW_BITS;
        if number < self.now {
            return;
        }
        if number - self.now >= NARROW_COUNT as u64 {
            return self.add_wider(topic, due);
        }
        if self.narrow.is_empty() {
            self.narrow.resize_with(NARROW_COUNT, Slot::default);
        }
        self.narrow[number as usize % NARROW_COUNT].add(topic);
    }

    fn add_wider(&mut self, topic: TopicId, due: WallMs) {
        let is_narrow_enough =
            |bits: u32| ((due.0 >> NARROW_BITS) - self.now) >> (bits - NARROW_BITS) < NARROW_COUNT as u64;
        let width = usize::from(!is_narrow_enough(WIDER_BITS[0]));
        self.wider.entry((width, due.0 >> WIDER_BITS[width])).or_default().add(topic);
    }

    /// An event is no longer pending in memory, or due at another time.
    ///
    /// # Panics
    /// If none of its topic was counted there.
    #[inline]
    pub(super) fn remove(&mut self, topic: TopicId, due: WallMs) {
        if due.0 >> NARROW_BITS >= self.now {
            self.remove_counted(topic, due);
        }
    }

    /// From the narrowest slot in which it may be counted: of two events of a topic that are due there, any may be.
    fn remove_counted(&mut self, topic: TopicId, due: WallMs) {
        let number = due.0 >> NARROW_BITS;
        let is_near = number - self.now < NARROW_COUNT as u64;
        let narrow = self.narrow.get_mut(number as usize % NARROW_COUNT).filter(|_| is_near);
        if narrow.is_some_and(|slot| slot.remove(topic)) {
            return;
        }
        let was_counted = (0..WIDER_BITS.len()).any(|width| {
            let key = (width, due.0 >> WIDER_BITS[width]);
            let Some(slot) = self.wider.get_mut(&key) else { return false };
            let was_counted = slot.remove(topic);
            if slot.total == 0 {
                self.wider.remove(&key);
            }
            was_counted
        });
        assert!(was_counted, "a pending event is counted until its time has passed");
    }

    /// Bytes held, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.narrow.capacity() * size_of::<Slot>()
            + self.wider.len() * size_of::<((usize, u64), Slot)>() * 3 / 2
    }

    /// Calls `span` for each slot with events of a topic, or of all for topic 0.
    fn spans(&self, topic: TopicId, mut span: impl FnMut(Range<u64>, u64)) {
        for number in self.now..self.now.saturating_add(self.narrow.len() as u64) {
            let count = self.narrow[number as usize % NARROW_COUNT].of(topic);
            if count > 0 {
                span(number << NARROW_BITS..(number + 1) << NARROW_BITS, count.into());
            }
        }
        for ((width, number), slot) in &self.wider {
            let bits = WIDER_BITS[*width];
            span(number << bits..(number + 1) << bits, slot.of(topic).into());
        }
    }

    /// Events of a topic that are counted, those of the current slot that are past included.
    pub(super) fn counted(&self, topic: TopicId) -> u64 {
        let mut all = 0;
        self.spans(topic, |_, count| all += count);
        all
    }

    /// Whether an event that is due then is counted, if it is pending in memory.
    pub(super) fn counts(&self, due: WallMs) -> bool {
        due.0 >> NARROW_BITS >= self.now
    }
}

/// How many events are due by each of some moments.
#[derive(Debug)]
struct By {
    /// Now, and the ends of what is asked for.
    moments: [WallMs; DUE_WITHIN_MS.len()],
    counts: [i64; DUE_WITHIN_MS.len()],
    exact: [bool; DUE_WITHIN_MS.len()],
    /// All, whenever they are due.
    all: i64,
}

impl By {
    fn new(now: WallMs) -> By {
        By {
            moments: DUE_WITHIN_MS.map(|within_ms| now.plus_ms(within_ms)),
            counts: [0; DUE_WITHIN_MS.len()],
            exact: [true; DUE_WITHIN_MS.len()],
            all: 0,
        }
    }

    /// So many events are due at some moments of a span, which is not empty.
    fn add(&mut self, span: Range<u64>, count: i64) {
        self.all += count;
        for (at, moment) in self.moments.iter().enumerate() {
            if moment.0 + 1 >= span.end {
                self.counts[at] += count;
            } else if moment.0 >= span.start {
                let part = i128::from(moment.0 + 1 - span.start) * i128::from(count);
                self.counts[at] += (part / i128::from(span.end - span.start)) as i64;
                self.exact[at] = false;
            }
        }
    }

    /// What is due from some moment on is not known well.
    fn doubt(&mut self, from: u64) {
        for (moment, exact) in self.moments.iter().zip(&mut self.exact) {
            *exact &= moment.0 < from;
        }
    }
}

/// Makes what is not exact no less than what comes due sooner, and no more than what comes due later.
fn in_order(mut counts: Vec<DueCount>) -> Vec<DueCount> {
    // The first is of what is due already.
    for at in 2..counts.len() {
        if !counts[at].exact {
            counts[at].count = counts[at].count.max(counts[at - 1].count);
        }
    }
    for at in (1..counts.len().saturating_sub(1)).rev() {
        if !counts[at].exact {
            counts[at].count = counts[at].count.min(counts[at + 1].count);
        }
    }
    counts
}

impl Shard {
    /// How many pending events of a topic, or of all for topic 0, come due within each of [`DUE_WITHIN_MS`] from now on,
    /// and first how many are due already.
    pub(super) fn due_counts(&self, topic: TopicId) -> Vec<DueCount> {
        let now = self.volatile.now.wall;
        let (mut memory, mut runs) = (By::new(now), By::new(now));
        self.volatile.soon.spans(topic, |span, count| memory.add(span, count as i64));
        self.count_runs(topic, &mut runs);
        let pending = match topic {
            TopicId(0) => self.durable.table.len() as u64,
            topic => self.durable.copies.pending_of(topic),
        };
        let is_held = self.durable.groups.has_held(topic);
        let due_in_memory = pending as i64 - (memory.all - memory.counts[0]);
        let counts = (0..DUE_WITHIN_MS.len())
            .map(|at| {
                let within = |by: &By| by.counts[at] - by.counts[0];
                let count = match at {
                    0 => due_in_memory + runs.counts[0],
                    _ => within(&memory) + within(&runs),
                };
                let is_exact = |by: &By| by.exact[at] && by.exact[0];
                let (count, exact) = (count.max(0) as u64, !is_held && is_exact(&memory) && is_exact(&runs));
                DueCount { within_ms: DUE_WITHIN_MS[at], count, exact }
            })
            .collect();
        in_order(counts)
    }

    fn count_runs(&self, topic: TopicId, by: &mut By) {
        let last = by.moments[DUE_WITHIN_MS.len() - 1];
        let ahead = |run: &Run| run.blocks_by(last);
        let runs = || self.durable.runs.iter().map(|(_, run)| run);
        let block_count: u64 = runs().map(|run| ahead(run).len() as u64).sum();
        let step = block_count.div_ceil(BLOCK_COUNT_MAX).max(1);
        let mut ended_left = ENDED_COUNT_MAX;
        let mut number = 0;
        for run in runs() {
            let Some(footer) = &run.footer else { continue };
            let of = |block: u32| match topic {
                TopicId(0) => footer.index[block as usize].count,
                topic => footer.topics.count(block, topic),
            };
            let due_of = |block: u32| footer.index.get(block as usize).map(|place| place.first.0.0);
            let ended_count = run.ended_ahead();
            // Where too many ended, as large a part of each block as of the whole run.
            let is_few = ended_count <= ended_left;
            let blocks = ahead(run);
            for block in blocks.clone() {
                number += 1;
                let count = i64::from(of(block));
                if count == 0 && step == 1 || number % step != 0 {
                    continue;
                }
                let start = due_of(block).unwrap_or_default();
                let end = due_of(block + 1).map_or(start, |next| next);
                let mut count = count * step as i64;
                if !is_few {
                    count = (i128::from(count) * i128::from(run.pending())
                        / i128::from(run.count_ahead().max(1))) as i64;
                }
                by.add(start..end + 1, count);
                if step > 1
                    || !is_few
                    || due_of(block + 1).is_none() && footer.index[block as usize].count > 1
                {
                    by.doubt(start);
                }
            }
            // Of those that are due later, it is enough to know how many there are.
            if is_few {
                ended_left -= ended_count;
                for ((due, _), of) in run.ended_in_blocks(blocks) {
                    if topic == TopicId(0) || *of == topic {
                        by.add(due.0..due.0 + 1, -1);
                    }
                }
            }
        }
    }
}
