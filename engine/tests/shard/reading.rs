//! What is pending can be read, wherever it is.

use escapement_engine::ShardConfig;
use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    CancelVerdict, Counts, EventDetail, EventPlace, OutcomeCount, Query, TaskState,
};
use escapement_protocol::settings::SubscriptionSettings;
use escapement_protocol::{AttemptResult, EventId, Outcome, ShardId, SubscriptionId, TopicId, WallMs};

use crate::rig::{Rig, START, config, event};

const HORIZON_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;

fn rig() -> (Rig, TopicId, SubscriptionId) {
    let mut rig = Rig::new(ShardConfig { horizon_ms: HORIZON_MS, ..config(1) });
    let topic = rig.create_topic("t");
    let subscription = rig.create_subscription(SubscriptionSettings {
        name: "s".into(),
        topic: "t".into(),
        min_backoff_ms: 1_000,
        jitter_permille: 0,
        ..SubscriptionSettings::default()
    });
    (rig, topic, subscription)
}

/// Publishes an event due at `START` and some ms.
fn publish(rig: &mut Rig, topic: TopicId, after_ms: u64, data: &[u8]) -> EventId {
    let due = WallMs(START.0 + after_ms);
    let sequence = rig.published(0, topic, event(Due::At(due), "e", data));
    EventId { shard: ShardId(0), sequence, schedule_time_ms: due.0 }
}

fn is_as_published(detail: &EventDetail, id: EventId, data: &[u8]) -> bool {
    let bytes = event(Due::At(WallMs(id.schedule_time_ms)), "e", data);
    detail.info.id == id
        && detail.info.due.0 == id.schedule_time_ms
        && detail.info.size_bytes as usize == bytes.len()
        && detail.bytes.as_ref() == Some(&bytes)
}

#[test]
fn an_event_is_found_at_every_step_of_its_way_to_a_run_and_back() {
    let (mut rig, topic, _) = rig();
    let id = publish(&mut rig, topic, HOUR_MS, b"one");
    let mut tickets = Vec::new();
    for n in 0..120 {
        match n {
            0 => rig.advance_ms(HORIZON_MS / 4),
            50 => rig.advance_ms(HOUR_MS - HORIZON_MS / 4 - HORIZON_MS),
            _ => {}
        }
        tickets.push(rig.query(Query::Event { event: id, peek: true }));
        match n % 4 {
            0 => rig.maintain(),
            1 => drop(rig.run_op(0)),
            2 => rig.commit(0),
            _ => drop(rig.complete(0)),
        }
    }
    rig.settle();
    let mut places = Vec::new();
    for (n, ticket) in tickets.into_iter().enumerate() {
        let detail = rig.detail(ticket).unwrap_or_else(|| panic!("asked for at step {n}"));
        assert!(is_as_published(&detail, id, b"one"), "step {n}: {detail:?}");
        assert_eq!((detail.info.topic, detail.info.state), (topic, TaskState::Scheduled));
        places.push(detail.info.place);
    }
    places.dedup();
    assert_eq!(places, [EventPlace::Memory, EventPlace::Run, EventPlace::Memory]);
}

#[test]
fn what_was_cancelled_is_not_found_and_its_neighbours_are_also_after_a_crash() {
    let (mut rig, topic, _) = rig();
    let ids: Vec<EventId> =
        (0..200u64).map(|n| publish(&mut rig, topic, HOUR_MS + n * 1_000, &n.to_le_bytes())).collect();
    let near = publish(&mut rig, topic, 1_000, b"near");
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    for id in ids.iter().step_by(3) {
        let ticket = rig.cancel(*id);
        rig.settle();
        assert_eq!(
            rig.reply(ticket),
            Some(escapement_engine::ReplyBody::Cancelled(CancelVerdict::Cancelled))
        );
    }
    for round in 0..2 {
        for (n, id) in (0u64..).zip(&ids) {
            let found = rig.peek(*id);
            assert_eq!(found.is_some(), n % 3 != 0, "event {n}, round {round}");
            assert!(found.is_none_or(|detail| is_as_published(&detail, *id, &n.to_le_bytes())));
        }
        assert_eq!(rig.peek(near).expect("due, and nobody takes it").info.state, TaskState::Ready);
        rig.crash();
    }
    let wrong = EventId { schedule_time_ms: ids[1].schedule_time_ms + 1, ..ids[1] };
    assert_eq!(rig.peek(wrong), None, "the whole id must be right");
    let wrong = EventId { schedule_time_ms: near.schedule_time_ms + 1, ..near };
    assert_eq!(rig.peek(wrong), None, "the whole id must be right");
}

#[test]
fn a_cancellation_in_a_run_is_seen_by_a_look_up_that_began_before_it() {
    let (mut rig, topic, _) = rig();
    let id = publish(&mut rig, topic, HOUR_MS, b"one");
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let cancelled = rig.cancel(id);
    let asked = rig.query(Query::Event { event: id, peek: false });
    assert!(rig.run_op(0), "the cancellation reads a block");
    rig.sync();
    assert!(rig.reply(cancelled).is_some());
    rig.settle();
    assert_eq!(rig.detail(asked), None);
}

#[test]
fn an_event_tells_what_its_tasks_came_to() {
    let (mut rig, topic, subscription) = rig();
    rig.attach(subscription);
    let id = publish(&mut rig, topic, 1_000, b"one");
    assert_eq!(rig.peek(id).expect("pending").info.state, TaskState::Scheduled);
    rig.advance_ms(1_000);
    rig.sync();
    let detail = rig.peek(id).expect("pending");
    assert_eq!((detail.info.state, detail.tasks.len()), (TaskState::Ready, 0));
    let (_, push) = rig.pushes.pop().expect("a push");
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.sync();
    let detail = rig.peek(id).expect("pending");
    assert_eq!((detail.info.state, detail.task_count), (TaskState::Backoff, 1));
    let task = detail.tasks[0];
    assert_eq!((task.subscription, task.attempt, task.done), (subscription, 1, false));
    assert_eq!(task.next_due, WallMs(START.0 + 2_000));
    rig.advance_ms(1_000);
    rig.sync();
    assert_eq!(rig.peek(id).expect("pending").info.state, TaskState::Ready);
    let (_, push) = rig.pushes.pop().expect("a push");
    rig.answer(&push, AttemptResult::Success);
    rig.sync();
    assert_eq!(rig.peek(id), None);
}

/// Scheduled events, those of them in runs, and ready ones.
fn pending(rig: &mut Rig, topic: TopicId) -> (u64, u64, u64) {
    let Counts { scheduled, ready, in_runs, .. } = rig.count(topic, SubscriptionId(0));
    (scheduled, in_runs, ready)
}

#[test]
fn events_are_counted_by_topic_wherever_they_are_and_after_crashes() {
    let (mut rig, topic, subscription) = rig();
    let other = rig.create_topic("u");
    let ids: Vec<EventId> = (0..300u64)
        .map(|n| publish(&mut rig, if n % 3 == 0 { other } else { topic }, HOUR_MS + n * 1_000, &[7; 100]))
        .collect();
    publish(&mut rig, topic, 60_000, b"near");
    assert_eq!(pending(&mut rig, topic), (201, 0, 0));
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!(pending(&mut rig, topic), (201, 200, 0));
    assert_eq!(pending(&mut rig, other), (100, 100, 0));
    for id in &ids[..30] {
        rig.cancel(*id);
        rig.settle();
    }
    for round in 0..3 {
        assert_eq!(pending(&mut rig, topic), (181, 180, 0), "round {round}");
        assert_eq!(pending(&mut rig, other), (90, 90, 0), "round {round}");
        assert_eq!(pending(&mut rig, TopicId(0)), (271, 270, 0), "round {round}");
        rig.check();
        let newest = rig.newest(0);
        rig.relocate(0, newest, 1 << 20);
        rig.sync();
        rig.trim(0, usize::MAX);
        rig.check_replay();
        rig.crash();
    }
    // Half of them are loaded, some of them due: nobody takes those of one topic, and the other has no subscription.
    rig.attach(subscription);
    rig.advance_ms(HOUR_MS + 150_000);
    rig.settle();
    rig.check();
    let (scheduled, in_runs, ready) = pending(&mut rig, topic);
    let due = 1 + ids[30..].iter().filter(|id| id.schedule_time_ms <= rig.now.wall.0).count() as u64 * 2 / 3;
    assert!(in_runs < scheduled && ready.abs_diff(due) <= 1, "{ready} ready, {due} due");
    assert_eq!(scheduled + ready, 181);
    let other_pending = pending(&mut rig, other);
    assert_eq!(other_pending.2, 0, "without a subscription they end at once: {other_pending:?}");
    rig.crash();
    assert_eq!(pending(&mut rig, topic), (181, in_runs, 0), "what was handed out is handed out again");
    rig.settle();
    assert_eq!(pending(&mut rig, topic), (scheduled, in_runs, ready));
    rig.check();
}

#[test]
fn rescheduled_events_are_counted_where_they_are_on_their_way_out_of_a_run_and_into_another() {
    let (mut rig, topic, _) = rig();
    let other = rig.create_topic("u");
    let ids: Vec<EventId> = (0..60u64)
        .map(|n| publish(&mut rig, if n % 3 == 0 { other } else { topic }, HOUR_MS + n * 1_000, &[7; 100]))
        .collect();
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!(pending(&mut rig, topic), (40, 40, 0));
    for id in &ids[..15] {
        // Near, and in the log.
        rig.reschedule(*id, rig.now.wall.plus_ms(30_000), None);
    }
    for id in &ids[15..30] {
        // In another run, soon.
        rig.reschedule(*id, rig.now.wall.plus_ms(3 * HOUR_MS), None);
    }
    rig.settle();
    assert_eq!((pending(&mut rig, topic), pending(&mut rig, other)), ((40, 20, 0), (20, 10, 0)));
    rig.check();
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    for round in 0..3 {
        assert_eq!(pending(&mut rig, topic), (40, 30, 0), "round {round}");
        assert_eq!(pending(&mut rig, other), (20, 15, 0), "round {round}");
        rig.check();
        let newest = rig.newest(0);
        rig.relocate(0, newest, 1 << 20);
        rig.sync();
        rig.trim(0, usize::MAX);
        rig.check_replay();
        rig.crash();
    }
    rig.advance_ms(30_000);
    rig.settle();
    let ended = pending(&mut rig, other);
    assert_eq!(ended, (15, 15, 0), "without a subscription they end at once");
    assert_eq!(pending(&mut rig, topic), (30, 30, 10), "and are handed out with one");
    rig.check();
}

#[test]
fn tasks_are_counted_by_subscription_and_what_ended_by_outcome() {
    let (mut rig, topic, subscription) = rig();
    let session = rig.attach(subscription);
    let ids: Vec<EventId> = (0..5).map(|_| publish(&mut rig, topic, 1_000, b"one")).collect();
    let cancelled = rig.cancel(ids[4]);
    rig.advance_ms(1_000);
    rig.sync();
    assert!(rig.reply(cancelled).is_some());
    let pushes = std::mem::take(&mut rig.pushes);
    assert_eq!(pushes.len(), 4);
    for (push, result) in
        pushes.iter().zip([AttemptResult::Success, AttemptResult::Success, AttemptResult::RetryableFailure])
    {
        rig.answer(&push.1, result);
    }
    rig.sync();
    let counts = rig.count(topic, subscription);
    assert_eq!((counts.scheduled, counts.ready, counts.running, counts.backoff), (0, 2, 1, 1));
    let ended = OutcomeCount { outcome: Outcome::Succeeded as u8, count: 2 };
    assert_eq!((counts.queued, counts.ended), (0, vec![ended]));
    let ended = OutcomeCount { outcome: Outcome::Cancelled as u8, count: 1 };
    assert_eq!(rig.count(topic, SubscriptionId(0)).ended, [ended]);
    rig.detach(subscription, session, escapement_router::Detach::Graceful);
    rig.advance_ms(2_000);
    rig.sync();
    let counts = rig.count(TopicId(0), subscription);
    assert_eq!((counts.ready, counts.queued, counts.running, counts.backoff), (2, 2, 0, 0));
    rig.check();
}
