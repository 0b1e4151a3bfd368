//! One type for each kind of frame: what a decoder yields, and what a writer takes.

use std::ops::Range;

use super::{
    AckDuplicate, AckException, AckRun, AdminAnswer, AdminRequest, CancelVerdict, Events, FrameError,
    FrameKind, ItemIter, Items, PushDue, PushItem, Query, QueryAnswer, RescheduleVerdict, ResultItem,
    ShardCore,
};
use crate::event::Due;
use crate::{Epoch, ErrorCode, EventId, Sequence, ShardId, SubscriptionId, Tag, TopicId, WallMs};

/// A frame, verified, borrowing from the bytes it came in.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is its kind, described there and at its type")]
pub enum Frame<'a> {
    Hello(Hello<'a>),
    Welcome(Welcome<'a>),
    PublishBatch(PublishBatch<'a>),
    PublishAck(PublishAck<'a>),
    Subscribe(Subscribe<'a>),
    Subscribed(Subscribed),
    PushBatch(PushBatch<'a>),
    ResultBatch(ResultBatch<'a>),
    Credit(Credit),
    Detach,
    Detached,
    Cancel(Cancel<'a>),
    CancelReply(CancelReply<'a>),
    Reschedule(Reschedule<'a>),
    RescheduleReply(RescheduleReply<'a>),
    Admin { request: u64, body: AdminRequest },
    AdminReply { request: u64, body: AdminAnswer },
    Error(ErrorFrame<'a>),
    GoAway(GoAway<'a>),
    Query { request: u64, query: Query },
    QueryReply { request: u64, answer: QueryAnswer },
    CancelByName(CancelByName<'a>),
}

impl Frame<'_> {
    /// What the frame is.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::Welcome(_) => FrameKind::Welcome,
            Self::PublishBatch(_) => FrameKind::PublishBatch,
            Self::PublishAck(_) => FrameKind::PublishAck,
            Self::Subscribe(_) => FrameKind::Subscribe,
            Self::Subscribed(_) => FrameKind::Subscribed,
            Self::PushBatch(_) => FrameKind::PushBatch,
            Self::ResultBatch(_) => FrameKind::ResultBatch,
            Self::Credit(_) => FrameKind::Credit,
            Self::Detach => FrameKind::Detach,
            Self::Detached => FrameKind::Detached,
            Self::Cancel(_) => FrameKind::Cancel,
            Self::CancelReply(_) => FrameKind::CancelReply,
            Self::Reschedule(_) => FrameKind::Reschedule,
            Self::RescheduleReply(_) => FrameKind::RescheduleReply,
            Self::Admin { .. } => FrameKind::Admin,
            Self::AdminReply { .. } => FrameKind::AdminReply,
            Self::Error(_) => FrameKind::Error,
            Self::GoAway(_) => FrameKind::GoAway,
            Self::Query { query: Query::Event { .. }, .. } => FrameKind::GetEvent,
            Self::QueryReply { answer: QueryAnswer::Event(_), .. } => FrameKind::GetEventReply,
            Self::Query { query: Query::Count { .. }, .. } => FrameKind::CountEvents,
            Self::QueryReply { answer: QueryAnswer::Count(_), .. } => FrameKind::CountEventsReply,
            Self::Query { query: Query::Due { .. }, .. } => FrameKind::CountDue,
            Self::QueryReply { answer: QueryAnswer::Due(_), .. } => FrameKind::CountDueReply,
            Self::Query { query: Query::List(_), .. } => FrameKind::ListEvents,
            Self::QueryReply { answer: QueryAnswer::List(_), .. } => FrameKind::ListEventsReply,
            Self::CancelByName(_) => FrameKind::CancelByName,
            Self::Query { query: Query::Group(_), .. } => FrameKind::GroupOperation,
            Self::QueryReply { answer: QueryAnswer::Group(_), .. } => FrameKind::GroupOperationReply,
        }
    }
}

/// Opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Version that the client speaks: [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub version: u16,
    /// Name and version of the client's software, for people. Nodes do not look at it.
    pub client: &'a str,
}

/// Who the node is, and what holds for the connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Welcome<'a> {
    /// Version that the node speaks.
    pub version: u16,
    /// The node's identity: stays over restarts.
    pub node_id: u64,
    /// Rises at every start of the node. Another one than before: its sessions are new.
    pub epoch: Epoch,
    /// Number of shards.
    pub shard_count: u16,
    /// Number of cores.
    pub core_count: u16,
    /// Which core owns which shard. A shard that does not serve is left out.
    pub shards: Items<'a, ShardCore>,
    /// Largest event accepted.
    pub event_size_bytes_max: u32,
    /// Largest frame accepted, its prefix not included.
    pub frame_size_bytes_max: u32,
    /// The node's wall clock.
    pub wall: WallMs,
}

/// Events to one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishBatch<'a> {
    /// The topic.
    pub topic: TopicId,
    /// Number of the first event on this stream, from 0; the others follow without a gap.
    pub first_item: u64,
    /// The events, at least one.
    pub events: Events<'a>,
}

/// How safe an accepted event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Durability(pub u8);

impl Durability {
    /// Written and synced on the disk of the node that acknowledges.
    pub const LOCAL_DISK: Durability = Durability(1);
}

/// Answers a stream's events, cumulatively.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PublishAck<'a> {
    /// Every item below this number is answered, by this frame or an earlier one.
    pub through_item: u64,
    /// Reached by the accepted items of this frame.
    pub durability: Durability,
    /// Accepted items: those of the range that are no exception, in order.
    pub runs: Items<'a, AckRun>,
    /// Refused items, ascending.
    pub exceptions: Items<'a, AckException>,
    /// For people: which limits the items met that are refused with `RESOURCE_EXHAUSTED`. Empty where none are, and
    /// where the node does not say.
    pub exhausted: &'a str,
    /// Accepted items that had been published before, ascending. Each is in a run too, which names the original: who
    /// does not look here sees all accepted items.
    pub duplicates: Items<'a, AckDuplicate>,
}

impl<'a> PublishAck<'a> {
    /// The answers of this frame, one for each item in order, given the items that wait for one:
    /// from the `through_item` of the acknowledgement before (0 at first) to the next item to be sent.
    ///
    /// # Errors
    /// The frame answers items that wait for none, or its runs and exceptions are not exactly its items.
    pub fn items(&self, waiting: Range<u64>) -> Result<AckItems<'a>, FrameError> {
        let malformed = |reason| Err(FrameError::Malformed { kind: FrameKind::PublishAck, reason });
        if self.through_item < waiting.start || self.through_item > waiting.end {
            return malformed("it answers items that wait for no answer");
        }
        let range = waiting.start..self.through_item;
        let mut next = range.start;
        for exception in self.exceptions {
            if exception.item < next || !range.contains(&exception.item) {
                return malformed("its exceptions do not ascend within its items");
            }
            next = exception.item + 1;
        }
        let mut answered = self.exceptions.len() as u64;
        for run in self.runs {
            if run.count == 0 {
                return malformed("it has an empty run");
            }
            answered = answered.saturating_add(u64::from(run.count));
        }
        if answered != range.end - range.start {
            return malformed("its runs and exceptions are not as many as its items");
        }
        let mut exceptions = self.exceptions.iter().peekable();
        let mut next = range.start;
        for AckDuplicate { item, .. } in self.duplicates {
            while exceptions.next_if(|exception| exception.item < item).is_some() {}
            let is_refused = exceptions.peek().is_some_and(|exception| exception.item == item);
            if item < next || !range.contains(&item) || is_refused {
                return malformed("its duplicates do not ascend within its accepted items");
            }
            next = item + 1;
        }
        Ok(AckItems {
            next: range.start,
            runs: self.runs.iter(),
            run: None,
            exceptions: self.exceptions.iter(),
            exception: None,
            duplicates: self.duplicates.iter(),
            duplicate: None,
        })
    }
}

/// What an accepted event is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its shard.
    pub shard: ShardId,
    /// Its position there.
    pub sequence: Sequence,
    /// Moment of acceptance: where the event states a delay, its due time is this plus the delay.
    pub accepted: WallMs,
    /// Where the event had been published before: when that one, which all of this is about, is scheduled for.
    pub duplicate: Option<WallMs>,
}

impl Accepted {
    /// The event's id, given the due time: as the event states it, or resolved from its delay. A duplicate's is the
    /// original's, whatever was given.
    #[must_use]
    pub fn event_id(&self, schedule_time: WallMs) -> EventId {
        let schedule_time = self.duplicate.unwrap_or(schedule_time);
        EventId { shard: self.shard, sequence: self.sequence, schedule_time_ms: schedule_time.0 }
    }
}

/// One item's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckItem {
    /// Its number on the stream.
    pub item: u64,
    /// Accepted, or why not.
    pub answer: Result<Accepted, AckException>,
}

/// Iterator over the answers of a [`PublishAck`].
#[derive(Clone, Debug)]
pub struct AckItems<'a> {
    next: u64,
    runs: ItemIter<'a, AckRun>,
    run: Option<AckRun>,
    exceptions: ItemIter<'a, AckException>,
    exception: Option<AckException>,
    duplicates: ItemIter<'a, AckDuplicate>,
    duplicate: Option<AckDuplicate>,
}

impl Iterator for AckItems<'_> {
    type Item = AckItem;

    fn next(&mut self) -> Option<AckItem> {
        let item = self.next;
        if self.exception.is_none() {
            self.exception = self.exceptions.next();
        }
        let answer = match self.exception {
            Some(exception) if exception.item == item => {
                self.exception = None;
                Err(exception)
            }
            _ => {
                let run = match self.run.take() {
                    Some(run) => run,
                    None => self.runs.next()?,
                };
                if run.count > 1 {
                    let first_sequence = Sequence(run.first_sequence.0.wrapping_add(1));
                    self.run = Some(AckRun { first_sequence, count: run.count - 1, ..run });
                }
                let duplicate = self.duplicate.take().or_else(|| self.duplicates.next());
                let is_it = duplicate.is_some_and(|duplicate| duplicate.item == item);
                self.duplicate = duplicate.filter(|_| !is_it);
                let duplicate = duplicate.filter(|_| is_it).map(|duplicate| duplicate.schedule_time);
                Ok(Accepted {
                    shard: run.shard,
                    sequence: run.first_sequence,
                    accepted: run.accepted,
                    duplicate,
                })
            }
        };
        self.next = item + 1;
        Some(AckItem { item, answer })
    }
}

/// Opens a subscription's session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subscribe<'a> {
    /// The subscription's name.
    pub subscription: &'a str,
    /// Credit to begin with.
    pub credit: Credit,
    /// Names where the subscriber runs: chosen once by its process, the same over its connections. 0
    /// does not say: all such sessions of a subscription count as one host.
    pub host: u64,
    /// Attempts of an earlier session of this host that it still works on, and will send results for.
    /// Others that it had are given to somebody else.
    pub running: Items<'a, Tag>,
}

/// Answers [`Subscribe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// Names the session.
    pub session_id: u64,
    /// Generation of the subscription's owner. Tags of another generation are stale.
    pub epoch: Epoch,
}

/// Attempts, each with its event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PushBatch<'a> {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// As in [`Subscribed`].
    pub epoch: Epoch,
    /// The attempts, at least one.
    pub items: Items<'a, PushItem>,
    /// Their events: as many, in the same order.
    pub events: Events<'a>,
    /// Of events that were rescheduled, when they were due; ascending by item, which is one of them.
    pub rescheduled: Items<'a, PushDue>,
}

impl<'a> PushBatch<'a> {
    /// When each event was due, in the order of the items: as its id says, or as it was rescheduled.
    pub fn dues(&self) -> impl Iterator<Item = WallMs> + use<'a> {
        let mut rescheduled = self.rescheduled.iter().peekable();
        (0..).zip(self.items.iter()).map(move |(item, push)| {
            let other = rescheduled.next_if(|other| other.item == item);
            other.map_or(push.schedule_time, |other| other.due)
        })
    }

    /// Each attempt with its event's bytes, padding included.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (PushItem, &'a [u8])> + use<'a> {
        self.items.iter().zip(self.events.iter())
    }
}

/// Results of attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResultBatch<'a> {
    /// The results, at least one.
    pub results: Items<'a, ResultItem>,
}

/// Most that may be outstanding in a session: pushed, and without a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Attempts.
    pub tasks: u32,
    /// Bytes of their events, padding included.
    pub bytes: u32,
}

/// Asks to cancel events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cancel<'a> {
    /// Chosen by the client, repeated in the reply.
    pub request: u64,
    /// The events.
    pub events: Items<'a, EventId>,
}

/// What an event's publisher calls it, within a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventName<'a> {
    /// Its ordering key; empty where it has none.
    pub ordering_key: &'a [u8],
    /// Its CloudEvents `source`; empty for the topic's default.
    pub source: &'a str,
    /// Its CloudEvents `id`.
    pub id: &'a str,
}

/// Asks to cancel events of a topic with a `dedup_window` by their names. Answered by [`CancelReply`].
#[derive(Clone, Debug, PartialEq)]
pub struct CancelByName<'a> {
    /// Chosen by the client, repeated in the reply.
    pub request: u64,
    /// The topic of all of them.
    pub topic: TopicId,
    /// The events.
    pub names: Vec<EventName<'a>>,
}

/// Answers [`Cancel`] and [`CancelByName`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CancelReply<'a> {
    /// As in the request.
    pub request: u64,
    /// One for each event of the request, in its order.
    pub verdicts: Items<'a, CancelVerdict>,
}

/// Asks to give events another due time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reschedule<'a> {
    /// Chosen by the client, repeated in the reply.
    pub request: u64,
    /// The events.
    pub events: Items<'a, EventId>,
    /// When they are to be due. What is past is now; a delay counts from when the node reads it.
    pub due: Due,
    /// How often each was rescheduled before, where only that version is to change; else empty.
    pub versions: Items<'a, u64>,
}

/// Answers [`Reschedule`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RescheduleReply<'a> {
    /// As in the request.
    pub request: u64,
    /// One for each event of the request, in its order.
    pub verdicts: Items<'a, RescheduleVerdict>,
}

/// Refuses a request, or ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// The request; 0 where it is the stream or the connection that is refused.
    pub request: u64,
    /// An [`ErrorCode`]'s number, perhaps of a later version.
    pub code: u16,
    /// Earliest sensible time to try again; 0 where nothing is known of it.
    pub retry_after_ms: u32,
    /// For people: what is wrong, and what would be right.
    pub message: &'a str,
}

impl ErrorFrame<'_> {
    /// The code, where this version knows it.
    #[must_use]
    pub fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.code)
    }
}

/// The node is draining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway<'a> {
    /// For people: why.
    pub message: &'a str,
}
