//! Fixed structs: what data frames repeat for every event, at fixed offsets and without a table each.

use std::fmt;

use crate::{AttemptResult, EventId, Sequence, ShardId, Tag, TopicId, WallMs};

/// A value with one byte form of fixed size, little-endian, as FlatBuffers lays out structs.
pub trait Fixed: Copy {
    /// `[u8; N]`.
    type Bytes: AsRef<[u8]> + Copy;

    /// Cuts a vector's bytes into its elements. Bytes short of a whole element at the end are left out.
    fn split(bytes: &[u8]) -> &[Self::Bytes];

    /// Reads one; `None` where padding is not zero, or a code is unknown.
    fn from_wire(bytes: &Self::Bytes) -> Option<Self>;

    /// The byte form.
    fn to_wire(self) -> Self::Bytes;
}

/// The fixed structs of one frame: of a received one, as its bytes; of one to be written, as a slice.
#[derive(Clone, Copy)]
pub struct Items<'a, T: Fixed>(Source<'a, T>);

#[derive(Clone, Copy)]
enum Source<'a, T: Fixed> {
    /// Each element was read once and found well-formed.
    Wire(&'a [T::Bytes]),
    Native(&'a [T]),
}

impl<'a, T: Fixed> Items<'a, T> {
    /// Takes a vector's bytes as they came in a frame; `None` where an element is malformed.
    #[must_use]
    pub fn from_wire(bytes: &'a [u8]) -> Option<Self> {
        let elements = T::split(bytes);
        elements
            .iter()
            .all(|element| T::from_wire(element).is_some())
            .then_some(Items(Source::Wire(elements)))
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            Source::Wire(elements) => elements.len(),
            Source::Native(elements) => elements.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements by value, in the order of the frame.
    #[must_use]
    pub fn iter(&self) -> ItemIter<'a, T> {
        ItemIter(match self.0 {
            Source::Wire(elements) => SourceIter::Wire(elements.iter()),
            Source::Native(elements) => SourceIter::Native(elements.iter()),
        })
    }

    /// Appends the elements' byte forms.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.len() * size_of::<T::Bytes>());
        for element in self.iter() {
            out.extend_from_slice(element.to_wire().as_ref());
        }
    }
}

impl<T: Fixed> Default for Items<'_, T> {
    fn default() -> Self {
        Items(Source::Native(&[]))
    }
}

impl<'a, T: Fixed> From<&'a [T]> for Items<'a, T> {
    fn from(elements: &'a [T]) -> Self {
        Items(Source::Native(elements))
    }
}

impl<'a, T: Fixed> IntoIterator for Items<'a, T> {
    type Item = T;
    type IntoIter = ItemIter<'a, T>;

    fn into_iter(self) -> ItemIter<'a, T> {
        self.iter()
    }
}

impl<T: Fixed + PartialEq> PartialEq for Items<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T: Fixed + fmt::Debug> fmt::Debug for Items<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterator over [`Items`].
#[derive(Clone)]
pub struct ItemIter<'a, T: Fixed>(SourceIter<'a, T>);

#[derive(Clone)]
enum SourceIter<'a, T: Fixed> {
    Wire(std::slice::Iter<'a, T::Bytes>),
    Native(std::slice::Iter<'a, T>),
}

impl<T: Fixed> Iterator for ItemIter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match &mut self.0 {
            // `Items::from_wire` read every element before, so none is `None` here.
            SourceIter::Wire(elements) => T::from_wire(elements.next()?),
            SourceIter::Native(elements) => elements.next().copied(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            SourceIter::Wire(elements) => elements.size_hint(),
            SourceIter::Native(elements) => elements.size_hint(),
        }
    }
}

impl<T: Fixed> DoubleEndedIterator for ItemIter<'_, T> {
    fn next_back(&mut self) -> Option<T> {
        match &mut self.0 {
            SourceIter::Wire(elements) => T::from_wire(elements.next_back()?),
            SourceIter::Native(elements) => elements.next_back().copied(),
        }
    }
}

impl<T: Fixed> ExactSizeIterator for ItemIter<'_, T> {}

impl<T: Fixed + fmt::Debug> fmt::Debug for ItemIter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

// Offsets below are constants of the layout: the compiler sees that each lies inside its array.

pub(super) fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

pub(super) fn put<const N: usize, const M: usize>(out: &mut [u8; N], at: usize, bytes: [u8; M]) {
    out[at..at + M].copy_from_slice(&bytes);
}

macro_rules! fixed_size {
    ($size:literal) => {
        type Bytes = [u8; $size];

        fn split(bytes: &[u8]) -> &[Self::Bytes] {
            bytes.as_chunks().0
        }
    };
}
pub(super) use fixed_size;

/// A run of accepted events with consecutive sequences in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckRun {
    /// Sequence of the run's first event.
    pub first_sequence: Sequence,
    /// Moment of acceptance, which delays count from.
    pub accepted: WallMs,
    /// Events in the run.
    pub count: u32,
    /// Shard of all of them.
    pub shard: ShardId,
}

impl Fixed for AckRun {
    fixed_size!(24);

    fn from_wire(bytes: &[u8; 24]) -> Option<Self> {
        (u16_at(bytes, 22) == 0).then(|| AckRun {
            first_sequence: Sequence(u64_at(bytes, 0)),
            accepted: WallMs(u64_at(bytes, 8)),
            count: u32_at(bytes, 16),
            shard: ShardId(u16_at(bytes, 20)),
        })
    }

    fn to_wire(self) -> [u8; 24] {
        let mut out = [0; 24];
        put(&mut out, 0, self.first_sequence.0.to_le_bytes());
        put(&mut out, 8, self.accepted.0.to_le_bytes());
        put(&mut out, 16, self.count.to_le_bytes());
        put(&mut out, 20, self.shard.0.to_le_bytes());
        out
    }
}

/// An event that was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckException {
    /// Its number on the stream.
    pub item: u64,
    /// Earliest sensible time to publish it again; 0 where that would be refused again.
    pub retry_after_ms: u32,
    /// Why: an [`ErrorCode`](crate::ErrorCode)'s number, perhaps of a later version.
    pub code: u16,
}

impl Fixed for AckException {
    fixed_size!(16);

    fn from_wire(bytes: &[u8; 16]) -> Option<Self> {
        (u16_at(bytes, 14) == 0).then(|| AckException {
            item: u64_at(bytes, 0),
            retry_after_ms: u32_at(bytes, 8),
            code: u16_at(bytes, 12),
        })
    }

    fn to_wire(self) -> [u8; 16] {
        let mut out = [0; 16];
        put(&mut out, 0, self.item.to_le_bytes());
        put(&mut out, 8, self.retry_after_ms.to_le_bytes());
        put(&mut out, 12, self.code.to_le_bytes());
        out
    }
}

/// What a subscriber must know of one pushed event besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushItem {
    /// Names the attempt in its result.
    pub tag: Tag,
    /// The event's position in its shard.
    pub sequence: Sequence,
    /// The due time, resolved at acceptance.
    pub schedule_time: WallMs,
    /// Without a result this long after the push left, the attempt has failed, retryably.
    pub deadline_ms: u32,
    /// The event's topic.
    pub topic: TopicId,
    /// The event's shard.
    pub shard: ShardId,
    /// Number of the attempt, from 1.
    pub attempt: u16,
}

impl PushItem {
    /// The event's id.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        EventId { shard: self.shard, sequence: self.sequence, schedule_time_ms: self.schedule_time.0 }
    }
}

impl Fixed for PushItem {
    fixed_size!(40);

    fn from_wire(bytes: &[u8; 40]) -> Option<Self> {
        (u32_at(bytes, 36) == 0).then(|| PushItem {
            tag: Tag(u64_at(bytes, 0)),
            sequence: Sequence(u64_at(bytes, 8)),
            schedule_time: WallMs(u64_at(bytes, 16)),
            deadline_ms: u32_at(bytes, 24),
            topic: TopicId(u32_at(bytes, 28)),
            shard: ShardId(u16_at(bytes, 32)),
            attempt: u16_at(bytes, 34),
        })
    }

    fn to_wire(self) -> [u8; 40] {
        let mut out = [0; 40];
        put(&mut out, 0, self.tag.0.to_le_bytes());
        put(&mut out, 8, self.sequence.0.to_le_bytes());
        put(&mut out, 16, self.schedule_time.0.to_le_bytes());
        put(&mut out, 24, self.deadline_ms.to_le_bytes());
        put(&mut out, 28, self.topic.0.to_le_bytes());
        put(&mut out, 32, self.shard.0.to_le_bytes());
        put(&mut out, 34, self.attempt.to_le_bytes());
        out
    }
}

/// The result of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultItem {
    /// The attempt, as its push named it.
    pub tag: Tag,
    /// For a retryable failure, the earliest time for the next attempt; 0 leaves it to the retry policy.
    pub retry_after_ms: u32,
    /// What became of it.
    pub result: AttemptResult,
}

impl Fixed for ResultItem {
    fixed_size!(16);

    fn from_wire(bytes: &[u8; 16]) -> Option<Self> {
        let result = AttemptResult::from_code(bytes[12])?;
        (bytes[13] == 0 && u16_at(bytes, 14) == 0).then(|| ResultItem {
            tag: Tag(u64_at(bytes, 0)),
            retry_after_ms: u32_at(bytes, 8),
            result,
        })
    }

    fn to_wire(self) -> [u8; 16] {
        let mut out = [0; 16];
        put(&mut out, 0, self.tag.0.to_le_bytes());
        put(&mut out, 8, self.retry_after_ms.to_le_bytes());
        out[12] = self.result as u8;
        out
    }
}

/// Where a task stands, as answers to peers say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TaskState {
    /// Waits for its due time.
    Scheduled = 1,
    /// Due, and not yet picked.
    Ready = 2,
    /// Due, and held back by a limit.
    Blocked = 3,
    /// An attempt is with a subscriber.
    Running = 4,
    /// Waits for its next attempt.
    Backoff = 5,
    /// Complete: a subscriber said success, or no subscription matched.
    Succeeded = 6,
    /// Complete: permanently failed, or its attempts are used up.
    Failed = 7,
    /// Complete: cancelled.
    Cancelled = 8,
}

impl TaskState {
    /// All states, for tables and exhaustive tests.
    pub const ALL: [TaskState; 8] = [
        TaskState::Scheduled,
        TaskState::Ready,
        TaskState::Blocked,
        TaskState::Running,
        TaskState::Backoff,
        TaskState::Succeeded,
        TaskState::Failed,
        TaskState::Cancelled,
    ];

    /// Reads the wire's code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == code)
    }
}

/// The answer to one cancellation, decided in the same order as dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelVerdict {
    /// Not one byte of the event leaves after this, and it is durable.
    Cancelled,
    /// The event was due already, or is complete.
    TooLate {
        /// Where its most advanced task stands.
        state: TaskState,
        /// That task's attempts so far.
        attempt: u16,
    },
    /// No such event: it never was, or is complete and forgotten.
    NotFound,
}

impl Fixed for CancelVerdict {
    fixed_size!(8);

    fn from_wire(bytes: &[u8; 8]) -> Option<Self> {
        if u32_at(bytes, 4) != 0 {
            return None;
        }
        match (bytes[0], bytes[1], u16_at(bytes, 2)) {
            (1, 0, 0) => Some(Self::Cancelled),
            (2, state, attempt) => Some(Self::TooLate { state: TaskState::from_code(state)?, attempt }),
            (3, 0, 0) => Some(Self::NotFound),
            _ => None,
        }
    }

    fn to_wire(self) -> [u8; 8] {
        let (verdict, state, attempt) = match self {
            Self::Cancelled => (1, 0, 0),
            Self::TooLate { state, attempt } => (2, state as u8, attempt),
            Self::NotFound => (3, 0, 0),
        };
        let mut out = [verdict, state, 0, 0, 0, 0, 0, 0];
        put(&mut out, 2, attempt.to_le_bytes());
        out
    }
}

/// The effective due time of a pushed event that was rescheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushDue {
    /// When it was due.
    pub due: WallMs,
    /// Its place among the items of its frame, from 0.
    pub item: u32,
}

impl Fixed for PushDue {
    fixed_size!(16);

    fn from_wire(bytes: &[u8; 16]) -> Option<Self> {
        (u32_at(bytes, 12) == 0).then(|| PushDue { due: WallMs(u64_at(bytes, 0)), item: u32_at(bytes, 8) })
    }

    fn to_wire(self) -> [u8; 16] {
        let mut out = [0; 16];
        put(&mut out, 0, self.due.0.to_le_bytes());
        put(&mut out, 8, self.item.to_le_bytes());
        out
    }
}

/// The answer to one rescheduling, decided in the same order as dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RescheduleVerdict {
    /// Not one byte of the event leaves before its new time, and that is durable.
    Rescheduled {
        /// The new time; where it was past, the moment of the decision.
        due: WallMs,
        /// How often the event was rescheduled, this time included.
        version: u64,
    },
    /// The event was due already.
    TooLate {
        /// Where its most advanced task stands.
        state: TaskState,
        /// That task's attempts so far.
        attempt: u16,
    },
    /// No such event: it never was, or is complete and forgotten.
    NotFound,
    /// The event is in another version than the one that was to change.
    VersionMismatch {
        /// The one that it is in.
        version: u64,
    },
}

impl Fixed for RescheduleVerdict {
    fixed_size!(24);

    fn from_wire(bytes: &[u8; 24]) -> Option<Self> {
        let (due_ms, version, verdict) = (u64_at(bytes, 0), u64_at(bytes, 8), bytes[16]);
        let (state, attempt) = (bytes[17], u16_at(bytes, 18));
        if u32_at(bytes, 20) != 0 {
            return None;
        }
        match (verdict, due_ms, version, state, attempt) {
            (1, due_ms, version, 0, 0) => Some(Self::Rescheduled { due: WallMs(due_ms), version }),
            (2, 0, 0, state, attempt) => Some(Self::TooLate { state: TaskState::from_code(state)?, attempt }),
            (3, 0, 0, 0, 0) => Some(Self::NotFound),
            (4, 0, version, 0, 0) => Some(Self::VersionMismatch { version }),
            _ => None,
        }
    }

    fn to_wire(self) -> [u8; 24] {
        let (verdict, due_ms, version, state, attempt) = match self {
            Self::Rescheduled { due, version } => (1, due.0, version, 0, 0),
            Self::TooLate { state, attempt } => (2, 0, 0, state as u8, attempt),
            Self::NotFound => (3, 0, 0, 0, 0),
            Self::VersionMismatch { version } => (4, 0, version, 0, 0),
        };
        let mut out = [0; 24];
        put(&mut out, 0, u64::to_le_bytes(due_ms));
        put(&mut out, 8, u64::to_le_bytes(version));
        out[16] = verdict;
        out[17] = state;
        put(&mut out, 18, u16::to_le_bytes(attempt));
        out
    }
}

/// Which core of the node owns a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardCore {
    /// The shard.
    pub shard: ShardId,
    /// The core, from 0: the first byte of a connection id that reaches it, modulo the number of cores.
    pub core: u16,
}

impl Fixed for ShardCore {
    fixed_size!(4);

    fn from_wire(bytes: &[u8; 4]) -> Option<Self> {
        Some(ShardCore { shard: ShardId(u16_at(bytes, 0)), core: u16_at(bytes, 2) })
    }

    fn to_wire(self) -> [u8; 4] {
        let mut out = [0; 4];
        put(&mut out, 0, self.shard.0.to_le_bytes());
        put(&mut out, 2, self.core.to_le_bytes());
        out
    }
}

impl Fixed for EventId {
    fixed_size!(16);

    fn from_wire(bytes: &[u8; 16]) -> Option<Self> {
        EventId::from_bytes(*bytes)
    }

    fn to_wire(self) -> [u8; 16] {
        self.to_bytes()
    }
}

impl Fixed for u64 {
    fixed_size!(8);

    fn from_wire(bytes: &[u8; 8]) -> Option<Self> {
        Some(u64::from_le_bytes(*bytes))
    }

    fn to_wire(self) -> [u8; 8] {
        self.to_le_bytes()
    }
}

impl Fixed for Tag {
    fixed_size!(8);

    fn from_wire(bytes: &[u8; 8]) -> Option<Self> {
        Some(Tag(u64::from_le_bytes(*bytes)))
    }

    fn to_wire(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}
