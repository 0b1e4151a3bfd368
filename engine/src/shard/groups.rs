//! Operations on groups, and how events stand in them.
//!
//! An operation is decided against the groups as they will be once what is on its way to the disk is durable, and logged
//! as one record that states the whole group. No event is touched. What an event's group says of it is asked when its
//! time comes: then it leaves the group, handed out or cancelled, and a record says so. Records are in one order, so an
//! event that left the group before an operation was decided is none that it took, live and in replay alike.
//!
//! An operation counts from its decision: what is cancelled then ends with a record behind the operation's. One that is
//! taken back counts until the record of that is durable, as a crash may bring it back.
//!
//! What is paused, or postponed, or about to be no longer cancelled when its own time comes, is put *aside*: what is postponed with
//! a timer. Where an event is, besides in memory, is lost in a crash and found out again. It is asked for its fate anew when its timer
//! has run out, and when something is taken back that may concern it. An event that was postponed gets its new due time, and leaves
//! its group, in one record once that time has come; from when that is durable on it's like any that was rescheduled.

mod aside;

use std::collections::VecDeque;

use hashbrown::{HashMap, HashSet};

use escapement_protocol::event::{has_group, padded_len};
use escapement_protocol::frame::{
    GROUP_EPOCH_COUNT_MAX, GroupAct, GroupAnswer, GroupOperation, GroupVerdict, QueryAnswer,
};
use escapement_protocol::{ErrorCode, MonoNs, Outcome, Sequence, SubscriptionId, TopicId, WallMs};

use super::publish::SPACE_RETRY_AFTER_MS;
use super::reschedule::Rescheduling;
use super::{Durable, Shard, Volatile};
use crate::effects::{Effects, Refusal, ReplyBody, Ticket};
use crate::far::{Key, RunId};
use crate::groups::{Effect, Fate, Group, GroupId, Operation, name_of, new_group_size_bytes};
use crate::record::{
    Forward, GROUP_LEFT_FIXED_SIZE_BYTES, HEADER_SIZE_BYTES, Sequences, WALL_MAX, group_size_bytes,
};
use crate::table::Entry;
use crate::wheel::Tick;
use aside::Aside;

/// Groups take at most this part of the memory for pending events.
const MEMORY_SHARE: usize = 8;

/// What a group takes of memory for one more operation, at most.
const OPERATION_MEMORY_SIZE_BYTES: usize = 256;

/// How long an operation that holds nothing any more is remembered, so that it can be asked for again.
const REMEMBERED_MS: u64 = 3_600_000;

/// How often operations are looked at that may be forgotten.
const FORGET_EVERY_MS: u64 = 1_000;

/// A group as it will be once what is on its way to the disk is durable.
#[derive(Debug)]
struct Deciding {
    group: Group,
    /// What is on its way and changes it.
    records: usize,
    /// Of these, such as state it whole.
    statements: usize,
    /// Whether something was taken back, and is not durable yet.
    gives_back: bool,
}

/// An event that leaves its group in this turn, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Leaving {
    group: GroupId,
    is_cancelled: bool,
    sequence: Sequence,
}

/// What is lost in a crash of what is known of groups.
#[derive(Debug, Default)]
pub(super) struct Grouping {
    deciding: HashMap<GroupId, Deciding>,
    leaving: Vec<Leaving>,
    /// What leaves its group in this turn as due at another time.
    postponed: Vec<(GroupId, Sequence, WallMs, Forward)>,
    aside: Aside,
    /// Events that were handed out, until the record that they have left their group is applied.
    handed_out: HashSet<Sequence>,
    /// Groups with operations, by when these are looked at.
    remembered: VecDeque<(WallMs, GroupId)>,
    forget_at: MonoNs,
}

/// How an event stands in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    /// As far as is decided.
    decided: Fate,
    /// As far as is durable.
    durable: Fate,
}

impl Standing {
    fn is_paused(self) -> bool {
        self.decided.is_paused || self.durable.is_paused
    }

    /// Whether it is cancelled, and about not to be.
    fn comes_back(self) -> bool {
        self.durable.is_cancelled && !self.decided.is_cancelled
    }

    fn postponed_ms(self) -> u64 {
        self.decided.postponed_ms.max(self.durable.postponed_ms)
    }
}

impl Grouping {
    pub(super) fn memory_bytes(&self) -> usize {
        self.deciding.capacity() * size_of::<(GroupId, Deciding)>()
            + self.handed_out.capacity() * size_of::<(Sequence, u8)>()
            + self.aside.memory_bytes()
    }

    /// The next timer of an event that is aside.
    pub(super) fn next_due(&self) -> Option<WallMs> {
        self.aside.next_due()
    }

    /// Whether an event was handed out, and the record that it has left its group is on its way.
    pub(super) fn was_handed_out(&self, sequence: Sequence) -> bool {
        !self.handed_out.is_empty() && self.handed_out.contains(&sequence)
    }

    /// Whether something is on its way to the disk that changes the group.
    pub(super) fn is_deciding(&self, id: GroupId) -> bool {
        self.deciding.contains_key(&id)
    }

    /// The group, to be changed by what is about to be logged.
    fn decide(&mut self, durable: &Durable, id: GroupId, new: impl FnOnce() -> Group) -> &mut Deciding {
        self.deciding.entry(id).or_insert_with(|| {
            let group = durable.groups.get(id).cloned().unwrap_or_else(new);
            Deciding { group, records: 0, statements: 0, gives_back: false }
        })
    }

    /// An event that waits in the group leaves it.
    fn decide_leave(&mut self, durable: &Durable, id: GroupId, sequence: Sequence) -> &mut Deciding {
        let unknown = || panic!("{sequence:?} waits in a group that is not known");
        let deciding = self.decide(durable, id, unknown);
        assert!(deciding.group.leave(sequence), "{sequence:?} waits in its group, and is counted there");
        deciding
    }
}

impl Durable {
    /// The group that a pending event waits in, as far as is durable.
    fn group_of_event(&self, topic: TopicId, sequence: Sequence, event: &[u8]) -> Option<GroupId> {
        if !has_group(event) || self.groups.has_left(sequence) {
            return None;
        }
        name_of(event).map(|name| GroupId::of(topic, name))
    }

    fn fate(&self, id: GroupId, sequence: Sequence) -> Fate {
        self.groups.get(id).map_or(Fate::default(), |group| group.fate(sequence))
    }

    fn fate_of(&self, topic: TopicId, sequence: Sequence, event: &[u8]) -> Fate {
        let group = self.group_of_event(topic, sequence, event);
        group.map_or(Fate::default(), |id| self.fate(id, sequence))
    }

    /// Whether an event waits in a group that is cancelled, durably.
    pub(super) fn is_cancelled_with_group(&self, topic: TopicId, sequence: Sequence, event: &[u8]) -> bool {
        self.fate_of(topic, sequence, event).is_cancelled
    }

    /// When an event is due, of which `due` is the due time of its own: later where it is postponed with its group, durably.
    pub(super) fn due_with_group(
        &self,
        topic: TopicId,
        sequence: Sequence,
        event: &[u8],
        due: WallMs,
    ) -> WallMs {
        due.plus_ms(self.fate_of(topic, sequence, event).postponed_ms).min(WALL_MAX.max(due))
    }
}

impl Volatile {
    /// Whether such an event is counted in a group. One may not be where blocks of the log were given up that counted it: it is in
    /// no group then.
    fn counts(&self, durable: &Durable, id: GroupId, sequence: Sequence) -> bool {
        let deciding = self.grouping.deciding.get(&id).map(|deciding| &deciding.group);
        deciding.or_else(|| durable.groups.get(id)).is_some_and(|group| group.counts(sequence))
    }

    fn standing(&self, durable: &Durable, id: GroupId, sequence: Sequence) -> Standing {
        let of_durable = durable.fate(id, sequence);
        let deciding = self.grouping.deciding.get(&id);
        let decided = deciding.map_or(of_durable, |deciding| deciding.group.fate(sequence));
        Standing { decided, durable: of_durable }
    }

    /// The time of an event of a group has come, its own one: says whether it is to be handed to its subscriptions now.
    pub(super) fn leave_group(&mut self, durable: &Durable, sequence: Sequence, entry: &Entry) -> bool {
        let event = durable.payloads.event(entry.location);
        let group = durable.group_of_event(entry.topic, sequence, event);
        let Some(id) = group.filter(|id| self.counts(durable, *id, sequence)) else { return true };
        let standing = self.standing(durable, id, sequence);
        let now = self.now.wall;
        let until = entry.due.plus_ms(standing.postponed_ms()).min(WALL_MAX.max(entry.due));
        let grouping = &mut self.grouping;
        if standing.is_paused() || standing.comes_back() || until > now {
            let has_timer = !standing.is_paused() && !standing.comes_back();
            grouping.aside.put(id, sequence, has_timer.then_some(until), now);
            return false;
        }
        let is_cancelled = standing.decided.is_cancelled;
        grouping.decide_leave(durable, id, sequence);
        if is_cancelled {
            self.fenced.insert(sequence);
        } else {
            grouping.handed_out.insert(sequence);
            if standing.decided.postponed_ms > 0 {
                let due = entry.due.plus_ms(standing.decided.postponed_ms).min(until);
                let schedule_time = durable.schedule_time(sequence, entry);
                let forward = Forward { schedule_time, version: durable.version(sequence) + 1 };
                grouping.postponed.push((id, sequence, due, forward));
                self.rescheduling.insert(sequence, Rescheduling::leaving(due, forward));
                return false;
            }
        }
        grouping.leaving.push(Leaving { group: id, is_cancelled, sequence });
        !is_cancelled
    }

    /// Asks events anew what becomes of them whose timers have run out.
    pub(super) fn ask_postponed(&mut self, durable: &Durable, most: usize) {
        if self.grouping.aside.until.is_empty() {
            return;
        }
        let mut due = std::mem::take(&mut self.due);
        self.grouping.aside.take_due(self.now.wall, most, &mut due);
        self.ask_again(durable, due.drain(..).map(Sequence));
        self.due = due;
    }

    fn ask_again(&mut self, durable: &Durable, events: impl Iterator<Item = Sequence>) {
        for sequence in events {
            if let Some(entry) = durable.table.get(sequence) {
                self.wheel.insert(Tick(entry.due.0), sequence.0);
            }
        }
    }
}

impl Shard {
    /// The group that a pending event waits in, in memory or on its way there.
    pub(super) fn group_of(&self, sequence: Sequence) -> Option<GroupId> {
        if let Some(rescheduling) = self.volatile.rescheduling.get(&sequence) {
            return rescheduling.group;
        }
        let entry = self.durable.table.get(sequence)?;
        self.group_of_event(entry.topic, sequence, self.durable.payloads.event(entry.location))
    }

    /// The group that an event of these bytes waits in.
    pub(super) fn group_of_event(&self, topic: TopicId, sequence: Sequence, event: &[u8]) -> Option<GroupId> {
        let group = self.durable.group_of_event(topic, sequence, event)?;
        let waits = !self.volatile.grouping.was_handed_out(sequence);
        (waits && self.volatile.counts(&self.durable, group, sequence)).then_some(group)
    }

    /// What becomes of an event that waits in a group, as far as is decided.
    pub(super) fn fate_in(&self, group: Option<GroupId>, sequence: Sequence) -> Fate {
        let standing = group.map(|id| self.volatile.standing(&self.durable, id, sequence));
        standing.map_or(Fate::default(), |standing| standing.decided)
    }

    /// Logs that an event in memory is cancelled by itself, and leaves its group so.
    pub(super) fn log_cancelled_of_group(&mut self, group: GroupId, sequence: Sequence, out: &mut Effects) {
        let Shard { durable, volatile, .. } = self;
        volatile.grouping.decide_leave(durable, group, sequence).records += 1;
        out.log().group_left(group, true, &[sequence]);
        volatile.ending.push_back(sequence);
        volatile.ended_counts.add(SubscriptionId(0), Outcome::Cancelled, 1);
    }

    /// Logs the same of one in a run.
    pub(super) fn log_cancelled_in_run_of_group(
        &mut self,
        run: RunId,
        (key, topic): (Key, TopicId),
        group: GroupId,
        out: &mut Effects,
    ) {
        self.volatile.grouping.decide_leave(&self.durable, group, key.1).records += 1;
        out.log().cancelled_in_run_of_group(run, key, topic, group);
    }

    /// Logs what left its group in this turn.
    pub(super) fn log_left(&mut self, out: &mut Effects) {
        let mut postponed = std::mem::take(&mut self.volatile.grouping.postponed);
        for (group, sequence, due, forward) in postponed.drain(..) {
            out.log().rescheduled(sequence, due, forward, Some(group));
            let deciding = self.volatile.grouping.deciding.get_mut(&group);
            deciding.expect("what is decided is known").records += 1;
        }
        self.volatile.grouping.postponed = postponed;
        if self.volatile.grouping.leaving.is_empty() {
            return;
        }
        let mut leaving = std::mem::take(&mut self.volatile.grouping.leaving);
        leaving.sort_unstable();
        // Half a block, so that records pack well.
        let count_max =
            (self.config.block_size_bytes_max / 2 - HEADER_SIZE_BYTES - GROUP_LEFT_FIXED_SIZE_BYTES)
                / size_of::<Sequence>();
        let mut sequences = std::mem::take(&mut self.volatile.sequences);
        for same in leaving.chunk_by(|a, b| (a.group, a.is_cancelled) == (b.group, b.is_cancelled)) {
            let Leaving { group, is_cancelled, .. } = same[0];
            for part in same.chunks(count_max) {
                sequences.clear();
                sequences.extend(part.iter().map(|leaving| leaving.sequence));
                out.log().group_left(group, is_cancelled, &sequences);
                let deciding = self.volatile.grouping.deciding.get_mut(&group);
                deciding.expect("what is decided is known").records += 1;
                if is_cancelled {
                    self.volatile.ending.extend(&sequences);
                    let count = sequences.len() as u64;
                    self.volatile.ended_counts.add(SubscriptionId(0), Outcome::Cancelled, count);
                }
            }
        }
        self.volatile.sequences = sequences;
        leaving.clear();
        self.volatile.grouping.leaving = leaving;
    }

    /// Events that are about to be logged as published wait in their groups: the first `count` of these.
    pub(super) fn join_groups(&mut self, topic: TopicId, first: Sequence, count: u32, events: &[u8]) {
        let Shard { durable, volatile, .. } = self;
        for_each_group(events, count, |index, name| {
            let deciding =
                volatile.grouping.decide(durable, GroupId::of(topic, name), || Group::new(topic, name));
            deciding.group.join(Sequence(first.0 + u64::from(index)));
            deciding.records += 1;
        });
    }

    fn groups_memory_bytes(&self) -> usize {
        self.durable.groups.memory_bytes() + self.volatile.grouping.memory_bytes()
    }

    /// What new groups take of the log, of the groups that these events name, `None` where they name none; or why there is
    /// no place for them.
    pub(super) fn new_groups_size_bytes(
        &self,
        topic: TopicId,
        count: u32,
        events: &[u8],
    ) -> Result<Option<usize>, Refusal> {
        let (mut memory_bytes, mut log_bytes, mut last) = (0, 0, None);
        for_each_group(events, count, |_, name| {
            let id = GroupId::of(topic, name);
            let is_known = last.replace(id) == Some(id)
                || self.durable.groups.get(id).is_some()
                || self.volatile.grouping.is_deciding(id);
            if !is_known {
                memory_bytes += new_group_size_bytes(name) + size_of::<(GroupId, Deciding)>();
                log_bytes += group_size_bytes(name.len(), 1, 0);
            }
        });
        let is_full = self.groups_memory_bytes() + memory_bytes > self.config.memory_bytes_max / MEMORY_SHARE;
        if memory_bytes > 0 && is_full {
            return Err(refusal(
                "the groups of pending events fill their eighth of the memory: publish to groups that there are, or \
                 without one, try again later, or raise memory",
            ));
        }
        Ok(last.map(|_: GroupId| log_bytes))
    }

    /// The operations on a group that are remembered, as far as they are durable: for tools.
    #[must_use]
    pub fn operations_on_group(&self, topic: TopicId, name: &str) -> &[Operation] {
        self.durable.groups.get(GroupId::of(topic, name)).map_or(&[], |group| &group.operations)
    }

    /// Carries out an operation on a group.
    pub(super) fn operate_on_group(&mut self, ticket: Ticket, operation: &GroupOperation, out: &mut Effects) {
        let GroupOperation { topic, ref group, act, epoch, by_ms, .. } = *operation;
        if self.durable.registry.topic(topic).is_none() {
            return out.reply(ticket, ReplyBody::Refused(self.unknown_topic(topic)));
        }
        let id = GroupId::of(topic, group);
        let decided = match act {
            GroupAct::Read => Ok((GroupVerdict::Read, 0)),
            GroupAct::Cancel => self.change_group(id, operation, Effect::Cancel, out),
            GroupAct::Pause => self.change_group(id, operation, Effect::Pause, out),
            GroupAct::Postpone => self.change_group(id, operation, Effect::Postpone(by_ms), out),
            GroupAct::Undo => Ok(self.undo_group(id, epoch, out)),
        };
        let (verdict, count) = match decided {
            Ok(decided) => decided,
            Err(refusal) => return out.reply(ticket, ReplyBody::Refused(refusal)),
        };
        let deciding = self.volatile.grouping.deciding.get(&id).filter(|_| act != GroupAct::Read);
        let held = deciding.map(|deciding| &deciding.group).or_else(|| self.durable.groups.get(id));
        let answer = GroupAnswer {
            verdict,
            count,
            pending: held.map_or(0, Group::pending),
            paused: held.map_or(0, Group::paused),
            cancelled: held.map_or(0, Group::cancelled),
            operations: held.map_or_else(Vec::new, Group::epochs),
        };
        let body = ReplyBody::Answered(QueryAnswer::Group(answer));
        if deciding.is_some() {
            // It rests on what is on its way.
            out.reply_on_commit(ticket, body);
        } else {
            out.reply(ticket, body);
        }
    }

    fn change_group(
        &mut self,
        id: GroupId,
        operation: &GroupOperation,
        effect: Effect,
        out: &mut Effects,
    ) -> Result<(GroupVerdict, u64), Refusal> {
        let GroupOperation { topic, ref group, epoch, .. } = *operation;
        let is_full = self.groups_memory_bytes() + new_group_size_bytes(group) + OPERATION_MEMORY_SIZE_BYTES
            > self.config.memory_bytes_max / MEMORY_SHARE;
        let needed_bytes = group_size_bytes(group.len(), 2, GROUP_EPOCH_COUNT_MAX);
        let log_is_full = needed_bytes > self.log_room_bytes();
        let Shard { durable, volatile, .. } = self;
        let held = volatile.grouping.deciding.get(&id).map(|deciding| &deciding.group);
        let held = held.or_else(|| durable.groups.get(id));
        // Asked again, it is carried out once.
        if let Some(before) = held.and_then(|held| held.operation(epoch)) {
            return Ok(match before.undone {
                None => (verdict_of(before.effect), before.taken),
                Some(restored) => (GroupVerdict::Undone, restored),
            });
        }
        if is_full {
            return Err(refusal(
                "the groups of pending events fill their eighth of the memory: try again later, or raise memory",
            ));
        }
        if log_is_full {
            return Err(refusal(
                "the log is full: try again later; give the node more disk, or raise log_size_max",
            ));
        }
        let upto = Sequence(volatile.next_sequence - 1);
        let now = volatile.now.wall;
        let mut changed = held.cloned().unwrap_or_else(|| Group::new(topic, group));
        let taken = changed.operate(epoch, effect, upto, now).map_err(|_| {
            refusal(
                "so many operations hold events of this group that another has no place: undo some, or wait until \
                 their events' time has come",
            )
        })?;
        volatile.log_room_bytes = volatile.log_room_bytes.saturating_sub(needed_bytes);
        volatile.grouping.remembered.push_back((now, id));
        volatile.grouping.decide(durable, id, || Group::new(topic, group)).group = changed;
        self.log_group(id, out);
        Ok((verdict_of(effect), taken))
    }

    fn undo_group(&mut self, id: GroupId, epoch: u64, out: &mut Effects) -> (GroupVerdict, u64) {
        let Shard { durable, volatile, .. } = self;
        let held = volatile.grouping.deciding.get(&id).map(|deciding| &deciding.group);
        let held = held.or_else(|| durable.groups.get(id));
        let Some(held) = held.filter(|held| held.operation(epoch).is_some()) else {
            return (GroupVerdict::NotFound, 0);
        };
        let was_undone = held.operation(epoch).is_some_and(|operation| operation.undone.is_some());
        let mut changed = held.clone();
        let restored = changed.undo(epoch).unwrap_or(0);
        if !was_undone {
            let deciding = volatile.grouping.decide(durable, id, || unreachable!("it is held"));
            (deciding.group, deciding.gives_back) = (changed, true);
            self.log_group(id, out);
        }
        (GroupVerdict::Undone, restored)
    }

    /// Logs a group as it is decided.
    fn log_group(&mut self, id: GroupId, out: &mut Effects) {
        let unknown = || panic!("a group that is logged is known");
        let deciding = self.volatile.grouping.decide(&self.durable, id, unknown);
        deciding.records += 1;
        deciding.statements += 1;
        out.log().group(&deciding.group);
    }

    /// States groups again that blocks up to `upto` are needed for, until the records have come to `budget_end` bytes.
    pub(super) fn restate_groups(&mut self, upto: u64, budget_end: usize, out: &mut Effects) {
        if self.durable.groups.oldest_block().is_none_or(|block| block > upto) {
            return;
        }
        let deciding = &self.volatile.grouping.deciding;
        let is_coming = |id: &GroupId| deciding.get(id).is_some_and(|deciding| deciding.statements > 0);
        let old: Vec<GroupId> = self.durable.groups.upto(upto).filter(|id| !is_coming(id)).collect();
        for id in old {
            if out.records.len() >= budget_end {
                break;
            }
            self.log_group(id, out);
        }
    }

    /// Forgets operations that hold nothing and nobody will ask for again, now and then.
    pub(super) fn forget_operations(&mut self, out: &mut Effects) {
        let now = self.volatile.now;
        if now.mono < self.volatile.grouping.forget_at {
            return;
        }
        self.volatile.grouping.forget_at = now.mono.plus_ms(FORGET_EVERY_MS);
        let before = WallMs(now.wall.0.saturating_sub(REMEMBERED_MS));
        while let Some((_, id)) = self.volatile.grouping.remembered.pop_front_if(|(at, _)| *at < before) {
            let Shard { durable, volatile, .. } = self;
            let held = volatile.grouping.deciding.get(&id).map(|deciding| &deciding.group);
            let Some(held) = held.or_else(|| durable.groups.get(id)) else { continue };
            let mut changed = held.clone();
            changed.forget(before);
            let is_changed = changed != *held;
            if !changed.operations.is_empty() {
                volatile.grouping.remembered.push_back((now.wall, id));
            }
            if is_changed {
                volatile.grouping.decide(durable, id, || unreachable!("it is held")).group = changed;
                self.log_group(id, out);
            }
        }
    }

    /// Recovery has ended.
    pub(super) fn start_groups(&mut self) {
        let with_operations = self.durable.groups.sorted().into_iter().filter_map(|(id, group)| {
            Some((group.operations.iter().map(|operation| operation.decided).min()?, id))
        });
        let mut remembered: Vec<_> = with_operations.collect();
        remembered.sort_unstable();
        self.volatile.grouping.remembered = remembered.into();
    }

    /// Events of a block wait in their groups.
    pub(super) fn apply_joined(&mut self, block: u64, topic: TopicId, sequence: Sequence, event: &[u8]) {
        let Some(name) = name_of(event) else { return };
        let id = self.durable.groups.join(block, topic, name, sequence);
        self.settle_group(id, false);
    }

    pub(super) fn apply_group_left(&mut self, id: GroupId, is_cancelled: bool, sequences: Sequences<'_>) {
        for sequence in sequences.iter() {
            let was_counted = self.durable.groups.leave(id, sequence);
            assert!(was_counted || self.recovering, "{sequence:?} left a group in which it did not wait");
            if is_cancelled {
                self.apply_end(sequence, Outcome::Cancelled);
                continue;
            }
            if !self.recovering {
                self.volatile.grouping.handed_out.remove(&sequence);
            }
            // Where its beginning was trimmed, its copy says so again.
            if self.durable.table.get(sequence).is_some() {
                self.durable.groups.note_left(sequence);
            }
        }
        self.settle_group(id, false);
    }

    /// An event that was postponed with its group has left it, as due at another time.
    pub(super) fn apply_postponed(&mut self, id: GroupId, sequence: Sequence) {
        let was_counted = self.durable.groups.leave(id, sequence);
        assert!(was_counted || self.recovering, "{sequence:?} left a group in which it did not wait");
        if !self.recovering {
            self.volatile.grouping.handed_out.remove(&sequence);
        }
        if self.durable.table.get(sequence).is_some() {
            self.durable.groups.note_left(sequence);
        }
        self.settle_group(id, false);
    }

    pub(super) fn apply_left_in_run(&mut self, id: GroupId, sequence: Sequence) {
        let was_counted = self.durable.groups.leave(id, sequence);
        assert!(was_counted || self.recovering, "{sequence:?} left a group in which it did not wait");
        self.settle_group(id, false);
    }

    pub(super) fn apply_group(&mut self, block: u64, group: Group) {
        let id = self.durable.groups.state(block, group);
        self.settle_group(id, true);
    }

    /// Something that was decided of a group is durable.
    fn settle_group(&mut self, id: GroupId, is_statement: bool) {
        if self.recovering {
            return;
        }
        let Shard { durable, volatile, .. } = self;
        let deciding = volatile.grouping.deciding.get_mut(&id).expect("what was decided is known");
        deciding.records -= 1;
        deciding.statements -= usize::from(is_statement);
        // Where it was not this statement that gives something back, the next one asks once more.
        let gives_back = is_statement && deciding.gives_back;
        deciding.gives_back &= deciding.statements > 0;
        if deciding.records == 0 {
            let decided = &deciding.group;
            let is_same = durable.groups.get(id).map_or(decided.is_empty(), |held| held == decided);
            assert!(is_same, "a group is as it was decided: {decided:?}, {:?}", durable.groups.get(id));
            volatile.grouping.deciding.remove(&id);
        }
        if gives_back {
            let aside = volatile.grouping.aside.take(id);
            volatile.ask_again(durable, aside.into_iter());
        }
    }

    /// Asserts that what is aside waits in its group, has been due, and has something to wait for.
    pub(super) fn check_aside(&self) {
        let Shard { durable, volatile, .. } = self;
        let Aside { groups, until, .. } = &volatile.grouping.aside;
        let mut count = 0;
        for (id, sequence) in groups.iter().flat_map(|(id, all)| all.iter().map(|sequence| (*id, *sequence)))
        {
            count += usize::from(until.contains_key(&sequence));
            // It may have been cancelled by itself.
            let Some(entry) = durable.table.get(sequence).filter(|_| !volatile.fenced.contains(&sequence))
            else {
                continue;
            };
            assert!(entry.due <= volatile.now.wall, "{sequence:?} is aside, and was due");
            let standing = volatile.standing(durable, id, sequence);
            let gives_back = volatile.grouping.deciding.get(&id).is_some_and(|deciding| deciding.gives_back);
            let is_held = standing.is_paused() || standing.comes_back();
            let waits = is_held || gives_back || until.contains_key(&sequence);
            assert!(waits && self.group_of(sequence) == Some(id), "{sequence:?} is aside for {standing:?}");
        }
        assert_eq!(count, until.len(), "every timer is of an event that is aside");
    }

    /// Events in memory that wait in their groups.
    pub(super) fn waiting_in_groups(&self) -> impl Iterator<Item = (GroupId, Sequence)> {
        self.durable.table.iter().filter_map(|(sequence, entry)| {
            let event = self.durable.payloads.event(entry.location);
            Some((self.durable.group_of_event(entry.topic, sequence, event)?, sequence))
        })
    }
}

fn verdict_of(effect: Effect) -> GroupVerdict {
    match effect {
        Effect::Cancel => GroupVerdict::Cancelled,
        Effect::Pause => GroupVerdict::Paused,
        Effect::Postpone(_) => GroupVerdict::Postponed,
    }
}

/// Says the group of each of the first `count` events that has one, with the event's place.
fn for_each_group(events: &[u8], count: u32, mut each: impl FnMut(u32, &str)) {
    let mut rest = events;
    for index in 0..count {
        let Some(len) = escapement_protocol::event::stated_len(rest) else { return };
        if has_group(rest)
            && let Some(name) = name_of(rest)
        {
            each(index, name);
        }
        rest = rest.get(padded_len(len)..).unwrap_or_default();
    }
}

fn refusal(message: &str) -> Refusal {
    Refusal {
        code: ErrorCode::ResourceExhausted,
        message: message.to_owned(),
        retry_after_ms: SPACE_RETRY_AFTER_MS,
    }
}
