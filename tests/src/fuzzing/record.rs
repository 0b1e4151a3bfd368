//! Log records: what parses can be walked to its end, and says the same after it was written again.

use escapement_engine::far::RunId;
use escapement_engine::groups::{Effect, Group, GroupId, Holders, Operation, Stretch};
use escapement_engine::names::{Name, NameHash};
use escapement_engine::record::{
    Forward, NameHashes, Record, RecordWriter, RunStatement, TaskProgress, published_events, records,
};
use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::{
    Outcome, Sequence, SubscriptionId, SubscriptionSettings, TopicId, TopicSettings, WallMs,
};

/// Reads `input` as one block's records.
///
/// # Panics
/// Where a record cannot be walked, or does not read back from its own encoding.
pub fn engine_record(input: &[u8]) {
    for record in records(input) {
        let Ok(record) = record else { return };
        look_inside(&record);
        let again = written(&record);
        let read: Vec<_> = records(&again).map(|record| record.expect("what was written parses")).collect();
        match (&record, read.as_slice()) {
            // The writer chooses base and width itself, and leaves out what ends nothing.
            (Record::Completed { sequences, .. }, parts) => {
                let parts = parts.iter().map(|part| match part {
                    Record::Completed { sequences, .. } => *sequences,
                    other => panic!("a completion read back as {other:?}"),
                });
                assert!(parts.flat_map(|part| part.iter()).eq(sequences.iter()));
            }
            (
                Record::Moved { run, first_block, block_count, sequences },
                [Record::Moved { run: of, first_block: first, block_count: count, sequences: again }],
            ) => {
                assert_eq!((run, first_block, block_count), (of, first, count));
                assert!(again.iter().eq(sequences.iter()));
            }
            (record, [read]) => assert_eq!(read, record),
            (record, read) => panic!("{record:?} was written as {} records", read.len()),
        }
    }
}

fn look_inside(record: &Record<'_>) {
    match *record {
        Record::Published { first_sequence, accepted, events, .. } => {
            for (_, due, event) in published_events(first_sequence, accepted, events) {
                assert!(due >= accepted && event.len().is_multiple_of(8));
            }
        }
        Record::Completed { sequences, .. } => assert_eq!(sequences.iter().count(), sequences.count()),
        _ => {}
    }
}

fn written(record: &Record<'_>) -> Vec<u8> {
    let (mut out, mut count) = (Vec::new(), 0);
    let mut writer = RecordWriter::new(&mut out, &mut count);
    match *record {
        Record::Published { topic, first_sequence, count, accepted, names, events } if names.count() == 0 => {
            writer.published(topic, first_sequence, count, accepted, events);
        }
        Record::Published { topic, first_sequence, accepted, names, events, .. } => {
            let names: Vec<_> = names.iter().collect();
            writer.published_named(topic, first_sequence, accepted, &names, events);
        }
        Record::Names { topic, of_block, first, names } => {
            let names: Vec<_> = names.iter().collect();
            writer.names(topic, of_block, first, names.iter());
        }
        Record::NamesForgotten { topic, before } => writer.names_forgotten(topic, before),
        Record::NamesRun { run, footer_id } => writer.names_run(run, footer_id),
        Record::NamesRunEnded { run } => writer.names_run_ended(run),
        Record::Relocated { topic, sequence, due, forward, has_left, ref progress, event } => {
            writer.relocated(topic, sequence, due, (forward, has_left), progress, event);
        }
        Record::Completed { subscription, outcome, last, sequences } => {
            let sequences: Vec<_> = sequences.iter().collect();
            writer.completed(subscription, outcome, last, &sequences);
        }
        Record::AttemptFailed { subscription, sequence, attempt, excused, next_due } => {
            writer.attempt_failed(subscription, sequence, attempt, excused, next_due);
        }
        Record::Topic { id, version, ref settings } => writer.topic(id, version, settings),
        Record::Subscription { id, version, topic, ref settings } => {
            writer.subscription(id, version, topic, settings);
        }
        Record::Mark { next_sequence } => writer.mark(next_sequence),
        Record::Run(ref statement) => writer.run(statement),
        Record::Moved { run, first_block, block_count, sequences } => {
            let sequences: Vec<_> = sequences.iter().collect();
            writer.moved(run, first_block, block_count, &sequences);
        }
        Record::Loaded { run, first_block, block_count } => writer.loaded(run, first_block, block_count),
        Record::CancelledInRun { run, events } => {
            writer.cancelled_in_run(run, events.with_topics());
        }
        Record::Group(ref group) => writer.group(group),
        Record::GroupLeft { group, is_cancelled, sequences } => {
            let sequences: Vec<_> = sequences.iter().collect();
            writer.group_left(group, is_cancelled, &sequences);
        }
        Record::CancelledInRunOfGroup { run, key, topic, group } => {
            writer.cancelled_in_run_of_group(run, key, topic, group);
        }
        Record::Rescheduled { sequence, due, forward, left } => {
            writer.rescheduled(sequence, due, forward, left);
        }
        Record::RescheduledInRun { run, topic, sequence, was_due, due, forward, event } => {
            writer.rescheduled_in_run(run, topic, (was_due, sequence), due, forward, event);
        }
    }
    out
}

/// One block of each kind of record, and one with all of them.
pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let now = WallMs(1_800_000_000_000);
    let mut event = Vec::new();
    let spec = EventSpec { ordering_key: b"order-7", ..EventSpec::new(Due::After(1_500), "order-7", b"{}") };
    spec.encode(&mut event).expect("a seed's event is valid");
    let events = event.repeat(2);
    let topic =
        TopicSettings { name: "orders".into(), default_source: "/orders".into(), ..Default::default() };
    let subscription =
        SubscriptionSettings { name: "billing".into(), topic: "orders".into(), ..Default::default() };
    let progress = [
        TaskProgress {
            subscription: SubscriptionId(9),
            done: true,
            attempt: 1,
            excused: 0,
            next_due: WallMs(0),
        },
        TaskProgress { subscription: SubscriptionId(10), done: false, attempt: 3, excused: 1, next_due: now },
    ];
    let far_apart = [Sequence(5), Sequence(3), Sequence(1 << 40)];

    let published = Record::Published {
        topic: TopicId(3),
        first_sequence: Sequence(41),
        count: 2,
        accepted: now,
        names: NameHashes::default(),
        events: &events,
    };
    let forward = Forward { schedule_time: now, version: 2 };
    let relocated = Record::Relocated {
        topic: TopicId(3),
        sequence: Sequence(7),
        due: now,
        forward: Some(forward),
        has_left: true,
        progress: progress.to_vec(),
        event: &event,
    };
    let failed = Record::AttemptFailed {
        subscription: SubscriptionId(9),
        sequence: Sequence(41),
        attempt: 2,
        excused: 1,
        next_due: now,
    };
    let named = Record::Topic { id: TopicId(3), version: 1, settings: topic };
    let subscribed =
        Record::Subscription { id: SubscriptionId(9), version: 2, topic: TopicId(3), settings: subscription };
    let mark = Record::Mark { next_sequence: Sequence(43) };
    let mut completed = Vec::new();
    RecordWriter::new(&mut completed, &mut 0).completed(
        SubscriptionId(9),
        Outcome::Succeeded,
        true,
        &far_apart,
    );

    let run = RunId(7);
    let (mut moved, mut cancelled) = (Vec::new(), Vec::new());
    RecordWriter::new(&mut moved, &mut 0).moved(run, 0, 2, &far_apart);
    let key = (now, Sequence(41));
    RecordWriter::new(&mut cancelled, &mut 0).cancelled_in_run(run, [(key, TopicId(3))].into_iter());

    let (mut published_named, mut names) = (Vec::new(), Vec::new());
    let hash = NameHash([7, 8]);
    RecordWriter::new(&mut published_named, &mut 0).published_named(
        TopicId(3),
        Sequence(41),
        now,
        &[hash, hash],
        &events,
    );
    let name = Name { hash, sequence: Sequence(41), schedule_time: now, accepted: now };
    RecordWriter::new(&mut names, &mut 0).names(TopicId(3), 5, Sequence(41), [name; 2].iter());

    let (mut group_left, id) = (Vec::new(), GroupId([7, 8]));
    RecordWriter::new(&mut group_left, &mut 0).group_left(id, true, &far_apart);
    let group = Group {
        topic: TopicId(3),
        name: "account-7".into(),
        stretches: [
            Stretch { upto: Sequence(40), waiting: 3, holders: Holders(0b101) },
            Stretch { upto: Sequence::MAX, waiting: 1, holders: Holders(0) },
        ]
        .into_iter()
        .collect(),
        operations: vec![
            Operation { epoch: 9, effect: Effect::Pause, decided: now, taken: 4, undone: None },
            Operation { epoch: 10, effect: Effect::Cancel, decided: now, taken: 1, undone: Some(1) },
            Operation { epoch: 11, effect: Effect::Postpone(60_000), decided: now, taken: 3, undone: None },
        ],
    };
    let rescheduled = |left| Record::Rescheduled { sequence: Sequence(41), due: now, forward, left };
    let of_group = Record::CancelledInRunOfGroup { run, key, topic: TopicId(3), group: id };

    let mut seeds = vec![
        ("group", written(&Record::Group(group))),
        ("group-left", group_left),
        ("cancelled-in-run-of-group", written(&of_group)),
        ("published", written(&published)),
        ("published-named", published_named),
        ("names", names),
        ("names-forgotten", written(&Record::NamesForgotten { topic: TopicId(3), before: Sequence(42) })),
        ("names-run", written(&Record::NamesRun { run, footer_id: 9 })),
        ("names-run-ended", written(&Record::NamesRunEnded { run })),
        ("relocated", written(&relocated)),
        ("completed", completed),
        ("attempt-failed", written(&failed)),
        ("topic", written(&named)),
        ("subscription", written(&subscribed)),
        ("mark", written(&mark)),
        (
            "run",
            written(&Record::Run(RunStatement {
                run,
                closed: true,
                moved: 3,
                loaded: 3,
                footer_id: 8,
                as_of: 9,
                size_bytes: 4_096,
            })),
        ),
        ("moved", moved),
        ("loaded", written(&Record::Loaded { run, first_block: 1, block_count: 2 })),
        ("cancelled-in-run", cancelled),
        ("rescheduled", written(&rescheduled(None))),
        ("rescheduled-left", written(&rescheduled(Some(id)))),
        (
            "rescheduled-in-run",
            written(&Record::RescheduledInRun {
                run,
                topic: TopicId(3),
                sequence: Sequence(41),
                was_due: now,
                due: now,
                forward,
                event: &event,
            }),
        ),
    ];
    let all = seeds.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    seeds.push(("every-record", all));
    seeds
}
