//! Random lives of two shards with crashes, relocation and trimming, against a model of what was promised.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use escapement_engine::{Push, ReplyBody, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::CancelVerdict;
use escapement_protocol::{
    AttemptResult, EventId, Sequence, ShardId, SubscriptionId, SubscriptionSettings, TopicId,
};
use escapement_router::SessionId;

use crate::rig::{Rig, config, event};

const SHARDS: u16 = 2;

#[derive(Clone, Copy, Debug)]
enum Op {
    Publish { shard: u16, count: usize, delay_ms: u64, size_bytes: usize },
    Cancel { pick: usize },
    Advance { ms: u64 },
    Answer { pick: usize, result: AttemptResult },
    AnswerAll,
    Maintain,
    Commit { shard: u16 },
    Complete { shard: u16 },
    Sync,
    Relocate { shard: u16, back: u64, budget_bytes: usize },
    Trim { shard: u16, most: usize },
    Reattach { which: usize },
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let shard = 0..SHARDS;
    let result = prop_oneof![
        Just(AttemptResult::Success),
        Just(AttemptResult::RetryableFailure),
        Just(AttemptResult::PermanentFailure)
    ];
    prop_oneof![
        6 => (shard.clone(), 1..20usize, 0..400u64, 0..600usize)
            .prop_map(|(shard, count, delay_ms, size_bytes)| Op::Publish { shard, count, delay_ms, size_bytes }),
        3 => any::<usize>().prop_map(|pick| Op::Cancel { pick }),
        6 => (0..150u64).prop_map(|ms| Op::Advance { ms }),
        8 => (any::<usize>(), result).prop_map(|(pick, result)| Op::Answer { pick, result }),
        1 => Just(Op::AnswerAll),
        8 => Just(Op::Maintain),
        8 => shard.clone().prop_map(|shard| Op::Commit { shard }),
        8 => shard.clone().prop_map(|shard| Op::Complete { shard }),
        2 => Just(Op::Sync),
        5 => (shard.clone(), 0..4u64, 0..4_000usize)
            .prop_map(|(shard, back, budget_bytes)| Op::Relocate { shard, back, budget_bytes }),
        5 => (shard, 0..6usize).prop_map(|(shard, most)| Op::Trim { shard, most }),
        1 => (0..3usize).prop_map(|which| Op::Reattach { which }),
        1 => Just(Op::Crash),
    ]
}

/// What the test was told.
struct Told {
    rig: Rig,
    topic: TopicId,
    subscriptions: Vec<SubscriptionId>,
    sessions: Vec<SessionId>,
    /// Publishes without an answer, with the due time of their events counted from acceptance.
    publishing: BTreeMap<u64, (u16, u64)>,
    cancelling: BTreeMap<u64, EventId>,
    /// Acknowledged events and when they are due.
    accepted: BTreeMap<(u16, Sequence), u64>,
    cancelled: BTreeSet<(u16, Sequence)>,
    /// Cancellations whose answer a crash took: they may have happened.
    perhaps_cancelled: BTreeSet<(u16, Sequence)>,
    running: Vec<(ShardId, Push)>,
    /// Tasks that were ever told to have ended.
    answered: BTreeSet<(u16, Sequence, SubscriptionId)>,
    /// Those of which a crash has not taken the end, and whether it is known to be durable.
    ended: BTreeMap<(u16, Sequence, SubscriptionId), bool>,
    attempts: BTreeMap<(u16, Sequence, SubscriptionId), u16>,
    /// Attempts whose failure is durable: these are never forgotten.
    failed: BTreeMap<(u16, Sequence, SubscriptionId), u16>,
}

impl Told {
    fn new() -> Told {
        let mut rig = Rig::new(config(SHARDS));
        let topic = rig.create_topic("t");
        let subscriptions: Vec<_> = ["a", "b", "c"]
            .map(|name| {
                rig.create_subscription(SubscriptionSettings {
                    name: name.into(),
                    topic: "t".into(),
                    max_attempts: 4,
                    min_backoff_ms: 20,
                    max_backoff_ms: 60,
                    ..SubscriptionSettings::default()
                })
            })
            .into();
        let owners: BTreeSet<u16> = subscriptions.iter().map(|id| rig.owner(*id)).collect();
        assert_eq!(owners.len(), 2, "some are owned by the event's shard and some are not");
        let sessions = subscriptions.iter().map(|id| rig.attach(*id)).collect();
        Told {
            rig,
            topic,
            subscriptions,
            sessions,
            publishing: BTreeMap::new(),
            cancelling: BTreeMap::new(),
            accepted: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            perhaps_cancelled: BTreeSet::new(),
            running: Vec::new(),
            answered: BTreeSet::new(),
            ended: BTreeMap::new(),
            attempts: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    fn run(&mut self, op: Op) {
        let is_sync = matches!(op, Op::Sync);
        match op {
            Op::Publish { shard, count, delay_ms, size_bytes } => {
                let data = vec![7; size_bytes];
                let events: Vec<_> = (0..count).map(|_| event(Due::After(delay_ms), "id", &data)).collect();
                let Ticket { number, .. } = self.rig.publish(shard, self.topic, &events);
                self.publishing.insert(number, (shard, delay_ms));
            }
            Op::Cancel { pick } => {
                let known: Vec<_> = self.accepted.iter().collect();
                let Some((&(shard, sequence), &due)) = known.get(pick % known.len().max(1)).copied() else {
                    return;
                };
                let id = EventId { shard: ShardId(shard), sequence, schedule_time_ms: due };
                let Ticket { number, .. } = self.rig.cancel(id);
                self.cancelling.insert(number, id);
            }
            Op::Advance { ms } => self.rig.advance_ms(ms),
            Op::Answer { pick, result } => {
                if !self.running.is_empty() {
                    let at = pick % self.running.len();
                    self.answer(at, result);
                }
            }
            Op::AnswerAll => {
                while !self.running.is_empty() {
                    self.answer(0, AttemptResult::Success);
                }
            }
            Op::Maintain => self.rig.maintain(),
            Op::Commit { shard } => self.rig.commit(shard),
            Op::Complete { shard } => {
                self.rig.complete(shard);
            }
            Op::Sync => self.rig.sync(),
            Op::Relocate { shard, back, budget_bytes } => {
                let upto = self.rig.newest(shard).saturating_sub(back);
                self.rig.relocate(shard, upto, budget_bytes);
            }
            Op::Trim { shard, most } => self.rig.trim(shard, most),
            Op::Reattach { which } => {
                let (subscription, session) = (self.subscriptions[which], self.sessions[which]);
                self.rig.detach(subscription, session, escapement_router::Detach::Graceful);
                self.running.retain(|(_, push)| push.session != session);
                self.sessions[which] = self.rig.attach(subscription);
            }
            Op::Crash => {
                self.rig.crash();
                self.publishing.clear();
                let unanswered = std::mem::take(&mut self.cancelling).into_values();
                self.perhaps_cancelled.extend(unanswered.map(|id| (id.shard.0, id.sequence)));
                self.running.clear();
                // What was not known to be durable may come again, from the last durable attempt on.
                self.ended.retain(|_, durable| *durable);
                self.attempts = self.failed.clone();
                self.sessions = self.subscriptions.iter().map(|id| self.rig.attach(*id)).collect();
            }
        }
        self.listen();
        if is_sync {
            self.note_durable();
        }
    }

    fn answer(&mut self, at: usize, result: AttemptResult) {
        let (shard, push) = self.running.remove(at);
        self.rig.answer(&push, result);
        let task = (shard.0, push.sequence, push.subscription);
        if result != AttemptResult::RetryableFailure || push.attempt == 4 {
            self.ended.insert(task, false);
            self.answered.insert(task);
        }
    }

    fn listen(&mut self) {
        for reply in std::mem::take(&mut self.rig.replies) {
            let number = reply.ticket.number;
            match reply.body {
                ReplyBody::Published { first_sequence, accepted_count, accepted, refusal, duplicates } => {
                    assert_eq!(duplicates, []);
                    assert_eq!(refusal, None);
                    let (shard, delay_ms) = self.publishing.remove(&number).expect("one answer");
                    for n in 0..u64::from(accepted_count) {
                        let event = (shard, Sequence(first_sequence.0 + n));
                        let before = self.accepted.insert(event, accepted.0 + delay_ms);
                        assert_eq!(before, None, "an id names one event");
                    }
                }
                ReplyBody::Cancelled(verdict) => {
                    let id = self.cancelling.remove(&number).expect("one answer");
                    if verdict == CancelVerdict::Cancelled {
                        self.cancelled.insert((id.shard.0, id.sequence));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        for (shard, push) in std::mem::take(&mut self.rig.pushes) {
            let task = (shard.0, push.sequence, push.subscription);
            // An event that a crash left without its acknowledgement may be there, and is due when it says.
            let held = self.rig.shard(shard.0).event(push.sequence).expect("pending while it is pushed");
            let due = self.accepted.get(&(shard.0, push.sequence)).copied().unwrap_or(held.due.0);
            assert!(due <= self.rig.now.wall.0, "never early: {push:?}");
            assert!(!self.cancelled.contains(&(shard.0, push.sequence)), "after CANCELLED nothing leaves");
            assert!(!self.ended.contains_key(&task), "an ended task is not pushed again: {push:?}");
            let last = self.attempts.insert(task, push.attempt).unwrap_or(0);
            assert!(push.attempt > last, "attempts rise: {push:?} after {last}");
            self.running.push((shard, push));
        }
        self.rig.check();
        self.rig.check_replay();
    }

    /// All that was answered so far is durable.
    fn note_durable(&mut self) {
        self.ended.values_mut().for_each(|durable| *durable = true);
        // Of the attempts that run now, nobody knows after a crash.
        self.failed = self.attempts.clone();
        for (shard, push) in &self.running {
            self.failed.insert((shard.0, push.sequence, push.subscription), push.attempt - 1);
        }
    }

    /// Answers everything until nothing is pending: every task of every acknowledged event has ended.
    fn finish(&mut self) {
        self.run(Op::Sync);
        for _ in 0..1_000 {
            self.run(Op::AnswerAll);
            self.run(Op::Advance { ms: 30 });
            self.run(Op::Sync);
            let pending = |shard| self.rig.shard(shard).stats().pending;
            if (0..SHARDS).map(pending).sum::<u64>() == 0 {
                break;
            }
        }
        for shard in 0..SHARDS {
            assert_eq!(self.rig.shard(shard).stats().pending, 0, "of shard {shard}");
        }
        for (shard, sequence) in self.accepted.keys() {
            for subscription in &self.subscriptions {
                let event = (*shard, *sequence);
                let ended = self.answered.contains(&(*shard, *sequence, *subscription));
                if self.cancelled.contains(&event) {
                    assert!(!ended, "{event:?} for {subscription:?} was cancelled");
                } else {
                    let was_lost = !ended && !self.perhaps_cancelled.contains(&event);
                    assert!(!was_lost, "{event:?} for {subscription:?} was lost");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replay_gives_the_live_state_and_no_promise_is_broken(ops in proptest::collection::vec(op(), 1..160)) {
        let mut told = Told::new();
        for op in ops {
            told.run(op);
        }
        told.finish();
    }
}
