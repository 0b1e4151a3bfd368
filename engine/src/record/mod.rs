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

mod read;
mod write;

use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{Outcome, Sequence, SubscriptionId, TopicId, WallMs};

use crate::far::RunId;
use crate::groups::{Group, GroupId};
use crate::names::{NAME_HASH_SIZE_BYTES, NAME_SIZE_BYTES, Name, NameHash};

pub use read::{RecordError, Records, effective_due, published_events, records};
pub use write::RecordWriter;

/// Bytes before a record's body.
pub const HEADER_SIZE_BYTES: usize = 8;

/// Fixed part of a `Published` body.
pub const PUBLISHED_FIXED_SIZE_BYTES: usize = 24;

/// Fixed part of a `Relocated` body.
pub const RELOCATED_FIXED_SIZE_BYTES: usize = 24;

/// Fixed part of a `Names` body.
pub const NAMES_FIXED_SIZE_BYTES: usize = 24;

/// A `NamesRun` body.
pub const NAMES_RUN_FIXED_SIZE_BYTES: usize = 16;

/// Latest moment that a record states: what 48 bits hold, as in an event's id.
pub const WALL_MAX: WallMs = WallMs((1 << 48) - 1);

/// One event in a `CancelledInRun` body.
pub const CANCELLED_SIZE_BYTES: usize = 24;

/// One task's progress in a `Relocated` body.
pub const PROGRESS_SIZE_BYTES: usize = 24;

/// What a `Relocated` body says more of an event that was rescheduled.
pub const FORWARD_SIZE_BYTES: usize = 16;

/// A `Rescheduled` record.
pub const RESCHEDULED_SIZE_BYTES: usize = HEADER_SIZE_BYTES + 32;

/// Fixed part of a `RescheduledInRun` body.
pub const RESCHEDULED_IN_RUN_FIXED_SIZE_BYTES: usize = 48;

/// Fixed part of a `Group` body.
const GROUP_FIXED_SIZE_BYTES: usize = 8;

/// One stretch in a `Group` body.
const STRETCH_SIZE_BYTES: usize = 24;

/// One operation in a `Group` body.
const OPERATION_SIZE_BYTES: usize = 48;

/// Fixed part of a `GroupLeft` body.
pub(crate) const GROUP_LEFT_FIXED_SIZE_BYTES: usize = 24;

/// A `Group` record of a name with so many bytes, and so many stretches and operations.
pub(crate) fn group_size_bytes(name: usize, stretches: usize, operations: usize) -> usize {
    let name = escapement_protocol::event::padded_len(name);
    let entries = stretches * STRETCH_SIZE_BYTES + operations * OPERATION_SIZE_BYTES;
    HEADER_SIZE_BYTES + GROUP_FIXED_SIZE_BYTES + entries + name
}

mod kind {
    pub(super) const PUBLISHED: u8 = 1;
    pub(super) const RELOCATED: u8 = 2;
    pub(super) const COMPLETED: u8 = 3;
    pub(super) const ATTEMPT_FAILED: u8 = 4;
    pub(super) const TOPIC: u8 = 5;
    pub(super) const SUBSCRIPTION: u8 = 6;
    pub(super) const MARK: u8 = 7;
    pub(super) const RUN: u8 = 8;
    pub(super) const MOVED: u8 = 9;
    pub(super) const LOADED: u8 = 10;
    pub(super) const CANCELLED_IN_RUN: u8 = 11;
    pub(super) const RESCHEDULED: u8 = 12;
    pub(super) const RESCHEDULED_IN_RUN: u8 = 13;
    pub(super) const PUBLISHED_NAMED: u8 = 14;
    pub(super) const NAMES: u8 = 15;
    pub(super) const NAMES_FORGOTTEN: u8 = 16;
    pub(super) const GROUP: u8 = 17;
    pub(super) const GROUP_LEFT: u8 = 18;
    pub(super) const CANCELLED_IN_RUN_OF_GROUP: u8 = 19;
    pub(super) const NAMES_RUN: u8 = 20;
    pub(super) const NAMES_RUN_ENDED: u8 = 21;
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
        /// Their names, in the same order, where their topic has a `dedup_window`; else none.
        names: NameHashes<'a>,
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
        /// Where it was rescheduled.
        forward: Option<Forward>,
        /// Whether it was of a group and has left it.
        has_left: bool,
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
    /// A run of far-future events as it was at some block.
    Run(RunStatement),
    /// Events have left the log for the next blocks of a run.
    Moved {
        /// Which run.
        run: RunId,
        /// The first of the blocks.
        first_block: u32,
        /// How many blocks.
        block_count: u32,
        /// The events; those of the blocks that are missing here have ended before.
        sequences: Sequences<'a>,
    },
    /// The events of the next blocks of a run are pending in this block of the log, with their bytes in the run.
    Loaded {
        /// Which run.
        run: RunId,
        /// The first of the blocks.
        first_block: u32,
        /// How many blocks.
        block_count: u32,
    },
    /// Events were cancelled while they were in a run.
    CancelledInRun {
        /// Which run.
        run: RunId,
        /// Their due times, sequences and topics.
        events: RunKeys<'a>,
    },
    /// An event whose bytes are in the log has another due time from now on.
    Rescheduled {
        /// Its sequence, unchanged.
        sequence: Sequence,
        /// The effective due time from now on.
        due: WallMs,
        /// What its id needs to be known by.
        forward: Forward,
        /// The group that it leaves with that: it was postponed with it, and its time has come.
        left: Option<GroupId>,
    },
    /// An event was rescheduled while it was in a run: it has ended there, and lives in this block of the log.
    RescheduledInRun {
        /// Which run.
        run: RunId,
        /// Its topic.
        topic: TopicId,
        /// Its sequence, unchanged.
        sequence: Sequence,
        /// The effective due time, which it has in the run.
        was_due: WallMs,
        /// The effective due time from now on.
        due: WallMs,
        /// What its id needs to be known by.
        forward: Forward,
        /// Its bytes, padded to 8.
        event: &'a [u8],
    },
    /// Names from an older block, repeated so that the older block can go.
    Names {
        /// Their topic.
        topic: TopicId,
        /// The block that stated them before.
        of_block: u64,
        /// The sequence that its statement begins with.
        first: Sequence,
        /// Those of them that are not forgotten, by ascending sequence.
        names: HeldNames<'a>,
    },
    /// The windows of a topic's oldest names have passed.
    NamesForgotten {
        /// The topic.
        topic: TopicId,
        /// Names of smaller sequences are forgotten.
        before: Sequence,
    },
    /// A group as it is from this place of the log on, whatever was said of it before.
    Group(Group),
    /// Events wait in their group no more.
    GroupLeft {
        /// Which group.
        group: GroupId,
        /// Whether they ended with that, cancelled; else they were handed to their subscriptions.
        is_cancelled: bool,
        /// The events.
        sequences: Sequences<'a>,
    },
    /// An event of a group was cancelled while it was in a run, and waits in its group no more.
    CancelledInRunOfGroup {
        /// Which run.
        run: RunId,
        /// Its due time and sequence.
        key: (WallMs, Sequence),
        /// Its topic.
        topic: TopicId,
        /// Its group.
        group: GroupId,
    },
    /// Names are in a run: those of its topics, up to the last that it says of each.
    NamesRun {
        /// The run.
        run: RunId,
        /// Its footer's.
        footer_id: u64,
    },
    /// The windows of all names of a run have passed.
    NamesRunEnded {
        /// The run.
        run: RunId,
    },
}

/// What is kept of an event that was rescheduled, until it ends: its id stays as it was, and its due time does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The due time that its id carries.
    pub schedule_time: WallMs,
    /// How often it was rescheduled, from 1 on.
    pub version: u64,
}

/// The names of events that one record publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameHashes<'a>(&'a [[u8; NAME_HASH_SIZE_BYTES]]);

impl<'a> NameHashes<'a> {
    /// How many; 0 where the events have no names.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.len()
    }

    /// Iterates in the order of the events.
    pub fn iter(self) -> impl Iterator<Item = NameHash> + 'a {
        self.0.iter().map(|bytes| NameHash([word(bytes), word(&bytes[8..])]))
    }
}

/// The names of one `Names` record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldNames<'a>(&'a [[u8; NAME_SIZE_BYTES]]);

impl<'a> HeldNames<'a> {
    /// Iterates in the order of the record.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Name> + ExactSizeIterator + 'a {
        self.0.iter().map(|bytes| Name {
            hash: NameHash([word(bytes), word(&bytes[8..])]),
            sequence: Sequence(word(&bytes[16..])),
            schedule_time: WallMs(word(&bytes[24..])),
            accepted: WallMs(word(&bytes[32..])),
        })
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("entries of whole words"))
}

/// What a `Run` record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunStatement {
    /// Which run.
    pub run: RunId,
    /// All of it was loaded, and no block will be moved to it any more.
    pub closed: bool,
    /// Blocks of it whose events have left the log for it.
    pub moved: u32,
    /// Blocks of it whose events are back.
    pub loaded: u32,
    /// The low bits of its footer's checksum: a number may be given again, once the log has forgotten a run.
    pub footer_id: u32,
    /// What blocks of the log up to this one say of it is stated again by this record and the `CancelledInRun` records
    /// before it.
    pub as_of: u64,
    /// Bytes of its file.
    pub size_bytes: u64,
}

/// The events of one `CancelledInRun` record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunKeys<'a>(&'a [u8]);

impl<'a> RunKeys<'a> {
    /// Their due times and sequences, in the order of the record.
    pub fn iter(self) -> impl Iterator<Item = (WallMs, Sequence)> + 'a {
        self.with_topics().map(|(key, _)| key)
    }

    /// The same, each with its topic.
    pub fn with_topics(self) -> impl ExactSizeIterator<Item = ((WallMs, Sequence), TopicId)> + 'a {
        self.0.chunks_exact(CANCELLED_SIZE_BYTES).map(move |entry| {
            ((WallMs(word(entry)), Sequence(word(&entry[8..]))), TopicId(word(&entry[16..]) as u32))
        })
    }
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

/// The events of a `Completed` or `Moved` record: a base and offsets from it, of 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequences<'a> {
    base: u64,
    offsets: &'a [u8],
    width: usize,
}

impl<'a> Sequences<'a> {
    /// Iterates in the order of the record.
    pub fn iter(self) -> impl Iterator<Item = Sequence> + 'a {
        self.offsets.chunks_exact(self.width).map(move |bytes| {
            let offset = match bytes.first_chunk::<8>() {
                Some(wide) => u64::from_le_bytes(*wide),
                None => u64::from(u32::from_le_bytes(*bytes.first_chunk().expect("4 bytes"))),
            };
            Sequence(self.base.wrapping_add(offset))
        })
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        self.offsets.len() / self.width
    }
}
