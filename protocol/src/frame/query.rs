//! Reading what is pending, and operations on groups: what is asked of one shard and its answers, owned, because they
//! are few and travel between cores.

use super::items::{TaskState, fixed_size, put, u16_at, u32_at, u64_at};
use super::list::{EVENT_PAGE_SIZE_BYTES_MAX, EventPage, ListEvents, ListedEvent, PAGE_TOKEN_SIZE_BYTES};
use super::{Fixed, GROUP_EPOCH_COUNT_MAX, GroupAnswer, GroupEpoch, GroupOperation};
use crate::event::KEY_SIZE_BYTES_MAX;
use crate::{EVENT_SIZE_BYTES_MAX, EventId, ShardId, SubscriptionId, TopicId, WallMs};

/// Most tasks that the answer about one event tells of.
pub const TASK_INFO_COUNT_MAX: usize = 128;

/// An event of a page takes at most about so many.
const LISTED_SIZE_BYTES_MAX: usize = 96 + 2 * KEY_SIZE_BYTES_MAX;

/// What is asked of one shard: what is pending, or an operation on a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// What is known of an event.
    Event {
        /// Which.
        event: EventId,
        /// Whether its bytes are wanted, too.
        peek: bool,
    },
    /// How many events and tasks there are.
    Count {
        /// Of which shard.
        shard: ShardId,
        /// Events of this topic; 0 for those of all.
        topic: TopicId,
        /// Tasks of this subscription; 0 for events that ended without one.
        subscription: SubscriptionId,
    },
    /// How many events come due soon.
    Due {
        /// Of which shard.
        shard: ShardId,
        /// Events of this topic; 0 for those of all.
        topic: TopicId,
    },
    /// Which events there are, a page of them.
    List(Box<ListEvents>),
    /// An operation on the shard's events of a group: the only one of these that can change something.
    Group(GroupOperation),
}

impl Query {
    /// Who can answer.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        match self {
            Query::Event { event, .. } => event.shard,
            Query::Count { shard, .. } | Query::Due { shard, .. } => *shard,
            Query::List(list) => list.shard,
            Query::Group(operation) => operation.shard,
        }
    }

    /// Bytes that the answer's frame has at most, about.
    #[must_use]
    pub fn answer_size_bytes_max(&self) -> usize {
        match self {
            Query::Event { peek, .. } => {
                let bytes = if *peek { EVENT_SIZE_BYTES_MAX } else { 0 };
                256 + TASK_INFO_COUNT_MAX * size_of::<<TaskInfo as Fixed>::Bytes>() + bytes
            }
            Query::Count { .. } | Query::Due { .. } => 512,
            Query::List(list) => {
                let most = list.page_count_max() * LISTED_SIZE_BYTES_MAX;
                256 + PAGE_TOKEN_SIZE_BYTES + most.min(EVENT_PAGE_SIZE_BYTES_MAX + LISTED_SIZE_BYTES_MAX)
            }
            Query::Group(_) => 256 + GROUP_EPOCH_COUNT_MAX * size_of::<<GroupEpoch as Fixed>::Bytes>(),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryAnswer {
    /// To [`Query::Event`]; nothing where the event never was, or has ended.
    Event(Option<Box<EventDetail>>),
    /// To [`Query::Count`].
    Count(Counts),
    /// To [`Query::Due`]: one for each of [`DUE_WITHIN_MS`], in its order.
    Due(Vec<DueCount>),
    /// To [`Query::List`].
    List(EventPage),
    /// To [`Query::Group`].
    Group(GroupAnswer),
}

/// Counts of one shard, exact at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pending events that were not handed to their subscriptions yet, because they are not due, or wait behind what is.
    pub scheduled: u64,
    /// Pending events that were: due, and with tasks that wait, run or back off.
    pub ready: u64,
    /// Of the scheduled ones, those in runs on the disk.
    pub in_runs: u64,
    /// The subscription's tasks that wait for a limit, for credit, or behind another of their key: where the shard
    /// decides for it, as for the next two; else 0.
    pub queued: u64,
    /// Its attempts under way, slots held for cut connections included.
    pub running: u64,
    /// Its tasks that wait for their next attempt.
    pub backoff: u64,
    /// Its tasks of this shard's events that have ended since the node started, by outcome.
    pub ended: Vec<OutcomeCount>,
}

impl Counts {
    /// Adds those of another shard.
    pub fn add(&mut self, other: &Counts) {
        self.scheduled += other.scheduled;
        self.ready += other.ready;
        self.in_runs += other.in_runs;
        self.queued += other.queued;
        self.running += other.running;
        self.backoff += other.backoff;
        for more in &other.ended {
            match self.ended.iter_mut().find(|held| held.outcome == more.outcome) {
                Some(held) => held.count += more.count,
                None => self.ended.push(*more),
            }
        }
    }
}

/// Tasks that ended in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutcomeCount {
    /// An [`Outcome`](crate::Outcome)'s code, perhaps of a later version.
    pub outcome: u8,
    /// How many.
    pub count: u64,
}

impl Fixed for OutcomeCount {
    fixed_size!(16);

    fn from_wire(bytes: &[u8; 16]) -> Option<Self> {
        let is_padded = bytes[9] == 0 && u16_at(bytes, 10) == 0 && u32_at(bytes, 12) == 0;
        is_padded.then(|| OutcomeCount { count: u64_at(bytes, 0), outcome: bytes[8] })
    }

    fn to_wire(self) -> [u8; 16] {
        let mut out = [0; 16];
        put(&mut out, 0, self.count.to_le_bytes());
        out[8] = self.outcome;
        out
    }
}

impl QueryAnswer {
    /// Bytes on the heap, about.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            QueryAnswer::Event(None) => 0,
            QueryAnswer::Count(counts) => size_of_val(&counts.ended[..]),
            QueryAnswer::Due(counts) => size_of_val(&counts[..]),
            QueryAnswer::List(page) => page.events.iter().map(ListedEvent::size_bytes).sum(),
            QueryAnswer::Group(answer) => size_of_val(&answer.operations[..]),
            QueryAnswer::Event(Some(detail)) => {
                let bytes = detail.bytes.as_ref().map_or(0, Vec::len);
                size_of::<EventDetail>() + detail.tasks.len() * size_of::<TaskInfo>() + bytes
            }
        }
    }
}

/// What is counted of events that come due soon: those due already, and those that come due within so many ms from now:
/// a second, ten, a minute, ten, an hour, a day.
pub const DUE_WITHIN_MS: [u64; 7] = [0, 1_000, 10_000, 60_000, 600_000, 3_600_000, 86_400_000];

/// Pending events that come due within some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueCount {
    /// From now on, in ms; 0 for those that are due already.
    pub within_ms: u64,
    /// How many, about.
    pub count: u64,
    /// Whether it is exactly as many.
    pub exact: bool,
}

impl Fixed for DueCount {
    fixed_size!(24);

    fn from_wire(bytes: &[u8; 24]) -> Option<Self> {
        let is_padded = bytes[17] == 0 && u16_at(bytes, 18) == 0 && u32_at(bytes, 20) == 0;
        (is_padded && bytes[16] <= 1).then(|| DueCount {
            within_ms: u64_at(bytes, 0),
            count: u64_at(bytes, 8),
            exact: bytes[16] == 1,
        })
    }

    fn to_wire(self) -> [u8; 24] {
        let mut out = [0; 24];
        put(&mut out, 0, self.within_ms.to_le_bytes());
        put(&mut out, 8, self.count.to_le_bytes());
        out[16] = u8::from(self.exact);
        out
    }
}

/// Where a pending event is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventPlace {
    /// In memory and in the log.
    Memory = 1,
    /// In a run on the disk, until its time comes near.
    Run = 2,
}

impl EventPlace {
    /// Reads the wire's code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Memory),
            2 => Some(Self::Run),
            _ => None,
        }
    }
}

/// A pending event, as far as every answer about one says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventInfo {
    /// Its id.
    pub id: EventId,
    /// When it is due: as its id says, or when it was accepted where that is later.
    pub due: WallMs,
    /// Its topic.
    pub topic: TopicId,
    /// Bytes of the event with their padding.
    pub size_bytes: u32,
    /// `Scheduled` before it is due; then `Backoff` while one of its tasks waits for its next attempt, else `Ready`.
    pub state: TaskState,
    /// Where it is kept.
    pub place: EventPlace,
}

impl Fixed for EventInfo {
    fixed_size!(40);

    fn from_wire(bytes: &[u8; 40]) -> Option<Self> {
        let (id, _) = bytes.split_first_chunk()?;
        (u16_at(bytes, 34) == 0 && u32_at(bytes, 36) == 0).then_some(())?;
        Some(EventInfo {
            id: EventId::from_bytes(*id)?,
            due: WallMs(u64_at(bytes, 16)),
            topic: TopicId(u32_at(bytes, 24)),
            size_bytes: u32_at(bytes, 28),
            state: TaskState::from_code(bytes[32])?,
            place: EventPlace::from_code(bytes[33])?,
        })
    }

    fn to_wire(self) -> [u8; 40] {
        let mut out = [0; 40];
        put(&mut out, 0, self.id.to_bytes());
        put(&mut out, 16, self.due.0.to_le_bytes());
        put(&mut out, 24, self.topic.0.to_le_bytes());
        put(&mut out, 28, self.size_bytes.to_le_bytes());
        (out[32], out[33]) = (self.state as u8, self.place as u8);
        out
    }
}

/// What the log has of one task of a pending event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Attempts that have failed.
    pub attempt: u16,
    /// Of these, attempts that do not count against `max_attempts`.
    pub excused: u16,
    /// When the next attempt may begin; 0 for at once.
    pub next_due: WallMs,
    /// Whether the task has ended.
    pub done: bool,
}

impl Fixed for TaskInfo {
    fixed_size!(24);

    fn from_wire(bytes: &[u8; 24]) -> Option<Self> {
        let is_padded = bytes[17] == 0 && u16_at(bytes, 18) == 0 && u32_at(bytes, 20) == 0;
        (is_padded && bytes[16] <= 1).then(|| TaskInfo {
            next_due: WallMs(u64_at(bytes, 0)),
            subscription: SubscriptionId(u32_at(bytes, 8)),
            attempt: u16_at(bytes, 12),
            excused: u16_at(bytes, 14),
            done: bytes[16] == 1,
        })
    }

    fn to_wire(self) -> [u8; 24] {
        let mut out = [0; 24];
        put(&mut out, 0, self.next_due.0.to_le_bytes());
        put(&mut out, 8, self.subscription.0.to_le_bytes());
        put(&mut out, 12, self.attempt.to_le_bytes());
        put(&mut out, 14, self.excused.to_le_bytes());
        out[16] = u8::from(self.done);
        out
    }
}

/// All that is known of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventDetail {
    /// What every answer says.
    pub info: EventInfo,
    /// Its tasks with a history, at most [`TASK_INFO_COUNT_MAX`] of them: each has failed an attempt, or has ended.
    pub tasks: Vec<TaskInfo>,
    /// How many tasks have one.
    pub task_count: u32,
    /// Its bytes with their padding, where they were asked for.
    pub bytes: Option<Vec<u8>>,
    /// How often it was rescheduled: what a further rescheduling may name as the version that it expects.
    pub version: u64,
}
