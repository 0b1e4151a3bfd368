//! The lane of overdue events: what became due before the shard served is delivered with what newly due events leave.
//!
//! The lane has a bounded number of tasks open for each subscription, and goes on only when nothing newly due waits for its
//! turn, so that a newly due event never waits behind more than those. Where a subscription takes no more, its topic's
//! overdue events are parked, and others' pass.
//!
//! Newly due events without an ordering key pass the lane, and what is still on the disk. Those with a key wait while an
//! earlier event might have their key: one that was not read yet, or an overdue one whose key falls into the same of 65,536
//! slots. So a key waits for another's overdue events where both share a slot, and for all that is unread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::{HashMap, HashSet};

use escapement_protocol::{Sequence, SubscriptionId, TopicId, WallMs};

use super::Shard;
use super::due::key_of;
use crate::effects::Effects;
use crate::registry::Topic;
use crate::wheel::{Tick, Wheel};

/// Tasks of overdue events that one subscription has open, for each shard, or a turn's batch where that is smaller.
const TASK_COUNT_MAX: usize = 512;

/// Slots that ordering keys fall into.
const SLOT_COUNT: usize = 1 << 16;

/// An event's place in the order of its key.
pub(super) type Rank = (WallMs, Sequence);

/// An overdue event, and which of all overdue ones it is.
type Position = (Sequence, u64);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Lane {
    /// Events due by then are overdue.
    until: WallMs,
    /// In order, where all overdue events were in memory at the start.
    ready: VecDeque<Rank>,
    /// Otherwise all of them, as they come to memory.
    wheel: Wheel,
    /// Events that left these two.
    pulled: u64,
    /// In order, of topics whose subscriptions have as many open as may be.
    parked: BTreeMap<TopicId, VecDeque<Position>>,
    /// Open tasks that one subscription may have.
    open_max: usize,
    open: HashSet<(SubscriptionId, Sequence)>,
    open_counts: HashMap<SubscriptionId, usize>,
    /// Overdue events with a key that are in memory and were not matched, by slot. Empty where there are none.
    keys: Vec<u32>,
    held: Held,
}

/// Newly due events with a key that wait.
#[derive(Debug, Default)]
struct Held {
    /// No overdue event in memory has their slot, or had when they were put here.
    by_due: BTreeMap<Rank, u16>,
    /// For an overdue event with their slot.
    by_slot: HashMap<u16, BTreeSet<Rank>>,
    /// How many of each slot, in either.
    counts: HashMap<u16, usize>,
}

impl Default for Lane {
    fn default() -> Self {
        Lane {
            until: WallMs(0),
            ready: VecDeque::new(),
            wheel: Wheel::new(Tick(0)),
            pulled: 0,
            parked: BTreeMap::new(),
            open_max: TASK_COUNT_MAX,
            open: HashSet::new(),
            open_counts: HashMap::new(),
            keys: Vec::new(),
            held: Held::default(),
        }
    }
}

impl Lane {
    /// The shard serves from `until` on. The first event that is not in memory is due at `unread`.
    pub(super) fn start(
        &mut self,
        until: WallMs,
        mut overdue: Vec<Rank>,
        unread: Option<WallMs>,
        batch_count_max: usize,
    ) {
        self.until = until;
        self.open_max = TASK_COUNT_MAX.min(batch_count_max);
        match unread.filter(|unread| *unread <= until) {
            Some(unread) => {
                self.wheel = Wheel::new(Tick(unread.0.saturating_sub(1)));
                overdue.drain(..).for_each(|(due, sequence)| self.wheel.insert(Tick(due.0), sequence.0));
            }
            None => {
                overdue.sort_unstable();
                self.ready = overdue.into();
            }
        }
    }

    /// Takes an event that was loaded, if it is overdue.
    pub(super) fn loaded(&mut self, due: WallMs, sequence: Sequence, event: &[u8]) -> bool {
        if due > self.until {
            return false;
        }
        self.wheel.insert(Tick(due.0), sequence.0);
        self.expect_key(event);
        true
    }

    /// An overdue event is in memory.
    pub(super) fn expect_key(&mut self, event: &[u8]) {
        let key = key_of(event);
        if key != 0 {
            if self.keys.is_empty() {
                self.keys.resize(SLOT_COUNT, 0);
            }
            self.keys[usize::from(slot(key))] += 1;
        }
    }

    /// An overdue event was matched: its tasks are with their routers, which keep the order.
    fn matched_key(&mut self, event: &[u8]) {
        let key = key_of(event);
        if key == 0 || self.keys.is_empty() {
            return;
        }
        let slot = slot(key);
        let count = &mut self.keys[usize::from(slot)];
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.held.unpark(slot);
        }
    }

    fn expects(&self, slot: u16) -> bool {
        self.keys.get(usize::from(slot)).is_some_and(|count| *count > 0)
    }

    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.wheel.is_empty() && self.parked.is_empty()
    }

    /// Due time of the first event in memory that was not pulled, or an earlier moment.
    pub(super) fn next_due(&self) -> Option<WallMs> {
        let ready = self.ready.front().map(|(due, _)| *due);
        ready.or_else(|| self.wheel.next_due().map(|tick| WallMs(tick.0)))
    }

    /// Overdue events in memory that were not matched.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.wheel.len() + self.parked.values().map(VecDeque::len).sum::<usize>()
    }

    /// Events due by then are overdue.
    pub(super) fn until(&self) -> WallMs {
        self.until
    }

    /// Whether events due at `due` are overdue.
    pub(super) fn is_overdue(&self, due: WallMs) -> bool {
        due <= self.until
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let held =
            (self.held.by_due.len() + self.held.by_slot.values().map(BTreeSet::len).sum::<usize>()) * 48;
        let parked: usize = self.parked.values().map(VecDeque::capacity).sum();
        self.ready.capacity() * size_of::<Rank>()
            + self.wheel.memory_bytes()
            + parked * size_of::<Position>()
            + self.keys.capacity() * size_of::<u32>()
            + held
    }

    /// A task of an overdue event is open.
    pub(super) fn opened(&mut self, subscription: SubscriptionId, sequence: Sequence) {
        if self.open.insert((subscription, sequence)) {
            *self.open_counts.entry(subscription).or_default() += 1;
        }
    }

    /// A task has ended, or failed for the first time: from then on it is a retry like any other.
    pub(super) fn freed(&mut self, subscription: SubscriptionId, sequence: Sequence) {
        if !self.open.is_empty()
            && self.open.remove(&(subscription, sequence))
            && let Some(count) = self.open_counts.get_mut(&subscription)
        {
            *count -= 1;
        }
    }

    fn has_room(&self, topic: Option<&Topic>) -> bool {
        let count = |id| self.open_counts.get(id).copied().unwrap_or(0);
        topic.is_none_or(|topic| topic.subscriptions.iter().all(|(id, _)| count(id) < self.open_max))
    }
}

impl Held {
    fn insert(&mut self, slot: u16, rank: Rank, is_expected: bool) {
        *self.counts.entry(slot).or_default() += 1;
        self.put(slot, rank, is_expected);
    }

    fn put(&mut self, slot: u16, rank: Rank, is_expected: bool) {
        if is_expected {
            self.by_slot.entry(slot).or_default().insert(rank);
        } else {
            self.by_due.insert(rank, slot);
        }
    }

    fn unpark(&mut self, slot: u16) {
        let ranks = self.by_slot.remove(&slot).unwrap_or_default();
        self.by_due.extend(ranks.into_iter().map(|rank| (rank, slot)));
    }

    fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    fn released(&mut self, slot: u16) {
        if let Some(count) = self.counts.get_mut(&slot) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&slot);
            }
        }
    }
}

fn slot(key: u64) -> u16 {
    key as u16
}

impl Shard {
    /// Whether what is due now may have to wait for something overdue, or something that waits already.
    pub(super) fn may_hold_back(&self, unread: Option<WallMs>) -> bool {
        let lane = &self.volatile.lane;
        let now = self.volatile.now.wall;
        !lane.is_empty() || !lane.held.is_empty() || unread.is_some_and(|unread| unread <= now)
    }

    /// Takes those out of `due` that have a key and must wait.
    pub(super) fn hold_back(&mut self, due: &mut Vec<u64>, unread: Option<WallMs>) {
        if !self.may_hold_back(unread) {
            return;
        }
        let lane = &mut self.volatile.lane;
        let (table, payloads) = (&self.durable.table, &self.durable.payloads);
        due.retain(|sequence| {
            let sequence = Sequence(*sequence);
            let Some(entry) = table.get(sequence) else { return true };
            let key = key_of(payloads.event(entry.location));
            if key == 0 {
                return true;
            }
            let slot = slot(key);
            let is_expected = lane.expects(slot);
            let waits = is_expected
                || unread.is_some_and(|unread| unread <= entry.due)
                || lane.held.counts.contains_key(&slot);
            if waits {
                lane.held.insert(slot, (entry.due, sequence), is_expected);
            }
            !waits
        });
    }

    /// Appends events that were held back and need to wait no longer to `due`, up to `most` of them. Answers whether there
    /// may be more.
    pub(super) fn release_held(&mut self, unread: Option<WallMs>, most: usize, due: &mut Vec<u64>) -> bool {
        let lane = &mut self.volatile.lane;
        if lane.is_empty() && unread.is_none_or(|unread| !lane.is_overdue(unread)) {
            // Nothing is overdue any more, whatever was counted.
            lane.keys = Vec::new();
            for slot in lane.held.by_slot.keys().copied().collect::<Vec<_>>() {
                lane.held.unpark(slot);
            }
        }
        let newly = self.volatile.wheel.next_due().map(|tick| WallMs(tick.0));
        let first = [unread, newly].into_iter().flatten().min();
        while let Some((rank, slot)) = lane.held.by_due.first_key_value() {
            let (rank, slot) = (*rank, *slot);
            // What comes from the disk, or is still on the wheel, may be earlier.
            if first.is_some_and(|first| first <= rank.0) {
                return false;
            }
            if due.len() >= most {
                return true;
            }
            lane.held.by_due.pop_first();
            if lane.expects(slot) {
                lane.held.put(slot, rank, true);
            } else {
                lane.held.released(slot);
                due.push(rank.1.0);
            }
        }
        false
    }

    /// Last due time up to which overdue events may go on: no earlier one is missing.
    fn overdue_upto(&self) -> WallMs {
        let until = self.volatile.lane.until;
        self.far_due().map_or(until, |far| until.min(WallMs(far.0.saturating_sub(1))))
    }

    /// Whether an overdue event could be matched now.
    pub(super) fn can_drain(&self) -> bool {
        let lane = &self.volatile.lane;
        let has_room = |topic: &TopicId| lane.has_room(self.durable.registry.topic(*topic));
        lane.parked.keys().any(has_room) || self.can_pull()
    }

    fn can_pull(&self) -> bool {
        let lane = &self.volatile.lane;
        let all_parked = !lane.parked.is_empty() && lane.parked.len() == self.durable.registry.topic_count();
        !all_parked && lane.next_due().is_some_and(|due| due <= self.overdue_upto())
    }

    /// Matches overdue events, up to `most`.
    pub(super) fn drain_overdue(&mut self, mut most: usize, out: &mut Effects) {
        if self.volatile.lane.is_empty() {
            return;
        }
        let topics: Vec<TopicId> = self.volatile.lane.parked.keys().copied().collect();
        for topic in topics {
            while most > 0
                && self.volatile.lane.has_room(self.durable.registry.topic(topic))
                && let Some(overdue) = self.volatile.lane.parked.get_mut(&topic).and_then(VecDeque::pop_front)
            {
                most -= 1;
                self.match_overdue(overdue, out);
            }
            self.volatile.lane.parked.retain(|_, events| !events.is_empty());
        }
        if most == 0 || !self.can_pull() {
            return;
        }
        let upto = self.overdue_upto();
        let mut due = std::mem::take(&mut self.volatile.due);
        let lane = &mut self.volatile.lane;
        while due.len() < most
            && let Some((_, sequence)) = lane.ready.pop_front_if(|(due, _)| *due <= upto)
        {
            due.push(sequence.0);
        }
        if due.is_empty() {
            let table = &self.durable.table;
            let due_of = |key: u64| table.get(Sequence(key)).map(|entry| Tick(entry.due.0));
            lane.wheel.advance(Tick(upto.0), most, due_of, &mut due);
        }
        self.durable.warm(due.iter().map(|sequence| Sequence(*sequence)));
        for sequence in due.drain(..).map(Sequence) {
            let Some(entry) = self.durable.table.get(sequence) else { continue };
            let topic = entry.topic;
            let lane = &mut self.volatile.lane;
            let overdue = (sequence, lane.pulled);
            lane.pulled += 1;
            if !lane.parked.contains_key(&topic) && lane.has_room(self.durable.registry.topic(topic)) {
                self.match_overdue(overdue, out);
            } else {
                self.volatile.lane.parked.entry(topic).or_default().push_back(overdue);
            }
        }
        self.volatile.due = due;
    }

    fn match_overdue(&mut self, (sequence, position): Position, out: &mut Effects) {
        self.expand(&[sequence.0], Some(position), out);
        if let Some(entry) = self.durable.table.get(sequence) {
            self.volatile.lane.matched_key(self.durable.payloads.event(entry.location));
        }
    }
}
