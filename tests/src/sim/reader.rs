//! The client that reads what is pending, and holds the answers to what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use escapement_protocol::frame::{EventPage, Frame, ListEvents, PageToken, Query, QueryAnswer, TaskState};
use escapement_protocol::{EventId, ShardId, SubscriptionId, TopicId, WallMs};
use escapement_wal::memory::Rng;

use super::bug::Bug;
use super::control::{Received, hello, written};
use super::judge::Key;
use super::net::connection_of;
use super::plan::DAY_MS;
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

/// An event that has to be listed, if nothing happens to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    pub(super) key: Key,
    /// When it was due, and in which version.
    pub(super) due_ms: u64,
    pub(super) version: u64,
}

/// A listing under way, of which one page at a time is asked for.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    pub(super) list: ListEvents,
    /// Index of its topic.
    pub(super) topic: usize,
    /// Events that had to be there when it began.
    pub(super) owed: Vec<Owed>,
    pub(super) seen: BTreeSet<Key>,
    /// Shards that were out of service when it came to them.
    pub(super) missing: BTreeSet<ShardId>,
    /// Events that were cancelled before this page was asked for.
    pub(super) cancelled: BTreeSet<Key>,
    /// The node's clock when this page was asked for, where it is the same start of the node.
    wall_ms: Option<u64>,
    /// Stream and request, where a page is waited for.
    asked: Option<(u64, u64)>,
}

/// Asks at random.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Option<u64>,
    requests: u64,
    /// By stream and request.
    asked: BTreeMap<(u64, u64), Asked>,
    listing: Option<Listing>,
    /// Apart from the world's, so that what is asked changes nothing but what it is asked of.
    rng: Rng,
}

impl Reader {
    pub(super) fn new(seed: u64) -> Reader {
        let rng = Rng::new(seed ^ 0x7265_6164_696e_6720);
        let asked = BTreeMap::new();
        Reader { connection: None, requests: 0, asked, listing: None, rng }
    }

    pub(super) fn cut(&mut self, connection: u64) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.asked.clear();
            self.listing = None;
        }
    }
}

impl World {
    pub(super) fn reader_wakes(&mut self) {
        // Listings are long: where events come out of runs, they may as well end while nothing is faulted.
        if self.is_calm() && self.plan.horizon_ms > DAY_MS {
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
        self.go_on_listing(connection, &events);
        if self.is_calm() {
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

    /// Asks for the next page of the listing, or begins one.
    fn go_on_listing(&mut self, connection: u64, events: &[EventId]) {
        let mut listing = match self.reader.listing.take() {
            Some(listing) => listing,
            None if self.reader.rng.one_in(2) => self.new_listing(events),
            None => return,
        };
        if listing.asked.is_none() {
            let stream = self.reader.rng.below(STREAMS);
            self.reader.requests += 1;
            let request = self.reader.requests;
            listing.asked = Some((stream, request));
            listing.wall_ms = self.node_wall_ms(self.incarnation);
            listing.cancelled = self.judge.cancelled_events();
            listing.list.count_max = [1, 2, 5, 30][self.reader.rng.below(4) as usize];
            let mut list = listing.list.clone();
            if let Some(mut token) = PageToken::parse(&list.token).filter(|token| token.run > 0) {
                match self.options.bug {
                    Some(Bug::ListingNotRepeated) => token.block = u64::MAX,
                    Some(Bug::ListingBlockSkipped) if token.entry == 0 => token.run_block += 1,
                    _ => {}
                }
                list.token = token.to_bytes();
            }
            self.note(format_args!("asks for a page at {:?}", PageToken::parse(&list.token)));
            let bytes = written(&Frame::Query { request, query: Query::List(Box::new(list)) });
            self.send(connection, stream, &bytes, Vec::new());
        }
        self.reader.listing = Some(listing);
    }

    fn new_listing(&mut self, events: &[EventId]) -> Listing {
        let rng = &mut self.reader.rng;
        let mut pick = || events[rng.below(events.len() as u64) as usize];
        let (one, other) = (pick(), pick());
        let topic = self.judge.topic_of(one).unwrap_or_default();
        let mut list = ListEvents { topic: self.admin.topic_id(topic), ..ListEvents::default() };
        if rng.one_in(2) {
            // At the edges of what is there.
            let (from, until) = (one.schedule_time_ms, other.schedule_time_ms);
            list.from = WallMs(from.min(until));
            list.until = WallMs(if rng.one_in(3) { u64::MAX } else { from.max(until) + rng.below(2) });
        }
        if rng.one_in(4) {
            list.ordering_key = self.judge.ordering_key_of(one);
        }
        list.state = match rng.below(8) {
            0 => Some(TaskState::Ready),
            1 | 2 => Some(TaskState::Scheduled),
            _ => None,
        };
        let owed = self.judge.owed_to(&list, topic);
        let (seen, missing, cancelled) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Listing { list, topic, owed, seen, missing, cancelled, wall_ms: None, asked: None }
    }

    /// A page of the listing has come.
    fn page_came(&mut self, page: EventPage, incarnation: u32) {
        self.note(format_args!("a page has {} events", page.events.len()));
        let wall_ms = self.node_wall_ms(incarnation);
        let Some(mut listing) = self.reader.listing.take() else { return };
        let clock = wall_ms.and(listing.wall_ms).zip(wall_ms);
        listing.asked = None;
        self.judge.listed(&mut listing, &page, clock);
        let is_told = self.options.bug != Some(Bug::MissingNotTold);
        for shard in page.missing.iter().copied().filter(|_| is_told) {
            let node = self.node.as_ref().filter(|_| incarnation == self.incarnation);
            if node.is_some_and(|node| node.is_whole(self.plan.shards)) {
                self.judge.breach(format!("{shard:?} is missing in a listing, and serves"));
            }
            self.counts.listings_without += 1;
            listing.missing.insert(shard);
        }
        if page.token.is_empty() {
            self.counts.listings += 1;
            self.note(format_args!("{} of {} events are listed", listing.seen.len(), listing.owed.len()));
            return self.judge.list_ended(&listing, wall_ms);
        }
        listing.list.token = page.token;
        self.reader.listing = Some(listing);
        if let Some(connection) = self.reader.connection
            && !self.reader.rng.one_in(4)
        {
            self.go_on_listing(connection, &[]);
        }
    }

    fn is_page(&self, asked: (u64, u64)) -> bool {
        self.reader.listing.as_ref().is_some_and(|listing| listing.asked == Some(asked))
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
            Received::QueryReply { request, answer: QueryAnswer::List(page) }
                if self.is_page((index, request)) =>
            {
                self.page_came(page, incarnation);
            }
            Received::Error { request, .. } if self.is_page((index, request)) => self.reader.listing = None,
            Received::QueryReply { request, answer } => {
                let Some(asked) = self.reader.asked.remove(&(index, request)) else {
                    return self.judge.breach(format!("an answer came to no question: {answer:?}"));
                };
                self.judge_answer(&asked, answer, incarnation);
            }
            // A shard that stops, or too many look-ups.
            Received::Error { request, .. } => drop(self.reader.asked.remove(&(index, request))),
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
