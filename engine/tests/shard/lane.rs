//! Overdue events are delivered by a lane of their own, and newly due ones keep their promise.

use escapement_engine::{Input, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::{
    AttemptResult, EventSpec, Sequence, SubscriptionId, SubscriptionSettings, TopicId, WallMs,
};

use crate::rig::{Rig, START, config};

/// Overdue tasks that a subscription has open at most.
const LANE_TASKS: usize = 512;
const HOUR_MS: u64 = 3_600_000;

fn event(due_ms: u64, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let due = Due::At(START.plus_ms(due_ms));
    let spec = EventSpec { ordering_key: key, ..EventSpec::new(due, "e", b"data") };
    spec.encode(&mut bytes).expect("a valid event");
    bytes
}

fn subscribed(rig: &mut Rig, topic: &str) -> (TopicId, SubscriptionId) {
    let id = rig.create_topic(topic);
    let settings =
        SubscriptionSettings { name: topic.into(), topic: topic.into(), ..SubscriptionSettings::default() };
    (id, rig.create_subscription(settings))
}

/// Publishes events that are due one after the other, in each of the next ms.
fn publish(rig: &mut Rig, topic: TopicId, count: u64, key: &[u8]) {
    for first in (0..count).step_by(50) {
        let events: Vec<Vec<u8>> = (first..count.min(first + 50)).map(|n| event(1 + n, key)).collect();
        rig.publish(0, topic, &events);
        rig.sync();
    }
}

fn down(rig: &mut Rig, until_ms: u64) {
    let ms = START.plus_ms(until_ms).0 - rig.now.wall.0;
    rig.advance_ms(ms);
    rig.crash();
}

fn pushed(rig: &Rig) -> Vec<Sequence> {
    rig.pushes.iter().map(|(_, push)| push.sequence).collect()
}

/// Answers what was pushed until nothing more comes, and says in which order it came.
fn delivered(rig: &mut Rig) -> Vec<Sequence> {
    let mut all = Vec::new();
    loop {
        rig.settle();
        if rig.pushes.is_empty() {
            return all;
        }
        for (_, push) in std::mem::take(&mut rig.pushes) {
            all.push(push.sequence);
            rig.answer(&push, AttemptResult::Success);
        }
    }
}

#[test]
fn a_newly_due_event_waits_behind_a_bounded_number_of_overdue_ones() {
    let mut rig = Rig::new(config(1));
    let (topic, id) = subscribed(&mut rig, "t");
    publish(&mut rig, topic, 2_000, b"");
    let newly = rig.published(0, topic, event(HOUR_MS + 10, b""));
    down(&mut rig, HOUR_MS);
    for _ in 0..10 {
        rig.sync();
    }
    assert_eq!(rig.shard(0).router().tasks(), LANE_TASKS, "nobody takes them, and no more are offered");
    assert_eq!(rig.shard(0).stats().overdue, 2_000 - LANE_TASKS as u64);
    assert!(rig.shard(0).next_deadline().wall > Some(rig.now.wall), "it sleeps meanwhile");
    rig.advance_ms(10);
    rig.sync();
    rig.attach(id);
    rig.sync();
    assert_eq!(pushed(&rig).iter().position(|sequence| *sequence == newly), Some(LANE_TASKS));
    assert_eq!(delivered(&mut rig).len(), 2_001);
    assert_eq!((rig.shard(0).stats().pending, rig.shard(0).stats().overdue), (0, 0));
    rig.check();
}

#[test]
fn a_newly_due_event_with_a_key_waits_for_the_overdue_ones_of_its_key_only() {
    let mut rig = Rig::new(config(1));
    let (topic, id) = subscribed(&mut rig, "t");
    publish(&mut rig, topic, 1_500, b"a");
    let same = rig.published(0, topic, event(HOUR_MS + 10, b"a"));
    let other = rig.published(0, topic, event(HOUR_MS + 10, b"b"));
    let later = rig.published(0, topic, event(HOUR_MS + 11, b"a"));
    down(&mut rig, HOUR_MS);
    rig.attach(id);
    rig.sync();
    rig.pushes.clear();
    rig.advance_ms(20);
    rig.sync();
    assert_eq!(pushed(&rig), [other], "not one of the key's overdue events has ended");
    rig.crash();
    rig.attach(id);
    let order = delivered(&mut rig);
    let of_key: Vec<Sequence> = order.into_iter().filter(|sequence| *sequence != other).collect();
    let expected: Vec<Sequence> = (1..=1_500).map(Sequence).chain([same, later]).collect();
    assert_eq!(of_key, expected);
}

#[test]
fn what_was_held_back_comes_in_order_once_the_lane_is_empty() {
    let mut rig = Rig::new(config(1));
    let (topic, id) = subscribed(&mut rig, "t");
    publish(&mut rig, topic, 1_200, b"a");
    let newly: Vec<Sequence> =
        (0..200).map(|n| rig.published(0, topic, event(HOUR_MS + 1 + n, b"a"))).collect();
    down(&mut rig, HOUR_MS);
    for _ in 0..21 {
        rig.advance_ms(10);
        rig.sync();
    }
    rig.attach(id);
    let order = delivered(&mut rig);
    assert_eq!(order[1_200..], newly);
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check();
}

#[test]
fn newly_due_events_pass_overdue_ones_that_are_still_on_the_disk() {
    let mut rig = Rig::new(ShardConfig { horizon_ms: 60_000, ..config(1) });
    let (topic, id) = subscribed(&mut rig, "t");
    let far: Vec<Sequence> = (0..300).map(|n| rig.published(0, topic, event(HOUR_MS + n, b"a"))).collect();
    rig.advance_ms(15_000);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 300);
    down(&mut rig, 2 * HOUR_MS);
    let due = |ms| event(2 * HOUR_MS + ms, b"");
    let free = rig.published(0, topic, due(10));
    let keyed = rig.published(0, topic, event(2 * HOUR_MS + 10, b"b"));
    rig.attach(id);
    rig.advance_ms(10);
    // Not one read of a run is answered.
    rig.sync();
    assert_eq!(pushed(&rig), [free], "what is unread may have the other's key");
    let order = delivered(&mut rig);
    assert_eq!(order[0], free);
    let of_key: Vec<Sequence> = order.iter().copied().filter(|sequence| far.contains(sequence)).collect();
    assert_eq!(of_key, far);
    assert!(order.contains(&keyed));
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn overdue_events_of_a_topic_that_nobody_takes_don_t_bar_anothers() {
    let mut rig = Rig::new(config(1));
    let (dead, _) = subscribed(&mut rig, "dead");
    let (alive, id) = subscribed(&mut rig, "alive");
    publish(&mut rig, dead, 1_500, b"");
    publish(&mut rig, alive, 1_500, b"");
    down(&mut rig, HOUR_MS);
    rig.attach(id);
    assert_eq!(delivered(&mut rig).len(), 1_500);
    assert_eq!(rig.shard(0).router().tasks(), LANE_TASKS);
    assert_eq!(rig.shard(0).stats().pending, 1_500);
}

#[test]
fn a_run_that_comes_near_is_read_ahead_of_overdue_ones_that_have_no_room() {
    let mut rig = Rig::new(ShardConfig {
        horizon_ms: 60_000,
        memory_bytes_max: 4 << 20,
        run_size_bytes: 100_000,
        ..config(1)
    });
    let (topic, id) = subscribed(&mut rig, "t");
    let data = [7; 700];
    for n in 0..400 {
        let mut batch = Vec::new();
        for _ in 0..8 {
            let due = Due::At(START.plus_ms(HOUR_MS + n));
            EventSpec::new(due, "e", &data).encode(&mut batch).expect("a valid event");
        }
        let ticket = rig.ticket();
        rig.step(0, Input::Publish { ticket, topic, count: 8, events: &batch });
        rig.settle();
    }
    rig.advance_ms(15_000);
    rig.settle();
    let due = Due::At(WallMs(START.0 + 2 * HOUR_MS + 90_000));
    let mut bytes = Vec::new();
    EventSpec::new(due, "near", b"").encode(&mut bytes).expect("a valid event");
    let near = rig.published(0, topic, bytes);
    rig.advance_ms(15_000);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 3_201);
    down(&mut rig, 2 * HOUR_MS);
    rig.settle();
    assert!(rig.shard(0).stats().far > 1, "half of the memory is full of what nobody takes");
    for _ in 0..9 {
        rig.advance_ms(10_000);
        rig.settle();
    }
    rig.attach(id);
    rig.sync();
    assert!(pushed(&rig).contains(&near), "in time");
}

#[test]
fn a_rescheduled_event_is_overdue_or_newly_due_by_the_time_that_counts() {
    let mut rig = Rig::new(config(1));
    let (topic, id) = subscribed(&mut rig, "t");
    publish(&mut rig, topic, 1_500, b"");
    let [earlier, put_off, now] =
        [2 * HOUR_MS, 2_000, 2 * HOUR_MS].map(|due_ms| rig.published(0, topic, event(due_ms, b"")));
    for (sequence, due_ms) in [(earlier, 1_600), (put_off, HOUR_MS + 10)] {
        let event = rig.id(0, sequence);
        rig.reschedule(event, START.plus_ms(due_ms), None);
    }
    rig.sync();
    down(&mut rig, HOUR_MS);
    assert_eq!(rig.shard(0).stats().overdue, 1_501, "with the one that was due later at first");
    let event = rig.id(0, now);
    rig.reschedule(event, WallMs(0), None);
    rig.advance_ms(10);
    rig.sync();
    rig.attach(id);
    rig.sync();
    let order = delivered(&mut rig);
    let place = |of| order.iter().position(|sequence| *sequence == of);
    assert!(place(now) <= Some(LANE_TASKS + 1) && place(put_off) <= Some(LANE_TASKS + 1), "{order:?}");
    assert_eq!(place(earlier), Some(1_502), "the last of the lane");
    assert_eq!(order.len(), 1_503);
    rig.check();
}
