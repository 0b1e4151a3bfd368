//! What is not accepted, what is not cancelled, and what is said about it.

use escapement_engine::{Refusal, ReplyBody, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{CancelVerdict, TaskState};
use escapement_protocol::{AttemptResult, ErrorCode, EventId, Sequence, SubscriptionSettings, TopicId};

use crate::rig::{Rig, config, event};

fn refusal(body: Option<ReplyBody>) -> Refusal {
    match body {
        Some(ReplyBody::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cancellation_has_the_verdict_of_the_events_state() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let sequence = rig.published(0, topic, event(Due::After(100), "id", b""));
    let id = rig.id(0, sequence);
    let unknown = EventId { sequence: Sequence(99), ..id };
    assert_eq!(rig.cancelled(unknown), CancelVerdict::NotFound);
    let mistaken = EventId { schedule_time_ms: id.schedule_time_ms + 1, ..id };
    assert_eq!(rig.cancelled(mistaken), CancelVerdict::NotFound, "the number is right, the due time is not");
    assert_eq!(rig.cancelled(id), CancelVerdict::Cancelled);
    assert_eq!(rig.cancelled(id), CancelVerdict::NotFound, "it is gone");
    rig.check_replay();

    let settings = SubscriptionSettings { name: "s".into(), topic: "t".into(), ..Default::default() };
    let subscription = rig.create_subscription(settings);
    rig.attach(subscription);
    let sequence = rig.published(0, topic, event(Due::After(100), "id", b""));
    let id = rig.id(0, sequence);
    rig.advance_ms(100);
    let due = CancelVerdict::TooLate { state: TaskState::Ready, attempt: 0 };
    assert_eq!(rig.cancelled(id), due);
    let push = rig.pushes.remove(0).1;
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.sync();
    assert_eq!(rig.cancelled(id), CancelVerdict::TooLate { state: TaskState::Backoff, attempt: 1 });
    rig.advance_ms(60_000);
    assert_eq!(rig.cancelled(id), CancelVerdict::TooLate { state: TaskState::Ready, attempt: 1 });
}

#[test]
fn cancelled_events_leave_the_wheel_long_before_they_would_be_due() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    rig.published(0, topic, event(Due::After(1_000_000_000), "id", b""));
    for n in 1..5_000 {
        let sequence = rig.published(0, topic, event(Due::After(1_000_000_000 + n), "id", b""));
        assert_eq!(rig.cancelled(rig.id(0, sequence)), CancelVerdict::Cancelled);
    }
    for _ in 0..10 {
        rig.maintain();
    }
    let stats = rig.shard(0).stats();
    assert_eq!(stats.pending, 1);
    assert!(stats.timers <= 1_026, "{} entries for one event", stats.timers);
    rig.check();
}

#[test]
fn a_cancelled_event_is_fenced_before_its_record_is_durable() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let settings = SubscriptionSettings { name: "s".into(), topic: "t".into(), ..Default::default() };
    let subscription = rig.create_subscription(settings);
    rig.attach(subscription);
    let sequence = rig.published(0, topic, event(Due::After(10), "id", b""));
    let id = rig.id(0, sequence);
    let first = rig.cancel(id);
    rig.maintain();
    rig.commit(0);
    // Its block is on its way: the second answer waits for it, and for nothing later.
    let second = rig.cancel(id);
    rig.advance_ms(50);
    rig.maintain();
    assert_eq!((rig.reply(first), rig.reply(second), rig.pushes.len()), (None, None, 0));
    rig.sync();
    let cancelled = Some(ReplyBody::Cancelled(CancelVerdict::Cancelled));
    assert_eq!((rig.reply(first), rig.reply(second)), (cancelled.clone(), cancelled));
    assert_eq!((rig.pushes.len(), rig.shard(0).stats().pending), (0, 0));
}

#[test]
fn an_unknown_topic_is_refused() {
    let mut rig = Rig::new(config(1));
    let ticket = rig.publish(0, TopicId(3), &[event(Due::After(0), "id", b"")]);
    let refused = refusal(rig.reply(ticket));
    assert_eq!((refused.code, refused.retry_after_ms), (ErrorCode::UnknownTopic, 0));
}

#[test]
fn full_memory_refuses_until_events_have_gone() {
    let mut rig = Rig::new(ShardConfig { memory_bytes_max: 3 << 20, ..config(1) });
    let topic = rig.create_topic("t");
    let settings = SubscriptionSettings { name: "s".into(), topic: "t".into(), ..Default::default() };
    let subscription = rig.create_subscription(settings);
    let batch: Vec<_> = (0..20).map(|_| event(Due::After(1_000), "id", &[1; 1_000])).collect();
    let mut accepted = 0;
    let refused = loop {
        let ticket = rig.publish(0, topic, &batch);
        if let Some(body) = rig.reply(ticket) {
            break refusal(Some(body));
        }
        accepted += 20;
        rig.sync();
    };
    assert_eq!(refused.code, ErrorCode::ResourceExhausted);
    assert!(refused.retry_after_ms > 0 && refused.code.is_retryable());
    assert!((500..3_000).contains(&accepted), "{accepted}");
    rig.attach(subscription);
    rig.advance_ms(1_000);
    while rig.shard(0).next_deadline().wall.is_some() {
        rig.maintain();
    }
    let pushes = std::mem::take(&mut rig.pushes);
    assert_eq!(pushes.len(), accepted);
    pushes.iter().for_each(|(_, push)| rig.answer(push, AttemptResult::Success));
    rig.sync();
    let ticket = rig.publish(0, topic, &batch);
    rig.sync();
    assert!(matches!(rig.reply(ticket), Some(ReplyBody::Published { accepted_count: 20, .. })));
}

#[test]
fn a_full_log_refuses_publishes_and_takes_what_ends_events() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let settings = SubscriptionSettings { name: "s".into(), topic: "t".into(), ..Default::default() };
    let subscription = rig.create_subscription(settings);
    rig.attach(subscription);
    let first = rig.published(0, topic, event(Due::After(10), "id", b""));
    let second = rig.published(0, topic, event(Due::After(50), "id", b""));
    rig.shard_mut(0).set_log_room(0);
    let ticket = rig.publish(0, topic, &[event(Due::After(0), "id", b"")]);
    assert_eq!(refusal(rig.reply(ticket)).code, ErrorCode::ResourceExhausted);
    rig.advance_ms(10);
    rig.sync();
    let push = rig.pushes.remove(0).1;
    assert_eq!(push.sequence, first);
    rig.answer(&push, AttemptResult::Success);
    assert_eq!(rig.cancelled(rig.id(0, second)), CancelVerdict::Cancelled);
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.shard_mut(0).set_log_room(usize::MAX);
    rig.published(0, topic, event(Due::After(10), "id", b""));
}

#[test]
fn a_log_keeps_room_to_append_an_event_again_with_what_its_tasks_come_to() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    for name in ["a", "b", "c"] {
        let settings = SubscriptionSettings { name: name.into(), topic: "t".into(), ..Default::default() };
        rig.create_subscription(settings);
    }
    let bytes = event(Due::After(60_000), "id", b"");
    // A record's header, the copy's fixed part, and the progress of three tasks, and of two that may still come.
    let needed = bytes.len() + 8 + 24 + 5 * 24;
    rig.shard_mut(0).set_log_room(2 * needed - 1);
    rig.published(0, topic, bytes.clone());
    let ticket = rig.publish(0, topic, std::slice::from_ref(&bytes));
    assert_eq!(refusal(rig.reply(ticket)).code, ErrorCode::ResourceExhausted);
    // The event's copy in memory has its sequence before it.
    assert_eq!(rig.shard(0).relocation_size_bytes(), needed + 8);
    rig.check();
}

#[test]
fn a_backlog_that_nobody_takes_has_half_of_the_tasks_and_goes_on_when_somebody_does() {
    let mut rig = Rig::new(ShardConfig { memory_bytes_max: 3 << 20, ..config(1) });
    let topic = rig.create_topic("t");
    let subscriptions: Vec<_> = (0..20)
        .map(|n| {
            let name = format!("s{n}");
            let settings = SubscriptionSettings { name, topic: "t".into(), ..Default::default() };
            rig.create_subscription(settings)
        })
        .collect();
    let batch: Vec<_> = (0..50).map(|_| event(Due::After(1_000), "id", b"")).collect();
    for _ in 0..60 {
        rig.publish(0, topic, &batch);
        rig.sync();
    }
    let mut tasks = 60 * 50 * subscriptions.len();
    // 96 bytes each.
    let most = (3 << 20) / 96;
    assert!(tasks > most + 1_000 * 20, "a turn's tasks may be one batch more");
    rig.advance_ms(1_000);
    rig.maintain();
    for _ in 0..100 {
        rig.maintain();
    }
    assert!((most / 2..most / 2 + 1_000 * 20).contains(&rig.shard(0).router().tasks()));
    assert!(!rig.shard(0).is_behind(), "publishers are answered, until memory is full");
    assert_eq!(rig.shard(0).next_deadline().wall, None, "no time changes anything");
    let refused = loop {
        let ticket = rig.publish(0, topic, &batch);
        if let Some(refused) = rig.reply(ticket) {
            break refused;
        }
        rig.sync();
        tasks += batch.len() * subscriptions.len();
    };
    assert_eq!(refusal(Some(refused)).code, ErrorCode::ResourceExhausted);
    rig.advance_ms(1_000);
    rig.attach_all(&subscriptions);
    let mut pushed = 0;
    loop {
        rig.sync();
        let pushes = std::mem::take(&mut rig.pushes);
        if pushes.is_empty() {
            break;
        }
        pushed += pushes.len();
        pushes.iter().for_each(|(_, push)| rig.answer(push, AttemptResult::Success));
    }
    assert_eq!((pushed, rig.shard(0).stats().pending), (tasks, 0));
    rig.check();
}

#[test]
fn admission_never_exceeds_its_rate_and_says_when_there_is_more() {
    let mut rig = Rig::new(ShardConfig { admission_per_s: 1_000, ..config(1) });
    let topic = rig.create_topic("t");
    let batch: Vec<_> = (0..30).map(|_| event(Due::After(60_000), "id", b"")).collect();
    let ticket = rig.publish(0, topic, &batch);
    assert_eq!(refusal(rig.reply(ticket)).retry_after_ms, 25, "the bucket is empty at a start");
    let mut accepted = 0;
    for _ in 0..100 {
        rig.advance_ms(10);
        let ticket = rig.publish(0, topic, &batch);
        rig.sync();
        match rig.reply(ticket) {
            Some(ReplyBody::Published { accepted_count, refusal, .. }) => {
                accepted += accepted_count;
                assert_eq!(refusal.is_some(), accepted_count < 30);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(accepted, 1_000, "a second's worth");
}

#[test]
fn a_low_admission_rate_says_the_time_to_the_next_event() {
    let mut rig = Rig::new(ShardConfig { admission_per_s: 2, ..config(1) });
    let topic = rig.create_topic("t");
    rig.advance_ms(100);
    let ticket = rig.publish(0, topic, &[event(Due::After(0), "id", b"")]);
    assert_eq!(refusal(rig.reply(ticket)).retry_after_ms, 400);
    rig.advance_ms(400);
    rig.published(0, topic, event(Due::After(0), "id", b""));
}

#[test]
fn an_event_larger_than_a_block_takes_is_refused_and_the_largest_is_not() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let ticket = rig.publish(0, topic, &[event(Due::After(0), "id", &[0; 8_000])]);
    assert_eq!(refusal(rig.reply(ticket)).code, ErrorCode::EventTooLarge);
    let sequence = rig.published(0, topic, event(Due::After(1_000), "id", &[0; 5_000]));
    rig.relocate(0, rig.newest(0), 1 << 30);
    rig.sync();
    assert!(rig.shard(0).event(sequence).is_some());
}
