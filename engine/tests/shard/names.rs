//! Topics with a `dedup_window`: what is published twice is one event.

use escapement_engine::names::NameHash;
use escapement_engine::record::{Record, records};
use escapement_engine::{AdminRequest, Duplicate, Input, ReplyBody, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::settings::TopicSettings;
use escapement_protocol::{ErrorCode, EventSpec, Sequence, TopicId, WallMs};

use super::rig::{Rig, START, config, event};

const WINDOW_MS: u64 = 60_000;

fn topic(rig: &mut Rig, dedup_window_ms: u64) -> TopicId {
    let name = format!("window-{dedup_window_ms}");
    let default_source = "/default".into();
    let settings = TopicSettings { name, default_source, dedup_window_ms, ..TopicSettings::default() };
    match rig.admin(AdminRequest::CreateTopic(settings)) {
        ReplyBody::Topic { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

fn later(id: &str) -> Vec<u8> {
    event(Due::After(30_000), id, b"data")
}

/// What a publish was answered: the first sequence, how many, and the duplicates.
#[track_caller]
fn answer(rig: &mut Rig, ticket: Ticket) -> (u64, u32, Vec<Duplicate>) {
    match rig.reply(ticket) {
        Some(ReplyBody::Published { first_sequence, accepted_count, duplicates, refusal: None, .. }) => {
            (first_sequence.0, accepted_count, duplicates)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn publish(rig: &mut Rig, topic: TopicId, events: &[Vec<u8>]) -> (u64, u32, Vec<Duplicate>) {
    let ticket = rig.publish(0, topic, events);
    rig.sync();
    answer(rig, ticket)
}

fn first(index: u32, sequence: u64, accepted: WallMs) -> Duplicate {
    let schedule_time = accepted.plus_ms(30_000);
    Duplicate { index, sequence: Sequence(sequence), schedule_time, accepted }
}

#[test]
fn what_is_published_twice_is_one_event_with_one_receipt() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    assert_eq!(publish(&mut rig, topic, &[later("a"), later("b")]), (1, 2, vec![]));
    rig.advance_ms(1_000);
    let b = first(1, 2, START);
    assert_eq!(publish(&mut rig, topic, &[later("c"), later("b"), later("d")]), (3, 3, vec![b]));
    assert_eq!((rig.shard(0).stats().pending, rig.shard(0).stats().duplicates), (4, 1));
    rig.check();
    rig.check_replay();
}

#[test]
fn without_a_window_every_event_is_another() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, 0);
    assert_eq!(publish(&mut rig, topic, &[later("a"), later("a")]), (1, 2, vec![]));
    assert_eq!(publish(&mut rig, topic, &[later("a")]), (3, 1, vec![]));
    assert_eq!(rig.shard(0).stats().names, 0);
}

#[test]
fn a_duplicate_of_what_is_in_flight_is_answered_with_it_and_not_before() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    let original = rig.publish(0, topic, &[later("a")]);
    rig.commit(0);
    let again = rig.publish(0, topic, &[later("a")]);
    assert_eq!((rig.reply(original), rig.reply(again)), (None, None), "neither is durable");
    rig.sync();
    assert_eq!(answer(&mut rig, original), (1, 1, vec![]));
    assert_eq!(answer(&mut rig, again).2, [first(0, 1, START)]);
    assert_eq!(rig.shard(0).stats().pending, 1);
}

#[test]
fn a_duplicate_of_what_is_durable_is_answered_at_once() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    publish(&mut rig, topic, &[later("a")]);
    let again = rig.publish(0, topic, &[later("a")]);
    assert_eq!(answer(&mut rig, again).2, [first(0, 1, START)]);
}

#[test]
fn duplicates_within_one_batch_are_one_event() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    let (first_sequence, count, duplicates) =
        publish(&mut rig, topic, &[later("a"), later("b"), later("a"), later("c"), later("b")]);
    assert_eq!((first_sequence, count), (1, 5));
    assert_eq!(duplicates, [first(2, 1, START), first(4, 2, START)]);
    assert_eq!(rig.shard(0).stats().pending, 3);
}

#[test]
fn a_name_is_topic_key_source_and_id_with_the_default_source_filled_in() {
    let mut rig = Rig::new(config(1));
    let (topic, other) = (topic(&mut rig, WINDOW_MS), topic(&mut rig, 2 * WINDOW_MS));
    let spec = |source: &'static str, ordering_key: &'static [u8]| {
        let mut bytes = Vec::new();
        let spec = EventSpec { source, ordering_key, ..EventSpec::new(Due::After(30_000), "a", b"") };
        spec.encode(&mut bytes).expect("a valid event");
        bytes
    };
    let events = [spec("", b""), spec("/other", b""), spec("", b"key"), spec("/default", b"")];
    let (_, _, duplicates) = publish(&mut rig, topic, &events);
    assert_eq!(duplicates, [first(3, 1, START)], "what states the default is what states none");
    assert_eq!(publish(&mut rig, other, &events[..1]).2, []);
}

#[test]
fn after_the_window_it_is_a_new_event() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    publish(&mut rig, topic, &[later("a")]);
    rig.advance_ms(WINDOW_MS - 1);
    assert_eq!(publish(&mut rig, topic, &[later("a")]).2, [first(0, 1, START)]);
    rig.advance_ms(1);
    assert_eq!(publish(&mut rig, topic, &[later("a")]), (2, 1, vec![]));
    assert_eq!(publish(&mut rig, topic, &[later("a")]).2, [first(0, 2, START.plus_ms(WINDOW_MS))]);
    rig.check_replay();
}

#[test]
fn a_name_outlives_its_event_and_a_crash() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    publish(&mut rig, topic, &[later("a")]);
    let id = rig.id(0, Sequence(1));
    assert_eq!(rig.cancelled(id), CancelVerdict::Cancelled);
    rig.crash();
    assert_eq!(publish(&mut rig, topic, &[later("a")]).2, [first(0, 1, START)]);
    assert_eq!(rig.shard(0).stats().pending, 0);
}

#[test]
fn a_name_that_was_not_durable_is_free_after_a_crash() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    rig.publish(0, topic, &[later("a")]);
    rig.commit(0);
    rig.crash();
    assert_eq!(publish(&mut rig, topic, &[later("a")]), (1, 1, vec![]));
}

#[test]
fn names_survive_the_blocks_that_stated_them_any_number_of_times() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, 1_000 * WINDOW_MS);
    for n in 0..50 {
        publish(&mut rig, topic, &[later(&format!("{n}-a")), later(&format!("{n}-b"))]);
        let (upto, before) = (rig.newest(0), rig.log_len(0));
        if n % 7 == 6 {
            while rig.oldest(0) <= upto {
                rig.relocate(0, upto, 500);
                rig.sync();
                rig.trim(0, before);
            }
            rig.check();
            rig.check_replay();
        }
        if n % 10 == 9 {
            rig.crash();
            rig.check_replay();
        }
        rig.advance_ms(20_000);
    }
    assert_eq!(rig.shard(0).stats().names, 100);
    for n in 0..50 {
        let again = later(&format!("{n}-b"));
        let (_, _, duplicates) = publish(&mut rig, topic, &[again]);
        assert_eq!(duplicates, [first(0, 2 * n + 2, START.plus_ms(20_000 * n))]);
    }
}

#[test]
fn names_whose_windows_have_passed_are_forgotten_and_their_blocks_go() {
    let mut rig = Rig::new(config(1));
    let (short, long) = (topic(&mut rig, WINDOW_MS), topic(&mut rig, 1_000 * WINDOW_MS));
    for n in 0..20 {
        for topic in [short, long] {
            publish(&mut rig, topic, &[event(Due::After(0), &format!("{n}"), b"")]);
        }
        rig.advance_ms(10_000);
        rig.sync();
    }
    // Of the short window those of the last 50 s, and none of what passed an eighth of it ago.
    let names = rig.shard(0).stats().names;
    assert!((25..=26).contains(&names), "{names}");
    rig.check();
    rig.check_replay();
    rig.advance_ms(2_000 * WINDOW_MS);
    rig.sync();
    assert_eq!(rig.shard(0).stats().names, 0);
    rig.crash();
    rig.check_replay();
    assert_eq!(rig.shard(0).stats().names, 0, "nor do they come back");
    let forgotten = (0..rig.log_len(0)).any(|index| {
        let mut all = records(rig.block(0, index));
        all.any(|record| matches!(record, Ok(Record::NamesForgotten { .. })))
    });
    assert!(forgotten, "the log says so");
}

#[test]
fn more_names_than_their_part_of_the_memory_are_refused_and_none_is_forgotten() {
    let mut rig = Rig::new(escapement_engine::ShardConfig { memory_bytes_max: 4 << 20, ..config(1) });
    let (named, plain) = (topic(&mut rig, WINDOW_MS), topic(&mut rig, 0));
    let due = |n: u32| event(Due::After(0), &format!("{n}"), b"");
    let mut count = 0;
    let refusal = loop {
        let batch: Vec<_> = (count..count + 200).map(due).collect();
        let ticket = rig.publish(0, named, &batch);
        rig.sync();
        match rig.reply(ticket) {
            Some(ReplyBody::Published { .. }) => count += 200,
            Some(ReplyBody::Refused(refusal)) => break refusal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal.code, ErrorCode::ResourceExhausted);
    assert!(refusal.message.contains("dedup_window") && refusal.retry_after_ms > 0, "{refusal:?}");
    assert!(count > 10_000, "{count}");
    // What is known stays known, and is answered with what is new refused behind it.
    let mut batch = vec![due(0)];
    batch.extend((count..count + 200).map(due));
    let ticket = rig.publish(0, named, &batch);
    rig.sync();
    match rig.reply(ticket) {
        Some(ReplyBody::Published { accepted_count: 1, refusal: Some(_), duplicates, .. }) => {
            assert_eq!(duplicates[0].sequence, Sequence(1));
        }
        other => panic!("{other:?}"),
    }
    publish(&mut rig, plain, &[due(0)]);
    rig.advance_ms(2 * WINDOW_MS);
    rig.sync();
    publish(&mut rig, named, &[due(count)]);
    rig.check_replay();
}

#[test]
fn what_the_admission_rate_refuses_has_no_name() {
    let mut rig = Rig::new(escapement_engine::ShardConfig { admission_per_s: 40, ..config(1) });
    let topic = topic(&mut rig, WINDOW_MS);
    rig.advance_ms(1_000);
    let ids: Vec<_> = (0..5).map(|n| later(&format!("{n}"))).collect();
    let ticket = rig.publish(0, topic, &ids);
    rig.sync();
    match rig.reply(ticket) {
        Some(ReplyBody::Published { accepted_count: 2, refusal: Some(_), .. }) => {}
        other => panic!("{other:?}"),
    }
    rig.advance_ms(1_000);
    assert_eq!(publish(&mut rig, topic, &ids[1..3]), (3, 2, vec![first(0, 2, START.plus_ms(1_000))]));
}

#[test]
fn large_batches_are_cut_into_records_that_fit_a_block() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    let events: Vec<_> = (0..1_000).map(|n| event(Due::After(30_000), &format!("{n}"), b"")).collect();
    assert_eq!(publish(&mut rig, topic, &events), (1, 1_000, vec![]));
    let upto = rig.newest(0);
    let before = rig.log_len(0);
    while rig.oldest(0) <= upto {
        rig.relocate(0, upto, 4_000);
        rig.sync();
        rig.trim(0, before);
    }
    rig.check_replay();
    rig.crash();
    assert_eq!(publish(&mut rig, topic, &events).2.len(), 1_000);
}

fn cancel(rig: &mut Rig, topic: TopicId, id: &str) -> Ticket {
    let ticket = rig.ticket();
    let name = NameHash::of(topic, b"", b"/default", id.as_bytes());
    rig.step(0, Input::CancelByName { ticket, topic, name });
    ticket
}

#[test]
fn an_event_is_cancelled_by_its_name_once() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    publish(&mut rig, topic, &[later("a"), later("b")]);
    let [first, again, unknown] = ["a", "a", "x"].map(|id| cancel(&mut rig, topic, id));
    assert_eq!(rig.reply(first), None, "not before it is durable");
    rig.sync();
    let [cancelled, none] = [CancelVerdict::Cancelled, CancelVerdict::NotFound];
    for (ticket, verdict) in [(first, cancelled), (again, cancelled), (unknown, none)] {
        assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(verdict)));
    }
    assert_eq!(rig.shard(0).stats().pending, 1);
    rig.check_replay();
    let afterwards = cancel(&mut rig, topic, "a");
    assert_eq!(rig.reply(afterwards), Some(ReplyBody::Cancelled(none)));
}

#[test]
fn a_far_event_is_cancelled_by_its_name() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, 100 * WINDOW_MS);
    publish(&mut rig, topic, &[event(Due::After(86_400_000), "a", b"far")]);
    rig.advance_ms(20 * 60_000);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 1);
    let ticket = cancel(&mut rig, topic, "a");
    rig.settle();
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    assert_eq!(rig.shard(0).stats().pending, 0);
}

#[test]
fn a_rescheduled_event_keeps_its_name_and_receipt_and_is_cancelled_by_it_in_a_run() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, 100 * WINDOW_MS);
    publish(&mut rig, topic, &[later("a"), later("b")]);
    let far = rig.now.wall.plus_ms(86_400_000);
    for sequence in [1, 2] {
        let event = rig.id(0, Sequence(sequence));
        rig.reschedule(event, far, None);
    }
    rig.sync();
    rig.advance_ms(20 * 60_000);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 2);
    for round in 0..2 {
        let again = publish(&mut rig, topic, &[later("a"), later("b")]);
        assert_eq!(again.2, [first(0, 1, START), first(1, 2, START)], "round {round}");
        let newest = rig.newest(0);
        rig.relocate(0, newest, 1 << 20);
        rig.sync();
        rig.trim(0, usize::MAX);
        rig.check_replay();
        rig.crash();
    }
    let ticket = cancel(&mut rig, topic, "a");
    rig.settle();
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    assert_eq!(rig.shard(0).stats().pending, 1);
    rig.check();
    rig.check_replay();
}

#[test]
fn a_cancellation_by_name_waits_for_an_event_in_flight() {
    let mut rig = Rig::new(config(1));
    let topic = topic(&mut rig, WINDOW_MS);
    rig.publish(0, topic, &[later("a")]);
    rig.commit(0);
    let ticket = cancel(&mut rig, topic, "a");
    assert_eq!(rig.reply(ticket), None);
    rig.sync();
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn a_name_is_cancelled_within_its_window_only_and_in_topics_that_keep_names() {
    let mut rig = Rig::new(config(1));
    let (named, plain) = (topic(&mut rig, WINDOW_MS), topic(&mut rig, 0));
    publish(&mut rig, named, &[event(Due::After(10 * WINDOW_MS), "a", b"")]);
    rig.advance_ms(WINDOW_MS);
    let ticket = cancel(&mut rig, named, "a");
    rig.sync();
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::NotFound)));
    for (topic, code) in [(plain, ErrorCode::InvalidSettings), (TopicId(99), ErrorCode::UnknownTopic)] {
        let ticket = cancel(&mut rig, topic, "a");
        match rig.reply(ticket) {
            Some(ReplyBody::Refused(refusal)) => assert_eq!(refusal.code, code),
            other => panic!("{other:?}"),
        }
    }
}
