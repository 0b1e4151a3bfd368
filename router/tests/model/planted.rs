//! Planted faults: for each rule a trace that breaks it, which the auditor must refuse with that rule's
//! words. The sound trace that each is made from must pass.

use escapement_protocol::{
    AttemptResult, MonoNs, Outcome, Sequence, ShardId, SubscriptionId, SubscriptionSettings, Tag, WallMs,
};
use escapement_router::{Credit, Decision, Detach, HostKey, SessionId, TaskRef, Withdrawn};

use crate::auditor::{Auditor, Event};

const ID: SubscriptionId = SubscriptionId(1);

fn at_ms(ms: u64) -> MonoNs {
    MonoNs(ms * 1_000_000)
}

fn task(sequence: u64, key: u64) -> TaskRef {
    TaskRef {
        sequence: Sequence(sequence),
        due: WallMs(sequence),
        size_bytes: 100,
        key,
        ..TaskRef::default()
    }
}

fn offer(sequence: u64, key: u64) -> Event {
    Event::Offer(ID, task(sequence, key))
}

fn dispatch(sequence: u64, key: u64, tag: u64, attempt: u16) -> Event {
    Event::Decided(Decision::Dispatch {
        subscription: ID,
        session: SessionId(1),
        tag: Tag(tag),
        task: TaskRef { attempt: attempt - 1, ..task(sequence, key) },
        attempt,
        deadline_ms: 1_000,
    })
}

fn result(tag: u64, result: AttemptResult, accepted: bool) -> Event {
    Event::Result { session: SessionId(1), tag: Tag(tag), result, retry_after_ms: 0, accepted }
}

fn complete(sequence: u64, attempt: u16, outcome: Outcome) -> Event {
    let task = TaskRef { attempt, ..task(sequence, 0) };
    Event::Decided(Decision::Complete { subscription: ID, task, outcome })
}

fn failed(sequence: u64, attempt: u16, next_due: MonoNs) -> Event {
    let task = TaskRef { attempt, ..task(sequence, 0) };
    Event::Decided(Decision::AttemptFailed { subscription: ID, task, attempt, next_due })
}

fn attach(session: u64, running: Vec<Tag>) -> Event {
    let credit = Credit { tasks: 3, bytes: 1_000 };
    Event::Attach { id: ID, session: SessionId(session), host: HostKey(0), credit, running }
}

fn set_up() -> Vec<Event> {
    let settings = SubscriptionSettings {
        max_concurrent_dispatches: 2,
        attempt_deadline_ms: 1_000,
        max_attempts: 2,
        min_backoff_ms: 100,
        max_backoff_ms: 100,
        jitter_permille: 0,
        ..SubscriptionSettings::default()
    };
    vec![Event::Time(at_ms(10)), Event::Upsert(ID, settings), attach(1, Vec::new())]
}

/// The first rule that the trace breaks.
fn judge(events: &[Event]) -> Result<(), String> {
    let mut auditor = Auditor::default();
    set_up().iter().chain(events).try_for_each(|event| auditor.take(event))
}

/// `sound` passes; `sound` with `fault` instead of everything from `at` on is refused.
#[track_caller]
fn caught(sound: &[Event], at: usize, fault: &[Event], words: &str) {
    assert_eq!(judge(sound), Ok(()), "the sound trace");
    let planted = [&sound[..at], fault].concat();
    let broken = judge(&planted).expect_err("the planted fault went by");
    assert!(broken.contains(words), "{broken:?} does not say {words:?}");
}

/// Two go out, one succeeds and one fails, is tried again, and fails for good.
fn story() -> Vec<Event> {
    use AttemptResult::{RetryableFailure, Success};
    vec![
        offer(1, 0),
        offer(2, 0),
        offer(3, 0),
        dispatch(1, 0, 11, 1),
        dispatch(2, 0, 12, 1),
        Event::Settled,
        result(11, Success, true),
        result(12, RetryableFailure, true),
        complete(1, 1, Outcome::Succeeded),
        failed(2, 1, at_ms(110)),
        dispatch(3, 0, 13, 1),
        Event::Settled,
        Event::Time(at_ms(110)),
        dispatch(2, 0, 14, 2),
        Event::Settled,
        Event::Time(at_ms(1_110)),
        failed(3, 1, at_ms(1_210)),
        complete(2, 2, Outcome::AttemptsExhausted),
        Event::Settled,
    ]
}

#[test]
fn one_attempt_beyond_the_limit_is_caught() {
    caught(&story(), 5, &[dispatch(3, 0, 13, 1)], "the limit is 2");
}

#[test]
fn an_idle_slot_is_caught() {
    caught(&story(), 4, &[Event::Settled], "has room");
}

#[test]
fn a_lost_task_is_caught() {
    let story = story();
    caught(&story, 8, &[story[9].clone(), story[10].clone(), Event::Settled], "nothing was decided");
    caught(&story, 16, &[Event::Settled], "after its deadline");
}

#[test]
fn completing_twice_is_caught() {
    caught(&story(), 9, &[complete(1, 1, Outcome::Succeeded)], "complete or was never offered");
}

#[test]
fn a_dispatch_after_completion_is_caught() {
    caught(&story(), 9, &[dispatch(1, 0, 15, 2)], "complete or was never offered");
}

#[test]
fn a_second_attempt_beside_the_first_is_caught() {
    caught(&story(), 4, &[dispatch(1, 0, 15, 2)], "a task that is Running");
}

#[test]
fn a_wrong_outcome_is_caught() {
    caught(&story(), 8, &[complete(1, 1, Outcome::FailedPermanently)], "FailedPermanently after");
    caught(&story(), 8, &[complete(2, 1, Outcome::AttemptsExhausted)], "exhausted: false");
}

#[test]
fn trying_again_after_the_last_attempt_is_caught() {
    caught(&story(), 17, &[failed(2, 2, at_ms(1_210))], "after its last attempt");
}

#[test]
fn a_backoff_too_short_or_too_long_is_caught() {
    caught(&story(), 9, &[failed(2, 1, at_ms(109))], "not in");
    caught(&story(), 9, &[failed(2, 1, at_ms(111))], "not in");
}

#[test]
fn a_retry_before_its_time_is_caught() {
    caught(&story(), 10, &[dispatch(2, 0, 14, 2)], "its time is");
}

#[test]
fn ending_an_attempt_before_its_deadline_is_caught() {
    caught(&story(), 12, &[Event::Time(at_ms(1_009)), failed(3, 1, at_ms(1_109))], "before its deadline");
}

#[test]
fn a_fence_that_does_not_rise_is_caught() {
    caught(&story(), 13, &[dispatch(2, 0, 14, 1)], "attempt 1 after 1");
}

#[test]
fn a_reused_tag_is_caught() {
    caught(&story(), 13, &[dispatch(2, 0, 11, 2)], "used twice");
}

#[test]
fn accepting_a_stale_result_is_caught() {
    caught(&story(), 7, &[result(11, AttemptResult::Success, true)], "stale result");
    caught(&story(), 7, &[result(12, AttemptResult::Success, false)], "stale result");
}

#[test]
fn exceeding_a_sessions_credit_is_caught() {
    let credit = |tasks, bytes| Event::Credit(SessionId(1), Credit { tasks, bytes });
    let sound = [offer(1, 0), offer(2, 0), credit(1, 1_000), dispatch(1, 0, 1, 1), Event::Settled];
    caught(&sound, 4, &[dispatch(2, 0, 2, 1)], "the credit is");
    let sound = [offer(1, 0), offer(2, 0), credit(9, 199), dispatch(1, 0, 1, 1), Event::Settled];
    caught(&sound, 4, &[dispatch(2, 0, 2, 1)], "the credit is");
    let large = TaskRef { size_bytes: 5_000, ..task(1, 0) };
    let alone = Decision::Dispatch {
        subscription: ID,
        session: SessionId(1),
        tag: Tag(1),
        task: large,
        attempt: 1,
        deadline_ms: 1_000,
    };
    assert_eq!(judge(&[Event::Offer(ID, large), Event::Decided(alone), Event::Settled]), Ok(()));
}

#[test]
fn a_dispatch_to_a_cut_session_is_caught() {
    let sound = [offer(1, 0), Event::Detach(SessionId(1), Detach::Cut), Event::Settled];
    caught(&sound, 2, &[dispatch(1, 0, 1, 1)], "not attached");
}

#[test]
fn two_of_one_key_out_at_once_are_caught() {
    let sound =
        [offer(1, 7), offer(2, 7), offer(3, 8), dispatch(1, 7, 1, 1), dispatch(3, 8, 2, 1), Event::Settled];
    caught(&sound, 4, &[dispatch(2, 7, 2, 1)], "two tasks of one key");
}

#[test]
fn passing_another_of_the_key_is_caught() {
    let sound = [offer(2, 7), offer(1, 7), dispatch(1, 7, 1, 1), Event::Settled];
    caught(&sound, 2, &[dispatch(2, 7, 1, 1)], "passed another");
}

#[test]
fn freeing_a_held_slot_early_is_caught() {
    let cut = Event::Detach(SessionId(1), Detach::Cut);
    let sound = [offer(1, 0), dispatch(1, 0, 1, 1), cut, attach(2, vec![Tag(1)]), Event::Settled];
    let excused = TaskRef { attempt: 1, excused: 1, ..task(1, 0) };
    let freed = Decision::AttemptFailed { subscription: ID, task: excused, attempt: 1, next_due: at_ms(10) };
    caught(&sound, 3, &[Event::Decided(freed)], "before its deadline");
    caught(&sound, 4, &[Event::Decided(freed)], "before its deadline");
    // Not named, it must be freed: at once, and excused.
    let named_none = [&sound[..3], &[attach(2, Vec::new()), Event::Decided(freed)]].concat();
    caught(&named_none, 4, &[Event::Settled], "nothing was decided");
    caught(&named_none, 4, &[failed(1, 1, at_ms(10))], "excused");
}

#[test]
fn a_wrong_verdict_on_a_withdrawal_is_caught() {
    let withdraw = |verdict| Event::Withdraw { id: ID, shard: ShardId(0), sequence: Sequence(1), verdict };
    let sound = [offer(1, 0), dispatch(1, 0, 1, 1), withdraw(Withdrawn::Running { attempt: 1 })];
    caught(&sound, 2, &[withdraw(Withdrawn::Removed)], "withdrawn");
    let sound = [offer(1, 0), withdraw(Withdrawn::Removed), Event::Settled];
    caught(&sound, 2, &[dispatch(1, 0, 1, 1)], "complete or was never offered");
}
