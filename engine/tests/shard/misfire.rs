//! Events whose due time passes while nobody serves.

use escapement_engine::Undelivered;
use escapement_protocol::event::Due;
use escapement_protocol::{
    AttemptResult, EventSpec, Misfire, MonoNs, Now, Sequence, SubscriptionId, SubscriptionSettings, TopicId,
};

use crate::rig::{Rig, START, config, event};

fn settings(name: &str, misfire: Misfire) -> SubscriptionSettings {
    SubscriptionSettings {
        name: name.into(),
        topic: "t".into(),
        jitter_permille: 0,
        min_backoff_ms: 100,
        misfire,
        ..SubscriptionSettings::default()
    }
}

fn rig_with(misfire: Misfire) -> (Rig, TopicId, SubscriptionId) {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(settings("s", misfire));
    (rig, topic, id)
}

/// The node is down for so long.
fn down(rig: &mut Rig, ms: u64) {
    rig.advance_ms(ms);
    rig.crash();
}

fn pushed(rig: &mut Rig) -> Vec<Sequence> {
    std::mem::take(&mut rig.pushes).into_iter().map(|(_, push)| push.sequence).collect()
}

#[test]
fn what_is_older_than_the_policy_takes_is_skipped_and_counted_and_the_rest_fires() {
    let (mut rig, topic, id) = rig_with(Misfire::SkipOlderThan(1_000));
    let other = rig.create_subscription(settings("other", Misfire::Fire));
    let old = rig.published(0, topic, event(Due::After(100), "old", b""));
    let young = rig.published(0, topic, event(Due::After(9_100), "young", b""));
    down(&mut rig, 10_100);
    rig.attach_all(&[id, other]);
    rig.sync();
    let mut found: Vec<_> = rig.pushes.iter().map(|(_, push)| (push.subscription, push.sequence)).collect();
    found.sort_unstable_by_key(|(subscription, sequence)| (sequence.0, subscription.0));
    assert_eq!(found, [(other, old), (id, young), (other, young)]);
    assert_eq!(rig.shard(0).undelivered(id), Undelivered { expired: 0, skipped: 1 });
    assert_eq!(rig.shard(0).stats().skipped, 1);
    for (_, push) in std::mem::take(&mut rig.pushes) {
        rig.answer(&push, AttemptResult::Success);
    }
    rig.sync();
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn a_backlog_that_a_serving_node_had_is_not_a_misfire() {
    let (mut rig, topic, id) = rig_with(Misfire::SkipOlderThan(1_000));
    rig.published(0, topic, event(Due::After(100), "a", b""));
    for _ in 0..100 {
        rig.advance_ms(200);
        rig.sync();
    }
    rig.attach(id);
    rig.sync();
    assert_eq!(pushed(&mut rig), [Sequence(1)], "20 s late, as nobody took it");
}

#[test]
fn an_idle_shard_that_is_called_in_time_has_missed_nothing() {
    let (mut rig, topic, id) = rig_with(Misfire::SkipOlderThan(1));
    rig.published(0, topic, event(Due::After(60_000), "a", b""));
    rig.attach(id);
    rig.advance_ms(60_002);
    rig.sync();
    assert_eq!(pushed(&mut rig), [Sequence(1)]);
}

#[test]
fn a_suspended_machine_and_a_stepped_clock_miss_what_they_jump_over() {
    let (mut rig, topic, id) = rig_with(Misfire::SkipOlderThan(1_000));
    rig.attach(id);
    rig.published(0, topic, event(Due::After(1_000), "jumped", b""));
    rig.published(0, topic, event(Due::After(7_500), "just", b""));
    rig.published(0, topic, event(Due::After(9_000), "later", b""));
    let Now { mono, wall } = rig.now;
    rig.now = Now { mono: MonoNs(mono.0 + 1_000_000), wall: wall.plus_ms(8_000) };
    rig.sync();
    assert_eq!(pushed(&mut rig), [Sequence(2)]);
    rig.advance_ms(1_000);
    rig.sync();
    assert_eq!(pushed(&mut rig), [Sequence(3)]);
    assert_eq!(rig.shard(0).stats().skipped, 1);
}

#[test]
fn missed_tasks_are_spread_evenly_however_uneven_their_due_times_are() {
    let (mut rig, topic, id) = rig_with(Misfire::SpreadOver(10_000));
    let events: Vec<Vec<u8>> = (0..100).map(|n| event(Due::After(100), &format!("{n}"), b"")).collect();
    rig.publish(0, topic, &events);
    rig.sync();
    down(&mut rig, 3_600_000);
    rig.attach(id);
    let mut seen = Vec::new();
    for _ in 0..10 {
        rig.sync();
        seen.push(pushed(&mut rig).len());
        rig.advance_ms(1_000);
    }
    rig.sync();
    seen.push(pushed(&mut rig).len());
    assert_eq!(seen.iter().sum::<usize>(), 100);
    assert!(seen[0] == 1 && seen[1..10].iter().all(|count| *count == 10), "{seen:?}");
}

#[test]
fn spread_tasks_of_a_key_keep_their_order_also_before_newly_due_ones() {
    let (mut rig, topic, id) = rig_with(Misfire::SpreadOver(4_000));
    let keyed = |delay_ms, id| {
        let mut bytes = Vec::new();
        let spec = EventSpec { ordering_key: b"k", ..EventSpec::new(Due::After(delay_ms), id, b"") };
        spec.encode(&mut bytes).expect("a valid event");
        bytes
    };
    let newly = rig.published(0, topic, keyed(10_500, "new"));
    let second = rig.published(0, topic, keyed(2_000, "second"));
    let first = rig.published(0, topic, keyed(1_000, "first"));
    down(&mut rig, 10_000);
    rig.attach(id);
    let mut order = Vec::new();
    for _ in 0..60 {
        rig.sync();
        for (_, push) in std::mem::take(&mut rig.pushes) {
            order.push(push.sequence);
            rig.answer(&push, AttemptResult::Success);
        }
        rig.advance_ms(100);
    }
    assert_eq!(order, [first, second, newly]);
    assert!(rig.now.wall > START);
}

#[test]
fn a_task_of_which_an_attempt_is_known_was_not_missed() {
    let (mut rig, topic, id) = rig_with(Misfire::SkipOlderThan(1));
    rig.attach(id);
    rig.published(0, topic, event(Due::After(0), "a", b""));
    let push = rig.pushes.remove(0).1;
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.sync();
    down(&mut rig, 60_000);
    rig.attach(id);
    rig.sync();
    assert_eq!((pushed(&mut rig).len(), rig.shard(0).stats().skipped), (1, 0));
}
