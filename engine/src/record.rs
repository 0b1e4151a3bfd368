//! Log records: outcomes, as bytes. `apply` reads them live and in replay; nothing else changes durable state.
//!
//! Every record is a multiple of 8 bytes, starts with an 8-byte header, and is little-endian:
//!
//! ```text
//! 0        1      2          4            8
//! | kind   | a    | b        | body_len   | body, body_len bytes …
//! | u8     | u8   | u16      | u32        |
//! ```
//!
//! The format is specified in `docs/formats/records-v1.md`.

use escapement_protocol::event::{padded_len, stated_len};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{EventView, Outcome, Sequence, SubscriptionId, TopicId, WallMs};

/// Bytes before a record's body.
pub const HEADER_SIZE_BYTES: usize = 8;

/// Fixed part of a `Published` body.
pub const PUBLISHED_FIXED_SIZE_BYTES: usize = 24;

/// Fixed part of a `Relocated` body.
pub const RELOCATED_FIXED_SIZE_BYTES: usize = 24;

/// Latest moment that a record states: what 48 bits hold, as in an event's id.
pub const WALL_MAX: WallMs = WallMs((1 << 48) - 1);

/// One task's progress in a `Relocated` body.
pub const PROGRESS_SIZE_BYTES: usize = 24;

mod kind {
    pub(super) const PUBLISHED: u8 = 1;
    pub(super) const RELOCATED: u8 = 2;
    pub(super) const COMPLETED: u8 = 3;
    pub(super) const ATTEMPT_FAILED: u8 = 4;
    pub(super) const TOPIC: u8 = 5;
    pub(super) const SUBSCRIPTION: u8 = 6;
    pub(super) const MARK: u8 = 7;
}

/// What a log record says. Borrowed from the block's bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Record<'a> {
    /// Events were accepted, with consecutive sequences.
    Published {
        /// Their topic.
        topic: TopicId,
        /// Sequence of the first.
        first_sequence: Sequence,
        /// How many.
        count: u32,
        /// When they were accepted.
        accepted: WallMs,
        /// Their bytes, each padded to 8.
        events: &'a [u8],
    },
    /// A live event from an older block, repeated so that the older block can go.
    Relocated {
        /// Its topic.
        topic: TopicId,
        /// Its sequence, unchanged.
        sequence: Sequence,
        /// The effective due time, unchanged.
        due: WallMs,
        /// What its tasks had come to.
        progress: Vec<TaskProgress>,
        /// Its bytes, padded to 8.
        event: &'a [u8],
    },
    /// Tasks ended.
    Completed {
        /// The subscription; 0 where the event ended without one.
        subscription: SubscriptionId,
        /// How they ended.
        outcome: Outcome,
        /// Whether these were the last tasks of their events, so that the events end too.
        last: bool,
        /// The events.
        sequences: Sequences<'a>,
    },
    /// An attempt failed and the task waits for its next one.
    AttemptFailed {
        /// The subscription.
        subscription: SubscriptionId,
        /// The event.
        sequence: Sequence,
        /// Attempts made so far.
        attempt: u16,
        /// Of these, attempts that do not count against `max_attempts`.
        excused: u16,
        /// When the next one is due.
        next_due: WallMs,
    },
    /// A topic as it now is.
    Topic {
        /// Its id.
        id: TopicId,
        /// Version of the registry that this made.
        version: u64,
        /// Its settings.
        settings: TopicSettings,
    },
    /// A subscription as it now is.
    Subscription {
        /// Its id.
        id: SubscriptionId,
        /// Version of the registry that this made.
        version: u64,
        /// Its topic.
        topic: TopicId,
        /// Its settings.
        settings: SubscriptionSettings,
    },
    /// Counters whose evidence may have been trimmed.
    Mark {
        /// The next event's sequence.
        next_sequence: Sequence,
    },
}

/// What is known of one task of a pending event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskProgress {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Whether the task has ended.
    pub done: bool,
    /// Attempts that have failed.
    pub attempt: u16,
    /// Of these, attempts that do not count against `max_attempts`.
    pub excused: u16,
    /// When the next attempt is due; 0 for at once.
    pub next_due: WallMs,
}

/// The events of one `Completed` record: a base and 32-bit offsets from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequences<'a> {
    base: u64,
    offsets: &'a [u8],
}

impl<'a> Sequences<'a> {
    /// Iterates in the order of the record.
    pub fn iter(self) -> impl Iterator<Item = Sequence> + 'a {
        self.offsets
            .chunks_exact(4)
            .map(move |b| Sequence(self.base + u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))))
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        self.offsets.len() / 4
    }
}

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
        (kind::PUBLISHED, 0, 0) => {
            let topic = TopicId(body.u32()?);
            let count = body.u32()?;
            let first_sequence = body.sequence()?;
            let accepted = body.wall()?;
            Some(Record::Published { topic, first_sequence, count, accepted, events: body.rest() })
        }
        (kind::RELOCATED, 0, 0) => {
            let topic = TopicId(body.u32()?);
            let count = body.u32()?;
            let sequence = body.sequence()?;
            let due = body.wall()?;
            let progress = (0..count).map(|_| body.progress()).collect::<Option<_>>()?;
            Some(Record::Relocated { topic, sequence, due, progress, event: body.rest() })
        }
        (kind::COMPLETED, outcome, 0 | 1) => {
            let outcome = Outcome::from_code(outcome)?;
            let subscription = SubscriptionId(body.u32()?);
            let count = body.u32()? as usize;
            let base = body.sequence()?.0;
            let offsets = body.bytes(count.checked_mul(4)?)?;
            let sequences = Sequences { base, offsets };
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
            let settings = TopicSettings {
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
                name: body.text()?,
                topic: body.text()?,
            };
            Some(Record::Subscription { id, version, topic, settings })
        }
        (kind::MARK, 0, 0) => Some(Record::Mark { next_sequence: body.sequence()? }),
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

    fn zeros<const N: usize>(&mut self) -> Option<()> {
        (self.take::<N>()? == [0; N]).then_some(())
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
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

    /// A live event again.
    pub fn relocated(
        &mut self,
        topic: TopicId,
        sequence: Sequence,
        due: WallMs,
        progress: &[TaskProgress],
        event: &[u8],
    ) {
        self.record(kind::RELOCATED, 0, 0, |out| {
            out.extend_from_slice(&topic.0.to_le_bytes());
            out.extend_from_slice(&(progress.len() as u32).to_le_bytes());
            out.extend_from_slice(&sequence.0.to_le_bytes());
            out.extend_from_slice(&due.0.to_le_bytes());
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
            put_text(out, &settings.name);
            put_text(out, &settings.topic);
        });
    }

    /// Counters.
    pub fn mark(&mut self, next_sequence: Sequence) {
        self.record(kind::MARK, 0, 0, |out| out.extend_from_slice(&next_sequence.0.to_le_bytes()));
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Settings are validated to far less than 64 KiB before they get here.
    let len = u16::try_from(text.len()).expect("validated settings hold short texts");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
