//! What goes into the router and what comes out, as plain data.

use escapement_protocol::{MonoNs, Outcome, Sequence, ShardId, SubscriptionId, Tag, TopicId, WallMs};

/// One attached subscriber session. Unique for the life of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The subscriber's host behind a session, stable over its connections. 0 where the host did not say:
/// all such sessions of a subscription count as one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostKey(pub u64);

/// A due task, small enough to be handed around by value: the event's bytes stay with the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskRef {
    /// Shard that owns the event.
    pub shard: ShardId,
    /// Attempts already made, those that were cut off included. The next attempt's number is one more.
    pub attempt: u16,
    /// Of these, attempts that don't count against `max_attempts`: cut off with their host or their node.
    pub excused: u16,
    /// Whether the event has a ttl: its shard looks whether that has passed before an attempt leaves.
    pub expires: bool,
    /// The event's topic.
    pub topic: TopicId,
    /// Bytes that a push of this task takes of a session's credit.
    pub size_bytes: u32,
    /// The event's position in its shard.
    pub sequence: Sequence,
    /// The event's due time.
    pub due: WallMs,
    /// Not to be dispatched before: a retry's due time. 0 is now.
    pub not_before: MonoNs,
    /// Hash of the ordering key; 0 where there is none.
    pub key: u64,
}

const _: () = assert!(size_of::<TaskRef>() <= 48);

/// How much may be outstanding at a session at once. A 0 in either closes the session for new attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Most attempts.
    pub tasks: u32,
    /// Most bytes. One task larger than this goes out where nothing else is outstanding, as it could never go otherwise.
    pub bytes: u64,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// The connection is gone, and its attempts may still run: their slots stay held.
    Cut,
    /// The host said that nothing runs any more: its slots are free.
    Graceful,
}

/// What the router decided. The order of decisions is the order in which they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Push the task to the session.
    Dispatch {
        /// Whose task.
        subscription: SubscriptionId,
        /// To where.
        session: SessionId,
        /// Names the attempt in its result.
        tag: Tag,
        /// The task; its `attempt` is one less than this attempt's number.
        task: TaskRef,
        /// Number of this attempt, from 1.
        attempt: u16,
        /// Time that the attempt has, from now.
        deadline_ms: u32,
    },
    /// The task is done with; the router has forgotten it.
    Complete {
        /// Whose task.
        subscription: SubscriptionId,
        /// The task, with all attempts made.
        task: TaskRef,
        /// How it ended.
        outcome: Outcome,
    },
    /// The attempt ended without a final result; the router keeps the task and tries again.
    AttemptFailed {
        /// Whose task.
        subscription: SubscriptionId,
        /// The task, this attempt counted, `not_before` the moment of the next.
        task: TaskRef,
        /// Number of the attempt that ended.
        attempt: u16,
        /// When the next attempt may begin. It is now where the host or its connection was at fault.
        next_due: MonoNs,
    },
}

/// Answer to [`crate::Router::withdraw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// The task waited and is gone; nothing more is decided about it.
    Removed,
    /// An attempt is out, or its slot is held: too late.
    Running {
        /// Its number.
        attempt: u16,
    },
    /// No such task.
    NotHere,
}

/// The subscription is not known to this router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSubscription;

/// Counts of one subscription. The first five are current; the rest only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tasks that could go now if limits, credit and key order allowed.
    pub queued: usize,
    /// Attempts out, held slots included.
    pub running: usize,
    /// Of these, slots held for a cut connection.
    pub held: usize,
    /// Tasks waiting for their next attempt's time.
    pub backoff: usize,
    /// Sessions attached.
    pub sessions: usize,
    /// Attempts dispatched.
    pub dispatched: u64,
    /// Tasks completed, whatever the outcome.
    pub completed: u64,
    /// Attempts that ended without a final result.
    pub attempts_failed: u64,
    /// Of these, attempts without a result at their deadline.
    pub deadlines_passed: u64,
    /// Results that named no running attempt of their session.
    pub stale_results: u64,
}
