//! The steady state allocates nothing, and what does not move costs nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use escapement_protocol::{
    AttemptResult, Epoch, MonoNs, Sequence, SubscriptionId, SubscriptionSettings, WallMs,
};
use escapement_router::{Credit, Decision, Router, SessionId, TaskRef};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and is not the one under test.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// Offers, dispatches and ends `turns` batches of tasks; every seventh attempt fails once.
fn turns(router: &mut Router, clock: &mut u64, sequence: &mut u64, out: &mut Vec<Decision>, turns: usize) {
    for _ in 0..turns {
        *clock += 1_000_000;
        let now = MonoNs(*clock);
        for _ in 0..64 {
            *sequence += 1;
            let task = TaskRef {
                sequence: Sequence(*sequence),
                due: WallMs(*sequence),
                size_bytes: 160,
                key: if sequence.is_multiple_of(3) { 1 + *sequence % 50 } else { 0 },
                ..TaskRef::default()
            };
            router.offer(now, SubscriptionId(1 + (*sequence % 8) as u32), task);
        }
        while router.run(now, out) {}
        for decision in out.drain(..) {
            if let Decision::Dispatch { session, tag, task, attempt, .. } = decision {
                let fails = attempt == 1 && task.sequence.0.is_multiple_of(7);
                let result = if fails { AttemptResult::RetryableFailure } else { AttemptResult::Success };
                assert!(router.result(now, session, tag, result, 0));
            }
        }
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    let mut router = Router::new(Epoch(1), 1);
    let settings =
        SubscriptionSettings { min_backoff_ms: 20, max_backoff_ms: 20, ..SubscriptionSettings::default() };
    for id in 1..=8 {
        router.upsert(SubscriptionId(id), &settings);
        for nth in 0..4 {
            let session = SessionId(u64::from(id) * 10 + nth);
            let credit = Credit { tasks: 64, bytes: 1 << 20 };
            router.attach(MonoNs(0), SubscriptionId(id), session, credit, &[]).expect("it exists");
        }
    }
    let (mut clock, mut sequence, mut out) = (0, 0, Vec::with_capacity(1_024));
    turns(&mut router, &mut clock, &mut sequence, &mut out, 2_000);
    let before = allocations();
    turns(&mut router, &mut clock, &mut sequence, &mut out, 2_000);
    assert_eq!(allocations() - before, 0);
    router.check();
}

#[test]
fn idle_subscriptions_are_not_looked_at() {
    let mut router = Router::new(Epoch(1), 1);
    for id in 1..=10_000 {
        router.upsert(SubscriptionId(id), &SubscriptionSettings::default());
        let credit = Credit { tasks: 64, bytes: 1 << 20 };
        router.attach(MonoNs(0), SubscriptionId(id), SessionId(id.into()), credit, &[]).expect("it exists");
        // Waits for a session of its own, and no other's turn moves it.
        router.upsert(SubscriptionId(20_000 + id), &SubscriptionSettings::default());
        router.offer(
            MonoNs(0),
            SubscriptionId(20_000 + id),
            TaskRef { sequence: Sequence(1), ..TaskRef::default() },
        );
    }
    let mut out = Vec::new();
    assert!(!router.run(MonoNs(0), &mut out));
    assert!(out.is_empty());
    assert_eq!(router.next_deadline(), None, "nothing asks for a turn");
}
