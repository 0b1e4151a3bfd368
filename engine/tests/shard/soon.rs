//! How many events come due soon is counted without looking at each.

use std::collections::BTreeMap;

use escapement_engine::ShardConfig;
use escapement_protocol::event::Due;
use escapement_protocol::frame::{DUE_WITHIN_MS, DueCount};
use escapement_protocol::settings::SubscriptionSettings;
use escapement_protocol::{EventId, ShardId, TopicId, WallMs};

use crate::rig::{Numbers, Rig, config, event};

/// Pending events with their topics and due times.
type Model = BTreeMap<EventId, (TopicId, u64)>;

/// What would be counted by looking at each.
fn counted(model: &Model, topic: TopicId, now: u64) -> Vec<u64> {
    let of_topic = model.values().filter(|(of, _)| topic == TopicId(0) || *of == topic);
    let dues: Vec<u64> = of_topic.map(|(_, due)| *due).collect();
    let within = |ms: &u64| match ms {
        0 => dues.iter().filter(|due| **due <= now).count() as u64,
        ms => dues.iter().filter(|due| (now + 1..=now + ms).contains(due)).count() as u64,
    };
    DUE_WITHIN_MS.iter().map(within).collect()
}

fn rig(horizon_ms: u64) -> (Rig, [TopicId; 2]) {
    let mut rig = Rig::new(ShardConfig { horizon_ms, run_size_bytes: 4 * 1024, ..config(1) });
    let topics = ["t", "u"].map(|name| {
        let topic = rig.create_topic(name);
        // Nobody attends to it: what is due stays.
        let (name, topic_name) = (format!("of-{name}"), name.to_owned());
        rig.create_subscription(SubscriptionSettings {
            name,
            topic: topic_name,
            ..SubscriptionSettings::default()
        });
        topic
    });
    (rig, topics)
}

#[test]
fn counts_that_are_called_exact_are_and_the_others_are_near() {
    let (mut exact, mut near, mut inexact) = (0, 0, 0);
    for seed in 0..40 {
        let (mut rig, topics) = rig([60_000, 900_000, u64::MAX >> 20][seed as usize % 3]);
        let mut numbers = Numbers(seed);
        let mut model = Model::new();
        for _ in 0..60 {
            let topic = topics[numbers.below(3) as usize / 2];
            match numbers.below(10) {
                0..5 => {
                    let most = [500, 20_000, 2_000_000, 200_000_000][numbers.below(4) as usize];
                    let due = rig.now.wall.plus_ms(numbers.below(most));
                    let events: Vec<Vec<u8>> = (0..8).map(|_| event(Due::At(due), "e", &[7; 60])).collect();
                    for bytes in events {
                        let sequence = rig.published(0, topic, bytes);
                        let id = EventId { shard: ShardId(0), sequence, schedule_time_ms: due.0 };
                        model.insert(id, (topic, due.0));
                    }
                }
                5 => rig.advance_ms(numbers.below(5_000)),
                6 => rig.advance_ms([100, 16_000, 400_000][numbers.below(3) as usize]),
                7 => {
                    let at = numbers.below(model.len() as u64 + 1) as usize;
                    if let Some(id) = model.keys().nth(at).copied() {
                        rig.cancel(id);
                        rig.settle();
                        if rig.peek(id).is_none() {
                            model.remove(&id);
                        }
                    }
                }
                8 => {
                    let at = numbers.below(model.len() as u64 + 1) as usize;
                    if let Some(id) = model.keys().nth(at).copied() {
                        let due = WallMs(rig.now.wall.0 + numbers.below(4_000_000));
                        rig.reschedule(id, due, None);
                        rig.settle();
                        let held = rig.peek(id).expect("pending").info.due.0;
                        model.get_mut(&id).expect("pending").1 = held;
                    }
                }
                _ => {
                    rig.settle();
                    rig.crash();
                }
            }
            rig.settle();
            rig.check();
            for topic in [TopicId(0), topics[0], topics[1]] {
                let counts = rig.count_due(topic);
                let expected = counted(&model, topic, rig.now.wall.0);
                let all = model.values().filter(|(of, _)| topic == TopicId(0) || *of == topic).count() as u64;
                for (DueCount { within_ms, count, exact: is_exact }, expected) in counts.iter().zip(expected)
                {
                    assert!(*count <= all, "seed {seed}: {counts:?} of {all}");
                    if *is_exact {
                        assert_eq!(*count, expected, "seed {seed}, within {within_ms} ms: {counts:?}");
                        exact += 1;
                    } else {
                        inexact += 1;
                        near += usize::from(count.abs_diff(expected) * 4 <= all);
                    }
                }
                assert!(counts[1..].windows(2).all(|pair| pair[0].count <= pair[1].count), "{counts:?}");
            }
        }
    }
    assert!(exact > inexact && inexact > 0 && near * 10 > inexact * 9, "{exact}, {inexact}, {near} near");
}
