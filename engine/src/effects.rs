//! What a shard is told, and what it wants done.

use escapement_protocol::frame::{CancelVerdict, Items, Query, QueryAnswer, RescheduleVerdict, ResultItem};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    ErrorCode, EventId, Outcome, Sequence, ShardId, SubscriptionId, Tag, TopicId, WallMs,
};
use escapement_router::{Credit, Detach, HostKey, SessionId, TaskRef};

use crate::far::{RunOp, RunTicket};
use crate::names::NameHash;
use crate::record::RecordWriter;

/// Where an answer goes: a door's ticket on one core. Opaque to the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The core whose door waits.
    pub core: u16,
    /// What it waits for.
    pub number: u64,
}

/// One input of [`crate::Shard::step`].
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A run of verified events for this shard.
    Publish {
        /// Who waits.
        ticket: Ticket,
        /// Their topic.
        topic: TopicId,
        /// How many.
        count: u32,
        /// Their bytes, each padded to 8.
        events: &'a [u8],
    },
    /// Cancel one event.
    Cancel {
        /// Who waits.
        ticket: Ticket,
        /// Which event.
        event: EventId,
    },
    /// Say what is pending. Changes nothing.
    Query {
        /// Who waits.
        ticket: Ticket,
        /// What is asked.
        query: Query,
    },
    /// Cancel the event of a name.
    CancelByName {
        /// Who waits.
        ticket: Ticket,
        /// Its topic.
        topic: TopicId,
        /// The name.
        name: NameHash,
    },
    /// Give one event another due time.
    Reschedule {
        /// Who waits.
        ticket: Ticket,
        /// Which event.
        event: EventId,
        /// When it is to be due; at once where that is past.
        due: WallMs,
        /// How often it was rescheduled before, where only that version is to change.
        expected: Option<u64>,
    },
    /// Create or read a control object. Only shard 0 answers.
    Admin {
        /// Who waits.
        ticket: Ticket,
        /// What is asked.
        request: AdminRequest,
    },
    /// Results of attempts, for subscriptions that this shard owns.
    Results {
        /// The session that says so.
        session: SessionId,
        /// The results.
        results: Items<'a, ResultItem>,
    },
    /// Something from another shard, or from a door on another core.
    Message(Message),
}

/// Creation of a control object. Idempotent: the same settings again answer with what exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// Create a topic.
    CreateTopic(TopicSettings),
    /// Create a subscription.
    CreateSubscription(SubscriptionSettings),
}

/// What travels between shards, and from doors to the shards that own subscriptions. One mesh hop each.
#[derive(Clone, Debug)]
pub enum Message {
    /// To a subscription's owner: a task is due.
    Offer {
        /// The subscription.
        subscription: SubscriptionId,
        /// The task.
        task: TaskRef,
        /// Wall time before which it must not be dispatched again; 0 for none.
        next_due: WallMs,
    },
    /// To a subscription's owner: the ttl of an event has passed, and its task ends unless an attempt is out.
    Expire {
        /// The subscription.
        subscription: SubscriptionId,
        /// The event's shard.
        shard: ShardId,
        /// The event.
        sequence: Sequence,
        /// An attempt that was decided and did not leave.
        unsent: Option<Tag>,
    },
    /// To the event's shard: push it to this session.
    Dispatch(Push),
    /// To the event's shard: the task ended.
    TaskDone {
        /// The subscription.
        subscription: SubscriptionId,
        /// The event.
        sequence: Sequence,
        /// How.
        outcome: Outcome,
    },
    /// To the event's shard: an attempt failed.
    AttemptFailed {
        /// The subscription.
        subscription: SubscriptionId,
        /// The event.
        sequence: Sequence,
        /// Attempts made.
        attempt: u16,
        /// Of these, attempts that do not count against `max_attempts`.
        excused: u16,
        /// When the next is due.
        next_due: WallMs,
    },
    /// To a subscription's owner: a session attached.
    Attach {
        /// The subscription.
        subscription: SubscriptionId,
        /// The session.
        session: SessionId,
        /// The subscriber's host behind it.
        host: HostKey,
        /// Most that may be outstanding.
        credit: Credit,
        /// Tags it still works on.
        running: Vec<Tag>,
    },
    /// To a subscription's owner: a session's credit changed.
    Credit {
        /// The session.
        session: SessionId,
        /// Most that may be outstanding.
        credit: Credit,
    },
    /// To a subscription's owner: a session ended.
    Detach {
        /// The session.
        session: SessionId,
        /// How it ended.
        how: Detach,
    },
    /// To a subscription's owner: what became of attempts.
    Results {
        /// The session that says so.
        session: SessionId,
        /// The results.
        results: Vec<ResultItem>,
    },
    /// From shard 0: a control object, in the form of its log record.
    Control {
        /// The record.
        record: Vec<u8>,
    },
    /// To shard 0: this shard's copy of the registry is durable up to a version.
    ControlDurable {
        /// Which shard.
        shard: ShardId,
        /// Up to which version.
        version: u64,
    },
    /// To every shard that serves: another one is out of service until the next start, and nothing more comes from it.
    Out {
        /// Which shard.
        shard: ShardId,
    },
}

/// One push: the event's shard knows the bytes, the session's core sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Push {
    /// To whom.
    pub session: SessionId,
    /// For which subscription.
    pub subscription: SubscriptionId,
    /// The attempt's tag.
    pub tag: Tag,
    /// The event.
    pub sequence: Sequence,
    /// Number of the attempt, from 1.
    pub attempt: u16,
    /// Time for a result, from now.
    pub deadline_ms: u32,
    /// Whether the event has a ttl, which its shard looks at before the push leaves.
    pub expires: bool,
}

/// An answer to a door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who waits.
    pub ticket: Ticket,
    /// The answer.
    pub body: ReplyBody,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// A prefix of the run was accepted, and is durable.
    Published {
        /// Sequence of its first event that is no duplicate.
        first_sequence: Sequence,
        /// How many were accepted, from the first on, now or before.
        accepted_count: u32,
        /// When they were accepted.
        accepted: WallMs,
        /// Why the rest of the run was not.
        refusal: Option<Refusal>,
        /// Of those, the ones that had been accepted before, ascending. The others have consecutive sequences.
        duplicates: Vec<Duplicate>,
    },
    /// None of it was accepted.
    Refused(Refusal),
    /// The verdict on a cancellation. Linearized with dispatch: after `Cancelled`, not one byte leaves.
    Cancelled(CancelVerdict),
    /// What is pending, as far as it is durable.
    Answered(QueryAnswer),
    /// The verdict on another due time. Linearized with dispatch: after `Rescheduled`, not one byte leaves before the new
    /// time.
    Rescheduled(RescheduleVerdict),
    /// The topic as it is, durable on every shard.
    Topic {
        /// Its id.
        id: TopicId,
        /// Its version.
        version: u64,
        /// Its settings.
        settings: TopicSettings,
    },
    /// The subscription as it is, durable on every shard.
    Subscription {
        /// Its id.
        id: SubscriptionId,
        /// Its topic.
        topic: TopicId,
        /// Its version.
        version: u64,
        /// Its settings.
        settings: SubscriptionSettings,
    },
}

/// An event of a published run that had been published before: the receipt of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Its place in the run, from 0.
    pub index: u32,
    /// The first one's sequence.
    pub sequence: Sequence,
    /// When the first one is scheduled for, as its id says.
    pub schedule_time: WallMs,
    /// When the first one was accepted.
    pub accepted: WallMs,
}

/// A typed refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub code: ErrorCode,
    /// What to do.
    pub message: String,
    /// When the same may succeed; 0 where it won't.
    pub retry_after_ms: u32,
}

/// Everything that one or more steps want done. The node drains it once a turn, in the order of the fields.
#[derive(Debug, Default)]
pub struct Effects {
    /// Records for the next block.
    pub records: Vec<u8>,
    /// How many.
    pub record_count: u32,
    /// Answers that leave when the records up to that offset of `records` are durable.
    pub on_commit: Vec<(usize, Reply)>,
    /// Answers that leave now.
    pub replies: Vec<Reply>,
    /// Pushes of events that this shard holds.
    pub pushes: Vec<Push>,
    /// Messages for other shards.
    pub forwards: Vec<(ShardId, Message)>,
    /// What is to be done with files of runs; each is answered by [`crate::Shard::run_op_done`].
    pub run_ops: Vec<(RunTicket, RunOp)>,
}

impl Effects {
    /// A writer for the next block's records.
    pub fn log(&mut self) -> RecordWriter<'_> {
        RecordWriter::new(&mut self.records, &mut self.record_count)
    }

    /// Holds an answer until everything logged so far is durable.
    pub(crate) fn reply_on_commit(&mut self, ticket: Ticket, body: ReplyBody) {
        self.on_commit.push((self.records.len(), Reply { ticket, body }));
    }

    /// Answers at once.
    pub(crate) fn reply(&mut self, ticket: Ticket, body: ReplyBody) {
        self.replies.push(Reply { ticket, body });
    }

    /// Refuses at once.
    pub(crate) fn refuse(
        &mut self,
        ticket: Ticket,
        code: ErrorCode,
        retry_after_ms: u32,
        message: impl Into<String>,
    ) {
        self.reply(ticket, ReplyBody::Refused(Refusal { code, message: message.into(), retry_after_ms }));
    }
}
