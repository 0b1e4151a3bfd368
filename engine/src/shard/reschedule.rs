//! Another due time for a pending event: decided by its id alone, wherever the event is.
//!
//! An event keeps its id, which carries the due time that it was published with. So of one that was rescheduled a
//! [`Forward`] is kept until it ends, where the event is: in memory beside its entry, and in the footer of a run.
//!
//! From the decision until the record is durable the event is in [`Volatile::rescheduling`](super::Volatile), and does
//! not become due: neither at its old time, which the record may have taken back, nor at the new one, which a crash may.

use escapement_protocol::frame::{CancelVerdict, RescheduleVerdict, TaskState};
use escapement_protocol::{ErrorCode, EventId, Outcome, Sequence, SubscriptionId, TopicId, WallMs};

use super::far::{Aim, LookUp};
use super::publish::SPACE_RETRY_AFTER_MS;
use super::query::state_of;
use super::{ApplyError, Durable, Ended, PendingEvent, Shard};
use crate::effects::{Effects, Refusal, ReplyBody, Ticket};
use crate::far::{Key, RunId};
use crate::groups::GroupId;
use crate::record::{FORWARD_SIZE_BYTES, Forward, RESCHEDULED_SIZE_BYTES, WALL_MAX};
use crate::table::Entry;

/// What was decided of an event, and is on its way to the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rescheduling {
    pub(super) due: WallMs,
    pub(super) forward: Forward,
    /// The group that it waits in.
    pub(super) group: Option<GroupId>,
    /// Records on their way.
    records: u32,
}

impl Rescheduling {
    /// Of an event that is logged as due then, and as having left its group.
    pub(super) fn leaving(due: WallMs, forward: Forward) -> Rescheduling {
        Rescheduling { due, forward, group: None, records: 1 }
    }
}

/// A pending event, as it will be once what is on its way is durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    due: WallMs,
    schedule_time: WallMs,
    version: u64,
    /// Whether anything is on its way.
    in_flight: bool,
}

/// Where a rescheduled event's bytes are.
#[derive(Debug)]
pub(super) enum Source {
    /// In the log, or they will be once what is on its way is durable.
    Log,
    /// In a run, and not in the log.
    Run { run: RunId, topic: TopicId, event: Vec<u8> },
}

impl Durable {
    /// How often a pending event in memory was rescheduled.
    pub(super) fn version(&self, sequence: Sequence) -> u64 {
        self.forwards.get(&sequence).map_or(0, |forward| forward.version)
    }

    /// An event's due time as its id says.
    pub(super) fn schedule_time(&self, sequence: Sequence, entry: &Entry) -> WallMs {
        let forward = self.forwards.get(&sequence).copied();
        let bytes = self.payloads.event(entry.location);
        PendingEvent { bytes, due: entry.due, topic: entry.topic, forward }.schedule_time()
    }
}

impl Shard {
    /// Decides on a cancellation or another due time of one event, or has it decided once the disk was read.
    pub(super) fn change(&mut self, look_up: LookUp, out: &mut Effects) {
        let LookUp { ticket, event, aim } = look_up;
        let sequence = event.sequence;
        let Some(held) = self.held(event) else { return self.look_up(look_up, out) };
        if self.volatile.fenced.contains(&sequence) || self.volatile.far.is_cancelled(sequence) {
            // The cancellation's record is on its way: this answer waits for it too.
            return out.reply_on_commit(ticket, aim.after_cancel());
        }
        match aim {
            Aim::Reschedule { due, expected } => {
                let source = self.source(sequence);
                self.reschedule_held(ticket, (sequence, held, source), due, expected, out);
            }
            _ => self.cancel_held(ticket, sequence, held, out),
        }
    }

    /// The event, where it is in memory, or will be. The whole id must be right: its due time guards against a number that
    /// was made up.
    pub(super) fn held(&self, event: EventId) -> Option<Held> {
        let held = self.numbered(event.sequence)?;
        (held.schedule_time.0 == event.schedule_time_ms).then_some(held)
    }

    fn numbered(&self, sequence: Sequence) -> Option<Held> {
        if let Some(Rescheduling { due, forward, .. }) = self.volatile.rescheduling.get(&sequence) {
            let Forward { schedule_time, version } = *forward;
            return Some(Held { due: *due, schedule_time, version, in_flight: true });
        }
        let event = self.event(sequence)?;
        let (due, schedule_time) = (event.due, event.schedule_time());
        Some(Held { due, schedule_time, version: self.durable.version(sequence), in_flight: false })
    }

    /// An event that is in a run, where it is due at `due`.
    pub(super) fn held_in_run(&self, run: RunId, event: EventId, due: WallMs) -> Held {
        let version = self.durable.runs.get(run).map_or(0, |run| run.version_of(event.sequence));
        Held { due, schedule_time: WallMs(event.schedule_time_ms), version, in_flight: false }
    }

    /// Where the bytes of an event in memory will be when the next record is applied.
    fn source(&self, sequence: Sequence) -> Source {
        let is_changing = self.volatile.rescheduling.contains_key(&sequence);
        let run = self.volatile.far.is_moving(sequence).filter(|_| !is_changing);
        let entry = self.durable.table.get(sequence);
        run.zip(entry).map_or(Source::Log, |(run, entry)| Source::Run {
            run,
            topic: entry.topic,
            event: self.durable.payloads.event(entry.location).to_vec(),
        })
    }

    /// How far an event has come that is due already: its state, and attempts made.
    fn progress_of(&self, sequence: Sequence) -> (TaskState, u16) {
        let tasks = self.durable.progress.get(sequence);
        let attempt = tasks.iter().map(|task| task.attempt).max().unwrap_or(0);
        let now = self.volatile.now.wall;
        (state_of(now, now, tasks), attempt)
    }

    fn cancel_held(&mut self, ticket: Ticket, sequence: Sequence, held: Held, out: &mut Effects) {
        let group = self.group_of(sequence);
        let fate = self.fate_in(group, sequence);
        // What is cancelled or paused with its group can be cancelled by itself, whether its time has come or not.
        let is_held = fate.is_cancelled || fate.is_paused;
        if held.due.plus_ms(fate.postponed_ms) <= self.volatile.now.wall && !is_held {
            let (state, attempt) = self.progress_of(sequence);
            let verdict = ReplyBody::Cancelled(CancelVerdict::TooLate { state, attempt });
            return reply(ticket, verdict, held.in_flight, out);
        }
        if !held.in_flight
            && let Some(run) = self.volatile.far.is_moving(sequence)
            && let Some(entry) = self.durable.table.get(sequence)
        {
            let (key, topic) = ((entry.due, sequence), entry.topic);
            return self.log_cancelled(ticket, run, (key, topic), group, out);
        }
        self.volatile.fenced.insert(sequence);
        if let Some(group) = group {
            self.log_cancelled_of_group(group, sequence, out);
        } else {
            let (subscription, outcome) = (SubscriptionId(0), Outcome::Cancelled);
            self.volatile.ended.push(Ended { subscription, outcome, last: true, sequence });
            self.log_ended(out);
        }
        out.reply_on_commit(ticket, ReplyBody::Cancelled(CancelVerdict::Cancelled));
    }

    /// Decides whether an event gets another due time, and logs it.
    pub(super) fn reschedule_held(
        &mut self,
        ticket: Ticket,
        (sequence, held, source): (Sequence, Held, Source),
        due: WallMs,
        expected: Option<u64>,
        out: &mut Effects,
    ) {
        let now = self.volatile.now.wall;
        let group = match &source {
            Source::Log => self.group_of(sequence),
            Source::Run { topic, event, .. } => self.group_of_event(*topic, sequence, event),
        };
        let fate = self.fate_in(group, sequence);
        if fate.is_cancelled {
            let waits = held.in_flight || group.is_some_and(|id| self.volatile.grouping.is_deciding(id));
            return reply(ticket, ReplyBody::Rescheduled(RescheduleVerdict::NotFound), waits, out);
        }
        if fate.postponed_ms > 0 && now < held.due.plus_ms(fate.postponed_ms) {
            return out.reply(ticket, ReplyBody::Refused(postponed()));
        }
        if held.due <= now {
            let (state, attempt) = self.progress_of(sequence);
            let verdict = RescheduleVerdict::TooLate { state, attempt };
            return reply(ticket, ReplyBody::Rescheduled(verdict), held.in_flight, out);
        }
        if expected.is_some_and(|expected| expected != held.version) {
            let verdict = RescheduleVerdict::VersionMismatch { version: held.version };
            return reply(ticket, ReplyBody::Rescheduled(verdict), held.in_flight, out);
        }
        if let Err(refusal) = self.take_room(&source) {
            return out.reply(ticket, ReplyBody::Refused(refusal));
        }
        let due = due.clamp(now, WALL_MAX.max(now));
        let forward = Forward { schedule_time: held.schedule_time, version: held.version + 1 };
        match source {
            Source::Log => out.log().rescheduled(sequence, due, forward, None),
            Source::Run { run, topic, event } => {
                self.volatile.accepted_bytes += event.len();
                out.log().rescheduled_in_run(run, topic, (held.due, sequence), due, forward, &event);
            }
        }
        let overlay = self.volatile.rescheduling.entry(sequence);
        let overlay = overlay.or_insert(Rescheduling { due, forward, group, records: 0 });
        *overlay = Rescheduling { due, forward, group, records: overlay.records + 1 };
        let verdict = RescheduleVerdict::Rescheduled { due, version: forward.version };
        out.reply_on_commit(ticket, ReplyBody::Rescheduled(verdict));
    }

    /// Takes what a rescheduling needs of memory and of the log, now and when the event is appended again.
    fn take_room(&mut self, source: &Source) -> Result<(), Refusal> {
        let (of_event, room) = match source {
            Source::Log => (0, self.log_room_bytes()),
            Source::Run { topic, event, .. } => {
                (event.len() + self.durable.copies.each_size_bytes(*topic), self.publish_room_bytes())
            }
        };
        let needed_bytes = RESCHEDULED_SIZE_BYTES + FORWARD_SIZE_BYTES + of_event;
        let message = if self.memory_bytes() + of_event > self.config.memory_bytes_max {
            "the memory for pending events is full: try again later, or raise memory"
        } else if needed_bytes > room {
            "the log is full: try again later; give the node more disk, or raise log_size_max"
        } else {
            self.volatile.log_room_bytes -= needed_bytes;
            return Ok(());
        };
        let (code, retry_after_ms) = (ErrorCode::ResourceExhausted, SPACE_RETRY_AFTER_MS);
        Err(Refusal { code, message: message.into(), retry_after_ms })
    }

    /// An event in the log has another due time.
    pub(super) fn apply_rescheduled(&mut self, sequence: Sequence, due: WallMs, forward: Forward) {
        if let Some(entry) = self.durable.table.get_mut(sequence) {
            self.volatile.soon.remove(entry.topic, entry.due);
            self.volatile.soon.add(entry.topic, due);
            entry.due = due;
            self.durable.forwards.insert(sequence, forward);
        } else {
            // Its home was trimmed: the copy, later in the log, says the same.
            assert!(self.recovering, "{sequence:?} was rescheduled and is not pending");
        }
        self.rescheduled(sequence);
    }

    /// An event has left a run for the log's block `block`, with another due time.
    pub(super) fn apply_rescheduled_in_run(
        &mut self,
        block: u64,
        run: RunId,
        key: Key,
        (topic, due, forward): (TopicId, WallMs, Forward),
        event: &[u8],
    ) -> Result<(), ApplyError> {
        let sequence = key.1;
        self.end_in_run(run, key, topic);
        if self.durable.table.get(sequence).is_some() {
            assert!(self.recovering, "{sequence:?} was in run {run} and in memory");
            if self.durable.version(sequence) >= forward.version {
                return Err(ApplyError::Twice(sequence));
            }
            // What a run brought of which the log does not say any more that the event had left it.
            self.end_event(sequence);
        }
        let location = self.durable.payloads.insert(sequence, event);
        self.durable.table.insert(sequence, Entry { due, location, topic, block: block as u32 });
        self.durable.forwards.insert(sequence, forward);
        self.durable.copies.add(topic, 1);
        self.volatile.soon.add(topic, due);
        self.durable.ledger.relocated(block, sequence);
        self.durable.next_sequence = self.durable.next_sequence.max(sequence.0 + 1);
        if !self.recovering {
            self.volatile.accepted_bytes -= event.len();
        }
        self.rescheduled(sequence);
        Ok(())
    }

    /// One record of an event's rescheduling is durable: after the last of them, its time begins to run.
    fn rescheduled(&mut self, sequence: Sequence) {
        if self.recovering {
            return;
        }
        let overlay = self.volatile.rescheduling.get_mut(&sequence).expect("what was decided is known");
        overlay.records -= 1;
        if overlay.records > 0 {
            return;
        }
        self.volatile.rescheduling.remove(&sequence);
        let entry = self.durable.table.get(sequence).expect("it was rescheduled, and so it is pending");
        self.schedule(entry.due, sequence, entry.location.event_len());
    }
}

fn postponed() -> Refusal {
    Refusal {
        code: ErrorCode::PostponedWithGroup,
        message: "the event is postponed with its group: take that back first, or postpone the group further"
            .into(),
        retry_after_ms: 0,
    }
}

/// Answers at once, or once what the answer rests on is durable.
fn reply(ticket: Ticket, body: ReplyBody, waits: bool, out: &mut Effects) {
    if waits { out.reply_on_commit(ticket, body) } else { out.reply(ticket, body) }
}
