//! Operations on all pending events of a group.

use escapement_engine::record::{Record, records};
use escapement_engine::{AdminRequest, ReplyBody, ShardConfig};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    CancelVerdict, GroupAct, GroupAnswer, GroupEpoch, GroupVerdict, ListEvents, Query, QueryAnswer,
    RescheduleVerdict, TaskState,
};
use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{
    AttemptResult, ErrorCode, EventId, EventSpec, Outcome, Sequence, ShardId, SubscriptionId, TopicId, WallMs,
};

use crate::rig::{Rig, START, config, event};

pub(crate) const HORIZON_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;
pub(crate) const NO_SUBSCRIPTION: SubscriptionId = SubscriptionId(0);

fn rig_with(settings: TopicSettings) -> (Rig, TopicId, SubscriptionId) {
    rig_of(config(1), settings)
}

fn rig_of(mut config: ShardConfig, settings: TopicSettings) -> (Rig, TopicId, SubscriptionId) {
    config.horizon_ms = HORIZON_MS;
    let mut rig = Rig::new(config);
    let name = settings.name.clone();
    let ReplyBody::Topic { id: topic, .. } = rig.admin(AdminRequest::CreateTopic(settings)) else {
        panic!("a topic");
    };
    let subscription = rig.create_subscription(SubscriptionSettings {
        name: "s".into(),
        topic: name,
        ..SubscriptionSettings::default()
    });
    rig.attach(subscription);
    (rig, topic, subscription)
}

pub(crate) fn rig() -> (Rig, TopicId, SubscriptionId) {
    rig_with(TopicSettings { name: "t".into(), ..TopicSettings::default() })
}

pub(crate) fn at(after_ms: u64) -> WallMs {
    WallMs(START.0 + after_ms)
}

pub(crate) fn grouped(group: &str, id: &str, after_ms: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let spec = EventSpec { group, ..EventSpec::new(Due::At(at(after_ms)), id, &[7; 100]) };
    spec.encode(&mut bytes).expect("a valid event");
    bytes
}

/// Publishes an event of a group, due at `START` and some ms.
pub(crate) fn publish(rig: &mut Rig, topic: TopicId, group: &str, after_ms: u64) -> EventId {
    let sequence = rig.published(0, topic, grouped(group, "e", after_ms));
    EventId { shard: ShardId(0), sequence, schedule_time_ms: at(after_ms).0 }
}

pub(crate) fn operate(rig: &mut Rig, topic: TopicId, group: &str, act: GroupAct, epoch: u64) -> GroupAnswer {
    let ticket = rig.operate(topic, group, act, epoch);
    rig.sync();
    rig.group_answer(ticket).expect("an answer")
}

fn cancel(rig: &mut Rig, topic: TopicId, group: &str, epoch: u64) -> u64 {
    let answer = operate(rig, topic, group, GroupAct::Cancel, epoch);
    assert_eq!(answer.verdict, GroupVerdict::Cancelled);
    answer.count
}

pub(crate) fn undo(rig: &mut Rig, topic: TopicId, group: &str, epoch: u64) -> u64 {
    let answer = operate(rig, topic, group, GroupAct::Undo, epoch);
    assert_eq!(answer.verdict, GroupVerdict::Undone);
    answer.count
}

/// The pending events of a topic, as one page has them; a second one for what is in runs.
fn listed(rig: &mut Rig, topic: TopicId) -> Vec<EventId> {
    let mut list = ListEvents { topic, ..ListEvents::default() };
    let mut ids = Vec::new();
    loop {
        let ticket = rig.query(Query::List(Box::new(list.clone())));
        while rig.run_op(0) {}
        let Some(ReplyBody::Answered(QueryAnswer::List(page))) = rig.reply(ticket) else { panic!("a page") };
        ids.extend(page.events.iter().map(|event| event.info.id));
        if page.token.is_empty() {
            return ids;
        }
        list.token = page.token;
    }
}

/// Pending and cancelled events of a group.
pub(crate) fn standing(rig: &mut Rig, topic: TopicId, group: &str) -> (u64, u64) {
    let answer = operate(rig, topic, group, GroupAct::Read, 0);
    (answer.pending, answer.cancelled)
}

/// Moves the clock to `START` and some ms, takes and answers every push.
pub(crate) fn delivered_at(rig: &mut Rig, after_ms: u64) -> Vec<Sequence> {
    rig.advance_ms(at(after_ms).0 - rig.now.wall.0);
    let mut all = Vec::new();
    loop {
        rig.settle();
        let pushes = std::mem::take(&mut rig.pushes);
        if pushes.is_empty() {
            all.sort_unstable();
            return all;
        }
        for (_, push) in pushes {
            all.push(push.sequence);
            rig.answer(&push, AttemptResult::Success);
        }
    }
}

/// Appends again what the log holds, and frees all that may go.
pub(crate) fn trim(rig: &mut Rig) {
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
    assert!(rig.shard(0).stats().far > 0);
}

#[test]
fn what_a_group_held_is_never_pushed_once_it_is_cancelled_and_nothing_else_is_touched() {
    let (mut rig, topic, _) = rig();
    let other_topic = rig.create_topic("u");
    let taken = [publish(&mut rig, topic, "g", 1_000), publish(&mut rig, topic, "g", 5_000)];
    let kept = [
        publish(&mut rig, topic, "h", 1_000).sequence,
        rig.published(0, topic, event(Due::At(at(1_000)), "e", b"")),
    ];
    publish(&mut rig, other_topic, "g", 1_000);
    assert_eq!(rig.count(topic, NO_SUBSCRIPTION).scheduled, 4);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 2);
    assert_eq!(rig.count(topic, NO_SUBSCRIPTION).scheduled, 2, "they are not counted as pending at once");
    assert_eq!(rig.count(TopicId(0), NO_SUBSCRIPTION).scheduled, 3);
    assert_eq!(rig.shard(0).stats().pending, 3);
    let later = publish(&mut rig, topic, "g", 1_000).sequence;
    assert_eq!(standing(&mut rig, topic, "g"), (1, 2), "what is published later is not taken");
    assert_eq!(standing(&mut rig, topic, "h"), (1, 0));
    assert_eq!(standing(&mut rig, other_topic, "g"), (1, 0));
    assert_eq!(standing(&mut rig, topic, "never"), (0, 0));
    rig.check();
    rig.check_replay();
    for id in taken {
        assert_eq!(rig.peek(id), None, "it is cancelled");
    }
    assert_eq!(delivered_at(&mut rig, 1_000), [kept[0], kept[1], later]);
    assert_eq!(standing(&mut rig, topic, "g"), (0, 1), "one has ended");
    assert_eq!(delivered_at(&mut rig, HOUR_MS), []);
    assert_eq!(standing(&mut rig, topic, "g"), (0, 0));
    let cancelled = rig.count(topic, NO_SUBSCRIPTION).ended;
    assert!(cancelled.iter().any(|ended| ended.outcome == Outcome::Cancelled as u8 && ended.count == 2));
    rig.check_replay();
}

#[test]
fn undone_what_was_not_reached_is_pending_again_and_comes_at_its_time() {
    let (mut rig, topic, _) = rig();
    publish(&mut rig, topic, "g", 1_000);
    let second = publish(&mut rig, topic, "g", 2_000);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 2);
    assert_eq!(delivered_at(&mut rig, 1_500), [], "the first has ended for good");
    assert_eq!(listed(&mut rig, topic), []);
    assert_eq!(undo(&mut rig, topic, "g", 7), 1);
    assert_eq!(rig.count(topic, NO_SUBSCRIPTION).scheduled, 1);
    assert!(rig.peek(second).is_some());
    assert_eq!(listed(&mut rig, topic), [second]);
    assert_eq!(undo(&mut rig, topic, "g", 7), 1, "asked again, the answer is the same");
    rig.check_replay();
    rig.crash();
    rig.attach(SubscriptionId(1));
    assert_eq!(undo(&mut rig, topic, "g", 7), 1, "after a crash, too");
    assert_eq!(delivered_at(&mut rig, 2_000), [second.sequence]);
    let unknown = operate(&mut rig, topic, "g", GroupAct::Undo, 8);
    assert_eq!((unknown.verdict, unknown.count), (GroupVerdict::NotFound, 0));
}

#[test]
fn an_operation_is_carried_out_once_however_often_it_is_asked_for() {
    let (mut rig, topic, _) = rig();
    publish(&mut rig, topic, "g", 1_000);
    let first = rig.operate(topic, "g", GroupAct::Cancel, 7);
    let again = rig.operate(topic, "g", GroupAct::Cancel, 7);
    assert!(rig.group_answer(first).is_none() && rig.group_answer(again).is_none(), "not durable yet");
    rig.sync();
    assert_eq!(rig.group_answer(first).map(|answer| answer.count), Some(1));
    assert_eq!(rig.group_answer(again).map(|answer| answer.count), Some(1));
    let later = publish(&mut rig, topic, "g", 1_000);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 1, "the retry takes nothing that came later");
    let answer = operate(&mut rig, topic, "g", GroupAct::Read, 0);
    let (act, by_ms, is_undone) = (GroupAct::Cancel, 0, false);
    assert_eq!(answer.operations, [GroupEpoch { epoch: 7, taken: 1, left: 1, by_ms, act, is_undone }]);
    assert_eq!(undo(&mut rig, topic, "g", 7), 1);
    let late = operate(&mut rig, topic, "g", GroupAct::Cancel, 7);
    assert_eq!((late.verdict, late.count), (GroupVerdict::Undone, 1), "an epoch that was undone stays so");
    assert_eq!(delivered_at(&mut rig, 1_000).last(), Some(&later.sequence));
    // Where a group has nothing, the operation is remembered all the same.
    assert_eq!(cancel(&mut rig, topic, "empty", 9), 0);
    publish(&mut rig, topic, "empty", 5_000);
    rig.crash();
    assert_eq!(cancel(&mut rig, topic, "empty", 9), 0);
    assert_eq!(standing(&mut rig, topic, "empty"), (1, 0));
    let refused = rig.operate(TopicId(99), "g", GroupAct::Cancel, 1);
    assert!(matches!(
        rig.reply(refused),
        Some(ReplyBody::Refused(refusal)) if refusal.code == ErrorCode::UnknownTopic
    ));
}

#[test]
fn what_was_handed_out_before_is_not_taken_and_a_crash_delivers_it_again() {
    let (mut rig, topic, subscription) = rig();
    let out = publish(&mut rig, topic, "g", 1_000);
    publish(&mut rig, topic, "g", 2_000);
    rig.advance_ms(1_000);
    rig.maintain();
    assert_eq!(rig.pushes.len(), 1);
    let ticket = rig.operate(topic, "g", GroupAct::Cancel, 7);
    let late = rig.cancel(out);
    rig.sync();
    assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(1), "one is out");
    let too_late = CancelVerdict::TooLate { state: TaskState::Ready, attempt: 0 };
    assert_eq!(rig.reply(late), Some(ReplyBody::Cancelled(too_late)));
    rig.check();
    rig.check_replay();
    for _ in 0..2 {
        // The second time from a copy.
        trim(&mut rig);
        rig.crash();
        rig.attach(subscription);
        rig.check_replay();
        rig.sync();
        let pushed: Vec<_> = rig.pushes.iter().map(|(_, push)| push.sequence).collect();
        assert_eq!(pushed, [out.sequence], "the operation did not take it");
        assert_eq!(standing(&mut rig, topic, "g"), (0, 1));
    }
    assert_eq!(delivered_at(&mut rig, 3_000), [out.sequence]);
    assert_eq!(standing(&mut rig, topic, "g"), (0, 0));
    rig.check_replay();
}

#[test]
fn handed_out_and_lost_in_a_crash_an_event_waits_in_its_group_as_before() {
    let (mut rig, topic, subscription) = rig();
    publish(&mut rig, topic, "g", 1_000);
    rig.advance_ms(1_000);
    rig.maintain();
    assert_eq!(rig.pushes.len(), 1);
    rig.crash();
    rig.attach(subscription);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 1, "nothing was durable of the push");
    rig.settle();
    assert_eq!(rig.pushes, []);
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn a_cancellation_counts_from_its_decision_and_an_undo_once_it_is_durable() {
    let (mut rig, topic, subscription) = rig();
    let id = publish(&mut rig, topic, "g", 1_000);
    let ticket = rig.operate(topic, "g", GroupAct::Cancel, 7);
    rig.advance_ms(1_000);
    rig.maintain();
    assert_eq!(rig.pushes, [], "it is fenced before the record is durable");
    rig.crash();
    rig.attach(subscription);
    assert!(rig.group_answer(ticket).is_none());
    assert_eq!(delivered_at(&mut rig, 1_000), [id.sequence], "nothing of it survived");

    publish(&mut rig, topic, "g", 3_000);
    assert_eq!(cancel(&mut rig, topic, "g", 8), 1);
    let ticket = rig.operate(topic, "g", GroupAct::Undo, 8);
    rig.advance_ms(2_000);
    rig.maintain();
    rig.maintain();
    assert_eq!(rig.pushes, [], "a crash may bring the cancellation back");
    rig.check();
    rig.commit(0);
    assert!(rig.complete(0));
    rig.maintain();
    assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(1));
    assert_eq!(rig.pushes.len(), 1, "from now on it is pending");
    rig.check();

    // An undo that is lost leaves the cancellation.
    publish(&mut rig, topic, "g", 9_000);
    assert_eq!(cancel(&mut rig, topic, "g", 9), 1);
    rig.operate(topic, "g", GroupAct::Undo, 9);
    rig.crash();
    assert_eq!(standing(&mut rig, topic, "g"), (0, 1));
    rig.check_replay();
}

#[test]
fn between_undo_and_its_record_another_cancellation_takes_the_events_again() {
    let (mut rig, topic, _) = rig();
    publish(&mut rig, topic, "g", 1_000);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 1);
    rig.operate(topic, "g", GroupAct::Undo, 7);
    rig.advance_ms(1_000);
    rig.maintain();
    let ticket = rig.operate(topic, "g", GroupAct::Cancel, 8);
    rig.settle();
    assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(1));
    assert_eq!(rig.pushes, []);
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check();
    rig.check_replay();
}

#[test]
fn an_operation_reaches_what_is_due_and_waits_for_its_topics_turn() {
    let config = ShardConfig { batch_count_max: 10, block_size_bytes_max: 256 * 1024, ..config(1) };
    let settings = TopicSettings { name: "t".into(), ..TopicSettings::default() };
    let (mut rig, topic, _) = rig_of(config, settings);
    for _ in 0..10 {
        let of_both: Vec<_> = (0..100).map(|n| grouped(GROUPS[n % 2], "e", 100)).collect();
        rig.publish(0, topic, &of_both);
        rig.sync();
    }
    rig.advance_ms(100);
    let maintained = |rig: &mut Rig, times: usize| {
        (0..times).for_each(|_| rig.maintain());
        rig.check();
        std::mem::take(&mut rig.pushes).into_iter().map(|(_, push)| push.sequence.0).collect::<Vec<u64>>()
    };
    // The first batches are matched in order, the next ones in turn.
    assert_eq!(maintained(&mut rig, 20), (1..=200).collect::<Vec<u64>>());
    let ticket = rig.operate(topic, GROUPS[1], GroupAct::Cancel, 7);
    let is_left = |n: &u64| !n.is_multiple_of(2);
    let next = maintained(&mut rig, 10);
    assert!(next.len() >= 40 && next.iter().all(is_left), "{next:?}");
    rig.commit(0);
    rig.complete(0);
    assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(400));
    // One of those in the queue is cancelled by itself; the others are given back, and some reached before that is durable.
    let alone = rig.cancel(rig.id(0, Sequence(900)));
    let undone = rig.operate(topic, GROUPS[1], GroupAct::Undo, 7);
    let mut rest = maintained(&mut rig, 10);
    assert!(rest.len() >= 40 && rest.iter().all(is_left), "{rest:?}");
    while !rig.is_synced() {
        rig.commit(0);
        rig.complete(0);
    }
    assert_eq!(rig.reply(alone), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    let restored = rig.group_answer(undone).map_or(0, |answer| answer.count);
    while rig.shard(0).is_behind() {
        rest.extend(maintained(&mut rig, 1));
    }
    let (odd, even): (Vec<u64>, Vec<u64>) = rest.into_iter().partition(is_left);
    assert_eq!(odd.len() + next.len() + 200, 600, "nothing else is missing");
    assert_eq!(even.len() as u64, restored, "just what was given back");
    assert!(!even.contains(&900) && restored > 100, "{restored}");
    rig.sync();
    rig.check();
    rig.check_replay();
}

#[test]
fn while_something_is_cancelled_with_its_group_counts_of_what_comes_due_are_not_exact() {
    let (mut rig, topic, _) = rig();
    let other = rig.create_topic("u");
    for after_ms in [2_000, 5_000] {
        publish(&mut rig, topic, "g", after_ms);
        publish(&mut rig, other, "g", after_ms);
    }
    let are_exact = |rig: &mut Rig, topic| rig.count_due(topic).iter().all(|count| count.exact);
    let all = [TopicId(0), topic, other];
    assert_eq!(all.map(|topic| are_exact(&mut rig, topic)), [true; 3]);
    cancel(&mut rig, topic, "g", 7);
    assert_eq!(all.map(|topic| are_exact(&mut rig, topic)), [false, false, true]);
    undo(&mut rig, topic, "g", 7);
    assert_eq!(all.map(|topic| are_exact(&mut rig, topic)), [true; 3]);
}

#[test]
fn what_is_paused_waits_whatever_comes_and_is_due_at_once_when_that_is_taken_back() {
    let (mut rig, topic, subscription) = rig();
    let [late, soon, free] = [("g", 5_000), ("g", 2_000), ("h", 3_000)]
        .map(|(group, after_ms)| publish(&mut rig, topic, group, after_ms).sequence);
    let answer = operate(&mut rig, topic, "g", GroupAct::Pause, 7);
    assert_eq!((answer.verdict, answer.count, answer.paused), (GroupVerdict::Paused, 2, 2));
    let later = publish(&mut rig, topic, "g", 4_000).sequence;
    assert_eq!(delivered_at(&mut rig, 10_000), [free, later], "what is accepted later is not paused");
    rig.check();
    rig.crash();
    rig.attach(subscription);
    assert_eq!(delivered_at(&mut rig, 20_000), []);
    trim(&mut rig);
    assert_eq!(rig.shard(0).stats().pending, 2);
    assert!(rig.shard(0).next_deadline().wall.is_none_or(|wall| wall > rig.now.wall), "nothing is due");
    let ticket = rig.operate(topic, "g", GroupAct::Undo, 7);
    rig.maintain();
    assert_eq!(rig.pushes, [], "a crash may bring the pause back");
    rig.sync();
    assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(2));
    let pushed: Vec<Sequence> = rig.pushes.iter().map(|(_, push)| push.sequence).collect();
    assert_eq!(pushed, [soon, late], "by due time");
    rig.check();
}

#[test]
fn a_pause_counts_from_its_decision_and_passes_over_to_what_another_one_holds() {
    let (mut rig, topic, subscription) = rig();
    let first = publish(&mut rig, topic, "g", 1_000);
    rig.operate(topic, "g", GroupAct::Pause, 7);
    rig.advance_ms(1_000);
    rig.maintain();
    assert_eq!(rig.pushes, [], "before it is durable");
    rig.crash();
    rig.attach(subscription);
    assert_eq!(delivered_at(&mut rig, 1_000), [first.sequence], "nothing of it survived");

    publish(&mut rig, topic, "g", 2_000);
    assert_eq!(operate(&mut rig, topic, "g", GroupAct::Pause, 8).count, 1);
    let second = publish(&mut rig, topic, "g", 2_000);
    assert_eq!(operate(&mut rig, topic, "g", GroupAct::Pause, 9).count, 1, "what was not paused yet");
    assert_eq!(delivered_at(&mut rig, 2_500), []);
    assert_eq!(rig.cancelled(second), CancelVerdict::Cancelled, "paused, it can be cancelled even now");
    assert_eq!(undo(&mut rig, topic, "g", 9), 0);
    assert_eq!(delivered_at(&mut rig, 2_600), [], "the other one is in force");
    // Cancelled while it is paused, it can come back until it is neither.
    assert_eq!(cancel(&mut rig, topic, "g", 10), 1);
    assert_eq!(undo(&mut rig, topic, "g", 10), 1);
    assert_eq!(cancel(&mut rig, topic, "g", 11), 1);
    assert_eq!(undo(&mut rig, topic, "g", 8), 1);
    assert_eq!(delivered_at(&mut rig, 2_700), []);
    assert_eq!(rig.shard(0).stats().pending, 0);
    assert_eq!(undo(&mut rig, topic, "g", 11), 0);
    rig.check_replay();
}

#[test]
fn what_is_postponed_comes_later_by_all_of_it_and_as_due_then_and_its_ttl_counts_from_there() {
    let (mut rig, topic, subscription) = rig();
    let mut bytes = Vec::new();
    let spec = EventSpec { group: "g", ttl_ms: 1_000, ..EventSpec::new(Due::At(at(2_000)), "e", b"data") };
    spec.encode(&mut bytes).expect("a valid event");
    let sequence = rig.published(0, topic, bytes);
    let postpone = |rig: &mut Rig, by_ms, epoch| {
        let ticket = rig.operate_by(topic, "g", (GroupAct::Postpone, by_ms), epoch);
        rig.sync();
        rig.group_answer(ticket).expect("an answer")
    };
    let answer = postpone(&mut rig, 3_000, 7);
    assert_eq!((answer.verdict, answer.count), (GroupVerdict::Postponed, 1));
    assert_eq!(delivered_at(&mut rig, 2_500), []);
    assert_eq!(postpone(&mut rig, 1_000, 8).count, 1, "due by itself, it waits in its group still");
    rig.check();
    let id = EventId { shard: ShardId(0), sequence, schedule_time_ms: at(2_000).0 };
    let info = rig.peek(id).expect("pending").info;
    assert_eq!((info.due, info.state), (at(6_000), TaskState::Scheduled));
    let ticket = rig.reschedule(id, at(9_000), None);
    match rig.reply(ticket) {
        Some(ReplyBody::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::PostponedWithGroup),
        other => panic!("{other:?}"),
    }
    rig.crash();
    rig.attach(subscription);
    assert_eq!(delivered_at(&mut rig, 5_999), []);
    rig.advance_ms(1);
    rig.maintain();
    assert_eq!(rig.pushes, [], "not before it is durable that it is due now");
    rig.sync();
    assert_eq!(rig.pushes.len(), 1);
    let held = rig.shard(0).event(sequence).expect("not answered");
    assert_eq!(
        (held.due, held.schedule_time(), held.forward.map(|forward| forward.version)),
        (at(6_000), at(2_000), Some(1))
    );
    assert_eq!(cancel(&mut rig, topic, "g", 9), 0, "it has left its group");
    rig.crash();
    rig.attach(subscription);
    trim(&mut rig);
    assert_eq!(delivered_at(&mut rig, 6_999), [sequence], "within its ttl, counted from when it was due");
    rig.check_replay();
}

#[test]
fn a_postponement_taken_back_gives_old_due_times_back_and_what_has_passed_its_own_is_due_at_once() {
    let (mut rig, topic, _) = rig();
    let far = publish(&mut rig, topic, "g", 5 * HORIZON_MS).sequence;
    into_run(&mut rig);
    let [late, soon, coming] =
        [29_000, 20_000, 50_000].map(|after_ms| publish(&mut rig, topic, "g", after_ms));
    let ticket = rig.operate_by(topic, "g", (GroupAct::Postpone, 6 * HORIZON_MS), 7);
    rig.sync();
    assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(4));
    assert_eq!(delivered_at(&mut rig, 30_000), []);
    rig.check();
    assert_eq!(undo(&mut rig, topic, "g", 7), 4);
    let pushed: Vec<Sequence> = rig.pushes.iter().map(|(_, push)| push.sequence).collect();
    assert_eq!(pushed, [soon.sequence, late.sequence], "at once");
    let held = rig.shard(0).event(late.sequence).expect("not answered");
    assert_eq!((held.due, held.forward), (at(29_000), None));
    assert_eq!(delivered_at(&mut rig, 49_999), [late.sequence, soon.sequence]);
    assert_eq!(delivered_at(&mut rig, 50_000), [coming.sequence]);
    assert_eq!(delivered_at(&mut rig, 5 * HORIZON_MS), [far]);
    rig.check_replay();
}

#[test]
fn single_events_of_a_cancelled_group_are_answered_as_cancelled_ones() {
    let (mut rig, topic, _) = rig();
    let alone = publish(&mut rig, topic, "g", 5_000);
    let rest = publish(&mut rig, topic, "g", 6_000);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 2);
    let ticket = rig.reschedule(alone, at(9_000), None);
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Rescheduled(RescheduleVerdict::NotFound)));
    assert_eq!(rig.cancelled(alone), CancelVerdict::Cancelled);
    assert_eq!(rig.cancelled(alone), CancelVerdict::NotFound);
    assert_eq!(standing(&mut rig, topic, "g"), (0, 1), "it left the group");
    assert_eq!(undo(&mut rig, topic, "g", 7), 1, "and does not come back with it");
    let ticket = rig.reschedule(rest, at(7_000), None);
    rig.sync();
    let verdict = RescheduleVerdict::Rescheduled { due: at(7_000), version: 1 };
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Rescheduled(verdict)));
    rig.check_replay();
    assert_eq!(cancel(&mut rig, topic, "g", 8), 1, "rescheduled, it is of its group");
    assert_eq!(undo(&mut rig, topic, "g", 8), 1);
    assert_eq!(delivered_at(&mut rig, 6_999), []);
    assert_eq!(delivered_at(&mut rig, 7_000), [rest.sequence]);
}

#[test]
fn in_a_run_an_event_is_of_its_group_like_any_other() {
    let (mut rig, topic, subscription) = rig();
    let ids: Vec<EventId> = (0..4).map(|n| publish(&mut rig, topic, "g", HOUR_MS + n * 1_000)).collect();
    let other = publish(&mut rig, topic, "h", HOUR_MS);
    into_run(&mut rig);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 4);
    assert_eq!(rig.count(topic, NO_SUBSCRIPTION).scheduled, 1);
    assert_eq!(rig.peek(ids[0]), None);
    assert!(rig.peek(other).is_some());
    assert_eq!(listed(&mut rig, topic), [other]);
    // One of them is cancelled by itself, in the run, and one asked for another time.
    let ticket = rig.cancel(ids[0]);
    rig.settle();
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)));
    let ticket = rig.reschedule(ids[1], at(5), None);
    rig.settle();
    assert_eq!(rig.reply(ticket), Some(ReplyBody::Rescheduled(RescheduleVerdict::NotFound)));
    assert_eq!(standing(&mut rig, topic, "g"), (0, 3));
    rig.check_replay();
    trim(&mut rig);
    rig.crash();
    rig.attach(subscription);
    assert_eq!(standing(&mut rig, topic, "g"), (0, 3), "counts survive what the log forgets");
    // They come back to memory, and one of them ends; the others are given back.
    assert_eq!(delivered_at(&mut rig, HOUR_MS + 1_000), [other.sequence]);
    assert_eq!(standing(&mut rig, topic, "g"), (0, 2));
    assert_eq!(undo(&mut rig, topic, "g", 7), 2);
    assert_eq!(rig.count(topic, NO_SUBSCRIPTION).scheduled, 2);
    trim(&mut rig);
    assert_eq!(delivered_at(&mut rig, 2 * HOUR_MS), [ids[2].sequence, ids[3].sequence]);
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn rescheduled_out_of_a_run_an_event_stays_in_its_group_at_every_step() {
    for steps in 0..4 {
        let (mut rig, topic, subscription) = rig();
        let id = publish(&mut rig, topic, "g", HOUR_MS);
        into_run(&mut rig);
        let moved = rig.reschedule(id, at(30_000), None);
        if steps > 0 {
            while rig.run_op(0) {}
        }
        if steps > 1 {
            rig.commit(0);
        }
        if steps > 2 {
            rig.complete(0);
        }
        let ticket = rig.operate(topic, "g", GroupAct::Cancel, 7);
        let alone = rig.cancel(id);
        rig.settle();
        assert!(rig.reply(moved).is_some());
        assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(1), "step {steps}");
        assert_eq!(rig.reply(alone), Some(ReplyBody::Cancelled(CancelVerdict::Cancelled)), "step {steps}");
        assert_eq!(standing(&mut rig, topic, "g"), (0, 0));
        rig.check();
        rig.check_replay();
        rig.crash();
        rig.attach(subscription);
        assert_eq!(delivered_at(&mut rig, 2 * HOUR_MS), []);
    }
}

#[test]
fn counts_are_exact_after_the_log_was_trimmed_and_after_every_block_of_it() {
    let (mut rig, topic, subscription) = rig();
    for n in 0..40 {
        publish(&mut rig, topic, ["g", "h"][n as usize % 2], 1_000 * (n + 1));
        if n == 20 {
            assert_eq!(cancel(&mut rig, topic, "g", 7), 11);
        }
        if n % 10 == 9 {
            trim(&mut rig);
        }
    }
    assert!(rig.log_len(0) < 20, "the log was trimmed");
    assert_eq!((standing(&mut rig, topic, "g"), standing(&mut rig, topic, "h")), ((9, 11), (20, 0)));
    let delivered = delivered_at(&mut rig, 10_000).len();
    assert_eq!(delivered, 5);
    rig.crash();
    rig.attach(subscription);
    assert_eq!((standing(&mut rig, topic, "g"), standing(&mut rig, topic, "h")), ((9, 6), (15, 0)));
    trim(&mut rig);
    assert_eq!(undo(&mut rig, topic, "g", 7), 6);
    assert_eq!(delivered_at(&mut rig, HOUR_MS).len(), 30);
    assert_eq!(rig.shard(0).stats().pending, 0);
    rig.check_replay();
}

#[test]
fn operations_are_forgotten_after_an_hour_and_groups_with_them_and_the_log_is_freed() {
    let (mut rig, topic, _) = rig();
    let bare = rig.shard(0).relocation_size_bytes();
    publish(&mut rig, topic, "g", 1_000);
    publish(&mut rig, topic, "g", 2 * HOUR_MS);
    assert_eq!(cancel(&mut rig, topic, "g", 7), 2);
    assert_eq!(cancel(&mut rig, topic, "empty", 7), 0);
    rig.advance_ms(HOUR_MS);
    rig.settle();
    assert_eq!(operate(&mut rig, topic, "empty", GroupAct::Read, 0).operations.len(), 1);
    rig.advance_ms(2_000);
    rig.settle();
    assert_eq!(operate(&mut rig, topic, "empty", GroupAct::Read, 0).operations, []);
    assert_eq!(operate(&mut rig, topic, "g", GroupAct::Read, 0).operations.len(), 1, "it holds one");
    rig.check_replay();
    rig.advance_ms(2 * HOUR_MS);
    rig.settle();
    rig.advance_ms(HOUR_MS + 2_000);
    rig.settle();
    assert_eq!(operate(&mut rig, topic, "g", GroupAct::Read, 0).operations, []);
    trim(&mut rig);
    assert_eq!(rig.shard(0).relocation_size_bytes(), bare, "nothing is left of either");
    let states_group = |block: &[u8]| records(block).flatten().any(|r| matches!(r, Record::Group(_)));
    assert!((0..rig.log_len(0)).all(|index| !states_group(rig.block(0, index))));
}

#[test]
fn new_groups_beyond_their_share_of_the_memory_are_refused_and_known_ones_are_not() {
    let mut rig = Rig::new(ShardConfig { memory_bytes_max: 4 << 20, ..config(1) });
    let topic = rig.create_topic("t");
    let mut count = 0;
    let refusal = loop {
        let name = format!("group-{count:0>200}");
        let ticket = rig.publish(0, topic, &[grouped(&name, "e", 5_000)]);
        rig.sync();
        match rig.reply(ticket) {
            Some(ReplyBody::Published { .. }) => count += 1,
            Some(ReplyBody::Refused(refusal)) => break refusal,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal.code, ErrorCode::ResourceExhausted);
    assert!(refusal.message.contains("groups"), "{}", refusal.message);
    assert!((500..4_000).contains(&count), "{count} groups in 512 KiB");
    publish(&mut rig, topic, &format!("group-{:0>200}", 0), 5_000);
    rig.published(0, topic, event(Due::At(at(5_000)), "e", b""));
    let ticket = rig.operate(topic, &"another".repeat(30), GroupAct::Cancel, 1);
    assert!(matches!(rig.reply(ticket), Some(ReplyBody::Refused(_))));
    rig.check_replay();
}

#[test]
fn under_a_dedup_window_a_duplicate_counts_once_in_its_group() {
    let settings = TopicSettings { name: "t".into(), dedup_window_ms: HOUR_MS, ..TopicSettings::default() };
    let (mut rig, topic, _) = rig_with(settings);
    let events = [grouped("g", "a", 1_000), grouped("g", "b", 1_000), grouped("g", "a", 1_000)];
    rig.publish(0, topic, &events);
    rig.sync();
    rig.publish(0, topic, &events[1..]);
    rig.sync();
    assert_eq!(standing(&mut rig, topic, "g"), (2, 0));
    assert_eq!(cancel(&mut rig, topic, "g", 7), 2);
    rig.publish(0, topic, &events[..1]);
    rig.sync();
    assert_eq!(standing(&mut rig, topic, "g"), (0, 2), "a duplicate does not bring it back");
    assert_eq!(delivered_at(&mut rig, 1_000), []);
    rig.check_replay();
}

#[test]
fn an_operation_logs_the_same_bytes_whatever_its_group_holds() {
    let mut sizes = Vec::new();
    for count in [1_000_u64, 50_000] {
        let (mut rig, topic, _) = rig();
        let events = vec![grouped("g", "e", 50_000); 20];
        for _ in 0..count / 20 {
            rig.publish(0, topic, &events);
        }
        rig.sync();
        let before = rig.log_len(0);
        let ticket = rig.operate(topic, "g", GroupAct::Cancel, 7);
        rig.sync();
        assert_eq!(rig.group_answer(ticket).map(|answer| answer.count), Some(count));
        let logged: usize = (before..rig.log_len(0)).map(|index| rig.block(0, index).len()).sum();
        sizes.push(logged);
    }
    assert_eq!(sizes[0], sizes[1]);
}

pub(crate) const GROUPS: [&str; 2] = ["g", "h"];
