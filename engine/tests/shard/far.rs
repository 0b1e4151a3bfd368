//! Far-future events leave memory and the log, and come back in time.

use std::collections::{BTreeMap, BTreeSet};

use escapement_engine::far::{RunId, RunOp};
use escapement_engine::{HeldRun, ReplyBody, ShardConfig, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::settings::SubscriptionSettings;
use escapement_protocol::{
    AttemptResult, ErrorCode, EventId, Sequence, ShardId, SubscriptionId, TopicId, WallMs,
};

use crate::rig::{Numbers, Rig, START, config, event};

const HORIZON_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;

fn rig() -> (Rig, TopicId, SubscriptionId) {
    rig_with(config(1).run_size_bytes)
}

fn rig_with(run_size_bytes: usize) -> (Rig, TopicId, SubscriptionId) {
    let mut rig = Rig::new(ShardConfig { horizon_ms: HORIZON_MS, run_size_bytes, ..config(1) });
    let topic = rig.create_topic("t");
    let subscription = rig.create_subscription(SubscriptionSettings {
        name: "s".into(),
        topic: "t".into(),
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

/// Takes and answers every push until none comes.
fn delivered(rig: &mut Rig) -> Vec<Sequence> {
    let mut all = Vec::new();
    loop {
        rig.settle();
        let pushes = std::mem::take(&mut rig.pushes);
        if pushes.is_empty() {
            return all;
        }
        for (shard, push) in pushes {
            let due = rig.shard(shard.0).event(push.sequence).expect("what is pushed is in memory").due;
            assert!(due <= rig.now.wall, "never early");
            all.push(push.sequence);
            rig.answer(&push, AttemptResult::Success);
        }
    }
}

fn cancel(rig: &mut Rig, event: EventId) -> CancelVerdict {
    let ticket = rig.cancel(event);
    rig.settle();
    verdict(rig, ticket).expect("an answer")
}

fn verdict(rig: &mut Rig, ticket: Ticket) -> Option<CancelVerdict> {
    match rig.reply(ticket)? {
        ReplyBody::Cancelled(verdict) => Some(verdict),
        other => panic!("{other:?}"),
    }
}

#[test]
fn far_events_leave_memory_and_the_log_and_are_delivered_in_time_and_order() {
    let (mut rig, topic, subscription) = rig();
    let mut ids: Vec<EventId> =
        (0..500).map(|n| publish(&mut rig, topic, HOUR_MS + (n * 7_919) % 600_000, &[7; 200])).collect();
    ids.sort_by_key(|id| (id.schedule_time_ms, id.sequence));
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let stats = rig.shard(0).stats();
    assert_eq!((stats.pending, stats.far), (500, 500), "all of them are in runs");
    assert!(rig.files(0).0.len() > 1 && stats.run_bytes > 100_000);
    rig.check();
    rig.check_replay();
    let newest = rig.newest(0);
    rig.relocate(0, newest, 1 << 20);
    rig.sync();
    rig.trim(0, usize::MAX);
    assert!(rig.log_len(0) < 10, "the log forgets them: {} blocks", rig.log_len(0));
    rig.check_replay();
    rig.crash();
    rig.check();

    rig.attach(subscription);
    let mut seen = Vec::new();
    for _ in 0..100 {
        rig.advance_ms((HOUR_MS + 700_000) / 100);
        // The clock may jump over the horizon: then what is due is read at once.
        seen.extend(delivered(&mut rig));
        rig.check();
        rig.check_replay();
    }
    assert_eq!(seen, ids.iter().map(|id| id.sequence).collect::<Vec<_>>());
    let newest = rig.newest(0);
    rig.relocate(0, newest, 1 << 20);
    rig.sync();
    rig.trim(0, usize::MAX);
    rig.settle();
    assert!(rig.files(0).0.is_empty(), "files go with their last event");
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn nothing_is_read_before_its_time_comes_near() {
    let (mut rig, topic, _) = rig();
    publish(&mut rig, topic, HOUR_MS, b"one");
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let deadline = rig.shard(0).next_deadline().wall;
    assert_eq!(deadline, Some(WallMs(START.0 + HOUR_MS - HORIZON_MS)), "it sleeps until then");
    rig.advance_ms(HOUR_MS - HORIZON_MS - HORIZON_MS / 4 - 1);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 1);
    rig.advance_ms(1);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, 0, "a whole horizon ahead of its time it is back");
}

#[test]
fn a_cancelled_far_event_never_comes_also_after_crashes_and_trims() {
    let (mut rig, topic, subscription) = rig();
    let ids: Vec<EventId> =
        (0..300).map(|n| publish(&mut rig, topic, HOUR_MS + n * 1_000, &[1; 100])).collect();
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    for id in ids.iter().step_by(3) {
        assert_eq!(cancel(&mut rig, *id), CancelVerdict::Cancelled);
        assert_eq!(cancel(&mut rig, *id), CancelVerdict::NotFound, "once is enough");
    }
    let wrong = EventId { schedule_time_ms: ids[1].schedule_time_ms + 1, ..ids[1] };
    assert_eq!(cancel(&mut rig, wrong), CancelVerdict::NotFound, "the whole id must be right");
    assert_eq!(rig.shard(0).stats().pending, 200);
    rig.check_replay();
    for _ in 0..3 {
        let newest = rig.newest(0);
        rig.relocate(0, newest, 1 << 20);
        rig.sync();
        rig.trim(0, usize::MAX);
        rig.check_replay();
        rig.crash();
        rig.check();
    }
    rig.attach(subscription);
    rig.advance_ms(2 * HOUR_MS);
    let seen = delivered(&mut rig);
    let left: Vec<_> = (0..300).filter(|n| n % 3 != 0).map(|n| ids[n].sequence).collect();
    assert_eq!(seen, left);
}

#[test]
fn a_cancellation_is_right_at_every_step_of_the_way() {
    // Into the run: a cancel after each step. Out of it: likewise.
    for step in 0..60 {
        let (mut rig, topic, subscription) = rig();
        let id = publish(&mut rig, topic, HOUR_MS, b"one");
        let other = publish(&mut rig, topic, HOUR_MS, b"other");
        rig.attach(subscription);
        let mut ticket = None;
        for n in 0..60 {
            match n {
                0 => rig.advance_ms(HORIZON_MS / 4),
                25 => rig.advance_ms(HOUR_MS - HORIZON_MS / 4 - HORIZON_MS),
                _ => {}
            }
            if n == step {
                ticket = Some(rig.cancel(id));
            }
            match n % 4 {
                0 => rig.maintain(),
                1 => drop(rig.run_op(0)),
                2 => rig.commit(0),
                _ => drop(rig.complete(0)),
            }
        }
        rig.settle();
        assert_eq!(verdict(&mut rig, ticket.expect("asked")), Some(CancelVerdict::Cancelled), "step {step}");
        assert_eq!(rig.shard(0).stats().pending, 1, "step {step}");
        rig.check();
        rig.check_replay();
        rig.advance_ms(HORIZON_MS);
        assert_eq!(delivered(&mut rig), [other.sequence], "step {step}");
    }
}

#[test]
fn where_the_disk_takes_no_run_events_stay_in_memory_and_are_in_time() {
    let (mut rig, topic, subscription) = rig();
    rig.attach(subscription);
    let ids: Vec<EventId> =
        (0..100).map(|n| publish(&mut rig, topic, 2 * HORIZON_MS + n * 10, &[1; 100])).collect();
    for _ in 0..300 {
        rig.advance_ms(HORIZON_MS / 100);
        rig.sync();
        assert!(rig.pushes.is_empty() || rig.now.wall.0 >= START.0 + 2 * HORIZON_MS, "none early");
        while rig.run_op_fails(0) {}
    }
    assert_eq!(rig.shard(0).stats().far, 0);
    let seen: BTreeSet<_> = rig.pushes.iter().map(|(_, push)| push.sequence).collect();
    assert_eq!(seen, ids.iter().map(|id| id.sequence).collect());
}

/// Events of the larger run: so many that it has several blocks.
const LARGE_COUNT: u64 = 120;

/// Events in one run, due half a second apart, and one more event in another run, due in between.
fn two_runs() -> (Rig, SubscriptionId, Vec<EventId>, EventId) {
    let (mut rig, topic, subscription) = rig_with(1 << 20);
    let other = publish(&mut rig, topic, HOUR_MS + 30_250, b"other");
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    let ids = (0..LARGE_COUNT).map(|n| publish(&mut rig, topic, HOUR_MS + n * 500, &[7; 4_000])).collect();
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!((rig.shard(0).stats().far, rig.files(0).0.len()), (LARGE_COUNT + 1, 2));
    (rig, subscription, ids, other)
}

/// Where a block of some run begins that holds an event of the middle, by its magic.
fn damage_the_middle(rig: &mut Rig) -> (RunId, Vec<u8>) {
    let (run, file) = rig.files(0).0.iter_mut().max_by_key(|(_, file)| file.len()).expect("a run");
    let before = file.clone();
    let starts = (0..file.len()).step_by(4096).filter(|at| file[*at..].starts_with(b"ERB1"));
    let starts: Vec<usize> = starts.collect();
    file[starts[starts.len() / 2] + 100] ^= 1;
    (*run, before)
}

#[test]
fn what_is_in_a_damaged_block_and_behind_it_is_held_and_all_else_is_delivered() {
    let (mut rig, subscription, ids, other) = two_runs();
    rig.attach(subscription);
    let (run, whole) = damage_the_middle(&mut rig);
    rig.advance_ms(2 * HOUR_MS);
    let mut seen = delivered(&mut rig);
    let held = rig.shard_mut(0).take_held();
    let [HeldRun { run: of, count, ref why, due, .. }] = held[..] else { panic!("{held:?}") };
    assert_eq!(of, run);
    assert!(why.contains("is damaged, at block"), "{why}");
    let last = ids.last().expect("there are some").schedule_time_ms;
    assert!(due.0.0 > START.0 + HOUR_MS && due.0 < due.1 && due.1.0 <= last, "{due:?}");
    let stats = rig.shard(0).stats();
    assert_eq!((stats.held, stats.pending, stats.far), (count, count, count), "they stay pending");
    assert!(count > 0 && seen.contains(&other.sequence), "the other run is whole");
    assert_eq!(seen.len() as u64, LARGE_COUNT + 1 - count);
    assert!(
        ids.iter().take((LARGE_COUNT - count) as usize).all(|id| seen.contains(&id.sequence)),
        "what is before it"
    );
    rig.check();
    rig.check_replay();

    // Of an event in the damaged block nobody knows; those behind it can be cancelled.
    let damaged = ids[(LARGE_COUNT - count) as usize];
    let ticket = rig.cancel(damaged);
    rig.settle();
    match rig.reply(ticket) {
        Some(ReplyBody::Refused(refusal)) => {
            assert_eq!(refusal.code, ErrorCode::Unavailable);
            assert!(refusal.message.contains("restore it from a copy"), "{refusal:?}");
        }
        other => panic!("{other:?}"),
    }
    let last = *ids.last().expect("there are some");
    assert!(matches!(cancel(&mut rig, last), CancelVerdict::Cancelled), "it was not due for this shard");
    assert_eq!(rig.shard(0).stats().held, count - 1);
    assert_eq!(rig.shard_mut(0).take_held(), [], "it is told once");

    // A start without the file's restoring finds the same, one with it delivers the rest.
    for restored in [false, true] {
        if restored {
            rig.files(0).0.insert(run, whole.clone());
        }
        rig.crash();
        rig.attach(subscription);
        seen.extend(delivered(&mut rig));
        assert_eq!(rig.shard(0).stats().held, if restored { 0 } else { count - 1 });
        rig.check_replay();
    }
    seen.sort_unstable();
    let mut all: Vec<Sequence> =
        ids[..ids.len() - 1].iter().map(|id| id.sequence).chain([other.sequence]).collect();
    all.sort_unstable();
    assert_eq!(seen, all);
}

#[test]
fn a_look_up_that_meets_damage_is_refused_and_the_shard_goes_on() {
    let (mut rig, subscription, ids, other) = two_runs();
    rig.attach(subscription);
    damage_the_middle(&mut rig);
    let mut refused = 0;
    for id in &ids {
        let ticket = rig.cancel(*id);
        rig.settle();
        match rig.reply(ticket) {
            Some(ReplyBody::Refused(refusal)) => {
                assert_eq!(refusal.code, ErrorCode::Unavailable);
                refused += 1;
            }
            Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((1..30).contains(&refused), "{refused} events of one block");
    assert_eq!(rig.shard_mut(0).take_held().len(), 1);
    rig.check();
    rig.advance_ms(2 * HOUR_MS);
    assert_eq!(delivered(&mut rig), [other.sequence]);
    assert_eq!(rig.shard(0).stats().pending, refused);
}

#[test]
fn whatever_happens_between_every_event_is_delivered_unless_cancelled() {
    for seed in 0..30 {
        let mut numbers = Numbers(seed);
        let (mut rig, topic, subscription) = rig();
        rig.attach(subscription);
        // Due times of what is acknowledged and was neither delivered nor cancelled.
        let mut pending: BTreeMap<Sequence, u64> = BTreeMap::new();
        let mut asked: Vec<(Ticket, Vec<u64>)> = Vec::new();
        let mut cancels: Vec<(Ticket, Sequence)> = Vec::new();
        let mut gone: BTreeSet<Sequence> = BTreeSet::new();
        let mut pushed: BTreeSet<Sequence> = BTreeSet::new();
        for _ in 0..600 {
            match numbers.below(40) {
                0..8 => {
                    let dues: Vec<u64> = (0..=numbers.below(20))
                        .map(|_| {
                            let most = 1 + numbers.below(6 * HORIZON_MS);
                            rig.now.wall.0 + numbers.below(most)
                        })
                        .collect();
                    let events: Vec<_> =
                        dues.iter().map(|due| event(Due::At(WallMs(*due)), "e", &[3; 700])).collect();
                    asked.push((rig.publish(0, topic, &events), dues));
                }
                8..16 => rig.maintain(),
                16..22 => rig.commit(0),
                22..28 => drop(rig.complete(0)),
                28..33 => drop(rig.run_op(0)),
                33 => {
                    if rig.next_run_op(0).is_some_and(|op| !matches!(op, RunOp::Read { .. })) {
                        rig.run_op_fails(0);
                    }
                }
                34 => {
                    let ms = numbers.below(HORIZON_MS / 2);
                    rig.advance_ms(ms);
                }
                35 => {
                    rig.crash();
                    rig.attach(subscription);
                    asked.clear();
                    cancels.clear();
                }
                36 => {
                    let upto = rig.oldest(0) + numbers.below(8);
                    rig.relocate(0, upto, 2_000);
                }
                37 => rig.trim(0, numbers.below(10) as usize),
                _ => {
                    let at = numbers.below(pending.len().max(1) as u64) as usize;
                    if let Some((sequence, due)) = pending.iter().nth(at) {
                        let id = EventId { shard: ShardId(0), sequence: *sequence, schedule_time_ms: *due };
                        cancels.push((rig.cancel(id), *sequence));
                    }
                }
            }
            take_answers(&mut rig, &mut asked, &mut cancels, &mut pending, &mut gone);
            for (_, push) in std::mem::take(&mut rig.pushes) {
                assert!(!gone.contains(&push.sequence), "seed {seed}: {:?} was cancelled", push.sequence);
                pushed.insert(push.sequence);
                rig.answer(&push, AttemptResult::Success);
            }
            rig.check();
            // What is durable as ended is not asked for again.
            if numbers.below(30) == 0 {
                rig.settle();
                take_answers(&mut rig, &mut asked, &mut cancels, &mut pending, &mut gone);
                rig.check_replay();
            }
        }
        rig.settle();
        take_answers(&mut rig, &mut asked, &mut cancels, &mut pending, &mut gone);
        let mut seen: BTreeSet<Sequence> = BTreeSet::new();
        // Attempts whose time was over when the clock jumped are made again after their backoff.
        for _ in 0..2 {
            rig.advance_ms(7 * HORIZON_MS);
            seen.extend(delivered(&mut rig));
        }
        assert!(seen.is_disjoint(&gone), "seed {seed}: what was cancelled stays so");
        pushed.extend(seen);
        let lost = pending.keys().find(|sequence| !pushed.contains(sequence));
        assert_eq!(lost, None, "seed {seed}: what was acknowledged is delivered");
        assert_eq!(rig.shard(0).stats().pending, 0, "seed {seed}: nothing is left behind");
        rig.check_replay();
    }
}

fn take_answers(
    rig: &mut Rig,
    asked: &mut Vec<(Ticket, Vec<u64>)>,
    cancels: &mut Vec<(Ticket, Sequence)>,
    pending: &mut BTreeMap<Sequence, u64>,
    gone: &mut BTreeSet<Sequence>,
) {
    asked.retain(|(ticket, dues)| match rig.reply(*ticket) {
        Some(ReplyBody::Published { first_sequence, .. }) => {
            pending.extend((first_sequence.0..).map(Sequence).zip(dues.iter().copied()));
            false
        }
        _ => true,
    });
    cancels.retain(|(ticket, sequence)| match verdict(rig, *ticket) {
        Some(CancelVerdict::Cancelled) => {
            pending.remove(sequence);
            gone.insert(*sequence);
            false
        }
        Some(_) => false,
        None => true,
    });
}
