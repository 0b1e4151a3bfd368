//! Topics take turns where more is due than the shard matches at once.
//!
//! As long as a shard keeps up, it matches what is due in the order of due times, whatever its topic. Once it has matched
//! [`BATCHES_IN_ORDER`] batches in a row and more is due still, what is due leaves the wheel for a queue of its topic
//! first, which takes a fraction of the time that matching takes, and batches are made up of what topics in turn give: so
//! an event whose topic has few waits for its turn, and not for another topic's million. Within a topic the order stays by
//! due time, then sequence; ordering keys matter within topics only. Nothing waits in the queues once the shard keeps up.
//!
//! Where many tasks are open, a topic waits once it has as many as are still free (the dynamic threshold of Choudhury and
//! Hahne, 1998, with a factor of 1): one topic that nobody takes holds half of what may be open, two hold two thirds, and
//! something is always free for others.
//!
//! A queued event takes 8 bytes, as on the wheel. It has been due, so that it can be neither cancelled nor rescheduled any
//! more; it is looked at once more all the same before it is matched.

use std::collections::{BTreeSet, VecDeque};

use hashbrown::HashMap;

use escapement_protocol::{Sequence, TopicId, WallMs};

use super::lane::Rank;
use super::{Shard, Volatile};
use crate::effects::Effects;
use crate::wheel::Tick;

/// Batches that are matched in the order of due times, one right after the other, while more is due.
const BATCHES_IN_ORDER: usize = 16;

/// Events that leave the wheel for their topics' queues in one maintenance: a million do in 64.
const SORT_COUNT: usize = 16 * 1024;

/// The same, where each event's ordering key has to be looked at, and so the event itself.
const SORT_COUNT_BY_KEY: usize = 1024;

/// What a topic may hand out before the next has its turn, see [`Shard::cost_of`].
const QUANTUM: i64 = 8;

/// A topic whose events cost much waits for at most so many rounds.
const ROUNDS_MAX: i64 = 64;

/// Bytes of an event that make it as expensive as one task more.
const SIZE_BYTES_PER_COST: usize = 2 * 1024;

/// Events that are due, by topic.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// None of them empty.
    queues: HashMap<TopicId, Queue>,
    /// Their topics, the next one first.
    turns: VecDeque<TopicId>,
    len: usize,
    /// Batches in a row after which more was due.
    behind_count: usize,
    /// Bytes of events that were taken out since start.
    taken_size_bytes: u64,
}

/// What waits of one topic.
#[derive(Debug, Default)]
struct Queue {
    in_order: Ranks,
    /// What came when later ones were there already.
    late: BTreeSet<Rank>,
    /// What the topic may still hand out in its turn; below zero where it has handed out too much.
    allowance: i64,
}

/// Events of one due time with consecutive sequences: from the top, the first sequence, and how many follow it.
///
/// What is due at one instant was mostly published at once, so that a million events take few of these, and no fresh memory.
#[derive(Clone, Copy, Debug)]
struct Stretch(u64);

impl Stretch {
    const COUNT_BITS: u32 = 16;

    /// # Panics
    /// If the sequence takes more than the 48 bits that it has.
    fn new(sequence: Sequence) -> Stretch {
        assert!(sequence.0 >> (64 - Self::COUNT_BITS) == 0, "sequences fit 48 bits");
        Stretch(sequence.0 << Self::COUNT_BITS)
    }

    fn first(self) -> Sequence {
        Sequence(self.0 >> Self::COUNT_BITS)
    }

    fn last(self) -> Sequence {
        Sequence(self.first().0 + self.more())
    }

    /// How many follow the first one.
    fn more(self) -> u64 {
        self.0 % (1 << Self::COUNT_BITS)
    }

    /// Takes in `next` if it follows the last one, and there is room.
    fn push(&mut self, next: Sequence) -> bool {
        let follows = self.last().0 + 1 == next.0 && self.more() + 1 < 1 << Self::COUNT_BITS;
        self.0 += u64::from(follows);
        follows
    }

    /// Without its first one, if that is not the only one.
    fn rest(self) -> Option<Stretch> {
        let rest = self.more().checked_sub(1)?;
        Some(Stretch(((self.first().0 + 1) << Self::COUNT_BITS) | rest))
    }

    fn iter(self) -> impl Iterator<Item = Sequence> {
        (self.first().0..=self.last().0).map(Sequence)
    }
}

/// Events in order, those of one due time side by side.
#[derive(Debug, Default)]
struct Ranks {
    stretches: VecDeque<Stretch>,
    /// How many events are due when. A stretch lies within one due time.
    dues: VecDeque<(WallMs, usize)>,
}

impl Ranks {
    fn front(&self) -> Option<Rank> {
        Some((self.dues.front()?.0, self.stretches.front()?.first()))
    }

    fn back(&self) -> Option<Rank> {
        Some((self.dues.back()?.0, self.stretches.back()?.last()))
    }

    /// Appends events of one due time, in order, of which none is earlier than the last.
    fn append(&mut self, due: WallMs, sequences: &[Sequence]) {
        let mut rest = sequences;
        match self.dues.back_mut().filter(|(last, _)| *last == due) {
            Some((_, count)) => *count += sequences.len(),
            None => {
                self.dues.push_back((due, sequences.len()));
                if let Some((first, others)) = rest.split_first() {
                    self.stretches.push_back(Stretch::new(*first));
                    rest = others;
                }
            }
        }
        for sequence in rest {
            if !self.stretches.back_mut().is_some_and(|last| last.push(*sequence)) {
                self.stretches.push_back(Stretch::new(*sequence));
            }
        }
    }

    fn pop(&mut self) -> Option<Rank> {
        let (due, count) = self.dues.front_mut()?;
        let due = *due;
        *count -= 1;
        if *count == 0 {
            self.dues.pop_front();
        }
        let stretch = self.stretches.front_mut()?;
        let first = stretch.first();
        match stretch.rest() {
            Some(rest) => *stretch = rest,
            None => drop(self.stretches.pop_front()),
        }
        Some((due, first))
    }

    fn iter(&self) -> impl Iterator<Item = Rank> + '_ {
        let dues = self.dues.iter().flat_map(|(due, count)| std::iter::repeat_n(*due, *count));
        dues.zip(self.stretches.iter().flat_map(|stretch| stretch.iter()))
    }
}

impl Queue {
    fn append(&mut self, due: WallMs, sequences: &[Sequence]) {
        if self.in_order.back().is_none_or(|last| last < (due, sequences[0])) {
            self.in_order.append(due, sequences);
        } else {
            self.late.extend(sequences.iter().map(|sequence| (due, *sequence)));
        }
    }

    fn iter(&self) -> impl Iterator<Item = Rank> + '_ {
        self.in_order.iter().chain(self.late.iter().copied())
    }

    fn first(&self) -> Option<Rank> {
        [self.in_order.front(), self.late.first().copied()].into_iter().flatten().min()
    }

    fn pop(&mut self) -> Option<Rank> {
        if self.late.first().is_some_and(|late| self.in_order.front().is_none_or(|front| *late < front)) {
            return self.late.pop_first();
        }
        self.in_order.pop()
    }
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Events that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// No event that waits is due before this.
    pub(super) fn next_due(&self) -> Option<WallMs> {
        self.queues.values().filter_map(Queue::first).min().map(|(due, _)| due)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let of = |queue: &Queue| {
            queue.in_order.stretches.capacity() * size_of::<Stretch>()
                + queue.in_order.dues.capacity() * size_of::<(WallMs, usize)>()
                // A node of the set holds at least 5 of 11.
                + queue.late.len() * 2 * size_of::<Rank>()
        };
        self.queues.values().map(of).sum::<usize>()
            + self.queues.capacity() * size_of::<(TopicId, Queue)>()
            + self.turns.capacity() * size_of::<TopicId>()
    }

    /// A batch was matched in order, and more is due or not.
    pub(super) fn matched_in_order(&mut self, more_due: bool) {
        self.behind_count = if more_due { self.behind_count + 1 } else { 0 };
    }

    /// Takes in events of one topic and one due time, by ascending sequence, if there are any.
    fn append(&mut self, topic: TopicId, due: WallMs, sequences: &[Sequence]) {
        if sequences.is_empty() {
            return;
        }
        let queue = self.queues.entry(topic).or_insert_with(|| {
            self.turns.push_back(topic);
            Queue::default()
        });
        queue.append(due, sequences);
        self.len += sequences.len();
    }

    /// Gives the next topic its turn, up to a cost of `most`: appends its first events to `due`, and answers what they cost.
    fn turn(&mut self, most: i64, cost_of: impl Fn(Rank) -> Option<i64>, due: &mut Vec<u64>) -> i64 {
        let topic = self.turns[0];
        let queue = self.queues.get_mut(&topic).expect("a topic that has turns has a queue");
        if queue.allowance <= 0 {
            queue.allowance += QUANTUM;
        }
        let mut spent = 0;
        while queue.allowance > 0
            && spent < most
            && let Some(rank) = queue.pop()
        {
            self.len -= 1;
            let cost = cost_of(rank);
            if cost.is_some() {
                due.push(rank.1.0);
            }
            // Looking at one that is gone takes time, too.
            let cost = cost.unwrap_or(1);
            spent += cost;
            queue.allowance = (queue.allowance - cost).max(-ROUNDS_MAX * QUANTUM);
        }
        if queue.first().is_none() {
            self.queues.remove(&topic);
            self.turns.pop_front();
        } else if queue.allowance <= 0 {
            self.turns.rotate_left(1);
        }
        spent
    }

    /// Everything that waits, each event with its topic.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TopicId, Rank)> + '_ {
        self.queues.iter().flat_map(|(topic, queue)| queue.iter().map(|rank| (*topic, rank)))
    }
}

impl Shard {
    /// Whether what is due is matched in the order of due times, and not by topics in turn.
    pub(super) fn keeps_order(&self) -> bool {
        let backlog = &self.volatile.backlog;
        backlog.is_empty() && backlog.behind_count < BATCHES_IN_ORDER && !self.is_crowded()
    }

    /// Whether so many tasks are open that a topic may have as many as it may.
    fn is_crowded(&self) -> bool {
        2 * self.volatile.open_tasks >= self.open_tasks_max()
    }

    /// Whether as many tasks are open as may be.
    pub(super) fn is_full(&self) -> bool {
        self.volatile.open_tasks >= self.open_tasks_max()
    }

    /// Whether a topic has as many tasks open as are still free, and has to wait until some have ended.
    fn is_barred(&self, topic: TopicId) -> bool {
        // With less open than half, no topic has as many as are free.
        self.is_crowded() && {
            let subscriptions = self.durable.registry.topic(topic).map_or(0, |held| held.subscriptions.len());
            let open = self.volatile.open.of(topic) * subscriptions as u64;
            open >= self.open_tasks_max().saturating_sub(self.volatile.open_tasks) as u64
        }
    }

    /// Whether an event in a queue could be matched now.
    pub(super) fn can_take_turns(&self) -> bool {
        self.volatile.backlog.turns.iter().any(|topic| !self.is_barred(*topic))
    }

    /// Bytes of events that were matched since start while topics took turns.
    #[must_use]
    pub fn taken_in_turns_size_bytes(&self) -> u64 {
        self.volatile.backlog.taken_size_bytes
    }

    /// Moves what has become due to the queues of its topics, and matches a batch by topics in turn.
    pub(super) fn fire_in_turns(&mut self, out: &mut Effects) {
        let unread = self.far_due();
        let more_due = if self.may_hold_back(unread) { self.sort_by_key(unread) } else { self.sort() };
        let mut due = std::mem::take(&mut self.volatile.due);
        let left = self.take_turns(&mut due);
        let entries = due.iter().filter_map(|sequence| self.durable.table.get(Sequence(*sequence)));
        let taken_size_bytes: usize = entries.map(|entry| entry.location.event_len()).sum();
        self.volatile.backlog.taken_size_bytes += taken_size_bytes as u64;
        self.durable.warm(due.iter().map(|sequence| Sequence(*sequence)));
        self.expand(&due, None, out);
        due.clear();
        self.volatile.due = due;
        self.volatile.more_due = more_due;
        if !self.is_behind() {
            self.volatile.backlog.behind_count = 0;
            if !self.is_full() {
                self.drain_overdue(left, out);
            }
        }
    }

    /// Moves what is due from the wheel to the queues of its topics. Answers whether more is due.
    fn sort(&mut self) -> bool {
        let table = &self.durable.table;
        let Volatile { now, wheel, fenced, rescheduling, backlog, sequences, .. } = &mut self.volatile;
        let due_of = |key: u64| table.get(Sequence(key)).map(|entry| Tick(entry.due.0));
        sequences.clear();
        wheel.take_due(Tick(now.wall.0), SORT_COUNT, due_of, |tick, keys| {
            let due = WallMs(tick.0);
            // What is due together mostly has one topic.
            let mut topic = TopicId(0);
            let mut reader = table.reader();
            for sequence in keys.iter().copied().map(Sequence) {
                let Some(entry) = reader.get(sequence).filter(|entry| entry.due == due) else { continue };
                if fenced.contains(&sequence) || rescheduling.contains_key(&sequence) {
                    continue;
                }
                if entry.topic != topic {
                    backlog.append(topic, due, sequences);
                    sequences.clear();
                    topic = entry.topic;
                }
                sequences.push(sequence);
            }
            backlog.append(topic, due, sequences);
            sequences.clear();
        })
    }

    /// As [`Shard::sort`], where an event may have to wait for something overdue with its ordering key.
    fn sort_by_key(&mut self, unread: Option<WallMs>) -> bool {
        let mut due = std::mem::take(&mut self.volatile.due);
        let mut more_due = self.advance_wheel(SORT_COUNT_BY_KEY, &mut due);
        self.hold_back(&mut due, unread);
        more_due |= self.release_held(unread, SORT_COUNT_BY_KEY, &mut due);
        for sequence in due.drain(..).map(Sequence) {
            if let Some(entry) = self.durable.table.get(sequence) {
                self.volatile.backlog.append(entry.topic, entry.due, &[sequence]);
            }
        }
        self.volatile.due = due;
        more_due
    }

    /// Takes a batch out of the queues, and answers what is left of its cost.
    fn take_turns(&mut self, due: &mut Vec<u64>) -> usize {
        let mut backlog = std::mem::take(&mut self.volatile.backlog);
        let mut left = self.config.batch_count_max as i64;
        let mut barred_count = 0;
        while left > 0 && barred_count < backlog.turns.len() {
            if self.is_barred(backlog.turns[0]) {
                backlog.turns.rotate_left(1);
                barred_count += 1;
                continue;
            }
            barred_count = 0;
            left -= backlog.turn(left, |rank| self.cost_of(rank), due);
        }
        self.volatile.backlog = backlog;
        left.max(0) as usize
    }

    /// About what it takes to hand out a queued event, in tasks of small events; nothing if it must not leave.
    fn cost_of(&self, (due, sequence): Rank) -> Option<i64> {
        let entry = self.durable.table.get(sequence).filter(|entry| entry.due == due)?;
        if self.volatile.is_changing(sequence) {
            return None;
        }
        let topic = self.durable.registry.topic(entry.topic);
        let tasks = topic.map_or(0, |topic| topic.subscriptions.len()).max(1);
        Some((tasks * (1 + entry.location.event_len() / SIZE_BYTES_PER_COST)) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of numbers.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, most: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % most
        }
    }

    #[test]
    fn whatever_comes_in_whatever_order_each_topic_hands_out_its_first_event_next() {
        let mut numbers = Numbers(3);
        let (mut backlog, mut due) = (Backlog::default(), Vec::new());
        let mut model: HashMap<TopicId, BTreeSet<Rank>> = HashMap::new();
        for step in 0..20_000 {
            if numbers.below(5) > 0 {
                let topic = TopicId(numbers.below(4) as u32);
                // Mostly in order.
                let late = if numbers.below(10) == 0 { 30 } else { 0 };
                let rank = (WallMs(100 + step / 7 - late.min(step / 7)), Sequence(step));
                backlog.append(topic, rank.0, &[rank.1]);
                model.entry(topic).or_default().insert(rank);
            } else if let Some(topic) = backlog.turns.front().copied() {
                due.clear();
                let cost = 1 + numbers.below(3) as i64;
                // One in 16 is gone.
                let cost_of = |(_, sequence): Rank| (sequence.0 % 16 != 0).then_some(cost);
                backlog.turn(4, cost_of, &mut due);
                let waits = model.get_mut(&topic).expect("it has a turn");
                let left = backlog.queues.get(&topic).map_or(0, |queue| queue.iter().count());
                let taken: Vec<Rank> = (left..waits.len()).filter_map(|_| waits.pop_first()).collect();
                assert!((1..=4).contains(&taken.len()), "within what a turn may cost: {taken:?}");
                let there = taken.iter().map(|(_, sequence)| sequence.0).filter(|n| !n.is_multiple_of(16));
                assert!(there.eq(due.iter().copied()), "{taken:?} of {topic:?} gave {due:?}");
            }
            assert_eq!(backlog.len(), model.values().map(BTreeSet::len).sum::<usize>());
            let first = model.values().filter_map(|waits| waits.first()).min();
            assert_eq!(backlog.next_due(), first.map(|(due, _)| *due));
        }
        let waiting: usize = backlog.iter().count();
        assert!(waiting > 1_000 && backlog.memory_bytes() >= 8 * waiting, "{waiting}");
    }

    #[test]
    fn what_follows_one_another_costs_next_to_nothing_and_comes_out_one_by_one() {
        let mut queue = Queue::default();
        let all = |due: u64| (0..200_000).map(move |n| (WallMs(due), Sequence(due * 1_000_000 + n)));
        for due in [1, 2] {
            let sequences: Vec<Sequence> = all(due).map(|(_, sequence)| sequence).collect();
            sequences.chunks(16_384).for_each(|part| queue.append(WallMs(due), part));
        }
        assert!(queue.in_order.stretches.len() <= 8, "{} for 400,000", queue.in_order.stretches.len());
        assert!(queue.iter().eq(all(1).chain(all(2))));
        assert!(std::iter::from_fn(|| queue.pop()).eq(all(1).chain(all(2))));
        assert!(queue.first().is_none());
    }
}
