//! Much that is due at once, of one topic, and what it does to others.

use std::collections::BTreeMap;

use escapement_engine::{ReplyBody, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{CancelVerdict, RescheduleVerdict};
use escapement_protocol::settings::SubscriptionSettings;
use escapement_protocol::{AttemptResult, EventSpec, Sequence, SubscriptionId, TopicId, WallMs};

use crate::rig::{Numbers, Rig, START, config};

/// Batches that a shard matches in order before topics take turns.
const IN_ORDER: usize = 16;
/// Events that are told apart in one maintenance.
const SORTED: usize = 16 * 1024;

fn rig(batch_count_max: usize) -> Rig {
    Rig::new(ShardConfig { batch_count_max, block_size_bytes_max: 256 * 1024, ..config(1) })
}

fn event(due_ms: u64, key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let due = Due::At(START.plus_ms(due_ms));
    let spec = EventSpec { ordering_key: key, ..EventSpec::new(due, "e", data) };
    spec.encode(&mut bytes).expect("a valid event");
    bytes
}

/// A topic with so many subscriptions.
fn topic(rig: &mut Rig, name: &str, subscriptions: usize) -> (TopicId, Vec<SubscriptionId>) {
    let id = rig.create_topic(name);
    let settings = |n| SubscriptionSettings {
        name: format!("{name}-{n}"),
        topic: name.into(),
        ..SubscriptionSettings::default()
    };
    let ids = (0..subscriptions).map(|n| rig.create_subscription(settings(n))).collect();
    (id, ids)
}

/// Publishes events that are due at one moment.
fn publish(rig: &mut Rig, topic: TopicId, count: usize, due_ms: u64) {
    for first in (0..count).step_by(1_000) {
        let of_batch = (count - first).min(1_000);
        rig.publish(0, topic, &vec![event(due_ms, b"", b"data"); of_batch]);
        rig.sync();
    }
}

/// Topics and sequences of what is pushed in one maintenance.
fn maintained(rig: &mut Rig) -> Vec<(TopicId, Sequence)> {
    rig.maintain();
    let pushes = std::mem::take(&mut rig.pushes);
    let topic = |sequence| rig.shard(0).event(sequence).expect("it is pending").topic;
    pushes.into_iter().map(|(_, push)| (topic(push.sequence), push.sequence)).collect()
}

/// What is pushed until nothing more is due.
fn burst(rig: &mut Rig) -> Vec<(TopicId, Sequence)> {
    let mut all = maintained(rig);
    while rig.shard(0).is_behind() {
        all.extend(maintained(rig));
    }
    all
}

/// An event's place in the order of its key.
type Rank = (WallMs, Sequence);

/// By topic, in the order of pushes: due time and sequence.
fn by_topic(rig: &Rig, pushed: &[(TopicId, Sequence)]) -> BTreeMap<TopicId, Vec<Rank>> {
    let mut topics: BTreeMap<TopicId, Vec<_>> = BTreeMap::new();
    for (topic, sequence) in pushed {
        let due = rig.shard(0).event(*sequence).expect("not answered yet").due;
        topics.entry(*topic).or_default().push((due, *sequence));
    }
    topics
}

#[test]
fn an_event_passes_another_topics_burst_within_a_bounded_number_of_batches() {
    let count = 2 * SORTED + 5_000;
    let mut rig = rig(64);
    let (many, of_many) = topic(&mut rig, "many", 1);
    let (few, of_few) = topic(&mut rig, "few", 1);
    publish(&mut rig, many, count, 100);
    publish(&mut rig, few, 1, 101);
    rig.attach_all(&[of_many, of_few].concat());
    rig.advance_ms(101);
    let sorting = count.div_ceil(SORTED);
    let batches = IN_ORDER + sorting;
    let passed = (1..=batches).find(|_| maintained(&mut rig).iter().any(|(topic, _)| *topic == few));
    assert!(passed.is_some(), "{batches} batches of 64 of {count} events, and not one of the other topic");
    // And one that becomes due later passes what is left at once.
    publish(&mut rig, few, 1, 150);
    rig.advance_ms(49);
    assert!(maintained(&mut rig).iter().any(|(topic, _)| *topic == few));
    let rest = burst(&mut rig).len();
    assert!(rest > count / 2, "the burst was still under way: {rest} were left");
    assert_eq!(rig.shard(0).stats().dispatched, count as u64 + 2);
}

#[test]
fn what_topics_hand_out_in_turn_is_in_the_order_of_each() {
    let mut rig = rig(10);
    let topics: Vec<_> = ["a", "b", "c"].map(|name| topic(&mut rig, name, 1)).into();
    let mut numbers = Numbers(5);
    for _ in 0..900 {
        let (topic, _) = topics[[0, 0, 0, 0, 1, 2][numbers.below(6) as usize]];
        rig.publish(0, topic, &[event(100 + numbers.below(5), b"", b"")]);
    }
    // Accepted before the burst is due, and durable when half of it has left.
    rig.sync();
    let (a, _) = topics[0];
    rig.publish(0, a, &vec![event(99, b"", b""); 30]);
    topics.iter().for_each(|(_, ids)| rig.attach_all(ids));
    rig.advance_ms(110);
    let mut pushed: Vec<_> = (0..IN_ORDER + 20).flat_map(|_| maintained(&mut rig)).collect();
    assert!(pushed.len() < 600 && rig.shard(0).is_behind());
    let before = by_topic(&rig, &pushed);
    rig.check();
    rig.commit(0);
    rig.complete(0);
    pushed = burst(&mut rig);
    let after = by_topic(&rig, &pushed);
    assert_eq!(after[&a].iter().take_while(|(due, _)| *due == START.plus_ms(99)).count(), 30);
    for topics in [&before, &after] {
        for (topic, ranks) in topics {
            assert!(ranks.is_sorted_by(|a, b| a < b), "of {topic:?}: {ranks:?}");
        }
    }
    let count = |topics: &BTreeMap<TopicId, Vec<_>>| topics.values().map(Vec::len).sum::<usize>();
    assert_eq!(count(&before) + count(&after), 930);
}

#[test]
fn topics_have_equal_shares_of_what_is_handed_out_whatever_an_event_costs() {
    let mut rig = rig(64);
    let (one, _) = topic(&mut rig, "one", 1);
    let (four, of_four) = topic(&mut rig, "four", 4);
    let (large, _) = topic(&mut rig, "large", 1);
    for _ in 0..60 {
        for (topic, data) in [(one, &b"data"[..]), (four, b"data"), (large, &[7; 7 * 1024])] {
            rig.publish(0, topic, &vec![event(100, b"", data); 20]);
            rig.sync();
        }
    }
    let ids = rig.shard(0).registry().subscriptions().into_iter().map(|held| held.id).collect::<Vec<_>>();
    rig.attach_all(&ids);
    rig.advance_ms(100);
    (0..=IN_ORDER).for_each(|_| drop(maintained(&mut rig)));
    let pushed: Vec<_> = (0..30).flat_map(|_| maintained(&mut rig)).collect();
    let of = |topic| pushed.iter().filter(|(of, _)| *of == topic).count();
    let share = of(one);
    assert!((600..700).contains(&share), "a third of 30 batches: {share}");
    assert!(of(four).abs_diff(share) <= 16, "{} tasks of four subscriptions each", of(four));
    assert!((4 * of(large)).abs_diff(share) <= 16, "{} events of 7 KiB", of(large));
    assert_eq!(of_four.len(), 4);
}

#[test]
fn what_changes_on_its_way_to_the_disk_does_not_leave_with_a_burst_and_what_waits_in_it_can_t_change() {
    let mut rig = rig(10);
    let (many, ids) = topic(&mut rig, "many", 1);
    publish(&mut rig, many, 1_000, 100);
    rig.attach_all(&ids);
    let [cancelled, put_off, same, late] = [700, 800, 850, 900].map(|n| rig.id(0, Sequence(n)));
    rig.advance_ms(99);
    rig.cancel(cancelled);
    rig.reschedule(put_off, START.plus_ms(500), None);
    rig.reschedule(same, START.plus_ms(100), None);
    rig.advance_ms(1);
    let before: Vec<_> = (0..IN_ORDER).flat_map(|_| maintained(&mut rig)).collect();
    assert_eq!(before.len(), 10 * IN_ORDER);
    rig.commit(0);
    rig.complete(0);
    let next = maintained(&mut rig);
    let tickets = [rig.cancel(late), rig.reschedule(late, START.plus_ms(500), None)];
    let pushed = before.into_iter().chain(next).chain(burst(&mut rig));
    let pushed: Vec<Sequence> = pushed.map(|(_, sequence)| sequence).collect();
    let expected: Vec<Sequence> = (1..=1_000).filter(|n| ![700, 800].contains(n)).map(Sequence).collect();
    assert_eq!(pushed, expected);
    let [cancel, reschedule] = tickets.map(|ticket| rig.reply(ticket));
    assert!(matches!(cancel, Some(ReplyBody::Cancelled(CancelVerdict::TooLate { .. }))), "{cancel:?}");
    let too_late = matches!(reschedule, Some(ReplyBody::Rescheduled(RescheduleVerdict::TooLate { .. })));
    assert!(too_late, "{reschedule:?}");
    rig.sync();
    rig.advance_ms(400);
    assert_eq!(burst(&mut rig), [(many, Sequence(800))]);
}

#[test]
fn a_topic_that_nobody_takes_leaves_room_for_others() {
    const MEMORY_BYTES: usize = 4 << 20;
    const FANOUT: usize = 8;
    // About a hundred bytes of memory for a task.
    let most = MEMORY_BYTES / 96;
    let mut rig = Rig::new(ShardConfig { memory_bytes_max: MEMORY_BYTES, ..rig(10).config });
    let (dead, of_dead) = topic(&mut rig, "dead", FANOUT);
    let (alive, of_alive) = topic(&mut rig, "alive", 1);
    let count = most / FANOUT + 100;
    publish(&mut rig, dead, count, 100);
    publish(&mut rig, alive, 50, 200);
    rig.attach_all(&of_alive);
    rig.advance_ms(100);
    assert_eq!(burst(&mut rig), []);
    let open = rig.shard(0).router().tasks();
    assert!((most / 2 - 100..most / 2 + 100).contains(&open), "{open} of {most} tasks");
    assert!(rig.shard(0).next_deadline().wall > Some(rig.now.wall), "it sleeps meanwhile");
    rig.check();
    rig.advance_ms(100);
    assert_eq!(burst(&mut rig).len(), 50, "all of the other topic");
    rig.attach_all(&of_dead);
    let mut delivered = 0;
    loop {
        rig.sync();
        if rig.pushes.is_empty() {
            break;
        }
        for (_, push) in std::mem::take(&mut rig.pushes) {
            delivered += 1;
            rig.answer(&push, AttemptResult::Success);
        }
    }
    assert_eq!(delivered, FANOUT * count);
    assert_eq!(rig.shard(0).stats().pending, 50, "those that were not answered");
    rig.check();
}

#[test]
fn a_key_keeps_its_order_from_the_overdue_lane_through_a_burst() {
    const HOUR_MS: u64 = 3_600_000;
    let mut rig = rig(10);
    let (t, ids) = topic(&mut rig, "t", 1);
    let (other, of_other) = topic(&mut rig, "other", 1);
    let keys: [&[u8]; 3] = [b"a", b"b", b""];
    let mut numbers = Numbers(9);
    for (first, count) in [(1, 300), (HOUR_MS + 10, 900)] {
        for _ in 0..count {
            let key = keys[numbers.below(3) as usize];
            let of = [t, t, t, other][numbers.below(4) as usize];
            rig.publish(0, of, &[event(first + numbers.below(5), key, key)]);
        }
        rig.sync();
    }
    let ms = START.plus_ms(HOUR_MS).0 - rig.now.wall.0;
    rig.advance_ms(ms);
    rig.crash();
    rig.advance_ms(20);
    rig.attach_all(&[ids, of_other].concat());
    let mut of_keys: BTreeMap<(TopicId, Vec<u8>), Vec<Rank>> = BTreeMap::new();
    let mut count = 0;
    loop {
        rig.sync();
        rig.check();
        if rig.pushes.is_empty() {
            break;
        }
        for (_, push) in std::mem::take(&mut rig.pushes) {
            count += 1;
            let held = rig.shard(0).event(push.sequence).expect("pending");
            let view = escapement_protocol::EventView::trusted(held.bytes).expect("an event");
            let (key, rank) = (view.data().to_vec(), (held.due, push.sequence));
            of_keys.entry((held.topic, key)).or_default().push(rank);
            rig.answer(&push, AttemptResult::Success);
        }
    }
    assert_eq!((count, rig.shard(0).stats().pending), (1_200, 0));
    for ((topic, key), ranks) in of_keys.iter().filter(|((_, key), _)| !key.is_empty()) {
        assert!(ranks.is_sorted_by(|a, b| a < b), "key {key:?} of {topic:?}: {ranks:?}");
    }
}
