//! How an attempt ends: by its result, by its deadline, or with its host.

use escapement_protocol::{AttemptResult, MonoNs, Outcome, Sequence, ShardId, SubscriptionId, Tag};

use crate::timers::Timer;
use crate::{Decision, EXCUSED_ATTEMPTS_MAX, Router, SessionId, TaskRef, Withdrawn, subscription_mut};

impl Router {
    /// Takes the result of an attempt. A retryable failure may ask for a longer delay than the backoff's
    /// (0 for none), which `max_backoff_ms` bounds. False where the tag names no running attempt of this
    /// session: then nothing changes.
    pub fn result(
        &mut self,
        now: MonoNs,
        session: SessionId,
        tag: Tag,
        result: AttemptResult,
        retry_after_ms: u32,
    ) -> bool {
        let running = self.pool.running(tag);
        let mine = |index: &u32| {
            let at = &self.sessions[self.pool[*index].session];
            at.id == session && at.attached
        };
        let Some(index) = running.filter(mine) else {
            if let Some(&at) = self.by_session.get(&session) {
                let at = self.sessions[at].subscription;
                self.subscription(at).apart.counts.stale_results += 1;
            }
            return false;
        };
        self.end_attempt(index);
        match result {
            AttemptResult::Success => self.complete(now, index, Outcome::Succeeded),
            AttemptResult::PermanentFailure => self.complete(now, index, Outcome::FailedPermanently),
            AttemptResult::RetryableFailure => self.retry(now, index, retry_after_ms),
        }
        true
    }

    /// The event's ttl has passed: a task of it that waits completes as [`Outcome::Expired`], and so does one whose
    /// attempt, named by `unsent`, was decided and never left. Any other attempt goes on; where it fails, the event's
    /// shard asks again.
    pub fn expire_task(
        &mut self,
        now: MonoNs,
        id: SubscriptionId,
        (shard, sequence): (ShardId, Sequence),
        unsent: Option<Tag>,
    ) {
        let is_it = |task: &TaskRef| (task.shard, task.sequence) == (shard, sequence);
        let unsent = unsent.and_then(|tag| self.pool.running(tag));
        if let Some(index) = unsent.filter(|index| is_it(&self.pool[*index].task)) {
            self.end_attempt(index);
            return self.complete(now, index, Outcome::Expired);
        }
        let task = TaskRef { shard, sequence, ..TaskRef::default() };
        if self.withdraw(id, shard, sequence) == Withdrawn::Removed {
            let Some(&at) = self.by_id.get(&id) else { return };
            self.subscription(at).completed += 1;
            self.decided.push(Decision::Complete { subscription: id, task, outcome: Outcome::Expired });
        }
    }

    /// Ends what reached its deadline. At most `budget` attempts; true where more are left.
    pub(crate) fn expire(&mut self, now: MonoNs, mut budget: usize) -> bool {
        while let Some(timer) = self.deadlines.pop_due(now) {
            let session = &self.sessions[timer.index];
            if session.stamp != timer.stamp || session.armed != Some(timer.at) {
                self.deadlines.skipped();
                continue;
            }
            self.sessions[timer.index].armed = None;
            while let Some((deadline, index)) = self.sessions[timer.index].earliest(&self.pool) {
                if deadline > now {
                    break;
                }
                if budget == 0 {
                    self.arm(timer.index);
                    return true;
                }
                budget -= 1;
                self.expire_attempt(now, timer.index, index);
                if self.sessions[timer.index].stamp != timer.stamp {
                    break;
                }
            }
            if self.sessions[timer.index].stamp == timer.stamp {
                self.arm(timer.index);
            }
        }
        false
    }

    fn expire_attempt(&mut self, now: MonoNs, session: u32, index: u32) {
        let attached = self.sessions[session].attached;
        self.end_attempt(index);
        if attached {
            self.subscription(self.pool[index].subscription).apart.counts.deadlines_passed += 1;
            self.retry(now, index, 0);
        } else {
            self.excuse(now, index);
        }
    }

    /// Frees the slot of a running attempt. The task is in no list then, and its tag is stale.
    pub(crate) fn end_attempt(&mut self, index: u32) {
        let node = &mut self.pool[index];
        node.generation += 1;
        node.task.attempt += 1;
        let (at, session) = (node.subscription, node.session);
        subscription_mut(&mut self.subscriptions, at).running -= 1;
        self.sessions[session].remove(&mut self.pool, index);
        self.vacate(session);
        self.touch(at);
    }

    pub(crate) fn complete(&mut self, now: MonoNs, index: u32, outcome: Outcome) {
        let node = &mut self.pool[index];
        node.task.not_before = MonoNs(0);
        let task = node.task;
        let subscription = subscription_mut(&mut self.subscriptions, node.subscription);
        subscription.completed += 1;
        self.decided.push(Decision::Complete { subscription: subscription.id, task, outcome });
        self.release(now, index);
    }

    /// The attempt counts: backoff, or the end where it was the last.
    fn retry(&mut self, now: MonoNs, index: u32, retry_after_ms: u32) {
        if self.is_forgotten(index) {
            return self.release(now, index);
        }
        if self.is_exhausted(index) {
            return self.complete(now, index, Outcome::AttemptsExhausted);
        }
        let task = self.pool[index].task;
        let settings =
            &subscription_mut(&mut self.subscriptions, self.pool[index].subscription).apart.settings;
        let counted = u32::from(task.attempt.saturating_sub(task.excused));
        let whole_ns = u128::from(settings.backoff_ms(counted)) * 1_000_000;
        let jitter_ns = whole_ns * u128::from(settings.jitter_permille) / 1_000;
        let asked_ns = u128::from(settings.max_backoff_ms.min(retry_after_ms.into())) * 1_000_000;
        let cut_ns = (jitter_ns * u128::from(self.next_random() >> 32)) >> 32;
        let delay_ns = (whole_ns - cut_ns).max(asked_ns);
        let next_due = MonoNs(now.0.saturating_add(u64::try_from(delay_ns).unwrap_or(u64::MAX)));
        self.again(now, index, next_due);
    }

    /// Whether a task's shard is out of service.
    fn is_forgotten(&self, index: u32) -> bool {
        !self.forgotten.is_empty() && self.forgotten.contains(&self.pool[index].task.shard)
    }

    /// Whether no further attempt is allowed, or could be numbered.
    pub(crate) fn is_exhausted(&mut self, index: u32) -> bool {
        let node = &self.pool[index];
        let counted = u32::from(node.task.attempt.saturating_sub(node.task.excused));
        let most = subscription_mut(&mut self.subscriptions, node.subscription).max_attempts;
        counted >= most || node.task.attempt == u16::MAX
    }

    /// The attempt does not count: the task goes to the front at once.
    pub(crate) fn excuse(&mut self, now: MonoNs, index: u32) {
        if self.is_forgotten(index) {
            return self.release(now, index);
        }
        let task = &mut self.pool[index].task;
        if task.excused >= EXCUSED_ATTEMPTS_MAX || task.attempt == u16::MAX {
            return self.retry(now, index, 0);
        }
        task.excused += 1;
        self.again(now, index, now);
    }

    fn again(&mut self, now: MonoNs, index: u32, next_due: MonoNs) {
        let node = &mut self.pool[index];
        node.task.not_before = next_due;
        let task = node.task;
        let subscription = subscription_mut(&mut self.subscriptions, node.subscription);
        subscription.apart.counts.attempts_failed += 1;
        let (subscription, attempt) = (subscription.id, task.attempt);
        self.decided.push(Decision::AttemptFailed { subscription, task, attempt, next_due });
        self.admit(now, index);
    }

    /// Makes the session's timer look no later than at its earliest deadline.
    pub(crate) fn arm(&mut self, at: u32) {
        let Some((deadline, _)) = self.sessions[at].earliest(&self.pool) else { return };
        let session = &mut self.sessions[at];
        if session.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        let outdated = session.armed.replace(deadline).is_some();
        let stamp = session.stamp;
        self.deadlines.push(Timer { at: deadline, index: at, stamp });
        if outdated {
            self.outdate_deadline();
        }
    }

    pub(crate) fn outdate_deadline(&mut self) {
        let sessions = &self.sessions;
        self.deadlines.outdated(|timer| {
            let session = &sessions[timer.index];
            session.stamp == timer.stamp && session.armed == Some(timer.at)
        });
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
