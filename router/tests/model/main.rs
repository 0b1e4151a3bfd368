//! The router under random use, judged by an auditor that knows only the rules; and the auditor judged
//! by traces that break them.

mod auditor;
mod planted;

use std::collections::BTreeMap;

use auditor::{Auditor, Event, State, TaskKey};
use escapement_protocol::{
    AttemptResult, Epoch, MonoNs, Sequence, ShardId, SubscriptionId, SubscriptionSettings, Tag, TopicId,
    WallMs,
};
use escapement_router::{Credit, Decision, Detach, HostKey, Router, SessionId, TaskRef};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Upsert { id: u32, limit: u32, deadline_ms: u64, max_attempts: u32 },
    Remove { id: u32 },
    Offer { id: u32, count: u32, key: u64, late: bool, size_bytes: u32, attempt: u16, wait_ms: u64 },
    Attach { id: u32, host: u64, credit: Credit, named: u64 },
    Credit { nth: usize, credit: Credit },
    Detach { nth: usize, how: Detach },
    Result { nth: usize, result: AttemptResult, retry_after_ms: u32 },
    Results { result: AttemptResult },
    StaleResult { nth: usize },
    Withdraw { nth: usize },
    WithdrawUnknown,
    Advance { ms: u64 },
    FollowDeadline,
    Run,
}

fn credit() -> impl Strategy<Value = Credit> {
    (0..6u32, prop_oneof![Just(0u64), 1..4_000u64, Just(1 << 20)])
        .prop_map(|(tasks, bytes)| Credit { tasks, bytes })
}

fn result() -> impl Strategy<Value = AttemptResult> {
    prop_oneof![
        4 => Just(AttemptResult::Success),
        3 => Just(AttemptResult::RetryableFailure),
        1 => Just(AttemptResult::PermanentFailure),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let id = || 1..4u32;
    let how = prop_oneof![3 => Just(Detach::Cut), 1 => Just(Detach::Graceful)];
    let offer = (
        id(),
        1..5u32,
        prop_oneof![2 => Just(0u64), 1 => 1..4u64],
        prop::bool::weighted(0.2),
        1..1_500u32,
        prop_oneof![8 => Just(0u16), 1 => 1..4u16],
        prop_oneof![6 => Just(0u64), 1 => 1..500u64],
    );
    prop_oneof![
        2 => (id(), 0..5u32, prop_oneof![Just(100u64), Just(250), 100..2_000u64], 1..5u32)
            .prop_map(|(id, limit, deadline_ms, max_attempts)| Op::Upsert { id, limit, deadline_ms, max_attempts }),
        1 => id().prop_map(|id| Op::Remove { id }),
        10 => offer.prop_map(|(id, count, key, late, size_bytes, attempt, wait_ms)| {
            Op::Offer { id, count, key, late, size_bytes, attempt, wait_ms }
        }),
        4 => (id(), 0..3u64, credit(), any::<u64>())
            .prop_map(|(id, host, credit, named)| Op::Attach { id, host, credit, named }),
        1 => (0..8usize, credit()).prop_map(|(nth, credit)| Op::Credit { nth, credit }),
        2 => (0..8usize, how).prop_map(|(nth, how)| Op::Detach { nth, how }),
        8 => (0..16usize, result(), prop_oneof![3 => Just(0u32), 1 => 0..500_000u32])
            .prop_map(|(nth, result, retry_after_ms)| Op::Result { nth, result, retry_after_ms }),
        2 => result().prop_map(|result| Op::Results { result }),
        1 => (0..64usize).prop_map(|nth| Op::StaleResult { nth }),
        2 => (0..32usize).prop_map(|nth| Op::Withdraw { nth }),
        1 => Just(Op::WithdrawUnknown),
        3 => (0..400u64).prop_map(|ms| Op::Advance { ms }),
        2 => Just(Op::FollowDeadline),
        8 => Just(Op::Run),
    ]
}

/// A router and its auditor, told the same.
struct Pair {
    router: Router,
    auditor: Auditor,
    trace: Vec<Event>,
    tags: Vec<(SessionId, Tag)>,
    sequence: u64,
    session: u64,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut pair = Pair {
            router: Router::new(Epoch(3), seed),
            auditor: Auditor::default(),
            trace: Vec::new(),
            tags: Vec::new(),
            sequence: 100,
            session: 0,
        };
        pair.tell(Event::Time(MonoNs(1_000_000_000)));
        for id in 1..4 {
            pair.upsert(id, 3, 250, 3);
        }
        pair
    }

    fn now(&self) -> MonoNs {
        self.auditor.now
    }

    fn tell(&mut self, event: Event) {
        self.trace.push(event);
        let event = &self.trace[self.trace.len() - 1];
        if let Err(broken) = self.auditor.take(event) {
            panic!("{broken}\n at {event:?}");
        }
    }

    fn upsert(&mut self, id: u32, limit: u32, deadline_ms: u64, max_attempts: u32) {
        let settings = SubscriptionSettings {
            max_concurrent_dispatches: limit,
            attempt_deadline_ms: deadline_ms,
            max_attempts,
            min_backoff_ms: 50,
            max_backoff_ms: 300,
            ..SubscriptionSettings::default()
        };
        self.router.upsert(SubscriptionId(id), &settings);
        self.tell(Event::Upsert(SubscriptionId(id), settings));
    }

    fn attach(&mut self, id: u32, host: u64, credit: Credit, named: u64) {
        self.session += 1;
        let (id, session) = (SubscriptionId(id), SessionId(self.session));
        let all = self.running().into_iter().filter(|(key, ..)| key.0 == id);
        let named = all.enumerate().filter(|(nth, _)| named >> (nth % 64) & 1 == 1);
        let running: Vec<Tag> = named.map(|(_, (_, _, tag))| tag).collect();
        let attached = self.router.attach_host(self.now(), id, session, HostKey(host), credit, &running);
        assert_eq!(attached.is_ok(), self.auditor.settings.contains_key(&id));
        self.tell(Event::Attach { id, session, host: HostKey(host), credit, running });
    }

    /// All running attempts, held ones included.
    fn running(&self) -> Vec<(TaskKey, SessionId, Tag)> {
        let running = |(key, task): (&TaskKey, &auditor::Task)| match task.state {
            State::Running { tag, session, .. } => Some((*key, session, tag)),
            _ => None,
        };
        self.auditor.tasks.iter().filter_map(running).collect()
    }

    fn result(&mut self, session: SessionId, tag: Tag, result: AttemptResult, retry_after_ms: u32) {
        let accepted = self.router.result(self.now(), session, tag, result, retry_after_ms);
        self.tell(Event::Result { session, tag, result, retry_after_ms, accepted });
    }

    fn offer(&mut self, id: u32, task: TaskRef) {
        self.router.offer(self.now(), SubscriptionId(id), task);
        self.tell(Event::Offer(SubscriptionId(id), task));
    }

    fn advance(&mut self, to: MonoNs) {
        self.tell(Event::Time(to.max(self.now())));
    }

    fn run(&mut self) {
        let mut out = Vec::new();
        while self.router.run(self.now(), &mut out) {}
        self.take(out);
        self.tell(Event::Settled);
        assert!(self.router.next_deadline().is_none_or(|next| next > self.now()));
    }

    fn take(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            if let Decision::Dispatch { session, tag, .. } = decision {
                self.tags.push((session, tag));
            }
            self.tell(Event::Decided(decision));
        }
    }

    fn attached(&self, nth: usize) -> Option<SessionId> {
        let attached: Vec<SessionId> =
            self.auditor.sessions.iter().filter(|(_, s)| s.attached).map(|(id, _)| *id).collect();
        (!attached.is_empty()).then(|| attached[nth % attached.len()])
    }

    fn apply(&mut self, op: Op) {
        let now = self.now();
        match op {
            Op::Upsert { id, limit, deadline_ms, max_attempts } => {
                self.upsert(id, limit, deadline_ms, max_attempts);
            }
            Op::Remove { id } => {
                let mut out = Vec::new();
                self.router.remove(SubscriptionId(id), &mut out);
                // What was decided before comes first, and is of other subscriptions too.
                let deleted = |d: &Decision| {
                    let Decision::Complete { subscription, outcome, .. } = d else { return false };
                    *subscription == SubscriptionId(id)
                        && *outcome == escapement_protocol::Outcome::SubscriptionDeleted
                };
                let from = out.iter().position(deleted).unwrap_or(out.len());
                let after = out.split_off(from);
                self.take(out);
                self.tell(Event::Remove(SubscriptionId(id)));
                self.take(after);
            }
            Op::Offer { id, count, key, late, size_bytes, attempt, wait_ms } => {
                for _ in 0..count {
                    self.sequence += 1;
                    let task = TaskRef {
                        shard: ShardId(0),
                        attempt,
                        excused: attempt / 2,
                        expires: false,
                        topic: TopicId(1),
                        size_bytes,
                        sequence: Sequence(self.sequence),
                        due: WallMs(if late { self.sequence - 50 } else { self.sequence }),
                        not_before: if wait_ms == 0 { MonoNs(0) } else { now.plus_ms(wait_ms) },
                        key,
                    };
                    self.offer(id, task);
                }
            }
            Op::Attach { id, host, credit, named } => self.attach(id, host, credit, named),
            Op::Credit { nth, credit } => {
                if let Some(session) = self.attached(nth) {
                    assert!(self.router.set_credit(session, credit));
                    self.tell(Event::Credit(session, credit));
                }
            }
            Op::Detach { nth, how } => {
                if let Some(session) = self.attached(nth) {
                    self.router.detach(now, session, how);
                    self.tell(Event::Detach(session, how));
                }
            }
            Op::Result { nth, result, retry_after_ms } => {
                let running = self.running();
                if !running.is_empty() {
                    let (_, session, tag) = running[nth % running.len()];
                    self.result(session, tag, result, retry_after_ms);
                }
            }
            Op::Results { result } => {
                for (_, session, tag) in self.running() {
                    self.result(session, tag, result, 0);
                }
            }
            Op::StaleResult { nth } => {
                if !self.tags.is_empty() {
                    let (session, tag) = self.tags[nth % self.tags.len()];
                    self.result(session, tag, AttemptResult::Success, 0);
                }
            }
            Op::Withdraw { nth } => {
                let keys: Vec<TaskKey> = self.auditor.tasks.keys().copied().collect();
                if !keys.is_empty() {
                    self.withdraw(keys[nth % keys.len()]);
                }
            }
            Op::WithdrawUnknown => {
                self.withdraw((SubscriptionId(1), ShardId(1), Sequence(7)));
                self.withdraw((SubscriptionId(9), ShardId(0), Sequence(7)));
            }
            Op::Advance { ms } => self.advance(now.plus_ms(ms)),
            Op::FollowDeadline => {
                if let Some(next) = self.router.next_deadline() {
                    self.advance(next);
                    self.run();
                }
            }
            Op::Run => self.run(),
        }
    }

    fn withdraw(&mut self, (id, shard, sequence): TaskKey) {
        let verdict = self.router.withdraw(id, shard, sequence);
        self.tell(Event::Withdraw { id, shard, sequence, verdict });
    }

    /// Every task comes to its end, by following the router's own deadlines.
    fn finish(&mut self) {
        for id in 1..4 {
            self.upsert(id, 0, 250, 10);
            self.attach(id, 9, Credit { tasks: 1_000, bytes: 1 << 30 }, 0);
        }
        for _ in 0..10_000 {
            self.run();
            for (_, session, tag) in self.running() {
                self.result(session, tag, AttemptResult::Success, 0);
            }
            self.run();
            match self.router.next_deadline() {
                Some(next) => self.advance(next),
                None => break,
            }
        }
        assert!(self.auditor.tasks.is_empty(), "never came to an end: {:?}", self.auditor.tasks);
        assert_eq!(self.router.tasks(), 0);
        self.router.check();
    }

    fn compare_stats(&self) {
        let mut running = BTreeMap::<SubscriptionId, usize>::new();
        for (key, ..) in self.running() {
            *running.entry(key.0).or_default() += 1;
        }
        for id in self.auditor.settings.keys() {
            let stats = self.router.stats(*id).expect("it exists");
            assert_eq!(stats.running, running.get(id).copied().unwrap_or(0));
            assert_eq!(stats.queued + stats.backoff, self.router.waiting(*id));
            let attached = self.auditor.sessions.values().filter(|s| s.attached && s.id == *id).count();
            assert_eq!(stats.sessions, attached);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_router_keeps_the_rules(seed in any::<u64>(), ops in prop::collection::vec(op(), 1..150)) {
        let mut pair = Pair::new(seed);
        for op in ops {
            pair.apply(op);
            pair.router.check();
            pair.compare_stats();
        }
        pair.finish();
    }

    #[test]
    fn one_seed_and_one_input_give_one_output(
        seed in any::<u64>(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let run = || {
            let mut pair = Pair::new(seed);
            ops.iter().for_each(|op| pair.apply(*op));
            pair.finish();
            format!("{:?}", pair.trace)
        };
        prop_assert_eq!(run(), run());
    }
}
