//! From publish to completion.

use escapement_engine::record::{Record, records};
use escapement_protocol::event::Due;
use escapement_protocol::{AttemptResult, Outcome, Sequence, SubscriptionSettings, WallMs};

use crate::rig::{Rig, START, config, event};

fn subscription(name: &str) -> SubscriptionSettings {
    SubscriptionSettings {
        name: name.into(),
        topic: "t".into(),
        jitter_permille: 0,
        min_backoff_ms: 100,
        ..SubscriptionSettings::default()
    }
}

#[test]
fn an_event_goes_from_publish_to_completion_and_leaves_nothing() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(subscription("s"));
    rig.attach(id);
    let bytes = event(Due::After(250), "id", b"data");
    let sequence = rig.published(0, topic, bytes.clone());
    assert_eq!(sequence, Sequence(1));
    rig.advance_ms(249);
    rig.sync();
    assert_eq!(rig.pushes, []);
    assert_eq!(rig.shard(0).next_deadline().wall, Some(START.plus_ms(250)));
    rig.advance_ms(1);
    rig.maintain();
    let (_, push) = rig.pushes.pop().expect("due now");
    assert_eq!((push.sequence, push.subscription, push.attempt), (sequence, id, 1));
    assert_eq!(rig.shard(0).event(sequence).expect("pending").bytes, bytes);
    rig.answer(&push, AttemptResult::Success);
    rig.sync();
    assert!(rig.shard(0).event(sequence).is_none());
    assert_eq!(rig.shard(0).stats().pending, 0);
    assert_eq!((rig.shard(0).next_deadline().wall, rig.shard(0).relocation_size_bytes()), (None, 0));
    rig.check();
}

#[test]
fn nothing_is_acknowledged_or_due_before_its_block_is_durable() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(subscription("s"));
    rig.attach(id);
    let ticket = rig.publish(0, topic, &[event(Due::After(0), "id", b"")]);
    rig.maintain();
    rig.commit(0);
    rig.advance_ms(50);
    rig.maintain();
    assert_eq!((rig.reply(ticket), rig.pushes.len()), (None, 0));
    assert!(rig.complete(0));
    assert!(rig.reply(ticket).is_some());
    rig.maintain();
    assert_eq!(rig.pushes.len(), 1);
}

#[test]
fn a_fan_out_keeps_one_payload_until_the_last_of_three_tasks_ends() {
    let mut rig = Rig::new(config(2));
    let topic = rig.create_topic("t");
    let ids = ["a", "b", "c"].map(|name| rig.create_subscription(subscription(name)));
    assert!(ids.iter().any(|id| rig.owner(*id) == 0) && ids.iter().any(|id| rig.owner(*id) == 1));
    rig.attach_all(&ids);
    let bytes = event(Due::After(5), "id", &[1; 100]);
    let sequence = rig.published(0, topic, bytes.clone());
    rig.advance_ms(5);
    // The offer to the other shard, its pick, and the dispatch back take a turn each.
    for _ in 0..3 {
        rig.sync();
    }
    let mut pushes = std::mem::take(&mut rig.pushes);
    pushes.sort_by_key(|(_, push)| push.subscription);
    assert_eq!(pushes.iter().map(|(_, push)| push.subscription).collect::<Vec<_>>(), ids);
    // One payload with its sequence, whose copy in the log would tell of three tasks, or of five should two more
    // subscriptions come.
    assert_eq!(rig.shard(0).relocation_size_bytes(), 8 + bytes.len() + 8 + 24 + 5 * 24);
    for (n, (_, push)) in pushes.iter().enumerate() {
        assert!(rig.shard(0).event(sequence).is_some(), "{n} tasks have ended");
        rig.answer(push, AttemptResult::Success);
        rig.sync();
        rig.check_replay();
    }
    assert!(rig.shard(0).event(sequence).is_none());
}

#[test]
fn tasks_that_ended_before_a_crash_do_not_run_again_after_it() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let ids = ["a", "b"].map(|name| rig.create_subscription(subscription(name)));
    rig.attach_all(&ids);
    rig.published(0, topic, event(Due::After(0), "id", b""));
    let first = rig.pushes.remove(0).1;
    rig.answer(&first, AttemptResult::Success);
    rig.sync();
    rig.crash();
    rig.attach_all(&ids);
    rig.sync();
    let again: Vec<_> = rig.pushes.iter().map(|(_, push)| push.subscription).collect();
    assert_eq!(again, [if first.subscription == ids[0] { ids[1] } else { ids[0] }]);
    let last = rig.pushes.remove(0).1;
    rig.answer(&last, AttemptResult::Success);
    rig.sync();
    assert_eq!(rig.shard(0).stats().pending, 0);
}

#[test]
fn attempts_and_backoff_survive_a_restart_and_a_relocation_of_unapplied_failures() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(SubscriptionSettings { max_attempts: 3, ..subscription("s") });
    rig.attach(id);
    let sequence = rig.published(0, topic, event(Due::After(0), "id", b""));
    let push = rig.pushes.remove(0).1;
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.maintain();
    // The failure is on its way to the disk when the event is appended again, and only the copy is kept.
    rig.commit(0);
    rig.relocate(0, rig.newest(0), 1 << 30);
    rig.sync();
    let blocks = rig.log_len(0);
    rig.trim(0, usize::MAX);
    assert!(rig.log_len(0) < blocks);
    rig.check_replay();
    rig.crash();
    rig.attach(id);
    rig.sync();
    assert_eq!(rig.pushes, [], "the backoff goes on");
    rig.advance_ms(100);
    rig.sync();
    let push = rig.pushes.remove(0).1;
    assert_eq!((push.sequence, push.attempt), (sequence, 2));
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.advance_ms(200);
    rig.sync();
    let push = rig.pushes.remove(0).1;
    assert_eq!(push.attempt, 3);
    rig.answer(&push, AttemptResult::RetryableFailure);
    rig.sync();
    assert_eq!(rig.shard(0).stats().pending, 0, "three attempts were allowed");
}

#[test]
fn an_event_that_nobody_subscribes_to_completes_as_unmatched() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    rig.publish(0, topic, &[event(Due::After(0), "id", b"")]);
    rig.maintain();
    rig.commit(0);
    rig.complete(0);
    rig.maintain();
    assert_eq!(rig.shard(0).stats().completed, 1);
    rig.sync();
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn what_is_overdue_after_a_restart_leaves_in_the_order_of_due_time() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(subscription("s"));
    for delay_ms in [30, 10, 20, 10, 0, 5_000] {
        rig.published(0, topic, event(Due::After(delay_ms), "id", b""));
    }
    rig.advance_ms(1_000);
    rig.crash();
    rig.attach(id);
    rig.sync();
    let order: Vec<u64> = rig.pushes.iter().map(|(_, push)| push.sequence.0).collect();
    assert_eq!(order, [5, 2, 4, 3, 1]);
    assert_eq!(rig.shard(0).next_deadline().wall.map(|wall| wall > rig.now.wall), Some(true));
}

#[test]
fn a_due_time_at_the_limit_of_the_doors_clock_is_accepted_by_a_shard_whose_clock_is_behind() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let limit = START.plus_ms(escapement_protocol::DELAY_MS_MAX);
    // The door's reading of the clock was some milliseconds later than the shard's.
    let sequence = rig.published(0, topic, event(Due::At(limit.plus_ms(3)), "id", b""));
    assert_eq!(rig.shard(0).event(sequence).expect("pending").due, limit.plus_ms(3));
    rig.check_replay();
}

#[test]
fn ids_go_on_after_everything_was_trimmed_and_the_node_restarted() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    for n in 1..=40 {
        assert_eq!(rig.published(0, topic, event(Due::After(0), "id", &[0; 200])), Sequence(n));
    }
    rig.sync();
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.relocate(0, rig.newest(0), 1 << 30);
    rig.sync();
    rig.trim(0, usize::MAX);
    assert!(rig.log_len(0) <= 2, "{} blocks are left", rig.log_len(0));
    rig.check_replay();
    rig.crash();
    assert_eq!(rig.shard(0).registry().topic_named("t").map(|held| held.id), Some(topic));
    assert_eq!(rig.published(0, topic, event(Due::After(0), "id", b"")), Sequence(41));
}

#[test]
fn a_relocation_larger_than_its_budget_goes_on_where_it_stopped() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let events: Vec<_> = (0..40).map(|_| event(Due::At(WallMs(START.0 + 60_000)), "id", &[3; 100])).collect();
    rig.publish(0, topic, &events);
    rig.sync();
    let upto = rig.newest(0);
    // Not one block is completed meanwhile, as before a slow disk.
    for _ in 0..200 {
        rig.relocate(0, upto, 300);
        rig.commit(0);
    }
    let mut copies = 0;
    let before = rig.log_len(0);
    while rig.complete(0) {}
    for block in before..rig.log_len(0) {
        copies += rig.records(0, block, |record| matches!(record, Record::Relocated { .. }));
    }
    assert_eq!(copies, 40, "each event is appended again once");
    rig.trim(0, usize::MAX);
    assert!(rig.oldest(0) > upto);
    rig.check_replay();
}

#[test]
fn a_history_of_many_tasks_is_relocated_in_records_that_fit_a_block() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let ids: Vec<_> = (0..300).map(|n| rig.create_subscription(subscription(&format!("s{n}")))).collect();
    rig.attach_all(&ids);
    rig.published(0, topic, event(Due::After(0), "id", &[1; 3_000]));
    for (n, (_, push)) in std::mem::take(&mut rig.pushes).into_iter().enumerate() {
        let result = if n % 3 == 0 { AttemptResult::Success } else { AttemptResult::RetryableFailure };
        rig.answer(&push, result);
    }
    rig.sync();
    rig.relocate(0, rig.newest(0), 1 << 30);
    rig.sync();
    rig.trim(0, usize::MAX);
    rig.check_replay();
    rig.crash();
    rig.attach_all(&ids);
    rig.advance_ms(100);
    rig.sync();
    assert_eq!(rig.pushes.len(), 200);
    assert!(rig.pushes.iter().all(|(_, push)| push.attempt == 2));
}

#[test]
fn completions_of_one_turn_share_a_record() {
    let mut rig = Rig::new(config(1));
    let topic = rig.create_topic("t");
    let id = rig.create_subscription(subscription("s"));
    rig.attach(id);
    let events: Vec<_> = (0..50).map(|_| event(Due::After(0), "id", b"")).collect();
    rig.publish(0, topic, &events);
    rig.sync();
    let pushes = std::mem::take(&mut rig.pushes);
    assert_eq!(pushes.len(), 50);
    pushes.iter().for_each(|(_, push)| rig.answer(push, AttemptResult::Success));
    let before = rig.log_len(0);
    rig.sync();
    assert_eq!(rig.log_len(0), before + 1);
    let is_all = |record: &Record<'_>| match record {
        Record::Completed { outcome: Outcome::Succeeded, last: true, sequences, .. } => {
            sequences.count() == 50
        }
        _ => false,
    };
    assert_eq!(rig.records(0, before, is_all), 1);
}

impl Rig {
    /// How many records of a durable block are such.
    fn records(&self, shard: u16, block: usize, is_such: impl Fn(&Record<'_>) -> bool) -> usize {
        let bytes = self.block(shard, block);
        records(bytes).filter(|record| is_such(record.as_ref().expect("written by a shard"))).count()
    }
}
