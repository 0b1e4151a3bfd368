//! Records to bytes.

use escapement_protocol::event::padded_len;
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{Outcome, Sequence, SubscriptionId, TopicId, WallMs};

use super::{Forward, HEADER_SIZE_BYTES, RunStatement, TaskProgress, kind};
use crate::far::RunId;
use crate::groups::{Effect, Group, GroupId, Operation, Stretch};
use crate::names::{Name, NameHash};

/// Appends records to a block's bytes.
#[derive(Debug)]
pub struct RecordWriter<'a> {
    out: &'a mut Vec<u8>,
    count: &'a mut u32,
}

impl<'a> RecordWriter<'a> {
    /// Appends to `out` and counts in `count`.
    pub fn new(out: &'a mut Vec<u8>, count: &'a mut u32) -> Self {
        RecordWriter { out, count }
    }

    fn record(&mut self, kind: u8, a: u8, b: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.out.extend_from_slice(&[kind, a, b as u8, (b >> 8) as u8, 0, 0, 0, 0]);
        body(self.out);
        self.out.resize(start + padded_len(self.out.len() - start), 0);
        let body_len = (self.out.len() - start - HEADER_SIZE_BYTES) as u32;
        self.out[start + 4..start + HEADER_SIZE_BYTES].copy_from_slice(&body_len.to_le_bytes());
        *self.count += 1;
    }

    /// Accepted events: `events` are their bytes, each padded to 8.
    pub fn published(
        &mut self,
        topic: TopicId,
        first: Sequence,
        count: u32,
        accepted: WallMs,
        events: &[u8],
    ) {
        self.record(kind::PUBLISHED, 0, 0, |out| {
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
            out.extend_from_slice(&first.0.to_le_bytes());
            out.extend_from_slice(&accepted.0.to_le_bytes());
            out.extend_from_slice(events);
        });
    }

    /// Accepted events of a topic with a `dedup_window`, each with its name.
    pub fn published_named(
        &mut self,
        topic: TopicId,
        first: Sequence,
        accepted: WallMs,
        names: &[NameHash],
        events: &[u8],
    ) {
        self.record(kind::PUBLISHED_NAMED, 0, 0, |out| {
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&(names.len() as u32).to_le_bytes());
            out.extend_from_slice(&first.0.to_le_bytes());
            out.extend_from_slice(&accepted.0.to_le_bytes());
            for NameHash(words) in names {
                words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            }
            out.extend_from_slice(events);
        });
    }

    /// Names again that a block stated before, from the sequence that its statement begins with.
    pub fn names<'n>(
        &mut self,
        topic: TopicId,
        of_block: u64,
        first: Sequence,
        names: impl Iterator<Item = &'n Name>,
    ) {
        self.record(kind::NAMES, 0, 0, |out| {
            out.extend_from_slice(&topic.0.to_le_bytes());
            let count_at = out.len();
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&of_block.to_le_bytes());
            out.extend_from_slice(&first.0.to_le_bytes());
            let mut count = 0_u32;
            for Name { hash: NameHash([low, high]), sequence, schedule_time, accepted } in names {
                for word in [low, high, &sequence.0, &schedule_time.0, &accepted.0] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
                count += 1;
            }
            out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
        });
    }

    /// Names that are forgotten.
    pub fn names_forgotten(&mut self, topic: TopicId, before: Sequence) {
        self.record(kind::NAMES_FORGOTTEN, 0, 0, |out| {
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&before.0.to_le_bytes());
        });
    }

    /// Names are in a run.
    pub fn names_run(&mut self, run: RunId, footer_id: u64) {
        self.record(kind::NAMES_RUN, 0, 0, |out| {
            out.extend_from_slice(&run.0.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&footer_id.to_le_bytes());
        });
    }

    /// Nothing in a run of names is needed any more.
    pub fn names_run_ended(&mut self, run: RunId) {
        self.record(kind::NAMES_RUN_ENDED, 0, 0, |out| {
            out.extend_from_slice(&run.0.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        });
    }

    /// A live event again; where it was rescheduled, and whether it has left its group.
    pub fn relocated(
        &mut self,
        topic: TopicId,
        sequence: Sequence,
        due: WallMs,
        (forward, has_left): (Option<Forward>, bool),
        progress: &[TaskProgress],
        event: &[u8],
    ) {
        let flags = u8::from(forward.is_some()) | u8::from(has_left) << 1;
        self.record(kind::RELOCATED, flags, 0, |out| {
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&(progress.len() as u32).to_le_bytes());
            out.extend_from_slice(&sequence.0.to_le_bytes());
            out.extend_from_slice(&due.0.to_le_bytes());
            forward.into_iter().for_each(|forward| put_forward(out, forward));
            for task in progress {
                out.extend_from_slice(&task.subscription.0.to_le_bytes());
                out.extend_from_slice(&task.attempt.to_le_bytes());
                out.extend_from_slice(&task.excused.to_le_bytes());
                out.extend_from_slice(&u64::from(task.done).to_le_bytes());
                out.extend_from_slice(&task.next_due.0.to_le_bytes());
            }
            out.extend_from_slice(event);
        });
    }

    /// Ended tasks of one subscription with one outcome. Splits where offsets do not fit 32 bits.
    pub fn completed(
        &mut self,
        subscription: SubscriptionId,
        outcome: Outcome,
        last: bool,
        sequences: &[Sequence],
    ) {
        let mut rest = sequences;
        while let Some(first) = rest.first() {
            // The base is the smallest of a window whose spread fits; in practice the whole slice.
            let mut least = first.0;
            let mut most = first.0;
            let fits = rest
                .iter()
                .take_while(|s| {
                    let (low, high) = (least.min(s.0), most.max(s.0));
                    let ok = high - low <= u64::from(u32::MAX);
                    if ok {
                        (least, most) = (low, high);
                    }
                    ok
                })
                .count();
            let (window, after) = rest.split_at(fits);
            rest = after;
            self.record(kind::COMPLETED, outcome as u8, u16::from(last), |out| {
                out.extend_from_slice(&subscription.0.to_le_bytes());
                out.extend_from_slice(&(window.len() as u32).to_le_bytes());
                out.extend_from_slice(&least.to_le_bytes());
                for sequence in window {
                    out.extend_from_slice(&((sequence.0 - least) as u32).to_le_bytes());
                }
            });
        }
    }

    /// A failed attempt.
    pub fn attempt_failed(
        &mut self,
        subscription: SubscriptionId,
        sequence: Sequence,
        attempt: u16,
        excused: u16,
        next_due: WallMs,
    ) {
        self.record(kind::ATTEMPT_FAILED, 0, attempt, |out| {
            out.extend_from_slice(&subscription.0.to_le_bytes());
            out.extend_from_slice(&excused.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&sequence.0.to_le_bytes());
            out.extend_from_slice(&next_due.0.to_le_bytes());
        });
    }

    /// A topic.
    pub fn topic(&mut self, id: TopicId, version: u64, settings: &TopicSettings) {
        self.record(kind::TOPIC, 0, 0, |out| {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&version.to_le_bytes());
            out.extend_from_slice(&settings.dedup_window_ms.to_le_bytes());
            put_text(out, &settings.name);
            put_text(out, &settings.default_source);
            put_text(out, &settings.default_type);
            put_text(out, &settings.default_content_type);
        });
    }

    /// A subscription.
    pub fn subscription(
        &mut self,
        id: SubscriptionId,
        version: u64,
        topic: TopicId,
        settings: &SubscriptionSettings,
    ) {
        self.record(kind::SUBSCRIPTION, 0, 0, |out| {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&version.to_le_bytes());
            for number in [
                settings.max_concurrent_dispatches,
                settings.max_attempts,
                settings.max_doublings,
                settings.jitter_permille,
            ] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            for number in [settings.attempt_deadline_ms, settings.min_backoff_ms, settings.max_backoff_ms] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            let (misfire, misfire_ms) = settings.misfire.code();
            out.extend_from_slice(&u64::from(misfire).to_le_bytes());
            out.extend_from_slice(&misfire_ms.to_le_bytes());
            put_text(out, &settings.name);
            put_text(out, &settings.topic);
        });
    }

    /// What is known of a run.
    pub fn run(&mut self, statement: &RunStatement) {
        let RunStatement { run, closed, moved, loaded, footer_id, as_of, size_bytes } = *statement;
        self.record(kind::RUN, u8::from(closed), 0, |out| {
            for number in [run.0, moved, loaded, footer_id] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&as_of.to_le_bytes());
            out.extend_from_slice(&size_bytes.to_le_bytes());
        });
    }

    /// Events that leave the log for blocks of a run.
    pub fn moved(&mut self, run: RunId, first_block: u32, block_count: u32, sequences: &[Sequence]) {
        let base = sequences.iter().min().map_or(0, |least| least.0);
        let spread = sequences.iter().max().map_or(0, |most| most.0) - base;
        let width = if spread <= u64::from(u32::MAX) { 4 } else { 8 };
        self.record(kind::MOVED, width, 0, |out| {
            for number in [run.0, first_block, block_count, sequences.len() as u32] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&base.to_le_bytes());
            for sequence in sequences {
                let offset = (sequence.0 - base).to_le_bytes();
                out.extend_from_slice(&offset[..usize::from(width)]);
            }
        });
    }

    /// Blocks of a run whose events are in memory again.
    pub fn loaded(&mut self, run: RunId, first_block: u32, block_count: u32) {
        self.record(kind::LOADED, 0, 0, |out| {
            for number in [run.0, first_block, block_count, 0] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        });
    }

    /// Events that were cancelled in a run, by due time and sequence, each with its topic.
    pub fn cancelled_in_run(
        &mut self,
        run: RunId,
        events: impl ExactSizeIterator<Item = ((WallMs, Sequence), TopicId)>,
    ) {
        self.record(kind::CANCELLED_IN_RUN, 0, 0, |out| {
            out.extend_from_slice(&run.0.to_le_bytes());
            out.extend_from_slice(&(events.len() as u32).to_le_bytes());
            for ((due, sequence), topic) in events {
                out.extend_from_slice(&due.0.to_le_bytes());
                out.extend_from_slice(&sequence.0.to_le_bytes());
                out.extend_from_slice(&topic.0.to_le_bytes());
                out.extend_from_slice(&[0; 4]);
            }
        });
    }

    /// Another due time of an event whose bytes are in the log.
    pub fn rescheduled(&mut self, sequence: Sequence, due: WallMs, forward: Forward, left: Option<GroupId>) {
        self.record(kind::RESCHEDULED, u8::from(left.is_some()), 0, |out| {
            out.extend_from_slice(&sequence.0.to_le_bytes());
            out.extend_from_slice(&due.0.to_le_bytes());
            put_forward(out, forward);
            left.into_iter().for_each(|group| put_group(out, group));
        });
    }

    /// Another due time of an event that was in a run until now, where it was due at `key`'s first.
    pub fn rescheduled_in_run(
        &mut self,
        run: RunId,
        topic: TopicId,
        key: (WallMs, Sequence),
        due: WallMs,
        forward: Forward,
        event: &[u8],
    ) {
        self.record(kind::RESCHEDULED_IN_RUN, 0, 0, |out| {
            out.extend_from_slice(&run.0.to_le_bytes());
            out.extend_from_slice(&topic.0.to_le_bytes());
            for number in [key.1.0, key.0.0, due.0] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            put_forward(out, forward);
            out.extend_from_slice(event);
        });
    }

    /// A group as it is.
    pub fn group(&mut self, group: &Group) {
        let Group { topic, name, stretches, operations } = group;
        self.record(kind::GROUP, 0, 0, |out| {
            out.extend_from_slice(&topic.0.to_le_bytes());
            // Names are verified, and stretches and operations bounded, to far fewer than these can count.
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(&[stretches.len() as u8, operations.len() as u8]);
            for Stretch { upto, waiting, holders } in stretches {
                for number in [upto.0, *waiting, holders.0] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            for Operation { epoch, effect, decided, taken, undone } in operations {
                let (code, by_ms) = match effect {
                    Effect::Cancel => (1, 0),
                    Effect::Pause => (2, 0),
                    Effect::Postpone(by_ms) => (3, *by_ms),
                };
                out.extend_from_slice(&epoch.to_le_bytes());
                out.extend_from_slice(&[code, u8::from(undone.is_some()), 0, 0, 0, 0, 0, 0]);
                for number in [by_ms, decided.0, *taken, undone.unwrap_or(0)] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            out.extend_from_slice(name.as_bytes());
        });
    }

    /// Events that wait in their group no more: cancelled, or handed to their subscriptions.
    pub fn group_left(&mut self, group: GroupId, is_cancelled: bool, sequences: &[Sequence]) {
        self.record(kind::GROUP_LEFT, u8::from(is_cancelled), 0, |out| {
            put_group(out, group);
            out.extend_from_slice(&(sequences.len() as u64).to_le_bytes());
            sequences.iter().for_each(|sequence| out.extend_from_slice(&sequence.0.to_le_bytes()));
        });
    }

    /// An event of a group that was cancelled in a run.
    pub fn cancelled_in_run_of_group(
        &mut self,
        run: RunId,
        (due, sequence): (WallMs, Sequence),
        topic: TopicId,
        group: GroupId,
    ) {
        self.record(kind::CANCELLED_IN_RUN_OF_GROUP, 0, 0, |out| {
            out.extend_from_slice(&run.0.to_le_bytes());
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&due.0.to_le_bytes());
            out.extend_from_slice(&sequence.0.to_le_bytes());
            put_group(out, group);
        });
    }

    /// Counters.
    pub fn mark(&mut self, next_sequence: Sequence) {
        self.record(kind::MARK, 0, 0, |out| out.extend_from_slice(&next_sequence.0.to_le_bytes()));
    }
}

fn put_group(out: &mut Vec<u8>, GroupId(words): GroupId) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

fn put_forward(out: &mut Vec<u8>, forward: Forward) {
    out.extend_from_slice(&forward.schedule_time.0.to_le_bytes());
    out.extend_from_slice(&forward.version.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Settings are validated to far less than 64 KiB before they get here.
    let len = u16::try_from(text.len()).expect("validated settings hold short texts");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
