//! Streams of frames: how a stream is cut into slices changes nothing, and what was read can be written.

use escapement_protocol::event::{Due, EventSpec, EventView};
use escapement_protocol::frame::{
    AckDuplicate, AckException, AckRun, AdminAnswer, AdminRequest, Credit, DUE_WITHIN_MS, DueCount,
    Durability, ErrorFrame, EventInfo, EventPage, EventPlace, Events, Hello, ListEvents, ListedEvent,
    PREFIX_SIZE_BYTES, Page, PublishAck, PublishBatch, PushBatch, PushDue, PushItem, Query, QueryAnswer,
    Reschedule, RescheduleReply, RescheduleVerdict, ResultBatch, ResultItem, Subscribe, SubscriptionInfo,
    SubscriptionList, TaskState,
};
use escapement_protocol::{
    AttemptResult, Epoch, ErrorCode, EventId, FRAME_SIZE_BYTES_MAX, Frame, FrameDecoder, FrameError,
    FrameWriter, Sequence, ShardId, SubscriptionId, SubscriptionSettings, Tag, TopicId, WallMs,
};

/// What a decoder made of a stream: the frames, written again, and how it ended.
type Reading = (Vec<u8>, Result<(), FrameError>);

/// Reads `input` as a stream of frames, whole and in slices, and writes what it read.
///
/// # Panics
/// Where slices lead to other frames or another error, a decoder holds more than a frame, or a frame that was read
/// does not read back from its own encoding.
pub fn frame_decode(input: &[u8]) {
    let whole = read(input, input.len().max(1));
    // Single bytes try every cut; a long input is cut less often, so that a run stays short.
    let slices: &[usize] = if input.len() <= 4_096 { &[1, 7] } else { &[1_021, 65_536] };
    for &slice_len in slices {
        assert_eq!(read(input, slice_len), whole, "read in slices of {slice_len} bytes");
    }
}

fn read(input: &[u8], slice_len: usize) -> Reading {
    let mut decoder = FrameDecoder::new();
    let mut writer = FrameWriter::new();
    let mut written = Vec::new();
    let mut result = Ok(());
    for slice in input.chunks(slice_len) {
        result = decoder.feed(slice, |frame| {
            look_inside(&frame);
            write_again(&frame, &mut writer, &mut written);
            Ok(())
        });
        assert!(decoder.held_size_bytes() <= PREFIX_SIZE_BYTES + FRAME_SIZE_BYTES_MAX);
        if result.is_err() {
            break;
        }
    }
    (written, result.and_then(|()| decoder.finish()))
}

/// Walks what a frame hands out lazily.
fn look_inside(frame: &Frame<'_>) {
    match frame {
        Frame::PublishBatch(batch) => look_at_events(&batch.events),
        Frame::PushBatch(batch) => {
            look_at_events(&batch.events);
            assert_eq!(batch.iter().count(), batch.items.len());
            assert_eq!(batch.dues().count(), batch.items.len());
        }
        Frame::PublishAck(ack) => {
            for waiting in [0..u64::MAX, 10..ack.through_item] {
                let first = waiting.start;
                if let Ok(items) = ack.items(waiting) {
                    // An acknowledgement of few bytes may state billions of items.
                    for (expected, item) in (first..).zip(items.take(4_096)) {
                        assert_eq!(item.item, expected);
                    }
                }
            }
        }
        _ => {}
    }
}

fn look_at_events(events: &Events<'_>) {
    assert_eq!(events.iter().count(), events.count() as usize);
    assert_eq!(events.iter().map(<[u8]>::len).sum::<usize>(), events.bytes().len());
    for event in events.iter() {
        if let Ok((_, taken)) = EventView::parse(event) {
            assert_eq!(taken, event.len());
        }
    }
}

fn write_again(frame: &Frame<'_>, writer: &mut FrameWriter, out: &mut Vec<u8>) {
    let start = out.len();
    match writer.write(frame, out) {
        Ok(()) => {}
        // Offsets of a hostile frame may share what an honest one repeats.
        Err(FrameError::Length { .. }) => return assert_eq!(out.len(), start),
        Err(other) => panic!("writing a frame that was read: {other}"),
    }
    let mut count = 0;
    let read = FrameDecoder::new().feed(&out[start..], |again| {
        assert_eq!(again, *frame);
        count += 1;
        Ok(())
    });
    assert_eq!((read, count), (Ok(()), 1));
}

/// Frames of each direction and shape: laid out by hand, built, nested, empty, and two in one stream.
pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut events = Vec::new();
    for (id, data) in [("order-1", &b"hello"[..]), ("order-2", b"")] {
        EventSpec::new(Due::After(1_500), id, data).encode(&mut events).expect("a seed's event is valid");
    }
    let events = Events::new(&events, 2).expect("two events");
    let now = WallMs(1_800_000_000_000);
    let runs = [AckRun { first_sequence: Sequence(1), accepted: now, count: 2, shard: ShardId(0) }];
    let exceptions =
        [AckException { item: 12, retry_after_ms: 250, code: ErrorCode::ResourceExhausted as u16 }];
    let pushed = [1, 2].map(|tag| PushItem {
        tag: Tag(tag),
        sequence: Sequence(40 + tag),
        schedule_time: now,
        deadline_ms: 30_000,
        topic: TopicId(3),
        shard: ShardId(5),
        attempt: 1,
    });
    let changed = [RescheduleVerdict::Rescheduled { due: now, version: 4 }];
    let dues = [PushDue { due: now, item: 1 }];
    let ids = [EventId { shard: ShardId(5), sequence: Sequence(41), schedule_time_ms: now.0 }];
    let results = [AttemptResult::Success, AttemptResult::RetryableFailure].map(|result| ResultItem {
        tag: Tag(result as u64),
        retry_after_ms: 0,
        result,
    });
    let running = [Tag(2), Tag(3)];
    let settings =
        SubscriptionSettings { name: "billing".into(), topic: "orders".into(), ..Default::default() };
    let info = SubscriptionInfo { subscription: SubscriptionId(9), topic: TopicId(3), version: 1, settings };
    let subscriptions = SubscriptionList { subscriptions: vec![info.clone(), info], more: true };

    let hello = Frame::Hello(Hello { version: 1, client: "seed/1" });
    let publish = Frame::PublishBatch(PublishBatch { topic: TopicId(3), first_item: 10, events });
    let duplicates = [AckDuplicate { item: 10, schedule_time: WallMs(1_800_000_000_000) }];
    let ack = Frame::PublishAck(PublishAck {
        through_item: 13,
        durability: Durability::LOCAL_DISK,
        runs: runs.as_slice().into(),
        exceptions: exceptions.as_slice().into(),
        exhausted: "",
        duplicates: duplicates.as_slice().into(),
    });
    let push = Frame::PushBatch(PushBatch {
        subscription: SubscriptionId(9),
        epoch: Epoch(4),
        items: pushed.as_slice().into(),
        events,
        rescheduled: dues.as_slice().into(),
    });
    let reschedule = Frame::Reschedule(Reschedule {
        request: 8,
        events: ids.as_slice().into(),
        due: Due::After(250),
        versions: [3].as_slice().into(),
    });
    let rescheduled =
        Frame::RescheduleReply(RescheduleReply { request: 8, verdicts: changed.as_slice().into() });
    let result = Frame::ResultBatch(ResultBatch { results: results.as_slice().into() });
    let subscribe = Frame::Subscribe(Subscribe {
        subscription: "billing",
        host: 0x4242,
        credit: Credit { tasks: 1_024, bytes: 1_048_576 },
        running: running.as_slice().into(),
    });
    let admin =
        Frame::Admin { request: 7, body: AdminRequest::ListTopics(Page { after_id: 3, count_max: 100 }) };
    let listed = Frame::AdminReply { request: 7, body: AdminAnswer::Subscriptions(subscriptions) };
    let error =
        Frame::Error(ErrorFrame { request: 7, code: 10, retry_after_ms: 0, message: "no such topic" });
    let list = ListEvents { topic: TopicId(3), ordering_key: b"k".to_vec(), ..ListEvents::default() };
    let token = list.position(4).expect("no token is a good one").to_bytes();
    let (due, topic, place) = (now, TopicId(3), EventPlace::Run);
    let info = EventInfo { id: ids[0], due, topic, size_bytes: 48, state: TaskState::Scheduled, place };
    let event = ListedEvent { info, id: "order-1".into(), ordering_key: b"k".to_vec(), attempt: 0 };
    let events = vec![event.clone(), event];
    let page = EventPage { events, token: token.clone(), unread: 23, missing: vec![ShardId(1)] };
    let list = Frame::Query { request: 7, query: Query::List(Box::new(ListEvents { token, ..list })) };
    let page = Frame::QueryReply { request: 7, answer: QueryAnswer::List(page) };
    let due = DUE_WITHIN_MS.map(|within_ms| DueCount { within_ms, count: within_ms, exact: within_ms == 0 });
    let count_due = Frame::Query { request: 8, query: Query::Due { shard: ShardId(5), topic: TopicId(3) } };
    let due = Frame::QueryReply { request: 8, answer: QueryAnswer::Due(due.to_vec()) };
    vec![
        ("count-due", written(&[count_due])),
        ("count-due-reply", written(&[due])),
        ("list-events", written(&[list])),
        ("list-events-reply", written(&[page])),
        ("hello-then-publish", written(&[hello, publish])),
        ("publish-ack", written(&[ack])),
        ("push-batch", written(&[push])),
        ("result-batch", written(&[result])),
        ("subscribe", written(&[subscribe])),
        ("admin-list", written(&[admin])),
        ("admin-reply-list", written(&[listed])),
        ("reschedule", written(&[reschedule])),
        ("reschedule-reply", written(&[rescheduled])),
        ("error", written(&[error])),
        ("detach-detached", written(&[Frame::Detach, Frame::Detached])),
    ]
}

fn written(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut writer = FrameWriter::new();
    let mut out = Vec::new();
    for frame in frames {
        writer.write(frame, &mut out).expect("a seed's frame fits");
    }
    out
}
