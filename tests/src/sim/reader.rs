//! The client that reads what is pending, and holds the answers to what was acknowledged.

use std::collections::BTreeMap;

use escapement_protocol::frame::{Frame, Query, QueryAnswer};
use escapement_protocol::{EventId, ShardId, SubscriptionId, TopicId};
use escapement_wal::memory::Rng;

use super::bug::Bug;
use super::control::{Received, hello, written};
use super::judge::Key;
use super::net::connection_of;
use super::world::{Who, World};

/// Streams that it asks on.
const STREAMS: u64 = 2;

/// A question without an answer.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) query: Query,
    /// Of those that it counts, events that had to be there.
    pub(super) owed: Vec<Key>,
    /// Whether the event's cancellation had been acknowledged.
    pub(super) was_cancelled: bool,
    /// Whether the id is one that nobody was given.
    pub(super) is_made_up: bool,
    /// The node's clock when it was asked, where it is the same start of the node.
    pub(super) wall_ms: Option<u64>,
}

/// Asks at random.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Option<u64>,
    requests: u64,
    /// By stream and request.
    asked: BTreeMap<(u64, u64), Asked>,
    /// Apart from the world's, so that what is asked changes nothing but what it is asked of.
    rng: Rng,
}

impl Reader {
    pub(super) fn new(seed: u64) -> Reader {
        let rng = Rng::new(seed ^ 0x7265_6164_696e_6720);
        Reader { connection: None, requests: 0, asked: BTreeMap::new(), rng }
    }

    pub(super) fn cut(&mut self, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.asked.clear();
        }
    }
}

impl World {
    pub(super) fn reader_wakes(&mut self) {
        if self.is_calm() {
            return;
        }
        let after_ms = 1 + self.reader.rng.below(60);
        self.wake(Who::Reader, after_ms);
        let connection = match self.reader.connection {
            Some(connection) => connection,
            None => {
                let Some(connection) = self.connect(Who::Reader) else { return };
                self.reader.connection = Some(connection);
                self.send(connection, 0, &hello(), Vec::new());
                connection
            }
        };
        let events = self.judge.pending_events();
        if events.is_empty() {
            return;
        }
        let event = events[self.reader.rng.below(events.len() as u64) as usize];
        if self.reader.rng.one_in(3) {
            self.ask_for_counts(connection, event.shard);
        } else {
            self.ask_for_event(connection, event);
        }
    }

    fn ask_for_counts(&mut self, connection: u64, shard: ShardId) {
        let topic = self.reader.rng.below(self.plan.topics as u64 + 1) as usize;
        let (index, topic) = match topic {
            0 => (None, TopicId(0)),
            n => (Some(n - 1), self.admin.topic_id(n - 1)),
        };
        let owed = self.judge.owed_in(shard, index);
        let query = Query::Count { shard, topic, subscription: SubscriptionId(0) };
        self.ask(connection, Asked { query, owed, was_cancelled: false, is_made_up: false, wall_ms: None });
    }

    fn ask_for_event(&mut self, connection: u64, event: EventId) {
        let is_made_up = self.reader.rng.one_in(8);
        let was_cancelled = self.judge.is_cancelled(event);
        let schedule_time_ms = event.schedule_time_ms + u64::from(is_made_up);
        let peek = self.reader.rng.one_in(2);
        let query = Query::Event { event: EventId { schedule_time_ms, ..event }, peek };
        let wall_ms = self.node_wall_ms(self.incarnation);
        self.ask(connection, Asked { query, owed: Vec::new(), was_cancelled, is_made_up, wall_ms });
    }

    fn ask(&mut self, connection: u64, asked: Asked) {
        let stream = self.reader.rng.below(STREAMS);
        self.reader.requests += 1;
        let request = self.reader.requests;
        let mut query = asked.query.clone();
        if let Query::Count { shard, .. } = &mut query
            && self.options.bug == Some(Bug::QuestionsAstray)
        {
            shard.0 = (shard.0 + 1) % self.plan.shards;
        }
        let bytes = written(&Frame::Query { request, query });
        self.reader.asked.insert((stream, request), asked);
        self.send(connection, stream, &bytes, Vec::new());
    }

    pub(super) fn reader_frame(&mut self, stream: u64, incarnation: u32, frame: Received) {
        if self.reader.connection != Some(connection_of(stream)) {
            return;
        }
        let index = super::net::index_of(stream);
        match frame {
            Received::QueryReply { request, answer } => {
                let Some(asked) = self.reader.asked.remove(&(index, request)) else {
                    return self.judge.breach(format!("an answer came to no question: {answer:?}"));
                };
                self.judge_answer(&asked, answer, incarnation);
            }
            // A shard that stops, or too many look-ups.
            Received::Error { request } => drop(self.reader.asked.remove(&(index, request))),
            _ => {}
        }
    }

    fn judge_answer(&mut self, asked: &Asked, answer: QueryAnswer, incarnation: u32) {
        // What the clock says of another start of the node, says nothing of this one's.
        let wall_ms = self.node_wall_ms(incarnation);
        match (&asked.query, answer) {
            (Query::Event { event, peek }, QueryAnswer::Event(found)) => {
                let topic = self.judge.topic_of(*event).map(|topic| self.admin.topic_id(topic));
                let clock = wall_ms.and(asked.wall_ms).zip(wall_ms);
                self.judge.event_answered((*event, *peek), asked, found.as_deref(), topic, clock);
            }
            (Query::Count { .. }, QueryAnswer::Count(counts)) => self.judge.counted(asked, &counts),
            (query, answer) => self.judge.breach(format!("{query:?} was answered by {answer:?}")),
        }
    }
}
