//! The only code that changes durable state.

use hashbrown::HashMap;
use smallvec::SmallVec;

use escapement_protocol::event::has_group;
use escapement_protocol::{Outcome, Sequence, ShardId, SubscriptionId, TopicId, WallMs};

use super::Shard;
use crate::effects::{Effects, Message};
use crate::far::{NoRuns, RunError, RunFiles};
use crate::record::{Forward, Record, RecordError, TaskProgress, published_events, records};
use crate::table::Entry;

/// Events whose entries are brought near together, before the first of them is worked on.
pub(super) const WARM_COUNT: usize = 64;

/// Hands over sequences some at a time, so that their entries can be brought near together.
pub(super) fn in_batches(sequences: impl Iterator<Item = Sequence>, mut work: impl FnMut(&[Sequence])) {
    let mut sequences = sequences.fuse();
    loop {
        let batch: SmallVec<[Sequence; WARM_COUNT]> = sequences.by_ref().take(WARM_COUNT).collect();
        if batch.is_empty() {
            return;
        }
        work(&batch);
    }
}

/// Why a block of the log can't be applied.
#[derive(Debug)]
pub enum ApplyError {
    /// It does not parse.
    Record(RecordError),
    /// It needs a run that can't be read.
    Run(RunError),
    /// It makes an event pending that is pending: two would have one id.
    Twice(Sequence),
    /// A record says of how many events it is, and these are not as many.
    Miscounted {
        /// The first of them.
        first: Sequence,
    },
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApplyError::Record(error) => error.fmt(f),
            ApplyError::Run(error) => error.fmt(f),
            ApplyError::Twice(Sequence(sequence)) => {
                write!(f, "event {sequence} is pending already: two events would have one id")
            }
            ApplyError::Miscounted { first: Sequence(first) } => {
                write!(f, "the record of events from {first} on holds another number of them than it says")
            }
        }
    }
}

impl std::error::Error for ApplyError {}

impl From<RecordError> for ApplyError {
    fn from(error: RecordError) -> ApplyError {
        ApplyError::Record(error)
    }
}

impl From<RunError> for ApplyError {
    fn from(error: RunError) -> ApplyError {
        ApplyError::Run(error)
    }
}

impl Shard {
    /// Applies the records of a block that is durable. Live, `out` takes what follows for other shards; in
    /// recovery nothing follows.
    ///
    /// # Errors
    /// Where a record does not parse, or in recovery speaks of a run: [`Shard::replay_block`] takes those. The records
    /// before it are applied: the caller refuses the shard.
    pub fn apply_block(&mut self, block: u64, bytes: &[u8], out: &mut Effects) -> Result<(), ApplyError> {
        self.apply_records(block, bytes, &mut NoRuns, out)
    }

    /// Applies the records of a recovered block, with the files of runs at hand.
    ///
    /// # Errors
    /// Where a record does not parse, contradicts those before it, or needs a run that can't be read. The records
    /// before it are applied: the caller refuses the shard.
    pub fn replay_block(
        &mut self,
        block: u64,
        bytes: &[u8],
        files: &mut dyn RunFiles,
    ) -> Result<(), ApplyError> {
        self.apply_records(block, bytes, files, &mut Effects::default())
    }

    fn apply_records(
        &mut self,
        block: u64,
        bytes: &[u8],
        files: &mut dyn RunFiles,
        out: &mut Effects,
    ) -> Result<(), ApplyError> {
        self.durable.ledger.open(block);
        for record in records(bytes) {
            self.apply(block, record?, files, out)?;
        }
        self.durable.applied = block;
        Ok(())
    }

    fn apply(
        &mut self,
        block: u64,
        record: Record<'_>,
        files: &mut dyn RunFiles,
        out: &mut Effects,
    ) -> Result<(), ApplyError> {
        match record {
            Record::Published { topic, first_sequence, count, accepted, names, events } => {
                self.apply_published(block, topic, first_sequence, count, accepted, events)?;
                self.apply_names_published(block, topic, first_sequence, accepted, names, events);
                self.cancel_named_waiting(out);
            }
            Record::Relocated { topic, sequence, due, forward, has_left, progress, event } => {
                self.apply_relocated(block, topic, sequence, (due, forward, has_left), progress, event);
            }
            Record::Completed { subscription, outcome, last, sequences } => {
                in_batches(sequences.iter(), |batch| {
                    self.durable.table.touch(batch.iter().copied());
                    for sequence in batch.iter().copied() {
                        if last {
                            self.apply_end(sequence, outcome);
                        } else {
                            self.apply_progress(Progressed { sequence, subscription, change: Change::Done });
                        }
                    }
                });
            }
            Record::AttemptFailed { subscription, sequence, attempt, excused, next_due } => {
                let change = Change::Failed { attempt, excused, next_due };
                self.apply_progress(Progressed { sequence, subscription, change });
            }
            Record::Mark { next_sequence } => {
                self.durable.next_sequence = self.durable.next_sequence.max(next_sequence.0);
                self.durable.ledger.marked(block);
                self.volatile.relocating_registry = false;
            }
            Record::Topic { .. } | Record::Subscription { .. } => self.apply_control(block, &record, out),
            Record::Run(statement) => self.apply_run(&statement, files)?,
            Record::Moved { run, first_block, block_count, sequences } => {
                self.apply_moved(run, first_block + block_count, sequences);
            }
            Record::Loaded { run, first_block, block_count } => {
                self.apply_loaded(block, run, first_block, block_count, files, out)?;
            }
            Record::CancelledInRun { run, events } => {
                events.with_topics().for_each(|(key, topic)| self.apply_cancelled_in_run(run, key, topic));
            }
            Record::Rescheduled { sequence, due, forward, left } => {
                if let Some(group) = left {
                    self.apply_postponed(group, sequence);
                }
                self.apply_rescheduled(sequence, due, forward);
            }
            Record::RescheduledInRun { run, topic, sequence, was_due, due, forward, event } => {
                let changed = (topic, due, forward);
                self.apply_rescheduled_in_run(block, run, (was_due, sequence), changed, event)?;
            }
            Record::Names { topic, of_block, first, names } => {
                self.apply_names_again(block, topic, of_block, first, names);
            }
            Record::NamesForgotten { topic, before } => self.apply_names_forgotten(topic, before),
            Record::NamesRun { run, footer_id } => self.apply_names_run(block, run, footer_id, files),
            Record::NamesRunEnded { run } => self.durable.names.runs.end(run),
            Record::Group(group) => self.apply_group(block, group),
            Record::GroupLeft { group, is_cancelled, sequences } => {
                self.apply_group_left(group, is_cancelled, sequences);
            }
            Record::CancelledInRunOfGroup { run, key, topic, group } => {
                self.apply_left_in_run(group, key.1);
                self.apply_cancelled_in_run(run, key, topic);
            }
        }
        Ok(())
    }

    fn apply_published(
        &mut self,
        block: u64,
        topic: TopicId,
        first: Sequence,
        count: u32,
        accepted: WallMs,
        events: &[u8],
    ) -> Result<(), ApplyError> {
        let mut applied = 0;
        for (sequence, due, event) in published_events(first, accepted, events) {
            if applied == count {
                break;
            }
            applied += 1;
            let location = self.durable.payloads.insert(sequence, event);
            let before =
                self.durable.table.insert(sequence, Entry { due, location, topic, block: block as u32 });
            if before.is_some() {
                assert!(self.recovering, "sequence {sequence:?} was given out twice");
                return Err(ApplyError::Twice(sequence));
            }
            if !self.recovering {
                self.volatile.soon.add(topic, due);
                self.schedule(due, sequence, event.len());
            }
            if has_group(event) {
                self.apply_joined(block, topic, sequence, event);
            }
        }
        if applied != count {
            assert!(self.recovering, "a record counts its events rightly");
            return Err(ApplyError::Miscounted { first });
        }
        self.durable.copies.add(topic, count as usize);
        self.durable.ledger.published(block, first, count);
        self.durable.next_sequence = self.durable.next_sequence.max(first.0 + u64::from(count));
        if !self.recovering {
            self.volatile.accepted_bytes -= events.len();
        }
        Ok(())
    }

    fn apply_relocated(
        &mut self,
        block: u64,
        topic: TopicId,
        sequence: Sequence,
        (due, forward, has_left): (WallMs, Option<Forward>, bool),
        progress: Vec<TaskProgress>,
        event: &[u8],
    ) {
        if self.recovering && self.durable.version(sequence) != forward.map_or(0, |held| held.version) {
            // What a run brought of which the log does not say any more that the event had left it.
            self.end_event(sequence);
        }
        if let Some(entry) = self.durable.table.get_mut(sequence) {
            let before = std::mem::replace(&mut entry.block, block as u32);
            self.durable.ledger.gone(before);
        } else {
            assert!(self.recovering, "{sequence:?} was appended again after its end");
            // Its first copy has been trimmed.
            let location = self.durable.payloads.insert(sequence, event);
            self.durable.table.insert(sequence, Entry { due, location, topic, block: block as u32 });
            self.durable.copies.add(topic, 1);
            if let Some(forward) = forward {
                self.durable.forwards.insert(sequence, forward);
            }
            if has_left {
                self.durable.groups.note_left(sequence);
            }
            if !progress.is_empty() {
                self.durable.progress.entry(sequence).extend(progress);
            }
            self.durable.next_sequence = self.durable.next_sequence.max(sequence.0 + 1);
        }
        self.durable.ledger.relocated(block, sequence);
    }

    fn apply_progress(&mut self, progressed: Progressed) {
        if !self.recovering {
            let logged = self.volatile.progressed.pop_front();
            assert_eq!(logged, Some(progressed), "tasks progress in the order of the log");
        }
        // What ended before, or was trimmed and comes again with its progress, needs none.
        if self.durable.table.get(progressed.sequence).is_some() {
            progressed.apply_to(self.durable.progress.entry(progressed.sequence));
        }
    }

    pub(super) fn apply_end(&mut self, sequence: Sequence, outcome: Outcome) {
        if !self.recovering {
            let logged = self.volatile.ending.pop_front();
            assert_eq!(logged, Some(sequence), "events end in the order of the log");
            if outcome == Outcome::Cancelled {
                self.volatile.fenced.remove(&sequence);
            }
        }
        let ended = self.end_event(sequence);
        // What is cancelled was never handed out; what ends in any other way was.
        if let Some(topic) = ended
            && !self.recovering
            && outcome != Outcome::Cancelled
        {
            self.volatile.open.add(topic, -1);
        }
    }

    /// An event is no longer pending here, and this was its topic; one that was not changes nothing.
    pub(super) fn end_event(&mut self, sequence: Sequence) -> Option<TopicId> {
        let entry = self.durable.table.remove(sequence)?;
        self.durable.payloads.remove(entry.location);
        self.durable.copies.remove(entry.topic);
        self.volatile.soon.remove(entry.topic, entry.due);
        self.durable.ledger.gone(entry.block);
        self.durable.progress.remove(sequence);
        self.durable.forwards.remove(&sequence);
        self.durable.groups.ended(sequence);
        Some(entry.topic)
    }

    fn apply_control(&mut self, block: u64, record: &Record<'_>, out: &mut Effects) {
        let is_new = self.durable.registry.put(record, block);
        if let Record::Topic { id: topic, .. } | Record::Subscription { topic, .. } = record {
            let subscriptions =
                self.durable.registry.topic(*topic).map_or(0, |held| held.subscriptions.len());
            self.durable.copies.set_fanout(*topic, subscriptions);
        }
        // Appended again, so that an older block can go: everybody has it.
        if self.recovering || !is_new {
            return;
        }
        if let Record::Subscription { id, settings, .. } = record
            && self.durable.registry.owner_of(*id) == self.config.shard
        {
            self.router.upsert(*id, settings);
            self.take_early(*id, out);
        }
        let version = match record {
            Record::Topic { version, .. } | Record::Subscription { version, .. } => *version,
            _ => return,
        };
        if self.config.shard == ShardId(0) {
            self.replicate_control(record, version, out);
        } else {
            out.forwards.push((ShardId(0), Message::ControlDurable { shard: self.config.shard, version }));
        }
    }
}

pub(super) type Tasks = SmallVec<[TaskProgress; 1]>;

/// Most lists kept for reuse.
const SPARE_COUNT_MAX: usize = 1_024;

/// What is known of tasks with a history, by their events.
#[derive(Debug, Default)]
pub(super) struct ProgressMap {
    events: HashMap<Sequence, Tasks>,
    /// Empty lists with memory of their own, so that a steady fan-out allocates nothing.
    spare: Vec<Tasks>,
}

impl ProgressMap {
    pub(super) fn get(&self, event: Sequence) -> &[TaskProgress] {
        if self.events.is_empty() {
            return &[];
        }
        self.events.get(&event).map_or(&[], |tasks| tasks.as_slice())
    }

    fn entry(&mut self, event: Sequence) -> &mut Tasks {
        self.events.entry(event).or_insert_with(|| self.spare.pop().unwrap_or_default())
    }

    pub(super) fn remove(&mut self, event: Sequence) {
        if self.events.is_empty() {
            return;
        }
        if let Some(mut tasks) = self.events.remove(&event)
            && tasks.spilled()
            && self.spare.len() < SPARE_COUNT_MAX
        {
            tasks.clear();
            self.spare.push(tasks);
        }
    }

    pub(super) fn events(&self) -> impl Iterator<Item = Sequence> {
        self.events.keys().copied()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.events.capacity() * size_of::<(Sequence, Tasks)>()
    }
}

/// What a record says of one task of a pending event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progressed {
    pub(super) sequence: Sequence,
    pub(super) subscription: SubscriptionId,
    pub(super) change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It ended, and others of its event have not.
    Done,
    /// An attempt failed.
    Failed { attempt: u16, excused: u16, next_due: WallMs },
}

impl Progressed {
    /// Changes its task among those of its event.
    pub(super) fn apply_to(self, tasks: &mut Tasks) {
        let subscription = self.subscription;
        let at = tasks.iter().position(|task| task.subscription == subscription).unwrap_or_else(|| {
            let next_due = WallMs(0);
            tasks.push(TaskProgress { subscription, done: false, attempt: 0, excused: 0, next_due });
            tasks.len() - 1
        });
        match self.change {
            Change::Done => tasks[at].done = true,
            Change::Failed { attempt, excused, next_due } => {
                tasks[at] = TaskProgress { attempt, excused, next_due, ..tasks[at] };
            }
        }
    }
}
