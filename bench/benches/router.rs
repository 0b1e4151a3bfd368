//! The router in its steady state: offer, dispatch and result of one task.
#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use escapement_bench::clock::Stopwatch;
use escapement_protocol::{
    AttemptResult, Epoch, MonoNs, Sequence, SubscriptionId, SubscriptionSettings, Tag, WallMs,
};
use escapement_router::{Credit, Decision, Router, SessionId, TaskRef};

/// Tasks offered in one turn of a core.
const BATCH: u64 = 256;
const TURNS: u64 = 400;

struct Load {
    router: Router,
    subscriptions: u64,
    keys: u64,
    sequence: u64,
    clock: u64,
    out: Vec<Decision>,
    /// Results come a turn later, as they do over a network.
    running: Vec<(SessionId, Tag)>,
}

impl Load {
    fn new(subscriptions: u64, sessions: u64, limit: u32, keys: u64) -> Self {
        let mut router = Router::new(Epoch(1), 1);
        let settings =
            SubscriptionSettings { max_concurrent_dispatches: limit, ..SubscriptionSettings::default() };
        for id in 0..subscriptions {
            let subscription = SubscriptionId(id as u32 + 1);
            router.upsert(subscription, &settings);
            for nth in 0..sessions {
                let session = SessionId(id * sessions + nth);
                let credit = Credit { tasks: 1_024, bytes: 1 << 20 };
                router.attach(MonoNs(0), subscription, session, credit, &[]).expect("it exists");
            }
        }
        let mut load =
            Load { router, subscriptions, keys, sequence: 0, clock: 0, out: Vec::new(), running: Vec::new() };
        load.turns(200);
        load
    }

    fn turns(&mut self, turns: u64) -> Duration {
        let began = Stopwatch::start();
        for _ in 0..turns {
            self.clock += 1_000_000;
            let now = MonoNs(self.clock);
            for (session, tag) in self.running.drain(..) {
                assert!(self.router.result(now, session, tag, AttemptResult::Success, 0));
            }
            for _ in 0..BATCH {
                self.sequence += 1;
                let task = TaskRef {
                    sequence: Sequence(self.sequence),
                    due: WallMs(self.sequence),
                    size_bytes: 160,
                    key: if self.keys == 0 { 0 } else { 1 + self.sequence % self.keys },
                    ..TaskRef::default()
                };
                // A step that is odd visits all subscriptions, and neighbours are far apart.
                let id = self.sequence.wrapping_mul(7_919) % self.subscriptions;
                self.router.offer(now, SubscriptionId(id as u32 + 1), task);
            }
            while self.router.run(now, &mut self.out) {}
            let dispatched = self.out.drain(..).filter_map(|decision| match decision {
                Decision::Dispatch { session, tag, .. } => Some((session, tag)),
                _ => None,
            });
            self.running.extend(dispatched);
        }
        began.elapsed()
    }
}

fn router(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    group.sample_size(20).throughput(Throughput::Elements(TURNS * BATCH));
    for (name, subscriptions, sessions, limit, keys) in [
        ("one_subscription", 1, 1, 0, 0),
        ("one_limited_subscription_of_16_sessions", 1, 16, 4_096, 0),
        ("100_subscriptions", 100, 2, 64, 0),
        ("10_000_limited_subscriptions", 10_000, 1, 8, 0),
        ("keys", 1, 4, 0, 5_000),
    ] {
        let mut load = Load::new(subscriptions, sessions, limit, keys);
        group.bench_function(name, |b| b.iter_custom(|n| (0..n).map(|_| load.turns(TURNS)).sum()));
        load.router.check();
    }
    group.finish();
}

criterion_group!(benches, router);
criterion_main!(benches);
