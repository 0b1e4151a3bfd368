//! Accepting events.

use escapement_protocol::event::{padded_len, stated_len};
use escapement_protocol::{ErrorCode, MonoNs, Sequence, TopicId};

use super::Shard;
use super::relocate::PROGRESS_COUNT_MAX;
use super::reschedule::Rescheduling;
use crate::effects::{Effects, Refusal, ReplyBody, Ticket};
use crate::record::{
    FORWARD_SIZE_BYTES, Forward, HEADER_SIZE_BYTES, PROGRESS_SIZE_BYTES, PUBLISHED_FIXED_SIZE_BYTES,
    RELOCATED_FIXED_SIZE_BYTES, RESCHEDULED_IN_RUN_FIXED_SIZE_BYTES,
};

/// Most bytes of events in one record, unless a single event is larger: blocks are cut between records.
pub(super) const RUN_SIZE_BYTES_MAX: usize = 128 * 1024;

/// Bytes of a record besides an event, of whatever kind: a `Relocated` one needs as many and its progress.
const RECORD_OVERHEAD_SIZE_BYTES: usize = HEADER_SIZE_BYTES + RELOCATED_FIXED_SIZE_BYTES + FORWARD_SIZE_BYTES;

const _: () = assert!(PUBLISHED_FIXED_SIZE_BYTES <= RELOCATED_FIXED_SIZE_BYTES);
const _: () = assert!(
    HEADER_SIZE_BYTES + RESCHEDULED_IN_RUN_FIXED_SIZE_BYTES
        <= RECORD_OVERHEAD_SIZE_BYTES + PROGRESS_SIZE_BYTES_MAX
);

/// Kept free beside an event, so that its relocation, with a history of many tasks, fits a block too.
const PROGRESS_SIZE_BYTES_MAX: usize = PROGRESS_COUNT_MAX * PROGRESS_SIZE_BYTES;

/// Smallest block that a shard works with: what it keeps free, and an event of some use.
pub(super) const BLOCK_SIZE_BYTES_MIN: usize = RECORD_OVERHEAD_SIZE_BYTES + PROGRESS_SIZE_BYTES_MAX + 1024;

/// Memory that one task takes in a router, about.
pub(super) const TASK_SIZE_BYTES: usize = 96;

/// How long a publisher should wait where memory or disk is short.
pub(super) const SPACE_RETRY_AFTER_MS: u32 = 1_000;

/// A token bucket over events, so that a node's intake can be capped.
#[derive(Debug)]
pub(super) struct Admission {
    per_s: u64,
    /// Tokens in units of 1e-9 events, to be exact in integers.
    tokens: u128,
    filled: MonoNs,
}

const NANO: u128 = 1_000_000_000;
/// The bucket holds what the cap admits in this long: enough to ride out a late turn.
const BURST_MS: u128 = 50;

impl Admission {
    pub(super) fn new(per_s: u64) -> Self {
        Admission { per_s, tokens: 0, filled: MonoNs(0) }
    }

    /// The bucket begins to fill: it is empty at a start, so that a restart admits no more than was allowed.
    pub(super) fn start(&mut self, now: MonoNs) {
        self.filled = now;
    }

    /// Takes up to `count` and says how many; the second number is ms until one more is there.
    fn take(&mut self, now: MonoNs, count: u32) -> (u32, u32) {
        if self.per_s == 0 {
            return (count, 0);
        }
        let rate = u128::from(self.per_s);
        let most = (rate * BURST_MS * NANO / 1_000).max(NANO);
        self.tokens = (self.tokens + u128::from(now.since(self.filled)) * rate).min(most);
        self.filled = now;
        let taken = (self.tokens / NANO).min(u128::from(count)) as u32;
        self.tokens -= u128::from(taken) * NANO;
        let missing_ns = NANO.saturating_sub(self.tokens).div_ceil(rate);
        // At least for half the bucket, so that a refused publisher comes back to a useful amount.
        (taken, missing_ns.div_ceil(1_000_000).max(BURST_MS / 2) as u32)
    }
}

impl Shard {
    pub(super) fn publish(
        &mut self,
        ticket: Ticket,
        topic: TopicId,
        count: u32,
        events: &[u8],
        out: &mut Effects,
    ) {
        let now = self.volatile.now;
        let Some(topic_held) = self.durable.registry.topic(topic) else {
            return self.refuse_publish(ticket, count, self.unknown_topic(topic), out);
        };
        if topic_held.settings.dedup_window_ms > 0 {
            return self.publish_named((ticket, topic), count, events, out);
        }
        let groups = match self.new_groups_size_bytes(topic, count, events) {
            Ok(size_bytes) => size_bytes,
            Err(refusal) => return self.refuse_publish(ticket, count, refusal, out),
        };
        let most = self.event_size_bytes_max(0);
        let offer = Offer {
            count,
            size_bytes: events.len(),
            largest_size_bytes: largest(events, most),
            extra_size_bytes: 0,
            groups_size_bytes: groups.unwrap_or(0),
        };
        let (taken, refusal) = self.admit(topic, offer);
        if taken == 0 {
            return self.refuse_publish(ticket, count, refusal.expect("nothing was taken"), out);
        }
        self.volatile.stats.refused += u64::from(count - taken);
        self.volatile.stats.published += u64::from(taken);
        let first_sequence = Sequence(self.volatile.next_sequence);
        self.volatile.next_sequence += u64::from(taken);
        assert!(self.volatile.next_sequence <= Sequence::MAX.0, "48 bits of sequence are used up");

        if groups.is_some() {
            self.join_groups(topic, first_sequence, taken, events);
        }
        let mut rest = events;
        let mut left = taken;
        let mut sequence = first_sequence;
        while left > 0 {
            let (run, run_bytes) = cut(rest, left, most.min(RUN_SIZE_BYTES_MAX), 0);
            out.log().published(topic, sequence, run, now.wall, &rest[..run_bytes]);
            self.volatile.accepted_bytes += run_bytes;
            rest = &rest[run_bytes..];
            sequence.0 += u64::from(run);
            left -= run;
        }
        let (accepted_count, duplicates) = (taken, Vec::new());
        let body =
            ReplyBody::Published { first_sequence, accepted_count, accepted: now.wall, refusal, duplicates };
        out.reply_on_commit(ticket, body);
    }

    /// Bytes of the largest event that a block of the log takes, where its record needs some besides it.
    pub(super) fn event_size_bytes_max(&self, extra_size_bytes: usize) -> usize {
        let most = self.config.block_size_bytes_max - RECORD_OVERHEAD_SIZE_BYTES - PROGRESS_SIZE_BYTES_MAX;
        most - extra_size_bytes
    }

    /// How many of these events are accepted, from the first on, and why the rest is not.
    pub(super) fn admit(&mut self, topic: TopicId, offer: Offer) -> (u32, Option<Refusal>) {
        let Offer { count, size_bytes, largest_size_bytes, extra_size_bytes, groups_size_bytes } = offer;
        if self.memory_bytes() + size_bytes > self.config.memory_bytes_max {
            let refusal = Refusal {
                code: ErrorCode::ResourceExhausted,
                message: "the memory for pending events is full: publish again later, or raise memory".into(),
                retry_after_ms: SPACE_RETRY_AFTER_MS,
            };
            return (0, Some(refusal));
        }
        // Of the log: as published now, or as appended again later.
        let each_size_bytes = self.durable.copies.each_size_bytes(topic) + extra_size_bytes;
        let needed_bytes = size_bytes + count as usize * each_size_bytes + groups_size_bytes;
        if needed_bytes > self.publish_room_bytes() {
            let refusal = Refusal {
                code: ErrorCode::ResourceExhausted,
                message:
                    "the log is full: publish again later; give the node more disk, or raise log_size_max"
                        .into(),
                retry_after_ms: SPACE_RETRY_AFTER_MS,
            };
            return (0, Some(refusal));
        }
        let most = self.event_size_bytes_max(extra_size_bytes);
        if largest_size_bytes > most {
            let refusal = Refusal {
                code: ErrorCode::EventTooLarge,
                message: format!("this node's log takes events of at most {most} bytes"),
                retry_after_ms: 0,
            };
            return (0, Some(refusal));
        }
        let (taken, retry_after_ms) = self.volatile.admission.take(self.volatile.now.mono, count);
        if taken > 0 {
            self.volatile.log_room_bytes -= needed_bytes;
        }
        let refusal = (taken < count).then(|| Refusal {
            code: ErrorCode::ResourceExhausted,
            message: "the node's admission rate is reached: publish again after the stated time".into(),
            retry_after_ms,
        });
        (taken, refusal)
    }

    /// Bytes of the log for what is published. A part is left for far-future events that come back.
    pub(super) fn publish_room_bytes(&self) -> usize {
        let room = self.log_room_bytes();
        let is_any_far = self.durable.runs.pending() > 0;
        let kept = if is_any_far { room.saturating_add(self.relocation_size_bytes()) / 8 } else { 0 };
        room.saturating_sub(kept)
    }

    /// Bytes of what says where pending events are, and when they are due.
    pub(super) fn index_bytes(&self) -> usize {
        self.durable.table.memory_bytes()
            + self.volatile.wheel.memory_bytes()
            + self.volatile.expiries.memory_bytes()
            + self.volatile.lane.memory_bytes()
            + self.volatile.soon.memory_bytes()
            + self.volatile.backlog.memory_bytes()
            + self.durable.runs.memory_bytes()
    }

    /// Bytes held for pending events, accepted ones included.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes_with(self.durable.payloads.retained_bytes())
    }

    /// As [`Shard::memory_bytes`], but of payloads only what is alive: what goes once the events have gone.
    pub(super) fn live_bytes(&self) -> usize {
        self.memory_bytes_with(self.durable.payloads.live_bytes())
    }

    fn memory_bytes_with(&self, payload_bytes: usize) -> usize {
        payload_bytes
            + self.index_bytes()
            + self.durable.progress.memory_bytes()
            + self.durable.forwards.capacity() * size_of::<(Sequence, Forward)>()
            + self.volatile.rescheduling.capacity() * size_of::<(Sequence, Rescheduling)>()
            + self.durable.names.memory_bytes()
            + self.durable.groups.memory_bytes()
            + self.volatile.grouping.memory_bytes()
            + self.volatile.naming.memory_bytes()
            + self.volatile.far.memory_bytes()
            // Of tasks, those there are: the router's pool is reused and never shrinks, so that counting it whole
            // could refuse publishes for good after one bad hour.
            + self.router.tasks() * TASK_SIZE_BYTES
            + self.volatile.accepted_bytes
    }
}

/// Events that someone wants accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) count: u32,
    /// Bytes of all of them.
    pub(super) size_bytes: usize,
    /// Bytes of the largest, where it may be too large.
    pub(super) largest_size_bytes: usize,
    /// Bytes that each takes of the log besides its own.
    pub(super) extra_size_bytes: usize,
    /// Bytes that the groups take of the log which are new with them.
    pub(super) groups_size_bytes: usize,
}

/// Size of the largest event, where any can be larger than `most`.
fn largest(mut events: &[u8], most: usize) -> usize {
    if events.len() <= most {
        return 0;
    }
    let mut largest = 0;
    while let Some(len) = stated_len(events) {
        let len = padded_len(len);
        largest = largest.max(len);
        events = events.get(len..).unwrap_or_default();
    }
    largest
}

/// How many of the first `count` events fit `most` bytes, each with so many more, at least one; and their own bytes.
pub(super) fn cut(events: &[u8], count: u32, most: usize, each_size_bytes: usize) -> (u32, usize) {
    let mut bytes = 0;
    for taken in 0..count {
        let len = padded_len(stated_len(&events[bytes..]).expect("the door counted whole events"));
        if taken > 0 && bytes + len + taken as usize * each_size_bytes > most {
            return (taken, bytes);
        }
        bytes += len;
    }
    (count, bytes)
}
