//! The router's turn: fire what is due, then pick all that limits, credit and key order allow.

use escapement_protocol::{MonoNs, Outcome};

use crate::pool::State;
use crate::{Decision, Router, subscription_mut};

/// Most backoffs, most deadlines and most dispatches of one call: what bounds its time.
const RUN_MAX: usize = 4_096;

/// Dispatches of one subscription before the next one has its turn.
const TURN_MAX: usize = 64;

impl Router {
    /// Fires backoffs and deadlines, picks, and appends to `out` everything decided since the last call.
    /// Bounded: true where there is more to do now, and another call would do it.
    pub fn run(&mut self, now: MonoNs, out: &mut Vec<Decision>) -> bool {
        let mut more = self.fire_backoffs(now);
        more |= self.expire(now, RUN_MAX);
        if out.is_empty() {
            std::mem::swap(out, &mut self.decided);
        } else {
            out.append(&mut self.decided);
        }
        let mut budget = RUN_MAX;
        while budget > 0 {
            let Some(at) = self.dirty.pop_front() else { return more };
            // A subscription may have been removed, and its place reused, since it was queued.
            let Some(subscription) = &mut self.subscriptions[at as usize] else { continue };
            if !std::mem::take(&mut subscription.dirty) {
                continue;
            }
            let turn = TURN_MAX.min(budget);
            let picked = self.pick(now, at, turn, out);
            budget -= picked;
            if picked == turn {
                self.touch(at);
            }
        }
        more || !self.dirty.is_empty()
    }

    fn fire_backoffs(&mut self, now: MonoNs) -> bool {
        for _ in 0..RUN_MAX {
            let Some(timer) = self.backoffs.pop_due(now) else { return false };
            let node = &self.pool[timer.index];
            if node.state != State::Backoff || node.generation != timer.stamp {
                self.backoffs.skipped();
                continue;
            }
            subscription_mut(&mut self.subscriptions, node.subscription)
                .apart
                .backoff
                .remove(&mut self.pool, timer.index);
            self.admit(now, timer.index);
        }
        self.backoffs.next().is_some_and(|next| next <= now)
    }

    /// Dispatches at most `most` tasks of one subscription. A task whose last allowed attempt was made,
    /// as when `max_attempts` was lowered meanwhile, completes instead.
    fn pick(&mut self, now: MonoNs, at: u32, most: usize, out: &mut Vec<Decision>) -> usize {
        for picked in 0..most {
            let subscription = subscription_mut(&mut self.subscriptions, at);
            let front = subscription.front().filter(|_| subscription.below_limit());
            let Some(index) = front else { return picked };
            if self.is_exhausted(index) {
                self.unlist(index);
                self.complete(now, index, Outcome::AttemptsExhausted);
                out.append(&mut self.decided);
                continue;
            }
            let Some(session) = self.choose(at, self.pool[index].task.size_bytes) else { return picked };
            out.push(self.dispatch(now, at, index, session));
        }
        most
    }

    /// Of the next two open sessions in turn the one with fewer tasks outstanding; another one where the
    /// task's bytes fit neither.
    fn choose(&mut self, at: u32, size_bytes: u32) -> Option<u32> {
        let subscription = subscription_mut(&mut self.subscriptions, at);
        let open = &subscription.open;
        let fits = |at: &u32| self.sessions[*at].fits(size_bytes);
        if let [only] = open[..] {
            return Some(only).filter(fits);
        }
        let turn = subscription.turn as usize;
        let first = *open.get(turn).or(open.first())?;
        let second = *open.get(turn + 1).or(open.first())?;
        subscription.turn = if turn + 1 < open.len() { subscription.turn + 1 } else { 0 };
        let fewer = if self.sessions[second].tasks < self.sessions[first].tasks { second } else { first };
        Some(fewer).filter(fits).or_else(|| open.iter().copied().find(fits))
    }

    fn dispatch(&mut self, now: MonoNs, at: u32, index: u32, session: u32) -> Decision {
        let subscription = subscription_mut(&mut self.subscriptions, at);
        let node = &mut self.pool[index];
        let list = if node.task.attempt > 0 { &mut subscription.retries } else { &mut subscription.fresh };
        node.task.not_before = MonoNs(0);
        node.state = State::Running;
        node.session = session;
        node.deadline_ms = subscription.deadline_ms;
        node.deadline = now.plus_ms(node.deadline_ms.into());
        let (task, deadline_ms) = (node.task, node.deadline_ms);
        list.remove(&mut self.pool, index);
        subscription.running += 1;
        subscription.dispatched += 1;
        let subscription = subscription.id;
        self.sessions[session].push(&mut self.pool, index);
        self.arm(session);
        self.refresh_open(session);
        let (session, tag) = (self.sessions[session].id, self.pool.tag(index));
        Decision::Dispatch { subscription, session, tag, task, attempt: task.attempt + 1, deadline_ms }
    }
}
