//! What a reader wants to know of the router, one claim each.

use escapement_protocol::{
    AttemptResult, Epoch, MonoNs, Outcome, Sequence, ShardId, SubscriptionId, SubscriptionSettings, Tag,
    WallMs,
};
use escapement_router::{
    Credit, Decision, Detach, EXCUSED_ATTEMPTS_MAX, HostKey, Router, SessionId, TaskRef, Withdrawn,
};

const ID: SubscriptionId = SubscriptionId(1);
const CREDIT: Credit = Credit { tasks: 1_000, bytes: 1 << 30 };

fn at_ms(ms: u64) -> MonoNs {
    MonoNs(0).plus_ms(ms)
}

fn settings(limit: u32, deadline_ms: u64) -> SubscriptionSettings {
    SubscriptionSettings {
        max_concurrent_dispatches: limit,
        attempt_deadline_ms: deadline_ms,
        jitter_permille: 0,
        ..SubscriptionSettings::default()
    }
}

fn router(limit: u32) -> Router {
    let mut router = Router::new(Epoch(1), 7);
    router.upsert(ID, &settings(limit, 1_000));
    router
}

fn offer(router: &mut Router, sequences: std::ops::Range<u64>, key: u64) {
    for sequence in sequences {
        let task = TaskRef {
            sequence: Sequence(sequence),
            due: WallMs(sequence),
            size_bytes: 100,
            key,
            ..TaskRef::default()
        };
        router.offer(at_ms(0), ID, task);
    }
}

fn run(router: &mut Router, now: MonoNs) -> Vec<Decision> {
    let mut out = Vec::new();
    while router.run(now, &mut out) {}
    router.check();
    out
}

fn expired(decisions: &[Decision]) -> Vec<u64> {
    let expired = decisions.iter().filter_map(|decision| match decision {
        Decision::Complete { task, outcome: Outcome::Expired, .. } => Some(task.sequence.0),
        _ => None,
    });
    expired.collect()
}

#[test]
fn an_expired_task_ends_where_it_waits_and_where_its_attempt_never_left() {
    let mut router = router(1);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).expect("known");
    offer(&mut router, 1..4, 0);
    let (_, _, tag, _) = dispatches(&run(&mut router, at_ms(0)))[0];
    let shard = ShardId(0);
    router.expire_task(at_ms(1), ID, (shard, Sequence(3)), None);
    router.expire_task(at_ms(1), ID, (shard, Sequence(1)), None);
    assert_eq!(expired(&run(&mut router, at_ms(1))), [3], "the first one's attempt goes on");
    router.expire_task(at_ms(2), ID, (shard, Sequence(1)), Some(tag));
    let decided = run(&mut router, at_ms(2));
    assert_eq!(expired(&decided), [1]);
    assert_eq!(dispatches(&decided)[0].0, 2, "its slot is free");
    router.expire_task(at_ms(2), ID, (shard, Sequence(1)), Some(tag));
    assert_eq!(run(&mut router, at_ms(2)), [], "a stale tag names nothing");
    assert_eq!((router.tasks(), router.stats(ID).expect("known").completed), (1, 2));
}

/// Sequence, session, tag and attempt of each dispatch.
fn dispatches(decisions: &[Decision]) -> Vec<(u64, SessionId, Tag, u16)> {
    let dispatch = |decision: &Decision| match *decision {
        Decision::Dispatch { session, tag, task, attempt, .. } => {
            Some((task.sequence.0, session, tag, attempt))
        }
        _ => None,
    };
    decisions.iter().filter_map(dispatch).collect()
}

#[test]
fn a_slot_of_a_cut_connection_is_held_until_its_own_host_returns() {
    let mut router = router(1);
    let (one, two) = (HostKey(1), HostKey(2));
    router.attach_host(at_ms(0), ID, SessionId(1), one, CREDIT, &[]).unwrap();
    offer(&mut router, 1..3, 0);
    assert_eq!(dispatches(&run(&mut router, at_ms(0))).len(), 1);
    router.detach(at_ms(1), SessionId(1), Detach::Cut);
    router.attach_host(at_ms(2), ID, SessionId(2), two, CREDIT, &[]).unwrap();
    assert_eq!(run(&mut router, at_ms(2)), [], "the attempt may still run on the first host");
    assert_eq!(router.stats(ID).unwrap().held, 1);
    router.attach_host(at_ms(3), ID, SessionId(3), one, CREDIT, &[]).unwrap();
    let decisions = run(&mut router, at_ms(3));
    assert!(
        matches!(decisions[0], Decision::AttemptFailed { attempt: 1, next_due, .. } if next_due == at_ms(3))
    );
    let [(1, _, _, 2)] = dispatches(&decisions)[..] else { panic!("{decisions:?}") };
}

#[test]
fn a_held_slot_is_free_at_its_deadline() {
    let mut router = router(1);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
    offer(&mut router, 1..2, 0);
    run(&mut router, at_ms(0));
    router.detach(at_ms(1), SessionId(1), Detach::Cut);
    router.attach_host(at_ms(2), ID, SessionId(2), HostKey(5), CREDIT, &[]).unwrap();
    assert_eq!(run(&mut router, at_ms(999)), []);
    assert_eq!(router.next_deadline(), Some(at_ms(1_000)));
    let [(1, SessionId(2), _, 2)] = dispatches(&run(&mut router, at_ms(1_000)))[..] else { panic!() };
}

#[test]
fn a_named_attempt_is_adopted_and_its_result_counts() {
    let mut router = router(1);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
    offer(&mut router, 1..2, 0);
    let tag = dispatches(&run(&mut router, at_ms(0)))[0].2;
    router.detach(at_ms(1), SessionId(1), Detach::Cut);
    assert!(!router.result(at_ms(1), SessionId(1), tag, AttemptResult::Success, 0), "it is cut");
    router.attach(at_ms(2), ID, SessionId(2), CREDIT, &[tag, tag, Tag(99)]).unwrap();
    assert_eq!(run(&mut router, at_ms(2)), []);
    assert!(router.result(at_ms(3), SessionId(2), tag, AttemptResult::Success, 0));
    let decisions = run(&mut router, at_ms(3));
    assert!(matches!(decisions[..], [Decision::Complete { outcome: Outcome::Succeeded, .. }]));
}

#[test]
fn cut_attempts_do_not_use_up_max_attempts_but_a_poisonous_task_ends() {
    let mut router = Router::new(Epoch(1), 7);
    let patience =
        SubscriptionSettings { max_attempts: 2, min_backoff_ms: 1, max_backoff_ms: 1, ..settings(0, 1_000) };
    router.upsert(ID, &patience);
    offer(&mut router, 1..2, 0);
    let mut attempts = Vec::new();
    for nth in 0..100 {
        let now = at_ms(nth * 10);
        router.attach(now, ID, SessionId(nth), CREDIT, &[]).unwrap();
        let decisions = run(&mut router, now);
        attempts.extend(dispatches(&decisions).iter().map(|dispatch| dispatch.3));
        if let Some(Decision::Complete { outcome, task, .. }) = decisions.last() {
            assert_eq!((*outcome, task.excused), (Outcome::AttemptsExhausted, EXCUSED_ATTEMPTS_MAX));
            let most = EXCUSED_ATTEMPTS_MAX + 2;
            assert!(attempts.iter().copied().eq(1..=most), "the fence rises: {attempts:?}");
            return;
        }
        router.detach(now, SessionId(nth), Detach::Cut);
    }
    panic!("an event kills hosts for ever");
}

#[test]
fn a_shortened_deadline_fires_before_an_older_longer_one() {
    let mut router = router(0);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
    offer(&mut router, 1..3, 0);
    run(&mut router, at_ms(0));
    router.upsert(ID, &settings(0, 100));
    offer(&mut router, 3..4, 0);
    run(&mut router, at_ms(10));
    assert_eq!(router.next_deadline(), Some(at_ms(110)));
    let failed = |decisions: Vec<Decision>| {
        let sequence = |decision: &Decision| match decision {
            Decision::AttemptFailed { task, .. } => Some(task.sequence.0),
            _ => None,
        };
        decisions.iter().filter_map(sequence).collect::<Vec<_>>()
    };
    assert_eq!(failed(run(&mut router, at_ms(110))), [3]);
    assert_eq!(failed(run(&mut router, at_ms(1_000))), [1, 2]);
}

#[test]
fn a_changed_limit_applies_to_queued_tasks() {
    let mut router = router(1);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
    offer(&mut router, 1..11, 0);
    let first = dispatches(&run(&mut router, at_ms(0)));
    assert_eq!(first.len(), 1);
    router.upsert(ID, &settings(4, 1_000));
    let more = dispatches(&run(&mut router, at_ms(0)));
    assert_eq!(more.len(), 3);
    router.upsert(ID, &settings(2, 1_000));
    for (nth, (_, session, tag, _)) in first.into_iter().chain(more).enumerate() {
        assert!(router.result(at_ms(1), session, tag, AttemptResult::Success, 0));
        let new = dispatches(&run(&mut router, at_ms(1))).len();
        assert_eq!(new, usize::from(nth >= 2), "after {nth} results");
    }
}

#[test]
fn sessions_share_evenly() {
    let mut router = router(0);
    for session in 0..4 {
        router.attach(at_ms(0), ID, SessionId(session), CREDIT, &[]).unwrap();
    }
    offer(&mut router, 1..401, 0);
    let mut per_session = [0; 4];
    for (_, session, ..) in dispatches(&run(&mut router, at_ms(0))) {
        per_session[session.0 as usize] += 1;
    }
    assert!(per_session.iter().all(|count| (95..=105).contains(count)), "{per_session:?}");
}

#[test]
fn retry_after_raises_the_delay_up_to_the_largest_backoff() {
    for (asked_ms, delay_ms) in [(0, 1_000), (500, 1_000), (7_000, 7_000), (u32::MAX, 3_600_000)] {
        let mut router = router(0);
        router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
        offer(&mut router, 1..2, 0);
        let tag = dispatches(&run(&mut router, at_ms(0)))[0].2;
        assert!(router.result(at_ms(5), SessionId(1), tag, AttemptResult::RetryableFailure, asked_ms));
        let decisions = run(&mut router, at_ms(5));
        let [Decision::AttemptFailed { next_due, .. }] = decisions[..] else { panic!("{decisions:?}") };
        assert_eq!(next_due, at_ms(5 + delay_ms), "asked for {asked_ms}");
        assert_eq!(run(&mut router, MonoNs(next_due.0 - 1)), [], "a retry is never early");
        assert!(router.next_deadline().is_some_and(|next| next <= next_due));
        assert_eq!(dispatches(&run(&mut router, next_due)).len(), 1);
    }
}

#[test]
fn withdrawing_from_a_large_backlog_finds_each_task_in_its_state() {
    let mut router = router(2);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
    offer(&mut router, 1..501, 0);
    offer(&mut router, 501..1_001, 3);
    run(&mut router, at_ms(0));
    let withdraw = |router: &mut Router, sequence| router.withdraw(ID, ShardId(0), Sequence(sequence));
    for sequence in (1..1_001).rev() {
        let expected = if sequence <= 2 { Withdrawn::Running { attempt: 1 } } else { Withdrawn::Removed };
        assert_eq!(withdraw(&mut router, sequence), expected, "{sequence}");
        if sequence % 50 == 0 {
            router.check();
            assert_eq!(withdraw(&mut router, sequence), Withdrawn::NotHere);
        }
    }
    assert_eq!(router.tasks(), 2);
    router.check();
}

#[test]
fn one_call_is_bounded_and_says_that_there_is_more() {
    let mut router = router(0);
    let credit = Credit { tasks: u32::MAX, bytes: u64::MAX };
    router.attach(at_ms(0), ID, SessionId(1), credit, &[]).unwrap();
    offer(&mut router, 1..100_001, 0);
    let mut out = Vec::new();
    let mut calls = 0;
    while router.run(at_ms(0), &mut out) {
        calls += 1;
        assert!(out.len() <= calls * 4_096);
    }
    assert_eq!(out.len(), 100_000);
    assert!(dispatches(&out).windows(2).all(|pair| pair[0].0 < pair[1].0), "in order of offer");
    out.clear();
    let mut calls = 0;
    while router.run(at_ms(1_000), &mut out) {
        calls += 1;
        assert!(out.len() <= calls * 2 * 4_096);
    }
    assert_eq!(out.len(), 100_000, "every deadline fired");
}

#[test]
fn cancelled_backoffs_leave_bounded_garbage_and_no_wakeups() {
    let mut router = router(0);
    for sequence in 1..10_001 {
        let task = TaskRef {
            sequence: Sequence(sequence),
            not_before: at_ms(1_000 + sequence),
            ..TaskRef::default()
        };
        router.offer(at_ms(0), ID, task);
    }
    for sequence in 1..10_000 {
        assert_eq!(router.withdraw(ID, ShardId(0), Sequence(sequence)), Withdrawn::Removed);
    }
    let next = router.next_deadline().expect("one is left");
    assert!(next >= at_ms(1_000 + 10_000 - 200), "{next:?}: stale entries are swept");
    router.check();
}

#[test]
fn a_removed_subscription_leaves_few_wakeups() {
    let mut router = router(0);
    for sequence in 1..10_001 {
        let task =
            TaskRef { sequence: Sequence(sequence), not_before: at_ms(sequence), ..TaskRef::default() };
        router.offer(at_ms(0), ID, task);
    }
    router.remove(ID, &mut Vec::new());
    let mut wakeups = 0;
    while let Some(next) = router.next_deadline() {
        assert_eq!(run(&mut router, next), []);
        wakeups += 1;
    }
    assert!(wakeups < 100, "{wakeups} wake-ups for nothing");
}

#[test]
fn a_removed_subscription_completes_everything() {
    let mut router = router(1);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
    offer(&mut router, 1..5, 0);
    offer(&mut router, 5..9, 4);
    let tag = dispatches(&run(&mut router, at_ms(0)))[0].2;
    let mut out = Vec::new();
    router.remove(ID, &mut out);
    let mut deleted: Vec<u64> = out
        .iter()
        .map(|decision| match decision {
            Decision::Complete { task, outcome: Outcome::SubscriptionDeleted, .. } => task.sequence.0,
            other => panic!("{other:?}"),
        })
        .collect();
    deleted.sort_unstable();
    assert!(deleted.into_iter().eq(1..9));
    assert!(!router.result(at_ms(2), SessionId(1), tag, AttemptResult::Success, 0));
    assert!(router.attach(at_ms(2), ID, SessionId(2), CREDIT, &[]).is_err());
    offer(&mut router, 9..10, 0);
    let late = run(&mut router, at_ms(2));
    assert!(matches!(late[..], [Decision::Complete { outcome: Outcome::SubscriptionDeleted, .. }]));
    assert_eq!(router.tasks(), 0);
}

#[test]
fn tasks_of_a_forgotten_shard_go_and_their_slots_are_free_once_their_attempts_end() {
    let mut router = router(2);
    router.attach(at_ms(0), ID, SessionId(1), CREDIT, &[]).unwrap();
    let out = ShardId(1);
    for (sequence, key) in [(1, 5), (2, 5), (3, 0), (4, 0)] {
        let (sequence, due) = (Sequence(sequence), WallMs(sequence));
        router.offer(at_ms(0), ID, TaskRef { shard: out, sequence, due, key, ..TaskRef::default() });
    }
    offer(&mut router, 10..12, 0);
    let sent = dispatches(&run(&mut router, at_ms(0)));
    assert_eq!(sent.iter().map(|of| of.0).collect::<Vec<_>>(), [1, 3]);
    router.forget(out);
    assert_eq!(run(&mut router, at_ms(1)), [], "both slots are held");
    assert_eq!(router.tasks(), 4, "what waited has gone");
    assert!(router.result(at_ms(2), SessionId(1), sent[0].2, AttemptResult::RetryableFailure, 0));
    let decided = run(&mut router, at_ms(2));
    assert_eq!((decided.len(), dispatches(&decided)[0].0), (1, 10), "nobody is told, and nothing is retried");
    let decided = run(&mut router, at_ms(1_000));
    assert_eq!((decided.len(), dispatches(&decided)[0].0), (1, 11), "nor where the deadline passes");
    assert_eq!(router.tasks(), 2);
}
