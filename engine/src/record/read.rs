//! Records from bytes.

use escapement_protocol::event::{KEY_SIZE_BYTES_MAX, padded_len, stated_len};
use escapement_protocol::frame::GROUP_EPOCH_COUNT_MAX;
use escapement_protocol::settings::{Misfire, SubscriptionSettings, TopicSettings};
use escapement_protocol::{EventView, Outcome, Sequence, SubscriptionId, TopicId, WallMs};
use smallvec::SmallVec;

use super::{
    CANCELLED_SIZE_BYTES, Forward, HEADER_SIZE_BYTES, HeldNames, NameHashes, Record, RunKeys, RunStatement,
    Sequences, TaskProgress, WALL_MAX, kind,
};
use crate::far::RunId;
use crate::groups::{Effect, Group, GroupId, Holders, Operation, STRETCH_COUNT_MAX, Stretch};

/// A block's records do not parse. The block's checksum held, so this is another version's or a programmer's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// Offset of the record in the block's records.
    pub offset: usize,
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record at offset {} does not parse: written by another version?", self.offset)
    }
}

impl std::error::Error for RecordError {}

/// Reads the records of one block in order; ends after the first that does not parse.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    offset: usize,
}

/// Reads the records of one block.
#[must_use]
pub fn records(bytes: &[u8]) -> Records<'_> {
    Records { bytes, offset: 0 }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.offset..)?;
        if rest.is_empty() {
            return None;
        }
        match parse_one(rest) {
            Some((record, taken)) => {
                self.offset += taken;
                Some(Ok(record))
            }
            None => {
                let offset = self.offset;
                self.offset = self.bytes.len();
                Some(Err(RecordError { offset }))
            }
        }
    }
}

fn parse_one(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let (&[kind, a, b0, b1, l0, l1, l2, l3], rest) = bytes.split_first_chunk::<8>()?;
    let body_len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if !body_len.is_multiple_of(8) {
        return None;
    }
    let mut body = Reader(rest.get(..body_len)?);
    let record = parse_body(kind, a, u16::from_le_bytes([b0, b1]), &mut body)?;
    body.is_padding().then_some((record, HEADER_SIZE_BYTES + body_len))
}

/// Reads a body and leaves its padding. Every byte that says nothing is zero, so that a record has one form.
fn parse_body<'a>(kind: u8, a: u8, b: u16, body: &mut Reader<'a>) -> Option<Record<'a>> {
    match (kind, a, b) {
        (kind::PUBLISHED | kind::PUBLISHED_NAMED, 0, 0) => {
            let topic = TopicId(body.u32()?);
            let count = body.u32()?;
            let first_sequence = body.sequence()?;
            let accepted = body.wall()?;
            let name_count = if kind == kind::PUBLISHED_NAMED { count as usize } else { 0 };
            let names = NameHashes(body.entries(name_count)?);
            Some(Record::Published { topic, first_sequence, count, accepted, names, events: body.rest() })
        }
        (kind::RELOCATED, flags @ 0..=3, 0) => {
            let topic = TopicId(body.u32()?);
            let count = body.u32()?;
            let sequence = body.sequence()?;
            let due = body.wall()?;
            let forward = if flags & 1 != 0 { Some(body.forward()?) } else { None };
            let has_left = flags & 2 != 0;
            let progress = (0..count).map(|_| body.progress()).collect::<Option<_>>()?;
            let event = body.rest();
            Some(Record::Relocated { topic, sequence, due, forward, has_left, progress, event })
        }
        (kind::COMPLETED, outcome, 0 | 1) => {
            let outcome = Outcome::from_code(outcome)?;
            let subscription = SubscriptionId(body.u32()?);
            let count = body.u32()? as usize;
            let base = body.sequence()?.0;
            let offsets = body.bytes(count.checked_mul(4)?)?;
            let sequences = Sequences { base, offsets, width: 4 };
            Some(Record::Completed { subscription, outcome, last: b == 1, sequences })
        }
        (kind::ATTEMPT_FAILED, 0, attempt) => {
            let subscription = SubscriptionId(body.u32()?);
            let excused = u16::from_le_bytes(body.take()?);
            body.zeros::<2>()?;
            let sequence = body.sequence()?;
            let next_due = body.wall()?;
            Some(Record::AttemptFailed { subscription, sequence, attempt, excused, next_due })
        }
        (kind::TOPIC, 0, 0) => {
            let id = TopicId(body.u32()?);
            body.zeros::<4>()?;
            let version = body.u64()?;
            let dedup_window_ms = body.u64()?;
            let settings = TopicSettings {
                dedup_window_ms,
                name: body.text()?,
                default_source: body.text()?,
                default_type: body.text()?,
                default_content_type: body.text()?,
            };
            Some(Record::Topic { id, version, settings })
        }
        (kind::SUBSCRIPTION, 0, 0) => {
            let id = SubscriptionId(body.u32()?);
            let topic = TopicId(body.u32()?);
            let version = body.u64()?;
            let settings = SubscriptionSettings {
                max_concurrent_dispatches: body.u32()?,
                max_attempts: body.u32()?,
                max_doublings: body.u32()?,
                jitter_permille: body.u32()?,
                attempt_deadline_ms: body.u64()?,
                min_backoff_ms: body.u64()?,
                max_backoff_ms: body.u64()?,
                misfire: body.misfire()?,
                name: body.text()?,
                topic: body.text()?,
            };
            Some(Record::Subscription { id, version, topic, settings })
        }
        (kind::MARK, 0, 0) => Some(Record::Mark { next_sequence: body.sequence()? }),
        (kind::RUN, closed @ (0 | 1), 0) => {
            let run = RunId(body.u32()?);
            let (moved, loaded, footer_id) = (body.u32()?, body.u32()?, body.u32()?);
            let (as_of, size_bytes) = (body.u64()?, body.u64()?);
            let closed = closed == 1;
            (loaded <= moved && (!closed || loaded == moved)).then_some(())?;
            Some(Record::Run(RunStatement { run, closed, moved, loaded, footer_id, as_of, size_bytes }))
        }
        (kind::MOVED, width @ (4 | 8), 0) => {
            let run = RunId(body.u32()?);
            let (first_block, block_count) = (body.u32()?, body.u32()?);
            let count = body.u32()? as usize;
            let base = body.sequence()?.0;
            let width = usize::from(width);
            let offsets = body.bytes(count.checked_mul(width)?)?;
            let sequences = Sequences { base, offsets, width };
            first_block.checked_add(block_count)?;
            Some(Record::Moved { run, first_block, block_count, sequences })
        }
        (kind::LOADED, 0, 0) => {
            let run = RunId(body.u32()?);
            let (first_block, block_count) = (body.u32()?, body.u32()?);
            body.zeros::<4>()?;
            first_block.checked_add(block_count)?;
            Some(Record::Loaded { run, first_block, block_count })
        }
        (kind::CANCELLED_IN_RUN, 0, 0) => {
            let run = RunId(body.u32()?);
            let count = body.u32()? as usize;
            let events = RunKeys(body.bytes(count.checked_mul(CANCELLED_SIZE_BYTES)?)?);
            let is_zero = |event: &[u8]| event[20..] == [0; 4];
            events.0.chunks_exact(CANCELLED_SIZE_BYTES).all(is_zero).then_some(())?;
            Some(Record::CancelledInRun { run, events })
        }
        (kind::RESCHEDULED, has_left @ (0 | 1), 0) => {
            let (sequence, due, forward) = (body.sequence()?, body.wall()?, body.forward()?);
            let left = if has_left == 1 { Some(body.group_id()?) } else { None };
            Some(Record::Rescheduled { sequence, due, forward, left })
        }
        (kind::RESCHEDULED_IN_RUN, 0, 0) => {
            let (run, topic) = (RunId(body.u32()?), TopicId(body.u32()?));
            let sequence = body.sequence()?;
            let (was_due, due, forward) = (body.wall()?, body.wall()?, body.forward()?);
            let event = body.rest();
            Some(Record::RescheduledInRun { run, topic, sequence, was_due, due, forward, event })
        }
        (kind::NAMES, 0, 0) => {
            let topic = TopicId(body.u32()?);
            let count = body.u32()? as usize;
            let of_block = body.u64()?;
            let first = body.sequence()?;
            let names = HeldNames(body.entries(count)?);
            let is_sound = |name: crate::names::Name| {
                name.sequence >= first
                    && name.sequence <= Sequence::MAX
                    && name.accepted <= WALL_MAX
                    && name.schedule_time <= WALL_MAX
            };
            (count > 0 && names.iter().all(is_sound) && names.iter().is_sorted_by_key(|name| name.sequence))
                .then_some(Record::Names { topic, of_block, first, names })
        }
        (kind::NAMES_FORGOTTEN, 0, 0) => {
            let topic = TopicId(body.u32()?);
            body.zeros::<4>()?;
            Some(Record::NamesForgotten { topic, before: body.sequence()? })
        }
        (kind::GROUP, 0, 0) => body.group().map(Record::Group),
        (kind::GROUP_LEFT, is_cancelled @ (0 | 1), 0) => {
            let group = body.group_id()?;
            let count = usize::try_from(body.u64()?).ok()?;
            let offsets = body.bytes(count.checked_mul(8)?)?;
            let sequences = Sequences { base: 0, offsets, width: 8 };
            Some(Record::GroupLeft { group, is_cancelled: is_cancelled == 1, sequences })
        }
        (kind::CANCELLED_IN_RUN_OF_GROUP, 0, 0) => {
            let (run, topic) = (RunId(body.u32()?), TopicId(body.u32()?));
            let key = (WallMs(body.u64()?), body.sequence()?);
            Some(Record::CancelledInRunOfGroup { run, key, topic, group: body.group_id()? })
        }
        (kind::NAMES_RUN, 0, 0) => {
            let run = RunId(body.u32()?);
            body.zeros::<4>()?;
            Some(Record::NamesRun { run, footer_id: body.u64()? })
        }
        (kind::NAMES_RUN_ENDED, 0, 0) => {
            let run = RunId(body.u32()?);
            body.zeros::<4>()?;
            Some(Record::NamesRunEnded { run })
        }
        _ => None,
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn sequence(&mut self) -> Option<Sequence> {
        self.u64().map(Sequence).filter(|sequence| *sequence <= Sequence::MAX)
    }

    /// A moment that an event's id could carry.
    fn wall(&mut self) -> Option<WallMs> {
        self.u64().map(WallMs).filter(|wall| *wall <= WALL_MAX)
    }

    fn misfire(&mut self) -> Option<Misfire> {
        let [code] = self.take()?;
        self.zeros::<7>()?;
        Misfire::from_code(code, self.u64()?)
    }

    fn zeros<const N: usize>(&mut self) -> Option<()> {
        (self.take::<N>()? == [0; N]).then_some(())
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn entries<const N: usize>(&mut self, count: usize) -> Option<&'a [[u8; N]]> {
        Some(self.bytes(count.checked_mul(N)?)?.as_chunks().0)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn is_padding(&self) -> bool {
        self.0.len() < 8 && self.0.iter().all(|byte| *byte == 0)
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::from(u16::from_le_bytes(self.take()?));
        String::from_utf8(self.bytes(len)?.to_vec()).ok()
    }

    fn group_id(&mut self) -> Option<GroupId> {
        Some(GroupId([self.u64()?, self.u64()?]))
    }

    /// A group of which everything holds that always does of one.
    fn group(&mut self) -> Option<Group> {
        let topic = TopicId(self.u32()?);
        let name_len = usize::from(u16::from_le_bytes(self.take()?));
        let [stretch_count, operation_count] = self.take()?.map(usize::from);
        let are_few = stretch_count <= STRETCH_COUNT_MAX && operation_count <= GROUP_EPOCH_COUNT_MAX;
        ((1..=KEY_SIZE_BYTES_MAX).contains(&name_len) && are_few).then_some(())?;
        let stretch = |reader: &mut Self| {
            let (upto, waiting, holders) = (reader.sequence()?, reader.u64()?, Holders(reader.u64()?));
            Some(Stretch { upto, waiting, holders })
        };
        let stretches = (0..stretch_count).map(|_| stretch(self)).collect::<Option<SmallVec<_>>>()?;
        let operation = |reader: &mut Self| {
            let epoch = reader.u64()?;
            let [code, is_undone] = reader.take()?;
            reader.zeros::<6>()?;
            let effect = match (code, reader.u64()?) {
                (1, 0) => Effect::Cancel,
                (2, 0) => Effect::Pause,
                (3, by_ms) if by_ms > 0 => Effect::Postpone(by_ms),
                _ => return None,
            };
            let (decided, taken) = (reader.wall()?, reader.u64()?);
            let undone = match (is_undone, reader.u64()?) {
                (0, 0) => None,
                (1, restored) => Some(restored),
                _ => return None,
            };
            (epoch != 0).then_some(Operation { epoch, effect, decided, taken, undone })
        };
        let operations = (0..operation_count).map(|_| operation(self)).collect::<Option<Vec<_>>>()?;
        let name = std::str::from_utf8(self.bytes(name_len)?).ok()?.into();
        let group = Group { topic, name, stretches, operations };
        group.is_sound().then_some(group)
    }

    fn forward(&mut self) -> Option<Forward> {
        Some(Forward { schedule_time: self.wall()?, version: self.u64()? })
    }

    fn progress(&mut self) -> Option<TaskProgress> {
        Some(TaskProgress {
            subscription: SubscriptionId(self.u32()?),
            attempt: u16::from_le_bytes(self.take()?),
            excused: u16::from_le_bytes(self.take()?),
            done: match self.u64()? {
                0 => false,
                1 => true,
                _ => return None,
            },
            next_due: self.wall()?,
        })
    }
}

/// The events of a `Published` record, with their sequences and effective due times.
///
/// Ends early where the bytes are not events; the door verified them, so a short count is a mistake of ours.
pub fn published_events(
    first_sequence: Sequence,
    accepted: WallMs,
    mut events: &[u8],
) -> impl Iterator<Item = (Sequence, WallMs, &[u8])> {
    let mut sequence = first_sequence.0;
    std::iter::from_fn(move || {
        let len = padded_len(stated_len(events)?);
        let (event, rest) = events.split_at_checked(len)?;
        events = rest;
        let due = effective_due(event, accepted)?;
        let this = Sequence(sequence);
        sequence += 1;
        Some((this, due, event))
    })
}

/// When an event accepted at `accepted` becomes due: its due time, or at once where that has passed.
///
/// How far ahead that may lie is for the door to say, and not asked again: the door's clock may be a moment
/// ahead of `accepted`, and what a log holds must be readable whatever that difference was. `None` where the
/// bytes are no event.
#[must_use]
pub fn effective_due(event: &[u8], accepted: WallMs) -> Option<WallMs> {
    let view = EventView::trusted(event)?;
    let due = match view.stated_time() {
        Some(at) => at,
        None => view.schedule_time(accepted).ok()?,
    };
    Some(due.clamp(accepted, WALL_MAX.max(accepted)))
}
