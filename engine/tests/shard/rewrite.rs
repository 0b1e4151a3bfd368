//! Runs of which most has gone are written again.

use escapement_engine::{ReplyBody, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::settings::SubscriptionSettings;
use escapement_protocol::{AttemptResult, EventId, Sequence, ShardId, SubscriptionId, TopicId, WallMs};

use crate::rig::{Rig, START, config, event};

const HORIZON_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;
const EVENTS: u64 = 90;

/// Events in a run, due from an hour from now on, `apart_ms` apart.
fn in_a_run(apart_ms: u64) -> (Rig, SubscriptionId, Vec<EventId>) {
    let mut rig = Rig::new(ShardConfig { horizon_ms: HORIZON_MS, run_size_bytes: 1 << 20, ..config(1) });
    let topic = rig.create_topic("t");
    let subscription = rig.create_subscription(SubscriptionSettings {
        name: "s".into(),
        topic: "t".into(),
        ..SubscriptionSettings::default()
    });
    let ids = (0..EVENTS).map(|n| publish(&mut rig, topic, HOUR_MS + n * apart_ms)).collect();
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, EVENTS);
    (rig, subscription, ids)
}

fn publish(rig: &mut Rig, topic: TopicId, after_ms: u64) -> EventId {
    let due = WallMs(START.0 + after_ms);
    let sequence = rig.published(0, topic, event(Due::At(due), "e", &[7; 3_200]));
    EventId { shard: ShardId(0), sequence, schedule_time_ms: due.0 }
}

fn cancel(rig: &mut Rig, ids: impl Iterator<Item = EventId>) {
    let tickets: Vec<_> = ids.map(|id| rig.cancel(id)).collect();
    rig.settle();
    for ticket in tickets {
        assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    }
}

/// Lets the log forget what it need not keep.
fn forget(rig: &mut Rig) {
    for _ in 0..3 {
        let newest = rig.newest(0);
        rig.relocate(0, newest, 1 << 20);
        rig.sync();
        rig.trim(0, usize::MAX);
        rig.settle();
    }
}

fn delivered(rig: &mut Rig) -> Vec<Sequence> {
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

/// Cancels two in three, and returns before the run is being written again.
fn cancel_unsettled(rig: &mut Rig, ids: &[EventId]) {
    let mut victims: Vec<EventId> = two_in_three(ids).collect();
    let last = victims.split_off(EVENTS as usize / 2);
    cancel(rig, victims.into_iter());
    for id in &last {
        rig.cancel(*id);
    }
    // A read of a block for each, and a block of the log for all.
    last.iter().for_each(|_| assert!(rig.run_op(0)));
    rig.commit(0);
    while rig.complete(0) {}
}

fn two_in_three(ids: &[EventId]) -> impl Iterator<Item = EventId> {
    ids.iter().enumerate().filter(|(n, _)| n % 3 != 0).map(|(_, id)| *id)
}

fn one_in_three(ids: &[EventId]) -> Vec<Sequence> {
    ids.iter().step_by(3).map(|id| id.sequence).collect()
}

#[test]
fn what_is_left_of_a_run_goes_to_another_and_the_old_file_goes() {
    let (mut rig, subscription, ids) = in_a_run(1_000);
    let before = rig.shard(0).stats().run_bytes;
    cancel(&mut rig, two_in_three(&ids));
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    rig.check();
    rig.check_replay();
    forget(&mut rig);
    let after = rig.shard(0).stats();
    assert_eq!((after.pending, after.far), (EVENTS / 3, EVENTS / 3), "they are in a run again");
    assert_eq!(rig.files(0).0.len(), 1, "the old file has gone");
    assert!(after.run_bytes * 2 < before, "{before} bytes before, {} after", after.run_bytes);
    assert_eq!(rig.shard(0).relocation_size_bytes(), 64, "nothing is remembered of what was cancelled");
    rig.check_replay();
    rig.crash();
    rig.check();
    rig.attach(subscription);
    rig.advance_ms(2 * HOUR_MS);
    assert_eq!(delivered(&mut rig), one_in_three(&ids));
}

#[test]
fn a_run_that_ends_soon_or_is_half_alive_is_left_alone() {
    // Its last event is due within a few horizons when most of it has gone.
    let (mut rig, _, ids) = in_a_run(100);
    rig.advance_ms(HOUR_MS - 3 * HORIZON_MS - HORIZON_MS / 4);
    cancel(&mut rig, two_in_three(&ids));
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    assert_eq!(rig.shard(0).stats().far, EVENTS / 3, "nothing was read");
    assert_eq!(rig.files(0).0.keys().next().expect("a run").0, 1);

    let (mut rig, _, ids) = in_a_run(1_000);
    cancel(&mut rig, ids.iter().step_by(2).copied());
    rig.advance_ms(HORIZON_MS / 4);
    rig.settle();
    forget(&mut rig);
    assert_eq!(rig.files(0).0.keys().next().expect("a run").0, 1);
}

#[test]
fn a_crash_at_any_step_of_it_changes_nothing() {
    for step in 0..80 {
        let (mut rig, subscription, ids) = in_a_run(1_000);
        cancel_unsettled(&mut rig, &ids);
        for n in 0..80 {
            if n == 30 {
                rig.advance_ms(HORIZON_MS / 4);
            }
            if n == step {
                rig.check_replay();
                rig.crash();
                rig.check();
            }
            match n % 4 {
                0 => rig.maintain(),
                1 => drop(rig.run_op(0)),
                2 => rig.commit(0),
                _ => drop(rig.complete(0)),
            }
        }
        rig.advance_ms(HORIZON_MS / 2);
        rig.settle();
        forget(&mut rig);
        assert_eq!(rig.shard(0).stats().far, EVENTS / 3, "step {step}");
        rig.check();
        rig.attach(subscription);
        rig.advance_ms(2 * HOUR_MS);
        assert_eq!(delivered(&mut rig), one_in_three(&ids), "step {step}");
    }
}

#[test]
fn what_is_left_can_be_cancelled_at_any_step_of_it() {
    for step in 0..60 {
        let (mut rig, subscription, ids) = in_a_run(1_000);
        cancel_unsettled(&mut rig, &ids);
        let (victim, mut left) = (ids[30], one_in_three(&ids));
        let mut ticket = None;
        for n in 0..60 {
            if n == 20 {
                rig.advance_ms(HORIZON_MS / 4);
            }
            if n == step {
                ticket = Some(rig.cancel(victim));
            }
            match n % 4 {
                0 => rig.maintain(),
                1 => drop(rig.run_op(0)),
                2 => rig.commit(0),
                _ => drop(rig.complete(0)),
            }
        }
        rig.settle();
        let answer = rig.reply(ticket.expect("asked"));
        assert_eq!(answer, Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)), "step {step}");
        rig.check();
        rig.check_replay();
        left.retain(|sequence| *sequence != victim.sequence);
        rig.attach(subscription);
        rig.advance_ms(2 * HOUR_MS);
        assert_eq!(delivered(&mut rig), left, "step {step}");
    }
}
