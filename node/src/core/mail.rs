//! What cores send one another: bounded by the turn that collects it, handed over whole.

use escapement_engine::names::NameHash;
use escapement_engine::{AdminRequest, Message, Reply, ReplyBody, Ticket};
use escapement_protocol::frame::{PushItem, Query};
use escapement_protocol::{EventId, MonoNs, ShardId, TopicId, WallMs};

use super::hold::HoldAnswer;

/// One thing for another core.
#[derive(Clone, Debug)]
pub enum Parcel {
    /// For a shard there.
    Shard(ShardId, Message),
    /// Events that came in at the wrong core.
    Publish {
        /// The shard.
        shard: ShardId,
        /// Who waits.
        ticket: Ticket,
        /// Their topic.
        topic: TopicId,
        /// How many.
        count: u32,
        /// Their bytes.
        events: Box<[u8]>,
    },
    /// A cancellation that came in at the wrong core.
    Cancel {
        /// The shard.
        shard: ShardId,
        /// Who waits.
        ticket: Ticket,
        /// The event.
        event: EventId,
    },
    /// A question that came in at the wrong core.
    Query {
        /// Who waits.
        ticket: Ticket,
        /// What is asked, of the shard that it names.
        query: Query,
    },
    /// A cancellation by name that came in at the wrong core.
    CancelByName {
        /// The shard.
        shard: ShardId,
        /// Who waits.
        ticket: Ticket,
        /// The topic.
        topic: TopicId,
        /// The name.
        name: NameHash,
    },
    /// A rescheduling that came in at the wrong core.
    Reschedule {
        /// The shard.
        shard: ShardId,
        /// Who waits.
        ticket: Ticket,
        /// The event.
        event: EventId,
        /// When it is to be due.
        due: WallMs,
        /// The version that is to change, where not any is.
        expected: Option<u64>,
    },
    /// A creation for shard 0.
    Admin {
        /// Who waits.
        ticket: Ticket,
        /// What is asked.
        request: AdminRequest,
    },
    /// An event for a session there.
    Push {
        /// The session.
        session: u64,
        /// The attempt.
        item: PushItem,
        /// When the event was due, where it was rescheduled.
        rescheduled: Option<WallMs>,
        /// The event's bytes, padded.
        event: Box<[u8]>,
    },
    /// An answer for the door there.
    Reply(Reply),
    /// A snapshot: every shard there keeps its files until then; or, without a moment, lets go of them.
    Hold {
        /// Which snapshot. Its number says which core is to be answered.
        snapshot: u64,
        /// How long at most.
        until: Option<MonoNs>,
    },
    /// The answer to [`Parcel::Hold`].
    HoldAnswer {
        /// Which snapshot.
        snapshot: u64,
        /// The core's answer.
        answer: HoldAnswer,
    },
    /// Control records for a core without a serving shard.
    Objects(Box<[u8]>),
    /// A shard of the sender has stopped, and nothing more comes from it.
    Out(ShardId),
    /// The sender's shards know every control object that was acknowledged before the start.
    CaughtUp,
}

/// Parcels of one turn for one core, in order.
#[derive(Clone, Debug, Default)]
pub struct Mail {
    pub(super) parcels: Vec<Parcel>,
    size_bytes: usize,
}

impl Mail {
    pub(super) fn push(&mut self, parcel: Parcel) {
        self.size_bytes += size_of::<Parcel>();
        self.size_bytes += match &parcel {
            Parcel::Publish { events, .. } => events.len(),
            Parcel::Push { event, .. } => event.len(),
            Parcel::Objects(objects) => objects.len(),
            Parcel::Reply(Reply { body: ReplyBody::Answered(answer), .. }) => answer.size_bytes(),
            _ => 0,
        };
        self.parcels.push(parcel);
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parcels.is_empty()
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}
