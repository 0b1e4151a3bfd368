//! Operations on groups, held against models.

use std::collections::{BTreeMap, BTreeSet};

use escapement_engine::far::RunOp;
use escapement_engine::{ReplyBody, Ticket};
use escapement_protocol::frame::{CancelVerdict, GroupAct, GroupVerdict, RescheduleVerdict};
use escapement_protocol::{AttemptResult, ErrorCode, EventId, Sequence, ShardId, TopicId, WallMs};

use crate::groups::{
    GROUPS, HORIZON_MS, NO_SUBSCRIPTION, at, delivered_at, grouped, operate, publish, rig, standing, trim,
    undo,
};
use crate::rig::{Numbers, Rig, START};

/// An event as a model has it.
#[derive(Debug)]
struct Modelled {
    group: usize,
    id: EventId,
    due: WallMs,
    /// Operations that hold it, and by how much those postpone it that do.
    held: BTreeMap<u64, (GroupAct, u64)>,
    is_gone: bool,
}

impl Modelled {
    fn is(&self, act: GroupAct) -> bool {
        self.held.values().any(|(held, _)| *held == act)
    }

    fn postponed_ms(&self) -> u64 {
        self.held.values().map(|(_, by_ms)| by_ms).sum()
    }

    fn is_due(&self, now: WallMs) -> bool {
        !self.is_gone && !self.is(GroupAct::Pause) && self.due.plus_ms(self.postponed_ms()) <= now
    }
}

/// Holds every push against the model, and answers it.
fn take_pushes(rig: &mut Rig, events: &mut BTreeMap<Sequence, Modelled>) {
    loop {
        rig.settle();
        let pushes = std::mem::take(&mut rig.pushes);
        if pushes.is_empty() {
            break;
        }
        for (_, push) in pushes {
            let event = events.get_mut(&push.sequence).expect("published");
            assert!(event.is_due(rig.now.wall) && !event.is(GroupAct::Cancel), "{event:?} is pushed");
            let due = rig.shard(0).event(push.sequence).expect("pending").due;
            assert_eq!(due, event.due.plus_ms(event.postponed_ms()), "{event:?}");
            event.is_gone = true;
            rig.answer(&push, AttemptResult::Success);
        }
    }
    let now = rig.now.wall;
    for event in events.values_mut().filter(|event| event.is_due(now)) {
        assert!(event.is(GroupAct::Cancel), "{event:?} is due and was not pushed");
        event.is_gone = true;
    }
}

#[test]
fn every_operation_takes_and_gives_back_just_what_a_model_says() {
    for seed in 0..30 {
        let mut numbers = Numbers(seed);
        let (mut rig, topic, subscription) = rig();
        let mut events: BTreeMap<Sequence, Modelled> = BTreeMap::new();
        let mut epochs: Vec<(usize, u64)> = Vec::new();
        for step in 0..120_u64 {
            take_pushes(&mut rig, &mut events);
            let context = format!("seed {seed}, step {step}");
            let group = numbers.below(2) as usize;
            let nth = numbers.below(events.len().max(1) as u64) as usize;
            match numbers.below(14) {
                0..3 => {
                    for _ in 0..=numbers.below(6) {
                        let after_ms = rig.now.wall.0 - START.0 + 1 + numbers.below(5 * HORIZON_MS);
                        let id = publish(&mut rig, topic, GROUPS[group], after_ms);
                        let (due, held) = (at(after_ms), BTreeMap::new());
                        events.insert(id.sequence, Modelled { group, id, due, held, is_gone: false });
                    }
                }
                3..6 if epochs.len() < 12 => {
                    let acts = [GroupAct::Cancel, GroupAct::Cancel, GroupAct::Pause, GroupAct::Postpone];
                    let act = acts[numbers.below(4) as usize];
                    let by_ms = if act == GroupAct::Postpone { 1 + numbers.below(HORIZON_MS) } else { 0 };
                    let is_free = |event: &Modelled| act != GroupAct::Pause || !event.is(GroupAct::Pause);
                    let waiting = events.values_mut().filter(|event| event.group == group && !event.is_gone);
                    let taken = waiting.filter(|event| !event.is(GroupAct::Cancel) && is_free(event));
                    let count = taken.map(|event| event.held.insert(step + 1, (act, by_ms))).count();
                    let ticket = rig.operate_by(topic, GROUPS[group], (act, by_ms), step + 1);
                    rig.sync();
                    let answer = rig.group_answer(ticket).expect("an answer");
                    assert_eq!(answer.count, count as u64, "{context}: {act:?}");
                    epochs.push((group, step + 1));
                }
                6..9 if !epochs.is_empty() => {
                    let (group, epoch) = epochs.swap_remove(numbers.below(epochs.len() as u64) as usize);
                    let waiting = events.values_mut().filter(|event| event.group == group && !event.is_gone);
                    let count = waiting.filter_map(|event| event.held.remove(&epoch)).count() as u64;
                    let answer = operate(&mut rig, topic, GROUPS[group], GroupAct::Undo, epoch);
                    let is_over = answer.verdict == GroupVerdict::NotFound && count == 0;
                    assert!(is_over || answer.verdict == GroupVerdict::Undone, "{context}");
                    assert_eq!(answer.count, count, "{context}");
                }
                9 => {
                    let Some(event) = events.values_mut().nth(nth) else { continue };
                    let ticket = rig.cancel(event.id);
                    rig.settle();
                    let expected =
                        if event.is_gone { CancelVerdict::NotFound } else { CancelVerdict::Cancelled };
                    let verdict = rig.reply(ticket);
                    assert_eq!(verdict, Some(ReplyBody::Cancelled(expected)), "{context}: {event:?}");
                    event.is_gone = true;
                }
                10 => {
                    let Some(event) = events.values_mut().nth(nth) else { continue };
                    let due = rig.now.wall.plus_ms(1 + numbers.below(3 * HORIZON_MS));
                    let ticket = rig.reschedule(event.id, due, None);
                    rig.settle();
                    let effective = event.due.plus_ms(event.postponed_ms());
                    let is_cancelled = event.is_gone || event.is(GroupAct::Cancel);
                    match rig.reply(ticket) {
                        Some(ReplyBody::Rescheduled(RescheduleVerdict::Rescheduled { .. })) => {
                            assert!(!is_cancelled && event.postponed_ms() == 0, "{context}: {event:?}");
                            event.due = due;
                        }
                        Some(ReplyBody::Rescheduled(RescheduleVerdict::NotFound)) => {
                            assert!(is_cancelled, "{context}: {event:?}");
                        }
                        Some(ReplyBody::Rescheduled(RescheduleVerdict::TooLate { .. })) => {
                            let is_late = event.is(GroupAct::Pause) && effective <= rig.now.wall;
                            assert!(is_late && !is_cancelled, "{context}: {event:?}");
                        }
                        Some(ReplyBody::Refused(refusal)) => {
                            assert_eq!(refusal.code, ErrorCode::PostponedWithGroup);
                            assert!(!is_cancelled && effective > rig.now.wall, "{context}: {event:?}");
                            assert!(event.postponed_ms() > 0, "{context}: {event:?}");
                        }
                        other => panic!("{context}: {other:?}"),
                    }
                }
                11 => {
                    rig.crash();
                    rig.attach(subscription);
                }
                12 => trim(&mut rig),
                _ => rig.advance_ms(numbers.below(HORIZON_MS)),
            }
            rig.check();
            check_counts(&mut rig, topic, &events, &context);
        }
        take_pushes(&mut rig, &mut events);
        for group in [0, 1] {
            for held in operate(&mut rig, topic, GROUPS[group], GroupAct::Read, 0).operations {
                if held.act == GroupAct::Pause {
                    undo(&mut rig, topic, GROUPS[group], held.epoch);
                }
            }
        }
        events.values_mut().for_each(|event| event.held.retain(|_, (act, _)| *act != GroupAct::Pause));
        for _ in 0..6 {
            take_pushes(&mut rig, &mut events);
            rig.advance_ms(5 * HORIZON_MS);
        }
        take_pushes(&mut rig, &mut events);
        assert_eq!(rig.shard(0).stats().pending, 0, "seed {seed}: nothing is left behind");
        rig.check_replay();
    }
}

/// Holds what the shard counts against the model's counts, wherever nothing has become due since.
fn check_counts(rig: &mut Rig, topic: TopicId, events: &BTreeMap<Sequence, Modelled>, context: &str) {
    let mut waiting = 0;
    for (group, name) in GROUPS.iter().enumerate() {
        let counted = operate(rig, topic, name, GroupAct::Read, 0);
        if !rig.pushes.is_empty() {
            return;
        }
        let of = |is: &dyn Fn(&Modelled) -> bool| {
            events.values().filter(|event| event.group == group && !event.is_gone && is(event)).count() as u64
        };
        let pending = of(&|event| !event.is(GroupAct::Cancel));
        assert_eq!(counted.pending, pending, "{context}: {name} waits");
        let paused = of(&|event| !event.is(GroupAct::Cancel) && event.is(GroupAct::Pause));
        assert_eq!(counted.paused, paused, "{context}: {name} is paused");
        // What is due and cancelled has ended, and the model has not looked yet.
        assert!(
            counted.cancelled <= of(&|event| event.is(GroupAct::Cancel)),
            "{context}: {name} is cancelled"
        );
        waiting += pending;
    }
    assert_eq!(rig.count(topic, NO_SUBSCRIPTION).scheduled, waiting, "{context}");
}

#[test]
fn whatever_is_on_its_way_and_whenever_it_crashes_just_what_is_counted_as_pending_comes() {
    for seed in 0..12 {
        let mut numbers = Numbers(seed);
        let (mut rig, topic, subscription) = rig();
        let mut ids: Vec<EventId> = Vec::new();
        let mut asked: Vec<(Ticket, Vec<WallMs>)> = Vec::new();
        let mut pushed: BTreeSet<Sequence> = BTreeSet::new();
        let mut epoch = 0;
        for step in 0..600 {
            let group = GROUPS[numbers.below(2) as usize];
            match numbers.below(50) {
                0..6 => {
                    let dues: Vec<WallMs> = (0..=numbers.below(8))
                        .map(|_| rig.now.wall.plus_ms(numbers.below(5 * HORIZON_MS)))
                        .collect();
                    let one = |due: &WallMs| grouped(group, "e", due.0 - START.0);
                    let events: Vec<_> = dues.iter().map(one).collect();
                    asked.push((rig.publish(0, topic, &events), dues));
                }
                6..15 => rig.maintain(),
                15..21 => rig.commit(0),
                21..28 => drop(rig.complete(0)),
                28..33 => drop(rig.run_op(0)),
                33 if rig.next_run_op(0).is_some_and(|op| !matches!(op, RunOp::Read { .. })) => {
                    rig.run_op_fails(0);
                }
                34 => rig.advance_ms(numbers.below(HORIZON_MS / 3)),
                35 if numbers.below(3) == 0 => {
                    rig.crash();
                    rig.attach(subscription);
                    asked.clear();
                    pushed.clear();
                }
                36..38 => {
                    let upto = rig.oldest(0) + numbers.below(8);
                    rig.relocate(0, upto, 2_000);
                }
                38 => rig.trim(0, numbers.below(10) as usize),
                39 if !ids.is_empty() => {
                    let id = ids[numbers.below(ids.len() as u64) as usize];
                    if numbers.below(2) == 0 {
                        rig.reschedule(id, rig.now.wall.plus_ms(numbers.below(3 * HORIZON_MS)), None);
                    } else {
                        rig.cancel(id);
                    }
                }
                40..44 => {
                    epoch += 1;
                    let acts = [GroupAct::Cancel, GroupAct::Cancel, GroupAct::Pause, GroupAct::Postpone];
                    let act = acts[numbers.below(4) as usize];
                    let by_ms = if act == GroupAct::Postpone { 1 + numbers.below(HORIZON_MS) } else { 0 };
                    rig.operate_by(topic, group, (act, by_ms), epoch);
                }
                44..49 => {
                    rig.operate(topic, group, GroupAct::Undo, epoch.saturating_sub(numbers.below(3)));
                }
                _ => {}
            }
            asked.retain(|(ticket, dues)| match rig.reply(*ticket) {
                Some(ReplyBody::Published { first_sequence, .. }) => {
                    let named = (first_sequence.0..).map(Sequence).zip(dues);
                    ids.extend(named.map(|(sequence, due)| EventId {
                        shard: ShardId(0),
                        sequence,
                        schedule_time_ms: due.0,
                    }));
                    false
                }
                _ => true,
            });
            for (_, push) in std::mem::take(&mut rig.pushes) {
                let sequence = push.sequence;
                assert!(pushed.insert(sequence), "seed {seed}, step {step}: {sequence:?} comes twice");
                rig.answer(&push, AttemptResult::Success);
            }
            if numbers.below(4) == 0 {
                rig.check();
            }
            if numbers.below(30) == 0 {
                rig.settle();
                rig.check_replay();
            }
        }
        rig.settle();
        while !rig.pushes.is_empty() {
            for (_, push) in std::mem::take(&mut rig.pushes) {
                rig.answer(&push, AttemptResult::Success);
            }
            rig.settle();
        }
        rig.check_replay();
        for group in GROUPS {
            for held in operate(&mut rig, topic, group, GroupAct::Read, 0).operations {
                if held.act == GroupAct::Pause {
                    undo(&mut rig, topic, group, held.epoch);
                }
            }
        }
        rig.pushes.drain(..).collect::<Vec<_>>().into_iter().for_each(|(_, push)| {
            assert!(pushed.insert(push.sequence), "seed {seed}: {:?} comes twice", push.sequence);
            rig.answer(&push, AttemptResult::Success);
        });
        rig.settle();
        let counted: u64 = GROUPS.iter().map(|group| standing(&mut rig, topic, group).0).sum();
        let mut came = 0;
        for _ in 0..12 {
            let after_ms = rig.now.wall.0 - START.0 + 7 * HORIZON_MS;
            came += delivered_at(&mut rig, after_ms).len() as u64;
        }
        assert_eq!(came, counted, "seed {seed}");
        assert_eq!(rig.shard(0).stats().pending, 0, "seed {seed}: nothing is left behind");
        rig.check_replay();
    }
}
