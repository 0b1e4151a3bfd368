//! Flow control for the subscriptions that a shard owns: who may receive what, now.
//!
//! The router takes due tasks, sessions and results, and decides: dispatch, complete, try again later.
//! It performs no I/O, reads no clock, and draws no randomness but from its seed, so that one sequence of
//! calls gives one sequence of decisions.
//!
//! What holds after every call:
//! * A subscription never has more attempts out than its `max_concurrent_dispatches`, slots of cut
//!   connections included; lowering the limit stops new attempts until enough have ended.
//! * A session never has more outstanding than its credit in tasks or bytes, but for one task that is
//!   larger than the whole credit, and for attempts that it brought along when it attached.
//! * Of one ordering key of one subscription, at most one task is out or backing off, and the others
//!   wait behind it by (due, sequence).
//! * Every task offered ends in exactly one [`Decision::Complete`], or is withdrawn.
//! * After [`Router::run`] answers that there is no more, no task waits that limit, credit and key order
//!   would let go.
//!
//! `now` must never decrease from call to call. Decisions of every call, [`Router::remove`] excepted, come
//! out of [`Router::run`], in order.
//!
//! Left out on purpose: the events' bytes, durability, and matching events to subscriptions.
#![forbid(unsafe_code)]

mod attach;
mod attempt;
mod check;
mod order;
mod pick;
mod pool;
mod session;
mod subscription;
mod timers;
mod types;

pub use pool::TASK_COUNT_MAX;
pub use types::{
    Credit, Decision, Detach, HostKey, SessionId, Stats, TaskRef, UnknownSubscription, Withdrawn,
};

use std::collections::VecDeque;
use std::fmt;

use escapement_protocol::{Epoch, MonoNs, Outcome, Sequence, ShardId, SubscriptionId, SubscriptionSettings};

use order::Joined;
use pool::{Pool, State};
use session::Sessions;
use subscription::{FixedMap, LOOKUP_TASKS_MIN, Subscription};
use timers::{Timer, Timers};

/// Attempts of one task that may be cut off without counting against `max_attempts`. What a host does
/// not survive this often is counted like any other failure, so that no event can kill hosts for ever.
pub const EXCUSED_ATTEMPTS_MAX: u16 = 16;

/// See the crate's documentation.
pub struct Router {
    pool: Pool,
    sessions: Sessions,
    subscriptions: Vec<Option<Subscription>>,
    free: Vec<u32>,
    by_id: FixedMap<SubscriptionId, u32>,
    /// Attached sessions only.
    by_session: FixedMap<SessionId, u32>,
    /// Subscriptions that may be able to pick, in turn.
    dirty: VecDeque<u32>,
    backoffs: Timers,
    deadlines: Timers,
    /// Decided, and not yet handed out.
    decided: Vec<Decision>,
    /// Shards whose tasks were forgotten. There are hardly ever any.
    forgotten: Vec<ShardId>,
    random: u64,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("subscriptions", &self.by_id.len())
            .field("sessions", &self.by_session.len())
            .field("tasks", &self.pool.used())
            .finish_non_exhaustive()
    }
}

impl Router {
    /// A router without subscriptions. `epoch` marks its tags, `seed` its jitter.
    #[must_use]
    pub fn new(epoch: Epoch, seed: u64) -> Self {
        Router {
            pool: Pool::new(epoch),
            sessions: Sessions::default(),
            subscriptions: Vec::new(),
            free: Vec::new(),
            by_id: FixedMap::default(),
            by_session: FixedMap::default(),
            dirty: VecDeque::new(),
            backoffs: Timers::default(),
            deadlines: Timers::default(),
            decided: Vec::new(),
            forgotten: Vec::new(),
            random: seed,
        }
    }

    /// Creates a subscription, or changes its settings. Limits hold at once, for queued tasks too; a
    /// deadline or backoff that has begun stays as it is.
    pub fn upsert(&mut self, id: SubscriptionId, settings: &SubscriptionSettings) {
        if let Some(&at) = self.by_id.get(&id) {
            self.subscription(at).set(settings);
            return self.touch(at);
        }
        let subscription = Some(Subscription::new(id, settings));
        let at = match self.free.pop() {
            Some(at) => {
                self.subscriptions[at as usize] = subscription;
                at
            }
            None => {
                self.subscriptions.push(subscription);
                self.subscriptions.len() as u32 - 1
            }
        };
        self.by_id.insert(id, at);
    }

    /// Deletes a subscription and its sessions. All its tasks, running ones included, complete as
    /// [`Outcome::SubscriptionDeleted`] in `out`, behind what was decided before.
    pub fn remove(&mut self, id: SubscriptionId, out: &mut Vec<Decision>) {
        let Some(at) = self.by_id.remove(&id) else { return };
        out.append(&mut self.decided);
        let Some(subscription) = self.subscriptions[at as usize].take() else { return };
        let tasks: Vec<u32> = subscription.all(&self.pool, &self.sessions).collect();
        for index in tasks {
            let node = &self.pool[index];
            let mut task = node.task;
            task.attempt += u16::from(node.state == State::Running);
            out.push(Decision::Complete { subscription: id, task, outcome: Outcome::SubscriptionDeleted });
            let was_timed = node.state == State::Backoff;
            self.pool.give_back(index);
            if was_timed {
                self.outdate_backoff();
            }
        }
        for session in subscription.apart.sessions {
            self.by_session.remove(&self.sessions[session].id);
            self.forget_session(session);
        }
        self.free.push(at);
    }

    /// Takes a due task. One of an unknown subscription completes as deleted, one that has no attempt
    /// left as exhausted.
    pub fn offer(&mut self, now: MonoNs, id: SubscriptionId, task: TaskRef) {
        let Some(&at) = self.by_id.get(&id) else {
            let outcome = Outcome::SubscriptionDeleted;
            self.decided.push(Decision::Complete { subscription: id, task, outcome });
            return;
        };
        let index = self.pool.take(task, at);
        let subscription = subscription_mut(&mut self.subscriptions, at);
        subscription.tasks += 1;
        if let Some(lookup) = &mut subscription.lookup {
            lookup.insert((task.shard, task.sequence), index);
        }
        if task.key != 0 {
            match subscription.apart.keys.join(&mut self.pool, index) {
                Joined::Front => {}
                Joined::Blocked => return,
                Joined::Instead(front) => {
                    self.unlist(front);
                    subscription_mut(&mut self.subscriptions, at)
                        .apart
                        .keys
                        .block_first(&mut self.pool, front);
                }
            }
        }
        self.admit(now, index);
    }

    /// Takes back a task that waits, as a cancel does. Once this answers [`Withdrawn::Removed`], nothing
    /// more is decided about the task. The first withdrawal out of a large backlog takes time in
    /// proportion to it; those that follow do not.
    pub fn withdraw(&mut self, id: SubscriptionId, shard: ShardId, sequence: Sequence) -> Withdrawn {
        let Some(&at) = self.by_id.get(&id) else { return Withdrawn::NotHere };
        let subscription = subscription_mut(&mut self.subscriptions, at);
        let Some(index) = subscription.find(&self.pool, &self.sessions, shard, sequence) else {
            return Withdrawn::NotHere;
        };
        let node = &self.pool[index];
        if node.state == State::Running {
            return Withdrawn::Running { attempt: node.task.attempt + 1 };
        }
        self.take_back(index);
        // The failure of its last attempt, if still to be handed out, would come after the removal.
        self.decided.retain(|decision| match decision {
            Decision::AttemptFailed { subscription, task, .. } => {
                (*subscription, task.shard, task.sequence) != (id, shard, sequence)
            }
            _ => true,
        });
        Withdrawn::Removed
    }

    /// Takes back every task of a shard that is out of service, as [`Router::withdraw`] does. An attempt that is out keeps
    /// its slot until it ends; then its task goes too, whatever the result. Offer no task of that shard after this.
    pub fn forget(&mut self, shard: ShardId) {
        self.forgotten.push(shard);
        for at in 0..self.subscriptions.len() {
            let Some(subscription) = &self.subscriptions[at] else { continue };
            let tasks = subscription.all(&self.pool, &self.sessions);
            let tasks: Vec<u32> = tasks.filter(|index| self.pool[*index].task.shard == shard).collect();
            for index in tasks {
                if self.pool[index].state != State::Running {
                    self.take_back(index);
                }
            }
        }
        self.decided.retain(|decision| match decision {
            Decision::AttemptFailed { task, .. } => task.shard != shard,
            _ => true,
        });
    }

    /// Forgets a task that waits.
    fn take_back(&mut self, index: u32) {
        let node = &self.pool[index];
        match node.state {
            State::Blocked => {
                let at = node.subscription;
                subscription_mut(&mut self.subscriptions, at)
                    .apart
                    .keys
                    .remove_blocked(&mut self.pool, index);
                self.drop_task(index);
            }
            State::Ready | State::Backoff => {
                self.unlist(index);
                // Without the time, a next task of the key that may not go before some moment backs off,
                // and the next run finds that the moment has come.
                self.release(MonoNs(0), index);
            }
            State::Running | State::Free => unreachable!("only what waits is taken back"),
        }
    }

    /// When [`Router::run`] must next be called though nothing comes in. It may be early, never late.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoNs> {
        if !self.decided.is_empty() || !self.dirty.is_empty() {
            return Some(MonoNs(0));
        }
        self.backoffs.next().into_iter().chain(self.deadlines.next()).min()
    }

    /// Counts of a subscription.
    #[must_use]
    pub fn stats(&self, id: SubscriptionId) -> Option<Stats> {
        let at = *self.by_id.get(&id)?;
        Some(self.subscriptions[at as usize].as_ref()?.stats(&self.sessions))
    }

    /// Tasks of a subscription that wait: queued, blocked by their key, or backing off. 0 where it is unknown.
    #[must_use]
    pub fn waiting(&self, id: SubscriptionId) -> usize {
        let at = self.by_id.get(&id);
        at.and_then(|at| self.subscriptions[*at as usize].as_ref())
            .map_or(0, |s| s.tasks - s.running as usize)
    }

    /// Tasks of all subscriptions, running ones included.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.pool.used()
    }

    /// Bytes of the task pool, which is by far the largest part.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.pool.memory_bytes()
    }

    fn subscription(&mut self, at: u32) -> &mut Subscription {
        subscription_mut(&mut self.subscriptions, at)
    }

    /// Queues the subscription for picking where that could lead to something.
    fn touch(&mut self, at: u32) {
        let subscription = subscription_mut(&mut self.subscriptions, at);
        if !subscription.dirty && subscription.can_pick() {
            subscription.dirty = true;
            self.dirty.push_back(at);
        }
    }

    /// Puts a task that is in no list, and in front of its key, where its time says.
    fn admit(&mut self, now: MonoNs, index: u32) {
        let node = &mut self.pool[index];
        let (at, due) = (node.subscription, node.task.not_before);
        let subscription = subscription_mut(&mut self.subscriptions, at);
        if due > now {
            node.state = State::Backoff;
            let stamp = node.generation;
            subscription.apart.backoff.push_back(&mut self.pool, index);
            self.backoffs.push(Timer { at: due, index, stamp });
            return;
        }
        node.state = State::Ready;
        let list = if node.task.attempt > 0 { &mut subscription.retries } else { &mut subscription.fresh };
        list.push_back(&mut self.pool, index);
        self.touch(at);
    }

    /// Takes a ready or backing-off task out of its list.
    fn unlist(&mut self, index: u32) {
        let node = &mut self.pool[index];
        let (state, attempted) = (node.state, node.task.attempt > 0);
        // Its timer, if any, no longer counts.
        node.generation += u32::from(state == State::Backoff);
        let subscription = subscription_mut(&mut self.subscriptions, node.subscription);
        let list = match state {
            State::Backoff => &mut subscription.apart.backoff,
            _ if attempted => &mut subscription.retries,
            _ => &mut subscription.fresh,
        };
        list.remove(&mut self.pool, index);
        if state == State::Backoff {
            self.outdate_backoff();
        }
    }

    /// Forgets a task that is in no list, and lets the next of its key go.
    fn release(&mut self, now: MonoNs, index: u32) {
        let node = &self.pool[index];
        let (at, key) = (node.subscription, node.task.key);
        if key != 0 {
            let next =
                subscription_mut(&mut self.subscriptions, at).apart.keys.advance(&mut self.pool, index);
            if let Some(next) = next {
                self.admit(now, next);
            }
        }
        self.drop_task(index);
        self.touch(at);
    }

    fn drop_task(&mut self, index: u32) {
        let node = &self.pool[index];
        let task = node.task;
        let subscription = subscription_mut(&mut self.subscriptions, node.subscription);
        subscription.tasks -= 1;
        if let Some(lookup) = &mut subscription.lookup {
            lookup.remove(&(task.shard, task.sequence));
            if subscription.tasks < LOOKUP_TASKS_MIN / 2 {
                subscription.lookup = None;
            }
        }
        self.pool.give_back(index);
    }

    fn outdate_backoff(&mut self) {
        let pool = &self.pool;
        self.backoffs.outdated(|timer| pool[timer.index].generation == timer.stamp);
    }
}

fn subscription_mut(subscriptions: &mut [Option<Subscription>], at: u32) -> &mut Subscription {
    subscriptions[at as usize].as_mut().expect("tasks, sessions and turns name live subscriptions")
}
