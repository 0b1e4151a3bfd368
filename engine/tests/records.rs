//! Records against `docs/formats/records-v1.md` and against the golden files.
//!
//! `ESCAPEMENT_WRITE_GOLDEN=1 cargo test -p escapement-engine --test records` writes files that are missing. One that
//! is there and differs is never overwritten: delete it first, and say in the document why the bytes changed.

use std::path::PathBuf;
use std::{env, fs};

use escapement_engine::far::RunId;
use escapement_engine::groups::{Effect, Group, GroupId, Holders, Operation, Stretch};
use escapement_engine::names::{Name, NameHash};
use escapement_engine::record::{
    CANCELLED_SIZE_BYTES, FORWARD_SIZE_BYTES, Forward, HEADER_SIZE_BYTES, NAMES_FIXED_SIZE_BYTES,
    PROGRESS_SIZE_BYTES, PUBLISHED_FIXED_SIZE_BYTES, RESCHEDULED_IN_RUN_FIXED_SIZE_BYTES, Record,
    RecordError, RecordWriter, RunStatement, TaskProgress, WALL_MAX, effective_due, published_events,
    records,
};
use escapement_protocol::event::Due;
use escapement_protocol::settings::{Misfire, SubscriptionSettings, TopicSettings};
use escapement_protocol::{EventSpec, Outcome, Sequence, SubscriptionId, TopicId, WallMs};

const DOCUMENT: &str = include_str!("../../docs/formats/records-v1.md");

fn written(write: impl FnOnce(&mut RecordWriter<'_>)) -> Vec<u8> {
    let (mut bytes, mut count) = (Vec::new(), 0);
    write(&mut RecordWriter::new(&mut bytes, &mut count));
    assert_eq!(count as usize, records(&bytes).count());
    bytes
}

fn written_unread(write: impl FnOnce(&mut RecordWriter<'_>)) -> Vec<u8> {
    let (mut bytes, mut count) = (Vec::new(), 0);
    write(&mut RecordWriter::new(&mut bytes, &mut count));
    bytes
}

fn events() -> Vec<u8> {
    let mut bytes = Vec::new();
    EventSpec::new(Due::At(WallMs(5_000)), "a", b"first").encode(&mut bytes).expect("valid");
    EventSpec::new(Due::After(250), "b", b"").encode(&mut bytes).expect("valid");
    bytes
}

fn topic_settings() -> TopicSettings {
    TopicSettings {
        name: "orders".into(),
        default_source: "/shop".into(),
        default_type: String::new(),
        default_content_type: "application/json".into(),
        dedup_window_ms: 86_400_000,
    }
}

fn subscription_settings() -> SubscriptionSettings {
    SubscriptionSettings {
        name: "billing".into(),
        topic: "orders".into(),
        max_concurrent_dispatches: 10,
        attempt_deadline_ms: 20_000,
        max_attempts: 5,
        min_backoff_ms: 100,
        max_backoff_ms: 60_000,
        max_doublings: 6,
        jitter_permille: 100,
        misfire: Misfire::SpreadOver(600_000),
    }
}

const PROGRESS: [TaskProgress; 2] = [
    TaskProgress { subscription: SubscriptionId(3), done: true, attempt: 1, excused: 0, next_due: WallMs(0) },
    TaskProgress {
        subscription: SubscriptionId(4),
        done: false,
        attempt: 7,
        excused: 2,
        next_due: WallMs(9_000),
    },
];

const FORWARD: Forward = Forward { schedule_time: WallMs(5_000), version: 3 };

const RUN: RunStatement = RunStatement {
    run: RunId(7),
    closed: false,
    moved: 12,
    loaded: 5,
    footer_id: 99,
    as_of: 1_000,
    size_bytes: 65_536,
};

const HASHES: [NameHash; 2] = [NameHash([1, 2]), NameHash([3, 4])];

const NAMES: [Name; 2] = [
    Name { hash: HASHES[0], sequence: Sequence(41), schedule_time: WallMs(5_000), accepted: WallMs(6_000) },
    Name { hash: HASHES[1], sequence: Sequence(42), schedule_time: WallMs(6_250), accepted: WallMs(6_000) },
];

const GROUP: GroupId = GroupId([5, 6]);

fn operation(epoch: u64, effect: Effect, taken: u64, undone: Option<u64>) -> Operation {
    Operation { epoch, effect, decided: WallMs(5_000 + epoch), taken, undone }
}

fn group() -> Group {
    Group {
        topic: TopicId(2),
        name: "account-7".into(),
        stretches: [
            Stretch { upto: Sequence(40), waiting: 3, holders: Holders(0b101) },
            Stretch { upto: Sequence(50), waiting: 1, holders: Holders(0) },
            Stretch { upto: Sequence(60), waiting: 10, holders: Holders(0b100) },
            Stretch { upto: Sequence::MAX, waiting: 0, holders: Holders(0) },
        ]
        .into_iter()
        .collect(),
        operations: vec![
            operation(9, Effect::Pause, 4, None),
            operation(10, Effect::Cancel, 1, Some(1)),
            operation(11, Effect::Postpone(60_000), 13, None),
        ],
    }
}

/// The name of each kind as the document has it, and a record.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let events = events();
    let at = |w: &mut RecordWriter<'_>, n: u64| w.mark(Sequence(n));
    vec![
        ("Published", written(|w| w.published(TopicId(2), Sequence(41), 2, WallMs(6_000), &events))),
        (
            "Relocated",
            written(|w| {
                let due = WallMs(6_000);
                w.relocated(TopicId(2), Sequence(41), due, (None, false), &PROGRESS, &events[..32]);
            }),
        ),
        (
            "Completed",
            written(|w| {
                w.completed(SubscriptionId(3), Outcome::Succeeded, true, &[Sequence(7), Sequence(9)]);
            }),
        ),
        ("AttemptFailed", written(|w| w.attempt_failed(SubscriptionId(3), Sequence(7), 4, 1, WallMs(7_000)))),
        ("Topic", written(|w| w.topic(TopicId(2), 5, &topic_settings()))),
        (
            "Subscription",
            written(|w| w.subscription(SubscriptionId(3), 6, TopicId(2), &subscription_settings())),
        ),
        ("Mark", written(|w| at(w, 42))),
        ("Run", written(|w| w.run(&RUN))),
        ("Moved", written(|w| w.moved(RunId(7), 2, 3, &[Sequence(9), Sequence(7)]))),
        ("Loaded", written(|w| w.loaded(RunId(7), 5, 4))),
        (
            "CancelledInRun",
            written(|w| {
                w.cancelled_in_run(RunId(7), [((WallMs(9_000), Sequence(8)), TopicId(3))].into_iter());
            }),
        ),
        ("Rescheduled", written(|w| w.rescheduled(Sequence(41), WallMs(8_000), FORWARD, None))),
        (
            "RescheduledInRun",
            written(|w| {
                let key = (WallMs(6_000), Sequence(41));
                w.rescheduled_in_run(RunId(7), TopicId(2), key, WallMs(8_000), FORWARD, &events[..32]);
            }),
        ),
        (
            "PublishedNamed",
            written(|w| w.published_named(TopicId(2), Sequence(41), WallMs(6_000), &HASHES, &events)),
        ),
        ("Names", written(|w| w.names(TopicId(2), 77, Sequence(41), NAMES.iter()))),
        ("NamesForgotten", written(|w| w.names_forgotten(TopicId(2), Sequence(43)))),
        ("Group", written(|w| w.group(&group()))),
        ("GroupLeft", written(|w| w.group_left(GROUP, true, &[Sequence(41), Sequence(77)]))),
        (
            "CancelledInRunOfGroup",
            written(|w| {
                let key = (WallMs(9_000), Sequence(8));
                w.cancelled_in_run_of_group(RunId(7), key, TopicId(3), GROUP);
            }),
        ),
        ("NamesRun", written(|w| w.names_run(RunId(7), 99))),
        ("NamesRunEnded", written(|w| w.names_run_ended(RunId(7)))),
    ]
}

fn read(bytes: &[u8]) -> Record<'_> {
    let mut all = records(bytes);
    let record = all.next().expect("a record").expect("it parses");
    assert_eq!(all.next(), None);
    record
}

#[test]
fn records_are_written_as_the_golden_files_have_them() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    for (name, bytes) in samples() {
        let path = folder.join(format!("record-{}-{}.bin", bytes[0], name.to_lowercase()));
        if env::var_os("ESCAPEMENT_WRITE_GOLDEN").is_some() && !path.exists() {
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(&path, &bytes).expect("the folder can be written");
        }
        let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(bytes, golden, "{name}");
    }
}

#[test]
fn records_read_back_as_they_were_written() {
    let samples = samples();
    let events = events();
    let get = |name: &str| read(&samples.iter().find(|(of, _)| *of == name).expect("a sample").1);
    match get("Published") {
        Record::Published { topic: TopicId(2), first_sequence, count: 2, accepted, names, events: held } => {
            assert_eq!((held, names.count()), (&events[..], 0));
            let dues: Vec<_> =
                published_events(first_sequence, accepted, held).map(|(s, d, _)| (s.0, d.0)).collect();
            assert_eq!(dues, [(41, 6_000), (42, 6_250)], "a past due time is now");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        get("Relocated"),
        Record::Relocated {
            topic: TopicId(2),
            sequence: Sequence(41),
            due: WallMs(6_000),
            forward: None,
            has_left: false,
            progress: PROGRESS.to_vec(),
            event: &events[..32],
        }
    );
    let (due, forward) = (WallMs(8_000), FORWARD);
    assert_eq!(get("Rescheduled"), Record::Rescheduled { sequence: Sequence(41), due, forward, left: None });
    assert_eq!(
        get("RescheduledInRun"),
        Record::RescheduledInRun {
            run: RunId(7),
            topic: TopicId(2),
            sequence: Sequence(41),
            was_due: WallMs(6_000),
            due,
            forward,
            event: &events[..32],
        }
    );
    match get("Completed") {
        Record::Completed {
            subscription: SubscriptionId(3),
            outcome: Outcome::Succeeded,
            last: true,
            sequences,
        } => {
            assert!(sequences.iter().eq([Sequence(7), Sequence(9)]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        get("AttemptFailed"),
        Record::AttemptFailed {
            subscription: SubscriptionId(3),
            sequence: Sequence(7),
            attempt: 4,
            excused: 1,
            next_due: WallMs(7_000),
        }
    );
    assert_eq!(get("Topic"), Record::Topic { id: TopicId(2), version: 5, settings: topic_settings() });
    let settings = subscription_settings();
    assert_eq!(
        get("Subscription"),
        Record::Subscription { id: SubscriptionId(3), version: 6, topic: TopicId(2), settings }
    );
    assert_eq!(get("Mark"), Record::Mark { next_sequence: Sequence(42) });
    let run = RUN.run;
    assert_eq!(get("Run"), Record::Run(RUN));
    match get("Moved") {
        Record::Moved { run: RunId(7), first_block: 2, block_count: 3, sequences } => {
            assert!(sequences.iter().eq([Sequence(9), Sequence(7)]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(get("Loaded"), Record::Loaded { run, first_block: 5, block_count: 4 });
    match get("CancelledInRun") {
        Record::CancelledInRun { run: RunId(7), events } => {
            assert!(events.with_topics().eq([((WallMs(9_000), Sequence(8)), TopicId(3))]));
            assert!(events.iter().eq([(WallMs(9_000), Sequence(8))]));
        }
        other => panic!("{other:?}"),
    }
    match get("PublishedNamed") {
        Record::Published { first_sequence: Sequence(41), count: 2, names, events: held, .. } => {
            assert!(names.iter().eq(HASHES) && held == events);
        }
        other => panic!("{other:?}"),
    }
    match get("Names") {
        Record::Names { topic: TopicId(2), of_block: 77, first: Sequence(41), names } => {
            assert!(names.iter().eq(NAMES));
        }
        other => panic!("{other:?}"),
    }
    let before = Sequence(43);
    assert_eq!(get("NamesForgotten"), Record::NamesForgotten { topic: TopicId(2), before });
    assert_eq!(get("NamesRun"), Record::NamesRun { run: RunId(7), footer_id: 99 });
    assert_eq!(get("NamesRunEnded"), Record::NamesRunEnded { run: RunId(7) });
    assert_eq!(get("Group"), Record::Group(group()));
    match get("GroupLeft") {
        Record::GroupLeft { group: GROUP, is_cancelled: true, sequences } => {
            assert!(sequences.iter().eq([Sequence(41), Sequence(77)]));
        }
        other => panic!("{other:?}"),
    }
    let (key, topic, group) = ((WallMs(9_000), Sequence(8)), TopicId(3), GROUP);
    assert_eq!(
        get("CancelledInRunOfGroup"),
        Record::CancelledInRunOfGroup { run: RunId(7), key, topic, group }
    );
}

#[test]
fn a_group_that_contradicts_itself_does_not_parse() {
    let parses = |change: &dyn Fn(&mut Group)| {
        let mut changed = group();
        change(&mut changed);
        records(&written_unread(|w| w.group(&changed))).next().is_some_and(|record| record.is_ok())
    };
    assert!(parses(&|_| {}));
    let faults: [&dyn Fn(&mut Group); 11] = [
        &|group| group.stretches[3].upto = Sequence(70),
        &|group| group.stretches[1].upto = Sequence(40),
        &|group| group.stretches[1].waiting = 0,
        &|group| group.stretches[1].holders = Holders(0b101),
        &|group| group.stretches[2].holders = Holders(0b1000),
        &|group| group.operations[2].effect = Effect::Postpone(0),
        &|group| group.operations[2].effect = Effect::Postpone(1 << 48),
        &|group| group.stretches.clear(),
        &|group| group.stretches[0].waiting = u64::MAX,
        &|group| group.operations[1].epoch = 0,
        &|group| group.name = "".into(),
    ];
    for (fault, change) in faults.iter().enumerate() {
        assert!(!parses(change), "fault {fault}");
    }
}

#[test]
fn a_postponed_event_leaves_its_group_in_the_record_that_says_when_it_is_due() {
    let left = Some(GroupId([5, 6]));
    let bytes = written(|w| w.rescheduled(Sequence(41), WallMs(8_000), FORWARD, left));
    let (sequence, due, forward) = (Sequence(41), WallMs(8_000), FORWARD);
    assert_eq!(read(&bytes), Record::Rescheduled { sequence, due, forward, left });
    assert_eq!(bytes.len(), HEADER_SIZE_BYTES + 48);
}

#[test]
fn a_copy_says_that_its_event_was_rescheduled_and_takes_the_documented_bytes_for_it() {
    let (events, due) = (events(), WallMs(6_000));
    let copy = |says| written(|w| w.relocated(TopicId(2), Sequence(41), due, says, &PROGRESS, &events[..32]));
    let (plain, rescheduled) = (copy((None, false)), copy((Some(FORWARD), true)));
    assert_eq!(rescheduled.len(), plain.len() + FORWARD_SIZE_BYTES);
    match read(&rescheduled) {
        Record::Relocated { due: held, forward, has_left: true, progress, event, .. } => {
            assert_eq!((held, forward, event), (due, Some(FORWARD), &events[..32]));
            assert_eq!(progress, PROGRESS);
        }
        other => panic!("{other:?}"),
    }
    let in_run = samples().into_iter().find(|(name, _)| *name == "RescheduledInRun").expect("of each kind").1;
    assert_eq!(in_run.len(), HEADER_SIZE_BYTES + RESCHEDULED_IN_RUN_FIXED_SIZE_BYTES + 32);
}

#[test]
fn moved_events_far_apart_have_wide_offsets_and_stay_one_record() {
    let far = [Sequence(1 << 40), Sequence(1), Sequence(1 << 47)];
    let bytes = written(|w| w.moved(RunId(1), 0, 1, &far));
    match read(&bytes) {
        Record::Moved { sequences, .. } => assert!(sequences.iter().eq(far)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn completions_far_apart_are_split_where_offsets_do_not_reach() {
    let far =
        [Sequence(9), Sequence(1), Sequence(u64::from(u32::MAX) + 1), Sequence(u64::from(u32::MAX) + 2)];
    let bytes = written(|w| w.completed(SubscriptionId(1), Outcome::Cancelled, false, &far));
    let mut all = Vec::new();
    for record in records(&bytes) {
        match record {
            Ok(Record::Completed { last: false, sequences, .. }) => all.extend(sequences.iter()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all, far);
}

#[test]
fn bytes_that_say_nothing_must_be_zero() {
    let refused = Err(RecordError { offset: 0 });
    for (name, bytes) in samples() {
        let mut other = bytes.clone();
        other[0] = 99;
        assert_eq!(records(&other).next(), Some(refused.clone()), "an unknown kind");
        if name != "Completed" {
            other.clone_from(&bytes);
            // Low bits say something of some, as that a run is closed.
            other[1] = 64;
            assert_eq!(records(&other).next(), Some(refused.clone()), "{name}");
        }
    }
    let topic = &samples()[4].1;
    let mut other = topic.clone();
    *other.last_mut().expect("padding") = 1;
    assert_eq!(records(&other).next(), Some(refused));
}

#[test]
fn an_effective_due_time_is_never_past_and_never_beyond_what_an_id_holds() {
    let mut event = Vec::new();
    EventSpec::new(Due::At(WallMs(u64::MAX)), "a", b"").encode(&mut event).expect("valid");
    assert_eq!(effective_due(&event, WallMs(5)), Some(WALL_MAX));
    assert_eq!(effective_due(&event[..3], WallMs(5)), None);
}

#[test]
fn the_document_has_the_constants_and_kinds_of_the_code() {
    let row = |cells: &str| assert!(DOCUMENT.contains(&format!("\n| {cells}")), "no row {cells:?}");
    row(&format!("`HEADER_SIZE_BYTES` | {HEADER_SIZE_BYTES} |"));
    row(&format!("`PUBLISHED_FIXED_SIZE_BYTES` | {PUBLISHED_FIXED_SIZE_BYTES} |"));
    row(&format!("`FORWARD_SIZE_BYTES` | {FORWARD_SIZE_BYTES} |"));
    row(&format!("`RESCHEDULED_IN_RUN_FIXED_SIZE_BYTES` | {RESCHEDULED_IN_RUN_FIXED_SIZE_BYTES} |"));
    row(&format!("`PROGRESS_SIZE_BYTES` | {PROGRESS_SIZE_BYTES} |"));
    row(&format!("`CANCELLED_SIZE_BYTES` | {CANCELLED_SIZE_BYTES} |"));
    row(&format!("`NAMES_FIXED_SIZE_BYTES` | {NAMES_FIXED_SIZE_BYTES} |"));
    let value = WALL_MAX.0.to_string();
    let groups: Vec<&str> = (0..5).map(|n| &value[n * 3..n * 3 + 3]).collect();
    row(&format!("`WALL_MAX` | {} |", groups.join(",")));
    for (name, bytes) in samples() {
        row(&format!("{} | [`{name}`](#{}) |", bytes[0], name.to_lowercase()));
    }
    for outcome in Outcome::ALL {
        row(&format!("{} | {outcome:?} |", outcome as u8));
    }
}

/// Each row of a kind's table: offset and name of its fields of fixed size.
fn fields(kind: &str) -> Vec<(usize, usize, String)> {
    let section = DOCUMENT.split(&format!("\n### `{kind}`\n")).nth(1).expect("a section");
    let table = section.split("\n#").next().unwrap_or_default();
    let rows = table.lines().skip_while(|line| !line.starts_with("| offset")).skip(2);
    rows.map_while(|line| line.strip_prefix("| "))
        .filter_map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            Some((cells[0].parse().ok()?, cells[1].parse().ok()?, cells[2].to_owned()))
        })
        .collect()
}

#[test]
fn fields_follow_one_another_and_are_where_the_document_says() {
    let number = |bytes: &[u8], at: usize, size: usize| {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(&bytes[HEADER_SIZE_BYTES + at..][..size]);
        u64::from_le_bytes(wide)
    };
    let expected: [(&str, &[u64]); 21] = [
        ("Published", &[2, 2, 41, 6_000]),
        ("Relocated", &[2, 2, 41, 6_000]),
        ("Completed", &[3, 2, 7]),
        ("AttemptFailed", &[3, 1, 0, 7, 7_000]),
        ("Topic", &[2, 0, 5, 86_400_000]),
        ("Subscription", &[3, 2, 6, 10, 5, 6, 100, 20_000, 100, 60_000, 2, 0, 600_000]),
        ("Mark", &[42]),
        ("Run", &[7, 12, 5, 99, 1_000, 65_536]),
        ("Moved", &[7, 2, 3, 2, 7]),
        ("Loaded", &[7, 5, 4, 0]),
        ("CancelledInRun", &[7, 1]),
        ("Rescheduled", &[41, 8_000, 5_000, 3]),
        ("RescheduledInRun", &[7, 2, 41, 6_000, 8_000, 5_000, 3]),
        ("PublishedNamed", &[2, 2, 41, 6_000]),
        ("Names", &[2, 2, 77, 41]),
        ("NamesForgotten", &[2, 0, 43]),
        ("Group", &[2, 9, 4, 3]),
        ("GroupLeft", &[5, 6, 2]),
        ("CancelledInRunOfGroup", &[7, 3, 9_000, 8, 5, 6]),
        ("NamesRun", &[7, 0, 99]),
        ("NamesRunEnded", &[7, 0]),
    ];
    for ((name, values), (of, bytes)) in expected.into_iter().zip(samples()) {
        assert_eq!(name, of);
        let fields = fields(name);
        assert_eq!(fields.len(), values.len(), "{name}");
        let mut end = 0;
        for ((offset, size, field), value) in fields.into_iter().zip(values) {
            assert_eq!(offset, end, "{name}: {field}");
            end += size;
            assert_eq!(number(&bytes, offset, size), *value, "{name}: {field}");
        }
    }
}
