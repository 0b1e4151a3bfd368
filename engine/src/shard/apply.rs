//! The only code that changes durable state.

use escapement_protocol::{Outcome, Sequence, TopicId, WallMs};

use super::{Durable, Shard};
use crate::effects::{Effects, Message};
use crate::record::{Record, RecordError, TaskProgress, published_events, records};
use crate::table::Entry;
use crate::wheel::Tick;
use escapement_protocol::ShardId;

impl Shard {
    /// Applies the records of a block that is durable. Live, `out` takes what follows for other shards; in
    /// recovery nothing follows.
    ///
    /// # Errors
    /// Where a record does not parse. The records before it are applied: the caller refuses the shard.
    pub fn apply_block(&mut self, block: u64, bytes: &[u8], out: &mut Effects) -> Result<(), RecordError> {
        self.durable.ledger.open(block);
        for record in records(bytes) {
            self.apply(block, record?, out);
        }
        Ok(())
    }

    fn apply(&mut self, block: u64, record: Record<'_>, out: &mut Effects) {
        match record {
            Record::Published { topic, first_sequence, count, accepted, events } => {
                self.apply_published(block, topic, first_sequence, count, accepted, events);
            }
            Record::Relocated { topic, sequence, due, progress, event } => {
                self.apply_relocated(block, topic, sequence, due, progress, event);
            }
            Record::Completed { subscription, outcome, last, sequences } => {
                for sequence in sequences.iter() {
                    if last {
                        self.apply_end(sequence, outcome);
                    } else if self.durable.table.get(sequence).is_some() {
                        let task = self.durable.progress_of(sequence, subscription);
                        task.done = true;
                    }
                }
            }
            Record::AttemptFailed { subscription, sequence, attempt, excused, next_due } => {
                if self.durable.table.get(sequence).is_some() {
                    let task = self.durable.progress_of(sequence, subscription);
                    task.attempt = attempt;
                    task.excused = excused;
                    task.next_due = next_due;
                }
            }
            Record::Mark { next_sequence } => {
                self.durable.next_sequence = self.durable.next_sequence.max(next_sequence.0);
                self.durable.ledger.marked(block);
                self.volatile.relocating_registry = false;
            }
            Record::Topic { .. } | Record::Subscription { .. } => self.apply_control(block, &record, out),
        }
    }

    fn apply_published(
        &mut self,
        block: u64,
        topic: TopicId,
        first: Sequence,
        count: u32,
        accepted: WallMs,
        events: &[u8],
    ) {
        let mut applied = 0;
        for (sequence, due, event) in published_events(first, accepted, events) {
            if applied == count {
                break;
            }
            applied += 1;
            let location = self.durable.payloads.insert(sequence, event);
            let before =
                self.durable.table.insert(sequence, Entry { due, location, topic, block: block as u32 });
            assert!(before.is_none(), "sequence {sequence:?} was given out twice");
            if !self.recovering {
                self.volatile.wheel.insert(Tick(due.0), sequence.0);
            }
        }
        assert_eq!(applied, count, "a record counts its events rightly");
        self.durable.ledger.published(block, first, count);
        self.durable.next_sequence = self.durable.next_sequence.max(first.0 + u64::from(count));
        if !self.recovering {
            self.volatile.accepted_bytes -= events.len();
        }
    }

    fn apply_relocated(
        &mut self,
        block: u64,
        topic: TopicId,
        sequence: Sequence,
        due: WallMs,
        progress: Vec<TaskProgress>,
        event: &[u8],
    ) {
        if let Some(entry) = self.durable.table.get_mut(sequence) {
            let before = std::mem::replace(&mut entry.block, block as u32);
            self.durable.ledger.gone(before);
        } else if self.recovering {
            // Its first copy has been trimmed.
            let location = self.durable.payloads.insert(sequence, event);
            self.durable.table.insert(sequence, Entry { due, location, topic, block: block as u32 });
            if !progress.is_empty() {
                self.durable.progress.insert(sequence, progress.into());
            }
            self.durable.next_sequence = self.durable.next_sequence.max(sequence.0 + 1);
        } else {
            // It ended between its second copy's way to the disk and now.
            return;
        }
        self.durable.ledger.relocated(block, sequence);
    }

    fn apply_end(&mut self, sequence: Sequence, outcome: Outcome) {
        if !self.recovering {
            let logged = self.volatile.ending.pop_front();
            assert_eq!(logged, Some(sequence), "events end in the order of the log");
            if outcome == Outcome::Cancelled {
                self.volatile.fenced.remove(&sequence);
            }
        }
        let Some(entry) = self.durable.table.remove(sequence) else { return };
        self.durable.payloads.remove(entry.location);
        self.durable.ledger.gone(entry.block);
        if !self.durable.progress.is_empty() {
            self.durable.progress.remove(&sequence);
        }
    }

    fn apply_control(&mut self, block: u64, record: &Record<'_>, out: &mut Effects) {
        self.durable.registry.put(record, block);
        if self.recovering {
            return;
        }
        if let Record::Subscription { id, settings, .. } = record
            && self.owns(*id)
        {
            self.router.upsert(self.volatile.now.mono, *id, settings);
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

impl Durable {
    fn progress_of(
        &mut self,
        sequence: Sequence,
        subscription: escapement_protocol::SubscriptionId,
    ) -> &mut TaskProgress {
        let tasks = self.progress.entry(sequence).or_default();
        let at = tasks.iter().position(|task| task.subscription == subscription).unwrap_or_else(|| {
            tasks.push(TaskProgress {
                subscription,
                done: false,
                attempt: 0,
                excused: 0,
                next_due: WallMs(0),
            });
            tasks.len() - 1
        });
        &mut tasks[at]
    }
}
