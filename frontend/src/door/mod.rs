//! Frames in, frames out: the protocol's state for every stream of one core.
//!
//! The door verifies each event once, cuts batches into one run for each shard, and keeps what each
//! stream still owes its peer: acknowledgements in the order of the items, replies by their request.
//! It knows neither QUIC nor the engine. The core hands it a stream's bytes, and implements [`Backend`]
//! for what must be asked of shards and sessions; answers come back by ticket.

mod admin;
mod change;
mod publish;
mod query;
mod stream;

use bytes::Bytes;
use hashbrown::HashMap;
use slab::Slab;

use escapement_protocol::frame::{
    AdminAnswer, AdminRequest, Credit, ErrorFrame, EventName, Frame, FrameWriter, GoAway, Hello, Items,
    Query, ResultItem, ShardMapInfo, Subscribe, Subscribed, Welcome,
};
use escapement_protocol::{
    EVENT_SIZE_BYTES_MAX, ErrorCode, EventId, FRAME_SIZE_BYTES_MAX, Now, PROTOCOL_VERSION, ShardId, TopicId,
    WallMs,
};

use publish::Publisher;
pub use publish::{Duplicate, PublishAnswer};
use stream::Stream;

/// Most requests of one stream that may wait for an answer.
const REQUESTS_MAX: usize = 1_024;

/// Bytes of answers to one stream in one turn from which on requests with large answers are refused.
const ANSWERS_SIZE_BYTES_MAX: usize = 1024 * 1024;

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which refusal.
    pub code: ErrorCode,
    /// For people: what is wrong, and what would be right.
    pub message: String,
    /// When the same may succeed, in ms; 0 where nothing is known of it.
    pub retry_after_ms: u32,
}

/// The peer broke the protocol: an error frame has been queued, and its connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What it did.
    pub code: ErrorCode,
    /// In words.
    pub message: String,
}

/// A session as the backend opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSession {
    /// What [`Backend::results`] and the others will be called with.
    pub session: u64,
    /// What the peer is told.
    pub subscribed: Subscribed,
}

/// What the door asks of the rest of the core. Tickets are answered once each, by
/// [`Door::published`], [`Door::cancelled`], [`Door::rescheduled`], [`Door::administered`], [`Door::answered`] or
/// [`Door::refused`].
pub trait Backend<S> {
    /// Events for one shard, verified, each padded to 8.
    fn publish(&mut self, ticket: u64, shard: ShardId, topic: TopicId, count: u32, events: &[u8]);
    /// The source of events of this topic that state none; empty where there is no such topic.
    fn default_source(&self, topic: TopicId) -> &str;
    /// Whether an event of this topic without an ordering key may go to any shard.
    fn may_move(&self, topic: TopicId) -> bool;
    /// Cancel an event.
    fn cancel(&mut self, ticket: u64, event: EventId);
    /// Ask a shard what is pending. It is one that the node has.
    fn query(&mut self, ticket: u64, query: Query);
    /// Cancel the event of a name, of which the source is filled in.
    fn cancel_by_name(&mut self, ticket: u64, shard: ShardId, topic: TopicId, name: &EventName<'_>);
    /// Give an event another due time, at once where it is past; where a version is given, only in that one.
    fn reschedule(&mut self, ticket: u64, event: EventId, due: WallMs, expected: Option<u64>);
    /// Create a control object.
    fn create(&mut self, ticket: u64, request: AdminRequest);
    /// Keep every shard's files as they are, for as long as `hold_ms`, the stream and [`Backend::end_snapshot`] allow.
    fn snapshot(&mut self, ticket: u64, stream: S, hold_ms: u64);
    /// End the snapshot of that number, and say whether the files were kept until now.
    fn end_snapshot(&mut self, ticket: u64, stream: S, snapshot: u64);
    /// Read control objects, as they are here and now.
    fn read(&mut self, request: &AdminRequest) -> Result<AdminAnswer, Refusal>;
    /// Attach a session to a subscription.
    fn attach(&mut self, stream: S, subscribe: &Subscribe<'_>) -> Result<OpenSession, Refusal>;
    /// Change a session's credit.
    fn credit(&mut self, session: u64, credit: Credit);
    /// Push nothing more to a session; its results are still taken.
    fn leave(&mut self, session: u64);
    /// A session ended. Where it had `left`, nothing of it runs any more; else its attempts may.
    fn end(&mut self, session: u64, left: bool);
    /// Results of attempts.
    fn results(&mut self, session: u64, results: Items<'_, ResultItem>);
}

/// What is the same for every peer of a node.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// The node's identity.
    pub node_id: u64,
    /// Shards, cores, and which has which.
    pub shard_map: ShardMapInfo,
}

enum Waiting<S> {
    Publish { stream: S, batch: u64, part: usize },
    Change { stream: S, request: u64, slot: usize },
    Admin { stream: S, request: u64 },
    Query { stream: S, request: u64, answer_size_bytes: usize },
}

/// The protocol's state on one core. `S` is the transport's name for a stream, and never names another one later.
pub struct Door<S> {
    config: DoorConfig,
    streams: HashMap<S, Stream>,
    opened_count: u64,
    waiting: Slab<Waiting<S>>,
    /// Streams with acknowledgements or frames to send.
    dirty: Vec<S>,
    writer: FrameWriter,
    draining: bool,
}

impl<S> std::fmt::Debug for Door<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("streams", &self.streams.len())
            .field("waiting", &self.waiting.len())
            .finish()
    }
}

impl<S: Copy + Eq + std::hash::Hash> Door<S> {
    /// A door without streams.
    #[must_use]
    pub fn new(config: DoorConfig) -> Self {
        Door {
            config,
            streams: HashMap::new(),
            opened_count: 0,
            waiting: Slab::new(),
            dirty: Vec::new(),
            writer: FrameWriter::new(),
            draining: false,
        }
    }

    /// A peer opened a stream.
    pub fn opened(&mut self, stream: S) {
        self.opened_count += 1;
        self.streams.insert(stream, Stream { number: self.opened_count, ..Stream::default() });
    }

    /// A stream ended, or its connection did.
    pub fn closed(&mut self, stream: S, backend: &mut impl Backend<S>) {
        if let Some(closed) = self.streams.remove(&stream)
            && let Some(session) = closed.session
        {
            backend.end(session, closed.left);
        }
    }

    /// The open streams that `which` names, in the order in which they were opened.
    pub fn streams_where(&self, which: impl Fn(&S) -> bool) -> Vec<S> {
        let named = self.streams.iter().filter(|(stream, _)| which(stream));
        let mut named: Vec<(u64, S)> = named.map(|(stream, state)| (state.number, *stream)).collect();
        named.sort_unstable_by_key(|(number, _)| *number);
        named.into_iter().map(|(_, stream)| stream).collect()
    }

    /// Whether the stream publishes, and so must wait while the log is behind.
    #[must_use]
    pub fn is_publisher(&self, stream: S) -> bool {
        self.streams.get(&stream).is_some_and(|s| s.publisher.is_some())
    }

    /// Whether so much of what the stream published waits for the disk that it must not be read now. Only
    /// what is read before the next look at this may come on top.
    #[must_use]
    pub fn is_behind(&self, stream: S) -> bool {
        let publisher = self.streams.get(&stream).and_then(|s| s.publisher.as_ref());
        publisher.is_some_and(|publisher| publisher.is_behind())
    }

    /// Takes the next bytes of a stream.
    ///
    /// # Errors
    /// The peer broke the protocol. The error frame that says so is queued on the stream.
    pub fn bytes(
        &mut self,
        now: Now,
        stream: S,
        bytes: &[u8],
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(()) };
        let mut decoder = std::mem::take(&mut state.decoder);
        let mut violation = None;
        let fed = decoder.feed(bytes, |frame| {
            if violation.is_none() {
                violation = self.frame(now, stream, frame, backend).err();
            }
            Ok(())
        });
        if violation.is_none()
            && let Err(error) = fed
        {
            violation = Some(Violation { code: error.code(), message: error.to_string() });
        }
        match violation {
            None => {
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.decoder = decoder;
                }
                Ok(())
            }
            Some(violation) => Err(self.violated(stream, violation)),
        }
    }

    /// The peer ended its side of a stream.
    ///
    /// # Errors
    /// It ended inside a frame. The error frame that says so is queued on the stream.
    pub fn finished(&mut self, stream: S) -> Result<(), Violation> {
        let Some(state) = self.streams.get(&stream) else { return Ok(()) };
        state.decoder.finish().map_err(|error| {
            self.violated(stream, Violation { code: error.code(), message: error.to_string() })
        })
    }

    fn violated(&mut self, stream: S, violation: Violation) -> Violation {
        let message = violation.message.clone();
        self.send_error(stream, 0, &Refusal { code: violation.code, message, retry_after_ms: 0 });
        violation
    }

    fn frame(
        &mut self,
        now: Now,
        stream: S,
        frame: Frame<'_>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        match frame {
            Frame::Hello(hello) => self.hello(now, stream, hello),
            Frame::PublishBatch(batch) => self.publish(now, stream, &batch, backend),
            Frame::Subscribe(subscribe) => self.subscribe(stream, &subscribe, backend),
            Frame::ResultBatch(batch) => {
                let session = self.session(stream, "results")?;
                backend.results(session, batch.results);
                Ok(())
            }
            Frame::Credit(credit) => {
                let session = self.session(stream, "credit")?;
                if self.streams.get(&stream).is_some_and(|s| s.left) {
                    return Err(malformed("credit came after a detach: open another session"));
                }
                // A drain has taken the credit, and nothing brings it back.
                if !self.draining {
                    backend.credit(session, credit);
                }
                Ok(())
            }
            Frame::Detach => {
                let session = self.session(stream, "a detach")?;
                backend.leave(session);
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.left = true;
                }
                self.send(stream, &Frame::Detached);
                Ok(())
            }
            Frame::Cancel(cancel) => self.cancel(stream, &cancel, backend),
            Frame::CancelByName(cancel) => self.cancel_by_name(stream, &cancel, backend),
            Frame::Reschedule(reschedule) => self.reschedule(now, stream, &reschedule, backend),
            Frame::Admin { request: 0, .. } => Err(malformed(REQUEST_ZERO)),
            Frame::Admin { request, body } => {
                self.admin(stream, request, body, backend);
                Ok(())
            }
            Frame::Query { request: 0, .. } => Err(malformed(REQUEST_ZERO)),
            Frame::Query { request, query } => {
                self.query(stream, request, query, backend);
                Ok(())
            }
            other => {
                Err(malformed(format!("{} is a frame that nodes send, not clients", other.kind().name())))
            }
        }
    }

    fn hello(&mut self, now: Now, stream: S, hello: Hello<'_>) -> Result<(), Violation> {
        if hello.version != PROTOCOL_VERSION {
            let message = format!(
                "this node speaks version {PROTOCOL_VERSION}, not {}: use a matching client",
                hello.version
            );
            return Err(Violation { code: ErrorCode::UnsupportedVersion, message });
        }
        if self.streams.get_mut(&stream).is_some_and(|s| std::mem::replace(&mut s.greeted, true)) {
            return Err(malformed("a second Hello came on one stream"));
        }
        let map = self.config.shard_map.clone();
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            node_id: self.config.node_id,
            epoch: map.epoch,
            shard_count: map.shard_count,
            core_count: map.core_count,
            shards: Items::from(map.shards.as_slice()),
            event_size_bytes_max: EVENT_SIZE_BYTES_MAX as u32,
            frame_size_bytes_max: FRAME_SIZE_BYTES_MAX as u32,
            wall: now.wall,
        };
        self.send(stream, &Frame::Welcome(welcome));
        if self.draining {
            self.send(stream, &Frame::GoAway(GoAway { message: DRAINING }));
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        stream: S,
        subscribe: &Subscribe<'_>,
        backend: &mut impl Backend<S>,
    ) -> Result<(), Violation> {
        if self.streams.get(&stream).is_some_and(|s| s.session.is_some()) {
            return Err(malformed(
                "this stream has a session already: open another stream for another session",
            ));
        }
        if self.draining {
            self.send_error(stream, 0, &unavailable());
            return Ok(());
        }
        match backend.attach(stream, subscribe) {
            Ok(opened) => {
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.session = Some(opened.session);
                }
                self.send(stream, &Frame::Subscribed(opened.subscribed));
            }
            Err(refusal) => self.send_error(stream, 0, &refusal),
        }
        Ok(())
    }

    fn session(&self, stream: S, what: &str) -> Result<u64, Violation> {
        self.streams.get(&stream).and_then(|s| s.session).ok_or_else(|| {
            malformed(format!("{what} came on a stream without a session: send Subscribe first"))
        })
    }

    /// A refusal for a ticket.
    pub fn refused(&mut self, ticket: u64, refusal: &Refusal) {
        match self.waiting.get(ticket as usize) {
            Some(Waiting::Publish { .. }) => self.published(ticket, PublishAnswer::Refused(refusal.clone())),
            Some(Waiting::Change { .. }) => self.change_refused(ticket, refusal.clone()),
            Some(Waiting::Admin { stream, request }) => {
                let (stream, request) = (*stream, *request);
                self.waiting.remove(ticket as usize);
                if let Some(state) = self.streams.get_mut(&stream) {
                    state.requests -= 1;
                }
                self.send_error(stream, request, refusal);
            }
            Some(Waiting::Query { .. }) => self.query_answered(ticket, Err(refusal)),
            None => {}
        }
    }

    /// Stops intake: publishes and new sessions are refused, peers are told to go elsewhere.
    pub fn drain(&mut self) {
        self.draining = true;
        for stream in self.streams_where(|_| true) {
            self.send(stream, &Frame::GoAway(GoAway { message: DRAINING }));
        }
    }

    /// A shard is out of service from now on.
    pub fn shard_out(&mut self, shard: ShardId) {
        self.config.shard_map.shards.retain(|held| held.shard != shard);
    }

    /// A session has ended by the node's doing: the stream is told why, and gets no other.
    pub fn session_lost(&mut self, stream: S, refusal: &Refusal) {
        self.send_error(stream, 0, refusal);
    }

    /// Tickets without an answer yet.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    fn mark(&mut self, stream: S) {
        if let Some(state) = self.streams.get_mut(&stream)
            && !state.dirty
        {
            state.dirty = true;
            self.dirty.push(stream);
        }
    }

    fn send(&mut self, stream: S, frame: &Frame<'_>) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        self.writer.write(frame, &mut state.out).expect("a node's own frames are within limits");
        self.mark(stream);
    }

    fn send_error(&mut self, stream: S, request: u64, refusal: &Refusal) {
        let code = refusal.code as u16;
        let Refusal { message, retry_after_ms, .. } = refusal;
        self.send(
            stream,
            &Frame::Error(ErrorFrame { request, code, retry_after_ms: *retry_after_ms, message }),
        );
    }

    /// Hands over what each stream has to send, acknowledgements first. Call once a turn.
    pub fn flush(&mut self, mut write: impl FnMut(S, Bytes)) {
        for stream in std::mem::take(&mut self.dirty) {
            let Some(state) = self.streams.get_mut(&stream) else { continue };
            state.dirty = false;
            if let Some(publisher) = &mut state.publisher {
                publisher.write_ack(&mut state.out);
            }
            if !state.out.is_empty() {
                write(stream, Bytes::from(std::mem::take(&mut state.out)));
            }
        }
    }
}

const DRAINING: &str =
    "the node is stopping: publish elsewhere or later, and send the results you still have";

const REQUEST_ZERO: &str = "request 0 is reserved for the stream itself: number requests from 1";

fn malformed(message: impl Into<String>) -> Violation {
    Violation { code: ErrorCode::MalformedFrame, message: message.into() }
}

fn refusal(code: ErrorCode, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), retry_after_ms: 0 }
}

fn unavailable() -> Refusal {
    Refusal { code: ErrorCode::Unavailable, message: DRAINING.into(), retry_after_ms: 1_000 }
}

fn too_many() -> Refusal {
    Refusal {
        code: ErrorCode::TooManyRequests,
        message: format!("a stream may have {REQUESTS_MAX} requests waiting: wait for answers first"),
        retry_after_ms: 10,
    }
}
