//! Looking for an event that is not in memory: a block of a run is read to know it.

use std::io;

use escapement_protocol::frame::{CancelVerdict, EventPlace, QueryAnswer, RescheduleVerdict};
use escapement_protocol::{ErrorCode, EventId, Outcome, SubscriptionId, TopicId, WallMs};

use super::{Purpose, Shard};
use crate::effects::{Effects, Refusal, ReplyBody, Ticket};
use crate::far::format::RunBlock;
use crate::far::{Key, RunError, RunId, RunOp};
use crate::groups::GroupId;
use crate::shard::query::Known;
use crate::shard::reschedule::Source;

/// Look-ups that wait for the disk at once.
const LOOKUP_COUNT_MAX: usize = 1_024;

/// How long a caller should wait where they are as many.
pub(super) const RETRY_AFTER_MS: u32 = 100;

/// What an event is looked up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Aim {
    /// A record is to say that it was cancelled.
    Cancel,
    /// A record is to say that it is due then, or at once where that is past; in any version, or in that one.
    Reschedule { due: WallMs, expected: Option<u64> },
    /// Somebody wants to know of it, and with `peek` its bytes.
    Get { peek: bool },
}

/// Who looks for which event, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) struct LookUp {
    pub(in crate::shard) ticket: Ticket,
    pub(in crate::shard) event: EventId,
    pub(in crate::shard) aim: Aim,
}

/// What a block says of an event.
struct Found {
    topic: TopicId,
    /// Later than its own due time where it is postponed with its group, durably.
    due: WallMs,
    size_bytes: u32,
    /// The group that it waits in.
    group: Option<GroupId>,
    /// Whether it is cancelled with that, durably.
    is_cancelled: bool,
    /// Where they are wanted.
    bytes: Option<Vec<u8>>,
}

impl Aim {
    /// The answer where no such event is pending.
    pub(in crate::shard) fn not_found(self) -> ReplyBody {
        match self {
            Aim::Cancel => ReplyBody::Cancelled(CancelVerdict::NotFound),
            Aim::Reschedule { .. } => ReplyBody::Rescheduled(RescheduleVerdict::NotFound),
            Aim::Get { .. } => ReplyBody::Answered(QueryAnswer::Event(None)),
        }
    }

    /// The answer to a change, once what is on its way is durable, where the event's cancellation is on its way.
    pub(in crate::shard) fn after_cancel(self) -> ReplyBody {
        match self {
            Aim::Cancel => ReplyBody::Cancelled(CancelVerdict::Cancelled),
            other => other.not_found(),
        }
    }

    fn wants_bytes(self) -> bool {
        matches!(self, Aim::Get { peek: true } | Aim::Reschedule { .. })
    }

    fn is_change(self) -> bool {
        !matches!(self, Aim::Get { .. })
    }
}

impl Shard {
    /// Looks for an event that is not in memory.
    pub(in crate::shard) fn look_up(&mut self, look_up: LookUp, out: &mut Effects) {
        self.look_up_from(look_up, RunId(0), out);
    }

    /// Logs the cancellation of an event that is in a run, or on its way there.
    pub(in crate::shard) fn log_cancelled(
        &mut self,
        ticket: Ticket,
        run: RunId,
        (key, topic): (Key, TopicId),
        group: Option<GroupId>,
        out: &mut Effects,
    ) {
        // The first request's record may be on its way: this answer waits for it too.
        if self.volatile.far.cancelled.insert(key.1, run).is_none() {
            match group {
                Some(group) => self.log_cancelled_in_run_of_group(run, (key, topic), group, out),
                None => out.log().cancelled_in_run(run, [(key, topic)].into_iter()),
            }
            self.volatile.ended_counts.add(SubscriptionId(0), Outcome::Cancelled, 1);
        }
        out.reply_on_commit(ticket, ReplyBody::Cancelled(CancelVerdict::Cancelled));
    }

    /// Looks for the event in runs from `from` on.
    fn look_up_from(&mut self, look_up: LookUp, from: RunId, out: &mut Effects) {
        let LookUp { ticket, event, aim } = look_up;
        let held = self.durable.runs.iter().skip_while(|(id, _)| *id < from);
        let mut found = held.filter_map(|(id, run)| {
            let (_, block) = run.place_of(event)?;
            let footer = run.footer.as_ref()?;
            Some((id, block, footer.index[block as usize]))
        });
        let Some((run, block, place)) = found.next() else {
            return out.reply(ticket, aim.not_found());
        };
        if aim.is_change() && self.volatile.far.is_cancelled(event.sequence) {
            return out.reply_on_commit(ticket, aim.after_cancel());
        }
        let is_loading = self.is_loading(run, block);
        let far = &mut self.volatile.far;
        if far.lookup_count + far.waiting.len() >= LOOKUP_COUNT_MAX {
            let refusal = Refusal {
                code: ErrorCode::ResourceExhausted,
                message: "too many look-ups of far-future events wait for the disk: try again".into(),
                retry_after_ms: RETRY_AFTER_MS,
            };
            return out.reply(look_up.ticket, ReplyBody::Refused(refusal));
        }
        if is_loading {
            return far.waiting.push(look_up);
        }
        far.lookup_count += 1;
        let op = RunOp::Read { run, offset: place.offset, len: place.size_bytes as usize };
        far.request(Purpose::LookUp { look_up, run, block }, op, out);
    }

    /// Whether the log is about to say that a block was loaded.
    fn is_loading(&self, run: RunId, block: u32) -> bool {
        let chunks = &mut self.volatile.far.chunks.iter();
        chunks.any(|c| c.run == run && (c.first_block..c.first_block + c.block_count).contains(&block))
    }

    /// The block that may hold the event was read.
    pub(super) fn looked_up(
        &mut self,
        look_up: LookUp,
        (run, block): (RunId, u32),
        result: io::Result<Vec<u8>>,
        out: &mut Effects,
    ) {
        let LookUp { ticket, event, aim } = look_up;
        let place = self.durable.runs.get(run).and_then(|held| held.place_of(event));
        let Some((key, _)) = place.filter(|(_, at)| *at == block && !self.is_loading(run, block)) else {
            // It has ended there, or come to memory meanwhile, or is about to.
            return self.decide_again(look_up, out);
        };
        if aim.is_change() && self.volatile.rescheduling.contains_key(&event.sequence) {
            return self.decide_again(look_up, out);
        }
        match self.find_in_block(key, aim, (run, block), result) {
            Ok(Some(found)) => match aim {
                Aim::Cancel => self.log_cancelled(ticket, run, (key, found.topic), found.group, out),
                Aim::Reschedule { .. } if self.volatile.far.is_cancelled(key.1) => {
                    out.reply_on_commit(ticket, aim.after_cancel());
                }
                Aim::Reschedule { due, expected } => {
                    let held = self.held_in_run(run, event, key.0);
                    let event_bytes = found.bytes.expect("a change of due time wants the bytes");
                    let source = Source::Run { run, topic: found.topic, event: event_bytes };
                    self.reschedule_held(ticket, (event.sequence, held, source), due, expected, out);
                }
                Aim::Get { .. } if found.is_cancelled => out.reply(ticket, aim.not_found()),
                Aim::Get { .. } => {
                    let Found { topic, due, size_bytes, bytes, .. } = found;
                    let place = EventPlace::Run;
                    let version = self.durable.runs.get(run).map_or(0, |run| run.version_of(event.sequence));
                    let known = Known { due, topic, size_bytes, place, tasks: &[], version };
                    let answer = self.detail(event, known, bytes);
                    out.reply(ticket, ReplyBody::Answered(answer));
                }
            },
            // Another run had it, and it has come to memory meanwhile.
            Ok(None) if self.held(event).is_some() => self.decide_again(look_up, out),
            Ok(None) => self.look_up_from(look_up, RunId(run.0 + 1), out),
            Err(error) => {
                self.refuse_damaged(ticket, (run, block), &error, out);
            }
        }
    }

    fn find_in_block(
        &self,
        key: Key,
        aim: Aim,
        (run, block): (RunId, u32),
        result: io::Result<Vec<u8>>,
    ) -> Result<Option<Found>, RunError> {
        let bytes = result.map_err(|error| RunError::Io(run, error))?;
        let footer = self.durable.runs.get(run).and_then(|held| held.footer.as_ref());
        let place = &footer.expect("a run that was read is known").index[block as usize];
        let parsed = RunBlock::parse_at(&bytes, self.config.shard, run, block, place);
        let entry = parsed.map_err(|damage| RunError::Damaged(run, damage))?.entries().find(|e| e.key == key);
        Ok(entry.map(|entry| Found {
            topic: entry.topic,
            due: self.durable.due_with_group(entry.topic, key.1, entry.event, key.0),
            size_bytes: entry.event.len() as u32,
            group: self.group_of_event(entry.topic, key.1, entry.event),
            is_cancelled: self.durable.is_cancelled_with_group(entry.topic, key.1, entry.event),
            bytes: aim.wants_bytes().then(|| entry.event.to_vec()),
        }))
    }

    /// What was asked of an event is decided anew: it may be somewhere else by now.
    fn decide_again(&mut self, look_up: LookUp, out: &mut Effects) {
        let LookUp { ticket, event, aim } = look_up;
        match aim {
            Aim::Cancel | Aim::Reschedule { .. } => self.change(look_up, out),
            Aim::Get { peek } => self.get(ticket, event, peek, out),
        }
    }

    /// What waited for events to be loaded is decided now.
    pub(in crate::shard) fn decide_waiting(&mut self, out: &mut Effects) {
        for look_up in std::mem::take(&mut self.volatile.far.waiting) {
            self.decide_again(look_up, out);
        }
    }
}
