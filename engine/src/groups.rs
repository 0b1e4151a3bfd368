//! Groups of pending events, which one operation cancels, pauses, postpones or gives back, however many they are.
//!
//! A group is all events of a topic that name it. An event *waits in its group* from its acceptance until it is handed to
//! its subscriptions or ends; then it has left the group for good, and no operation reaches it. Of the events that wait
//! only counts are kept, by stretches of sequences: an operation takes what waits in stretches, up to the newest sequence,
//! and touches none of the events. When an event's time comes, its sequence tells which operations hold it, and they tell
//! what becomes of it.
//!
//! Invariants:
//! * the stretches of a group follow one another and end with one without a limit, which no operation holds;
//! * two neighbours are not held by the same operations, and all but the last have events;
//! * every operation that holds a stretch is among the group's operations;
//! * at most one cancellation holds a stretch, and at most one pause.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::{HashMap, HashSet};
use smallvec::{SmallVec, smallvec};
use xxhash_rust::xxh3::Xxh3;

use escapement_protocol::frame::{GROUP_EPOCH_COUNT_MAX, GroupAct, GroupEpoch};
use escapement_protocol::{EventView, Sequence, TopicId, WallMs};

use crate::record::WALL_MAX;

/// Most stretches of a group. Each operation adds at most one.
pub(crate) const STRETCH_COUNT_MAX: usize = 2 * GROUP_EPOCH_COUNT_MAX;

/// What a group takes in memory besides its name and what it has more than one stretch and no operation.
const GROUP_SIZE_BYTES: usize = size_of::<(GroupId, Held)>() + 2 * size_of::<(u64, GroupId)>();

/// XXH3, 128 bits, of a topic and the name of a group in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub [u64; 2]);

impl GroupId {
    /// The group of that name.
    #[must_use]
    pub fn of(topic: TopicId, name: &str) -> GroupId {
        let mut hasher = Xxh3::new();
        hasher.update(&topic.0.to_le_bytes());
        hasher.update(name.as_bytes());
        let hash = hasher.digest128();
        GroupId([hash as u64, (hash >> 64) as u64])
    }
}

/// The group that a verified event names.
pub(crate) fn name_of(event: &[u8]) -> Option<&str> {
    let name = EventView::trusted(event)?.group();
    std::str::from_utf8(name).ok().filter(|name| !name.is_empty())
}

/// Events that wait, with sequences after those of the stretch before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The last sequence of it.
    pub upto: Sequence,
    /// How many wait.
    pub waiting: u64,
    /// The operations that hold them.
    pub holders: Holders,
}

/// Some of a group's operations: bit `n` is for the one at place `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holders(pub u64);

impl Holders {
    fn has(self, place: usize) -> bool {
        self.0 >> place & 1 != 0
    }

    fn with(self, place: usize) -> Holders {
        Holders(self.0 | 1 << place)
    }

    fn without(self, place: usize) -> Holders {
        Holders(self.0 & !(1 << place))
    }

    /// As the operations are called once that at `place`, which is none of these, is forgotten.
    fn after_forgetting(self, place: usize) -> Holders {
        let below = (1 << place) - 1;
        Holders(self.0 & below | self.0 >> 1 & !below)
    }
}

/// What an operation does to the events that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They end when their time has come.
    Cancel,
    /// They wait, whether their time has come or not.
    Pause,
    /// They are due so many ms later.
    Postpone(u64),
}

/// What becomes of an event when its time has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) is_cancelled: bool,
    pub(crate) is_paused: bool,
    /// How much later it is due.
    pub(crate) postponed_ms: u64,
}

/// An operation on a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name, which is not 0.
    pub epoch: u64,
    /// What it does.
    pub effect: Effect,
    /// When it was decided.
    pub decided: WallMs,
    /// Events that it took.
    pub taken: u64,
    /// Once it was taken back: events that it gave back.
    pub undone: Option<u64>,
}

/// One group as the log states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its topic.
    pub topic: TopicId,
    /// Its name.
    pub name: Box<str>,
    /// By ascending sequence.
    pub stretches: SmallVec<[Stretch; 1]>,
    /// The oldest first.
    pub operations: Vec<Operation>,
}

/// Why nothing more can be done to a group now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyOperations;

impl Group {
    pub(crate) fn new(topic: TopicId, name: &str) -> Group {
        let open = Stretch { upto: Sequence::MAX, waiting: 0, holders: Holders::default() };
        Group { topic, name: name.into(), stretches: smallvec![open], operations: Vec::new() }
    }

    /// Whether nothing needs to be known of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.stretches.iter().all(|stretch| stretch.waiting == 0)
    }

    fn at(&self, sequence: Sequence) -> usize {
        self.stretches.partition_point(|stretch| stretch.upto < sequence).min(self.stretches.len() - 1)
    }

    /// What becomes of an event that waits in the group.
    pub(crate) fn fate(&self, sequence: Sequence) -> Fate {
        self.fate_of(&self.stretches[self.at(sequence)])
    }

    fn fate_of(&self, stretch: &Stretch) -> Fate {
        let mut fate = Fate::default();
        if stretch.holders == Holders::default() {
            return fate;
        }
        for (place, operation) in self.operations.iter().enumerate() {
            if stretch.holders.has(place) {
                match operation.effect {
                    Effect::Cancel => fate.is_cancelled = true,
                    Effect::Pause => fate.is_paused = true,
                    Effect::Postpone(by_ms) => fate.postponed_ms += by_ms,
                }
            }
        }
        fate
    }

    /// Whether any event waits in the stretch of that sequence.
    pub(crate) fn counts(&self, sequence: Sequence) -> bool {
        self.stretches[self.at(sequence)].waiting > 0
    }

    /// Another event waits.
    pub(crate) fn join(&mut self, sequence: Sequence) {
        let at = self.at(sequence);
        self.stretches[at].waiting += 1;
    }

    /// An event waits no more. False where none was counted there.
    pub(crate) fn leave(&mut self, sequence: Sequence) -> bool {
        let at = self.at(sequence);
        let Some(left) = self.stretches[at].waiting.checked_sub(1) else { return false };
        self.stretches[at].waiting = left;
        if left == 0 && self.stretches.len() > 1 {
            self.tidy();
        }
        true
    }

    /// Forgets stretches without events, and makes one of neighbours that the same operations hold.
    fn tidy(&mut self) {
        let mut tidied: SmallVec<[Stretch; 1]> = SmallVec::new();
        for stretch in self.stretches.drain(..) {
            if stretch.waiting == 0 && stretch.upto != Sequence::MAX {
                continue;
            }
            match tidied.last_mut().filter(|before| before.holders == stretch.holders) {
                Some(before) => *before = Stretch { waiting: before.waiting + stretch.waiting, ..stretch },
                None => tidied.push(stretch),
            }
        }
        self.stretches = tidied;
    }

    /// Whether everything holds that always does of a group.
    pub(crate) fn is_sound(&self) -> bool {
        let is_known = |holders: Holders| holders.0 >> self.operations.len() == 0;
        let ascends = |pair: &[Stretch]| pair[0].upto < pair[1].upto && pair[0].holders != pair[1].holders;
        let last = self.stretches.last();
        let (all, rest) = (&self.stretches[..], &self.stretches[..self.stretches.len().saturating_sub(1)]);
        let postponed_ms = self.operations.iter().try_fold(0_u64, |sum, operation| match operation.effect {
            Effect::Postpone(by_ms) => sum.checked_add(by_ms).filter(|sum| *sum <= WALL_MAX.0),
            _ => Some(sum),
        });
        postponed_ms.is_some()
            && last.is_some_and(|last| last.upto == Sequence::MAX && last.holders == Holders::default())
            && all.windows(2).all(ascends)
            && rest.iter().all(|stretch| stretch.waiting > 0 && is_known(stretch.holders))
            && all
                .iter()
                .try_fold(0_u64, |sum, stretch| sum.checked_add(stretch.waiting))
                .is_some_and(|sum| sum <= Sequence::MAX.0)
    }

    fn waiting(&self, is: impl Fn(Fate) -> bool) -> u64 {
        let some = self.stretches.iter().filter(|stretch| is(self.fate_of(stretch)));
        some.map(|stretch| stretch.waiting).sum()
    }

    /// Events that wait and are not cancelled.
    pub(crate) fn pending(&self) -> u64 {
        self.waiting(|fate| !fate.is_cancelled)
    }

    /// Of these, such as are paused.
    pub(crate) fn paused(&self) -> u64 {
        self.waiting(|fate| !fate.is_cancelled && fate.is_paused)
    }

    /// Events that wait and are cancelled.
    pub(crate) fn cancelled(&self) -> u64 {
        self.waiting(|fate| fate.is_cancelled)
    }

    /// Events that wait, and that any operation holds.
    fn held(&self) -> u64 {
        self.waiting(|fate| fate != Fate::default())
    }

    fn held_by(&self, place: usize) -> u64 {
        let held = self.stretches.iter().filter(|stretch| stretch.holders.has(place));
        held.map(|stretch| stretch.waiting).sum()
    }

    pub(crate) fn operation(&self, epoch: u64) -> Option<&Operation> {
        self.operations.iter().find(|operation| operation.epoch == epoch)
    }

    /// Forgets an operation that holds nothing.
    fn forget_at(&mut self, place: usize) {
        self.operations.remove(place);
        for stretch in &mut self.stretches {
            stretch.holders = stretch.holders.after_forgetting(place);
        }
    }

    /// Takes what waits, is not cancelled, and has a sequence up to `upto`, the newest that was given out; a pause takes what is
    /// not paused yet. Answers how many.
    ///
    /// # Errors
    /// Where so many operations hold events that another has no place, or postpone them so far.
    pub(crate) fn operate(
        &mut self,
        epoch: u64,
        effect: Effect,
        upto: Sequence,
        now: WallMs,
    ) -> Result<u64, TooManyOperations> {
        if self.stretches.len() >= STRETCH_COUNT_MAX {
            return Err(TooManyOperations);
        }
        if self.operations.len() >= GROUP_EPOCH_COUNT_MAX {
            let over = (0..self.operations.len()).find(|place| self.held_by(*place) == 0);
            self.forget_at(over.ok_or(TooManyOperations)?);
        }
        let place = self.operations.len();
        let mut taken = 0;
        for at in 0..self.stretches.len() {
            let fate = self.fate_of(&self.stretches[at]);
            if fate.is_cancelled || fate.is_paused && effect == Effect::Pause {
                continue;
            }
            let stretch = &mut self.stretches[at];
            stretch.holders = stretch.holders.with(place);
            taken += stretch.waiting;
        }
        if let Some(last) = self.stretches.last_mut() {
            last.upto = upto;
        }
        let open = Stretch { upto: Sequence::MAX, waiting: 0, holders: Holders::default() };
        self.stretches.push(open);
        self.operations.push(Operation { epoch, effect, decided: now, taken, undone: None });
        self.tidy();
        Ok(taken)
    }

    /// Gives back what an operation holds, and answers how many; `None` where there is no such operation.
    pub(crate) fn undo(&mut self, epoch: u64) -> Option<u64> {
        let place = self.operations.iter().position(|operation| operation.epoch == epoch)?;
        let restored = self.held_by(place);
        let restored = *self.operations[place].undone.get_or_insert(restored);
        for stretch in &mut self.stretches {
            stretch.holders = stretch.holders.without(place);
        }
        self.tidy();
        Some(restored)
    }

    /// Forgets operations that were decided before `before` and hold nothing.
    pub(crate) fn forget(&mut self, before: WallMs) {
        for place in (0..self.operations.len()).rev() {
            if self.operations[place].decided < before && self.held_by(place) == 0 {
                self.forget_at(place);
            }
        }
    }

    /// Its operations, for people.
    pub(crate) fn epochs(&self) -> Vec<GroupEpoch> {
        let told = self.operations.iter().enumerate().map(|(place, operation)| {
            let Operation { epoch, effect, taken, undone, .. } = *operation;
            let (act, by_ms) = match effect {
                Effect::Cancel => (GroupAct::Cancel, 0),
                Effect::Pause => (GroupAct::Pause, 0),
                Effect::Postpone(by_ms) => (GroupAct::Postpone, by_ms),
            };
            GroupEpoch { epoch, taken, left: self.held_by(place), by_ms, act, is_undone: undone.is_some() }
        });
        told.collect()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let stretches = if self.stretches.spilled() { self.stretches.capacity() } else { 0 };
        GROUP_SIZE_BYTES
            + self.name.len()
            + stretches * size_of::<Stretch>()
            + self.operations.capacity() * size_of::<Operation>()
    }

    /// Bytes of the record that states it.
    pub(crate) fn statement_size_bytes(&self) -> usize {
        crate::record::group_size_bytes(self.name.len(), self.stretches.len(), self.operations.len())
    }
}

/// What an event's group may come to take in memory, where it is new.
pub(crate) fn new_group_size_bytes(name: &str) -> usize {
    GROUP_SIZE_BYTES + name.len()
}

/// A group, and the block of the log from which on it can be known.
#[derive(Clone, Debug)]
struct Held {
    group: Group,
    block: u64,
}

/// Of a topic's events that wait in groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct HeldCounts {
    cancelled: u64,
    any: u64,
}

/// All groups of a shard, as far as they are durable.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    groups: HashMap<GroupId, Held>,
    blocks: BTreeSet<(u64, GroupId)>,
    /// Events that were handed to their subscriptions and have left their groups, until they end.
    left: HashSet<Sequence>,
    /// Events that wait and are cancelled, and such as any operation holds; by topic, where there are any.
    held: BTreeMap<TopicId, HeldCounts>,
    memory_bytes: usize,
    statements_size_bytes: usize,
}

impl Groups {
    pub(crate) fn get(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id).map(|held| &held.group)
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes + self.left.capacity() * size_of::<(Sequence, u8)>()
    }

    /// Bytes of the records that state all groups again.
    pub(crate) fn statements_size_bytes(&self) -> usize {
        self.statements_size_bytes
    }

    /// Whether an event has left its group.
    #[inline]
    pub(crate) fn has_left(&self, sequence: Sequence) -> bool {
        !self.left.is_empty() && self.left.contains(&sequence)
    }

    /// An event was handed to its subscriptions.
    pub(crate) fn note_left(&mut self, sequence: Sequence) {
        self.left.insert(sequence);
    }

    /// An event has ended.
    #[inline]
    pub(crate) fn ended(&mut self, sequence: Sequence) {
        if !self.left.is_empty() {
            self.left.remove(&sequence);
        }
    }

    fn held_of(&self, topic: TopicId, count: impl Fn(&HeldCounts) -> u64) -> u64 {
        match topic {
            TopicId(0) => self.held.values().map(count).sum(),
            topic => self.held.get(&topic).map_or(0, count),
        }
    }

    /// Cancelled events of a topic that wait, or of all for topic 0.
    pub(crate) fn cancelled_of(&self, topic: TopicId) -> u64 {
        self.held_of(topic, |held| held.cancelled)
    }

    /// Whether any operation holds an event of a topic, or of any for topic 0.
    pub(crate) fn has_held(&self, topic: TopicId) -> bool {
        self.held_of(topic, |held| held.any) > 0
    }

    fn count(&mut self, group: &Group, more: bool) {
        let (memory_bytes, statement_size_bytes) = (group.memory_bytes(), group.statement_size_bytes());
        let (cancelled, any) = (group.cancelled(), group.held());
        if more {
            self.memory_bytes += memory_bytes;
            self.statements_size_bytes += statement_size_bytes;
        } else {
            self.memory_bytes -= memory_bytes;
            self.statements_size_bytes -= statement_size_bytes;
        }
        if any > 0 {
            let HeldCounts { cancelled: all_cancelled, any: all } = self.held.entry(group.topic).or_default();
            if more {
                (*all_cancelled, *all) = (*all_cancelled + cancelled, *all + any);
            } else {
                (*all_cancelled, *all) = (*all_cancelled - cancelled, *all - any);
            }
            if *all == 0 {
                self.held.remove(&group.topic);
            }
        }
    }

    fn put(&mut self, id: GroupId, held: Held) {
        self.count(&held.group, true);
        self.blocks.insert((held.block, id));
        self.groups.insert(id, held);
    }

    fn take(&mut self, id: GroupId) -> Option<Held> {
        let held = self.groups.remove(&id)?;
        self.count(&held.group, false);
        self.blocks.remove(&(held.block, id));
        Some(held)
    }

    /// An event was accepted, as the log's block `block` says.
    pub(crate) fn join(&mut self, block: u64, topic: TopicId, name: &str, sequence: Sequence) -> GroupId {
        let id = GroupId::of(topic, name);
        if let Some(held) = self.groups.get_mut(&id)
            && held.group.fate(sequence) == Fate::default()
        {
            held.group.join(sequence);
        } else if let Some(mut held) = self.take(id) {
            // Only of a log that contradicts itself: operations take what was accepted before them.
            held.group.join(sequence);
            self.put(id, held);
        } else {
            let mut group = Group::new(topic, name);
            group.join(sequence);
            self.put(id, Held { group, block });
        }
        id
    }

    /// An event waits no more. False where none was counted: in recovery the log may hold the end of what it no longer
    /// tells the beginning of.
    pub(crate) fn leave(&mut self, id: GroupId, sequence: Sequence) -> bool {
        let Some(held) = self.groups.get_mut(&id) else { return false };
        let stretch = held.group.stretches[held.group.at(sequence)];
        if stretch.waiting > 1 && stretch.holders == Holders::default() {
            return held.group.leave(sequence);
        }
        let mut held = self.take(id).expect("it is there");
        let was_counted = held.group.leave(sequence);
        if !held.group.is_empty() {
            self.put(id, held);
        }
        was_counted
    }

    /// The log's block `block` states a group whole.
    pub(crate) fn state(&mut self, block: u64, group: Group) -> GroupId {
        let id = GroupId::of(group.topic, &group.name);
        self.take(id);
        if !group.is_empty() {
            self.put(id, Held { group, block });
        }
        id
    }

    /// The oldest block that is needed to know a group.
    pub(crate) fn oldest_block(&self) -> Option<u64> {
        self.blocks.first().map(|(block, _)| *block)
    }

    /// Groups that are known from blocks up to this one.
    pub(crate) fn upto(&self, block: u64) -> impl Iterator<Item = GroupId> {
        self.blocks.range(..=(block, GroupId([u64::MAX; 2]))).map(|(_, id)| *id)
    }

    /// All groups, in an order that is the same everywhere. Sorts them: for recovery, tools and tests.
    pub(crate) fn sorted(&self) -> Vec<(GroupId, &Group)> {
        let mut groups: Vec<_> = self.groups.iter().map(|(id, held)| (*id, &held.group)).collect();
        groups.sort_unstable_by_key(|(id, _)| *id);
        groups
    }

    /// Events that have left their groups and have not ended, ascending.
    pub(crate) fn left(&self) -> Vec<Sequence> {
        let mut left: Vec<Sequence> = self.left.iter().copied().collect();
        left.sort_unstable();
        left
    }

    /// Says whether what always holds does. `waiting` are the events in memory that wait in their groups, with these;
    /// `is_all` where there are no others.
    ///
    /// # Errors
    /// What does not.
    pub(crate) fn audit(
        &self,
        waiting: impl Iterator<Item = (GroupId, Sequence)>,
        is_all: bool,
    ) -> Result<(), String> {
        let mut counted: HashMap<(GroupId, usize), u64> = HashMap::new();
        for (id, sequence) in waiting {
            let Some(group) = self.get(id) else {
                return Err(format!("event {} waits in a group that is not known", sequence.0));
            };
            *counted.entry((id, group.at(sequence))).or_default() += 1;
        }
        let mut held_counts: BTreeMap<TopicId, HeldCounts> = BTreeMap::new();
        for (id, held) in &self.groups {
            let Group { topic, name, stretches, .. } = &held.group;
            if !held.group.is_sound() {
                return Err(format!("group {name:?} of topic {} is not in order: {stretches:?}", topic.0));
            }
            for (at, stretch) in stretches.iter().enumerate() {
                let found = counted.get(&(*id, at)).copied().unwrap_or(0);
                let is_right = if is_all { found == stretch.waiting } else { found <= stretch.waiting };
                if !is_right {
                    return Err(format!(
                        "{found} events wait in group {name:?} of topic {} up to {}, and {} are counted",
                        topic.0, stretch.upto.0, stretch.waiting
                    ));
                }
            }
            if held.group.held() > 0 {
                let counts = held_counts.entry(*topic).or_default();
                counts.cancelled += held.group.cancelled();
                counts.any += held.group.held();
            }
        }
        let memory_bytes: usize = self.groups.values().map(|held| held.group.memory_bytes()).sum();
        if held_counts != self.held || memory_bytes != self.memory_bytes {
            return Err("what groups come to together is not what is counted".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallMs = WallMs(1_000);

    fn group_of(sequences: std::ops::RangeInclusive<u64>) -> Group {
        let mut group = Group::new(TopicId(1), "account-7");
        sequences.for_each(|n| group.join(Sequence(n)));
        group
    }

    fn cancelled(group: &Group, sequences: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        sequences.filter(|n| group.fate(Sequence(*n)).is_cancelled).collect()
    }

    #[test]
    fn an_operation_takes_what_waits_and_no_other_holds_and_gives_just_that_back() {
        let mut group = group_of(1..=3);
        assert_eq!(group.operate(7, Effect::Cancel, Sequence(3), NOW), Ok(3));
        group.join(Sequence(4));
        assert_eq!((group.pending(), group.cancelled()), (1, 3), "what comes later is another matter");
        group.join(Sequence(5));
        assert_eq!(group.operate(8, Effect::Cancel, Sequence(5), NOW), Ok(2));
        assert!(group.leave(Sequence(2)));
        assert_eq!(group.undo(7), Some(2));
        assert_eq!(cancelled(&group, 1..=6), [4, 5]);
        group.join(Sequence(6));
        assert_eq!(group.operate(9, Effect::Cancel, Sequence(6), NOW), Ok(3), "1, 3 and 6");
        assert_eq!(group.undo(8), Some(2));
        assert_eq!(cancelled(&group, 1..=6), [1, 2, 3, 6]);
        assert_eq!(group.undo(7), Some(2), "asked again, the answer is the same");
        assert_eq!(cancelled(&group, 1..=6), [1, 2, 3, 6], "and nothing changes");
        assert_eq!(group.undo(10), None);
    }

    #[test]
    fn a_group_is_over_once_nothing_waits_and_its_operations_are_forgotten() {
        let mut group = group_of(1..=2);
        assert_eq!(group.operate(7, Effect::Cancel, Sequence(2), NOW), Ok(2));
        group.forget(WallMs(5_000));
        assert_eq!(group.operations.len(), 1, "it holds events");
        assert!(group.leave(Sequence(1)) && group.leave(Sequence(2)) && !group.leave(Sequence(2)));
        assert!(!group.is_empty(), "the operation may be asked for again");
        group.forget(NOW);
        assert!(!group.is_empty());
        group.forget(WallMs(1_001));
        assert!(group.is_empty());
    }

    #[test]
    fn operations_and_stretches_are_bounded_and_one_that_holds_nothing_makes_room() {
        let mut group = Group::new(TopicId(1), "g");
        let mut sequence = 0;
        let mut cancel = |group: &mut Group, epoch| {
            sequence += 1;
            group.join(Sequence(sequence));
            group.operate(epoch, Effect::Cancel, Sequence(sequence), NOW)
        };
        for epoch in 1..=GROUP_EPOCH_COUNT_MAX as u64 {
            assert_eq!(cancel(&mut group, epoch), Ok(1));
        }
        assert_eq!(cancel(&mut group, 100), Err(TooManyOperations));
        assert!(group.leave(Sequence(3)));
        assert_eq!(group.operate(100, Effect::Cancel, Sequence(17), NOW), Ok(1));
        assert!(group.operation(3).is_none() && group.operation(100).is_some());

        // Taking back the older of two, again and again, leaves its events in more and more stretches.
        let mut group = Group::new(TopicId(1), "g");
        let mut last = Ok(0);
        for epoch in 1..=200 {
            last = cancel(&mut group, epoch);
            if epoch > 1 {
                group.undo(epoch - 1);
            }
            assert!(group.stretches.len() <= STRETCH_COUNT_MAX);
            if last.is_err() {
                break;
            }
        }
        assert_eq!(last, Err(TooManyOperations));
    }

    #[test]
    fn a_pause_takes_what_is_not_paused_postponements_add_up_and_each_is_taken_back_by_itself() {
        let fate = |group: &Group, n| group.fate(Sequence(n));
        let mut group = group_of(1..=2);
        assert_eq!(group.operate(7, Effect::Postpone(100), Sequence(2), NOW), Ok(2));
        group.join(Sequence(3));
        assert_eq!(group.operate(8, Effect::Pause, Sequence(3), NOW), Ok(3));
        assert_eq!(group.operate(9, Effect::Postpone(20), Sequence(3), NOW), Ok(3));
        group.join(Sequence(4));
        assert_eq!(group.operate(10, Effect::Pause, Sequence(4), NOW), Ok(1));
        assert_eq!((group.pending(), group.paused(), group.held()), (4, 4, 4));
        assert_eq!(fate(&group, 1), Fate { is_cancelled: false, is_paused: true, postponed_ms: 120 });
        assert_eq!(fate(&group, 3), Fate { is_cancelled: false, is_paused: true, postponed_ms: 20 });
        assert_eq!(fate(&group, 4), Fate { is_cancelled: false, is_paused: true, postponed_ms: 0 });
        assert_eq!(group.undo(8), Some(3));
        assert_eq!((group.paused(), fate(&group, 1).postponed_ms), (1, 120));
        assert_eq!(group.operate(11, Effect::Cancel, Sequence(4), NOW), Ok(4));
        assert_eq!(
            group.operate(12, Effect::Postpone(5), Sequence(4), NOW),
            Ok(0),
            "what is cancelled is nobody's"
        );
        assert_eq!((group.pending(), group.cancelled(), group.paused()), (0, 4, 0));
        assert_eq!(group.undo(11), Some(4), "as they were before");
        assert_eq!(group.undo(7), Some(2));
        assert_eq!((fate(&group, 1).postponed_ms, group.paused()), (20, 1));
        // What holds nothing is forgotten, and the others hold what they held.
        group.forget(WallMs(5_000));
        assert_eq!(group.operations.iter().map(|operation| operation.epoch).collect::<Vec<_>>(), [9, 10]);
        assert_eq!(
            (fate(&group, 3).postponed_ms, fate(&group, 4).is_paused, group.is_sound()),
            (20, true, true)
        );
    }
}
