//! Our frames against the schema: what we write, generated readers read; what a builder writes, we read.

mod samples;
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    rust_2018_idioms,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::semicolon_if_nothing_returned,
    reason = "written by flatc"
)]
#[rustfmt::skip]
#[path = "../src/generated/wire_v1.rs"]
mod wire_v1;

use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::frame::*;
use escapement_protocol::{
    AttemptResult, Epoch, ErrorCode, Sequence, ShardId, SubscriptionId, SubscriptionSettings, Tag, TopicId,
    WallMs,
};
use flatbuffers::FlatBufferBuilder;
use samples::encoded;
use wire_v1::wire;

fn sample(kind: FrameKind) -> Frame<'static> {
    let (_, frame) = samples::frames().into_iter().find(|(_, frame)| frame.kind() == kind).expect("a sample");
    frame
}

fn body(frame: &Frame<'_>) -> Vec<u8> {
    encoded(frame).split_off(PREFIX_SIZE_BYTES)
}

fn read<'a, T: flatbuffers::Follow<'a> + flatbuffers::Verifiable + 'a>(body: &'a [u8]) -> T::Inner {
    flatbuffers::root::<T>(body).expect("verifies with the generated verifier")
}

/// What a client on another implementation of FlatBuffers sends: alignment forced, fields in the schema's order.
fn aligned_bytes<'a>(
    b: &mut FlatBufferBuilder<'a>,
    bytes: &[u8],
) -> flatbuffers::WIPOffset<flatbuffers::Vector<'a, u8>> {
    let words: Vec<u64> =
        bytes.as_chunks().0.iter().map(|word: &[u8; 8]| u64::from_le_bytes(*word)).collect();
    b.start_vector::<u64>(words.len());
    for word in words.iter().rev() {
        b.push(*word);
    }
    flatbuffers::WIPOffset::new(b.end_vector::<u8>(bytes.len()).value())
}

#[test]
fn a_hand_laid_publish_batch_is_what_the_schema_says() {
    let frame = sample(FrameKind::PublishBatch);
    let Frame::PublishBatch(batch) = &frame else { unreachable!() };
    let bytes = body(&frame);
    let table = read::<wire::PublishBatch<'_>>(&bytes);
    assert_eq!(table.topic_id(), batch.topic.0);
    assert_eq!(table.first_item(), batch.first_item);
    assert_eq!(table.count(), batch.events.count());
    let events = table.events().expect("events");
    assert_eq!(events.bytes(), batch.events.bytes());

    let mut b = FlatBufferBuilder::new();
    let events = Some(aligned_bytes(&mut b, batch.events.bytes()));
    let args = wire::PublishBatchArgs {
        topic_id: batch.topic.0,
        first_item: batch.first_item,
        count: batch.events.count(),
        events,
    };
    let root = wire::PublishBatch::create(&mut b, &args);
    b.finish_minimal(root);
    assert_eq!(parse_body(FrameKind::PublishBatch, b.finished_data()), Ok(frame.clone()));
}

#[test]
fn a_hand_laid_push_batch_is_what_the_schema_says() {
    let frame = sample(FrameKind::PushBatch);
    let Frame::PushBatch(batch) = &frame else { unreachable!() };
    let bytes = body(&frame);
    let table = read::<wire::PushBatch<'_>>(&bytes);
    assert_eq!(table.subscription_id(), batch.subscription.0);
    assert_eq!(table.epoch(), batch.epoch.0);
    assert_eq!(table.events().expect("events").bytes(), batch.events.bytes());
    let items = table.items().expect("items");
    assert_eq!(items.len(), batch.items.len());
    for (theirs, ours) in items.iter().zip(batch.items) {
        let read = PushItem {
            tag: Tag(theirs.tag()),
            sequence: Sequence(theirs.sequence()),
            schedule_time: WallMs(theirs.schedule_time_ms()),
            deadline_ms: theirs.deadline_ms(),
            topic: TopicId(theirs.topic_id()),
            shard: ShardId(theirs.shard()),
            attempt: theirs.attempt(),
        };
        assert_eq!(read, ours);
    }

    let mut b = FlatBufferBuilder::new();
    let events = Some(aligned_bytes(&mut b, batch.events.bytes()));
    let structs: Vec<_> = batch.items.iter().map(|item| wire::PushItem(item.to_wire())).collect();
    let items = Some(b.create_vector(&structs));
    let args = wire::PushBatchArgs {
        subscription_id: batch.subscription.0,
        epoch: batch.epoch.0,
        items,
        events,
        rescheduled: None,
    };
    let root = wire::PushBatch::create(&mut b, &args);
    b.finish_minimal(root);
    assert_eq!(parse_body(FrameKind::PushBatch, b.finished_data()), Ok(frame.clone()));
}

#[test]
fn a_push_batch_names_only_the_items_that_were_rescheduled_and_each_of_them_once() {
    let Frame::PushBatch(plain) = sample(FrameKind::PushBatch) else { unreachable!() };
    let dues = |batch: &PushBatch<'_>| batch.dues().collect::<Vec<_>>();
    let stated: Vec<_> = plain.items.iter().map(|item| item.schedule_time).collect();
    assert_eq!((dues(&plain), plain.rescheduled.len()), (stated.clone(), 0));
    assert!(read::<wire::PushBatch<'_>>(&body(&Frame::PushBatch(plain))).rescheduled().is_none());

    let due = |item, due_ms| PushDue { item, due: WallMs(due_ms) };
    let named = [due(0, 7), due(2, 9)];
    let batch = PushBatch { rescheduled: named.as_slice().into(), ..plain };
    assert_eq!(dues(&batch), [WallMs(7), stated[1], WallMs(9)]);
    let bytes = body(&Frame::PushBatch(batch));
    let table = read::<wire::PushBatch<'_>>(&bytes);
    let theirs = table.rescheduled().expect("some were").iter().map(|due| (due.item(), due.due_ms()));
    assert!(theirs.eq([(0, 7), (2, 9)]));
    assert_eq!(parse_body(FrameKind::PushBatch, &bytes), Ok(Frame::PushBatch(batch)));

    let mut writer = PushBatchWriter::new();
    writer.begin(batch.subscription, batch.epoch);
    for _ in 0..2 {
        for ((at, (item, event)), due) in batch.iter().enumerate().zip(batch.dues()) {
            assert!(writer.fits(event.len() + PUSH_DUE_SIZE_BYTES_MAX));
            if at == 1 { writer.push(item, event) } else { writer.push_rescheduled(item, due, event) }
        }
        let whole = encoded(&Frame::PushBatch(batch));
        assert_eq!(writer.len_bytes(), whole.len());
        assert_eq!(writer.finish_owned(), whole);
    }

    for wrong in [&[due(1, 7), due(1, 9)][..], &[due(2, 7), due(0, 9)], &[due(3, 7)]] {
        let bytes = body(&Frame::PushBatch(PushBatch { rescheduled: wrong.into(), ..plain }));
        assert!(parse_body(FrameKind::PushBatch, &bytes).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_rescheduling_has_a_version_for_each_event_or_none() {
    let Frame::Reschedule(reschedule) = sample(FrameKind::Reschedule) else { unreachable!() };
    let (count, versions) = (reschedule.events.len(), [1, 2, 3]);
    for with in 0..=3 {
        let frame = Frame::Reschedule(Reschedule { versions: versions[..with].into(), ..reschedule });
        let parsed = parse_body(FrameKind::Reschedule, &body(&frame)).is_ok();
        assert_eq!(parsed, with == 0 || with == count, "{with} versions of {count} events");
    }
}

#[test]
fn a_hand_laid_publish_ack_is_what_the_schema_says() {
    let frame = sample(FrameKind::PublishAck);
    let Frame::PublishAck(ack) = &frame else { unreachable!() };
    let bytes = body(&frame);
    let table = read::<wire::PublishAck<'_>>(&bytes);
    assert_eq!(table.through_item(), ack.through_item);
    assert_eq!(table.durability(), ack.durability.0);
    let runs: Vec<_> = table
        .runs()
        .expect("runs")
        .iter()
        .map(|run| AckRun {
            first_sequence: Sequence(run.first_sequence()),
            accepted: WallMs(run.accepted_wall_ms()),
            count: run.count(),
            shard: ShardId(run.shard()),
        })
        .collect();
    assert_eq!(Items::from(runs.as_slice()), ack.runs);
    let exceptions: Vec<_> = table
        .exceptions()
        .expect("exceptions")
        .iter()
        .map(|exception| AckException {
            item: exception.item(),
            retry_after_ms: exception.retry_after_ms(),
            code: exception.code(),
        })
        .collect();
    assert_eq!(Items::from(exceptions.as_slice()), ack.exceptions);

    let mut b = FlatBufferBuilder::new();
    let structs: Vec<_> = runs.iter().map(|run| wire::AckRun(run.to_wire())).collect();
    let runs = Some(b.create_vector(&structs));
    let structs: Vec<_> = exceptions.iter().map(|item| wire::AckException(item.to_wire())).collect();
    let exceptions = Some(b.create_vector(&structs));
    let args = wire::PublishAckArgs {
        through_item: ack.through_item,
        durability: ack.durability.0,
        runs,
        exceptions,
        exhausted: None,
        duplicates: None,
    };
    let root = wire::PublishAck::create(&mut b, &args);
    b.finish_minimal(root);
    assert_eq!(parse_body(FrameKind::PublishAck, b.finished_data()), Ok(frame.clone()));
}

#[test]
fn an_acknowledgement_with_words_is_what_the_schema_says() {
    let Frame::PublishAck(plain) = sample(FrameKind::PublishAck) else { unreachable!() };
    for exhausted in ["x", "seven b", "eight by", "the log is full: publish again later"] {
        let frame = Frame::PublishAck(PublishAck { exhausted, ..plain });
        let bytes = body(&frame);
        let table = read::<wire::PublishAck<'_>>(&bytes);
        assert_eq!(table.exhausted(), Some(exhausted));
        assert_eq!((table.through_item(), table.durability()), (plain.through_item, plain.durability.0));
        assert_eq!(parse_body(FrameKind::PublishAck, &bytes), Ok(frame));
    }
    assert_eq!(read::<wire::PublishAck<'_>>(&body(&Frame::PublishAck(plain))).exhausted(), None);
}

#[test]
fn an_acknowledgement_with_duplicates_is_what_the_schema_says() {
    let Frame::PublishAck(plain) = sample(FrameKind::PublishAck) else { unreachable!() };
    for (exhausted, count) in [("", 1), ("seven b", 2), ("the log is full: publish again later", 3)] {
        let duplicates: Vec<_> = (10..10 + count)
            .map(|item| AckDuplicate { item, schedule_time: WallMs(1_800_000_000_000 + item) })
            .collect();
        let frame =
            Frame::PublishAck(PublishAck { exhausted, duplicates: duplicates.as_slice().into(), ..plain });
        let bytes = body(&frame);
        let table = read::<wire::PublishAck<'_>>(&bytes);
        let read: Vec<_> = table
            .duplicates()
            .expect("duplicates")
            .iter()
            .map(|of| AckDuplicate { item: of.item(), schedule_time: WallMs(of.schedule_time_ms()) })
            .collect();
        assert_eq!(read, duplicates);
        assert_eq!((table.through_item(), table.exhausted()), (plain.through_item, Some(exhausted)));
        assert_eq!(parse_body(FrameKind::PublishAck, &bytes), Ok(frame));
    }
}

#[test]
fn a_hand_laid_result_batch_is_what_the_schema_says() {
    let frame = sample(FrameKind::ResultBatch);
    let Frame::ResultBatch(batch) = &frame else { unreachable!() };
    let bytes = body(&frame);
    let results: Vec<_> = read::<wire::ResultBatch<'_>>(&bytes)
        .results()
        .expect("results")
        .iter()
        .map(|item| ResultItem {
            tag: Tag(item.tag()),
            retry_after_ms: item.retry_after_ms(),
            result: AttemptResult::from_code(item.result()).expect("a known code"),
        })
        .collect();
    assert_eq!(Items::from(results.as_slice()), batch.results);

    let mut b = FlatBufferBuilder::new();
    let structs: Vec<_> = results.iter().map(|item| wire::ResultItem(item.to_wire())).collect();
    let results = Some(b.create_vector(&structs));
    let root = wire::ResultBatch::create(&mut b, &wire::ResultBatchArgs { results });
    b.finish_minimal(root);
    assert_eq!(parse_body(FrameKind::ResultBatch, b.finished_data()), Ok(frame.clone()));
}

#[test]
fn the_structs_of_control_frames_lie_as_the_schema_says() {
    let bytes = body(&sample(FrameKind::CancelReply));
    let table = read::<wire::CancelReply<'_>>(&bytes);
    let too_late = *table.verdicts().expect("verdicts").get(1);
    assert_eq!((too_late.verdict(), too_late.state(), too_late.attempt()), (2, TaskState::Running as u8, 2));

    let bytes = body(&sample(FrameKind::RescheduleReply));
    let table = read::<wire::RescheduleReply<'_>>(&bytes);
    let verdicts = table.verdicts().expect("verdicts");
    let (first, too_late) = (*verdicts.get(0), *verdicts.get(1));
    assert_eq!((first.verdict(), first.due_ms(), first.version()), (1, 1_800_000_009_000, 3));
    assert_eq!((too_late.verdict(), too_late.state(), too_late.attempt()), (2, TaskState::Ready as u8, 2));

    let bytes = body(&sample(FrameKind::Welcome));
    let table = read::<wire::Welcome<'_>>(&bytes);
    let second = *table.shards().expect("shards").get(1);
    assert_eq!((second.shard(), second.core()), (1, 1));

    let bytes = body(&sample(FrameKind::Subscribe));
    let table = read::<wire::Subscribe<'_>>(&bytes);
    assert_eq!(table.running().expect("tags").iter().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn collected_batches_have_the_same_bytes_as_whole_ones() {
    let Frame::PublishBatch(batch) = sample(FrameKind::PublishBatch) else { unreachable!() };
    let mut writer = PublishBatchWriter::new();
    writer.begin(batch.topic, batch.first_item);
    for event in batch.events {
        writer.push(event);
    }
    assert_eq!(writer.len_bytes(), encoded(&Frame::PublishBatch(batch)).len());
    let mut out = Vec::new();
    writer.finish(&mut out);
    assert_eq!(out, encoded(&Frame::PublishBatch(batch)));

    // The next frame goes on where this one ended.
    writer.push_spec(&EventSpec::new(Due::After(1), "next", b"")).expect("a valid event");
    let next = writer.finish_owned();
    let mut first_item = None;
    FrameDecoder::new()
        .feed(&next, |frame| {
            let Frame::PublishBatch(batch) = frame else { unreachable!() };
            first_item = Some(batch.first_item);
            Ok(())
        })
        .expect("verifies");
    assert_eq!(first_item, Some(13));

    let Frame::PushBatch(batch) = sample(FrameKind::PushBatch) else { unreachable!() };
    let mut writer = PushBatchWriter::new();
    writer.begin(batch.subscription, batch.epoch);
    for round in 0..2 {
        for (item, event) in batch.iter() {
            writer.push(item, event);
        }
        assert_eq!(writer.len_bytes(), encoded(&Frame::PushBatch(batch)).len());
        let mut out = Vec::new();
        if round == 0 {
            writer.finish(&mut out);
        } else {
            out = writer.finish_owned();
        }
        assert_eq!(out, encoded(&Frame::PushBatch(batch)), "round {round}");
    }
    assert!(writer.is_empty());
}

#[test]
fn an_event_without_its_padding_is_padded() {
    let mut event = Vec::new();
    EventSpec::new(Due::After(1), "a", b"x").encode(&mut event).expect("valid");
    let mut writer = PublishBatchWriter::new();
    writer.begin(TopicId(1), 0);
    writer.push(&event[..20]);
    let unpadded = writer.finish_owned();
    writer.begin(TopicId(1), 0);
    writer.push(&event);
    assert_eq!(unpadded, writer.finish_owned());
}

#[test]
#[should_panic(expected = "as long as its header says")]
fn an_event_cut_short_is_never_written() {
    let mut event = Vec::new();
    EventSpec::new(Due::After(1), "a", &[0; 100]).encode(&mut event).expect("valid");
    PublishBatchWriter::new().push(&event[..24]);
}

#[test]
fn a_refused_event_leaves_the_collected_frame_as_it_was() {
    let mut writer = PublishBatchWriter::new();
    writer.begin(TopicId(1), 0);
    writer.push_spec(&EventSpec::new(Due::After(1), "a", b"")).expect("valid");
    let before = writer.len_bytes();
    assert!(writer.push_spec(&EventSpec::new(Due::After(1), "", b"")).is_err());
    assert_eq!((writer.len_bytes(), writer.count()), (before, 1));
}

#[test]
fn frames_are_filled_to_their_limit_and_not_beyond() {
    let mut event = Vec::new();
    EventSpec::new(Due::After(1), "a", &[0; 1_000]).encode(&mut event).expect("valid");
    let item = PushItem {
        tag: Tag(1),
        sequence: Sequence(1),
        schedule_time: WallMs(1),
        deadline_ms: 1,
        topic: TopicId(1),
        shard: ShardId(0),
        attempt: 1,
    };
    let mut publish = PublishBatchWriter::new();
    publish.begin(TopicId(1), 0);
    while publish.fits(event.len()) {
        publish.push(&event);
    }
    let mut push = PushBatchWriter::new();
    push.begin(SubscriptionId(1), Epoch(1));
    while push.fits(event.len()) {
        push.push(item, &event);
    }
    for (frame, step) in [(publish.finish_owned(), event.len()), (push.finish_owned(), event.len() + 40)] {
        let len = frame.len() - PREFIX_SIZE_BYTES;
        let limit = escapement_protocol::FRAME_SIZE_BYTES_MAX;
        assert!(len <= limit && len + step > limit, "{len}");
        FrameDecoder::new().feed(&frame, |_| Ok(())).expect("a full frame verifies");
    }
}

#[test]
fn a_full_page_of_the_longest_entries_fits_a_frame() {
    let settings = SubscriptionSettings {
        name: "n".repeat(128),
        topic: "t".repeat(128),
        ..SubscriptionSettings::default()
    };
    let topic = TopicInfo {
        topic: TopicId(u32::MAX),
        version: u32::MAX,
        settings: escapement_protocol::TopicSettings {
            name: "n".repeat(128),
            default_source: "s".repeat(255),
            default_type: "t".repeat(255),
            default_content_type: "c".repeat(255),
            dedup_window_ms: 0,
        },
    };
    let subscription = SubscriptionInfo {
        subscription: SubscriptionId(u32::MAX),
        topic: TopicId(u32::MAX),
        version: u32::MAX,
        settings,
    };
    let count = LIST_COUNT_MAX as usize;
    for body in [
        AdminAnswer::Topics(TopicList { topics: vec![topic; count], more: true }),
        AdminAnswer::Subscriptions(SubscriptionList { subscriptions: vec![subscription; count], more: true }),
    ] {
        let frame = Frame::AdminReply { request: 1, body };
        let bytes = encoded(&frame);
        assert_eq!(parse_body(frame.kind(), &bytes[PREFIX_SIZE_BYTES..]).as_ref(), Ok(&frame));
    }
}

#[test]
fn settings_that_a_client_leaves_out_have_their_defaults() {
    let mut b = FlatBufferBuilder::new();
    let settings = wire::SubscriptionSettings::create(&mut b, &wire::SubscriptionSettingsArgs::default());
    let args = wire::CreateSubscriptionArgs { settings: Some(settings) };
    let body = wire::CreateSubscription::create(&mut b, &args).as_union_value();
    let args =
        wire::AdminArgs { request: 1, body_type: wire::AdminBody::CreateSubscription, body: Some(body) };
    let root = wire::Admin::create(&mut b, &args);
    b.finish_minimal(root);
    let expected = AdminRequest::CreateSubscription(SubscriptionSettings::default());
    assert_eq!(
        parse_body(FrameKind::Admin, b.finished_data()),
        Ok(Frame::Admin { request: 1, body: expected })
    );
}

#[test]
fn a_list_that_names_one_entry_many_times_is_refused_before_it_is_unfolded() {
    for count in [500, 100_000] {
        let mut b = FlatBufferBuilder::new();
        let name = Some(b.create_string(&"x".repeat(10_000)));
        let settings = Some(wire::TopicSettings::create(
            &mut b,
            &wire::TopicSettingsArgs { name, ..Default::default() },
        ));
        let entry =
            wire::TopicInfo::create(&mut b, &wire::TopicInfoArgs { topic_id: 1, version: 1, settings });
        let topics = Some(b.create_vector(&vec![entry; count]));
        let body = wire::TopicList::create(&mut b, &wire::TopicListArgs { topics, more: false });
        let args = wire::AdminReplyArgs {
            request: 1,
            body_type: wire::AdminReplyBody::TopicList,
            body: Some(body.as_union_value()),
        };
        let root = wire::AdminReply::create(&mut b, &args);
        b.finish_minimal(root);
        let error = parse_body(FrameKind::AdminReply, b.finished_data()).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::MalformedFrame, "{count} entries");
    }
}

#[test]
fn a_body_of_an_unknown_type_is_refused() {
    let mut b = FlatBufferBuilder::new();
    let body = wire::ShardMap::create(&mut b, &wire::ShardMapArgs {}).as_union_value();
    let args = wire::AdminArgs { request: 1, body_type: wire::AdminBody(99), body: Some(body) };
    let root = wire::Admin::create(&mut b, &args);
    b.finish_minimal(root);
    let error = parse_body(FrameKind::Admin, b.finished_data()).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::MalformedFrame);
}

#[test]
fn a_batch_without_its_events_vector_is_refused() {
    let mut b = FlatBufferBuilder::new();
    let args = wire::PublishBatchArgs { topic_id: 1, first_item: 0, count: 1, events: None };
    let root = wire::PublishBatch::create(&mut b, &args);
    b.finish_minimal(root);
    let error = parse_body(FrameKind::PublishBatch, b.finished_data()).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::MalformedFrame);
}

#[test]
fn the_longest_answer_to_a_full_batch_fits_a_frame() {
    let runs: Vec<AckRun> = (0..u64::from(BATCH_COUNT_MAX))
        .map(|item| AckRun {
            first_sequence: Sequence(item),
            accepted: WallMs(1),
            count: 1,
            shard: ShardId((item % 2) as u16),
        })
        .collect();
    let ack = PublishAck {
        through_item: runs.len() as u64,
        durability: Durability::LOCAL_DISK,
        runs: Items::from(runs.as_slice()),
        exceptions: Items::default(),
        exhausted: "",
        duplicates: Items::default(),
    };
    let bytes = encoded(&Frame::PublishAck(ack));
    // Twice that still fits, so that answers left over from before may come along.
    assert!(2 * bytes.len() <= escapement_protocol::FRAME_SIZE_BYTES_MAX, "{}", bytes.len());
}

#[test]
fn a_frame_of_the_smallest_events_is_full_at_the_largest_count() {
    let mut event = Vec::new();
    EventSpec::new(Due::After(1), "a", b"").encode(&mut event).expect("valid");
    let mut writer = PublishBatchWriter::new();
    writer.begin(TopicId(1), 0);
    while writer.fits(event.len()) {
        writer.push(&event);
    }
    assert_eq!(writer.count(), BATCH_COUNT_MAX);
    FrameDecoder::new().feed(&writer.finish_owned(), |_| Ok(())).expect("a full frame verifies");
}
