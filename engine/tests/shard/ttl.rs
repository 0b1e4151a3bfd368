//! Events whose ttl passes.

use escapement_engine::record::{Record, records};
use escapement_engine::{Input, Undelivered};
use escapement_protocol::event::Due;
use escapement_protocol::{
    AttemptResult, EventSpec, Outcome, Sequence, SubscriptionId, SubscriptionSettings, TopicId,
};

use crate::rig::{Rig, START, config};

fn expiring(due: Due, id: &str, ttl_ms: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    EventSpec { ttl_ms, ..EventSpec::new(due, id, b"data") }.encode(&mut bytes).expect("a valid event");
    bytes
}

fn settings(name: &str) -> SubscriptionSettings {
    SubscriptionSettings {
        name: name.into(),
        topic: "t".into(),
        jitter_permille: 0,
        min_backoff_ms: 100,
        ..SubscriptionSettings::default()
    }
}

fn one_subscription() -> (Rig, TopicId, SubscriptionId) {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(settings("s"));
    (rig, topic, id)
}

fn outcomes(rig: &Rig, shard: u16) -> Vec<(Outcome, Vec<Sequence>)> {
    let blocks = (0..rig.log_len(shard)).flat_map(|index| records(rig.block(shard, index)));
    let ended = blocks.filter_map(|record| match record.expect("parses") {
        Record::Completed { outcome, sequences, .. } => Some((outcome, sequences.iter().collect())),
        _ => None,
    });
    ended.collect()
}

#[test]
fn a_task_that_nobody_takes_ends_at_its_expiry_and_not_before() {
    let (mut rig, topic, id) = one_subscription();
    let sequence = rig.published(0, topic, expiring(Due::After(100), "a", 50));
    rig.advance_ms(149);
    rig.sync();
    assert_eq!(rig.shard(0).stats().pending, 1);
    assert_eq!(rig.shard(0).next_deadline().wall, Some(START.plus_ms(150)));
    rig.advance_ms(1);
    rig.sync();
    assert_eq!((rig.shard(0).stats().pending, rig.shard(0).router().tasks()), (0, 0));
    assert_eq!(outcomes(&rig, 0), [(Outcome::Expired, vec![sequence])]);
    assert_eq!(
        (rig.shard(0).stats().expired, rig.shard(0).undelivered(id)),
        (1, Undelivered { expired: 1, skipped: 0 })
    );
    rig.attach(id);
    rig.sync();
    assert_eq!(rig.pushes, []);
    rig.check();
    rig.check_replay();
}

#[test]
fn a_running_attempt_is_not_interrupted_and_its_success_counts() {
    let (mut rig, topic, id) = one_subscription();
    rig.attach(id);
    rig.published(0, topic, expiring(Due::After(0), "a", 50));
    let push = rig.pushes.remove(0).1;
    rig.advance_ms(60);
    rig.sync();
    assert_eq!(rig.shard(0).stats().pending, 1);
    rig.answer(&push, AttemptResult::Success);
    rig.sync();
    assert_eq!((rig.shard(0).stats().pending, rig.shard(0).stats().expired), (0, 0));
}

#[test]
fn an_attempt_that_fails_after_the_expiry_is_the_last() {
    let (mut rig, topic, id) = one_subscription();
    rig.attach(id);
    rig.published(0, topic, expiring(Due::After(0), "a", 50));
    let push = rig.pushes.remove(0).1;
    rig.advance_ms(60);
    rig.sync();
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.sync();
    assert_eq!((rig.shard(0).stats().pending, rig.shard(0).stats().expired), (0, 1));
    rig.advance_ms(10_000);
    rig.sync();
    assert_eq!(rig.pushes, []);
}

#[test]
fn a_task_in_backoff_expires_and_lets_the_next_of_its_key_go() {
    let (mut rig, topic, id) = one_subscription();
    rig.attach(id);
    let keyed = |id, ttl_ms| {
        let mut bytes = Vec::new();
        let spec = EventSpec { ttl_ms, ordering_key: b"k", ..EventSpec::new(Due::After(0), id, b"") };
        spec.encode(&mut bytes).expect("a valid event");
        bytes
    };
    rig.published(0, topic, keyed("a", 50));
    let second = rig.published(0, topic, keyed("b", 0));
    let push = rig.pushes.remove(0).1;
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.sync();
    assert_eq!(rig.pushes, [], "the second waits behind the first's backoff");
    rig.advance_ms(50);
    rig.sync();
    rig.sync();
    assert_eq!(rig.pushes.iter().map(|(_, push)| push.sequence).collect::<Vec<_>>(), [second]);
    rig.check();
}

#[test]
fn a_dispatch_that_another_shard_decided_does_not_leave_after_the_expiry() {
    let mut rig = Rig::new(config(2));
    let topic = rig.create_topic("t");
    // The owner is the other shard than the event's.
    let names = ["a", "b", "c", "d"];
    let ids = names.map(|name| rig.create_subscription(settings(name)));
    rig.attach_all(&ids);
    let sequence = rig.published(0, topic, expiring(Due::After(10), "e", 50));
    rig.advance_ms(10);
    rig.maintain();
    let elsewhere = ids.iter().filter(|id| rig.owner(**id) == 1).count();
    assert!(elsewhere > 0 && elsewhere < 4);
    let own = rig.pushes.len();
    assert_eq!(own, 4 - elsewhere, "the others' decisions are on their way");
    let shard = rig.shard_mut(1);
    let mut effects = escapement_engine::Effects::default();
    let now = escapement_protocol::Now {
        mono: escapement_protocol::MonoNs(5_010_000_000),
        wall: START.plus_ms(10),
    };
    shard.maintain(now, &mut effects);
    rig.advance_ms(50);
    for (to, message) in effects.forwards {
        rig.step(to.0, Input::Message(message));
    }
    for _ in 0..3 {
        rig.sync();
    }
    assert_eq!(rig.pushes.len(), own, "not one leaves after the expiry");
    for (_, push) in std::mem::take(&mut rig.pushes) {
        rig.answer(&push, AttemptResult::Success);
    }
    rig.sync();
    assert!(rig.shard(0).event(sequence).is_none());
    assert_eq!(rig.shard(0).stats().expired, elsewhere as u64);
    assert_eq!(rig.shard(1).running_count(), 0);
    rig.check();
}

#[test]
fn an_expiry_is_kept_over_a_crash_a_copy_and_a_run() {
    let mut small = config(1);
    small.horizon_ms = 1_000;
    let mut rig = Rig::new(small);
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(settings("s"));
    rig.published(0, topic, expiring(Due::After(20_000), "far", 30));
    rig.published(0, topic, expiring(Due::After(400), "near", 200));
    rig.advance_ms(300);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 1);
    rig.relocate(0, rig.newest(0), 1 << 30);
    rig.sync();
    rig.trim(0, usize::MAX);
    rig.crash();
    rig.advance_ms(100);
    rig.settle();
    rig.crash();
    rig.advance_ms(199);
    rig.settle();
    assert_eq!(rig.shard(0).stats().pending, 2);
    rig.advance_ms(1);
    rig.settle();
    assert_eq!((rig.shard(0).stats().pending, rig.shard(0).stats().expired), (1, 1));
    rig.advance_ms(19_430);
    rig.settle();
    rig.attach(id);
    rig.settle();
    assert_eq!(
        (rig.pushes.len(), rig.shard(0).stats().expired),
        (0, 2),
        "overdue and expired when it was loaded"
    );
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check();
}

#[test]
fn expiries_of_what_was_delivered_do_not_pile_up() {
    let (mut rig, topic, id) = one_subscription();
    rig.attach(id);
    let events: Vec<Vec<u8>> =
        (0..100).map(|n| expiring(Due::After(0), &format!("{n}"), 86_400_000)).collect();
    let mut most = 0;
    for _ in 0..100 {
        rig.publish(0, topic, &events);
        rig.sync();
        for (_, push) in std::mem::take(&mut rig.pushes) {
            rig.answer(&push, AttemptResult::Success);
        }
        rig.advance_ms(1_000);
        rig.sync();
        most = most.max(rig.shard(0).stats().timers);
    }
    assert_eq!(rig.shard(0).stats().pending, 0);
    assert!(most < 3_000, "{most} entries for at most 100 open tasks");
}
