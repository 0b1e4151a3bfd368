//! The door, driven by hand: no QUIC, and a backend that only writes down what it is asked.

mod requests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use escapement_frontend::door::{
    Backend, Door, DoorConfig, Duplicate, OpenSession, PublishAnswer, Refusal, Violation,
};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    Accepted, AckException, AckItem, AdminAnswer, AdminRequest, Cancel, CancelByName, CancelReply,
    CancelVerdict, Credit, EventName, EventPage, Events, Frame, FrameDecoder, FrameWriter, GoAway, GroupAct,
    GroupAnswer, GroupOperation, GroupVerdict, Hello, Items, ListEvents, Page, PageToken, PublishBatch,
    Query, QueryAnswer, Reschedule, RescheduleReply, RescheduleVerdict, ResultBatch, ResultItem, ShardCore,
    ShardMapInfo, Subscribe, Subscribed, TaskState, TopicInfo, TopicList,
};
use escapement_protocol::ids::shard_of;
use escapement_protocol::settings::TopicSettings;
use escapement_protocol::{
    AttemptResult, DELAY_MS_MAX, Epoch, ErrorCode, EventId, EventSpec, MonoNs, Now, Sequence, ShardId,
    SubscriptionId, Tag, TopicId, WallMs,
};

const SHARDS: u16 = 4;
const TOPIC: TopicId = TopicId(7);
const NOW: Now = Now { mono: MonoNs(1), wall: WallMs(1_800_000_000_000) };

#[derive(Debug, PartialEq)]
enum Asked {
    Publish { ticket: u64, shard: ShardId, topic: TopicId, count: u32, events: Vec<u8> },
    Cancel { ticket: u64, event: EventId },
    Query { ticket: u64, query: Query },
    CancelByName { ticket: u64, shard: ShardId, source: String, id: String },
    Reschedule { ticket: u64, event: EventId, due: WallMs, expected: Option<u64> },
    Create { ticket: u64, request: AdminRequest },
    Snapshot { ticket: u64, stream: u32, hold_ms: u64 },
    EndSnapshot { ticket: u64, stream: u32, snapshot: u64 },
    Credit { session: u64, credit: Credit },
    Leave { session: u64 },
    End { session: u64, left: bool },
    Results { session: u64, tags: Vec<u64> },
}

/// Writes down what it is asked. Answers reads with one long page, and attaches to "s" only.
#[derive(Default)]
struct Asking {
    asked: VecDeque<Asked>,
    may_move: bool,
}

impl Backend<u32> for Asking {
    fn publish(&mut self, ticket: u64, shard: ShardId, topic: TopicId, count: u32, events: &[u8]) {
        self.asked.push_back(Asked::Publish { ticket, shard, topic, count, events: events.to_vec() });
    }

    fn query(&mut self, ticket: u64, query: Query) {
        self.asked.push_back(Asked::Query { ticket, query });
    }

    fn default_source(&self, _: TopicId) -> &str {
        "/default"
    }

    fn may_move(&self, _: TopicId) -> bool {
        self.may_move
    }

    fn cancel(&mut self, ticket: u64, event: EventId) {
        self.asked.push_back(Asked::Cancel { ticket, event });
    }

    fn cancel_by_name(&mut self, ticket: u64, shard: ShardId, topic: TopicId, name: &EventName<'_>) {
        assert_eq!((topic, name.ordering_key), (TOPIC, &b""[..]));
        let (source, id) = (name.source.to_owned(), name.id.to_owned());
        self.asked.push_back(Asked::CancelByName { ticket, shard, source, id });
    }

    fn reschedule(&mut self, ticket: u64, event: EventId, due: WallMs, expected: Option<u64>) {
        self.asked.push_back(Asked::Reschedule { ticket, event, due, expected });
    }

    fn create(&mut self, ticket: u64, request: AdminRequest) {
        self.asked.push_back(Asked::Create { ticket, request });
    }

    fn snapshot(&mut self, ticket: u64, stream: u32, hold_ms: u64) {
        self.asked.push_back(Asked::Snapshot { ticket, stream, hold_ms });
    }

    fn end_snapshot(&mut self, ticket: u64, stream: u32, snapshot: u64) {
        self.asked.push_back(Asked::EndSnapshot { ticket, stream, snapshot });
    }

    fn read(&mut self, request: &AdminRequest) -> Result<AdminAnswer, Refusal> {
        match request {
            AdminRequest::GetTopic { .. } => Err(refusal(ErrorCode::UnknownTopic)),
            _ => {
                let settings = TopicSettings { name: "n".repeat(128), ..TopicSettings::default() };
                let topics = (1..=400).map(|n| TopicInfo {
                    topic: TopicId(n),
                    version: n,
                    settings: settings.clone(),
                });
                Ok(AdminAnswer::Topics(TopicList { topics: topics.collect(), more: false }))
            }
        }
    }

    fn attach(&mut self, stream: u32, subscribe: &Subscribe<'_>) -> Result<OpenSession, Refusal> {
        if subscribe.subscription != "s" {
            return Err(refusal(ErrorCode::UnknownSubscription));
        }
        let session = u64::from(stream) + 100;
        let subscribed = Subscribed { subscription: SubscriptionId(1), session_id: session, epoch: Epoch(3) };
        Ok(OpenSession { session, subscribed })
    }

    fn credit(&mut self, session: u64, credit: Credit) {
        self.asked.push_back(Asked::Credit { session, credit });
    }

    fn leave(&mut self, session: u64) {
        self.asked.push_back(Asked::Leave { session });
    }

    fn end(&mut self, session: u64, left: bool) {
        self.asked.push_back(Asked::End { session, left });
    }

    fn results(&mut self, session: u64, results: Items<'_, ResultItem>) {
        let tags = results.iter().map(|item| item.tag.0).collect();
        self.asked.push_back(Asked::Results { session, tags });
    }
}

fn refusal(code: ErrorCode) -> Refusal {
    Refusal { code, message: "because".into(), retry_after_ms: 30 }
}

fn accepted(first: u64, count: u32, rest: Option<Refusal>) -> PublishAnswer {
    PublishAnswer::Accepted {
        first_sequence: Sequence(first),
        count,
        accepted: NOW.wall,
        rest,
        duplicates: Vec::new(),
    }
}

struct Peer {
    door: Door<u32>,
    backend: Asking,
    writer: FrameWriter,
}

impl Peer {
    fn new(shard_count: u16) -> Peer {
        let shards = (0..shard_count).map(|shard| ShardCore { shard: ShardId(shard), core: 0 }).collect();
        let shard_map = ShardMapInfo { epoch: Epoch(3), shard_count, core_count: 1, shards };
        let mut door = Door::new(DoorConfig { node_id: 5, shard_map });
        door.opened(0);
        Peer { door, backend: Asking::default(), writer: FrameWriter::new() }
    }

    fn bytes_of(&mut self, frame: &Frame<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.writer.write(frame, &mut bytes).expect("a frame");
        bytes
    }

    fn feed(&mut self, stream: u32, bytes: &[u8]) -> Result<(), Violation> {
        self.door.bytes(NOW, stream, bytes, &mut self.backend)
    }

    fn send(&mut self, stream: u32, frame: &Frame<'_>) -> Result<(), Violation> {
        let bytes = self.bytes_of(frame);
        self.feed(stream, &bytes)
    }

    fn asked(&mut self) -> Asked {
        self.backend.asked.pop_front().expect("something was asked")
    }

    /// What the door writes now, stream by stream.
    fn written(&mut self) -> Vec<(u32, Vec<u8>)> {
        let mut all = Vec::new();
        self.door.flush(|stream, bytes| all.push((stream, bytes.to_vec())));
        all
    }

    /// The frames that the door writes now, each as its debug text.
    fn frames(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        for (_, bytes) in self.written() {
            each_frame(&bytes, |frame| frames.push(format!("{frame:?}")));
        }
        frames
    }

    /// Request and code of the only frame that the door writes now: an error.
    fn error(&mut self) -> (u64, ErrorCode) {
        let mut errors = Vec::new();
        for (_, bytes) in self.written() {
            each_frame(&bytes, |frame| match frame {
                Frame::Error(error) => {
                    errors.push((error.request, error.error_code().expect("a known code")));
                }
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors[0]
    }

    /// Feeds a frame that breaks the protocol; answers its code, which the peer is told too.
    fn violates(&mut self, frame: &Frame<'_>) -> ErrorCode {
        let violation = self.send(0, frame).expect_err("refused");
        assert_eq!(self.error(), (0, violation.code));
        violation.code
    }

    fn batch(&mut self, first_item: u64, events: &[Vec<u8>]) -> Result<(), Violation> {
        let bytes = events.concat();
        let batch = PublishBatch::new(TOPIC, first_item, &bytes, events.len() as u32).expect("a batch");
        self.send(0, &Frame::PublishBatch(batch))
    }

    /// The items that the acknowledgements written now answer, given the first that waits.
    fn acks(&mut self, waiting_from: &mut u64, sent: u64) -> Vec<AckItem> {
        let mut items = Vec::new();
        for (stream, bytes) in self.written() {
            assert_eq!(stream, 0);
            each_frame(&bytes, |frame| match frame {
                Frame::PublishAck(ack) => {
                    items.extend(ack.items(*waiting_from..sent).expect("it answers what waits"));
                    *waiting_from = ack.through_item;
                }
                other => panic!("{other:?}"),
            });
        }
        items
    }
}

fn each_frame(bytes: &[u8], mut take: impl FnMut(Frame<'_>)) {
    let mut decoder = FrameDecoder::new();
    decoder
        .feed(bytes, |frame| {
            take(frame);
            Ok(())
        })
        .expect("whole frames");
    assert_eq!(decoder.finish(), Ok(()));
}

fn event(id: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    EventSpec::new(Due::After(5), id, b"data").encode(&mut bytes).expect("valid");
    bytes
}

/// An event whose length is right and whose format is not.
fn faulty(id: &str) -> Vec<u8> {
    let mut bytes = event(id);
    bytes[4] = 99;
    bytes
}

fn subscribe<'a>(subscription: &'a str) -> Frame<'a> {
    let credit = Credit { tasks: 10, bytes: 1_000 };
    Frame::Subscribe(Subscribe { subscription, credit, host: 1, running: Items::default() })
}

#[derive(Clone, Debug)]
enum Op {
    Batch {
        ids: Vec<(u16, bool)>,
    },
    /// Answers one of the waiting tickets: so many of its events are accepted.
    Answer {
        pick: usize,
        share: u32,
    },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => proptest::collection::vec((any::<u16>(), prop::bool::weighted(0.1)), 1..12).prop_map(|ids| Op::Batch { ids }),
        1 => any::<u16>().prop_map(|id| Op::Batch { ids: vec![(id, false); 5] }),
        5 => (any::<usize>(), 0..16u32).prop_map(|(pick, share)| Op::Answer { pick, share }),
        2 => Just(Op::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The model keeps an answer for each item; the door's acknowledgements must say the same, in order, and only
    /// of items all of whose predecessors are answered.
    #[test]
    fn acknowledgements_answer_every_item_once_and_in_order(ops in proptest::collection::vec(op(), 1..60)) {
        let mut peer = Peer::new(SHARDS);
        let mut sent = 0;
        let mut next_sequence = [1_u64; SHARDS as usize];
        // Items of each ticket, and the answer of each item that has one.
        let mut tickets: Vec<(u64, ShardId, Vec<u64>)> = Vec::new();
        let mut answers: BTreeMap<u64, Result<(ShardId, Sequence), u16>> = BTreeMap::new();
        let mut acked = 0;
        let drain = Op::Flush;
        let mut ops: VecDeque<Op> = ops.into();
        loop {
            let op = match ops.pop_front() {
                Some(op) => op,
                None if !tickets.is_empty() => Op::Answer { pick: 3, share: 16 },
                None => drain.clone(),
            };
            let is_last = ops.is_empty() && tickets.is_empty();
            match op {
                Op::Batch { ids } => {
                    let ids: Vec<_> = ids.into_iter().map(|(id, bad)| (format!("id-{id}"), bad)).collect();
                    let events: Vec<_> =
                        ids.iter().map(|(id, bad)| if *bad { faulty(id) } else { event(id) }).collect();
                    prop_assert_eq!(peer.batch(sent, &events), Ok(()));
                    let mut runs: BTreeMap<ShardId, Vec<u64>> = BTreeMap::new();
                    for (item, (id, bad)) in (sent..).zip(&ids) {
                        if *bad {
                            answers.insert(item, Err(ErrorCode::MalformedEvent as u16));
                        } else {
                            let shard = shard_of(TOPIC, b"", b"", id.as_bytes(), SHARDS);
                            runs.entry(shard).or_default().push(item);
                        }
                    }
                    while let Some(asked) = peer.backend.asked.pop_front() {
                        let Asked::Publish { ticket, shard, topic: TOPIC, count, events: bytes } = asked else { panic!("{asked:?}") };
                        let items = runs.remove(&shard).expect("one run for each shard");
                        prop_assert_eq!(count as usize, items.len());
                        let expected: Vec<u8> =
                            items.iter().flat_map(|item| events[(item - sent) as usize].clone()).collect();
                        prop_assert_eq!(bytes, expected);
                        tickets.push((ticket, shard, items));
                    }
                    prop_assert!(runs.is_empty());
                    sent += ids.len() as u64;
                }
                Op::Answer { pick, share } if !tickets.is_empty() => {
                    let (ticket, shard, items) = tickets.swap_remove(pick % tickets.len());
                    let count = (items.len() as u32 * share).div_ceil(16);
                    let rest = ((count as usize) < items.len()).then(|| refusal(ErrorCode::ResourceExhausted));
                    let next = &mut next_sequence[usize::from(shard.0)];
                    for (n, item) in items.into_iter().enumerate() {
                        let answer = if n < count as usize {
                            Ok((shard, Sequence(*next + n as u64)))
                        } else {
                            Err(ErrorCode::ResourceExhausted as u16)
                        };
                        answers.insert(item, answer);
                    }
                    match (count, rest) {
                        (0, Some(refusal)) => peer.door.refused(ticket, &refusal),
                        (count, rest) => peer.door.published(ticket, accepted(*next, count, rest)),
                    }
                    *next += u64::from(count);
                }
                Op::Answer { .. } => {}
                Op::Flush => {
                    let from = acked;
                    for (item, ack) in (from..).zip(peer.acks(&mut acked, sent)) {
                        prop_assert_eq!(ack.item, item);
                        let got = ack.answer.map(|a| (a.shard, a.sequence)).map_err(|e: AckException| e.code);
                        prop_assert_eq!(Some(&got), answers.get(&item));
                    }
                    if is_last {
                        break;
                    }
                }
            }
        }
        prop_assert_eq!(acked, sent);
        prop_assert_eq!(peer.door.waiting_count(), 0);
    }

    #[test]
    fn no_bytes_make_the_door_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0..400usize) {
        let mut peer = Peer::new(SHARDS);
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        if peer.feed(0, head).is_ok() {
            let _ = peer.feed(0, tail);
        }
        peer.written();
    }

    #[test]
    fn no_changed_byte_of_good_frames_makes_the_door_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut peer = Peer::new(SHARDS);
        let events = [event("a"), event("b")].concat();
        let batch = PublishBatch::new(TOPIC, 0, &events, 2).expect("a batch");
        let cancels = [EventId { shard: ShardId(1), sequence: Sequence(4), schedule_time_ms: 9 }];
        let cancel = Cancel { request: 3, events: Items::from(cancels.as_slice()) };
        let frames = [Frame::PublishBatch(batch), subscribe("s"), Frame::Cancel(cancel), Frame::Detach];
        let mut bytes: Vec<u8> = frames.iter().flat_map(|frame| peer.bytes_of(frame)).collect();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = peer.feed(0, &bytes);
        peer.written();
        peer.door.closed(0, &mut peer.backend);
        while let Some(asked) = peer.backend.asked.pop_front() {
            match asked {
                Asked::Publish { ticket, count, .. } => peer.door.published(ticket, accepted(1, count, None)),
                Asked::Cancel { ticket, .. } => peer.door.cancelled(ticket, CancelVerdict::Cancelled),
                Asked::Query { ticket, .. } => peer.door.answered(ticket, QueryAnswer::Event(None)),
                Asked::Create { ticket, .. } => peer.door.refused(ticket, &refusal(ErrorCode::Unavailable)),
                _ => {}
            }
        }
        prop_assert_eq!(peer.door.waiting_count(), 0);
    }
}

#[test]
fn hello_is_answered_with_the_shard_map_and_only_once() {
    let mut peer = Peer::new(SHARDS);
    let hello = Frame::Hello(Hello { version: 1, client: "test" });
    assert_eq!(peer.send(0, &hello), Ok(()));
    let mut welcomed = 0;
    for (_, bytes) in peer.written() {
        each_frame(&bytes, |frame| match frame {
            Frame::Welcome(welcome) => {
                assert_eq!((welcome.node_id, welcome.shard_count, welcome.wall), (5, SHARDS, NOW.wall));
                assert_eq!(welcome.shards.len(), usize::from(SHARDS));
                welcomed += 1;
            }
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(welcomed, 1);
    assert_eq!(peer.violates(&hello), ErrorCode::MalformedFrame);
    let mut peer = Peer::new(SHARDS);
    let hello = Frame::Hello(Hello { version: 2, client: "test" });
    assert_eq!(peer.violates(&hello), ErrorCode::UnsupportedVersion);
}

#[test]
fn each_broken_rule_has_its_code() {
    let two = [event("a"), event("b")].concat();
    let batch = |first_item, bytes, count| {
        Frame::PublishBatch(PublishBatch {
            topic: TOPIC,
            first_item,
            events: Events::new(bytes, count).expect("events"),
        })
    };
    let result = [ResultItem { tag: Tag(1), retry_after_ms: 0, result: AttemptResult::Success }];
    let broken = [
        batch(1, &two, 2),
        batch(0, &[], 0),
        Frame::ResultBatch(ResultBatch { results: Items::from(result.as_slice()) }),
        Frame::Credit(Credit { tasks: 1, bytes: 1 }),
        Frame::Detach,
        Frame::Detached,
        Frame::GoAway(GoAway { message: "" }),
        Frame::Cancel(Cancel { request: 0, events: Items::default() }),
        Frame::Admin { request: 0, body: AdminRequest::ShardMap },
    ];
    for frame in broken {
        let mut peer = Peer::new(SHARDS);
        assert_eq!(peer.violates(&frame), ErrorCode::MalformedFrame, "{frame:?}");
        assert_eq!(peer.backend.asked, []);
    }
    let raw: [(&[u8], ErrorCode); 4] = [
        (&[12, 0, 0, 0, 1, 9, 0, 0], ErrorCode::UnsupportedVersion),
        (&[12, 0, 0, 0, 200, 1, 0, 0], ErrorCode::UnknownFrame),
        (&[0xff, 0xff, 0xff, 0xff, 1, 1, 0, 0], ErrorCode::FrameLength),
        (&[12, 0, 0, 0, 1, 1, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], ErrorCode::MalformedFrame),
    ];
    for (bytes, code) in raw {
        let mut peer = Peer::new(SHARDS);
        assert_eq!(peer.feed(0, bytes).map_err(|violation| violation.code), Err(code));
        assert_eq!(peer.error(), (0, code));
    }
}

#[test]
fn items_are_numbered_without_a_gap_over_batches() {
    let mut peer = Peer::new(1);
    assert_eq!(peer.batch(0, &[event("a"), event("b")]), Ok(()));
    assert_eq!(peer.batch(2, &[event("c")]), Ok(()));
    let violation = peer.batch(4, &[event("e")]).expect_err("item 3 is next");
    assert_eq!(violation.code, ErrorCode::MalformedFrame);
}

fn duplicate(index: u32, sequence: u64) -> Duplicate {
    let (schedule_time, accepted) = (WallMs(90 + sequence), WallMs(sequence));
    Duplicate { index, sequence: Sequence(sequence), schedule_time, accepted }
}

fn answered(first: u64, count: u32, rest: Option<Refusal>, duplicates: Vec<Duplicate>) -> PublishAnswer {
    PublishAnswer::Accepted { first_sequence: Sequence(first), count, accepted: NOW.wall, rest, duplicates }
}

#[test]
fn duplicates_are_acknowledged_with_the_receipt_of_the_first() {
    let mut peer = Peer::new(1);
    let events: Vec<_> = (0..7).map(|n| event(&format!("{n}"))).collect();
    assert_eq!(peer.batch(0, &events), Ok(()));
    let Asked::Publish { ticket, .. } = peer.asked() else { panic!() };
    let duplicates = vec![duplicate(0, 5), duplicate(3, 9), duplicate(4, 10)];
    peer.door.published(ticket, answered(70, 6, Some(refusal(ErrorCode::ResourceExhausted)), duplicates));
    let answers: Vec<_> = peer.acks(&mut 0, 7).into_iter().map(|item| item.answer).collect();
    let accepted = |answer: &Result<Accepted, AckException>| {
        answer.map(|a| (a.sequence.0, a.accepted.0, a.duplicate.map_or(0, |at| at.0))).unwrap_or_default()
    };
    let now = NOW.wall.0;
    let expected =
        [(5, 5, 95), (70, now, 0), (71, now, 0), (9, 9, 99), (10, 10, 100), (72, now, 0), (0, 0, 0)];
    assert_eq!(answers.iter().map(accepted).collect::<Vec<_>>(), expected);
}

#[test]
fn duplicates_of_events_that_went_to_several_shards_keep_their_items() {
    let mut peer = Peer::new(SHARDS);
    let events: Vec<_> = (0..20).map(|n| event(&format!("{n}"))).collect();
    assert_eq!(peer.batch(0, &events), Ok(()));
    while let Some(Asked::Publish { ticket, count, .. }) = peer.backend.asked.pop_front() {
        // All but the first of each shard.
        let duplicates = (1..count).map(|index| duplicate(index, 100 + u64::from(index))).collect();
        peer.door.published(ticket, answered(1, count, None, duplicates));
    }
    let mut seen = BTreeMap::<ShardId, u64>::new();
    for item in peer.acks(&mut 0, 20) {
        let accepted = item.answer.expect("accepted");
        let index = seen.entry(accepted.shard).or_default();
        let expected = if *index == 0 { 1 } else { 100 + *index };
        assert_eq!(accepted.sequence.0, expected, "{item:?}");
        assert_eq!(accepted.duplicate.is_some(), *index > 0);
        *index += 1;
    }
}

#[test]
fn acknowledgements_of_nothing_but_duplicates_fit_their_frames() {
    let mut peer = Peer::new(1);
    let one = event("a");
    let count = escapement_protocol::frame::BATCH_COUNT_MAX;
    let bytes = one.repeat(count as usize);
    let mut first_item = 0;
    for _ in 0..3 {
        let batch = PublishBatch::new(TOPIC, first_item, &bytes, count).expect("a batch");
        peer.send(0, &Frame::PublishBatch(batch)).expect("a sound batch");
        first_item += u64::from(count);
        let Asked::Publish { ticket, .. } = peer.asked() else { panic!() };
        // No two of them one run.
        let duplicates = (0..count).map(|index| duplicate(index, u64::from(2 * index + 1))).collect();
        peer.door.published(ticket, answered(1, count, None, duplicates));
    }
    assert_eq!(peer.acks(&mut 0, first_item).len() as u64, first_item);
}

#[test]
fn an_event_that_states_its_topics_source_goes_where_one_without_goes() {
    let mut peer = Peer::new(SHARDS);
    let of = |source: &str, id: &str| {
        let mut bytes = Vec::new();
        EventSpec { source, ..EventSpec::new(Due::After(5), id, b"") }.encode(&mut bytes).expect("valid");
        bytes
    };
    for n in 0..20 {
        let id = format!("{n}");
        let first_item = 3 * n;
        for (item, source) in (first_item..).zip(["", "/default", "/other"]) {
            assert_eq!(peer.batch(item, &[of(source, &id)]), Ok(()));
        }
        let shards = [0; 3].map(|_| match peer.asked() {
            Asked::Publish { shard, .. } => shard,
            other => panic!("{other:?}"),
        });
        assert_eq!(shards[0], shards[1]);
        assert_eq!(shards[2], shard_of(TOPIC, b"", b"/other", id.as_bytes(), SHARDS));
    }
}

#[test]
fn cancellations_by_name_go_where_the_events_went_and_are_answered_in_order() {
    let mut peer = Peer::new(SHARDS);
    let names: Vec<_> =
        ["", "/default", "/other"].map(|source| EventName { source, id: "a", ..EventName::default() }).into();
    let cancel = |request, names| Frame::CancelByName(CancelByName { request, topic: TOPIC, names });
    peer.send(0, &cancel(9, names)).expect("a sound request");
    let mut tickets = Vec::new();
    for source in ["/default", "/default", "/other"] {
        let routed = if source == "/default" { "" } else { source };
        let Asked::CancelByName { ticket, shard, source: asked, id } = peer.asked() else { panic!() };
        assert_eq!((asked.as_str(), id.as_str()), (source, "a"));
        assert_eq!(shard, shard_of(TOPIC, b"", routed.as_bytes(), b"a", SHARDS));
        tickets.push(ticket);
    }
    for (ticket, verdict) in tickets.into_iter().zip([CancelVerdict::Cancelled, CancelVerdict::NotFound]) {
        peer.door.cancelled(ticket, verdict);
        assert_eq!(peer.written(), [], "one is missing");
    }
    let last = peer.door.waiting_count();
    assert_eq!(last, 1);
    peer.send(0, &cancel(8, Vec::new())).expect("a sound request");
    assert_eq!(peer.frames().len(), 1, "nothing to wait for");
    assert_eq!(peer.violates(&cancel(9, Vec::new())), ErrorCode::MalformedFrame, "sent again");
    let mut peer = Peer::new(SHARDS);
    let many = vec![EventName { id: "a", ..EventName::default() }; 1_025];
    peer.send(0, &cancel(1, many)).expect("refused in a reply");
    assert_eq!(peer.error(), (1, ErrorCode::TooManyRequests));
}

#[test]
fn frames_after_a_violation_are_not_taken() {
    let mut peer = Peer::new(1);
    let mut bytes = peer.bytes_of(&Frame::Detach);
    let events = event("a");
    let batch = Frame::PublishBatch(PublishBatch::new(TOPIC, 0, &events, 1).expect("a batch"));
    bytes.extend(peer.bytes_of(&batch));
    assert!(peer.feed(0, &bytes).is_err());
    assert_eq!(peer.backend.asked, []);
}

#[test]
fn a_stream_far_ahead_of_the_disk_is_behind_until_it_is_answered() {
    let mut peer = Peer::new(1);
    let mut tickets = Vec::new();
    let mut item = 0;
    while !peer.door.is_behind(0) {
        assert_eq!(peer.batch(item, &[event("a")]), Ok(()));
        item += 1;
        match peer.asked() {
            Asked::Publish { ticket, .. } => tickets.push(ticket),
            other => panic!("{other:?}"),
        }
        assert!(item <= 100_000);
    }
    peer.door.published(tickets[0], accepted(1, 1, None));
    assert_eq!(peer.acks(&mut 0, item).len(), 1);
    assert!(!peer.door.is_behind(0));
}

#[test]
fn a_session_is_opened_used_left_and_ended() {
    let mut peer = Peer::new(2);
    assert_eq!(peer.send(0, &subscribe("nobody")), Ok(()));
    assert_eq!(peer.error(), (0, ErrorCode::UnknownSubscription));
    assert_eq!(peer.send(0, &subscribe("s")), Ok(()));
    assert_eq!(peer.frames().len(), 1);
    let credit = Credit { tasks: 3, bytes: 4 };
    assert_eq!(peer.send(0, &Frame::Credit(credit)), Ok(()));
    assert_eq!(peer.asked(), Asked::Credit { session: 100, credit });
    assert_eq!(peer.send(0, &Frame::Detach), Ok(()));
    assert_eq!(peer.asked(), Asked::Leave { session: 100 });
    assert_eq!(peer.frames(), [format!("{:?}", Frame::Detached)]);
    let result = [ResultItem { tag: Tag(6), retry_after_ms: 0, result: AttemptResult::Success }];
    let results = Items::from(result.as_slice());
    assert_eq!(peer.send(0, &Frame::ResultBatch(ResultBatch { results })), Ok(()));
    assert_eq!(peer.asked(), Asked::Results { session: 100, tags: vec![6] });
    assert_eq!(peer.violates(&Frame::Credit(credit)), ErrorCode::MalformedFrame, "it has left");
    peer.door.closed(0, &mut peer.backend);
    assert_eq!(peer.asked(), Asked::End { session: 100, left: true });
    assert_eq!(peer.door.streams_where(|_| true), []);
}

#[test]
fn one_stream_has_one_session() {
    let mut peer = Peer::new(2);
    assert_eq!(peer.send(0, &subscribe("s")), Ok(()));
    peer.written();
    assert_eq!(peer.violates(&subscribe("s")), ErrorCode::MalformedFrame);
    peer.door.closed(0, &mut peer.backend);
    assert_eq!(peer.asked(), Asked::End { session: 100, left: false });
}

#[test]
fn a_drain_refuses_what_is_new_and_finishes_what_is_there() {
    let mut peer = Peer::new(1);
    for stream in 1..=20 {
        peer.door.opened(stream);
    }
    assert_eq!(peer.send(1, &subscribe("s")), Ok(()));
    assert_eq!(peer.batch(0, &[event("a")]), Ok(()));
    let Asked::Publish { ticket, .. } = peer.asked() else { panic!("a publish") };
    peer.written();
    peer.door.drain();
    let told: Vec<u32> = peer.written().into_iter().map(|(stream, _)| stream).collect();
    assert_eq!(told, (0..=20).collect::<Vec<_>>(), "in the order in which they were opened");

    assert_eq!(peer.batch(1, &[event("b"), event("c")]), Ok(()));
    assert_eq!(peer.send(1, &Frame::Credit(Credit { tasks: 9, bytes: 9 })), Ok(()));
    assert_eq!(peer.backend.asked, [], "no intake, and no more pushes");
    peer.door.published(ticket, accepted(1, 1, None));
    let answers: Vec<_> =
        peer.acks(&mut 0, 3).into_iter().map(|item| item.answer.map_err(|e| e.code)).collect();
    assert!(answers[0].is_ok());
    assert_eq!(answers[1..], [Err(ErrorCode::Unavailable as u16); 2]);
    assert_eq!(peer.send(2, &subscribe("s")), Ok(()));
    assert_eq!(peer.error(), (0, ErrorCode::Unavailable));
    assert_eq!(peer.send(2, &Frame::Admin { request: 5, body: requests::create("t") }), Ok(()));
    assert_eq!(peer.error(), (5, ErrorCode::Unavailable));
    let result = [ResultItem { tag: Tag(6), retry_after_ms: 0, result: AttemptResult::Success }];
    let results = Items::from(result.as_slice());
    assert_eq!(peer.send(1, &Frame::ResultBatch(ResultBatch { results })), Ok(()));
    assert_eq!(peer.asked(), Asked::Results { session: 101, tags: vec![6] });
}

#[test]
fn answers_for_a_stream_that_has_gone_are_dropped() {
    let mut peer = Peer::new(1);
    assert_eq!(peer.batch(0, &[event("a")]), Ok(()));
    let Asked::Publish { ticket, .. } = peer.asked() else { panic!("a publish") };
    peer.door.closed(0, &mut peer.backend);
    peer.door.published(ticket, accepted(1, 1, None));
    assert_eq!((peer.written(), peer.door.waiting_count()), (Vec::new(), 0));
}

/// Shards that are asked for the events of some ids, while one of them is out of service.
fn asked_without(out: ShardId, may_move: bool, key: &[u8]) -> BTreeSet<ShardId> {
    let mut peer = Peer::new(SHARDS);
    peer.backend.may_move = may_move;
    peer.door.shard_out(out);
    let events = (0..40).map(|n| {
        let mut bytes = Vec::new();
        let id = format!("id-{n}");
        let spec = EventSpec { ordering_key: key, ..EventSpec::new(Due::After(5), &id, b"data") };
        spec.encode(&mut bytes).expect("valid");
        bytes
    });
    assert_eq!(peer.batch(0, &events.collect::<Vec<_>>()), Ok(()));
    let asked = std::mem::take(&mut peer.backend.asked);
    let shards = asked.into_iter().map(|asked| match asked {
        Asked::Publish { shard, .. } => shard,
        other => panic!("{other:?}"),
    });
    shards.collect()
}

#[test]
fn events_of_a_shard_that_is_out_go_elsewhere_unless_they_have_a_key_or_a_name() {
    let others: BTreeSet<ShardId> = (1..SHARDS).map(ShardId).collect();
    assert_eq!(asked_without(ShardId(0), true, b""), others);
    assert_eq!(asked_without(ShardId(0), false, b""), (0..SHARDS).map(ShardId).collect(), "names stay");
    let key = (0_u32..).map(u32::to_le_bytes);
    let key = key.into_iter().find(|key| shard_of(TOPIC, key, b"", b"", SHARDS) == ShardId(0));
    let key = key.expect("some key belongs to it");
    assert_eq!(asked_without(ShardId(0), true, &key), BTreeSet::from([ShardId(0)]), "keys stay");
}
