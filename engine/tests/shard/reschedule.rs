//! Events get another due time, wherever they are.

use std::collections::{BTreeMap, BTreeSet};

use escapement_engine::far::RunOp;
use escapement_engine::{ReplyBody, ShardConfig, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{CancelVerdict, RescheduleVerdict, TaskState};
use escapement_protocol::settings::SubscriptionSettings;
use escapement_protocol::{
    AttemptResult, ErrorCode, EventId, EventSpec, Sequence, ShardId, SubscriptionId, TopicId, WallMs,
};

use crate::rig::{Numbers, Rig, START, config, event};

const HORIZON_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;

const TOO_LATE: RescheduleVerdict = RescheduleVerdict::TooLate { state: TaskState::Ready, attempt: 0 };

fn rig() -> (Rig, TopicId, SubscriptionId) {
    let mut rig = Rig::new(ShardConfig { horizon_ms: HORIZON_MS, ..config(1) });
    let topic = rig.create_topic("t");
    let subscription = rig.create_subscription(SubscriptionSettings {
        name: "s".into(),
        topic: "t".into(),
        ..SubscriptionSettings::default()
    });
    rig.attach(subscription);
    (rig, topic, subscription)
}

fn at(after_ms: u64) -> WallMs {
    WallMs(START.0 + after_ms)
}

/// Publishes an event due at `START` and some ms.
fn publish(rig: &mut Rig, topic: TopicId, after_ms: u64) -> EventId {
    let due = at(after_ms);
    let sequence = rig.published(0, topic, event(Due::At(due), "e", &[7; 100]));
    EventId { shard: ShardId(0), sequence, schedule_time_ms: due.0 }
}

fn verdict(rig: &mut Rig, ticket: Ticket) -> Option<RescheduleVerdict> {
    match rig.reply(ticket)? {
        ReplyBody::Rescheduled(verdict) => Some(verdict),
        other => panic!("{other:?}"),
    }
}

fn reschedule(rig: &mut Rig, event: EventId, due: WallMs) -> RescheduleVerdict {
    let ticket = rig.reschedule(event, due, None);
    rig.settle();
    verdict(rig, ticket).expect("an answer")
}

fn rescheduled(due: WallMs, version: u64) -> RescheduleVerdict {
    RescheduleVerdict::Rescheduled { due, version }
}

/// Moves the clock to `START` and some ms, takes and answers every push.
fn delivered_at(rig: &mut Rig, after_ms: u64) -> Vec<Sequence> {
    rig.advance_ms(at(after_ms).0 - rig.now.wall.0);
    let mut all = Vec::new();
    loop {
        rig.settle();
        let pushes = std::mem::take(&mut rig.pushes);
        if pushes.is_empty() {
            return all;
        }
        for (_, push) in pushes {
            all.push(push.sequence);
            rig.answer(&push, AttemptResult::Success);
        }
    }
}

/// Appends again what the log holds, and frees all that may go.
fn trim(rig: &mut Rig) {
    let newest = rig.newest(0);
    rig.relocate(0, newest, 1 << 20);
    rig.sync();
    rig.trim(0, usize::MAX);
    rig.check();
    rig.check_replay();
}

fn into_run(rig: &mut Rig) {
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, rig.shard(0).stats().pending);
}

#[test]
fn an_event_on_the_wheel_is_due_when_it_was_rescheduled_to_and_keeps_its_id() {
    let (mut rig, topic, _) = rig();
    let later = publish(&mut rig, topic, 1_000);
    let sooner = publish(&mut rig, topic, 9_000);
    let now = publish(&mut rig, topic, 9_000);
    assert_eq!(reschedule(&mut rig, later, at(3_000)), rescheduled(at(3_000), 1));
    assert_eq!(reschedule(&mut rig, sooner, at(2_000)), rescheduled(at(2_000), 1));
    for id in [later, sooner, now] {
        assert_eq!(rig.id(0, id.sequence), id);
    }
    rig.check_replay();
    assert_eq!(delivered_at(&mut rig, 100), []);
    assert_eq!(reschedule(&mut rig, now, WallMs(5)), rescheduled(at(100), 1), "the past is now");
    assert_eq!(delivered_at(&mut rig, 100), [now.sequence]);
    assert_eq!(reschedule(&mut rig, now, at(200)), RescheduleVerdict::NotFound, "it is complete");
    assert_eq!(delivered_at(&mut rig, 1_999), []);
    assert_eq!(delivered_at(&mut rig, 2_000), [sooner.sequence]);
    assert_eq!(delivered_at(&mut rig, 2_999), []);
    assert_eq!(delivered_at(&mut rig, 3_000), [later.sequence]);
    assert_eq!(delivered_at(&mut rig, 20_000), []);
    rig.check();
    rig.check_replay();
}

#[test]
fn a_version_that_is_not_held_changes_nothing_and_is_told_which_is() {
    let (mut rig, topic, _) = rig();
    for after_ms in [1_000, HOUR_MS] {
        let id = publish(&mut rig, topic, after_ms);
        if after_ms == HOUR_MS {
            into_run(&mut rig);
        }
        for (expected, held) in [(1, 0), (7, 0), (u64::MAX, 0)] {
            let ticket = rig.reschedule(id, at(HOUR_MS / 2), Some(expected));
            rig.settle();
            let mismatch = RescheduleVerdict::VersionMismatch { version: held };
            assert_eq!(verdict(&mut rig, ticket), Some(mismatch));
        }
        for version in 0..3 {
            let due = at(HOUR_MS + version * 1_000);
            let ticket = rig.reschedule(id, due, Some(version));
            rig.settle();
            assert_eq!(verdict(&mut rig, ticket), Some(rescheduled(due, version + 1)));
            let found = rig.peek(id).expect("it is pending");
            assert_eq!((found.version, found.info.due), (version + 1, due), "a reader can name the version");
        }
        // Where it is far, the answer is the same from a run.
        into_run(&mut rig);
        assert_eq!(rig.peek(id).map(|found| found.version), Some(3));
        let wrong = EventId { schedule_time_ms: id.schedule_time_ms + 1, ..id };
        assert_eq!(reschedule(&mut rig, wrong, at(5)), RescheduleVerdict::NotFound, "the whole id counts");
        rig.crash();
        let ticket = rig.reschedule(id, at(HOUR_MS), Some(2));
        rig.settle();
        let mismatch = RescheduleVerdict::VersionMismatch { version: 3 };
        assert_eq!(verdict(&mut rig, ticket), Some(mismatch), "a crash forgets no version");
        let ticket = rig.cancel(id);
        rig.settle();
        assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    }
}

#[test]
fn what_is_decided_while_another_change_is_on_its_way_counts_on_it_and_waits_for_it() {
    let (mut rig, topic, _) = rig();
    let id = publish(&mut rig, topic, 1_000);
    let first = rig.reschedule(id, at(5_000), Some(0));
    let stale = rig.reschedule(id, at(6_000), Some(0));
    let second = rig.reschedule(id, at(7_000), Some(1));
    assert!(rig.replies.is_empty(), "none of it is durable");
    rig.advance_ms(1_500);
    rig.maintain();
    assert!(rig.pushes.is_empty(), "its old time has come, and does not count");
    let now = rig.reschedule(id, WallMs(0), None);
    let late = rig.reschedule(id, at(8_000), None);
    let cancel = rig.cancel(id);
    rig.maintain();
    assert!(rig.pushes.is_empty() && rig.replies.is_empty(), "that it runs now is not durable either");
    rig.sync();
    assert_eq!(verdict(&mut rig, first), Some(rescheduled(at(5_000), 1)));
    assert_eq!(verdict(&mut rig, stale), Some(RescheduleVerdict::VersionMismatch { version: 1 }));
    assert_eq!(verdict(&mut rig, second), Some(rescheduled(at(7_000), 2)));
    assert_eq!(verdict(&mut rig, now), Some(rescheduled(at(1_500), 3)));
    assert_eq!(verdict(&mut rig, late), Some(TOO_LATE));
    let too_late = CancelVerdict::TooLate { state: TaskState::Ready, attempt: 0 };
    assert_eq!(rig.reply(cancel), Some(ReplyBody::Cancelled(too_late)));
    assert_eq!(delivered_at(&mut rig, 1_500), [id.sequence]);
    assert_eq!(delivered_at(&mut rig, 10_000), [], "once");

    let other = publish(&mut rig, topic, 20_000);
    rig.reschedule(other, at(30_000), None);
    let cancel = rig.cancel(other);
    let after = rig.reschedule(other, at(40_000), None);
    rig.sync();
    assert_eq!(rig.reply(cancel), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    assert_eq!(verdict(&mut rig, after), Some(RescheduleVerdict::NotFound));
    assert_eq!(delivered_at(&mut rig, 50_000), []);
    rig.check();
    rig.check_replay();
}

#[test]
fn rescheduled_away_and_back_an_event_is_delivered_once() {
    for (first_ms, other_ms) in [(1_000, 2_000), (1_000, HOUR_MS), (HOUR_MS, 1_000), (HOUR_MS, 2 * HOUR_MS)] {
        for steps in 0..4 {
            let (mut rig, topic, _) = rig();
            let id = publish(&mut rig, topic, first_ms);
            for round in 1..=3 {
                reschedule_with(&mut rig, id, at(other_ms), steps);
                reschedule_with(&mut rig, id, at(first_ms), steps);
                assert_eq!(rig.shard(0).stats().pending, 1, "round {round}");
            }
            rig.check();
            rig.check_replay();
            assert_eq!(delivered_at(&mut rig, first_ms - 1), []);
            assert_eq!(delivered_at(&mut rig, first_ms), [id.sequence]);
            assert_eq!(delivered_at(&mut rig, 3 * HOUR_MS), []);
            rig.check_replay();
        }
    }
}

/// Reschedules, and lets as many steps of what follows be taken.
fn reschedule_with(rig: &mut Rig, id: EventId, due: WallMs, steps: usize) {
    let ticket = rig.reschedule(id, due, None);
    rig.sync();
    for _ in 0..3 * steps {
        rig.run_op(0);
        rig.sync();
    }
    if let Some(verdict) = verdict(rig, ticket) {
        assert!(matches!(verdict, RescheduleVerdict::Rescheduled { due: held, .. } if held == due));
    }
}

#[test]
fn an_event_in_a_run_comes_out_of_it_and_no_trim_and_no_crash_brings_it_back_there() {
    let (mut rig, topic, subscription) = rig();
    let ids: Vec<EventId> = (0..30).map(|n| publish(&mut rig, topic, HOUR_MS + n * 1_000)).collect();
    into_run(&mut rig);
    for (n, id) in ids.iter().enumerate().step_by(3) {
        let due = at(2 * HOUR_MS + n as u64);
        assert_eq!(reschedule(&mut rig, *id, due), rescheduled(due, 1));
    }
    for _ in 0..3 {
        trim(&mut rig);
        rig.crash();
        rig.attach(subscription);
        rig.check();
        rig.check_replay();
    }
    // Into a run again, and a second time out of it.
    rig.advance_ms(HORIZON_MS / 2);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 30);
    for (n, id) in ids.iter().enumerate().step_by(6) {
        let due = at(3 * HOUR_MS + n as u64);
        assert_eq!(reschedule(&mut rig, *id, due), rescheduled(due, 2));
        trim(&mut rig);
    }
    rig.crash();
    rig.attach(subscription);
    let of = |ids: &[EventId], keep: &dyn Fn(usize) -> bool| -> Vec<Sequence> {
        ids.iter().enumerate().filter(|(n, _)| keep(*n)).map(|(_, id)| id.sequence).collect()
    };
    assert_eq!(delivered_at(&mut rig, HOUR_MS + 60_000), of(&ids, &|n| n % 3 != 0));
    trim(&mut rig);
    assert_eq!(delivered_at(&mut rig, 2 * HOUR_MS - 1), []);
    assert_eq!(delivered_at(&mut rig, 2 * HOUR_MS + 60_000), of(&ids, &|n| n % 6 == 3));
    assert_eq!(delivered_at(&mut rig, 3 * HOUR_MS - 1), []);
    assert_eq!(delivered_at(&mut rig, 3 * HOUR_MS + 60_000), of(&ids, &|n| n % 6 == 0));
    trim(&mut rig);
    rig.settle();
    assert!(rig.files(0).0.is_empty(), "files go with their last event");
    assert_eq!(rig.shard(0).stats().pending, 0);
}

#[test]
fn a_rescheduled_event_is_found_in_its_run_by_its_id_and_can_be_cancelled_there() {
    let (mut rig, topic, _) = rig();
    let id = publish(&mut rig, topic, 1_000);
    let other = publish(&mut rig, topic, 2 * HOUR_MS);
    assert_eq!(reschedule(&mut rig, id, at(HOUR_MS)), rescheduled(at(HOUR_MS), 1));
    into_run(&mut rig);
    trim(&mut rig);
    rig.crash();
    let ticket = rig.reschedule(id, at(2 * HOUR_MS), Some(1));
    rig.settle();
    assert_eq!(verdict(&mut rig, ticket), Some(rescheduled(at(2 * HOUR_MS), 2)));
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 2);
    let ticket = rig.cancel(id);
    rig.settle();
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    assert_eq!(reschedule(&mut rig, id, at(HOUR_MS)), RescheduleVerdict::NotFound);
    rig.crash();
    assert_eq!(rig.shard(0).stats().pending, 1);
    assert_eq!(reschedule(&mut rig, id, at(HOUR_MS)), RescheduleVerdict::NotFound);
    assert_eq!(reschedule(&mut rig, other, at(HOUR_MS)), rescheduled(at(HOUR_MS), 1));
}

#[test]
fn a_verdict_is_right_at_every_step_of_the_way_into_a_run_and_out_of_it() {
    let targets = [0, 10, HORIZON_MS / 2, HORIZON_MS * 2, 2 * HOUR_MS];
    for (step, target_ms) in (0..60).flat_map(|step| targets.map(|target| (step, target))) {
        let case = format!("step {step} to {target_ms}");
        let (mut rig, topic, subscription) = rig();
        let id = publish(&mut rig, topic, HOUR_MS);
        let other = publish(&mut rig, topic, HOUR_MS);
        let mut asked = None;
        for n in 0..60 {
            match n {
                0 => rig.advance_ms(HORIZON_MS / 4),
                25 => rig.advance_ms(HOUR_MS - HORIZON_MS / 4 - HORIZON_MS),
                _ => {}
            }
            if n == step {
                let due = rig.now.wall.plus_ms(target_ms);
                asked = Some((rig.reschedule(id, due, Some(0)), due));
            }
            match n % 4 {
                0 => rig.maintain(),
                1 => drop(rig.run_op(0)),
                2 => rig.commit(0),
                _ => drop(rig.complete(0)),
            }
        }
        let (ticket, due) = asked.expect("asked");
        let mut pushed = Vec::new();
        rig.settle();
        let Some(RescheduleVerdict::Rescheduled { due: held, version: 1 }) = verdict(&mut rig, ticket) else {
            panic!("{case}: not rescheduled")
        };
        // What waits for the disk is decided when that has answered, and now is that moment.
        assert!(held == due || (due < held && held <= rig.now.wall), "{case}: to {held}");
        for (_, push) in std::mem::take(&mut rig.pushes) {
            pushed.push(push.sequence);
            rig.answer(&push, AttemptResult::Success);
        }
        rig.settle();
        rig.check();
        rig.check_replay();
        trim(&mut rig);
        if step % 3 == 0 {
            rig.crash();
            rig.attach(subscription);
        }
        if held > rig.now.wall {
            let before_ms = held.0 - START.0 - 1;
            assert!(!delivered_at(&mut rig, before_ms).contains(&id.sequence), "{case}: early");
            trim(&mut rig);
            assert!(!pushed.contains(&id.sequence), "{case}: early");
        }
        let after_ms = (held.0 - START.0).max(rig.now.wall.0 - START.0);
        pushed.extend(delivered_at(&mut rig, after_ms));
        assert_eq!(pushed.iter().filter(|sequence| **sequence == id.sequence).count(), 1, "{case}");
        delivered_at(&mut rig, 4 * HOUR_MS);
        assert!(rig.shard(0).event(other.sequence).is_none());
        assert_eq!(rig.shard(0).stats().pending, 0, "{case}");
        trim(&mut rig);
    }
}

#[test]
fn within_a_key_the_order_is_by_the_time_that_counts() {
    let (mut rig, topic, _) = rig();
    let mut keyed = |after_ms: u64| {
        let mut bytes = Vec::new();
        let spec = EventSpec { ordering_key: b"k", ..EventSpec::new(Due::At(at(after_ms)), "e", b"") };
        spec.encode(&mut bytes).expect("valid");
        let sequence = rig.published(0, topic, bytes);
        EventId { shard: ShardId(0), sequence, schedule_time_ms: at(after_ms).0 }
    };
    let ids = [keyed(1_000), keyed(2_000), keyed(3_000), keyed(4_000)];
    reschedule(&mut rig, ids[0], at(3_500));
    reschedule(&mut rig, ids[3], at(2_000));
    let order = [1, 3, 2, 0].map(|n: usize| ids[n].sequence);
    assert_eq!(delivered_at(&mut rig, 10_000), order);
}

#[test]
fn a_full_memory_and_a_full_log_refuse_and_say_when_to_ask_again() {
    let (mut rig, topic, _) = rig();
    let id = publish(&mut rig, topic, 1_000);
    rig.shard_mut(0).set_log_room(0);
    let ticket = rig.reschedule(id, at(5), None);
    rig.sync();
    match rig.reply(ticket) {
        Some(ReplyBody::Refused(refusal)) => {
            assert_eq!(refusal.code, ErrorCode::ResourceExhausted);
            assert!(refusal.retry_after_ms > 0 && refusal.message.contains("log is full"), "{refusal:?}");
        }
        other => panic!("{other:?}"),
    }
    rig.shard_mut(0).set_log_room(1_000);
    assert_eq!(reschedule(&mut rig, id, at(5)), rescheduled(at(5), 1));
}

/// What may be true of one event.
#[derive(Debug)]
struct Known {
    id: EventId,
    /// As far as answers say; `None` once one was lost.
    version: Option<u64>,
    /// When it may be due: the last that an answer named, and all that was asked for since.
    dues: BTreeSet<WallMs>,
}

#[test]
fn whatever_happens_between_every_event_is_delivered_once_and_at_a_time_that_was_asked_for() {
    for seed in 0..20 {
        let mut numbers = Numbers(seed);
        let (mut rig, topic, subscription) = rig();
        let mut known: BTreeMap<Sequence, Known> = BTreeMap::new();
        let mut asked: Vec<(Ticket, Vec<WallMs>)> = Vec::new();
        let mut changes: Vec<(Ticket, Sequence)> = Vec::new();
        let mut done: BTreeSet<Sequence> = BTreeSet::new();
        for step in 0..700 {
            match numbers.below(44) {
                0..5 => {
                    let dues: Vec<WallMs> = (0..=numbers.below(10))
                        .map(|_| rig.now.wall.plus_ms(numbers.below(6 * HORIZON_MS)))
                        .collect();
                    let events: Vec<_> =
                        dues.iter().map(|due| event(Due::At(*due), "e", &[3; 700])).collect();
                    asked.push((rig.publish(0, topic, &events), dues));
                }
                5..13 => rig.maintain(),
                13..19 => rig.commit(0),
                19..25 => drop(rig.complete(0)),
                25..30 => drop(rig.run_op(0)),
                30 => {
                    if rig.next_run_op(0).is_some_and(|op| !matches!(op, RunOp::Read { .. })) {
                        rig.run_op_fails(0);
                    }
                }
                31 => rig.advance_ms(numbers.below(HORIZON_MS / 3)),
                32 if numbers.below(2) == 0 => {
                    rig.crash();
                    rig.attach(subscription);
                    asked.clear();
                    done.clear();
                    for (_, sequence) in changes.drain(..) {
                        known.get_mut(&sequence).expect("asked for").version = None;
                    }
                }
                33..35 => {
                    let upto = rig.oldest(0) + numbers.below(8);
                    rig.relocate(0, upto, 2_000);
                }
                35 => rig.trim(0, numbers.below(10) as usize),
                _ => {
                    let nth = numbers.below(known.len().max(1) as u64) as usize;
                    let Some((sequence, event)) = known.iter_mut().nth(nth) else { continue };
                    let dues: Vec<WallMs> = event.dues.iter().copied().collect();
                    let due = match numbers.below(6) {
                        0 => WallMs(0),
                        1 => dues[numbers.below(dues.len() as u64) as usize],
                        2 => WallMs(event.id.schedule_time_ms),
                        3 => rig.now.wall.plus_ms(numbers.below(HORIZON_MS)),
                        _ => rig.now.wall.plus_ms(numbers.below(6 * HORIZON_MS)),
                    };
                    event.dues.insert(due.max(rig.now.wall));
                    if due <= rig.now.wall {
                        // Decided now, or when a block was read.
                        event.dues.insert(WallMs(0));
                    }
                    let expected = event.version.filter(|_| numbers.below(3) == 0);
                    let ticket = rig.reschedule(event.id, due, expected);
                    changes.push((ticket, *sequence));
                }
            }
            take_answers(&mut rig, &mut asked, &mut changes, &mut known);
            for (_, push) in std::mem::take(&mut rig.pushes) {
                let sequence = push.sequence;
                assert!(done.insert(sequence), "seed {seed}, step {step}: {sequence:?} comes twice");
                let due = rig.shard(0).event(sequence).expect("pushed from memory").due;
                assert!(due <= rig.now.wall, "seed {seed}, step {step}: {sequence:?} is early");
                if let Some(event) = known.get(&sequence) {
                    let was_asked = event.dues.contains(&due) || event.dues.contains(&WallMs(0));
                    assert!(was_asked, "seed {seed}, step {step}: due at {due}, not {event:?}");
                }
                rig.answer(&push, AttemptResult::Success);
            }
            rig.check();
            if numbers.below(20) == 0 {
                rig.settle();
                take_answers(&mut rig, &mut asked, &mut changes, &mut known);
                rig.check_replay();
            }
        }
        rig.settle();
        take_answers(&mut rig, &mut asked, &mut changes, &mut known);
        for _ in 0..3 {
            rig.advance_ms(7 * HORIZON_MS);
            let now_ms = rig.now.wall.0 - START.0;
            done.extend(delivered_at(&mut rig, now_ms));
        }
        assert_eq!(rig.shard(0).stats().pending, 0, "seed {seed}: nothing is left behind");
        rig.check_replay();
    }
}

fn take_answers(
    rig: &mut Rig,
    asked: &mut Vec<(Ticket, Vec<WallMs>)>,
    changes: &mut Vec<(Ticket, Sequence)>,
    known: &mut BTreeMap<Sequence, Known>,
) {
    asked.retain(|(ticket, dues)| match rig.reply(*ticket) {
        Some(ReplyBody::Published { first_sequence, .. }) => {
            for (sequence, due) in (first_sequence.0..).map(Sequence).zip(dues) {
                let id = EventId { shard: ShardId(0), sequence, schedule_time_ms: due.0 };
                known.insert(sequence, Known { id, version: Some(0), dues: BTreeSet::from([*due]) });
            }
            false
        }
        _ => true,
    });
    changes.retain(|(ticket, sequence)| {
        let Some(verdict) = verdict(rig, *ticket) else { return true };
        let event = known.get_mut(sequence).expect("asked for");
        match verdict {
            RescheduleVerdict::Rescheduled { due, version } => {
                let before = event.version.replace(version);
                assert!(before.is_none_or(|before| before < version), "versions rise: {event:?}");
                event.dues.insert(due);
            }
            RescheduleVerdict::VersionMismatch { version } => event.version = Some(version),
            RescheduleVerdict::TooLate { .. } | RescheduleVerdict::NotFound => {}
        }
        false
    });
}
